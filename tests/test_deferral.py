"""Waiting without a process: real flow runs of a real worker's, suspended and resumed at a real Prefect server.

They all begin at once, and each test tells of some of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import requests
from conftest import pid_of
from conftest import until as until_there
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.variables import Variable
from pydantic import SecretStr

from prefect_xrt import Image, LightCurve, ProductRequest, XRTClient
from prefect_xrt.archive import folder_name
from prefect_xrt.credentials import XRTCredentials
from prefect_xrt.deferral import HEARTBEAT
from prefect_xrt.emulator import Emulator, Scenario, Timeline
from prefect_xrt.flows import build_products

if TYPE_CHECKING:
    from conftest import Server

READY, RUNNING = Timeline.of((4,)), Timeline.of((3,))
LOOKS = Timeline.of_looks((2, 1), (3, 1), (4,))
# Longer than the tests take, as the fast clock of the service counts.
LONG_S = 10**8
SCENARIO: dict[str, Any] = {
    "jobs": {
        "Whole": {"image": READY, "lc": LOOKS},
        "Resumed": {"image": LOOKS},
        "Cancelled": {"image": RUNNING},
        "Kept": {"image": RUNNING},
        "Overdue": {"image": RUNNING},
        "Restarted": {"image": Timeline.of((3, LONG_S), (4,))},
        "Moved": {"image": LOOKS},
        "Taken": {"image": RUNNING},
    }
}
_PATIENCE_S = 180.0
_RESTING = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Lives(NamedTuple):
    """The flow runs by the names of their objects, and what they live in."""

    emulator: Emulator
    crowded: Emulator
    root: Path
    runs: dict[str, str]
    watchers: list[subprocess.Popen[bytes]]
    watch: Callable[[], subprocess.Popen[bytes]]
    state: Callable[[str], dict[str, Any]]
    start_more: Callable[[], None]

    def until(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until a run is in one of some states, by name or by type."""
        return until(
            lambda: (s := self.state(name))["name"] in states or s["type"] in states, name
        ) and self.state(name)

    def folder(self, name: str) -> Path:
        """Give the folder of the only run for an object."""
        (folder,) = (self.root / folder_name(name)).iterdir()
        return folder

    def submitted(self, name: str) -> int:
        """Count the jobs for an object."""
        jobs = [*self.emulator.jobs.values(), *self.crowded.jobs.values()]
        return sum(job.parameters["name"] == name for job in jobs)


until = partial(until_there, patience_s=_PATIENCE_S)


def request(name: str, **products: Any) -> ProductRequest:
    """Ask for an image of something, or for more."""
    given: dict[str, Any] = {"image": Image()} | products
    return ProductRequest(name=name, targets=["00966554"], ra_deg=1, dec_deg=1, centroid=False, **given)


@pytest.fixture(scope="module")
def lives(
    prefect_process: Server, worker: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lives]:
    """Start the runs, and let those that can suspend themselves do so, with nobody there to resume them yet."""
    root = tmp_path_factory.mktemp("lives")
    url = prefect_process.url

    post = prefect_process.send
    deployment = requests.get(f"{url}/deployments/name/one-target/one-target", timeout=30).json()["id"]
    bare = post(
        "deployments",
        name="bare",
        flow_id=post("flows", name="build-products")["id"],
        entrypoint="prefect_xrt.flows.build_products",
        work_pool_name="xrt",
        enforce_parameter_schema=False,
    )["id"]
    watchers: list[subprocess.Popen[bytes]] = []
    with (
        Emulator(Scenario(**SCENARIO), speed=2000) as emulator,
        Emulator(Scenario(default=LOOKS, active_job_limit=1), speed=2000) as crowded,
        (root / "watcher.log").open("wb") as log,
    ):
        account = {
            "PREFECT_XRT_USER_ID": emulator.user_id,
            "PREFECT_XRT_BASE_URL": emulator.url,
            "PREFECT_XRT_MAX_ACTIVE": "50",
            "XDG_STATE_HOME": str(root / "state"),
        }
        with temporary_settings({PREFECT_API_URL: url}):
            other = XRTCredentials(user_id=SecretStr(crowded.user_id), base_url=crowded.url, max_active=1)
            other.save("crowded", overwrite=True)
            Variable.unset(HEARTBEAT)
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(request("Taken"))

        def start(wanted: ProductRequest, of: str = deployment, **parameters: Any) -> str:
            place = {"output_dir" if of == bare else "output_root": str(root / "products")}
            run = post(
                f"deployments/{of}/create_flow_run",
                parameters={
                    "request": wanted.model_dump(mode="json"),
                    "waiting": "suspended",
                    **place,
                    **parameters,
                },
                job_variables={"env": account},
                state={"type": "SCHEDULED"},
            )
            return str(run["id"])

        def watch() -> subprocess.Popen[bytes]:
            process = subprocess.Popen(
                [sys.executable, "-m", "prefect_xrt.cli", "watch", "--every", "0.5"],
                env=os.environ | {"PREFECT_API_URL": url} | account,
                stderr=log,
            )
            watchers.append(process)
            return process

        def state(name: str) -> dict[str, Any]:
            return dict(prefect_process.flow_run(runs[name])["state"])

        runs = {
            "Whole": start(request("Whole", light_curve=LightCurve(binning="obsid"))),
            "Resumed": start(request("Resumed")),
            "Cancelled": start(request("Cancelled")),
            "Kept": start(request("Kept"), cancel_job="never"),
            "First": start(request("First"), credentials="crowded"),
            "Second": start(request("Second"), credentials="crowded"),
            "Restarted": start(request("Restarted")),
            "Overdue": start(request("Overdue"), bare, output_dir=str(root / "overdue"), deadline_s=8),
        }

        def start_more() -> None:
            for name in ("Moved", "Taken"):
                place = str(root / name.lower())
                runs[name] = start(request(name), bare, output_dir=place, reuse="unless-failed")

        yield Lives(emulator, crowded, root / "products", runs, watchers, watch, state, start_more)
        for process in watchers:
            process.send_signal(signal.SIGTERM)
        for process in watchers:
            process.wait(60)


def test_nothing_is_held(lives: Lives, prefect_process: Server) -> None:
    """A run that waits has neither a process nor a slot, says what it waits for, and nobody looks at its job."""

    def waits(name: str) -> bool:
        state = lives.state(name)
        if state["name"] != "Suspended":
            return False
        others = {"First": "Second", "Second": "First"}
        if "Waits for room" not in state["message"] or (
            name in others and "Waits for room" not in str(lives.state(others[name])["message"])
        ):
            return True
        # Many begin at once, and the server was too busy to say that there is room: the watcher would call it.
        prefect_process.resume(lives.runs[name])
        return False

    for name in lives.runs:
        until(lambda name=name: lives.state(name)["name"] == "Suspended", name)
    for name in lives.runs:
        until(lambda name=name: waits(name), name)
    later = {name: lives.state(name)["message"] for name in ("First", "Second")}
    assert sum("Waits for room in the account" in message for message in later.values()) == 1
    job_id = next(job.id for job in lives.emulator.jobs.values() if job.parameters["name"] == "Whole")
    assert lives.state("Whole")["message"] == (
        f"Waits for LightCurve, Image of job {job_id} (Whole), without a process. "
        "No watcher seems to run: start one by `prefect-xrt watch`."
    )
    until(lambda: not any(pid_of(run_id) for run_id in lives.runs.values()), "the end of the processes")
    assert lives.emulator.calls("status") == []


def test_resumed_by_hand(lives: Lives, prefect_process: Server) -> None:
    """Resumed by somebody before there is anything new, a run suspends itself once more."""
    before = lives.state("Resumed")["state_details"]["pause_key"]
    prefect_process.resume(lives.runs["Resumed"])
    until(
        lambda: lives.state("Resumed")["state_details"]["pause_key"] not in (None, before),
        "the second suspension",
    )
    assert lives.submitted("Resumed") == 1


def test_resumed_elsewhere(lives: Lives, prefect_process: Server) -> None:
    """Resumed where its folder is not, a run goes on with its job, and knows whether it has submitted or found it."""
    lives.start_more()
    for name in ("Moved", "Taken"):
        until(lambda name=name: "Waits for Image" in str(lives.state(name)["message"]), name)
        before = lives.state(name)["state_details"]["pause_key"]
        folder = lives.root.parent / name.lower()
        shutil.rmtree(folder)
        prefect_process.resume(lives.runs[name])
        until(
            lambda before=before, name=name: (
                lives.state(name)["state_details"]["pause_key"] not in (None, before)
            ),
            f"the second suspension of {name}",
        )
        assert json.loads((folder / "job.json").read_text())["reused"] == (name == "Taken")
        assert lives.submitted(name) == 1


def test_cancelled_with_nobody_there(lives: Lives, prefect_process: Server) -> None:
    """A run that is cancelled while it is suspended: the next watcher cancels its job, if that was wanted."""
    for name in ("Cancelled", "Kept", "Taken"):
        prefect_process.cancel(lives.runs[name])
        lives.until(name, "CANCELLED")
    assert lives.emulator.calls("cancel") == []
    lives.watch()
    codes = {job.parameters["name"]: job for job in lives.emulator.jobs.values()}
    until(lambda: codes["Cancelled"].code("image") == -4, "the end of the job")
    assert (codes["Kept"].code("image"), codes["Taken"].code("image")) == (3, 3)


def test_watchers(lives: Lives) -> None:
    """A second watcher stands by; the first is killed, and the second brings all to their ends."""
    first, second = lives.watchers[0], lives.watch()
    first.kill()
    first.wait(60)
    for name in ("Whole", "Resumed", "Moved"):
        assert lives.until(name, *_RESTING)["name"] == "Completed"
    assert second.poll() is None
    assert {"lc.tar.gz", "image.tar.gz", "report.json"} <= {f.name for f in lives.folder("Whole").iterdir()}
    assert (lives.submitted("Whole"), lives.submitted("Resumed")) == (1, 1)


def test_deadline(lives: Lives) -> None:
    """A job that does not end is waited for until the deadline, and not longer; it lives on, and the run says so."""
    state = lives.until("Overdue", *_RESTING)
    assert state["type"] == "FAILED"
    assert "The deadline has passed, and Image of job" in state["message"]
    job = next(job for job in lives.emulator.jobs.values() if job.parameters["name"] == "Overdue")
    assert job.code("image") == 3


def test_room(lives: Lives) -> None:
    """A run for which the account has no room waits suspended, too, and submits when there is some."""
    states = {name: lives.until(name, *_RESTING)["type"] for name in ("First", "Second")}
    assert states == {"First": "COMPLETED", "Second": "COMPLETED"}
    assert (lives.submitted("First"), lives.submitted("Second")) == (1, 1)
    assert len(lives.crowded.calls("submit")) == 2


def test_server_restarted(lives: Lives, prefect_process: Server) -> None:
    """A server that is gone for a moment takes along neither who waits nor the watcher."""
    assert lives.state("Restarted")["name"] == "Suspended"
    prefect_process.stop()
    lives.emulator.advance(LONG_S)
    prefect_process.start()
    assert lives.until("Restarted", *_RESTING)["name"] == "Completed"
    assert lives.watchers[-1].poll() is None
    assert (lives.submitted("Restarted"), len(lives.watchers)) == (1, 2)


def test_where_it_cannot(
    server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
) -> None:
    """A run that belongs to no deployment waits in its process, and says so."""
    service(default=READY)
    state = build_products(request_, tmp_path / "out", waiting="suspended", return_state=True)
    assert state.name == "Completed"
    lines = server.logs(state.state_details.flow_run_id, "it waits in its process")
    assert any("since it belongs to no deployment" in text for _, text in lines)
