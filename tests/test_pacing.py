"""Hold `prefect_xrt.pacing` to account: it is a pure function of what the looks have told."""

from __future__ import annotations

import importlib.util
import math
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
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


@cache
def benchmark() -> ModuleType:
    """Give the script that makes the tables of the documentation: it simulates jobs, and policies that watch them."""
    file = Path(__file__).resolve().parent.parent / "benchmarks" / "pacing.py"
    spec = importlib.util.spec_from_file_location("pacing_benchmark", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks itself up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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


@given(HISTORIES, st.floats(0, 1), st.integers(-8, 8))
def test_scales_whatever_is_told(histories: list[list[Sighting]], chance: float, power: int) -> None:
    """Where all times are so many times as long, so is the interval."""
    scale = 2.0**power
    longer = [
        [s._replace(at=scale * s.at, running_s=s.running_s and scale * s.running_s) for s in history]
        for history in histories
    ]
    expected = scale * Pacing().interval_s(histories, chance)
    scaled = Pacing(floor_s=scale * FLOOR_S, ceiling_s=scale * Pacing().ceiling_s)
    assert scaled.interval_s(longer, chance) == pytest.approx(expected)


def test_count_of_observations() -> None:
    """A step that counts is looked at about when it will be over: those after it may take no time."""
    at_work = [Sighting(at, RUNNING, at, at / 7200, at / 7200 + 0.001, 0.5) for at in (0, 900, 1800, 2700)]
    alone = [sighting._replace(done_with_step=1.0) for sighting in at_work]
    patient = Pacing(jitter=0, ceiling_s=1e6)
    assert 400 < patient.interval_s([at_work], 0) < 900 < patient.interval_s([alone], 0)


def test_silent_last_step() -> None:
    """In a last step of which nothing is told, the end may come at any moment: the floor."""
    history = [Sighting(at, RUNNING, 3600 + at, 0.75, 1.0, 1.0) for at in (0, 600, 1200)]
    assert Pacing().interval_s([history], 1.0) == FLOOR_S


def test_repeated_steps() -> None:
    """Steps that come round again and begin anew do not make the end seem farther away."""
    parts = [(0.8, 0.85), (0.85, 0.9), (0.9, 1.0), (0.8, 0.85)]
    history = [
        Sighting(at, RUNNING, 7200 + at, *part, 1.0)
        for at, part in zip((0, 60, 120, 180), parts, strict=True)
    ]
    assert Pacing().interval_s([history], 1.0) == FLOOR_S


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


class TestTargets:
    """On simulated jobs, against the loop of the official client's documentation."""

    @pytest.mark.parametrize(
        ("kind", "looks"),
        [("BUILD", 1 / 3), ("LONG", 1 / 6), ("QUEUE", 2 / 3)],
        ids=["build", "long", "queue"],
    )
    def test_honest(self, kind: str, looks: float) -> None:
        """Few looks, and an end is noticed hardly later than by the loop, which is late by 30 s in the mean."""
        script = benchmark()
        found = script.measure(getattr(script, kind), script.OURS, 150, seed=1)
        assert found.looks <= looks
        assert found.mean_s <= 40
        assert found.late_s <= 60
        assert found.too_soon == 0

    def test_no_progress(self) -> None:
        """Without progress there are few looks, and an end is noticed late by few per cent of the whole time."""
        script = benchmark()
        found = script.measure(script.SILENT, script.OURS, 150, seed=1)
        assert (found.looks <= 0.6, found.relative <= 0.1, found.too_soon) == (True, True, 0)

    def test_misleading(self) -> None:
        """What misleads never makes more looks than the loop, and delays at most by the time of building."""
        script = benchmark()
        for kind in script.MISLEADING:
            found = script.measure(kind, script.OURS, 20, seed=1)
            assert found.looks <= 1
            assert found.late_s <= 900 * 1.1
            assert found.worst_of_running <= 1.1
            assert found.too_soon == 0

    def test_others(self) -> None:
        """The loop is what it should be: late by half a minute, and never too soon; others do come too soon."""
        script = benchmark()
        loop, *others = (script.measure(script.BUILD, name, 50, seed=1) for name in list(script.POLICIES)[1:])
        assert (loop.looks, loop.too_soon) == (1, 0)
        assert loop.mean_s == pytest.approx(30, abs=5)
        assert all(other.too_soon > 0 for other in others)

    def test_script(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """The script prints a table of each set of jobs, and writes them and the picture between its marks."""
        script = benchmark()
        page, picture = tmp_path / "pacing.md", tmp_path / "pacing.svg"
        page.write_text(f"before {script.BEGIN}stale{script.END} after", encoding="utf-8")
        monkeypatch.setattr(script, "PAGE", page)
        monkeypatch.setattr(script, "PICTURE", picture)
        monkeypatch.setattr(sys, "argv", ["pacing.py", "--quick", "--write"])
        script.main()
        printed = capsys.readouterr().out
        written = page.read_text(encoding="utf-8")
        assert printed.count("| this project |") == len(script.SETS)
        assert all(table in written for table in printed.strip().split("\n\n"))
        assert (written.startswith("before "), written.endswith(" after"), "stale" in written) == (
            True,
            True,
            False,
        )
        assert b"<svg" in picture.read_bytes()
