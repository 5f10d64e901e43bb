"""The blocks keep the address secret, survive the server, and speak Prefect's grammar of jobs."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from conftest import until
from prefect import flow
from prefect.blocks.core import Block
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling
from prefect.testing.standard_test_suites import BlockStandardTestSuite
from pydantic import ValidationError

from prefect_xrt import ProductRequest, XRTCredentials, XRTJob, build_products, cancel_jobs
from prefect_xrt.credentials import load_credentials
from prefect_xrt.emulator import DEFAULT_USER, Emulator, Timeline
from prefect_xrt.errors import ConfigurationError, DeadlineError, JobNotFoundError, ProductsError
from prefect_xrt.pacing import Pacing
from prefect_xrt.protocol import BASE_URL

if TYPE_CHECKING:
    from conftest import Server

READY = Timeline.of((4,))
ADDRESS = "secret.person@observatory.example"


class _Standard(BlockStandardTestSuite):
    def test_has_a_valid_image(self, block: type[Block]) -> None:
        """The logo is a PNG of Prefect's own, at a commit that does not move.

        Prefect's test fetches it from the internet, where tests have no business.
        """
        logo = str(block._logo_url)
        assert logo.startswith("https://raw.githubusercontent.com/PrefectHQ/prefect/")
        assert logo.endswith(".png")
        assert len(logo.split("/")[5]) == 40


class TestCredentialsStandard(_Standard):
    @pytest.fixture
    def block(self) -> type[Block]:
        """Give the block that Prefect's tests are about."""
        return XRTCredentials


class TestJobStandard(_Standard):
    @pytest.fixture
    def block(self) -> type[Block]:
        """Give the block that Prefect's tests are about."""
        return XRTJob


class TestRegistration:
    def test_from_the_shell(self, server: Server) -> None:
        """`prefect block register -m prefect_xrt` registers both blocks on the server."""
        command = [sys.executable, "-m", "prefect", "block", "register", "-m", "prefect_xrt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr if done.returncode else "") == (0, "")
        slugs = {block_type["slug"] for block_type in server.find("block_types")}
        assert {"xrt-credentials", "xrt-job"} <= slugs

    def test_entry_point(self) -> None:
        """Prefect finds the blocks by the entry point of its collections."""
        (entry,) = importlib.metadata.entry_points(group="prefect.collections", name="prefect_xrt")
        assert XRTCredentials is entry.load().XRTCredentials


class TestCredentials:
    def test_masked(self) -> None:
        """The address appears in no text of the block, nor in its client's."""
        block = XRTCredentials(user_id=ADDRESS)
        with block.get_client() as client:
            texts = [repr(block), str(block), block.model_dump_json(), repr(client), str(vars(block))]
        assert [text for text in texts if ADDRESS in text] == []

    @pytest.mark.usefixtures("server")
    def test_round_trip(self, server: Server) -> None:
        """A saved block comes back whole, and the server gives its address only to who asks for secrets."""
        saved = XRTCredentials(user_id=ADDRESS, base_url="http://127.0.0.1:9/user_objects", read_timeout_s=5)
        saved.save("round-trip", overwrite=True)
        loaded = XRTCredentials.load("round-trip")
        assert isinstance(loaded, XRTCredentials)
        assert loaded.user_id.get_secret_value() == ADDRESS
        assert saved.model_dump() == loaded.model_dump()
        documents = server.find("block_documents", include_secrets=False)
        assert "round-trip" in {document["name"] for document in documents}
        assert ADDRESS not in str(documents)

    def test_unusable_settings(self) -> None:
        """An empty address and a base URL that cannot be right are told when a client is wanted."""
        with pytest.raises(ConfigurationError, match="address is empty"):
            XRTCredentials(user_id=" ").get_client()
        with pytest.raises(ConfigurationError, match="base URL"):
            XRTCredentials(user_id=ADDRESS, base_url="www.swift.ac.uk").get_client()

    def test_no_time_out_without_end(self) -> None:
        """A time-out is longer than nothing."""
        with pytest.raises(ValidationError, match="read_timeout_s"):
            XRTCredentials(user_id=ADDRESS, read_timeout_s=0)


class TestLoadCredentials:
    def test_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a block, the environment names account and service."""
        monkeypatch.setenv("PREFECT_XRT_USER_ID", ADDRESS)
        monkeypatch.setenv("PREFECT_XRT_BASE_URL", "http://127.0.0.1:9/user_objects")
        block = load_credentials()
        expected = (ADDRESS, "http://127.0.0.1:9/user_objects")
        assert expected == (block.user_id.get_secret_value(), block.base_url)

    def test_the_real_service_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without PREFECT_XRT_BASE_URL the service is the real one."""
        monkeypatch.setenv("PREFECT_XRT_USER_ID", ADDRESS)
        monkeypatch.delenv("PREFECT_XRT_BASE_URL", raising=False)
        assert load_credentials().base_url == BASE_URL

    def test_no_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without either, the error names what to set."""
        monkeypatch.delenv("PREFECT_XRT_USER_ID", raising=False)
        with pytest.raises(ConfigurationError, match="PREFECT_XRT_USER_ID"):
            load_credentials()

    def test_as_given(self) -> None:
        """A block that is given is used as it is."""
        block = XRTCredentials(user_id=ADDRESS)
        assert block is load_credentials(block)

    @pytest.mark.usefixtures("server")
    def test_in_the_flow(
        self, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """The flow takes the account from the block that it is given the name of."""
        emulator = service(default=READY)
        XRTCredentials(user_id=emulator.user_id, base_url=emulator.url).save("in-the-flow", overwrite=True)
        monkeypatch.setenv("PREFECT_XRT_USER_ID", "stranger@example.org")
        pacing = Pacing(floor_s=0.05, ceiling_s=0.2)
        report = build_products(request_, tmp_path / "out", credentials="in-the-flow", pacing=pacing)
        assert report.succeeded


@pytest.fixture
def block(
    service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
) -> Callable[..., XRTJob]:
    """Make a job block for an embedded service that plays a scenario."""

    def make(scenario: dict[str, Any] | None = None, **fields: Any) -> XRTJob:
        emulator = service(**({"default": READY} if scenario is None else scenario))
        account = XRTCredentials(user_id=DEFAULT_USER, base_url=emulator.url)
        return XRTJob(credentials=account, request=request_, output_dir=tmp_path / "out", **fields)

    return make


@pytest.mark.usefixtures("server")
class TestJob:
    def test_round_trip(self, block: Callable[..., XRTJob]) -> None:
        """A saved block comes back with its nested request and account, and can be triggered."""
        saved = block(archive_format="zip", deadline_s=99.0, accept_partial=True)
        saved.save("job-round-trip", overwrite=True)
        loaded = XRTJob.load("job-round-trip")
        assert isinstance(loaded, XRTJob)
        assert saved.request == loaded.request
        assert loaded.credentials.user_id.get_secret_value() == DEFAULT_USER
        assert (saved.output_dir, "zip", 99.0, True) == (
            loaded.output_dir,
            loaded.archive_format,
            loaded.deadline_s,
            loaded.accept_partial,
        )
        run = loaded.trigger()
        run.wait_for_completion()
        files = run.fetch_result()
        assert {name: file.path.name for name, file in files.items()} == {
            "LightCurve": "lc.zip",
            "Spectrum": "spec.zip",
            "Image": "image.zip",
        }

    def test_in_a_flow(self, block: Callable[..., XRTJob], tmp_path: Path) -> None:
        """In a flow: trigger, wait for completion, fetch the result, into a folder of the job's own."""
        job_block = block()

        @flow
        def pipeline() -> dict[str, Any]:
            run = job_block.trigger()
            run.wait_for_completion()
            return run.fetch_result()

        files = pipeline()
        assert list(files) == ["LightCurve", "Spectrum", "Image"]
        assert {tmp_path / "out" / "job_801"} == {file.path.parent for file in files.values()}
        assert all(file.size == file.path.stat().st_size for file in files.values())

    def test_room(self, block: Callable[..., XRTJob]) -> None:
        """In a flow, it waits for room in the account before it submits."""
        job_block = block({"default": Timeline.of((3,))})
        job_block.credentials = job_block.credentials.model_copy(update={"max_active": 1})
        first = job_block.trigger()
        end_of_the_first = threading.Timer(2, first.cancel)

        @flow
        def pipeline() -> int:
            end_of_the_first.start()
            job_block.trigger()
            with job_block.credentials.get_client() as client:
                return client.count_active_jobs()

        assert pipeline() == 1
        end_of_the_first.join()

    async def _follow(self, job_block: XRTJob) -> dict[str, Any]:
        run = await job_block.trigger()
        await run.wait_for_completion()
        return await run.fetch_result()

    # When the loop of an async flow ends, Prefect leaves its own connection to its server open.
    @pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
    def test_in_an_async_flow(self, block: Callable[..., XRTJob]) -> None:
        """The same in an async flow, with `await`."""
        job_block = block()

        @flow
        async def pipeline() -> dict[str, Any]:
            return await self._follow(job_block)

        assert list(asyncio.run(pipeline())) == ["LightCurve", "Spectrum", "Image"]
        gc.collect()

    def test_two_triggers_are_two_jobs(self, block: Callable[..., XRTJob]) -> None:
        """Each trigger submits once."""
        job_block = block()
        assert [job_block.trigger().job.id for _ in range(2)] == [801, 802]

    def test_attach(self, block: Callable[..., XRTJob]) -> None:
        """A job is followed again by its ID alone."""
        job_block = block()
        job_block.trigger()
        run = job_block.attach(801)
        run.wait_for_completion()
        assert {"LightCurve", "Spectrum", "Image"} == set(run.fetch_result())

    def test_attach_to_nothing(self, block: Callable[..., XRTJob]) -> None:
        """A job that is not there is told by name."""
        job_block = block()
        with pytest.raises(JobNotFoundError):
            job_block.attach(4711)

    def test_cancel(self, block: Callable[..., XRTJob]) -> None:
        """Cancelling stops what still builds, and tells what had finished already."""
        run = block({"default": Timeline.of((3,)), "timelines": {"lc": READY}}).trigger()
        result = run.cancel()
        assert {product.value: entry.code for product, entry in result.products.items()} == {
            "LightCurve": 1,
            "Spectrum": 0,
            "Image": 0,
        }
        assert not result.complete
        run.wait_for_completion()
        assert run.outcome.ready == ("LightCurve",)
        assert run.outcome.cancelled == ("Spectrum", "Image")

    def test_partly(self, block: Callable[..., XRTJob]) -> None:
        """All or nothing, unless the block accepts partial results."""
        scenario = {"default": READY, "timelines": {"spec": Timeline.of((-1,))}}
        run = block(scenario).trigger()
        run.wait_for_completion()
        with pytest.raises(ProductsError, match="Spectrum failed"):
            run.fetch_result()
        run = block(scenario, accept_partial=True).trigger()
        run.wait_for_completion()
        assert {"LightCurve", "Image"} == set(run.fetch_result())

    def test_none_is_no_partial_result(self, block: Callable[..., XRTJob]) -> None:
        """Where nothing is ready there is nothing to accept."""
        run = block({"default": Timeline.of((-1,))}, accept_partial=True).trigger()
        run.wait_for_completion()
        with pytest.raises(ProductsError):
            run.fetch_result()

    def test_result_before_the_wait(self, block: Callable[..., XRTJob]) -> None:
        """The files of a job that nobody waited for are not fetched."""
        run = block().trigger()
        with pytest.raises(ConfigurationError, match="Wait for job 801"):
            run.fetch_result()

    def test_deadline(self, block: Callable[..., XRTJob]) -> None:
        """The block's deadline holds, and the error tells how to go on."""
        run = block({"default": Timeline.of((3,))}, deadline_s=0.1).trigger()
        with pytest.raises(DeadlineError, match="prefect-xrt attach 801 --out"):
            run.wait_for_completion()


@pytest.mark.usefixtures("server")
def test_cancelled_with_the_run(
    service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
) -> None:
    """A job that a flow waits for through the block is cancelled by the flow's hook, as the block says."""
    emulator = service(default=Timeline.of((3,)))
    block = XRTJob(credentials=load_credentials(), request=request_, output_dir=tmp_path, deadline_s=0.2)
    run_ids = []

    @flow
    def pipeline() -> None:
        run_ids.append(UUID(flow_run.id))
        block.trigger().wait_for_completion()

    with pytest.raises(DeadlineError):
        pipeline()
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(run_ids[0])
    cancel_jobs(flow=pipeline, flow_run=run, state=Cancelling())
    assert emulator.jobs[801].code("lc") == -4


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("policy", ["when-cancelled", "never"])
def test_interrupted(
    service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path, policy: str
) -> None:
    """Ctrl-C in a flow that waits through the block cancels its job, as the block says."""
    emulator = service(default=Timeline.of((3,)))
    (tmp_path / "request.json").write_text(request_.model_dump_json(exclude={"products"}))
    script = tmp_path / "pipeline.py"
    script.write_text(f"""
from pathlib import Path
from prefect import flow
from prefect_xrt import ProductRequest, XRTJob
from prefect_xrt.credentials import load_credentials

@flow
def pipeline():
    request = ProductRequest.model_validate_json(Path("request.json").read_text())
    block = XRTJob(credentials=load_credentials(), request=request, output_dir="out", cancel_job={policy!r})
    block.trigger().wait_for_completion()

pipeline()
""")
    with subprocess.Popen([sys.executable, script], cwd=tmp_path) as process:
        until(lambda: emulator.calls("status"))
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert emulator.jobs[801].code("lc") == (3 if policy == "never" else -4)
    assert len(emulator.calls("cancel")) == (policy != "never")
