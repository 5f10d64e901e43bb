"""What people and later steps look at: the report of a build, its artifact, and the alarm.

Nothing here is mailed to the service; the alarm's artifact holds a report that is ready to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.events import emit_event
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from prefect_xrt import pages, protocol
from prefect_xrt.archive import ProductFile, write_text
from prefect_xrt.protocol import Job, Outcome, ProductState, ProductStatus
from prefect_xrt.request import Product

__all__ = ["ALARM_EVENT", "BuildReport", "ProductReport", "publish_report", "raise_alarm", "write_report"]

ALARM_EVENT = "prefect-xrt.product.alarm"
"""The event for a product with status -2 or -3, raised once per job and product.

Its resource is `prefect-xrt.job.<JobID>`; its payload holds `job_id`, `job_name`, `product`, `code`,
`text`, `looked_at` (ISO 8601, UTC) and `help_desk`.
"""

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

    def summary(self) -> str:
        """Return one line, such as "5 of 6 products of job 803 (GK Per): Spectrum failed (-1, Error)"."""
        missing = [_ending(entry) for entry in self.products if not entry.file]
        line = f"{len(self.files)} of {len(self.products)} products of {self.job} are in {self.output_dir}"
        if missing:
            line += f"; not there: {'; '.join(missing)}"
        return line + (f". {self.problem}" if self.problem else ".")


def _ending(entry: ProductReport) -> str:
    if entry.problem:
        return f"{entry.product.value} ({entry.problem})"
    return f"{entry.product.value} {entry.state.value} ({entry.code}, {entry.text})"


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


def publish_report(report: BuildReport, asked: Mapping[str, JsonValue] | None = None) -> None:
    """Show the products of a build as a table in the Prefect UI, and all that it came to as a page.

    Args:
        report: What the build came to.
        asked: What was asked for, in the service's spelling; None where that is not known.
    """
    rows = [
        {
            "product": entry.product.value,
            "state": entry.state.value,
            "code": entry.code,
            "text": entry.problem or entry.text,
            "file": str(entry.file.path) if entry.file else "",
            "bytes": entry.file.size if entry.file else "",
            "SHA-256": entry.file.sha256 if entry.file else "",
        }
        for entry in report.products
    ]
    create_table_artifact(rows, key=artifact_key(report.job.id), description=report.summary())
    create_markdown_artifact(
        pages.report_page(report, asked), key=f"xrt-report-{report.job.id}", description=report.summary()
    )


def artifact_key(job_id: int) -> str:
    """Return the key under which the UI shows a job, from its submission to its report."""
    return f"xrt-job-{job_id}"


def raise_alarm(job: Job, status: ProductStatus, looked_at: datetime) -> None:
    """Tell of a status that should never happen: an event, and a report that is ready to be sent."""
    emit_event(
        event=ALARM_EVENT,
        resource={
            "prefect.resource.id": f"prefect-xrt.job.{job.id}",
            "prefect.resource.name": str(job),
            "prefect-xrt.product": status.product.value,
            "prefect-xrt.code": str(status.code),
        },
        payload={
            "job_id": job.id,
            "job_name": job.name,
            "product": status.product.value,
            "code": status.code,
            "text": status.text,
            "looked_at": looked_at.isoformat(),
            "help_desk": protocol.HELP_DESK,
        },
    )
    create_markdown_artifact(
        pages.alarm_page(job, status, looked_at),
        key=f"xrt-alarm-{job.id}-{protocol.SHORT_NAMES[status.product].lower()}",
        description=f"{status.product.value} of {job} has status {status.code}, which should never happen.",
    )
