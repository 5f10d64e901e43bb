"""The flow in processes of a real worker's, at a real Prefect server: killed, and retried as the UI does it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import requests
from conftest import pid_of
from harness import HERE, Place, kills, spread
from requests.adapters import HTTPAdapter
from urllib3 import Retry
from verdict import RECORDS, troubles

from prefect_xrt.emulator import Emulator, Scenario, Timeline

if TYPE_CHECKING:
    from conftest import Server

INTERVAL_S = 0.2
REQUEST = {
    "name": "GRB 200416A",
    "targets": ["00966554"],
    "ra_deg": 335.6985,
    "dec_deg": -7.5179,
    "centroid": True,
    "position_error_arcmin": 1,
    "standard_position": True,
    "enhanced_position": True,
}
# One is there while the other still builds.
BUILD = {"psf": Timeline.of_looks((3, 1), (4,)), "enh": Timeline.of_looks((2, 1), (3, 2), (4,))}
LONG = {"psf": Timeline.of_looks((3, 1), (4,)), "enh": Timeline.of_looks((3, 40), (4,))}
AT_A_TIME = 3
KILLS = max(2, kills(0.25))
LOOKS = "await the answer to checkProductStatus.php"
GONE = (("out",), ("out", "state", "results"))
# The first test waits for the baseline and its own lives, which share the machine with the others.
pytestmark = pytest.mark.timeout(max(300, KILLS * 60))

_PATIENCE_S = 240.0
_POLL_S = 0.2
_SETTLE_S = 4.0
_RESTING = ("COMPLETED", "CRASHED", "FAILED", "CANCELLED")


class End(NamedTuple):
    """How a life ended.

    Attributes:
        points: Where it was to be killed.
        states: The states that its flow run was seen to come to rest in.
        troubles: What is not as it must be.
    """

    points: Sequence[str]
    states: list[str]
    troubles: list[str]


class Lives:
    """Lives of the deployed flow, each with a service, a folder and a flow run of its own.

    Args:
        server: The Prefect server.
        root: Where their folders go.
        pool: The work pool, which a worker brings into being.
    """

    def __init__(self, server: Server, root: Path, pool: str) -> None:
        self._api = server.url
        self._root = root
        self._pool = pool
        self._deployment = ""
        # Prefect's own client tries again, too, where SQLite is busy.
        again = Retry(total=10, backoff_factor=0.2, status_forcelist=[503], allowed_methods=None)
        self._session = requests.Session()
        self._session.mount("http://", HTTPAdapter(max_retries=again))

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker."""
        with (self._root / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "prefect",
                    "worker",
                    "start",
                    "--pool",
                    self._pool,
                    "--type",
                    "process",
                ],
                env=os.environ
                | {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_API_URL": self._api}
                | compiled(self._root),
                stdout=log,
                stderr=log,
            )
            try:
                self.wait(lambda: self._session.get(f"{self._api}/work_pools/{self._pool}", timeout=30).ok)
                yield process
            finally:
                process.terminate()
                process.wait(60)

    def deploy(self) -> None:
        """Deploy the flow for the pool."""
        flow = self._post("flows", name="build-products")
        deployment = self._post(
            "deployments",
            name=self._pool,
            flow_id=flow["id"],
            entrypoint="prefect_xrt.flows.build_products",
            work_pool_name=self._pool,
            enforce_parameter_schema=False,
        )
        self._deployment = deployment["id"]

    @contextmanager
    def place(self, name: str, build: dict[str, Timeline]) -> Iterator[Place]:
        """Give a folder and a service in real time."""
        root = self._root / name
        root.mkdir()
        with Emulator(Scenario(timelines=build, list_delay_s=INTERVAL_S / 2, observations=1)) as emulator:
            yield Place(root, emulator, INTERVAL_S)

    def start(self, place: Place, **orders: Any) -> str:
        """Start a run of the deployment, and return its ID."""
        environment = place.environment(**orders) | {
            "PREFECT_LOCAL_STORAGE_PATH": str(place.results),
            "PYTHONPATH": str(HERE / "hooked"),
        }
        run = self._post(
            f"deployments/{self._deployment}/create_flow_run",
            state={"type": "SCHEDULED"},
            parameters={
                "request": REQUEST,
                "output_dir": str(place.out),
                "extract": True,
                "pacing": {"floor_s": INTERVAL_S, "ceiling_s": 0.5},
            },
            job_variables={"env": environment},
        )
        return str(run["id"])

    def retry(self, run: str) -> None:
        """Have a run retried, as the UI does."""
        state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
        self._post(f"flow_runs/{run}/set_state", state=state, force=True)

    def rest(self, run: str) -> str:
        """Wait until a run has come to rest and nothing of it is left, and return the name of its state.

        A crash is told twice: at once, and again when what ran the process has ended, too. Who retries
        between the two has the second taken for a crash of the retry.
        """

        def state() -> str | None:
            if pid_of(run):
                return None
            found = self._run(run)
            return str(found["state_name"]) if found["state_type"] in _RESTING else None

        self.wait(state)
        time.sleep(_SETTLE_S)
        return str(self.wait(state))

    def live(self, name: str, points: Sequence[str], gone: Sequence[str] = ()) -> End:
        """Live, killed at one point after the other.

        Args:
            name: Of the life's folder.
            points: Where it is killed.
            gone: Folders that are gone with each process.
        """
        with self.place(name, BUILD) as place:
            run, states = "", []
            for point in points:
                if run:
                    place.hand_out(point)
                    self.retry(run)
                else:
                    run = self.start(place, point=point)
                states.append(self.rest(run))
                for folder in gone:
                    shutil.rmtree(place.root / folder)
            if states[-1] != "Completed":
                self.retry(run)
                states.append(self.rest(run))
            return End(points, states, self.troubles(place))

    def outlive_the_worker(self) -> End:
        """Live, with a worker that is killed together with the process, and then with a new one."""
        with self.place("life", LONG) as place:
            with self.worker() as worker:
                self.deploy()
                run = self.start(place)
                self.wait(lambda: place.emulator.calls("status"))
                worker.kill()
                worker.wait()
            while process := pid_of(run):
                os.kill(process, signal.SIGKILL)
            states = [str(self._run(run)["state_name"])]
            self.retry(run)
            with self.worker():
                states.append(self.rest(run))
            return End([], states, self.troubles(place))

    def baseline(self) -> list[str]:
        """Live without being killed, and return all points."""
        with self.place("baseline", BUILD) as place:
            assert self.rest(self.start(place, listed=True)) == "Completed"
            assert self.troubles(place) == []
            return place.points()

    def troubles(self, place: Place) -> list[str]:
        """Look for whatever is not as it must be."""
        intended = {str(REQUEST["name"]): [place.out]}
        records = RECORDS | {"report.json"}
        return troubles(place.emulator, place.state, intended, interval_s=INTERVAL_S, records=records)

    def _run(self, run: str) -> dict[str, Any]:
        return dict(self._session.get(f"{self._api}/flow_runs/{run}", timeout=60).json())

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        url = f"{self._api}/{path}{'' if '/' in path else '/'}"
        answer = self._session.post(url, json=body, timeout=60)
        assert answer.ok, answer.text
        return dict(answer.json())

    @staticmethod
    def wait(ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer."""
        give_up_at = time.monotonic() + _PATIENCE_S
        while not (found := ask()):
            assert time.monotonic() < give_up_at, "What was waited for did not happen."
            time.sleep(_POLL_S)
        return found


def compiled(root: Path) -> dict[str, str]:
    """Let the many processes compile what they import once, even where Python is told to keep nothing of it."""
    if not sys.dont_write_bytecode:
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(root / "compiled")}


def pairs(points: Sequence[str], number: int) -> list[tuple[str, str]]:
    """Choose for each life a point in the first half and one in the second, which a retry comes to, too."""
    half = len(points) // 2
    later = [point for point in points[half:] if ", time " not in point]
    return list(zip(spread(points[:half], number), spread(later, number), strict=False))


@pytest.fixture(scope="module")
def ends(
    prefect_process: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[End]]]:
    """Begin all lives, a few at a time, each with a name."""
    lives = Lives(prefect_process, tmp_path_factory.mktemp("lives"), "chaos")
    with lives.worker(), ThreadPoolExecutor(AT_A_TIME) as pool:
        lives.deploy()
        points = pool.submit(lives.baseline)
        begun = {
            " and ".join(gone): pool.submit(lives.live, " and ".join(gone), [LOOKS], gone) for gone in GONE
        }
        alone = Lives(prefect_process, tmp_path_factory.mktemp("alone"), "chaos-alone")
        begun["no worker"] = pool.submit(alone.outlive_the_worker)
        for number, pair in enumerate(pairs(points.result(), KILLS // 2)):
            begun[str(number)] = pool.submit(lives.live, str(number), pair)
        yield begun
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("number", range(KILLS // 2))
def test_killed_twice(number: int, ends: dict[str, Future[End]]) -> None:
    """Killed in the first half of its life and in the second, and retried: one job, all files, no litter."""
    if str(number) not in ends:
        pytest.skip("The flow has fewer points than that.")
    end = ends[str(number)].result()
    assert end == End(end.points, ["Crashed", "Crashed", "Completed"], [])


@pytest.mark.parametrize("gone", GONE, ids=" and ".join)
def test_folders_gone(gone: tuple[str, ...], ends: dict[str, Future[End]]) -> None:
    """Killed, and the machine's folders are gone: what Prefect or the service remembers leads to the same job."""
    assert ends[" and ".join(gone)].result() == End([LOOKS], ["Crashed", "Completed"], [])


def test_no_worker(ends: dict[str, Future[End]]) -> None:
    """Worker and process killed, nothing marks the run; retried, it goes on with the same job at a new worker."""
    assert ends["no worker"].result() == End([], ["Running", "Completed"], [])
