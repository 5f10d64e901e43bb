"""The chained example starts from what a build tells of its end, and finds the decay that is in the data."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from prefect_xrt import ProductRequest, build_products
from prefect_xrt.alerts import FINISHED_EVENT
from prefect_xrt.emulator import Emulator, Timeline
from prefect_xrt.pipelines.decay import Decay, decay, fit_decay
from prefect_xrt.results import MET_SINCE_T0, MJD, Curve, LightCurve, Provenance

if TYPE_CHECKING:
    from conftest import Server

TRUE_ALPHA = 1.15
"""What the embedded service's light curves decay with, scattered by less than their errors."""


def curve(name: str, times: Any, rates: Any, relative_error: float = 0.1) -> Curve:
    """Make a dataset of rates, or of upper limits."""
    limits = name.endswith("UL")
    size = {"RatePos": relative_error * 1.5, "RateNeg": -relative_error * 0.5}
    values = {"UpperLimit": rates} if limits else {"Rate": rates} | {k: rates * v for k, v in size.items()}
    return Curve(
        name=name,
        mode=name[:2],
        band="total",
        upper_limits=limits,
        systematics=False,
        unreliable="incbad" in name,
        columns={"Time": times, "TimePos": times * 0.1, "TimeNeg": -times * 0.1, **values},
        units={},
    )


def light_curve(*curves: Curve, system: str = MET_SINCE_T0) -> LightCurve:
    """Put datasets together."""
    return LightCurve(
        curves={entry.name: entry for entry in curves},
        t0_met_s=1.0,
        binning="Counts",
        time_system=system,
        provenance=Provenance(job_id=1, retrieved_at=datetime(2026, 11, 24, tzinfo=UTC), sha256="0" * 64),
    )


TIMES = np.geomspace(100.0, 1e5, 16)


class TestFit:
    def test_exact(self) -> None:
        """A power law without scatter is found as it is, with the errors that theory gives."""
        rates = 3.0 * (TIMES / 1000) ** -1.4
        fit = fit_decay(light_curve(curve("WT", TIMES[:6], rates[:6]), curve("PC", TIMES[6:], rates[6:])))
        x = np.log(TIMES)
        assert fit.alpha == pytest.approx(1.4)
        assert fit.alpha_error == pytest.approx(0.1 / np.sqrt(((x - x.mean()) ** 2).sum()))
        assert fit.rate_at_pivot == pytest.approx(3.0 * (fit.pivot_s / 1000) ** -1.4)
        assert fit.rate_error == pytest.approx(fit.rate_at_pivot * 0.1 / 4)
        assert fit.chi2 == pytest.approx(0, abs=1e-12)
        assert (fit.dof, fit.start_s, fit.stop_s) == (14, pytest.approx(100), pytest.approx(1e5))

    def test_chi2(self) -> None:
        """Rates that are all one error off, up and down, have a χ² of one for each bin."""
        rates = 3.0 * (TIMES / 1000) ** -1.4 * np.exp(0.1 * np.array([1, -1, -1, 1] * 4))
        fit = fit_decay(light_curve(curve("PC", TIMES, rates)))
        assert fit.chi2 == pytest.approx(16)
        assert fit.alpha == pytest.approx(1.4)

    def test_left_out(self) -> None:
        """Upper limits, unreliable bins, rates that are none, bins before T0 or out of the range do not count."""
        rates = TIMES**-1.0
        good = curve("PC", TIMES, rates)
        odd = np.array([-50.0, 0.0, 1e3, 2e3, 1e6])
        fit = fit_decay(
            light_curve(
                good,
                curve("PCUL", TIMES, rates * 50),
                curve("PC_incbad", TIMES, rates * 9),
                curve("WT", odd, np.array([5.0, 5.0, -1.0, np.nan, 5.0])),
            ),
            start_s=TIMES[0],
            stop_s=2e5,
        )
        assert fit.alpha == pytest.approx(1.0)
        assert (fit.dof, fit.start_s) == (13, pytest.approx(TIMES[1]))

    @pytest.mark.parametrize(
        ("given", "reason"),
        [
            (light_curve(curve("PC", TIMES, TIMES), system=MJD), "not seconds since T0, but MJD"),
            (light_curve(curve("PC", TIMES[:2], TIMES[:2])), "There are 2 detections"),
            (light_curve(curve("PCUL", TIMES, TIMES)), "There are 0 detections"),
        ],
    )
    def test_nothing_to_fit(self, given: LightCurve, reason: str) -> None:
        """What cannot be fitted is refused with the reason."""
        with pytest.raises(ValueError, match=reason):
            fit_decay(given)


def test_from_the_event(
    server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
) -> None:
    """From what the event of a finished build says, the slope in the data is found, and shown with a picture."""
    service(default=Timeline.of((4,)))
    build_products(request_, tmp_path / "built")
    built = str(tmp_path / "built")

    def told() -> dict[str, Any] | None:
        # Other tests' services have had a job of that number, too.
        payloads = [event["payload"] for event in server.events(FINISHED_EVENT, "prefect-xrt.job.801")]
        return next((payload for payload in payloads if payload["output_dir"] == built), None)

    payload = server.settled(told)
    state: Any = decay(payload["output_dir"], return_state=True)
    fit = state.result()
    assert isinstance(fit, Decay)
    assert abs(fit.alpha - TRUE_ALPHA) < 2 * fit.alpha_error < 0.05
    assert fit.chi2 < fit.dof
    run = server.flow_run(state.state_details.flow_run_id)
    assert run["name"] == f"decay: {tmp_path.name}/built"
    assert run["state"]["message"] == f"job 801 (GRB 200416A): {fit}"
    artifact = server.artifacts(run["id"])["xrt-decay-801"]
    assert artifact["description"] == str(fit)
    picture = re.search(r"\(data:image/png;base64,([^)]+)\)", artifact["data"])
    assert picture
    with Image.open(io.BytesIO(base64.b64decode(picture[1]))) as image:
        image.verify()
        assert image.width > 500


def test_without_a_light_curve(
    server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
) -> None:
    """A build without a light curve is skipped, and its run says so."""
    service(default=Timeline.of((4,)), timelines={"lc": Timeline.of((-1,))})
    build_products(request_, tmp_path / "built", accept_partial=True)
    state: Any = decay(tmp_path / "built", return_state=True)
    kept = server.flow_run(state.state_details.flow_run_id)["state"]
    assert (kept["type"], kept["name"]) == ("COMPLETED", "Skipped")
    assert kept["message"] == "job 801 (GRB 200416A) has brought no light curve."


def test_form() -> None:
    """The form has a title and a description for each field, with units."""
    properties = decay.to_deployment("form")._parameter_openapi_schema.properties  # what the UI is told
    titles = ["Folder of the build", "From (s since T0)", "Until (s since T0)"]
    assert [field["title"] for field in properties.values()] == titles
    assert all(field["description"] for field in properties.values())
