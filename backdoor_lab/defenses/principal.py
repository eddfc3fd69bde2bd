"""Principal directions of one class: what several filters look at."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.defenses.base import Filter
from backdoor_lab.numerics.singular import top_directions


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
