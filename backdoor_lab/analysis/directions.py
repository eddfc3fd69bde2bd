"""Top singular directions in NumPy, for what is read without torch: pages, pictures, analyses.

Scores of filters come from numerics/singular.py, whose bits differ: there float64 products bound
the angle to the exact direction, here ARPACK's tolerance does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALL = 64
"""Up to so many rows or columns a whole decomposition is quicker than the Lanczos method."""


def top_directions(centered: Array, k: int) -> tuple[Array, Array]:
    """The top singular values (r,) and right singular vectors (d, r) of `centered` (n, d).

    float64, largest first, r = min(k, n, d). A vector's sign is free. Where a singular value is 0
    its vector is any direction that is orthogonal to the others.
    """
    if min(centered.shape) <= max(SMALL, k):
        return _exact(centered, k)
    from scipy.sparse.linalg import ArpackError, svds

    start = np.random.default_rng(0).normal(size=min(centered.shape))
    try:
        _, values, vectors = svds(centered, k=k, v0=start, return_singular_vectors="vh")
    except ArpackError:
        return _exact(centered, k)
    order = values.argsort()[::-1]
    return np.asarray(values[order]), np.asarray(vectors[order].T)


def _exact(centered: Array, k: int) -> tuple[Array, Array]:
    _, values, vectors = np.linalg.svd(centered, full_matrices=False)
    return np.asarray(values[:k]), np.asarray(vectors[:k].T)
