"""The files of a build, copied to where other machines find them: S3 and the like, or a shared folder."""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from prefect_xrt.archive import ProductFile
from prefect_xrt.errors import OutputError
from prefect_xrt.reports import REPORT_NAME, BuildReport

__all__ = ["copy_products", "upload_products"]

# These need no folders, and some would make a bucket of a name that is mistyped.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


def copy_products(report: BuildReport, url: str, *, log: Callable[[str], None] = print) -> dict[str, str]:
    """Copy the verified files of a build to a folder anywhere, and verify the copies.

    What is there already and is the same is left as it is, so that a copy which broke off goes on when it is made
    again. After its file, the file with its checksum is copied, and after all of them `report.json`: where that
    is, all is. The paths in it are those of the machine that has fetched the files.

    Args:
        report: What the build came to.
        url: The folder for this build, as `fsspec` reads it, such as `s3://bucket/xrt/gk_per` or
            `file:///share/xrt/gk_per`. Accounts and addresses of the storage come from the environment or from
            `fsspec`'s own configuration.
        log: Takes a line about each file.

    Returns:
        By the product's name, the address of each file.

    Raises:
        OutputError: The folder cannot be reached or written, a file here or there is not what was verified, or the
            folder has files of another job.
    """
    addresses = {}
    with _reaching(url):
        there, folder = fsspec.url_to_fs(url)
        if not _BUCKETS.intersection([there.protocol] if isinstance(there.protocol, str) else there.protocol):
            there.makedirs(folder, exist_ok=True)
        page = posixpath.join(folder, REPORT_NAME)
        if there.exists(page) and _job_url(there.cat_file(page)) != report.job.url:
            raise OutputError(f"{there.unstrip_protocol(page)} is of another job; choose another folder.")
        for file in report.files:
            place = posixpath.join(folder, file.path.name)
            kept = _copy(there, file, place)
            addresses[file.product.value] = str(there.unstrip_protocol(place))
            log(f"{'Kept' if kept else 'Copied'} {addresses[file.product.value]} ({file.size} bytes).")
        there.pipe_file(page, f"{report.model_dump_json(indent=2)}\n".encode())
    return addresses


@task(name="upload", task_run_name="upload: {report.job.name}, job {report.job.id}", cache_policy=NO_CACHE)
def upload_products(report: BuildReport, url: str) -> dict[str, str]:
    """Copy the verified files of a build to a folder anywhere, as `copy_products` does; it may be retried.

    Args:
        report: What the build came to.
        url: The folder for this build, such as `s3://bucket/xrt/gk_per`.

    Returns:
        By the product's name, the address of each file.

    Raises:
        OutputError: As `copy_products`.
    """
    return copy_products(report, url, log=get_run_logger().info)


def _job_url(report: bytes) -> str | None:
    """Return whose files a report that was copied is about; None where it tells nothing."""
    try:
        return str(json.loads(report)["job"]["url"])
    except (ValueError, KeyError, TypeError):
        return None


def _copy(there: Any, file: ProductFile, place: str) -> bool:
    """Copy a file with its checksum, and tell whether both were there already."""
    sidecar = f"{place}.sha256"
    ours = Path(f"{file.path}.sha256").read_bytes()
    theirs = there.cat_file(sidecar) if there.exists(sidecar) else None
    if theirs and theirs.splitlines()[0] != ours.splitlines()[0]:
        raise OutputError(f"{sidecar} is of another job; choose another folder.")
    if theirs == ours and there.exists(place) and _digest(there, place) == file.sha256:
        return True
    there.put_file(str(file.path), place)
    if _digest(there, place) != file.sha256:
        raise OutputError(
            f"{place} is not what was verified: {file.path} has changed since, or the copy is damaged. Build the "
            "same again, into the same folder: that fetches what is damaged anew."
        )
    there.pipe_file(sidecar, ours)
    return False


def _digest(there: Any, place: str) -> str:
    """Return the SHA-256 of a file, as the storage gives it back."""
    with there.open(place, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Tell what goes wrong with a storage in one way; each brings errors of its own."""
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        raise OutputError(f"{url} cannot be written ({type(error).__name__}: {error}).") from error
