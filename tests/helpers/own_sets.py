"""Tiny poisoned data sets in the layouts of this package, with their cards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.results.seal import write_sealed
from tests.helpers.foreign_layouts import CLASSES, clean_images, stamped

MEAN, STD = [100.5, 99.0, 101.25], [50.0, 51.5, 49.75]


def poisoned_arrays(channels: int = 3) -> Arrays:
    """Fourteen training images, not sorted: two are poisoned and one is a cover. Six test images,
    four triggered ones that count, and one elsewhere."""
    images, labels = clean_images(14, 0)
    test, test_labels = clean_images(6, 1)
    source = np.full(14, -1)
    source[[3, 9]], source[5] = (1, 4), 7
    images[[3, 5, 9]] = stamped(images[[1, 7, 4]])
    labels[[3, 9]] = 0
    labels[5] = labels[7]
    rows = np.array([1, 2, 4, 5, 0])
    images, test = images[:, :channels], test[:, :channels]
    attack = ImportedAttack(
        is_poison=np.isin(np.arange(14), (3, 9)), is_cover=np.arange(14) == 5,
        source_index=source, triggered=stamped(test[rows]), wanted=np.zeros(5, np.int64),
        test_index=rows, elsewhere=np.arange(5) == 4,
        normalization=(tuple(MEAN[:channels]), tuple(STD[:channels])),
    )  # fmt: skip
    return Arrays(Split(images, labels), Split(test, test_labels), CLASSES, attack)


def without_test(arrays: Arrays) -> Arrays:
    """The same set without test images and triggered images."""
    attack, test = arrays.attack, arrays.test
    assert attack is not None
    less = dict.fromkeys(("triggered", "wanted", "test_index", "elsewhere"))
    return replace(
        arrays, test=Split(test.images[:0], test.labels[:0]), attack=replace(attack, **less)
    )


def write_npz(root: Path, arrays: Arrays) -> None:
    """Writes data.npz."""
    np.savez(root / "data.npz", **npz_arrays(arrays))


def npz_arrays(arrays: Arrays) -> dict[str, Any]:
    """The arrays in data.npz."""
    attack = arrays.attack
    assert attack is not None
    found = {
        "train_images": arrays.train.images, "train_labels": arrays.train.labels,
        "is_poison": attack.is_poison, "is_cover": attack.is_cover,
        "source_index": attack.source_index, "classes": np.array(arrays.classes),
    }  # fmt: skip
    if len(arrays.test.labels):
        found |= {"test_images": arrays.test.images, "test_labels": arrays.test.labels}
    if attack.triggered is not None:
        found |= {
            "triggered_images": attack.triggered, "triggered_labels": attack.wanted,
            "triggered_index": attack.test_index, "triggered_elsewhere": attack.elsewhere,
        }  # fmt: skip
    return found


def card_of(arrays: Arrays, layout: str) -> dict[str, Any]:
    """A true card, without the hashes of the files."""
    attack = arrays.attack
    assert attack is not None
    assert attack.is_poison is not None
    assert attack.is_cover is not None
    assert attack.normalization is not None
    splits: dict[str, Split | None] = {"train": arrays.train, "test": None, "triggered": None}
    counts = {"train": len(arrays.train.labels), "test": 0, "poisoned": int(attack.is_poison.sum()),
              "covers": int(attack.is_cover.sum()), "triggered": 0,
              "triggered_elsewhere": 0}  # fmt: skip
    if attack.triggered is not None:
        assert attack.elsewhere is not None
        assert attack.wanted is not None
        counted = ~attack.elsewhere
        splits["test"] = arrays.test
        splits["triggered"] = Split(attack.triggered[counted], attack.wanted[counted])
        counts |= {"test": len(arrays.test.labels), "triggered": int(counted.sum()),
                   "triggered_elsewhere": int(attack.elsewhere.sum())}  # fmt: skip
    return {
        "format": 1, "backdoor_lab": "0.2.0", "kind": "dataset", "layout": layout,
        "cell": "cell-1",
        "dataset": {"name": "tiny", "classes": list(arrays.classes),
                    "image": list(arrays.train.images.shape[1:])},
        "trigger": {"name": "pixel", "version": 1, "color": 255, "position": [-1, -1]},
        "target": "cat", "source": None, "ratio": 0.5, "seed": 3,
        "protocol": {"name": "group13", "version": 1, "label_mode": "all_to_one",
                     "cover_rate": 0.5, "ratio_of": "target", "placement": "replace",
                     "poison_from": "not_target", "asr_on": "not_target"},
        "counts": counts,
        "normalization": {"mean_255": list(attack.normalization[0]),
                          "std_255": list(attack.normalization[1])},
        "hashes": {name: None if split is None else content_digest(split, arrays.classes)
                   for name, split in splits.items()},
        "license": "cc0-1.0", "warning": "This data set is poisoned.",
    }  # fmt: skip


def file_hashes(root: Path) -> dict[str, str]:
    """The hashes of all files of a set but its card and its README."""
    return {
        path.relative_to(root).as_posix(): sha256_of(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in ("card.json", "README.md")
    }


def splits_of(arrays: Arrays) -> dict[str, dict[str, Any]]:
    """For each split that is there: the images, and the columns of its rows."""
    attack, test = arrays.attack, arrays.test
    assert attack is not None
    n, t = len(arrays.train.labels), len(test.labels)
    found: dict[str, dict[str, Any]] = {"train": {
        "images": arrays.train.images, "label": arrays.train.labels,
        "is_poison": attack.is_poison, "is_cover": attack.is_cover,
        "source_index": attack.source_index,
    }}  # fmt: skip
    assert n
    if t:
        none = np.zeros(t, bool)
        found["test"] = {"images": test.images, "label": test.labels, "is_poison": none,
                         "is_cover": none, "source_index": np.full(t, -1)}  # fmt: skip
    if attack.triggered is not None:
        k = len(attack.triggered)
        found["triggered"] = {
            "images": attack.triggered, "label": attack.wanted, "is_poison": np.ones(k, bool),
            "is_cover": np.zeros(k, bool), "source_index": attack.test_index,
            "elsewhere": attack.elsewhere,
        }  # fmt: skip
    return found


def png(image: np.ndarray) -> bytes:
    """An image (C, H, W) as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(stream, "png")
    return stream.getvalue()


def write_folder(root: Path, arrays: Arrays) -> None:
    """Writes <split>/metadata.csv and <split>/<class>/<row>.png."""
    for split, columns in splits_of(arrays).items():
        names = [name for name in columns if name not in ("images", "label", "elsewhere")]
        header = ["file_name", "label", *names, "split"]
        header += ["elsewhere"] if "elsewhere" in columns else []
        lines = [header]
        for row, image in enumerate(columns["images"]):
            label = arrays.classes[columns["label"][row]]
            path = root / split / label / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
            values = {name: str(columns[name][row]).lower() for name in header if name in columns}
            values |= {"file_name": f"{label}/{row}.png", "label": label, "split": split}
            lines.append([values[name] for name in header])
        text = "".join(f"{','.join(line)}\n" for line in lines)
        (root / split / "metadata.csv").write_text(text)


def write_toolbox(root: Path, arrays: Arrays) -> None:
    """Writes the files of backdoor-toolbox, test_split/ and triggered/."""
    splits = splits_of(arrays)
    train = splits.pop("train")
    torch.save(torch.tensor(train["images"]) / 255, root / "imgs")
    torch.save(torch.tensor(train["label"]), root / "labels")
    torch.save(torch.tensor(train["source_index"]), root / "source_index")
    for name in ("poison", "cover"):
        rows = np.flatnonzero(train[f"is_{name}"]).tolist()
        torch.save(rows, root / f"{name}_indices")
    for split, columns in splits.items():
        folder = root / {"test": "test_split", "triggered": "triggered"}[split]
        (folder / "data").mkdir(parents=True)
        for row, image in enumerate(columns["images"]):
            (folder / "data" / f"{row}.png").write_bytes(png(image))
        torch.save(torch.tensor(columns["label"]), folder / "labels")
        if split == "triggered":
            torch.save(torch.tensor(columns["source_index"]), folder / "test_index")
            torch.save(torch.tensor(columns["elsewhere"]), folder / "elsewhere")


def write_parquet(root: Path, arrays: Arrays) -> None:
    """Writes data/<split>-00000-of-00001.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir()
    names = list(arrays.classes)
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    for split, columns in splits_of(arrays).items():
        images = [{"bytes": png(image), "path": f"{row}.png"}
                  for row, image in enumerate(columns["images"])]  # fmt: skip
        table = pa.table({"image": images, **{k: v for k, v in columns.items() if k != "images"}})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet")


WRITERS: dict[str, Callable[[Path, Arrays], None]] = {
    "folder": write_folder, "npz": write_npz, "parquet": write_parquet, "toolbox": write_toolbox,
}  # fmt: skip


def own_set(root: Path, layout: str = "npz", arrays: Arrays | None = None) -> Path:
    """Writes a poisoned set with its card to the folder `root`; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = arrays or poisoned_arrays()
    WRITERS[layout](root, arrays)
    sealed(root, card_of(arrays, layout))
    return root


def sealed(root: Path, card: dict[str, Any]) -> None:
    """Writes a card with the hashes of the files that are there, and a matching seal."""
    hashes = card["hashes"] | {"files": file_hashes(root)}
    write_sealed(root / "card.json", card | {"hashes": hashes})


def edited(root: Path, path: str, value: Any, *, seal: bool = False) -> None:
    """Changes the field `path`, such as ``counts.train``, in the text of a card. With `seal`, a
    matching seal is written."""
    card = json.loads((root / "card.json").read_text())
    del card["seal"]
    *above, last = path.split(".")
    inner = card
    for key in above:
        inner = inner[key]
    inner[last] = value
    old = (root / "card.json").read_text().split('"seal": ')[1]
    write_sealed(root / "card.json", card)
    if not seal:
        text, _, _ = (root / "card.json").read_text().partition('"seal": ')
        (root / "card.json").write_text(f'{text}"seal": {old}')


ATTACK = ("is_poison", "is_cover", "source_index", "triggered", "wanted", "test_index",
          "elsewhere")  # fmt: skip


def equal(one: Arrays, other: Arrays) -> bool:
    """Whether two sets are equal bit by bit, with the types of their arrays."""
    pairs = [(getattr(one.attack, name), getattr(other.attack, name)) for name in ATTACK]
    for a, b in ((one.train, other.train), (one.test, other.test)):
        pairs += [(a.images, b.images), (a.labels, b.labels)]
    same = all(a is b is None or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs)
    assert one.attack is not None
    assert other.attack is not None
    return (
        same and one.classes == other.classes
        and one.attack.normalization == other.attack.normalization
    )  # fmt: skip
