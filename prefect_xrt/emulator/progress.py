"""How far a running product is, in the steps that the service names."""

from __future__ import annotations

import math
from dataclasses import dataclass

NOT_REACHED, ACTIVE, DONE = 0, 1, 2


@dataclass(frozen=True)
class Stage:
    """One step of a product.

    Args:
        label: The service's text.
        weight: Its share of the time, relative to the others.
        extra: What is said while it is active; `{n}` counts up to `{of}`.
        substeps: Steps that come round once per count.
    """

    label: str
    weight: float = 1.0
    extra: str = ""
    substeps: tuple[Stage, ...] = ()


_OBSERVATION = "Working on observation {n} / {of}"
_DETECTION = (
    Stage("Prepare data."),
    Stage("Collect data."),
    Stage("Prepare data for iterative source detection."),
    Stage("Create per-snapshot images and exposure maps.", 4.0, _OBSERVATION),
    Stage("Sum per-snapshot images and exposure maps."),
    Stage("Run source detection."),
    Stage("Perform initial rough detection with locally-estimated background"),
    Stage("Construct initial background map."),
    Stage("Perform initial source detection using the background map."),
    Stage(
        "Searching for sources.",
        4.0,
        "",
        (
            Stage("PSF fit sources found in previous iteration."),
            Stage("Build background map."),
            Stage("Perform source detection."),
        ),
    ),
    Stage("Perform final fit."),
)
STAGES: dict[str, tuple[Stage, ...]] = {
    "lc": (
        Stage("Prepare data and centroid (if selected).", 2.0, _OBSERVATION),
        Stage("Extract data.", 4.0, _OBSERVATION),
        Stage("Binning light curve."),
        Stage("Plotting light curve as image."),
    ),
    "spec": (
        Stage("Prepare data."),
        Stage(
            "Build spectra.",
            6.0,
            "Working on spectrum: {name} ({n}/{of})",
            (Stage("Extract data.", 1.0, "Working on observation 1 / 1"), Stage("Fit spectrum.")),
        ),
    ),
    "psf": (
        Stage("Collect data."),
        Stage("Sum images and exposure maps."),
        Stage("Perform detection with locally-estimated background"),
        Stage("Perform PSF fit."),
    ),
    "enh": (
        Stage("Identify XRT-UVOT overlaps."),
        Stage("Determine position.", 2.0, "Working on overlap {n} / {of}"),
        Stage("Build Images."),
    ),
    "xastrom": (*_DETECTION, Stage("Calculate astrometric correction.")),
    "image": (
        Stage("Collect data."),
        Stage("Merge event lists."),
        Stage("Creating images."),
        Stage("Creating exposure map."),
    ),
    "sourceDet": _DETECTION,
}
"""The steps of each product. Those of a source detection are not documented: they are what an
astrometric position does before its correction."""


def progress(product: str, fraction: float, running_s: float, names: tuple[str, ...]) -> dict[str, object]:
    """Describe a running product as the service does.

    Args:
        product: Short name.
        fraction: Share of its run that is over, 0 up to 1.
        running_s: Seconds since its execution began.
        names: What a repeated step works on, one after the other.
    """
    minutes, seconds = divmod(int(running_s), 60)
    hours, minutes = divmod(minutes, 60)
    answer: dict[str, object] = {"GotProgress": 1}
    if product == "enh":
        answer["PreProgress"] = "Trying using the <em>v,b,white</em> filters:"
    answer["ProgressSteps"] = _steps(STAGES[product], fraction, names)
    answer["TimeRunning"] = f"{hours:02d}:{minutes:02d}:{seconds:02d}"
    return answer


def _steps(stages: tuple[Stage, ...], fraction: float, names: tuple[str, ...]) -> list[dict[str, object]]:
    total = sum(stage.weight for stage in stages)
    answer = []
    start = 0.0
    for stage in stages:
        share = stage.weight / total
        inside = (fraction - start) / share
        answer.append(_step(stage, inside, names))
        start += share
    return answer


def _step(stage: Stage, inside: float, names: tuple[str, ...]) -> dict[str, object]:
    # Shares add up to slightly less or more than 1, and a step must not begin before the last one ends.
    inside = round(inside, 9)
    status = NOT_REACHED if inside < 0 else ACTIVE if inside < 1 else DONE
    step: dict[str, object] = {"StepLabel": stage.label, "StepStatus": status}
    turn = min(math.floor(inside * len(names)), len(names) - 1) if status == ACTIVE else 0
    if status == ACTIVE and stage.extra:
        step["StepExtra"] = stage.extra.format(n=turn + 1, of=len(names), name=names[turn])
    if stage.substeps:
        round_ = {NOT_REACHED: -1.0, ACTIVE: inside * len(names) - turn, DONE: 1.0}[status]
        step["SubStep"] = _steps(stage.substeps, round_, names[:1])
    return step
