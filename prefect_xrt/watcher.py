"""The watcher: one process that looks at the jobs of all suspended flow runs, and resumes each when it is time.

It keeps nothing that matters: whom it follows is read from Prefect's server, again and again. So it may be killed
at any moment, and a second one may stand by: one at a time leads, by a heartbeat in a Prefect variable.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable

from prefect_xrt import deferral, runs
from prefect_xrt.account import Account
from prefect_xrt.client import XRTClient
from prefect_xrt.credentials import XRTCredentials, load_credentials
from prefect_xrt.deferral import Seen, Wait
from prefect_xrt.errors import ConfigurationError, DeadlineError, XRTError, obeyed_wait_s
from prefect_xrt.pacing import FLOOR_S
from prefect_xrt.progress import Board
from prefect_xrt.protocol import Outcome
from prefect_xrt.sensor import Ending, Watch, naming
from prefect_xrt.state import LocalLooks

__all__ = ["EVERY_S", "Watcher", "stopped_by_sigterm"]

EVERY_S = 10.0
"""How often the suspended runs are listed, in seconds."""

_MISSED_BEATS = 6
_SETTLE_S = 1.0
_PAGE = 200
# Runs that were cancelled while no watcher ran; what is older, the service has ended itself.
_LONG_AGO = timedelta(days=1)
_OVERLAP = timedelta(minutes=2)
_RENEW_S = 3600.0
_SELDOM_S = 600.0
_LONG_S = 20.0
_OPEN = [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
# A server that is busy with the list is not asked for it all the time.
_SHARE = 10
_TURN_S = 0.5
_logger = logging.getLogger(__name__)


_Name = tuple[str | None, str]
"""The block of an account and the address of its service."""


class _Room(NamedTuple):
    """An account whose room is looked after: as it was read, since when, and who asks the service for it."""

    credentials: XRTCredentials
    client: XRTClient
    account: Account
    made_at: float


class _Trouble(NamedTuple):
    """What went wrong the last time, and when it may be tried again."""

    message: str
    not_before: float


class _Retry(NamedTuple):
    """When a cancellation that has failed may be tried again."""

    not_before: float
    pause_s: float


class Waiting(NamedTuple):
    """A suspended flow run, and what it waits for."""

    run_id: UUID
    wait: Wait


class Watcher:
    """Follows the jobs of all flow runs that are suspended for one, and resumes each when its job has news.

    Args:
        every_s: How often the suspended runs are listed, in seconds; so long, but at most ten seconds, the process
            of one is given to end, before it is followed.
        log: Takes a line for what happens.
        sleep: Waits, in seconds; what it raises ends the watch.
        timer: Gives seconds that only ever grow.
    """

    def __init__(
        self,
        *,
        every_s: float = EVERY_S,
        log: Callable[[str], None] = _logger.info,
        sleep: Callable[[float], None] = time.sleep,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_s = every_s
        self._log = log
        self._sleep = sleep
        self._timer = timer
        self._lead = _Lead(every_s, timer)
        self._clients: dict[_Name, XRTClient] = {}
        self._rooms: dict[_Name, _Room] = {}
        self._complained: set[str] = set()
        self._troubles: dict[_Name, _Trouble] = {}
        self._retries: dict[UUID, _Retry] = {}
        self._followed: dict[str, list[Waiting]] = {}
        self._to_resume: dict[UUID, tuple[Waiting, Seen]] = {}
        self._boards: dict[UUID, Board] = {}
        self._to_show: dict[str, Outcome] = {}
        self._cancelled_since = datetime.now(UTC) - _LONG_AGO
        self._took_s = 0.0

    def run(self, *, stand_by: bool = True) -> None:
        """Watch until it is stopped from outside.

        Args:
            stand_by: Whether to wait where another watcher leads, and to take its place when it is gone; else
                to return.

        Raises:
            ConfigurationError: No Prefect server is set.
        """
        runs.server_url()
        desk, easel = ThreadPoolExecutor(1, "desk"), ThreadPoolExecutor(1, "easel")
        end = threading.Event()
        heart = threading.Thread(target=self._beat, args=(end,), name="heart", daemon=True)
        heart.start()
        try:
            with Watch(sleep=self._sleep, timer=self._timer) as watch:
                self._run(watch, desk, easel, stand_by=stand_by)
        finally:
            for pool in (desk, easel):
                pool.shutdown(wait=False, cancel_futures=True)
            end.set()
            heart.join(_SETTLE_S)
            self._lead.resign()
            for client in (*self._clients.values(), *(room.client for room in self._rooms.values())):
                client.close()

    def _run(
        self, watch: Watch, desk: ThreadPoolExecutor, easel: ThreadPoolExecutor, *, stand_by: bool
    ) -> None:
        listing: Future[list[Waiting] | None] | None = None
        began_at = self._timer()
        resuming: Future[None] | None = None
        showing: Future[None] | None = None
        next_list_at = began_at
        is_new = True
        while True:
            now = self._timer()
            if self._lead.is_anothers:
                self._forget_all(watch)
                if not stand_by:
                    self._log("Another watcher leads already.")
                    return
            if listing is None and self._lead.is_ours and now >= next_list_at:
                listing = desk.submit(self._list)
                began_at = now
            if listing and listing.done():
                found, listing = listing.result(), None
                next_list_at = max(began_at + self._every_s, now + _SHARE * self._took_s)
                if found is not None and self._lead.is_ours:
                    if is_new:
                        self._log(f"Watching; suspended flow runs: {len(found)}.")
                        is_new = False
                    self._follow(watch, found)
            if self._to_resume and (resuming is None or resuming.done()):
                resuming = desk.submit(self._resume)
            if self._to_show and (showing is None or showing.done()):
                showing = easel.submit(self._show)
            if len(watch):
                for ending in watch.endings(_TURN_S):
                    self._take(ending)
            else:
                self._sleep(min(_TURN_S, self._every_s))

    def _beat(self, end: threading.Event) -> None:
        """Show again and again that this watcher lives; a list may take longer than others have patience."""
        while not end.is_set():
            try:
                with runs.api() as client:
                    self._lead.beat(client)
            except Exception as error:
                if not self._lead.is_ours:
                    self._say_away(error)
            end.wait(self._every_s)

    def _say_away(self, error: Exception) -> None:
        self._log(f"Prefect's server does not answer as it should ({type(error).__name__}); asking again.")

    def _list(self) -> list[Waiting] | None:
        """Return who waits for what, and see to those that were cancelled; None where that cannot be told."""
        try:
            with runs.api() as client:
                began_at = self._timer()
                suspended = list(_suspended(client))
                self._took_s = self._timer() - began_at
                gone = [run for run in suspended if self._has_gone(run)]
                found = [Waiting(run.id, wait) for run in gone if (wait := deferral.what_it_waits_for(run))]
                self._see_to_cancelled(client)
                self._give_room(client, gone, everyone={run.id for run in suspended})
        except Exception as error:
            self._say_away(error)
            return None
        return found

    def _has_gone(self, run: FlowRun) -> bool:
        """Whether the process of a suspended run has had the time to end.

        Before Prefect 3.9, a worker with a `--limit` dies of a run that is resumed while its process still ends.
        """
        assert run.state is not None  # noqa: S101 - it is suspended
        age_s = (datetime.now(UTC) - run.state.timestamp).total_seconds()
        return not 0 <= age_s < min(self._every_s, EVERY_S)

    def _see_to_cancelled(self, client: SyncPrefectClient) -> None:
        """Cancel the jobs of runs that were cancelled while suspended: Prefect runs no hook for those."""
        began_at = datetime.now(UTC)
        state = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLED]))
        ended = FlowRunFilterEndTime(after_=self._cancelled_since)
        left = {
            run.id: run
            for run in _pages(client, FlowRunFilter(state=state, end_time=ended))
            if run.state and runs.has_jobs_to_cancel(run) and any(map(Wait.of, run.labels.values()))
        }
        due = [run for run in left.values() if self._is_due(run)]
        is_open = FlowRunFilterState(type=FlowRunFilterStateType(any_=_OPEN))
        others = list(_pages(client, FlowRunFilter(state=is_open))) if due else []
        stop_at = self._timer() + _LONG_S
        for run in due:
            if self._timer() <= stop_at and self._cancel(run, others):
                del left[run.id]
        self._retries = {run_id: retry for run_id, retry in self._retries.items() if run_id in left}
        oldest = min([began_at, *(run.end_time or began_at for run in left.values())])
        self._cancelled_since = max(oldest - _OVERLAP, began_at - _LONG_AGO)

    def _is_due(self, run: FlowRun) -> bool:
        return run.id not in self._retries or self._timer() >= self._retries[run.id].not_before

    def _cancel(self, run: FlowRun, others: Sequence[FlowRun]) -> bool:
        """Cancel the jobs of a run but those that others go on with; tell whether nothing is left to do."""
        gone_on_with = {label for other in others for label in runs.labels_in_common(run, other)}
        if run.state and runs.cancel_jobs_of(run, run.state, but=gone_on_with):
            return True
        before = self._retries.get(run.id)
        pause_s = min(2 * before.pause_s, _SELDOM_S) if before else FLOOR_S
        self._retries[run.id] = _Retry(self._timer() + pause_s, pause_s)
        return False

    def _give_room(self, client: SyncPrefectClient, gone: list[FlowRun], everyone: set[UUID]) -> None:
        """Let those submit for whom there is room, in the order in which they asked."""
        asking: dict[_Name, set[UUID]] = {}
        for run in gone:
            room = deferral.room_it_waits_for(run)
            if room:
                asking.setdefault((room.credentials, room.service), set()).add(run.id)
        for name, run_ids in asking.items():
            before = self._troubles.get(name)
            if before and self._timer() < before.not_before:
                continue
            try:
                account = self._account(name)
                if account:
                    self._call(client, account, run_ids, everyone)
            except XRTError as error:
                if before is None or before.message != error.message:
                    self._log(
                        f"There may be room for jobs of {name[1]}, but that cannot be told: {error.message}"
                    )
                not_before = self._timer() + max(FLOOR_S, obeyed_wait_s(error))
                self._troubles[name] = _Trouble(error.message, not_before)
            else:
                self._troubles.pop(name, None)

    def _call(
        self, client: SyncPrefectClient, account: Account, run_ids: set[UUID], everyone: set[UUID]
    ) -> None:
        """Let those of some runs submit for whom an account has room."""
        free = account.room()
        # Those that live wait in their processes; of the others, some have ended and will not come.
        waiting = [ticket for ticket in account.queue() if ticket.lives or ticket.flow_run_id in everyone]
        for ticket in waiting[:free]:
            if ticket.flow_run_id in run_ids:
                account.call(ticket)
                client.resume_flow_run(ticket.flow_run_id)
                self._log(f"Resumed a flow run that waited for room, to submit {ticket.title}.")

    def _follow(self, watch: Watch, found: list[Waiting]) -> None:
        """Follow what is waited for now, and forget what is not any more."""
        wanted: dict[str, list[Waiting]] = {}
        for waiting in found:
            if waiting.run_id not in self._to_resume:
                wanted.setdefault(waiting.wait.job.url, []).append(waiting)
        for url in [url for url in self._followed if url not in wanted]:
            watch.forget(self._followed.pop(url)[0].wait.job)
        for url, waitings in wanted.items():
            before = self._followed.get(url)
            if before and {w.wait.key for w in before} == {w.wait.key for w in waitings}:
                continue
            client = self._client(waitings[0].wait.credentials, waitings[0].wait.service)
            if client is None:
                continue
            if before:
                watch.forget(before[0].wait.job)
            self._followed[url] = waitings
            self._start(watch, client, waitings)
        there = {waiting.run_id for waiting in found}
        self._boards = {run_id: board for run_id, board in self._boards.items() if run_id in there}

    def _start(self, watch: Watch, client: XRTClient, waitings: list[Waiting]) -> None:
        """Follow a job for those who wait for it: as soon as one has news, all of them are told."""
        waits = [waiting.wait for waiting in waitings]
        job = waits[0].job
        known = [wait.outcome(job) for wait in waits]
        least = min(known, key=lambda outcome: len(outcome.ended) if outcome else -1)

        def note(outcome: Outcome) -> None:
            self._to_show[job.url] = outcome

        watch.follow(
            client,
            job,
            since=least,
            until="next" if any(wait.until == "next" for wait in waits) else "all",
            pacing=waits[0].pacing,
            deadline_s=max(1e-3, min(wait.give_up_at for wait in waits) - time.time()),
            max_failed_looks=max(wait.max_failed_looks for wait in waits),
            log=naming(job, self._log),
            on_look=note,
            looks=LocalLooks(waits[0].service),
        )

    def _take(self, ending: Ending) -> None:
        waitings = self._followed.pop(ending.job.url, [])
        if isinstance(ending.error, DeadlineError):
            # The others' deadlines are later: they are followed again with the next list.
            now = max(time.time(), min((waiting.wait.give_up_at for waiting in waitings), default=0.0))
            waitings = [waiting for waiting in waitings if waiting.wait.give_up_at <= now]
        for waiting in waitings:
            self._to_resume[waiting.run_id] = (waiting, Seen.of_ending(waiting.wait.key, ending))

    def _forget_all(self, watch: Watch) -> None:
        for waitings in self._followed.values():
            watch.forget(waitings[0].wait.job)
        self._followed.clear()
        self._to_resume.clear()

    def _resume(self) -> None:
        """Tell those whose wait has ended what was seen, and let them go on."""
        has_failed = False
        with runs.api() as client:
            for run_id, (waiting, seen) in list(self._to_resume.items()):
                job = waiting.wait.job
                try:
                    run = client.read_flow_run(run_id)
                    if deferral.what_it_waits_for(run) == waiting.wait:
                        label = deferral.seen_label(job.id)
                        client.update_flow_run_labels(run_id, {label: seen.model_dump_json()})
                        client.resume_flow_run(run_id)
                        self._log(f"{job}: resumed the flow run {run.name!r}.")
                except ObjectNotFound:
                    self._log(f"{job}: its flow run was deleted.")
                except Exception as error:
                    self._log(
                        f"{job}: its flow run could not be resumed ({type(error).__name__}); trying again."
                    )
                    has_failed = True
                    if isinstance(error, httpx.TransportError):
                        break  # a server that is away is so for all of them
                    continue
                self._to_resume.pop(run_id, None)
        if has_failed:
            time.sleep(_SETTLE_S)

    def _show(self) -> None:
        """Show how far the jobs are with the runs that wait for them."""
        while self._to_show:
            url, outcome = self._to_show.popitem()
            for waiting in self._followed.get(url, []):
                run_id = waiting.run_id
                board = self._boards.setdefault(run_id, Board(waiting.wait.job, flow_run_id=run_id))
                board(outcome)

    def _account(self, name: _Name) -> Account | None:
        """Return an account, made anew where its block was changed, and now and then, since clocks drift."""
        if self._client(*name) is None:
            return None
        credentials, now, room = load_credentials(name[0]), self._timer(), self._rooms.get(name)
        if room and (room.credentials != credentials or now - room.made_at > _RENEW_S):
            self._rooms.pop(name).client.close()
            room = None
        if room is None:
            # The list has no time for a service that is slow.
            client = runs.hurried(credentials).get_client()
            room = self._rooms[name] = _Room(credentials, client, Account(credentials, client), now)
        return room.account

    def _client(self, credentials: str | None, service: str) -> XRTClient | None:
        """Return who asks for a run; None, said once, where the account of it cannot be used here."""
        name = (credentials, service)
        if name not in self._clients:
            try:
                account = load_credentials(credentials)
                if account.base_url != service:
                    raise ConfigurationError(f"The account of this process is for {account.base_url}.")
                self._clients[name] = account.get_client()
            except XRTError as error:
                if error.message not in self._complained:
                    self._complained.add(error.message)
                    self._log(f"Jobs of {service} cannot be looked at here: {error.message}")
                return None
        return self._clients[name]


class _Lead:
    """Which of several watchers leads.

    A heartbeat that has not changed for a while is one of a watcher that is gone; no clocks of two machines are
    compared. Two that take its place at the same moment would look twice for a turn, and resume once.
    """

    def __init__(self, every_s: float, timer: Callable[[], float]) -> None:
        self._name = f"{socket.gethostname()}-{uuid4().hex[:8]}"
        self._patience_s = _MISSED_BEATS * every_s
        self._settle_s = min(_SETTLE_S, every_s)
        self._timer = timer
        self._seen: object = None
        self._seen_at = timer()
        self._beats = 0
        self.is_ours = False
        self.is_anothers = False

    def beat(self, client: SyncPrefectClient) -> bool:
        """Show that this watcher lives, and tell whether it leads."""
        other = deferral.read_heartbeat(client)
        if other and other.get("watcher") not in (None, self._name):
            self.is_ours = False
            if other != self._seen:
                self._seen, self._seen_at = other, self._timer()
            self.is_anothers = self._timer() - self._seen_at < self._patience_s
            if self.is_anothers:
                return False
        self._write()
        if not self.is_ours:
            time.sleep(self._settle_s)
            self.is_ours = (deferral.read_heartbeat(client) or {}).get("watcher") == self._name
            self.is_anothers = not self.is_ours
        return self.is_ours

    def _write(self) -> None:
        self._beats += 1
        Variable.set(
            deferral.HEARTBEAT,
            {"watcher": self._name, "beat": self._beats, "at": datetime.now(UTC).isoformat()},
            overwrite=True,
        )

    def resign(self) -> None:
        """Let another one lead at once."""
        if self.is_ours:
            self.is_ours = False
            with suppress(Exception):
                Variable.set(deferral.HEARTBEAT, {"watcher": None}, overwrite=True)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let a SIGTERM, with which service managers end a process, end it as Ctrl-C does: in order."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _suspended(client: SyncPrefectClient) -> Iterator[FlowRun]:
    state = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[StateType.PAUSED]), name=FlowRunFilterStateName(any_=["Suspended"])
    )
    return _pages(client, FlowRunFilter(state=state))


def _pages(client: SyncPrefectClient, wanted: FlowRunFilter) -> Iterator[FlowRun]:
    offset = 0
    while True:
        page = client.read_flow_runs(
            flow_run_filter=wanted, sort=FlowRunSort.ID_DESC, limit=_PAGE, offset=offset
        )
        yield from page
        if len(page) < _PAGE:
            return
        offset += len(page)
