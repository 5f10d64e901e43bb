"""The one composable flow: submit → sensor → branch → download, and the same for a job that exists."""

# No `from __future__ import annotations`: where somebody serves a flow that builds products, Prefect pickles
# these flows without what texts name.
import json
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast
from uuid import UUID

from prefect import State, flow, get_run_logger
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field, JsonValue

from prefect_xrt import alerts, archive, deferral, reports, runs, submission, tasks
from prefect_xrt.alerts import Notifier
from prefect_xrt.archive import ProductFile
from prefect_xrt.credentials import XRTCredentials, load_credentials
from prefect_xrt.deferral import Waiting
from prefect_xrt.errors import (
    OutputError,
    ProductsError,
    RequestWarning,
    SubmitUncertainError,
    WaitError,
    XRTError,
)
from prefect_xrt.pacing import Pacing
from prefect_xrt.parameters import encode, read_request, same_request
from prefect_xrt.progress import Board
from prefect_xrt.protocol import ArchiveFormat, Job, Outcome, ProductState, ProductStatus
from prefect_xrt.records import (
    RECORD_NAME,
    JobRecord,
    read_record,
    read_submission,
    remove_submission,
    write_record,
)
from prefect_xrt.reports import BuildReport
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.runs import CancelPolicy
from prefect_xrt.sensor import DEADLINE_S, MAX_FAILED_LOOKS

__all__ = ["attach_products", "build_products"]

Trouble = WaitError | runs.RunCancelled

Reuse = Literal["never", "unless-failed", "always"]
"""Whether a job that answers the request already is taken instead of building again."""


def _run_name() -> str:
    return f"build: {name_of(flow_run.parameters.get('request'))}"


def name_of(request: object) -> str:
    """Return the name of the object that a request is about, before anybody has checked the request."""
    name = request.get("name") if isinstance(request, dict) else getattr(request, "name", None)
    return str(name or "unnamed")


@flow(
    name="build-products",
    flow_run_name=_run_name,
    on_cancellation=[runs.cancel_jobs],
    on_crashed=[runs.cancel_jobs],
)
def build_products(
    request: ProductRequest | dict[str, JsonValue],
    output_dir: Path,
    credentials: str | None = None,
    archive_format: ArchiveFormat = "tar.gz",
    extract: bool = False,
    overwrite: bool = False,
    accept_partial: bool = False,
    reuse: Reuse = "never",
    cancel_job: CancelPolicy = "when-cancelled",
    pacing: Pacing | None = None,
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = DEADLINE_S,
    max_failed_looks: Annotated[int, Field(ge=1)] = MAX_FAILED_LOOKS,
    notify: str | None = None,
    waiting: Waiting = "in-process",
) -> BuildReport:
    """Build the products of one request, and bring their files into a folder.

    The request is validated before anything is sent. Each product is fetched as soon as it is
    ready; a product that fails does not hold up the others. What is not ready at the end is told
    by the final state.

    The folder belongs to the request: whoever runs the same request into the same folder again, after
    a crash, as a retry, or by hand, goes on with the same job.

    Args:
        request: What to build: a `ProductRequest`, or JSON in this project's or the service's spelling.
            Prefect keeps it with the run, in clear: leave a `UserID` out of it.
        output_dir: Where the files go, with `job.json`, `jobPars.json` and `report.json`.
        credentials: The name of an `XRTCredentials` block; the environment serves by default.
        archive_format: How the files are bundled.
        extract: Also unpack every bundle, into a folder beside it.
        overwrite: Build again what the folder holds already, and replace its files.
        accept_partial: Complete even if only some products are ready.
        reuse: Whether the newest job of the account with these parameters is taken instead of building again,
            if it still builds or its files are still there: "never"; "unless-failed", where one of which a
            product failed or was cancelled is built again; or "always", where that ends this run, too.
        cancel_job: Whether what still builds is cancelled with this run: "never", "when-cancelled", or
            "when-stopped", which is also when it crashes. A job that was reused is never cancelled.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait for the products, in seconds.
        max_failed_looks: How many looks in a row, and how many attempts at a file, may fail.
        notify: The type and name of a notification block, such as "slack-webhook/xrt", that is told of what
            `prefect_xrt.alerts` raises: an alarm, a deadline that has passed, a service that cannot be reached,
            a submission that is uncertain.
        waiting: "in-process", or "suspended": the run gives its process and its worker's slot back, and a watcher
            (`prefect-xrt watch`) resumes it as products end. That needs a deployment; a run that cannot be
            suspended waits in its process, and says so.

    Returns:
        A `BuildReport`, as the result of the state Completed. The state is Cancelled if every
        product was cancelled; else Failed, named "Partly" if some products are there. Both raise
        what is told below.

    Raises:
        InvalidRequestError: The request cannot be sent; nothing was.
        ConfigurationError: No account is set, it cannot be right, or a block is not there; nothing was sent.
        OutputError: The folder cannot be used, or another process uses it; nothing was sent.
        RequestRefusedError: The service did not accept the parameters.
        SubmitUncertainError: It cannot be told which job, if any, the request has become.
        ProductsError: A product is not there; it carries the report.
        DeadlineError, FailedLooksError: The wait ended before the products did; the job lives on.
    """
    started_at = runs.started_at()
    account = load_credentials(credentials)
    notifier = alerts.load_notifier(notify)
    wanted = _read(request, account)
    output_dir = output_dir.expanduser().absolute()
    archive.make_directory(output_dir)
    try:
        with runs.heard_of(), archive.exclusive(output_dir / RECORD_NAME):
            seen = None
            record = _record_of(wanted, output_dir, archive_format, extract=extract, overwrite=overwrite)
            if record is None and waiting == "suspended" and (left := deferral.job_before()):
                # The folder is that of another machine.
                job, reused = left
                job = tasks.attach_job(job.id, account)
                record = _put_on_record(output_dir, job, request=encode(wanted), reused=reused)
            if record is None and reuse != "never" and read_submission(output_dir) is None:
                found = tasks.find_job(wanted, account, failed_too=reuse == "always")
                if found:
                    job, seen = found
                    record = _put_on_record(output_dir, job, request=encode(wanted), reused=True)
                    if waiting == "suspended":
                        runs.note_reused(job.id)
                    get_run_logger().info("Taking %s, which answers the request already.", job)
            policy: CancelPolicy = "never" if record and record.reused else cancel_job
            with runs.cancelled_with_run([record.job] if record else [], account, policy, and_more=True):
                record = record or _submit(wanted, account, output_dir, pacing, notifier, waiting)
                return _follow(
                    record,
                    account,
                    output_dir,
                    seen=seen,
                    started_at=started_at,
                    archive_format=archive_format,
                    extract=extract,
                    overwrite=overwrite,
                    accept_partial=accept_partial,
                    cancel_job=policy,
                    pacing=pacing,
                    deadline_s=deadline_s,
                    max_failed_looks=max_failed_looks,
                    notifier=notifier,
                    waiting=waiting,
                )
    except runs.RunCancelled as stop:
        if flow_run.id != flow_run.root_flow_run_id:
            raise  # the flow that has called this one tells what that means
        message = f"{stop} It had not begun to wait for its products."
        return cast(BuildReport, Cancelled(message=message, data=ProductsError(message)))


@flow(
    name="attach-products",
    flow_run_name="attach: job {job_id}",
    on_cancellation=[runs.cancel_jobs],
    on_crashed=[runs.cancel_jobs],
)
def attach_products(
    job_id: Annotated[int, Field(ge=1)],
    output_dir: Path,
    credentials: str | None = None,
    archive_format: ArchiveFormat = "tar.gz",
    extract: bool = False,
    overwrite: bool = False,
    accept_partial: bool = False,
    cancel_job: CancelPolicy = "when-cancelled",
    pacing: Pacing | None = None,
    deadline_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = DEADLINE_S,
    max_failed_looks: Annotated[int, Field(ge=1)] = MAX_FAILED_LOOKS,
    notify: str | None = None,
    waiting: Waiting = "in-process",
) -> BuildReport:
    """Go on with a job of the account, whoever submitted it and on whatever machine, as `build_products` would.

    The folder gets the job's record: a run of `build_products` that could not tell what had become of
    its request goes on with this job when it is run again.

    Args:
        job_id: The JobID, as `prefect-xrt jobs` lists it.
        output_dir: Where the files go, with `job.json`, `jobPars.json` and `report.json`.
        credentials: As for `build_products`, like all that follows.
        archive_format: How the files are bundled.
        extract: Also unpack every bundle, into a folder beside it.
        overwrite: Replace what the folder holds of another job.
        accept_partial: Complete even if only some products are ready.
        cancel_job: Whether what still builds is cancelled with this run.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait for the products, in seconds.
        max_failed_looks: How many looks in a row, and how many attempts at a file, may fail.
        notify: The type and name of a notification block that is told of alerts.
        waiting: "in-process" or "suspended".

    Returns:
        As `build_products`.

    Raises:
        JobNotFoundError: The job does not exist, or is someone else's.
        ConfigurationError: No account is set, it cannot be right, or a block is not there; nothing was sent.
        OutputError: The folder cannot be used, another process uses it, or it belongs to another job.
        ProductsError: A product is not there; it carries the report.
        DeadlineError, FailedLooksError: The wait ended before the products did; the job lives on.
    """
    started_at = runs.started_at()
    account = load_credentials(credentials)
    notifier = alerts.load_notifier(notify)
    output_dir = output_dir.expanduser().absolute()
    archive.make_directory(output_dir)
    with runs.heard_of(), archive.exclusive(output_dir / RECORD_NAME):
        record = None if overwrite else submission.job_on_record(output_dir)
        if record and record.job.id != job_id:
            raise _belongs_to(output_dir, record)
        if record is None:
            left = None if overwrite else read_submission(output_dir)
            job = tasks.attach_job(job_id, account)
            if not overwrite:
                archive.refuse_foreign_files(output_dir, job.products, archive_format, job, unpack=extract)
            asked = left.request if left and same_request(left.request, job.parameters) is not False else None
            record = _put_on_record(output_dir, job, request=asked, owner=left.owner if left else None)
            remove_submission(output_dir)
        with runs.cancelled_with_run(record.job, account, cancel_job, and_more=True):
            return _follow(
                record,
                account,
                output_dir,
                seen=None,
                started_at=started_at,
                archive_format=archive_format,
                extract=extract,
                overwrite=overwrite,
                accept_partial=accept_partial,
                cancel_job=cancel_job,
                pacing=pacing,
                deadline_s=deadline_s,
                max_failed_looks=max_failed_looks,
                notifier=notifier,
                waiting=waiting,
            )


def _record_of(
    request: ProductRequest,
    output_dir: Path,
    archive_format: ArchiveFormat,
    *,
    extract: bool,
    overwrite: bool,
) -> JobRecord | None:
    """Return the record in the folder if it is of this request, so that its job is gone on with.

    Raises:
        OutputError: The folder belongs to another job, or holds files of unknown origin.
    """
    try:
        record = submission.job_on_record(output_dir)
    except OutputError:
        if not overwrite:
            raise
        record = None
    if record and (
        record.owner == runs.submission_owner(output_dir)
        or (record.answers(request) and not (overwrite and record.finished_at))
    ):
        get_run_logger().info(
            "Going on with %s, which this request has become; to build it again, overwrite or choose another folder.",
            record.job,
        )
        return record
    if overwrite:
        return None
    if record:
        raise _belongs_to(output_dir, record)
    if read_submission(output_dir) is None:
        archive.refuse_foreign_files(output_dir, request.products, archive_format, unpack=extract)
    return None


def _belongs_to(output_dir: Path, record: JobRecord) -> OutputError:
    return OutputError(
        f"{output_dir} belongs to {record.job}. Go on with that by `prefect-xrt attach {record.job.id} "
        f"--out {output_dir}`, choose another folder, or have it overwritten (--overwrite)."
    )


def _put_on_record(
    output_dir: Path,
    job: Job,
    *,
    request: dict[str, JsonValue] | None,
    owner: str | None = None,
    reused: bool = False,
) -> JobRecord:
    record = JobRecord(
        job=job,
        flow_run_id=flow_run.id,
        owner=owner or runs.submission_owner(output_dir),
        request=request,
        reused=reused,
    )
    write_record(output_dir, record)
    return record


def _submit(
    request: ProductRequest,
    account: XRTCredentials,
    output_dir: Path,
    pacing: Pacing | None,
    notifier: Notifier | None,
    waiting: Waiting,
) -> JobRecord:
    """Let the request become a job, once there is room for it."""
    if waiting == "suspended":
        deferral.await_turn(request, account, output_dir)
    try:
        job = tasks.submit_request(
            request,
            account,
            record_dir=output_dir,
            settle_s=2 * pacing.floor_s if pacing else submission.SETTLE_S,
        )
    except SubmitUncertainError as error:
        alerts.raise_uncertain(error, output_dir, notifier)
        raise
    runs.note_submitted(job)  # where Prefect has remembered the job, the task has not
    return _record_after_submit(output_dir, job, request)


def _record_after_submit(output_dir: Path, job: Job, request: ProductRequest) -> JobRecord:
    """Return the record that the submission wrote; where Prefect remembered the job, write it anew."""
    record = read_record(output_dir)
    if record and record.job.id == job.id:
        return record
    try:
        return _put_on_record(output_dir, job, request=encode(request))
    except OutputError as error:
        get_run_logger().error("The record of %s could not be written: %s", job, error)
        return JobRecord(job=job, request=encode(request))


def _follow(
    record: JobRecord,
    account: XRTCredentials,
    output_dir: Path,
    *,
    seen: Outcome | None,
    started_at: datetime,
    archive_format: ArchiveFormat,
    extract: bool,
    overwrite: bool,
    accept_partial: bool,
    cancel_job: CancelPolicy,
    pacing: Pacing | None,
    deadline_s: float,
    max_failed_looks: int,
    notifier: Notifier | None,
    waiting: Waiting,
) -> BuildReport:
    """Bring the products of a job into the folder, and end the run as what became of them says."""
    job = record.job
    board = Board(job)
    alarms_not_shown: list[ProductStatus] = []

    def alarm(status: ProductStatus) -> None:
        if not alerts.raise_alarm(job, status, datetime.now(UTC), notifier):
            alarms_not_shown.append(status)

    def fetch(product: Product) -> PrefectFuture[ProductFile]:
        return tasks.download_product.submit(
            job,
            product,
            output_dir,
            archive_format,
            account,
            overwrite=overwrite,
            extract=extract,
            pacing=pacing,
            max_failed_looks=max_failed_looks,
        )

    wait = partial(
        tasks.wait_for_products if waiting == "in-process" else deferral.wait_for_products,
        job,
        account,
        until="next",
        pacing=pacing,
        max_failed_looks=max_failed_looks,
        cancel_job=cancel_job,
    )
    if seen:
        board(seen)
    with runs.halting_threads(), tasks.showing(board):
        outcome, downloads, trouble = _wait_and_fetch(seen, wait, fetch, alarm, deadline_s, waiting)
        files, problems, stop = _collect(downloads)
    trouble = stop or trouble
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
        problem=str(trouble) if trouble else None,
    )
    runs.await_server()
    for status in alarms_not_shown:
        alerts.raise_alarm(job, status, datetime.now(UTC))
    page = _show(report, record.request, board)
    if isinstance(trouble, WaitError):
        alerts.raise_wait_ended(report, trouble, page, notifier)
    if not (trouble or problems):
        _note_finished(record, report)
    ending = _final_state(report, outcome, trouble, accept_partial=accept_partial)
    alerts.raise_finished(report, page)
    # Prefect makes a state that is returned the state of the run.
    return cast(BuildReport, ending)


def _wait_and_fetch(
    outcome: Outcome | None,
    wait: Callable[..., Outcome],
    fetch: Callable[[Product], PrefectFuture[ProductFile]],
    alarm: Callable[[ProductStatus], None],
    deadline_s: float,
    waiting: Waiting,
) -> tuple[Outcome | None, dict[Product, PrefectFuture[ProductFile]], Trouble | None]:
    """Wait until every product has ended, fetching each as soon as it is ready; tell what ended the wait early."""
    downloads: dict[Product, PrefectFuture[ProductFile]] = {}
    trouble: Trouble | None = None
    ended: tuple[Product, ...] = ()
    give_up_at = time.monotonic() + deadline_s
    while True:
        for status in outcome.statuses.values() if outcome else ():
            if status.product in ended:
                continue
            if status.state is ProductState.READY:
                downloads[status.product] = fetch(status.product)
            elif status.state is ProductState.ALARM and trouble is None:
                # One that a wait which ended early has seen only once is no alarm yet.
                alarm(status)
        if trouble or (outcome and outcome.complete):
            return outcome, downloads, trouble
        ended = outcome.ended if outcome else ()
        if waiting == "suspended":
            # The process may end in the wait, and what it fetches with it.
            for download in downloads.values():
                download.wait()
        try:
            outcome = wait(since=outcome, deadline_s=max(1e-3, give_up_at - time.monotonic()))
        except WaitError as error:
            outcome, trouble = error.outcome, error
        except runs.RunCancelled as stop:
            trouble = stop


def _note_finished(record: JobRecord, report: BuildReport) -> None:
    try:
        write_record(report.output_dir, record.model_copy(update={"finished_at": report.finished_at}))
    except OutputError as error:
        get_run_logger().error("It could not be noted that %s is finished: %s", record.job, error)


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


def _collect(
    downloads: dict[Product, PrefectFuture[ProductFile]],
) -> tuple[dict[Product, ProductFile], dict[Product, str], runs.RunCancelled | None]:
    """Wait for the files, and keep what went wrong with one from hiding the others; tell of a cancellation."""
    files, problems, stopped = {}, {}, None
    for product, future in downloads.items():
        try:
            files[product] = future.result()
        except runs.RunCancelled as stop:
            stopped = stop
            problems[product] = str(stop)
        except Exception as error:
            problems[product] = (
                error.message if isinstance(error, XRTError) else f"{type(error).__name__}: {error}"
            )
    return files, problems, stopped


def _show(report: BuildReport, asked: dict[str, JsonValue] | None, board: Board) -> UUID | None:
    """Write the report beside the files, and show it in the UI; return the artifact of its page."""
    try:
        reports.write_report(report)
    except OutputError as error:
        get_run_logger().error("The report could not be written: %s", error)
    page = None
    with runs.not_vital("The report's artifact could not be shown"), runs.api(retries=5) as client:
        page = reports.publish_report(client, report, asked, board.times)
    return page  # noqa: RET504 - None where that did not work


def _final_state(
    report: BuildReport, outcome: Outcome | None, trouble: Trouble | None, *, accept_partial: bool
) -> State[Any]:
    summary = report.summary()
    if report.succeeded or (accept_partial and report.files and not trouble):
        return Completed(message=summary, data=report)
    if isinstance(trouble, WaitError):
        summary = f"{summary} Running the same again, into the same folder, goes on with it, too."
        trouble.report = report
        error: XRTError = trouble
    else:
        summary = f"{summary} {report.next_step()}".rstrip()
        error = ProductsError(summary, outcome=outcome, report=report)
    if report.cancelled or isinstance(trouble, runs.RunCancelled):
        return Cancelled(message=summary, data=error)
    if runs.will_be_retried():
        # Prefect retries a flow that raises; one that returns a failed state would wait for ever.
        raise error
    return Failed(name="Partly" if report.files else None, message=summary, data=error)
