"""What people see: a real Prefect server, a worker, a browser, and somebody who fills in, watches, reads and clicks.

Screenshots go into `.screenshots/` at the root of the checkout, or where `XRT_SCREENSHOTS` says. Without a browser
the tests are skipped, unless `XRT_BROWSER` names one or asks for one (`XRT_BROWSER=chromium`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import requests
from conftest import ROOT
from conftest import until as until_there
from playwright.sync_api import Locator, Page, expect, sync_playwright

from prefect_xrt.emulator import Emulator, Timeline

if TYPE_CHECKING:
    from conftest import Server

SCREENSHOTS = Path(os.environ.get("XRT_SCREENSHOTS", ROOT / ".screenshots"))
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # It finds nothing but this machine.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_PATIENCE_S = 180.0
_PATIENCE_MS = 30_000
READY, RUNNING = Timeline.of((4,)), Timeline.of((3,))


until = partial(until_there, patience_s=_PATIENCE_S)


def apart(act: Callable[[], object]) -> None:
    """Do something in a thread of its own: Playwright's loop runs in this one, which Prefect takes for its own."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(copy_context().run, act).result()


@pytest.fixture
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """Open a browser that sees nothing but the server, and has never seen it before."""
    wanted = os.environ.get("XRT_BROWSER")
    program = shutil.which(wanted or "chromium") or shutil.which("google-chrome")
    if program is None:
        if wanted:
            pytest.fail(f"there is no browser {wanted!r}")
        pytest.skip("there is no browser; install chromium, or name one by XRT_BROWSER")
    expect.set_options(timeout=_PATIENCE_MS)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"),
            executable_path=program,
            args=FLAGS,
            viewport={"width": 1300, "height": 950},
        )
        context.set_default_timeout(_PATIENCE_MS)
        yield context.pages[0]
        context.close()


@pytest.fixture
def account(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[Emulator], str]:
    """Keep the account at an embedded service in a block, and give its name."""
    from prefect_xrt import XRTCredentials  # noqa: PLC0415 - after the environment is set

    def keep(emulator: Emulator) -> str:
        name = f"browser-{uuid4().hex[:8]}"
        block = XRTCredentials(user_id=emulator.user_id, base_url=emulator.url)
        apart(lambda: block.save(name))
        return name

    return keep


class UI:
    """The Prefect UI, as somebody uses it."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page = page
        self.server = server
        self._base = server.url.removesuffix("/api") + "/v2"
        answer = requests.get(f"{server.url}/deployments/name/one-target/one-target", timeout=30)
        self.deployment = answer.json()["id"]

    def go(self, path: str) -> None:
        """Open a page of the UI."""
        self.page.goto(f"{self._base}/{path}")

    def shoot(self, name: str, at: Locator | None = None) -> None:
        """Keep what is on the screen, where a person can look at it; nothing hangs on what it shows."""
        if at:
            # At once: what Playwright waits for, until it is still, may be drawn anew meanwhile.
            at.evaluate("element => element.scrollIntoView({block: 'center'})")
        # Graphs and pop-overs take their time.
        self.page.wait_for_timeout(1500)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")

    def open_form(self) -> None:
        """Open the form of the pipeline for one target."""
        self.go(f"deployments/deployment/{self.deployment}/run")
        self.page.get_by_role("button", name="Submit").wait_for()

    def fill(self, **fields: str) -> None:
        """Fill in fields; their titles have blanks and brackets that names of arguments have not."""
        for title, value in fields.items():
            self.page.get_by_label(f"{TITLES.get(title, title)} (Optional)", exact=True).fill(value)

    def choose(self, *products: str) -> None:
        """Add products to those that are chosen, or take them out."""
        self.page.get_by_role("button", name="Select Product", exact=True).click()
        for product in products:
            self.page.get_by_role("option", name=product, exact=True).click()
        self.page.keyboard.press("Escape")
        self.page.get_by_role("option").first.wait_for(state="detached")

    def submit(self) -> str:
        """Submit the form, and give the ID of the run that comes of it."""
        known = set(self._runs())
        self.page.get_by_role("button", name="Submit").click()
        # The page goes to the list of runs when the run is made.
        self.page.wait_for_url(re.compile("tab=Runs"), timeout=_PATIENCE_S * 1000)
        return str(until(lambda: [run for run in self._runs() if run not in known])[0])

    def _runs(self) -> list[str]:
        wanted = {"id": {"any_": [self.deployment]}}
        return [run["id"] for run in self.server.find("flow_runs", deployments=wanted)]

    def open_run(self, run_id: str, tab: str = "Logs") -> None:
        """Open a tab of a flow run."""
        self.go(f"runs/flow-run/{run_id}?tab={tab}")
        self.page.get_by_role("tab", name="Logs").wait_for()

    def ended(self, run_id: str) -> dict[str, Any]:
        """Give a flow run once it has ended."""
        return dict(until(lambda: (run := self.server.flow_run(run_id))["end_time"] and run))

    def artifact(self, run_id: str, key: str) -> dict[str, Any]:
        """Give a flow run's artifact of a key, once there is one."""
        return dict(until(lambda: self.server.artifacts(run_id).get(key)))

    def open_artifact(self, artifact_id: str) -> None:
        """Open the page of an artifact."""
        self.go(f"artifacts/artifact/{artifact_id}")
        self.page.get_by_role("tab", name="Artifact", exact=True).wait_for()


TITLES = {
    "target_ids": "Target IDs",
    "ra": "RA (J2000)",
    "dec": "Dec (J2000)",
    "account": "Account",
    "folder": "Output folder",
    "notification": "Notification",
}


@pytest.fixture
def ui(page: Page, server: Server, worker: object) -> UI:
    """Give the UI of a server whose pipelines are deployed and have a worker."""
    return UI(page, server)


@contextmanager
def receiver() -> Iterator[tuple[str, list[str]]]:
    """Run what a notification is sent to, and give its address and what it got."""
    got: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", got
        server.shutdown()


def test_from_form_to_pictures(
    ui: UI,
    service: Callable[..., Emulator],
    account: Callable[[Emulator], str],
    tmp_path: Path,
) -> None:
    """Five fields make a build: its progress moves, its branches end, and its report shows pictures."""
    emulator = service(
        default=Timeline.typical(queue_s=20, run_s=240), timelines={"spec": Timeline.of((-1,))}, speed=20.0
    )
    page = ui.page
    ui.open_form()
    ui.fill(Name="GRB 200416A", target_ids="00966554", ra="22 22 47.64", dec="-07 31 04.4")
    ui.choose("Spectrum", "StandardPos", "Image")
    ui.shoot("form")
    ui.fill(account=account(emulator), folder=str(tmp_path))
    run = ui.submit()

    progress = ui.artifact(run, "xrt-progress-801")
    seen = set()

    def moves() -> bool:
        ui.open_artifact(progress["id"])
        seen.add(page.get_by_text(re.compile(r"^Progress: [0-9.]+%$")).inner_text())
        if len(seen) == 2:
            ui.shoot("progress")
        return len(seen) >= 3 or bool(server_end())

    def server_end() -> Any:
        return ui.server.flow_run(run)["end_time"]

    until(moves)
    assert len(seen) >= 3

    ended = ui.ended(run)
    assert (ended["state_type"], ended["state_name"]) == ("FAILED", "Partly")
    ui.open_run(run, "Details")
    expect(page.get_by_text("Partly").first).to_be_visible()
    message = page.get_by_text("Spectrum failed (-1").first
    expect(message).to_be_visible()
    ui.shoot("run", message)
    ui.open_run(run, "TaskRuns")
    for name in ("submit: GRB 200416A", "wait: GRB 200416A, job 801", "download: LightCurve"):
        expect(page.get_by_text(name).first).to_be_visible()
    ui.shoot("tasks")

    ui.open_run(run, "Artifacts")
    page.get_by_text("xrt-report-801").first.click()
    pictures = page.get_by_test_id("markdown-display").locator("img")
    expect(pictures).to_have_count(3)
    for picture in pictures.all():
        until(lambda: picture.evaluate("image => image.complete && image.naturalWidth > 300"))  # noqa: B023
    expect(page.get_by_role("heading", name="Positions")).to_be_visible()
    ui.shoot("report-pictures", pictures.first)
    ui.shoot("report", page.get_by_role("heading", name="GRB 200416A"))


def test_refused(ui: UI) -> None:
    """A position that is none fails at once, and the run's message names the field of the form."""
    ui.open_form()
    ui.fill(Name="GK Per", ra="25:61:00", dec="43.9")
    run = ui.submit()
    ended = ui.ended(run)
    assert ended["state_type"] == "FAILED"
    ui.open_run(run, "Details")
    message = ui.page.get_by_text(re.compile(r"RA \(J2000\).*Nothing was sent")).first
    expect(message).to_be_visible()
    ui.shoot("refused", message)


def test_alarm(
    ui: UI, service: Callable[..., Emulator], account: Callable[[Emulator], str], tmp_path: Path
) -> None:
    """An alarm goes through the automation to a notification; a click on its link shows the report to send."""
    from prefect.blocks.notifications import CustomWebhookNotificationBlock  # noqa: PLC0415

    from prefect_xrt.deploy import deploy  # noqa: PLC0415 - after the environment is set

    emulator = service(default=READY, timelines={"image": Timeline.of((-2,))})
    with receiver() as (url, got):
        hook = CustomWebhookNotificationBlock(
            name="hook", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        apart(lambda: hook.save("browser", overwrite=True))
        apart(lambda: deploy("custom-webhook/browser", say=lambda _: None))
        ui.go("automations")
        expect(ui.page.get_by_text("XRT: something needs you").first).to_be_visible()
        ui.shoot("automations")
        ui.open_form()
        ui.fill(Name="GK Per", ra="52.8", dec="43.9", account=account(emulator), folder=str(tmp_path))
        ui.choose("Image")
        ui.ended(ui.submit())
        told = json.loads(until(lambda: [text for text in got if "-2" in text])[0])
    assert "Image of job 801 (GK Per) has status -2" in told["body"]
    (report,) = re.findall(r"http://\S+/artifacts/artifact/\S+", told["body"])
    ui.page.goto(report)
    expect(ui.page.get_by_text("To swifthelp@leicester.ac.uk", exact=False).first).to_be_visible()
    ui.shoot("alarm")


def test_cancel(
    ui: UI, service: Callable[..., Emulator], account: Callable[[Emulator], str], tmp_path: Path
) -> None:
    """Cancelled in the UI, a run cancels what its job still builds at the service."""
    emulator = service(default=RUNNING)
    ui.open_form()
    ui.fill(Name="GK Per", ra="52.8", dec="43.9", account=account(emulator), folder=str(tmp_path))
    run = ui.submit()
    until(lambda: emulator.calls("status"))
    ui.open_run(run)
    ui.page.get_by_role("button", name="Open menu").first.click()
    ui.page.get_by_role("menuitem", name="Cancel").click()
    ui.page.get_by_role("alertdialog").get_by_role("button", name="Cancel Flow Run").click()
    until(lambda: ui.server.flow_run(run)["state_name"] == "Cancelled")
    assert {emulator.jobs[801].code("lc")} == {-4}
    expect(ui.page.get_by_text("Cancelled").first).to_be_visible()
    ui.shoot("cancelled")
