"""Activation clustering equals the published steps, computed with NumPy.

Chen et al., SafeAI@AAAI 2019, and the authors' toolbox (ART). The classes are so small that all
partitions into two clusters can be compared. Independent components are a rotation of the whitened
components. A rotation preserves distances, so both have the same clusters. ART's
`analyze_by_silhouette_score` was run once on two classes and made the same decisions as our rule.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from backdoor_lab.defenses.activation_clustering import ActivationClustering
from backdoor_lab.defenses.base import DefenderKnowledge
from tests.helpers.mutations import Mutation

FILE = "defenses/activation_clustering.py"
MUTATIONS = [
    Mutation(FILE, "caught = caught and round", "caught = round",
             "the size of the cluster is ignored"),
    Mutation(FILE, "round(share, 2) <", "share <", "the share is not rounded"),
    Mutation(FILE, "round(fit, 4) >", "round(fit, 4) <", "a low silhouette is suspicious"),
    Mutation(FILE, "smaller = 0 if 2 *", "smaller = 1 if 2 *",
             "the larger cluster counts as the smaller one"),
    Mutation(FILE, "components / components.std(dim=0, correction=0)", "components",
             "components are not whitened"),
    Mutation(FILE, "transform(points.numpy())", "transform(-points.numpy())",
             "points have the opposite sign"),
    Mutation(FILE, "n_components: int = 10", "n_components: int = 2",
             "two components instead of ten"),
]  # fmt: skip

KNOWN = DefenderKnowledge(("only",), 0, 3, seed=3)


def features(n: int = 13, far: int = 4, d: int = 14) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(5).normal(size=(n, d)) * np.linspace(0.3, 2, d)
    values[:far] += np.linspace(3, 0, d)
    return values


def principal(values: np.ndarray, k: int, *, white: bool) -> np.ndarray:
    centered = values - values.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    points: np.ndarray = (left * singular)[:, :k]
    return points / points.std(axis=0) if white else points


def best_partition(points: np.ndarray) -> np.ndarray:
    """The partition into two clusters with the least sum of squares, as a mask of the smaller
    cluster."""
    best, found = np.inf, np.zeros(len(points), dtype=bool)
    for word in itertools.product((False, True), repeat=len(points) - 1):
        member = np.array([False, *word])
        if not member.any():
            continue
        parts = [points[member], points[~member]]
        inside = sum(((each - each.mean(axis=0)) ** 2).sum() for each in parts)
        if inside < best:
            best, found = inside, member
    return found if 2 * found.sum() < len(found) else ~found


def distance_gap(points: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Distance to the larger cluster's centroid minus that to the smaller one's."""
    far, near = (np.linalg.norm(points - points[each].mean(axis=0), axis=1)
                 for each in (~member, member))  # fmt: skip
    found: np.ndarray = far - near
    return found


def silhouette(points: np.ndarray, member: np.ndarray) -> float:
    """The mean of (b - a) / max(a, b), where a and b are an example's mean distances to its own
    cluster and to the other one."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    found = []
    for i in range(len(points)):
        own = np.flatnonzero(member == member[i])
        a = apart[i, own].sum() / (len(own) - 1)
        b = apart[i, member != member[i]].mean()
        found.append((b - a) / max(a, b))
    return float(np.mean(found))


@pytest.mark.parametrize(("reduce", "k"), [("ica", 2), ("pca", 10)])
def test_scores_and_silhouette_match_the_formulas(reduce: str, k: int) -> None:
    """With ica, two components are used, not the default of ten, since 13 whitened examples in ten
    dimensions have no clusters."""
    values = features() if k == 10 else two_groups(13, 4, 30)
    points = principal(values, k, white=reduce == "ica")
    member = best_partition(points)
    chosen = {} if k == 10 else {"n_components": k}
    made = ActivationClustering(reduce=reduce, rule="silhouette", **chosen)
    found = made.score_class(torch.from_numpy(values), 0, KNOWN)
    assert found.scores.numpy() == pytest.approx(distance_gap(points, member), rel=1e-4, abs=1e-4)
    assert found.notes["smaller"] == pytest.approx(member.mean())
    assert found.notes["silhouette"] == pytest.approx(silhouette(points, member), rel=1e-4)


def two_groups(n: int, far: int, distance: float) -> np.ndarray:
    values: np.ndarray = np.random.default_rng(7).normal(size=(n, 3))
    values[:far, 0] += distance
    return values


@pytest.mark.parametrize(
    ("n", "far", "size", "fit"),
    [(40, 10, 0.35, 0.1), (40, 16, 0.35, 0.1), (40, 10, 0.2, 0.1), (40, 10, 0.35, 0.99),
     (23, 8, 0.35, 0.1), (400, 138, 0.35, 0.1), (400, 137, 0.34, 0.1)],
)  # fmt: skip
def test_the_size_and_silhouette_rules_follow_their_formulas(
    n: int, far: int, size: float, fit: float
) -> None:
    """8 of 23 is 0.348, which rounds to 0.35 and is therefore not below the threshold. 138 of 400
    is 0.345, which NumPy rounds to 0.34."""
    values = two_groups(n, far, 30)
    member = np.arange(n) < far
    share = np.round(far / n, 2)
    points = principal(values, 3, white=False)
    score = np.round(silhouette(points, member), 4)
    expected = {"size": share < size, "silhouette": share < size and score > fit}
    for rule, suspicious in expected.items():
        made = ActivationClustering(
            reduce="pca", rule=rule, size_threshold=size, silhouette_threshold=fit
        )
        found = made.score_class(torch.from_numpy(values), 0, KNOWN)
        assert found.auto == (far if suspicious else 0), rule
        assert made.suspicious_classes({0: found}) == [0] * bool(suspicious)
