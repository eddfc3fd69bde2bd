"""The process of a cell: it respects `fail_fast` and logs the stack trace of a crash."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

import backdoor_lab.sweep.job as job_module
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.sweep.launching.loss import LostProcess
from backdoor_lab.sweep.launching.task import run_in_sweep
from backdoor_lab.sweep.manifest import halt, halted


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, ends: Any, **config: Any) -> Any:
    """A supervised cell that ends as specified: with a status, an error, or an action."""

    def run_job(*_: Any, **__: Any) -> Any:
        if isinstance(ends, Exception):
            raise ends
        return ends() if callable(ends) else ends

    monkeypatch.setattr(job_module, "run_job", run_job)
    folder.mkdir(exist_ok=True)
    return run_in_sweep(config, folder, 1, folder / "lab.log")


@pytest.mark.parametrize(
    ("ends", "fail_fast", "stops"),
    [
        ("done", True, False),
        ("diverged: loss is nan", True, True),
        ("failed: oom", True, True),
        (ConfigError("refused"), True, True),
        ("diverged: loss is nan", False, False),
    ],
)
def test_fail_fast_stops_the_sweep_at_a_failure(
    ends: Any, fail_fast: bool, stops: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "cell", monkeypatch, ends, fail_fast=fail_fast)
    assert halted(tmp_path) == stops


def test_no_cell_starts_in_a_stopped_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halt(tmp_path)
    found = run(tmp_path / "cell", monkeypatch, AssertionError("it ran"))
    assert found == "not started"
    assert not (tmp_path / "cell" / "lab.log").exists()


def test_the_stack_trace_of_a_crash_is_in_the_log_of_the_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash_here() -> None:
        signal.raise_signal(signal.SIGSEGV)

    found = run(tmp_path / "cell", monkeypatch, crash_here)
    assert isinstance(found, LostProcess)
    assert found.code == -signal.SIGSEGV
    log = (tmp_path / "cell" / "lab.log").read_text()
    assert "Segmentation fault" in log
    assert "crash_here" in log
