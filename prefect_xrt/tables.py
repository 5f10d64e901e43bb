"""Results as rows and columns: the one description of each that tables, frames and files are made of.

A result is a few facts and a number of sheets; from both, it can be made again without loss.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from prefect_xrt.errors import ConfigurationError
from prefect_xrt.results import (
    MET_SINCE_T0,
    MJD,
    SOURCE_UNITS,
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
    Statistic,
    Value,
    require,
)

if TYPE_CHECKING:
    import pandas as pd
    from astropy.table import QTable
    from astropy.timeseries import TimeSeries

__all__ = ["Column", "Sheet", "Sheets", "from_sheets", "to_frame", "to_sheets", "to_table", "to_time_series"]

Kind = Literal["number", "whole", "text", "flag"]

_Facts = dict[str, JsonValue]


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        kind: "number" (float64, NaN for a gap), "whole" (int64, no gaps), "text" (None for a gap), "flag".
        values: A numpy array of float64 for numbers; else a sequence.
        unit: In astropy's spelling, "" where it has none.
    """

    kind: Kind
    values: Any
    unit: str = ""


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: What it is called in its result.
        columns: Name → column, all of one length.
        facts: What else there is to know of it, as JSON.
    """

    name: str
    columns: Mapping[str, Column]
    facts: _Facts = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())).values) if self.columns else 0


@dataclass(frozen=True)
class Sheets:
    """A whole result.

    Attributes:
        kind: The name of its class.
        key: What the name of a sheet is the name of.
        provenance: Where it came from.
        facts: What else there is to know of it, as JSON.
        sheets: Its tables.
    """

    kind: str
    key: str
    provenance: Provenance
    facts: _Facts
    sheets: tuple[Sheet, ...]


def to_sheets(result: Result) -> Sheets:
    """Take a result apart."""
    facts: _Facts = {}
    sheets: tuple[Sheet, ...]
    if isinstance(result, Position):
        kind, key, sheets = "Position", "sheet", (_position_sheet(result),)
    elif isinstance(result, LightCurve):
        kind, key = "LightCurve", "dataset"
        facts = {name: getattr(result, name) for name in ("t0_met_s", "binning", "time_system")}
        sheets = tuple(map(_curve_sheet, result.curves.values()))
    elif isinstance(result, SpectralFits):
        kind, key = "SpectralFits", "sheet"
        facts = {name: getattr(result, name) for name in ("t0_met_s", "galactic_nh", "delta_statistic")}
        sheets = (_fits_sheet(result),)
    else:
        kind, key = "SourceList", "band"
        sheets = tuple(_sources_sheet(band, sources) for band, sources in result.bands.items())
    return Sheets(kind, key, result.provenance, facts, sheets)


def from_sheets(parts: Sheets) -> Result:
    """Put a result together again.

    Raises:
        ValueError: The parts are not those of a result.
    """
    makers: Mapping[str, Callable[[Sheets], Result]] = {
        "Position": _to_position,
        "LightCurve": _to_light_curve,
        "SpectralFits": _to_fits,
        "SourceList": _to_sources,
    }
    if parts.kind not in makers:
        raise ValueError(f"there is no result called {parts.kind!r}")
    return makers[parts.kind](parts)


def _numbers(values: Iterable[float | None], unit: str = "") -> Column:
    np = require("numpy")
    filled = [math.nan if value is None else value for value in values]
    return Column("number", np.array(filled, dtype="float64"), unit)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _position_sheet(position: Position) -> Sheet:
    return Sheet(
        "Position",
        {
            "product": Column("text", [position.product.value]),
            "found": Column("flag", [position.found]),
            "reason": Column("text", [position.reason]),
            "ra_deg": _numbers([position.ra_deg], "deg"),
            "dec_deg": _numbers([position.dec_deg], "deg"),
            "err90_arcsec": _numbers([position.err90_arcsec], "arcsec"),
            "catalogue": Column("text", [position.catalogue]),
        },
    )


def _rows(sheet: Sheet) -> Iterator[dict[str, Any]]:
    """Give each row as plain values, None for a gap."""
    plain = {
        name: [_known(value) for value in column.values.tolist()]
        if column.kind == "number"
        else column.values
        for name, column in sheet.columns.items()
    }
    for cells in zip(*plain.values(), strict=True):
        yield dict(zip(plain, cells, strict=True))


def _to_position(parts: Sheets) -> Position:
    (sheet,) = parts.sheets
    (row,) = _rows(sheet)
    return Position(**row, provenance=parts.provenance)


_CURVE_FACTS = ("mode", "band", "upper_limits", "systematics", "unreliable", "file_url")
_TEXT_COLUMNS = {"ObsID": "obs_ids", "URL": "row_urls"}


def _curve_sheet(curve: Curve) -> Sheet:
    columns = {
        name: Column("number", values, curve.units.get(name, "")) for name, values in curve.columns.items()
    }
    for name, attribute in _TEXT_COLUMNS.items():
        texts = getattr(curve, attribute)
        if texts is not None:
            columns[name] = Column("text", texts)
    return Sheet(curve.name, columns, {name: getattr(curve, name) for name in _CURVE_FACTS})


def _to_light_curve(parts: Sheets) -> LightCurve:
    facts: dict[str, Any] = parts.facts
    curves = {sheet.name: _to_curve(sheet) for sheet in parts.sheets}
    return LightCurve(curves=curves, provenance=parts.provenance, **facts)


def _to_curve(sheet: Sheet) -> Curve:
    facts: dict[str, Any] = sheet.facts
    texts: dict[str, Any] = {
        attribute: tuple(sheet.columns[name].values) if name in sheet.columns else None
        for name, attribute in _TEXT_COLUMNS.items()
    }
    numbers = {name: column for name, column in sheet.columns.items() if column.kind == "number"}
    return Curve(
        name=sheet.name,
        columns={name: column.values for name, column in numbers.items()},
        units={name: column.unit for name, column in numbers.items()},
        **texts,
        **facts,
    )


_FIT_COLUMNS: Mapping[str, tuple[Kind, str]] = {
    "spectrum": ("text", ""),
    "start_s": ("number", "s"),
    "stop_s": ("number", "s"),
    "data_file_url": ("text", ""),
    "mode": ("text", ""),
    "mean_time_s": ("number", "s"),
    "exposure_s": ("number", "s"),
    "model": ("text", ""),
    "fitted": ("text", ""),
    "statistic": ("text", ""),
    "statistic_value": ("number", ""),
    "test_statistic": ("text", ""),
    "test_statistic_value": ("number", ""),
    "dof": ("number", ""),
    "image_url": ("text", ""),
    "remarks": ("text", ""),
}
# Flags have no gaps in FITS, and a text with gaps cannot stay as it is in ECSV and FITS (`result_files`).
_FITTED: Mapping[str, bool | None] = {"yes": True, "no": False, "unknown": None}
_GROUPS = ("parameters", "fluxes")
_ENDINGS = ("", "Pos", "Neg")
_Key = tuple[str, str, str]


def _fits_sheet(fits: SpectralFits) -> Sheet:
    rows = list(_fit_rows(fits))
    names = _value_columns(rows)
    every = dict(_FIT_COLUMNS)
    units = {column: unit for (_, _, unit), columns in names.items() for column in columns}
    cells: dict[str, list[Any]] = {name: [row.get(name) for row, _ in rows] for name in every}
    for key, columns in names.items():
        values = [found.get(key) for _, found in rows]
        parts = ("value", "positive_error", "negative_error")
        for column, part in zip(columns, parts, strict=True):
            cells[column] = [getattr(value, part) if value else None for value in values]
    sheet = {}
    for name in (*list(every)[:9], *units, *list(every)[9:]):
        kind, unit = every.get(name, ("number", units.get(name, "")))
        sheet[name] = _numbers(cells[name], unit) if kind == "number" else Column(kind, cells[name], unit)
    values_of: list[JsonValue] = [[*key, list(columns)] for key, columns in names.items()]
    return Sheet("SpectralFits", sheet, {"values": values_of})


def _fit_rows(fits: SpectralFits) -> Iterator[tuple[dict[str, Any], dict[_Key, Value]]]:
    """Give a row per spectrum, mode and model, and its numbers with errors."""
    for name, spectrum in fits.spectra.items():
        of_spectrum = {
            "spectrum": name,
            "start_s": spectrum.start_s,
            "stop_s": spectrum.stop_s,
            "data_file_url": spectrum.data_file_url,
            "fitted": "no",
        }
        if not spectrum.modes:
            yield of_spectrum, {}
        for mode, at in spectrum.modes.items():
            times = {"mean_time_s": at.mean_time_s, "exposure_s": at.exposure_s}
            of_mode = of_spectrum | {"mode": mode} | times
            if not at.models:
                yield of_mode, {}
            for model, fit in at.models.items():
                yield of_mode | {"model": model} | _fit_row(fit), _values(fit)


def _fit_row(fit: ModelFit) -> dict[str, Any]:
    fitted = next(word for word, meaning in _FITTED.items() if meaning is fit.fitted)
    row: dict[str, Any] = {"fitted": fitted, "dof": fit.dof, "image_url": fit.image_url}
    for name in ("statistic", "test_statistic"):
        statistic = getattr(fit, name)
        if statistic:
            row |= {name: statistic.name, f"{name}_value": statistic.value}
    return row | {"remarks": json.dumps(fit.remarks) if fit.remarks else None}


def _values(fit: ModelFit) -> dict[_Key, Value]:
    return {
        (group, name, value.unit): value for group in _GROUPS for name, value in getattr(fit, group).items()
    }


def _value_columns(rows: Iterable[tuple[object, Mapping[_Key, Value]]]) -> dict[_Key, tuple[str, ...]]:
    """Name three columns for each parameter and flux: the value and its errors."""
    named: dict[_Key, tuple[str, ...]] = {}
    taken = {name.lower() for name in _FIT_COLUMNS}
    # Fluxes come after parameters, whichever fit has which.
    for key in sorted((key for _, values in rows for key in values), key=lambda key: _GROUPS.index(key[0])):
        if key not in named:
            stem = key[1]
            while taken & {f"{stem}{ending}".lower() for ending in _ENDINGS}:
                stem += "_"
            named[key] = tuple(f"{stem}{ending}" for ending in _ENDINGS)
            taken |= {name.lower() for name in named[key]}
    return named


def _to_fits(parts: Sheets) -> SpectralFits:
    (sheet,) = parts.sheets
    facts: dict[str, Any] = dict(parts.facts)
    values: Any = sheet.facts["values"]
    spectra: dict[str, dict[str, Any]] = {}
    for row in _rows(sheet):
        new = {name: row[name] for name in ("start_s", "stop_s", "data_file_url")} | {"modes": {}}
        modes = spectra.setdefault(row["spectrum"], new)["modes"]
        if row["mode"] is None:
            continue
        times = {name: row[name] for name in ("mean_time_s", "exposure_s")}
        models = modes.setdefault(row["mode"], times | {"models": {}})["models"]
        if row["model"] is not None:
            models[row["model"]] = _to_fit(row, values)
    made = {
        name: SpectrumFits(
            **(entry | {"modes": {mode: ModeFits(**at) for mode, at in entry["modes"].items()}})
        )
        for name, entry in spectra.items()
    }
    return SpectralFits(spectra=made, provenance=parts.provenance, **facts)


def _to_fit(row: Mapping[str, Any], values: Sequence[tuple[str, str, str, list[str]]]) -> ModelFit:
    groups: dict[str, dict[str, Value]] = {group: {} for group in _GROUPS}
    for group, name, unit, columns in values:
        value, positive, negative = (row[column] for column in columns)
        if value is not None:
            groups[group][name] = Value(
                value=value, positive_error=positive, negative_error=negative, unit=unit
            )
    statistics = {
        name: Statistic(name=row[name], value=row[f"{name}_value"]) if row[name] is not None else None
        for name in ("statistic", "test_statistic")
    }
    return ModelFit(
        fitted=_FITTED[row["fitted"]],
        dof=row["dof"],
        image_url=row["image_url"],
        remarks=json.loads(row["remarks"]) if row["remarks"] is not None else {},
        **statistics,
        **groups,
    )


def _sources_sheet(band: str, sources: Sequence[Mapping[str, int | float | str | None]]) -> Sheet:
    names = sources[0] if sources else ()
    return Sheet(band, {name: _source_column(name, [source[name] for source in sources]) for name in names})


def _source_column(name: str, cells: Sequence[Any]) -> Column:
    unit = SOURCE_UNITS.get(name, "")
    if any(isinstance(cell, str) for cell in cells):
        return Column("text", cells, unit)
    if all(isinstance(cell, int) for cell in cells):
        return Column("whole", cells, unit)
    return _numbers(cells, unit)


def _to_sources(parts: Sheets) -> SourceList:
    bands = {sheet.name: tuple(_rows(sheet)) for sheet in parts.sheets}
    return SourceList(bands=bands, provenance=parts.provenance)


def _sheet_of(result: Result | Curve, name: str | None) -> Sheet:
    if isinstance(result, Curve):
        return _curve_sheet(result)
    sheets = to_sheets(result).sheets
    return next(sheet for sheet in sheets if name in (None, sheet.name))


def to_table(result: Result | Curve, name: str | None = None) -> QTable:
    """Make a result, or its dataset or band of a name, an astropy table."""
    sheet = _sheet_of(result, name)
    tables, units = require("astropy.table"), require("astropy.units")
    table = tables.QTable(meta=_meta(result, sheet))
    for label, column in sheet.columns.items():
        if column.kind == "number" and column.unit:
            table[label] = column.values * units.Unit(column.unit)
        elif column.kind == "text":
            gaps = [text is None for text in column.values]
            texts = tables.MaskedColumn(["" if text is None else text for text in column.values], dtype=str)
            texts.mask = gaps
            table[label] = texts if any(gaps) else tables.Column(texts.data.data)
        elif column.kind == "number":
            table[label] = column.values.copy()
        else:
            table[label] = tables.Column(column.values, dtype="int64" if column.kind == "whole" else bool)
    return table


def _meta(result: Result | Curve, sheet: Sheet) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": sheet.name} | sheet.facts
    if not isinstance(result, Curve):
        meta |= to_sheets(result).facts
        meta["provenance"] = result.provenance.model_dump(mode="json")
    meta.pop("values", None)
    return meta


def to_frame(result: LightCurve | Curve) -> pd.DataFrame:
    """Make a dataset a pandas frame, or all datasets one frame."""
    pandas = require("pandas")
    if isinstance(result, Curve):
        sheet = _curve_sheet(result)
        frame: pd.DataFrame = pandas.DataFrame(
            {name: _for_pandas(column) for name, column in sheet.columns.items()}
        )
        attributes: dict[Any, Any] = {"name": sheet.name, "units": dict(result.units)}
        frame.attrs = attributes | sheet.facts
        return frame
    frames = []
    for curve in result.curves.values():
        part = to_frame(curve)
        part.attrs = {}
        part.insert(0, "dataset", curve.name)
        frames.append(part)
    whole: pd.DataFrame = (
        pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame({"dataset": []})
    )
    whole.attrs = {
        "t0_met_s": result.t0_met_s,
        "binning": result.binning,
        "time_system": result.time_system,
        "units": {name: unit for curve in result.curves.values() for name, unit in curve.units.items()},
        "provenance": result.provenance.model_dump(mode="json"),
    }
    return whole


def _for_pandas(column: Column) -> Any:
    return column.values.copy() if column.kind == "number" else list(column.values)


def to_time_series(result: LightCurve, name: str, mjd_scale: str | None) -> TimeSeries:
    """Make a dataset an astropy time series; see `LightCurve.to_time_series`."""
    curve = result[name]
    times = require("astropy.time")
    if result.time_system == MET_SINCE_T0:
        if mjd_scale is not None:
            raise ConfigurationError(
                "The times are seconds since T0, not MJD; no scale can be given for them."
            )
        time = times.TimeDelta(curve["Time"].copy(), format="sec")
    elif result.time_system != MJD:
        raise ConfigurationError(
            f"What the times of this light curve are ({result.time_system!r}) is not known here."
        )
    elif mjd_scale is None:
        raise ConfigurationError(
            "Neither answers nor files name the scale of MJD, and between UTC and TT there are 69 s: name it. "
            "swifttools documents that it is UTC: mjd_scale='utc'."
        )
    else:
        time = times.Time(curve["Time"].copy(), format="mjd", scale=mjd_scale)
    table = to_table(result, name)
    table.remove_column("Time")
    series = require("astropy.timeseries").TimeSeries(table, time=time)
    series.meta.update(table.meta)
    return series
