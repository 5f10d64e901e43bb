"""Lists of sources, as people have them: read, and checked as a whole before anything is asked for.

A list is text, a source a line, with commas, tabs or semicolons between its columns; or a table that
astropy reads. What is wrong with it is told all at once, by line and column.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from prefect_xrt.archive import folder_name
from prefect_xrt.errors import InvalidRequestError
from prefect_xrt.results import require

__all__ = ["Target", "read_targets"]

_TABLE_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        ".ecsv": "ascii.ecsv",
        ".vot": "votable",
        ".votable": "votable",
        ".xml": "votable",
        ".fits": "fits",
        ".fit": "fits",
    }
)
_TEXT_ENDINGS = (".csv", ".dat", ".tsv", ".txt")
_ECSV = "# %ECSV"

# Of several columns that fit, the one whose name comes first here is read.
_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "name": ("name", "sourcename", "source", "objectname", "object", "targetname", "mainid"),
        "ra": ("radeg", "ra", "raj2000", "rightascension"),
        "dec": ("decdeg", "dec", "dej2000", "decj2000", "declination"),
        "target": ("target", "targets", "targetid", "targetids", "targid"),
    }
)
_ORDER = ("name", "ra", "dec", "target")
_LABEL = re.compile(r"\s*(?P<name>[^(\[]*)(?:[(\[](?P<unit>[^)\]]*)[)\]])?\s*")
_UNDERSTOOD_UNIT = re.compile(r"deg.*|°|.*:.*|hms|dms|j2000.*|icrs.*", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_SEXAGESIMAL = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>\d{1,3})(?:\s*(?P<mark>[hd°:])\s*|\s+)"
    r"(?P<minutes>\d{1,2})(?:\s*[m'′:]\s*|\s+)"
    r"(?P<seconds>\d{1,2}(?:\.\d*)?)\s*(?:s|\"|″|'')?",
    re.IGNORECASE,
)
_TARGET_ID = re.compile(r"\d{1,8}")
_UNSEPARATED = re.compile(r".*\S\s+[+-]?\d+\.\d+\s+[+-]?\d+\.\d+")
_MISSING = ("", "--", "nan", "null", "none")
_SHOWN_PROBLEMS = 20


class Target(BaseModel):
    """A source of a list. What is not given is left to the service to find."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    ra_deg: float | None = Field(default=None, description="Right ascension, J2000, in degrees.")
    dec_deg: float | None = Field(default=None, description="Declination, J2000, in degrees.")
    target_ids: tuple[str, ...] = Field(default=(), description="Target IDs, of 8 digits each.")
    place: str = Field(default="", description="Where in its list it stands, such as `line 3`.")

    @property
    def folder(self) -> str:
        """The name of the folder for its files, different for every name."""
        return folder_name(self.name)


class _Row(NamedTuple):
    place: str
    cells: Mapping[str, object]


_Problems = list[tuple[str, str]]


def read_targets(sources: str | Path) -> tuple[Target, ...]:
    """Read a list of sources, all of it or nothing.

    Without a header, the columns of a text are name, RA, Dec and target IDs; all but the name can be left
    out. With a header, which needs a column `name`, they come in any order, and others are ignored. RA and
    Dec are J2000: plain numbers are degrees, `22:22:47.6` and `22h22m47.6s` are sexagesimal (RA in hours).
    Several target IDs in one cell have blanks or semicolons between them. Lines that are empty or start with
    `#` do not count. In a table, the columns' units hold; without any, as in a text.

    Args:
        sources: The text itself, or the path of a file: as a `Path`, or a single line that ends with
            `.csv`, `.tsv`, `.txt` or `.dat` (text), or `.ecsv`, `.vot`, `.votable`, `.xml` (VOTable), `.fits`
            or `.fit`, which need the extra `prefect-xrt[science]`.

    Returns:
        The sources, in the order of the list, each with a folder name of its own.

    Raises:
        InvalidRequestError: The list cannot be read, or sources in it cannot be used; all are named.
        ConfigurationError: The extra is needed and not installed.
    """
    path = _path_of(sources)
    problems: _Problems = []
    if path and path.suffix.lower() in _TABLE_FORMATS:
        rows = list(_rows_of_table(path, _TABLE_FORMATS[path.suffix.lower()], problems))
    else:
        text = _read_text(path) if path else str(sources)
        rows = list(
            _rows_of_table(text.splitlines(), "ascii.ecsv", problems)
            if text.startswith(_ECSV)
            else _rows_of_text(text, problems)
        )
    if not rows and not problems:
        problems.append(("sources", "there is no source in the list; give one a line: name, RA, Dec"))
    places: dict[str, str] = {}
    targets = [_target(row, places, problems) for row in rows]
    if problems:
        _refuse(problems, f"the list of sources{f' {path}' if path else ''}")
    return tuple(targets)


def _path_of(sources: str | Path) -> Path | None:
    if isinstance(sources, Path):
        return sources.expanduser()
    line = sources.strip()
    if "\n" in line or not line.lower().endswith((*_TABLE_FORMATS, *_TEXT_ENDINGS)):
        return None
    return Path(line).expanduser()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        _refuse([("sources", "is not a text in UTF-8")], str(path))
    except OSError as error:
        _refuse([("sources", f"cannot be read: {error.strerror}")], str(path))


def _refuse(problems: _Problems, what: str) -> NoReturn:
    told = [f"{place}: {text}" for place, text in problems[:_SHOWN_PROBLEMS]]
    if len(problems) > _SHOWN_PROBLEMS:
        told.append(f"and {len(problems) - _SHOWN_PROBLEMS} more")
    count = f"{len(problems)} problems" if len(problems) > 1 else "A problem"
    # One line: the UI shows the message of a state without its line breaks.
    raise InvalidRequestError(f"{count} with {what}: {'; '.join(told)}", problems=problems)


def _rows_of_text(text: str, problems: _Problems) -> Iterator[_Row]:
    lines = ["" if line.lstrip().startswith("#") else line for line in text.lstrip("\ufeff").splitlines()]
    delimiter = next((mark for line in lines for mark in "\t,;" if mark in line), ",")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    columns: Mapping[str, int] | None = None
    try:
        for record in reader:
            cells = [" ".join(cell.split()) for cell in record]
            place = f"line {reader.line_num}"
            if not any(cells):
                continue
            if columns is None:
                columns = _header(cells, place, problems)
                if columns and "name" not in columns:
                    problems.append((place, "is a header without a column `name`"))
                    return
                if columns:
                    continue
            if columns:
                yield _Row(
                    place, {name: cells[at] if at < len(cells) else "" for name, at in columns.items()}
                )
            else:
                # What comes after the columns that have a name is more target IDs.
                named = dict(zip(_ORDER, [*cells[:3], " ".join(cells[3:])], strict=False))
                yield _Row(place, named)
    except csv.Error as error:
        problems.append((f"line {reader.line_num}", f"cannot be read: {error}"))


def _header(cells: Sequence[str], place: str, problems: _Problems) -> Mapping[str, int]:
    """Return where each column is, if this is a header."""
    known = _known_columns(cells)
    if any(_NUMBER.fullmatch(cell) for cell in cells):
        return {}
    for column in ("ra", "dec"):
        label = _LABEL.fullmatch(cells[known[column]]) if column in known else None
        unit = (label["unit"] or "").strip() if label else ""
        if unit and not _UNDERSTOOD_UNIT.fullmatch(unit):
            problems.append(
                (f"{place}, {column}", f"the unit {unit!r} is not understood; give degrees, or sexagesimal")
            )
    return known


def _known_columns(labels: Sequence[str]) -> dict[str, int]:
    plain = [_plain(label) for label in labels]
    return {
        column: plain.index(name)
        for column, names in _COLUMNS.items()
        if (name := next((name for name in names if name in plain), None))
    }


def _plain(label: str) -> str:
    found = _LABEL.fullmatch(label)
    return re.sub(r"[^a-z0-9]", "", found["name"].casefold()) if found else ""


def _rows_of_table(source: Path | Sequence[str], form: str, problems: _Problems) -> Iterator[_Row]:
    table_class = require("astropy.table").Table
    if isinstance(source, Path) and not source.is_file():
        _refuse([("sources", "there is no such file")], str(source))
    with warnings.catch_warnings():
        # What catalogues do beside the standards is no trouble here.
        warnings.simplefilter("ignore")
        try:
            table = table_class.read(source, format=form)
            columns = _known_columns(table.colnames)
        except Exception as error:  # readers raise many kinds
            reason = str(error).partition("\n")[0] or type(error).__name__
            problems.append(("sources", f"cannot be read as {form.rpartition('.')[2].upper()}: {reason}"))
            return
    if "name" not in columns:
        problems.append(("sources", f"there is no column `name` among {', '.join(table.colnames) or 'none'}"))
        return
    chosen = {column: table.columns[at] for column, at in columns.items()}
    many = [column.name for column in chosen.values() if len(column.shape) > 1]
    if many:
        problems.append(("sources", f"{', '.join(many)} holds more than one value a row"))
        return
    in_degrees = {column: _factor(chosen, column, problems) for column in ("ra", "dec")}
    for number in range(len(table)):
        cells = {
            column: _scaled(_cell(values[number]), in_degrees.get(column))
            for column, values in chosen.items()
        }
        yield _Row(f"row {number + 1}", cells)


def _factor(columns: Mapping[str, Any], column: str, problems: _Problems) -> float | None:
    """Return what turns the numbers of a column into degrees; None where nothing need be done."""
    unit = getattr(columns.get(column), "unit", None)
    # A text is sexagesimal, whatever its unit is called.
    if unit is None or columns[column].dtype.kind not in "fiu":
        return None
    try:
        return float(unit.to("deg"))
    except Exception:  # astropy has an error for each kind of unit that is none
        problems.append((column, f"the unit {str(unit)!r} of this column is no angle"))
        return None


def _cell(value: Any) -> object:
    if bool(getattr(value, "mask", False)):
        return None
    value = getattr(value, "value", value)  # of a quantity
    value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _scaled(value: object, factor: float | None) -> object:
    return value * factor if factor is not None and isinstance(value, int | float) else value


def _target(row: _Row, places: dict[str, str], problems: _Problems) -> Target:
    """Check one row; `places` holds where each folder name stands first."""
    name = " ".join(_text(row.cells.get("name")).split())
    before = len(problems)

    def note(column: str, text: str) -> None:
        problems.append((f"{row.place}, {column}", text))

    if not name:
        note("name", "is missing")
    angles: dict[str, float | None] = {}
    for column, low, high in (("ra", 0.0, 360.0), ("dec", -90.0, 90.0)):
        try:
            angles[column] = _angle(row.cells.get(column), column, low, high)
        except ValueError as error:
            note(column, str(error))
    if len(problems) == before:
        for column, other in (("ra", "dec"), ("dec", "ra")):
            if angles[column] is None and angles[other] is not None:
                note(column, f"is missing, with {other} given")
        if angles["ra"] is None and _UNSEPARATED.fullmatch(name):
            note("name", f"{name!r} seems to hold a position; put commas between name, RA and Dec")
    target_ids = []
    for target_id in _target_ids(row.cells.get("target")):
        if _TARGET_ID.fullmatch(target_id):
            target_ids.append(target_id.zfill(8))
        else:
            note("target", f"{target_id!r} is not a target ID of 8 digits, such as 00966554")
    target = Target(
        name=name,
        ra_deg=angles.get("ra"),
        dec_deg=angles.get("dec"),
        target_ids=tuple(target_ids),
        place=row.place,
    )
    if name and (first := places.setdefault(target.folder, row.place)) != row.place:
        note("name", f"{name!r} is also on {first}")
    return target


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _angle(value: object, column: str, low: float, high: float) -> float | None:
    """Return an angle in degrees, None where there is none.

    Raises:
        ValueError: It is neither degrees nor sexagesimal, or out of range.
    """
    text = _text(value).replace("−", "-")
    if text.lower() in _MISSING:
        return None
    degrees = float(text) if _NUMBER.fullmatch(text) else _sexagesimal(text, column)
    if not low <= degrees <= high:
        raise ValueError(f"{text!r} is not between {low:g} and {high:g} degrees")
    # Units and sexagesimals leave noise far below a microarcsecond.
    return round(degrees, 10)


def _sexagesimal(text: str, column: str) -> float:
    found = _SEXAGESIMAL.fullmatch(text)
    mark = (found["mark"] or "").lower() if found else ""
    if found is None or (column == "dec" and mark == "h"):
        example = "335.6985 or 22:22:47.6" if column == "ra" else "-7.5179 or -07:31:04"
        raise ValueError(f"{text!r} is neither degrees nor sexagesimal, such as {example}")
    minutes, seconds = float(found["minutes"]), float(found["seconds"])
    if minutes >= 60 or seconds >= 60:  # noqa: PLR2004 - sexagesimal
        raise ValueError(f"{text!r} has 60 or more minutes or seconds")
    size = float(found["whole"]) + minutes / 60 + seconds / 3600
    in_hours = column == "ra" and mark not in ("d", "°")
    return (-size if found["sign"] == "-" else size) * (15.0 if in_hours else 1.0)


def _target_ids(value: object) -> list[str]:
    # A number has lost its leading zeros, and in a column with gaps it has become a fraction.
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    found = re.split(r"[\s,;|]+", _text(value))
    return [text for text in found if text.lower() not in _MISSING]
