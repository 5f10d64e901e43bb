"""An example to copy: start from a finished build, and do something with its light curve.

Here, a power law is fitted to the decay of the count rate. An automation starts it with the folder that the event
`prefect-xrt.build.finished` (or `prefect-xrt.target.changed`) names; so can you:

    python flows/decay.py
"""

# No `from __future__ import annotations`: a flow that is served is pickled, without what texts name.
import base64
from pathlib import Path
from typing import Annotated, cast

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import BaseModel, Field

from prefect_xrt import BuildReport, Product, bundles, figures
from prefect_xrt.forms import titled
from prefect_xrt.results import MET_SINCE_T0, LightCurve, require

_MIN_BINS = 3


class Decay(BaseModel):
    """A power law, rate = rate_at_pivot · (t / pivot)^-alpha, fitted to a light curve; errors are 1 sigma."""

    alpha: float = Field(description="The decay index: positive where the rate falls.")
    alpha_error: float
    rate_at_pivot: float = Field(description="In counts per second.")
    rate_error: float = Field(description="In counts per second.")
    pivot_s: float = Field(description="Where the errors of both are independent, in seconds since T0.")
    chi2: float = Field(description="Of the logarithms of the rates.")
    dof: int = Field(description="Degrees of freedom.")
    start_s: float = Field(description="The first bin that was fitted, in seconds since T0.")
    stop_s: float = Field(description="The last one.")

    def __str__(self) -> str:
        return f"α = {self.alpha:.3f} ± {self.alpha_error:.3f}, χ²/dof = {self.chi2:.1f}/{self.dof}"


def fit_decay(light_curve: LightCurve, start_s: float = 0, stop_s: float = 0) -> Decay:
    """Fit a power law to the count rates of all modes together: weighted least squares of logarithms.

    Left out are upper limits, bins that may be unreliable, and rates that are not positive. Not handled are
    breaks and flares (look at χ²), errors that differ upwards and downwards (their mean is taken), few counts (the
    logarithm of a rate is taken to have a Gaussian error), and the change of the rate within a bin.

    Args:
        light_curve: The light curve, in seconds since T0.
        start_s: Leave out what is earlier, in seconds since T0.
        stop_s: Leave out what is later; 0 for no limit.

    Raises:
        ValueError: There is nothing to fit, and why.
    """
    np = require("numpy")
    if light_curve.time_system != MET_SINCE_T0:
        raise ValueError(f"The times are not seconds since T0, but {light_curve.time_system}.")
    curves = [
        curve
        for name, curve in light_curve.curves.items()
        if curve.band == "total" and not curve.upper_limits and "_" not in name
    ]
    time, rate, up, down = (
        np.concatenate([np.zeros(0), *(curve[column] for curve in curves)])
        for column in ("Time", "Rate", "RatePos", "RateNeg")
    )
    error = (abs(up) + abs(down)) / 2
    fitted = (time > start_s) & (time <= (stop_s or np.inf)) & (rate > 0) & (error > 0)
    if fitted.sum() < _MIN_BINS:
        raise ValueError(
            f"There are {fitted.sum()} detections after T0 to fit; at least {_MIN_BINS} are needed."
        )
    x, y, weight = np.log(time[fitted]), np.log(rate[fitted]), (rate / error)[fitted]
    pivot = np.average(x, weights=weight**2)
    (slope, level), covariance = np.polyfit(x - pivot, y, 1, w=weight, cov="unscaled")
    residuals = (y - level - slope * (x - pivot)) * weight
    return Decay(
        alpha=-slope,
        alpha_error=covariance[0, 0] ** 0.5,
        rate_at_pivot=np.exp(level),
        rate_error=np.exp(level) * covariance[1, 1] ** 0.5,
        pivot_s=np.exp(pivot),
        chi2=(residuals**2).sum(),
        dof=len(x) - 2,
        start_s=time[fitted].min(),
        stop_s=time[fitted].max(),
    )


def plot_decay(light_curve: LightCurve, decay: Decay) -> bytes:
    """Draw the light curve with the fit, as PNG."""
    figure = figures.plot_light_curve(light_curve)
    axes = figure.axes[0]
    times = require("numpy").geomspace(decay.start_s, decay.stop_s, 100)
    rates = decay.rate_at_pivot * (times / decay.pivot_s) ** -decay.alpha
    axes.plot(times, rates, color="black", linewidth=1, zorder=3, label="power law")
    axes.legend(frameon=False, fontsize="small")
    return figures.to_png(figure, dpi=90)


def _run_name() -> str:
    return f"decay: {'/'.join(Path(flow_run.parameters['output_dir']).parts[-2:])}"


@flow(name="decay", flow_run_name=_run_name)
def decay(
    output_dir: Annotated[Path, titled("Folder of the build")],
    start_s: Annotated[float, titled("From (s since T0)", ge=0)] = 0,
    stop_s: Annotated[float, titled("Until (s since T0)", ge=0)] = 0,
) -> Decay | None:
    """Fit a power law to the light curve of a finished build, and show it.

    Args:
        output_dir: Folder of the build on the worker's machine, as its event names it.
        start_s: Leave out bins that are earlier, in seconds since T0.
        stop_s: Leave out bins that are later, in seconds since T0; 0 for no limit.

    Returns:
        The fit. Where there is nothing to fit, the state is Completed, named "Skipped", and says why.
    """
    folder = output_dir.expanduser()
    report = BuildReport.model_validate_json((folder / "report.json").read_bytes())
    files = {file.product: folder / file.path.name for file in report.files}
    if Product.LIGHT_CURVE not in files:
        return cast(None, Completed(name="Skipped", message=f"{report.job} has brought no light curve."))
    light_curve = bundles.read_light_curve(files[Product.LIGHT_CURVE], job=report.job)
    try:
        fit = fit_decay(light_curve, start_s, stop_s)
    except ValueError as error:
        return cast(None, Completed(name="Skipped", message=f"{report.job}: {error}"))
    picture = base64.b64encode(plot_decay(light_curve, fit)).decode()
    lines = [
        f"# Decay of `{report.job.name}`, job {report.job.id}",
        f"{fit}, fitted to bins from {fit.start_s:.4g} to {fit.stop_s:.4g} s after T0.",
        "A χ² well above its degrees of freedom says that a single power law does not describe the decay.",
        f"![Light curve with the fit](data:image/png;base64,{picture})",
    ]
    create_markdown_artifact("\n\n".join(lines), key=f"xrt-decay-{report.job.id}", description=str(fit))
    return cast(Decay, Completed(message=f"{report.job}: {fit}", data=fit))


if __name__ == "__main__":
    decay.serve(name="decay")
