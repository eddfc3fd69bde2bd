"""Local outlier factor."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams
from backdoor_lab.defenses.detector import NeighborDetector


class LocalOutlier(NeighborDetector):
    """Removes the examples in thinner surroundings than their neighbours'.

    Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000,
    definition 7, with `neighbours` as MinPts. Poison that forms a cluster of more than that many
    examples is dense by its own measure: the paper wants MinPts above the largest such cluster.
    """

    stream = streams.LOCAL_OUTLIER_FACTOR

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.neighbors import LocalOutlierFactor  # type: ignore[import-untyped]

        return -LocalOutlierFactor(**self.search(points)).fit(points).negative_outlier_factor_
