"""The watch over jobs: when to look at which, for how long, and what to say meanwhile.

There is one poll loop in this project, `Watch.endings`, for one job or for thousands. Clock, timer, sleep and
chance are passed in, so that its tests neither wait nor guess. It decides nothing about success: it tells how
every product ended, and judging that is the flow's.
"""

from __future__ import annotations

import heapq
import logging
import queue
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Literal, NamedTuple, Protocol, Self

from prefect_xrt.errors import (
    ConfigurationError,
    DeadlineError,
    FailedLooksError,
    RefusedError,
    XRTError,
    obeyed_wait_s,
)
from prefect_xrt.pacing import FLOOR_S, Pacing, Sighting
from prefect_xrt.protocol import Job, Outcome, ProductState, ProductStatus, choose_products
from prefect_xrt.request import Product

__all__ = ["Ending", "Watch", "look_once", "naming", "wait_for_products", "watch_jobs"]

DEADLINE_S = 13 * 3600.0
"""The service kills jobs after 12 hours."""

MAX_FAILED_LOOKS = 90
"""At the floor, an hour and a half without a word."""

CONNECTIONS = 8
"""How many looks may be on their way at once."""

Until = Literal["all", "next", "look"]
"""Until all products have ended, until the next one has, or for one look that tells, with alarms confirmed."""

_SPACING_S = 0.02
"""Between looks at different jobs of a service elsewhere: a thousand jobs are not asked for in one burst."""

_PULSE_S = 0.25
_REMEMBERED = 8
_NOW_S = 1e-6
_DOUBLINGS = 20

_Log = Callable[[str], None]
_logger = logging.getLogger(__name__)


class Looker(Protocol):
    """What the sensor needs of a client."""

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine; only then may it be asked faster."""

    def check_product_status(
        self, job: Job, products: Iterable[Product | str] | None = None, *, attempts: int | None = None
    ) -> Outcome:
        """Look at products of a job, all in one call."""


class Looks(Protocol):
    """What the sensor needs to know of the looks of other processes."""

    def last(self, job_id: int) -> float | None:
        """Return when a job was last looked at, in seconds since 1970; None if it is not known."""

    def take(self, job_id: int, at: float, known: float | None) -> bool:
        """Note that a job is looked at now; False where another has looked since the look that is known."""

    def end(self, outcome: Outcome) -> None:
        """Note how a job has ended."""

    def ended(self, job: Job) -> Outcome | None:
        """Return how a job has ended, if it is known."""


class Ending(NamedTuple):
    """How the wait for one job ended."""

    job: Job
    outcome: Outcome | None
    """The last status of every product of the job; None where no look has told anything."""
    error: Exception | None = None
    """Why the wait ended before the products did: `DeadlineError`, `FailedLooksError`, a refusal, or a fault."""

    def result(self) -> Outcome:
        """Return the outcome, or raise the error."""
        if self.error:
            raise self.error
        assert self.outcome is not None  # noqa: S101 - a wait ends well only after a look, or with `since`
        return self.outcome


class Watch:
    """Follows any number of jobs in one loop: the next looks in order of time, through a few connections.

    All jobs of a client share its pace: looks elsewhere than on this machine do not come in bursts, and a
    service that fails or asks for patience is left alone by all of them, and tried by one at a time.

    Args:
        connections: How many looks may be on their way at once. With one, and while there is but one job,
            it looks in the thread that calls; else in threads of its own.
        clock: Gives the time, in seconds since 1970.
        timer: Gives seconds that only ever grow.
        sleep: Waits, in seconds.
        chance: Gives random numbers from 0 to 1.
    """

    def __init__(
        self,
        *,
        connections: int = CONNECTIONS,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._connections = connections
        self._clock = clock
        self._timer = timer
        self._sleep = sleep
        self._chance = chance
        # A clock that is set meanwhile does not change what the looks tell of each other.
        self._epoch = clock() - timer()
        self._followed: dict[str, _Followed] = {}
        self._paces: dict[int, _Pace] = {}
        self._agenda: list[tuple[float, int, _Followed | _Pace]] = []
        self._numbers = count()
        self._over: deque[Ending] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._landed: queue.SimpleQueue[tuple[_Followed, Outcome | BaseException]] = queue.SimpleQueue()
        self._flying = 0

    def __enter__(self) -> Self:
        """Return the watch itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of its threads."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def __len__(self) -> int:
        """Return how many jobs are followed."""
        return len(self._followed)

    def follow(
        self,
        client: Looker,
        job: Job,
        *,
        since: Outcome | None = None,
        until: Until = "all",
        pacing: Pacing | None = None,
        deadline_s: float = DEADLINE_S,
        max_failed_looks: int = MAX_FAILED_LOOKS,
        log: _Log | None = None,
        on_look: Callable[[Outcome], None] | None = None,
        looks: Looks | None = None,
    ) -> None:
        """Follow a job from now on; the arguments are those of `wait_for_products`.

        Raises:
            ConfigurationError: The job is followed already, or the wait could not even look.
        """
        if max_failed_looks < 1 or not deadline_s > 0:
            raise ConfigurationError("The deadline must be longer than 0 s, and at least one look may fail.")
        if since and since.job.id != job.id:
            raise ConfigurationError(f"What is known of {since.job} tells nothing of {job}.")
        if job.url in self._followed:
            raise ConfigurationError(f"{job} is followed already.")
        pacing = (pacing or Pacing.default(client)).for_client(client)
        pace = self._paces.setdefault(id(client), _Pace(client))
        pace.floor_s = min(pace.floor_s, pacing.floor_s)
        followed = _Followed(
            client,
            job,
            since,
            until,
            pacing,
            log or _logger.info,
            looks,
            pace,
            give_up_at=self._clock() + deadline_s,
            max_failed_looks=max_failed_looks,
            on_look=on_look,
        )
        self._followed[job.url] = followed
        self._go_on(followed)

    def forget(self, job: Job) -> None:
        """Follow a job no longer; one that is not followed is no error."""
        followed = self._followed.pop(job.url, None)
        if followed:
            followed.number = -1

    def endings(self, for_s: float = float("inf")) -> Iterator[Ending]:
        """Look when it is time, and hand out each wait that has ended, as they come.

        Args:
            for_s: For how long, in seconds; else until no job is followed any more.
        """
        back_at = self._timer() + for_s
        while True:
            while self._over:
                yield self._over.popleft()
            self._land(wait_s=0.0)
            if self._over:
                continue
            left = back_at - self._timer()
            if not self._followed or left < 0:
                return
            pause = self._until_next()
            if self._flying:
                self._sleep(0)
                is_full = self._flying >= self._connections
                self._land(wait_s=_PULSE_S if is_full else max(0.0, min(pause, left, _PULSE_S)))
            elif pause > left:
                self._sleep(max(0.0, left))
                return
            else:
                self._sleep(max(0.0, pause))
            self._set_out()

    def _until_next(self) -> float:
        """Return the seconds until something is to be done."""
        while self._agenda and self._agenda[0][1] != self._agenda[0][2].number:
            heapq.heappop(self._agenda)
        return self._agenda[0][0] - self._timer() if self._agenda else float("inf")

    def _put(self, due: float, what: _Followed | _Pace) -> None:
        what.number = next(self._numbers)
        heapq.heappush(self._agenda, (due, what.number, what))

    def _plan(self, followed: _Followed) -> None:
        now, at = self._timer(), self._clock()
        left = followed.give_up_at - at
        earliest = followed.earliest_s(now, at)
        followed.is_over = earliest > left
        # The last look comes at the deadline itself.
        pause = left if followed.is_over else min(followed.pause_s(now, at, self._chance()), left)
        self._put(now + max(0.0, pause), followed)

    def _set_out(self) -> None:
        """Do what the agenda has for now, which may be one look after another."""
        while self._flying < self._connections and self._until_next() <= _NOW_S:
            _, _, what = heapq.heappop(self._agenda)
            what.number = -1
            now = self._timer()
            if isinstance(what, _Pace):
                # It may be the turn of a deadline only.
                pace, followed = what, what.next() if what.not_before <= now + _NOW_S else None
                for overdue in what.overdue(self._clock()):
                    self._give_up(overdue)
            elif what.is_over:
                self._give_up(what)
                continue
            else:
                pace, followed = what.pace, what
            if followed is what and (pace.waiting or pace.not_before > now + _NOW_S):
                pace.waiting.append(followed)
                followed.number = next(self._numbers)
            elif followed and followed.sets_out(now, self._clock()):
                pace.not_before = now + pace.spacing_s
                self._look(followed)
            elif followed:
                self._go_on(followed)
            if pace.waiting and pace.number < 0:
                self._put(min(pace.not_before, now + pace.deadline_s(self._clock())), pace)
            if self._over:
                return

    def _look(self, followed: _Followed) -> None:
        if self._flying == 0 and (self._connections == 1 or len(self._followed) == 1):
            self._take(followed, followed.ask())
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._connections, "look")
        self._flying += 1
        followed.number = next(self._numbers)
        self._pool.submit(lambda: self._landed.put((followed, followed.ask())))

    def _land(self, wait_s: float) -> None:
        """Take what looks have brought, waiting for the first."""
        while self._flying:
            try:
                followed, brought = self._landed.get(timeout=wait_s) if wait_s else self._landed.get_nowait()
            except queue.Empty:
                return
            wait_s = 0.0
            self._flying -= 1
            if followed is self._followed.get(followed.job.url):
                self._take(followed, brought)

    def _take(self, followed: _Followed, brought: Outcome | BaseException) -> None:
        if isinstance(brought, BaseException) and not isinstance(brought, XRTError):
            if not isinstance(brought, Exception):
                raise brought
            self._end(followed, brought)
            return
        now = self._timer()
        followed.pace.take(brought, now)
        ended_by = followed.take(brought, self._epoch + followed.looked_t)
        if ended_by:
            self._end(followed, ended_by)
        else:
            self._go_on(followed)

    def _go_on(self, followed: _Followed) -> None:
        if followed.is_done:
            self._end(followed, None)
        else:
            self._plan(followed)

    def _give_up(self, followed: _Followed) -> None:
        """End a wait whose deadline has passed, unless another process has seen how the job has ended."""
        self._end(followed, None if followed.ended_elsewhere() else followed.deadline_error())

    def _end(self, followed: _Followed, error: Exception | None) -> None:
        self.forget(followed.job)
        if error is None:
            followed.note_end()
        self._over.append(Ending(followed.job, followed.outcome, error))


def wait_for_products(
    client: Looker,
    job: Job,
    *,
    since: Outcome | None = None,
    until: Until = "all",
    pacing: Pacing | None = None,
    deadline_s: float = DEADLINE_S,
    max_failed_looks: int = MAX_FAILED_LOOKS,
    log: _Log | None = None,
    on_look: Callable[[Outcome], None] | None = None,
    looks: Looks | None = None,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> Outcome:
    """Look at a job until its products have ended, all of them in one call a look.

    A live job is never given up for one bad look: only the deadline, or too many looks in a row
    that tell nothing, end the wait early, and the job lives on then.

    Args:
        client: Speaks to the service.
        job: The job.
        since: What an earlier wait for the same job returned. The next look keeps its distance
            from that one, and what had ended then is not asked again.
        until: "all" returns when every product has ended; "next" as soon as one has that had not
            in `since`, so that its files can be fetched while the others still build; "look" after one look
            that told something, with -2 and -3 confirmed by a second.
        pacing: When to look; never more often than once a minute, except on this machine, where by default
            it is every two seconds at first.
        deadline_s: How long to wait altogether, in seconds.
        max_failed_looks: How many looks in a row may fail; a success starts the count again.
        log: Takes a line when something has changed.
        on_look: Called with what is known after each look that told something.
        looks: What is known of the looks of other processes at the same job; the next keeps its distance
            from those, too.
        clock: Gives the time, in seconds since 1970.
        timer: Gives seconds that only ever grow.
        sleep: Waits, in seconds.
        chance: Gives random numbers from 0 to 1.

    Returns:
        The last status of every product of the job.

    Raises:
        DeadlineError: The deadline has passed.
        FailedLooksError: Too many looks in a row failed.
        JobNotFoundError: The job does not exist, or is someone else's.
        UnknownUserError: The service does not know the registered address.
        RefusedError: The service refuses to tell for another reason.
    """
    with Watch(connections=1, clock=clock, timer=timer, sleep=sleep, chance=chance) as watch:
        watch.follow(
            client,
            job,
            since=since,
            until=until,
            pacing=pacing,
            deadline_s=deadline_s,
            max_failed_looks=max_failed_looks,
            log=log,
            on_look=on_look,
            looks=looks,
        )
        (ending,) = watch.endings()
    return ending.result()


def watch_jobs(
    client: Looker,
    jobs: Iterable[Job],
    *,
    pacing: Pacing | None = None,
    deadline_s: float = DEADLINE_S,
    max_failed_looks: int = MAX_FAILED_LOOKS,
    log: _Log | None = None,
    on_look: Callable[[Outcome], None] | None = None,
    looks: Looks | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Ending]:
    """Look at many jobs in one loop, and hand out each as soon as all its products have ended.

    What goes wrong with one of them is in its ending, and stops none of the others. The arguments are those of
    `wait_for_products`; the time and the number of looks are counted for each job.
    """
    say = log or _logger.info
    with Watch(sleep=sleep) as watch:
        for job in jobs:
            watch.follow(
                client,
                job,
                pacing=pacing,
                deadline_s=deadline_s,
                max_failed_looks=max_failed_looks,
                log=naming(job, say),
                on_look=on_look,
                looks=looks,
            )
        yield from watch.endings()


def look_once(
    client: Looker,
    job: Job,
    products: Iterable[Product | str] | None = None,
    *,
    looks: Looks,
    log: _Log | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Look at products of a job once, as soon as the service's pace allows.

    At a job that is known to have ended there is nothing more to see, and the service is not asked.

    Args:
        client: Speaks to the service.
        job: The job.
        products: Long names; None for all products of the job.
        looks: What is known of the looks of other processes at the same job.
        log: Takes a line where it has to wait.
        sleep: Waits, in seconds.

    Raises:
        JobNotFoundError: The job does not exist, or is someone else's.
        ServiceUnreachableError: The service did not answer; it may be asked again a minute later.
    """
    chosen = choose_products(job, products)
    ended = looks.ended(job)
    if ended:
        return ended.model_copy(update={"statuses": {p: ended.statuses[p] for p in chosen}})
    floor_s = 0.0 if client.is_local else FLOOR_S
    while True:
        last = looks.last(job.id)
        wait_s = 0.0 if last is None else min(last + floor_s - time.time(), floor_s)
        if wait_s > 0:
            (log or _logger.info)(
                f"{job} was looked at just now; waiting {wait_s:.0f} s, since the service asks for a look a minute."
            )
            sleep(wait_s)
        if looks.take(job.id, time.time(), last):
            return client.check_product_status(job, chosen, attempts=1)


def naming(job: Job, say: _Log) -> _Log:
    """Return a log that names the job in every line: among the lines of many, each has to."""
    return lambda line: say(line if line.startswith(str(job)) else f"{job}: {line}")


class _Pace:
    """The pace that all jobs of a client keep together."""

    def __init__(self, client: Looker) -> None:
        # It is known by the client's identity, so the client has to live as long.
        self.client = client
        self.waiting: deque[_Followed] = deque()
        self.not_before = float("-inf")
        self.number = -1
        self._failures = 0
        self._spacing_s = 0.0 if client.is_local else _SPACING_S
        self.floor_s = float("inf")

    @property
    def spacing_s(self) -> float:
        """Seconds between two looks; a service that fails is tried by one job at a time, ever more seldom."""
        if not self._failures:
            return self._spacing_s
        return min(self.floor_s, _SPACING_S * 2.0 ** min(self._failures, _DOUBLINGS))

    def next(self) -> _Followed | None:
        """Return whose turn it is; those that are followed no more lose theirs."""
        while self.waiting:
            followed = self.waiting.popleft()
            if followed.number >= 0:
                return followed
        return None

    def _held_up(self) -> list[_Followed]:
        """Return who waits for its turn at a service that fails; those that are followed no more do not."""
        return [followed for followed in self.waiting if followed.number >= 0] if self._failures else []

    def overdue(self, at: float) -> list[_Followed]:
        """Return whose deadline has passed meanwhile."""
        return [followed for followed in self._held_up() if followed.give_up_at <= at]

    def deadline_s(self, at: float) -> float:
        """Return the seconds until the first of those deadlines."""
        return min((followed.give_up_at for followed in self._held_up()), default=float("inf")) - at

    def take(self, brought: Outcome | BaseException, now: float) -> None:
        """Learn from how a look went."""
        if not isinstance(brought, XRTError) or isinstance(brought, RefusedError):
            self._failures = 0
            return
        self._failures += 1
        patience_s = max(self.spacing_s, obeyed_wait_s(brought))
        self.not_before = max(self.not_before, now + patience_s)


class _Followed:
    """What is known of one job, and since when."""

    def __init__(
        self,
        client: Looker,
        job: Job,
        since: Outcome | None,
        until: Until,
        pacing: Pacing,
        log: _Log,
        looks: Looks | None,
        pace: _Pace,
        *,
        give_up_at: float,
        max_failed_looks: int,
        on_look: Callable[[Outcome], None] | None,
    ) -> None:
        self.job = job
        self.pace = pace
        self.outcome = since
        self.give_up_at = give_up_at
        self.is_over = False
        self.number = -1
        self.looked_t = float("-inf")
        self._client = client
        self._pacing = pacing
        self._log = log
        self._looks = looks
        self._max_failed_looks = max_failed_looks
        self._on_look = on_look
        self._looked_at: float | None = since.looked_at.timestamp() if since else None
        self._has_looked = False
        self._is_overtaken = False
        self._retry_after_s = 0.0
        self._failed_looks = 0
        known = since.statuses if since else {}
        self._sights = {product: _sight(status) for product, status in known.items()}
        self._histories: dict[Product, list[Sighting]] = {}
        self._alarms: frozenset[Product] = frozenset()
        self._unconfirmed: frozenset[Product] = frozenset()
        self._ended = tuple(p for p in job.products if p in known and known[p].ended)
        next_end = min(len(self._ended) + 1, len(job.products))
        self._goal = {"all": len(job.products), "next": next_end, "look": 0}[until]
        if since:
            self._remember(since, since.looked_at.timestamp())
        self._keep_away()

    @property
    def is_done(self) -> bool:
        has_been_told = self.outcome is not None and not self._failed_looks
        return has_been_told and len(self._ended) >= self._goal and not self._unconfirmed

    @property
    def _pending(self) -> tuple[Product, ...]:
        return tuple(product for product in self.job.products if product not in self._ended)

    @property
    def _pending_text(self) -> str:
        return ", ".join(product.value for product in self._pending)

    def _keep_away(self) -> None:
        """Let the next look keep away from that of another process, if one has looked meanwhile."""
        last = self._looks.last(self.job.id) if self._looks else None
        if last is not None and (self._looked_at is None or last > self._looked_at):
            self._looked_at, self._has_looked = last, False

    def earliest_s(self, now: float, at: float) -> float:
        """Return the seconds until a look is allowed; a clock that was set does not change them much."""
        return self._left_s(max(self._pacing.floor_s, self._retry_after_s), now, at)

    def pause_s(self, now: float, at: float, chance: float) -> float:
        """Return the seconds until the next look."""
        interval = 0.0
        # What a look that told nothing should have told may be that all is over; and so may that of another process,
        # which keeps this one from ever looking if it has the shorter interval.
        if not self._failed_looks and not self._is_overtaken:
            histories = [self._histories.get(product, ()) for product in self._pending]
            interval = self._pacing.interval_s(histories, chance)
        return self._left_s(max(interval, self._pacing.floor_s, self._retry_after_s), now, at)

    def _left_s(self, interval: float, now: float, at: float) -> float:
        if self._looked_at is None:
            return 0.0
        if self._has_looked:
            return max(0.0, self.looked_t + interval - now)
        return min(max(0.0, self._looked_at + interval - at), interval)

    def sets_out(self, now: float, at: float) -> bool:
        """Note that it is looked at now; False where another process has done so meanwhile."""
        if self._looks and not self._looks.take(self.job.id, at, self._looked_at):
            self._keep_away()
            self._is_overtaken = True
            self.ended_elsewhere()
            return False
        self.looked_t, self._looked_at, self._has_looked = now, at, True
        self._is_overtaken = False
        self._retry_after_s = 0.0
        return True

    def ended_elsewhere(self) -> bool:
        """Learn how the job has ended from another process that has seen it; False where none has."""
        ended = self._looks.ended(self.job) if self._looks else None
        if ended:
            self.outcome, self._ended = ended.model_copy(update={"job": self.job}), self.job.products
            self._unconfirmed, self._failed_looks = frozenset(), 0
        return ended is not None

    def ask(self) -> Outcome | BaseException:
        """Ask once; whatever goes wrong is brought back."""
        try:
            return self._client.check_product_status(self.job, self._pending, attempts=1)
        except BaseException as error:
            return error

    def take(self, brought: Outcome | BaseException, at: float) -> XRTError | None:
        """Take what a look has brought, and return what ends the wait, if anything does."""
        trouble: XRTError | None = None
        if isinstance(brought, XRTError):
            if self.outcome is None and isinstance(brought, RefusedError):
                # Asking again cannot help: the service has not known this job from the start.
                return brought
            trouble = brought
            self._failed_looks += 1
            self._retry_after_s = obeyed_wait_s(brought)
            if self._failed_looks == 1:
                self._log(f"{self.job}: this look told nothing ({brought.message}) Looking again later.")
        elif isinstance(brought, Outcome):
            self._see(brought, at)
        if self._failed_looks >= self._max_failed_looks:
            error = FailedLooksError(
                f"{self._failed_looks} looks in a row told nothing of {self._pending_text} of {self.job}"
                f"{f' ({trouble.message})' if trouble else ''}. The job lives on: go on with it by "
                f"`prefect-xrt attach {self.job.id} --out DIR`.",
                job=self.job,
                outcome=self.outcome,
            )
            error.__cause__ = trouble
            return error
        if self._on_look and self._failed_looks == 0 and self.outcome:
            try:
                self._on_look(self.outcome)
            except Exception:
                # A display that breaks must not end the wait for a job that lives.
                _logger.warning("What the look told could not be shown.", exc_info=True)
                self._on_look = None
        return None

    def _see(self, seen: Outcome, at: float) -> None:
        if all(status.state is ProductState.UNKNOWN for status in seen.statuses.values()):
            self._failed_looks += 1
        else:
            if self._failed_looks:
                self._log(
                    f"{self.job}: the service tells again, after {self._failed_looks} looks that told nothing."
                )
            self._failed_looks = 0
        before = dict(self.outcome.statuses) if self.outcome else {}
        statuses = {p: seen.statuses.get(p) or before[p] for p in self.job.products}
        self.outcome = seen.model_copy(update={"statuses": statuses})
        # -2 and -3 are most likely transient: only a second look in a row makes them an end.
        alarms = frozenset(p for p in seen.statuses if seen.statuses[p].state is ProductState.ALARM)
        self._unconfirmed, confirmed = alarms - self._alarms, alarms & self._alarms
        self._alarms = alarms
        self._ended = tuple(
            p for p in self.job.products if statuses[p].ended and (p not in alarms or p in confirmed)
        )
        for product, status in seen.statuses.items():
            sight = _sight(status)
            if sight != self._sights.get(product):
                self._log(_describe(status, unconfirmed=product in self._unconfirmed))
            self._sights[product] = sight
        self._remember(seen, at)

    def _remember(self, seen: Outcome, at: float) -> None:
        """Keep of each product when its state was first seen, and the last looks since: what pacing goes by."""
        for product, status in seen.statuses.items():
            sighting = Sighting.of(status, at)
            history = self._histories.setdefault(product, [])
            if product in self._ended or (history and history[0].state is not sighting.state):
                history.clear()
            history.append(sighting)
            if len(history) > 1 + _REMEMBERED:
                del history[1]

    def deadline_error(self) -> DeadlineError:
        """Return what tells that the deadline has passed."""
        return DeadlineError(
            f"The deadline has passed, and {self._pending_text} of {self.job} had not ended. The job lives on: "
            f"go on with it by `prefect-xrt attach {self.job.id} --out DIR`, or cancel it by `prefect-xrt cancel "
            f"{self.job.id}`.",
            job=self.job,
            outcome=self.outcome,
        )

    def note_end(self) -> None:
        """Let other processes know how the job has ended."""
        if self._looks and self.outcome and self.outcome.complete:
            self._looks.end(self.outcome)


def _sight(status: ProductStatus) -> tuple[int | None, str, str | None]:
    """Return what the log speaks about when it changes: a step does, its count of observations does not."""
    return status.code, status.text, status.active_step


def _describe(status: ProductStatus, *, unconfirmed: bool) -> str:
    line = f"{status.product.value}: {status.state.value}"
    if status.state is ProductState.UNKNOWN or status.ended:
        line += f" ({status.code}, {status.text})"
    if status.active_step:
        line += f", {status.active_step}"
        if status.active_detail:
            line += f" ({status.active_detail})"
    if status.running_time and not status.ended:
        line += f", running for {status.running_time}"
    return line + (", which should never happen: looking once more" if unconfirmed else "")
