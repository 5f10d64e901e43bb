"""The Prefect run around a job: whose job it is, and what becomes of the job when the run is stopped.

A job outlives the process that asked for it. A run that is cancelled cancels what its job still builds;
a run that crashed leaves it alone, to be gone on with. Which jobs a run follows is written on the
outermost flow run, as labels `prefect-xrt.job.<JobID>`, where hooks and automations find it.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Literal
from uuid import UUID, uuid4

import certifi
import httpx
from prefect import Flow, State, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, SettingsContext, TaskRunContext, get_settings_context
from prefect.exceptions import Pause
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as runtime
from prefect.settings import get_current_settings
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from prefect_xrt.credentials import XRTCredentials, load_credentials
from prefect_xrt.errors import ConfigurationError, XRTError, is_transient
from prefect_xrt.protocol import Job, JobSummary
from prefect_xrt.reports import artifact_key, of_this_run
from prefect_xrt.state import LocalClaims

__all__ = [
    "CancelPolicy",
    "Halt",
    "RunCancelled",
    "RunClaims",
    "api",
    "attempts_before",
    "await_server",
    "cancel_jobs",
    "cancel_jobs_of",
    "cancelled_with_run",
    "follow",
    "halting_threads",
    "has_jobs_to_cancel",
    "has_reused",
    "heard_of",
    "hurried",
    "is_cancellation",
    "label",
    "labels_in_common",
    "not_vital",
    "note_ended",
    "note_reused",
    "note_submitted",
    "pausing",
    "read_labels",
    "run_of_its_own",
    "server_url",
    "started_at",
    "submission_owner",
    "submitted",
    "while_busy",
    "will_be_retried",
]

CancelPolicy = Literal["never", "when-cancelled", "when-stopped"]
"""When a run's end cancels what its job still builds: never, when the run is cancelled, or also on a crash."""

ROOM_KEY = "xrt-room-"
"""With this begins the key of a state in which a flow run waits until it may submit."""

_LABEL = "prefect-xrt.job."
_CANCELLED = "cancelled"
_ENDED = "ended"
_REUSED = ".reused"
_ON_CRASH: frozenset[CancelPolicy] = frozenset({"when-stopped"})
_ON_CANCELLATION: frozenset[CancelPolicy] = _ON_CRASH | {"when-cancelled"}
_OWNER = "prefect-xrt-owner"
_SERVICE = "prefect-xrt-service"
_OLDER = timedelta(minutes=15)
# What of the grace time is left for the service; Prefect gives half a minute.
_SERVICE_TIMEOUT_S = 8.0
_PATIENCE_S = 3600.0
_BUSY_S, _BUSIER, _BUSIEST_S, _BUSY_AT_MOST_S = 0.1, 5, 2.0, 120.0
_OWN_STATE_S = 10.0
_OWN_STATE_WITH_RUNNER_S = 60.0


class RunCancelled(BaseException):
    """The flow run was cancelled, and its state on the server tells, or a thread that was told by a signal."""

    def __init__(self, message: str = "The flow run was cancelled.") -> None:
        super().__init__(message)


class Halt:
    """What ends the waits of the threads of a run: a signal reaches its main thread only."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._reason: BaseException | None = None

    def stop(self, reason: BaseException) -> None:
        """Let every wait end, now and later, by raising what is given; the first reason stays."""
        self._reason = self._reason or reason
        self._event.set()

    def sleep(self, seconds: float) -> None:
        """Sleep, or raise the reason as soon as there is one."""
        if self._event.wait(seconds) and self._reason:
            # Each thread raises its own, since an exception carries the traceback of who raised it.
            raise type(self._reason)(*self._reason.args)


_halt: ContextVar[Halt | None] = ContextVar("halt", default=None)


@contextmanager
def halting_threads() -> Iterator[Halt]:
    """Let what stops this thread stop the others of its run as well, so that each deals with its own job.

    They have to be started with a copy of the context inside. One of them that finds the run cancelled
    halts all, too, and what stops a thread that halts others itself halts those around it. An ordinary error here
    halts nobody, and neither does a suspension.
    """
    halt = _halt.get() or Halt()
    token = _halt.set(halt)
    try:
        yield halt
    except (Exception, Pause):
        raise
    except BaseException as stop:
        halt.stop(RunCancelled() if is_cancellation(stop) else stop)
        raise
    finally:
        _halt.reset(token)


def server_url() -> str:
    """Return the address of the Prefect server that is set, for what cannot do with one that Prefect starts itself.

    Raises:
        ConfigurationError: None is set.
    """
    url = get_current_settings().api.url
    if not url:
        raise ConfigurationError(
            "No Prefect server is set. Start one by `prefect server start`, and name it by "
            "`prefect config set PREFECT_API_URL=http://127.0.0.1:4200/api`."
        )
    return url


@contextmanager
def api(retries: int = 4, timeout_s: float | None = None) -> Iterator[SyncPrefectClient]:
    """Open a client that gives up soon: a server that is away would hold up more than a minute at every call.

    Args:
        retries: How often to try again; some there must be where it matters, since a busy server turns calls away.
        timeout_s: How long to wait for an answer, in seconds; as Prefect's settings say by default.
    """
    turned_away = count()

    def ask_again_soon(response: httpx.Response) -> None:
        # SQLite turns a change away where another came between, and Prefect would sleep two seconds and more.
        if response.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            pause_s = min(_BUSY_S * _BUSIER ** next(turned_away), _BUSIEST_S)
            response.headers.setdefault("Retry-After", str(pause_s))

    options: dict[str, Any] = {"event_hooks": {"response": [ask_again_soon]}}
    if timeout_s is not None:
        options["timeout"] = timeout_s
    context = get_settings_context()
    settings = context.settings
    if not settings.api.tls_insecure_skip_verify:
        options["verify"] = _certificates(settings.api.ssl_cert_file or certifi.where())
    # Prefect's `temporary_settings` reads them all anew, which takes longer than the call.
    patience = settings.client.model_copy(update={"max_retries": retries})
    hurried = settings.model_copy(update={"client": patience})
    with (
        SettingsContext(profile=context.profile, settings=hurried),
        get_client(httpx_settings=options, sync_client=True) as client,
    ):
        yield client


@lru_cache(maxsize=4)
def _certificates(file: str) -> ssl.SSLContext:
    """Read certificates once, as Prefect's client does each time that one is made."""
    return ssl.create_default_context(cafile=file)


@contextmanager
def not_vital(what: str) -> Iterator[None]:
    """Let a server that is away for a moment cost neither the job nor the products."""
    try:
        yield
    except Exception:
        get_run_logger().warning("%s.", what, exc_info=True)


@contextmanager
def heard_of() -> Iterator[None]:
    """Let what ends a run reach the server: one that is away for some minutes would never hear of the end."""
    try:
        yield
    except Exception:
        await_server()
        raise
    await_server()


def await_server(patience_s: float = _PATIENCE_S, sleep: Callable[[float], None] = time.sleep) -> None:
    """Wait until Prefect's server answers, so that what is told next reaches it.

    Args:
        patience_s: How long to wait at the most, in seconds.
        sleep: Waits, in seconds.
    """
    give_up_at = time.monotonic() + patience_s
    while get_current_settings().api.url and time.monotonic() < give_up_at:
        with api(retries=0) as client:
            if client.api_healthcheck() is None:
                return
        get_run_logger().warning("Prefect's server does not answer; waiting for it.")
        sleep(_OWN_STATE_S)


def submission_owner(directory: Path | None) -> str:
    """Return what stays the same at every attempt of the same submission, and differs from all others.

    A flow run that is retried keeps its ID; a flow that is called by one gets a new run each time, and
    what the runs have in common is the place of the call.
    """
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    return f"{(own.parent_task_run_id or own.id) if own else uuid4()}:{directory or ''}"


def attempts_before() -> tuple[datetime, datetime] | None:
    """Return between when an earlier attempt may have sent something, UTC; None if there was none.

    It may have been one of the task, of the flow around it, or of any flow that has called that.
    """
    context, task = FlowRunContext.get(), TaskRunContext.get()
    if context is None or context.flow_run is None:
        return None
    run = context.flow_run
    is_another = task is not None and task.task_run.run_count > 1
    if run.parent_task_run_id is not None:
        with api() as client:
            while run.parent_task_run_id is not None:
                is_another = is_another or run.run_count > 1
                caller = client.read_task_run(run.parent_task_run_id)
                assert caller.flow_run_id is not None  # noqa: S101 - a flow is called by a flow
                run = client.read_flow_run(caller.flow_run_id)
    is_another = is_another or (run.run_count > 1 and not _only_waited(run.id))
    return (run.start_time, datetime.now(UTC)) if is_another and run.start_time else None


def _only_waited(run_id: UUID) -> bool:
    """Whether all earlier processes of a run have ended with waiting for room, before they sent anything."""
    with api() as client:
        states = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
    after = [later for earlier, later in pairwise(states) if earlier.is_running()]
    return all((state.state_details.pause_key or "").startswith(ROOM_KEY) for state in after)


class RunClaims(LocalClaims):
    """The claims of all runs of this Prefect server, beside those of this machine: an artifact for each job.

    The artifact shows the job in the UI from its first moment on; the first one that was made for a job
    is its owner's.

    Args:
        base_url: The service that gave the jobs their IDs.
    """

    def __init__(self, base_url: str) -> None:
        super().__init__(base_url)
        self._base_url = base_url

    def is_free(self, summary: JobSummary, owner: str) -> bool:
        """Whether a job belongs to nobody else on this machine or this server."""
        if not super().is_free(summary, owner):
            return False
        holder = None
        with not_vital(f"It could not be looked up whose job {summary.id} is"):
            holder = self._first_owner(summary.id, summary.submitted_at)
        return holder in (None, owner)

    def take(self, job: Job, owner: str) -> bool:
        """Make a job the owner's; False where it has become another's meanwhile."""
        ours = super().take(job, owner)
        if ours:
            rows = [{"product": product.value, "state": "requested"} for product in job.products]
            claim = ArtifactCreate(
                key=artifact_key(job.id),
                type="table",
                data=json.dumps(rows),
                description=f"{job} was submitted; its files will be below {job.url}.",
                metadata_={_OWNER: owner, _SERVICE: self._base_url},
            )
            with not_vital(f"{job} could not be shown"):
                with api() as client:
                    client.create_artifact(of_this_run(claim))
                ours = self._first_owner(job.id, job.submitted_at) in (None, owner)
        return ours

    def _first_owner(self, job_id: int, submitted_at: datetime | None) -> str | None:
        with api() as client:
            shown = client.read_artifacts(
                artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(job_id)]))
            )
        # What is older than the job is of another of that number, as with services for tests.
        oldest = submitted_at - _OLDER if submitted_at else datetime.min.replace(tzinfo=UTC)
        claims = [
            (artifact.created, metadata[_OWNER])
            for artifact in shown
            if artifact.created
            and artifact.created >= oldest
            and _OWNER in (metadata := artifact.metadata_ or {})
            and metadata.get(_SERVICE) == self._base_url
        ]
        return min(claims)[1] if claims else None


def started_at() -> datetime:
    """Return when the first process of this flow run began, UTC; now, outside any."""
    context = FlowRunContext.get()
    first = context.flow_run.start_time if context and context.flow_run else None
    return first or datetime.now(UTC)


def will_be_retried() -> bool:
    """Whether Prefect runs this flow run again if it fails.

    It does so where an error is raised; Prefect 3.7 would leave a run that returns a failed state waiting for ever.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return False
    return context.flow_run.run_count <= (context.flow_run.empirical_policy.retries or 0)


def pausing(sleep: Callable[[float], None] = time.sleep) -> Callable[[float], None]:
    """Return a sleep that ends when the flow run around it is cancelled and nobody else would tell.

    A run that a worker or a served deployment has started is told by a signal; this is for one that
    was started by hand, and for one that has lost its worker.

    Raises (when slept with):
        RunCancelled: The run's state says so.
    """
    halt = _halt.get()
    if halt and sleep is time.sleep:
        sleep = halt.sleep
    if FlowRunContext.get() is None or not get_current_settings().api.url:
        return sleep
    every_s = _OWN_STATE_WITH_RUNNER_S if _has_runner() else _OWN_STATE_S
    left_s = every_s

    def pause(seconds: float) -> None:
        nonlocal left_s
        while seconds > left_s:
            sleep(left_s)
            seconds -= left_s
            left_s = every_s
            if _is_cancelled():
                stop = RunCancelled()
                if halt:
                    halt.stop(stop)
                raise stop
        sleep(seconds)
        left_s -= seconds

    return pause


def _has_runner() -> bool:
    return "PREFECT__FLOW_RUN_ID" in os.environ


def _is_cancelled() -> bool:
    """Ask the server for the state of the outermost flow run; one that does not answer says nothing."""
    try:
        with api() as client:
            state = client.read_flow_run(UUID(runtime.root_flow_run_id)).state
    except Exception:
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


class _Care:
    """The jobs that a run cancels when it is stopped, and how."""

    def __init__(
        self, jobs: Collection[Job], account: XRTCredentials, policy: CancelPolicy, around: _Care | None
    ) -> None:
        self._jobs = jobs
        self._more: list[Job] = []
        self._account = account
        self._policy = policy
        self._around = around
        self._noted: set[str] = set()
        self._tried: set[str] = set()

    def add(self, job: Job) -> None:
        """Take care of one job more."""
        if all(job.url != known.url for known in (*self._jobs, *self._more)):
            self._more.append(job)

    def note(self) -> None:
        """Note on the run which jobs it follows, unless that has been done around this."""
        new = [job for job in (*self._jobs, *self._more) if not self._is_noted(job, self._policy)]
        if new:
            with not_vital(f"It could not be noted that this run follows {', '.join(map(str, new))}"):
                follow(new, self._account, self._policy)
                self._noted |= {job.url for job in new}

    def _is_noted(self, job: Job, policy: CancelPolicy) -> bool:
        ours = job.url in self._noted and self._policy == policy
        return ours or (self._around is not None and self._around._is_noted(job, policy))

    def end(self, stop: BaseException) -> None:
        """Cancel the jobs, if what stops the run asks for that."""
        if self._policy == "never" or (self._policy == "when-cancelled" and not is_cancellation(stop)):
            return
        log = get_run_logger()
        for job in (*self._jobs, *self._more):
            if job.url in self._tried:
                continue
            # Once: a process that is being ended has no time for more.
            self._note_tried(job)
            if _cancel(job, self._account, log.info, log.error):
                with not_vital(f"It could not be noted that {job} is cancelled"):
                    label({f"{_LABEL}{job.id}": _CANCELLED})

    def _note_tried(self, job: Job) -> None:
        self._tried.add(job.url)
        if self._around:
            self._around._note_tried(job)


_care: ContextVar[_Care | None] = ContextVar("care", default=None)


@contextmanager
def cancelled_with_run(
    jobs: Job | Collection[Job], account: XRTCredentials, policy: CancelPolicy, *, and_more: bool = False
) -> Iterator[None]:
    """Cancel what jobs still build if the run that follows them is stopped meanwhile, as the policy says.

    Ctrl-C cancels a run that was started by hand. What else ends a process from outside is a
    cancellation only where the run's state says so.

    Args:
        jobs: A job, or those that are followed; who takes one out has it cancelled no more.
        account: Whose they are.
        policy: When they are cancelled.
        and_more: Whether those of which `submitted` tells meanwhile are followed, too.
    """
    if not runtime.id:
        yield  # outside any run there is none to be cancelled
        return
    care = _Care([jobs] if isinstance(jobs, Job) else jobs, account, policy, _care.get())
    token = _care.set(care) if and_more else None
    try:
        care.note()
        yield
    except (Exception, GeneratorExit, Pause):
        raise
    except BaseException as stop:
        care.end(stop)
        raise
    finally:
        if token:
            _care.reset(token)


def submitted(job: Job) -> None:
    """Let a job that was submitted this moment be cancelled with the run, if the flow around it is to follow it."""
    care = _care.get()
    if care:
        care.add(job)


def note_submitted(job: Job) -> None:
    """Note a job that was submitted on the run, too, where the hooks find it; Prefect's server may take its time."""
    care = _care.get()
    if care:
        care.add(job)
        care.note()


@contextmanager
def run_of_its_own() -> Iterator[None]:
    """Let a flow that is called here, in one of several threads of a run, get a new run each time.

    Prefect knows the runs that a flow calls by the order of the calls, and takes up those of an earlier
    attempt of the same run; with several threads, that would be the run of something else.
    """
    context = FlowRunContext.get()
    if context is None:
        yield
        return
    with context.model_copy(update={"detached": True}):
        yield


def note_reused(job_id: int) -> None:
    """Note that this run has taken a job that was there before, so that it is known when it is resumed elsewhere."""
    with not_vital(f"It could not be noted that job {job_id} was there before"):
        label({f"{_LABEL}{job_id}{_REUSED}": "yes"})


def has_reused(labels: Mapping[str, Any], job_id: int) -> bool:
    """Tell by a run's labels whether it has taken a job that was there before."""
    return f"{_LABEL}{job_id}{_REUSED}" in labels


def note_ended(job_id: int) -> None:
    """Note that a job that this run has followed is not to be cancelled any more, with the run or by the hook."""
    with not_vital(f"It could not be noted that job {job_id} has ended"):
        label({f"{_LABEL}{job_id}": _ENDED})


def is_cancellation(stop: BaseException) -> bool:
    """Whether what ends a run is its cancellation, and not a crash or a restart of its machine."""
    by_hand = isinstance(stop, KeyboardInterrupt) and not _has_runner()
    return by_hand or isinstance(stop, RunCancelled) or _is_cancelled()


def follow(
    jobs: Collection[Job],
    account: XRTCredentials,
    policy: CancelPolicy,
    more: Mapping[str, str] | None = None,
) -> None:
    """Note on the outermost flow run that it follows jobs, what becomes of them when it is stopped, and more."""
    name = account.block_name or ""
    label(
        {f"{_LABEL}{job.id}": policy for job in jobs}
        | {f"{_LABEL}{job.id}.credentials": name for job in jobs}
        | {f"{_LABEL}{job.id}.url": job.url for job in jobs}
        | dict(more or {})
    )


def _is_busy(error: BaseException) -> bool:
    return (
        isinstance(error, httpx.HTTPStatusError)
        and error.response.status_code == httpx.codes.SERVICE_UNAVAILABLE
    )


while_busy = retry(
    retry=retry_if_exception(_is_busy),
    wait=wait_random_exponential(multiplier=0.2, max=2),
    stop=stop_after_delay(_BUSY_AT_MOST_S),
    reraise=True,
)
"""Let a call that a run cannot do without be made again while the server turns it away: SQLite does so for long
where many runs begin at once."""


_labelling = threading.Lock()


@while_busy
def label(labels: dict[str, str]) -> None:
    """Write labels on the outermost flow run; those of other names stay."""
    # The server reads, merges and writes them: of two threads that write at once, one would write over the other.
    with _labelling, api() as client:
        client.update_flow_run_labels(UUID(runtime.root_flow_run_id), dict(labels))


def read_labels() -> dict[str, Any]:
    """Return the labels of the outermost flow run."""
    with api() as client:
        return dict(client.read_flow_run(UUID(runtime.root_flow_run_id)).labels)


def hurried(account: XRTCredentials) -> XRTCredentials:
    """Return an account that does not wait long for the service."""
    timeouts_s = {"connect_timeout_s": _SERVICE_TIMEOUT_S, "read_timeout_s": _SERVICE_TIMEOUT_S}
    return account.model_copy(update=timeouts_s)


def _cancel(
    job: Job, account: XRTCredentials, log: Callable[[str], None], complain: Callable[[str], None]
) -> bool:
    """Cancel what a job still builds, within the time that a run which is being stopped has left."""
    try:
        with hurried(account).get_client() as client:
            result = client.cancel(job, attempts=2)
    except XRTError as error:
        complain(f"{job} could not be cancelled ({error.message}) Do it by `prefect-xrt cancel {job.id}`.")
        return False
    for entry in result.products.values():
        log(f"{job}, {entry.product.value}: {entry.text}")
    return all(entry.settled for entry in result.products.values())


def cancel_jobs(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001 - a hook
    """Cancel what the jobs of a flow run still build: a hook for `on_cancellation` and `on_crashed`.

    It runs where the process of the run no longer can, and does what each job's policy says.
    """
    cancel_jobs_of(flow_run, state)


def has_jobs_to_cancel(run: FlowRun) -> bool:
    """Whether a run that was cancelled has jobs that are to be cancelled with it, and have not been."""
    return not _ON_CANCELLATION.isdisjoint(_followed(run.labels).values())


def _followed(labels: Mapping[str, Any]) -> dict[str, Any]:
    """Return of a run's labels those that name a job that it follows, with what becomes of that."""
    return {name: what for name, what in labels.items() if re.fullmatch(rf"{re.escape(_LABEL)}\d+", name)}


def labels_in_common(run: FlowRun, other: FlowRun) -> set[str]:
    """Return the labels of the jobs that two flow runs follow."""
    return {
        name
        for name, policy in _followed(other.labels).items()
        if policy not in (_CANCELLED, _ENDED)
        and name in run.labels
        and other.labels.get(f"{name}.url") == run.labels.get(f"{name}.url")
    }


def cancel_jobs_of(flow_run: FlowRun, state: State[Any], but: Collection[str] = ()) -> bool:
    """Cancel what the jobs of a flow run that has come to a state still build, as each job's policy says.

    Args:
        flow_run: The flow run.
        state: Its state.
        but: The labels of jobs that are to be left alone.

    Returns:
        Whether nothing is left to do, or can be done.
    """
    log = flow_run_logger(flow_run)
    with api() as client:
        labels = client.read_flow_run(flow_run.id).labels
    # Prefect runs it with the run's own variables or without them, as its version is.
    variables = {**os.environ, **(flow_run.job_variables or {}).get("env", {})}
    meant = _ON_CRASH if state.is_crashed() else _ON_CANCELLATION
    is_done = True
    for name, policy in _followed(labels).items():
        if policy not in meant or name in but:
            continue
        job_id = int(name.removeprefix(_LABEL))
        try:
            account = load_credentials(str(labels.get(f"{name}.credentials") or "") or None, variables)
            with hurried(account).get_client() as service:
                job = service.attach(job_id, attempts=2)
        except XRTError as error:
            log.error("Job %s could not be cancelled: %s", job_id, error.message)  # noqa: TRY400 - says it all
            is_done = is_done and not is_transient(error)
            continue
        if _cancel(job, account, log.info, log.error):
            with api() as client:
                client.update_flow_run_labels(flow_run.id, {name: _CANCELLED})
        else:
            is_done = False
    return is_done
