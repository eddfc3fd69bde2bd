"""The general outlier detectors: planted outliers, second implementations, awkward classes."""

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
from backdoor_lab.defenses.elliptic_envelope import Envelope
from backdoor_lab.defenses.isolation_forest import Forest
from backdoor_lab.defenses.knn import Knn
from backdoor_lab.defenses.local_outlier_factor import LocalOutlier
from backdoor_lab.defenses.one_class_svm import Svm
from backdoor_lab.defenses.options import FilterOptions

MAKERS: list[type[Detector]] = [Envelope, Forest, Knn, LocalOutlier, Svm]
KNOWN = DefenderKnowledge(("only",), 0, 10, seed=3)


def normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def one_class(values: Tensor) -> Features:
    return Features(values, torch.zeros(len(values)).long())


@pytest.fixture(params=MAKERS, ids=lambda each: each.__name__)
def maker(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_finds_scattered_outliers(maker: Any) -> None:
    """Ten examples at twelve standard deviations, each in its own direction, all go."""
    values = normal(300, 8)
    away = normal(10, 8, seed=1)
    values[100:110] = 12 * away / away.norm(dim=1, keepdim=True)
    verdict = maker(FilterOptions(budget="10"))(one_class(values), KNOWN)
    assert (~verdict.keep).nonzero().flatten().tolist() == list(range(100, 110))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_tiny_classes(maker: Any, n: int) -> None:
    """Fewer than three examples score 0 with a note; three and more get finite scores."""
    look = maker().score_class(normal(n, 6), 0, KNOWN)
    assert look.scores.shape == (n,)
    assert torch.isfinite(look.scores).all()
    assert bool(look.notes) == (n < 3)
    assert n >= 3 or not look.scores.any()


def test_constant_rows_are_skipped(maker: Any) -> None:
    """Rows that are all alike score 0, though their mean is rounded."""
    look = maker().score_class(torch.full((40, 7), 0.1), 0, KNOWN)
    assert not look.scores.any()
    assert "skipped" in look.notes


@pytest.mark.filterwarnings("ignore:Duplicate values:UserWarning")
def test_half_of_the_rows_alike(maker: Any) -> None:
    """Copies of one row for more than half of a class: still finite, copies alike."""
    values = torch.cat([normal(1, 5).repeat(40, 1), normal(30, 5, seed=2)])
    scores = maker().score_class(values, 0, KNOWN).scores
    assert torch.isfinite(scores).all()
    assert torch.allclose(scores[:40], scores[0], rtol=1e-9)


def test_order_and_type_decide_nothing(maker: Any) -> None:
    """The very same scores for shuffled rows and for float64."""
    values = normal(80, 12)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    scores = maker().score_class(values, 0, KNOWN).scores
    assert torch.equal(maker().score_class(values[order], 0, KNOWN).scores, scores[order])
    assert torch.equal(maker().score_class(values.double(), 0, KNOWN).scores, scores)


def test_the_seed_decides_the_forest() -> None:
    """The same seed the same forest, another seed another."""
    values, other = normal(60, 4), DefenderKnowledge(("only",), 0, 10, seed=4)
    assert torch.equal(
        Forest().score_class(values, 0, KNOWN).scores, Forest().score_class(values, 0, KNOWN).scores
    )
    assert not torch.equal(
        Forest().score_class(values, 0, KNOWN).scores, Forest().score_class(values, 0, other).scores
    )


def test_forest_scores_are_the_papers() -> None:
    """Every score lies in 0..1; a row far out is isolated at once and scores well above 0.5."""
    values = normal(200, 3)
    values[7] = 30
    scores = Forest().score_class(values, 0, KNOWN).scores
    assert float(scores.min()) > 0
    assert float(scores.max()) < 1
    assert int(scores.argmax()) == 7
    assert float(scores[7]) > 0.7
    assert float(scores.median()) < 0.5


@pytest.mark.parametrize(("n", "k"), [(30, 1), (30, 5), (6, 20)])
def test_knn_by_all_distances(n: int, k: int) -> None:
    """The k-th smallest distance to another row, by scipy; k at most n - 1."""
    values = normal(n, 4)
    distances = np.sort(cdist(values.double(), values.double()), axis=1)
    scores = Knn(neighbours=k).score_class(values, 0, KNOWN).scores
    assert scores.numpy() == pytest.approx(distances[:, min(k, n - 1)], rel=1e-6)


def test_knn_by_hand() -> None:
    """Points 0, 1, 3, 10 on a line: to the second neighbour 3, 2, 3, 9."""
    values = torch.tensor([[0.0], [1], [3], [10]])
    assert Knn(neighbours=2).score_class(values, 0, KNOWN).scores.tolist() == pytest.approx(
        [3, 2, 3, 9]
    )


def test_lof_by_its_definition() -> None:
    """Breunig et al.: mean local reachability density of the neighbours over one's own."""
    values, k = normal(40, 3), 5
    distances = cdist(values.double(), values.double())
    near = np.argsort(distances, axis=1)[:, 1 : k + 1]
    k_distance = np.take_along_axis(distances, near[:, -1:], axis=1)[:, 0]
    reach = np.maximum(np.take_along_axis(distances, near, axis=1), k_distance[near])
    density = 1 / reach.mean(axis=1)
    expected = density[near].mean(axis=1) / density
    scores = LocalOutlier(neighbours=k).score_class(values, 0, KNOWN).scores
    assert scores.numpy() == pytest.approx(expected, rel=1e-6)


def test_envelope_does_not_bend() -> None:
    """A quarter of the class far out on one axis keeps the highest robust distances, where the
    plain Mahalanobis distance, bent by them, ranks others higher."""
    values = normal(400, 5)
    values[:100, 0] = 8 + 0.1 * values[:100, 0]
    scores = Envelope().score_class(values, 0, KNOWN).scores
    assert sorted(scores.argsort(descending=True)[:100].tolist()) == list(range(100))
    centred = values - values.mean(dim=0)
    plain = (centred @ torch.linalg.inv(centred.T @ centred) * centred).sum(dim=1)
    assert sorted(plain.argsort(descending=True)[:100].tolist()) != list(range(100))


def test_envelope_agrees_with_the_estimator_on_the_features() -> None:
    """Principal axes are a rotation: the distances are those of the features themselves."""
    values = normal(300, 4) * torch.tensor([3.0, 2, 1, 0.5])
    direct = MinCovDet(random_state=0).fit(values.double().numpy()).dist_
    scores = Envelope().score_class(values, 0, KNOWN).scores
    assert np.corrcoef(np.log(scores), np.log(direct))[0, 1] > 0.999


def test_svm_leaves_a_share_outside() -> None:
    """About nu of the class lies outside (the paper's proposition 3), and scores above 0."""
    values = normal(500, 4)
    for nu in (0.05, 0.3):
        outside = (Svm(nu=nu).score_class(values, 0, KNOWN).scores > 0).double().mean()
        assert float(outside) == pytest.approx(nu, abs=0.02)


def test_only_the_top_components_count() -> None:
    """What lies outside the `dims` top directions is not seen."""
    values = normal(100, 6) * torch.tensor([5.0, 4, 0.01, 0.01, 0.01, 0.01])
    values[0, 3] = 0.3
    assert int(Knn(dims=2).score_class(values, 0, KNOWN).scores.argmax()) != 0
    same = torch.cat([values[:, :2], values[:, 2:].flip(0)], dim=1)
    few, swapped = (Knn(dims=2).score_class(each, 0, KNOWN).scores for each in (values, same))
    assert torch.allclose(few, swapped, rtol=0.02)


@pytest.mark.parametrize("name", ["dims", "neighbours", "nu", "trees"])
def test_options_are_checked(name: str) -> None:
    """Numbers that make no detector, and a scope that none of them has a rule for."""
    for made in MAKERS:
        if name in made.__init__.__kwdefaults__:
            with pytest.raises(ConfigError, match=rf"defense\.{name}"):
                made(**{name: 0})
    with pytest.raises(ConfigError, match=r"classes=suspicious.*not defined for Knn"):
        Knn(FilterOptions(classes="suspicious"))


def test_row_order_sorts_content() -> None:
    """The rows in that order are the same whatever order they came in; copies stand together."""
    values = normal(30, 3)[torch.arange(60) % 30]
    shuffled = values[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    ordered = values[row_order(values)]
    assert torch.equal(ordered, shuffled[row_order(shuffled)])
    assert torch.equal(ordered[::2], ordered[1::2])


def test_no_detector_stands_without_its_yaml() -> None:
    """Each is a choice in conf/defense."""
    conf = Path(__file__).resolve().parents[3] / "conf/defense"
    targets = " ".join(path.read_text() for path in conf.glob("*.yaml"))
    for made in MAKERS:
        assert f"{made.__module__}.{made.__name__}" in targets
