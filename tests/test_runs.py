"""What becomes of a job when its run is stopped: cancelled with it, or left to be gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from conftest import pid_of, until
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Crashed

from prefect_xrt import (
    Job,
    Pacing,
    Product,
    ProductRequest,
    build_products,
    cancel_jobs,
    runs,
    submit_request,
)
from prefect_xrt.credentials import load_credentials
from prefect_xrt.emulator import Emulator, Fault, Timeline

if TYPE_CHECKING:
    from conftest import Server

PROGRAM = str(Path(sys.executable).with_name("prefect-xrt"))
FAST = Pacing(floor_s=0.05, ceiling_s=0.2)
READY, RUNNING = Timeline.of((4,)), Timeline.of((3,))
_PATIENCE_S = 120.0


@pytest.fixture
def deployed_run(server: Server, request_: ProductRequest, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Start a run of the deployed flow, in a process of the worker's."""
    from prefect.deployments import run_deployment  # noqa: PLC0415 - after the environment is set

    def start(emulator: Emulator, **parameters: Any) -> dict[str, Any]:
        run = run_deployment(
            "one-target/one-target",
            parameters={
                "request": request_.model_dump(mode="json"),
                "output_root": str(tmp_path / "products"),
                **parameters,
            },
            job_variables={
                "env": {
                    "PREFECT_XRT_USER_ID": emulator.user_id,
                    "PREFECT_XRT_BASE_URL": emulator.url,
                    "XDG_STATE_HOME": str(tmp_path / "state"),
                }
            },
            timeout=0,
        )
        return server.flow_run(run.id)

    return start


@pytest.mark.usefixtures("worker")
class TestWorker:
    def test_cancelled_in_the_ui(
        self, server: Server, service: Callable[..., Emulator], deployed_run: Callable[..., dict[str, Any]]
    ) -> None:
        """Cancelled in the UI: what still builds is cancelled at the service, and the log tells each answer."""
        emulator = service(default=RUNNING, timelines={"image": READY})
        run = deployed_run(emulator)
        until(lambda: emulator.calls("file"))
        server.cancel(run["id"])
        until(lambda: server.flow_run(run["id"])["state_name"] == "Cancelled")
        codes = {short: emulator.jobs[801].code(short) for short in ("lc", "spec", "image")}
        assert codes == {"lc": -4, "spec": -4, "image": 4}
        for answer in (
            "LightCurve: Job cancelled OK",
            "Image: Job could not be cancelled - has it already finished?",
        ):
            assert server.logs(run["id"], answer)

    def test_survey_cancelled_in_the_ui(
        self, server: Server, service: Callable[..., Emulator], tmp_path: Path
    ) -> None:
        """A survey, cancelled in the UI: the jobs of all its threads that still build are, and no process is left."""
        from prefect.deployments import run_deployment  # noqa: PLC0415 - after the environment is set

        emulator = service(default=RUNNING, jobs={"M31": {"*": READY}})

        def called(endpoint: str) -> set[str]:
            ids = {call.job_id for call in emulator.calls(endpoint)}
            return {str(job.parameters["name"]) for job in emulator.jobs.values() if job.id in ids}

        run = run_deployment(
            "survey/survey",
            parameters={
                "sources": "M31\nCrab\nMrk 421\nGK Per\nLMC X-1",
                "products": ["SourceDet"],
                "output_root": str(tmp_path / "survey"),
                "max_active": 3,
            },
            job_variables={
                "env": {
                    "PREFECT_XRT_USER_ID": emulator.user_id,
                    "PREFECT_XRT_BASE_URL": emulator.url,
                    "XDG_STATE_HOME": str(tmp_path / "state"),
                }
            },
            timeout=0,
        )
        until(lambda: called("status") == {"M31", "Crab", "Mrk 421", "GK Per"})
        server.cancel(run.id)
        until(lambda: server.flow_run(run.id)["state_name"] == "Cancelled")
        # Nothing is asked about the one that had ended.
        assert called("cancel") == {"Crab", "Mrk 421", "GK Per"}
        assert sorted(str(job.code("sourceDet")) for job in emulator.jobs.values()) == ["-4", "-4", "-4", "4"]
        until(lambda: not pid_of(str(run.id)))
        table = json.loads(server.artifacts(run.id)["xrt-survey-survey"]["data"])
        assert [(row["name"], row["state"]) for row in table] == [
            ("M31", "done"),
            ("Crab", "cancelled"),
            ("Mrk 421", "cancelled"),
            ("GK Per", "cancelled"),
            ("LMC X-1", "not started"),
        ]
        children = {"parent_flow_run_id": {"any_": [str(run.id)]}}
        ended = {child["state_type"] for child in server.find("flow_runs", flow_runs=children)}
        assert ended == {"COMPLETED", "CANCELLED"}

    def test_killed_and_retried(
        self,
        server: Server,
        service: Callable[..., Emulator],
        deployed_run: Callable[..., dict[str, Any]],
        tmp_path: Path,
    ) -> None:
        """Killed: the job lives on, and the run that is retried goes on with it to its end."""
        emulator = service(default=RUNNING, timelines={"image": READY}, sequence=[{}])
        run = deployed_run(emulator)
        until(lambda: emulator.calls("file"))
        os.kill(pid_of(run["id"]), signal.SIGKILL)
        until(lambda: server.flow_run(run["id"])["state_name"] == "Crashed")
        emulator.jobs[801].products.update(
            dict.fromkeys(("lc", "spec"), emulator.jobs[801].products["image"])
        )
        # The pace of looks is kept from one process to the next: a minute that need not pass here.
        shutil.rmtree(tmp_path / "state" / "prefect-xrt" / "looks")

        def retried() -> bool:
            state = server.flow_run(run["id"])["state_name"]
            # Prefect's worker tells of the crash once more, some seconds after the first time.
            if state == "Crashed":
                server.set_state(run["id"], "SCHEDULED", "AwaitingRetry")
            return bool(state == "Completed")

        until(retried)
        assert list(emulator.jobs) == [801]
        assert emulator.calls("cancel") == []

    def test_killed_with_the_job(
        self, server: Server, service: Callable[..., Emulator], deployed_run: Callable[..., dict[str, Any]]
    ) -> None:
        """Killed, where a crash is to cancel the job, too: the hook does it from another process."""
        emulator = service(default=RUNNING)
        run = deployed_run(emulator, cancel_job="when-stopped")
        until(lambda: emulator.calls("status"))
        os.kill(pid_of(run["id"]), signal.SIGKILL)
        until(lambda: emulator.calls("cancel"))
        until(lambda: emulator.jobs[801].code("lc") == -4)


@pytest.mark.usefixtures("server")
class TestByHand:
    """Runs that no worker looks after."""

    @pytest.fixture
    def building(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path, request_file: Path
    ) -> Iterator[Callable[..., tuple[Emulator, subprocess.Popen[str]]]]:
        """Start `prefect-xrt build`, and give it once it has looked at its job."""
        started: list[subprocess.Popen[str]] = []

        def start(*options: str, **scenario: Any) -> tuple[Emulator, subprocess.Popen[str]]:
            emulator = service(**{"default": RUNNING, **scenario})
            process = subprocess.Popen(
                [PROGRAM, "build", str(request_file), "--out", str(tmp_path / "out"), *options],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
            until(lambda: emulator.calls("status") or process.poll() is not None)
            return emulator, process

        yield start
        for process in started:
            process.kill()
            process.wait()

    @pytest.mark.parametrize(
        ("number", "options", "cancelled"),
        [
            (signal.SIGINT, (), True),
            (signal.SIGINT, ("--cancel-job", "never"), False),
            (signal.SIGTERM, (), False),
            (signal.SIGTERM, ("--cancel-job", "when-stopped"), True),
        ],
        ids=["Ctrl-C", "Ctrl-C, never", "terminated", "terminated, when stopped"],
    )
    def test_signal(
        self,
        building: Callable[..., tuple[Emulator, subprocess.Popen[str]]],
        number: signal.Signals,
        options: tuple[str, ...],
        cancelled: bool,
    ) -> None:
        """Ctrl-C cancels the job with the run, another end of the process leaves it; a parameter changes either."""
        emulator, process = building(*options)
        process.send_signal(number)
        _, told = process.communicate(timeout=_PATIENCE_S)
        assert len(emulator.calls("cancel")) == cancelled
        assert emulator.jobs[801].code("lc") == (-4 if cancelled else 3)
        assert ("LightCurve: Job cancelled OK" in told) == cancelled
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "Traceback" not in told

    def test_signal_while_it_downloads(
        self, building: Callable[..., tuple[Emulator, subprocess.Popen[str]]]
    ) -> None:
        """Ctrl-C ends a download that waits for a service which is away."""
        emulator, process = building(default=READY, faults=[Fault("file", "http-503", times=-1)])
        until(lambda: emulator.calls("file"))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=_PATIENCE_S)
        assert (process.returncode, "Traceback" in told) == (130, False)

    @pytest.fixture
    def cancelled(
        self, server: Server, request_: ProductRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., dict[str, Any]]:
        """Build, cancel the run from elsewhere once something is there, and give the run."""
        monkeypatch.setattr(runs, "_OWN_STATE_S", 0.1)
        name = f"to be cancelled, {tmp_path.name}"

        def build(there: Callable[[], Any], **options: Any) -> dict[str, Any]:
            def elsewhere() -> None:
                until(there)
                (run,) = server.find("flow_runs", flow_runs={"name": {"any_": [f"build: {name}"]}})
                server.cancel(run["id"])

            thread = threading.Thread(target=elsewhere)
            thread.start()
            request = request_.model_copy(update={"name": name})
            state = build_products(request, tmp_path, return_state=True, **options)
            thread.join()
            return server.flow_run(state.state_details.flow_run_id)

        return build

    def test_cancelled_while_it_downloads(
        self, service: Callable[..., Emulator], cancelled: Callable[..., dict[str, Any]], tmp_path: Path
    ) -> None:
        """Cancelled while a file cannot be had: it ends as Cancelled, and what is there is told."""
        faults = [Fault("file", "http-503", product="lc", times=-1)]
        emulator = service(default=READY, faults=faults)
        run = cancelled(lambda: (tmp_path / "image.tar.gz").exists() and (tmp_path / "spec.tar.gz").exists())
        assert run["state_name"] == "Cancelled"
        assert "2 of 3 products of job 801" in run["state"]["message"]
        assert emulator.calls("cancel") == []

    def test_cancelled_by_command(
        self, service: Callable[..., Emulator], cancelled: Callable[..., dict[str, Any]]
    ) -> None:
        """Cancelled from elsewhere: the run notices it by its own state, cancels the job, and ends Cancelled."""
        emulator = service(default=RUNNING, timelines={"image": READY})
        run = cancelled(lambda: emulator.calls("file"), pacing=FAST)
        assert run["state_name"] == "Cancelled"
        assert "1 of 3 products of job 801" in run["state"]["message"]
        assert [emulator.jobs[801].code(short) for short in ("lc", "spec", "image")] == [-4, -4, 4]

    @pytest.mark.parametrize("policy", ["when-cancelled", "never"])
    def test_before_the_first_wait(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        policy: Any,
    ) -> None:
        """Cancelled right after the submission, before anything waits: the job goes with the run."""
        emulator = service(default=RUNNING)

        def stop(*_: object) -> bool:
            raise runs.RunCancelled

        monkeypatch.setattr(runs.RunClaims, "take", stop)
        state = build_products(request_, tmp_path, cancel_job=policy, return_state=True)
        run = server.flow_run(state.state_details.flow_run_id)
        assert run["state_type"] == "CANCELLED"
        assert run["labels"].get("prefect-xrt.job.801") == (None if policy == "never" else "cancelled")
        assert emulator.jobs[801].code("lc") == (3 if policy == "never" else -4)
        assert len(emulator.calls("cancel")) == (policy != "never")

    def test_service_that_does_not_answer(
        self, building: Callable[..., tuple[Emulator, subprocess.Popen[str]]]
    ) -> None:
        """Where the service cannot be told, the log says how to cancel the job later."""
        _, process = building(faults=[Fault("cancel", "http-503", times=-1)])
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=_PATIENCE_S)
        assert "`prefect-xrt cancel 801`" in told


@pytest.mark.usefixtures("server")
class TestAttempts:
    """A submission whose answer was lost, and whose list could not be read: whoever tries again looks first."""

    @pytest.fixture
    def emulator(self, service: Callable[..., Emulator]) -> Emulator:
        """Start a service that loses the answer to a request."""
        lost = [Fault("submit", "reset-after"), Fault("list", "http-503", times=4)]
        return service(default=RUNNING, faults=lost)

    def test_task(self, emulator: Emulator, request_: ProductRequest) -> None:
        """A task that Prefect retries."""

        @flow
        def pipeline() -> int:
            return submit_request.with_options(retries=1)(request_, settle_s=0.1).id

        assert pipeline() == 801
        assert (list(emulator.jobs), len(emulator.calls("submit"))) == ([801], 1)

    def test_called_flow(self, emulator: Emulator, request_: ProductRequest) -> None:
        """A flow that is called by one, which is called by one that Prefect retries."""

        @flow
        def inner() -> int:
            return submit_request(request_, settle_s=0.1).id

        @flow(retries=1)
        def middle() -> int:
            return inner()

        @flow
        def outer() -> int:
            return middle()

        assert outer() == 801
        assert (list(emulator.jobs), len(emulator.calls("submit"))) == ([801], 1)


@pytest.mark.usefixtures("server")
class TestClaims:
    def test_two_machines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job that a run has taken on one machine is nobody else's on another, at the same service."""
        took: list[bool] = []
        job = Job(id=int(time.time()), url="http://x/USERPROD_1", name="x", products=(Product.IMAGE,))

        @flow
        def take(machine: str, owner: str, base_url: str) -> None:
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / machine))
            took.append(runs.RunClaims(base_url).take(job, owner))

        take("one", "a", "http://x")
        take("two", "b", "http://x")
        take("three", "a", "http://x")
        take("four", "b", "http://y")
        assert took == [True, False, True, True]


@pytest.mark.usefixtures("server")
class TestThreads:
    @pytest.mark.parametrize("stop", [SystemExit(3), runs.RunCancelled()], ids=["stopped", "cancelled"])
    def test_halted(self, stop: BaseException) -> None:
        """What stops one thread ends the waits of the others, each by an exception of its own."""
        waits = []

        def stopped() -> None:
            with ThreadPoolExecutor(2) as pool, runs.halting_threads():
                for _ in range(2):
                    waits.append(pool.submit(copy_context().run, lambda: runs.pausing()(3600)))
                raise stop

        with pytest.raises(type(stop)):
            stopped()
        raised = [wait.exception() for wait in waits]
        assert [(type(error), error and error.args) for error in raised] == [(type(stop), stop.args)] * 2
        assert len({id(error) for error in (stop, *raised)}) == 3


@pytest.mark.usefixtures("server")
class TestHook:
    @pytest.mark.parametrize(
        ("policy", "state", "cancelled"),
        [
            ("when-cancelled", Cancelling(), True),
            ("when-cancelled", Crashed(), False),
            ("when-stopped", Crashed(), True),
            ("never", Cancelling(), False),
            ("never", Crashed(), False),
        ],
    )
    def test_policy(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        policy: Any,
        state: Any,
        cancelled: bool,
    ) -> None:
        """The hook cancels what the run's jobs still build, as each job's policy says."""
        emulator = service(default=RUNNING)

        @flow
        def pipeline() -> tuple[Job, str]:
            job = submit_request(request_)
            with runs.cancelled_with_run(job, load_credentials(), policy):
                return job, str(runs.runtime.id)

        _, run_id = pipeline()
        with get_client(sync_client=True) as client:
            cancel_jobs(flow=pipeline, flow_run=client.read_flow_run(UUID(run_id)), state=state)
        assert (emulator.jobs[801].code("lc") == -4) == cancelled
