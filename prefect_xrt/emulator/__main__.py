"""Run the embedded service from a shell: `python -m prefect_xrt.emulator`."""

from __future__ import annotations

import argparse

from .scenario import NAMED, ScenarioError
from .server import DEFAULT_USER, serve


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and serve until stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m prefect_xrt.emulator", description="The XRT product service on loopback."
    )
    parser.add_argument("--port", type=int, default=8642, help="0 takes a free one (default: %(default)s)")
    parser.add_argument(
        "--scenario", default="demo", help=f"a .json or .toml file, or one of {', '.join(sorted(NAMED))}"
    )
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than life")
    parser.add_argument("--user", action="append", help=f"a registered address (default: {DEFAULT_USER})")
    options = parser.parse_args(arguments)
    users = options.user or [DEFAULT_USER]
    try:
        serve(options.scenario, port=options.port, speed=options.speed, users=users)
    except (ScenarioError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
