"""The README's promises that a test can keep: its commands are there, and its Python runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefect_xrt.emulator import Emulator, Timeline

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def snippets(language: str) -> list[str]:
    """Give the blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_quick_start_is_two_commands() -> None:
    """One command shows the main job, one runs the tests, and `.ci/run` calls the second."""
    assert snippets("sh")[:2] == ["python3 dev.py demo\n", "python3 dev.py test\n"]
    assert "dev.py test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.usefixtures("server")
def test_python_example(
    service: Callable[..., Emulator], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example flow runs as it stands, and prints the files."""
    service(default=Timeline.of((4,)))
    (example,) = (snippet for snippet in snippets("python") if "def follow_up" in snippet)
    names: dict[str, Any] = {}
    # A flow's source is looked up in its file.
    script = tmp_path / "example.py"
    script.write_text(example)
    exec(compile(example, script, "exec"), names)  # noqa: S102 - our own README
    names["follow_up"](str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert ["lc.tar.gz" in printed, "spec.tar.gz" in printed] == [True, True]


def test_commands_exist() -> None:
    """Every command of the shell that the README lists is there, and the other way round."""
    from prefect_xrt.cli import cli  # noqa: PLC0415 - beside its use

    listed = set(re.findall(r"^\| `prefect-xrt ([a-z]+)", README, re.MULTILINE))
    assert listed == set(cli.commands)
