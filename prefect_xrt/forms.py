"""A form that people fill in: flat, with few fields that matter and defaults for the others.

The annotated types are the parameters of a flow, so that Prefect's UI shows them with titles, units and
choices; `read_form` makes a `ProductRequest` of them. What the form has no field for is pasted as JSON.
Everything that is wrong is told by the titles that people see.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, WithJsonSchema

from prefect_xrt.errors import InvalidRequestError, RequestWarning
from prefect_xrt.parameters import FIELD_OF_WIRE, decode, encode, read_request
from prefect_xrt.request import (
    PRODUCT_FIELDS,
    Count,
    Model,
    Number,
    Positive,
    Product,
    ProductRequest,
    TimeSlices,
    problems_of,
)
from prefect_xrt.request import PositionError as _PositionError
from prefect_xrt.request import Redshift as _Redshift

__all__ = [
    "IMAGE",
    "LIGHT_CURVE",
    "POSITION",
    "SOURCE_DETECTION",
    "SPECTRUM",
    "Centroid",
    "Declination",
    "ImageGroup",
    "ImageOptions",
    "LightCurveGroup",
    "LightCurveOptions",
    "Name",
    "PositionError",
    "PositionGroup",
    "PositionOptions",
    "Products",
    "ReferenceTime",
    "RequestJSON",
    "RightAscension",
    "SourceGroup",
    "SourceOptions",
    "SpectrumGroup",
    "SpectrumOptions",
    "TargetIds",
    "read_form",
    "titled",
]


def titled(title: str, *, unique: bool = False, **limits: Any) -> Any:
    """Give a parameter of a flow a title in the UI's form; its description is that of the docstring.

    Args:
        title: What stands above the field, with the unit. Prefect shows the name of the parameter otherwise.
        unique: Whether each choice of a list can be taken only once.
        limits: Limits as pydantic's `Field` takes them.

    Returns:
        What to put into `Annotated`.
    """
    shown: dict[str, JsonValue] = {"title": title}
    if unique:
        shown["uniqueItems"] = True
    return Field(json_schema_extra=shown, **limits)


def _empty(title: str, description: str) -> Any:
    """Return a number that may be left empty: without a default of null, the UI shows one plain field."""
    return Field(
        None,
        title=title,
        description=description,
        json_schema_extra=_without_default,
    )


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


_OptionalPositive = Annotated[Positive | None, WithJsonSchema({"type": "number", "exclusiveMinimum": 0})]
_OptionalRedshift = Annotated[_Redshift | None, WithJsonSchema({"type": "number", "exclusiveMinimum": -1})]
_HOURS = (
    "First hours (h)",
    "Use only what was observed within this time of the first observation. Empty: all.",
)
_OBSERVATIONS = "Observation IDs, or start-stop times, separated by commas. Empty: all."


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LightCurveOptions(_Options):
    """How the light curve is made. Used only if it is among the products."""

    binning: Literal["counts", "time", "snapshot", "obsid"] = Field(
        "counts",
        title="Binning",
        description="What fills a bin: counts, a fixed time, a snapshot, or an observation (obsid).",
    )
    pc_counts: Count = Field(
        20,
        title="Counts per PC bin",
        description="In photon-counting mode, at a rate of 1 count/s if dynamic. Only for binning by counts.",
    )
    wt_counts: Count = Field(
        30,
        title="Counts per WT bin",
        description="In windowed-timing mode, at a rate of 1 count/s if dynamic. Only for binning by counts.",
    )
    dynamic: bool = Field(
        True,
        title="Dynamic binning",
        description="Whether the counts per bin follow the count rate. Only for binning by counts.",
    )
    pc_bin_s: _OptionalPositive = _empty(
        "PC bin (s)",
        "Duration of PC bins, which binning by time needs; the shortest one for binning by counts. "
        "Empty: the service's own.",
    )
    wt_bin_s: _OptionalPositive = _empty(
        "WT bin (s)",
        "Duration of WT bins, which binning by time needs; the shortest one for binning by counts. "
        "Empty: the service's own.",
    )
    min_energy_kev: Number = Field(
        0.3, title="Lowest energy (keV)", description="Lower end of the energy band of the curve."
    )
    max_energy_kev: Positive = Field(
        10, title="Highest energy (keV)", description="Upper end of the energy band of the curve."
    )
    time_format: Literal["s", "mjd"] = Field(
        "s", title="Time axis", description="Seconds since T0 (s), or days (mjd)."
    )
    observations: str = Field("", title="Observations", description=_OBSERVATIONS)


class SpectrumOptions(_Options):
    """How the spectrum is made and fitted. Used only if it is among the products."""

    time_slicing: Literal["single", "snapshot", "obsid", "user"] = Field(
        "single",
        title="Spectra",
        description="One of everything, one for each snapshot or observation (obsid), or one for each of "
        "the time slices below (user).",
    )
    time_slices: TimeSlices = Field(
        (), title="Time slices", description="Up to four, each with a spectrum of its own."
    )
    fit: bool = Field(True, title="Fit", description="Whether the spectrum is fitted.")
    models: tuple[Model, ...] = Field(
        ("powerlaw",),
        title="Models",
        description="Emission models, each in a fit of its own.",
        min_length=1,
        json_schema_extra={"uniqueItems": True},
    )
    redshift: _OptionalRedshift = _empty(
        "Redshift",
        "Fit an absorber at this redshift, beside the Galactic one. Empty: an absorber at 0 alone.",
    )
    include_hours: _OptionalPositive = _empty(*_HOURS)
    observations: str = Field("", title="Observations", description=_OBSERVATIONS)


class PositionOptions(_Options):
    """How positions are found. Used only if one of them is among the products."""

    radius_arcsec: Positive = Field(
        20, title="Radius (arcsec)", description="How far the source can be from the given position."
    )
    detect_or_centroid: Literal["detect", "centroid"] = Field(
        "detect", title="Method", description="Whether the source is found by detection or by a centroid."
    )
    include_hours: _OptionalPositive = _empty(*_HOURS)
    observations: str = Field("", title="Observations", description=_OBSERVATIONS)
    use_all_observations: bool = Field(
        False,
        title="Everything for the astrometric position",
        description="Whether all data are used for this one, whatever the others use.",
    )


class ImageOptions(_Options):
    """Which images are made. Used only if Image is among the products."""

    energies_kev: str = Field(
        "0.3-10, 0.3-1.5, 1.51-10",
        title="Energy bands (keV)",
        description="Separated by commas; an image each.",
    )
    observations: str = Field("", title="Observations", description=_OBSERVATIONS)


class SourceOptions(_Options):
    """How sources are searched for. Used only if SourceDet is among the products."""

    bands: Literal["total", "all"] = Field(
        "total", title="Bands", description="Whether the total band is searched, or all energy bands."
    )
    fit_stray_light: bool = Field(
        False, title="Stray light", description="Whether stray light is looked for and modelled."
    )
    observations: str = Field(
        "",
        title="Observations",
        description=f"{_OBSERVATIONS[:-1]}, which can last longer than the 12 hours that the service allows.",
    )


LIGHT_CURVE = LightCurveOptions()
SPECTRUM = SpectrumOptions()
POSITION = PositionOptions()
IMAGE = ImageOptions()
SOURCE_DETECTION = SourceOptions()

Name = Annotated[str, titled("Name")]
TargetIds = Annotated[str, titled("Target IDs")]
RightAscension = Annotated[str, titled("RA (J2000)", coerce_numbers_to_str=True)]
Declination = Annotated[str, titled("Dec (J2000)", coerce_numbers_to_str=True)]
Products = Annotated[list[Product], titled("Products", unique=True, min_length=1)]
ReferenceTime = Annotated[str, titled("T0 (MET, in seconds)", coerce_numbers_to_str=True)]
Centroid = Annotated[Literal["simple", "iterative", "no"], titled("Centroid")]
PositionError = Annotated[_PositionError, titled("Position error (arcmin)")]
LightCurveGroup = Annotated[LightCurveOptions, titled("Light curve")]
SpectrumGroup = Annotated[SpectrumOptions, titled("Spectrum")]
PositionGroup = Annotated[PositionOptions, titled("Positions")]
ImageGroup = Annotated[ImageOptions, titled("Images")]
SourceGroup = Annotated[SourceOptions, titled("Source detection")]
RequestJSON = Annotated[dict[str, JsonValue], titled("Request as JSON")]


def read_form(
    *,
    name: str = "",
    target_ids: str = "",
    ra: str | float = "",
    dec: str | float = "",
    products: Iterable[Product | str] = (Product.LIGHT_CURVE,),
    t0_met_s: str | float = "",
    centroid: Literal["simple", "iterative", "no"] = "simple",
    position_error_arcmin: float = 1,
    light_curve: LightCurveOptions = LIGHT_CURVE,
    spectrum: SpectrumOptions = SPECTRUM,
    position: PositionOptions = POSITION,
    image: ImageOptions = IMAGE,
    source_detection: SourceOptions = SOURCE_DETECTION,
    request: Mapping[str, JsonValue] | None = None,
) -> ProductRequest:
    """Make a request of what somebody filled in.

    What is not filled in and has no default is left to the service: it finds the targets, the position
    and T0. The JSON is either a whole request, which has a name, or what is to be added to the others.

    Args:
        name: Name of the object.
        target_ids: Target IDs of 8 digits, separated by commas, blanks or lines.
        ra: Right ascension, J2000: degrees, or hours, minutes and seconds.
        dec: Declination, J2000: degrees, or degrees, minutes and seconds.
        products: The products to build.
        t0_met_s: Reference time, mission elapsed time in seconds.
        centroid: How to centroid, if at all.
        position_error_arcmin: How far the centroid can be from the position, in arcmin.
        light_curve: Used only if the product is asked for, like the next four.
        spectrum: How spectra are made.
        position: How the three positions are made.
        image: How images are made.
        source_detection: How sources are searched for.
        request: A whole request in the service's spelling or in this project's, for which all the others
            stay as they are; or parameters without a field here, by the service's names.

    Returns:
        The request.

    Raises:
        InvalidRequestError: Something is wrong or contradictory. The message is one line that names
            fields by their titles; `problems` has the names of the parameters.
    """
    form = {**locals(), "products": tuple(map(Product, products))}
    pasted = dict(form.pop("request") or {})
    if '"UserID"' in json.dumps(pasted):
        _warn("The pasted JSON holds a UserID. It is not used, but Prefect keeps it in clear: leave it out.")
    if "name" in pasted or "jobPars" in pasted:
        return _read_whole(pasted, form)
    problems = [*_not_to_be_added(pasted)]
    values = _values(form, problems)
    try:
        wanted = ProductRequest.model_validate(values)
    except ValidationError as error:
        known = {path for path, _ in problems}
        found = [(_form_path(path) or "request", text) for path, text in problems_of(error)]
        problems += [problem for problem in found if problem[0] not in known]
    if problems:
        _refuse(problems)
    _warn_of_unused(form)
    try:
        return decode({**encode(wanted), **pasted}, from_service=False) if pasted else wanted
    except InvalidRequestError as error:
        _refuse([_of_json(path, text) for path, text in error.problems], error)


_ALIASES: Mapping[str, Any] = {
    "name": Name,
    "target_ids": TargetIds,
    "ra": RightAscension,
    "dec": Declination,
    "products": Products,
    "t0_met_s": ReferenceTime,
    "centroid": Centroid,
    "position_error_arcmin": PositionError,
    "light_curve": LightCurveGroup,
    "spectrum": SpectrumGroup,
    "position": PositionGroup,
    "image": ImageGroup,
    "source_detection": SourceGroup,
    "request": RequestJSON,
}
_DEFAULTS = {name: field.default for name, field in inspect.signature(read_form).parameters.items()}
_POSITIONS = (Product.STANDARD_POS, Product.ENHANCED_POS, Product.ASTROM_POS)
_GROUPS: Mapping[str, tuple[Product, ...]] = {
    "light_curve": (Product.LIGHT_CURVE,),
    "spectrum": (Product.SPECTRUM,),
    "position": _POSITIONS,
    "image": (Product.IMAGE,),
    "source_detection": (Product.SOURCE_DET,),
}
# Where the form has another name for a field of the request.
_FORM_PATHS = {
    "targets": "target_ids",
    "find_targets": "target_ids",
    "ra_deg": "ra",
    "dec_deg": "dec",
    "find_position": "ra",
    "find_t0": "t0_met_s",
    "centroid_method": "centroid",
    "spectrum.do_not_fit": "spectrum.fit",
    "spectrum.has_redshift": "spectrum.redshift",
    "astrometric_position.use_all_observations": "position.use_all_observations",
    **{f"{group}.which_data": f"{group}.observations" for group in _GROUPS},
    **dict.fromkeys(PRODUCT_FIELDS.values(), "products"),
}
_SEXAGESIMAL = re.compile(
    r"""(?P<sign>[+-]?)\s*(?P<whole>[0-9]{1,3})\s*(?P<unit>[hd°:\s])\s*
        (?P<minutes>[0-5]?[0-9])\s*[m'′:\s]\s*
        (?P<seconds>[0-5]?[0-9](?:\.[0-9]*)?)\s*(?:s|"|″|'')?""",
    re.VERBOSE,
)
_DEGREES_AN_HOUR = 15
_FORMS = {
    "ra": "a right ascension, such as 335.6985 (degrees) or 22 22 47.6 (hours, minutes, seconds)",
    "dec": "a declination, such as -7.5179 (degrees) or -07 31 04.4 (degrees, minutes, seconds)",
    "t0_met_s": "a number of seconds, such as 608713541",
}


def _titles() -> Iterator[tuple[str, str]]:
    for name, alias in _ALIASES.items():
        group, title = alias.__origin__, alias.__metadata__[-1].json_schema_extra["title"]
        yield name, title
        for inner, field in group.model_fields.items() if name in _GROUPS else ():
            yield f"{name}.{inner}", f"{title} › {field.title}"


_TITLES = dict(_titles())
# What texts that were written for a request call the fields; names of one word say the same everywhere.
_WORDS = {path.rpartition(".")[2]: title.rpartition(" › ")[2] for path, title in _TITLES.items()} | {
    path.rpartition(".")[2]: _TITLES[known].rpartition(" › ")[2] for path, known in _FORM_PATHS.items()
}
_NAME = re.compile(r"\b[a-z0-9]+(?:_[a-z0-9]+)+\b")
_WIRE_NAMES = {path: wire for wire, path in reversed(list(FIELD_OF_WIRE.items()))}


def _values(form: Mapping[str, Any], problems: list[tuple[str, str]]) -> dict[str, object]:
    """Say in a request's own words what was filled in; what cannot be said so is a problem."""
    only_search = set(form["products"]) == {Product.SOURCE_DET}
    values: dict[str, object] = {"name": " ".join(form["name"].split())}
    if not values["name"]:
        problems.append(("name", "is empty; fill it in, or paste a whole request as JSON"))
    targets = _split(form["target_ids"], r"[\s,;]+")
    values |= {"targets": targets} if targets else {"find_targets": True}
    where = {path: str(form[path]).strip() for path in ("ra", "dec")}
    if not any(where.values()):
        values |= {} if only_search and targets else {"find_position": True}
    for path, other in (("ra", "dec"), ("dec", "ra")):
        if where[path]:
            values[f"{path}_deg"] = _number(path, where[path], problems)
        elif where[other]:
            problems.append((path, f"is empty, though {_TITLES[other]} is filled in"))
    if t0 := str(form["t0_met_s"]).strip():
        values["t0_met_s"] = _number("t0_met_s", t0, problems)
    else:
        values["find_t0"] = True
    if not only_search:
        values["centroid"] = form["centroid"] != "no"
    if values.get("centroid"):
        values["centroid_method"] = form["centroid"]
        values["position_error_arcmin"] = form["position_error_arcmin"]
    if not form["products"]:
        problems.append(("products", "is empty; choose at least one"))
    values |= {PRODUCT_FIELDS[product]: True for product in form["products"]}
    for group in _wanted(form):
        options = form[group]
        values[group] = _OWN_VALUES[group](options, problems) | _selection(group, options, problems)
    if Product.ASTROM_POS in form["products"] and form["position"].use_all_observations:
        values["astrometric_position"] = {"use_all_observations": True}
    return values


def _split(text: str, separator: str) -> list[str]:
    return [item for piece in re.split(separator, text) if (item := piece.strip())]


def _number(path: str, text: str, problems: list[tuple[str, str]]) -> float | None:
    """Read a number, or an angle in sexagesimal notation as degrees."""
    plain = text.replace("−", "-")
    try:
        # What the service is given as 608713541 stays a whole number.
        return int(plain) if plain.isdecimal() else float(plain)
    except ValueError:
        pass
    angle = _SEXAGESIMAL.fullmatch(plain)
    if angle and path in ("ra", "dec") and not (path == "dec" and angle["unit"] == "h"):
        degrees = int(angle["whole"]) + int(angle["minutes"]) / 60 + float(angle["seconds"]) / 3600
        if path == "ra" and angle["unit"] not in "d°":
            degrees *= _DEGREES_AN_HOUR
        return round(-degrees if angle["sign"] == "-" else degrees, 7)
    problems.append((path, f"{text!r} is not {_FORMS[path]}"))
    return None


def _wanted(form: Mapping[str, Any]) -> list[str]:
    return [group for group, products in _GROUPS.items() if set(products).intersection(form["products"])]


def _selection(group: str, options: Any, problems: list[tuple[str, str]]) -> dict[str, object]:
    """Say which data are used."""
    observations, hours = _split(options.observations, "[,\n]"), getattr(options, "include_hours", None)
    if observations and hours:
        other = _TITLES[f"{group}.include_hours"]
        problems.append((f"{group}.observations", f"is filled in, and so is {other}; use one of the two"))
    if observations:
        return {"which_data": "user", "observations": observations}
    return {"which_data": "hours", "include_hours": hours} if hours else {"which_data": "all"}


def _light_curve(options: LightCurveOptions, problems: list[tuple[str, str]]) -> dict[str, object]:
    durations = ("pc_bin_s", "wt_bin_s")
    used = {"binning", "min_energy_kev", "max_energy_kev", "time_format"}
    if options.binning == "counts":
        used |= {"pc_counts", "wt_counts", "dynamic", *durations}
    if options.binning == "time":
        used |= {*durations}
        problems += [
            (f"light_curve.{name}", "is empty; binning by time needs it")
            for name in durations
            if getattr(options, name) is None
        ]
    return options.model_dump(include=used)


def _spectrum(options: SpectrumOptions, _: list[tuple[str, str]]) -> dict[str, object]:
    used = {"time_slicing", "time_slices", "models", "redshift"}
    return options.model_dump(include=used) | {"do_not_fit": None if options.fit else True}


def _position(options: PositionOptions, _: list[tuple[str, str]]) -> dict[str, object]:
    return options.model_dump(include={"radius_arcsec", "detect_or_centroid"})


def _image(options: ImageOptions, _: list[tuple[str, str]]) -> dict[str, object]:
    return {"energies_kev": _split(options.energies_kev, "[,\n]")}


def _source_detection(options: SourceOptions, _: list[tuple[str, str]]) -> dict[str, object]:
    return {"bands": options.bands, "fit_stray_light": True if options.fit_stray_light else None}


_OWN_VALUES: Mapping[str, Callable[[Any, list[tuple[str, str]]], dict[str, object]]] = {
    "light_curve": _light_curve,
    "spectrum": _spectrum,
    "position": _position,
    "image": _image,
    "source_detection": _source_detection,
}


def _read_whole(pasted: dict[str, JsonValue], form: Mapping[str, Any]) -> ProductRequest:
    """Read a request that was pasted whole, beside which nothing else may be filled in."""
    changed = [
        _TITLES[path]
        for path, value in form.items()
        if value != _DEFAULTS[path] and not (isinstance(value, str) and not value.strip())
    ]
    if changed:
        _refuse(
            [
                (
                    "request",
                    "is a whole request, since it has a name; either clear it, or leave as it was: "
                    f"{', '.join(changed)}",
                )
            ]
        )
    try:
        return read_request(pasted)
    except InvalidRequestError as error:
        _refuse([_of_json(path, text) for path, text in error.problems], error)


def _not_to_be_added(pasted: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Refuse what has a field of the form, so that no value is given twice, and this project's own spelling."""
    for name in pasted:
        if name in FIELD_OF_WIRE:
            if path := _form_path(FIELD_OF_WIRE[name]):
                yield "request", f"{name} has a field of its own: {_TITLES[path]}"
        elif name in ProductRequest.model_fields:
            yield (
                "request",
                f"{name} is not the service's name; add parameters by the service's names, or paste a "
                "whole request, which has a name",
            )


def _form_path(path: str) -> str | None:
    """Find the field of the form for one of a request; none if there is none."""
    leaf = re.sub(r"\.[0-9]+(\.\w+)?$", "", path)
    found = _FORM_PATHS.get(leaf, leaf)
    return found if found in _TITLES else None


def _of_json(path: str, text: str) -> tuple[str, str]:
    wire = _WIRE_NAMES.get(path, path)
    return "request", f"{path}: {text}" if wire == path else f"{path} ({wire}): {text}"


def _warn_of_unused(form: Mapping[str, Any]) -> None:
    for group in [group for group in _GROUPS if group not in _wanted(form)]:
        if form[group] != _DEFAULTS[group]:
            names = " or ".join(product.value for product in _GROUPS[group])
            _warn(f"{_TITLES[group]} is changed, but not used: the products have no {names}.")


def _warn(text: str) -> None:
    warnings.warn(text, RequestWarning, stacklevel=4)


def _refuse(problems: Iterable[tuple[str, str]], cause: Exception | None = None) -> NoReturn:
    # A text about the JSON keeps to the names in there.
    told = [(path, text if path == "request" else _NAME.sub(_title_of, text)) for path, text in problems]
    # One line: the UI shows the message of a state without its line breaks.
    of_field: dict[str, list[str]] = {}
    for path, text in told:
        of_field.setdefault(_TITLES[path], []).append(text)
    message = "; ".join(f"{title}: {'; '.join(texts)}" for title, texts in of_field.items())
    raise InvalidRequestError(message, problems=told) from cause


def _title_of(name: re.Match[str]) -> str:
    return f"“{_WORDS[name[0]]}”" if name[0] in _WORDS else name[0]
