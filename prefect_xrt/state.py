"""What all processes of this user on this machine know of a service's jobs: whose each is, and when it was asked.

It lies in `$XDG_STATE_HOME/prefect-xrt`, else in `~/.local/state/prefect-xrt`, and is a convenience: without
it, nothing is lost.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from prefect_xrt.archive import write_text
from prefect_xrt.errors import OutputError
from prefect_xrt.protocol import Job, JobSummary, Outcome

__all__ = ["LocalClaims", "LocalLooks", "digest"]

_LATE = timedelta(minutes=15)
# File systems keep times less exactly than clocks tell them.
_SAME_LOOK_S = 0.001
_logger = logging.getLogger(__name__)


def _folder(kind: str, base_url: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state, "prefect-xrt", kind, digest(base_url))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process after the other into a folder; the lock dies with the process, and leaves nothing behind."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def digest(text: str) -> str:
    """Return a short name for a text, which does not tell it."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class LocalClaims:
    """The claims of all processes of this user on this machine, one of which gets each job.

    A claim is a link that leads nowhere, since a link is made with its contents at once or not at all. Where
    nothing can be written, every job counts as free.

    Args:
        base_url: The service that gave the jobs their IDs.
    """

    def __init__(self, base_url: str) -> None:
        self._folder = _folder("claims", base_url)

    def is_free(self, summary: JobSummary, owner: str) -> bool:
        """Whether a job belongs to nobody else on this machine."""
        return self._holder(summary.id, summary.submitted_at) in (None, digest(owner))

    def take(self, job: Job, owner: str) -> bool:
        """Make a job the owner's; False where it has become another's meanwhile."""
        place = self._folder / str(job.id)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if place.is_symlink() and self._holder(job.id, job.submitted_at) is None:
                place.unlink()  # of an ID that was given anew
            place.symlink_to(f"{datetime.now(UTC).isoformat()} {digest(owner)}")
        except FileExistsError:
            return self._holder(job.id, job.submitted_at) == digest(owner)
        except OSError as error:
            _logger.warning("It could not be noted that job %d is taken: %s", job.id, error)
        return True

    def _holder(self, job_id: int, submitted_at: datetime | None) -> str | None:
        """Return whose a job is; a claim that is older than the job is of another, as with services for tests."""
        try:
            at, holder = os.readlink(self._folder / str(job_id)).split()
            outdated = submitted_at and datetime.fromisoformat(at) < submitted_at - _LATE
        except (OSError, ValueError, TypeError):
            return None
        return None if outdated else holder


class LocalLooks:
    """When each job was last looked at, so that the service's pace is kept from one process to the next.

    Args:
        base_url: The service that gave the jobs their IDs.
    """

    def __init__(self, base_url: str) -> None:
        self._folder = _folder("looks", base_url)

    def last(self, job_id: int) -> float | None:
        """Return when a job was last looked at, in seconds since 1970; None if it is not known."""
        try:
            return (self._folder / f"{job_id}.json").stat().st_mtime
        except OSError:
            return None

    def take(self, job_id: int, at: float, known: float | None) -> bool:
        """Note that a job is looked at now, unless another process has looked at it since the look that is known.

        Args:
            job_id: The job.
            at: Now, in seconds since 1970.
            known: When it was last looked at, as far as the caller knows; None if it never was.

        Returns:
            Whether it may be looked at. Where nothing can be written, it may.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Of two that would look at the same moment, one gets to know of the other.
            with _locked(self._folder):
                last = self.last(job_id)
                if last is not None and (known is None or last > known + _SAME_LOOK_S):
                    return False
                self._note(job_id, at)
        except OSError as error:
            _logger.debug("The look at job %d could not be noted: %s", job_id, error)
        return True

    def _note(self, job_id: int, at: float) -> None:
        place = self._folder / f"{job_id}.json"
        place.touch()
        os.utime(place, (at, at))

    def end(self, outcome: Outcome) -> None:
        """Note how a job has ended; there is nothing more to look at."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_text(self._folder / f"{outcome.job.id}.json", outcome.model_dump_json())
            self._note(outcome.job.id, outcome.looked_at.timestamp())
        except (OutputError, OSError) as error:
            _logger.debug("The end of %s could not be noted: %s", outcome.job, error)

    def ended(self, job: Job) -> Outcome | None:
        """Return how a job has ended, if that was seen on this machine."""
        try:
            outcome = Outcome.model_validate_json((self._folder / f"{job.id}.json").read_bytes())
        except (OSError, ValidationError):
            return None
        return outcome if outcome.job.url == job.url and outcome.complete else None
