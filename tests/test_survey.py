"""A survey brings every source into its folder, a few at a time, and goes on wherever it was stopped."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import until
from prefect import State
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_RESULTS_PERSIST_BY_DEFAULT, temporary_settings
from prefect.states import Scheduled

from prefect_xrt import Product, ProductRequest, XRTClient, pacing, runs
from prefect_xrt.archive import exclusive
from prefect_xrt.emulator import Emulator, Timeline
from prefect_xrt.errors import ConfigurationError, InvalidRequestError, OutputError, XRTError
from prefect_xrt.pipelines.survey import SUMMARY_NAME, SourceReport, survey
from prefect_xrt.records import read_record
from prefect_xrt.targets import read_targets

if TYPE_CHECKING:
    from conftest import Server

READY, FAILED, RUNNING = Timeline.of((4,)), Timeline.of((-1,)), Timeline.of((3,))
HOUR = Timeline.of((3, 3600.0), (4,))
# The one of which no picture is drawn, which takes long.
SOURCES = ["SourceDet"]
PROGRAM = (
    "import json, sys; from prefect_xrt.pipelines.survey import survey; survey(**json.loads(sys.argv[1]))"
)
_PATIENCE_S = 120.0


def listed(*names: str) -> str:
    """Give a list of sources."""
    return "\n".join(f"{name}, {10.5 + number}, -7.5, 0003401{number}" for number, name in enumerate(names))


def run(root: Path, sources: str, **options: Any) -> State[Any]:
    """Run the survey, and give its final state."""
    given = {"products": SOURCES, "output_root": root, "sources": sources, **options}
    state: State[Any] = survey(**given, return_state=True)
    return state


def ending(server: Server, state: State[Any]) -> tuple[str, str, str]:
    """Give type, name and message of a state, as the server keeps them."""
    kept = server.flow_run(state.state_details.flow_run_id)["state"]
    return kept["type"], kept["name"], kept["message"]


def error_of(state: State[Any]) -> XRTError:
    """Give the error that a state holds."""
    error = state.result(raise_on_failure=False)
    assert isinstance(error, XRTError)
    return error


def summary(root: Path) -> dict[str, dict[str, str]]:
    """Give the rows of the summary by the source's name."""
    with (root / SUMMARY_NAME).open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def states(root: Path) -> dict[str, str]:
    """Give the state of each source in the summary."""
    return {name: row["state"] for name, row in summary(root).items()}


def most_active(emulator: Emulator) -> int:
    """Give how many jobs were active at once, at the most, as the service knows."""
    now = emulator.now()
    jobs = [(job.submitted_at, job.ended_at(now)) for job in emulator.jobs.values()]
    return max(sum(start <= at and (end is None or end > at) for start, end in jobs) for at, _ in jobs)


def codes(emulator: Emulator) -> dict[str, Any]:
    """Give the code of the one product of each source that has become a job; one job each."""
    found = {str(job.parameters["name"]): job.code("sourceDet") for job in emulator.jobs.values()}
    assert len(found) == len(emulator.jobs)
    return found


def sources_of(emulator: Emulator, endpoint: str) -> set[str]:
    """Give the sources about whose jobs there was a call."""
    return {
        str(emulator.jobs[call.job_id].parameters["name"]) for call in emulator.calls(endpoint) if call.job_id
    }


@contextmanager
def hours_passing(emulator: Emulator, when: Callable[[], bool]) -> Iterator[None]:
    """Let an hour pass on the service's clock whenever something is so."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if when():
                emulator.advance(3600.0)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Name a folder for a survey."""
    return tmp_path / "My survey"


@pytest.mark.usefixtures("server")
class TestBuild:
    def test_some_at_a_time(self, server: Server, service: Callable[..., Emulator], root: Path) -> None:
        """Every source ends in its folder, and no more jobs are active than it may have; what is shown says so."""
        # The service itself would refuse a job too many, and so fail its source.
        emulator = service(default=HOUR, active_job_limit=2, speed=1.0)
        names = ["GRB 200416A", "GK Per", "Mrk 421"]

        def is_full() -> bool:
            now = emulator.now()
            active = [job.id for job in emulator.jobs.values() if job.ended_at(now) is None]
            looked_at = all(emulator.calls("status", job_id) for job_id in active)
            return looked_at and len(active) == (2 if len(emulator.jobs) < len(names) else 1)

        with hours_passing(emulator, is_full):
            state = run(root, listed(*names), products=["Image", "LightCurve"], max_active=2)
        expected = f"3 of 3 sources are done, in {root}."
        assert ending(server, state) == ("COMPLETED", "Completed", expected)
        assert most_active(emulator) == 2
        found: tuple[SourceReport, ...] = state.result()
        assert [report.target.name for report in found] == names
        for report in found:
            record = read_record(report.folder)
            assert record
            assert (report.state, report.job_id) == ("done", record.job.id)
            assert set(report.ready) == {Product.IMAGE, Product.LIGHT_CURVE}
            assert {"lc.tar.gz", "image.tar.gz"} <= {path.name for path in report.folder.iterdir()}

        run_id = state.state_details.flow_run_id
        assert server.flow_run(run_id)["name"] == "survey: 3 sources"
        children = server.find("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [str(run_id)]}})
        assert {child["name"] for child in children} == {f"build: {name}" for name in names}
        artifacts = server.artifacts(run_id)
        assert artifacts["xrt-survey-progress-my-survey"]["data"] == 100
        table = json.loads(artifacts["xrt-survey-my-survey"]["data"])
        assert [(row["name"], row["state"], row["ready"]) for row in table] == [
            (name, "done", "LightCurve Image") for name in names
        ]
        assert [str(value) for row in table for value in row.values()] == [
            value for row in summary(root).values() for value in row.values()
        ]
        # What was a list is one again.
        again = [target.model_copy(update={"place": ""}) for target in read_targets(root / SUMMARY_NAME)]
        assert again == [report.target.model_copy(update={"place": ""}) for report in found]

    def test_failures_stay_alone(self, server: Server, service: Callable[..., Emulator], root: Path) -> None:
        """A refusal, a failed product and a folder that cannot be used: each is told, and the others are done."""
        emulator = service(
            default=READY,
            jobs={"half": {"spec": FAILED}},
            unresolvable_names=["nowhere"],
        )
        root.mkdir()
        (root / "blocked").write_text("in the way")
        sources = f"nowhere\n{listed('half', 'blocked', 'good')}"
        options: dict[str, Any] = {"products": ["Spectrum", "SourceDet"], "max_active": 3}
        state = run(root, sources, **options)
        kind, name, message = ending(server, state)
        assert (kind, name) == ("FAILED", "Partly")
        assert message.startswith("1 of 4 sources are done, 1 partly, 2 failed, in ")
        assert "nowhere: " in message
        assert "half: Spectrum failed (-1, " in message
        assert "the same survey again goes on" in message
        expected = {"nowhere": "failed", "half": "partly", "blocked": "failed"}
        assert states(root) == expected | {"good": "done"}
        rows = summary(root)
        assert "could not be resolved" in rows["nowhere"]["reason"]
        assert (rows["half"]["ready"], rows["half"]["missing"]) == ("SourceDet", "Spectrum")
        assert str(root / "blocked") in rows["blocked"]["reason"]

        # Again: what has ended is left alone, what never became a job is tried once more. Some products are enough.
        (root / "blocked").unlink()
        jobs = len(emulator.jobs)
        state = run(root, listed("half", "blocked", "good"), **options, accept_partial=True)
        assert ending(server, state)[1:] == ("Completed", f"2 of 3 sources are done, 1 partly, in {root}.")
        assert len(emulator.jobs) == jobs + 1

        # Asked to, it builds what has failed again, and only that.
        emulator.scenario.jobs.clear()
        state = run(root, listed("half", "blocked", "good"), **options, retry_failed=True)
        assert ending(server, state)[1:] == ("Completed", f"3 of 3 sources are done, in {root}.")
        assert len(emulator.jobs) == jobs + 2

    def test_account_in_use(
        self, service: Callable[..., Emulator], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever the survey may have, the account's limit holds: a job of somebody else takes a place, too."""
        monkeypatch.setenv("PREFECT_XRT_MAX_ACTIVE", "1")
        monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", 0.2)
        emulator = service(default=HOUR, active_job_limit=1, speed=1.0)
        with XRTClient(emulator.user_id, emulator.url) as client:
            other = client.submit(
                ProductRequest(
                    name="other", targets=["00034014"], ra_deg=1, dec_deg=2, centroid=False, image=True
                )
            )
        waiting: list[dict[str, str]] = []

        def is_seen() -> bool:
            if not waiting and len(emulator.calls("count")) > 1:
                waiting.append(states(root))
            return bool(waiting)

        with hours_passing(emulator, is_seen):
            assert run(root, listed("M31", "Crab"), max_active=3).is_completed()
        assert waiting == [{"M31": "not started", "Crab": "not started"}]
        assert most_active(emulator) == 1
        assert list(emulator.jobs) == [other.id, 802, 803]

    def test_options(self, service: Callable[..., Emulator], root: Path) -> None:
        """What is filled in for the products goes into every request, with what the list tells of the source."""
        emulator = service(active_job_limit=0)
        given = {
            "products": ["Image"],
            "image": {"energies_kev": "0.5-2"},
            "request": {"sss": 1},
            "centroid": "no",
        }
        assert run(root, "Mrk 421\nX, 12.5, -7.5, 00034014 00034015", **given).is_failed()
        by_name, by_place = sorted(
            (call.body for call in emulator.calls("submit") if call.body), key=lambda body: str(body["name"])
        )
        for body in (by_name, by_place):
            assert {"imen": "0.5-2", "sss": 1, "cent": 0, "image": 1}.items() <= body.items()
            assert "lc" not in body
        assert {"getCoords": 1, "getTargs": 1}.items() <= by_name.items()
        assert (by_place["RA"], by_place["Dec"], by_place["targ"]) == (12.5, -7.5, "00034014,00034015")


@pytest.mark.usefixtures("server")
class TestRefused:
    @pytest.mark.parametrize(
        ("sources", "options", "told"),
        [
            ("", {}, "there is no source in the list"),
            ("M31, 400, 1\nM31, 1, 2\n, 1, 2", {}, "3 problems with the list of sources: line 1, ra: "),
            ("nowhere.csv", {}, "nowhere.csv"),
            ("M31", {"products": ["LightCurve"], "light_curve": {"binning": "time"}}, "PC bin (s)"),
            ("M31", {"request": {"name": "M31"}}, "Request as JSON: name is of one source"),
        ],
        ids=["empty", "bad rows", "no file", "bad options", "whole request"],
    )
    def test_list_or_options(
        self,
        server: Server,
        service: Callable[..., Emulator],
        root: Path,
        sources: str,
        options: dict[str, Any],
        told: str,
    ) -> None:
        """What cannot be right is told in the state's message, and nothing is sent or made."""
        emulator = service()
        state = run(root, sources, **options)
        kind, name, message = ending(server, state)
        assert (kind, name) == ("FAILED", "Failed")
        assert told in message
        assert message.endswith("Nothing was sent.")
        assert isinstance(error_of(state), InvalidRequestError)
        assert emulator.log == []
        assert not root.exists()

    def test_account(
        self, server: Server, service: Callable[..., Emulator], root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An account that the service does not know ends the survey at once, not source by source."""
        emulator = service()
        monkeypatch.setenv("PREFECT_XRT_USER_ID", "stranger@example.org")
        state = run(root, listed("M31", "Crab", "Mrk 421"), max_active=2)
        kind, name, message = ending(server, state)
        assert (kind, name) == ("FAILED", "Failed")
        assert message.startswith("0 of 3 sources are done, 3 not started, in ")
        assert "The survey ended early: " in message
        assert "stranger" not in message
        assert {call.endpoint for call in emulator.log} == {"count"}
        assert set(states(root).values()) == {"not started"}

    def test_blocks(self, service: Callable[..., Emulator], root: Path) -> None:
        """Blocks that are not there are named, before anything is sent."""
        emulator = service()
        for given, named in (({"credentials": "nobody"}, "'nobody'"), ({"notify": "slack-webhook/no"}, "no")):
            error = error_of(run(root, "M31", **given))
            assert isinstance(error, ConfigurationError)
            assert named in error.message
        assert emulator.log == []

    def test_two_in_one_folder(self, service: Callable[..., Emulator], root: Path) -> None:
        """Two surveys at once in one folder: the second is told so, and sends nothing."""
        emulator = service()
        root.mkdir()
        with exclusive(root / SUMMARY_NAME):
            error = error_of(run(root, "M31"))
        assert isinstance(error, OutputError)
        assert "Another process" in error.message
        assert emulator.log == []


@pytest.mark.usefixtures("server")
class TestStopped:
    @pytest.fixture
    def building(
        self, service: Callable[..., Emulator], root: Path
    ) -> Iterator[Callable[[], tuple[Emulator, subprocess.Popen[str]]]]:
        """Start a survey in a process of its own, and give it once two of its four jobs are looked at."""
        started: list[subprocess.Popen[str]] = []

        def start() -> tuple[Emulator, subprocess.Popen[str]]:
            emulator = service(default=RUNNING, jobs={name: {"*": READY} for name in ("M31", "GK Per")})
            given = {
                "sources": listed("M31", "Crab", "GK Per", "Mrk 421"),
                "products": SOURCES,
                "output_root": str(root),
                "max_active": 2,
            }
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, json.dumps(given)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=os.environ | {"PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true"},
            )
            started.append(process)
            until(lambda: {"Crab", "Mrk 421"} <= sources_of(emulator, "status") or process.poll())
            return emulator, process

        yield start
        for process in started:
            process.kill()
            process.wait()

    def test_killed_and_gone_on_with(
        self,
        server: Server,
        building: Callable[[], tuple[Emulator, subprocess.Popen[str]]],
        root: Path,
    ) -> None:
        """Killed: the jobs live on, and the retry of the run follows them, each source with its one job."""
        emulator, process = building()
        expected = {"M31": "done", "Crab": "building", "Mrk 421": "building", "GK Per": "done"}
        until(lambda: states(root) == expected)
        process.kill()
        process.communicate(timeout=_PATIENCE_S)
        assert emulator.calls("cancel") == []
        jobs = list(emulator.jobs.values())
        ready = next(job.products["sourceDet"] for job in jobs if job.code("sourceDet") == 4)
        for job in jobs:
            job.products["sourceDet"] = ready
        (killed,) = [
            found
            for found in server.find("flow_runs", flow_runs={"name": {"any_": ["survey: 4 sources"]}})
            if found["parameters"]["output_root"] == str(root)
        ]
        with (
            temporary_settings({PREFECT_RESULTS_PERSIST_BY_DEFAULT: True}),
            get_client(sync_client=True) as client,
        ):
            client.set_flow_run_state(killed["id"], Scheduled(), force=True)
            again = client.read_flow_run(killed["id"])
            state: Any = run_flow(
                survey, flow_run=again, parameters=killed["parameters"], return_type="state"
            )
        assert state.is_completed()
        taken = {report.target.name: report.job_id for report in state.result()}
        assert taken == {job.parameters["name"]: job_id for job_id, job in emulator.jobs.items()}
        assert sorted(emulator.jobs) == [801, 802, 803, 804]
        for report in state.result():
            record = read_record(report.folder)
            assert record
            assert record.job.name == report.target.name

    def test_by_hand(
        self, building: Callable[[], tuple[Emulator, subprocess.Popen[str]]], root: Path
    ) -> None:
        """Ctrl-C reaches one thread; the jobs of all that still build are cancelled, and built again the next time."""
        emulator, process = building()
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=_PATIENCE_S)
        assert sources_of(emulator, "cancel") == {"Crab", "Mrk 421"}, told
        assert codes(emulator) == {"M31": 4, "Crab": -4, "GK Per": 4, "Mrk 421": -4}
        emulator.scenario.jobs.update({"Crab": {"*": READY}, "Mrk 421": {"*": READY}})
        state = run(root, listed("M31", "Crab", "GK Per", "Mrk 421"))
        assert state.is_completed()
        assert [report.state for report in state.result()] == ["done"] * 4
        assert {report.job_id for report in state.result()} >= {805, 806}
        assert len(emulator.jobs) == 6

    def test_cancelled_by_command(
        self,
        server: Server,
        service: Callable[..., Emulator],
        root: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Cancelled from elsewhere, it cancels what builds, begins nothing more, and ends Cancelled."""
        monkeypatch.setattr(runs, "_OWN_STATE_S", 0.1)
        emulator = service(default=RUNNING, jobs={name: {"*": READY} for name in ("M31", "GK Per")})

        def elsewhere() -> None:
            until(lambda: {"Crab", "Mrk 421"} <= sources_of(emulator, "status"))
            (found,) = server.find("flow_runs", flow_runs={"name": {"any_": ["survey: 5 sources"]},
                                                           "state": {"type": {"any_": ["RUNNING"]}}})  # fmt: skip
            server.cancel(found["id"])

        thread = threading.Thread(target=elsewhere)
        thread.start()
        state = run(root, listed("M31", "Crab", "Mrk 421", "GK Per", "LMC X-1"), max_active=2)
        thread.join()
        kind, _, message = ending(server, state)
        assert kind == "CANCELLED"
        assert message.startswith("1 of 5 sources are done, 2 cancelled, 2 not started, in ")
        assert codes(emulator) == {"M31": 4, "Crab": -4, "Mrk 421": -4}
