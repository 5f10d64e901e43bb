"""What people and later steps look at: the report of a build, and what the Prefect UI shows of a job.

Nothing here is mailed to the service; the alarm's artifact holds a report that is ready to be sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.runtime import flow_run, task_run
from prefect.settings import PREFECT_UI_URL
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from prefect_xrt import pages, protocol
from prefect_xrt.archive import ProductFile, write_text
from prefect_xrt.protocol import Job, Outcome, ProductState, ProductStatus
from prefect_xrt.request import Product

__all__ = [
    "BuildReport",
    "ProductReport",
    "Times",
    "artifact_key",
    "artifact_url",
    "make_report",
    "of_this_run",
    "publish_alarm",
    "publish_report",
    "report_key",
    "show",
    "write_report",
]

REPORT_NAME = "report.json"


class ProductReport(BaseModel):
    """How one product ended, and where its files are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: Product
    state: ProductState
    code: int | None = Field(description="The service's statusCode.")
    text: str = Field(description="The service's statusText.")
    file: ProductFile | None = Field(default=None, description="The verified file, if it was fetched.")
    problem: str | None = Field(default=None, description="Why a ready product could not be fetched.")


class BuildReport(BaseModel):
    """What a build came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Job
    products: tuple[ProductReport, ...]
    output_dir: Path
    started_at: AwareDatetime = Field(description="When the build began, UTC.")
    finished_at: AwareDatetime = Field(description="When it ended, UTC.")
    problem: str | None = Field(default=None, description="Why the wait ended before the products did.")

    @property
    def files(self) -> tuple[ProductFile, ...]:
        """The files that were fetched and verified."""
        return tuple(entry.file for entry in self.products if entry.file)

    @property
    def succeeded(self) -> bool:
        """Whether every product is here."""
        return len(self.files) == len(self.products)

    @property
    def cancelled(self) -> bool:
        """Whether every product was cancelled."""
        return all(entry.state is ProductState.CANCELLED for entry in self.products)

    @property
    def missing(self) -> dict[str, str]:
        """What is not here, by the product's name, and why."""
        return {
            entry.product.value: entry.problem or _ending(entry) for entry in self.products if not entry.file
        }

    def summary(self) -> str:
        """Return one line, such as "5 of 6 products of job 803 (GK Per): Spectrum failed (-1, Error)"."""
        missing = [
            f"{entry.product.value} ({entry.problem})"
            if entry.problem
            else f"{entry.product.value} {_ending(entry)}"
            for entry in self.products
            if not entry.file
        ]
        line = f"{len(self.files)} of {len(self.products)} products of {self.job} are in {self.output_dir}"
        if missing:
            line += f"; not there: {'; '.join(missing)}"
        return line + (f". {self.problem}" if self.problem else ".")

    def next_step(self) -> str:
        """Return what to do about what is not there; empty where nothing is, or where `problem` tells already."""
        if self.problem:
            return ""
        states = {entry.state for entry in self.products if not entry.file}
        steps = []
        if ProductState.ALARM in states:
            steps.append(f"A report to be sent to {protocol.HELP_DESK} is ready among the artifacts.")
        if ProductState.READY in states:
            steps.append("Run the same again to fetch what is missing: it goes on with this job.")
        if states & {ProductState.FAILED, ProductState.ALARM, ProductState.CANCELLED}:
            steps.append("To build again, run it with `overwrite`, or for another folder.")
        if ProductState.FAILED in states:
            steps.append(f"If that fails, too, change the request, or ask {protocol.HELP_DESK}.")
        return " ".join(steps)


def _ending(entry: ProductReport) -> str:
    code = "" if entry.code is None else f"{entry.code}, "
    return f"{entry.state.value} ({code}{entry.text})"


def make_report(
    job: Job,
    outcome: Outcome | None,
    files: dict[Product, ProductFile],
    problems: dict[Product, str],
    *,
    output_dir: Path,
    started_at: datetime,
    problem: str | None,
) -> BuildReport:
    """Put together what became of every product of a job."""
    products = []
    for product in job.products:
        status = outcome.statuses.get(product) if outcome else None
        status = status or ProductStatus(product=product, code=None, text="Never seen")
        products.append(
            ProductReport(
                product=product,
                state=status.state,
                code=status.code,
                text=status.text,
                file=files.get(product),
                problem=problems.get(product),
            )
        )
    return BuildReport(
        job=job,
        products=tuple(products),
        output_dir=output_dir,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        problem=problem,
    )


def write_report(report: BuildReport) -> None:
    """Write the report beside the files, as `report.json`.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_text(report.output_dir / REPORT_NAME, report.model_dump_json(indent=2) + "\n")


class Times(NamedTuple):
    """How long a product was queued and has been running, as "HH:MM:SS"; empty where the service did not tell."""

    queued: str = ""
    running: str = ""


def publish_report(
    client: SyncPrefectClient,
    report: BuildReport,
    asked: Mapping[str, JsonValue] | None = None,
    times: Mapping[Product, Times] | None = None,
) -> UUID:
    """Show the products of a build as a table in the Prefect UI, and all that it came to as a page.

    Args:
        client: Speaks to Prefect's server.
        report: What the build came to.
        asked: What was asked for, in the service's spelling; None where that is not known.
        times: How long the products were queued and ran, as far as it is known.

    Returns:
        The ID of the page's artifact.
    """
    rows = [
        {
            **_row(entry, entry.problem or entry.text, (times or {}).get(entry.product)),
            "file": str(entry.file.path) if entry.file else "",
            "bytes": entry.file.size if entry.file else "",
            "SHA-256": entry.file.sha256 if entry.file else "",
        }
        for entry in report.products
    ]
    table = ArtifactCreate(
        key=artifact_key(report.job.id), type="table", data=json.dumps(rows), description=report.summary()
    )
    show(client, table)
    page = ArtifactCreate(
        key=report_key(report.job.id),
        type="markdown",
        data=pages.report_page(report, asked),
        description=report.summary(),
    )
    return client.create_artifact(of_this_run(page)).id


def publish_alarm(client: SyncPrefectClient, job: Job, status: ProductStatus, looked_at: datetime) -> UUID:
    """Show the report to the help desk about a status that should never happen, ready to be sent.

    Args:
        client: Speaks to Prefect's server.
        job: The job.
        status: The status of a product of it.
        looked_at: When it was seen, UTC.

    Returns:
        The ID of the page's artifact.
    """
    page = ArtifactCreate(
        key=f"xrt-alarm-{job.id}-{protocol.SHORT_NAMES[status.product].lower()}",
        type="markdown",
        data=pages.alarm_page(job, status, looked_at),
        description=f"Status {status.code}, which should never happen: {status.product.value} of {job}.",
    )
    return client.create_artifact(of_this_run(page)).id


def show(client: SyncPrefectClient, *artifacts: ArtifactCreate, flow_run_id: UUID | None = None) -> None:
    """Show artifacts of a run, each in the place of what the run shows under the same key already.

    So one card in the UI tells of a job from its submission to its end, also of a run that is retried.
    Prefect sends what is shown anew as an event, too: it is for little things, not for pages.

    Args:
        client: Speaks to Prefect's server.
        artifacts: What to show, each with a key.
        flow_run_id: Of which run; by default of the one that this is called in.
    """
    shown = client.read_artifacts(
        artifact_filter=ArtifactFilter(
            key=ArtifactFilterKey(any_=[str(artifact.key) for artifact in artifacts]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id or UUID(flow_run.id)]),
        )
    )
    known = {artifact.key: artifact.id for artifact in shown}
    for artifact in artifacts:
        if artifact.key in known:
            update = ArtifactUpdate(description=artifact.description, data=artifact.data)
            client.update_artifact(known[artifact.key], update)
        else:
            of = artifact.model_copy(update={"flow_run_id": flow_run_id}) if flow_run_id else None
            client.create_artifact(of or of_this_run(artifact))


def of_this_run(artifact: ArtifactCreate) -> ArtifactCreate:
    """Return an artifact as one of the flow run and the task run that this is called in."""
    of = {"flow_run_id": flow_run.id, "task_run_id": task_run.id}
    return artifact.model_copy(update={name: UUID(run) if run else None for name, run in of.items()})


def status_row(status: ProductStatus, times: Times | None) -> dict[str, JsonValue]:
    """Return what the table of products tells of one that is still followed."""
    return _row(status, status.text, times)


def _row(entry: ProductStatus | ProductReport, text: str, times: Times | None) -> dict[str, JsonValue]:
    return {
        "product": entry.product.value,
        "state": entry.state.value,
        "code": entry.code,
        "text": text,
        **(times or Times())._asdict(),
    }


def artifact_key(job_id: int) -> str:
    """Return the key under which the UI shows a job, from its submission to its report."""
    return f"xrt-job-{job_id}"


def report_key(job_id: int) -> str:
    """Return the key of the page that tells what became of a job."""
    return f"xrt-report-{job_id}"


def artifact_url(artifact_id: UUID | None) -> str | None:
    """Return the address of an artifact in the Prefect UI; None where there is no UI, or nothing to show."""
    base_url = PREFECT_UI_URL.value()
    return f"{base_url.rstrip('/')}/artifacts/artifact/{artifact_id}" if base_url and artifact_id else None
