"""Isolation forest."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams, validation
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class Forest(Detector):
    """Removes the examples that random splits isolate earliest.

    Liu, Ting, Zhou, "Isolation Forest", ICDM 2008, equation 2: score 2^(-E[h(x)] / c(psi)) in
    0..1 over `trees` trees, each grown on psi = 256 examples (section 4.2) or the whole class.
    """

    stream = streams.ISOLATION_FOREST

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        trees: int = 100,
        dims: int = 16,
    ) -> None:
        super().__init__(options, dims=dims)
        self.trees = validation.whole("defense.trees", trees, low=1)

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.ensemble import IsolationForest  # type: ignore[import-untyped]

        sample = min(256, len(points))
        forest = IsolationForest(n_estimators=self.trees, max_samples=sample, random_state=seed)
        return -forest.fit(points).score_samples(points)
