"""Data sets of the Hugging Face Hub: the three formats hold the same images, and give the same."""

from __future__ import annotations

import json
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.data.base import Arrays
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.data.digits import Digits
from backdoor_lab.data.hub import shards
from backdoor_lab.data.huggingface import HuggingFace
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.data.validate import checked
from tests.helpers.cells import run_here
from tests.helpers.hub import (
    CLASSES,
    metadata_folder,
    parquet,
    png,
    repository,
    table,
    value,
)
from tests.helpers.image_files import filled, reds

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()


def read(root: Path, **options: Any) -> Arrays:
    source = HuggingFace(root=str(root), **options)
    known = source.known_classes()
    arrays = checked(source.limited(), "here")
    assert arrays.classes == known
    return arrays


def same(found: Arrays, expected: Arrays) -> None:
    assert found.classes == expected.classes
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def digests(source: Any, store: Path) -> list[str]:
    found = open_dataset(source, Store(store))
    return [found.train.digest, found.test.digest]


def test_all_formats_of_an_image_folder_give_its_images_labels_and_digests(tmp_path: Path) -> None:
    """`datasets` reads the folder and writes the other formats."""
    root = filled(tmp_path / "files")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=tmp_path / "cache")
    loaded.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    # `to_parquet` stores only the paths of images that were read from files.
    for split, part in datasets.load_from_disk(tmp_path / "saved").items():
        for shard in range(2):
            name = f"data/{split}-{shard:05d}-of-00002.parquet"
            part.shard(2, shard, contiguous=True).to_parquet(tmp_path / "parquet" / name)
    expected = ImageFolder(root=str(root))
    digest = digests(expected, tmp_path / "store")
    for name in ("files", "saved", "parquet"):
        source = HuggingFace(root=str(tmp_path / name))
        same(read(tmp_path / name), expected.read())
        assert digests(source, tmp_path / "store") == digest


def test_digits_saved_by_the_library_are_read_bit_for_bit(tmp_path: Path) -> None:
    """Labels with the names of their classes, in the order of the library."""
    digits = Digits(limit_train=4, limit_test=2)
    expected = digits.limited()
    names = [f"digit {9 - number}" for number in range(10)]
    described = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    made = {}
    for split in ("train", "test"):
        part = getattr(expected, split)
        values = {"image": [value(image) for image in part.images], "label": part.labels.tolist()}
        made[split] = datasets.Dataset.from_dict(values, features=described)
    datasets.DatasetDict(made).save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    for split, part in made.items():
        part.to_parquet(tmp_path / f"{split}.parquet")
    for root in (tmp_path / "saved", tmp_path):
        found = read(root, channels=1)
        assert found.classes == tuple(names)
        same(found, Arrays(expected.train, expected.test, tuple(names)))


def test_rows_that_were_selected_before_saving_are_those_that_are_read(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_dict(
        {"image": [value(number) for number in range(6)], "label": [0, 1, 2, 0, 1, 2]},
        features=datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
        ),
    )
    whole.select([5, 3, 1, 4, 0, 2]).save_to_disk(tmp_path / "set")
    found = read(tmp_path / "set", test_share=0.5)
    rows = dict(zip(reds(found.train.images), found.train.labels.tolist(), strict=True))
    rows |= dict(zip(reds(found.test.images), found.test.labels.tolist(), strict=True))
    assert rows == {0: 0, 1: 1, 2: 2, 3: 0, 4: 1, 5: 2}


def test_a_set_without_named_splits_is_the_training_split(tmp_path: Path) -> None:
    part = datasets.Dataset.from_dict({"image": [value(n) for n in range(8)], "label": [0, 1] * 4})
    part = part.cast_column("image", datasets.Image())
    part.save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="there is no split test; found train: there are no test"):
        read(tmp_path / "set")
    found = read(tmp_path / "set", test_share=0.25)
    assert (len(found.train.labels), len(found.test.labels)) == (6, 2)
    assert sorted(reds(found.train.images) + reds(found.test.images)) == list(range(8))


def test_a_set_of_save_to_disk_needs_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = datasets.Dataset.from_dict({"label": [0, 1]})
    part.save_to_disk(tmp_path / "set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'backdoor-lab\[datasets\]'"):
        HuggingFace(root=str(tmp_path / "set")).fingerprint()
    # The other formats do not need it.
    same(read(repository(tmp_path / "other")), read(metadata_folder(tmp_path / "third")))


def test_files_of_save_to_disk_that_are_damaged_are_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        part = datasets.Dataset.from_dict({"image": [value(1)] * 9, "label": [0, 1, 2] * 3})
        part.save_to_disk(tmp_path / "set" / split)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    source = HuggingFace(root=str(tmp_path / "set"))
    assert source.known_classes() == ("0", "1", "2")
    (data,) = (tmp_path / "set" / "train").glob("*.arrow")
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"\.arrow: the file is truncated"):
        source.known_classes()
    data.write_bytes(whole)
    state = tmp_path / "set" / "train" / "state.json"
    state.write_text(state.read_text().replace(data.name, f"../test/{data.name}"))
    with pytest.raises(DataError, match="is not the path of a file in the folder"):
        source.known_classes()
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["../train", "test"]}')
    with pytest.raises(DataError, match="is not the path of a file in the folder"):
        source.known_classes()


@pytest.mark.parametrize("kind", ["list", "large binary", "binary"])
def test_other_types_of_image_columns(tmp_path: Path, kind: str) -> None:
    images = [png(number) for number in range(6)]
    arrays = {
        "list": pa.array([[{"bytes": each, "path": None}] for each in images]),
        "large binary": pa.array(images, pa.large_binary()),
        "binary": pa.array(images),
    }
    for split in ("train", "test"):
        made = pa.table({"img": arrays[kind], "label": ["b", "a", "c"] * 2})
        pq.write_table(made, tmp_path / f"{split}.parquet")
    found = read(tmp_path)
    assert found.classes == ("a", "b", "c")
    assert found.train.labels.tolist() == [1, 0, 2, 1, 0, 2]
    assert reds(found.train.images) == list(range(6))


@pytest.mark.parametrize("labels", [[10, 9, 2], ["10", "9", "2"]])
def test_labels_that_are_numbers_are_sorted_by_value(tmp_path: Path, labels: list[Any]) -> None:
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}.parquet", labels=labels, described={})
    found = read(tmp_path)
    assert found.classes == ("2", "9", "10")
    assert found.train.labels.tolist() == [2, 1, 0]


def test_one_of_several_configurations_is_chosen_by_its_folder(tmp_path: Path) -> None:
    for folder, split in product(("de", "en"), ("train", "test")):
        parquet(tmp_path / folder / split / "0000.parquet", labels=["x", folder])
    with pytest.raises(DataError, match="train is in several folders: de, en; set `dataset"):
        read(tmp_path)
    assert read(tmp_path / "en").classes == ("en", "x")


def test_the_names_of_classes_may_be_in_the_card(tmp_path: Path) -> None:
    root = repository(tmp_path, described=False)
    assert read(root).classes == ("0", "1", "2")
    names = "".join(f"          '{at}': {name}\n" for at, name in enumerate(CLASSES))
    (root / "README.md").write_text(
        "---\nlicense: mit\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n" + names + "---\n# Set\n"
    )
    before = HuggingFace(root=str(root)).fingerprint()
    assert read(root).classes == CLASSES
    (root / "README.md").write_text((root / "README.md").read_text().replace("cat", "lion"))
    assert HuggingFace(root=str(root)).fingerprint() != before
    (root / "README.md").write_text("---\ndataset_info: [\n---\n")
    with pytest.raises(DataError, match=r"README\.md: the lines between the first two --- are not"):
        read(root)


def test_validation_images_are_test_images_only_if_asked_for(tmp_path: Path) -> None:
    root = repository(tmp_path, splits=("train", "validation"))
    with pytest.raises(DataError, match=r"no split test; found train, validation \(dataset\.test_"):
        read(root)
    assert reds(read(root, test_split="validation").test.images) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match=r"no split training; found train, validation: choose one"):
        read(root, train_split="training")
    found = read(root, test_split=None, test_share=0.5)
    assert sorted(reds(found.train.images) + reds(found.test.images)) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="is for data sets without test images"):
        read(root, test_split="validation", test_share=0.5)


def test_columns_are_chosen_by_name_where_several_fit(tmp_path: Path) -> None:
    made = table().rename_columns(["image", "coarse_label"])
    made = made.append_column("fine_label", pa.array([1, 2, 0, 1, 2, 0]))
    made = made.append_column("thumbnail", made.column("image"))
    described = {
        f"{name}_label": {"_type": "ClassLabel", "names": names}
        for name, names in (("coarse", list(CLASSES)), ("fine", ["x", "y", "z"]))
    }
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}.parquet", made=made, described=described)
    with pytest.raises(DataError, match=r"image, thumbnail can each be .*`dataset\.image`; the c"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"coarse_label, fine_label can each be .*label \(int64\)"):
        read(tmp_path, image="thumbnail")
    found = read(tmp_path, image="thumbnail", label="fine_label")
    assert found.classes == ("x", "y", "z")
    assert found.train.labels.tolist() == [1, 2, 0, 1, 2, 0]
    with pytest.raises(DataError, match=r"`dataset\.label`=color is not a column of labels .*the"):
        read(tmp_path, image="image", label="color")
    with pytest.raises(DataError, match=r"`dataset\.label`=image cannot be used as a column of l"):
        read(tmp_path, image="image", label="image")


def test_limits_keep_the_first_rows_of_every_class(tmp_path: Path) -> None:
    found = read(repository(tmp_path), limit_train=1, size=2)
    assert reds(found.train.images) == [0, 1, 2]
    assert found.train.images.shape == (3, 3, 2, 2)
    assert len(found.test.labels) == 6


def test_batches_do_not_hold_all_image_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backdoor_lab.data.hub.tables.BATCH", 2)
    sizes: list[int] = []
    real = shards.ParquetTable.batches

    def batches(self: Any, column: str, size: int) -> Any:
        for part, first, values in real(self, column, size):
            sizes.append(len(values)) if column == "image" else None
            yield part, first, values

    monkeypatch.setattr(shards.ParquetTable, "batches", batches)
    assert reds(read(repository(tmp_path)).train.images) == [0, 1, 2, 3, 4, 5]
    assert sizes == [2, 2, 2, 2, 2, 2]


def test_a_damaged_image_is_refused_or_skipped(tmp_path: Path) -> None:
    root = repository(tmp_path)
    images = [png(number) for number in range(6)]
    images[3] = b"\x89PNG no"
    parquet(root / "data" / "train-00000-of-00001.parquet", images=images)
    with pytest.raises(DataError, match=r"train-00000-of-00001\.parquet, row 3: not a valid image"):
        read(root)
    source = HuggingFace(root=str(root), skip_broken=True)
    found = source.read()
    assert reds(found.train.images) == [0, 1, 2, 4, 5]
    assert found.train.labels.tolist() == [0, 1, 2, 1, 2]
    assert source.notes["skipped"]["count"] == 1


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
TRAIN = "data/train-00000-of-00001.parquet"


def rewritten(**changes: Any) -> Any:
    return lambda root: parquet(root / TRAIN, **changes)


def cut(root: Path) -> None:
    (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:-20])


BAD: dict[str, tuple[Any, str]] = {
    "a label is null": (
        rewritten(labels=[0, 1, None, 0, None, 2]),
        r"data/train-00000-of-00001\.parquet, row 2: the label is missing; 2 of 6 rows",
    ),
    "-1 means no label": (rewritten(labels=[0, 1, 2, 0, 1, -1]), "row 5: the label is -1, which"),
    "a label beyond the names": (rewritten(labels=[0, 1, 2, 3, 1, 2]), "label 3 is not among"),
    "a class without images": (
        rewritten(labels=[0, 1, 0, 1, 0, 1]), "train: every class needs images; 1 of 3 have none"),
    "an image is null": (
        rewritten(images=[png(0), None, *map(png, range(4))]), "row 1 has no image: the value is"),
    "a remote image": (
        rewritten(paths=["https://example.org/a.png"] * 6, images=[None] * 6),
        r"row 0 has no image file, only the remote address 'https://example\.org/a\.png', which"),
    "a local path": (
        rewritten(paths=["/etc/hostname"] * 6, images=[None] * 6),
        "row 0 has no image file, only the path '/etc/hostname', which is not followed"),
    "no column of images": (
        rewritten(made=pa.table({"label": [0, 1, 2]})), r"no column of image files .*\(int64"),
    "truncated": (cut, r"train-00000-of-00001\.parquet: not a valid Parquet file"),
    "git-lfs": (lambda root: (root / TRAIN).write_bytes(LFS), "run `git lfs pull`"),
    "a file of the split is missing": (
        lambda root: (root / TRAIN).rename(root / "data/train-00000-of-00002.parquet"),
        "are not one complete split: 1 of 00002 are there"),
    "other columns in a file": (
        lambda root: (
            (root / TRAIN).rename(root / "data/train-00000-of-00002.parquet"),
            parquet(root / "data/train-00001-of-00002.parquet", labels=["a"] * 6)),
        r"train-00001-of-00002\.parquet: the columns are not those of data/train-00000"),
    "other class names in test": (
        rewritten(described={"label": {"_type": "ClassLabel", "names": ["a", "b", "c"]}}),
        "split test: column `label`: the names of the classes are not those of train"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD.keys())
def test_bad_parquet_files_give_one_clear_error(tmp_path: Path, damage: Any, message: str) -> None:
    root = repository(tmp_path)
    damage(root)
    with pytest.raises(DataError, match=message):
        read(root)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_metadata_gives_the_labels_and_the_order(tmp_path: Path, ending: str) -> None:
    root = metadata_folder(tmp_path, ending=ending)
    found = read(root)
    assert found.classes == CLASSES
    assert reds(found.train.images) == [0, 1, 2, 3, 4, 5]
    assert found.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def listing(root: Path, *rows: str, header: str = "file_name,label") -> None:
    (root / "train" / "metadata.csv").write_text("\n".join([header, *rows]) + "\n")


ROWS = tuple(f"{number}.png,{CLASSES[number % 3]}" for number in range(6))
BAD_METADATA: dict[str, tuple[Any, str]] = {
    "traversal": (
        lambda root: listing(root, *ROWS, "../test/0.png,cat"), r"'\.\./test/0\.png' is not "),
    "absolute": (lambda root: listing(root, *ROWS, "/etc/hostname,cat"), "is not the path of a"),
    "remote": (
        lambda root: listing(root, *ROWS, "https://example.org/a.png,cat"),
        "row 6: 'https://example.org/a.png' is a remote address"),
    "missing file": (
        lambda root: listing(root, *ROWS, "none.png,cat"),
        r"1 image listed in the metadata cannot be found; the first is train/none\.png"),
    "twice": (lambda root: listing(root, *ROWS, ROWS[0]), r"0\.png is listed twice"),
    "not listed": (
        lambda root: listing(root, *ROWS[:5]),
        "does not list 1 image in the folders of the splits; the first is train/5.png"),
    "no label": (
        lambda root: listing(root, *ROWS[:5], "5.png,"), r"train/5\.png: the label is missing; 1"),
    "no column of labels": (
        lambda root: listing(root, *(row.split(",")[0] for row in ROWS), header="file_name"),
        "there is no column of labels .*; the columns are file_name"),
    "several columns": (
        lambda root: listing(root, *(f"{row},1" for row in ROWS), header="file_name,kind,other"),
        "kind, other can each be a column of labels"),
    "not JSON": (
        lambda root: (root / "test" / "metadata.csv").rename(root / "test" / "metadata.jsonl"),
        "line 1 is not valid JSON"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_bad_metadata_gives_one_clear_error(tmp_path: Path, damage: Any, message: str) -> None:
    root = metadata_folder(tmp_path)
    damage(root)
    with pytest.raises(DataError, match=message):
        HuggingFace(root=str(root)).fingerprint()


def test_one_metadata_file_may_list_all_splits(tmp_path: Path) -> None:
    root = metadata_folder(tmp_path)
    rows = []
    for split in ("train", "test"):
        (root / split / "metadata.csv").unlink()
        rows += [f"{split}/{row}" for row in ROWS]
    text = "\n".join(["file_name,label,width", *(f"{row},4" for row in rows)])
    (root / "metadata.csv").write_text(text)
    same(read(root), read(metadata_folder(tmp_path / "other")))


def test_scripts_are_never_run(tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    root = repository(tmp_path / "set")
    (root / "set.py").write_text(trap)
    source = HuggingFace(root=str(root))
    source.read()
    assert source.notes["not_used"]["files"] == ["set.py"]
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "set.py").write_text(trap)
    with pytest.raises(DataError, match=r"the script set\.py is never run\. Load the data set"):
        HuggingFace(root=str(tmp_path / "script")).fingerprint()
    assert not (tmp_path / "ran").exists()


def test_other_splits_of_an_image_folder_are_named_in_the_error(tmp_path: Path) -> None:
    root = filled(tmp_path, ("train", "validation"))
    with pytest.raises(DataError, match=r"found train, validation \(`dataset\.train_split` and"):
        read(root)
    assert reds(read(root, test_split="validation").test.images) == [60, 50]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"root": None}, "`dataset.root` must be the path of"),
        ({"image": 3}, "`dataset.image` must be a name or null, got 3"),
        ({"label": ""}, "`dataset.label` must be a name or null"),
        ({"train_split": None}, "`dataset.train_split` must be the name of a split"),
        ({"test_split": "train"}, "are both train: set dataset.test_split=null"),
        ({"channels": 4}, "dataset.channels"),
        ({"test_share": 2}, "`dataset.test_share` must satisfy"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HuggingFace(**{"root": "x", **options})


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder: `dataset.root` must be the folder"):
        HuggingFace(root=str(tmp_path / "none")).fingerprint()
    (tmp_path / "file.parquet").write_bytes(json.dumps({}).encode())
    with pytest.raises(DataError, match="not a folder"):
        HuggingFace(root=str(tmp_path / "file.parquet")).fingerprint()


def test_a_cell_on_parquet_files_gives_the_results_of_the_same_images(tmp_path: Path) -> None:
    cell = ("target=frog", "ratio=0.3", "trigger=pattern")
    expected = run_here(tmp_path / "a", tmp_path / "first", *cell)
    images = Synthetic(size=8, per_class_train=20, per_class_test=5, noise=12).limited()
    described = {"label": {"_type": "ClassLabel", "names": list(images.classes)}}
    for split in ("train", "test"):
        part = getattr(images, split)
        files = [value(image)["bytes"] for image in part.images]
        made = table(images=files, labels=part.labels.tolist())
        parquet(tmp_path / "set" / f"{split}.parquet", made=made, described=described)
    found = run_here(
        tmp_path / "b", tmp_path / "second", "dataset=huggingface",
        f"dataset.root={tmp_path / 'set'}", *cell, data=(),
    )  # fmt: skip
    assert found["status"] == "done"
    assert found["counts"]["n_train"] == 206
    for key in ("nat1", "asr1", "nat2", "asr2", "counts", "detection", "hashes"):
        assert found[key] == expected[key], key
