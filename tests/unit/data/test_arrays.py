"""Data sets in .npz files: layouts, array names, and malformed files."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.arrays import ArrayFile, channels_first
from tests.helpers.image_files import parts, saved


class Trap:
    """An object whose unpickling leaves a marker."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_channels_last_arrays_become_channels_first(tmp_path: Path) -> None:
    arrays = ArrayFile(root=saved(tmp_path)).read()
    assert arrays.train.images.shape == (6, 3, 5, 4)
    assert arrays.train.images[2, 1, 4, 3] == parts()["train_images"][2, 4, 3, 1]
    assert arrays.test.labels.tolist() == [0, 1, 2]
    assert arrays.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((2, 5, 6), "auto", (2, 1, 5, 6)),
        ((2, 5, 6, 1), "auto", (2, 1, 5, 6)),
        ((2, 3, 5, 6), "auto", (2, 3, 5, 6)),
        ((2, 3, 5, 1), "NHWC", (2, 1, 3, 5)),
        ((2, 3, 5, 1), "NCHW", (2, 3, 5, 1)),
    ],
)
def test_the_axis_order_of_an_array_is_detected(
    shape: tuple[int, ...], layout: str, expected: tuple[int, ...]
) -> None:
    assert channels_first(np.zeros(shape), layout, "x").shape == expected


@pytest.mark.parametrize(
    ("shape", "layout", "message"),
    [
        ((2, 3, 5, 1), "auto", "fits NHWC and NCHW"),
        ((2, 5, 6, 4), "auto", "1 or 3 channels"),
        ((2, 3, 5, 6), "NHWC", "1 or 3 channels"),
        ((2, 5), "auto", "3 or 4 axes"),
    ],
)
def test_an_array_with_an_ambiguous_or_impossible_axis_order_is_refused(
    shape: tuple[int, ...], layout: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        channels_first(np.zeros(shape), layout, "x")


def test_class_names_come_from_the_file_or_the_configuration(tmp_path: Path) -> None:
    path = saved(tmp_path, classes=np.array(["ä", "b", "c"]))
    assert ArrayFile(root=path).read().classes == ("ä", "b", "c")
    assert ArrayFile(root=path, classes=["x", "y", "z"]).read().classes == ("x", "y", "z")


def test_the_array_names_that_keras_uses_are_accepted(tmp_path: Path) -> None:
    other = dict(zip(("x_train", "y_train", "x_test", "y_test"), parts().values(), strict=True))
    np.savez(tmp_path / "k.npz", **other)
    assert len(ArrayFile(root=str(tmp_path / "k.npz")).read().train.labels) == 6


def test_the_fingerprint_of_an_array_file_depends_on_its_content_and_not_on_its_path(
    tmp_path: Path,
) -> None:
    (tmp_path / "far").mkdir()
    path, other = saved(tmp_path), saved(tmp_path / "far", "other.npz")
    Path(other).write_bytes(Path(path).read_bytes())
    print_of = ArrayFile(root=path).fingerprint()
    assert ArrayFile(root=other).fingerprint() == print_of
    assert ArrayFile(root=path, limit_train=1).fingerprint() != print_of
    saved(tmp_path, train_labels=np.array([0, 1, 2, 2, 1, 0]))
    assert ArrayFile(root=path).fingerprint() != print_of


def test_object_arrays_are_refused_without_unpickling(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    for key in ("train_images", "train_labels", "classes"):
        path = saved(tmp_path, **{key: np.array([Trap(marker)] * 6, object)})
        with pytest.raises(DataError, match="allow_pickle"):
            ArrayFile(root=path).read()
    (tmp_path / "raw.npz").write_bytes(b"cos\nmkdir\n(V" + os.fsencode(marker) + b"\ntR.")
    with pytest.raises(DataError, match="not a valid .npz file"):
        ArrayFile(root=str(tmp_path / "raw.npz")).read()
    assert not marker.exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = Path(path).read_bytes()
    for eighth in range(8):
        Path(path).write_bytes(whole[: len(whole) * eighth // 8])
        with pytest.raises(DataError, match="npz"):
            ArrayFile(root=path).read()


def test_flipped_bits_raise_an_error_or_leave_the_data_unchanged(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole, rng = Path(path).read_bytes(), np.random.default_rng(1)
    good = ArrayFile(root=path).read()
    for place in rng.integers(0, len(whole), 60):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        Path(path).write_bytes(broken)
        try:
            found = ArrayFile(root=path).read()
        except DataError:
            continue
        np.testing.assert_array_equal(found.train.images, good.train.images)
        np.testing.assert_array_equal(found.train.labels, good.train.labels)


def test_every_flipped_bit_in_an_array_is_detected(tmp_path: Path) -> None:
    path = saved(tmp_path)
    whole = Path(path).read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    assert len(members) == 4
    for member in members:
        # The name and the extra field of the local header come before the data.
        lengths = whole[member.header_offset + 26 : member.header_offset + 30]
        start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        for bit in range(8):
            broken = bytearray(whole)
            broken[start + member.compress_size // 2] ^= 1 << bit
            Path(path).write_bytes(broken)
            with pytest.raises(DataError):
                ArrayFile(root=path).read()


def test_an_array_missing_from_an_npz_file_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_images=np.zeros(3))
    with pytest.raises(DataError, match="no array `train_labels`"):
        ArrayFile(root=str(tmp_path / "a.npz")).read()
    with pytest.raises(DataError, match=r"expected an .npz file with train_images.*labels$"):
        ArrayFile(root=str(tmp_path / "b.npz")).fingerprint()
    with pytest.raises(DataError, match="1-D array of strings"):
        ArrayFile(root=saved(tmp_path, classes=np.zeros(3))).read()


@pytest.mark.parametrize(
    "parameters",
    [
        {"root": None},
        {"root": ""},
        {"root": "x.npz", "layout": "HWC"},
        {"root": "x.npz", "classes": [1, 2]},
        {"root": "x.npz", "name": "../x"},
        {"root": "x.npz", "limit_train": 0},
        {"root": "x.npz", "limit_test": 1.5},
    ],
)
def test_bad_parameters_are_refused_before_any_file_is_read(parameters: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ArrayFile(**parameters)
