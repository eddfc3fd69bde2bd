"""Reflections by NumPy, from the authors' code, with the numbers drawn by another SplitMix64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from backdoor_lab.attacks.reflection import Refool
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from tests.helpers.mutations import Mutation

FILE = "attacks/reflection.py"
GLASS = "numerics/glass.py"
MUTATIONS = [
    Mutation(GLASS, "GAMMA = 2.2", "GAMMA = 1.0", "gray levels in place of linear light"),
    Mutation(FILE, "kept * image + reflected", "image + reflected", "the image is not darkened"),
    Mutation(FILE, "(1 - kept / 2) * soft", "(1 - kept) * soft", "the weight of soft reflections"),
    Mutation(FILE, "kind < self.ghost_rate", "kind > self.ghost_rate", "kinds are exchanged"),
    Mutation(FILE, "(side.round() - _within(SPLIT, split)).abs()", "_within(SPLIT, split)",
             "the first copy is always the weaker one"),
    Mutation(FILE, "[(which * len(scenes)).long()]", "[(which * 0).long()]", "one scene for all"),
    Mutation(GLASS, "_part(scene, -rows, -columns)", "_part(scene, rows, columns)", "no double"),
    Mutation(GLASS, "offset * max(height, width) / (SIDE * side)", "offset / side", "pixels of 32"),
    Mutation(GLASS, "pixels = sigma * max(height, width) / SIDE", "pixels = sigma", "a wide blur"),
    Mutation(GLASS, "excess = (mean.clamp(min=1) - 1)", "excess = 0 * (mean.clamp(min=1) - 1)",
             "no darkening"),
    Mutation(GLASS, "** 2) / 4)", "** 2) / 2)", "the fading of a plain Gaussian"),
    Mutation(FILE, "(255 * mixed).to", "(255 * mixed).round().to", "rounded to the nearest level"),
]  # fmt: skip
SIDE, MASK = 560, 2**64 - 1


def uniform(image: np.ndarray, factors: np.ndarray) -> list[float]:
    """Eleven numbers of SplitMix64, seeded with a weighted sum of the pixels."""
    state = sum(int(a) * int(b) for a, b in zip(image.flat, factors.flat, strict=True))
    found = []
    for _ in range(11):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(((z ^ (z >> 31)) >> 11) / 2**53)
    return found


def sampled(scene: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The scene (C, H, W) at fractional rows and columns, by bilinear interpolation."""
    for axis, places in ((1, rows), (2, columns)):
        at = places.clip(0, scene.shape[axis] - 1)
        low = np.floor(at).astype(int).clip(max=scene.shape[axis] - 2)
        part = (at - low).reshape([-1 if each == axis else 1 for each in range(3)])
        scene = (1 - part) * scene.take(low, axis) + part * scene.take(low + 1, axis)
    return scene


def ghost(scene: np.ndarray, offset: tuple[int, int], first: float) -> np.ndarray:
    """Both copies are padded by the offset, cut to the part that they share, and enlarged."""
    sides = scene.shape[1:]
    places = []
    for n, pixels in zip(sides, offset, strict=True):
        d = pixels * max(sides) / SIDE
        places.append((d + (np.arange(n) + 0.5) * (n - d) / n - 0.5, d))
    (rows, down), (columns, right) = places
    return first * sampled(scene, rows, columns) + (1 - first) * sampled(
        scene, rows - down, columns - right
    )


def soft(scene: np.ndarray, t: np.ndarray, sigma: float, factor: float,
         place: tuple[float, float]) -> np.ndarray:  # fmt: skip
    """Blurred, reduced by the excess over white, and faded by sqrt(N(y) N(x)) over ±3 standard
    deviations of a square with the longer side."""
    fade = []
    for axis, share in ((1, place[0]), (2, place[1])):
        n, longer = scene.shape[axis], max(scene.shape[1:])
        at, width = np.arange(n), sigma * longer / SIDE
        kernel = np.exp(-((at[:, None] - at) ** 2) / (2 * width**2))
        kernel /= kernel.sum(axis=1, keepdims=True)
        scene = np.moveaxis(np.tensordot(kernel, scene, axes=(1, axis)), 0, axis)
        z = 6 * (share * (longer - n) + at + 0.5) / longer - 3
        fade.append(np.sqrt(np.exp(-(z**2) / 2)))
    over = [total[total > 1] for total in scene + t]
    excess = [(max(1, each.sum() / (len(each) + 1e-6)) - 1) * factor for each in over]
    return (scene - np.array(excess)[:, None, None]).clip(0, 1) * np.outer(*fade)


@pytest.mark.parametrize("size", [(32, 32), (40, 60)], ids=str)
def test_reflections_match_the_formulas_of_the_authors(size: tuple[int, int]) -> None:
    trigger = Refool(pattern_seed=5, scenes=7)
    generator = torch.Generator().manual_seed(8)
    images = torch.randint(0, 256, (40, 3, *size), generator=generator).byte()
    images = (images.float() ** 2 / 255).byte()
    scenes = trigger.linear_scenes(3, *size).numpy()
    drawing = torch_generator(5, streams.REFLECTION)
    factors = torch.randint(2**62, (3, *size), generator=drawing).numpy()
    ghosts, equal = 0, []
    for image, found in zip(images.numpy(), trigger(images).numpy(), strict=True):
        u = uniform(image, factors)
        t, r = (image / 255) ** 2.2, scenes[int(u[0] * 7)]
        alpha = 1 - (0.05 + 0.4 * u[1])
        if u[2] < 0.39:
            ghosts += 1
            offset = (3 + math.floor(6 * u[3]), 3 + math.floor(6 * u[4]))
            share = abs(round(u[5]) - (0.15 + 0.35 * u[6]))
            reflected = (1 - alpha) * ghost(r, offset, share)
        else:
            blurred = soft(r, t, 1 + 4 * u[7], 1.08 + 0.1 * u[8], (u[9], u[10]))
            reflected = (1 - alpha / 2) * blurred
        expected = np.floor(255 * (alpha * t + reflected).clip(0, 1) ** (1 / 2.2))
        equal.append((found == expected).mean())
    assert 5 < ghosts < 35
    assert np.mean(equal) > 0.999


def test_defaults_are_the_ranges_of_the_authors() -> None:
    trigger = Refool()
    assert (trigger.strength, trigger.shift, trigger.sigma) == ((0.05, 0.45), (3, 8), (1, 5))
    assert (trigger.ghost_rate, trigger.scenes) == (0.39, 200)
