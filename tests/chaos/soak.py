#!/usr/bin/env python3
"""Let many jobs go through the package's rooms while a tenth of all calls goes wrong, and count what came of it.

    python tests/chaos/soak.py [--jobs 200] [--seed 0]

Two processes with five threads keep five jobs active. Time is scaled: a minute of the service is a fifth
of a second. Ends with 1 when anything is not as it must be.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from verdict import troubles

from prefect_xrt import Pacing, ProductRequest, XRTClient, archive, sensor, submission
from prefect_xrt.emulator import ENDPOINTS, FAULT_KINDS, Emulator, Fault, Scenario, Timeline
from prefect_xrt.errors import XRTError
from prefect_xrt.state import LocalClaims, LocalLooks

_T = TypeVar("_T")

FAULTY = 0.1
ACTIVE = 5
PROCESSES = 2
SPEED = 300.0
INTERVAL_S = 60.0 / SPEED
_READ_TIMEOUT_S = 1.0
_TRIES = 10
_STATUS_KINDS = ("null-codes", "text-codes", "missing-products")
_FILE_KINDS = ("truncated-file", "corrupt-file")


def faults(seed: int) -> Iterator[Fault]:
    """Give every kind of fault for every endpoint, so that a tenth of the calls of each is hit, at random."""
    for at, endpoint in enumerate(ENDPOINTS):
        kinds = [
            kind
            for kind in FAULT_KINDS
            if (kind not in _STATUS_KINDS or endpoint == "status")
            and (kind not in _FILE_KINDS or endpoint == "file")
        ]
        for number, kind in enumerate(kinds):
            yield Fault(
                endpoint,
                kind,
                times=-1,
                # Each is asked only if none before it has struck.
                probability=FAULTY / len(kinds) / (1 - FAULTY * number / len(kinds)),
                seed=(seed * len(ENDPOINTS) + at) * len(FAULT_KINDS) + number,
                seconds=0.0005 if kind == "trickle" else 2 * _READ_TIMEOUT_S,
                retry_after=1 if kind in ("http-429", "http-503") else None,
                location="http://127.0.0.1:9",
            )


def request(name: str) -> ProductRequest:
    """Ask for two small products."""
    return ProductRequest(
        name=name,
        targets=["00966554"],
        ra_deg=335.6985,
        dec_deg=-7.5179,
        centroid=True,
        position_error_arcmin=1,
        standard_position=True,
        enhanced_position=True,
    )


def hurried(seconds: float) -> None:
    """Wait in the service's time, where the package waits for as long as a real service would need."""
    time.sleep(seconds / SPEED)


def persist(act: Callable[[], _T]) -> tuple[_T, int]:
    """Do something until it succeeds, as a person would who is told to ask again, and count the times it did not."""
    for failed in range(_TRIES):
        try:
            return act(), failed
        except XRTError:
            continue
    return act(), _TRIES


def bring(user_id: str, url: str, place: Path) -> int:
    """Bring the products of one request, and return how often something had to be asked for again."""
    with XRTClient(
        user_id, url, read_timeout_s=_READ_TIMEOUT_S, total_timeout_s=30.0, sleep=hurried
    ) as client:
        job, uncertain = persist(
            lambda: submission.submit_once(
                client,
                request(place.name),
                owner=str(place),
                claims=LocalClaims(url),
                directory=place,
                settle_s=2 * INTERVAL_S,
            )
        )
        pacing = Pacing(floor_s=INTERVAL_S, ceiling_s=5 * INTERVAL_S)
        outcome, ended_early = persist(
            lambda: sensor.wait_for_products(client, job, pacing=pacing, looks=LocalLooks(url))
        )

        def fetch() -> None:
            _, problems = archive.download_all(client, job, outcome.ready, place, unpack=True, sleep=hurried)
            for problem in problems.values():
                raise problem

        return uncertain + ended_early + persist(fetch)[1]


def work(user_id: str, url: str, shares: Sequence[Sequence[Path]], told: multiprocessing.Queue[int]) -> None:
    """Bring the products of many requests, in a process of its own: each share in a thread, one by one."""

    def bring_share(places: Sequence[Path]) -> int:
        return sum(bring(user_id, url, place) for place in places)

    with ThreadPoolExecutor(len(shares)) as pool:
        told.put(sum(pool.map(bring_share, shares)))


def soak(jobs: int, seed: int, root: Path) -> list[str]:
    """Bring the products of some requests into folders below a root, say what happened, and return all troubles."""
    os.environ["XDG_STATE_HOME"] = str(root / "state")
    places = [root / f"source {number}" for number in range(jobs)]
    scenario = Scenario(
        default=Timeline.typical(), faults=tuple(faults(seed)), list_delay_s=60.0, observations=1
    )
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    begun_at = time.monotonic()
    with Emulator(scenario, speed=SPEED) as emulator:
        processes = []
        for number in range(PROCESSES):
            shares = [places[thread::ACTIVE] for thread in range(number, ACTIVE, PROCESSES)]
            processes.append(
                context.Process(target=work, args=(emulator.user_id, emulator.url, shares, told))
            )
            processes[-1].start()
        for process in processes:
            process.join()
        failed = [process for process in processes if process.exitcode]
        again = sum(told.get() for _ in range(PROCESSES - len(failed)))
        calls = emulator.log
        found = [f"a process ended with {process.exitcode}" for process in failed] + troubles(
            emulator,
            root / "state",
            {place.name: [place] for place in places},
            interval_s=60.0,
            active_limit=ACTIVE,
        )
    faulty = Counter(call.fault for call in calls if call.fault)
    rows = {
        "requests": jobs,
        "jobs": len(emulator.jobs),
        "calls": len(calls),
        "of which went wrong": f"{faulty.total()} ({faulty.total() / max(1, len(calls)):.0%})",
        **{f"    {kind}": faulty[kind] for kind in FAULT_KINDS},
        "asked again by the harness": again,
        "seconds": f"{time.monotonic() - begun_at:.0f}",
        "troubles": len(found),
    }
    for name, value in rows.items():
        print(f"{name:<30}{value:>12}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, soak, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as root:
        found = soak(options.jobs, options.seed, Path(root))
    for trouble in found:
        print(trouble)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
