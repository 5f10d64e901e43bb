"""Compare the whole flow, with a job that builds in no time, against an empty flow with as many task runs.

    .venv/bin/python benchmarks/flow.py [--repeats 9]

Ours is `build_products` for three products that are ready at the first look: submit, wait, three downloads of small
bundles; with the pictures of its report, and without, as where matplotlib is not installed. The empty flow has five
tasks that do nothing, called in the same ways: the first keeps its result, as ours does, the last three are started
by `.submit()`. It speaks to no service, writes no files, shows nothing in the UI and raises no events of its own.
All run in one process that is warm, in turns, on a real Prefect server.

Also, how long imports take in new processes, against that of `import prefect`, and against that of a module with a
task and a flow of one parameter that does nothing: defining one makes Prefect import more.
"""

# No `from __future__ import annotations`: Prefect reads those of its flows.
import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from common import (
    QUIET,
    Page,
    PrefectServer,
    Spread,
    cpu_s,
    in_turns,
    measure_apart,
    options_of,
    prefect_server,
    ratios,
    service,
)

OURS, PLAIN, EMPTY = "`build_products`", "the same without matplotlib", "an empty flow"
PREFECT, NOTHING = "`import prefect`", "a module with a flow that does nothing"
OURS_ALONE = "`import prefect_xrt`"
IMPORTS = {
    PREFECT: "import prefect",
    NOTHING: "import nothing",
    OURS_ALONE: "import prefect_xrt",
    "`from prefect_xrt import build_products`": "from prefect_xrt import build_products",
    "`import prefect_xrt.pipelines.one_target`": "import prefect_xrt.pipelines.one_target",
}
MODULE = """
from prefect import flow, task

@task
def do_nothing(number: int) -> int:
    return number

@flow
def nothing(number: int) -> int:
    return do_nothing(number)
"""
_MS = 1000.0


class Cost(NamedTuple):
    """What one run has cost: seconds, processor seconds here and at Prefect's server, and calls of that."""

    took_s: float
    here_s: float
    server_s: float
    calls: list[str]


def make_ours() -> Callable[[], object]:
    """Return a run of our flow into a new folder."""
    from prefect_xrt import Image, LightCurve, ProductRequest, Spectrum, build_products

    request = ProductRequest(
        name="GRB 200416A",
        targets=["00966554"],
        ra_deg=335.6985,
        dec_deg=-7.5179,
        centroid=True,
        position_error_arcmin=1,
        light_curve=LightCurve(binning="snapshot"),
        spectrum=Spectrum(),
        image=Image(),
    )

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            state = build_products(request, Path(folder), return_state=True)
            if not state.is_completed():
                raise SystemExit(f"The build did not succeed: {state}")

    return run


def make_empty() -> Callable[[], object]:
    """Return a run of an empty flow with as many task runs."""
    from prefect import flow, task
    from prefect.cache_policies import INPUTS, NO_CACHE, RUN_ID

    @task(cache_policy=INPUTS + RUN_ID, persist_result=True, result_serializer="json")
    def first(number: int) -> int:
        return number

    @task(cache_policy=NO_CACHE)
    def other(number: int) -> int:
        return number

    @flow
    def empty() -> None:
        other(first(1))
        for future in [other.submit(number) for number in range(3)]:
            future.result()

    return empty


def measure(repeats: int, server: PrefectServer) -> None:
    """Run both flows in turns, and print what each run has cost."""

    def plain() -> None:
        with patch.dict(sys.modules, {"matplotlib.figure": None}):
            ours()

    def timed(run: Callable[[], object]) -> Callable[[], Cost]:
        def once() -> Cost:
            server.settle()
            calls, here_s, server_s = len(server.calls()), time.process_time(), cpu_s(server.process_id)
            start = time.perf_counter()
            run()
            took_s = time.perf_counter() - start
            server.settle()
            here_s, server_s = time.process_time() - here_s, cpu_s(server.process_id) - server_s
            return Cost(took_s, here_s, server_s, server.calls()[calls:])

        return once

    ours = make_ours()
    acts = {OURS: timed(ours), PLAIN: timed(plain), EMPTY: timed(make_empty())}
    for act in acts.values():
        act()
    print(json.dumps(in_turns(acts, repeats)))


def compare_flows(page: Page, repeats: int) -> None:
    """Measure both flows, and print their tables."""
    with (
        service({"default": [[4]], "active_job_limit": 100_000}) as running,
        prefect_server() as server,
        tempfile.TemporaryDirectory() as scratch,
    ):
        environment = {**QUIET, **running.environment, "XDG_STATE_HOME": scratch, "PREFECT_HOME": scratch}
        environment["PREFECT_API_URL"] = server.url
        arguments = ["--server", server.url, str(server.process_id), str(server.log)]
        told = measure_apart(__file__, *arguments, "--repeats", str(repeats), **environment)
    found = {side: [Cost(*cost) for cost in costs] for side, costs in told.items()}
    rows = []
    for side, costs in found.items():
        rows.append(
            [
                side,
                Spread.of([_MS * cost.took_s for cost in costs]).text("ms"),
                _against(costs, found[EMPTY], "took_s"),
                Spread.of([_MS * cost.here_s for cost in costs]).text("ms"),
                Spread.of([_MS * cost.server_s for cost in costs]).text("ms"),
                Spread.of([len(cost.calls) for cost in costs]).text(),
            ]
        )
    page.table(
        [
            "",
            "time",
            "this / empty",
            "processor time here, until all is told",
            "at the server",
            "API calls",
        ],
        rows,
    )
    kinds = {side: Counter(call for cost in costs for call in cost.calls) for side, costs in found.items()}
    calls = sorted({call for kind in kinds.values() for call in kind})
    average = {side: [f"{kinds[side][call] / repeats:.1f}" for call in calls] for side in kinds}
    page.table(
        ["calls of a run, on average", OURS, EMPTY],
        [
            [f"`{call}`", ours, empty]
            for call, ours, empty in zip(calls, average[OURS], average[EMPTY], strict=True)
        ],
    )


def _against(costs: Sequence[Cost], baseline: Sequence[Cost], name: str) -> str:
    if costs is baseline:
        return "1"
    return ratios([getattr(cost, name) for cost in costs], [getattr(cost, name) for cost in baseline]).text()


def import_s(statement: str, home: str) -> Callable[[], list[float]]:
    """Return what imports something in a new process, and tells how many seconds and processor seconds it took."""
    code = (
        "import json, time; wall, cpu = time.perf_counter(), time.process_time(); "
        f"{statement}; print(json.dumps([time.perf_counter() - wall, time.process_time() - cpu]))"
    )

    def once() -> list[float]:
        told: Any = measure_apart("-c", code, **QUIET, PREFECT_HOME=home, PYTHONPATH=home)
        return [float(value) for value in told]

    return once


def compare_imports(page: Page, repeats: int, names: Sequence[str]) -> None:
    """Measure the imports, and print their table."""
    with tempfile.TemporaryDirectory() as home:
        Path(home, "nothing.py").write_text(MODULE)
        acts = {name: import_s(IMPORTS[name], home) for name in names}
        if repeats > 1:
            # The first turn reads what is compiled from the disk.
            in_turns(acts, 1)
        found = in_turns(acts, repeats)
    bases = {name: [cpu for _, cpu in found[name]] for name in (PREFECT, NOTHING) if name in found}
    rows = []
    for name, costs in found.items():
        used = [cpu for _, cpu in costs]
        rows.append(
            [
                name,
                Spread.of([_MS * took for took, _ in costs]).text("ms"),
                Spread.of([_MS * value for value in used]).text("ms"),
                *(ratios(used, base).text() for base in bases.values()),
            ]
        )
    page.table(["", "time", "processor time", *(f"this / {name}" for name in bases)], rows)


def main() -> None:
    """Measure flows and imports, and print the tables."""
    parser = options_of("Run the whole flow.", repeats=9)
    parser.add_argument("--server", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server:
        url, process_id, log = options.server
        measure(options.repeats, PrefectServer(url, int(process_id), Path(log)))
        return
    repeats = 1 if options.quick else options.repeats
    with Page(__file__, into_docs=options.write) as page:
        page.say(f"Turns: {repeats}.")
        if not options.quick:
            compare_flows(page, repeats)
        compare_imports(page, repeats, [NOTHING, OURS_ALONE] if options.quick else list(IMPORTS))


if __name__ == "__main__":
    main()
