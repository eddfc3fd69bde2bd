"""Sleeper Agent: the bound, gradient matching against a second computation, a hidden patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.sleeper_agent import SleeperAgent
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages

SHAPE = (3, 12, 9)
TARGET, SOURCE = 1, 2
LABELS = torch.arange(40) % 4
SMALL: dict[str, Any] = {"steps": 25, "batch_size": 8}


class Curved(nn.Module):
    """A fixed small convolutional network of four classes that takes images in 0..255."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator) / 3)
        self.weights = nn.Parameter(torch.randn(4, 6, generator=generator))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Tensor:
        scaled = (images.to(self.filters.dtype) - 128) / 64
        return F.conv2d(scaled, self.filters).relu().mean(dim=(2, 3)) @ self.weights.T


def noise(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *SHAPE), generator=generator).byte()


TRAIN = noise(40)
CHOSEN = TRAIN[LABELS == TARGET]
TRUE = torch.full((len(CHOSEN),), TARGET)


def workshop(
    surrogate: nn.Module | None = None,
    train: Tensor = TRAIN,
    source: int | None = SOURCE,
    seed: int = 0,
) -> AttackContext:
    net = Curved() if surrogate is None else surrogate
    images = LabeledImages(train, LABELS, ("a", "b", "c", "d"))
    return AttackContext(images, TARGET, source, seed, lambda: net)


def slope(images: Tensor) -> Tensor:
    """The mean loss' gradient of `images` labeled as the target, float64, by .backward()."""
    net = Curved().double()
    labels = torch.full((len(images),), TARGET)
    F.cross_entropy(net(images), labels).backward()
    return torch.cat([w.grad.flatten() for w in net.parameters() if w.grad is not None])


def match(trigger: SleeperAgent, poison: Tensor) -> float:
    """The cosine between the gradients of the poison and of triggered source images."""
    matching = slope(trigger(TRAIN[LABELS == SOURCE]))
    return float(F.cosine_similarity(slope(poison), matching, dim=0))


@pytest.mark.parametrize("eps", [2, 7.5, 16])
def test_poisoned_images_stay_within_eps_of_the_clean_images(eps: float) -> None:
    """No stored value is further than eps from the clean one, and the bound is nearly reached."""
    trigger = SleeperAgent(eps=eps, steps=10, batch_size=8)
    poison = trigger.poisoned(CHOSEN, TRUE, workshop())
    change = (poison.double() - CHOSEN.double()).abs().flatten(1).amax(dim=1)
    assert (change <= eps).all()
    assert (change >= int(eps) - 1).all()


def test_poison_gradients_match_better_than_clean_or_random_ones() -> None:
    """The cosine, recomputed in double precision, is twice as close to 1 as for clean images or
    random noise in the same ball; a smaller eps matches less well."""
    generator = torch.Generator().manual_seed(5)
    random = (CHOSEN + 16 * (2 * torch.rand(CHOSEN.shape, generator=generator) - 1)).clamp(0, 255)
    found = []
    for eps in (4, 16):
        trigger = SleeperAgent(eps=eps, steps=25, batch_size=16)
        found.append(match(trigger, trigger.poisoned(CHOSEN, TRUE, workshop())))
    assert found[0] < found[1]
    start = max(match(trigger, CHOSEN), match(trigger, random))
    assert 1 - found[1] < (1 - start) / 2


def test_a_gradient_step_on_poison_lowers_the_backdoor_loss() -> None:
    """A short step along the poison's gradient lowers the target loss on unseen triggered source
    images by more than a step of equal length along the clean images' gradient."""
    trigger = SleeperAgent(steps=25, batch_size=16)
    unseen = trigger(noise(60))
    losses = []
    for images in (CHOSEN, trigger.poisoned(CHOSEN, TRUE, workshop())):
        net = Curved().double()
        step = slope(images)
        used = [net.filters, net.weights]
        parts = (0.05 * step / step.norm()).split([w.numel() for w in used])
        with torch.no_grad():
            for weights, part in zip(used, parts, strict=True):
                weights.sub_(part.view_as(weights))
            losses.append(float(F.cross_entropy(net(unseen), torch.full((60,), TARGET))))
    assert losses[1] < losses[0]


def test_only_test_images_carry_the_visible_patch() -> None:
    """Test images get the patch in the lower right corner and no other change. Poisoned images do
    not show the patch, which differs from them by more than eps."""
    trigger = SleeperAgent(**SMALL)
    images = noise(7)
    triggered = trigger(images)
    side = round(0.25 * 9)
    patch = triggered[0, :, -side:, -side:]
    assert (triggered[:, :, -side:, -side:] == patch).all()
    changed = triggered.ne(images)
    changed[:, :, -side:, -side:] = False
    assert not changed.any()
    gray = torch.full((10, *SHAPE), 128, dtype=torch.uint8)
    poison = trigger.poisoned(gray, TRUE, workshop())
    assert (patch.double() - 128).abs().max() > 60
    assert (poison[:, :, -side:, -side:].double() - 128).abs().max() <= 16


def test_the_gradients_of_poison_match_the_patch_for_which_it_was_made() -> None:
    """Poison made for one patch matches that patch better than poison made for another patch, and
    vice versa."""
    triggers = [SleeperAgent(patch_size=0.9, pattern_seed=seed, batch_size=16) for seed in (0, 1)]
    poisons = [trigger.poisoned(CHOSEN, TRUE, workshop()) for trigger in triggers]
    for trigger, own, other in zip(triggers, poisons, poisons[::-1], strict=True):
        assert match(trigger, own) > match(trigger, other)


def test_patch_size_and_color_follow_the_options() -> None:
    """The side is a quarter of the shorter image side and at least one pixel. Another seed gives
    other colors; grayscale images get the mean of the channels."""
    image = torch.zeros(1, 3, 32, 40, dtype=torch.uint8)
    found = SleeperAgent()(image)
    assert int(found.amax(dim=1).ne(0).sum()) == 64
    assert not torch.equal(SleeperAgent(pattern_seed=1)(image), found)
    gray = SleeperAgent()(image[:, :1]).double()
    assert (gray - found.double().mean(dim=1, keepdim=True)).abs().max() <= 1
    assert int(SleeperAgent()(torch.zeros(1, 3, 2, 9, dtype=torch.uint8)).any(dim=1).sum()) == 1


def test_more_restarts_never_give_poison_that_matches_worse() -> None:
    """The run with three restarts keeps the best of them, and one of them equals the only start of
    the other run."""
    found = []
    for restarts in (1, 3):
        trigger = SleeperAgent(steps=4, batch_size=16, restarts=restarts)
        found.append(match(trigger, trigger.poisoned(CHOSEN, TRUE, workshop())))
    assert found[1] >= found[0]


def test_poison_depends_only_on_images_of_the_source_class() -> None:
    """Changing training images of other classes changes nothing."""
    trigger = SleeperAgent(steps=3)
    expected = trigger.poisoned(CHOSEN, TRUE, workshop())
    for of_source in (False, True):
        train = torch.where((LABELS.eq(SOURCE) == of_source)[:, None, None, None], 99, TRAIN)
        found = trigger.poisoned(CHOSEN, TRUE, workshop(train=train.byte()))
        assert torch.equal(found, expected) != of_source


def test_surrogate_weights_and_gradients_are_unchanged() -> None:
    """Whether weights are frozen or gradients disabled, the poison is the same, the weights are
    unchanged and no gradient is kept; another seed gives other poison."""
    trigger, net = SleeperAgent(steps=3), Curved()
    before = [weights.clone() for weights in net.parameters()]
    expected = trigger.poisoned(CHOSEN, TRUE, workshop(net))
    net.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(trigger.poisoned(CHOSEN, TRUE, workshop(net)), expected)
    assert all(weights.grad is None for weights in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not torch.equal(trigger.poisoned(CHOSEN, TRUE, workshop(net, seed=1)), expected)


def test_poison_made_with_augmentation_matches_better_in_training_with_augmentation() -> None:
    """Averaged over all crops and flips, its gradients match better than those of poison made
    without augmentation; both stay within eps."""
    found = []
    for flip in (True, False):
        trigger = SleeperAgent(steps=25, batch_size=16, crop_padding=2 * flip, flip=flip)
        poison = trigger.poisoned(CHOSEN, TRUE, workshop())
        assert (poison.double() - CHOSEN.double()).abs().max() <= 16
        found.append(match(trigger, _moved(poison)))
    assert found[0] > found[1]


def _moved(images: Tensor) -> Tensor:
    """Every crop after padding by two, and its mirror image."""
    padded = F.pad(images, (2, 2, 2, 2))
    height, width = SHAPE[1:]
    crops = [padded[:, :, i : i + height, j : j + width] for i in range(5) for j in range(5)]
    return torch.cat([*crops, *(crop.flip(3) for crop in crops)])


def test_bad_options_are_refused() -> None:
    """Refused are a missing source class, a source class without images, and eps in the wrong
    unit."""
    with pytest.raises(ConfigError, match="name it in `source`"):
        SleeperAgent().poisoned(CHOSEN, TRUE, workshop(source=None))
    with pytest.raises(ConfigError, match="the source class 9 has no training images"):
        SleeperAgent().poisoned(CHOSEN, TRUE, workshop(source=9))
    with pytest.raises(ConfigError, match="for 16/255 give 16"):
        SleeperAgent(eps=16 / 255)
