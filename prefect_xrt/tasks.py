"""The service's acts as Prefect tasks, a few lines each over functions that work without Prefect.

Whatever reads a remote status is never cached: a cached sensor is frozen. The submit task's result
is persisted under its inputs and the flow run's ID, so that a flow run that is retried goes on with
the same job; two submit tasks with equal inputs in one flow run are one job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Literal

from prefect import get_run_logger, task
from prefect.cache_policies import INPUTS, NO_CACHE, RUN_ID
from prefect.runtime import flow_run, task_run

from prefect_xrt import archive, progress, runs, sensor, submission
from prefect_xrt import rebin as rebinning
from prefect_xrt.account import Account
from prefect_xrt.archive import ProductFile
from prefect_xrt.client import Which
from prefect_xrt.credentials import XRTCredentials, load_credentials
from prefect_xrt.errors import ProductsError
from prefect_xrt.pacing import Pacing
from prefect_xrt.protocol import ArchiveFormat, CancelResult, Job, Outcome, RebinJob
from prefect_xrt.request import LightCurve as Binning
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.results import LightCurve, Position, SourceList, SpectralFits
from prefect_xrt.runs import CancelPolicy
from prefect_xrt.sensor import Ending
from prefect_xrt.state import LocalLooks

__all__ = [
    "attach_job",
    "cancel_products",
    "check_product_status",
    "download_product",
    "find_job",
    "finish_rebin",
    "rebin_light_curve",
    "retrieve_light_curve",
    "retrieve_position",
    "retrieve_source_list",
    "retrieve_spectral_fits",
    "submit_rebin",
    "submit_request",
    "wait_for_products",
    "watch_jobs",
]

Credentials = XRTCredentials | str | None
"""An account, the name of an `XRTCredentials` block, or None for the one in the environment."""

on_look: ContextVar[Callable[[Outcome], None] | None] = ContextVar("on_look", default=None)
"""Called by the sensor with what each look told, for a display in the same process.

Where nothing is set, a wait shows the job's progress in the Prefect UI.
"""


@contextmanager
def showing(board: Callable[[Outcome], None]) -> Iterator[None]:
    """Let the waits in a block show their looks on a board, too."""
    display = on_look.get()

    def show(outcome: Outcome) -> None:
        board(outcome)
        if display:
            display(outcome)

    token = on_look.set(show)
    try:
        yield
    finally:
        on_look.reset(token)


def _name(act: str) -> Any:
    """Return what names a task run after the object and the job that it is about, in the way that Prefect calls it.

    Args:
        act: What it does, with the task's parameters in braces; `{of}` is the job.
    """

    def name(parameters: dict[str, Any]) -> str:
        job = parameters["job"]
        of = f"{job.name}, job {job.id}" if job.name else f"job {job.id}"
        return act.format(of=of, **parameters)

    return name


@task(
    name="submit",
    task_run_name="submit: {request.name}",
    cache_policy=(INPUTS - "credentials" - "record_dir" - "settle_s") + RUN_ID,
    persist_result=True,
    result_serializer="json",
)
def submit_request(
    request: ProductRequest,
    credentials: Credentials = None,
    *,
    record_dir: Path | None = None,
    settle_s: float = submission.SETTLE_S,
) -> Job:
    """Submit a request, once per flow run, whatever happens to the answer or to the process.

    It waits until the account has room for one more active job, and whoever asked earlier has had its turn.

    Args:
        request: What to build.
        credentials: The account; the one in the environment by default.
        record_dir: Where the job's record (`job.json`, `jobPars.json`) goes at once. Without it, a job whose answer
            was lost is found again by a retry of this task, of its flow, or of the flow that has called that.
        settle_s: How long the service's list may take to show a job, in seconds, where it is to decide
            whether a request became one.

    Returns:
        The job.

    Raises:
        RequestRefusedError: The service did not accept the parameters.
        SubmitUncertainError: It cannot be told which job, if any, the request has become.
        ServiceUnreachableError: Nothing was sent.
        OutputError: The record cannot be written; nothing was sent.
    """
    logger = get_run_logger()
    account = load_credentials(credentials)
    asked_between = None
    with runs.not_vital("It could not be asked whether this run was tried before"):
        asked_between = runs.attempts_before()
    sleep = runs.pausing()
    with (
        account.get_client() as client,
        Account(account, client).asking(request, record_dir, sleep, logger.info) as turn,
    ):
        job = submission.submit_once(
            client,
            request,
            owner=runs.submission_owner(record_dir),
            claims=runs.RunClaims(account.base_url),
            directory=record_dir,
            flow_run_id=flow_run.id,
            asked_between=asked_between,
            settle_s=settle_s,
            turn=turn,
            on_job=runs.submitted,
            log=logger.info,
            sleep=sleep,
        )
    runs.note_submitted(job)
    logger.info("The service accepted %s: %s.", job, ", ".join(product.value for product in job.products))
    return job


@task(name="find job", task_run_name="find: {request.name}", cache_policy=NO_CACHE)
def find_job(
    request: ProductRequest, credentials: Credentials = None, *, failed_too: bool = False
) -> tuple[Job, Outcome] | None:
    """Find a job of this account that answers a request already, so that it need not be built again.

    Args:
        request: What is asked for.
        credentials: The account; the one in the environment by default.
        failed_too: Take a job of which a product failed or was cancelled, too.

    Returns:
        The newest job with these parameters and a look at it, if it still builds or its files are on the
        server; else None.

    Raises:
        FailedLooksError: The job is there, but several looks at it told nothing.
        ServiceUnreachableError: The service did not answer.
    """
    account = load_credentials(credentials)
    with account.get_client() as client:
        return submission.find_job(
            client,
            request,
            failed_too=failed_too,
            looks=LocalLooks(account.base_url),
            log=get_run_logger().info,
            sleep=runs.pausing(),
        )


@task(name="attach", task_run_name="attach: job {job_id}", cache_policy=NO_CACHE)
def attach_job(job_id: int, credentials: Credentials = None) -> Job:
    """Return the job that belongs to an ID, whoever submitted it for this account, on whatever machine.

    Raises:
        JobNotFoundError: The job does not exist, or is someone else's.
    """
    with load_credentials(credentials).get_client() as client:
        return client.attach(job_id)


@task(name="check product status", task_run_name=_name("look: {of}"), cache_policy=NO_CACHE)
def check_product_status(
    job: Job, products: Iterable[Product | str] | None = None, credentials: Credentials = None
) -> Outcome:
    """Look at products of a job, all in one call; to wait, use `wait_for_products`.

    It waits where the job was looked at just now, since the service asks for a look a minute at the most, and a
    job that was seen to end is not asked about again. -2 and -3 may pass: the sensor takes them for an end when two
    looks in a row have told them.

    Args:
        job: The job.
        products: Long names; None for all products of the job.
        credentials: The account; the one in the environment by default.

    Returns:
        Per product its status; `complete` tells whether everything has ended, whatever the outcome.

    Raises:
        JobNotFoundError: The job does not exist, or is someone else's.
        ServiceUnreachableError: The service did not answer.
    """
    account = load_credentials(credentials)
    with account.get_client() as client:
        return sensor.look_once(
            client,
            job,
            products,
            looks=LocalLooks(account.base_url),
            log=get_run_logger().info,
            sleep=runs.pausing(),
        )


@task(name="wait for products", task_run_name=_name("wait: {of}"), cache_policy=NO_CACHE)
def wait_for_products(
    job: Job,
    credentials: Credentials = None,
    *,
    since: Outcome | None = None,
    until: Literal["all", "next"] = "all",
    pacing: Pacing | None = None,
    deadline_s: float = sensor.DEADLINE_S,
    max_failed_looks: int = sensor.MAX_FAILED_LOOKS,
    cancel_job: CancelPolicy = "when-cancelled",
) -> Outcome:
    """Wait until the products of a job have ended: the sensor.

    Args:
        job: The job.
        credentials: The account; the one in the environment by default.
        since: What an earlier wait for the same job returned.
        until: "all", or "next" to return as soon as a product has ended that had not in `since`.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait altogether, in seconds.
        max_failed_looks: How many looks in a row may fail.
        cancel_job: Whether what still builds is cancelled with the flow run: "never", "when-cancelled",
            or "when-stopped", which is also when it crashes. A flow that calls this needs the hook
            `cancel_jobs` for where its process can do nothing any more.

    Returns:
        The last status of every product, however it ended.

    Raises:
        DeadlineError: The deadline has passed; the job lives on.
        FailedLooksError: Too many looks in a row told nothing; the job lives on.
    """
    account = load_credentials(credentials)
    with account.get_client() as client, runs.cancelled_with_run(job, account, cancel_job):
        return sensor.wait_for_products(
            client,
            job,
            since=since,
            until=until,
            pacing=pacing,
            deadline_s=deadline_s,
            max_failed_looks=max_failed_looks,
            log=get_run_logger().info,
            on_look=on_look.get() or progress.Board(job),
            looks=LocalLooks(account.base_url),
            sleep=runs.pausing(),
        )


def _name_of_watch() -> str:
    return f"watch: {len(task_run.parameters['jobs'])} jobs"


@task(name="watch jobs", task_run_name=_name_of_watch, cache_policy=NO_CACHE)
def watch_jobs(
    jobs: Sequence[Job],
    credentials: Credentials = None,
    *,
    pacing: Pacing | None = None,
    deadline_s: float = sensor.DEADLINE_S,
    max_failed_looks: int = sensor.MAX_FAILED_LOOKS,
    cancel_job: CancelPolicy = "when-cancelled",
) -> Iterator[Ending]:
    """Wait for many jobs in one loop, and hand out each as soon as all its products have ended.

    One task run, however many jobs: `for ending in watch_jobs(jobs): ...` in a flow.

    Args:
        jobs: The jobs, each once.
        credentials: The account; the one in the environment by default.
        pacing: When to look; never more often than once a minute at each job, except on this machine.
        deadline_s: How long to wait for each, in seconds.
        max_failed_looks: How many looks in a row at a job may fail.
        cancel_job: As of `wait_for_products`, for those that have not ended.

    Yields:
        A job, its outcome, and what went wrong with it, if anything did, which stops none of the others.
    """
    account = load_credentials(credentials)
    left = {job.url: job for job in jobs}
    with (
        account.get_client() as client,
        runs.cancelled_with_run(left.values(), account, cancel_job),
    ):
        for ending in sensor.watch_jobs(
            client,
            jobs,
            pacing=pacing,
            deadline_s=deadline_s,
            max_failed_looks=max_failed_looks,
            log=get_run_logger().info,
            looks=LocalLooks(account.base_url),
            sleep=runs.pausing(),
        ):
            del left[ending.job.url]
            if ending.outcome and ending.outcome.complete:
                runs.note_ended(ending.job.id)
            yield ending


@task(name="download", task_run_name=_name("download: {product} of {of}"), cache_policy=NO_CACHE)
def download_product(
    job: Job,
    product: Product,
    directory: Path,
    archive_format: ArchiveFormat = "tar.gz",
    credentials: Credentials = None,
    *,
    overwrite: bool = False,
    extract: bool = False,
    pacing: Pacing | None = None,
    max_failed_looks: int = sensor.MAX_FAILED_LOOKS,
) -> ProductFile:
    """Fetch the files of one product, whole and verified, or not at all.

    Args:
        job: The job.
        product: A product of it that is ready.
        directory: Where the bundle goes.
        archive_format: "tar.gz", "tar" or "zip".
        credentials: The account; the one in the environment by default.
        overwrite: Replace a file that is there already.
        extract: Also unpack it, into a folder beside it.
        pacing: Its shortest interval is the longest pause between two attempts.
        max_failed_looks: How many attempts in a row may bring nothing.

    Raises:
        ProductMissingError: The service has no such file.
        ArchiveError: What arrived is damaged, several times in a row, or unsafe.
        OutputError: The folder cannot be written, or a file of another origin is in the way.
    """
    with load_credentials(credentials).get_client() as client:
        file = archive.download(
            client,
            job,
            product,
            directory,
            archive_format,
            overwrite=overwrite,
            unpack=extract,
            max_failed_attempts=max_failed_looks,
            ceiling_s=(pacing or Pacing()).floor_s,
            sleep=runs.pausing(),
        )
    get_run_logger().info(
        "%s %s (%d bytes, SHA-256 %s).", "Kept" if file.kept else "Wrote", file.path, file.size, file.sha256
    )
    return file


@task(name="cancel", task_run_name=_name("cancel: {of}"), cache_policy=NO_CACHE)
def cancel_products(
    job: Job, products: Iterable[Product | str] | None = None, credentials: Credentials = None
) -> CancelResult:
    """Cancel products of a job; that one has already finished is no error.

    Args:
        job: The job.
        products: Long names; None for all products of the job.
        credentials: The account; the one in the environment by default.
    """
    with load_credentials(credentials).get_client() as client:
        result = client.cancel(job, products)
    for entry in result.products.values():
        get_run_logger().info("%s: %s", entry.product.value, entry.text)
    return result


@task(name="retrieve position", task_run_name=_name("retrieve: {product} of {of}"), cache_policy=NO_CACHE)
def retrieve_position(
    job: Job, product: Product = Product.STANDARD_POS, credentials: Credentials = None
) -> Position:
    """Retrieve a position, or that there is none and why; see `XRTClient.retrieve_position`.

    Args:
        job: A job with that product.
        product: StandardPos, EnhancedPos or AstromPos.
        credentials: The account; the one in the environment by default.
    """
    with load_credentials(credentials).get_client() as client:
        return client.retrieve_position(job, product)


@task(
    name="retrieve light curve", task_run_name=_name("retrieve: light curve of {of}"), cache_policy=NO_CACHE
)
def retrieve_light_curve(
    job: Job, credentials: Credentials = None, *, systematics: Which = "with", unreliable: Which = "without"
) -> LightCurve:
    """Retrieve all datasets of a light curve; see `XRTClient.retrieve_light_curve`.

    Args:
        job: A job whose light curve is ready.
        credentials: The account; the one in the environment by default.
        systematics: Whether the systematic error of WT mode is in the errors.
        unreliable: Whether bins that may be unreliable are in.
    """
    with load_credentials(credentials).get_client() as client:
        return client.retrieve_light_curve(job, systematics=systematics, unreliable=unreliable)


@task(
    name="retrieve spectral fits",
    task_run_name=_name("retrieve: spectral fits of {of}"),
    cache_policy=NO_CACHE,
)
def retrieve_spectral_fits(job: Job, credentials: Credentials = None) -> SpectralFits:
    """Retrieve the fits to a job's spectra; see `XRTClient.retrieve_spectral_fits`.

    Args:
        job: A job whose spectrum is ready.
        credentials: The account; the one in the environment by default.
    """
    with load_credentials(credentials).get_client() as client:
        return client.retrieve_spectral_fits(job)


@task(
    name="retrieve source list", task_run_name=_name("retrieve: source list of {of}"), cache_policy=NO_CACHE
)
def retrieve_source_list(job: Job, credentials: Credentials = None) -> SourceList:
    """Retrieve the sources that were detected; see `XRTClient.retrieve_source_list`.

    Args:
        job: A job whose source detection is ready.
        credentials: The account; the one in the environment by default.
    """
    with load_credentials(credentials).get_client() as client:
        return client.retrieve_source_list(job)


def rebin_light_curve(
    job: Job,
    binning: Binning,
    credentials: Credentials = None,
    *,
    systematics: Which = "with",
    unreliable: Which = "without",
    pacing: Pacing | None = None,
    deadline_s: float = rebinning.DEADLINE_S,
) -> LightCurve:
    """Bin a finished job's light curve again, wait for it, and retrieve it: the two tasks that follow.

    A binning that an earlier attempt of the flow run has asked for is gone on with, and asked for anew if it has
    failed or was cancelled.

    Args:
        job: A job whose light curve is ready.
        binning: How to bin.
        credentials: The account; the one in the environment by default.
        systematics: Whether the systematic error of WT mode is in the errors.
        unreliable: Whether bins that may be unreliable are in.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait, in seconds.
    """
    finish = partial(
        finish_rebin,
        credentials=credentials,
        systematics=systematics,
        unreliable=unreliable,
        pacing=pacing,
        deadline_s=deadline_s,
    )
    submitted = submit_rebin(job, binning, credentials, return_state=True)
    try:
        return finish(submitted.result())
    except ProductsError:
        if submitted.name != "Cached":
            raise
    return finish(submit_rebin.with_options(refresh_cache=True)(job, binning, credentials))


@task(
    name="submit rebin",
    task_run_name=_name("submit: binning of {of}"),
    cache_policy=(INPUTS - "credentials") + RUN_ID,
    persist_result=True,
    result_serializer="json",
)
def submit_rebin(job: Job, binning: Binning, credentials: Credentials = None) -> RebinJob:
    """Ask for a new binning of a finished job's light curve, once per flow run.

    Args:
        job: A job whose light curve is ready.
        binning: How to bin.
        credentials: The account; the one in the environment by default.

    Raises:
        RefusedError: The service does not do it.
        SubmitUncertainError: It was asked for and no clear answer came.
    """
    with load_credentials(credentials).get_client() as client:
        return client.submit_rebin(job, binning)


@task(name="finish rebin", task_run_name="wait: {rebin}", cache_policy=NO_CACHE)
def finish_rebin(
    rebin: RebinJob,
    credentials: Credentials = None,
    *,
    systematics: Which = "with",
    unreliable: Which = "without",
    pacing: Pacing | None = None,
    deadline_s: float = rebinning.DEADLINE_S,
) -> LightCurve:
    """Wait for a new binning that was asked for, and retrieve it; see `rebin.finish_rebin`.

    Args:
        rebin: What was asked for.
        credentials: The account; the one in the environment by default.
        systematics: Whether the systematic error of WT mode is in the errors.
        unreliable: Whether bins that may be unreliable are in.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait, in seconds.
    """
    with load_credentials(credentials).get_client() as client:
        return rebinning.finish_rebin(
            client,
            rebin,
            systematics=systematics,
            unreliable=unreliable,
            # A run that is started again goes on with it.
            cancelled_by=runs.is_cancellation,
            pacing=pacing,
            deadline_s=deadline_s,
            log=get_run_logger().info,
            sleep=runs.pausing(),
        )
