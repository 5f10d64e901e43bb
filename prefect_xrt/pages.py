"""The pages that people read in the Prefect UI, as Markdown: the report of a build, and the one of an alarm.

Whatever the service or a user wrote is shown as it is, and never taken for Markdown or HTML.
"""

from __future__ import annotations

import base64
import json
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from pydantic import JsonValue

from prefect_xrt import bundles, protocol
from prefect_xrt._version import __version__
from prefect_xrt.archive import ProductFile
from prefect_xrt.errors import ConfigurationError, XRTError
from prefect_xrt.protocol import Job, ProductStatus
from prefect_xrt.request import Product
from prefect_xrt.results import POSITION_PRODUCTS, Position

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from prefect_xrt.reports import BuildReport

__all__ = ["MAX_SHOWN_BYTES", "alarm_page", "report_page"]

MAX_SHOWN_BYTES = 200 * 2**20
"""The largest bundle that is read for the report's positions and pictures, in bytes; others are named there."""

MAX_PICTURE_BYTES = 2**20
"""The largest picture that is put into a page, in bytes: the page is kept in Prefect's database."""

_MAX_PICTURES = 6
_PAGE_DPI = 90


def report_page(report: BuildReport, asked: Mapping[str, JsonValue] | None = None) -> str:
    """Return what a build came to: its products, positions, pictures, and what was asked for.

    Positions and pictures are read from the bundles that were fetched; where one cannot be shown, the page says why.

    Args:
        report: What the build came to.
        asked: What was asked for, in the service's spelling; None where that is not known.
    """
    job = report.job
    positions, remarks = _read_positions(report)
    pictures = dict(_pictures(report, positions, remarks))
    parts = [
        f"# {_text(job.name or 'Unnamed')}: job {job.id}",
        _text(f"{report.summary()} {report.next_step()}"),
        f"Followed from {report.started_at:%Y-%m-%d %H:%M} to {report.finished_at:%Y-%m-%d %H:%M} UTC. "
        f"[The job's page at the service](<{job.url}>).",
        "## Products",
        _table(("product", "state", "code", "file", "bytes"), _product_rows(report)),
    ]
    if positions:
        parts += [
            "## Positions",
            _table(
                ("kind", "RA (J2000)", "Dec (J2000)", "error (90 %)", "catalogue"),
                map(_position_row, positions),
            ),
        ]
    if pictures or remarks:
        parts.append("## Pictures")
    parts += [
        f"![{_text(name)}](data:image/png;base64,{base64.b64encode(png).decode()})"
        for name, png in pictures.items()
    ]
    parts += [f"- {_text(remark)}" for remark in remarks]
    if report.files:
        sums = "\n".join(f"{file.sha256}  {file.path.name}" for file in report.files)
        # In a table, sums as long as these would hide what stands beside it.
        parts += ["## Checksums (SHA-256)", _fenced(sums)]
    parts += ["## What was asked for, and what the service made of it", _parameters(job, asked)]
    return "\n\n".join(parts) + "\n"


def _product_rows(report: BuildReport) -> Iterator[tuple[str, ...]]:
    for entry in report.products:
        file = entry.file
        yield (
            entry.product.value,
            entry.state.value,
            f"{entry.code} ({entry.problem or entry.text})",
            file.path.name if file else "–",
            f"{file.size:,}" if file else "–",
        )


def _position_row(position: Position) -> tuple[str, ...]:
    kind = position.product.value
    if not position.found:
        return kind, f"none: {position.reason}", "–", "–", "–"
    ra, dec, error = f"{position.ra_deg:.5f}°", f"{position.dec_deg:+.5f}°", f"{position.err90_arcsec:.1f}″"
    return kind, ra, dec, error, position.catalogue or "–"


def _read_positions(report: BuildReport) -> tuple[list[Position], list[str]]:
    positions, remarks = [], []
    for file in report.files:
        if file.product in POSITION_PRODUCTS:
            try:
                positions.append(bundles.read_position(file.path, file.product, job=report.job))
            except XRTError as error:
                remarks.append(f"{file.product.value}: {error.message}")
    return positions, remarks


def _pictures(
    report: BuildReport, positions: Sequence[Position], remarks: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Give a title and a PNG for each; what cannot be shown becomes a remark."""
    try:
        from prefect_xrt import figures  # noqa: PLC0415 - what it draws with takes a second

        for name, draw in _drawings(report, positions):
            try:
                picture = figures.to_png(draw(), dpi=_PAGE_DPI)
            except ConfigurationError:
                raise
            except XRTError as error:
                remarks.append(f"{name}: {error.message}")
                continue
            if len(picture) <= MAX_PICTURE_BYTES:
                yield name, picture
            else:
                remarks.append(f"{name}: the picture has {len(picture)} bytes, too many for this page.")
    except ConfigurationError as error:
        remarks.append(error.message)
    remarks += [
        f"{file.product.value}: {file.path.name} is too large to be read for this page."
        for file in report.files
        if file.size > MAX_SHOWN_BYTES
    ]


def _drawings(
    report: BuildReport, positions: Sequence[Position]
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    from prefect_xrt import figures  # noqa: PLC0415

    files = {file.product: file for file in report.files if file.size <= MAX_SHOWN_BYTES}
    if Product.LIGHT_CURVE in files:
        path = files[Product.LIGHT_CURVE].path
        yield "Light curve", lambda: figures.plot_light_curve(bundles.read_light_curve(path, job=report.job))
    if any(position.found for position in positions):
        yield "Positions", lambda: figures.plot_positions(positions)
    for product, name in ((Product.SPECTRUM, "Spectra"), (Product.IMAGE, "Images")):
        if product in files:
            yield name, partial(_service_pictures, files[product], name)


def _service_pictures(file: ProductFile, name: str) -> Figure:
    from prefect_xrt import figures  # noqa: PLC0415

    pictures = figures.read_pictures(file.path.parent, file.product, limit=_MAX_PICTURES)
    return figures.plot_pictures(pictures, title=f"{name}, made by the service")


def _parameters(job: Job, asked: Mapping[str, JsonValue] | None) -> str:
    known = asked or {}
    rows = [
        (
            name,
            _value(known[name]) if name in known else "–",
            _value(job.parameters[name]) if name in job.parameters else "–",
        )
        for name in sorted({*known, *job.parameters}, key=str.lower)
    ]
    note = "" if asked is not None else "What was asked for is not known here: the job was attached to.\n\n"
    return note + _table(("parameter", "asked for", "accepted"), rows)


def _value(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")


def _text(text: str) -> str:
    """Return a text as Markdown that shows it as it is, in one line."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def alarm_page(job: Job, status: ProductStatus, looked_at: datetime) -> str:
    """Return the report to the service's help desk about a status that should never happen, ready to be sent."""
    submitted = job.submitted_at.isoformat(timespec="seconds") if job.submitted_at else "not known here"
    return f"""# To {protocol.HELP_DESK}: status {status.code} for a product of job {job.id}

The service's documentation asks for a prompt report of this status. It was seen twice in a row.
Nothing has been sent; copy what follows.

---

Job {job.id}{f" ({job.name})" if job.name else ""}, product {status.product.value}

| | |
|---|---|
| status code | {status.code} |
| status text | {_cell(status.text)} |
| submitted (UTC) | {submitted} |
| seen (UTC) | {looked_at.isoformat(timespec="seconds")} |
| files | {_cell(job.url)} |
| software | prefect-xrt {__version__}, Python {platform.python_version()} |

Progress:

{_fenced(status.progress_text)}

Parameters as accepted:

{_fenced(json.dumps(job.parameters, indent=2, ensure_ascii=False), "json")}
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fenced(text: str, language: str = "") -> str:
    return f"```{language}\n{text.replace('```', '` ` `').rstrip()}\n```"
