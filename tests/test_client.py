"""Hold `prefect_xrt.client` to account, over real connections to the embedded service."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import logging
import pickle
import socket
import ssl
import subprocess
import threading
import time
import traceback
import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prefect_xrt import client as module
from prefect_xrt import protocol
from prefect_xrt._version import __version__
from prefect_xrt.client import XRTClient, settings_from_environment
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline
from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    ForeignURLError,
    JobNotFoundError,
    ProductMissingError,
    RefusedError,
    RequestRefusedError,
    ServiceUnreachableError,
    ServiceWarning,
    SubmitUncertainError,
    UnknownUserError,
    XRTError,
    is_transient,
)
from prefect_xrt.protocol import Job
from prefect_xrt.request import AstrometricPosition, Image, Product, ProductRequest

USER = "frodo@mount.doom"
REQUEST = ProductRequest(
    name="GRB 200416A",
    targets=("00966554",),
    ra_deg=335.6985,
    dec_deg=-7.5179,
    centroid=True,
    position_error_arcmin=1,
    image=Image(),
    astrometric_position=AstrometricPosition(),
)
READY = Scenario(default=Timeline.of((4,)))


@pytest.fixture
def play() -> Iterator[Callable[..., Emulator]]:
    """Start services for the test's user whose clocks only advance by hand."""
    with contextlib.ExitStack() as stack:

        def start(scenario: Scenario | None = None, *faults: Fault, **options: Any) -> Emulator:
            service = Emulator(
                scenario, **{"users": (USER, "other@mount.doom"), "clock": lambda: 0.0, **options}
            )
            for fault in faults:
                service.add_fault(fault)
            return stack.enter_context(service)

        yield start


class Naps(list[float]):
    """Records how long was to be slept, and does not."""

    def __call__(self, seconds: float) -> None:
        """Take the place of `time.sleep`."""
        self.append(seconds)


@pytest.fixture
def naps() -> Naps:
    """Give what stands in for sleeping."""
    return Naps()


@pytest.fixture
def connect(naps: Naps) -> Iterator[Callable[..., XRTClient]]:
    """Make clients that do not sleep between attempts, and close them."""
    with contextlib.ExitStack() as stack:

        def make(service: Emulator | str, user: str = USER, **options: Any) -> XRTClient:
            url = service if isinstance(service, str) else service.url
            return stack.enter_context(XRTClient(user, url, **{"sleep": naps, **options}))

        yield make


@contextlib.contextmanager
def server(
    answer: Callable[[BaseHTTPRequestHandler], None], context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve what the embedded service never says, on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Say nothing of clients that leave."""

    with Quiet(("127.0.0.1", 0), Handler) as http:
        if context:
            http.socket = context.wrap_socket(http.socket, server_side=True)
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        yield f"{'https' if context else 'http'}://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@contextlib.contextmanager
def raw_server(
    pieces: Callable[[], Iterable[bytes]], pause_s: float = 0.0, context: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Answer every request with these bytes, one after the other, for as long as the client listens."""
    stopping = threading.Event()

    def talk(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            stream = context.wrap_socket(connection, server_side=True) if context else connection
            # Encrypted, it is another object than the connection, and takes its place.
            with stream:
                stream.recv(2**16)
                for piece in pieces():
                    stream.sendall(piece)
                    if stopping.wait(pause_s):
                        return
                # Closed with a part of the request unread, it would take back what it has sent.
                stream.shutdown(socket.SHUT_WR)
                while stream.recv(2**16):
                    pass

    def listen(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=listen, args=(listener,), daemon=True)
        thread.start()
        try:
            yield f"{'https' if context else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stopping.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Send an answer."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def chain(error: BaseException) -> str:
    """Return all that an error and its causes say, shown or moved to another process."""
    parts = []
    for seen in causes(error):
        parts += [str(seen), repr(seen), repr(vars(seen))]
        # What an older urllib3 says of a connection holds the connection, and goes nowhere.
        with contextlib.suppress(pickle.PicklingError):
            parts.append(pickle.dumps(seen).decode("latin-1"))
    return "\n".join(parts)


def tracebacks(error: BaseException) -> str:
    """Return the tracebacks of an error and its causes, with the variables that a debugger would show."""
    shown = (traceback.TracebackException.from_exception(e, capture_locals=True) for e in causes(error))
    return "".join(line for seen in shown for line in seen.format(chain=False))


def causes(error: BaseException) -> Iterator[BaseException]:
    """Give an error and all that it drags along."""
    found: list[BaseException | None] = [error]
    while found:
        seen = found.pop()
        if seen is not None:
            yield seen
            found += [seen.__cause__, seen.__context__]


class TestActs:
    def test_submit(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A request becomes a job, with what the service made of its parameters, and without the account."""
        service = play()
        job = connect(service).submit(REQUEST)
        assert (job.id, job.url, job.name) == (801, f"{service.url}/tprods/USERPROD_801", "GRB 200416A")
        assert set(job.products) >= set(REQUEST.products)
        assert "UserID" not in job.parameters
        assert USER not in job.model_dump_json()
        assert job.submitted_at is not None
        assert abs(job.submitted_at - datetime.now(UTC)) < timedelta(minutes=1)

    def test_envelope(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """Every call names the account, the interface, its version, and this package and its version."""
        service = play()
        client = connect(service)
        job = client.submit(REQUEST)
        client.check_product_status(job)
        client.cancel(job)
        client.count_active_jobs()
        client.list_jobs()
        client.attach(job.id)
        assert [call.endpoint for call in service.log] == [
            "submit",
            "status",
            "cancel",
            "count",
            "list",
            "old_job",
        ]
        for call in service.log:
            assert call.body is not None
            envelope = [call.body[name] for name in ("UserID", "api_name", "api_version")]
            assert envelope == [USER, "xrt_prods", "1.12"]
            assert call.headers["User-Agent"].startswith(f"prefect-xrt/{__version__} ")

    def test_status_of_some(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """Some products are asked for in one call, with their progress."""
        service = play(Scenario(default=Timeline.of((3,))))
        client = connect(service)
        job = client.submit(REQUEST)
        outcome = client.check_product_status(job, ["Image"])
        assert list(outcome.statuses) == [Product.IMAGE]
        assert "** Collect data. - ACTIVE**" in outcome.statuses[Product.IMAGE].progress_text
        (call,) = service.calls("status")
        assert call.body is not None
        assert (call.body["what"], call.body["whatProg"]) == ("image", "image")

    def test_cancel_partly(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """What was cancelled and what was not are told apart, and cancelling again does no harm."""
        service = play(Scenario(timelines={"image": Timeline.of((4,)), "xastrom": Timeline.of((3,))}))
        client = connect(service)
        job = client.submit(REQUEST)
        first, again = client.cancel(job), client.cancel(job)
        codes = {product: entry.code for product, entry in first.products.items()}
        assert (codes[Product.IMAGE], codes[Product.ASTROM_POS], first.complete) == (1, 0, False)
        assert {entry.code for entry in again.products.values()} == {1}

    def test_count_and_list(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """The number of active jobs, and the list of all, newest first."""
        client = connect(play(Scenario(sequence=({"*": Timeline.of((4,))}, {"*": Timeline.of((3,))}))))
        jobs = [client.submit(REQUEST), client.submit(REQUEST)]
        assert client.count_active_jobs() == 1
        assert [entry.id for entry in client.list_jobs()] == [jobs[1].id, jobs[0].id]

    @pytest.mark.parametrize("quirks", [False, True])
    def test_attach(
        self, quirks: bool, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """An old job by its ID is the job that was submitted, also in the older spellings."""
        client = connect(play(Scenario(job_pars_quirks=quirks)))
        job = client.submit(REQUEST)
        assert client.attach(job.id) == job.model_copy(update={"submitted_at": None})

    @pytest.mark.parametrize("act", ["attach", "check_product_status", "cancel"])
    def test_not_mine(
        self, act: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """Another user's job, and one that never was, are not found; nobody's address is told."""
        service = play()
        job = connect(service, "other@mount.doom").submit(REQUEST)
        for target in (job, job.model_copy(update={"id": 4711})):
            with pytest.raises(JobNotFoundError) as caught:
                getattr(connect(service), act)(target.id if act == "attach" else target)
            assert USER not in chain(caught.value)

    def test_unknown_user(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """An address that is not registered is an error of its own, and stays out of its message."""
        client = connect(play(), "Sauron@mordor.example")
        for act in (client.count_active_jobs, client.list_jobs, lambda: client.submit(REQUEST)):
            with pytest.raises(UnknownUserError, match="`\\(your address\\)` is not recognised") as caught:
                act()
            assert "sauron" not in chain(caught.value).lower()

    def test_refused_request(self, connect: Callable[..., XRTClient], naps: Naps) -> None:
        """A refused request is told with the names of the fields, at once."""
        refusal = (Path(__file__).parent / "samples" / "answers" / "submit_reply_refused.json").read_bytes()
        with (
            server(lambda handler: send(handler, refusal)) as url,
            pytest.raises(RequestRefusedError, match=r"position_error_arcmin is 0\.01, but must be between"),
        ):
            connect(url).submit(REQUEST)
        assert naps == []

    def test_too_many_jobs(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """The service's own limit of active jobs is a refusal of the request, and makes no job."""
        service = play(Scenario(active_job_limit=0))
        with pytest.raises(RequestRefusedError, match="active jobs, which is the most allowed"):
            connect(service).submit(REQUEST)
        assert (len(service.calls("submit")), service.jobs) == (1, {})

    def test_notice(
        self,
        play: Callable[..., Emulator],
        connect: Callable[..., XRTClient],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The service's notice of a deprecation is warned about once, without the address, and the answer stands."""
        monkeypatch.setattr(protocol, "_warned", set())
        notice = {"deprecationWarning": {"type": "x", "message": f"Dear {USER}, upgrade."}}
        client = connect(play(Scenario(extra_answers={"*": notice})))
        with pytest.warns(ServiceWarning, match=r"Dear \(your address\), upgrade\."):
            assert client.count_active_jobs() == 0
        assert client.count_active_jobs() == 0

    def test_answer_about_another_job(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A status of another job is not believed."""
        client = connect(play(Scenario(extra_answers={"status": {"JobID": 999}})))
        job = client.submit(REQUEST)
        with pytest.raises(AnswerError, match="answered about job 999"):
            client.check_product_status(job)


# Whether the service took the request, and whether that can be known on this side.
SUBMIT_FAULTS = [
    (Fault("submit", "reset-before"), 0),
    (Fault("submit", "reset-after"), 1),
    (Fault("submit", "http-500"), 0),
    (Fault("submit", "http-500", effect=True), 1),
    (Fault("submit", "http-502-html"), 0),
    (Fault("submit", "http-502-html", effect=True), 1),
    (Fault("submit", "http-503"), 0),
    (Fault("submit", "html-200"), 0),
    (Fault("submit", "html-200", effect=True), 1),
    (Fault("submit", "garbage"), 1),
    (Fault("submit", "truncated-json"), 1),
    (Fault("submit", "list-instead-of-object"), 1),
    (Fault("submit", "hang", seconds=3), 0),
    (Fault("submit", "hang-after", seconds=3), 1),
    (Fault("submit", "redirect", location="http://127.0.0.1:9", redirect_status=302), 0),
]


class TestSubmitOnce:
    @pytest.mark.parametrize(("fault", "jobs"), SUBMIT_FAULTS)
    def test_uncertain(
        self, fault: Fault, jobs: int, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A request that was sent is never sent again; its error tells how to look for the job."""
        service = play(None, fault)
        with pytest.raises(
            SubmitUncertainError, match=r"'GRB 200416A' was sent.*`prefect-xrt jobs`"
        ) as caught:
            connect(service, read_timeout_s=0.2).submit(REQUEST)
        assert (len(service.calls("submit")), len(service.jobs)) == (1, jobs)
        assert caught.value.name == "GRB 200416A"
        assert isinstance(caught.value.__cause__, XRTError)

    def test_redirected(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A request that is sent elsewhere to be made made no job here, and is not followed."""
        fault = Fault("submit", "redirect", location="http://127.0.0.1:9", redirect_status=307)
        service = play(None, fault)
        with pytest.raises(ServiceUnreachableError, match="Is the base URL right") as caught:
            connect(service).submit(REQUEST)
        assert (caught.value.sent, len(service.calls("submit"))) == (False, 1)

    @pytest.mark.parametrize(
        "broken", [{"JobID": None}, {"JobID": "x"}, {"URL": None}, {"OK": None}, {"OK": "maybe"}]
    )
    def test_half_a_yes(
        self, broken: dict[str, Any], play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A yes that lacks the job's ID or URL is uncertain too: the job is there."""
        service = play(Scenario(extra_answers={"submit": broken}))
        with pytest.raises(SubmitUncertainError):
            connect(service).submit(REQUEST)
        assert len(service.jobs) == 1

    def test_trickle(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """An answer that comes byte by byte is given up in time; the job may exist, and is not asked for again."""
        service = play(None, Fault("submit", "trickle", seconds=0.05))
        began = time.monotonic()
        with pytest.raises(SubmitUncertainError, match="trickled"):
            connect(service, total_timeout_s=0.3).submit(REQUEST)
        assert time.monotonic() - began < 5
        assert len(service.jobs) == 1

    def test_fresh_connection(self, connect: Callable[..., XRTClient]) -> None:
        """A request gets a fresh connection: one just dropped would leave open whether it had arrived."""
        ports: list[int] = []

        def answer(handler: BaseHTTPRequestHandler) -> None:
            ports.append(handler.client_address[1])
            send(handler, b'{"OK": 1, "numJobs": 0, "JobID": "5", "URL": "http://127.0.0.1/x"}')

        with server(answer) as url:
            client = connect(url)
            client.count_active_jobs()
            client.submit(REQUEST)
        assert len(set(ports)) == 2

    def test_short_keepalive(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A connection that the service dropped meanwhile hinders nothing."""
        service = play(None, Fault("count", "short-keepalive"))
        client = connect(service)
        client.count_active_jobs()
        assert client.submit(REQUEST).id == 801
        assert len(service.calls("submit")) == 1

    def test_too_many_requests(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient], naps: Naps
    ) -> None:
        """A request that was turned away unread is repeated when the service says so, and makes one job."""
        service = play(None, Fault("submit", "http-429", retry_after=17))
        assert connect(service).submit(REQUEST).id == 801
        assert (len(service.calls("submit")), len(service.jobs)) == (2, 1)
        assert naps[0] >= 17

    def test_nobody_there(self, connect: Callable[..., XRTClient], naps: Naps) -> None:
        """Where nobody listens nothing was sent: tried again, and then told as unreachable, not as uncertain."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        with pytest.raises(ServiceUnreachableError, match="check the network and the base URL") as caught:
            connect(f"http://127.0.0.1:{port}/user_objects").submit(REQUEST)
        assert (caught.value.sent, len(naps)) == (False, 3)

    def test_comes_back(self, connect: Callable[..., XRTClient]) -> None:
        """A service that comes up between two attempts gets the request once."""
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        service = Emulator(port=port, users=(USER,))
        client = connect(f"http://127.0.0.1:{port}/user_objects", sleep=lambda _: service.start())
        try:
            assert client.submit(REQUEST).id == 801
            assert len(service.jobs) == 1
        finally:
            service.stop()

    def test_wrong_path(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient], naps: Naps
    ) -> None:
        """A mistyped path is told at once as what it is; there is no job to look for."""
        service = play()
        with pytest.raises(ServiceUnreachableError, match=r"HTTP 404\. Is the base URL right\?") as caught:
            connect(f"{service.origin}/user_object").submit(REQUEST)
        assert (caught.value.status, naps, service.jobs) == (404, [], {})

    def test_many_threads(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """One client shared among threads makes one job per request."""
        service = play(Scenario(active_job_limit=99))
        client = connect(service)
        with ThreadPoolExecutor(8) as pool:
            jobs = list(pool.map(lambda _: client.submit(REQUEST).id, range(24)))
        assert sorted(jobs) == sorted(service.jobs)


class TestReads:
    @pytest.mark.parametrize(
        "kind",
        ["reset-before", "reset-after", "http-500", "http-502-html", "http-503", "http-429", "html-200", "garbage",
         "truncated-json", "list-instead-of-object", "hang", "hang-after"],
    )  # fmt: skip
    def test_repeated(
        self, kind: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient], naps: Naps
    ) -> None:
        """A read that meets trouble three times succeeds at the fourth."""
        service = play(None, Fault("count", kind, times=3, seconds=3))
        assert connect(service, read_timeout_s=0.1).count_active_jobs() == 0
        assert (len(service.calls("count")), len(naps)) == (4, 3)

    @pytest.mark.parametrize(
        ("kind", "error"),
        [
            ("reset-before", ServiceUnreachableError),
            ("http-502-html", ServiceUnreachableError),
            ("html-200", AnswerError),
        ],
    )
    def test_given_up(
        self,
        kind: str,
        error: type[XRTError],
        play: Callable[..., Emulator],
        connect: Callable[..., XRTClient],
    ) -> None:
        """Trouble that lasts is told by name after as many attempts as were allowed."""
        service = play(None, Fault("list", kind, times=-1))
        with pytest.raises(error):
            connect(service, attempts=2).list_jobs()
        assert len(service.calls("list")) == 2

    def test_one_attempt(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A look can be had without repeating, for who keeps the distance itself."""
        service = play(None, Fault("status", "http-503"))
        client = connect(service)
        job = client.submit(REQUEST)
        with pytest.raises(ServiceUnreachableError):
            client.check_product_status(job, attempts=1)
        assert len(service.calls("status")) == 1

    def test_refusal_is_final(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A no of the service is not asked again."""
        service = play(Scenario(extra_answers={"count": {"OK": 0, "ERROR": "Not today"}}))
        with pytest.raises(RefusedError, match="Not today"):
            connect(service).count_active_jobs()
        assert len(service.calls("count")) == 1

    @pytest.mark.parametrize("kind", ["http-429", "http-503"])
    def test_retry_after(
        self, kind: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient], naps: Naps
    ) -> None:
        """The service's own word for when to come back is honoured: in seconds, and as a date."""
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
        service = play(None, Fault("count", kind, retry_after=40), Fault("count", kind, retry_after=date))
        connect(service).count_active_jobs()
        assert naps[0] == 40
        assert 60 < naps[1] <= 100

    def test_retry_after_too_long(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient], naps: Naps
    ) -> None:
        """A service that wants an hour's rest is left alone; the error says for how long."""
        service = play(None, Fault("count", "http-429", retry_after=3600, times=-1))
        with pytest.raises(ServiceUnreachableError) as caught:
            connect(service).count_active_jobs()
        assert (caught.value.status, caught.value.retry_after_s, naps) == (429, 3600.0, [])
        assert len(service.calls("count")) == 1

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [(None, None), ("0", 0.0), (" 7 ", 7.0), ("-7", None), ("soon", None), ("²", None), ("1.5", None),
         ("Mon, 01 Jan 2001 00:00:00 GMT", 0.0), ("Mon, 99 Foo 2001", None), ("", None)],
    )  # fmt: skip
    def test_retry_after_forms(self, value: str | None, seconds: float | None) -> None:
        """Every form of `Retry-After` is read or ignored."""
        assert module._retry_after_s(value) == seconds

    def test_backoff_grows(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient], naps: Naps
    ) -> None:
        """The waits between attempts grow, and stay below half a minute and its jitter."""
        service = play(None, Fault("count", "http-503", times=-1))
        with pytest.raises(ServiceUnreachableError):
            connect(service, attempts=9).count_active_jobs()
        assert all(2**n <= nap <= 2**n + 1 for n, nap in enumerate(naps[:4]))
        assert max(naps) <= 31

    @pytest.mark.parametrize(
        ("kind", "codes"),
        [("text-codes", {3}), ("null-codes", {None}), ("missing-products", {-10})],
    )
    def test_strange_statuses(
        self,
        kind: str,
        codes: set[int | None],
        play: Callable[..., Emulator],
        connect: Callable[..., XRTClient],
    ) -> None:
        """Codes as text, null, and products left out come over the wire as what they are."""
        service = play(
            Scenario(default=Timeline.of((3,)), timelines={"xastrom": Timeline.of((3,))}),
            Fault("status", kind),
        )
        client = connect(service)
        outcome = client.check_product_status(client.submit(REQUEST))
        assert {status.code for status in outcome.statuses.values()} == codes
        assert outcome.ready == ()

    @pytest.mark.parametrize("kind", ["hang", "trickle"])
    def test_time_outs(
        self, kind: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """An answer that does not come, or comes byte by byte, is given up within the time-outs of the call."""
        service = play(None, Fault("list", kind, seconds=0.05 if kind == "trickle" else 30))
        client = connect(service, read_timeout_s=0.3, total_timeout_s=0.3, attempts=1)
        began = time.monotonic()
        with pytest.raises(ServiceUnreachableError, match=r"in time|trickled"):
            client.list_jobs()
        assert time.monotonic() - began < 5

    @pytest.mark.parametrize("act", ["cancel", "list_jobs", "attach"])
    def test_attempts(
        self, act: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """Every act that may be repeated can be had with another number of attempts than the client's."""
        service = play()
        client = connect(service)
        job = client.submit(REQUEST)
        service.add_fault(Fault("*", "http-503", times=-1))
        arguments = {"cancel": (job,), "list_jobs": (), "attach": (job.id,)}[act]
        for attempts in (1, 2):
            asked = len(service.log)
            with pytest.raises(ServiceUnreachableError):
                getattr(client, act)(*arguments, attempts=attempts)
            assert len(service.log) == asked + attempts

    def test_one_pool(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """Calls one after the other share a connection."""
        ports = set()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            ports.add(handler.client_address[1])
            send(handler, b'{"OK": 1, "numJobs": 0}')

        with server(answer) as url:
            client = connect(url)
            for _ in range(5):
                client.count_active_jobs()
        assert len(ports) == 1


HEAD = b"HTTP/1.1 200 OK\r\nX: "
TRICKLES: dict[str, Callable[[], Iterable[bytes]]] = {
    "status line": lambda: itertools.chain([b"HTTP/1.1 200 "], itertools.repeat(b"x")),
    "header": lambda: itertools.chain([HEAD], itertools.repeat(b"x")),
    "headers": lambda: itertools.chain([HEAD], itertools.cycle([b"x", b"\r", b"\n", b"X", b":"])),
    "interim answers": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(b" ")),
    "chunks": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"1\r\n \r\n")
    ),
    "chunk": lambda: itertools.chain(
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"], itertools.repeat(b"x")
    ),
}


class TestTotalTime:
    @pytest.mark.parametrize("secure", [False, True])
    @pytest.mark.parametrize("part", TRICKLES)
    def test_call(
        self, part: str, secure: bool, certificate: Path, connect: Callable[..., XRTClient]
    ) -> None:
        """Whatever part of an answer trickles in, the call is given up within its limit; it may have arrived."""
        context = server_context(certificate) if secure else None
        with raw_server(TRICKLES[part], 0.01, context) as url:
            client = connect(url, total_timeout_s=0.4, attempts=1)
            client._session.verify = str(certificate)
            began = time.monotonic()
            with pytest.raises(
                ServiceUnreachableError, match=r"trickled in.*0\.4 s and was given up"
            ) as caught:
                client.count_active_jobs()
            assert 0.3 < time.monotonic() - began < 4
        assert (caught.value.sent, caught.value.status) == (True, None)

    def test_submit(self, connect: Callable[..., XRTClient]) -> None:
        """A request whose answer trickles in from its first byte on is uncertain, and not sent again."""
        with (
            raw_server(TRICKLES["status line"], 0.01) as url,
            pytest.raises(SubmitUncertainError, match="trickled in"),
        ):
            connect(url, total_timeout_s=0.3).submit(REQUEST)

    def test_file(self, connect: Callable[..., XRTClient]) -> None:
        """The headers of a file are bounded as well."""
        with raw_server(TRICKLES["header"], 0.01) as url:
            job = Job(id=1, url=url, products=(Product.IMAGE,))
            with pytest.raises(ServiceUnreachableError, match="trickled in"):
                read_all(connect(url, total_timeout_s=0.3), job)

    def test_file_goes_on(self, connect: Callable[..., XRTClient]) -> None:
        """How long a file may take is for its reader to say: it outlasts the limit of a call."""
        pieces = [b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n", *[b"x"] * 30]
        began = time.monotonic()
        with raw_server(lambda: pieces, 0.02) as url:
            job = Job(id=1, url=url, products=(Product.IMAGE,))
            assert read_all(connect(url, total_timeout_s=0.3), job) == b"x" * 30
        assert time.monotonic() - began > 0.3

    def test_proxy(self, connect: Callable[..., XRTClient], monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy that trickles its own answer is given up too."""
        with raw_server(TRICKLES["header"], 0.01) as url:
            monkeypatch.setenv("HTTPS_PROXY", url)
            client = connect("https://service.invalid/", total_timeout_s=0.3, attempts=1)
            with pytest.raises(ServiceUnreachableError):
                client.count_active_jobs()

    def test_next_call(self, connect: Callable[..., XRTClient]) -> None:
        """The limit is that of one call: the next over the same connection has its own."""
        answer = b'{"OK": 1, "numJobs": 0}'
        ports = set()

        def slow(handler: BaseHTTPRequestHandler) -> None:
            ports.add(handler.client_address[1])
            threading.Event().wait(0.2)
            send(handler, answer)

        with server(slow) as url:
            client = connect(url, total_timeout_s=0.5, attempts=1)
            assert [client.count_active_jobs() for _ in range(4)] == [0] * 4
        assert len(ports) == 1


def peak_bytes(act: Callable[[], object]) -> int:
    """Measure the most memory that an act takes at once."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bomb(wbits: int) -> bytes:
    """Make 4 MiB that unpack to 4 GiB, without packing as much."""
    packer = zlib.compressobj(wbits=wbits)
    first = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers back, so that what follows can be repeated.
    again = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + again * 4095


class TestSize:
    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", lambda: bomb(31)),
            ("x-gzip", lambda: bomb(31)),
            ("deflate", lambda: bomb(15)),
            ("gzip, gzip", lambda: gzip.compress(bomb(31))),
            ("deflate,gzip", lambda: gzip.compress(bomb(15))),
        ],
    )
    def test_bomb(self, encoding: str, body: Callable[[], bytes], connect: Callable[..., XRTClient]) -> None:
        """An answer that would unpack to 4 GiB is refused by name, at a small cost of memory."""
        packed = body()

        def act() -> None:
            with pytest.raises(AnswerError, match="larger than 64 MiB"):
                client.count_active_jobs()

        with server(lambda handler: send(handler, packed, Content_Encoding=encoding)) as url:
            client = connect(url, attempts=1)
            assert peak_bytes(act) < 96 * 2**20

    def test_too_often_packed(self, connect: Callable[..., XRTClient]) -> None:
        """An answer is not unpacked over and over."""
        body = b'{"OK": 1, "numJobs": 3}'
        for _ in range(3):
            body = gzip.compress(body)
        with (
            server(lambda handler: send(handler, body, Content_Encoding="gzip, gzip, gzip")) as url,
            pytest.raises(AnswerError, match="packed 3 times"),
        ):
            connect(url, attempts=1).count_active_jobs()

    def test_without_end(self, connect: Callable[..., XRTClient]) -> None:
        """An answer that goes on for ever is given up after 64 MiB, at a small cost of memory."""
        piece = b" " * 2**20
        sent = itertools.count()

        def endless() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\n\r\n"
            for _ in sent:
                yield piece

        def act() -> None:
            with pytest.raises(AnswerError, match="larger than 64 MiB"):
                client.count_active_jobs()

        with raw_server(endless) as url:
            client = connect(url, attempts=1)
            assert peak_bytes(act) < 96 * 2**20
        assert 64 <= next(sent) < 96

    def test_announced(self, connect: Callable[..., XRTClient]) -> None:
        """An answer that says that it is too large is not read at all."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 2147483648\r\n\r\n"
        with raw_server(lambda: [head], 1.0) as url, pytest.raises(AnswerError, match="larger than 64 MiB"):
            connect(url, attempts=1, read_timeout_s=0.5).count_active_jobs()

    def test_small_pieces(self, connect: Callable[..., XRTClient]) -> None:
        """Very many small pieces take no more memory than what they hold."""
        piece = b"2\r\n  \r\n"
        count = 50_000

        def pieces() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            yield piece * count
            yield b"1\r\n{\r\n0\r\n\r\n"

        def act() -> None:
            with pytest.raises(AnswerError, match=f"{2 * count + 1} bytes"):
                client.count_active_jobs()

        with raw_server(pieces) as url:
            client = connect(url, attempts=1)
            assert peak_bytes(act) < 2**20

    def test_page_of_a_redirection(self, connect: Callable[..., XRTClient]) -> None:
        """A page that comes with a redirection is not read, however long it is."""
        head = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n"
        pieces = [head, *[b" " * 2**20] * 64]
        with raw_server(lambda: pieces) as url:
            client = connect(url, attempts=1)
            job = Job(id=1, url=url, products=(Product.IMAGE,))

            def act() -> None:
                with pytest.raises(AnswerError, match="redirects the call"):
                    client.count_active_jobs()
                with pytest.raises(ForeignURLError):
                    read_all(client, job)

            assert peak_bytes(act) < 2**22

    @pytest.mark.parametrize("depth", [200, 10_000, 1_000_000])
    def test_deep(self, depth: int, connect: Callable[..., XRTClient]) -> None:
        """Progress nested beyond reason is no answer of the service."""
        body = b'{"OK": 1, "image": {"statusCode": 3, "progress": ' + b'{"SubStep":' * depth
        body += b"1" + b"}" * depth + b"}}"
        job = Job(id=1, url="http://127.0.0.1/x", products=(Product.IMAGE,))
        with (
            server(lambda handler: send(handler, body)) as url,
            pytest.raises(AnswerError, match=r"nested|more than 1000000 values"),
        ):
            connect(url, attempts=1).check_product_status(job)

    @pytest.mark.parametrize(
        ("encoding", "pack"),
        [
            ("gzip", gzip.compress),
            ("X-GZIP", gzip.compress),
            ("deflate", zlib.compress),
            ("deflate, gzip", lambda body: gzip.compress(zlib.compress(body))),
            ("identity", bytes),
            ("utf-8", bytes),
        ],
    )
    def test_packed(
        self, encoding: str, pack: Callable[[bytes], bytes], connect: Callable[..., XRTClient]
    ) -> None:
        """A packed answer is understood, and its connection is used again."""
        body = pack(b'{"OK": 1, "numJobs": 3, "x": "' + b"x" * 2**20 + b'"}')
        ports = set()

        def answer(handler: BaseHTTPRequestHandler) -> None:
            ports.add(handler.client_address[1])
            assert handler.headers["Accept-Encoding"] == "gzip"
            send(handler, body, Content_Encoding=encoding)

        with server(answer) as url:
            client = connect(url, attempts=1)
            assert [client.count_active_jobs(), client.count_active_jobs()] == [3, 3]
        assert len(ports) == 1

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (gzip.compress(b'{"OK": 1, "numJobs": 3}', mtime=0)[:-9], "breaks off"),
            (b"", "breaks off"),
            (b'{"OK": 1, "numJobs": 3}', "cannot be unpacked"),
        ],
    )
    def test_badly_packed(self, body: bytes, message: str, connect: Callable[..., XRTClient]) -> None:
        """An answer that is packed in part, or not at all, is told as such."""
        with (
            server(lambda handler: send(handler, body, Content_Encoding="gzip")) as url,
            pytest.raises(AnswerError, match=message),
        ):
            connect(url, attempts=1).count_active_jobs()

    @pytest.mark.parametrize("length", ["²", "9" * 5000, "-1", "1, 2"])
    def test_strange_length(self, length: str, connect: Callable[..., XRTClient]) -> None:
        """A length that is none does no harm beyond its answer."""
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("latin-1")
        job = Job(id=1, url="", products=(Product.IMAGE,))
        with raw_server(lambda: [head, b'{"OK": 1, "numJobs": 3}']) as url:
            client = connect(url, attempts=1)
            for act in (
                client.count_active_jobs,
                lambda: read_all(client, job.model_copy(update={"url": url})),
            ):
                with contextlib.suppress(XRTError):
                    assert act() in (3, b'{"OK": 1, "numJobs": 3}')


class TestClock:
    @pytest.mark.parametrize("skew_s", [-86400, 0, 3600])
    def test_skew(
        self, skew_s: int, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """How far the service's clock is ahead is known from its answers."""
        client = connect(play(utcnow=lambda: datetime.now(UTC) + timedelta(seconds=skew_s)))
        assert client.clock_skew_s == 0.0
        client.count_active_jobs()
        assert skew_s - 5 < client.clock_skew_s <= skew_s

    @pytest.mark.parametrize(
        "date",
        [None, "", "yesterday", "Mon, 99 Foo 2001", "Mon, 01 Jan 2001 00:00:00 -0000", "²",
         "Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 2001 00:00:00 +99999999999999999999"],
    )  # fmt: skip
    def test_unknown(self, date: str | None, connect: Callable[..., XRTClient]) -> None:
        """An answer without a date that can be read tells no difference."""
        body = b'{"OK": 1, "numJobs": 3}'
        dates = iter(["Mon, 01 Jan 2001 00:00:00 GMT", date])

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response_only(200)
            given = next(dates)
            if given is not None:
                handler.send_header("Date", given)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        with server(answer) as url:
            client = connect(url, attempts=1)
            client.count_active_jobs()
            assert client.clock_skew_s < -(10**8)
            client.count_active_jobs()
            assert client.clock_skew_s == 0.0

    def test_someone_elses_date(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """What a gateway says in the service's place is not the service's time."""
        service = play(utcnow=lambda: datetime.now(UTC) + timedelta(hours=1))
        client = connect(service, attempts=1)
        service.add_fault(Fault("count", "http-502-html"))
        service.add_fault(Fault("count", "html-200"))
        for _ in range(2):
            with pytest.raises(XRTError):
                client.count_active_jobs()
        assert client.clock_skew_s == 0.0


class TestAddress:
    @pytest.mark.parametrize(
        "url",
        ["", "www.swift.ac.uk/user_objects", "ftp://www.swift.ac.uk", "https://", "https:///user_objects", "file:///etc",
         "http://[::1", "http://host:port/", "http://host:99999/", "http://a..b/", "http://exa mple.org/",
         f"http://{'x' * 64}.org/", "https://host/?a=b", "https://host/#top", "httpss://host/"],
    )  # fmt: skip
    def test_impossible(self, url: str) -> None:
        """A base URL that cannot be right is told before anything is sent."""
        with pytest.raises(ConfigurationError, match="base URL"):
            XRTClient(USER, url)

    @pytest.mark.parametrize(
        "url",
        [
            f"https://{USER}:secret@host/",
            "https://:secret@host/",
            "https://frodo:secret@host/",
            "frodo:secret@host",
        ],
    )
    def test_password(self, url: str) -> None:
        """A URL with user or password is refused, and neither is repeated."""
        with pytest.raises(ConfigurationError) as caught:
            XRTClient(USER, url)
        assert "secret" not in chain(caught.value)
        assert "frodo" not in chain(caught.value)

    @pytest.mark.parametrize(
        "url", [" https://www.swift.ac.uk/user_objects/ ", "HTTPS://WWW.swift.ac.uk/user_objects//"]
    )
    def test_tidied(self, url: str) -> None:
        """Spaces around the URL and slashes at its end do no harm."""
        with XRTClient(USER, url) as client:
            assert client.base_url.endswith("/user_objects")

    @pytest.mark.parametrize("user", ["", "  "])
    def test_no_user(self, user: str) -> None:
        """An empty address is told before anything is sent."""
        with pytest.raises(ConfigurationError, match="address is empty"):
            XRTClient(user)

    def test_name_that_does_not_resolve(self, connect: Callable[..., XRTClient]) -> None:
        """A host that does not exist is unreachable, and nothing was sent."""
        with pytest.raises(ServiceUnreachableError, match="check the network and the base URL") as caught:
            connect("https://service.invalid/user_objects", attempts=1).count_active_jobs()
        assert caught.value.sent is False

    def test_wrong_path(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A mistyped path is told as such, at once."""
        service = play()
        with pytest.raises(ServiceUnreachableError, match=r"HTTP 404\. Is the base URL right\?"):
            connect(f"{service.url}/typo").count_active_jobs()
        assert len(service.log) == 1

    @pytest.mark.parametrize(
        ("host", "local"),
        [("localhost", True), ("LOCALHOST:8642", True), ("127.0.0.1", True), ("127.9.9.9:1", True), ("[::1]:80", True),
         ("localhost.example.org", False), ("127.0.0.1.example.org", False), ("xlocalhost", False), ("0.0.0.0", False),  # noqa: S104
         ("[::]", False), ("[::2]", False), ("10.0.0.1", False), ("128.0.0.1", False), ("127.0.0.1.nip.io", False),
         ("www.swift.ac.uk", False), ("2130706433", False), ("127.1", False)],
    )  # fmt: skip
    def test_is_local(self, host: str, local: bool) -> None:
        """Only addresses of this machine are local, not names that look so."""
        with XRTClient(USER, f"https://{host}/user_objects") as client:
            assert client.is_local is local

    @pytest.mark.parametrize(
        "url",
        ["http://www.swift.ac.uk/user_objects", "HTTP://10.0.0.1:8642", "http://localhost.example.org/"],
    )
    def test_in_the_clear(self, url: str) -> None:
        """The registered address is not sent unencrypted to another machine; what to do is told."""
        with pytest.raises(ConfigurationError, match="in the clear; use https"):
            XRTClient(USER, url)

    @pytest.mark.parametrize("host", ["127.0.0.1:8642", "LOCALHOST", "[::1]"])
    def test_in_the_clear_at_home(self, host: str) -> None:
        """A service on this machine needs no encryption."""
        with XRTClient(USER, f"http://{host}/user_objects") as client:
            assert client.is_local

    def test_proxy_at_home(
        self,
        play: Callable[..., Emulator],
        connect: Callable[..., XRTClient],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A proxy of the environment has no part in what is said to a service on this machine."""
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert connect(play(), attempts=1).count_active_jobs() == 0

    @pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
    def test_proxy(
        self, name: str, connect: Callable[..., XRTClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A proxy learns which host is called, and gets neither the address nor a login to pass on."""
        (tmp_path / "netrc").write_text("machine service.invalid login frodo password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with socket.create_server(("127.0.0.1", 0)) as proxy:
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
            heard = bytearray()

            def listen() -> None:
                with proxy.accept()[0] as connection:
                    heard.extend(connection.recv(2**16))
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    heard.extend(connection.recv(2**16))

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            with pytest.raises(ServiceUnreachableError):
                connect("https://service.invalid/user_objects", attempts=1).count_active_jobs()
            thread.join()
        assert heard.startswith(b"CONNECT service.invalid:443 ")
        # What follows is the beginning of an encrypted connection.
        assert b"\r\n\r\n\x16\x03" in heard
        for secret in (b"frodo", b"Authorization", b"POST"):
            assert secret not in heard

    def test_netrc(
        self, connect: Callable[..., XRTClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """A login that a .netrc has for the host is not sent."""
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login frodo password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        heard: list[dict[str, str]] = []

        def answer(handler: BaseHTTPRequestHandler) -> None:
            heard.append(dict(handler.headers))
            send(handler, b'{"OK": 1, "numJobs": 0}')

        with server(answer) as url:
            client = connect(url)
            client._session.trust_env = True  # as for a service elsewhere
            client.count_active_jobs()
            read_all(client, Job(id=1, url=url, products=(Product.IMAGE,)))
        assert len(heard) == 2
        assert all("Authorization" not in headers for headers in heard)

    def test_hidden_user(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """The registered address is in no representation of the client, nor in any error of a whole session."""
        quoted = {
            "OK": 0,
            "ERROR": f"{USER} may not",
            "listErr": [{"label": f"for {USER}", "list": [USER.upper()]}],
        }
        service = play(
            Scenario(extra_answers={"list": quoted, "cancel": {"status": {"image": f"not by {USER}"}}})
        )
        client = connect(service)
        assert USER not in repr(client) + str(client)
        job = client.submit(REQUEST)
        with pytest.raises(RefusedError) as caught:
            client.list_jobs()
        assert USER not in chain(caught.value).lower()
        assert USER not in repr(client.cancel(job))
        for kind in ("reset-before", "reset-after", "http-500", "html-200", "garbage", "truncated-json"):
            service.add_fault(Fault("count", kind, times=4))
            with pytest.raises(XRTError) as failed:
                client.count_active_jobs()
            assert USER not in chain(failed.value)
            assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)  # noqa: S301 - made here

    @pytest.mark.parametrize(
        "kind",
        ["reset-before", "reset-after", "http-500", "http-502-html", "html-200", "garbage", "truncated-json",
         "list-instead-of-object", "hang", "trickle", "redirect"],
    )  # fmt: skip
    def test_hidden_user_in_causes(
        self, kind: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """An error, its causes and the variables of its traceback hold the address in no form; the cause is told."""
        seconds = 0.02 if kind == "trickle" else 3
        fault = Fault("*", kind, times=-1, seconds=seconds, location="http://127.0.0.1:9")
        client = connect(play(None, fault), read_timeout_s=0.2, total_timeout_s=0.4, attempts=2)
        with pytest.raises(ServiceUnreachableError if kind in ("hang", "http-500") else XRTError) as caught:
            client.list_jobs()
        with pytest.raises(
            ServiceUnreachableError if kind == "redirect" else SubmitUncertainError
        ) as uncertain:
            client.submit(REQUEST)
        for error in (caught.value, uncertain.value):
            assert USER not in chain(error) + tracebacks(error)
        if kind == "hang":
            assert "Read timed out" in chain(caught.value)

    def test_name_that_is_not_found(
        self, connect: Callable[..., XRTClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name that cannot be looked up is a connection that was not made: nothing was sent, and it may pass."""

        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(ServiceUnreachableError, match="No connection") as caught:
            connect("https://xrt.example", attempts=1).count_active_jobs()
        assert (caught.value.sent, is_transient(caught.value)) == (False, True)

    def test_hidden_user_without_connection(self, connect: Callable[..., XRTClient]) -> None:
        """An error of a connection that was not made holds the address in no form either."""
        with pytest.raises(ServiceUnreachableError, match="No connection") as caught:
            connect("http://127.0.0.1:9", attempts=1).count_active_jobs()
        assert USER not in chain(caught.value) + tracebacks(caught.value)
        assert "refused" in chain(caught.value)

    def test_echoed_user(self, connect: Callable[..., XRTClient]) -> None:
        """What is not JSON and repeats the address is not kept in what an error brings along."""
        for body in (f'{{"OK": 1, "for": "{USER}"', f"<title>Dear {USER}</title>", f"{USER}\x80"):
            with (
                server(lambda handler, body=body: send(handler, body.encode("latin-1"))) as url,  # type: ignore[misc]
                pytest.raises(AnswerError) as caught,
            ):
                connect(url, attempts=1).count_active_jobs()
            assert caught.value.__context__ is None
            assert USER.encode() not in pickle.dumps(caught.value)

    def test_someone_elses_error(self, connect: Callable[..., XRTClient]) -> None:
        """The traceback of an error during whose handling the service is called stays whole."""

        def fail() -> None:
            try:
                raise RuntimeError("of someone else")  # noqa: TRY301 - its traceback is what matters
            except RuntimeError:
                with pytest.raises(ServiceUnreachableError):
                    connect("http://127.0.0.1:9", attempts=1).count_active_jobs()
                raise

        with pytest.raises(RuntimeError) as caught:
            fail()
        assert [entry.name for entry in caught.traceback][-1] == "fail"
        assert caught.traceback[-1].lineno == fail.__code__.co_firstlineno + 1

    def test_hidden_user_in_logs(
        self,
        play: Callable[..., Emulator],
        connect: Callable[..., XRTClient],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The address is in no line of any log, however much is logged."""
        caplog.set_level(logging.DEBUG)
        client = connect(play(None, Fault("count", "reset-after"), Fault("list", "http-503")))
        client.submit(REQUEST)
        client.count_active_jobs()
        client.list_jobs()
        assert "run_userobject.php" in caplog.text
        assert USER not in caplog.text


class TestSettings:
    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The account and the base URL come from the environment; the real service is the default."""
        monkeypatch.setenv("PREFECT_XRT_USER_ID", USER)
        monkeypatch.delenv("PREFECT_XRT_BASE_URL", raising=False)
        assert settings_from_environment() == (USER, "https://www.swift.ac.uk/user_objects")
        monkeypatch.setenv("PREFECT_XRT_BASE_URL", "http://127.0.0.1:8642/user_objects")
        assert settings_from_environment() == (USER, "http://127.0.0.1:8642/user_objects")

    @pytest.mark.parametrize("value", ["", "  "])
    def test_nothing_set(self, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without an account the error names the variable."""
        monkeypatch.setenv("PREFECT_XRT_USER_ID", value)
        with pytest.raises(ConfigurationError, match="PREFECT_XRT_USER_ID"):
            settings_from_environment()


def read_all(client: XRTClient, job: Job, product: Product = Product.IMAGE, **options: Any) -> bytes:
    """Read a whole file."""
    with client.open_file(job, product, **options) as remote:
        return b"".join(remote.chunks)


class TestFiles:
    def test_open(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A file comes with its length and what identifies this version of it."""
        service = play(READY)
        client = connect(service)
        job = client.submit(REQUEST)
        with client.open_file(job, Product.IMAGE) as remote:
            content = b"".join(remote.chunks)
        assert (remote.size, remote.start) == (len(content), 0)
        assert remote.validator is not None
        assert service.calls("file")[0].headers["User-Agent"].startswith("prefect-xrt/")

    def test_part(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """The rest of a file is fetched if it is still the same, and the whole file if it is not."""
        service = play(READY)
        client = connect(service)
        job = client.submit(REQUEST)
        with client.open_file(job, Product.IMAGE) as remote:
            content = b"".join(remote.chunks)
        with client.open_file(job, Product.IMAGE, start=100, validator=remote.validator) as rest:
            assert (rest.start, rest.size, b"".join(rest.chunks)) == (100, len(content), content[100:])
        with client.open_file(job, Product.IMAGE, start=100, validator='"other"') as whole:
            assert (whole.start, whole.size, b"".join(whole.chunks)) == (0, len(content), content)
        with client.open_file(job, Product.IMAGE, start=100) as unknown:
            assert unknown.start == 0
        assert "Range" not in service.calls("file")[-1].headers

    def test_missing(self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]) -> None:
        """A product without a file is an error of its own, that says why it may be so."""
        client = connect(play(Scenario(default=Timeline.of((-1,)))))
        job = client.submit(REQUEST)
        with pytest.raises(ProductMissingError, match=r"no image.tar.gz for job 801 \(GRB 200416A\)"):
            read_all(client, job)

    @pytest.mark.parametrize(
        "location", ["http://127.0.0.1:9", "https://127.0.0.1", "http://[::1", "http://a:b"]
    )
    def test_foreign_redirection(
        self, location: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A redirection to another host, or to what is no URL, is not followed."""
        client = connect(play(READY, Fault("file", "redirect", location=location)))
        job = client.submit(REQUEST)
        with pytest.raises(ForeignURLError):
            read_all(client, job)

    @pytest.mark.parametrize(
        "url",
        ["http://127.0.0.1:9/x", "ftp://127.0.0.1/x", "http://[::1", "http://h:99999999/x", "nonsense", "http://frodo:pw@h/",
         "//127.0.0.1/x", "file:///etc/passwd"],
    )  # fmt: skip
    def test_foreign_job(
        self, url: str, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A job whose files are said to be on another host is not followed there."""
        service = play(READY)
        client = connect(service)
        job = client.submit(REQUEST).model_copy(update={"url": url})
        with pytest.raises(ForeignURLError) as caught:
            read_all(client, job)
        assert "pw" not in str(caught.value)
        assert service.calls("file") == []

    @pytest.mark.parametrize(
        "form",
        ["http://127.0.0.1:{other}", "//127.0.0.1:{other}", "http://127.0.0.1:{own}@127.0.0.1:{other}",
         "http://127.0.0.1:{own}\\@127.0.0.1:{other}", "http://127.0.0.1:{other}\\@127.0.0.1:{own}",
         "http://frodo:pw@127.0.0.1:{own}", "http://127.0.0.1:{own}\t@127.0.0.1:{other}", "https://127.0.0.1:{own}",
         "http://127.0.0.2:{other}", "http://localhost:{other}", "\\\\127.0.0.1:{other}"],
    )  # fmt: skip
    @pytest.mark.parametrize("act", ["job", "file", "call"])
    def test_nothing_goes_elsewhere(self, form: str, act: str, connect: Callable[..., XRTClient]) -> None:
        """Wherever an answer points to, a job's files, a redirected file and a redirected call go nowhere else."""
        asked: list[str] = []
        elsewhere: list[str] = []
        location = ""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            asked.append(handler.path)
            send(handler, b"", 307, Location=f"{location}/files")

        with server(lambda handler: elsewhere.append(handler.path)) as other, server(answer) as own:
            location = form.format(own=own.rpartition(":")[2], other=other.rpartition(":")[2])
            client = connect(own, attempts=1)
            job = Job(id=1, url=f"{location if act == 'job' else own}/files", products=(Product.IMAGE,))
            with pytest.raises(ServiceUnreachableError if act == "call" else ForeignURLError) as caught:
                client.count_active_jobs() if act == "call" else read_all(client, job)
        assert elsewhere == []
        assert asked == {"job": [], "file": ["/files/image.tar.gz"], "call": ["/getNumJobs.php"]}[act]
        assert "pw" not in str(caught.value)

    def test_foreign_submit_answer(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A job whose files the service puts on another host is a job; its files are not fetched from there."""
        asked: list[str] = []
        with server(lambda handler: asked.append(handler.path)) as other:
            service = play(Scenario(default=Timeline.of((4,)), file_url_origin=other))
            client = connect(service)
            job = client.submit(REQUEST)
            assert job.url.startswith(other)
            with pytest.raises(ForeignURLError, match="not the host that is configured"):
                read_all(client, job)
        assert asked == []

    def test_default_port(self) -> None:
        """An address with the default port written out is the same host."""
        with XRTClient(USER, "https://www.swift.ac.uk/user_objects") as client:
            client._require_origin("https://www.swift.ac.uk:443/user_objects/tprods/x")
            with pytest.raises(ForeignURLError):
                client._require_origin("https://www.swift.ac.uk:80/user_objects/tprods/x")

    def test_redirection_at_home(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """A redirection within the host is followed, but not for ever."""
        service = play(READY)
        client = connect(service)
        job = client.submit(REQUEST)
        service.add_fault(Fault("file", "redirect", location=service.origin, times=2))
        assert read_all(client, job)
        service.add_fault(Fault("file", "redirect", location=service.origin, times=-1))
        with pytest.raises(AnswerError, match="without end"):
            read_all(client, job)

    @pytest.mark.parametrize(
        ("kind", "error"),
        [("html-200", AnswerError), ("http-500", ServiceUnreachableError), ("http-429", ServiceUnreachableError),
         ("reset-before", ServiceUnreachableError), ("truncated-file", ServiceUnreachableError),
         ("hang", ServiceUnreachableError)],
    )  # fmt: skip
    def test_trouble(
        self,
        kind: str,
        error: type[XRTError],
        play: Callable[..., Emulator],
        connect: Callable[..., XRTClient],
    ) -> None:
        """A page instead of a file, and a connection that breaks or hangs, are told by name."""
        client = connect(play(READY, Fault("file", kind, seconds=3)), read_timeout_s=0.2)
        job = client.submit(REQUEST)
        with pytest.raises(error):
            read_all(client, job)

    def test_keeps_what_arrived(
        self, play: Callable[..., Emulator], connect: Callable[..., XRTClient]
    ) -> None:
        """What came before a connection broke is given, to the byte, so that it need not be fetched again."""
        client = connect(play(READY, Fault("file", "truncated-file", at_bytes=1234)))
        job = client.submit(REQUEST)
        arrived: list[bytes] = []
        with client.open_file(job, Product.IMAGE) as remote, pytest.raises(ServiceUnreachableError):
            arrived.extend(remote.chunks)
        assert sum(map(len, arrived)) == 1234

    def test_labelled_as_compressed(self, connect: Callable[..., XRTClient]) -> None:
        """An archive that a web server labels as compressed arrives as it is, not unpacked."""
        body = gzip.compress(b"contents" * 100)
        job = Job(id=1, url="x", products=(Product.IMAGE,))
        with server(lambda handler: send(handler, body, Content_Encoding="x-gzip")) as url:
            assert read_all(connect(url), job.model_copy(update={"url": url})) == body

    def test_another_part(self, connect: Callable[..., XRTClient]) -> None:
        """A part that was not asked for is not put in its place."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            send(handler, b"x" * 10, 206, Content_Range="bytes 90-99/100")

        with server(answer) as url:
            job = Job(id=1, url=url, products=(Product.IMAGE,))
            with pytest.raises(AnswerError, match="another part"):
                read_all(connect(url), job, start=50, validator='"a"')

    @pytest.mark.parametrize(
        ("headers", "validator"),
        [
            ({"ETag": '"a"', "Last-Modified": "then"}, '"a"'),
            ({"ETag": 'W/"a"', "Last-Modified": "then"}, "then"),
            ({}, None),
        ],
    )
    def test_validator(
        self, headers: dict[str, str], validator: str | None, connect: Callable[..., XRTClient]
    ) -> None:
        """A strong tag identifies a file, else its date; a weak tag promises too little."""
        with server(lambda handler: send(handler, b"x", **headers)) as url:
            job = Job(id=1, url=url, products=(Product.IMAGE,))
            with connect(url).open_file(job, Product.IMAGE) as remote:
                assert remote.validator == validator


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a certificate for loopback, with its key, in one file."""
    place = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1", "-keyout", place.with_name("key"), "-out", place.with_name("cert")],
        check=True, capture_output=True,
    )  # fmt: skip
    place.write_bytes(place.with_name("key").read_bytes() + place.with_name("cert").read_bytes())
    return place


def server_context(certificate: Path) -> ssl.SSLContext:
    """Return what a server needs to encrypt."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class TestEncryption:
    def test_untrusted(self, certificate: Path, connect: Callable[..., XRTClient], naps: Naps) -> None:
        """A service whose certificate is not trusted gets nothing: no job, and no uncertainty."""
        asked: list[str] = []
        with (
            server(lambda handler: asked.append(handler.path), server_context(certificate)) as url,
            pytest.raises(ServiceUnreachableError, match="certificate was not accepted") as caught,
        ):
            connect(url).submit(REQUEST)
        assert (caught.value.sent, asked) == (False, [])

    def test_broken_on_the_way(self, certificate: Path, connect: Callable[..., XRTClient]) -> None:
        """A request over an encrypted connection that breaks off is uncertain, and is not sent again."""
        asked: list[str] = []

        def vanish(handler: BaseHTTPRequestHandler) -> None:
            asked.append(handler.path)
            with socket.socket(fileno=handler.connection.detach()) as bare:
                bare.sendall(b"not encrypted at all")

        with server(vanish, server_context(certificate)) as url:
            client = connect(url)
            client._session.verify = str(certificate)
            with pytest.raises(SubmitUncertainError, match="encrypted connection to the service broke"):
                client.submit(REQUEST)
        assert asked == ["/run_userobject.php"]

    @pytest.mark.parametrize(
        "name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PYTHONHTTPSVERIFY", "SSL_CERT_FILE"]
    )
    @pytest.mark.parametrize("value", ["", "0"])
    def test_cannot_be_switched_off(
        self,
        name: str,
        value: str,
        certificate: Path,
        connect: Callable[..., XRTClient],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """No variable of the environment makes a certificate pass that is not trusted."""
        monkeypatch.setenv(name, value)
        asked: list[str] = []
        with server(lambda handler: asked.append(handler.path), server_context(certificate)) as url:
            client = connect(url, attempts=1)
            client._session.trust_env = True  # as for a service elsewhere
            with pytest.raises((ServiceUnreachableError, ConfigurationError), match="certificate") as caught:
                client.submit(REQUEST)
        assert asked == []
        assert USER not in chain(caught.value)

    @pytest.mark.parametrize("hello", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", None])
    def test_not_made(self, hello: bytes | None, connect: Callable[..., XRTClient], naps: Naps) -> None:
        """An encrypted connection that is not made carries nothing: the request is tried again, and never uncertain."""
        pieces = itertools.repeat(b"") if hello is None else [hello]
        with raw_server(lambda: pieces, 0.01) as url:
            client = connect(url.replace("http", "https"), connect_timeout_s=0.2, attempts=2)
            with pytest.raises(ServiceUnreachableError) as caught:
                client.submit(REQUEST)
        assert (caught.value.sent, len(naps)) == (False, 1)

    def test_refused_by_a_proxy(
        self, connect: Callable[..., XRTClient], naps: Naps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request that a proxy does not let through was not sent."""
        with raw_server(lambda: [b"HTTP/1.1 502 Bad Gateway\r\n\r\n"]) as url:
            monkeypatch.setenv("HTTPS_PROXY", url)
            with pytest.raises(ServiceUnreachableError) as caught:
                connect("https://service.invalid/", attempts=2).submit(REQUEST)
        assert (caught.value.sent, len(naps)) == (False, 1)

    @pytest.mark.parametrize("proxy", ["http://", "nonsense://frodo:pw@127.0.0.1:9", "http://frodo:pw@[::1"])
    def test_impossible_proxy(
        self, proxy: str, connect: Callable[..., XRTClient], naps: Naps, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A proxy that cannot be right is told at once, and its password is not."""
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(ConfigurationError, match="check the proxy") as caught:
            connect("https://service.invalid/").submit(REQUEST)
        assert naps == []
        assert "pw" not in str(caught.value)

    def test_own_authority(
        self, certificate: Path, connect: Callable[..., XRTClient], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who has to trust another authority can name its certificates."""
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        body = b'{"OK": 1, "numJobs": 3}'
        with server(lambda handler: send(handler, body), server_context(certificate)) as url:
            client = connect(url, attempts=1)
            client._session.trust_env = True  # as for a service elsewhere
            assert client.count_active_jobs() == 3

    def test_down_to_the_clear(self, certificate: Path, connect: Callable[..., XRTClient]) -> None:
        """A redirection of a file from the encrypted to the plain service of the same host is not followed."""
        asked: list[str] = []

        def answer(handler: BaseHTTPRequestHandler) -> None:
            asked.append(handler.path)
            send(handler, b"", 302, Location=f"http://127.0.0.1:{handler.connection.getsockname()[1]}/plain")

        with server(answer, server_context(certificate)) as url:
            client = connect(url)
            client._session.verify = str(certificate)
            with pytest.raises(ForeignURLError, match="points to http://127"):
                read_all(client, Job(id=1, url=url, products=(Product.IMAGE,)))
        assert asked == ["/image.tar.gz"]
