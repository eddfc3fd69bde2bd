"""SCAn: its likelihood ratio in closed form, its decision rule, and its clean images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.scan import SCAn, Variation, drawn_half, two_groups, variation

CLASSES = tuple("abcdefgh")
K, D = len(CLASSES), 6


def identities() -> Tensor:
    return 6 * torch.randn(K, D, generator=torch.Generator().manual_seed(5)).double()


def draw(per_class: int, seed: int) -> Features:
    """Features: the identity of a class plus a variation that all classes share. The variation is
    widest along the first axis."""
    noise = torch.randn(K * per_class, D, generator=torch.Generator().manual_seed(seed)).double()
    labels = torch.arange(K * per_class) % K
    axes = torch.tensor([4.0, 1, 1, 1, 1, 0.5])
    return Features(identities()[labels] + noise * axes, labels)


def poisoned(count: int, shift: float, per_class: int = 100) -> tuple[Features, Tensor]:
    """Training features, with `count` examples of class 2 shifted along a narrow axis."""
    features = draw(per_class, 1)
    where = (features.labels == 2).nonzero().flatten()[:count]
    features.values[where, 5] += shift
    return features, where


def known(clean: Features | None, target: int | None = 2) -> DefenderKnowledge:
    return DefenderKnowledge(CLASSES, target, None, seed=0, clean=clean)


def given(clean: Features) -> DefenderKnowledge:
    """The defender's knowledge, with the target and the number of poisoned images."""
    return DefenderKnowledge(CLASSES, 2, 10, seed=0, clean=clean)


def test_scan_finds_the_poisoned_class_and_group() -> None:
    """The shift of the poison is smaller than the variation along the widest axis. J* exceeds e^2
    only in the class with poison."""
    features, where = poisoned(25, 4)
    found = SCAn(FilterOptions(filter_scope="suspicious", removal_budget="auto"))(
        features, known(draw(40, 2), None)
    )
    assert found.notes["classes"] == ["c"]
    gone = set((~found.keep).nonzero().flatten().tolist())
    assert len(gone ^ set(where.tolist())) <= 1
    assert set((found.scores > 0).nonzero().flatten().tolist()) == gone


def test_scan_removes_the_poisoned_group_even_if_it_is_the_larger_one() -> None:
    """Of 100 images, 60 are poisoned. Held-out clean images of the class show which group is clean.
    Without them, the larger group is taken as clean."""
    features, where = poisoned(60, 6)
    clean = draw(40, 2)
    verdict = SCAn(FilterOptions(removal_budget="auto"))(features, known(clean))
    assert (~verdict.keep).nonzero().flatten().tolist() == where.tolist()
    without = Features(clean.values[clean.labels != 2], clean.labels[clean.labels != 2])
    other = SCAn(FilterOptions(removal_budget="auto"))(features, known(without))
    assert int((~other.keep).sum()) == 40
    assert other.keep[where].all()


def test_scan_flags_at_most_two_of_eighty_clean_classes() -> None:
    """There is no poison in the ten data sets of eight classes."""
    accused = 0
    for seed in range(10):
        scan = SCAn(FilterOptions(filter_scope="suspicious", removal_budget="auto"))
        accused += len(scan(draw(60, 10 + seed), known(draw(40, 2), None)).notes["classes"])
    assert accused <= 2


def test_automatic_budget_keeps_a_clean_class_but_a_fixed_budget_removes_from_it() -> None:
    features = draw(60, 1)
    assert SCAn(FilterOptions(removal_budget="auto"))(features, known(draw(40, 2))).keep.all()
    assert (
        int((~SCAn(FilterOptions(removal_budget="7"))(features, known(draw(40, 2))).keep).sum())
        == 7
    )


def test_likelihood_ratio_matches_its_closed_form() -> None:
    """NumPy computes J = [sum (r - mu)' P (r - mu) - sum (r - mu_i)' P (r - mu_i)] / n from the
    filter's groups, and J* in units of the MAD."""
    features, clean = poisoned(25, 4)[0], draw(40, 2)
    verdict = SCAn(FilterOptions(filter_scope="all", removal_budget="0"))(features, known(clean))
    between, within = (x.numpy() for x in variation(clean.values, clean.labels, 0.01))
    p = np.linalg.inv(within)
    x = features.values.numpy() - features.values.numpy().mean(axis=0)
    ratios = []
    for label in range(K):
        rows = x[features.labels == label]
        group = verdict.scores.numpy()[features.labels == label] > 0
        mu = between @ np.linalg.solve(between + within / len(rows), rows.mean(axis=0))
        two = np.where(group[:, None], rows[group].mean(axis=0), rows[~group].mean(axis=0))
        one_sum = np.einsum("ij,jk,ik->", rows - mu, p, rows - mu)
        ratios.append((one_sum - np.einsum("ij,jk,ik->", rows - two, p, rows - two)) / len(rows))
    looks = verdict.notes["per_class"]
    assert isinstance(looks, dict)
    assert [looks[name]["J"] for name in CLASSES] == pytest.approx(ratios)
    mad = np.median(np.abs(ratios - np.median(ratios)))
    stars = np.abs(np.array(ratios) - np.median(ratios)) / (1.4826 * mad)
    assert [looks[name]["J*"] for name in CLASSES] == pytest.approx(stars)


def test_scores_are_linear_in_the_features_and_positive_for_the_poisoned_group() -> None:
    """A log-likelihood ratio of two Gaussians with equal covariance is linear in the features."""
    features, where = poisoned(25, 8)
    verdict = SCAn(FilterOptions(removal_budget="0"))(features, known(draw(40, 2)))
    rows = features.values[features.labels == 2]
    scores = verdict.scores[features.labels == 2]
    solution = torch.linalg.lstsq(torch.cat([rows, torch.ones(100, 1)], 1), scores[:, None])
    fitted = torch.cat([rows, torch.ones(100, 1)], 1) @ solution.solution
    assert torch.allclose(fitted[:, 0], scores, atol=1e-6)
    assert verdict.scores[where].min() > 0


def test_the_function_variation_estimates_covariances_between_and_within_classes() -> None:
    """With many images per class, the estimates are close to the true covariances."""
    rng = np.random.default_rng(0)
    labels = np.arange(12_000) // 60
    means = rng.normal(size=(200, 2)) * [2, 3]
    values = means[labels] + rng.normal(size=(12_000, 2)) * [1, 3]
    between, within = variation(torch.from_numpy(values), torch.from_numpy(labels), 1e-6)
    assert within.diagonal().tolist() == pytest.approx([1, 9], rel=0.1)
    assert between.diagonal().tolist() == pytest.approx([4, 9], rel=0.25)


def test_a_class_far_below_the_median_is_flagged_too() -> None:
    """J* counts deviations in both directions: a class without any variation stands out."""
    features = draw(100, 1)
    rows = features.labels == 4
    features.values[rows] = features.values[rows].mean(dim=0) + 1e-3 * features.values[rows]
    scan = SCAn(FilterOptions(filter_scope="suspicious", removal_budget="auto"), threshold=3)
    assert "e" in scan(features, known(draw(40, 2), None)).notes["classes"]


def test_directions_in_which_clean_images_do_not_vary_are_not_used() -> None:
    """With fewer clean images than features, or a feature that is 0 in all of them, scores are
    finite and do not change with values in such a direction."""
    features, clean = poisoned(25, 4)[0], draw(40, 2)
    wide, narrow = torch.randn(800, 1), torch.zeros(320, 1)
    aside = Features(torch.cat([clean.values, narrow], dim=1), clean.labels)
    both = Features(torch.cat([features.values, wide], dim=1), features.labels)
    found, plain = SCAn()(both, given(aside)), SCAn()(features, given(clean))
    assert torch.allclose(found.scores, plain.scores, equal_nan=True, rtol=1e-6)
    few = Features(torch.randn(40, 60), torch.arange(40) % K)
    many = Features(torch.randn(400, 60), torch.arange(400) % K)
    assert torch.isfinite(SCAn()(many, given(few)).scores[many.labels == 2]).all()


def test_the_initial_split_is_a_random_half_that_depends_on_values_not_on_order() -> None:
    values = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    half = drawn_half(values, 5)
    assert 70 < int(half.sum()) < 130
    assert torch.equal(drawn_half(values[order], 5), half[order])
    assert not torch.equal(drawn_half(values, 6), half)
    for seed in range(8):
        assert drawn_half(values[:2], seed).sum() == 1


def test_the_inertia_of_the_partition_into_two_groups_is_close_to_that_of_sklearn_kmeans() -> None:
    """On planted groups, the inertia is the same. On noise, it is at most 10 % larger."""
    for shift, slack in ((5.0, 1e-9), (0.0, 0.1)):
        white = torch.randn(200, 4, generator=torch.Generator().manual_seed(3)).double()
        white[:50, 2] += shift
        second = two_groups(white, torch.arange(200) % 2 == 0)
        assert second is not None
        means = white[second].mean(dim=0), white[~second].mean(dim=0)
        inside = sum(
            float((white[rows] - mean).square().sum())
            for rows, mean in zip((second, ~second), means, strict=True)
        )
        best = KMeans(2, n_init=10, random_state=0).fit(white.numpy()).inertia_
        assert inside <= best * (1 + slack)


@pytest.mark.parametrize("rows", [torch.ones(1, 3), torch.full((20, 3), 0.1)])
def test_identical_rows_and_single_rows_are_not_split_into_two_groups(rows: Tensor) -> None:
    assert two_groups(rows.double(), torch.arange(len(rows)) > 0) is None


def test_shuffled_rows_have_the_same_scores_in_shuffled_order() -> None:
    features, _ = poisoned(25, 4)
    order = torch.randperm(len(features.labels), generator=torch.Generator().manual_seed(1))
    plain = SCAn()(features, DefenderKnowledge(CLASSES, 2, 10, 0, draw(40, 2)))
    moved = Features(features.values[order], features.labels[order])
    shuffled = SCAn()(moved, DefenderKnowledge(CLASSES, 2, 10, 0, draw(40, 2)))
    assert torch.allclose(shuffled.scores, plain.scores[order], equal_nan=True)
    assert torch.equal(shuffled.keep, plain.keep[order])


def test_missing_or_bad_clean_features_are_refused() -> None:
    """Clean features are required. They must be finite, vary, and come from several classes."""
    assert SCAn().requires() == ["target", "epsilon", "clean"]
    features = draw(20, 1)
    one = Features(features.values, torch.zeros_like(features.labels))
    for clean in (None, one):
        with pytest.raises(ConfigError, match=r"needs features of held-out clean images"):
            SCAn(FilterOptions(removal_budget="1"))(features, known(clean))
    alike = Features(torch.ones(16, D), torch.arange(16) % K)
    with pytest.raises(ConfigError, match="of all clean images are equal"):
        SCAn(FilterOptions(removal_budget="1"))(features, known(alike))
    broken = draw(20, 2)
    broken.values[3, 1] = torch.nan
    with pytest.raises(DivergedError, match="1 of 160 rows of clean features"):
        SCAn(FilterOptions(removal_budget="1"))(features, known(broken))


def test_whitening_gives_unit_covariance_within_classes() -> None:
    clean = draw(200, 2)
    model = Variation.of(known(clean), 0.01)
    _, within = variation(clean.values, clean.labels, 0.01)
    unit = model.whiten.T @ within @ model.whiten
    assert torch.allclose(unit, torch.eye(D, dtype=torch.float64), atol=1e-8)
