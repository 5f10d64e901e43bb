"""What the benchmarks share: measuring in turns, tables, processor time and memory, and the servers.

Other work on the machine makes everything slower. So what is compared is measured in turns, a ratio is one of
numbers of the same turn, and what is shown is the median of the turns with the least and the most.
Processor time and memory are read where Linux tells them, below `/proc`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from urllib.request import urlopen

ADDRESS = "demo@example.org"
"""The account that the embedded service knows."""

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

_T = TypeVar("_T")
_START_S = 120.0
_TICKS = os.sysconf("SC_CLK_TCK")
_LOGGED_CALL = re.compile(r'"(?P<method>[A-Z]+) (?P<path>/api/[^ "?]*)[^"]*" \d+')
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class Spread(NamedTuple):
    """A median, with the least and the most that it is the median of."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the spread of some values."""
        return cls(statistics.median(values), min(values), max(values))

    def text(self, unit: str = "") -> str:
        """Return it as a table shows it, such as "1.25 s (1.19 to 1.40)"."""
        median, least, most = map(_digits, self)
        return f"{median}{unit and f' {unit}'} ({least} to {most})"


def _digits(value: float) -> str:
    """Return a number with about three significant digits, and none after the point of whole ones."""
    size = abs(value)
    if 0 < size < 0.1:  # noqa: PLR2004 - orders of magnitude
        return f"{value:.2g}"
    places = 0 if size >= 100 or size == int(size) else 1 if size >= 10 else 2  # noqa: PLR2004
    return f"{value:.{places}f}"


def ratios(values: Sequence[float], baseline: Sequence[float]) -> Spread:
    """Return how many times as much the values are as those of a baseline, turn by turn."""
    return Spread.of([value / base for value, base in zip(values, baseline, strict=True)])


def in_turns(acts: Mapping[str, Callable[[], _T]], repeats: int) -> dict[str, list[_T]]:
    """Do some acts again and again, one after the other, and return what each returned, turn by turn."""
    found: dict[str, list[_T]] = {name: [] for name in acts}
    for turn in range(repeats):
        for name, act in acts.items():
            say(f"{turn + 1}/{repeats} {name}")
            found[name].append(act())
    return found


def say(line: str) -> None:
    """Tell whoever waits what is being done; it is no part of the result."""
    print(f"  ... {line}", file=sys.stderr, flush=True)


class Page:
    """What a script has found, as Markdown: printed, and at its end written into the documentation where asked for.

    Args:
        script: The file of the script.
        into_docs: Whether it replaces what the documentation holds of this script.
    """

    def __init__(self, script: str, *, into_docs: bool) -> None:
        self._name = Path(script).stem
        self._into_docs = into_docs
        self._texts: list[str] = []

    def __enter__(self) -> Self:
        """Return the page itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Write what was found, if nothing went wrong."""
        if self._into_docs and kind is None:
            begin, end = f"<!-- benchmarks/{self._name}.py -->", f"<!-- end of benchmarks/{self._name}.py -->"
            before, rest = DOCS.read_text(encoding="utf-8").split(begin)
            after = rest.split(end)[1]
            found = "\n\n".join([begin, *self._texts, end])
            DOCS.write_text(f"{before}{found}{after}", encoding="utf-8")

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self._texts.append(text)
        print(text, end="\n\n", flush=True)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        lines = [columns, ["---"] * len(columns), *rows]
        self.say("\n".join(f"| {' | '.join(cells)} |" for cells in lines))


def options_of(description: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser of the options that every script has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="how many turns (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="once and small, to see whether it runs")
    parser.add_argument("--write", action="store_true", help="put what it finds into docs/benchmarks.md")
    return parser


def cpu_s(process_id: int | str = "self") -> float:
    """Return the processor time that a process has used, in seconds, without that of its children."""
    # The name in brackets may hold blanks.
    entries = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(entries[11]) + int(entries[12])) / _TICKS


def peak_bytes() -> int:
    """Return the most memory that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> int:
    """Let the measuring of the peak begin now, and return how much memory there is now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def measure_apart(script: str, *arguments: str, **environment: str) -> Any:
    """Run a part of a script in a process of its own, and return what it printed last, read as JSON."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def free_port() -> int:
    """Find a port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Service(NamedTuple):
    """The embedded service in a process of its own."""

    url: str
    process_id: int

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return self.url.removesuffix("/user_objects")

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the package finds it."""
        return {"PREFECT_XRT_USER_ID": ADDRESS, "PREFECT_XRT_BASE_URL": self.url}


def official_client(running: str) -> Any:
    """Import the official client's module of products, and let it ask the service at a URL: it cannot be told where."""
    warnings.simplefilter("ignore")
    import requests
    from swifttools.ukssdc import xrt_prods  # type: ignore[import-untyped]

    send, origin = requests.Session.send, running.removesuffix("/user_objects")

    def redirected(session: Any, request: Any, **options: Any) -> Any:
        request.url = request.url.replace("https://www.swift.ac.uk", origin)
        return send(session, request, **options)

    requests.Session.send = redirected  # type: ignore[assignment, method-assign]
    return xrt_prods


@contextmanager
def service(scenario: Mapping[str, object], speed: float = 1.0) -> Iterator[Service]:
    """Run the embedded service, which plays a scenario."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "scenario.json")
        file.write_text(json.dumps(scenario))
        command = [sys.executable, "-u", "-m", "prefect_xrt.emulator", "--port", "0"]
        process = subprocess.Popen(
            [*command, "--scenario", str(file), "--speed", str(speed)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout  # noqa: S101 - a pipe was asked for
            found = re.search(r"http://\S+", process.stdout.readline())
            if not found:
                raise SystemExit("The embedded service did not start.")
            yield Service(found[0], process.pid)
        finally:
            _stop(process)


class PrefectServer:
    """A Prefect server in a process of its own, which notes every call."""

    def __init__(self, url: str, process_id: int, log: Path) -> None:
        self.url = url
        self.process_id = process_id
        self.log = log

    def calls(self) -> list[str]:
        """Return the calls that came so far, such as "POST /flow_runs/filter", but none that ask for its health."""
        found = _LOGGED_CALL.finditer(self.log.read_text())
        calls = [f"{call['method']} {_ID.sub('{id}', call['path'].removeprefix('/api'))}" for call in found]
        return [call for call in calls if call not in ("GET /health", "GET /admin/version")]

    def settle(self, quiet_s: float = 1.5) -> None:
        """Wait until it has done what it was told: it records events and logs a little later."""
        give_up_at = time.monotonic() + _START_S
        while time.monotonic() < give_up_at:
            before = cpu_s(self.process_id)
            time.sleep(quiet_s)
            # What it does without being asked takes a few hundredths of a second now and then.
            if cpu_s(self.process_id) - before < 0.1 * quiet_s:
                return


@contextmanager
def prefect_server() -> Iterator[PrefectServer]:
    """Run a Prefect server with an empty home, on SQLite, as `prefect server start` does."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    with tempfile.TemporaryDirectory() as home:
        environment = {"PREFECT_HOME": home, "PREFECT_LOGGING_SERVER_LEVEL": "INFO", **QUIET}
        environment["PREFECT_SERVER_LOGGING_LEVEL"] = "INFO"
        log = Path(home, "server.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "prefect",
                    "server",
                    "start",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ],
                env=_without_prefect(os.environ) | environment,
                stdout=output,
                stderr=output,
            )
        try:
            give_up_at = time.monotonic() + _START_S
            while not _answers(f"{url}/health"):
                if process.poll() is not None or time.monotonic() > give_up_at:
                    raise SystemExit(f"No Prefect server: {log.read_text()}")
                time.sleep(0.2)
            yield PrefectServer(url, process.pid, log)
        finally:
            _stop(process)


QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
}
"""Variables with which Prefect tells nobody of itself, and asks nothing."""


def _without_prefect(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("PREFECT_")}


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310 - of this machine
            return bool(answer.status == 200)  # noqa: PLR2004 - OK
    except OSError:
        return False


def _stop(process: subprocess.Popen[Any]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
