"""The registered address is a secret end to end: nothing that full runs leave behind holds it, however it is spelt.

A real server and a real worker run what is deployed: for an account in the worker's environment and for one in
a saved block, a build whose answer was lost and that ends in an alarm, a request that is refused, and a run
that is cancelled. The service speaks of the address wherever it can. Every place is searched for the name of a
target, too, so that a search which looks into nothing does not pass.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import html
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

import pytest
import requests
from conftest import until
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from prefect_xrt import Image, LightCurve, ProductRequest, Spectrum, XRTCredentials
from prefect_xrt.alerts import ALARM_EVENT
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline

if TYPE_CHECKING:
    from conftest import Server

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = "Zebulon.Quackenbush+xrt@observatory-7f3a.example"
BLOCK = "Wilhelmina_Blatherwick-9@observatory-2c1b.example"
ADDRESSES = {"environment": ENVIRONMENT, "block": BLOCK}
TARGET = "Quokka"
NAME = "secrecy"
READY, RUNNING = Timeline.of((4,)), Timeline.of((3,))
NIGHT = """
from pathlib import Path

from prefect import flow
from prefect_xrt import build_products, cancel_jobs


@flow(on_cancellation=[cancel_jobs], on_crashed=[cancel_jobs])
def night(requests: list[dict], output_root: Path, credentials: str | None = None) -> None:
    for number, request in enumerate(requests):
        pacing = {"floor_s": 0.2, "ceiling_s": 0.4}
        build_products(request, output_root / str(number), credentials, pacing=pacing, return_state=True)
"""


def spellings(address: str) -> tuple[set[bytes], set[bytes]]:
    """Return what gives an address away, its local part alone included: in lower case, and as it is."""
    plain: set[bytes] = set()
    coded: set[bytes] = set()
    for text in (address, address.partition("@")[0]):
        as_json = text.replace("@", "\\u0040").replace("+", "\\u002b")
        for spelling in (text, quote(text, safe=""), html.escape(text.replace("@", "&#64;")), as_json):
            plain |= {spelling.lower().encode(), spelling.lower().encode("utf-16-le")}
        plain.add(text.encode().hex().encode())
        for case in (text, text.lower(), text.upper()):
            coded |= {piece for offset in range(3) for piece in base64_of(case.encode(), offset)}
    return plain, coded


def base64_of(secret: bytes, offset: int) -> Iterator[bytes]:
    """Return what base64 makes of something that lies anywhere in what is encoded, in both alphabets."""
    encoded = base64.b64encode(bytes(offset) + secret)
    piece = encoded[-(-offset * 8 // 6) : (offset + len(secret)) * 8 // 6]
    yield from (piece, piece.translate(bytes.maketrans(b"+/", b"-_")))


SPELLINGS = {whose: spellings(address) for whose, address in ADDRESSES.items()}


def tells(content: bytes | str) -> str | None:
    """Return whose address, or a part of it, something holds; None if it holds none."""
    content = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    lowered = content.lower()
    for whose, (plain, coded) in SPELLINGS.items():
        if any(needle in lowered for needle in plain) or any(needle in content for needle in coded):
            return whose
    return None


def request(what: str, **changes: Any) -> dict[str, Any]:
    """Ask for three products of a target whose name tells what is to happen."""
    asked = ProductRequest(
        name=f"{TARGET} {what}",
        targets=["00966554"],
        ra_deg=335.6985,
        dec_deg=-7.5179,
        centroid=True,
        position_error_arcmin=1,
        light_curve=LightCurve(binning="obsid"),
        spectrum=Spectrum(),
        image=Image(),
    )
    return asked.model_copy(update=changes).model_dump(mode="json", exclude_none=True)


def service_of(address: str) -> Emulator:
    """Make a service that loses its first answer, and speaks of its user wherever it can."""
    said = f"for <{address}>"
    return Emulator(
        Scenario(
            jobs={
                f"{TARGET} alarm": {"*": READY, "image": Timeline.of((-3,))},
                f"{TARGET} cancelled": {"*": RUNNING, "image": READY},
            },
            faults=[Fault("submit", "reset-after")],
            unresolvable_names=[f"{TARGET} refused"],
            extra_answers={
                "*": {"deprecationWarning": {"type": "API", "message": f"An old interface {said}"}},
                "submit": {"ERROR": f"Nothing is known of this target {said}, {address.upper()}"},
                "cancel": {"status": dict.fromkeys(("lc", "spec"), f"Job cancelled {said}")},
            },
        ),
        speed=2000.0,
        users=[address],
    )


class Processes:
    """The command lines of all processes of the machine, as long as it watches."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    self.seen.add(path.read_bytes())


@dataclass
class Traces:
    """What the runs have left behind."""

    server: Server
    services: dict[str, Emulator]
    places: dict[str, Path]
    began: str
    command_lines: set[bytes]
    runs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def files(self, place: str) -> Iterator[tuple[Path, bytes]]:
        """Give all that lies in a place, with its contents: where a link leads to, and what is packed, too."""
        for path in self.places[place].rglob("*"):
            if path.is_symlink():
                yield path, os.readlink(path).encode()
            elif path.is_file():
                content = path.read_bytes()
                yield path, content
                if path.suffix == ".gz":
                    yield path, gzip.decompress(content)

    def rows(self) -> Iterator[tuple[str, str]]:
        """Give all rows of the server's database: in its file, a row may lie in pieces."""
        with contextlib.closing(
            sqlite3.connect(f"file:{self.server.home}/prefect.db?mode=ro", uri=True)
        ) as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                for row in db.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - its own name
                    yield table, "\n".join(map(str, row))

    def told(self) -> Iterator[tuple[str, str]]:
        """Give all that the server tells of the runs, by what it was asked."""
        ids = self.with_those_below([run["id"] for run in self.runs.values()])
        of_these = {"flow_run_id": {"any_": ids}}
        for kind, wanted in {
            "flow_runs": {"flow_runs": {"id": {"any_": ids}}},
            "task_runs": {"task_runs": of_these},
            "artifacts": {"artifacts": of_these},
            "logs": {"logs": of_these},
            "deployments": {},
            "block_documents": {},
            "work_pools": {},
        }.items():
            page: list[Any] = []
            offset = 0
            while offset == 0 or len(page) == 100:
                page = self.server.find(kind, **wanted, limit=100, offset=offset)
                offset += 100
                yield kind, json.dumps(page)
        for run_id in ids:
            for path in (f"flow_run_states/?flow_run_id={run_id}", f"flow_runs/{run_id}/graph-v2"):
                yield path.partition("/")[0], requests.get(f"{self.server.url}/{path}", timeout=30).text
        yield from (("events", json.dumps(event)) for event in self.events())

    def with_those_below(self, run_ids: list[str]) -> list[str]:
        """Return runs and those that were started by them."""
        below = self.server.find("flow_runs", flow_runs={"parent_flow_run_id": {"any_": run_ids}})
        return [*run_ids, *(run["id"] for run in below)]

    def events(self) -> Iterator[dict[str, Any]]:
        """Give all events since the runs began."""
        found = self.server.find("events", filter={"occurred": {"since": self.began}}, limit=50)
        while found:
            yield from found["events"]
            following = found["next_page"]
            found = requests.get(following, timeout=30).json() if following else None


def deploy(client: SyncPrefectClient, folder: Path, entrypoint: str) -> UUID:
    """Deploy a flow for a worker of this test's own, and return the deployment's ID."""
    name = entrypoint.partition(":")[2].replace("_", "-")
    return client.create_deployment(
        client.create_flow_from_name(name),
        NAME,
        entrypoint=entrypoint,
        path=str(folder),
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}],
        work_pool_name=NAME,
    )


@pytest.fixture(scope="module")
def traces(prefect_process: Server, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """Run everything once, and keep what it leaves."""
    root = tmp_path_factory.mktemp("traces")
    places = {name: root / name for name in ("products", "state", "home", "temporary", "log")}
    for place in places.values():
        place.mkdir()
    places |= {"server": prefect_process.home, "ours": Path(os.environ["PREFECT_HOME"])}
    services = {whose: service_of(address) for whose, address in ADDRESSES.items()}
    with contextlib.ExitStack() as stack:
        for service in services.values():
            stack.enter_context(service)
        stack.enter_context(temporary_settings({PREFECT_API_URL: prefect_process.url}))
        watch = stack.enter_context(Processes())
        (root / "night.py").write_text(NIGHT)
        XRTCredentials(user_id=BLOCK, base_url=services["block"].url).save(NAME, overwrite=True)
        stack.enter_context(working(prefect_process, services["environment"].url, places))
        client = stack.enter_context(get_client(sync_client=True))
        began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        traces = Traces(prefect_process, services, places, began, watch.seen)
        run_all(traces, client)
    return traces


@contextlib.contextmanager
def working(server: Server, base_url: str, places: dict[str, Path]) -> Iterator[None]:
    """Run a worker whose environment holds an account."""
    environment = {
        "PREFECT_API_URL": server.url,
        "PREFECT_HOME": str(places["home"]),
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_XRT_USER_ID": ENVIRONMENT,
        "PREFECT_XRT_BASE_URL": base_url,
        "TMPDIR": str(places["temporary"]),
        "XDG_STATE_HOME": str(places["state"]),
    }
    with (places["log"] / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", NAME],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


def run_all(traces: Traces, client: SyncPrefectClient) -> None:
    """Start all runs, cancel those that are to be cancelled, and wait until every one has ended."""
    server, products = traces.server, traces.places["products"]
    client.create_work_pool(WorkPoolCreate(name=NAME, type="process"), overwrite=True)
    night = deploy(client, products.parent, "night.py:night")
    one_target = deploy(client, ROOT, "flows/one_target.py:one_target")
    started: dict[tuple[str, str], UUID] = {}

    def start(deployed: UUID, whose: str, what: str, **parameters: Any) -> None:
        parameters |= {"output_root": str(products / whose)}
        parameters |= {"credentials": NAME} if whose == "block" else {}
        run = client.create_flow_run_from_deployment(deployed, parameters=parameters)
        started[whose, what] = run.id

    for whose in ADDRESSES:
        requests_ = [request("alarm"), request("refused", find_targets=True, targets=())]
        start(night, whose, "night", requests=requests_)
    for whose, service in traces.services.items():
        # The request whose answer is lost is to be the first of that night.
        until(lambda: service.calls("submit"))  # noqa: B023 - it is called at once
        start(one_target, whose, "cancelled", request=request("cancelled"))
    for whose, service in traces.services.items():
        job_id = until(lambda: job_of(service, "cancelled"))  # noqa: B023
        until(lambda: service.calls("status", job_id))  # noqa: B023
        client.set_flow_run_state(started[whose, "cancelled"], Cancelling())
    until(lambda: all(server.flow_run(run_id)["end_time"] for run_id in started.values()))
    traces.runs = {key: server.flow_run(run_id) for key, run_id in started.items()}
    # All this is told a little later than the end of a run.
    for whose in ADDRESSES:
        until(lambda: "Finished in state" in logged(traces, whose, "night"))  # noqa: B023
    until(lambda: len(alarms(traces)) == len(ADDRESSES))


def alarms(traces: Traces) -> list[dict[str, Any]]:
    """Return the alarms that were raised about jobs of these services; other tests raise some, too."""
    ours = tuple(f"{service.origin}/" for service in traces.services.values())
    return [
        event
        for event in traces.events()
        if event["event"] == ALARM_EVENT and event["resource"]["prefect-xrt.url"].startswith(ours)
    ]


def job_of(service: Emulator, what: str) -> int | None:
    """Return the job that was made for one of the runs, if there is one yet."""
    return next((job.id for job in service.jobs.values() if job.name == f"{TARGET} {what}"), None)


def logged(traces: Traces, whose: str, what: str) -> str:
    """Return the log of a run, and of those below it."""
    wanted = {"flow_run_id": {"any_": traces.with_those_below([traces.runs[whose, what]["id"]])}}
    return "\n".join(line["message"] for line in traces.server.find("logs", logs=wanted))


@pytest.mark.parametrize("whose", ADDRESSES)
class TestRuns:
    """All happened that could tell the address."""

    def test_night(self, traces: Traces, whose: str) -> None:
        """A lost answer was found again, an alarm raised, and a second request refused, with its reason told."""
        service = traces.services[whose]
        assert traces.runs[whose, "night"]["state_name"] == "Completed"
        first, *_ = service.calls("submit")
        assert (first.fault, first.user) == ("reset-after", ADDRESSES[whose])
        assert job_of(service, "alarm") == 801
        assert service.calls("list")
        assert sorted(alarm["payload"]["job_name"] for alarm in alarms(traces)) == [f"{TARGET} alarm"] * 2
        text = logged(traces, whose, "night")
        assert "has become job 801" in text
        assert "Nothing is known of this target for <(your address)>" in text

    def test_cancelled(self, traces: Traces, whose: str) -> None:
        """A run was cancelled, and its job with it."""
        service = traces.services[whose]
        assert traces.runs[whose, "cancelled"]["state_name"] == "Cancelled"
        job_id = job_of(service, "cancelled")
        assert job_id
        assert [service.jobs[job_id].code(short) for short in ("lc", "spec", "image")] == [-4, -4, 4]


class TestNowhere:
    @pytest.mark.parametrize("place", ["products", "state", "home", "log", "server"])
    def test_files(self, traces: Traces, place: str) -> None:
        """No file holds it, be it output, record, log, stored result, or the server's database as it lies there."""
        contents = list(traces.files(place))
        assert any(TARGET.encode() in content for _, content in contents)
        assert [(path, whose) for path, content in contents if (whose := tells(content))] == []

    def test_names(self, traces: Traces) -> None:
        """No name of a file or a folder holds it."""
        paths = [path for place in traces.places.values() for path in place.rglob("*")]
        assert any(TARGET in path.name for path in paths)
        assert [path for path in paths if tells(str(path))] == []

    def test_elsewhere(self, traces: Traces) -> None:
        """What was only needed for a while, and what this process keeps, does not hold it, either."""
        for place in ("temporary", "ours"):
            assert [path for path, content in traces.files(place) if tells(content)] == []

    def test_rows(self, traces: Traces) -> None:
        """No row of the server's database holds it."""
        rows = list(traces.rows())
        assert {"flow_run", "task_run", "log", "events", "artifact"} <= {
            table for table, row in rows if TARGET in row
        }
        assert "block_document" in {table for table, _ in rows}
        assert [(table, whose) for table, row in rows if (whose := tells(row))] == []

    def test_told(self, traces: Traces) -> None:
        """The server tells it to nobody: not with runs, states, logs, artifacts, events or the block."""
        answers = list(traces.told())
        named = {"flow_runs", "task_runs", "artifacts", "logs", "events", "flow_run_states"}
        assert named <= {kind for kind, text in answers if TARGET in text}
        assert NAME in "".join(text for kind, text in answers if kind == "block_documents")
        assert [(kind, whose) for kind, text in answers if (whose := tells(text))] == []

    def test_processes(self, traces: Traces) -> None:
        """No command line of any process of the machine holds it."""
        lines = traces.command_lines
        assert any(b"worker" in line and NAME.encode() in line for line in lines)
        assert any(b"prefect" in line and b"engine" in line for line in lines)
        assert [line for line in lines if tells(line)] == []


class TestSearch:
    @pytest.mark.parametrize("whose", ADDRESSES)
    @pytest.mark.parametrize(
        "spell",
        [
            lambda address: address,
            str.upper,
            lambda address: address.partition("@")[0].lower(),
            quote,
            lambda address: quote(address, safe="").lower(),
            lambda address: json.dumps({"": address}).replace("@", "\\u0040"),
            lambda address: address.replace("@", "&#64;"),
            lambda address: address.encode("utf-16-be").decode("latin-1"),
            lambda address: address.encode().hex().upper(),
            *(
                lambda address, before=before: base64.b64encode(f"{before}{address}, ".encode()).decode()
                for before in ("", "a", "ab", "abc")
            ),
            lambda address: base64.urlsafe_b64encode(address.upper().encode()).decode(),
        ],
    )
    def test_finds(self, whose: str, spell: Callable[[str], str]) -> None:
        """The search finds an address in the midst of other things, however it is spelt."""
        assert tells(f"... {spell(ADDRESSES[whose])} ...") == whose

    def test_finds_nothing(self) -> None:
        """The search finds nothing in what is innocent."""
        assert tells(f"{TARGET} {NAME} user@observatory-7f3a.example (your address)") is None
