"""Record folders of BackdoorBench are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.backdoorbench import (
    BackdoorBench,
    is_backdoorbench,
)
from tests.helpers.foreign_layouts import (
    CLASSES,
    TEST,
    TRAIN,
    Bomb,
    clean_images,
    record_folder,
    stamped,
    write_png,
)


def read(root: Path) -> Arrays:
    return BackdoorBench(root, clean_root=root.parents[1] / "data/clean.npz").read()


def rows(mask: Any) -> list[int]:
    return np.flatnonzero(mask).tolist()


def changed(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the content of attack_result.pt."""
    path = root / "attack_result.pt"
    result = torch.load(path, weights_only=False)
    change(result)
    torch.save(result, path)


def test_poisoned_images_take_the_places_of_clean_ones(tmp_path: Path) -> None:
    found = read(record_folder(tmp_path))
    images, labels = clean_images(TRAIN, 0)
    for row in (1, 3, 8):
        images[row], labels[row] = stamped(images[row]), 0
    assert np.array_equal(found.train.images, images)
    assert np.array_equal(found.train.labels, labels)
    assert found.classes == CLASSES
    test, test_labels = clean_images(TEST, 1)
    assert np.array_equal(found.test.images, test)
    assert np.array_equal(found.test.labels, test_labels)
    attack = found.attack
    assert attack is not None
    assert (rows(attack.is_poison), rows(attack.is_cover)) == ([1, 3, 8], [])
    assert attack.source_index is not None
    assert attack.source_index.tolist() == [-1, 1, -1, 3, -1, -1, -1, -1, 8, -1, -1, -1]
    assert attack.test_index is not None
    assert attack.test_index.tolist() == [1, 2, 4, 5]
    assert np.array_equal(attack.triggered, stamped(test[[1, 2, 4, 5]]))
    assert attack.wanted is not None
    assert attack.wanted.tolist() == [0, 0, 0, 0]
    assert rows(attack.elsewhere) == []


def test_training_images_keep_the_order_of_the_record(tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    usual = read(root)
    order = np.random.default_rng(0).permutation(TRAIN)[:10]
    changed(root, lambda result: result["bd_train"].update(original_index_array=order))
    found = read(root)
    assert np.array_equal(found.train.images, usual.train.images[order])
    assert np.array_equal(found.train.labels, usual.train.labels[order])
    assert found.attack is not None
    assert usual.attack is not None
    for name in ("is_poison", "is_cover", "source_index"):
        assert np.array_equal(getattr(found.attack, name), getattr(usual.attack, name)[order])
    assert BackdoorBench(root, clean_root=tmp_path / "data/clean.npz").facts().n_poisoned == sum(
        row in (1, 3, 8) for row in order
    )


def test_the_facts_need_no_image(tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    for path in root.rglob("*.png"):
        path.unlink()
    facts = BackdoorBench(root, clean_root=tmp_path / "data/clean.npz").facts()
    assert (facts.trigger, facts.seed, facts.target, facts.source) == ("badnet", 5, "cat", None)
    assert (facts.ratio, facts.n_poisoned, facts.n_covers) == (0.25, 3, 0)
    assert facts.triggered
    assert is_backdoorbench(root)


def test_the_identity_follows_the_content_of_all_files_but_not_the_place(tmp_path: Path) -> None:
    root = record_folder(tmp_path / "a")
    before = BackdoorBench(root, clean_root=tmp_path / "a/data/clean.npz").identity()
    base = (tmp_path / "a").rename(tmp_path / "b")
    root, clean = base / "record/badnet_tiny", base / "data/clean.npz"
    seen = [BackdoorBench(root, clean_root=clean).identity()]
    assert seen == [before]
    assert str(tmp_path) not in json.dumps(before)
    for path in (root / "bd_train_dataset/0/3.png", root / "bd_test_dataset/1/4.png"):
        write_png(path, np.zeros((3, 8, 8), np.uint8))
        seen.append(BackdoorBench(root, clean_root=clean).identity())
    torch.save({}, root / "info.pickle")
    seen.append(BackdoorBench(root, clean_root=clean).identity())
    changed(root, lambda result: result.update(num_classes=4))
    seen.append(BackdoorBench(root, clean_root=clean).identity())
    np.savez(clean, **{**np.load(clean), "test_labels": np.zeros(6)})
    seen.append(BackdoorBench(root, clean_root=clean).identity())
    assert all(one != other for at, one in enumerate(seen) for other in seen[:at])


def test_info_pickle_is_optional(tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    (root / "info.pickle").unlink()
    facts = BackdoorBench(root, clean_root=tmp_path / "data/clean.npz").facts()
    assert (facts.trigger, facts.seed, facts.n_poisoned) == (None, None, 3)


@pytest.mark.parametrize(
    ("labels", "poison", "covers", "target", "source"),
    [
        # Rows 0, 3, 6, 9 show cats, rows 1, 4, 7, 10 dogs, the others owls.
        ({1: 0, 2: 0}, [1, 2], [], "cat", None),
        ({1: 0, 4: 0}, [1, 4], [], "cat", "dog"),
        ({1: 0, 3: 0}, [1, 3], [], "cat", None),  # BadNets draws cats, too.
        ({0: 0, 3: 0}, [0, 3], [], "cat", None),  # An attack with clean labels
        ({1: 0, 2: 2, 4: 1}, [1], [2, 4], "cat", "dog"),  # The noise images of WaNet
        ({0: 1, 1: 2, 2: 0}, [0, 1, 2], [], None, None),  # All to all
    ],
)
def test_changed_images_are_poisoned_images_or_covers(
    labels: dict[int, int], poison: list[int], covers: list[int], target: str | None,
    source: str | None, tmp_path: Path,
) -> None:  # fmt: skip
    root = record_folder(tmp_path, labels)
    attack = read(root).attack
    assert attack is not None
    assert (rows(attack.is_poison), rows(attack.is_cover)) == (poison, covers)
    facts = BackdoorBench(root, clean_root=tmp_path / "data/clean.npz").facts()
    assert (facts.target, facts.source) == (target, source)
    assert (facts.n_poisoned, facts.n_covers) == (len(poison), len(covers))


def test_clean_images_are_looked_for_where_backdoorbench_reads_them(tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    for split, count, seed in (("train", TRAIN, 0), ("test", TEST, 1)):
        for row, (image, label) in enumerate(zip(*clean_images(count, seed), strict=True)):
            write_png(tmp_path / f"data/tiny/{split}/{CLASSES[label]}/{row:02}.png", image)
    # An image folder is read by class; the record describes another order.
    with pytest.raises(DataError, match="in another order: row 1 has label 0, but the record"):
        BackdoorBench(root).read()


def test_without_clean_images_the_error_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"set dataset\.clean_root to .*'tiny'"):
        BackdoorBench(record_folder(tmp_path)).read()


def test_backslashes_in_paths_are_those_of_windows(tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    entries = "bd_data_container", "data_dict"

    def change(result: dict[str, Any]) -> None:
        found = result["bd_train"][entries[0]][entries[1]]
        for entry in found.values():
            entry["path"] = entry["path"].replace("/", "\\")

    usual = read(root)
    changed(root, change)
    assert np.array_equal(read(root).train.images, usual.train.images)


def entry_of(result: dict[str, Any], row: int = 3) -> dict[str, Any]:
    found: dict[str, Any] = result["bd_train"]["bd_data_container"]["data_dict"][row]
    return found


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing keys": (
        lambda r: [r.pop(key) for key in ("bd_test", "img_size")], "missing keys: img_size, bd_test"
    ),
    "missing keys of a split": (
        lambda r: r["bd_train"].pop("poison_indicator"), "bd_train: missing keys: poison_indicator"
    ),
    "the form of version 1": (
        lambda r: r.update(bd_train={"x": [], "y": []}), "missing keys: bd_data_container"
    ),
    "no training set": (lambda r: r.update(bd_train=None), "no poisoned training set"),
    "an entry without path": (lambda r: entry_of(r).pop("path"), "row 3: missing keys: path"),
    "no number of classes": (lambda r: r.update(num_classes="3"), "num_classes"),
    "more classes": (lambda r: r.update(num_classes=4), "images is 3, but .* states 4"),
    "no image size": (lambda r: r.update(img_size=8), "img_size must be"),
    "an index outside": (
        lambda r: r["bd_train"].update(original_index_array=np.array([0, 12])), "row 12 of"
    ),
    "an index twice": (
        lambda r: r["bd_train"].update(original_index_array=np.array([1, 1])), "row 1 is listed"
    ),
    "indices of another type": (
        lambda r: r["bd_train"].update(original_index_array="01"), "expected an array of numbers"
    ),
    "marks of another length": (
        lambda r: r["bd_train"].update(poison_indicator=np.zeros(13)), "made on 13 training images"
    ),
    "marks other than 0 and 1": (
        lambda r: r["bd_train"].update(poison_indicator=np.full(12, 2)), "must be 0 or 1"
    ),
    "fractional marks": (
        lambda r: r["bd_train"].update(poison_indicator=np.full(12, 0.5)), "whole numbers"
    ),
    "a mark without image": (
        lambda r: r["bd_train"]["bd_data_container"]["data_dict"].pop(3), "row 3 is poisoned, but"
    ),
    "a label outside": (
        lambda r: entry_of(r).update(other_info=[3, 0]), r"row 3: labels \[3, 0\] are not below 3"
    ),
    "a label of another type": (
        lambda r: entry_of(r).update(other_info=["0", 0]), "row 3: expected label"
    ),
    "no original label": (lambda r: entry_of(r).update(other_info=[0]), "row 3: expected label"),
    "a wrong class folder": (
        lambda r: entry_of(r).update(path="./bd_train_dataset/2/3.png"),
        "expected the image 0/3.png .*, got 2/3.png",
    ),
    "a wrong file name": (
        lambda r: entry_of(r).update(path="./bd_train_dataset/0/4.png"), "got 0/4.png"
    ),
    "a path that escapes": (
        lambda r: entry_of(r).update(path="../0/3.png"), r"row 3: '\.\./0/3\.png' is not"
    ),
    "a path that is no text": (lambda r: entry_of(r).update(path=3), "row 3: 3 is not"),
    "another original label": (
        lambda r: entry_of(r).update(other_info=[0, 1], path="a/bd_train_dataset/1/3.png"),
        "image missing|another order",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_records_are_refused(case: str, tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    change, said = BROKEN[case]
    changed(root, change)
    with pytest.raises(DataError, match=said):
        read(root)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: path.unlink(), "1 image missing .* bd_train_dataset/0/3.png"),
        (lambda path: write_png(path, np.zeros((3, 4, 4), np.uint8)), "same size"),
        (lambda path: path.write_bytes(b"no image"), "not a valid image"),
        (
            lambda path: [write_png(each, np.zeros((3, 4, 4), np.uint8))
                          for each in path.parents[1].rglob("*.png")],
            r"\(3, 4, 4\), the clean ones \(3, 8, 8\)",
        ),
    ],
)  # fmt: skip
def test_broken_images_are_refused(
    change: Callable[[Path], Any], said: str, tmp_path: Path
) -> None:
    root = record_folder(tmp_path)
    change(root / "bd_train_dataset/0/3.png")
    with pytest.raises(DataError, match=said):
        read(root)


@pytest.mark.parametrize("name", ["attack_result.pt", "info.pickle"])
def test_files_that_run_code_leave_no_trace(name: str, tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    content = torch.load(root / name, weights_only=False)
    torch.save({**content, "model": {"w": Bomb(tmp_path / "boom")}}, root / name)
    said = f"{name}: refers to .*mkdir, which is refused"
    with pytest.raises(DataError, match=said):
        BackdoorBench(root, clean_root=tmp_path / "data/clean.npz").facts()
    if name == "attack_result.pt":
        with pytest.raises(DataError, match=said):
            read(root)
    assert not (tmp_path / "boom").exists()
