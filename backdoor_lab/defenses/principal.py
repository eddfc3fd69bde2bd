"""Base class of filters that use the principal directions of a class."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.defenses.base import SampleFilter
from backdoor_lab.numerics.singular import top_directions


class Principal(SampleFilter):
    """A filter that uses the principal directions of each class."""

    @staticmethod
    def components(values: Tensor, k: int) -> Tensor:
        """Centers `values` (n, d) and projects them onto their top `k` principal directions.

        Returns float64 (n, r) with r <= k: directions without variance are dropped, so that r is 0
        if all rows are equal.
        """
        values = values.double()
        centered = values - values.mean(dim=0)
        eigenvalues, directions = top_directions(centered, k)
        # Because the mean is rounded, even equal rows can deviate from it by this much.
        rounding = (torch.finfo(torch.float64).eps * max(values.shape)) ** 2
        real = directions.any(dim=0) & (eigenvalues > rounding * values.square().sum())
        return centered @ directions[:, real]
