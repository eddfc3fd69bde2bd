"""A filter based on an isolation forest."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams, validation
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class IsolationForest(Detector):
    """Removes the examples that random splits isolate earliest.

    Liu, Ting, Zhou, "Isolation Forest", ICDM 2008, equation 2: score 2^(-E[h(x)] / c(psi)) in 0..1
    over `n_estimators` trees, each grown on psi = 256 examples (section 4.2), or on the whole class
    if it is smaller.
    """

    stream = streams.ISOLATION_FOREST

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        n_estimators: int = 100,
        n_components: int = 16,
    ) -> None:
        super().__init__(options, n_components=n_components)
        self.n_estimators = validation.whole("defense.n_estimators", n_estimators, low=1)

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn import ensemble  # type: ignore[import-untyped]

        sample = min(256, len(points))
        forest = ensemble.IsolationForest(
            n_estimators=self.n_estimators, max_samples=sample, random_state=seed
        )
        return -forest.fit(points).score_samples(points)
