"""Principal directions of one class: what several filters look at."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor_lab.defenses.base import Filter


class Principal(Filter):
    """A filter that works along its class' principal directions."""

    @staticmethod
    def components(values: Tensor, k: int) -> Tensor:
        """`values` (n, d) about their mean, in their top `k` principal directions.

        float64 (n, r) with r <= k: directions without variance are left out, so that r is 0 for
        rows that are all alike.
        """
        values = values.double()
        centred = values - values.mean(dim=0)
        eigenvalues, directions = top_directions(centred, k)
        # The mean is rounded: rows that are all alike differ from it by that much.
        rounding = (torch.finfo(torch.float64).eps * max(values.shape)) ** 2
        real = directions.any(dim=0) & (eigenvalues > rounding * values.square().sum())
        return centred @ directions[:, real]


def top_directions(centred: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The top squared singular values (r,) and right singular vectors (d, r) of `centred`.

    `centred` (n, d) float64 or float32, r = min(k, n, d), largest first; the vector is zero
    where the singular value is zero but for rounding. From the smaller of the two Gram matrices
    by a full symmetric eigendecomposition: exact also where the two top singular values almost
    agree, where power iteration and randomised methods give another vector. Memory
    O(n d + min(n, d)^2).
    """
    n, d = centred.shape
    gram = centred.T @ centred if n >= d else centred @ centred.T
    eigenvalues, vectors = torch.linalg.eigh(gram)
    eigenvalues, vectors = eigenvalues.flip(0)[:k].clamp(min=0), vectors.flip(1)[:, :k]
    limits = torch.finfo(centred.dtype)
    if n < d:
        vectors = centred.T @ vectors
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0).clamp(min=limits.tiny)
    real = eigenvalues > max(n, d) * limits.eps * eigenvalues[:1]
    return eigenvalues, vectors * real
