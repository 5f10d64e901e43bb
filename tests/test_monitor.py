"""The monitor builds the same requests again, tells once of what is new, and lets nothing pile up or get lost."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest
import requests
from prefect import State
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from prefect.states import Scheduled

from prefect_xrt import runs
from prefect_xrt.alerts import CHANGED_EVENT
from prefect_xrt.archive import folder_name
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.emulator.state import Product
from prefect_xrt.errors import ConfigurationError, InvalidRequestError, ProductsError
from prefect_xrt.pipelines.monitor import ARTIFACT_KEY, CHECK_NAME, Check, monitor
from prefect_xrt.records import read_record

if TYPE_CHECKING:
    from conftest import Server

READY, FAILED = Timeline.of((4,)), Timeline.of((-1,))


def run(root: Path, sources: str, **options: Any) -> State[Any]:
    """Run the monitor, and give its final state."""
    state: State[Any] = monitor(sources, output_root=root, return_state=True, **options)
    return state


def builds(root: Path, name: str) -> list[Path]:
    """Give the folders of a target's builds, hidden ones too, the oldest first."""
    return sorted((root / folder_name(name)).iterdir())


def jobs(root: Path, name: str) -> list[int | None]:
    """Give the IDs of the jobs on record in them."""
    records = [read_record(folder) for folder in builds(root, name)]
    return [record.job.id if record else None for record in records]


def events(server: Server, root: Path, name: str, job_id: int) -> list[dict[str, Any]]:
    """Give the payloads of the events about a target below a folder, the oldest first, once that of a job is there."""

    def there() -> list[dict[str, Any]] | None:
        found = server.events(CHANGED_EVENT, f"prefect-xrt.target.{folder_name(name)}")
        payloads = [event["payload"] for event in sorted(found, key=lambda event: event["occurred"])]
        ours = [payload for payload in payloads if root in Path(payload["output_dir"]).parents]
        return ours if job_id in [payload["job_id"] for payload in ours] else None

    return list(server.settled(there))


def message(server: Server, state: State[Any]) -> tuple[str, str]:
    """Give the name and the message of a state, as the server keeps them."""
    kept = server.flow_run(state.state_details.flow_run_id)["state"]
    return kept["name"], kept["message"]


def attempt(run_id: UUID, **given: Any) -> State[Any]:
    """Run a flow run once more, as Prefect does with one that is to be retried."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Scheduled(), force=True)
        again = client.read_flow_run(run_id)
        state: Any = run_flow(monitor, flow_run=again, parameters=given, return_type="state")
    return cast(State[Any], state)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Name a folder that is not there yet."""
    return tmp_path / "monitor"


@pytest.fixture
def look_at_once() -> Callable[[], None]:
    """Forget when jobs were looked at: a minute that need not pass here."""
    return lambda: shutil.rmtree(Path(os.environ["XDG_STATE_HOME"], "prefect-xrt", "looks"))


# Each test has targets of its own: the server knows what was told of those of the others.


def test_life(server: Server, service: Callable[..., Emulator], root: Path) -> None:
    """All is new at first; then nothing is, and nothing is told; then what is new is told, and the unchanged goes."""
    name = "GRB 200416A"
    emulator = service(default=READY, new_observations=[0, 2])
    (check,) = run(root, name).result()
    assert (check.target, check.outcome, check.message) == (name, "changed", "The first build: LightCurve.")
    (told,) = events(server, root, name, 801)
    assert (told["job_id"], told["previous_job_id"], told["new_products"]) == (801, None, ["LightCurve"])
    page = requests.get(f"{server.url}/artifacts/{told['report_url'].rpartition('/')[2]}", timeout=30).json()
    assert (page["key"], page["description"]) == (
        "xrt-report-801",
        f"1 of 1 products of job 801 ({name}) are in {check.output_dir}.",
    )
    assert [told["output_dir"]] == [str(folder) for folder in builds(root, name)] == [str(check.output_dir)]

    second = run(root, name)
    assert message(server, second) == ("Completed", "Targets: 0 changed, 1 unchanged, 0 failed.")
    assert len(events(server, root, name, 801)) == 1
    assert jobs(root, name) == [801, 802]

    third = run(root, name)
    assert message(server, third) == (
        "Completed",
        "Targets: 1 changed, 0 unchanged, 0 failed. · "
        "GRB 200416A: 14 new bins: WT 6, PC 6, PC upper limits 2. Changed: LightCurve.",
    )
    _, told = events(server, root, name, 803)
    bins = {"WT": 6, "PC": 6, "PC upper limits": 2}
    assert (told["new_bins"], told["changed_products"]) == (bins, ["LightCurve"])
    assert (told["job_id"], told["previous_job_id"]) == (803, 802)
    assert jobs(root, name) == [801, 803]
    assert len(emulator.jobs) == 3
    table = server.artifacts(third.state_details.flow_run_id)[ARTIFACT_KEY]
    assert [(row["target"], row["outcome"]) for row in json.loads(table["data"])] == [(name, "changed")]


def test_stopped_before_it_was_told(
    server: Server, service: Callable[..., Emulator], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that ended, and of which a run that was stopped then has told nobody, is told of by the next run."""
    service(default=READY)

    def stop(*_: object) -> None:
        raise RuntimeError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr("prefect_xrt.pipelines.monitor.compare", stop)
        assert run(root, "V404 Cyg").is_failed()
    (check,) = run(root, "V404 Cyg").result()
    assert (check.outcome, check.message) == ("changed", "The first build: LightCurve.")
    assert jobs(root, "V404 Cyg") == [801]
    assert len(events(server, root, "V404 Cyg", 801)) == 1


def test_one_failure(server: Server, service: Callable[..., Emulator], root: Path, tmp_path: Path) -> None:
    """A target that fails, a file that is none, and a name that is there already stop nobody else."""
    emulator = service(default=READY, jobs={"GK Per": {"*": FAILED}}, unresolvable_names=["Nowhere"])
    folder = tmp_path / "requests"
    folder.mkdir()
    request = {"name": "Mrk 421", "targ": "00034014", "RA": 166.1, "Dec": 38.2, "cent": 0, "image": 1}
    (folder / "mrk421.json").write_text(json.dumps(request))
    (folder / "again.json").write_text(json.dumps({**request, "name": "GK Per"}))
    (folder / "broken.json").write_text("{")
    state = run(root, "GK Per, 52.8, 43.9043, 00010873\nNowhere", requests_dir=str(folder), max_active=1)
    name, text = message(server, state)
    assert name == "Partly"
    assert text.startswith("Targets: 1 changed, 0 unchanged, 4 failed. · again.json: ")
    assert "again.json: there is another request for 'GK Per'" in text
    assert "broken.json: request: is not JSON" in text
    assert "GK Per: 0 of 1 products of job 801" in text
    assert "Nowhere: " in text
    assert builds(root, "Nowhere") == []
    assert isinstance(state.result(raise_on_failure=False), ProductsError)
    assert (builds(root, "Mrk 421")[0] / "image.tar.gz").is_file()
    calls = [call.endpoint for call in emulator.log if call.endpoint in ("submit", "status")]
    assert calls == ["submit", "status", "submit", "submit", "status"]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"sources": " "}, InvalidRequestError, "Sources, Folder of requests: there is nothing to build"),
        ({"sources": "GK Per", "requests_dir": "none"}, InvalidRequestError, "there is no folder none"),
        ({"sources": "GK Per, 52.8, 99"}, InvalidRequestError, "line 1, dec: '99' is not between"),
        ({"sources": "GK Per", "notify": "slack-webhook/none"}, ConfigurationError, "slack-webhook/none"),
        ({"sources": "GK Per", "credentials": "none"}, ConfigurationError, "none"),
    ],
)
def test_refused_at_once(
    server: Server,
    service: Callable[..., Emulator],
    root: Path,
    options: dict[str, Any],
    error: type[Exception],
    text: str,
) -> None:
    """What cannot be right is refused before anything is sent."""
    emulator = service(default=READY)
    state = run(root, **options)
    found = state.result(raise_on_failure=False)
    assert isinstance(found, error)
    assert text in str(found)
    assert emulator.jobs == {}


def test_retry(
    server: Server, service: Callable[..., Emulator], root: Path, look_at_once: Callable[[], None]
) -> None:
    """A run that is retried builds nothing twice, and tells nothing twice."""
    emulator = service(default=READY)
    emulator.add_fault(Fault("file", "redirect", location="http://127.0.0.2:9", times=1))
    first = run(root, "V404 Cyg\nCyg X-1")
    assert first.name == "Partly"
    look_at_once()
    run_id = first.state_details.flow_run_id
    assert run_id
    second = attempt(run_id, sources="V404 Cyg\nCyg X-1", output_root=root)
    checks = second.result()
    assert {check.target: check.outcome for check in checks} == {"V404 Cyg": "changed", "Cyg X-1": "changed"}
    assert sorted(emulator.jobs) == [801, 802]
    for check in checks:
        assert builds(root, check.target) == [check.output_dir]
        assert jobs(root, check.target) == [check.changes.job_id]
        assert check == Check.model_validate_json((check.output_dir / CHECK_NAME).read_text())
        job_id = check.changes.job_id
        assert [event["job_id"] for event in events(server, root, check.target, job_id)] == [job_id]


@pytest.mark.usefixtures("server")
class TestUnfinished:
    def test_gone_on_with(
        self, service: Callable[..., Emulator], root: Path, look_at_once: Callable[[], None]
    ) -> None:
        """What a run could not finish, the next one goes on with; another request has a build of its own."""
        emulator = service(default=READY)
        elsewhere = Fault("file", "redirect", location="http://127.0.0.2:9")
        emulator.add_fault(elsewhere)
        assert run(root, "AX J1745.6-2901").is_failed()
        emulator.add_fault(elsewhere)
        assert run(root, "AX J1745.6-2901", products=["Image"]).is_failed()
        assert jobs(root, "AX J1745.6-2901") == [801, 802]
        look_at_once()
        last = run(root, "AX J1745.6-2901", products=["Image"])
        (check,) = last.result()
        assert (check.outcome, check.output_dir) == ("changed", builds(root, "AX J1745.6-2901")[1])
        run_id = last.state_details.flow_run_id
        assert run_id
        again = attempt(run_id, sources="AX J1745.6-2901", products=["Image"], output_root=root)
        assert again.result() == [check]
        assert sorted(emulator.jobs) == [801, 802]

    def test_come_to_nothing(
        self, service: Callable[..., Emulator], root: Path, look_at_once: Callable[[], None]
    ) -> None:
        """A job that was left and was cancelled since is not all that is looked at: it is built anew."""
        emulator = service(default=READY)
        emulator.add_fault(Fault("file", "redirect", location="http://127.0.0.2:9"))
        assert run(root, "FO Aqr").is_failed()
        emulator.jobs[801].products["lc"] = Product(Timeline.of((-4,)), 0.0, None, None)
        look_at_once()
        (check,) = run(root, "FO Aqr").result()
        assert (check.outcome, check.changes.job_id) == ("changed", 802)
        assert jobs(root, "FO Aqr") == [802]


def test_cancelled(
    server: Server, service: Callable[..., Emulator], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled: what builds is cancelled, what has not begun is left alone, and the run ends Cancelled."""
    monkeypatch.setattr(runs, "_OWN_STATE_S", 0.1)
    emulator = service(default=Timeline.of((3,)))

    def cancel() -> None:
        while not emulator.calls("status"):
            time.sleep(0.05)
        (found,) = server.find("flow_runs", flow_runs={"name": {"any_": [f"monitor: {root}"]}})
        server.cancel(found["id"])

    elsewhere = threading.Thread(target=cancel)
    elsewhere.start()
    state = run(root, "Vela X-1\nSS 433", max_active=1)
    elsewhere.join()
    assert message(server, state)[0] == "Cancelled"
    assert {number: job.code("lc") for number, job in emulator.jobs.items()} == {801: -4}
    assert not (root / folder_name("SS 433")).exists()


def test_form(server: Server) -> None:
    """The form has a title and a description for each field, in order."""
    deployment = monitor.to_deployment("form")
    properties = deployment._parameter_openapi_schema.properties  # what the UI is told
    assert [field["title"] for field in properties.values()] == [
        *("Sources", "Products", "Light curve", "Spectrum", "Folder of requests", "Output folder"),
        *("Jobs at a time", "Account", "Notification"),
    ]
    assert all(field.get("description") for field in properties.values())
