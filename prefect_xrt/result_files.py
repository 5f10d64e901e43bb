"""Results in files: ECSV, FITS and Parquet, written whole or not at all, and read without loss.

Each file holds the tables of a result for whoever opens it, and in its metadata, as one JSON text, what the
tables do not tell. A file that was changed in a way that no longer fits that text is refused.

A text that a format cannot keep as it is (in FITS whatever is not printable ASCII, everywhere a gap or a text
with blanks around it) stands there as JSON; the metadata tell in which columns.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from pydantic import JsonValue

from prefect_xrt import archive, tables
from prefect_xrt.errors import ConfigurationError, OutputError, ResultFileError, XRTError
from prefect_xrt.results import Provenance, Result, require
from prefect_xrt.tables import Column, Kind, Sheet, Sheets

__all__ = ["FORMATS", "read", "write"]

_KEY = "prefect_xrt"
_VERSION = 1
_FITS_TYPES: Mapping[Kind, str] = {"number": "D", "whole": "K", "flag": "L"}
_TYPES: Mapping[Kind, str] = {"number": "float64", "whole": "int64", "flag": "bool", "text": "str"}


class _Format(NamedTuple):
    write: Callable[[Sheets, dict[str, JsonValue]], bytes]
    read: Callable[[bytes], Sheets]


def write(result: Result, path: Path, *, overwrite: bool = False) -> Path:
    """Write a result into a file; see `results.write`."""
    form = _format_of(path)
    if not overwrite and path.exists():
        raise OutputError(f"{path} is there already; say that it is to be overwritten, or name another file.")
    sheets = tables.to_sheets(result)
    archive.write_bytes(path, form.write(sheets, _described(sheets)))
    return path


def read(path: Path) -> Result:
    """Read a result from a file; see `results.read_result`."""
    form = _format_of(path)
    try:
        return tables.from_sheets(form.read(path.read_bytes()))
    except XRTError:
        raise
    # What the readers of three formats raise for a damaged file, none of them says.
    except Exception as error:
        raise ResultFileError(
            f"{path} is not a file that a result was written to, or is damaged: {error}"
        ) from error


def _format_of(path: Path) -> _Format:
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise ConfigurationError(f"{path.name} ends with none of {', '.join(FORMATS)}.")
    return form


def _described(sheets: Sheets) -> dict[str, JsonValue]:
    """Return what the tables do not tell."""
    return {
        "version": _VERSION,
        "result": sheets.kind,
        "key": sheets.key,
        "provenance": sheets.provenance.model_dump(mode="json"),
        "facts": sheets.facts,
        "sheets": [
            {
                "name": sheet.name,
                "rows": len(sheet),
                "facts": sheet.facts,
                "columns": [[name, column.kind, column.unit] for name, column in sheet.columns.items()],
            }
            for sheet in sheets.sheets
        ],
    }


def _sheets(described: Mapping[str, Any], columns: Callable[[str, int], Mapping[str, Any]]) -> Sheets:
    """Make sheets of a description and a function that gives a sheet's columns, by name and number."""
    if described["version"] != _VERSION:
        raise ValueError(f"it was written by another version ({described['version']}) of this format")
    made = []
    for number, entry in enumerate(described["sheets"]):
        values = columns(entry["name"], number)
        sheet = Sheet(
            entry["name"],
            {name: Column(kind, _as_kind(kind, values[name]), unit) for name, kind, unit in entry["columns"]},
            entry["facts"],
        )
        if any(len(column.values) != entry["rows"] for column in sheet.columns.values()):
            raise ValueError(f"{sheet.name} has not the {entry['rows']} rows that were written")
        made.append(sheet)
    return Sheets(
        described["result"],
        described["key"],
        Provenance.model_validate(described["provenance"]),
        described["facts"],
        tuple(made),
    )


def _as_kind(kind: Kind, values: Any) -> Any:
    np = require("numpy")
    if kind == "number":
        return np.array(values, dtype="float64")
    plain = values.tolist() if hasattr(values, "tolist") else list(values)
    make = {"whole": int, "flag": bool}.get(kind)
    return [make(value) for value in plain] if make else plain


def _is_plain(text: str | None, *, ascii_only: bool) -> bool:
    if not text or (ascii_only and not text.isascii()):
        return False
    return text.isprintable() and text == text.strip() and not text.startswith(('"', "null"))


def _spelt(column: Column, *, ascii_only: bool) -> tuple[list[str], bool]:
    """Return texts as a format can keep them, and whether they had to be made JSON for it."""
    if all(_is_plain(text, ascii_only=ascii_only) for text in column.values):
        return list(column.values), False
    return [json.dumps(text, ensure_ascii=ascii_only) for text in column.values], True


def _described_with(described: dict[str, JsonValue], spelt: list[list[str]]) -> str:
    return json.dumps(described | {"as_json": cast(JsonValue, spelt)})


def _unspelt(described: Mapping[str, Any], sheet: str, name: str, values: Any) -> Any:
    return [json.loads(text) for text in values] if [sheet, name] in described["as_json"] else values


def _summary(sheets: Sheets) -> str:
    return f"{sheets.kind} of {sheets.provenance}"


# One table: ECSV and Parquet hold all sheets one below the other, with a column for the name of the sheet.


def _key_of(sheets: Sheets, labels: Mapping[tuple[str, str, str], str]) -> str:
    """Name the column that tells the sheet, so that no other column has the same name."""
    key = sheets.key
    while key in labels.values():
        key += "_"
    return key


class _Long(NamedTuple):
    """A column of all sheets: per sheet the column, or None where it has none of that name and kind."""

    name: str
    kind: Kind
    unit: str
    parts: list[Column | None]


def _long(sheets: Sheets) -> list[_Long]:
    """Return the columns of all sheets together; one that is of two kinds becomes two."""
    found: dict[tuple[str, Kind, str], list[Column | None]] = {}
    for number, sheet in enumerate(sheets.sheets):
        for name, column in sheet.columns.items():
            key = (name, column.kind, column.unit)
            found.setdefault(key, [None] * len(sheets.sheets))[number] = column
    return [_Long(*key, parts) for key, parts in found.items()]


def _labels(described: Mapping[str, Any]) -> dict[tuple[str, str, str], str]:
    """Name the columns of the one table: as in the sheets, and differently where that cannot be."""
    labels: dict[tuple[str, str, str], str] = {}
    for sheet in described["sheets"]:
        for name, kind, unit in sheet["columns"]:
            key = (name, kind, unit)
            if key not in labels:
                label = name if _is_plain(name, ascii_only=True) else f"column{len(labels) + 1}"
                while label in labels.values():
                    label += "_"
                labels[key] = label
    return labels


def _names_per_row(sheets: Sheets) -> list[str]:
    return [sheet.name for sheet in sheets.sheets for _ in range(len(sheet))]


def _write_ecsv(sheets: Sheets, described: dict[str, JsonValue]) -> bytes:
    np, astropy = require("numpy"), require("astropy.table")
    labels, spelt = _labels(described), []
    key = _key_of(sheets, labels)
    names, as_json = _spelt(Column("text", _names_per_row(sheets)), ascii_only=False)
    spelt += [["", key]] if as_json else []
    table = astropy.Table()
    table[key] = astropy.Column(names, dtype=str)
    for name, kind, unit, parts in _long(sheets):
        values, gaps = [], []
        for part, sheet in zip(parts, sheets.sheets, strict=True):
            given: Any = part.values if part else [_FILLER[kind]] * len(sheet)
            if part and kind == "text":
                given, as_json = _spelt(part, ascii_only=False)
                spelt += [[sheet.name, name]] if as_json else []
            values.append(np.asarray(given, dtype=_TYPES[kind]))
            gaps.append(np.full(len(sheet), part is None))
        column = astropy.MaskedColumn(np.concatenate(values), mask=np.concatenate(gaps), unit=unit or None)
        table[labels[name, kind, unit]] = (
            column if column.mask.any() else astropy.Column(column.data.data, unit=unit or None)
        )
    table.meta = {"summary": _summary(sheets), _KEY: _described_with(described | {"key": key}, spelt)}
    text = io.StringIO()
    table.write(text, format="ascii.ecsv", delimiter=",")
    return text.getvalue().encode()


_FILLER: Mapping[Kind, Any] = {"number": 0.0, "whole": 0, "flag": False, "text": ""}


def _read_ecsv(data: bytes) -> Sheets:
    table = require("astropy.io.ascii").read(data.decode().split("\n"), format="ecsv")
    described = json.loads(table.meta[_KEY])
    return _from_long(described, {name: table[name] for name in table.colnames})


def _from_long(described: Mapping[str, Any], columns: Mapping[str, Any]) -> Sheets:
    np, labels = require("numpy"), _labels(described)
    names = _unspelt(described, "", described["key"], list(columns[described["key"]]))
    names = np.array(names, dtype=object)

    def of_sheet(sheet: str, number: int) -> Mapping[str, Any]:
        rows = names == sheet
        kinds = described["sheets"][number]["columns"]
        return {
            name: _unspelt(described, sheet, name, columns[labels[name, kind, unit]][rows])
            for name, kind, unit in kinds
        }

    return _sheets(described, of_sheet)


def _write_parquet(sheets: Sheets, described: dict[str, JsonValue]) -> bytes:
    pa, parquet = require("pyarrow"), require("pyarrow.parquet")
    labels = _labels(described)
    key = _key_of(sheets, labels)
    columns = {key: pa.array(_names_per_row(sheets), type=pa.string())}
    types = {"number": pa.float64(), "whole": pa.int64(), "flag": pa.bool_(), "text": pa.string()}
    for name, kind, unit, parts in _long(sheets):
        pieces = [
            pa.nulls(len(sheet), types[kind])
            if part is None
            else pa.array(part.values, type=types[kind], from_pandas=False)
            for part, sheet in zip(parts, sheets.sheets, strict=True)
        ]
        columns[labels[name, kind, unit]] = pa.chunked_array(pieces, type=types[kind])
    units = {labels[column.name, column.kind, column.unit]: column.unit for column in _long(sheets)}
    metadata = {
        "summary": _summary(sheets),
        "units": json.dumps(units),
        _KEY: _described_with(described | {"key": key}, []),
    }
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def _read_parquet(data: bytes) -> Sheets:
    table = require("pyarrow.parquet").read_table(io.BytesIO(data))
    described = json.loads(table.schema.metadata[_KEY.encode()])
    columns = {name: table[name].to_numpy() for name in table.column_names}
    return _from_long(described, columns)


def _write_fits(sheets: Sheets, described: dict[str, JsonValue]) -> bytes:
    fits = require("astropy.io.fits")
    spelt: list[list[str]] = []
    extensions = [_fits_table(sheet, spelt) for sheet in sheets.sheets]
    first = fits.PrimaryHDU()
    for keyword, value, comment in _cards(sheets):
        # Headers hold printable ASCII only; the rest is in the metadata.
        if not isinstance(value, str) or _is_plain(value, ascii_only=True):
            first.header[keyword] = (value, comment)
    text = _described_with(described, spelt)
    column = fits.Column(name=_KEY, format=f"{len(text)}A", array=[text])
    about = fits.BinTableHDU.from_columns([column], name="RESULT")
    sink = io.BytesIO()
    fits.HDUList([first, *extensions, about]).writeto(sink, checksum=True)
    return sink.getvalue()


def _cards(sheets: Sheets) -> Iterator[tuple[str, str | float | None, str]]:
    where = sheets.provenance
    yield "RESULT", sheets.kind, "what this file holds"
    yield "JOB_ID", where.job_id, "JobID of the XRT product generator"
    yield "OBJECT", (where.job_name or "")[:60], "name given to the object"
    yield "DATE-RET", where.retrieved_at.isoformat(), "when it was retrieved"
    yield "SHA256", where.sha256, ""
    yield "CREATOR", where.software[:60], ""
    t0, system = sheets.facts.get("t0_met_s"), sheets.facts.get("time_system")
    if isinstance(t0, float):
        yield "T0_MET", t0, "[s] reference time T0"
    # Not TIMESYS: that has a vocabulary of its own, and nothing in it says the same.
    if isinstance(system, str):
        yield "TIMECOUN", system[:60], "what times are counted from"


def _fits_table(sheet: Sheet, spelt: list[list[str]]) -> Any:
    np, fits = require("numpy"), require("astropy.io.fits")
    columns = []
    labels: set[str] = set()
    for name, column in sheet.columns.items():
        values: Sequence[Any] = column.values
        if column.kind == "text":
            values, as_json = _spelt(column, ascii_only=True)
            spelt += [[sheet.name, name]] if as_json else []
            form = f"{max(map(len, values), default=1)}A"
        else:
            form = _FITS_TYPES[column.kind]
            values = np.asarray(values, dtype=_TYPES[column.kind])
        # What other readers of FITS take for a name, in whichever case.
        label = re.sub(r"\W", "_", name, flags=re.ASCII) or "_"
        while label.lower() in labels:
            label += "_"
        labels.add(label.lower())
        columns.append(fits.Column(name=label, format=form, array=values, unit=_fits_unit(column.unit)))
    table = fits.BinTableHDU.from_columns(columns, nrows=len(sheet))
    table.header["EXTNAME"] = sheet.name[:60] if _is_plain(sheet.name, ascii_only=True) else "SHEET"
    return table


def _fits_unit(unit: str) -> str | None:
    if not unit:
        return None
    try:
        spelt = require("astropy.units").Unit(unit).to_string("fits")
    except ValueError:
        spelt = unit
    return str(spelt) if spelt.isascii() and spelt.isprintable() else None


def _read_fits(data: bytes) -> Sheets:
    with require("astropy.io.fits").open(io.BytesIO(data), checksum=True) as hdus:
        described = json.loads(str(hdus[-1].data.field(0)[0]))

        def of_sheet(sheet: str, number: int) -> Mapping[str, Any]:
            table = hdus[number + 1].data
            kinds = described["sheets"][number]["columns"]
            # By number: what a column is called in FITS may differ, in case at least.
            return {
                name: _unspelt(described, sheet, name, table.field(at))
                for at, (name, _, _) in enumerate(kinds)
            }

        return _sheets(described, of_sheet)


FORMATS: Mapping[str, _Format] = {
    ".ecsv": _Format(_write_ecsv, _read_ecsv),
    ".fits": _Format(_write_fits, _read_fits),
    ".parquet": _Format(_write_parquet, _read_parquet),
}
"""By the ending of a file, how it is written and read."""
