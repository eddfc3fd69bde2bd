"""The last step of confusion training: finds the classes in which the images that the confused
model still fits form a cluster."""

from __future__ import annotations

import math

from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.numerics.singular import top_directions

RATIO = 2.0
"""Likelihood ratio above which a class is suspicious."""
LARGEST_RATIO = 1.5
"""Likelihood ratio above which the class with the largest ratio is suspicious."""
ADDED = 1e-3
"""Added to each entry of a covariance matrix."""


def suspects(values: Tensor, fitted: Tensor, labels: Tensor) -> Tensor:
    """Returns the suspicious classes, int64 (k,): those with a likelihood ratio above 2 (see
    `log_likelihood_ratio`), and the class with the largest ratio if that is above 1.5."""
    classes = labels.unique()
    ratios = [log_likelihood_ratio(values[labels == y], fitted[labels == y]) for y in classes]
    largest = max(ratios)
    beyond = [r > math.log(LARGEST_RATIO if r == largest else RATIO) for r in ratios]
    return classes[torch.tensor(beyond)]


def log_likelihood_ratio(values: Tensor, fitted: Tensor) -> float:
    """Returns by how much the log-likelihood of a class grows if some of its images are modeled
    with their own normal distribution instead of the normal distribution of the other images.

    The mask `fitted`, bool (n,), selects the images with their own distribution. The gain is
    divided by the number of images in the class.

    `values` float64 (n, d) are projected onto their top two principal directions. The arbitrary
    sign of each direction is chosen so that the mean projection is not negative. The result is 0 if
    either group has fewer than two images.
    """
    own = fitted.numpy()
    if not 2 <= own.sum() <= len(own) - 2:
        return 0.0
    import numpy as np
    from scipy.stats import multivariate_normal  # type: ignore[import-untyped]

    _, directions = top_directions(values - values.mean(dim=0), 2)
    points = (values @ directions).numpy()
    points = np.where(points.mean(axis=0) < 0, -points, points)
    others, ours = (
        multivariate_normal(group.mean(axis=0), np.cov(group.T) + ADDED, allow_singular=True)
        for group in (points[~own], points[own])
    )
    gain = ours.logpdf(points[own]) - others.logpdf(points[own])
    return float(gain.sum()) / len(own)
