"""A filter based on the local outlier factor."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams
from backdoor_lab.defenses.detector import NeighborDetector


class LocalOutlierFactor(NeighborDetector):
    """Removes the examples in regions of lower density than the regions around their neighbors.

    Breunig, Kriegel, Ng, Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD 2000,
    definition 7, with `n_neighbors` as MinPts. Poison that forms a cluster of more than MinPts
    examples is not detected: MinPts should exceed the size of the largest such cluster.
    """

    stream = streams.LOCAL_OUTLIER_FACTOR

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn import neighbors  # type: ignore[import-untyped]

        return (
            -neighbors.LocalOutlierFactor(**self.search(points))
            .fit(points)
            .negative_outlier_factor_
        )
