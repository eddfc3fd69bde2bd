"""Top singular directions in NumPy, for pages, figures and analyses that do not import torch.

Filter scores use numerics/singular.py instead. The results of the two modules may differ in the
last digits, since this module uses ARPACK.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
SMALL = 64
"""Number of rows or columns up to which a full decomposition is faster than the Lanczos method."""


def top_directions(centered: Array, k: int) -> tuple[Array, Array]:
    """Returns the top singular values (r,) and right singular vectors (d, r) of `centered` (n, d).

    Both are float64, largest first, with r = min(k, n, d). The sign of a vector is arbitrary. For a
    singular value of 0, the vector is any direction orthogonal to the others.

    >>> values, vectors = top_directions(np.array([[0.0, 3.0], [0.0, -4.0]]), 1)
    >>> values, abs(vectors[:, 0])
    (array([5.]), array([0., 1.]))
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
