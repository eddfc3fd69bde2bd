"""Real launchers with several processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cells import TINY, environment

ROOT = Path(__file__).parents[2]


def start(cwd: Path, *overrides: str) -> subprocess.Popen[str]:
    """Starts a sweep of tiny cells."""
    command = [sys.executable, "-m", "backdoor_lab", "-m", *TINY, *overrides]
    return subprocess.Popen(
        command, cwd=cwd, env=environment(PYTHONPATH=str(ROOT)), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def statuses(folder: Path) -> list[str]:
    """The status in every record of the one sweep below a folder."""
    found = folder.glob("multirun_reports/runs/*/*/record.json")
    return sorted(json.loads(path.read_text())["status"] for path in found)


def test_the_submitit_local_launcher_completes_a_sweep(tmp_path: Path) -> None:
    """Each cell runs in its own process, and the tables are written."""
    program = start(tmp_path, "hydra/launcher=submitit_local", "target=bird,dog")
    said, _ = program.communicate(timeout=240)
    assert program.returncode == 0, said
    assert statuses(tmp_path) == ["done", "done"]
    assert "| dog" in said


def test_the_ray_launcher_completes_a_sweep(tmp_path: Path) -> None:
    """A local Ray is started for the sweep. Each cell runs in its own worker with one core."""
    pytest.importorskip(
        "hydra_plugins.hydra_ray_launcher", reason="the extra `ray` is not installed"
    )
    program = start(tmp_path, "hydra/launcher=ray", "target=bird,dog", "trainer.threads=null")
    said, _ = program.communicate(timeout=240)
    assert program.returncode == 0, said
    assert statuses(tmp_path) == ["done", "done"]
    paths = tmp_path.glob("multirun_reports/runs/*/*/record.json")
    found = [json.loads(path.read_text()) for path in paths]
    assert {"1 thread" in record["run"]["device"] for record in found} == {True}
