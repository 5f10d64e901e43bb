"""What follows builds, spread over the processes of Dask: the script of docs/machines.md."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import cluster
import pytest
from cluster import ROOT

from prefect_xrt import Product, bundles
from prefect_xrt.emulator import Emulator, Timeline
from prefect_xrt.pipelines.decay import fit_decay

if TYPE_CHECKING:
    from conftest import Server


def test_fits(
    server: Server,
    service: Callable[..., Emulator],
    tmp_path: Path,
) -> None:
    """Every light curve is fitted in a process of Dask, with what a fit here gives."""
    pytest.importorskip("prefect_dask")
    emulator = service(default=Timeline.of((4,)))
    built = [
        cluster.build(emulator, name, tmp_path / "products" / name) for name in ("first", "second", "third")
    ]
    expected = []
    for report in built:
        path = next(file.path for file in report.files if file.product is Product.LIGHT_CURVE)
        curve = bundles.read_light_curve(path, job=report.job)
        assert pickle.loads(pickle.dumps(curve)) == curve  # noqa: S301 - our own
        expected.append(f"{report.job.name}: {fit_decay(curve)}")
    page = (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    script = re.search(r'```python title="fits.py"\n(.*?)^```', page, re.DOTALL | re.MULTILINE)
    assert script
    (tmp_path / "fits.py").write_text(script[1], encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "fits.py"],
        cwd=tmp_path,
        env=os.environ | {"PREFECT_API_URL": server.url},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == expected
    assert "distributed" in done.stderr or "dask" in done.stderr.lower()
