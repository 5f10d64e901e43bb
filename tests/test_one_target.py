"""The form of one target refuses what is wrong before anything is sent, and builds what is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from prefect_xrt.archive import folder_name
from prefect_xrt.emulator import Emulator, Fault, Timeline
from prefect_xrt.errors import InvalidRequestError
from prefect_xrt.pipelines.one_target import one_target

if TYPE_CHECKING:
    from conftest import Server

READY, FAILED = Timeline.of((4,)), Timeline.of((-1,))
FIVE: dict[str, Any] = {
    "name": "GRB 200416A",
    "target_ids": "00966554",
    "ra": "22 22 47.64",
    "dec": "-07 31 04.44",
    "products": ["LightCurve", "Image"],
}


class TestRun:
    def test_five_fields(self, server: Server, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """Five fields build into a folder of the run's own; tasks, progress and report belong to the run itself."""
        emulator = service(default=READY)
        state = one_target(**FIVE, output_root=tmp_path, return_state=True)
        run = server.flow_run(state.state_details.flow_run_id)
        (folder,) = (tmp_path / folder_name("GRB 200416A")).iterdir()
        expected = (
            "one target: GRB 200416A",
            "Completed",
            f"2 of 2 products of job 801 (GRB 200416A) are in {folder}.",
        )
        assert expected == (run["name"], run["state_name"], run["state"]["message"])
        assert {"lc.tar.gz", "image.tar.gz", "job.json"} <= {file.name for file in folder.iterdir()}
        asked = {"targ": "00966554", "RA": 335.6985, "Dec": -7.5179, "binMeth": "counts", "lc": 1, "image": 1}
        assert asked.items() <= emulator.jobs[801].parameters.items()
        of_job = "GRB 200416A, job 801"
        assert sorted(server.task_runs(run["id"])) == [
            (f"download: Image of {of_job}", "Completed"),
            (f"download: LightCurve of {of_job}", "Completed"),
            ("submit: GRB 200416A", "Completed"),
            (f"wait: {of_job}", "Completed"),
        ]
        assert server.artifacts(run["id"]).keys() == {"xrt-progress-801", "xrt-job-801", "xrt-report-801"}

    def test_ends_as_the_build(
        self, server: Server, service: Callable[..., Emulator], tmp_path: Path
    ) -> None:
        """Where only some products are there, the run ends as the build does, by name and message."""
        service(default=READY, timelines={"image": FAILED})
        state = one_target(**FIVE, output_root=tmp_path, return_state=True)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["state"]["type"], run["state"]["name"]) == ("FAILED", "Partly")
        assert "not there: Image" in run["state"]["message"]

    def test_retried(self, server: Server, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """Where Prefect retries the run, it goes on with the same job, in the same folder, to its end."""
        emulator = service(default=READY)
        emulator.add_fault(Fault("file", "redirect", location="http://127.0.0.2:9", times=1))
        patient = one_target.with_options(retries=1)
        state = patient(**FIVE, output_root=tmp_path, return_state=True)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["state_name"], run["run_count"]) == ("Completed", 2)
        assert list(emulator.jobs) == [801]
        assert len(list((tmp_path / folder_name("GRB 200416A")).iterdir())) == 1

    def test_pasted(self, server: Server, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """The reply to an earlier request, pasted, is enough; the run and the folder get its name."""
        emulator = service(default=READY)
        parameters = {"name": "Mrk 421", "targ": "00034014", "RA": 166.1, "Dec": 38.2, "cent": 0, "image": 1}
        pasted = {"OK": 1, "JobID": "7", "jobPars": {**parameters, "UserID": "someone@example.org"}}
        state = one_target(request=pasted, output_root=tmp_path, return_state=True)
        run = server.flow_run(state.state_details.flow_run_id)
        assert (run["name"], run["state_name"]) == ("one target: Mrk 421", "Completed")
        assert (tmp_path / folder_name("Mrk 421")).exists()
        assert parameters.items() <= emulator.jobs[801].parameters.items()
        (warning,) = [text for level, text in server.logs(run["id"], "UserID") if level == 30]
        assert "leave it out" in warning

    def test_wrong(self, server: Server, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """What is wrong fails before anything is sent or made; the state's message begins with the field."""
        emulator = service()
        state = one_target(
            **{**FIVE, "target_ids": "966554", "dec": ""}, output_root=tmp_path / "out", return_state=True
        )
        run = server.flow_run(state.state_details.flow_run_id)
        expected = (
            "Dec (J2000): is empty, though RA (J2000) is filled in; "
            "Target IDs: '966554' is not a target ID of 8 digits, such as 00966554. Nothing was sent."
        )
        assert ("Failed", expected) == (run["state_name"], run["state"]["message"])
        assert isinstance(state.result(raise_on_failure=False), InvalidRequestError)
        assert emulator.calls() == []
        assert not (tmp_path / "out").exists()
        assert server.task_runs(run["id"]) == []


class TestServer:
    @pytest.fixture
    def deployment(self, server: Server) -> str:
        """Deploy the flow, with nobody to run it."""
        return str(one_target.to_deployment("refusing").apply())

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ({"position_error_arcmin": 9}, "position_error_arcmin"),
            ({"products": []}, "products"),
            ({"products": ["Lightcurve"]}, "products"),
            ({"centroid": "maybe"}, "centroid"),
            ({"light_curve": {"binning": "count"}}, "light_curve.binning"),
            ({"light_curve": {"pc_counts": 0}}, "light_curve.pc_counts"),
            ({"light_curve": {"pccounts": 20}}, "light_curve"),
            ({"spectrum": {"time_slices": [{"name": "early", "gti": "0-1"}] * 5}}, "spectrum.time_slices"),
            ({"request": "{"}, "request"),
        ],
    )
    def test_refused(self, server: Server, deployment: str, wrong: dict[str, Any], field: str) -> None:
        """The server refuses what the form's schema rules out, and names the field; there is no run."""
        answer = self.start(server, deployment, {**FIVE, **wrong})
        assert answer.status_code == 409
        assert field in answer.json()["detail"]

    def test_accepted(self, server: Server, deployment: str) -> None:
        """The server accepts what the UI sends: all fields, with null for the numbers that are left empty."""
        filled = {
            **FIVE,
            "light_curve": {"pc_bin_s": None, "observations": ""},
            "spectrum": {"redshift": None, "include_hours": None},
            "request": {},
            "credentials": "",
        }
        assert self.start(server, deployment, filled).status_code == 201

    @staticmethod
    def start(server: Server, deployment: str, parameters: dict[str, Any]) -> requests.Response:
        """Start a run as the UI does."""
        return requests.post(
            f"{server.url}/deployments/{deployment}/create_flow_run",
            json={"parameters": parameters},
            timeout=30,
        )
