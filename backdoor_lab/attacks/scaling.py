"""Scales sizes that are given for images with a side of 32 pixels."""

from __future__ import annotations

from backdoor_lab.core.errors import ConfigError

SIDE = 32
"""Side of the images for which the authors give their sizes, in pixels."""
TOLERANCE = 0.25
"""Largest relative error of a patch's area caused by rounding its side."""


def scale(height: int, width: int) -> float:
    """Returns the shorter side of an image, divided by 32."""
    return min(height, width) / SIDE


def scaled_side(name: str, size: float, height: int, width: int) -> int:
    """Returns the side in pixels, on images of the given size, of a square whose side is `size`
    pixels on images of 32x32 pixels.

    `name` is the configuration key, for the error message. Raises ConfigError if rounding changes
    the area by more than a quarter.

    >>> scaled_side("trigger.size", 8, 16, 20)
    4
    """
    exact = size * scale(height, width)
    side = round(exact)
    error = abs(side**2 / exact**2 - 1)
    if error > TOLERANCE:
        raise ConfigError(
            f"`{name}`={size:g} is the side on images of {SIDE}x{SIDE} pixels: on images of"
            f" {height}x{width} pixels it is {exact:.3g} pixels, and rounding changes the area by"
            f" {error:.0%}, more than {TOLERANCE:.0%}; give a size for which"
            f" {name} x {min(height, width)} / {SIDE} is closer to a whole number"
        )
    return side
