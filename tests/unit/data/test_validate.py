"""Rows 7, 9 and 12 of the fault table: which pixels and labels are accepted, and how others are
refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.base import Arrays, Split, first_per_class, name_from
from backdoor_lab.data.validate import byte_images, checked, whole_labels
from backdoor_lab.data.workspace import Workspace

SHAPE = (3, 2, 2, 1)
QUICK = settings(max_examples=40, deadline=None)
BAD_FLOATS = st.one_of(
    st.just(float("nan")),
    st.just(float("inf")),
    st.just(float("-inf")),
    st.floats(max_value=-0.001, allow_nan=False),
    st.floats(min_value=255.001, allow_nan=False),
    st.integers(0, 254).map(lambda whole: whole + 0.5),
)


def split(per_class: int = 2, classes: int = 2, shape: tuple[int, ...] = (3, 4, 4)) -> Split:
    labels = np.tile(np.arange(classes), per_class)
    return Split(np.zeros((len(labels), *shape), np.uint8), labels)


def arrays(train: Split | None = None, test: Split | None = None, names: str = "ab") -> Arrays:
    return Arrays(train or split(), test or split(), tuple(names))


@QUICK
@given(BAD_FLOATS, st.integers(0, 11), st.sampled_from([np.float32, np.float64]))
def test_the_error_for_an_invalid_pixel_value_names_its_index(
    bad: float, place: int, dtype: type
) -> None:
    images = np.full(SHAPE, 7, dtype)
    with np.errstate(over="ignore"):
        images.flat[place] = bad
    index = ", ".join(str(int(i)) for i in np.unravel_index(place, SHAPE))
    with pytest.raises(DataError, match="1 of 12") as caught:
        byte_images(images, "here")
    assert f"[{index}]" in str(caught.value)


@QUICK
@given(hnp.arrays(st.sampled_from([np.int16, np.int64, np.uint16]), SHAPE))
def test_integer_pixels_are_kept_exactly_or_refused(images: np.ndarray) -> None:
    if ((images < 0) | (images > 255)).any():
        with pytest.raises(DataError, match=r"whole numbers from 0 to 255"):
            byte_images(images, "here")
    else:
        np.testing.assert_array_equal(byte_images(images, "here"), images)


@QUICK
@given(hnp.arrays(np.uint8, SHAPE))
def test_float_pixels_with_whole_values_are_converted_exactly(images: np.ndarray) -> None:
    images.flat[0] = 200
    for dtype in (np.float16, np.float32, np.float64):
        result = byte_images(images.astype(dtype), "here")
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, images)


def test_float_images_without_a_value_above_1_are_refused_as_probably_rescaled() -> None:
    with pytest.raises(DataError, match=r"scaled to 0..1"):
        byte_images(np.ones(SHAPE, np.float32), "here")


@pytest.mark.parametrize("dtype", [bool, complex, object, "U3", "datetime64[s]"])
def test_boolean_complex_and_non_numeric_arrays_are_refused(dtype: Any) -> None:
    with pytest.raises(DataError, match="got"):
        byte_images(np.zeros(SHAPE, dtype), "here")
    with pytest.raises(DataError, match="got"):
        whole_labels(np.zeros(3, dtype), "here")


@pytest.mark.parametrize("bad", [-1, 0.5, np.nan, np.inf, 2**40])
def test_negative_fractional_non_finite_and_too_large_labels_are_refused(bad: float) -> None:
    with pytest.raises(DataError, match=r"at index \[2\]; 1 of 4"):
        whole_labels(np.array([0, 1, bad, 1]), "here")


def test_labels_in_a_column_are_flattened() -> None:
    assert whole_labels(np.array([[0], [1]], np.uint8), "here").tolist() == [0, 1]
    with pytest.raises(DataError, match="shape"):
        whole_labels(np.zeros((2, 2)), "here")


def test_valid_data_becomes_contiguous_with_int64_labels() -> None:
    images = np.zeros((4, 4, 4, 3), np.uint8).transpose(0, 3, 1, 2)
    result = checked(arrays(Split(images, np.array([0, 1, 0, 1], np.uint8))), "here")
    assert result.train.images.flags.c_contiguous
    assert result.train.labels.dtype == np.int64


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (arrays(split(classes=1)), "have none: b"),
        (arrays(test=split(classes=1)), "test: every class needs images; 1 of 2"),
        (arrays(split(classes=3)), r"below 2 \(classes\), got 2 at index \[2\]; 2 of 6"),
        (arrays(split(classes=1), split(classes=1), "a"), "at least 2 classes"),
        (arrays(split(shape=(2, 4, 4))), "C = 1 or 3"),
        (arrays(split(shape=(3, 0, 4))), "no empty axis"),
        (arrays(split(shape=(3, 4, 5))), "the same shape"),
        (arrays(split(shape=(1, 4, 4))), "the same shape"),
        (arrays(split(per_class=0)), "no empty axis"),
        (arrays(Split(split().images, np.array([0, 1]))), "4 images but 2 labels"),
        (arrays(Split(split().images / 2, split().labels)), "must be uint8"),
        (arrays(names="aa"), "two classes are named 'a'"),
        (arrays(names="a "), "printable name"),
        (arrays(names="a\n"), "printable name"),
    ],
    ids=["no training image of a class", "no test image of a class", "label without a class",
         "one class", "two channels", "no rows", "unequal widths", "unequal channels",
         "no image", "fewer labels than images", "float images", "two classes of one name",
         "class named by a space", "class named by a line break"],
)  # fmt: skip
def test_invalid_data_sets_are_refused_with_the_reason(bad: Arrays, message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked(bad, "here")


@QUICK
@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5))
def test_an_image_limit_keeps_the_first_images_of_every_class_in_order(
    labels: list[int], limit: int
) -> None:
    numbers = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1)
    kept = first_per_class(Split(numbers, np.array(labels)), limit, Workspace()).images
    expected = [i for i, label in enumerate(labels) if labels[:i].count(label) < limit]
    assert kept.ravel().tolist() == expected


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("x/cifar10-jpeg.tar.xz", "cifar10-jpeg"),
        ("x/My Data/", "my-data"),
        ("a.TGZ", "a"),
        ("signs.v2.zip", "signs.v2"),
        ("../..", "images"),
        ("Füße", "f-e"),
        ("$(rm -rf).npz", "rm--rf"),
    ],
)
def test_data_set_names_derived_from_paths_are_safe(path: str, name: str) -> None:
    assert name_from(path) == name
