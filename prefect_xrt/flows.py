"""The one composable flow: submit → sensor → branch → download."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast
from uuid import UUID

from prefect import State, flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, JsonValue

from prefect_xrt import archive, reports, tasks
from prefect_xrt.archive import ProductFile
from prefect_xrt.blocks import XRTCredentials, load_credentials
from prefect_xrt.errors import OutputError, ProductsError, RequestWarning, WaitError, XRTError
from prefect_xrt.parameters import read_request
from prefect_xrt.protocol import HELP_DESK, ArchiveFormat, Job, Outcome, ProductState, ProductStatus
from prefect_xrt.records import read_record
from prefect_xrt.reports import BuildReport
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.sensor import DEADLINE_S, MAX_FAILED_LOOKS, Pacing

__all__ = ["build_products"]


def _run_name() -> str:
    request = flow_run.parameters.get("request")
    name = request.get("name") if isinstance(request, dict) else getattr(request, "name", None)
    return f"build: {name or 'unnamed'}"


@flow(name="build-products", flow_run_name=_run_name)
def build_products(
    request: ProductRequest | dict[str, JsonValue],
    output_dir: Path,
    credentials: str | None = None,
    archive_format: ArchiveFormat = "tar.gz",
    extract: bool = False,
    overwrite: bool = False,
    accept_partial: bool = False,
    pacing: Pacing | None = None,
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = DEADLINE_S,
    max_failed_looks: Annotated[int, Field(ge=1)] = MAX_FAILED_LOOKS,
) -> BuildReport:
    """Build the products of one request, and bring their files into a folder.

    The request is validated before anything is sent. Each product is fetched as soon as it is
    ready; a product that fails does not hold up the others. What is not ready at the end is told
    by the final state.

    Args:
        request: What to build: a `ProductRequest`, or JSON in this project's or the service's spelling.
            Prefect keeps it with the run, in clear: leave a `UserID` out of it.
        output_dir: Where the files go, with `job.json`, `jobPars.json` and `report.json`.
        credentials: The name of an `XRTCredentials` block; the environment serves by default.
        archive_format: How the files are bundled.
        extract: Also unpack every bundle, into a folder beside it.
        overwrite: Replace files that are in the folder already.
        accept_partial: Complete even if only some products are ready.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait for the products, in seconds.
        max_failed_looks: How many looks in a row may fail.

    Returns:
        A `BuildReport`, as the result of the state Completed. The state is Cancelled if every
        product was cancelled; else Failed, named "Partly" if some products are there. Both raise
        what is told below.

    Raises:
        InvalidRequestError: The request cannot be sent; nothing was.
        ConfigurationError: No account is set, or it cannot be right; nothing was sent.
        OutputError: The folder cannot be used; nothing was sent.
        RequestRefusedError: The service did not accept the parameters.
        SubmitUncertainError: No clear answer came; a job may exist.
        ProductsError: A product is not there; it carries the report.
        DeadlineError, FailedLooksError: The wait ended before the products did; the job lives on.
    """
    started_at = datetime.now(UTC)
    account = load_credentials(credentials)
    wanted = _read(request, account)
    output_dir = output_dir.expanduser().absolute()
    job = _prepare(output_dir, wanted, archive_format, overwrite=overwrite)
    if job is None:
        job = tasks.submit_request(wanted, account, record_dir=output_dir)
    downloads: dict[Product, PrefectFuture[ProductFile]] = {}
    outcome: Outcome | None = None
    trouble: WaitError | None = None
    give_up_at = time.monotonic() + deadline_s
    while trouble is None and (outcome is None or outcome.pending):
        ended = outcome.ended if outcome else ()
        try:
            outcome = tasks.wait_for_products(
                job,
                account,
                since=outcome,
                until="next",
                pacing=pacing,
                deadline_s=max(1e-3, give_up_at - time.monotonic()),
                max_failed_looks=max_failed_looks,
            )
        except WaitError as error:
            outcome, trouble = error.outcome, error
        for status in outcome.statuses.values() if outcome else ():
            if status.product in ended:
                continue
            if status.state is ProductState.READY:
                downloads[status.product] = tasks.download_product.submit(
                    job,
                    status.product,
                    output_dir,
                    archive_format,
                    account,
                    overwrite=overwrite,
                    extract=extract,
                )
            elif status.state is ProductState.ALARM and trouble is None:
                # One that a wait which ended early has seen only once is no alarm yet.
                _alarm(job, status)

    files, problems = _collect(downloads)
    if overwrite:
        try:
            archive.remove_other_jobs(output_dir, job)
        except OutputError as error:
            get_run_logger().error("What another job left could not be removed: %s", error)
    report = reports.make_report(
        job,
        outcome,
        files,
        problems,
        output_dir=output_dir,
        started_at=started_at,
        problem=trouble.message if trouble else None,
    )
    _show(report)
    # Prefect makes a state that is returned the state of the run.
    return cast(BuildReport, _final_state(report, outcome, trouble, accept_partial=accept_partial))


def _read(request: ProductRequest | dict[str, JsonValue], account: XRTCredentials) -> ProductRequest:
    """Validate what was asked for, with its warnings in the run's log."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", RequestWarning)
        wanted = read_request(request, user_id=account.user_id.get_secret_value())
    for note in notes:
        get_run_logger().warning("%s", note.message)
    if isinstance(request, dict) and '"UserID"' in json.dumps(request):
        get_run_logger().warning(
            "The request holds a UserID. It is not used, but Prefect keeps the parameters of a flow run in clear: "
            "leave it out."
        )
    return wanted


def _prepare(
    output_dir: Path, request: ProductRequest, archive_format: ArchiveFormat, *, overwrite: bool
) -> Job | None:
    """Make sure that the folder can take the files; return the job if an earlier attempt has asked for it."""
    archive.make_directory(output_dir)
    record = read_record(output_dir)
    if record and _is_ours(record.flow_run_id):
        get_run_logger().info("Going on with %s, which an earlier attempt submitted.", record.job)
        return record.job
    if overwrite:
        return None
    if record:
        raise OutputError(
            f"{output_dir} belongs to {record.job}. Fetch its files by `prefect-xrt download {record.job.id} "
            f"--out {output_dir}`, choose another folder, or have it overwritten (--overwrite)."
        )
    archive.refuse_foreign_files(output_dir, request.products, archive_format)
    return None


def _is_ours(run_id: str | None) -> bool:
    """Tell whether a flow run was an earlier attempt of this one.

    A flow run that is retried keeps its ID; a flow that is called by one gets a new run each time, and
    what the runs have in common is the place of the call.
    """
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    if own is None or run_id is None:
        return False
    if run_id == str(own.id):
        return True
    if own.parent_task_run_id is None:
        return False
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(UUID(run_id)).parent_task_run_id == own.parent_task_run_id
        except (ObjectNotFound, ValueError):
            return False


def _alarm(job: Job, status: ProductStatus) -> None:
    get_run_logger().error(
        "%s of %s has status %s (%s), which should never happen. A report for %s is ready among the artifacts.",
        status.product.value,
        job,
        status.code,
        status.text,
        HELP_DESK,
    )
    with _not_vital("The alarm"):
        reports.raise_alarm(job, status, datetime.now(UTC))


def _collect(
    downloads: dict[Product, PrefectFuture[ProductFile]],
) -> tuple[dict[Product, ProductFile], dict[Product, str]]:
    """Wait for the files, and keep what went wrong with one from hiding the others."""
    files, problems = {}, {}
    for product, future in downloads.items():
        try:
            files[product] = future.result()
        except Exception as error:
            problems[product] = (
                error.message if isinstance(error, XRTError) else f"{type(error).__name__}: {error}"
            )
    return files, problems


def _show(report: BuildReport) -> None:
    try:
        reports.write_report(report)
    except OutputError as error:
        get_run_logger().error("The report could not be written: %s", error)
    with _not_vital("The report's artifact"):
        reports.publish_report(report)


@contextmanager
def _not_vital(what: str) -> Iterator[None]:
    """Let a server that is away for a moment not cost the products."""
    try:
        yield
    except Exception:
        get_run_logger().warning("%s could not be shown.", what, exc_info=True)


def _final_state(
    report: BuildReport, outcome: Outcome | None, trouble: WaitError | None, *, accept_partial: bool
) -> State[Any]:
    summary = report.summary()
    if report.succeeded or (accept_partial and report.files and not trouble):
        return Completed(message=summary, data=report)
    if trouble:
        trouble.report = report
    error = trouble or ProductsError(summary, outcome=outcome, report=report)
    if report.cancelled:
        return Cancelled(message=summary, data=error)
    if _will_be_retried():
        # Prefect retries a flow that raises; one that returns a failed state would wait for ever.
        raise error
    return Failed(name="Partly" if report.files else None, message=summary, data=error)


def _will_be_retried() -> bool:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    return context.flow_run.run_count <= (context.flow_run.empirical_policy.retries or 0)
