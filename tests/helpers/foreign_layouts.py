"""Tiny poisoned data sets in the layouts of backdoor-toolbox and BackdoorBench."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CLASSES = ("cat", "dog", "owl")
TRAIN, TEST = 12, 6


class Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.marker,)


def clean_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images (count, 3, 8, 8) and labels 0, 1, 2, 0, ..."""
    images = np.random.default_rng(seed).integers(0, 200, (count, 3, 8, 8), dtype=np.uint8)
    return images, np.arange(count) % len(CLASSES)


def stamped(images: np.ndarray) -> np.ndarray:
    """Copies of images with a white corner."""
    found = images.copy()
    found[..., -2:, -2:] = 255
    return found


def clean_file(path: Path) -> Path:
    """Writes the clean data set as .npz."""
    (train, train_labels), (test, test_labels) = clean_images(TRAIN, 0), clean_images(TEST, 1)
    np.savez(path, train_images=train, train_labels=train_labels, test_images=test,
             test_labels=test_labels, classes=np.array(CLASSES))  # fmt: skip
    return path


def write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.transpose(1, 2, 0)).save(path)


def toolbox_set(
    base: Path, poison: Sequence[int] = (1, 4, 5), covers: Sequence[int] = (7,), *,
    old: bool = False, name: str = "badnet_0.250_poison_seed=3",
) -> Path:  # fmt: skip
    """Writes poisoned_train_set/tiny/<name> and clean_set/tiny/test_split; returns the former. In
    the old form, the training images are PNG files."""
    images, labels = clean_images(TRAIN, 0)
    changed = [*poison, *covers]
    images[changed] = stamped(images[changed])
    labels[list(poison)] = 0
    root = base / "poisoned_train_set/tiny" / name
    root.mkdir(parents=True)
    if old:
        for row, image in enumerate(images):
            write_png(root / f"data/{row}.png", image)
    else:
        torch.save(torch.tensor(images) / 255, root / "imgs")
    torch.save(torch.tensor(labels), root / "labels")
    torch.save(list(poison), root / "poison_indices")
    if covers:
        torch.save(list(covers), root / "cover_indices")
    test, test_labels = clean_images(TEST, 1)
    split = base / "clean_set/tiny/test_split"
    for row, image in enumerate(test):
        write_png(split / f"data/{row}.png", image)
    torch.save(torch.tensor(test_labels), split / "labels")
    return root


def record_state(
    root: Path, folder: str, images: np.ndarray, labels: np.ndarray, changed: dict[int, int], *,
    only_changed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Writes the PNG files of one split of a record; returns what attack_result.pt holds about it.
    `changed` maps rows to labels."""
    indicator, entries = np.zeros(len(labels)), {}
    for row, label in changed.items():
        path = f"{folder}/{labels[row]}/{row}.png"
        write_png(root / path, stamped(images[row]))
        # Rows are NumPy's integers, and paths are relative to the folder of BackdoorBench.
        info = [label, int(labels[row])]
        entries[np.int64(row)] = {"path": f"./record/{root.name}/{path}", "other_info": info}
        indicator[row] = 1
    saved = f"./record/{root.name}/{folder}"
    container = {"save_folder_path": saved, "data_dict": entries, "save_file_format": ".png"}
    order = np.flatnonzero(indicator) if only_changed else np.arange(len(labels))
    return {
        "bd_data_container": container, "getitem_all": True, "getitem_all_switch": False,
        "original_index_array": order, "poison_indicator": indicator, "save_folder_path": saved,
    }  # fmt: skip


def record_folder(
    base: Path, changed: dict[int, int] | None = None, *,
    order: Sequence[int] = range(TRAIN), test_order: Sequence[int] = range(TEST),
) -> Path:  # fmt: skip
    """Writes record/badnet_tiny and, as the data set that was attacked, data/clean.npz; returns the
    former. `changed` maps rows of the training set to their labels. The orders are those of the
    clean images that were attacked."""
    root = base / "record/badnet_tiny"
    (base / "data").mkdir(parents=True)
    clean_file(base / "data/clean.npz")
    train, train_labels = (each[list(order)] for each in clean_images(TRAIN, 0))
    test, test_labels = (each[list(test_order)] for each in clean_images(TEST, 1))
    wanted = {row: 0 for row, label in enumerate(test_labels) if label}
    changed = {1: 0, 3: 0, 8: 0} if changed is None else changed
    result = {
        "model_name": "preactresnet18", "num_classes": len(CLASSES),
        "model": OrderedDict(w=torch.zeros(2)), "data_path": "./data/tiny",
        "img_size": (8, 8, 3), "clean_data": "tiny",
        "bd_train": record_state(root, "bd_train_dataset", train, train_labels, changed),
        "bd_test": record_state(root, "bd_test_dataset", test, test_labels, wanted,
                                only_changed=True),
    }  # fmt: skip
    torch.save(result, root / "attack_result.pt")
    info = {"attack": "badnet", "random_seed": 5, "pratio": 0.25, "img_size": (8, 8, 3)}
    torch.save(info, root / "info.pickle")
    return root
