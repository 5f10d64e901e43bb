"""What an operator wants to be told at once, and what other pipelines wait for: events of this package.

An alert is raised once for each job and product, whatever is retried and whichever run follows the job: Prefect's
server is asked whether it knows the event already. An alert that cannot be raised never fails a build.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from uuid import NAMESPACE_URL, UUID, uuid5

import httpx
from prefect import get_run_logger
from prefect.blocks.abstract import NotificationBlock
from prefect.blocks.core import Block, UnknownBlockType
from prefect.events import Event, emit_event
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.runtime import flow_run
from prefect.utilities.asyncutils import run_coro_as_sync
from prefect.utilities.urls import url_for
from pydantic import JsonValue

from prefect_xrt import protocol, reports, runs
from prefect_xrt.errors import ConfigurationError, DeadlineError, SubmitUncertainError, WaitError
from prefect_xrt.protocol import Job, ProductStatus
from prefect_xrt.reports import BuildReport

__all__ = [
    "ALARM_EVENT",
    "CHANGED_EVENT",
    "FINISHED_EVENT",
    "OVERDUE_EVENT",
    "UNCERTAIN_EVENT",
    "UNREACHABLE_EVENT",
    "Notifier",
    "load_notifier",
    "raise_alarm",
    "raise_changed",
    "raise_finished",
    "raise_uncertain",
    "raise_wait_ended",
]

ALARM_EVENT = "prefect-xrt.product.alarm"
"""A product has status -2 or -3, which should never happen; once per job and product.

Resource: `prefect-xrt.job.<JobID>`, with the labels `prefect-xrt.product`, `prefect-xrt.code` and `prefect-xrt.url`.
Payload: `message`, `next_step`, `report_url` (the report to the help desk in the Prefect UI, ready to be sent),
`run_url`, `job_id`, `job_name`, `product`, `code`, `text`, `looked_at` (ISO 8601, UTC), `help_desk`.
"""

OVERDUE_EVENT = "prefect-xrt.job.overdue"
"""The deadline has passed, and the job still builds; once per job.

Resource: `prefect-xrt.job.<JobID>`.
Payload: `message`, `next_step`, `report_url` (the page of what is there), `run_url`, `job_id`, `job_name`, `pending`
(the products that have not ended), `output_dir`.
"""

UNREACHABLE_EVENT = "prefect-xrt.service.unreachable"
"""Too many looks in a row at a job told nothing; once per job. Resource and payload as for `OVERDUE_EVENT`."""

UNCERTAIN_EVENT = "prefect-xrt.submission.uncertain"
"""A request was sent, and it cannot be told which job, if any, it has become; once per flow run.

Resource: `prefect-xrt.request.<flow run ID>`.
Payload: `message`, `next_step`, `run_url`, `name` (of the object), `candidates` (JobIDs), `output_dir`, `detail`.
"""

FINISHED_EVENT = "prefect-xrt.build.finished"
"""A build has ended, with whatever result; not where the run will be retried, or was stopped from outside.

Resource: `prefect-xrt.job.<JobID>`, with the label `prefect-xrt.succeeded` ("true" or "false").
Payload: `summary`, `succeeded`, `ready` (names of the products whose files are there), `missing` (name → reason),
`output_dir`, `report_url`, `run_url`, `job_id`, `job_name`.
"""

CHANGED_EVENT = "prefect-xrt.target.changed"
"""A target that was built again has something new; once per job.

Resource: `prefect-xrt.target.<name of its folder>`, with the label `prefect-xrt.job` (the JobID).
Payload: `message`, `next_step`, `changes` (a sentence each), `output_dir`, `report_url`, `run_url`, `target`, `job_id`,
`job_name`; from the monitor also `previous_job_id`, `new_targets`, `new_observations`, `new_bins`, `new_products`,
`changed_products`.
"""

_TIMEOUT_S = 10.0
# The server gives no more at once; the newest come first.
_PAGE = 50
# The times that the service's list tells are whole seconds, by a clock that is known to a second.
_SLACK = timedelta(seconds=30)


@dataclass(frozen=True)
class _Alert:
    event: str
    resource_id: str
    name: str
    title: str
    message: str
    next_step: str
    facts: Mapping[str, JsonValue]
    identity: Mapping[str, str] = field(default_factory=dict)
    """Labels of the resource that tell this alert from others of its name about the same resource."""
    labels: Mapping[str, str] = field(default_factory=dict)
    since: datetime | None = None
    """When what it is about began, UTC: JobIDs of services for tests come round again."""
    report_url: str | None = None
    level: int = logging.ERROR

    @property
    def id(self) -> UUID:
        """The same for the same alert, so that a server that gets it twice keeps one."""
        return uuid5(
            NAMESPACE_URL, f"{self.event} {self.resource_id} {sorted(self.identity.items())} {self.since}"
        )

    @property
    def payload(self) -> dict[str, JsonValue]:
        told: dict[str, JsonValue] = {"message": self.message, "next_step": self.next_step}
        return told | {"report_url": self.report_url, "run_url": _run_url()} | dict(self.facts)

    def text(self) -> str:
        """Return what a person is told."""
        links = {"Report": self.report_url, "Run": _run_url()}
        lines = [self.message, self.next_step, *(f"{name}: {url}" for name, url in links.items() if url)]
        return "\n\n".join(lines)


@dataclass(frozen=True)
class Notifier:
    """A notification block, and the name that it was loaded by."""

    name: str
    block: NotificationBlock

    def tell(self, subject: str, body: str) -> None:
        """Send a notification; that it cannot be sent is logged, without the secrets that the block holds."""
        try:
            with self.block.raise_on_failure():
                telling = self.block.notify(body, subject)
                if inspect.iscoroutine(telling):
                    run_coro_as_sync(telling)
        except Exception as error:
            get_run_logger().warning(
                "%s could not be told through %s (%s).", subject, self.name, type(error).__name__
            )


def load_notifier(notify: str | None) -> Notifier | None:
    """Load the block that is to be told of alerts.

    Args:
        notify: Its type and name, such as "slack-webhook/xrt"; None to tell nobody.

    Raises:
        ConfigurationError: There is no such block, or it cannot notify.
    """
    if notify is None:
        return None
    import prefect.blocks.notifications  # noqa: F401, PLC0415 - lets Prefect know its own types

    try:
        block = Block.load(notify)
    except ValueError as error:
        raise ConfigurationError(
            f"`notify`: there is no block {notify!r} on this Prefect server. Give the type and the name of a "
            "notification block, such as 'slack-webhook/xrt'; `prefect block ls` lists them."
        ) from error
    except UnknownBlockType as error:
        raise ConfigurationError(
            f"`notify`: the type of the block {notify!r} is not installed here; install its package."
        ) from error
    except (httpx.HTTPError, RuntimeError) as error:
        raise ConfigurationError(
            f"`notify`: the block {notify!r} cannot be loaded ({type(error).__name__}); is Prefect's server running, "
            "and the block complete?"
        ) from error
    if not isinstance(block, NotificationBlock):
        raise ConfigurationError(
            f"`notify`: the block {notify!r} cannot notify; choose one such as 'slack-webhook/xrt'."
        )
    return Notifier(notify, block)


def raise_alarm(
    job: Job, status: ProductStatus, looked_at: datetime, notifier: Notifier | None = None
) -> bool:
    """Tell of a status that should never happen, with a report to the help desk that is ready to be sent.

    Args:
        job: The job.
        status: The status of a product of it.
        looked_at: When it was seen, UTC.
        notifier: Who is told directly.

    Returns:
        Whether Prefect's server took the report; if not, raise the alarm again once it answers.
    """
    page = None
    with runs.not_vital("The alarm could not be shown"), runs.api(retries=2, timeout_s=_TIMEOUT_S) as client:
        page = reports.publish_alarm(client, job, status, looked_at)
    product = status.product.value
    _raise(
        _Alert(
            event=ALARM_EVENT,
            resource_id=_job_resource(job),
            name=str(job),
            identity={"prefect-xrt.product": product, "prefect-xrt.url": job.url},
            labels={"prefect-xrt.code": str(status.code)},
            title=f"Alarm: {product} of {job}",
            message=f"{product} of {job} has status {status.code} ({status.text}), which should never happen.",
            next_step=f"Send the report that is ready to {protocol.HELP_DESK}; other products are not concerned.",
            facts={
                **_job_facts(job),
                "product": product,
                "code": status.code,
                "text": status.text,
                "looked_at": looked_at.isoformat(),
                "help_desk": protocol.HELP_DESK,
            },
            since=job.submitted_at,
            report_url=reports.artifact_url(page),
        ),
        notifier,
    )
    return page is not None


def raise_wait_ended(
    report: BuildReport, error: WaitError, page: UUID | None = None, notifier: Notifier | None = None
) -> None:
    """Tell that a wait has ended before the job: the deadline has passed, or the service told nothing for long.

    Args:
        report: What is there.
        error: What ended the wait.
        page: The artifact that shows the report.
        notifier: Who is told directly.
    """
    job = report.job
    ended = error.outcome.ended if error.outcome else ()
    pending = [product.value for product in job.products if product not in ended]
    products = ", ".join(pending)
    if isinstance(error, DeadlineError):
        event, title = OVERDUE_EVENT, f"Overdue: {job}"
        message = f"The deadline has passed, and {products} of {job} had not ended."
        cancel = f"`prefect-xrt cancel {job.id}`"
        next_step = f"The job lives on. Run the same again to go on with it, or cancel it by {cancel}."
    else:
        event, title = UNREACHABLE_EVENT, f"The service cannot be reached: {job}"
        message = f"Too many looks in a row told nothing of {products} of {job}."
        next_step = (
            "The job lives on. See whether the service is up, then run the same again to go on with it."
        )
    _raise(
        _Alert(
            event=event,
            resource_id=_job_resource(job),
            name=str(job),
            identity={"prefect-xrt.url": job.url},
            title=title,
            message=message,
            next_step=next_step,
            facts={**_job_facts(job), "pending": [*pending], "output_dir": str(report.output_dir)},
            since=job.submitted_at,
            report_url=reports.artifact_url(page),
        ),
        notifier,
    )


def raise_uncertain(error: SubmitUncertainError, output_dir: Path, notifier: Notifier | None = None) -> None:
    """Tell that it is not known which job, if any, a request has become.

    Args:
        error: What happened.
        output_dir: The folder that the request is for.
        notifier: Who is told directly.
    """
    _raise(
        _Alert(
            event=UNCERTAIN_EVENT,
            resource_id=f"prefect-xrt.request.{flow_run.id}",
            name=str(error.name),
            title=f"Uncertain submission: {error.name}",
            message=f"The request for {error.name!r} was sent, and it is not known which job, if any, it has become.",
            next_step="Run the same again: the job is looked for first. If you find it with `prefect-xrt jobs`, go on "
            f"with it by `prefect-xrt attach JOB_ID --out {output_dir}`.",
            facts={
                "name": error.name,
                "candidates": [*error.candidates],
                "output_dir": str(output_dir),
                "detail": error.message,
            },
        ),
        notifier,
    )


def raise_changed(
    target: str,
    report: BuildReport,
    changes: Sequence[str],
    report_url: str | None = None,
    notifier: Notifier | None = None,
    facts: Mapping[str, JsonValue] | None = None,
) -> None:
    """Tell that a target which was built again has something new.

    Args:
        target: The name of the target's folder.
        report: The build that has it.
        changes: What is new, a sentence each.
        report_url: Where to look at it.
        notifier: Who is told directly.
        facts: What else the payload holds, for programs.
    """
    job = report.job
    _raise(
        _Alert(
            event=CHANGED_EVENT,
            resource_id=f"prefect-xrt.target.{target}",
            name=job.name or target,
            labels={"prefect-xrt.job": str(job.id)},
            identity={"prefect-xrt.url": job.url},
            title=f"Something new: {job.name or target}",
            message=f"There is something new of {job.name or target}: {' '.join(changes)}",
            next_step=f"Look at the products in {report.output_dir}.",
            facts={
                **(facts or {}),
                "target": target,
                **_job_facts(job),
                "changes": [*changes],
                "output_dir": str(report.output_dir),
            },
            since=job.submitted_at,
            report_url=report_url,
            level=logging.INFO,
        ),
        notifier,
    )


def raise_finished(report: BuildReport, page: UUID | None = None) -> None:
    """Tell that a build has ended, for pipelines that start from there.

    Args:
        report: What it came to.
        page: The artifact that shows the report.
    """
    with runs.not_vital("It could not be told that the build has finished"):
        emit_event(
            event=FINISHED_EVENT,
            resource={
                "prefect.resource.id": _job_resource(report.job),
                "prefect.resource.name": str(report.job),
                "prefect-xrt.succeeded": str(report.succeeded).lower(),
            },
            payload={
                "summary": report.summary(),
                "succeeded": report.succeeded,
                "ready": [entry.product.value for entry in report.products if entry.file],
                "missing": report.missing,
                "output_dir": str(report.output_dir),
                "report_url": reports.artifact_url(page),
                "run_url": _run_url(),
                **_job_facts(report.job),
            },
        )


def _raise(alert: _Alert, notifier: Notifier | None) -> None:
    get_run_logger().log(alert.level, "%s %s", alert.message, alert.next_step)
    if _is_known(alert):
        return
    with runs.not_vital(f"The alert could not be raised: {alert.title}"):
        emit_event(
            event=alert.event,
            resource={
                "prefect.resource.id": alert.resource_id,
                "prefect.resource.name": alert.name,
                **alert.identity,
                **alert.labels,
            },
            payload=alert.payload,
            id=alert.id,
        )
    if notifier:
        notifier.tell(alert.title, alert.text())


def _is_known(alert: _Alert) -> bool:
    """Whether Prefect's server has the same alert from an earlier attempt, or from another run."""
    since = {"occurred": EventOccurredFilter(since=alert.since - _SLACK)} if alert.since else {}
    wanted = EventFilter(
        event=EventNameFilter(name=[alert.event]),
        resource=EventResourceFilter(id=[alert.resource_id]),
        **since,
    )
    found: Sequence[Event] = ()
    asking = "It could not be asked whether the alert was raised before"
    with runs.not_vital(asking), runs.api(retries=2, timeout_s=_TIMEOUT_S) as client:
        found = client.read_events(wanted, limit=_PAGE).events
    return any(alert.identity.items() <= event.resource.root.items() for event in found)


def _job_resource(job: Job) -> str:
    return f"prefect-xrt.job.{job.id}"


def _job_facts(job: Job) -> dict[str, JsonValue]:
    return {"job_id": job.id, "job_name": job.name}


def _run_url() -> str | None:
    return url_for("flow-run", obj_id=flow_run.id) if flow_run.id else None
