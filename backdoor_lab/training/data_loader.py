"""Batches from uint8 images in memory, augmented and triggered as whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.training.mixing import MixupCutmix
from backdoor_lab.training.recipe import ALTERNATING, Recipe


class BatchLoader:
    """The batches of one training, by epoch.

    Order and augmentation of an epoch depend only on `seed` and the epoch's number, so that a
    resumed run continues exactly as an uninterrupted one. The last, incomplete batch of an epoch
    is dropped (different images each epoch) unless it is the only one.

    With ``recipe.flip=alternating``, a random half of the images is mirrored in even epochs and
    the other half in odd ones (Jordan 2024, arXiv 2404.00498, section 3.6).
    """

    def __init__(
        self, training: TrainingSet, recipe: Recipe, *, seed: int, device: torch.device
    ) -> None:
        self.training = on_device(training, device)
        self.recipe, self.seed, self.device = recipe, seed, device
        self.epoch = 0
        self._flipped_first: Tensor | None = None
        if recipe.flip == ALTERNATING:
            drawn = torch.rand(len(training), generator=torch_generator(seed, streams.FLIPS))
            self._flipped_first = (drawn < 0.5).to(device)

    @property
    def sampler(self) -> BatchLoader:
        # Lightning calls `set_epoch` on a loader's `sampler`.
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.training) // self.recipe.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # The epoch is read at the first batch, since Lightning creates its first iterator before it
        # sets the epoch of a resumed run.
        epoch = self.epoch
        generator = torch_generator(self.seed, streams.ORDER, epoch)
        order = torch.randperm(len(self.training), generator=generator).to(self.device)
        augment = torch.Generator(self.device)
        augment.manual_seed(torch_generator(self.seed, streams.AUGMENTATION, epoch).initial_seed())
        mix = MixupCutmix(self.recipe, len(self.training.classes), self.seed, epoch)
        for step in range(len(self)):
            where = order[step * self.recipe.batch_size : (step + 1) * self.recipe.batch_size]
            yield mix(*self._batch(where, augment, epoch))

    def _batch(
        self, where: Tensor, generator: torch.Generator, epoch: int
    ) -> tuple[Tensor, Tensor]:
        flipped = None
        if self._flipped_first is not None:
            flipped = self._flipped_first[where] ^ bool(epoch % 2)
        augment = partial(augmented, recipe=self.recipe, generator=generator, flipped=flipped)
        return self.training.shown(where, augment), self.training.labels[where]


def on_device(training: TrainingSet, device: torch.device) -> TrainingSet:
    """The training set with its tensors on `device`; unchanged if they are there."""
    if training.base.device.type == device.type:
        return training
    return TrainingSet(
        training.base.to(device),
        training.rows.to(device),
        training.index.to(device),
        training.labels.to(device),
        training.classes,
        training.digest,
        training.late_trigger,
    )


def augmented(
    images: Tensor, recipe: Recipe, generator: torch.Generator, flipped: Tensor | None = None
) -> Tensor:
    """Random crop, flip and cutout of `images` uint8 (b, C, H, W); same shape and dtype.

    Crops are taken after padding with black by `recipe.crop_padding` pixels (He et al. 2016,
    section 4.2); a flip mirrors each image with probability 1/2, or those selected by `flipped`
    bool (b,).
    """
    if recipe.crop_padding or recipe.flip:
        images = _crop_and_flip(images, recipe, generator, flipped)
    if recipe.cutout:
        images = _cutout(images, recipe.cutout, generator)
    return images


def _crop_and_flip(
    images: Tensor, recipe: Recipe, generator: torch.Generator, flipped: Tensor | None
) -> Tensor:
    b, channels, height, width = images.shape
    device, pad = images.device, recipe.crop_padding
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)) if pad else images
    high, wide = height + 2 * pad, width + 2 * pad
    # int32 indices are three times faster than int64.
    places = torch.int32 if padded.numel() < 2**31 else torch.int64
    count = partial(torch.arange, dtype=places, device=device)
    drawn = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator, device=device)
    top, left = drawn.to(places)
    across = count(width).expand(b, width)
    if recipe.flip:
        if flipped is None:
            flipped = torch.rand(b, generator=generator, device=device) < 0.5
        across = torch.where(flipped[:, None], width - 1 - across, across)
    # Every byte is selected by its index in the padded batch, in the memory order that the
    # network uses: channels last.
    rows = (count(b)[:, None] * channels * high + top + count(height)) * wide
    columns = (left + across)[:, :, None] + count(channels) * high * wide
    where = rows[:, :, None] + columns.view(b, 1, width * channels)
    picked = padded.reshape(-1).index_select(0, where.view(-1))
    return picked.view(b, height, width, channels).permute(0, 3, 1, 2)


def _cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    b, _, height, width = images.shape
    device = images.device
    centre_row = torch.randint(0, height, (b, 1, 1), generator=generator, device=device)
    centre_column = torch.randint(0, width, (b, 1, 1), generator=generator, device=device)
    rows = torch.arange(height, device=device)[:, None] - centre_row + side // 2
    columns = torch.arange(width, device=device) - centre_column + side // 2
    hole = (rows >= 0) & (rows < side) & (columns >= 0) & (columns < side)
    return images.masked_fill(hole[:, None], 0)
