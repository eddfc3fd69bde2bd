"""Signals in the image that the images of a group share, but images that look alike do not.

A group of images of one class is compared with its *peers*: images outside of the group which a
network takes, correctly, for the same classes as the images of the group, in the same proportions.
What the group shares with its peers, such as the background of a class, is no signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.stats import binom, trim_mean

FEWEST = 8
"""Smaller groups have no signals."""
REPEATED = 4
"""A value that fewer images of a group have is not examined."""
LARGEST = 300.0
"""Upper bound of the strength of a repeated value: smaller probabilities underflow to 0."""
TRIMMED = 0.125
"""The share of the images of a group with the smallest values, and of those with the largest, that
its mean leaves out."""
LOW = 64
"""At most this many frequencies per axis are compared."""
IMAGES = 256
"""Images whose frequencies are computed at a time."""

Ints = NDArray[np.integer[Any]]
Floats = NDArray[np.float64]
Signal = tuple[float, Floats]
"""The strength of a signal, and how much of it each image of the class shows."""


@dataclass(frozen=True)
class Peers:
    """The peers of a group: their `rows` in the set, and the `weights` with which they count, with
    sum 1. `smoothing` is added to the share of peers that have a value."""

    rows: Ints
    weights: Floats
    smoothing: float


def peers_of(group: Ints, labels: Ints, predicted: Ints) -> Peers | None:
    """Returns the peers of the images at `group`; None if there are none. `labels` and `predicted`
    are the classes of all images of the set, int64 (n,)."""
    outside = np.ones(len(labels), bool)
    outside[group] = False
    rows, weights, smoothing = [], [], 0.0
    for label, share in zip(*np.unique(predicted[group], return_counts=True), strict=True):
        alike = np.flatnonzero(outside & (labels == label) & (predicted == label))
        if len(alike):
            rows.append(alike)
            weights.append(np.full(len(alike), share / len(alike)))
            smoothing += share / len(alike)
    if not rows:
        return None
    weight = np.concatenate(weights)
    return Peers(np.concatenate(rows), weight / weight.sum(), smoothing / weight.sum())


def repeated_value(codes: Ints, of_class: Ints, group: Ints, peers: Peers) -> Signal:
    """Finds the value of a pixel that the images of `group` share most conspicuously.

    `codes` (n, pixels) are those of `codes_of`. The strength is the largest -log10 P(X >= k) over
    pixels and colors, at most `LARGEST`, where k images of the group have the color and X is
    binomial with the share of the peers that have it. An image of the class shows the signal, 1, if
    it has this color there, otherwise 0.
    """
    pixels, colors, counts, shares = [], [], [], []
    for pixel, (ours, theirs) in enumerate(zip(codes[group].T, codes[peers.rows].T, strict=True)):
        found, number = np.unique(ours, return_counts=True)
        found, number = found[number >= REPEATED], number[number >= REPEATED]
        if not len(found):
            continue
        at = np.searchsorted(found, theirs).clip(max=len(found) - 1)
        same = found[at] == theirs
        pixels.append(np.full(len(found), pixel))
        colors.append(found)
        counts.append(number)
        shares.append(np.bincount(at[same], peers.weights[same], minlength=len(found)))
    if not pixels:
        return 0.0, np.zeros(len(of_class))
    share = np.minimum(np.concatenate(shares) + peers.smoothing, 1.0)
    tails = -binom.logsf(np.concatenate(counts) - 1, len(group), share) / np.log(10)
    best = int(tails.argmax())
    shown = codes[of_class, np.concatenate(pixels)[best]] == np.concatenate(colors)[best]
    return float(min(tails[best], LARGEST)), shown.astype(np.float64)


def shared_frequency(
    frequencies: NDArray[np.float32], of_class: Ints, group: Ints, peers: Peers
) -> Signal:
    """Finds the frequency in which the mean of the images of `group` differs most from its peers.

    `frequencies`, float32 (n, values), are those of `frequencies_of`. The strength is the largest
    |difference of means| / (standard deviation of the peers / sqrt(size of the group)). The mean of
    the group is trimmed (`TRIMMED`), so that a few images do not make a signal. An image of the
    class shows the signal as far as it differs from the peers in the direction of all differences
    that are at least half as large, in units of the peers' standard deviation.
    """
    theirs = frequencies[peers.rows].astype(np.float64)
    mean = peers.weights @ theirs
    variance = np.maximum(peers.weights @ theirs**2 - mean**2, 1e-6)
    difference = trim_mean(frequencies[group].astype(np.float64), TRIMMED, axis=0) - mean
    z = difference / np.sqrt(variance / len(group))
    strength = float(np.abs(z).max())
    if strength == 0:
        return 0.0, np.zeros(len(of_class))
    large = np.abs(z) >= strength / 2
    direction = difference[large] / variance[large]
    spread = np.sqrt((direction**2 * variance[large]).sum())
    shown = (frequencies[of_class][:, large] - mean[large]) @ direction / spread
    return strength, shown


def codes_of(images: NDArray[np.uint8]) -> Ints:
    """Returns one number for the color of each pixel of `images` (n, C, H, W), which have at most
    four channels: (n, H * W)."""
    found = np.zeros((len(images), images.shape[2] * images.shape[3]), np.uint32)
    for channel in range(images.shape[1]):
        found |= images[:, channel].reshape(found.shape).astype(np.uint32) << 8 * channel
    return found


def frequencies_of(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the orthonormal discrete cosine transform (type 2) of `images` (n, C, H, W), by
    channel, without the frequencies above the first `LOW` of each axis: float32 (n, values)."""
    parts = []
    for start in range(0, len(images), IMAGES):
        part = images[start : start + IMAGES].astype(np.float32)
        found = dctn(part, axes=(2, 3), norm="ortho")[:, :, :LOW, :LOW]
        parts.append(found.reshape(len(part), -1))
    return np.concatenate(parts)
