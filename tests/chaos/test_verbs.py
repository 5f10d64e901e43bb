"""The program's own verbs, killed at points over their whole life and run again until they end."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import KILLED, Place, cradle, installed, kills, spread
from verdict import troubles

from prefect_xrt import ProductRequest
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline

INTERVAL_S = 0.1
BUILD = Timeline.of_looks((2, 1), (3, 1), (4,))
REQUEST = ProductRequest(
    name="GRB 200416A",
    targets=["00966554"],
    ra_deg=335.6985,
    dec_deg=-7.5179,
    centroid=True,
    position_error_arcmin=1,
    standard_position=True,
    enhanced_position=True,
)
STORIES: dict[str, Sequence[Fault]] = {
    "": (),
    "lost answer, ": (Fault("submit", "reset-after"),),
}
_MOST_DEATHS = 20
_LOOPS = 12


class Case(NamedTuple):
    """Where a life of the verbs is to be ended: in which story, by which verb, at which point."""

    story: str
    verb: str
    point: str

    def __str__(self) -> str:
        return f"{self.story}{self.verb}: {self.point}"


def scenario(faults: Sequence[Fault] = (), build: Timeline = BUILD) -> Scenario:
    """Give a service that shows a new job in its list half an interval late."""
    return Scenario(default=build, faults=faults, list_delay_s=INTERVAL_S / 2, observations=1)


class Life:
    """submit, wait, download: from the beginning until a process is killed, and again.

    Args:
        run: Runs the program in a process of its own: `Cradle.run` or `installed`.
        place: Where.
        interval_s: How long it is between two looks.
    """

    def __init__(
        self, run: Callable[..., tuple[int, str]], place: Place, *, interval_s: float = INTERVAL_S
    ) -> None:
        self._run = run
        self._place = place
        self._interval_s = interval_s
        self._request = place.root / "request.json"
        self._request.write_text(REQUEST.model_dump_json(exclude={"products"}))
        self.deaths: list[str] = []

    def attempt(
        self, verb: str | None = None, point: str | int | None = None, *, listed: bool = False, **options: Any
    ) -> bool:
        """Run the verbs in their order, and tell whether they came to the end.

        Args:
            verb: Which is to be killed; any, if only a point is given.
            point: Where.
            listed: List the points instead.
            options: Go to `run`.
        """
        out, log = str(self._place.out), self._place.root / "log"
        arguments = {
            "submit": [str(self._request), "--out", out, "--interval", str(self._interval_s)],
            "wait": ["--interval", str(self._interval_s)],
            "download": ["--out", out, "--extract"],
        }
        job: list[str] = []
        for name, rest in arguments.items():
            here = point if verb in (name, None) else None
            self._place.token.unlink(missing_ok=True)
            environment = self._place.environment(point=here, listed=listed)
            code, told = self._run(name, *job, *rest, environment=environment, log=log, **options)
            if code == KILLED:
                self.deaths.append(name)
                return False
            assert code == 0, f"{name} ended with {code}: {log.read_text()}"
            job = job or [told.strip()]
            if listed:
                self._place.events.rename(self._place.events.with_name(name))
        return True

    def listed(self) -> list[tuple[str, str]]:
        """Live without being killed, and return each point with its verb."""
        assert self.attempt(listed=True)
        return [
            (verb, point)
            for verb in ("submit", "wait", "download")
            for point in (self._place.root / verb).read_text().splitlines()
        ]

    def troubles(self) -> list[str]:
        """Look for whatever is not as it must be."""
        return troubles(
            self._place.emulator,
            self._place.state,
            {REQUEST.name: [self._place.out]},
            interval_s=self._interval_s,
        )


@cache
def every_case() -> list[Case]:
    """List all points of all stories; of how a lost answer is made good, only `submit` knows."""
    cases = []
    for story, faults in STORIES.items():
        with (
            tempfile.TemporaryDirectory() as root,
            Emulator(scenario(faults)) as emulator,
            cradle() as opened,
        ):
            life = Life(opened.run, Place(Path(root), emulator, INTERVAL_S))
            cases += [Case(story, *point) for point in life.listed() if not story or point[0] == "submit"]
    return cases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose where to kill, from what an unharmed life went through."""
    wanted = kills(0.75)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", spread(every_case(), wanted), ids=str)
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(max(3, (wanted - len(every_case())) // 4)))


@pytest.fixture(scope="module")
def bear() -> Iterator[Callable[..., tuple[int, str]]]:
    """Run the program in a forked process."""
    with cradle() as opened:
        yield opened.run


@pytest.fixture
def place(xrt_service_factory: Callable[..., Emulator], tmp_path: Path) -> Callable[..., Place]:
    """Give a place with a service in real time."""

    def make(*arguments: Any) -> Place:
        return Place(tmp_path, xrt_service_factory(scenario(*arguments), speed=1.0), INTERVAL_S)

    return make


def test_killed(case: Case, bear: Callable[..., tuple[int, str]], place: Callable[..., Place]) -> None:
    """Killed at any point and run again: one job, all files, no litter, and the service's pace."""
    life = Life(bear, place(STORIES[case.story]))
    assert not life.attempt(case.verb, case.point)
    assert life.attempt()
    assert life.deaths == [case.verb]
    assert life.troubles() == []


@pytest.mark.parametrize(
    ("verb", "point"),
    [
        ("submit", "await the answer to run_userobject.php"),
        ("wait", "receive the answer to checkProductStatus.php"),
        ("download", "receive the answer to psf.tar.gz, time 2"),
    ],
)
def test_installed_program(verb: str, point: str, place: Callable[..., Place]) -> None:
    """What is true of forked processes is true of the installed program."""
    life = Life(installed, place())
    assert not life.attempt(verb, point)
    assert life.attempt()
    assert life.deaths == [verb]
    assert life.troubles() == []


def test_killed_again_and_again(
    seed: int, bear: Callable[..., tuple[int, str]], place: Callable[..., Place]
) -> None:
    """Killed at a random point, again and again, in whatever the processes before have left."""
    chance = random.Random(seed)
    life = Life(bear, place())
    deaths = chance.randint(4, 8)
    for _ in range(_MOST_DEATHS):
        if len(life.deaths) == deaths:
            break
        life.attempt(chance.choice(["submit", "wait", "download"]), chance.randint(1, 30))
    assert life.deaths
    assert life.attempt()
    assert life.troubles() == []


def loop(life: Life, **options: Any) -> list[str]:
    """Be killed at the first look, a dozen times in a row, then live; look for troubles."""
    for _ in range(_LOOPS):
        assert not life.attempt("wait", "await the answer to checkProductStatus.php", **options)
    assert life.attempt(**options)
    return life.troubles()


def test_loop_of_crashes(bear: Callable[..., tuple[int, str]], place: Callable[..., Place]) -> None:
    """A process that dies at every look, and is started again at once, asks no faster than one that lives."""
    assert loop(Life(bear, place((), Timeline.of_looks((3, _LOOPS), (4,))))) == []


class TestTheHarness:
    """What is broken on purpose is found: these tests are of the suite itself."""

    @pytest.mark.parametrize(
        ("sabotage", "faults", "strike", "expected"),
        [
            (
                ["prefect_xrt.submission.write_submission"],
                (),
                ("submit", "symlink state/prefect-xrt/claims/*/801"),
                "2 jobs for 1 requests",
            ),
            (
                ["prefect_xrt.submission.remove_submission"],
                (),
                ("submit", "write out/.job.json.part"),
                "submission.json is left behind",
            ),
            (
                ["prefect_xrt.archive.verify", "prefect_xrt.archive.extract"],
                [Fault("file", "corrupt-file")],
                ("download", "connect"),
                "psf.tar.gz is not what the service has",
            ),
            (
                ["prefect_xrt.state.LocalClaims.take"],
                (),
                ("download", "connect"),
                "claims/801 is missing",
            ),
        ],
    )
    def test_finds(
        self,
        sabotage: list[str],
        faults: Sequence[Fault],
        strike: tuple[str, str],
        expected: str,
        bear: Callable[..., tuple[int, str]],
        place: Callable[..., Place],
    ) -> None:
        """A package without one of its precautions is found out."""
        life = Life(bear, place(faults))
        assert not life.attempt(*strike, sabotage=sabotage)
        assert life.attempt(sabotage=sabotage)
        assert expected in "\n".join(life.troubles())

    def test_finds_a_broken_pace(
        self, bear: Callable[..., tuple[int, str]], place: Callable[..., Place]
    ) -> None:
        """A sensor that knows nothing of other processes' looks is found out."""
        # However slow the machine is, processes that ask at once come sooner than that.
        life = Life(bear, place((), Timeline.of_looks((3, _LOOPS), (4,))), interval_s=2.0)
        assert "looks at job 801" in "\n".join(loop(life, sabotage=["prefect_xrt.state.LocalLooks.last"]))
