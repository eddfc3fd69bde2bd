"""The figures of a record are equal to a second computation from the stored artifacts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve
from torch import Tensor

from backdoor_lab.attacks.poison import poison
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import FilterResult
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.pipeline.record import commit_of, flagged_counts
from backdoor_lab.training.models import build_model
from tests.helpers.cells import cell_of, run_here

TRAIN = draw(20, size=8, split="train", noise=12)
TEST = draw(5, size=8, split="test", noise=12)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("record")
    return folder, run_here(folder / "store", folder / "cell", "recipe.epochs=3")


def published(lab: tuple[Path, dict[str, Any]], stage: str, name: str) -> dict[str, Any]:
    folder, record = lab
    entry = folder / "store" / stage / record["run"]["stages"][stage]["id"]
    found: dict[str, Any] = load_file(entry / f"{name}.safetensors")
    return found


def answers(lab: tuple[Path, dict[str, Any]], stage: str, images: np.ndarray) -> np.ndarray:
    """The classes predicted by a stored network, with images normalized by NumPy."""
    net = build_model(
        {"name": "resnet18", "width": 4, "stem": "cifar"}, channels=3, classes=10, seed=0
    )
    weights = {name: torch.from_numpy(v) for name, v in published(lab, stage, "weights").items()}
    net.load_state_dict(weights)
    clean = TRAIN[0].astype(np.float64)
    mean, std = (f(clean, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    with torch.inference_mode():
        logits: Tensor = net.eval()(torch.from_numpy(((images - mean) / std).astype(np.float32)))
    return logits.argmax(dim=1).numpy()


def test_the_record_has_every_field(lab: tuple[Path, dict[str, Any]]) -> None:
    folder, record = lab
    assert record == json.loads((folder / "cell" / "record.json").read_text())
    assert set(record) == {
        "schema", "id", "status", "error", "choices", "protocol", "config", "counts", "nat1",
        "asr1", "nat2", "asr2", "detection", "poison_indices", "hashes", "run", "dataset",
        "asr_elsewhere1", "asr_elsewhere2", "notes", "clean_rate1", "clean_rate2",
        "top_class1", "top_class2", "top_share1", "top_share2", "applied", "seal",
        "train_accuracy1", "train_accuracy2", "per_class",
    }  # fmt: skip
    assert (record["schema"], record["status"], record["error"]) == (1, "done", None)
    assert record["choices"] == {
        "dataset": "synthetic", "model": "resnet18-w4", "recipe": "demo", "trigger": "pixel",
        "target": "bird", "source": None, "ratio": 0.3, "protocol": "group13",
        "defense": "spectral", "seed": 0,
    }  # fmt: skip
    run = record["run"]
    assert set(run["seconds"]) == set(run["stages"]) >= {"train", "retrain", "extract", "filter"}
    assert all(rate > 0 for rate in run["images_per_s"].values())
    assert run["process_peak_memory_mib"] > 50
    assert run["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert run["device"].startswith("cpu: ")
    assert run["command"] == "test"
    assert record["applied"] == {
        "filter_scope": "target", "removal_budget": "1.5eps", "max_removed": None, "center": True,
    }  # fmt: skip
    assert record["id"] == cell_of(folder / "store", "recipe.epochs=3").id


def test_the_record_counts_the_images_that_the_attack_added_and_the_filter_removed(
    lab: tuple[Path, dict[str, Any]],
) -> None:
    counts, verdict = lab[1]["counts"], published(lab, "filter", "verdict")
    assert counts == {
        "n_train": 206, "n_clean": 200, "n_poisoned": 6, "n_eligible": 180, "n_removed": 9,
        "pois_left": int(verdict["keep"][200:].sum()), "n_test": 50, "n_asr": 45,
        "train_test_overlap": 0, "n_covers": 0, "covers_left": 0,
    }  # fmt: skip
    assert len(verdict["keep"]) == 206
    assert int((verdict["keep"] == 0).sum()) == 9


def test_accuracy_and_attack_success_match_an_independent_computation(
    lab: tuple[Path, dict[str, Any]],
) -> None:
    images, labels = TEST
    bird = CLASSES.index("bird")
    triggered = images[labels != bird].copy()
    triggered[:, :, -1, -1] = 255
    for stage, number in (("train", 1), ("retrain", 2)):
        nat = float((answers(lab, stage, images) == labels).mean())
        asr = float((answers(lab, stage, triggered) == bird).mean())
        assert lab[1][f"nat{number}"] == pytest.approx(nat)
        assert lab[1][f"asr{number}"] == pytest.approx(asr)


def test_clean_rate_and_top_class_match_an_independent_computation(
    lab: tuple[Path, dict[str, Any]],
) -> None:
    """The clean rate is the share of the ASR test images, without the trigger, that are classified
    as the target. The top class is the most frequent prediction."""
    images, labels = TEST
    bird = CLASSES.index("bird")
    for stage, number in (("train", 1), ("retrain", 2)):
        said = answers(lab, stage, images)
        assert lab[1][f"clean_rate{number}"] == pytest.approx((said[labels != bird] == bird).mean())
        counts = np.bincount(said, minlength=10)
        assert lab[1][f"top_class{number}"] == CLASSES[int(counts.argmax())]
        assert lab[1][f"top_share{number}"] == pytest.approx(counts.max() / len(images))


def test_accuracy_per_class_and_confusion_match_an_independent_computation(
    lab: tuple[Path, dict[str, Any]],
) -> None:
    images, labels = TEST
    found = lab[1]["per_class"]
    assert found["classes"] == list(CLASSES)
    assert found["n_test"] == [5] * 10
    for stage, number in (("train", 1), ("retrain", 2)):
        said = answers(lab, stage, images)
        expected = confusion_matrix(labels, said, labels=range(10))
        assert found[f"confusion{number}"] == expected.tolist()
        assert found[f"nat{number}"] == pytest.approx(expected.diagonal() / 5)


def test_without_a_second_network_only_the_first_has_accuracies_per_class(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    found = run_here(lab[0] / "store", tmp_path, "recipe.epochs=3", "retrain=false")["per_class"]
    assert found == lab[1]["per_class"] | {"nat2": None, "confusion2": None}


def test_measurements_without_accuracies_per_class_are_computed_again(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """A store of an earlier version has such measurements; the id of the cell is the same."""
    folder, record = lab
    entry = folder / "store/measure" / record["run"]["stages"]["measure1"]["id"]
    manifest = json.loads((entry / "manifest.json").read_text())
    inputs = {key: value for key, value in manifest["inputs"].items() if key != "revision"}
    older = {key: value for key, value in manifest["meta"].items() if key != "per_class"}
    Store(tmp_path / "store").get("measure", inputs, lambda folder: older)
    shutil.copytree(folder / "store/data", tmp_path / "store/data")
    again = run_here(tmp_path / "store", tmp_path / "cell", "recipe.epochs=3")
    assert again["run"]["stages"]["measure1"]["made"]
    assert (again["id"], again["per_class"]) == (record["id"], record["per_class"])


def test_training_accuracy_matches_an_independent_computation(
    lab: tuple[Path, dict[str, Any]],
) -> None:
    """The first network is evaluated on the poisoned training set, the retrained one on the kept
    images."""
    poison, kept = published(lab, "poison", "poison"), published(lab, "filter", "verdict")["keep"]
    images = np.concatenate([TRAIN[0], poison["rows"]])
    for stage, number, mask in (
        ("train", 1, np.ones(206, bool)),
        ("retrain", 2, kept.astype(bool)),
    ):
        said = answers(lab, stage, images[mask])
        assert lab[1][f"train_accuracy{number}"] == pytest.approx(
            (said == poison["labels"][mask]).mean()
        )


def test_stored_poison_matches_the_configuration(lab: tuple[Path, dict[str, Any]]) -> None:
    found, (images, labels) = published(lab, "poison", "poison"), TRAIN
    chosen = found["source_index"]
    assert lab[1]["poison_indices"] == chosen.tolist() == sorted(set(chosen.tolist()))
    assert bool((labels[chosen] != 2).all())
    expected = images[chosen].copy()
    expected[:, :, -1, -1] = 255
    np.testing.assert_array_equal(found["rows"], expected)
    np.testing.assert_array_equal(found["labels"], np.append(labels, [2] * 6))
    np.testing.assert_array_equal(found["index"], np.arange(206))


def test_scores_and_detection_metrics_match_an_independent_computation(
    lab: tuple[Path, dict[str, Any]],
) -> None:
    values = published(lab, "extract", "features")["values"].astype(np.float64)
    verdict = published(lab, "filter", "verdict")
    labels, is_poison = published(lab, "poison", "poison")["labels"], np.arange(206) >= 200
    birds = labels == 2
    centered = values[birds] - values[birds].mean(axis=0)
    top = np.linalg.svd(centered, full_matrices=False)[2][0]
    scores = (centered @ top) ** 2
    np.testing.assert_allclose(verdict["scores"][birds], scores, rtol=1e-6, atol=1e-9)
    assert bool(np.isnan(verdict["scores"][~birds]).all())
    removed = verdict["keep"] == 0
    assert set(np.flatnonzero(removed)) == set(np.flatnonzero(birds)[np.argsort(-scores)[:9]])
    found = dict(lab[1]["detection"])
    curve = found.pop("curve")
    ranked = is_poison[birds][np.argsort(-scores)]
    assert (curve["removed"][0], curve["left"][0]) == (0, 6)
    assert (curve["removed"][-1], curve["left"][-1]) == (len(ranked), 0)
    for n, left in zip(curve["removed"], curve["left"], strict=True):
        assert left == 6 - int(ranked[:n].sum())
    fpr, tpr, _ = roc_curve(is_poison[birds], scores, drop_intermediate=False)
    assert found == pytest.approx({
        "auroc": roc_auc_score(is_poison[birds], scores),
        "average_precision": average_precision_score(is_poison[birds], scores),
        "tpr_at_1": tpr[fpr <= 0.01].max(),
        "tpr_at_5": tpr[fpr <= 0.05].max(),
        "tpr": float(removed[is_poison].mean()),
        "fpr": float(removed[~is_poison].mean()),
    })  # fmt: skip


def test_ratio_zero_is_a_clean_run(tmp_path: Path) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", "ratio=0")
    assert record["status"] == "done"
    assert record["detection"] is None
    assert record["poison_indices"] == []
    assert record["asr1"] is not None
    counts = record["counts"]
    assert [counts[k] for k in ("n_train", "n_poisoned", "n_removed", "pois_left")] == [
        200,
        0,
        0,
        0,
    ]
    # The filter removes nothing, so the retrained network differs only by its seed.
    assert record["hashes"]["weights1"] != record["hashes"]["weights2"]


@pytest.mark.parametrize(
    ("labels", "found", "expected"),
    [
        ("all_to_one", [], {"n_accused": 0, "n_named": 0}),
        ("all_to_one", ["bird"], {"n_accused": 1, "n_named": 1}),
        ("all_to_one", ["cat", "dog"], {"n_accused": 2, "n_named": 0}),
        ("all_to_one", ["bird", "cat"], {"n_accused": 2, "n_named": 1}),
        ("all_to_all", ["bird", "cat"], {"n_accused": 2, "n_named": 2}),
    ],
)
def test_the_record_counts_the_flagged_classes_and_how_many_of_them_are_poisoned(
    tmp_path: Path, labels: str, found: list[str], expected: dict[str, int]
) -> None:
    asked = ("ratio=0.3", f"label_mode={labels}", "protocol.filter_scope=suspicious")
    cell = cell_of(tmp_path / "store", *asked)
    data = open_dataset(source_of(cell.config), Store(tmp_path / "store"))
    made = poison(data.train, cell.trigger, cell.plan, seed=0)
    n = len(made.training)
    verdict = FilterResult(torch.zeros(n), torch.ones(n, dtype=torch.bool), {"classes": found})
    assert flagged_counts(cell, made, verdict) == expected
    told = cell_of(
        tmp_path / "store", *asked[:2], "protocol.filter_scope=all", "defense.removal_budget=10%"
    )
    assert flagged_counts(told, made, verdict) == {}


def test_the_record_lists_the_flagged_classes_if_filter_scope_is_suspicious(tmp_path: Path) -> None:
    asked = ("protocol.filter_scope=suspicious", "protocol.removal_budget=auto", "ratio=0.3")
    record = run_here(tmp_path / "store", tmp_path / "cell", *asked)
    assert record["status"] == "done"
    named = record["notes"]["classes"]
    assert record["counts"]["n_accused"] == len(named)
    assert record["counts"]["n_named"] == ("bird" in named)


@pytest.mark.parametrize("defense", ["oracle", "none", "random", "clean_data"])
def test_controls_run_under_a_protocol_that_filters_only_suspicious_classes(
    tmp_path: Path, defense: str
) -> None:
    asked = ("protocol=realistic", f"defense={defense}")
    record = run_here(tmp_path / "store", tmp_path / "cell", *asked)
    assert (record["status"], record["error"]) == ("done", None)
    assert not {"n_accused", "n_named"} & set(record["counts"])


def test_the_random_control_assigns_scores_to_the_same_examples_as_the_filter(
    tmp_path: Path,
) -> None:
    """After `n_removed` removals, the removal curve has the value `pois_left`."""
    record = run_here(tmp_path / "store", tmp_path / "cell", "defense=random")
    curve = record["detection"]["curve"]
    counts = record["counts"]
    assert curve["removed"][-1] == 26, "twenty birds and six poisoned ones"
    assert curve["left"][curve["removed"].index(counts["n_removed"])] == counts["pois_left"]


def test_a_cell_fails_if_the_defense_removes_a_whole_class(tmp_path: Path) -> None:
    asked = ("label_mode=clean", "protocol.ratio_of=count", "ratio=20", "defense=oracle")
    record = run_here(tmp_path / "store", tmp_path / "cell", *asked)
    said = "failed: `defense=oracle` removes every training image of class bird"
    assert record["status"].startswith(said)


def _git(checkout: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    return subprocess.run(
        ["git", "-C", str(checkout), *who, *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


@pytest.mark.parametrize(
    ("file", "dirty"),
    [
        ("backdoor_lab/known.py", True),
        ("backdoor_lab/new.py", True),
        ("conf/known.yaml", True),
        ("multirun_reports/sweep/record.json", False),
        ("notes.txt", False),
    ],
)
def test_the_recorded_commit_is_marked_dirty_if_code_or_configuration_changed(
    tmp_path: Path, file: str, dirty: bool
) -> None:
    assert commit_of(tmp_path) is None
    _git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) is None, "no commit yet"
    for known in ("backdoor_lab/known.py", "conf/known.yaml", "multirun_reports/sweep/record.json"):
        (tmp_path / known).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / known).write_text("a")
    _git(tmp_path, "add", "-A")
    _git(tmp_path, "commit", "-qm", "a")
    commit = _git(tmp_path, "rev-parse", "HEAD")[:12]
    assert commit_of(tmp_path) == commit
    (tmp_path / file).write_text("b")
    assert commit_of(tmp_path) == commit + "-dirty" * dirty
