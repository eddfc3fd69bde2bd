"""The display of a running sweep: a row per finished cell, the running cells, the time left."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import shutdown
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.seal import sealed
from backdoor_lab.sweep import live as module
from backdoor_lab.sweep.live import STOPPING, _Lines, _Terminal, live, on_terminal, quiet_cells
from backdoor_lab.sweep.manifest import RequestedCell
from backdoor_lab.sweep.rows import Rows
from backdoor_lab.sweep.watch import Watch, share_done
from tests.helpers.cells import TINY, command, environment
from tests.helpers.records import failed, record

GRID = [record("pixel", "bird", 0.05), record("pixel", "dog", 0.05), record("pattern", "bird", 0.1)]


def asked(records: list[dict[str, Any]] = GRID) -> list[RequestedCell]:
    return [RequestedCell(each["id"], each["choices"], {}, ()) for each in records]


def ids(records: list[dict[str, Any]] = GRID) -> list[str]:
    return [each["id"] for each in records]


def write(folder: Path, made: dict[str, Any], **run: Any) -> None:
    path = folder / made["id"] / "record.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sealed(json.dumps(made | {"run": made["run"] | run})))


def beat(folder: Path, name: str, stage: str, **said: Any) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "running.json").write_text(json.dumps({"stage": stage, **said}))


def gone(folder: Path, name: str) -> None:
    (folder / name / "running.json").unlink()


def test_rows_of_the_live_table_show_the_same_text_as_the_written_tables() -> None:
    """Trigger, target and ratio are always shown. Other choices are shown only if they differ."""
    rows = Rows(asked())
    assert rows.header().split() == [
        "Trigger", "Target", "Ratio", "Nat1", "ASR1", "#Pois", "#Pois", "Left", "Nat2", "ASR2",
    ]  # fmt: skip
    made = GRID[0] | {"nat1": 0.915, "asr1": 1.0, "nat2": None, "asr2": 0.0044}
    made["counts"] = made["counts"] | {"n_poisoned": 250, "pois_left": 3}
    from backdoor_lab.results.records import parse

    line = rows.row(parse(sealed(json.dumps(made)).encode()))
    assert line.split() == ["pixel", "bird", "5%", "91.50", "100.00", "250", "3", "–", "0.44"]
    assert len(line) == len(rows.header())
    assert rows.name(GRID[2]["id"]) == "pattern bird 10%"


def test_choices_that_differ_between_cells_have_a_column_in_the_live_table() -> None:
    several = [record(defense=d, seed=s) for d in ("spectral", "none") for s in (0, 1)]
    assert Rows(asked(several)).header().split()[:5] == [
        "Trigger", "Target", "Ratio", "Defense", "Seed",
    ]  # fmt: skip


def test_the_row_of_a_failed_cell_shows_the_reason() -> None:
    from backdoor_lab.results.records import parse

    line = Rows(asked()).row(parse(sealed(json.dumps(failed(GRID[0]))).encode()))
    assert line.split(maxsplit=3)[3].startswith("failed: ")


def test_finished_cells_are_reported_once_in_the_order_they_finish(tmp_path: Path) -> None:
    """A record that was written before the sweep started is reported only if it is rewritten."""
    write(tmp_path, failed(GRID[0]))
    watch = Watch(tmp_path, ids())
    assert watch.finished(0.0) == []
    write(tmp_path, GRID[1])
    write(tmp_path, failed(GRID[2]))
    os.utime(tmp_path / GRID[1]["id"] / "record.json", ns=(2, 2))
    os.utime(tmp_path / GRID[2]["id"] / "record.json", ns=(1, 1))
    assert [each.id for each in watch.finished(1.0)] == [GRID[2]["id"], GRID[1]["id"]]
    assert watch.finished(2.0) == []
    write(tmp_path, GRID[0], wall_seconds=9)
    assert [each.id for each in watch.finished(3.0)] == [GRID[0]["id"]]
    assert watch.done == 2


def test_a_damaged_record_is_reported_as_damaged(tmp_path: Path) -> None:
    watch = Watch(tmp_path, ids())
    write(tmp_path, GRID[0])
    (tmp_path / GRID[0]["id"] / "record.json").write_text("{")
    assert [each.status for each in watch.finished(0.0)] == ["failed: damaged record"]


def test_running_cells_are_those_with_a_recent_heartbeat(tmp_path: Path) -> None:
    watch = Watch(tmp_path, ids())
    beat(tmp_path, GRID[1]["id"], "train", epoch=1, epochs=3)
    assert [each.doing for each in watch.running(0.0).values()] == ["train, epoch 1 of 3"]
    beat(tmp_path, GRID[0]["id"], "repair", steps="class 2 of 10")
    running = watch.running(1.0)
    assert list(running) == [GRID[1]["id"], GRID[0]["id"]]
    assert running[GRID[0]["id"]].doing == "repair, class 2 of 10"
    os.utime(tmp_path / GRID[1]["id"] / "running.json", (1.0, 1.0))
    (tmp_path / GRID[0]["id"] / "running.json").write_text("{")
    assert watch.running(2.0) == {}


def test_the_time_left_is_estimated_from_finished_cells(tmp_path: Path) -> None:
    """Three cells take 60 seconds each, two at a time. The first two start at second 100."""
    watch = Watch(tmp_path, ids())
    assert watch.seconds_left(100.0) is None
    for name in ids()[:2]:
        beat(tmp_path, name, "load")
    watch.running(100.0)
    assert watch.seconds_left(100.0) is None
    write(tmp_path, GRID[0], wall_seconds=60.0)
    gone(tmp_path, ids()[0])
    watch.finished(160.0)
    # The second cell is nearly done, and the third has not started.
    assert watch.seconds_left(160.0) == pytest.approx(60 / 2)
    beat(tmp_path, ids()[2], "train")
    watch.running(160.0)
    assert watch.seconds_left(175.0) == pytest.approx((60 - 15) / 2)


def test_the_time_left_is_estimated_from_the_running_cell_if_no_cell_has_finished(
    tmp_path: Path,
) -> None:
    """A quarter of the first cell took 30 seconds, so each of the three cells takes two minutes."""
    watch = Watch(tmp_path, ids())
    beat(tmp_path, ids()[0], "train", epoch=1, epochs=2, fraction=0.5)
    watch.running(0.0)
    assert watch.seconds_left(30.0) == pytest.approx(3 * 120 - 30)


def test_the_time_left_counts_only_what_a_resumed_cell_has_done_since_it_resumed(
    tmp_path: Path,
) -> None:
    """The first of three cells resumes after half of its first training, a quarter of the cell.
    It does another quarter in 30 seconds, so a whole cell takes two minutes."""
    watch = Watch(tmp_path, ids())
    beat(tmp_path, ids()[0], "train", epoch=4, epochs=8, fraction=0.5, resumed=0.5)
    watch.running(0.0)
    assert watch.seconds_left(1.0) is None
    beat(tmp_path, ids()[0], "filter", resumed=0)
    watch.running(30.0)
    assert watch.seconds_left(30.0) == pytest.approx(2 * 120 + 60)


@pytest.mark.parametrize(("stage", "fraction", "share"), [
    ("load", None, 0.0), ("surrogate", 0.9, 0.0), ("train", 0.5, 0.25), ("filter", 0.2, 0.5),
    ("retrain", 0.5, 0.75), ("repair", 1.0, 1.0), ("measure2", None, 1.0),
])  # fmt: skip
def test_the_progress_of_a_cell_is_computed_from_its_stage_and_the_progress_of_that_stage(
    tmp_path: Path, stage: str, fraction: float | None, share: float
) -> None:
    beat(tmp_path, "x", stage, fraction=fraction)
    (found,) = Watch(tmp_path, ["x"]).running(0.0).values()
    assert share_done(found) == pytest.approx(share)


def test_plain_rows_show_the_progress_of_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that was done before the sweep started is counted but has no row."""
    board = _Lines(tmp_path, asked(), asked()[1:])
    board.look(0.0)
    assert capsys.readouterr().out == ""
    write(tmp_path, GRID[1], wall_seconds=60.0)
    board.look(1.0)
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith("Trigger")
    assert row.startswith("pixel    dog     5%")
    assert row.endswith("[2 of 3 cells done, about 60 s left]")
    write(tmp_path, failed(GRID[2]))
    board.look(2.0)
    (row,) = capsys.readouterr().out.splitlines()
    assert re.search(r"pattern +bird +10% +failed: .*\[2 of 3 cells done", row)


def test_rows_that_would_look_the_same_show_the_swept_option(tmp_path: Path) -> None:
    """Two sizes of a patch. A cell with a different row has a value in the same column."""
    made = [("patch", "bird", "1"), ("patch", "bird", "3"), ("patch", "dog", "1")]
    cells = [
        RequestedCell(f"x{n}", record(trigger, target, 0.1)["choices"], {},
                      ("experiment=demo", f"target={target}", f"++trigger.size={size}"))
        for n, (trigger, target, size) in enumerate(made)
    ]  # fmt: skip
    rows = Rows(cells)
    assert rows.header().split()[:4] == ["Trigger", "Target", "Ratio", "trigger.size"]
    shown = [rows.row(CellRecord(each.id, "failed: oom")) for each in cells]
    assert shown == [
        "patch    bird    10%    1             failed: oom",
        "patch    bird    10%    3             failed: oom",
        "patch    dog     10%    1             failed: oom",
    ]
    assert rows.name("x1") == "patch bird 10% trigger.size=3"
    assert Rows(cells[1:]).name("x1") == "patch bird 10%"


def test_after_a_stop_request_the_display_says_that_the_sweep_is_stopping(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal shows it at the next refresh, before the cells are checked again."""
    beat(tmp_path, GRID[0]["id"], "train", epoch=1, epochs=2, fraction=0.5)
    lines, terminal = _Lines(tmp_path, asked(), asked()), _Terminal(tmp_path, asked(), asked())
    terminal.look(0.0)
    terminal.look(30.0)
    assert terminal.below.startswith("0 of 3 cells done, about 6 min left, 1 running\n")
    monkeypatch.setattr(shutdown, "_asked", ["SIGINT"])
    assert str(terminal._below()) == STOPPING
    terminal.look(31.0)
    assert terminal.below.startswith(f"0 of 3 cells done, {STOPPING}\n  pixel bird 5%: train")
    gone(tmp_path, GRID[0]["id"])
    terminal.look(32.0)
    assert terminal.below == f"0 of 3 cells done, {STOPPING}"
    lines.look(31.0)
    lines.look(32.0)
    assert capsys.readouterr().out == f"{STOPPING}\n"


def test_the_last_cell_is_reported_even_in_a_short_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL", 60.0)
    with live(tmp_path, asked(), asked(), "auto"):
        write(tmp_path, GRID[0])
    assert len(capsys.readouterr().out.splitlines()) == 2
    with live(tmp_path, asked(), asked(), "none"):
        write(tmp_path, GRID[1])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("progress", "owned"), [
    ("auto", True), ("bar", True), ("lines", False), ("none", False),
])  # fmt: skip
def test_the_live_table_is_used_on_a_terminal_unless_plain_output_is_requested(
    monkeypatch: pytest.MonkeyPatch, progress: str, owned: bool
) -> None:
    from omegaconf import OmegaConf

    handlers = {"job_logging": {"root": {"handlers": ["console", "file"]}}}
    config = OmegaConf.create({"trainer": {"progress": progress}, "hydra": handlers})
    assert (on_terminal(progress), quiet_cells(config)) == (False, [])
    monkeypatch.setattr(module.sys.stdout, "isatty", lambda: True)
    assert on_terminal(progress) == owned
    assert bool(quiet_cells(config)) == owned
    config.hydra.job_logging.root.handlers = ["mine"]
    assert quiet_cells(config) == []


def screen(written: str, width: int, height: int) -> list[str]:
    """The lines of a terminal to which `written` was printed, including lines scrolled out of view.
    Supports only the escape codes that rich uses."""
    lines, at = [""], [0, 0]
    for part in re.split(r"(\x1b\[\??[0-9;]*[A-Za-z]|\r|\n)", written):
        if part == "\n":
            at[0] += 1
            lines += [""] * (at[0] == len(lines))
        elif part == "\r":
            at[1] = 0
        elif part.startswith("\x1b["):
            if part.endswith("A"):
                at[0] -= int(part[2:-1] or 1)
            elif part == "\x1b[2K":
                lines[at[0]] = ""
        else:
            line = lines[at[0]].ljust(at[1])
            lines[at[0]] = line[: at[1]] + part + line[at[1] + len(part) :]
            at[1] += len(part)
            assert at[1] <= width, part
    assert at[0] >= len(lines) - height
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("launcher", "head"), [("basic", "1 cell at a time"), ("joblib", r"\d+ cells? at a time")]
)
def test_after_a_sweep_only_complete_progress_rows_remain_on_the_terminal(
    tmp_path: Path, launcher: str, head: str
) -> None:
    """Two cells succeed and one fails. Each has a complete row, no output of a cell appears between
    the rows, and nothing remains of the progress lines."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    program = subprocess.Popen(
        command("-m", *TINY, f"hydra/launcher={launcher}", "trainer.progress=auto",
                "retries=0", "target=bird,dog,cat"),
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env=environment(TERM="xterm", COLUMNS="200", BACKDOOR_LAB_FAULT="train.begun:kill:1:cat"),
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        said += part
    assert program.wait(timeout=60) == 1, said.decode()
    # The final tables are cut off, since their lines are wider than the terminal.
    text = said.decode().replace("\r\n", "\n\r").partition("###")[0]
    table = screen(text, 200, 40)
    assert re.search(head, table[0]), table[0]
    assert sum(line.startswith("Trigger  Target  Ratio") for line in table) == 1
    for target in ("bird", "dog"):
        figures = rf"pixel    {target} +30% +\d+\.\d\d +\d+\.\d\d +6 +\d+ +\d+\.\d\d +\d+\.\d\d"
        assert sum(bool(re.fullmatch(figures, line)) for line in table) == 1, table
    assert sum(line.startswith("pixel    cat     30%    failed: killed") for line in table) == 1
    assert not [line for line in table if line.startswith("[") or "cells done," in line], table
    # The stages were shown while cells ran.
    assert re.search(r"of 3 cells done.*running", text)
    assert "train" in text
    assert "\x1b[?25h" in text
    logs = list(tmp_path.rglob("backdoor_lab.log"))
    assert any("measure2" in path.read_text() for path in logs)


def test_a_closed_pipe_does_not_stop_a_sweep(tmp_path: Path) -> None:
    """All cells run and the tables are written."""
    program = subprocess.Popen(
        command("-m", *TINY, "trainer.progress=auto", "hydra/launcher=joblib", "target=bird,dog"),
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert program.stdout is not None
    program.stdout.readline()
    program.stdout.close()
    assert program.wait(timeout=240) == 0
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("record.json")]
    assert [each["status"] for each in found] == ["done"] * 2
    assert list(tmp_path.rglob("table_pixel.md"))
