"""Spectral signatures."""

from __future__ import annotations

import torch
from torch import Tensor

from backdoor_lab import checks
from backdoor_lab.defenses.base import Filter


class Spectral(Filter):
    """Removes the examples that lie farthest along their class' top singular direction.

    Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, Algorithm 1:
    tau_i = ((R(x_i) - mean R) . v)^2 with v the top right singular vector of the centred n x d
    matrix. With ``centred=False`` tau_i = |R(x_i) . v| with the same v, as several widely used
    implementations score, for comparison: it fails when the poison is shifted against the mean.
    """

    def __init__(
        self,
        *,
        classes: str = "target",
        budget: str = "1.5eps",
        budget_cap: str | None = None,
        centred: bool = True,
    ) -> None:
        super().__init__(classes=classes, budget=budget, budget_cap=budget_cap)
        self.centred = checks.flag("defense.centred", centred)

    def scores(self, values: Tensor) -> Tensor:
        values = values.double()
        centred = values - values.mean(dim=0)
        _, direction = top_direction(centred)
        return (centred @ direction) ** 2 if self.centred else (values @ direction).abs()

    def suspicion(self, values: Tensor) -> float:
        values = values.double()
        variance, _ = top_direction(values - values.mean(dim=0))
        return variance / len(values)


def top_direction(centred: Tensor) -> tuple[float, Tensor]:
    """The top squared singular value and right singular vector of `centred` float64 (n, d).

    From the smaller of the two Gram matrices by a full symmetric eigendecomposition: exact
    also where the two top singular values almost agree, where power iteration and randomised
    methods give another vector. Memory O(n d + min(n, d)^2).
    """
    n, d = centred.shape
    if n >= d:
        eigenvalues, vectors = torch.linalg.eigh(centred.T @ centred)
        return float(eigenvalues[-1]), vectors[:, -1]
    eigenvalues, vectors = torch.linalg.eigh(centred @ centred.T)
    direction = centred.T @ vectors[:, -1]
    length = torch.linalg.vector_norm(direction)
    return float(eigenvalues[-1]), direction / length.clamp(min=torch.finfo(torch.float64).tiny)
