"""Row 20: wall time decides nothing."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from tests.helpers.cells import lasting, run_here


def test_a_clock_that_jumps_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wall time leaps years ahead and back at every look; the record is the same."""
    usual = lasting(run_here(tmp_path / "a/store", tmp_path / "a/cell"))
    leaps = itertools.cycle([4e9, 1.0, 2e9, 0.0])
    monkeypatch.setattr(time, "time", lambda: next(leaps))
    assert lasting(run_here(tmp_path / "b/store", tmp_path / "b/cell")) == usual
