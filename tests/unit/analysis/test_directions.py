"""The NumPy directions used by pages and analyses, compared with the SVD and with the filters'
directions."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from backdoor_lab.analysis.directions import top_directions
from backdoor_lab.numerics import singular


def rows(n: int, d: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(n, d)) * np.geomspace(1, 20, d)
    centered: np.ndarray = values - values.mean(axis=0)
    return centered


@pytest.mark.parametrize(("n", "d"), [(300, 100), (80, 200), (20, 5), (3, 500), (50, 1)])
@pytest.mark.parametrize("k", [1, 2])
def test_principal_directions_equal_those_of_the_svd_and_of_the_filters(
    n: int, d: int, k: int
) -> None:
    centered = rows(n, d)
    values, vectors = top_directions(centered, k)
    _, known, right = np.linalg.svd(centered, full_matrices=False)
    assert vectors.shape == (d, min(k, n, d))
    np.testing.assert_allclose(values, known[:k], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(vectors * right[:k].T, axis=0)), 1, rtol=1e-12)
    squared, filters = singular.top_directions(torch.from_numpy(centered), k)
    np.testing.assert_allclose(values**2, squared.numpy(), rtol=1e-9)
    np.testing.assert_allclose(np.abs(np.sum(vectors * filters.numpy(), axis=0)), 1, rtol=1e-9)


@pytest.mark.parametrize("shape", [(10, 4), (100, 90)])
def test_identical_rows_have_zero_variance_along_every_direction(shape: tuple[int, int]) -> None:
    values, vectors = top_directions(np.zeros(shape), 2)
    assert not values.any()
    assert vectors.shape == (shape[1], 2)


def test_computing_principal_directions_needs_no_torch() -> None:
    code = "import sys; import backdoor_lab.analysis.directions; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"
