"""Pictures of results: light curves, positions on one finder, and the pictures that the service has made.

Each function returns a matplotlib `Figure` of its own, without pyplot and its state: any number of threads
may draw at once, and nothing has to be closed. A notebook shows
results through `png_of` and `html_of`.

What a figure shows is what the result says: nothing is fitted, smoothed, converted or left out, but bins
without a value, which the caption counts.
"""

from __future__ import annotations

import html
import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefect_xrt import archive, protocol
from prefect_xrt.archive import ARCHIVE_FORMATS, ArchiveReader
from prefect_xrt.errors import ConfigurationError, OutputError
from prefect_xrt.request import Product
from prefect_xrt.results import (
    MET_SINCE_T0,
    MJD,
    SOFTWARE,
    Curve,
    LightCurve,
    Position,
    Provenance,
    SourceList,
    SpectralFits,
    require,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = [
    "FORMATS",
    "Scale",
    "html_of",
    "plot_light_curve",
    "plot_pictures",
    "plot_positions",
    "plot_spectrum_images",
    "png_of",
    "read_pictures",
    "save",
    "to_png",
]

FORMATS = (".png", ".pdf", ".svg")
"""The endings of the files that `save` writes."""

Scale = Literal["auto", "linear", "log"]

_ABOUT = {"Title": "Swift XRT"}
_WIDTH_INCHES = 8.0
_DPI = 120
_CAPTION_LETTERS = 145
_TITLE_LETTERS = 80
# Colours that people who see few of them tell apart (Okabe and Ito).
_COLOURS = {"WT": "#0072B2", "PC": "#D55E00"}
_OTHER_COLOUR = "#555555"
_MARKERS = {"total": "o", "hard": "^", "soft": "v", "hardness ratio": "o"}
_MANY_BINS = 300
_SERVES_LOG = 10.0
_FULL_RANGE = 10.0


def plot_light_curve(
    light_curve: LightCurve,
    *,
    names: Sequence[str] | None = None,
    time_scale: Scale = "auto",
    rate_scale: Scale = "auto",
) -> Figure:
    """Draw a light curve: count rates and upper limits, and below them the hardness ratio if there is one.

    Horizontal bars are the bins, vertical ones the errors; upper limits are arrows that point down. An axis
    is logarithmic by itself only where all that it shows is positive and spans more than a factor of ten,
    and that of times only for seconds since T0.

    Args:
        light_curve: The light curve.
        names: The datasets to show. Else of each mode its rates and upper limits in the total band and its
            hardness ratio; of those with and without systematic errors the former, and of those with and
            without unreliable bins the latter.
        time_scale: Of the axis of times.
        rate_scale: Of the axis of rates.

    Raises:
        ConfigurationError: There is no such dataset, a logarithmic axis was asked for that cannot show all,
            or the extra is not installed.
    """
    curves = [light_curve[name] for name in names] if names is not None else _main_curves(light_curve)
    series = [_Series(curve) for curve in curves]
    ratios = [entry for entry in series if entry.curve.band == "hardness ratio"]
    rates = [entry for entry in series if entry.curve.band != "hardness ratio"]
    figure = _figure(5.2 if not (ratios and rates) else 7.0)
    upper, *lower = _panels(figure, 2 if ratios and rates else 1)
    for axes, shown in zip((upper, *lower), (rates, ratios) if rates else (ratios,), strict=False):
        _draw_series(axes, shown)
        _scale_values(axes, shown, rate_scale if axes is upper and rates else "linear")
        axes.set_ylabel(_value_label(light_curve, shown), fontsize="medium" if axes is upper else "small")
    _scale_times((lower or [upper])[-1], series, light_curve, time_scale)
    if not any(len(entry.times) for entry in series):
        _say(upper, "No bins")
    _legend(upper, rates or ratios)
    _entitle(figure, _source_name(light_curve.provenance), "Swift XRT light curve")
    _caption(figure, [*_facts(light_curve), *_remarks(series), _origin(light_curve.provenance)])
    return figure


class _Series:
    """The bins of a dataset that can be drawn.

    Attributes:
        curve: The dataset.
        times: Of the bins, with `widths`, the distances to their edges before and after.
        values: Rates, upper limits or ratios, with `errors` downwards and upwards.
        gaps: How many bins have no value.
    """

    def __init__(self, curve: Curve) -> None:
        make = require("numpy")
        self.curve = curve
        value = "UpperLimit" if curve.upper_limits else "HR" if "HR" in curve.columns else "Rate"
        given = curve.columns.get(value, make.full(len(curve), math.nan))
        drawn = make.isfinite(given) & make.isfinite(curve["Time"])
        self.gaps = int((~drawn).sum())
        self.times: NDArray[np.float64] = curve["Time"][drawn]
        self.values: NDArray[np.float64] = given[drawn]
        self.widths = make.array([_size(curve, name, drawn) for name in ("TimeNeg", "TimePos")])
        both = [f"{value}Err"] * 2 if f"{value}Err" in curve.columns else [f"{value}Neg", f"{value}Pos"]
        self.errors = make.array([_size(curve, name, drawn) for name in both])

    @property
    def label(self) -> str:
        """What the legend calls it."""
        curve = self.curve
        band = "" if curve.band in ("total", "hardness ratio") else f" {curve.band}"
        limits = " upper limits" if curve.upper_limits else ""
        less = " without systematics" if "_nosys" in curve.name else ""
        more = " with unreliable bins" if curve.unreliable else ""
        return f"{curve.mode}{band}{limits}{less}{more}" if curve.mode else curve.name

    @property
    def colour(self) -> str:
        """Of its mode."""
        return _COLOURS.get(self.curve.mode or "", _OTHER_COLOUR)


def _size(curve: Curve, name: str, drawn: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sizes of errors, 0 where there are none."""
    np = require("numpy")
    given = curve.columns.get(name, np.zeros(len(curve)))[drawn]
    return np.where(np.isfinite(given), np.abs(given), 0.0)  # type: ignore[no-any-return]


def _main_curves(light_curve: LightCurve) -> list[Curve]:
    """Choose one dataset of each mode and kind."""
    chosen: dict[tuple[object, ...], Curve] = {}
    for curve in light_curve.curves.values():
        if curve.band in ("total", "hardness ratio"):
            key = (curve.mode or curve.name, curve.band, curve.upper_limits)
            if key not in chosen or _rank(curve) < _rank(chosen[key]):
                chosen[key] = curve
    return list(chosen.values())


def _rank(curve: Curve) -> tuple[bool, bool]:
    return "_nosys" in curve.name, curve.unreliable


def _draw_series(axes: Axes, series: Iterable[_Series]) -> None:
    for entry in series:
        many = len(entry.times) > _MANY_BINS
        look: dict[str, Any] = {"color": entry.colour, "label": _plain(entry.label), "linestyle": "none"}
        look |= {"ecolor": (entry.colour, 0.35 if many else 1.0), "elinewidth": 0.6 if many else 1.0}
        look |= {"rasterized": len(entry.times) > 10 * _MANY_BINS}
        if entry.curve.upper_limits:
            look |= {"marker": _arrow(), "markersize": 14, "markerfacecolor": "none"}
        else:
            hollow = "_nosys" in entry.curve.name or entry.curve.unreliable
            look |= {
                "marker": _MARKERS[entry.curve.band],
                "markersize": (2 if many else 4) * (1.7 if hollow else 1),
            }
            look |= {"yerr": entry.errors, "markerfacecolor": "none" if hollow else entry.colour}
        axes.errorbar(entry.times, entry.values, xerr=entry.widths, **look)


def _arrow() -> Any:
    """Return a marker that points down from its place."""
    path = require("matplotlib.path").Path
    points = [(0, 0), (0, -1), (-0.35, -0.6), (0, -1), (0.35, -0.6)]
    return path(points, [path.MOVETO, path.LINETO, path.MOVETO, path.LINETO, path.LINETO])


def _scale_values(axes: Axes, series: Sequence[_Series], scale: Scale) -> None:
    values = _together([entry.values for entry in series])
    if _is_log(values, scale, "rates"):
        axes.set_yscale("log")
        low, high = _span(series)
        axes.set_ylim(low, high)
    elif len(values) and values.min() < 0:
        axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)


def _span(series: Iterable[_Series]) -> tuple[float, float]:
    """Return what a logarithmic axis of values is to show; errors may reach to zero and below."""
    lows, highs = [], []
    for entry in series:
        if len(entry.values):
            bottoms = entry.values - entry.errors[0]
            lowest = float(entry.values.min())
            lows.append(lowest / 3 if entry.curve.upper_limits else lowest / 1.5)
            lows += [max(float(bottoms[bottoms > 0].min()), lowest / 10)] if (bottoms > 0).any() else []
            highs.append(float((entry.values + entry.errors[1]).max()))
    return min(lows) / 1.3, max(highs) * 1.5


def _is_log(values: NDArray[np.float64], scale: Scale, what: str) -> bool:
    positive = bool(len(values)) and bool((values > 0).all())
    if scale == "log" and len(values) and not positive:
        count = int((values <= 0).sum())
        raise ConfigurationError(
            f"A logarithmic axis cannot show the {count} of {len(values)} {what} that are not positive."
        )
    return positive and (scale == "log" or (scale == "auto" and values.max() > _SERVES_LOG * values.min()))


def _scale_times(axes: Axes, series: Sequence[_Series], light_curve: LightCurve, scale: Scale) -> None:
    ticker = require("matplotlib.ticker")
    times = _together([entry.times for entry in series])
    system = light_curve.time_system
    if scale == "auto" and system != MET_SINCE_T0:
        scale = "linear"
    if _is_log(times, scale, "times"):
        axes.set_xscale("log")
        early, late = _edges(series)
        axes.set_xlim(max(early, float(times.min()) / _FULL_RANGE) / 1.3, late * 1.3)
    else:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6))
        # A number that is to be added to all others is easily overlooked.
        axes.ticklabel_format(axis="x", useOffset=False, style="plain" if system == MJD else None)
    labels = {MET_SINCE_T0: "Time since T0 (s)", MJD: "Time (MJD, days)"}
    axes.set_xlabel(_plain(labels.get(system, f"Time ({system or 'system not told'})")))


def _edges(series: Iterable[_Series]) -> tuple[float, float]:
    begins = _together([entry.times - entry.widths[0] for entry in series])
    ends = _together([entry.times + entry.widths[1] for entry in series])
    return float(begins.min()), float(ends.max())


def _together(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    np = require("numpy")
    return np.concatenate(parts) if parts else np.zeros(0)  # type: ignore[no-any-return]


def _value_label(light_curve: LightCurve, series: Sequence[_Series]) -> str:
    request = light_curve.provenance.request
    if series and series[0].curve.band == "hardness ratio":
        hard, soft = (_kev(request, f"{band}1", f"{band}2") for band in ("hard", "soft"))
        return "Hardness ratio" + (f"\n{hard.removesuffix(' keV')} / {soft}" if hard and soft else "")
    curve = series[0].curve if series else None
    unit = curve.units.get("UpperLimit" if curve.upper_limits else "Rate", "") if curve else "ct / s"
    bands = list(dict.fromkeys(entry.curve.band for entry in series)) or ["total"]
    names = {"total": ("minen", "maxen"), "hard": ("hard1", "hard2"), "soft": ("soft1", "soft2")}
    energies = _kev(request, *names[bands[0]]) if len(bands) == 1 else ""
    unit = {"ct / s": "ct s⁻¹"}.get(unit, unit)
    return _plain("Count rate" + (f" {energies}" if energies else "") + (f" ({unit})" if unit else ""))


def _kev(request: Mapping[str, Any], low: str, high: str) -> str:
    ends = [protocol.as_number(request.get(name)) for name in (low, high)]
    return "" if None in ends else f"{ends[0]:g}–{ends[1]:g} keV"


def _facts(light_curve: LightCurve) -> Iterator[str]:
    if light_curve.time_system == MET_SINCE_T0:
        t0 = light_curve.t0_met_s
        yield "T0 is not told." if t0 is None else f"T0 = MET {t0:.15g} s."
    elif light_curve.time_system == MJD:
        yield "MJD are UTC, as the service's client documents."
    if light_curve.binning:
        yield f"Binned by {light_curve.binning.lower()}."


def _remarks(series: Sequence[_Series]) -> Iterator[str]:
    curves = [entry.curve for entry in series]
    if any(curve.mode == "WT" and curve.systematics and not curve.upper_limits for curve in curves):
        yield "Errors of WT with the systematic one."
    if any(curve.upper_limits for curve in curves):
        yield "Arrows are upper limits."
    if any(curve.unreliable for curve in curves):
        yield "Bins that may be unreliable are in."
    gaps = sum(entry.gaps for entry in series)
    if gaps:
        yield f"{gaps} bins have no value and are not shown."


_KINDS = {
    Product.STANDARD_POS: ("standard", "#0072B2", "-"),
    Product.ENHANCED_POS: ("enhanced", "#009E73", "--"),
    Product.ASTROM_POS: ("astrometric", "#D55E00", "-."),
}
_MAX_SEPARATION_ARCSEC = 3600.0


def plot_positions(positions: Iterable[Position]) -> Figure:
    """Draw positions on one finder: circles of 90 % confidence, north up and east left.

    The centre is the position with the smallest error. Positions that were not found are named in the caption.

    Args:
        positions: Of one source; of one job or of several.

    Raises:
        ConfigurationError: They are more than a degree apart, or the extra is not installed.
    """
    given = list(positions)
    found = sorted((entry for entry in given if entry.found), key=lambda entry: entry.err90_arcsec or 0.0)
    figure = _figure(7.4)
    (axes,) = _panels(figure, 1)
    if found:
        several = len({entry.provenance.job_id for entry in given}) > 1
        _draw_positions(axes, found, several=several)
        axes.set_title(_coordinates(found[0]), fontsize="medium")
    else:
        _say(axes, "No position")
    axes.set_aspect("equal")
    axes.set_xlabel("Offset in right ascension (arcsec)")
    axes.set_ylabel("Offset in declination (arcsec)")
    _entitle(figure, _source_name(*(entry.provenance for entry in given)), "Swift XRT positions")
    _caption(figure, _position_remarks(given))
    return figure


def _draw_positions(axes: Axes, found: Sequence[Position], *, several: bool) -> None:
    patches = require("matplotlib.patches")
    centre = found[0].to_skycoord()
    reach = 0.0
    for position in found:
        east, north = (float(part.arcsec) for part in centre.spherical_offsets_to(position.to_skycoord()))
        error = position.err90_arcsec or 0.0
        reach = max(reach, math.hypot(east, north) + error)
        if reach > _MAX_SEPARATION_ARCSEC:
            raise ConfigurationError(
                "The positions are more than a degree apart; show those of each source in a figure of its own."
            )
        _, colour, line = _KINDS[position.product]
        label = _plain(_position_label(position, several=several))
        axes.add_patch(
            patches.Circle(
                (east, north), error, fill=False, color=colour, linestyle=line, linewidth=1.6, label=label
            )
        )
        axes.plot(east, north, marker="+", color=colour, markersize=9, linestyle="none")
    half = max(reach, 1.0) * 1.25
    # East is left: right ascension grows to the left.
    axes.set(xlim=(half, -half), ylim=(-half, half))
    axes.grid(visible=True, color="0.9")
    axes.set_axisbelow(True)
    _compass(axes)
    axes.legend(loc="upper left", fontsize="small", framealpha=0.9)


def _compass(axes: Axes) -> None:
    arrow = {"arrowstyle": "->", "color": "0.25"}
    for name, tip, place in (("N", (0.93, 0.17), (0.93, 0.19)), ("E", (0.82, 0.06), (0.80, 0.06))):
        axes.annotate("", tip, (0.93, 0.06), xycoords="axes fraction", arrowprops=arrow)
        axes.text(*place, name, transform=axes.transAxes, ha="center", va="center", color="0.25")


def _position_label(position: Position, *, several: bool) -> str:
    job = f", job {position.provenance.job_id}" if several else ""
    catalogue = f", from {position.catalogue}" if position.catalogue else ""
    return f"{_KINDS[position.product][0]}{job}: {position.err90_arcsec:.2g}″{catalogue}"


def _coordinates(position: Position) -> str:
    written = position.to_skycoord().to_string("hmsdms", precision=2)
    ra, dec = f"{position.ra_deg:.5f}", f"{position.dec_deg:+.5f}".replace("-", "−")
    of = _KINDS[position.product][0]
    return f"Centre ({of}): RA {ra}°, Dec {dec}° (J2000)\n{written.replace('-', '−')}"


def _position_remarks(positions: Sequence[Position]) -> Iterator[str]:
    if any(position.found for position in positions):
        yield "Circles are of 90 % confidence."
    for position in positions:
        if not position.found:
            yield f"No {_KINDS[position.product][0]} position: {(position.reason or 'no reason given').rstrip('.')}."
    for where in {position.provenance.job_id: position.provenance for position in positions}.values():
        yield _origin(where)


_PICTURE_SUFFIXES = (".gif", ".png", ".jpg", ".jpeg")
_MAX_PICTURE_BYTES = 20 * 2**20
_MAX_PIXELS = 30_000_000
_TWO_BY_TWO = 4


def read_pictures(directory: Path, product: Product, *, limit: int = 24) -> dict[str, bytes]:
    """Read the pictures that the service has put beside a product's files.

    They are looked for in the folder that the bundle was unpacked to, else in the bundle, else in that of all
    products.

    Args:
        directory: The folder that the job was downloaded to.
        product: The product.
        limit: How many to read at most, in order of their names in a folder and of the bundle in a bundle.

    Returns:
        Name of the file → its content; empty where there are none.

    Raises:
        ArchiveError: The bundle is damaged.
        OutputError: The folder cannot be read.
    """
    short = protocol.SHORT_NAMES[product]
    places = [short, *(f"{name}.{form}" for name in (short, "all") for form in ARCHIVE_FORMATS)]
    place = next((directory / name for name in places if (directory / name).exists()), None)
    if place is None:
        return {}
    found = _pictures_in_folder(place) if place.is_dir() else _pictures_in_bundle(place, short)
    pictures: dict[str, bytes] = {}
    try:
        for name, content in found:
            if len(pictures) >= limit:
                break
            pictures.setdefault(name, content)
    except OSError as error:
        raise OutputError(f"{place} cannot be read: {error.strerror or error}.") from error
    return pictures


def _pictures_in_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _PICTURE_SUFFIXES and path.is_file() and not path.is_symlink():
            with path.open("rb") as stream:
                yield path.name, stream.read(_MAX_PICTURE_BYTES)


def _pictures_in_bundle(path: Path, short: str) -> Iterator[tuple[str, bytes]]:
    for place, stream in ArchiveReader(path).entries():
        ours = not path.name.startswith("all.") or short in place.parts[:-1]
        if stream is not None and ours and place.suffix.lower() in _PICTURE_SUFFIXES:
            yield place.name, stream.read(_MAX_PICTURE_BYTES)


def plot_spectrum_images(directory: Path, *, limit: int = 12, provenance: Provenance | None = None) -> Figure:
    """Show the service's own pictures of the spectra and their fits.

    Args:
        directory: The folder that the job was downloaded to.
        limit: How many to show at most.
        provenance: Where they are from, for the caption.

    Raises:
        ConfigurationError: The extra is not installed.
        ArchiveError: The bundle is damaged.
        OutputError: The folder cannot be read.
    """
    pictures = read_pictures(directory, Product.SPECTRUM, limit=limit)
    return plot_pictures(pictures, title="Swift XRT spectra", provenance=provenance)


def plot_pictures(
    pictures: Mapping[str, bytes], *, title: str, provenance: Provenance | None = None
) -> Figure:
    """Show pictures beside one another, each below its name.

    Args:
        pictures: Name → GIF, PNG or JPEG; one that cannot be read is said to be so in its place.
        title: Above them all.
        provenance: Where they are from, for the caption.

    Raises:
        ConfigurationError: The extra is not installed.
    """
    columns = 1 if len(pictures) <= 1 else 2 if len(pictures) <= _TWO_BY_TWO else 3
    rows = max(math.ceil(len(pictures) / columns), 1)
    height_inches = (rows * _WIDTH_INCHES / columns * 0.8 if pictures else 2.0) + 0.8
    # No axis has numbers or a label: the margins are known, and to look for them would take longer than to draw.
    figure = _figure(height_inches, layout=None)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    edges = {"left": 0.01, "right": 0.99, "bottom": 0.45 / height_inches, "top": 1 - 0.65 / height_inches}
    figure.subplots_adjust(**edges, wspace=0.04, hspace=0.12)
    for axes in panels:
        axes.set_axis_off()
    for axes, (name, content) in zip(panels, pictures.items(), strict=False):
        axes.set_title(_shortened(Path(name).stem, 100 // columns), fontsize="small")
        image = _opened(content)
        if image is None:
            _say(axes, "This picture cannot be read")
        else:
            axes.imshow(image)
    if not pictures:
        _say(panels[0], "No pictures")
    _entitle(figure, _source_name(provenance) if provenance else "", title)
    _caption(figure, ["Pictures made by the service.", *([_origin(provenance)] if provenance else [])])
    return figure


def _opened(content: bytes) -> Any:
    pillow = require("PIL.Image")
    try:
        with pillow.open(io.BytesIO(content)) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            return require("numpy").asarray(image.convert("RGB"))
    # What Pillow raises for damaged or giant files, it does not say.
    except Exception:
        return None


def to_png(figure: Figure, *, dpi: int = _DPI) -> bytes:
    """Return a figure as PNG, for an artifact or a page."""
    sink = io.BytesIO()
    canvas, its_dpi = figure.canvas, figure.dpi
    try:
        figure.dpi = dpi
        # `savefig` would draw it all twice, and ask for nothing that the first time tells.
        require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure).print_png(
            sink, metadata={**_ABOUT, "Software": SOFTWARE}
        )
    finally:
        figure.set_canvas(canvas)
        figure.dpi = its_dpi
    return sink.getvalue()


def _written(figure: Figure, form: str, dpi: int) -> bytes:
    if form == "png":
        return to_png(figure, dpi=dpi)
    sink = io.BytesIO()
    figure.savefig(sink, format=form, dpi=dpi, metadata={**_ABOUT, "Creator": SOFTWARE})
    return sink.getvalue()


def save(figure: Figure, path: Path, *, overwrite: bool = False, dpi: int = _DPI) -> Path:
    """Write a figure into a file, whole or not at all.

    Args:
        figure: The figure.
        path: Where to; the ending names the format: `.png`, `.pdf` or `.svg`.
        overwrite: Replace a file that is there.
        dpi: Dots per inch.

    Returns:
        The path.

    Raises:
        ConfigurationError: The ending is none of these.
        OutputError: It cannot be written, or a file is there.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"{path.name} ends with none of {', '.join(FORMATS)}.")
    if not overwrite and path.exists():
        raise OutputError(f"{path} is there already; say that it is to be overwritten, or name another file.")
    archive.write_bytes(path, _written(figure, path.suffix.lower().removeprefix("."), dpi))
    return path


def png_of(result: LightCurve | Position) -> bytes | None:
    """Return the picture by which a notebook shows a result; None where the extra is not installed."""
    try:
        figure = plot_light_curve(result) if isinstance(result, LightCurve) else plot_positions([result])
        return to_png(figure)
    except ConfigurationError:
        return None


def html_of(result: SpectralFits | SourceList) -> str | None:
    """Return the tables by which a notebook shows a result; None where the extra is not installed."""
    try:
        if isinstance(result, SpectralFits):
            tables = {"Spectral fits": result.to_table()}
        else:
            tables = {f"Sources, {band}": result.to_table(band) for band in result.bands}
    except ConfigurationError:
        return None
    shown = (
        f"<p><b>{html.escape(name)}</b></p>{table._repr_html_() if len(table) else '<p>None</p>'}"
        for name, table in tables.items()
    )
    return "".join([*shown, f"<p>{html.escape(str(result.provenance))}</p>"])


def _figure(height_inches: float, layout: str | None = "constrained") -> Figure:
    make = require("matplotlib.figure").Figure
    return make(figsize=(_WIDTH_INCHES, height_inches), layout=layout)  # type: ignore[no-any-return]


def _panels(figure: Figure, count: int) -> Sequence[Axes]:
    panels = figure.subplots(count, 1, sharex=True, squeeze=False, height_ratios=[3, 1.4][:count])
    for axes in panels.ravel():
        axes.tick_params(which="both", direction="in", top=True, right=True)
    return list(panels.ravel())


def _say(axes: Axes, text: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="0.4")


def _legend(axes: Axes, series: Sequence[_Series]) -> None:
    if series:
        axes.legend(
            loc="lower right",
            bbox_to_anchor=(1, 1),
            ncols=min(len(series), 4),
            frameon=False,
            fontsize="small",
            borderaxespad=0.2,
        )


def _entitle(figure: Figure, *parts: str) -> None:
    title = " – ".join(part for part in parts if part)
    figure.suptitle(_shortened(title, _TITLE_LETTERS), x=0.01, ha="left", fontsize="large")


def _caption(figure: Figure, sentences: Iterable[str]) -> None:
    text = textwrap.fill(
        " ".join(sentences), _CAPTION_LETTERS, max_lines=6, placeholder=" …", break_on_hyphens=False
    )
    figure.supxlabel(_plain(text, keep="\n"), x=0.01, ha="left", fontsize="x-small", color="0.35")


def _source_name(*provenances: Provenance) -> str:
    return ", ".join(dict.fromkeys(where.job_name for where in provenances if where.job_name))


def _origin(where: Provenance) -> str:
    job = f"Job {where.job_id}" if where.job_id is not None else "Job not known"
    of = f" ({where.job_name})" if where.job_name else ""
    binning = f", binned again by {where.rebin_id}" if where.rebin_id is not None else ""
    return f"{job}{of}{binning}, retrieved {where.retrieved_at:%Y-%m-%d}, {where.software}."


def _shortened(text: str, letters: int) -> str:
    text = " ".join(text.split())
    return _plain(text if len(text) <= letters else f"{text[: letters - 1]}…")


def _plain(text: str, keep: str = "\n") -> str:
    """Return a text that is drawn as it is: no formulas in it, and no letters that the font does not have."""
    manager = require("matplotlib.font_manager")
    letters = manager.get_font(manager.findfont(manager.FontProperties())).get_charmap()
    shown = (letter if letter in keep or ord(letter) in letters else "□" for letter in text)
    return "".join(shown).replace("$", r"\$")
