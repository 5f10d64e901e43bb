"""End this very process by SIGKILL at one exact point of its life, or list all the points that there are.

A point is an event that Python's audit hooks tell of before the system does it: something written,
renamed or removed in one of the folders that matter, a connection to the service, a part of a request.
What no hook tells of, the arrival of an answer, is told of here in the same way. The same event's second
time is a point of its own. A token, a file that holds the point, lets exactly one process die.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "XRT_CHAOS"
"""Names the orders in the environment: JSON of what `Strike` takes."""

_PIECE_BYTES = 512
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Event: what it is called here, and where its arguments have the path and the folder that it is relative to.
_FILE_EVENTS = {
    "open": ("write", 0, None),
    "os.rename": ("rename", 0, 2),
    "os.remove": ("remove", 0, 1),
    "os.mkdir": ("mkdir", 0, 2),
    "os.rmdir": ("rmdir", 0, 1),
    "os.link": ("link", 1, 3),
    "os.symlink": ("symlink", 1, 2),
    "os.truncate": ("truncate", 0, None),
    "os.utime": ("utime", 0, 3),
}
_VARYING = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|[0-9a-f]{16,}")


class Strike:
    """What this process is watched for.

    Args:
        port: The service's.
        folders: The folders that matter, by the names that points call them.
        token: A file that holds a point, as text, or as the number of an event from the start.
        events: A file that takes a line for every event.
    """

    def __init__(
        self, port: int, folders: Mapping[str, str], token: str | None = None, events: str | None = None
    ) -> None:
        self._port = port
        self._folders = {os.path.realpath(path): name for name, path in folders.items()}
        self._token = token
        self._point: str | int | None = None
        if token and os.path.exists(token):
            self._point = json.loads(Path(token).read_bytes())
        self._events = os.open(events, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if events else None
        self._seen: Counter[str] = Counter()
        self._thread = threading.local()
        self._lock = threading.Lock()
        if self._point is not None or self._events is not None:
            self._watch_answers()
            sys.addaudithook(self._hook)
            self._pass("begin")

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _FILE_EVENTS:
            self._file(event, arguments)
        elif event == "socket.connect" and arguments[1][1:2] == (self._port,):
            self._pass("connect")
        elif event == "http.client.send":
            self._send(*arguments)

    def _send(self, connection: http.client.HTTPConnection, data: bytes) -> None:
        if connection.port != self._port:
            self._thread.call = None
        elif head := re.match(rb"[A-Z]+ \S*?([^/ ]+) HTTP", data):
            self._thread.call = head[1].decode()
            self._pass(f"send {self._thread.call}")
        else:
            self._pass(f"send the body of {self._thread.call}")

    def _file(self, event: str, arguments: tuple[Any, ...]) -> None:
        verb, at, folder_at = _FILE_EVENTS[event]
        path = arguments[at]
        if isinstance(path, int) or (event == "open" and not arguments[2] & _WRITES):
            return
        path = os.fsdecode(path)
        if folder_at is not None and arguments[folder_at] >= 0 and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[folder_at]}"), path)
        path = os.path.abspath(path)
        if event in {"os.mkdir", "open"} and os.path.isdir(path):
            return  # nothing of a name comes into being
        for folder, name in self._folders.items():
            if path == folder or path.startswith(f"{folder}/"):
                self._pass(f"{verb} {name}{_VARYING.sub('*', path.removeprefix(folder))}")

    def _pass(self, what: str) -> None:
        with self._lock:
            self._seen[what] += 1
            number = self._seen[what]
            point = what if number == 1 else f"{what}, time {number}"
            if self._events is not None:
                os.write(self._events, f"{point}\n".encode())
            if self._point in (point, self._seen.total()):
                self._die()

    def _die(self) -> None:
        try:
            os.unlink(str(self._token))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def _watch_answers(self) -> None:
        """Tell of what no audit hook does, and let answers arrive in small pieces."""
        begin, read1 = http.client.HTTPResponse.begin, http.client.HTTPResponse.read1

        def begin_(response: http.client.HTTPResponse) -> None:
            if getattr(self._thread, "call", None):
                self._pass(f"await the answer to {self._thread.call}")
            begin(response)

        def read1_(response: http.client.HTTPResponse, size: int = -1) -> bytes:
            if not getattr(self._thread, "call", None):
                return read1(response, size)
            self._pass(f"receive the answer to {self._thread.call}")
            # Whole pieces, however they arrive, so that there are as many of them each time.
            return response.read(_PIECE_BYTES if size < 0 else min(size, _PIECE_BYTES))

        http.client.HTTPResponse.begin = begin_  # type: ignore[method-assign]
        http.client.HTTPResponse.read1 = read1_  # type: ignore[method-assign]


def obey_environment() -> None:
    """Watch this process as the environment orders, if it does."""
    orders = os.environ.get(VARIABLE)
    if orders:
        Strike(**json.loads(orders))
