"""Prefect blocks: the account, and a job in Prefect's own grammar."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

# Not public, but what Prefect's own integrations use for this.
from prefect._internal.compatibility.async_dispatch import async_dispatch
from prefect.blocks.abstract import JobBlock, JobRun
from prefect.runtime import flow_run
from prefect.utilities.asyncutils import sync_compatible
from pydantic import Field, HttpUrl

from prefect_xrt.account import Account
from prefect_xrt.archive import ProductFile, download_all
from prefect_xrt.client import XRTClient
from prefect_xrt.credentials import LOGOS, SERVICE_PAGES, XRTCredentials
from prefect_xrt.errors import ConfigurationError
from prefect_xrt.protocol import ArchiveFormat, CancelResult, Job, Outcome
from prefect_xrt.request import ProductRequest
from prefect_xrt.runs import CancelPolicy, cancelled_with_run, pausing
from prefect_xrt.sensor import DEADLINE_S, wait_for_products
from prefect_xrt.state import LocalClaims, LocalLooks
from prefect_xrt.submission import submit_once

__all__ = ["XRTCredentials", "XRTJob", "XRTJobRun"]


class XRTJob(JobBlock[dict[str, ProductFile]]):
    """A request to the UK Swift Science Data Centre, ready to be triggered again and again.

    Attributes:
        credentials: The account.
        request: What to build.
        output_dir: Where each job gets a folder for its files.
        archive_format: How the files are bundled.
        deadline_s: How long to wait for the products, in seconds.
        accept_partial: Fetch what is ready even if something else is not.
        cancel_job: Whether what still builds is cancelled with the flow run that waits for it.

    Example:
        Build the products, wait for them and fetch their files:
        ```python
        from prefect import flow
        from prefect_xrt import XRTJob

        @flow
        def build():
            job_block = XRTJob.load("BLOCK_NAME")
            run = job_block.trigger()
            run.wait_for_completion()
            return run.fetch_result()
        ```
    """

    _block_type_name: ClassVar[str] = "XRT Job"
    _block_type_slug: ClassVar[str] = "xrt-job"
    _logo_url: ClassVar[HttpUrl] = HttpUrl(f"{LOGOS}/filesystem.png")
    _documentation_url: ClassVar[HttpUrl] = SERVICE_PAGES

    credentials: XRTCredentials = Field(description="The account at the service.")
    request: ProductRequest = Field(description="What to build.")
    output_dir: Path = Field(title="Output folder", description="Where each job gets a folder for its files.")
    archive_format: ArchiveFormat = Field(
        default="tar.gz", title="Archive format", description="How the files are bundled."
    )
    deadline_s: float = Field(
        default=DEADLINE_S,
        gt=0,
        title="Deadline",
        description="How long to wait for the products, in seconds.",
    )
    accept_partial: bool = Field(
        default=False,
        title="Accept partial results",
        description="Fetch what is ready even if something else is not.",
    )
    cancel_job: CancelPolicy = Field(
        default="when-cancelled",
        title="Cancel the job",
        description="Whether what still builds is cancelled with the flow run that waits for it; the flow needs "
        "the hook cancel_jobs.",
    )

    @sync_compatible
    async def trigger(self) -> XRTJobRun:
        """Submit the request, once, and return the run that follows the job.

        In a flow, it waits until the account has room for one more active job.

        Raises:
            RequestRefusedError: The service did not accept the parameters.
            SubmitUncertainError: It cannot be told which job, if any, the request has become.
            ServiceUnreachableError: Nothing was sent.
        """
        with self.credentials.get_client() as client, _ending_sleep() as sleep:
            job = await asyncio.to_thread(self._submit, client, sleep)
        self.logger.info("Submitted %s for %s.", job, ", ".join(job.products))
        return XRTJobRun(self, job)

    def _submit(self, client: XRTClient, sleep: Callable[[float], None]) -> Job:
        with ExitStack() as stack:
            turn: Callable[[], AbstractContextManager[None]] = nullcontext
            if flow_run.id:
                line = Account(self.credentials, client)
                turn = stack.enter_context(line.asking(self.request, None, sleep, self.logger.info))
            return submit_once(
                client,
                self.request,
                owner=str(uuid4()),
                claims=LocalClaims(client.base_url),
                turn=turn,
                log=self.logger.info,
                sleep=sleep,
            )

    @sync_compatible
    async def attach(self, job_id: int) -> XRTJobRun:
        """Return the run that follows a job submitted before, by its ID, on whatever machine.

        Raises:
            JobNotFoundError: The job does not exist, or is someone else's.
        """
        with self.credentials.get_client() as client:
            return XRTJobRun(self, await asyncio.to_thread(client.attach, job_id))


class XRTJobRun(JobRun[dict[str, ProductFile]]):
    """One job of an `XRTJob`.

    Attributes:
        job: The job.
        outcome: The last status of its products, once the run has waited for them.
    """

    def __init__(self, block: XRTJob, job: Job) -> None:
        self._block = block
        self.job = job
        self.outcome: Outcome | None = None

    async def await_for_completion(self) -> None:
        """Wait as `wait_for_completion` does in an async flow."""
        with _ending_sleep() as sleep:
            await asyncio.to_thread(self._wait, sleep)

    # In the caller's own thread, where Ctrl-C arrives as such: a coroutine hears only that it is not awaited any more.
    @async_dispatch(await_for_completion)
    def wait_for_completion(self) -> None:  # type: ignore[override]  # Prefect's own returns a logger
        """Wait until every product has ended, however it ended; `outcome` tells.

        Ctrl-C in a sync flow that was started by hand cancels the job, as the block's `cancel_job` says; in an async
        one it leaves the job, as whatever else ends the `await` does.

        Raises:
            DeadlineError: The block's deadline has passed; the job lives on.
            FailedLooksError: The service told nothing for long; the job lives on.
        """
        self._wait(time.sleep)

    def _wait(self, sleep: Callable[[float], None]) -> None:
        account = self._block.credentials
        with account.get_client() as client, cancelled_with_run(self.job, account, self._block.cancel_job):
            self.outcome = wait_for_products(
                client,
                self.job,
                deadline_s=self._block.deadline_s,
                log=self.logger.info,
                looks=LocalLooks(client.base_url),
                sleep=pausing(sleep),
            )

    @sync_compatible
    async def fetch_result(self) -> dict[str, ProductFile]:
        """Fetch the files of every product, into a folder of the job's own below the block's.

        Returns:
            The verified files, by the long name of their product.

        Raises:
            ConfigurationError: Nobody has waited for the job.
            ProductsError: A product is not ready; with `accept_partial`, none is.
            ArchiveError: A file arrived damaged, several times in a row.
            OutputError: The folder cannot be written.
        """
        if self.outcome is None:
            raise ConfigurationError(f"Wait for {self.job} before fetching its files.")
        if not (self._block.accept_partial and self.outcome.ready):
            self.outcome.require()
        directory = self._block.output_dir.expanduser().absolute() / f"job_{self.job.id}"
        with self._block.credentials.get_client() as client, _ending_sleep() as sleep:
            files, problems = await asyncio.to_thread(
                download_all,
                client,
                self.job,
                self.outcome.ready,
                directory,
                self._block.archive_format,
                sleep=sleep,
            )
        for error in problems.values():
            raise error
        return {file.product.value: file for file in files}

    @sync_compatible
    async def cancel(self) -> CancelResult:
        """Cancel the products that still build; that one has finished meanwhile is no error."""
        with self._block.credentials.get_client() as client:
            return await asyncio.to_thread(client.cancel, self.job)


@contextmanager
def _ending_sleep() -> Iterator[Callable[[float], None]]:
    """Provide a sleep that ends with this: the thread of a call that was cancelled must not go on for hours."""
    stop = threading.Event()

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise asyncio.CancelledError

    try:
        yield sleep
    finally:
        stop.set()
