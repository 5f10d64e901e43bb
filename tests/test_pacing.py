"""Hold `prefect_xrt.pacing` to account: it is a pure function of what the looks have told."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefect_xrt.pacing import FLOOR_S, LOCAL_FLOOR_S, Pacing, Sighting
from prefect_xrt.protocol import ProductState

RUNNING, QUEUED = ProductState.RUNNING, ProductState.QUEUED
PARTS = st.none() | st.floats(allow_nan=True, allow_infinity=True)
SIGHTINGS = st.builds(
    Sighting,
    at=st.floats(0, 1e7),
    state=st.sampled_from([*ProductState]),
    running_s=PARTS,
    done=PARTS,
    done_soon=PARTS,
    done_with_step=PARTS,
)
HISTORIES = st.lists(st.lists(SIGHTINGS, max_size=9), max_size=3)


class Somewhere:
    """A client of a service elsewhere, or of one on this machine."""

    def __init__(self, *, is_local: bool) -> None:
        self.is_local = is_local


def steady(remaining: float, *, running_s: float = 3600.0) -> list[Sighting]:
    """Return looks at a product that goes on evenly, of which a part remains."""
    rate = (1 - remaining) / running_s
    ages = [running_s - 180, running_s - 120, running_s - 60, running_s]
    return [Sighting(age, RUNNING, age, rate * age) for age in ages]


@given(
    HISTORIES, st.floats(0, 1), st.floats(1e-3, 1e4), st.floats(1e-3, 1e4), st.floats(0, 2), st.floats(0, 1)
)
def test_bounds(
    histories: list[list[Sighting]], chance: float, floor: float, ceiling: float, growth: float, jitter: float
) -> None:
    """Whatever the service tells, an interval is neither below the floor nor above the ceiling and its jitter."""
    pacing = Pacing(floor_s=floor, ceiling_s=ceiling, growth=growth, jitter=jitter)
    assert floor <= pacing.interval_s(histories, chance) <= max(floor, ceiling * (1 + jitter))


def test_nothing_known() -> None:
    """Of what nothing is known, the floor is kept."""
    assert Pacing().interval_s([], 1.0) == Pacing().interval_s([[]], 1.0) == FLOOR_S


def test_queue() -> None:
    """In the queue it is calm, and calmer the longer that lasts, yet not so calm as to miss a build."""
    intervals = [
        Pacing(jitter=0).interval_s([[Sighting(0, QUEUED, None, None), Sighting(at, QUEUED, None, None)]], 0)
        for at in (0, 1200, 1e6)
    ]
    assert intervals == [75, 120, 180]


def test_progress() -> None:
    """The more remains of an even build, the longer is the interval; near its end, it is the floor."""
    intervals = [Pacing(jitter=0).interval_s([steady(remaining)], 0) for remaining in (0.4, 0.2, 0.1, 0.01)]
    assert intervals == sorted(intervals, reverse=True)
    assert (intervals[0] > 5 * FLOOR_S, intervals[-1]) == (True, FLOOR_S)


def test_no_progress() -> None:
    """Where none is told, it is a part of the time that the product has been running."""
    history = [Sighting(at, RUNNING, at, None) for at in (0, 3600)]
    assert Pacing(jitter=0).interval_s([history], 0) == pytest.approx(360)


def test_misleading() -> None:
    """Progress that promises much more time than has gone by is trusted for no longer than that."""
    history = [Sighting(0, RUNNING, 0, 0.0), Sighting(300, RUNNING, 300, 0.001)]
    assert Pacing(jitter=0).interval_s([history], 0) <= 300


def test_soonest() -> None:
    """Of several products, the one that could be ready first counts."""
    late, soon = steady(0.5), steady(0.01)
    assert Pacing().interval_s([late, soon], 0) == FLOOR_S


def test_scales() -> None:
    """On this machine all is faster, in the same proportions."""
    pacing, fast = Pacing(jitter=0), Pacing.default(Somewhere(is_local=True)).model_copy(update={"jitter": 0})
    scale = LOCAL_FLOOR_S / FLOOR_S
    for remaining in (0.5, 0.3, 0.1, 0.01):
        slow = steady(remaining)
        quick = [Sighting(s.at * scale, s.state, (s.running_s or 0) * scale, s.done) for s in slow]
        assert fast.interval_s([quick], 0) == pytest.approx(scale * pacing.interval_s([slow], 0))


@pytest.mark.parametrize("floor", [1e-9, 1, 59.9, 60, 300])
def test_floor(floor: float) -> None:
    """No pacing asks a service elsewhere more often than once a minute; one on this machine may be asked so."""
    pacing = Pacing(floor_s=floor, ceiling_s=1)
    assert pacing.for_client(Somewhere(is_local=False)).floor_s == max(floor, 60)
    assert pacing.for_client(Somewhere(is_local=True)) == pacing


@pytest.mark.parametrize(
    "wrong",
    [
        {"floor_s": 0},
        {"floor_s": -1},
        {"floor_s": math.nan},
        {"ceiling_s": 0},
        {"growth": -1},
        {"jitter": 2},
    ],
)
def test_impossible(wrong: dict[str, float]) -> None:
    """A pacing that makes no sense cannot be built."""
    with pytest.raises(ValidationError):
        Pacing(**cast(Any, wrong))
