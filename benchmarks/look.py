"""Compare what one look at a job costs, in processor time and in calls of Prefect's server.

    .venv/bin/python benchmarks/look.py [--looks 400] [--repeats 5]

A look is one status call for three products. Everybody looks at the same embedded service in a process of its own,
in turns, each time in a new process.

Without Prefect: the sensor as the task runs it, with its note of each look on disk, at products that run and whose
progress the service tells, against loops that only send the same body and read the answer as JSON:
`requests.post`, which connects anew each time, and `Session.post`, which keeps its connection.

With Prefect, on a real server: the task `wait_for_products` in a flow, with its display of progress, against a task
that looks once by `requests.post`, raises until the products have ended, and has `retries` without a delay. The
products are queued, so that the looks tell nothing new; in a third row they run, with progress that moves through
all its steps, each of which is shown, in as many looks. What is told is the difference between a run of many looks
and one of few, so that what a run costs once is not in it; of the server's processor time, what it uses without
being asked is taken off.

Nobody waits between looks here. A wait as it really is asks Prefect's server now and then whether its run has
been cancelled; how often is counted by a wait in real time.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import requests
from common import (
    ADDRESS,
    QUIET,
    Page,
    PrefectServer,
    Service,
    Spread,
    cpu_s,
    in_turns,
    measure_apart,
    options_of,
    prefect_server,
    ratios,
    service,
)

SENSOR, POST, SESSION = "the sensor", "`requests.post`", "`Session.post`"
TASK, RETRIES, MOVING = "`wait_for_products`", "a task with `retries`", "`wait_for_products`, progress moves"
QUEUED, RUNNING = 2, 3
FEW = 5
WAIT_S = 60
_MS = 1000.0
_SHORT = ("lc", "spec", "image")


class Cost(NamedTuple):
    """What one look has cost: processor seconds here and at Prefect's server, and calls of that."""

    here_s: float
    server_s: float = 0.0
    calls: float = 0.0


def submit(url: str, looks: int) -> dict[str, Any]:
    """Have a job made of three products that end after some looks, and return the service's answer."""
    request = {
        "UserID": ADDRESS,
        "name": f"after {looks}",
        "targ": "00966554",
        "cent": 0,
        "Tstart": 608713541.952,
    }
    request |= {
        "RA": 335.6985,
        "Dec": -7.5179,
        "lc": 1,
        "binMeth": "snapshot",
        "spec": 1,
        "specz": 0,
        "image": 1,
    }
    answer: dict[str, Any] = requests.post(f"{url}/run_userobject.php", json=request, timeout=60).json()
    if not answer["OK"]:
        raise SystemExit(f"The job was not accepted: {answer}")
    return answer


def body_of(job_id: str) -> dict[str, Any]:
    """Return what a look sends."""
    what = ",".join(_SHORT)
    return {
        **{"JobID": int(job_id), "what": what, "whatProg": what},
        **{"UserID": ADDRESS, "api_name": "xrt_prods", "api_version": "1.12"},
    }


def has_ended(answer: dict[str, Any]) -> bool:
    """Tell whether all products have ended."""
    return all(answer[short]["statusCode"] == 4 for short in _SHORT)  # noqa: PLR2004 - complete


def looker(side: str, url: str) -> Callable[[int], object]:
    """Return what looks at a job until it has ended, without Prefect, with all that it needs imported."""
    if side == SENSOR:
        return _sensor(url)
    place = f"{url}/checkProductStatus.php"

    def loop(job_id: int) -> None:
        body = body_of(str(job_id))
        session = requests.Session()
        post = session.post if side == SESSION else requests.post
        while not has_ended(post(place, json=body, timeout=60).json()):
            pass

    return loop


def _sensor(url: str) -> Callable[[int], object]:
    from prefect_xrt import Pacing, XRTClient, sensor
    from prefect_xrt.state import LocalLooks

    logging.getLogger("prefect_xrt").setLevel(logging.ERROR)
    pacing = Pacing(floor_s=1e-6, ceiling_s=1e-6)

    def wait(job_id: int) -> None:
        with XRTClient(ADDRESS, url) as client:
            sensor.wait_for_products(
                client, client.attach(job_id), pacing=pacing, looks=LocalLooks(url), sleep=lambda _: None
            )

    return wait


def measure_look(side: str, url: str, looks: int) -> None:
    """Look at a job until it has ended, and print what a look has cost."""
    wait = looker(side, url)
    used = []
    for count in (FEW, looks):
        job_id = int(submit(url, count)["JobID"])
        before_s = time.process_time()
        wait(job_id)
        used.append(time.process_time() - before_s)
    print(json.dumps(Cost((used[1] - used[0]) / (looks - FEW))))


def run_of(side: str, url: str, looks: int) -> Callable[[int], object]:
    """Return a flow that follows a job, whose task looks or raises until it has ended."""
    from prefect import flow, task

    if side == RETRIES:

        @task(retries=looks + FEW, retry_delay_seconds=0)
        def look(job_id: int) -> None:
            answer = requests.post(
                f"{url}/checkProductStatus.php", json=body_of(str(job_id)), timeout=60
            ).json()
            if not has_ended(answer):
                raise RuntimeError("The products have not ended.")

        @flow
        def follow(job_id: int) -> None:
            look(job_id)

    else:
        from prefect_xrt import Pacing, XRTClient, wait_for_products

        pacing = Pacing(floor_s=1e-4, ceiling_s=1e-4)

        @flow
        def follow(job_id: int) -> None:
            with XRTClient(ADDRESS, url) as client:
                job = client.attach(job_id)
            wait_for_products(job, pacing=pacing)

    return follow


def measure_run(side: str, url: str, looks: int, server: PrefectServer) -> None:
    """Run flows of few and of many looks, and print what one look more has cost."""
    follow = run_of(side, url, looks)
    follow(int(submit(url, FEW)["JobID"]))
    server.settle()
    start, before_s = time.perf_counter(), cpu_s(server.process_id)
    time.sleep(3)
    idle = (cpu_s(server.process_id) - before_s) / (time.perf_counter() - start)
    costs = []
    for count in (FEW, looks):
        job_id = int(submit(url, count)["JobID"])
        here_s, server_s, calls = time.process_time(), cpu_s(server.process_id), len(server.calls())
        start = time.perf_counter()
        follow(job_id)
        server.settle()
        server_s = cpu_s(server.process_id) - server_s - idle * (time.perf_counter() - start)
        costs.append((time.process_time() - here_s, server_s, len(server.calls()) - calls))
    few, many = costs
    print(json.dumps([(b - a) / (looks - FEW) for a, b in zip(few, many, strict=True)]))


def measure_wait(url: str, seconds: float, server: PrefectServer) -> None:
    """Wait for a job that never ends until the deadline, and print which calls came meanwhile, except of the run."""
    from prefect import flow

    from prefect_xrt import Pacing, XRTClient, wait_for_products

    @flow
    def follow(job_id: int, deadline_s: float) -> None:
        with XRTClient(ADDRESS, url) as client:
            job = client.attach(job_id)
        wait_for_products(
            job, pacing=Pacing(floor_s=2, ceiling_s=2), deadline_s=deadline_s, return_state=True
        )

    found = []
    for deadline_s in (1.0, seconds):
        before = len(server.calls())
        job_id = int(submit(url, 10**6)["JobID"])
        follow(job_id, deadline_s, return_state=True)
        server.settle()
        found.append(Counter(server.calls()[before:]))
    print(json.dumps(found[1] - found[0]))


def apart(what: str, side: str, looks: int, running: Service, server: PrefectServer | None = None) -> Any:
    """Measure one side in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**QUIET, **running.environment, "XDG_STATE_HOME": scratch, "PREFECT_HOME": scratch}
        arguments = ["--measure", what, "--side", side, "--url", running.url, "--looks", str(looks)]
        if server:
            environment["PREFECT_API_URL"] = server.url
            environment["PREFECT_LOGGING_TO_API_BATCH_INTERVAL"] = "0.2"
            arguments += ["--server", server.url, str(server.process_id), str(server.log)]
        return measure_apart(__file__, *arguments, **environment)


def scenario(*looks: int, code: int = RUNNING) -> dict[str, Any]:
    """Return a scenario with jobs that end after some looks, by their names, and others that never end."""
    ends = {f"after {count}": {"*": [{"code": code, "after_looks": count}, [4]]} for count in looks}
    return {"jobs": ends, "default": [[code]], "active_job_limit": 100_000}


def compare_looks(page: Page, running: Service, looks: int, repeats: int) -> None:
    """Measure the looks without Prefect, and print their table."""

    def act(side: str) -> Callable[[], Cost]:
        return lambda: Cost(*apart("look", side, looks, running))

    found = in_turns({side: act(side) for side in (SENSOR, POST, SESSION)}, repeats)
    mine = [cost.here_s for cost in found[SENSOR]]
    rows = []
    for side, costs in found.items():
        used = [cost.here_s for cost in costs]
        ratio = "1" if side == SENSOR else ratios(mine, used).text()
        rows.append([side, Spread.of([_MS * value for value in used]).text("ms"), ratio])
    page.table(["without Prefect", "processor time of a look", "the sensor / this"], rows)


def compare_runs(
    page: Page,
    running: Service,
    queued: Service,
    server: PrefectServer,
    looks: int,
    retries: int,
    repeats: int,
) -> None:
    """Measure the looks of tasks, and print their table."""

    def act(side: str, count: int, where: Service) -> Callable[[], Cost]:
        return lambda: Cost(*apart("run", side, count, where, server))

    found = in_turns(
        {
            TASK: act(TASK, looks, queued),
            RETRIES: act(RETRIES, retries, queued),
            MOVING: act(MOVING, looks, running),
        },
        repeats,
    )
    rows = []
    mine = [cost.here_s + cost.server_s for cost in found[TASK]]
    for side, costs in found.items():
        used = [cost.here_s + cost.server_s for cost in costs]
        rows.append(
            [
                side,
                Spread.of([_MS * cost.here_s for cost in costs]).text("ms"),
                Spread.of([_MS * cost.server_s for cost in costs]).text("ms"),
                "1" if side == TASK else ratios(used, mine).text(),
                Spread.of([cost.calls for cost in costs]).text(),
            ]
        )
    page.table(
        [
            "with Prefect",
            "processor time of a look, here",
            "at the server",
            "this / ours, both together",
            "API calls",
        ],
        rows,
    )


def main() -> None:
    """Measure everything, and print the tables."""
    parser = options_of("Look at a job.", repeats=5)
    parser.add_argument("--looks", type=int, default=400)
    parser.add_argument("--retries", type=int, default=60, help="looks of the task that retries")
    parser.add_argument("--measure", choices=("look", "run", "wait"), help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--server", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    looks, repeats = (30, 1) if options.quick else (options.looks, options.repeats)
    if options.measure:
        if options.measure == "look":
            measure_look(options.side, options.url, options.looks)
            return
        url, process_id, log = options.server
        known = PrefectServer(url, int(process_id), Path(log))
        if options.measure == "run":
            measure_run(options.side, options.url, options.looks, known)
        else:
            measure_wait(options.url, WAIT_S, known)
        return
    counts = (FEW, looks, options.retries)
    with (
        service(scenario(*counts)) as running,
        service(scenario(*counts, code=QUEUED)) as queued,
        Page(__file__, into_docs=options.write) as page,
    ):
        page.say(f"{looks} looks, turns: {repeats}.")
        compare_looks(page, running, looks, repeats)
        if options.quick:
            return
        with prefect_server() as server:
            compare_runs(page, running, queued, server, looks, options.retries, repeats)
            calls = apart("wait", TASK, looks, queued, server)
            told = ", ".join(f"{count} `{call}`" for call, count in calls.items()) or "none"
            page.say(f"Calls in {WAIT_S} s of waiting in real time, with a look every 2 s: {told}.")


if __name__ == "__main__":
    main()
