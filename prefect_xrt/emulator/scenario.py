"""What the embedded service is to play: timelines of codes, faults, limits and quirks."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType

Code = int | str | None
"""A status code as it goes over the wire: an integer, its text, or null."""

FORGOTTEN = -10
"""The code of a step in which the answer leaves the product out."""

COMPLETE = 4
PRODUCTS = ("lc", "spec", "psf", "enh", "xastrom", "image", "sourceDet")

ENDPOINTS = (
    "submit",
    "status",
    "cancel",
    "count",
    "list",
    "old_job",
    "psf_pos",
    "enh_pos",
    "astrom_pos",
    "source_list",
    "light_curve",
    "spectral_fits",
    "rebin",
    "file",
)

FAULT_KINDS: Mapping[str, bool] = MappingProxyType(
    {
        "http-500": False,
        "http-502-html": False,
        "http-503": False,
        "http-429": False,
        "html-200": False,
        "redirect": False,
        "reset-before": False,
        "hang": False,
        "garbage": True,
        "reset-after": True,
        "hang-after": True,
        "slow": True,
        "trickle": True,
        "short-keepalive": True,
        "truncated-json": True,
        "list-instead-of-object": True,
        "null-codes": True,
        "text-codes": True,
        "missing-products": True,
        "truncated-file": True,
        "corrupt-file": True,
    }
)
"""Every kind of fault, and whether the request takes effect although it is played."""

STATUS_KINDS = ("null-codes", "text-codes", "missing-products")
FILE_KINDS = ("truncated-file", "corrupt-file")

MAX_PADDING_BYTES = 2**32 - 2**24


class ScenarioError(ValueError):
    """A scenario that cannot be played, with the place and the reason."""


@dataclass(frozen=True)
class Step:
    """One code of a timeline, and what ends it.

    Args:
        code: The code shown.
        after_s: Seconds of the service's clock until the next step.
        after_looks: Number of status answers that show this step before the next.
            Without either, the step lasts for ever.
    """

    code: Code
    after_s: float | None = None
    after_looks: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.code, bool) or not isinstance(self.code, int | str | None):
            raise ScenarioError(f"a code is an integer, a text or null, not {self.code!r}")
        if self.after_s is not None and self.after_looks is not None:
            raise ScenarioError(f"step {self.code!r} ends after seconds or after looks, not both")
        if self.after_s is not None and not self.after_s >= 0:
            raise ScenarioError(f"step {self.code!r}: {self.after_s!r} seconds is no duration")
        if self.after_looks is not None and self.after_looks < 1:
            raise ScenarioError(f"step {self.code!r}: at least one look is needed, not {self.after_looks!r}")

    @property
    def lasts(self) -> bool:
        """Whether nothing ends this step."""
        return self.after_s is None and self.after_looks is None


@dataclass(frozen=True)
class Timeline:
    """The codes that one product goes through, from its submission on.

    A timeline may leave an ending code again, show null, numbers that no page lists or texts:
    a client has to live with all of it. Where the last step would end, the product is complete.
    """

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise ScenarioError("a timeline needs at least one step")
        if any(step.lasts for step in self.steps[:-1]):
            raise ScenarioError("only the last step of a timeline may last for ever")
        if not self.steps[-1].lasts:
            object.__setattr__(self, "steps", (*self.steps, Step(COMPLETE)))

    @classmethod
    def of(cls, *steps: tuple[Code, float] | tuple[Code]) -> Timeline:
        """Build a timeline of codes that end after some seconds.

        Args:
            steps: `(code, seconds)`; a last `(code,)` lasts for ever.
        """
        return cls(tuple(Step(step[0], after_s=float(step[1]) if len(step) > 1 else None) for step in steps))

    @classmethod
    def of_looks(cls, *steps: tuple[Code, int] | tuple[Code]) -> Timeline:
        """Build a timeline of codes that end after they were shown some times.

        Args:
            steps: `(code, looks)`; a last `(code,)` lasts for ever.
        """
        return cls(tuple(Step(step[0], after_looks=step[1] if len(step) > 1 else None) for step in steps))

    @classmethod
    def typical(
        cls, *, queue_s: float = 60.0, run_s: float = 300.0, requested_s: float = 2.0, end: Code = COMPLETE
    ) -> Timeline:
        """Build the way of an ordinary product: requested, queued, running, ended."""
        return cls.of((1, requested_s), (2, queue_s), (3, run_s), (end,))


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, on purpose.

    Args:
        endpoint: One of `ENDPOINTS`, or "*" for any.
        kind: One of `FAULT_KINDS`.
        times: How often it is played; -1 for ever.
        after: How many matching requests pass unharmed first.
        effect: Whether the request takes effect; by default as `FAULT_KINDS` says. A gateway that
            gives up after the service has taken a job is `Fault("submit", "http-502-html", effect=True)`.
        seconds: For "hang", "hang-after" and "slow": how long; for "trickle": between two bytes. Real time.
        retry_after: The `Retry-After` of "http-429" and "http-503": seconds or an HTTP date.
        location: Where "redirect" points to: an origin, the path is kept.
        redirect_status: The HTTP status of "redirect".
        at_bytes: Where "truncated-file" stops; half-way by default.
        product: For files and status faults: only this product's short name.
        probability: How likely a matching request is hit; draws are fixed by `seed`.
        seed: Fixes the draws.
    """

    endpoint: str
    kind: str
    times: int = 1
    after: int = 0
    effect: bool | None = None
    seconds: float = 30.0
    retry_after: float | str | None = None
    location: str = ""
    redirect_status: int = 307
    at_bytes: int | None = None
    product: str | None = None
    probability: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.endpoint != "*" and self.endpoint not in ENDPOINTS:
            raise ScenarioError(f"no such endpoint: {self.endpoint!r}; known: *, {', '.join(ENDPOINTS)}")
        if self.kind not in FAULT_KINDS:
            raise ScenarioError(f"no such fault: {self.kind!r}; known: {', '.join(FAULT_KINDS)}")
        if self.kind in FILE_KINDS and self.endpoint not in ("*", "file"):
            raise ScenarioError(f"{self.kind!r} is a fault of the endpoint 'file'")
        if self.kind in STATUS_KINDS and self.endpoint not in ("*", "status", "rebin"):
            raise ScenarioError(f"{self.kind!r} is a fault of the endpoints 'status' and 'rebin'")
        if self.kind == "redirect" and not self.location:
            raise ScenarioError("a redirect needs a location, such as http://127.0.0.1:9")
        if not 0 <= self.probability <= 1:
            raise ScenarioError(f"probability {self.probability!r} is not between 0 and 1")

    @property
    def takes_effect(self) -> bool:
        """Whether the service does what it was asked although the fault is played."""
        return FAULT_KINDS[self.kind] if self.effect is None else self.effect


@dataclass(frozen=True)
class Scenario:
    """All that the embedded service is to play. Seconds are those of the service's own clock.

    Args:
        default: The timeline of products that no other entry names. An astrometric position on it
            shows code 5 until the job's standard position has ended, then runs.
        timelines: Timelines by the product's short name; they are played as written.
        jobs: Timelines for the jobs of a name: job name to product to timeline, "*" for all products.
        sequence: The same for the first, second, ... job submitted; a named job takes precedence.
        rebin: The timeline of a request to bin a light curve again.
        faults: What goes wrong, in order of precedence.
        active_job_limit: Jobs that one user may have active; a further submission is refused.
        expire_after_s: How long after a job's end its files are deleted; None keeps them.
        kill_after_s: How long after its submission an unfinished product is killed and shows -3.
            The real service kills after 12 hours; which code it shows then is not documented.
        enforce_poll_floor_s: Looks at one job that follow each other faster are answered with HTTP 429.
        file_padding_bytes: Size of an additional member that makes each archive large.
        allow_range: Whether files can be fetched in parts.
        list_delay_s: How long a new job stays missing from the job list.
        file_url_origin: Origin of the `URL` answered at submission, where it is not the service's own.
        extra_answers: Fields added to answers, or put in their place: endpoint (or "*") to fields.
        job_pars_quirks: Answer `jobPars` in the older spellings.
        observations: How many observations a target has.
        new_observations: How many more the second, third, ... job of a name finds than the one before it; none
            after the last.
        no_position: Position products (`psf`, `enh`, `xastrom`) that end without a position.
        progress: Whether progress is known of running products.
        unresolvable_names: Names that `getCoords`, `getTargs` and `getT0` find nothing for.
    """

    default: Timeline = field(default_factory=Timeline.typical)
    timelines: Mapping[str, Timeline] = field(default_factory=dict)
    jobs: Mapping[str, Mapping[str, Timeline]] = field(default_factory=dict)
    sequence: Sequence[Mapping[str, Timeline]] = ()
    rebin: Timeline = field(default_factory=lambda: Timeline.of((2, 2), (3, 10), (4,)))
    faults: Sequence[Fault] = ()
    active_job_limit: int = 10
    expire_after_s: float | None = None
    kill_after_s: float | None = None
    enforce_poll_floor_s: float | None = None
    file_padding_bytes: int = 0
    allow_range: bool = True
    list_delay_s: float = 0.0
    file_url_origin: str | None = None
    extra_answers: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    job_pars_quirks: bool = False
    observations: int = 8
    new_observations: Sequence[int] = ()
    no_position: Sequence[str] = ()
    progress: bool = True
    unresolvable_names: Sequence[str] = ()

    def __post_init__(self) -> None:
        _known("timelines", self.timelines, PRODUCTS)
        for name, timelines in self.jobs.items():
            _known(f"jobs.{name}", timelines, (*PRODUCTS, "*"))
        for number, timelines in enumerate(self.sequence):
            _known(f"sequence[{number}]", timelines, (*PRODUCTS, "*"))
        _known("extra_answers", self.extra_answers, (*ENDPOINTS, "*"))
        _known("no_position", self.no_position, ("psf", "enh", "xastrom"))
        if not 0 <= self.file_padding_bytes <= MAX_PADDING_BYTES:
            raise ScenarioError(f"file_padding_bytes must be between 0 and {MAX_PADDING_BYTES}")
        if self.observations < 1:
            raise ScenarioError("observations must be at least 1")
        if any(count < 0 for count in self.new_observations):
            raise ScenarioError("new_observations must not be below 0")

    def timeline(self, product: str, job_name: str, number: int) -> tuple[Timeline, bool]:
        """Find the timeline of one product.

        Args:
            product: Short name.
            job_name: The name that the job was given.
            number: How many jobs were submitted before.

        Returns:
            The timeline, and whether it was chosen for this product and is to be played as written.
        """
        places = [self.jobs.get(job_name, {})]
        if number < len(self.sequence):
            places.append(self.sequence[number])
        places.append(self.timelines)
        for place in places:
            for key in (product, "*"):
                if key in place:
                    return place[key], key == product
        return self.default, False

    @classmethod
    def load(cls, path: str | Path) -> Scenario:
        """Read a scenario from a JSON or TOML file.

        A timeline is a list of steps, each `[code, seconds]`, `[code]` or
        `{"code": ..., "after_looks": ...}`; the texts "null" and "forgotten" stand for the codes that
        TOML cannot write. Everything else has the names and units of this class and of `Fault`.

        Raises:
            ScenarioError: The file cannot be read, or says something that cannot be played.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            data: object = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        except (OSError, ValueError) as error:
            raise ScenarioError(f"{path}: cannot be read as a scenario: {error}") from error
        try:
            return cls.from_mapping(_mapping("the scenario", data))
        except ScenarioError as error:
            raise ScenarioError(f"{path}: {error}") from error

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> Scenario:
        """Build a scenario from plain data, as a file holds it.

        Raises:
            ScenarioError: The data say something that cannot be played.
        """
        _known("the scenario", data, [entry.name for entry in fields(cls)])
        values: dict[str, object] = {}
        for key, value in data.items():
            if key in ("default", "rebin"):
                values[key] = _timeline(key, value)
            elif key == "timelines":
                values[key] = _timelines(key, value)
            elif key == "jobs":
                jobs = _mapping(key, value).items()
                values[key] = {name: _timelines(f"jobs.{name}", timelines) for name, timelines in jobs}
            elif key == "sequence":
                values[key] = tuple(
                    _timelines(f"sequence[{number}]", timelines)
                    for number, timelines in enumerate(_list(key, value))
                )
            elif key == "faults":
                values[key] = tuple(
                    _fault(f"faults[{number}]", fault) for number, fault in enumerate(_list(key, value))
                )
            elif key == "extra_answers":
                extras = _mapping(key, value).items()
                values[key] = {name: _mapping(f"extra_answers.{name}", extra) for name, extra in extras}
            elif key == "new_observations":
                values[key] = tuple(
                    _count(f"{key}[{number}]", item) for number, item in enumerate(_list(key, value))
                )
            elif key in ("no_position", "unresolvable_names"):
                values[key] = tuple(str(item) for item in _list(key, value))
            else:
                values[key] = _plain(key, value, cls)
        return cls(**values)  # type: ignore[arg-type]  # every entry was checked by its name above

    @classmethod
    def find(cls, name_or_path: str) -> Scenario:
        """Return the named scenario, or the one of a file.

        Raises:
            ScenarioError: Neither a known name nor a file that can be played.
        """
        if name_or_path in NAMED:
            return NAMED[name_or_path]
        if Path(name_or_path).suffix in (".json", ".toml"):
            return cls.load(name_or_path)
        raise ScenarioError(
            f"no scenario {name_or_path!r}: give one of {', '.join(sorted(NAMED))}, or a .json or .toml file"
        )


def _known(place: str, names: Iterable[str], allowed: Sequence[str]) -> None:
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise ScenarioError(f"{place}: unknown {', '.join(map(repr, unknown))}; known: {', '.join(allowed)}")


def _mapping(place: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ScenarioError(f"{place} must be an object, not {value!r}")
    return value


def _list(place: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise ScenarioError(f"{place} must be a list, not {value!r}")
    return value


def _count(place: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ScenarioError(f"{place}: {value!r} is no whole number")
    return value


_KINDS: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
}


def _plain(place: str, value: object, owner: type[Scenario] | type[Fault]) -> object:
    declared = next(str(entry.type) for entry in fields(owner) if entry.name == place.rpartition(".")[2])
    names = declared.split(" | ")
    kinds = tuple(kind for name in names for kind in _KINDS.get(name, (type(None),)))
    if not isinstance(value, kinds) or (isinstance(value, bool) and "bool" not in names):
        raise ScenarioError(f"{place}: {value!r} is not of the kind {declared}")
    return value


def _timelines(place: str, value: object) -> dict[str, Timeline]:
    return {name: _timeline(f"{place}.{name}", steps) for name, steps in _mapping(place, value).items()}


def _timeline(place: str, value: object) -> Timeline:
    steps = []
    for number, item in enumerate(_list(place, value)):
        try:
            steps.append(_step(item))
        except (ScenarioError, TypeError) as error:
            raise ScenarioError(f"{place}[{number}]: {error}") from error
    try:
        return Timeline(tuple(steps))
    except ScenarioError as error:
        raise ScenarioError(f"{place}: {error}") from error


_LONGEST_STEP = 2
_WORDS: Mapping[str, Code] = {"null": None, "forgotten": FORGOTTEN}


def _step(item: object) -> Step:
    if isinstance(item, list) and 1 <= len(item) <= _LONGEST_STEP:
        item = dict(zip(("code", "after_s"), item, strict=False))
    if not isinstance(item, dict) or "code" not in item:
        raise ScenarioError(f"a step is [code, seconds], [code] or an object with a code, not {item!r}")
    _known("a step", item, ("code", "after_s", "after_looks"))
    code = item["code"]
    if isinstance(code, str):
        code = _WORDS.get(code, code)
    return Step(code, item.get("after_s"), item.get("after_looks"))


def _fault(place: str, value: object) -> Fault:
    data = _mapping(place, value)
    _known(place, data, [entry.name for entry in fields(Fault)])
    for name in ("endpoint", "kind"):
        if not isinstance(data.get(name), str):
            raise ScenarioError(f"{place}: a fault needs {name!r}")
    values = {name: _plain(f"{place}.{name}", item, Fault) for name, item in data.items()}
    try:
        return Fault(**values)  # type: ignore[arg-type]  # names and kinds were checked above
    except ScenarioError as error:
        raise ScenarioError(f"{place}: {error}") from error


_DEMO: Mapping[str, Timeline] = {
    "psf": Timeline.of((1, 1), (2, 2), (3, 5), (4,)),
    "image": Timeline.of((1, 1), (2, 2), (3, 8), (4,)),
    "enh": Timeline.of((1, 1), (2, 3), (3, 9), (4,)),
    "lc": Timeline.of((1, 1), (2, 2), (3, 14), (4,)),
    "xastrom": Timeline.of((1, 1), (2, 2), (5, 5), (3, 12), (4,)),
    "sourceDet": Timeline.of((1, 1), (2, 4), (3, 17), (4,)),
    "spec": Timeline.of((1, 1), (2, 3), (3, 21), (4,)),
}


def _demo(**timelines: Timeline) -> Scenario:
    return Scenario(timelines={**_DEMO, **timelines})


NAMED: Mapping[str, Scenario] = MappingProxyType(
    {
        "demo": _demo(),
        "partly": _demo(spec=Timeline.of((1, 1), (2, 3), (3, 6), (-1,))),
        "failed": Scenario(default=Timeline.of((1, 1), (2, 2), (-1,))),
        "cancelled": _demo(spec=Timeline.of((1, 1), (2, 3), (3, 6), (-4,))),
        "alarm": _demo(image=Timeline.of((1, 1), (2, 2), (3, 5), (-3,))),
        "transient-alarm": _demo(image=Timeline((Step(1, 1.0), Step(-2, after_looks=1), Step(3, 8.0)))),
        "slow": Scenario(default=Timeline.typical(queue_s=3000.0, run_s=600.0)),
        "stuck": _demo(spec=Timeline.of((1, 1), (2, 3), (3,))),
    }
)
"""The scenarios that can be asked for by name; all but "slow" and "stuck" end within about 25 s."""
