"""File bundles: stream, verify, unpack; a file is there whole and verified, or not there.

A bundle is written to a hidden name beside its place, checked (its length, and that it can be read
to its end), and only then renamed. Its SHA-256 is kept beside it in the form that
`sha256sum --check` reads, with the job that it belongs to in a comment.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, Self, cast, get_args

import tenacity
from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt import protocol
from prefect_xrt.client import XRTClient
from prefect_xrt.errors import (
    ArchiveError,
    OutputError,
    UnsafeArchiveError,
    XRTError,
    asked_wait_s,
    is_transient,
)
from prefect_xrt.protocol import ArchiveFormat, Job
from prefect_xrt.request import Product

__all__ = [
    "ProductFile",
    "download",
    "download_all",
    "extract",
    "make_directory",
    "refuse_foreign_files",
    "remove_other_jobs",
    "verify",
    "write_text",
]

MAX_UNPACKED_BYTES = 100 * 2**30
"""How much one bundle may unpack to, in bytes; about ten times what the largest real ones hold."""

ARCHIVE_FORMATS: tuple[ArchiveFormat, ...] = get_args(ArchiveFormat)

_PROBE_BYTES = 2**16
_MAX_MEMBERS = 1_000_000
_MAX_LINK_BYTES = 4096
_MAX_HEADER_BYTES = 2**20
_TAR_END_BYTES = 1024
_CHUNK_BYTES = 2**20
_ATTEMPTS = 5
_PATIENCE_S = 600.0
# What the readers raise for a bad archive; RuntimeError is what zipfile says of an encrypted one, and
# the last three come up when a damaged number is believed.
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
    struct.error,
)


class ProductFile(BaseModel):
    """A product's bundle of files, whole and verified."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: int
    product: Product
    path: Path
    size: int = Field(description="In bytes.")
    sha256: str = Field(description="In hexadecimal digits.")
    kept: bool = Field(default=False, description="Whether the file was there already, and was verified.")
    extracted_to: Path | None = Field(
        default=None, description="The folder with its contents, where asked for."
    )


def download(
    client: XRTClient,
    job: Job,
    product: Product,
    directory: Path,
    archive_format: ArchiveFormat = "tar.gz",
    *,
    overwrite: bool = False,
    unpack: bool = False,
    max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    sleep: Callable[[float], None] = time.sleep,
) -> ProductFile:
    """Fetch a product's bundle into a folder.

    A connection that breaks on the way goes on where it stopped, if the service allows it. This
    job's file that is there already is verified and kept, or fetched again if it is damaged; a file
    of another origin is left alone.

    Args:
        client: Speaks to the service.
        job: The job.
        product: A product of it that is ready.
        directory: Where the bundle goes, under the service's own name for it, such as `lc.tar.gz`.
        archive_format: The format to ask for.
        overwrite: Replace a file that is there already.
        unpack: Also unpack it, into a folder beside it with the product's short name.
        max_unpacked_bytes: Refuse a bundle that unpacks to more, in bytes.
        sleep: Waits between attempts.

    Returns:
        The verified file.

    Raises:
        ProductMissingError: The service has no such file.
        ServiceUnreachableError: The service stopped answering.
        ArchiveError: What arrived is incomplete or damaged, several times in a row.
        UnsafeArchiveError: It holds what must not be unpacked, or too much.
        OutputError: The folder cannot be written, the disk is full, a file of another origin is in the
            way, or another process is writing the same file.
    """
    make_directory(directory)
    place = directory / protocol.file_name(product, archive_format)
    folder = directory / protocol.SHORT_NAMES[product] if unpack else None
    if folder and folder.exists() and not place.exists() and not overwrite:
        raise _foreign(folder)
    with _writing(directory):
        digest = None if overwrite else _kept_digest(place, job, archive_format, max_unpacked_bytes)
        kept = digest is not None
        if digest is None:
            digest = _fetch(client, job, product, place, archive_format, max_unpacked_bytes, sleep)
        size = place.stat().st_size
    if folder:
        extract(place, folder, max_unpacked_bytes=max_unpacked_bytes)
    return ProductFile(
        job_id=job.id, product=product, path=place, size=size, sha256=digest, kept=kept, extracted_to=folder
    )


def download_all(
    client: XRTClient,
    job: Job,
    products: Iterable[Product],
    directory: Path,
    archive_format: ArchiveFormat = "tar.gz",
    *,
    overwrite: bool = False,
    unpack: bool = False,
) -> tuple[list[ProductFile], dict[Product, XRTError]]:
    """Fetch the bundles of several products; one that cannot be had does not keep the others back.

    Returns:
        The verified files, and what kept each of the others back.
    """
    fetched, problems = [], {}
    for product in products:
        try:
            fetched.append(
                download(client, job, product, directory, archive_format, overwrite=overwrite, unpack=unpack)
            )
        except XRTError as error:
            problems[product] = error
    return fetched, problems


def remove_other_jobs(directory: Path, job: Job) -> None:
    """Remove the bundles of other jobs from a folder that was to be overwritten; other files stay.

    Raises:
        OutputError: The folder cannot be written.
    """
    with _writing(directory):
        for product in Product:
            for archive_format in ARCHIVE_FORMATS:
                place = directory / protocol.file_name(product, archive_format)
                sidecar = _sidecar(place)
                if sidecar.is_file() and not sidecar.read_bytes().startswith(f"{_mark(job)}\n".encode()):
                    place.unlink(missing_ok=True)
                    sidecar.unlink()


def refuse_foreign_files(directory: Path, products: Iterable[Product], archive_format: ArchiveFormat) -> None:
    """Make sure that a folder holds no bundles yet, before a job is asked for whose files would go there.

    Raises:
        OutputError: It holds one.
    """
    for product in products:
        place = directory / protocol.file_name(product, archive_format)
        if place.exists():
            raise _foreign(place)


def _foreign(place: Path) -> OutputError:
    return OutputError(
        f"{place} is there already, and is not of this job; choose another folder, or have it "
        "overwritten (--overwrite)."
    )


def make_directory(directory: Path) -> None:
    """Create a folder for output, and make sure that it can be written.

    Raises:
        OutputError: It cannot be created or written.
    """
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as probe:
            # A full disk takes an empty file.
            probe.write(bytes(_PROBE_BYTES))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    with _writing(path.parent):
        try:
            with part.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk that holds {directory} is full; nothing incomplete was left."
            ) from error
        raise OutputError(f"{directory} cannot be written: {error.strerror or error}.") from error


def _fetch(
    client: XRTClient,
    job: Job,
    product: Product,
    place: Path,
    archive_format: ArchiveFormat,
    max_unpacked_bytes: int,
    sleep: Callable[[float], None],
) -> str:
    """Bring a bundle to its place, over as many connections as it takes, and return its checksum."""
    part = place.with_name(f".{place.name}.part")
    # Not emptied before it is known to be ours: another process may be writing it.
    with open(os.open(part, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
        if not _lock(stream, part):
            raise OutputError(f"Another process is writing {place}; give each its own folder.")
        try:
            transfer = _Transfer(client, job, product, archive_format, stream)
            retrying = tenacity.Retrying(
                stop=tenacity.stop_after_attempt(_ATTEMPTS),
                wait=_wait,
                retry=tenacity.retry_if_exception(
                    lambda error: (
                        (is_transient(error) and asked_wait_s(error) <= _PATIENCE_S)
                        or (isinstance(error, ArchiveError) and not isinstance(error, UnsafeArchiveError))
                    )
                ),
                sleep=sleep,
                reraise=True,
            )
            for attempt in retrying:
                with attempt:
                    transfer.run()
                    stream.flush()
                    try:
                        verify(part, archive_format, max_unpacked_bytes=max_unpacked_bytes)
                    except ArchiveError:
                        transfer.restart()
                        raise
            os.fsync(stream.fileno())
            # The checksum comes first: a file without one would be nobody's.
            write_text(_sidecar(place), f"{_mark(job)}\n{transfer.hexdigest()}  {place.name}\n")
            part.replace(place)
            return transfer.hexdigest()
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _lock(stream: IO[bytes], part: Path) -> bool:
    """Make a file ours, if it is nobody's; one that was renamed while we waited is somebody's."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(stream.fileno()), part.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return max(asked_wait_s(error), min(60.0, 2.0**state.attempt_number))


class _Transfer:
    """One file on its way: what has arrived so far, and its checksum."""

    def __init__(
        self, client: XRTClient, job: Job, product: Product, archive_format: ArchiveFormat, stream: IO[bytes]
    ) -> None:
        self._client = client
        self._job = job
        self._product = product
        self._format = archive_format
        self._what = f"{protocol.file_name(product, archive_format)} of {job}"
        self._stream = stream
        self.restart()

    def restart(self) -> None:
        self._size = 0
        self._validator: str | None = None
        self._digest = hashlib.sha256()
        self._stream.seek(0)
        self._stream.truncate()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def run(self) -> None:
        """Receive what is missing.

        Raises:
            ArchiveError: It is shorter or longer than the service said.
        """
        with self._client.open_file(
            self._job, self._product, self._format, start=self._size, validator=self._validator
        ) as remote:
            if remote.start != self._size:
                self.restart()
            self._validator = remote.validator
            for chunk in remote.chunks:
                self._stream.write(chunk)
                self._digest.update(chunk)
                self._size += len(chunk)
        if remote.size is not None and remote.size != self._size:
            received = self._size
            self.restart()
            raise ArchiveError(f"Of the {remote.size} bytes of {self._what}, {received} arrived.")


def _sidecar(place: Path) -> Path:
    return place.with_name(f"{place.name}.sha256")


def _mark(job: Job) -> str:
    return f"# {job.id} {job.url}"


def _kept_digest(place: Path, job: Job, archive_format: ArchiveFormat, max_unpacked_bytes: int) -> str | None:
    """Return the checksum of this job's file if it is there and whole, or None if it is to be fetched.

    Raises:
        OutputError: The file that is there is not known to be this job's.
    """
    if not place.exists():
        return None
    try:
        mark, line = _sidecar(place).read_text(encoding="utf-8").splitlines()
        known_digest, _ = line.split(maxsplit=1)
    except (OSError, ValueError):
        raise _foreign(place) from None
    if mark != _mark(job):
        raise _foreign(place)
    with place.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        verify(place, archive_format, max_unpacked_bytes=max_unpacked_bytes)
    except ArchiveError:
        return None
    return digest if digest == known_digest else None


def verify(
    path: Path, archive_format: ArchiveFormat, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES
) -> None:
    """Read an archive to its end, checking all that its format allows to check.

    Raises:
        ArchiveError: It is incomplete, damaged or empty.
        UnsafeArchiveError: It holds more than is allowed.
    """
    members = 0
    with _reading(path):
        for _, stream in _walk(path, archive_format, max_unpacked_bytes):
            members += 1
            while stream is not None and stream.read(_CHUNK_BYTES):
                pass
    if not members:
        raise ArchiveError(f"{path.name} holds nothing.")


def extract(path: Path, folder: Path, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Unpack an archive into a folder of its own, whole or not at all; a folder that is there is replaced.

    Args:
        path: The archive; its name tells its format.
        folder: Where its contents go.
        max_unpacked_bytes: Refuse it if it unpacks to more, in bytes.

    Raises:
        ArchiveError: It is incomplete or damaged.
        UnsafeArchiveError: It holds an absolute path, `..`, a link that leaves the folder, a device,
            two things of one name, or too much.
        OutputError: The folder cannot be written, or something else has its name.
    """
    archive_format = _format_of(path)
    with (
        _writing(folder.parent),
        tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}.", suffix=".part", ignore_cleanup_errors=True
        ) as scratch,
    ):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OutputError(f"{folder} is there already, and is not a folder; move it away.")
        work = Path(scratch, "new")
        work.mkdir()
        with _reading(path):
            _unpack(path, archive_format, work, max_unpacked_bytes)
        if folder.exists():
            folder.replace(Path(scratch, "old"))
        work.replace(folder)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGED, OSError) as error:
        # Of the system's errors, only a place that no file has comes from a damaged archive.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError(
            f"{path.name} is incomplete or damaged: {str(error) or type(error).__name__}."
        ) from error


def _format_of(path: Path) -> ArchiveFormat:
    for archive_format in ARCHIVE_FORMATS:
        if path.name.endswith(f".{archive_format}"):
            return archive_format
    raise ArchiveError(f"{path.name} is none of {', '.join(ARCHIVE_FORMATS)}.")


def _unpack(path: Path, archive_format: ArchiveFormat, root: Path, limit: int) -> None:
    # Links come last, when nothing can be written through them any more.
    links: list[tuple[PurePosixPath, _Member]] = []
    files: set[PurePosixPath] = set()
    names: set[PurePosixPath] = set()
    folders = {PurePosixPath()}
    for member, stream in _walk(path, archive_format, limit):
        place = _safe_place(path, member)
        above = place.parents if member.kind != "directory" else (place, *place.parents)
        if not names.isdisjoint(above) or (member.kind != "directory" and place in names | folders):
            raise UnsafeArchiveError(
                f"{path.name} holds {member.name!r} twice, or once as a file and a folder."
            )
        folders.update(above)
        (root / above[0]).mkdir(parents=True, exist_ok=True)
        if member.kind == "directory":
            continue
        names.add(place)
        if stream is None:
            links.append((place, member))
            continue
        files.add(place)
        with (root / place).open("xb") as copy:
            shutil.copyfileobj(stream, copy, _CHUNK_BYTES)
    for place, member in links:
        base = PurePosixPath() if member.kind == "hardlink" else place.parent
        target = PurePosixPath(os.path.normpath(base / member.target))
        if target not in files:
            raise UnsafeArchiveError(
                f"{path.name} holds a link {member.name!r} to {member.target!r}, not to a file in it."
            )
        # A second name for the same bytes needs no link, and nothing can be redirected through it.
        os.link(root / target, root / place)


def _safe_place(path: Path, member: _Member) -> PurePosixPath:
    """Return where a member goes below the folder."""
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or any(ord(letter) < ord(" ") for letter in member.name):
        raise UnsafeArchiveError(f"{path.name} holds {member.name!r}, which leads out of its folder.")
    if member.kind == "other":
        raise UnsafeArchiveError(f"{path.name} holds {member.name!r}, which is neither a file nor a folder.")
    return place


_Kind = Literal["file", "directory", "symlink", "hardlink", "other"]


class _Member(NamedTuple):
    """One entry of an archive, whatever the format."""

    name: str
    kind: _Kind
    target: str = ""


class _Meter:
    """Counts what an archive unpacks to, for as long as it is allowed."""

    def __init__(self, limit: int, refusal: str) -> None:
        self._left = limit
        self._refusal = refusal

    def over(self, source: IO[bytes]) -> IO[bytes]:
        return cast(IO[bytes], _Metered(source, self))

    def count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnsafeArchiveError(self._refusal)


class _Metered(io.RawIOBase):
    def __init__(self, source: IO[bytes], meter: _Meter) -> None:
        self._source = source
        self._meter = meter

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._meter.count(len(data))
        return data


_Entries = Iterator[tuple[_Member, IO[bytes] | None]]


def _walk(path: Path, archive_format: ArchiveFormat, limit: int) -> _Entries:
    """Give each member with its open contents, in order, and read the archive to its end."""
    meter = _Meter(limit, f"{path.name} unpacks to more than {limit} bytes.")
    entries = _walk_zip(path, meter) if archive_format == "zip" else _walk_tar(path, archive_format, meter)
    for count, entry in enumerate(entries):
        if count >= _MAX_MEMBERS:
            raise UnsafeArchiveError(f"{path.name} holds more than {_MAX_MEMBERS} files.")
        yield entry


def _walk_zip(path: Path, meter: _Meter) -> _Entries:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir():
                yield _Member(info.filename, "directory"), None
                continue
            with archive.open(info) as stream:
                if stat.S_ISLNK(info.external_attr >> 16):
                    target = stream.read(_MAX_LINK_BYTES).decode("utf-8", "replace")
                    yield _Member(info.filename, "symlink", target), None
                else:
                    yield _Member(info.filename, "file"), meter.over(stream)


def _walk_tar(path: Path, archive_format: ArchiveFormat, meter: _Meter) -> _Entries:
    with path.open("rb") as raw:
        # tarfile's own gzip stream does not compare the checksum at the end; gzip's does.
        source = meter.over(raw if archive_format == "tar" else cast(IO[bytes], gzip.GzipFile(fileobj=raw)))
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_StrictTarInfo) as archive:
            while (info := archive.next()) is not None:
                kind = _kind(info)
                contents = archive.extractfile(info) if kind == "file" else None
                yield _Member(info.name, kind, info.linkname), contents
                archive.members.clear()  # type: ignore[attr-defined]  # else it keeps a million of them
            # The first half of the mark at the end has been read; nothing else may follow.
            rest = _TAR_END_BYTES // 2
            while chunk := archive.fileobj.read(_CHUNK_BYTES):
                rest -= len(chunk)
                if any(chunk):
                    raise tarfile.ReadError("something follows the mark at its end")
            if rest > 0:
                raise tarfile.ReadError("the mark at its end is missing")
        while source.read(_CHUNK_BYTES):
            pass


class _StrictTarInfo(tarfile.TarInfo):
    """A header that is what it must be; tarfile itself takes a damaged one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # the end, as it should be
                raise
            raise tarfile.ReadError(str(error)) from error

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        # Long names and the like are read into memory whole.
        if self.size < 0 or (self.type in _IN_MEMORY and self.size > _MAX_HEADER_BYTES):
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc, no-any-return]  # meant to be overridden


_IN_MEMORY = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def _kind(info: tarfile.TarInfo) -> _Kind:
    if info.isreg() and not info.issparse():
        return "file"
    if info.isdir():
        return "directory"
    if info.issym():
        return "symlink"
    return "hardlink" if info.islnk() else "other"
