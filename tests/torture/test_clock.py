"""Row 20 of the fault table: wall-clock time does not matter."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from tests.helpers.cells import lasting, run_here


def test_a_jumping_clock_does_not_change_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wall-clock time jumps by years at every call."""
    usual = lasting(run_here(tmp_path / "a/store", tmp_path / "a/cell"))
    leaps = itertools.cycle([4e9, 1.0, 2e9, 0.0])
    monkeypatch.setattr(time, "time", lambda: next(leaps))
    assert lasting(run_here(tmp_path / "b/store", tmp_path / "b/cell")) == usual
