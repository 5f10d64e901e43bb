"""Compare when to look at a job: this project's pacing, and what other software does, on the same jobs.

    .venv/bin/python benchmarks/pacing.py [--jobs 200] [--seeds 5] [--quick] [--write]

Nothing is waited for: the clock is simulated, and there is neither Prefect nor a network. What the service would
tell of a product is what the embedded service tells, read as the sensor reads it. For each set of jobs, and each
policy, it shows the looks as a ratio to the official client's loop, how late the end of a product is noticed, and how
many looks came sooner than the minute that the service asks for: the median of the seeds, with the least and the most.
With --write the tables and the picture go into the documentation.

The others, as they are by default:

- the official client's documentation: a loop that looks every 60 s;
- Airflow's sensors with `exponential_backoff`, https://github.com/apache/airflow, `task-sdk`, `bases/sensor.py`: the
  n-th wait is 60 s times 2 to the power of n - 2, and up to as much again by a hash;
- pyvo, https://github.com/astropy/pyvo, `AsyncTAPJob.wait`, where the server does not hold the answer back: 1 s,
  then 1.2 times as much each time, up to 120 s;
- cdsapi, https://github.com/ecmwf/cdsapi, `Client`: 1 s, then 1.5 times as much each time, up to 120 s.
"""

from __future__ import annotations

import argparse
import bisect
import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefect_xrt.emulator.progress import STAGES, Stage, progress
from prefect_xrt.pacing import Pacing, Sighting
from prefect_xrt.protocol import ProductStatus
from prefect_xrt.request import Product

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, PICTURE = DOCS / "pacing.md", DOCS / "images" / "pacing.svg"
BEGIN, END = "<!-- benchmarks/pacing.py -->", "<!-- end of benchmarks/pacing.py -->"

QUEUED, RUNNING, READY = 2, 3, 4
MINUTE_S, HOUR_S = 60.0, 3600.0
REMEMBERED = 8
"""How many looks the sensor remembers, beside the first."""

NOISE = 0.25
COUNTING = ("lc", "spec", "xastrom", "sourceDet")
"""The products that count the observations they work on."""
PLAIN = ("psf", "enh", "image")
_PRODUCTS = {
    "lc": Product.LIGHT_CURVE,
    "spec": Product.SPECTRUM,
    "psf": Product.STANDARD_POS,
    "enh": Product.ENHANCED_POS,
    "xastrom": Product.ASTROM_POS,
    "image": Product.IMAGE,
    "sourceDet": Product.SOURCE_DET,
}

Told = Callable[[float, float, random.Random], float | None]
"""What a service tells, given which part is done, how long the build takes in seconds, and chance."""


def honest(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Tell what is true."""
    return done


def silent(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Tell nothing."""
    return None


def stuck(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Stay at 30 %."""
    return min(done, 0.3)


def jumping(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Tell anything."""
    return rng.random()


def backwards(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Run from the end to the beginning."""
    return 1 - done


def ending_at_ten(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Be ready at 10 %."""
    return 0.1 * done


def sitting_at_99(done: float, build_s: float, rng: random.Random) -> float | None:  # noqa: ARG001 - as all of them
    """Be at 99 % for the last hour, or for the last half of what takes less than two."""
    return min(0.99, done * build_s / max(build_s - HOUR_S, build_s / 2))


@dataclass
class Build:
    """One product of a job: how long it is queued and built, and what the service tells of it.

    The steps are the embedded service's, but each takes up to some tens of per cent more or less of the time
    than there; inside a step the pace changes, too, and grows or falls towards its end.

    Args:
        product: Short name.
        queue_s: How long it is queued, in seconds.
        build_s: How long it is built, in seconds.
        rng: Makes it different from others.
        told: What the service makes of the truth.
        counts_only: Whether steps that count observations take longer, the more there are, so that the others take
            hardly any time.
    """

    product: str
    queue_s: float
    build_s: float
    rng: random.Random
    told: Told = honest
    counts_only: bool = False
    _times: list[float] = field(default_factory=list, init=False)
    _parts: list[float] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        count = max(1, round(self.build_s / MINUTE_S * math.exp(self.rng.uniform(-1, 1))))
        self.names = tuple(f"interval{number}" for number in range(count))
        stages = STAGES[self.product]
        weights = [self._weight(stage, count) for stage in stages]
        power = math.exp(self.rng.uniform(-0.5, 0.5))
        begins = begins_told = 0.0
        for stage, weight in zip(stages, weights, strict=True):
            lasts, lasts_told = weight / sum(weights), stage.weight / sum(other.weight for other in stages)
            for inside, part in self._pace(power):
                self._times.append(begins + lasts * inside)
                self._parts.append(begins_told + lasts_told * part)
            begins, begins_told = begins + lasts, begins_told + lasts_told
        self._times.append(1.0)
        self._parts.append(1.0)

    def _weight(self, stage: Stage, count: int) -> float:
        weight = stage.weight * math.exp(self.rng.gauss(0, NOISE))
        return weight * max(1.0, count / 4) if self.counts_only and stage.extra else weight

    def _pace(self, power: float, points: int = 20, bends: int = 5) -> Iterator[tuple[float, float]]:
        """Give how far a step is at parts of its time, wrong by up to 25 % of what is done or left."""
        errors = [self.rng.uniform(-NOISE, NOISE) for _ in range(bends + 1)]
        most = 0.0
        for point in range(points):
            inside = point / points
            bend = math.floor(inside * bends)
            error = errors[bend] + (errors[bend + 1] - errors[bend]) * (inside * bends - bend)
            part = inside**power
            most = max(most, part + error * min(part, 1 - part))
            yield inside, most

    @property
    def end_s(self) -> float:
        """When it is ready, in seconds since the job was submitted."""
        return self.queue_s + self.build_s

    def done(self, at: float) -> float:
        """Return which part is done at a time."""
        time = (at - self.queue_s) / self.build_s
        upper = min(bisect.bisect_right(self._times, time), len(self._times) - 1)
        (t0, t1), (p0, p1) = self._times[upper - 1 : upper + 1], self._parts[upper - 1 : upper + 1]
        return p0 + (p1 - p0) * (time - t0) / (t1 - t0)

    def look(self, at: float) -> ProductStatus:
        """Return what a look tells at a time, in seconds since the job was submitted."""
        code = QUEUED if at < self.queue_s else RUNNING if at < self.end_s else READY
        told: dict[str, Any] = {}
        if code == RUNNING:
            part = self.told(self.done(at), self.build_s, self.rng)
            if part is not None:
                told = progress(self.product, min(max(part, 0.0), 0.999), at - self.queue_s, self.names)
        return ProductStatus.model_construct(
            product=_PRODUCTS[self.product], code=code, text="", progress=told
        )


Histories = Sequence[Sequence[Sighting]]
Waits = Callable[[Histories, random.Random], float]
"""How long to wait after a look, in seconds."""


def _growing(*, first_s: float, factor: float, most_s: float) -> Callable[[], Waits]:
    def start() -> Waits:
        wait_s = first_s / factor

        def next_s(histories: Histories, rng: random.Random) -> float:  # noqa: ARG001 - as all of them
            nonlocal wait_s
            wait_s = min(wait_s * factor, most_s)
            return wait_s

        return next_s

    return start


def _airflow() -> Waits:
    number = 0

    def next_s(histories: Histories, rng: random.Random) -> float:  # noqa: ARG001 - as all of them
        nonlocal number
        number += 1
        least = max(int(MINUTE_S * 2 ** (number - 2)), 1)
        return least + rng.randrange(least)

    return next_s


def _ours() -> Waits:
    pacing = Pacing()
    return lambda histories, rng: pacing.interval_s(histories, rng.random())


OURS, LOOP = "this project", "official client's loop"
POLICIES: Mapping[str, Callable[[], Waits]] = {
    OURS: _ours,
    LOOP: _growing(first_s=MINUTE_S, factor=1, most_s=MINUTE_S),
    "Airflow, exponential": _airflow,
    "pyvo": _growing(first_s=1, factor=1.2, most_s=120),
    "cdsapi": _growing(first_s=1, factor=1.5, most_s=120),
}


class Watched(NamedTuple):
    """How the watch over one job went."""

    times: list[float]
    """When it was looked, in seconds since the job was submitted."""
    late_s: list[float]
    """How late the end of each product was noticed, in seconds."""
    relative: list[float]
    """The same as a part of the time from the submission to the end."""
    of_running: list[float]
    """The same as a part of the time of building."""


def watch(job: Sequence[Build], wait_s: Waits, rng: random.Random, *, blind: bool = False) -> Watched:
    """Look at a job until all its products are ready.

    Args:
        job: Its products.
        wait_s: The policy.
        rng: Chance.
        blind: Whether the policy does not care what is told, so that it need not be made up.
    """
    now = 0.0
    times = []
    late_s: dict[int, float] = {}
    histories: list[list[Sighting]] = [[] for _ in job]
    while True:
        times.append(now)
        for build, history in zip(job, histories, strict=True):
            if now >= build.end_s:
                late_s.setdefault(id(build), now - build.end_s)
                history.clear()
            elif not blind:
                sighting = Sighting.of(build.look(now), now)
                if history and history[0].state is not sighting.state:
                    history.clear()
                history.append(sighting)
                del history[1:-REMEMBERED]
        if len(late_s) == len(job):
            late = [late_s[id(build)] for build in job]
            return Watched(
                times,
                late,
                [s / build.end_s for s, build in zip(late, job, strict=True)],
                [s / build.build_s for s, build in zip(late, job, strict=True)],
            )
        now += wait_s([history for history in histories if history], rng)


class JobSet(NamedTuple):
    """A kind of jobs."""

    title: str
    queue_s: Callable[[random.Random], float]
    build_s: Callable[[random.Random], float]
    products: Sequence[str] = COUNTING
    told: Told = honest
    counts_only: bool = False
    products_per_job: int = 1

    def jobs(self, number: int, seed: int) -> list[list[Build]]:
        """Make jobs of this kind, always the same for a seed."""
        rng = random.Random(f"{self.title} {seed}")
        return [
            [
                Build(product, self.queue_s(rng), self.build_s(rng), rng, self.told, self.counts_only)
                for product in rng.sample(self.products, self.products_per_job)
            ]
            for _ in range(number)
        ]


def _between(least: float, most: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.uniform(least, most)


def _magnitudes(least: float, most: float) -> Callable[[random.Random], float]:
    """As many between 5 and 10 minutes as between 50 and 100."""
    return lambda rng: math.exp(rng.uniform(math.log(least), math.log(most)))


_SHORT = _between(10, 120)
_ANY = _magnitudes(10 * MINUTE_S, 12 * HOUR_S)
BUILD = JobSet(
    "Building dominates: queued for up to 2 minutes, built in 5 minutes to 2.5 hours",
    _SHORT,
    _magnitudes(5 * MINUTE_S, 2.5 * HOUR_S),
)
LONG = JobSet("Long builds: 2 to 12 hours", _SHORT, _magnitudes(2 * HOUR_S, 12 * HOUR_S))
QUEUE = JobSet(
    "The queue dominates: queued for 40 to 80 minutes, built in 5 to 9",
    _between(40 * MINUTE_S, 80 * MINUTE_S),
    _between(5 * MINUTE_S, 9 * MINUTE_S),
    (*COUNTING, *PLAIN),
)
SILENT = JobSet(
    "No progress is told: queued for up to an hour, built in 3 minutes to 12 hours",
    _magnitudes(10, HOUR_S),
    _magnitudes(3 * MINUTE_S, 12 * HOUR_S),
    (*COUNTING, *PLAIN),
    silent,
)
THREE = JobSet(
    "Three products a job, each built in 5 minutes to 2.5 hours", _SHORT, BUILD.build_s, products_per_job=3
)
NO_COUNTS = JobSet(
    "Few steps that count nothing: images and positions, built in 5 minutes to 2.5 hours",
    _SHORT,
    BUILD.build_s,
    PLAIN,
)
COUNTS_ONLY = JobSet(
    "Only the counted steps take time, so that the last half of the steps may pass in a minute",
    _SHORT,
    BUILD.build_s,
    counts_only=True,
)
MISLEADING = [
    JobSet(title, _SHORT, _ANY, told=told)
    for title, told in {
        "stuck at 30 %": stuck,
        "jumping": jumping,
        "running backwards": backwards,
        "ready at 10 %": ending_at_ten,
        "99 % for the last hour": sitting_at_99,
    }.items()
]
SETS = [BUILD, LONG, QUEUE, SILENT, THREE, NO_COUNTS, COUNTS_ONLY]


class Measured(NamedTuple):
    """What a policy made of a set of jobs."""

    looks: float
    """As a ratio to the official client's loop."""
    mean_s: float
    """How late an end was noticed, in the mean."""
    late_s: float
    """How late at the 95th percentile."""
    relative: float
    """How late in the mean, as a part of the time from the submission to the end."""
    worst_of_running: float
    """The latest, as a part of the time of building."""
    too_soon: float
    """The part of the looks that came less than a minute after the last."""


def measure(kind: JobSet, policy: str, number: int, seed: int) -> Measured:
    """Watch jobs of a kind."""
    rng = random.Random(seed)
    jobs = kind.jobs(number, seed)
    watched = [watch(job, POLICIES[policy](), rng, blind=policy != OURS) for job in jobs]
    looks = sum(len(one.times) for one in watched)
    looks_of_loop = sum(math.ceil(max(build.end_s for build in job) / MINUTE_S) + 1 for job in jobs)
    late_s = sorted(s for one in watched for s in one.late_s)
    too_soon = sum(
        after - before < MINUTE_S - 1e-6 for one in watched for before, after in pairwise(one.times)
    )
    return Measured(
        looks / looks_of_loop,
        statistics.mean(late_s),
        late_s[math.ceil(0.95 * len(late_s)) - 1],
        statistics.mean(part for one in watched for part in one.relative),
        max(part for one in watched for part in one.of_running),
        too_soon / looks,
    )


COLUMNS = (
    "looks, as a ratio to the loop",
    "late in the mean, s",
    "late at the 95th percentile, s",
    "late in the mean, % of the whole time",
    "latest, % of the time of building",
    "looks sooner than 60 s, %",
)


def tables(number: int, seeds: int) -> Iterator[str]:
    """Give the tables of all sets of jobs, as Markdown."""
    for kind in SETS:
        yield _table(kind.title, "", [(policy, _cells(kind, policy, number, seeds)) for policy in POLICIES])
    rows = [(kind.title, _cells(kind, OURS, number, seeds)) for kind in MISLEADING]
    title = "Misleading progress: what this project makes of it; built in 10 minutes to 12 hours"
    yield _table(title, "the service tells", rows)


def _table(title: str, first: str, rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [(first, *COLUMNS), ["---"] * (1 + len(COLUMNS)), *((name, *cells) for name, cells in rows)]
    return "\n".join([f"**{title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def _cells(kind: JobSet, policy: str, number: int, seeds: int) -> list[str]:
    found = [measure(kind, policy, number, seed) for seed in range(seeds)]
    return [
        _spread([one.looks for one in found], 2),
        _spread([one.mean_s for one in found]),
        _spread([one.late_s for one in found]),
        _spread([100 * one.relative for one in found], 1),
        _spread([100 * one.worst_of_running for one in found]),
        _spread([100 * one.too_soon for one in found]),
    ]


def _spread(values: Sequence[float], places: int = 0) -> str:
    """Return the median of some values, with the least and the most where they differ."""
    middle, least, most = (
        f"{value:.{places}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return middle if least == most else f"{middle} ({least} to {most})"


def draw() -> Figure:
    """Draw the looks at one job by each policy, below what the service tells of it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    def example() -> Build:
        return Build("lc", 12 * MINUTE_S, 54.5 * MINUTE_S, random.Random(5))

    build = example()
    end = build.end_s / MINUTE_S
    with rc_context({"svg.hashsalt": "pacing", "font.size": 9}):
        figure = Figure(figsize=(8, 4.4), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        seconds = range(int(build.queue_s), int(build.end_s))
        minutes = [second / MINUTE_S for second in seconds]
        above.plot(minutes, [100 * (build.look(second).done or 0.0) for second in seconds], color="0.3")
        above.set_ylabel("done, as the service tells (%)")
        above.set_ylim(0, 103)
        above.annotate("in the queue", (build.queue_s / MINUTE_S / 2, 6), ha="center", color="0.4")
        for number, policy in enumerate(list(POLICIES)[::-1]):
            times = watch([example()], POLICIES[policy](), random.Random(1)).times
            colour = "C0" if policy == OURS else "0.55"
            below.eventplot(
                [time / MINUTE_S for time in times], lineoffsets=number, linelengths=0.6, colors=colour
            )
            below.annotate(
                f"{len(times)} looks", (times[-1] / MINUTE_S + 1, number), va="center", color=colour
            )
        below.set_yticks(range(len(POLICIES)), list(POLICIES)[::-1])
        below.set_xlabel("minutes since the job was submitted")
        below.tick_params(left=False)
        for axes in (above, below):
            axes.axvspan(0, build.queue_s / MINUTE_S, color="0.93", lw=0)
            axes.axvline(end, color="C3", lw=1)
            axes.spines[["top", "right"]].set_visible(False)
        above.annotate("ready", (end + 0.7, 6), color="C3")
        above.set_xlim(-1, None)
        below.spines["left"].set_visible(False)
    return figure


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description="Compare when to look at a job.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few jobs, only to see that it runs")
    parser.add_argument(
        "--write", action="store_true", help="write tables and picture into the documentation"
    )
    options = parser.parse_args()
    number, seeds = (10, 1) if options.quick else (options.jobs, options.seeds)
    found = []
    for table in tables(number, seeds):
        print(table, end="\n\n", flush=True)
        found.append(table)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        sizes = f"Medians of {seeds} times {number} jobs; in brackets the least and the most of the {seeds}."
        text = "\n\n".join([BEGIN, sizes, *found, END])
        PAGE.write_text(f"{before}{text}{after}", encoding="utf-8")
        draw().savefig(PICTURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
