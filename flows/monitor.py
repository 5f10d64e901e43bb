"""A monitor: on a schedule, build the same requests again, and tell where there is something new.

Deploy it with `deployments/prefect.yaml`, or serve it from this machine:

    python flows/monitor.py
"""

# No `from __future__ import annotations`: a flow that is served is pickled, without what texts name.
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, Field

from prefect_xrt import BuildReport, Product, ProductRequest, alerts, build_products, cancel_jobs, forms, runs
from prefect_xrt.archive import folder_name, write_text
from prefect_xrt.changes import Changes, compare, earlier_builds
from prefect_xrt.credentials import load_credentials
from prefect_xrt.errors import InvalidRequestError, OutputError, ProductsError, RequestWarning, XRTError
from prefect_xrt.forms import titled
from prefect_xrt.parameters import encode, read_request_file
from prefect_xrt.records import read_record, read_submission
from prefect_xrt.reports import artifact_url, report_key
from prefect_xrt.targets import read_targets

CHECK_NAME = "monitor.json"
ARTIFACT_KEY = "xrt-monitor"
# The service deletes files after some time, which it does not tell.
_LEFT_OPEN = timedelta(days=3)


class Check(BaseModel):
    """What one look at a target came to; it lies in the folder of the build, as `monitor.json`."""

    target: str = Field(description="The name of the target.")
    outcome: Literal["changed", "unchanged", "failed"]
    message: str = Field(description="What is new, or why it failed.")
    output_dir: Path
    changes: Changes | None = Field(default=None, description="What is new; None where there is no build.")
    run: str = Field(default="", description="What the folders of the run are called that looked.")


@flow(
    name="monitor",
    flow_run_name="monitor: {output_root}",
    on_cancellation=[cancel_jobs],
    on_crashed=[cancel_jobs],
)
def monitor(
    sources: Annotated[str, titled("Sources")] = "",
    products: forms.Products = [Product.LIGHT_CURVE],  # noqa: B006 - what a form shows is a list
    light_curve: forms.LightCurveGroup = forms.LIGHT_CURVE,
    spectrum: forms.SpectrumGroup = forms.SPECTRUM,
    requests_dir: Annotated[str, titled("Folder of requests")] = "",
    output_root: Annotated[Path, titled("Output folder")] = Path("monitor"),
    max_active: Annotated[int, titled("Jobs at a time", ge=1, le=10)] = 5,
    credentials: Annotated[str, titled("Account")] = "",
    notify: Annotated[str, titled("Notification")] = "",
) -> list[Check]:
    """Build the same requests again, and raise the event `prefect-xrt.target.changed` where something is new.

    Each target has a folder, in which each run has one. A target that fails does not stop the others.

    Args:
        sources: A source a line: name, RA, Dec, target IDs, with commas between them; all but the name can be
            left out. Or the path of such a file, or of an ECSV, VOTable or FITS table, on the worker's machine.
        products: What to build of each source.
        light_curve: Used only if the products have LightCurve.
        spectrum: Used only if the products have Spectrum.
        requests_dir: Folder of the worker's machine with a request in each .json file, in the service's or this
            project's spelling, for targets that need other parameters. They are followed, too.
        output_root: Folder of the worker's machine in which each target gets a folder.
        max_active: How many jobs may be active at a time; the service asks for about five.
        credentials: Name of an XRT Credentials block. Empty: the account of the worker's environment.
        notify: A notification block that is told of what is new, and of alerts, as type/name, such as
            slack-webhook/xrt. Empty: none.

    Returns:
        What the look at each target came to. The state is Failed if one failed, named "Partly" if others did not.

    Raises:
        InvalidRequestError: The list of sources is wrong, or there is nothing to build; nothing was sent.
        ConfigurationError: There is no account, or no such notification block; nothing was sent.
        ProductsError: A target failed.
    """
    try:
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", RequestWarning)
            requests, checks = _read_requests(sources, requests_dir, products, light_curve, spectrum)
    except InvalidRequestError as error:
        # Returned, so that the message of the state begins with what is wrong.
        return cast(list[Check], Failed(message=f"{error.message}. Nothing was sent.", data=error))
    for note in dict.fromkeys(str(note.message) for note in notes):
        get_run_logger().warning("%s", note)
    load_credentials(credentials or None)
    notifier = alerts.load_notifier(notify or None)
    root = output_root.expanduser().absolute()
    run = f"{flow_run.scheduled_start_time:%Y%m%dT%H%M%SZ}_{flow_run.id[:8]}"
    build = partial(
        build_products,
        credentials=credentials or None,
        notify=notify or None,
        accept_partial=True,
        return_state=True,
    )
    with runs.heard_of():
        try:
            with ThreadPoolExecutor(max_active, "monitor") as pool, runs.halting_threads() as halt:
                looks = [
                    pool.submit(copy_context().run, _look, request, root, run, build, notifier)
                    for request in requests
                ]
                checks += [look.result() for look in looks]
                halt.sleep(0)
        except runs.RunCancelled as stop:
            message = f"{stop} What had not ended is built again by the next run."
            return cast(list[Check], Cancelled(message=message, data=ProductsError(message)))
        return cast(list[Check], _end(checks))


def _read_requests(
    sources: str,
    requests_dir: str,
    products: list[Product],
    light_curve: forms.LightCurveOptions,
    spectrum: forms.SpectrumOptions,
) -> tuple[list[ProductRequest], list[Check]]:
    """Return the requests, and a failed check for each file that cannot be used."""
    requests = [
        forms.read_form(
            name=target.name,
            target_ids=" ".join(target.target_ids),
            ra="" if target.ra_deg is None else target.ra_deg,
            dec="" if target.dec_deg is None else target.dec_deg,
            products=products,
            light_curve=light_curve,
            spectrum=spectrum,
        )
        for target in (read_targets(sources) if sources.strip() else ())
    ]
    checks = []
    folder = Path(requests_dir).expanduser() if requests_dir else None
    if folder and not folder.is_dir():
        raise InvalidRequestError(f"Folder of requests: there is no folder {requests_dir}")
    files = sorted(folder.glob("*.json")) if folder else []
    if not (requests or files):
        raise InvalidRequestError("Sources, Folder of requests: there is nothing to build")
    names = {folder_name(request.name) for request in requests}
    for file in files:
        try:
            request = read_request_file(file)
            if folder_name(request.name) in names:
                raise InvalidRequestError(  # noqa: TRY301 - one of the reasons why a file cannot be used
                    f"{file}: there is another request for {request.name!r}; give each a name of its own."
                )
        except InvalidRequestError as error:
            get_run_logger().error("%s", error.message)
            checks.append(_failed(file.name, file, error.message))
        else:
            names.add(folder_name(request.name))
            requests.append(request)
    return requests, checks


def _failed(target: str, place: Path, reason: str) -> Check:
    return Check(target=target, outcome="failed", message=reason, output_dir=place)


def _end(checks: list[Check]) -> State[Any]:
    """Show what became of the targets, and end the run as it says."""
    of = {
        outcome: [c for c in checks if c.outcome == outcome] for outcome in ("changed", "unchanged", "failed")
    }
    failed = of["failed"]
    told = [f"{check.target}: {' '.join(check.message.split())}" for check in [*failed, *of["changed"]]]
    counts = ", ".join(f"{len(found)} {outcome}" for outcome, found in of.items())
    summary = " · ".join([f"Targets: {counts}.", *told])
    rows = [
        {
            "target": check.target,
            "outcome": check.outcome,
            "what": check.message,
            "job": check.changes.job_id if check.changes else "",
            "folder": str(check.output_dir),
        }
        for check in checks
    ]
    with runs.not_vital("The table of targets could not be shown"):
        create_table_artifact(rows, key=ARTIFACT_KEY, description=summary)
    if failed:
        partly = "Partly" if len(failed) < len(checks) else None
        return Failed(name=partly, message=summary, data=ProductsError(summary))
    return Completed(message=summary, data=checks)


def _look(
    request: ProductRequest,
    root: Path,
    run: str,
    build: Callable[..., Any],
    notifier: alerts.Notifier | None,
) -> Check:
    """Build a target, and tell what is new of it, in a thread of its own; what goes wrong is this target's affair."""
    place = root / folder_name(request.name)
    runs.pausing()(0)  # ends here where the run was cancelled meanwhile
    try:
        folder = _folder(request, place, run)
        check = _check(request, folder, run, build, notifier)
        if check.outcome == "failed" and folder.name != run and (folder / CHECK_NAME).exists():
            # The job that the last run had left has come to nothing.
            check = _check(request, place / run, run, build, notifier)
    except Exception as error:
        get_run_logger().exception("%s could not be looked at.", request.name)
        reason = error.message if isinstance(error, XRTError) else f"{type(error).__name__}: {error}"
        return _failed(request.name, place, reason)
    return check


def _check(
    request: ProductRequest,
    folder: Path,
    run: str,
    build: Callable[..., Any],
    notifier: alerts.Notifier | None,
) -> Check:
    if (folder / CHECK_NAME).exists():
        # Of an attempt before this one; what it told is not told again.
        return Check.model_validate_json((folder / CHECK_NAME).read_bytes())
    with runs.run_of_its_own():
        state: State[Any] = build(request, folder)
    built = state.result(raise_on_failure=False)
    record = read_record(folder)
    if record is None or record.finished_at is None:
        with suppress(OSError):
            folder.rmdir()  # where nothing was begun, nothing is in it
        return _failed(request.name, folder, str(built))
    runs.note_ended(record.job.id)
    changes = compare(folder, earlier_builds(folder.parent, request, folder.name))
    for remark in changes.remarks:
        get_run_logger().warning("%s: %s", request.name, remark)
    if isinstance(built, BuildReport):
        told = [*changes.sentences(), *([] if built.succeeded else [built.summary()])]
        if changes.anything:
            facts = changes.model_dump(mode="json", exclude={"job_id", "remarks"})
            page = _report_url(state, record.job.id)
            alerts.raise_changed(folder.parent.name, built, told, page, notifier, facts)
        check = Check(
            target=request.name,
            outcome="changed" if changes.anything else "unchanged",
            message=" ".join(told),
            output_dir=folder,
            changes=changes,
            run=run,
        )
    else:
        check = _failed(request.name, folder, str(built))
    write_text(folder / CHECK_NAME, check.model_dump_json(indent=2) + "\n")
    _remove_unchanged(folder.parent, folder.name)
    return check


def _report_url(state: State[Any], job_id: int) -> str | None:
    """Return the address of the page that the run of a build shows of its job, if there is one."""
    with runs.not_vital("The page of the build could not be found"), runs.api() as client:
        of_build = ArtifactFilter(
            key=ArtifactFilterKey(any_=[report_key(job_id)]),
            flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]),
        )
        for page in client.read_artifacts(artifact_filter=of_build):
            return artifact_url(page.id)
    return None


def _folder(request: ProductRequest, place: Path, run: str) -> Path:
    """Return where to build: in the folder of this run, or where the last one has left the same request unfinished."""
    last = max(_builds(place), default=None)
    if last is None or (place / run).exists():
        return place / run
    if (last / CHECK_NAME).exists():
        # Where an earlier attempt of this run went on with what was left, it has been looked at.
        check = Check.model_validate_json((last / CHECK_NAME).read_bytes())
        return last if check.run == run else place / run
    try:
        record, left = read_record(last), read_submission(last)
    except OutputError:
        return place / run
    since = None
    # One that is finished has ended before it was looked at: nobody has been told of it.
    if record and record.answers(request):
        since = record.job.submitted_at
    elif record is None and left and left.request == encode(request):
        since = left.last_asked_at
    return last if since and datetime.now(UTC) - since < _LEFT_OPEN else place / run


def _builds(place: Path) -> Iterator[Path]:
    for folder in place.iterdir() if place.is_dir() else ():
        if folder.is_dir() and not folder.name.startswith("."):
            yield folder


def _remove_unchanged(place: Path, last: str) -> None:
    """Remove builds that brought nothing new, but the last one: its job is the newest, and what was fetched last."""
    for folder in _builds(place):
        try:
            check = Check.model_validate_json((folder / CHECK_NAME).read_bytes())
            if folder.name < last and check.outcome != "changed":
                folder.rename(place / f".{folder.name}.removed")
        except (OSError, ValueError):
            continue  # it is none of these builds, or another run removes it
    for leftover in place.glob(".*.removed"):
        shutil.rmtree(leftover, ignore_errors=True)


if __name__ == "__main__":
    monitor.serve(name="monitor")
