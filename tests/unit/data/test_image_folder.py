"""Image folders: layouts, image modes, sizes, broken files."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.decode import decode
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.validate import checked
from tests.helpers.image_files import encoded, filled, picture, reds


def test_classes_and_images_are_sorted_by_name(tmp_path: Path) -> None:
    arrays = ImageFolder(root=str(filled(tmp_path))).read()
    assert arrays.classes == ("cat", "dog")
    assert reds(arrays.train.images) == [30, 40, 10, 20]
    assert arrays.train.labels.tolist() == [0, 0, 1, 1]
    assert reds(arrays.test.images) == [60, 50]
    assert arrays.train.images.shape == (4, 3, 4, 4)


def test_the_order_of_directory_entries_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ImageFolder(root=str(filled(tmp_path)))
    expected, fingerprint = source.read().train.images, source.fingerprint()
    real = os.scandir

    class Shuffled(list):  # type: ignore[type-arg]
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def scandir(path: Any) -> Any:
        entries = Shuffled(real(path))
        random.shuffle(entries)
        return entries

    monkeypatch.setattr(os, "scandir", scandir)
    for _ in range(5):
        np.testing.assert_array_equal(source.read().train.images, expected)
        assert source.fingerprint() == fingerprint


def test_an_enclosing_folder_and_a_test_folder_named_val_are_accepted(tmp_path: Path) -> None:
    filled(tmp_path / "around", ("train", "val"))
    assert len(ImageFolder(root=str(tmp_path)).read().test.labels) == 2


def test_hidden_files_and_files_that_are_not_images_are_ignored(tmp_path: Path) -> None:
    root = filled(tmp_path)
    (root / "README.md").write_text("x")
    (root / "logo.png").write_text("not in a split")
    (root / "train" / "labels.csv").write_text("x")
    (root / "train" / "cat" / "._0.png").write_text("not an image")
    (root / "train" / "cat" / "Thumbs.db").write_text("x")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "__MACOSX" / "train" / "cat").mkdir(parents=True)
    (root / "__MACOSX" / "train" / "cat" / "0.png").write_text("x")
    assert len(ImageFolder(root=str(root)).read().train.labels) == 4


def test_unicode_class_names_are_accepted(tmp_path: Path) -> None:
    root = filled(tmp_path)
    for split in ("train", "test"):
        (root / split / "dog").rename(root / split / "犬 ü")
    assert checked(ImageFolder(root=str(root)).read(), "here").classes == ("cat", "犬 ü")


def test_an_image_limit_keeps_the_first_images_by_name(tmp_path: Path) -> None:
    source = ImageFolder(root=str(filled(tmp_path)), limit_train=1)
    assert reds(source.limited().train.images) == [30, 10]
    assert source.fingerprint() != ImageFolder(root=str(tmp_path)).fingerprint()


def test_fingerprint_changes_with_a_file_but_not_with_the_path_of_the_folder(
    tmp_path: Path,
) -> None:
    root = filled(tmp_path / "here")
    before = ImageFolder(root=str(root)).fingerprint()
    root = root.rename(tmp_path / "there")
    assert ImageFolder(root=str(root)).fingerprint() == before
    (root / "README.md").write_text("is not read")
    assert ImageFolder(root=str(root)).fingerprint() == before
    picture(99).save(root / "train" / "cat" / "0.png")
    assert ImageFolder(root=str(root)).fingerprint() != before


def test_images_of_different_sizes_are_refused_unless_they_are_resized(tmp_path: Path) -> None:
    root = filled(tmp_path)
    picture(7, (6, 5)).save(root / "train" / "dog" / "9.png")
    with pytest.raises(DataError, match=r"4 x 4, train/dog/9.png has 5 x 6 .*dataset.size=4"):
        ImageFolder(root=str(root)).read()
    assert ImageFolder(root=str(root), size=3).read().train.images.shape == (5, 3, 3, 3)


def test_resizing_an_image_applies_antialiasing() -> None:
    stripes = np.zeros((32, 32), np.uint8)
    stripes[:, ::2] = 255
    small = decode(encoded(Image.fromarray(stripes)), "x", 1, 8)
    assert abs(int(small.min()) - 128) < 20
    assert abs(int(small.max()) - 128) < 20


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_white_stays_white_in_every_image_mode(
    mode: str, channels: int, size: tuple[int, int]
) -> None:
    white = Image.new("RGB", size, "white").convert(mode)
    pixels = decode(encoded(white), "x", channels, None)
    assert pixels.shape == (channels, size[1], size[0])
    assert (pixels == 255).all()


def test_transparent_images_are_composited_on_black() -> None:
    half = encoded(Image.new("RGBA", (2, 2), (200, 100, 0, 128)))
    assert decode(half, "x", 3, None)[:, 0, 0].tolist() == [100, 50, 0]
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 255, 255] * 256)
    assert not decode(encoded(palette, transparency=0), "x", 3, None).any()
    keyed = encoded(Image.new("RGB", (2, 2), (9, 9, 9)), transparency=(9, 9, 9))
    assert not decode(keyed, "x", 3, None).any()


def test_color_images_are_converted_to_luma() -> None:
    red = encoded(Image.new("RGB", (2, 2), (255, 0, 0)))
    assert decode(red, "x", 1, None)[0, 0, 0] == round(0.299 * 255)


def sixteen_bit_rgb_png() -> bytes:
    """A 1 x 1 PNG with 16 bits per channel, which Pillow would silently reduce to 8."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" + bytes(6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.new("I;16", (2, 2))),
        encoded(Image.new("F", (2, 2)), "TIFF"),
        encoded(Image.new("LAB", (2, 2)), "TIFF"),
        b"P6 1 1 65535\n" + bytes(6),
        sixteen_bit_rgb_png(),
    ],
)
def test_images_with_more_than_8_bits_are_refused_and_named_in_the_error(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^some/file: .* is not supported"):
        decode(data, "some/file", 3, None)


def test_image_formats_that_start_external_programs_are_refused() -> None:
    with pytest.raises(DataError, match="not a valid image"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "x", 3, None)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF"])
def test_broken_images_are_refused_and_named_in_the_error(tmp_path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), kind)
    root = filled(tmp_path)
    path = root / "train" / "dog" / "1.png"
    for part in (b"", whole[:10], whole[: len(whole) // 2]):
        path.write_bytes(part)
        with pytest.raises(DataError, match=r"train/dog/1.png: not a valid image"):
            ImageFolder(root=str(root), size=4).read()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_flipped_bits_give_an_image_or_an_error_with_the_file_name(kind: str) -> None:
    rng = np.random.default_rng(2)
    whole = encoded(Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)), kind)
    errors = []
    for place in rng.integers(0, min(len(whole), 200), 60):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        try:
            assert decode(bytes(broken), "some/file", 3, 8).shape == (3, 8, 8)
        except DataError as error:
            errors.append(str(error))
    assert all(message.startswith("some/file: ") for message in errors)


def test_every_flipped_bit_in_the_pixels_of_a_png_is_detected() -> None:
    """Of the image formats that are read, only PNG has a checksum."""
    noise = np.random.default_rng(2).integers(0, 256, (8, 8, 3), np.uint8)
    whole = encoded(Image.fromarray(noise), "PNG")
    start = whole.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", whole[start - 8 : start - 4])
    # Some bits of the third byte have no meaning.
    for place in range(start + 3, start + length):
        for bit in range(8):
            broken = bytearray(whole)
            broken[place] ^= 1 << bit
            with pytest.raises(DataError, match="^some/file: "):
                decode(bytes(broken), "some/file", 3, 8)


def test_a_broken_link_raises_an_error_and_is_not_skipped(tmp_path: Path) -> None:
    root = filled(tmp_path)
    (root / "train" / "dog" / "1.png").unlink()
    (root / "train" / "dog" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"train/dog/1\.png: cannot be read"):
        checked(ImageFolder(root=str(root)).read(), "here")


def test_images_in_nested_folders_are_refused_not_ignored(tmp_path: Path) -> None:
    root = filled(tmp_path)
    deep = root / "train" / "dog" / "a" / "b" / "c" / "d" / "e"
    deep.mkdir(parents=True)
    picture(1).save(deep / "1.png")
    with pytest.raises(
        DataError, match=r"a/b/c/d/e/1\.png is not directly in a folder train/<class>/"
    ):
        ImageFolder(root=str(root)).fingerprint()
    (root / "other" / "/".join("x" * 20)).mkdir(parents=True)
    with pytest.raises(DataError, match="more than 16 levels deep"):
        ImageFolder(root=str(root)).fingerprint()


def test_circular_links_are_not_followed_forever(tmp_path: Path) -> None:
    root = filled(tmp_path)
    before = ImageFolder(root=str(root)).read()
    (root / "train" / "dog" / "again").symlink_to(root)
    after = ImageFolder(root=str(root)).read()
    assert len(after.train.labels) == len(before.train.labels)


def test_a_bitmap_with_16_bits_per_pixel_is_decoded(tmp_path: Path) -> None:
    """Red, green and blue have 5, 6 and 5 bits. One pixel decodes to 255, 0, 255."""
    import struct

    masks = struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0) + masks
    data = struct.pack("<2sIHHI", b"BM", 70, 0, 0, 66) + header + struct.pack("<HH", 0xF81F, 0)
    assert decode(data, "x", 3, None)[:, 0, 0].tolist() == [255, 0, 255]


def zipped(folder: Path) -> Path:
    """A copy of a folder as an archive next to it."""
    return Path(shutil.make_archive(str(folder), "zip", folder))


@pytest.mark.parametrize("archive", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["train/cat", "test/cat"],
         "at least two classes are needed, as folders in train/ and test/; found cat"),
        (["x/train/cat", "x/val/cat"], "as folders in x/train/ and x/val/; found cat"),
        (["train/cat", "train/dog", "test/cat"], "1 of 2 have none in test/: dog. Add images or"),
        (["train/cat", "test/cat", "test/dog"], "1 of 2 have none in train/: dog. Add images or"),
        (["train/cat", "train/dog", "test/cat", "test/dogs"],
         "every class needs images in train/ and test/; 1 of 3 have none in train/: dogs; 1 of 3"
         " have none in test/: dog. Add images or remove these classes"),
        ([*(f"train/c{n:02}" for n in range(13)), "test/c00"],
         "12 of 13 have none in test/: c01, c02, c03, c04, c05, c06, c07, c08, c09, c10 and 2"),
    ],
    ids=["one class", "one class, enclosed", "not in test", "not in train", "spelled differently",
         "many"],
)  # fmt: skip
def test_too_few_classes_and_classes_missing_from_train_or_test_are_refused_before_decoding(
    tmp_path: Path, paths: list[str], said: str, archive: bool
) -> None:
    for path in paths:
        (tmp_path / "set" / path).mkdir(parents=True)
        picture(1).save(tmp_path / "set" / path / "0.png")
    root = zipped(tmp_path / "set") if archive else tmp_path / "set"
    for use in (ImageFolder.known_classes, ImageFolder.read):
        with pytest.raises(DataError, match=re.escape(said)) as found:
            use(ImageFolder(root=str(root)))
        assert str(found.value).startswith(f"{root}: ")


def test_a_train_folder_with_one_class_and_no_test_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    for number in range(3):
        picture(1).save(tmp_path / "train" / "cat" / f"{number}.png")
    with pytest.raises(DataError, match=r"as folders in train/; found cat$"):
        ImageFolder(root=str(tmp_path), test_share=0.5).known_classes()


def test_empty_class_folders_are_refused_and_named_in_the_error(tmp_path: Path) -> None:
    root = filled(tmp_path)
    (root / "train" / "bird").mkdir()
    with pytest.raises(DataError, match=r"1 of 3 have none in train/: bird; 1 of 3.* test/: bird"):
        ImageFolder(root=str(root)).known_classes()
    picture(1).save(root / "train" / "bird" / "0.png")
    with pytest.raises(DataError, match=r"train/ and test/; 1 of 3 have none in test/: bird"):
        ImageFolder(root=str(root)).known_classes()


def test_an_archive_member_with_a_backslash_in_its_name_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "old.zip", "w") as archive:
        archive.writestr("train/cat/1.png", encoded(picture(1)))
    data = (tmp_path / "old.zip").read_bytes().replace(b"train/cat/", b"train\\cat\\")
    (tmp_path / "old.zip").write_bytes(data)
    with pytest.raises(DataError, match="backslash in its name: use / between folders"):
        ImageFolder(root=str(tmp_path / "old.zip")).read()


def test_a_missing_folder_is_refused_with_both_layouts_and_similar_names(tmp_path: Path) -> None:
    for name in ("photos", "photos2", "music"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError) as refused:
        ImageFolder(root=str(tmp_path / "photo")).fingerprint()
    assert str(refused.value) == (
        f"{tmp_path / 'photo'}: no such folder or archive (did you mean"
        f" {str(tmp_path / 'photos')!r} or {str(tmp_path / 'photos2')!r}?): `dataset.root` must"
        " contain train/<class>/<image> and test/<class>/<image>, or <class>/<image> with"
        " dataset.test_share=0.2"
    )
    with pytest.raises(DataError, match="archive: `dataset.root` must contain train/"):
        ImageFolder(root=str(tmp_path / "nowhere" / "photo")).fingerprint()


def test_unknown_folder_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected train/.* or <class>/.*; found no image file"):
        ImageFolder(root=str(tmp_path)).fingerprint()
    root = filled(tmp_path, ("train", "testing"))
    with pytest.raises(DataError, match=r"test/ or val/ or valid/<class>/<image>, found testing"):
        ImageFolder(root=str(root)).fingerprint()
    (root / "testing").rename(root / "test")
    picture(1).save(root / "train" / "loose.png")
    with pytest.raises(
        DataError, match=r"train/loose.png is not directly in a folder train/<class>/"
    ):
        ImageFolder(root=str(root)).fingerprint()


def test_the_error_for_a_missing_root_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*train/<class>/.*test_share"):
        ImageFolder(root=str(tmp_path / "none")).fingerprint()
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(DataError, match=r"neither a folder nor a supported archive \(\.tar"):
        ImageFolder(root=str(tmp_path / "x.rar")).fingerprint()


@pytest.mark.parametrize(
    "parameters",
    [{}, {"root": "x", "size": 0}, {"root": "x", "channels": 4}, {"root": "x", "name": "A b"}],
)
def test_bad_parameters_are_refused_before_any_file_is_read(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ImageFolder(**parameters)


def test_a_folder_of_only_one_class_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "photos/cat/a.png")
    with pytest.raises(DataError, match=r"its only folder, cat/ \(at least two classes are needed"):
        ImageFolder(root=str(tmp_path / "photos"), test_share=0.2).read()
