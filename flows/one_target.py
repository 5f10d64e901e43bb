"""One target, on a schedule or at the press of a button: every run builds into a folder of its own.

Deploy it with `deployments/prefect.yaml`, or serve it from this machine:

    python flows/one_target.py
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from prefect import State, flow
from prefect.runtime import flow_run
from pydantic import JsonValue

from prefect_xrt import BuildReport, ProductRequest, build_products, cancel_jobs
from prefect_xrt.archive import folder_name
from prefect_xrt.flows import Reuse, name_of
from prefect_xrt.runs import CancelPolicy


@flow(name="one-target", on_cancellation=[cancel_jobs], on_crashed=[cancel_jobs])
def one_target(
    request: ProductRequest | dict[str, JsonValue],
    output_root: Path = Path("products"),
    credentials: str | None = None,
    accept_partial: bool = False,
    reuse: Reuse = "never",
    cancel_job: CancelPolicy = "when-cancelled",
) -> BuildReport:
    """Build the products of one request into a new folder, below one with the name of the target.

    A retry of the run goes on in the same folder.

    Args:
        request: What to build: a `ProductRequest`, or JSON in this project's or the service's spelling.
        output_root: Where the target's folder goes, and in it that of the run.
        credentials: The name of an `XRTCredentials` block; the environment serves by default.
        accept_partial: Complete even if only some products are ready.
        reuse: Whether a job with the same parameters is taken instead of building again: "never",
            "unless-failed", or "always".
        cancel_job: Whether what still builds is cancelled with the run: "never", "when-cancelled", or
            "when-stopped", which is also when it crashes.

    Returns:
        What was built.

    Raises:
        XRTError: As `build_products` does.
    """
    started = f"{flow_run.scheduled_start_time:%Y%m%dT%H%M%SZ}_{flow_run.id[:8]}"
    folder = output_root / folder_name(name_of(request)) / started
    built = build_products(
        request,
        folder,
        credentials,
        accept_partial=accept_partial,
        reuse=reuse,
        cancel_job=cancel_job,
        return_state=True,
    )
    # How the build ended is how this run ends; a state that is made anew says so by its name, too.
    ending = State(type=built.type, name=built.name, message=built.message, data=built.data)
    return cast(BuildReport, ending)


if __name__ == "__main__":
    one_target.serve(name="one-target")
