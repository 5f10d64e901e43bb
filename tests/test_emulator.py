"""The embedded service does what the real one's documents say, and breaks in the ways asked for."""

from __future__ import annotations

import ast
import csv
import gzip
import http.client
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import requests

import prefect_xrt.emulator
from prefect_xrt import LightCurve, XRTClient
from prefect_xrt.emulator import (
    NAMED,
    Emulator,
    Fault,
    Scenario,
    ScenarioError,
    Step,
    Timeline,
    pictures,
    serve,
)
from prefect_xrt.emulator.archives import Blob, Repeated, fits_image, pack
from prefect_xrt.emulator.progress import STAGES

pytest_plugins = ["prefect_xrt.emulator.fixtures"]

ALL = ("lc", "spec", "psf", "enh", "xastrom", "image", "sourceDet")
REQUEST: dict[str, Any] = {
    "name": "GRB 200416A",
    "targ": "00966554",
    "RA": 335.6985,
    "Dec": -7.5179,
    "Tstart": 608713541.952,
    "cent": 1,
    "centMeth": "simple",
    "poserr": 1,
}
LC = {"lc": 1, "binMeth": "counts", "pccounts": 20, "wtcounts": 30, "dynamic": 1}
EVERYTHING = {
    **REQUEST,
    **LC,
    **{"spec": 1, "specz": 0, "timeslice": "obsid", "dopsf": 1, "doenh": 1, "doxastrom": 1},
    **{"image": 1, "imen": "0.3-10,1-4", "sourceDet": 1, "detobs": "all", "detbands": "all"},
}
READY = Scenario(default=Timeline.of((4,)))


@contextmanager
def running(scenario: Scenario | None = None, **options: Any) -> Iterator[Emulator]:
    """Start a service whose clock stands still until it is advanced."""
    with Emulator(scenario, **{"clock": lambda: 0.0, **options}) as service:
        yield service


def post(service: Emulator, path: str, **body: Any) -> dict[str, Any]:
    """Call the service as its first user and give the decoded answer."""
    body = {"UserID": service.user_id, **body}
    answer = requests.post(f"{service.url}/{path}", json=body, timeout=10)
    assert answer.status_code == 200
    decoded: dict[str, Any] = answer.json()
    return decoded


def submit(service: Emulator, **parameters: Any) -> int:
    """Submit a request, by default one for a light curve, and give the job's ID."""
    return int(post(service, "run_userobject.php", **(parameters or {**REQUEST, **LC}))["JobID"])


def status(service: Emulator, job_id: int, what: str = "lc", progress: str = "") -> dict[str, Any]:
    """Ask for the status of products."""
    return post(service, "checkProductStatus.php", JobID=job_id, what=what, whatProg=progress)


def code(service: Emulator, job_id: int, product: str = "lc") -> Any:
    """Ask for one status code."""
    return status(service, job_id, product)[product]["statusCode"]


def fetch(service: Emulator, path: str, **headers: str) -> requests.Response:
    """Get a file of the first job."""
    address = f"{service.url}/tprods/USERPROD_801/{path}"
    return requests.get(address, headers={"Accept-Encoding": "identity", **headers}, timeout=10)


SAMPLES = Path(__file__).parent / "samples" / "emulator"


def sample(name: str) -> Any:
    """Read one of the service's documented examples."""
    return json.loads((SAMPLES / f"{name}.json").read_text(encoding="utf-8"))


def labels(steps: list[dict[str, Any]]) -> list[Any]:
    """Reduce progress to its labels, at any depth."""
    return [(step["StepLabel"], labels(step.get("SubStep", []))) for step in steps]


class TestDocumentedExamples:
    @pytest.mark.parametrize("path", sorted(SAMPLES.glob("request_*.json")), ids=lambda path: path.stem)
    def test_requests(self, path: Path) -> None:
        """Every complete request of the documentation is accepted."""
        with running() as service:
            request_ = {**sample(path.stem), "UserID": service.user_id}
            assert post(service, "run_userobject.php", **request_)["OK"] == 1

    def test_parameters(self) -> None:
        """In the older spellings, the documented request is completed to the documented parameters."""
        expected = sample("submit_reply_ok_gk_per")["jobPars"]
        with running(Scenario(job_pars_quirks=True)) as service:
            request_ = {**sample("request_fo_aqr_spectrum"), "UserID": service.user_id, "name": "GK Per"}
            answered = post(service, "run_userobject.php", **request_)["jobPars"]
            different = {key for key, value in expected.items() if answered.get(key) != value}
            assert different == {"UserID", "outdir", "targ"}
            assert answered["targ"].startswith("{00010873,")

    def test_refusal(self) -> None:
        """The documented refusal is answered to the letter."""
        expected = {**sample("submit_reply_refused"), "APIVersion": "1.12"}
        with running() as service:
            asked = {"name": "x", "getTargs": 1, "RA": 1, "poserr": 0.01, **LC}
            assert post(service, "run_userobject.php", **asked) == expected

    def test_radius_without_centroid(self) -> None:
        """Where no centroid is wanted the error radius may be anything."""
        with running() as service:
            assert (
                post(service, "run_userobject.php", **{**REQUEST, **LC, "cent": 0, "poserr": 60})["OK"] == 1
            )

    def test_progress(self) -> None:
        """The steps of every product are the documented ones, at every depth."""
        expected = sample("status_3_reply_all_progress")
        with running(Scenario(timelines=dict.fromkeys(ALL, Timeline.of((3, 9))))) as service:
            submit(service, **EVERYTHING)
            what = "lc,spec,enh,psf,xastrom,image"
            answer = status(service, 801, what, what)
            for short in ("lc", "spec", "enh", "xastrom", "image"):
                told, documented = (entry[short]["progress"] for entry in (answer, expected))
                assert labels(told["ProgressSteps"]) == labels(documented["ProgressSteps"])
                assert set(told) == set(documented)

    def test_complete_but_for_one(self) -> None:
        """The tutorial's last status is answered to the letter."""
        expected = {**sample("status_6_reply_complete_one_cancelled"), "JobID": 801, "APIVersion": "1.12"}
        with running(Scenario(default=Timeline.of((2, 5), (4,)))) as service:
            submit(service, **EVERYTHING)
            post(service, "canceljob.php", JobID=801, what="spec")
            service.advance(5)
            assert status(service, 801, "lc,spec,enh,psf,xastrom,image") == expected

    def test_partly_cancelled(self) -> None:
        """A partial cancellation is answered to the letter."""
        expected = {**sample("cancel_reply_partly"), "JobID": 801, "APIVersion": "1.12"}
        with running(Scenario(timelines={"lc": Timeline.of((4,))})) as service:
            submit(service, **EVERYTHING)
            assert post(service, "canceljob.php", JobID=801, what="lc,spec") == expected

    def test_job_list(self) -> None:
        """The job list's entries have the documented keys in their order, with values of the same kinds."""
        expected = sample("list_reply")["jobs"][0]
        with running() as service:
            submit(service)
            (entry,) = post(service, "listOldJobs.php")["jobs"]
            assert [(key, type(value)) for key, value in entry.items()] == [
                (key, type(value)) for key, value in expected.items()
            ]


class TestSubmit:
    def test_answer(self) -> None:
        """An accepted request is answered with the ID as text, the URL and all parameters."""
        with running() as service:
            answer = post(service, "run_userobject.php", **REQUEST, **LC, extra="kept", api_version="1.12")
            assert list(answer) == ["OK", "URL", "JobID", "jobPars", "APIVersion"]
            assert answer["JobID"] == "801"
            assert answer["URL"] == f"{service.origin}/user_objects/tprods/USERPROD_801"
            assert answer["APIVersion"] == "1.12"
            pars = answer["jobPars"]
            assert {**pars, **REQUEST, **LC} == pars
            assert (pars["UserID"], pars["outdir"], pars["extra"]) == (
                service.user_id,
                "USERPROD_801",
                "kept",
            )
            assert [pars[flag] for flag in ("spec", "dopsf", "image", "sourceDet")] == [0, 0, 0, 0]
            assert "api_version" not in pars
            assert submit(service) == 802

    @pytest.mark.parametrize(
        ("changes", "complaint"),
        [
            ({"poserr": 0.01}, "poserr is 0.01, but must be between 1 and 6"),
            ({"poserr": "wide"}, "poserr is wide, but must be a number"),
            ({"Dec": -90.1}, "Dec is -90.1, but must be between -90 and 90"),
            ({"cent": True}, "cent is true, but must be 0 or 1"),
            ({"lc": False, "spec": 1, "specz": 0}, "lc is false, but must be 0 or 1"),
            ({"dynamic": 2}, "dynamic is 2, but must be 0 or 1"),
            ({"nested": {"deep": [True]}}, "nested is {'deep': [True]}, but must be 0 or 1"),
            ({"binMeth": "week"}, "binMeth is week, but must be one of counts, time, snapshot, obsid"),
            ({"targ": "GRB"}, "targ is GRB, but must be a list of target IDs"),
            ({"imen": "soft"}, "imen is soft, but must be energy bands such as 0.3-10,1.5-10"),
        ],
    )
    def test_invalid_values(self, changes: dict[str, Any], complaint: str) -> None:
        """Each kind of wrong value is named with its wire name and what it must be."""
        with running() as service:
            answer = post(service, "run_userobject.php", **{**REQUEST, **LC, **changes})
            assert (answer["OK"], answer["listErr"][-1]["list"]) == (0, [complaint])

    @pytest.mark.parametrize(
        ("request_", "missing"),
        [
            ({}, ["name", "targ", "RA", "Dec", "cent", "at least one product"]),
            ({"sourceDet": 1}, ["name", "targ", "detobs"]),
            ({**REQUEST, "lc": 1}, ["binMeth"]),
            ({**REQUEST, "lc": 1, "binMeth": "counts"}, ["pccounts", "wtcounts", "dynamic"]),
            ({**REQUEST, "lc": 1, "binMeth": "obsid", "lcobs": "user"}, ["uselcobs"]),
            ({**REQUEST, "spec": 1}, ["specz"]),
            ({**REQUEST, "spec": 1, "specz": 1, "specobs": "hours"}, ["zval", "specobstime"]),
            ({**REQUEST, "doenh": 1, "posobs": "user"}, ["useposobs"]),
            ({**REQUEST, "image": 1, "imobs": "user"}, ["useimobs"]),
        ],
    )
    def test_missing_parameters(self, request_: dict[str, Any], missing: list[str]) -> None:
        """Every parameter that is needed for what is asked is named when absent."""
        with running() as service:
            answer = post(service, "run_userobject.php", **request_)
            assert [text.partition(" (")[0] for text in answer["listErr"][0]["list"]] == missing

    @pytest.mark.parametrize(
        "request_",
        [
            {"name": "FO Aqr", "getCoords": 1, "getTargs": 1, "getT0": 1, "cent": 0, "image": 1},
            {"name": "field", "getTargs": 1, "sourceDet": 1, "detobs": "all"},
            {**REQUEST, "RA": "335.6985", "targ": "{00010873,00010907}", "lc": 1, "binMeth": "obsid"},
            {**REQUEST, "centMeth": "3", "spec": 1, "specz": 0, "timeslice": 1, "specobs": 1},
        ],
    )
    def test_accepted(self, request_: dict[str, Any]) -> None:
        """Names to look up, a source detection alone, texts for numbers and older spellings are all taken."""
        with running() as service:
            assert post(service, "run_userobject.php", **request_)["OK"] == 1

    def test_names_are_resolved(self) -> None:
        """Coordinates, targets and reference time of a name are found, and are the same each time."""
        with running() as service:
            request_ = {"name": "Some Star", "getCoords": 1, "getTargs": 1, "getT0": 1, "cent": 0, "image": 1}
            first, second = (post(service, "run_userobject.php", **request_)["jobPars"] for _ in range(2))
            assert {key: first[key] for key in ("RA", "Dec", "targ", "Tstart")} == {
                key: second[key] for key in ("RA", "Dec", "targ", "Tstart")
            }
            assert 0 <= float(first["RA"]) < 360
            assert -90 <= float(first["Dec"]) <= 90
            again = {key: value for key, value in first.items() if not key.startswith("get")}
            assert post(service, "run_userobject.php", **again)["OK"] == 1

    def test_unresolvable_name(self) -> None:
        """A scenario can have names that nothing is found for."""
        with running(Scenario(unresolvable_names=("Nibiru",))) as service:
            answer = post(
                service, "run_userobject.php", name="Nibiru", getCoords=1, getTargs=1, cent=0, image=1
            )
            assert answer["ERROR"] == "The name `Nibiru` could not be resolved"

    def test_astrometric_brings_standard(self) -> None:
        """An astrometric position brings in the standard position."""
        with running() as service:
            answer = post(service, "run_userobject.php", **REQUEST, doxastrom=1)
            assert answer["jobPars"]["dopsf"] == 1
            assert list(service.jobs[801].products) == ["psf", "xastrom"]

    def test_limit(self) -> None:
        """One active job too many is refused, for its user only, until another ends."""
        with running(Scenario(active_job_limit=1), users=("a@example.org", "b@example.org")) as service:
            submit(service)
            assert "active jobs" in post(service, "run_userobject.php", **REQUEST, **LC)["ERROR"]
            assert post(service, "run_userobject.php", **REQUEST, **LC, UserID="b@example.org")["OK"] == 1
            post(service, "canceljob.php", JobID=801, what="lc")
            assert submit(service) == 803

    def test_older_spellings(self) -> None:
        """A scenario can answer parameters in the older spellings, and takes most of them back."""
        with running(Scenario(job_pars_quirks=True)) as service:
            pars = post(service, "run_userobject.php", **EVERYTHING)["jobPars"]
            assert pars["targ"] == "{00966554}"
            assert (pars["centMeth"], pars["poserr"], pars["timeslice"]) == ("1", 60, 4)
            assert "SinceT0" not in pars
            assert post(service, "run_userobject.php", **{**pars, "poserr": 1})["OK"] == 1


class TestCallers:
    @pytest.mark.parametrize(
        "path",
        [
            "run_userobject.php",
            "checkProductStatus.php",
            "canceljob.php",
            "getNumJobs.php",
            "listOldJobs.php",
            "getOldProduct.php",
            "tprods/getPSFPos.php",
            "tprods/getEnhPos.php",
            "tprods/getAstromPos.php",
            "tprods/getXastromPos.php",
            "tprods/getSourceDetResults.php",
            "tprods/getLCData.php",
            "tprods/getSpecData.php",
        ],
    )
    def test_unknown_user(self, path: str) -> None:
        """No call answers a user who is not registered."""
        with running() as service:
            assert post(service, path, UserID="NO-ONE", JobID=1, what="lc") == {
                "OK": 0,
                "ERROR": "The user `NO-ONE` is not recognised / validated",
                "APIVersion": "1.12",
            }

    def test_other_peoples_jobs(self) -> None:
        """A job of someone else, and one that is not there, are refused with their number."""
        with running(users=("a@example.org", "b@example.org")) as service:
            job_id = submit(service)
            asked = post(service, "canceljob.php", UserID="b@example.org", JobID=job_id, what="lc")
            assert asked["ERROR"] == "Job 801 is not owned by user b@example.org"
            assert status(service, 999)["ERROR"] == "Job 999 does not exist"
            assert post(service, "checkProductStatus.php", JobID="one", what="lc")["OK"] == 0
            assert post(service, "checkProductStatus.php", JobID=True, what="lc")["OK"] == 0
            assert post(service, "checkProductStatus.php", JobID="801")["OK"] == 0

    @pytest.mark.parametrize("body", [b"", b"not json", b"[1]", b"null"])
    def test_no_json(self, body: bytes) -> None:
        """What is no JSON object is refused in the service's own manner, with HTTP 200."""
        with running() as service:
            answer = requests.post(f"{service.url}/getNumJobs.php", data=body, timeout=10)
            assert (answer.status_code, answer.json()["OK"]) == (200, 0)

    def test_paths_that_are_not_there(self) -> None:
        """A mistyped path is an HTML page with 404, a GET of a call an HTML page with 405."""
        with running() as service:
            for method, path, expected in [
                ("POST", "no_such.php", 404),
                ("GET", "getNumJobs.php", 405),
                ("POST", "tprods/USERPROD_1/lc.tar", 405),
                ("GET", "tprods/USERPROD_1/lc.tar", 404),
            ]:
                answer = requests.request(method, f"{service.url}/{path}", timeout=10)
                assert (answer.status_code, answer.headers["Content-Type"][:9]) == (expected, "text/html")

    def test_body_without_length(self) -> None:
        """A body of unknown length is refused, and the connection closed."""
        with running() as service:
            answer = requests.post(f"{service.url}/getNumJobs.php", data=iter([b"{}"]), timeout=10)
            assert (answer.status_code, answer.headers["Connection"]) == (411, "close")

    def test_loopback_only(self) -> None:
        """The service listens on loopback and nowhere else."""
        with running() as service:
            assert service.url.startswith("http://127.0.0.1:")

    def test_independent(self) -> None:
        """The emulator imports nothing of the package it stands against, and only pytest beside the library."""
        imported = set()
        for file in Path(prefect_xrt.emulator.__path__[0]).glob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.level == 0:
                    imported.add((node.module or "").split(".")[0])
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 1, file.name
        assert imported - set(sys.stdlib_module_names) == {"pytest"}


class TestStatus:
    def test_way_of_a_product(self) -> None:
        """A product is requested, queued, running and complete, by the service's clock."""
        with running(Scenario(default=Timeline.typical(requested_s=1, queue_s=10, run_s=100))) as service:
            job_id = submit(service)
            seen = []
            for step in (0, 1, 10, 99, 1):
                service.advance(step)
                answer = status(service, job_id)["lc"]
                seen.append((answer["statusCode"], answer["statusText"]))
            texts = [(1, "Requested"), (2, "Queued"), (3, "Running"), (3, "Running"), (4, "Complete")]
            assert seen == texts

    def test_speed(self) -> None:
        """The service's clock runs as many times faster as it is told."""
        seconds = [0.0]
        with running(speed=60, clock=lambda: seconds[0]) as service:
            job_id = submit(service)
            seconds[0] = 362 / 60 - 0.01
            assert code(service, job_id) == 3
            seconds[0] = 362 / 60 + 0.01
            assert code(service, job_id) == 4

    def test_looks(self) -> None:
        """A step can end after it was shown some times."""
        with running(Scenario(default=Timeline.of_looks((1, 2), (2, 1), (4,)))) as service:
            job_id = submit(service)
            assert [code(service, job_id) for _ in range(5)] == [1, 1, 2, 4, 4]

    def test_odd_codes(self) -> None:
        """Null, texts, numbers nobody knows, forgotten products, and the return from it all, are played."""
        odd = Timeline.of_looks((3, 1), (None, 1), ("3", 1), (7, 1), (-10, 1), (-2, 1), (4,))
        with running(Scenario(timelines={"lc": odd})) as service:
            job_id = submit(service)
            answers = [status(service, job_id).get("lc", {}) for _ in range(7)]
            assert [answer.get("statusCode", "absent") for answer in answers] == [
                3,
                None,
                "3",
                7,
                "absent",
                -2,
                4,
            ]
            assert answers[1]["statusText"] == answers[3]["statusText"] == "Unknown status"

    def test_what_the_job_has_not(self) -> None:
        """A product that the job has not is null and unknown, as documented."""
        with running() as service:
            unknown = {"statusCode": None, "statusText": "Unknown status", "progress": {"GotProgress": 0}}
            answer = status(service, submit(service), "lc,image,nonsense", "image")
            assert list(answer) == ["lc", "image", "nonsense", "OK", "JobID", "APIVersion"]
            assert answer["image"] == answer["nonsense"] == unknown
            assert answer["JobID"] == 801

    def test_astrometric_position_waits(self) -> None:
        """On the common timeline an astrometric position shows 5 until the standard position has ended."""
        with running(Scenario(default=Timeline.of((1, 1), (3, 10), (4,)))) as service:
            job_id = submit(service, **REQUEST, doxastrom=1)
            seen = []
            for step in (0, 1, 9.9, 0.1, 9.9, 0.1):
                service.advance(step)
                seen.append((code(service, job_id, "psf"), code(service, job_id, "xastrom")))
            assert seen == [(1, 1), (3, 5), (3, 5), (4, 3), (4, 3), (4, 4)]

    def test_astrometric_position_after_a_cancelled_one(self) -> None:
        """A standard position that was cancelled keeps nobody waiting."""
        with running(Scenario(default=Timeline.of((3, 10), (4,)))) as service:
            job_id = submit(service, **REQUEST, doxastrom=1)
            assert code(service, job_id, "xastrom") == 5
            service.advance(4)
            post(service, "canceljob.php", JobID=job_id, what="psf")
            service.advance(9)
            assert code(service, job_id, "xastrom") == 3
            service.advance(1)
            assert code(service, job_id, "xastrom") == 4

    def test_names_and_numbers_choose_timelines(self) -> None:
        """A job's name goes before its number, the number before the product, the product before the rest."""
        at = {number: Timeline.of((number,)) for number in (11, 12, 13, 14)}
        scenario = Scenario(
            default=at[14],
            timelines={"lc": at[13]},
            sequence=[{"*": at[12]}] * 2,
            jobs={"M 31": {"lc": at[11]}},
        )
        with running(scenario) as service:
            for parameters in ({"name": "M 31"}, {}, {}, {"image": 1}):
                submit(service, **{**REQUEST, **LC, **parameters})
            seen = [code(service, job_id) for job_id in (801, 802, 803)]
            assert [*seen, code(service, 804, "image")] == [11, 12, 13, 14]

    def test_kill(self) -> None:
        """Where the scenario says so, a product that takes too long is killed."""
        with running(Scenario(default=Timeline.of((3,)), kill_after_s=43200)) as service:
            job_id = submit(service)
            service.advance(43199)
            assert code(service, job_id) == 3
            service.advance(1)
            assert code(service, job_id) == -3

    def test_poll_floor(self) -> None:
        """Where the scenario keeps looks apart, a look too soon is HTTP 429 with the time to wait."""
        with running(Scenario(enforce_poll_floor_s=60)) as service:
            job_id = submit(service)
            assert code(service, job_id) == 1
            service.advance(59)
            body = {"UserID": service.user_id, "JobID": job_id, "what": "lc"}
            answer = requests.post(f"{service.url}/checkProductStatus.php", json=body, timeout=10)
            assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
            service.advance(1)
            assert code(service, job_id) == 2

    def test_extra_answers(self) -> None:
        """A scenario can add to answers, or replace their API version."""
        warning = {"type": "old", "message": "please update"}
        extra: dict[str, dict[str, object]] = {
            "*": {"deprecationWarning": warning},
            "count": {"APIVersion": 0.1},
        }
        with running(Scenario(extra_answers=extra)) as service:
            answer = post(service, "getNumJobs.php")
            assert answer == {"OK": 1, "numJobs": 0, "APIVersion": 0.1, "deprecationWarning": warning}


class TestProgress:
    def test_only_where_asked_and_running(self) -> None:
        """Progress is there for what runs and was asked for, and says so where it cannot be had."""
        with running(
            Scenario(timelines={"image": Timeline.of((2,))}, default=Timeline.of((3, 9)))
        ) as service:
            submit(service, **REQUEST, **LC, image=1)
            answer = status(service, 801, "lc,image", "image")
            assert [answer[short]["progress"] for short in ("lc", "image")] == [{"GotProgress": 0}] * 2
            assert status(service, 801, "lc", "lc")["lc"]["progress"]["GotProgress"] == 1
        with running(Scenario(default=Timeline.of((3, 9)), progress=False)) as service:
            submit(service)
            assert status(service, 801, "lc", "lc")["lc"]["progress"] == {"GotProgress": 2}

    def test_labels_are_documented(self) -> None:
        """The steps of each product carry the documented labels, in their order."""
        assert [stage.label for stage in STAGES["lc"]] == [
            "Prepare data and centroid (if selected).",
            "Extract data.",
            "Binning light curve.",
            "Plotting light curve as image.",
        ]
        assert [stage.label for stage in STAGES["xastrom"]][-3:] == [
            "Searching for sources.",
            "Perform final fit.",
            "Calculate astrometric correction.",
        ]
        assert [stage.label for stage in STAGES["spec"][1].substeps] == ["Extract data.", "Fit spectrum."]
        assert len(STAGES["xastrom"]) == 12

    @pytest.mark.parametrize("product", ["lc", "spec", "psf", "enh", "xastrom", "image", "sourceDet"])
    def test_moves(self, product: str) -> None:
        """Steps go from not reached through one active to done, and never back; the clock shows with them."""
        waited = Timeline.of((2, 30), (3, 100), (4,))
        with running(Scenario(timelines={product: waited})) as service:
            submit(service, **EVERYTHING)
            service.advance(30)
            before: list[int] = []
            extras = set()
            for second in range(100):
                detail = status(service, 801, product, product)[product]["progress"]
                steps = [step["StepStatus"] for step in detail["ProgressSteps"]]
                assert detail["TimeRunning"] == f"00:{second // 60:02d}:{second % 60:02d}"
                assert steps.count(1) == 1
                assert steps == sorted(steps, reverse=True) or steps.index(1) == steps.count(2)
                assert all(now >= then for now, then in zip(steps, before, strict=False))
                extras |= {step["StepExtra"] for step in detail["ProgressSteps"] if "StepExtra" in step}
                before = steps
                service.advance(1)
            assert before[-1] == 1
            assert ("PreProgress" in detail) == (product == "enh")
            if product == "xastrom":
                assert "Working on observation 2 / 8" in extras
            if product == "spec":
                assert "Working on spectrum: Obs_00966554001 (2/8)" in extras

    def test_substeps_cycle(self) -> None:
        """The steps inside a repeated step come round again for each spectrum."""
        with running(Scenario(timelines={"spec": Timeline.of((3, 1000), (4,))})) as service:
            submit(service, **EVERYTHING)
            seen = []
            for _ in range(99):
                service.advance(10)
                steps = status(service, 801, "spec", "spec")["spec"]["progress"]["ProgressSteps"]
                seen.append(tuple(step["StepStatus"] for step in steps[1]["SubStep"]))
            turns = [pair for pair, _ in itertools.groupby(seen)]
            assert turns == [(0, 0), *[(1, 0), (2, 1)] * 8]


class TestCancel:
    def test_codes(self) -> None:
        """What waits or runs is cancelled, what has ended is not, what was never asked for is unknown."""
        scenario = Scenario(default=Timeline.of((2,)), timelines={"lc": Timeline.of((4,))})
        with running(scenario) as service:
            submit(service, **REQUEST, **LC, image=1)
            assert post(service, "canceljob.php", JobID=801, what="lc,image,spec") == {
                "JobID": 801,
                "OK": 2,
                "status": {
                    "lc": "Job could not be cancelled - has it already finished?",
                    "image": "Job cancelled OK",
                    "spec": "There is no record of this job",
                },
                "statusCodes": {"lc": 1, "image": 0, "spec": 2},
                "APIVersion": "1.12",
            }
            answer = status(service, 801, "image")["image"]
            assert (answer["statusCode"], answer["statusText"]) == (-4, "Cancelled at your request")
            assert fetch(service, "image.tar").status_code == 404

    def test_all_cancelled(self) -> None:
        """Where all could be cancelled the answer is 1, and the job is no longer counted."""
        with running() as service:
            job_id = submit(service)
            assert post(service, "getNumJobs.php")["numJobs"] == 1
            assert post(service, "canceljob.php", JobID=job_id, what="lc")["OK"] == 1
            assert post(service, "getNumJobs.php")["numJobs"] == 0

    def test_odd_codes(self) -> None:
        """An unknown code cannot be cancelled for a reason of its own."""
        timelines = {"lc": Timeline.of((7,)), "image": Timeline.of((None,)), "psf": Timeline.of((-10,))}
        with running(Scenario(timelines=timelines)) as service:
            submit(service, **REQUEST, **LC, image=1, dopsf=1)
            answer = post(service, "canceljob.php", JobID=801, what="lc,image,psf")
            assert answer["statusCodes"] == {"lc": 3, "image": 4, "psf": 2}


class TestHistory:
    def test_date(self) -> None:
        """Answers are dated by the calendar that was given, in whatever zone, whatever the service's clock says."""
        zone = timezone(timedelta(hours=2))
        with running(utcnow=lambda: datetime(2020, 7, 23, 19, 29, 1, tzinfo=zone)) as service:
            service.advance(1000)
            for answer in (
                requests.post(f"{service.url}/getNumJobs.php", json={}, timeout=10),
                requests.get(service.url, timeout=10),
            ):
                assert answer.headers["Date"] == "Thu, 23 Jul 2020 17:29:01 GMT"

    def test_list(self) -> None:
        """The job list is newest first, with the documented keys and no others."""
        calendar = [datetime(2020, 7, 23, 17, 29, 1, tzinfo=UTC)]
        with running(utcnow=lambda: calendar[0]) as service:
            submit(service)
            calendar[0] = datetime(2020, 7, 23, 17, 32, 29, tzinfo=UTC)
            submit(service, **REQUEST, spec=1, specz=0, sourceDet=1, detobs="all")
            newest, oldest = post(service, "listOldJobs.php")["jobs"]
            assert newest == {
                "JobID": 802,
                "Name": "GRB 200416A",
                "DateSubmitted": "2020-07-23 17:32:29",
                "LightCurve": False,
                "Spectrum": True,
                "StandardPos": False,
                "EnhancedPos": False,
                "AstromPos": False,
                "Image": False,
                "hasProd": True,
            }
            assert (oldest["JobID"], oldest["LightCurve"]) == (801, True)

    def test_others_are_not_listed(self) -> None:
        """A user sees only their own jobs."""
        with running(users=("a@example.org", "b@example.org")) as service:
            submit(service)
            assert post(service, "listOldJobs.php", UserID="b@example.org")["jobs"] == []

    def test_late_list(self) -> None:
        """A scenario can let a new job stay missing from the list for a while."""
        with running(Scenario(list_delay_s=30)) as service:
            submit(service)
            assert post(service, "listOldJobs.php")["jobs"] == []
            service.advance(30)
            assert len(post(service, "listOldJobs.php")["jobs"]) == 1

    def test_expiry(self) -> None:
        """Some time after the end the files are gone, and the list says so."""
        with running(Scenario(default=Timeline.of((3, 10), (4,)), expire_after_s=100)) as service:
            submit(service)
            service.advance(109)
            assert fetch(service, "lc.tar").status_code == 200
            service.advance(1)
            assert fetch(service, "lc.tar").status_code == 404
            assert post(service, "listOldJobs.php")["jobs"][0]["hasProd"] is False
            assert code(service, 801) == 4
            assert post(service, "tprods/getLCData.php", JobID=801)["OK"] == 0

    def test_old_job(self) -> None:
        """An old job gives its parameters and its URL again."""
        with running() as service:
            submitted = post(service, "run_userobject.php", **REQUEST, **LC)
            old = post(service, "getOldProduct.php", oldJob=801)
            assert (old["jobPars"], old["URL"]) == (submitted["jobPars"], submitted["URL"])


def unpack(content: bytes) -> dict[str, bytes]:
    """Read an archive of any of the three formats."""
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as bundle:
            assert bundle.testzip() is None
            return {name: bundle.read(name) for name in bundle.namelist()}
    with tarfile.open(fileobj=io.BytesIO(content)) as bundle:
        files = {info.name: bundle.extractfile(info) for info in bundle.getmembers() if info.isfile()}
        return {name: file.read() for name, file in files.items() if file}


class TestFiles:
    @pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
    @pytest.mark.parametrize("product", ALL)
    def test_archives(self, product: str, form: str) -> None:
        """Each product comes in each format, below the job's directory, the same at every request."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            answer = fetch(service, f"{product}.{form}")
            assert answer.status_code == 200
            files = unpack(answer.content)
            assert {name.split("/")[0] for name in files} == {"USERPROD_801"}
            assert {name.split("/")[1] for name in files} == {product}
            assert f"USERPROD_801/{product}/success.txt" in files
            assert fetch(service, f"{product}.{form}").content == answer.content

    def test_formats_agree(self) -> None:
        """The three formats hold the same files."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            tar, zipped, packed = (
                unpack(fetch(service, f"all.{form}").content) for form in ("tar", "zip", "tar.gz")
            )
            assert tar == packed
            assert {name: data for name, data in zipped.items() if not name.endswith("/")} == tar

    def test_all_holds_what_is_ready(self) -> None:
        """The whole bundle holds the files of what is complete, and an empty directory for the rest."""
        timelines = {"lc": Timeline.of((4,)), "image": Timeline.of((-1,))}
        with running(Scenario(timelines=timelines)) as service:
            submit(service, **REQUEST, **LC, image=1)
            with zipfile.ZipFile(io.BytesIO(fetch(service, "all.zip").content)) as bundle:
                names = bundle.namelist()
            assert "USERPROD_801/lc/curve.qdp" in names
            assert [name for name in names if "/image" in name] == ["USERPROD_801/image/"]

    def test_nothing_ready(self) -> None:
        """What is not complete, not asked for or no format is a 404 page, and so is a bundle of nothing."""
        with running() as service:
            submit(service)
            for path in ("lc.tar", "spec.tar", "all.zip", "lc.rar", "lc/curve.qdp", "../lc.tar"):
                assert fetch(service, path).status_code == 404, path
            assert fetch(service, "").status_code == 200

    def test_light_curve(self) -> None:
        """The numbers in `curve.qdp` are those of the light curve call."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            answer = post(service, "tprods/getLCData.php", JobID=801, nosys="no", incbad="no")
            curve = unpack(fetch(service, "lc.tar").content)["USERPROD_801/lc/curve.qdp"].decode()
            lines = list(csv.reader(io.StringIO(curve), delimiter="\t"))
            rows = [line for line in lines if line and line[0][:1].isdigit()]
            expected = [row[:6] for name in ("WT", "PC", "PCUL") for row in answer[f"{name}Data"]["data"]]
            assert rows == expected
            assert lines[0] == ["READ TERR 1 2"]
            assert requests.get(answer["PCData"]["URL"], timeout=10).text.startswith(
                "READ TERR 1\n!PCCURVE.qdp"
            )

    def test_positions(self) -> None:
        """The positions in the archives are those of the position calls."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            found = {
                short: post(service, f"tprods/get{name}Pos.php", JobID=801)
                for short, name in {"psf": "PSF", "enh": "Enh", "xastrom": "Xastrom"}.items()
            }
            files = unpack(fetch(service, "all.tar").content)
            standard = files["USERPROD_801/psf/results.dat"].decode().rstrip("\n").split("\t")
            enhanced = files["USERPROD_801/enh/success.txt"].decode().splitlines()
            corrected = files["USERPROD_801/xastrom/corrpos.dat"].decode().split("\t")
            assert len(standard) == len(enhanced) == 11
            assert [standard[at] for at in (0, 1, 4)] == [found["psf"][key] for key in ("RA", "Dec", "Err90")]
            assert [enhanced[at] for at in (6, 7, 10)] == [
                found["enh"][key] for key in ("RA", "Dec", "Err90")
            ]
            assert corrected[:2] == [found["xastrom"][key] for key in ("RA", "Dec")]
            assert found["psf"]["FromSXPS"] == 0
            assert "FromSXPS" not in found["enh"]
            assert abs(float(found["psf"]["RA"]) - 335.6985) < 1e-3
            assert post(service, "tprods/getAstromPos.php", JobID=801) == found["xastrom"]

    def test_no_position(self) -> None:
        """Complete does not mean found: the archive and the call say so alike."""
        with running(Scenario(default=Timeline.of((4,)), no_position=("psf", "xastrom"))) as service:
            submit(service, **EVERYTHING)
            files = unpack(fetch(service, "all.tar").content)
            assert post(service, "tprods/getAstromPos.php", JobID=801)["GotPos"] == 0
            assert files["USERPROD_801/psf/results.dat"] == b"NOPOS\n"
            assert "USERPROD_801/xastrom/NOCORR" in files
            assert "USERPROD_801/xastrom/corrpos.dat" not in files

    def test_catalogue_position(self) -> None:
        """A position from the catalogue is answered and filed as such."""
        with running(READY) as service:
            submit(service, **REQUEST, dopsf=1, useSXPS=1)
            answer = post(service, "tprods/getPSFPos.php", JobID=801)
            lines = unpack(fetch(service, "psf.zip").content)["USERPROD_801/psf/INSXPS"].decode().splitlines()
            assert (answer["FromSXPS"], answer["WhichSXPS"]) == (1, "2SXPS")
            assert lines[1:4] == [answer["RA"], answer["Dec"], answer["Err90"]]

    def test_spectra(self) -> None:
        """Each spectrum of the call is an archive of its own in the bundle, and at its own address."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            fits = post(service, "tprods/getSpecData.php", JobID=801)
            files = unpack(fetch(service, "spec.tar.gz").content)
            assert fits["rnames"][0] == "Obs_00966554000"
            assert len(fits["rnames"]) == 8
            for name in fits["rnames"]:
                nested = files[f"USERPROD_801/spec/{name}.tar.gz"]
                assert f"{name}pc.pi" in unpack(nested)
                assert requests.get(fits[name]["DataFile"], timeout=10).content == nested
            first = fits["Obs_00966554000"]
            assert first["Modes"] == ["WT", "PC"]
            assert first["PC"]["PowerLaw"]["GammaNeg"] < 0 < first["PC"]["PowerLaw"]["GammaPos"]
            assert fits[fits["rnames"][-1]]["PC"]["PowerLaw"] == {"NOFIT": 1}
            assert requests.get(first["PC"]["PowerLaw"]["Image"], timeout=10).content[:6] == b"GIF89a"

    @pytest.mark.parametrize(
        ("parameters", "names"),
        [
            ({"timeslice": "single"}, ["interval0"]),
            (
                {"timeslice": "user", "rname1": "early!", "gti1": "0-9", "rname2": "la te", "gti2": "9-99"},
                ["early", "late"],
            ),
        ],
    )
    def test_spectrum_names(self, parameters: dict[str, Any], names: list[str]) -> None:
        """Spectra are named as documented: `interval0`, or the user's labels without special characters."""
        with running(READY) as service:
            submit(service, **REQUEST, spec=1, specz=1, zval=0.3, doNotFit=1, **parameters)
            fits = post(service, "tprods/getSpecData.php", JobID=801)
            assert fits["rnames"] == names
            assert fits[names[0]]["PC"]["NOFIT"] == 1

    def test_images(self) -> None:
        """Each line of `images.log` has its FITS image and its picture."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            files = unpack(fetch(service, "image.zip").content)
            assert files["USERPROD_801/image/images.log"] == b"1\t0.3\t10\n2\t1\t4\n"
            assert gzip.decompress(files["USERPROD_801/image/image2.img.gz"]) == fits_image()
            assert files["USERPROD_801/image/image2.gif"][:6] == b"GIF89a"

    def test_sources(self) -> None:
        """Sources come per band, every value a text; the bands are those that were asked for."""
        with running(READY) as service:
            submit(service, **EVERYTHING)
            answer = post(service, "tprods/getSourceDetResults.php", JobID=801)
            assert list(answer) == ["OK", "Total", "Soft", "Medium", "Hard", "APIVersion"]
            assert all(isinstance(value, str) for source in answer["Total"] for value in source.values())
            assert answer["Total"][0]["sno"] == "1"

    @pytest.mark.parametrize(
        ("nosys", "incbad", "expected"),
        [
            ("no", "no", ["WT", "WTHard", "WTSoft", "WTHR", "PC", "PCHard", "PCSoft", "PCHR", "PCUL"]),
            ("yes", "yes", ["WT_nosys_incbad", "PC_incbad"]),
            ("both", "both", ["WT", "WT_nosys", "WT_incbad", "WT_nosys_incbad", "PC", "PC_incbad"]),
        ],
    )
    def test_datasets(self, nosys: str, incbad: str, expected: list[str]) -> None:
        """Datasets are named by mode, kind and what is left in or out; rejected points make them longer."""
        with running(READY) as service:
            submit(service)
            answer = post(service, "tprods/getLCData.php", JobID=801, nosys=nosys, incbad=incbad)
            assert set(expected) <= set(answer["Datasets"])
            assert answer["Binning"] == "Counts"
            assert answer["T0"] == 608713541.952
            lengths = {name: len(answer[f"{name}Data"]["data"]) for name in answer["Datasets"]}
            assert lengths.get("PC_incbad", 99) > lengths.get("PC", 0)

    def test_observation_cells(self) -> None:
        """Binned by observation, each point names its own in the service's manner; days are days."""
        with running(READY) as service:
            submit(service, **REQUEST, lc=1, binMeth="obsid", lctimetype="m")
            answer = post(service, "tprods/getLCData.php", JobID=801)
            cell = dict(zip(answer["PCData"]["columns"], answer["PCData"]["data"][0], strict=True))
            assert cell["ObsID"] == "::ObsID=966554000"
            assert answer["TimeFormat"] == "MJD"
            assert 58955 < float(cell["Time"]) < 58956

    @pytest.mark.parametrize("binning", ["obsid", "snapshot", "time"])
    def test_new_observations(self, binning: str) -> None:
        """A later job of a name has the observations that are new since, and all that was there as it was."""
        scenario = Scenario(default=READY.default, new_observations=(0, 2))
        with running(scenario) as service:
            request = {**REQUEST, "lc": 1, "binMeth": binning, "pcbin": 10, "wtbin": 10}
            for name in ("GRB 200416A", "GK Per", "GRB 200416A", "GRB 200416A"):
                submit(service, **{**request, "name": name})
            bins = {
                job: [
                    point
                    for mode in ("WT", "PC")
                    for point in post(service, "tprods/getLCData.php", JobID=job, incbad="yes")[
                        f"{mode}_incbadData"
                    ]["data"]
                ]
                for job in service.jobs
            }
            seen = {job: service.jobs[job].results.observations for job in service.jobs}
            assert seen[801] == seen[803] == seen[804][:-2]
            assert len(seen[802]) == len(seen[801])
            assert bins[801] == bins[803]
            assert all(point in bins[804] for point in bins[801])
            new = [point for point in bins[804] if point not in bins[801]]
            assert min(float(point[0]) for point in new) > 900
            assert len(new) == len(bins[801]) / 4

    def test_retrieve_before_the_end(self) -> None:
        """Before a product is complete there is nothing to retrieve; what was not asked for is refused."""
        with running() as service:
            submit(service, **REQUEST, **LC, dopsf=1)
            assert post(service, "tprods/getPSFPos.php", JobID=801)["GotPos"] == 0
            assert post(service, "tprods/getLCData.php", JobID=801)["OK"] == 0
            assert post(service, "tprods/getEnhPos.php", JobID=801)["OK"] == 0

    def test_other_origin(self) -> None:
        """A scenario can keep the files somewhere else."""
        with running(Scenario(file_url_origin="http://files.example")) as service:
            url = post(service, "run_userobject.php", **REQUEST, **LC)["URL"]
            assert url == "http://files.example/user_objects/tprods/USERPROD_801"


class TestRanges:
    @pytest.mark.parametrize(
        ("asked", "part"),
        [("bytes=0-9", slice(0, 10)), ("bytes=100-", slice(100, None)), ("bytes=-7", slice(-7, None))],
    )
    def test_part(self, asked: str, part: slice) -> None:
        """A part of a file comes as such."""
        with running(READY) as service:
            submit(service)
            whole = fetch(service, "lc.tar.gz")
            answer = fetch(service, "lc.tar.gz", Range=asked)
            assert (answer.status_code, answer.content) == (206, whole.content[part])
            size = len(whole.content)
            start, stop, _ = part.indices(size)
            assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{size}"
            assert whole.headers["Accept-Ranges"] == "bytes"
            assert answer.headers["ETag"] == whole.headers["ETag"]

    def test_outside(self) -> None:
        """A part that lies behind the end is refused with the size."""
        with running(READY) as service:
            submit(service)
            size = len(fetch(service, "lc.zip").content)
            answer = fetch(service, "lc.zip", Range=f"bytes={size}-")
            assert (answer.status_code, answer.headers["Content-Range"]) == (416, f"bytes */{size}")

    @pytest.mark.parametrize("asked", ["bytes=0-1,4-5", "lines=1-2", "bytes=-", "bytes=9-2"])
    def test_ignored(self, asked: str) -> None:
        """What cannot be read as one part is answered with the whole."""
        with running(READY) as service:
            submit(service)
            assert fetch(service, "lc.zip", Range=asked).status_code == 200

    def test_condition(self) -> None:
        """A part is sent only while the file is still the one it was."""
        with running(READY) as service:
            submit(service)
            headers = fetch(service, "lc.tar").headers
            for condition, expected in (
                (headers["ETag"], 206),
                (headers["Last-Modified"], 206),
                ('"other"', 200),
            ):
                answer = fetch(service, "lc.tar", **{"Range": "bytes=5-", "If-Range": condition})
                assert answer.status_code == expected

    def test_off(self) -> None:
        """A scenario can do without parts."""
        with running(Scenario(default=Timeline.of((4,)), allow_range=False)) as service:
            submit(service)
            answer = fetch(service, "lc.tar", Range="bytes=5-")
            assert (answer.status_code, answer.headers["Accept-Ranges"]) == (200, "none")

    def test_head(self) -> None:
        """The head of a file tells its size."""
        with running(READY) as service:
            submit(service)
            address = f"{service.url}/tprods/USERPROD_801/lc.tar"
            head = requests.head(address, timeout=10)
            assert (head.status_code, head.content) == (200, b"")
            assert int(head.headers["Content-Length"]) == len(fetch(service, "lc.tar").content)


class TestLargeFiles:
    @pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
    def test_padding(self, form: str) -> None:
        """A padded archive is as valid as it is large."""
        files = {"lc": {"curve.qdp": b"READ\n"}}
        content = bytes(pack("USERPROD_1", files, form, padding_bytes=1_000_003))
        assert len(unpack(content)["USERPROD_1/lc/events.evt"]) == 1_000_003
        assert len(content) > 1_000_003

    @pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
    def test_two_gigabytes(self, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file of two gigabytes is known to its size without being held or read."""
        monkeypatch.setattr(Blob, "crc32", lambda _: 0)
        blob = pack("USERPROD_1", {"lc": {"curve.qdp": b"READ\n"}}, form, padding_bytes=2 * 2**30)
        assert 2 * 2**30 < len(blob) < 2 * 2**30 + 10**6
        assert sum(len(part) for part in blob.parts if isinstance(part, bytes)) < 100_000
        assert len(b"".join(blob.read(2**31 - 10, 2**31))) == 10

    def test_parts_of_repeated_bytes(self) -> None:
        """Any range of a file is what slicing the whole would give."""
        blob = Blob((b"head", Repeated(b"abc", 4), b"tail"))
        whole = b"head" + b"abc" * 4 + b"tail"
        assert len(blob) == len(whole)
        for start, stop in itertools.combinations(range(len(whole) + 1), 2):
            assert b"".join(blob.read(start, stop)) == whole[start:stop]

    def test_over_the_wire(self) -> None:
        """A padded archive arrives whole."""
        with running(Scenario(default=Timeline.of((4,)), file_padding_bytes=300_000)) as service:
            submit(service)
            assert "USERPROD_801/lc/events.evt" in unpack(fetch(service, "lc.tar.gz").content)


class TestRebin:
    def ask(self, service: Emulator, function: str, **body: Any) -> dict[str, Any]:
        """Call `/API/main.php`."""
        body = {"APIFunc": function, "APIVersion": "1.0", **body}
        answer: dict[str, Any] = requests.post(f"{service.origin}/API/main.php", json=body, timeout=10).json()
        return answer

    def test_rebin(self) -> None:
        """A light curve is binned again in a job of its own, with its own numbers and files."""
        with running(Scenario(default=Timeline.of((4,)), rebin=Timeline.of((2, 5), (3, 5), (4,)))) as service:
            submit(service)
            rebin_id = self.ask(service, "rebinLightCurve", type="UOB_LC", objectID="801", binMeth="obsid")[
                "JobID"
            ]
            assert self.ask(service, "checkRebinStatus", JobID=rebin_id)["text"] == "Queued"
            assert "ERROR" in self.ask(service, "downloadLightCurve", type="REBIN_LC", objectID=rebin_id)
            service.advance(10)
            assert self.ask(service, "checkRebinStatus", JobID=rebin_id)["status"] == 4
            curve = self.ask(service, "downloadLightCurve", type="REBIN_LC", objectID=rebin_id, incbad="yes")
            assert curve["Binning"] == "Observation"
            assert len(curve["PC_incbadData"]["data"]) == 8
            assert requests.get(curve["PC_incbadData"]["URL"], timeout=10).status_code == 200

    @pytest.mark.parametrize("asked", ["s", "sec", "m", "mjd", "MJD", None])
    @pytest.mark.parametrize("before", ["s", "m"])
    def test_time_format(self, before: str, asked: str | None) -> None:
        """Times are in the format asked for, as those of a job that is built with it; else they stay as they are."""
        with running(Scenario(default=Timeline.of((4,)), rebin=Timeline.of((4,)))) as service:
            submit(service, **REQUEST, lc=1, binMeth="obsid", lctimetype=before)
            submit(service, **REQUEST, lc=1, binMeth="snapshot", lctimetype=asked or before)
            built = post(service, "tprods/getLCData.php", JobID=802)
            self.ask(
                service,
                "rebinLightCurve",
                type="UOB_LC",
                objectID=801,
                binMeth="snapshot",
                **({"timeFormat": asked} if asked else {}),
            )
            again = self.ask(service, "downloadLightCurve", type="REBIN_LC", objectID=1, nosys="no")
            assert again["TimeFormat"] == ("MJD" if (asked or before).lower() in ("m", "mjd") else "MET")
            assert again["Binning"] == "Snapshot"
            assert again["Datasets"] == built["Datasets"]
            for name in built["Datasets"]:
                assert again[f"{name}Data"]["data"] == built[f"{name}Data"]["data"]

    @pytest.mark.filterwarnings("ignore")  # the official client warns of itself
    def test_time_format_to_clients(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What this package asks for and what the official client asks for is the same light curve, in MJD."""
        theirs = pytest.importorskip("swifttools.ukssdc.data.download", exc_type=ImportError)
        with (
            running(Scenario(default=Timeline.of((4,)), rebin=Timeline.of((4,)))) as service,
            XRTClient(service.user_id, service.url) as client,
        ):
            monkeypatch.setattr(theirs.base, "APIURL", f"{service.origin}/API/main.php")
            job = client.attach(submit(service))
            assert client.retrieve_light_curve(job).time_system != "MJD"
            rebin = client.submit_rebin(job, LightCurve(binning="obsid", time_format="m"))
            ours = client.retrieve_rebinned_light_curve(rebin)
            assert ours.time_system == "MJD"
            rebin_id = theirs._rebinLightCurve("UOB_LC", job.id, binMeth="obsid", timeFormat="MJD")
            data = theirs._getLightCurve("REBIN_LC", rebin_id, returnData=True, saveData=False, incbad="no")
            assert (data["TimeFormat"], data["Datasets"]) == ("MJD", list(ours.curves))
            assert data["PC"]["Time"].tolist() == ours["PC"].columns["Time"].tolist()
            assert 58955 < data["PC"]["Time"][0] < 58956

    def test_cancel(self) -> None:
        """A rebin job can be cancelled while it has not ended, and only then."""
        with running() as service:
            submit(service)
            rebin_id = self.ask(service, "rebinLightCurve", type="UOB_LC", objectID=801)["JobID"]
            assert service.rebins == {rebin_id: 2}
            assert self.ask(service, "cancelRebin", JobID=rebin_id)["OK"] == 1
            assert "OK" not in self.ask(service, "cancelRebin", JobID=rebin_id)
            assert self.ask(service, "checkRebinStatus", JobID=rebin_id)["status"] == -4
            assert service.rebins == {rebin_id: -4}

    @pytest.mark.parametrize(
        ("kind", "product", "expected"),
        [
            ("null-codes", None, {"status": None, "text": "Unknown status"}),
            ("text-codes", "lc", {"status": "3", "text": "Running"}),
            ("missing-products", None, {}),
            ("null-codes", "image", {"status": 3, "text": "Running"}),
        ],
    )
    def test_status_faults(self, kind: str, product: str | None, expected: dict[str, Any]) -> None:
        """The code can be spoilt as that of a product; what is no status is left alone."""
        with running(Scenario(rebin=Timeline.of((3,)))) as service:
            submit(service)
            service.add_fault(Fault("rebin", kind, product=product))
            assert self.ask(service, "rebinLightCurve", type="UOB_LC", objectID=801)["JobID"] == 1
            first, second = (self.ask(service, "checkRebinStatus", JobID=1) for _ in range(2))
            assert {name: first[name] for name in ("status", "text") if name in first} == expected
            assert second["status"] == 3

    def test_refusals(self) -> None:
        """What is not there is an error with a code and a text."""
        with running() as service:
            assert self.ask(service, "checkRebinStatus", JobID=77)["ERRORTEXT"] == "No such rebin job"
            assert "ERROR" in self.ask(service, "rebinLightCurve", type="UOB_LC", objectID=801)
            assert "ERROR" in self.ask(service, "dance", JobID=1)


class TestFaults:
    def count(self, service: Emulator) -> requests.Response:
        """Make the simplest call."""
        return requests.post(f"{service.url}/getNumJobs.php", json={"UserID": service.user_id}, timeout=5)

    @pytest.mark.parametrize(
        ("kind", "status_", "start"),
        [
            ("http-500", 500, b"<!DOCTYPE"),
            ("http-502-html", 502, b"<!DOCTYPE"),
            ("http-503", 503, b"<!DOCTYPE"),
            ("http-429", 429, b"<!DOCTYPE"),
            ("html-200", 200, b"<!DOCTYPE"),
            ("garbage", 200, b"\xfe"),
            ("truncated-json", 200, b'{"OK": 1'),
            ("list-instead-of-object", 200, b'[{"OK": 1'),
        ],
    )
    def test_answers(self, kind: str, status_: int, start: bytes) -> None:
        """Each fault that is an answer is played once, logged by its name, and over."""
        with running(Scenario(faults=[Fault("count", kind, retry_after=7)])) as service:
            answer = self.count(service)
            assert (answer.status_code, answer.content[: len(start)]) == (status_, start)
            assert answer.headers.get("Retry-After") == (
                "7" if kind in ("http-429", "http-503", "http-500", "http-502-html") else None
            )
            if kind != "list-instead-of-object":
                with pytest.raises(requests.JSONDecodeError):
                    answer.json()
            assert self.count(service).json()["OK"] == 1
            assert [call.fault for call in service.calls("count")] == [kind, None]
            assert [call.status for call in service.calls("count")] == [status_, 200]

    @pytest.mark.parametrize(
        ("kind", "jobs"), [("reset-before", 0), ("reset-after", 1), ("hang", 0), ("hang-after", 1)]
    )
    def test_lost_answers(self, kind: str, jobs: int) -> None:
        """A lost answer is a broken connection; whether the job exists is what its name says."""
        with running() as service:
            service.add_fault(Fault("submit", kind, seconds=0))
            with pytest.raises(requests.ConnectionError):
                submit(service)
            assert (len(service.jobs), service.calls("submit")[0].status) == (jobs, None)

    def test_gateway_after_the_fact(self) -> None:
        """A gateway's page can hide that the service took the job."""
        with running(Scenario(faults=[Fault("submit", "http-502-html", effect=True)])) as service:
            body = {"UserID": service.user_id, **REQUEST, **LC}
            assert requests.post(f"{service.url}/run_userobject.php", json=body, timeout=5).status_code == 502
            assert list(service.jobs) == [801]

    def test_hang(self) -> None:
        """A service that hangs is seen as a timeout, and still stops at once."""
        service = Emulator(Scenario(faults=[Fault("count", "hang", seconds=3600)]))
        service.start()
        with pytest.raises(requests.ReadTimeout):
            requests.post(f"{service.url}/getNumJobs.php", json={"UserID": service.user_id}, timeout=0.05)
        before = time.monotonic()
        service.stop()
        assert time.monotonic() - before < 2
        assert service.log[0].fault == "hang"

    def test_slow_and_trickle(self) -> None:
        """A slow answer, and one that comes byte by byte, are whole in the end."""
        with running() as service:
            for kind in ("slow", "trickle"):
                service.add_fault(Fault("count", kind, seconds=0))
                assert self.count(service).json()["OK"] == 1

    def test_status_faults(self) -> None:
        """Codes can come as null, as text or not at all, for all products or one."""
        with running(Scenario(default=Timeline.of((3,)))) as service:
            submit(service, **REQUEST, **LC, image=1)
            for kind, product in (("null-codes", None), ("text-codes", None), ("missing-products", "lc")):
                service.add_fault(Fault("status", kind, product=product))
            answers = [status(service, 801, "lc,image") for _ in range(3)]
            assert [
                [answer.get(short, {}).get("statusCode", "none") for short in ("lc", "image")]
                for answer in answers
            ] == [
                [None, None],
                ["3", "3"],
                ["none", 3],
            ]

    def test_truncated_file(self) -> None:
        """A file that breaks off is shorter than was announced, and the rest can be fetched."""
        with running(READY) as service:
            submit(service)
            whole = fetch(service, "lc.tar").content
            service.add_fault(Fault("file", "truncated-file", at_bytes=100, product="lc"))
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                fetch(service, "lc.tar")
            assert fetch(service, "lc.tar", Range="bytes=100-").content == whole[100:]

    def test_corrupt_file(self) -> None:
        """A corrupt file has the right length and wrong bytes in its middle."""
        with running(READY) as service:
            submit(service)
            whole = fetch(service, "lc.tar.gz").content
            service.add_fault(Fault("file", "corrupt-file"))
            broken = fetch(service, "lc.tar.gz").content
            different = [at for at, (good, bad) in enumerate(zip(whole, broken, strict=True)) if good != bad]
            assert different == list(range(len(whole) // 2, len(whole) // 2 + 16))

    def test_redirect(self) -> None:
        """A redirect points to another place and keeps the path."""
        with running() as service:
            service.add_fault(Fault("count", "redirect", location="http://127.0.0.1:9/"))
            address = f"{service.url}/getNumJobs.php"
            answer = requests.post(address, json={}, timeout=5, allow_redirects=False)
            assert answer.status_code == 307
            assert answer.headers["Location"] == "http://127.0.0.1:9/user_objects/getNumJobs.php"

    def test_connections_are_kept_and_cut_short(self) -> None:
        """Connections are kept for the next call, unless the fault closes them unannounced."""
        with running() as service:
            connection = http.client.HTTPConnection(
                "127.0.0.1", int(service.origin.rpartition(":")[2]), timeout=5
            )
            body = json.dumps({"UserID": service.user_id})

            def ask() -> http.client.HTTPResponse:
                connection.request("POST", "/user_objects/getNumJobs.php", body)
                answer = connection.getresponse()
                assert json.loads(answer.read())["OK"] == 1
                return answer

            ask()
            kept = connection.sock
            ask()
            assert connection.sock is kept
            service.add_fault(Fault("count", "short-keepalive"))
            assert ask().headers["Connection"] is None
            assert kept.recv(1) == b""
            connection.close()

    def test_times_and_after(self) -> None:
        """A fault waits for its turn, is played as often as it says, and can be called off."""
        with running() as service:
            service.add_fault(Fault("*", "http-500", times=2, after=1))
            assert [self.count(service).status_code for _ in range(4)] == [200, 500, 500, 200]
            service.add_fault(Fault("count", "http-503", times=-1))
            assert self.count(service).status_code == 503
            service.clear_faults()
            assert self.count(service).status_code == 200

    def test_probability(self) -> None:
        """Chance is drawn from the seed: the same at every run, and about as likely as it says."""
        runs = []
        for _ in range(2):
            with running(
                Scenario(faults=[Fault("count", "http-500", times=-1, probability=0.3, seed=4)])
            ) as service:
                runs.append([self.count(service).status_code for _ in range(60)])
        assert runs[0] == runs[1]
        assert 8 <= runs[0].count(500) <= 28

    @pytest.mark.parametrize(
        "options",
        [
            {"endpoint": "nowhere", "kind": "hang"},
            {"endpoint": "count", "kind": "earthquake"},
            {"endpoint": "count", "kind": "truncated-file"},
            {"endpoint": "submit", "kind": "null-codes"},
            {"endpoint": "count", "kind": "redirect"},
            {"endpoint": "count", "kind": "hang", "probability": 2},
        ],
    )
    def test_nonsense(self, options: dict[str, Any]) -> None:
        """A fault that could never be played is refused when it is written."""
        with pytest.raises(ScenarioError):
            Fault(**options)


class TestLog:
    def test_entries(self) -> None:
        """The log tells who asked what, when and of which job, and what was answered."""
        with running(READY, users=("a@example.org",)) as service:
            submit(service)
            service.advance(90)
            status(service, 801, "lc")
            fetch(service, "lc.tar.gz")
            post(service, "getOldProduct.php", oldJob="801")
            first, look, file, old = service.log
            assert (first.endpoint, first.user, first.job_id, first.at) == (
                "submit",
                "a@example.org",
                None,
                0,
            )
            assert (look.endpoint, look.job_id, look.what, look.at, look.status) == (
                "status",
                801,
                "lc",
                90,
                200,
            )
            assert (file.endpoint, file.user, file.job_id, file.what) == ("file", None, 801, "lc.tar.gz")
            assert (old.endpoint, old.job_id, old.method) == ("old_job", 801, "POST")
            assert first.body == {"UserID": "a@example.org", **REQUEST, **LC}
            assert "python-requests" in look.headers["User-Agent"]
            assert service.calls(job_id=801) == [look, file, old]
            assert service.calls("status") == [look]

    def test_misspelt_endpoint(self) -> None:
        """Asking the log for an endpoint that is not there is a mistake, not an empty list."""
        with running() as service, pytest.raises(ValueError, match="no such endpoint"):
            service.calls("stauts")


class TestEmulator:
    def test_life(self) -> None:
        """It starts once, stops as often as one likes, and keeps its log and jobs."""
        service = Emulator(READY)
        with pytest.raises(RuntimeError):
            _ = service.jobs
        with service:
            submit(service)
            with pytest.raises(RuntimeError):
                service.start()
        service.stop()
        assert (len(service.log), list(service.jobs)) == (1, [801])
        with pytest.raises(requests.ConnectionError):
            requests.get(service.url, timeout=1)

    def test_arguments(self) -> None:
        """Impossible arguments are refused."""
        with pytest.raises(ValueError, match="speed"):
            Emulator(speed=0)
        with pytest.raises(ValueError, match="user"):
            Emulator(users=())
        with running() as service, pytest.raises(ValueError, match="clock"):
            service.advance(-1)

    def test_port_taken(self) -> None:
        """A port that is taken is an error at once."""
        with running() as service, pytest.raises(OSError, match="in use"):
            Emulator(port=int(service.origin.rpartition(":")[2])).start()

    def test_many_at_once(self) -> None:
        """A thousand jobs from many threads each get an ID and a status of their own."""
        with running(Scenario(active_job_limit=2000)) as service:
            with ThreadPoolExecutor(8) as pool, requests.Session() as session:

                def job(_: int) -> int:
                    body = {"UserID": service.user_id, **REQUEST, **LC}
                    answer = session.post(f"{service.url}/run_userobject.php", json=body, timeout=30)
                    return int(answer.json()["JobID"])

                ids = list(pool.map(job, range(1000)))
            assert sorted(ids) == list(range(801, 1801))
            assert post(service, "getNumJobs.php")["numJobs"] == 1000
            assert len(post(service, "listOldJobs.php")["jobs"]) == 1000

    def test_fixtures(self, xrt_service: Emulator, xrt_service_factory: Callable[..., Emulator]) -> None:
        """The fixtures give fresh services, as many as wanted, that are fast and play any scenario."""
        failed = xrt_service_factory("failed")
        assert submit(xrt_service) == submit(failed) == 801
        failed.advance(60)
        assert code(failed, 801) == -1
        xrt_service.advance(400)
        assert code(xrt_service, 801) == 4


class TestScenarios:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("demo", {}),
            ("partly", {"spec": -1}),
            ("failed", dict.fromkeys(ALL, -1)),
            ("cancelled", {"spec": -4}),
            ("alarm", {"image": -3}),
            ("transient-alarm", {}),
            ("stuck", {"spec": 3}),
            ("slow", dict.fromkeys(ALL, 2)),
        ],
    )
    def test_named(self, name: str, expected: dict[str, int]) -> None:
        """Each scenario that can be asked for by name ends within half a minute as its name says."""
        with running(Scenario.find(name)) as service:
            submit(service, **EVERYTHING)
            for _ in range(30):
                service.advance(1)
                answer = status(service, 801, ",".join(ALL))
            seen = {short: answer[short]["statusCode"] for short in ALL}
            assert seen == {**dict.fromkeys(ALL, 4), **expected}

    def test_all_named_are_tested(self) -> None:
        """No named scenario is left out above."""
        marks = TestScenarios.test_named.pytestmark  # type: ignore[attr-defined]
        assert {case[0] for case in marks[0].args[1]} == set(NAMED)

    def test_demo_ends_one_after_the_other(self) -> None:
        """In the demonstration no two products end together, and all within 25 seconds."""
        ends = [sum(step.after_s or 0 for step in NAMED["demo"].timelines[short].steps) for short in ALL]
        assert len(set(ends)) == len(ALL)
        assert max(ends) == 25

    @pytest.mark.parametrize("ending", ["json", "toml"])
    def test_load(self, ending: str, tmp_path: Path) -> None:
        """A scenario is the same whether written in JSON, in TOML or in code."""
        texts = {
            "json": """{"default": [[1, 5], ["null", 1], {"code": "forgotten", "after_looks": 2}, [4]],
                "timelines": {"lc": [[3, 10]]}, "jobs": {"M 31": {"*": [[-1]]}}, "sequence": [{"psf": [[4]]}],
                "active_job_limit": 3, "expire_after_s": 10, "allow_range": false, "no_position": ["xastrom"],
                "extra_answers": {"count": {"APIVersion": 0.1}},
                "faults": [{"endpoint": "submit", "kind": "http-429", "retry_after": 3, "times": 2}]}""",
            "toml": """
                default = [[1, 5], ["null", 1], {code = "forgotten", after_looks = 2}, [4]]
                sequence = [{psf = [[4]]}]
                active_job_limit = 3
                expire_after_s = 10
                allow_range = false
                no_position = ["xastrom"]
                timelines.lc = [[3, 10]]
                jobs."M 31"."*" = [[-1]]
                extra_answers.count.APIVersion = 0.1
                [[faults]]
                endpoint = "submit"
                kind = "http-429"
                retry_after = 3
                times = 2
                """,
        }
        path = tmp_path / f"scenario.{ending}"
        path.write_text(texts[ending])
        assert Scenario.find(str(path)) == Scenario(
            default=Timeline((Step(1, 5), Step(None, 1), Step(-10, after_looks=2), Step(4))),
            timelines={"lc": Timeline.of((3, 10), (4,))},
            jobs={"M 31": {"*": Timeline.of((-1,))}},
            sequence=({"psf": Timeline.of((4,))},),
            active_job_limit=3,
            expire_after_s=10,
            allow_range=False,
            no_position=("xastrom",),
            extra_answers={"count": {"APIVersion": 0.1}},
            faults=(Fault("submit", "http-429", retry_after=3, times=2),),
        )

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("{", "cannot be read"),
            ("[]", "the scenario must be an object"),
            ('{"defualt": [[4]]}', "the scenario: unknown 'defualt'; known: default"),
            ('{"timelines": {"lightcurve": [[4]]}}', "timelines: unknown 'lightcurve'"),
            ('{"default": [[4, 1, 2]]}', r"default\[0\]: a step is"),
            ('{"default": [[true]]}', r"default\[0\]: a code is an integer"),
            ('{"default": [[1, -5]]}', r"default\[0\]: .* is no duration"),
            ('{"default": [[1, "soon"]]}', r"default\[0\]: "),
            ('{"default": [[4], [1, 1]]}', "default: only the last step"),
            ('{"default": []}', "default: a timeline needs"),
            ('{"active_job_limit": "many"}', "active_job_limit: 'many' is not of the kind"),
            ('{"expire_after_s": "later"}', "expire_after_s: 'later' is not of the kind float"),
            ('{"allow_range": 1}', "allow_range: 1 is not of the kind"),
            ('{"faults": [{"kind": "hang"}]}', r"faults\[0\]: a fault needs 'endpoint'"),
            ('{"faults": [{"endpoint": "count", "kind": "boom"}]}', r"faults\[0\]: no such fault: 'boom'"),
            (
                '{"faults": [{"endpoint": "count", "kind": "hang", "time": 1}]}',
                r"faults\[0\]: unknown 'time'",
            ),
            ('{"file_padding_bytes": -1}', "file_padding_bytes must be"),
            ('{"observations": 0}', "observations must be"),
            ('{"new_observations": [-1]}', "new_observations must not"),
            ('{"new_observations": [0, true]}', r"new_observations\[1\]: True is no"),
        ],
    )
    def test_mistakes(self, text: str, complaint: str, tmp_path: Path) -> None:
        """A mistake in a scenario file is named with its place."""
        path = tmp_path / "scenario.json"
        path.write_text(text)
        with pytest.raises(ScenarioError, match=f"scenario.json: {complaint}"):
            Scenario.load(path)

    def test_not_there(self, tmp_path: Path) -> None:
        """A name nobody knows and a file that is not there are told apart."""
        with pytest.raises(ScenarioError, match="no scenario 'dmeo': give one of alarm"):
            Scenario.find("dmeo")
        with pytest.raises(ScenarioError, match="cannot be read"):
            Scenario.find(str(tmp_path / "none.toml"))


class TestShell:
    def test_serve(self) -> None:
        """From a shell it says where it is and for whom, answers, and says what it did."""
        said: list[str] = []
        stop = threading.Event()

        def announce(line: str) -> None:
            said.append(line)
            if len(said) == 1:
                address = line.partition(" on ")[2].partition(" ")[0]
                answer = requests.post(
                    f"{address}/getNumJobs.php", json={"UserID": "me@example.org"}, timeout=5
                )
                assert answer.json()["numJobs"] == 0
                stop.set()

        serve("demo", port=0, speed=60, users=["me@example.org"], announce=announce, stop=stop)
        assert "scenario 'demo', speed 60" in said[0]
        assert said[1] == "stopped after 1 requests and 0 jobs"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_signals(self, number: signal.Signals) -> None:
        """Ctrl-C and termination stop it cleanly."""
        command = [sys.executable, "-u", "-m", "prefect_xrt.emulator", "--port", "0", "--speed", "60"]
        root = Path(prefect_xrt.emulator.__path__[0]).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert "Ctrl-C stops it" in process.stdout.readline()
            process.send_signal(number)
            assert process.wait(20) == 0
            assert process.stdout.read() == "stopped after 0 requests and 0 jobs\n"

    def test_bad_scenario(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A scenario that is not there ends the command with a message."""
        from prefect_xrt.emulator.__main__ import main  # noqa: PLC0415  # only this test needs it

        with pytest.raises(SystemExit) as left:
            main(["--scenario", "dmeo", "--port", "0"])
        assert left.value.code == 1
        assert "no scenario 'dmeo'" in capsys.readouterr().err


@pytest.mark.parametrize("draw", [pictures.plot, pictures.sky])
def test_pictures(draw: Callable[[], bytes]) -> None:
    """The pictures beside the files are whole GIFs, which a library reads to the end, and not of one colour."""
    with PIL.Image.open(io.BytesIO(draw())) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("GIF", (200, 150))
        assert picture.getextrema() == (0, 15)
