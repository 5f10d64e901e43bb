"""The one place that talks HTTP to the service.

Reads are repeated on trouble; a request for a job is repeated only where nothing was sent. The
client decides neither how often to look at a job (see `sensor`) nor what a status means
(see `protocol`).
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import tenacity
import urllib3
from pydantic import JsonValue, SecretStr
from requests.adapters import HTTPAdapter

from prefect_xrt import protocol
from prefect_xrt._version import __version__
from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    ForeignURLError,
    JobNotFoundError,
    ProductMissingError,
    RefusedError,
    RequestRefusedError,
    ServiceUnreachableError,
    SubmitUncertainError,
    XRTError,
    asked_wait_s,
    is_transient,
)
from prefect_xrt.parameters import encode
from prefect_xrt.protocol import ArchiveFormat, CancelResult, Job, JobSummary, Outcome
from prefect_xrt.request import Product, ProductRequest

__all__ = ["RemoteFile", "XRTClient", "settings_from_environment"]

USER_AGENT = f"prefect-xrt/{__version__} python-requests/{requests.__version__}"

_MAX_ANSWER_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**18
_MAX_REDIRECTS = 3
_PATIENCE_S = 120.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class RemoteFile:
    """A file of the service, open for reading.

    Attributes:
        size: Its whole length in bytes, where the service tells.
        start: The offset in bytes of the first byte that `chunks` gives.
        validator: What identifies this version of the file in a later range request.
        chunks: Its bytes.
    """

    size: int | None
    start: int
    validator: str | None
    chunks: Iterator[bytes]


class XRTClient:
    """Speaks to the service for one account, over one pool of connections; safe to share among threads.

    Args:
        user_id: The address registered with the service, its only credential. It appears in no
            message, and not in the `repr`.
        base_url: Where the service is.
        connect_timeout_s: How long to wait for a connection, in seconds.
        read_timeout_s: How long to wait for the next bytes of an answer, in seconds.
        total_timeout_s: How long one answer to a call may take altogether, in seconds; files are
            bounded by the caller.
        attempts: How often a read is tried before its trouble is raised.
        sleep: Waits between attempts.

    Raises:
        ConfigurationError: The address or the URL cannot be right.

    Source: the service's pages RequestJob, JobStatus, CancelJob, RetrieveProducts and History.
    """

    def __init__(
        self,
        user_id: SecretStr | str,
        base_url: str = protocol.BASE_URL,
        *,
        connect_timeout_s: float = 10.0,
        read_timeout_s: float = 60.0,
        total_timeout_s: float = 300.0,
        attempts: int = 4,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        secret = user_id.get_secret_value() if isinstance(user_id, SecretStr) else user_id
        if not secret.strip():
            raise ConfigurationError("The registered address is empty.")
        self._user_id = secret.strip()
        self.base_url = base_url.strip().rstrip("/")
        self._origin = _check_base_url(self.base_url)
        self._timeouts = (connect_timeout_s, read_timeout_s)
        self._total_timeout_s = total_timeout_s
        self._attempts = attempts
        self._sleep = sleep
        self._adapter = HTTPAdapter(pool_connections=2, pool_maxsize=8, max_retries=0)
        self._session = requests.Session()
        self._session.headers["User-Agent"] = USER_AGENT
        # A proxy from the environment has no business between us and a service on this machine.
        self._session.trust_env = not self.is_local
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, self._adapter)

    def __repr__(self) -> str:
        return f"XRTClient(base_url={self.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    @property
    def is_local(self) -> bool:
        """Whether the service is on this machine by its address; only then may it be asked faster."""
        host = (self._origin.hostname or "").lower()
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    def submit(self, request: ProductRequest) -> Job:
        """Ask for products, once.

        Repeated only where nothing was sent. Where the answer was lost, a job may exist:
        that is an error of its own, never a second request.

        Args:
            request: What to build.

        Returns:
            The job, with the parameters as the service accepted them.

        Raises:
            RequestRefusedError: The service did not accept the parameters.
            UnknownUserError: It does not know the registered address.
            SubmitUncertainError: The request was sent and no clear answer came.
            ServiceUnreachableError: Nothing was sent, after several attempts.
        """
        body = encode(request)
        # A pooled connection that the server has dropped meanwhile would leave open whether the
        # request arrived; a fresh one does not.
        self._adapter.poolmanager.clear()
        try:
            return self._repeat(
                lambda: self._submit_once(body, request),
                lambda error: (
                    isinstance(error, ServiceUnreachableError) and not error.sent and is_transient(error)
                ),
            )
        except RefusedError:
            raise
        except (AnswerError, ServiceUnreachableError) as error:
            if isinstance(error, ServiceUnreachableError) and not error.sent:
                raise
            raise SubmitUncertainError(
                f"The request for {request.name!r} was sent, but no clear answer came ({error.message}) "
                "A job may exist: look for it with `prefect-xrt jobs` before asking again, and go on with it "
                "with `prefect-xrt wait JOB_ID`.",
                name=request.name,
            ) from error

    def _submit_once(self, body: dict[str, JsonValue], request: ProductRequest) -> Job:
        data = self._post("submit", body)
        answer = protocol.check_answer(data, refusal=RequestRefusedError)
        return protocol.decode_submit(answer, request.products, datetime.now(UTC), request.name)

    def check_product_status(
        self, job: Job, products: Iterable[Product | str] | None = None, *, attempts: int | None = None
    ) -> Outcome:
        """Look at products of a job, all in one call.

        The service asks for no more than about one look a minute per job: to wait, use
        `sensor.wait_for_products`, which keeps to it.

        Args:
            job: The job.
            products: Long names; None for all products of the job.
            attempts: How often to try; the client's own number by default.

        Raises:
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        chosen = protocol.choose_products(job, products)
        names = protocol.what(chosen)
        data = self._call("status", {"JobID": job.id, "what": names, "whatProg": names}, attempts=attempts)
        return protocol.decode_status(data, job, chosen, datetime.now(UTC))

    def cancel(self, job: Job, products: Iterable[Product | str] | None = None) -> CancelResult:
        """Cancel products of a job; cancelling twice does no harm.

        Args:
            job: The job.
            products: Long names; None for all products of the job.

        Returns:
            Per product whether it was cancelled; that one had already finished is no error.

        Raises:
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        chosen = protocol.choose_products(job, products)
        data = self._call("cancel", {"JobID": job.id, "what": protocol.what(chosen)})
        return protocol.decode_cancel(data, job, chosen)

    def count_active_jobs(self) -> int:
        """Return how many of the user's jobs wait or run; the service asks for no more than about 5."""
        return protocol.decode_count(self._call("count", {}))

    def list_jobs(self) -> tuple[JobSummary, ...]:
        """Return all jobs that the user ever submitted, newest first."""
        return protocol.decode_jobs(self._call("jobs", {}))

    def attach(self, job_id: int) -> Job:
        """Return the job that belongs to an ID, with its URL and its parameters as accepted.

        Raises:
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        data = self._call("old job", {"oldJob": job_id}, refusal=JobNotFoundError)
        return protocol.decode_old_job(data, job_id)

    @contextmanager
    def open_file(
        self,
        job: Job,
        product: Product,
        archive_format: ArchiveFormat = "tar.gz",
        *,
        start: int = 0,
        validator: str | None = None,
    ) -> Iterator[RemoteFile]:
        """Open a product's bundle of files, once, without repeating.

        Args:
            job: The job.
            product: The product.
            archive_format: The format of the bundle.
            start: Go on from this byte, if the file is still the one that `validator` identifies.
            validator: From the `RemoteFile` of an earlier attempt.

        Raises:
            ProductMissingError: The service has no such file.
            ForeignURLError: The job's URL, or a redirection, leads to another host.
            ServiceUnreachableError: The service did not answer, or stopped on the way.
            AnswerError: A page came instead of an archive.
        """
        url = f"{job.url.rstrip('/')}/{protocol.file_name(product, archive_format)}"
        headers = {"Accept-Encoding": "identity"}
        if start and validator:
            headers |= {"Range": f"bytes={start}-", "If-Range": validator}
        with self._get(url, headers) as response:
            status = response.status_code
            if status == 416 and start:  # noqa: PLR2004 - Range Not Satisfiable: the file has become another
                with self.open_file(job, product, archive_format) as whole:
                    yield whole
                return
            if status in (404, 410):
                raise ProductMissingError(
                    f"The service has no {protocol.file_name(product, archive_format)} for {job}: the product "
                    "did not succeed, or its files have been deleted since (`prefect-xrt jobs` tells)."
                )
            if status not in (200, 206):
                raise _http_error(response)
            if "html" in response.headers.get("Content-Type", "").lower():
                raise AnswerError(f"A web page came instead of {url}.")
            offset = start if status == 206 else 0  # noqa: PLR2004 - Partial Content
            if offset and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise AnswerError(f"The service sent another part of {url} than was asked for.")
            length = _header_int(response, "Content-Length")
            yield RemoteFile(
                size=None if length is None else offset + length,
                start=offset,
                validator=_validator(response),
                chunks=_chunks(response, decode=False),
            )

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        for _ in range(_MAX_REDIRECTS + 1):
            self._require_origin(url)
            with (
                _translated(),
                self._send("GET", url, headers=headers) as response,
            ):
                if not response.is_redirect:
                    yield response
                    return
                url = urljoin(url, response.headers["Location"])
        raise AnswerError("The service redirects a file without end.")

    def _require_origin(self, url: str) -> None:
        try:
            there = urlsplit(url)
            same = _origin(there) == _origin(self._origin)
        except ValueError:
            raise ForeignURLError("The service points to what is no URL; nothing was fetched.") from None
        if not same:
            raise ForeignURLError(
                f"The service points to {there.scheme}://{there.netloc.rpartition('@')[2]}, which is not the host "
                "that is configured; nothing was fetched from there."
            )

    def _call(
        self,
        act: str,
        body: dict[str, JsonValue],
        *,
        attempts: int | None = None,
        refusal: type[RefusedError] = RefusedError,
    ) -> dict[str, JsonValue]:
        """Send a read, or an act that may be repeated, until the service has spoken."""

        def once() -> dict[str, JsonValue]:
            data = self._post(act, body)
            protocol.check_answer(data, refusal=refusal)
            return data

        return self._repeat(once, is_transient, attempts=attempts)

    def _repeat(
        self, act: Callable[[], _T], when: Callable[[BaseException], bool], *, attempts: int | None = None
    ) -> _T:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts if attempts is None else attempts),
            wait=_wait,
            retry=tenacity.retry_if_exception(
                lambda error: when(error) and asked_wait_s(error) <= _PATIENCE_S
            ),
            sleep=self._sleep,
            reraise=True,
        )
        return retrying(act)

    def _post(self, act: str, body: dict[str, JsonValue]) -> dict[str, JsonValue]:
        """Send one call and return the object that came back, whatever it says."""
        path = protocol.PATHS[act]
        envelope = {
            **body,
            "UserID": self._user_id,
            "api_name": protocol.API_NAME,
            "api_version": protocol.API_VERSION,
        }
        with (
            _translated(),
            self._send("POST", f"{self.base_url}/{path}", json=envelope) as response,
        ):
            if response.status_code != requests.codes.ok:
                raise _http_error(response)
            media_type = response.headers.get("Content-Type", "")
            return protocol.decode_json(self._read(response), media_type, user_id=self._user_id)

    def _send(
        self,
        method: str,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        json: dict[str, JsonValue] | None = None,
    ) -> requests.Response:
        try:
            return self._session.request(
                method,
                url,
                headers=headers,
                json=json,
                timeout=self._timeouts,
                stream=True,
                allow_redirects=False,
            )
        except requests.exceptions.RequestException:
            raise
        except ValueError as error:
            # Even where it is not to follow a redirection, requests looks at where it leads.
            raise ForeignURLError("The service redirects to what is no URL; nothing was fetched.") from error

    def _read(self, response: requests.Response) -> bytes:
        deadline = time.monotonic() + self._total_timeout_s
        parts, size = [], 0
        for chunk in _chunks(response, decode=True):
            parts.append(chunk)
            size += len(chunk)
            if size > _MAX_ANSWER_BYTES:
                raise AnswerError(f"The answer is larger than {_MAX_ANSWER_BYTES // 2**20} MiB.")
            if time.monotonic() > deadline:
                raise ServiceUnreachableError(
                    f"The answer trickled in for more than {self._total_timeout_s:g} s and was given up."
                )
        return b"".join(parts)


def settings_from_environment() -> tuple[str, str]:
    """Return the registered address and the base URL that the environment names.

    Raises:
        ConfigurationError: PREFECT_XRT_USER_ID is not set.
    """
    user_id = os.environ.get("PREFECT_XRT_USER_ID", "")
    if not user_id.strip():
        raise ConfigurationError(
            "No registered address is set: set PREFECT_XRT_USER_ID, or save an XRTCredentials block and name it."
        )
    return user_id, os.environ.get("PREFECT_XRT_BASE_URL") or protocol.BASE_URL


_backoff = tenacity.wait_exponential_jitter(initial=1.0, max=30.0, jitter=1.0)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), asked_wait_s(error))


def _check_base_url(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
        usable = usable and not re.search(r"\s", base_url)
        # What no name can be, such as an empty part, would otherwise surface only when it is looked up.
        _ = parts.port, (parts.hostname or "").encode("idna")
    except ValueError:
        usable = False
    if not usable:
        # The part before an @ may be a password, or the registered address.
        shown = re.sub(r"(//|^)[^/]*@", r"\1...@", base_url)
        raise ConfigurationError(
            f"The base URL {shown!r} cannot be right; it looks like {protocol.BASE_URL}, without user or password."
        )
    if parts.query or parts.fragment:
        raise ConfigurationError(
            f"The base URL {base_url!r} has a query or a fragment; it ends with the path."
        )
    return parts


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the transport's exceptions into ours, telling whether anything was sent."""
    try:
        yield
    except XRTError:
        raise
    except requests.exceptions.ConnectTimeout as error:
        raise ServiceUnreachableError(
            "The service did not accept a connection in time.", sent=False
        ) from error
    except requests.exceptions.SSLError as error:
        if _untrusted(error):
            raise ServiceUnreachableError(
                "No trusted connection to the service could be made: its certificate was not accepted.",
                sent=False,
            ) from error
        # Encryption can also break after the request has gone out.
        raise ServiceUnreachableError("The encrypted connection to the service broke.") from error
    except requests.exceptions.Timeout as error:
        raise ServiceUnreachableError("The service did not answer in time.") from error
    except requests.exceptions.ConnectionError as error:
        if _nothing_sent(error):
            raise ServiceUnreachableError(
                "No connection to the service could be made; check the network and the base URL.", sent=False
            ) from error
        raise ServiceUnreachableError("The connection to the service broke.") from error
    except urllib3.exceptions.ReadTimeoutError as error:
        raise ServiceUnreachableError("The service stopped sending on the way.") from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        raise ServiceUnreachableError(
            f"The exchange with the service failed ({type(error).__name__})."
        ) from error


def _reason(error: requests.exceptions.ConnectionError) -> object:
    reason = error.args[0] if error.args else None
    return reason.reason if isinstance(reason, urllib3.exceptions.MaxRetryError) else reason


def _nothing_sent(error: requests.exceptions.ConnectionError) -> bool:
    reason = _reason(error)
    if isinstance(reason, urllib3.exceptions.ProxyError):
        reason = reason.original_error
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ClosedPoolError)


def _untrusted(error: requests.exceptions.SSLError) -> bool:
    reason = _reason(error)
    cause = reason.args[0] if isinstance(reason, Exception) and reason.args else None
    return isinstance(cause, ssl.SSLCertVerificationError)


def _http_error(response: requests.Response) -> XRTError:
    """Translate an HTTP status that is not the service's own way of speaking."""
    status = response.status_code
    if response.is_redirect:
        return AnswerError(f"The service redirects the call (HTTP {status}); check the base URL.")
    hint = " Is the base URL right?" if status in (404, 405) else ""
    # What was turned away before the service looked at it made no job; a 5xx tells nothing of the kind.
    turned_away = 400 <= status < 500 and status != 408  # noqa: PLR2004 - the classes of HTTP
    return ServiceUnreachableError(
        f"The service answered HTTP {status}.{hint}",
        status=status,
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        sent=not turned_away,
    )


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return (
            max(0.0, float(value))
            if value.strip().isdigit()
            else max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        )
    except (ValueError, TypeError):
        return None


def _header_int(response: requests.Response, name: str) -> int | None:
    value = response.headers.get(name, "")
    return int(value) if value.isdigit() else None


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes.
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _chunks(response: requests.Response, *, decode: bool) -> Iterator[bytes]:
    """Give what has arrived as soon as it has: waiting for a full chunk would outlast every time-out.

    Args:
        response: The answer, not read yet.
        decode: Whether to undo the `Content-Encoding`; a file is kept as it is, whatever it is labelled.
    """
    with _translated():
        while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=decode):
            yield chunk
