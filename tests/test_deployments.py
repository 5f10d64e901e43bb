"""What is deployed runs: the deployment file, a work pool, a worker, and runs that end with files.

`dev.py wheel` also goes the way of docs/deploy.md, with the installed wheel. The files for containers are checked as
far as that goes without an engine.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import yaml
from conftest import Server, free_port
from prefect import settings
from prefect.flow_runs import wait_for_flow_run

from prefect_xrt.archive import folder_name
from prefect_xrt.emulator import Emulator, Timeline

if TYPE_CHECKING:
    from prefect_xrt import ProductRequest

ROOT = Path(__file__).resolve().parent.parent
DEPLOYMENTS = ROOT / "deployments"
EMPTY_HOME = os.environ.get("XRT_EMPTY_HOME", "")


@pytest.mark.usefixtures("worker")
def test_one_target(
    service: Callable[..., Emulator], server: Server, request_: ProductRequest, tmp_path: Path
) -> None:
    """A run of the deployment builds into a folder of its own, and its end starts the flow that follows it there."""
    from prefect.deployments import run_deployment  # noqa: PLC0415 - after the environment is set

    emulator = service(default=Timeline.of((4,)))
    run = run_deployment(
        "one-target/one-target",
        parameters={
            "request": request_.model_dump(mode="json"),
            "output_root": str(tmp_path / "products"),
        },
        job_variables={
            "env": {
                "PREFECT_XRT_USER_ID": emulator.user_id,
                "PREFECT_XRT_BASE_URL": emulator.url,
            }
        },
        timeout=180,
    )
    assert server.flow_run(run.id)["state_name"] == "Completed"
    (folder,) = (tmp_path / "products" / folder_name("GRB 200416A")).iterdir()
    assert {"lc.tar.gz", "spec.tar.gz", "image.tar.gz", "job.json"} <= {
        file.name for file in folder.iterdir()
    }
    assert len(emulator.jobs) == 1

    def followed() -> dict[str, Any] | None:
        found = server.find("flow_runs", flows={"name": {"any_": ["decay"]}})
        return next((run for run in found if run["parameters"] == {"output_dir": str(folder)}), None)

    decay = server.settled(followed)
    assert decay["created_by"]["display_value"] == "XRT: fit the decay after a build"
    ended = asyncio.run(wait_for_flow_run(UUID(decay["id"]), timeout=180, poll_interval=1))
    assert ended.state
    assert (ended.state.name, "α = " in str(ended.state.message)) == ("Completed", True)


class TestPage:
    """docs/deploy.md, from an empty home to a scheduled survey."""

    @staticmethod
    def script(ports: Mapping[str, int]) -> str:
        """Put the commands of the page together, with ports of their own; some are to run in the background."""
        page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
        # The last one first: a worker does not stop while its server is away.
        stop = "for job in $(jobs -p | tac); do kill $job; wait $job || true; done"
        # As in a terminal, `-m`: what a script starts in the background ignores the SIGINT by which a worker ends.
        parts = ["set -meuo pipefail", f"trap '{stop}' EXIT"]
        blocks = re.findall(
            r"^<!-- not run: tests/test_deployments.py runs it( in the background)? -->\n```sh\n(.*?)^```",
            page,
            re.DOTALL | re.MULTILINE,
        )
        for in_background, commands in blocks:
            if not in_background:
                parts.append(commands)
                continue
            parts.append(f"{commands.strip()} &")
            # A person waits until it is there.
            parts += [
                f"until (: < /dev/tcp/127.0.0.1/{default}) 2> /dev/null; do sleep 0.2; done"
                for program, default in (("prefect server", "4200"), ("prefect-xrt emulator", "8642"))
                if program in commands
            ]
        # Whoever runs this looks at what is there now, and then lets it end.
        text = "\n".join([*parts, "echo; echo Done.; read -r || true"])
        for default, port in ports.items():
            text = text.replace(default, str(port))
        return text

    def test_nothing_is_left_out(self) -> None:
        """Every command of the page is in what is run."""
        page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
        commands = re.findall(r"^(?:prefect|prefect-xrt|pip|python3|\.|export|cat) .*", page, re.MULTILINE)
        script = self.script({})
        assert len(commands) > 10
        assert [command for command in commands if command not in script] == []

    @pytest.mark.skipif(not EMPTY_HOME, reason="`dev.py wheel` goes this way, with an installed wheel")
    def test_from_an_empty_machine(self) -> None:
        """The commands as they stand, in an empty home: the survey has its products, and its next runs are there."""
        home, port = Path(EMPTY_HOME), free_port()
        log = home / "page.log"
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "XDG_"))
        }
        with log.open("wb") as everything:
            process = subprocess.Popen(
                ["bash", "-c", self.script({"4200": port, "8642": free_port()})],
                cwd=ROOT,
                env=kept
                | {
                    "HOME": str(home),
                    "PATH": f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin",
                    "PREFECT_SERVER_API_PORT": str(port),
                    "PREFECT_WORKER_QUERY_SECONDS": "1",
                    # Where the machine's settings for pip are.
                    "XDG_CONFIG_HOME": str(Path.home() / ".config"),
                },
                stdin=subprocess.PIPE,
                stdout=everything,
                stderr=everything,
            )
        try:
            while "\nDone.\n" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.2)
            server = Server(home, port)
            of_survey = {"flows": {"name": {"any_": ["survey"]}}}

            def of_state(name: str) -> list[dict[str, Any]]:
                return [run for run in server.find("flow_runs", **of_survey) if run["state_name"] == name]

            (done,) = of_state("Completed")
            assert done["parameters"]["sources"] == "~/xrt/survey.csv"
            assert len(list((home / "xrt" / "survey").glob("*/lc.tar.gz"))) == 2
            coming = server.settled(lambda: of_state("Scheduled") or None)
            next_time = min(datetime.fromisoformat(run["next_scheduled_start_time"]) for run in coming)
            assert (next_time.weekday(), next_time.hour, next_time.minute) == (0, 3, 0)
        finally:
            process.communicate(timeout=60)


class TestContainers:
    @pytest.mark.parametrize(
        "check",
        [
            ("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"),
            ("kubernetes-validate", "--strict", "kubernetes.yaml"),
            ("hadolint", "Dockerfile"),
        ],
        ids=lambda check: check[0],
    )
    def test_valid(self, check: tuple[str, ...]) -> None:
        """What engines read is as their schemas and linters want it."""
        program = Path(sys.executable).with_name(check[0])
        done = subprocess.run(
            [program, *check[1:]], cwd=DEPLOYMENTS, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def test_compose_is_whole(self) -> None:
        """Every service and volume that is referred to is there."""
        content = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
        services = content["services"]
        named = {other for service in services.values() for other in service.get("depends_on", ())}
        networks = {service.get("network_mode", "service:network") for service in services.values()}
        volumes = {
            volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())
        }
        assert named | {"service", "watcher", "worker"} == services.keys()
        assert networks == {"service:network"}
        assert volumes == content["volumes"].keys()

    @pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "kubernetes.yaml"])
    def test_settings(self, name: str) -> None:
        """Every setting in a file has a name that Prefect or this package knows, and no file holds a secret."""
        text = (DEPLOYMENTS / name).read_text()
        others = {
            "PREFECT_REDIS_MESSAGING_URL",  # of prefect-redis
            "PREFECT_VERSION",  # of the Dockerfile alone
            "PREFECT_XRT_USER_ID",
            "PREFECT_XRT_BASE_URL",
            "PREFECT_XRT_MAX_ACTIVE",
        }
        used = set(re.findall(r"\bPREFECT_[A-Z_]+\b", text))
        assert used
        assert [setting for setting in used - others if not hasattr(settings, setting)] == []
        for secret in re.findall(r"(?:PASSWORD|USER_ID): (.*)", text):
            assert secret.startswith("${")
