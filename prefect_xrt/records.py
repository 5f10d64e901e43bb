"""What stays beside the files, so that a job is found again without Prefect.

`job.json` is written as soon as the service has accepted a request, before the first look;
`jobPars.json` holds the parameters as accepted, so that the request can be repeated.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_xrt.archive import write_text
from prefect_xrt.errors import OutputError
from prefect_xrt.protocol import Job

__all__ = ["JobRecord", "read_record", "write_record"]

RECORD_NAME = "job.json"
PARAMETERS_NAME = "jobPars.json"


class JobRecord(BaseModel):
    """A job, and the run that owns its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=1, ge=1, le=1, description="The layout of this record.")
    job: Job
    flow_run_id: str | None = Field(default=None, description="The Prefect flow run that submitted the job.")


def read_record(directory: Path) -> JobRecord | None:
    """Return the record in a folder, or None if there is none.

    Raises:
        OutputError: There is one, but it cannot be read: it is damaged, or of a newer version.
    """
    path = directory / RECORD_NAME
    try:
        return JobRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise OutputError(
            f"{path} is not a record that this version can read; choose another folder, or move it away."
        ) from error


def write_record(directory: Path, record: JobRecord) -> None:
    """Write a job's record and its accepted parameters into a folder.

    Raises:
        OutputError: The folder cannot be written.
    """
    write_text(directory / RECORD_NAME, record.model_dump_json(indent=2) + "\n")
    write_text(
        directory / PARAMETERS_NAME, json.dumps(record.job.parameters, indent=2, ensure_ascii=False) + "\n"
    )
