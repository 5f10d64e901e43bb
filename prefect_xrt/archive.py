"""File bundles: stream, verify, unpack; a file is there whole and verified, or not there.

A bundle is written to a hidden name beside its place, checked (its length, and that it can be read
to its end), and only then renamed. Its SHA-256 is kept beside it in the form that
`sha256sum --check` reads, with the job that it belongs to in a comment.

Hidden names are fixed, and a name is one process's at a time: what a killed process leaves behind,
the next one takes over or removes.
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
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import time
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Literal, NamedTuple, Self, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt import protocol
from prefect_xrt.client import XRTClient
from prefect_xrt.errors import (
    ArchiveError,
    OutputError,
    ServiceUnreachableError,
    UnsafeArchiveError,
    XRTError,
    asked_wait_s,
    is_transient,
)
from prefect_xrt.protocol import ArchiveFormat, Job
from prefect_xrt.request import Product

__all__ = [
    "ArchiveReader",
    "ProductFile",
    "download",
    "download_all",
    "exclusive",
    "extract",
    "folder_name",
    "make_directory",
    "refuse_foreign_files",
    "remove_other_jobs",
    "verify",
    "write_bytes",
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
_MAX_DAMAGED = 5
_PATIENCE_S = 600.0
_POLITE_CEILING_S = 60.0
# More than ever wait for the same small file; each may find that another was faster.
_LOCK_ATTEMPTS = 1000
_MAX_NAME = 80
_OWN_SUFFIX = re.compile(r"_[0-9a-f]{8}$")
_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
# How the names of archives end, within a bundle too.
_SUFFIXES: dict[str, ArchiveFormat] = {
    **{f".{archive_format}": archive_format for archive_format in ARCHIVE_FORMATS},
    ".tgz": "tar.gz",
}
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
    max_failed_attempts: int = 90,
    ceiling_s: float = 60.0,
    timeout_s: float = 6 * 3600.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> ProductFile:
    """Fetch a product's bundle into a folder.

    A connection that breaks on the way goes on where it stopped, if the service allows it, and so
    does a process that was killed when it is started again. This job's file that is there already is
    verified and kept, or fetched again if it is damaged; a file of another origin is left alone.

    Args:
        client: Speaks to the service.
        job: The job.
        product: A product of it that is ready.
        directory: Where the bundle goes, under the service's own name for it, such as `lc.tar.gz`.
        archive_format: The format to ask for.
        overwrite: Replace a file that is there already.
        unpack: Also unpack it, into a folder beside it with the product's short name.
        max_unpacked_bytes: Refuse a bundle that unpacks to more, in bytes.
        max_failed_attempts: How many attempts in a row may bring nothing new.
        ceiling_s: The longest wait between attempts unless the service asks for more, in seconds; a
            service that is not on this machine is not asked with less than 60.
        timeout_s: How long the file may take altogether, in seconds.
        clock: Tells the time in seconds, from any start.
        sleep: Waits between attempts; called with 0 at every chunk, so that what it raises ends a transfer, too.

    Returns:
        The verified file.

    Raises:
        ProductMissingError: The service has no such file.
        ServiceUnreachableError: The service stopped answering, or the file took too long.
        AnswerError: Something else than the service answers.
        ArchiveError: What arrived is incomplete or damaged, several times.
        UnsafeArchiveError: It holds what must not be unpacked, or too much.
        OutputError: The folder cannot be written, the disk is full, a file of another origin is in the
            way, or another process is writing the same file.
    """
    make_directory(directory)
    place = directory / protocol.file_name(product, archive_format)
    folder = directory / protocol.SHORT_NAMES[product] if unpack else None
    ceiling_s = ceiling_s if client.is_local else max(ceiling_s, _POLITE_CEILING_S)
    with exclusive(place):
        if folder and folder.exists() and not place.exists() and not overwrite:
            raise _foreign(folder)
        with _writing(directory):
            try:
                digest = None if overwrite else _kept_digest(place, job, archive_format, max_unpacked_bytes)
                kept = digest is not None
                if digest is None:
                    if place.exists() and not unpack and not _is_of(place, job):
                        _remove_unpacked(place, directory / protocol.SHORT_NAMES[product])
                    patience = _Patience(
                        f"{place.name} of {job}", max_failed_attempts, ceiling_s, timeout_s, clock, sleep
                    )
                    digest = _fetch(client, job, product, place, archive_format, max_unpacked_bytes, patience)
            finally:
                for leftover in (_part(place), _validator_part(place), _part(_sidecar(place))):
                    leftover.unlink(missing_ok=True)
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
    max_failed_attempts: int = 90,
    ceiling_s: float = 60.0,
    timeout_s: float = 6 * 3600.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[list[ProductFile], dict[Product, XRTError]]:
    """Fetch the bundles of several products; one that cannot be had does not keep the others back.

    The options are those of `download`, for each product.

    Returns:
        The verified files, and what kept each of the others back.
    """
    fetched, problems = [], {}
    for product in products:
        try:
            file = download(
                client,
                job,
                product,
                directory,
                archive_format,
                overwrite=overwrite,
                unpack=unpack,
                max_failed_attempts=max_failed_attempts,
                ceiling_s=ceiling_s,
                timeout_s=timeout_s,
                clock=clock,
                sleep=sleep,
            )
            fetched.append(file)
        except XRTError as error:
            problems[product] = error
    return fetched, problems


def remove_other_jobs(directory: Path, job: Job) -> None:
    """Remove the bundles of other jobs, and what they were unpacked to, from a folder that was to be overwritten.

    Other files stay, and so does a folder to which something has been added since.

    Raises:
        OutputError: The folder cannot be written.
    """
    with _writing(directory):
        for product in Product:
            for archive_format in ARCHIVE_FORMATS:
                place = directory / protocol.file_name(product, archive_format)
                if _sidecar(place).is_file() and not _is_of(place, job):
                    _remove_unpacked(place, directory / protocol.SHORT_NAMES[product])
                    place.unlink(missing_ok=True)
                    _sidecar(place).unlink()


def _remove_unpacked(place: Path, folder: Path) -> None:
    """Remove what a bundle was unpacked to, unless there is something else in it."""
    if folder.is_symlink() or not folder.is_dir():
        return
    try:
        names = set(ArchiveReader(place).names())
    except (XRTError, FileNotFoundError):
        return
    there = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    if there <= names:
        shutil.rmtree(folder)


def refuse_foreign_files(
    directory: Path,
    products: Iterable[Product],
    archive_format: ArchiveFormat,
    job: Job | None = None,
    *,
    unpack: bool = False,
) -> None:
    """Make sure that a folder holds nothing of another origin, before a job's files are to go there.

    Args:
        directory: The folder.
        products: The products whose bundles will go there.
        archive_format: The format of the bundles.
        job: The job whose bundles may be there already, if there is one yet.
        unpack: Whether they will be unpacked there, too.

    Raises:
        OutputError: It holds something.
    """
    for product in products:
        place = directory / protocol.file_name(product, archive_format)
        if place.exists() and not (job and _is_of(place, job)):
            raise _foreign(place)
        folder = directory / protocol.SHORT_NAMES[product]
        if unpack and folder.exists() and not place.exists():
            raise _foreign(folder)


def _is_of(place: Path, job: Job) -> bool:
    """Tell whether the sidecar of a bundle says that it is a job's."""
    try:
        return _sidecar(place).read_bytes().startswith(f"{_mark(job)}\n".encode())
    except OSError:
        return False


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


def folder_name(name: str) -> str:
    """Make a name for a folder or a file from a source's name, readable on any system.

    Two different names do not give the same, not even where capitals do not count: what is not
    unmistakably the name itself carries a part of its SHA-256.

    Args:
        name: Any text, even none.

    Returns:
        One to 80 ASCII letters, digits and `+ - . _`.
    """
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    plain = re.sub(r"[^A-Za-z0-9+.-]+", "_", "".join(letters)).strip("._-")
    reserved = _RESERVED_NAME.match(plain)
    itself = name and plain == name == name.lower() and len(name) <= _MAX_NAME
    if itself and not reserved and not _OWN_SUFFIX.search(name):
        return name
    if reserved:
        # Whatever follows a dot does not change what such a name means.
        plain = plain.replace(".", "_")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: _MAX_NAME - len('_') - len(digest)].rstrip('._-') or 'unnamed'}_{digest}"


@contextlib.contextmanager
def exclusive(place: Path) -> Iterator[None]:
    """Keep a name in a folder to ourselves, whether there is something of that name or not.

    It is kept by a lock on a hidden file beside it, which the system releases however a process ends.

    Args:
        place: The name, in a folder that is there.

    Raises:
        OutputError: Another process keeps it, or the folder cannot be written.
    """
    lock = place.with_name(f".{place.name}.lock")
    with _writing(place.parent):
        try:
            stream = _open_locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"Another process is using {place}; wait until it has ended, or give each its own folder."
            ) from None
    with stream:
        try:
            yield
        finally:
            # Still held, so that it is nobody else's. One that cannot be removed hinders nobody.
            with contextlib.suppress(OSError):
                lock.unlink()


def _open_locked(path: Path, operation: int) -> IO[bytes]:
    """Open a file, made if need be, that is locked until it is closed.

    Raises:
        BlockingIOError: Another has locked it.
    """
    for _ in range(_LOCK_ATTEMPTS):
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(path.open("a+b"))
            fcntl.flock(stream, operation)
            # One that was removed or renamed before it was ours keeps nothing any more.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                    stack.pop_all()
                    return stream
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def write_text(path: Path, text: str) -> None:
    """Write a small file whole or not at all; of several that write it at once, the last one's stays.

    Raises:
        OutputError: It cannot be written.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write what is in memory into a file, as `write_text` does.

    Raises:
        OutputError: It cannot be written.
    """
    part = _part(path)
    with _writing(path.parent), _open_locked(part, fcntl.LOCK_EX) as stream:
        try:
            stream.truncate(0)
            stream.write(data)
            _settle(stream, part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def _part(place: Path) -> Path:
    """Return where something is made before it is put in its place."""
    return place.with_name(f".{place.name}.part")


def _settle(stream: IO[bytes], part: Path, place: Path) -> None:
    """Put a finished file in its place, so that it is there even after the power has failed."""
    stream.flush()
    os.fsync(stream.fileno())
    part.replace(place)
    # Not every file system can do this for a folder; the file is there all the same.
    with contextlib.suppress(OSError):
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"The disk that holds {directory} is full; nothing incomplete was left. Make room, and try again."
            ) from error
        raise OutputError(
            f"{directory} cannot be written: {error.strerror or error}; mend that, or choose another folder."
        ) from error


class _Patience:
    """Tells after each failed attempt how long to wait for the next, or that there is none."""

    def __init__(
        self,
        what: str,
        max_failed_attempts: int,
        ceiling_s: float,
        timeout_s: float,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.sleep = sleep
        self._what = what
        self._max_failed_attempts = max_failed_attempts
        self._ceiling_s = ceiling_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._deadline = clock() + timeout_s
        self._furthest = 0
        self._failed = 0
        self._damaged = 0

    def check(self) -> None:
        """Break off a transfer that takes too long, or that the sleep tells to stop.

        Raises:
            ServiceUnreachableError: The time is over.
        """
        self.sleep(0)
        if self._clock() > self._deadline:
            raise ServiceUnreachableError("It was still arriving.")

    def wait_s(self, error: XRTError, size: int) -> float:
        """Return how long to wait, in seconds.

        Args:
            error: What ended the attempt.
            size: How much of the file has been received, in bytes.

        Raises:
            XRTError: The same error: there is no use in another attempt.
            ServiceUnreachableError: There is no time for another attempt.
        """
        damaged = isinstance(error, ArchiveError) and not isinstance(error, UnsafeArchiveError)
        self._damaged += damaged
        # What comes again each time, where the service does not go on in the middle, is nothing new.
        self._failed = 1 if size > self._furthest else self._failed + 1
        self._furthest = max(self._furthest, size)
        if (
            not (damaged or is_transient(error))
            or asked_wait_s(error) > _PATIENCE_S
            or self._damaged >= _MAX_DAMAGED
            or self._failed >= self._max_failed_attempts
        ):
            raise error
        wait_s = max(asked_wait_s(error), min(self._ceiling_s, 2.0 ** min(self._failed, 16)))
        if self._clock() + wait_s > self._deadline:
            raise ServiceUnreachableError(
                f"{self._what} could not be fetched within {self._timeout_s:g} s; fetch it again later. "
                f"The last attempt: {error.message}"
            ) from error
        return wait_s


def _fetch(
    client: XRTClient,
    job: Job,
    product: Product,
    place: Path,
    archive_format: ArchiveFormat,
    max_unpacked_bytes: int,
    patience: _Patience,
) -> str:
    """Bring a bundle to its place, over as many connections as it takes, and return its checksum."""
    part = _part(place)
    with part.open("a+b") as stream:
        transfer = _Transfer(client, job, product, archive_format, place, stream)
        while True:
            try:
                transfer.run(patience)
                verify(part, archive_format, max_unpacked_bytes=max_unpacked_bytes)
                break
            except XRTError as error:
                wait_s = patience.wait_s(error, transfer.size)
                if isinstance(error, ArchiveError):
                    transfer.restart()
                patience.sleep(wait_s)
        # The checksum comes first: a file without one would be nobody's.
        write_text(_sidecar(place), f"{_mark(job)}\n{transfer.hexdigest()}  {place.name}\n")
        _settle(stream, part, place)
        return transfer.hexdigest()


class _Transfer:
    """One file on its way: what has arrived so far, and its checksum."""

    def __init__(
        self,
        client: XRTClient,
        job: Job,
        product: Product,
        archive_format: ArchiveFormat,
        place: Path,
        stream: io.BufferedRandom,
    ) -> None:
        self._client = client
        self._job = job
        self._product = product
        self._format = archive_format
        self._what = f"{place.name} of {job}"
        self._note = _validator_part(place)
        self._stream = stream
        # What a killed process has left; without a validator it will be thrown away.
        stream.seek(0)
        self._digest = hashlib.file_digest(stream, "sha256")
        self.size = stream.tell()
        self._validator = self._noted_validator()

    def _noted_validator(self) -> str | None:
        # A plain tar has no checksum that would tell what a crash of the whole machine has done to it.
        if self._format == "tar":
            return None
        try:
            mark, validator, _ = self._note.read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError):
            return None
        return validator if mark == _mark(self._job) else None

    def restart(self) -> None:
        self.size = 0
        self._validator = None
        self._digest = hashlib.sha256()
        self._stream.truncate(0)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def run(self, patience: _Patience) -> None:
        """Receive what is missing.

        Raises:
            ArchiveError: It is shorter or longer than the service said.
        """
        with self._client.open_file(
            self._job, self._product, self._format, start=self.size, validator=self._validator
        ) as remote:
            if remote.start != self.size:
                self.restart()
            self._validator = remote.validator
            self._note.write_text(f"{_mark(self._job)}\n{remote.validator or ''}\n", encoding="utf-8")
            for chunk in remote.chunks:
                self._stream.write(chunk)
                # What is not in the file when this process is killed would have to be fetched again.
                self._stream.flush()
                self._digest.update(chunk)
                self.size += len(chunk)
                patience.check()
        if remote.size is not None and remote.size != self.size:
            raise ArchiveError(f"Of the {remote.size} bytes of {self._what}, {self.size} arrived.")


def _validator_part(place: Path) -> Path:
    """Return where it is noted which version of a file its part is of."""
    return _part(place.with_name(f"{place.name}.validator"))


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
    with _reading(path.name):
        for _, stream in _walk(path, archive_format, _Budget(path.name, max_unpacked_bytes)):
            members += 1
            _read_out(stream)
    if not members:
        raise ArchiveError(f"{path.name} holds nothing.")


def _read_out(stream: IO[bytes] | None) -> None:
    while stream is not None and stream.read(_CHUNK_BYTES):
        pass


def extract(path: Path, folder: Path, *, max_unpacked_bytes: int = MAX_UNPACKED_BYTES) -> None:
    """Unpack an archive into a folder of its own, whole or not at all; a folder that is there is replaced.

    Archives within it stay files, but are held to the same rules, and count towards the same limit.

    Args:
        path: The archive; its name tells its format.
        folder: Where its contents go.
        max_unpacked_bytes: Refuse it if it unpacks to more, in bytes.

    Raises:
        ArchiveError: It is incomplete or damaged.
        UnsafeArchiveError: It holds an absolute path, `..`, a link that leaves the folder, a device,
            two things of one name, archives within archives within it, or too much.
        OutputError: The folder cannot be written, something else has its name, or another process is
            writing it.
    """
    reader = ArchiveReader(path, max_unpacked_bytes=max_unpacked_bytes)
    scratch = _part(folder)
    with exclusive(folder), _writing(folder.parent):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OutputError(f"{folder} is there already, and is not a folder; move it away.")
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            work = scratch / "new"
            work.mkdir(parents=True)
            _unpack(reader, work)
            if folder.exists():
                folder.replace(scratch / "old")
            work.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _unpack(reader: ArchiveReader, root: Path) -> None:
    names = []
    for name, stream in reader.entries():
        place = root / name
        (place if stream is None else place.parent).mkdir(parents=True, exist_ok=True)
        if stream is not None:
            with place.open("xb") as copy:
                shutil.copyfileobj(stream, copy, _CHUNK_BYTES)
            names.append(name)
    # Links come last, when nothing can be written through them any more.
    for name, target in reader.links.items():
        # A second name for the same bytes needs no link, and nothing can be redirected through it.
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(root / target, root / name)
    for name in (*names, *reader.links):
        if _format_of(name.name):
            reader.within(name.name, root / name).names()


class ArchiveReader:
    """Reads an archive once, from its beginning to its end, held to the rules of unpacking.

    Attributes:
        links: Each link with the file in the archive that it leads to; known when all entries have been given.
    """

    def __init__(
        self,
        source: Path | IO[bytes],
        *,
        name: str | None = None,
        innermost: bool = False,
        max_unpacked_bytes: int = MAX_UNPACKED_BYTES,
    ) -> None:
        """Prepare to read.

        Args:
            source: The archive, or its contents.
            name: Its name, which tells its format; that of the file by default.
            innermost: Whether it may hold no other archives.
            max_unpacked_bytes: Refuse it if it unpacks to more, in bytes.

        Raises:
            ArchiveError: The name is none of an archive.
        """
        self._name = source.name if name is None else name
        archive_format = _format_of(self._name)
        if archive_format is None:
            raise ArchiveError(f"{self._name} is none of {', '.join(ARCHIVE_FORMATS)}.")
        self._format = archive_format
        self._source = source
        self._innermost = innermost
        self._budget = _Budget(self._name, max_unpacked_bytes)
        self.links: dict[PurePosixPath, PurePosixPath] = {}

    def within(self, name: str, source: Path | IO[bytes]) -> ArchiveReader:
        """Return a reader for an archive in this one: it counts towards the same limit, and may hold no other.

        Args:
            name: Its name, which tells its format.
            source: Where it was unpacked to, or its contents.

        Raises:
            ArchiveError: The name is none of an archive.
        """
        inner = ArchiveReader(source, name=name, innermost=True)
        inner._budget = self._budget
        return inner

    def names(self) -> list[str]:
        """Read it to its end, and return the names of the files and links in it.

        Raises:
            ArchiveError: It is incomplete or damaged.
            UnsafeArchiveError: It holds what must not be unpacked, or too much.
        """
        files = [str(place) for place, contents in self.entries() if contents is not None]
        return files + [str(place) for place in self.links]

    def entries(self) -> Iterator[tuple[PurePosixPath, IO[bytes] | None]]:
        """Give the place of each file with its contents, and that of each folder with None.

        Links come last, in `links`. What is not read of a file's contents is read before the next.

        Raises:
            ArchiveError: It is incomplete or damaged.
            UnsafeArchiveError: It holds what must not be unpacked, or too much.
        """
        contents = _Contents(self._name)
        with _reading(self._name):
            for member, stream in _walk(self._source, self._format, self._budget):
                place = contents.add(member)
                if self._innermost and _format_of(place.name) and member.kind != "directory":
                    raise UnsafeArchiveError(
                        f"{self._name} lies in an archive and holds another, {member.name!r}."
                    )
                if member.kind == "directory":
                    yield place, None
                elif stream is not None:
                    yield place, cast(IO[bytes], _Contained(stream, self._name))
                    _read_out(stream)
            self.links |= contents.links()


class _Contained(io.RawIOBase):
    """The contents of a file in an archive; it is whoever reads them that finds them damaged."""

    def __init__(self, source: IO[bytes], name: str) -> None:
        self._source = source
        self._name = name

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with _reading(self._name):
            return self._source.read(size)


@contextlib.contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (*_DAMAGED, OSError) as error:
        # Of the system's errors, only a place that no file has comes from a damaged archive.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ArchiveError(
            f"{name} is incomplete or damaged: {str(error) or type(error).__name__}."
        ) from error


def _format_of(name: str) -> ArchiveFormat | None:
    return next((form for suffix, form in _SUFFIXES.items() if name.lower().endswith(suffix)), None)


class _Contents:
    """What an archive has held so far; refuses what must not be unpacked."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._folders = {PurePosixPath()}
        self.members: dict[PurePosixPath, _Member] = {}

    def add(self, member: _Member) -> PurePosixPath:
        """Return where a member goes below the folder.

        Raises:
            UnsafeArchiveError: It must not be unpacked.
        """
        place = _safe_place(self._name, member)
        is_folder = member.kind == "directory"
        above = (place, *place.parents) if is_folder else place.parents
        again = not is_folder and (place in self.members or place in self._folders)
        if again or not self.members.keys().isdisjoint(above):
            raise UnsafeArchiveError(
                f"{self._name} holds {member.name!r} twice, or once as a file and a folder."
            )
        self._folders.update(above)
        if not is_folder:
            self.members[place] = member
        return place

    def links(self) -> dict[PurePosixPath, PurePosixPath]:
        """Return each link with the file that it leads to.

        Raises:
            UnsafeArchiveError: One leads to something else.
        """
        links = {}
        for place, member in self.members.items():
            if member.kind == "file":
                continue
            base = PurePosixPath() if member.kind == "hardlink" else place.parent
            target = PurePosixPath(os.path.normpath(base / member.target))
            if target not in self.members or self.members[target].kind != "file":
                raise UnsafeArchiveError(
                    f"{self._name} holds a link {member.name!r} to {member.target!r}, not to a file in it."
                )
            links[place] = target
        return links


def _safe_place(name: str, member: _Member) -> PurePosixPath:
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or any(ord(letter) < ord(" ") for letter in member.name):
        raise UnsafeArchiveError(f"{name} holds {member.name!r}, which leads out of its folder.")
    if member.kind == "other":
        raise UnsafeArchiveError(f"{name} holds {member.name!r}, which is neither a file nor a folder.")
    return place


_Kind = Literal["file", "directory", "symlink", "hardlink", "other"]


class _Member(NamedTuple):
    """One entry of an archive, whatever the format."""

    name: str
    kind: _Kind
    target: str = ""


class _Budget:
    """What a bundle may unpack to, with all archives within it."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._bytes = 0
        self._members = 0

    def over(self, source: IO[bytes]) -> IO[bytes]:
        return cast(IO[bytes], _Metered(source, self))

    def count_bytes(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._max_bytes:
            raise UnsafeArchiveError(f"{self._name} unpacks to more than {self._max_bytes} bytes.")

    def count_member(self) -> None:
        self._members += 1
        if self._members > _MAX_MEMBERS:
            raise UnsafeArchiveError(f"{self._name} holds more than {_MAX_MEMBERS} files.")


class _Metered(io.RawIOBase):
    def __init__(self, source: IO[bytes], budget: _Budget) -> None:
        self._source = source
        self._budget = budget

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._budget.count_bytes(len(data))
        return data


_Entries = Iterator[tuple[_Member, IO[bytes] | None]]


def _walk(source: Path | IO[bytes], archive_format: ArchiveFormat, budget: _Budget) -> _Entries:
    """Give each member with its open contents, in order, and read the archive to its end."""
    entries = (
        _walk_zip(source, budget) if archive_format == "zip" else _walk_tar(source, archive_format, budget)
    )
    for entry in entries:
        budget.count_member()
        yield entry


def _walk_zip(source: Path | IO[bytes], budget: _Budget) -> _Entries:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            if info.is_dir():
                yield _Member(info.filename, "directory"), None
                continue
            with archive.open(info) as stream:
                if stat.S_ISLNK(info.external_attr >> 16):
                    target = stream.read(_MAX_LINK_BYTES).decode("utf-8", "replace")
                    yield _Member(info.filename, "symlink", target), None
                else:
                    yield _Member(info.filename, "file"), budget.over(stream)


def _walk_tar(source: Path | IO[bytes], archive_format: ArchiveFormat, budget: _Budget) -> _Entries:
    with source.open("rb") if isinstance(source, Path) else contextlib.nullcontext(source) as raw:
        # tarfile's own gzip stream does not compare the checksum at the end; gzip's does.
        unpacked = budget.over(
            raw if archive_format == "tar" else cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        )
        with tarfile.open(fileobj=unpacked, mode="r|", tarinfo=_StrictTarInfo) as archive:
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
        while unpacked.read(_CHUNK_BYTES):
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
