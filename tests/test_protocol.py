"""Hold `prefect_xrt.protocol` to account."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from prefect_xrt import protocol
from prefect_xrt.emulator import FORGOTTEN, Emulator, Scenario, Step, Timeline
from prefect_xrt.errors import (
    AnswerError,
    ConfigurationError,
    JobNotFoundError,
    ProductsError,
    RefusedError,
    RequestRefusedError,
    ServiceWarning,
    UnknownUserError,
    XRTError,
)
from prefect_xrt.protocol import CancelResult, Job, Outcome, ProductState, ProductStatus
from prefect_xrt.request import Product

SAMPLES = Path(__file__).parent / "samples" / "answers"
NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
USER = "frodo@mount.doom"


def sample(name: str) -> dict[str, Any]:
    """Return one of the service's documented answers, decoded as one that came over the wire."""
    return protocol.decode_json((SAMPLES / f"{name}.json").read_bytes())


def wire(value: object, **options: Any) -> dict[str, Any]:
    """Return what becomes of a value that comes over the wire."""
    return protocol.decode_json(json.dumps(value).encode(), **options)


def job(*products: Product, job_id: int = 1) -> Job:
    """Make a job; of all products unless some are named."""
    return Job(id=job_id, url="https://example.org/USERPROD_1", products=products or tuple(Product))


def looked(answer: dict[str, Any], *products: Product, job_id: int = 1) -> Outcome:
    """Decode the answer to a look."""
    checked = protocol.check_answer(answer)
    return protocol.decode_status(checked, job(job_id=job_id), products or tuple(Product), NOW)


def one(entry: object) -> ProductStatus:
    """Decode what an answer says of one product, the light curve."""
    return looked(wire({"OK": 1, "lc": entry}), Product.LIGHT_CURVE).statuses[Product.LIGHT_CURVE]


@pytest.fixture(autouse=True)
def forget_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every test see the service's notices for the first time."""
    monkeypatch.setattr(protocol, "_warned", set())


class TestDecodeJSON:
    @pytest.mark.parametrize(
        ("body", "content_type", "message"),
        [
            (b"<html><head><title>Down for\n repair</title></head></html>", "text/html", "titled 'Down for repair'"),
            (b"\n  <!DOCTYPE html><p>no title</p>", "", "A web page came instead of an answer"),
            (b"Service unavailable", "text/html; charset=UTF-8", "A web page came instead of an answer"),
            (b'{"OK": 1, "JobID": "80', "application/json", r"not JSON, or only a part of it \(22 bytes\)"),
            (b"", "application/json", r"not JSON, or only a part of it \(0 bytes\)"),
            (b"\xfe\xff\x00\xd8", "", "not JSON"),
            (b'[{"OK": 1}]', "", "a JSON list, not an object"),
            (b'"OK"', "", "a JSON str, not an object"),
            (b"null", "", "a JSON NoneType, not an object"),
            (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "", "nested"),
            (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "", "nested more than 100 levels"),
            (b'{"a": 1e999}', "", "a number that is none"),
            (b'{"a": [NaN]}', "", "a number that is none"),
            (b'{"a": "\\ud800"}', "", "half a character"),
            (b'{"\\udfff": 1}', "", "half a character"),
            (b'{"a": ' + b"9" * 5000 + b"}", "", "not JSON"),
            (b'{"a": [' + b"[]," * 10**6 + b"[]]}", "", "more than 1000000 values"),
        ],
    )  # fmt: skip
    def test_refuses(self, body: bytes, content_type: str, message: str) -> None:
        """What is not a whole JSON object of the service is refused with what it is."""
        with pytest.raises(AnswerError, match=message):
            protocol.decode_json(body, content_type)

    @pytest.mark.parametrize(
        "body", [b'{"a": "secret"', b"\xff secret", b'{"a":' * 10_000 + b"1" + b"}" * 10_000]
    )
    def test_drags_nothing_along(self, body: bytes) -> None:
        """An error brings along none of the exceptions that hold the whole answer."""
        with pytest.raises(AnswerError) as caught:
            protocol.decode_json(body)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)

    def test_takes_json_labelled_as_a_page(self) -> None:
        """An answer that PHP labels as HTML is still an answer."""
        assert protocol.decode_json(b'{"OK": 1}', "text/html") == {"OK": 1}

    @pytest.mark.parametrize("user_id", [USER, "name@mount.doom", "lc@mount.doom", "a.b+c@mount.doom"])
    def test_leaves_out_the_address(self, user_id: str) -> None:
        """The registered address is nowhere in an answer, whatever it holds and however it is spelt."""
        told = {"a": [{user_id: f"by {user_id.upper()}."}], "b": f"`{user_id}`"}
        assert wire(told, user_id=user_id) == {
            "a": [{"(your address)": "by (your address)."}],
            "b": "`(your address)`",
        }

    @pytest.mark.parametrize(
        "text", ["USERPROD_frodo@mount.doom", "?u=frodo%40mount.doom&x", "frodo@mount.doom_1"]
    )
    def test_leaves_out_other_spellings(self, text: str) -> None:
        """The address is left out within a name and in a URL's spelling, too."""
        data = protocol.decode_json(json.dumps({"x": text}).encode(), user_id="frodo@mount.doom")
        assert "frodo" not in str(data["x"])

    def test_leaves_out_the_address_in_a_title(self) -> None:
        """The title of a page is repeated without the registered address."""
        with pytest.raises(AnswerError) as caught:
            protocol.decode_json(f"<title>Sorry, {USER}</title>".encode(), user_id=USER)
        assert "titled 'Sorry, (your address)'" in str(caught.value)

    def test_keeps_words_that_hold_the_address(self) -> None:
        """An account that is also a word is not cut out of longer words."""
        assert wire({"name": "demonstration"}, user_id="demo") == {"name": "demonstration"}


class TestCheckAnswer:
    @pytest.mark.parametrize("ok", [1, "1", 1.0, 2, " 2 "])
    def test_yes(self, ok: object) -> None:
        """1 and 2 are a yes, also as text."""
        answer = {"OK": ok}
        assert answer is protocol.check_answer(answer)

    @pytest.mark.parametrize("ok", [None, True, "yes", [], {}, 0.5, 10**30])
    def test_no_ok(self, ok: Any) -> None:
        """An answer that does not say whether it is OK is not the service's."""
        with pytest.raises(AnswerError, match="does not say whether it is OK"):
            protocol.check_answer({"OK": ok})

    def test_missing_ok(self) -> None:
        """So is one without the entry."""
        with pytest.raises(AnswerError, match="does not say whether it is OK"):
            protocol.check_answer({"JobID": 1})

    @pytest.mark.parametrize("ok", [3, -1, "7"])
    def test_other_ok(self, ok: Any) -> None:
        """A number that the service does not document is not believed."""
        with pytest.raises(AnswerError, match="which the service does not document"):
            protocol.check_answer({"OK": ok})

    def test_reasons_name_our_fields(self) -> None:
        """The documented refusal is told with the names of the fields that the user typed."""
        with pytest.raises(RequestRefusedError) as caught:
            protocol.check_answer(sample("submit_reply_refused"), refusal=RequestRefusedError)
        assert str(caught.value) == (
            "There were problems with the parameters you supplied.\n"
            "  The following parameters are needed, but were not supplied:\n"
            "    dec_deg\n"
            "    centroid\n"
            "  The following parameters have invalid values:\n"
            "    position_error_arcmin is 0.01, but must be between 1 and 6\n"
            "No job was made: change the request, or wait where it says so, and run it again."
        )
        assert caught.value.reasons == (
            ("The following parameters are needed, but were not supplied:", ("dec_deg", "centroid")),
            (
                "The following parameters have invalid values:",
                ("position_error_arcmin is 0.01, but must be between 1 and 6",),
            ),
        )

    @pytest.mark.parametrize(
        ("reasons", "expected"),
        [
            ([{"label": "Missing:", "list": "cent"}], (("Missing:", ("centroid",)),)),
            ([{"label": "Missing:"}], (("Missing:", ()),)),
            ([{"list": ["cent", None, 5]}], (("", ("centroid", "5")),)),
            (["poserr is missing"], (("position_error_arcmin is missing", ()),)),
            ({"label": "Missing:"}, ()),
            ("Missing", ()),
            ([7, None], ()),
        ],
    )
    def test_odd_reasons(self, reasons: Any, expected: object) -> None:
        """Reasons in another shape are told as far as they can be read."""
        with pytest.raises(RefusedError) as caught:
            protocol.check_answer({"OK": 0, "ERROR": "No.", "listErr": reasons})
        assert expected == caught.value.reasons

    @pytest.mark.parametrize("error", [None, "", "  ", 5, ["no"]])
    def test_no_reason(self, error: Any) -> None:
        """A refusal without words is told as such."""
        with pytest.raises(RefusedError, match=r"^The service gave no reason\.$"):
            protocol.check_answer({"OK": 0, "ERROR": error})

    def test_reasons_alone(self) -> None:
        """`OK: 0` with nothing but a list of reasons is a refusal with reasons."""
        with pytest.raises(RefusedError, match=r"^The service refused\.\n  Needed:\n    centroid$"):
            protocol.check_answer({"OK": 0, "listErr": [{"label": "Needed:", "list": ["cent"]}]})

    def test_unknown_user(self) -> None:
        """The documented answer to an unknown address has its own error."""
        with pytest.raises(UnknownUserError, match="is not recognised / validated"):
            protocol.check_answer(sample("count_reply_unknown_user"))

    @pytest.mark.parametrize(
        "error", ["Job 147 is not owned by user (your address)", "Job 5 does not exist", "No such job"]
    )
    def test_job_not_found(self, error: str) -> None:
        """A job that is not the user's has its own error, in the documented words and others."""
        with pytest.raises(JobNotFoundError):
            protocol.check_answer({"OK": 0, "ERROR": error})

    @pytest.mark.parametrize(
        "refused",
        [
            {"ERROR": "The job was not made: unknown target"},
            {
                "ERROR": "Bad values",
                "listErr": [{"label": "Bad:", "list": ["binMeth `user` is not recognised"]}],
            },
        ],
    )
    def test_refused_request_is_not_mistaken(self, refused: dict[str, Any]) -> None:
        """Words about parameters are not taken for words about the user, or about a job."""
        with pytest.raises(RefusedError) as caught:
            protocol.check_answer({"OK": 0, **refused}, refusal=RequestRefusedError)
        assert RequestRefusedError is type(caught.value)

    def test_long_words_are_cut(self) -> None:
        """A message stays readable whatever the service says."""
        with pytest.raises(RefusedError) as caught:
            protocol.check_answer({"OK": 0, "ERROR": "x " * 10**6})
        assert len(caught.value.message) == 500


class TestNotices:
    @pytest.mark.parametrize(
        ("answer", "message"),
        [
            ({"deprecationWarning": {"type": "soon", "message": "Version 1 ends."}}, "a deprecation: Version 1 ends."),
            ({"deprecationWarning": "Version 1 ends."}, "a deprecation: Version 1 ends."),
            ({"APIVersion": "1.13"}, "version 1.13 of its interface, newer than 1.12"),
            ({"APIVersion": 2}, "version 2 of its interface, newer than 1.12"),
        ],
    )  # fmt: skip
    def test_once(self, answer: dict[str, Any], message: str) -> None:
        """A notice of the service is warned about, once."""
        with pytest.warns(ServiceWarning, match=message):
            protocol.check_answer({"OK": 1, **answer})
        protocol.check_answer({"OK": 1, **answer})

    @pytest.mark.parametrize(
        "version", [0.1, "1.12", "1.9", None, "soon", "1." * 30, "1" * 39 + ".5", "9" * 10**5, [], "1..2"]
    )
    def test_nothing_to_say(self, version: Any) -> None:
        """An older version, the same, and what is no version pass in silence."""
        assert {"OK": 1, "APIVersion": version} == protocol.check_answer({"OK": 1, "APIVersion": version})

    def test_also_with_a_refusal(self) -> None:
        """A notice that comes with a refusal is warned about too."""
        refusal = {"OK": 0, "ERROR": "No.", "deprecationWarning": {"message": "Version 1 has ended."}}
        with pytest.warns(ServiceWarning, match="has ended"), pytest.raises(RefusedError):
            protocol.check_answer(refusal)


class TestDecodeSubmit:
    def test_documented(self) -> None:
        """The documented answer becomes a job: number, address, products, and parameters without the account."""
        decoded = protocol.decode_submit(sample("submit_reply_ok_gk_per"), [Product.SPECTRUM], NOW)
        assert (
            decoded.id,
            decoded.url,
            decoded.name,
            decoded.products,
            decoded.submitted_at,
        ) == (
            14,
            "https://www.swift.ac.uk/user_objects/tprods/USERPROD_14",
            "GK Per",
            (Product.SPECTRUM,),
            NOW,
        )
        given_ = json.loads((SAMPLES / "submit_reply_ok_gk_per.json").read_text())["jobPars"]
        assert {k: v for k, v in given_.items() if k != "UserID"} == decoded.parameters

    def test_added_products(self) -> None:
        """A product that the service adds of its own belongs to the job, in the order of `Product`."""
        answer = {"OK": 1, "JobID": 5, "URL": "u", "jobPars": {"dopsf": "1", "doxastrom": 1, "image": 0}}
        decoded = protocol.decode_submit(answer, [Product.ASTROM_POS], NOW)
        assert decoded.products == (Product.STANDARD_POS, Product.ASTROM_POS)

    @pytest.mark.parametrize("job_id", [None, "", "abc", 0, -5, True, [], 1.5, 10**20])
    def test_no_id(self, job_id: Any) -> None:
        """A yes without a usable ID is not believed."""
        with pytest.raises(AnswerError, match="gave no JobID"):
            protocol.decode_submit({"OK": 1, "JobID": job_id, "URL": "u"}, [Product.IMAGE], NOW)

    @pytest.mark.parametrize("url", [None, "", " ", 5, "https://example.org/a\nb"])
    def test_no_url(self, url: Any) -> None:
        """Neither is one that does not say where the files will be."""
        with pytest.raises(AnswerError, match="job 7 does not say where"):
            protocol.decode_submit({"OK": 1, "JobID": "7", "URL": url}, [Product.IMAGE], NOW)

    @pytest.mark.parametrize("parameters", [None, [], "x", {}])
    def test_no_parameters(self, parameters: Any) -> None:
        """An answer without parameters, as the tutorial shows one, still makes a job."""
        answer = sample("submit_reply_ok_tutorial") | {"jobPars": parameters}
        decoded = protocol.decode_submit(answer, [Product.IMAGE], NOW)
        assert (decoded.id, decoded.products, decoded.parameters) == (803, (Product.IMAGE,), {})


class TestDecodeOldJob:
    def test_products_from_parameters(self) -> None:
        """A job attached by its ID knows its products from its parameters."""
        decoded = protocol.decode_old_job(sample("submit_reply_ok_gk_per"), 14)
        assert (decoded.id, decoded.products, decoded.submitted_at) == (14, (Product.SPECTRUM,), None)

    def test_no_products(self) -> None:
        """One of which nothing tells the products is refused: there would be nothing to wait for."""
        with pytest.raises(AnswerError, match="which products"):
            protocol.decode_old_job({"OK": 1, "URL": "u", "jobPars": {}}, 14)


class TestDecodeStatus:
    def test_documented_running(self) -> None:
        """The documented first answer: two products run, nothing is known of their progress."""
        outcome = looked(sample("status_1_reply_running"), Product.LIGHT_CURVE, Product.SPECTRUM)
        entry = {
            "statusCode": 3,
            "statusText": "Running",
            "progress": {"GotProgress": 0},
            "progressText": "No progress information available",
        }
        assert {"LightCurve": entry, "Spectrum": entry} == outcome.as_service()

    def test_documented_unknown(self) -> None:
        """Products that the job has not are unknown in the documented way, neither ended nor ready."""
        outcome = looked(sample("status_4_reply_unknown_products"), job_id=2)
        assert {p: None for p in tuple(Product)[:-1] if p is not Product.SPECTRUM} | {
            Product.SPECTRUM: 3,
            Product.SOURCE_DET: -10,
        } == {p: status.code for p, status in outcome.statuses.items()}
        assert (tuple(Product), ()) == (outcome.pending, outcome.ended)

    def test_documented_cancelled(self) -> None:
        """One product cancelled while the others run: not complete."""
        outcome = looked(sample("status_5_reply_one_cancelled"), *tuple(Product)[:-1], job_id=803)
        assert (outcome.cancelled, outcome.complete) == ((Product.SPECTRUM,), False)

    def test_documented_complete(self) -> None:
        """Everything has ended, one cancelled: complete, and whether it went well is another question."""
        outcome = looked(sample("status_6_reply_complete_one_cancelled"), *tuple(Product)[:-1], job_id=803)
        assert (outcome.complete, outcome.succeeded, len(outcome.ready)) == (True, False, 5)

    @pytest.mark.parametrize(
        ("code", "state", "ended"),
        [
            (-4, ProductState.CANCELLED, True),
            (-3, ProductState.ALARM, True),
            (-2, ProductState.ALARM, True),
            (-1, ProductState.FAILED, True),
            (1, ProductState.REQUESTED, False),
            (2, ProductState.QUEUED, False),
            (3, ProductState.RUNNING, False),
            (4, ProductState.READY, True),
            (5, ProductState.WAITING, False),
            (None, ProductState.UNKNOWN, False),
            (-10, ProductState.UNKNOWN, False),
            (0, ProductState.UNKNOWN, False),
            (99, ProductState.UNKNOWN, False),
            (10**300, ProductState.UNKNOWN, False),
            ("4", ProductState.READY, True),
            (" -1 ", ProductState.FAILED, True),
            ("+3", ProductState.RUNNING, False),
            ("done", ProductState.UNKNOWN, False),
            ("", ProductState.UNKNOWN, False),
            (4.0, ProductState.READY, True),
            (4.5, ProductState.UNKNOWN, False),
            (True, ProductState.UNKNOWN, False),
            ([4], ProductState.UNKNOWN, False),
            ({"4": 4}, ProductState.UNKNOWN, False),
            ("٤", ProductState.UNKNOWN, False),
        ],
    )
    def test_codes(self, code: object, state: ProductState, ended: bool) -> None:
        """Every code means what the service says it means, and what it does not say is unknown."""
        status = one({"statusCode": code, "statusText": "So", "progress": {"GotProgress": 0}})
        assert (state, ended) == (status.state, status.ended)

    @pytest.mark.parametrize("entry", [None, 4, "4", [4], [{"statusCode": 4}]])
    def test_no_entry(self, entry: object) -> None:
        """A product of which the answer says nothing usable gets the official client's own code and words."""
        status = one(entry)
        assert (
            status.code,
            status.text,
            status.progress,
            status.progress_text,
        ) == (-10, "The server did not return the status", {}, "No progress information available")

    @pytest.mark.parametrize(
        "entry", [{}, {"statusText": None, "progress": None}, {"statusText": "", "progress": [1]}]
    )
    def test_half_an_entry(self, entry: object) -> None:
        """An entry without code, text or progress is unknown."""
        status = one(entry)
        assert (status.code, status.text, status.progress) == (None, "Unknown status", {})

    def test_another_job(self) -> None:
        """An answer about another job is not believed."""
        with pytest.raises(AnswerError, match="Asked about job 1, the service answered about job 803"):
            looked(sample("status_6_reply_complete_one_cancelled"))

    def test_progress_is_untouched(self) -> None:
        """The service's progress structure is handed on as it came, whatever it holds."""
        progress = {
            "GotProgress": 1,
            "New": [{"x": None}],
            "ProgressSteps": [{"StepLabel": "A", "More": 1.5}],
        }
        assert progress == one({"statusCode": 3, "progress": progress}).as_service()["progress"]


class TestOutcome:
    @staticmethod
    def of(**codes: int) -> Outcome:
        """Make an outcome of codes by short name."""
        answer = {short: {"statusCode": code, "statusText": f"text {code}"} for short, code in codes.items()}
        products = [p for p, short in protocol.SHORT_NAMES.items() if short in codes]
        return looked(wire({"OK": 1, **answer}), *products)

    def test_judgement(self) -> None:
        """Each product is in the group of its state, and in pending or ended."""
        outcome = self.of(lc=4, spec=-1, psf=-2, enh=-4, xastrom=5, image=3, sourceDet=77)
        assert {
            name: getattr(outcome, name)
            for name in ("ready", "failed", "alarming", "cancelled", "pending", "ended")
        } == {
            "ready": ("LightCurve",),
            "failed": ("Spectrum",),
            "alarming": ("StandardPos",),
            "cancelled": ("EnhancedPos",),
            "pending": ("AstromPos", "Image", "SourceDet"),
            "ended": ("LightCurve", "Spectrum", "StandardPos", "EnhancedPos"),
        }

    @pytest.mark.parametrize(
        ("codes", "complete", "succeeded"),
        [
            ({"lc": 4, "spec": 4}, True, True),
            ({"lc": 4, "spec": -1}, True, False),
            ({"lc": -4, "spec": -4}, True, False),
            ({"lc": 4, "spec": 3}, False, False),
            ({"lc": 4, "spec": 6}, False, False),
        ],
    )
    def test_complete_is_not_succeeded(self, codes: dict[str, int], complete: bool, succeeded: bool) -> None:
        """`complete` tells that everything has ended; whether it went well is asked separately."""
        outcome = self.of(**codes)
        assert (complete, succeeded) == (outcome.complete, outcome.succeeded)

    def test_require(self) -> None:
        """Who wants all or nothing gets an error that says which product ended how."""
        outcome = self.of(lc=4, spec=-1)
        with pytest.raises(
            ProductsError, match=r"LightCurve ready; Spectrum failed \(-1, text -1\)"
        ) as caught:
            outcome.require()
        assert outcome == caught.value.outcome
        self.of(lc=4, spec=4).require()

    def test_travels_as_json(self) -> None:
        """An outcome is the same after a way through JSON, progress and all."""
        outcome = looked(sample("status_3_reply_all_progress"))
        assert outcome == Outcome.model_validate_json(outcome.model_dump_json())


class TestDecodeCancel:
    @staticmethod
    def decoded(answer: dict[str, Any], *products: Product) -> CancelResult:
        """Decode the answer to a cancellation."""
        return protocol.decode_cancel(protocol.check_answer(answer), job(), products)

    def test_all(self) -> None:
        """Everything was cancelled."""
        result = self.decoded(sample("cancel_reply_ok"), Product.LIGHT_CURVE, Product.SPECTRUM)
        assert (result.complete, [entry.code for entry in result.products.values()]) == (True, [0, 0])

    def test_partly(self) -> None:
        """`OK: 2` is told apart: one product was cancelled, the other not, each with its code and words."""
        result = self.decoded(sample("cancel_reply_partly"), Product.LIGHT_CURVE, Product.SPECTRUM)
        assert [(p, entry.code, entry.text, entry.cancelled) for p, entry in result.products.items()] == [
            (Product.LIGHT_CURVE, 1, "Job could not be cancelled - has it already finished?", False),
            (Product.SPECTRUM, 0, "Job cancelled OK", True),
        ]
        assert result.complete is False

    def test_not_owned(self) -> None:
        """Somebody else's job is not found, in the documented words."""
        with pytest.raises(JobNotFoundError, match="is not owned by user"):
            self.decoded(sample("cancel_reply_not_owned"), Product.IMAGE)

    @pytest.mark.parametrize("codes", [None, [], {}, {"lc": None}, {"lc": "x"}, {"spec": 0}])
    def test_not_told(self, codes: Any) -> None:
        """A product of which nothing usable is said counts as not determined, never as cancelled."""
        result = self.decoded({"OK": 1, "statusCodes": codes, "status": codes}, Product.LIGHT_CURVE)
        assert (result.products[Product.LIGHT_CURVE].code, result.complete) == (4, False)

    def test_text_codes(self) -> None:
        """Codes as text are understood."""
        result = self.decoded({"OK": "1", "statusCodes": {"lc": "0"}, "status": {}}, Product.LIGHT_CURVE)
        assert result.complete is True


class TestDecodeCountAndJobs:
    @pytest.mark.parametrize(("number", "expected"), [(0, 0), ("3", 3), (2.0, 2)])
    def test_count(self, number: Any, expected: int) -> None:
        """The number of active jobs may come as text."""
        assert expected == protocol.decode_count({"OK": 1, "numJobs": number})

    @pytest.mark.parametrize("number", [None, "many", -1, True, []])
    def test_no_count(self, number: Any) -> None:
        """What is no number of jobs is not believed."""
        with pytest.raises(AnswerError, match="number of active jobs"):
            protocol.decode_count({"OK": 1, "numJobs": number})

    def test_jobs(self) -> None:
        """The documented list becomes summaries, newest first, with times in UTC."""
        newest, older = protocol.decode_jobs(sample("list_reply"))
        assert (newest.id, older.id) == (3414, 3413)
        assert ("GRB 200416A", datetime(2020, 7, 23, 17, 32, 29, tzinfo=UTC), (Product.SPECTRUM,), True) == (
            newest.name,
            newest.submitted_at,
            newest.products,
            newest.has_products,
        )

    def test_odd_entries(self) -> None:
        """An entry with strange details keeps what can be told."""
        (entry,) = protocol.decode_jobs(
            {"OK": 1, "jobs": [{"JobID": "5", "Name": None, "DateSubmitted": "soon"}]}
        )
        assert (
            entry.id, entry.name, entry.submitted_at, entry.products, entry.has_products,
        ) == (5, "", None, (), False)  # fmt: skip

    @pytest.mark.parametrize("jobs", [None, {}, "none", [5], [{}], [{"JobID": None}]])
    def test_no_list(self, jobs: Any) -> None:
        """What is no list of jobs with IDs is not believed."""
        with pytest.raises(AnswerError):
            protocol.decode_jobs({"OK": 1, "jobs": jobs})


class TestChooseProducts:
    def test_order_and_once(self) -> None:
        """Products come in the job's order and once, by name or as they are."""
        asked = ["Image", Product.LIGHT_CURVE, "Image"]
        assert protocol.choose_products(job(), asked) == (Product.LIGHT_CURVE, Product.IMAGE)

    @pytest.mark.parametrize("everything", [None, "all"])
    def test_all(self, everything: Any) -> None:
        """Nothing said, and "all", mean every product of the job."""
        assert protocol.choose_products(job(Product.IMAGE), everything) == (Product.IMAGE,)

    @pytest.mark.parametrize("asked", ["Spectrum", ["lightcurve"], [], ["Image", "Spectrum"]])
    def test_wrong(self, asked: Any) -> None:
        """A name that is none, or not of this job, or no name at all, is an error that helps."""
        with pytest.raises(ConfigurationError):
            protocol.choose_products(job(Product.IMAGE), asked)


class TestProgressText:
    def test_documented_spectrum(self) -> None:
        """A spectrum on "Build spectra." with a sub-step active, as documented."""
        status = looked(sample("status_2_reply_progress")).statuses[Product.SPECTRUM]
        assert status.progress_text == (
            "  Prepare data. - DONE\n"
            "  ** Build spectra. - ACTIVE -- Working on spectrum: Obs_00081637001 (14/156)**\n"
            "    Extract data. - DONE\n"
            "    ** Fit spectrum. - ACTIVE**\n"
            "\nThe job has been running for 00:20:40\n"
        )
        assert (
            status.active_step,
            status.active_detail,
            status.running_time,
        ) == (
            "Build spectra. > Fit spectrum.",
            "Working on spectrum: Obs_00081637001 (14/156)",
            "00:20:40",
        )

    def test_documented_structure(self) -> None:
        """The structure printed on the service's page about progress, with two details at work."""
        progress = {
            "GotProgress": 1,
            "ProgressSteps": [
                {"StepLabel": "Prepare data.", "StepStatus": 2},
                {
                    "StepLabel": "Build spectra.",
                    "StepStatus": 1,
                    "StepExtra": "Working on spectrum: interval0 (1/1)",
                    "SubStep": [
                        {
                            "StepLabel": "Extract data.",
                            "StepStatus": 1,
                            "StepExtra": "Working on observation 1 / 1",
                        },
                        {"StepLabel": "Fit spectrum.", "StepStatus": 0},
                    ],
                },
            ],
            "TimeRunning": "00:00:08",
        }
        status = one({"statusCode": 3, "statusText": "Running", "progress": progress})
        assert status.progress_text == (
            "  Prepare data. - DONE\n"
            "  ** Build spectra. - ACTIVE -- Working on spectrum: interval0 (1/1)**\n"
            "    ** Extract data. - ACTIVE -- Working on observation 1 / 1**\n"
            "    Fit spectrum.\n"
            "\nThe job has been running for 00:00:08\n"
        )
        assert status.active_detail == "Working on observation 1 / 1"

    def test_documented_enhanced_position(self) -> None:
        """An enhanced position with its line before the steps, as printed on the service's page."""
        progress = {
            "PreProgress": "Trying using the <em>v,b,white</em> filters:",
            "GotProgress": 1,
            "ProgressSteps": [
                {"StepLabel": "Identify XRT-UVOT overlaps.", "StepStatus": 2},
                {
                    "StepLabel": "Determine position.",
                    "StepStatus": 1,
                    "StepExtra": "Working on overlap 1 / 1",
                },
                {"StepLabel": "Build Images.", "StepStatus": 0},
            ],
            "TimeRunning": "00:00:08",
        }
        assert protocol.progress_text(progress) == (
            "Trying using the <em>v,b,white</em> filters:\n"
            "  Identify XRT-UVOT overlaps. - DONE\n"
            "  ** Determine position. - ACTIVE -- Working on overlap 1 / 1**\n"
            "  Build Images.\n"
            "\nThe job has been running for 00:00:08\n"
        )

    @pytest.mark.parametrize("progress", [{}, {"GotProgress": 0}, {"GotProgress": 2, "TimeRunning": "x"}])
    def test_none(self, progress: dict[str, Any]) -> None:
        """Where no progress is known, the official client's words say so."""
        assert protocol.progress_text(progress) == "No progress information available"

    def test_long_lists(self) -> None:
        """A structure of very many steps with sub-steps is formatted in time that grows with its size."""
        steps = [{"StepLabel": "a", "StepStatus": 0, "SubStep": []}] * 100_000
        assert protocol.progress_text({"GotProgress": 1, "ProgressSteps": steps}).count("  a\n") == 100_000

    def test_what_is_no_step(self) -> None:
        """What is no step is left out, at any level."""
        steps: Any = [5, {"StepLabel": "A", "StepStatus": "1", "SubStep": [None, {"StepStatus": 2}]}, "x"]
        assert (
            protocol.progress_text({"GotProgress": 1, "ProgressSteps": steps})
            == "  ** A - ACTIVE**\n     - DONE\n"
        )


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | TEXT
    | st.sampled_from([0, 1, 2, 3, 4, "4", -3, 10**400]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
STEPS = st.deferred(
    lambda: st.lists(
        st.fixed_dictionaries(
            {"StepLabel": st.text(max_size=8), "StepStatus": st.sampled_from([0, 1, 2, 3])},
            optional={"StepExtra": st.text(max_size=8), "SubStep": STEPS},
        ),
        max_size=3,
    )
)
PROGRESS = st.fixed_dictionaries(
    {"GotProgress": st.just(1)},
    optional={"PreProgress": st.text(max_size=8), "ProgressSteps": STEPS, "TimeRunning": st.text(max_size=8)},
)
ENTRY = st.fixed_dictionaries(
    {}, optional={"statusCode": VALUES, "statusText": VALUES, "progress": VALUES | PROGRESS}
)
ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "OK": st.sampled_from([0, 1, 2, "1"]) | VALUES,
        "ERROR": VALUES,
        "listErr": VALUES | st.lists(st.fixed_dictionaries({"label": VALUES, "list": VALUES}), max_size=3),
        "deprecationWarning": VALUES,
        "APIVersion": VALUES | st.from_regex(r"\A[0-9.]{1,60}\Z"),
        "JobID": st.sampled_from([1, "1"]) | VALUES,
        "URL": st.just("https://example.org/x") | VALUES,
        "jobPars": st.dictionaries(st.sampled_from(["lc", "spec", "name", "UserID"]), VALUES, max_size=3)
        | VALUES,
        "numJobs": VALUES,
        "jobs": VALUES
        | st.lists(st.dictionaries(st.sampled_from(["JobID", "Name", "DateSubmitted"]), VALUES)),
        "status": VALUES,
        "statusCodes": VALUES,
        **dict.fromkeys(protocol.SHORT_NAMES.values(), ENTRY | VALUES),
    },
)
READERS: tuple[Callable[[Any], object], ...] = (
    lambda data: protocol.decode_submit(data, (Product.IMAGE,), NOW),
    lambda data: protocol.decode_old_job(data, 1),
    lambda data: protocol.decode_status(data, job(), tuple(Product), NOW),
    lambda data: protocol.decode_cancel(data, job(), tuple(Product)),
    protocol.decode_count,
    protocol.decode_jobs,
)


class TestAnyAnswer:
    @given(st.binary(max_size=200) | VALUES.map(lambda value: json.dumps(value).encode()))
    def test_any_body(self, body: bytes) -> None:
        """Any bytes whatever are an object, or an error by name."""
        with contextlib.suppress(AnswerError):
            assert isinstance(protocol.decode_json(body), dict)

    @given(ANSWERS)
    @example({"OK": 1, "APIVersion": "1" * 39 + ".5"})
    @example({"OK": 1, "JobID": 1, "URL": "u", "jobPars": {"name": "\ud800"}})
    def test_any_object(self, answer: dict[str, Any]) -> None:
        """Any object whatever is decoded, or is an error by name; only code 4 is ever ready."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ServiceWarning)
            for reader in READERS:
                try:
                    data = protocol.decode_json(json.dumps(answer).encode(), user_id=USER)
                    decoded = reader(protocol.check_answer(data))
                except (AnswerError, RefusedError):
                    continue
                self.look_through(decoded, data)

    @staticmethod
    def look_through(decoded: object, data: dict[str, Any]) -> None:
        """Use all that was decoded as later steps do."""
        if isinstance(decoded, Job):
            assert decoded == Job.model_validate_json(decoded.model_dump_json())
        if not isinstance(decoded, Outcome):
            return
        assert decoded == Outcome.model_validate_json(decoded.model_dump_json())
        decoded.describe()
        decoded.as_service()
        for product, status in decoded.statuses.items():
            _ = status.active_step, status.active_detail, status.running_time
            entry = data.get(protocol.SHORT_NAMES[product])
            if status.state is ProductState.READY:
                assert str(entry["statusCode"]).strip().lstrip("+0").removesuffix(".0") == "4"  # type: ignore[index, call-overload]

    @given(st.integers(0, 300))
    def test_depth(self, depth: int) -> None:
        """A deep answer is refused or can be used to the full, never something in between."""
        steps: list[Any] = []
        for _ in range(depth):
            steps = [{"StepLabel": "x", "StepStatus": 1, "SubStep": steps}]
        answer = {"OK": 1, "lc": {"statusCode": 3, "progress": {"GotProgress": 1, "ProgressSteps": steps}}}
        try:
            outcome = looked(wire(answer), Product.LIGHT_CURVE)
        except XRTError:
            assert depth > 30
        else:
            assert depth == outcome.statuses[Product.LIGHT_CURVE].progress_text.count("ACTIVE")
            assert outcome == Outcome.model_validate_json(outcome.model_dump_json())


def says_complete(code: object) -> bool:
    """Tell whether a status code that came over the wire is the number 4, as a number or as its text."""
    if isinstance(code, str):
        return code.strip().removeprefix("+").lstrip("0") == "4"
    return isinstance(code, int | float) and not isinstance(code, bool) and code == 4


def read(body: bytes, reader: Callable[[Any], object], **options: Any) -> tuple[dict[str, Any], object]:
    """Read an answer as the client does, each stage with the errors that it documents; None where one came."""
    try:
        data = protocol.decode_json(body, **options)
    except AnswerError as error:
        return {}, error
    try:
        checked = protocol.check_answer(data)
    except (AnswerError, RefusedError) as error:
        return data, error
    try:
        return data, reader(checked)
    except AnswerError as error:
        return data, error


def check_portable(found: Any) -> None:
    """Make sure that what came of an answer can be written down, and handed from one process to another."""
    if isinstance(found, XRTError):
        again = pickle.loads(pickle.dumps(found))  # noqa: S301 - our own
        assert (type(found), str(found), vars(found)) == (type(again), str(again), vars(again))
        str(found).encode()
        return
    assert found == pickle.loads(pickle.dumps(found))  # noqa: S301 - our own
    for noun in found if isinstance(found, tuple) else () if isinstance(found, int) else (found,):
        assert noun == type(noun).model_validate_json(noun.model_dump_json())
    if isinstance(found, Outcome):
        json.dumps(found.as_service(), allow_nan=False, ensure_ascii=False).encode()


SAMPLE_ANSWERS = [json.loads(path.read_text()) for path in sorted(SAMPLES.glob("*.json"))]
CODES = st.sampled_from(
    [4, "4", 4.0, "04", "+4", " 4 ", 4.5, "4.0", "4e0", "0x4", "\uff14", "\u0664", "-4", -4, True, [4], {"4": 4}]
).map(copy.deepcopy) | st.integers(-12, 12)  # fmt: skip
UNWRITABLE = st.sampled_from(["\ud800", "4\udfff", float("nan"), float("inf")])
ODD_TEXTS = st.text("04+-. \n_exE\u00a0\uff14\u0664", max_size=5)


@st.composite
def spoilt_answers(draw: Callable[[Any], Any]) -> Any:
    """Change a few places, at any depth, in one of the service's documented answers."""
    answer = copy.deepcopy(draw(st.sampled_from(SAMPLE_ANSWERS)))
    for _ in range(draw(st.integers(0, 4))):
        answer = spoil(draw, answer)
    return answer


def spoil(draw: Callable[[Any], Any], value: Any) -> Any:
    """Change one place below a value, or the value."""
    if not (isinstance(value, dict | list) and value):
        return draw(CODES | UNWRITABLE | VALUES)
    place = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    act = draw(st.sampled_from(["deeper", "deeper", "deeper", "replace", "drop", "wrap", "move"]))
    if act == "drop":
        del value[place]
    elif act == "move" and isinstance(value, dict):
        value[draw(st.sampled_from([*value, *protocol.SHORT_NAMES.values()]))] = copy.deepcopy(value[place])
    else:
        below = value[place]
        value[place] = (
            spoil(draw, below)
            if act == "deeper"
            else [below]
            if act == "wrap"
            else draw(CODES | UNWRITABLE | VALUES)
        )
    return value


@st.composite
def spoilt_bodies(draw: Callable[[Any], Any]) -> bytes:
    """Cut, double or overwrite a piece of the text of one of the service's documented answers."""
    body = json.dumps(draw(spoilt_answers())).encode()
    start, stop = sorted(draw(st.tuples(*[st.integers(0, len(body))] * 2)))
    return draw(
        st.sampled_from([body[:start], body[:start] + body[stop:], body[:stop] + body[start:]])
        | st.binary(max_size=8).map(lambda noise: body[:start] + noise + body[stop:])
    )


class TestSpoiltAnswer:
    """Answers that are nearly right lead further in than those made of nothing."""

    @pytest.mark.filterwarnings("ignore::prefect_xrt.errors.ServiceWarning")
    @settings(max_examples=1000)
    @given(spoilt_answers().map(lambda answer: json.dumps(answer).encode()) | spoilt_bodies())
    def test_errors_and_values(self, body: bytes) -> None:
        """Every stage gives a value that can be kept and sent on, or one of its documented errors."""
        for reader in READERS:
            data, found = read(body, reader)
            check_portable(found)
            if isinstance(found, Outcome):
                for product in found.ready:
                    entry = data[protocol.SHORT_NAMES[product]]
                    assert says_complete(entry["statusCode"])
                assert not found.succeeded or len(found.ready) == len(Product)

    def test_all_the_way(self) -> None:
        """The documented answers themselves get through every reader that they are meant for."""
        kinds = set()
        for answer in SAMPLE_ANSWERS:
            for reader in READERS:
                kinds.add(type(read(json.dumps(answer).encode(), reader)[1]))
        assert {Job, Outcome, CancelResult, int, tuple, RefusedError, UnknownUserError, AnswerError} <= kinds

    @given(CODES | VALUES | ODD_TEXTS)
    @example("4\n")
    @example(4.0000000000000001)
    def test_complete(self, code: Any) -> None:
        """A product is ready if its code is the number 4, as a number or as its text, and for no other code."""
        answer = {"OK": 1, "lc": {"statusCode": code, "statusText": "Complete"}}
        _, found = read(json.dumps(answer).encode(), READERS[2])
        check_portable(found)
        if isinstance(found, Outcome):
            status = found.statuses[Product.LIGHT_CURVE]
            assert (status.state is ProductState.READY) == says_complete(code)
            assert not found.succeeded

    @given(CODES | VALUES | ODD_TEXTS)
    def test_cancelled(self, code: Any) -> None:
        """A product counts as cancelled only if the service says 0."""
        answer = {"OK": 2, "statusCodes": {"lc": code}, "status": {"lc": "Job cancelled OK"}}
        _, found = read(json.dumps(answer).encode(), READERS[3])
        if isinstance(found, CancelResult) and found.products[Product.LIGHT_CURVE].cancelled:
            assert not isinstance(code, bool)
            assert float(code) == 0

    @pytest.mark.filterwarnings("ignore::prefect_xrt.errors.ServiceWarning")
    @settings(max_examples=500)
    @given(
        spoilt_answers(),
        st.data(),
        st.sampled_from(["{}", "user `{}` is not known", "<{}>", "mailto:{}?x", "'{}',", "{}\n{}", "é {}"]),
        st.sampled_from([str, str.upper, str.title]),
        st.booleans(),
    )
    def test_address(
        self, answer: Any, data: st.DataObject, text: str, spell: Callable[[str], str], as_key: bool
    ) -> None:
        """Wherever an answer speaks of the registered address, nothing that is made of it does."""
        told = text.format(*[spell(USER)] * 2)
        place: Any = answer
        while True:
            if isinstance(place, dict):
                names = list(place)
                if as_key or not names:
                    place[told] = told
                name = data.draw(st.sampled_from(names)) if names else told
            elif isinstance(place, list) and place:
                name = data.draw(st.integers(0, len(place) - 1))
            else:
                break
            if not isinstance(place[name], dict | list) or data.draw(st.booleans()):
                place[name] = told
            place = place[name]
        assume(isinstance(answer, dict))
        for reader in READERS:
            _, found = read(json.dumps(answer).encode(), reader, user_id=USER)
            seen = str(vars(found)) + str(found) if isinstance(found, Exception) else repr(found)
            assert USER.lower() not in seen.lower()


with warnings.catch_warnings():
    # The official client's own imports warn, and warnings are errors while tests are collected.
    warnings.simplefilter("ignore")
    official = pytest.importorskip("swifttools.ukssdc.xrt_prods", exc_type=ImportError)


@pytest.mark.filterwarnings("ignore")
class TestLikeTheOfficialClient:
    @given(PROGRESS)
    def test_progress_text(self, progress: dict[str, Any]) -> None:
        """The progress is formatted as the official client formats it, letter by letter."""
        expected = official.XRTProductRequest(USER, silent=True)._buildProgressString(progress)
        assert expected == protocol.progress_text(progress)

    @pytest.fixture
    def service(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
        """Start a service that stands in for www.swift.ac.uk, with a clock that only advances by hand."""
        send = requests.Session.send
        timelines = {
            "lc": Timeline.of((1, 10), (2, 10), (3, 100), (4,)),
            "spec": Timeline.of((3, 100), ("3", 20), ("-1",)),
            "psf": Timeline.of((2, 30), (3, 50), (-2,)),
            "enh": Timeline.of((3, 60), (-4,)),
            "xastrom": Timeline.of((5, 50), (3, 50), (4,)),
            "image": Timeline((Step(FORGOTTEN),)),
        }

        def redirected(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> Any:
            request.url = str(request.url).replace("https://www.swift.ac.uk", service.origin)
            return send(session, request, **options)

        monkeypatch.setattr(requests.Session, "send", redirected)
        with Emulator(Scenario(timelines=timelines), clock=lambda: 0.0) as service:
            yield service

    def test_statuses(self, service: Emulator) -> None:
        """The same job at the same time gives the same four entries per product, all the way to its end."""
        request = official.XRTProductRequest(service.user_id, silent=True)
        request.setGlobalPars(name="GRB 200416A", getTargs=True, RA=335.6985, Dec=-7.5179, centroid=True, posErr=1,
                              useSXPS=False, T0=608713541.952)  # fmt: skip
        request.addLightCurve(binMeth="obsid")
        request.addSpectrum(hasRedshift=False, timeslice="single")
        request.addStandardPos()
        request.addEnhancedPos()
        request.addAstromPos(useAllObs=True)
        request.addImage()
        assert request.submit() is True
        attached = job(*tuple(Product)[:-1], job_id=int(request.JobID))
        names = protocol.what(attached.products)
        seen = set()
        for _ in range(16):
            theirs = request.checkProductStatus()
            sent = {"UserID": service.user_id, "JobID": attached.id, "what": names, "whatProg": names}
            answer = requests.post(f"{service.url}/checkProductStatus.php", json=sent, timeout=10)
            ours = protocol.decode_status(
                protocol.decode_json(answer.content), attached, attached.products, NOW
            )
            # A code that came as text is a number here, as it is in the official client where it matters.
            expected = {
                name: entry | {"statusCode": int(entry["statusCode"])} for name, entry in theirs.items()
            }
            assert expected == ours.as_service()
            seen |= {entry["statusCode"] for entry in expected.values()}
            service.advance(9)
        assert {-10, -4, -2, -1, 1, 2, 3, 4, 5} == seen
