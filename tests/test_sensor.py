"""Hold `prefect_xrt.sensor` to account, in simulated time."""

from __future__ import annotations

import cProfile
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_xrt import protocol
from prefect_xrt.client import XRTClient
from prefect_xrt.emulator import Emulator, Fault, Scenario, Step, Timeline
from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    DeadlineError,
    FailedLooksError,
    ForeignURLError,
    JobNotFoundError,
    RefusedError,
    ServiceUnreachableError,
    UnknownUserError,
    WaitError,
    XRTError,
)
from prefect_xrt.pacing import FLOOR_S, Pacing
from prefect_xrt.protocol import Job, Outcome
from prefect_xrt.request import Image, Product, ProductRequest
from prefect_xrt.sensor import DEADLINE_S, Watch, look_once, wait_for_products, watch_jobs
from prefect_xrt.state import LocalLooks

LC, SPEC, IMAGE = Product.LIGHT_CURVE, Product.SPECTRUM, Product.IMAGE
LEFT_OUT = object()
START = 1_700_000_000.0
ENDED = {4, -1, -4}


class World:
    """A simulated service elsewhere, its job, and a clock that advances only in sleep.

    Args:
        looks: For each look in turn what is shown: a code per product, or an error; the last is shown for ever.
        is_local: Whether the service is on this machine.
    """

    def __init__(self, *looks: Mapping[Product, Any] | XRTError, is_local: bool = False) -> None:
        self.looks = list(looks)
        self.is_local = is_local
        products = dict.fromkeys(product for look in looks if isinstance(look, Mapping) for product in look)
        self.job = Job(id=801, url="https://example.org/x", name="GRB", products=tuple(products) or (IMAGE,))
        self.time = START
        self.wall_offset = 0.0
        self.looked_at: list[float] = []
        self.asked: list[tuple[Product, ...]] = []
        self.sleeps: list[float] = []
        self.lines: list[str] = []
        self.chances = 0.5
        self.on_sleep: Callable[[], None] = lambda: None

    def check_product_status(
        self, job: Job, products: Sequence[Product], *, attempts: int | None = None
    ) -> Outcome:
        """Take the place of the client's method, by the protocol's own decoding."""
        assert (job, attempts) == (self.job, 1)
        self.looked_at.append(self.time)
        self.asked.append(tuple(products))
        shown = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(shown, XRTError):
            raise shown
        answer = {
            protocol.SHORT_NAMES[product]: self.entry(code)
            for product, code in shown.items()
            if product in products and code is not LEFT_OUT
        }
        return protocol.decode_status(
            cast(Any, answer), job, products, datetime.fromtimestamp(self.clock(), UTC)
        )

    @staticmethod
    def entry(code: object) -> object:
        """Make what the service says of one product; a tuple is a code with its progress."""
        code, progress = code if isinstance(code, tuple) else (code, {"GotProgress": 0})
        return {"statusCode": code, "statusText": f"text {code}", "progress": progress}

    def clock(self) -> float:
        """Take the place of `time.time`."""
        return self.time + self.wall_offset

    def sleep(self, seconds: float) -> None:
        """Take the place of `time.sleep`."""
        assert seconds >= 0
        self.sleeps.append(seconds)
        self.time += seconds
        self.on_sleep()

    def wait(self, **options: Any) -> Outcome:
        """Wait for the job."""
        given_ = {
            "clock": self.clock,
            "timer": lambda: self.time,
            "sleep": self.sleep,
            "chance": lambda: self.chances,
            "log": self.lines.append,
            **options,
        }
        return wait_for_products(cast(XRTClient, self), self.job, **given_)

    @property
    def intervals(self) -> list[float]:
        """How long the service was left alone between two looks."""
        return [b - a for a, b in zip(self.looked_at, self.looked_at[1:], strict=False)]


def codes(outcome: Outcome | None) -> dict[Product, int | None]:
    """Return the codes of an outcome."""
    assert outcome is not None
    return {product: status.code for product, status in outcome.statuses.items()}


def away(**extras: Any) -> ServiceUnreachableError:
    """Make the error of a service that is away."""
    return ServiceUnreachableError("HTTP 503.", status=503, **extras)


class TestWait:
    def test_to_the_end(self) -> None:
        """The first look is at once, one call asks for all that is pending, and ended products are not asked again."""
        world = World({LC: 1, SPEC: 3, IMAGE: 4}, {LC: 3, SPEC: -1, IMAGE: 1}, {LC: 4, SPEC: 3, IMAGE: 3})
        outcome = world.wait()
        assert codes(outcome) == {LC: 4, SPEC: -1, IMAGE: 4}
        assert world.asked == [(LC, SPEC, IMAGE), (LC, SPEC), (LC,)]
        assert world.sleeps[0] == 0
        assert all(60 <= interval <= 66 for interval in world.intervals)

    def test_floor_against_wishes(self) -> None:
        """A service elsewhere is asked once a minute whatever pacing is passed."""
        world = World(*[{IMAGE: 3}] * 5, {IMAGE: 4})
        world.wait(pacing=Pacing(floor_s=0.01, ceiling_s=0.01, growth=0, jitter=0))
        assert world.intervals == [60.0] * 5

    def test_fast_at_home(self) -> None:
        """A service on this machine may be asked faster."""
        world = World(*[{IMAGE: 3}] * 5, {IMAGE: 4}, is_local=True)
        world.wait(pacing=Pacing(floor_s=0.25, ceiling_s=1, growth=0, jitter=0))
        assert world.intervals == [0.25] * 5

    def test_backs_off(self) -> None:
        """A job of which nothing changes is asked ever less, down to the ceiling; a change speeds it up again."""
        world = World(*[{IMAGE: 2}] * 60, *[{IMAGE: 3}] * 3, {IMAGE: 4})
        world.chances = 0.0
        world.wait(deadline_s=1e9)
        slow, fast = world.intervals[:60], world.intervals[60:]
        assert slow == sorted(slow)
        assert slow[0] < slow[-1]
        assert fast[0] < slow[-1]

    @pytest.mark.parametrize("code", [None, -10, 5, 0, 6, 99, -99, "3", "soon", "", 4.5, True, LEFT_OUT])
    def test_never_an_end(self, code: object) -> None:
        """A status that is no known end is waited out, whatever it is."""
        world = World(*[{LC: 3, IMAGE: code}] * 3, {LC: 4, IMAGE: 4})
        assert codes(world.wait()) == {LC: 4, IMAGE: 4}
        assert len(world.looked_at) == 4

    @pytest.mark.parametrize("code", ["4", "-1", 4.0, " -4 "])
    def test_ends_as_text(self, code: object) -> None:
        """A known end that comes as text is one."""
        world = World({IMAGE: code})
        assert world.wait().complete is True

    def test_long_forgotten(self) -> None:
        """A product of which the answers never speak is given up as such when it is the last, by name."""
        world = World({LC: 3, IMAGE: LEFT_OUT}, {LC: 4, IMAGE: LEFT_OUT})
        with pytest.raises(
            FailedLooksError, match=r"5 looks in a row told nothing of Image of job 801 \(GRB\)\."
        ) as caught:
            world.wait(max_failed_looks=5)
        assert codes(caught.value.outcome) == {LC: 4, IMAGE: -10}
        assert caught.value.job == world.job

    @pytest.mark.parametrize(
        "wrong",
        [{"deadline_s": 0}, {"deadline_s": -1}, {"deadline_s": float("nan")}, {"max_failed_looks": 0}],
    )
    def test_impossible(self, wrong: dict[str, Any]) -> None:
        """A wait that could not even look is refused."""
        with pytest.raises(ConfigurationError):
            World({IMAGE: 4}).wait(**wrong)

    def test_on_look(self) -> None:
        """Who asked to be told is told after each look that told something."""
        world = World({IMAGE: 2}, away(), {IMAGE: LEFT_OUT}, {IMAGE: 3}, {IMAGE: 4})
        seen: list[Outcome] = []
        world.wait(on_look=seen.append)
        assert [codes(outcome) for outcome in seen] == [{IMAGE: 2}, {IMAGE: 3}, {IMAGE: 4}]


class TestNext:
    def test_hands_over(self) -> None:
        """Each call returns as soon as something new has ended, until there is nothing left."""
        world = World({LC: 3, SPEC: 3, IMAGE: 4}, {LC: 3, SPEC: 3}, {LC: 4, SPEC: -4})
        first = world.wait(until="next")
        assert (first.ended, len(world.looked_at)) == ((IMAGE,), 1)
        last = world.wait(until="next", since=first)
        assert (codes(last), len(world.looked_at)) == ({LC: 4, SPEC: -4, IMAGE: 4}, 3)
        assert world.wait(until="next", since=last) == last
        assert len(world.looked_at) == 3

    def test_keeps_distance(self) -> None:
        """The distance to the last look is kept across calls, whatever time passed between them."""
        world = World({LC: 3, IMAGE: 4}, {LC: 3}, {LC: 4})
        first = world.wait(until="next")
        world.time += 25
        world.wait(until="next", since=first)
        assert all(interval >= 60 for interval in world.intervals)
        assert world.sleeps[1] <= 41

    def test_no_distance_needed(self) -> None:
        """After a long time between two calls the next look is at once."""
        world = World({LC: 3, IMAGE: 4}, {LC: 4})
        first = world.wait(until="next")
        world.time += 9999
        world.wait(since=first)
        assert world.sleeps[1] == 0

    @pytest.mark.parametrize("until", ["all", "next"])
    def test_all_ended_before(self, until: str) -> None:
        """A job that had ended already is returned at once, unasked."""
        world = World({IMAGE: 4}, {IMAGE: 3})
        since = world.wait()
        again = world.wait(since=since, until=until)
        assert (again, len(world.looked_at)) == (since, 1)

    def test_part_known(self) -> None:
        """What is known of some products only is filled up."""
        world = World({LC: 3, IMAGE: 4}, {LC: 4})
        since = world.wait(until="next")
        part = since.model_copy(update={"statuses": {IMAGE: since.statuses[IMAGE]}})
        assert codes(world.wait(since=part)) == {LC: 4, IMAGE: 4}
        assert world.asked[-1] == (LC,)

    def test_another_job(self) -> None:
        """What is known of another job is not taken for this one's."""
        other = World({IMAGE: 4})
        other.job = other.job.model_copy(update={"id": 5})
        world = World({IMAGE: 3})
        with pytest.raises(ConfigurationError, match="tells nothing of job 801"):
            world.wait(since=other.wait())


class TestLook:
    def test_one(self) -> None:
        """One look that tells is enough, whatever it tells."""
        world = World({LC: 3, IMAGE: 4})
        assert codes(world.wait(until="look")) == {LC: 3, IMAGE: 4}
        assert len(world.looked_at) == 1

    def test_told_nothing(self) -> None:
        """A look that told nothing is made up for, at the service's pace."""
        world = World(away(), {IMAGE: LEFT_OUT}, {IMAGE: 3})
        assert codes(world.wait(until="look")) == {IMAGE: 3}
        assert world.intervals == [60.0, 60.0]

    @pytest.mark.parametrize("code", [-3, 4])
    def test_alarm(self, code: int) -> None:
        """-2 and -3 may pass, as ever: only a second look tells."""
        world = World({IMAGE: -3}, {IMAGE: code})
        assert codes(world.wait(until="look")) == {IMAGE: code}
        assert len(world.looked_at) == 2
        assert min(world.intervals) >= 60


class TestOthers:
    def test_overtaken(self) -> None:
        """A job that another process has looked at meanwhile is left alone for a minute from then on."""
        looks = LocalLooks("https://example.org")
        world = World({IMAGE: 3}, {IMAGE: 4})

        def look_elsewhere() -> None:
            if world.time == START + 60 and looks.take(801, world.time, START):
                world.lines.append("elsewhere")

        world.on_sleep = look_elsewhere
        world.wait(looks=looks, pacing=Pacing(ceiling_s=60, jitter=0))
        assert "elsewhere" in world.lines
        assert world.looked_at == [START, START + 120]

    @pytest.mark.parametrize("notes_the_end", [True, False])
    def test_in_a_hurry(self, notes_the_end: bool) -> None:
        """Another that looks every minute keeps this one neither from looking nor from learning the end."""
        looks = LocalLooks("https://example.org")
        world = Many([3600.0])
        (job,) = world.jobs
        times: list[float] = []

        def sleep(seconds: float) -> None:
            until = world.time + seconds
            while (due := (looks.last(0) or 0) + 61) <= until:
                world.time = max(due, world.time)
                if looks.take(0, world.time, looks.last(0)):
                    times.append(world.time - START)
                if notes_the_end and world.time - START >= 3600:
                    looks.end(world.check_product_status(job, (IMAGE,), attempts=1))
            world.time = until

        outcome = wait_for_products(
            cast(XRTClient, world),
            job,
            looks=looks,
            clock=lambda: world.time,
            timer=lambda: world.time,
            sleep=sleep,
            chance=lambda: 0.5,
            log=lambda _: None,
        )
        assert outcome.ready == (IMAGE,)
        # Its own interval is a tenth of the time by then.
        assert 3600 <= world.time - START < 4100
        assert times
        if not notes_the_end:
            all_looks = sorted([*times, *(at for at, _ in world.looks)])
            assert min(b - a for a, b in pairwise(all_looks)) > 59.9

    def test_ended_by_the_deadline(self) -> None:
        """Where another process has seen the end before the deadline, that is no failure."""
        looks, world, other = LocalLooks("https://example.org"), World({IMAGE: 3}), World({IMAGE: 4})
        world.on_sleep = lambda: looks.end(other.wait()) if world.time > START else None
        assert codes(world.wait(looks=looks, deadline_s=50)) == {IMAGE: 4}
        assert world.time == START + 50
        assert len(world.looked_at) == 1

    def test_at_the_same_moment(self) -> None:
        """Of those that would look together, one does: no job is ever asked too often, however many follow it."""
        floor_s, looked_at = 0.05, []

        class Noting(LocalLooks):
            def take(self, job_id: int, at: float, known: float | None) -> bool:
                taken = super().take(job_id, at, known)
                if taken:
                    looked_at.append(at)
                return taken

        def follow() -> None:
            wait_for_products(
                cast(XRTClient, World({IMAGE: 3}, is_local=True)),
                World().job,
                pacing=Pacing(floor_s=floor_s, ceiling_s=floor_s, jitter=0),
                deadline_s=40 * floor_s,
                looks=Noting("http://127.0.0.1"),
            )

        with ThreadPoolExecutor(4) as pool:
            errors = [followed.exception() for followed in [pool.submit(follow) for _ in range(4)]]
        assert all(isinstance(error, DeadlineError) for error in errors)
        assert len(looked_at) > 4
        looked_at.sort()
        assert all(b - a >= floor_s - 0.001 for a, b in pairwise(looked_at))


class TestAlarms:
    @pytest.mark.parametrize("code", [-2, -3])
    def test_confirmed(self, code: int) -> None:
        """-2 and -3 are an end when a second look in a row says so too."""
        world = World({IMAGE: code})
        assert world.wait().alarming == (IMAGE,)
        assert len(world.looked_at) == 2
        assert world.intervals[0] >= 60

    @pytest.mark.parametrize("until", ["all", "next"])
    def test_forgiven(self, until: str) -> None:
        """One that is gone at the second look is forgiven, and the product waited for."""
        world = World({IMAGE: 3}, {IMAGE: -2}, {IMAGE: 3}, {IMAGE: -3}, {IMAGE: 4})
        assert codes(world.wait(until=until)) == {IMAGE: 4}
        assert len(world.looked_at) == 5

    def test_not_confirmed_by_trouble(self) -> None:
        """A look that told nothing confirms nothing."""
        world = World({IMAGE: -2}, away(), {IMAGE: 3}, {IMAGE: 4})
        assert world.wait().ready == (IMAGE,)

    def test_kinds_confirm_each_other(self) -> None:
        """Two different alarms in a row are an end too."""
        world = World({IMAGE: -2}, {IMAGE: -3})
        assert codes(world.wait()) == {IMAGE: -3}

    def test_waits_for_the_second_look(self) -> None:
        """The others having ended does not end a wait before an alarm is confirmed."""
        world = World({LC: 4, IMAGE: -2}, {IMAGE: -2})
        outcome = world.wait(until="next")
        assert (outcome.alarming, outcome.ready, world.asked) == ((IMAGE,), (LC,), [(LC, IMAGE), (IMAGE,)])


class TestDeadline:
    def test_deadline(self) -> None:
        """A wait that reaches its deadline says what is pending, and how to go on; the job lives on."""
        world = World({LC: 4, IMAGE: 3})
        with pytest.raises(
            DeadlineError, match=r"Image of job 801.*`prefect-xrt attach 801 --out DIR`"
        ) as caught:
            world.wait(deadline_s=1000)
        assert codes(caught.value.outcome) == {LC: 4, IMAGE: 3}
        assert world.time == START + 1000
        assert world.looked_at[-1] >= START + 1000 - FLOOR_S

    def test_last_look_at_the_deadline(self) -> None:
        """Where it is not too soon, the last look is at the deadline itself."""
        world = World({IMAGE: 2})
        with pytest.raises(DeadlineError):
            world.wait(deadline_s=1800, pacing=Pacing(floor_s=70))
        deadline_s = world.looked_at[-1] - START - 5
        world = World({IMAGE: 2})
        with pytest.raises(DeadlineError):
            world.wait(deadline_s=deadline_s, pacing=Pacing(floor_s=70))
        assert world.looked_at[-1] == START + deadline_s

    def test_real_deadline_is_longer_than_the_service(self) -> None:
        """Left alone, a wait outlasts the 12 hours after which the service ends a job."""
        world = World({IMAGE: 3})
        with pytest.raises(DeadlineError):
            world.wait()
        assert world.time - START == DEADLINE_S > 12 * 3600

    def test_before_the_first_look(self) -> None:
        """A deadline before the distance to the last look has passed ends without a look."""
        world = World({LC: 3, IMAGE: 4}, {LC: 4})
        first = world.wait(until="next")
        with pytest.raises(DeadlineError):
            world.wait(since=first, deadline_s=10)
        assert (len(world.looked_at), world.sleeps[-1]) == (1, 10)


class TestFailedLooks:
    def test_success_starts_again(self) -> None:
        """Failed looks are counted in a row only."""
        world = World({IMAGE: 3}, *[away()] * 4, {IMAGE: 3}, *[away()] * 4, {IMAGE: 4})
        assert world.wait(max_failed_looks=5).complete is True

    @pytest.mark.parametrize(
        "error",
        [
            away(),
            ServiceUnreachableError("No.", sent=False),
            AnswerError("A page."),
            RefusedError("No."),
            JobNotFoundError("?"),
            UnknownUserError("?"),
        ],
    )
    def test_too_many(self, error: XRTError) -> None:
        """So many in a row that it makes no sense any more are told with the last reason and what was known."""
        world = World({IMAGE: 3}, error)
        with pytest.raises(FailedLooksError, match="3 looks in a row told nothing of Image") as caught:
            world.wait(max_failed_looks=3)
        assert error.message in str(caught.value)
        assert caught.value.__cause__ is error
        assert (codes(caught.value.outcome), len(world.looked_at)) == ({IMAGE: 3}, 4)

    def test_kinds_add_up(self) -> None:
        """Answers that speak of nothing that was asked count with the failures."""
        world = World({IMAGE: 3}, away(), {IMAGE: LEFT_OUT}, {IMAGE: None}, away())
        with pytest.raises(FailedLooksError):
            world.wait(max_failed_looks=4)

    @pytest.mark.parametrize("error", [RefusedError("No."), JobNotFoundError("?"), UnknownUserError("?")])
    def test_refused_from_the_start(self, error: XRTError) -> None:
        """What the service refused from the start is raised at once: also after a first outage."""
        for looks in ([error], [away(), error]):
            world = World(*looks)
            with pytest.raises(type(error)) as caught:
                world.wait()
            assert (caught.value, len(world.looked_at)) == (error, len(looks))

    @pytest.mark.parametrize(
        "error", [ForeignURLError("?"), ServiceUnreachableError("HTTP 404.", status=404)]
    )
    def test_odd_first_look(self, error: XRTError) -> None:
        """A job is not given up for one bad look, not even the first: something else may answer for a while."""
        world = World(error, {IMAGE: 3}, {IMAGE: 4})
        assert world.wait().complete is True

    def test_an_hour(self) -> None:
        """An hour without a word, of whatever kind, is ridden out; what has ended meanwhile is told then."""
        troubles = [away(), ServiceUnreachableError("HTTP 502.", status=502), AnswerError("A page"), away()]
        world = World({IMAGE: 3}, *(troubles[count % 4] for count in range(60)), {IMAGE: 4})
        assert world.wait().complete is True
        assert sum(world.intervals) > 3600

    def test_refused_later(self) -> None:
        """A refusal in the midst of a wait is a failed look: a live job is not given up for it."""
        world = World({IMAGE: 3}, JobNotFoundError("Job 801 does not exist"), {IMAGE: 4})
        assert world.wait().complete is True

    def test_retry_after(self) -> None:
        """The service's own word for when to come back is honoured, once."""
        world = World({IMAGE: 3}, away(retry_after_s=900.0), {IMAGE: 3}, {IMAGE: 4})
        world.chances = 0.0
        world.wait()
        assert world.intervals[1] == 900
        assert world.intervals[2] < 120

    def test_retry_after_beyond_the_deadline(self) -> None:
        """A service that wants to be left alone beyond the deadline is."""
        world = World({IMAGE: 3}, away(retry_after_s=float("inf")))
        with pytest.raises(DeadlineError):
            world.wait(deadline_s=3000)
        assert (len(world.looked_at), world.time) == (2, START + 3000)


class TestLog:
    STEPS: tuple[dict[str, Any], ...] = (
        {"StepLabel": "Build spectra.", "StepStatus": 1, "StepExtra": "Working on spectrum: a (1/9)", "SubStep": [
            {"StepLabel": "Extract data.", "StepStatus": 1, "StepExtra": "Working on observation 1 / 1"}]},
        {"StepLabel": "Build spectra.", "StepStatus": 1, "StepExtra": "Working on spectrum: b (2/9)", "SubStep": [
            {"StepLabel": "Extract data.", "StepStatus": 1, "StepExtra": "Working on observation 1 / 1"}]},
        {"StepLabel": "Build spectra.", "StepStatus": 1, "SubStep": [{"StepLabel": "Fit spectrum.", "StepStatus": 1}]},
    )  # fmt: skip

    def test_only_changes(self) -> None:
        """A line says what has changed, with the active step and the running time, and nothing is said twice."""
        running = [
            (3, {"GotProgress": 1, "ProgressSteps": [step], "TimeRunning": f"00:0{n}:00"})
            for n, step in enumerate(self.STEPS)
        ]
        world = World({SPEC: 2}, {SPEC: 2}, *({SPEC: state} for state in running), {SPEC: 4})
        world.wait()
        assert world.lines == [
            "Spectrum: queued",
            "Spectrum: running, Build spectra. > Extract data. (Working on observation 1 / 1), running for 00:00:00",
            "Spectrum: running, Build spectra. > Fit spectrum., running for 00:02:00",
            "Spectrum: ready (4, text 4)",
        ]

    def test_trouble(self) -> None:
        """An outage is told once, and so is its end."""
        world = World({IMAGE: 3}, away(), away(), {IMAGE: 3}, {IMAGE: 4})
        world.wait()
        assert world.lines == [
            "Image: running",
            "job 801 (GRB): this look told nothing (HTTP 503.) Looking again later.",
            "job 801 (GRB): the service tells again, after 2 looks that told nothing.",
            "Image: ready (4, text 4)",
        ]

    def test_alarm(self) -> None:
        """An alarm is told with its code, and that it is looked at once more; once confirmed there is nothing new."""
        world = World({IMAGE: -3})
        world.wait()
        assert world.lines == ["Image: alarm (-3, text -3), which should never happen: looking once more"]

    def test_nothing_new_across_calls(self) -> None:
        """What an earlier wait has told is not told again."""
        world = World({LC: 3, IMAGE: 4}, {LC: 3}, {LC: 4})
        first = world.wait(until="next")
        world.lines.clear()
        world.wait(since=first)
        assert world.lines == ["LightCurve: ready (4, text 4)"]

    def test_own_logger(self, caplog: pytest.LogCaptureFixture) -> None:
        """Who passes no log finds the lines in Python's own."""
        caplog.set_level(logging.INFO, "prefect_xrt.sensor")
        World({IMAGE: 4}).wait(log=None)
        assert caplog.messages == ["Image: ready (4, text 4)"]


class TestClock:
    @pytest.mark.parametrize("shift", [-1e6, -3600, -30, 30])
    def test_set(self, shift: float) -> None:
        """A clock that is set during a wait changes neither the distance of looks nor their outcome."""
        world = World(*[{IMAGE: 3}] * 4, {IMAGE: 4})

        def jump() -> None:
            world.wall_offset = shift if len(world.looked_at) == 2 else world.wall_offset

        world.on_sleep = jump
        assert world.wait().complete is True
        assert all(60 <= interval <= 70 for interval in world.intervals)

    def test_set_right_after_a_look(self) -> None:
        """A clock that jumps forward after a look does not bring the next one near."""
        world = World(*[{IMAGE: 3}] * 4, {IMAGE: 4})

        def jump(_: Outcome) -> None:
            world.wall_offset += 3600

        world.wait(on_look=jump)
        assert all(interval >= 60 for interval in world.intervals)

    def test_set_back_between_calls(self) -> None:
        """A clock that was set back between two calls does not stretch the pause beyond an interval."""
        world = World({LC: 3, IMAGE: 4}, {LC: 4})
        first = world.wait(until="next")
        world.wall_offset = -1e6
        world.wait(since=first)
        assert 60 <= world.intervals[0] <= 66

    def test_far_forward(self) -> None:
        """After a sleep over the deadline, as of a closed laptop, there is one look before giving up."""
        world = World({IMAGE: 3}, {IMAGE: 3}, {IMAGE: 4})

        def jump() -> None:
            world.wall_offset = 1e6 if len(world.looked_at) == 1 else world.wall_offset

        world.on_sleep = jump
        with pytest.raises(DeadlineError):
            world.wait(deadline_s=1000)
        assert len(world.looked_at) == 2


CODES = st.sampled_from([1, 2, 3, 4, -1, -2, -3, -4, 5, None, -10, 0, 77, "3", "4", "x", LEFT_OUT])
LOOKS = st.lists(
    st.fixed_dictionaries({LC: CODES, SPEC: CODES, IMAGE: CODES})
    | st.builds(away, retry_after_s=st.none() | st.floats(0, 1e5))
    | st.just(AnswerError("A page.")),
    min_size=1,
    max_size=12,
)


class TestAnyTimeline:
    @settings(deadline=None, max_examples=300)
    @given(
        LOOKS,
        st.sampled_from(["all", "next"]),
        st.floats(1, 1e5),
        st.integers(1, 20),
        st.floats(0, 1),
        st.lists(st.floats(-1e5, 1e5), max_size=4),
        st.floats(1e-3, 1e3),
    )
    def test_ends(
        self,
        looks: list[Any],
        until: str,
        deadline_s: float,
        failures: int,
        chance: float,
        jumps: list[float],
        floor_s: float,
    ) -> None:
        """Whatever the service shows and however the clock is set, a wait ends, tells the truth, and is polite."""
        world = World({LC: 3, SPEC: 3, IMAGE: 3}, *looks)
        world.chances = chance
        left: Iterator[float] = iter(jumps)

        def jump() -> None:
            world.wall_offset += next(left, 0.0)
            assert len(world.sleeps) < 10_000, "this wait does not end"

        world.on_sleep = jump
        options = {
            "until": until,
            "deadline_s": deadline_s,
            "max_failed_looks": failures,
            "pacing": Pacing(floor_s=floor_s),
        }
        try:
            outcome = world.wait(**options)
        except WaitError:
            assert world.looked_at
        else:
            assert outcome.ended
            assert until == "next" or outcome.complete
            shown = {product: code for product, code in codes(outcome).items() if product in outcome.ended}
            assert set(shown.values()) <= ENDED | {-2, -3}
        assert all(interval >= 60 - 1e-3 for interval in world.intervals)


class TestWithTheService:
    def test_whole_wait(self) -> None:
        """Against the embedded service: outage, strange codes, an alarm that passes, and the end."""
        timeline = Timeline(
            (
                Step(1, after_looks=2),
                Step(None, after_looks=1),
                Step(-2, after_looks=1),
                Step("3", after_looks=2),
                Step(4),
            )
        )
        scenario = Scenario(
            timelines={"image": timeline}, faults=[Fault("status", "http-503", after=2, times=2)]
        )
        request = ProductRequest(
            name="x",
            targets=("00966554",),
            ra_deg=1,
            dec_deg=1,
            centroid=True,
            position_error_arcmin=1,
            image=Image(),
        )
        pauses: list[float] = []
        with Emulator(scenario) as service, XRTClient(service.user_id, service.url) as client:
            outcome = wait_for_products(
                client,
                client.submit(request),
                pacing=Pacing(floor_s=1e-3, ceiling_s=1e-3),
                sleep=pauses.append,
            )
        assert outcome.succeeded
        assert [call.status for call in service.calls("status")] == [
            200,
            200,
            503,
            503,
            200,
            200,
            200,
            200,
            200,
        ]
        assert max(pauses) < 0.01


def test_a_display_that_breaks() -> None:
    """What shows the progress may break; the wait for the job goes on."""

    def broken(_: object) -> None:
        raise RuntimeError("no such style")

    world = World({IMAGE: 3}, {IMAGE: 3}, {IMAGE: 4})
    assert world.wait(on_look=broken).ready == (IMAGE,)


class Many:
    """A simulated service with many jobs, each with an end of its own, and a clock that advances only in sleep.

    Args:
        ends: For each job, in seconds from the start, when its only product is ready.
        is_local: Whether the service is on this machine.
    """

    def __init__(self, ends: Sequence[float], *, is_local: bool = False) -> None:
        self.is_local = is_local
        self.ends = ends
        self.jobs = [
            Job(id=n, url=f"https://example.org/{n}", name=f"Star {n}", products=(IMAGE,))
            for n in range(len(ends))
        ]
        self.time = START
        self.looks: list[tuple[float, int]] = []
        self.trouble: Callable[[int], XRTError | None] = lambda _: None

    def check_product_status(
        self, job: Job, products: Sequence[Product], *, attempts: int | None = None
    ) -> Outcome:
        """Take the place of the client's method."""
        assert attempts == 1
        self.looks.append((self.time - START, job.id))
        if trouble := self.trouble(job.id):
            raise trouble
        code = 4 if self.time - START >= self.ends[job.id] else 3
        answer = {"image": World.entry(code)}
        return protocol.decode_status(
            cast(Any, answer), job, products, datetime.fromtimestamp(self.time, UTC)
        )

    def sleep(self, seconds: float) -> None:
        """Take the place of `time.sleep`."""
        assert seconds >= 0
        self.time += seconds

    def watch(self) -> Watch:
        """Make a watch in this world's time."""
        return Watch(
            connections=1,
            clock=lambda: self.time,
            timer=lambda: self.time,
            sleep=self.sleep,
            chance=lambda: 0.5,
        )

    def follow(self, watch: Watch, **options: Any) -> None:
        """Follow all jobs."""
        for job in self.jobs:
            watch.follow(cast(XRTClient, self), job, log=lambda _: None, **options)


class TestWatch:
    def test_handed_out_as_they_come(self) -> None:
        """Each job is handed out when it has ended, in order of time, and asked no more."""
        world = Many([3000, 0, 900, 100_000], is_local=False)
        with world.watch() as watch:
            world.follow(watch, deadline_s=5000)
            endings = list(watch.endings())
        assert [ending.job.id for ending in endings] == [1, 2, 0, 3]
        assert [ending.error is None for ending in endings] == [True, True, True, False]
        assert isinstance(endings[-1].error, DeadlineError)
        assert len(watch) == 0
        asked = [[at for at, job in world.looks if job == n] for n in range(4)]
        assert all(b - a >= 60 for looks in asked for a, b in pairwise(looks))

    def test_one_pace(self) -> None:
        """The first looks at many jobs elsewhere do not come in a burst, and come in the order of asking."""
        world = Many([0.0] * 200)
        with world.watch() as watch:
            world.follow(watch)
            assert len(list(watch.endings())) == 200
        times = [at for at, _ in world.looks]
        assert [job for _, job in world.looks] == list(range(200))
        assert min(b - a for a, b in pairwise(times)) >= 0.019

    def test_patience_of_all(self) -> None:
        """What a service asks of one job's look, as by Retry-After, holds for all; a look that succeeds ends it."""
        world = Many([300.0] * 50)
        with world.watch() as watch:
            world.follow(watch, pacing=Pacing(jitter=0))
            list(watch.endings(100))
            before = len(world.looks)
            world.trouble = lambda _: away(retry_after_s=500.0) if world.time < START + 130 else None
            list(watch.endings(400))
            assert len(world.looks) == before + 1
            endings = list(watch.endings())
        assert all(ending.error is None for ending in endings)
        assert len(endings) == 50

    def test_an_outage_is_tried_by_one(self) -> None:
        """While a service is away, its jobs ask one at a time and ever more seldom, and all go on after that."""
        world = Many([0.0] * 500)
        world.trouble = lambda _: away() if world.time < START + 1800 else None
        with world.watch() as watch:
            world.follow(watch)
            endings = list(watch.endings())
        assert len(endings) == 500
        assert all(ending.error is None for ending in endings)
        # One a minute, after some that came sooner.
        assert len([at for at, _ in world.looks if at < 1800]) < 60

    def test_overdue_in_the_queue(self) -> None:
        """Jobs whose deadline passes while they wait for their turn at a service that is away end no later for it."""
        world = Many([0.0] * 100)
        world.trouble = lambda _: away()
        with world.watch() as watch:
            world.follow(watch, deadline_s=1800)
            endings = [(ending, world.time - START) for ending in watch.endings()]
        assert len(endings) == 100
        assert all(isinstance(ending.error, DeadlineError) for ending, _ in endings)
        assert max(at for _, at in endings) < 1800 + 2 * 60

    def test_overdue_while_the_service_is_left_alone(self) -> None:
        """A deadline holds, too, where the service has asked for patience beyond it."""
        world = Many([1e9] * 3)
        world.trouble = lambda _: away(retry_after_s=3600.0)
        with world.watch() as watch:
            world.follow(watch, deadline_s=300)
            endings = [(ending.job.id, world.time - START) for ending in watch.endings()]
        assert endings == [(0, 300.0), (1, 300.0), (2, 300.0)]
        assert [job for _, job in world.looks] == [0]

    def test_others_are_not_overdue_with_it(self) -> None:
        """Jobs whose deadline has passed, or that are forgotten, leave the others to their turn, with nothing to do."""
        world = Many([3700.0] * 4)
        world.trouble = lambda _: away(retry_after_s=3600.0) if world.time < START + 3600 else None
        turns = 0

        def timer() -> float:
            nonlocal turns
            turns += 1
            assert turns < 1000, "It turns and turns."
            return world.time

        with Watch(
            connections=1, clock=lambda: world.time, timer=timer, sleep=world.sleep, chance=lambda: 0.5
        ) as watch:
            for job, deadline_s in zip(world.jobs, (7200, 300, 400, 7200), strict=True):
                watch.follow(cast(XRTClient, world), job, deadline_s=deadline_s, log=lambda _: None)
            assert list(watch.endings(10)) == []
            watch.forget(world.jobs[2])
            endings = [(ending.job.id, ending.error is None) for ending in watch.endings()]
        assert endings[0] == (1, False)
        assert sorted(endings[1:]) == [(0, True), (3, True)]

    def test_overtaken_in_the_queue(self) -> None:
        """A job that another process has looked at while it waited for its turn does not hold up those behind it."""
        world, looks = Many([1e9] * 3), LocalLooks("https://example.org")
        world.trouble = lambda _: away()
        with world.watch() as watch:
            for job, deadline_s in zip(world.jobs, (59, 59, 3600), strict=True):
                watch.follow(cast(XRTClient, world), job, deadline_s=deadline_s, looks=looks)
            assert list(watch.endings(0.01)) == []
            assert looks.take(1, world.time, None)
            assert [ending.job.id for ending in watch.endings(4000)] == [0, 1, 2]
        assert any(job == 2 for _, job in world.looks)

    def test_failed_looks_are_made_up_for(self) -> None:
        """A job that is looked at seldom is looked at again in a minute, if a look has told nothing of it."""
        world = Many([40_000])
        begin, end = 20_000, 22_000
        world.trouble = lambda _: away() if begin <= world.time - START < end else None
        with world.watch() as watch:
            world.follow(watch)
            list(watch.endings())
        times = [at for at, _ in world.looks]
        pauses = [(earlier, later - earlier) for earlier, later in pairwise(times)]
        made_up = [pause for at, pause in pauses if begin <= at < end]
        assert len(made_up) > 10
        assert set(made_up) == {60.0}
        assert min(pause for at, pause in pauses if end + 60 < at < times[-2]) > 600

    def test_one_fault_stops_nobody(self) -> None:
        """A job that the service does not know, and one whose answer breaks something, are ended by themselves."""
        world = Many([100.0] * 4)
        troubles = {1: JobNotFoundError("No such job."), 2: ValueError("broken")}
        world.trouble = lambda job_id: cast(Any, troubles.get(job_id))
        with world.watch() as watch:
            world.follow(watch)
            endings = {ending.job.id: ending for ending in watch.endings()}
        assert {n: endings[n].error for n in endings} == {0: None, 3: None, **troubles}
        with pytest.raises(ValueError, match="broken"):
            endings[2].result()
        assert endings[0].result().ready == (IMAGE,)

    def test_forgotten(self) -> None:
        """A job that is followed no longer is not looked at any more, and may be followed again."""
        world = Many([1e6, 500.0])
        with world.watch() as watch:
            world.follow(watch)
            assert list(watch.endings(200)) == []
            with pytest.raises(ConfigurationError, match="followed already"):
                world.follow(watch)
            watch.forget(world.jobs[0])
            watch.forget(world.jobs[0])
            assert [ending.job.id for ending in watch.endings()] == [1]
            assert max(at for at, job in world.looks if job == 0) <= 200
            watch.follow(cast(XRTClient, world), world.jobs[0])
            assert len(watch) == 1

    def test_for_a_while(self) -> None:
        """Asked for a while only, it gives back on time, whether or not there is anything to do."""
        world = Many([1e6])
        with world.watch() as watch:
            assert list(watch.endings(50)) == []
            world.follow(watch)
            assert list(watch.endings(1000)) == []
        assert world.time == START + 1000

    def test_growth(self) -> None:
        """Ten times as many jobs cost hardly more for each: what is due next is found without asking all."""

        def calls_for_each(jobs: int) -> float:
            world, profile = Many([120.0] * jobs), cProfile.Profile()
            with world.watch() as watch:
                profile.enable()
                world.follow(watch)
                assert len(list(watch.endings())) == jobs
                profile.disable()
            return sum(entry.callcount for entry in profile.getstats()) / jobs

        assert calls_for_each(2000) < 1.1 * calls_for_each(200)

    def test_through_connections(self) -> None:
        """Against the embedded service, through several connections: all jobs end, none is asked too often."""
        scenario = Scenario(default=Timeline.of_looks((3, 2), (4,)), active_job_limit=1000)
        request = ProductRequest(
            name="x", targets=("00966554",), ra_deg=1, dec_deg=1, centroid=False, image=Image()
        )
        with Emulator(scenario) as service, XRTClient(service.user_id, service.url) as client:
            jobs = [client.submit(request) for _ in range(40)]
            seen: list[Outcome] = []
            endings = list(watch_jobs(client, jobs, pacing=Pacing(floor_s=0.2), on_look=seen.append))
        assert sorted(ending.job.id for ending in endings) == sorted(job.id for job in jobs)
        assert all(ending.result().succeeded for ending in endings)
        assert len(service.calls("status")) == len(seen) == 120


class TestLookOnce:
    def test_pace(self) -> None:
        """A job that was looked at just now is left alone for the rest of the minute, here as elsewhere."""
        world, looks, slept, lines = World({IMAGE: 3}), LocalLooks("https://example.org"), [], []
        began = time.time()
        assert looks.take(801, began - 50, None)

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            os.utime(next(Path(os.environ["XDG_STATE_HOME"]).rglob("801.json")), (began - 60, began - 60))

        look_once(cast(XRTClient, world), world.job, looks=looks, log=lines.append, sleep=sleep)
        assert 0 < slept[0] <= 10
        assert "was looked at just now" in lines[0]
        assert len(world.looked_at) == len(slept) == 1
        assert (looks.last(801) or 0) >= began

    def test_clock_put_back(self) -> None:
        """A look that was noted by a clock that went ahead is waited for once, not for all that time."""
        world, looks, slept = World({IMAGE: 3}), LocalLooks("https://example.org"), []
        assert looks.take(801, time.time() + 7200, None)
        look_once(cast(XRTClient, world), world.job, looks=looks, sleep=slept.append)
        assert slept == [60.0]
        assert len(world.looked_at) == 1

    def test_ended(self) -> None:
        """A job that is known to have ended is not asked about."""
        world, looks = World({LC: 4, IMAGE: -1}), LocalLooks("https://example.org")
        world.wait(looks=looks)
        before = list(world.looked_at)
        outcome = look_once(cast(XRTClient, world), world.job, ["Image"], looks=looks)
        assert codes(outcome) == {IMAGE: -1}
        assert world.looked_at == before
