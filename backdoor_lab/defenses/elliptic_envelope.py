"""Elliptic envelope: robust Mahalanobis distance."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams
from backdoor_lab.defenses.detector import Detector


class Envelope(Detector):
    """Removes the examples farthest out by a Mahalanobis distance that outliers do not bend.

    Rousseeuw and Van Driessen, "A Fast Algorithm for the Minimum Covariance Determinant
    Estimator", Technometrics 1999: squared distance by the location and covariance of the half
    of the class whose covariance has the least determinant. At least five examples a dimension
    (section 4 of the paper): small classes are reduced further. Where that half is all alike it
    has no covariance, and the whole class gives it.
    """

    stream = streams.ELLIPTIC_ENVELOPE

    rows_per_component = 5

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.covariance import MinCovDet  # type: ignore[import-untyped]

        try:
            return MinCovDet(random_state=seed).fit(points).dist_
        except ValueError:  # what it raises for a half without covariance
            return MinCovDet(support_fraction=1.0, random_state=seed).fit(points).dist_
