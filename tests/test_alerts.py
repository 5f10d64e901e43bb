"""An operator hears of what should not happen, once, with what to do, and one click away from the report."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import requests
from prefect import State, flow
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret

from prefect_xrt import Pacing, ProductRequest, XRTClient, alerts, attach_products, build_products
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.errors import ConfigurationError
from prefect_xrt.protocol import Job, Outcome, ProductStatus
from prefect_xrt.reports import make_report
from prefect_xrt.request import Product

if TYPE_CHECKING:
    from conftest import Server

FAST = Pacing(floor_s=0.05, ceiling_s=0.2)
READY, RUNNING, FAILED, ALARM = (Timeline.of((code,)) for code in (4, 3, -1, -3))
JOB_801 = "prefect-xrt.job.801"


def build(request: Any, output_dir: Path, **options: Any) -> State[Any]:
    """Run the flow, and give its final state."""
    return build_products(request, output_dir, return_state=True, **{"pacing": FAST, **options})


def events_of(server: Server, name: str, resource: str, *runs: State[Any]) -> list[dict[str, Any]]:
    """Give the events of a name that flow runs have raised about a resource, oldest first, once there is one."""
    found = server.events(name, resource, *(run.state_details.flow_run_id for run in runs))
    return sorted(found, key=lambda event: event["occurred"])


def artifact_at(server: Server, url: str) -> dict[str, Any]:
    """Give the artifact that an address in the UI shows."""
    base, artifact_id = url.rsplit("/artifacts/artifact/", maxsplit=1)
    assert base == server.url.removesuffix("/api")
    answer = requests.get(f"{server.url}/artifacts/{artifact_id}", timeout=30)
    answer.raise_for_status()
    return dict(answer.json())


class TestPayloads:
    def test_alarm(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """An alarm tells which product, what to do, and where the report to the help desk is."""
        emulator = service(default=FAILED, timelines={"spec": ALARM})
        state = build(request_, tmp_path / "out")
        (event,) = events_of(server, "prefect-xrt.product.alarm", JOB_801, state)
        assert event["resource"] == {
            "prefect.resource.id": JOB_801,
            "prefect.resource.name": "job 801 (GRB 200416A)",
            "prefect-xrt.product": "Spectrum",
            "prefect-xrt.code": "-3",
            "prefect-xrt.url": emulator.jobs[801].url,
        }
        payload = dict(event["payload"])
        page = artifact_at(server, payload.pop("report_url"))
        assert (page["key"], page["type"]) == ("xrt-alarm-801-spec", "markdown")
        assert "# To swifthelp@leicester.ac.uk" in page["data"]
        datetime.fromisoformat(payload.pop("looked_at"))
        text = payload.pop("text")
        assert payload == {
            "message": f"Spectrum of job 801 (GRB 200416A) has status -3 ({text}), which should never happen.",
            "next_step": (
                "Send the report that is ready to swifthelp@leicester.ac.uk; other products are not concerned."
            ),
            "run_url": f"{server.url.removesuffix('/api')}/runs/flow-run/{state.state_details.flow_run_id}",
            "job_id": 801,
            "job_name": "GRB 200416A",
            "product": "Spectrum",
            "code": -3,
            "help_desk": "swifthelp@leicester.ac.uk",
        }

    @pytest.mark.parametrize(
        ("name", "scenario", "options", "message", "next_step"),
        [
            (
                "prefect-xrt.job.overdue",
                {"default": FAILED, "timelines": {"spec": RUNNING}},
                {"deadline_s": 0.4},
                "The deadline has passed, and Spectrum of job 801 (GRB 200416A) had not ended.",
                "or cancel it by `prefect-xrt cancel 801`",
            ),
            (
                "prefect-xrt.service.unreachable",
                {"default": FAILED, "timelines": {"spec": RUNNING}, "faults": "after the first look"},
                {"max_failed_looks": 2},
                "Too many looks in a row told nothing of Spectrum of job 801 (GRB 200416A).",
                "See whether the service is up",
            ),
        ],
        ids=["overdue", "unreachable"],
    )
    def test_wait_ended(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        tmp_path: Path,
        name: str,
        scenario: dict[str, Any],
        options: dict[str, Any],
        message: str,
        next_step: str,
    ) -> None:
        """That a wait ended before the job tells what is pending, where the rest is, and how to go on."""
        if "faults" in scenario:
            scenario = {**scenario, "faults": [Fault("status", "http-503", after=1, times=-1)]}
        service(**scenario)
        state = build(request_, tmp_path / "out", **options)
        (event,) = events_of(server, name, JOB_801, state)
        payload = event["payload"]
        assert message == payload["message"]
        assert next_step in payload["next_step"]
        assert "Run the same again" in payload["next_step"] or "run the same again" in payload["next_step"]
        assert (payload["job_id"], payload["job_name"], payload["pending"]) == (
            801,
            "GRB 200416A",
            ["Spectrum"],
        )
        assert payload["output_dir"] == str(tmp_path / "out")
        assert artifact_at(server, payload["report_url"])["key"] == "xrt-report-801"

    def test_uncertain(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """An uncertain submission tells which jobs it may have become, and how to settle it; the block, too."""
        emulator = service(default=READY, faults=[Fault("submit", "reset-after", after=1)])
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(request_)
        with listening() as (url, heard):
            CustomWebhookNotificationBlock(name="n", url=url, json_data={"subject": "{{ subject }}"}).save(
                "uncertain", overwrite=True
            )
            state = build(request_, tmp_path / "out", notify="custom-webhook/uncertain")
        assert heard == [{"subject": "Uncertain submission: GRB 200416A"}]
        resource = f"prefect-xrt.request.{state.state_details.flow_run_id}"
        (event,) = events_of(server, "prefect-xrt.submission.uncertain", resource, state)
        payload = event["payload"]
        assert (payload["name"], payload["candidates"]) == ("GRB 200416A", [801, 802])
        assert "not known which job" in payload["message"]
        assert f"`prefect-xrt attach JOB_ID --out {tmp_path / 'out'}`" in payload["next_step"]
        assert "801 (submitted" in payload["detail"]
        assert payload["run_url"].endswith(str(state.state_details.flow_run_id))

    @pytest.mark.parametrize(
        ("spectrum", "expected"),
        [
            (READY, ("true", True, ["LightCurve", "Spectrum", "Image"], {})),
            (
                Timeline.of((-1,)),
                (
                    "false",
                    False,
                    ["LightCurve", "Image"],
                    {"Spectrum": "failed (-1, Job could not be requested: internal error)"},
                ),
            ),
        ],
        ids=["all there", "partly"],
    )
    def test_finished(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        tmp_path: Path,
        spectrum: Timeline,
        expected: tuple[Any, ...],
    ) -> None:
        """Every build tells when it has ended, what is there, and what is not and why."""
        service(default=READY, timelines={"spec": spectrum})
        state = build(request_, tmp_path / "out")
        (event,) = events_of(server, "prefect-xrt.build.finished", JOB_801, state)
        payload = event["payload"]
        assert expected == (
            event["resource"]["prefect-xrt.succeeded"],
            payload["succeeded"],
            payload["ready"],
            payload["missing"],
        )
        assert (payload["job_id"], payload["output_dir"]) == (801, str(tmp_path / "out"))
        assert payload["summary"].startswith(f"{len(expected[2])} of 3 products of job 801")
        assert artifact_at(server, payload["report_url"])["key"] == "xrt-report-801"

    def test_changed(self, server: Server, tmp_path: Path) -> None:
        """Something new is told of the target, once per job, also if it is told again before it is on record."""
        jobs = [
            Job(id=number, url=f"{server.url}/{number}", name="Mrk 421", products=(Product.IMAGE,))
            for number in (1, 2)
        ]

        @flow
        def monitor() -> None:
            for job in (jobs[0], jobs[0], jobs[1]):
                status = ProductStatus(product=Product.IMAGE, code=4, text="Complete")
                seen = Outcome(
                    job=job, statuses={Product.IMAGE: status}, looked_at=datetime(2026, 11, 24, tzinfo=UTC)
                )
                report = make_report(
                    job, seen, {}, {}, output_dir=tmp_path, started_at=datetime.now(UTC), problem=None
                )
                alerts.raise_changed("Mrk_421", report, ["3 new bins.", "1 new observation."], "http://ui/x")

        state = monitor(return_state=True)

        def both() -> list[dict[str, Any]] | None:
            events = events_of(server, "prefect-xrt.target.changed", "prefect-xrt.target.Mrk_421", state)
            return events if events[-1]["payload"]["job_id"] == 2 else None

        first, second = server.settled(both)
        assert (first["payload"]["job_id"], second["payload"]["job_id"]) == (1, 2)
        assert (
            first["payload"]["message"] == "There is something new of Mrk 421: 3 new bins. 1 new observation."
        )
        assert str(tmp_path) in first["payload"]["next_step"]


class TestOnce:
    def test_retried(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """A run that is retried alarms once for each product, and has finished once."""
        service(default=FAILED, timelines={"spec": ALARM, "image": ALARM})
        state = build_products.with_options(retries=1)(
            request_, tmp_path / "out", pacing=FAST, return_state=True
        )
        assert server.flow_run(state.state_details.flow_run_id)["run_count"] == 2
        (_,) = events_of(server, "prefect-xrt.build.finished", JOB_801, state)
        alarms = events_of(server, "prefect-xrt.product.alarm", JOB_801, state)
        assert [event["payload"]["product"] for event in alarms] == ["Spectrum", "Image"]

    def test_another_run(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """Runs that follow the same job later, into whichever folder, do not alarm again; each has finished."""
        service(default=FAILED, timelines={"spec": ALARM})
        with listening() as (url, heard):
            CustomWebhookNotificationBlock(name="n", url=url, json_data={"text": "{{ body }}"}).save(
                "once", overwrite=True
            )
            options: dict[str, Any] = {"pacing": FAST, "notify": "custom-webhook/once", "return_state": True}
            first = build_products(request_, tmp_path / "out", **options)
            # Prefect's server records events a little later; looks at a real job are minutes apart.
            events_of(server, "prefect-xrt.product.alarm", JOB_801, first)
            second = build_products(request_, tmp_path / "out", **options)
            third = attach_products(801, tmp_path / "other", **options)
        for state in (first, second, third):
            (_,) = events_of(server, "prefect-xrt.build.finished", JOB_801, state)
            # The report is among the artifacts of each, all the same.
            assert "xrt-alarm-801-spec" in server.artifacts(state.state_details.flow_run_id)
        alarms = events_of(server, "prefect-xrt.product.alarm", JOB_801, first, second, third)
        assert (len(alarms), len(heard)) == (1, 1)

    def test_artifacts_refused_meanwhile(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """An alarm whose report the server does not take is raised all the same; the report follows at the end."""
        emulator = service(
            speed=1, default=FAILED, timelines={"spec": ALARM, "image": Timeline.of((3, 1e6), (-1,))}
        )

        def mend() -> None:
            server.settled(lambda: alarms_at(server, emulator.jobs[801].url) if emulator.jobs else None)
            with database(server) as connection:
                connection.execute("DROP TRIGGER refuse")
            emulator.advance(1e6)

        with database(server) as connection:
            connection.execute(
                "CREATE TRIGGER refuse BEFORE INSERT ON artifact BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        mending = threading.Thread(target=mend)
        mending.start()
        state = build(request_, tmp_path / "out", deadline_s=120)
        mending.join()
        assert "xrt-alarm-801-spec" in server.artifacts(state.state_details.flow_run_id)
        (_,) = events_of(server, "prefect-xrt.build.finished", JOB_801, state)
        (alarm,) = alarms_at(server, emulator.jobs[801].url) or ()
        assert alarm["payload"]["report_url"] is None


def alarms_at(server: Server, url: str) -> list[dict[str, Any]] | None:
    """Give the alarms about the job that has its files at an address, if there are any."""
    found = server.find("events", filter={"event": {"name": ["prefect-xrt.product.alarm"]}})["events"]
    return [event for event in found if event["resource"]["prefect-xrt.url"] == url] or None


@contextmanager
def database(server: Server) -> Iterator[sqlite3.Connection]:
    """Open the server's database."""
    path = server.home / "prefect.db"
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        yield connection


@contextmanager
def listening(status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Listen for notifications on this machine; give the address and what was heard."""
    heard: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook/s3cret", heard
    finally:
        server.shutdown()
        server.server_close()


class TestNotify:
    def test_told(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """The block that is named is told what happened, what to do, and where the report is."""
        service(default=FAILED, timelines={"spec": ALARM, "image": RUNNING})
        with listening() as (url, heard):
            CustomWebhookNotificationBlock(
                name="n", url=url, json_data={"subject": "{{ subject }}", "body": "{{ body }}"}
            ).save("told", overwrite=True)
            state = build(request_, tmp_path / "out", notify="custom-webhook/told", deadline_s=1.0)
        alarm, overdue = heard
        assert alarm["subject"] == "Alarm: Spectrum of job 801 (GRB 200416A)"
        assert overdue["subject"] == "Overdue: job 801 (GRB 200416A)"
        for told, name in ((alarm, "product.alarm"), (overdue, "job.overdue")):
            (event,) = events_of(server, f"prefect-xrt.{name}", JOB_801, state)
            payload = event["payload"]
            assert told["body"].split("\n\n") == [
                payload["message"],
                payload["next_step"],
                f"Report: {payload['report_url']}",
                f"Run: {payload['run_url']}",
            ]

    @pytest.mark.parametrize("failing", ["answer", "connection"])
    def test_cannot_be_told(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        tmp_path: Path,
        failing: str,
    ) -> None:
        """A notification that fails costs nothing but a line in the log, which keeps the secret address."""
        service(default=READY, timelines={"spec": ALARM})
        with listening(500) as (url, heard):
            CustomWebhookNotificationBlock(
                name="n",
                url=url if failing == "answer" else "http://127.0.0.1:9/hook/s3cret",
                json_data={"text": "{{ body }}"},
            ).save(failing, overwrite=True)
            state = build(request_, tmp_path / "out", notify=f"custom-webhook/{failing}", accept_partial=True)
        assert len(heard) == (1 if failing == "answer" else 0)
        assert state.is_completed()
        lines = server.logs(state.state_details.flow_run_id, "could not be told through custom-webhook/")
        assert "s3cret" not in str(lines)

    @pytest.mark.usefixtures("server")
    def test_block_of_ones_own(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """A block whose way to notify is asynchronous, as Prefect's abstract class has it, is told, too."""
        Pigeon(message="x").save("home", overwrite=True)
        service(default=FAILED, timelines={"spec": ALARM})
        build(request_, tmp_path / "out", notify="pigeon/home")
        assert Pigeon.carried == ["Alarm: Spectrum of job 801 (GRB 200416A)"]

    @pytest.mark.usefixtures("server")
    @pytest.mark.parametrize(
        ("notify", "named"),
        [
            ("slack-webhook/nobody", "there is no block 'slack-webhook/nobody'"),
            ("nobody", "there is no block 'nobody'"),
            ("secret/not-for-that", "'secret/not-for-that' cannot notify"),
        ],
    )
    def test_wrong_name(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        tmp_path: Path,
        notify: str,
        named: str,
    ) -> None:
        """A name that is wrong fails the run before anything is sent, and tells what is wanted."""
        Secret(value="x").save("not-for-that", overwrite=True)
        emulator = service()
        state = build(request_, tmp_path / "out", notify=notify)
        error = state.result(raise_on_failure=False)
        assert isinstance(error, ConfigurationError)
        assert named in error.message
        assert "slack-webhook/xrt" in error.message
        assert error.message in str(state.message)
        assert emulator.log == []
        assert not (tmp_path / "out").exists()


class Pigeon(NotificationBlock):
    """Carries messages."""

    carried: ClassVar[list[str]] = []
    message: str

    async def notify(self, body: str, subject: str | None = None) -> None:
        """Carry one."""
        self.carried.append(str(subject))


class TestEndOfTheProcess:
    def test_nothing_is_lost(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """What was raised last reaches the server although the process ends at once."""
        emulator = service(default=FAILED)
        (tmp_path / "request.json").write_text(request_.model_dump_json(exclude={"products"}))
        subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path], env=os.environ.copy(), check=True, capture_output=True
        )

        def there() -> Any:
            found = server.find("events", filter={"event": {"name": ["prefect-xrt.build.finished"]}})
            outputs = [event["payload"]["output_dir"] for event in found["events"]]
            return str(tmp_path / "out") in outputs or None

        assert server.settled(there)
        assert emulator.jobs


PROGRAM = """
import json, sys
from pathlib import Path
from prefect_xrt import Pacing, build_products
folder = Path(sys.argv[1])
request = json.loads((folder / "request.json").read_text())
build_products(request, folder / "out", pacing=Pacing(floor_s=0.05, ceiling_s=0.2), return_state=True)
"""
