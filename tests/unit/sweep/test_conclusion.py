"""The last lines of a sweep and its exit code."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import shutdown
from backdoor_lab.sweep.conclusion import conclude
from backdoor_lab.sweep.manifest import RequestedCell
from tests.helpers.records import failed, record, write_sweep

GRID = [record("pixel", target, 0.05) for target in ("bird", "dog", "cat")]
IDS = [each["id"] for each in GRID]
STOPPED = "stopped on request; the same command resumes where this one stopped"


def concluded(
    folder: Path, caplog: pytest.LogCaptureFixture, *made: dict[str, Any], **lost: str
) -> tuple[int, list[str]]:
    """Conclude a sweep of three cells of which `made` have records. Returns the exit code and the
    logged lines."""
    asked = [RequestedCell(each["id"], each["choices"], {}, ()) for each in GRID]
    write_sweep(folder, list(made), asked=GRID)
    caplog.set_level(logging.INFO, "backdoor_lab.sweep")
    caplog.clear()
    code = conclude(folder, asked, lost)
    return code, caplog.messages


def test_a_sweep_stopped_before_its_first_result_prints_two_lines_and_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The tables are written nevertheless."""
    monkeypatch.setattr(shutdown, "_asked", ["SIGINT"])
    assert concluded(tmp_path, caplog) == (75, [STOPPED, "0 of 3 cells done"])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "tables" / "table_pixel.md").exists()


def test_a_stopped_sweep_shows_its_results_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The cell that has not run is not listed."""
    monkeypatch.setattr(shutdown, "_asked", ["SIGTERM"])
    bad = failed(GRID[1])
    assert concluded(tmp_path, caplog, GRID[0], bad) == (75, [
        STOPPED, f"{IDS[1]}: {bad['status']}", f"1 of 3 cells done: {tmp_path / 'tables'}",
        f"open {tmp_path / 'index.html'}",
    ])  # fmt: skip
    assert "| bird" in capsys.readouterr().out


def test_a_sweep_that_ended_by_itself_lists_the_missing_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    lines = [f"{IDS[1]}: failed: lost", f"{IDS[2]}: missing",
             f"1 of 3 cells done: {tmp_path / 'tables'}",
             f"open {tmp_path / 'index.html'}"]  # fmt: skip
    lost = {IDS[1]: "failed: lost"}
    assert concluded(tmp_path, caplog, GRID[0], **lost) == (1, lines)
    assert "| bird" in capsys.readouterr().out
    assert concluded(tmp_path, caplog, *GRID)[0] == 0
