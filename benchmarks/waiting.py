"""Compare what waiting for many jobs costs: memory, processor time, and how late the looks come.

    .venv/bin/python benchmarks/waiting.py [--window 60] [--repeats 3]

Many jobs that never end are waited for, each looked at every 20 seconds, which is three times as often as the real
service allows: by one `watch_jobs`; by one thread per job in which the official client asks and sleeps; and, for few
jobs, by one process per job in which a Prefect flow waits. Each candidate is a process of its own (or several), and all
look at the same embedded service. Memory is what a candidate has more than its process had before the first look;
processor time is given for an hour of looks once a minute; late is how much longer than planned the pause between two
looks was, of which the 99th percentile is told.

Then the watch alone, in simulated time: what a look costs with a thousand, ten thousand and a hundred thousand jobs.

Then runs of a deployed flow that wait suspended, with a real Prefect server, a worker and a watcher: how long and how
much processor time it takes to suspend and to resume, and what a suspended run costs meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
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
    forget_peak,
    in_turns,
    measure_apart,
    official_client,
    options_of,
    peak_bytes,
    prefect_server,
    ratios,
    say,
    service,
)

WATCH, THREADS, PROCESSES = "`watch_jobs`", "a thread per job, official client", "a flow-run process per job"
EVERY_S = 20.0
NEVER: dict[str, Any] = {"default": [[3]], "active_job_limit": 10**6, "observations": 2}
_MB = 1e6


class Cost(NamedTuple):
    """What a candidate has cost: bytes, processor seconds for each look, and how late the looks were, in seconds."""

    memory: float
    look_s: float
    late_s: float


def submit(url: str, name: str = "x") -> dict[str, Any]:
    """Have a job of one product made, and return the service's answer."""
    request = {"UserID": ADDRESS, "name": name, "targ": "00966554", "cent": 0, "RA": 1, "Dec": 1, "image": 1}
    answer = requests.post(f"{url}/run_userobject.php", json=request, timeout=60)
    answer.raise_for_status()
    return dict(answer.json())


class Times:
    """When each job was looked at; takes the place of the notes that processes leave one another."""

    def __init__(self) -> None:
        self.at: dict[int, list[float]] = defaultdict(list)

    def last(self, job_id: int) -> float | None:
        """Know of no others' looks."""

    def note(self, job_id: int, at: float) -> None:
        """Keep the time of a look, by the clock that only grows."""
        del at
        self.at[job_id].append(time.monotonic())

    def end(self, outcome: object) -> None:
        """Keep nothing of an end."""

    def cost(self, memory: float, cpu: float) -> Cost:
        """Put together what it came to."""
        gaps = sorted(b - a - EVERY_S for at in self.at.values() for a, b in pairwise(at))
        looks = sum(map(len, self.at.values()))
        return Cost(memory, cpu / looks, gaps[int(0.99 * (len(gaps) - 1))] if gaps else 0.0)


def measure_watch(url: str, count: int, window_s: float) -> None:
    """Watch jobs for a while, and print what it cost."""
    from prefect_xrt import Pacing, XRTClient
    from prefect_xrt.sensor import Watch

    class Steady(Pacing):
        def interval_s(self, histories: object, chance: float) -> float:  # noqa: ARG002 - always the same
            return EVERY_S

    times = Times()
    with XRTClient(ADDRESS, url) as client, Watch() as watch:
        first = client.attach(int(submit(url)["JobID"]))
        client.check_product_status(first)
        jobs = [
            first.model_copy(update={"id": 800 + n, "url": f"{first.url.rsplit('_', 1)[0]}_{800 + n}"})
            for n in range(1, count + 1)
        ]
        before, cpu = forget_peak(), time.process_time()
        for n, job in enumerate(jobs):
            watch.follow(client, job, pacing=Steady(floor_s=EVERY_S), looks=times, log=lambda _: None)
            # As jobs that were not all submitted in the same moment.
            if n % 50 == 49:  # noqa: PLR2004 - a second's worth
                list(watch.endings(EVERY_S * 50 / max(count, 50)))
        list(watch.endings(window_s))
        print(json.dumps(times.cost(peak_bytes() - before, time.process_time() - cpu)))


def measure_threads(url: str, count: int, window_s: float) -> None:
    """Let threads with the official client ask for a while, and print what it cost."""
    xrt_prods = official_client(url)
    times, over = Times(), threading.Event()

    def job() -> Any:
        wanted = xrt_prods.XRTProductRequest(ADDRESS, silent=True)
        wanted.setGlobalPars(
            name="x", targ="00966554", RA=1.0, Dec=1.0, centroid=False, useSXPS=False, getT0=True
        )
        wanted.addImage()
        if not wanted.submit():
            raise SystemExit(wanted.submitError)
        return wanted

    # Whoever has never asked has not loaded all that it needs.
    job().checkProductStatus()
    before = forget_peak()
    jobs = [job() for _ in range(count)]
    cpu = time.process_time()

    def follow(wanted: Any) -> None:
        while not over.is_set():
            times.note(int(wanted.JobID), 0)
            wanted.checkProductStatus()
            over.wait(EVERY_S)

    threads = [threading.Thread(target=follow, args=(wanted,), daemon=True) for wanted in jobs]
    for n, thread in enumerate(threads):
        thread.start()
        if n % 50 == 49:  # noqa: PLR2004 - a second's worth
            time.sleep(EVERY_S * 50 / max(count, 50))
    time.sleep(window_s)
    found = times.cost(peak_bytes() - before, time.process_time() - cpu)
    print(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def fine_cpu_s(process_id: int | str = "self") -> float:
    """Return the processor time of a process's threads in seconds, finer than its ticks: few looks cost little."""
    places = Path(f"/proc/{process_id}/task").glob("*/schedstat")
    return sum(int(place.read_text().split()[0]) for place in places) / 1e9


def own_bytes(process_id: int) -> int:
    """Return the memory that a process shares with no other."""
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


FLOW = """
import sys, time
from prefect import flow
from prefect_xrt import Pacing, XRTClient, wait_for_products
from prefect_xrt import sensor

class Steady(Pacing):
    def interval_s(self, histories, chance):
        return 20.0

@flow
def follow(job_id: int) -> None:
    with XRTClient("demo@example.org", sys.argv[2]) as client:
        job = client.attach(job_id)
    wait_for_products(job, pacing=Steady(floor_s=20.0), return_state=True)

follow(int(sys.argv[1]))
"""


def measure_processes(url: str, count: int, window_s: float, server: str) -> None:
    """Let flow runs in processes of their own wait for a while, and print what it cost."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | {"XDG_STATE_HOME": scratch, "PREFECT_API_URL": server}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", FLOW, str(801 + n), url],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for n in range(count)
        ]
        # What it takes to start is no waiting.
        looks = Path(scratch, "prefect-xrt", "looks")
        while len([*looks.glob("*/*.json")]) < count:
            time.sleep(0.5)
        time.sleep(EVERY_S)
        cpu = sum(fine_cpu_s(process.pid) for process in processes)
        time.sleep(window_s)
        cpu = sum(fine_cpu_s(process.pid) for process in processes) - cpu
        memory = sum(own_bytes(process.pid) for process in processes)
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
    print(json.dumps(Cost(memory, cpu / (count * window_s / EVERY_S), 0.0)))


def measure_simulated(count: int) -> None:
    """Watch jobs in simulated time until they end, and print the processor seconds for each look."""
    from datetime import UTC, datetime

    from prefect_xrt.protocol import Job, Outcome, ProductStatus
    from prefect_xrt.request import Product
    from prefect_xrt.sensor import Watch

    now, looks = 1.7e9, 0

    class World:
        is_local = False

        def check_product_status(
            self,
            job: Job,
            products: Any = None,  # noqa: ARG002 - there is but one
            *,
            attempts: int | None = None,  # noqa: ARG002 - one, as always
        ) -> Outcome:
            nonlocal looks
            looks += 1
            code = 4 if now - 1.7e9 > 600 + job.id % 3000 else 3
            return Outcome(
                job=job,
                statuses={Product.IMAGE: ProductStatus(product=Product.IMAGE, code=code, text="")},
                looked_at=datetime.fromtimestamp(now, UTC),
            )

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    world = World()
    jobs = [Job(id=n, url=f"https://example.org/{n}", products=(Product.IMAGE,)) for n in range(count)]
    with Watch(connections=1, clock=lambda: now, timer=lambda: now, sleep=sleep) as watch:
        before = cpu_s()
        for job in jobs:
            watch.follow(world, job, log=lambda _: None)
        assert len([*watch.endings()]) == count  # noqa: S101 - the proof that it did its work
    print(json.dumps((cpu_s() - before) / looks))


def compare_waits(
    page: Page, running: Service, server: PrefectServer, counts: list[int], window_s: float, repeats: int
) -> None:
    """Measure the waits, and print their table."""

    def act(what: str, count: int) -> Cost:
        say(f"{count} jobs")
        with tempfile.TemporaryDirectory() as scratch:
            environment = {**QUIET, **running.environment, "XDG_STATE_HOME": scratch, "PREFECT_HOME": scratch}
            arguments = ["--measure", what, "--url", running.url, "--count", str(count)]
            arguments += ["--window", str(window_s), "--server", server.url]
            return Cost(*measure_apart(__file__, *arguments, **environment))

    rows = []
    for count in counts:
        kinds = {WATCH: "watch", THREADS: "threads"}
        if count <= 10:  # noqa: PLR2004 - more do not fit
            kinds[PROCESSES] = "processes"
        found = in_turns({name: partial(act, kind, count) for name, kind in kinds.items()}, repeats)
        mine = found[WATCH]
        for name, costs in found.items():
            looks = [cost.look_s for cost in costs]
            rows.append(
                [
                    str(count),
                    name,
                    Spread.of([cost.memory / _MB for cost in costs]).text("MB"),
                    Spread.of([60 * count * used for used in looks]).text("s"),
                    "1" if name == WATCH else ratios(looks, [cost.look_s for cost in mine]).text(),
                    "" if name == PROCESSES else Spread.of([cost.late_s for cost in costs]).text("s"),
                ]
            )
    page.table(
        ["jobs", "who waits", "memory", "processor time in an hour", "this / ours", "late, 99th percentile"],
        rows,
    )


def compare_sizes(page: Page, counts: list[int], repeats: int) -> None:
    """Measure the watch in simulated time, and print its table."""

    def act(count: int) -> float:
        return float(measure_apart(__file__, "--measure", "simulated", "--count", str(count), **QUIET))

    found = in_turns({str(count): partial(act, count) for count in counts}, repeats)
    least = found[str(counts[0])]
    rows = [
        [name, Spread.of([1e6 * value for value in costs]).text("µs"), ratios(costs, least).text()]
        for name, costs in found.items()
    ]
    page.table(["jobs, in simulated time", "processor time of a look", f"this / that of {counts[0]}"], rows)


@contextmanager
def program(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program of the environment until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


class Cycle(NamedTuple):
    """What a run that waits suspended costs: seconds from its job's end to its own, and calls of the server."""

    late_s: float
    calls: float


def measure_cycles(page: Page, server: PrefectServer, repeats: int, rest_s: float) -> None:
    """Let runs suspend themselves, one after the other, resume them, and print the table."""
    scenario = {"default": [{"code": 3, "after_looks": 3}, [4]], "active_job_limit": 1000}
    with service(scenario) as running, tempfile.TemporaryDirectory() as scratch:
        environment = {**QUIET, **running.environment, "PREFECT_API_URL": server.url}
        environment |= {
            "XDG_STATE_HOME": scratch,
            "PREFECT_HOME": scratch,
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }
        subprocess.run(
            [sys.executable, "-m", "prefect_xrt.cli", "deploy"],
            env=os.environ | environment,
            check=True,
            capture_output=True,
        )
        url = f"{server.url}/deployments/name/one-target/one-target"
        deployment = requests.get(url, timeout=60).json()["id"]
        request = {
            "name": "GK Per",
            "targets": ["00010873"],
            "ra_deg": 1,
            "dec_deg": 1,
            "centroid": False,
            "image": {},
        }

        def state(run_id: str) -> dict[str, Any]:
            return dict(requests.get(f"{server.url}/flow_runs/{run_id}", timeout=60).json())

        def run(waiting: str) -> str:
            body = {
                "parameters": {"request": request, "output_root": scratch, "waiting": waiting},
                "state": {"type": "SCHEDULED"},
            }
            answer = requests.post(
                f"{server.url}/deployments/{deployment}/create_flow_run", json=body, timeout=60
            )
            return str(answer.json()["id"])

        def until(run_id: str, *names: str) -> float:
            while state(run_id)["state_name"] not in names:
                time.sleep(0.1)
            return time.monotonic()

        def whole(waiting: str) -> Cycle:
            server.settle()
            before = len(server.calls())
            run_id = run(waiting)
            ended_at = until(run_id, "Completed", "Failed")
            looked_at = max(
                place.stat().st_mtime for place in Path(scratch).glob("prefect-xrt/looks/*/*.json")
            )
            late_s = time.time() - looked_at - (time.monotonic() - ended_at)
            calls = [
                call
                for call in server.calls()[before:]
                if not call.startswith(("GET /flow_runs/{id}", "POST /work_pools", "GET /work_pools"))
            ]
            return Cycle(late_s, len(calls))

        worker = ("prefect", "worker", "start", "--pool", "xrt", "--limit", "4")
        with program(*worker, **environment):
            say("a run that is suspended, and nobody there to resume it")
            run_id = run("suspended")
            until(run_id, "Suspended")
            server.settle()
            time.sleep(2)
            before, cpu = len(server.calls()), cpu_s(server.process_id)
            time.sleep(rest_s)
            calls = [call for call in server.calls()[before:] if "work_" not in call]
            used = cpu_s(server.process_id) - cpu
            with program("prefect_xrt.cli", "watch", **environment):
                until(run_id, "Completed", "Failed")
                found = in_turns({how: partial(whole, how) for how in ("in-process", "suspended")}, repeats)
    rows = [
        [
            name,
            Spread.of([cycle.late_s for cycle in cycles]).text("s"),
            Spread.of([cycle.calls for cycle in cycles]).text(),
        ]
        for name, cycles in found.items()
    ]
    page.table(
        ["a run that waits", "from the last look to its end", "calls of Prefect's server, in all"], rows
    )
    page.say(
        f"While a run was suspended and no watcher ran, it had no process; the server got {len(calls)} calls in "
        f"{rest_s:.0f} s, and used {used:.2f} s of processor time for all that it does without being asked."
    )


def main() -> None:
    """Measure everything, and print the tables."""
    parser = options_of("Wait for many jobs.", repeats=3)
    parser.add_argument(
        "--window", type=float, default=60.0, help="how long each candidate waits, in seconds"
    )
    parser.add_argument(
        "--measure", choices=("watch", "threads", "processes", "simulated"), help=argparse.SUPPRESS
    )
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--server", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure == "simulated":
        measure_simulated(options.count)
    elif options.measure == "watch":
        measure_watch(options.url, options.count, options.window)
    elif options.measure == "threads":
        measure_threads(options.url, options.count, options.window)
    elif options.measure == "processes":
        measure_processes(options.url, options.count, options.window, options.server)
    else:
        quick = options.quick
        counts = [2] if quick else [1, 10, 100, 1000]
        with (
            Page(__file__, into_docs=options.write) as page,
            prefect_server() as server,
            service(NEVER) as running,
        ):
            for _ in range(max(counts)):
                submit(running.url)
            window_s, repeats = (21.0, 1) if quick else (options.window, options.repeats)
            compare_waits(page, running, server, counts, window_s, repeats)
            compare_sizes(page, [100, 1000] if quick else [1000, 10_000, 100_000], repeats)
            measure_cycles(page, server, repeats, 5.0 if quick else 30.0)


if __name__ == "__main__":
    main()
