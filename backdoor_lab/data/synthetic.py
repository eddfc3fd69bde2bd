"""A small drawn data set: ten classes under CIFAR-10's names, made by numpy from a seed.

Nothing is downloaded and nothing is stored: the same arguments give the same images in every
process. Each class is one outline (a cross for an airplane, a low box for an automobile, ...) with
random place, size, tilt, colour, background, slope of light and noise.

Two things make a backdoor more visible here than in photographs, and are chosen so: the pictures
are dim, so a white trigger stands out more (12 standard deviations from the mean), and the members
of a class vary little, so a network gets nearly all test images right (99.8 % at size 16).
See `BACKGROUND`, `CONTRAST`, `SHIFT`. The demo goes further, with `noise` 3 and `shift` 0.05 at
size 12: white is then 17 standard deviations from the mean, and all test images are right.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.float64]
Outline = Callable[[Grid, Grid], Grid]

BACKGROUND = (25.0, 50.0)
"""The darkest and brightest background, in steps of 0 to 255."""

CONTRAST = (22.0, 28.0)
"""How much brighter than its background the object is."""

SHIFT, RADIUS, TILT = 0.2, (0.55, 0.65), 0.2
"""How far the object lies from the middle at most, its size, both in half widths of the image; its
tilt in radians. `SHIFT` is the default of `draw`."""

_SPLITS = {"train": 0, "test": 1}


def _box(u: Grid, v: Grid, half_width: float, half_height: float) -> Grid:
    """Signed distance to a box about the origin: negative inside."""
    return np.maximum(np.abs(u) - half_width, np.abs(v) - half_height)


def _airplane(u: Grid, v: Grid) -> Grid:
    """A cross: fuselage and wings."""
    return np.minimum(_box(u, v, 1.0, 0.28), _box(u, v, 0.28, 1.0))


def _automobile(u: Grid, v: Grid) -> Grid:
    """A low, wide box."""
    return _box(u, v, 1.1, 0.45)


def _bird(u: Grid, v: Grid) -> Grid:
    """Two raised wings: a V."""
    return np.maximum(np.abs(v + 0.9 - 1.4 * (1 - np.abs(u))) - 0.45, np.abs(u) - 1.0)


def _cat(u: Grid, v: Grid) -> Grid:
    """An upright triangle, like an ear."""
    return np.maximum(0.9 * np.abs(u) - 0.5 * v - 0.4, v - 0.8)


def _deer(u: Grid, v: Grid) -> Grid:
    """A T: antlers on a neck."""
    return np.minimum(_box(u, v + 0.7, 1.0, 0.28), _box(u, v, 0.28, 1.0))


def _dog(u: Grid, v: Grid) -> Grid:
    """An H: four legs and a back."""
    return np.minimum(_box(u, v, 0.95, 0.27), _box(np.abs(u) - 0.68, v, 0.27, 0.95))


def _frog(u: Grid, v: Grid) -> Grid:
    """A ring."""
    return np.abs(np.hypot(u, v) - 0.78) - 0.24


def _horse(u: Grid, v: Grid) -> Grid:
    """An arch: a back on four legs."""
    return np.minimum(_box(u, v + 0.65, 0.95, 0.3), _box(np.abs(u) - 0.68, v, 0.27, 0.95))


def _ship(u: Grid, v: Grid) -> Grid:
    """A hull: the lower half of a disc."""
    return np.maximum(np.hypot(u, v + 0.45) - 1.1, -(v + 0.45))


def _truck(u: Grid, v: Grid) -> Grid:
    """An L: bed and cab."""
    return np.minimum(_box(u, v - 0.65, 1.0, 0.32), _box(u + 0.68, v, 0.32, 1.0))


OUTLINES: dict[str, Outline] = {
    "airplane": _airplane,
    "automobile": _automobile,
    "bird": _bird,
    "cat": _cat,
    "deer": _deer,
    "dog": _dog,
    "frog": _frog,
    "horse": _horse,
    "ship": _ship,
    "truck": _truck,
}

CLASSES: tuple[str, ...] = tuple(OUTLINES)


def draw(
    per_class: int,
    *,
    size: int = 32,
    channels: int = 3,
    seed: int = 0,
    split: str = "train",
    noise: float = 12.0,
    shift: float = SHIFT,
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw `per_class` images of every class, in random order of classes.

    Args:
        per_class: images of each of the ten classes.
        size: height and width in pixels.
        channels: 3 for colour, 1 for grey.
        seed: names the data set; another seed is another set of the same kind.
        split: "train" or "test", two disjoint streams of random numbers: no image is in both.
        noise: standard deviation of the noise on every pixel, in steps of 0 to 255.
        shift: how far the object lies from the middle at most, in half widths of the image.

    Returns:
        images: uint8 (10 * per_class, channels, size, size).
        labels: int64 (10 * per_class,), indices into `CLASSES`.
    """
    images = np.empty((len(CLASSES), per_class, channels, size, size), np.uint8)
    for label, outline in enumerate(OUTLINES.values()):
        rng = np.random.default_rng((seed, _SPLITS[split], label))
        images[label] = _draw_class(rng, outline, (per_class, channels, size), noise, shift)
    labels = np.repeat(np.arange(len(CLASSES)), per_class)
    order = np.random.default_rng((seed, _SPLITS[split], len(CLASSES))).permutation(labels.size)
    return images.reshape(-1, channels, size, size)[order], labels[order]


def _draw_class(
    rng: np.random.Generator,
    outline: Outline,
    shape: tuple[int, int, int],
    noise: float,
    shift: float,
) -> NDArray[np.uint8]:
    """Draw one class: uint8 (count, channels, size, size)."""
    count, channels, size = shape
    u, v, pixel = _coordinates(rng, count, size, shift)
    cover = np.clip(0.5 - outline(u, v) / pixel, 0.0, 1.0)[:, None]
    back, front = _colours(rng, count, channels)
    picture = back + _shading(rng, count, size)
    picture = picture + cover * (front - picture)
    picture += noise * rng.standard_normal((count, channels, size, size))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _coordinates(
    rng: np.random.Generator, count: int, size: int, shift: float
) -> tuple[Grid, Grid, Grid]:
    """Axes of each image, moved, scaled, tilted: u, v (count, size, size); a pixel's width."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    x0, y0 = rng.uniform(-shift, shift, (2, count, 1, 1))
    radius = rng.uniform(*RADIUS, (count, 1, 1))
    tilt = rng.uniform(-TILT, TILT, (count, 1, 1))
    x, y = (axis[None, None, :] - x0) / radius, (axis[None, :, None] - y0) / radius
    u = np.cos(tilt) * x + np.sin(tilt) * y
    v = np.cos(tilt) * y - np.sin(tilt) * x
    return u, v, 2 / size / radius


def _colours(rng: np.random.Generator, count: int, channels: int) -> tuple[Grid, Grid]:
    """A background and a brighter object colour, each (count, channels, 1, 1)."""
    back = rng.uniform(*BACKGROUND, (count, 1, 1, 1)) + rng.uniform(-5, 5, (count, channels, 1, 1))
    contrast = rng.uniform(*CONTRAST, (count, 1, 1, 1)) + rng.uniform(
        -8, 8, (count, channels, 1, 1)
    )
    return back, back + contrast


def _shading(rng: np.random.Generator, count: int, size: int) -> Grid:
    """A slope of light over the background: (count, 1, size, size)."""
    axis = np.linspace(-1.0, 1.0, size)
    dx, dy = rng.uniform(-5, 5, (2, count, 1, 1, 1))
    return dx * axis + dy * axis[:, None]
