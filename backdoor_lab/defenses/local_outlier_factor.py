"""Local outlier factor."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import checks, streams
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class LocalOutlier(Detector):
    """Removes the examples in thinner surroundings than their neighbours'.

    Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000,
    definition 7, with `neighbours` as MinPts. Poison that forms a cluster of more than that many
    examples is dense by its own measure: the paper wants MinPts above the largest such cluster.
    """

    stream = streams.LOCAL_OUTLIER_FACTOR

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        neighbours: int = 20,
        dims: int = 16,
    ) -> None:
        super().__init__(options, dims=dims)
        self.neighbours = checks.whole("defense.neighbours", neighbours, low=1)

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.neighbors import LocalOutlierFactor  # type: ignore[import-untyped]

        # By tree: the other way subtracts large squares and sees copies apart.
        k = min(self.neighbours, len(points) - 1)
        factor = LocalOutlierFactor(n_neighbors=k, algorithm="kd_tree")
        factor.fit(points)
        return -factor.negative_outlier_factor_
