"""The service's official client, unmodified, runs its tutorial against the embedded service.

Only its address is redirected: what it sends to www.swift.ac.uk is sent to loopback instead. It prints a
good deal and warns of its own deprecations, so warnings are not errors here.
"""

from __future__ import annotations

import io
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline

with warnings.catch_warnings():
    # The client's own imports warn, and warnings are errors while tests are collected.
    warnings.simplefilter("ignore")
    client = pytest.importorskip("swifttools.ukssdc.xrt_prods", exc_type=ImportError)

pytestmark = pytest.mark.filterwarnings("ignore")

PRODUCTS = ["LightCurve", "Spectrum", "StandardPos", "EnhancedPos", "AstromPos", "Image", "SourceDet"]
FILES = dict(zip(PRODUCTS, ["lc", "spec", "psf", "enh", "xastrom", "image", "sourceDet"], strict=True))
RUNNING = Timeline.of((1, 1), (2, 5), (3, 100), (4,))


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

    def start(scenario: Scenario | None = None) -> Emulator:
        service = Emulator(scenario or Scenario(default=RUNNING), clock=lambda: 0.0)
        service.start()
        started.append(service)
        return service

    monkeypatch.setattr(requests.Session, "send", redirected)
    # The client gives keys their old names only at the first call of a process.
    monkeypatch.setattr("swifttools.ukssdc.xrt_prods.prod_request._localDepWarned", {})
    yield start
    for service in started:
        service.stop()


def build(service: Emulator) -> Any:
    """Build the tutorial's request, with an image and a source detection besides."""
    request = client.XRTProductRequest(service.user_id, silent=True)
    request.setGlobalPars(
        getTargs=True,
        centroid=True,
        name="GRB 200416A",
        RA=335.6985,
        Dec=-7.5179,
        centMeth="simple",
        useSXPS=False,
        T0=608713541.952,
        posErr=1,
    )
    request.addLightCurve(binMeth="counts", pcCounts=20, wtCounts=30, dynamic=True)
    request.addSpectrum(hasRedshift=False, timeslice="obsid")
    request.addStandardPos()
    request.addEnhancedPos()
    request.addAstromPos(useAllObs=True)
    request.addImage(energies="0.3-10,1-4")
    request.addSourceDet(whichData="all", whichBands="all")
    return request


def submitted(service: Emulator) -> Any:
    """Build the tutorial's request and submit it."""
    request = build(service)
    assert request.isValid() == (True, "")
    assert request.submit() is True
    return request


def finished(service: Emulator) -> Any:
    """Submit the tutorial's request and let the service finish it."""
    request = submitted(service)
    service.advance(300)
    assert request.complete is True
    return request


def codes(request: Any) -> dict[str, int]:
    """Ask for the status of all products."""
    return {product: status["statusCode"] for product, status in request.checkProductStatus().items()}


def test_submit(connect: Callable[..., Emulator]) -> None:
    """A request is valid, accepted, and filled in with the service's defaults."""
    service = connect()
    request = submitted(service)
    assert request.JobID == "801"
    assert f"{service.origin}/user_objects/tprods/USERPROD_801" == request.URL
    assert request.status == (1, "Request submitted")
    assert request.getGlobalPars("targ") == "00966554"
    assert request.getLightCurvePars("timeFormat") == "s"
    assert request.getSpectrumPars("timeslice") == "obsid"
    body = service.calls("submit")[0].body
    assert body is not None
    assert (body["api_name"], body["api_version"]) == ("xrt_prods", "1.12")


def test_refused(connect: Callable[..., Emulator]) -> None:
    """A refusal is reported with the parameters under their Python names."""
    service = connect()
    request = build(service)
    request.setGlobalPars(posErr=0.01, RA=400.0)
    request.setLightCurvePars(minCounts=-1)
    assert request.submit() is False
    assert request.statusCode == 3
    assert "There were problems with the parameters you supplied." in request.submitError
    assert "posErr is 0.01, but must be between 1 and 6" in request.submitError
    assert "LightCurve: minCounts is -1, but must be at least 0" in request.submitError
    assert "RA is 400.0, but must be between 0 and 360" in request.submitError


def test_unknown_user(connect: Callable[..., Emulator], capsys: pytest.CaptureFixture[str]) -> None:
    """A user who is not registered is told so by every call."""
    service = connect()
    request = build(service)
    request.UserID = "NO-ONE"
    assert request.submit() is False
    assert "The user `NO-ONE` is not recognised / validated" in request.submitError
    assert client.countActiveJobs("NO-ONE") == -1
    assert "is not recognised / validated" in capsys.readouterr().out


def test_progress(connect: Callable[..., Emulator]) -> None:
    """Products go their way, and the client makes its progress text of their steps."""
    service = connect()
    request = submitted(service)
    assert set(codes(request).values()) == {1}
    service.advance(1)
    assert set(codes(request).values()) == {2}
    service.advance(5 + 8)
    status = request.checkProductStatus()
    assert {product: entry["statusText"] for product, entry in status.items()} == {
        **dict.fromkeys(PRODUCTS, "Running"),
        "AstromPos": "Waiting for the standard position",
    }
    assert status["EnhancedPos"]["progressText"] == (
        "Trying using the <em>v,b,white</em> filters:\n"
        "  ** Identify XRT-UVOT overlaps. - ACTIVE**\n"
        "  Determine position.\n"
        "  Build Images.\n"
        "\nThe job has been running for 00:00:08\n"
    )
    service.advance(34)
    text = request.checkProductStatus(["Spectrum"])["Spectrum"]["progressText"]
    assert text.splitlines()[:4] == [
        "  Prepare data. - DONE",
        "  ** Build spectra. - ACTIVE -- Working on spectrum: Obs_00966554002 (3/8)**",
        "    Extract data. - DONE",
        "    ** Fit spectrum. - ACTIVE**",
    ]
    assert request.complete is False


def test_cancel_one(connect: Callable[..., Emulator]) -> None:
    """One product is cancelled, the others go on, and the whole is complete in the client's sense."""
    service = connect()
    request = submitted(service)
    service.advance(20)
    assert request.cancelProducts(["AstromPos"]) == (
        1,
        {"AstromPos": {"code": 0, "text": "Job cancelled OK"}},
    )
    assert request.checkProductStatus()["AstromPos"]["statusText"] == "Cancelled at your request"
    service.advance(300)
    assert request.complete is True
    assert request.status == (2, "Job finished, all products complete or failed")
    assert codes(request) == {**dict.fromkeys(PRODUCTS, 4), "AstromPos": -4}


def test_cancelled_product_has_no_file(connect: Callable[..., Emulator], tmp_path: Path) -> None:
    """Asking for all files when one product was cancelled makes the client give up, as users report."""
    service = connect()
    request = submitted(service)
    request.cancelProducts(["LightCurve"])
    service.advance(300)
    assert request.complete is True
    with pytest.raises(RuntimeError, match="HTTP return code 404: Not Found"):
        request.downloadProducts(str(tmp_path))


@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_download(connect: Callable[..., Emulator], tmp_path: Path, form: str) -> None:
    """All products are downloaded in each format, and are archives of that format."""
    service = connect()
    request = finished(service)
    paths = request.downloadProducts(str(tmp_path), format=form, stem="tutorial_")
    assert paths == {product: f"{tmp_path}/tutorial_{FILES[product]}.{form}" for product in PRODUCTS}
    for product, path in paths.items():
        content = io.BytesIO(Path(path).read_bytes())
        if form == "zip":
            with zipfile.ZipFile(content) as bundle:
                names = bundle.namelist()
        else:
            with tarfile.open(fileobj=content, mode="r:gz" if form == "tar.gz" else "r:") as bundle:
                names = bundle.getnames()
        assert f"USERPROD_801/{FILES[product]}/success.txt" in names


def test_positions(connect: Callable[..., Emulator]) -> None:
    """The three positions are found, in the texts and truths that the client makes of them."""
    request = finished(connect())
    standard, enhanced, corrected = (
        getattr(request, f"retrieve{kind}Pos")(returnData=True) for kind in ("Standard", "Enhanced", "Astrom")
    )
    assert list(standard) == list(corrected) == ["GotPos", "RA", "Dec", "Err90", "FromSXPS"]
    assert (standard["GotPos"], standard["FromSXPS"]) == (True, False)
    assert list(enhanced) == ["GotPos", "RA", "Dec", "Err90"]
    assert float(standard["Err90"]) > float(enhanced["Err90"])


def test_no_astrometric_position(connect: Callable[..., Emulator]) -> None:
    """A complete product without a position is reported as such."""
    request = finished(connect(Scenario(default=RUNNING, no_position=("xastrom",))))
    assert request.retrieveAstromPos(returnData=True) == {
        "GotPos": False,
        "Reason": "No position could be determined.",
    }


def test_source_list(connect: Callable[..., Emulator]) -> None:
    """The sources come for all four bands, and their texts become numbers."""
    request = finished(connect())
    found = request.retrieveSourceList(returnData=True)
    assert list(found) == ["Total", "Soft", "Medium", "Hard"]
    assert found["Total"][0]["sno"] == 1
    assert isinstance(found["Total"][0]["ra"], float)
    assert len(request.sourceList["Total"]) == len(found["Total"])


@pytest.mark.parametrize("old", [True, False])
def test_light_curve(connect: Callable[..., Emulator], old: bool) -> None:
    """The light curve becomes data frames, in the client's old manner and its new one."""
    request = finished(connect())
    request.deprecate = old
    data = request.retrieveLightCurve(incbad="yes", returnData=True)
    frame = data["PC" if old else "PC_incbad"]
    assert len(frame) == 24
    assert list(frame.columns)[:6] == (
        ["Time", "T_+ve", "T_-ve", "Rate", "Ratepos", "Rateneg"]
        if old
        else ["Time", "TimePos", "TimeNeg", "Rate", "RatePos", "RateNeg"]
    )
    assert str(frame.dtypes["Time"]) == "float64"
    assert (data["Binning"], data["TimeFormat"], data["T0"]) == ("Counts", "MET", 608713541.952)
    assert data["URLs"]["PC_incbad"] == f"{request.URL}/lc/PCCURVE_incbad.qdp"
    assert requests.get(data["URLs"]["PC_incbad"], timeout=5).status_code == 200


def test_both_kinds_of_light_curve(connect: Callable[..., Emulator]) -> None:
    """Asked for both, the client finds every dataset that the answer names."""
    request = finished(connect())
    request.deprecate = False
    data = request.retrieveLightCurve(nosys="both", incbad="both", returnData=True)
    assert {"WT", "WT_nosys", "WT_incbad", "WT_nosys_incbad", "PCUL"} <= set(data["Datasets"])
    assert "UpperLimit" in data["PCUL"].columns
    assert all(name in data for name in data["Datasets"])


@pytest.mark.parametrize("old", [True, False])
def test_spectral_fits(connect: Callable[..., Emulator], old: bool) -> None:
    """The fits are read, those that failed included, in the client's old manner and its new one."""
    request = finished(connect())
    request.deprecate = old
    data = request.retrieveSpectralFits(returnData=True)
    first = data["Obs_00966554000"]
    fit = first["PC"] if old else first["PC"]["PowerLaw"]
    assert fit["gamma" if old else "Gamma"] > 0
    assert len(data["rnames"]) == 8
    last = data[data["rnames"][-1]]
    assert (last["HavePC"] == 0) if old else ("NOFIT" in last["PC"]["PowerLaw"])


def test_save_spectra(connect: Callable[..., Emulator], tmp_path: Path) -> None:
    """The spectra's own archives are saved from the addresses in the answer."""
    service = connect()
    request = client.XRTProductRequest(service.user_id, useDeprecate=False)
    request.setGlobalPars(name="FO Aqr", getCoords=True, getTargs=True, getT0=True, centroid=True, posErr=1)
    request.setGlobalPars(useSXPS=False)
    request.addSpectrum(hasRedshift=False)
    assert request.submit() is True
    service.advance(300)
    assert request.complete is True
    request.retrieveSpectralFits()
    request.saveSpectralData(destDir=str(tmp_path / "spec"))
    assert sorted(path.name for path in (tmp_path / "spec").iterdir()) == [
        "interval0.tar.gz",
        "interval0pc_plot.gif",
        "interval0wt_plot.gif",
    ]


def test_old_job(connect: Callable[..., Emulator], tmp_path: Path) -> None:
    """A new request can become an old job, and fetch what that one built."""
    service = connect()
    finished(service)
    request = client.XRTProductRequest(service.user_id)
    request.copyOldJob(801, becomeThis=True)
    assert sorted(request.productList) == sorted(FILES.values())
    assert request.complete is True
    assert request.retrieveStandardPos(returnData=True)["GotPos"] is True
    with pytest.raises(RuntimeError, match="Job 5 does not exist"):
        request.copyOldJob(5)


def test_copy_is_submitted_again(connect: Callable[..., Emulator]) -> None:
    """What an old job resolved can be submitted again."""
    service = connect()
    finished(service)
    request = client.XRTProductRequest(service.user_id)
    request.copyOldJob(801)
    assert request.isValid() == (True, "")
    assert request.submit() is True
    assert request.JobID == "802"


def test_lists(connect: Callable[..., Emulator]) -> None:
    """The job list and the count of active jobs are read."""
    service = connect()
    request = submitted(service)
    assert (client.countActiveJobs(service.user_id), request.countActiveJobs()) == (1, 1)
    service.advance(300)
    assert client.countActiveJobs(service.user_id) == 0
    (entry,) = client.listOldJobs(service.user_id)
    assert (entry["JobID"], entry["Name"], entry["LightCurve"], entry["hasProd"]) == (
        801,
        "GRB 200416A",
        True,
        True,
    )


def test_rebin(connect: Callable[..., Emulator], tmp_path: Path) -> None:
    """A light curve is binned again, watched, and fetched as data and as files."""
    service = connect()
    request = finished(service)
    request.rebinLightCurve(binMeth="obsid", timeFormat="MJD")
    assert request.checkRebinStatus() == {"statusCode": 2, "statusText": "Queued"}
    with pytest.raises(RuntimeError, match="not complete"):
        request.getRebinnedLightCurve()
    service.advance(2)
    assert request.checkRebinStatus() == {"statusCode": 3, "statusText": "Running"}
    service.advance(10)
    assert request.rebinComplete() is True
    data = request.getRebinnedLightCurve(returnData=True, destDir=str(tmp_path / "lc"))
    assert data["Binning"] == "Observation"
    assert len(data["PC_incbad"]) == 8
    assert data["PC_incbad"]["ObsID"][0] == "00966554000"
    assert "PCCURVE_incbad.qdp" in {path.name for path in (tmp_path / "lc").iterdir()}


def test_source_detection_alone(connect: Callable[..., Emulator]) -> None:
    """A source detection alone needs no position, for the client as for the service."""
    service = connect()
    request = client.XRTProductRequest(service.user_id)
    request.setGlobalPars(name="a field", getTargs=True)
    request.addSourceDet(whichData="all")
    assert request.isValid() == (True, "")
    assert request.submit() is True


def test_older_spellings(connect: Callable[..., Emulator]) -> None:
    """Where `jobPars` come in older spellings, the client still has its job."""
    service = connect(Scenario(default=RUNNING, job_pars_quirks=True))
    request = build(service)
    assert request.submit() is True
    assert request.jobPars["poserr"] == 60


def test_the_client_breaks_where_the_service_does(connect: Callable[..., Emulator]) -> None:
    """What is known to break the client breaks it here too: null codes and pages instead of answers."""
    service = connect()
    request = submitted(service)
    service.add_fault(Fault("status", "null-codes"))
    with pytest.raises(TypeError):
        request.checkProductStatus()
    service.add_fault(Fault("status", "html-200"))
    with pytest.raises(ValueError, match="Expecting value"):
        request.checkProductStatus()
    service.add_fault(Fault("status", "missing-products"))
    assert codes(request) == dict.fromkeys(PRODUCTS, -10)
    service.add_fault(Fault("status", "http-502-html"))
    assert "HTTP return code 502" in request.checkProductStatus()["ERROR"]
