"""P values from trusted images: permutations, folds, Holm's rule."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import binom

from backdoor_lab.core.errors import DataError
from backdoor_lab.scan.images import scan_images
from backdoor_lab.scan.trusted import (
    Fold,
    class_p,
    combined,
    folds,
    permutation_p,
    permutations_for,
    pooled_scores,
    same_classes,
    two_sample,
)


def group(n: int, seed: int, shifted: int = 0) -> torch.Tensor:
    values = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    values[:shifted, 0] += 8
    return values


def test_the_permutation_test_is_valid_for_exchangeable_features() -> None:
    """P values of 400 classes whose two groups come from the same distribution, skewed and
    clustered."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        both = rng.exponential(size=(50, 4)) + 5 * (rng.random((50, 1)) < 0.1)
        values = torch.from_numpy(both)
        p.append(permutation_p(Fold([values[:35]], [values[35:]]), 99, rng))
    for level in (0.05, 0.2, 0.5, 0.8):
        low, high = binom.ppf([0.0005, 0.9995], 400, level)
        assert low <= sum(value <= level + 1e-9 for value in p) <= high, level


def test_poison_among_the_examined_images_gives_the_smallest_p_value() -> None:
    fold = Fold([group(200, 1, shifted=20)], [group(200, 2)])
    assert permutation_p(fold, 999, np.random.default_rng(0)) == 0.001


def test_few_trusted_images_cannot_tell_that_some_images_are_missing_among_them() -> None:
    """All 12 poisoned images are among the 250 examined ones by chance with probability 0.11 if
    there are 50 trusted ones, so no p value can be much smaller."""
    fold = Fold([group(250, 1, shifted=12)], [group(50, 2)])
    assert permutation_p(fold, 999, np.random.default_rng(0)) > 0.1


def test_unusual_trusted_images_are_no_evidence_against_the_examined_ones() -> None:
    fold = Fold([group(200, 1)], [group(200, 2, shifted=20)])
    assert permutation_p(fold, 99, np.random.default_rng(0)) > 0.1


def test_equal_features_give_p_1() -> None:
    same = torch.ones(30, 3)
    assert permutation_p(Fold([same], [same]), 99, np.random.default_rng(0)) == 1.0


def test_the_two_sample_statistic_is_the_largest_standardized_difference_of_means() -> None:
    """Compared with the exact mean and variance over all divisions of six images."""
    scores = np.random.default_rng(3).exponential(size=(2, 6))
    every = np.array([[i in chosen for i in range(6)]
                      for chosen in itertools.combinations(range(6), 2)], float)  # fmt: skip
    sums = every @ scores.T
    expected = ((sums - sums.mean(axis=0)) / sums.std(axis=0)).max(axis=1)
    np.testing.assert_allclose(two_sample(scores, every), expected)


def test_pooled_scores_do_not_depend_on_the_order_of_the_groups() -> None:
    values = group(40, 5)
    turned = pooled_scores(values.flip(0))[:, ::-1]
    np.testing.assert_allclose(pooled_scores(values), turned, rtol=1e-6)


def test_the_p_value_is_twice_the_smaller_of_both_folds_adjusted_by_holm() -> None:
    found = combined([0.001, 0.2, None, 0.9], [0.5, 0.01, 0.3, 0.8])
    # Twice the smaller: 0.002, 0.02, 1 (not 1.6); times 3, 2, 1.
    assert found[2] is None
    assert [p for p in found if p is not None] == pytest.approx([0.006, 0.04, 1.0])


def test_folds_divide_every_class_in_halves_by_the_seed() -> None:
    labels = torch.tensor([0] * 11 + [1] * 6)
    fold = folds(labels, 2, 0)
    assert [int(fold[labels == y].sum()) for y in (0, 1)] == [5, 3]
    assert torch.equal(fold, folds(labels, 2, 0))
    assert not torch.equal(fold, folds(labels, 2, 1))


def test_many_classes_need_more_permutations() -> None:
    assert permutations_for(10, 0.05, 999) == 999
    needed = permutations_for(100, 0.05, 999)
    assert 2 * 100 / (needed + 1) <= 0.05 / 2


def test_a_class_with_few_trusted_images_is_not_tested() -> None:
    assert class_p(Fold([group(50, 1)], [group(9, 2)]), 0, 0, 99, 0) is None
    assert class_p(Fold([group(50, 1)], [group(10, 2)]), 0, 0, 99, 0) is not None


def test_trusted_images_must_have_the_classes_and_the_shape_of_the_set() -> None:
    images = np.zeros((4, 3, 8, 8), np.uint8)
    names = ["0", "1", "2", "3"]
    found = scan_images(images, np.array([0, 0, 1, 2]), ["a", "b", "c"], names, "set")
    with pytest.raises(DataError, match="shares 4 images with the scanned set"):
        same_classes(
            scan_images(images, np.array([0, 0, 1, 1]), ["a", "b"], names, "trusted"), found
        )
    images = images + np.uint8(1)
    trusted = scan_images(images, np.array([0, 0, 1, 1]), ["c", "a"], names, "trusted")
    assert same_classes(trusted, found).labels.tolist() == [2, 2, 0, 0]
    other = scan_images(images, np.array([0, 0, 1, 1]), ["a", "z"], names, "trusted")
    with pytest.raises(DataError, match="the class z, which the scanned set does not have"):
        same_classes(other, found)
    gray = scan_images(images[:, :1], np.array([0, 0, 1, 1]), ["a", "b"], names, "trusted")
    with pytest.raises(DataError, match=r"\(1, 8, 8\), the scanned set of \(3, 8, 8\)"):
        same_classes(gray, found)
