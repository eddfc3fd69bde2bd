"""A filter based on a one-class support vector machine."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams, validation
from backdoor_lab.defenses.detector import Detector
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions


class OneClassSVM(Detector):
    """Removes examples outside the region that contains all but a fraction `nu` of the class.

    Schölkopf, Platt, Shawe-Taylor, Smola, Williamson, "Estimating the Support of a High-Dimensional
    Distribution", Neural Computation 2001: score rho - w . phi(x), which is positive outside that
    region, for a Gaussian kernel with gamma = 1 / (n_components · variance).
    """

    stream = streams.ONE_CLASS_SVM

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        nu: float = 0.1,
        n_components: int = 16,
    ) -> None:
        super().__init__(options, n_components=n_components)
        self.nu = validation.number("defense.nu", nu, low=1e-3, below=1)

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn import svm  # type: ignore[import-untyped]

        found = svm.OneClassSVM(nu=self.nu, gamma="scale")
        # Otherwise scikit-learn draws a seed, which this model does not use, from NumPy's global
        # generator.
        found.random_state = seed % 2**32
        return -found.fit(points).decision_function(points)
