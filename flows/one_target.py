"""One target, on a schedule or at the press of a button: every run builds into a folder of its own.

Deploy it with `deployments/prefect.yaml`, or serve it from this machine:

    python flows/one_target.py
"""

# No `from __future__ import annotations`: a flow that is served is pickled, without what texts name.
import warnings
from pathlib import Path
from typing import Annotated, cast

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.states import Failed

from prefect_xrt import BuildReport, Product, build_products, cancel_jobs, forms
from prefect_xrt.archive import folder_name
from prefect_xrt.deferral import Waiting
from prefect_xrt.errors import InvalidRequestError, RequestWarning
from prefect_xrt.flows import Reuse, name_of
from prefect_xrt.forms import titled
from prefect_xrt.runs import CancelPolicy


def _run_name() -> str:
    given = flow_run.parameters
    pasted = given.get("request")
    inner = pasted.get("jobPars") if isinstance(pasted, dict) else None
    name = given.get("name") or name_of(inner if isinstance(inner, dict) else pasted)
    return f"one target: {name}"


@flow(
    name="one-target",
    flow_run_name=_run_name,
    on_cancellation=[cancel_jobs],
    on_crashed=[cancel_jobs],
)
def one_target(
    name: forms.Name = "",
    target_ids: forms.TargetIds = "",
    ra: forms.RightAscension = "",
    dec: forms.Declination = "",
    products: forms.Products = [Product.LIGHT_CURVE],  # noqa: B006 - what a form shows is a list
    t0_met_s: forms.ReferenceTime = "",
    centroid: forms.Centroid = "simple",
    position_error_arcmin: forms.PositionError = 1,
    light_curve: forms.LightCurveGroup = forms.LIGHT_CURVE,
    spectrum: forms.SpectrumGroup = forms.SPECTRUM,
    position: forms.PositionGroup = forms.POSITION,
    image: forms.ImageGroup = forms.IMAGE,
    source_detection: forms.SourceGroup = forms.SOURCE_DETECTION,
    request: forms.RequestJSON = {},  # noqa: B006 - never changed
    output_root: Annotated[Path, titled("Output folder")] = Path("products"),
    credentials: Annotated[str, titled("Account")] = "",
    notify: Annotated[str, titled("Notification")] = "",
    accept_partial: Annotated[bool, titled("Some products are enough")] = False,
    reuse: Annotated[Reuse, titled("Take an earlier job")] = "never",
    cancel_job: Annotated[CancelPolicy, titled("Cancel the job with the run")] = "when-cancelled",
    waiting: Annotated[Waiting, titled("Wait")] = "in-process",
) -> BuildReport:
    """Build the products of one target into a new folder, below one with its name.

    Name, target IDs, position and products are enough. A retry of the run goes on in the same folder.

    Args:
        name: Name of the object, such as GRB 200416A. Needed, unless a whole request is pasted below.
        target_ids: Swift target IDs of 8 digits, such as 00966554, separated by commas or blanks. Empty: the
            service finds them by the name and the position.
        ra: Right ascension in degrees (335.6985), or in hours, minutes and seconds (22 22 47.6). Empty, with the
            declination: the service looks the name up in SIMBAD.
        dec: Declination in degrees (-7.5179), or in degrees, minutes and seconds (-07 31 04.4).
        products: What to build. Each can fail without holding up the others.
        t0_met_s: Reference time of the light curve, mission elapsed time in seconds. Empty: the service finds
            it, the trigger or the start of the first observation.
        centroid: How to centroid in the XRT frame, or not to.
        position_error_arcmin: How far the centroid can be from the position, 1 to 6 arcmin.
        light_curve: Used only if the products have LightCurve.
        spectrum: Used only if the products have Spectrum.
        position: Used only if the products have StandardPos, EnhancedPos or AstromPos.
        image: Used only if the products have Image.
        source_detection: Used only if the products have SourceDet.
        request: Either a whole request, with its name (a saved jobPars.json, or a request in the service's or
            this project's spelling); then everything above stays as it is. Or what the form has no field for, by the
            service's names, such as {"sss": 1}; that is added.
        output_root: Folder of the worker's machine in which the target gets a folder, and in that, the run.
        credentials: Name of an XRT Credentials block. Empty: the account of the worker's environment.
        notify: A notification block that is told of alerts, as type/name, such as slack-webhook/xrt. Empty: none.
        accept_partial: Whether the run is Completed even if only some products are ready.
        reuse: Whether a job of the account with the same parameters is taken instead of building again: never; only
            if none of its products failed (unless-failed); or always.
        cancel_job: Whether what still builds is cancelled: never; when the run is cancelled; or when it is stopped
            in any way, by a crash, too.
        waiting: in-process; or suspended: the run keeps no process and no slot of a worker while the job builds, and
            the command prefect-xrt watch, which has to run somewhere, resumes it.

    Returns:
        What was built.

    Raises:
        XRTError: As `build_products` does.
    """
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", RequestWarning)
            wanted = forms.read_form(
                name=name,
                target_ids=target_ids,
                ra=ra,
                dec=dec,
                products=products,
                t0_met_s=t0_met_s,
                centroid=centroid,
                position_error_arcmin=position_error_arcmin,
                light_curve=light_curve,
                spectrum=spectrum,
                position=position,
                image=image,
                source_detection=source_detection,
                request=request,
            )
    except InvalidRequestError as error:
        # Returned, so that the message of the state begins with the field.
        return cast(BuildReport, Failed(message=f"{error.message}. Nothing was sent.", data=error))
    for note in notes:
        get_run_logger().warning("%s", note.message)
    started = f"{flow_run.scheduled_start_time:%Y%m%dT%H%M%SZ}_{flow_run.id[:8]}"
    # In this run, not as a run below it: so progress, report and tasks are on the page that somebody watches.
    return build_products.fn(
        wanted,
        output_root / folder_name(wanted.name) / started,
        credentials or None,
        accept_partial=accept_partial,
        reuse=reuse,
        cancel_job=cancel_job,
        notify=notify or None,
        waiting=waiting,
    )


if __name__ == "__main__":
    one_target.serve(name="one-target")
