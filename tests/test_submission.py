"""Hold `prefect_xrt.submission` to account: a request becomes one job, once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from prefect_xrt import Image, LightCurve, ProductRequest, XRTClient
from prefect_xrt.emulator import Emulator, Fault, Scenario, Timeline
from prefect_xrt.errors import (
    OutputError,
    RequestRefusedError,
    ServiceUnreachableError,
    SubmitUncertainError,
)
from prefect_xrt.parameters import encode
from prefect_xrt.protocol import Job, Outcome
from prefect_xrt.records import (
    JobRecord,
    Submission,
    read_record,
    read_submission,
    write_record,
    write_submission,
)
from prefect_xrt.state import LocalClaims, LocalLooks
from prefect_xrt.submission import find_job, job_on_record, submit_once

JOB_TIME = datetime(2024, 5, 1, tzinfo=UTC)
LOST = ("reset-after", "hang-after", "http-500", "http-502-html", "html-200", "garbage", "truncated-json")
"""Faults of a submit whose answer tells nothing, although the job was made."""


class Side:
    """One party that submits: its folder, its name, and the time that it spent waiting."""

    def __init__(self, emulator: Emulator, directory: Path | None, owner: str, **client: Any) -> None:
        self.emulator = emulator
        self.directory = directory
        self.owner = owner
        self.slept_s: list[float] = []
        self.lines: list[str] = []
        self.client = XRTClient(
            emulator.user_id, emulator.url, sleep=lambda _: None, **{"read_timeout_s": 0.5, **client}
        )
        self.claims = LocalClaims(emulator.url)
        self.looks = LocalLooks(emulator.url)

    def sleep(self, seconds: float) -> None:
        """Sleep, and remember it."""
        self.slept_s.append(seconds)
        time.sleep(seconds)

    def find(self, request: ProductRequest, **options: Any) -> tuple[Job, Outcome] | None:
        """Find a job that answers a request already."""
        return find_job(self.client, request, looks=self.looks, **options)

    def submit(self, request: ProductRequest, **options: Any) -> Job:
        """Submit, without waiting for anything."""
        return submit_once(
            self.client,
            request,
            **{
                "owner": self.owner,
                "claims": self.claims,
                "directory": self.directory,
                "settle_s": 5.0,
                "sleep": self.slept_s.append,
                "log": self.lines.append,
                **options,
            },
        )


@pytest.fixture
def side(service: Callable[..., Emulator], tmp_path: Path) -> Iterator[Callable[..., Side]]:
    """Make parties at one service, which is started with the first of them."""
    made: list[Side] = []

    def make(
        owner: str = "one", *, directory: bool = True, client: dict[str, Any] | None = None, **scenario: Any
    ) -> Side:
        emulator = made[0].emulator if made else service(**scenario)
        made.append(Side(emulator, tmp_path / owner if directory else None, owner, **(client or {})))
        return made[-1]

    yield make
    for party in made:
        party.client.close()


def names(directory: Path | None) -> list[str]:
    """Give what is in a folder, hidden files too."""
    return sorted(os.listdir(directory)) if directory else []


class TestAnswered:
    def test_on_record(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A request that is answered is one job, on record with what was asked; nothing is open any more."""
        one = side()
        job = one.submit(request_, flow_run_id="0b2f")
        assert job.id == 801
        expected = JobRecord(job=job, flow_run_id="0b2f", owner="one", request=encode(request_))
        assert one.directory
        assert read_record(one.directory) == expected
        assert names(one.directory) == ["job.json", "jobPars.json"]
        assert one.emulator.calls("list") == []

    def test_word_of_it_before_it_is_sent(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """When the service gets the request, the folder says already that one is on its way."""
        one = side(faults=[Fault("submit", "slow", seconds=0.3)])
        seen: list[Submission | None] = []

        def watch() -> None:
            while not one.emulator.calls("submit"):
                pass
            assert one.directory
            seen.append(read_submission(one.directory))

        watcher = threading.Thread(target=watch)
        watcher.start()
        one.submit(request_)
        watcher.join()
        (word,) = seen
        assert word
        assert word.request == encode(request_)

    def test_turn(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Each time that something is sent it has its turn first, and no word of it is written until then."""
        one = side(faults=[Fault("submit", "http-500"), Fault("submit", "reset-after")])
        seen: list[tuple[list[str], int]] = []

        @contextmanager
        def turn() -> Iterator[None]:
            seen.append((names(one.directory), len(one.emulator.calls("submit"))))
            yield

        # The second answer is lost, and the list, which needs no turn, tells the rest.
        assert one.submit(request_, turn=turn).id == 801
        assert seen == [([], 0), (["submission.json"], 1)]
        assert len(one.emulator.calls("submit")) == 2

    def test_refused(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A request that is refused leaves nothing behind."""
        one = side(active_job_limit=0)
        with pytest.raises(RequestRefusedError):
            one.submit(request_)
        assert names(one.directory) == []

    def test_nothing_sent(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Where nothing was sent, nothing is open, and no list is asked for."""
        one = side()
        one.emulator.stop()
        with pytest.raises(ServiceUnreachableError):
            one.submit(request_)
        assert names(one.directory) == []

    def test_folder_that_cannot_be_written(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Where nothing can be put on record, nothing is sent."""
        one = side()
        assert one.directory
        one.directory.write_bytes(b"")
        with pytest.raises(OutputError):
            one.submit(request_)
        assert one.emulator.jobs == {}


class TestUncertain:
    @pytest.mark.parametrize("kind", LOST)
    @pytest.mark.parametrize("directory", [True, False], ids=["folder", "no folder"])
    def test_adopted(
        self, side: Callable[..., Side], request_: ProductRequest, kind: str, directory: bool
    ) -> None:
        """A job whose answer was lost is found in the list and taken, and the request is not sent again."""
        one = side(directory=directory, faults=[Fault("submit", kind, effect=True, seconds=2.0)])
        job = one.submit(request_)
        assert job.id == 801
        assert job.parameters["outdir"] == "USERPROD_801"
        assert job.submitted_at
        assert len(one.emulator.calls("submit")) == 1
        assert names(one.directory) == (["job.json", "jobPars.json"] if directory else [])

    @pytest.mark.parametrize("kind", ["reset-before", "http-500", "http-502-html", "http-503", "html-200"])
    def test_sent_again(self, side: Callable[..., Side], request_: ProductRequest, kind: str) -> None:
        """A request that never became a job is sent again, once the list had time to show one."""
        one = side(faults=[Fault("submit", kind)])
        assert one.submit(request_).id == 801
        assert len(one.emulator.calls("submit")) == 2
        assert [round(seconds) for seconds in one.slept_s] == [5]

    def test_asked_to_wait(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A service that asks to be left alone is, before anything is sent again."""
        one = side(faults=[Fault("submit", "http-503", retry_after=77)])
        assert one.submit(request_).id == 801
        assert [round(seconds) for seconds in one.slept_s] == [77]

    def test_long_on_its_way(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """The list has its time from when the request was given up, not from when it was sent."""
        one = side(faults=[Fault("submit", "reset-after")])
        sent_at = datetime.now(UTC)
        times = iter([sent_at, *[sent_at + timedelta(seconds=100)] * 9])
        assert one.submit(request_, now=lambda: next(times)).id == 801
        assert one.slept_s == [5.0]

    def test_list_that_is_late(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A list that shows a job only after a while is given that time."""
        one = side(faults=[Fault("submit", "reset-after")], list_delay_s=100.0)
        job = one.submit(request_, settle_s=130.0, sleep=one.emulator.advance)
        assert job.id == 801
        assert list(one.emulator.jobs) == [801]

    def test_never_answered(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A service that never answers and never makes a job is not asked for ever."""
        one = side(faults=[Fault("submit", "html-200", effect=False, times=-1)])
        with pytest.raises(SubmitUncertainError, match=r"3 times.*looked for first") as raised:
            one.submit(request_)
        assert raised.value.candidates == ()
        assert len(one.emulator.calls("submit")) == 3
        assert names(one.directory) == ["submission.json"]

    @pytest.mark.parametrize("endpoint", ["list", "old_job"])
    def test_list_that_cannot_be_read(
        self, side: Callable[..., Side], request_: ProductRequest, endpoint: str
    ) -> None:
        """Where the list or the job cannot be read, nothing is guessed; the next attempt settles it."""
        one = side(faults=[Fault("submit", "reset-after"), Fault(endpoint, "http-503", times=4)])
        with pytest.raises(SubmitUncertainError, match=r"cannot be read.*prefect-xrt attach JOB_ID --out"):
            one.submit(request_)
        assert one.submit(request_, owner="another process").id == 801
        assert len(one.emulator.calls("submit")) == 1

    def test_two_that_could_be_it(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Two jobs that nobody owns and that answer the request are named, and neither is taken."""
        one = side(faults=[Fault("submit", "reset-after", after=1)])
        one.client.submit(request_)  # with another program: nobody's claim
        with pytest.raises(SubmitUncertainError, match=r"801 \(submitted .*802 \(submitted") as raised:
            one.submit(request_)
        assert raised.value.candidates == (801, 802)

    def test_spelt_so_that_it_cannot_be_told(
        self, side: Callable[..., Side], request_: ProductRequest
    ) -> None:
        """A job whose parameters cannot be compared is named, not taken, and nothing is sent again."""
        one = side(faults=[Fault("submit", "reset-after")], extra_answers={"old_job": {"jobPars": {"lc": 1}}})
        one.emulator.scenario.extra_answers["old_job"]["jobPars"] = {  # type: ignore[index]
            **encode(request_),
            "pccounts": "many",
        }
        with pytest.raises(SubmitUncertainError, match="801") as raised:
            one.submit(request_)
        assert raised.value.candidates == (801,)
        assert len(one.emulator.calls("submit")) == 1

    def test_older_spellings(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Parameters that come back in the service's older spelling are the same parameters."""
        one = side(faults=[Fault("submit", "reset-after")], job_pars_quirks=True)
        assert one.submit(request_).id == 801
        assert len(one.emulator.calls("submit")) == 1


class TestOthers:
    """What is not this request's job is never taken for it."""

    @pytest.mark.parametrize(
        "change",
        [
            {"name": "GRB 200416B"},
            {"spectrum": None},
            {"position_error_arcmin": 2},
            {"light_curve": LightCurve(binning="counts", pc_counts=21, wt_counts=30, dynamic=True)},
            {"image": Image(observations=["00966554001"])},
        ],
        ids=["name", "products", "number", "count", "list"],
    )
    def test_another_request(
        self, side: Callable[..., Side], request_: ProductRequest, change: dict[str, Any]
    ) -> None:
        """A job of other parameters is not it, however alike: the request is sent again."""
        one = side(faults=[Fault("submit", "reset-before", after=1)])
        one.client.submit(request_.model_copy(update=change))
        assert one.submit(request_).id == 802

    def test_older(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A job that was there long before the request is not it."""
        one = side(faults=[Fault("submit", "reset-before", after=1)])
        one.client.submit(request_)
        job = one.submit(request_, now=lambda: datetime.now(UTC) + timedelta(minutes=5))
        assert job.id == 802

    def test_clock_that_is_wrong(
        self, xrt_service_factory: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """A clock that differs from the service's by an hour changes nothing, nor whose a job is."""
        for hours in (-1, 1):
            emulator = xrt_service_factory(
                Scenario(faults=[Fault("submit", "reset-after"), Fault("submit", "reset-before")]),
                utcnow=lambda hours=hours: datetime.now(UTC) + timedelta(hours=hours),
            )
            for number, owner in enumerate(("one", "other")):
                party = Side(emulator, tmp_path / f"{hours}{owner}", owner)
                assert party.submit(request_).id == 801 + number
            assert list(emulator.jobs) == [801, 802]

    def test_owned(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Two that ask for the same at the same time stay two jobs, whichever answer is lost."""
        one = side(
            "one", faults=[Fault("submit", "reset-after", after=1), Fault("submit", "reset-before", after=1)]
        )
        other = side("other")
        assert one.submit(request_).id == 801
        assert other.submit(request_).id == 802
        third = side("third")
        assert third.submit(request_).id == 803

    def test_both_lost(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Of two whose answers were lost and of which one made a job, one gets it and the other asks again."""
        one = side("one", faults=[Fault("submit", "reset-after"), Fault("submit", "reset-before")])
        other = side("other")
        for party in (one, other):
            assert party.directory
            party.directory.mkdir()
            at = datetime.now(UTC)
            write_submission(
                party.directory,
                Submission(request=encode(request_), owner=party.owner, asked_at=at, last_asked_at=at),
            )
        with pytest.raises(SubmitUncertainError):
            one.client.submit(request_)
        with pytest.raises(SubmitUncertainError):
            other.client.submit(request_)
        taken: list[int] = []
        start = threading.Barrier(2)

        def settle(party: Side) -> None:
            start.wait()
            taken.append(party.submit(request_).id)

        threads = [threading.Thread(target=settle, args=(party,)) for party in (one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == [801, 802]


class TestKilled:
    """What a process that died has left in the folder, the next one goes on with."""

    def test_between_request_and_record(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Killed after the service took the request: the job is adopted."""
        one = side()
        assert one.directory
        one.directory.mkdir()
        at = datetime.now(UTC)
        word = Submission(request=encode(request_), owner="killed", asked_at=at, last_asked_at=at)
        write_submission(one.directory, word)
        one.client.submit(request_)
        assert one.submit(request_).id == 801
        record = read_record(one.directory)
        assert record
        assert record.owner == "killed"
        assert names(one.directory) == ["job.json", "jobPars.json"]

    def test_between_claim_and_record(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Killed after the job was claimed: the claim is its own."""
        one = side()
        assert one.directory
        one.directory.mkdir()
        at = datetime.now(UTC)
        word = Submission(request=encode(request_), owner="killed", asked_at=at, last_asked_at=at)
        write_submission(one.directory, word)
        assert one.claims.take(one.client.submit(request_), "killed")
        assert one.submit(request_).id == 801

    def test_after_the_record(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Killed when the job was on record: what was open is closed, and the job is the folder's."""
        one = side()
        job = one.submit(request_)
        assert one.directory
        word = Submission(request=encode(request_), owner="one", asked_at=JOB_TIME, last_asked_at=JOB_TIME)
        write_submission(one.directory, word)
        record = job_on_record(one.directory)
        assert record
        assert record.job == job
        assert names(one.directory) == ["job.json", "jobPars.json"]

    def test_asked_anew(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Killed when a folder's job was to be replaced by another: that one is open, the old one does not count."""
        one = side()
        one.submit(request_)
        assert one.directory
        word = Submission(request=encode(request_), owner="anew", asked_at=JOB_TIME, last_asked_at=JOB_TIME)
        write_submission(one.directory, word)
        assert job_on_record(one.directory) is None
        assert read_submission(one.directory) == word

    def test_before_the_request(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Killed before anything was sent: the request is sent, once the list had time to show a job."""
        one = side()
        assert one.directory
        one.directory.mkdir()
        at = datetime.now(UTC) - timedelta(hours=1)
        word = Submission(request=encode(request_), owner="killed", asked_at=at, last_asked_at=at)
        write_submission(one.directory, word)
        assert one.submit(request_).id == 801
        assert one.slept_s == []

    def test_another_request_is_open(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A folder in which another request is open is not used; nothing is sent, nothing is forgotten."""
        one = side()
        assert one.directory
        one.directory.mkdir()
        at = datetime.now(UTC)
        word = Submission(request={"name": "M31"}, owner="killed", asked_at=at, last_asked_at=at)
        write_submission(one.directory, word)
        with pytest.raises(OutputError, match=r"'M31'.*prefect-xrt jobs"):
            one.submit(request_)
        assert read_submission(one.directory) == word
        assert one.emulator.log == []

    def test_no_folder_survived(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """An earlier attempt on a machine that is gone is found by the time in which it was made."""
        one = side()
        began = datetime.now(UTC)
        one.client.submit(request_)
        assert one.submit(request_, asked_between=(began, datetime.now(UTC))).id == 801


class TestClaims:
    JOB = Job(id=801, url="https://example.org/USERPROD_801", products=("Image",))

    def test_first_come(self) -> None:
        """The first to take a job has it, and keeps it when it asks again."""
        claims = LocalClaims("https://first.example")
        assert [claims.take(self.JOB, owner) for owner in ("a", "b", "a")] == [True, False, True]

    def test_another_service(self) -> None:
        """The same number at another service is another job."""
        assert LocalClaims("https://second.example").take(self.JOB, "a")
        assert LocalClaims("https://third.example").take(self.JOB, "b")

    def test_number_given_anew(self) -> None:
        """A claim that is older than the job is of another job, as with services for tests."""
        claims = LocalClaims("https://fourth.example")
        claims.take(self.JOB, "a")
        later = self.JOB.model_copy(update={"submitted_at": datetime.now(UTC) + timedelta(hours=1)})
        assert [claims.take(later, "b"), claims.take(self.JOB, "a")] == [True, False]

    def test_nowhere_to_write(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Where nothing can be noted, every job counts as free."""
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
        claims = LocalClaims("https://fifth.example")
        assert [claims.take(self.JOB, owner) for owner in ("a", "b")] == [True, True]


class TestFind:
    @pytest.mark.parametrize(
        ("timelines", "failed_too", "found"),
        [
            ({}, False, True),
            ({"spec": Timeline.of((3,))}, False, True),
            ({"spec": Timeline.of((-1,))}, False, False),
            ({"spec": Timeline.of((-1,))}, True, True),
            ({"spec": Timeline.of((-4,))}, False, False),
            ({"spec": Timeline.of((-3,))}, False, False),
        ],
        ids=["complete", "active", "failed", "failed too", "cancelled", "alarm"],
    )
    def test_state(
        self,
        side: Callable[..., Side],
        request_: ProductRequest,
        timelines: dict[str, Timeline],
        failed_too: bool,
        found: bool,
    ) -> None:
        """A job that builds or is complete serves; one that failed only if that is wanted."""
        one = side(default=Timeline.of((4,)), timelines=timelines)
        one.client.submit(request_)
        answer = one.find(request_, failed_too=failed_too)
        assert (answer is not None) == found
        if answer:
            assert (answer[0].id, set(answer[1].statuses)) == (801, set(request_.products))

    def test_alarm_that_passes(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """One look of -3 is no end, here either; the looks are noted for the sensor to keep its distance."""
        passing = Timeline.of_looks((-3, 1), (4,))
        one = side(default=Timeline.of((4,)), timelines={"spec": passing})
        one.client.submit(request_)
        answer = one.find(request_)
        assert answer
        assert len(answer[1].ready) == len(request_.products)
        assert one.looks.last(801) is not None

    def test_looks_at_the_pace(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A look that fails is made up for as the sensor does; a job that was seen to end is not looked at."""
        one = side(default=Timeline.of((4,)), faults=[Fault("status", "http-503", times=2)])
        one.client.submit(request_)
        for _ in range(2):
            assert one.find(request_, sleep=one.sleep)
            assert len(one.emulator.calls("status")) == 3
        assert max(one.slept_s) > 1

    def test_expired(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A job whose files were deleted has to be built again."""
        one = side(default=Timeline.of((4,)), expire_after_s=1000.0, speed=1.0)
        one.client.submit(request_)
        assert one.find(request_)
        one.emulator.advance(2000.0)
        assert one.find(request_, failed_too=True) is None

    def test_newest(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """Of several, the newest counts; others' parameters do not."""
        one = side(default=Timeline.of((4,)))
        for request in (request_, request_, request_.model_copy(update={"position_error_arcmin": 2})):
            one.client.submit(request)
        answer = one.find(request_)
        assert answer
        assert answer[0].id == 802

    def test_not_asked_for(self, side: Callable[..., Side], request_: ProductRequest) -> None:
        """A job with a setting that this request leaves to the service is another."""
        one = side(default=Timeline.of((4,)))
        narrow = LightCurve(binning="counts", pc_counts=20, wt_counts=30, dynamic=True, min_energy_kev=2)
        one.client.submit(request_.model_copy(update={"light_curve": narrow}))
        assert one.find(request_) is None


def test_a_record_of_before(tmp_path: Path, request_: ProductRequest) -> None:
    """A job that was attached answers the requests that its parameters answer."""
    parameters = {**encode(request_), "outdir": "USERPROD_801"}
    job = Job(id=801, url="https://example.org/x", products=request_.products, parameters=parameters)
    write_record(tmp_path, JobRecord(job=job))
    record = read_record(tmp_path)
    assert record
    assert record.answers(request_)
    assert not record.answers(request_.model_copy(update={"position_error_arcmin": 2}))
