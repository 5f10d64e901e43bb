"""People who watch a job in the Prefect UI see how far it is, honestly, and the wait does not pay for it."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from prefect import flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from prefect_xrt import (
    Pacing,
    ProductRequest,
    build_products,
    progress,
    submit_request,
    tasks,
    wait_for_products,
)
from prefect_xrt.emulator import Emulator, Timeline
from prefect_xrt.progress import Board, describe, percent
from prefect_xrt.protocol import Job, Outcome, ProductStatus, decode_status
from prefect_xrt.request import Product

if TYPE_CHECKING:
    from conftest import Server

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
JOB = Job(
    id=803,
    url="https://www.swift.ac.uk/user_objects/tprods/USERPROD_803",
    name="GK Per",
    products=(Product.LIGHT_CURVE, Product.SPECTRUM),
    submitted_at=NOON,
)
FAST = Pacing(floor_s=0.05, ceiling_s=0.2)
READY = Timeline.of((4,))
SAMPLE = Path(__file__).parent / "samples" / "answers" / "status_3_reply_all_progress.json"


def step(status: object, label: str = "Extract data.", **more: Any) -> dict[str, Any]:
    """Make a step as the service does."""
    return {"StepLabel": label, "StepStatus": status, **more}


def look(after_s: float = 0.0, **products: tuple[Any, ...]) -> Outcome:
    """Make what a look told: per product a code, and its steps; the last may be how long it has been running."""
    statuses = {}
    for name, (code, *steps) in products.items():
        told: dict[str, Any] = {"GotProgress": 1 if steps else 0}
        if steps and isinstance(steps[-1], str):
            told["TimeRunning"] = steps.pop()
        if steps:
            told["ProgressSteps"] = steps
        product = Product(name)
        statuses[product] = ProductStatus(product=product, code=code, text=f"text {code}", progress=told)
    return Outcome(job=JOB, statuses=statuses, looked_at=NOON + timedelta(seconds=after_s))


class TestDone:
    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([step(0), step(0)], 0.0),
            ([step(2), step(0)], 0.5),
            ([step("2"), step("1")], 0.5),
            ([step(2), step(1, SubStep=[step(2), step(1)])], 0.75),
            ([step(1, StepExtra="Working on observation 3 / 4")], 0.5),
            ([step(1, StepExtra="Working on spectrum: Obs_00081637001 (3/4)")], 0.5),
            ([step(1, StepExtra="(3/4)", SubStep=[step(2), step(0)])], 0.625),
            ([step(1, StepExtra="Working on observation 5 / 4")], 0.0),
            ([step(1, StepExtra="Working on observation 0 / 0")], 0.0),
            ([step(1, StepExtra=7, SubStep="none")], 0.0),
            (["no step", step(2)], 1.0),
            ([step(None), step(9), step(2), step(2)], 0.5),
        ],
    )
    def test_steps(self, steps: list[Any], expected: float) -> None:
        """Steps count as far as the service tells: those inside one, and the observation it works on."""
        assert look(Image=(3, *steps)).statuses[Product.IMAGE].done == expected

    @pytest.mark.parametrize(
        ("steps", "soon", "with_step"),
        [
            ([step(0), step(0)], 0.0, 0.0),
            ([step(2), step(1), step(0), step(0)], 0.5, 0.5),
            ([step(1, StepExtra="Working on observation 3 / 4"), step(0)], 0.375, 0.5),
            ([step(1, SubStep=[step(2), step(1), step(0), step(0)]), step(0)], 0.25, 0.5),
            ([step(1, StepExtra="(1/4)", SubStep=[step(1), step(0)]), step(0)], 0.0625, 0.5),
            ([step(2), step(1)], 1.0, 1.0),
        ],
    )
    def test_soon(self, steps: list[Any], soon: float, with_step: float) -> None:
        """What is done once the step at work is: the innermost one may be over at any moment."""
        status = look(Image=(3, *steps)).statuses[Product.IMAGE]
        assert (status.done_soon, status.done_with_step) == (soon, with_step)

    @pytest.mark.parametrize(
        ("told", "expected"),
        [("01:02:03", 3723), ("100:00:00", 360000), ("1:2", None), (5, None), (None, None)],
    )
    def test_running_time(self, told: object, expected: float | None) -> None:
        """The running time is told in hours, minutes and seconds; anything else tells nothing."""
        progress = cast(Any, {"TimeRunning": told})
        assert ProductStatus(product=Product.IMAGE, code=3, text="", progress=progress).running_s == expected

    @pytest.mark.parametrize("told", [{"GotProgress": 0}, {"GotProgress": 2}, {"ProgressSteps": "?"}, {}])
    def test_nothing_told(self, told: dict[str, Any]) -> None:
        """Where the service tells no steps, nobody knows."""
        status = ProductStatus(product=Product.IMAGE, code=3, text="Running", progress=told)
        assert (status.done, status.done_soon, status.done_with_step) == (None, None, None)

    @pytest.mark.parametrize("code", [4, -1, -3, -4])
    def test_ended(self, code: int) -> None:
        """What has ended counts whole, however it ended."""
        assert look(Image=(code,)).statuses[Product.IMAGE].done == 1.0


class TestPercent:
    def test_sample(self) -> None:
        """The service's own example: every product counts the same, as far as it is."""
        products = tuple(product for product in Product if product is not Product.SOURCE_DET)
        job = JOB.model_copy(update={"id": 1, "products": products})
        seen = decode_status(json.loads(SAMPLE.read_text()), job, products, NOON)
        lc, spec, psf, enh, image = 0, (1 + (13 + 0.5) / 156) / 2, 1, 2 / 3, 3 / 4
        xastrom = (3 + 1 / 121) / 12
        assert percent(seen) == pytest.approx(100 * (lc + spec + psf + enh + xastrom + image) / 6, abs=0.1)

    def test_whole_only_at_the_end(self) -> None:
        """Steps that are all done are not the end; that every product has ended is."""
        assert percent(look(Spectrum=(3, step(2)), LightCurve=(3, step(2)))) == 99.9
        assert percent(look(Spectrum=(4,), LightCurve=(-1,))) == 100.0

    def test_in_words(self) -> None:
        """The words tell the steps at work, and that the service tells nothing of a product that runs."""
        seen = look(
            Spectrum=(3, step(2), step(1, StepExtra="Working on observation 3 / 4")),
            Image=(3,),
            LightCurve=(2,),
            StandardPos=(-1,),
        )
        assert describe(seen) == (
            "43 %: 1 of 4 products of GK Per have ended. Spectrum: Extract data (Working on observation 3 / 4). "
            "The service tells no progress of Image."
        )


LOOKS = [
    look(100, LightCurve=(2,), Spectrum=(3, step(1), step(0), "00:01:00")),
    look(160, LightCurve=(2,), Spectrum=(3, step(2), step(1), "00:02:00")),
    look(220, LightCurve=(3,), Spectrum=(4,)),
]


class TestBoard:
    def test_cards(self, server: Server) -> None:
        """Progress and table are one card each, changed in place, also by another wait of the same run."""
        told = []

        @flow
        def watching() -> None:
            for board in (Board(JOB), Board(JOB)):
                for seen in LOOKS:
                    board(seen)
                    cards = server.find("artifacts", artifacts={"flow_run_id": {"any_": [flow_run.id]}})
                    told.append([card["data"] for card in cards if card["type"] == "progress"])

        state = watching(return_state=True)
        assert told == [[0.0], [25.0], [50.0]] * 2
        cards = server.artifacts(state.state_details.flow_run_id)
        assert sorted(cards) == ["xrt-job-803", "xrt-progress-803"]
        assert cards["xrt-progress-803"]["description"] == (
            "50 %: 1 of 2 products of GK Per have ended. The service tells no progress of LightCurve. "
            "As of 2026-11-24 12:03 UTC."
        )
        assert JOB.url in cards["xrt-job-803"]["description"]

    def test_table(self, server: Server) -> None:
        """The table tells state, code and text, what is at work, the times that the service told, and the files."""

        @flow
        def watching() -> list[list[Any]]:
            board = Board(JOB)
            tables = []
            for seen in LOOKS:
                board(seen)
                table = json.loads(server.artifacts(flow_run.id)["xrt-job-803"]["data"])
                tables.append([list(row.values()) for row in table])
            return tables

        first, _, last = watching()
        assert first == [
            ["LightCurve", "queued", 2, "text 2", "00:01:40", "", "", ""],
            ["Spectrum", "running", 3, "text 3", "00:00:40", "00:01:00", "Extract data", ""],
        ]
        assert last == [
            ["LightCurve", "running", 3, "text 3", "00:03:40", "", "", ""],
            ["Spectrum", "ready", 4, "text 4", "00:00:40", "00:02:00", "", f"{JOB.url}/spec.tar.gz"],
        ]

    def test_nothing_new(self, server: Server, caplog: pytest.LogCaptureFixture) -> None:
        """A look that changes nothing but the time asks nothing of Prefect's server."""
        later = look(3600, LightCurve=(2,), Spectrum=(3, step(1), step(0), "00:59:20"))

        def asked(board: Board, seen: Outcome) -> int:
            caplog.clear()
            board(seen)
            mine = [record for record in caplog.records if record.threadName == "MainThread"]
            return len([record for record in mine if record.name == "httpx"])

        @flow
        def watching() -> list[bool]:
            board = Board(JOB)
            return [asked(board, seen) > 0 for seen in (LOOKS[0], LOOKS[0], later, LOOKS[1])]

        with caplog.at_level(logging.INFO, logger="httpx"):
            assert watching() == [True, False, False, True]

    def test_server_that_hangs(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A server that does not answer is given up soon and left alone for a while; then all is shown."""
        monkeypatch.setattr(progress, "_TIMEOUT_S", 0.2)
        now = 0.0

        @flow
        def watching() -> dict[str, Any]:
            nonlocal now
            board = Board(JOB, clock=lambda: now)
            with socket.create_server(("127.0.0.1", 0)) as silent:
                url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
                with temporary_settings({PREFECT_API_URL: url, PREFECT_LOGGING_TO_API_ENABLED: False}):
                    board(LOOKS[0])
                    board(LOOKS[1])
                now = 299.0
                board(LOOKS[1])
                assert server.artifacts(flow_run.id) == {}
            now = 301.0
            board(LOOKS[1])
            return server.artifacts(flow_run.id)

        assert watching()["xrt-progress-803"]["data"] == 25.0
        warned = [record.message for record in caplog.records if "could not be shown" in record.message]
        assert len(warned) == 1

    def test_outside_a_run(self) -> None:
        """Outside a flow run there is nobody to show anything to."""
        Board(JOB)(LOOKS[0])


class TestInAFlow:
    def test_moves(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest, tmp_path: Path
    ) -> None:
        """During a build the bar moves with the service's steps up to the end; what is ready has a link at once.

        A display in the same process, as that of the shell, is told the same looks.
        """
        emulator = service(default=READY, timelines={"lc": Timeline.of_looks((3, 8), (4,))}, observations=3)
        shown: list[Outcome] = []
        token = tasks.on_look.set(shown.append)
        try:
            state = build_products(request_, tmp_path / "out", pacing=FAST, return_state=True)
        finally:
            tasks.on_look.reset(token)
        assert len(shown) == len(emulator.calls("status"))
        cards = server.artifacts(state.state_details.flow_run_id)
        assert cards["xrt-progress-801"]["data"] == 100.0
        bar = self._history(server, cards["xrt-progress-801"]["id"], 100.0)
        assert bar == sorted(bar)
        assert len(bar) >= 3
        assert bar[0] < 100.0
        tables = self._history(server, cards["xrt-job-801"]["id"], cards["xrt-job-801"]["data"])
        first = json.loads(tables[0])
        assert [row["state"] for row in first] == ["running", "ready", "ready"]
        assert first[1]["files"].endswith("/USERPROD_801/spec.tar.gz")

    def test_no_progress_told(
        self, server: Server, service: Callable[..., Emulator], request_: ProductRequest
    ) -> None:
        """A wait of one's own shows its job, too; where no progress is told, many looks alike are shown once."""
        emulator = service(default=Timeline.of_looks((3, 12), (4,)), progress=False)

        @flow
        def pipeline() -> None:
            wait_for_products(submit_request(request_), pacing=FAST)

        card = server.artifacts(pipeline(return_state=True).state_details.flow_run_id)["xrt-progress-801"]
        assert len(emulator.calls("status")) == 13
        created = server.events("prefect.artifact.created", f"prefect.artifact.{card['id']}")
        words = [event["payload"]["description"].partition(" As of")[0] for event in created]
        assert words == [
            "0 %: 0 of 3 products of GRB 200416A have ended. "
            "The service tells no progress of LightCurve, Spectrum, Image."
        ]
        assert self._history(server, card["id"], 100.0) == [100.0]

    @staticmethod
    def _history(server: Server, artifact_id: str, last: object) -> list[Any]:
        """Give what an artifact was changed to, one after the other, once the last is known."""

        def there() -> list[Any] | None:
            events = server.events("prefect.artifact.updated", f"prefect.artifact.{artifact_id}")
            data = [event["payload"]["data"] for event in reversed(events)]
            return data if data[-1] == last else None

        return list(server.settled(there))
