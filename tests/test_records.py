"""Hold `prefect_xrt.records` to account."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefect_xrt import protocol
from prefect_xrt.errors import AnswerError, OutputError
from prefect_xrt.protocol import Job
from prefect_xrt.records import JobRecord, read_record, read_submission, write_record
from prefect_xrt.request import Product

NOW = datetime(2024, 5, 1, 12, 30, 15, 250_000, tzinfo=UTC)
JOB = Job(
    id=801,
    url="https://example.org/USERPROD_801",
    name="Gegenstände α",
    products=(Product.LIGHT_CURVE, Product.IMAGE),
    parameters={
        "name": "Gegenstände α",
        "RA": 335.6985,
        "targ": "{00010873,00010907}",
        "odd": [None, {"a": 1}],
    },
    submitted_at=NOW,
)
RECORD = JobRecord(job=JOB, flow_run_id="0b2f")
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


class TestRecords:
    def test_same_again(self, tmp_path: Path) -> None:
        """A record that was written is read as it was, twice over."""
        for record in (RECORD, JobRecord(job=JOB)):
            write_record(tmp_path, record)
            assert read_record(tmp_path) == record
        assert sorted(os.listdir(tmp_path)) == ["job.json", "jobPars.json"]

    def test_parameters(self, tmp_path: Path) -> None:
        """The accepted parameters are beside it as the service spelt them, readable by people."""
        write_record(tmp_path, RECORD)
        text = (tmp_path / "jobPars.json").read_text(encoding="utf-8")
        assert json.loads(text) == JOB.parameters
        assert "Gegenstände α" in text

    @settings(
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
    )
    @given(st.dictionaries(st.sampled_from(["name", "RA", "x"]), VALUES))
    def test_any_job(self, tmp_path: Path, parameters: dict[str, Any]) -> None:
        """Whatever parameters the service sends, the job is recorded and found again, or never believed."""
        answer = {"OK": 1, "JobID": 5, "URL": "https://example.org/x", "jobPars": parameters}
        try:
            data = protocol.decode_json(json.dumps(answer).encode())
        except AnswerError:
            return
        record = JobRecord(job=protocol.decode_submit(data, (Product.IMAGE,), NOW))
        write_record(tmp_path, record)
        assert read_record(tmp_path) == record
        assert json.loads((tmp_path / "jobPars.json").read_text(encoding="utf-8")) == record.job.parameters

    def test_none(self, tmp_path: Path) -> None:
        """A folder without a record, and one that is not there, hold no job."""
        assert read_record(tmp_path) is None
        assert read_record(tmp_path / "absent") is None

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe",
            b"[]",
            b"{}",
            b'{"version": true}',
            RECORD.model_dump_json().encode()[:-20],
            b'{"version": 1, "colour": "red"}',
        ],
    )
    @pytest.mark.parametrize(
        ("name", "read"), [("job.json", read_record), ("submission.json", read_submission)]
    )
    def test_damaged(self, content: bytes, name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
        """A damaged record is not taken for none, since its job might be lost; the error names the way out."""
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OutputError, match=rf"{name} is damaged.*prefect-xrt attach JOB_ID --out"):
            read(tmp_path)
        assert (tmp_path / name).read_bytes() == content

    def test_of_a_newer_version(self, tmp_path: Path) -> None:
        """A record of a newer version says so, and is left as it is."""
        content = RECORD.model_dump_json().replace('"version":2', '"version":3,"colour":"red"').encode()
        (tmp_path / "job.json").write_bytes(content)
        with pytest.raises(OutputError, match=r"job\.json was written by a newer version"):
            read_record(tmp_path)
        assert (tmp_path / "job.json").read_bytes() == content

    def test_of_an_older_version(self, tmp_path: Path) -> None:
        """The first layout, which did not say what was asked for, is still read."""
        old = {"version": 1, "job": JOB.model_dump(mode="json"), "flow_run_id": "0b2f"}
        (tmp_path / "job.json").write_text(json.dumps(old))
        record = read_record(tmp_path)
        assert record
        assert (record.job, record.flow_run_id, record.request) == (JOB, "0b2f", None)

    def test_not_a_file(self, tmp_path: Path) -> None:
        """Neither is a folder of that name, nor a file where the folder should be."""
        (tmp_path / "job.json").mkdir()
        with pytest.raises(OutputError):
            read_record(tmp_path)
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(OutputError):
            read_record(tmp_path / "file")

    def test_unwritable(self, tmp_path: Path) -> None:
        """A record that cannot be written is told by name."""
        with pytest.raises(OutputError, match="cannot be written"):
            write_record(tmp_path / "absent", RECORD)
