"""Poisoned sets for tests of exports, and readers of the exported files that use only NumPy,
pandas, Pillow, pyarrow and torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from PIL import Image

from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.exchange.card import Described

Columns = dict[str, list[Any]]
Read = dict[str, tuple[NDArray[Any], Columns]]
"""For each split, the images, uint8 (n, C, H, W), and the columns; labels are class numbers."""
DESCRIBED = Described(
    "tiny", {"name": "pixel", "color": 255}, "b", None, 0.5, 3, {"name": "group13", "version": 1},
    {"mean_255": [1.5], "std_255": [2.0]},
)  # fmt: skip


def small_set(*, channels: int = 3, test: bool = True, classes: str = "abc") -> Arrays:
    """Eight training images, of which two are poisoned and one is a cover, four test images, and
    three triggered ones, of which one does not count."""
    random = np.random.default_rng(0)

    def images(n: int) -> NDArray[Any]:
        return random.integers(0, 256, (n, channels, 4, 5), np.uint8)

    def row(*values: Any) -> NDArray[Any]:
        return np.array(values)

    yes = np.zeros((2, 8), bool)
    yes[0, 6:], yes[1, 5] = True, True
    source = row(-1, -1, -1, -1, -1, 2, 0, 3)
    train = Split(images(8), row(0, 1, 2, 2, 0, 2, 1, 1))
    attack = ImportedAttack(*yes, source)
    if not test:
        return Arrays(train, Split(train.images[:0], train.labels[:0]), tuple(classes), attack)
    attack = ImportedAttack(
        *yes, source, images(3), row(1, 1, 1), row(0, 3, 2), row(False, False, True)
    )
    return Arrays(train, Split(images(4), row(0, 1, 2, 0)), tuple(classes), attack)


def pixels(data: bytes | Path) -> NDArray[Any]:
    """The pixels (C, H, W) of a file, which must be a PNG."""
    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as picture:
        assert picture.format == "PNG"
        found = np.asarray(picture)
    return found[None] if found.ndim == 2 else found.transpose(2, 0, 1)


def read_folder(root: Path, classes: tuple[str, ...]) -> Read:
    found: Read = {}
    for path in sorted(root.glob("*/metadata.csv")):
        frame = pd.read_csv(path, keep_default_na=False)
        images = np.stack([pixels(path.parent / name) for name in frame.pop("file_name")])
        frame["label"] = [classes.index(name) for name in frame["label"].astype(str)]
        assert set(frame.pop("split")) == {path.parent.name}
        found[path.parent.name] = images, frame.to_dict("list")
    return found


def read_parquet(root: Path, classes: tuple[str, ...]) -> Read:
    import pyarrow.parquet  # type: ignore[import-untyped]

    found: Read = {}
    for path in sorted((root / "data").iterdir()):
        columns = pyarrow.parquet.read_table(path).to_pydict()
        images = np.stack([pixels(each["bytes"]) for each in columns.pop("image")])
        found[path.name.partition("-")[0]] = images, columns
    return found


def read_npz(root: Path, classes: tuple[str, ...]) -> Read:
    with np.load(root / "data.npz", allow_pickle=False) as file:
        arrays = dict(file)
    assert tuple(arrays["classes"].tolist()) == classes
    names = {"label": "train_labels"} | {n: n for n in ("is_poison", "is_cover", "source_index")}
    train = {name: arrays[key].tolist() for name, key in names.items()}
    found = {"train": (arrays["train_images"], train)}
    if "test_images" in arrays:
        found["test"] = arrays["test_images"], clean(arrays["test_labels"].tolist())
        names = {"label": "labels", "source_index": "index", "elsewhere": "elsewhere"}
        shown = {name: arrays[f"triggered_{key}"].tolist() for name, key in names.items()}
        found["triggered"] = arrays["triggered_images"], all_poison(shown)
    return found


def read_toolbox(root: Path, classes: tuple[str, ...]) -> Read:
    def tensor(name: str) -> Any:
        return torch.load(root / name, weights_only=True)

    def images(folder: str, n: int) -> NDArray[Any]:
        return np.stack([pixels(root / folder / "data" / f"{row}.png") for row in range(n)])

    values = tensor("imgs")
    assert values.dtype == torch.float32
    assert torch.equal(values, (values * 255).round().to(torch.uint8) / 255)
    labels = tensor("labels").tolist()
    marked = {
        mask: [row in tensor(name) for row in range(len(labels))]
        for mask, name in (("is_poison", "poison_indices"), ("is_cover", "cover_indices"))
    }
    columns = {"label": labels, **marked, "source_index": tensor("source_index").tolist()}
    found = {"train": ((values * 255).round().to(torch.uint8).numpy(), columns)}
    if (root / "test_split").exists():
        labels = tensor("test_split/labels").tolist()
        found["test"] = images("test_split", len(labels)), clean(labels)
        shown = {"label": tensor("triggered/labels").tolist()}
        shown |= {"source_index": tensor("triggered/test_index").tolist()}
        shown |= {"elsewhere": tensor("triggered/elsewhere").tolist()}
        found["triggered"] = images("triggered", len(shown["label"])), all_poison(shown)
    return found


def clean(labels: list[Any]) -> Columns:
    """The columns of clean test images."""
    n = len(labels)
    nothing = [False] * n
    return {"label": labels, "is_poison": nothing, "is_cover": nothing, "source_index": [-1] * n}


def all_poison(columns: Columns) -> Columns:
    n = len(columns["label"])
    return {**columns, "is_poison": [True] * n, "is_cover": [False] * n}


def same(found: Read, expected: Read) -> None:
    """Asserts that all pixels and columns are equal."""
    assert found.keys() == expected.keys()
    for split, (images, columns) in expected.items():
        assert found[split][0].dtype == np.uint8
        assert np.array_equal(found[split][0], images), split
        assert found[split][1] == columns, split


READERS: dict[str, Callable[[Path, tuple[str, ...]], Read]] = {
    "folder": read_folder, "npz": read_npz, "parquet": read_parquet, "toolbox": read_toolbox,
}  # fmt: skip
