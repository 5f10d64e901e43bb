"""Hold `prefect_xrt.collection` to account."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits, votable
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_xrt import Job, Product, XRTClient, archive, collection
from prefect_xrt.collection import collect, merge_light_curves, write_collection, write_table
from prefect_xrt.emulator import Emulator, archives, science
from prefect_xrt.errors import ConfigurationError, OutputError
from prefect_xrt.protocol import Outcome, ProductStatus
from prefect_xrt.records import JobRecord, write_record
from prefect_xrt.reports import make_report, write_report
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
    SpectralFits,
    SpectrumFits,
    Value,
    write,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ALL = tuple(product for product in Product if product is not Product.SOURCE_DET)


def job_of(job_id: int, name: str | None = "GK Per", products: tuple[Product, ...] = ALL) -> Job:
    """Make a job."""
    return Job(id=job_id, url=f"https://example.org/USERPROD_{job_id}", name=name, products=products)


def where(job: Job | None) -> Provenance:
    """Tell that something is of a job."""
    return Provenance(
        job_id=job.id if job else None,
        job_name=job.name if job else None,
        retrieved_at=NOW,
        sha256="0" * 64,
    )


def curve(times: list[float], *, name: str = "PC", **facts: Any) -> Curve:
    """Make a dataset with a bin at each time."""
    limits = "UL" in name
    columns = {"Time": times, "TimePos": [1.0] * len(times), "TimeNeg": [-1.0] * len(times)}
    columns["UpperLimit" if limits else "Rate"] = [float(number) for number in range(len(times))]
    return Curve(
        name=name,
        mode=name[:2],
        band="total",
        upper_limits=limits,
        systematics=False,
        unreliable=False,
        columns={key: np.array(cells, dtype="float64") for key, cells in columns.items()},
        units={key: "ct / s" if key in ("Rate", "UpperLimit") else "s" for key in columns},
        **facts,
    )


def light_curve(
    *curves: Curve, job: Job | None = None, t0: float | None = 100.0, system: str = MET_SINCE_T0
) -> LightCurve:
    """Put datasets together."""
    return LightCurve(
        curves={entry.name: entry for entry in curves},
        t0_met_s=t0,
        binning="Counts",
        time_system=system,
        provenance=where(job),
    )


def position(job: Job, product: Product = Product.STANDARD_POS, *, found: bool = True) -> Position:
    """Make a position."""
    told = {"ra_deg": 52.8, "dec_deg": 43.9, "err90_arcsec": 3.5} if found else {"reason": "No stars."}
    return Position.model_validate({"product": product, "found": found, "provenance": where(job), **told})


def spectra(job: Job, **modes: ModeFits) -> SpectralFits:
    """Make the fits of one spectrum."""
    return SpectralFits(
        t0_met_s=5.0, spectra={"interval0": SpectrumFits(start_s=1.0, modes=modes)}, provenance=where(job)
    )


def build(directory: Path, job: Job, *results: Result) -> Path:
    """Make a folder with a record, and results in it."""
    directory.mkdir(parents=True, exist_ok=True)
    write_record(directory, JobRecord(job=job))
    for result in results:
        kinds = {LightCurve: Product.LIGHT_CURVE, SpectralFits: Product.SPECTRUM}
        product = result.product if isinstance(result, Position) else kinds[type(result)]  # type: ignore[index]
        write(result, directory / f"{product.value}.ecsv")
    return directory


def report(directory: Path, job: Job, codes: dict[Product, int], at: datetime = NOW) -> None:
    """Write the report of a build."""
    statuses = {p: ProductStatus(product=p, code=code, text="as it says") for p, code in codes.items()}
    made = make_report(
        job.model_copy(update={"products": tuple(codes)}),
        Outcome(job=job, statuses=statuses, looked_at=at),
        {},
        {},
        output_dir=directory,
        started_at=at,
        problem=None,
    )
    write_report(made.model_copy(update={"finished_at": at}))


def bundle(directory: Path, product: str, *, name: str = "GK Per", number: int = 801, **options: Any) -> None:
    """Put a bundle into a folder, as the service makes it."""
    directory.mkdir(parents=True, exist_ok=True)
    parameters = {"name": name, "binMeth": "counts"}
    made = science.Results(parameters, f"https://example.org/USERPROD_{number}", 3)
    files = archives.members(product, made, parameters, **options)
    packed = archives.pack(f"USERPROD_{number}", {product: files}, "tar.gz")
    (directory / f"{product}.tar.gz").write_bytes(bytes(packed))


def rows(table: QTable, *names: str) -> list[tuple[Any, ...]]:
    """Give the rows of a table as plain values, None for what is masked."""
    plain = Table(table, copy=True)
    return [
        tuple(
            None if np.ma.is_masked(row[name]) else getattr(row[name], "item", lambda v=row[name]: v)()
            for name in names
        )
        for row in plain
    ]


class TestFolders:
    def test_tree(self, tmp_path: Path) -> None:
        """All folders of jobs below one are found, however deep, and a job's own subfolders are not looked into."""
        for number, place in enumerate(["b", "a/deep/er", "a"], 1):
            build(tmp_path / place, job_of(number))
        build(tmp_path / "a" / "spec", job_of(9))
        build(tmp_path / ".trash", job_of(10))
        found = collect(tmp_path)
        assert [str(entry.directory.relative_to(tmp_path)) for entry in found.builds] == [
            "a",
            "a/deep/er",
            "b",
        ]
        assert found.unread == ()

    def test_list(self, tmp_path: Path) -> None:
        """A list of folders is read in its order; one that is named twice, or in another, is read once."""
        first, second = build(tmp_path / "x" / "1", job_of(1)), build(tmp_path / "x" / "2", job_of(2))
        found = collect([second, first, tmp_path / "x"])
        assert [entry.job_id for entry in found.builds] == [2, 1]

    def test_nothing_there(self, tmp_path: Path) -> None:
        """A folder without jobs, and one that is not there, are listed."""
        (tmp_path / "empty").mkdir()
        found = collect([tmp_path / "empty", tmp_path / "gone"])
        assert [(entry.place.name, entry.product) for entry in found.unread] == [
            ("empty", None),
            ("gone", None),
        ]
        assert "no folder of a job here" in found.unread[0].reason
        assert "No such file" in found.unread[1].reason

    def test_bundles_alone(self, tmp_path: Path) -> None:
        """A folder with bundles and no record is a job's too; the bundles tell its ID."""
        bundle(tmp_path, "psf", number=77)
        (found,) = collect(tmp_path).builds
        assert (found.job, found.job_id, found.name) == (None, 77, None)
        assert list(found.results) == [Product.STANDARD_POS]

    def test_unpacked_alone(self, tmp_path: Path) -> None:
        """A folder that is named, and has only what bundles were unpacked to, is read."""
        bundle(tmp_path, "psf")
        archive.extract(tmp_path / "psf.tar.gz", tmp_path / "psf")
        (tmp_path / "psf.tar.gz").unlink()
        assert len(collect([tmp_path]).positions()) == 1

    def test_others_go_on(self, tmp_path: Path) -> None:
        """A damaged record, bundle, result or report does not stop the others, and is listed with its reason."""
        build(tmp_path / "good", job_of(1), position(job_of(1)))
        build(tmp_path / "record", job_of(2))
        (tmp_path / "record" / "job.json").write_text("{")
        build(tmp_path / "bundle", job_of(3), position(job_of(3)))
        (tmp_path / "bundle" / "lc.tar.gz").write_bytes(b"no archive")
        build(tmp_path / "result", job_of(4))
        (tmp_path / "result" / "Spectrum.ecsv").write_text("no table")
        build(tmp_path / "report", job_of(5))
        (tmp_path / "report" / "report.json").write_text("{}")
        found = collect(tmp_path)
        assert [entry.job_id for entry in found.builds] == [3, 1, 5, 4]
        told = {
            str(entry.place.relative_to(tmp_path)): (entry.product, entry.reason) for entry in found.unread
        }
        assert {place: product for place, (product, _) in told.items()} == {
            "bundle": Product.LIGHT_CURVE,
            "record": None,
            "report/report.json": None,
            "result/Spectrum.ecsv": Product.SPECTRUM,
        }
        assert "is damaged" in told["record"][1]
        assert "incomplete or damaged" in told["bundle"][1]
        assert rows(found.positions(), "job_id") == [(3,), (1,)]

    def test_str(self, tmp_path: Path) -> None:
        """What could not be read says where, what and why in a line."""
        assert str(collection.Unread(Path("a"), Product.IMAGE, "Why.")) == "a, Image: Why."
        assert str(collection.Unread(Path("a"), None, "Why.")) == "a: Why."

    def test_foreign_result(self, tmp_path: Path) -> None:
        """A result of another job, or another kind than its name says, is not taken."""
        build(tmp_path / "other", job_of(1), position(job_of(2)))
        folder = build(tmp_path / "kind", job_of(3))
        write(position(job_of(3)), folder / "LightCurve.fits")
        write(position(job_of(3)), folder / "enh.parquet")
        found = collect(tmp_path)
        assert [dict(entry.results) for entry in found.builds] == [{}, {}]
        assert [entry.reason for entry in found.unread] == [
            "LightCurve.fits does not hold the LightCurve that its name says.",
            "enh.parquet does not hold the EnhancedPos that its name says.",
            "StandardPos.ecsv is of job 2, and not of job 1 (GK Per).",
        ]

    def test_other_files(self, tmp_path: Path) -> None:
        """Tables of other names in the folder are nobody's business."""
        folder = build(tmp_path, job_of(1))
        (folder / "fluxes.ecsv").write_text("mine")
        (folder / "LightCurve.txt").write_text("mine")
        assert collect(folder).unread == ()

    def test_result_before_bundle(self, tmp_path: Path) -> None:
        """A result that was written goes before the bundle, which needs not even be readable then."""
        folder = build(tmp_path, job_of(801), position(job_of(801)))
        bundle(folder, "psf")
        (found,) = collect(folder).builds
        assert found.results[Product.STANDARD_POS].provenance.sha256 == "0" * 64
        (folder / "psf.tar.gz").write_bytes(b"no archive")
        assert collect(folder).unread == ()

    def test_same_job_twice(self, tmp_path: Path) -> None:
        """Of two folders of one job, each product is taken once; what the second alone has is taken too."""
        job = job_of(1)
        build(tmp_path / "a", job, position(job))
        build(tmp_path / "b", job, position(job), position(job, Product.ENHANCED_POS))
        found = collect(tmp_path)
        assert rows(found.positions(), "directory", "product") == [
            (str(tmp_path / "a"), "StandardPos"),
            (str(tmp_path / "b"), "EnhancedPos"),
        ]
        (told,) = found.unread
        assert (told.product, told.reason) == (
            Product.STANDARD_POS,
            f"It is the same job's as that in {tmp_path / 'a'}, which is taken.",
        )


class TestPositions:
    def test_rows(self, tmp_path: Path) -> None:
        """There is a row per job and kind, with units; what was not found has its reason and no numbers."""
        first, second = job_of(1), job_of(2, None)
        build(tmp_path / "1", first, position(first), position(first, Product.ASTROM_POS, found=False))
        build(tmp_path / "2", second, position(second, Product.ENHANCED_POS))
        table = collect(tmp_path).positions()
        assert rows(table, "job_id", "name", "product", "found", "reason") == [
            (1, "GK Per", "StandardPos", True, None),
            (1, "GK Per", "AstromPos", False, "No stars."),
            (2, None, "EnhancedPos", True, None),
        ]
        assert np.isnan(table["ra_deg"].value).tolist() == [False, True, False]
        assert (str(table["ra_deg"].unit), str(table["err90_arcsec"].unit)) == ("deg", "arcsec")
        assert table["directory"][0] == str(tmp_path / "1")

    def test_of_bundles(self, tmp_path: Path) -> None:
        """Positions are read from the bundles too."""
        for name, number in (("GK Per", 1), ("FO Aqr", 2)):
            folder = build(tmp_path / str(number), job_of(number, name))
            bundle(folder, "psf", name=name, number=number)
            bundle(folder, "xastrom", name=name, number=number, found=False)
        table = collect(tmp_path).positions()
        assert rows(table, "name", "product", "found") == [
            ("GK Per", "StandardPos", True),
            ("GK Per", "AstromPos", False),
            ("FO Aqr", "StandardPos", True),
            ("FO Aqr", "AstromPos", False),
        ]

    def test_none(self, tmp_path: Path) -> None:
        """Without positions the table has no rows."""
        assert len(collect(build(tmp_path, job_of(1))).positions()) == 0


class TestFluxes:
    def test_rows(self, tmp_path: Path) -> None:
        """There is a row per job, spectrum, mode and model; a parameter that another has is a gap."""
        nh, gamma = Value(value=1e21, positive_error=1e20, unit="cm-2"), Value(value=2.0)
        flux = {"ObsFlux": Value(value=1e-11, unit="erg cm-2 s-1")}
        first, second = job_of(1), job_of(2)
        power = ModelFit(parameters={"NH": nh, "Gamma": gamma}, fluxes=flux)
        build(tmp_path / "1", first, spectra(first, PC=ModeFits(models={"PowerLaw": power})))
        apec = ModelFit(parameters={"kT": Value(value=1.5, unit="keV")}, fluxes=flux)
        others = {"PowerLaw": ModelFit(fitted=False), "BlackBody": ModelFit(fitted=None)}
        modes = {"WT": ModeFits(models={"APEC": apec, **others}), "PC": ModeFits()}
        build(tmp_path / "2", second, spectra(second, **modes))
        table = collect(tmp_path).fluxes()
        assert rows(table, "job_id", "spectrum", "mode", "model", "fitted") == [
            (1, "interval0", "PC", "PowerLaw", "yes"),
            (2, "interval0", "WT", "APEC", "yes"),
            (2, "interval0", "WT", "PowerLaw", "no"),
            (2, "interval0", "WT", "BlackBody", "unknown"),
            (2, "interval0", "PC", None, "no"),
        ]
        assert table["kT"].value.tolist()[1] == 1.5
        assert np.isnan(table["kT"].value).tolist() == [True, False, True, True, True]
        assert np.isnan(table["NH"].value).tolist() == [False, True, True, True, True]
        assert table["t0_met_s"].value.tolist() == [5.0] * 5
        assert {name: str(table[name].unit) for name in ("NH", "kT", "t0_met_s")} == {
            "NH": "1 / cm2",
            "kT": "keV",
            "t0_met_s": "s",
        }

    def test_other_unit(self, tmp_path: Path) -> None:
        """Numbers in another unit do not get into one column."""
        for number, unit in ((1, "keV"), (2, "eV")):
            job = job_of(number)
            fit = ModelFit(parameters={"kT": Value(value=1.5, unit=unit)})
            build(tmp_path / str(number), job, spectra(job, PC=ModeFits(models={"APEC": fit})))
        table = collect(tmp_path).fluxes()
        assert [str(table[name].unit) for name in ("kT", "kT_")] == ["keV", "eV"]
        assert np.isnan(table["kT_"].value).tolist() == [True, False]


class TestStatuses:
    def test_rows(self, tmp_path: Path) -> None:
        """The last status of each product is that of the report, and unknown without one."""
        job = job_of(1)
        folder = build(tmp_path / "1", job)
        report(folder, job, {Product.LIGHT_CURVE: 4, Product.SPECTRUM: -1})
        build(tmp_path / "2", job_of(2, products=(Product.IMAGE,)))
        table = collect(tmp_path).statuses()
        assert rows(table, "job_id", "product", "state", "code", "text") == [
            (1, "LightCurve", "ready", 4, "as it says"),
            (1, "Spectrum", "failed", -1, "as it says"),
            (2, "Image", "unknown", None, "There is no report.json of it."),
        ]
        assert rows(table, "looked_at")[0] == ("2026-11-24T12:00:00+00:00",)

    def test_last_one(self, tmp_path: Path) -> None:
        """Where two folders are of one job, the later look counts, in whichever it is."""
        job = job_of(1)
        for name, code, hours in (("a", 3, 0), ("b", 4, 2), ("c", 2, 1)):
            report(build(tmp_path / name, job), job, {Product.IMAGE: code}, NOW + timedelta(hours=hours))
        assert rows(collect(tmp_path).statuses(), "directory", "code") == [(str(tmp_path / "b"), 4)]

    def test_report_of_another(self, tmp_path: Path) -> None:
        """A report of another job tells nothing of this one."""
        folder = build(tmp_path, job_of(1, products=(Product.IMAGE,)))
        report(folder, job_of(2), {Product.IMAGE: 4})
        found = collect(folder)
        assert rows(found.statuses(), "state") == [("unknown",)]
        assert "It is of job 2 (GK Per), and not of job 1" in found.unread[0].reason


class TestLightCurves:
    def test_merged(self) -> None:
        """Bins are in order of time, each with its origin; upper limits stay apart from rates."""
        made = {
            "b": light_curve(curve([30.0, 10.0]), job=job_of(2)),
            "a": light_curve(
                curve([20.0], obs_ids=("00010873001",)), curve([40.0], name="PCUL"), job=job_of(1)
            ),
        }
        table = merge_light_curves(made)
        assert rows(table, "job_id", "name", "directory", "dataset", "upper_limits", "ObsID") == [
            (2, "GK Per", "b", "PC", False, None),
            (1, "GK Per", "a", "PC", False, "00010873001"),
            (2, "GK Per", "b", "PC", False, None),
            (1, "GK Per", "a", "PCUL", True, None),
        ]
        assert table["Time"].value.tolist() == [10.0, 20.0, 30.0, 40.0]
        assert np.isnan(table["Rate"].value).tolist() == [False, False, False, True]
        assert np.isnan(table["UpperLimit"].value).tolist() == [True, True, True, False]
        assert (str(table["Time"].unit), str(table["Rate"].unit)) == ("s", "ct / s")
        assert table.meta["timesys"] == MET_SINCE_T0
        assert table.meta["t0_met_s"] == 100.0

    def test_other_t0(self) -> None:
        """Seconds since different T0 are not merged, and the error tells which light curves go together."""
        made = {name: light_curve(curve([1.0]), t0=t0) for name, t0 in (("a", 1.0), ("b", 2.5), ("c", 1.0))}
        with pytest.raises(ConfigurationError) as caught:
            merge_light_curves(made)
        first, *groups = caught.value.message.split("\n")
        assert "Collect the folders of each group alone" in first
        assert groups == ["  MET since T0, T0 = MET 1 s: a, c", "  MET since T0, T0 = MET 2.5 s: b"]

    def test_other_system(self) -> None:
        """Dates and seconds are not merged, nor are times of which it is not known what they are."""
        made = {"a": light_curve(curve([1.0])), "b": light_curve(curve([1.0]), system=MJD)}
        with pytest.raises(ConfigurationError, match="MJD: b"):
            merge_light_curves(made)
        for untold in ({"system": "unknown"}, {"t0": None}):
            made = {name: light_curve(curve([1.0]), **untold) for name in "ab"}  # type: ignore[arg-type]
            with pytest.raises(ConfigurationError, match="no axis of times in common"):
                merge_light_curves(made)
            assert len(merge_light_curves({"a": made["a"]})) == 1

    def test_dates_need_no_t0(self) -> None:
        """Dates are merged whatever T0 the jobs have, as it does not count for them."""
        made = {name: light_curve(curve([1.0]), t0=t0, system=MJD) for name, t0 in (("a", 1.0), ("b", None))}
        table = merge_light_curves(made)
        assert len(table) == 2
        assert "t0_met_s" not in table.meta

    def test_none(self) -> None:
        """Nothing merged is an empty table."""
        assert len(merge_light_curves({})) == 0
        assert len(merge_light_curves({"a": light_curve()})) == 0

    @settings(max_examples=30)
    @given(st.dictionaries(st.sampled_from("abcd"), st.lists(st.floats(-1e9, 1e9), max_size=5)))
    def test_nothing_lost(self, times: dict[str, list[float]]) -> None:
        """Every bin is there once, with the number that it had, in order of time."""
        made = {name: light_curve(curve(values)) for name, values in times.items()}
        table = merge_light_curves(made)
        expected = sorted(
            (time, float(number), name)
            for name, values in times.items()
            for number, time in enumerate(values)
        )
        merged = rows(table, "Time", "Rate", "directory") if expected else []
        assert sorted(merged) == expected
        assert [row[0] for row in merged] == sorted(row[0] for row in merged)

    def test_of_sources(self, tmp_path: Path) -> None:
        """A collection has the light curve of each source apart; capitals and blanks in names do not matter."""
        for number, name in ((1, "GK Per"), (2, "gk  per"), (3, "FO Aqr")):
            job = job_of(number, name)
            build(tmp_path / str(number), job, light_curve(curve([float(number)]), job=job))
        found = collect(tmp_path)
        assert found.sources == ("GK Per", "FO Aqr")
        assert rows(found.light_curve("GK PER"), "job_id") == [(1,), (2,)]
        for source in (None, "Vega"):
            with pytest.raises(
                ConfigurationError, match="Name a source that has light curves: 'GK Per', 'FO Aqr'"
            ):
                found.light_curve(source)
        assert len(collect(tmp_path / "3").light_curve()) == 1


def test_no_names(tmp_path: Path) -> None:
    """Light curves of jobs without a name are nobody's to merge: each is of a source of its own."""
    for number in (1, 2):
        job = job_of(number, None)
        build(tmp_path / str(number), job, light_curve(curve([1.0]), job=job))
    found = collect(tmp_path)
    assert found.sources == ("job 1", "job 2")
    assert rows(found.light_curve("job 2"), "job_id") == [(2,)]


def example(tmp_path: Path) -> collection.Collection:
    """Collect two jobs with odd texts, one light curve, and gaps in every kind of column."""
    first, second = job_of(1, "Gegenstand α\n $x$"), job_of(2, None)
    fit = ModelFit(parameters={"NH": Value(value=1e21, unit="cm-2")}, fluxes={"ObsFlux": Value(value=1e-11)})
    modes = {"PC": ModeFits(models={"PowerLaw": fit}), "WT": ModeFits()}
    made = light_curve(curve([1.0, 2.0], obs_ids=("00010873001", None)), job=first)
    build(tmp_path / "in" / "1", first, position(first), spectra(first, **modes), made)
    build(tmp_path / "in" / "2", second, position(second, found=False))
    report(tmp_path / "in" / "1", first, {Product.LIGHT_CURVE: 4})
    return collect(tmp_path / "in")


class TestFiles:
    @pytest.mark.parametrize("ending", [".ecsv", ".fits", ".parquet", ".vot"])
    def test_written(self, tmp_path: Path, ending: str) -> None:
        """Each table with rows becomes a file, for each source of its own."""
        written, problems = write_collection(example(tmp_path), tmp_path / "out", ending)
        assert problems == {}
        assert {name.rpartition("_")[0] if "light" in name else name for name in written} == {
            "statuses",
            "positions",
            "fluxes",
            "light_curve_Gegenstand_x",
        }
        assert sorted(os.listdir(tmp_path / "out")) == sorted(f"{name}{ending}" for name in written)

    def test_ecsv(self, tmp_path: Path) -> None:
        """ECSV gives the same table again, units and gaps included; texts are in one line."""
        table = example(tmp_path).fluxes()
        read = QTable.read(write_table(table, tmp_path / "t.ecsv"))
        assert rows(read, *(name for name in table.colnames if table[name].dtype.kind != "f")) == rows(
            table, *(name for name in table.colnames if table[name].dtype.kind != "f")
        )
        assert read["name"][0] == "Gegenstand α $x$"
        assert read["NH"].unit == table["NH"].unit
        assert np.array_equal(read["NH"].value, table["NH"].value, equal_nan=True)
        assert read.meta["contents"] == "fluxes"

    def test_fits(self, tmp_path: Path) -> None:
        """FITS keeps to the standard and gives numbers, units and gaps again; letters beyond ASCII are spelt out."""
        found = example(tmp_path)
        place = write_table(found.light_curve("Gegenstand α $x$"), tmp_path / "t.fits")
        with fits.open(place) as hdus:
            hdus.verify("exception")
            assert hdus[1].header["T0_MET_S"] == 100.0
            assert hdus[1].header["TIMESYS"] == MET_SINCE_T0
        read = QTable.read(place)
        assert read["name"].tolist() == ["Gegenstand \\u03b1 $x$"] * 2
        assert read["Time"].to_value("s").tolist() == [1.0, 2.0]
        statuses = Table.read(write_table(found.statuses(), tmp_path / "s.fits"))
        assert statuses["code"].mask.tolist() == [False, *[True] * len(ALL)]

    def test_votable(self, tmp_path: Path) -> None:
        """VOTables keep to the standard, as TOPCAT wants them."""
        place = write_table(example(tmp_path).positions(), tmp_path / "t.vot")
        table = votable.parse(place, verify="exception").get_first_table()
        assert {field.name: str(field.unit) for field in table.fields if field.unit} == {
            "ra_deg": "deg",
            "dec_deg": "deg",
            "err90_arcsec": "arcsec",
        }
        assert table.array["name"][0] == "Gegenstand α $x$"

    def test_parquet(self, tmp_path: Path) -> None:
        """Parquet opens in pandas with a gap where there is one."""
        frame = pd.read_parquet(write_table(example(tmp_path).positions(), tmp_path / "t.parquet"))
        assert frame["found"].tolist() == [True, False]
        assert frame["name"].isna().tolist() == [False, True]
        assert frame["ra_deg"].isna().tolist() == [False, True]

    @settings(max_examples=30)
    @given(
        text=st.text(st.characters(exclude_categories=())), ending=st.sampled_from(sorted(collection.FORMATS))
    )
    def test_any_text(self, tmp_path_factory: pytest.TempPathFactory, text: str, ending: str) -> None:
        """Whatever the service says of a product, it can be written in each format, and opened."""
        place = tmp_path_factory.mktemp("texts") / f"t{ending}"
        status = collection.LastStatus.model_construct(
            product=Product.IMAGE, state="ready", code=4, text=text
        )
        made = collection.Build(place, job_of(1), {}, (status,))
        write_table(collection.Collection((made,), ()).statuses(), place)
        if ending == ".parquet":
            assert len(pd.read_parquet(place)) == 1
        else:
            assert (
                len(Table.read(place, format={".ecsv": "ascii.ecsv", ".vot": "votable"}.get(ending, "fits")))
                == 1
            )

    def test_not_overwritten(self, tmp_path: Path) -> None:
        """Where one file is there, none is written, unless it is said that they may be replaced."""
        found = example(tmp_path)
        out = tmp_path / "out"
        out.mkdir()
        (out / "fluxes.ecsv").write_text("mine")
        with pytest.raises(OutputError, match=r"fluxes\.ecsv is there already"):
            write_collection(found, out)
        assert os.listdir(out) == ["fluxes.ecsv"]
        with pytest.raises(OutputError, match="is there already"):
            write_table(found.fluxes(), out / "fluxes.ecsv")
        write_collection(found, out, overwrite=True)
        assert (out / "fluxes.ecsv").read_text() != "mine"

    def test_whole_or_not_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where writing fails, what was there is as it was, and nothing is left beside it."""
        table = example(tmp_path).positions()
        out = tmp_path / "out"
        out.mkdir()
        (out / "t.ecsv").write_text("mine")

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match="is full"):
            write_table(table, out / "t.ecsv", overwrite=True)
        assert {path.name: path.read_text() for path in out.iterdir()} == {"t.ecsv": "mine"}

    def test_other_ending(self, tmp_path: Path) -> None:
        """An ending that is none of them is refused, before anything is written."""
        with pytest.raises(ConfigurationError, match=r"ends with none of \.ecsv, \.fits, \.parquet, \.vot"):
            write_collection(example(tmp_path), tmp_path / "out", ".csv")

    def test_apart(self, tmp_path: Path) -> None:
        """Light curves that cannot be merged are told of; the other tables are written."""
        for number in (1, 2):
            job = job_of(number)
            build(tmp_path / str(number), job, light_curve(curve([1.0]), job=job, t0=float(number)))
        written, problems = write_collection(collect(tmp_path), tmp_path / "out")
        assert list(written) == ["statuses"]
        (problem,) = problems.values()
        assert "no axis of times in common" in str(problem)


def test_of_the_service(xrt_service_factory: Callable[..., Emulator], request_: Any, tmp_path: Path) -> None:
    """What two finished jobs have left, as downloaded and as retrieved, becomes one table per product."""
    service = xrt_service_factory(speed=1e6)
    client = XRTClient(service.user_id, service.url)
    for number in (1, 2):
        job = client.submit(request_.model_copy(update={"t0_met_s": 608713541.952}))
        while not client.check_product_status(job).complete:
            service.advance(1000)
        folder = tmp_path / str(number)
        folder.mkdir()
        write_record(folder, JobRecord(job=job))
        archive.download(client, job, Product.LIGHT_CURVE, folder)
        write(client.retrieve_spectral_fits(job), folder / "Spectrum.ecsv")
    found = collect(tmp_path)
    assert found.unread == ()
    assert found.sources == ("GRB 200416A",)
    merged = found.light_curve()
    assert set(merged["dataset"]) >= {"WT", "PC", "PCUL"}
    assert sorted(set(merged["job_id"])) == [801, 802]
    fluxes = found.fluxes()
    assert rows(fluxes, "job_id", "mode", "model", "fitted") == [
        (job_id, mode, "PowerLaw", "yes") for job_id in (801, 802) for mode in ("WT", "PC")
    ]
    assert (fluxes["ObsFlux"].value > 0).all()


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "pandas", "astropy", "matplotlib", "PIL", "pyarrow", "prefect"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from prefect_xrt import collection, science_cli
from prefect_xrt.errors import ConfigurationError
for act in (lambda: collection.collect(Path(".")), lambda: collection.Collection((), ()).fluxes()):
    try:
        act()
    except ConfigurationError as error:
        print(error)
"""


def test_not_installed() -> None:
    """Without the extra, and without Prefect, the room is imported and says what to install when it is used."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install prefect-xrt[science]") == 2
