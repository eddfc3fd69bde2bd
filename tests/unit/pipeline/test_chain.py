"""Whole cells: what is computed, what is computed again, and the record of a failed cell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_lab.core.errors import ConfigError, DivergedError, StoppedError, StoreFullError
from backdoor_lab.core.store import Store
from backdoor_lab.core.tensor_io import read_tensors
from backdoor_lab.pipeline import after_training, cell_pipeline
from backdoor_lab.pipeline.stages.holdout import held_out
from backdoor_lab.sweep.preflight import Preflight
from tests.helpers.cells import cell_of, environment, lasting, run_here

ROOT = Path(__file__).resolve().parents[3]
STAGES = ["extract", "filter", "measure1", "measure2", "poison", "retrain", "train",
          "train_accuracy1", "train_accuracy2"]  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in which the default cell has run."""
    folder = tmp_path_factory.mktemp("lab")
    run_here(folder / "store", folder / "cell")
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the networks that are trained."""
    seen: Counter[str] = Counter()

    def fit(job: Any, *arguments: Any, **said: Any) -> Any:
        seen["fit"] += 1
        seen[job.training.digest] += 1
        return whole(job, *arguments, **said)

    whole = cell_pipeline.fit
    monkeypatch.setattr(cell_pipeline, "fit", fit)
    return seen


def made(record: dict[str, Any]) -> list[str]:
    return sorted(name for name, said in record["run"]["stages"].items() if said["made"])


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_text())
    return found


def test_running_the_same_cell_again_computes_nothing(lab: Path, counted: Counter[str]) -> None:
    first = record_of(lab / "cell")
    again = run_here(lab / "store", lab / "again")
    assert made(first) == STAGES
    assert made(again) == []
    assert not counted
    assert lasting(again) == lasting(first)
    assert sorted(p.name for p in (lab / "again").iterdir()) == ["record.json"]
    assert not list(lab.rglob(".work-*"))
    assert not list(lab.rglob("*.claim"))


def test_running_a_cell_again_with_an_empty_store_gives_the_same_record(
    lab: Path, tmp_path: Path
) -> None:
    first = record_of(lab / "cell")
    again = run_here(tmp_path / "store", tmp_path / "cell")
    assert made(again) == STAGES
    assert lasting(record_of(tmp_path / "cell")) == lasting(first)
    text = [json.dumps(lasting(each), sort_keys=True) for each in (first, again)]
    assert text[0] == text[1]
    # Only the section "run" depends on where and when the cell was computed.
    assert str(lab) not in text[0]
    assert str(os.getpid()) not in {str(v) for v in first["run"]["stages"].values()}


def test_running_a_cell_in_another_process_gives_the_same_record(lab: Path, tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; from tests.helpers.cells import run_here\n"
            "run_here(Path(sys.argv[1]) / 'store', Path(sys.argv[1]) / 'cell')")  # fmt: skip
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path,
        env=environment(PYTHONHASHSEED="77", PYTHONPATH=str(ROOT)),
    )  # fmt: skip
    assert lasting(record_of(tmp_path / "cell")) == lasting(record_of(lab / "cell"))


def test_another_seed_changes_the_output_of_every_stage_except_the_data(lab: Path) -> None:
    first, other = record_of(lab / "cell"), run_here(lab / "store", lab / "other", "seed=1")
    assert first["id"] != other["id"]
    assert first["poison_indices"] != other["poison_indices"]
    for name, value in first["hashes"].items():
        assert (value == other["hashes"][name]) == (name in ("data", "test")), name


def test_held_out_images_are_given_only_to_filters_that_need_them(tmp_path: Path) -> None:
    """The seed chooses two test images of each class. All cells are evaluated on the remaining test
    images."""
    held = "protocol.clean_holdout=20"
    scan = run_here(tmp_path / "store", tmp_path / "scan", "defense=scan", held)
    none = run_here(tmp_path / "store", tmp_path / "none", "defense=none", held)
    bare = run_here(tmp_path / "store", tmp_path / "bare", "defense=none")
    assert [each["status"] for each in (scan, none, bare)] == ["done"] * 3
    assert [each["counts"]["n_test"] for each in (scan, none, bare)] == [30, 30, 50]
    assert [each["counts"]["n_asr"] for each in (scan, none, bare)] == [27, 27, 45]
    assert scan["nat1"] == none["nat1"]
    assert "clean" in scan["run"]["stages"]
    assert "clean" not in none["run"]["stages"]
    (entry,) = (tmp_path / "store/clean").glob("[0-9a-f]*")
    values = read_tensors(entry / "features.safetensors")["values"]
    assert len(values) == 20
    cell = cell_of(tmp_path / "store", "defense=scan", held)
    test = Preflight().data(cell).test
    where = held_out(cell, test)
    assert torch.bincount(test.labels[where]).tolist() == [2] * 10
    other = held_out(cell_of(tmp_path / "store", held, "seed=1"), test)
    assert not torch.equal(where, other)


def test_surrogate_and_noise_are_computed_once_per_attack(
    tmp_path: Path, counted: Counter[str]
) -> None:
    """Two ratios and two defenses of one attack share a surrogate and an optimized noise; another
    target has its own noise, optimized on the same surrogate."""
    store = tmp_path / "store"
    options = "trigger=narcissus", "trigger.steps=2", "trigger.lr=1e6", "retrain=false"
    records = [
        run_here(store, tmp_path / f"{number}", *options, *more)
        for number, more in enumerate([["ratio=0.3"], ["ratio=0.5"], ["defense=none"],
                                       ["target=dog"]])
    ]  # fmt: skip
    assert [each["status"] for each in records] == ["done"] * 4
    found = {stage: len([*(store / stage).glob("[0-9a-f]*/manifest.json")])
             for stage in ("surrogate", "prepare", "poison", "train")}  # fmt: skip
    assert found == {"surrogate": 1, "prepare": 2, "poison": 3, "train": 3}
    assert counted["fit"] == 4
    assert all(each["protocol"]["label_mode"] == "clean" for each in records)
    assert records[0]["counts"] | {"n_poisoned": 6, "n_train": 200} == records[0]["counts"]


def test_setting_retrain_to_false_gives_the_same_detection_without_a_second_training(
    lab: Path, counted: Counter[str]
) -> None:
    """The cell has another id but the same detection metrics."""
    first = record_of(lab / "cell")
    record = run_here(lab / "store", lab / "figures", "retrain=false")
    assert record["status"] == "done"
    assert record["id"] != first["id"]
    assert counted["fit"] == 0
    assert record["detection"] == first["detection"]
    assert [record[key] for key in ("nat1", "asr1")] == [first[key] for key in ("nat1", "asr1")]
    assert record["nat2"] is record["asr2"] is record["hashes"]["weights2"] is None


def test_too_few_or_too_many_held_out_images_are_refused(tmp_path: Path) -> None:
    """The error for a filter that needs clean images names the key to set. At least half of the
    test images must remain."""
    with pytest.raises(ConfigError, match=r"`defense=scan` needs .* protocol.clean_holdout to 20"):
        cell_of(tmp_path, "defense=scan")
    with pytest.raises(ConfigError, match="would leave less than half of the 50 test images"):
        cell_of(tmp_path, "protocol.clean_holdout=26")


def test_defenses_against_the_same_attack_share_the_attacked_network(
    lab: Path, counted: Counter[str]
) -> None:
    first = record_of(lab / "cell")
    records = {
        name: run_here(lab / "store", lab / name, f"defense={name}")
        for name in ("none", "random", "oracle")
    }
    for record in records.values():
        assert record["status"] == "done"
        assert record["hashes"]["weights1"] == first["hashes"]["weights1"]
        assert record["id"] != first["id"]
        assert set(made(record)) <= {"filter", "retrain", "train_accuracy2", "measure2"}
    assert counted[first["hashes"]["training1"]] == 1  # `none` retrains on the same set
    assert counted["fit"] == 3
    assert records["none"]["counts"]["n_removed"] == 0
    assert records["random"]["counts"]["n_removed"] == first["counts"]["n_removed"]
    found = records["oracle"]["detection"]
    assert [found[k] for k in ("auroc", "tpr", "fpr", "average_precision")] == [1, 1, 0, 1]
    # The oracle leaves the same clean set for every trigger.
    pattern = run_here(lab / "store", lab / "pattern", "defense=oracle", "trigger=pattern")
    assert counted["fit"] == 4
    assert "retrain" not in made(pattern)
    assert "train" in made(pattern)
    assert pattern["hashes"]["weights2"] == records["oracle"]["hashes"]["weights2"]
    assert pattern["poison_indices"] == first["poison_indices"]
    assert pattern["asr2"] is not None


@pytest.mark.parametrize(
    ("stage", "damage"),
    [("poison", "flipped"), ("train", "flipped"), ("extract", "flipped"), ("filter", "flipped"),
     ("retrain", "flipped"), ("measure", "flipped"), ("train", "deleted"), ("poison", "manifest"),
     ("retrain", "manifest")],
)  # fmt: skip
def test_a_damaged_output_of_a_stage_is_computed_again(
    lab: Path, tmp_path: Path, stage: str, damage: str
) -> None:
    store = tmp_path / "store"
    shutil.copytree(lab / "store", store)
    name = "measure1" if stage == "measure" else stage
    first = record_of(lab / "cell")
    entry = store / stage / first["run"]["stages"][name]["id"]
    if damage == "deleted":
        shutil.rmtree(entry)
    else:
        files = [p for p in entry.iterdir() if (p.name == "manifest.json") == (damage != "flipped")]
        if not files:  # a measurement has only a manifest
            files = [entry / "manifest.json"]
        content = bytearray(files[0].read_bytes())
        content = content[: len(content) // 2] if damage == "manifest" else flipped(content)
        files[0].write_bytes(content)
    again = run_here(store, tmp_path / "cell")
    assert lasting(again) == lasting(first)
    assert name in made(again)
    assert bool(list((store / stage).glob(".bad-*"))) == (damage != "deleted")


def flipped(content: bytearray) -> bytearray:
    content[len(content) // 3] ^= 0x80
    return content


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DivergedError("loss is nan at epoch 1"), "diverged: loss is nan at epoch 1"),
        (StoreFullError("not enough disk space:\nmore"), "failed: not enough disk space:"),
        (ValueError("odd"), "failed: ValueError: odd"),
        (ValueError(), "failed: ValueError"),
        (MemoryError("planned"), "failed: oom"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: you tried"),
         "failed: oom"),
    ],
)  # fmt: skip
def test_a_failing_cell_writes_a_record_with_the_reason(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(after_training, "extract_stage", fails)
        record = run_here(lab / "store", tmp_path)
    assert record == record_of(tmp_path)
    assert record["status"] == status
    assert record["error"]
    if status == "failed: oom":
        assert "recipe.batch_size=32, which is not lowered automatically" in record["error"]
    first = record_of(lab / "cell")
    for key in ("id", "choices", "protocol", "config", "schema"):
        assert record[key] == first[key]
    assert [record[key] for key in ("nat1", "asr1", "nat2", "asr2", "detection")] == [None] * 5
    assert sorted(record["run"]["stages"]) == ["measure1", "poison", "train", "train_accuracy1"]
    # Repeating the command completes the cell.
    assert lasting(run_here(lab / "store", tmp_path)) == lasting(first)


def test_a_cell_whose_training_diverges_has_the_status_diverged(tmp_path: Path) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", "recipe.lr=1e30")
    assert record["status"].startswith("diverged: loss is nan at epoch 1, step ")
    assert record["nat1"] is None


def test_an_out_of_memory_error_is_recorded_and_leaves_no_temporary_files(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKDOOR_LAB_FAULT", "retrain.before:oom:1")
    monkeypatch.setattr("backdoor_lab.core.failpoints._seen", {})
    shutil.copytree(lab / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "retrain")
    record = run_here(tmp_path / "store", tmp_path / "cell")
    assert record["status"] == "failed: oom"
    assert "recipe.batch_size=32" in record["error"]
    assert not list(tmp_path.rglob(".part-*"))
    assert not list(tmp_path.rglob("*.claim"))


def test_a_stopped_cell_writes_no_record(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backdoor_lab.core.shutdown._asked", ["SIGTERM"])
    with pytest.raises(StoppedError, match="the same command resumes from here"):
        run_here(lab / "store", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cell_resumed_after_a_stop_during_training_has_the_record_of_an_uninterrupted_run(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = ("recipe.epochs=3", "dataset.per_class_train=10", "recipe.batch_size=16")
    unbroken = run_here(tmp_path / "one", tmp_path / "first", *longer)
    asked: list[str] = []
    monkeypatch.setattr("backdoor_lab.core.shutdown._asked", asked)
    whole = cell_pipeline.ProgressCallback.on_train_batch_end

    def stops(self: Any, trainer: Any, *rest: Any) -> None:
        if self.name == "retrain" and trainer.global_step == 8:
            asked.append("SIGTERM")
        whole(self, trainer, *rest)

    monkeypatch.setattr(cell_pipeline.ProgressCallback, "on_train_batch_end", stops)
    with pytest.raises(StoppedError):
        run_here(tmp_path / "two", tmp_path / "second", *longer)
    assert not (tmp_path / "second" / "record.json").exists()
    left = [path.name for path in (tmp_path / "two" / "retrain").glob(".work-*/*")]
    assert left == ["epoch=0.ckpt"]
    asked.clear()
    monkeypatch.setattr(cell_pipeline.ProgressCallback, "on_train_batch_end", whole)
    again = run_here(tmp_path / "two", tmp_path / "second", *longer)
    assert lasting(again) == lasting(unbroken)
    assert "train" not in made(again)
    (sealed,) = (tmp_path / "two" / "retrain").glob("*/manifest.json")
    manifest = json.loads(sealed.read_text())
    before = manifest["meta"]["seconds_before"]
    assert before > 0
    assert again["run"]["seconds"]["retrain"] == pytest.approx(manifest["seconds"] + before)


def test_every_output_in_a_moved_store_is_reused(lab: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(lab / "store", moved)
    assert made(run_here(moved, tmp_path / "cell")) == []
    assert Store(moved).root == moved
