"""Clean images that complete the folders of other projects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import backdoor_lab as bl
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.torchvision_sets import Cifar10, Cifar100
from backdoor_lab.exchange.backdoorbench import BackdoorBench
from backdoor_lab.exchange.clean import class_names, clean_source
from backdoor_lab.exchange.source import PoisonedSet
from backdoor_lab.exchange.toolbox import Toolbox
from tests.helpers.foreign_layouts import (
    CLASSES,
    TEST,
    TRAIN,
    clean_file,
    clean_images,
    record_folder,
    toolbox_set,
    write_png,
)


def image_folder(root: Path, *, zoom: int = 1) -> Path:
    """Writes the clean images as train/<class>/<row>.png and test/<class>/<row>.png, each pixel
    zoom x zoom times."""
    for split, count, seed in (("train", TRAIN, 0), ("test", TEST, 1)):
        for row, (image, label) in enumerate(zip(*clean_images(count, seed), strict=True)):
            large = image.repeat(zoom, axis=1).repeat(zoom, axis=2)
            write_png(root / split / CLASSES[label] / f"{row:02}.png", large)
    return root


@pytest.mark.parametrize(("folder", "kind"), [("cifar-10-batches-py", Cifar10),
                                              ("cifar-100-python", Cifar100)])  # fmt: skip
def test_folders_of_cifar_are_recognized_and_never_downloaded(
    folder: str, kind: type[Cifar10], tmp_path: Path
) -> None:
    (tmp_path / folder).mkdir()
    for root in (tmp_path, tmp_path / folder):
        source = clean_source(root)
        assert type(source) is kind
        assert not source.download
        with pytest.raises(DataError):
            source.read()
    assert [each.name for each in tmp_path.iterdir()] == [folder]


def test_other_paths_are_arrays_or_image_folders(tmp_path: Path) -> None:
    assert type(clean_source(tmp_path / "a.npz")) is ArrayFile
    assert type(clean_source(tmp_path)) is ImageFolder


def test_class_names_are_read_without_images(tmp_path: Path) -> None:
    path = clean_file(tmp_path / "clean.npz")
    assert class_names(path) == CLASSES
    assert class_names(image_folder(tmp_path / "images")) == CLASSES
    arrays = dict(np.load(path))
    del arrays["classes"]
    np.savez(path, **arrays)
    assert class_names(path) == ()


def test_an_image_folder_completes_a_record_whose_rows_are_sorted_by_class(tmp_path: Path) -> None:
    """Larger images are resized to the size of the record, as BackdoorBench does."""
    order = np.argsort(clean_images(TRAIN, 0)[1], kind="stable")
    test_order = np.argsort(clean_images(TEST, 1)[1], kind="stable")
    root = record_folder(tmp_path, {4: 0, 8: 0}, order=order, test_order=test_order)
    found = BackdoorBench(root, clean_root=image_folder(tmp_path / "same")).read()
    clean = clean_images(TRAIN, 0)[0][order]
    kept = [row for row in range(TRAIN) if row not in (4, 8)]
    assert np.array_equal(found.train.images[kept], clean[kept])
    assert found.train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 2, 2, 2]
    large = BackdoorBench(root, clean_root=image_folder(tmp_path / "large", zoom=2)).read()
    assert large.train.images.shape == found.train.images.shape
    assert large.test.images.shape == (TEST, 3, 8, 8)


def test_test_images_of_an_image_folder_belong_to_a_training_set_of_backdoor_toolbox(
    tmp_path: Path,
) -> None:
    found = Toolbox(toolbox_set(tmp_path), test_root=image_folder(tmp_path / "images")).read()
    assert found.classes == CLASSES
    assert len(found.test.labels) == TEST


@pytest.mark.parametrize(
    ("trigger", "placed"),
    [("pixel", "appended"), ("tact", "appended"), ("sinusoid", "replaced"), ("pixel", "replaced")],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_originals_are_renumbered_when_test_images_are_held_out(
    trigger: str, placed: str, seed: int, tmp_path: Path
) -> None:
    """The stated original of a made image is the true one, or the image itself."""
    images = np.random.default_rng(0).integers(0, 255, (60, 3, 8, 8), dtype=np.uint8)
    made = bl.poison(
        images, np.arange(60) % 4, trigger, target=2, ratio=0.8, seed=seed
    )  # fmt: skip
    if (trigger, placed) == ("pixel", "replaced"):
        made = in_place(made, images)
    made.save(tmp_path / "set")
    arrays = PoisonedSet(root=str(tmp_path / "set"), test_share=0.3).read()
    attack = arrays.attack
    assert attack is not None
    assert attack.is_poison is not None
    assert attack.is_cover is not None
    assert attack.source_index is not None
    rows = np.flatnonzero(attack.is_poison | attack.is_cover)
    assert len(rows) == int((made.is_poison | made.is_cover).sum())
    assert (attack.source_index[~(attack.is_poison | attack.is_cover)] == -1).all()
    true = images[made.source_index[made.is_poison | made.is_cover]]
    found = arrays.train.images[attack.source_index[rows]]
    itself = attack.source_index[rows] == rows
    assert (found[~itself] == true[~itself]).all()
    there = [any((each == image).all() for image in arrays.train.images) for each in true]
    # All originals that are left are found, and none of those that are test images now.
    assert itself.tolist() == [not each for each in there]
    assert itself.any()
    assert itself.all() == (placed == "replaced")


def in_place(made: bl.PoisonResult, images: np.ndarray) -> bl.PoisonResult:
    """The same poison, but each image in place of its original."""
    rows = made.source_index[made.is_poison]
    images, labels = images.copy(), np.arange(len(images)) % 4
    images[rows], labels[rows] = made.images[made.is_poison], made.labels[made.is_poison]
    is_poison = np.isin(np.arange(len(images)), rows)
    source = np.where(is_poison, np.arange(len(images)), -1)
    return replace(
        made, images=images, labels=labels, is_poison=is_poison,
        is_cover=np.zeros(len(images), bool), source_index=source,
    )  # fmt: skip
