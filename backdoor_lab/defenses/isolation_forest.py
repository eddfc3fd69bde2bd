"""Isolation forest."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import checks, streams
from backdoor_lab.defenses.detector import Detector


class Forest(Detector):
    """Removes the examples that random splits isolate soonest.

    Liu, Ting, Zhou, "Isolation Forest", ICDM 2008, equation 2: score 2^(-E[h(x)] / c(psi)) in
    0..1 over `trees` trees, each grown on psi = 256 examples (section 4.2) or the whole class.
    """

    stream = streams.ISOLATION_FOREST

    def __init__(
        self,
        *,
        trees: int = 100,
        dims: int = 16,
        classes: str = "target",
        budget: str = "1.5eps",
        budget_cap: str | None = None,
        centred: bool = True,
    ) -> None:
        super().__init__(dims=dims, classes=classes, budget=budget, budget_cap=budget_cap)
        self.trees = checks.whole("defense.trees", trees, low=1)

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.ensemble import IsolationForest  # type: ignore[import-untyped]

        sample = min(256, len(points))
        forest = IsolationForest(n_estimators=self.trees, max_samples=sample, random_state=seed)
        return -forest.fit(points).score_samples(points)
