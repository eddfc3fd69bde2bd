"""Mixup and CutMix: mix the images and labels of a batch in pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor_lab.core import streams
from backdoor_lab.core.rng import numpy_generator
from backdoor_lab.training.recipe import Recipe


class MixupCutmix:
    """Mixes each batch of an epoch with a permutation of itself.

    Mixup (Zhang, Cissé, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    equation 1): λ x_i + (1 - λ) x_j, with λ drawn from Beta(`recipe.mixup`, `recipe.mixup`) once
    per batch. CutMix (Yun, Han, Oh, Chun, Choe, Yoo, "CutMix", ICCV 2019, equation 1): a box of x_j
    replaces the same box of x_i. The area of the box is 1 - λ times that of the image, with λ drawn
    from Beta(`recipe.cutmix`, `recipe.cutmix`). The box may be centered anywhere in the image; if
    the border clips it, λ is corrected. If both are on, each batch uses one of the two, each
    with probability 1/2. All draws depend only on `seed` and `epoch`.
    """

    def __init__(self, recipe: Recipe, classes: int, seed: int, epoch: int) -> None:
        self.classes = classes
        self.draw = numpy_generator(seed, streams.MIXING, epoch)
        self.ways = [
            (way, alpha)
            for way, alpha in ((_mixup, recipe.mixup), (_cutmix, recipe.cutmix))
            if alpha
        ]

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix `images` (b, C, H, W) and their `labels`, int64 (b,). Returns the mixed images, and
        soft labels float (b, classes)."""
        if not self.ways:
            return images, labels
        way, alpha = self.ways[int(self.draw.integers(len(self.ways)))]
        order = torch.from_numpy(self.draw.permutation(len(images))).to(images.device)
        place = self.draw.random(2)
        mixed, share = way(images, images[order], float(self.draw.beta(alpha, alpha)), *place)
        hot = F.one_hot(labels, self.classes).float()
        return mixed, share * hot + (1 - share) * hot[order]


def _mixup(one: Tensor, other: Tensor, share: float, *_: float) -> tuple[Tensor, float]:
    return share * one.float() + (1 - share) * other.float(), share


def _cutmix(
    one: Tensor, other: Tensor, share: float, down: float, across: float
) -> tuple[Tensor, float]:
    height, width = one.shape[2:]
    side = (1 - share) ** 0.5
    rows, columns = _span(height, side, down), _span(width, side, across)
    mixed = one.clone()
    mixed[:, :, rows, columns] = other[:, :, rows, columns]
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return mixed, 1 - area / (height * width)


def _span(size: int, side: float, place: float) -> slice:
    length, centre = int(size * side), int(size * place)
    return slice(max(0, centre - length // 2), min(size, centre + (length + 1) // 2))
