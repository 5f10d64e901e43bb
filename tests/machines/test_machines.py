"""Prefect servers in a row on PostgreSQL and Redis, and two machines with a worker and a watcher each.

On the way a server dies for good, and a machine loses its power: its worker, its flow runs, the watcher that
leads, and its disk. With a hundred jobs:

    XRT_MACHINES_JOBS=100 python3 dev.py test tests/machines/test_machines.py
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cluster
import pytest
import requests
from cluster import Balancer, Machine, until
from conftest import free_port
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from prefect_xrt import BuildReport, Image, LightCurve, ProductRequest
from prefect_xrt.emulator import Emulator, Scenario, Timeline

JOBS = int(os.environ.get("XRT_MACHINES_JOBS", "6"))
pytestmark = [
    pytest.mark.skipif(bool(cluster.missing()), reason=str(cluster.missing())),
    pytest.mark.timeout(600 + 60 * JOBS),
]

READY, SOON = Timeline.of((4,)), Timeline.of((2, 5), (3, 15), (4,))
# It is built as soon as somebody moves the service's clock.
LATER = Timeline.of((3, 10_000), (4,))
PATIENT = "patient"
ALLOWED = max(6, JOBS // 4)
SCENARIO = Scenario(default=SOON, jobs={PATIENT: {"image": READY, "lc": LATER}}, active_job_limit=ALLOWED)
OF_ITS_OWN = "~/products"
PATIENCE_S = 300 + 20 * JOBS
_MOVING = ("RUNNING", "PENDING")
_RESTING = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Site:
    """All machines, and what the API tells of them."""

    def __init__(self, url: str, emulator: Emulator, deployment: str) -> None:
        self.url = url
        self.emulator = emulator
        self.deployment = deployment
        self.runs: dict[str, str] = {}
        self.api = requests.Session()
        # As a client of Prefect's does: the server that was asked may have died.
        retry = Retry(8, status_forcelist=[503], allowed_methods=None, backoff_factor=0.2)
        self.api.mount("http://", HTTPAdapter(max_retries=retry))

    def post(self, path: str, **body: Any) -> Any:
        """Ask for something."""
        answer = self.api.post(f"{self.url}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def start(self, name: str, output_root: str, **products: Any) -> None:
        """Start a deferred run for an object."""
        request = ProductRequest(
            name=name, targets=["00966554"], ra_deg=1, dec_deg=1, centroid=False, image=Image(), **products
        )
        parameters = {
            "request": request.model_dump(mode="json"),
            "output_root": output_root,
            "waiting": "suspended",
        }
        run = self.post(
            f"deployments/{self.deployment}/create_flow_run",
            parameters=parameters,
            state={"type": "SCHEDULED"},
        )
        self.runs[name] = run["id"]

    def states(self) -> dict[str, dict[str, Any]]:
        """Give the states of the runs, by the names of their objects."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.post(
                "flow_runs/filter",
                flow_runs={"deployment_id": {"any_": [self.deployment]}},
                offset=len(found),
                sort="ID_DESC",
            )
            found += page
            if len(page) < 200:
                break
        by_id = {run["id"]: run["state"] for run in found}
        return {name: by_id[run_id] for name, run_id in self.runs.items()}

    def ended(self) -> set[str]:
        """Give those that have ended."""
        return {name for name, state in self.states().items() if state["type"] in _RESTING}


class World(NamedTuple):
    """All that there is at first; the second machine is idle."""

    site: Site
    share: Path
    balancer: Balancer
    servers: tuple[Machine, Machine]
    first: Machine
    second: Machine


class Story(NamedTuple):
    """What is left in the end, and whose processes the machine that died has taken along."""

    world: World
    site: Site
    lost: list[str]


def deploy(url: str) -> str:
    """Deploy what builds one target, by the API: a command would take seconds more."""

    def post(path: str, **body: Any) -> Any:
        answer = requests.post(f"{url}/{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json()

    post("work_pools/", name="xrt", type="process")
    return str(
        post(
            "deployments/",
            name="one-target",
            flow_id=post("flows/", name="one-target")["id"],
            entrypoint="prefect_xrt.pipelines.one_target.one_target",
            work_pool_name="xrt",
            tags=["swift", "xrt"],
        )["id"]
    )


def work(on: Machine) -> None:
    """Start a worker and a watcher."""
    on.prefect("worker", "worker", "start", "--pool", "xrt", "--limit", "2", "--name", on.name)
    on.start("watcher", "prefect_xrt.cli", "watch", "--every", "2")


@contextmanager
def world_in(root: Path) -> Iterator[World]:
    """Start the databases, the service, the servers and the first machine, which begins with one run."""
    with ExitStack() as stack:
        database, messages, ports = free_port(), free_port(), (free_port(), free_port())
        stack.enter_context(cluster.postgres(database))
        stack.enter_context(cluster.redis(root / "redis", messages))
        emulator = stack.enter_context(Emulator(SCENARIO))
        balancer = stack.enter_context(Balancer(ports))
        url = f"http://127.0.0.1:{balancer.port}/api"
        settings = cluster.server_settings(database, messages)

        def machine(name: str, environment: dict[str, str]) -> Machine:
            made = Machine(name, root / name, environment)
            stack.callback(made.stop)
            return made

        def serve(name: str, port: int) -> Machine:
            made = machine(name, settings)
            options = ("--no-services", "--no-ui", "--host", "127.0.0.1", "--port", str(port))
            made.prefect("server", "server", "start", *options)
            return made

        def is_there(port: int) -> None:
            until(lambda: cluster.answers(f"http://127.0.0.1:{port}/api/health"), "a server")

        one = serve("server-1", ports[0])
        # It prepares the database.
        is_there(ports[0])
        two = serve("server-2", ports[1])
        machine("services", settings).prefect("services", "server", "services", "start")
        account = {
            "PREFECT_API_URL": url,
            "PREFECT_CLIENT_MAX_RETRIES": "8",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_XRT_USER_ID": emulator.user_id,
            "PREFECT_XRT_BASE_URL": emulator.url,
            "PREFECT_XRT_MAX_ACTIVE": str(ALLOWED),
        }
        first, second = (machine(name, account) for name in ("first", "second"))
        site = Site(url, emulator, deploy(url))
        site.start(PATIENT, OF_ITS_OWN, light_curve=LightCurve(binning="obsid"))
        work(first)
        is_there(ports[1])
        yield World(site, root / "share", balancer, (one, two), first, second)


def strike(machine: Machine, site: Site) -> list[str]:
    """Let a machine die while it has runs under way, and tell which."""

    def under_way() -> list[str]:
        # It stands still, so that they are what they seem.
        machine.freeze()
        here, states = machine.flow_runs(), site.states()
        found = [n for n, run in site.runs.items() if run in here and states[n]["type"] in _MOVING]
        if not found:
            machine.thaw()
        return found

    lost: list[str] = until(under_way, "a run on that machine", patience_s=PATIENCE_S)
    machine.die()
    shutil.rmtree(machine.home / "state", ignore_errors=True)
    return lost


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Let it all happen."""
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:8.1f} s  {what}", file=sys.stderr, flush=True)

    with world_in(tmp_path_factory.mktemp("site")) as world:
        site, first, second = world.site, world.first, world.second
        tell("all is there")
        until(lambda: list(first.home.rglob("image.tar.gz")), "a file on the disk of the first machine")
        until(lambda: site.states()[PATIENT]["name"] == "Suspended", "a run that is suspended again")
        for number in range(JOBS - 1):
            site.start(f"object {number}", OF_ITS_OWN if number % 8 == 7 else str(world.share))
        work(second)
        tell("all are asked for")
        until(lambda: len(site.emulator.jobs) > 1 + JOBS // 8, "the first jobs", patience_s=PATIENCE_S)
        world.servers[0].die()
        tell("a server is gone")
        until(lambda: len(site.emulator.jobs) > JOBS // 4, "more jobs", patience_s=PATIENCE_S)
        lost = strike(first, site)
        tell(f"a machine is gone, and with it {', '.join(lost)}")
        # As somebody does who knows of it; docs/machines.md has the command.
        for name in lost:
            site.post(
                f"flow_runs/{site.runs[name]}/set_state", state={"type": "SCHEDULED", "name": "AwaitingRetry"}
            )
        site.emulator.advance(10_000)
        told: list[int] = []

        def done() -> bool:
            ended = len(site.ended())
            if ended not in told:
                told.append(ended)
                tell(f"{ended} have ended")
            return ended == JOBS

        try:
            until(done, "the end of all runs", patience_s=PATIENCE_S)
        except AssertionError:
            pytest.fail("\n".join(f"{name}: {state}" for name, state in site.states().items()))
        yield Story(world, site, lost)


def test_every_job_once(story: Story) -> None:
    """Every request has become one job, and was sent once, whatever has died."""
    names = Counter(job.parameters["name"] for job in story.site.emulator.jobs.values())
    assert names == Counter(dict.fromkeys(story.site.runs, 1))
    assert len(story.site.emulator.calls("submit")) == JOBS
    assert story.lost


def test_every_run_completed(story: Story) -> None:
    """Every run has completed, those of the dead machine, too; both servers have had a share."""
    states = story.site.states()
    assert {name: state["message"] for name, state in states.items() if state["name"] != "Completed"} == {}
    assert all(story.world.balancer.served.values())


def test_files(story: Story) -> None:
    """All files of a run are whole, and in one place: those that the dead machine had fetched, too."""
    reports = [
        BuildReport.model_validate_json(path.read_text(encoding="utf-8"))
        for root in (story.world.share, story.world.second.home, story.world.first.home)
        for path in root.rglob("report.json")
    ]
    assert sorted({report.job.name for report in reports}) == sorted(story.site.runs)
    for report in reports:
        assert report.succeeded
        assert {file.path.parent for file in report.files} == {report.output_dir}
        for file in report.files:
            content = file.path.read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
    (patient,) = (report for report in reports if report.job.name == PATIENT)
    assert patient.output_dir.is_relative_to(story.world.second.home)
    assert list(story.world.first.home.rglob("image.tar.gz"))


def test_nothing_is_left(story: Story) -> None:
    """No slot is held, nobody waits in a queue, nothing runs, and no job is active."""
    limits = story.site.post("v2/concurrency_limits/filter")
    assert [limit["name"] for limit in limits if limit["active_slots"]] == []
    tickets = story.site.post("artifacts/filter", artifacts={"key": {"like_": "xrt-queue-%"}})
    # The next one who asks removes those of runs that have ended.
    lost = {story.site.runs[name] for name in story.lost}
    assert {ticket["metadata_"]["root-flow-run"] for ticket in tickets} <= lost
    going_on = story.site.post(
        "flow_runs/filter",
        flow_runs={"state": {"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED", "PAUSED", "CANCELLING"]}}},
    )
    assert [run["name"] for run in going_on] == []
    until(lambda: not story.world.second.flow_runs(), "the end of the last process")
