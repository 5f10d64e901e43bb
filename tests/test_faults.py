"""Every fault of the embedded service, at every call, once and for ever: what becomes of it is what is documented.

Each cell is played against a real service over real sockets; only waiting is passed in. `docs/faults.md` shows
what the run found; to write it anew:

    XRT_WRITE_DOCS=1 pytest tests/test_faults.py
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests

from prefect_xrt import Image, LightCurve, Pacing, ProductRequest, SourceDetection, Spectrum, XRTClient
from prefect_xrt.archive import download
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline
from prefect_xrt.emulator.scenario import ENDPOINTS, FAULT_KINDS
from prefect_xrt.errors import (
    FailedLooksError,
    ForeignURLError,
    ServiceUnreachableError,
    SubmitUncertainError,
    XRTError,
)
from prefect_xrt.protocol import Job, RebinJob
from prefect_xrt.rebin import finish_rebin, rebin_light_curve, wait_for_rebin
from prefect_xrt.records import read_record, read_submission
from prefect_xrt.request import Product
from prefect_xrt.results import Result
from prefect_xrt.sensor import wait_for_products
from prefect_xrt.state import LocalClaims
from prefect_xrt.submission import submit_once

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "faults.md"

FAULTS: Mapping[str, str] = {
    "http-500": "HTTP 500 and a page",
    "http-502-html": "HTTP 502 and a page, from a gateway",
    "http-503": "HTTP 503 with `Retry-After`",
    "http-429": "HTTP 429 with `Retry-After`",
    "html-200": "HTTP 200 and a page: maintenance",
    "redirect": "HTTP 307, a redirection to another host: the request is not looked at here",
    "redirect/302": "HTTP 302, a redirection to another host, at times after all was done",
    "reset-before": "the connection breaks before the request is looked at",
    "hang": "no answer at all, and nothing is done",
    "garbage": "HTTP 200 and noise",
    "reset-after": "the connection breaks when all is done",
    "hang-after": "no answer at all, although all is done",
    "slow": "the answer comes late, but within the time-out",
    "trickle": "the answer comes a byte at a time, for longer than a call may take",
    "short-keepalive": "the answer is good; then the connection is closed unannounced",
    "truncated-json": "half an answer",
    "list-instead-of-object": "the answer within a list",
    "null-codes": "every status code is null",
    "text-codes": "every status code is a text",
    "missing-products": "the answer leaves out every product",
    "truncated-file": "half of what is asked for, then the connection closes",
    "corrupt-file": "a few bytes of the file are others",
}

ABBREVIATIONS: Mapping[str, str] = {
    "ok": "recovered",
    "Uncertain": "SubmitUncertainError",
    "Looks": "FailedLooksError",
    "Away": "ServiceUnreachableError",
    "Answer": "AnswerError",
    "Foreign": "ForeignURLError",
    "Archive": "ArchiveError",
    "-": "–",
}

OF_JOBS = (
    "submit, no job made",
    "submit, job made",
    "submit and list, no job made",
    "submit and list, job made",
    "status",
    "cancel",
    "count",
    "list",
    "old job",
    "file",
)
OF_DATA = ("retrieve", "rebin submit", "rebin status", "rebin cancel", "rebin retrieve")
COLUMNS = (*OF_JOBS, *OF_DATA)

UNSEEN = ("http-429", "redirect", "reset-before", "hang")
"""The faults that a request cannot have taken effect with."""

# What is documented, a column for each of OF_JOBS or OF_DATA. "-": the fault does not exist at this call. An answer
# that is late, cut or spoilt is one to a request that took effect; a 429 and a 307 say that it was turned away unseen.
ONCE = """
http-500                ok  ok  ok  ok  ok  ok  ok  ok  ok  ok
http-502-html           ok  ok  ok  ok  ok  ok  ok  ok  ok  ok
http-503                ok  ok  ok  ok  ok  ok  ok  ok  ok  ok
http-429                ok  -   ok  -   ok  ok  ok  ok  ok  ok
html-200                ok  ok  ok  ok  ok  ok  ok  ok  ok  ok
redirect                Away  -  Away  -  ok  Away  Away  Away  Away  Foreign
redirect/302            ok  ok  ok  ok  ok  ok  ok  ok  ok  Foreign
reset-before            ok  -   ok  -   ok  ok  ok  ok  ok  ok
hang                    ok  -   ok  -   ok  ok  ok  ok  ok  ok
garbage                 ok  ok  ok  ok  ok  ok  ok  ok  ok  ok
reset-after             -   ok  -   ok  ok  ok  ok  ok  ok  ok
hang-after              -   ok  -   ok  ok  ok  ok  ok  ok  ok
slow                    -   ok  -   ok  ok  ok  ok  ok  ok  ok
trickle                 -   ok  -   ok  ok  ok  ok  ok  ok  ok
short-keepalive         -   ok  -   ok  ok  ok  ok  ok  ok  ok
truncated-json          -   ok  -   ok  ok  ok  ok  ok  ok  -
list-instead-of-object  -   ok  -   ok  ok  ok  ok  ok  ok  -
null-codes              -   -   -   -   ok  -   -   -   -   -
text-codes              -   -   -   -   ok  -   -   -   -   -
missing-products        -   -   -   -   ok  -   -   -   -   -
truncated-file          -   -   -   -   -   -   -   -   -   ok
corrupt-file            -   -   -   -   -   -   -   -   -   ok
"""
ONCE_OF_DATA = """
http-500                ok    Uncertain  ok  ok    ok
http-502-html           ok    Uncertain  ok  ok    ok
http-503                ok    Uncertain  ok  ok    ok
http-429                ok    ok         ok  ok    ok
html-200                ok    Uncertain  ok  ok    ok
redirect                Away  Away       ok  Away  Away
redirect/302            ok    Uncertain  ok  ok    ok
reset-before            ok    Uncertain  ok  ok    ok
hang                    ok    Uncertain  ok  ok    ok
garbage                 ok    Uncertain  ok  ok    ok
reset-after             ok    Uncertain  ok  ok    ok
hang-after              ok    Uncertain  ok  ok    ok
slow                    ok    ok         ok  ok    ok
trickle                 ok    Uncertain  ok  ok    ok
short-keepalive         ok    ok         ok  ok    ok
truncated-json          ok    Uncertain  ok  ok    ok
list-instead-of-object  ok    Uncertain  ok  ok    ok
null-codes              -     -          ok  -     -
text-codes              -     -          ok  -     -
missing-products        -     -          ok  -     -
truncated-file          -     -          -   -     -
corrupt-file            -     -          -   -     -
"""
LASTING = """
http-500                Uncertain  ok  Uncertain  Uncertain  Looks  Away    Away    Away    Away    Away
http-502-html           Uncertain  ok  Uncertain  Uncertain  Looks  Away    Away    Away    Away    Away
http-503                Uncertain  ok  Uncertain  Uncertain  Looks  Away    Away    Away    Away    Away
http-429                Away       -   Away       -          Looks  Away    Away    Away    Away    Away
html-200                Uncertain  ok  Uncertain  Uncertain  Looks  Answer  Answer  Answer  Answer  Answer
redirect                Away       -   Away       -          Looks  Away    Away    Away    Away    Foreign
redirect/302            Uncertain  ok  Uncertain  Uncertain  Looks  Answer  Answer  Answer  Answer  Foreign
reset-before            Uncertain  -   Uncertain  -          Looks  Away    Away    Away    Away    Away
hang                    Uncertain  -   Uncertain  -          Looks  Away    Away    Away    Away    Away
garbage                 Uncertain  ok  Uncertain  Uncertain  Looks  Answer  Answer  Answer  Answer  Archive
reset-after             -          ok  -          Uncertain  Looks  Away    Away    Away    Away    Away
hang-after              -          ok  -          Uncertain  Looks  Away    Away    Away    Away    Away
slow                    -          ok  -          ok         ok     ok      ok      ok      ok      ok
trickle                 -          ok  -          Uncertain  Looks  Away    Away    Away    Away    Away
short-keepalive         -          ok  -          ok         ok     ok      ok      ok      ok      ok
truncated-json          -          ok  -          Uncertain  Looks  Answer  Answer  Answer  Answer  -
list-instead-of-object  -          ok  -          Uncertain  Looks  Answer  Answer  Answer  Answer  -
null-codes              -          -   -          -          Looks  -       -       -       -       -
text-codes              -          -   -          -          ok     -       -       -       -       -
missing-products        -          -   -          -          Looks  -       -       -       -       -
truncated-file          -          -   -          -          -      -       -       -       -       Away
corrupt-file            -          -   -          -          -      -       -       -       -       Archive
"""
LASTING_OF_DATA = """
http-500                Away    Uncertain  Looks  Away    Away
http-502-html           Away    Uncertain  Looks  Away    Away
http-503                Away    Uncertain  Looks  Away    Away
http-429                Away    Away       Looks  Away    Away
html-200                Answer  Uncertain  Looks  Answer  Answer
redirect                Away    Away       Looks  Away    Away
redirect/302            Answer  Uncertain  Looks  Answer  Answer
reset-before            Away    Uncertain  Looks  Away    Away
hang                    Away    Uncertain  Looks  Away    Away
garbage                 Answer  Uncertain  Looks  Answer  Answer
reset-after             Away    Uncertain  Looks  Away    Away
hang-after              Away    Uncertain  Looks  Away    Away
slow                    ok      ok         ok     ok      ok
trickle                 Away    Uncertain  Looks  Away    Away
short-keepalive         ok      ok         ok     ok      ok
truncated-json          Answer  Uncertain  Looks  Answer  Answer
list-instead-of-object  Answer  Uncertain  Looks  Answer  Answer
null-codes              -       -          Looks  -       -
text-codes              -       -          ok     -       -
missing-products        -       -          Looks  -       -
truncated-file          -       -          -      -       -
corrupt-file            -       -          -      -       -
"""

BUDGET = 3
"""How often anything is tried: attempts of the client, looks that fail, and attempts at a file."""

SHORT_S, LONG_S = 0.15, 20.0
"""The time-outs, where the fault is to run into them, and where it is not."""

RETRY_AFTER_S = 7.0
SETTLE_S = 5.0
REQUEST = ProductRequest(
    name="GRB 200416A",
    targets=["00966554"],
    ra_deg=335.6985,
    dec_deg=-7.5179,
    centroid=True,
    position_error_arcmin=1,
    light_curve=LightCurve(binning="counts", pc_counts=20, wt_counts=30, dynamic=True),
    spectrum=Spectrum(),
    image=Image(),
)
TIMELINES = {
    "lc": Timeline.of((4,)),
    "spec": Timeline.of_looks((3, 1), (-1,)),
    "image": Timeline.of_looks((2, 1), (3, 1), (4,)),
}
READY = Timeline.of((4,))
LOOKS = 3
BINNING = LightCurve(binning="snapshot", time_format="m")
ENDS = {Product.LIGHT_CURVE: 4, Product.SPECTRUM: -1, Product.IMAGE: 4}


@dataclass
class Stage:
    """A service, a client of it with small budgets, and a job that was made before anything went wrong."""

    service: Emulator
    client: XRTClient
    folder: Path
    slept_s: list[float]
    file_timeout_s: float
    job: Job | None = None
    rebin: RebinJob | None = None
    result: Result | None = None
    file: bytes = b""
    asked_before: int = 0

    @property
    def made(self) -> Job:
        """The job, at calls that need one."""
        assert self.job
        return self.job

    @property
    def made_again(self) -> RebinJob:
        """The new binning, at calls that need one."""
        assert self.rebin
        return self.rebin

    def now_s(self) -> float:
        """Tell the time, which goes on only by sleeping."""
        return sum(self.slept_s)

    def left(self) -> list[str]:
        """List what is in the folder, hidden files too."""
        return sorted(os.listdir(self.folder))


def submit(stage: Stage) -> None:
    """Make one job of one request, and put it on record."""
    job = submit_once(
        stage.client,
        REQUEST,
        owner="the same at every attempt",
        claims=LocalClaims(str(stage.folder)),
        directory=stage.folder,
        settle_s=SETTLE_S,
        sleep=stage.slept_s.append,
    )
    assert (job.id, list(stage.service.jobs)) == (801, [801])
    record = read_record(stage.folder)
    assert record
    assert (record.job, read_submission(stage.folder)) == (job, None)


def wait(stage: Stage) -> None:
    """Wait for all products, two of which will be ready and one will fail."""
    pacing = Pacing(floor_s=1, ceiling_s=1, jitter=0)
    outcome = wait_for_products(
        stage.client,
        stage.made,
        pacing=pacing,
        max_failed_looks=BUDGET,
        clock=stage.now_s,
        timer=stage.now_s,
        sleep=stage.slept_s.append,
    )
    assert {product: status.code for product, status in outcome.statuses.items()} == ENDS


def cancel(stage: Stage) -> None:
    """Cancel all products, which still build."""
    result = stage.client.cancel(stage.made)
    assert all(entry.settled for entry in result.products.values())
    assert [stage.service.jobs[801].code(short) for short in TIMELINES] == [-4, -4, -4]


def count(stage: Stage) -> None:
    """Count the active jobs: one."""
    assert stage.client.count_active_jobs() == 1


def list_jobs(stage: Stage) -> None:
    """List the jobs: one."""
    (entry,) = stage.client.list_jobs()
    assert (entry.id, entry.name, entry.products) == (801, REQUEST.name, REQUEST.products)


def attach(stage: Stage) -> None:
    """Take up a job by its ID."""
    assert stage.client.attach(801) == stage.made.model_copy(update={"submitted_at": None})


def fetch(stage: Stage) -> None:
    """Download a file."""
    ticks = iter(range(10**6))
    file = download(
        stage.client,
        stage.made,
        Product.LIGHT_CURVE,
        stage.folder,
        max_failed_attempts=BUDGET,
        timeout_s=stage.file_timeout_s,
        # It is the chunks that take time, each a second: no machine is too slow for that.
        clock=lambda: float(next(ticks)),
        sleep=stage.slept_s.append,
    )
    assert file.path.read_bytes() == stage.file
    assert file.sha256 == hashlib.sha256(stage.file).hexdigest()
    assert stage.left() == ["lc.tar.gz", "lc.tar.gz.sha256"]


def told(result: Result | None) -> Mapping[str, object]:
    """Give all that a result says, but not when it was retrieved."""
    assert result
    return {**vars(result), "provenance": result.provenance.sha256}


def retrieve(stage: Stage) -> None:
    """Retrieve a light curve."""
    assert told(stage.client.retrieve_light_curve(stage.made)) == told(stage.result)


def submit_rebin(stage: Stage) -> None:
    """Ask for one new binning."""
    before = list(stage.service.rebins)
    rebin = stage.client.submit_rebin(stage.made, BINNING)
    assert list(stage.service.rebins) == [*before, rebin.id]


def wait_rebin(stage: Stage) -> None:
    """Wait for a new binning, which will be ready."""
    outcome = wait_for_rebin(
        stage.client,
        stage.made_again,
        pacing=Pacing(floor_s=1, ceiling_s=1, jitter=0),
        max_failed_looks=BUDGET,
        clock=stage.now_s,
        timer=stage.now_s,
        sleep=stage.slept_s.append,
    )
    assert [status.code for status in outcome.statuses.values()] == [4]


def cancel_rebin(stage: Stage) -> None:
    """Cancel a new binning, which still runs unless an earlier attempt has cancelled it."""
    assert stage.client.cancel_rebin(stage.made_again)
    assert stage.service.rebins == {stage.made_again.id: -4}


def retrieve_rebin(stage: Stage) -> None:
    """Retrieve what a new binning has made."""
    assert told(stage.client.retrieve_rebinned_light_curve(stage.made_again)) == told(stage.result)


@dataclass(frozen=True)
class Call:
    """A call of the package to the service."""

    act: Callable[[Stage], None]
    endpoints: tuple[str, ...]
    effect: bool | None = None
    """Whether the request takes effect although the fault is played; None where it makes no difference."""
    rebin: Timeline | None = None
    """The way of the new binning that is made before, if there is to be one."""

    @property
    def submits(self) -> bool:
        """Whether it makes a job."""
        return self.endpoints[0] == "submit"

    @property
    def repeats(self) -> bool:
        """Whether it may be sent again although it may have arrived."""
        return not self.submits and self.act is not submit_rebin

    @property
    def waits(self) -> bool:
        """Whether it is a wait of many looks."""
        return self.act in (wait, wait_rebin)


CALLS: Mapping[str, Call] = dict(
    zip(
        COLUMNS,
        (
            Call(submit, ("submit",), False),
            Call(submit, ("submit",), True),
            Call(submit, ("submit", "list"), False),
            Call(submit, ("submit", "list"), True),
            Call(wait, ("status",)),
            Call(cancel, ("cancel",)),
            Call(count, ("count",)),
            Call(list_jobs, ("list",)),
            Call(attach, ("old_job",)),
            Call(fetch, ("file",)),
            Call(retrieve, ("light_curve",)),
            Call(submit_rebin, ("rebin",)),
            Call(wait_rebin, ("rebin",), rebin=Timeline.of_looks((2, 1), (3, 1), (4,))),
            Call(cancel_rebin, ("rebin",), rebin=Timeline.of((3,))),
            Call(retrieve_rebin, ("rebin",), rebin=READY),
        ),
        strict=True,
    )
)


def documented(of_jobs: str, of_data: str) -> dict[tuple[str, str], str]:
    """Read two of the tables above: fault and call to the outcome."""
    return {
        (row, column): ABBREVIATIONS[cell]
        for columns, table in ((OF_JOBS, of_jobs), (OF_DATA, of_data))
        for row, *cells in map(str.split, table.strip().splitlines())
        for column, cell in zip(columns, cells, strict=True)
    }


EXPECTED = {False: documented(ONCE, ONCE_OF_DATA), True: documented(LASTING, LASTING_OF_DATA)}
CELLS = [
    pytest.param(row, column, lasting, id=f"{row}, {column}, {'lasting' if lasting else 'once'}")
    for lasting, table in EXPECTED.items()
    for (row, column), outcome in table.items()
    if outcome != "–"
]


@contextlib.contextmanager
def staged(row: str, call: Call, lasting: bool) -> Iterator[Stage]:
    """Start a service, let it make a job, and let it go wrong from then on."""
    kind = row.partition("/")[0]
    # Of a file, only the headers have to be there by the client's time-outs.
    short = kind in ("hang", "hang-after") or (kind == "trickle" and call.act is not fetch)
    pause_s = 0.01 if call.act is not fetch else 0.0005 if lasting else 0.0
    running = {short: Timeline.of((3,)) for short in TIMELINES}
    scenario = Scenario(
        timelines=running if call.act in (submit, cancel, count) else TIMELINES, rebin=call.rebin or READY
    )
    slept_s: list[float] = []
    with (
        tempfile.TemporaryDirectory(prefix="prefect-xrt-fault-") as folder,
        Emulator(scenario) as service,
        another_host() as location,
        XRTClient(
            service.user_id,
            service.url,
            read_timeout_s=SHORT_S if short else LONG_S,
            total_timeout_s=SHORT_S if short else LONG_S,
            attempts=BUDGET,
            sleep=slept_s.append,
        ) as client,
    ):
        never_ending = kind == "trickle" and lasting
        stage = Stage(service, client, Path(folder), slept_s, 300.0 if never_ending else 10.0**5)
        prepare(stage, call)
        effects = {"submit": call.effect, "rebin": row not in UNSEEN}
        for endpoint in call.endpoints:
            service.add_fault(
                fault(
                    row,
                    endpoint,
                    times=-1 if lasting else 1,
                    effect=effects.get(endpoint),
                    pause_s=pause_s,
                    location=location,
                )
            )
        stage.asked_before = len(service.calls(call.endpoints[0]))
        yield stage


def prepare(stage: Stage, call: Call) -> None:
    """Make what has to be there before a call, and see what it is to give."""
    if call.submits:
        return
    with XRTClient(stage.service.user_id, stage.service.url) as other:
        stage.job = other.submit(REQUEST)
        if call.rebin:
            stage.rebin = other.submit_rebin(stage.job, BINNING)
        if call.act is retrieve:
            stage.result = other.retrieve_light_curve(stage.job)
        if call.act is retrieve_rebin:
            stage.result = other.retrieve_rebinned_light_curve(stage.made_again)
    if call.act is fetch:
        stage.file = requests.get(f"{stage.job.url}/lc.tar.gz", timeout=LONG_S).content


@contextlib.contextmanager
def another_host() -> Iterator[str]:
    """Give a place that a redirection can lead to, and make sure that nobody goes there."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
        place.setblocking(False)
        with pytest.raises(BlockingIOError):
            place.accept()


def fault(
    row: str, endpoint: str, *, times: int, location: str, effect: bool | None = None, pause_s: float = 0.0
) -> Fault:
    """Give the fault of a row of the tables."""
    kind, _, status = row.partition("/")
    return Fault(
        endpoint,
        kind,
        times=times,
        effect=effect,
        seconds={"slow": 0.03, "trickle": pause_s}.get(kind, 60.0),
        retry_after=RETRY_AFTER_S,
        location=location,
        redirect_status=int(status or 307),
    )


@cache
def play(row: str, column: str, lasting: bool) -> str:
    """Play one cell, hold everything against what is right, and tell the outcome."""
    call, kind = CALLS[column], row.partition("/")[0]
    with staged(row, call, lasting) as stage:
        began_at = time.monotonic()
        error: XRTError | None = None
        try:
            call.act(stage)
        except XRTError as raised:
            error = raised
        assert time.monotonic() - began_at < LONG_S, "It hung."
        played = [entry.fault for entry in stage.service.calls(call.endpoints[0])[stage.asked_before :]]
        # What a server asks for is given; after a request that may have arrived, the list's time rules instead.
        if kind == "http-429" or (kind == "http-503" and call.repeats):
            assert max(stage.slept_s) >= RETRY_AFTER_S
        if lasting:
            assert set(played) == {kind}
            assert len(played) in expected_calls(row, call, error, stage)
        else:
            assert played.count(kind) == 1
        if error is None:
            # No call leaves a connection behind that is of no use to the next one.
            stage.client.count_active_jobs()
            return "recovered"
        check_harmless(row, call, error, stage)
        stage.service.clear_faults()
        with XRTClient(stage.service.user_id, stage.service.url, sleep=stage.slept_s.append) as stage.client:
            call.act(stage)
        return type(error).__name__


def expected_calls(row: str, call: Call, error: XRTError | None, stage: Stage) -> Sequence[int]:
    """Tell how often a fault that never ends is run into."""
    once = isinstance(error, ForeignURLError) or (row == "trickle" and call.act is fetch)
    if once or (row == "redirect" and not call.waits):
        return [1]
    if row == "truncated-file":
        # Half of what is left comes at each attempt, until the last byte does not.
        return range(BUDGET, BUDGET + len(stage.file).bit_length() + 1)
    if isinstance(error, SubmitUncertainError):
        # Only a list that shows nothing of the request lets it be sent again.
        return [BUDGET if call.endpoints == ("submit",) else 1]
    if error is None:
        return [LOOKS if call.waits else 1]
    return [BUDGET]


def check_harmless(row: str, call: Call, error: XRTError, stage: Stage) -> None:
    """Make sure that an error has left nothing that should not be there, and tells nothing wrong."""
    if isinstance(error, FailedLooksError):
        assert error.job == stage.job
        assert error.outcome is None or error.outcome.ended == ()
    if call.act is fetch:
        assert stage.left() == []
    if call.submits:
        assert list(stage.service.jobs) == ([801] if call.effect else [])
        # Whoever asks again has to know that a request is on its way, and only then.
        assert stage.left() == (["submission.json"] if isinstance(error, SubmitUncertainError) else [])
    if call.act is submit_rebin:
        assert list(stage.service.rebins) == ([] if row in UNSEEN else [1])


@pytest.mark.parametrize(("row", "column", "lasting"), CELLS)
def test_outcome(row: str, column: str, lasting: bool) -> None:
    """A fault at a call is recovered from, or is the error that is documented; asked again later, all is right."""
    assert play(row, column, lasting) == EXPECTED[lasting][row, column]


def test_every_fault_and_every_call() -> None:
    """The tables hold every fault that there is, and every call that the package makes."""
    assert list(dict.fromkeys(row.partition("/")[0] for row in FAULTS)) == list(FAULT_KINDS)
    for table in EXPECTED.values():
        assert set(table) == {(row, column) for row in FAULTS for column in COLUMNS}
    struck = {endpoint for call in CALLS.values() for endpoint in call.endpoints}
    assert struck | set(RETRIEVED.values()) == set(ENDPOINTS)


RETRIEVED = {
    Product.STANDARD_POS: "psf_pos",
    Product.ENHANCED_POS: "enh_pos",
    Product.ASTROM_POS: "astrom_pos",
    Product.SOURCE_DET: "source_list",
    Product.SPECTRUM: "spectral_fits",
}
"""What else can be retrieved, and where."""


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("product", RETRIEVED)
def test_all_is_retrieved_alike(product: Product, lasting: bool) -> None:
    """Of whatever is retrieved, a fault makes what it makes of a light curve."""
    request = REQUEST.model_copy(
        update={
            "standard_position": True,
            "enhanced_position": True,
            "astrometric_position": True,
            "source_detection": SourceDetection(which_data="all"),
        }
    )
    # A time-out strikes below what tells one result from another.
    rows = [row for row in FAULTS if row not in ("hang", "hang-after", "trickle")]
    expected = {
        row: outcome for row in rows if (outcome := EXPECTED[lasting][row, "retrieve"]) != ABBREVIATIONS["-"]
    }
    found = {}
    with (
        Emulator(Scenario(default=READY)) as service,
        another_host() as location,
        XRTClient(service.user_id, service.url, attempts=BUDGET, sleep=lambda _: None) as client,
    ):
        job = client.submit(request)
        right = told(client.retrieve(job, product))
        for row in expected:
            service.add_fault(fault(row, RETRIEVED[product], times=-1 if lasting else 1, location=location))
            try:
                assert told(client.retrieve(job, product)) == right
                found[row] = ABBREVIATIONS["ok"]
            except XRTError as error:
                found[row] = type(error).__name__
            service.clear_faults()
    assert found == expected


def test_what_was_made_is_not_made_twice() -> None:
    """Where a new binning is ready but cannot be retrieved, the error tells how it can be later."""
    with (
        Emulator(Scenario(timelines=TIMELINES, rebin=READY)) as service,
        XRTClient(service.user_id, service.url, attempts=BUDGET, sleep=lambda _: None) as client,
    ):
        job = client.submit(REQUEST)
        service.add_fault(Fault("rebin", "http-502-html", after=2, times=-1))
        waiting: Any = {"timer": itertools.count(0, 60).__next__, "sleep": lambda _: None}
        with pytest.raises(ServiceUnreachableError) as caught:
            rebin_light_curve(client, job, BINNING, **waiting)
        assert service.rebins == {1: 4}
        (note,) = caught.value.__notes__
        assert "RebinJob(id=1," in note
        service.clear_faults()
        rebin = RebinJob(id=1, job=job, parameters={})
        assert finish_rebin(client, rebin, **waiting).time_system == "MJD"


def test_document() -> None:
    """The document shows what a run finds."""
    text = document()
    if os.environ.get("XRT_WRITE_DOCS"):
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text)
    assert text == DOCUMENT.read_text()


def document() -> str:
    """Write down the outcomes of all cells."""
    return f"""# What becomes of faults

Every fault that the embedded service can play, at every call of this package. The tables are what a run of
`tests/test_faults.py` has found; a test keeps them true. To write them anew:

    XRT_WRITE_DOCS=1 pytest tests/test_faults.py

*recovered*: the call returned, and what it returned was right: one job for one request, the true end of every
product, the whole file. A name is that of the error that was raised, one of `prefect_xrt.errors`; then nothing
wrong was left behind, and the same call was right once the fault was over. *–*: this fault does not exist at this
call. Nothing ever hung, and nothing that failed was told as a success.

The calls: *submit* is `submission.submit_once`, where the fault strikes a request of which the service made no
job, or made one; *submit and list* is the same, where the list of jobs, which is to tell what became of the request,
is struck as well. *status* is the sensor, which waits for all products; *cancel*, *count*, *list* and *old job* are
calls of the client; *file* is `archive.download`.

The calls for data: *retrieve* is a light curve, and what else can be retrieved was found to be alike; *rebin status*
is the sensor, which waits for a new binning, and the others are calls of the client. Where a fault leaves open
whether a *rebin* call took effect, it did.

A request for a job is sent again only after the service's list has shown that it became none. Where the list
tells nothing, that is a `SubmitUncertainError`, after one request and with at most one job; asked again in the same
folder, the job is found. The service documents no list of new binnings: where it is not known whether one was made,
that is a `SubmitUncertainError` at once, after one request. HTTP 429 says that the service has not looked at the
request: it is sent again as it is.

No redirection to another host is ever followed. HTTP 307, as 301 and 308, tells that the address is wrong, and is not
tried again, but by the sensor: a live job is not given up for one bad look.

## A fault that strikes once

{rendered(OF_JOBS, lasting=False)}

{rendered(OF_DATA, lasting=False)}

A file that trickles in is waited for, up to its own deadline of six hours.

## A fault that lasts

Every budget is small here, {BUDGET} of each. By default the client makes 4 attempts, and the sensor and the download
give up after 90 in a row that bring nothing new.

{rendered(OF_JOBS, lasting=True)}

{rendered(OF_DATA, lasting=True)}

A file that always breaks off comes in pieces; it is given up when nothing more comes.
"""


def rendered(columns: Sequence[str], *, lasting: bool) -> str:
    """Write down one table."""
    lines = [f"| fault | what happens | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 2)}"]
    for row, description in FAULTS.items():
        cells = [
            play(row, column, lasting) if EXPECTED[lasting][row, column] != "–" else "–" for column in columns
        ]
        if set(cells) == {"–"}:
            continue
        lines.append(
            f"| `{row}` | {description} | {' | '.join(c if c in ('–', 'recovered') else f'`{c}`' for c in cells)} |"
        )
    return "\n".join(lines)
