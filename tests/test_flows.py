"""The flow submits once, branches on every product's status, and ends in the state that tells what became of it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect import State, flow

from prefect_xrt import BuildReport, Pacing, ProductRequest, XRTClient, attach_products, build_products
from prefect_xrt.alerts import ALARM_EVENT
from prefect_xrt.archive import exclusive
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.errors import (
    ConfigurationError,
    DeadlineError,
    FailedLooksError,
    InvalidRequestError,
    JobNotFoundError,
    OutputError,
    ProductsError,
    RequestRefusedError,
    ServiceUnreachableError,
    SubmitUncertainError,
    UnknownUserError,
    XRTError,
)
from prefect_xrt.records import read_record

if TYPE_CHECKING:
    from conftest import Server

FAST = Pacing(floor_s=0.05, ceiling_s=0.2)
READY, FAILED, CANCELLED = Timeline.of((4,)), Timeline.of((-1,)), Timeline.of((-4,))
SERVICE_FORM = {"name": "Mrk 421", "targ": "00034014", "RA": 166.1, "Dec": 38.2, "cent": 0, "image": 1}


def build(request: Any, output_dir: Path, **options: Any) -> State[Any]:
    """Run the flow, and give its final state."""
    return build_products(request, output_dir, return_state=True, **{"pacing": FAST, **options})


def error_of(state: State[Any]) -> XRTError:
    """Give the error that a state holds."""
    error = state.result(raise_on_failure=False)
    assert isinstance(error, XRTError)
    return error


def names(directory: Path) -> set[str]:
    """Give what is in a folder, hidden files too; nothing if there is no folder."""
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Name a folder that is not there yet."""
    return tmp_path / "out"


@pytest.mark.usefixtures("server")
class TestFinalState:
    def test_all_ready(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Everything ready: Completed, with a message; the run's tasks carry the names of what they did."""
        service(default=READY)
        state = build(request_, out)
        run = server.flow_run(state.state_details.flow_run_id)
        expected = ("COMPLETED", "Completed", f"3 of 3 products of job 801 (GRB 200416A) are in {out}.")
        assert expected == (run["state"]["type"], run["state"]["name"], run["state"]["message"])
        expected_tasks = [
            ("download: Image of GRB 200416A, job 801", "Completed"),
            ("download: LightCurve of GRB 200416A, job 801", "Completed"),
            ("download: Spectrum of GRB 200416A, job 801", "Completed"),
            ("submit: GRB 200416A", "Completed"),
            ("wait: GRB 200416A, job 801", "Completed"),
        ]
        assert expected_tasks == sorted(server.task_runs(run["id"]))

    @pytest.mark.parametrize("ending", [FAILED, CANCELLED], ids=["failed", "cancelled"])
    def test_partly(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        ending: Timeline,
    ) -> None:
        """Some ready: they are all fetched, then the run is Failed, named Partly, and tells what is missing."""
        service(default=READY, timelines={"spec": ending})
        state = build(request_, out)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Partly")
        assert run["state"]["message"].startswith("2 of 3 products of job 801 (GRB 200416A)")
        assert "not there: Spectrum" in run["state"]["message"]
        error = error_of(state)
        assert isinstance(error, ProductsError)
        assert error.report
        assert [file.path.name for file in error.report.files] == ["lc.tar.gz", "image.tar.gz"]
        assert {"lc.tar.gz", "image.tar.gz"} <= names(out)

    def test_accepted_partly(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Some ready, and the caller accepts that: Completed, and the report tells of every product."""
        service(default=READY, timelines={"spec": FAILED, "image": CANCELLED})
        report = build_products(request_, out, pacing=FAST, accept_partial=True)
        expected = [("LightCurve", "ready", 4), ("Spectrum", "failed", -1), ("Image", "cancelled", -4)]
        assert expected == [(entry.product, entry.state, entry.code) for entry in report.products]

    def test_all_cancelled(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """All cancelled: Cancelled, with the report."""
        service(default=CANCELLED)
        state = build(request_, out)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["state"]["type"], run["state"]["name"]) == ("CANCELLED", "Cancelled")
        error = error_of(state)
        assert isinstance(error, ProductsError)
        assert error.report
        assert [entry.state for entry in error.report.products] == ["cancelled"] * 3

    def test_all_cancelled_raises_by_name(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """All cancelled: who calls the flow as a function gets the package's error, not one of Prefect's."""
        service(default=CANCELLED)
        with pytest.raises(ProductsError, match="Spectrum cancelled"):
            build_products(request_, out, pacing=FAST)

    @pytest.mark.parametrize("accept_partial", [False, True])
    def test_none(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        accept_partial: bool,
    ) -> None:
        """None ready: Failed, also for a caller who accepts partial results."""
        service(default=FAILED, timelines={"lc": CANCELLED})
        state = build(request_, out, accept_partial=accept_partial)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Failed")
        assert {"job.json", "jobPars.json", "report.json"} == names(out)

    def test_a_file_that_is_missing(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A ready product whose file cannot be fetched does not hide the others, and is told of."""
        emulator = service(default=READY, timelines={"image": Timeline.of_looks((3, 3), (4,))})
        emulator.add_fault(Fault("file", "redirect", location="http://127.0.0.2:9", product="spec", times=-1))
        state = build(request_, out)
        assert state.name == "Partly"
        error = error_of(state)
        assert isinstance(error, ProductsError)
        assert error.report
        spectrum = error.report.products[1]
        assert (spectrum.state, spectrum.file) == ("ready", None)
        assert "another host" in str(spectrum.problem) or "not the host" in str(spectrum.problem)
        assert {"lc.tar.gz", "image.tar.gz"} <= names(out)
        assert "spec.tar.gz" not in names(out)


@pytest.mark.usefixtures("server")
class TestReport:
    def test_files(self, service: Callable[..., Emulator], request_: ProductRequest, out: Path) -> None:
        """The report names every file with its true size and checksum, and lies beside them as JSON."""
        service(default=READY)
        report = build_products(request_, out, pacing=FAST)
        contents = {file.path: file.path.read_bytes() for file in report.files}
        assert {out / "lc.tar.gz", out / "spec.tar.gz", out / "image.tar.gz"} == set(contents)
        for file in report.files:
            content = contents[file.path]
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.size, file.sha256)
        assert report == BuildReport.model_validate_json((out / "report.json").read_text())
        assert report.started_at <= report.job.submitted_at <= report.finished_at
        assert report == BuildReport.model_validate_json(report.model_dump_json())

    def test_artifact(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """The run shows a table with each product, its state, file, size and checksum."""
        service(default=READY, timelines={"spec": FAILED})
        state = build(request_, out, accept_partial=True)
        report = state.result()
        table = server.artifacts(state.state_details.flow_run_id)["xrt-job-801"]
        rows = json.loads(table["data"])
        expected = [("LightCurve", "ready", 4), ("Spectrum", "failed", -1), ("Image", "ready", 4)]
        assert expected == [(row["product"], row["state"], row["code"]) for row in rows]
        assert str(out / "lc.tar.gz") == rows[0]["file"]
        assert (report.files[0].size, report.files[0].sha256) == (rows[0]["bytes"], rows[0]["SHA-256"])
        assert rows[1]["file"] == ""
        assert report.summary() == table["description"]

    def test_used_downstream(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A pipeline calls the flow as a step, and goes on with its report."""
        service(default=READY)

        @flow
        def pipeline() -> int:
            return sum(file.size for file in build_products(request_, out, pacing=FAST).files)

        total = pipeline()
        assert sum(path.stat().st_size for path in out.glob("*.tar.gz")) == total

    def test_repeated_from_its_parameters(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path, tmp_path: Path
    ) -> None:
        """The accepted parameters beside the files are a request that gives the same job again.

        What was resolved stands, and is not asked to be resolved again.
        """
        emulator = service(default=READY)
        build_products(request_, out, pacing=FAST)
        build_products(json.loads((out / "jobPars.json").read_text()), tmp_path / "again", pacing=FAST)
        first, second = (dict(job.parameters) for job in emulator.jobs.values())
        different = {key for key in first | second if first.get(key) != second.get(key)}
        assert different == {"getTargs", "outdir"}


@pytest.mark.usefixtures("server")
class TestRunName:
    @pytest.mark.parametrize(
        ("form", "expected"),
        [
            (lambda request: request, "build: GRB 200416A"),
            (lambda request: request.model_dump(mode="json", exclude={"products"}), "build: GRB 200416A"),
            (lambda _: SERVICE_FORM, "build: Mrk 421"),
            (lambda _: {"nonsense": 1}, "build: unnamed"),
        ],
        ids=["request", "own JSON", "service's JSON", "nonsense"],
    )
    def test_names_the_object(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        form: Callable[[ProductRequest], Any],
        expected: str,
    ) -> None:
        """The flow run is named after the object, however the request was given."""
        service(default=READY)
        state = build(form(request_), out)
        assert expected == server.flow_run(state.state_details.flow_run_id)["name"]


@pytest.mark.usefixtures("server")
class TestBranches:
    def test_each_product_as_soon_as_it_is_ready(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """The light curve is fetched while the image still builds."""
        emulator = service(speed=1, default=READY, timelines={"image": Timeline.of((3, 1e6), (4,))})

        def finish_image() -> None:
            while {"lc.tar.gz", "spec.tar.gz"} != {call.what for call in emulator.calls("file")}:
                time.sleep(0.02)
            emulator.advance(1e6)

        threading.Thread(target=finish_image, daemon=True).start()
        build_products(request_, out, pacing=FAST, deadline_s=60)
        order = [(call.endpoint, call.what) for call in emulator.log]
        last_look = max(index for index, (endpoint, _) in enumerate(order) if endpoint == "status")
        assert order.index(("file", "lc.tar.gz")) < last_look < order.index(("file", "image.tar.gz"))
        assert order[last_look] == ("status", "image")

    @pytest.mark.parametrize("code", [-2, -3])
    def test_alarm(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        code: int,
    ) -> None:
        """A status that should never happen is looked at once more, then raises the alarm; others go on."""
        emulator = service(
            default=READY,
            timelines={
                "spec": Timeline.of_looks((3, 1), (code,)),
                "image": Timeline.of_looks((3, 6), (4,)),
            },
        )
        state = build(request_, out)
        assert state.name == "Partly"
        assert {"lc.tar.gz", "image.tar.gz"} <= names(out)
        looks = [str(call.what).split(",") for call in emulator.calls("status")]
        assert sum("spec" in look for look in looks) == 3

        run_id = state.state_details.flow_run_id
        (event,) = server.events(ALARM_EVENT, "prefect-xrt.job.801", run_id)
        report = error_of(state).report  # type: ignore[attr-defined]  # a ProductsError has one
        text = report.products[1].text
        assert f"prefect.flow-run.{run_id}" in {entry["prefect.resource.id"] for entry in event["related"]}

        artifact = server.artifacts(run_id)["xrt-alarm-801-spec"]
        assert artifact["type"] == "markdown"
        submitted = report.job.submitted_at.isoformat(timespec="seconds")
        seen = event["payload"]["looked_at"][:19]
        for fact in (
            "swifthelp@leicester.ac.uk",
            "Job 801 (GRB 200416A), product Spectrum",
            f"| status code | {code} |",
            f"| status text | {text} |",
            f"| submitted (UTC) | {submitted} |",
            f"| seen (UTC) | {seen}",
            json.dumps(report.job.parameters, indent=2, ensure_ascii=False),
        ):
            assert fact in artifact["data"]

        errors = [text for level, text in server.logs(run_id, "should never happen.") if level == 40]
        assert len(errors) == 1
        assert f"Spectrum of job 801 (GRB 200416A) has status {code} ({text})" in errors[0]

    def test_transient_alarm(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A status that should never happen, and is gone at the second look, raises no alarm."""
        service(default=READY, timelines={"spec": Timeline.of_looks((-2, 1), (3, 1), (4,))})
        state = build(request_, out)
        assert state.name == "Completed"
        artifacts = server.artifacts(state.state_details.flow_run_id)
        assert {"xrt-job-801", "xrt-progress-801", "xrt-report-801"} == set(artifacts)

    def test_unknown_codes(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Codes that no page lists, null and left-out products are looked at again, never a success."""
        odd = Timeline.of_looks((17, 1), (None, 1), (-10, 1), ("3", 1), (4,))
        emulator = service(default=READY, timelines={"spec": odd})
        report = build_products(request_, out, pacing=FAST)
        assert report.succeeded
        assert len(emulator.calls("status")) == 5


@pytest.mark.usefixtures("server")
class TestEndOfTheWait:
    def test_deadline(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """The deadline passes: what is ready is there, the job lives on, and the error tells how to go on."""
        emulator = service(default=READY, timelines={"spec": Timeline.of((3,))})
        state = build(request_, out, deadline_s=0.4)
        assert (state.type.value, state.name) == ("FAILED", "Partly")
        error = error_of(state)
        assert isinstance(error, DeadlineError)
        assert "`prefect-xrt attach 801 --out DIR`" in error.message
        assert (
            "`prefect-xrt attach 801 --out DIR`"
            in server.flow_run(state.state_details.flow_run_id)["state"]["message"]
        )
        artifact = server.artifacts(state.state_details.flow_run_id)["xrt-job-801"]
        assert "`prefect-xrt attach 801 --out DIR`" in artifact["description"]
        assert emulator.calls("cancel") == []
        assert {"lc.tar.gz", "image.tar.gz"} <= names(out)
        assert error.report
        assert [entry.state for entry in error.report.products] == ["ready", "running", "ready"]

    def test_deadline_is_no_partial_success(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Accepting partial results does not make a job that still builds a success."""
        service(default=READY, timelines={"spec": Timeline.of((3,))})
        assert build(request_, out, deadline_s=0.4, accept_partial=True).is_failed()

    def test_too_many_failed_looks(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """The service is away for too long: the error says so, and the job is on record."""
        service(faults=[Fault("status", "http-503", times=-1)])
        error = error_of(build(request_, out, max_failed_looks=3))
        assert isinstance(error, FailedLooksError)
        assert "`prefect-xrt attach 801 --out DIR`" in error.message
        record = read_record(out)
        assert record
        assert record.job.id == 801

    def test_bad_looks_are_ridden_out(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A page, an error, half an answer and a reset in a row do not fail a live job."""
        kinds = ("html-200", "http-502-html", "truncated-json", "reset-after")
        service(default=READY, faults=[Fault("status", kind) for kind in kinds])
        assert build_products(request_, out, pacing=FAST).succeeded


@pytest.mark.usefixtures("server")
class TestRetries:
    @pytest.mark.parametrize("persist", [True, False])
    def test_same_job(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        persist: bool,
    ) -> None:
        """A run that fails after its submission and is retried goes on with the same job, to its end."""
        emulator = service(default=READY, faults=[Fault("status", "html-200")])
        retried = build_products.with_options(retries=1, persist_result=persist)
        state = retried(request_, out, pacing=FAST, max_failed_looks=1, return_state=True)
        assert state.name == "Completed"
        assert list(emulator.jobs) == [801]
        assert server.flow_run(state.state_details.flow_run_id)["run_count"] == 2

    def test_last_attempt_keeps_its_name(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A run that is retried and still has only some products ends like any other: Failed, named Partly."""
        emulator = service(default=READY, timelines={"spec": FAILED})
        retried = build_products.with_options(retries=1)
        state = retried(request_, out, pacing=FAST, return_state=True)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["state"]["type"], run["state"]["name"], run["run_count"]) == ("FAILED", "Partly", 2)
        assert list(emulator.jobs) == [801]
        assert len(emulator.calls("file")) == 2

    def test_as_a_step_of_a_pipeline_that_is_retried(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A pipeline that is retried calls the flow anew; it goes on with the job of the first call."""
        emulator = service(default=READY, faults=[Fault("status", "html-200")])

        @flow(retries=1)
        def pipeline() -> int:
            return build_products(request_, out, pacing=FAST, max_failed_looks=1).job.id

        assert pipeline() == 801
        assert list(emulator.jobs) == [801]

    def test_two_calls_in_one_pipeline(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A second call of one pipeline for the same request and folder is the same build, and keeps its files."""
        emulator = service(default=READY)

        @flow
        def pipeline() -> None:
            first, second = (build_products(request_, out, pacing=FAST) for _ in range(2))
            assert [file.sha256 for file in first.files] == [file.sha256 for file in second.files]
            assert [file.kept for file in second.files] == [True] * 3

        pipeline()
        assert list(emulator.jobs) == [801]
        assert len(emulator.calls("file")) == 3


@pytest.mark.usefixtures("server")
class TestAgain:
    """The folder belongs to the request: whoever runs it again goes on with the same job."""

    def test_by_another_run(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A run that gave up, and another for the same request and folder: one job, and no file twice."""
        emulator = service(default=READY, timelines={"spec": Timeline.of_looks((3, 4), (4,))})
        assert isinstance(error_of(build(request_, out, deadline_s=0.1)), DeadlineError)
        assert build(request_, out).is_completed()
        assert list(emulator.jobs) == [801]
        assert len(emulator.calls("file")) == 3

    def test_finished(self, service: Callable[..., Emulator], request_: ProductRequest, out: Path) -> None:
        """What is finished is verified and kept; a file that was damaged since is fetched again."""
        emulator = service(default=READY)
        build_products(request_, out, pacing=FAST)
        (out / "lc.tar.gz").write_bytes(b"damaged")
        report = build_products(request_, out, pacing=FAST)
        assert [file.kept for file in report.files] == [False, True, True]
        assert list(emulator.jobs) == [801]

    def test_overwritten_build_that_was_stopped(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A build that overwrites and was stopped is gone on with, not begun anew."""
        emulator = service(default=READY, sequence=[{}, {"spec": Timeline.of_looks((3, 4), (4,))}])
        assert build(request_, out).is_completed()
        assert build(request_, out, overwrite=True, deadline_s=0.1).is_failed()
        assert build(request_, out, overwrite=True).is_completed()
        assert list(emulator.jobs) == [801, 802]

    def test_another_request(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Another request is refused the folder, with the way out, before anything is sent."""
        emulator = service(default=READY)
        build_products(request_, out, pacing=FAST)
        before = len(emulator.log)
        error = error_of(build(request_.model_copy(update={"position_error_arcmin": 2}), out))
        assert isinstance(error, OutputError)
        assert "belongs to job 801" in error.message
        assert f"prefect-xrt attach 801 --out {out}" in error.message
        assert len(emulator.log) == before

    @pytest.mark.parametrize("name", ["job.json", "submission.json"])
    def test_damaged_record(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path, name: str
    ) -> None:
        """A record that cannot be read is no licence to build again: a clear error, and nothing is sent."""
        emulator = service(default=READY)
        out.mkdir()
        (out / name).write_text("{")
        error = error_of(build(request_, out))
        assert isinstance(error, OutputError)
        assert "is damaged" in error.message
        assert (emulator.log, (out / name).read_text()) == ([], "{")

    def test_at_the_same_time(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A folder that another process uses is refused by name, before anything is sent."""
        emulator = service(default=READY)
        out.mkdir()
        with exclusive(out / "job.json"):
            error = error_of(build(request_, out))
        assert isinstance(error, OutputError)
        assert "another folder" in error.message or "own folder" in error.message
        assert emulator.log == []

    def test_on_purpose(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """Two runs that ask for the same at the same time into folders of their own stay two jobs."""
        emulator = service(
            default=READY,
            faults=[Fault("submit", "reset-after", after=1), Fault("submit", "reset-before", after=1)],
        )
        runs = [build_products(request_, tmp_path / str(number), pacing=FAST).job.id for number in range(3)]
        assert (runs, list(emulator.jobs)) == ([801, 802, 803], [801, 802, 803])


@pytest.mark.usefixtures("server")
class TestAttach:
    def test_lost_job(self, service: Callable[..., Emulator], request_: ProductRequest, out: Path) -> None:
        """A job whose ID was lost is attached to by it: its files are brought, and its record is written."""
        emulator = service(default=READY)
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(request_)
        report = attach_products(801, out, pacing=FAST)
        assert report.succeeded
        record = read_record(out)
        assert record
        assert (record.job.id, record.job.url) == (801, emulator.jobs[801].url)
        # Whoever wanted it built goes on with it.
        assert build_products(request_, out, pacing=FAST).job.id == 801
        assert list(emulator.jobs) == [801]

    def test_settles_what_is_open(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Where it cannot be told which of two jobs a request became, attaching to one settles it."""
        emulator = service(default=READY, faults=[Fault("submit", "reset-after", after=1)])
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(request_)
        error = error_of(build(request_, out))
        assert isinstance(error, SubmitUncertainError)
        assert error.candidates == (801, 802)
        assert attach_products(802, out, pacing=FAST).succeeded
        assert "submission.json" not in names(out)
        assert build_products(request_, out, pacing=FAST).job.id == 802
        assert list(emulator.jobs) == [801, 802]

    def test_job_of_someone_else(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """Somebody else's job is refused by name, and the folder stays as it was."""
        emulator = service(default=READY, users=("demo@example.org", "other@example.org"))
        with XRTClient("other@example.org", emulator.url) as client:
            client.submit(request_)
        state = attach_products(801, out, pacing=FAST, return_state=True)
        assert isinstance(error_of(state), JobNotFoundError)
        assert names(out) == set()

    def test_folder_of_another_job(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A folder that holds another job's files is left alone; overwriting must be asked for."""
        service(default=READY)
        build_products(request_, out, pacing=FAST)
        build_products(request_, out.with_name("second"), pacing=FAST)
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        error = error_of(attach_products(802, out, pacing=FAST, return_state=True))
        assert isinstance(error, OutputError)
        assert "belongs to job 801" in error.message
        assert before == {path.name: path.read_bytes() for path in out.iterdir()}
        (out / "job.json").unlink()
        error = error_of(attach_products(802, out, pacing=FAST, return_state=True))
        assert isinstance(error, OutputError)
        assert "is not of this job" in error.message
        assert attach_products(802, out, pacing=FAST, overwrite=True).succeeded


@pytest.mark.usefixtures("server")
class TestReuse:
    @pytest.mark.parametrize(
        ("spectrum", "reuse", "expected"),
        [
            (READY, "never", ("COMPLETED", [801, 802])),
            (READY, "unless-failed", ("COMPLETED", [801])),
            (Timeline.of_looks((3, 3), (4,)), "unless-failed", ("COMPLETED", [801])),
            (FAILED, "unless-failed", ("FAILED", [801, 802])),
            (FAILED, "always", ("FAILED", [801])),
        ],
        ids=["off", "complete", "active", "failed", "failed and stop"],
    )
    def test_job_that_is_there(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        spectrum: Timeline,
        reuse: str,
        expected: tuple[str, list[int]],
    ) -> None:
        """A job with these parameters is taken instead of building again, as the parameter says."""
        emulator = service(default=READY, timelines={"spec": spectrum})
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(request_)
        state = build(request_, out, reuse=reuse)
        assert expected == (state.type.value, list(emulator.jobs))
        # The run that found it goes on with it, and a look is not repeated at once.
        record = read_record(out)
        assert record
        assert record.reused == (len(emulator.jobs) == 1)

    def test_expired(self, service: Callable[..., Emulator], request_: ProductRequest, out: Path) -> None:
        """Files that were deleted are built again."""
        emulator = service(default=READY, expire_after_s=100.0, speed=1.0)
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(request_)
        emulator.advance(200.0)
        assert build(request_, out, reuse="always").is_completed()
        assert list(emulator.jobs) == [801, 802]


@pytest.mark.usefixtures("server")
class TestBadInput:
    """Each is a clear, named error; no job is made, and nothing half-written is left."""

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"dec_deg": 95}, "dec_deg"),
            ({"light_curve": {"binning": "counts"}}, "light_curve"),
            ({"light_curve": None, "spectrum": None, "image": None}, "product"),
            ({"hologram": {}}, "hologram"),
        ],
        ids=["declination", "binning without counts", "no product", "unknown product"],
    )
    def test_invalid_request(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        change: dict[str, Any],
        named: str,
    ) -> None:
        """A request that cannot be right fails the run with the names of what is wrong, before any contact."""
        emulator = service()
        given = request_.model_dump(mode="json", exclude={"products"}) | change
        state = build(given, out)
        assert state.name == "Failed"
        error = error_of(state)
        assert isinstance(error, InvalidRequestError)
        assert named in error.message
        assert error.message in str(state.message)
        assert emulator.log == []
        assert set() == names(out)

    def test_refused_request(self, service: Callable[..., Emulator], out: Path) -> None:
        """The service's refusal comes with its reasons, and is not asked for twice."""
        emulator = service(unresolvable_names=["Nowhere"])
        error = error_of(
            build({"name": "Nowhere", "getTargs": 1, "getCoords": 1, "cent": 0, "image": 1}, out)
        )
        assert isinstance(error, RequestRefusedError)
        assert len(emulator.calls("submit")) == 1
        assert emulator.jobs == {}
        assert set() == names(out)

    def test_unregistered_address(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """An address that the service does not know is told without being repeated."""
        emulator = service()
        monkeypatch.setenv("PREFECT_XRT_USER_ID", "stranger@example.org")
        error = error_of(build(request_, out))
        assert isinstance(error, UnknownUserError)
        assert "stranger" not in error.message
        assert emulator.jobs == {}
        assert set() == names(out)

    def test_no_account(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path, monkeypatch: Any
    ) -> None:
        """Without an account nothing is sent, and the error names what to set."""
        emulator = service()
        monkeypatch.delenv("PREFECT_XRT_USER_ID")
        error = error_of(build(request_, out))
        assert isinstance(error, ConfigurationError)
        assert "PREFECT_XRT_USER_ID" in error.message
        assert emulator.log == []

    def test_no_such_block(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A block that is not there is named."""
        emulator = service()
        error = error_of(build(request_, out, credentials="nobody"))
        assert isinstance(error, ConfigurationError)
        assert "'nobody'" in error.message
        assert emulator.log == []

    def test_file_in_the_way(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A folder that cannot be one is told before a job is asked for."""
        emulator = service()
        out.write_text("in the way")
        error = error_of(build(request_, out))
        assert isinstance(error, OutputError)
        assert str(out) in error.message
        assert emulator.log == []
        assert out.read_text() == "in the way"

    def test_foreign_file(
        self, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A file of another origin is left alone, and told of before a job is asked for."""
        emulator = service(default=READY)
        out.mkdir()
        (out / "lc.tar.gz").write_text("mine")
        error = error_of(build(request_, out))
        assert isinstance(error, OutputError)
        assert emulator.log == []
        assert (out / "lc.tar.gz").read_text() == "mine"

    def test_overwrite(self, service: Callable[..., Emulator], request_: ProductRequest, out: Path) -> None:
        """Asked to overwrite, a new build replaces what an earlier one left."""
        emulator = service(default=READY)
        build_products(request_, out, pacing=FAST)
        report = build_products(request_, out, pacing=FAST, overwrite=True)
        assert list(emulator.jobs) == [801, 802]
        record = read_record(out)
        assert record
        assert (record.job.id, report.job.id) == (802, 802)
        assert [file.kept for file in report.files] == [False] * 3

    def test_base_url_with_a_typo(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A base URL with a typo is asked about, and nothing is left in the folder."""
        emulator = service()
        monkeypatch.setenv("PREFECT_XRT_BASE_URL", emulator.url.replace("user_objects", "user_object"))
        error = error_of(build(request_, out))
        assert isinstance(error, ServiceUnreachableError)
        assert "base URL" in error.message
        assert emulator.jobs == {}
        assert set() == names(out)

    def test_lost_answer(self, service: Callable[..., Emulator], request_: ProductRequest, out: Path) -> None:
        """An answer that is lost, and a list that cannot be read: an error that tells how to find the job."""
        emulator = service(
            default=READY, faults=[Fault("submit", "reset-after"), Fault("list", "reset-before", times=4)]
        )
        error = error_of(build(request_, out))
        assert isinstance(error, SubmitUncertainError)
        assert f"`prefect-xrt attach JOB_ID --out {out}`" in error.message
        assert names(out) == {"submission.json"}
        # The same again settles it.
        assert build(request_, out).is_completed()
        assert len(emulator.calls("submit")) == 1


@pytest.mark.usefixtures("server")
class TestStateMessages:
    """Whoever sees a failed run in the UI reads the reason and the next step there, without opening a log."""

    @pytest.mark.parametrize(
        ("scenario", "options", "reason", "next_step"),
        [
            (
                {"unresolvable_names": ["GRB 200416A"]},
                {"request": {"name": "GRB 200416A", "getTargs": 1, "getCoords": 1, "cent": 0, "image": 1}},
                "The name `GRB 200416A` could not be resolved",
                "No job was made: change the request",
            ),
            (
                {"users": ("somebody.else@example.org",)},
                {"user_id": "stranger@example.org"},
                "is not recognised / validated",
                "register it at https://www.swift.ac.uk/user_objects/register.php",
            ),
            ({}, {"base_url": "http://127.0.0.1:9/user_objects"}, "No connection", "check the network"),
            (
                {},
                {"credentials": "nobody"},
                "There is no XRTCredentials block named 'nobody'",
                "make it there",
            ),
            ({}, {"in_the_way": True}, "cannot be written: File exists", "choose another folder"),
            (
                {"default": FAILED, "timelines": {"spec": Timeline.of((-3,))}},
                {},
                "Spectrum alarm (-3, Job was called, but produced no product)",
                "A report to be sent to swifthelp@leicester.ac.uk is ready among the artifacts.",
            ),
            (
                {"default": FAILED, "timelines": {"image": CANCELLED}},
                {},
                "Spectrum failed (-1, Job could not be requested: internal error); Image cancelled (-4,",
                "To build again, run it with `overwrite`, or for another folder.",
            ),
            (
                {"default": READY, "faults": [Fault("file", "http-500", times=-1)]},
                {"max_failed_looks": 1},
                "LightCurve (The service answered HTTP 500.)",
                "Run the same again to fetch what is missing: it goes on with this job.",
            ),
            (
                {"default": FAILED, "timelines": {"image": Timeline.of((3,))}},
                {"deadline_s": 0.2},
                "The deadline has passed, and Image of job 801 (GRB 200416A) had not ended.",
                "Running the same again, into the same folder, goes on with it, too.",
            ),
            (
                {"faults": [Fault("status", "http-503", times=-1)]},
                {"max_failed_looks": 1},
                "1 looks in a row told nothing of LightCurve, Spectrum, Image of job 801 (GRB 200416A)",
                "Running the same again, into the same folder, goes on with it, too.",
            ),
        ],
        ids=[
            "refused",
            "not registered",
            "no connection",
            "no block",
            "folder",
            "alarm",
            "failed",
            "file",
            "deadline",
            "looks",
        ],
    )
    def test_tells_what_to_do(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        out: Path,
        monkeypatch: pytest.MonkeyPatch,
        scenario: dict[str, Any],
        options: dict[str, Any],
        reason: str,
        next_step: str,
    ) -> None:
        """The state's message holds both."""
        service(**scenario)
        given = dict(options)
        for name in ("user_id", "base_url"):
            if name in given:
                monkeypatch.setenv(f"PREFECT_XRT_{name.upper()}", given.pop(name))
        if given.pop("in_the_way", False):
            out.write_text("in the way")
        state = build(given.pop("request", request_), out, **given)
        message = server.flow_run(state.state_details.flow_run_id)["state"]["message"]
        assert reason in message
        assert next_step in message.partition(reason)[2]


class TestLostServer:
    def test_no_artifacts(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, out: Path
    ) -> None:
        """A server that takes no artifacts does not cost the products."""
        service(default=READY, timelines={"spec": Timeline.of((-3,))})
        with _without_artifacts(server.home / "prefect.db"):
            state = build(request_, out, accept_partial=True)
        assert state.name == "Completed"
        assert {"lc.tar.gz", "image.tar.gz", "report.json"} <= names(out)
        assert server.artifacts(state.state_details.flow_run_id) == {}
        lines = [text for _, text in server.logs(state.state_details.flow_run_id, "The alarm could not")]
        assert any("The alarm could not be shown." in line for line in lines)


@contextmanager
def _without_artifacts(database: Path) -> Iterator[None]:
    """Let the server's database refuse every new artifact."""
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON artifact BEGIN SELECT RAISE(ABORT, 'refused'); END"
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute(refuse)
        try:
            yield
        finally:
            connection.execute("DROP TRIGGER refuse")


class TestAddress:
    ADDRESS = "recognisable.person@observatory.example"

    @pytest.mark.usefixtures("server")
    @pytest.mark.parametrize("outcome", ["alarm", "refused", "unregistered", "uncertain"])
    def test_appears_nowhere(
        self,
        server: Server,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
        outcome: str,
    ) -> None:
        """The registered address is in no log, artifact, error, stored result or file, however a run ends."""
        options: dict[str, Any] = {
            "alarm": {"default": READY, "timelines": {"spec": Timeline.of((-3,))}},
            "refused": {"active_job_limit": 0},
            "unregistered": {},
            "uncertain": {
                "faults": [Fault("submit", "html-200", effect=True), Fault("list", "http-500", times=-1)]
            },
        }[outcome]
        registered = "someone.else@example.org" if outcome == "unregistered" else self.ADDRESS
        service(users=(registered,), **options)
        monkeypatch.setenv("PREFECT_XRT_USER_ID", self.ADDRESS)
        state = build(request_, tmp_path / "out")
        assert state.is_failed()
        server.logs(
            state.state_details.flow_run_id, "Finished in state" if outcome == "alarm" else "Encountered"
        )
        told = [caplog.text, *capfd.readouterr(), repr(state), repr(vars(error_of(state)))]
        assert not [text for text in told if self.ADDRESS in text]
        places = [tmp_path, server.home, Path(os.environ["PREFECT_HOME"])]
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        assert server.home / "prefect.db" in files
        assert [path for path in files if self.ADDRESS.encode() in path.read_bytes()] == []

    @pytest.mark.usefixtures("server")
    def test_in_the_parameters(self, server: Server, service: Callable[..., Emulator], out: Path) -> None:
        """Prefect stores what a flow is called with: an account in there is warned about, and not used."""
        service(default=READY)
        state = build(SERVICE_FORM | {"UserID": "me@example.org"}, out)
        assert state.is_completed()
        run_id = state.state_details.flow_run_id
        warned = [text for level, text in server.logs(run_id, "Finished in state") if level == 30]
        assert any("Prefect keeps the parameters" in text for text in warned)
        assert "me@example.org" not in "".join(warned)


@pytest.mark.usefixtures("server")
class TestSettings:
    @pytest.mark.parametrize("setting", [{"max_failed_looks": 0}, {"deadline_s": -5.0}])
    def test_before_anything_is_sent(
        self, service: Callable[..., Emulator], out: Path, request_: ProductRequest, setting: dict[str, float]
    ) -> None:
        """A budget that cannot be kept is refused before a job is asked for."""
        emulator = service(default=READY)
        state = build(request_, out, **setting)
        assert (state.is_failed(), emulator.jobs) == (True, {})

    def test_one_look_is_no_alarm(
        self, service: Callable[..., Emulator], server: Server, out: Path, request_: ProductRequest
    ) -> None:
        """A deadline between the first and the second look at -3 raises no alarm."""
        service(default=READY, timelines={"image": Timeline.of((-3,))})
        state = build(request_, out, deadline_s=0.5, pacing=Pacing(floor_s=60, ceiling_s=60))
        assert isinstance(error_of(state), DeadlineError)
        artifacts = server.artifacts(state.state_details.flow_run_id)
        assert [key for key in artifacts if "alarm" in key] == []

    def test_overwritten_means_one_job(
        self, service: Callable[..., Emulator], out: Path, request_: ProductRequest
    ) -> None:
        """After overwriting, the folder holds no bundle of the job before, and all else that was in it."""
        service(default=READY, sequence=[{"*": READY}, {"*": READY, "spec": FAILED}])
        build(request_, out)
        (out / "notes.txt").write_text("mine")
        error_of(build(request_, out, overwrite=True))
        bundles = {path.name for path in out.iterdir() if ".tar" in path.name}
        expected = {f"{name}.tar.gz{end}" for name in ("lc", "image") for end in ("", ".sha256")}
        assert (bundles, (out / "notes.txt").read_text()) == (expected, "mine")
