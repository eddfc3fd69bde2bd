"""Generic outlier detectors: planted outliers, second implementations, degenerate classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from sklearn.covariance import MinCovDet
from torch import Tensor

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge, row_order
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.elliptic_envelope import EllipticEnvelope
from backdoor_lab.defenses.isolation_forest import IsolationForest
from backdoor_lab.defenses.knn import KNN
from backdoor_lab.defenses.local_outlier_factor import LocalOutlierFactor
from backdoor_lab.defenses.one_class_svm import OneClassSVM
from backdoor_lab.defenses.options import FilterOptions

MAKERS: list[type[Detector]] = [
    EllipticEnvelope,
    IsolationForest,
    KNN,
    LocalOutlierFactor,
    OneClassSVM,
]
KNOWN = DefenderKnowledge(("only",), 0, 10, seed=3)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def one_class(values: Tensor) -> Features:
    return Features(values, torch.zeros(len(values)).long())


@pytest.fixture(params=MAKERS, ids=lambda each: each.__name__)
def maker(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_scattered_outliers_are_all_removed(maker: Any) -> None:
    """There are ten outliers, each twelve standard deviations away in its own direction."""
    values = normal(300, 8)
    away = normal(10, 8, seed=1)
    values[100:110] = 12 * away / away.norm(dim=1, keepdim=True)
    verdict = maker(FilterOptions(removal_budget="10"))(one_class(values), KNOWN)
    assert (~verdict.keep).nonzero().flatten().tolist() == list(range(100, 110))


@pytest.mark.parametrize("n", [1, 2])
def test_classes_of_fewer_than_three_examples_score_zero(maker: Any, n: int) -> None:
    look = maker().score_class(normal(n, 6), 0, KNOWN)
    assert look.scores.tolist() == [0] * n
    assert look.notes


@pytest.mark.parametrize("n", [3, 4, 7])
def test_classes_of_three_or_more_examples_have_finite_scores(maker: Any, n: int) -> None:
    look = maker().score_class(normal(n, 6), 0, KNOWN)
    assert look.scores.shape == (n,)
    assert torch.isfinite(look.scores).all()
    assert not look.notes


def test_a_class_of_identical_rows_is_skipped_and_scores_zero(maker: Any) -> None:
    """Identical rows score 0, even though their mean is subject to rounding."""
    look = maker().score_class(torch.full((40, 7), 0.1), 0, KNOWN)
    assert not look.scores.any()
    assert "skipped" in look.notes


@pytest.mark.filterwarnings("ignore:Duplicate values:UserWarning")
def test_duplicates_of_one_row_get_equal_finite_scores(maker: Any) -> None:
    """More than half of the class are copies of one row."""
    values = torch.cat([normal(1, 5).repeat(40, 1), normal(30, 5, seed=2)])
    scores = maker().score_class(values, 0, KNOWN).scores
    assert torch.isfinite(scores).all()
    assert torch.allclose(scores[:40], scores[0], rtol=1e-9)


def test_scores_depend_neither_on_row_order_nor_on_dtype(maker: Any) -> None:
    """Shuffled rows and float64 give exactly equal scores."""
    values = normal(80, 12)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    scores = maker().score_class(values, 0, KNOWN).scores
    assert torch.equal(maker().score_class(values[order], 0, KNOWN).scores, scores[order])
    assert torch.equal(maker().score_class(values.double(), 0, KNOWN).scores, scores)


def test_isolation_forest_scores_are_reproducible_and_depend_on_the_seed() -> None:
    values, other = normal(60, 4), DefenderKnowledge(("only",), 0, 10, seed=4)
    assert torch.equal(
        IsolationForest().score_class(values, 0, KNOWN).scores,
        IsolationForest().score_class(values, 0, KNOWN).scores,
    )
    assert not torch.equal(
        IsolationForest().score_class(values, 0, KNOWN).scores,
        IsolationForest().score_class(values, 0, other).scores,
    )


def test_isolation_forest_scores_follow_the_paper() -> None:
    """Every score lies in 0..1. A distant row is isolated early and scores well above 0.5."""
    values = normal(200, 3)
    values[7] = 30
    scores = IsolationForest().score_class(values, 0, KNOWN).scores
    assert float(scores.min()) > 0
    assert float(scores.max()) < 1
    assert int(scores.argmax()) == 7
    assert float(scores[7]) > 0.7
    assert float(scores.median()) < 0.5


@pytest.mark.parametrize(("n", "k"), [(30, 1), (30, 5), (6, 20)])
def test_knn_score_is_the_distance_to_the_kth_neighbor(n: int, k: int) -> None:
    """The score is compared with the k-th smallest distance to another row, computed by SciPy,
    where k is at most n - 1."""
    values = normal(n, 4)
    distances = np.sort(cdist(values.double(), values.double()), axis=1)
    scores = KNN(n_neighbors=k).score_class(values, 0, KNOWN).scores
    assert scores.numpy() == pytest.approx(distances[:, min(k, n - 1)], rel=1e-6)


def test_knn_scores_match_values_computed_by_hand() -> None:
    """For the points 0, 1, 3, 10 on a line, the distances to the second neighbor are 3, 2, 3, 9."""
    values = torch.tensor([[0.0], [1], [3], [10]])
    assert KNN(n_neighbors=2).score_class(values, 0, KNOWN).scores.tolist() == pytest.approx(
        [3, 2, 3, 9]
    )


def test_local_outlier_factor_follows_its_definition() -> None:
    """The definition of Breunig et al. is the mean local reachability density of the neighbors,
    divided by the example's own density."""
    values, k = normal(40, 3), 5
    distances = cdist(values.double(), values.double())
    near = np.argsort(distances, axis=1)[:, 1 : k + 1]
    k_distance = np.take_along_axis(distances, near[:, -1:], axis=1)[:, 0]
    reach = np.maximum(np.take_along_axis(distances, near, axis=1), k_distance[near])
    density = 1 / reach.mean(axis=1)
    expected = density[near].mean(axis=1) / density
    scores = LocalOutlierFactor(n_neighbors=k).score_class(values, 0, KNOWN).scores
    assert scores.numpy() == pytest.approx(expected, rel=1e-6)


def test_robust_covariance_finds_all_outliers_even_if_they_are_a_quarter_of_the_class() -> None:
    """The outliers distort the plain covariance, so that the plain Mahalanobis distance ranks other
    examples higher."""
    values = normal(400, 5)
    values[:100, 0] = 8 + 0.1 * values[:100, 0]
    scores = EllipticEnvelope().score_class(values, 0, KNOWN).scores
    assert sorted(scores.argsort(descending=True)[:100].tolist()) == list(range(100))
    centered = values - values.mean(dim=0)
    plain = (centered @ torch.linalg.inv(centered.T @ centered) * centered).sum(dim=1)
    assert sorted(plain.argsort(descending=True)[:100].tolist()) != list(range(100))


def test_elliptic_envelope_agrees_with_sklearn_on_the_raw_features() -> None:
    """A rotation to the principal axes leaves Mahalanobis distances unchanged."""
    values = normal(300, 4) * torch.tensor([3.0, 2, 1, 0.5])
    direct = MinCovDet(random_state=0).fit(values.double().numpy()).dist_
    scores = EllipticEnvelope().score_class(values, 0, KNOWN).scores
    assert np.corrcoef(np.log(scores), np.log(direct))[0, 1] > 0.999


def test_one_class_svm_gives_about_a_fraction_nu_of_the_examples_a_positive_score() -> None:
    """Examples outside have scores above 0. Their share follows from the paper's proposition 3."""
    values = normal(500, 4)
    for nu in (0.05, 0.3):
        outside = (OneClassSVM(nu=nu).score_class(values, 0, KNOWN).scores > 0).double().mean()
        assert float(outside) == pytest.approx(nu, abs=0.02)


def test_only_the_top_principal_components_are_used() -> None:
    """An outlier outside the top principal components is not detected."""
    values = normal(100, 6) * torch.tensor([5.0, 4, 0.01, 0.01, 0.01, 0.01])
    values[0, 3] = 0.3
    assert int(KNN(n_components=2).score_class(values, 0, KNOWN).scores.argmax()) != 0
    same = torch.cat([values[:, :2], values[:, 2:].flip(0)], dim=1)
    few, swapped = (
        KNN(n_components=2).score_class(each, 0, KNOWN).scores for each in (values, same)
    )
    assert torch.allclose(few, swapped, rtol=0.02)


@pytest.mark.parametrize("name", ["n_components", "n_neighbors", "nu", "n_estimators"])
def test_an_invalid_option_is_refused_and_named_in_the_error(name: str) -> None:
    """filter_scope=suspicious is refused too, because none of these detectors supports it."""
    for made in MAKERS:
        if name in made.__init__.__kwdefaults__:
            with pytest.raises(ConfigError, match=rf"defense\.{name}"):
                made(**{name: 0})
    with pytest.raises(ConfigError, match=r"filter_scope=suspicious.*not defined for KNN"):
        KNN(FilterOptions(filter_scope="suspicious"))


def test_rows_sorted_with_row_order_do_not_depend_on_the_input_order() -> None:
    """Duplicate rows are next to each other after sorting."""
    values = normal(30, 3)[torch.arange(60) % 30]
    shuffled = values[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    ordered = values[row_order(values)]
    assert torch.equal(ordered, shuffled[row_order(shuffled)])
    assert torch.equal(ordered[::2], ordered[1::2])


def test_every_detector_has_a_configuration_file() -> None:
    conf = Path(__file__).resolve().parents[3] / "conf/defense"
    targets = " ".join(path.read_text() for path in conf.glob("*.yaml"))
    for made in MAKERS:
        assert f"{made.__module__}.{made.__name__}" in targets
