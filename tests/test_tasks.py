"""The tasks are the service's acts for a pipeline of one's own; only the submission is remembered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow

from prefect_xrt import (
    Job,
    LightCurve,
    Pacing,
    ProductRequest,
    XRTCredentials,
    attach_job,
    cancel_products,
    check_product_status,
    download_product,
    rebin_light_curve,
    retrieve_light_curve,
    retrieve_position,
    submit_request,
    wait_for_products,
    watch_jobs,
)
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.errors import (
    DeadlineError,
    FailedLooksError,
    JobNotFoundError,
    OutputError,
    ProductMissingError,
)
from prefect_xrt.records import read_record
from prefect_xrt.request import Product

if TYPE_CHECKING:
    from conftest import Server

pytestmark = pytest.mark.usefixtures("server")

FAST = Pacing(floor_s=0.05, ceiling_s=0.2)
READY = Timeline.of((4,))


class TestWatch:
    def test_many(self, server: Server, service: Callable[..., Emulator], request_: ProductRequest) -> None:
        """One task run waits for many jobs, hands each on as it ends, and one that fails hides none."""
        late, gone = (
            Timeline.of_looks((3, 2), (4,)),
            Job(id=99, url="http://127.0.0.1/99", products=(Product.IMAGE,)),
        )
        service(default=READY, jobs={"Late": {"lc": late}}, active_job_limit=9)

        @flow
        def pipeline() -> list[tuple[int, str]]:
            names = ("Late", "Early", "Broken")
            jobs = [submit_request(request_.model_copy(update={"name": name})) for name in names]
            return [
                (ending.job.id, type(ending.error).__name__ if ending.error else ending.result().describe())
                for ending in watch_jobs([*jobs, gone], pacing=FAST)
            ]

        state = pipeline(return_state=True)
        ready = "LightCurve ready; Spectrum ready; Image ready"
        ends = state.result()
        assert sorted(ends[:3]) == [(99, "JobNotFoundError"), (802, ready), (803, ready)]
        assert ends[3] == (801, ready)
        names = [name for name, _ in server.task_runs(state.state_details.flow_run_id)]
        assert names[3:] == ["watch: 4 jobs"]


class TestSubmit:
    def test_job(self, service: Callable[..., Emulator], request_: ProductRequest) -> None:
        """The job carries all that later steps need, through a result that is JSON."""
        emulator = service()

        @flow
        def pipeline() -> Job:
            return submit_request(request_)

        job = pipeline()
        assert (job.id, job.name) == (801, "GRB 200416A")
        assert job.products == (Product.LIGHT_CURVE, Product.SPECTRUM, Product.IMAGE)
        assert emulator.jobs[801].url == job.url
        assert "UserID" not in job.parameters
        assert job == Job.model_validate_json(job.model_dump_json())

    def test_once_per_flow_run(self, service: Callable[..., Emulator], request_: ProductRequest) -> None:
        """A flow run that fails after its submission and is retried in the same run has one job."""
        emulator = service()
        attempts = []

        @flow(retries=1)
        def pipeline() -> Job:
            job = submit_request(request_)
            attempts.append(job.id)
            if len(attempts) == 1:
                raise RuntimeError("on the way")
            return job

        assert pipeline().id == 801
        assert attempts == [801, 801]
        assert list(emulator.jobs) == [801]

    def test_another_account_object_is_the_same_submission(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """What is remembered depends on the request, not on how the account or the folder is given."""
        emulator = service()

        @flow
        def pipeline() -> list[int]:
            account = XRTCredentials(user_id=emulator.user_id, base_url=emulator.url)
            jobs = [submit_request(request_), submit_request(request_, account, record_dir=tmp_path)]
            return [job.id for job in jobs]

        assert pipeline() == [801, 801]

    @pytest.mark.parametrize(("first", "asked"), [(-1, 2), (4, 1)], ids=["failed", "ready"])
    def test_rebinning(
        self, first: int, asked: int, service: Callable[..., Emulator], request_: ProductRequest
    ) -> None:
        """A flow run that is retried goes on with a new binning, unless that has failed; then it asks anew."""
        emulator = service(default=READY, rebin=Timeline.of((first,)))
        attempts = []

        @flow(retries=1)
        def pipeline() -> bool:
            attempts.append(first)
            job = submit_request(request_)
            wait_for_products(job, pacing=FAST)
            curve = rebin_light_curve(job, LightCurve(binning="obsid"), pacing=FAST)
            if len(attempts) == 1:
                raise RuntimeError("on the way")
            return bool(curve.curves)

        assert pipeline(return_state=True).is_completed() == (first == 4)
        assert (len(attempts), len(emulator.rebins)) == (2, asked)

    def test_each_flow_run_submits(self, service: Callable[..., Emulator], request_: ProductRequest) -> None:
        """Another flow run, or another request in the same one, is another job."""
        service()

        @flow
        def pipeline() -> list[int]:
            other = request_.model_copy(update={"name": "GRB 200416B"})
            return [submit_request(request_).id, submit_request(other).id]

        assert [pipeline(), pipeline()] == [[801, 802], [803, 804]]

    def test_on_record_before_the_first_look(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """The job is on record before anybody looks at it: a look that fails at once finds it there."""
        emulator = service(faults=[Fault("status", "http-500", times=-1)])
        seen = []

        @flow
        def pipeline() -> None:
            job = submit_request(request_, record_dir=tmp_path)
            seen.append((read_record(tmp_path), len(emulator.calls("status"))))
            wait_for_products(job, max_failed_looks=1)

        with pytest.raises(FailedLooksError):
            pipeline()
        ((record, looks),) = seen
        assert record
        assert (emulator.jobs[801].url, 0) == (record.job.url, looks)
        assert record == read_record(tmp_path)

    def test_a_record_that_cannot_be_written(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """Where nothing can be put on record, nothing is asked for."""
        emulator = service()
        (tmp_path / "file").write_bytes(b"")

        @flow
        def pipeline() -> Job:
            return submit_request(request_, record_dir=tmp_path / "file")

        with pytest.raises(OutputError):
            pipeline()
        assert emulator.jobs == {}


class TestPipeline:
    def test_in_another_order(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """A pipeline of one's own: submit, wait for the first, cancel the rest, fetch what is there."""
        emulator = service(default=Timeline.of((3,)), timelines={"lc": Timeline.of_looks((3, 2), (4,))})

        @flow
        def pipeline() -> tuple[Any, ...]:
            job = submit_request(request_)
            first = wait_for_products(job, until="next", pacing=FAST)
            cancelled = cancel_products(job, first.pending)
            last = wait_for_products(job, since=first, pacing=FAST)
            return first, cancelled, last, download_product(job, Product.LIGHT_CURVE, tmp_path)

        first, cancelled, last, file = pipeline()
        assert first.ready == (Product.LIGHT_CURVE,)
        assert cancelled.complete
        assert last.cancelled == (Product.SPECTRUM, Product.IMAGE)
        assert tmp_path / "lc.tar.gz" == file.path
        assert file.size == file.path.stat().st_size
        assert list(emulator.jobs) == [801]

    def test_looks_are_not_remembered(
        self, service: Callable[..., Emulator], request_: ProductRequest
    ) -> None:
        """The same look twice in one flow run asks twice: a status that was remembered would be frozen."""
        service(default=Timeline.of_looks((2, 1), (3, 1), (4,)))

        @flow
        def pipeline() -> list[str]:
            job = submit_request(request_)
            return [check_product_status(job).statuses[Product.IMAGE].state.value for _ in range(3)]

        assert pipeline() == ["queued", "running", "ready"]

    @pytest.mark.parametrize(
        "task", [check_product_status, wait_for_products, download_product, cancel_products, attach_job]
    )
    def test_no_cache(
        self, task: Any, service: Callable[..., Emulator], request_: Any, tmp_path: Path
    ) -> None:
        """Every act but the submission is done each time, also in a flow run that is retried."""
        emulator = service(default=READY)
        arguments: dict[str, dict[str, Any]] = {
            "wait for products": {"pacing": FAST},
            "download": {"product": Product.IMAGE, "directory": tmp_path, "overwrite": True},
        }
        endpoint = {"download": "file", "cancel": "cancel", "attach": "old_job"}.get(task.name, "status")
        runs = []

        @flow(retries=1, persist_result=True)
        def pipeline() -> None:
            job = submit_request(request_)
            task(801 if task is attach_job else job, **arguments.get(task.name, {}))
            runs.append(1)
            if len(runs) == 1:
                raise RuntimeError("once more")

        pipeline()
        assert len(emulator.calls(endpoint)) == 2
        assert len(emulator.calls("submit")) == 1

    def test_attach(self, service: Callable[..., Emulator], request_: ProductRequest) -> None:
        """By its ID alone a job is what its submission gave, but for the time."""
        service()

        @flow
        def pipeline() -> tuple[Job, Job]:
            return submit_request(request_), attach_job(801)

        submitted, attached = pipeline()
        assert submitted.model_copy(update={"submitted_at": None}) == attached

    def test_attach_to_a_job_of_someone_else(
        self, service: Callable[..., Emulator], request_: ProductRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Someone else's job is not found."""
        emulator = service(users=("owner@example.org", "other@example.org"))
        flow(name="owner's")(lambda: submit_request(request_).id)()
        monkeypatch.setenv("PREFECT_XRT_USER_ID", "other@example.org")
        with pytest.raises(JobNotFoundError):
            flow(name="other's")(lambda: attach_job(801))()
        assert list(emulator.jobs) == [801]

    def test_deadline(self, service: Callable[..., Emulator], request_: ProductRequest) -> None:
        """The wait of a pipeline of one's own ends at its deadline, with the last statuses."""
        service(default=Timeline.of((3,)))

        @flow
        def pipeline() -> None:
            wait_for_products(submit_request(request_), pacing=FAST, deadline_s=0.2)

        with pytest.raises(DeadlineError, match="prefect-xrt attach 801 --out") as caught:
            pipeline()
        assert caught.value.outcome
        states = {status.state.value for status in caught.value.outcome.statuses.values()}
        assert states == {"running"}


class TestNames:
    JOB = Job(id=803, url="https://service.example/803", name="GRB 200416A", products=(Product.IMAGE,))

    @pytest.mark.parametrize(
        ("task", "expected"),
        [
            (wait_for_products, "wait: GRB 200416A, job 803"),
            (check_product_status, "look: GRB 200416A, job 803"),
            (cancel_products, "cancel: GRB 200416A, job 803"),
            (download_product, "download: Image of GRB 200416A, job 803"),
            (retrieve_position, "retrieve: Image of GRB 200416A, job 803"),
            (retrieve_light_curve, "retrieve: light curve of GRB 200416A, job 803"),
        ],
    )
    def test_say_what_they_are_about(self, task: Any, expected: str) -> None:
        """A task run is named after its act, the object and the job."""
        assert expected == task.task_run_name({"job": self.JOB, "product": Product.IMAGE})

    def test_without_a_name(self) -> None:
        """Of a job whose object has no name, the ID is told."""
        job = self.JOB.model_copy(update={"name": None})
        name: Any = wait_for_products.task_run_name
        assert name({"job": job}) == "wait: job 803"


class TestDownload:
    def test_missing_file_is_not_asked_for_again(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """A file that the service does not have stays missing: one request, no retry, no file."""
        emulator = service(default=Timeline.of((3,)))

        @flow
        def pipeline() -> None:
            download_product(submit_request(request_), Product.IMAGE, tmp_path)

        with pytest.raises(ProductMissingError):
            pipeline()
        assert len(emulator.calls("file")) == 1
        assert list(tmp_path.iterdir()) == []
