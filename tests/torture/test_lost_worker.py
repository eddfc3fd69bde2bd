"""Row 27 of the fault table: if a worker process dies under any launcher, only its own cell fails,
and the cause is recorded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cells import TINY, environment

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(900)
# One cell dies in each stage, and in the middle of trainings. The last cell survives.
DEATHS = {
    "airplane": ("load.begun:1", "load"),
    "automobile": ("poison.begun:1", "poison"),
    "bird": ("train.step:9", "train, epoch 2 of 3"),
    "cat": ("measure1.begun:1", "measure1"),
    "deer": ("extract.begun:1", "extract"),
    "dog": ("filter.begun:1", "filter"),
    "frog": ("retrain.step:14", "retrain, epoch 3 of 3"),
    "horse": ("measure2.begun:1", "measure2"),
    "ship": ("overlap.begun:1", "overlap"),
}
EPOCHS = "recipe.epochs=3"


def start(
    cwd: Path, *overrides: str, faults: str = "", own_group: bool = False
) -> subprocess.Popen[str]:
    """Starts a sweep of tiny cells, with planned faults."""
    command = [sys.executable, "-m", "backdoor_lab", "-m", *TINY, *overrides]
    settings = environment(PYTHONPATH=str(ROOT), BACKDOOR_LAB_FAULT=faults)
    return subprocess.Popen(
        command, cwd=cwd, env=settings, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=own_group,
    )  # fmt: skip


def run(cwd: Path, *overrides: str, faults: str = "") -> tuple[int, str]:
    """Runs a sweep to its end. Returns the exit code and the output."""
    program = start(cwd, *overrides, faults=faults)
    said, _ = program.communicate(timeout=800)
    return program.returncode, said


def records(cwd: Path) -> dict[str, dict[str, Any]]:
    """The records of the one sweep below a folder, by target."""
    found = [json.loads(p.read_bytes()) for p in cwd.glob("multirun_reports/runs/*/*/record.json")]
    return {record["choices"]["target"]: record for record in found}


def statuses(cwd: Path) -> dict[str, str]:
    return {target: record["status"] for target, record in records(cwd).items()}


def beats(cwd: Path) -> list[dict[str, Any]]:
    """The heartbeats of the cells that are running."""
    found = []
    for path in cwd.glob("multirun_reports/runs/*/*/running.json"):
        try:
            found.append(json.loads(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill_one_in_training(cwd: Path, program: subprocess.Popen[str], *, parent: bool = False) -> int:
    """Send SIGKILL to a process that has trained for some epochs, or to its parent. Returns the id
    of the training process."""
    limit = time.monotonic() + 200
    while time.monotonic() < limit and program.poll() is None:
        for beat in beats(cwd):
            if beat["stage"] == "train" and beat["epoch"] >= 2:
                pid = int(beat["pid"])
                os.kill(parent_of(pid) if parent else pid, signal.SIGKILL)
                return pid
        time.sleep(0.02)
    raise AssertionError(program.communicate()[0])


@pytest.mark.parametrize("workers", [2, 8])
@pytest.mark.parametrize(("action", "number"), [("kill", 9), ("segv", 11)])
def test_a_worker_that_dies_at_any_stage_affects_only_its_own_cell(
    action: str, number: int, workers: int, tmp_path: Path
) -> None:
    """Nine of ten cells die, each in a different stage. The tenth completes."""
    plans = [
        f"{where.partition(':')[0]}:{action}:{where.partition(':')[2]}:-{target}-"
        for target, (where, _) in DEATHS.items()
    ]
    targets = ",".join([*DEATHS, "truck"])
    code, said = run(
        tmp_path, EPOCHS, f"target={targets}", "hydra/launcher=joblib", "retries=0",
        f"hydra.launcher.n_jobs={workers}", faults=";".join(plans),
    )  # fmt: skip
    assert code == 1, said
    expected = {t: f"failed: killed by signal {number} during {w}" for t, (_, w) in DEATHS.items()}
    assert statuses(tmp_path) == {**expected, "truck": "done"}, said
    for target, record in records(tmp_path).items():
        assert record["status"] in said
        if target != "truck":
            hint = "n_jobs" if action == "kill" else "the last Python stack is in multirun_reports"
            assert hint in record["error"]
        if target != "truck" and action == "segv":
            (log,) = tmp_path.glob(f"multirun_reports/runs/*/{record['id']}/backdoor_lab.log")
            assert "Segmentation fault" in log.read_text()
            assert str(log.relative_to(tmp_path)) in record["error"]
    assert beats(tmp_path) == []


def needs_ray() -> None:
    pytest.importorskip(
        "hydra_plugins.hydra_ray_launcher", reason="the extra `ray` is not installed"
    )


@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local", "ray"])
def test_the_cell_of_a_killed_worker_is_retried_and_completes(
    launcher: str, tmp_path: Path
) -> None:
    """The worker gets SIGKILL during training. Only its cell runs again, from the last finished
    epoch."""
    if launcher == "ray":
        needs_ray()
    program = start(
        tmp_path, f"hydra/launcher={launcher}", "target=bird,dog,cat", "recipe.epochs=40"
    )
    pid = kill_one_in_training(tmp_path, program)
    said, _ = program.communicate(timeout=400)
    assert program.returncode == 0, said
    assert list(statuses(tmp_path).values()) == ["done"] * 3
    assert said.count("killed by signal 9 during train, epoch") == 1, said
    assert len(re.findall(r"retrying \S+ \(1 of 1\)", said)) == 1
    metas = [
        json.loads(path.read_text())["meta"]
        for path in tmp_path.glob("multirun_reports/.store/train/*/manifest.json")
    ]
    assert sorted(meta["resumed_after"] > 0 for meta in metas) == [False, False, True]
    assert all(beat["pid"] != pid for beat in beats(tmp_path))


@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_the_cell_of_a_killed_launcher_process_is_retried_and_no_child_process_remains(
    launcher: str, tmp_path: Path
) -> None:
    """The lost process is reported once, and the cell completes on the second attempt. The child
    process that computed the cell is gone."""
    if launcher == "ray":
        needs_ray()
    program = start(tmp_path, f"hydra/launcher={launcher}", "target=bird,dog", "recipe.epochs=40")
    pid = kill_one_in_training(tmp_path, program, parent=True)
    said, _ = program.communicate(timeout=400)
    assert program.returncode == 0, said
    assert set(statuses(tmp_path).values()) == {"done"}
    assert said.count("failed: its process was lost during train, epoch") == 1, said
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("launcher", ["basic", "submitit_local"])
def test_the_cause_is_recorded_for_a_cell_that_exits_or_aborts(
    launcher: str, tmp_path: Path
) -> None:
    plans = "filter.made:exit:1:-bird-;extract.made:abort:1:-dog-"
    code, said = run(
        tmp_path, f"hydra/launcher={launcher}", "target=bird,dog,cat", "retries=0", faults=plans
    )
    assert code == 1, said
    assert statuses(tmp_path) == {
        "bird": "failed: exit code 7 during filter",
        "dog": "failed: killed by signal 6 during extract",
        "cat": "done",
    }
    again, said = run(tmp_path, f"hydra/launcher={launcher}", "target=bird,dog,cat", "retries=0")
    assert again == 0, said
    assert set(statuses(tmp_path).values()) == {"done"}


def test_killed_and_out_of_memory_cells_are_retried_as_often_as_requested(tmp_path: Path) -> None:
    plans = "train.step:kill:2:-bird-;train.step:oom:2:-dog-;retrain.step:oom:2:-cat-"
    code, said = run(
        tmp_path, "target=bird,dog,cat", "hydra/launcher=joblib", "retries=2", "recipe.lr=0.05",
        faults=plans,
    )  # fmt: skip
    assert code == 1, said
    found = statuses(tmp_path)
    assert found["bird"] == "failed: killed by signal 9 during train, epoch 1 of 1"
    assert found["dog"] == found["cat"] == "failed: oom"
    for target in ("bird", "dog", "cat"):
        assert said.count(f"-{target}-r0.3-spectral-s0") >= 4
    assert len(re.findall(r"retrying \S+ \(1 of 2\)", said)) == 3
    assert len(re.findall(r"retrying \S+ \(2 of 2\)", said)) == 3
    assert said.count("giving up on ") == 3


def test_with_fail_fast_no_cell_is_started_after_the_first_failure(tmp_path: Path) -> None:
    """The first of three cells dies and is not retried. The other two stay missing. Without the
    fault, all three run."""
    sweep = ("target=bird,dog,cat", "fail_fast=true", "hydra.sweep.dir=here")
    code, said = run(tmp_path, *sweep, faults="train.step:kill:2:-bird-")
    assert code == 1, said
    found = [json.loads(path.read_bytes()) for path in tmp_path.glob("here/*/record.json")]
    assert [record["choices"]["target"] for record in found] == ["bird"]
    assert "retrying " not in said
    assert said.count(": missing") == 2
    assert "1 of 3" not in said
    code, said = run(tmp_path, *sweep)
    assert code == 0, said
    assert len(list(tmp_path.glob("here/*/record.json"))) == 3


def test_cells_that_share_a_diverging_network_train_it_once(tmp_path: Path) -> None:
    """All of these cells fail in the same way. Running the command again trains the network once
    more."""
    sweep = ("defense=spectral,none,random", "recipe.lr=1e30", "hydra/launcher=joblib")
    for _ in range(2):
        code, said = run(tmp_path, *sweep)
        assert code == 1, said
        found = [
            json.loads(p.read_bytes())
            for p in tmp_path.glob("multirun_reports/runs/*/*/record.json")
        ]
        assert len({record["status"] for record in found}) == 1
        assert found[0]["status"].startswith("diverged")
        assert "retrying " not in said
        notes = list(tmp_path.glob("multirun_reports/runs/*/.diverged/train-*"))
        assert len(notes) == 1


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
@pytest.mark.parametrize("how", ["SIGTERM to the program", "Ctrl+C at the terminal"])
def test_a_stopped_sweep_leaves_no_process_behind(how: str, launcher: str, tmp_path: Path) -> None:
    """The exit code is 75, no cell fails and no worker remains. The same command completes the
    sweep."""
    sweep = (f"hydra/launcher={launcher}", "target=bird,dog,cat", "recipe.epochs=40")
    program = start(tmp_path, *sweep, own_group=True)
    pid = 0
    while not pid and program.poll() is None:
        pid = next((int(b["pid"]) for b in beats(tmp_path) if b["stage"] == "train"), 0)
        time.sleep(0.05)
    if how.startswith("SIGTERM"):
        program.send_signal(signal.SIGTERM)
    else:
        os.killpg(program.pid, signal.SIGINT)
    said, _ = program.communicate(timeout=200)
    assert program.returncode == 75, said
    lines = said.splitlines()
    assert "stopped on request; the same command resumes where this one stopped" in lines
    assert ": missing" not in said
    assert not Path(f"/proc/{pid}").exists()
    assert all(status == "done" for status in statuses(tmp_path).values())
    assert "failed" not in said
    assert "Traceback" not in said
    code, said = run(tmp_path, *sweep)
    assert code == 0, said
    assert list(statuses(tmp_path).values()) == ["done"] * 3
