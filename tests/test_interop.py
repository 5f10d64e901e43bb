"""Hold `prefect_xrt.interop` to account, with the official client, unmodified, against the embedded service."""

from __future__ import annotations

import io
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
from astropy.io import fits, votable
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_xrt import Product, XRTClient, interop
from prefect_xrt.emulator import Emulator, Scenario, Timeline
from prefect_xrt.errors import AnswerError, ConfigurationError, RefusedError, RequestWarning
from prefect_xrt.protocol import Job
from prefect_xrt.results import (
    MET_SINCE_T0,
    MJD,
    Curve,
    LightCurve,
    ModeFits,
    ModelFit,
    Provenance,
    SpectralFits,
    SpectrumFits,
    Statistic,
    Value,
    write,
)

with warnings.catch_warnings():
    # The client's own imports warn, and warnings are errors while tests are collected.
    warnings.simplefilter("ignore")
    client = pytest.importorskip("swifttools.ukssdc.xrt_prods", exc_type=ImportError)

# The client warns of its own deprecations.
official = pytest.mark.filterwarnings("ignore")

FEW = settings(max_examples=40)
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
PROVENANCE = Provenance(job_id=None, retrieved_at=NOW, sha256="0" * 64)
JOB = Job(
    id=803,
    url="https://www.swift.ac.uk/user_objects/tprods/USERPROD_803",
    name="GK Per",
    products=(Product.LIGHT_CURVE, Product.STANDARD_POS),
    parameters={"name": "GK Per", "lc": 1, "dopsf": 1, "RA": 52.8, "Dec": 43.9, "binMeth": "counts"},
)


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Emulator]]:
    """Start a service that stands in for www.swift.ac.uk, with a clock that only advances by hand."""
    started: list[Emulator] = []
    send = requests.Session.send

    def redirected(
        session: requests.Session, request: requests.PreparedRequest, **options: Any
    ) -> requests.Response:
        assert request.url is not None
        request.url = request.url.replace("https://www.swift.ac.uk", started[-1].origin)
        return send(session, request, **options)

    def start(**scenario: Any) -> Emulator:
        service = Emulator(Scenario(default=Timeline.of((1, 1), (4,)), **scenario), clock=lambda: 0.0)
        service.start()
        started.append(service)
        return service

    monkeypatch.setattr(requests.Session, "send", redirected)
    yield start
    for service in started:
        service.stop()


def finished(service: Emulator, *, binning: str = "obsid", doNotFit: bool = False, **light_curve: Any) -> Any:
    """Let the official client build a light curve, spectra and an astrometric position."""
    request = client.XRTProductRequest(service.user_id, silent=True)
    request.setGlobalPars(name="GRB 200416A", getTargs=True, getT0=True, RA=335.6985, Dec=-7.5179)
    request.setGlobalPars(centroid=True, posErr=1, useSXPS=False)
    counts: dict[str, Any] = {"pcCounts": 20, "wtCounts": 30, "dynamic": True} if binning == "counts" else {}
    request.addLightCurve(binMeth=binning, **counts, **light_curve)
    request.addSpectrum(hasRedshift=False, timeslice="obsid", doNotFit=doNotFit)
    request.addAstromPos(useAllObs=True)
    assert request.submit() is True, request.submitError
    service.advance(300)
    return request


def assert_same(expected: Any, actual: Any) -> None:
    """Compare dictionaries of the official client, with the frames in them."""
    assert set(expected) == set(actual)
    for key, value in expected.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(value, actual[key])
        else:
            assert value == actual[key], key


def curve(name: str = "PC", *, limits: bool = False, **columns: Any) -> Curve:
    """Make a dataset; what is not given of its columns is made up."""
    values = {"Time": [100.0, 10.0], "TimePos": [2.0, 5.0], "TimeNeg": [-3.0, -1.0]}
    values |= {"UpperLimit": [0.5, 0.25]} if limits else {"Rate": [1.0, 4.0]}
    arrays = {key: np.array(cells, dtype="float64") for key, cells in (values | columns).items()}
    units = {key: "s" if key.startswith("Time") else "ct / s" for key in arrays}
    return Curve(
        name=name,
        mode=name[:2],
        band="total",
        upper_limits=limits,
        systematics=name.startswith("WT") and "nosys" not in name,
        unreliable="incbad" in name,
        columns=arrays,
        units=units,
    )


def light_curve(*curves: Curve, system: str = MET_SINCE_T0, t0: float | None = 1.5e8) -> LightCurve:
    """Put datasets together."""
    return LightCurve(
        curves={entry.name: entry for entry in curves},
        t0_met_s=t0,
        binning="Counts",
        time_system=system,
        provenance=PROVENANCE,
    )


NUMBERS = st.floats(width=64)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = ("WT", "PC", "PCUL", "WT_nosys", "PC_incbad", "PCUL_incbad")


@st.composite
def light_curves(draw: st.DrawFn) -> LightCurve:
    """Make light curves with gaps and infinities, with and without observations and addresses."""
    curves = []
    for name in draw(st.lists(st.sampled_from(NAMES), unique=True)):
        bins = draw(st.integers(0, 4))
        value = ("UpperLimit",) if "UL" in name else ("Rate", "RatePos", "RateNeg")
        columns = {
            label: draw(st.lists(FINITE if label == "Time" else NUMBERS, min_size=bins, max_size=bins))
            for label in ("Time", "TimePos", "TimeNeg", *value, "FracExp", "SNR")
        }
        ids = st.lists(st.from_regex(r"[0-9]{11}", fullmatch=True), min_size=bins, max_size=bins)
        made = curve(name, limits="UL" in name, **columns)
        curves.append(
            replace(
                made,
                columns={label: made.columns[label] for label in columns},
                units={
                    label: {"T": "s", "R": "ct / s", "U": "ct / s"}.get(label[0], "") for label in columns
                },
                obs_ids=draw(st.none() | ids.map(tuple)),
                file_url=draw(st.none() | st.just("https://www.swift.ac.uk/x.qdp")),
            )
        )
    return light_curve(*curves, t0=draw(st.none() | FINITE))


class TestLightCurveOfTheClient:
    @official
    @pytest.mark.parametrize("binning", ["counts", "obsid"])
    @pytest.mark.parametrize(("nosys", "incbad"), [("no", "no"), ("both", "both"), ("no", "yes")])
    def test_present(self, connect: Callable[..., Emulator], binning: str, nosys: str, incbad: str) -> None:
        """What the client retrieves becomes a light curve, and that the same dictionary, value by value."""
        request = finished(connect(), binning=binning)
        request.deprecate = False
        expected = request.retrieveLightCurve(nosys=nosys, incbad=incbad, returnData=True)
        read = interop.light_curve_from_dict(expected)
        assert_same(expected, interop.light_curve_to_dict(read))
        assert read.time_system == MET_SINCE_T0
        assert read["WT" if incbad != "yes" else "WT_incbad"].units["Rate"] == "ct / s"

    @official
    @pytest.mark.parametrize("incbad", ["no", "yes"])
    def test_older(
        self, connect: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch, incbad: str
    ) -> None:
        """The client's default names of columns and datasets are read and given just so.

        It gives the datasets their older names only the first time in a process.
        """
        monkeypatch.setattr(sys.modules[client.XRTProductRequest.__module__], "_localDepWarned", {})
        request = finished(connect())
        for old_keys in (True, False):
            expected = request.retrieveLightCurve(incbad=incbad, returnData=True)
            assert ("PC_incbad" in expected) == (incbad == "yes" and not old_keys)
            read = interop.light_curve_from_dict(expected)
            assert_same(expected, interop.light_curve_to_dict(read, old_columns=True, old_keys=old_keys))
            assert list(read.curves) == expected["Datasets"]

    @official
    def test_conventions_agree(self, connect: Callable[..., Emulator]) -> None:
        """Both conventions of the same light curve give the same, and upper limits have no errors in it."""
        request = finished(connect())
        old = interop.light_curve_from_dict(request.retrieveLightCurve(incbad="yes", returnData=True))
        request.deprecate = False
        new = interop.light_curve_from_dict(request.retrieveLightCurve(incbad="yes", returnData=True))
        assert new == replace(old, provenance=new.provenance)
        assert "Rate" not in new["PCUL_incbad"].columns
        assert new["PCUL_incbad"]["UpperLimit"] > 0

    @official
    def test_rebinned(self, connect: Callable[..., Emulator]) -> None:
        """A light curve that the client had binned again is read, in MJD as the one that it is made of."""
        service = connect()
        request = finished(service, timeFormat="m")
        request.rebinLightCurve(binMeth="snapshot")
        service.advance(20)
        data = request.getRebinnedLightCurve(returnData=True, saveData=False)
        read = interop.light_curve_from_dict(data)
        assert (read.time_system, read.binning) == (MJD, "Snapshot")
        assert read["PC_incbad"].units["Time"] == "d"
        again = interop.light_curve_to_dict(read)
        assert_same({name: data[name] for name in again}, again)

    @official
    def test_client_plots_it(self, connect: Callable[..., Emulator], tmp_path: Path) -> None:
        """The client's own plot takes what is given, in both conventions."""
        from swifttools.ukssdc import plotLightCurve  # noqa: PLC0415

        read = interop.light_curve_from_dict(finished(connect()).retrieveLightCurve(returnData=True))
        for old in (False, True):
            data = interop.light_curve_to_dict(read, old_columns=old, old_keys=old)
            place = tmp_path / f"{old}.png"
            plotLightCurve(data, whichCurves=["WT", "PC", "PCUL"], fileName=str(place), oldAPI=old)
            assert place.stat().st_size > 0


class TestLightCurve:
    @FEW
    @given(light_curves(), st.booleans())
    def test_round_trip(self, expected: LightCurve, old_columns: bool) -> None:
        """A light curve survives the dictionary, gaps and infinities and empty datasets too."""
        data = interop.light_curve_to_dict(expected, old_columns=old_columns)
        read = interop.light_curve_from_dict(data)
        assert replace(read, provenance=PROVENANCE) == expected

    def test_origin(self) -> None:
        """The job that is named is in the provenance, and the origin is swifttools."""
        data = interop.light_curve_to_dict(light_curve(curve()))
        where = interop.light_curve_from_dict(data, JOB).provenance
        assert (where.job_id, where.job_name, where.source) == (803, "GK Per", "swifttools")
        assert where.request == JOB.parameters
        assert len(where.sha256) == 64

    def test_content_is_told_apart(self) -> None:
        """Another value gives another checksum, and the same the same."""
        first, second = (
            interop.light_curve_from_dict(interop.light_curve_to_dict(light_curve(curve(Rate=[1.0, rate]))))
            for rate in (2.0, 3.0)
        )
        again = interop.light_curve_from_dict(interop.light_curve_to_dict(first))
        assert first.provenance.sha256 != second.provenance.sha256
        assert first.provenance.sha256 == again.provenance.sha256

    def test_no_older_names_for_two_kinds(self) -> None:
        """Two datasets that would have the same older name are refused, not lost."""
        both = light_curve(curve("WT"), curve("WT_nosys"))
        with pytest.raises(ConfigurationError, match="WT, WT_nosys cannot all have their older names"):
            interop.light_curve_to_dict(both, old_keys=True)

    def test_no_light_curve(self) -> None:
        """What the client gives where there is no light curve is an empty one."""
        assert len(interop.light_curve_from_dict({"NOLC": 1}).curves) == 0

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"Datasets": None}, "no list of names in 'Datasets'"),
            ({"Datasets": ["PC", "PC"]}, "two of one name"),
            ({"Datasets": ["PC", "WT"]}, "names the dataset WT, but does not hold it"),
            ({"Datasets": ["PC", "WT"], "WT": {"Time": [1.0]}}, "names the dataset WT, but does not hold it"),
            ({"TimeFormat": None}, "does not tell what its times are counted from"),
            ({"T0": "noon"}, "T0 is 'noon', not a number"),
            ({"PC": pd.DataFrame({"Time": [1.0], "Rate": [2.0]})}, "lack TimePos, TimeNeg"),
            ({"PC": pd.DataFrame([[1.0, 2.0]], columns=["Time", "Time"])}, "two of one name"),
        ],
    )
    def test_no_such_dictionary(self, change: dict[str, Any], told: str) -> None:
        """What is no such dictionary is refused with what is wrong with it."""
        data = interop.light_curve_to_dict(light_curve(curve())) | change
        with pytest.raises(AnswerError, match=told):
            interop.light_curve_from_dict(data)

    def test_text_among_numbers(self) -> None:
        """A text in a column of numbers is named with its place."""
        data = interop.light_curve_to_dict(light_curve(curve()))
        data["PC"] = data["PC"].astype(object)
        data["PC"].loc[1, "Rate"] = "many"
        with pytest.raises(AnswerError, match='Rate in row 2 of PC is "many", not a number'):
            interop.light_curve_from_dict(data)

    def test_error(self) -> None:
        """What the client gives instead of a result when the service refuses is a refusal here too."""
        for read in (interop.light_curve_from_dict, interop.spectral_fits_from_dict):
            with pytest.raises(RefusedError, match="the service's refusal: No such job"):
                read({"ERROR": True, "Reason": "No such job\n"})


VALUES = st.builds(Value, value=FINITE, positive_error=st.none() | FINITE, negative_error=st.none() | FINITE)


@st.composite
def model_fits(draw: st.DrawFn) -> ModelFit:
    """Make fits with and without what they may hold."""
    if not draw(st.booleans()):
        return ModelFit(fitted=False)
    names = {"NH": "cm-2", "GalacticNH": "cm-2", "Gamma": "", "kT": "keV", "Redshift_abs": ""}
    fluxes = {"ObsFlux": "erg cm-2 s-1", "UnabsFlux": "erg cm-2 s-1"}

    def some(of: dict[str, str]) -> dict[str, Value]:
        chosen = draw(st.lists(st.sampled_from(sorted(of)), unique=True))
        return {name: draw(VALUES).model_copy(update={"unit": of[name]}) for name in chosen}

    return ModelFit(
        # A fit without a single entry would be none.
        parameters=some(names) | {"NH": draw(VALUES).model_copy(update={"unit": "cm-2"})},
        fluxes=some(fluxes),
        statistic=draw(st.none() | st.builds(Statistic, name=st.just("Cstat"), value=FINITE)),
        test_statistic=draw(st.none() | st.builds(Statistic, name=st.just("FitChi"), value=FINITE)),
        dof=draw(st.none() | FINITE),
        image_url=draw(st.none() | st.just("https://www.swift.ac.uk/plot.gif")),
    )


def spectral_fits(models: st.SearchStrategy[dict[str, ModelFit]]) -> st.SearchStrategy[SpectralFits]:
    """Make spectra with those models."""
    some = st.none() | FINITE
    mode = st.builds(ModeFits, mean_time_s=some, exposure_s=some, models=models)
    modes = st.dictionaries(st.sampled_from(["WT", "PC"]), mode)
    spectrum = st.builds(SpectrumFits, start_s=some, stop_s=some, modes=modes)
    names = st.sampled_from(["interval0", "Obs_00966554000", "late"])
    return st.builds(
        SpectralFits,
        t0_met_s=some,
        galactic_nh=some,
        delta_statistic=some,
        spectra=st.dictionaries(names, spectrum),
        provenance=st.just(PROVENANCE),
    )


def without_origin(fits_: SpectralFits) -> SpectralFits:
    """Put all that was read at the same place, so that the rest can be compared."""
    return fits_.model_copy(update={"provenance": PROVENANCE})


class TestSpectralFits:
    @official
    @pytest.mark.parametrize("unfitted", [False, True])
    def test_of_the_client(self, connect: Callable[..., Emulator], unfitted: bool) -> None:
        """What the client retrieves becomes fits, and those the same dictionary, in both conventions."""
        request = finished(connect(), doNotFit=unfitted)
        old = request.retrieveSpectralFits(returnData=True)
        request.deprecate = False
        new = request.retrieveSpectralFits(returnData=True)
        read = interop.spectral_fits_from_dict(new)
        assert interop.spectral_fits_to_dict(read) == new
        assert interop.spectral_fits_to_dict(read, old=True) == old
        again = interop.spectral_fits_from_dict(old)
        assert interop.spectral_fits_to_dict(again, old=True) == old

    @official
    def test_conventions_agree(self, connect: Callable[..., Emulator]) -> None:
        """The older dictionary gives the same fits but for what it does not hold."""
        request = finished(connect())
        old = interop.spectral_fits_from_dict(request.retrieveSpectralFits(returnData=True))
        request.deprecate = False
        new = interop.spectral_fits_from_dict(request.retrieveSpectralFits(returnData=True))
        assert (old.delta_statistic, new.delta_statistic) == (None, 2.706)
        assert (old.t0_met_s, old.galactic_nh) == (new.t0_met_s, new.galactic_nh)
        assert list(old.spectra) == list(new.spectra)
        for name, spectrum in new.spectra.items():
            for mode, at in spectrum.modes.items():
                assert old.spectra[name].modes[mode].models == at.models
        assert not new.spectra[list(new.spectra)[-1]].fitted

    @FEW
    @given(spectral_fits(st.dictionaries(st.sampled_from(["PowerLaw", "APEC"]), model_fits(), max_size=2)))
    def test_round_trip(self, expected: SpectralFits) -> None:
        """Fits survive the present dictionary."""
        read = interop.spectral_fits_from_dict(interop.spectral_fits_to_dict(expected))
        assert without_origin(read) == expected

    @FEW
    @given(spectral_fits(st.dictionaries(st.just("PowerLaw"), model_fits(), min_size=1)))
    def test_older_round_trip(self, expected: SpectralFits) -> None:
        """The older dictionary holds power laws, but not when and for how long a failed one was observed."""
        read = interop.spectral_fits_from_dict(interop.spectral_fits_to_dict(expected, old=True))

        def held(spectrum: SpectrumFits) -> SpectrumFits:
            failed = {
                mode: ModeFits(models=at.models) for mode, at in spectrum.modes.items() if not at.fitted
            }
            return spectrum.model_copy(update={"modes": dict(spectrum.modes) | failed})

        spectra = {name: held(spectrum) for name, spectrum in expected.spectra.items()}
        assert without_origin(read) == expected.model_copy(
            update={"spectra": spectra, "delta_statistic": None}
        )

    @pytest.mark.parametrize("old", [False, True])
    def test_not_told(self, old: bool) -> None:
        """A fit of which an archive does not tell whether there is one is none: whoever reads it needs numbers."""
        spectra = {"a": SpectrumFits(modes={"PC": ModeFits(models={"PowerLaw": ModelFit(fitted=None)})})}
        given = SpectralFits(spectra=spectra, provenance=PROVENANCE)
        read = interop.spectral_fits_from_dict(interop.spectral_fits_to_dict(given, old=old))
        assert read.spectra["a"].modes["PC"].models["PowerLaw"] == ModelFit(fitted=False)

    def test_unknown_parameter(self) -> None:
        """A parameter that is not known here keeps its value and errors in both conventions."""
        fit = ModelFit(parameters={"Beta": Value(value=2.0, positive_error=0.5, negative_error=-0.25)})
        spectra = {"a": SpectrumFits(modes={"PC": ModeFits(models={"PowerLaw": fit})})}
        expected = SpectralFits(spectra=spectra, provenance=PROVENANCE)
        for old in (False, True):
            read = interop.spectral_fits_from_dict(interop.spectral_fits_to_dict(expected, old=old))
            assert without_origin(read) == expected

    @pytest.mark.parametrize(
        ("data", "told"),
        [
            ({}, "no list of names in 'rnames'"),
            ({"rnames": ["a"]}, "names a, but does not hold it"),
            ({"rnames": ["a"], "GalNH": 1.0, "a": {"Modes": ["PC"], "PC": 5}}, "names PC"),
            ({"rnames": ["a"], "GalNH": 1.0, "a": {"Modes": "PC"}}, "no list of names in 'Modes'"),
            ({"rnames": ["a"], "GalNH_unfitted": "much", "a": {}}, "GalNH_unfitted"),
        ],
    )
    def test_no_such_dictionary(self, data: dict[str, Any], told: str) -> None:
        """What is no such dictionary is refused with what is wrong with it."""
        with pytest.raises(AnswerError, match=told):
            interop.spectral_fits_from_dict(data)


class TestJob:
    @official
    @pytest.mark.parametrize("quirks", [False, True])
    def test_submitted(self, connect: Callable[..., Emulator], quirks: bool) -> None:
        """A submitted request is the job that attaching by its ID gives, products that came along included."""
        service = connect(job_pars_quirks=quirks)
        request = finished(service)
        expected = XRTClient(service.user_id, service.url).attach(801)
        assert interop.job_from_request(request) == expected
        assert Product.STANDARD_POS in expected.products

    @official
    def test_old_job(self, connect: Callable[..., Emulator]) -> None:
        """A request that became an old job is that job; the client keeps the parameters it knows."""
        service = connect()
        finished(service)
        request = client.XRTProductRequest(service.user_id)
        request.copyOldJob(801, becomeThis=True)
        expected = XRTClient(service.user_id, service.url).attach(801)
        job = interop.job_from_request(request)
        assert job.model_copy(update={"parameters": {}}) == expected.model_copy(update={"parameters": {}})
        assert job.parameters["targ"] == "00966554"
        assert not {"UserID", "api_name", "getTargs"} & job.parameters.keys()
        assert service.user_id not in job.model_dump_json()

    @official
    @pytest.mark.parametrize("quirks", [False, True])
    def test_there_and_back(self, connect: Callable[..., Emulator], quirks: bool) -> None:
        """A job becomes a request without a word to the service, and that the same job."""
        service = connect(job_pars_quirks=quirks)
        finished(service)
        job = XRTClient(service.user_id, service.url).attach(801)
        calls = len(service.calls())
        request = interop.request_from_job(job, service.user_id)
        assert len(service.calls()) == calls
        assert interop.job_from_request(request) == job

    @official
    def test_attached(self, connect: Callable[..., Emulator], tmp_path: Path) -> None:
        """Such a request gives status, data and files of its job, and cannot be submitted."""
        service = connect()
        first = finished(service)
        request = interop.request_from_job(interop.job_from_request(first), service.user_id)
        assert (request.JobID, request.URL) == (first.JobID, first.URL)
        assert request.jobPars == {key: value for key, value in first.jobPars.items() if key != "UserID"}
        assert request.complete is True
        assert request.getLightCurvePars("binMeth") == "obsid"
        assert_same(first.retrieveLightCurve(returnData=True), request.retrieveLightCurve(returnData=True))
        assert "AstromPos" in request.downloadProducts(str(tmp_path), what=["AstromPos"])
        with pytest.raises(RuntimeError, match="already been submitted"):
            request.submit()

    def test_odd_parameters(self) -> None:
        """What the client does not take is named, left out of its settings and kept in its `jobPars`."""
        odd = JOB.model_copy(update={"parameters": JOB.parameters | {"centMeth": "3", "poserr": 60}})
        with pytest.warns(RequestWarning, match="of job 803 .GK Per. as they are spelt: centMeth"):
            request = interop.request_from_job(odd, "someone@example.org")
        assert request.getGlobalPars("RA") == 52.8
        assert request.jobPars["centMeth"] == "3"
        assert interop.job_from_request(request) == odd

    def test_no_parameters(self) -> None:
        """A job of which nothing is known but its products, ID and address is a request all the same."""
        bare = JOB.model_copy(update={"parameters": {}})
        request = interop.request_from_job(bare, "someone@example.org")
        assert sorted(request.productList) == ["lc", "psf"]
        assert interop.job_from_request(request) == bare.model_copy(update={"name": None})

    def test_not_submitted(self) -> None:
        """A request that is none of the service's jobs yet is refused with what to do."""
        with pytest.raises(ConfigurationError, match="has not been submitted"):
            interop.job_from_request(client.XRTProductRequest("someone@example.org"))

    def test_other_version(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A client that keeps its job elsewhere is noticed, not handed out unattached."""

        class Other(client.XRTProductRequest):  # type: ignore[misc]
            submitted = False

        monkeypatch.setattr(client, "XRTProductRequest", Other)
        with pytest.raises(ConfigurationError, match="copyOldJob"):
            interop.request_from_job(JOB, "someone@example.org")


class TestTimingFrame:
    def test_columns(self) -> None:
        """Detections of several datasets are put in order of time, with the mean of both errors."""
        errors = {"RatePos": [0.5, 1.0], "RateNeg": [-0.25, -2.0]}
        both = light_curve(curve("WT", **errors), curve("PCHard", Time=[50.0, 60.0], RateErr=[0.1, 0.2]))
        frame = interop.timing_frame(both, "WT", "PCHard", value="flux")
        assert list(frame.columns) == ["time", "flux", "err", "dt"]
        assert frame["time"].tolist() == [10.0, 50.0, 60.0, 100.0]
        assert frame["err"].tolist() == [1.5, 0.1, 0.2, 0.375]
        assert frame["dt"].tolist() == [6.0, 5.0, 6.0, 5.0]
        assert frame.attrs["time_system"] == MET_SINCE_T0
        assert frame.attrs["units"]["flux"] == "ct / s"

    def test_gaps(self) -> None:
        """A bin without a rate is left out; one without an error has none."""
        frame = interop.timing_frame(light_curve(curve(Rate=[math.nan, 3.0])), "PC")
        assert frame["rate"].tolist() == [3.0]
        assert frame["err"].isna().all()

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (("PCUL",), "PCUL holds upper limits"),
            (("WT",), "no dataset 'WT'"),
            ((), "Name the datasets to take: PC, PCUL"),
        ],
    )
    def test_refused(self, names: tuple[str, ...], told: str) -> None:
        """Upper limits are no rates, and nothing is taken that was not named."""
        with pytest.raises(ConfigurationError, match=told):
            interop.timing_frame(light_curve(curve(), curve("PCUL", limits=True)), *names)


def tables() -> dict[str, QTable]:
    """Make a table of each kind that people open elsewhere."""
    fit = ModelFit(parameters={"NH": Value(value=1e21, unit="cm-2")}, image_url=None)
    modes = {"PC": ModeFits(exposure_s=10.0, models={"PowerLaw": fit, "APEC": ModelFit(fitted=False)})}
    made = SpectralFits(spectra={"a": SpectrumFits(modes=modes)}, provenance=PROVENANCE)
    detections = replace(curve(), obs_ids=("00966554000", None))
    return {"curve": light_curve(detections).to_table("PC"), "fits": made.to_table()}


class TestOtherPrograms:
    @pytest.mark.parametrize("name", ["curve", "fits"])
    def test_votable(self, name: str) -> None:
        """Tables make VOTables that keep to the standard, with units: TOPCAT opens them."""
        table, sink = tables()[name], io.BytesIO()
        table.write(sink, format="votable")
        sink.seek(0)
        read = votable.parse(sink, verify="exception").get_first_table()
        units = {field.name: str(field.unit) for field in read.fields if field.unit}
        assert units["Time" if name == "curve" else "exposure_s"] == "s"
        assert len(read.array) == len(table)

    @pytest.mark.parametrize("name", ["PC", "PCUL"])
    def test_fits(self, tmp_path: Path, name: str) -> None:
        """The FITS files keep to the standard, and hold plain tables with units for whoever opens them."""
        made = light_curve(curve(), curve("PCUL", limits=True))
        place = write(made, tmp_path / "curve.fits")
        with fits.open(place, checksum=True) as hdus:
            hdus.verify("exception")
        read = Table.read(place, hdu=name)
        assert str(read["Time"].unit) == "s"
        assert read["Time"].tolist() == made[name]["Time"].tolist()


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from prefect_xrt import Job, Product, interop
from prefect_xrt.errors import ConfigurationError
job = Job(id=1, url="https://example.org/1", products=(Product.LIGHT_CURVE,))
try:
    {call}
except ConfigurationError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("blocked", "call", "told"),
    [
        (
            {"pandas", "numpy", "astropy", "matplotlib"},
            "interop.light_curve_from_dict({'Datasets': ['PC'], 'PC': None})",
            "pip install prefect-xrt[science]",
        ),
        ({"swifttools"}, "interop.request_from_job(job, 'x')", "pip install swifttools"),
    ],
)
def test_not_installed(blocked: set[str], call: str, told: str) -> None:
    """Without the packages that it takes, the room is imported, and says what to install when it is used."""
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked, call=call)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told in done.stdout
