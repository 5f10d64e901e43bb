"""Waiting that holds no worker: a flow run suspends itself, its process ends, and a watcher resumes it.

Who waits for what is kept with the flow runs at Prefect's server and nowhere else: the key of the suspended state
begins with `xrt-`, and labels say what is waited for (`prefect-xrt.job.<JobID>.wait`) and what the watcher has seen
of it (`.seen`). So nothing is lost with a watcher, and nothing with a process that was suspended.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import SetStateStatus
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Pause
from prefect.settings import get_current_settings
from prefect.states import Suspended
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from prefect_xrt import account as accounts
from prefect_xrt import runs, tasks
from prefect_xrt.credentials import XRTCredentials
from prefect_xrt.errors import DeadlineError, FailedLooksError, WaitError
from prefect_xrt.pacing import Pacing
from prefect_xrt.protocol import Job, Outcome, ProductStatus
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.runs import CancelPolicy
from prefect_xrt.sensor import DEADLINE_S, MAX_FAILED_LOOKS, Ending, Until

__all__ = [
    "HEARTBEAT",
    "KEY_PREFIX",
    "RoomWait",
    "Seen",
    "Wait",
    "Waiting",
    "await_turn",
    "cannot_suspend",
    "job_before",
    "read_heartbeat",
    "room_it_waits_for",
    "suspend",
    "wait_for_products",
    "what_it_waits_for",
]

Waiting = Literal["in-process", "suspended"]
"""How a flow run waits: in its process, or suspended, without one."""

KEY_PREFIX = "xrt-job-"
"""With this begins the key of a state in which a flow run waits for a job."""

_LABEL = "prefect-xrt.job.{}.{}"
_ROOM_LABEL = "prefect-xrt.room"
HEARTBEAT = "prefect_xrt_watcher"
"""The Prefect variable in which the watcher that leads leaves a sign of life."""

_STALE = timedelta(minutes=5)
# The watcher ends a wait at its deadline. Prefect does so only where there is no watcher any more: without a word.
_GRACE_S = 7 * 86400
_LONG_S = 365 * 86400


class _Label(BaseModel):
    """What a label holds about the wait with a key."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str

    @classmethod
    def of(cls, text: object) -> Self | None:
        """Read a label; None where it is not there, or not one of these."""
        try:
            return cls.model_validate_json(str(text or ""))
        except ValidationError:
            return None


class _Known(_Label):
    """The last statuses of a job's products, as a label holds them."""

    looked_at: AwareDatetime | None = None
    statuses: dict[Product, tuple[int | None, str]] = {}

    def outcome(self, job: Job) -> Outcome | None:
        """Return them as a look at the job would."""
        if self.looked_at is None:
            return None
        statuses = {p: ProductStatus(product=p, code=c, text=text) for p, (c, text) in self.statuses.items()}
        return Outcome(job=job, statuses=statuses, looked_at=self.looked_at)

    @staticmethod
    def facts(outcome: Outcome | None) -> dict[str, Any]:
        """Return what a label holds of an outcome."""
        if outcome is None:
            return {}
        statuses = {product: (status.code, status.text) for product, status in outcome.statuses.items()}
        return {"looked_at": outcome.looked_at, "statuses": statuses}


class Wait(_Known):
    """What a suspended flow run waits for, with what it knows of it already."""

    job: Job
    service: str
    credentials: str | None
    until: Until
    give_up_at: float
    pacing: Pacing | None
    max_failed_looks: int


class Seen(_Known):
    """What a watcher has seen of a job for which a flow run waits, and why the wait has ended."""

    error: str = ""
    message: str = ""

    @classmethod
    def of_ending(cls, key: str, ending: Ending) -> Seen:
        """Return what a run is told when it is resumed."""
        error = ending.error
        told = {"error": type(error).__name__, "message": str(error)} if error else {}
        return cls(key=key, **cls.facts(ending.outcome), **told)

    def wait_error(self, job: Job) -> WaitError | None:
        """Return what has ended the wait before its products did, if that was no refusal."""
        error = {"DeadlineError": DeadlineError, "FailedLooksError": FailedLooksError}.get(self.error)
        return error(self.message, job=job, outcome=self.outcome(job)) if error else None


class RoomWait(_Label):
    """What a suspended flow run waits for that may not submit yet, as its label holds it."""

    service: str
    credentials: str | None


def wait_label(job_id: int) -> str:
    """Return the name of the label that says what is waited for."""
    return _LABEL.format(job_id, "wait")


def seen_label(job_id: int) -> str:
    """Return the name of the label that says what has been seen."""
    return _LABEL.format(job_id, "seen")


def what_it_waits_for(run: FlowRun) -> Wait | None:
    """Return what a flow run waits for, by its state and its labels; None where it does not wait for a job."""
    key = _pause_key(run)
    job_id = re.match(rf"{KEY_PREFIX}(\d+)-", key)
    wait = Wait.of(run.labels.get(wait_label(int(job_id[1])))) if job_id else None
    return wait if wait and wait.key == key else None


def room_it_waits_for(run: FlowRun) -> RoomWait | None:
    """Return whose room a flow run waits for; None where it does not wait until it may submit."""
    key = _pause_key(run)
    wait = RoomWait.of(run.labels.get(_ROOM_LABEL)) if key.startswith(runs.ROOM_KEY) else None
    return wait if wait and wait.key == key else None


def _pause_key(run: FlowRun) -> str:
    return (run.state.state_details.pause_key if run.state else None) or ""


def cannot_suspend() -> str | None:
    """Return why the flow run that this is called in cannot be suspended; None where it can."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or TaskRunContext.get():
        return "it is not called in a flow run"
    if not get_current_settings().api.url:
        return "there is no Prefect server that outlives it"
    if context.flow_run.parent_task_run_id:
        return "it is called by another flow"
    if context.flow_run.deployment_id is None:
        return "it belongs to no deployment"
    return None


def wait_for_products(
    job: Job,
    account: XRTCredentials,
    *,
    since: Outcome | None = None,
    until: Until = "all",
    pacing: Pacing | None = None,
    deadline_s: float = DEADLINE_S,
    max_failed_looks: int = MAX_FAILED_LOOKS,
    cancel_job: CancelPolicy = "when-cancelled",
) -> Outcome:
    """Wait as `tasks.wait_for_products` does, but with the flow run suspended: to be called in a flow, not in a task.

    The process ends here, and begins the flow anew when the watcher (`prefect-xrt watch`) has seen an end: what
    comes before has to find what it has done, as tasks with persisted results and `build_products` do. A flow run
    that cannot be suspended waits in its process, and says so.

    The arguments, what is returned, and what is raised are as of `tasks.wait_for_products`. The time is counted
    from the first suspension on.
    """
    in_process = partial(
        tasks.wait_for_products,
        job,
        account,
        until=until,
        pacing=pacing,
        max_failed_looks=max_failed_looks,
        cancel_job=cancel_job,
    )
    if reason := cannot_suspend():
        get_run_logger().warning(
            "This flow run cannot be suspended, since %s: it waits in its process.", reason
        )
        return in_process(since=since, deadline_s=deadline_s)
    labels = runs.read_labels()
    wait, seen = Wait.of(labels.get(wait_label(job.id))), Seen.of(labels.get(seen_label(job.id)))
    give_up_at = time.time() + deadline_s
    if wait and wait.job.url == job.url:
        give_up_at = wait.give_up_at
        seen = seen if seen and seen.key == wait.key else None
        if seen and seen.error:
            # Who runs this again waits again.
            runs.label({wait_label(job.id): "", seen_label(job.id): ""})
            if error := seen.wait_error(job):
                raise error
            # A refusal, which is told best by the service itself.
            return in_process(since=since, deadline_s=max(1e-3, give_up_at - time.time()))
        told = (seen or wait).outcome(job)
        if told and (since is None or told.looked_at > since.looked_at):
            if until == "next" and set(told.ended) - set(since.ended if since else ()):
                return told
            since = told
    if since and since.complete:
        return since
    wait = Wait(
        key=f"{KEY_PREFIX}{job.id}-{time.time_ns()}",
        job=job.model_copy(update={"parameters": {}}),
        service=account.base_url,
        credentials=account.block_name,
        until=until,
        give_up_at=give_up_at,
        pacing=pacing,
        max_failed_looks=max_failed_looks,
        **_Known.facts(since),
    )
    runs.follow([job], account, cancel_job, {wait_label(job.id): wait.model_dump_json()})
    pending = since.pending if since else job.products
    message = f"Waits for {', '.join(pending)} of {job}, without a process."
    suspend(wait.key, message, give_up_at - time.time() + _GRACE_S)
    raise AssertionError("A flow run that is suspended goes no further.")  # pragma: no cover


def await_turn(request: ProductRequest, account: XRTCredentials, record_dir: Path) -> None:
    """Suspend the flow run until it may submit, if it may not now; to be called in a flow, right before that.

    A run that cannot be suspended waits in the task that submits.
    """
    if cannot_suspend():
        return
    who = accounts.asker(request, record_dir)
    with account.get_client() as client:
        line = accounts.Account(account, client)
        if line.has_turn(who, request.name):
            return
        # Those before it are about to submit, and there is room for all of them: it is not worth a new process.
        with runs.not_vital("It could not be asked how many wait for room"):
            if who in [waiting.asker for waiting in line.queue()[: line.room()]]:
                return
    key = f"{runs.ROOM_KEY}{time.time_ns()}"
    wait = RoomWait(key=key, service=account.base_url, credentials=account.block_name)
    runs.label({_ROOM_LABEL: wait.model_dump_json()})
    message = f"Waits for room in the account, to submit {request.name}, without a process."
    suspend(key, message, _LONG_S)


def job_before() -> tuple[Job, bool] | None:
    """Return the job that this flow run waited for when it was suspended, on whatever machine that was.

    Beside it, whether the run had found it, and not submitted it.
    """
    if cannot_suspend():
        return None
    labels = runs.read_labels()
    waits = (Wait.of(text) for text in labels.values())
    job = next((wait.job for wait in waits if wait), None)
    return (job, runs.has_reused(labels, job.id)) if job else None


def read_heartbeat(client: SyncPrefectClient) -> dict[str, Any] | None:
    """Return what the watcher that leads has left as a sign of life; None where there never was one."""
    variable = client.read_variable_by_name(HEARTBEAT)
    return variable.value if variable and isinstance(variable.value, dict) else None


def _watcher_is_there() -> bool:
    """Whether a watcher has given a sign of life in the last minutes, by this machine's clock."""
    try:
        with runs.api() as client:
            at = datetime.fromisoformat(str((read_heartbeat(client) or {})["at"]))
    except (KeyError, ValueError):
        return False
    return datetime.now(UTC) - at < _STALE


def suspend(key: str, message: str, timeout_s: float) -> None:
    """Suspend the flow run that this is called in, and leave its process.

    Raises:
        Pause: The flow run is suspended.
        RuntimeError: Prefect's server does not suspend it.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None  # noqa: S101, PT018 - asked before
    if not _watcher_is_there():
        message += " No watcher seems to run: start one by `prefect-xrt watch`."
    state: Any = Suspended(timeout_seconds=max(1, int(timeout_s)), pause_key=key, message=message)
    get_run_logger().info("%s", state.message)
    with runs.api(retries=8) as client:
        answer = runs.while_busy(client.set_flow_run_state)(context.flow_run.id, state)
        if answer.status is SetStateStatus.ACCEPT:
            raise Pause(state=answer.state)
        # An answer that was lost on the way may have been a yes.
        now = client.read_flow_run(context.flow_run.id).state
    if now and now.is_paused() and now.state_details.pause_key == key:
        raise Pause(state=now)
    if now and (now.is_cancelling() or now.is_cancelled()):
        raise runs.RunCancelled
    reason = getattr(answer.details, "reason", None) or answer.status.value
    raise RuntimeError(f"This flow run could not be suspended: {reason}")
