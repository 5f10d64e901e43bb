"""The science in downloaded bundles: the same results as `results` holds, read from files.

A bundle is read where it is, as it was downloaded or from the folder that it was unpacked to, and nothing is
written. It is held to the rules of unpacking (`archive`). Beside it only the folder's `job.json` is read: for
the name, the parameters and the address of the job, unless the bundle says that it is of another one.

Documented by the service are the files of positions and images, the names of a light curve's files and that a
spectrum is an archive within the archive. What is in those is not: tables are told by what stands in their
comment lines, as public scripts and astropy's tests have it of the service's own files ("WT data", "PC upper
limits", "PC -- hard data", a line that names the columns), and by what `emulator.archives` makes up beyond that
(the files of a source detection and the inside of a spectrum's archive). Where a file does not tell, there is a
gap; where it contradicts what is known, an error that names bundle and file.

Source: the service's page on retrieving products; swifttools 4.0.5 (`APIDocs/ukssdc/structures.md`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from prefect_xrt import answers, protocol
from prefect_xrt.archive import ARCHIVE_FORMATS, ArchiveReader
from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    OutputError,
    ResultFileError,
    UnsafeArchiveError,
    XRTError,
)
from prefect_xrt.protocol import Job, as_number
from prefect_xrt.records import read_record
from prefect_xrt.request import Product
from prefect_xrt.results import (
    MET_SINCE_T0,
    MJD,
    POSITION_PRODUCTS,
    Curve,
    LightCurve,
    ModeFits,
    ModelFit,
    Position,
    Provenance,
    Result,
    SourceList,
    SpectralFits,
    SpectrumFits,
    require,
)

__all__ = [
    "UNKNOWN_TIMES",
    "BandImage",
    "ImageSet",
    "read_images",
    "read_light_curve",
    "read_position",
    "read_products",
    "read_source_list",
    "read_spectral_fits",
]

UNKNOWN_TIMES = "unknown"
"""The time system of a light curve whose files do not tell it, and whose job is not at hand either."""

MAX_TEXT_BYTES = 2**28
"""How much of one bundle is read into memory, in bytes; a light curve of a million bins has half of it."""

_CHUNK_BYTES = 2**20
_JOB_FOLDER = re.compile(r"USERPROD_([0-9]{1,15})", re.ASCII)
_FOLDERS_ABOVE = 3


class BandImage(BaseModel):
    """The image of one band."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(description="The service's number of the image.")
    low_kev: float = Field(description="The lower end of its band, in keV.")
    high_kev: float = Field(description="The upper end of its band, in keV.")
    fits: str = Field(description="The file in the bundle that holds it, as gzipped FITS.")
    picture: str | None = Field(default=None, description="The file with its picture, or None.")


class ImageSet(BaseModel):
    """The images of a job: which file of a bundle holds which band.

    What is in the files is not looked at.

    Source: the service's page on retrieving products, "Image".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: tuple[BandImage, ...] = Field(description="In the order of `images.log`.")
    exposure_map: str | None = Field(
        default=None, description="The file with the exposure map without vignetting, or None."
    )
    vignetted_exposure_map: str | None = Field(
        default=None, description="The file with the exposure map with vignetting, or None."
    )
    provenance: Provenance


def read_position(
    path: Path, product: Product | str = Product.STANDARD_POS, *, job: Job | None = None
) -> Position:
    """Read a position from a bundle.

    A position from a catalogue is in `INSXPS`. Else the standard position is in `results.dat` (`NOPOS`: there
    is none), the astrometric one in `corrpos.dat` (a file `NOCORR` instead: there is none), and the enhanced
    one in the eleven lines of `success.txt` (a lone 0 instead: there is none).

    Args:
        path: A bundle, or a folder that one was unpacked to.
        product: StandardPos, EnhancedPos or AstromPos.
        job: The job, where no `job.json` beside the bundle tells it.

    Raises:
        ConfigurationError: The product is no position.
        ArchiveError: The bundle is damaged.
        UnsafeArchiveError: It holds what must not be unpacked, or too much.
        ResultFileError: It does not hold this product, or holds something else than a position.
        OutputError: It, or `job.json`, cannot be read.
    """
    if product not in POSITION_PRODUCTS:
        raise ConfigurationError(f"{product} is not a position.")
    return _position(_found(path, Product(product), job))


def read_light_curve(path: Path, *, job: Job | None = None) -> LightCurve:
    """Read all light curves from a bundle: `WTCURVE.qdp`, `PCUL.qdp`, `PCHR.qdp`, `PCCURVE_incbad.qdp` and so on.

    Datasets have the service's names for them, and are those that `retrieve_light_curve` gives with
    `systematics="both"` and `unreliable="both"`, as far as they have files: where no bin is flagged, the service
    may answer `WT` once more as `WT_incbad` without a file for it. `curve.qdp`, which has the same bins with
    fewer columns, is read where there is no other file.

    Times are in the system that the file tells (a column MJD) or else the job (`lctimetype`); without either
    they are in `UNKNOWN_TIMES`, have no unit, and are not converted. T0 and binning are the job's, else None.

    In a hardness ratio file whose tables have no titles, the hard band comes first, then the soft one.

    Args:
        path: A bundle, or a folder that one was unpacked to.
        job: The job, where no `job.json` beside the bundle tells it.

    Raises:
        ConfigurationError: The extra is not installed.
        ArchiveError: The bundle is damaged.
        UnsafeArchiveError: It holds what must not be unpacked, or too much.
        ResultFileError: It holds no light curve, or a file in it holds something else than tables.
        OutputError: It, or `job.json`, cannot be read.
    """
    require("numpy")
    return _light_curve(_found(path, Product.LIGHT_CURVE, job))


def read_spectral_fits(path: Path, *, job: Job | None = None) -> SpectralFits:
    """Read which spectra, modes and models a bundle has.

    It holds files for XSPEC, and no numbers of fits: those are gaps, as are start, stop, mean time, exposure and
    Galactic column density. Whether a model that was set up was fitted cannot be told: `fitted` is None. T0 and
    the change of the statistic are the job's, else None.

    Args:
        path: A bundle, or a folder that one was unpacked to.
        job: The job, where no `job.json` beside the bundle tells it.

    Raises:
        ArchiveError: The bundle, or a spectrum's archive in it, is damaged.
        UnsafeArchiveError: One of them holds what must not be unpacked, or too much.
        ResultFileError: It holds no files of a spectrum.
        OutputError: It, or `job.json`, cannot be read.
    """
    return _spectral_fits(_found(path, Product.SPECTRUM, job))


def read_source_list(path: Path, *, job: Job | None = None) -> SourceList:
    """Read the detected sources from a bundle: a table `sources_<band>.txt` for each band.

    The service does not document these files: their layout is that of the embedded service.

    Args:
        path: A bundle, or a folder that one was unpacked to.
        job: The job, where no `job.json` beside the bundle tells it.

    Raises:
        ArchiveError: The bundle is damaged.
        UnsafeArchiveError: It holds what must not be unpacked, or too much.
        ResultFileError: It holds no source list, or a file in it holds something else than a table of sources.
        OutputError: It, or `job.json`, cannot be read.
    """
    return _source_list(_found(path, Product.SOURCE_DET, job))


def read_images(path: Path, *, job: Job | None = None) -> ImageSet:
    """Read from `images.log` which image in a bundle is of which band.

    Args:
        path: A bundle, or a folder that one was unpacked to.
        job: The job, where no `job.json` beside the bundle tells it.

    Raises:
        ArchiveError: The bundle is damaged.
        UnsafeArchiveError: It holds what must not be unpacked, or too much.
        ResultFileError: It holds no images, or not those that `images.log` names.
        OutputError: It, or `job.json`, cannot be read.
    """
    return _images(_found(path, Product.IMAGE, job))


def read_products(
    directory: Path,
) -> tuple[dict[Product, Result | ImageSet], dict[Product, XRTError]]:
    """Read all that was downloaded into a folder; what cannot be read does not keep the rest back.

    A product's own bundle is read first, whatever its format, else the folder that it was unpacked to, else
    its part of an `all` bundle.

    Args:
        directory: A folder that a job was downloaded to.

    Returns:
        The result of each product that is there, and what kept each of the others back.

    Raises:
        OutputError: The folder, or its `job.json`, cannot be read.
    """
    with _readable(directory):
        names = set(os.listdir(directory))
    job = _job_at([directory])
    read: dict[Product, Result | ImageSet] = {}
    problems: dict[Product, XRTError] = {}
    for product, short in protocol.SHORT_NAMES.items():
        places = [f"{short}.{form}" for form in ARCHIVE_FORMATS]
        places += [short, *(f"all.{form}" for form in ARCHIVE_FORMATS)]
        place = next((name for name in places if name in names), None)
        if place is None:
            continue
        try:
            files = _gather(directory / place, product, job, beside=True)
            if files.names or not place.startswith("all."):
                read[product] = _READERS[product](_not_empty(files))
        except XRTError as error:
            problems[product] = error
    return read, problems


@dataclass(frozen=True)
class _Files:
    """The files of one product in a bundle, and what of them was read.

    Attributes:
        path: The bundle, or the folder.
        product: The product.
        folder: Where in it the product's files are.
        number: The number in the name of the job's folder, if there is one.
        names: The names of the product's files.
        contents: Of those that were wanted.
        archives: The names of the files in the archives among them, where those were wanted.
        sha256: Of the bundle.
        job: The job, if it is known.
    """

    path: Path
    product: Product
    folder: PurePosixPath
    number: int | None
    names: Sequence[str]
    contents: Mapping[str, bytes]
    archives: Mapping[str, Sequence[str]]
    sha256: str
    job: Job | None

    def error(self, name: str, problem: str) -> ResultFileError:
        return ResultFileError(f"{name} in {self.path} {problem}")

    def text(self, name: str) -> str:
        if name not in self.contents:
            raise ResultFileError(f"{self.path} has no {name} of a {self.product.value}.")
        text = self.contents[name].decode("utf-8-sig", "replace")
        if not text.strip():
            raise self.error(name, "is empty.")
        return text

    def lines(self, name: str) -> list[str]:
        return [line.strip() for line in self.text(name).rstrip().split("\n")]

    def url(self, name: str) -> str | None:
        """Return where the service had a file, as its answers have it."""
        return f"{self.job.url.rstrip('/')}/{protocol.SHORT_NAMES[self.product]}/{name}" if self.job else None

    def parameter(self, name: str) -> str:
        return str(self.job.parameters.get(name, "")).strip() if self.job else ""

    @contextmanager
    def checking(self, name: str) -> Iterator[None]:
        """Let what is wrong with values say where they are from."""
        try:
            yield
        except AnswerError as error:
            raise self.error(name, f"cannot be taken: {error.message}") from error

    @property
    def provenance(self) -> Provenance:
        return Provenance(
            job_id=self.job.id if self.job else self.number,
            job_name=self.job.name if self.job else None,
            request=self.job.parameters if self.job else {},
            retrieved_at=datetime.now(UTC),
            source=str(self.path),
            sha256=self.sha256,
        )


def _found(path: Path, product: Product, job: Job | None) -> _Files:
    return _not_empty(_gather(Path(path), product, job, beside=False))


def _not_empty(files: _Files) -> _Files:
    if not files.names:
        raise ResultFileError(f"{files.path} holds no files of a {files.product.value}.")
    return files


_WANTED: Mapping[Product, re.Pattern[str]] = {
    Product.LIGHT_CURVE: re.compile(r"([A-Z]{2}(CURVE|UL|HR)|curve)(_nosys)?(_incbad)?\.qdp", re.ASCII),
    Product.SPECTRUM: re.compile(r"[\w.+-]+\.(tar\.gz|tgz|tar)", re.ASCII),
    Product.STANDARD_POS: re.compile(r"INSXPS|results\.dat"),
    Product.ENHANCED_POS: re.compile(r"success\.txt"),
    Product.ASTROM_POS: re.compile(r"INSXPS|corrpos\.dat"),
    Product.IMAGE: re.compile(r"images\.log"),
    Product.SOURCE_DET: re.compile(r"sources_[A-Za-z]+\.txt", re.ASCII),
}


def _gather(path: Path, product: Product, job: Job | None, *, beside: bool) -> _Files:
    """Read what is needed of one product.

    Args:
        path: A bundle, or a folder that one was unpacked to.
        product: The product.
        job: The job, if it is known.
        beside: Whether the job is what a record beside the bundle says, which may be of another.
    """
    short = protocol.SHORT_NAMES[product]
    contents = _Contents(path, product)
    with _readable(path):
        if path.is_dir():
            _read_folder(path, short, contents)
            above = [path, *path.absolute().parents[: _FOLDERS_ABOVE if contents.number is not None else 1]]
            digest = contents.sha256()
        else:
            _read_bundle(path, short, contents)
            above = [path.parent]
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if job is None:
        job, beside = _job_at(above), True
    if job and contents.number is not None and not _is_of(contents.number, job):
        if not beside:
            raise ResultFileError(f"{path} is of USERPROD_{contents.number}, and not of {job}.")
        job = None
    return _Files(
        path=path,
        product=product,
        folder=contents.folder,
        number=contents.number,
        names=contents.names,
        contents=contents.texts,
        archives=contents.archives,
        sha256=digest,
        job=job,
    )


def _job_at(folders: Iterable[Path]) -> Job | None:
    return next((record.job for folder in folders if (record := read_record(folder))), None)


def _is_of(number: int, job: Job) -> bool:
    """Tell whether a job's folder has a number; the service may give others than the job's own."""
    return number == job.id or job.url.rstrip("/").endswith(f"/USERPROD_{number}")


class _Contents:
    """What was found of one product; takes only so much into memory."""

    def __init__(self, path: Path, product: Product) -> None:
        self._path = path
        self._wanted = _WANTED[product]
        self._nested = product is Product.SPECTRUM
        self._bytes = 0
        self._digests: dict[str, str] = {}
        self.folder = PurePosixPath()
        self.number: int | None = None
        self.names: list[str] = []
        self.texts: dict[str, bytes] = {}
        self.archives: dict[str, list[str]] = {}

    def place(self, folder: PurePosixPath, number: int | None) -> None:
        """Note where the files are.

        Raises:
            ResultFileError: There are others elsewhere.
        """
        if self.names and self.folder != folder:
            raise ResultFileError(f"{self._path} holds files of more than one job: {self.folder}, {folder}.")
        self.folder, self.number = folder, number

    def wants(self, name: str) -> bool:
        return bool(self._wanted.fullmatch(name))

    def add(self, name: str, stream: IO[bytes], reader: ArchiveReader | None = None) -> None:
        """Take a file, of the bundle that a reader reads or of a folder."""
        self.names.append(name)
        if not self.wants(name):
            return
        if self._nested:
            label = f"{self._path.name}, {name}"
            inner = (
                reader.within(label, stream) if reader else ArchiveReader(stream, name=label, innermost=True)
            )
            self.archives[name] = inner.names()
        else:
            self.texts[name] = self._read(stream)

    def _read(self, stream: IO[bytes]) -> bytes:
        chunks = []
        while chunk := stream.read(_CHUNK_BYTES):
            self._bytes += len(chunk)
            if self._bytes > MAX_TEXT_BYTES:
                raise UnsafeArchiveError(f"{self._path.name} has tables of more than {MAX_TEXT_BYTES} bytes.")
            chunks.append(chunk)
        return b"".join(chunks)

    def add_link(self, name: str, target: str | None) -> None:
        """Take a second name of a file that was read."""
        self.names.append(name)
        if not self.wants(name):
            return
        if target in self.texts:
            self.texts[name] = self.texts[target]
        elif target in self.archives:
            self.archives[name] = self.archives[target]
        else:
            raise ResultFileError(
                f"{name} in {self._path} is a link to a file that was not read; unpack the bundle and read that."
            )

    def note(self, name: str, digest: str) -> None:
        self._digests[name] = digest

    def sha256(self) -> str:
        """Return the SHA-256 of what `sha256sum` prints of the files that were read, in order of their names."""
        lines = [f"{digest}  {self.folder / name}\n" for name, digest in sorted(self._digests.items())]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _read_bundle(path: Path, short: str, contents: _Contents) -> None:
    """Read a bundle to its end, held to the rules of unpacking it.

    Of archives within it, only those are opened that are looked for.
    """
    reader = ArchiveReader(path)
    for place, stream in reader.entries():
        inside = _inside(place, short)
        if inside and stream is not None:
            contents.place(*inside[:2])
            contents.add(inside[2], stream, reader)
    for place, target in reader.links.items():
        inside, source = _inside(place, short), _inside(target, short)
        if inside:
            contents.place(*inside[:2])
            contents.add_link(inside[2], source[2] if source else None)


def _inside(place: PurePosixPath, short: str) -> tuple[PurePosixPath, int | None, str] | None:
    """Return a product's folder, its job's number and the name in it, if a file is in such a folder."""
    parts = place.parts
    job = _JOB_FOLDER.fullmatch(parts[0]) if parts else None
    start = 1 if job else 0
    if parts[start : start + 1] != (short,) or len(parts) < start + 2:
        return None
    folder = PurePosixPath(*parts[: start + 1])
    return folder, int(job[1]) if job else None, "/".join(parts[start + 1 :])


def _read_folder(path: Path, short: str, contents: _Contents) -> None:
    """Read what a bundle was unpacked to; links lead nowhere."""
    for folder, number in _product_folders(path, short):
        for name in _files_below(path / folder):
            contents.place(PurePosixPath(folder), number)
            place = path / folder / name
            if not contents.wants(name):
                contents.names.append(name)
                continue
            with _open_file(place) as stream:
                contents.note(name, hashlib.file_digest(stream, "sha256").hexdigest())
                stream.seek(0)
                contents.add(name, stream)


def _product_folders(path: Path, short: str) -> Iterator[tuple[Path, int | None]]:
    jobs = sorted(
        entry.name
        for entry in path.iterdir()
        if _JOB_FOLDER.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink()
    )
    for name in jobs:
        yield Path(name, short), int(name.removeprefix("USERPROD_"))
    if not jobs:
        above = _JOB_FOLDER.fullmatch(path.absolute().name)
        yield Path(short), int(above[1]) if above else None
        if path.absolute().name == short and not (path / short).exists():
            parent = _JOB_FOLDER.fullmatch(path.absolute().parent.name)
            yield Path(), int(parent[1]) if parent else None


def _files_below(folder: Path) -> Iterator[str]:
    if folder.is_symlink():
        return
    for base, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield (Path(base) / name).relative_to(folder).as_posix()


@contextmanager
def _open_file(place: Path) -> Iterator[BufferedReader]:
    kind = place.lstat().st_mode
    if not stat.S_ISREG(kind):
        raise UnsafeArchiveError(f"{place} is not a file; what a bundle is unpacked to holds only files.")
    with place.open("rb") as stream:
        yield stream


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}.") from error


# Right ascension or declination in hours or degrees, minutes and seconds: tells that no field is missing.
_SEXAGESIMAL = re.compile(
    r"[+-]?[0-9]{1,3}[^0-9.]{1,3}[0-9]{1,2}[^0-9.]{1,3}[0-9]{1,2}(\.[0-9]*)?[^0-9.]{0,3}"
)
_CATALOGUE_LINES = 8
_ENHANCED_LINES = 11
_STANDARD_FIELDS = (7, 11)
_CORRECTED_FIELDS = 5


def _position(files: _Files) -> Position:
    if "INSXPS" in files.contents:
        lines = _counted(files, "INSXPS", files.lines("INSXPS"), (_CATALOGUE_LINES,), "lines")
        ra, dec, error, *sexagesimal = lines[1:6]
        return _make_position(files, "INSXPS", (ra, dec, *sexagesimal, error), lines[7] or None)
    if files.product is Product.ENHANCED_POS:
        return _enhanced_position(files)
    return _astrometric_position(files) if files.product is Product.ASTROM_POS else _standard_position(files)


def _standard_position(files: _Files) -> Position:
    fields = _fields(files, "results.dat")
    if fields == ["NOPOS"]:
        return _no_position(files, "results.dat says NOPOS: no position could be found.")
    _counted(files, "results.dat", fields, _STANDARD_FIELDS, "fields")
    return _make_position(files, "results.dat", fields[:5])


def _enhanced_position(files: _Files) -> Position:
    lines = files.lines("success.txt")
    if lines in (["0"], ["NOPOS"]):
        return _no_position(files, f"success.txt says {lines[0]}: no enhanced position could be made.")
    _counted(files, "success.txt", lines, (_ENHANCED_LINES,), "lines")
    return _make_position(files, "success.txt", lines[6:])


def _astrometric_position(files: _Files) -> Position:
    name = "corrpos.dat"
    if "NOCORR" not in files.names:
        fields = _counted(files, name, _fields(files, name), (_CORRECTED_FIELDS,), "fields")
        return _make_position(files, name, fields)
    if name in files.names:
        raise ResultFileError(f"{files.path} holds both {name} and NOCORR, a position and none.")
    return _no_position(files, "The archive holds NOCORR: no astrometric position could be made.")


def _fields(files: _Files, name: str) -> list[str]:
    lines = [line for line in files.text(name).split("\n") if line.strip()]
    if len(lines) != 1:
        raise files.error(name, f"has {len(lines)} lines, not one.")
    return [part.strip() for part in lines[0].rstrip().split("\t")]


def _counted(files: _Files, name: str, parts: list[str], counts: Sequence[int], what: str) -> list[str]:
    if len(parts) not in counts:
        expected = " or ".join(map(str, counts))
        raise files.error(name, f"has {len(parts)} {what}, not {expected}.")
    return parts


def _make_position(files: _Files, name: str, fields: Sequence[str], catalogue: str | None = None) -> Position:
    ra, dec, error = (as_number(fields[index]) for index in (0, 1, 4))
    if ra is None or dec is None or error is None or not all(map(_SEXAGESIMAL.fullmatch, fields[2:4])):
        raise files.error(name, f"holds {list(fields)!r:.200}, not a position and its error.")
    if not (0 <= ra <= 360 and -90 <= dec <= 90 and error >= 0):  # noqa: PLR2004 - degrees
        raise files.error(name, f"holds a position ({ra}, {dec}, {error}) that is nowhere in the sky.")
    return Position(
        product=files.product,
        found=True,
        ra_deg=ra,
        dec_deg=dec,
        err90_arcsec=error,
        catalogue=catalogue,
        provenance=files.provenance,
    )


def _no_position(files: _Files, reason: str) -> Position:
    return Position(product=files.product, found=False, reason=reason, provenance=files.provenance)


@dataclass
class _Table:
    """A table of a .qdp file.

    Attributes:
        title: The mode and the kind that a comment line before it names, or None.
        names: The columns.
        in_days: Whether the first one is called MJD.
        rows: The values; None where the file says NO.
    """

    title: tuple[str, str] | None
    names: list[str]
    in_days: bool
    rows: list[list[str | None]] = field(default_factory=list)


_TITLE = re.compile(
    r"\s*(?-i:([A-Z]{2}))\s*(?:--)?\s*(upper limits?|hardness ratio|hard|soft|data)(?: data)?\s*", re.I
)
_KINDS = {"upper limit": "UL", "upper limits": "UL", "hardness ratio": "HR", "hard": "Hard", "soft": "Soft"}
_ERRORS_COMMAND = re.compile(r"\s*READ\s+([TS])ERR((?:\s+[0-9]{1,3})+)\s*", re.I | re.ASCII)
_COMMAND = re.compile(r"\s*(SKIP|LA|LAB|LABEL|LOG|R|RESCALE|TIME|LINE|MARKER|COLOR|FONT|LW|CSIZE)\b", re.I)
_COLUMNS = {
    name.lower(): name
    for name in (
        *("Time", "TimePos", "TimeNeg", "Rate", "RatePos", "RateNeg", "RateErr", "UpperLimit", "HR", "HRErr"),
        *(
            "FracExp",
            "BGrate",
            "BGerr",
            "CorrFact",
            "CtsInSrc",
            "BGInSrc",
            "Exposure",
            "Sigma",
            "SNR",
            "ObsID",
        ),
    )
} | {"mjd": "Time", "t_+ve": "TimePos", "t_-ve": "TimeNeg"}
_ERROR_COLUMN = re.compile(r"err(?:or)?\s*(?:\((pos|neg)\))?", re.I)
# As comments name them, if they do not name them all: the commonest first, for only one can have the right number.
_SPLITS = (re.compile(r"\t"), re.compile(r"\s{2,}"), re.compile(r"\s+"))


class _QDP:
    """Reads the tables of a .qdp file, line by line."""

    def __init__(self, files: _Files, name: str) -> None:
        self._files = files
        self._name = name
        self._title: tuple[str, str] | None = None
        self._labels: str | None = None
        self._errors: dict[int, int] = {}
        self._table: _Table | None = None
        self.tables: list[_Table] = []

    def read(self) -> list[_Table]:
        for number, line in enumerate(self._files.text(self._name).split("\n"), 1):
            content, _, comment = line.partition("!")
            if content.strip():
                self._content(number, content)
            elif comment.strip():
                self._comment(comment)
        if not self.tables:
            raise self._files.error(self._name, "holds no table.")
        return self.tables

    def _comment(self, comment: str) -> None:
        title = _TITLE.fullmatch(comment)
        if title:
            self._table = None
            kind = title[2].lower()
            self._title = (title[1].upper(), _KINDS.get(" ".join(kind.split()), ""))
        elif comment.split(maxsplit=1)[0].lower() in ("time", "mjd"):
            self._table = None
            self._labels = comment

    def _content(self, number: int, content: str) -> None:
        command = _ERRORS_COMMAND.fullmatch(content)
        cells = _cells(content)
        if command:
            if self._table:
                self._table, self._title, self._errors = None, None, {}
            self._errors |= dict.fromkeys(map(int, command[2].split()), 2 if command[1].upper() == "T" else 1)
        elif not any(cells):
            self._table, self._title = None, None
        elif not (self._table is None and _COMMAND.match(content)):
            self._row(number, cells)

    def _row(self, number: int, cells: list[str | None]) -> None:
        if self._table is None:
            self._table = _Table(self._title, *self._columns(number, cells))
            self.tables.append(self._table)
        width = len(self._table.names)
        if len(cells) > width and not any(cells[width:]):
            cells = cells[:width]
        if len(cells) != width:
            raise self._files.error(
                self._name, f"has {len(cells)} values in line {number}, and {width} columns."
            )
        self._table.rows.append(cells)

    def _columns(self, number: int, cells: list[str | None]) -> tuple[list[str], bool]:
        """Return the columns' names, and whether the first one is called MJD."""
        width = len(cells)
        while width and not cells[width - 1] and cells[width - 1] is not None:
            width -= 1
        if self._labels is None:
            names = self._columns_by_command()
            if len(names) == len(cells):
                return names, False
            raise self._files.error(self._name, f"does not say what the columns in line {number} are.")
        for split in _SPLITS:
            labels = [label.strip() for label in split.split(self._labels.strip())]
            if width <= len(labels) <= len(cells):
                names = _named(labels)
                twice = {name for name in names if names.count(name) > 1}
                if twice:
                    raise self._files.error(self._name, f"has two columns {min(twice)}.")
                return names, labels[0].lower() == "mjd"
        raise self._files.error(
            self._name,
            f"has {len(cells)} values in line {number}, and columns {self._labels.strip()!r:.200}.",
        )

    def _columns_by_command(self) -> list[str]:
        """Return what the columns are if only `READ TERR` and its like tell: times first, then rates."""
        endings = {0: (), 1: ("Err",), 2: ("Pos", "Neg")}
        return [
            f"{base}{ending}"
            for column, base in enumerate(("Time", "Rate"), 1)
            for ending in ("", *endings[self._errors.get(column, 0)])
        ]


def _cells(content: str) -> list[str | None]:
    cells = content.rstrip("\r").split("\t") if "\t" in content.strip() else content.split()
    return [None if (cell := text.strip()).upper() == "NO" else cell for text in cells]


def _named(labels: Sequence[str]) -> list[str]:
    names: list[str] = []
    base = ""
    for label in labels:
        error = _ERROR_COLUMN.fullmatch(label)
        if error:
            names.append(f"{base}{(error[1] or 'Err').capitalize()}")
        else:
            names.append(_COLUMNS.get(label.lower(), label))
            base = names[-1]
    return names


_CURVE_FILE = re.compile(r"(?:([A-Z]{2})(CURVE|UL|HR)|curve)((?:_nosys)?(?:_incbad)?)\.qdp")
_FILE_KINDS = {"CURVE": "", "UL": "UL", "HR": "HR", None: ""}
_TIMES = ("Time", "TimePos", "TimeNeg")
_MODE_ORDER = ("WT", "PC")
_KIND_ORDER = ("", "Hard", "Soft", "HR", "UL")
_BINNING = {"counts": "Counts", "time": "Time", "snapshot": "Snapshot", "obsid": "Observation"}


def _light_curve(files: _Files) -> LightCurve:
    found: dict[tuple[str, str, str], tuple[str, _Table]] = {}
    for name in _curve_files(files.contents):
        match = _CURVE_FILE.fullmatch(name)
        mode, kind, ending = match.groups() if match else (None, None, "")
        for title, table in _datasets(files, name, mode, _FILE_KINDS[kind]):
            key = (*title, ending)
            if key in found:
                raise files.error(name, f"holds {''.join(key)}, which is there already.")
            found[key] = (name, table)
    if not found:
        raise ResultFileError(f"{files.path} holds no light curve: no .qdp file has a name that is known.")
    days = {table.in_days for _, table in found.values()}
    if len(days) > 1:
        raise ResultFileError(f"{files.path} holds light curves in MJD, and others that are not.")
    system = MJD if days == {True} else _time_system(files)
    curves = {}
    for key in sorted(found, key=_order):
        name, table = found[key]
        curves["".join(key)] = _curve(files, name, "".join(key), table, system)
    return LightCurve(
        curves=curves,
        t0_met_s=as_number(files.parameter("Tstart")),
        binning=_BINNING.get(files.parameter("binMeth").lower()),
        time_system=system,
        provenance=files.provenance,
    )


def _curve_files(names: Iterable[str]) -> list[str]:
    """Return the files to read: those of single modes, and where there are none those of all."""
    detailed = {match[3] for name in names if (match := _CURVE_FILE.fullmatch(name)) and match[1]}
    return [
        name
        for name in sorted(names)
        if (match := _CURVE_FILE.fullmatch(name)) and (match[1] or match[3] not in detailed)
    ]


def _order(key: tuple[str, str, str]) -> tuple[object, ...]:
    """Return what puts datasets into the service's order."""
    mode, kind, ending = key
    known = _MODE_ORDER.index(mode) if mode in _MODE_ORDER else len(_MODE_ORDER)
    return "_incbad" in ending, known, mode, ending, _KIND_ORDER.index(kind)


def _time_system(files: _Files) -> str:
    kind = files.parameter("lctimetype").lower()
    return {"s": MET_SINCE_T0, "sec": MET_SINCE_T0, "m": MJD, "mjd": MJD}.get(kind, UNKNOWN_TIMES)


def _datasets(
    files: _Files, name: str, mode: str | None, kind: str
) -> Iterator[tuple[tuple[str, str], _Table]]:
    """Give the tables of a file with the mode and the kind of each."""
    tables = _QDP(files, name).read()
    rates = sum(table.title is None and _is_rates(table) for table in tables)
    bands = iter(("Hard", "Soft"))
    for table in tables:
        title = table.title or (mode or "", "")
        if not title[0] or (mode and title[0] != mode):
            raise files.error(
                name, f"does not say which mode a table is of, or has one of {title[0] or '?'}."
            )
        if _is_wide(table):
            yield from _split(table, title[0])
            continue
        of = title[1] or ("UL" if "UpperLimit" in table.names else kind)
        if of == "HR" and table.title is None and _is_rates(table):
            # Without titles, only the order tells hard from soft.
            if rates != len(_TIMES) - 1 or len(tables) != len(_TIMES):
                raise files.error(name, "does not say which of its tables are of the hard and the soft band.")
            of = next(bands)
        if of == "HR":
            table.names = [{"Rate": "HR", "RateErr": "HRErr"}.get(column, column) for column in table.names]
        yield (title[0], of), table


def _is_rates(table: _Table) -> bool:
    return "Rate" in table.names and "HR" not in table.names


def _is_wide(table: _Table) -> bool:
    """Tell whether hard band, soft band and hardness ratio stand beside one another."""
    return "HR" in table.names and any(name.startswith(("Hard", "Soft")) for name in table.names)


def _split(table: _Table, mode: str) -> Iterator[tuple[tuple[str, str], _Table]]:
    for kind in ("Hard", "Soft", "HR"):
        chosen = {
            index: _band_column(name, kind)
            for index, name in enumerate(table.names)
            if name in (*_TIMES, "ObsID") or _kind_of(name) == kind
        }
        rows = [[row[index] for index in chosen] for row in table.rows]
        yield (mode, kind), _Table(table.title, list(chosen.values()), table.in_days, rows)


def _kind_of(column: str) -> str:
    return next((kind for kind in ("Hard", "Soft") if column.startswith(kind)), "HR")


def _band_column(name: str, kind: str) -> str:
    spelt = {kind.lower(): "Rate", f"{kind}rate".lower(): "Rate", f"{kind}err".lower(): "RateErr"}
    return name if kind == "HR" else spelt.get(name.lower(), name)


def _curve(files: _Files, name: str, dataset: str, table: _Table, system: str) -> Curve:
    rows: list[object] = [list(row) for row in table.rows]
    with files.checking(name):
        return answers.make_curve(
            dataset,
            table.names,
            rows,  # type: ignore[arg-type]  # texts are JSON
            time_system=system,
            file_url=files.url(name),
        )


_SPECTRUM = re.compile(r"([\w+-][\w.+-]*?)\.(?:tar\.gz|tgz|tar)", re.ASCII)
_PICTURED_MODELS = {"": "PowerLaw", "_apec": "APEC", "_bbody": "BlackBody"}


def _spectral_fits(files: _Files) -> SpectralFits:
    spectra = {}
    for name, inside in files.archives.items():
        match = _SPECTRUM.fullmatch(name)
        if match is None or match[1] in spectra:
            raise files.error(name, "has no name of its own for a spectrum.")
        spectra[match[1]] = SpectrumFits(
            data_file_url=files.url(name),
            modes={
                mode.upper(): ModeFits(models=_models(files, f"{match[1]}{mode}", inside))
                for mode in _modes(match[1], inside)
            },
        )
    return SpectralFits(
        t0_met_s=as_number(files.parameter("Tstart")),
        delta_statistic=as_number(files.parameter("dchi")),
        spectra=spectra,
        provenance=files.provenance,
    )


def _modes(spectrum: str, inside: Iterable[str]) -> list[str]:
    """Return the modes that a spectrum has files of, in the order of the files."""
    file = re.compile(rf"{re.escape(spectrum)}([a-z]{{2}})(?:source|back)?\.(?:pi|pha|arf|rmf)", re.ASCII)
    return list(dict.fromkeys(match[1] for name in inside if (match := file.fullmatch(name))))


def _models(files: _Files, stem: str, inside: Iterable[str]) -> dict[str, ModelFit]:
    script = re.compile(rf"(?:models/)?{re.escape(stem)}_([A-Za-z0-9]+)\.xcm", re.ASCII)
    picture = re.compile(rf"{re.escape(stem)}(|_[a-z0-9]+)_plot\.gif", re.ASCII)
    pictures = {match[1]: name for name in files.names if (match := picture.fullmatch(name))}
    models = [match[1] for name in inside if (match := script.fullmatch(name))]
    models += [model for kind, model in _PICTURED_MODELS.items() if kind in pictures]
    kinds = {model: kind for kind, model in _PICTURED_MODELS.items()}
    fits = {}
    for model in dict.fromkeys(models):
        shown = pictures.get(kinds.get(model, f"_{model.lower()}"))
        fits[model] = ModelFit(fitted=None, image_url=files.url(shown) if shown else None)
    return fits


_BANDS = ("Total", "Soft", "Medium", "Hard")


def _source_list(files: _Files) -> SourceList:
    bands = {}
    for name in files.contents:
        band = name.removeprefix("sources_").removesuffix(".txt").capitalize()
        if band in bands:
            raise files.error(name, f"holds the sources of {band}, which are there already.")
        with files.checking(name):
            bands[band] = answers.make_sources(band, list(_sources(files, name)))
    if not bands:
        raise ResultFileError(f"{files.path} holds no source list (sources_total.txt).")
    order = {band: index for index, band in enumerate(_BANDS)}
    ordered = sorted(bands, key=lambda band: (order.get(band, len(order)), band))
    return SourceList(bands={band: bands[band] for band in ordered}, provenance=files.provenance)


def _sources(files: _Files, name: str) -> Iterator[dict[str, JsonValue]]:
    names: list[str] | None = None
    for number, line in enumerate(files.text(name).split("\n"), 1):
        tabs = "\t" in line
        cells = [cell.strip() for cell in line.rstrip("\r").lstrip("!#").split("\t" if tabs else None)]
        if not any(cells):
            continue
        if names is None:
            names = cells
            if not line.startswith(("!", "#")) or len(set(cells)) < len(cells) or not all(cells):
                raise files.error(name, "does not begin with the names of its columns.")
        elif not line.startswith(("!", "#")):
            if len(cells) != len(names):
                raise files.error(
                    name, f"has {len(cells)} values in line {number}, and {len(names)} columns."
                )
            source: dict[str, JsonValue] = dict(zip(names, cells, strict=True))
            yield source


_IMAGE_FIELDS = 3


def _images(files: _Files) -> ImageSet:
    name = "images.log"
    images: dict[int, BandImage] = {}
    for line in files.lines(name):
        fields = line.split()
        if not fields:
            continue
        number = int(fields[0]) if re.fullmatch(r"[0-9]{1,9}", fields[0], re.ASCII) else None
        low, high = (
            (as_number(text) for text in fields[1:3]) if len(fields) == _IMAGE_FIELDS else (None, None)
        )
        if number is None or low is None or high is None or not 0 <= low < high:
            raise files.error(name, f"holds {line!r:.200}, not the number and the band of an image.")
        if number in images:
            raise files.error(name, f"names image {number} twice.")
        fits = f"image{number}.img.gz"
        if fits not in files.names:
            raise files.error(name, f"names image {number}, but there is no {fits}.")
        images[number] = BandImage(
            number=number,
            low_kev=low,
            high_kev=high,
            fits=str(files.folder / fits),
            picture=_if_there(files, f"image{number}.gif"),
        )
    return ImageSet(
        images=tuple(images.values()),
        exposure_map=_if_there(files, "summed_ex.img.gz"),
        vignetted_exposure_map=_if_there(files, "summed_vignet_ex.img.gz"),
        provenance=files.provenance,
    )


def _if_there(files: _Files, name: str) -> str | None:
    return str(files.folder / name) if name in files.names else None


_READERS: Mapping[Product, Callable[[_Files], Result | ImageSet]] = {
    **dict.fromkeys(POSITION_PRODUCTS, _position),
    Product.LIGHT_CURVE: _light_curve,
    Product.SPECTRUM: _spectral_fits,
    Product.SOURCE_DET: _source_list,
    Product.IMAGE: _images,
}
