"""Put the pipelines and their automations onto a Prefect server; what is there already is brought up to date."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from prefect_xrt.alerts import load_notifier
from prefect_xrt.errors import ConfigurationError
from prefect_xrt.runs import server_url

__all__ = ["FOLDER", "WORK_POOL", "deploy"]

FOLDER = Path(__file__).parent / "deployments"
"""Where the deployment file and the automations are, in a wheel as in a checkout."""
WORK_POOL = "xrt"
_BLOCK_ID = "NOTIFICATION_BLOCK_ID"


def deploy(notify: str | None = None, *, say: Callable[[str], object] = print) -> None:
    """Deploy all pipelines, and with a notification block also the automations that tell of alerts.

    The work pool is made if there is none of its name. Schedules, and whether an automation is on, are what the
    files say at first, and after that what people have made of them.

    Args:
        notify: A Prefect notification block, as "type-slug/name", such as "slack-webhook/xrt". Without one, the
            automations that need it are left as they are.
        say: Gets a line about each thing that was done.

    Raises:
        ConfigurationError: No Prefect server is set, it does not answer, it has no such block, or it refused
            what was to be deployed.
    """
    url = server_url()
    notifier = load_notifier(notify)
    try:
        with get_client(sync_client=True) as client:
            if not _has_work_pool(client):
                _prefect("work-pool", "create", WORK_POOL, "--type", "process")
                say(f"Made the work pool {WORK_POOL}.")
            content = _deployments(client)
            with TemporaryDirectory() as scratch:
                file = Path(scratch, "prefect.yaml")
                file.write_text(yaml.safe_dump(content), encoding="utf-8")
                _prefect("deploy", "--prefect-file", str(file), "--all")
            say(f"Deployed {', '.join(entry['name'] for entry in content['deployments'])}.")
            if notifier:
                for name in _apply_automations(client, str(notifier.block._block_document_id)):
                    say(f"Applied the automation {name!r}, which tells {notify}.")
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError) as error:
        raise ConfigurationError(
            f"Prefect's server at {url} does not answer as it should ({str(error) or type(error).__name__}); "
            "is it running?"
        ) from error


def _has_work_pool(client: SyncPrefectClient) -> bool:
    try:
        client.read_work_pool(WORK_POOL)
    except ObjectNotFound:
        return False
    return True


def _deployments(client: SyncPrefectClient) -> dict[str, Any]:
    """Return the deployment file, less what people have their own way with by now."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / "prefect.yaml").read_text(encoding="utf-8"))
    for entry in content["deployments"]:
        if "schedules" in entry and _is_deployed(client, entry["name"]):
            del entry["schedules"]
        for trigger in entry.get("triggers", ()):
            for there in client.read_automations_by_name(trigger["name"]):
                trigger["enabled"] = there.enabled
    return content


def _is_deployed(client: SyncPrefectClient, name: str) -> bool:
    try:
        client.read_deployment_by_name(f"{name}/{name}")
    except ObjectNotFound:
        return False
    return True


def _prefect(*arguments: str) -> None:
    """Run a command of Prefect's, away from whatever project the caller's folder belongs to."""
    done = subprocess.run(  # noqa: S603 - this very interpreter
        [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
        cwd=FOLDER,
        env={"DO_NOT_TRACK": "1"} | os.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ConfigurationError(
            f"`prefect {' '.join(arguments)}` failed:\n{(done.stdout + done.stderr).strip()}"
        )


def _apply_automations(client: SyncPrefectClient, block_id: str) -> list[str]:
    applied = []
    for path in sorted((FOLDER / "automations").glob("*.yaml")):
        text = path.read_text(encoding="utf-8").replace(_BLOCK_ID, block_id)
        for entry in yaml.safe_load(text)["automations"]:
            wanted = AutomationCore.model_validate(entry)
            there = client.read_automations_by_name(wanted.name)
            if there:
                kept = wanted.model_copy(update={"enabled": there[0].enabled})
                client.update_automation(there[0].id, kept)
            else:
                client.create_automation(wanted)
            applied.append(wanted.name)
    return applied
