"""Prefect blocks: the account, and a job in Prefect's own grammar."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import ClassVar, cast
from uuid import uuid4

import httpx
from prefect.blocks.abstract import CredentialsBlock, JobBlock, JobRun
from prefect.utilities.asyncutils import sync_compatible
from pydantic import Field, HttpUrl, SecretStr

from prefect_xrt import protocol
from prefect_xrt.archive import ProductFile, download_all
from prefect_xrt.client import XRTClient, settings_from_environment
from prefect_xrt.errors import ConfigurationError
from prefect_xrt.protocol import ArchiveFormat, CancelResult, Job, Outcome
from prefect_xrt.request import ProductRequest
from prefect_xrt.sensor import DEADLINE_S, wait_for_products
from prefect_xrt.state import LocalClaims, LocalLooks
from prefect_xrt.submission import submit_once

__all__ = ["XRTCredentials", "XRTJob", "XRTJobRun", "load_credentials"]

_LOGOS = "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos"
_SERVICE_PAGES = HttpUrl("https://www.swift.ac.uk/user_objects/API/")


class XRTCredentials(CredentialsBlock):
    """The account at the UK Swift Science Data Centre, and where its service is.

    Attributes:
        user_id: The registered e-mail address, the only credential of the service.
        base_url: Where the service is.
        connect_timeout_s: How long to wait for a connection, in seconds.
        read_timeout_s: How long to wait for the next bytes of an answer, in seconds.

    Example:
        Load the account and count the active jobs:
        ```python
        from prefect_xrt import XRTCredentials

        credentials = XRTCredentials.load("BLOCK_NAME")
        with credentials.get_client() as client:
            print(client.count_active_jobs())
        ```
    """

    _block_type_name: ClassVar[str] = "XRT Credentials"
    _block_type_slug: ClassVar[str] = "xrt-credentials"
    _logo_url: ClassVar[HttpUrl] = HttpUrl(f"{_LOGOS}/secret.png")
    _documentation_url: ClassVar[HttpUrl] = _SERVICE_PAGES

    user_id: SecretStr = Field(
        title="Registered address", description="The e-mail address that is registered with the service."
    )
    base_url: str = Field(
        default=protocol.BASE_URL,
        title="Base URL",
        description="Where the service is, without a final slash.",
    )
    connect_timeout_s: float = Field(
        default=10.0,
        gt=0,
        title="Connect time-out",
        description="How long to wait for a connection, in seconds.",
    )
    read_timeout_s: float = Field(
        default=60.0, gt=0, title="Read time-out", description="How long to wait for an answer, in seconds."
    )

    @property
    def block_name(self) -> str | None:
        """The name under which this account was loaded from a Prefect server; None for any other."""
        return self._block_document_name

    def get_client(self) -> XRTClient:
        """Return a client for this account; close it after use, or use it in a `with` statement.

        Raises:
            ConfigurationError: The address is empty, or the base URL cannot be right.
        """
        return XRTClient(
            self.user_id,
            self.base_url,
            connect_timeout_s=self.connect_timeout_s,
            read_timeout_s=self.read_timeout_s,
        )


def load_credentials(credentials: XRTCredentials | str | None = None) -> XRTCredentials:
    """Return an account: the one given, the block of that name, or the one in the environment.

    Args:
        credentials: The account, the name of an `XRTCredentials` block, or None for the variables
            PREFECT_XRT_USER_ID and PREFECT_XRT_BASE_URL.

    Raises:
        ConfigurationError: There is no such block, or the environment names no account.
    """
    if isinstance(credentials, XRTCredentials):
        return credentials
    if credentials is None:
        user_id, base_url = settings_from_environment()
        return XRTCredentials(user_id=SecretStr(user_id), base_url=base_url)
    try:
        return cast(XRTCredentials, XRTCredentials.load(credentials))
    except ValueError as error:
        raise ConfigurationError(
            f"There is no XRTCredentials block named {credentials!r} on this Prefect server."
        ) from error
    except (httpx.HTTPError, RuntimeError) as error:
        raise ConfigurationError(
            f"The block {credentials!r} cannot be loaded: Prefect's server does not answer ({type(error).__name__})."
        ) from error


class XRTJob(JobBlock[dict[str, ProductFile]]):
    """A request to the UK Swift Science Data Centre, ready to be triggered again and again.

    Attributes:
        credentials: The account.
        request: What to build.
        output_dir: Where each job gets a folder for its files.
        archive_format: How the files are bundled.
        deadline_s: How long to wait for the products, in seconds.
        accept_partial: Fetch what is ready even if something else is not.

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
    _logo_url: ClassVar[HttpUrl] = HttpUrl(f"{_LOGOS}/filesystem.png")
    _documentation_url: ClassVar[HttpUrl] = _SERVICE_PAGES

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

    @sync_compatible
    async def trigger(self) -> XRTJobRun:
        """Submit the request, once, and return the run that follows the job.

        Raises:
            RequestRefusedError: The service did not accept the parameters.
            SubmitUncertainError: It cannot be told which job, if any, the request has become.
            ServiceUnreachableError: Nothing was sent.
        """
        with self.credentials.get_client() as client:
            job = await asyncio.to_thread(
                submit_once,
                client,
                self.request,
                owner=str(uuid4()),
                claims=LocalClaims(client.base_url),
                log=self.logger.info,
            )
        self.logger.info("Submitted %s for %s.", job, ", ".join(job.products))
        return XRTJobRun(self, job)

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

    @sync_compatible
    async def wait_for_completion(self) -> None:
        """Wait until every product has ended, however it ended; `outcome` tells.

        Raises:
            DeadlineError: The block's deadline has passed; the job lives on.
            FailedLooksError: The service told nothing for long; the job lives on.
        """
        stop = threading.Event()

        def pause(seconds: float) -> None:
            # The thread of a wait that was cancelled must not go on asking for hours.
            if stop.wait(seconds):
                raise asyncio.CancelledError

        with self._block.credentials.get_client() as client:
            try:
                self.outcome = await asyncio.to_thread(
                    wait_for_products,
                    client,
                    self.job,
                    deadline_s=self._block.deadline_s,
                    log=self.logger.info,
                    looks=LocalLooks(client.base_url),
                    sleep=pause,
                )
            finally:
                stop.set()

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
        with self._block.credentials.get_client() as client:
            files, problems = await asyncio.to_thread(
                download_all, client, self.job, self.outcome.ready, directory, self._block.archive_format
            )
        for error in problems.values():
            raise error
        return {file.product.value: file for file in files}

    @sync_compatible
    async def cancel(self) -> CancelResult:
        """Cancel the products that still build; that one has finished meanwhile is no error."""
        with self._block.credentials.get_client() as client:
            return await asyncio.to_thread(client.cancel, self.job)
