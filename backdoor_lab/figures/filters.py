"""Finds the first-layer filter of a network that responds most to a trigger."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def response_changes(weights: Array, clean: Array, triggered: Array, base: Array) -> Array:
    """How much a trigger changes each filter's response, relative to the response's spread.

    Let r_f be the linear response of filter f, before any nonlinearity. For image pairs i and
    positions p, the result is the mean over i of max_p |r_f(triggered_i) - r_f(clean_i)|, divided
    by the standard deviation of r_f(clean_i) over all i and p: float64 (f,).

    `weights` float (f, C, k, k); `clean` and `triggered` uint8 (n, C, H, W); `base` uint8 (m, C, H,
    W), the images from which each channel's mean and standard deviation are computed. Responses are
    computed with stride 1 and zero padding around the normalized image.
    """
    mean = base.mean(axis=(0, 2, 3), keepdims=True)
    deviation = np.maximum(base.std(axis=(0, 2, 3), keepdims=True), 1.0)
    changes = np.zeros(len(weights))
    before = []
    for one, other in zip(clean, triggered, strict=True):
        plain, changed = (_responses(weights, ((x - mean) / deviation)[0]) for x in (one, other))
        changes += np.abs(changed - plain).max(axis=0)
        before.append(plain)
    spread = np.concatenate(before).std(axis=0)
    return np.asarray(changes / len(clean) / np.where(spread > 0, spread, np.inf))


def _responses(weights: Array, image: Array) -> Array:
    """The linear response of each filter at each position of `image` float (C, H, W): (H * W,
    f)."""
    count, channels, side, _ = weights.shape
    before, after = side // 2, (side - 1) // 2
    padded = np.pad(image, ((0, 0), (before, after), (before, after)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    flat = windows.transpose(1, 2, 0, 3, 4).reshape(-1, channels * side * side)
    return np.asarray(flat @ weights.reshape(count, -1).T.astype(np.float64))
