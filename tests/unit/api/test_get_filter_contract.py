"""The contract of `get_filter` for every filter on features."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone

import backdoor_lab as bl

Array = NDArray[Any]
FILTERS = bl.list_methods("filters")
ON_FEATURES = [name for name in FILTERS if "images" not in bl.get_filter(name).requires]
D = 5
BRIEF: dict[str, dict[str, Any]] = {"isolation_forest": {"n_estimators": 10}}
AMOUNT = 1e-9
"""Tolerance of scores, relative to the largest score: sums over rows depend on their order."""


@pytest.fixture(params=ON_FEATURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def clean(d: int = D) -> tuple[Array, Array]:
    """Features of 60 clean images of three classes."""
    return np.random.default_rng(9).normal(size=(60, d)).astype(np.float32), np.arange(60) % 3


def planted(n: int = 90, d: int = D) -> tuple[Array, Array]:
    """Features of n images of three classes. Six images of class 1 are shifted."""
    features = np.random.default_rng(1).normal(size=(n, d)).astype(np.float32)
    labels = np.arange(n) % 3
    features[np.flatnonzero(labels == 1)[:6]] += 8
    return features, labels


def fitted(name: str, features: Any, labels: Any, **options: Any) -> Any:
    """The filter, fitted to all classes with a budget that is a share of the class."""
    given = {"filter_scope": "all", "removal_budget": "10%"} | BRIEF.get(name, {}) | options
    held = clean(features.shape[1])
    return bl.get_filter(name, **given).fit(features, labels, clean=held, target=1, n_poisoned=6)


def assert_alike(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(
        found, expected, rtol=AMOUNT, atol=AMOUNT * float(np.nanmax(np.abs(expected)))
    )


def test_thirteen_filters_need_neither_model_nor_images() -> None:
    assert len(ON_FEATURES) == 13
    assert {"spectral", "scan", "spectre", "activation_clustering", "knn"} <= set(ON_FEATURES)


def test_the_result_has_a_score_and_a_decision_for_every_row(name: str) -> None:
    features, labels = planted()
    made = fitted(name, features, labels, filter_scope="target", removal_budget="1.5eps")
    examined = labels == 1
    assert (made.scores_.dtype, made.scores_.shape) == (np.float64, (90,))
    assert (made.keep_.dtype, made.keep_.shape) == (np.bool_, (90,))
    assert np.isfinite(made.scores_[examined]).all()
    assert np.isnan(made.scores_[~examined]).all()
    assert made.keep_[~examined].all()
    assert int((~made.keep_).sum()) == 9
    assert made.scores_[examined][made.keep_[examined]].max() <= made.scores_[~made.keep_].min()
    assert made.flagged_classes_ == [1]
    assert made.notes_["classes"] == ["1"]


def test_permuted_rows_have_permuted_scores(name: str) -> None:
    features, labels = planted()
    order = np.random.default_rng(4).permutation(len(labels))
    plain, permuted = (
        fitted(name, features, labels).scores_,
        fitted(name, features[order], labels[order]).scores_,
    )
    assert_alike(permuted, plain[order])


def test_a_copied_row_has_the_score_of_the_original(name: str) -> None:
    features, labels = planted()
    chosen = [0, 1, 4, 50]
    made = fitted(
        name, np.concatenate([features, features[chosen]]), np.append(labels, labels[chosen])
    )
    assert_alike(made.scores_[90:], made.scores_[chosen])


def test_fewer_rows_than_columns(name: str) -> None:
    made = fitted(name, *planted(30, 200))
    assert np.isfinite(made.scores_).all()
    assert int((~made.keep_).sum()) == 3


def test_constant_columns_do_not_change_the_removed_rows(name: str) -> None:
    features, labels = planted()
    constant = np.full((90, 2), 7, np.float32)
    # SCAn learns from the clean rows that these columns do not vary.
    held = clean()
    more = np.concatenate([held[0], np.full((60, 2), 7, np.float32)], axis=1)
    options = BRIEF.get(name, {})
    made = bl.get_filter(name, filter_scope="all", removal_budget="10%", **options).fit(
        np.concatenate([features, constant], axis=1), labels, clean=(more, held[1])
    )
    assert np.isfinite(made.scores_).all()
    plain = fitted(name, features, labels)
    if name != "spectral_uncentered":  # The distance from the origin depends on these columns.
        np.testing.assert_array_equal(made.keep_, plain.keep_)


@pytest.mark.parametrize("value", [0, 2.5])
def test_equal_rows_have_equal_scores(name: str, value: float) -> None:
    features = np.full((60, D), value, np.float32)
    made = fitted(name, features, np.arange(60) % 3)
    assert np.isfinite(made.scores_).all()
    assert np.ptp(made.scores_) <= AMOUNT * max(1, abs(made.scores_[0]))
    assert int((~made.keep_).sum()) == 6


def extreme() -> dict[str, Array]:
    """Features, float64 (60, 6), for which careless formulas overflow, cancel or divide by zero."""
    normal = np.random.default_rng(6).normal(size=(60, 6))
    one_differs = np.zeros((60, 6))
    one_differs[7] = 1
    far = normal.copy()
    far[7] = 1e12
    return {
        "large": normal * 1e37,
        "small": normal * 1e-37,
        "far from the origin": normal + 1e8,
        "one row differs": one_differs,
        "one distant row": far,
        "on a line": normal[:, :1] * np.ones((1, 6)),
        "three distinct rows": normal[np.arange(60) % 9 // 3],
        "mostly zero": np.maximum(normal - 2, 0),
    }


@pytest.mark.parametrize("values", extreme().values(), ids=extreme().keys())
def test_extreme_features_have_finite_scores(name: str, values: Array) -> None:
    for features in (values, values.astype(np.float32)):
        made = fitted(name, features, np.arange(60) % 3)
        assert np.isfinite(made.scores_).all()
        assert int((~made.keep_).sum()) == 6


@pytest.mark.parametrize("scope", ["target", "all"])
def test_one_class_only(name: str, scope: str) -> None:
    features, _ = planted()
    made = fitted(name, features, np.ones(90, int), filter_scope=scope)
    assert np.isfinite(made.scores_).all()
    assert int((~made.keep_).sum()) == 9
    assert made.flagged_classes_ == [1]


SUSPECTING = [
    "activation_clustering", "scan", "spectral", "spectral_every_class", "spectral_plus",
    "spectral_uncentered", "spectre", "spectre_authors",
]  # fmt: skip
"""Filters that can find suspicious classes."""


def test_only_filters_that_compare_classes_accept_the_scope_suspicious(name: str) -> None:
    if name not in SUSPECTING:
        with pytest.raises(ValueError, match="`filter_scope=suspicious` is not defined for"):
            bl.get_filter(name, filter_scope="suspicious")
        return
    made = fitted(name, *planted(), filter_scope="suspicious", removal_budget="auto")
    one_class = fitted(
        name, planted()[0], np.zeros(90, int), filter_scope="suspicious", removal_budget="auto"
    )
    for found, labels in ((made, planted()[1]), (one_class, np.zeros(90, int))):
        flagged = np.isin(labels, found.flagged_classes_)
        np.testing.assert_array_equal(np.isfinite(found.scores_), flagged)
        assert found.keep_[~flagged].all()
    assert set(made.flagged_classes_) <= {0, 1, 2}
    # A class cannot be an outlier among classes if it is the only one.
    assert one_class.flagged_classes_ == ([0] if name == "activation_clustering" else [])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_all_floating_point_types_give_the_same_result(name: str, dtype: type) -> None:
    features, labels = planted()
    rounded = features.astype(np.float16)
    made = fitted(name, rounded.astype(dtype), labels)
    expected = fitted(name, rounded.astype(np.float32), labels)
    np.testing.assert_allclose(made.scores_, expected.scores_, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(made.keep_, expected.keep_)


@pytest.mark.parametrize("budget", ["10%", "auto"])
def test_a_single_row_is_scored_and_kept(name: str, budget: str) -> None:
    made = fitted(name, np.ones((1, D)), np.zeros(1, int), removal_budget=budget)
    assert np.isfinite(made.scores_).all()
    assert made.keep_.tolist() == [True]


def test_a_budget_that_removes_the_only_row_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="would remove 1 of the 1 examples of class 0"):
        fitted(name, np.ones((1, D)), np.zeros(1, int), removal_budget="1")


def test_ten_thousand_rows(name: str) -> None:
    features = np.random.default_rng(2).normal(size=(10_000, 2)).astype(np.float32)
    made = fitted(name, features, np.zeros(10_000, int), removal_budget="5%")
    assert np.isfinite(made.scores_).all()
    assert int((~made.keep_).sum()) == 500


def test_labels_may_have_gaps(name: str) -> None:
    """Classes 3, 4 and 9 stand for 0, 1 and 2."""
    features, labels = planted()
    made = fitted(name, features, np.array([3, 4, 9])[labels])
    assert made.flagged_classes_ == [3, 4, 9]
    assert np.isfinite(made.scores_).all()
    assert (~made.keep_).reshape(-1, 3).sum(axis=0).tolist() == [3, 3, 3]


def state() -> tuple[object, ...]:
    kind, keys, *rest = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), rest, torch.get_rng_state().tolist()  # type: ignore[union-attr]


def test_the_global_random_state_is_neither_used_nor_changed(name: str) -> None:
    scores = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = state()
        scores.append(fitted(name, *planted()).scores_)
        assert state() == before
    np.testing.assert_array_equal(*scores)


def test_the_inputs_are_not_changed(name: str) -> None:
    features, labels = planted()
    held = clean()
    given = [features, labels, *held]
    copies = [each.copy() for each in given]
    for each in given:
        each.setflags(write=False)
    made = bl.get_filter(name).fit(features, labels, target=1, n_poisoned=6, clean=held)
    assert made.keep_.flags.writeable
    for each, copied in zip(given, copies, strict=True):
        np.testing.assert_array_equal(each, copied)


def test_tensors_give_tensors_with_the_same_values(name: str) -> None:
    features, labels = planted()
    made = fitted(name, torch.from_numpy(features), torch.from_numpy(labels))
    expected = fitted(name, features, labels)
    assert isinstance(made.scores_, torch.Tensor)
    assert isinstance(made.keep_, torch.Tensor)
    np.testing.assert_array_equal(made.scores_.numpy(), expected.scores_)
    np.testing.assert_array_equal(made.keep_.numpy(), expected.keep_)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_refused_with_the_first_row(name: str, bad: float) -> None:
    features, labels = planted()
    features[[40, 17], 2] = bad
    with pytest.raises(ValueError, match="`features` must be finite, but row 17 is not"):
        fitted(name, features, labels)


@pytest.mark.parametrize("name", FILTERS)
def test_each_missing_input_is_named(name: str) -> None:
    made = bl.get_filter(name)
    features, labels = planted()
    given: dict[str, Any] = {
        "target": 1, "n_poisoned": 6, "clean": clean(), "model": torch.nn.Linear(1, 1),
        "images": np.zeros((90, 1, 2, 2), np.uint8),
    }  # fmt: skip
    assert made.requires <= given.keys()
    for argument in made.requires:
        rest = {key: value for key, value in given.items() if key != argument}
        with pytest.raises(ValueError, match=f"`{argument}` is missing"):
            made.fit(features, labels, **rest)


@pytest.mark.parametrize("name", FILTERS)
def test_parameters_can_be_read_changed_and_cloned(name: str) -> None:
    made = bl.get_filter(name, seed=7, max_removed="50%")
    params = made.get_params()
    assert params["name"] == name
    assert (params["seed"], params["max_removed"]) == (7, "50%")
    copied = clone(made)
    assert copied is not made
    assert copied.get_params() == params
    assert copied.requires == made.requires
    assert copied.set_params(seed=8, filter_scope="all", removal_budget="5%") is copied
    assert (copied.seed, copied.filter_scope) == (8, "all")
    assert not copied.requires & {"target", "n_poisoned"}
    assert made.get_params() == params
    assert name in repr(made)
