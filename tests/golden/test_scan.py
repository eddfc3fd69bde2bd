"""SCAn equals the published model, computed with NumPy example by example.

Tang et al., USENIX Security 2021, and the authors' SCAn.py: the loops and pseudo-inverses below
follow the paper, starting from a given grouping. The authors' own functions were run once on the
same kind of arrays: covariances, groups and anomaly indices agreed to 1e-11.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backdoor_lab.core import streams
from backdoor_lab.core.rng import derive
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.scan import SCAn, drawn_half, two_groups, variation
from tests.helpers.mutations import Mutation

FILE = "defenses/scan.py"
SAMPLES = "numerics/two_samples.py"
ROBUST = "numerics/robust_covariance.py"
MUTATIONS = [
    Mutation(FILE, "pinv(m * between + within", "pinv(between + within",
             "the class size is ignored"),
    Mutation(FILE, "@ between @ inverse", "@ inverse @ between",
             "the factors are in the wrong order"),
    Mutation(FILE, "values = values - values.mean(dim=0)", "values = values - 0",
             "values are not centered"),
    Mutation(FILE, "<= tolerance", "<= 1000 * tolerance", "the iteration ends too early"),
    Mutation(FILE, "(first_mean + second_mean) / 2", "(first_mean + second_mean)",
             "the midpoint is not halved"),
    Mutation(FILE, "from_good - from_other,", "from_other - from_good,",
             "the score has the opposite sign"),
    Mutation(FILE, "/ len(white)", "/ 1", "the identity is estimated as from one example"),
    Mutation(SAMPLES, "return (distance /", "return ((values - values.quantile(0.5)) /",
             "the anomaly index is one-sided"),
    Mutation(SAMPLES, "MAD_OF_NORMAL = 1.4826", "MAD_OF_NORMAL = 1.0", "the MAD has no factor"),
    Mutation(ROBUST, "len(points) - correction", "len(points)", "the covariance is divided by n"),
]  # fmt: skip

K, D = 5, 4


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of five classes of different sizes."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.integers(0, K + 1, n), K - 1)
    identities = 2 * np.random.default_rng(1).normal(size=(K, D)) + 1
    return identities[labels] + rng.normal(size=(n, D)) * [0.5, 1, 1.5, 0.7], labels


def model(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The covariances of identity and variation, by the authors' expectation maximization."""
    x = values - values.mean(axis=0)
    counts = [int((labels == k).sum()) for k in range(K)]
    u = np.array([x[labels == k].mean(axis=0) for k in labels])
    su, se = np.cov(u.T), np.cov((x - u).T)
    for _ in range(100):
        last_su, last_se = su, se
        means = np.zeros((K, D))
        for row, k in zip(x, labels, strict=True):
            g = -np.linalg.pinv(counts[k] * su + se) @ su @ np.linalg.pinv(se)
            means[k] -= se @ g @ row
        u = means[labels]
        su, se = np.cov(u.T), np.cov((x - u).T)
        if np.linalg.norm(su - last_su) + np.linalg.norm(se - last_se) <= 1e-2:
            break
    return su, se


def split(rows: np.ndarray, f: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Divides `rows` into two groups under the metric `f`, starting from the grouping `start`."""
    group = start.copy()
    for _ in range(100):
        if group.all() or not group.any():
            break
        u1, u2 = rows[group].mean(axis=0), rows[~group].mean(axis=0)
        bias = u1 @ f @ u1 - u2 @ f @ u2
        now = np.array([bias - 2 * row @ f @ (u1 - u2) < 0 for row in rows])
        if (now == group).all():
            break
        group = now
    return group


def likelihood_ratio(rows: np.ndarray, su: np.ndarray, se: np.ndarray, group: np.ndarray) -> float:
    """The log-likelihood ratio per example: two groups with their own means, against one group with
    the identity of the model."""
    f = np.linalg.pinv(se)
    mu = se @ np.linalg.pinv(len(rows) * su + se) @ su @ f @ rows.sum(axis=0)
    means = {True: rows[group].mean(axis=0), False: rows[~group].mean(axis=0)}
    total = 0.0
    for row, one in zip(rows, group.tolist(), strict=True):
        total += (row - mu) @ f @ (row - mu) - (row - means[one]) @ f @ (row - means[one])
    return total / len(rows)


def test_covariances_match_the_formula() -> None:
    """The estimate is far from convergence after the first step, so that the number of steps
    matters."""
    values, labels = drawn(60, 2)
    expected = model(values, labels)
    found = variation(torch.from_numpy(values), torch.from_numpy(labels), 1e-2)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.numpy() == pytest.approx(theirs, rel=1e-8, abs=1e-10)


def test_the_split_into_two_groups_matches_an_independent_implementation() -> None:
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(50, D))
    rows[:18] += [1, -1, 1, 0.5]
    start = rng.random(50) >= 0.5
    found = two_groups(torch.from_numpy(rows), torch.from_numpy(start))
    assert found is not None
    assert (found.numpy() == split(rows, np.eye(D), start)).all()


def test_anomaly_indices_and_groups_match_a_second_implementation() -> None:
    """J* is compared for every class. The class with a distant second group has the largest J*."""
    clean, clean_labels = drawn(200, 4)
    values, labels = drawn(400, 5)
    where = np.flatnonzero(labels == 3)[:20]
    values[where] += [3, -2, 2, 2]
    known = DefenderKnowledge(
        tuple("abcde"), None, None, 7,
        clean=Features(torch.from_numpy(clean), torch.from_numpy(clean_labels)),
    )  # fmt: skip
    scan = SCAn(FilterOptions(filter_scope="all", removal_budget="auto"))
    found = scan(Features(torch.from_numpy(values), torch.from_numpy(labels)), known)
    su, se = model(clean, clean_labels)
    f, x = np.linalg.pinv(se), values - values.mean(axis=0)
    ratios, poison = [], []
    for k in range(K):
        rows = torch.from_numpy(values[labels == k])
        start = drawn_half(rows, derive(7, streams.GROUPS, k)).numpy()
        group = split(x[labels == k], f, start)
        ratios.append(likelihood_ratio(x[labels == k], su, se, group))
        means = [x[labels == k][each].mean(axis=0) for each in (group, ~group)]
        own = clean[clean_labels == k].mean(axis=0) - values.mean(axis=0)
        near = [(mean - own) @ f @ (mean - own) for mean in means]
        poison.append(group if near[0] > near[1] else ~group)
    distance = np.abs(np.array(ratios) - np.median(ratios))
    stars = distance / (1.4826 * np.median(distance))
    notes = found.notes["per_class"]
    assert isinstance(notes, dict)
    assert [notes[name]["J"] for name in "abcde"] == pytest.approx(ratios, rel=1e-6)
    assert [notes[name]["J*"] for name in "abcde"] == pytest.approx(stars, rel=1e-6)
    for k in range(K):
        scores = found.scores[torch.from_numpy(labels == k)].numpy()
        assert ((scores > 0) == poison[k]).all()
    assert stars.argmax() == 3
    assert stars[3] > np.e**2
    assert (~found.keep).numpy()[labels == 3].tolist() == poison[3].tolist()
