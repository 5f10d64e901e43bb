"""What is deployed runs: the deployment file, a work pool, a worker, and a run that ends with files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_xrt.emulator import Emulator, Timeline

if TYPE_CHECKING:
    from conftest import Server

    from prefect_xrt import ProductRequest

ROOT = Path(__file__).resolve().parent.parent


def prefect(*arguments: str) -> str:
    """Run a command of Prefect's at the root of the checkout, as the deployment file tells people to."""
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=ROOT,
        env=os.environ | {"PWD": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def worker(server: Server, tmp_path: Path) -> Iterator[None]:
    """Deploy all that is in the file, and start a worker for it."""
    prefect("work-pool", "create", "xrt", "--type", "process")
    prefect("deploy", "--prefect-file", "deployments/prefect.yaml", "--all")
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "xrt"],
            env=os.environ | {"PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.usefixtures("worker")
def test_one_target(
    service: Callable[..., Emulator], server: Server, request_: ProductRequest, tmp_path: Path
) -> None:
    """A run of the deployment builds into a folder of its own, in a process of the worker's."""
    from prefect.deployments import run_deployment  # noqa: PLC0415 - after the environment is set

    emulator = service(default=Timeline.of((4,)))
    run = run_deployment(
        "one-target/one-target",
        parameters={
            "request": request_.model_dump(mode="json"),
            "output_root": str(tmp_path / "products"),
        },
        job_variables={
            "env": {
                "PREFECT_XRT_USER_ID": emulator.user_id,
                "PREFECT_XRT_BASE_URL": emulator.url,
            }
        },
        timeout=180,
    )
    assert server.flow_run(run.id)["state_name"] == "Completed", (tmp_path / "worker.log").read_text()
    (folder,) = (tmp_path / "products").iterdir()
    assert {"lc.tar.gz", "spec.tar.gz", "image.tar.gz", "job.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert len(emulator.jobs) == 1
