"""Mixup and CutMix: the formulas of the papers, and draws that depend only on the seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.mixing import MixupCutmix
from tests.helpers.cells import recipe, toy_set

HERE = torch.device("cpu")


def batch(b: int = 8, side: int = 10) -> tuple[Tensor, Tensor]:
    """Each image has one gray value, so that a pixel reveals its origin."""
    values = 10 * torch.arange(b, dtype=torch.uint8)
    return values.view(b, 1, 1, 1).expand(b, 3, side, side).contiguous(), torch.arange(b)


def mixed(seed: int = 0, epoch: int = 0, **changes: float) -> tuple[Tensor, Tensor]:
    images, labels = batch()
    return MixupCutmix(recipe(**changes), 8, seed, epoch)(images, labels)


def test_without_mixup_and_cutmix_the_batch_is_returned_unchanged() -> None:
    images, labels = batch()
    same = MixupCutmix(recipe(), 8, 0, 0)(images, labels)
    assert same[0] is images
    assert same[1] is labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("way", ["mixup", "cutmix"])
def test_labels_are_mixed_with_the_same_weights_as_pixels(way: str, seed: int) -> None:
    """Pixels are λ x_i + (1 - λ) x_j and labels λ y_i + (1 - λ) y_j. With x = 10 y, the mean pixel
    is therefore 10 times the mean label for both methods."""
    images, shares = mixed(seed, **{way: 1.0})
    assert torch.allclose(shares.sum(dim=1), torch.ones(8))
    expected = shares @ (10 * torch.arange(8.0))
    assert torch.allclose(images.float().mean(dim=(1, 2, 3)), expected, atol=1e-3)
    assert int((shares > 0).sum(dim=1).max()) <= 2


def test_mixup_blends_every_pixel_and_cutmix_replaces_a_box() -> None:
    """All pixels of an image have the same gray value, so a mixup image has one value and a cutmix
    image at most two."""
    blended, _ = mixed(mixup=1.0)
    assert torch.allclose(blended.amax(dim=(1, 2, 3)), blended.amin(dim=(1, 2, 3)))
    boxed = [mixed(seed, cutmix=1.0)[0] for seed in range(6)]
    assert all(each.dtype == torch.uint8 for each in boxed)
    assert all(len(image.unique()) <= 2 for each in boxed for image in each)
    assert any(len(image.unique()) == 2 for each in boxed for image in each)


def test_mixup_and_cutmix_alternate_at_random() -> None:
    kinds = {mixed(seed, mixup=1.0, cutmix=1.0)[0].dtype for seed in range(12)}
    assert kinds == {torch.uint8, torch.float32}


def test_mixup_and_cutmix_depend_only_on_seed_and_epoch() -> None:
    first, again = (mixed(1, 2, mixup=0.5) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], mixed(1, 3, mixup=0.5)[0])
    assert not torch.equal(first[0], mixed(2, 2, mixup=0.5)[0])


def test_a_small_alpha_mostly_keeps_one_of_the_two_images() -> None:
    """Beta(0.05, 0.05) is near 0 or 1; Beta(50, 50) is near one half."""
    images, labels = batch()

    def largest(alpha: float) -> Tensor:
        mixer = MixupCutmix(recipe(mixup=alpha), 8, 0, 0)
        found = [mixer(images, labels)[1].max(dim=1).values.median() for _ in range(60)]
        return torch.stack(found).median()

    assert float(largest(0.05)) > 0.98
    assert float(largest(50.0)) < 0.65


def test_mixup_and_cutmix_change_neither_the_order_nor_the_augmentation_of_images() -> None:
    plain = list(BatchLoader(toy_set(), recipe(flip=True), seed=0, device=HERE))
    mixing = list(BatchLoader(toy_set(), recipe(flip=True, mixup=0.3), seed=0, device=HERE))
    mixer = MixupCutmix(recipe(mixup=0.3), 2, 0, 0)
    for (images, labels), (found, shares) in zip(plain, mixing, strict=True):
        expected = mixer(images, labels)
        assert torch.equal(found, expected[0])
        assert torch.equal(shares, expected[1])


def test_the_loss_of_mixed_labels_is_the_weighted_sum_of_both_losses() -> None:
    """The loss is λ L(y_i) + (1 - λ) L(y_j)."""
    said = torch.randn(8, 8)
    _, shares = mixed(mixup=1.0)
    each = torch.stack([F.cross_entropy(said, torch.full((8,), y), reduction="none")
                        for y in range(8)], dim=1)  # fmt: skip
    assert torch.allclose(F.cross_entropy(said, shares), (shares * each).sum(dim=1).mean())
