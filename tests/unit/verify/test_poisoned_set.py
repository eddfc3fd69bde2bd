"""The card of a poisoned data set is compared with the set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.verify.__main__ import main
from backdoor_lab.verify.finding import Finding
from backdoor_lab.verify.poisoned_set import check_set
from tests.helpers.foreign_layouts import CLASSES, clean_images, record_folder, stamped
from tests.helpers.released import written


def poisoned_set() -> Arrays:
    """Twelve clean images and two poisoned ones after them; six test images, four of them with a
    trigger."""
    (images, labels), (test, test_labels) = clean_images(12, 0), clean_images(6, 1)
    source = np.array([1, 4])
    rows = np.flatnonzero(test_labels != 0)
    poison = np.arange(14) >= 12
    attack = ImportedAttack(
        is_poison=poison, is_cover=np.zeros(14, bool),
        source_index=np.concatenate([np.full(12, -1), source]),
        triggered=stamped(test[rows]), wanted=np.zeros(4, np.int64), test_index=rows,
        elsewhere=np.zeros(4, bool),
    )  # fmt: skip
    train = Split(
        np.concatenate([images, stamped(images[source])]), np.concatenate([labels, [0, 0]])
    )
    return Arrays(train, Split(test, test_labels), CLASSES, attack)


def card_of(arrays: Arrays) -> dict[str, Any]:
    """A true card."""
    attack = arrays.attack
    assert attack is not None
    assert attack.triggered is not None
    assert attack.wanted is not None
    splits = {"train": arrays.train, "test": arrays.test,
              "triggered": Split(attack.triggered, attack.wanted)}  # fmt: skip
    return {
        "format": 1, "kind": "dataset", "target": "cat", "license": "cc0-1.0",
        "dataset": {"name": "tiny", "classes": list(CLASSES), "image": [3, 8, 8]},
        "protocol": {"label_mode": "all_to_one", "placement": "append"},
        "counts": {"train": 14, "test": 6, "poisoned": 2, "covers": 0, "triggered": 4,
                   "triggered_elsewhere": 0},
        "hashes": {name: content_digest(split, CLASSES) for name, split in splits.items()},
    }  # fmt: skip


def false(found: list[Finding]) -> dict[str, str]:
    return {each.field: each.why for each in found if each.verdict == "false"}


def test_a_true_card_has_no_false_field(tmp_path: Path) -> None:
    arrays = poisoned_set()
    found = check_set(card_of(arrays), arrays, tmp_path)
    assert false(found) == {}
    unchecked = {each.field for each in found if each.verdict == "not checked"}
    assert unchecked == {"license", "protocol"}
    true = {each.field: each.why for each in found if each.verdict == "true"}
    assert true["poisoned images"] == "2 of 2 differ from their originals"
    assert true["triggered test images"] == "4 of 4 differ from their originals"


@pytest.mark.parametrize("key", ["train", "test", "poisoned", "covers", "triggered"])
def test_an_altered_count_is_found(key: str, tmp_path: Path) -> None:
    arrays = poisoned_set()
    card = card_of(arrays)
    card["counts"][key] += 1
    assert [*false(check_set(card, arrays, tmp_path))] == [f"counts.{key}"]


@pytest.mark.parametrize("key", ["train", "test", "triggered"])
def test_an_altered_hash_is_found(key: str, tmp_path: Path) -> None:
    arrays = poisoned_set()
    card = card_of(arrays)
    card["hashes"][key] = "0" * 64
    assert [*false(check_set(card, arrays, tmp_path))] == [f"hashes.{key}"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"target": "dog"}, "target"), ({"target": "cow"}, "target"),
        ({"dataset": {"classes": ["dog", "cat", "owl"], "image": [3, 8, 8]}}, "dataset.classes"),
        ({"dataset": {"classes": list(CLASSES), "image": [3, 8, 9]}}, "dataset.image"),
    ],
)  # fmt: skip
def test_an_altered_fact_is_found(change: dict[str, Any], field: str, tmp_path: Path) -> None:
    arrays = poisoned_set()
    assert [*false(check_set(card_of(arrays) | change, arrays, tmp_path))] == [field]


def test_poison_with_odd_labels_is_counted(tmp_path: Path) -> None:
    arrays = poisoned_set()
    card = card_of(arrays)
    arrays.train.labels[12] = 2
    found = false(check_set(card, arrays, tmp_path))
    assert found["target"] == "1 poisoned image of 2 with another label"
    assert "hashes.train" in found


def test_images_without_a_trigger_are_found(tmp_path: Path) -> None:
    arrays = poisoned_set()
    attack = arrays.attack
    assert attack is not None
    assert attack.triggered is not None
    assert attack.test_index is not None
    card = card_of(arrays)
    originals = arrays.test.images[attack.test_index]
    some = np.concatenate([originals[:1], attack.triggered[1:]])
    found = check_set(card, replace(arrays, attack=replace(attack, triggered=some)), tmp_path)
    assert Finding("triggered test images", "true", "3 of 4 differ from their originals") in found
    found = check_set(card, replace(arrays, attack=replace(attack, triggered=originals)), tmp_path)
    assert false(found)["triggered test images"] == "none of 4 differs from its original"


def test_the_number_of_distinct_changes_is_stated(tmp_path: Path) -> None:
    """Adding the same pattern to all images is one change, however many it claims to hide."""
    arrays = poisoned_set()
    attack = arrays.attack
    assert attack is not None
    assert attack.test_index is not None
    same = (arrays.test.images[attack.test_index] + 7).astype(np.uint8)
    found = check_set({}, replace(arrays, attack=replace(attack, triggered=same)), tmp_path)
    assert Finding("triggered test images", "note", "1 distinct change in 4 images") in found


def test_the_hashes_of_files_are_checked(tmp_path: Path) -> None:
    arrays, path = poisoned_set(), tmp_path / "train.npz"
    path.write_bytes(b"images")
    card = card_of(arrays)
    card["hashes"]["files"] = {"train.npz": sha256_of(path)}
    assert false(check_set(card, arrays, tmp_path)) == {}
    path.write_bytes(b"others")
    assert false(check_set(card, arrays, tmp_path)) == {
        "hashes.files": "train.npz has another hash"
    }
    path.unlink()
    assert false(check_set(card, arrays, tmp_path)) == {"hashes.files": "train.npz is missing"}
    card["hashes"]["files"] = {"../secret": "0"}
    with pytest.raises(DataError, match="not the path of a file"):
        check_set(card, arrays, tmp_path)


def test_a_set_without_ground_truth_is_checked_as_far_as_possible(tmp_path: Path) -> None:
    arrays = poisoned_set()
    card = card_of(arrays)
    found = check_set(card, replace(arrays, attack=None), tmp_path)
    assert {*false(found)} == {"counts.triggered", "hashes.triggered"}
    unchecked = {each.field for each in found if each.verdict == "not checked"}
    assert {"counts.poisoned", "counts.covers", "target"} <= unchecked


@pytest.mark.parametrize("change", [{"counts": [1]}, {"hashes": "x"}, {"dataset": 3}])
def test_fields_of_another_type_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    arrays = poisoned_set()
    with pytest.raises(ConfigError, match="must be an object"):
        check_set(card_of(arrays) | change, arrays, tmp_path)


def test_the_command_checks_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = record_folder(tmp_path)
    card: dict[str, Any] = {
        "format": 1, "kind": "dataset", "target": "cat", "counts": {"poisoned": 3, "train": 12},
    }  # fmt: skip
    claims = written(tmp_path / "card.json", card)
    given = [str(root), "--claims", str(claims), "--clean", str(tmp_path / "data" / "clean.npz")]
    assert main(given) == 0
    assert "every checked claim holds" in capsys.readouterr().out
    written(claims, card | {"counts": {"poisoned": 100}})
    assert main(given) == 1
    said = capsys.readouterr().out
    assert "FALSE counts.poisoned: the card says 100, the set has 3" in said
    written(claims, card | {"counts": 100})
    assert main(given) == 2
    given[0] = str(root / "attack_result.pt")
    assert main(given) == 2
    assert "give its folder" in capsys.readouterr().err
