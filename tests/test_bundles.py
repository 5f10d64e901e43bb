"""Hold `prefect_xrt.bundles` to account."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import math
import os
import pickle
import shutil
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from prefect_xrt import archive, bundles
from prefect_xrt.archive import download_all
from prefect_xrt.bundles import (
    UNKNOWN_TIMES,
    ImageSet,
    read_images,
    read_light_curve,
    read_position,
    read_products,
    read_source_list,
    read_spectral_fits,
)
from prefect_xrt.client import XRTClient
from prefect_xrt.emulator import Emulator, Scenario, Timeline
from prefect_xrt.emulator.archives import pack as pack_as_service
from prefect_xrt.errors import (
    ArchiveError,
    ConfigurationError,
    OutputError,
    ResultFileError,
    UnsafeArchiveError,
    XRTError,
)
from prefect_xrt.protocol import SHORT_NAMES, Job
from prefect_xrt.records import JobRecord, write_record
from prefect_xrt.request import (
    AstrometricPosition,
    Image,
    LightCurve,
    Product,
    ProductRequest,
    SourceDetection,
    Spectrum,
    TimeSlice,
)
from prefect_xrt.results import MET_SINCE_T0, MJD, POSITION_PRODUCTS, ModelFit, Position, Provenance

PLACES = ("tar", "tar.gz", "zip", "folder")
COUNTS = LightCurve(binning="counts", pc_counts=20, wt_counts=30, dynamic=True)
REQUEST = ProductRequest(
    name="GRB 200416A",
    targets=("00966554",),
    t0_met_s=608713541.952,
    ra_deg=335.6985,
    dec_deg=-7.5179,
    centroid=True,
    position_error_arcmin=1,
    light_curve=COUNTS,
    spectrum=Spectrum(models=("powerlaw", "apec"), time_slicing="obsid"),
    standard_position=True,
    enhanced_position=True,
    astrometric_position=AstrometricPosition(use_all_observations=True),
    image=Image(energies_kev="0.3-10,1.5-4"),
    source_detection=SourceDetection(which_data="all", bands="all"),
)
JOB = Job(
    id=801,
    url="https://example.org/user_objects/tprods/USERPROD_801",
    name="GRB 200416A",
    products=tuple(Product),
    parameters={"lctimetype": "s", "Tstart": "608713541.952", "binMeth": "counts"},
)
FEW = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CURVE_COLUMNS = "!Time\tT_+ve\tT_-ve\tRate\tRatepos\tRateneg\n"
ROW = "1\t2\t-3\t4\t5\t-6\n"
DOCUMENTED = (ResultFileError, ArchiveError)


@dataclass
class World:
    """A finished job at the embedded service, and its bundles on disk."""

    client: XRTClient
    job: Job
    folder: Path

    def place(self, product: Product, kind: str = "tar.gz") -> Path:
        """Return where a product's files are, in a format or unpacked."""
        short = SHORT_NAMES[product]
        return self.folder / (short if kind == "folder" else f"{short}.{kind}")


@contextmanager
def built(
    folder: Path,
    request: ProductRequest = REQUEST,
    *,
    record: bool = True,
    kinds: tuple[str, ...] = ("tar.gz",),
    **scenario: Any,
) -> Iterator[World]:
    """Build a job at an embedded service and download all of it."""
    ready = Scenario(default=Timeline.of((4,)), observations=3, **scenario)
    with Emulator(ready) as service, XRTClient(service.user_id, service.url) as client:
        job = client.submit(request)
        for kind in kinds:
            form: Any = "tar.gz" if kind == "folder" else kind
            fetched, problems = download_all(client, job, job.products, folder, form, unpack=kind == "folder")
            assert not problems
            assert len(fetched) == len(job.products)
        if record:
            write_record(folder, JobRecord(job=job))
        yield World(client, job, folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Build a job of all products once, and download it in all formats."""
    with built(tmp_path_factory.mktemp("job"), kinds=PLACES) as world:
        yield world


def without_origin(result: Any) -> Any:
    """Return a result with a provenance that all have."""
    same = Provenance(job_id=None, retrieved_at=datetime(2024, 1, 1, tzinfo=UTC), sha256="0" * 64)
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.replace(result, provenance=same)
    return result.model_copy(update={"provenance": same})


def tarred(members: Mapping[str, bytes]) -> bytes:
    """Make a tar.gz archive of plain files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as bundle:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return gzip.compress(stream.getvalue())


def bundle(folder: Path, product: Product, members: Mapping[str, str | bytes], number: int = 801) -> Path:
    """Write a product's bundle by hand."""
    short = SHORT_NAMES[product]
    path = folder / f"{short}.tar.gz"
    contents = {
        f"USERPROD_{number}/{short}/{name}": content.encode() if isinstance(content, str) else content
        for name, content in members.items()
    }
    path.write_bytes(tarred(contents))
    return path


def curves_of(folder: Path, members: Mapping[str, str], job: Job | None = JOB) -> Any:
    """Read a light curve that was written by hand."""
    return read_light_curve(bundle(folder, Product.LIGHT_CURVE, members), job=job)


def columns_of(curve: Any) -> dict[str, list[float]]:
    """Return a dataset as plain lists."""
    return {name: values.tolist() for name, values in curve.columns.items()}


class TestAgreement:
    """What an archive says is what the service answers, value by value."""

    @pytest.mark.parametrize("kind", PLACES)
    def test_light_curve(self, world: World, kind: str) -> None:
        """All datasets are the same: names, order, columns, values, units, and where the service has them."""
        answered = world.client.retrieve_light_curve(world.job, systematics="both", unreliable="both")
        read = read_light_curve(world.place(Product.LIGHT_CURVE, kind))
        assert list(read.curves) == list(answered.curves)
        assert len(read.curves) == 26
        for name, curve in answered.curves.items():
            assert columns_of(read.curves[name]) == columns_of(curve)
        assert without_origin(read) == without_origin(answered)

    @pytest.mark.parametrize("kind", PLACES)
    @pytest.mark.parametrize("product", POSITION_PRODUCTS)
    def test_position(self, world: World, product: Product, kind: str) -> None:
        """Each position is the same."""
        answered = world.client.retrieve_position(world.job, product)
        assert answered.found
        assert without_origin(read_position(world.place(product, kind), product)) == without_origin(answered)

    @pytest.mark.parametrize("kind", PLACES)
    def test_sources(self, world: World, kind: str) -> None:
        """The sources of all bands are the same."""
        answered = world.client.retrieve_source_list(world.job)
        read = read_source_list(world.place(Product.SOURCE_DET, kind))
        assert list(read.bands) == list(answered.bands) == ["Total", "Soft", "Medium", "Hard"]
        assert without_origin(read) == without_origin(answered)

    @pytest.mark.parametrize("kind", PLACES)
    def test_spectra(self, world: World, kind: str) -> None:
        """Spectra, modes, models and addresses are the same; numbers that no file holds are gaps."""
        answered = world.client.retrieve_spectral_fits(world.job)
        read = read_spectral_fits(world.place(Product.SPECTRUM, kind))
        assert list(read.spectra) == list(answered.spectra)
        assert len(read.spectra) == 3
        assert (read.t0_met_s, read.delta_statistic) == (answered.t0_met_s, answered.delta_statistic)
        assert read.galactic_nh is None
        for name, spectrum in answered.spectra.items():
            mine = read.spectra[name]
            assert mine.data_file_url == spectrum.data_file_url
            assert (mine.start_s, mine.stop_s, mine.fitted) == (None, None, None)
            assert list(mine.modes) == list(spectrum.modes)
            for mode, fits in spectrum.modes.items():
                assert list(mine.modes[mode].models) == list(fits.models) == ["PowerLaw", "APEC"]
                assert (mine.modes[mode].mean_time_s, mine.modes[mode].exposure_s) == (None, None)
                for model, fit in fits.models.items():
                    found = mine.modes[mode].models[model]
                    assert found.image_url == fit.image_url or not fit.fitted
                    assert found == ModelFit(fitted=None, image_url=found.image_url)

    @pytest.mark.parametrize("kind", PLACES)
    def test_images(self, world: World, kind: str) -> None:
        """Each band that was asked for is named with its files, which are in the bundle."""
        images = read_images(world.place(Product.IMAGE, kind))
        assert [(image.low_kev, image.high_kev) for image in images.images] == [(0.3, 10.0), (1.5, 4.0)]
        assert images.images[1].fits == "USERPROD_801/image/image2.img.gz"
        assert images.images[1].picture == "USERPROD_801/image/image2.gif"
        assert images.exposure_map == "USERPROD_801/image/summed_ex.img.gz"
        assert images.vignetted_exposure_map == "USERPROD_801/image/summed_vignet_ex.img.gz"
        for image in images.images:
            assert (world.place(Product.IMAGE, "folder") / image.fits).is_file()
        assert ImageSet.model_validate_json(images.model_dump_json()) == images

    @pytest.mark.parametrize("binning", ["obsid", "snapshot", "time"])
    def test_binnings(self, tmp_path: Path, binning: Any) -> None:
        """Observations come with the binnings that have them, and the binning is told in the service's words."""
        of = LightCurve(binning=binning, **({"pc_bin_s": 60, "wt_bin_s": 5} if binning == "time" else {}))
        with built(tmp_path, REQUEST.model_copy(update={"light_curve": of})) as world:
            answered = world.client.retrieve_light_curve(world.job, systematics="both", unreliable="both")
            read = read_light_curve(world.place(Product.LIGHT_CURVE))
        assert without_origin(read) == without_origin(answered)
        assert read["PC"].obs_ids == (None if binning == "time" else answered["PC"].obs_ids)
        assert binning == "time" or "00966554000" in (read["PC"].obs_ids or ())

    def test_days(self, tmp_path: Path) -> None:
        """Times in MJD are in days, as the job says."""
        of = COUNTS.model_copy(update={"time_format": "mjd"})
        with built(tmp_path, REQUEST.model_copy(update={"light_curve": of})) as world:
            answered = world.client.retrieve_light_curve(world.job, systematics="both", unreliable="both")
            read = read_light_curve(world.place(Product.LIGHT_CURVE))
        assert read.time_system == MJD
        assert read["WT"].units["TimeNeg"] == "d"
        assert without_origin(read) == without_origin(answered)

    @pytest.mark.parametrize("product", POSITION_PRODUCTS)
    def test_no_position(self, tmp_path: Path, product: Product) -> None:
        """Where there is no position, both say so, and the archive says by which file."""
        with built(tmp_path, no_position=("psf", "enh", "xastrom")) as world:
            answered = world.client.retrieve_position(world.job, product)
            read = read_position(world.place(product), product)
        assert not answered.found
        assert any(word in str(read.reason) for word in ("NOPOS", "NOCORR", "success.txt says 0"))
        assert without_origin(read) == without_origin(answered.model_copy(update={"reason": read.reason}))

    @pytest.mark.parametrize("kind", ["tar.gz", "folder"])
    @pytest.mark.parametrize("product", POSITION_PRODUCTS)
    def test_catalogue(self, tmp_path: Path, product: Product, kind: str) -> None:
        """A position from a catalogue is the same, with the catalogue's name."""
        with built(tmp_path, REQUEST.model_copy(update={"use_sxps": True}), kinds=(kind,)) as world:
            answered = world.client.retrieve_position(world.job, product)
            read = read_position(world.place(product, kind), product)
        assert read.catalogue == (None if product is Product.ENHANCED_POS else "2SXPS")
        assert without_origin(read) == without_origin(answered)

    def test_no_fits(self, tmp_path: Path) -> None:
        """Spectra that were not to be fitted have modes and no models."""
        spectrum = Spectrum(do_not_fit=True)
        with built(tmp_path, REQUEST.model_copy(update={"spectrum": spectrum})) as world:
            answered = world.client.retrieve_spectral_fits(world.job)
            read = read_spectral_fits(world.place(Product.SPECTRUM))
        assert (
            list(read.spectra["interval0"].modes) == list(answered.spectra["interval0"].modes) == ["WT", "PC"]
        )
        assert not any(mode.models for mode in read.spectra["interval0"].modes.values())

    def test_named_spectra(self, tmp_path: Path) -> None:
        """Spectra of pieces of time have the names that the service answers."""
        slices = (TimeSlice(name="early", gti="0-1000"), TimeSlice(name="late2", gti="1000-2000"))
        with built(tmp_path, REQUEST.model_copy(update={"spectrum": Spectrum(time_slices=slices)})) as world:
            answered = world.client.retrieve_spectral_fits(world.job)
            read = read_spectral_fits(world.place(Product.SPECTRUM))
        assert list(read.spectra) == list(answered.spectra) == ["early", "late2"]

    def test_limits(self, world: World) -> None:
        """Upper limits are upper limits, with neither rates nor errors of zero."""
        limits = read_light_curve(world.place(Product.LIGHT_CURVE))["PCUL"]
        assert limits.upper_limits
        assert list(limits.columns)[:4] == ["Time", "TimePos", "TimeNeg", "UpperLimit"]
        assert not {"Rate", "RatePos", "RateNeg"} & set(limits.columns)
        assert limits["SNR"].tolist() == [math.inf]


class TestOrigin:
    """A result says where it is from."""

    def test_bundle(self, world: World) -> None:
        """Of a bundle: job, parameters, path, checksum and the time of reading."""
        before = datetime.now(UTC)
        path = world.place(Product.STANDARD_POS)
        origin = read_position(path).provenance
        assert (origin.job_id, origin.job_name) == (world.job.id, world.job.name)
        assert origin.request == world.job.parameters
        assert origin.source == str(path)
        assert origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert before <= origin.retrieved_at <= datetime.now(UTC)
        assert origin.service_api_version is None

    def test_folder(self, world: World) -> None:
        """Of a folder: the checksum of the checksums of what was read."""
        place = world.place(Product.STANDARD_POS, "folder")
        content = (place / "USERPROD_801/psf/results.dat").read_bytes()
        line = f"{hashlib.sha256(content).hexdigest()}  USERPROD_801/psf/results.dat\n"
        assert read_position(place).provenance.sha256 == hashlib.sha256(line.encode()).hexdigest()

    def test_depth(self, world: World) -> None:
        """A folder is read from any of its levels, and is of the same job."""
        base = world.place(Product.STANDARD_POS, "folder")
        read = [
            read_position(place) for place in (base, base / "USERPROD_801", base / "USERPROD_801" / "psf")
        ]
        assert len({result.provenance.job_name for result in read}) == 1
        assert {without_origin(result).model_dump_json() for result in read} == {
            without_origin(read_position(world.place(Product.STANDARD_POS))).model_dump_json()
        }

    def test_alone(self, tmp_path: Path) -> None:
        """Without a record, the number of the job's folder is known, and what only the job tells is a gap."""
        with built(tmp_path, record=False) as world:
            curve = read_light_curve(world.place(Product.LIGHT_CURVE))
            fits = read_spectral_fits(world.place(Product.SPECTRUM))
        assert curve.provenance.job_id == 801
        assert (curve.provenance.job_name, curve.provenance.request) == (None, {})
        assert (curve.time_system, curve.t0_met_s, curve.binning) == (UNKNOWN_TIMES, None, None)
        assert (curve["WT"].units["Time"], curve["WT"].file_url) == ("", None)
        assert (fits.t0_met_s, fits.delta_statistic) == (None, None)

    def test_other_job(self, tmp_path: Path) -> None:
        """A record of another job beside a bundle is not believed; a job that is given must be the right one."""
        path = bundle(tmp_path, Product.STANDARD_POS, {"results.dat": "NOPOS\n"}, number=5)
        write_record(tmp_path, JobRecord(job=JOB))
        assert read_position(path).provenance.job_id == 5
        with pytest.raises(ResultFileError, match="USERPROD_5, and not of job 801"):
            read_position(path, job=JOB)

    def test_address(self, tmp_path: Path) -> None:
        """A job whose files have another number than itself is recognised by its address."""
        path = bundle(tmp_path, Product.STANDARD_POS, {"results.dat": "NOPOS\n"}, number=5)
        other = JOB.model_copy(update={"url": "https://example.org/tprods/USERPROD_5"})
        assert read_position(path, job=other).provenance.job_id == 801

    def test_no_job_folder(self, tmp_path: Path) -> None:
        """Files that were packed again without the job's folder are read; whose they are is not known."""
        path = tmp_path / "psf.tar.gz"
        path.write_bytes(tarred({"psf/results.dat": b"NOPOS\n"}))
        assert read_position(path).provenance.job_id is None

    def test_damaged_record(self, tmp_path: Path) -> None:
        """A damaged record is named."""
        path = bundle(tmp_path, Product.STANDARD_POS, {"results.dat": "NOPOS\n"})
        (tmp_path / "job.json").write_text("{")
        with pytest.raises(OutputError, match=r"job\.json is damaged"):
            read_position(path)


class TestTables:
    """Tables are read by what the file says of them."""

    def test_titles(self, tmp_path: Path) -> None:
        """One file with all modes is split at NO lines and titles, where no other file is there."""
        content = (
            "READ TERR 1 2\n! WT data\n"
            + CURVE_COLUMNS
            + ROW
            + "NO\tNO\tNO\tNO\tNO\tNO\n! PC data\n"
            + CURVE_COLUMNS
            + ROW * 2
            + "no no no no no no\n! PC Upper limit\n"
            + CURVE_COLUMNS
            + "7 1 -1 0.5 0 0\n"
        )
        curve = curves_of(tmp_path, {"curve.qdp": content, "curve_incbad.qdp": content})
        assert list(curve.curves) == ["WT", "PC", "PCUL", "WT_incbad", "PC_incbad", "PCUL_incbad"]
        assert columns_of(curve["PCUL"]) == {
            "Time": [7],
            "TimePos": [1],
            "TimeNeg": [-1],
            "UpperLimit": [0.5],
        }
        assert [len(dataset) for dataset in curve.curves.values()] == [1, 2, 1] * 2
        assert (curve.time_system, curve.binning, curve.t0_met_s) == (MET_SINCE_T0, "Counts", 608713541.952)

    def test_precedence(self, tmp_path: Path) -> None:
        """The files of single modes are read rather than the one of all."""
        detailed = "!Time\tT_+ve\tT_-ve\tRate\tRatepos\tRateneg\tFracExp\n1\t2\t-3\t4\t5\t-6\t0.7\n"
        everything = f"! PC data\n{CURVE_COLUMNS}{ROW}"
        curve = curves_of(
            tmp_path, {"curve.qdp": everything, "curve_incbad.qdp": everything, "PCCURVE.qdp": detailed}
        )
        assert list(curve.curves) == ["PC", "PC_incbad"]
        assert "FracExp" in curve["PC"].columns
        assert "FracExp" not in curve["PC_incbad"].columns

    def test_service_hardness(self, tmp_path: Path) -> None:
        """A hardness ratio file as astropy's tests have it of the service: titles, MJD, names of two words."""
        columns = "!MJD            Err (pos)       Err(neg)        Rate            Error\n"
        content = "! Swift/XRT hardness ratio of trigger: 1, name: A B\n! Columns are as labelled\n"
        content += "READ TERR 1\nREAD SERR 2\n"
        for number, title in enumerate(("hard data", "soft data", "hardness ratio")):
            content += f"! WT -- {title}\n{columns}5300{number}.5 2.5e-05    -2.5e-05   -0.2       0.3\n"
            content += "NO NO NO NO NO\n"
        curve = curves_of(tmp_path, {"WTHR.qdp": content}, job=None)
        assert list(curve.curves) == ["WTHard", "WTSoft", "WTHR"]
        assert curve.time_system == MJD
        times = {"TimePos": [2.5e-05], "TimeNeg": [-2.5e-05]}
        assert columns_of(curve["WTSoft"]) == {"Time": [53001.5], **times, "Rate": [-0.2], "RateErr": [0.3]}
        assert columns_of(curve["WTHR"]) == {"Time": [53002.5], **times, "HR": [-0.2], "HRErr": [0.3]}
        assert [dataset.band for dataset in curve.curves.values()] == ["hard", "soft", "hardness ratio"]

    def test_wide_hardness(self, tmp_path: Path) -> None:
        """Bands that stand side by side in one table become the service's datasets."""
        content = (
            "READ TERR 1\n!Time\tT_+ve\tT_-ve\tHardRate\tHarderr\tSoftRate\tSofterr\tHR\tHRerr\tHardSig\tObsid\n"
            "1\t2\t-3\t4\t5\t6\t7\t8\t9\t10\t::ObsID=966554000\n"
        )
        curve = curves_of(tmp_path, {"PCHR_incbad.qdp": content})
        times = {"Time": [1], "TimePos": [2], "TimeNeg": [-3]}
        hard, soft, ratio = (columns_of(curve[f"PC{name}_incbad"]) for name in ("Hard", "Soft", "HR"))
        assert hard == {**times, "Rate": [4], "RateErr": [5], "HardSig": [10]}
        assert soft == {**times, "Rate": [6], "RateErr": [7]}
        assert ratio == {**times, "HR": [8], "HRErr": [9]}
        assert {dataset.obs_ids for dataset in curve.curves.values()} == {("00966554000",)}

    def test_gaps(self, tmp_path: Path) -> None:
        """NO, nothing between tabs, and NaN are gaps, and nothing moves."""
        columns = CURVE_COLUMNS.replace("\n", "\tFracExp\tSNR\n")
        content = columns + "1\t2\t-3\tNO\t5\t-6\t\t8\n1\t2\t-3\t4\tnan\t-6\t7\t\n"
        curve = curves_of(tmp_path, {"PCCURVE.qdp": content})["PC"]
        rows = [
            [None if math.isnan(value) else value for value in column]
            for column in columns_of(curve).values()
        ]
        assert rows == [[1, 1], [2, 2], [-3, -3], [None, 4], [5, None], [-6, -6], [None, 7], [8, None]]

    @pytest.mark.parametrize(
        "content",
        [
            f"READ TERR 1 2\r\n{CURVE_COLUMNS}{ROW}".replace("\n", "\r\n"),
            f"\ufeff{CURVE_COLUMNS}{ROW}",
            f"{CURVE_COLUMNS}{ROW.strip()}",
            f"{CURVE_COLUMNS}{ROW.strip()}\t\t\n",
            f"{CURVE_COLUMNS}{ROW.strip()} ! a remark\n",
            f"{CURVE_COLUMNS}\n  {ROW.replace(chr(9), '   ')}\n\n",
            f"skip single\nLAB T A title\nread terr 1 2\n{CURVE_COLUMNS}{ROW}NO NO NO NO NO NO\n",
            f"READ TERR 1\nREAD TERR 2\n! PC data\n{CURVE_COLUMNS}!9 9 9 9 9 9\n{ROW}",
            f"! Time TimePos TimeNeg Rate RatePos RateNeg\n{ROW}",
            f"READ TERR 1 2\n{ROW}",
        ],
    )
    def test_spellings(self, tmp_path: Path, content: str) -> None:
        """However a table is spaced, commented and introduced, it is the same."""
        assert columns_of(curves_of(tmp_path, {"PCCURVE.qdp": content})["PC"]) == {
            **{"Time": [1], "TimePos": [2], "TimeNeg": [-3], "Rate": [4], "RatePos": [5], "RateNeg": [-6]}
        }

    def test_time_system(self, tmp_path: Path) -> None:
        """What a file says of its times counts more than what the job says."""
        content = f"{CURVE_COLUMNS.replace('Time', 'MJD')}{ROW}"
        assert curves_of(tmp_path, {"PCCURVE.qdp": content}, JOB).time_system == MJD
        odd = JOB.model_copy(update={"parameters": {"lctimetype": "2", "binMeth": 7}})
        curve = curves_of(tmp_path, {"PCCURVE.qdp": CURVE_COLUMNS + ROW}, odd)
        assert (curve.time_system, curve.binning) == (UNKNOWN_TIMES, None)

    def test_other_modes(self, tmp_path: Path) -> None:
        """A mode that is not known keeps its name, behind the others."""
        curve = curves_of(tmp_path, {"IMCURVE.qdp": CURVE_COLUMNS + ROW, "PCCURVE.qdp": CURVE_COLUMNS + ROW})
        assert list(curve.curves) == ["PC", "IM"]

    def test_other_files(self, tmp_path: Path) -> None:
        """Files of other names are left alone, whatever is in them."""
        curve = curves_of(
            tmp_path, {"PCCURVE.qdp": CURVE_COLUMNS + ROW, "notes.qdp": "?", "sub/WTCURVE.qdp": "?"}
        )
        assert list(curve.curves) == ["PC"]


class TestBroken:
    """What cannot be read is named, with its bundle and its file."""

    @pytest.mark.parametrize(
        ("name", "content", "problem"),
        [
            ("PCCURVE.qdp", "", "is empty"),
            ("PCCURVE.qdp", " \n", "is empty"),
            ("PCCURVE.qdp", CURVE_COLUMNS, "holds no table"),
            ("PCCURVE.qdp", "!PCCURVE.qdp\n", "holds no table"),
            ("PCCURVE.qdp", ROW, "does not say what the columns in line 1 are"),
            (
                "PCCURVE.qdp",
                CURVE_COLUMNS + ROW + "1\t2\t-3\t4\t5\n",
                "has 5 values in line 3, and 6 columns",
            ),
            ("PCCURVE.qdp", CURVE_COLUMNS + ROW + "1\t2\t-3\t4\t5\t6\t7\n", "has 7 values in line 3"),
            ("PCCURVE.qdp", CURVE_COLUMNS + "1\t2\t-3\t4\t5\n", "has 5 values in line 2, and columns"),
            ("PCCURVE.qdp", CURVE_COLUMNS + ROW.replace("4", "four"), 'Rate in row 1 of PC is "four"'),
            ("PCCURVE.qdp", CURVE_COLUMNS + ROW.replace("4", "1_000"), "Rate in row 1 of PC"),
            ("PCCURVE.qdp", CURVE_COLUMNS + ROW.replace("4", "٤"), "Rate in row 1 of PC"),
            ("PCCURVE.qdp", CURVE_COLUMNS + ROW + "LOG X ON\n", "in line 3"),
            ("PCCURVE.qdp", CURVE_COLUMNS + ROW.replace("1", "NO", 1), "Not every bin of PC has a time"),
            ("PCCURVE.qdp", "!Time\tRate\n1\t2\n", "lack TimePos, TimeNeg"),
            ("PCCURVE.qdp", "!Time\tT_+ve\tT_-ve\tFlux\n1\t2\t3\t4\n", "lack Rate"),
            ("PCCURVE.qdp", CURVE_COLUMNS.replace("Ratepos", "Rate") + ROW, "has two columns Rate"),
            (
                "PCCURVE.qdp",
                CURVE_COLUMNS + ROW + "NO NO\n! PC data\n" + ROW,
                "holds PC, which is there already",
            ),
            ("PCCURVE.qdp", "! WT data\n" + CURVE_COLUMNS + ROW, "or has one of WT"),
            (
                "PCCURVE.qdp",
                CURVE_COLUMNS.replace("\n", "\tObsID\n") + ROW.replace("\n", "\tx\n"),
                "ObsID in PC",
            ),
            ("curve.qdp", CURVE_COLUMNS + ROW, "does not say which mode"),
            ("PCHR.qdp", CURVE_COLUMNS + ROW, "hard and the soft band"),
            (
                "PCHR.qdp",
                "READ TERR 1\nREAD SERR 2\n1 2 -3 4 5\nREAD TERR 1\n1 2 -3 4\n",
                "hard and the soft band",
            ),
        ],
    )
    def test_curves(self, tmp_path: Path, name: str, content: str, problem: str) -> None:
        """A file that is no light curve is named, with the line or the value."""
        with pytest.raises(ResultFileError, match=problem) as raised:
            curves_of(tmp_path, {name: content})
        assert name in raised.value.message
        assert str(tmp_path / "lc.tar.gz") in raised.value.message

    def test_no_curves(self, tmp_path: Path) -> None:
        """A bundle of a light curve without one says so."""
        with pytest.raises(ResultFileError, match="holds no light curve"):
            curves_of(tmp_path, {"lc.log": "x"})

    def test_systems(self, tmp_path: Path) -> None:
        """Times of two systems in one light curve are refused."""
        days = CURVE_COLUMNS.replace("Time", "MJD") + ROW
        with pytest.raises(ResultFileError, match="in MJD, and others that are not"):
            curves_of(tmp_path, {"PCCURVE.qdp": CURVE_COLUMNS + ROW, "WTCURVE.qdp": days})

    @pytest.mark.parametrize(
        ("product", "members", "problem"),
        [
            (Product.STANDARD_POS, {"psf.log": ""}, "has no results.dat of a StandardPos"),
            (Product.STANDARD_POS, {"results.dat": "\n"}, "is empty"),
            (Product.STANDARD_POS, {"results.dat": "NOPOS\nNOPOS"}, "has 2 lines"),
            (Product.STANDARD_POS, {"results.dat": "1\t2\t3"}, "has 3 fields, not 7 or 11"),
            (
                Product.STANDARD_POS,
                {"results.dat": "1\t2\t1 2 3\t1 2 3\tx\t0\t1"},
                "not a position and its error",
            ),
            (
                Product.STANDARD_POS,
                {"results.dat": "1\t2\t3\t1 2 3\t3.5\t0\t1"},
                "not a position and its error",
            ),
            (Product.STANDARD_POS, {"results.dat": "1\t91\t1 2 3\t1 2 3\t3.5\t0\t1"}, "nowhere in the sky"),
            (Product.STANDARD_POS, {"results.dat": "nan\t9\t1 2 3\t1 2 3\t3.5\t0\t1"}, "not a position"),
            (Product.STANDARD_POS, {"INSXPS": "1\n2\n3\n"}, "has 3 lines, not 8"),
            (Product.ASTROM_POS, {"xastrom.log": ""}, "has no corrpos.dat of a AstromPos"),
            (Product.ASTROM_POS, {"corrpos.dat": "1\t2"}, "has 2 fields, not 5"),
            (Product.ASTROM_POS, {"corrpos.dat": "1\t2", "NOCORR": ""}, "a position and none"),
            (Product.ENHANCED_POS, {"success.txt": "1\n"}, "has 1 lines, not 11"),
            (Product.ENHANCED_POS, {"success.txt": "x\n" * 11}, "not a position and its error"),
            (Product.ENHANCED_POS, {"enh.log": ""}, r"has no success\.txt"),
        ],
    )
    def test_positions(self, tmp_path: Path, product: Product, members: dict[str, str], problem: str) -> None:
        """A file that is no position is named; nothing is taken from another field."""
        path = bundle(tmp_path, product, members)
        with pytest.raises(ResultFileError, match=problem) as raised:
            read_position(path, product)
        assert str(path) in raised.value.message

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("", "is empty"),
            ("1\t0.3\n", "not the number and the band"),
            ("x\t0.3\t10\n", "not the number and the band"),
            ("1\t0.3\tten\n", "not the number and the band"),
            ("1\t10\t0.3\n", "not the number and the band"),
            ("1\t0.3\t10\n1\t0.3\t10\n", "twice"),
            ("2\t0.3\t10\n", r"there is no image2\.img\.gz"),
        ],
    )
    def test_images(self, tmp_path: Path, content: str, problem: str) -> None:
        """A list of images that is none, or names one that is not there, is refused."""
        path = bundle(tmp_path, Product.IMAGE, {"images.log": content, "image1.img.gz": ""})
        with pytest.raises(ResultFileError, match=problem) as raised:
            read_images(path)
        assert "images.log" in raised.value.message

    @pytest.mark.parametrize(
        ("members", "problem"),
        [
            ({"sourceDet.log": "x"}, "holds no source list"),
            ({"sources_total.txt": ""}, "is empty"),
            ({"sources_total.txt": "1\t2\n"}, "does not begin with the names"),
            ({"sources_total.txt": "!ra\tra\n1\t2\n"}, "does not begin with the names"),
            ({"sources_total.txt": "!ra\tdec\n1\n"}, "has 1 values in line 2, and 2 columns"),
            ({"sources_total.txt": "!ra\tdec\n1\tx\n"}, 'dec of source 1 of Total is "x"'),
            ({"sources_total.txt": "!sno\tdec\n1\t2\n"}, "have no ra"),
            ({"sources_total.txt": "!ra\tdec\n", "sources_TOTAL.txt": "!ra\tdec\n"}, "there already"),
        ],
    )
    def test_sources(self, tmp_path: Path, members: dict[str, str], problem: str) -> None:
        """A table of sources that is none is refused."""
        path = bundle(tmp_path, Product.SOURCE_DET, members)
        with pytest.raises(ResultFileError, match=problem) as raised:
            read_source_list(path)
        assert str(path) in raised.value.message

    def test_no_sources(self, tmp_path: Path) -> None:
        """A band without sources has none; kinds of columns are those that the service's answers have."""
        table = "!sno ra dec ra_pos\n1 2 3 4.5\n2 2.5 -3 6\n"
        path = bundle(
            tmp_path, Product.SOURCE_DET, {"sources_soft.txt": "!ra dec\n", "sources_total.txt": table}
        )
        assert read_source_list(path).bands == {
            "Total": (
                {"sno": 1, "ra": 2.0, "dec": 3, "ra_pos": 4.5},
                {"sno": 2, "ra": 2.5, "dec": -3, "ra_pos": 6.0},
            ),
            "Soft": (),
        }

    @pytest.mark.parametrize(
        "read", [read_light_curve, read_position, read_spectral_fits, read_source_list, read_images]
    )
    def test_other_product(self, tmp_path: Path, read: Callable[[Path], object]) -> None:
        """A bundle of another product is refused, and so are one of two jobs and a file that is not there."""
        path = bundle(tmp_path, Product.ENHANCED_POS, {"success.txt": "0"})
        with pytest.raises(ResultFileError, match="holds no files of a"):
            read(path)
        with pytest.raises(OutputError, match=r"nothing\.tar\.gz cannot be read: No such file"):
            read(tmp_path / "nothing.tar.gz")
        with pytest.raises(ArchiveError, match="is none of"):
            read(Path(__file__))
        path.write_bytes(
            tarred({f"USERPROD_{job}/{short}/x": b"" for short in SHORT_NAMES.values() for job in (1, 2)})
        )
        with pytest.raises(ResultFileError, match="more than one job"):
            read(path)

    @pytest.mark.parametrize("product", [Product.IMAGE, "nonsense"])
    def test_no_position(self, tmp_path: Path, product: Any) -> None:
        """Only positions are positions."""
        with pytest.raises(ConfigurationError, match=f"{product} is not a position"):
            read_position(tmp_path, product)

    def test_pickle(self, world: World) -> None:
        """Results survive pickling."""
        position = read_position(world.place(Product.STANDARD_POS))
        assert pickle.loads(pickle.dumps(position)) == position  # noqa: S301


class TestHostile:
    """Nothing is unpacked, nothing outside is read, and nothing breaks the limits."""

    @pytest.mark.parametrize("name", ["../x", "/etc/x", "USERPROD_801/../../x"])
    def test_leading_out(self, tmp_path: Path, name: str) -> None:
        """A name that leads out of the bundle condemns it, whatever else is in it."""
        path = tmp_path / "psf.tar.gz"
        path.write_bytes(tarred({"USERPROD_801/psf/results.dat": b"NOPOS\n", name: b""}))
        with pytest.raises(UnsafeArchiveError, match="leads out of its folder"):
            read_position(path)

    @pytest.mark.parametrize("kind", ["tar.gz", "zip"])
    def test_inner_bomb(self, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What archives within a bundle unpack to counts towards the bundle's limit."""
        inner = tarred({"interval0wt.pi": bytes(10**6)})
        members = {"interval0.tar.gz": inner}
        path = tmp_path / f"spec.{kind}"
        path.write_bytes(bytes(pack_as_service("USERPROD_801", {"spec": members}, kind)))
        assert list(read_spectral_fits(path).spectra["interval0"].modes) == ["WT"]
        monkeypatch.setitem(archive.ArchiveReader.__init__.__kwdefaults__, "max_unpacked_bytes", 10**6)
        with pytest.raises(UnsafeArchiveError, match="unpacks to more than"):
            read_spectral_fits(path)

    def test_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tables that would fill the memory are refused."""
        monkeypatch.setattr(bundles, "MAX_TEXT_BYTES", 1000)
        with pytest.raises(UnsafeArchiveError, match="more than 1000 bytes"):
            curves_of(tmp_path, {"PCCURVE.qdp": CURVE_COLUMNS + ROW * 100})

    @pytest.mark.parametrize(
        ("inner", "problem"),
        [
            (b"no archive", "incomplete or damaged"),
            (tarred({"a": b"x"})[:-9], "incomplete or damaged"),
            (tarred({"../a": b"x"}), "leads out"),
            (tarred({"b.tar": b"x"}), "holds another"),
            (b"", "incomplete or damaged"),
        ],
        ids=["noise", "cut", "way out", "third", "empty"],
    )
    @pytest.mark.parametrize("unpacked", [False, True])
    def test_inner(self, tmp_path: Path, inner: bytes, problem: str, unpacked: bool) -> None:
        """A spectrum's archive is held to the rules too, in a bundle or unpacked, and is named."""
        path = bundle(tmp_path, Product.SPECTRUM, {"interval0.tar.gz": inner})
        if unpacked:
            path = tmp_path / "spec"
            (path / "USERPROD_801/spec").mkdir(parents=True)
            (path / "USERPROD_801/spec/interval0.tar.gz").write_bytes(inner)
        with pytest.raises(ArchiveError, match=rf"spec(\.tar\.gz)?, interval0\.tar\.gz .*{problem}"):
            read_spectral_fits(path)

    def test_inner_name(self, tmp_path: Path) -> None:
        """Two archives of one spectrum are refused."""
        inner = tarred({"interval0wt.pi": b""})
        plain = gzip.decompress(inner)
        path = bundle(tmp_path, Product.SPECTRUM, {"interval0.tar.gz": inner, "interval0.tar": plain})
        with pytest.raises(ResultFileError, match=r"interval0\.tar .*has no name of its own"):
            read_spectral_fits(path)

    def test_after_inner(self, tmp_path: Path) -> None:
        """What follows a spectrum's archive is read as before, in every format."""
        members = {
            "a.tar.gz": tarred({"awt.pi": b""}),
            "b.tar.gz": tarred({"bpc.pi": b""}),
            "awt_plot.gif": b"x",
        }
        for kind in ("tar", "tar.gz", "zip"):
            path = tmp_path / f"spec.{kind}"
            path.write_bytes(bytes(pack_as_service("USERPROD_801", {"spec": members}, kind)))
            spectra = read_spectral_fits(path, job=JOB).spectra
            assert {name: list(spectrum.modes) for name, spectrum in spectra.items()} == {
                "a": ["WT"],
                "b": ["PC"],
            }
            assert spectra["a"].modes["WT"].models["PowerLaw"].image_url == f"{JOB.url}/spec/awt_plot.gif"

    def test_links(self, tmp_path: Path) -> None:
        """A link within the bundle is a second name of what was read; one to anything else is refused."""
        path = tmp_path / "lc.tar"
        head = "USERPROD_801/lc"
        for target, problem in (
            ("PCCURVE.qdp", None),
            ("other.txt", "was not read"),
            ("../../x", "not to a file"),
        ):
            with tarfile.open(path, "w") as made:
                for name in ("PCCURVE.qdp", "other.txt"):
                    info = tarfile.TarInfo(f"{head}/{name}")
                    content = (CURVE_COLUMNS + ROW).encode()
                    info.size = len(content)
                    made.addfile(info, io.BytesIO(content))
                link = tarfile.TarInfo(f"{head}/PCCURVE_incbad.qdp")
                link.type, link.linkname = tarfile.SYMTYPE, target
                made.addfile(link)
            if problem is None:
                assert list(read_light_curve(path).curves) == ["PC", "PC_incbad"]
            else:
                with pytest.raises(XRTError, match=problem):
                    read_light_curve(path)

    def test_link_to_spectrum(self, tmp_path: Path) -> None:
        """A second name of a spectrum's archive is another spectrum; what is not looked for may be a link too."""
        path = tmp_path / "spec.tar"
        inner = tarred({"awt.pi": b"", "bpc.pi": b""})
        with tarfile.open(path, "w") as made:
            info = tarfile.TarInfo("spec/a.tar.gz")
            info.size = len(inner)
            made.addfile(info, io.BytesIO(inner))
            for name in ("b.tar.gz", "apc_plot.gif"):
                link = tarfile.TarInfo(f"spec/{name}")
                link.type, link.linkname = tarfile.LNKTYPE, "spec/a.tar.gz"
                made.addfile(link)
        spectra = read_spectral_fits(path).spectra
        assert {name: list(spectrum.modes) for name, spectrum in spectra.items()} == {
            "a": ["WT"],
            "b": ["PC"],
        }

    @pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
    def test_no_files(self, tmp_path: Path, kind: str) -> None:
        """In a folder, nothing but files is read: no link leads out of it, and no pipe is waited for."""
        outside = tmp_path / "secret"
        outside.write_text("NOPOS\n")
        inside = tmp_path / "psf" / "USERPROD_801" / "psf"
        inside.mkdir(parents=True)
        if kind == "link":
            (inside / "results.dat").symlink_to(outside)
        elif kind == "pipe":
            os.mkfifo(inside / "results.dat")
        else:
            (tmp_path / "elsewhere").mkdir()
            (tmp_path / "elsewhere" / "results.dat").write_text("NOPOS\n")
            inside.rmdir()
            inside.symlink_to(tmp_path / "elsewhere")
        with pytest.raises((UnsafeArchiveError, ResultFileError), match=r"is not a file|holds no files"):
            read_position(tmp_path / "psf")

    @pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
    def test_cut_off(self, world: World, tmp_path: Path, kind: str) -> None:
        """A bundle that is cut off anywhere is damaged, even where what is looked for is whole."""
        content = world.place(Product.STANDARD_POS, kind).read_bytes()
        path = tmp_path / f"psf.{kind}"
        for size in range(0, len(content), 97):
            path.write_bytes(content[:size])
            with pytest.raises(ArchiveError, match="incomplete or damaged"):
                read_position(path)

    def test_nothing_written(self, world: World, tmp_path: Path) -> None:
        """Reading needs no place to write to, and leaves nothing behind."""
        for product in Product:
            shutil.copy(world.place(product), tmp_path)
        before = sorted(os.listdir(tmp_path))
        tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
        try:
            read, problems = read_products(tmp_path)
        finally:
            tmp_path.chmod(stat.S_IRWXU)
        assert (len(read), problems) == (7, {})
        assert sorted(os.listdir(tmp_path)) == before


LINES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(
                    "READ TERR 1 2",
                    "READ SERR 2",
                    "READ TERR 1 2 3",
                    "NO NO NO",
                    "NO",
                    "! WT data",
                    "! PC data",
                ),
                *(
                    "! PC -- hard data",
                    "! PC upper limits",
                    "! PC -- hardness ratio",
                    "!",
                    "!Time",
                    "!MJD Rate",
                ),
                *(
                    CURVE_COLUMNS.strip(),
                    CURVE_COLUMNS.strip() + "\tHR\tHardRate",
                    "LOG X ON",
                    ROW.strip(),
                    "\t",
                ),
                *("NOPOS", "0", "1", "1\t0.3\t10", "!ra\tdec", "1\t2", "335.69850", "22 22 47.6", "-7.51788"),
                *("!Time Err (pos) Err(neg) Rate Error", "1 2 -3 4 5", "!Time Error Error", "1 1 1", "2SXPS"),
            ]
        ),
        st.text(st.sampled_from("0123456789+-.eE \t!NOnaif_:"), max_size=30),
        st.text(max_size=10),
    ),
    max_size=20,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
ANYTHING = st.one_of(st.binary(max_size=200), LINES)
MEMBERS = {
    Product.LIGHT_CURVE: ("PCCURVE.qdp", "PCHR.qdp", "WTUL_incbad.qdp", "curve.qdp"),
    Product.SPECTRUM: ("interval0.tar.gz", "x.tar"),
    Product.STANDARD_POS: ("results.dat", "INSXPS"),
    Product.ENHANCED_POS: ("success.txt",),
    Product.ASTROM_POS: ("corrpos.dat", "NOCORR"),
    Product.IMAGE: ("images.log",),
    Product.SOURCE_DET: ("sources_total.txt", "sources_x.txt"),
}


def read_any(path: Path, product: Product) -> object:
    """Read whatever product it is."""
    if product in POSITION_PRODUCTS:
        return read_position(path, product)
    readers: Mapping[Product, Callable[[Path], object]] = {
        Product.LIGHT_CURVE: read_light_curve,
        Product.SPECTRUM: read_spectral_fits,
        Product.IMAGE: read_images,
        Product.SOURCE_DET: read_source_list,
    }
    return readers[product](path)


class TestAnyBytes:
    @FEW
    @given(data=st.data(), product=st.sampled_from(Product))
    def test_members(self, data: st.DataObject, product: Product, tmp_path: Path) -> None:
        """Whatever bytes the files hold, a result comes of them or a documented error that names the bundle."""
        names = data.draw(st.sets(st.sampled_from(MEMBERS[product]), min_size=1))
        path = bundle(tmp_path, product, {name: data.draw(ANYTHING) for name in sorted(names)})
        try:
            read_any(path, product)
        except DOCUMENTED as error:
            assert path.name in error.message  # noqa: PT017 - not every example is an error

    @FEW
    @given(content=LINES)
    @example(content=f"READ TERR 1 2\n{ROW}".encode())
    def test_curves(self, content: bytes, tmp_path: Path) -> None:
        """Whatever lines a table has, each of its columns has all of its rows, or there is a documented error."""
        path = bundle(tmp_path, Product.LIGHT_CURVE, {"PCCURVE.qdp": content})
        try:
            curve = read_light_curve(path, job=JOB)
        except DOCUMENTED:
            return
        assert all(len(column) == len(dataset) > 0 for dataset in curve.curves.values() for column in
                   dataset.columns.values())  # fmt: skip

    @FEW
    @given(content=st.binary(max_size=2000), kind=st.sampled_from(archive.ARCHIVE_FORMATS))
    def test_bundles(self, content: bytes, kind: str, tmp_path: Path) -> None:
        """A bundle of any bytes is damaged, or holds no such product."""
        path = tmp_path / f"psf.{kind}"
        path.write_bytes(content)
        with pytest.raises(DOCUMENTED):
            read_position(path)

    @FEW
    @given(
        numbers=st.lists(
            st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 6), min_size=1, max_size=20
        ),
        gap=st.sampled_from(["\t", "  ", " "]),
    )
    def test_numbers(self, numbers: list[tuple[float, ...]], gap: str, tmp_path: Path) -> None:
        """Every number comes back as it was written, in its column and its row."""
        rows = "".join(gap.join(map(repr, row)) + "\n" for row in numbers)
        read = curves_of(tmp_path, {"WTCURVE.qdp": CURVE_COLUMNS + rows})["WT"]
        assert list(zip(*columns_of(read).values(), strict=True)) == numbers


class TestReadProducts:
    @pytest.mark.parametrize("kind", PLACES)
    def test_all(self, world: World, kind: str, tmp_path: Path) -> None:
        """All products of a build folder are read, in whichever form they are there."""
        for product in Product:
            place = world.place(product, kind)
            (shutil.copytree if kind == "folder" else shutil.copy)(place, tmp_path / place.name)
        write_record(tmp_path, JobRecord(job=world.job))
        read, problems = read_products(tmp_path)
        assert problems == {}
        assert list(read) == list(Product)
        assert {result.provenance.job_name for result in read.values()} == {"GRB 200416A"}
        answered = world.client.retrieve_light_curve(world.job, systematics="both", unreliable="both")
        assert without_origin(read[Product.LIGHT_CURVE]) == without_origin(answered)

    def test_all_in_one(self, tmp_path: Path) -> None:
        """Of a bundle of everything, what is in it is read; a product without files is not there."""
        parts = {"psf": {"results.dat": b"NOPOS\n"}, "xastrom": {"NOCORR": b""}, "spec": {}}
        (tmp_path / "all.zip").write_bytes(bytes(pack_as_service("USERPROD_801", parts, "zip")))
        read, problems = read_products(tmp_path)
        assert (set(read), problems) == ({Product.STANDARD_POS, Product.ASTROM_POS}, {})
        bundle(tmp_path, Product.STANDARD_POS, {"INSXPS": "x"})
        read, problems = read_products(tmp_path)
        assert set(read) == {Product.ASTROM_POS}
        assert "INSXPS" in problems[Product.STANDARD_POS].message

    def test_partly(self, world: World, tmp_path: Path) -> None:
        """What cannot be read is told apart, and does not keep the rest back."""
        shutil.copy(world.place(Product.STANDARD_POS), tmp_path)
        (tmp_path / "lc.tar.gz").write_bytes(b"?")
        read, problems = read_products(tmp_path)
        assert isinstance(read.pop(Product.STANDARD_POS), Position)
        assert read == {}
        assert [type(problem) for problem in problems.values()] == [ArchiveError]

    def test_nothing(self, tmp_path: Path) -> None:
        """An empty folder holds nothing; one that is not there cannot be read."""
        assert read_products(tmp_path) == ({}, {})
        with pytest.raises(OutputError, match="cannot be read"):
            read_products(tmp_path / "nowhere")

    def test_without_extra(self, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the extra, all but light curves can be read."""

        def missing(module: str) -> Any:
            raise ConfigurationError(f"This needs {module}: run `pip install prefect-xrt[science]`.")

        monkeypatch.setattr(bundles, "require", missing)
        monkeypatch.setattr("prefect_xrt.answers.require", missing)
        with pytest.raises(ConfigurationError, match="science"):
            read_light_curve(world.place(Product.LIGHT_CURVE))
        read, problems = read_products(world.folder)
        assert set(read) == set(Product) - {Product.LIGHT_CURVE}
        assert "science" in problems[Product.LIGHT_CURVE].message
