"""Whether the service would take a request, judged from its own documentation only.

Nothing here is shared with the package's own requests: two readings of the same documents find more
mistakes than one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping

MISSING_LABEL = "The following parameters are needed, but were not supplied:"
INVALID_LABEL = "The following parameters have invalid values:"

FLAG_OF = {
    "lc": "lc",
    "spec": "spec",
    "psf": "dopsf",
    "enh": "doenh",
    "xastrom": "doxastrom",
    "image": "image",
    "sourceDet": "sourceDet",
}

_SWITCHES = (
    *FLAG_OF.values(),
    *("cent", "getCoords", "getTargs", "getT0", "SinceT0", "notify", "dynamic", "specz"),
    *("galactic", "doNotFit", "allxastrom", "fitStrayLight"),
)
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "centMeth": ("simple", "iterative"),
    "detMeth": ("simple", "iterative"),
    "detornot": ("detect", "centroid"),
    "posobs": ("all", "user", "hours"),
    "binMeth": ("counts", "time", "snapshot", "obsid"),
    "allowUL": ("no", "pc", "wt", "both"),
    "allowB": ("no", "pc", "wt", "both"),
    "allowBayes": ("no", "pc", "wt", "both"),
    "lctimetype": ("m", "s", "mjd", "sec"),
    "lcobs": ("all", "user"),
    "grades": ("0", "all", "4"),
    "specobs": ("all", "user", "hours"),
    "specgrades": ("0", "all", "4"),
    "timeslice": ("single", "user", "snapshot", "obsid"),
    "imobs": ("all", "user"),
    "detobs": ("all", "user"),
    "detbands": ("total", "all"),
}
_ANY = (-math.inf, math.inf)
_ABOVE_ZERO = (0.0, math.inf)
_NUMBERS: Mapping[str, tuple[float, float]] = {
    "RA": (0.0, 360.0),
    "Dec": (-90.0, 90.0),
    "Tstart": _ANY,
    **dict.fromkeys(
        ("maxCentTries", "wtpuprate", "pcpuprate", "posRadius", "posobstime", "specobstime", "zval", "dchi"),
        _ABOVE_ZERO,
    ),
    **dict.fromkeys(("soft1", "soft2", "hard1", "hard2", "sigmin", "minen", "maxen", "femin"), _ABOVE_ZERO),
    **dict.fromkeys(("bayesCounts", "bayesSNR", "pccounts", "wtcounts", "pcbin", "wtbin"), _ABOVE_ZERO),
    **dict.fromkeys(("ratefact", "binfact", "mincmin", "minsnr", "wtmaxgap", "pcmaxgap"), _ABOVE_ZERO),
    **dict.fromkeys(("hrbin", "wthrbin", "pchrbin", "srcrad"), _ABOVE_ZERO),
}
_POSERR_ARCMIN = (1.0, 6.0)
_BANDS = re.compile(r"\s*\d+(\.\d+)?\s*-\s*\d+(\.\d+)?\s*(,\s*\d+(\.\d+)?\s*-\s*\d+(\.\d+)?\s*)*")
_TARGETS = re.compile(r"\{?\s*\d{1,8}(\s*,\s*\d{1,8})*\s*\}?")


class Refused(Exception):
    """A request that the service answers with `OK: 0`.

    Args:
        text: The `ERROR`.
        lists: The `listErr`: label to texts.
    """

    def __init__(self, text: str, lists: Mapping[str, list[str]] | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.lists = dict(lists or {})


def is_on(value: object) -> bool:
    """Tell whether a 0/1 parameter is set, as number or as text."""
    return not isinstance(value, bool) and str(value) == "1"


def number(value: object) -> float | None:
    """Read a number, which may come as text; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        read = float(value)
    except (ValueError, OverflowError):
        return None
    return read if math.isfinite(read) else None


def products_of(parameters: Mapping[str, object]) -> tuple[str, ...]:
    """List the short names of the products that are asked for."""
    asked = {product for product, flag in FLAG_OF.items() if is_on(parameters.get(flag))}
    if "xastrom" in asked:
        asked.add("psf")
    return tuple(product for product in FLAG_OF if product in asked)


def check_request(parameters: Mapping[str, object]) -> None:
    """Refuse what the service would refuse, all complaints at once.

    Raises:
        Refused: With the two lists of parameters that the service answers.
    """
    missing = list(dict.fromkeys(_missing(parameters)))
    invalid = list(_invalid(parameters))
    lists = {label: texts for label, texts in ((MISSING_LABEL, missing), (INVALID_LABEL, invalid)) if texts}
    if lists:
        raise Refused("There were problems with the parameters you supplied.", lists)


def _missing(parameters: Mapping[str, object]) -> Iterator[str]:
    def absent(*names: str) -> Iterator[str]:
        return (name for name in names if parameters.get(name) in (None, ""))

    asked = products_of(parameters)
    alone = asked == ("sourceDet",)
    yield from absent("name")
    if not is_on(parameters.get("getTargs")):
        yield from absent("targ")
    if not alone:
        if not is_on(parameters.get("getCoords")):
            yield from absent("RA", "Dec")
        yield from absent("cent")
    if is_on(parameters.get("cent")):
        yield from absent("poserr")
    if not asked:
        yield f"at least one product ({', '.join(FLAG_OF.values())})"
    for product in asked:
        yield from _NEEDS[product](parameters, absent)


_Absent = Callable[..., Iterator[str]]


def _light_curve(parameters: Mapping[str, object], absent: _Absent) -> Iterator[str]:
    yield from absent("binMeth")
    if _chosen(parameters, "binMeth") == "counts":
        yield from absent("pccounts", "wtcounts", "dynamic")
    if _chosen(parameters, "lcobs") == "user":
        yield from absent("uselcobs")


def _spectrum(parameters: Mapping[str, object], absent: _Absent) -> Iterator[str]:
    yield from absent("specz")
    if is_on(parameters.get("specz")):
        yield from absent("zval")
    if _chosen(parameters, "specobs") == "user":
        yield from absent("usespecobs")
    if _chosen(parameters, "specobs") == "hours":
        yield from absent("specobstime")
    if _chosen(parameters, "timeslice") == "user":
        yield from absent("rname1", "gti1")


def _position(parameters: Mapping[str, object], absent: _Absent) -> Iterator[str]:
    if _chosen(parameters, "posobs") == "user":
        yield from absent("useposobs")
    if _chosen(parameters, "posobs") == "hours":
        yield from absent("posobstime")


def _image(parameters: Mapping[str, object], absent: _Absent) -> Iterator[str]:
    if _chosen(parameters, "imobs") == "user":
        yield from absent("useimobs")


def _source_detection(parameters: Mapping[str, object], absent: _Absent) -> Iterator[str]:
    yield from absent("detobs")
    if _chosen(parameters, "detobs") == "user":
        yield from absent("usedetobs")


_NEEDS = {
    "lc": _light_curve,
    "spec": _spectrum,
    "psf": _position,
    "enh": _position,
    "xastrom": _position,
    "image": _image,
    "sourceDet": _source_detection,
}


def _chosen(parameters: Mapping[str, object], name: str) -> str:
    return str(parameters.get(name, "")).lower()


def _invalid(parameters: Mapping[str, object]) -> Iterator[str]:
    for name, value in parameters.items():
        if value is None or value == "":
            continue
        complaint = _complaint(name, value, parameters)
        if complaint:
            yield f"{name} is {_shown(value)}, but must be {complaint}"


def _complaint(name: str, value: object, parameters: Mapping[str, object]) -> str | None:
    complaint = None
    if _holds_boolean(value):
        complaint = "0 or 1"
    elif name in _SWITCHES:
        complaint = None if str(value) in ("0", "1") else "0 or 1"
    elif name in _CHOICES:
        # Older requests hold numbers for these, and the service takes them back.
        good = str(value).lower() in _CHOICES[name] or str(value).isdigit()
        complaint = None if good else f"one of {', '.join(_CHOICES[name])}"
    elif name == "poserr":
        # The documented refusal judges the radius although `cent` is missing.
        complaint = _outside(value, _ANY if str(parameters.get("cent")) == "0" else _POSERR_ARCMIN)
    elif name in _NUMBERS:
        complaint = _outside(value, _NUMBERS[name])
    elif name == "imen":
        complaint = None if _BANDS.fullmatch(str(value)) else "energy bands such as 0.3-10,1.5-10"
    elif name == "targ":
        complaint = None if _TARGETS.fullmatch(str(value)) else "a list of target IDs"
    return complaint


def _outside(value: object, limits: tuple[float, float]) -> str | None:
    read = number(value)
    low, high = limits
    if read is None:
        return "a number"
    if low <= read <= high:
        return None
    return f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"


def _holds_boolean(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_boolean, value.values()))
    if isinstance(value, list):
        return any(map(_holds_boolean, value))
    return isinstance(value, bool)


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
