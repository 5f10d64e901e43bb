"""The service behind the wire: users, jobs, the way of each product, and every answer. No HTTP."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from . import archives
from .progress import progress
from .scenario import COMPLETE, FORGOTTEN, Code, Scenario, Step, Timeline
from .science import Results, draw, find_object
from .validation import FLAG_OF, Refused, check_request, is_on, products_of

API_VERSION = "1.12"
RUNNING, WAITING, CANCELLED, KILLED = 3, 5, -4, -3
_ENDED = frozenset({COMPLETE, -1, -2, -3, CANCELLED})
_LISTED = {
    "LightCurve": "lc",
    "Spectrum": "spec",
    "StandardPos": "psf",
    "EnhancedPos": "enh",
    "AstromPos": "xastrom",
    "Image": "image",
}
_TEXTS = {
    1: "Requested",
    2: "Queued",
    RUNNING: "Running",
    COMPLETE: "Complete",
    WAITING: "Waiting for the standard position",
    -1: "Job could not be requested: internal error",
    -2: "Job could not be queued: internal error",
    KILLED: "Job was called, but produced no product",
    CANCELLED: "Cancelled at your request",
}
_CANCEL_TEXTS = {
    0: "Job cancelled OK",
    1: "Job could not be cancelled - has it already finished?",
    2: "There is no record of this job",
    3: "Job could not be cancelled - reason unknown",
    4: "The status of the job could not be determined",
}
# Where a light curve is binned again, parameters have other names; this is the one that an answer shows.
_REBIN_NAMES = {"timeFormat": "lctimetype"}
_POSITIONS = {"psf_pos": "psf", "enh_pos": "enh", "astrom_pos": "xastrom"}
_CACHED_FILES = 32
_MEDIA_TYPES = {"tar": "application/x-tar", "tar.gz": "application/x-gzip", "zip": "application/zip"}


class TooSoon(Exception):
    """A look at a job that follows the last one faster than the service wants.

    Args:
        wait_s: Seconds of the service's clock that are left to wait.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"too soon by {wait_s} s")
        self.wait_s = wait_s


def as_number(code: Code) -> Code:
    """Give a code that came as text as the number it stands for."""
    return int(code) if isinstance(code, str) and re.fullmatch(r"-?\d+", code) else code


class Product:
    """One product on its way along a timeline.

    Args:
        timeline: Its codes.
        at: When it was requested.
        kill_at: When it is killed if it has not ended.
        after: A product that must have ended before this one runs.
    """

    def __init__(self, timeline: Timeline, at: float, kill_at: float | None, after: Product | None) -> None:
        self._steps = timeline.steps
        self._kill_at = kill_at
        self._after = after
        self._index = -1
        self._entered_at = at
        self._looks = 0
        self._stopped: tuple[Code, float] | None = None
        self._running_since: float | None = None
        self._ran_before_s = 0.0

    def code(self, now: float) -> Code:
        """Tell the code at a time, without counting as a look."""
        self._settle(now)
        if self._stopped:
            return self._stopped[0]
        return WAITING if self._held() else self._steps[max(self._index, 0)].code

    def look(self, now: float) -> Code:
        """Tell the code as a status answer does; timelines can end a step after some looks."""
        code = self.code(now)
        if not self._stopped and not self._held():
            step = self._steps[self._index]
            self._looks += 1
            if step.after_looks is not None and self._looks >= step.after_looks:
                self._enter(self._index + 1, now)
        return code

    def ended_at(self, now: float) -> float | None:
        """Tell when the product ended; None while it has not."""
        if as_number(self.code(now)) not in _ENDED:
            return None
        return self._stopped[1] if self._stopped else self._entered_at

    def cancel(self, now: float) -> int:
        """Cancel the product where it can be, and give the service's code of the attempt."""
        code = as_number(self.code(now))
        if code in _ENDED:
            return 1
        if code == FORGOTTEN:
            return 2
        if code is None:
            return 4
        if code not in (1, 2, RUNNING, WAITING):
            return 3
        self._stopped = (CANCELLED, now)
        return 0

    def running(self, now: float) -> tuple[float, float]:
        """Give the share of the run that is over, and the seconds since it began."""
        step = self._steps[self._index]
        since = now if self._running_since is None else self._running_since
        elapsed = self._ran_before_s + now - self._entered_at
        total = sum(step.after_s or 0.0 for step in self._steps if _runs(step))
        if step.after_looks is not None:
            share = self._looks / step.after_looks
        elif step.after_s is None:
            share = 1 - math.exp(-elapsed / 600)
        else:
            share = elapsed / total if total else 0.0
        return min(share, 0.999), now - since

    def _held(self) -> bool:
        if self._after is None or self._running_since is not None:
            return False
        following = self._index + 1
        if following >= len(self._steps) or not _runs(self._steps[following]):
            return False
        step = self._steps[self._index] if self._index >= 0 else Step(1, after_s=0.0)
        return step.after_looks is None and self._due(step) <= self._seen

    def _due(self, step: Step) -> float:
        return self._entered_at + (math.inf if step.after_s is None else step.after_s)

    def _settle(self, now: float) -> None:
        self._seen = now
        if self._stopped:
            return
        limit = now if self._kill_at is None else min(now, self._kill_at)
        while self._index < 0 or self._due(self._steps[self._index]) <= limit:
            due = self._entered_at if self._index < 0 else self._due(self._steps[self._index])
            gate = self._gate(limit, due)
            if gate is None:
                break
            self._enter(self._index + 1, gate)
        ended = as_number(self._steps[max(self._index, 0)].code) in _ENDED
        if self._kill_at is not None and now >= self._kill_at and not ended:
            self._stopped = (KILLED, self._kill_at)

    def _gate(self, now: float, due: float) -> float | None:
        """Tell when the next step can begin; None while another product has to end first."""
        if self._after is None or self._running_since is not None or not _runs(self._steps[self._index + 1]):
            return due
        ended = self._after.ended_at(now)
        return None if ended is None else max(due, ended)

    def _enter(self, index: int, at: float) -> None:
        if self._index >= 0 and _runs(self._steps[self._index]):
            self._ran_before_s += at - self._entered_at
        self._index, self._entered_at, self._looks = index, at, 0
        if _runs(self._steps[index]) and self._running_since is None:
            self._running_since = at


def _runs(step: Step) -> bool:
    return as_number(step.code) == RUNNING


@dataclass
class Job:
    """A job as the service knows it."""

    id: int
    user: str
    url: str
    parameters: dict[str, object]
    products: dict[str, Product]
    submitted_at: float
    submitted_utc: datetime
    results: Results = field(repr=False)
    clock: Callable[[], float] = field(repr=False)
    lock: threading.RLock = field(repr=False)
    looked_at: float | None = None

    @property
    def name(self) -> str:
        """The name that the job was given."""
        return str(self.parameters.get("name", ""))

    def code(self, product: str) -> Code:
        """Tell a product's code now, without counting as a look."""
        with self.lock:
            return self.products[product].code(self.clock())

    def ended_at(self, now: float) -> float | None:
        """Tell when the last product ended; None while one has not."""
        ends = [product.ended_at(now) for product in self.products.values()]
        known = [end for end in ends if end is not None]
        return max(known) if len(known) == len(ends) else None


@dataclass(frozen=True)
class Served:
    """A file as it is sent."""

    content: archives.Blob
    etag: str
    modified: datetime
    media_type: str


@dataclass
class _Rebin:
    product: Product
    results: Results


class ServiceState:
    """Everything the embedded service knows. All methods may be called from any thread.

    Args:
        scenario: What to play.
        users: The registered addresses.
        origin: Where the service is reached.
        clock: Its own clock, in seconds.
        utcnow: The calendar, for `DateSubmitted` and `Last-Modified`.
    """

    def __init__(
        self,
        scenario: Scenario,
        users: Iterable[str],
        origin: str,
        clock: Callable[[], float],
        utcnow: Callable[[], datetime],
    ) -> None:
        self._scenario = scenario
        self._users = tuple(users)
        self._origin = origin
        self._clock = clock
        self._utcnow = utcnow
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._rebins: dict[int, _Rebin] = {}
        self._files: dict[tuple[str, ...], archives.Blob] = {}
        self._next_id = 801
        self._acts: Mapping[str, Callable[[Mapping[str, object]], dict[str, object]]] = {
            "submit": self._submit,
            "status": self._status,
            "cancel": self._cancel,
            "count": self._count,
            "list": self._list,
            "old_job": self._old_job,
            "psf_pos": lambda body: self._position("psf", body),
            "enh_pos": lambda body: self._position("enh", body),
            "astrom_pos": lambda body: self._position("xastrom", body),
            "source_list": self._source_list,
            "light_curve": self._light_curve,
            "spectral_fits": self._spectral_fits,
            "rebin": self._rebin,
        }

    @property
    def jobs(self) -> dict[int, Job]:
        """All jobs by their ID."""
        with self._lock:
            return dict(self._jobs)

    @property
    def rebins(self) -> dict[int, Code]:
        """The code of each light curve that is binned again, without counting as a look."""
        with self._lock:
            now = self._clock()
            return {rebin_id: rebin.product.code(now) for rebin_id, rebin in self._rebins.items()}

    def answer(self, endpoint: str, body: object) -> dict[str, object]:
        """Answer a call.

        Args:
            endpoint: One of the scenario's endpoints, except "file".
            body: The decoded JSON, or whatever else was sent.

        Raises:
            TooSoon: The scenario keeps looks at one job apart.
        """
        with self._lock:
            try:
                answer = self._acts[endpoint](self._admit(endpoint, body))
            except Refused as refusal:
                answer = {"OK": 0, "ERROR": refusal.text}
                if refusal.lists:
                    answer["listErr"] = [
                        {"label": label, "list": texts} for label, texts in refusal.lists.items()
                    ]
        answer["APIVersion"] = API_VERSION
        for key in ("*", endpoint):
            answer |= self._scenario.extra_answers.get(key, {})
        return answer

    def _admit(self, endpoint: str, body: object) -> Mapping[str, object]:
        if not isinstance(body, dict):
            raise Refused("The data you supplied are not a valid JSON object.")
        if endpoint != "rebin" and body.get("UserID") not in self._users:
            raise Refused(f"The user `{body.get('UserID', '')}` is not recognised / validated")
        return body

    def _submit(self, body: Mapping[str, object]) -> dict[str, object]:
        check_request(body)
        now = self._clock()
        name = str(body["name"])
        if name in self._scenario.unresolvable_names and any(
            is_on(body.get(key)) for key in ("getCoords", "getTargs", "getT0")
        ):
            raise Refused(f"The name `{name}` could not be resolved")
        active = self._active(str(body["UserID"]), now)
        if active >= self._scenario.active_job_limit:
            raise Refused(
                f"You already have {active} active jobs, which is the most allowed; "
                "please wait for some to complete before submitting more."
            )
        job_id = self._next_id
        self._next_id += 1
        directory = f"/user_objects/tprods/USERPROD_{job_id}"
        parameters = _resolve(body, job_id)
        origin = self._scenario.file_url_origin or self._origin
        job = Job(
            id=job_id,
            user=str(body["UserID"]),
            url=f"{origin}{directory}",
            parameters=_older_spellings(parameters) if self._scenario.job_pars_quirks else parameters,
            products=self._plan(products_of(body), name, now),
            submitted_at=now,
            submitted_utc=self._utcnow(),
            results=self._results(parameters, f"{origin}{directory}", name),
            clock=self._clock,
            lock=self._lock,
        )
        self._jobs[job_id] = job
        return {"OK": 1, "URL": job.url, "JobID": str(job_id), "jobPars": job.parameters}

    def _results(self, parameters: Mapping[str, object], url: str, name: str) -> Results:
        before = sum(job.name == name for job in self._jobs.values())
        new = sum(self._scenario.new_observations[:before])
        return Results(parameters, url, self._scenario.observations + new, new)

    def _plan(self, asked: Iterable[str], name: str, now: float) -> dict[str, Product]:
        kill_s = self._scenario.kill_after_s
        kill_at = None if kill_s is None else now + kill_s
        products: dict[str, Product] = {}
        for short in asked:
            timeline, as_written = self._scenario.timeline(short, name, len(self._jobs))
            after = products.get("psf") if short == "xastrom" and not as_written else None
            products[short] = Product(timeline, now, kill_at, after)
        return products

    def _status(self, body: Mapping[str, object]) -> dict[str, object]:
        job, now = self._own(body), self._clock()
        floor = self._scenario.enforce_poll_floor_s
        if floor is not None and job.looked_at is not None and now - job.looked_at < floor:
            raise TooSoon(floor - (now - job.looked_at))
        job.looked_at = now
        detailed = _names(body.get("whatProg"))
        answer: dict[str, object] = {}
        for short in _named(body):
            product = job.products.get(short)
            code = product.look(now) if product else None
            if code == FORGOTTEN:
                continue
            known = as_number(code)
            detail: dict[str, object] = {"GotProgress": 0}
            if product and known == RUNNING and short in detailed:
                detail = self._progress(job, short, product, now)
            text = _TEXTS.get(known, "Unknown status") if isinstance(known, int) else "Unknown status"
            answer[short] = {"statusCode": code, "statusText": text, "progress": detail}
        return {**answer, "OK": 1, "JobID": job.id}

    def _progress(self, job: Job, short: str, product: Product, now: float) -> dict[str, object]:
        if not self._scenario.progress:
            return {"GotProgress": 2}
        share, running_s = product.running(now)
        names = job.results.spectra() if short == "spec" else job.results.observations
        return progress(short, share, running_s, names)

    def _cancel(self, body: Mapping[str, object]) -> dict[str, object]:
        job, now = self._own(body), self._clock()
        codes = {
            short: job.products[short].cancel(now) if short in job.products else 2 for short in _named(body)
        }
        return {
            "JobID": job.id,
            "OK": 2 if any(codes.values()) else 1,
            "status": {short: _CANCEL_TEXTS[code] for short, code in codes.items()},
            "statusCodes": codes,
        }

    def _count(self, body: Mapping[str, object]) -> dict[str, object]:
        return {"OK": 1, "numJobs": self._active(str(body["UserID"]), self._clock())}

    def _active(self, user: str, now: float) -> int:
        return sum(job.user == user and job.ended_at(now) is None for job in self._jobs.values())

    def _list(self, body: Mapping[str, object]) -> dict[str, object]:
        now = self._clock()
        shown = [
            job
            for job in reversed(self._jobs.values())
            if job.user == body["UserID"] and now - job.submitted_at >= self._scenario.list_delay_s
        ]
        return {"OK": 1, "jobs": [self._entry(job, now) for job in shown]}

    def _entry(self, job: Job, now: float) -> dict[str, object]:
        return {
            "JobID": job.id,
            "Name": job.name,
            "DateSubmitted": f"{job.submitted_utc:%Y-%m-%d %H:%M:%S}",
            **{long: short in job.products for long, short in _LISTED.items()},
            "hasProd": not self._expired(job, now),
        }

    def _expired(self, job: Job, now: float) -> bool:
        kept_s, ended_at = self._scenario.expire_after_s, job.ended_at(now)
        return kept_s is not None and ended_at is not None and now - ended_at >= kept_s

    def _old_job(self, body: Mapping[str, object]) -> dict[str, object]:
        job = self._own(body, "oldJob")
        return {"OK": 1, "jobPars": job.parameters, "URL": job.url}

    def _position(self, short: str, body: Mapping[str, object]) -> dict[str, object]:
        job = self._own(body)
        self._asked(job, short)
        if not self._has_files(job, short) or short in self._scenario.no_position:
            return {"OK": 1, "GotPos": 0}
        position = job.results.position(short)
        answer: dict[str, object] = {"OK": 1, "GotPos": 1}
        answer |= {"RA": position.ra, "Dec": position.dec, "Err90": position.err90}
        if short != "enh":
            answer["FromSXPS"] = int(position.from_sxps)
            if position.from_sxps:
                answer["WhichSXPS"] = "2SXPS"
        return answer

    def _source_list(self, body: Mapping[str, object]) -> dict[str, object]:
        results = self._finished(body, "sourceDet").results
        return {"OK": 1, **{band: results.sources(band) for band in results.bands()}}

    def _light_curve(self, body: Mapping[str, object]) -> dict[str, object]:
        results = self._finished(body, "lc").results
        return {"OK": 1, **_curves(results, body)}

    def _spectral_fits(self, body: Mapping[str, object]) -> dict[str, object]:
        return {"OK": 1, **self._finished(body, "spec").results.spectral_answer()}

    def _finished(self, body: Mapping[str, object], short: str) -> Job:
        job = self._own(body)
        self._asked(job, short)
        if not self._has_files(job, short):
            raise Refused(f"Job {job.id} has no {short} to give: it is not complete, or was deleted")
        return job

    def _asked(self, job: Job, short: str) -> None:
        if short not in job.products:
            raise Refused(f"Job {job.id} did not request {short}")

    def _has_files(self, job: Job, short: str) -> bool:
        now = self._clock()
        return as_number(job.products[short].code(now)) == COMPLETE and not self._expired(job, now)

    def _own(self, body: Mapping[str, object], key: str = "JobID") -> Job:
        job_id = read_job_id(body.get(key))
        if job_id is None:
            raise Refused(f"No valid {key} was supplied")
        job = self._jobs.get(job_id)
        if job is None:
            raise Refused(f"Job {job_id} does not exist")
        if job.user != body["UserID"]:
            raise Refused(f"Job {job_id} is not owned by user {body['UserID']}")
        return job

    def _rebin(self, body: Mapping[str, object]) -> dict[str, object]:
        function = body.get("APIFunc")
        if function == "rebinLightCurve":
            return self._start_rebin(body)
        key = "objectID" if function == "downloadLightCurve" else "JobID"
        rebin = self._rebins.get(read_job_id(body.get(key)) or 0)
        now = self._clock()
        if rebin is None:
            answer = _trouble(404, "No such rebin job")
        elif function == "checkRebinStatus":
            code = rebin.product.look(now)
            number = as_number(code)
            text = _TEXTS.get(number, "Unknown status") if isinstance(number, int) else "Unknown status"
            answer = {"OK": 1, "status": code, "text": text}
        elif function == "cancelRebin":
            answer = _trouble(409, "Too late") if rebin.product.cancel(now) else {"OK": 1}
        elif function == "downloadLightCurve" and as_number(rebin.product.code(now)) == COMPLETE:
            answer = {"OK": 1, **_curves(rebin.results, body)}
        else:
            answer = _trouble(400, "No such function, or the light curve is not complete")
        return answer

    def _start_rebin(self, body: Mapping[str, object]) -> dict[str, object]:
        job = self._jobs.get(read_job_id(body.get("objectID")) or 0)
        if body.get("type") != "UOB_LC" or job is None or "lc" not in job.products:
            return _trouble(404, "There is no light curve to rebin")
        rebin_id = len(self._rebins) + 1
        given = {_REBIN_NAMES.get(key, key): value for key, value in body.items() if value is not None}
        url = f"{self._origin}/user_objects/tprods/REBIN_{rebin_id}"
        self._rebins[rebin_id] = _Rebin(
            Product(self._scenario.rebin, self._clock(), None, None),
            Results({**job.parameters, **given}, url, len(job.results.observations), job.results.new),
        )
        return {"OK": 1, "JobID": rebin_id}

    def page(self, path: str) -> Job | None:
        """Find the job whose directory a path is."""
        match = re.fullmatch(r"/user_objects/tprods/USERPROD_(\d+)/?", path)
        with self._lock:
            return self._jobs.get(int(match[1])) if match else None

    def file(self, path: str) -> Served | None:
        """Find a file; None where there is none (any more)."""
        match = re.fullmatch(r"/user_objects/tprods/(USERPROD|REBIN)_(\d{1,12})/(.+)", path)
        if not match:
            return None
        kind, number, rest = match.groups()
        with self._lock:
            if kind == "REBIN":
                return self._rebinned_file(int(number), rest)
            job = self._jobs.get(int(number))
            ready = [short for short in job.products if self._has_files(job, short)] if job else []
        # A large archive takes a while to sum up: nobody else has to wait for it.
        return self._job_file(job, ready, rest) if job else None

    def _job_file(self, job: Job, ready: list[str], rest: str) -> Served | None:
        stem, _, ending = rest.partition(".")
        short, _, inside = rest.partition("/")
        if ending in archives.FORMATS and stem in (*ready, *(["all"] if ready else [])):
            chosen = ready if stem == "all" else [stem]
            directory = f"USERPROD_{job.id}"
            key = (directory, ending, stem, *chosen)
            blob = self._files.get(key)
            if blob is None:
                packed = {name: self._members(job, name) for name in chosen}
                if stem == "all":
                    packed |= {name: {} for name in job.products if name not in packed}
                blob = archives.pack(directory, packed, ending, self._scenario.file_padding_bytes)
                self._remember(key, blob)
            return _served(blob, key, job.submitted_utc, _MEDIA_TYPES[ending])
        if short in ready and inside:
            data = self._members(job, short).get(inside)
            if data is not None:
                key = (f"USERPROD_{job.id}", rest)
                return _served(archives.Blob((data,)), key, job.submitted_utc, "application/octet-stream")
        return None

    def _rebinned_file(self, rebin_id: int, rest: str) -> Served | None:
        rebin = self._rebins.get(rebin_id)
        if rebin is None or as_number(rebin.product.code(self._clock())) != COMPLETE:
            return None
        data = archives.members("lc", rebin.results, {}).get(rest.removeprefix("lc/"))
        if data is None:
            return None
        key = (f"REBIN_{rebin_id}", rest)
        return _served(archives.Blob((data,)), key, self._utcnow(), "application/octet-stream")

    def _members(self, job: Job, short: str) -> archives.Members:
        found = short not in self._scenario.no_position
        return archives.members(short, job.results, job.parameters, found=found)

    def _remember(self, key: tuple[str, ...], blob: archives.Blob) -> None:
        with self._lock:
            if len(self._files) >= _CACHED_FILES:
                del self._files[next(iter(self._files))]
            self._files[key] = blob


def read_job_id(value: object) -> int | None:
    """Read a job's number, which comes as number or as text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value) else None


def _served(content: archives.Blob, key: tuple[str, ...], modified: datetime, media_type: str) -> Served:
    tag = f'"{int(draw(*key, len(content)) * 2**48):012x}"'
    return Served(content, tag, modified, media_type)


def _curves(results: Results, body: Mapping[str, object]) -> dict[str, object]:
    nosys, incbad = str(body.get("nosys", "no")), str(body.get("incbad", "no"))
    return results.light_curve_answer(nosys=nosys, incbad=incbad)


def _trouble(code: int, text: str) -> dict[str, object]:
    return {"ERROR": code, "ERRORTEXT": text}


def _names(value: object) -> list[str]:
    return [name.strip() for name in str(value or "").split(",") if name.strip()]


def _named(body: Mapping[str, object]) -> list[str]:
    names = _names(body.get("what"))
    if not names:
        raise Refused("You have not said which products you want (`what`)")
    return names


_DEFAULTS: Mapping[str, object] = {
    **dict.fromkeys(FLAG_OF.values(), 0),
    "centMeth": "simple",
    "maxCentTries": 10,
    "sss": 0,
    "SinceT0": 0,
    "useSXPS": 0,
    "wtpuprate": 150,
    "pcpuprate": 0.6,
}
_PRODUCT_DEFAULTS: Mapping[str, Mapping[str, object]] = {
    "lc": {
        "lcobs": "all",
        "lctimetype": "s",
        "grades": "all",
        "allowUL": "both",
        "allowB": "both",
        "bayesCounts": 15,
        "bayesSNR": 2.4,
        "minen": 0.3,
        "maxen": 10,
        "soft1": 0.3,
        "soft2": 1.5,
        "hard1": 1.51,
        "hard2": 10,
        "sigmin": 3,
        "femin": 0,
        "hrbin": 0,
    },
    "spec": {"specobs": "all", "timeslice": "single", "specgrades": "all", "specobstime": 12, "dchi": 2.706},
    "psf": {"posobs": "all", "detornot": "detect", "detMeth": "simple"},
    "enh": {"posobs": "all", "detornot": "detect", "detMeth": "simple"},
    "xastrom": {"posobs": "all", "detornot": "detect", "detMeth": "simple", "allxastrom": 0},
    "image": {"imen": "0.3-10,0.3-1.5,1.51-10", "imobs": "all"},
    "sourceDet": {"detbands": "total", "fitStrayLight": 0},
}


def _resolve(body: Mapping[str, object], job_id: int) -> dict[str, object]:
    """Complete a request as the service does: defaults, what its names stand for, its own additions."""
    parameters = {key: value for key, value in body.items() if key not in ("api_name", "api_version")}
    asked = products_of(body)
    parameters |= dict.fromkeys((FLAG_OF[short] for short in asked), 1)
    for defaults in (_DEFAULTS, *(_PRODUCT_DEFAULTS[short] for short in asked)):
        parameters |= {key: value for key, value in defaults.items() if key not in parameters}
    found = find_object(str(body["name"]))
    if is_on(body.get("getCoords")):
        parameters |= {"RA": f"{found.ra_deg:.4f}", "Dec": f"{found.dec_deg:.4f}"}
    if is_on(body.get("getTargs")):
        parameters["targ"] = found.targets
    if is_on(body.get("getT0")):
        parameters["Tstart"] = found.t0_met_s
    parameters["outdir"] = f"USERPROD_{job_id}"
    return parameters


def _older_spellings(parameters: dict[str, object]) -> dict[str, object]:
    numbered: Mapping[str, Mapping[object, object]] = {
        "centMeth": {"simple": "1", "iterative": "3"},
        "timeslice": {"single": 1, "user": 2, "snapshot": 3, "obsid": 4},
        **{key: {"all": 1, "user": 2, "hours": 3} for key in ("specobs", "imobs", "posobs", "detobs")},
        "lcobs": {"all": 0, "user": 1},
    }
    old: dict[str, object] = {"hrbin": 0, "lcobs": 0, "allxastrom": 0}
    old |= {key: numbered.get(key, {}).get(value, value) for key, value in parameters.items()}
    if "poserr" in old:
        old["poserr"] = round(60 * float(str(old["poserr"])))
    if "targ" in old:
        old["targ"] = "{" + str(old["targ"]).strip("{}") + "}"
    old |= {"whatSXPS": "2SXPS", "sinceT0": old.pop("SinceT0", 0), "do3col": 0, "enh": 0}
    old |= {"maxCentTries": str(old["maxCentTries"]), "sss": str(old["sss"]), "useSXPS": "2SXPS"}
    return old
