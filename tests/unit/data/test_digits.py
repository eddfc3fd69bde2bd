"""Handwritten digits: content, split, and a whole cell on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.data import digits, open_dataset, overlap
from backdoor_lab.data.digits import Digits
from tests.helpers.cells import run_here


def test_images_are_the_digits_of_scikit_learn_with_level_16_scaled_to_255() -> None:
    arrays, whole = Digits().read(), sklearn.datasets.load_digits()
    images = np.concatenate([arrays.train.images, arrays.test.images])
    labels = np.concatenate([arrays.train.labels, arrays.test.labels])
    assert images.shape == (1797, 1, 8, 8)
    assert np.unique(images).tolist() == [round(level * 255 / 16) for level in range(17)]
    ours = {(row.tobytes(), int(label)) for row, label in zip(images, labels, strict=True)}
    theirs = np.rint(whole.images * 255 / 16).astype(np.uint8)
    assert ours == {(row.tobytes(), int(y)) for row, y in zip(theirs, whole.target, strict=True)}
    assert arrays.classes == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def test_the_test_set_contains_a_fixed_third_of_the_images_of_each_digit() -> None:
    arrays = Digits().read()
    train, test = np.bincount(arrays.train.labels), np.bincount(arrays.test.labels)
    assert train.tolist() == [119, 121, 118, 122, 121, 121, 121, 119, 116, 120]
    assert test.tolist() == [59, 61, 59, 61, 60, 61, 60, 60, 58, 60]
    np.testing.assert_array_equal(arrays.test.images, Digits().read().test.images)
    # Pins the selection: another one would be another data set under the same name.
    assert arrays.test.labels[:12].tolist() == [1, 3, 5, 6, 0, 2, 5, 9, 5, 7, 2, 2]
    assert int(arrays.test.images.sum()) == 3007946


def test_digit_images_can_be_enlarged_but_not_reduced(tmp_path: Path) -> None:
    small, large = Digits(), Digits(size=28)
    images = large.read().train.images
    assert images.shape == (1198, 1, 28, 28)
    # Bilinear enlargement keeps the mean brightness up to rounding.
    assert abs(images.mean() - small.read().train.images.mean()) < 2
    assert small.fingerprint() == Digits(size=8).fingerprint() != large.fingerprint()
    with pytest.raises(ConfigError, match=r"`dataset.size` must satisfy 8 <= dataset.size"):
        Digits(size=7)
    dataset = open_dataset(Digits(size=9), Store(tmp_path))
    assert dataset.train.shape == (1, 9, 9)
    assert overlap(dataset) == 0


def test_modified_digits_data_in_scikit_learn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = sklearn.datasets.load_digits()
    found.target[0] = 1 - found.target[0]
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: found)
    with pytest.raises(DataError, match="are not the known 1,797 images"):
        Digits().read()


def test_missing_digits_data_in_scikit_learn_raises_a_clear_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing() -> Any:
        raise FileNotFoundError("digits.csv.gz")

    monkeypatch.setattr(sklearn.datasets, "load_digits", missing)
    with pytest.raises(DataError, match=r"cannot read .*: digits.csv.gz.*Reinstall scikit-learn"):
        Digits().read()


def test_the_fingerprint_is_computed_without_reading_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digits, "_digits", lambda: pytest.fail("was read"))
    assert len(Digits().fingerprint()) == 64


def test_a_cell_on_digits_learns_the_backdoor_and_the_filter_finds_poison(
    tmp_path: Path,
) -> None:
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "trigger=pattern", "target=7", "model.width=16",
        "recipe=quick", "recipe.epochs=12", "recipe.lr=0.1", "recipe.weight_decay=6e-3",
        data=("dataset=digits",),
    )  # fmt: skip
    assert record["status"] == "done"
    assert record["choices"]["dataset"] == "digits"
    assert record["choices"]["target"] == "7"
    counts = record["counts"]
    # 0.3 of the class's 119 training images are poisoned, and 1.5 times as many are removed.
    assert (counts["n_poisoned"], counts["n_removed"]) == (36, 54)
    assert record["nat1"] > 0.9
    assert record["nat2"] > 0.9
    # Without the trigger the same test images are rarely classified as a 7.
    assert record["asr1"] > 0.8
    assert record["clean_rate1"] < 0.1
    # By chance the AUROC would be 0.5, and 23 poisoned images would be left.
    assert record["detection"]["auroc"] > 0.7
    assert counts["pois_left"] < 18
