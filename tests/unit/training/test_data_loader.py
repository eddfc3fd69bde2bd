"""Batches have each image once per epoch, are augmented correctly, and get late triggers last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.training.data_loader import BatchLoader, augmented, seeded_augmentation
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.train import new_classifier
from tests.helpers.cells import CPU, job, recipe, training_set

HERE = torch.device("cpu")


def noise(n: int, channels: int = 3, height: int = 9, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (n, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def numbered(n: int) -> TrainingSet:
    """Images that show their own number, so that batches reveal their origin."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, 4, 4)
    return training_set(images.contiguous(), torch.arange(n), classes=tuple(map(str, range(n))))


def epoch(training: TrainingSet, number: int, *, seed: int = 0, **changes: Any) -> list[Any]:
    batches = BatchLoader(training, recipe(**changes), seed=seed, device=HERE)
    batches.set_epoch(number)
    return list(batches)


def slow(images: Tensor, asked: Recipe, generator: torch.Generator) -> np.ndarray:
    """The same augmentation with the same random numbers, image by image."""
    n, channels, height, width = images.shape
    pad, side = asked.crop_padding, asked.cutout
    out = images.numpy().copy()
    if asked.crop_padding or asked.flip:
        tops, lefts = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=generator)
        flips = torch.rand(n, 1, generator=generator) if asked.flip else torch.ones(n, 1)
        for i in range(n):
            canvas = np.zeros((channels, height + 2 * pad, width + 2 * pad), np.uint8)
            canvas[:, pad : pad + height, pad : pad + width] = out[i]
            top, left = int(tops[i]), int(lefts[i])
            picked = canvas[:, top : top + height, left : left + width]
            out[i] = picked[:, :, ::-1] if float(flips[i]) < 0.5 else picked
    if side:
        rows = torch.randint(0, height, (n, 1, 1), generator=generator)
        columns = torch.randint(0, width, (n, 1, 1), generator=generator)
        for i in range(n):
            top, left = int(rows[i]) - side // 2, int(columns[i]) - side // 2
            out[i, :, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    return out


@pytest.mark.parametrize(
    "changes",
    [{"crop_padding": 2}, {"flip": True}, {"crop_padding": 3, "flip": True}, {"cutout": 4},
     {"crop_padding": 1, "flip": True, "cutout": 3}],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_gives_the_same_images_as_a_simple_loop(
    changes: dict[str, Any], channels: int
) -> None:
    images, asked = noise(40, channels), recipe(**changes)
    found = augmented(images, asked, torch.Generator().manual_seed(7))
    np.testing.assert_array_equal(found, slow(images, asked, torch.Generator().manual_seed(7)))
    assert found.dtype == torch.uint8
    if (asked.crop_padding or asked.flip) and not asked.cutout:
        # The network needs this memory format, and no copy is made.
        assert found.is_contiguous(memory_format=torch.channels_last)
    # The input images are not modified.
    assert torch.equal(images, noise(40, channels))


def test_augmentation_of_float_images_is_differentiable() -> None:
    """Crops and flips equal those of integer images. The derivative of the sum is 1 for pixels
    inside the crop and 0 for all others."""
    asked = recipe(crop_padding=2, flip=True)
    images = noise(6)
    found = [
        seeded_augmentation(each, torch.Generator().manual_seed(0), recipe=asked)
        for each in (images, images.float().requires_grad_())
    ]
    assert torch.equal(found[0].float(), found[1])
    assert not torch.equal(found[0], images)
    leaf = images.float().requires_grad_()
    seen = seeded_augmentation(leaf, torch.Generator().manual_seed(0), recipe=asked)
    (shown,) = torch.autograd.grad(seen.sum(), leaf)
    assert set(shown.unique().tolist()) == {0.0, 1.0}
    assert torch.equal((shown * leaf).sum(), seen.sum())


def test_images_are_unchanged_without_augmentation() -> None:
    images = noise(10)
    assert torch.equal(augmented(images, recipe(), torch.Generator()), images)


def test_random_flips_and_crops_are_uniformly_distributed() -> None:
    images = noise(2000)
    flipped = augmented(images, recipe(flip=True), torch.Generator().manual_seed(0))
    stayed = (flipped == images).flatten(1).all(dim=1)
    assert 0.46 < float(stayed.double().mean()) < 0.54
    assert torch.equal(flipped[~stayed], images[~stayed].flip(3))
    cropped = augmented(images, recipe(crop_padding=1), torch.Generator().manual_seed(0))
    unmoved = (cropped == images).flatten(1).all(dim=1).double().mean()
    assert 0.08 < float(unmoved) < 0.145  # one of nine


def test_an_alternating_flip_mirrors_each_image_every_other_epoch() -> None:
    n = 400
    images = torch.zeros(n, 3, 4, 4, dtype=torch.uint8)
    images[..., 0] = 255  # a bright left edge
    training = training_set(images, torch.arange(n))

    def mirrored(number: int, seed: int = 0) -> Tensor:
        found = torch.zeros(n, dtype=torch.bool)
        for batch, labels in epoch(training, number, seed=seed, batch_size=40, flip="alternating"):
            found[labels] = batch[:, 0, 0, -1] == 255
            assert bool(((batch[..., 0] == 255) != (batch[..., -1] == 255)).all())
        return found

    first = mirrored(0)
    assert 0.4 < float(first.double().mean()) < 0.6
    for number in range(1, 5):
        assert torch.equal(mirrored(number), first ^ bool(number % 2))
    assert not torch.equal(mirrored(0, seed=1), first)


def test_an_alternating_flip_does_not_change_the_crops() -> None:
    """If the epoch is unknown, as in the training of a defense, images are flipped at random."""
    images = noise(30)
    chosen = torch.arange(30) % 3 == 0
    asked = recipe(flip="alternating", crop_padding=2)
    found = augmented(images, asked, torch.Generator().manual_seed(1), chosen)
    # The crop is taken first, then mirrored.
    plain = augmented(images, recipe(crop_padding=2), torch.Generator().manual_seed(1))
    expected = torch.where(chosen.view(-1, 1, 1, 1), plain.flip(3), plain)
    assert torch.equal(found, expected)
    drawn = augmented(images, asked, torch.Generator().manual_seed(1))
    random = augmented(images, recipe(flip=True, crop_padding=2), torch.Generator().manual_seed(1))
    assert torch.equal(drawn, random)


def test_cutout_sets_a_square_to_black() -> None:
    side = 4
    holes = augmented(noise(300), recipe(cutout=side), torch.Generator().manual_seed(0)) == 0
    area = holes[:, 0].flatten(1).sum(dim=1)
    assert torch.equal(holes.all(dim=1), holes.any(dim=1))
    # Where the center is near an edge, a part of the square lies outside.
    assert int(area.max()) == side**2
    assert (side // 2) ** 2 <= int(area.min()) < side**2


@pytest.mark.parametrize(("n", "batch"), [(20, 8), (24, 8), (5, 8), (9, 2)])
def test_an_epoch_visits_every_index_at_most_once(n: int, batch: int) -> None:
    batches = epoch(numbered(n), 3, batch_size=batch)
    seen = [int(image[0, 0, 0]) for images, _ in batches for image in images]
    labels = [int(label) for _, labels in batches for label in labels]
    assert seen == labels
    assert len(set(seen)) == len(seen) == max(n // batch * batch, min(n, batch))
    assert len(batches) == len(
        BatchLoader(numbered(n), recipe(batch_size=batch), seed=0, device=HERE)
    )


def test_every_image_is_seen_over_a_few_epochs() -> None:
    seen = {int(i[0, 0, 0]) for k in range(8) for images, _ in epoch(numbered(20), k)
            for i in images}  # fmt: skip
    assert seen == set(range(20))


def test_order_and_augmentation_depend_only_on_seed_and_epoch() -> None:
    training = training_set(noise(32), torch.zeros(32, dtype=torch.long))

    def bytes_of(number: int, seed: int) -> bytes:
        batches = epoch(training, number, seed=seed, crop_padding=2, flip=True, cutout=2)
        return b"".join(images.numpy().tobytes() for images, _ in batches)

    torch.manual_seed(1)
    first = bytes_of(2, 5)
    torch.manual_seed(2)
    again = bytes_of(2, 5)
    assert first == again
    assert len({first, bytes_of(3, 5), bytes_of(2, 6)}) == 3
    # The same epoch of a loader that has run earlier epochs is equal, too.
    same = BatchLoader(training, recipe(crop_padding=2, flip=True, cutout=2), seed=5, device=HERE)
    list(same)
    same.sampler.set_epoch(2)
    assert b"".join(images.numpy().tobytes() for images, _ in same) == first


def poisoned(stamp: Any) -> tuple[TrainingSet, Tensor, Tensor]:
    images = noise(20).clamp(max=200)
    rows = images[[1, 4, 6]]
    index = torch.cat([torch.arange(20), 20 + torch.arange(3)])
    index[3], index[20] = 22, 3  # poison not only at the end
    labels = torch.zeros(23, dtype=torch.long)
    said = {"rows": rows, "index": index, "late_trigger": stamp}
    return training_set(images, labels, **said), images, rows


def test_gathering_a_batch_equals_naive_indexing() -> None:
    training, images, rows = poisoned(None)
    everything = torch.cat([images, rows])
    where = torch.randperm(23, generator=torch_generator(0))
    assert torch.equal(training.gather(where), everything[training.index][where])
    clean = training_set(images, torch.zeros(20, dtype=torch.long))
    assert torch.equal(clean.gather(where[:5].clamp(max=19)), images[where[:5].clamp(max=19)])


def test_the_clean_images_are_never_copied() -> None:
    training, images, _ = poisoned(None)
    kept = training.keep(torch.arange(23) % 2 == 0, "")
    batches = BatchLoader(kept, recipe(), seed=0, device=HERE)
    assert batches.training.base.data_ptr() == kept.base.data_ptr() == images.data_ptr()
    assert len(kept) == 12


@pytest.mark.parametrize("changes", [{}, {"crop_padding": 3, "flip": True, "cutout": 5}])
def test_a_trigger_applied_after_augmentation_changes_only_the_poisoned_images(
    changes: Any,
) -> None:
    stamp = Pixel(position=(-1, -1), color=255)
    late, images, rows = poisoned(stamp)
    early = poisoned(None)[0]
    for number in range(3):
        with_trigger = epoch(late, number, batch_size=23, **changes)[0][0]
        without = epoch(early, number, batch_size=23, **changes)[0][0]
        order = torch.randperm(23, generator=torch_generator(0, "order", number))
        is_poison = late.index[order] >= 20
        assert torch.equal(with_trigger[~is_poison], without[~is_poison])
        assert torch.equal(with_trigger[is_poison], stamp(without[is_poison]))
        assert bool((with_trigger[is_poison][:, :, -1, -1] == 255).all())
    # Neither the clean images nor the rows were modified.
    assert torch.equal(late.base, images)
    assert torch.equal(late.rows, rows)
    assert int(late.base.max()) <= 200
    assert int(late.rows.max()) <= 200


def test_features_come_from_triggered_images_without_augmentation() -> None:
    stamp = Pixel(position=(-1, -1), color=255)
    late, _, rows = poisoned(stamp)
    early = poisoned(None)[0]
    stamped = training_set(early.base, early.labels, rows=stamp(rows), index=early.index)
    asked = job(late, crop_padding=4, flip=True, cutout=4)
    module = new_classifier(asked, CPU).eval()
    found = extract(module, late, "penultimate", CPU).values
    assert torch.equal(found, extract(module, stamped, "penultimate", CPU).values)
    assert not torch.equal(found, extract(module, early, "penultimate", CPU).values)


def test_training_and_defenses_see_the_same_triggered_images() -> None:
    """Images are augmented first and triggered afterwards, both in training and for defenses."""
    stamp = Pixel(position=(-1, -1), color=255)
    late, _, _ = poisoned(stamp)
    asked = recipe(flip=True, crop_padding=2, batch_size=len(late))
    (given, _), *_ = epoch(late, 0, flip=True, crop_padding=2, batch_size=len(late))
    order = torch.randperm(len(late), generator=torch_generator(0, streams.ORDER, 0))
    seed = torch_generator(0, streams.AUGMENTATION, 0).initial_seed()
    draw = [torch.Generator().manual_seed(seed) for _ in "ab"]
    shown = late.shown(order, lambda images: augmented(images, asked, draw[0]))
    assert torch.equal(given, shown)
    plain = augmented(late.gather(order), asked, draw[1])
    chosen = late.is_triggered_late(order)
    assert chosen.any()
    assert not chosen.all()
    expected = torch.where(chosen.view(-1, 1, 1, 1), stamp(plain), plain)
    assert torch.equal(shown, expected)
    assert not torch.equal(shown, plain)
