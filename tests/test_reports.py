"""What people look at says what happened, in any text that the service may send."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from prefect_xrt import reports
from prefect_xrt.archive import ProductFile
from prefect_xrt.errors import OutputError
from prefect_xrt.protocol import Job, Outcome, ProductStatus
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
FILE = ProductFile(
    job_id=803, product=Product.LIGHT_CURVE, path=Path("/data/lc.tar.gz"), size=7, sha256="0f" * 32
)


def report(codes: dict[Product, int], *files: ProductFile, **facts: Any) -> reports.BuildReport:
    """Make a report of products with codes, and files."""
    statuses = {
        product: ProductStatus(product=product, code=code, text="as it says")
        for product, code in codes.items()
    }
    outcome = Outcome(job=JOB, statuses=statuses, looked_at=NOON) if statuses else None
    options: dict[str, Any] = {"problems": {}, "problem": None, **facts}
    return reports.make_report(
        JOB,
        outcome,
        {file.product: file for file in files},
        output_dir=Path("/data"),
        started_at=NOON,
        **options,
    )


class TestBuildReport:
    def test_all_there(self) -> None:
        """A build with all its files succeeded, and says so in a line."""
        other = FILE.model_copy(update={"product": Product.SPECTRUM})
        made = report({Product.LIGHT_CURVE: 4, Product.SPECTRUM: 4}, FILE, other)
        assert made.succeeded
        assert made.summary() == "2 of 2 products of job 803 (GK Per) are in /data."

    def test_partly(self) -> None:
        """What is not there is named with how it ended."""
        made = report({Product.LIGHT_CURVE: 4, Product.SPECTRUM: -1}, FILE)
        assert (made.succeeded, made.cancelled, made.files) == (False, False, (FILE,))
        expected = (
            "1 of 2 products of job 803 (GK Per) are in /data; not there: Spectrum failed (-1, as it says)."
        )
        assert made.summary() == expected

    def test_ready_but_not_fetched(self) -> None:
        """A product that is ready and could not be fetched is no success, and tells why."""
        codes = {Product.LIGHT_CURVE: 4, Product.SPECTRUM: 4}
        made = report(codes, FILE, problems={Product.SPECTRUM: "the disk is full"})
        assert not made.succeeded
        assert made.summary().endswith("not there: Spectrum (the disk is full).")

    def test_cancelled_is_all_of_it(self) -> None:
        """A build is cancelled only if every product is."""
        assert report({Product.LIGHT_CURVE: -4, Product.SPECTRUM: -4}).cancelled
        assert not report({Product.LIGHT_CURVE: -4, Product.SPECTRUM: -1}).cancelled

    def test_never_seen(self) -> None:
        """A job that could never be looked at has products of an unknown state, and tells why."""
        made = report({}, problem="The service was away.")
        assert [entry.state for entry in made.products] == ["unknown", "unknown"]
        assert made.summary().endswith("The service was away.")

    @pytest.mark.parametrize(
        ("codes", "expected"),
        [
            ((4, -3), ["A report to be sent to swifthelp", "To build again"]),
            ((4, -1), ["To build again", "change the request, or ask"]),
            ((4, -4), ["To build again"]),
        ],
        ids=["alarm", "failed", "cancelled"],
    )
    def test_next_step(self, codes: tuple[int, int], expected: list[str]) -> None:
        """What is not there comes with what to do about it, and with nothing else."""
        steps = report(dict(zip(JOB.products, codes, strict=True)), FILE).next_step().split(". ")
        assert len(steps) == len(expected)
        assert all(part in step for part, step in zip(expected, steps, strict=True))

    def test_next_step_after_a_download(self) -> None:
        """What is ready and could not be fetched is to be fetched by the same run again."""
        codes = {Product.LIGHT_CURVE: 4, Product.SPECTRUM: 4}
        made = report(codes, FILE, problems={Product.SPECTRUM: "the disk is full"})
        assert made.next_step() == "Run the same again to fetch what is missing: it goes on with this job."

    def test_nothing_to_do(self) -> None:
        """Where all is there, or the wait ended early and says so itself, nothing is added."""
        other = FILE.model_copy(update={"product": Product.SPECTRUM})
        assert report({Product.LIGHT_CURVE: 4, Product.SPECTRUM: 4}, FILE, other).next_step() == ""
        assert (
            report({Product.LIGHT_CURVE: 4, Product.SPECTRUM: 3}, FILE, problem="Too late.").next_step() == ""
        )

    def test_missing(self) -> None:
        """What is missing is told with its reason, for programs."""
        codes = {Product.LIGHT_CURVE: 4, Product.SPECTRUM: -1}
        made = report(codes, problems={Product.LIGHT_CURVE: "the disk is full"})
        assert made.missing == {"LightCurve": "the disk is full", "Spectrum": "failed (-1, as it says)"}

    def test_json(self) -> None:
        """The report is the same after its way through JSON."""
        made = report({Product.LIGHT_CURVE: 4, Product.SPECTRUM: -1}, FILE)
        again = reports.BuildReport.model_validate(json.loads(json.dumps(made.model_dump(mode="json"))))
        assert again == made

    def test_written(self, tmp_path: Path) -> None:
        """The report is written into its folder, whole, or that it cannot be is told by name."""
        made = report({Product.LIGHT_CURVE: -1}).model_copy(update={"output_dir": tmp_path})
        reports.write_report(made)
        assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
        with pytest.raises(OutputError):
            reports.write_report(made.model_copy(update={"output_dir": tmp_path / "gone"}))
