"""Damaged, false and malicious poisoned sets are refused in one line, and nothing is imported."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_lab.core.errors import DataError
from backdoor_lab.exchange.source import PoisonedSet
from tests.helpers.foreign_layouts import Bomb
from tests.helpers.own_sets import (
    WRITERS,
    card_of,
    edited,
    npz_arrays,
    own_set,
    png,
    poisoned_arrays,
    sealed,
)


def refused(root: Path, pattern: str) -> None:
    """Asserts that every way to read a set raises the same error, of one line."""
    seen = set()
    for method in ("imported", "known_classes", "identity", "read"):
        with pytest.raises(DataError, match=pattern) as raised:
            getattr(PoisonedSet(root=str(root)), method)()
        seen.add(str(raised.value))
    assert len(seen) == 1
    assert "\n" not in seen.pop()


def not_read(root: Path, pattern: str) -> None:
    """Asserts that the images of a set, whose card is true, are refused."""
    with pytest.raises(DataError, match=pattern) as raised:
        PoisonedSet(root=str(root)).read()
    assert "\n" not in str(raised.value)


FALSE: list[tuple[str, Any, str]] = [
    ("counts.train", 15, "expected 15, found 14"),
    ("counts.test", 5, "expected 5, found 6"),
    ("counts.poisoned", 3, "expected 3, found 2"),
    ("counts.covers", 0, "expected 0, found 1"),
    ("counts.triggered", 5, "expected 5, found 4"),
    ("counts.triggered_elsewhere", 0, "expected 0, found 1"),
    ("hashes.train", "0" * 64, "expected '0000"),
    ("hashes.test", "0" * 64, "expected '0000"),
    ("hashes.triggered", "0" * 64, "expected '0000"),
    ("target", "dog", "expected 'dog', found 'cat'"),
    ("dataset.image", [3, 8, 9], r"expected \[3, 8, 9\], found \[3, 8, 8\]"),
]


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize(("field", "value", "said"), FALSE)
def test_an_edited_field_is_named_with_both_values(
    layout: str, field: str, value: Any, said: str, tmp_path: Path
) -> None:
    """Without a new seal, and with one."""
    root = own_set(tmp_path / "set", layout)
    edited(root, field, value)
    refused(root, rf"card\.json: `{re.escape(field)}` does not describe.*{said}")
    edited(root, field, value, seal=True)
    not_read(root, rf"card\.json: `{re.escape(field)}` does not describe.*{said}")


@pytest.mark.parametrize(
    ("layout", "said"),
    [("npz", "classes"), ("parquet", "classes"), ("folder", "hashes.train"),
     ("toolbox", "hashes.train")],
)  # fmt: skip
def test_classes_in_another_order_are_found(layout: str, said: str, tmp_path: Path) -> None:
    """Folders and backdoor-toolbox's files do not say in which order the classes are."""
    root = own_set(tmp_path / "set", layout)
    edited(root, "dataset.classes", ["dog", "cat", "owl"], seal=True)
    not_read(root, f"`(dataset.)?{said}` does not describe")
    edited(root, "dataset.classes", ["cat", "dog", "owl", "cow"], seal=True)
    not_read(root, "does not describe")


def test_another_layout_than_that_of_the_files_is_refused(tmp_path: Path) -> None:
    root = own_set(tmp_path / "set")
    edited(root, "layout", "folder", seal=True)
    refused(root, "`layout` is folder, but the files are those of npz")


@pytest.mark.parametrize(
    ("field", "value"),
    [("ratio", 0.25), ("seed", 4), ("trigger.name", "blended"), ("source", "dog"),
     ("protocol.placement", "append"), ("license", "mit"), ("cell", None),
     ("normalization.mean_255", [1, 2, 3])],
)  # fmt: skip
def test_a_field_that_no_image_tells_is_sealed(field: str, value: Any, tmp_path: Path) -> None:
    root = own_set(tmp_path / "set")
    edited(root, field, value)
    refused(root, r"card\.json: `seal` does not match: the card was edited")


INVALID: list[tuple[str, Any, str]] = [
    ("format", 2, "`format` 2 is not known"),
    ("format", True, "`format` True is not known"),
    ("layout", "zip", "`layout` 'zip' is not known"),
    ("dataset.classes", ["cat", "cat", "owl"], "`dataset.classes` must be"),
    ("dataset.classes", "cat", "`dataset.classes` must be"),
    ("dataset.classes", [1, 2, 3], "`dataset.classes` must be a non-empty string"),
    ("dataset.image", [3, 8], "`dataset.image` must be"),
    ("dataset.image", [4, 8, 8], "`dataset.image"),
    ("dataset.image", [3, 8.5, 8], "`dataset.image` must be a whole"),
    ("target", "cow", "`target` 'cow' is not known"),
    ("target", 0, "`target` 0 is not known"),
    ("source", "cow", "`source` 'cow' is not known"),
    ("ratio", -1, "`ratio` must satisfy 0 <= ratio"),
    ("ratio", "5%", "`ratio` must.*for 5 %, write 0.05"),
    ("seed", 1.5, "`seed` must be a whole"),
    ("trigger", "pixel", "`trigger` must be an object"),
    ("trigger.name", None, "`trigger.name` must be a non-empty"),
    ("protocol.cover_rate", True, "`protocol.cover_rate` must"),
    ("protocol.asr_on", 3, "`protocol.asr_on` must be a non-empty"),
    ("protocol.version", "1", "`protocol.version` must"),
    ("counts.train", "14", "`counts.train` must"),
    ("counts.poisoned", 14, "`counts.poisoned` and `counts.covers` must not exceed"),
    ("counts.images", 14, "'images' is not known"),
    ("counts", 14, "`counts` must be an object"),
    ("hashes.train", 5, "`hashes.train` must be a SHA-256"),
    ("hashes.files", {}, "`hashes.files` must list"),
    ("hashes.files", {"data.npz": "00"}, r"`hashes.files.data.npz` must be a SHA-256"),
    ("normalization", {"mean_255": [1, 1, 1], "std_255": [0, 1, 1]}, "`normalization.std_255`"),
    ("normalization", {"mean_255": [1, 1], "std_255": [1, 1]}, "`normalization` must have 3"),
    ("normalization", [1, 1], "`normalization` must have mean_255 and std_255"),
    ("note", "mine", "'note' is not known"),
]


@pytest.mark.parametrize(("field", "value", "said"), INVALID)
def test_an_invalid_field_is_named(field: str, value: Any, said: str, tmp_path: Path) -> None:
    root = own_set(tmp_path / "set")
    edited(root, field, value, seal=True)
    refused(root, rf"card\.json: .*{said}")


@pytest.mark.parametrize("field", ["counts", "hashes", "dataset", "seal", "target", "trigger"])
def test_a_missing_field_is_named(field: str, tmp_path: Path) -> None:
    root = own_set(tmp_path / "set")
    card = json.loads((root / "card.json").read_text())
    del card[field]
    (root / "card.json").write_text(json.dumps(card))
    refused(root, rf"card\.json: `{field}` is missing")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not valid JSON"), ("[]", "a card is a JSON object"),
     ('{"kind": "dataset", "kind": "dataset"}', "not valid JSON"),
     ("[" * 10_000, "not valid JSON"),
     ('{"a": NaN, "kind": "dataset"}', r"card\.json is not valid JSON \(NaN: ")],
)  # fmt: skip
def test_a_card_that_is_no_json_object_is_refused(text: str, said: str, tmp_path: Path) -> None:
    root = own_set(tmp_path / "set")
    (root / "card.json").write_text(text)
    refused(root, said)
    (root / "card.json").write_bytes(b'{"kind": "\xff"}')
    refused(root, "not valid JSON")


@pytest.mark.parametrize("layout", WRITERS)
def test_an_altered_file_is_named(layout: str, tmp_path: Path) -> None:
    """Also if the set was read before."""
    root = own_set(tmp_path / "set", layout)
    PoisonedSet(root=str(root)).read()
    path = next(p for p in sorted(root.rglob("*")) if p.is_file() and p.name != "card.json")
    data = path.read_bytes()
    path.write_bytes(data + b"x")
    refused(root, rf"{re.escape(path.name)}: the file was changed.*expected [0-9a-f]{{64}}, found")
    path.unlink()
    refused(root, rf"{re.escape(path.name)}: the file was changed.*found no such file")
    path.write_bytes(data)
    PoisonedSet(root=str(root)).read()


@pytest.mark.parametrize("name", ["../data.npz", "/etc/passwd", "a/../../x", "C:/x", "a\\b", ""])
def test_paths_out_of_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    root = own_set(tmp_path / "set")
    shutil.copy(root / "data.npz", tmp_path / "data.npz")
    card = json.loads((root / "card.json").read_text())
    files = card["hashes"]["files"]
    edited(root, "hashes.files", {**files, name: files["data.npz"]}, seal=True)
    refused(root, "is not the path of a file in the folder")


@pytest.mark.parametrize("name", ["../dog/1.png", "/etc/passwd", "cat/../../test/cat/0.png", "."])
def test_paths_out_of_the_folder_in_metadata_are_refused(name: str, tmp_path: Path) -> None:
    root = own_set(tmp_path / "set", "folder")
    resealed(root, "folder", changed_text("train/metadata.csv", "cat/0.png", name))
    not_read(root, "is not the path of a file in the folder")


def test_links_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    root = own_set(tmp_path / "set", "folder")
    outside = tmp_path / "outside"
    shutil.move(root / "train/cat", outside)
    (root / "train/cat").symlink_to(outside)
    refused(root, "a link leads out of the folder")
    (root / "train/cat").unlink()
    shutil.move(outside, root / "train/cat")
    image = root / "train/cat/0.png"
    shutil.move(image, tmp_path / "0.png")
    image.symlink_to(tmp_path / "0.png")
    refused(root, "a link leads out of the folder")
    # A link inside the folder is a way to store equal images once.
    shutil.move(tmp_path / "0.png", root / "kept.png")
    image.unlink()
    image.symlink_to("../../kept.png")
    assert len(PoisonedSet(root=str(root)).read().train.labels) == 14
    image.unlink()
    image.symlink_to(image)
    refused(root, "cannot be read|no such file")
    image.unlink()
    os.mkfifo(image)
    refused(root, "not a regular file")


def resealed(root: Path, layout: str, change: Callable[[Path], None]) -> None:
    """Changes a set, and writes a card with the hashes of the changed files."""
    change(root)
    sealed(root, card_of(poisoned_arrays(), layout))


def changed_text(name: str, old: str, new: str, count: int = 1) -> Callable[[Path], None]:
    """Replaces text in a file."""

    def change(root: Path) -> None:
        text = (root / name).read_text()
        assert old in text
        (root / name).write_text(text.replace(old, new, count))

    return change


METADATA: list[tuple[Callable[[Path], None], str]] = [
    (changed_text("train/metadata.csv", "is_cover", "cover"), "no single column `is_cover`"),
    (changed_text("train/metadata.csv", "is_cover", "label"), "no single column `label`"),
    (changed_text("triggered/metadata.csv", ",elsewhere", ",else"), "column `elsewhere`"),
    (changed_text("train/metadata.csv", "false", "no"), "`is_poison` must be true or false"),
    (changed_text("train/metadata.csv", "-1", "1.0"), "`source_index` must be a whole number"),
    (changed_text("train/metadata.csv", "-1", "nan"), "`source_index` must be a whole number"),
    (changed_text("train/metadata.csv", "-1", "9" * 30), "must be a whole number"),
    (changed_text("train/metadata.csv", "-1", "3"), "-1 for clean ones, got 3 in row 0"),
    (changed_text("train/metadata.csv", ",1,train", f",{10**17},train"), r"below 2\*\*31"),
    (changed_text("train/metadata.csv", ",train", ",test"), "`split` must be train"),
    (changed_text("train/metadata.csv", ",train\n", "\n"), "row 0 has 5 of 6 columns"),
    (changed_text("train/metadata.csv", "owl/2.png", "cat/0.png"), "cat/0.png is listed twice"),
    (changed_text("train/metadata.csv", "owl/2.png", "owl/77.png"), "owl/77.png: no such file"),
    (changed_text("train/metadata.csv", "owl/2.png,owl", "owl/2.png,cow"), "dataset.classes"),
    (changed_text("test/metadata.csv", "false", "true"), "`is_poison` is not that of clean"),
    (changed_text("triggered/metadata.csv", "true", "false"), "not that of triggered"),
    (changed_text("triggered/metadata.csv", ",4,", ",6,"), "at least 0 and below 6, got 6"),
    (changed_text("train/metadata.csv", "owl/2.png", "owl/\x002.png"), "not the path of a file"),
    (lambda root: (root / "train/metadata.csv").write_bytes(b"\xff\xfe"), "not a CSV file in UTF"),
    (lambda root: (root / "train/metadata.csv").write_bytes(b""), "found: nothing"),
    (lambda root: (root / "train/metadata.csv").write_text('a,"b'), "not a CSV file"),
]


@pytest.mark.parametrize(("change", "said"), METADATA)
def test_broken_metadata_are_refused(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = own_set(tmp_path / "set", "folder")
    resealed(root, "folder", change)
    not_read(root, said)


def image_file(mode: str, kind: str = "png", size: int = 8, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (size, size)).save(stream, kind, **options)
    return stream.getvalue()


def declared(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that claims to be large."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def animated() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(stream, "png", save_all=True, append_images=frames[1:])
    return stream.getvalue()


IMAGES: list[tuple[bytes, str]] = [
    (image_file("RGB", "jpeg"), "must be PNG files, got a JPEG file"),
    (image_file("RGB", "bmp"), "must be PNG files"),
    (image_file("P"), "got a palette"),
    (image_file("RGBA"), "got RGB with transparency"),
    (image_file("LA"), "got gray with transparency"),
    (image_file("I;16"), "got 16 bits"),
    (image_file("1"), "got 1 bits"),
    (image_file("RGB", transparency=(0, 0, 0)), "must not have transparency"),
    (image_file("L"), r"has 1 x 8 x 8 \(channels x height x width\)"),
    (image_file("RGB", size=9), "has 3 x 9 x 9"),
    (animated(), "must not have an animation"),
    (declared(60_000, 60_000), "60000 x 60000 pixels exceed the limit"),
    (declared(9, 7), r"has 3 x 7 x 9 \(channels x height x width\)"),
    (b"", "must be PNG files"),
    (image_file("RGB")[:40], "not a valid image"),
]


@pytest.mark.parametrize("layout", ["folder", "parquet", "toolbox"])
@pytest.mark.parametrize(("data", "said"), IMAGES)
def test_other_images_are_refused(
    layout: str, data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    if layout == "parquet":
        count = iter(range(100))
        monkeypatch.setattr(
            "tests.helpers.own_sets.png", lambda image: data if next(count) == 5 else png(image)
        )
        own_set(root, layout)
    else:
        own_set(root, layout)
        name = {"folder": "train/cat/6.png", "toolbox": "test_split/data/2.png"}[layout]
        resealed(root, layout, lambda root: (root / name).write_bytes(data))  # type: ignore[func-returns-value]
    not_read(root, said)


def test_a_large_first_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    root = own_set(tmp_path / "set", "folder")

    def change(root: Path) -> None:
        for path in root.glob("train/*/*.png"):
            path.write_bytes(declared(60_000, 60_000))

    resealed(root, "folder", change)
    not_read(root, "60000 x 60000 pixels exceed the limit")


def with_arrays(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Writes data.npz with other arrays."""

    def changed(root: Path) -> None:
        arrays = npz_arrays(poisoned_arrays())
        change(arrays)
        np.savez(root / "data.npz", **arrays)

    return changed


def put(name: str, value: Callable[[Any], Any]) -> Callable[[Path], None]:
    return with_arrays(lambda arrays: arrays.update({name: value(arrays[name])}))


def at(row: int, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[row] = value
        return values

    return change


ARRAYS: list[tuple[Callable[[Path], None], str]] = [
    (with_arrays(lambda arrays: arrays.pop("is_cover")), "no array `is_cover`; found: train_im"),
    (with_arrays(lambda arrays: arrays.pop("test_labels")), "no array `test_labels`"),
    (with_arrays(lambda arrays: arrays.pop("triggered_index")), "no array `triggered_index`"),
    (with_arrays(lambda arrays: arrays.pop("classes")), "no array `classes`"),
    (put("classes", lambda names: np.arange(3)), "`classes` must be a list of strings"),
    (put("train_images", lambda images: images / 255), "train images must be uint8, got float64"),
    (put("train_images", lambda images: images.astype(int)), "must be uint8, got int64"),
    (put("train_images", lambda images: images.transpose(0, 2, 3, 1)), "with C = 1 or 3"),
    (put("train_images", lambda images: images[:, 0]), "must have the shape"),
    (put("train_images", lambda images: images[:0]), "there are no training images"),
    (put("test_images", lambda images: images[:, :1]), "test images must have the shape of train"),
    (put("triggered_images", lambda images: images[..., :4]), "triggered images must have the"),
    (put("train_labels", lambda labels: labels[:-1]), "train labels: 14 images, but"),
    (put("train_labels", lambda labels: labels[:, None]), "train labels: 14 images, but"),
    (put("train_labels", lambda labels: labels.astype(float)), "must be int64, got float64"),
    (put("train_labels", at(2, 3)), "train labels must be at least 0 and below 3, got 3 in row 2"),
    (put("train_labels", at(2, -1)), "got -1 in row 2; 1 of 14 rows"),
    (put("test_labels", at(0, 7)), "test labels must be"),
    (put("triggered_labels", at(0, 7)), "triggered labels must be"),
    (put("is_poison", lambda mask: mask.astype(int)), "is_poison must be bool, got int64"),
    (put("is_poison", at(5, True)), "`is_poison` and `is_cover` are both true in row 5"),
    (put("is_poison", at(3, False)), "`source_index` must be 0 or larger for poisoned"),
    (put("source_index", at(3, -1)), "`source_index` must be 0 or larger for poisoned"),
    (put("source_index", at(0, 2)), "-1 for clean ones, got 2 in row 0"),
    (put("source_index", at(3, 2**31)), r"below 2\*\*31, .* got 2147483648 in row 3"),
    (put("source_index", at(5, 10**18)), r"below 2\*\*31, .* got 1000000000000000000 in row 5"),
    (put("triggered_index", at(0, 6)), "test_index of triggered images must be"),
    (put("triggered_elsewhere", lambda mask: mask[1:]), "elsewhere of triggered images: 5 images"),
    (put("triggered_elsewhere", lambda mask: ~mask), "counts.triggered"),
    (put("train_images", at(0, 7)), "hashes.train"),
    (lambda root: (root / "data.npz").write_bytes(b"PK\x03\x04 no"), "not a valid .npz file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), ARRAYS)
def test_broken_arrays_are_refused(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = own_set(tmp_path / "set")
    resealed(root, "npz", change)
    not_read(root, said)


def test_an_array_that_claims_to_be_enormous_is_refused(tmp_path: Path) -> None:
    def bomb(root: Path) -> None:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 1000, 1000)}
        )
        arrays = npz_arrays(poisoned_arrays())
        del arrays["train_images"]
        np.savez(root / "data.npz", **arrays)
        with zipfile.ZipFile(root / "data.npz", "a") as archive:
            archive.writestr("train_images.npy", head.getvalue() + b"\0" * 100)

    root = own_set(tmp_path / "set")
    resealed(root, "npz", bomb)
    not_read(root, "array `train_images` has .* bytes, but its header claims")


def test_pickles_in_arrays_are_not_loaded(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def bomb(root: Path) -> None:
        arrays = npz_arrays(poisoned_arrays())
        arrays["train_labels"] = np.array([Bomb(marker)] * 14, object)
        np.savez(root / "data.npz", **arrays)

    root = own_set(tmp_path / "set")
    resealed(root, "npz", bomb)
    not_read(root, "not a valid .npz file of plain arrays")
    assert not marker.exists()


TOOLBOX = ("imgs", "labels", "poison_indices", "cover_indices", "source_index",
           "test_split/labels", "triggered/labels", "triggered/test_index",
           "triggered/elsewhere")  # fmt: skip


@pytest.mark.parametrize("name", TOOLBOX)
def test_pickles_that_run_code_leave_no_trace(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def bomb(root: Path) -> None:
        torch.save(Bomb(marker), root / name)

    root = own_set(tmp_path / "set", "toolbox")
    resealed(root, "toolbox", bomb)
    not_read(root, "mkdir, which is refused")
    (root / name).write_bytes(pickle.dumps(Bomb(marker)))
    sealed(root, card_of(poisoned_arrays(), "toolbox"))
    not_read(root, re.escape(name))
    assert not marker.exists()


def stored(name: str, value: Any) -> Callable[[Path], None]:
    return lambda root: torch.save(value, root / name)


TENSORS: list[tuple[Callable[[Path], None], str]] = [
    (stored("imgs", torch.full((14, 3, 8, 8), torch.nan)), "got other values in row 0"),
    (stored("imgs", torch.full((14, 3, 8, 8), 2.0)), "got other values in row 0"),
    (stored("imgs", torch.zeros(13, 3, 8, 8)), "13 images, but 14 labels"),
    (stored("imgs", torch.zeros(14, 8, 8)), "expected a tensor of images"),
    (stored("labels", torch.zeros(14)), "train labels must be int64, got float32"),
    (stored("labels", torch.zeros(14, 1, dtype=torch.int64)), "train labels: 14 images"),
    (stored("labels", torch.full((14,), 10**9)), "train labels must be at least 0"),
    (stored("poison_indices", [3, 3]), "row 3 is listed twice"),
    (stored("poison_indices", [99]), "row 99 is not among the 14 rows"),
    (stored("source_index", torch.zeros(14)), "source_index must be int64"),
    (stored("triggered/elsewhere", [0, 0, 0, 0, 1]), "elsewhere of triggered images must be bool"),
    (stored("triggered/labels", [0, 0, 0, 0]), "4 labels, but there is triggered/data/4.png"),
    (stored("triggered/labels", [0] * 6), r"triggered/data/5.png: no such file"),
    (lambda root: (root / "source_index").unlink(), "source_index: no such file"),
    (lambda root: (root / "poison_indices").unlink(), "poison_indices: no such file"),
]


@pytest.mark.parametrize(("change", "said"), TENSORS)
def test_broken_tensors_are_refused(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = own_set(tmp_path / "set", "toolbox")
    resealed(root, "toolbox", change)
    not_read(root, said)


def test_a_file_that_the_card_does_not_list_is_not_read(tmp_path: Path) -> None:
    root = own_set(tmp_path / "set", "folder")
    card = json.loads((root / "card.json").read_text())
    files = {k: v for k, v in card["hashes"]["files"].items() if k != "train/cat/0.png"}
    edited(root, "hashes.files", files, seal=True)
    not_read(root, r"`hashes\.files` does not list train/cat/0\.png")


def table(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Writes the training split with another table."""

    def changed(root: Path) -> None:
        import pyarrow.parquet as pq

        path = root / "data/train-00000-of-00001.parquet"
        pq.write_table(change(pq.read_table(path)), path)

    return changed


def column(name: str, values: Callable[[list[Any]], Any]) -> Callable[[Path], None]:
    def change(old: Any) -> Any:
        import pyarrow as pa

        new = pa.array(values(old.column(name).to_pylist()))
        return old.set_column(old.schema.names.index(name), name, new)

    return table(change)


PARQUET: list[tuple[Callable[[Path], None], str]] = [
    (table(lambda old: old.drop_columns(["is_cover"])), "no single column `is_cover`"),
    (table(lambda old: old.append_column("label", old.column("label"))), "column `label`"),
    (table(lambda old: old.replace_schema_metadata({})), "do not state the names of the classes"),
    (table(lambda old: old.replace_schema_metadata({"huggingface": "[1]"})), "do not state"),
    (column("label", lambda old: [float(x) for x in old]), "`label` must be int64, got double"),
    (column("label", lambda old: [None, *old[1:]]), "column `label` has missing values"),
    (column("is_poison", lambda old: [int(x) for x in old]), "`is_poison` must be bool"),
    (column("image", lambda old: [x["bytes"] for x in old]), "`image` must be a struct"),
    (column("image", lambda old: [None, *old[1:]]), "`image` has missing values"),
    (column("image", lambda old: [{"bytes": None, "path": "x"}, *old[1:]]),
     r"data/train-00000-of-00001\.parquet: row 0 has no image"),
    (lambda root: (root / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1"),
     "not a valid Parquet file"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), PARQUET)
def test_broken_tables_are_refused(
    change: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    root = own_set(tmp_path / "set", "parquet")
    resealed(root, "parquet", change)
    not_read(root, said)


def test_without_pyarrow_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = own_set(tmp_path / "set", "parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(Exception, match=r"backdoor-lab\[parquet\]"):
        PoisonedSet(root=str(root)).read()
