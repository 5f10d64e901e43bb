"""The watch over a job: when to look, for how long, and what to say meanwhile.

There is one poll loop in this project, `wait_for_products`. Clock, sleep and chance are passed in,
so that its tests neither wait nor guess. It decides nothing about success: it tells how every
product ended, and judging that is the flow's.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt.errors import (
    ConfigurationError,
    DeadlineError,
    FailedLooksError,
    RefusedError,
    XRTError,
    asked_wait_s,
)
from prefect_xrt.protocol import Job, Outcome, ProductState, ProductStatus
from prefect_xrt.request import Product

__all__ = ["Pacing", "wait_for_products"]

FLOOR_S = 60.0
"""The service asks for no more than about one look a minute per job."""

LOCAL_FLOOR_S = 2.0
"""A service on this machine is one for trying things out."""

DEADLINE_S = 13 * 3600.0
"""The service kills jobs after 12 hours."""

_PATIENCE_S = 3600.0
# File systems keep times less exactly than clocks tell them.
_SAME_LOOK_S = 0.001

MAX_FAILED_LOOKS = 90
"""At the floor, an hour and a half without a word."""

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

    def note(self, job_id: int, at: float) -> None:
        """Note that a job is looked at, at a time in seconds since 1970."""

    def end(self, outcome: Outcome) -> None:
        """Note how a job has ended."""


class Pacing(BaseModel):
    """When to look again: at intervals that grow with the time since anything changed.

    A look comes after a tenth of the time that nothing has happened, not sooner than the floor and
    not later than the ceiling, so that a long build is asked seldom and its end is still noticed
    late by no more than a tenth. Jitter keeps many jobs from being asked in step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor_s: float = Field(default=FLOOR_S, gt=0, description="The shortest interval, in seconds.")
    ceiling_s: float = Field(
        default=600.0, gt=0, description="The longest interval before chance stretches it, in seconds."
    )
    growth: float = Field(default=0.1, ge=0, description="The interval as a part of the time without change.")
    jitter: float = Field(default=0.1, ge=0, le=1, description="How much an interval is stretched by chance.")

    def interval_s(self, unchanged_s: float, chance: float) -> float:
        """Return the seconds until the next look.

        Args:
            unchanged_s: How long nothing has changed, in seconds.
            chance: A random number from 0 to 1.
        """
        interval = min(max(self.growth * unchanged_s, self.floor_s), max(self.ceiling_s, self.floor_s))
        return interval * (1 + self.jitter * chance)

    def for_client(self, client: Looker) -> Pacing:
        """Return this pacing with the service's floor, which only a service on this machine may go below."""
        return self if client.is_local else self.model_copy(update={"floor_s": max(self.floor_s, FLOOR_S)})

    @classmethod
    def default(cls, client: Looker) -> Pacing:
        """Return what serves where nothing else is asked for."""
        return cls(floor_s=LOCAL_FLOOR_S) if client.is_local else cls()


def wait_for_products(
    client: Looker,
    job: Job,
    *,
    since: Outcome | None = None,
    until: Literal["all", "next"] = "all",
    pacing: Pacing | None = None,
    deadline_s: float = DEADLINE_S,
    max_failed_looks: int = MAX_FAILED_LOOKS,
    log: _Log | None = None,
    on_look: Callable[[Outcome], None] | None = None,
    looks: Looks | None = None,
    clock: Callable[[], float] = time.time,
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
            in `since`, so that its files can be fetched while the others still build.
        pacing: When to look; never more often than once a minute, except on this machine, where by default
            it is every two seconds at first.
        deadline_s: How long to wait altogether, in seconds.
        max_failed_looks: How many looks in a row may fail; a success starts the count again.
        log: Takes a line when something has changed.
        on_look: Called with what is known after each look that told something.
        looks: What is known of the looks of other processes at the same job; the next keeps its distance
            from those, too.
        clock: Gives the time, in seconds since 1970.
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
    if max_failed_looks < 1 or not deadline_s > 0:
        raise ConfigurationError("The deadline must be longer than 0 s, and at least one look may fail.")
    if since and since.job.id != job.id:
        raise ConfigurationError(f"What is known of {since.job} tells nothing of {job}.")
    watch = _Watch(
        client, job, since, (pacing or Pacing.default(client)).for_client(client), log or _logger.info, looks
    )
    give_up_at = clock() + deadline_s
    goal = min(len(watch.ended) + 1, len(job.products)) if until == "next" else len(job.products)
    while len(watch.ended) < goal or watch.unconfirmed:
        now = clock()
        left = give_up_at - now
        if watch.earliest_s(now) > left:
            sleep(max(0.0, left))
            raise DeadlineError(
                f"The deadline has passed, and {watch.pending_text} of {job} had not ended. The job lives on: "
                f"go on with it by `prefect-xrt attach {job.id} --out DIR`, or cancel it by `prefect-xrt cancel "
                f"{job.id}`.",
                job=job,
                outcome=watch.outcome,
            )
        # The last look comes at the deadline itself.
        sleep(min(watch.pause_s(now, chance()), left))
        if watch.was_overtaken():
            continue
        error = watch.look(clock())
        if watch.failed_looks >= max_failed_looks:
            raise FailedLooksError(
                f"{watch.failed_looks} looks in a row told nothing of {watch.pending_text} of {job}"
                f"{f' ({error.message})' if error else ''}. The job lives on: go on with it by "
                f"`prefect-xrt attach {job.id} --out DIR`.",
                job=job,
                outcome=watch.outcome,
            ) from error
        if on_look and watch.failed_looks == 0 and watch.outcome:
            try:
                on_look(watch.outcome)
            except Exception:
                # A display that breaks must not end the wait for a job that lives.
                _logger.warning("What the look told could not be shown.", exc_info=True)
                on_look = None
    outcome = watch.result()
    if looks and outcome.complete:
        looks.end(outcome)
    return outcome


class _Watch:
    """What is known of one job, and since when."""

    def __init__(
        self,
        client: Looker,
        job: Job,
        since: Outcome | None,
        pacing: Pacing,
        log: _Log,
        looks: Looks | None,
    ) -> None:
        self._client = client
        self._looks = looks
        self._job = job
        self._pacing = pacing
        self._log = log
        self._outcome = since
        self._looked_at: float | None = since.looked_at.timestamp() if since else None
        self._changed_at = self._looked_at
        self.was_overtaken()
        self._retry_after_s = 0.0
        self._has_looked = False
        self._sights = {p: _sight(status) for p, status in since.statuses.items()} if since else {}
        self._alarms: set[Product] = set()
        known = since.statuses if since else {}
        self.ended = tuple(p for p in job.products if p in known and known[p].ended)
        self.unconfirmed: frozenset[Product] = frozenset()
        self.failed_looks = 0

    @property
    def outcome(self) -> Outcome | None:
        return self._outcome

    def result(self) -> Outcome:
        assert self._outcome is not None  # noqa: S101 - the loop ends only after a look, or with `since`
        return self._outcome

    @property
    def pending(self) -> tuple[Product, ...]:
        return tuple(product for product in self._job.products if product not in self.ended)

    @property
    def pending_text(self) -> str:
        return ", ".join(product.value for product in self.pending)

    def was_overtaken(self) -> bool:
        """Tell whether another process has looked at the job meanwhile; the next look keeps away from that."""
        last = self._looks.last(self._job.id) if self._looks else None
        if last is None or (self._looked_at is not None and last <= self._looked_at + _SAME_LOOK_S):
            return False
        self._looked_at, self._has_looked = last, False
        return True

    def earliest_s(self, now: float) -> float:
        """Return the seconds until a look is allowed; a clock that was set does not change them much."""
        if self._looked_at is None:
            return 0.0
        floor = max(self._pacing.floor_s, self._retry_after_s)
        if self._has_looked:
            return floor
        return min(max(0.0, self._looked_at + floor - now), floor)

    def pause_s(self, now: float, chance: float) -> float:
        """Return the seconds until the next look."""
        if self._looked_at is None or self._changed_at is None:
            return self.earliest_s(now)
        interval = self._pacing.interval_s(max(0.0, now - self._changed_at), chance)
        return max(self.earliest_s(now), min(max(0.0, self._looked_at + interval - now), interval))

    def look(self, now: float) -> XRTError | None:
        """Ask once, and return what went wrong, if the job may still be asked again.

        Raises:
            XRTError: Asking again cannot help: the service has not known this job from the start.
        """
        first = self._outcome is None
        self._looked_at = now
        self._changed_at = now if self._changed_at is None else self._changed_at
        self._retry_after_s = 0.0
        self._has_looked = True
        if self._looks:
            self._looks.note(self._job.id, now)
        try:
            seen = self._client.check_product_status(self._job, self.pending, attempts=1)
        except XRTError as error:
            if first and isinstance(error, RefusedError):
                raise
            self.failed_looks += 1
            self._retry_after_s = min(asked_wait_s(error), _PATIENCE_S)
            if self.failed_looks == 1:
                self._log(f"{self._job}: this look told nothing ({error.message}) Looking again later.")
            return error
        if all(status.state is ProductState.UNKNOWN for status in seen.statuses.values()):
            self.failed_looks += 1
        else:
            if self.failed_looks:
                self._log(
                    f"{self._job}: the service tells again, after {self.failed_looks} looks that told nothing."
                )
            self.failed_looks = 0
        self._take(seen, now)
        return None

    def _take(self, seen: Outcome, now: float) -> None:
        before = dict(self._outcome.statuses) if self._outcome else {}
        statuses = {p: seen.statuses.get(p) or before[p] for p in self._job.products}
        self._outcome = seen.model_copy(update={"statuses": statuses})
        # -2 and -3 are most likely transient: only a second look in a row makes them an end.
        alarms = frozenset(p for p in seen.statuses if seen.statuses[p].state is ProductState.ALARM)
        self.unconfirmed, confirmed = alarms - self._alarms, alarms & self._alarms
        self._alarms = set(alarms)
        self.ended = tuple(
            p for p in self._job.products if statuses[p].ended and (p not in alarms or p in confirmed)
        )
        for product, status in seen.statuses.items():
            sight, known = _sight(status), self._sights.get(product)
            if sight != known:
                self._log(_describe(status, unconfirmed=product in self.unconfirmed))
            if known is None or sight[0] != known[0]:
                self._changed_at = now
            self._sights[product] = sight


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
