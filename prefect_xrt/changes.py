"""What is new in a build, compared with an earlier one of the same request.

Two bundles of the same data never have the same checksum: the folder of the job has another name, and what was
made at another time says so. So their contents are compared, file by file, and archives and gzipped files in
them unpacked. Left out is what tells only of the making: logs and pictures, the comments of `.qdp` files, the
number of the job, and the cards of FITS headers with dates of writing, checksums, comments and history.

Observations are told by the IDs in the names of files (`Obs_00966554000.tar.gz`) and in the bins of light curves;
where a request has neither, such as with one spectrum and bins of so many counts, new bins tell of new data.

The rules are made after the documentation and the embedded service; the live service may write more into its
files that changes every time, and its products would be told as changed then.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt import bundles, protocol
from prefect_xrt.archive import ARCHIVE_FORMATS, ArchiveReader
from prefect_xrt.errors import OutputError, XRTError
from prefect_xrt.records import read_record
from prefect_xrt.request import Product, ProductRequest

__all__ = ["Changes", "compare", "earlier_builds", "find_bundle"]

_CHUNK_BYTES = 2**20
_CARD_BYTES = 80
_FITS = b"SIMPLE  ="
_NOTES = (b"DATE    ", b"CHECKSUM", b"DATASUM ", b"HISTORY ", b"COMMENT ", b"CREATOR ", b" " * _CARD_BYTES)
_JOB_FOLDER = re.compile(rb"USERPROD_[0-9]+")
_OBSERVATION = re.compile(r"(?<![0-9])[0-9]{11}(?![0-9])", re.ASCII)
_PICTURES = (".gif", ".png", ".jpg", ".jpeg", ".ps", ".eps", ".pdf")
_ARCHIVES = (*(f".{form}" for form in ARCHIVE_FORMATS), ".tgz")
_NAMED = 5


class Changes(BaseModel):
    """What a build has that the builds before it had not; all of it, where there was none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: int
    previous_job_id: int | None = Field(description="The JobID of the build before; None for the first.")
    new_targets: tuple[str, ...] = Field(default=(), description="Target IDs that the service has added.")
    new_observations: tuple[str, ...] = Field(
        default=(), description="IDs of 11 digits, where files tell them."
    )
    new_bins: dict[str, int] = Field(
        default_factory=dict,
        description='How many bins have other edges than all before: "WT", "PC", "PC upper limits" → number.',
    )
    new_products: tuple[Product, ...] = Field(default=(), description="Products that were not there before.")
    changed_products: tuple[Product, ...] = Field(
        default=(), description="Products whose files say something else than before."
    )
    remarks: tuple[str, ...] = Field(default=(), description="What could not be compared, and why.")

    @property
    def anything(self) -> bool:
        """Whether there is anything new."""
        return bool(
            self.new_targets
            or self.new_observations
            or self.new_bins
            or self.new_products
            or self.changed_products
        )

    def sentences(self) -> list[str]:
        """Return what is new, a sentence each, such as "1 new observation: 00966554008."."""
        if self.previous_job_id is None:
            return [f"The first build: {', '.join(self.new_products) or 'nothing is there'}."]
        bins = [f"{kind} {count}" for kind, count in self.new_bins.items()]
        told = [
            _counted("new target ID", len(self.new_targets), self.new_targets),
            _counted("new observation", len(self.new_observations), self.new_observations),
            _counted("new bin", sum(self.new_bins.values()), bins),
            f"New: {', '.join(self.new_products)}." if self.new_products else "",
            f"Changed: {', '.join(self.changed_products)}." if self.changed_products else "",
        ]
        return [*filter(None, told)] or ["Nothing new."]


def _counted(what: str, count: int, names: Sequence[str]) -> str:
    shown = [*names[:_NAMED], *([f"{len(names) - _NAMED} more"] if len(names) > _NAMED else [])]
    return f"{count} {what}{'s' if count > 1 else ''}: {', '.join(shown)}." if count else ""


@dataclass(frozen=True)
class _Content:
    """What a bundle says: its files by their checksums, its observations, and the edges of its bins."""

    files: Mapping[str, str]
    observations: frozenset[str]
    bins: Mapping[str, frozenset[tuple[object, ...]]]
    problem: str | None = None


def find_bundle(directory: Path, product: Product) -> Path | None:
    """Return the bundle of a product in a job's folder, whatever its format; None if there is none."""
    places = (directory / protocol.file_name(product, form) for form in ARCHIVE_FORMATS)
    return next((place for place in places if place.is_file()), None)


def earlier_builds(place: Path, request: ProductRequest, before: str) -> list[Path]:
    """Find the finished builds of a request among the folders in a folder, by their records.

    Args:
        place: The folder with a folder for each build, which are named so that their order is that of time.
        request: What was asked for; builds of another request are left out.
        before: The name of a folder; only those with names before it count.

    Returns:
        The folders that hold a bundle at least, the newest first.
    """
    found = []
    for folder in sorted(place.iterdir(), reverse=True) if place.is_dir() else ():
        record = None
        # One that cannot be read is nothing to compare with.
        with suppress(OutputError):
            record = read_record(folder) if folder.name < before and folder.is_dir() else None
        if record and record.finished_at and record.answers(request) and any(_bundles(folder)):
            found.append(folder)
    return found


def _bundles(directory: Path) -> Iterator[tuple[Product, Path]]:
    for product in Product:
        bundle = find_bundle(directory, product)
        if bundle:
            yield product, bundle


def compare(build: Path, earlier: Sequence[Path]) -> Changes:
    """Tell what a build has that is new.

    Each product is compared with the newest earlier build that has it: one that failed in between is not new
    when it is there again. A bin is the same where mode and edges are, counted from the same T0.

    Args:
        build: The folder of a finished build.
        earlier: The folders of those before it, the newest first; none for the first build.

    Raises:
        OutputError: The folder has no record of a job, or cannot be read.
    """
    record = read_record(build)
    if record is None:
        raise OutputError(f"{build} holds no job.json; it is not the folder of a build.")
    previous = read_record(earlier[0]) if earlier else None
    fresh: list[Product] = []
    changed: list[Product] = []
    observations: set[str] = set()
    bins: dict[str, int] = {}
    remarks: list[str] = []
    for product, bundle in _bundles(build):
        try:
            now = _read(bundle, product)
            before = _newest(earlier, product)
        except XRTError as error:
            remarks.append(f"{product.value} could not be compared: {error.message}")
            continue
        remarks += [
            f"Bins of the {product.value} could not be compared: {content.problem}"
            for content in (now, before)
            if content and content.problem
        ][:1]
        if before is None:
            fresh.append(product)
        elif now.files != before.files:
            changed.append(product)
        if before or not earlier:
            observations |= now.observations - (before.observations if before else frozenset())
        if not (before and before.problem):
            bins |= {kind: len(new) for kind, new in _new_bins(now, before).items() if new}
    return Changes(
        job_id=record.job.id,
        previous_job_id=previous.job.id if previous else None,
        new_targets=tuple(
            sorted(_targets(record.job) - (_targets(previous.job) if previous else frozenset()))
        ),
        new_observations=tuple(sorted(observations)),
        new_bins=bins,
        new_products=tuple(fresh),
        changed_products=tuple(changed),
        remarks=tuple(remarks),
    )


def _targets(job: protocol.Job) -> frozenset[str]:
    return frozenset(re.findall(r"[0-9]{8}", str(job.parameters.get("targ", "")), re.ASCII))


def _newest(earlier: Iterable[Path], product: Product) -> _Content | None:
    bundle = next(filter(None, (find_bundle(folder, product) for folder in earlier)), None)
    return _read(bundle, product) if bundle else None


def _new_bins(now: _Content, before: _Content | None) -> dict[str, frozenset[tuple[object, ...]]]:
    known = before.bins if before else {}
    return {kind: edges - known.get(kind, frozenset()) for kind, edges in now.bins.items()}


def _read(bundle: Path, product: Product) -> _Content:
    try:
        files = _checksums(ArchiveReader(bundle))
    except OSError as error:
        raise OutputError(f"{bundle} cannot be read: {error.strerror or error}.") from error
    observations = {found for name in files for found in _OBSERVATION.findall(name)}
    bins: dict[str, set[tuple[object, ...]]] = {}
    problem = None
    if product is Product.LIGHT_CURVE:
        try:
            observations |= _read_bins(bundle, bins)
        except XRTError as error:
            problem = error.message
    return _Content(
        files, frozenset(observations), {kind: frozenset(edges) for kind, edges in bins.items()}, problem
    )


def _read_bins(bundle: Path, bins: dict[str, set[tuple[object, ...]]]) -> set[str]:
    """Take down the edges of a light curve's bins, and return their observations."""
    light_curve = bundles.read_light_curve(bundle)
    observations: set[str] = set()
    for curve in light_curve.curves.values():
        observations.update(filter(None, curve.obs_ids or ()))
        if curve.band == "total":
            kind = f"{curve.mode or curve.name}{' upper limits' if curve.upper_limits else ''}"
            edges = (curve[name].tolist() for name in ("Time", "TimePos", "TimeNeg"))
            since = (light_curve.time_system, light_curve.t0_met_s)
            bins.setdefault(kind, set()).update((*since, *edge) for edge in zip(*edges, strict=True))
    return observations


def _checksums(reader: ArchiveReader, inside: str = "") -> dict[str, str]:
    """Return name → checksum of what the files in an archive say, those of archives in it among them."""
    found: dict[str, str] = {}
    for place, stream in reader.entries():
        name = _name(place.parts, inside)
        if stream is None or _tells_only_of_the_making(place.name):
            continue
        if place.name.lower().endswith(_ARCHIVES):
            found |= _checksums(reader.within(place.name, stream), f"{name}/")
        else:
            found[name] = _checksum(place.name.lower(), stream)
    for place, target in reader.links.items():
        found[_name(place.parts, inside)] = f"link to {_name(target.parts, inside)}"
    return found


def _name(parts: Sequence[str], inside: str) -> str:
    own = bool(parts) and _JOB_FOLDER.fullmatch(parts[0].encode()) is not None
    return inside + "/".join(parts[1:] if own else parts)


def _tells_only_of_the_making(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(_PICTURES) or (lower.endswith(".log") and lower != "images.log")


def _checksum(name: str, stream: IO[bytes]) -> str:
    digest = hashlib.sha256()
    skipped: tuple[bytes, ...] = (b"!",) if name.endswith(".qdp") else ()
    read = gzip.GzipFile(fileobj=stream).read if name.endswith(".gz") else stream.read
    try:
        start = read(_CHUNK_BYTES)
        if start.startswith(_FITS):
            pieces, skipped = _cards(start, read), _NOTES
        else:
            pieces = _lines(start, read)
        for piece in pieces:
            if not piece.startswith(skipped):
                digest.update(_JOB_FOLDER.sub(b"USERPROD", piece) + b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        # It came so from the service, and is compared as far as it goes.
        digest.update(type(error).__name__.encode())
    return digest.hexdigest()


def _cards(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Give a FITS file in pieces of the length of a card: headers and data both begin and end with such."""
    while data:
        more = read(_CHUNK_BYTES)
        whole = len(data) // _CARD_BYTES * _CARD_BYTES if more else len(data)
        for start in range(0, whole, _CARD_BYTES):
            yield data[start : min(start + _CARD_BYTES, whole)]
        data = data[whole:] + more


def _lines(data: bytes, read: Callable[[int], bytes]) -> Iterator[bytes]:
    while data:
        more = read(_CHUNK_BYTES)
        *lines, rest = data.split(b"\n")
        yield from lines
        if not more or len(rest) > _CHUNK_BYTES:
            yield rest
            rest = b""
        data = rest + more
