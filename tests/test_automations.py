"""The automations fire on a real server: people are told through a notification block."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

import pytest
import requests
from conftest import free_port
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from requests.adapters import HTTPAdapter
from urllib3 import Retry

from prefect_xrt import BuildReport, Job, Product, ProductState, alerts
from prefect_xrt.deploy import deploy
from prefect_xrt.errors import ConfigurationError, DeadlineError, FailedLooksError, SubmitUncertainError
from prefect_xrt.protocol import HELP_DESK, ProductStatus
from prefect_xrt.reports import ProductReport

if TYPE_CHECKING:
    from conftest import Server

NOTIFY = "custom-webhook/xrt-tests"
NEEDED, NEWS = "XRT: something needs you", "XRT: something new"
ENDED, DECAY = "XRT: a build has ended", "XRT: fit the decay after a build"
_WAIT_S = 60.0

# Prefect's server turns callers away while its database is busy.
API = requests.Session()
API.mount(
    "http://",
    HTTPAdapter(max_retries=Retry(8, status_forcelist=[503], allowed_methods=None, backoff_factor=0.2)),
)

NOW = datetime.now(UTC)
JOB = Job(id=4711, url="http://127.0.0.1/4711", name="GK Per", products=(Product.SPECTRUM,), submitted_at=NOW)
REPORT = BuildReport(
    job=JOB,
    products=(ProductReport(product=Product.SPECTRUM, state=ProductState.RUNNING, code=3, text="Running"),),
    output_dir=Path("/nowhere/gk_per"),
    started_at=NOW,
    finished_at=NOW,
)


@flow(name="raise-alerts")
def raise_alerts() -> None:
    """Raise every alert once, by the functions that the flows of the package use."""
    status = ProductStatus(product=Product.SPECTRUM, code=-2, text="Internal error")
    alerts.raise_alarm(JOB, status, NOW)
    alerts.raise_wait_ended(REPORT, DeadlineError("Too late.", job=JOB))
    alerts.raise_wait_ended(REPORT, FailedLooksError("No answer.", job=JOB))
    alerts.raise_uncertain(SubmitUncertainError("Sent.", name="GK Per"), REPORT.output_dir)
    alerts.raise_changed("gk_per", REPORT, ["2 new observations."])


@flow(name="finish")
def finish() -> None:
    """Tell that a build has ended."""
    alerts.raise_finished(REPORT)


class Inbox:
    """What a notification block has sent to a web server on loopback."""

    def __init__(self) -> None:
        self._received: Queue[dict[str, str]] = Queue()
        received = self._received

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)

    def take(self, count: int) -> list[dict[str, str]]:
        """Wait for some notifications."""
        return [self._received.get(timeout=_WAIT_S) for _ in range(count)]


@pytest.fixture
def inbox(server: Server) -> Iterator[Inbox]:
    """Receive what the block of these tests sends; nobody is told any more at the end."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock  # noqa: PLC0415 - takes seconds

    inbox = Inbox()
    with inbox.server:
        threading.Thread(target=inbox.server.serve_forever, daemon=True).start()
        CustomWebhookNotificationBlock(
            name="xrt-tests",
            url=f"http://127.0.0.1:{inbox.server.server_port}",
            json_data={"subject": "{{subject}}", "body": "{{body}}"},
        ).save("xrt-tests", overwrite=True)
        yield inbox
        for name in (NEEDED, NEWS, ENDED):
            url = f"{server.url}/automations/{automations(server)[name]['id']}"
            API.delete(url, timeout=30).raise_for_status()
        switch(server, DECAY, enabled=True)
        inbox.server.shutdown()


def automations(server: Server) -> dict[str, Any]:
    """Give the automations, by name; none may be there twice."""
    found = [entry for entry in server.find("automations") if entry["name"].startswith("XRT: ")]
    assert len({entry["name"] for entry in found}) == len(found)
    return {entry["name"]: entry for entry in found}


def switch(server: Server, name: str, *, enabled: bool) -> None:
    """Switch an automation, as the UI does."""
    url = f"{server.url}/automations/{automations(server)[name]['id']}"
    API.patch(url, json={"enabled": enabled}, timeout=30).raise_for_status()


def schedules(server: Server, name: str) -> dict[str, bool]:
    """Give the schedules of a deployment, and whether each is on."""
    answer = API.get(f"{server.url}/deployments/name/{name}", timeout=30)
    return {entry["schedule"]["cron"]: entry["active"] for entry in answer.json()["schedules"]}


def add_schedule(server: Server, name: str, cron: str) -> None:
    """Add a schedule to a deployment, as the UI does."""
    deployment = API.get(f"{server.url}/deployments/name/{name}", timeout=30).json()
    API.post(
        f"{server.url}/deployments/{deployment['id']}/schedules",
        json=[{"active": True, "schedule": {"cron": cron, "timezone": "UTC"}}],
        timeout=30,
    ).raise_for_status()


class TestNotify:
    def test_alerts(self, server: Server, inbox: Inbox) -> None:
        """Each alert is told once, with what happened, what to do and where to look; the end of a build, if wanted."""
        deploy(NOTIFY)
        finish()
        raise_alerts()
        told = inbox.take(5)
        assert sorted(notification["subject"] for notification in told) == [
            "XRT: Spectrum of job 4711 (GK Per) has status -2 (Internal error), which should never happen.",
            "XRT: The deadline has passed, and Spectrum of job 4711 (GK Per) had not ended.",
            "XRT: The request for 'GK Per' was sent, and it is not known which job, if any, it has become.",
            "XRT: There is something new of GK Per: 2 new observations.",
            "XRT: Too many looks in a row told nothing of Spectrum of job 4711 (GK Per).",
        ]
        bodies = {notification["subject"]: notification["body"].split("\n\n") for notification in told}
        for subject, (message, next_step, *links) in bodies.items():
            assert subject == f"XRT: {message}"
            assert next_step.endswith(".")
            assert links[-1].startswith("Run: http://")
        (alarm,) = (body for subject, body in bodies.items() if "status -2" in subject)
        assert HELP_DESK in alarm[1]
        assert alarm[2].startswith("Report: http://")

        # Deployed again, nothing is there twice, and all is as people have it by now.
        switch(server, ENDED, enabled=True)
        switch(server, DECAY, enabled=False)
        add_schedule(server, "monitor/monitor", cron="0 7 1 1 *")
        deploy(NOTIFY)
        assert {name: entry["enabled"] for name, entry in automations(server).items()} == {
            NEEDED: True,
            NEWS: True,
            ENDED: True,
            DECAY: False,
        }
        assert schedules(server, "monitor/monitor") == {"0 6 * * *": False, "0 7 1 1 *": True}
        finish()
        (ended,) = inbox.take(1)
        assert ended["subject"].startswith("XRT: 0 of 1 products of job 4711 (GK Per) are in /nowhere/gk_per")
        assert "Spectrum: running" in ended["body"]


class TestTrouble:
    def test_no_block(self, server: Server) -> None:
        """A block that is not there is told before anything is deployed."""
        with pytest.raises(ConfigurationError, match="no block 'slack-webhook/nobody'"):
            deploy("slack-webhook/nobody")

    def test_no_server_set(self) -> None:
        """Without a server set, it is told how to start one; nothing is deployed to one of this process alone."""
        with pytest.raises(ConfigurationError, match="prefect server start"):
            deploy()

    def test_no_server_there(self) -> None:
        """A server that does not answer is told by its address."""
        url = f"http://127.0.0.1:{free_port()}/api"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            pytest.raises(ConfigurationError, match=f"{url} does not answer"),
        ):
            deploy()
