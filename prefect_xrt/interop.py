"""What the field's own tools hold, as this project's results and jobs, and back.

swifttools gives light curves and spectral fits as dictionaries, in two conventions each; all four are read
and written here. A dictionary does not hold everything:

- none of them says where it came from: pass the job, or the result has no job in its provenance;
- a light curve's dictionary has no units, and upper limits have errors of zero in it, which are filled in;
- a fit of which it cannot be told whether there is one, as its numbers were not at hand, is none (NOFIT);
- what else a dictionary of swifttools holds (such as entries of the service's answer that this project does
  not know) is not kept;
- numbers that the service wrote as texts are numbers on the way back;
- the older dictionary of spectral fits has the power law alone, no change of the statistic that the errors
  stand for, and of a mode whose fit failed neither mean time nor exposure.

A request of swifttools that has been submitted, or that became an old job, and a job of this project turn
into one another without asking the service.

Source: swifttools 4.0.5: `ukssdc.data.download._handleLightCurve`; `retrieveLightCurve`,
`retrieveSpectralFits` and `copyOldJob` in `ukssdc.xrt_prods.prod_request`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from pydantic import JsonValue

from prefect_xrt import answers, protocol
from prefect_xrt.errors import AnswerError, ConfigurationError, RefusedError, RequestWarning
from prefect_xrt.parameters import PRODUCT_FLAGS
from prefect_xrt.protocol import Job
from prefect_xrt.results import (
    MET_SINCE_T0,
    Curve,
    LightCurve,
    ModeFits,
    ModelFit,
    Provenance,
    SpectralFits,
    SpectrumFits,
    require,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from swifttools.ukssdc.xrt_prods import XRTProductRequest  # type: ignore[import-untyped]

__all__ = [
    "SOURCE",
    "SubmittedRequest",
    "job_from_request",
    "light_curve_from_dict",
    "light_curve_to_dict",
    "request_from_job",
    "spectral_fits_from_dict",
    "spectral_fits_to_dict",
    "timing_frame",
]

SOURCE = "swifttools"
"""What stands as the source in the provenance of a result that was made of a dictionary."""

_Dict = Mapping[str, object]

_OLD_COLUMNS: Mapping[str, str] = {
    "TimePos": "T_+ve",
    "TimeNeg": "T_-ve",
    "RatePos": "Ratepos",
    "RateNeg": "Rateneg",
    "UpperLimit": "Rate",
}
_TIME_FORMATS: Mapping[str, str] = {"MET": MET_SINCE_T0}
_OLD_MODES = ("WT", "PC")
_OLD_MODEL = "PowerLaw"
_FIT_NAMES = (
    *("NH", "GalacticNH", "Gamma", "kT", "Redshift_abs", "ObsFlux", "UnabsFlux", "Norm"),
    *("Cstat", "Chisq", "Chi", "Dof", "FitChi"),
)
_NOT_SENT = ("UserID", "api_name", "api_version", "getCoords", "getTargs", "getT0")


def light_curve_from_dict(data: _Dict, job: Job | None = None) -> LightCurve:
    """Make a light curve of a dictionary as swifttools holds it, in any of its conventions.

    Args:
        data: As `retrieveLightCurve`, `lcData` or `getRebinnedLightCurve` give it.
        job: The job that it is of, for the provenance.

    Raises:
        AnswerError: It is no such dictionary, or a dataset in it is not as it should be.
        RefusedError: It is the service's refusal.
        ConfigurationError: The extra is not installed.
    """
    _refuse_error(data)
    names = [] if "NOLC" in data else _names(data, "Datasets")
    frames = dict(zip(names, _frames(data, names), strict=True))
    told = data.get("TimeFormat")
    if names and not (isinstance(told, str) and told.strip()):
        raise AnswerError("The light curve does not tell what its times are counted from (TimeFormat).")
    system = _TIME_FORMATS.get(str(told), str(told or ""))
    urls = data.get("URLs")
    tables: dict[str, JsonValue] = {name: _rows(name, frame) for name, frame in frames.items()}
    curves = {}
    for name, frame in frames.items():
        columns = [str(column) for column in frame.columns]
        url = urls.get(name) if isinstance(urls, Mapping) else None
        curves[name] = answers.make_curve(
            name, columns, tables[name], time_system=system, file_url=str(url) if url else None
        )
    binning = data.get("Binning")
    return LightCurve(
        curves=curves,
        t0_met_s=_number(data.get("T0"), "T0"),
        binning=binning if isinstance(binning, str) else None,
        time_system=system,
        provenance=_provenance(job, tables | {"TimeFormat": system, "T0": str(data.get("T0"))}),
    )


def _refuse_error(data: _Dict) -> None:
    if data.get("ERROR"):
        said = data.get("Reason") or data["ERROR"]
        raise RefusedError(f"swifttools has no result but the service's refusal: {str(said).strip()}")


def _names(data: _Dict, key: str) -> list[str]:
    names = data.get(key)
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise AnswerError(f"This is not a dictionary of swifttools: it has no list of names in {key!r}.")
    if len(set(names)) < len(names):
        raise AnswerError(f"There are two of one name in {key!r}.")
    return list(names)


def _frames(data: _Dict, names: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Give the frame of each dataset; in the older convention it is found under a part of its name."""
    short = [_short(name) for name in names]
    pandas = require("pandas")
    for name in names:
        frame = data.get(name)
        if frame is None and short.count(_short(name)) == 1:
            frame = data.get(_short(name))
        if not isinstance(frame, pandas.DataFrame):
            raise AnswerError(f"The dictionary names the dataset {name}, but does not hold it.")
        yield cast("pd.DataFrame", frame)


def _short(name: str) -> str:
    return name.partition("_")[0]


def _rows(name: str, frame: pd.DataFrame) -> list[JsonValue]:
    if not frame.columns.is_unique:
        raise AnswerError(f"The columns of {name} have two of one name.")
    cells = ([_cell(cell) for cell in frame[column].tolist()] for column in frame.columns)
    return [list(row) for row in zip(*cells, strict=True)]


def _cell(value: object) -> JsonValue:
    """Return what a cell of a frame says; a number that JSON does not have becomes a text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if value is None or isinstance(value, int | float | str):
        return value
    return None if require("pandas").isna(value) is True else str(value)


def _number(value: object, name: str) -> float | None:
    if value is None or value == "":
        return None
    number = protocol.as_number(cast(JsonValue, value))
    if number is None:
        raise AnswerError(f"{name} is {value!r}, not a number.")
    return number


def _provenance(job: Job | None, content: Mapping[str, JsonValue]) -> Provenance:
    return Provenance(
        job_id=job.id if job else None,
        job_name=job.name if job else None,
        request=job.parameters if job else {},
        retrieved_at=datetime.now(UTC),
        source=SOURCE,
        sha256=answers.sha256_of(content),
    )


def light_curve_to_dict(
    light_curve: LightCurve, *, old_columns: bool = False, old_keys: bool = False
) -> dict[str, object]:
    """Return a light curve as swifttools holds it.

    Args:
        light_curve: The light curve.
        old_columns: Name the columns as swifttools does by default: `T_+ve`, `T_-ve`, `Ratepos`,
            `Rateneg`, and upper limits `Rate`.
        old_keys: Name the datasets as it does by default, the first time in a process that it is asked:
            `PC` for `PC_incbad`; the list of `Datasets` has the full names all the same, as there.

    Raises:
        ConfigurationError: Two datasets would have the same older name, or the extra is not installed.
    """
    names = list(light_curve.curves)
    keys = [_short(name) for name in names] if old_keys else names
    if len(set(keys)) < len(keys):
        raise ConfigurationError(
            f"{', '.join(names)} cannot all have their older names: take old_keys=False, or one kind of each."
        )
    formats = {system: name for name, system in _TIME_FORMATS.items()}
    data: dict[str, object] = {
        "Datasets": names,
        "Binning": light_curve.binning,
        "TimeFormat": formats.get(light_curve.time_system, light_curve.time_system),
        "T0": light_curve.t0_met_s,
    }
    for key, curve in zip(keys, light_curve.curves.values(), strict=True):
        data[key] = _frame(curve, old_columns=old_columns)
    urls = {name: curve.file_url for name, curve in light_curve.curves.items() if curve.file_url}
    return data | ({"URLs": urls} if urls else {})


def _frame(curve: Curve, *, old_columns: bool) -> pd.DataFrame:
    np = require("numpy")
    columns: dict[str, object] = {}
    for name, values in curve.columns.items():
        columns[name] = values.copy()
        if name == "UpperLimit":
            # The service fills these in; the client and those who use it expect them.
            columns |= {ending: np.zeros(len(curve)) for ending in ("RatePos", "RateNeg")}
    texts = {"ObsID": curve.obs_ids, "URL": curve.row_urls}
    columns |= {name: list(values) for name, values in texts.items() if values is not None}
    frame: pd.DataFrame = require("pandas").DataFrame(columns)
    return frame.rename(columns=dict(_OLD_COLUMNS)) if old_columns else frame


def spectral_fits_from_dict(data: _Dict, job: Job | None = None) -> SpectralFits:
    """Make spectral fits of a dictionary as swifttools holds it, in its older convention or its present one.

    Args:
        data: As `retrieveSpectralFits` or `specData` give it.
        job: The job that it is of, for the provenance.

    Raises:
        AnswerError: It is no such dictionary, or something in it is not as it should be.
        RefusedError: It is the service's refusal.
    """
    _refuse_error(data)
    names = _names(data, "rnames")
    old = "GalNH" in data or any("start" in _held(data, name) for name in names)
    answer = _as_answered(data, names) if old else dict(data)
    content = cast("dict[str, JsonValue]", answer)
    return answers.decode_spectral_fits(content, _provenance(job, content))


def _held(data: _Dict, name: str) -> _Dict:
    entry = data.get(name)
    if not isinstance(entry, Mapping):
        raise AnswerError(f"The dictionary names {name}, but does not hold it.")
    return cast(_Dict, entry)


def _as_answered(data: _Dict, names: Iterable[str]) -> dict[str, object]:
    """Return the older dictionary as the service would answer it today."""
    answer: dict[str, object] = {
        "T0": data.get("T0"),
        "GalNH_unfitted": data.get("GalNH"),
        "rnames": list(names),
    }
    for name in names:
        spectrum = _held(data, name)
        known = (*_names(spectrum, "Modes"), *(m for m in _OLD_MODES if f"Have{m}" in spectrum))
        modes = sorted(dict.fromkeys(known), key=lambda mode: [*_OLD_MODES, mode].index(mode))
        answer[name] = {
            "DataFile": spectrum.get("DataFile"),
            "Start": spectrum.get("start"),
            "Stop": spectrum.get("stop"),
            "Modes": modes,
            **{mode: _mode_as_answered(spectrum, mode) for mode in modes},
        }
    return answer


def _mode_as_answered(spectrum: _Dict, mode: str) -> dict[str, object]:
    if not spectrum.get(f"Have{mode}", 1):
        return {"Models": [_OLD_MODEL], _OLD_MODEL: {"NOFIT": 1}}
    if mode not in spectrum:
        return {"NOFIT": 1}
    given = dict(_held(spectrum, mode))
    times = {"MeanTime": given.pop("meantime", None), "Exposure": given.pop("exposure", None)}
    fit = {_NEW_NAMES.get(name) or _as_new(name): value for name, value in given.items()}
    return {**times, "Models": [_OLD_MODEL], _OLD_MODEL: fit}


def _as_old(name: str) -> str:
    """Spell the name of a parameter as the client does by default."""
    if name == "Image":
        return name
    name = name.replace("NH", "nh")
    return (name[:1].lower() + name[1:]).replace("Pos", "pos").replace("Neg", "neg")


def _as_new(name: str) -> str:
    """Spell the name of a parameter that is not known here as the service most likely does."""
    for old, new in (("pos", "Pos"), ("neg", "Neg")):
        if name.endswith(old):
            name = name.removesuffix(old) + new
    return name[:1].upper() + name[1:]


_NEW_NAMES: Mapping[str, str] = {
    _as_old(f"{name}{ending}"): f"{name}{ending}" for name in _FIT_NAMES for ending in ("", "Pos", "Neg")
}


def spectral_fits_to_dict(fits: SpectralFits, *, old: bool = False) -> dict[str, object]:
    """Return spectral fits as swifttools holds them.

    Args:
        fits: The fits.
        old: In the convention that swifttools has by default; it holds less (see this module).
    """
    if old:
        head = {"T0": fits.t0_met_s, "GalNH": fits.galactic_nh, "rnames": list(fits.spectra)}
        return head | {name: _old_spectrum(spectrum) for name, spectrum in fits.spectra.items()}
    data: dict[str, object] = {
        "T0": fits.t0_met_s,
        "GalNH_unfitted": fits.galactic_nh,
        "rnames": list(fits.spectra),
    }
    if fits.delta_statistic is not None:
        data["DeltaFitStat"] = fits.delta_statistic
    return data | {name: _spectrum(spectrum) for name, spectrum in fits.spectra.items()}


def _spectrum(spectrum: SpectrumFits) -> dict[str, object]:
    return {
        "DataFile": spectrum.data_file_url,
        "Start": spectrum.start_s,
        "Stop": spectrum.stop_s,
        "Modes": list(spectrum.modes),
        **{mode: _mode(at) for mode, at in spectrum.modes.items()},
    }


def _mode(at: ModeFits) -> dict[str, object]:
    data: dict[str, object] = {"MeanTime": at.mean_time_s, "Exposure": at.exposure_s}
    if not at.models:
        return data | {"NOFIT": 1}
    return data | {"Models": list(at.models)} | {name: _fit(fit) for name, fit in at.models.items()}


def _fit(fit: ModelFit) -> dict[str, object]:
    if not fit.fitted:
        return {"NOFIT": 1}
    data: dict[str, object] = dict(fit.remarks)
    for name, value in (*fit.parameters.items(), *fit.fluxes.items()):
        data[name] = value.value
        errors = {f"{name}Pos": value.positive_error, f"{name}Neg": value.negative_error}
        data |= {label: error for label, error in errors.items() if error is not None}
    for statistic in (fit.statistic, fit.test_statistic):
        if statistic:
            data[statistic.name] = statistic.value
    rest = {"Dof": fit.dof, "Image": fit.image_url}
    return data | {name: value for name, value in rest.items() if value is not None}


def _old_spectrum(spectrum: SpectrumFits) -> dict[str, object]:
    data: dict[str, object] = {
        "start": None if spectrum.start_s is None else str(spectrum.start_s),
        "stop": None if spectrum.stop_s is None else str(spectrum.stop_s),
        "DataFile": spectrum.data_file_url,
        "Modes": [mode for mode, at in spectrum.modes.items() if not _has_failed(mode, at)],
    }
    for mode in _OLD_MODES:
        if mode in spectrum.modes:
            at = spectrum.modes[mode]
            data[f"Have{mode}"] = int(not _has_failed(mode, at))
            if _OLD_MODEL in at.models and not _has_failed(mode, at):
                fit = {_as_old(name): value for name, value in _fit(at.models[_OLD_MODEL]).items()}
                data[mode] = fit | {"meantime": at.mean_time_s, "exposure": at.exposure_s}
    return data


def _has_failed(mode: str, at: ModeFits) -> bool:
    return mode in _OLD_MODES and _OLD_MODEL in at.models and not at.models[_OLD_MODEL].fitted


class SubmittedRequest(Protocol):
    """What is asked of an `XRTProductRequest`; the class itself is not needed to read one."""

    @property
    def submitted(self) -> bool:
        """Whether the service has accepted it."""

    @property
    def JobID(self) -> object:
        """The job's ID: a text, or a number where it became an old job."""

    @property
    def URL(self) -> str:
        """Where the files go."""

    @property
    def jobPars(self) -> Mapping[str, object]:
        """The parameters as accepted; KeyError where it became an old job."""

    @property
    def productList(self) -> Sequence[str]:
        """The short names of the products that it asks for."""

    def getJSONDict(self) -> Mapping[str, object]:
        """Return the parameters as they would be sent."""


def job_from_request(request: SubmittedRequest) -> Job:
    """Return the job that a request of swifttools has become, as attaching to it by its ID would.

    When the job was submitted, no request tells. Where the request became an old job
    (`copyOldJob(..., becomeThis=True)`), swifttools does not keep all parameters as accepted: those that it
    knows itself are in the job.

    Args:
        request: An `XRTProductRequest` that was submitted; whether it has finished does not matter.

    Raises:
        ConfigurationError: It has not been submitted.
        AnswerError: What it knows of its job is not what the service answers.
    """
    if not request.submitted:
        raise ConfigurationError(
            "This XRTProductRequest has not been submitted, so there is no job; submit it, or build its "
            "products with this project by passing it to `read_request`."
        )
    try:
        parameters = request.jobPars
    except KeyError:
        parameters = {name: value for name, value in request.getJSONDict().items() if name not in _NOT_SENT}
    job_id = str(request.JobID)
    if not (job_id.isascii() and job_id.isdigit() and int(job_id) > 0):
        raise AnswerError(f"The JobID of this XRTProductRequest is {job_id!r}, not a number.")
    answer = {"JobID": job_id, "URL": request.URL, "jobPars": dict(parameters)}
    asked = [product for product, short in protocol.SHORT_NAMES.items() if short in request.productList]
    job = protocol.decode_submit(cast("dict[str, JsonValue]", answer), asked, datetime.now(UTC))
    return job.model_copy(update={"submitted_at": None})


def request_from_job(job: Job, user_id: str) -> XRTProductRequest:
    """Return an `XRTProductRequest` of swifttools that is this job, without asking the service.

    It is as after `submit()`: it cannot be submitted again, and gives the status and products of the job. Its
    `jobPars` are the job's, which are without the account; when it was submitted, it cannot tell. Parameters
    that swifttools does not take in the spelling of this job are left out of its settings, with a warning;
    they are in its `jobPars` all the same.

    Args:
        job: The job.
        user_id: The registered address, without which the client does nothing.

    Raises:
        ConfigurationError: swifttools is not installed, or of a version that cannot be attached to a job.
    """
    make = _request_class()
    flags = {PRODUCT_FLAGS[product]: 1 for product in job.products}
    given = {name: value for name, value in job.parameters.items() if value is not None} | flags
    request = make(user_id, silent=True)
    left_out = _take(request, make, user_id, given, flags)
    if left_out:
        warnings.warn(
            f"swifttools does not take these parameters of {job} as they are spelt: {', '.join(left_out)}.",
            RequestWarning,
            stacklevel=2,
        )
    # As `submit` and `copyOldJob` leave them; there is no public way that does without the service.
    request._jobID = str(job.id)
    request._retData = {"submitError": None, "URL": job.url, "jobPars": dict(job.parameters)}
    request._submitted, request._status = True, 1
    if not (request.submitted and (str(request.JobID), request.URL) == (str(job.id), job.url)):
        raise ConfigurationError(
            "This version of swifttools cannot be attached to a job without asking the service; use "
            f"`XRTProductRequest(...).copyOldJob({job.id}, becomeThis=True)`."
        )
    return request


def _request_class() -> Any:
    try:
        with warnings.catch_warnings():
            # Its own imports warn of things that are its own affair.
            warnings.simplefilter("ignore")
            return import_module("swifttools.ukssdc.xrt_prods").XRTProductRequest
    except ImportError as error:
        raise ConfigurationError(
            f"This needs swifttools, which cannot be imported ({error}): run `pip install swifttools` (and, on "
            "Python 3.12 and later, `pip install 'setuptools<81'`)."
        ) from error


def _take(
    request: Any, make: Any, user_id: str, given: Mapping[str, object], flags: Mapping[str, object]
) -> list[str]:
    """Let a request take parameters, and return the names of those that it does not take."""
    try:
        request.setFromJSON(dict(given), fromServer=True)
    except (ValueError, TypeError):
        pass
    else:
        return []
    taken, left_out = dict(flags), []
    for name in (name for name in given if name not in flags):
        trial = make(user_id, silent=True)
        try:
            trial.setFromJSON({**flags, name: given[name]}, fromServer=True)
        except (ValueError, TypeError):
            left_out.append(name)
        else:
            taken[name] = given[name]
    request.setFromJSON(taken, fromServer=True)
    return left_out


def timing_frame(
    light_curve: LightCurve, *names: str, value: Literal["rate", "flux"] = "rate"
) -> pd.DataFrame:
    """Return detections as what most timing software takes: `time`, the value, `err`, and `dt`.

    Where the errors are not the same upwards and downwards, `err` is their mean. `dt` is the width of the
    bin; `time` may lie anywhere in it. Bins without a rate are left out, and all are in order of time.

    Args:
        light_curve: The light curve.
        names: Its datasets to take; several are put into one.
        value: What the column with the count rate is to be called; nothing is converted.

    Returns:
        The frame; what its times are (`time_system`, `t0_met_s`) and its units are in its `attrs`.

    Raises:
        ConfigurationError: There is no such dataset, it holds no rates but upper limits or a hardness
            ratio, or the extra is not installed.
    """
    np, pandas = require("numpy"), require("pandas")
    if not names:
        raise ConfigurationError(
            f"Name the datasets to take: {', '.join(light_curve.curves) or 'there are none'}."
        )
    curves = [light_curve[name] for name in names]
    for curve in curves:
        if "Rate" not in curve.columns:
            what = "upper limits" if curve.upper_limits else "no rates"
            raise ConfigurationError(f"{curve.name} holds {what}; name datasets with rates.")
    columns = {
        "time": [curve["Time"] for curve in curves],
        value: [curve["Rate"] for curve in curves],
        "err": [_mean_error(curve) for curve in curves],
        "dt": [curve["TimePos"] - curve["TimeNeg"] for curve in curves],
    }
    frame: pd.DataFrame = pandas.DataFrame({name: np.concatenate(parts) for name, parts in columns.items()})
    frame = frame[np.isfinite(frame[value])].sort_values("time", kind="stable", ignore_index=True)
    time_unit, rate_unit = (curves[0].units.get(name, "") for name in ("Time", "Rate"))
    frame.attrs = {
        "time_system": light_curve.time_system,
        "t0_met_s": light_curve.t0_met_s,
        "datasets": list(names),
        "units": {"time": time_unit, value: rate_unit, "err": rate_unit, "dt": time_unit},
    }
    return frame


def _mean_error(curve: Curve) -> NDArray[np.float64]:
    np = require("numpy")
    if "RateErr" in curve.columns:
        return np.abs(curve["RateErr"])  # type: ignore[no-any-return]
    if {"RatePos", "RateNeg"} <= curve.columns.keys():
        return (np.abs(curve["RatePos"]) + np.abs(curve["RateNeg"])) / 2  # type: ignore[no-any-return]
    return np.full(len(curve), math.nan)  # type: ignore[no-any-return]
