"""The one place that talks HTTP to the service.

Reads are repeated on trouble; a request for a job is repeated only where nothing was sent. The
client decides neither how often to look at a job (see `sensor`) nor what a status means
(see `protocol`).
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

import requests
import tenacity
import urllib3
from pydantic import JsonValue, SecretStr
from requests.adapters import HTTPAdapter

from prefect_xrt import answers, protocol
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
from prefect_xrt.protocol import (
    ArchiveFormat,
    CancelResult,
    Job,
    JobSummary,
    Outcome,
    ProductState,
    ProductStatus,
    RebinJob,
)
from prefect_xrt.request import LightCurve as Binning
from prefect_xrt.request import Product, ProductRequest
from prefect_xrt.results import (
    POSITION_PRODUCTS,
    LightCurve,
    Position,
    Provenance,
    Result,
    SourceList,
    SpectralFits,
    require,
)

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["RemoteFile", "Which", "XRTClient", "settings_from_environment"]

USER_AGENT = f"prefect-xrt/{__version__} python-requests/{requests.__version__}"

_MAX_ANSWER_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**18
_MAX_ENCODINGS = 2
_ZLIB_OR_GZIP = 32 + zlib.MAX_WBITS
_MAX_REDIRECTS = 3
_PATIENCE_S = 120.0
_T = TypeVar("_T")

Which = Literal["without", "with", "both"]
"""Whether light curves are wanted without something, with it, or in both versions."""


@dataclass
class _Exchange:
    """What is known of the exchange under way.

    Attributes:
        deadline: When it is given up, on the monotonic clock.
        begun: Whether the service may have received any of the request.
    """

    deadline: float
    begun: bool = False


_exchange: ContextVar[_Exchange | None] = ContextVar("_exchange", default=None)
"""Tells a connection, deep in the transport, which exchange it is used for."""


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
        total_timeout_s: How long one answer to a call may take altogether, in seconds, however it
            trickles in; of files only the headers, as what follows is bounded by the caller.
        attempts: How often a read is tried before its trouble is raised.
        sleep: Waits between attempts.

    Raises:
        ConfigurationError: The address or the URL cannot be right, or the URL would send the address
            unencrypted to another machine.

    Certificates are always checked: against those that come with `requests`, or those that
    `REQUESTS_CA_BUNDLE` names. Logins of a `.netrc` are not sent.

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
        # No variable holds it bare: programs that show a traceback with its variables would show it.
        self._user_id = SecretStr(
            (user_id.get_secret_value() if isinstance(user_id, SecretStr) else user_id).strip()
        )
        if not self._user_id:
            raise ConfigurationError("The registered address is empty.")
        self.base_url = base_url.strip().rstrip("/")
        self._origin = _check_base_url(self.base_url)
        self._timeouts = (min(connect_timeout_s, total_timeout_s), read_timeout_s)
        self._total_timeout_s = total_timeout_s
        self._attempts = attempts
        self._sleep = sleep
        self._clock_skew_s = 0.0
        self._adapter = _Adapter(pool_connections=2, pool_maxsize=8, max_retries=0)
        self._session = _Session()
        # What else could be asked for is not unpacked here.
        self._session.headers.update({"User-Agent": USER_AGENT, "Accept-Encoding": "gzip"})
        # An authentication of our own, which adds nothing, keeps a login in a .netrc from being sent.
        self._session.auth = lambda prepared: prepared
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
        return _is_local(self._origin)

    @property
    def clock_skew_s(self) -> float:
        """How far the service's clock is ahead of ours, in seconds, to about one second.

        As of its last answer to a call; 0.0 before there was one, or where it told no time.
        """
        return self._clock_skew_s

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
        self._adapter.close()
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
                "by `prefect-xrt attach JOB_ID --out DIR`.",
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

    def cancel(
        self, job: Job, products: Iterable[Product | str] | None = None, *, attempts: int | None = None
    ) -> CancelResult:
        """Cancel products of a job; cancelling twice does no harm.

        Args:
            job: The job.
            products: Long names; None for all products of the job.
            attempts: How often to try; the client's own number by default.

        Returns:
            Per product whether it was cancelled; that one had already finished is no error.

        Raises:
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        chosen = protocol.choose_products(job, products)
        body: dict[str, JsonValue] = {"JobID": job.id, "what": protocol.what(chosen)}
        data = self._call("cancel", body, attempts=attempts)
        return protocol.decode_cancel(data, job, chosen)

    def count_active_jobs(self, *, attempts: int | None = None) -> int:
        """Return how many of the user's jobs wait or run; the service asks for no more than about 5.

        Args:
            attempts: How often to try; the client's own number by default.
        """
        return protocol.decode_count(self._call("count", {}, attempts=attempts))

    def list_jobs(self, *, attempts: int | None = None) -> tuple[JobSummary, ...]:
        """Return all jobs that the user ever submitted, newest first.

        Args:
            attempts: How often to try; the client's own number by default.
        """
        return protocol.decode_jobs(self._call("jobs", {}, attempts=attempts))

    def attach(self, job_id: int, *, attempts: int | None = None) -> Job:
        """Return the job that belongs to an ID, with its URL and its parameters as accepted.

        Args:
            job_id: The ID.
            attempts: How often to try; the client's own number by default.

        Raises:
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        data = self._call("old job", {"oldJob": job_id}, attempts=attempts, refusal=JobNotFoundError)
        return protocol.decode_old_job(data, job_id)

    def retrieve_position(
        self, job: Job, product: Product | str = Product.STANDARD_POS, *, attempts: int | None = None
    ) -> Position:
        """Return the standard, enhanced or astrometric position, or that there is none and why.

        Args:
            job: A job with that product.
            product: StandardPos, EnhancedPos or AstromPos.
            attempts: How often to try; the client's own number by default.

        Raises:
            ConfigurationError: It is no position, or the job does not build it.
            RefusedError: The service has none to give for another reason.
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        (chosen,) = protocol.choose_products(job, (product,))
        if chosen not in POSITION_PRODUCTS:
            raise ConfigurationError(f"{chosen.value} is not a position.")
        return self._retrieve(
            job,
            chosen,
            lambda data, provenance: answers.decode_position(data, chosen, provenance),
            attempts=attempts,
        )

    def retrieve_spectral_fits(self, job: Job, *, attempts: int | None = None) -> SpectralFits:
        """Return the fits to the spectra of a job.

        Args:
            job: A job whose spectrum is ready.
            attempts: How often to try; the client's own number by default.

        Raises:
            ConfigurationError: The job does not build a spectrum.
            RefusedError: The service has none to give: it is not ready, or was deleted.
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        protocol.choose_products(job, (Product.SPECTRUM,))
        return self._retrieve(job, Product.SPECTRUM, answers.decode_spectral_fits, attempts=attempts)

    def retrieve_source_list(self, job: Job, *, attempts: int | None = None) -> SourceList:
        """Return the sources that were detected, per band.

        Args:
            job: A job whose source detection is ready.
            attempts: How often to try; the client's own number by default.

        Raises:
            ConfigurationError: The job does not detect sources.
            RefusedError: The service has none to give: it is not ready, or was deleted.
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        protocol.choose_products(job, (Product.SOURCE_DET,))
        return self._retrieve(job, Product.SOURCE_DET, answers.decode_source_list, attempts=attempts)

    def retrieve_light_curve(
        self,
        job: Job,
        *,
        systematics: Which = "with",
        unreliable: Which = "without",
        attempts: int | None = None,
    ) -> LightCurve:
        """Return the light curves of a job.

        Args:
            job: A job whose light curve is ready.
            systematics: Whether the systematic error of WT mode is in the errors; "both" gives each WT
                dataset twice.
            unreliable: Whether bins that may be unreliable, as the source was not well centred, are in;
                "both" gives each dataset twice.
            attempts: How often to try; the client's own number by default.

        Raises:
            ConfigurationError: The job does not build a light curve, or the extra is not installed.
            RefusedError: The service has none to give: it is not ready, or was deleted.
            JobNotFoundError: The job does not exist, or is someone else's.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        protocol.choose_products(job, (Product.LIGHT_CURVE,))
        require("numpy")
        body: dict[str, JsonValue] = {"JobID": job.id, **_versions(systematics, unreliable)}

        def once() -> answers.Cut:
            data = self._post_as(Product.LIGHT_CURVE, body, answers.cut)
            protocol.check_answer(data.answer)
            return data

        return self._read_light_curve(job, self._repeat(once, is_transient, attempts=attempts))

    def retrieve(self, job: Job, product: Product) -> Result | None:
        """Return the result of a product as data; None for images, of which there is none.

        Raises:
            XRTError: As the `retrieve_` method for that product.
        """
        if product in POSITION_PRODUCTS:
            return self.retrieve_position(job, product)
        if product is Product.LIGHT_CURVE:
            return self.retrieve_light_curve(job)
        if product is Product.SPECTRUM:
            return self.retrieve_spectral_fits(job)
        return self.retrieve_source_list(job) if product is Product.SOURCE_DET else None

    def submit_rebin(self, job: Job, binning: Binning) -> RebinJob:
        """Ask for a finished job's light curve to be binned again.

        Repeated only where nothing was sent.

        Args:
            job: A job whose light curve is ready.
            binning: How to bin. It cannot choose observations anew.

        Raises:
            ConfigurationError: The job does not build a light curve, or the binning says nothing of its own.
            RefusedError: The service does not do it.
            SubmitUncertainError: It was asked for and no clear answer came.
            ServiceUnreachableError: Nothing was sent, after several attempts.
        """
        protocol.choose_products(job, (Product.LIGHT_CURVE,))
        parameters = protocol.encode_binning(binning)
        body = {"type": "UOB_LC", "objectID": job.id, **parameters}
        if job.name is not None:
            body["name"] = job.name
        self._adapter.close()
        try:
            data = self._repeat(
                lambda: self._ask_data("rebinLightCurve", body),
                lambda error: (
                    isinstance(error, ServiceUnreachableError) and not error.sent and is_transient(error)
                ),
            )
            return protocol.decode_rebin(data, job, parameters)
        except (AnswerError, ServiceUnreachableError) as error:
            if isinstance(error, ServiceUnreachableError) and not error.sent:
                raise
            raise SubmitUncertainError(
                f"The service was asked to bin the light curve of {job} again, but no clear answer came "
                f"({error.message}) It may do so all the same; to ask once more does no harm but for its time.",
                name=job.name,
            ) from error

    def check_rebin_status(self, rebin: RebinJob, *, attempts: int | None = None) -> ProductStatus:
        """Look at how far a new binning is; to wait, use `rebin.rebin_light_curve`.

        Raises:
            RefusedError: The service does not know it.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        body: dict[str, JsonValue] = {"JobID": rebin.id}
        return protocol.decode_rebin_status(self._call_data("checkRebinStatus", body, attempts=attempts))

    def cancel_rebin(self, rebin: RebinJob, *, attempts: int | None = None) -> bool:
        """Cancel a new binning; cancelling twice does no harm.

        Returns:
            Whether it is cancelled now; if not, it had probably ended before.

        Raises:
            RefusedError: The service does not know it.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        try:
            self._call_data("cancelRebin", {"JobID": rebin.id}, attempts=attempts)
        except RefusedError:
            # Also what comes where an earlier attempt cancelled it, and its answer was lost.
            return self.check_rebin_status(rebin, attempts=attempts).state is ProductState.CANCELLED
        return True

    def retrieve_rebinned_light_curve(
        self,
        rebin: RebinJob,
        *,
        systematics: Which = "with",
        unreliable: Which = "without",
        attempts: int | None = None,
    ) -> LightCurve:
        """Return what a new binning has made; the arguments are those of `retrieve_light_curve`.

        Raises:
            ConfigurationError: The extra is not installed.
            RefusedError: The service has none to give: it is not ready, or was deleted.
            ServiceUnreachableError: The service did not answer.
            AnswerError: What came back is not the service speaking.
        """
        require("numpy")
        body = {"type": "REBIN_LC", "objectID": rebin.id, **_versions(systematics, unreliable)}

        def once() -> answers.Cut:
            data = self._post_as("data", _data_call("downloadLightCurve", body), answers.cut)
            protocol.check_data_answer(data.answer)
            return data

        return self._read_light_curve(rebin.job, self._repeat(once, is_transient, attempts=attempts), rebin)

    def _retrieve(
        self,
        job: Job,
        product: Product,
        decode: Callable[[dict[str, JsonValue], Provenance], _T],
        *,
        attempts: int | None,
    ) -> _T:
        data = self._call(product, {"JobID": job.id}, attempts=attempts)
        sha256 = answers.sha256_of(data)
        return decode(data, answers.provenance_of(job, data, datetime.now(UTC), sha256))

    @staticmethod
    def _read_light_curve(job: Job, data: answers.Cut, rebin: RebinJob | None = None) -> LightCurve:
        provenance = answers.provenance_of(job, data.answer, datetime.now(UTC), data.sha256(), rebin=rebin)
        return answers.decode_light_curve(data, provenance)

    def _ask_data(self, function: str, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        data = self._post("data", _data_call(function, body))
        protocol.check_data_answer(data)
        return data

    def _call_data(
        self, function: str, body: Mapping[str, JsonValue], *, attempts: int | None
    ) -> dict[str, JsonValue]:
        return self._repeat(lambda: self._ask_data(function, body), is_transient, attempts=attempts)

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
                chunks=_chunks(response),
            )

    @contextmanager
    def _get(self, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
        for _ in range(_MAX_REDIRECTS + 1):
            self._require_origin(url)
            with _within(self._total_timeout_s), _translated():
                response = self._send("GET", url, headers=headers)
            with response:
                if not response.is_redirect:
                    yield response
                    return
                location = response.headers["Location"]
            try:
                url = urljoin(url, location)
            except ValueError:
                raise ForeignURLError(
                    "The service redirects to what is no URL; nothing was fetched."
                ) from None
        raise AnswerError("The service redirects a file without end.")

    def _require_origin(self, url: str) -> None:
        try:
            there = urlsplit(url)
            same = _origin(there) == _origin(self._origin)
        except ValueError:
            raise ForeignURLError("The service points to what is no URL; nothing was fetched.") from None
        # Of a URL with a backslash, a line break or a user before its host, not everyone reads the same host.
        if not same or "@" in there.netloc or re.search(r"[\\\x00-\x1f\x7f]", url):
            raise ForeignURLError(
                f"The service points to {there.scheme}://{there.netloc.rpartition('@')[2]}, which is not the host "
                "that is configured, or not written plainly; nothing was fetched from there."
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

    def _post(self, act: str, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Send one call and return the object that came back, whatever it says."""
        return self._post_as(act, body, protocol.decode_json)

    def _post_as(self, act: str, body: Mapping[str, JsonValue], decode: Callable[..., _T]) -> _T:
        """Send one call and return what a decoder makes of what came back."""
        with (
            _within(self._total_timeout_s),
            _translated(),
            self._send(
                "POST",
                self._url(act),
                json={**body, **self._account(act)},
            ) as response,
        ):
            ahead_s = _seconds_until(response.headers.get("Date", ""))
            if response.status_code != requests.codes.ok:
                raise _http_error(response)
            try:
                data = decode(
                    _read(response),
                    response.headers.get("Content-Type", ""),
                    user_id=self._user_id.get_secret_value(),
                )
            except AnswerError as error:
                # The frames within hold the answer as it came, and it may repeat the address.
                raise error.with_traceback(None)  # noqa: B904 - it is the same error
            self._clock_skew_s = ahead_s or 0.0
            return data

    def _url(self, act: str) -> str:
        path = protocol.PATHS[act]
        if not path.startswith("/"):
            return f"{self.base_url}/{path}"
        return urlunsplit((self._origin.scheme, self._origin.netloc, path, "", ""))

    def _account(self, act: str) -> dict[str, JsonValue]:
        # The interface for data asks for no account, and is told none.
        if act == "data":
            return {}
        return {
            "UserID": self._user_id.get_secret_value(),
            "api_name": protocol.API_NAME,
            "api_version": protocol.API_VERSION,
        }

    def _send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: Mapping[str, JsonValue] | None = None,
    ) -> requests.Response:
        return self._session.request(
            method,
            url,
            headers=headers,
            json=json,
            timeout=self._timeouts,
            stream=True,
            allow_redirects=False,
        )


def _versions(systematics: Which, unreliable: Which) -> dict[str, JsonValue]:
    """Spell for the service which versions of a light curve are wanted.

    Raises:
        ConfigurationError: It is none of what can be wanted.
    """
    wanted = {"with": "yes", "without": "no", "both": "both"}
    if systematics not in wanted or unreliable not in wanted:
        raise ConfigurationError("`systematics` and `unreliable` are 'with', 'without' or 'both'.")
    # The service asks the other way round: for the curves *without* the systematic error.
    nosys = {"with": "no", "without": "yes"}.get(systematics, "both")
    return {"nosys": nosys, "incbad": wanted[unreliable]}


def _data_call(function: str, body: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    return {**body, "APIFunc": function, "APIVersion": protocol.DATA_API_VERSION}


class _Session(requests.Session):
    """Follows no redirection: where one leads to is looked at here first."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Tell of none: even where it is not to follow it, requests reads the page that comes with one whole."""


class _Adapter(HTTPAdapter):
    """Makes connections whose every byte keeps to the deadline of its call."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        _watch(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> urllib3.ProxyManager:
        known = proxy in self.proxy_manager
        manager: urllib3.ProxyManager = super().proxy_manager_for(proxy, **kwargs)
        if not known:
            _watch(manager)
        return manager


def _watch(manager: urllib3.PoolManager) -> None:
    manager.pool_classes_by_scheme = {
        scheme: _watched(pool) for scheme, pool in manager.pool_classes_by_scheme.items()
    }


@cache
def _watched(pool: type[urllib3.HTTPConnectionPool]) -> type[urllib3.HTTPConnectionPool]:
    """Return the same kind of pool, with connections that take part in an exchange."""
    bases = (_Connection, pool.ConnectionCls)
    connection = type(pool.ConnectionCls.__name__, bases, {"response_class": _Answer})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection})


class _Connection(urllib3.connection.HTTPConnection):
    """A connection that notes when a request begins, and keeps its answer to the deadline."""

    def request(self, *args: Any, **kwargs: Any) -> None:
        # Encrypted connections are made, also through a proxy, before a request begins.
        exchange = _exchange.get()
        if exchange:
            exchange.begun = True
        super().request(*args, **kwargs)


class _Answer(http.client.HTTPResponse):
    """An answer that keeps to the deadline of its call from its first byte on."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Patience(self.fp.detach(), sock))


class _Patience(io.RawIOBase):
    """What arrives at a socket, waited for no longer than the deadline allows.

    A time-out of the socket itself starts anew with every byte that arrives.
    """

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._socket = sock
        self._timeout_s = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        timeout_s = self._timeout_s
        exchange = _exchange.get()
        if exchange:
            left_s = exchange.deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("The call has taken too long altogether.")
            timeout_s = left_s if timeout_s is None else min(timeout_s, left_s)
        self._socket.settimeout(timeout_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def settings_from_environment(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return the registered address and the base URL that the environment names.

    Raises:
        ConfigurationError: PREFECT_XRT_USER_ID is not set.
    """
    user_id = environment.get("PREFECT_XRT_USER_ID", "")
    if not user_id.strip():
        raise ConfigurationError(
            "No registered address is set: set PREFECT_XRT_USER_ID, or save an XRTCredentials block and name it."
        )
    return user_id, environment.get("PREFECT_XRT_BASE_URL") or protocol.BASE_URL


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
    if parts.scheme == "http" and not _is_local(parts):
        raise ConfigurationError(
            f"The base URL {base_url!r} would send the registered address in the clear; use https. "
            "Plain http is for a service on this machine only, such as http://127.0.0.1:8642/user_objects."
        )
    return parts


def _is_local(parts: SplitResult) -> bool:
    host = parts.hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


@contextmanager
def _within(limit_s: float) -> Iterator[None]:
    """Give up what is sent and read within once it has taken too long, and tell whether anything was sent."""
    exchange = _Exchange(time.monotonic() + limit_s)
    token = _exchange.set(exchange)
    try:
        yield
    except ServiceUnreachableError as error:
        error.sent = error.sent and exchange.begun
        if error.sent and error.status is None and time.monotonic() >= exchange.deadline:
            raise ServiceUnreachableError(
                f"The answer trickled in, or did not come, for {limit_s:g} s and was given up."
            ) from error
        raise
    finally:
        _exchange.reset(token)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the transport's exceptions into ours."""
    handled = sys.exception()
    try:
        yield
    except (OSError, urllib3.exceptions.HTTPError) as error:
        failure = _translate(error)
        _forget_request(error, handled)
        raise failure from error


def _translate(error: OSError | urllib3.exceptions.HTTPError) -> XRTError:  # noqa: PLR0911 - a table
    """Return our error for one of the transport's, telling whether anything was sent."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return ServiceUnreachableError("The service did not accept a connection in time.", sent=False)
    if isinstance(error, requests.exceptions.SSLError):
        if _untrusted(error):
            return ServiceUnreachableError(
                "No trusted connection to the service could be made: its certificate was not accepted.",
                sent=False,
            )
        # Encryption can also break after the request has gone out.
        return ServiceUnreachableError("The encrypted connection to the service broke.")
    if isinstance(error, requests.exceptions.Timeout):
        return ServiceUnreachableError("The service did not answer in time.")
    if isinstance(error, requests.exceptions.ConnectionError):
        if _nothing_sent(error):
            return ServiceUnreachableError(
                "No connection to the service could be made; check the network and the base URL.", sent=False
            )
        return ServiceUnreachableError("The connection to the service broke.")
    if isinstance(error, urllib3.exceptions.ReadTimeoutError):
        return ServiceUnreachableError("The service stopped sending on the way.")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return ConfigurationError(
            f"No connection to the service could be prepared ({type(error).__name__}); "
            "check the proxy that the environment names."
        )
    if isinstance(error, requests.exceptions.RequestException | urllib3.exceptions.HTTPError):
        return ServiceUnreachableError(f"The exchange with the service failed ({type(error).__name__}).")
    # What is left comes before any connection: the file of certificates that the environment names is not there.
    return ConfigurationError(f"No connection to the service could be prepared: {error}")


def _forget_request(error: BaseException, handled: BaseException | None) -> None:
    """Take the request, which holds the registered address, out of an exception and all that it drags along.

    The exceptions of `requests` keep the request itself, and the frames of their tracebacks its body. Both
    would go wherever a program sends an error with its causes.

    Args:
        error: The exception, of which kind and text are kept.
        handled: What was being handled when the exchange began; it is someone else's, and left alone.
    """
    seen = {id(handled)}
    found: list[object] = [error]
    while found:
        item = found.pop()
        if not isinstance(item, BaseException) or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, requests.exceptions.RequestException):
            item.request = item.response = None
        item.__traceback__ = None
        found += [item.__cause__, item.__context__, *item.args, *vars(item).values()]


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
    if status in (302, 303):
        # Either may come after the service did what it was asked.
        return AnswerError(f"The service redirects the call (HTTP {status}); check the base URL.")
    hint = " Is the base URL right?" if response.is_redirect or status in (404, 405) else ""
    # What was turned away before the service looked at it made no job; a 5xx tells nothing of the kind.
    turned_away = response.is_redirect or (400 <= status < 500 and status != 408)  # noqa: PLR2004 - HTTP's classes
    return ServiceUnreachableError(
        f"The service answered HTTP {status}.{hint}",
        status=status,
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        sent=not turned_away,
    )


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if re.fullmatch(r"\s*[0-9]+\s*", value):
        return float(value)
    seconds = _seconds_until(value)
    return None if seconds is None else max(0.0, seconds)


def _seconds_until(date: str) -> float | None:
    """Return how far a date of HTTP is ahead of our clock; None where it is not one."""
    try:
        return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None


def _header_int(response: requests.Response, name: str) -> int | None:
    value = response.headers.get(name, "")
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes.
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _read(response: requests.Response) -> bytes:
    """Return the body of an answer to a call, unpacked, as long as it is of reasonable size."""
    if (_header_int(response, "Content-Length") or 0) > _MAX_ANSWER_BYTES:
        raise _too_large()
    encodings = [
        name
        for name in re.split(r"[\s,]+", response.headers.get("Content-Encoding", "").lower())
        if name in ("gzip", "x-gzip", "deflate")
    ]
    if len(encodings) > _MAX_ENCODINGS:
        raise AnswerError(
            f"The answer is packed {len(encodings)} times over; it is not the service speaking."
        )
    pieces = _bounded(_chunks(response))
    for _ in encodings:
        pieces = _bounded(_unpacked(pieces))
    # One buffer, as an object for each of very many small pieces would take a multiple of their size.
    body = io.BytesIO()
    for piece in pieces:
        body.write(piece)
    return body.getvalue()


def _bounded(pieces: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > _MAX_ANSWER_BYTES:
            raise _too_large()
        yield piece


def _too_large() -> AnswerError:
    return AnswerError(f"The answer is larger than {_MAX_ANSWER_BYTES // 2**20} MiB.")


def _unpacked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Undo one `Content-Encoding`, a bounded piece at a time: a few kB may stand for many GB.

    What urllib3 unpacks is bounded from its version 2.6 on only.
    """
    unpacker = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        for piece in pieces:
            rest = piece
            while rest and not unpacker.eof:
                if data := unpacker.decompress(rest, _CHUNK_BYTES):
                    yield data
                rest = unpacker.unconsumed_tail
        if data := unpacker.flush():
            yield data
    except zlib.error:
        raise AnswerError("The answer is labelled as packed, but cannot be unpacked.") from None
    if not unpacker.eof:
        raise AnswerError("The packed answer breaks off.")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """Give what has arrived as soon as it has: waiting for a full chunk would outlast every time-out.

    It is not unpacked: a file is kept as it is, whatever its `Content-Encoding` says of it.
    """
    while True:
        with _translated():
            chunk = response.raw.read1(_CHUNK_BYTES, decode_content=False)
        if not chunk:
            return
        yield chunk
