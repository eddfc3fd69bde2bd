"""What a scan reads: every data set, with and without a test split, and what it refuses."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.instantiate import build
from backdoor_lab.data.base import Source
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.scan.configuration import composed
from backdoor_lab.scan.images import DRAWN, check_sizes, examined, judged, scan_images
from backdoor_lab.scan.reading import read_training_set
from tests.helpers.hub import parquet, table


def photos(root: Path, *, split: str = "", counts: dict[str, int] | None = None) -> Path:
    """Image files whose gray level is 100 * class + number, of two sizes."""
    for k, (name, count) in enumerate((counts or {"cat": 3, "dog": 2}).items()):
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            side = (8, 12)[i % 2]
            Image.new("RGB", (side, side), (100 * k + i,) * 3).save(folder / f"{i}.png")
    return root


def read(*given: str | Path, size: int = 8) -> object:
    config = composed(list(map(str, given)))
    return read_training_set(build("dataset", config["dataset"], Source), size)


def check(found: object, names: list[str]) -> None:
    assert found.classes == ("cat", "dog")
    assert found.labeled.labels.tolist() == [0, 0, 0, 1, 1]
    assert found.labeled.images.shape == (5, 3, 8, 8)
    assert found.labeled.images[:, 0, 0, 0].tolist() == [0, 1, 2, 100, 101]
    assert list(found.names) == names


def test_a_folder_of_classes_without_a_test_split_is_read_with_its_paths(tmp_path: Path) -> None:
    names = ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png"]
    check(read(photos(tmp_path / "a")), names)


def test_only_the_training_split_is_read_if_there_is_a_test_split(tmp_path: Path) -> None:
    root = photos(tmp_path / "a", split="train")
    names = [f"train/{n}" for n in ("cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png",
                                    "dog/1.png")]  # fmt: skip
    check(read(root), names)
    photos(root, split="test", counts={"cat": 1, "dog": 1})
    check(read(root), names)


def test_a_set_of_the_hugging_face_hub_is_read_with_its_paths_or_rows(tmp_path: Path) -> None:
    root = photos(tmp_path / "files", split="train")
    given = ("dataset=huggingface", f"dataset.root={tmp_path}/files")
    check(read(*given), [f"train/{n}/{i}.png" for n, i in (("cat", 0), ("cat", 1), ("cat", 2),
                                                           ("dog", 0), ("dog", 1))])  # fmt: skip
    files = sorted(root.rglob("*.png"))
    made = table(
        images=[path.read_bytes() for path in files], labels=[path.parent.name for path in files]
    )
    parquet(tmp_path / "set" / "train.parquet", made=made)
    names = [f"train.parquet, row {row}" for row in range(5)]
    check(read("dataset=huggingface", f"dataset.root={tmp_path}/set"), names)
    parquet(tmp_path / "set" / "test.parquet", made=made)
    check(read("dataset=huggingface", f"dataset.root={tmp_path}/set"), names)


def test_an_archive_is_read_like_the_folder_in_it(tmp_path: Path) -> None:
    root = photos(tmp_path / "a")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in root.rglob("*.png"):
            archive.write(path, path.relative_to(root))
    found = read(tmp_path / "a.zip")
    assert torch.equal(found.labeled.images, read(root).labeled.images)
    assert found.names[3] == "dog/0.png"


def test_a_list_of_paths_and_labels_is_read_in_its_order(tmp_path: Path) -> None:
    photos(tmp_path / "a")
    (tmp_path / "list.csv").write_text(
        "label,path,more\ndog,a/dog/1.png,x\ncat,a/cat/0.png,\ndog,a/dog/0.png,\n"
    )
    found = read(tmp_path / "list.csv")
    assert found.names == ("a/dog/1.png", "a/cat/0.png", "a/dog/0.png")
    assert found.labeled.labels.tolist() == [1, 0, 1]
    assert found.labeled.images[:, 0, 0, 0].tolist() == [101, 0, 100]
    limited = read("dataset=image_folder", f"dataset.root={tmp_path}/list.csv",
                   "dataset.limit_train=1")  # fmt: skip
    assert limited.names == ("a/dog/1.png", "a/cat/0.png")


@pytest.mark.parametrize("has_test", [False, True])
def test_an_npz_file_is_read_with_and_without_test_arrays(has_test: bool, tmp_path: Path) -> None:
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    arrays = {"x_train": images, "y_train": np.array([0, 1, 1, 0])}
    if has_test:
        arrays |= {"x_test": images[:2], "y_test": np.array([0, 1])}
    np.savez(tmp_path / "set.npz", **arrays)
    found = read(tmp_path / "set.npz")
    assert found.labeled.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert found.labeled.labels.tolist() == [0, 1, 1, 0]
    assert found.names == ("0", "1", "2", "3")
    assert read(tmp_path / "set.npz", size=16).labeled.shape == (3, 16, 16)


def test_a_data_set_of_this_package_is_read_without_its_test_images() -> None:
    found = read_training_set(Synthetic(per_class_train=3, per_class_test=2, size=8), 8)
    assert len(found) == 30
    expected = Synthetic(per_class_train=3, per_class_test=2, size=8).read().train
    assert np.array_equal(found.labeled.images.numpy(), expected.images)


def images_of(sizes: list[int]) -> object:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    images = np.zeros((len(labels), 1, 8, 8), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels)) % 256
    names = [str(i) for i in range(len(labels))]
    return scan_images(images, labels, [f"c{k}" for k in range(len(sizes))], names, "set")


def test_of_a_large_class_a_sample_drawn_by_the_seed_is_examined() -> None:
    found = images_of([600, 601, 40])
    where = examined(found, 0)
    part = found.part(where)
    assert part.sizes == [600, DRAWN, 40]
    assert where.tolist() == sorted(where.tolist())
    assert torch.equal(where, examined(found, 0))
    assert not torch.equal(where, examined(found, 1))
    assert part.names == tuple(str(i) for i in where.tolist())
    assert part.labeled.digest != found.labeled.digest


def test_small_classes_are_not_judged_and_two_large_ones_are_needed() -> None:
    assert judged(images_of([50, 49, 60])) == [0, 2]
    check_sizes(images_of([50, 50]))
    with pytest.raises(DataError, match=r"too few images: .* the largest class has 60"):
        check_sizes(images_of([60, 49]))


REFUSED_LISTS = {
    "path,label\na.png,\nb.png,x\n": "1 row without a path or a label, the first in line 2",
    "file,class\na.png,x\n": "expected the columns path and label, found file, class",
    "path,label\na.png,x\na.png,y\n": "1 path listed more than once: a.png",
    "path,label\nnone.png,x\nno.png,y\n": "2 files of the list not found",
    "": "expected the columns path and label, found no row",
}


@pytest.mark.parametrize("text", REFUSED_LISTS)
def test_an_invalid_list_is_refused_in_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=REFUSED_LISTS[text]):
        read(tmp_path / "list.csv")


def test_images_without_labels_and_single_classes_are_refused(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (8, 8)).save(flat / "a.png")
    with pytest.raises(DataError, match="A scan needs labeled images: <class>/<image>"):
        read(flat)
    with pytest.raises(DataError, match="at least two classes"):
        read(photos(tmp_path / "one", counts={"cat": 3}))
    with pytest.raises(DataError, match="needs at least two; got 1"):
        images_of([60])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give one training set"),
        (["a", "b"], "give one training set"),
        (["a", "dataset=synthetic"], "give one training set"),
        (["dataset=synthetic", "target=cat"], "target"),
        (["dataset=synthetic", "scan.netwroks=3"], "netwroks"),
        (["dataset=synthetic", "dataset.nonsense=3"], "nonsense"),
    ],
)
def test_a_wrong_command_line_is_refused(given: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        composed(given)


def test_options_of_a_scan_are_parsed_as_yaml() -> None:
    found = composed(["dataset=synthetic", "scan.networks=3", "scan.trusted='a b'", "seed=4"])
    assert found["scan"]["networks"] == 3
    assert found["scan"]["trusted"] == "a b"
    assert found["seed"] == 4
