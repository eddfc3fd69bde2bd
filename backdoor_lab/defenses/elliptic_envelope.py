"""A filter based on the robust Mahalanobis distance (elliptic envelope)."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core import streams
from backdoor_lab.defenses.detector import Detector


class EllipticEnvelope(Detector):
    """Removes the examples with the largest robust Mahalanobis distance.

    Rousseeuw and Van Driessen, "A Fast Algorithm for the Minimum Covariance Determinant Estimator",
    Technometrics 1999: the squared distance uses the mean and the covariance of one half of the
    class: the half that has the covariance with the smallest determinant. Since there must be at
    least five examples per dimension (section 4 of the paper), the features of small classes are
    reduced to fewer dimensions. If all examples of that half are equal, the mean and covariance of
    the whole class are used.
    """

    stream = streams.ELLIPTIC_ENVELOPE

    rows_per_component = 5

    def outlying(self, points: Any, seed: int) -> Any:
        from sklearn.covariance import MinCovDet  # type: ignore[import-untyped]

        try:
            return MinCovDet(random_state=seed).fit(points).dist_
        except ValueError:  # raised if the covariance of the half is 0
            return MinCovDet(support_fraction=1.0, random_state=seed).fit(points).dist_
