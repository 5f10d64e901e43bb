"""Compare how fast, and in how much memory, the bytes of a long light curve become data.

    .venv/bin/python benchmarks/light_curve.py [--bins 100000] [--repeats 7]

Ours is all that `retrieve_light_curve` does once the answer is there: arrays, observation IDs, provenance with
the checksum. The other side is the parser of the official client, swifttools: `json.loads`, as it calls it, and
`_handleLightCurve`. Both read the same bytes, in turns, each time in a process of its own.

The time is that of the parsing alone; the memory is how much the process grew by it at its largest (Linux).
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

SIDES = ("prefect-xrt", "swifttools")


def make(bins: int) -> bytes:
    """Make an answer with one dataset, as the service writes it: every number a text."""
    from prefect_xrt.emulator.science import LC_COLUMNS

    chance = random.Random(1)
    rows = [
        [
            *(f"{chance.uniform(0, 1e6):.3f}" for _ in range(3)),
            *(f"{chance.uniform(-90, 90):.6f}" for _ in LC_COLUMNS[3:]),
            f"::ObsID={966554000 + number // 40}",
        ]
        for number in range(bins)
    ]
    data = {"columns": [*LC_COLUMNS, "ObsID"], "data": rows, "URL": "https://www.swift.ac.uk/PCCURVE.qdp"}
    answer = {"OK": 1, "APIVersion": "1.12", "Datasets": ["PC"], "PCData": data}
    answer |= {"Binning": "Snapshot", "TimeFormat": "MET", "T0": 608713541.952}
    return json.dumps(answer, separators=(",", ":")).encode()


def ours() -> Callable[[bytes], object]:
    """Return our parser, with all that it needs imported."""
    import numpy as np

    from prefect_xrt import answers
    from prefect_xrt.protocol import Job
    from prefect_xrt.request import Product

    job = Job(id=801, url="https://www.swift.ac.uk/USERPROD_801", products=(Product.LIGHT_CURVE,))
    np.fromstring("1", sep=",")

    def parse(body: bytes) -> object:
        data = answers.cut(body, user_id="demo@example.org")
        where = answers.provenance_of(job, data.answer, datetime.now(UTC), data.sha256())
        return answers.decode_light_curve(data, where)

    return parse


def official() -> Callable[[bytes], object]:
    """Return the official client's parser, with all that it needs imported."""
    warnings.simplefilter("ignore")
    from swifttools.ukssdc.data.download import _handleLightCurve

    return lambda body: _handleLightCurve(json.loads(body))


def peak_bytes() -> int:
    """Return the most memory that this process has had since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> int:
    """Let the measuring of the peak begin now, and return how much memory there is now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def measure(side: str, file: Path) -> None:
    """Parse once, and print the seconds and bytes that it took."""
    body = file.read_bytes()
    parse = ours() if side == SIDES[0] else official()
    before = forget_peak()
    start = time.perf_counter()
    result = parse(body)
    took_s = time.perf_counter() - start
    print(json.dumps([took_s, peak_bytes() - before]))
    del result


def show(name: str, values: list[float], unit: str) -> None:
    """Print a median with its spread."""
    print(f"  {name:12} {statistics.median(values):8.2f} {unit}  ({min(values):.2f} to {max(values):.2f})")


def main() -> None:
    """Measure both sides in turns, and print the ratios."""
    parser = argparse.ArgumentParser(description="Parse a long light curve.")
    parser.add_argument("--bins", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.file)
        return
    found: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "answer.json")
        file.write_bytes(make(options.bins))
        print(f"{options.bins} bins, {file.stat().st_size / 1e6:.1f} MB, {options.repeats} repeats")
        for _ in range(options.repeats):
            for side in SIDES:
                command = [sys.executable, __file__, "--measure", side, "--file", str(file)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found[side].append(json.loads(done.stdout))
    for number, (what, unit, scale) in enumerate((("time", "s", 1.0), ("peak memory", "MB", 1e-6))):
        print(what)
        for side in SIDES:
            show(side, [run[number] * scale for run in found[side]], unit)
        mine, theirs = ([run[number] for run in found[side]] for side in SIDES)
        ratios = [other / own for own, other in zip(mine, theirs, strict=True)]
        show("ratio", ratios, "times less")


if __name__ == "__main__":
    main()
