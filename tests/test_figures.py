"""Hold `prefect_xrt.figures` to account: what is in a figure, not its pixels."""

from __future__ import annotations

import io
import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from prefect_xrt import Product, figures
from prefect_xrt.emulator import Emulator, archives
from prefect_xrt.errors import ArchiveError, ConfigurationError, OutputError
from prefect_xrt.results import (
    MET_SINCE_T0,
    MJD,
    Curve,
    LightCurve,
    Position,
    Provenance,
    SourceList,
    SpectralFits,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
REQUEST = {"minen": 0.3, "maxen": "10", "hard1": 1.51, "hard2": 10, "soft1": 0.3, "soft2": 1.5}
PROVENANCE = Provenance(
    job_id=803, job_name="GK Per", request=REQUEST, retrieved_at=NOW, sha256="0" * 64, software="it 1.0"
)


def curve(name: str, times: Any, values: Any, *, width: float = 1.0, **columns: Any) -> Curve:
    """Make a dataset of the kind that its name tells."""
    stem = name.partition("_")[0]
    kind = "UL" if "UL" in stem else next((k for k in ("HR", "Hard", "Soft") if k in stem), "")
    value = {"UL": "UpperLimit", "HR": "HR"}.get(kind, "Rate")
    bins = len(times)
    given_ = {"Time": times, "TimePos": [width] * bins, "TimeNeg": [-width] * bins, value: values} | columns
    if value == "Rate" and "RatePos" not in given_:
        given_ |= {"RatePos": [0.1] * bins, "RateNeg": [-0.2] * bins}
    arrays = {key: np.array(cells, dtype="float64") for key, cells in given_.items()}
    return Curve(
        name=name,
        mode=stem[:2] if stem[:2] in ("WT", "PC") else None,
        band={"HR": "hardness ratio", "Hard": "hard", "Soft": "soft"}.get(kind, "total"),  # type: ignore[arg-type]
        upper_limits=kind == "UL",
        systematics=stem.startswith("WT") and "nosys" not in name,
        unreliable="incbad" in name,
        columns=arrays,
        units={key: "ct / s" if key[0] in "RU" else "" for key in arrays},
    )


def light_curve(*curves: Curve, **facts: Any) -> LightCurve:
    """Put datasets together."""
    told = {"t0_met_s": 124048802.40058, "binning": "Counts", "time_system": MET_SINCE_T0}
    return LightCurve(
        **{
            "curves": {entry.name: entry for entry in curves},
            "provenance": PROVENANCE,
            **told,
            **facts,
        }
    )


def everything() -> LightCurve:
    """Make a light curve with all that a figure may show."""
    return light_curve(
        curve("WT", [100.0, 200.0], [50.0, 20.0]),
        curve("WT_nosys", [100.0, 200.0], [50.0, 20.0]),
        curve("PC", [1e3, 1e4], [1.0, 0.5]),
        curve("PCUL", [1e5], [0.01], width=100.0),
        curve("PCHard", [1e3], [0.5]),
        curve("PCHR", [1e3, 1e4], [1.0, 1.5], HRErr=[0.2, 0.3]),
        curve("PC_incbad", [1e3, 5e3, 1e4], [1.0, 0.7, 0.5]),
    )


def drawn(axes: Axes) -> dict[str, Any]:
    """Give what the legend's names stand for."""
    return {str(bars.get_label()): bars for bars in axes.containers}


def places(bars: Any) -> list[tuple[float, float]]:
    """Give where the points of a dataset are."""
    x, y = bars.lines[0].get_data()
    return list(zip(map(float, x), map(float, y), strict=True))


def segments(bars: Any, direction: int) -> list[list[list[float]]]:
    """Give the bars in one direction: 0 for those of times, last for those of values."""
    return [np.asarray(line).tolist() for line in bars.lines[2][direction].get_segments()]


def caption(figure: Figure) -> str:
    """Give the text below a figure, in one line."""
    return " ".join(figure.get_supxlabel().split())


class TestLightCurve:
    def test_panels(self) -> None:
        """Modes and upper limits are in the upper panel, apart from one another, and ratios in the lower."""
        upper, lower = figures.plot_light_curve(everything()).axes
        assert set(drawn(upper)) == {"WT", "PC", "PC upper limits"}
        assert set(drawn(lower)) == {"PC"}
        assert [text.get_text() for text in upper.get_legend().get_texts()] == ["WT", "PC", "PC upper limits"]
        assert places(drawn(upper)["PC"]) == [(1e3, 1.0), (1e4, 0.5)]
        assert places(drawn(lower)["PC"]) == [(1e3, 1.0), (1e4, 1.5)]

    def test_axes(self) -> None:
        """Axes say what they show and in which unit and band, as far as it is known."""
        upper, lower = figures.plot_light_curve(everything()).axes
        assert upper.get_ylabel() == "Count rate 0.3–10 keV (ct s⁻¹)"
        assert lower.get_ylabel() == "Hardness ratio\n1.51–10 / 0.3–1.5 keV"
        assert (upper.get_xlabel(), lower.get_xlabel()) == ("", "Time since T0 (s)")
        bare = PROVENANCE.model_copy(update={"request": {}})
        (only,) = figures.plot_light_curve(light_curve(curve("PC", [1.0], [2.0]), provenance=bare)).axes
        assert only.get_ylabel() == "Count rate (ct s⁻¹)"

    def test_caption(self) -> None:
        """Title and caption tell source, job, T0, binning, what the bars and arrows are, and the software."""
        figure = figures.plot_light_curve(everything())
        assert figure.get_suptitle() == "GK Per – Swift XRT light curve"
        assert caption(figure) == (
            "T0 = MET 124048802.40058 s. Binned by counts. Errors of WT with the systematic one. Arrows are "
            "upper limits. Job 803 (GK Per), retrieved 2026-11-24, it 1.0."
        )

    def test_bars(self) -> None:
        """Horizontal bars are the bins, vertical ones the errors; both may differ from side to side."""
        made = curve("PC", [10.0], [2.0], TimePos=[4.0], TimeNeg=[-1.0])
        (axes,) = figures.plot_light_curve(light_curve(made)).axes
        bars = drawn(axes)["PC"]
        assert segments(bars, 0) == [[[9.0, 2.0], [14.0, 2.0]]]
        assert segments(bars, 1) == [[[10.0, 1.8], [10.0, 2.1]]]

    def test_upper_limits(self) -> None:
        """An upper limit is an arrow that points down from it, and has no bar for an error."""
        (axes,) = figures.plot_light_curve(light_curve(curve("PCUL", [10.0], [2.0]))).axes
        bars = drawn(axes)["PC upper limits"]
        marker = bars.lines[0].get_marker()
        assert marker.vertices[:, 1].min() == -1
        assert marker.vertices[:, 1].max() == 0
        assert len(bars.lines[2]) == 1
        assert places(bars) == [(10.0, 2.0)]

    def test_colours(self) -> None:
        """A mode has one colour throughout, and another than the other mode."""
        upper, lower = figures.plot_light_curve(everything()).axes
        colours = {label: bars.lines[0].get_color() for label, bars in drawn(upper).items()}
        assert colours["PC"] == colours["PC upper limits"] == drawn(lower)["PC"].lines[0].get_color()
        assert colours["PC"] != colours["WT"]

    def test_chosen(self) -> None:
        """Any datasets may be named, and the legend tells them apart; bins that may be unreliable are said."""
        figure = figures.plot_light_curve(everything(), names=["WT_nosys", "PC_incbad", "PCHard"])
        (axes,) = figure.axes
        assert set(drawn(axes)) == {"WT without systematics", "PC with unreliable bins", "PC hard"}
        assert axes.get_ylabel() == "Count rate (ct s⁻¹)"
        assert "Bins that may be unreliable are in." in caption(figure)
        assert "Errors of WT" not in caption(figure)

    def test_only_kind_there_is(self) -> None:
        """Where there is only the kind with unreliable bins, it is shown."""
        (axes,) = figures.plot_light_curve(light_curve(curve("PC_incbad", [1.0], [2.0]))).axes
        assert set(drawn(axes)) == {"PC with unreliable bins"}

    def test_unknown_dataset(self) -> None:
        """A dataset that is not there is refused with those that are."""
        with pytest.raises(ConfigurationError, match="no dataset 'XY'"):
            figures.plot_light_curve(everything(), names=["XY"])

    def test_other_mode(self) -> None:
        """A dataset whose mode is not known is shown by its name."""
        (axes,) = figures.plot_light_curve(light_curve(curve("Both", [1.0], [2.0]))).axes
        assert set(drawn(axes)) == {"Both"}

    def test_ratio_alone(self) -> None:
        """A hardness ratio without rates has the figure to itself."""
        made = light_curve(curve("WTHR", [1.0], [2.0], HRErr=[0.5]))
        (axes,) = figures.plot_light_curve(made).axes
        assert axes.get_ylabel().startswith("Hardness ratio")
        assert axes.get_legend() is not None

    def test_gaps(self) -> None:
        """A bin without a value is not shown, and the caption counts it; one without an error has no bar."""
        made = curve("PC", [1.0, 2.0], [math.nan, 3.0], RatePos=[1.0, math.nan], RateNeg=[-1.0, math.nan])
        figure = figures.plot_light_curve(light_curve(made))
        bars = drawn(figure.axes[0])["PC"]
        assert places(bars) == [(2.0, 3.0)]
        assert segments(bars, 1) == [[[2.0, 3.0], [2.0, 3.0]]]
        assert "1 bins have no value and are not shown." in caption(figure)

    @pytest.mark.parametrize("made", [light_curve(), light_curve(curve("PC", [], []))])
    def test_no_bins(self, made: LightCurve) -> None:
        """A light curve without bins says so, and its axes have no numbers that mean nothing."""
        (axes,) = figures.plot_light_curve(made).axes
        assert [text.get_text() for text in axes.texts] == ["No bins"]
        assert list(axes.get_xticks()) == list(axes.get_yticks()) == []

    def test_no_t0(self) -> None:
        """That T0 is not known is said."""
        figure = figures.plot_light_curve(light_curve(curve("PC", [1.0], [2.0]), t0_met_s=None))
        assert caption(figure).startswith("T0 is not told.")

    def test_mjd(self) -> None:
        """Dates are labelled as such, in full, on a linear axis, and the caption tells their scale."""
        made = curve("PC", [58955.1, 58956.1], [1.0, 2.0], width=0.01)
        figure = figures.plot_light_curve(light_curve(made, time_system=MJD))
        (axes,) = figure.axes
        assert (axes.get_xlabel(), axes.get_xscale()) == ("Time (MJD, days)", "linear")
        assert "MJD are UTC" in caption(figure)
        assert "T0" not in caption(figure)
        figure.draw_without_rendering()
        assert axes.xaxis.get_offset_text().get_text() == ""
        assert all(text.get_text().startswith("5895") for text in axes.get_xticklabels())

    def test_other_time_system(self) -> None:
        """A system of times that is new is named as the service names it."""
        (axes,) = figures.plot_light_curve(light_curve(curve("PC", [1.0], [2.0]), time_system="TDB")).axes
        assert axes.get_xlabel() == "Time (TDB)"

    @pytest.mark.parametrize(
        ("times", "rates", "scales"),
        [
            ([1.0, 100.0], [1.0, 100.0], ("log", "log")),
            ([1.0, 5.0], [1.0, 5.0], ("linear", "linear")),
            ([-1.0, 100.0], [1.0, 100.0], ("linear", "log")),
            ([1.0, 100.0], [-1.0, 100.0], ("log", "linear")),
            ([1.0, 100.0], [0.0, 100.0], ("log", "linear")),
            ([50.0], [2.0], ("linear", "linear")),
        ],
    )
    def test_scales(self, times: list[float], rates: list[float], scales: tuple[str, str]) -> None:
        """An axis is logarithmic where all is positive and it serves, and never hides what is not."""
        (axes,) = figures.plot_light_curve(light_curve(curve("PC", times, rates))).axes
        assert (axes.get_xscale(), axes.get_yscale()) == scales

    def test_scales_of_choice(self) -> None:
        """A scale that is asked for is taken where it can show all, and refused where it cannot."""
        made = light_curve(curve("PC", [1.0, 100.0], [-1.0, 100.0]))
        (axes,) = figures.plot_light_curve(made, time_scale="linear", rate_scale="linear").axes
        assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
        with pytest.raises(ConfigurationError, match="cannot show the 1 of 2 rates that are not positive"):
            figures.plot_light_curve(made, rate_scale="log")
        close = light_curve(curve("PC", [58955.0, 58956.0], [1.0, 2.0]), time_system=MJD)
        (axes,) = figures.plot_light_curve(close, time_scale="log", rate_scale="log").axes
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")

    def test_negative_rates(self) -> None:
        """Where rates are negative, the line of zero is there to tell by."""
        (axes,) = figures.plot_light_curve(light_curve(curve("PC", [1.0, 2.0], [-1.0, 1.0]))).axes
        assert [line for line in axes.lines if list(line.get_ydata()) == [0, 0]]

    def test_errors_below_zero(self) -> None:
        """An error that reaches below zero does not stretch a logarithmic axis beyond what there is to see."""
        made = curve("PC", [1.0, 100.0], [1.0, 0.01], RatePos=[0.1, 0.01], RateNeg=[-0.999999999, -0.5])
        (axes,) = figures.plot_light_curve(light_curve(made)).axes
        low, high = axes.get_ylim()
        assert 5e-4 < low < 0.01
        assert 1.1 < high < 3

    @settings(max_examples=15)
    @given(st.data())
    def test_anything(self, data: st.DataObject) -> None:
        """Whatever numbers and names there are, there is a figure, and all finite bins are in it."""
        numbers = st.floats(width=32, allow_subnormal=False)
        bins = data.draw(st.integers(0, 5))
        columns = {
            name: data.draw(st.lists(numbers, min_size=bins, max_size=bins))
            for name in ("TimePos", "TimeNeg", "Rate", "RatePos", "RateNeg")
        }
        times = data.draw(st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=bins, max_size=bins))
        made = curve("PC", times, columns.pop("Rate"), **columns)
        name = data.draw(st.text(st.characters(), max_size=100))
        where = PROVENANCE.model_copy(update={"job_name": name})
        figure = figures.plot_light_curve(light_curve(made, provenance=where))
        (axes,) = figure.axes
        assert len(places(drawn(axes)["PC"])) == int(np.isfinite(made["Rate"]).sum())
        figure.draw_without_rendering()

    def test_odd_names(self) -> None:
        """What looks like a formula, or has letters that the font lacks, is drawn all the same."""
        where = PROVENANCE.model_copy(
            update={"job_name": "$\\alpha^{$ _x_ $ 中文 \ud800\n\x07" + "long " * 40}
        )
        figure = figures.plot_light_curve(light_curve(curve("PC", [1.0], [2.0]), provenance=where))
        assert len(figures.to_png(figure)) > 1000
        assert figure.get_suptitle().startswith("\\$\\alpha^{\\$ _x_ \\$ □□ □ □long")

    def test_many_bins(self) -> None:
        """A light curve of very many bins is drawn with small points, and rasterised in a vector file."""
        times = np.linspace(1, 1e4, 5000)
        (axes,) = figures.plot_light_curve(light_curve(curve("PC", times, times))).axes
        line = drawn(axes)["PC"].lines[0]
        assert line.get_markersize() == 2
        assert line.get_rasterized()

    def test_no_global_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Figures are drawn without pyplot, which would keep them all."""
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        monkeypatch.delattr("matplotlib.pyplot", raising=False)
        assert figures.to_png(figures.plot_light_curve(everything()), dpi=20).startswith(b"\x89PNG")


def position(product: Product, ra_deg: float, dec_deg: float, error: float, **facts: Any) -> Position:
    """Make a position that was found."""
    return Position(
        **{
            "product": product,
            "found": True,
            "ra_deg": ra_deg,
            "dec_deg": dec_deg,
            "err90_arcsec": error,
            "provenance": PROVENANCE,
            **facts,
        }
    )


def missing(product: Product) -> Position:
    """Make a position that was not found."""
    return Position(product=product, found=False, reason="No stars.", provenance=PROVENANCE)


def circles(figure: Figure) -> dict[str, Circle]:
    """Give the circles of a finder by what the legend calls them."""
    (axes,) = figure.axes
    return {str(patch.get_label()): patch for patch in axes.patches if isinstance(patch, Circle)}


class TestPositions:
    def test_circles(self) -> None:
        """Each position is a circle of its error, at its offset from the best one."""
        found = [
            position(Product.STANDARD_POS, 52.801, 60.001, 3.6, catalogue="2SXPS"),
            position(Product.ENHANCED_POS, 52.8, 60.0, 1.5),
        ]
        figure = figures.plot_positions(found)
        shown = circles(figure)
        assert set(shown) == {"standard: 3.6″, from 2SXPS", "enhanced: 1.5″"}
        best, other = shown["enhanced: 1.5″"], shown["standard: 3.6″, from 2SXPS"]
        assert best.center == pytest.approx((0, 0), abs=1e-9)
        assert (best.radius, other.radius) == (1.5, 3.6)
        # A thousandth of a degree is 3.6 arcsec, and half of that in right ascension at 60 degrees.
        assert other.center == pytest.approx((1.8, 3.6), abs=1e-3)
        (axes,) = figure.axes
        assert len(axes.get_legend().get_texts()) == 2

    def test_orientation(self) -> None:
        """North is up and east is left, marked as such, one arcsec being as long in each direction."""
        (axes,) = figures.plot_positions([position(Product.STANDARD_POS, 52.8, 43.9, 3.0)]).axes
        assert axes.get_xlim()[0] > 0 > axes.get_xlim()[1]
        assert axes.get_ylim()[0] < 0 < axes.get_ylim()[1]
        assert axes.get_aspect() == 1
        marks = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
        assert set(marks) == {"N", "E"}
        assert marks["E"][0] < marks["N"][0]
        assert marks["N"][1] > marks["E"][1]

    def test_all_in_sight(self) -> None:
        """Every circle is within the axes."""
        found = [
            position(Product.STANDARD_POS, 10.0, -5.0, 30.0),
            position(Product.ENHANCED_POS, 10.01, -5.01, 1.0),
        ]
        figure = figures.plot_positions(found)
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        for circle in circles(figure).values():
            for at in circle.center:
                assert low < at - circle.radius
                assert at + circle.radius < high

    def test_texts(self) -> None:
        """Title, axes and caption tell source, centre, units, what is not there and why, and the job."""
        figure = figures.plot_positions(
            [position(Product.STANDARD_POS, 52.8, -43.9043, 3.0), missing(Product.ASTROM_POS)]
        )
        (axes,) = figure.axes
        assert figure.get_suptitle() == "GK Per – Swift XRT positions"
        assert axes.get_title() == (
            "Centre (standard): RA 52.80000°, Dec −43.90430° (J2000)\n03h31m12.00s −43d54m15.48s"
        )
        assert axes.get_xlabel() == "Offset in right ascension (arcsec)"
        assert caption(figure) == (
            "Circles are of 90 % confidence. No astrometric position: No stars. Job 803 (GK Per), retrieved "
            "2026-11-24, it 1.0."
        )

    def test_over_the_edge(self) -> None:
        """Positions on both sides of right ascension 0 are next to one another."""
        figure = figures.plot_positions(
            [
                position(Product.STANDARD_POS, 0.0005, 0.0, 3.0),
                position(Product.ENHANCED_POS, 359.9995, 0.0, 1.0),
            ]
        )
        assert circles(figure)["standard: 3″"].center == pytest.approx((3.6, 0), abs=1e-6)

    def test_of_several_jobs(self) -> None:
        """Where positions are of several jobs, the legend tells of which."""
        other = PROVENANCE.model_copy(update={"job_id": 804})
        figure = figures.plot_positions(
            [
                position(Product.STANDARD_POS, 52.8, 43.9, 3.0),
                position(Product.STANDARD_POS, 52.8, 43.9, 2.0, provenance=other),
            ]
        )
        assert set(circles(figure)) == {"standard, job 803: 3″", "standard, job 804: 2″"}
        assert "Job 803" in caption(figure)
        assert "Job 804" in caption(figure)

    @pytest.mark.parametrize("given_", [[], [missing(Product.ENHANCED_POS)]])
    def test_none(self, given_: list[Position]) -> None:
        """Where there is no position, the figure says so."""
        (axes,) = figures.plot_positions(given_).axes
        assert [text.get_text() for text in axes.texts] == ["No position"]

    def test_too_far_apart(self) -> None:
        """Positions of different fields are not put on one finder."""
        with pytest.raises(ConfigurationError, match="more than a degree apart"):
            figures.plot_positions(
                [
                    position(Product.STANDARD_POS, 10.0, 0.0, 3.0),
                    position(Product.STANDARD_POS, 20.0, 0.0, 3.0),
                ]
            )

    @settings(max_examples=15)
    @given(
        st.floats(0, 359.999, allow_subnormal=False),
        st.floats(-90, 90, allow_subnormal=False),
        st.floats(0, 1000, allow_subnormal=False),
    )
    def test_anywhere(self, ra_deg: float, dec_deg: float, error: float) -> None:
        """There is a finder for every place in the sky, the poles too."""
        figure = figures.plot_positions([position(Product.STANDARD_POS, ra_deg, dec_deg, error)])
        assert len(circles(figure)) == 1


def gif(width: int = 6, height: int = 4) -> bytes:
    """Make a small picture."""
    sink = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(sink, "GIF")
    return sink.getvalue()


class TestPictures:
    def test_shown(self) -> None:
        """Each picture is shown below its name; one that cannot be read is said to be so in its place."""
        figure = figures.plot_pictures(
            {"a.gif": gif(), "b.gif": b"GIF89a", "c.gif": gif()}, title="Spectra", provenance=PROVENANCE
        )
        shown = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
        assert set(shown) == {"a", "b", "c"}
        assert shown["a"].images[0].get_array().shape == (4, 6, 3)
        assert [text.get_text() for text in shown["b"].texts] == ["This picture cannot be read"]
        assert figure.get_suptitle() == "GK Per – Spectra"
        assert caption(figure).startswith("Pictures made by the service. Job 803")

    @pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3)])
    def test_grid(self, count: int, rows: int, columns: int) -> None:
        """Pictures fill a grid that is not wider than it has to be."""
        figure = figures.plot_pictures({f"{n}.gif": gif() for n in range(count)}, title="")
        grid = figure.axes[0].get_gridspec()
        assert grid is not None
        assert (grid.nrows, grid.ncols) == (rows, columns)

    @pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
    def test_nothing_overlaps(self, count: int) -> None:
        """Pictures, their names, the title and the caption each have their place in the figure."""
        figure = figures.plot_pictures(
            {f"{n}_{'x' * 200}.gif": gif() for n in range(count)}, title="Images", provenance=PROVENANCE
        )
        figure.draw_without_rendering()
        names = [axes.title for axes in figure.axes if axes.get_title()]
        words = [text.get_window_extent() for text in (*figure.texts, *names)]
        panels = [axes.get_window_extent() for axes in figure.axes if axes.images]
        assert (len(words), len(panels)) == (2 + count, count)
        for one, other in itertools.combinations([*words, *panels], 2):
            assert not one.overlaps(other)
        for place in (*words, *panels):
            assert 0 <= place.x0 < place.x1 <= figure.bbox.x1
            assert 0 <= place.y0 < place.y1 <= figure.bbox.y1

    def test_none(self, tmp_path: Path) -> None:
        """Where there are no pictures, the figure says so."""
        (axes,) = figures.plot_spectrum_images(tmp_path).axes
        assert [text.get_text() for text in axes.texts] == ["No pictures"]

    @pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
    def test_bundle(self, tmp_path: Path, form: str) -> None:
        """The pictures in a bundle are read where they are, in each format."""
        files = {"spec": {"interval0pc_plot.gif": gif(), "interval0.tar.gz": b"no picture", "x.PNG": gif()}}
        (tmp_path / f"spec.{form}").write_bytes(bytes(archives.pack("USERPROD_1", files, form)))
        pictures = figures.read_pictures(tmp_path, Product.SPECTRUM)
        assert pictures == {"interval0pc_plot.gif": gif(), "x.PNG": gif()}
        assert os.listdir(tmp_path) == [f"spec.{form}"]

    def test_bundle_of_all(self, tmp_path: Path) -> None:
        """In a bundle of all products, only those of the product are taken."""
        files = {"spec": {"spectrum.gif": gif()}, "image": {"image1.gif": gif()}}
        (tmp_path / "all.zip").write_bytes(bytes(archives.pack("USERPROD_1", files, "zip")))
        assert list(figures.read_pictures(tmp_path, Product.IMAGE)) == ["image1.gif"]

    def test_unpacked(self, tmp_path: Path) -> None:
        """The folder that a bundle was unpacked to goes before the bundle, and links in it are not followed."""
        folder = tmp_path / "image" / "USERPROD_1" / "image"
        folder.mkdir(parents=True)
        (folder / "image1.gif").write_bytes(gif())
        (tmp_path / "elsewhere.gif").write_bytes(gif())
        (folder / "image2.gif").symlink_to(tmp_path / "elsewhere.gif")
        (tmp_path / "image.tar").write_bytes(b"not looked at")
        assert list(figures.read_pictures(tmp_path, Product.IMAGE)) == ["image1.gif"]

    def test_limit(self, tmp_path: Path) -> None:
        """No more are read than asked for."""
        files = {"spec": {f"{n}.gif": gif() for n in range(9)}}
        (tmp_path / "spec.tar").write_bytes(bytes(archives.pack("USERPROD_1", files, "tar")))
        assert len(figures.read_pictures(tmp_path, Product.SPECTRUM, limit=4)) == 4

    def test_damaged(self, tmp_path: Path) -> None:
        """A damaged bundle is named as such."""
        (tmp_path / "spec.tar.gz").write_bytes(b"no archive")
        with pytest.raises(ArchiveError, match=r"spec\.tar\.gz is incomplete or damaged"):
            figures.read_pictures(tmp_path, Product.SPECTRUM)

    @pytest.mark.parametrize("side", [b"\x00\x20", b"\xff\xff"])
    def test_bomb(self, side: bytes) -> None:
        """A picture that would fill the memory is said to be unreadable."""
        picture = gif()[:6] + 2 * side + gif()[10:]
        (axes,) = figures.plot_pictures({"bomb.gif": picture}, title="").axes
        assert [text.get_text() for text in axes.texts] == ["This picture cannot be read"]


class TestSave:
    @pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("SVG", b"<?xml")])
    def test_formats(self, tmp_path: Path, ending: str, start: bytes) -> None:
        """The ending names the format."""
        place = figures.save(figures.plot_light_curve(everything()), tmp_path / f"curve.{ending}")
        assert place.read_bytes().startswith(start)

    def test_png(self) -> None:
        """The bytes for an artifact are those of a picture in the figure's size."""
        figure = figures.plot_light_curve(everything())
        canvas, dpi = figure.canvas, figure.dpi
        with Image.open(io.BytesIO(figures.to_png(figure, dpi=50))) as image:
            assert image.size == (400, 350)
        assert (figure.canvas, figure.dpi) == (canvas, dpi)
        assert figure.get_size_inches().tolist() == [8, 7]

    def test_other_ending(self, tmp_path: Path) -> None:
        """An ending that is none of them is refused."""
        with pytest.raises(ConfigurationError, match=r"curve\.bmp ends with none of \.png, \.pdf, \.svg"):
            figures.save(figures.plot_pictures({}, title=""), tmp_path / "curve.bmp")

    def test_not_overwritten(self, tmp_path: Path) -> None:
        """A file that is there stays, unless it is said that it may be replaced."""
        place = tmp_path / "curve.png"
        place.write_text("mine")
        figure = figures.plot_pictures({}, title="")
        with pytest.raises(OutputError, match="is there already"):
            figures.save(figure, place)
        assert place.read_text() == "mine"
        figures.save(figure, place, overwrite=True)
        assert place.read_bytes().startswith(b"\x89PNG")

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where writing fails, what was there is as it was, and nothing is left beside it."""
        place = tmp_path / "curve.png"
        place.write_text("mine")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="is full"):
            figures.save(figures.plot_pictures({}, title=""), place, overwrite=True)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"curve.png": "mine"}


def displayed(result: object) -> dict[str, Any]:
    """Ask an object for what a notebook shows, as IPython does."""
    methods = {kind: getattr(result, f"_repr_{kind}_", None) for kind in ("html", "markdown", "svg", "png")}
    shown = {kind: method() for kind, method in methods.items() if callable(method)}
    return {kind: content for kind, content in shown.items() if content is not None}


class TestNotebook:
    @pytest.mark.parametrize("result", [everything(), missing(Product.ENHANCED_POS)])
    def test_png(self, result: LightCurve | Position) -> None:
        """A light curve and a position have a picture."""
        shown = displayed(result)
        assert list(shown) == ["png"]
        assert shown["png"].startswith(b"\x89PNG")

    def test_html(self) -> None:
        """Spectral fits and source lists have tables, and what is written there cannot do harm."""
        where = PROVENANCE.model_copy(update={"job_name": "<script>"})
        sources = SourceList(bands={"Total": ({"ra": 1.0, "name": "<b>"},), "Soft": ()}, provenance=where)
        shown = displayed(sources)["html"]
        assert shown.count("<table") == 1
        assert "<b>Sources, Soft</b></p><p>None</p>" in shown
        assert "&lt;b&gt;" in shown
        assert "<script>" not in shown
        assert "Spectral fits" in displayed(SpectralFits(provenance=where))["html"]


def test_of_the_service(xrt_service_factory: Callable[..., Emulator], request_: Any, tmp_path: Path) -> None:
    """What the service answers, and what it has put into its bundles, can be shown."""
    from prefect_xrt import XRTClient, archive  # noqa: PLC0415

    service = xrt_service_factory(speed=1e6)
    client = XRTClient(service.user_id, service.url)
    job = client.submit(request_)
    while not client.check_product_status(job).complete:
        service.advance(1000)
    upper, lower = figures.plot_light_curve(client.retrieve_light_curve(job)).axes
    assert {"WT", "PC", "PC upper limits"} == set(drawn(upper))
    assert set(drawn(lower)) == {"WT", "PC"}
    archive.download(client, job, Product.SPECTRUM, tmp_path)
    figure = figures.plot_spectrum_images(tmp_path)
    assert {axes.get_title() for axes in figure.axes} == {"interval0wt_plot", "interval0pc_plot"}
    assert all(axes.images for axes in figure.axes)


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "pandas", "astropy", "matplotlib", "PIL", "pyarrow"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from datetime import UTC, datetime
from prefect_xrt import Product, figures
from prefect_xrt.errors import ConfigurationError
from prefect_xrt.results import LightCurve, Position, Provenance, SourceList, SpectralFits
where = Provenance(job_id=1, retrieved_at=datetime.now(UTC), sha256="0" * 64)
light_curve = LightCurve(curves={}, t0_met_s=None, binning=None, time_system="MJD", provenance=where)
position = Position(product=Product.STANDARD_POS, found=False, reason="x", provenance=where)
for draw in (
    lambda: figures.plot_light_curve(light_curve),
    lambda: figures.plot_positions([position]),
    lambda: figures.plot_pictures({}, title=""),
):
    try:
        draw()
    except ConfigurationError as error:
        print(error)
fits, sources = SpectralFits(provenance=where), SourceList(bands={"Total": ()}, provenance=where)
pictures = light_curve._repr_png_(), position._repr_png_()
print(*pictures, fits._repr_html_(), sources._repr_html_())
"""


def test_not_installed() -> None:
    """Without the extra, every figure says what to install, and a notebook falls back to the text."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    *told, notebook = done.stdout.splitlines()
    assert len(told) == 3
    assert all("pip install prefect-xrt[science]" in line for line in told)
    assert notebook == "None None None None"
