"""Hold `prefect_xrt.science_cli` to account, within the group that it is a part of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.table import QTable
from click.testing import CliRunner, Result

from prefect_xrt import Job, Product, XRTClient, read_request_file, science_cli
from prefect_xrt.cli import _Group, cli
from prefect_xrt.emulator import Emulator, Timeline, archives, science
from prefect_xrt.records import JobRecord, write_record
from prefect_xrt.results import SourceList, read_result, write

EXAMPLE = Path(science_cli.__file__).parent / "examples" / "grb200416a.json"
GROUP = _Group("prefect-xrt", commands={"plot": science_cli.plot, "collect": science_cli.collect})


def run(*arguments: str | Path) -> Result:
    """Run a command."""
    return CliRunner().invoke(GROUP, list(map(str, arguments)))


def build(directory: Path, job_id: int = 801, *, t0: float = 1e8) -> Path:
    """Make the folder of a finished job with a light curve, a spectrum and two positions."""
    directory.mkdir(parents=True)
    parameters = {"name": "GK Per", "binMeth": "counts", "lctimetype": "s", "Tstart": t0}
    url = f"https://example.org/USERPROD_{job_id}"
    products = {
        "lc": Product.LIGHT_CURVE,
        "spec": Product.SPECTRUM,
        "psf": Product.STANDARD_POS,
        "enh": Product.ENHANCED_POS,
    }
    job = Job(id=job_id, url=url, name="GK Per", products=tuple(products.values()), parameters=parameters)
    write_record(directory, JobRecord(job=job))
    made = science.Results(parameters, url, 3)
    for short in products:
        files = {short: archives.members(short, made, parameters)}
        packed = archives.pack(f"USERPROD_{job_id}", files, "tar.gz")
        (directory / f"{short}.tar.gz").write_bytes(bytes(packed))
    return directory


class TestPlot:
    def test_folder(self, tmp_path: Path) -> None:
        """All that can be drawn of a job becomes a picture each, and their names are told."""
        done = run("plot", build(tmp_path / "in"), "--out", tmp_path / "out")
        assert (done.exit_code, done.stderr) == (0, "")
        names = ["light_curve", "positions", "spectra"]
        assert done.stdout.splitlines() == [f"{name} -> {tmp_path / 'out' / name}.png" for name in names]
        assert all((tmp_path / "out" / f"{name}.png").read_bytes()[1:4] == b"PNG" for name in names)

    def test_json(self, tmp_path: Path) -> None:
        """A script gets one document."""
        done = run("plot", build(tmp_path / "in"), "--out", tmp_path, "--format", "svg", "--json")
        told = json.loads(done.stdout)
        assert told["problems"] == {}
        assert told["figures"]["positions"] == str(tmp_path / "positions.svg")

    def test_file(self, tmp_path: Path) -> None:
        """A result that was written to a file is drawn, in the datasets and scales that were asked for."""
        folder = build(tmp_path / "in")
        from prefect_xrt.bundles import read_light_curve, read_position  # noqa: PLC0415

        curve = write(read_light_curve(folder / "lc.tar.gz"), tmp_path / "mine.fits")
        look = ("--dataset", "PC_incbad", "--rate-scale", "linear", "--time-scale", "log")
        assert run("plot", curve, "--out", tmp_path / "out", *look).exit_code == 0
        place = write(read_position(folder / "psf.tar.gz"), tmp_path / "mine.ecsv")
        assert run("plot", place, "--out", tmp_path / "out").stdout.startswith("positions -> ")

    def test_partly(self, tmp_path: Path) -> None:
        """What cannot be read is told, and the rest drawn all the same."""
        folder = build(tmp_path / "in")
        (folder / "spec.tar.gz").write_bytes(b"no archive")
        done = run("plot", folder, "--out", tmp_path / "out")
        assert done.exit_code == 3
        assert "spec.tar.gz is incomplete or damaged" in done.stderr
        assert (tmp_path / "out" / "positions.png").exists()

    def test_nothing(self, tmp_path: Path) -> None:
        """Where there is nothing to draw, nothing is made."""
        (tmp_path / "in").mkdir()
        done = run("plot", tmp_path / "in", "--out", tmp_path / "out")
        assert (done.exit_code, (tmp_path / "out").exists()) == (12, False)
        assert "There is nothing to draw here." in done.stderr

    @pytest.mark.parametrize(
        ("place", "options", "code", "told"),
        [
            ("gone", (), 12, "gone is not there"),
            ("in", ("--dataset", "XX"), 10, "no dataset 'XX'"),
            ("sources.ecsv", (), 10, "holds no light curve and no position"),
            ("in/job.json", (), 10, "ends with none of"),
        ],
    )
    def test_refused(
        self, tmp_path: Path, place: str, options: tuple[str, ...], code: int, told: str
    ) -> None:
        """What cannot be drawn at all is an error with its own exit code."""
        folder = build(tmp_path / "in")
        from prefect_xrt.bundles import read_position  # noqa: PLC0415

        where = read_position(folder / "psf.tar.gz").provenance
        write(SourceList(bands={"Total": ({"ra": 1.0},)}, provenance=where), tmp_path / "sources.ecsv")
        done = run("plot", tmp_path / place, "--out", tmp_path / "out", *options)
        assert done.exit_code == code
        assert told in " ".join(done.stderr.split())

    def test_not_overwritten(self, tmp_path: Path) -> None:
        """Pictures that are there stay, unless it is said that they may be replaced."""
        folder = build(tmp_path / "in")
        (tmp_path / "positions.png").write_text("mine")
        assert run("plot", folder, "--out", tmp_path).exit_code == 12
        assert (tmp_path / "positions.png").read_text() == "mine"
        assert run("plot", folder, "--out", tmp_path, "--overwrite").exit_code == 0


class TestCollect:
    def test_tables(self, tmp_path: Path) -> None:
        """What is in the folders of several jobs becomes one table per product."""
        for number in (801, 802):
            build(tmp_path / "in" / str(number), number)
        done = run("collect", tmp_path / "in", "--out", tmp_path / "out", "--json")
        told = json.loads(done.stdout)
        assert (done.exit_code, told["jobs"], told["problems"]) == (0, 2, {})
        assert set(told["tables"]) >= {"statuses", "positions", "fluxes"}
        positions = QTable.read(told["tables"]["positions"])
        assert positions["job_id"].tolist() == [801, 801, 802, 802]
        (curve,) = (path for name, path in told["tables"].items() if name.startswith("light_curve"))
        times = QTable.read(curve)["Time"].value
        assert np.array_equal(times, np.sort(times))

    def test_partly(self, tmp_path: Path) -> None:
        """What cannot be read or merged is told, and the rest written all the same."""
        for number in (801, 802):
            build(tmp_path / "in" / str(number), number, t0=float(number))
        (tmp_path / "in" / "801" / "psf.tar.gz").write_bytes(b"no archive")
        done = run("collect", tmp_path / "in", "--out", tmp_path / "out", "--format", "fits")
        assert done.exit_code == 3
        assert f"positions -> {tmp_path / 'out' / 'positions.fits'}" in done.stdout
        assert "psf.tar.gz is incomplete or damaged" in done.stderr
        assert "no axis of times in common" in done.stderr

    def test_nothing(self, tmp_path: Path) -> None:
        """Where there is no job at all, that is an error."""
        done = run("collect", tmp_path, "--out", tmp_path / "out")
        assert done.exit_code == 12
        assert done.stderr == f"Error: {tmp_path}: There is no folder of a job here, nor below it.\n"

    def test_readable_again(self, tmp_path: Path) -> None:
        """Tables that were put into the folder of a job are not taken for its results."""
        folder = build(tmp_path / "in")
        for _ in range(2):
            assert run("collect", folder, "--out", folder, "--overwrite").exit_code == 0
        write(read_result(write_curve(folder)), folder / "LightCurve.parquet")
        assert run("collect", folder, "--out", folder, "--overwrite").exit_code == 0


def write_curve(folder: Path) -> Path:
    """Write the light curve of a folder into it."""
    from prefect_xrt.bundles import read_light_curve  # noqa: PLC0415

    return write(read_light_curve(folder / "lc.tar.gz"), folder / "LightCurve.ecsv")


class TestRetrieve:
    def test_every_result(self, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """`retrieve` writes the result of every product that is ready, and `collect` finds the numbers in them."""
        emulator = service(default=Timeline.of((4,)))
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(read_request_file(EXAMPLE))
        done = CliRunner().invoke(cli, ["retrieve", "801", "--out", str(tmp_path), "--json"])
        assert done.exit_code == 0, done.output
        files = json.loads(done.stdout)["files"]
        expected = {"LightCurve", "Spectrum", "StandardPos", "EnhancedPos", "AstromPos"}
        assert set(files) == expected
        assert all(read_result(Path(path)) for path in files.values())

    def test_not_yet(self, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """What still builds has no results: exit code 13, and what is ready is there."""
        emulator = service(default=Timeline.of((4,)), timelines={"lc": Timeline.of((3,))})
        with XRTClient(emulator.user_id, emulator.url) as client:
            client.submit(read_request_file(EXAMPLE))
        done = CliRunner().invoke(cli, ["retrieve", "801", "--out", str(tmp_path)])
        assert done.exit_code == 13
        assert not (tmp_path / "LightCurve.ecsv").exists()
        assert (tmp_path / "Spectrum.ecsv").exists()
