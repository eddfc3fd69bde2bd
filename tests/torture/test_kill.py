"""Rows 1 and 2 of the fault table: after a kill at any point, the same command resumes to an
identical record."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

import backdoor_lab.pipeline.cell_pipeline as chain_module
from tests.helpers.cells import lasting, run_here

STAGES = ("data", "poison", "train", "measure", "extract", "filter", "retrain", "overlap")
POINTS = [f"{stage}.{when}:kill:1" for stage in STAGES for when in ("before", "made", "published")]
POINTS += ["record.before:kill:1", "record.published:kill:1", "measure.made:kill:2"]
STEPS = [f"{stage}.step:kill:{step}" for stage in ("train", "retrain") for step in (1, 5, 9, 12)]
EPOCHS = "recipe.epochs=3"
# An attack with additional stages: a surrogate is trained, then noise is optimized on it.
PREPARED = ("trigger=narcissus", "trigger.steps=2", "trigger.lr=1e6", "recipe.epochs=1")
PREPARING = [f"{stage}.{when}:kill:1" for stage in ("surrogate", "prepare", "poison")
             for when in ("before", "made", "published")]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The record of an uninterrupted run."""
    root = tmp_path_factory.mktemp("unbroken")
    return lasting(run_here(root / "store", root / "cell", EPOCHS))


@pytest.fixture(scope="module")
def unbroken_prepared(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The record of an uninterrupted run of an attack with preparation."""
    root = tmp_path_factory.mktemp("prepared")
    return lasting(run_here(root / "store", root / "cell", *PREPARED))


def killed(root: Path, fault: str, *overrides: str) -> int:
    """Runs the cell in a forked process with a planned fault. Returns the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        os.environ["BACKDOOR_LAB_FAULT"] = fault
        code = 1
        try:
            run_here(root / "store", root / "cell", *(overrides or [EPOCHS]))
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


@pytest.mark.parametrize("fault", POINTS + STEPS)
def test_resume_after_sigkill_recomputes_no_finished_stage(
    fault: str, unbroken: dict, tmp_path: Path
) -> None:
    """The run is killed before, during or after a stage, or at a training step. The same run is
    then repeated."""
    assert killed(tmp_path, fault) == signal.SIGKILL
    published = {
        str(path.parent) for path in (tmp_path / "store").glob("*/[0-9a-f]*/manifest.json")
    }
    stamps = {name: os.stat(Path(name) / "manifest.json").st_mtime_ns for name in published}
    record = run_here(tmp_path / "store", tmp_path / "cell", EPOCHS)
    assert lasting(record) == unbroken
    assert json.loads((tmp_path / "cell" / "record.json").read_text()) == record
    for name, stamp in stamps.items():
        assert os.stat(Path(name) / "manifest.json").st_mtime_ns == stamp, "computed twice"
    store = tmp_path / "store"
    assert not [*store.glob("*/.part-*"), *store.glob("*/.work-*"), *store.glob("*/.bad-*")]


@pytest.mark.parametrize("fault", PREPARING)
def test_resume_after_sigkill_reuses_the_finished_preparation_of_an_attack(
    fault: str, unbroken_prepared: dict, tmp_path: Path
) -> None:
    """The run is killed before, during or after a stage of the attack. Then it is repeated."""
    assert killed(tmp_path, fault, *PREPARED) == signal.SIGKILL
    record = run_here(tmp_path / "store", tmp_path / "cell", *PREPARED)
    assert lasting(record) == unbroken_prepared
    for stage in ("surrogate", "prepare", "poison"):
        assert len([*(tmp_path / "store" / stage).glob("[0-9a-f]*/manifest.json")]) == 1


def test_training_resumes_from_the_last_finished_epoch(
    unbroken: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the training is killed in the third epoch, only the third epoch is trained again."""
    steps_per_epoch = unbroken["counts"]["n_train"] // 32
    fault = f"train.step:kill:{2 * steps_per_epoch + 1}"
    assert killed(tmp_path, fault) == signal.SIGKILL
    seen = []
    original = chain_module.ProgressCallback.on_train_epoch_end

    def counting(self: object, trainer: object, module: object) -> None:
        seen.append((self.name, trainer.current_epoch))  # type: ignore[attr-defined]
        original(self, trainer, module)  # type: ignore[arg-type]

    monkeypatch.setattr(chain_module.ProgressCallback, "on_train_epoch_end", counting)
    record = run_here(tmp_path / "store", tmp_path / "cell", EPOCHS)
    assert lasting(record) == unbroken
    assert [epoch for stage, epoch in seen if stage == "train"] == [2]
