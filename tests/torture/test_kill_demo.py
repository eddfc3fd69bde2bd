"""The demo, killed repeatedly, always ends with the tables of an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.cells import environment, lasting

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("BACKDOOR_LAB_KILLS", "10"))
# By default, a tiny form of the demo is killed. If BACKDOOR_LAB_DEMO is empty, the full demo is.
TINY = "dataset.size=8 dataset.per_class_train=40 dataset.per_class_test=5 model.width=4"
OVERRIDES = os.environ.get("BACKDOOR_LAB_DEMO", f"{TINY} recipe.epochs=2").split()


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Starts the command of `make demo` in its own process group."""
    command = [sys.executable, "-m", "backdoor_lab", "-m", "experiment=demo", *OVERRIDES]
    log = (folder / "log").open("ab")
    settings = environment(PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        command, cwd=folder, env=settings, stdout=log, stderr=log, start_new_session=True
    )


def outcome(folder: Path) -> tuple[dict, dict]:
    """Every record (without fields that may differ) and every table of the only sweep in a
    folder."""
    (sweep,) = (path.parent for path in folder.glob("multirun_reports/runs/*/sweep.json"))
    records = {
        p.parent.name: lasting(json.loads(p.read_text())) for p in sweep.glob("*/record.json")
    }
    tables = {path.name: path.read_text() for path in sweep.glob("tables/table_*.md")}
    return records, tables


def first_stage(folder: Path, program: subprocess.Popen[bytes]) -> float:
    """The seconds until a run has published its first stage."""
    began = time.monotonic()
    while program.poll() is None and not any(folder.glob("multirun_reports/.store/*/*")):
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.timeout(3600)
def test_a_demo_killed_at_random_moments_ends_with_identical_tables(tmp_path: Path) -> None:
    """The whole process group gets SIGKILL at random moments, spread over the duration of the work.
    Then one run continues to the end."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    program = start(whole)
    startup = first_stage(whole, program)
    began = time.monotonic()
    assert program.wait() == 0, (whole / "log").read_text()[-3000:]
    work = time.monotonic() - began
    chance, moments, alive = random.Random(0), [], 0
    for _ in range(KILLS):
        program = start(broken)
        moments.append(startup + chance.uniform(-0.5, 2 * work / KILLS))
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(moments[-1])
        alive += program.poll() is None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
    assert alive, "no kill hit a running sweep"
    assert start(broken).wait() == 0, (broken / "log").read_text()[-3000:]
    assert outcome(broken) == outcome(whole)
    assert len(outcome(whole)[0]) == 12
    print(
        f"{KILLS} kills at seconds {[round(m, 1) for m in moments]} of {startup + work:.1f},"
        f" {alive} of them while it ran: same records, same tables"
    )
