"""Poisoned training sets of backdoor-toolbox are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.exchange.toolbox import Toolbox, is_toolbox
from tests.helpers.foreign_layouts import (
    CLASSES,
    TRAIN,
    Bomb,
    clean_file,
    clean_images,
    stamped,
    toolbox_set,
    write_png,
)


@pytest.mark.parametrize("old", [False, True])
def test_images_labels_and_truth_are_read_in_their_order(old: bool, tmp_path: Path) -> None:
    root = toolbox_set(tmp_path, old=old)
    found = Toolbox(root).read()
    images, _ = clean_images(TRAIN, 0)
    for row in (1, 4, 5, 7):
        images[row] = stamped(images[row])
    assert np.array_equal(found.train.images, images)
    assert found.train.labels.tolist() == [0, 0, 2, 0, 0, 0, 0, 1, 2, 0, 1, 2]
    assert found.attack is not None
    assert np.flatnonzero(found.attack.is_poison).tolist() == [1, 4, 5]
    assert np.flatnonzero(found.attack.is_cover).tolist() == [7]
    assert found.attack.source_index is not None
    expected = [row if row in (1, 4, 5, 7) else -1 for row in range(TRAIN)]
    assert found.attack.source_index.tolist() == expected
    assert found.attack.triggered is None
    test, test_labels = clean_images(6, 1)
    assert np.array_equal(found.test.images, test)
    assert np.array_equal(found.test.labels, test_labels)
    assert found.classes == ("0", "1", "2")


def test_the_facts_come_from_the_folder_name_and_the_indices(tmp_path: Path) -> None:
    name = "adaptive_blend_0.250_alpha=0.200_cover=0.083_trigger=kitty_32.png_poison_seed=3"
    root = toolbox_set(tmp_path, name=name)
    facts = Toolbox(root).facts()
    assert (facts.trigger, facts.seed, facts.target) == ("adaptive_blend", 3, "0")
    assert facts.options == {"alpha": 0.2, "trigger": "kitty_32.png"}
    assert (facts.ratio, facts.n_poisoned, facts.n_covers) == (0.25, 3, 1)
    assert facts.choices == {"cover_rate": 1 / 12}
    assert not facts.triggered
    assert is_toolbox(root)


def test_the_identity_follows_the_content_of_all_files_but_not_the_place(tmp_path: Path) -> None:
    root = toolbox_set(tmp_path / "a")
    before = Toolbox(root).identity()
    moved = (tmp_path / "a").rename(tmp_path / "b") / root.relative_to(tmp_path / "a")
    assert Toolbox(moved).identity() == before
    assert str(tmp_path) not in json.dumps(before)
    seen = [before]
    for name in ("imgs", "labels", "poison_indices", "cover_indices"):
        torch.save([0], moved / name)
        seen.append(Toolbox(moved).identity())
    torch.save([0], tmp_path / "b/clean_set/tiny/test_split/labels")
    seen.append(Toolbox(moved).identity())
    seen.append(Toolbox(moved, held_out=HeldOut(0.4, 0)).identity())
    seen.append(Toolbox(moved, held_out=HeldOut(0.4, 1)).identity())
    seen.append(Toolbox(moved, test_root=clean_file(tmp_path / "clean.npz")).identity())
    assert all(one != other for at, one in enumerate(seen) for other in seen[:at])


def test_a_folder_with_another_name_tells_what_the_files_tell(tmp_path: Path) -> None:
    facts = Toolbox(toolbox_set(tmp_path, name="mine")).facts()
    assert (facts.trigger, facts.seed, facts.ratio, facts.options) == (None, None, 0.25, {})


def test_an_attack_with_several_targets_has_no_target(tmp_path: Path) -> None:
    root = toolbox_set(tmp_path)
    torch.save([1, 2, 4], root / "poison_indices")
    assert Toolbox(root).facts().target is None


def test_without_indices_the_truth_is_unknown(tmp_path: Path) -> None:
    root = toolbox_set(tmp_path)
    (root / "poison_indices").unlink()
    attack = Toolbox(root).read().attack
    assert attack is not None
    assert (attack.is_poison, attack.is_cover, attack.source_index) == (None, None, None)
    facts = Toolbox(root).facts()
    assert (facts.n_poisoned, facts.n_covers, facts.target) == (None, None, None)
    assert facts.ratio == 0.25  # as the folder's name states


def test_an_empty_list_of_indices_means_that_nothing_is_poisoned(tmp_path: Path) -> None:
    """backdoor-toolbox writes it for poison_type=none."""
    root = toolbox_set(tmp_path, poison=(), covers=())
    facts = Toolbox(root).facts()
    assert (facts.n_poisoned, facts.n_covers, facts.ratio, facts.target) == (0, 0, 0.0, None)
    assert Toolbox(root).read().attack.is_poison.sum() == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("form", [np.array, torch.tensor, tuple])
def test_indices_may_be_arrays_or_tensors(form: Callable[..., Any], tmp_path: Path) -> None:
    root = toolbox_set(tmp_path)
    torch.save(form([5, 1, 4]), root / "poison_indices")
    assert Toolbox(root).facts().n_poisoned == 3


def test_clean_test_images_may_come_from_a_clean_data_set(tmp_path: Path) -> None:
    root, place = toolbox_set(tmp_path), clean_file(tmp_path / "clean.npz")
    found = Toolbox(root, test_root=place).read()
    assert found.classes == CLASSES
    assert Toolbox(root, test_root=place).facts().target == "cat"
    assert np.array_equal(found.test.images, clean_images(6, 1)[0])


def test_clean_test_images_can_be_held_out_of_the_training_images(tmp_path: Path) -> None:
    """Only clean images are held out; the remaining ones keep their order and their truth."""
    root = toolbox_set(tmp_path, poison=(1, 2, 5))
    found, whole = Toolbox(root, held_out=HeldOut(0.4, 0)).read(), Toolbox(root).read()
    assert found.attack is not None
    assert np.flatnonzero(found.attack.is_poison).size == 3
    kept = [row for row in range(TRAIN) if any(np.array_equal(whole.train.images[row], each)
                                               for each in found.train.images)]  # fmt: skip
    assert 0 < len(found.test.labels) == TRAIN - len(kept)
    assert np.array_equal(found.train.images, whole.train.images[kept])
    assert whole.attack is not None
    assert whole.attack.source_index is not None
    # The poisoned images have replaced their originals, and each states its own row.
    assert np.array_equal(whole.attack.source_index[[1, 2, 5, 7]], [1, 2, 5, 7])
    made = whole.attack.source_index[kept] >= 0
    assert np.array_equal(found.attack.source_index, np.where(made, np.arange(len(kept)), -1))
    held = sorted(set(range(TRAIN)) - set(kept))
    assert np.array_equal(found.test.images, whole.train.images[held])
    assert not set(held) & {1, 2, 5, 7}


def test_images_cannot_be_held_out_if_poisoned_ones_are_unknown(tmp_path: Path) -> None:
    root = toolbox_set(tmp_path)
    (root / "poison_indices").unlink()
    with pytest.raises(DataError, match="needs to know the poisoned images"):
        Toolbox(root, held_out=HeldOut(0.4, 0)).read()


def test_without_clean_test_images_the_error_names_the_options(tmp_path: Path) -> None:
    root = toolbox_set(tmp_path).rename(tmp_path / "alone")
    with pytest.raises(DataError, match=r"dataset\.test_root.*dataset\.test_share"):
        Toolbox(root).read()
    assert Toolbox(root).facts().n_poisoned == 3


def saving(name: str, value: Any) -> Callable[[Path], None]:
    return lambda root: torch.save(value, root / name)


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "too few labels": (saving("labels", torch.zeros(11).long()), "12 images, but 11 labels"),
    "labels of another type": (saving("labels", ["a"] * 12), "expected numbers"),
    "fractional labels": (saving("labels", torch.full((12,), 0.5)), "whole numbers"),
    "negative labels": (saving("labels", torch.full((12,), -1)), "0 or larger"),
    "a label above all classes": (
        saving("labels", torch.tensor([0] * 11 + [2**31 - 1])), "label 2147483647 of 12 images"
    ),
    "labels in a dictionary": (saving("labels", {"a": 1}), "got dict"),
    "labels in two dimensions": (saving("labels", torch.zeros(3, 4).long()), "shape"),
    "an index outside": (saving("poison_indices", [1, 12]), "row 12 is not among the 12"),
    "a negative index": (saving("poison_indices", [-1]), "row -1 is not among"),
    "an index twice": (saving("poison_indices", [1, 4, 1]), "row 1 is listed twice"),
    "fractional indices": (saving("poison_indices", [0.5]), "expected a list of rows"),
    "a mask instead of indices": (saving("poison_indices", torch.ones(12).bool()), "of rows"),
    "lists of different lengths": (saving("poison_indices", [[1], [1, 2]]), "expected numbers"),
    "a cover that is poisoned": (saving("cover_indices", [4]), "row 4 is in poison_indices and"),
    "images of three dimensions": (saving("imgs", torch.zeros(12, 8, 8)), r"\(n, C, H, W\)"),
    "images in a list": (saving("imgs", [1]), "got list"),
    "images of 0 to 255": (saving("imgs", torch.full((12, 3, 8, 8), 255.0)), "in row 0"),
    "images with NaN": (saving("imgs", torch.full((12, 3, 8, 8), np.nan)), "floats in 0..1"),
    "images of integers": (saving("imgs", torch.zeros(12, 3, 8, 8).long()), "got int64"),
    "test images of another size": (
        saving("imgs", torch.zeros(12, 3, 4, 4)), r"\(3, 4, 4\), the clean ones \(3, 8, 8\)"
    ),
    "no images": (lambda root: (root / "imgs").unlink(), "there are no images"),
    "no labels": (lambda root: (root / "labels").unlink(), "labels: no such file"),
    "a damaged file": (lambda root: (root / "labels").write_bytes(b"PK\x03\x04"), "labels: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders_are_refused(case: str, tmp_path: Path) -> None:
    root = toolbox_set(tmp_path)
    change, said = BROKEN[case]
    change(root)
    with pytest.raises(DataError, match=said):
        Toolbox(root).read()


def test_values_that_round_to_bytes_are_read(tmp_path: Path) -> None:
    """Attacks blend in floats, and their results can leave 0..1 by the rounding of floats."""
    root = toolbox_set(tmp_path)
    images = torch.full((12, 3, 8, 8), 1 + 1e-6)
    images[0] = 100.4 / 255
    torch.save(images, root / "imgs")
    found = Toolbox(root).read().train.images
    assert (found[0].min(), found[1].max()) == (100, 255)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: (data / "3.png").unlink(), "1 image missing, first 3.png"),
        (lambda data: write_png(data / "12.png", np.zeros((3, 8, 8), np.uint8)), "image 12.png"),
        (lambda data: write_png(data / "3.png", np.zeros((3, 4, 4), np.uint8)), "4 x 4"),
        (lambda data: (data / "3.png").write_bytes(b"no image"), "not a valid image"),
    ],
)
def test_broken_png_folders_are_refused(
    change: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    root = toolbox_set(tmp_path, old=True)
    change(root / "data")
    with pytest.raises(DataError, match=said) as caught:
        Toolbox(root).read()
    assert "dataset.size" not in str(caught.value)


@pytest.mark.parametrize("name", ["imgs", "labels", "poison_indices", "cover_indices"])
def test_files_that_run_code_leave_no_trace(name: str, tmp_path: Path) -> None:
    root = toolbox_set(tmp_path)
    torch.save([Bomb(tmp_path / "boom")], root / name)
    with pytest.raises(DataError, match=f"{name}: refers to .*mkdir, which is refused"):
        Toolbox(root).read()
    if name != "imgs":
        with pytest.raises(DataError, match="refused"):
            Toolbox(root).facts()
    assert not (tmp_path / "boom").exists()
