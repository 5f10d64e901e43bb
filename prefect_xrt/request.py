"""What a scientist asks for.

`ProductRequest` names an object, says where its data are, and holds one part for each product that is
wanted. It is checked as a whole when it is built and never changes afterwards. Where the service has a
default, a field that is not given is left to the service.

How a request is spelt for the service is not known here.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

__all__ = [
    "FIELD_PATHS",
    "PRODUCT_FIELDS",
    "AstrometricPosition",
    "Image",
    "LightCurve",
    "PositionOptions",
    "Product",
    "ProductRequest",
    "SourceDetection",
    "Spectrum",
    "TimeSlice",
    "problems_of",
]


class Product(StrEnum):
    """The seven products, by the service's long names.

    Source: service page RequestJob, "Managing specific products".
    """

    LIGHT_CURVE = "LightCurve"
    SPECTRUM = "Spectrum"
    STANDARD_POS = "StandardPos"
    ENHANCED_POS = "EnhancedPos"
    ASTROM_POS = "AstromPos"
    IMAGE = "Image"
    SOURCE_DET = "SourceDet"


PRODUCT_FIELDS: Mapping[Product, str] = MappingProxyType(
    {
        Product.LIGHT_CURVE: "light_curve",
        Product.SPECTRUM: "spectrum",
        Product.STANDARD_POS: "standard_position",
        Product.ENHANCED_POS: "enhanced_position",
        Product.ASTROM_POS: "astrometric_position",
        Product.IMAGE: "image",
        Product.SOURCE_DET: "source_detection",
    }
)
"""The field of `ProductRequest` that asks for each product."""

_POSITIONS = ("standard_position", "enhanced_position", "astrometric_position")


def _keep_whole(value: object, validate: Callable[[object], float]) -> float:
    number = validate(value)
    return value if isinstance(value, int) else number


def _split(value: object) -> object:
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _lower(value: object) -> object:
    items = _split(value)
    if not isinstance(items, list | tuple):
        return items
    return [item.lower() if isinstance(item, str) else item for item in items]


def _ordered_band(value: str) -> str:
    low, high = value.split("-")
    if float(low) >= float(high):
        raise ValueError(f"{value!r} has its lower energy at or above its upper one")
    return value


def _different_names(slices: tuple[TimeSlice, ...]) -> tuple[TimeSlice, ...]:
    names = [piece.name for piece in slices]
    if len(set(names)) < len(names):
        raise ValueError("two time slices have the same name; give each its own")
    return slices


def _sendable(value: JsonValue) -> None:
    if isinstance(value, bool):
        raise ValueError("true and false are not understood by the service; write 1 or 0")  # noqa: TRY004 - pydantic reports it
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that is not finite cannot be sent")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _sendable(inner)


class _ReadOnly(dict[str, JsonValue]):
    """A dict that refuses to change, as the request that holds it does."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a request never changes; build another one")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (dict(self),))


def _read_only(values: dict[str, JsonValue]) -> dict[str, JsonValue]:
    for value in values.values():
        _sendable(value)
    return _ReadOnly(values)


_TARGET = r"^[0-9]{8}$"
_ITEM = r"^[^,]+$"
_TEXT = r"\S"
_LABEL = r"^[A-Za-z0-9]+$"
_BAND = r"^[0-9]+(\.[0-9]+)?-[0-9]+(\.[0-9]+)?$"
_PATTERNS = {
    _TARGET: "a target ID of 8 digits, such as 00966554",
    _ITEM: "a text without commas that says something",
    _TEXT: "a text that says something",
    _LABEL: "a label of letters and digits only",
    _BAND: "an energy band in keV, such as 0.3-10",
}

# The official client sends whole numbers as they were given (30, not 30.0), in saved requests too.
_KEEP_WHOLE = (WrapValidator(_keep_whole), PlainSerializer(lambda value: value))

Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False), *_KEEP_WHOLE]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False), *_KEEP_WHOLE]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False), *_KEEP_WHOLE]
PositionError = Annotated[float, Field(strict=True, ge=1, le=6, allow_inf_nan=False), *_KEEP_WHOLE]
RightAscension = Annotated[float, Field(strict=True, ge=0, le=360, allow_inf_nan=False)]
Declination = Annotated[float, Field(strict=True, ge=-90, le=90, allow_inf_nan=False)]
Redshift = Annotated[float, Field(strict=True, gt=-1, allow_inf_nan=False)]
FitStatistic = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=1)]
Text = Annotated[str, StringConstraints(strict=True, pattern=_TEXT)]
Label = Annotated[str, StringConstraints(strict=True, pattern=_LABEL)]
Item = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, pattern=_ITEM)]
TargetId = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, pattern=_TARGET)]
EnergyBand = Annotated[
    str, StringConstraints(strict=True, strip_whitespace=True, pattern=_BAND), AfterValidator(_ordered_band)
]
Model = Literal["powerlaw", "apec", "blackbody"]
CentroidMethod = Literal["simple", "iterative"]
Grades = Literal["all", "0", "4"]
Modes = Literal["no", "pc", "wt", "both"]
Kept = Annotated[
    dict[str, JsonValue], AfterValidator(_read_only), WithJsonSchema({"type": "object", "default": {}})
]

Observations = Annotated[
    tuple[Item, ...],
    BeforeValidator(_split),
    Field(
        description="The observations to use: observation IDs, or start-stop times; given alone, they imply "
        "which_data 'user'. A text is split at its commas."
    ),
]


def _user_where_given(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda earlier: "user" if earlier.get(field) else None


def _off_where_given(field: str) -> Callable[[dict[str, Any]], Any]:
    return lambda earlier: False if earlier.get(field) not in (None, ()) else None


_UNITS = {
    "deg": "degrees",
    "arcmin": "arcmin",
    "arcsec": "arcsec",
    "s": "seconds",
    "hours": "hours",
    "kev": "keV",
    "px": "pixels",
    "sigma": "sigma",
}
_SHOWN_CHARACTERS = 60
_TRANSLATED = "problem"


def _shown(value: object) -> str:
    names = {True: "true", False: "false"}
    text = names[value] if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _range(model: type[BaseModel], field: str) -> str:
    schema = model.model_json_schema()["properties"][field]
    limits = schema.get("anyOf", [schema])[0]
    unit = _UNITS.get(field.rpartition("_")[2])
    suffix = f" {unit}" if unit else ""
    if "minimum" in limits and "maximum" in limits:
        return f"between {limits['minimum']} and {limits['maximum']}{suffix}"
    if "minimum" in limits:
        return f"{limits['minimum']}{suffix} or more"
    return f"more than {limits['exclusiveMinimum']}{suffix}"


def _closest(word: str, known: Iterable[str]) -> str:
    plain = {name.replace("_", "").casefold(): name for name in known}
    found = difflib.get_close_matches(word.replace("_", "").casefold(), plain, n=1)
    return f"; did you mean {plain[found[0]]}?" if found else ""


_EXPECTED = {
    "bool_type": "true or false",
    "float_type": "a number",
    "int_type": "a whole number",
    "finite_number": "a finite number",
    "string_type": "a text: write it in quotes",
    "tuple_type": "a list",
    "dict_type": "a group of fields",
    "model_type": "a group of fields (nor true, for the service's defaults)",
}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")


def _words(model: type[BaseModel], problem: ErrorDetails) -> str:
    """Say in the user's words what pydantic says in its own."""
    kind, shown, context = problem["type"], _shown(problem["input"]), problem.get("ctx", {})
    field = str(problem["loc"][0]) if problem["loc"] else ""
    if kind == "missing":
        text = "is missing"
    elif kind == "extra_forbidden":
        text = f"there is no such field{_closest(field, model.model_fields)}"
    elif kind == "literal_error":
        choices = re.findall(r"'([^']+)'", context["expected"])
        text = f"{shown} is not one of {context['expected']}{_closest(str(problem['input']), choices)}"
    elif kind in _BOUNDS:
        text = f"{shown} is not {_range(model, field)}"
    elif kind == "string_pattern_mismatch":
        text = f"{shown} is not {_PATTERNS[context['pattern']]}"
    elif kind == "too_long":
        text = f"has {context['actual_length']} entries; there can be {context['max_length']} at most"
    elif kind == "value_error":
        text = str(context["error"])
    elif kind in _EXPECTED:
        text = f"{shown} is not {_EXPECTED[kind]}"
    else:
        text = f"{shown}: {problem['msg']}"
    return text


def _detail(kind: str, location: tuple[int | str, ...], text: str) -> InitErrorDetails:
    # The text is an argument, not the template: a brace in it is only a brace.
    problem = PydanticCustomError(kind, "{problem}", {_TRANSLATED: text})
    return InitErrorDetails(type=problem, loc=location, input=None)


@dataclass(frozen=True)
class _View:
    """A request to be checked: whether built, or as it was given with some of its fields wrong."""

    data: object
    wrong: frozenset[str] = frozenset()

    def get(self, path: str) -> Any:
        value = self.data
        for step in path.split("."):
            if isinstance(value, Mapping):
                value = value.get(step)
            elif isinstance(value, BaseModel):
                value = getattr(value, step, None)
            else:
                return None
        return value

    @property
    def unchecked(self) -> set[str]:
        paths = self.get("unchecked")
        return {str(path) for path in paths} if isinstance(paths, Mapping) else set()

    def unclear(self, path: str) -> bool:
        """Whether it has a value that cannot be judged: a wrong one, or one kept unchecked."""
        return any(
            path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
            for other in self.wrong | self.unchecked
        )

    def holds(self, path: str) -> bool:
        """Whether it has a value, and one that can be judged."""
        return self.get(path) not in (None, (), [], "") and not self.unclear(path)

    def given(self, path: str) -> bool:
        return self.holds(path) or self.unclear(path)

    def wanted(self, *products: str) -> bool:
        return any(self.get(field) not in (None, False) or field in self.wrong for field in products)


def problems_of(error: ValidationError) -> tuple[tuple[str, str], ...]:
    """List what is wrong with a request, as pairs (path of the field, what is wrong with it).

    Args:
        error: What was raised when a model of this module was built.

    Returns:
        The pairs, in the order of the fields; the path of a problem of the whole is "request".
    """
    return tuple(
        (".".join(map(str, problem["loc"])) or "request", problem["msg"])
        for problem in error.errors(include_url=False, include_input=False)
    )


class _Part(BaseModel):
    """A frozen group of fields that reports all its problems at once, in the user's words."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    _checks: ClassVar[tuple[Callable[[_View], Iterator[tuple[str, str]]], ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _report_all(cls, data: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, cls):
            return validate(data)
        if isinstance(data, Mapping):
            data = cls._tidy(dict(data))
        details: list[InitErrorDetails] = []
        part: Self | None = None
        try:
            part = validate(data)
        except ValidationError as error:
            details = [
                _detail(
                    problem["type"],
                    problem["loc"],
                    problem["msg"] if _TRANSLATED in problem.get("ctx", {}) else _words(cls, problem),
                )
                for problem in error.errors(include_url=False)
                # A default that is worked out of other fields has no problem of its own.
                if problem["type"] != "default_factory_not_called"
            ]
        if isinstance(data, Mapping):
            wrong = frozenset(".".join(map(str, detail.get("loc", ()))) for detail in details)
            view = _View(data if part is None else part, wrong)
            details += [
                _detail("request", tuple(path.split(".")), text)
                for check in cls._checks
                for path, text in check(view)
            ]
        if part is None or details:
            raise ValidationError.from_exception_data(cls.__name__, details, hide_input=True)
        return part

    @classmethod
    def _tidy(cls, data: dict[str, Any]) -> dict[str, Any]:
        # In a part, a field that is null is a field that is not given.
        return {name: value for name, value in data.items() if value is not None}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy it; with an update, build it anew so that the copy is checked as well.

        Args:
            update: Fields that are to differ. Defaults that follow from them are worked out again.
            deep: Whether to copy what it holds, too.

        Returns:
            The copy.
        """
        if not update:
            return super().model_copy(deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self).model_validate({**given, **update})


class LightCurve(_Part):
    """A light curve. How its fields fit together is checked by the request that it goes into.

    Source: service page RequestJob, "Light curve parameters"; swifttools productVars.py.
    """

    # A request that keeps an older spelling of it unchecked has none here, hence optional for Python.
    model_config = ConfigDict(json_schema_extra={"required": ["binning"]})

    binning: Literal["counts", "time", "snapshot", "obsid"] | None = Field(
        None, description="How to bin (mandatory): by counts, fixed time, snapshot or observation."
    )
    pc_counts: Count | None = Field(
        None, description="Counts that fill a PC-mode bin (at 1 count/s if dynamic); for 'counts' binning."
    )
    wt_counts: Count | None = Field(
        None, description="Counts that fill a WT-mode bin (at 1 count/s if dynamic); for 'counts' binning."
    )
    dynamic: Flag | None = Field(
        None, description="Whether the counts of a bin follow the rate; for 'counts' binning."
    )
    rate_factor: Positive | None = Field(None, description="Rate factor of dynamic binning.")
    bin_factor: Positive | None = Field(None, description="Binning factor of dynamic binning.")
    min_counts: Count | None = Field(
        None, description="Fewest counts in a bin, below which dynamic binning cannot fall."
    )
    min_snr: Number | None = Field(None, description="Lowest signal-to-noise ratio of a full bin.")
    pc_bin_s: Positive | None = Field(
        None, description="Duration of PC-mode bins ('time'), or their shortest ('counts'), in seconds."
    )
    wt_bin_s: Positive | None = Field(
        None, description="Duration of WT-mode bins ('time'), or their shortest ('counts'), in seconds."
    )
    pc_max_gap_s: Positive | None = Field(
        None, description="Longest gap between observations that a PC-mode bin can straddle, in seconds."
    )
    wt_max_gap_s: Positive | None = Field(
        None, description="Longest gap between observations that a WT-mode bin can straddle, in seconds."
    )
    match_hardness_ratio: Flag | None = Field(
        None, description="Whether the hardness ratio has the bins of the main curve ('time' binning)."
    )
    pc_hardness_bin_s: Positive | None = Field(
        None, description="Duration of PC-mode bins of the hardness ratio, in seconds."
    )
    wt_hardness_bin_s: Positive | None = Field(
        None, description="Duration of WT-mode bins of the hardness ratio, in seconds."
    )
    min_fractional_exposure: Fraction | None = Field(
        None, description="Bins with a lower fractional exposure (0 to 1) are discarded."
    )
    min_energy_kev: Number | None = Field(None, description="Lowest energy of the main curve, in keV.")
    max_energy_kev: Positive | None = Field(None, description="Highest energy of the main curve, in keV.")
    soft_low_kev: Number | None = Field(None, description="Lowest energy of the soft band, in keV.")
    soft_high_kev: Positive | None = Field(None, description="Highest energy of the soft band, in keV.")
    hard_low_kev: Number | None = Field(None, description="Lowest energy of the hard band, in keV.")
    hard_high_kev: Positive | None = Field(None, description="Highest energy of the hard band, in keV.")
    min_significance_sigma: Number | None = Field(
        None, description="Lowest significance of a detection, in Gaussian sigma."
    )
    grades: Grades | None = Field(None, description="Event grades to include.")
    allow_upper_limits: Modes | None = Field(None, description="In which modes upper limits are allowed.")
    allow_bayes: Modes | None = Field(None, description="In which modes Bayesian bins are allowed.")
    bayes_counts: Number | None = Field(
        None, description="Counts in a bin, below which Bayesian statistics are used."
    )
    bayes_snr: Number | None = Field(
        None, description="Signal-to-noise ratio of a bin, below which Bayesian statistics are used."
    )
    time_format: Literal["s", "m", "sec", "mjd"] | None = Field(
        None, description="Unit of the time axis: seconds ('s', 'sec') or MJD ('m', 'mjd')."
    )
    observations: Observations = ()
    which_data: Literal["all", "user"] | None = Field(
        default_factory=_user_where_given("observations"),
        description="Whether to use all observations or those given by the user.",
    )


class TimeSlice(_Part):
    """A named piece of time that gets a spectrum of its own.

    Source: service page RequestJob, "If defining specific sub-spectra".
    """

    name: Label = Field(description="Label of the spectrum: letters and digits only.")
    gti: Text = Field(
        title="GTI", description="Good time interval (GTI): start-stop times in a format of the service."
    )


TimeSlices = Annotated[tuple[TimeSlice, ...], Field(max_length=4), AfterValidator(_different_names)]


class Spectrum(_Part):
    """A spectrum, with an automatic fit. How its fields fit together is checked by the request.

    Source: service page RequestJob, "Spectrum parameters"; swifttools productVars.py.
    """

    redshift: Redshift | None = Field(None, description="Redshift of the source (no unit).")
    do_not_fit: Flag | None = Field(None, description="Whether to skip the fit.")
    has_redshift: Flag = Field(
        default_factory=lambda earlier: (
            earlier.get("redshift") is not None and earlier.get("do_not_fit") is not True
        ),
        description="Whether to fit a redshifted absorber; follows from the redshift if not given.",
    )
    galactic: Flag | None = Field(
        default_factory=lambda earlier: (
            True if earlier.get("redshift") is not None or earlier.get("has_redshift") else None
        ),
        description="Whether to add an absorber fixed at the Galactic value; on if a redshift is given.",
    )
    models: Annotated[tuple[Model, ...], BeforeValidator(_lower)] = Field(
        (), description="Emission models to fit, each in a fit of its own."
    )
    delta_fit_stat: FitStatistic = Field(
        2.706, description="Change of the fit statistic that defines the errors (2.706: 90 %)."
    )
    grades: Grades | None = Field(None, description="Event grades to include.")
    stem: Text | None = Field(None, description="Stem of the names of the spectrum's files.")
    include_hours: Positive | None = Field(
        None, description="Use what was observed within this time of the first observation, in hours."
    )
    observations: Observations = ()
    which_data: Literal["all", "user", "hours"] | None = Field(
        default_factory=_user_where_given("observations"),
        description="Whether to use all observations, those given, or those within include_hours.",
    )
    time_slices: TimeSlices = Field(
        (), description="One to four named pieces of time; given alone, they imply time_slicing 'user'."
    )
    time_slicing: Literal["single", "user", "snapshot", "obsid"] | None = Field(
        default_factory=_user_where_given("time_slices"),
        description="Which spectra to make: one, those of time_slices, or one per snapshot or observation.",
    )


class PositionOptions(_Part):
    """What the standard, enhanced and astrometric position share.

    Source: service page RequestJob, "Position parameters"; swifttools productVars.py, prodUseGlobals.
    """

    radius_arcsec: Positive | None = Field(
        None, description="How far the source can be from the given position, in arcsec."
    )
    include_hours: Positive | None = Field(
        None, description="Use what was observed within this time of the first observation, in hours."
    )
    observations: Observations = ()
    which_data: Literal["all", "user", "hours"] | None = Field(
        default_factory=_user_where_given("observations"),
        description="Whether to use all observations, those given, or those within include_hours.",
    )
    detect_or_centroid: Literal["detect", "centroid"] | None = Field(
        None, description="Whether to find the source by detection or by a centroid."
    )
    centroid_method: CentroidMethod | None = Field(None, description="How to centroid for the position.")


class AstrometricPosition(_Part):
    """A position from the match of X-ray sources with 2MASS.

    Source: service page RequestJob, "Position parameters".
    """

    use_all_observations: Flag | None = Field(
        None, description="Whether to use all available data for this position, whatever the others use."
    )


class Image(_Part):
    """Images in energy bands.

    Source: service page RequestJob, "Image parameters".
    """

    energies_kev: Annotated[tuple[EnergyBand, ...], BeforeValidator(_split)] = Field(
        (), description="Energy bands, an image each, such as 0.3-10, in keV. A text is split at its commas."
    )
    observations: Observations = ()
    which_data: Literal["all", "user"] | None = Field(
        default_factory=_user_where_given("observations"),
        description="Whether to use all observations or those given by the user.",
    )


class SourceDetection(_Part):
    """A search for sources. Over many observations it can outlast the service's limit of 12 hours.

    Source: service page RequestJob, "Source detection parameters".
    """

    model_config = ConfigDict(json_schema_extra={"required": ["which_data"]})

    observations: Observations = ()
    which_data: Literal["all", "user"] | None = Field(
        default_factory=_user_where_given("observations"),
        description="Whether to use all observations or those given by the user (mandatory).",
    )
    bands: Literal["total", "all"] | None = Field(
        None, description="Whether to search the total band or all energy bands."
    )
    fit_stray_light: Flag | None = Field(None, description="Whether to look for stray light and model it.")


_NO_OPTIONS = PositionOptions()
_SWITCHES = ("standard_position", "enhanced_position")


def _check_object(view: _View) -> Iterator[tuple[str, str]]:
    if not view.given("targets") and not _finds(view, "find_targets"):
        yield "targets", "is missing; give the target IDs, or set find_targets for the service to find them"
    for value, finder in (
        ("targets", "find_targets"),
        ("t0_met_s", "find_t0"),
        ("ra_deg", "find_position"),
        ("dec_deg", "find_position"),
    ):
        if view.holds(value) and view.get(finder) is True:
            yield value, f"is given although {finder} asks the service to find it; give one of the two"
    asked = [field for field in PRODUCT_FIELDS.values() if view.wanted(field)]
    for field, other in (("ra_deg", "dec_deg"), ("dec_deg", "ra_deg")):
        if view.given(field) or _finds(view, "find_position"):
            continue
        if view.given(other):
            yield field, f"is missing, with {other} given"
        elif asked not in ([], ["source_detection"]):
            yield field, "is missing; give the position, or set find_position for the service to look it up"
    if view.get("centroid") is True and not view.given("position_error_arcmin"):
        yield "position_error_arcmin", "is missing; with centroid, give how far off it can be: 1 to 6 arcmin"


def _finds(view: _View, finder: str) -> bool:
    return view.get(finder) is True or view.unclear(finder)


def _check_products(view: _View) -> Iterator[tuple[str, str]]:
    fields = PRODUCT_FIELDS.values()
    if not view.wanted(*fields):
        yield "products", f"no product is asked for; give at least one of {', '.join(fields)}"
    asked = [field for field in fields if view.wanted(field)]
    if asked not in ([], ["source_detection"]) and not view.given("centroid"):
        yield "centroid", "is missing; say whether to centroid in the XRT frame (true or false)"
    if view.holds("max_source_radius_px") and not view.wanted("light_curve", "spectrum"):
        yield "max_source_radius_px", "is of no use without a light curve or a spectrum"
    if view.get("position") is not None and not view.wanted(*_POSITIONS):
        yield "position", f"is of no use without a position; ask for one of {', '.join(_POSITIONS)}"


def _check_data(view: _View) -> Iterator[tuple[str, str]]:
    for part in ("light_curve", "spectrum", "position", "image", "source_detection"):
        which, observations, hours = (
            f"{part}.{name}" for name in ("which_data", "observations", "include_hours")
        )
        selection = view.get(which)
        if selection == "user" and not view.given(observations):
            yield observations, "is missing; which_data 'user' needs the observations to use"
        if selection in ("all", "hours") and view.holds(observations):
            yield observations, f"is given although which_data is {selection!r}; use 'user', or leave it out"
        if selection == "hours" and not view.given(hours):
            yield hours, "is missing; which_data 'hours' needs the number of hours"
    which, observations = "source_detection.which_data", "source_detection.observations"
    if view.wanted("source_detection") and not view.given(which) and not view.given(observations):
        yield which, "is missing; give the observations to search, or 'all' (it can take very long)"


def _check_light_curve(view: _View) -> Iterator[tuple[str, str]]:
    if not view.wanted("light_curve"):
        return
    if not view.given("light_curve.binning"):
        yield "light_curve.binning", "is missing; choose 'counts', 'time', 'snapshot' or 'obsid'"
    if view.get("light_curve.binning") == "counts":
        for field, meaning in (
            ("pc_counts", "the counts of a PC-mode bin"),
            ("wt_counts", "the counts of a WT-mode bin"),
            ("dynamic", "to know whether binning is dynamic (true or false)"),
        ):
            if not view.given(f"light_curve.{field}"):
                yield f"light_curve.{field}", f"is missing; binning 'counts' needs {meaning}"


def _check_energies(view: _View) -> Iterator[tuple[str, str]]:
    def energy(name: str) -> float | None:
        value = view.get(f"light_curve.{name}_kev")
        return value if isinstance(value, int | float) else None

    lowest, highest = energy("min_energy"), energy("max_energy")
    if lowest is not None and highest is not None and lowest >= highest:
        yield "light_curve.min_energy_kev", f"{lowest} keV is not below max_energy_kev ({highest} keV)"
    for band in ("soft", "hard"):
        low, high = energy(f"{band}_low"), energy(f"{band}_high")
        if low is not None and high is not None and low >= high:
            yield f"light_curve.{band}_low_kev", f"{low} keV is not below {band}_high_kev ({high} keV)"
        if low is not None and lowest is not None and low < lowest:
            yield f"light_curve.{band}_low_kev", f"{low} keV is below min_energy_kev ({lowest} keV)"
        if high is not None and highest is not None and high > highest:
            yield f"light_curve.{band}_high_kev", f"{high} keV is above max_energy_kev ({highest} keV)"


def _check_spectrum(view: _View) -> Iterator[tuple[str, str]]:
    redshift, has_redshift = "spectrum.redshift", view.get("spectrum.has_redshift")
    if has_redshift is True and not view.given(redshift):
        yield redshift, "is missing, with has_redshift true"
    # Without a fit the redshift is idle: the official client sends it so, too.
    if has_redshift is False and view.holds(redshift) and view.get("spectrum.do_not_fit") is not True:
        yield redshift, "is given although has_redshift is false; leave one of the two out"
    slices, slicing = "spectrum.time_slices", view.get("spectrum.time_slicing")
    if slicing == "user" and not view.given(slices):
        yield slices, "is missing; time_slicing 'user' needs one to four named time slices"
    if slicing in ("single", "snapshot", "obsid") and view.holds(slices):
        yield slices, f"is given although time_slicing is {slicing!r}; use 'user', or leave it out"


def _check_kept(view: _View) -> Iterator[tuple[str, str]]:
    for path in sorted(view.unchecked):
        if path not in FIELD_PATHS:
            yield f"unchecked.{path}", "there is no such field; what has no field belongs into unknown"
        elif path not in _NOT_EXCLUSIVE and view.get(path) not in (None, (), False):
            yield f"unchecked.{path}", f"{path} has a value of its own; give one of the two"


class ProductRequest(_Part):
    """All that one job is asked to do.

    Each product is asked for by its field; `true` (or an empty group) asks for it with the service's
    defaults. It does not hold the account, and it does not decide what the service has defaults for.

    Source: service page RequestJob, "Configurable parameters"; swifttools prod_request.py, productVars.py.
    """

    _checks: ClassVar[tuple[Callable[[_View], Iterator[tuple[str, str]]], ...]] = (
        _check_object,
        _check_products,
        _check_data,
        _check_light_curve,
        _check_energies,
        _check_spectrum,
        _check_kept,
    )

    name: Text = Field(description="Name of the object.")
    targets: Annotated[tuple[TargetId, ...], BeforeValidator(_split)] = Field(
        (), description="Target IDs whose data are used, of 8 digits each. A text is split at its commas."
    )
    find_targets: Flag | None = Field(
        default_factory=_off_where_given("targets"),
        description="Whether the service finds the target IDs, from the name and the position.",
    )
    t0_met_s: Number | None = Field(
        None, description="Reference time T0, such as a trigger, in mission elapsed time (MET), seconds."
    )
    find_t0: Flag | None = Field(
        default_factory=_off_where_given("t0_met_s"),
        description="Whether the service finds T0: the trigger, or the start of the first observation.",
    )
    since_t0: Flag | None = Field(None, description="Whether all other times are relative to T0.")
    ra_deg: RightAscension | None = Field(None, description="Right ascension, J2000, in degrees.")
    dec_deg: Declination | None = Field(None, description="Declination, J2000, in degrees.")
    find_position: Flag | None = Field(
        None, description="Whether the service looks the position up by the name (SIMBAD)."
    )
    centroid: Flag | None = Field(
        None, description="Whether to centroid in the XRT frame; only source detection alone does without."
    )
    centroid_method: CentroidMethod | None = Field(None, description="How to centroid.")
    max_centroid_tries: Count | None = Field(
        None, description="How many observations to try to centroid on before giving up."
    )
    position_error_arcmin: PositionError | None = Field(
        None, description="How far the centroid can be from the given position, 1 to 6 arcmin."
    )
    super_soft: Flag | None = Field(
        None, description="Whether this is a super-soft source (sss): grade 0 only, lower pile-up rates."
    )
    use_sxps: Flag | None = Field(None, description="Whether to use source lists of SXPS where possible.")
    wt_pileup_rate_counts_per_s: Positive | None = Field(
        None, description="Rate above which WT data are tested for pile-up, in counts per second."
    )
    pc_pileup_rate_counts_per_s: Positive | None = Field(
        None, description="Rate above which PC data are tested for pile-up, in counts per second."
    )
    max_source_radius_px: Count | None = Field(
        None, description="Largest radius of the source region of light curve and spectrum, in pixels."
    )
    notify: Flag | None = Field(None, description="Whether the service sends an e-mail at the end.")

    light_curve: LightCurve | None = Field(None, title="Light curve", description="Ask for a light curve.")
    spectrum: Spectrum | None = Field(None, title="Spectrum", description="Ask for a spectrum.")
    standard_position: Flag = Field(False, description="Ask for a standard position.")
    enhanced_position: Flag = Field(False, description="Ask for an enhanced position (UVOT).")
    astrometric_position: AstrometricPosition | None = Field(
        None, title="Astrometric position", description="Ask for an astrometric position (2MASS)."
    )
    position: PositionOptions | None = Field(
        None, title="Position options", description="What the three positions share."
    )
    image: Image | None = Field(None, title="Image", description="Ask for images.")
    source_detection: SourceDetection | None = Field(
        None, title="Source detection", description="Ask for a search for sources."
    )

    unchecked: Kept = Field(
        default_factory=_ReadOnly,
        description="Values that are sent as they are, by the path of their field: older spellings, and "
        "parameters of products that are not asked for. Comes from requests of other tools; leave it empty.",
    )
    unknown: Kept = Field(
        default_factory=_ReadOnly,
        description="Parameters that this project does not know, by the service's own name, sent as they "
        "are. Comes from requests of other tools; leave it empty.",
    )

    @property
    def products(self) -> tuple[Product, ...]:
        """The products asked for, in the order of `Product`."""
        return tuple(product for product, field in PRODUCT_FIELDS.items() if getattr(self, field))

    @classmethod
    def _tidy(cls, data: dict[str, Any]) -> dict[str, Any]:
        for field in PRODUCT_FIELDS.values():
            switch = field in _SWITCHES
            if switch and (data.get(field, True) is None or data.get(field) == {}):
                data[field] = data[field] is not None
            elif not switch and isinstance(data.get(field), bool):
                data[field] = {} if data[field] else None
        # Options that say nothing are no options: one spelling for one request.
        if data.get("position") in ({}, _NO_OPTIONS):
            data["position"] = None
        return data


def _paths(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for kind in get_args(field.annotation):
            if isinstance(kind, type) and issubclass(kind, TimeSlice):
                for index in range(4):
                    yield from _paths(kind, f"{prefix}{name}.{index}.")
            elif isinstance(kind, type) and issubclass(kind, _Part):
                yield from _paths(kind, f"{prefix}{name}.")


FIELD_PATHS: frozenset[str] = frozenset(_paths(ProductRequest, "")) - {"unchecked", "unknown"}
"""The dotted path of every field of a request, such as `light_curve.pc_counts`."""

# Fields that have a value without anyone giving one: what is kept unchecked is sent instead.
_NOT_EXCLUSIVE = {
    *PRODUCT_FIELDS.values(),
    "spectrum.delta_fit_stat",
    "spectrum.has_redshift",
    "spectrum.galactic",
} | {path for path in FIELD_PATHS if path.endswith(("which_data", "time_slicing", "find_targets", "find_t0"))}
