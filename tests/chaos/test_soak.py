"""The soak itself works: a few jobs of it, and it fails where something is off."""

from __future__ import annotations

import pytest
import soak


def test_a_few_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    """A few jobs come through a service of which a tenth of the calls goes wrong, and the table says so."""
    assert soak.main(["--jobs", "6", "--seed", "1"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["jobs", "6"] in rows
    assert ["troubles", "0"] in rows
    assert [row for row in rows if row[0] == "of" and row[-2] != "0"]


def test_tells_trouble(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is off is printed, and ends it with 1."""
    monkeypatch.setattr(soak, "ACTIVE", 4)
    monkeypatch.setattr(soak, "troubles", lambda *_, active_limit, **__: [f"more than {active_limit} jobs"])
    assert soak.main(["--jobs", "1"]) == 1
    assert "more than 4 jobs" in capsys.readouterr().out
