"""Which cells are launched again, tested with a simulated launcher."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.utils import JobStatus
from omegaconf import OmegaConf

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.pipeline.keys import check_keys
from backdoor_lab.plugins.trust import trusted
from backdoor_lab.results.seal import sealed
from backdoor_lab.sweep.launching import local
from backdoor_lab.sweep.launching.launch import Launch
from backdoor_lab.sweep.launching.loss import LostProcess
from backdoor_lab.sweep.manifest import RequestedCell, halt, halted
from tests.helpers.cells import configuration

DONE = {"status": "done", "nat1": 0.9, "counts": {"n_poisoned": 1, "pois_left": 0}}
DIVERGED = {"status": "diverged: loss is nan"}
OOM = {"status": "failed: oom"}
KILLED = LostProcess(-9, 1)
Outcome = dict[str, Any] | LostProcess | None


class Fake:
    """A launcher that simulates cells. `outcomes` lists for each cell how its launches end; by
    default it is done. Exceptions under `launcher` and `then` are raised by the launcher itself."""

    def __init__(self, folder: Path, outcomes: dict[str, Any]) -> None:
        self.folder, self.outcomes = folder, outcomes
        self.launched: list[list[str]] = []

    def launch(self, jobs: Sequence[list[str]], initial_job_idx: int) -> list[Any]:
        names = [job[-1].partition("=")[2] for job in jobs]
        self.launched.append(names)
        if isinstance(self.outcomes.get("launcher"), Exception):
            error = self.outcomes["launcher"]
            self.outcomes["launcher"] = self.outcomes.get("then")
            raise error
        return [self._run(name) for name in names]

    def _run(self, name: str) -> Any:
        left = self.outcomes.get(name)
        outcome = left.pop(0) if left else DONE
        if isinstance(outcome, Exception):
            return outcome
        if isinstance(outcome, dict) and not halted(self.folder):
            write(self.folder, name, outcome)
        return SimpleNamespace(status=JobStatus.COMPLETED, _return_value=outcome)


def write(folder: Path, name: str, says: dict[str, Any]) -> None:
    choices = {"trigger": "pixel", "target": "bird", "ratio": 0.1, "protocol": "group13",
               "defense": "spectral", "seed": 0}  # fmt: skip
    (folder / name).mkdir(parents=True, exist_ok=True)
    record = {"schema": 1, "id": name, "choices": choices} | says
    (folder / name / "record.json").write_text(sealed(json.dumps(record)))


def launch(
    folder: Path, outcomes: dict[str, Any], *, retries: int = 1, fail_fast: bool = False,
    batch: int | None = None, cells: str = "abc",
) -> tuple[list[list[str]], list[str]]:  # fmt: skip
    """The cells launched in each round, and the cells recorded as lost."""
    fake, lost = Fake(folder, outcomes), []

    def record(each: RequestedCell, loss: LostProcess) -> str:
        lost.append(each.id)
        write(folder, each.id, {"status": "failed: killed by signal 9"})
        return "failed: killed by signal 9"

    asked = [RequestedCell(name, {}, {}, (), retries, fail_fast) for name in cells]
    Launch(fake, folder, at_once=2, batch=batch, record=record).run(asked)
    return fake.launched, lost


def test_cells_that_finish_are_launched_only_once(tmp_path: Path) -> None:
    assert launch(tmp_path, {}) == ([["a", "b", "c"]], [])


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_killed_cell_is_retried_as_often_as_requested(retries: int, tmp_path: Path) -> None:
    launched, lost = launch(tmp_path, {"b": [KILLED] * 9}, retries=retries)
    assert launched == [["a", "b", "c"], *[["b"]] * retries]
    assert lost == ["b"] * (retries + 1)


def test_a_killed_cell_that_succeeds_on_retry_is_done(tmp_path: Path) -> None:
    launched, lost = launch(tmp_path, {"b": [KILLED]}, retries=5)
    assert launched == [["a", "b", "c"], ["b"]]
    assert lost == ["b"]
    assert json.loads((tmp_path / "b/record.json").read_text())["status"] == "done"


def test_out_of_memory_is_retried_like_a_kill(tmp_path: Path) -> None:
    launched, lost = launch(tmp_path, {"b": [OOM, KILLED, OOM]}, retries=1)
    assert launched == [["a", "b", "c"], ["b"]]
    assert lost == ["b"]


@pytest.mark.parametrize("says", [DIVERGED, {"status": "failed: no such file"}])
def test_a_diverged_or_failed_cell_is_not_retried(says: dict[str, Any], tmp_path: Path) -> None:
    assert launch(tmp_path, {"b": [says]}, retries=5) == ([["a", "b", "c"]], [])


def test_a_refused_cell_without_a_record_is_not_retried(tmp_path: Path) -> None:
    assert launch(tmp_path, {"b": [None]}, retries=5) == ([["a", "b", "c"]], [])


def test_a_launcher_error_does_not_count_as_a_retry_of_its_cells(tmp_path: Path) -> None:
    outcomes = {"launcher": OSError("sbatch: busy"), "b": [KILLED]}
    launched, lost = launch(tmp_path, outcomes, batch=2, retries=1)
    assert launched == [["a", "b"], ["c"], ["a", "b"], ["b"]]
    assert lost == ["b"]


def test_a_launcher_that_fails_before_running_any_cell_is_called_only_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    error = OSError("sbatch: not found")
    launched, _ = launch(tmp_path, {"launcher": error, "then": error})
    assert launched == [["a", "b", "c"]]
    assert "the launcher failed: OSError: sbatch: not found" in caplog.text
    assert "ran none of the remaining cells" in caplog.text


def test_with_fail_fast_a_failure_prevents_further_batches_and_retries(tmp_path: Path) -> None:
    launched, lost = launch(tmp_path, {"a": [KILLED]}, batch=1, fail_fast=True)
    assert launched == [["a"]]
    assert lost == ["a"]
    # The next command launches all cells again.
    launched, _ = launch(tmp_path, {}, batch=1, fail_fast=True)
    assert launched == [["a"], ["b"], ["c"]]


def test_a_stop_request_to_an_earlier_command_does_not_stop_the_next_command(
    tmp_path: Path,
) -> None:
    halt(tmp_path)
    assert launch(tmp_path, {})[0] == [["a", "b", "c"]]
    assert not halted(tmp_path)


def test_a_launcher_error_for_one_job_affects_only_the_cell_of_that_job(tmp_path: Path) -> None:
    launched, lost = launch(tmp_path, {"b": [RuntimeError("gone")] * 2, "c": [DIVERGED]})
    assert launched == [["a", "b", "c"], ["b"]]
    assert lost == ["b", "b"]


class FailedJobError(Exception):
    """Has the name of submitit's error for a task that raised an exception."""


def test_a_task_that_raised_an_error_is_not_retried(tmp_path: Path) -> None:
    assert launch(tmp_path, {"b": [FailedJobError("trace")]}) == ([["a", "b", "c"]], [])


@pytest.mark.parametrize("value", [-1, 1.5, "two", None, True])
def test_retries_must_be_a_whole_number(value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`retries`"):
        check_keys(configuration(tmp_path) | {"retries": value})


@pytest.mark.parametrize("value", [1, "yes", None])
def test_fail_fast_must_be_true_or_false(value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`fail_fast` must be true or false"):
        check_keys(configuration(tmp_path) | {"fail_fast": value})


def test_a_full_disk_before_the_cell_starts_is_reported_as_a_lack_of_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra writes its files before the cell starts and raises an OSError."""
    said: list[str] = []

    def fail(task: Any, config: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "c" / ".hydra"))

    def note(folder: Path, reason: str) -> str:
        said.append(reason)
        return "failed"

    monkeypatch.setattr(local, "_run_job", fail)
    monkeypatch.setattr(local, "note_failure", note)
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path), "subdir": "c"}}})
    assert local._run(print, trusted(), config) == (False, "failed")
    assert "not enough disk space: " in said[0]
