"""Hold `prefect_xrt.client` to account, over real connections to the embedded service."""

from __future__ import annotations

import contextlib
import gzip
import pickle
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
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


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Send an answer."""
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def chain(error: BaseException) -> str:
    """Return all that an error and its causes say."""
    parts = []
    seen: BaseException | None = error
    while seen is not None:
        parts += [str(seen), repr(seen), repr(vars(seen))]
        seen = seen.__cause__
    return "\n".join(parts)


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
    (Fault("submit", "redirect", location="http://127.0.0.1:9", redirect_status=307), 0),
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

    def test_too_large(self, connect: Callable[..., XRTClient], monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer without end is not read into memory."""
        monkeypatch.setattr(module, "_MAX_ANSWER_BYTES", 2**20)
        with (
            server(lambda handler: send(handler, b" " * (2**20 + 1))) as url,
            pytest.raises(AnswerError, match="larger than 1 MiB"),
        ):
            connect(url, attempts=1).count_active_jobs()

    def test_compressed(self, connect: Callable[..., XRTClient]) -> None:
        """A compressed answer is understood."""
        body = gzip.compress(b'{"OK": 1, "numJobs": 3}')
        with server(lambda handler: send(handler, body, Content_Encoding="gzip")) as url:
            assert connect(url).count_active_jobs() == 3

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
            connect("http://service.invalid/user_objects", attempts=1).count_active_jobs()
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
        with XRTClient(USER, f"http://{host}/user_objects") as client:
            assert client.is_local is local

    @pytest.mark.parametrize("host", ["127.0.0.1", "service.invalid"])
    def test_proxy(self, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A proxy of the environment is for services elsewhere only."""
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with XRTClient(USER, f"http://{host}/") as client:
            assert client._session.trust_env is (host != "127.0.0.1")

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


class TestEncryption:
    @staticmethod
    def context(certificate: Path) -> ssl.SSLContext:
        """Return what a server needs to encrypt."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return context

    def test_untrusted(self, certificate: Path, connect: Callable[..., XRTClient], naps: Naps) -> None:
        """A service whose certificate is not trusted gets nothing: no job, and no uncertainty."""
        asked: list[str] = []
        with (
            server(lambda handler: asked.append(handler.path), self.context(certificate)) as url,
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

        with server(vanish, self.context(certificate)) as url:
            client = connect(url)
            client._session.verify = str(certificate)
            with pytest.raises(SubmitUncertainError, match="encrypted connection to the service broke"):
                client.submit(REQUEST)
        assert asked == ["/run_userobject.php"]
