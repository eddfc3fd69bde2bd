"""Row 18 of the fault table: sweeps on a real Slurm cluster whose jobs are requeued, preempted or
timed out, or whose node is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cells import TINY, environment, lasting, run_here
from tests.helpers.slurm_lab import Lab, missing, parent

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"Slurm is not installed: no {missing()}"),
    pytest.mark.timeout(400),
]
ROOT = Path(__file__).parents[2]
SLOW = ("recipe.epochs=40", "dataset.per_class_train=60")
LAUNCH = (
    "hydra/launcher=submitit_slurm", "hydra.launcher.partition=debug",
    "hydra.launcher.cpus_per_task=1", "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.mem_gb=null", "hydra.launcher.signal_delay_s=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A Slurm of two nodes with two processors each."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-lab-"))
    # munge requires a socket that everybody can reach, but pytest's folders are private.
    folder.chmod(0o755)
    lab = Lab(folder)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
        shutil.rmtree(folder, ignore_errors=True)


def sweep(lab: Lab, cwd: Path, *overrides: str, fault: str = "") -> subprocess.Popen[str]:
    """Starts a sweep on the cluster."""
    command = [sys.executable, "-m", "backdoor_lab", "-m", *TINY, *LAUNCH, *overrides]
    settings = environment(PYTHONPATH=str(ROOT)) | lab.environment
    settings |= {"OMP_NUM_THREADS": "1", "BACKDOOR_LAB_FAULT": fault}
    return subprocess.Popen(
        command, cwd=cwd, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def epoch_of(folder: Path) -> int:
    """The highest epoch reported by a cell below `folder`."""
    found = [0]
    for path in folder.glob("multirun_reports/runs/*/*/running.json"):
        try:
            found.append(json.loads(path.read_text())["epoch"])
        except (OSError, ValueError):
            continue
    return max(found)


def training(lab: Lab, folder: Path, program: subprocess.Popen[str]) -> None:
    """Waits until a cell is some epochs into its training."""
    lab.until(lambda: epoch_of(folder) >= 3 or program.poll() is not None, 120)
    assert program.poll() is None, program.communicate()[0]


def records(folder: Path) -> list[dict]:
    """The records of every cell of the one sweep below `folder`."""
    return [json.loads(p.read_text()) for p in folder.glob("multirun_reports/runs/*/*/record.json")]


def complete(folder: Path, program: subprocess.Popen[str], cells: int) -> None:
    """Asserts that the sweep succeeded with a record for every cell."""
    said, _ = program.communicate(timeout=300)
    assert program.returncode == 0, said
    assert [each["status"] for each in records(folder)] == ["done"] * cells, said


def test_slurm_runs_the_cells_of_a_sweep_as_one_job_array(lab: Lab, tmp_path: Path) -> None:
    """The records of the four cells equal those of a local run."""
    program = sweep(lab, tmp_path, "trigger=pixel,pattern", "target=bird,dog")
    complete(tmp_path, program, 4)
    (bird,) = (r for r in records(tmp_path) if r["id"].startswith("pixel-bird"))
    local = run_here(tmp_path / "local/store", tmp_path / "local/cell")
    assert lasting(bird) == lasting(local)


def test_a_requeued_slurm_job_resumes_its_training(lab: Lab, tmp_path: Path) -> None:
    """The job is requeued with scontrol in the middle of training."""
    program = sweep(lab, tmp_path, "trigger=pixel", *SLOW)
    training(lab, tmp_path, program)
    (task,) = (job for job, state, _ in lab.jobs() if state == "RUNNING")
    lab.call("scontrol", "requeue", task)
    complete(tmp_path, program, 1)


def test_a_preempted_job_resumes_and_completes(lab: Lab, tmp_path: Path) -> None:
    """A job of higher priority takes both nodes. Afterwards, the cell runs again and completes."""
    program = sweep(lab, tmp_path, "trigger=pixel", *SLOW)
    training(lab, tmp_path, program)
    lab.call("sbatch", "-p", "high", "-n4", "-o", "/dev/null", "--wrap", "sleep 3")
    complete(tmp_path, program, 1)


def test_a_job_that_runs_out_of_time_is_queued_again_and_resumes(lab: Lab, tmp_path: Path) -> None:
    """In each run, the training waits forever at step 60, after three epochs. The job gets a signal
    before its time limit, is queued again, and resumes after the third epoch. On a busy machine,
    the first run may get the signal before step 60; then the second run waits, too."""
    limits = ("hydra.launcher.timeout_min=2", "hydra.launcher.max_num_timeout=3")
    long = ("recipe.epochs=6", "dataset.per_class_train=60", "hydra.launcher.signal_delay_s=20")
    program = sweep(lab, tmp_path, "trigger=pixel", *long, *limits, fault="train.step:wait:60")
    complete(tmp_path, program, 1)
    tasks = lab.call("scontrol", "show", "job").split("JobId=")[1:]
    mine = [task for task in tasks if f"WorkDir={tmp_path}" in task]
    (restarts,) = [int(task.partition("Restarts=")[2].split()[0]) for task in mine]
    (made,) = tmp_path.glob("multirun_reports/.store/train/*/manifest.json")
    resumed = json.loads(made.read_text())["meta"]["resumed_after"]
    assert (restarts, resumed) == (1, 3) or (restarts == 2 and resumed > 3)


def test_another_node_resumes_the_cell_of_a_lost_node(lab: Lab, tmp_path: Path) -> None:
    """Training resumes from the last finished epoch."""
    program = sweep(lab, tmp_path, "trigger=pixel", *SLOW)
    training(lab, tmp_path, program)
    (node,) = (node for _, state, node in lab.jobs() if state == "RUNNING")
    lab.lose_node(node)
    try:
        complete(tmp_path, program, 1)
    finally:
        lab.start_node(node)


def test_if_the_process_of_a_cell_dies_only_that_cell_fails_and_the_cause_is_recorded(
    lab: Lab, tmp_path: Path
) -> None:
    """Of four array tasks, one gets SIGKILL, one gets SIGSEGV, and one exits. The fourth
    completes."""
    fault = "train.step:kill:2:-bird-;filter.made:segv:1:-dog-;extract.begun:exit:1:-cat-"
    program = sweep(lab, tmp_path, "target=bird,dog,cat,frog", "retries=0", fault=fault)
    said, _ = program.communicate(timeout=300)
    assert program.returncode == 1, said
    assert {r["choices"]["target"]: r["status"] for r in records(tmp_path)} == {
        "bird": "failed: killed by signal 9 during train, epoch 1 of 1",
        "dog": "failed: killed by signal 11 during filter",
        "cat": "failed: exit code 7 during extract",
        "frog": "done",
    }, said


@pytest.mark.parametrize("which", ["the cell's process", "the task itself"])
def test_a_killed_cell_is_queued_again_and_completes(which: str, lab: Lab, tmp_path: Path) -> None:
    """The process gets SIGKILL on its node, and the sweep launches the cell once more."""
    program = sweep(lab, tmp_path, "target=bird,dog", *SLOW)
    training(lab, tmp_path, program)
    beats = [
        json.loads(p.read_text()) for p in tmp_path.glob("multirun_reports/runs/*/*/running.json")
    ]
    pid = max(beats, key=lambda beat: beat["epoch"])["pid"]
    os.kill(pid if which == "the cell's process" else parent(pid), signal.SIGKILL)
    said, _ = program.communicate(timeout=390)
    assert program.returncode == 0, said
    assert [each["status"] for each in records(tmp_path)] == ["done"] * 2, said
    how = "killed by signal 9" if which == "the cell's process" else "its process was lost"
    assert said.count(f"failed: {how} during train, epoch") == 1, said
    assert len(re.findall(r"retrying \S+ \(1 of 1\)", said)) == 1, said
