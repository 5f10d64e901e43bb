"""What can go wrong, by name.

Every error has one base, `XRTError`, which is never raised itself. The message is positional and
complete; facts that a program may want are keyword-only attributes with defaults, so that every
error survives pickling (Prefect moves errors between processes). No message ever holds the
registered address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefect_xrt.protocol import Job, Outcome
    from prefect_xrt.reports import BuildReport

__all__ = [
    "AnswerError",
    "ArchiveError",
    "ConfigurationError",
    "DeadlineError",
    "FailedLooksError",
    "ForeignURLError",
    "InvalidRequestError",
    "JobNotFoundError",
    "OutputError",
    "ProductMissingError",
    "ProductsError",
    "RefusedError",
    "RequestRefusedError",
    "RequestWarning",
    "ResultFileError",
    "ServiceUnreachableError",
    "ServiceWarning",
    "SubmitUncertainError",
    "UnknownUserError",
    "UnsafeArchiveError",
    "WaitError",
    "XRTError",
    "asked_wait_s",
    "is_transient",
    "obeyed_wait_s",
]


class XRTError(Exception):
    """The base of all errors of this package; never raised itself.

    Args:
        message: What happened, to which job and product, and what to do now.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class ConfigurationError(XRTError):
    """The account, the base URL or another setting is missing or cannot be right; nothing was sent."""


class InvalidRequestError(XRTError, ValueError):
    """A request cannot be built from what was given; nothing was sent.

    Args:
        message: All problems, a line each, with the path of the field.
        problems: The same as pairs (path of the field, what is wrong with it).
    """

    def __init__(self, message: str, *, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple((path, text) for path, text in problems)


class ServiceUnreachableError(XRTError):
    """The service did not answer: no connection, a time-out, or an HTTP error such as 502.

    Args:
        message: What was tried and what came back.
        status: The HTTP status, where there was one.
        retry_after_s: How long the service asked to be left alone, in seconds.
        sent: Whether the service may have received the request.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.sent = sent


class AnswerError(XRTError):
    """What came back is not the service speaking: a page instead of JSON, half an answer, a wrong shape."""


class ForeignURLError(AnswerError):
    """The service points to another host than the one configured; nothing was fetched from there."""


class RefusedError(XRTError):
    """The service understood and said no.

    Args:
        message: The service's words, with its parameter names turned into the names of the fields.
        reasons: Its list of reasons: pairs (label, texts).
    """

    def __init__(self, message: str, *, reasons: Sequence[tuple[str, Sequence[str]]] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple((label, tuple(texts)) for label, texts in reasons)


class RequestRefusedError(RefusedError):
    """The service did not accept the parameters of a request; no job was made."""


class UnknownUserError(RefusedError):
    """The service does not know the registered address."""


class JobNotFoundError(RefusedError):
    """The job does not exist, or belongs to someone else."""


class SubmitUncertainError(XRTError):
    """A request was sent and no answer came: a job may exist. Never repeated blindly.

    Args:
        message: What happened and how to look for the job.
        name: The name of the object in the request, to find it in the list of jobs.
        candidates: The IDs of the jobs that it may have become, where the service's list tells.
    """

    def __init__(self, message: str, *, name: str | None = None, candidates: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.candidates = tuple(candidates)


class ProductMissingError(XRTError):
    """The service has no file for this product of this job."""


class ArchiveError(XRTError):
    """A downloaded archive is incomplete or damaged; nothing was put in place."""


class UnsafeArchiveError(ArchiveError):
    """An archive holds something that must not be unpacked: an absolute path, `..`, a device, a bomb."""


class ResultFileError(XRTError):
    """A file of results is damaged, or it or a bundle holds something else than it should; nothing was read."""


class OutputError(XRTError):
    """Files cannot be written where they should go: no folder, no permission, no space."""


class WaitError(XRTError):
    """A wait ended before the products did; the job lives on.

    Args:
        message: Which products are pending, and how to attach to the job again.
        job: The job.
        outcome: The last statuses, where there were any.
        report: What was built and downloaded all the same, where a flow did so.
    """

    def __init__(
        self,
        message: str,
        *,
        job: Job | None = None,
        outcome: Outcome | None = None,
        report: BuildReport | None = None,
    ) -> None:
        super().__init__(message)
        self.job = job
        self.outcome = outcome
        self.report = report


class DeadlineError(WaitError):
    """The wait reached its deadline."""


class FailedLooksError(WaitError):
    """Too many looks in a row told nothing: the service was away, or spoke of nothing that was asked."""


class ProductsError(XRTError):
    """Not every product is ready: some or all failed or were cancelled.

    Args:
        message: Which product ended how.
        outcome: Every product's last status.
        report: What was built and downloaded all the same, where a flow did so.
    """

    def __init__(
        self, message: str, *, outcome: Outcome | None = None, report: BuildReport | None = None
    ) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.report = report


class RequestWarning(UserWarning):
    """Something in a request file was kept, ignored or changed, and its owner should know."""


class ServiceWarning(UserWarning):
    """The service speaks of itself: a deprecation, or a newer version of its interface."""


_OBEYED_AT_MOST_S = 3600.0
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})


def is_transient(error: BaseException) -> bool:
    """Tell whether the same read may succeed if it is tried again soon."""
    if isinstance(error, ServiceUnreachableError):
        return error.status is None or error.status in _TRANSIENT_STATUS
    return isinstance(error, AnswerError) and not isinstance(error, ForeignURLError)


def asked_wait_s(error: BaseException | None) -> float:
    """Return for how long the service asked to be left alone, in seconds."""
    return (error.retry_after_s or 0.0) if isinstance(error, ServiceUnreachableError) else 0.0


def obeyed_wait_s(error: BaseException | None) -> float:
    """Return for how long it is left alone where hours are waited for anyway, in seconds: an hour at the most."""
    return min(asked_wait_s(error), _OBEYED_AT_MOST_S)
