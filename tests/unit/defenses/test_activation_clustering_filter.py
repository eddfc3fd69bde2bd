"""Activation clustering: planted clusters, both decision rules, and a second implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from torch import Tensor

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.activation_clustering import ActivationClustering
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.options import FilterOptions

KNOWN = DefenderKnowledge(("only",), 0, 10, seed=3)


def mixed(n: int, poisoned: int, shift: float, seed: int = 0, d: int = 12) -> Tensor:
    """A normal class whose last rows are shifted by `shift` standard deviations along one axis."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    values[n - poisoned :, 0] += shift
    return values


def verdict(values: Tensor, *, removal_budget: str, **options: Any) -> Any:
    features = Features(values, torch.zeros(len(values)).long())
    return ActivationClustering(FilterOptions(removal_budget=removal_budget), **options)(
        features, KNOWN
    )


@pytest.mark.parametrize("reduce", ["ica", "pca"])
@pytest.mark.parametrize("rule", ["size", "silhouette"])
@pytest.mark.parametrize("poisoned", [20, 60])
def test_automatic_budget_removes_exactly_the_planted_cluster(
    reduce: str, rule: str, poisoned: int
) -> None:
    """Poison twenty standard deviations away forms the smaller cluster."""
    found = verdict(mixed(200, poisoned, 20), removal_budget="auto", reduce=reduce, rule=rule)
    assert (~found.keep).nonzero().flatten().tolist() == list(range(200 - poisoned, 200))
    assert torch.equal(found.scores > 0, ~found.keep)
    assert found.notes["per_class"]["only"]["smaller"] == pytest.approx(poisoned / 200)


@pytest.mark.parametrize("rule", ["size", "silhouette"])
def test_the_automatic_budget_removes_nothing_from_a_clean_class(rule: str) -> None:
    """A normal class splits into two clusters of similar size that are poorly separated."""
    for seed in range(5):
        found = verdict(mixed(200, 0, 0, seed), removal_budget="auto", reduce="pca", rule=rule)
        assert found.keep.all()


def test_scores_agree_with_sklearn_on_principal_components() -> None:
    """The score is the distance to the larger cluster's centroid minus that to the smaller
    one's."""
    values = mixed(150, 40, 6).double()
    reduced = PCA(10).fit_transform(values.numpy())
    made = KMeans(2, n_init=10, random_state=0).fit(reduced)
    distances = made.transform(reduced)
    small = int(np.bincount(made.labels_).argmin())
    look = ActivationClustering(reduce="pca", rule="silhouette").score_class(values, 0, KNOWN)
    assert look.scores.numpy() == pytest.approx(distances[:, 1 - small] - distances[:, small])
    expected = silhouette_score(reduced, made.labels_)
    assert look.notes["silhouette"] == pytest.approx(expected)


def test_thresholds_decide_whether_the_cluster_is_removed() -> None:
    """The cluster has 40 of 150 examples, a share of 0.267. It is removed with a threshold of 0.3
    and kept with 0.2."""
    values = mixed(150, 40, 8)
    assert verdict(values, removal_budget="auto", size_threshold=0.3).keep.sum() == 110
    assert verdict(values, removal_budget="auto", size_threshold=0.2).keep.all()
    by_fit = {"removal_budget": "auto", "reduce": "pca", "rule": "silhouette"}
    fit = verdict(values, **by_fit).notes["per_class"]["only"]["silhouette"]
    assert verdict(values, **by_fit, silhouette_threshold=fit - 0.01).keep.sum() == 110
    assert verdict(values, **by_fit, silhouette_threshold=fit + 0.01).keep.all()


def test_suspicious_classes_are_those_with_a_small_cluster() -> None:
    """Only the class with planted poison is scored. The others keep all examples."""
    values = torch.cat([mixed(150, 0, 0, 1), mixed(150, 15, 15, 2), mixed(150, 0, 0, 3)])
    features = Features(values, torch.arange(3).repeat_interleave(150))
    blind = ActivationClustering(
        FilterOptions(filter_scope="suspicious", removal_budget="auto"), reduce="pca"
    )
    found = blind(features, DefenderKnowledge(("a", "b", "c"), None, None, seed=0))
    assert found.notes["classes"] == ["b"]
    assert (~found.keep).nonzero().flatten().tolist() == list(range(285, 300))
    assert torch.isnan(found.scores[:150]).all()


@pytest.mark.parametrize("reduce", ["ica", "pca"])
def test_scores_depend_neither_on_row_order_nor_on_dtype(reduce: str) -> None:
    """Shuffled rows and float64 give exactly equal scores."""
    values, made = mixed(90, 10, 3), ActivationClustering(reduce=reduce)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    scores = made.score_class(values, 0, KNOWN).scores
    assert torch.equal(made.score_class(values[order], 0, KNOWN).scores, scores[order])
    assert torch.equal(made.score_class(values.double(), 0, KNOWN).scores, scores)


@pytest.mark.parametrize("values", [torch.full((30, 4), 0.1), torch.randn(2, 4), torch.ones(1, 4)])
def test_a_class_without_two_clusters_is_skipped(values: Tensor) -> None:
    """If rows are identical or fewer than three, all scores are 0, there is a note, and nothing is
    removed."""
    look = ActivationClustering().score_class(values, 0, KNOWN)
    assert not look.scores.any()
    assert (look.auto, look.notes) == (0, {"skipped": "no two clusters"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_components", 0), ("reduce", "tsne"), ("rule", "luck"), ("size_threshold", 0.6),
     ("size_threshold", -1),
     ("silhouette_threshold", 1.5)],
)  # fmt: skip
def test_an_invalid_option_is_refused_and_named_in_the_error(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"defense\.{name}"):
        ActivationClustering(**{name: value})
