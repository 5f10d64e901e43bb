"""The shell's acts: plain lines, one JSON document for scripts, documented exit codes, and no traceback."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from prefect_xrt import BuildReport, ProductRequest
from prefect_xrt.cli import cli
from prefect_xrt.emulator import Emulator, Fault, Timeline

READY, FAILED, CANCELLED = Timeline.of((4,)), Timeline.of((-1,)), Timeline.of((-4,))
FAST = ("--interval", "0.05")


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], prog_name="prefect-xrt")


def command(*arguments: object) -> list[str]:
    """Give the words that start a command in another process."""
    return [sys.executable, "-m", "prefect_xrt.cli", *(str(argument) for argument in arguments)]


def start(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in another process, as a shell does."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | environment,
    )


@contextmanager
def submitted(request_file: Path) -> Iterator[int]:
    """Submit a request, and give the job's ID."""
    done = run("submit", request_file)
    assert done.exit_code == 0, done.output
    yield int(done.stdout)


def one_line(done: Result | subprocess.CompletedProcess[str]) -> str:
    """Give the error that a command ended with, if it is told in a line or two."""
    lines = [line for line in done.stderr.splitlines() if not line.startswith("Starting Prefect")]
    assert "Traceback" not in done.stderr
    assert lines[-1].startswith("Error: ")
    return lines[-1]


class TestHelp:
    def test_exit_codes(self) -> None:
        """The help lists every exit code, a line each."""
        lines = [line.strip() for line in run("--help").stdout.splitlines()]
        listed = [line.split()[0] for line in lines if re.match(r"\d+ ", line)]
        assert listed == [*(str(code) for code in range(14)), "130"]

    def test_acts(self) -> None:
        """The help lists every act."""
        for act in ("demo", "build", "submit", "status", "wait", "download", "cancel", "jobs", "emulator"):
            assert re.search(rf"^  {act}  ", run("--help").stdout, re.MULTILINE)

    def test_without_prefect(self) -> None:
        """What needs no Prefect does not wait for its import."""
        script = "import sys, prefect_xrt.cli; sys.exit('prefect' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0


class TestSubmit:
    def test_id(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """Standard output is the job's ID and nothing else."""
        emulator = service()
        done = run("submit", request_file)
        assert (done.exit_code, done.stdout) == (0, "801\n")
        assert "job 801 (GRB 200416A): LightCurve, Spectrum, Image" in done.stderr
        assert list(emulator.jobs) == [801]

    def test_json(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """For scripts, the whole job as one JSON document."""
        emulator = service()
        job = json.loads(run("submit", request_file, "--json").stdout)
        assert (job["id"], job["url"]) == (801, emulator.jobs[801].url)
        assert job["products"] == ["LightCurve", "Spectrum", "Image"]


class TestStatus:
    def test_lines(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """A line for each product, with the service's words and code; progress where there is any."""
        service(speed=1e-6, default=Timeline.of((3,)), timelines={"lc": READY, "image": FAILED})
        with submitted(request_file) as job_id:
            lines = run("status", job_id).stdout.splitlines()
        assert lines[0] == "LightCurve -> Complete (4)"
        assert lines[1] == "Spectrum -> Running (3)"
        assert any(line.startswith("  ** ") and "ACTIVE" in line for line in lines)
        assert lines[-1] == "Image -> Job could not be requested: internal error (-1)"

    def test_json(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """For scripts, what the official client's `checkProductStatus()` gives, for the products asked for."""
        service(default=READY)
        with submitted(request_file) as job_id:
            answer = json.loads(run("status", job_id, "--json", "--product", "spectrum").stdout)
        assert (answer["JobID"], answer["complete"], list(answer["products"])) == (801, True, ["Spectrum"])
        assert set(answer["products"]["Spectrum"]) == {
            "statusCode", "statusText", "progress", "progressText"
        }  # fmt: skip


class TestWait:
    @pytest.mark.parametrize(
        ("timelines", "expected"),
        [
            ({}, 0),
            ({"spec": FAILED}, 3),
            ({"lc": FAILED, "spec": FAILED, "image": CANCELLED}, 4),
            ({"lc": CANCELLED, "spec": CANCELLED, "image": CANCELLED}, 5),
        ],
        ids=["ready", "partly", "failed", "cancelled"],
    )
    def test_exit_code(
        self, service: Callable[..., Emulator], request_file: Path, timelines: Any, expected: int
    ) -> None:
        """The exit code tells how the job ended."""
        service(default=READY, timelines=timelines)
        with submitted(request_file) as job_id:
            assert run("wait", job_id, *FAST).exit_code == expected

    def test_lines_in_a_pipe(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """In a pipe: plain lines on the way to standard error, the end to standard output, no controls."""
        service(default=READY, timelines={"spec": Timeline.of_looks((2, 1), (4,))})
        with submitted(request_file) as job_id:
            done = start("wait", job_id, *FAST)
        assert done.stdout == "job 801 (GRB 200416A): LightCurve ready; Spectrum ready; Image ready\n"
        assert "Spectrum: queued" in done.stderr.splitlines()
        assert "\x1b" not in done.stdout + done.stderr

    def test_table_on_a_terminal(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """On a terminal: a table of the products that is redrawn in its place."""
        service(default=READY, timelines={"spec": Timeline.of_looks((2, 2), (4,))})
        with submitted(request_file) as job_id:
            code, shown = on_a_terminal("wait", job_id, *FAST)
        assert code == 0
        assert "at work on" in shown
        assert "queued" in shown
        assert "\x1b[1A" in shown
        assert "job 801 (GRB 200416A): LightCurve ready; Spectrum ready; Image ready" in shown

    def test_deadline(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """The deadline has passed: 8, and how to go on."""
        emulator = service(default=Timeline.of((3,)))
        with submitted(request_file) as job_id:
            done = run("wait", job_id, *FAST, "--deadline", "0.2")
        assert done.exit_code == 8
        assert "`prefect-xrt attach 801 --out DIR`" in one_line(done)
        assert emulator.calls("cancel") == []

    def test_interrupted(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """Interrupted: 130, without a traceback, and the job lives on."""
        emulator = service(default=Timeline.of((3,)))
        with submitted(request_file) as job_id:
            process = subprocess.Popen(command("wait", job_id, *FAST), stderr=subprocess.PIPE, text=True)
            while not emulator.calls("status"):
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "Traceback" not in told
        assert emulator.calls("cancel") == []

    def test_json(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """For scripts, one document; errors too."""
        service(default=READY, timelines={"spec": FAILED})
        with submitted(request_file) as job_id:
            done = run("wait", job_id, *FAST, "--json")
        answer = json.loads(done.stdout)
        assert (done.exit_code, answer["complete"]) == (3, True)
        assert answer["products"]["Spectrum"]["statusCode"] == -1


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Run a command on a terminal, and give its exit code and all that it showed."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(follower)
    shown = b""
    while select.select([leader], [], [], 60)[0]:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(leader)
    return process.wait(30), shown.decode()


class TestNoPrefect:
    @pytest.mark.parametrize(
        "arguments", [("build", "REQUEST", "--out", "OUT"), ("jobs", "--credentials", "b")]
    )
    def test_server_away(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        arguments: tuple[str, ...],
    ) -> None:
        """A Prefect server that does not answer is told in a line, without traceback, and no job is made."""
        emulator = service(default=READY)
        monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        monkeypatch.setenv("PREFECT_CLIENT_MAX_RETRIES", "0")
        if arguments[0] == "jobs":
            monkeypatch.delenv("PREFECT_XRT_USER_ID")
        places = {"REQUEST": str(request_file), "OUT": str(tmp_path / "out")}
        done = subprocess.run(
            command(*(places.get(argument, argument) for argument in arguments)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (10, False)
        assert "server" in done.stderr
        assert emulator.jobs == {}

    @pytest.mark.parametrize("option", ["--interval", "--deadline"])
    @pytest.mark.parametrize("value", ["nan", "inf"])
    def test_not_a_time(self, option: str, value: str) -> None:
        """A time span that is no number, or has no end, is wrong usage."""
        assert run("wait", "1", option, value).exit_code == 2


class TestDownload:
    def test_files(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """Fetches what is ready, in the format asked for, and unpacks it; the rest is told, as is the exit code."""
        service(default=READY, timelines={"spec": FAILED})
        out = tmp_path / "out"
        with submitted(request_file) as job_id:
            done = run("download", job_id, "--out", out, "--format", "zip", "--extract")
        assert done.exit_code == 3
        assert [line.split(" -> ")[0] for line in done.stdout.splitlines()] == ["LightCurve", "Image"]
        assert "Spectrum: failed (-1" in done.stderr
        expected = {"lc", "lc.zip", "lc.zip.sha256", "image", "image.zip", "image.zip.sha256"}
        assert {path.name for path in out.iterdir()} == expected
        assert any(path.is_file() for path in (out / "lc").rglob("*"))

    def test_not_yet(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """While products still build, what is ready is fetched, and the exit code says not yet."""
        service(default=Timeline.of((3,)), timelines={"image": READY})
        with submitted(request_file) as job_id:
            done = run("download", job_id, "--out", tmp_path / "out")
        assert done.exit_code == 13
        assert (tmp_path / "out" / "image.tar.gz").is_file()

    def test_one_that_cannot_be_had(
        self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path
    ) -> None:
        """A file in the way of one product does not keep the others back."""
        service(default=READY)
        out = tmp_path / "out"
        out.mkdir()
        (out / "lc.tar.gz").write_text("of someone else")
        with submitted(request_file) as job_id:
            done = run("download", job_id, "--out", out)
        assert done.exit_code == 12
        assert "lc.tar.gz is there already" in done.stderr
        assert [(out / f"{name}.tar.gz").is_file() for name in ("spec", "image")] == [True, True]
        assert (out / "lc.tar.gz").read_text() == "of someone else"

    def test_again(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """What is there already is verified and kept; asked to overwrite, it is fetched again."""
        emulator = service(default=READY)
        with submitted(request_file) as job_id:
            kept = []
            for option in ([], [], ["--overwrite"]):
                done = run(
                    "download", job_id, "--out", tmp_path / "out", "--product", "Image", "--json", *option
                )
                kept += [file["kept"] for file in json.loads(done.stdout)["files"]]
        assert kept == [False, True, False]
        assert len(emulator.calls("file")) == 2

    def test_folder_in_the_way(
        self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path
    ) -> None:
        """A folder that cannot be written: 12."""
        service(default=READY)
        (tmp_path / "out").write_text("")
        with submitted(request_file) as job_id:
            done = run("download", job_id, "--out", tmp_path / "out")
        assert done.exit_code == 12
        assert str(tmp_path / "out") in one_line(done)


class TestCancel:
    def test_lines(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """A line for each product; that one had finished already is no error."""
        service(default=Timeline.of((3,)), timelines={"lc": READY})
        with submitted(request_file) as job_id:
            done = run("cancel", job_id)
        assert done.exit_code == 0
        assert done.stdout.splitlines()[1:] == [
            "Spectrum -> Job cancelled OK (0)",
            "Image -> Job cancelled OK (0)",
        ]
        assert done.stdout.startswith("LightCurve -> ")

    def test_json(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """For scripts: the service's codes, and whether all was cancelled."""
        service(default=Timeline.of((3,)))
        with submitted(request_file) as job_id:
            answer = json.loads(run("cancel", job_id, "--json", "--product", "Image").stdout)
        assert answer["complete"]
        assert {name: entry["code"] for name, entry in answer["products"].items()} == {"Image": 0}


class TestJobs:
    def test_lines_in_a_pipe(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """In a pipe, a line for each job, newest first, however narrow the terminal, and the active ones."""
        service(default=Timeline.of((3,)))
        for _ in range(2):
            run("submit", request_file)
        done = start("jobs", COLUMNS="20")
        lines = done.stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["JobID", "802", "801", "2"]
        assert "GRB 200416A" in lines[1]
        assert "LightCurve, Spectrum, Image" in lines[1]
        assert lines[-1] == "2 active"

    def test_json(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """For scripts, one document."""
        service(default=READY)
        run("submit", request_file)
        answer = json.loads(run("jobs", "--json").stdout)
        assert (answer["active"], [job["id"] for job in answer["jobs"]]) == (0, [801])


class TestSettings:
    def test_options_before_variables(
        self, service: Callable[..., Emulator], request_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Options come before variables; the address is none, since the list of processes would show it."""
        emulator = service()
        monkeypatch.setenv("PREFECT_XRT_BASE_URL", "http://127.0.0.1:9/user_objects")
        assert run("submit", request_file, "--base-url", emulator.url).exit_code == 0
        assert run("submit", request_file, "--user-id", "somebody@example.org").exit_code == 2
        assert len(emulator.jobs) == 1

    @pytest.mark.usefixtures("server")
    def test_block(
        self, service: Callable[..., Emulator], request_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A block that an option names comes before the variables, and those before one that a variable names."""
        from prefect_xrt import XRTCredentials  # noqa: PLC0415 - takes seconds

        emulator = service(users=("first@example.org", "second@example.org"))
        # What the shell takes from the block is gone again after the test.
        monkeypatch.setenv("PREFECT_XRT_MAX_ACTIVE", "")
        monkeypatch.delenv("PREFECT_XRT_MAX_ACTIVE")
        block = XRTCredentials(user_id="second@example.org", base_url=emulator.url, max_active=3)
        block.save("shell", overwrite=True)
        run("submit", request_file, "--credentials", "shell")
        assert os.environ["PREFECT_XRT_MAX_ACTIVE"] == "3"
        monkeypatch.setenv("PREFECT_XRT_CREDENTIALS", "shell")
        run("submit", request_file)
        monkeypatch.delenv("PREFECT_XRT_USER_ID")
        monkeypatch.delenv("PREFECT_XRT_BASE_URL")
        run("submit", request_file)
        users = [job.user for job in emulator.jobs.values()]
        assert users == ["second@example.org", "first@example.org", "second@example.org"]


class TestExitCodes:
    """Errors are told in a line or two, with the documented exit code, and no job is made by mistake."""

    @pytest.mark.parametrize(
        ("content", "named"),
        [
            ("{ this is not JSON", "is not JSON"),
            ('{"name": "X", "hologram": {}}', "hologram"),
            ('{"name": "X", "RA": 1, "Dec": 95, "cent": 0, "targ": "00012345", "image": 1}', "Dec"),
            ('{"name": "X", "RA": 1, "Dec": 5, "cent": 0, "targ": "00012345"}', "product"),
            (
                '{"name": "X", "RA": 1, "Dec": 5, "cent": 0, "targ": "00012345", "lc": 1, "binMeth": "counts"}',
                "light_curve",
            ),
        ],
        ids=["no JSON", "unknown product", "declination", "no product", "binning without counts"],
    )
    @pytest.mark.parametrize("act", ["submit", "build"])
    def test_invalid_request(
        self, service: Callable[..., Emulator], tmp_path: Path, act: str, content: str, named: str
    ) -> None:
        """A request that cannot be right: 6, before any contact."""
        emulator = service()
        path = tmp_path / "request.json"
        path.write_text(content)
        options = ["--out", tmp_path / "out"] if act == "build" else []
        done = run(act, path, *options)
        assert done.exit_code == 6
        assert "Traceback" not in done.stderr
        assert named in done.stderr
        assert str(path) in done.stderr
        assert emulator.log == []
        assert {entry.name for entry in tmp_path.iterdir()} == {"request.json"}

    def test_no_such_file(self, service: Callable[..., Emulator], tmp_path: Path) -> None:
        """A request file that is not there: 6."""
        service()
        assert run("submit", tmp_path / "none.json").exit_code == 6

    def test_wrong_usage(self) -> None:
        """A command line that makes no sense: 2."""
        assert run("wait", "eight-hundred").exit_code == 2

    def test_refused(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """A refusal of the service: 6, with its words."""
        emulator = service(active_job_limit=0)
        done = run("submit", request_file)
        assert done.exit_code == 6
        assert one_line(done)
        assert emulator.jobs == {}

    @pytest.mark.parametrize("act", ["status", "wait", "cancel"])
    def test_no_such_job(self, service: Callable[..., Emulator], act: str) -> None:
        """A job that is not there: 9."""
        service()
        done = run(act, 4711)
        assert done.exit_code == 9
        one_line(done)

    def test_job_of_someone_else(
        self, service: Callable[..., Emulator], request_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Someone else's job: 9, and it is left alone."""
        emulator = service(default=Timeline.of((3,)), users=("first@example.org", "second@example.org"))
        with submitted(request_file) as job_id:
            monkeypatch.setenv("PREFECT_XRT_USER_ID", "second@example.org")
            assert run("cancel", job_id).exit_code == 9
        assert emulator.calls("cancel") == []

    def test_unregistered(
        self, service: Callable[..., Emulator], request_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An address that is not registered: 10, and it is not repeated."""
        emulator = service()
        monkeypatch.setenv("PREFECT_XRT_USER_ID", "stranger@example.org")
        done = run("submit", request_file)
        assert done.exit_code == 10
        assert "stranger" not in done.output
        assert emulator.jobs == {}

    def test_no_account(self, request_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No account: 10, and what to set."""
        monkeypatch.delenv("PREFECT_XRT_USER_ID", raising=False)
        done = run("submit", request_file)
        assert done.exit_code == 10
        assert "PREFECT_XRT_USER_ID" in one_line(done)

    def test_unusable_base_url(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """A base URL that cannot be one: 10."""
        service()
        assert run("submit", request_file, "--base-url", "www.swift.ac.uk").exit_code == 10

    def test_base_url_with_a_typo(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """A base URL with a typo: 7, and the question whether it is right."""
        emulator = service()
        done = run("submit", request_file, "--base-url", f"{emulator.url}s")
        assert done.exit_code == 7
        assert "Is the base URL right?" in one_line(done)
        assert emulator.jobs == {}

    def test_uncertain(self, service: Callable[..., Emulator], request_file: Path) -> None:
        """A lost answer, and a list that cannot be read: 11, how to go on, and no second request."""
        emulator = service(faults=[Fault("submit", "reset-after"), Fault("list", "http-500", times=4)])
        done = run("submit", request_file, "--interval", "0.05")
        assert done.exit_code == 11
        assert "`prefect-xrt attach JOB_ID --out DIR`" in done.stderr
        assert list(emulator.jobs) == [801]

    def test_lost_answer(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """A lost answer costs nothing: the job is found and printed, and again for the same folder."""
        emulator = service(faults=[Fault("submit", "reset-after")])
        submit = ("submit", request_file, "--interval", "0.05", "--out", tmp_path / "out")
        assert [run(*submit).stdout for _ in range(2)] == ["801\n", "801\n"]
        assert len(emulator.calls("submit")) == 1

    def test_folder_of_another_request(
        self, service: Callable[..., Emulator], request_: ProductRequest, request_file: Path, tmp_path: Path
    ) -> None:
        """A folder that belongs to another request: 12, and nothing is sent."""
        emulator = service()
        run("submit", request_file, "--out", tmp_path / "out")
        other = request_.model_copy(update={"position_error_arcmin": 2})
        request_file.write_text(other.model_dump_json(exclude={"products"}))
        done = run("submit", request_file, "--out", tmp_path / "out")
        assert done.exit_code == 12
        assert "belongs to job 801" in one_line(done)
        assert list(emulator.jobs) == [801]

    def test_error_as_json(self, service: Callable[..., Emulator]) -> None:
        """For scripts, an error is one JSON document too, with the same exit code."""
        service()
        done = run("status", 4711, "--json")
        answer = json.loads(done.stdout)
        assert (done.exit_code, answer["error"]) == (9, "JobNotFoundError")
        assert answer["message"]

    def test_no_such_scenario(self) -> None:
        """A scenario that there is not: 10, and its name in the message."""
        result = run("emulator", "--scenario", "none such", "--port", "0")
        assert (result.exit_code, "none such" in result.stderr) == (10, True)


@pytest.mark.usefixtures("server")
class TestBuild:
    def test_json(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """For scripts: standard output is one document, the report that also lies beside the files."""
        service(default=READY)
        out = tmp_path / "out"
        done = start("build", request_file, "--out", out, *FAST, "--json", "--format", "zip", "--extract")
        assert done.returncode == 0, done.stderr
        report = BuildReport.model_validate_json(done.stdout)
        assert report == BuildReport.model_validate_json((out / "report.json").read_text())
        assert [file.path for file in report.files] == [out / f"{n}.zip" for n in ("lc", "spec", "image")]
        assert all((out / name).is_dir() for name in ("lc", "spec", "image"))

    def test_text(
        self, server: Any, service: Callable[..., Emulator], request_file: Path, tmp_path: Path
    ) -> None:
        """In a pipe: the log's plain lines once each, then a table, a summary and the run's address."""
        service(default=READY, timelines={"spec": FAILED})
        done = start("build", request_file, "--out", tmp_path / "out", *FAST)
        assert done.returncode == 3
        rows = [line.split() for line in done.stdout.splitlines()]
        assert rows[0] == ["product", "state", "file", "bytes", "SHA-256"]
        assert [row[:2] for row in rows[1:4]] == [
            ["LightCurve", "ready"],
            ["Spectrum", "failed"],
            ["Image", "ready"],
        ]
        assert "2 of 3 products of job 801 (GRB 200416A)" in done.stdout
        run_id = re.search(r"In the Prefect UI: http://\S+/([0-9a-f-]{36})", done.stdout)
        assert run_id
        assert server.flow_run(run_id[1])["state"]["name"] == "Partly"
        accepted = [line for line in done.stderr.splitlines() if "The service accepted job 801" in line]
        assert len(accepted) == 1
        assert "Traceback" not in done.stderr

    def test_accept_partial(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        build: Callable[..., Result],
    ) -> None:
        """Where partial results are accepted, they are a success."""
        service(default=READY, timelines={"spec": FAILED})
        assert build(request_file, "--out", tmp_path / "out", "--accept-partial").exit_code == 0

    def test_overwrite(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        build: Callable[..., Result],
    ) -> None:
        """What is there is kept, unless it may be overwritten; a folder of another build is left alone (12)."""
        emulator = service(default=READY)
        codes = [
            build(request_file, "--out", tmp_path / "out", *option).exit_code
            for option in ([], [], ["--overwrite"])
        ]
        assert codes == [0, 0, 0]
        assert list(emulator.jobs) == [801, 802]
        request_file.write_text(request_file.read_text().replace("GRB 200416A", "GRB 200416B"))
        assert build(request_file, "--out", tmp_path / "out").exit_code == 12

    def test_attach(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        build: Callable[..., Result],
    ) -> None:
        """A job is gone on with by its ID alone: its files are brought, and its record is written."""
        service(default=READY)
        run("submit", request_file)
        done = build("801", "--out", tmp_path / "out", act="attach")
        assert done.exit_code == 0
        assert "3 of 3 products of job 801" in done.stdout
        assert (tmp_path / "out" / "job.json").exists()

    def test_reuse(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        build: Callable[..., Result],
    ) -> None:
        """A job with the same parameters is taken where that is wanted."""
        emulator = service(default=READY)
        run("submit", request_file)
        done = build(request_file, "--out", tmp_path / "out", "--reuse", "unless-failed")
        assert (done.exit_code, list(emulator.jobs)) == (0, [801])

    @pytest.mark.parametrize(
        ("scenario", "options", "expected"),
        [
            ({"default": FAILED}, (), 4),
            ({"default": CANCELLED}, (), 5),
            ({"default": READY, "timelines": {"spec": Timeline.of((3,))}}, ("--deadline", "0.3"), 8),
            ({"active_job_limit": 0}, (), 6),
            (
                {
                    "faults": [
                        Fault("submit", "reset-after"),
                        Fault("list", "http-500", times=4),
                    ]
                },
                (),
                11,
            ),
        ],
        ids=["failed", "cancelled", "deadline", "refused", "uncertain"],
    )
    def test_exit_code(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        build: Callable[..., Result],
        scenario: Any,
        options: tuple[str, ...],
        expected: int,
    ) -> None:
        """Errors that arise inside the flow have the same exit codes, and no traceback."""
        service(**scenario)
        done = build(request_file, "--out", tmp_path / "out", *options)
        assert done.exit_code == expected
        assert "Traceback" not in done.stderr

    def test_refused_in_a_shell(
        self, server: Any, service: Callable[..., Emulator], request_file: Path, tmp_path: Path
    ) -> None:
        """A terminal shows an error inside the flow in a line or two; the server's log keeps the traceback."""
        service(active_job_limit=0)
        out = tmp_path / "out"
        done = start("build", request_file, "--out", out, *FAST)
        assert done.returncode == 6
        one_line(done)
        ran = server.find("flow_runs", flows={"name": {"any_": ["build-products"]}}, sort="START_TIME_DESC")
        (run_id,) = [found["id"] for found in ran if found["parameters"]["output_dir"] == str(out)]
        lines = server.logs(run_id, "Encountered exception")
        assert any("Traceback" in text for _, text in lines)

    def test_interrupted(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """Interrupted: 130, without a traceback; the job is on record, and lives on where that is wanted."""
        emulator = service(default=Timeline.of((3,)))
        out = tmp_path / "out"
        process = subprocess.Popen(
            command("build", request_file, "--out", out, "--cancel-job", "never", *FAST),
            stderr=subprocess.PIPE,
            text=True,
        )
        while not emulator.calls("status"):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in told
        assert json.loads((out / "job.json").read_text())["job"]["id"] == 801
        assert emulator.calls("cancel") == []

    def test_unreachable(
        self,
        service: Callable[..., Emulator],
        request_file: Path,
        tmp_path: Path,
        build: Callable[..., Result],
    ) -> None:
        """A base URL with a typo: 7; no job, and an empty folder."""
        emulator = service()
        done = build(request_file, "--out", tmp_path / "out", "--base-url", f"{emulator.url}s")
        assert done.exit_code == 7
        assert emulator.jobs == {}
        assert list((tmp_path / "out").iterdir()) == []

    def test_table_on_a_terminal(
        self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path
    ) -> None:
        """On a terminal: the table of the products in its place, above it the log."""
        service(default=READY, timelines={"spec": Timeline.of_looks((2, 3), (4,))})
        code, shown = on_a_terminal("build", request_file, "--out", tmp_path / "out", *FAST)
        assert code == 0
        assert "at work on" in shown
        assert "queued" in shown
        assert "3 of 3 products" in shown


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Run `build` in this process, and put its changes of the process back."""
    handlers = logging.getLogger().handlers
    formatters = [(handler, handler.formatter) for handler in handlers]
    for name in ("PREFECT_XRT_USER_ID", "PREFECT_XRT_BASE_URL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    yield lambda *arguments, act="build": run(act, *arguments, *FAST)
    for handler, formatter in formatters:
        handler.setFormatter(formatter)


class TestEmulator:
    def test_until_interrupted(self, request_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The embedded service answers until it is interrupted."""
        process = subprocess.Popen(
            command("emulator", "--port", "0", "--speed", "1000"), stderr=subprocess.PIPE, text=True
        )
        try:
            announced = str(process.stderr and process.stderr.readline())
            url = re.search(r"http://\S+", announced)
            assert url
            monkeypatch.setenv("PREFECT_XRT_USER_ID", "demo@example.org")
            done = run("submit", request_file, "--base-url", url[0])
            assert done.stdout == "801\n"
        finally:
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "1 jobs" in told
