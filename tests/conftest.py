"""One real Prefect server for the session, embedded services, and the requests that tests send to them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from prefect_xrt import ProductRequest
    from prefect_xrt.emulator import Emulator

pytest_plugins = ["prefect_xrt.emulator.fixtures"]

# No test asserts times: how fast an example is made or tried is the machine's affair.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# Prefect reads all this when it is imported; what the machine has set for it must not reach the tests.
for _name in [name for name in os.environ if name.startswith("PREFECT_")]:
    del os.environ[_name]
_HOME = tempfile.TemporaryDirectory(prefix="prefect-xrt-tests-")
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_HOME": _HOME.name,
    "XDG_STATE_HOME": _HOME.name,
    "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.1",
    "PREFECT_CLI_PROMPT": "false",
}

ROOT = Path(__file__).resolve().parent.parent
_START_S = 180.0
_SETTLE_S = 120.0


class Server:
    """A Prefect server, asked over its own API, so that tests see what a user of it would see."""

    def __init__(self, home: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"
        self.home = home
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, as a user would, and wait until it answers."""
        fast = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_UI_API_URL": self.url,
            "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL": "0.2",
            "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        }
        place = ("--host", "127.0.0.1", "--port", str(self._port))
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", "server", "start", *place],
                env=os.environ | fast,
                stdout=log,
                stderr=log,
            )
        give_up_at = time.monotonic() + _START_S
        while not _answers(f"{self.url}/health"):
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                pytest.fail(f"No Prefect server: {(self.home / 'server.log').read_text()}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop it; what it knows stays in its folder."""
        if self._process:
            self._process.terminate()
            self._process.wait(30)

    def find(self, kind: str, **body: Any) -> Any:
        """Post a filter."""
        answer = requests.post(f"{self.url}/{kind}/filter", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def send(self, path: str, **body: Any) -> Any:
        """Ask for a change; on SQLite the server turns some away where many come at once."""
        url = f"{self.url}/{path}"
        while (answer := requests.post(url, json=body, timeout=60)).status_code == requests.codes.unavailable:
            time.sleep(0.5)
        answer.raise_for_status()
        return answer.json()

    def set_state(self, run_id: object, type_: str, name: str) -> None:
        """Set the state of a flow run, as the UI does."""
        self.send(f"flow_runs/{run_id}/set_state", state={"type": type_, "name": name})

    def cancel(self, run_id: object) -> None:
        """Cancel a flow run, as the UI does."""
        self.set_state(run_id, "CANCELLING", "Cancelling")

    def resume(self, run_id: object) -> None:
        """Resume a flow run that is suspended."""
        self.send(f"flow_runs/{run_id}/resume")

    def flow_run(self, run_id: object) -> dict[str, Any]:
        """Give a flow run."""
        answer = requests.get(f"{self.url}/flow_runs/{run_id}", timeout=30)
        answer.raise_for_status()
        return dict(answer.json())

    def task_runs(self, run_id: object) -> list[tuple[str, str]]:
        """Give the names and states of a flow run's task runs, in order of their start, once all have ended."""

        def ended() -> list[tuple[str, str]] | None:
            runs = self.find("task_runs", task_runs={"flow_run_id": {"any_": [str(run_id)]}})
            if any(run["end_time"] is None for run in runs):
                return None
            runs.sort(key=lambda run: run["start_time"])
            return [(run["name"], run["state_name"]) for run in runs]

        return self.settled(ended)

    def artifacts(self, run_id: object) -> dict[str, dict[str, Any]]:
        """Give a flow run's newest artifact of each key."""
        found = self.find("artifacts", artifacts={"flow_run_id": {"any_": [str(run_id)]}})
        return {artifact["key"]: artifact for artifact in sorted(found, key=lambda entry: entry["created"])}

    def events(self, name: str, resource: str, *runs: object) -> list[dict[str, Any]]:
        """Give the events of a name about a resource, of any flow run or of some, once there is one."""

        def there() -> list[dict[str, Any]] | None:
            wanted: dict[str, Any] = {"event": {"name": [name]}, "resource": {"id": [resource]}}
            if runs:
                wanted["related"] = {"id": [f"prefect.flow-run.{run}" for run in runs]}
            return list(self.find("events", filter=wanted)["events"]) or None

        return self.settled(there)

    def logs(self, run_id: object, until: str) -> list[tuple[int, str]]:
        """Give levels and texts of a flow run's log, once it holds a text."""

        def there() -> list[tuple[int, str]] | None:
            wanted = {"flow_run_id": {"any_": [str(run_id)]}}
            lines = [
                (line["level"], line["message"])
                for line in self.find("logs", logs=wanted, sort="TIMESTAMP_ASC")
            ]
            return lines if any(until in text for _, text in lines) else None

        return self.settled(there)

    @staticmethod
    def settled(ask: Callable[[], Any]) -> Any:
        """Ask until there is an answer: the server records events, logs and task runs a little later."""
        give_up_at = time.monotonic() + _SETTLE_S
        while (found := ask()) is None:
            if time.monotonic() > give_up_at:
                raise AssertionError("The server has not recorded what was waited for.")
            time.sleep(0.1)
        return found


def until(there: Callable[[], Any], what: object = "an answer", patience_s: float = _SETTLE_S) -> Any:
    """Ask until there is something, and return it."""
    give_up_at = time.monotonic() + patience_s
    while not (found := there()):
        assert time.monotonic() < give_up_at, f"What was waited for has not come: {what}."
        time.sleep(0.2)
    return found


def pid_of(run_id: str) -> int:
    """Find a process of a flow run that a worker has started; 0 where there is none."""
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"PREFECT__FLOW_RUN_ID={run_id}".encode() in place.read_bytes():
                return int(place.parent.name)
        except OSError:
            continue
    return 0


def free_port() -> int:
    """Find a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def prefect_server(home: Path, port: int) -> Iterator[Server]:
    """Run a Prefect server."""
    server = Server(home, port)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def prefect_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start one server, and stop it at the end."""
    with prefect_server(tmp_path_factory.mktemp("server"), free_port()) as server:
        yield server
        _leave()


def _leave() -> None:
    """Send what this process has still to tell the server, before it is gone."""
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415 - takes seconds

    APILogWorker.drain_all(timeout=10)


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(autouse=True)
def _machine_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test know nothing of the jobs of others: ports, and so services, come round again."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture
def server(prefect_process: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Let this process, and those that it starts, use the session's server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415 - takes seconds

    monkeypatch.setenv("PREFECT_API_URL", prefect_process.url)
    with temporary_settings({PREFECT_API_URL: prefect_process.url}):
        yield prefect_process


@pytest.fixture(scope="session")
def deployed(prefect_process: Server) -> None:
    """Deploy all pipelines, by the one command."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect_xrt.cli", "deploy"],
        env=os.environ | {"PREFECT_API_URL": prefect_process.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def worker(
    prefect_process: Server, deployed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a worker for what is deployed.

    Two run at a time, and it is patient: where many begin at once, SQLite turns changes away, and what the worker
    cannot tell of a run lets that crash. The limit is the pool's: one of its own would end a worker of before Prefect
    3.9 when a run is resumed while its process still ends.
    """
    here = {"PREFECT_API_URL": prefect_process.url}
    limit = ("work-pool", "set-concurrency-limit", "xrt", "2")
    subprocess.run([sys.executable, "-m", "prefect", *limit], env=os.environ | here, check=True)
    calm = {"PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_CLIENT_MAX_RETRIES": "20"}
    with (tmp_path_factory.mktemp("worker") / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "xrt"],
            env=os.environ | calm | here,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def service(
    xrt_service_factory: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Emulator]:
    """Start an embedded service, with the arguments of `Scenario`, and let the environment name it."""
    from prefect_xrt.emulator import Scenario  # noqa: PLC0415 - after the environment is set

    def start(
        *, speed: float = 2000.0, users: tuple[str, ...] = ("demo@example.org",), **scenario: Any
    ) -> Emulator:
        service = xrt_service_factory(Scenario(**scenario), speed=speed, users=users)
        monkeypatch.setenv("PREFECT_XRT_USER_ID", service.user_id)
        monkeypatch.setenv("PREFECT_XRT_BASE_URL", service.url)
        return service

    return start


@pytest.fixture
def request_() -> ProductRequest:
    """Ask for three products: light curve, spectrum and image."""
    from prefect_xrt import Image, LightCurve, ProductRequest, Spectrum  # noqa: PLC0415

    return ProductRequest(
        name="GRB 200416A",
        targets=["00966554"],
        ra_deg=335.6985,
        dec_deg=-7.5179,
        centroid=True,
        position_error_arcmin=1,
        light_curve=LightCurve(binning="counts", pc_counts=20, wt_counts=30, dynamic=True),
        spectrum=Spectrum(),
        image=Image(),
    )


@pytest.fixture
def request_file(request_: ProductRequest, tmp_path: Path) -> Path:
    """Write the request into a file."""
    path = tmp_path / "request.json"
    path.write_text(request_.model_dump_json(exclude={"products"}))
    return path
