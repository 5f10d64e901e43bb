"""Room for one more active job of the account, kept across all flows, processes and machines.

Whoever is about to submit takes a ticket at Prefect's server, and waits until nobody who asked earlier waits
and the service has room. The submission itself is made under a global concurrency limit with one slot, which
is let go right after it: nothing is held while a job builds. What the service last told, and what was
submitted since, lies beside the tickets, so that only who is first in line asks the service, and a count that
lags behind, or a process that dies on the way, lets nobody in too many.

All times are those of Prefect's server, since the clocks of the machines may differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

import httpx
from prefect import get_run_logger
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    ArtifactCreate,
    ArtifactUpdate,
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
)
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.runtime import flow_run as runtime
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_xrt import runs
from prefect_xrt.client import XRTClient
from prefect_xrt.credentials import XRTCredentials
from prefect_xrt.errors import (
    OutputError,
    RefusedError,
    ServiceUnreachableError,
    XRTError,
    is_transient,
    obeyed_wait_s,
)
from prefect_xrt.pacing import Pacing
from prefect_xrt.reports import of_this_run
from prefect_xrt.request import ProductRequest
from prefect_xrt.sensor import MAX_FAILED_LOOKS
from prefect_xrt.state import digest

__all__ = ["Account", "Waiting", "asker"]

_NOTE, _ASKER, _TITLE, _ROOT, _ALIVE = "note", "asker", "title", "root-flow-run", "alive-s"
_PAGE = 200
_GRACE_S = 15.0
_SPARE_S = 5.0
_NEXT_S = 2.0
_LEAST_S = 0.4
_SLOWEST = 10
_TITLE_CHARACTERS = 200
_SKEW_S = 2.0
_LEASE_S = 60.0
_STUCK_S = 2 * _LEASE_S
_HURRY_S = 8.0
_FORGOTTEN = timedelta(days=7)


def asker(request: ProductRequest, record_dir: Path | None) -> str:
    """Return who asks for room for a request: the same when a flow run is retried or resumed, for nobody else.

    Args:
        request: What is to be submitted.
        record_dir: Where its record goes, as `submit_request` is told.
    """
    return digest(f"{runs.submission_owner(record_dir)}:{request.model_dump_json()}")


class Waiting(NamedTuple):
    """Somebody who waits for room."""

    ticket: UUID
    asker: str
    title: str
    flow_run_id: UUID | None
    """The outermost flow run, which is the one that can be suspended."""
    asked_at: datetime
    lives: bool
    """Whether the ticket was renewed of late, so that those who asked later wait for this one."""


class _Note(BaseModel):
    """What all who ask know of the account; times in seconds since 1970. Written only with the slot taken."""

    model_config = ConfigDict(frozen=True)

    count: int
    """How many jobs were active when the service was last asked."""
    asked_at: float
    at_least: int = 0
    """How many are, since those were submitted of which the count may not tell yet."""
    settles_at: float = 0.0
    """From when on the count tells of them."""
    lease: UUID | None = None
    """Who submits right now."""
    held_until: float = 0.0

    def active(self, now: float) -> int:
        """Return how many jobs are active at the most, if nobody else submits any."""
        return max(self.count, self.at_least) if now < self.settles_at else self.count


class _View(NamedTuple):
    """What lies at Prefect's server: who waits, in the order of asking, and the note."""

    line: list[Waiting]
    note: _Note | None
    note_id: UUID | None


class _Turn(NamedTuple):
    """A turn that was taken: under which lease, and the note without and with it."""

    lease: UUID
    note_id: UUID | None
    before: _Note
    during: _Note


@dataclass(frozen=True)
class _Verdict:
    """What came of asking once."""

    may: bool = False
    turn: _Turn | None = None
    reason: str = ""
    full: bool = False
    pause_s: float = 0.0


class _AwayError(Exception):
    """Prefect's server does not answer."""


class Account:
    """The queue of those who want to submit a job of an account.

    Args:
        credentials: The account, and how many jobs of it may be active.
        client: Speaks to the service for it.
    """

    def __init__(self, credentials: XRTCredentials, client: XRTClient) -> None:
        self.digest = digest(f"{credentials.base_url} {credentials.user_id.get_secret_value()}")
        """What tells this account from others at Prefect's server."""
        self._client = client
        self._allowed = credentials.max_active
        self._base_url = credentials.base_url
        self._slot_name = f"xrt-account-{self.digest}"
        self._note_key = f"xrt-account-{self.digest}"
        self._line_key = f"xrt-queue-{self.digest}"
        self._floor_s = Pacing.default(client).floor_s
        self._hold_s = 2 * self._floor_s + _SPARE_S
        self._offset_s: float | None = None
        self._taken_since: tuple[float, _Note | None] | None = None
        self._kept: SyncPrefectClient | None = None
        self._mine: list[Waiting] = []
        self._shown: tuple[UUID, bool] | None = None
        self._alive_until = 0.0

    @contextmanager
    def turn(
        self, who: str, title: str, sleep: Callable[[float], None], log: Callable[[str], None]
    ) -> Iterator[None]:
        """Wait until it is this one's turn and there is room, and hold both while something is submitted.

        Where that fails the ticket stays, so that one whose submission is uncertain keeps its place; see `leave`.

        Args:
            who: Who asks, see `asker`.
            title: What for, for people.
            sleep: Waits, in seconds.
            log: Takes a line for why it waits.

        Raises:
            XRTError: The account cannot be used, or the service has not answered for very long.
        """
        with self._kept_open():
            turn = self._await(who, title, sleep, log)
            try:
                yield
            except BaseException as stop:
                nothing_sent = isinstance(stop, OutputError | RefusedError | ServiceUnreachableError)
                self._end(turn, became_a_job=not nothing_sent, timeout_s=_hurry(stop))
                raise
            self._end(turn, became_a_job=True, leave=True)

    @contextmanager
    def asking(
        self,
        request: ProductRequest,
        record_dir: Path | None,
        sleep: Callable[[float], None],
        log: Callable[[str], None],
    ) -> Iterator[Callable[[], AbstractContextManager[None]]]:
        """Provide turns for the attempts to submit one request, and leave the queue at the end, however it comes.

        Args:
            request: What is to be submitted.
            record_dir: Where its record goes.
            sleep: Waits, in seconds.
            log: Takes a line for why it waits.
        """
        who = asker(request, record_dir)

        def turn() -> AbstractContextManager[None]:
            return self.turn(who, request.name, sleep, log)

        timeout_s = None
        try:
            yield turn
        except BaseException as stop:
            timeout_s = _hurry(stop)
            raise
        finally:
            if self._mine:
                self.leave(who, timeout_s)

    def has_turn(self, who: str, title: str) -> bool:
        """Tell whether it is this one's turn and there is room now; it keeps its place in any case.

        For a run that does not wait in its process. Nothing is submitted or held.

        Args:
            who: Who asks, see `asker`.
            title: What for, for people.

        Raises:
            XRTError: The account cannot be used.
        """
        try:
            verdict = self._ask(who, title, take=False)
            self._renew(verdict)
        except _AwayError:
            get_run_logger().warning("It could not be asked whose turn it is.", exc_info=True)
            return False
        except XRTError as error:
            if not is_transient(error):
                raise
            get_run_logger().warning("The active jobs cannot be counted: %s", error.message)
            return False
        return verdict.may

    def leave(self, who: str, timeout_s: float | None = None) -> None:
        """Give up a place in the queue; a server that is away is told nothing.

        Args:
            who: Who asked, see `asker`.
            timeout_s: How long to wait for Prefect's server, in seconds; as its settings say by default.
        """
        with (
            runs.not_vital("The place in the queue for submissions could not be given up"),
            self._api(timeout_s) as api,
        ):
            if not any(waiting.asker == who for waiting in self._mine):
                self._mine = [waiting for waiting in self._view(api).line if waiting.asker == who]
            self._leave(api)

    def queue(self) -> list[Waiting]:
        """Return who waits, in the order of asking."""
        with self._api() as api:
            return self._view(api).line

    def room(self) -> int:
        """Return how many more jobs there may be; the service is asked once, and as often as its manners allow.

        Raises:
            XRTError: The service did not answer.
        """
        with self._api() as api, ExitStack() as stack:
            note = (view := self._view(api)).note
            if self._is_due(note) and (lease := self._take_slot(api, view)):
                stack.callback(self._let_go, api, lease)
                note = (view := self._view(api)).note
                if self._is_due(note):
                    note = self._counted(note, attempts=1)
                    self._write(api, view.note_id, note)
                    self._sweep(api, view.line)
            return max(0, self._allowed - note.active(self._now())) if note else 0

    def call(self, waiting: Waiting, alive_s: float = 120.0) -> None:
        """Keep somebody's place for a while, since it was called, or is about to be.

        Args:
            waiting: Who.
            alive_s: For how long those who asked later wait for it, in seconds.
        """
        with self._api() as api, suppress(ObjectNotFound):
            _patch(api, waiting.ticket, ArtifactUpdate(metadata_=_metadata(waiting, alive_s)))

    @contextmanager
    def _kept_open(self) -> Iterator[None]:
        """Keep one client for Prefect's server meanwhile: to open one costs more than to ask with it."""
        with ExitStack() as stack:
            with suppress(Exception):  # it is tried again where it is needed
                self._kept = stack.enter_context(runs.api())
            try:
                yield
            finally:
                self._kept = None

    @contextmanager
    def _api(self, timeout_s: float | None = None) -> Iterator[SyncPrefectClient]:
        if self._kept and timeout_s is None:
            yield self._kept
            return
        with runs.api() if timeout_s is None else runs.api(retries=1, timeout_s=timeout_s) as api:
            yield api

    def _await(
        self, who: str, title: str, sleep: Callable[[float], None], log: Callable[[str], None]
    ) -> _Turn | None:
        """Wait for a turn; None where Prefect's server is away, and only the service's count was asked."""
        failures, told, away_since = 0, set[bool](), 0.0
        while True:
            sleep(0)
            try:
                try:
                    verdict = self._ask(who, title)
                    away_since = 0.0
                except _AwayError:
                    if not away_since:
                        get_run_logger().warning(
                            "It cannot be asked whose turn it is to submit; if that stays so, the service's count of "
                            "jobs alone decides.",
                            exc_info=True,
                        )
                    away_since = away_since or self._now()
                    verdict = self._without_queue(away_since)
            except XRTError as error:
                failures += 1
                # A run of its own whose service is away from the start fails at once, for a person to see.
                at_once = not told and runtime.id is not None and runtime.id == runtime.root_flow_run_id
                if failures >= MAX_FAILED_LOOKS or not is_transient(error) or at_once:
                    raise
                if failures == 1:
                    log(f"The active jobs cannot be counted ({error.message}) Asking again.")
                told.add(True)
                verdict = _Verdict(
                    reason="the service does not tell how many jobs are active",
                    full=True,
                    pause_s=max(self._floor_s, obeyed_wait_s(error)),
                )
            else:
                failures = 0
            if verdict.may:
                if told:
                    log("There is room for one more job now.")
                return verdict.turn
            if verdict.full not in told:
                told.add(verdict.full)
                log(f"Waiting to submit: {verdict.reason}.")
            for part in self._parts(verdict):
                with suppress(_AwayError):
                    self._renew(part)
                sleep(part.pause_s)

    def _parts(self, verdict: _Verdict) -> Iterator[_Verdict]:
        """Divide a long pause, so that those who asked later do not wait as long for one who has died in it."""
        left_s, most_s = verdict.pause_s, self._floor_s
        while left_s > most_s:
            yield replace(verdict, pause_s=most_s)
            left_s -= most_s
        yield replace(verdict, pause_s=left_s)

    def _without_queue(self, since: float) -> _Verdict:
        """Let the count alone decide, unless Prefect's server may only be busy, or be started again.

        Then all who wait would see the same room, and take it at once.
        """
        if self._now() - since < self._floor_s:
            return _Verdict(reason="Prefect's server does not answer", pause_s=self._next_s)
        active = self._client.count_active_jobs()
        may = active < self._allowed
        return _Verdict(may=may, reason=self._full(active), full=True, pause_s=self._floor_s)

    def _ask(self, who: str, title: str, *, take: bool = True) -> _Verdict:
        """Ask once whether it is one's turn, and take it if so.

        Raises:
            XRTError: The service could not be asked.
            _AwayError: Prefect's server could not.
        """
        with _of_prefect(), self._api() as api, ExitStack() as stack:
            view = self._with_ticket(api, who, title)
            verdict = self._from_afar(view, who)
            if verdict:
                return verdict
            lease = self._take_slot(api, view)
            if lease is None:
                return _Verdict(reason="another job is being submitted", pause_s=self._next_s)
            stack.callback(self._let_go, api, lease)
            held_until = self._now() + self._hold_s
            # Only now nobody else writes; what was read before may be outdated.
            view = self._view(api)
            note, counted = view.note, False
            if note is None or self._is_due(note):
                note, counted = self._counted(note), True
                self._sweep(api, view.line)
            now = self._now()
            active = note.active(now)
            ahead = _ahead(view.line, who)
            may = active < self._allowed and not ahead and now < held_until
            if not (may and take):
                if counted:
                    self._write(api, view.note_id, note)
                return _Verdict(may=may) if may else self._wait(ahead, note, now)
            during = note.model_copy(
                update={
                    "at_least": active + 1,
                    "settles_at": held_until + 2 * self._floor_s,
                    "lease": lease,
                    "held_until": held_until,
                }
            )
            note_id = self._write(api, view.note_id, during)
            stack.pop_all()
            return _Verdict(may=True, turn=_Turn(lease, note_id, note, during))

    def _from_afar(self, view: _View, who: str) -> _Verdict | None:
        """Tell without the slot that it is not one's turn; None where it may be."""
        ahead, now, note = _ahead(view.line, who), self._now(), view.note
        full = note is not None and note.active(now) >= self._allowed and not self._is_due(note)
        return self._wait(ahead, note, now) if ahead or full else None

    def _wait(self, ahead: int, note: _Note | None, now: float) -> _Verdict:
        """Tell why one has to wait, and how long until asking again."""
        active = note.active(now) if note else 0
        full = active >= self._allowed
        reasons = [self._full(active)] if full else []
        if ahead:
            reasons.append(f"{ahead} asked earlier" if ahead > 1 else "another asked earlier")
        due_s = note.asked_at + self._floor_s - now if note and full else 0.0
        # Whoever is first asks as soon as may be; the others look a little later whether the line has moved.
        pause_s = max(0.0, due_s) + self._next_s * (min(ahead, self._allowed) or 0.25)
        if ahead >= 2 * self._allowed:
            # So long a line does not go by in one interval.
            pause_s = max(pause_s, self._floor_s * min(_SLOWEST, ahead // self._allowed))
        return _Verdict(
            reason=", and ".join(reasons) or "another job is being submitted", full=full, pause_s=pause_s
        )

    def _full(self, active: int) -> str:
        return f"the account has {active} active job{'' if active == 1 else 's'} of {self._allowed} allowed"

    @property
    def _next_s(self) -> float:
        """How soon to ask Prefect's server again where it goes on any moment, in seconds."""
        return min(_NEXT_S, max(_LEAST_S, self._floor_s / 4))

    def _is_due(self, note: _Note | None) -> bool:
        """Whether the service may be asked; a note from the future tells nothing."""
        return note is None or not 0 <= self._now() - note.asked_at < self._floor_s

    def _counted(self, note: _Note | None, attempts: int | None = None) -> _Note:
        now, count = self._now(), self._client.count_active_jobs(attempts=attempts)
        if note is None:
            return _Note(count=count, asked_at=now)
        # Whoever submitted has let go, or has lost the slot to this one.
        return note.model_copy(update={"count": count, "asked_at": now, "lease": None, "held_until": 0.0})

    def _end(
        self, turn: _Turn | None, *, became_a_job: bool, leave: bool = False, timeout_s: float | None = None
    ) -> None:
        """Let go of the slot, and note what has become of it."""
        if turn is None:
            return
        with (
            runs.not_vital("The turn to submit could not be given back"),
            self._api(timeout_s) as api,
        ):
            try:
                now = self._now()
                # Later, the note is another's.
                if now < turn.during.held_until:
                    after = turn.before.model_copy(update={"lease": None, "held_until": 0.0})
                    if became_a_job:
                        update = {"at_least": turn.during.at_least, "settles_at": now + 2 * self._floor_s}
                        after = after.model_copy(update=update)
                    self._write(api, turn.note_id, after)
            finally:
                self._let_go(api, turn.lease)
            if leave:
                self._leave(api)

    def _leave(self, api: SyncPrefectClient) -> None:
        while self._mine:
            _drop(api, self._mine[-1].ticket)
            self._mine.pop()

    def _take_slot(self, api: SyncPrefectClient, view: _View) -> UUID | None:
        """Take the one slot; None where another has it. What nobody alive can hold is freed first."""
        lease = self._increment(api)
        if lease:
            self._taken_since = None
            return lease
        note, now = view.note, self._now()
        if note and note.lease:
            if now <= note.held_until:
                self._taken_since = None
                return None
            self._let_go(api, note.lease)
            lease = self._increment(api)
            if lease:
                return lease
        # Held by one that has not noted it yet, or by nobody: a server that was restarted has lost its leases.
        since, known = self._taken_since or (now, note)
        self._taken_since = (since, note) if known == note else (now, note)
        if now - self._taken_since[0] > _STUCK_S:
            self._taken_since = None
            free = GlobalConcurrencyLimitUpdate(active_slots=0)
            api.update_global_concurrency_limit(self._slot_name, free)
            return self._increment(api)
        return None

    def _increment(self, api: SyncPrefectClient) -> UUID | None:
        for _ in range(2):
            try:
                # Longer than it is held, so that none runs out in the hands of who has noted it.
                answer = api.increment_concurrency_slots_with_lease(
                    [self._slot_name], 1, "concurrency", max(_LEASE_S, self._hold_s + 2 * _SPARE_S)
                ).json()
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.LOCKED:
                    return None
                raise
            if answer["limits"]:
                return UUID(answer["lease_id"])
            # A limit that does not exist lets everybody through.
            with suppress(ObjectAlreadyExists):
                api.create_global_concurrency_limit(
                    GlobalConcurrencyLimitCreate(name=self._slot_name, limit=1)
                )
        raise RuntimeError(f"The concurrency limit {self._slot_name} can be neither found nor made")

    @staticmethod
    def _let_go(api: SyncPrefectClient, lease: UUID) -> None:
        api.release_concurrency_slots_with_lease(lease)

    def _view(self, api: SyncPrefectClient) -> _View:
        """Read who waits and the note, in one call for every 200."""
        found: list[Artifact] = []
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[self._line_key, self._note_key]))
        while (
            len(page := api.read_artifacts(artifact_filter=wanted, limit=_PAGE, offset=len(found))) == _PAGE
        ):
            found += page
        found += page
        found.sort(key=lambda artifact: (artifact.created or datetime.now(UTC), str(artifact.id)))
        if self._offset_s is None:
            self._learn_clock(api)
        now = self._now()
        note, note_id, line = None, None, []
        for artifact in found:
            told = artifact.metadata_ or {}
            if artifact.key == self._note_key and note_id is None:
                note_id = artifact.id
                with suppress(ValidationError):
                    note = _Note.model_validate_json(told.get(_NOTE, ""))
            elif _ASKER in told and artifact.created:
                renewed = artifact.updated or artifact.created
                waiting = Waiting(
                    ticket=artifact.id,
                    asker=told[_ASKER],
                    title=told.get(_TITLE, ""),
                    flow_run_id=UUID(told[_ROOT]) if told.get(_ROOT) else None,
                    asked_at=artifact.created,
                    lives=now - renewed.timestamp() < float(told.get(_ALIVE, 0)),
                )
                line.append(waiting)
        return _View(line, note, note_id)

    def _with_ticket(self, api: SyncPrefectClient, who: str, title: str) -> _View:
        """Read who waits, and take a ticket if there is none."""
        view = self._view(api)
        # More than one where an answer was lost.
        self._mine = [waiting for waiting in view.line if waiting.asker == who]
        if self._mine:
            return view
        mine = Waiting(UUID(int=0), who, title[:_TITLE_CHARACTERS], _root(), datetime.now(UTC), lives=True)
        ticket = ArtifactCreate(
            key=self._line_key,
            type="markdown",
            data=f"{title} is about to be submitted.",
            metadata_=_metadata(mine, self._hold_s),
        )
        made = api.create_artifact(of_this_run(ticket))
        mine = mine._replace(ticket=made.id, asked_at=made.created or mine.asked_at)
        self._mine = [mine]
        return view._replace(line=[*view.line, mine])

    def _renew(self, verdict: _Verdict) -> None:
        """Say that one still waits, and why: for those who asked later, and for people."""
        if not self._mine:
            return
        mine = self._mine[0]
        alive_s = self._hold_s if verdict.may else 3 * verdict.pause_s + _GRACE_S
        text = f"{mine.title} waits to be submitted: {verdict.reason or 'it is its turn'}."
        shown = (mine.ticket, verdict.full)
        if shown == self._shown and self._now() + 2 * verdict.pause_s + _GRACE_S / 2 < self._alive_until:
            return
        self._shown, self._alive_until = shown, self._now() + alive_s
        with _of_prefect(), self._api() as api, suppress(ObjectNotFound):
            _patch(api, mine.ticket, ArtifactUpdate(data=text, metadata_=_metadata(mine, alive_s)))

    def _sweep(self, api: SyncPrefectClient, line: Sequence[Waiting]) -> None:
        """Drop the tickets of runs that have ended or are gone."""
        doubtful = [waiting for waiting in line if not waiting.lives][:_PAGE]
        runs_of = [waiting.flow_run_id for waiting in doubtful if waiting.flow_run_id]
        if not doubtful:
            return
        wanted = FlowRunFilter(id=FlowRunFilterId(any_=runs_of))
        found = api.read_flow_runs(flow_run_filter=wanted, limit=_PAGE) if runs_of else []
        states = {run.id: run.state for run in found}
        oldest = datetime.fromtimestamp(self._now(), UTC) - _FORGOTTEN
        for waiting in doubtful:
            state = states.get(waiting.flow_run_id) if waiting.flow_run_id else None
            # One that is suspended may have to wait for weeks.
            waits = state is not None and (
                state.is_paused() or (not state.is_final() and waiting.asked_at >= oldest)
            )
            if not waits:
                _drop(api, waiting.ticket)

    def _write(self, api: SyncPrefectClient, note_id: UUID | None, note: _Note) -> UUID:
        """Write the note; it needs the slot."""
        asked_at = datetime.fromtimestamp(note.asked_at, UTC)
        active = note.active(self._now())
        shown = ArtifactUpdate(
            data=f"{active} jobs of this account are active, and {self._allowed} are allowed "
            f"(asked at {asked_at:%Y-%m-%d %H:%M:%S} UTC).",
            metadata_={_NOTE: note.model_dump_json()},
        )
        if note_id:
            with suppress(ObjectNotFound):
                _patch(api, note_id, shown)
                return note_id
        new = ArtifactCreate(
            key=self._note_key,
            type="markdown",
            description=f"The active jobs of an account at {self._base_url}.",
            **shown.model_dump(exclude_unset=True),
        )
        return api.create_artifact(new).id

    def _now(self) -> float:
        """Return the server's time, in seconds since 1970."""
        return time.time() + (self._offset_s or 0.0)

    def _learn_clock(self, api: SyncPrefectClient) -> None:
        """Learn how far the server's clock is ahead, which it tells to a second."""
        told = api.hello().headers.get("date")
        try:
            offset_s = parsedate_to_datetime(told).timestamp() - time.time() if told else 0.0
        except ValueError:
            offset_s = 0.0
        self._offset_s = offset_s if abs(offset_s) > _SKEW_S else 0.0


@contextmanager
def _of_prefect() -> Iterator[None]:
    """Tell what Prefect's server does not do from what the service does not.

    Raises:
        _AwayError: Anything but an error of the service.
    """
    try:
        yield
    except XRTError:
        raise
    except Exception as error:
        raise _AwayError(type(error).__name__) from error


def _hurry(stop: BaseException) -> float | None:
    """Return how long to wait for Prefect's server where a process is being ended, in seconds; else None."""
    return None if isinstance(stop, Exception) else _HURRY_S


def _ahead(line: Sequence[Waiting], who: str) -> int:
    """Count those before one in the queue who live."""
    ahead = 0
    for waiting in line:
        if waiting.asker == who:
            break
        ahead += waiting.lives
    return ahead


def _metadata(waiting: Waiting, alive_s: float) -> dict[str, str]:
    root = str(waiting.flow_run_id) if waiting.flow_run_id else ""
    return {_ASKER: waiting.asker, _TITLE: waiting.title, _ROOT: root, _ALIVE: f"{alive_s:.1f}"}


def _root() -> UUID | None:
    return UUID(runtime.root_flow_run_id) if runtime.id else None


def _patch(api: SyncPrefectClient, artifact_id: UUID, update: ArtifactUpdate) -> None:
    try:
        api.update_artifact(artifact_id, update)
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            raise ObjectNotFound(error) from error
        raise


def _drop(api: SyncPrefectClient, ticket: UUID) -> None:
    with suppress(ObjectNotFound):
        api.delete_artifact(ticket)
