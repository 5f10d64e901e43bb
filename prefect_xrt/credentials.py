"""The account, as a Prefect block or from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, cast

import httpx
from prefect.blocks.abstract import CredentialsBlock
from pydantic import Field, HttpUrl, SecretStr

from prefect_xrt import protocol
from prefect_xrt.client import XRTClient, settings_from_environment
from prefect_xrt.errors import ConfigurationError

__all__ = ["LOGOS", "SERVICE_PAGES", "XRTCredentials", "load_credentials"]

LOGOS = "https://raw.githubusercontent.com/PrefectHQ/prefect/420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos"
MAX_ACTIVE = 5
"""The service asks for no more than about five active jobs per user."""

SERVICE_PAGES = HttpUrl("https://www.swift.ac.uk/user_objects/API/")


class XRTCredentials(CredentialsBlock):
    """The account at the UK Swift Science Data Centre, and where its service is.

    Attributes:
        user_id: The registered e-mail address, the only credential of the service.
        base_url: Where the service is.
        connect_timeout_s: How long to wait for a connection, in seconds.
        read_timeout_s: How long to wait for the next bytes of an answer, in seconds.
        max_active: How many jobs of the account may be active, whoever submitted them.

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
    _logo_url: ClassVar[HttpUrl] = HttpUrl(f"{LOGOS}/secret.png")
    _documentation_url: ClassVar[HttpUrl] = SERVICE_PAGES

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
    max_active: int = Field(
        default=MAX_ACTIVE,
        ge=1,
        title="Active jobs at most",
        description="How many jobs of the account may be active, whoever submitted them; the service asks for no "
        "more than about five.",
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


def load_credentials(
    credentials: XRTCredentials | str | None = None, environment: Mapping[str, str] = os.environ
) -> XRTCredentials:
    """Return an account: the one given, the block of that name, or the one in the environment.

    Args:
        credentials: The account, the name of an `XRTCredentials` block, or None for the variables
            PREFECT_XRT_USER_ID, PREFECT_XRT_BASE_URL and PREFECT_XRT_MAX_ACTIVE.
        environment: Where the variables are.

    Raises:
        ConfigurationError: There is no such block, or the environment names no account.
    """
    if isinstance(credentials, XRTCredentials):
        return credentials
    if credentials is None:
        user_id, base_url = settings_from_environment(environment)
        return XRTCredentials(
            user_id=SecretStr(user_id), base_url=base_url, max_active=_max_active(environment)
        )
    try:
        return cast(XRTCredentials, XRTCredentials.load(credentials))
    except ValueError as error:
        raise ConfigurationError(
            f"There is no XRTCredentials block named {credentials!r} on this Prefect server; make it there under "
            "Blocks, or leave it out and set PREFECT_XRT_USER_ID for the worker."
        ) from error
    except (httpx.HTTPError, RuntimeError) as error:
        raise ConfigurationError(
            f"The block {credentials!r} cannot be loaded: Prefect's server does not answer ({type(error).__name__})."
        ) from error


def _max_active(environment: Mapping[str, str]) -> int:
    told = environment.get("PREFECT_XRT_MAX_ACTIVE") or str(MAX_ACTIVE)
    if not told.isdecimal() or int(told) < 1:
        raise ConfigurationError(
            f"PREFECT_XRT_MAX_ACTIVE is {told!r}: it is how many jobs of the account may be active, at least 1."
        )
    return int(told)
