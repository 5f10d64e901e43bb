"""From many jobs to one table per product: positions, fluxes and statuses of a survey, light curves of a source.

Read is what finished jobs have left in their folders: `job.json` and `report.json`, the bundles, and results
that were written there by `results.write` as `<product>.ecsv`, `.fits` or `.parquet` (`Spectrum.ecsv`,
`lc.fits`: the long name or the short one). These go before the bundle of the same product; of spectra they
alone have the numbers of the fits. A folder, or a product in it, that cannot be read does not keep the others
back: it is listed with the reason.

The tables are for looking at many jobs at once; the results themselves stay in `Build.results`.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, ValidationError

from prefect_xrt import archive, bundles, protocol, result_files, tables
from prefect_xrt.errors import ConfigurationError, OutputError, ResultFileError, XRTError
from prefect_xrt.protocol import Job
from prefect_xrt.records import RECORD_NAME, read_record
from prefect_xrt.request import Product
from prefect_xrt.results import (
    MJD,
    POSITION_PRODUCTS,
    SOFTWARE,
    LightCurve,
    Position,
    Provenance,
    Result,
    SourceList,
    SpectralFits,
    read_result,
    require,
)
from prefect_xrt.tables import Column, Kind, Sheet

if TYPE_CHECKING:
    from astropy.table import QTable

__all__ = [
    "FORMATS",
    "Build",
    "Collection",
    "LastStatus",
    "Unread",
    "collect",
    "merge_light_curves",
    "read_build",
    "write_collection",
    "write_table",
]

REPORT_NAME = "report.json"

_RESULT_KINDS: Mapping[Product, type[Any]] = {
    **dict.fromkeys(POSITION_PRODUCTS, Position),
    Product.LIGHT_CURVE: LightCurve,
    Product.SPECTRUM: SpectralFits,
    Product.SOURCE_DET: SourceList,
}


class LastStatus(BaseModel):
    """How a product of a job stood when it was last looked at."""

    product: Product
    state: str
    code: int | None = None
    text: str = ""
    problem: str | None = None


class _Report(BaseModel):
    """What is needed of `report.json`; its whole layout belongs to a room that needs Prefect."""

    job: Job
    products: tuple[LastStatus, ...]
    finished_at: AwareDatetime


@dataclass(frozen=True)
class Build:
    """What is in the folder of a job.

    Attributes:
        directory: The folder.
        job: The job, or None where there is no `job.json`.
        results: What could be read, by product.
        statuses: How its products ended; "unknown" where there is no `report.json`.
        looked_at: When that was, UTC, in ISO 8601, or None.
    """

    directory: Path
    job: Job | None
    results: Mapping[Product, Result]
    statuses: tuple[LastStatus, ...] = ()
    looked_at: str | None = None

    @property
    def job_id(self) -> int | None:
        """The JobID, where the folder or what is in it tells."""
        ids = (result.provenance.job_id for result in self.results.values())
        return self.job.id if self.job else next((job_id for job_id in ids if job_id is not None), None)

    @property
    def name(self) -> str | None:
        """The name given to the object."""
        names = (result.provenance.job_name for result in self.results.values())
        return self.job.name if self.job else next((name for name in names if name), None)

    @property
    def source(self) -> str:
        """What its light curve is merged by: the name, and for want of one something that is the job's alone."""
        return self.name or (f"job {self.job_id}" if self.job_id else str(self.directory))

    @property
    def key(self) -> tuple[int | None, str]:
        """What is the same for two folders of one job, and for no others."""
        return self.job_id, self.job.url if self.job else "" if self.job_id else str(self.directory)

    @property
    def origin(self) -> dict[str, Column]:
        """Which job a row is of, as the first columns of a table of one row."""
        return {
            "job_id": Column("whole", [self.job_id]),
            "name": Column("text", [self.name]),
            "directory": Column("text", [str(self.directory)]),
        }


@dataclass(frozen=True)
class Unread:
    """What could not be collected.

    Attributes:
        place: The folder or file.
        product: The product that it is about, or None for the whole folder.
        reason: Why.
    """

    place: Path
    product: Product | None
    reason: str

    @property
    def what(self) -> str:
        """The folder or file, and the product."""
        return f"{self.place}, {self.product.value}" if self.product else str(self.place)

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Collection:
    """What was read of many jobs.

    Attributes:
        builds: The folders that could be read, in order of their names.
        unread: What could not be.
    """

    builds: tuple[Build, ...]
    unread: tuple[Unread, ...]

    def positions(self) -> QTable:
        """Return one row per job and kind of position, those that were not found included.

        Raises:
            ConfigurationError: The extra is not installed.
        """
        return _table("positions", self._sheets(POSITION_PRODUCTS))

    def fluxes(self) -> QTable:
        """Return one row per job, spectrum, mode and model, with parameters, fluxes and their errors.

        What has no fit has a row all the same; `fitted` says "yes", "no" or "unknown". Start, stop and mean
        time are seconds since the job's own T0, which is in the row.

        Raises:
            ConfigurationError: The extra is not installed.
        """
        return _table("fluxes", self._sheets([Product.SPECTRUM]))

    def statuses(self) -> QTable:
        """Return the last known status of each product of each job.

        Where two folders are of one job, the later look counts.

        Raises:
            ConfigurationError: The extra is not installed.
        """
        last: dict[tuple[object, Product], tuple[Build, LastStatus]] = {}
        for build in self.builds:
            for status in build.statuses:
                key = (build.key, status.product)
                if key not in last or (build.looked_at or "") > (last[key][0].looked_at or ""):
                    last[key] = (build, status)
        return _table("statuses", (_status_sheet(*row) for row in last.values()))

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the sources that have light curves; capitals do not tell one from another.

        What has no name is a source of its own, such as "job 803".
        """
        names: dict[str, str] = {}
        for build in self.builds:
            if Product.LIGHT_CURVE in build.results:
                names.setdefault(_key(build.source), build.source)
        return tuple(names.values())

    def light_curve(self, source: str | None = None) -> QTable:
        """Return the light curves of one source, merged in time; see `merge_light_curves`.

        Args:
            source: Its name; not needed where there is only one.

        Raises:
            ConfigurationError: There is no such source, or there are several; their times have no axis in
                common; or the extra is not installed.
        """
        if source is None and len(self.sources) == 1:
            (source,) = self.sources
        if source is None or _key(source) not in map(_key, self.sources):
            known = ", ".join(map(repr, self.sources)) or "none"
            raise ConfigurationError(f"Name a source that has light curves: {known}.")
        return merge_light_curves(
            {
                str(build.directory): build.results[Product.LIGHT_CURVE]
                for build in self.builds
                if Product.LIGHT_CURVE in build.results and _key(build.source) == _key(source)
            }
        )

    def _sheets(self, products: Iterable[Product]) -> Iterator[Sheet]:
        for build in self.builds:
            for product in products:
                if product in build.results:
                    yield _with_origin(build, build.results[product])


def _key(name: str) -> str:
    return " ".join(name.casefold().split())


def _with_origin(build: Build, result: Result) -> Sheet:
    (sheet,) = tables.to_sheets(result).sheets
    origin = {
        name: Column(column.kind, list(column.values) * len(sheet)) for name, column in build.origin.items()
    }
    if isinstance(result, SpectralFits):
        np = require("numpy")
        t0 = math.nan if result.t0_met_s is None else result.t0_met_s
        origin["t0_met_s"] = Column("number", np.full(len(sheet), t0), "s")
    return Sheet(sheet.name, {**origin, **sheet.columns})


def _status_sheet(build: Build, status: LastStatus) -> Sheet:
    columns = {
        "product": Column("text", [status.product.value]),
        "state": Column("text", [status.state]),
        "code": Column("whole", [status.code]),
        "text": Column("text", [status.text]),
        "problem": Column("text", [status.problem]),
        "looked_at": Column("text", [build.looked_at]),
    }
    return Sheet("status", {**build.origin, **columns})


def collect(places: Path | Iterable[Path]) -> Collection:
    """Read all jobs below a folder, or in a number of folders.

    Of two folders of one job, the first has the say for each product; what the other has of the same product
    is listed as unread.

    Args:
        places: Folders of jobs, or folders that have such below them. Links are not followed.

    Raises:
        ConfigurationError: The extra is not installed.
    """
    require("numpy")
    builds: list[Build] = []
    unread: list[Unread] = []
    taken: dict[tuple[object, Product], Path] = {}
    for directory in _folders([places] if isinstance(places, Path) else places, unread):
        try:
            build, problems = read_build(directory)
        except XRTError as error:
            unread.append(Unread(directory, None, error.message))
        else:
            unread += problems
            builds.append(_without_repeated(build, taken, unread))
    return Collection(tuple(builds), tuple(unread))


def _folders(places: Iterable[Path], unread: list[Unread]) -> Iterator[Path]:
    seen = set()
    for place in places:
        found = False
        for folder in _walk(place, unread):
            found = True
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                yield folder
        if not found and not any(entry.place == place for entry in unread):
            unread.append(Unread(place, None, "There is no folder of a job here, nor below it."))


def _walk(place: Path, unread: list[Unread]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        unread.append(Unread(Path(error.filename or place), None, f"It cannot be read: {error.strerror}."))

    for folder, below, files in os.walk(place, onerror=note):
        if _is_build(files) or (folder == str(place) and _is_unpacked(below)):
            yield Path(folder)
            below[:] = [name for name in below if name not in protocol.SHORT_NAMES.values()]
        below[:] = sorted(name for name in below if not name.startswith("."))


def _is_build(files: Iterable[str]) -> bool:
    stems = [*protocol.SHORT_NAMES.values(), "all"]
    names = {f"{stem}.{form}" for stem in stems for form in archive.ARCHIVE_FORMATS} | {RECORD_NAME}
    return not names.isdisjoint(files) or any(map(_product_of, files))


def _is_unpacked(folders: Iterable[str]) -> bool:
    """Tell whether bundles may have been unpacked here; folders of such names are found anywhere."""
    return not set(protocol.SHORT_NAMES.values()).isdisjoint(folders)


def _product_of(name: str) -> Product | None:
    """Return the product whose result a file of that name holds."""
    path = Path(name)
    if path.suffix.lower() not in result_files.FORMATS:
        return None
    stem = path.stem.lower()
    return next(
        (p for p, short in protocol.SHORT_NAMES.items() if stem in (p.value.lower(), short.lower())), None
    )


def read_build(directory: Path) -> tuple[Build, list[Unread]]:
    """Read the folder of one job.

    Args:
        directory: The folder.

    Returns:
        What is in it, and what of that could not be read.

    Raises:
        ConfigurationError: The extra is not installed.
        OutputError: The folder, or its record, cannot be read.
    """
    require("numpy")
    record = read_record(directory)
    job = record.job if record else None
    read, problems = bundles.read_products(directory)
    results: dict[Product, Result] = {
        product: result for product, result in read.items() if not isinstance(result, bundles.ImageSet)
    }
    unread: list[Unread] = []
    for product, result in _written_results(directory, job, unread):
        results[product] = result
        problems.pop(product, None)
    unread += [Unread(directory, product, error.message) for product, error in problems.items()]
    report = _read_report(directory, job, unread)
    if report:
        return Build(directory, job, results, report.products, report.finished_at.isoformat()), unread
    statuses = tuple(
        LastStatus(product=product, state="unknown", text=f"There is no {REPORT_NAME} of it.")
        for product in (job.products if job else results)
    )
    return Build(directory, job, results, statuses), unread


def _written_results(
    directory: Path, job: Job | None, unread: list[Unread]
) -> Iterator[tuple[Product, Result]]:
    """Give the results that were written into a folder; of two of one product, the first in order of names."""
    seen = set()
    for path in sorted(directory.iterdir()):
        product = _product_of(path.name)
        if product is None or product in seen:
            continue
        try:
            result = read_result(path)
            _check(path, product, result, job)
        except (XRTError, OSError) as error:
            unread.append(Unread(path, product, str(error)))
        else:
            seen.add(product)
            yield product, result


def _check(path: Path, product: Product, result: Result, job: Job | None) -> None:
    kind = _RESULT_KINDS.get(product)
    if kind is None or not isinstance(result, kind) or getattr(result, "product", product) is not product:
        raise ResultFileError(f"{path.name} does not hold the {product.value} that its name says.")
    of = result.provenance.job_id
    if job and of is not None and of != job.id:
        raise ResultFileError(f"{path.name} is of job {of}, and not of {job}.")


def _read_report(directory: Path, job: Job | None, unread: list[Unread]) -> _Report | None:
    path = directory / REPORT_NAME
    try:
        report = _Report.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError):
        unread.append(Unread(path, None, "It cannot be read, or is not the report of a build."))
        return None
    if job and report.job.id != job.id:
        unread.append(Unread(path, None, f"It is of {report.job}, and not of {job}."))
        return None
    return report


def _without_repeated(build: Build, taken: dict[tuple[object, Product], Path], unread: list[Unread]) -> Build:
    """Leave out results that another folder of the same job has given."""
    results = {}
    for product, result in build.results.items():
        first = taken.setdefault((build.key, product), build.directory)
        if first == build.directory:
            results[product] = result
        else:
            reason = f"It is the same job's as that in {first}, which is taken."
            unread.append(Unread(build.directory, product, reason))
    return replace(build, results=results)


def merge_light_curves(light_curves: Mapping[str, Result]) -> QTable:
    """Merge light curves of one source into one table, in order of time, a row per bin.

    The first columns tell where a bin is from (`job_id`, `name`, `directory`, `dataset`), the next what it is
    (`mode`, `band`, `upper_limits`, `systematics`, `unreliable`); then the columns of the datasets follow, NaN
    where one has none. All datasets are in it: choose by those columns, or bins are there more than once.

    Times are not converted: in seconds since T0, all must have the same T0. The table's `meta` tells their
    system (`timesys`) and T0 (`t0_met_s`).

    Args:
        light_curves: Where each is from, such as a folder → the light curve.

    Raises:
        ConfigurationError: Their times have no axis in common, or the extra is not installed.
    """
    curves = {origin: entry for origin, entry in light_curves.items() if isinstance(entry, LightCurve)}
    (system, t0), *others = _axes(curves)
    if others:
        raise ConfigurationError(_no_common_axis(curves))
    sheets = []
    for origin, entry in curves.items():
        for sheet in tables.to_sheets(entry).sheets:
            sheets.append(_with_facts(sheet, origin, entry.provenance))
    merged = _table("light curve", sheets, timesys=system, t0_met_s=t0)
    if len(merged):
        order = require("numpy").argsort(require("numpy").asarray(merged["Time"]), kind="stable")
        merged = merged[order]
    return merged


_Axis = tuple[str, float | None]


def _axis(light_curve: LightCurve) -> _Axis:
    """Return what times are counted from; where it is dates, T0 says nothing about them."""
    return light_curve.time_system, None if light_curve.time_system == MJD else light_curve.t0_met_s


def _axes(curves: Mapping[str, LightCurve]) -> list[_Axis]:
    axes = list(dict.fromkeys(map(_axis, curves.values()))) or [("", None)]
    unknown = any(system == bundles.UNKNOWN_TIMES or (system != MJD and t0 is None) for system, t0 in axes)
    # What two light curves do not tell need not be the same.
    return axes * 2 if unknown and len(curves) > 1 else axes


def _no_common_axis(curves: Mapping[str, LightCurve]) -> str:
    groups: dict[_Axis, list[str]] = {}
    for origin, entry in curves.items():
        groups.setdefault(_axis(entry), []).append(origin)
    listed = []
    for (system, t0), origins in groups.items():
        since = "" if system == MJD else ", T0 not told" if t0 is None else f", T0 = MET {t0:.15g} s"
        listed.append(f"{system or 'no system told'}{since}: {', '.join(origins)}")
    return (
        "These light curves have no axis of times in common, and times are not converted here. Collect the "
        "folders of each group alone, or have them built with the same T0, or in MJD.\n  "
        + "\n  ".join(listed)
    )


def _with_facts(sheet: Sheet, origin: str, where: Provenance) -> Sheet:
    facts: dict[str, tuple[Kind, object]] = {
        "job_id": ("whole", where.job_id),
        "name": ("text", where.job_name),
        "directory": ("text", origin),
        "dataset": ("text", sheet.name),
        **{name: ("text", sheet.facts[name]) for name in ("mode", "band")},
        **{name: ("flag", sheet.facts[name]) for name in ("upper_limits", "systematics", "unreliable")},
    }
    first = {name: Column(kind, [value] * len(sheet)) for name, (kind, value) in facts.items()}
    return Sheet(sheet.name, {**first, **sheet.columns})


class _Joined(NamedTuple):
    """A column of several sheets, one below the other."""

    kind: Kind
    unit: str
    values: list[Any]


def _table(kind: str, sheets: Iterable[Sheet], **facts: str | float | None) -> QTable:
    """Put sheets one below the other; a column that one of them does not have is a gap there."""
    joined: dict[str, _Joined] = {}
    rows = 0
    for sheet in sheets:
        for name, column in sheet.columns.items():
            label = name
            while label in joined and joined[label][:2] != (column.kind, column.unit):
                label += "_"
            values = joined.setdefault(label, _Joined(column.kind, column.unit, [])).values
            values += [_GAPS[column.kind]] * (rows - len(values)) + list(column.values)
        rows += len(sheet)
    table = require("astropy.table").QTable()
    for label, (of, unit, values) in joined.items():
        table[label] = _column(of, unit, values + [_GAPS[of]] * (rows - len(values)))
    told = {name: fact for name, fact in facts.items() if fact not in (None, "")}
    table.meta |= {"contents": kind, "creator": SOFTWARE, **told}
    return table


_GAPS: Mapping[Kind, Any] = {"number": math.nan, "whole": None, "text": None, "flag": None}
_FILLERS: Mapping[Kind, Any] = {"whole": 0, "text": "", "flag": False}
_TYPES: Mapping[Kind, Any] = {"whole": "int64", "text": str, "flag": bool}


def _column(kind: Kind, unit: str, values: Sequence[Any]) -> Any:
    np, columns = require("numpy"), require("astropy.table")
    if kind == "number":
        numbers = np.array(values, dtype="float64")
        return numbers * require("astropy.units").Unit(unit) if unit else numbers
    values = [_clean(value) if kind == "text" else value for value in values]
    gaps = [value is None for value in values]
    filled = [_FILLERS[kind] if value is None else value for value in values]
    if any(gaps):
        return columns.MaskedColumn(filled, mask=gaps, dtype=_TYPES[kind])
    return columns.Column(filled, dtype=_TYPES[kind])


def _clean(text: str | None) -> str | None:
    """Return a text in one line that every format can hold."""
    letters = (letter if letter.isprintable() else " " for letter in text or "")
    return " ".join("".join(letters).split()) or None


def _written_ecsv(table: QTable) -> bytes:
    text = io.StringIO()
    table.write(text, format="ascii.ecsv", delimiter=",")
    return text.getvalue().encode()


def _written_fits(table: QTable) -> bytes:
    r"""Write FITS, which has only ASCII: other letters are spelt `\xe4`, and a gap in a text is empty."""
    plain, columns = table.copy(), require("astropy.table")
    for name in plain.colnames:
        if getattr(plain[name], "dtype", None) is not None and plain[name].dtype.kind == "U":
            texts = plain[name].filled("") if hasattr(plain[name], "filled") else plain[name]
            spelt = [str(text).encode("ascii", "backslashreplace") for text in texts]
            plain[name] = columns.Column(spelt, dtype=f"S{max(map(len, spelt), default=1) or 1}")
    plain.meta = {name.upper(): value for name, value in table.meta.items()}
    sink = io.BytesIO()
    plain.write(sink, format="fits")
    return sink.getvalue()


def _written_votable(table: QTable) -> bytes:
    sink = io.BytesIO()
    table.write(sink, format="votable")
    return sink.getvalue()


def _written_parquet(table: QTable) -> bytes:
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    cells, units = {}, {}
    for name in table.colnames:
        column = table[name]
        units[name] = str(column.unit) if getattr(column, "unit", None) else ""
        cells[name] = pa.array(column.value if units[name] else column.tolist())
    about = {"units": json.dumps(units), "meta": json.dumps(dict(table.meta))}
    sink = io.BytesIO()
    parquet.write_table(pa.table(cells).replace_schema_metadata(about), sink)
    return sink.getvalue()


FORMATS: Mapping[str, Callable[[QTable], bytes]] = {
    ".ecsv": _written_ecsv,
    ".fits": _written_fits,
    ".parquet": _written_parquet,
    ".vot": _written_votable,
}
"""By the ending of a file, how a table is written."""


def write_table(table: QTable, path: Path, *, overwrite: bool = False) -> Path:
    """Write a table into a file, whole or not at all.

    Args:
        table: A table of a collection.
        path: Where to; the ending names the format: `.ecsv`, `.fits`, `.parquet` or `.vot` (VOTable).
        overwrite: Replace a file that is there.

    Returns:
        The path.

    Raises:
        ConfigurationError: The ending is none of these, or the extra is not installed.
        OutputError: It cannot be written, or a file is there.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise ConfigurationError(f"{path.name} ends with none of {', '.join(FORMATS)}.")
    if not overwrite and path.exists():
        raise OutputError(f"{path} is there already; say that it is to be overwritten, or name another file.")
    archive.write_bytes(path, form(table))
    return path


def write_collection(
    collection: Collection, directory: Path, ending: str = ".ecsv", *, overwrite: bool = False
) -> tuple[dict[str, Path], dict[str, XRTError]]:
    """Write all tables of a collection that have rows into a folder.

    They are `statuses`, `positions`, `fluxes`, and for each source `light_curve_<its name>`.

    Args:
        collection: What was collected.
        directory: Where to.
        ending: The format, as for `write_table`.
        overwrite: Replace files that are there.

    Returns:
        Name of the table → its file, and name → why there is no table: light curves whose times have no axis
        in common.

    Raises:
        ConfigurationError: The ending is none of `write_table`'s, or the extra is not installed.
        OutputError: A file cannot be written, or one is there.
    """
    made: dict[str, QTable] = {}
    problems: dict[str, XRTError] = {}
    makers: dict[str, Callable[[], QTable]] = {
        "statuses": collection.statuses,
        "positions": collection.positions,
        "fluxes": collection.fluxes,
    }
    for source in collection.sources:
        name = f"light_curve_{archive.folder_name(source)}"
        makers[name] = lambda source=source: collection.light_curve(source)  # type: ignore[misc]
    for name, make in makers.items():
        try:
            table = make()
        except ConfigurationError as error:
            problems[name] = error
        else:
            made |= {name: table} if len(table) else {}
    archive.make_directory(directory)
    places = {name: directory / f"{name}{ending}" for name in made}
    for place in places.values():
        if place.exists() and not overwrite:
            raise OutputError(
                f"{place} is there already; say that it is to be overwritten, or name another folder."
            )
    written = {name: write_table(table, places[name], overwrite=overwrite) for name, table in made.items()}
    return written, problems
