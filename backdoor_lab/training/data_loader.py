"""Loads batches from uint8 images in memory. Augmentation and triggers are applied to whole
batches."""

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
    """Iterates over the batches of one training epoch: images uint8 and labels.

    The order and the augmentation depend only on `seed` and the epoch number, so that
    resumed training continues exactly as if it had not been interrupted. The last batch of an epoch
    is dropped if it is incomplete, unless it is the only one; the omitted images differ between
    epochs.

    With ``recipe.flip=alternating``, a random half of the images is mirrored in even epochs and the
    other half in odd ones (Jordan 2024, arXiv 2404.00498, section 3.6).
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
        # Lightning calls `set_epoch` on the loader's `sampler`.
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch number of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(1, len(self.training) // self.recipe.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # Read the epoch only at the first batch: when training resumes, Lightning creates the first
        # iterator before it sets the epoch.
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
    """Moves the tensors of a training set to `device`. If the tensors are already on `device`,
    returns `training` itself."""
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
    """Randomly crop and flip `images`, uint8 (b, C, H, W), and apply Cutout. Returns images of the
    same shape and dtype.

    Images are padded with `recipe.crop_padding` black pixels before the crop (He et al. 2016,
    section 4.2). `flipped`, bool (b,), selects the images to mirror; None mirrors each one with
    probability 1/2.
    """
    if recipe.crop_padding or recipe.flip:
        images = _crop_and_flip(images, recipe, generator, flipped)
    if recipe.cutout:
        images = _cutout(images, recipe.cutout, generator)
    return images


def seeded_augmentation(images: Tensor, generator: torch.Generator, *, recipe: Recipe) -> Tensor:
    """Call `augmented()` with a new generator that is seeded from the CPU generator `generator`.

    `images` may have any dtype and be on any device. Gradients flow through to `images`.
    """
    drawn = torch.Generator(images.device)
    drawn.manual_seed(int(torch.randint(2**62, (), generator=generator)))
    return augmented(images, recipe, drawn)


def _crop_and_flip(
    images: Tensor, recipe: Recipe, generator: torch.Generator, flipped: Tensor | None
) -> Tensor:
    b, channels, height, width = images.shape
    device, pad = images.device, recipe.crop_padding
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad)) if pad else images
    high, wide = height + 2 * pad, width + 2 * pad
    # Indexing with int32 is three times faster than with int64.
    places = torch.int32 if padded.numel() < 2**31 else torch.int64
    count = partial(torch.arange, dtype=places, device=device)
    drawn = torch.randint(0, 2 * pad + 1, (2, b, 1), generator=generator, device=device)
    top, left = drawn.to(places)
    across = count(width).expand(b, width)
    if recipe.flip:
        if flipped is None:
            flipped = torch.rand(b, generator=generator, device=device) < 0.5
        across = torch.where(flipped[:, None], width - 1 - across, across)
    # Gather each byte by its index in the padded batch, in the order of the channels-last memory
    # format, which the network uses.
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
