"""A finished job's light curve, binned again: asked for, waited for, retrieved.

The wait is the sensor's, with its pacing and its budgets: all that it needs is somebody who can be asked for
the status of a product.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from prefect_xrt import sensor
from prefect_xrt.client import Which, XRTClient
from prefect_xrt.errors import DeadlineError, FailedLooksError, ProductsError, XRTError
from prefect_xrt.pacing import Pacing
from prefect_xrt.protocol import Job, Outcome, RebinJob
from prefect_xrt.request import LightCurve as Binning
from prefect_xrt.request import Product
from prefect_xrt.results import LightCurve

__all__ = ["finish_rebin", "rebin_light_curve", "wait_for_rebin"]

DEADLINE_S = 3600.0
"""A new binning of what has been extracted already takes a minute or so."""


class _Looker:
    """Shows the sensor a new binning as a job of one product."""

    def __init__(self, client: XRTClient, rebin: RebinJob) -> None:
        self._client = client
        self._rebin = rebin

    @property
    def is_local(self) -> bool:
        return self._client.is_local

    def check_product_status(
        self,
        job: Job,
        products: Iterable[Product | str] | None = None,  # noqa: ARG002 - there is but one
        *,
        attempts: int | None = None,
    ) -> Outcome:
        status = self._client.check_rebin_status(self._rebin, attempts=attempts)
        return Outcome(job=job, statuses={Product.LIGHT_CURVE: status}, looked_at=datetime.now(UTC))


def wait_for_rebin(
    client: XRTClient,
    rebin: RebinJob,
    *,
    pacing: Pacing | None = None,
    deadline_s: float = DEADLINE_S,
    max_failed_looks: int = sensor.MAX_FAILED_LOOKS,
    log: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> Outcome:
    """Wait until a new binning has ended, however it did; the arguments are those of `sensor.wait_for_products`.

    Raises:
        DeadlineError: The deadline has passed.
        FailedLooksError: Too many looks in a row failed.
        RefusedError: The service does not know it.
    """
    # It is neither noted nor read when others looked: its ID is not that of a job, and may be that of another.
    job = rebin.job.model_copy(update={"products": (Product.LIGHT_CURVE,)})
    with _in_its_own_words(rebin):
        return sensor.wait_for_products(
            _Looker(client, rebin),
            job,
            pacing=pacing,
            deadline_s=deadline_s,
            max_failed_looks=max_failed_looks,
            log=log,
            clock=clock,
            timer=timer,
            sleep=sleep,
            chance=chance,
        )


@contextlib.contextmanager
def _in_its_own_words(rebin: RebinJob) -> Iterator[None]:
    """Speak of a new binning, where the sensor tells how to go on with a job."""
    try:
        yield
    except (DeadlineError, FailedLooksError) as error:
        raise type(error)(
            f"The wait for {rebin} has ended before it did ({_why(error)}).",
            job=rebin.job,
            outcome=error.outcome,
        ) from error


def _why(error: DeadlineError | FailedLooksError) -> str:
    return "the deadline has passed" if isinstance(error, DeadlineError) else "too many looks told nothing"


def rebin_light_curve(
    client: XRTClient,
    job: Job,
    binning: Binning,
    *,
    systematics: Which = "with",
    unreliable: Which = "without",
    pacing: Pacing | None = None,
    deadline_s: float = DEADLINE_S,
    max_failed_looks: int = sensor.MAX_FAILED_LOOKS,
    log: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.time,
    timer: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    chance: Callable[[], float] = random.random,
) -> LightCurve:
    """Bin a finished job's light curve again, wait for it, and return it.

    Much faster than a job of its own, where nothing but the binning is to be different. If this is interrupted,
    what is no longer needed is cancelled; if it fails, a note on the error tells how to go on.

    Args:
        client: Speaks to the service.
        job: A job whose light curve is ready.
        binning: How to bin.
        systematics: As of `XRTClient.retrieve_light_curve`.
        unreliable: As of `XRTClient.retrieve_light_curve`.
        pacing: When to look; never more often than once a minute, except on this machine.
        deadline_s: How long to wait, in seconds.
        max_failed_looks: How many looks in a row may fail.
        log: Takes a line when something has changed.
        clock: Gives the time, in seconds since 1970.
        timer: Gives seconds that only ever grow.
        sleep: Waits, in seconds.
        chance: Gives random numbers from 0 to 1.

    Raises:
        ConfigurationError: The job does not build a light curve, or the binning says nothing of its own.
        RefusedError: The service does not do it.
        SubmitUncertainError: It was asked for and no clear answer came.
        ProductsError: It failed or was cancelled.
        DeadlineError: The deadline has passed.
        FailedLooksError: Too many looks in a row failed.
    """
    return finish_rebin(
        client,
        client.submit_rebin(job, binning),
        systematics=systematics,
        unreliable=unreliable,
        pacing=pacing,
        deadline_s=deadline_s,
        max_failed_looks=max_failed_looks,
        log=log,
        clock=clock,
        timer=timer,
        sleep=sleep,
        chance=chance,
    )


def finish_rebin(
    client: XRTClient,
    rebin: RebinJob,
    *,
    systematics: Which = "with",
    unreliable: Which = "without",
    cancelled_by: Callable[[BaseException], bool] = lambda _: True,
    **waiting: Any,
) -> LightCurve:
    """Wait for a new binning that was asked for, and return it.

    Args:
        client: Speaks to the service.
        rebin: What was asked for.
        systematics: As of `XRTClient.retrieve_light_curve`.
        unreliable: As of `XRTClient.retrieve_light_curve`.
        cancelled_by: Tells by what has interrupted this whether the binning is cancelled; it is by default.
        waiting: As of `wait_for_rebin`.

    Raises:
        ProductsError: It failed or was cancelled.
        DeadlineError: The deadline has passed.
        FailedLooksError: Too many looks in a row failed.
    """
    try:
        wait_for_rebin(client, rebin, **waiting).require()
        return client.retrieve_rebinned_light_curve(rebin, systematics=systematics, unreliable=unreliable)
    except ProductsError:
        raise
    except XRTError as error:
        # The service documents no list of them: whoever does not know the ID can only have it made twice.
        error.add_note(
            f"It goes on all the same: `finish_rebin` waits for `RebinJob(id={rebin.id}, job=..., parameters=...)`."
        )
        raise
    except BaseException as stop:
        if cancelled_by(stop):
            with contextlib.suppress(Exception):
                client.cancel_rebin(rebin, attempts=1)
        raise
