"""How a request is spelt for the service, and how people's requests are read. No I/O but request files.

One table pairs the fields of a request with the service's parameters and serves both directions.
`encode` and `decode` speak the service's spelling; `read_request` takes whatever people have.

Source: service page RequestJob; swifttools productVars.py and the tables of prod_request.py.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn, Protocol, TypeAlias, get_args, runtime_checkable

from pydantic import BaseModel, JsonValue, ValidationError

from prefect_xrt.errors import InvalidRequestError, RequestWarning
from prefect_xrt.request import PRODUCT_FIELDS, Product, ProductRequest, problems_of

__all__ = [
    "FIELD_OF_WIRE",
    "PRODUCT_FLAGS",
    "JSONDictSource",
    "decode",
    "describe_wire_name",
    "encode",
    "read_request",
    "read_request_file",
    "same_request",
]

MAX_REQUEST_BYTES = 1_000_000


class _Kind(Enum):
    """How a value is written on the wire."""

    FLAG = auto()  # 0 or 1: the service does not understand true and false
    NUMBER = auto()
    COUNT = auto()
    TEXT = auto()
    CHOICE = auto()  # a text out of a few; older requests hold numbers instead
    COMMAS = auto()  # a text with commas
    LIST = auto()


class _Parameter(NamedTuple):
    path: str
    wire: str
    kind: _Kind


_F, _N, _C, _T, _O, _S, _L = _Kind

# Sent in this order: the official client, reading it, lets doNotFit change specz, and specz change galactic.
_TABLE = tuple(
    _Parameter(*row)
    for row in (
        ("name", "name", _T),
        ("targets", "targ", _S),
        ("find_targets", "getTargs", _F),
        ("t0_met_s", "Tstart", _N),
        ("find_t0", "getT0", _F),
        ("since_t0", "SinceT0", _F),
        ("ra_deg", "RA", _N),
        ("dec_deg", "Dec", _N),
        ("find_position", "getCoords", _F),
        ("centroid", "cent", _F),
        ("centroid_method", "centMeth", _O),
        ("max_centroid_tries", "maxCentTries", _C),
        ("position_error_arcmin", "poserr", _N),
        ("super_soft", "sss", _F),
        ("use_sxps", "useSXPS", _F),
        ("wt_pileup_rate_counts_per_s", "wtpuprate", _N),
        ("pc_pileup_rate_counts_per_s", "pcpuprate", _N),
        ("max_source_radius_px", "srcrad", _C),
        ("notify", "notify", _F),
        ("light_curve.binning", "binMeth", _O),
        ("light_curve.pc_counts", "pccounts", _C),
        ("light_curve.wt_counts", "wtcounts", _C),
        ("light_curve.dynamic", "dynamic", _F),
        ("light_curve.rate_factor", "ratefact", _N),
        ("light_curve.bin_factor", "binfact", _N),
        ("light_curve.min_counts", "mincmin", _C),
        ("light_curve.min_snr", "minsnr", _N),
        ("light_curve.pc_bin_s", "pcbin", _N),
        ("light_curve.wt_bin_s", "wtbin", _N),
        ("light_curve.pc_max_gap_s", "pcmaxgap", _N),
        ("light_curve.wt_max_gap_s", "wtmaxgap", _N),
        ("light_curve.match_hardness_ratio", "hrbin", _F),
        ("light_curve.pc_hardness_bin_s", "pchrbin", _N),
        ("light_curve.wt_hardness_bin_s", "wthrbin", _N),
        ("light_curve.min_fractional_exposure", "femin", _N),
        ("light_curve.min_energy_kev", "minen", _N),
        ("light_curve.max_energy_kev", "maxen", _N),
        ("light_curve.soft_low_kev", "soft1", _N),
        ("light_curve.soft_high_kev", "soft2", _N),
        ("light_curve.hard_low_kev", "hard1", _N),
        ("light_curve.hard_high_kev", "hard2", _N),
        ("light_curve.min_significance_sigma", "sigmin", _N),
        ("light_curve.grades", "grades", _O),
        ("light_curve.allow_upper_limits", "allowUL", _O),
        ("light_curve.allow_bayes", "allowB", _O),
        ("light_curve.bayes_counts", "bayesCounts", _N),
        ("light_curve.bayes_snr", "bayesSNR", _N),
        ("light_curve.time_format", "lctimetype", _O),
        ("light_curve.observations", "uselcobs", _S),
        ("light_curve.which_data", "lcobs", _O),
        ("spectrum.redshift", "zval", _N),
        ("spectrum.do_not_fit", "doNotFit", _F),
        ("spectrum.has_redshift", "specz", _F),
        ("spectrum.galactic", "galactic", _F),
        ("spectrum.models", "models", _L),
        ("spectrum.delta_fit_stat", "dchi", _N),
        ("spectrum.grades", "specgrades", _O),
        ("spectrum.stem", "specstem", _T),
        ("spectrum.include_hours", "specobstime", _N),
        ("spectrum.observations", "usespecobs", _S),
        ("spectrum.which_data", "specobs", _O),
        *((f"spectrum.time_slices.{i}.name", f"rname{i + 1}", _T) for i in range(4)),
        *((f"spectrum.time_slices.{i}.gti", f"gti{i + 1}", _T) for i in range(4)),
        ("spectrum.time_slicing", "timeslice", _O),
        ("position.radius_arcsec", "posRadius", _N),
        ("position.include_hours", "posobstime", _N),
        ("position.observations", "useposobs", _S),
        ("position.which_data", "posobs", _O),
        ("position.detect_or_centroid", "detornot", _O),
        ("position.centroid_method", "detMeth", _O),
        ("astrometric_position.use_all_observations", "allxastrom", _F),
        ("image.energies_kev", "imen", _S),
        ("image.observations", "useimobs", _S),
        ("image.which_data", "imobs", _O),
        ("source_detection.observations", "usedetobs", _S),
        ("source_detection.which_data", "detobs", _O),
        ("source_detection.bands", "detbands", _O),
        ("source_detection.fit_stray_light", "fitStrayLight", _F),
    )
)

PRODUCT_FLAGS: Mapping[Product, str] = MappingProxyType(
    {
        Product.LIGHT_CURVE: "lc",
        Product.SPECTRUM: "spec",
        Product.STANDARD_POS: "dopsf",
        Product.ENHANCED_POS: "doenh",
        Product.ASTROM_POS: "doxastrom",
        Product.IMAGE: "image",
        Product.SOURCE_DET: "sourceDet",
    }
)
"""The parameter that asks for each product."""

# Spellings that are read but never sent: an older example's, the official client's, the service's own.
_ALIASES = {"allowBayes": "allowB", "wtmaxGap": "wtmaxgap", "pcmaxGap": "pcmaxgap", "sinceT0": "SinceT0"}
_BY_WIRE = {row.wire: row for row in _TABLE}
_PART_OF_FLAG = {flag: PRODUCT_FIELDS[product] for product, flag in PRODUCT_FLAGS.items()}
_WIRE_OF_FIELD = {row.path: row.wire for row in _TABLE} | {
    PRODUCT_FIELDS[product]: flag for product, flag in PRODUCT_FLAGS.items()
}

FIELD_OF_WIRE: Mapping[str, str] = MappingProxyType(
    {wire: path for path, wire in _WIRE_OF_FIELD.items()}
    | {alias: _BY_WIRE[wire].path for alias, wire in _ALIASES.items()}
)
"""The path of the field for each parameter of the service, older spellings included."""

# Which products make use of what is not a product's own.
_SHARED = {
    "position": ("standard_position", "enhanced_position", "astrometric_position"),
    "max_source_radius_px": ("light_curve", "spectrum"),
}
_NOT_PARAMETERS = frozenset({"UserID", "api_name", "api_version"})
_FINDERS = frozenset({"getTargs", "getT0", "getCoords"})
# Only the service adds these, to the parameters of an accepted job.
_MADE_BY_THE_SERVICE = frozenset({"do3col", "outdir", "pcmaxbin", "whatSXPS", "wtmaxbin"})
_YES_NO: Mapping[object, bool] = {1: True, "1": True, "yes": True, 0: False, "0": False, "no": False}
_CODE = re.compile(r"-?[0-9]+")
# The numbers that older interfaces have for words, as `jobPars` still shows them.
_CODES: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "centMeth": {"simple": "1", "iterative": "3"},
        "timeslice": {"single": "1", "user": "2", "snapshot": "3", "obsid": "4"},
        "lcobs": {"all": "0", "user": "1"},
        **{
            name: {"all": "1", "user": "2", "hours": "3"} for name in ("specobs", "posobs", "imobs", "detobs")
        },
    }
)
# What the service fills in for a parameter that was not given, by its pages and its examples of `jobPars`.
_FILLED_IN: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "centMeth": ("simple", "3"),
        "maxCentTries": (10,),
        "wtpuprate": (150,),
        "pcpuprate": (0.6,),
        "useSXPS": (0, 1),
        "binMeth": ("counts",),
        "ratefact": (10,),
        "binfact": (1.5,),
        "mincmin": (15,),
        "minsnr": (1.5,),
        "femin": (0,),
        "minen": (0.3,),
        "maxen": (10,),
        "soft1": (0.3,),
        "soft2": (1.5,),
        "hard1": (1.5, 1.51),
        "hard2": (10,),
        "sigmin": (3,),
        "grades": ("all",),
        "allowUL": ("both",),
        "allowB": ("both",),
        "bayesCounts": (15,),
        "bayesSNR": (2.4,),
        "lctimetype": ("s",),
        "lcobs": ("all",),
        "dchi": (2.706,),
        "specgrades": ("all",),
        "specobs": ("all", "hours"),
        "specobstime": (12,),
        "timeslice": ("single",),
        "posRadius": (20,),
        "posobs": ("all", "hours"),
        "posobstime": (12,),
        "detornot": ("detect",),
        "detMeth": ("simple",),
        "allxastrom": (0, 1),
        "imen": ("0.3-10,0.3-1.5,1.51-10",),
        "imobs": ("all",),
        "detbands": ("total",),
    }
)
# What the service finds out or sizes by itself where it is not told.
_FOUND_OUT = frozenset(
    {"targ", "Tstart", "RA", "Dec", "srcrad", "poserr", "notify", "galactic"}
    | {f"{mode}{name}" for mode in ("pc", "wt") for name in ("bin", "hrbin", "maxgap", "counts")}
)

_Json: TypeAlias = Mapping[str, object]


@runtime_checkable
class JSONDictSource(Protocol):
    """An object that gives its parameters as the official client's `XRTProductRequest` does."""

    def getJSONDict(self) -> Mapping[str, object]:
        """Return the parameters as they would be sent."""


def describe_wire_name(name: str) -> str | None:
    """Say which field a parameter of the service belongs to.

    Args:
        name: The service's name, such as "poserr".

    Returns:
        The path of the field, such as "position_error_arcmin"; none for an unknown parameter.
    """
    return FIELD_OF_WIRE.get(name)


def encode(request: ProductRequest) -> dict[str, JsonValue]:
    """Spell a request for the service, as the official client would.

    It holds neither the account nor the version of the interface.

    Args:
        request: What is asked for.

    Returns:
        The service's parameters, by its own names; only what is given is in it.

    Raises:
        InvalidRequestError: `request.unknown` holds a parameter that has a field, or the account.

    Source: swifttools prod_request.py, getJSONDict.
    """
    _check_unknown(request)
    wire: dict[str, JsonValue] = {}
    for row in _TABLE:
        value = _look_up(request, row.path)
        if value not in (None, ()):
            wire[row.wire] = _write(row.kind, value)
    wire |= {PRODUCT_FLAGS[product]: 1 for product in request.products}
    wire |= {_WIRE_OF_FIELD[path]: value for path, value in request.unchecked.items()}
    return copy.deepcopy(wire | request.unknown)


def _look_up(request: ProductRequest, path: str) -> object:
    value: object = request
    for step in path.split("."):
        if isinstance(value, tuple):
            value = value[int(step)] if int(step) < len(value) else None
        elif value is not None:
            value = getattr(value, step)
    return value


def _write(kind: _Kind, value: object) -> JsonValue:
    if kind is _Kind.COMMAS and isinstance(value, tuple):
        return ",".join(value)
    if kind is _Kind.LIST and isinstance(value, tuple):
        return list(value)
    if kind is _Kind.FLAG:
        return int(value is True)
    return value  # type: ignore[return-value]


def same_request(asked: Mapping[str, object], accepted: Mapping[str, object]) -> bool | None:
    """Compare what was asked for with the parameters of a job, one by one.

    Args:
        asked: As `encode` spells it.
        accepted: The job's `jobPars`; what the service filled in for parameters that were not given is
            held against what it is known to fill in.

    Returns:
        Whether the job answers this request; None where a value is spelt so that it cannot be told.

    Source: service page ReturnData, and its examples of `jobPars`.
    """
    given = {_ALIASES.get(name, name): value for name, value in accepted.items()}
    verdicts = [_same_product(product, asked, given) for product in Product]
    parts = {PRODUCT_FIELDS[p] for p, flag in PRODUCT_FLAGS.items() if _read(_Kind.FLAG, asked.get(flag))}
    for row in _TABLE:
        ours, theirs = asked.get(row.wire), given.get(row.wire)
        if row.wire in _FINDERS or _is_idle(row.path, parts):
            continue
        if ours is not None:
            verdicts.append(_same_value(row, ours, theirs))
        elif theirs not in (None, "", [], {}) and row.wire not in _FOUND_OUT:
            filled_in = _FILLED_IN.get(row.wire, (0,) if row.kind is _Kind.FLAG else ())
            same = any(_same_value(row, value, theirs) for value in filled_in)
            verdicts.append(same or (None if filled_in else False))
    for name in set(asked).intersection(given) - set(FIELD_OF_WIRE):
        verdicts.append(True if str(asked[name]) == str(given[name]) else None)
    return False if False in verdicts else None if None in verdicts else True


def _same_product(product: Product, asked: _Json, accepted: _Json) -> bool | None:
    ours, theirs = (
        _read(_Kind.FLAG, values.get(PRODUCT_FLAGS[product]) or 0) for values in (asked, accepted)
    )
    if product is Product.STANDARD_POS and ours is False and asked.get(PRODUCT_FLAGS[Product.ASTROM_POS]):
        return True  # the astrometric position brings it in
    return ours == theirs if isinstance(theirs, bool) else None


def _same_value(row: _Parameter, ours: object, theirs: object) -> bool | None:
    """Compare one value with what the service made of it; None where it cannot be told."""
    if row.wire == "useSXPS" and theirs == "2SXPS":
        return True  # the older interface says which catalogue, not whether it is used
    if row.kind is _Kind.FLAG:
        flag = _read(row.kind, theirs or 0)
        return _read(row.kind, ours) == flag if isinstance(flag, bool) else None
    if theirs is None:
        return None
    if row.kind in (_Kind.NUMBER, _Kind.COUNT):
        return _same_number(row.wire, str(ours), str(theirs))
    same = _words(ours) == _words(theirs)
    if not same and row.kind is _Kind.CHOICE and _is_code(row, theirs):
        code = _CODES.get(row.wire, {}).get(str(ours))
        return None if code is None else code == str(theirs)
    return same


def _same_number(name: str, ours: str, theirs: str) -> bool | None:
    try:
        number, other = float(ours), float(theirs)
    except ValueError:
        return None
    # The older interface answers with seconds of arc.
    return math.isclose(number, other, rel_tol=1e-6) or (
        name == "poserr" and math.isclose(60 * number, other, rel_tol=1e-6)
    )


def _words(value: object) -> list[str]:
    """Return the words of a text or a list, whatever keeps them apart, in an order of their own."""
    text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return sorted(filter(None, re.split(r"[\s,{}]+", text)))


def _check_unknown(request: ProductRequest) -> None:
    problems = [
        (f"unknown.{name}", f"has a field of its own: {FIELD_OF_WIRE[name]}")
        for name in request.unknown
        if name in _BY_WIRE or name in _PART_OF_FLAG
    ]
    problems += [
        (f"unknown.{name}", "is not a part of a request: it comes from the settings")
        for name in request.unknown
        if name in _NOT_PARAMETERS
    ]
    if problems:
        _refuse(problems)


def decode(parameters: Mapping[str, object], *, from_service: bool | None = None) -> ProductRequest:
    """Read a request in the service's spelling.

    Parameters without a field, older spellings (a number where a word is expected) and parameters of
    products that are not asked for are kept, to be sent as they are; one warning names them. In what the
    service itself returned, every odd value is kept so, and what it was asked to find is not sought again.

    Args:
        parameters: The parameters by the service's names; an account among them is left out.
        from_service: Whether they are those of an accepted job (`jobPars`) rather than of a request;
            not given, it shows in names that only the service uses.

    Returns:
        The request.

    Raises:
        InvalidRequestError: The parameters do not make a request.

    Source: service page ReturnData; swifttools prod_request.py, setFromJSON.
    """
    given = {name: value for name, value in parameters.items() if name not in _NOT_PARAMETERS}
    if from_service is None:
        from_service = not _MADE_BY_THE_SERVICE.isdisjoint(given)
    if from_service:
        given = {name: _without_bools(value) for name, value in given.items() if name not in _FINDERS}

    asked = {flag for flag in _PART_OF_FLAG if _read(_Kind.FLAG, given.get(flag) or 0) is not False}
    values, unchecked, unknown = _sort(given, asked)
    while True:
        try:
            request = ProductRequest.model_validate(_tree(values, unchecked, unknown))
            break
        except ValidationError as error:
            problems = problems_of(error)
            odd = (
                {path for problem, _ in problems for path in _behind(problem, values)}
                if from_service
                else set()
            )
            if not odd:
                _refuse([*problems, *_misspelt(unknown)], spelt=True)
            for path in odd:
                del values[path]
                unchecked[path] = _without_bools(_given_for(path, given))
    if not from_service and (mistaken := list(_products_by_name(unknown))):
        _refuse(mistaken)
    _warn_of_kept(request, hints=() if from_service else _misspelt(unknown))
    return request


def _sort(
    given: _Json, asked: set[str]
) -> tuple[dict[str, object], dict[str, JsonValue], dict[str, JsonValue]]:
    """Sort parameters into values of fields, values that are kept unchecked, and unknown ones."""
    parts = {_PART_OF_FLAG[flag] for flag in asked}
    values: dict[str, object] = {}
    for flag in asked:
        value = _read(_Kind.FLAG, given[flag])
        # A list or a group is no flag, and must not be taken for the product's fields.
        values[_PART_OF_FLAG[flag]] = value if isinstance(value, bool | int | float) else str(value)
    unchecked: dict[str, JsonValue] = {}
    unknown: dict[str, JsonValue] = {}
    for name, value in given.items():
        known = _ALIASES.get(name, name)
        if known in _PART_OF_FLAG:
            continue
        if known not in _BY_WIRE or (known != name and known in given):
            unknown[name] = _without_bools(value)
        elif value is not None:
            row = _BY_WIRE[known]
            if _is_idle(row.path, parts) or _is_code(row, value):
                unchecked[row.path] = _without_bools(value)
            else:
                values[row.path] = _read(row.kind, value)
    return values, unchecked, unknown


def _read(kind: _Kind, value: object) -> object:
    """Turn a value of the wire into one of a field; what cannot be turned is left to the field's check."""
    if kind is _Kind.FLAG:
        hashable = isinstance(value, str | int | float)
        return _YES_NO.get(value, value) if hashable else value
    if isinstance(value, bool):
        return value
    if kind in (_Kind.NUMBER, _Kind.COUNT) and isinstance(value, str):
        return _number(value, whole=kind is _Kind.COUNT)
    if kind is _Kind.COUNT and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind in (_Kind.TEXT, _Kind.CHOICE, _Kind.COMMAS) and isinstance(value, int | float):
        return str(value)
    return value


def _number(text: str, *, whole: bool) -> object:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        return text


def _is_idle(path: str, parts: set[str]) -> bool:
    """Whether a field belongs to products that are not asked for."""
    part = path.partition(".")[0]
    owners = _SHARED.get(part, (part,) if part in PRODUCT_FIELDS.values() else ())
    return bool(owners) and parts.isdisjoint(owners)


def _is_code(row: _Parameter, value: object) -> bool:
    """Whether a value is a number where the service has words today."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return False
    if row.wire == "hrbin":  # Any number for the official client, yes or no in the documentation.
        is_number = isinstance(_number(str(value), whole=False), float)
        return is_number and not isinstance(_read(_Kind.FLAG, value), bool)
    return (
        row.kind is _Kind.CHOICE
        and bool(_CODE.fullmatch(str(value)))
        and str(value) not in _choices(row.path)
    )


def _choices(path: str) -> set[str]:
    model: type[BaseModel] = ProductRequest
    *parts, name = path.split(".")
    for part in parts:
        (model,) = (kind for kind in get_args(model.model_fields[part].annotation) if kind is not type(None))
    return {choice for kind in get_args(model.model_fields[name].annotation) for choice in get_args(kind)}


def _without_bools(value: object) -> JsonValue:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): _without_bools(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_bools(inner) for inner in value]
    return value  # type: ignore[return-value]


def _tree(values: _Json, unchecked: _Json, unknown: _Json) -> dict[str, object]:
    """Hang the values into the groups of a request."""
    # Not given is not sent: what a request that is built anew would say by default, this one did not say.
    tree: dict[str, Any] = {"find_targets": None, "find_t0": None}
    for path, value in values.items():
        part, _, name = path.partition(".")
        if not name:
            tree[part] = value
            continue
        # The flag of a product comes first; one that is neither 1 nor 0 stays, to be reported.
        group = tree[part] = {} if tree.get(part, True) is True else tree[part]
        if isinstance(group, dict) and name.startswith("time_slices."):
            _, index, name = name.split(".")
            group.setdefault("time_slices", {}).setdefault(index, {})[name] = value
        elif isinstance(group, dict):
            group[name] = value
    if isinstance(spectrum := tree.get("spectrum"), dict) and "time_slices" in spectrum:
        spectrum["time_slices"] = [piece for _, piece in sorted(spectrum["time_slices"].items())]
    return {**tree, "unchecked": unchecked, "unknown": unknown}


def _behind(problem: str, values: _Json) -> set[str]:
    """Find the given values that a problem is about: of its field, or of what the field is a member of."""
    while problem:
        found = {path for path in values if path == problem or path.startswith(f"{problem}.")}
        if found:
            return found
        problem = problem.rpartition(".")[0]
        if problem in {"position", *PRODUCT_FIELDS.values()}:
            break
    return set()


def _given_for(path: str, given: _Json) -> object:
    spellings = [_WIRE_OF_FIELD[path], *(name for name in _ALIASES if FIELD_OF_WIRE[name] == path)]
    return next(given[name] for name in spellings if name in given)


def _products_by_name(unknown: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Find what was meant to ask for a product, and would be lost among the unknown parameters."""
    products = {product.value.casefold(): product for product in Product}
    for name in unknown:
        for near in difflib.get_close_matches(name.casefold(), products, n=1, cutoff=0.85):
            product = products[near]
            yield (
                name,
                f"asks for nothing; the service's parameter for {product.value} is {PRODUCT_FLAGS[product]}",
            )


def _misspelt(unknown: Iterable[str]) -> list[tuple[str, str]]:
    return [
        (name, f"is not a parameter that this project knows; did you mean {near} ({FIELD_OF_WIRE[near]})?")
        for name in unknown
        if name not in FIELD_OF_WIRE
        for near in difflib.get_close_matches(name, FIELD_OF_WIRE, n=1, cutoff=0.75)
    ]


def _warn_of_kept(request: ProductRequest, hints: Iterable[tuple[str, str]]) -> None:
    parts = {PRODUCT_FIELDS[product] for product in request.products}
    idle = [path for path in request.unchecked if _is_idle(path, parts)]
    kept = {
        "unknown to this project": list(request.unknown),
        "odd or older values": [_named(path) for path in request.unchecked if path not in idle],
        "of products that are not asked for": [_named(path) for path in idle],
    }
    texts = [f"{label}: {', '.join(names)}" for label, names in kept.items() if names]
    texts += [f"{name} {text}" for name, text in hints]
    if texts:
        message = f"Kept in the request and sent as they are, unchecked - {'; '.join(texts)}"
        warnings.warn(message, RequestWarning, stacklevel=3)


def _named(path: str) -> str:
    wire = _WIRE_OF_FIELD.get(path, path)
    return path if wire == path else f"{path} ({wire})"


def read_request(
    source: ProductRequest | Mapping[str, object] | str | bytes | JSONDictSource,
    *,
    user_id: str | None = None,
    from_service: bool | None = None,
) -> ProductRequest:
    """Read a request from whatever people have.

    That is: this project's own JSON; the service's, as published, as `XRTProductRequest.getJSON()` dumps
    it, as saved `jobPars`, or the whole reply to a submission; or an `XRTProductRequest` itself. An
    account in it is neither used nor kept.

    Args:
        source: The request, a mapping, JSON text, or an object with `getJSONDict()`. Not a path.
        user_id: The account of the settings, to warn of a different one.
        from_service: As for `decode`.

    Returns:
        The request.

    Raises:
        InvalidRequestError: It is not a request; all that is wrong with it is named.
    """
    if isinstance(source, ProductRequest):
        _check_unknown(source)
        return source
    found: object = source
    if isinstance(source, str | bytes):
        found = _parse(source)
    elif isinstance(source, JSONDictSource):
        found = source.getJSONDict()
    if not isinstance(found, Mapping):
        _refuse([("request", f"is not a JSON object but {_name_of(found)}")])
    if isinstance(saved := found.get("jobPars"), Mapping):
        found, from_service = saved, True
    _compare_accounts(found.get("UserID"), user_id)
    given = {str(name): value for name, value in found.items() if name not in _NOT_PARAMETERS}
    if _is_spelt_for_the_service(given):
        return decode(given, from_service=from_service)
    try:
        request = ProductRequest.model_validate(given)
    except ValidationError as error:
        _refuse(problems_of(error))
    _check_unknown(request)
    return request


def read_request_file(
    path: str | Path, *, user_id: str | None = None, from_service: bool | None = None
) -> ProductRequest:
    """Read a request file: JSON in any of the forms that `read_request` takes.

    Args:
        path: The file.
        user_id: The account of the settings, to warn of a different one.
        from_service: As for `decode`.

    Returns:
        The request.

    Raises:
        InvalidRequestError: The file cannot be read, is not JSON, or is not a request.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_REQUEST_BYTES + 1)
    except FileNotFoundError as error:
        raise InvalidRequestError(f"{path}: there is no such file") from error
    except IsADirectoryError as error:
        raise InvalidRequestError(f"{path}: is a folder, not a request file") from error
    except OSError as error:
        raise InvalidRequestError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return read_request(content, user_id=user_id, from_service=from_service)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{path}: {error.message}", problems=error.problems) from error


def _parse(text: str | bytes) -> object:
    if len(text) > MAX_REQUEST_BYTES:
        _refuse([("request", f"is larger than {MAX_REQUEST_BYTES // 1_000_000} MB; is it a request file?")])
    loads = partial(json.loads, object_pairs_hook=_once_each, parse_constant=_not_json)
    try:
        value: object = loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
        # json.dump(request.getJSON()) makes a text out of a text.
        return loads(value) if isinstance(value, str) else value
    except UnicodeDecodeError as error:
        _refuse([("request", f"is not UTF-8 text (byte {error.start})")], error)
    except json.JSONDecodeError as error:
        hint = "; to read a file, use read_request_file" if isinstance(text, str) and "{" not in text else ""
        place = f"line {error.lineno}, column {error.colno}"
        _refuse([("request", f"is not JSON: {error.msg}, {place}{hint}")], error)
    except (ValueError, RecursionError) as error:
        _refuse([("request", f"is not JSON that can be read: {error}")], error)


def _once_each(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{', '.join(twice)} is given more than once")
    return values


def _not_json(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


def _name_of(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def _is_spelt_for_the_service(given: _Json) -> bool:
    own, service = set(ProductRequest.model_fields), set(FIELD_OF_WIRE)
    ours, theirs = sorted(own.intersection(given) - service), sorted(service.intersection(given) - own)
    if ours and theirs:
        _refuse(
            [
                (
                    name,
                    f"is the service's spelling of {FIELD_OF_WIRE[name]}, but {ours[0]} is not; keep to one",
                )
                for name in theirs
            ]
        )
    # `image` is a flag for the service and a group of fields here.
    image = given.get("image")
    return bool(theirs) or (not ours and isinstance(image, int | str) and not isinstance(image, bool))


def _compare_accounts(found: object, expected: str | None) -> None:
    if found is None or expected is None or str(found).strip().casefold() == expected.strip().casefold():
        return
    warnings.warn(
        "The request names another account than the settings; it is ignored, and the account of the "
        "settings is used.",
        RequestWarning,
        stacklevel=3,
    )


def _refuse(
    problems: Iterable[tuple[str, str]], cause: Exception | None = None, *, spelt: bool = False
) -> NoReturn:
    problems = tuple(problems)
    lines = [f"{_named(path) if spelt else path}: {text}" for path, text in problems]
    message = (
        lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems with the request:", *lines])
    )
    raise InvalidRequestError(message, problems=problems) from cause
