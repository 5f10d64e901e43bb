"""When to look again at a job that the service builds, judged from what the looks so far have told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, TypeGuard

from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt.protocol import ProductState, ProductStatus

__all__ = ["FLOOR_S", "LOCAL_FLOOR_S", "Pacing", "Sighting"]

FLOOR_S = 60.0
"""The service asks for no more than about one look a minute per job."""

LOCAL_FLOOR_S = 2.0
"""A service on this machine is one for trying things out."""

# The ceiling, and the shortest and the longest interval in the queue, in floors.
_CEILING, _CALM, _CALMEST = 15, 1.25, 3
# What seems to remain is a guess: this part of it can be waited for.
_SHARE = 0.6
# The pace of late is that since so many looks ago.
_OF_LATE = 3
# A step of which nothing is told is taken to have so many times as long to go as it has been at work.
_STILL, _STILL_AFTER_COUNT = 3, 1.5
# So many floors before a step seems to be over, its end is not approached any further.
_NEAR = 2


class Host(Protocol):
    """What a pacing needs to know of a client."""

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine; only then may it be asked faster."""


class Sighting(NamedTuple):
    """What one look told of one product; parts are of the whole, from 0 to 1."""

    at: float
    """When it was, in seconds since 1970."""
    state: ProductState
    running_s: float | None
    """Seconds since its execution began; None where the service told nothing."""
    done: float | None
    """Which part is done; None where the service told nothing."""
    done_soon: float | None = None
    """Which part is done as soon as the innermost step at work is; None: no more than `done`."""
    done_with_step: float | None = None
    """Which part is done as soon as the outermost step at work is; None: all."""

    @classmethod
    def of(cls, status: ProductStatus, at: float) -> Sighting:
        """Return what a status tells that was asked for at a time, in seconds since 1970."""
        return cls(at, status.state, status.running_s, status.done, status.done_soon, status.done_with_step)


class Pacing(BaseModel):
    """When to look again, judged from what the looks so far have told.

    In the queue a job is looked at calmly. While it is built, the wait is a part of what seems to remain by the
    steps that the service tells, so that looks become frequent only near the end; where it tells none, the wait is a
    part of the time that it has been running. A wait is never shorter than the floor, and never longer than the
    ceiling or than the product has been running, whatever the service tells.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor_s: float = Field(default=FLOOR_S, gt=0, description="The shortest interval, in seconds.")
    ceiling_s: float = Field(
        default=_CEILING * FLOOR_S,
        gt=0,
        description="The longest interval before chance stretches it, in seconds.",
    )
    growth: float = Field(
        default=0.1, ge=0, description="The interval as a part of the time without any progress told."
    )
    jitter: float = Field(
        default=0.1, ge=0, le=1, description="How much an interval above the floor is stretched by chance."
    )

    def interval_s(self, histories: Iterable[Sequence[Sighting]], chance: float) -> float:
        """Return the seconds from the last look to the next.

        Args:
            histories: For every product that has not ended, what the looks have told of it, oldest first: the
                sighting at which its present state was first seen, then the last few since.
            chance: A random number from 0 to 1.
        """
        wait_s = min((self._wait_s(history) for history in histories if history), default=0.0)
        if min(wait_s, self.ceiling_s) <= self.floor_s:
            return self.floor_s
        # Many jobs are not asked in step. At the floor they may be: there, chance would only make the end late.
        return min(wait_s, self.ceiling_s) * (1 + self.jitter * chance)

    def _wait_s(self, history: Sequence[Sighting]) -> float:
        """Return how long one product can be left alone, in seconds, with no regard to floor and ceiling."""
        last = history[-1]
        seen_s = last.at - history[0].at
        if last.state is not ProductState.RUNNING:
            return min(max(self.growth * seen_s, _CALM * self.floor_s), _CALMEST * self.floor_s)
        running_s = last.running_s
        if running_s is None or not 0 <= running_s < math.inf:
            running_s = seen_s
        told = [_read(sighting) for sighting in history]
        steps = [step for step in told if step]
        if told[-1] is None or not steps[-1].soon:
            return self.growth * running_s
        left_s = min(
            _left_s(steps, running_s), max(_left_of_step_s(steps, running_s), _NEAR * self.floor_s / _SHARE)
        )
        return min(_SHARE * left_s, running_s)

    def for_client(self, client: Host) -> Pacing:
        """Return this pacing with the service's floor, which only a service on this machine may go below."""
        return self if client.is_local else self.model_copy(update={"floor_s": max(self.floor_s, FLOOR_S)})

    @classmethod
    def default(cls, client: Host) -> Pacing:
        """Return what serves where nothing else is asked for."""
        return cls(floor_s=LOCAL_FLOOR_S, ceiling_s=_CEILING * LOCAL_FLOOR_S) if client.is_local else cls()


class _Steps(NamedTuple):
    """A sighting that tells progress, made sense of: done ≤ soon ≤ step, all from 0 to 1."""

    at: float
    done: float
    soon: float
    step: float


def _read(sighting: Sighting) -> _Steps | None:
    done, soon, step = sighting.done, sighting.done_soon, sighting.done_with_step
    if not _is_part(done):
        return None
    soon = max(done, soon) if _is_part(soon) else done
    return _Steps(sighting.at, done, soon, max(soon, step) if _is_part(step) else 1.0)


def _is_part(value: float | None) -> TypeGuard[float]:
    return value is not None and 0 <= value <= 1


def _left_s(steps: Sequence[_Steps], running_s: float) -> float:
    """Return how soon the product could be ready, in seconds, by its pace altogether and by that of late.

    A step of which nothing is told while it is at work could be over at any moment, and counts as done. What goes
    back, as steps do that are repeated, counts as far as it has ever been.
    """
    last = steps[-1]
    soon = max(step.soon for step in steps)
    left_s = running_s * (1 - soon) / soon
    before = steps[-1 - _OF_LATE :][0]
    if last.done > before.done:
        left_s = min(left_s, (last.at - before.at) * (1 - soon) / (last.done - before.done))
    return left_s


def _left_of_step_s(steps: Sequence[_Steps], running_s: float) -> float:
    """Return how soon the step at work could be over, in seconds: nobody knows how short those after it are."""
    last = steps[-1]
    begun = next(step for step in steps if step.step == last.step)
    if last.done > begun.done:
        return (last.at - begun.at) * (last.step - last.soon) / (last.done - begun.done)
    before = next((step for step in reversed(steps) if step.done != last.done), None)
    if before is None:
        return _STILL * running_s
    # After a step that counted, which is one of much work, the rest may be a trifle.
    counted = before.soon < before.step
    return (_STILL_AFTER_COUNT if counted else _STILL) * (last.at - before.at)
