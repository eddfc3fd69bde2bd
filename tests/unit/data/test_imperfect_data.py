"""Imperfect image data sets: unusual file extensions, rotated photographs, damaged files, no test
split."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdoor_lab import identity
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.data import cache, open_dataset
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.decode import decode
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.kinds import is_image
from backdoor_lab.data.torchvision_sets import Cifar10, Mnist
from tests.helpers.cells import run_here
from tests.helpers.image_files import encoded, filled, picture, reds, saved, tar, zipped
from tests.helpers.published import put

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
RED = Image.new("RGB", (4, 4), (200, 0, 0))


def content_of(root: Path) -> dict[str, bytes]:
    """The files below a folder, by relative path."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def forms(root: Path) -> list[Path]:
    """The same files as a folder, as a zip and as a tar."""
    files = content_of(root)
    return [root, zipped(root.parent / "set.zip", files), tar(root.parent / "set.tar", files)]


# --- what is an image


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.jfif", "JPEG"),
        ("x.jpe", "JPEG"),
        ("x.JPG_large", "JPEG"),
        ("x", "PNG"),
        ("x.avif", "AVIF"),
        ("x", "AVIF"),
        ("x.1", "GIF"),
        ("x.dat", "BMP"),
        ("x.pnm", "PPM"),
        ("x.dat", "PPM"),
        ("x.dat", "WEBP"),
        ("x.dat", "TIFF"),
    ],
)
def test_images_are_recognized_by_their_content_and_not_by_the_file_name(
    tmp_path: Path, name: str, kind: str
) -> None:
    root = filled(tmp_path / "set")
    (root / "train/cat" / name).write_bytes(encoded(RED, kind))
    for form in forms(root):
        source = ImageFolder(root=str(form))
        assert len(source.read().train.labels) == 5, form
        assert source.notes["not_used"]["files"] == []


@pytest.mark.parametrize(
    "data",
    [b"", b"text", b"BMW is a car, and this is text", b"P5", b"P1 is text", b"II", b"%PDF-1.7",
     b"RIFF\0\0\0\0WAVEfmt ", HEIC, b"<svg xmlns='x'/>"],
)  # fmt: skip
def test_non_image_files_are_not_recognized_as_images(data: bytes) -> None:
    assert not is_image(data)


def test_unused_files_are_counted_in_one_log_line_and_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = filled(tmp_path / "set")
    for name in ("a.heic", "b.HEIC", "labels.csv", "noending"):
        (root / "train/cat" / name).write_bytes(HEIC if "h" in name.lower() else b"x")
    (root / "test/labels.csv").write_text("x")
    (root / "README.md").write_text("beside the splits")
    (root / "train/cat/.hidden").write_text("x")
    expected = {
        "by_ending": {".csv": 2, ".heic": 2, "no ending": 1},
        "files": ["test/labels.csv", "train/cat/a.heic", "train/cat/b.HEIC",
                  "train/cat/labels.csv", "train/cat/noending"],
    }  # fmt: skip
    for form in forms(root):
        for _time in (1, 2):  # The second time, from the store.
            caplog.clear()
            cache._told.clear()
            with caplog.at_level(logging.WARNING):
                for _ in range(2):  # Logged once per process.
                    found = open_dataset(ImageFolder(root=str(form)), Store(tmp_path / "store"))
            assert found.notes["not_used"] == expected
            (line,) = [r.getMessage() for r in caplog.records if "ignored" in r.getMessage()]
            assert "ignored 5 files" in line
            assert "2 .csv, 2 .heic, 1 no ending" in line


def test_an_unused_file_is_reported_but_does_not_change_the_id(tmp_path: Path) -> None:
    root, store = filled(tmp_path / "set"), Store(tmp_path / "store")
    (root / "train/cat/notes.txt").write_text("x")
    before = ImageFolder(root=str(root)).fingerprint()
    assert open_dataset(ImageFolder(root=str(root)), store).notes["not_used"]["files"]
    (root / "train/cat/notes.txt").unlink()
    assert ImageFolder(root=str(root)).fingerprint() == before
    assert not open_dataset(ImageFolder(root=str(root)), store).notes["not_used"]["files"]


def test_an_image_outside_a_class_folder_is_refused_even_without_a_file_extension(
    tmp_path: Path,
) -> None:
    root = filled(tmp_path)
    (root / "train/x").write_bytes(encoded(RED))
    with pytest.raises(DataError, match="train/x is not directly in a folder train/<class>/"):
        ImageFolder(root=str(root)).read()


# --- damaged images


def damaged(root: Path) -> Path:
    filled(root)
    good = encoded(RED)
    (root / "train/cat/cut.png").write_bytes(good[: len(good) // 2])
    (root / "train/dog/empty.jpg").write_bytes(b"")
    (root / "train/dog/heic.jpg").write_bytes(HEIC)
    return root


def test_a_damaged_image_is_refused_by_default(tmp_path: Path) -> None:
    for form in forms(damaged(tmp_path / "set")):
        with pytest.raises(DataError, match=r"train/cat/cut\.png: not a valid image") as error:
            ImageFolder(root=str(form)).read()
        assert "(2 more such files so far); dataset.skip_broken=true" in str(error.value)


def test_the_skip_broken_option_skips_damaged_images_and_lists_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = damaged(tmp_path / "set")
    for form in forms(root):
        caplog.clear()
        cache._told.clear()
        source = ImageFolder(root=str(form), skip_broken=True)
        with caplog.at_level(logging.WARNING):
            found = open_dataset(source, Store(tmp_path / "store"))
        assert found.train.images[:, 0, 0, 0].tolist() == [30, 40, 10, 20]
        assert found.train.labels.tolist() == [0, 0, 1, 1]
        assert found.test.images[:, 0, 0, 0].tolist() == [60, 50]
        files = ["train/cat/cut.png", "train/dog/empty.jpg", "train/dog/heic.jpg"]
        assert found.notes["skipped"] == {"count": 3, "files": files}
        assert "skipped 3 damaged images" in caplog.text


def test_an_unreadable_file_counts_as_damaged(tmp_path: Path) -> None:
    root = filled(tmp_path)
    (root / "train/cat/9.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"9\.png: cannot be read"):
        ImageFolder(root=str(root)).read()
    assert len(ImageFolder(root=str(root), skip_broken=True).read().train.labels) == 4


def test_a_corrupt_zip_member_counts_as_damaged(tmp_path: Path) -> None:
    path = zipped(tmp_path / "set.zip", content_of(filled(tmp_path / "set")))
    data = bytearray(path.read_bytes())
    at = data.index(b"train/cat/0.png") + len(b"train/cat/0.png") + 30
    data[at] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train/cat/0\.png"):
        ImageFolder(root=str(path)).read()
    assert len(ImageFolder(root=str(path), skip_broken=True).read().train.labels) == 3


def test_a_data_set_of_only_damaged_images_is_refused(tmp_path: Path) -> None:
    root = filled(tmp_path)
    for path in root.rglob("*.png"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 6 images can be read"):
        ImageFolder(root=str(root), skip_broken=True).read()


def test_images_of_another_format_or_size_are_refused_and_not_skipped(tmp_path: Path) -> None:
    """Such images are intact, and skipping them would hide a mistake."""
    root = filled(tmp_path)
    picture(9, (7, 7)).save(root / "train/cat/9.png")
    with pytest.raises(DataError, match="must have the same size"):
        ImageFolder(root=str(root), skip_broken=True).read()
    Image.new("I;16", (4, 4)).save(root / "train/cat/9.png")
    with pytest.raises(DataError, match="not supported"):
        ImageFolder(root=str(root), skip_broken=True).read()


# --- orientation


def turned(orientation: int, kind: str) -> bytes:
    """An image with one bright corner, stored so that `orientation` puts it in the upper left."""
    upright = np.zeros((8, 16, 3), np.uint8)
    upright[:4, :4] = 255
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    options |= {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    return encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_photograph_is_applied(orientation: int, kind: str) -> None:
    pixels = decode(turned(orientation, kind), "x", 3, None)
    assert pixels.shape == (3, 8, 16)
    assert pixels[:, :4, :4].min() > 200
    assert pixels[:, 5:, :].max() < 60
    assert pixels[:, :, 5:].max() < 60


def test_invalid_exif_data_does_not_make_an_image_damaged() -> None:
    data = encoded(RED, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff garbage", quality=100)
    assert decode(data, "x", 3, None)[0].min() > 190


def test_only_image_folder_has_version_2_because_only_it_applies_exif_orientation(
    tmp_path: Path,
) -> None:
    assert identity.committed()["datasets"]["image_folder"]["version"] == 2
    assert identity.committed()["datasets"]["arrays"]["version"] == 1


# --- class names and folders


def test_nfc_and_nfd_spellings_of_a_name_are_one_class(tmp_path: Path) -> None:
    root = filled(tmp_path / "set")
    name = "Kätzchen"
    for split, form in (("train", "NFC"), ("test", "NFD")):
        (root / split / "cat").rename(root / split / unicodedata.normalize(form, name))
    for form_ in forms(root):
        arrays = ImageFolder(root=str(form_)).read()
        assert arrays.classes == (name, "dog")
        assert arrays.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("cached", [False, True])
def test_an_empty_class_folder_is_refused_even_with_a_cached_data_set(
    tmp_path: Path, cached: bool
) -> None:
    root, store = filled(tmp_path / "set"), Store(tmp_path / "store")
    if cached:
        open_dataset(ImageFolder(root=str(root)), store)
    (root / "train/empty").mkdir()
    with pytest.raises(DataError, match="1 of 3 have none in train/: empty"):
        open_dataset(ImageFolder(root=str(root)), store)


# --- no test split


def many(root: Path, prefix: str = "train/") -> Path:
    for name, count in (("cat", 10), ("dog", 5)):
        (root / prefix / name).mkdir(parents=True)
        for number in range(count):
            picture(10 * number).save(root / prefix / name / f"{number}.png")
    return root


@pytest.mark.parametrize("prefix", ["train/", "around/train/", "", "around/"])
def test_the_option_test_share_holds_out_the_same_share_of_every_class(
    tmp_path: Path, prefix: str
) -> None:
    root = many(tmp_path / "set", prefix)
    found = [ImageFolder(root=str(form), test_share=0.2).read() for form in forms(root)]
    for arrays in found:
        assert np.bincount(arrays.train.labels).tolist() == [8, 4]
        assert np.bincount(arrays.test.labels).tolist() == [2, 1]
        for label in (0, 1):
            both = (arrays.train, arrays.test)
            found_reds = [red for s in both for red in reds(s.images[s.labels == label])]
            assert sorted(found_reds) == [10 * n for n in range((10, 5)[label])]
        np.testing.assert_array_equal(arrays.test.images, found[0].test.images)


def test_the_test_split_of_a_class_depends_on_the_seed_but_not_on_the_other_classes(
    tmp_path: Path,
) -> None:
    root = many(tmp_path / "set")

    def cats(**changes: Any) -> list[int]:
        arrays = ImageFolder(root=str(root), test_share=0.3, **changes).read()
        return reds(arrays.test.images[arrays.test.labels == arrays.classes.index("cat")])

    first = cats()
    assert cats() == first
    assert any(cats(split_seed=seed) != first for seed in range(1, 5))
    (root / "train/ant").mkdir()
    for number in (1, 2):
        picture(number).save(root / f"train/ant/{number}.png")
    assert cats() == first


@pytest.mark.parametrize("prefix", ["train/", "", "around/"])
def test_the_error_for_a_data_set_without_test_images_suggests_holding_out_a_share(
    tmp_path: Path, prefix: str
) -> None:
    for form in forms(many(tmp_path / "set", prefix)):
        with pytest.raises(DataError, match=r"dataset\.test_share=0\.2"):
            ImageFolder(root=str(form)).read()


def test_the_test_share_option_is_refused_for_a_data_set_with_test_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this one has test images: remove"):
        ImageFolder(root=str(filled(tmp_path)), test_share=0.2).fingerprint()
    with pytest.raises(DataError, match="this one has test images: remove"):
        ArrayFile(root=saved(tmp_path), test_share=0.2).read()


def test_a_class_of_one_image_cannot_be_split(tmp_path: Path) -> None:
    root = many(tmp_path)
    (root / "train/one").mkdir()
    picture(1).save(root / "train/one/1.png")
    with pytest.raises(DataError, match="class one: .* at least two images per class, got 1"):
        ImageFolder(root=str(root), test_share=0.5).read()


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan"), "0.2", True])
@pytest.mark.parametrize("kind", [ImageFolder, ArrayFile])
def test_an_invalid_fraction_of_test_images_is_refused(
    share: Any, kind: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.test_share"):
        kind(root="x", test_share=share)


def test_the_test_share_option_works_for_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 4, 4, 3), np.uint8)
    labels = np.arange(30) % 3
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels)
    with pytest.raises(DataError, match=r"dataset\.test_share=0\.2"):
        ArrayFile(root=str(tmp_path / "a.npz")).read()
    found = ArrayFile(root=str(tmp_path / "a.npz"), test_share=0.2).read()
    assert np.bincount(found.train.labels).tolist() == [8, 8, 8]
    assert np.bincount(found.test.labels).tolist() == [2, 2, 2]
    both = np.concatenate([found.train.images, found.test.images])
    assert {each.tobytes() for each in both} == {
        np.ascontiguousarray(each.transpose(2, 0, 1)).tobytes() for each in images
    }


# --- arrays: size


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_are_resized_like_image_files(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 9, 7, channels), np.uint8)
    changed = {"train_images": images, "test_images": images, "train_labels": [0, 1]}
    path = saved(tmp_path, **changed, test_labels=[0, 1])
    found = ArrayFile(root=path, size=4).read()
    as_file = encoded(Image.fromarray(images[1].squeeze()))
    np.testing.assert_array_equal(found.train.images[1], decode(as_file, "x", channels, 4))
    assert ArrayFile(root=path, size=4).fingerprint() != ArrayFile(root=path).fingerprint()
    with pytest.raises(ConfigError, match=r"dataset\.size"):
        ArrayFile(root=path, size=0)


# --- official files in any folder


def test_the_folder_of_an_unpacked_archive_can_be_the_root(cifar: Path) -> None:
    Cifar10(root=str(cifar), download=False).read()
    (cifar / "cifar-10-python.tar.gz").unlink()
    unpacked = cifar / "cifar-10-batches-py"
    renamed = cifar / "my copy"
    for root in (unpacked, renamed):
        if root == renamed:
            unpacked.rename(renamed)
        before = content_of(root)
        assert len(Cifar10(root=str(root), download=True).read().train.labels) == 20
        assert content_of(root) == before


def test_an_unpacked_folder_with_a_wrong_hash_is_refused_and_not_downloaded(
    cifar: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Cifar10(root=str(cifar), download=False).read()
    root = cifar / "cifar-10-batches-py"
    (root / "data_batch_1").write_bytes(b"another")
    monkeypatch.setattr("torchvision.datasets.utils.download_url", lambda *_: pytest.fail("asked"))
    with pytest.raises(DataError, match="data_batch_1 is missing or has an unexpected MD5 hash"):
        Cifar10(root=str(root), download=True).read()


def test_the_option_root_may_be_the_path_of_an_official_archive(cifar: Path) -> None:
    source = Cifar10(root=str(cifar / "cifar-10-python.tar.gz"), download=False)
    assert len(source.read().train.labels) == 20


def test_files_are_found_without_the_folder_structure_of_torchvision(
    tmp_path: Path,
    mnist: dict[str, bytes],
) -> None:
    put(tmp_path, {name.rpartition("/")[2]: data for name, data in mnist.items()})
    assert len(Mnist(root=str(tmp_path), download=False).read().train.labels) == 20


# --- identity and record


def test_newer_options_that_are_not_set_do_not_change_the_id_of_a_data_set(tmp_path: Path) -> None:
    """Data sets from an older version keep their identity."""
    path = saved(tmp_path)
    source = ArrayFile(root=path)
    assert source.identity().keys() == {"file", "layout", "classes"}
    assert ImageFolder(root=str(filled(tmp_path / "set"))).identity().keys() == {
        "files", "classes", "size", "channels",
    }  # fmt: skip


def test_the_record_lists_unused_and_skipped_files(tmp_path: Path) -> None:
    root = many(tmp_path / "set")
    for name in ("cat", "dog"):
        (root / "train" / name / "x.heic").write_bytes(HEIC)
        (root / "train" / name / "cut.png").write_bytes(b"\x89PNG")
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "dataset=image_folder", f"dataset.root={root}",
        "dataset.size=8", "dataset.skip_broken=true", "dataset.test_share=0.4", "target=cat",
        "ratio=0.5", data=(),
    )  # fmt: skip
    assert record["status"] == "done"
    assert record["dataset"] == {
        "_target_": "backdoor_lab.data.image_folder.ImageFolder", "name": None, "channels": 3,
        "size": 8, "resize": None, "limit_train": None, "limit_test": None,
        "skip_broken": True, "test_share": 0.4,
        "not_used": {
            "by_ending": {".heic": 2}, "files": ["train/cat/x.heic", "train/dog/x.heic"],
        },
        "skipped": {"count": 2, "files": ["train/cat/cut.png", "train/dog/cut.png"]},
    }  # fmt: skip
