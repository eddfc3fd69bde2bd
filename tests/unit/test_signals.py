"""SIGTERM, SIGINT and SIGKILL during training, followed by the same command."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core.terminal import run_command
from tests.helpers.cells import TINY, lasting, run_here, signalled, started

ROOT = Path(__file__).resolve().parents[2]
LONG = (*TINY, "dataset.per_class_train=40", "recipe.batch_size=8", "recipe.epochs=6")


def record(cwd: Path) -> dict[str, Any] | None:
    found = list(cwd.rglob("record.json"))
    assert len(found) <= 1
    return json.loads(found[0].read_text()) if found else None


def checkpoints(cwd: Path) -> list[Path]:
    return list((cwd / "multirun_reports" / ".store" / "train").glob(".work-*/*.ckpt"))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unbroken")
    found = run_here(folder / "store", folder / "cell", *LONG)
    assert found["status"] == "done"
    return lasting(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_resuming_a_stopped_cell_with_the_same_command_gives_an_identical_record(
    tmp_path: Path, unbroken: dict[str, Any], number: signal.Signals
) -> None:
    code, _, said = signalled(tmp_path, number, lambda: bool(checkpoints(tmp_path)), *LONG)
    assert code == (-9 if number == signal.SIGKILL else 75), said
    assert record(tmp_path) is None
    assert len(checkpoints(tmp_path)) == 1
    if number != signal.SIGKILL:
        lines = said.strip().splitlines()
        assert len(lines) == 1, said
        assert lines[0].startswith(f"error: stopped by {number.name}; the same command resumes")
        assert list((tmp_path / "multirun_reports" / ".store").rglob("*.claim")) == []
    if number == signal.SIGTERM:
        again = started(tmp_path, *LONG)
        assert again.returncode == 0, again.stderr
    else:  # Resume in this process, which takes less time.
        run_here(tmp_path / "multirun_reports" / ".store", tmp_path / "cell", *LONG)
    found = record(tmp_path)
    assert found is not None
    assert lasting(found) == unbroken
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_while_it_starts_says_so_in_one_line(
    tmp_path: Path, number: signal.Signals
) -> None:
    """The signal arrives while Hydra is imported."""
    (tmp_path / "hydra").mkdir()
    # A process that a shell starts in the background ignores SIGINT, and so do its children.
    (tmp_path / "hydra/__init__.py").write_text(
        "import os, signal, time\n"
        "if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"os.kill(os.getpid(), {int(number)})\ntime.sleep(60)\n"
    )
    found = subprocess.run(
        [sys.executable, "-m", "backdoor_lab", "experiment=smoke"], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True, text=True, check=False, timeout=50,
    )  # fmt: skip
    assert found.returncode == 75
    assert found.stderr == "error: stopped; the same command resumes from here\n"


def test_every_other_command_that_is_interrupted_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    assert run_command(argparse.ArgumentParser(), interrupted, []) == 75
    assert capsys.readouterr().err == "error: stopped; the same command resumes from here\n"
