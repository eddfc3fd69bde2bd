"""A filter based on the distance to the k-th nearest neighbor."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams
from backdoor_lab.defenses.detector import NeighborDetector


class KNN(NeighborDetector):
    """Removes the examples farthest from their k-th nearest neighbor.

    Ramaswamy, Rastogi, Shim, "Efficient Algorithms for Mining Outliers from Large Data Sets",
    SIGMOD 2000: score D^k(x), with `n_neighbors` as k, among the other examples of the class.
    Poison that forms a cluster of more than k examples is not detected.
    """

    stream = streams.KNN

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

        distances, _ = NearestNeighbors(**self.search(points)).fit(points).kneighbors()
        return distances[:, -1]
