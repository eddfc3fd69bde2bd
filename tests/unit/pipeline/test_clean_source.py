"""Cells whose defense takes its clean images from another data set (``dataset@defense.data``)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.pipeline.stages.context import clean_images, renumbered
from tests.helpers.cells import cell_of, lasting, run_here

TUNED = ("defense=fine_tuning", "defense.epochs=2")
OTHER = (*TUNED, "+dataset@defense.data=synthetic", "defense.data.size=8", "defense.data.seed=1",
         "defense.data.per_class_train=6", "defense.data.per_class_test=1")  # fmt: skip


def archive(path: Path, names: list[str], size: int = 8) -> tuple[str, ...]:
    """Writes synthetic images with the class names `names`, which are in the order of the labels in
    the file. Returns the words that choose them."""
    images, labels = draw(3, size=size, seed=1)
    numbers = np.array([names.index(name) if name in names else k
                        for k, name in enumerate(CLASSES)])  # fmt: skip
    rows = images.transpose(0, 2, 3, 1)
    np.savez(path, train_images=rows, train_labels=numbers[labels], test_images=rows,
             test_labels=numbers[labels], classes=np.array(names))  # fmt: skip
    return (*TUNED, "+dataset@defense.data=arrays", f"defense.data.root={path}")


def test_the_training_images_of_another_data_set_are_the_clean_images(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, *OTHER)
    store = Store(tmp_path)
    assert cell.parts.clean_source is not None
    other = open_dataset(cell.parts.clean_source, store).train
    found = clean_images(cell, open_dataset(cell.parts.data, store), store)
    assert found is not None
    assert torch.equal(found.images, other.images)
    assert torch.equal(found.labels, other.labels)
    assert len(found) == 60


def test_a_cell_runs_without_held_out_images_and_measures_all_test_images(tmp_path: Path) -> None:
    record = lasting(run_here(tmp_path / "s", tmp_path / "c", *OTHER))
    assert record["counts"]["n_test"] == 50
    assert record["notes"]["images"] == 60
    assert record["hashes"]["weights1"] != record["hashes"]["weights2"]


def test_the_content_of_the_other_data_set_is_part_of_the_cell_and_its_path_is_not(
    tmp_path: Path,
) -> None:
    words = archive(tmp_path / "a.npz", list(CLASSES))
    first = cell_of(tmp_path / "s", *words)
    shutil.copy(tmp_path / "a.npz", tmp_path / "moved.npz")
    moved = (*words[:-1], f"defense.data.root={tmp_path / 'moved.npz'}")
    assert cell_of(tmp_path / "s", *moved).id == first.id
    archive(tmp_path / "a.npz", list(reversed(CLASSES)))
    assert cell_of(tmp_path / "s", *words).id != first.id
    assert cell_of(tmp_path / "s", *OTHER).id != cell_of(tmp_path / "s", *OTHER[:-2]).id


def test_labels_are_mapped_by_class_names(tmp_path: Path) -> None:
    """The same images give the same clean images, whatever the order of the classes in the
    file."""
    found = []
    for number, names in enumerate([list(CLASSES), list(reversed(CLASSES))]):
        words = archive(tmp_path / f"{number}.npz", names)
        store = Store(tmp_path / "s")
        cell = cell_of(tmp_path / "s", *words)
        images = clean_images(cell, open_dataset(cell.parts.data, store), store)
        assert images is not None
        assert images.classes == CLASSES
        found.append(images)
    assert torch.equal(found[0].labels, found[1].labels)
    assert torch.equal(found[0].images, found[1].images)


def test_renumbered_labels_name_the_same_classes() -> None:
    given = LabeledImages(torch.zeros(3, 1, 1, 1), torch.tensor([0, 1, 2]), ("c", "a", "b"))
    found = renumbered(given, ("a", "b", "c"))
    assert found.labels.tolist() == [2, 0, 1]
    assert found.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("words", "said"),
    [((*OTHER, "defense.data.size=9"), r"`defense\.data` has images of 3x9x9, .* of 3x8x8"),
     ((*OTHER, "defense.data.channels=1"), r"`defense\.data` has images of 1x8x8"),
     ((*OTHER, "defense.data.size=0"), r"`defense\.data`: `dataset\.size` must"),
     ((*TUNED, "defense.data=digits"), r"`defense\.data` must be a data set"),
     (TUNED, r"set protocol\.clean_holdout to 20 or more")],
)  # fmt: skip
def test_unusable_clean_images_are_refused_before_any_work(
    words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        cell_of(tmp_path, *words)
    assert caught.value.exit_code == 2


def test_other_classes_are_refused_with_the_reason(tmp_path: Path) -> None:
    names = ["yacht" if name == "ship" else name for name in CLASSES]
    with pytest.raises(ConfigError, match=r"needs a new last layer, and then neither Nat2"):
        cell_of(tmp_path, *archive(tmp_path / "a.npz", names))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    words: tuple[Any, ...] = archive(tmp_path / "a.npz", list(CLASSES))
    (tmp_path / "a.npz").unlink()
    with pytest.raises((ConfigError, DataError), match=r"a\.npz"):
        cell_of(tmp_path, *words)
