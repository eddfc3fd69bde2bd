"""SPECTRE equals the authors' steps, computed with NumPy from their description and code.

Hayase et al., ICML 2021; the filter is that of Diakonikolas et al. 2017 with the constants of the
authors' dkk17.jl. Fourth moments are computed here from Kronecker products, which the package
avoids. The authors' code is in Julia and was read, not run.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm, sqrtm

from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.spectre import SPECTRE
from backdoor_lab.numerics.robust_covariance import filtered
from tests.helpers.mutations import Mutation

FILE = "defenses/spectre.py"
ROBUST = "numerics/robust_covariance.py"
MUTATIONS = [
    Mutation(ROBUST, "SHIFT = 3.0", "SHIFT = 2.0", "the tail is shifted by 2 instead of 3"),
    Mutation(ROBUST, "SCALE = 10.0", "SCALE = 3.0", "the constant is 3 instead of 10"),
    Mutation(ROBUST, "variance <= 1 + SCALE", "variance <= SCALE",
             "the filter ends at a lower variance"),
    Mutation(ROBUST, "/ math.sqrt(2)", "/ math.sqrt(1)", "the quadratic form is not scaled"),
    Mutation(ROBUST, "_lowest(distances, n - limit)", "_lowest(-distances, n - limit)",
             "the farthest rows are protected"),
    Mutation(ROBUST, "_lowest(squares, n - limit)", "_lowest(squares, 0)",
             "the number of removed rows has no limit"),
    Mutation(ROBUST, "- form.trace() * unit", "", "the mean of the form is not subtracted"),
    Mutation(FILE, "REMOVED_PER_POISON = 1.5", "REMOVED_PER_POISON = 1.0", "ε equals the budget"),
    Mutation(FILE, "filter_limit: float = 2.0", "filter_limit: float = 1.0",
             "the limit is 1 ε instead of 2 ε"),
    Mutation(FILE, "covariance(points[kept], correction=0)", "covariance(points)",
             "whitening is not robust"),
    Mutation(FILE, "alpha * (eigenvalues - eigenvalues[-1]) / beyond",
             "alpha * (eigenvalues - eigenvalues[-1])", "α is not divided by the norm"),
    Mutation(FILE, "covariance(white, correction=1)", "covariance(white)",
             "the covariance is divided by n"),
    Mutation(FILE, "largest=False", "largest=True", "k is judged by the wrong rows"),
    Mutation(FILE, "key=lambda each: each[0]", "key=lambda each: -each[0]",
             "the worst k is chosen"),
]  # fmt: skip


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    return np.real(np.linalg.inv(sqrtm(matrix)))


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    if count < 1:
        return np.zeros(len(values), dtype=bool)
    return values <= np.sort(values)[count - 1]


def one_round(points: np.ndarray, eps: float, tau: float, limit: int) -> np.ndarray | None:
    """The rows that the filter keeps in one round, as a mask. None if the filter ends."""
    n, d = points.shape
    y = points @ inverse_root(points.T @ points / n)
    squares = (y**2).sum(axis=1)
    far = squares >= 10 * d * np.log(n / tau)
    if far.any():
        return ~far | lowest(squares, max(0, n - limit))
    z = np.stack([np.kron(row, row) for row in y])
    flat = np.eye(d).ravel()
    eigenvalues, vectors = np.linalg.eigh(z.T @ z / n - np.outer(flat, flat))
    top = np.abs(eigenvalues).argmax()
    v = vectors[:, top].reshape(d, d)
    if eigenvalues[top] <= (1 + 10 * eps * np.log(1 / eps) ** 2) * 2 * np.linalg.norm(v) ** 2 / 2:
        return None
    v = (v + v.T) / 2
    p = np.array([(row @ v @ row - np.trace(v)) / np.sqrt(2) for row in y])
    distances = np.abs(p - np.median(p))
    for i, distance in enumerate(np.sort(distances), start=1):
        t = distance - 3
        if distance < 3 or t <= 0:
            continue
        tail = 1.0 if t <= 10 * np.log(1 / eps) else 3 * eps / (t * np.log(t)) ** 2
        if i / n >= tail:
            return (distances <= t) | lowest(distances, max(0, n - limit))
    return None


def kept_rows(points: np.ndarray, eps: float, tau: float, limit: int) -> np.ndarray:
    where = np.arange(len(points))
    while limit > 0:
        stays = one_round(points[where], eps, tau, limit)
        if stays is None or stays.all():
            break
        limit -= int((~stays).sum())
        where = where[stays]
    found = np.zeros(len(points), dtype=bool)
    found[where] = True
    return found


def weights(white: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    s = np.cov(white.T).reshape(white.shape[1], -1)
    q = expm(alpha * (s - np.eye(len(s))) / (np.linalg.norm(s, 2) - 1))
    return s, q / np.trace(q)


def projected(values: np.ndarray, k: int) -> np.ndarray:
    centered = values - values.mean(axis=0)
    _, _, right = np.linalg.svd(centered, full_matrices=False)
    found: np.ndarray = centered @ right[:k].T
    return found


def scores_of(values: np.ndarray, k: int, eps: int) -> np.ndarray:
    points = projected(values, k)
    if k == 1:
        return points[:, 0] ** 2
    kept = kept_rows(points, eps / len(points), 0.1, 2 * eps)
    white = points @ inverse_root(np.cov(points[kept].T, bias=True))
    _, q = weights(white, 4)
    return np.einsum("ij,jk,ik->i", white, q, white)


def quality(values: np.ndarray, top: int, scores: np.ndarray, removed: int) -> float:
    points = projected(values, top)
    rest = points[~lowest(-scores, removed)]
    s, q = weights(points @ inverse_root(np.cov(rest.T)), 4)
    return float(np.trace(s @ q))


def crowded(n: int, d: int, poison: int, distance: float) -> np.ndarray:
    """A class with a heavy-tailed axis and a group that is far away along the other axes."""
    rng = np.random.default_rng(8)
    values = rng.normal(size=(n, d)) * np.linspace(3, 1, d)
    values[:, 0] = rng.standard_t(3, size=n) * 3
    values[:poison, 1:] += distance
    return values


@pytest.mark.parametrize(
    ("n", "d", "poison", "distance", "eps", "limit"),
    [(300, 3, 15, 5.0, 0.05, 30), (300, 3, 15, 5.0, 0.05, 4), (1500, 2, 8, 60.0, 0.01, 20),
     (1500, 2, 4, 60.0, 0.01, 2), (400, 4, 0, 0.0, 0.02, 40), (300, 9, 20, 3.0, 0.02, 60),
     (3000, 3, 30, 14.0, 0.001, 60)],
)  # fmt: skip
def test_the_filter_matches_a_second_implementation(
    n: int, d: int, poison: int, distance: float, eps: float, limit: int
) -> None:
    points = crowded(n, d, poison, distance)
    points -= points.mean(axis=0)
    expected = kept_rows(points, eps, 0.1, limit)
    found = filtered(torch.from_numpy(points), eps, 0.1, limit).numpy()
    assert 0 < int((~expected).sum()) <= limit
    assert (found == expected).all()


def test_scores_and_the_chosen_rank_match_the_formula() -> None:
    """The candidates for k are 1, 4 and 9, in nine dimensions. ε is 10, so that 15 examples are
    removed."""
    values = crowded(220, 9, 10, 3.0)
    candidates = [(k, scores_of(values, k, 10)) for k in (1, 4, 9)]
    qualities = [quality(values, 9, scores, 15) for _, scores in candidates]
    k, expected = candidates[int(np.argmax(qualities))]
    known = DefenderKnowledge(("only",), 0, 10, seed=0)
    found = SPECTRE().score_class(torch.from_numpy(values), 0, known)
    assert found.notes["rank"] == k
    assert found.suspicion == pytest.approx(max(qualities), rel=1e-6)
    assert found.scores.numpy() == pytest.approx(expected, rel=1e-6)
    verdict = SPECTRE()(Features(torch.from_numpy(values), torch.zeros(220).long()), known)
    assert set(np.flatnonzero(~verdict.keep)) == set(np.argsort(-expected)[:15])


@pytest.mark.parametrize(("k", "eps"), [(1, 10), (4, 3), (9, 4), (9, 10)])
def test_scores_of_a_given_rank_match_the_formula(k: int, eps: int) -> None:
    """Rank 1 uses no filter. For ε = 3 and 4, the filter removes 2 ε rows, the most that it may.
    For rank 9 and ε = 10, it removes nine."""
    values = crowded(220, 9, 10, 3.0)
    known = DefenderKnowledge(("only",), 0, eps, seed=0)
    found = SPECTRE(rank=k).score_class(torch.from_numpy(values), 0, known)
    assert found.scores.numpy() == pytest.approx(scores_of(values, k, eps), rel=1e-6)


def test_epsilon_is_two_thirds_of_a_budget_given_as_a_number() -> None:
    """A budget of six examples gives ε = 4. The outlier step that precedes SPECTRE's whitening then
    drops eight rows."""
    values = crowded(220, 9, 10, 3.0)
    known = DefenderKnowledge(("only",), 0, None, seed=0)
    made = SPECTRE(FilterOptions(removal_budget="6"), rank=9)
    found = made.score_class(torch.from_numpy(values), 0, known)
    assert found.scores.numpy() == pytest.approx(scores_of(values, 9, 4), rel=1e-6)
