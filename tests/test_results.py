"""Hold the results to account: `results`, `answers`, `tables`, `result_files` and `rebin`.

Each call is made against the embedded service, and what it gives is compared value by value with what the
official client makes of the same job.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_xrt import answers, results, tables
from prefect_xrt.client import Which, XRTClient
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline
from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    DeadlineError,
    FailedLooksError,
    JobNotFoundError,
    OutputError,
    ProductsError,
    RefusedError,
    ResultFileError,
    SubmitUncertainError,
)
from prefect_xrt.pacing import Pacing
from prefect_xrt.protocol import Job
from prefect_xrt.rebin import finish_rebin, rebin_light_curve, wait_for_rebin
from prefect_xrt.request import (
    LightCurve as Binning,
)
from prefect_xrt.request import PositionOptions, Product, ProductRequest, SourceDetection, Spectrum
from prefect_xrt.results import (
    MET_SINCE_T0,
    MJD,
    Curve,
    LightCurve,
    ModeFits,
    ModelFit,
    Position,
    Provenance,
    Result,
    SourceList,
    SpectralFits,
    SpectrumFits,
    Statistic,
    Value,
    read_result,
    write,
)

np = pytest.importorskip("numpy")

READY = Timeline.of((4,))
TYPES = ("ecsv", "fits", "parquet")
JOB = Job(
    id=801,
    url="http://127.0.0.1/USERPROD_801",
    name="η Car",
    products=tuple(Product),
    parameters={"name": "η Car", "poserr": 1, "models": ["apec"], "galactic": None},
)
WHERE = Provenance(
    job_id=801,
    job_name="η Car",
    request=JOB.parameters,
    service_api_version="1.12",
    retrieved_at=datetime(2024, 5, 1, 12, 30, 0, 123456, tzinfo=UTC),
    sha256="0" * 64,
)


def request_for(**changes: Any) -> ProductRequest:
    """Ask for everything that gives data."""
    return ProductRequest(
        **{
            "name": "GRB 200416A",
            "targets": ["00966554"],
            "t0_met_s": 608713541.952,
            "ra_deg": 335.6985,
            "dec_deg": -7.5179,
            "centroid": True,
            "position_error_arcmin": 1,
            "use_sxps": True,
            "light_curve": Binning(binning="obsid"),
            "spectrum": Spectrum(redshift=0.5, models=("powerlaw", "apec"), time_slicing="obsid"),
            "standard_position": True,
            "enhanced_position": True,
            "astrometric_position": True,
            "source_detection": SourceDetection(which_data="all", bands="all"),
            **changes,
        }
    )


Built = tuple[Emulator, XRTClient, Job]


@pytest.fixture
def build() -> Iterator[Callable[..., Built]]:
    """Start a service whose clock only advances by hand, and let it finish a job at once."""
    with contextlib.ExitStack() as stack:

        def start(request: ProductRequest | None = None, **scenario: Any) -> Built:
            played = Scenario(**{"default": READY, **scenario})
            service = stack.enter_context(Emulator(played, clock=lambda: 0.0))
            client = stack.enter_context(
                XRTClient(service.user_id, service.url, attempts=1, sleep=lambda _: None)
            )
            return service, client, client.submit(request or request_for())

        yield start


def calls(service: Emulator, endpoint: str) -> list[Mapping[str, object]]:
    """Give what was sent to an endpoint."""
    return [call.body or {} for call in service.calls(endpoint)]


class TestPosition:
    @pytest.mark.parametrize("product", results.POSITION_PRODUCTS)
    def test_found(self, build: Callable[..., Built], product: Product) -> None:
        """A position comes as numbers, with its catalogue where it has one."""
        _, client, job = build()
        position = client.retrieve_position(job, product)
        assert (position.product, position.found, position.reason) == (product, True, None)
        assert position.ra_deg == pytest.approx(335.6985, abs=0.001)
        assert position.dec_deg == pytest.approx(-7.5179, abs=0.001)
        assert position.err90_arcsec is not None
        assert 1 < position.err90_arcsec < 5
        assert position.catalogue == (None if product is Product.ENHANCED_POS else "2SXPS")

    def test_by_name(self, build: Callable[..., Built]) -> None:
        """The product may be given by the service's name; the standard position is what is meant by default."""
        _, client, job = build()
        assert client.retrieve_position(job, "EnhancedPos").product is Product.ENHANCED_POS
        assert client.retrieve_position(job).product is Product.STANDARD_POS

    @pytest.mark.parametrize("short", ["psf", "enh", "xastrom"])
    def test_none(self, build: Callable[..., Built], short: str) -> None:
        """That a product is complete and has no position is an answer, with a reason."""
        _, client, job = build(no_position=(short,))
        product = dict(zip(("psf", "enh", "xastrom"), results.POSITION_PRODUCTS, strict=True))[short]
        position = client.retrieve_position(job, product)
        assert (position.found, position.ra_deg, position.dec_deg) == (False, None, None)
        assert "none could be determined" in str(position.reason)
        assert math.isnan(position.to_table()["ra_deg"][0].value)
        with pytest.raises(ConfigurationError, match="There is no"):
            position.to_skycoord()

    def test_its_own_reason(self) -> None:
        """Where the service says why there is none, that is the reason."""
        position = answers.decode_position(
            {"GotPos": "0", "Reason": "Too faint"}, Product.STANDARD_POS, WHERE
        )
        assert (position.found, position.reason) == (False, "Too faint")

    def test_other_product(self, build: Callable[..., Built]) -> None:
        """What is no position, or not the job's, is told without asking the service."""
        service, client, job = build(request_for(enhanced_position=None))
        with pytest.raises(ConfigurationError, match="LightCurve is not a position"):
            client.retrieve_position(job, Product.LIGHT_CURVE)
        with pytest.raises(ConfigurationError, match="does not build EnhancedPos"):
            client.retrieve_position(job, Product.ENHANCED_POS)
        assert calls(service, "enh_pos") == []

    def test_skycoord(self, build: Callable[..., Built]) -> None:
        """It becomes a coordinate of astropy's without a change."""
        _, client, job = build()
        position = client.retrieve_position(job)
        coordinate = position.to_skycoord()
        assert (coordinate.ra.deg, coordinate.dec.deg) == (position.ra_deg, position.dec_deg)

    @pytest.mark.parametrize(
        "answer",
        [
            {},
            {"GotPos": None},
            {"GotPos": "perhaps"},
            {"GotPos": 1, "RA": "335.1", "Dec": "-7.5"},
            {"GotPos": 1, "RA": "335.1", "Dec": "south", "Err90": "3"},
            {"GotPos": 1, "RA": True, "Dec": "-7.5", "Err90": "3"},
            {"GotPos": 1, "RA": "nan", "Dec": "-7.5", "Err90": "3"},
            {"GotPos": 1, "RA": "3_5", "Dec": "-7.5", "Err90": "3"},
            {"GotPos": 1, "RA": "1", "Dec": "-97.5", "Err90": "3"},
            {"GotPos": 1, "RA": "361", "Dec": "-7.5", "Err90": "3"},
            {"GotPos": 1, "RA": "1", "Dec": "-7.5", "Err90": "-1"},
        ],
        ids=str,
    )
    def test_broken(self, answer: dict[str, Any]) -> None:
        """An answer that gives no position where it should is an error, never half a position."""
        with pytest.raises(AnswerError):
            answers.decode_position(answer, Product.STANDARD_POS, WHERE)

    def test_half_a_position(self) -> None:
        """Nobody can build a position that is found and has no place, or the other way round."""
        with pytest.raises(ValueError, match="coordinates"):
            Position(product=Product.STANDARD_POS, found=True, provenance=WHERE)
        with pytest.raises(ValueError, match="coordinates"):
            Position(product=Product.STANDARD_POS, found=False, ra_deg=1, provenance=WHERE)


class TestLightCurve:
    @pytest.mark.parametrize(
        ("systematics", "unreliable", "sent"),
        [
            ("with", "without", ("no", "no")),
            ("without", "with", ("yes", "yes")),
            ("both", "both", ("both", "both")),
        ],
    )
    def test_versions(
        self,
        build: Callable[..., Built],
        systematics: Which,
        unreliable: Which,
        sent: tuple[str, str],
    ) -> None:
        """What is wanted is asked for in the service's words, and each dataset says what it is."""
        service, client, job = build()
        curves = client.retrieve_light_curve(job, systematics=systematics, unreliable=unreliable).curves
        (body,) = calls(service, "light_curve")
        assert (body["nosys"], body["incbad"]) == sent
        wanted = {"with": {True}, "without": {False}, "both": {True, False}}
        assert {curve.systematics for curve in curves.values() if curve.mode == "WT"} == wanted[systematics]
        assert {curve.unreliable for curve in curves.values()} == wanted[unreliable]
        assert not any(curve.systematics for curve in curves.values() if curve.mode == "PC")

    def test_wrong_version(self, build: Callable[..., Built]) -> None:
        """The service's own words are not ours: what is neither with nor without is refused before asking."""
        service, client, job = build()
        with pytest.raises(ConfigurationError, match="'with', 'without' or 'both'"):
            client.retrieve_light_curve(job, systematics=cast(Which, "yes"))
        assert calls(service, "light_curve") == []

    def test_datasets(self, build: Callable[..., Built]) -> None:
        """Every dataset tells its mode, band and columns; upper limits are no rates."""
        _, client, job = build()
        curve = client.retrieve_light_curve(job)
        facts = {name: (c.mode, c.band, c.upper_limits) for name, c in curve.curves.items()}
        assert facts == {
            "WT": ("WT", "total", False),
            "WTHard": ("WT", "hard", False),
            "WTSoft": ("WT", "soft", False),
            "WTHR": ("WT", "hardness ratio", False),
            "PC": ("PC", "total", False),
            "PCHard": ("PC", "hard", False),
            "PCSoft": ("PC", "soft", False),
            "PCHR": ("PC", "hardness ratio", False),
            "PCUL": ("PC", "total", True),
        }
        assert list(curve["PC"].columns)[:6] == ["Time", "TimePos", "TimeNeg", "Rate", "RatePos", "RateNeg"]
        assert list(curve["PCHR"].columns) == ["Time", "TimePos", "TimeNeg", "HR", "HRErr"]
        assert not {"Rate", "RatePos", "RateNeg", "ObsID"} & curve["PCUL"].columns.keys()
        assert (curve["PCUL"]["UpperLimit"] > 0).all()
        assert math.isinf(curve["PCUL"]["SNR"][0])
        assert (curve.t0_met_s, curve.binning, curve.time_system) == (
            608713541.952,
            "Observation",
            MET_SINCE_T0,
        )
        with pytest.raises(ConfigurationError, match="no dataset 'XX'"):
            curve["XX"]

    def test_observations(self, build: Callable[..., Built]) -> None:
        """Observation IDs have their 11 digits back; where there are none, there are none."""
        _, client, job = build()
        curve = client.retrieve_light_curve(job)
        assert curve["PC"].obs_ids == tuple(f"00966554{number:03d}" for number in range(7))
        assert curve["PCHR"].obs_ids is None

    def test_units(self, build: Callable[..., Built]) -> None:
        """Tables have units, texts and provenance."""
        from astropy import units  # noqa: PLC0415 - takes a second

        _, client, job = build()
        curve = client.retrieve_light_curve(job)
        table = curve.to_table("PC")
        assert (table["Time"].unit, table["Rate"].unit) == (units.s, units.ct / units.s)
        assert (table["Rate"].value == curve["PC"]["Rate"]).all()
        assert list(table["ObsID"][:1]) == ["00966554000"]
        assert table.meta["provenance"]["job_id"] == job.id
        assert (table.meta["time_system"], table.meta["mode"]) == (MET_SINCE_T0, "PC")
        assert table.colnames == curve["PC"].to_table().colnames

    def test_frames(self, build: Callable[..., Built]) -> None:
        """A dataset is a frame, and all of them are one, each row telling which it is from."""
        _, client, job = build()
        curve = client.retrieve_light_curve(job)
        frame = curve["WT"].to_frame()
        assert frame["ObsID"].tolist() == list(curve["WT"].obs_ids or ())
        assert frame.attrs["units"]["Rate"] == "ct / s"
        whole = curve.to_frame()
        assert whole["dataset"].unique().tolist() == list(curve.curves)
        assert len(whole) == sum(len(part) for part in curve.curves.values())
        limits = whole[whole["dataset"] == "PCUL"]
        assert limits["Rate"].isna().all()
        assert limits["UpperLimit"].notna().all()

    def test_met(self, build: Callable[..., Built]) -> None:
        """Seconds since T0 become differences of time, never dates."""
        _, client, job = build()
        curve = client.retrieve_light_curve(job)
        series = curve.to_time_series("PC")
        assert type(series.time).__name__ == "TimeDelta"
        assert series.time.to_value("sec") == pytest.approx(curve["PC"]["Time"], rel=1e-14)
        assert series.meta["time_system"] == MET_SINCE_T0
        with pytest.raises(ConfigurationError, match="no scale"):
            curve.to_time_series("PC", mjd_scale="utc")

    def test_mjd(self, build: Callable[..., Built]) -> None:
        """MJD are days, and become dates in the scale that the caller names, as the answer names none."""
        _, client, job = build(request_for(light_curve=Binning(binning="obsid", time_format="m")))
        curve = client.retrieve_light_curve(job)
        assert (curve.time_system, curve["PC"].units["Time"], curve["PC"].units["Exposure"]) == (
            MJD,
            "d",
            "s",
        )
        with pytest.raises(ConfigurationError, match="it is UTC: mjd_scale='utc'"):
            curve.to_time_series("PC")
        series = curve.to_time_series("PC", mjd_scale="tt")
        assert (series.time.mjd == curve["PC"]["Time"]).all()

    def test_unknown_system(self) -> None:
        """A system that is not known here keeps its name, has no unit, and becomes no date."""
        curve = decode(answer_of({"TimeFormat": "TDB"}))
        assert (curve.time_system, curve["PC"].units["Time"]) == ("TDB", "")
        with pytest.raises(ConfigurationError, match="is not known here"):
            curve.to_time_series("PC", mjd_scale="tdb")

    def test_frozen(self, build: Callable[..., Built]) -> None:
        """Nothing of it can be changed, not even after a way between processes."""
        _, client, job = build()
        curve = client.retrieve_light_curve(job)
        for version in (curve, pickle.loads(pickle.dumps(curve)), copy.deepcopy(curve)):  # noqa: S301 - made here
            assert version == curve
            with pytest.raises(ValueError, match="read-only"):
                version["PC"]["Rate"][0] = 1
            with pytest.raises(TypeError, match="never changes"):
                version.curves["PC"] = version["WT"]
            with pytest.raises(FrozenInstanceError):
                version.binning = "other"

    def test_comparison(self) -> None:
        """Two curves are the same if every number is, and a gap is a gap."""
        curve = decode(answer_of())["PC"]
        other = {**curve.columns, "Rate": curve["Rate"] + 1e-12}
        gap = {**curve.columns, "Rate": np.array([math.nan, 2.0])}
        assert replace(curve, columns=gap) == replace(curve, columns=dict(gap))
        assert curve != replace(curve, columns=other)
        assert curve != replace(curve, columns=dict(reversed(curve.columns.items())))
        assert curve != "PC"

    def test_ragged(self) -> None:
        """Nobody can build a curve whose columns differ in length."""
        curve = decode(answer_of())["PC"]
        with pytest.raises(ValueError, match="not all of one length"):
            replace(curve, columns={**curve.columns, "Rate": np.array([1.0])})

    def test_none(self) -> None:
        """A job without a light curve is an ordinary answer, and so are datasets without bins."""
        assert decode({"OK": 1, "NOLC": 1}).curves == {}
        empty = decode(answer_of(data=[]))
        assert (len(empty["PC"]), list(empty["PC"].columns)) == (0, COLUMNS)
        assert len(empty.to_frame()) == len(empty.to_table("PC")) == 0
        assert len(decode({"OK": 1, "NOLC": 1}).to_frame()) == 0

    def test_gaps(self) -> None:
        """What is null, empty or NaN is a gap where it stands, and moves nothing."""
        rows = [["1", "2", "-3", None, "5", "6"], ["1", "2", "-3", "NaN", "", "-inf"]]
        curve = decode(answer_of(data=rows))["PC"]
        assert np.isnan(curve["Rate"]).all()
        assert curve["RatePos"].tolist()[:1] == [5.0]
        assert math.isnan(curve["RatePos"][1])
        assert curve["RateNeg"].tolist() == [6.0, -math.inf]

    def test_older_names(self) -> None:
        """Columns in the older spelling get the present one, and limits called rates become limits."""
        columns = ["Time", "T_+ve", "T_-ve", "Rate", "Ratepos", "Rateneg"]
        curve = decode(answer_of(columns=columns))
        assert list(curve["PC"].columns) == COLUMNS
        limits = decode(answer_of(name="PCUL", columns=columns, data=[["1", "2", "-3", "4", "0", "0"]]))
        assert list(limits["PCUL"].columns) == ["Time", "TimePos", "TimeNeg", "UpperLimit"]

    def test_numbers(self) -> None:
        """Numbers that come as numbers are read as well as texts."""
        curve = decode(answer_of(data=[[1, 2.5, -3, 4, "5", 6]]))["PC"]
        assert [column[0] for column in curve.columns.values()] == [1, 2.5, -3, 4, 5, 6]

    @pytest.mark.parametrize(
        ("cell", "expected"),
        [("::ObsID=966554000", "00966554000"), ("00966554000", "00966554000"), (966554000.0, "00966554000")],
    )
    def test_spellings_of_observations(self, cell: object, expected: str) -> None:
        """An observation's ID is the same however it is spelt, and a gap stays one."""
        rows = [["1", "2", "-3", "4", "5", "6", given] for given in (cell, None)]
        curve = decode(answer_of(columns=[*COLUMNS, "ObsID"], data=rows))["PC"]
        assert curve.obs_ids == (expected, None)

    def test_urls(self) -> None:
        """A column of addresses is one of texts."""
        rows = [["1", "2", "-3", "4", "5", "6", "https://example.org/1"]]
        curve = decode(answer_of(columns=[*COLUMNS, "URL"], data=rows))["PC"]
        assert curve.row_urls == ("https://example.org/1",)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"Datasets": None}, "does not list the datasets"),
            ({"Datasets": "PC"}, "does not list the datasets"),
            ({"Datasets": ["PC", "PC"]}, "two of one name"),
            ({"Datasets": ["PC", "WT"]}, "names WTData of WT, but does not hold it"),
            ({"TimeFormat": None}, "TimeFormat"),
            ({"T0": "yesterday"}, 'T0 of the light curve is "yesterday"'),
        ],
        ids=str,
    )
    def test_broken_answer(self, change: dict[str, Any], message: str) -> None:
        """An answer that does not hold what it names, or counts time from nowhere, is an error."""
        with pytest.raises(AnswerError, match=message):
            decode(answer_of(change))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"columns": None}, "does not list the columns of PC"),
            ({"columns": ["Time", "TimePos", "TimeNeg", "Rate", "RatePos"]}, "Row 1 of PC"),
            ({"columns": ["Time", "TimePos", "TimeNeg", "Rate", "RatePos", "Rate"]}, "two of one name"),
            ({"columns": ["Time", "TimePos", "TimeNeg", "Rate", "RatePos", "Ratepos"]}, "two of one name"),
            ({"columns": ["Time", "TimePos", "TimeNeg", "a", "b", "c"]}, "lack Rate"),
            ({"columns": ["a", "TimePos", "TimeNeg", "Rate", "b", "c"]}, "lack Time"),
            ({"data": None}, "are null, not rows"),
            ({"data": "none"}, "not rows"),
            ({"data": "\0rows 7\0"}, "not rows"),
            ({"data": {"0": ["1"] * 6}}, "not rows"),
            ({"data": ["1", "2"]}, "Row 1 of PC"),
            ({"data": [["1"] * 6, ["1"] * 5]}, "Row 2 of PC"),
            ({"data": [["1"] * 6, ["1"] * 7]}, "Row 2 of PC"),
            ({"data": [["1"] * 6, ["1"] * 3, ["1"] * 9]}, "Row 2 of PC"),
            ({"data": [["1"] * 5, ["1"] * 7]}, "Row 1 of PC"),
            ({"data": [["1", "1", "1", "1,1", "1", "1"]]}, "Rate in row 1 of PC is"),
            ({"data": [["1", "1", "1", "1 1", "1", "1"]]}, "Rate in row 1 of PC is"),
            ({"data": [["1", "1", "1", "faint", "1", "1"]]}, 'Rate in row 1 of PC is "faint"'),
            ({"data": [["1"] * 6, ["1", "1", "1", "1", "1", "1_0"]]}, "RateNeg in row 2 of PC"),
            ({"data": [["1", "1", "1", True, "1", "1"]]}, "Rate in row 1 of PC is true"),
            ({"data": [["1", "1", "1", ["1"], "1", "1"]]}, "Rate in row 1 of PC"),
            ({"data": [["1", "1", "1", "0x1F", "1", "1"]]}, "Rate in row 1 of PC"),
            ({"data": [["1", "1", "1", "٣", "1", "1"]]}, "Rate in row 1 of PC"),
            ({"data": [["1", "1", "1", "::ObsID=5", "1", "1"]]}, "Rate in row 1 of PC"),
            ({"data": [["1", "1", "1", "@5", "1", "1"]]}, "Rate in row 1 of PC"),
            ({"data": [[None, "1", "1", "1", "1", "1"]]}, "Not every bin of PC has a time"),
            ({"data": [["inf", "1", "1", "1", "1", "1"]]}, "Not every bin of PC has a time"),
        ],
        ids=str,
    )
    def test_broken_dataset(self, change: dict[str, Any], message: str) -> None:
        """Missing columns, ragged rows and texts in columns of numbers are errors, never a shifted column."""
        data = answer_of()
        data["PCData"] |= change
        with pytest.raises(AnswerError, match=message):
            decode(data)

    @pytest.mark.parametrize("obs_id", ["::ObsID=x", "1.5", "-1", "123456789012", "nan", True])
    def test_broken_observation(self, obs_id: object) -> None:
        """What is no ID of an observation is not made one."""
        rows = [["1", "2", "-3", "4", "5", "6", obs_id]] * 2
        with pytest.raises(AnswerError, match="ObsID in PC"):
            decode(answer_of(columns=[*COLUMNS, "ObsID"], data=rows))

    def test_broken_over_the_wire(self, build: Callable[..., Built]) -> None:
        """A broken answer of the service is an error of the call."""
        broken = {"light_curve": {"PCData": {"columns": COLUMNS, "data": [["1"]]}}}
        _, client, job = build(extra_answers=broken)
        with pytest.raises(AnswerError, match="Row 1 of PC"):
            client.retrieve_light_curve(job)


COLUMNS = ["Time", "TimePos", "TimeNeg", "Rate", "RatePos", "RateNeg"]
ROWS = [["1", "2", "-3", "4", "5", "-6"], ["7", "8", "-9", "10", "11", "-12"]]


def answer_of(
    change: dict[str, Any] | None = None,
    *,
    name: str = "PC",
    columns: list[str] = COLUMNS,
    data: Any = ROWS,
) -> dict[str, Any]:
    """Make an answer with one dataset."""
    answer: dict[str, Any] = {
        "OK": 1,
        "Datasets": [name],
        "TimeFormat": "MET",
        "T0": "12.5",
        "Binning": "Time",
    }
    return answer | {f"{name}Data": {"columns": columns, "data": data}} | (change or {})


def decode(answer: dict[str, Any], **style: Any) -> LightCurve:
    """Read an answer from its bytes, as the client does."""
    return answers.decode_light_curve(answers.cut(json.dumps(answer, **style).encode()), WHERE)


def decode_slowly(answer: dict[str, Any]) -> LightCurve:
    """Read an answer value by value."""
    return answers.decode_light_curve(answers.Cut(answer, {}), WHERE)


NUMBERS = st.one_of(
    st.floats(allow_nan=False).map(repr),
    st.floats(-1e6, 1e6).map(lambda value: f"{value:.3f}"),
    st.floats(-1, 1).map(lambda value: f"{value:+.14e}"),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["nan", "NaN", "inf", "-inf", "1.", ".5", "+1", "007", "1e400", "-0"]),
)
ODD = st.one_of(
    NUMBERS, st.sampled_from(["", " 1", "1 ", "e", "1e", "--1", "1,2", None, 5, 1.5, "]]", '"', "\\"])
)
FINITE = st.floats(-1e9, 1e9).map(repr)


class TestReadingAtOnce:
    """What is read at once is what is read value by value."""

    @given(
        rows=st.lists(st.tuples(FINITE, *[NUMBERS] * 5).map(list), max_size=5),
        style=st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 1}]),
    )
    def test_numbers(self, rows: list[list[str]], style: dict[str, Any]) -> None:
        """Numbers are the same to the last bit, whatever the spaces between them."""
        answer = answer_of(data=rows)
        assert decode(answer, **style) == decode_slowly(answer)

    @given(rows=st.lists(st.lists(ODD, min_size=5, max_size=7), max_size=3))
    def test_odd_rows(self, rows: list[list[Any]]) -> None:
        """What is odd is read alike, or is the same error."""
        answer = answer_of(data=rows)
        assert outcome(decode, answer) == outcome(decode_slowly, answer)

    @given(
        ids=st.lists(st.one_of(st.integers(0, 10**11 - 1), st.none(), st.just("x")), max_size=4),
        place=st.integers(0, 6),
        mark=st.sampled_from(["::ObsID=", ""]),
    )
    def test_observations(self, ids: list[Any], place: int, mark: str) -> None:
        """Observations are the same, wherever their column is."""
        columns, rows = list(COLUMNS), []
        columns.insert(place, "ObsID")
        for number in ids:
            rows.append(["1", "2", "-3", "4", "5", "-6"])
            rows[-1].insert(place, f"{mark}{number}" if number is not None else cast(str, None))
        answer = answer_of(columns=columns, data=rows)
        assert outcome(decode, answer) == outcome(decode_slowly, answer)

    @given(rows=st.lists(st.tuples(FINITE, *[NUMBERS] * 5).map(list), max_size=3), place=st.integers(0, 3))
    def test_checksum(self, rows: list[list[str]], place: int) -> None:
        """The checksum is that of the canonical JSON of the whole answer, however it was read."""
        answer = answer_of({"Note": f'"data":[[{place}]] \0rows 0\0', "WTData": {"data": rows}}, data=rows)
        body = json.dumps(answer, indent=None if place else 2).encode()
        canonical = json.dumps(answer, sort_keys=True, separators=(",", ":")).encode()
        assert (
            hashlib.sha256(canonical).hexdigest() == answers.cut(body).sha256() == answers.sha256_of(answer)
        )

    def test_it_is_used(self) -> None:
        """Ordinary rows are in fact read at once."""
        cut = answers.cut(json.dumps(answer_of()).encode())
        ((place, rows),) = cut.rows.items()
        assert cut.answer["PCData"] == {"columns": COLUMNS, "data": place}
        assert rows.numbers.shape == (6, 2)

    def test_more_than_fits_value_by_value(self) -> None:
        """A light curve of 100,000 bins has more values than an answer may have otherwise."""
        rows = [["1", "2", "-3", "4", "5", "6", "7", "8", "9", "10", "11"]] * 100_000
        columns = [*COLUMNS, *"abcde"]
        assert len(decode(answer_of(columns=columns, data=rows))["PC"]) == 100_000

    def test_other_encoding(self) -> None:
        """An answer in UTF-16 is read as well."""
        body = json.dumps(answer_of()).encode("utf-16")
        assert answers.decode_light_curve(answers.cut(body), WHERE) == decode(answer_of())

    def test_address(self) -> None:
        """The registered address is in nothing that an answer becomes."""
        answer = answer_of({"Binning": "by demo@example.org", "T0": "demo@example.org"})
        with pytest.raises(AnswerError) as caught:
            answers.decode_light_curve(
                answers.cut(json.dumps(answer).encode(), user_id="demo@example.org"), WHERE
            )
        assert "demo@example.org" not in str(caught.value)

    @pytest.mark.parametrize("length", [10, 60, 150, 200])
    def test_broken_off(self, length: int) -> None:
        """An answer that breaks off anywhere is one that breaks off."""
        with pytest.raises(AnswerError, match="only a part"):
            answers.cut(json.dumps(answer_of()).encode()[:length])


def outcome(read: Callable[[dict[str, Any]], LightCurve], answer: dict[str, Any]) -> LightCurve | str:
    """Give what reading gives, or the message of its error."""
    try:
        return read(answer)
    except AnswerError as error:
        return str(error)


class TestSpectralFits:
    def test_fits(self, build: Callable[..., Built]) -> None:
        """Parameters, errors, units, fluxes, statistics and files are all there."""
        _, client, job = build()
        fits = client.retrieve_spectral_fits(job)
        assert list(fits.spectra) == [f"Obs_00966554{number:03d}" for number in range(8)]
        assert (fits.t0_met_s, fits.delta_statistic) == (608713541.952, 2.706)
        assert fits.galactic_nh is not None
        spectrum = fits.spectra["Obs_00966554000"]
        assert (spectrum.start_s, spectrum.stop_s) == (100, 3100)
        assert spectrum.data_file_url == f"{job.url}/spec/Obs_00966554000.tar.gz"
        assert list(spectrum.modes) == ["WT", "PC"]
        mode = spectrum.modes["PC"]
        assert mode.exposure_s is not None
        assert list(mode.models) == ["PowerLaw", "APEC"]
        fit = mode.models["APEC"]
        assert list(fit.parameters) == ["GalacticNH", "NH", "Redshift_abs", "kT"]
        kt, nh = fit.parameters["kT"], fit.parameters["NH"]
        assert (kt.unit, nh.unit, fit.parameters["Redshift_abs"].unit) == ("keV", "cm-2", "")
        assert kt.positive_error == pytest.approx(0.05 * kt.value)
        assert kt.negative_error == pytest.approx(-0.05 * kt.value)
        assert fit.parameters["Redshift_abs"] == Value(value=0.5)
        assert [(name, value.unit) for name, value in fit.fluxes.items()] == [
            ("ObsFlux", "erg cm-2 s-1"),
            ("UnabsFlux", "erg cm-2 s-1"),
        ]
        assert (fit.statistic and fit.statistic.name, fit.dof) == ("Cstat", 430)
        assert fit.test_statistic
        assert fit.test_statistic.name == "FitChi"
        assert fit.image_url == f"{job.url}/spec/Obs_00966554000pc_apec_plot.gif"

    def test_no_fit(self, build: Callable[..., Built]) -> None:
        """A model that could not be fitted says so, and the rest of its spectrum is there."""
        _, client, job = build()
        last = client.retrieve_spectral_fits(job).spectra["Obs_00966554007"]
        assert (last.fitted, last.modes["PC"].fitted) == (False, False)
        assert last.modes["PC"].exposure_s is not None
        assert last.modes["PC"].models["PowerLaw"] == ModelFit(fitted=False)

    def test_not_asked_for(self, build: Callable[..., Built]) -> None:
        """Spectra that were not to be fitted are there without a fit."""
        _, client, job = build(request_for(spectrum=Spectrum(do_not_fit=True)))
        fits = client.retrieve_spectral_fits(job)
        mode = fits.spectra["interval0"].modes["WT"]
        assert (mode.models, mode.fitted, mode.exposure_s is not None) == ({}, False, True)
        assert fits.to_table()["fitted"].tolist() == ["no", "no"]

    def test_table(self, build: Callable[..., Built]) -> None:
        """The table has a row per spectrum, mode and model, with gaps where a fit has no such parameter."""
        _, client, job = build()
        fits = client.retrieve_spectral_fits(job)
        table = fits.to_table()
        assert len(table) == 2 * 9
        row = table[(table["mode"] == "PC") & (table["model"] == "APEC") & (table["fitted"] == "yes")][0]
        fit = fits.spectra["Obs_00966554000"].modes["PC"].models["APEC"]
        assert row["kTNeg"].value == fit.parameters["kT"].negative_error
        assert row["ObsFlux"].unit.to_string() == "erg / (s cm2)"
        assert math.isnan(row["Gamma"])
        assert table["fitted"][-1] == "no"
        assert table.meta["provenance"]["sha256"] == fits.provenance.sha256

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rnames": None}, "names of the spectra"),
            ({"rnames": ["other"]}, "names other of the answer, but does not hold it"),
            ({"T0": "x"}, "T0 of the spectra"),
            ({"a": None}, "names a of the answer"),
            ({"a": {"Modes": "WT"}}, "modes of a"),
            ({"a": {"Modes": ["WT"]}}, "names WT of a"),
            ({"a": {"Modes": ["WT"], "WT": {"Models": ["APEC"]}}}, "names APEC of a, WT"),
            ({"a": {"Modes": ["WT"], "WT": {"Models": 1}}}, "models of a, WT"),
            ({"a": {"Modes": [], "Start": "early"}}, 'Start of a is "early"'),
            (
                {"a": {"Modes": ["WT"], "WT": {"Models": ["APEC"], "APEC": {"NH": "thick"}}}},
                'NH of a, WT, APEC is "thick"',
            ),
            (
                {"a": {"Modes": ["WT"], "WT": {"Models": ["APEC"], "APEC": {"NH": 1, "NHPos": "x"}}}},
                'NHPos of a, WT, APEC is "x"',
            ),
            (
                {"a": {"Modes": ["WT"], "WT": {"Models": ["APEC"], "APEC": {"Z": "x", "ZPos": 1}}}},
                "Z of a, WT, APEC",
            ),
            (
                {"a": {"Modes": ["WT"], "WT": {"Models": ["APEC"], "APEC": {"Cstat": True}}}},
                "Cstat of a, WT, APEC is true",
            ),
        ],
        ids=str,
    )
    def test_broken(self, change: dict[str, Any], message: str) -> None:
        """An answer that does not hold what it names, or has a text for a number, is an error."""
        answer: dict[str, Any] = {"rnames": ["a"], "T0": 1, "a": {"Modes": []}}
        with pytest.raises(AnswerError, match=message):
            answers.decode_spectral_fits(answer | change, WHERE)

    def test_gaps(self) -> None:
        """What is null, missing or an empty object of PHP's is a gap; what is not a number is a remark."""
        models = {
            "APEC": {"NH": None, "NHPos": 1, "kT": "2", "Note": "poor", "New": 7},
            "B": [],
            "C": {"NOFIT": 1},
        }
        mode = {"Models": list(models), **models}
        answer = {"rnames": ["a", "b"], "a": {"Modes": ["PC", "WT"], "PC": mode, "WT": {"NOFIT": 1}}, "b": []}
        fits = answers.decode_spectral_fits(answer, WHERE)
        pc = fits.spectra["a"].modes["PC"]
        assert pc.models["APEC"].parameters == {
            "kT": Value(value=2, unit="keV"),
            "New": Value(value=7),
        }
        assert pc.models["APEC"].remarks == {"Note": "poor"}
        assert (pc.models["B"].fitted, pc.models["C"].fitted) == (False, False)
        assert fits.spectra["a"].modes["WT"] == ModeFits()
        assert fits.spectra["b"] == SpectrumFits()
        assert fits.to_table()["fitted"].tolist() == ["yes", "no", "no", "no", "no"]

    @pytest.mark.parametrize(
        ("fitted", "expected"),
        [
            ((True, None, False), True),
            ((False, None), None),
            ((None,), None),
            ((False, False), False),
            ((), False),
        ],
    )
    def test_known(self, fitted: tuple[bool | None, ...], expected: bool | None) -> None:
        """A mode and a spectrum are fitted if a model is; if none is and one cannot be told, neither can they."""
        models = {str(number): ModelFit(fitted=value) for number, value in enumerate(fitted)}
        mode = ModeFits(models=models)
        assert mode.fitted is expected
        assert SpectrumFits(modes={"PC": mode}).fitted is expected


class TestSourceList:
    def test_sources(self, build: Callable[..., Built]) -> None:
        """The sources of every band have numbers where they are numbers, with units."""
        _, client, job = build()
        found = client.retrieve_source_list(job)
        assert {band: len(sources) for band, sources in found.bands.items()} == {
            "Total": 6,
            "Soft": 3,
            "Medium": 3,
            "Hard": 3,
        }
        first = found.bands["Total"][0]
        assert first["sno"] == 1
        assert isinstance(first["sno"], int)
        assert isinstance(first["ra"], float)
        assert (found.units["err90"], found.units["ra"], found.units["sno"]) == ("arcsec", "deg", "")
        table = found.to_table("Soft")
        assert table["ra"].unit.to_string() == "deg"
        assert table["sno"].tolist() == [1, 2, 3]
        with pytest.raises(ConfigurationError, match="No sources were looked for in 'X'"):
            found.to_table("X")

    def test_kinds(self) -> None:
        """A column is of one kind: numbers with a gap are numbers, and a text makes it one of texts."""
        rows = [
            {"ra": "1", "dec": "2", "n": "1", "m": "3", "name": "7", "big": "9" * 16},
            {"ra": 1.5, "dec": None, "n": "2", "m": None, "name": "a", "big": "1"},
        ]
        assert answers.make_sources("Total", cast(Any, rows)) == (
            {"ra": 1.0, "dec": 2.0, "n": 1, "m": 3.0, "name": "7", "big": 1e16},
            {"ra": 1.5, "dec": None, "n": 2, "m": None, "name": "a", "big": 1.0},
        )

    def test_missing_column(self) -> None:
        """A source that lacks a column has a gap there, and its other values stay where they are."""
        rows = [{"ra": "1", "dec": "2", "C": "5"}, {"dec": "4", "ra": "3", "l": "nan"}]
        assert answers.make_sources("Total", cast(Any, rows)) == (
            {"ra": 1, "dec": 2, "C": 5.0, "l": None},
            {"ra": 3, "dec": 4, "C": None, "l": None},
        )

    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ({}, "no list of sources"),
            ({"Total": None}, "The sources of Total are null"),
            ({"Total": {"0": {}}}, "The sources of Total are"),
            ({"Total": ["1"]}, "Source 1 of Total is not a source"),
            ({"Total": [{"ra": ["1"], "dec": "2"}]}, "Source 1 of Total is not a source"),
            ({"Total": [{"ra": "1"}]}, "The sources of Total have no dec"),
            ({"Total": [{"ra": "1", "dec": "2"}, {"ra": "x", "dec": "2"}]}, 'ra of source 2 of Total is "x"'),
            ({"Total": [{"ra": "1", "dec": True}]}, "dec of source 1 of Total is true"),
        ],
        ids=str,
    )
    def test_broken(self, answer: dict[str, Any], message: str) -> None:
        """What is no list of sources, or has a text for a number, is an error."""
        with pytest.raises(AnswerError, match=message):
            answers.decode_source_list(answer, WHERE)

    def test_none_found(self) -> None:
        """A band without sources is an ordinary answer."""
        found = answers.decode_source_list({"OK": 1, "Total": []}, WHERE)
        assert found.bands == {"Total": ()}
        assert len(found.to_table("Total")) == 0

    def test_uneven(self) -> None:
        """Nobody can build a list whose sources differ in their columns, or a column of two kinds."""
        with pytest.raises(ValueError, match="same columns"):
            SourceList(bands={"Total": ({"a": 1}, {"b": 1})}, provenance=WHERE)
        with pytest.raises(ValueError, match="numbers and texts"):
            SourceList(bands={"Total": ({"a": 1}, {"a": "1"})}, provenance=WHERE)


class TestEveryCall:
    CALLS: Mapping[str, tuple[str, Callable[[XRTClient, Job], Result]]] = {
        "LightCurve": ("light_curve", lambda client, job: client.retrieve_light_curve(job)),
        "Spectrum": ("spectral_fits", lambda client, job: client.retrieve_spectral_fits(job)),
        "SourceDet": ("source_list", lambda client, job: client.retrieve_source_list(job)),
        "StandardPos": ("psf_pos", lambda client, job: client.retrieve_position(job)),
    }

    @pytest.mark.parametrize("product", CALLS)
    def test_provenance(self, build: Callable[..., Built], product: str) -> None:
        """Every result knows its job, its parameters, the service's version, when, and the checksum."""
        service, client, job = build()
        endpoint, call = self.CALLS[product]
        before = datetime.now(UTC)
        where = call(client, job).provenance
        assert (where.job_id, where.job_name, where.source) == (job.id, "GRB 200416A", "service")
        assert where.request == job.parameters
        assert where.service_api_version == "1.12"
        assert before <= where.retrieved_at <= datetime.now(UTC)
        assert where.retrieved_at.utcoffset() == timedelta(0)
        (body,) = calls(service, endpoint)
        path = service.calls(endpoint)[0].path
        answer = requests.post(f"{service.origin}{path}", json=body, timeout=5).json()
        assert where.sha256 == answers.sha256_of(answer)
        assert call(client, job).provenance.sha256 == where.sha256
        assert service.user_id not in where.model_dump_json()
        assert str(where).startswith(f"job {job.id} (GRB 200416A), read 20")

    @pytest.mark.parametrize("product", sorted(set(CALLS) - {"StandardPos"}))
    def test_not_ready(self, build: Callable[..., Built], product: str) -> None:
        """What is not ready is refused by the service, and so is another's job."""
        _, client, job = build(default=Timeline.of((3,)))
        with pytest.raises(RefusedError, match="not complete"):
            self.CALLS[product][1](client, job)
        with pytest.raises(JobNotFoundError):
            self.CALLS[product][1](client, job.model_copy(update={"id": 7}))

    @pytest.mark.parametrize("product", CALLS)
    def test_not_asked_for(self, build: Callable[..., Built], product: str) -> None:
        """A product that the job does not build is told without asking the service."""
        service, client, job = build()
        others = tuple(other for other in job.products if other.value != product)
        with pytest.raises(ConfigurationError, match=f"does not build {product}"):
            self.CALLS[product][1](client, job.model_copy(update={"products": others}))
        assert calls(service, self.CALLS[product][0]) == []

    @pytest.mark.parametrize("product", CALLS)
    def test_trouble(self, build: Callable[..., Built], product: str) -> None:
        """Trouble on the way is repeated, as it is for every read."""
        service, _, job = build()
        endpoint, call = self.CALLS[product]
        expected = []
        with XRTClient(service.user_id, service.url, attempts=3, sleep=lambda _: None) as client:
            expected.append(call(client, job))
            service.add_fault(Fault(endpoint, "http-503", times=1))
            service.add_fault(Fault(endpoint, "truncated-json", times=1))
            again = call(client, job)
        assert again.provenance.sha256 == expected[0].provenance.sha256
        assert len(calls(service, endpoint)) == 4


class TestRebin:
    def test_whole(self, build: Callable[..., Built]) -> None:
        """A light curve is binned again, waited for by the sensor, and retrieved with its new parameters."""
        service, client, job = build()
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            service.advance(seconds)

        binning = Binning(binning="snapshot", dynamic=True, min_snr=2.5, time_format="m")
        curve = rebin_light_curve(
            client,
            job,
            binning,
            systematics="both",
            unreliable="with",
            timer=lambda: sum(waited),
            sleep=sleep,
            chance=lambda: 0.0,
        )
        assert curve.binning == "Snapshot"
        assert "WT_nosys_incbad" in curve.curves
        sent = calls(service, "rebin")
        assert sent[0] == {
            "APIFunc": "rebinLightCurve",
            "APIVersion": "1.0.5",
            "type": "UOB_LC",
            "objectID": job.id,
            "name": "GRB 200416A",
            "binMeth": "snapshot",
            "dynamic": 1,
            "minSNR": 2.5,
            "timeFormat": "m",
        }
        assert [body["APIFunc"] for body in sent[1:]] == [
            *["checkRebinStatus"] * (len(sent) - 2),
            "downloadLightCurve",
        ]
        assert len(waited) == len(sent) - 2
        where = curve.provenance
        assert (where.job_id, where.rebin_id) == (job.id, 1)
        assert where.request == {
            **job.parameters,
            **{name: sent[0][name] for name in ("binMeth", "dynamic")},
        } | {
            "minSNR": 2.5,
            "timeFormat": "m",
        }

    def test_address(self, build: Callable[..., Built]) -> None:
        """The interface for data is told no account, and lies below the origin of the service's address."""
        service, client, job = build()
        client.check_rebin_status(client.submit_rebin(job, Binning(binning="obsid")))
        assert {call.path for call in service.calls("rebin")} == {"/API/main.php"}
        assert not any("UserID" in body or service.user_id in str(body) for body in calls(service, "rebin"))

    def test_steps(self, build: Callable[..., Built]) -> None:
        """Each act can be done alone: submit, look, cancel, and retrieve once it is ready."""
        service, client, job = build()
        first = client.submit_rebin(job, Binning(binning="obsid"))
        assert client.check_rebin_status(first).code == 2
        with pytest.raises(RefusedError, match="not complete"):
            client.retrieve_rebinned_light_curve(first)
        assert client.cancel_rebin(first)
        assert client.check_rebin_status(first).code == -4
        second = client.submit_rebin(job, Binning(binning="obsid"))
        service.advance(100)
        assert not client.cancel_rebin(second)
        assert client.retrieve_rebinned_light_curve(second)["PC"].obs_ids
        with pytest.raises(RefusedError, match=r"No such rebin job \(404\)"):
            client.check_rebin_status(second.model_copy(update={"id": 99}))

    def test_needs_a_binning(self, build: Callable[..., Built]) -> None:
        """A binning that says nothing, or chooses observations, is told without asking."""
        service, client, job = build()
        with pytest.raises(ConfigurationError, match="how to bin"):
            client.submit_rebin(job, Binning())
        with pytest.raises(ConfigurationError, match="Observations"):
            client.submit_rebin(job, Binning(binning="obsid", observations=("00966554000",)))
        assert calls(service, "rebin") == []

    def test_lost_answer(self, build: Callable[..., Built]) -> None:
        """Where the answer was lost, it is not asked for once more unseen."""
        service, client, job = build()
        service.add_fault(Fault("rebin", "http-502-html", times=1))
        with pytest.raises(SubmitUncertainError, match="bin the light curve of job 801"):
            client.submit_rebin(job, Binning(binning="obsid"))
        assert len(calls(service, "rebin")) == 1

    def test_no_id(self, build: Callable[..., Built]) -> None:
        """A yes without an ID leaves open what happened."""
        _, client, job = build(extra_answers={"rebin": {"JobID": "soon"}})
        with pytest.raises(SubmitUncertainError, match="no JobID"):
            client.submit_rebin(job, Binning(binning="obsid"))

    def test_refused(self, build: Callable[..., Built]) -> None:
        """A refusal, which is spelt in another way here, is one."""
        _, client, job = build(extra_answers={"rebin": {"ERROR": 500, "ERRORTEXT": None}})
        with pytest.raises(RefusedError, match=r"gave no reason \(500\)"):
            client.submit_rebin(job, Binning(binning="obsid"))

    def test_failed(self, build: Callable[..., Built]) -> None:
        """A new binning that fails is an error with its last status."""
        service, client, job = build(rebin=Timeline.of((2, 5), (-1,)))
        with pytest.raises(ProductsError, match="LightCurve failed"):
            rebin_light_curve(client, job, Binning(binning="obsid"), sleep=service.advance)

    def test_deadline(self, build: Callable[..., Built]) -> None:
        """One that does not end in time goes on, and the error tells of it and not of the job how to wait again."""
        service, client, job = build(rebin=Timeline.of((2, 10**6), (4,)))
        clock = [0.0]

        def sleep(seconds: float) -> None:
            clock[0] += seconds

        def now() -> float:
            return clock[0]

        with pytest.raises(DeadlineError, match=r"the rebinning 1 of job 801.*deadline") as caught:
            rebin_light_curve(
                client, job, Binning(binning="obsid"), deadline_s=300, sleep=sleep, clock=now, timer=now
            )
        assert (caught.value.job, "attach" in str(caught.value)) == (job, False)
        assert "finish_rebin" in caught.value.__notes__[0]
        assert service.rebins == {1: 2}
        assert caught.value.outcome
        assert caught.value.outcome.pending == (Product.LIGHT_CURVE,)

    def test_silence(self, build: Callable[..., Built]) -> None:
        """A service that tells nothing for too long ends the wait."""
        service, client, job = build()
        rebin = client.submit_rebin(job, Binning(binning="obsid"))
        service.add_fault(Fault("rebin", "http-502-html", times=-1))
        with pytest.raises(FailedLooksError, match="too many looks"):
            wait_for_rebin(client, rebin, max_failed_looks=3, sleep=lambda _: None)

    def test_interrupted(self, build: Callable[..., Built]) -> None:
        """A wait that is interrupted cancels what nobody waits for any more."""
        service, client, job = build()

        def interrupt(_: float) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            rebin_light_curve(client, job, Binning(binning="obsid"), sleep=interrupt)
        assert calls(service, "rebin")[-1]["APIFunc"] == "cancelRebin"

    def test_restarted(self, build: Callable[..., Built]) -> None:
        """What ends a wait without cancelling it leaves the binning to be waited for again."""
        service, client, job = build()
        rebin = client.submit_rebin(job, Binning(binning="obsid"))

        def interrupt(_: float) -> None:
            raise SystemExit(143)

        with pytest.raises(SystemExit):
            finish_rebin(client, rebin, sleep=interrupt, cancelled_by=lambda _: False)
        assert finish_rebin(client, rebin, sleep=service.advance).curves
        assert "cancelRebin" not in [call["APIFunc"] for call in calls(service, "rebin")]


with warnings.catch_warnings():
    # The client's own imports warn, and warnings are errors while tests are collected.
    warnings.simplefilter("ignore")
    swifttools = pytest.importorskip("swifttools.ukssdc.xrt_prods", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore")
class TestAgainstTheOfficialClient:
    """The official client, redirected to the embedded service, retrieves the same job."""

    @pytest.fixture
    def pair(
        self, build: Callable[..., Built], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., tuple[Any, XRTClient, Job, Emulator]]:
        """Give the job to both."""
        send = requests.Session.send

        def start(**options: Any) -> tuple[Any, XRTClient, Job, Emulator]:
            service, client, job = build(**options)

            def redirected(
                session: requests.Session, request: requests.PreparedRequest, **arguments: Any
            ) -> requests.Response:
                request.url = str(request.url).replace("https://www.swift.ac.uk", service.origin)
                return send(session, request, **arguments)

            monkeypatch.setattr(requests.Session, "send", redirected)
            theirs = swifttools.XRTProductRequest(service.user_id, silent=True, useDeprecate=False)
            theirs.copyOldJob(job.id, becomeThis=True)
            return theirs, client, job, service

        return start

    @pytest.mark.parametrize("none", [(), ("psf", "enh", "xastrom")], ids=["found", "none"])
    def test_positions(self, pair: Callable[..., Any], none: tuple[str, ...]) -> None:
        """Positions agree, those that are none included."""
        theirs, client, job, _ = pair(no_position=none)
        for kind in ("Standard", "Enhanced", "Astrom"):
            expected = getattr(theirs, f"retrieve{kind}Pos")(returnData=True)
            ours = client.retrieve_position(job, f"{kind}Pos")
            assert ours.found == expected["GotPos"]
            if ours.found:
                assert ours.ra_deg == float(expected["RA"])
                assert ours.dec_deg == float(expected["Dec"])
                assert ours.err90_arcsec == float(expected["Err90"])
                assert ours.catalogue == expected.get("WhichSXPS")

    @pytest.mark.parametrize("time_format", ["s", "m"])
    @pytest.mark.parametrize("binning", ["obsid", "time"])
    def test_light_curves(self, pair: Callable[..., Any], binning: str, time_format: str) -> None:
        """Light curves agree in every dataset, column and value."""
        options = {"binning": binning, "time_format": time_format, "pc_bin_s": 10, "wt_bin_s": 1}
        theirs, client, job, _ = pair(request=request_for(light_curve=Binning(**options)))
        expected = theirs.retrieveLightCurve(nosys="both", incbad="both", returnData=True)
        ours = client.retrieve_light_curve(job, systematics="both", unreliable="both")
        self.same_curves(ours, expected)
        assert ours.time_system == {"MET": MET_SINCE_T0, "MJD": MJD}[expected["TimeFormat"]]

    @staticmethod
    def same_curves(ours: LightCurve, expected: dict[str, Any]) -> None:
        """Compare value by value."""
        assert (ours.t0_met_s, ours.binning) == (expected["T0"], expected["Binning"])
        assert list(ours.curves) == expected["Datasets"]
        for name, curve in ours.curves.items():
            frame = expected[name]
            dropped = {"RatePos", "RateNeg"} if curve.upper_limits else set()
            assert set(frame.columns) == {*curve.columns, *dropped, *(["ObsID"] if curve.obs_ids else [])}
            for column, values in curve.columns.items():
                assert frame[column].tolist() == values.tolist()
            assert not any(frame[column].any() for column in dropped)
            if curve.obs_ids:
                assert frame["ObsID"].tolist() == list(curve.obs_ids)
            assert curve.file_url == expected["URLs"][name]

    def test_spectral_fits(self, pair: Callable[..., Any]) -> None:
        """Fits agree in every number, and nothing that the official client has is missing."""
        theirs, client, job, _ = pair()
        expected = theirs.retrieveSpectralFits(returnData=True)
        ours = client.retrieve_spectral_fits(job)
        assert (ours.t0_met_s, ours.galactic_nh) == (expected["T0"], expected["GalNH_unfitted"])
        assert list(ours.spectra) == expected["rnames"]
        for name, spectrum in ours.spectra.items():
            of_spectrum = expected[name]
            assert (spectrum.start_s, spectrum.stop_s, spectrum.data_file_url, list(spectrum.modes)) == (
                of_spectrum["Start"],
                of_spectrum["Stop"],
                of_spectrum["DataFile"],
                of_spectrum["Modes"],
            )
            for mode, at in spectrum.modes.items():
                of_mode = of_spectrum[mode]
                assert (at.mean_time_s, at.exposure_s) == (of_mode["MeanTime"], of_mode["Exposure"])
                assert {model: flat(fit) for model, fit in at.models.items()} == {
                    model: of_mode[model] for model in of_mode["Models"]
                }

    def test_source_list(self, pair: Callable[..., Any]) -> None:
        """Sources agree in every value."""
        theirs, client, job, _ = pair()
        expected = theirs.retrieveSourceList(returnData=True)
        ours = client.retrieve_source_list(job)
        assert {band: list(map(dict, sources)) for band, sources in ours.bands.items()} == expected

    def test_rebinned(self, pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        """Each retrieves what the other has asked for, and both have the same."""
        theirs, client, job, service = pair()
        rebin = client.submit_rebin(job, Binning(binning="snapshot"))
        service.advance(100)
        theirs._rebinID = rebin.id
        assert theirs.checkRebinStatus() == {
            "statusCode": client.check_rebin_status(rebin).code,
            "statusText": "Complete",
        }
        options = {"saveData": False, "returnData": True, "nosys": "both", "incbad": "both"}
        expected = theirs.getRebinnedLightCurve(**options)
        ours = client.retrieve_rebinned_light_curve(rebin, systematics="both", unreliable="both")
        self.same_curves(ours, expected)


def flat(fit: ModelFit) -> dict[str, Any]:
    """Spell a fit as the service does."""
    if not fit.fitted:
        return {"NOFIT": 1}
    spelt: dict[str, Any] = {"Dof": fit.dof, "Image": fit.image_url}
    for name, value in {**fit.parameters, **fit.fluxes}.items():
        spelt |= {name: value.value, f"{name}Pos": value.positive_error, f"{name}Neg": value.negative_error}
    spelt |= {
        statistic.name: statistic.value for statistic in (fit.statistic, fit.test_statistic) if statistic
    }
    return {name: value for name, value in spelt.items() if value is not None}


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAMES = st.one_of(st.sampled_from(["WT", "PC", "Obs_00966554000", "interval0"]), TEXTS)
MAYBE_TEXT = st.none() | TEXTS
SOME = st.floats(allow_nan=False, allow_infinity=False)
MAYBE = st.none() | SOME
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | SOME | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=4,
)
PROVENANCES = st.builds(
    Provenance,
    job_id=st.none() | st.integers(0, 2**40),
    job_name=MAYBE_TEXT,
    request=st.dictionaries(TEXTS, JSON, max_size=3),
    rebin_id=st.none() | st.integers(0, 99),
    service_api_version=MAYBE_TEXT,
    retrieved_at=st.datetimes(datetime(2005, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - the time zone is given apart
    source=TEXTS,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
)
POSITIONS = st.one_of(
    st.builds(
        Position,
        product=st.sampled_from(results.POSITION_PRODUCTS),
        found=st.just(True),
        ra_deg=SOME,
        dec_deg=SOME,
        err90_arcsec=SOME,
        catalogue=MAYBE_TEXT,
        provenance=PROVENANCES,
    ),
    st.builds(
        Position,
        product=st.sampled_from(results.POSITION_PRODUCTS),
        found=st.just(False),
        reason=MAYBE_TEXT,
        provenance=PROVENANCES,
    ),
)


@st.composite
def curves(draw: st.DrawFn, name: str) -> Curve:
    """Make a dataset of any numbers, gaps and infinities included."""
    length = draw(st.integers(0, 4))
    numbers = st.lists(st.floats(), min_size=length, max_size=length).map(
        lambda values: np.array(values, float)
    )
    texts = st.lists(MAYBE_TEXT, min_size=length, max_size=length).map(tuple)
    others = st.sampled_from(["TimePos", "Rate", "rate", "dataset", "SNR", "a b", "é", "Sigma"])
    columns = ["Time", *draw(st.lists(others, unique=True, max_size=4))]
    return Curve(
        name=name,
        mode=draw(st.sampled_from(["WT", "PC", None])),
        band=draw(st.sampled_from(["total", "hard", "soft", "hardness ratio"])),
        upper_limits=draw(st.booleans()),
        systematics=draw(st.booleans()),
        unreliable=draw(st.booleans()),
        columns={column: draw(numbers) for column in columns},
        units={column: draw(st.sampled_from(["s", "d", "ct / s", "", "oddity"])) for column in columns},
        obs_ids=draw(st.none() | texts),
        row_urls=draw(st.none() | texts),
        file_url=draw(MAYBE_TEXT),
    )


@st.composite
def light_curves(draw: st.DrawFn) -> LightCurve:
    """Make a light curve of any datasets."""
    names = draw(st.lists(NAMES, unique=True, max_size=3))
    return LightCurve(
        curves={name: draw(curves(name)) for name in names},
        t0_met_s=draw(MAYBE),
        binning=draw(MAYBE_TEXT),
        time_system=draw(st.sampled_from([MET_SINCE_T0, MJD]) | TEXTS),
        provenance=draw(PROVENANCES),
    )


VALUES = st.dictionaries(
    st.sampled_from(["NH", "nh", "Gamma", "kT", "model", "dof", "NHPos"]) | TEXTS,
    st.builds(
        Value,
        value=SOME,
        positive_error=MAYBE,
        negative_error=MAYBE,
        unit=st.sampled_from(["", "cm-2", "keV", "oddity"]),
    ),
    max_size=3,
)
STATISTICS = st.none() | st.builds(Statistic, name=TEXTS, value=SOME)
MODEL_FITS = st.builds(
    ModelFit,
    fitted=st.none() | st.booleans(),
    parameters=VALUES,
    fluxes=VALUES,
    statistic=STATISTICS,
    test_statistic=STATISTICS,
    dof=MAYBE,
    image_url=MAYBE_TEXT,
    remarks=st.dictionaries(TEXTS, TEXTS, max_size=2),
)
MODE_FITS = st.builds(
    ModeFits, mean_time_s=MAYBE, exposure_s=MAYBE, models=st.dictionaries(NAMES, MODEL_FITS, max_size=2)
)
SPECTRA = st.builds(
    SpectrumFits,
    start_s=MAYBE,
    stop_s=MAYBE,
    data_file_url=MAYBE_TEXT,
    modes=st.dictionaries(NAMES, MODE_FITS, max_size=2),
)
SPECTRAL_FITS = st.builds(
    SpectralFits,
    t0_met_s=MAYBE,
    galactic_nh=MAYBE,
    delta_statistic=MAYBE,
    spectra=st.dictionaries(NAMES, SPECTRA, max_size=2),
    provenance=PROVENANCES,
)


@st.composite
def source_lists(draw: st.DrawFn) -> SourceList:
    """Make a list of sources with columns of every kind."""
    bands = {}
    for band in draw(st.lists(st.sampled_from(["Total", "Soft"]) | TEXTS, unique=True, max_size=3)):
        length = draw(st.integers(0, 3))
        kinds = st.sampled_from([st.integers(-(2**53), 2**53), MAYBE, MAYBE_TEXT])
        names = draw(st.lists(st.sampled_from(["ra", "RA", "band", "sno", "name"]), unique=True, max_size=4))
        columns = {
            name: draw(st.lists(draw(kinds), min_size=length, max_size=length)) if length else []
            for name in names
        }
        rows = zip(*columns.values(), strict=True)
        bands[band] = tuple(dict(zip(names, row, strict=True)) for row in rows)
    return SourceList(bands=bands, provenance=draw(PROVENANCES))


@pytest.mark.parametrize("ending", TYPES)
class TestFiles:
    ROUNDS = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])

    @staticmethod
    def check(result: Result, folder: Path, ending: str) -> None:
        """Write a result, and read the same."""
        path = write(result, folder / f"result.{ending}", overwrite=True)
        again = read_result(path)
        assert again == result
        assert again.provenance.model_dump() == result.provenance.model_dump()

    @ROUNDS
    @given(position=POSITIONS)
    def test_positions(self, tmp_path: Path, ending: str, position: Position) -> None:
        """No position loses anything in a file."""
        self.check(position, tmp_path, ending)

    @ROUNDS
    @given(curve=light_curves())
    def test_light_curves(self, tmp_path: Path, ending: str, curve: LightCurve) -> None:
        """No light curve loses anything in a file: no dataset, no gap, no bit of a number."""
        self.check(curve, tmp_path, ending)

    @ROUNDS
    @given(fits=SPECTRAL_FITS)
    def test_spectral_fits(self, tmp_path: Path, ending: str, fits: SpectralFits) -> None:
        """No fit loses anything in a file, and what was not fitted stays so."""
        self.check(fits, tmp_path, ending)

    @ROUNDS
    @given(found=source_lists())
    def test_source_lists(self, tmp_path: Path, ending: str, found: SourceList) -> None:
        """No list of sources loses anything in a file; whole numbers stay whole."""
        self.check(found, tmp_path, ending)
        again = cast(SourceList, read_result(tmp_path / f"result.{ending}"))
        for band, sources in found.bands.items():
            for mine, theirs in zip(sources, again.bands[band], strict=True):
                assert [type(value) for value in mine.values()] == [type(value) for value in theirs.values()]

    def test_real_ones(self, build: Callable[..., Built], tmp_path: Path, ending: str) -> None:
        """What the service answers comes back from a file as it was."""
        _, client, job = build(no_position=("xastrom",))
        retrieved: list[Result] = [
            *(client.retrieve_position(job, product) for product in results.POSITION_PRODUCTS),
            client.retrieve_light_curve(job, systematics="both", unreliable="both"),
            client.retrieve_spectral_fits(job),
            client.retrieve_source_list(job),
        ]
        for result in retrieved:
            self.check(result, tmp_path, ending)

    def test_kept(self, tmp_path: Path, ending: str) -> None:
        """A file that is there stays, unless it is to be overwritten; nothing else is left behind."""
        path = tmp_path / f"result.{ending}"
        path.write_text("mine")
        with pytest.raises(OutputError, match="is there already"):
            write(decode(answer_of()), path)
        assert path.read_text() == "mine"
        write(decode(answer_of()), path, overwrite=True)
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]

    def test_nowhere(self, tmp_path: Path, ending: str) -> None:
        """A folder that is not there is an error with a name."""
        with pytest.raises(OutputError):
            write(decode(answer_of()), tmp_path / "none" / f"result.{ending}")

    def test_foreign(self, tmp_path: Path, ending: str) -> None:
        """What is not such a file, is half of one or is not there is an error with a name."""
        path = tmp_path / f"result.{ending}"
        with pytest.raises(ResultFileError, match="is not a file"):
            read_result(path)
        whole = write(decode(answer_of()), path).read_bytes()
        for content in (b"", b"mine", whole[: len(whole) // 2], whole[:-100]):
            path.write_bytes(content)
            with pytest.raises(ResultFileError):
                read_result(path)

    def test_another_version(self, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of another version of the format is not guessed at."""
        monkeypatch.setattr("prefect_xrt.result_files._VERSION", 2)
        path = write(decode(answer_of()), tmp_path / f"result.{ending}")
        monkeypatch.undo()
        with pytest.raises(ResultFileError, match="another version"):
            read_result(path)


class TestFileFormats:
    """Others read the files without this package."""

    @pytest.fixture
    def curve(self) -> LightCurve:
        """Give a light curve of two datasets with different columns."""
        limits = {"columns": COLUMNS, "data": [["9", "1", "-1", "0.5", "0", "0"]]}
        return decode(answer_of({"Datasets": ["PC", "PCUL"], "PCULData": limits}))

    def test_ecsv(self, curve: LightCurve, tmp_path: Path) -> None:
        """Readers of astropy find one table with units, masked where a dataset has no such column."""
        from astropy.table import Table  # noqa: PLC0415 - takes a second

        table = Table.read(write(curve, tmp_path / "curve.ecsv"))
        assert table["dataset"].tolist() == ["PC", "PC", "PCUL"]
        assert table["Rate"].unit.to_string() == "ct / s"
        assert table["Rate"].mask.tolist() == [False, False, True]
        assert table["UpperLimit"].tolist() == [None, None, 0.5]
        assert "job 801" in table.meta["summary"]

    def test_fits(self, curve: LightCurve, tmp_path: Path) -> None:
        """FITS readers find a table per dataset, with units and headers that tell the job; it is valid."""
        from astropy.io import fits  # noqa: PLC0415 - takes a second

        with fits.open(write(curve, tmp_path / "curve.fits"), checksum=True) as hdus:
            hdus.verify("exception")
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "PC", "PCUL", "RESULT"]
            assert hdus["PC"].data["Rate"].tolist() == [4.0, 10.0]
            assert hdus["PC"].columns["Rate"].unit == "count s-1"
            assert (hdus[0].header["JOB_ID"], hdus[0].header["T0_MET"]) == (801, 12.5)
            assert "TIMESYS" not in hdus[0].header

    def test_fits_names(self, curve: LightCurve, tmp_path: Path) -> None:
        """Names that FITS readers do not take, or not apart, are spelt for them, and come back as they were."""
        from astropy.io import fits  # noqa: PLC0415 - takes a second

        columns = {**curve["PC"].columns, "a:b": np.array([1.0, 2.0]), "rate": np.array([3.0, 4.0])}
        odd = replace(curve["PC"], columns=columns, units={})
        whole = replace(curve, curves={"PC": odd})
        path = write(whole, tmp_path / "curve.fits")
        with fits.open(path) as hdus:
            assert hdus["PC"].columns.names[-2:] == ["a_b", "rate_"]
        assert list(cast(LightCurve, read_result(path))["PC"].columns)[-2:] == ["a:b", "rate"]

    def test_parquet(self, curve: LightCurve, tmp_path: Path) -> None:
        """Users of pandas find one frame, with null where a dataset has no such column."""
        import pandas as pd  # noqa: PLC0415 - takes a second

        frame = pd.read_parquet(write(curve, tmp_path / "curve.parquet"))
        assert frame["dataset"].tolist() == ["PC", "PC", "PCUL"]
        assert frame["Rate"].isna().tolist() == [False, False, True]

    @pytest.mark.parametrize("ending", TYPES)
    def test_fitted(self, tmp_path: Path, ending: str) -> None:
        """In every format it stands there as a word whether a model was fitted, also where it cannot be told."""
        import pandas as pd  # noqa: PLC0415 - takes a second
        from astropy.table import Table  # noqa: PLC0415

        models = {str(fitted): ModelFit(fitted=fitted) for fitted in (True, False, None)}
        spectra = {"a": SpectrumFits(modes={"PC": ModeFits(models=models)}), "b": SpectrumFits()}
        path = write(SpectralFits(spectra=spectra, provenance=WHERE), tmp_path / f"fits.{ending}")
        readers = {"ecsv": Table.read, "fits": partial(Table.read, hdu=1), "parquet": pd.read_parquet}
        read = readers[ending](path)["fitted"]
        assert read.astype(str).tolist() == ["yes", "no", "unknown", "no"]

    def test_changed(self, curve: LightCurve, tmp_path: Path) -> None:
        """A table from which a row was taken no longer fits what is said of it, and is refused."""
        path = write(curve, tmp_path / "curve.ecsv")
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
        with pytest.raises(ResultFileError, match="not the 1 rows"):
            read_result(path)

    def test_ending(self, curve: LightCurve, tmp_path: Path) -> None:
        """An ending that names no format is told before anything is written or read."""
        with pytest.raises(ConfigurationError, match="ends with none of"):
            write(curve, tmp_path / "curve.csv")
        with pytest.raises(ConfigurationError, match="ends with none of"):
            read_result(tmp_path / "curve")
        assert list(tmp_path.iterdir()) == []

    def test_unknown_result(self) -> None:
        """What is no result of ours is not made one."""
        parts = tables.to_sheets(decode(answer_of()))
        with pytest.raises(ValueError, match="no result called 'Image'"):
            tables.from_sheets(replace(parts, kind="Image"))


class TestTasks:
    def test_all(self, server: object, service: Callable[..., Emulator]) -> None:
        """Each act is a task of a pipeline, with results that go from one to the next."""
        from prefect import flow  # noqa: PLC0415 - takes seconds

        from prefect_xrt import (  # noqa: PLC0415
            rebin_light_curve,
            retrieve_light_curve,
            retrieve_position,
            retrieve_source_list,
            retrieve_spectral_fits,
            submit_request,
        )

        emulator = service(default=READY)

        @flow
        def pipeline() -> tuple[Any, ...]:
            job = submit_request(request_for(position=PositionOptions(radius_arcsec=20)))
            pacing = Pacing(floor_s=0.01, ceiling_s=0.01)
            return (
                retrieve_position(job, Product.ASTROM_POS),
                retrieve_light_curve(job, unreliable="both"),
                retrieve_spectral_fits(job),
                retrieve_source_list(job),
                rebin_light_curve(job, Binning(binning="time", pc_bin_s=5, wt_bin_s=5), pacing=pacing),
            )

        position, curve, fits, sources, rebinned = pipeline()
        assert position.product is Product.ASTROM_POS
        assert "PC_incbad" in curve.curves
        assert fits.spectra["Obs_00966554000"].fitted
        assert sources.bands["Total"]
        assert (rebinned.binning, rebinned.provenance.rebin_id) == ("Time", 1)
        assert len(calls(emulator, "light_curve")) == 1

    def test_binned_once(self, server: object, service: Callable[..., Emulator]) -> None:
        """A flow that is retried goes on with the binning that it has asked for."""
        from prefect import flow  # noqa: PLC0415 - takes seconds

        from prefect_xrt import rebin_light_curve, submit_request  # noqa: PLC0415

        emulator = service(default=READY, rebin=READY)
        attempts = []

        @flow(retries=1)
        def pipeline() -> LightCurve:
            job = submit_request(request_for())
            attempts.append(emulator.rebins)
            if not emulator.rebins:
                emulator.add_fault(Fault("rebin", "garbage", after=2, times=20))
            else:
                emulator.clear_faults()
            return rebin_light_curve(job, Binning(binning="obsid"))

        assert pipeline().provenance.rebin_id == 1
        assert (len(attempts), emulator.rebins) == (2, {1: 4})


def test_without_the_extra(build: Callable[..., Built]) -> None:
    """Without the extra, positions, fits and source lists work; the rest says what to install."""
    service, _, job = build()
    program = """
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("numpy", "astropy", "pandas", "pyarrow", "matplotlib"):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        sys.meta_path.insert(0, Missing())

        import pickle
        from pathlib import Path
        from prefect_xrt import Job, read_result
        from prefect_xrt.client import XRTClient
        from prefect_xrt.errors import ConfigurationError
        from prefect_xrt.results import write

        user, url, job = sys.argv[1:]
        job = Job.model_validate_json(job)
        with XRTClient(user, url) as client:
            position = client.retrieve_position(job)
            fits = client.retrieve_spectral_fits(job)
            sources = client.retrieve_source_list(job)
            assert position.found and fits.spectra and sources.bands["Total"][0]["sno"] == 1
            assert pickle.loads(pickle.dumps(fits)) == fits
            for act in (
                position.to_skycoord,
                position.to_table,
                fits.to_table,
                lambda: sources.to_table("Total"),
                lambda: client.retrieve_light_curve(job),
                lambda: write(position, Path("position.fits")),
                lambda: read_result(Path(__file__).with_suffix(".ecsv")),
            ):
                try:
                    act()
                except ConfigurationError as error:
                    assert "pip install prefect-xrt[science]" in str(error), error
                else:
                    raise AssertionError(act)
        assert not Path("position.fits").exists()
        print("done")
    """
    folder = Path(os.environ["XDG_STATE_HOME"])
    script = folder / "without.py"
    script.write_text(textwrap.dedent(program))
    script.with_suffix(".ecsv").write_text("x")
    done = subprocess.run(
        [sys.executable, script, service.user_id, service.url, job.model_dump_json()],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
