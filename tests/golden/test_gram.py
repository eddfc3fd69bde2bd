"""The top direction in mixed precision equals that of a float64 SVD for any values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.numerics import singular as gram
from backdoor_lab.numerics.singular import TopDirection, top_direction


def by_svd(values: Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """The projections of the centered rows and of the original rows onto the top direction, and its
    squared singular value."""
    exact = values.double().numpy()
    centered = exact - exact.mean(axis=0)
    _, singular, right = np.linalg.svd(centered, full_matrices=False)
    return centered @ right[0], exact @ right[0], float(singular[0] ** 2)


def agree(found: TopDirection, values: Tensor, bound: float = 1e-8) -> None:
    centered, plain, variance = by_svd(values)
    scores, expected = (found.along**2).numpy(), centered**2
    assert np.abs(scores - expected).max() <= bound * expected.max()
    seen = np.abs((found.along + found.offset).numpy())
    assert np.abs(seen - np.abs(plain)).max() <= bound * np.abs(plain).max()
    assert found.variance == pytest.approx(variance, rel=1e-9)
    removed = len(values) // 7
    assert set(np.argsort(scores)[-removed:]) == set(np.argsort(expected)[-removed:])


def with_values(n: int, d: int, singular: np.ndarray, *, mean: float = 0.0) -> Tensor:
    """Returns a matrix, float32 (n, d), whose centered rows have these singular values up to
    rounding."""
    noise = np.random.default_rng(n + d).standard_normal((n, d))
    left, _, right = np.linalg.svd(noise - noise.mean(axis=0), full_matrices=False)
    return torch.from_numpy(left * singular @ right + mean).float()


def falling(side: int, *first: float) -> np.ndarray:
    """`side` singular values: those in `first`, then values evenly spaced from 0.9 times the last
    of `first` to near 0."""
    return np.concatenate([first, np.linspace(0.9 * first[-1], 0.01, side - len(first))])


@pytest.fixture
def exact_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collects every decomposition computed in float64."""
    calls: list[Any] = []
    done = gram._exact

    def counted(rows: Any) -> Any:
        calls.append(rows)
        return done(rows)

    monkeypatch.setattr(gram, "_exact", counted)
    return calls


@pytest.mark.parametrize(("n", "d"), [(700, 96), (96, 700), (128, 128), (1500, 64), (64, 65)])
@pytest.mark.parametrize("first", [(50.0, 10.0), (10.03, 10.0)])
def test_the_fast_top_direction_agrees_with_svd_without_using_float64(
    n: int, d: int, first: tuple[float, ...], exact_calls: list[Any]
) -> None:
    """This holds even if the two top singular values differ by only 0.3 %."""
    values = with_values(n, d, falling(min(n, d), *first))
    agree(top_direction(values), values)
    assert exact_calls == []


@pytest.mark.parametrize(("n", "d"), [(500, 80), (80, 500)])
@pytest.mark.parametrize(
    ("apart", "in_float64"), [(3e-4, 0), (1e-4, 0), (3e-5, 1), (1e-5, 1), (1e-7, 1)]
)
def test_top_directions_with_nearly_equal_singular_values_agree_with_svd(
    n: int, d: int, apart: float, in_float64: int, exact_calls: list[Any]
) -> None:
    """If the two top values are close enough, float64 is used."""
    values = with_values(n, d, falling(80, 10 * (1 + apart), 10.0))
    agree(top_direction(values), values, bound=1e-6 if apart == 1e-7 else 1e-8)
    assert len(exact_calls) == in_float64


def test_two_equal_top_singular_values_are_computed_in_float64(exact_calls: list[Any]) -> None:
    """Any unit vector in the plane of the two top directions is a valid result."""
    values = torch.cat([torch.eye(80), -torch.eye(80)])
    values[:, :2] *= 3
    found = top_direction(values)
    assert found.variance == pytest.approx(18, rel=1e-12)
    assert float(found.direction[:2].norm()) == pytest.approx(1, rel=1e-12)
    assert len(exact_calls) == 1


def test_a_top_direction_orthogonal_to_the_start_vector_of_lanczos_is_found(
    exact_calls: list[Any],
) -> None:
    """From such a start vector, Lanczos finds another direction, which is not accepted."""
    side = 100
    start = torch.randn(side, generator=torch.Generator().manual_seed(0)).double()
    basis = torch.eye(side, dtype=torch.float64)
    basis[:, 1] = start
    q, _ = torch.linalg.qr(basis[:, [1, 0, *range(2, side)]])
    # Orthogonal to q's first column, the start vector.
    right = q[:, [1, 0, *range(2, side)]].T
    noise = np.random.default_rng(1).standard_normal((900, side + 1))
    noise[:, 0] = 1
    left = torch.from_numpy(np.linalg.qr(noise)[0][:, 1:])  # centered and orthonormal
    scales = torch.ones(side, dtype=torch.float64)
    scales[0], scales[1] = 3, 2
    values = (left * scales @ right).float()
    agree(top_direction(values), values)
    assert len(exact_calls) == 1


@pytest.mark.parametrize("change", [lambda x: 1e18 * x, lambda x: 1e-18 * x, lambda x: x + 300,
                                    lambda x: x.relu(), lambda x: x.double() * 1e100,
                                    lambda x: x.half(), lambda x: -x],
                         ids=["times 1e18", "times 1e-18", "plus 300", "relu",
                              "float64 times 1e100", "float16", "negated"])  # fmt: skip
def test_the_top_direction_agrees_with_svd_at_extreme_scales_and_shifts(change: Any) -> None:
    values = change(with_values(600, 70, falling(70, 10.03, 10.0)))
    agree(top_direction(values), values)


def test_the_top_direction_of_collinear_rows_is_the_direction_of_their_line() -> None:
    """This holds whether or not the line passes through the origin."""
    generator = torch.Generator().manual_seed(5)
    line = torch.randn(90, generator=generator, dtype=torch.float64)
    line /= line.norm()
    place = torch.randn(400, 1, generator=generator, dtype=torch.float64)
    values = place * line + 7.5
    found = top_direction(values)
    assert abs(float(found.direction @ line)) == pytest.approx(1, abs=1e-12)
    expected = (place - place.mean()).flatten()
    assert torch.allclose(found.along.abs(), expected.abs(), atol=1e-9)
    assert found.variance == pytest.approx(float(expected.square().sum()), rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 4), (1, 500), (300, 100), (2, 2)])
def test_constant_rows_have_zero_projections(shape: tuple[int, int]) -> None:
    found = top_direction(torch.full(shape, 0.1))
    assert float(found.along.abs().max()) <= 1e-12
    assert bool(torch.isfinite(found.direction).all())


def test_the_top_direction_of_heavy_tailed_values_agrees_with_svd() -> None:
    values = torch.from_numpy(np.random.default_rng(3).standard_t(2, size=(900, 80))).float()
    agree(top_direction(values), values)


def test_the_input_matrix_is_not_modified() -> None:
    values = with_values(300, 80, falling(80, 5.0))
    before = values.clone()
    top_direction(values)
    assert torch.equal(values, before)
