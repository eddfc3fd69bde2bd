"""Sleeper Agent: the bound, gradient matching against a second computation, a hidden patch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext, unchanged
from backdoor_lab.attacks.sleeper_agent import SleeperAgent
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.training.data_loader import seeded_augmentation
from backdoor_lab.training.recipe import Recipe

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


def attack_context(
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
    poison = trigger.poisoned(CHOSEN, TRUE, attack_context())
    change = (poison.double() - CHOSEN.double()).abs().flatten(1).amax(dim=1)
    assert (change <= eps).all()
    assert (change >= int(eps) - 1).all()


def test_poison_matches_the_target_gradient_better_than_clean_or_random_images() -> None:
    """The cosine, recomputed in double precision, is twice as close to 1 as for clean images or
    random noise in the same ball; a smaller eps matches less well."""
    generator = torch.Generator().manual_seed(5)
    random = (CHOSEN + 16 * (2 * torch.rand(CHOSEN.shape, generator=generator) - 1)).clamp(0, 255)
    found = []
    for eps in (4, 16):
        trigger = SleeperAgent(eps=eps, steps=25, batch_size=16)
        found.append(match(trigger, trigger.poisoned(CHOSEN, TRUE, attack_context())))
    assert found[0] < found[1]
    start = max(match(trigger, CHOSEN), match(trigger, random))
    assert 1 - found[1] < (1 - start) / 2


def test_a_gradient_step_on_poison_lowers_the_backdoor_loss() -> None:
    """A short step along the poison's gradient lowers the target loss on unseen triggered source
    images by more than a step of equal length along the clean images' gradient."""
    trigger = SleeperAgent(steps=25, batch_size=16)
    unseen = trigger(noise(60))
    losses = []
    for images in (CHOSEN, trigger.poisoned(CHOSEN, TRUE, attack_context())):
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
    """A test image changes only inside the patch, by far more than eps. Poisoned images change by
    at most eps."""
    trigger = SleeperAgent(**SMALL)
    images = torch.full((1, *SHAPE), 128, dtype=torch.uint8)
    changed = trigger(images).ne(images).any(dim=1)[0].nonzero()
    side = round(0.25 * 9)
    assert (changed.amax(dim=0) - changed.amin(dim=0)).tolist() == [side - 1, side - 1]
    assert (trigger(images).double() - 128).abs().max() > 60
    poison = trigger.poisoned(images.expand(10, -1, -1, -1), TRUE, attack_context())
    assert (poison.double() - 128).abs().max() <= 16


def test_the_position_of_the_patch_depends_only_on_the_image() -> None:
    """Equal images get equal places, in any batch; other images get other places."""
    trigger, images = SleeperAgent(**SMALL), noise(30)
    triggered = trigger(images)
    assert torch.equal(trigger(images.flip(0)), triggered.flip(0))
    assert torch.equal(trigger(images[3:4]), triggered[3:4])
    assert len({tuple(each.any(dim=0).flatten().tolist()) for each in triggered.ne(images)}) > 10


def test_an_image_file_replaces_the_random_colors_of_the_patch(tmp_path: Path) -> None:
    """Its transparency is used, and its content identifies the trigger."""
    path = tmp_path / "patch.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(path)
    trigger = SleeperAgent(image=str(path))
    black = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert trigger(black).sum(dim=(0, 2, 3)).tolist() == [64 * 255, 0, 0]
    assert trigger.file_hash() != SleeperAgent().file_hash() == ""
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(path)
    assert torch.equal(SleeperAgent(image=str(path))(black), black)


def test_poison_matches_its_own_patch_better_than_poison_made_for_another_patch() -> None:
    """Poison made for one patch matches that patch better than poison made for another patch, and
    vice versa."""
    triggers = [SleeperAgent(patch_size=0.9, pattern_seed=seed, batch_size=16) for seed in (0, 1)]
    poisons = [trigger.poisoned(CHOSEN, TRUE, attack_context()) for trigger in triggers]
    for trigger, own, other in zip(triggers, poisons, poisons[::-1], strict=True):
        assert match(trigger, own) > match(trigger, other)


def test_patch_size_and_color_follow_the_options() -> None:
    """The side is a quarter of the shorter image side and at least one pixel. Another seed gives
    other colors; grayscale images get the mean of the channels."""
    image = torch.zeros(1, 3, 32, 40, dtype=torch.uint8)
    found = SleeperAgent()(image)
    assert int(found.amax(dim=1).ne(0).sum()) == 64
    other = SleeperAgent(pattern_seed=1)(image)
    assert sorted(other.flatten().tolist()) != sorted(found.flatten().tolist())
    gray = SleeperAgent()(image[:, :1])
    mean = found.double().mean(dim=1)
    shown = [each[each.ne(0)].reshape(8, 8).double() for each in (gray[0, 0], mean[0])]
    assert (shown[0] - shown[1]).abs().max() <= 1
    assert int(SleeperAgent()(torch.zeros(1, 3, 2, 9, dtype=torch.uint8)).any(dim=1).sum()) == 1


def test_more_restarts_never_worsen_the_match() -> None:
    """The first of three starts equals that of the run with a single start; the best is kept."""
    found = []
    for restarts in (1, 3):
        trigger = SleeperAgent(steps=4, batch_size=16, restarts=restarts)
        found.append(match(trigger, trigger.poisoned(CHOSEN, TRUE, attack_context())))
    assert found[1] >= found[0]


def test_poison_depends_only_on_training_images_of_the_source_class() -> None:
    """Mirroring training images of other classes, which keeps the spread of each channel, changes
    nothing."""
    trigger = SleeperAgent(steps=3)
    expected = trigger.poisoned(CHOSEN, TRUE, attack_context())
    for of_source in (False, True):
        train = torch.where(
            (LABELS.eq(SOURCE) == of_source)[:, None, None, None], TRAIN.flip(3), TRAIN
        )
        found = trigger.poisoned(CHOSEN, TRUE, attack_context(train=train))
        assert torch.equal(found, expected) != of_source


def test_crafting_poison_changes_neither_the_weights_nor_the_gradients_of_the_surrogate() -> None:
    """Frozen weights and disabled gradients give the same poison. The weights are unchanged and no
    gradient is kept. Another seed gives other poison."""
    trigger, net = SleeperAgent(steps=3), Curved()
    before = [weights.clone() for weights in net.parameters()]
    expected = trigger.poisoned(CHOSEN, TRUE, attack_context(net))
    net.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(trigger.poisoned(CHOSEN, TRUE, attack_context(net)), expected)
    assert all(weights.grad is None for weights in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert not torch.equal(trigger.poisoned(CHOSEN, TRUE, attack_context(net, seed=1)), expected)


def test_augmentation_while_crafting_improves_the_match_on_augmented_images() -> None:
    """The poison's gradients are averaged over all crops and flips; the baseline is poison made
    without augmentation. Both stay within eps."""
    found = []
    recipe = Recipe("t", epochs=1, batch_size=2, lr=0.1, crop_padding=2, flip=True)
    for augment in (partial(seeded_augmentation, recipe=recipe), unchanged):
        trigger = SleeperAgent(steps=60)
        context = replace(attack_context(), augment=augment)
        poison = trigger.poisoned(CHOSEN, TRUE, context)
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
    """Cases: a missing source class, a source class without images, and eps in the wrong unit."""
    with pytest.raises(ConfigError, match="set `source`"):
        SleeperAgent().poisoned(CHOSEN, TRUE, attack_context(source=None))
    with pytest.raises(ConfigError, match="the source class 9 has no training images"):
        SleeperAgent().poisoned(CHOSEN, TRUE, attack_context(source=9))
    with pytest.raises(ConfigError, match="if you meant 16/255, give 16"):
        SleeperAgent(eps=16 / 255)
