"""What a watcher makes of what it finds, at a real Prefect server; whole lives of runs are in `test_deferral`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from conftest import until
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Running, Suspended
from pydantic import SecretStr

from prefect_xrt import Image, Job, ProductRequest, XRTClient, XRTCredentials, account, deferral, pacing
from prefect_xrt.account import Account
from prefect_xrt.credentials import load_credentials
from prefect_xrt.deferral import RoomWait, Wait
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.sensor import Watch
from prefect_xrt.watcher import Waiting, Watcher

if TYPE_CHECKING:
    from conftest import Server

RUNNING = Timeline.of((3,))
BEATING = """
import time
from prefect_xrt.watcher import Watcher
Watcher._list = lambda _: time.sleep(3600)
Watcher(every_s=0.1).run()
"""


@flow
def pipeline() -> None:
    """Stand for what the flow runs here are runs of."""


@pytest.fixture
def client(server: Server) -> Iterator[SyncPrefectClient]:
    """Give a client of the Prefect server."""
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def job(service: Callable[..., Emulator]) -> Job:
    """Submit a job that builds for ever."""
    return submitted(service(default=RUNNING))


def submitted(emulator: Emulator) -> Job:
    """Submit a job."""
    wanted = ProductRequest(
        name="Star", targets=["00966554"], ra_deg=1, dec_deg=1, centroid=False, image=Image()
    )
    with XRTClient(emulator.user_id, emulator.url) as client:
        return client.submit(wanted)


def suspended(client: SyncPrefectClient, key: str, **labels: str) -> FlowRun:
    """Make a flow run of a deployment that is suspended under a key."""
    deployment = client.create_deployment(client.create_flow(pipeline), "suspended")
    run = client.create_flow_run_from_deployment(deployment)
    state: Any = Suspended(timeout_seconds=3600, pause_key=key)
    client.set_flow_run_state(run.id, state, force=True)
    client.update_flow_run_labels(run.id, labels)
    return client.read_flow_run(run.id)


def waits_for(client: SyncPrefectClient, job: Job, for_s: float = 3600.0) -> tuple[FlowRun, Wait]:
    """Make a flow run that is suspended for a job."""
    key = f"{deferral.KEY_PREFIX}{job.id}-{uuid4()}"
    wait = Wait(
        key=key,
        job=job,
        service=load_credentials(None).base_url,
        credentials=None,
        until="next",
        give_up_at=time.time() + for_s,
        pacing=None,
        max_failed_looks=90,
    )
    labels = {
        deferral.wait_label(job.id): wait.model_dump_json(),
        f"prefect-xrt.job.{job.id}": "when-cancelled",
        f"prefect-xrt.job.{job.id}.credentials": "",
        f"prefect-xrt.job.{job.id}.url": job.url,
    }
    return suspended(client, key, **labels), wait


def waits_for_room(client: SyncPrefectClient, credentials: str | None = None) -> FlowRun:
    """Make a flow run that is suspended until it may submit."""
    key = f"xrt-room-{uuid4()}"
    wait = RoomWait(key=key, service=load_credentials(credentials).base_url, credentials=credentials)
    return suspended(client, key, **{"prefect-xrt.room": wait.model_dump_json()})


def state_of(client: SyncPrefectClient, run: FlowRun) -> str | None:
    """Give the name of a run's state now."""
    state = client.read_flow_run(run.id).state
    return state.name if state else None


class TestRoom:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", 0.1)
        monkeypatch.setattr(account, "_SPARE_S", 0.1)
        monkeypatch.setattr(account, "_GRACE_S", 0.0)

    def test_after_one_that_was_cancelled(
        self, client: SyncPrefectClient, service: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Those who were cancelled while they waited keep nobody behind them waiting, and leave the queue."""
        service(default=RUNNING)
        monkeypatch.setenv("PREFECT_XRT_MAX_ACTIVE", "1")
        # Somebody may wait for weeks.
        monkeypatch.setattr(account, "_FORGOTTEN", timedelta())
        dead, alive = waits_for_room(client), waits_for_room(client)
        client.set_flow_run_state(dead.id, Cancelled(), force=True)
        credentials = load_credentials(None)
        with credentials.get_client() as asked:
            for run in (dead, alive):
                monkeypatch.setattr(account, "_root", lambda run=run: run.id)
                Account(credentials, asked).has_turn(str(run.id), "Star")
            line = Account(credentials, asked)
            until(lambda: not any(waiting.lives for waiting in line.queue()))
            Watcher(log=print)._give_room(client, [alive], {alive.id})
            assert [waiting.flow_run_id for waiting in line.queue()] == [alive.id]
        assert state_of(client, alive) != "Suspended"

    def test_account_in_trouble(
        self, client: SyncPrefectClient, job: Job, service: Callable[..., Emulator]
    ) -> None:
        """An account whose jobs cannot be counted, or is no more, keeps no other waiting; the service has its time."""
        run, _ = waits_for(client, job)
        silent = service(faults=[Fault("count", "http-503", times=-1, retry_after=900)])
        for name, emulator in (("silent", silent), ("deleted", service())):
            other = XRTCredentials(user_id=SecretStr(emulator.user_id), base_url=emulator.url)
            other.save(name, overwrite=True)
            waits_for_room(client, name)
        lines: list[str] = []
        watcher = Watcher(every_s=1e-3, log=lines.append)
        assert run.id in {waiting.run_id for waiting in watcher._list() or []}
        asked = len(silent.calls("count"))
        assert asked > 0
        client.delete_block_document(client.read_block_document_by_name("deleted", "xrt-credentials").id)
        assert run.id in {waiting.run_id for waiting in watcher._list() or []}
        assert len(silent.calls("count")) == asked
        told = [line for line in lines if "that cannot be told" in line]
        assert len(told) == 2
        assert "503" in told[0]
        assert "deleted" in told[1]
        assert not any("Prefect's server" in line for line in lines)


class TestResume:
    def test_process_that_ends(
        self, client: SyncPrefectClient, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run is followed when its process has had the time to end, and is in nobody's way until then."""
        run, _ = waits_for(client, job)
        watcher = Watcher(every_s=3600.0)
        for patience_s, is_there in ((3600.0, False), (1e-3, True)):
            monkeypatch.setattr("prefect_xrt.watcher.EVERY_S", patience_s)
            found = watcher._list()
            assert found is not None
            assert (run.id in {waiting.run_id for waiting in found}) == is_there

    def test_two_deadlines(self, client: SyncPrefectClient, job: Job) -> None:
        """Of two that wait for one job, each waits until its own deadline."""
        (long, wait), (short, soon) = waits_for(client, job), waits_for(client, job, for_s=1.0)
        waitings = [Waiting(long.id, wait), Waiting(short.id, soon)]
        watcher = Watcher(log=print)
        with Watch() as watch:
            watcher._follow(watch, waitings)
            for ending in watch.endings(60):
                watcher._take(ending)
            assert {run_id: seen.error for run_id, (_, seen) in watcher._to_resume.items()} == {
                short.id: "DeadlineError"
            }
            watcher._follow(watch, waitings)
            assert len(watch) == 1
        watcher._resume()
        assert [state_of(client, run) == "Suspended" for run in (long, short)] == [True, False]

    def test_deleted(self, client: SyncPrefectClient, job: Job) -> None:
        """A flow run that was deleted meanwhile keeps no other from being resumed."""
        runs = [waits_for(client, job, for_s=-1.0) for _ in range(3)]
        watcher = Watcher(log=print)
        with Watch() as watch:
            watcher._follow(watch, [Waiting(run.id, wait) for run, wait in runs])
            for ending in watch.endings(60):
                watcher._take(ending)
        client.delete_flow_run(runs[0][0].id)
        watcher._resume()
        assert watcher._to_resume == {}
        assert "Suspended" not in {state_of(client, run) for run, _ in runs[1:]}


class TestCancelled:
    def test_service_that_is_away(
        self, client: SyncPrefectClient, service: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job that cannot be cancelled is tried again, later, for as long as it takes."""
        emulator = service(default=RUNNING, faults=[Fault("cancel", "http-503", times=2)])
        run, _ = waits_for(client, submitted(emulator))
        client.set_flow_run_state(run.id, Cancelled(), force=True)
        now = 0.0
        watcher = Watcher(log=print, timer=lambda: now)
        watcher._see_to_cancelled(client)
        asked = len(emulator.calls("cancel"))
        assert asked == 2
        monkeypatch.setattr("prefect_xrt.watcher._OVERLAP", timedelta())
        watcher._see_to_cancelled(client)
        assert len(emulator.calls("cancel")) == asked
        now = 61.0
        watcher._see_to_cancelled(client)
        assert emulator.jobs[801].code("image") == -4
        watcher._see_to_cancelled(client)
        assert len(emulator.calls("cancel")) == asked + 1

    @pytest.mark.parametrize("is_followed", [True, False])
    def test_gone_on_with(self, client: SyncPrefectClient, job: Job, is_followed: bool) -> None:
        """A job that another run goes on with is not that of the cancelled one alone."""
        one, other = (waits_for(client, job)[0] for _ in range(2))
        client.set_flow_run_state(other.id, Running() if is_followed else Cancelled(), force=True)
        client.set_flow_run_state(one.id, Cancelled(), force=True)
        Watcher(log=print)._see_to_cancelled(client)
        with load_credentials(None).get_client() as service:
            (status,) = service.check_product_status(job).statuses.values()
        assert status.code == (3 if is_followed else -4)


def test_beats_during_a_long_list(server: Server, client: SyncPrefectClient) -> None:
    """A watcher that takes long over its list lives, and shows it."""
    process = subprocess.Popen([sys.executable, "-c", BEATING], env=os.environ)
    try:
        until(lambda: (deferral.read_heartbeat(client) or {}).get("beat", 0) > 5)
    finally:
        process.kill()
        process.wait()
