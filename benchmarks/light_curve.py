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
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from common import Page, Spread, forget_peak, in_turns, measure_apart, options_of, peak_bytes, ratios

SIDES = ("prefect-xrt", "swifttools")
_MB = 1e6


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
    from swifttools.ukssdc.data.download import _handleLightCurve  # type: ignore[import-untyped]

    return lambda body: _handleLightCurve(json.loads(body))


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


def main() -> None:
    """Measure both sides in turns, and print the table."""
    parser = options_of("Parse a long light curve.", repeats=7)
    parser.add_argument("--bins", type=int, default=100_000)
    parser.add_argument("--measure", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.file)
        return
    bins, repeats = (1000, 1) if options.quick else (options.bins, options.repeats)
    with tempfile.TemporaryDirectory() as folder, Page(__file__, into_docs=options.write) as page:
        file = Path(folder, "answer.json")
        file.write_bytes(make(bins))

        def apart(side: str) -> Callable[[], list[float]]:
            return lambda: list(measure_apart(__file__, "--measure", side, "--file", str(file)))

        found = in_turns({side: apart(side) for side in SIDES}, repeats)
        page.say(f"{bins} bins, {file.stat().st_size / _MB:.1f} MB, turns: {repeats}.")
        rows = []
        for side, costs in found.items():
            row = [side]
            for number, (unit, scale) in enumerate((("s", 1.0), ("MB", 1 / _MB))):
                values, mine = ([cost[number] for cost in costs_of] for costs_of in (costs, found[SIDES[0]]))
                row.append(Spread.of([scale * value for value in values]).text(unit))
                row.append("1" if side == SIDES[0] else ratios(values, mine).text())
            rows.append(row)
        page.table(["", "time", "this / ours", "memory", "this / ours"], rows)


if __name__ == "__main__":
    main()
