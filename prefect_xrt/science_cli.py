"""What `prefect-xrt` does with results: `plot` and `collect`. Neither asks the service, nor needs Prefect."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prefect_xrt import archive, collection, figures
from prefect_xrt.errors import ArchiveError, ConfigurationError, OutputError
from prefect_xrt.request import Product
from prefect_xrt.results import LightCurve, Position, Provenance, Result, read_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["collect", "plot"]

_PARTLY, _FILES = 3, 12
_PICTURED = {
    Product.SPECTRUM: ("spectra", "Swift XRT spectra"),
    Product.IMAGE: ("images", "Swift XRT images"),
}
_MAX_PICTURES = 12


def _note_json(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.find_root().obj = value
    return value


_json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_note_json, help="Print one JSON document instead of text."
)
_overwrite_option = click.option("--overwrite", is_flag=True, help="Replace files that are there already.")


def _out_option(text: str) -> Callable[[Any], Any]:
    return click.option(
        "--out", "out", required=True, type=click.Path(path_type=Path), metavar="DIR", help=text
    )


def _endings(formats: Iterable[str]) -> click.Choice[str]:
    return click.Choice([ending.removeprefix(".") for ending in formats])


@click.command()
@click.argument("place", metavar="DIR_OR_FILE", type=click.Path(path_type=Path))
@_out_option("Where the pictures go.")
@click.option(
    "--format",
    "form",
    type=_endings(figures.FORMATS),
    default="png",
    show_default=True,
    help="Of the pictures.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="NAME",
    help="Show this dataset of the light curve, such as PC_incbad; may be repeated.",
)
@click.option(
    "--time-scale", type=click.Choice(["auto", "linear", "log"]), default="auto", help="Of the light curve."
)
@click.option(
    "--rate-scale", type=click.Choice(["auto", "linear", "log"]), default="auto", help="Of the light curve."
)
@_overwrite_option
@_json_option
def plot(
    place: Path,
    out: Path,
    form: str,
    datasets: tuple[str, ...],
    time_scale: figures.Scale,
    rate_scale: figures.Scale,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Draw what is in the folder of a job, or a result that was written to a file.

    Of a folder: the light curve, all positions on one finder, and the service's own pictures of spectra and
    images.
    """
    results, problems = _results_at(place)
    look = {"names": datasets or None, "time_scale": time_scale, "rate_scale": rate_scale}
    drawn = {}
    for name, draw in _drawings(place, results, look):
        try:
            drawn[name] = draw()
        except ArchiveError as error:
            problems[name] = error.message
    shown = {name: figure for name, figure in drawn.items() if figure is not None}
    if not shown and not problems:
        problems[str(place)] = "There is nothing to draw here."
    if shown:
        archive.make_directory(out)
    written = {
        name: figures.save(figure, out / f"{name}.{form}", overwrite=overwrite)
        for name, figure in shown.items()
    }
    _tell("figures", written, problems, as_json=as_json)


def _results_at(place: Path) -> tuple[dict[Product, Result], dict[str, str]]:
    """Return what can be drawn, and why something else cannot be read."""
    if not place.exists():
        raise OutputError(f"{place} is not there.")
    if place.is_dir():
        build, unread = collection.read_build(place)
        return dict(build.results), {entry.what: entry.reason for entry in unread}
    result = read_result(place)
    if isinstance(result, Position | LightCurve):
        return {result.product if isinstance(result, Position) else Product.LIGHT_CURVE: result}, {}
    raise ConfigurationError(f"{place} holds no light curve and no position, of which there are pictures.")


def _drawings(
    place: Path, results: Mapping[Product, Result], look: Mapping[str, Any]
) -> Iterator[tuple[str, Callable[[], Figure | None]]]:
    """Give a name for each picture, and what draws it, or nothing where there is nothing to draw."""
    light_curve = results.get(Product.LIGHT_CURVE)
    if isinstance(light_curve, LightCurve):
        yield "light_curve", lambda: figures.plot_light_curve(light_curve, **look)
    positions = [result for result in results.values() if isinstance(result, Position)]
    if positions:
        yield "positions", lambda: figures.plot_positions(positions)
    where = next((result.provenance for result in results.values()), None)
    for product, (name, title) in _PICTURED.items() if place.is_dir() else ():
        yield name, partial(_pictures, place, product, title, where)


def _pictures(place: Path, product: Product, title: str, where: Provenance | None) -> Figure | None:
    pictures = figures.read_pictures(place, product, limit=_MAX_PICTURES)
    return figures.plot_pictures(pictures, title=title, provenance=where) if pictures else None


@click.command()
@click.argument("places", metavar="DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_out_option("Where the tables go.")
@click.option(
    "--format",
    "form",
    type=_endings(collection.FORMATS),
    default="ecsv",
    show_default=True,
    help="Of the tables; vot is VOTable.",
)
@_overwrite_option
@_json_option
def collect(places: tuple[Path, ...], out: Path, form: str, overwrite: bool, as_json: bool) -> None:
    """Put what is in the folders of many jobs into one table per product.

    Of all jobs in or below the folders: their last statuses, positions and fluxes, and the light curves of
    each source, merged in time.
    """
    found = collection.collect(places)
    written, problems = collection.write_collection(found, out, f".{form}", overwrite=overwrite)
    reasons = {entry.what: entry.reason for entry in found.unread}
    reasons |= {name: error.message for name, error in problems.items()}
    _tell("tables", written, reasons, as_json=as_json, jobs=len(found.builds))


def _tell(
    what: str, written: Mapping[str, Path], problems: Mapping[str, str], *, as_json: bool, **facts: int
) -> None:
    """Say what was written and what was not, and leave with the exit code for that."""
    if as_json:
        files = {name: str(path) for name, path in written.items()}
        click.echo(json.dumps({**facts, what: files, "problems": problems}, indent=2, ensure_ascii=False))
    else:
        for name, path in written.items():
            click.echo(f"{name} -> {path}")
    for name, reason in problems.items():
        click.echo(f"Error: {name}: {reason}", err=True)
    if problems:
        sys.exit(_PARTLY if written else _FILES)
