"""What several machines are made of: databases, servers in a row behind one address, and machines that can die."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import requests
import yaml
from conftest import free_port
from conftest import until as until_there
from pydantic import SecretStr

from prefect_xrt import BuildReport, Image, LightCurve, ProductRequest, XRTClient, reports
from prefect_xrt.archive import download_all
from prefect_xrt.emulator import Emulator

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = "XRT_MACHINE"
_START_S = 180.0
_FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
# The newest one of a machine that keeps several, else what is on the path.
POSTGRES = _FOUND[-1].parent if _FOUND else Path(shutil.which("initdb") or "/nowhere/initdb").parent
AS_POSTGRES = ("runuser", "-u", "postgres", "--")


def missing() -> str | None:
    """Return what is not installed here; None where all is there."""
    if not (POSTGRES / "initdb").exists():
        return "PostgreSQL is not installed"
    if not shutil.which("redis-server"):
        return "Redis is not installed"
    return None


until = partial(until_there, patience_s=_START_S)


def processes_of(machine: str) -> list[int]:
    """Give the processes of a machine, those that others of it have started, too."""
    mark = f"{MACHINE}={machine}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
    return found


def signal_all(machine: str, number: signal.Signals) -> None:
    """Send a signal to all that runs on a machine."""
    for pid in processes_of(machine):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def variable(pid: int, name: str) -> str | None:
    """Give a variable of a process' environment."""
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(f"{name}=".encode()):
                return entry.decode().partition("=")[2]
    return None


class Machine:
    """A machine of its own: a name, a home, what runs on it, and a power cord.

    Args:
        name: Its name, by which its processes are known.
        home: Its disk.
        environment: What else its processes are told.
    """

    def __init__(self, name: str, home: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.home = home
        home.mkdir()
        self.environment = {
            MACHINE: name,
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "PREFECT_HOME": str(home / "prefect"),
            **environment,
        }
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program, with its words in a file of the machine."""
        with (self.home / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], env=os.environ | self.environment, stdout=out, stderr=out
            )
        self._started.append(process)
        return process

    def prefect(self, log: str, *command: str) -> subprocess.Popen[bytes]:
        """Start one of Prefect's programs."""
        return self.start(log, "prefect", *command)

    def flow_runs(self) -> list[str]:
        """Give the flow runs that have a process here."""
        found = {variable(pid, "PREFECT__FLOW_RUN_ID") for pid in processes_of(self.name)}
        return sorted(run_id for run_id in found if run_id)

    def freeze(self) -> None:
        """Let nothing here go on."""
        signal_all(self.name, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let all go on."""
        signal_all(self.name, signal.SIGCONT)

    def die(self) -> None:
        """Lose power: all ends at once, and nobody is told."""
        while processes_of(self.name):
            signal_all(self.name, signal.SIGKILL)
            for process in self._started:
                process.poll()
            time.sleep(0.05)
        for process in self._started:
            process.wait(30)

    def stop(self) -> None:
        """Shut down in order; what does not end in time dies."""
        for process in self._started:
            process.terminate()
        give_up_at = time.monotonic() + 30
        while processes_of(self.name) and time.monotonic() < give_up_at:
            for process in self._started:
                process.poll()
            time.sleep(0.1)
        self.die()


class Balancer:
    """One address for several servers: each connection goes to the next that takes it."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self.served = dict.fromkeys(ports, 0)
        self._ports = list(ports)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)

    def __enter__(self) -> Balancer:
        self._thread.start()
        listening = asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self._server = asyncio.run_coroutine_threadsafe(listening, self._loop).result(30)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            for _ in self._ports:
                port = self._ports.pop(0)
                self._ports.append(port)
                with suppress(OSError):
                    there, back = await asyncio.open_connection("127.0.0.1", port)
                    self.served[port] += 1
                    await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
                    break
        writer.close()

    @staticmethod
    async def _pass(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(2**16):
                sink.write(data)
                await sink.drain()
        finally:
            sink.close()


def server_settings(database: int, redis: int) -> dict[str, str]:
    """Give the settings that compose.yaml has for a server, for databases at other places."""
    compose = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text(encoding="utf-8"))
    settings = {
        name: str(value).replace("redis://redis:6379", f"redis://127.0.0.1:{redis}")
        for name, value in compose["services"]["server"]["environment"].items()
        if "_UI_" not in name
    }
    place = {"HOST": "127.0.0.1", "PORT": str(database), "PASSWORD": "prefect"}
    return settings | {f"PREFECT_SERVER_DATABASE_{name}": value for name, value in place.items()}


@contextmanager
def postgres(port: int) -> Iterator[None]:
    """Run a PostgreSQL with a database for Prefect."""
    # It does not run as root, and who it runs as then cannot enter the folders of tests.
    as_who = AS_POSTGRES if os.getuid() == 0 else ()
    who = "postgres" if as_who else pwd.getpwuid(os.getuid()).pw_name
    at = ("-h", "127.0.0.1", "-p", str(port), "-U", who)
    with tempfile.TemporaryDirectory() as folder:
        if as_who:
            shutil.chown(folder, who)

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [*as_who, str(POSTGRES / program), *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE if program != "pg_ctl" else subprocess.DEVNULL,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{program}: {done.stderr}"

        data, log = f"--pgdata={folder}/data", f"--log={folder}/log"
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=200"
        run("initdb", "--auth=trust", "--no-sync", data)
        run("pg_ctl", data, "-w", log, "-o", options, "start")
        try:
            run("psql", *at, "-d", "postgres", "-c", "CREATE ROLE prefect LOGIN")
            run("createdb", *at, "-O", "prefect", "prefect")
            yield
        finally:
            run("pg_ctl", data, "-w", "-m", "immediate", "stop")


@contextmanager
def redis(folder: Path, port: int) -> Iterator[None]:
    """Run a Redis."""
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
            stdout=log,
            stderr=log,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def build(emulator: Emulator, name: str, folder: Path) -> BuildReport:
    """Build and fetch an image and a light curve, without Prefect; the report lies beside them."""
    request = ProductRequest(
        name=name,
        targets=["00966554"],
        ra_deg=1,
        dec_deg=1,
        centroid=False,
        image=Image(),
        light_curve=LightCurve(binning="counts", pc_counts=20, wt_counts=30, dynamic=True),
    )
    started_at = datetime.now(UTC)
    with XRTClient(SecretStr(emulator.user_id), emulator.url) as client:
        job = client.submit(request)
        files, problems = download_all(client, job, job.products, folder)
        outcome = client.check_product_status(job)
    assert not problems
    report = reports.make_report(
        job,
        outcome,
        {file.product: file for file in files},
        {},
        output_dir=folder,
        started_at=started_at,
        problem=None,
    )
    reports.write_report(report)
    return report
