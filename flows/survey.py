"""A survey: a list of sources through the same products, a few at a time, for as long as it takes.

Deploy it with `deployments/prefect.yaml`, or serve it from this machine:

    python flows/survey.py
"""

# No `from __future__ import annotations`: a flow that is served is pickled, without what texts name.
import csv
import io
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args

from prefect import State, flow, get_run_logger
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.actions import ArtifactCreate
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_xrt import (
    BuildReport,
    Product,
    ProductRequest,
    alerts,
    archive,
    build_products,
    cancel_jobs,
    forms,
    reports,
    runs,
)
from prefect_xrt.credentials import load_credentials
from prefect_xrt.errors import (
    InvalidRequestError,
    OutputError,
    ProductsError,
    RequestWarning,
    UnknownUserError,
    WaitError,
    XRTError,
)
from prefect_xrt.forms import titled
from prefect_xrt.parameters import encode
from prefect_xrt.protocol import ProductState
from prefect_xrt.records import JobRecord, read_record, read_submission
from prefect_xrt.runs import CancelPolicy
from prefect_xrt.submission import job_on_record
from prefect_xrt.targets import Target, read_targets

SUMMARY_NAME = "summary.csv"
_LOOK_AROUND_S = 1.0
_NAMED = 3
_SHOWN_CHARACTERS = 300

SourceState = Literal["done", "partly", "failed", "cancelled", "building", "not started"]


class SourceReport(BaseModel):
    """What became of one source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    state: SourceState
    job_id: int | None = None
    ready: tuple[Product, ...] = ()
    missing: tuple[Product, ...] = ()
    folder: Path
    reason: str = ""

    def row(self) -> dict[str, str | int | float]:
        """Return it as a row of the summary, which can itself be read as a list of sources."""
        where = (self.target.ra_deg, self.target.dec_deg)
        ra_deg, dec_deg = ("" if angle is None else angle for angle in where)
        return {
            "name": self.target.name,
            "state": self.state,
            "job_id": "" if self.job_id is None else self.job_id,
            "ready": " ".join(self.ready),
            "missing": " ".join(self.missing),
            "reason": self.reason,
            "folder": str(self.folder),
            "ra_deg": ra_deg,
            "dec_deg": dec_deg,
            "target": " ".join(self.target.target_ids),
        }


class _Source(NamedTuple):
    target: Target
    request: ProductRequest
    folder: Path


class _Plan(NamedTuple):
    """What is left to do for a source, as its folder tells."""

    done: BuildReport | None = None
    submits: bool = True
    overwrite: bool = False


class _Survey:
    """The sources of one run, and what has become of each so far."""

    def __init__(
        self,
        sources: Sequence[_Source],
        output_root: Path,
        *,
        max_active: int,
        retry_failed: bool,
        build: Callable[..., Any],
    ) -> None:
        self._output_root = output_root
        self._max_active = max_active
        self._retry_failed = retry_failed
        self._build = build
        self._building: dict[Future[SourceReport], _Source] = {}
        self._shown = ""
        self.trouble: XRTError | None = None
        plans = [_plan(source, retry_failed=retry_failed) for source in sources]
        self._reports = {
            source.target.name: _of_build(source, plan.done) if plan.done else _report(source, "not started")
            for source, plan in zip(sources, plans, strict=True)
        }
        left = [(source, plan) for source, plan in zip(sources, plans, strict=True) if not plan.done]
        # What builds already is active, and so is looked after first.
        left.sort(key=lambda entry: entry[1].submits)
        self._waiting = deque(source for source, _ in left)

    @property
    def reports(self) -> list[SourceReport]:
        """What has become of each source, in the order of the list."""
        return list(self._reports.values())

    def run(self) -> None:
        """Build what is left, as many at a time as may be active.

        Raises:
            RunCancelled: The run was cancelled, and so were the jobs that still built.
        """
        pause = runs.pausing(self._await_one)
        try:
            with ThreadPoolExecutor(self._max_active, "survey") as pool, runs.halting_threads() as halt:
                while self._waiting or self._building:
                    halt.sleep(0)
                    while self._waiting and len(self._building) < self._max_active:
                        source = self._waiting.popleft()
                        self._building[pool.submit(copy_context().run, self._see_to, source)] = source
                    self._note_started()
                    self._show()
                    pause(_LOOK_AROUND_S)
                    for future in [future for future in self._building if future.done()]:
                        self._take(future, self._building.pop(future))
        finally:
            for future, source in self._building.items():
                if future.done() and not (future.cancelled() or future.exception()):
                    self._take(future, source)
            self._show()

    def _await_one(self, seconds: float) -> None:
        wait(self._building, timeout=seconds, return_when=FIRST_COMPLETED)

    def _take(self, future: Future[SourceReport], source: _Source) -> None:
        try:
            self._reports[source.target.name] = future.result()
        except XRTError as error:
            # Whoever asks for the account next would fare no better; what builds is seen through.
            self.trouble = error
            self._waiting.clear()

    def _note_started(self) -> None:
        """Note which sources have become jobs since; until the account has room for one, it waits."""
        for source in self._building.values():
            if _builds(source) and self._reports[source.target.name].state == "not started":
                self._reports[source.target.name] = _report(source, "building")

    def _see_to(self, source: _Source) -> SourceReport:
        """Build one source, in a thread of its own.

        Raises:
            XRTError: There is no getting at the account, for any source.
        """
        log, sleep = get_run_logger(), runs.pausing()
        report = _report(source, "not started")
        # A job that an earlier run has cancelled is found to be so first, and then built again.
        for _ in range(2):
            sleep(0)
            runs.await_server(sleep=sleep)
            plan = _plan(source, retry_failed=self._retry_failed)
            if plan.done:
                return _of_build(source, plan.done)
            if not plan.submits:
                self._reports[source.target.name] = _report(source, "building")
            try:
                with runs.run_of_its_own():
                    ended = self._build(source.request, source.folder, overwrite=plan.overwrite)
                report, built = _of_state(source, ended)
            except runs.RunCancelled:
                state: SourceState = "cancelled" if _builds(source) else "not started"
                self._reports[source.target.name] = _report(source, state)
                raise
            except UnknownUserError:
                raise
            except Exception as error:
                log.exception("%s could not be built.", source.target.name)
                return _report(source, "failed", f"{type(error).__name__}: {error}")
            # One that could not be cancelled is left to the hook.
            if built and report.state in ("done", "partly", "failed"):
                runs.note_ended(built.job.id)
            if plan.submits or not (built and _was_cancelled(built)):
                break
        return report

    def show_table(self) -> None:
        """Show what has become of each source as a table."""
        with runs.not_vital("The survey's table could not be shown"):
            create_table_artifact(
                [report.row() for report in self.reports],
                key=f"xrt-survey-{_slug(self._output_root)}",
                description=f"{_counted(self.reports)}, in {self._output_root}.",
            )

    def _show(self) -> None:
        """Show how far it is, where that has changed, and keep the summary on disk up to date."""
        building = [report.target.name for report in self.reports if report.state == "building"]
        left = sum(report.state in ("building", "not started") for report in self.reports)
        text = f"{_counted(self.reports)}."
        if building:
            text += f" Building: {', '.join(building)}."
        if text == self._shown:
            return
        self._shown = text
        try:
            archive.write_text(self._output_root / SUMMARY_NAME, _as_csv(self.reports))
        except OutputError as error:
            get_run_logger().error("The summary could not be written: %s", error.message)
        with runs.not_vital("The survey's progress could not be shown"), runs.api() as client:
            bar = ArtifactCreate(
                key=f"xrt-survey-progress-{_slug(self._output_root)}",
                type="progress",
                data=round(100 * (1 - left / len(self._reports)), 1),
                description=text,
            )
            reports.show(client, bar)


def _plan(source: _Source, *, retry_failed: bool) -> _Plan:
    folder = source.folder
    try:
        record, before, left = job_on_record(folder), read_record(folder), read_submission(folder)
    except OutputError:
        return _Plan(submits=False)  # the build tells what is wrong with the folder
    if record is None:
        # Killed while it built something again.
        again = left and left.request == encode(source.request) and before and before.answers(source.request)
        return _Plan(overwrite=bool(again))
    if not record.answers(source.request):
        return _Plan(submits=False)
    built = _built_before(folder, record) if record.finished_at else None
    if built is None:
        return _Plan(submits=False, overwrite=_holds_others(folder, record))
    if built.succeeded or not (retry_failed or _was_cancelled(built)):
        return _Plan(done=built)
    return _Plan(overwrite=True)


def _builds(source: _Source) -> bool:
    """Whether there is a job for a source that was not finished."""
    try:
        record = job_on_record(source.folder)
    except OutputError:
        return False
    return record is not None and record.finished_at is None


def _holds_others(folder: Path, record: JobRecord) -> bool:
    """Whether there are files of an earlier job, since this one was to replace them."""
    try:
        archive.refuse_foreign_files(folder, record.job.products, "tar.gz", record.job)
    except OutputError:
        return True
    return False


def _was_cancelled(built: BuildReport) -> bool:
    return any(entry.state is ProductState.CANCELLED for entry in built.products)


def _built_before(folder: Path, record: JobRecord) -> BuildReport | None:
    try:
        report = BuildReport.model_validate_json((folder / reports.REPORT_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
    return report if report.job.id == record.job.id else None


def _report(source: _Source, state: SourceState, reason: str = "", **facts: Any) -> SourceReport:
    reason = " ".join(reason.split())
    if len(reason) > _SHOWN_CHARACTERS:
        reason = f"{reason[:_SHOWN_CHARACTERS]}…"
    return SourceReport(target=source.target, state=state, folder=source.folder, reason=reason, **facts)


def _of_build(source: _Source, built: BuildReport, state: SourceState | None = None) -> SourceReport:
    if state is None:
        state = "done" if built.succeeded else "partly" if built.files else "failed"
    reasons = [f"{product} {why}" for product, why in built.missing.items()]
    return _report(
        source,
        state,
        "; ".join([*([built.problem] if built.problem else []), *reasons]),
        job_id=built.job.id,
        ready=tuple(file.product for file in built.files),
        missing=tuple(Product(name) for name in built.missing),
    )


def _of_state(source: _Source, state: State[Any]) -> tuple[SourceReport, BuildReport | None]:
    """Return what has become of a source, and the report of its build if there is one.

    Raises:
        UnknownUserError: The service does not know the account.
    """
    result = state.result(raise_on_failure=False)
    if isinstance(result, UnknownUserError):
        raise result
    built = result if isinstance(result, BuildReport) else getattr(result, "report", None)
    if not isinstance(built, BuildReport):
        reason = result.message if isinstance(result, XRTError) else state.message or state.name or ""
        return _report(source, "failed", reason), None
    # Where the wait has ended early, the job lives on.
    early = isinstance(result, WaitError)
    return _of_build(
        source, built, "building" if early else "cancelled" if state.is_cancelled() else None
    ), built


def _counted(found: Iterable[SourceReport]) -> str:
    """Say how many sources are in which state, such as "5 of 7 sources are done, 1 partly, 1 failed"."""
    counts = Counter(report.state for report in found)
    total, done = counts.total(), counts.pop("done", 0)
    verb = "is" if total == 1 else "are"
    others = [f"{counts[state]} {state}" for state in get_args(SourceState) if counts[state]]
    return ", ".join([f"{done} of {_sources(total)} {verb} done", *others])


def _sources(count: int) -> str:
    return f"{count} source{'' if count == 1 else 's'}"


def _slug(folder: Path) -> str:
    return re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-") or "sources"


def _as_csv(found: Iterable[SourceReport]) -> str:
    text = io.StringIO()
    rows = [report.row() for report in found]
    writer = csv.DictWriter(text, fieldnames=rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _ending(
    found: Sequence[SourceReport], trouble: BaseException | None, output_root: Path, *, accept_partial: bool
) -> State[Any]:
    """Return the state that tells what a survey came to.

    Raises:
        ProductsError: Not every source is done, and Prefect is about to retry the run.
    """
    good = ("done", "partly") if accept_partial else ("done",)
    bad = [report for report in found if report.state not in good]
    message = f"{_counted(found)}, in {output_root}."
    if not bad:
        return Completed(message=message, data=tuple(found))
    if trouble:
        message += f" The survey ended early: {' '.join(str(trouble).split())}"
    named = [f"{report.target.name}: {report.reason.rstrip('.')}" for report in bad if report.reason]
    if named:
        message += f" {'; '.join(named[:_NAMED])}"
        message += f"; and {len(named) - _NAMED} more." if len(named) > _NAMED else "."
    message += f" See {SUMMARY_NAME}; the same survey again goes on."
    error = ProductsError(message)
    if isinstance(trouble, runs.RunCancelled):
        return Cancelled(message=message, data=error)
    if runs.will_be_retried():
        raise error
    some = any(report.ready for report in found)
    return Failed(name="Partly" if some else None, message=message, data=error)


def _run_name() -> str:
    try:
        return f"survey: {_sources(len(read_targets(flow_run.parameters['sources'])))}"
    except XRTError:
        return "survey"


@flow(name="survey", flow_run_name=_run_name, on_cancellation=[cancel_jobs], on_crashed=[cancel_jobs])
def survey(
    sources: Annotated[str, titled("Sources")],
    products: forms.Products = [Product.LIGHT_CURVE],  # noqa: B006 - what a form shows is a list
    output_root: Annotated[Path, titled("Output folder")] = Path("survey"),
    centroid: forms.Centroid = "simple",
    position_error_arcmin: forms.PositionError = 1,
    light_curve: forms.LightCurveGroup = forms.LIGHT_CURVE,
    spectrum: forms.SpectrumGroup = forms.SPECTRUM,
    position: forms.PositionGroup = forms.POSITION,
    image: forms.ImageGroup = forms.IMAGE,
    source_detection: forms.SourceGroup = forms.SOURCE_DETECTION,
    request: forms.RequestJSON = {},  # noqa: B006 - never changed
    max_active: Annotated[int, titled("Active jobs at most", ge=1, le=5)] = 5,
    credentials: Annotated[str, titled("Account")] = "",
    notify: Annotated[str, titled("Notification")] = "",
    accept_partial: Annotated[bool, titled("Some products are enough")] = False,
    retry_failed: Annotated[bool, titled("Build failed sources again")] = False,
    cancel_job: Annotated[CancelPolicy, titled("Cancel the jobs with the run")] = "when-cancelled",
) -> tuple[SourceReport, ...]:
    """Build the same products for every source of a list, each into its own folder.

    Run the same survey again, after whatever ended it, and it goes on: what is done is left alone, and jobs
    that build already are followed.

    Args:
        sources: The list, a source a line: name, RA, Dec, target IDs, with commas between them; all but the name
            can be left out, and the service finds it. Or the path, on the worker's machine, of such a list (.csv,
            .tsv, .txt) or of a table (.ecsv, .vot, .fits) with the columns name, ra, dec and target. Positions
            are J2000: degrees, or sexagesimal.
        products: What to build for each. Each can fail without holding up the others.
        output_root: Folder of the worker's machine in which each source gets a folder. It belongs to this survey.
        centroid: How to centroid in the XRT frame, or not to.
        position_error_arcmin: How far the centroid can be from the position, 1 to 6 arcmin.
        light_curve: Used only if the products have LightCurve.
        spectrum: Used only if the products have Spectrum.
        position: Used only if the products have StandardPos, EnhancedPos or AstromPos.
        image: Used only if the products have Image.
        source_detection: Used only if the products have SourceDet.
        request: What the form has no field for, by the service's names, such as {"sss": 1}; added for every source.
        max_active: How many jobs this survey may have active at a time, 1 to 5. The limit of the account holds as well.
        credentials: Name of an XRT Credentials block. Empty: the account of the worker's environment.
        notify: A notification block that is told of alerts, as type/name, such as slack-webhook/xrt. Empty: none.
        accept_partial: Whether a source is good even if only some of its products are ready.
        retry_failed: Whether sources that an earlier run has left with missing products are built again; else they
            count as they ended.
        cancel_job: Whether what still builds is cancelled: never; when the run is cancelled; or when it is stopped
            in any way, by a crash, too.

    Returns:
        What became of each source, in the order of the list.

    Raises:
        ProductsError: Not every source is done; the state is Failed, named "Partly" if there are some products.
        InvalidRequestError: Sources or options cannot be used; all are named, and nothing was sent.
        ConfigurationError: No account is set, or it cannot be right; nothing was sent.
        OutputError: The folder cannot be used, or another process uses it; nothing was sent.
    """
    output_root = output_root.expanduser().absolute()
    form = {
        "products": products,
        "centroid": centroid,
        "position_error_arcmin": position_error_arcmin,
        "light_curve": light_curve,
        "spectrum": spectrum,
        "position": position,
        "image": image,
        "source_detection": source_detection,
        "request": request,
    }
    try:
        wanted = _read(sources, form, output_root)
    except InvalidRequestError as error:
        if runs.will_be_retried():
            raise
        # Returned, so that the message of the state begins with the row.
        return cast(
            "tuple[SourceReport, ...]", Failed(message=f"{error.message}. Nothing was sent.", data=error)
        )
    archive.make_directory(output_root)
    alerts.load_notifier(notify or None)
    load_credentials(credentials or None).get_client().close()
    optional: dict[str, Any] = {"notify": notify} if notify else {}
    build = partial(
        build_products,
        credentials=credentials or None,
        accept_partial=accept_partial,
        cancel_job=cancel_job,
        return_state=True,
        **optional,
    )
    trouble: BaseException | None = None
    with (
        runs.heard_of(),
        archive.exclusive(output_root / SUMMARY_NAME),
    ):
        run = _Survey(wanted, output_root, max_active=max_active, retry_failed=retry_failed, build=build)
        try:
            run.run()
            trouble = run.trouble
        except runs.RunCancelled as stop:
            trouble = stop
        finally:
            run.show_table()
        ending = _ending(run.reports, trouble, output_root, accept_partial=accept_partial)
    # Prefect makes a state that is returned the state of the run.
    return cast("tuple[SourceReport, ...]", ending)


def _read(sources: str, form: Mapping[str, Any], output_root: Path) -> list[_Source]:
    """Make a request for every source, all of them before anything is sent."""
    of_one = sorted({"name", "jobPars"}.intersection(form["request"]))
    if of_one:
        raise InvalidRequestError(
            f"Request as JSON: {', '.join(of_one)} is of one source, and the JSON is added for every one; leave it out",
            problems=[("request", f"{name} is of one source") for name in of_one],
        )
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always", RequestWarning)
        wanted = [
            _Source(
                target,
                forms.read_form(
                    name=target.name,
                    target_ids=" ".join(target.target_ids),
                    ra="" if target.ra_deg is None else target.ra_deg,
                    dec="" if target.dec_deg is None else target.dec_deg,
                    **form,
                ),
                output_root / target.folder,
            )
            for target in read_targets(sources)
        ]
    for note in dict.fromkeys(str(note.message) for note in notes):
        get_run_logger().warning("%s", note)
    return wanted


if __name__ == "__main__":
    survey.serve(name="survey")
