"""The HTTP shell round the service's state: paths, faults, parts of files, and a log of what was asked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self, cast

from .scenario import ENDPOINTS, FILE_KINDS, STATUS_KINDS, Code, Fault, Scenario
from .science import draw
from .state import Job, Served, ServiceState, TooSoon, read_job_id

DEFAULT_USER = "demo@example.org"
_BASE = "/user_objects"
_PATHS = {
    f"{_BASE}/run_userobject.php": "submit",
    f"{_BASE}/checkProductStatus.php": "status",
    f"{_BASE}/canceljob.php": "cancel",
    f"{_BASE}/getNumJobs.php": "count",
    f"{_BASE}/listOldJobs.php": "list",
    f"{_BASE}/getOldProduct.php": "old_job",
    f"{_BASE}/tprods/getPSFPos.php": "psf_pos",
    f"{_BASE}/tprods/getEnhPos.php": "enh_pos",
    f"{_BASE}/tprods/getAstromPos.php": "astrom_pos",
    f"{_BASE}/tprods/getXastromPos.php": "astrom_pos",
    f"{_BASE}/tprods/getSourceDetResults.php": "source_list",
    f"{_BASE}/tprods/getLCData.php": "light_curve",
    f"{_BASE}/tprods/getSpecData.php": "spectral_fits",
    "/API/main.php": "rebin",
}
_FILE_PATH = re.compile(rf"{_BASE}/tprods/(USERPROD|REBIN)_(\d{{1,12}})(/.*)?")
_MAX_BODY_BYTES = 16 * 2**20
_RESET = struct.pack("ii", 1, 0)
_JOIN_S = 2.0
_JSON_TYPE = "application/json"
_HTML_TYPE = "text/html; charset=UTF-8"
_GATEWAY_PAGE = (
    "<!DOCTYPE HTML PUBLIC '-//IETF//DTD HTML 2.0//EN'>\n<html><head><title>{status} {phrase}</title></head>"
    "<body><h1>{phrase}</h1><p>{text}</p></body></html>\n"
)
_ERRORS = {"http-500": 500, "http-502-html": 502, "http-503": 503, "http-429": 429}


@dataclass(frozen=True)
class Call:
    """One request as the service saw it.

    Args:
        at: When, on the service's clock.
        endpoint: One of the scenario's endpoints, or "" for a path the service does not have.
        user: The `UserID` sent, if any.
        job_id: The job it is about, if any.
        what: The products asked for, the file, or the function of `/API/main.php`.
        method: The HTTP method.
        path: The path, with its query.
        headers: The request's headers.
        body: The JSON object sent, if it was one.
        status: The HTTP status sent; None where no answer was.
        fault: The kind of fault that was played, if any.
    """

    at: float
    endpoint: str
    user: str | None
    job_id: int | None
    what: str | None
    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, object] | None
    status: int | None
    fault: str | None


@dataclass
class _Armed:
    fault: Fault
    seen: int = 0
    played: int = 0


class _Faults:
    """The faults still to be played, in order of precedence."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self._lock = threading.Lock()
        self._armed = [_Armed(fault) for fault in faults]

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._armed.append(_Armed(fault))

    def clear(self) -> None:
        with self._lock:
            self._armed.clear()

    def next(self, endpoint: str, what: str | None) -> Fault | None:
        """Give the fault to play on a request, and count it as played."""
        with self._lock:
            return next((armed.fault for armed in self._armed if _strikes(armed, endpoint, what)), None)


def _strikes(armed: _Armed, endpoint: str, what: str | None) -> bool:
    fault = armed.fault
    fits = fault.endpoint in ("*", endpoint)
    fits = fits and (fault.kind not in FILE_KINDS or endpoint == "file")
    tells = endpoint == "status" or (endpoint, what) == ("rebin", "checkRebinStatus")
    fits = fits and (fault.kind not in STATUS_KINDS or tells)
    if fault.product is not None and endpoint == "file":
        fits = fits and (what or "").split(".")[0] == fault.product
    if not fits or fault.times == armed.played:
        return False
    armed.seen += 1
    if armed.seen <= fault.after or draw(fault.seed, armed.seen) >= fault.probability:
        return False
    armed.played += 1
    return True


class Emulator:
    """The service on loopback: a context manager, or `start()` and `stop()`.

    It holds to what the real service's documents say and does not decide what a client should make of it.

    Args:
        scenario: What to play.
        port: The port; 0 takes a free one.
        speed: Seconds of the service's clock per second of `clock`.
        users: The registered addresses.
        clock: A monotonic clock.
        utcnow: The calendar for `DateSubmitted` and the `Date` of answers: clients compare it with
            their own, so it is not sped up.
    """

    def __init__(
        self,
        scenario: Scenario | None = None,
        *,
        port: int = 0,
        speed: float = 1.0,
        users: Sequence[str] = (DEFAULT_USER,),
        clock: Callable[[], float] = time.monotonic,
        utcnow: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed!r}")
        if not users:
            raise ValueError("at least one user must be registered")
        self.scenario = scenario or Scenario()
        self.speed = speed
        self.user_id = users[0]
        self._users = tuple(users)
        self._port = port
        self._clock = clock
        self._utcnow = utcnow
        self._started_at = clock()
        self._advanced_s = 0.0
        self._log: list[Call] = []
        self._lock = threading.Lock()
        self._faults = _Faults(self.scenario.faults)
        self._server: _Server | None = None
        self._state: ServiceState | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to answer.

        Raises:
            RuntimeError: It was started before; make a new one instead.
            OSError: The port is taken.
        """
        if self._state:
            raise RuntimeError("an emulator is started once; make a new one")
        self._server = _Server(self, self._port)
        self._port = self._server.server_address[1]
        self._state = ServiceState(self.scenario, self._users, self.origin, self.now, self._utcnow)
        self._thread = threading.Thread(target=self._server.serve, name="xrt-emulator", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop at once, whoever is still connected; the log and the jobs stay readable."""
        server, thread = self._server, self._thread
        if server is None or thread is None:
            return
        self._server = self._thread = None
        server.stopping.set()
        # Whoever waits for connections without end is woken by one.
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), _JOIN_S).close()
        thread.join(_JOIN_S)
        server.close_connections()
        server.server_close()

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The base address of the service's calls."""
        return f"{self.origin}{_BASE}"

    @property
    def log(self) -> list[Call]:
        """Everything that was asked so far, in order."""
        with self._lock:
            return list(self._log)

    @property
    def jobs(self) -> dict[int, Job]:
        """The jobs by their ID."""
        return self.state.jobs

    @property
    def rebins(self) -> dict[int, Code]:
        """The code of each light curve that is binned again, by the ID of its request."""
        return self.state.rebins

    @property
    def state(self) -> ServiceState:
        """What the service knows."""
        if self._state is None:
            raise RuntimeError("the emulator was not started")
        return self._state

    def calls(self, endpoint: str | None = None, job_id: int | None = None) -> list[Call]:
        """Give the log's entries of one endpoint, one job, or both."""
        if endpoint is not None and endpoint not in ENDPOINTS:
            raise ValueError(f"no such endpoint: {endpoint!r}; known: {', '.join(ENDPOINTS)}")
        return [
            call
            for call in self.log
            if endpoint in (None, call.endpoint) and (job_id is None or call.job_id == job_id)
        ]

    def now(self) -> float:
        """Read the service's own clock: seconds since it was made."""
        with self._lock:
            return (self._clock() - self._started_at) * self.speed + self._advanced_s

    def date(self) -> str:
        """Read the calendar, as the `Date` of an answer says it."""
        return format_datetime(self._utcnow().astimezone(UTC), usegmt=True)

    def advance(self, seconds: float) -> None:
        """Move the service's clock forward at once."""
        if seconds < 0:
            raise ValueError("the clock does not go back")
        with self._lock:
            self._advanced_s += seconds

    def add_fault(self, fault: Fault) -> None:
        """Let something go wrong from now on, after the faults there are."""
        self._faults.add(fault)

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    def next_fault(self, endpoint: str, what: str | None) -> Fault | None:
        """Give the fault to play on a request, and count it as played."""
        return self._faults.next(endpoint, what)

    def record(self, call: Call) -> None:
        """Add to the log."""
        with self._lock:
            self._log.append(call)


class _Server(ThreadingHTTPServer):
    """A server that knows its connections, so that it can leave without them."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, emulator: Emulator, port: int) -> None:
        self.emulator = emulator
        self.stopping = threading.Event()
        self._open: dict[socket.socket, threading.Thread] = {}
        self._open_lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def serve(self) -> None:
        """Answer until it is stopped."""
        while not self.stopping.is_set():
            self.handle_request()

    def verify_request(self, request: object, client_address: object) -> bool:  # noqa: ARG002 - of the base class
        """Turn away whoever comes when it is stopped."""
        return not self.stopping.is_set()

    def opened(self, connection: socket.socket) -> None:
        with self._open_lock:
            self._open[connection] = threading.current_thread()

    def closed(self, connection: socket.socket) -> None:
        with self._open_lock:
            self._open.pop(connection, None)

    def close_connections(self) -> None:
        with self._open_lock:
            left = dict(self._open)
        for connection in left:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        deadline = time.monotonic() + _JOIN_S
        for thread in left.values():
            thread.join(max(0.0, deadline - time.monotonic()))

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that left: leaving is what many tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(cast("socket.socket", request), client_address)


@dataclass(frozen=True)
class _Answer:
    """What goes back over the wire."""

    status: int
    content: Served | bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server_version = "XRTEmulator"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        self.server.closed(self.connection)
        super().finish()

    def date_time_string(self, timestamp: float | None = None) -> str:  # noqa: ARG002 - of the base class
        """Let the calendar that was given to the service date its answers."""
        return self.server.emulator.date()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the log is `Emulator.log`."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        body = self._read_body()
        if body is None:
            return
        match = _FILE_PATH.fullmatch(path)
        endpoint = _PATHS.get(path, "file" if match else "")
        data = _decode(body) if endpoint not in ("", "file") else None
        what = _what(endpoint, path, data)
        fault = self.server.emulator.next_fault(endpoint, what) if endpoint else None
        answer = None
        if fault is None or fault.takes_effect:
            answer = self._act(endpoint, path, data)
        if fault is not None:
            answer = self._spoil(fault, answer)
        mapping = data if isinstance(data, dict) else None
        user = mapping.get("UserID") if mapping else None
        self.server.emulator.record(
            Call(
                at=self.server.emulator.now(),
                endpoint=endpoint,
                user=user if isinstance(user, str) else None,
                job_id=int(match[2]) if match and match[1] == "USERPROD" else _job_id(mapping),
                what=what,
                method=self.command,
                path=self.path,
                headers=dict(self.headers.items()),
                body=mapping,
                status=answer.status if answer else None,
                fault=fault.kind if fault else None,
            )
        )
        if fault is not None and fault.kind in ("hang", "hang-after", "slow"):
            self.server.stopping.wait(fault.seconds)
        if answer is None:
            self._reset()
        else:
            self._send(answer, fault)

    def _read_body(self) -> bytes | None:
        if self.command != "POST":
            return b""
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"\d{1,12}", length):
            self._refuse(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > _MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            return self.rfile.read(int(length))
        return None

    def _refuse(self, status: HTTPStatus) -> None:
        self.close_connection = True
        self._send(_page(status, "The request has no body that could be read."), None)

    def _act(self, endpoint: str, path: str, data: object) -> _Answer:
        state = self.server.emulator.state
        if endpoint == "":
            return _page(HTTPStatus.NOT_FOUND, f"The requested URL {path} was not found on this server.")
        if endpoint == "file":
            return self._file(path) if self.command != "POST" else _not_allowed("GET, HEAD")
        if self.command != "POST":
            return _not_allowed("POST")
        try:
            answer = state.answer(endpoint, data)
        except TooSoon as error:
            wait = math.ceil(error.wait_s / self.server.emulator.speed)
            page = _page(HTTPStatus.TOO_MANY_REQUESTS, "Please do not ask so often.")
            return replace(page, headers={"Retry-After": str(wait)})
        return _Answer(HTTPStatus.OK, json.dumps(answer).encode(), _JSON_TYPE)

    def _file(self, path: str) -> _Answer:
        state = self.server.emulator.state
        served = state.file(path)
        if served is not None:
            return self._part(served)
        job = state.page(path)
        if job is not None:
            return _page(HTTPStatus.OK, f"Products of job {job.id}.")
        return _page(HTTPStatus.NOT_FOUND, f"The requested URL {path} was not found on this server.")

    def _part(self, served: Served) -> _Answer:
        ranged = self.server.emulator.scenario.allow_range
        modified = format_datetime(served.modified, usegmt=True)
        headers = {"ETag": served.etag, "Last-Modified": modified}
        headers["Accept-Ranges"] = "bytes" if ranged else "none"
        asked = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        size = len(served.content)
        if asked and ranged and condition in (None, served.etag, modified):
            part = _range(asked, size)
            if part == ():
                headers["Content-Range"] = f"bytes */{size}"
                page = _page(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "There is no such range.")
                return replace(page, headers=headers)
            if part:
                headers["Content-Range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
                return _Answer(HTTPStatus.PARTIAL_CONTENT, served, served.media_type, headers)
        return _Answer(HTTPStatus.OK, served, served.media_type, headers)

    def _spoil(self, fault: Fault, answer: _Answer | None) -> _Answer | None:
        """Play a fault on an answer; None where no answer is to be sent."""
        kind = fault.kind
        if kind in ("reset-before", "reset-after", "hang", "hang-after"):
            answer = None
        elif kind in _ERRORS:
            headers = {} if fault.retry_after is None else {"Retry-After": _header(fault.retry_after)}
            page = _page(HTTPStatus(_ERRORS[kind]), "The server was unable to complete your request.")
            answer = replace(page, headers=headers)
        elif kind == "html-200":
            answer = _page(HTTPStatus.OK, "The service is down for maintenance.")
        elif kind == "redirect":
            page = _page(HTTPStatus(fault.redirect_status), "The document has moved.")
            answer = replace(page, headers={"Location": f"{fault.location.rstrip('/')}{self.path}"})
        elif kind == "garbage":
            noise = bytes(int(draw(fault.seed, "noise", count) * 256) for count in range(512))
            answer = _Answer(HTTPStatus.OK, b"\xfe" + noise, _JSON_TYPE)
        elif answer and isinstance(answer.content, bytes) and answer.media_type == _JSON_TYPE:
            answer = replace(answer, content=_spoil_json(fault, answer.content))
        return answer

    def _send(self, answer: _Answer, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        low, high = 0, len(answer.content if isinstance(answer.content, bytes) else answer.content.content)
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            low, high = map(int, re.findall(r"\d+", answer.headers["Content-Range"])[:2])
            high += 1
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.media_type)
        self.send_header("Content-Length", str(high - low))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            stop = high
            if fault is not None and kind == "truncated-file" and isinstance(answer.content, Served):
                stop = low + (fault.at_bytes if fault.at_bytes is not None else (high - low) // 2)
                self.close_connection = True
            self._send_body(answer.content, low, min(stop, high), fault)
        if kind == "short-keepalive":
            self.close_connection = True

    def _send_body(self, content: Served | bytes, low: int, high: int, fault: Fault | None) -> None:
        kind = fault.kind if fault else None
        pieces = iter([content[low:high]]) if isinstance(content, bytes) else content.content.read(low, high)
        if kind == "corrupt-file" and isinstance(content, Served):
            pieces = _flipped(pieces, (high - low) // 2)
        for piece in pieces:
            if fault is not None and kind == "trickle":
                for at in range(len(piece)):
                    self.wfile.write(piece[at : at + 1])
                    if self.server.stopping.wait(fault.seconds):
                        return
            else:
                self.wfile.write(piece)

    def _reset(self) -> None:
        """Close the connection so that the client sees a reset, not an end."""
        self.close_connection = True
        self.server.closed(self.connection)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # Files made of the socket keep it open; only closing the descriptor itself sends the reset.
        os.close(self.connection.detach())


def _decode(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _what(endpoint: str, path: str, data: object) -> str | None:
    if endpoint == "file":
        match = _FILE_PATH.fullmatch(path)
        return match[3].lstrip("/") if match and match[3] else None
    if not isinstance(data, dict):
        return None
    value = data.get("APIFunc" if endpoint == "rebin" else "what")
    return value if isinstance(value, str) else None


def _job_id(data: Mapping[str, object] | None) -> int | None:
    if not data or "APIFunc" in data:
        return None
    return read_job_id(data.get("JobID", data.get("oldJob")))


def _page(status: HTTPStatus, text: str) -> _Answer:
    page = _GATEWAY_PAGE.format(status=int(status), phrase=status.phrase, text=text)
    return _Answer(status, page.encode(), _HTML_TYPE)


def _not_allowed(allowed: str) -> _Answer:
    page = _page(HTTPStatus.METHOD_NOT_ALLOWED, "The requested method is not allowed for this URL.")
    return replace(page, headers={"Allow": allowed})


def _range(asked: str, size: int) -> tuple[int, int] | tuple[()] | None:
    """Read a `Range` header: start and stop, nothing where it lies outside, None where it is ignored."""
    match = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", asked.strip())
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first:
        start, stop = int(first), min(int(last) + 1 if last else size, size)
    else:
        start, stop = max(size - int(last), 0), size
    if last and first and int(last) < int(first):
        return None
    return (start, stop) if start < stop else ()


def _header(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _spoil_json(fault: Fault, content: bytes) -> bytes:
    if fault.kind == "truncated-json":
        return content[: len(content) // 2]
    answer = json.loads(content)
    if fault.kind == "list-instead-of-object":
        return json.dumps([answer]).encode()
    if fault.kind in STATUS_KINDS and "status" in answer and fault.product in (None, "lc"):
        # A light curve that is binned again: the answer tells of nothing else.
        if fault.kind == "missing-products":
            del answer["status"], answer["text"]
        elif fault.kind == "null-codes":
            answer |= {"status": None, "text": "Unknown status"}
        else:
            answer["status"] = str(answer["status"])
    for short, status in list(answer.items()):
        if not isinstance(status, dict) or "statusCode" not in status or fault.product not in (None, short):
            continue
        if fault.kind == "missing-products":
            del answer[short]
        elif fault.kind == "null-codes":
            status |= {"statusCode": None, "statusText": "Unknown status", "progress": {"GotProgress": 0}}
        elif fault.kind == "text-codes":
            status["statusCode"] = str(status["statusCode"])
    return json.dumps(answer).encode()


def _flipped(pieces: Iterator[bytes], at: int) -> Iterator[bytes]:
    """Turn a few bytes round, in the middle of what is sent."""
    for piece in pieces:
        if 0 <= at < len(piece):
            bad = bytes(byte ^ 0xFF for byte in piece[at : at + 16])
            yield piece[:at] + bad + piece[at + 16 :]
        else:
            yield piece
        at -= len(piece)


def serve(
    scenario: str = "demo",
    *,
    port: int = 8642,
    speed: float = 1.0,
    users: Sequence[str] = (DEFAULT_USER,),
    announce: Callable[[str], object] = print,
    stop: threading.Event | None = None,
) -> None:
    """Run the service in the foreground until it is interrupted or terminated.

    Args:
        scenario: A scenario's name, or the path of a .json or .toml file.
        port: The port; 0 takes a free one.
        speed: How many times faster than life.
        users: The registered addresses.
        announce: Gets a line when the service is up, and when it stops.
        stop: Ends it too, when set.

    Raises:
        ScenarioError: There is no such scenario.
        OSError: The port is taken.
    """
    ended = stop or threading.Event()
    service = Emulator(Scenario.find(scenario), port=port, speed=speed, users=users)
    with _signals(ended), service:
        announce(
            f"XRT product service (embedded, scenario {scenario!r}, speed {speed:g}) on {service.url} "
            f"for {', '.join(users)}; Ctrl-C stops it"
        )
        ended.wait()
    announce(f"stopped after {len(service.log)} requests and {len(service.jobs)} jobs")


@contextlib.contextmanager
def _signals(ended: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
