"""What stays beside the files, so that a job is found again without Prefect.

`submission.json` says that a request is about to be sent, and goes as soon as it is known what became
of it. `job.json` is written as soon as the service has accepted the request, before the first look;
`jobPars.json` holds the parameters as accepted, so that the request can be repeated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from prefect_xrt.archive import write_text
from prefect_xrt.errors import OutputError
from prefect_xrt.parameters import encode, same_request
from prefect_xrt.protocol import Job
from prefect_xrt.request import ProductRequest

__all__ = [
    "RECORD_NAME",
    "SUBMISSION_NAME",
    "JobRecord",
    "Submission",
    "read_record",
    "read_submission",
    "remove_submission",
    "write_record",
    "write_submission",
]

RECORD_NAME = "job.json"
PARAMETERS_NAME = "jobPars.json"
SUBMISSION_NAME = "submission.json"
_VERSION = 2


class JobRecord(BaseModel):
    """A job, and the run that owns its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=_VERSION, ge=1, le=_VERSION, description="The layout of this record.")
    job: Job
    flow_run_id: str | None = Field(default=None, description="The Prefect flow run that submitted the job.")
    owner: str | None = Field(
        default=None, description="What tells the submission from others of the same request."
    )
    request: dict[str, JsonValue] | None = Field(
        default=None,
        description="What was asked for, in the service's spelling; unknown for an attached job.",
    )
    reused: bool = Field(default=False, description="Whether the job was found, and is another run's.")
    finished_at: AwareDatetime | None = Field(
        default=None, description="When every product had ended and what is ready was here, UTC."
    )

    def answers(self, request: ProductRequest) -> bool:
        """Whether the job was made of the same request."""
        asked = encode(request)
        if self.request is not None:
            return self.request == asked
        return same_request(asked, self.job.parameters) is True


class Submission(BaseModel):
    """A request that was, or is about to be, sent, and of which it is not known whether it became a job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1, description="The layout of this record.")
    request: dict[str, JsonValue] = Field(description="What was asked for, in the service's spelling.")
    owner: str = Field(description="What tells this submission from others of the same request.")
    asked_at: AwareDatetime = Field(description="When it was sent first, UTC.")
    last_asked_at: AwareDatetime = Field(description="When it was sent last, UTC.")


_Record = TypeVar("_Record", JobRecord, Submission)


def read_record(directory: Path) -> JobRecord | None:
    """Return the record in a folder, or None if there is none.

    Raises:
        OutputError: There is one, but it cannot be read: it is damaged, or of a newer version.
    """
    return _read(directory / RECORD_NAME, JobRecord)


def read_submission(directory: Path) -> Submission | None:
    """Return what is open in a folder, or None if nothing is.

    Raises:
        OutputError: There is such a record, but it cannot be read: it is damaged, or of a newer version.
    """
    return _read(directory / SUBMISSION_NAME, Submission)


def _read(path: Path, kind: type[_Record]) -> _Record | None:
    try:
        content = path.read_bytes()
        return kind.model_validate_json(content)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        newer = _version_of(content) > kind.model_fields["version"].default
        what = (
            "was written by a newer version of prefect-xrt; bring this one up to date"
            if newer
            else "is damaged; look for its job with `prefect-xrt jobs`, and go on with it by "
            f"`prefect-xrt attach JOB_ID --out {path.parent} --overwrite`"
        )
        raise OutputError(f"{path} {what}, or choose another folder.") from error
    except OSError as error:
        raise OutputError(
            f"{path} cannot be read ({error.strerror}); mend that, or choose another folder."
        ) from error


def _version_of(content: bytes) -> int:
    try:
        version = json.loads(content)["version"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return 0
    return version if isinstance(version, int) else 0


def write_record(directory: Path, record: JobRecord) -> None:
    """Write a job's record and its accepted parameters into a folder.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_text(
        directory / PARAMETERS_NAME, json.dumps(record.job.parameters, indent=2, ensure_ascii=False) + "\n"
    )
    # What tells that the job is on record comes last, when all is there.
    write_text(directory / RECORD_NAME, record.model_dump_json(indent=2) + "\n")


def write_submission(directory: Path, submission: Submission) -> None:
    """Write into a folder that a request is about to be sent.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_text(directory / SUBMISSION_NAME, submission.model_dump_json(indent=2) + "\n")


def remove_submission(directory: Path) -> None:
    """Remove the word of a submission whose end is known.

    Raises:
        OutputError: The folder cannot be written.
    """
    try:
        (directory / SUBMISSION_NAME).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{directory / SUBMISSION_NAME} cannot be removed: {error.strerror}.") from error
