"""How the service says it: paths, names, codes, and what its answers mean. No I/O.

Everything that came over the wire is looked at here before anyone believes it: an answer that is
not what the service documents raises `AnswerError`, a refusal raises `RefusedError` or one of its
kinds, and only what is left becomes a `Job`, a `ProductStatus` or an `Outcome`.

Source: the service's pages JobStatus, RequestJob, CancelJob, RetrieveProducts and History, and the
official client, swifttools 4.0.5 (`swifttools.ukssdc.xrt_prods`, API version 1.12).
"""

from __future__ import annotations

import json
import logging
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    JobNotFoundError,
    ProductsError,
    RefusedError,
    RequestRefusedError,
    ServiceWarning,
    UnknownUserError,
)
from prefect_xrt.parameters import PRODUCT_FLAGS, describe_wire_name
from prefect_xrt.request import LightCurve, Product

__all__ = [
    "API_NAME",
    "API_VERSION",
    "BASE_URL",
    "DATA_API_VERSION",
    "HELP_DESK",
    "PATHS",
    "SHORT_NAMES",
    "ArchiveFormat",
    "CancelResult",
    "CancelledProduct",
    "Job",
    "JobSummary",
    "Outcome",
    "ProductState",
    "ProductStatus",
    "RebinJob",
    "as_number",
    "check_answer",
    "check_data_answer",
    "choose_products",
    "decode_cancel",
    "decode_count",
    "decode_jobs",
    "decode_json",
    "decode_old_job",
    "decode_rebin",
    "decode_rebin_status",
    "decode_status",
    "decode_submit",
    "encode_binning",
    "file_name",
    "progress_text",
    "what",
]

BASE_URL = "https://www.swift.ac.uk/user_objects"
HELP_DESK = "swifthelp@leicester.ac.uk"
API_NAME = "xrt_prods"
API_VERSION = "1.12"
DATA_API_VERSION = "1.0.5"
"""Of the interface at `/API/main.php`, which has a version of its own."""

PATHS: Mapping[str, str] = {
    "submit": "run_userobject.php",
    "status": "checkProductStatus.php",
    "cancel": "canceljob.php",
    "count": "getNumJobs.php",
    "jobs": "listOldJobs.php",
    "old job": "getOldProduct.php",
    Product.STANDARD_POS: "tprods/getPSFPos.php",
    Product.ENHANCED_POS: "tprods/getEnhPos.php",
    Product.ASTROM_POS: "tprods/getAstromPos.php",
    Product.LIGHT_CURVE: "tprods/getLCData.php",
    Product.SPECTRUM: "tprods/getSpecData.php",
    Product.SOURCE_DET: "tprods/getSourceDetResults.php",
    "data": "/API/main.php",
}
"""Where each act is: below the base URL, or, with a slash before it, below its origin. A product's name
stands for retrieving what it found as data."""

SHORT_NAMES: Mapping[Product, str] = {
    Product.LIGHT_CURVE: "lc",
    Product.SPECTRUM: "spec",
    Product.STANDARD_POS: "psf",
    Product.ENHANCED_POS: "enh",
    Product.ASTROM_POS: "xastrom",
    Product.IMAGE: "image",
    Product.SOURCE_DET: "sourceDet",
}

ArchiveFormat = Literal["tar.gz", "tar", "zip"]
"""The formats in which the service bundles a product's files."""

NO_PROGRESS = "No progress information available"
NOT_REPORTED = -10
_MAX_DEPTH = 100
_MAX_VALUES = 10**6
_MAX_NUMBER = 10**18
_TEXT_LIMIT = 500
_NUMBER = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_ACTIVE, _DONE = 1, 2
_COUNT = re.compile(r"(\d{1,9})\s*/\s*(\d{1,9})")
_CLOCK = re.compile(r"(\d{1,6}):([0-5]\d):([0-5]\d)")


class ProductState(StrEnum):
    """What a status code means; code compares this instead of numbers."""

    REQUESTED = "requested"
    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    READY = "ready"
    FAILED = "failed"
    ALARM = "alarm"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


_STATE_OF_CODE: Mapping[int, ProductState] = {
    -4: ProductState.CANCELLED,
    -3: ProductState.ALARM,
    -2: ProductState.ALARM,
    -1: ProductState.FAILED,
    1: ProductState.REQUESTED,
    2: ProductState.QUEUED,
    3: ProductState.RUNNING,
    4: ProductState.READY,
    5: ProductState.WAITING,
}
_NO_SUCH_JOB = re.compile(
    r"\bjob\b.*\b(not owned|not exist|no such|not found|unknown)|\bno such job\b", re.IGNORECASE
)
_ENDED = frozenset({ProductState.READY, ProductState.FAILED, ProductState.ALARM, ProductState.CANCELLED})


class _Noun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Noun):
    """A request that the service has accepted; all that any later step needs."""

    id: int = Field(description="The JobID.")
    url: str = Field(description="Where the service puts the job's files.")
    name: str | None = Field(default=None, description="The name given to the object.")
    products: tuple[Product, ...] = Field(min_length=1, description="The products that this job builds.")
    parameters: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="The parameters as accepted (`jobPars`), in the service's spelling, without the account.",
    )
    submitted_at: AwareDatetime | None = Field(
        default=None, description="When the request was accepted, UTC; unknown for a job attached by its ID."
    )

    def __str__(self) -> str:
        return f"job {self.id} ({self.name})" if self.name else f"job {self.id}"


class JobSummary(_Noun):
    """One line of the list of a user's jobs."""

    id: int
    name: str
    submitted_at: AwareDatetime | None = Field(description="UTC.")
    products: tuple[Product, ...] = Field(
        description="As listed; the list does not tell of source detection."
    )
    has_products: bool = Field(description="Whether the files are still on the server.")


class ProductStatus(_Noun):
    """The status of one product of a job at one look."""

    product: Product
    code: int | None = Field(description="The service's statusCode; -10 where the answer held none.")
    text: str = Field(description="The service's statusText.")
    progress: dict[str, JsonValue] = Field(
        default_factory=dict, description="The service's structure, untouched."
    )

    @property
    def state(self) -> ProductState:
        """What the code means; a code never seen before is unknown, never a success."""
        return (
            ProductState.UNKNOWN if self.code is None else _STATE_OF_CODE.get(self.code, ProductState.UNKNOWN)
        )

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to this product, whatever the outcome."""
        return self.state in _ENDED

    @property
    def progress_text(self) -> str:
        """The progress as the official client formats it."""
        return progress_text(self.progress)

    @property
    def active_step(self) -> str | None:
        """The steps at work, from the outermost to the innermost; None where there is no progress."""
        return " > ".join(str(step.get("StepLabel", "")) for step in self._active_steps()) or None

    @property
    def active_detail(self) -> str | None:
        """What the innermost step works on, such as "Working on observation 14 / 156"."""
        details = [str(step["StepExtra"]) for step in self._active_steps() if step.get("StepExtra")]
        return details[-1] if details else None

    def _active_steps(self) -> Iterator[dict[str, JsonValue]]:
        steps = self.progress.get("ProgressSteps")
        while isinstance(steps, list):
            step = next((s for s in steps if isinstance(s, dict) and _as_int(s.get("StepStatus")) == 1), None)
            if step is None:
                return
            yield step
            steps = step.get("SubStep")

    @property
    def running_time(self) -> str | None:
        """How long the product has been executing, "HH:MM:SS"; not the time since its submission."""
        value = self.progress.get("TimeRunning")
        return value if isinstance(value, str) else None

    @property
    def running_s(self) -> float | None:
        """How long the product has been executing, in seconds; None where the service does not tell."""
        match = _CLOCK.fullmatch((self.running_time or "").strip())
        if match is None:
            return None
        hours, minutes, seconds = map(int, match.groups())
        return 3600.0 * hours + 60 * minutes + seconds

    @property
    def done(self) -> float | None:
        """Which part is done, from 0 to 1, by the service's own steps; None where it tells none.

        All steps count the same. What has ended counts whole, however it ended.
        """
        return self._done_at_least_and_most[0]

    @property
    def done_soon(self) -> float | None:
        """Which part is done once the innermost step at work is, 0 to 1: it may be over at any moment."""
        return self._done_at_least_and_most[1]

    @property
    def done_with_step(self) -> float | None:
        """Which part is done once the outermost step at work is, 0 to 1."""
        if self.ended:
            return 1.0
        steps = list(_steps(self.progress.get("ProgressSteps")))
        begun = [step for step in steps if as_number(step.get("StepStatus")) in (_ACTIVE, _DONE)]
        return len(begun) / len(steps) if steps else None

    @property
    def _done_at_least_and_most(self) -> tuple[float, float] | tuple[None, None]:
        if self.ended:
            return 1.0, 1.0
        steps = list(_steps(self.progress.get("ProgressSteps")))
        return _done(steps) if steps else (None, None)

    def as_service(self) -> dict[str, JsonValue]:
        """Return the four entries that the official client's `checkProductStatus()` gives per product."""
        return {
            "statusCode": self.code,
            "statusText": self.text,
            "progress": self.progress,
            "progressText": self.progress_text,
        }


class Outcome(_Noun):
    """A job and the last known status of its products, or of those asked for.

    It tells whether everything has ended (`complete`); whether it went well is asked separately
    (`ready`, `failed`, `alarming`, `cancelled`, `succeeded`).
    """

    job: Job
    statuses: dict[Product, ProductStatus]
    looked_at: AwareDatetime = Field(description="When the service was asked, UTC.")

    def _in(self, *states: ProductState) -> tuple[Product, ...]:
        return tuple(product for product, status in self.statuses.items() if status.state in states)

    @property
    def ready(self) -> tuple[Product, ...]:
        """The products whose files are available."""
        return self._in(ProductState.READY)

    @property
    def failed(self) -> tuple[Product, ...]:
        """The products that the service could not build (-1), without the alarming ones."""
        return self._in(ProductState.FAILED)

    @property
    def alarming(self) -> tuple[Product, ...]:
        """The products with codes -2 or -3, of which the service wants to be told."""
        return self._in(ProductState.ALARM)

    @property
    def cancelled(self) -> tuple[Product, ...]:
        """The products that the user cancelled."""
        return self._in(ProductState.CANCELLED)

    @property
    def pending(self) -> tuple[Product, ...]:
        """The products that have not ended."""
        return tuple(product for product, status in self.statuses.items() if not status.ended)

    @property
    def ended(self) -> tuple[Product, ...]:
        """The products to which nothing more will happen."""
        return tuple(product for product, status in self.statuses.items() if status.ended)

    @property
    def complete(self) -> bool:
        """Whether every product asked for has ended, whatever the outcome."""
        return not self.pending

    @property
    def succeeded(self) -> bool:
        """Whether every product asked for is ready."""
        return len(self.ready) == len(self.statuses)

    def as_service(self) -> dict[str, dict[str, JsonValue]]:
        """Return what the official client's `checkProductStatus()` gives: long name → four entries."""
        return {product.value: status.as_service() for product, status in self.statuses.items()}

    def describe(self) -> str:
        """Return one line, such as "LightCurve ready; Spectrum failed (-1, Internal error)"."""
        return "; ".join(
            f"{product.value} {status.state.value}"
            + ("" if status.state is ProductState.READY else f" ({status.code}, {status.text})")
            for product, status in self.statuses.items()
        )

    def require(self) -> None:
        """Raise unless every product is ready, for callers who want all or nothing.

        Raises:
            ProductsError: A product failed, was cancelled, or has not ended.
        """
        if not self.succeeded:
            raise ProductsError(f"Not every product of {self.job} is ready: {self.describe()}.", outcome=self)


class RebinJob(_Noun):
    """A request to bin the light curve of a finished job again; its ID is not that of a job."""

    id: int = Field(description="The ID of the request.")
    job: Job = Field(description="The job whose light curve it is.")
    parameters: dict[str, JsonValue] = Field(
        description="The new binning, by the names that the service's interface for data has for it."
    )

    def __str__(self) -> str:
        return f"the rebinning {self.id} of {self.job}"


class CancelledProduct(_Noun):
    """What the service answered to the wish to cancel one product."""

    product: Product
    code: int = Field(
        description="0 cancelled, 1 probably finished, 2 no record, 3 unknown, 4 not determined."
    )
    text: str

    @property
    def cancelled(self) -> bool:
        """Whether the product was cancelled by this call."""
        return self.code == 0

    @property
    def settled(self) -> bool:
        """Whether nothing is left to cancel: it was cancelled, or had probably finished."""
        return self.code in (0, 1)


class CancelResult(_Noun):
    """The answers to one cancellation, per product."""

    job_id: int
    products: dict[Product, CancelledProduct]

    @property
    def complete(self) -> bool:
        """Whether every product asked for was cancelled; else the cancellation was partial or did nothing."""
        return all(entry.cancelled for entry in self.products.values())


def choose_products(job: Job, products: Iterable[Product | str] | None) -> tuple[Product, ...]:
    """Return the products meant, in the job's order.

    Args:
        job: The job whose products are meant.
        products: Long names; None or "all" for every product of the job.

    Raises:
        ConfigurationError: A name is no product, or the job does not build it, or none is left.
    """
    if products is None or products == "all":
        return job.products
    names = [products] if isinstance(products, str) else list(products)
    chosen = set()
    for name in names:
        try:
            product = Product(name)
        except ValueError:
            known = ", ".join(p.value for p in Product)
            raise ConfigurationError(f"{name!r} is not a product; the products are {known}.") from None
        if product not in job.products:
            held = ", ".join(p.value for p in job.products)
            raise ConfigurationError(f"{job} does not build {product.value}; it builds {held}.")
        chosen.add(product)
    if not chosen:
        raise ConfigurationError("No product was named.")
    return tuple(product for product in job.products if product in chosen)


def what(products: Iterable[Product]) -> str:
    """Return the comma list of short names that the service calls `what`."""
    return ",".join(SHORT_NAMES[product] for product in products)


def file_name(product: Product, archive_format: ArchiveFormat) -> str:
    """Return the name of a product's bundle below the job's URL, such as `lc.tar.gz`."""
    return f"{SHORT_NAMES[product]}.{archive_format}"


_BINNING_NAMES: Mapping[str, str] = {
    "binning": "binMeth",
    "pc_counts": "pcCounts",
    "wt_counts": "wtCounts",
    "dynamic": "dynamic",
    "rate_factor": "rateFact",
    "bin_factor": "binFact",
    "min_counts": "minCounts",
    "min_snr": "minSNR",
    "pc_bin_s": "pcBinTime",
    "wt_bin_s": "wtBinTime",
    "pc_max_gap_s": "pcMaxGap",
    "wt_max_gap_s": "wtMaxGap",
    "match_hardness_ratio": "matchHR",
    "pc_hardness_bin_s": "pcHRBinTime",
    "wt_hardness_bin_s": "wtHRBinTime",
    "min_fractional_exposure": "minFracExp",
    "min_energy_kev": "minEnergy",
    "max_energy_kev": "maxEnergy",
    "soft_low_kev": "softLo",
    "soft_high_kev": "softHi",
    "hard_low_kev": "hardLo",
    "hard_high_kev": "hardHi",
    "min_significance_sigma": "minSig",
    "grades": "grades",
    "allow_upper_limits": "allowUL",
    "allow_bayes": "allowBayes",
    "bayes_counts": "bayesCounts",
    "bayes_snr": "bayesSNR",
    "time_format": "timeFormat",
}


def encode_binning(binning: LightCurve) -> dict[str, JsonValue]:
    """Spell a binning for the service's interface for data, by the names that the official client hands on.

    Raises:
        ConfigurationError: It does not say how to bin, or names observations, which cannot be chosen anew.

    Source: swifttools 4.0.5, `ukssdc.data.download._rebinLightCurve`, and productVars.py for the names.
    """
    if binning.binning is None:
        raise ConfigurationError("The new binning does not say how to bin: give `binning`.")
    if binning.observations or binning.which_data:
        raise ConfigurationError("Observations cannot be chosen anew when a light curve is binned again.")
    given = {name: getattr(binning, field) for field, name in _BINNING_NAMES.items()}
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in given.items()
        if value is not None
    }


def decode_json(body: bytes, content_type: str = "", *, user_id: str = "") -> dict[str, JsonValue]:
    """Return the object in the body of an answer.

    Args:
        body: What came.
        content_type: The HTTP header of that name.
        user_id: The registered address; wherever the answer speaks of it, "(your address)" stands instead.

    Raises:
        AnswerError: A page instead of JSON, half an answer, another shape, or one nested or
            crowded beyond reason.
    """
    if sum(body.count(mark) for mark in b"[{,") > _MAX_VALUES:
        raise AnswerError(f"The answer holds more than {_MAX_VALUES} values.")
    data: JsonValue = None
    trouble = None
    try:
        data = json.loads(body)
    except RecursionError:
        trouble = "The answer is nested too deeply to be the service's."
    except ValueError:
        trouble = _describe_body(body, content_type, user_id)
    # Not raised in the handler: the exception that it would bring along holds the whole answer.
    if trouble:
        raise AnswerError(trouble)
    if not isinstance(data, dict):
        raise AnswerError(f"The answer is a JSON {type(data).__name__}, not an object.")
    _check_values(data)
    return {key: _without(value, user_id) for key, value in data.items()} if user_id else data


def _describe_body(body: bytes, content_type: str, user_id: str) -> str:
    """Say what came instead of JSON."""
    head = body[:4096]
    if not (head.lstrip().startswith(b"<") or "html" in content_type.lower()):
        return f"The answer is not JSON, or only a part of it ({len(body)} bytes)."
    title = re.search(rb"<title>(.*?)</title>", head, re.IGNORECASE | re.DOTALL)
    named = f" titled {_one_line(_redact(title[1].decode('utf-8', 'replace'), user_id))!r}" if title else ""
    return f"A web page{named} came instead of an answer of the service."


def _check_values(data: JsonValue) -> None:
    """Refuse what `json.loads` takes but nobody could write down again."""
    level: list[JsonValue] = [data]
    for _ in range(_MAX_DEPTH):
        deeper: list[JsonValue] = []
        for value in level:
            if isinstance(value, dict):
                deeper.extend(value)
                deeper.extend(value.values())
            elif isinstance(value, list):
                deeper.extend(value)
            elif isinstance(value, str) and not value.isascii() and _SURROGATE.search(value):
                raise AnswerError("The answer holds half a character.")
            elif isinstance(value, float) and not math.isfinite(value):
                raise AnswerError("The answer holds a number that is none.")
        level = deeper
        if not level:
            return
    raise AnswerError(f"The answer is nested more than {_MAX_DEPTH} levels deep.")


def _without(value: JsonValue, user_id: str) -> JsonValue:
    if isinstance(value, dict):
        return {_redact(key, user_id): _without(entry, user_id) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without(entry, user_id) for entry in value]
    return _redact(value, user_id) if isinstance(value, str) else value


_logger = logging.getLogger(__name__)
_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        try:
            warnings.warn(message, ServiceWarning, stacklevel=2)
        except ServiceWarning:
            # Where warnings are errors, a notice must still not cost the job that it came with.
            _logger.warning("%s", message)


_ADVICE: Mapping[type[RefusedError], str] = {
    RequestRefusedError: "No job was made: change the request, or wait where it says so, and run it again.",
    UnknownUserError: f"Correct the registered address, or register it at {BASE_URL}/register.php.",
    JobNotFoundError: "`prefect-xrt jobs` lists the jobs of this account.",
}


def check_answer(
    data: Mapping[str, JsonValue], *, refusal: type[RefusedError] = RefusedError
) -> Mapping[str, JsonValue]:
    """Return the answer if the service said yes.

    Notices of a deprecation or a newer interface are warned about once.

    Args:
        data: The answer.
        refusal: What to raise for a refusal that tells no more.

    Raises:
        AnswerError: There is no `OK`, or it is neither 0 nor another number.
        RefusedError: `OK` is 0; a kind of it where the reason is known.
    """
    ok = _as_int(data.get("OK"))
    if ok is None:
        raise AnswerError("The answer does not say whether it is OK; it is not the service speaking.")
    _check_notices(data)
    if ok in (1, 2):
        return data
    if ok != 0:
        raise AnswerError(f"The answer says OK: {ok}, which the service does not document.")
    reasons = _decode_reasons(data.get("listErr"))
    error = data.get("ERROR")
    given = isinstance(error, str) and error.strip()
    said = (
        _clean(str(error)) if given else "The service refused." if reasons else "The service gave no reason."
    )
    lines = [said]
    for label, texts in reasons:
        lines += [f"  {label}", *(f"    {text}" for text in texts)]
    if re.search(r"\buser\b.*\bnot (recognised|registered|validated)", said, re.IGNORECASE):
        refusal = UnknownUserError
    elif refusal is RefusedError and _NO_SUCH_JOB.search(said):
        refusal = JobNotFoundError
    advice = _ADVICE.get(refusal)
    if advice and len(lines) > 1:
        lines.append(advice)
    elif advice:
        lines = [f"{said.rstrip('.')}. {advice}"]
    raise refusal("\n".join(lines), reasons=reasons)


def check_data_answer(data: Mapping[str, JsonValue]) -> Mapping[str, JsonValue]:
    """Return the answer of `/API/main.php` if it said yes; it says no in another way than the rest.

    Raises:
        AnswerError: It says neither yes nor no.
        RefusedError: It said no.

    Source: swifttools 4.0.5, `ukssdc.main.submitAPICall`.
    """
    if "ERROR" in data:
        reason = data.get("ERRORTEXT")
        text = _one_line(reason) if isinstance(reason, str) else ""
        raise RefusedError(f"{text or 'The service gave no reason'} ({_one_line(str(data['ERROR']))}).")
    if not data.get("OK"):
        raise AnswerError("The answer does not say whether it is OK; it is not the service speaking.")
    return data


def _check_notices(data: Mapping[str, JsonValue]) -> None:
    notice = data.get("deprecationWarning")
    if notice:
        text = notice.get("message") if isinstance(notice, dict) else notice
        _warn_once(f"The service announces a deprecation: {_one_line(str(text or notice))}")
    version = str(data.get("APIVersion", ""))
    if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}", version) and _version(version) > _version(API_VERSION):
        _warn_once(f"The service speaks version {version} of its interface, newer than {API_VERSION}.")


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _decode_reasons(value: JsonValue) -> list[tuple[str, list[str]]]:
    reasons: list[tuple[str, list[str]]] = []
    for entry in value if isinstance(value, list) else []:
        if isinstance(entry, dict):
            texts = entry.get("list")
            texts = texts if isinstance(texts, list) else [texts]
            reasons.append(
                (
                    _clean(str(entry.get("label") or "")),
                    [_clean(str(text)) for text in texts if text is not None],
                )
            )
        elif isinstance(entry, str):
            reasons.append((_clean(entry), []))
    return reasons


def _clean(text: str) -> str:
    """Put a text of the service into one line, with the names of our fields for its parameters."""
    return re.sub(r"\b[A-Za-z_]\w*\b", lambda word: describe_wire_name(word[0]) or word[0], _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_TEXT_LIMIT]


def _redact(text: str, user_id: str) -> str:
    return _address(user_id).sub("(your address)", text) if user_id else text


@lru_cache(maxsize=8)
def _address(user_id: str) -> re.Pattern[str]:
    spellings = "|".join(map(re.escape, dict.fromkeys((user_id, quote(user_id, safe="")))))
    return re.compile(rf"(?<![^\W_])(?:{spellings})(?![^\W_])", re.IGNORECASE)


def _as_int(value: JsonValue) -> int | None:
    """Return a whole number that came as a number or as text; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value) else None
    return value if isinstance(value, int) and abs(value) < _MAX_NUMBER else None


def as_number(value: JsonValue) -> float | None:
    """Return a finite number that came as a number or as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not _NUMBER.fullmatch(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _as_bool(value: JsonValue) -> bool:
    return value is True or _as_int(value) == 1


def _job_id(data: Mapping[str, JsonValue]) -> int | None:
    job_id = _as_int(data.get("JobID"))
    return job_id if job_id is not None and job_id > 0 else None


def _make_job(
    job_id: int,
    data: Mapping[str, JsonValue],
    asked: Sequence[Product],
    submitted_at: datetime | None,
    name: str | None,
) -> Job:
    url = data.get("URL")
    if not isinstance(url, str) or len(url.split()) != 1:
        raise AnswerError(f"The answer for job {job_id} does not say where its files will be.")
    given = data.get("jobPars")
    parameters = {k: v for k, v in given.items() if k != "UserID"} if isinstance(given, dict) else {}
    products = tuple(p for p in Product if p in asked or _as_bool(parameters.get(PRODUCT_FLAGS[p])))
    accepted = parameters.get("name")
    return Job(
        id=job_id,
        url=url.strip(),
        name=accepted if isinstance(accepted, str) else name,
        products=products,
        parameters=parameters,
        submitted_at=submitted_at,
    )


def decode_submit(
    data: Mapping[str, JsonValue],
    products: Sequence[Product],
    submitted_at: datetime,
    name: str | None = None,
) -> Job:
    """Return the job that the service made of a request.

    Args:
        data: The answer, checked by `check_answer`.
        products: The products asked for; the service may add to them.
        submitted_at: When it was accepted, UTC.
        name: The name asked for, where the answer does not repeat it.

    Raises:
        AnswerError: The answer lacks the job's ID or its URL.
    """
    job_id = _job_id(data)
    if job_id is None:
        raise AnswerError("The service said yes to the request but gave no JobID.")
    return _make_job(job_id, data, products, submitted_at, name)


def decode_old_job(data: Mapping[str, JsonValue], job_id: int) -> Job:
    """Return the job that belongs to an ID, as `decode_submit` would have made it.

    Raises:
        AnswerError: The answer lacks the URL, or names no product.
    """
    given = data.get("jobPars")
    if not (isinstance(given, dict) and any(_as_bool(given.get(flag)) for flag in PRODUCT_FLAGS.values())):
        raise AnswerError(f"The answer for job {job_id} does not say which products it builds.")
    return _make_job(job_id, data, (), None, None)


def decode_status(
    data: Mapping[str, JsonValue], job: Job, products: Sequence[Product], looked_at: datetime
) -> Outcome:
    """Return the statuses that an answer holds; a product that it leaves out has code -10.

    Raises:
        AnswerError: The answer is about another job.
    """
    answered = _job_id(data)
    if answered is not None and answered != job.id:
        raise AnswerError(f"Asked about {job}, the service answered about job {answered}.")
    statuses = {}
    for product in products:
        entry = data.get(SHORT_NAMES[product])
        if isinstance(entry, dict):
            progress = entry.get("progress")
            statuses[product] = ProductStatus(
                product=product,
                code=_as_int(entry.get("statusCode")),
                text=str(entry.get("statusText") or "Unknown status")[:_TEXT_LIMIT],
                progress=progress if isinstance(progress, dict) else {},
            )
        else:
            statuses[product] = ProductStatus(
                product=product, code=NOT_REPORTED, text="The server did not return the status"
            )
    return Outcome(job=job, statuses=statuses, looked_at=looked_at)


def decode_cancel(data: Mapping[str, JsonValue], job: Job, products: Sequence[Product]) -> CancelResult:
    """Return what was cancelled and what was not; a product left out counts as not determined (4)."""
    codes, texts = (data.get(key) for key in ("statusCodes", "status"))
    entries = {}
    for product in products:
        short = SHORT_NAMES[product]
        code = _as_int(codes.get(short)) if isinstance(codes, dict) else None
        text = texts.get(short) if isinstance(texts, dict) else None
        entries[product] = CancelledProduct(
            product=product,
            code=4 if code is None else code,
            text=text[:_TEXT_LIMIT] if isinstance(text, str) else "The server did not say",
        )
    return CancelResult(job_id=job.id, products=entries)


def decode_rebin(data: Mapping[str, JsonValue], job: Job, parameters: Mapping[str, JsonValue]) -> RebinJob:
    """Return what the service made of the wish to bin a light curve again.

    Raises:
        AnswerError: The answer has no ID.
    """
    rebin_id = _job_id(data)
    if rebin_id is None:
        raise AnswerError(f"The service said yes to a new binning of {job} but gave no JobID.")
    return RebinJob(id=rebin_id, job=job, parameters=dict(parameters))


def decode_rebin_status(data: Mapping[str, JsonValue]) -> ProductStatus:
    """Return how far a new binning is; its codes are those of products."""
    return ProductStatus(
        product=Product.LIGHT_CURVE,
        code=_as_int(data["status"]) if "status" in data else NOT_REPORTED,
        text=str(data.get("text") or "Unknown status")[:_TEXT_LIMIT],
    )


def decode_count(data: Mapping[str, JsonValue]) -> int:
    """Return the number of the user's active jobs.

    Raises:
        AnswerError: The answer has no such number.
    """
    count = _as_int(data.get("numJobs"))
    if count is None or count < 0:
        raise AnswerError("The answer does not tell the number of active jobs.")
    return count


def decode_jobs(data: Mapping[str, JsonValue]) -> tuple[JobSummary, ...]:
    """Return the user's jobs, newest first.

    Raises:
        AnswerError: There is no list, or an entry has no ID.
    """
    jobs = data.get("jobs")
    if not isinstance(jobs, list):
        raise AnswerError("The answer holds no list of jobs.")
    summaries = []
    for entry in jobs:
        job_id = _job_id(entry) if isinstance(entry, dict) else None
        if not isinstance(entry, dict) or job_id is None:
            raise AnswerError("An entry in the list of jobs has no JobID.")
        summaries.append(
            JobSummary(
                id=job_id,
                name=str(entry.get("Name") or ""),
                submitted_at=_utc(entry.get("DateSubmitted")),
                products=tuple(product for product in Product if _as_bool(entry.get(product.value))),
                has_products=_as_bool(entry.get("hasProd")),
            )
        )
    return tuple(summaries)


def _utc(value: JsonValue) -> datetime | None:
    try:
        return datetime.strptime(str(value), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def progress_text(progress: Mapping[str, JsonValue]) -> str:
    """Format the service's progress structure as the official client does.

    Two spaces of indent a level, `** label - ACTIVE -- extra**` for the step at work,
    `label - DONE` for finished ones, then how long the job has been running.

    Source: `swifttools` 4.0.5, `XRTProductRequest._buildProgressString`; the page JobStatus.
    """
    if _as_int(progress.get("GotProgress")) != 1:
        return NO_PROGRESS
    text = f"{progress['PreProgress']}\n" if "PreProgress" in progress else ""
    lines = []
    stack = [_steps(progress.get("ProgressSteps"))]
    while stack:
        step = next(stack[-1], None)
        if step is None:
            stack.pop()
        else:
            lines.append(f"{'  ' * len(stack)}{_step_text(step)}\n")
            stack.append(_steps(step.get("SubStep")))
    text += "".join(lines)
    if "TimeRunning" in progress:
        text += f"\nThe job has been running for {progress['TimeRunning']}\n"
    return text


def _steps(value: JsonValue) -> Iterator[dict[str, JsonValue]]:
    return (step for step in (value if isinstance(value, list) else []) if isinstance(step, dict))


def _done(steps: Sequence[Mapping[str, JsonValue]]) -> tuple[float, float]:
    """Return which part of steps is done, and which will be once what is at work now is."""
    least, most = zip(*map(_part, steps), strict=True)
    return sum(least) / len(steps), sum(most) / len(steps)


def _part(step: Mapping[str, JsonValue]) -> tuple[float, float]:
    status = as_number(step.get("StepStatus"))
    if status != _ACTIVE:
        return (1.0, 1.0) if status == _DONE else (0.0, 0.0)
    inner = list(_steps(step.get("SubStep")))
    least, most = _done(inner) if inner else (0.0, 1.0)
    # The steps inside one that is repeated begin anew each time: "Working on observation 14 / 156".
    counts = _COUNT.findall(str(step.get("StepExtra", "")))
    if counts:
        turn, turns = map(int, counts[-1])
        if 0 < turn <= turns:
            return (turn - 1 + least) / turns, (turn - 1 + most) / turns
    return least, most


def _step_text(step: Mapping[str, JsonValue]) -> str:
    label = str(step.get("StepLabel", ""))
    status = _as_int(step.get("StepStatus"))
    if status == _ACTIVE:
        extra = f" -- {step['StepExtra']}" if "StepExtra" in step else ""
        return f"** {label} - ACTIVE{extra}**"
    return f"{label} - DONE" if status == _DONE else label
