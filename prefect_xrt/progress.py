"""How far a job is, for people who watch it in the Prefect UI: a progress bar and a table of its products.

They move with the steps that the service tells, and say where it tells none. They cost the wait nothing:
a look that changes nothing asks nothing of Prefect's server, and one that is away is left alone for a while.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from uuid import UUID

from prefect import get_run_logger
from prefect.client.schemas.actions import ArtifactCreate
from prefect.runtime import flow_run
from pydantic import JsonValue

from prefect_xrt import reports, runs
from prefect_xrt.protocol import Job, Outcome, ProductState, ProductStatus, file_name
from prefect_xrt.reports import Times
from prefect_xrt.request import Product

__all__ = ["Board", "percent"]

_logger = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
_PAUSE_S = 300.0


class Board:
    """Shows a job in the Prefect UI: call it with what each look told.

    Nothing is shown outside a flow run. What cannot be shown is logged, and never raised.

    Args:
        job: The job.
        flow_run_id: The flow run that it is shown with; by default the one that this is called in.
        clock: Gives seconds that only ever grow.
    """

    def __init__(
        self, job: Job, *, flow_run_id: UUID | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._flow_run_id = flow_run_id
        self._clock = clock
        self._shown: object = None
        self._quiet_until: float | None = None
        self.times: dict[Product, Times] = {}
        """How long each product was queued and has been running, as far as the service told."""

    def __call__(self, outcome: Outcome) -> None:
        """Show what a look told, if that is anything new."""
        for status in outcome.statuses.values():
            self._note_times(status, outcome)
        news = [
            (status.product, status.code, status.text, status.done, status.active_step, status.active_detail)
            for status in outcome.statuses.values()
        ]
        quiet = self._quiet_until is not None and self._clock() < self._quiet_until
        if news == self._shown or quiet or not (self._flow_run_id or flow_run.id):
            return
        try:
            with runs.api(retries=0, timeout_s=_TIMEOUT_S) as client:
                reports.show(client, *self._artifacts(outcome), flow_run_id=self._flow_run_id)
        except Exception as error:
            self._quiet_until = self._clock() + _PAUSE_S
            log = _logger if self._flow_run_id else get_run_logger()
            log.warning(
                "The progress of %s could not be shown (%s); the wait goes on.",
                self._job,
                type(error).__name__,
            )
        else:
            self._shown = news

    def _note_times(self, status: ProductStatus, outcome: Outcome) -> None:
        """Keep what is known of a product's times: the service tells nothing of them once it has ended."""
        known = self.times.get(status.product, Times())
        running_s = status.running_s
        queued_s = None
        if self._job.submitted_at and not status.ended and (running_s is not None or not known.running):
            queued_s = (outcome.looked_at - self._job.submitted_at).total_seconds() - (running_s or 0)
        self.times[status.product] = Times(
            queued=known.queued if queued_s is None else _clock_text(queued_s),
            running=known.running if running_s is None else _clock_text(running_s),
        )

    def _artifacts(self, outcome: Outcome) -> tuple[ArtifactCreate, ArtifactCreate]:
        at = f"{outcome.looked_at:%Y-%m-%d %H:%M} UTC"
        progress = ArtifactCreate(
            key=f"xrt-progress-{self._job.id}",
            type="progress",
            data=percent(outcome),
            description=f"{describe(outcome)} As of {at}.",
        )
        table = ArtifactCreate(
            key=reports.artifact_key(self._job.id),
            type="table",
            data=json.dumps(list(self._rows(outcome))),
            description=f"{self._job} at {at}; its files will be below {self._job.url}.",
        )
        return progress, table

    def _rows(self, outcome: Outcome) -> Iterator[dict[str, JsonValue]]:
        for status in outcome.statuses.values():
            yield {
                **reports.status_row(status, self.times.get(status.product)),
                "step": _at_work(status),
                "files": f"{self._job.url}/{file_name(status.product, 'tar.gz')}"
                if status.state is ProductState.READY
                else "",
            }


def percent(outcome: Outcome) -> float:
    """Return how far a job is, from 0 to 100, every product counting the same.

    One that has ended counts whole, however it ended; one that runs counts as far as the service tells;
    one of which it tells nothing does not count. It is 100 only when all have ended.
    """
    parts = [status.done or 0.0 for status in outcome.statuses.values()]
    return 100.0 if outcome.complete else min(math.floor(1000 * sum(parts) / len(parts)) / 10, 99.9)


def describe(outcome: Outcome) -> str:
    """Return how far a job is in words, such as "45 %: 2 of 6 products of GK Per have ended.", and what is at work."""
    statuses = outcome.statuses.values()
    told = [f"{status.product.value}: {_at_work(status)}." for status in statuses if status.active_step]
    silent = [
        status.product.value
        for status in statuses
        if status.state is ProductState.RUNNING and status.done is None
    ]
    if silent:
        told.append(f"The service tells no progress of {', '.join(silent)}.")
    # The UI shows the first thirty characters on a job's card.
    of = outcome.job.name or str(outcome.job)
    ended = f"{len(outcome.ended)} of {len(statuses)} products of {of} have ended."
    return " ".join([f"{math.floor(percent(outcome))} %: {ended}", *told])


def _at_work(status: ProductStatus) -> str:
    if status.ended or not status.active_step:
        return ""
    step = status.active_step.rstrip(".")
    return f"{step} ({status.active_detail})" if status.active_detail else step


def _clock_text(seconds: float) -> str:
    """Return seconds as the service writes them, "HH:MM:SS"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}"
