"""What the service's answers about the science of a finished job mean: from JSON to results. No I/O.

What is not as documented raises `AnswerError` with the name of the dataset, column and row, and never
becomes a shifted column; what the service leaves out becomes a gap (see `results`).

A light curve may hold millions of numbers, as texts. Its rows are cut out of the answer and read as one
array as long as they are nothing but numbers in rows of one length; anything else in them is read value by
value, as the rest is.

Source: the service's pages ReturnData and RetrieveProducts; swifttools 4.0.5 (`ukssdc.xrt_prods.prod_request`,
`ukssdc.data.download._handleLightCurve`).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from prefect_xrt import protocol
from prefect_xrt.errors import AnswerError
from prefect_xrt.protocol import Job, as_number
from prefect_xrt.request import Product
from prefect_xrt.results import (
    COLUMN_UNITS,
    MET_SINCE_T0,
    MJD,
    PARAMETER_UNITS,
    Curve,
    LightCurve,
    ModeFits,
    ModelFit,
    Position,
    Provenance,
    SourceList,
    SpectralFits,
    SpectrumFits,
    Statistic,
    Value,
    require,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Cut",
    "cut",
    "decode_light_curve",
    "decode_position",
    "decode_source_list",
    "decode_spectral_fits",
    "make_curve",
    "make_sources",
    "provenance_of",
    "sha256_of",
]

NO_POSITION = "The service gives none: none could be determined, or the product has not finished."

_Json = Mapping[str, JsonValue]
_SHOWN = 60
_OLDER_NAMES = {"T_+ve": "TimePos", "T_-ve": "TimeNeg", "Ratepos": "RatePos", "Rateneg": "RateNeg"}
_TIMES = ("Time", "TimePos", "TimeNeg")
_TEXTS = ("ObsID", "URL")
_OBS_ID_DIGITS = 11
# What the digits, signs and words of numbers leave of rows of numbers: brackets, quotes and commas.
_OF_NUMBERS = b"0123456789+-.eEinfaINFA"
_DATA = b'"data"'
_ROWS_FOLLOW = re.compile(rb"\s*:\s*(?=\[\[)")
_PLACE = "\0rows {}\0"
_PLACE_IN_JSON = re.compile(rb'"\\u0000rows ([0-9]{1,9})\\u0000"')


def sha256_of(data: _Json) -> str:
    """Return the SHA-256 of an answer's canonical JSON: keys sorted, no spaces, ASCII only."""
    return hashlib.sha256(_canonical(data)).hexdigest()


def _canonical(data: _Json) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def provenance_of(
    job: Job,
    answer: _Json,
    retrieved_at: datetime,
    sha256: str,
    *,
    rebin: protocol.RebinJob | None = None,
) -> Provenance:
    """Return where an answer came from.

    Args:
        job: The job that was asked about.
        answer: What the service answered.
        retrieved_at: When.
        sha256: Of its canonical JSON.
        rebin: The new binning that the answer is about, if any.
    """
    version = answer.get("APIVersion")
    return Provenance(
        job_id=job.id,
        job_name=job.name,
        request={**job.parameters, **(rebin.parameters if rebin else {})},
        rebin_id=rebin.id if rebin else None,
        service_api_version=str(version) if isinstance(version, str | int | float) else None,
        retrieved_at=retrieved_at.astimezone(UTC),
        sha256=sha256,
    )


def decode_position(data: _Json, product: Product, provenance: Provenance) -> Position:
    """Return the position that an answer tells of, or that there is none.

    Raises:
        AnswerError: It does not say whether there is one, or where.
    """
    got = as_number(int(value) if isinstance(value := data.get("GotPos"), bool) else value)
    if got is None:
        raise AnswerError(f"The answer does not say whether there is a {product.value}.")
    if not got:
        reason = data.get("Reason")
        return Position(
            product=product,
            found=False,
            reason=reason if isinstance(reason, str) and reason.strip() else NO_POSITION,
            provenance=provenance,
        )
    ra, dec, error = (_required(data, key, product.value) for key in ("RA", "Dec", "Err90"))
    if not (0 <= ra <= 360 and -90 <= dec <= 90 and error >= 0):  # noqa: PLR2004 - degrees
        raise AnswerError(f"The {product.value} in the answer ({ra}, {dec}, {error}) is nowhere in the sky.")
    catalogue = data.get("WhichSXPS")
    from_catalogue = data.get("FromSXPS") not in (None, 0, "0", False, "")
    return Position(
        product=product,
        found=True,
        ra_deg=ra,
        dec_deg=dec,
        err90_arcsec=error,
        catalogue=(str(catalogue) if catalogue else "SXPS") if from_catalogue else None,
        provenance=provenance,
    )


def decode_source_list(data: _Json, provenance: Provenance) -> SourceList:
    """Return the sources of each band that an answer holds.

    Raises:
        AnswerError: A band is no list of sources.
    """
    bands = {}
    for name, rows in data.items():
        if name in _BANDS and not isinstance(rows, list):
            raise AnswerError(f"The sources of {name} are {_shown(rows)}, not a list.")
        if isinstance(rows, list) and (
            name in _BANDS or (rows and all(isinstance(row, dict) for row in rows))
        ):
            bands[name] = make_sources(name, rows)
    if not bands:
        raise AnswerError("The answer holds no list of sources.")
    return SourceList(bands=bands, provenance=provenance)


_BANDS = ("Total", "Soft", "Medium", "Hard")


_SOURCE_NUMBERS = frozenset(
    {"sno", "x", "y", "ra", "ra_pos", "ra_neg", "dec", "dec_pos", "dec_neg", "err90", "l", "b", "C"}
)


def make_sources(band: str, rows: Sequence[JsonValue]) -> tuple[dict[str, int | float | str | None], ...]:
    """Turn the sources of one band, whose values are texts, into numbers where they are numbers.

    A column is of one kind throughout: whole numbers, numbers, or texts. A source that lacks a column has
    a gap in it.

    Args:
        band: The band, for errors.
        rows: Per source a mapping from names of columns to values.

    Raises:
        AnswerError: A row is no source, or a documented column holds something else than numbers.
    """
    sources = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or any(isinstance(cell, dict | list) for cell in row.values()):
            raise AnswerError(f"Source {number} of {band} is not a source: {_shown(row)}.")
        sources.append(row)
    names = list(dict.fromkeys(name for source in sources for name in source))
    for name in ("ra", "dec"):
        if sources and name not in names:
            raise AnswerError(f"The sources of {band} have no {name}.")
    columns = {name: _source_column(band, name, [source.get(name) for source in sources]) for name in names}
    return tuple(dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True))


def _source_column(band: str, name: str, cells: list[JsonValue]) -> Sequence[int | float | str | None]:
    blank = [cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells]
    numbers = [None if gap else _number_or_nan(cell) for gap, cell in zip(blank, cells, strict=True)]
    for row, (gap, number) in enumerate(zip(blank, numbers, strict=True)):
        if number is None and not gap:
            if name in _SOURCE_NUMBERS:
                raise AnswerError(
                    f"{name} of source {row + 1} of {band} is {_shown(cells[row])}, not a number."
                )
            return [None if gap else str(cell) for gap, cell in zip(blank, cells, strict=True)]
    values = [None if number is None or math.isnan(number) else number for number in numbers]
    whole = all(re.fullmatch(r"\s*[+-]?[0-9]{1,15}\s*", str(cell), re.ASCII) for cell in cells)
    return [int(value) for value in values if value is not None] if whole else values


def _number_or_nan(cell: JsonValue) -> float | None:
    """Return a number, NaN for a text that says that it is none, and None for anything else."""
    if isinstance(cell, str) and cell.strip().lower() == "nan":
        return math.nan
    return as_number(cell)


def decode_spectral_fits(data: _Json, provenance: Provenance) -> SpectralFits:
    """Return the spectra and fits that an answer holds.

    Raises:
        AnswerError: It names a spectrum, a mode or a model that it does not hold, or has a text where a
            number belongs.
    """
    names = _texts(data.get("rnames"), "names of the spectra")
    return SpectralFits(
        t0_met_s=_optional(data, "T0", "the spectra"),
        galactic_nh=_optional(data, "GalNH_unfitted", "the spectra"),
        delta_statistic=_optional(data, "DeltaFitStat", "the spectra"),
        spectra={name: _spectrum(_held(data, name, "the answer"), name) for name in names},
        provenance=provenance,
    )


def _spectrum(data: _Json, name: str) -> SpectrumFits:
    modes = _texts(data["Modes"], f"modes of {name}") if "Modes" in data else []
    return SpectrumFits(
        start_s=_optional(data, "Start", name),
        stop_s=_optional(data, "Stop", name),
        data_file_url=_text(data.get("DataFile")),
        modes={mode: _mode(_held(data, mode, name), f"{name}, {mode}") for mode in modes},
    )


def _mode(data: _Json, what: str) -> ModeFits:
    models: list[str] = []
    if not _no_fit(data):
        # An answer of an older interface does not list them.
        models = (
            _texts(data["Models"], f"models of {what}")
            if "Models" in data
            else [name for name, entry in data.items() if isinstance(entry, dict)]
        )
    return ModeFits(
        mean_time_s=_optional(data, "MeanTime", what),
        exposure_s=_optional(data, "Exposure", what),
        models={model: _fit(_held(data, model, what), f"{what}, {model}") for model in models},
    )


def _no_fit(data: _Json) -> bool:
    return data.get("NOFIT", 0) not in (0, "0", False)


_STATISTICS = ("Cstat", "Chisq", "Chi")
_TESTS = ("FitChi",)
_SINGLE = (*_STATISTICS, *_TESTS, "Dof", "Image", "NOFIT")
_FIT_NUMBERS = frozenset({"NH", "GalacticNH", "Gamma", "kT", "Redshift_abs", "ObsFlux", "UnabsFlux"})


def _fit(data: _Json, what: str) -> ModelFit:
    if not data or _no_fit(data):
        return ModelFit(fitted=False)
    parameters, remarks = {}, {}
    for name, entry in data.items():
        if name in _SINGLE or _is_error(name, data) or entry is None:
            continue
        if as_number(entry) is None and name not in _FIT_NUMBERS and f"{name}Pos" not in data:
            remarks[name] = entry if isinstance(entry, str) else json.dumps(entry)
            continue
        parameters[name] = Value(
            value=_required(data, name, what),
            positive_error=_optional(data, f"{name}Pos", what),
            negative_error=_optional(data, f"{name}Neg", what),
            unit=PARAMETER_UNITS.get(name, ""),
        )
    return ModelFit(
        parameters={name: value for name, value in parameters.items() if not name.endswith("Flux")},
        fluxes={name: value for name, value in parameters.items() if name.endswith("Flux")},
        statistic=_statistic(data, _STATISTICS, what),
        test_statistic=_statistic(data, _TESTS, what),
        dof=_optional(data, "Dof", what),
        image_url=_text(data.get("Image")),
        remarks=remarks,
    )


def _is_error(name: str, data: _Json) -> bool:
    return name.endswith(("Pos", "Neg")) and name[:-3] in data


def _statistic(data: _Json, names: Iterable[str], what: str) -> Statistic | None:
    for name in names:
        value = _optional(data, name, what)
        if value is not None:
            return Statistic(name=name, value=value)
    return None


def _held(data: _Json, name: str, where: str) -> _Json:
    entry = data.get(name)
    if entry == []:
        return {}  # PHP writes an object without entries like this
    if not isinstance(entry, dict):
        raise AnswerError(f"The answer names {name} of {where}, but does not hold it.")
    return entry


def _texts(value: JsonValue, what: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise AnswerError(f"The answer does not list the {what}.")
    names = [str(name) for name in value]
    if len(set(names)) < len(names):
        raise AnswerError(f"The answer has two of one name among the {what}.")
    return names


def _text(value: JsonValue) -> str | None:
    return value if isinstance(value, str) and value.strip() else None


def _optional(data: _Json, key: str, what: str) -> float | None:
    """Return a number, or None where there is a gap.

    Raises:
        AnswerError: Something else is there.
    """
    value = data.get(key)
    if value is None or (isinstance(value, str) and value.strip().lower() in ("", "nan")):
        return None
    return _required(data, key, what)


def _required(data: _Json, key: str, what: str) -> float:
    number = as_number(data.get(key))
    if number is None:
        raise AnswerError(f"{key} of {what} is {_shown(data.get(key))} in the answer, not a number.")
    return number


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@dataclass(frozen=True)
class _Rows:
    """Rows of numbers, read at once.

    Attributes:
        numbers: Of shape (columns, rows).
        obs_id: The column in which every value had the mark of an observation ID, if there is one.
        text: The rows in their canonical JSON.
    """

    numbers: NDArray[np.float64]
    obs_id: int | None
    text: bytes = field(repr=False)


@dataclass(frozen=True)
class Cut:
    """An answer about light curves.

    Attributes:
        answer: The answer, with a text of its own in the place of each group of rows that was cut out.
        rows: By those texts, what was cut out.
    """

    answer: dict[str, JsonValue]
    rows: Mapping[str, _Rows]

    def sha256(self) -> str:
        """Return the SHA-256 of the whole answer's canonical JSON."""
        digest = hashlib.sha256()
        # Between the pieces that the places leave, the numbers of the places come.
        for number, piece in enumerate(_PLACE_IN_JSON.split(_canonical(self.answer))):
            if number % 2 == 0:
                digest.update(piece)
            else:
                place = _PLACE.format(int(piece))
                digest.update(self.rows[place].text if place in self.rows else json.dumps(place).encode())
        return digest.hexdigest()


def cut(body: bytes, content_type: str = "", *, user_id: str = "") -> Cut:
    """Return the answer in a body, as `protocol.decode_json` does, with its rows of numbers read at once.

    Args:
        body: What came.
        content_type: The HTTP header of that name.
        user_id: The registered address, which is taken out.

    Raises:
        AnswerError: As `protocol.decode_json`.
        ConfigurationError: The extra is not installed.
    """
    pieces: list[bytes] = []
    rows: dict[str, _Rows] = {}
    end = 0
    for start in _starts_of_rows(body):
        stop = body.find(b"]]", start) + len(b"]]")
        read = _read_rows(body[start:stop]) if end <= start < stop else None
        if read is not None:
            place = _PLACE.format(len(rows))
            rows[place] = read
            pieces += [body[end:start], json.dumps(place).encode()]
            end = stop
    rest = b"".join([*pieces, body[end:]])
    return Cut(protocol.decode_json(rest, content_type, user_id=user_id), rows)


def _starts_of_rows(body: bytes) -> Iterator[int]:
    # Of an answer in another encoding than the usual one, no piece can be told.
    at = -1 if b"\0" in body else body.find(_DATA)
    while at >= 0:
        after = at + len(_DATA)
        match = _ROWS_FOLLOW.match(body, after)
        # After a backslash, it is the end of a longer name.
        if match and body[at - 1 : at] != b"\\":
            yield match.end()
        at = body.find(_DATA, after)


def _read_rows(text: bytes) -> _Rows | None:
    """Read `[["1","2"],["3","4"]]`; None where it is anything else."""
    np = require("numpy")
    text = text.replace(b", ", b",")
    marked = text.replace(b'"::ObsID=', b'"@')
    frame = marked.translate(None, _OF_NUMBERS)
    row = frame[1 : frame.find(b"]") + 1]
    cells, count = row.count(b",") + 1, frame.count(b"]") - 1
    plain = re.fullmatch(rb'\[("@?"(,(?=")|(?=\])))+\]', row)
    if not plain or b"@" in text or row.count(b"@") > 1 or frame != b"[" + b",".join([row] * count) + b"]":
        return None
    try:
        numbers = np.fromstring(marked.translate(None, b'"[]@'), sep=",")
    except (ValueError, DeprecationWarning):
        return None
    if numbers.size != cells * count:
        return None
    obs_id = row[: row.find(b"@")].count(b",") if b"@" in row else None
    return _Rows(np.ascontiguousarray(numbers.reshape(count, cells).T), obs_id, text)


def decode_light_curve(data: Cut, provenance: Provenance) -> LightCurve:
    """Return the light curve that an answer holds.

    Raises:
        AnswerError: It names a dataset that it does not hold, does not tell the system of the times, or
            holds something else than rows of numbers below names of columns.
    """
    answer = data.answer
    names = [] if "NOLC" in answer else _texts(answer.get("Datasets"), "datasets")
    time_format = answer.get("TimeFormat")
    if names and not (isinstance(time_format, str) and time_format.strip()):
        raise AnswerError("The answer does not tell what its times are counted from (TimeFormat).")
    system = {"MET": MET_SINCE_T0}.get(str(time_format), str(time_format or ""))
    curves = {}
    for name in names:
        entry = _held(answer, f"{name}Data", name)
        columns = _texts(entry.get("columns"), f"columns of {name}")
        cells = entry.get("data")
        if not isinstance(cells, str):
            curves[name] = make_curve(
                name, columns, cells, time_system=system, file_url=_text(entry.get("URL"))
            )
        elif cells in data.rows:
            curves[name] = _curve_of_rows(
                name, columns, data.rows[cells], time_system=system, file_url=_text(entry.get("URL"))
            )
        else:
            raise AnswerError(f"The data of {name} are {_shown(cells)}, not rows.")
    return LightCurve(
        curves=curves,
        t0_met_s=_optional(answer, "T0", "the light curve"),
        binning=_text(answer.get("Binning")),
        time_system=system,
        provenance=provenance,
    )


def _curve_of_rows(
    name: str, columns: Sequence[str], rows: _Rows, *, time_system: str, file_url: str | None
) -> Curve:
    marked = None if rows.obs_id is None or rows.obs_id >= len(columns) else columns[rows.obs_id]
    if len(columns) != len(rows.numbers) or "URL" in columns or marked not in (None, "ObsID"):
        # The way that takes longer says what is wrong.
        cells = json.loads(rows.text)
        return make_curve(name, columns, cells, time_system=time_system, file_url=file_url)
    numbers = dict(zip(columns, rows.numbers, strict=True))
    obs_ids = _obs_ids_of_numbers(name, numbers.pop("ObsID")) if "ObsID" in numbers else None
    return _curve(name, numbers, obs_ids, None, time_system=time_system, file_url=file_url)


def make_curve(
    name: str,
    columns: Sequence[str],
    rows: JsonValue,
    *,
    time_system: str,
    file_url: str | None = None,
) -> Curve:
    """Make a dataset of names of columns and rows of values, as the service answers and its files hold them.

    Columns in an older spelling (`T_+ve`, `Ratepos`, ...) get the present one; upper limits, which the service
    calls Rate, are in UpperLimit. A value that is null, empty or "NaN" is a gap.

    Args:
        name: The name of the dataset, which tells mode, band and the rest.
        columns: The names of the columns.
        rows: Per bin a list of as many numbers, or texts of numbers; ObsID and URL are texts.
        time_system: What the times are counted from, as in `LightCurve`.
        file_url: Where the service has the same as a file.

    Raises:
        AnswerError: A row has another length, a value is no number, or a column is missing or there twice.
    """
    if not isinstance(rows, list):
        raise AnswerError(f"The data of {name} are {_shown(rows)}, not rows.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise AnswerError(
                f"Row {number} of {name} does not have the {len(columns)} values of its columns: {_shown(row)}."
            )
    cells: Mapping[str, Sequence[JsonValue]] = (
        dict(zip(columns, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(columns, ())
    )
    numbers = {
        column: _numbers(name, column, values) for column, values in cells.items() if column not in _TEXTS
    }
    obs_ids = tuple(_obs_id(name, value) for value in cells["ObsID"]) if "ObsID" in cells else None
    urls = tuple(_text(value) for value in cells["URL"]) if "URL" in cells else None
    return _curve(name, numbers, obs_ids, urls, time_system=time_system, file_url=file_url)


def _numbers(dataset: str, column: str, cells: Sequence[JsonValue]) -> NDArray[np.float64]:
    values = []
    for row, cell in enumerate(cells, 1):
        value = math.nan if cell is None or cell == "" else _float(cell)
        if value is None:
            raise AnswerError(f"{column} in row {row} of {dataset} is {_shown(cell)}, not a number.")
        values.append(value)
    numbers: NDArray[np.float64] = require("numpy").array(values, dtype="float64")
    return numbers


_FLOAT = re.compile(
    r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf|infinity)", re.ASCII | re.IGNORECASE
)


def _float(cell: JsonValue) -> float | None:
    """Return what a cell says; unlike elsewhere it may say that it is infinite, or nothing."""
    if not isinstance(cell, str):
        return as_number(cell)
    text = cell.strip()
    return math.nan if not text else float(text) if _FLOAT.fullmatch(text) else None


def _obs_id(dataset: str, cell: JsonValue) -> str | None:
    if cell is None or cell == "":
        return None
    number = as_number(cell.removeprefix("::ObsID=") if isinstance(cell, str) else cell)
    return _obs_id_of_number(dataset, math.nan if number is None else number, cell)


def _obs_id_of_number(dataset: str, number: float, cell: object) -> str:
    if not (0 <= number < 10**_OBS_ID_DIGITS and number.is_integer()):
        raise AnswerError(f"ObsID in {dataset} is {_shown(cell)}, not the ID of an observation.")
    return f"{int(number):0{_OBS_ID_DIGITS}d}"


def _obs_ids_of_numbers(dataset: str, numbers: NDArray[np.float64]) -> tuple[str, ...]:
    np = require("numpy")
    known, where = np.unique(numbers, return_inverse=True)
    texts = [_obs_id_of_number(dataset, number, number) for number in known.tolist()]
    return tuple(texts[index] for index in where.tolist())


def _curve(
    name: str,
    numbers: Mapping[str, NDArray[np.float64]],
    obs_ids: tuple[str | None, ...] | None,
    urls: tuple[str | None, ...] | None,
    *,
    time_system: str,
    file_url: str | None,
) -> Curve:
    stem, *flags = name.split("_")
    mode = stem[:2] if stem[:2] in ("WT", "PC") else None
    limits = "UL" in stem
    columns = _named_as_now(name, numbers, limits=limits)
    times = columns["Time"]
    if not require("numpy").isfinite(times).all():
        raise AnswerError(f"Not every bin of {name} has a time.")
    time_unit = {MET_SINCE_T0: "s", MJD: "d"}.get(time_system, "")
    return Curve(
        name=name,
        mode=mode,
        band=_band(stem),
        upper_limits=limits,
        systematics=mode == "WT" and "nosys" not in flags,
        unreliable="incbad" in flags,
        columns=columns,
        units={column: time_unit if column in _TIMES else COLUMN_UNITS.get(column, "") for column in columns},
        obs_ids=obs_ids,
        row_urls=urls,
        file_url=file_url,
    )


def _band(stem: str) -> Literal["total", "hard", "soft", "hardness ratio"]:
    if "HR" in stem:
        return "hardness ratio"
    return "hard" if "Hard" in stem else "soft" if "Soft" in stem else "total"


def _named_as_now(
    dataset: str, numbers: Mapping[str, NDArray[np.float64]], *, limits: bool
) -> dict[str, NDArray[np.float64]]:
    """Return the columns by their present names, upper limits by their own."""
    named: dict[str, NDArray[np.float64]] = {}
    for given, values in numbers.items():
        name = _OLDER_NAMES.get(given, given)
        if limits and name in ("RatePos", "RateNeg"):
            continue
        name = "UpperLimit" if limits and name == "Rate" else name
        if name in named:
            raise AnswerError(f"The columns of {dataset} have two of one name, {name}.")
        named[name] = values
    missing = [name for name in _TIMES if name not in named]
    if not {"Rate", "UpperLimit", "HR"} & named.keys():
        missing.append("UpperLimit" if limits else "Rate")
    if missing:
        raise AnswerError(f"The columns of {dataset} lack {', '.join(missing)}.")
    return named
