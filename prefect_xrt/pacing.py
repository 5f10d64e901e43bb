"""When to look again at a job that the service builds, judged from what the looks so far have told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt.protocol import ProductState

__all__ = ["FLOOR_S", "LOCAL_FLOOR_S", "Pacing", "Sighting"]

FLOOR_S = 60.0
"""The service asks for no more than about one look a minute per job."""

LOCAL_FLOOR_S = 2.0
"""A service on this machine is one for trying things out."""


class Host(Protocol):
    """What a pacing needs to know of a client."""

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine; only then may it be asked faster."""


class Sighting(NamedTuple):
    """What one look told of one product."""

    at: float
    """When it was, in seconds since 1970."""
    state: ProductState
    running_s: float | None
    """Seconds since its execution began, as the service told; None where it told nothing."""
    done: float | None
    """Which part is done, 0 to 1, as the service told; None where it told nothing."""


class Pacing(BaseModel):
    """When to look again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    floor_s: float = Field(default=FLOOR_S, gt=0, description="The shortest interval, in seconds.")
    ceiling_s: float = Field(
        default=600.0, gt=0, description="The longest interval before chance stretches it, in seconds."
    )
    growth: float = Field(default=0.1, ge=0, description="The interval as a part of the time without change.")
    jitter: float = Field(default=0.1, ge=0, le=1, description="How much an interval is stretched by chance.")

    def interval_s(self, histories: Iterable[Sequence[Sighting]], chance: float) -> float:
        """Return the seconds from the last look to the next.

        Args:
            histories: For every product that has not ended, what the looks have told of it, oldest first: the
                sighting at which its present state was first seen, then the last few since.
            chance: A random number from 0 to 1.
        """
        unchanged_s = min((history[-1].at - history[0].at for history in histories if history), default=0.0)
        interval = min(max(self.growth * unchanged_s, self.floor_s), max(self.ceiling_s, self.floor_s))
        return interval * (1 + self.jitter * chance)

    def for_client(self, client: Host) -> Pacing:
        """Return this pacing with the service's floor, which only a service on this machine may go below."""
        return self if client.is_local else self.model_copy(update={"floor_s": max(self.floor_s, FLOOR_S)})

    @classmethod
    def default(cls, client: Host) -> Pacing:
        """Return what serves where nothing else is asked for."""
        return cls(floor_s=LOCAL_FLOOR_S) if client.is_local else cls()
