"""The benchmarks' promise: each is one command that prints a table."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize("name", ["light_curve", "look", "download", "flow"])
def test_runs(name: str) -> None:
    """A benchmark still runs against what is there now, as far as that takes no server of Prefect."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{name}.py", "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "| --- | --- |" in done.stdout
