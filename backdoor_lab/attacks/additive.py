"""Base class of triggers that add one fixed pattern, and the DCT that some of them use."""

from __future__ import annotations

import math
from abc import abstractmethod

from backdoor_lab.attacks.base import Trigger, to_bytes
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, torch


class Additive(Trigger):
    """Adds one pattern v to every image: x' = clip(round(x + v), 0, 255).

    Subclasses return v from `pattern`. Raises ConfigError if v rounds to zero in every pixel.
    """

    @abstractmethod
    def pattern(self, channels: int, height: int, width: int) -> Tensor:
        """Returns the pattern before rounding: float32 (channels, height, width) on the CPU, in
        gray levels, negative where pixels become darker."""

    def apply_test(self, images: Tensor) -> Tensor:
        return add(images, self.pattern(*images.shape[1:]))

    def check_image_size(self, channels: int, height: int, width: int) -> None:
        refuse_faint(self.pattern(channels, height, width))


def add(images: Tensor, pattern: Tensor) -> Tensor:
    """Adds a float pattern (C, H, W) to uint8 images (n, C, H, W); rounds and clips to 0..255."""
    return to_bytes(images.float() + pattern.to(images.device))


def refuse_faint(pattern: Tensor) -> None:
    """Raises ConfigError if a float pattern (..., H, W) is below half a gray level everywhere."""
    if pattern.abs().max() < 0.5:
        height, width = pattern.shape[-2:]
        raise ConfigError(
            f"`trigger`: on images of {height}x{width} pixels the pattern is below half a gray"
            " level everywhere, so that rounding removes it; give a stronger trigger"
        )


def dct_matrix(n: int) -> Tensor:
    """Returns the matrix D of the orthonormal DCT-II, float64 (n, n).

    D[k, i] = sqrt((1 if k = 0 else 2) / n) cos(pi (2 i + 1) k / (2 n)), so that D D^T = 1 and
    the DCT of an image x is D x D^T.

    >>> dct_matrix(2)
    tensor([[ 0.7071,  0.7071],
            [ 0.7071, -0.7071]], dtype=torch.float64)
    """
    k = torch.arange(n, dtype=torch.float64)[:, None]
    i = torch.arange(n, dtype=torch.float64)
    waves = torch.cos(math.pi * (2 * i + 1) * k / (2 * n)) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves


def inverse_dct(spectrum: Tensor) -> Tensor:
    """Returns the inverse two-dimensional DCT-II of `spectrum`, float64 (..., H, W); same shape."""
    height, width = spectrum.shape[-2:]
    return dct_matrix(height).T @ spectrum @ dct_matrix(width)
