"""Never more active jobs than the account may have, in the order of asking, whoever dies on the way."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from conftest import free_port, until
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.runtime import flow_run as runtime
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import SecretStr, ValidationError

from prefect_xrt import ProductRequest, XRTClient, XRTCredentials, account, pacing, runs, submit_request
from prefect_xrt.account import Account
from prefect_xrt.credentials import load_credentials
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.errors import AnswerError, ConfigurationError, RequestRefusedError, UnknownUserError

if TYPE_CHECKING:
    from conftest import Server

LONG, SHORT = Timeline.of((3,)), Timeline.of((3, 0.5), (4,))
FLOOR_S = 0.5
_PATIENCE_S = 120.0
PROGRAM = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from prefect import flow
from prefect_xrt import ProductRequest, account, pacing, submit_request
pacing.LOCAL_FLOOR_S, account._SPARE_S = {FLOOR_S}, float(sys.argv[1])

@flow
def submit(name):
    submit_request(ProductRequest(name=name, targets=["00034014"], ra_deg=1, dec_deg=2, centroid=False, image=True))

with ThreadPoolExecutor(4) as pool:
    list(pool.map(submit, sys.argv[2:]))
"""


def asked(name: str) -> ProductRequest:
    """Give a request of that name."""
    return ProductRequest(name=name, targets=["00034014"], ra_deg=1, dec_deg=2, centroid=False, image=True)


@flow
def submit(name: str) -> int:
    """Submit one request, as any flow does."""
    return submit_request(asked(name)).id


def names(emulator: Emulator) -> list[str]:
    """Give the names of all jobs, in the order of their submission."""
    return [str(job.parameters["name"]) for job in emulator.jobs.values()]


def most_active(emulator: Emulator) -> int:
    """Give how many jobs were active at once, at the most, as the service knows."""
    now = emulator.now()
    jobs = [(job.submitted_at, job.ended_at(now)) for job in emulator.jobs.values()]
    return max(sum(start <= at and (end is None or end > at) for start, end in jobs) for at, _ in jobs)


def end(emulator: Emulator) -> None:
    """End all jobs that are active now."""
    with XRTClient(emulator.user_id, emulator.url) as client:
        for job_id in emulator.jobs:
            client.cancel(client.attach(job_id))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything go by sooner."""
    monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", FLOOR_S)


@pytest.fixture
def queue(
    server: Server, service: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Emulator, Account]]]:
    """Start a service with a number of jobs that its account may have, and give the account's queue."""
    clients: list[XRTClient] = []

    def start(max_active: int, **scenario: Any) -> tuple[Emulator, Account]:
        monkeypatch.setenv("PREFECT_XRT_MAX_ACTIVE", str(max_active))
        # The service refuses a job too many, and so fails who sends it.
        emulator = service(**{"speed": 1.0, "active_job_limit": max_active, "default": LONG, **scenario})
        credentials = load_credentials()
        clients.append(credentials.get_client())
        return emulator, Account(credentials, clients[-1])

    yield start
    for client in clients:
        client.close()


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that submit requests of some names, all at once, each in a flow of its own.

    A busy machine lets none of them seem dead, which would cost it its turn.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*submitted: str, spare_s: float = 60.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PROGRAM, str(spare_s), *submitted]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let time go by for whoever asks for room."""
    now = time.time
    monkeypatch.setattr(account, "time", SimpleNamespace(time=lambda: now() + seconds))


class TestProcesses:
    def test_many(
        self,
        queue: Callable[..., tuple[Emulator, Account]],
        process: Callable[..., subprocess.Popen[str]],
    ) -> None:
        """Twelve flows in three processes: never more active than allowed, all done, in the order of asking."""
        emulator, line = queue(3, jobs={"blocker": {"*": LONG}}, default=SHORT)
        with XRTClient(emulator.user_id, emulator.url) as client:
            for _ in range(3):
                client.submit(asked("blocker"))
        processes = [process(*(f"{letter}{number}" for number in range(4))) for letter in "abc"]
        until(lambda: len(line.queue()) == 12 or any(one.poll() for one in processes))
        order = [waiting.title for waiting in line.queue()]
        end(emulator)
        for one in processes:
            told, _ = one.communicate(timeout=_PATIENCE_S)
            assert one.returncode == 0, told
            assert "Waiting to submit: the account has 3 active jobs of 3 allowed" in told
        assert len(set(order)) == 12
        assert names(emulator)[3:] == order
        assert most_active(emulator) == 3
        assert line.queue() == []
        counts = [call.at for call in emulator.calls("count")]
        assert all(later - earlier > 0.9 * FLOOR_S for earlier, later in pairwise(counts))

    def test_killed_with_the_turn(
        self,
        queue: Callable[..., tuple[Emulator, Account]],
        process: Callable[..., subprocess.Popen[str]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One that is killed while it submits holds up nobody for long, and its job counts."""
        monkeypatch.setattr(account, "_SPARE_S", 1.0)
        emulator, line = queue(2, faults=[Fault("submit", "hang-after", seconds=60.0)])
        killed = process("killed", spare_s=1.0)
        until(lambda: emulator.jobs or killed.poll())
        killed.kill()
        assert submit("next") == 802
        assert names(emulator) == ["killed", "next"]
        assert line.room() == 0


class TestQueue:
    def test_order(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who asked first is first, while it gives signs of life; without, it is passed by and keeps its place."""
        monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", 60.0)
        emulator, line = queue(1)

        @flow
        def asking() -> None:
            assert line.has_turn("a", "First")
            assert not line.has_turn("b", "Second")
            assert line.has_turn("a", "First")
            first, second = line.queue()
            assert (first.title, first.lives, second.title, second.lives) == ("First", True, "Second", True)
            assert str(first.flow_run_id) == runtime.id
            later(monkeypatch, 300.0)
            assert line.has_turn("b", "Second")
            first, second = line.queue()
            assert (first.title, first.lives) == ("First", False)
            line.call(first, alive_s=600.0)
            assert not line.has_turn("b", "Second")
            line.leave("a")
            assert line.has_turn("b", "Second")
            line.leave("b")

        asking()
        assert line.queue() == []
        # Nothing was sent, and the service was asked once a minute.
        assert {call.endpoint for call in emulator.log} == {"count"}
        assert len(emulator.log) == 2

    def test_run_that_has_ended(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a run has left in the queue goes once the run has ended."""
        _, line = queue(1)

        @flow
        def asking(who: str) -> bool:
            return line.has_turn(who, who)

        assert asking("gone")
        assert [waiting.title for waiting in line.queue()] == ["gone"]
        later(monkeypatch, 60.0)
        assert asking("next")
        assert [waiting.title for waiting in line.queue()] == ["next"]

    def test_cancelled(
        self,
        server: Server,
        queue: Callable[..., tuple[Emulator, Account]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One that waits can be seen, in the log and as an artifact, and cancelled: it leaves the queue."""
        monkeypatch.setattr(runs, "_OWN_STATE_S", 0.1)
        emulator, line = queue(1)
        submit("blocker")
        shown: list[str] = []

        def elsewhere() -> None:
            (waiting,) = until(line.queue)
            told = "the account has 1 active job of 1 allowed"
            key = f"xrt-queue-{line.digest}"
            shown.append(
                until(lambda: told in (text := server.artifacts(waiting.flow_run_id)[key]["data"]) and text)
            )
            server.cancel(waiting.flow_run_id)
            server.logs(waiting.flow_run_id, f"Waiting to submit: {told}.")

        thread = threading.Thread(target=contextvars.copy_context().run, args=[elsewhere])
        thread.start()
        with pytest.raises(runs.RunCancelled):
            submit("waiting")
        thread.join()
        assert shown
        assert line.queue() == []
        assert names(emulator) == ["blocker"]


class TestCount:
    def test_lags(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A count that does not show the last submissions lets nobody in too many; in time, it is believed."""
        monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", 60.0)
        emulator, line = queue(2, extra_answers={"count": {"numJobs": 0}})
        for name in ("one", "two"):
            submit(name)
        assert line.room() == 0
        # Both went with one answer, less than a minute old.
        assert len(emulator.calls("count")) == 1
        later(monkeypatch, 90.0)
        assert line.room() == 0
        later(monkeypatch, 180.0)
        assert line.room() == 2
        assert len(emulator.calls("count")) == 3

    def test_refused(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A request that is refused takes nobody's room."""
        monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", 60.0)
        _, line = queue(1, active_job_limit=0)
        with pytest.raises(RequestRefusedError):
            submit("refused")
        assert line.room() == 1
        assert line.queue() == []

    def test_not_answered(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A service that does not count is waited for, but not for ever."""
        monkeypatch.setattr(account, "MAX_FAILED_LOOKS", 3)
        emulator, _ = queue(1, faults=[Fault("count", "html-200", times=-1)])
        lines: list[str] = []

        def mended(seconds: float) -> None:
            if seconds:
                emulator.clear_faults()

        with XRTClient(emulator.user_id, emulator.url, sleep=lambda _: None) as client:
            line = Account(load_credentials(), client)
            with pytest.raises(AnswerError), line.turn("a", "Given up", lambda _: None, lines.append):
                pass
            assert len(lines) == 1
            assert lines[0].startswith("The active jobs cannot be counted (")
            with line.turn("a", "Mended", mended, lines.append):
                pass
            assert lines[2:] == ["There is room for one more job now."]

    def test_asked_to_wait(self, queue: Callable[..., tuple[Emulator, Account]]) -> None:
        """A service that asks to be left alone for a while is."""
        _, line = queue(1, faults=[Fault("count", "http-503", retry_after=900)])
        slept: list[float] = []
        with line.turn("a", "Patient", slept.append, lambda _: None):
            pass
        assert sum(slept) == 900
        assert max(slept) == FLOOR_S

    def test_unknown_account(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An account that the service does not know is told at once, and leaves the queue."""
        emulator, _ = queue(1)
        monkeypatch.setenv("PREFECT_XRT_USER_ID", "stranger@example.org")
        with pytest.raises(UnknownUserError):
            submit("nothing")
        assert [call.endpoint for call in emulator.log] == ["count"]
        stranger = load_credentials()
        with stranger.get_client() as client:
            assert Account(stranger, client).queue() == []


class TestServer:
    def test_slot_that_nobody_holds(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A slot that stays taken, as when a server was restarted and has lost its leases, is freed in the end."""
        monkeypatch.setattr(account, "_STUCK_S", 0.5)
        _, line = queue(5)
        assert submit("one") == 801
        with get_client(sync_client=True) as api:
            api.increment_concurrency_slots([f"xrt-account-{line.digest}"], 1, "concurrency")
            assert submit("two") == 802
            limit = api.read_global_concurrency_limit_by_name(f"xrt-account-{line.digest}")
        assert (limit.limit, limit.active_slots) == (1, 0)

    def test_away(
        self, queue: Callable[..., tuple[Emulator, Account]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While Prefect's server does not answer, the service's count alone decides, and nothing is lost."""
        monkeypatch.setattr(pacing, "LOCAL_FLOOR_S", 0.3)
        emulator, _ = queue(1)
        nowhere = {PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"}
        told: dict[str, list[str]] = {"one": [], "two": []}

        @contextmanager
        def api(**_: object) -> Iterator[SyncPrefectClient]:
            with (
                temporary_settings(nowhere),
                get_client(httpx_settings={"timeout": 5.0}, sync_client=True) as client,
            ):
                yield client

        def freed(seconds: float) -> None:
            if any("1 active job" in line for line in told["two"]):
                end(emulator)
            time.sleep(seconds)

        @flow
        def alone() -> None:
            credentials = load_credentials()
            with credentials.get_client() as client:
                for name, lines in told.items():
                    with Account(credentials, client).turn(name, name, freed, lines.append):
                        client.submit(asked(name))

        monkeypatch.setattr(runs, "api", api)
        alone()
        away = "Waiting to submit: Prefect's server does not answer."
        full = "Waiting to submit: the account has 1 active job of 1 allowed."
        again = "There is room for one more job now."
        assert told == {"one": [away, again], "two": [away, full, again]}
        assert names(emulator) == ["one", "two"]
        assert most_active(emulator) == 1


class TestAllowed:
    def test_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Five jobs may be active where nothing else is said; what is no such number is refused."""
        environment = {"PREFECT_XRT_USER_ID": "demo@example.org"}
        assert load_credentials(None, environment).max_active == 5
        assert load_credentials(None, environment | {"PREFECT_XRT_MAX_ACTIVE": "2"}).max_active == 2
        for wrong in ("0", "-1", "2.5", "many"):
            with pytest.raises(ConfigurationError, match="PREFECT_XRT_MAX_ACTIVE"):
                load_credentials(None, environment | {"PREFECT_XRT_MAX_ACTIVE": wrong})
        with pytest.raises(ValidationError):
            XRTCredentials(user_id=SecretStr("demo@example.org"), max_active=0)
