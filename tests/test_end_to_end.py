"""The whole way, as a user goes it: installed programs, Prefect's own small server, and a disk that is full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import free_port, prefect_server

from prefect_xrt.emulator import Emulator, Timeline

if TYPE_CHECKING:
    from prefect_xrt import ProductRequest

PROGRAM = str(Path(sys.executable).with_name("prefect-xrt"))
BUNDLES = {"lc", "spec", "psf", "enh", "xastrom", "image"}
READY = Timeline.of((4,))


def shell(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    return subprocess.run(
        [PROGRAM, *(str(argument) for argument in arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env=os.environ | environment,
    )


class TestDemo:
    def test_without_a_server(self, tmp_path: Path) -> None:
        """The demonstration needs no account and no server; it brings all files, verified by `sha256sum`."""
        out = tmp_path / "out"
        done = shell("demo", "--out", out, PREFECT_HOME=str(tmp_path / "prefect"))
        assert done.returncode == 0, done.stderr
        assert {path.name for path in out.glob("*.tar.gz")} == {f"{name}.tar.gz" for name in BUNDLES}
        sums = sorted(path.name for path in out.glob("*.sha256"))
        checked = subprocess.run(["sha256sum", "--check", *sums], cwd=out, capture_output=True, check=False)
        assert checked.returncode == 0
        assert "prefect server start" in done.stdout
        assert "Traceback" not in done.stderr


class TestRepeat:
    def test_by_hand(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """submit, wait, download, and the same request again from the parameters that were accepted."""
        emulator = service(default=READY)
        job_id = shell("submit", request_file).stdout.strip()
        assert shell("wait", job_id, "--interval", "0.05").returncode == 0
        assert shell("download", job_id, "--out", tmp_path / "out").returncode == 0
        expected = {
            f"{name}.tar.gz{suffix}" for name in ("lc", "spec", "image") for suffix in ("", ".sha256")
        }
        assert {path.name for path in (tmp_path / "out").iterdir()} == expected
        parameters = tmp_path / "jobPars.json"
        parameters.write_text(json.dumps(emulator.jobs[801].parameters))
        assert shell("submit", parameters).stdout == "802\n"
        first, second = (dict(job.parameters) for job in emulator.jobs.values())
        different = {key for key in first | second if first.get(key) != second.get(key)}
        assert different == {"getTargs", "outdir"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no program `mount` on this machine")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("server")
class TestFullDisk:
    def test_nothing_half_written(
        self,
        service: Callable[..., Emulator],
        request_: ProductRequest,
        small_disk: Path,
        tmp_path: Path,
    ) -> None:
        """A disk that fills up costs no job: what did not fit leaves nothing, and is fetched elsewhere later."""
        from prefect_xrt import Pacing, build_products  # noqa: PLC0415 - takes seconds

        emulator = service(default=READY, file_padding_bytes=3 * 2**20)
        pacing = Pacing(floor_s=0.05, ceiling_s=0.2)
        state: Any = build_products(request_, small_disk / "out", pacing=pacing, return_state=True)
        assert state.name == "Failed"
        error = state.result(raise_on_failure=False)
        assert ["is full" in str(entry.problem) for entry in error.report.products] == [True] * 3
        assert {path.name for path in (small_disk / "out").iterdir()} == {
            "job.json", "jobPars.json", "report.json"
        }  # fmt: skip
        done = shell("download", "801", "--out", tmp_path / "elsewhere")
        assert done.returncode == 0, done.stderr
        assert list(emulator.jobs) == [801]

    def test_in_a_shell(self, service: Callable[..., Emulator], request_file: Path, small_disk: Path) -> None:
        """`download` onto a full disk: 12, a line or two, and nothing left behind."""
        service(default=READY, file_padding_bytes=3 * 2**20)
        shell("submit", request_file)
        done = shell("download", "801", "--out", small_disk / "out")
        assert done.returncode == 12
        assert "is full" in done.stderr
        assert "Traceback" not in done.stderr
        assert list((small_disk / "out").iterdir()) == []


class TestServerAway:
    def test_at_the_end(self, service: Callable[..., Emulator], request_file: Path, tmp_path: Path) -> None:
        """Prefect's server is away when the products end: the run waits for it, and ends as it should."""
        home, port = tmp_path / "server", free_port()
        home.mkdir()
        emulator = service(default=Timeline.of((3, 1000.0), (4,)), speed=1.0)
        out = tmp_path / "out"
        with prefect_server(home, port) as server:
            process = subprocess.Popen(
                [PROGRAM, "build", str(request_file), "--out", str(out), "--interval", "0.2"],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"PREFECT_API_URL": server.url},
            )
            while not emulator.calls("status"):
                assert process.poll() is None, process.communicate()
                time.sleep(0.1)
        try:
            emulator.advance(2000.0)
            assert process.stderr
            told = iter(process.stderr.readline, "")
            assert any("Prefect's server does not answer" in line for line in told)
            assert {"lc.tar.gz", "spec.tar.gz", "image.tar.gz"} <= {path.name for path in out.iterdir()}
            with prefect_server(home, port) as server:
                _, rest = process.communicate(timeout=180)
                (run,) = server.find("flow_runs")
        finally:
            process.kill()
        assert (process.returncode, run["state_name"]) == (0, "Completed"), rest
        assert list(emulator.jobs) == [801]
