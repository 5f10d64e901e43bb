"""A request becomes one job, once, whatever happens on the way.

Before a request is sent, a word of it is written beside the output; it goes once the job is on record.
Where the answer was lost, or the process died between the two, the service's own list of jobs decides:
by name, products and time, confirmed parameter by parameter. Nothing is ever repeated blindly.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from prefect_xrt.archive import make_directory
from prefect_xrt.client import XRTClient
from prefect_xrt.errors import (
    OutputError,
    RefusedError,
    ServiceUnreachableError,
    SubmitUncertainError,
    XRTError,
    obeyed_wait_s,
)
from prefect_xrt.parameters import encode, same_request
from prefect_xrt.protocol import Job, JobSummary, Outcome
from prefect_xrt.records import (
    SUBMISSION_NAME,
    JobRecord,
    Submission,
    read_record,
    read_submission,
    remove_submission,
    write_record,
    write_submission,
)
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.sensor import Looks, wait_for_products

__all__ = ["Claims", "find_job", "job_on_record", "submit_once"]

SETTLE_S = 120.0
"""For how long the service's list may not show a job yet, and another run not have claimed its own."""

_SUBMISSIONS = 3
_SLACK = timedelta(seconds=30)
_LATE = timedelta(minutes=15)
_CANDIDATES = 10
_LOOKS = 4
_logger = logging.getLogger(__name__)


class Claims(Protocol):
    """Which submission a job belongs to, so that no run takes another's."""

    def is_free(self, summary: JobSummary, owner: str) -> bool:
        """Whether a job belongs to nobody else."""

    def take(self, job: Job, owner: str) -> bool:
        """Make a job the owner's; False where it has become another's meanwhile."""


def job_on_record(directory: Path) -> JobRecord | None:
    """Return the record in a folder; None if there is none, or if a later request is still open.

    Raises:
        OutputError: A record cannot be read.
    """
    record, left = read_record(directory), read_submission(directory)
    if record and left and record.owner == left.owner:
        # The process died between the record and the end of the submission.
        remove_submission(directory)
        return record
    return None if left else record


def submit_once(
    client: XRTClient,
    request: ProductRequest,
    *,
    owner: str,
    claims: Claims,
    directory: Path | None = None,
    flow_run_id: str | None = None,
    asked_between: tuple[datetime, datetime] | None = None,
    settle_s: float = SETTLE_S,
    turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    on_job: Callable[[Job], object] = lambda _: None,
    log: Callable[[str], None] = _logger.info,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Job:
    """Submit a request so that it becomes one job, and put the job on record.

    Where it is not known whether an earlier attempt has become a job, be it of this call or of a process
    that died, the service's list is looked at once it had time to show it. Exactly one job that answers
    the request and belongs to nobody else is adopted; if there is none, the request is sent again.

    Args:
        client: Speaks to the service.
        request: What to build.
        owner: What tells this submission from others of the same request, the same at every attempt.
        claims: Which job belongs to whom.
        directory: Where the records go; without it, only this call knows of its own attempts.
        flow_run_id: The Prefect flow run, for the record.
        asked_between: When an attempt that left no record may have been made, UTC.
        settle_s: How long the list may take to show a job, in seconds; at least two minutes, except on
            this machine.
        turn: Entered around each attempt that sends something, before word of it is written; it may wait.
        on_job: Called with the job as soon as it is known.
        log: Takes a line for what happens.
        sleep: Waits, in seconds.
        now: Gives the time, UTC.

    Returns:
        The job.

    Raises:
        RequestRefusedError: The service did not accept the parameters.
        ServiceUnreachableError: Nothing was sent, after several attempts.
        SubmitUncertainError: It cannot be told which job, if any, the request has become.
        OutputError: The records cannot be read or written; nothing was sent.
    """
    settle_s = settle_s if client.is_local else max(settle_s, SETTLE_S)
    asked = encode(request)
    if directory:
        make_directory(directory)
    open_ = _open_submission(directory, asked, owner, asked_between)
    owner = open_.owner if open_ else owner
    uncertain: SubmitUncertainError | None = None
    for attempt in range(_SUBMISSIONS + 1):
        wait_s = max(settle_s, obeyed_wait_s(uncertain and uncertain.__cause__))
        job = _settle(client, request, open_, claims, directory, wait_s, log, sleep, now) if open_ else None
        if job:
            on_job(job)
        if job is None and attempt < _SUBMISSIONS:
            first = open_.asked_at if open_ else None
            try:
                with turn():
                    asked_at = now()
                    open_ = Submission(
                        request=asked, owner=owner, asked_at=first or asked_at, last_asked_at=asked_at
                    )
                    if directory:
                        write_submission(directory, open_)
                    job = client.submit(request)
                    on_job(job)
            except SubmitUncertainError as error:
                log(f"{error.message} Looking for it in the list of jobs.")
                uncertain = error
                # It may have been on its way until now.
                open_ = open_ and open_.model_copy(update={"last_asked_at": now()})
                continue
            except (RefusedError, ServiceUnreachableError):
                if directory:
                    remove_submission(directory)
                raise
            claims.take(job, owner)
        if job:
            _put_on_record(
                directory, JobRecord(job=job, flow_run_id=flow_run_id, owner=owner, request=asked), log
            )
            return job
    raise SubmitUncertainError(
        f"The request for {request.name!r} was sent {_SUBMISSIONS} times, and never answered; the list of jobs "
        "shows nothing of it. Ask again later: it is looked for first.",
        name=request.name,
    ) from uncertain


def _open_submission(
    directory: Path | None,
    asked: Mapping[str, JsonValue],
    owner: str,
    asked_between: tuple[datetime, datetime] | None,
) -> Submission | None:
    """Return what an earlier attempt has left open."""
    left = read_submission(directory) if directory else None
    if left and left.request != asked:
        raise OutputError(
            f"{directory} belongs to another request, for {left.request.get('name')!r}, of which it is not known "
            f"whether it became a job. Ask for that again, or look for it with `prefect-xrt jobs` and remove "
            f"{SUBMISSION_NAME}, or choose another folder."
        )
    if left is None and asked_between:
        first, last = asked_between
        return Submission(request=dict(asked), owner=owner, asked_at=first, last_asked_at=last)
    return left


def _put_on_record(directory: Path | None, record: JobRecord, log: Callable[[str], None]) -> None:
    if directory is None:
        return
    try:
        write_record(directory, record)
        remove_submission(directory)
    except OutputError as error:
        # The job exists; failing here would lose it, or make it twice.
        log(f"The record of {record.job} could not be written: {error.message}")


def _settle(
    client: XRTClient,
    request: ProductRequest,
    left: Submission,
    claims: Claims,
    directory: Path | None,
    settle_s: float,
    log: Callable[[str], None],
    sleep: Callable[[float], None],
    now: Callable[[], datetime],
) -> Job | None:
    """Find out what became of a request: the job that it is, or None where it is none.

    Raises:
        SubmitUncertainError: It cannot be told.
    """
    wait_s = min(settle_s, (left.last_asked_at - now()).total_seconds() + settle_s)
    if wait_s > 0:
        log(f"Waiting {wait_s:.0f} s for the list of jobs to show whether {request.name!r} has become one.")
        sleep(wait_s)
    where = f" --out {directory}" if directory else " --out DIR"
    try:
        listed = client.list_jobs()
        skew = timedelta(seconds=client.clock_skew_s)
        known: list[Job] = []
        doubtful: list[JobSummary] = []
        for summary in (_by_our_clock(listed_job, skew) for listed_job in listed):
            if not (
                _may_answer(summary, request)
                and _is_of_the_time(summary, left)
                and claims.is_free(summary, left.owner)
            ):
                continue
            job = client.attach(summary.id)
            verdict = same_request(left.request, job.parameters)
            if verdict:
                known.append(job.model_copy(update={"submitted_at": summary.submitted_at}))
            elif verdict is None:
                doubtful.append(summary)
    except XRTError as error:
        raise SubmitUncertainError(
            f"The request for {request.name!r} was sent, and it cannot be told whether it became a job: the list "
            f"of jobs cannot be read ({error.message}) Ask again later: it is looked for first. If you find it "
            f"with `prefect-xrt jobs`, go on with it by `prefect-xrt attach JOB_ID{where}`.",
            name=request.name,
        ) from error
    if not doubtful and len(known) == 1:
        (job,) = known
        if claims.take(job, left.owner):
            log(f"The request for {request.name!r} has become {job}; going on with it.")
            return job
        known = []
    if not doubtful and not known:
        return None
    candidates = sorted([job.id for job in known] + [summary.id for summary in doubtful])
    told = {job.id: job.submitted_at for job in known} | {s.id: s.submitted_at for s in doubtful}
    lines = ", ".join(f"{job_id} (submitted {told[job_id]})" for job_id in candidates)
    removed = f", or remove {directory / SUBMISSION_NAME} and ask again" if directory else ", or ask again"
    raise SubmitUncertainError(
        f"The request for {request.name!r} was sent and no clear answer came; it cannot be told which of these jobs "
        f"it became: {lines}. Look at one with `prefect-xrt status JOB_ID`, and go on with it by "
        f"`prefect-xrt attach JOB_ID{where}`; if none is yours, wait until it is{removed}.",
        name=request.name,
        candidates=candidates,
    )


def _may_answer(summary: JobSummary, request: ProductRequest) -> bool:
    """Tell by the list whether a job can be the one; it does not tell of source detection."""
    asked = set(request.products) - {Product.SOURCE_DET}
    brought_in = {Product.STANDARD_POS} if Product.ASTROM_POS in asked else set()
    listed = set(summary.products)
    same_name = " ".join(summary.name.split()) == " ".join(request.name.split())
    return same_name and asked <= listed <= asked | brought_in


def _by_our_clock(summary: JobSummary, skew: timedelta) -> JobSummary:
    """Return a line of the list with its time as our clock would have told it."""
    if summary.submitted_at is None:
        return summary
    return summary.model_copy(update={"submitted_at": summary.submitted_at - skew})


def _is_of_the_time(summary: JobSummary, left: Submission) -> bool:
    if summary.submitted_at is None:
        return True
    return left.asked_at - _SLACK <= summary.submitted_at <= left.last_asked_at + _LATE


def find_job(
    client: XRTClient,
    request: ProductRequest,
    *,
    looks: Looks,
    failed_too: bool = False,
    log: Callable[[str], None] = _logger.info,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[Job, Outcome] | None:
    """Find a job of this account that answers a request already: the newest, if it is of use.

    Args:
        client: Speaks to the service.
        request: What is asked for.
        looks: What is known of the looks of other processes at the account's jobs.
        failed_too: Take a job of which a product failed or was cancelled, too.
        log: Takes a line for what happens.
        sleep: Waits, in seconds.

    Returns:
        The job and a look at it: it still builds, or all its products are ready and their files are still on
        the server; or None, where the request has to be built.

    Raises:
        FailedLooksError: The job is there, but several looks at it told nothing.
        ServiceUnreachableError: The service did not answer.
        AnswerError: What came back is not the service speaking.
    """
    asked = encode(request)
    for summary in [job for job in client.list_jobs() if _may_answer(job, request)][:_CANDIDATES]:
        job = client.attach(summary.id).model_copy(update={"submitted_at": summary.submitted_at})
        if not same_request(asked, job.parameters):
            continue
        outcome = looks.ended(job) or wait_for_products(
            client, job, until="look", max_failed_looks=_LOOKS, looks=looks, log=log, sleep=sleep
        )
        expired = bool(outcome.ready) and outcome.complete and not summary.has_products
        if expired or (outcome.complete and not outcome.succeeded and not failed_too):
            return None
        return job, outcome
    return None
