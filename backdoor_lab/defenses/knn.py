"""Distance to the k-th nearest neighbour."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import checks, streams
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class Knn(Detector):
    """Removes the examples farthest from their k-th nearest neighbour.

    Ramaswamy, Rastogi, Shim, "Efficient Algorithms for Mining Outliers from Large Data Sets",
    SIGMOD 2000: score D^k(x), with `neighbours` as k, among the other examples of the class.
    Poison in a cluster of more than k examples has its neighbours there and goes unseen.
    """

    stream = streams.KNN

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
        from sklearn.neighbors import NearestNeighbors  # type: ignore[import-untyped]

        k = min(self.neighbours, len(points) - 1)
        distances, _ = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(points).kneighbors()
        return distances[:, -1]
