"""The documentation's promises: its snippets run as they stand, and what it lists is all that there is."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.utilities.callables import parameter_schema

import prefect_xrt
from prefect_xrt import XRTClient, errors, protocol, read_request_file, records, reports
from prefect_xrt import cli as cli_module
from prefect_xrt.emulator import Emulator, Timeline
from prefect_xrt.pipelines.one_target import one_target

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in [README, *sorted(DOCS.glob("*.md"))]}
EXAMPLE = ROOT / "prefect_xrt" / "examples" / "grb200416a.json"
ADDRESS = "you@observatory.example"

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<why>.+?) -->\n+)?"
    r"(?P<indent> *)```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A block of code of a page."""

    language: str
    title: str | None
    text: str
    why_not: str | None


def blocks(page: str) -> Iterator[Block]:
    """Give the blocks of a page, in order."""
    for found in _BLOCK.finditer(page):
        yield Block(found["language"], found["title"], textwrap.dedent(found["text"]), found["why"])


def run_python(text: str, name: str, names: dict[str, Any]) -> str:
    """Run a block as a script of that name, and return what it printed."""
    # A flow's source is looked up in its file.
    script = Path(name)
    script.write_text(text, encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(text, str(script.resolve()), "exec"), names)  # noqa: S102 - our own pages
    return printed.getvalue()


def run_shell(text: str) -> str:
    """Run a block as a person would who stops at the first error, and return what it printed."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        env=os.environ | {"PATH": programs},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def shows(expected: str, printed: str) -> bool:
    """Tell whether lines that a page shows were printed, in that order; … stands for anything."""
    lines = (re.escape(line.strip()).replace("…", ".*") for line in expected.splitlines())
    pattern = r"\s*\n(?:.*\n)*?\s*".join(re.sub(r"(\\ )+", r"\\s+", line) for line in lines)
    return re.search(pattern, printed) is not None


def check_data(block: Block) -> None:
    """Read JSON or YAML; an automation in it is one that Prefect takes."""
    read = json.loads if block.language == "json" else yaml.safe_load
    content = read(block.text.replace("DEPLOYMENT_ID", str(uuid4())))
    for entry in content.get("automations", [content] if "trigger" in content else []):
        AutomationCore.model_validate(entry)


def sections_of(page: str) -> dict[str, str]:
    """Return the sections of the third level, by their headings."""
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


class TestSnippets:
    @pytest.mark.usefixtures("server")
    @pytest.mark.parametrize("name", [name for name, page in PAGES.items() if list(blocks(page))])
    def test_run_as_they_stand(
        self,
        name: str,
        service: Callable[..., Emulator],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The blocks of a page, one after the other in an empty folder, do what the page says they do."""
        emulator = service(default=Timeline.of((4,)), users=(ADDRESS,))
        with XRTClient(ADDRESS, emulator.url) as client:
            # The pages speak of a job that their reader has had before.
            assert client.submit(read_request_file(EXAMPLE)).id == 801
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {"__name__": "__main__"}
        printed = ""
        for number, block in enumerate(blocks(PAGES[name])):
            if block.why_not:
                continue
            # As if it were run a day later: no look is too soon after one of the block before.
            monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / f".state_{number}"))
            if block.title and block.language != "python":
                Path(block.title).write_text(block.text, encoding="utf-8")
            if block.language == "python":
                printed = run_python(block.text, block.title or f"{name}_{number}.py", names)
            elif block.language == "sh":
                printed = run_shell(block.text)
            elif block.language in ("json", "yaml"):
                check_data(block)
            elif block.language == "text":
                assert shows(block.text, printed), printed
            else:
                pytest.fail(f"Nobody runs a block of {block.language!r}.")

    def test_few_are_not_run(self) -> None:
        """A block that is not run here says which test or script runs it, or why nobody can; those are few."""
        every = [block for page in PAGES.values() for block in blocks(page)]
        reasons = [block.why_not for block in every if block.why_not]
        elsewhere = [found for why in reasons if (found := re.match(r"(\S+) (?:runs|does)\b", why))]
        assert [found[1] for found in elsewhere if not (ROOT / found[1]).is_file()] == []
        assert 6 * (len(reasons) - len(elsewhere)) < len(every)

    def test_every_block_is_found(self) -> None:
        """No block of a page escapes the tests by the way that it is written."""
        fences = {name: len(re.findall(r"^ *```\w", page, re.MULTILINE)) for name, page in PAGES.items()}
        assert fences == {name: len(list(blocks(page))) for name, page in PAGES.items()}

    def test_what_is_shown_is_compared(self) -> None:
        """A line that was not printed, or not in that order, is noticed."""
        printed = "LightCurve   ready  lc.tar.gz\n\n1 of 2 products\n"
        assert shows("LightCurve ready …\n1 of …", printed)
        assert not shows("1 of …\nLightCurve ready …", printed)
        assert not shows("Light ready …", printed)


class TestReadme:
    def test_quick_start_is_two_commands(self) -> None:
        """One command shows the main job, one runs the tests, and `.ci/run` calls the second."""
        commands = [block.text for block in blocks(PAGES["README"])]
        assert commands == ["python3 dev.py demo\npython3 dev.py test\n"]
        assert "dev.py test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    def test_links(self) -> None:
        """Whatever the README points to in the checkout is there; the site's own links are tried when it is built."""
        places = re.findall(r"\]\((?!http)([^)#]+)", PAGES["README"])
        assert len(places) > 5
        assert [place for place in places if not (ROOT / place).exists()] == []


class TestCompleteness:
    def test_errors(self) -> None:
        """Every error and warning has a section that tells what happened and what to do, and no other has one."""
        kinds = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
        sections = sections_of(PAGES["errors"])
        assert sections.keys() == kinds
        assert [
            name
            for name, text in sections.items()
            if not {"*What happened.*", "*What to do.*"} <= set(re.findall(r"\*What [a-z ]+\.\*", text))
        ] == []

    def test_exit_codes(self) -> None:
        """The section of an error has the exit code that the shell ends with."""
        told = {
            name: {int(code) for code in re.findall(r"\d+", found[0])}
            for name, text in sections_of(PAGES["errors"]).items()
            if (found := re.search(r"Exit\s+code\s[^.]*\.", text))
        }
        kinds = {name: getattr(errors, name) for name in told}
        ended = {
            name: {cli_module._code_of(kind("Something happened."))}
            for name, kind in kinds.items()
            if kind is not errors.ProductsError
        }
        assert told == ended | {
            "ProductsError": {
                cli_module._PARTLY,
                cli_module._FAILED,
                cli_module._CANCELLED,
                cli_module._FILES,
            }
        }
        assert told.keys() >= {kind.__name__ for kind, _ in cli_module._EXIT_OF}

    def test_status_codes(self) -> None:
        """The table of status codes has every code, with the state that the package takes it for."""
        rows = re.findall(r"^\| (-?\d+) \| `(\w+)` \|", PAGES["statuses"], re.MULTILINE)
        known = {**protocol._STATE_OF_CODE, protocol.NOT_REPORTED: protocol.ProductState.UNKNOWN}
        assert {int(code): state for code, state in rows} == known

    def test_commands(self) -> None:
        """Every command of the shell is in the table, and the other way round."""
        listed = set(re.findall(r"^\| `prefect-xrt ([a-z]+)", PAGES["cli"], re.MULTILINE))
        assert listed == set(cli_module.cli.commands)

    def test_table_of_exit_codes(self) -> None:
        """The table of exit codes says what the help of the shell says."""
        told = re.findall(r"^  (\d+) +(.+)$", cli_module.EXIT_CODES, re.MULTILINE)
        assert re.findall(r"^\| (\d+) \| (.+) \|$", PAGES["cli"], re.MULTILINE) == told

    def test_form(self) -> None:
        """Every field of the form for one target is in a table."""
        properties = parameter_schema(one_target).properties
        cells = ", ".join(re.findall(r"^\| ([^|]+) \|", PAGES["one-target"], re.MULTILINE))
        assert [entry["title"] for entry in properties.values() if entry["title"] not in cells] == []

    def test_reference(self) -> None:
        """The reference has every module that the package offers names of."""
        pages = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
        documented = set(re.findall(r"^::: prefect_xrt\.([a-z_.]+)$", pages, re.MULTILINE))
        assert {*prefect_xrt._ROOMS, "errors", "figures", "collection", "interop"} <= documented

    def test_files_of_a_folder(self) -> None:
        """The files that the table of a folder lists are those that the package writes."""
        listed = set(re.findall(r"^\| `(\w+\.json)` \|", PAGES["first-product"], re.MULTILINE))
        assert listed == {
            records.RECORD_NAME,
            records.PARAMETERS_NAME,
            records.SUBMISSION_NAME,
            reports.REPORT_NAME,
        }
