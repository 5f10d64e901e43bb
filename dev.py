#!/usr/bin/env python3
"""Set up what the project needs, and run it: nothing but Python 3.11, 3.12 or 3.13 is required.

    python3 dev.py demo           run the main job on the embedded service
    python3 dev.py test [...]     run the tests; what follows goes to pytest
    python3 dev.py check          lint, formatting and strict types
    python3 dev.py docs           build the documentation, where a warning is an error; see site/index.html
    python3 dev.py wheel          build the wheel, install it alone, and run the main job and docs/deploy.md from it
    python3 dev.py lowest [...]   run the tests with the lowest Prefect that is supported
    python3 dev.py soak [...]     200 jobs, with faults on a tenth of all calls; --jobs N, --seed N

Each keeps its environment beside this file (`.venv`, `.venv-lowest`) and brings it up to date first.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
# The server of the lowest Prefect does not work with the FastAPI that the newest one needs, and its
# commands import a package that it does not declare.
LOWEST = ("prefect==3.7.1", "fastapi<0.137", "importlib-metadata")
# Tests mostly wait; those of a file share what it has started, and the longest files come first. What fails only
# because a busy machine is late does not fail twice.
SPREAD = ("--numprocesses", "3", "--dist", "loadfile", "--no-loadscope-reorder", "--reruns", "1")
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    # Every process of the tests would compile Prefect anew.
    "PYTHONDONTWRITEBYTECODE": "",
}


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> None:
    """Run a command, and leave with its exit code if it fails."""
    code = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | ENVIRONMENT | environment, check=False
    ).returncode
    if code:
        sys.exit(code)


def environment(folder: Path, *requirements: str) -> Path:
    """Return the folder of programs of a virtual environment that has what is required."""
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    print(f"Bringing {folder} up to date ...", flush=True)
    made_by = (folder / "pyvenv.cfg").read_text() if (programs / "uv").exists() else ""
    if f"version = {platform.python_version()}" not in made_by:
        try:
            venv.create(folder, with_pip=True, clear=True)
        except subprocess.CalledProcessError:
            sys.exit(
                "Python's `venv` cannot make an environment; on Debian, install the package python3-venv."
            )
        run(programs / "python", "-m", "pip", "install", "--quiet", "uv")
    run(programs / "uv", "pip", "install", "--quiet", "--python", programs / "python", *requirements)
    return programs


def wheel() -> None:
    """Prove that the wheel needs nothing of the checkout, and that its users get to a survey in the UI."""
    programs = environment(ROOT / ".venv", "--editable", ".", "--group", "dev")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        run(programs / "python", "-m", "build", "--wheel", "--installer", "uv", "--outdir", place / "dist")
        (built,) = (place / "dist").glob("*.whl")
        alone = environment(place / "xrt" / "venv", str(built))
        run(
            alone / "prefect-xrt",
            "demo",
            "--out",
            place / "out",
            cwd=place,
            PREFECT_HOME=str(place / "prefect"),
        )
        # The extra is there already when docs/deploy.md asks pip for it, which spares a minute.
        environment(place / "xrt" / "venv", f"{built}[science]")
        run(
            programs / "pytest",
            "tests/test_deployments.py",
            "-k",
            "from_an_empty_machine",
            XRT_EMPTY_HOME=str(place),
        )


def main() -> None:
    """Do what the command line asks for."""
    if not (3, 11) <= sys.version_info < (3, 14):
        sys.exit("Python 3.11, 3.12 or 3.13 is needed.")
    act, *rest = sys.argv[1:] or ["help"]
    if act == "demo":
        programs = environment(ROOT / ".venv", "--editable", ".")
        run(programs / "prefect-xrt", "demo", *rest, cwd=Path.cwd())
    elif act == "test":
        programs = environment(ROOT / ".venv", "--editable", ".", "--group", "dev")
        run(programs / "pytest", *SPREAD, *(rest or ["--ignore=tests/browser"]))
        if not rest:
            # A browser is a program of many processes, and runs alone.
            run(programs / "pytest", "--reruns", "1", "tests/browser")
    elif act == "soak":
        programs = environment(ROOT / ".venv", "--editable", ".", "--group", "dev")
        run(programs / "python", "tests/chaos/soak.py", *rest)
    elif act == "lowest":
        programs = environment(ROOT / ".venv-lowest", "--editable", ".", "--group", "dev", *LOWEST)
        run(programs / "pytest", *SPREAD, *rest)
    elif act == "check":
        programs = environment(ROOT / ".venv", "--editable", ".", "--group", "dev")
        run(programs / "ruff", "check")
        run(programs / "ruff", "format", "--check")
        run(programs / "mypy")
    elif act == "docs":
        programs = environment(ROOT / ".venv", "--editable", ".", "--group", "docs")
        # The builders' news of themselves are no warnings.
        run(programs / "mkdocs", "build", "--strict", *rest, NO_MKDOCS_2_WARNING="1")
    elif act == "wheel":
        wheel()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
