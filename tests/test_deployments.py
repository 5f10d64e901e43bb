"""What is deployed runs: the deployment file, a work pool, a worker, and a run that ends with files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_xrt.archive import folder_name
from prefect_xrt.emulator import Emulator, Timeline

if TYPE_CHECKING:
    from conftest import Server

    from prefect_xrt import ProductRequest


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
    assert server.flow_run(run.id)["state_name"] == "Completed"
    (folder,) = (tmp_path / "products" / folder_name("GRB 200416A")).iterdir()
    assert {"lc.tar.gz", "spec.tar.gz", "image.tar.gz", "job.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert len(emulator.jobs) == 1
