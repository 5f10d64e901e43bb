"""Compare how fast, and in how much memory, a large bundle gets from the service to the disk, verified.

    .venv/bin/python benchmarks/download.py [--size-gb 2] [--repeats 5]

Ours is `archive.download`: received, summed up (SHA-256), written, read to its end as an archive with every check
that its format allows, and safe on the disk (`fsync`) before it has its name. The others are

- `curl` into a file, through `sha256sum`, and through `tar -tz`, all at once; that does not wait for the disk;
- the same, and then `sync` of the file, which is what ours is to be compared with;
- the download of the official client, swifttools, which checks nothing.

All fetch the same `lc.tar.gz`, mostly of bytes that cannot be compressed, from the same embedded service in a
process of its own, in turns. Time is from the call to its return; memory is how much a process grew by it at
its largest (Linux); processor time is that of the fetching side. The disk holds two copies for a moment.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import requests
from common import (
    ADDRESS,
    Page,
    Service,
    Spread,
    forget_peak,
    in_turns,
    measure_apart,
    official_client,
    options_of,
    peak_bytes,
    ratios,
    service,
)

OURS, PIPE, SYNCED, OFFICIAL = (
    "prefect-xrt",
    "curl, sha256sum, tar -tz",
    "the same, then sync",
    "swifttools",
)
PIPELINE = """
set -o pipefail
curl --silent --fail "$1" | tee "$2" >(sha256sum >"$2.sha256") | tar -tz >"$2.names" && wait
"""
_GB = 10**9
_MB = 10**6


class Cost(NamedTuple):
    """What one download has cost: seconds, bytes of memory above what there was before, and CPU seconds."""

    took_s: float
    memory: float
    cpu_s: float


def fetch_ours(url: str, folder: Path) -> Callable[[], object]:
    """Return our download, with all that it needs imported."""
    from prefect_xrt import Product, XRTClient, archive

    client = XRTClient(ADDRESS, url)
    job = client.attach(801)
    return lambda: archive.download(client, job, Product.LIGHT_CURVE, folder)


def fetch_official(url: str, folder: Path) -> Callable[[], object]:
    """Return the official client's download of a job that it has built, with all that it needs imported."""
    xrt_prods = official_client(url)
    request = xrt_prods.XRTProductRequest(ADDRESS, silent=True)
    request.setGlobalPars(
        name="GRB 200416A",
        targ="00966554",
        RA=335.6985,
        Dec=-7.5179,
        centroid=False,
        useSXPS=False,
        T0=608713541.952,
    )
    request.addLightCurve(binMeth="snapshot")
    if request.submit() is not True or request.complete is not True:
        raise SystemExit("The official client's job was not built.")
    return lambda: request.downloadProducts(str(folder), what=["LightCurve"])


def processor_s() -> float:
    """Return the processor time of this process and of those that it has started and that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def measure(side: str, url: str) -> None:
    """Fetch the file once, and print what it has cost."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fetch = (fetch_ours if side == OURS else fetch_official)(url, folder)
        before_s, before = processor_s(), forget_peak()
        start = time.perf_counter()
        fetch()
        cost = Cost(time.perf_counter() - start, peak_bytes() - before, processor_s() - before_s)
        if not (folder / "lc.tar.gz").stat().st_size:
            raise SystemExit("Nothing was fetched.")
    print(json.dumps(cost))


def measure_pipeline(url: str, *, synced: bool) -> Cost:
    """Let the shell's programs fetch the file once; their memory is not looked at."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "lc.tar.gz")
        before_s, start = processor_s(), time.perf_counter()
        subprocess.run(["bash", "-c", PIPELINE, "bash", url, str(file)], check=True)  # noqa: S607 - as in a shell
        if synced:
            subprocess.run(["sync", str(file)], check=True)  # noqa: S607
        return Cost(time.perf_counter() - start, 0.0, processor_s() - before_s)


def make_job(running: Service) -> str:
    """Have a light curve built that is ready at once, and return where its bundle is."""
    request = {"UserID": ADDRESS, "name": "GRB 200416A", "targ": "00966554", "lc": 1, "binMeth": "snapshot"}
    request |= {"RA": 335.6985, "Dec": -7.5179, "cent": 0, "Tstart": 608713541.952}
    answer = requests.post(f"{running.url}/run_userobject.php", json=request, timeout=60).json()
    if answer["JobID"] != "801":
        raise SystemExit(f"The job was not accepted: {answer}")
    url = f"{answer['URL']}/lc.tar.gz"
    # The service sums a bundle up when it is first asked for.
    requests.head(url, timeout=600).raise_for_status()
    return url


def main() -> None:
    """Measure all sides in turns, and print the table."""
    parser = options_of("Fetch a large bundle.", repeats=5)
    parser.add_argument("--size-gb", type=float, default=2.0)
    parser.add_argument("--measure", choices=(OURS, OFFICIAL), help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.url)
        return
    size_gb, repeats = (0.02, 1) if options.quick else (options.size_gb, options.repeats)
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < 2.5 * size_gb * _GB:
        sys.exit(f"Only {free / _GB:.1f} GB are free in {tempfile.gettempdir()}; take a smaller --size-gb.")
    scenario = {"default": [[4]], "file_padding_bytes": int(size_gb * _GB), "active_job_limit": 1000}
    with service(scenario) as running:
        url = make_job(running)

        def apart(side: str) -> Callable[[], Cost]:
            return lambda: Cost(*measure_apart(__file__, "--measure", side, "--url", running.url))

        acts = {
            OURS: apart(OURS),
            PIPE: lambda: measure_pipeline(url, synced=False),
            SYNCED: lambda: measure_pipeline(url, synced=True),
            OFFICIAL: apart(OFFICIAL),
        }
        if options.quick:
            # It takes seconds to import.
            del acts[OFFICIAL]
        found = in_turns(acts, repeats)
    mine = [cost.took_s for cost in found[OURS]]
    rows = []
    for side, costs in found.items():
        took = [cost.took_s for cost in costs]
        memory = [cost.memory / _MB for cost in costs]
        rows.append(
            [
                side,
                Spread.of(took).text("s"),
                "1" if side == OURS else ratios(mine, took).text(),
                Spread.of([cost.cpu_s for cost in costs]).text("s"),
                Spread.of(memory).text("MB") if any(memory) else "",
            ]
        )
    with Page(__file__, into_docs=options.write) as page:
        page.say(f"A bundle of {size_gb:g} GB, turns: {repeats}.")
        page.table(["", "time", "ours / this", "processor time", "memory"], rows)


if __name__ == "__main__":
    main()
