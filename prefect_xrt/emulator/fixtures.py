"""Fixtures for test suites: `pytest_plugins = ["prefect_xrt.emulator.fixtures"]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .scenario import Scenario
from .server import Emulator

FAST = 2000.0
"""The speed of the fixtures: an ordinary job of six minutes is over in a fifth of a second."""


@pytest.fixture
def xrt_service_factory() -> Iterator[Callable[..., Emulator]]:
    """Start services with the arguments of `Emulator`, and stop them all at the end.

    They are fast unless `speed` says otherwise.
    """
    started: list[Emulator] = []

    def start(scenario: Scenario | str | None = None, **options: object) -> Emulator:
        played = Scenario.find(scenario) if isinstance(scenario, str) else scenario
        service = Emulator(played, **{"speed": FAST, **options})  # type: ignore[arg-type]  # as its caller has it
        service.start()
        started.append(service)
        return service

    yield start
    for service in started:
        service.stop()


@pytest.fixture
def xrt_service(xrt_service_factory: Callable[..., Emulator]) -> Emulator:
    """Give a fresh, fast service in which everything goes well."""
    return xrt_service_factory()
