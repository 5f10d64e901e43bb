"""What the chaos suite is made of: places to live in, and processes that are killed at a point."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from strike import VARIABLE

from prefect_xrt.emulator import Emulator

HERE = Path(__file__).resolve().parent
KILLED = -9
_T = TypeVar("_T")


def kills(share: float) -> int:
    """Return a share of the number of kills that `XRT_KILLS` asks for, rounded: of 64, if it does not."""
    return round(share * int(os.environ.get("XRT_KILLS", "64")))


def spread(things: Sequence[_T], number: int) -> list[_T]:
    """Choose things at even distances over the whole of a sequence, its first and its last among them."""
    if number >= len(things):
        return list(things)
    return [things[round(at * (len(things) - 1) / max(1, number - 1))] for at in range(number)]


@dataclass(frozen=True)
class Place:
    """Where one life takes place: a folder for its output, one for what the machine remembers, and a service.

    Args:
        root: A folder of its own.
        emulator: The service.
        interval_s: Between two looks.
    """

    root: Path
    emulator: Emulator
    interval_s: float

    @property
    def out(self) -> Path:
        """Where the files go."""
        return self.root / "out"

    @property
    def state(self) -> Path:
        """Where claims and looks are noted."""
        return self.root / "state"

    @property
    def results(self) -> Path:
        """Where Prefect keeps what its tasks returned."""
        return self.root / "results"

    @property
    def token(self) -> Path:
        """What lets one process die."""
        return self.root / "token"

    @property
    def events(self) -> Path:
        """Where the points of a life that is not ended early are listed."""
        return self.root / "events"

    def environment(self, *, point: str | int | None = None, listed: bool = False) -> dict[str, str]:
        """Return what the processes of this life find in their environment, and hand out the token.

        Args:
            point: Where the next process that comes there dies.
            listed: List all points instead.
        """
        if point is not None:
            self.hand_out(point)
        orders = {
            "port": int(self.emulator.origin.rpartition(":")[2]),
            "folders": {name: str(self.root / name) for name in ("out", "state", "results")},
            "token": str(self.token),
            "events": str(self.events) if listed else None,
        }
        return {
            "PREFECT_XRT_USER_ID": self.emulator.user_id,
            "PREFECT_XRT_BASE_URL": self.emulator.url,
            "XDG_STATE_HOME": str(self.state),
            VARIABLE: json.dumps(orders),
        }

    def hand_out(self, point: str | int) -> None:
        """Hand out the token: the next process that comes to a point dies."""
        self.token.write_text(json.dumps(point))

    def points(self) -> list[str]:
        """Return the points that were listed, in order."""
        return self.events.read_text().splitlines()


class Cradle:
    """Bears processes of `prefect-xrt` one after the other, without the second that each would need to import it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "cradle.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *arguments: str, environment: Mapping[str, str], log: Path, sabotage: Sequence[str] = ()
    ) -> tuple[int, str]:
        """Run the program in a process of its own to its end.

        Args:
            arguments: Of the command line.
            environment: What is added to it.
            log: Takes standard error.
            sabotage: Functions of the package that do nothing in this process.

        Returns:
            The exit code, negative for a signal, and standard output.
        """
        stdout = log.with_suffix(".out")
        stdout.unlink(missing_ok=True)
        order = {
            "arguments": arguments,
            "environment": dict(environment),
            "stdout": str(stdout),
            "stderr": str(log),
            "sabotage": list(sabotage),
        }
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), stdout.read_text()

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


@contextmanager
def cradle() -> Iterator[Cradle]:
    """Open a cradle."""
    opened = Cradle()
    try:
        yield opened
    finally:
        opened.close()


def installed(*arguments: str, environment: Mapping[str, str], log: Path) -> tuple[int, str]:
    """Run the installed program, as `Cradle.run` does; slower, but the very thing that people run."""
    program = Path(sys.executable).with_name("prefect-xrt")
    with log.open("ab") as stderr:
        done = subprocess.run(
            [str(program), *arguments],
            env=os.environ | environment | {"PYTHONPATH": str(HERE / "hooked")},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
        )
    return done.returncode, done.stdout
