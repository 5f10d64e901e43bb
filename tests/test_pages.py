"""The pages in the Prefect UI say what happened, in any text that the service may send, and show pictures."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_xrt import (
    AstrometricPosition,
    Image,
    LightCurve,
    ProductRequest,
    Spectrum,
    XRTClient,
    pages,
)
from prefect_xrt.archive import ProductFile, download_all
from prefect_xrt.emulator import Emulator, Scenario, Timeline
from prefect_xrt.parameters import encode
from prefect_xrt.protocol import Job, Outcome, ProductStatus
from prefect_xrt.reports import BuildReport, make_report
from prefect_xrt.request import Product

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
JOB = Job(
    id=803,
    url="https://www.swift.ac.uk/user_objects/tprods/USERPROD_803",
    name="GK Per",
    products=(Product.LIGHT_CURVE, Product.SPECTRUM),
    parameters={"name": "GK Per", "lc": 1, "spec": 1},
    submitted_at=NOON,
)
PICTURE = re.compile(r"!\[(.+?)\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)")
REQUEST = ProductRequest(
    name="GRB 200416A",
    targets=["00966554"],
    ra_deg=335.6985,
    dec_deg=-7.5179,
    centroid=True,
    position_error_arcmin=1,
    light_curve=LightCurve(binning="obsid"),
    spectrum=Spectrum(),
    image=Image(),
    standard_position=True,
    astrometric_position=AstrometricPosition(),
)


def report_of(
    job: Job, files: dict[Product, ProductFile], folder: Path, code: int = 4, **facts: Any
) -> BuildReport:
    """Make the report of a build."""
    statuses = {
        product: ProductStatus(product=product, code=code, text=facts.get("text", "Complete"))
        for product in job.products
    }
    outcome = Outcome(job=job, statuses=statuses, looked_at=NOON)
    return make_report(job, outcome, files, {}, output_dir=folder, started_at=NOON, problem=None)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuildReport]:
    """Build a job at an embedded service, and download all of it."""
    folder = tmp_path_factory.mktemp("job")
    scenario = Scenario(default=Timeline.of((4,)), observations=3)
    with Emulator(scenario) as service, XRTClient(service.user_id, service.url) as client:
        job = client.submit(REQUEST)
        fetched, problems = download_all(client, job, job.products, folder, "tar.gz")
        assert not problems
        yield report_of(job, {file.product: file for file in fetched}, folder)


@pytest.fixture(scope="module")
def page(built: BuildReport) -> str:
    """Make the page of it, with what was asked for."""
    return pages.report_page(built, encode(REQUEST))


def rows(page: str, title: str) -> list[list[str]]:
    """Give the cells of the table below a title, its headings first."""
    part = page.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (lines[0], *lines[2:])]


class TestReportPage:
    def test_products(self, built: BuildReport, page: str) -> None:
        """Every product has its end, its file, and the size and checksum of that."""
        _, *found = rows(page, "Products")
        expected = [
            [file.product, "ready", "4 \\(Complete\\)", file.path.name, f"{file.size:,}"]
            for file in built.files
        ]
        assert sorted(found) == sorted(expected)
        sums = page.split("## Checksums (SHA-256)")[1].split("```")[1].strip().splitlines()
        assert sums == [f"{file.sha256}  {file.path.name}" for file in built.files]

    def test_positions(self, page: str) -> None:
        """Positions have coordinates and errors with their units."""
        _, *found = rows(page, "Positions")
        assert [row[0] for row in found] == ["StandardPos", "AstromPos"]
        assert all(re.fullmatch(r"335\.69\d{3}°", row[1]) for row in found)
        assert all(re.fullmatch(r"-7\.5\d{4}°", row[2]) for row in found)
        assert all(re.fullmatch(r"\d\.\d″", row[3]) for row in found)

    def test_pictures(self, page: str) -> None:
        """Light curve, finder, spectra and images are pictures in the page itself."""
        pictures = dict(PICTURE.findall(page))
        assert list(pictures) == ["Light curve", "Positions", "Spectra", "Images"]
        assert all(base64.b64decode(text, validate=True)[1:4] == b"PNG" for text in pictures.values())

    def test_parameters(self, page: str) -> None:
        """What was asked for stands beside what was accepted, the service's own choices included."""
        table = {row[0]: row[1:] for row in rows(page, "What was asked for, and what the service made of it")}
        assert table["binMeth"] == ["obsid", "obsid"]
        assert table["sigmin"] == ["–", "3"]
        assert "was attached to" not in page

    def test_attached(self, tmp_path: Path) -> None:
        """Of a job that was attached to, the page says that it is not known what was asked for."""
        assert "was attached to" in pages.report_page(report_of(JOB, {}, tmp_path))

    def test_no_position(self, tmp_path: Path) -> None:
        """That there is no position is told with the reason, and no finder is drawn."""
        scenario = Scenario(default=Timeline.of((4,)), no_position=("psf", "xastrom"))
        request = REQUEST.model_copy(update={"light_curve": None, "spectrum": None, "image": None})
        with Emulator(scenario) as service, XRTClient(service.user_id, service.url) as client:
            job = client.submit(request)
            fetched, _ = download_all(client, job, job.products, tmp_path, "tar.gz")
        page = pages.report_page(report_of(job, {file.product: file for file in fetched}, tmp_path))
        _, *found = rows(page, "Positions")
        assert all(row[1].startswith("none: ") for row in found)
        assert not PICTURE.findall(page)

    def test_nothing_there(self, tmp_path: Path) -> None:
        """A build without files has a page all the same, without empty chapters."""
        page = pages.report_page(report_of(JOB, {}, tmp_path, code=-1, text="Error"))
        assert [row[1:4] for row in rows(page, "Products")[1:]] == [["failed", "-1 \\(Error\\)", "–"]] * 2
        assert "To build again, run it with" in page
        assert "## Positions" not in page
        assert "## Pictures" not in page

    def test_spoilt(self, built: BuildReport, tmp_path: Path) -> None:
        """A bundle that is spoilt meanwhile costs its own picture only, and is named."""
        files = {file.product: file for file in built.files}
        broken = tmp_path / "lc.tar.gz"
        broken.write_bytes(b"no archive")
        files[Product.LIGHT_CURVE] = files[Product.LIGHT_CURVE].model_copy(update={"path": broken})
        page = pages.report_page(report_of(built.job, files, built.output_dir))
        assert list(dict(PICTURE.findall(page))) == ["Positions", "Spectra", "Images"]
        assert "- Light curve: lc.tar.gz is incomplete or damaged" in page

    def test_too_large(self, built: BuildReport, monkeypatch: pytest.MonkeyPatch) -> None:
        """Bundles and pictures that are too large are named, not shown."""
        monkeypatch.setattr(pages, "MAX_SHOWN_BYTES", 1000)
        monkeypatch.setattr(pages, "MAX_PICTURE_BYTES", 1000)
        page = pages.report_page(built)
        assert not PICTURE.findall(page)
        assert "LightCurve: lc.tar.gz is too large" in page
        assert re.search(r"Positions: the picture has \d+ bytes", page)

    def test_hostile_texts(self, tmp_path: Path) -> None:
        """No text of the service's becomes a heading, a picture, a link, HTML, or a column more."""
        hostile = "# a | <img src=x onerror=alert(1)> ![x](y) `c` [l](javascript:x)"
        job = JOB.model_copy(update={"name": hostile, "parameters": {hostile: hostile}})
        page = pages.report_page(report_of(job, {}, tmp_path, code=-1, text=hostile))
        assert not re.search(r"(?<!\\)[<`]", page.replace(f"](<{JOB.url}>)", ""))
        assert not PICTURE.search(page)
        assert all(len(row) == 5 for row in rows(page, "Products"))
        assert all(len(row) == 3 for row in rows(page, "What was asked for, and what the service made of it"))

    def test_without_the_extra(self, built: BuildReport, tmp_path: Path) -> None:
        """Without the extra the page holds all but the pictures, and says what to install for these."""
        (tmp_path / "report.json").write_text(built.model_dump_json())
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_EXTRA, tmp_path / "report.json"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "| StandardPos | 335" in done.stdout
        assert "data:image" not in done.stdout
        assert "pip install prefect\\-xrt" in done.stdout or "pip install prefect-xrt" in done.stdout


WITHOUT_EXTRA = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numpy", "pandas", "astropy", "matplotlib", "PIL", "pyarrow"):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
from pathlib import Path
from prefect_xrt.pages import report_page
from prefect_xrt.reports import BuildReport
print(report_page(BuildReport.model_validate_json(Path(sys.argv[1]).read_text())))
"""


class TestAlarmPage:
    def test_hostile_texts(self) -> None:
        """Bars, line breaks and fences in the service's texts do not break out of their place."""
        status = ProductStatus(
            product=Product.SPECTRUM,
            code=-3,
            text="a | b\nc",
            progress={"GotProgress": 1, "PreProgress": "``` <em>busy</em>", "ProgressSteps": []},
        )
        job = JOB.model_copy(update={"parameters": {"name": "```\n# not a title"}})
        text = pages.alarm_page(job, status, NOON)
        assert "| status text | a \\| b c |" in text
        fences = [line for line in text.splitlines() if line.startswith("```")]
        assert fences == ["```", "```", "```json", "```"]
        assert "# not a title" not in text.splitlines()

    def test_time_of_a_job_attached_by_its_id(self) -> None:
        """Where the time of the submission is not known, the report says so."""
        job = JOB.model_copy(update={"submitted_at": None, "name": None})
        text = pages.alarm_page(job, ProductStatus(product=Product.SPECTRUM, code=-2, text="x"), NOON)
        assert "| submitted (UTC) | not known here |" in text
        assert "Job 803, product Spectrum" in text
