"""Narcissus: the bound, the loss, a closed form on a linear network, the test-time factor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.narcissus import Narcissus
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages

SHAPE = (3, 10, 8)
TARGET = 1
LABELS = torch.arange(30) % 3


class Curved(nn.Module):
    """A fixed small convolutional network of three classes that takes images in 0..255."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator) / 3)
        self.weights = nn.Parameter(torch.randn(3, 6, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.conv2d((images.float() - 128) / 64, self.filters).relu().mean(dim=(2, 3))
        return hidden @ self.weights.T


class Straight(nn.Module):
    """Three classes, logits (0, sharpness · w · x, 0): class 1 always gains along w."""

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(SHAPE, generator=generator) / 1000)
        self.sharpness = sharpness

    def forward(self, images: Tensor) -> Tensor:
        along = self.sharpness * (images * self.w).sum(dim=(1, 2, 3))
        zero = torch.zeros_like(along)
        return torch.stack([zero, along, zero], dim=1)


class Scaled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


def noise(n: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(low, high, (n, *SHAPE), generator=generator).byte()


def attack_context(
    surrogate: nn.Module, images: Tensor | None = None, seed: int = 0
) -> AttackContext:
    train = LabeledImages(noise(30) if images is None else images, LABELS, ("a", "b", "c"))
    return AttackContext(train, TARGET, None, seed, lambda: surrogate)


def prepared(surrogate: nn.Module, **options: float) -> Narcissus:
    few = {"batch_size": 16, "steps": 40, "lr": 10, "warmup_epochs": 0}
    trigger = Narcissus(**{**few, **options})  # type: ignore[arg-type]
    trigger.state = trigger.prepare(attack_context(surrogate))
    return trigger


def test_the_target_class_loss_falls_as_eps_grows_and_perturbations_stay_within_eps() -> None:
    """The target-class loss on poisoned images is below that on clean images and falls as eps
    grows; no stored image leaves the eps-ball."""
    net, images = Curved(), noise(30)[LABELS == TARGET]
    labels = torch.full((len(images),), TARGET)
    net.requires_grad_(False)
    losses = [float(F.cross_entropy(net(images), labels))]
    for eps in (4, 7.5, 16):
        trigger = prepared(net, eps=eps)
        poison = trigger.poisoned(images, labels, attack_context(net))
        change = (poison.double() - images.double()).abs()
        assert int(eps) / 2 < change.max() <= eps
        losses.append(float(F.cross_entropy(net(poison), labels)))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05


def test_the_trigger_raises_the_target_probability_of_images_of_every_class() -> None:
    net, images = Curved(), noise(20)
    trigger = prepared(net)
    clean, triggered = (net(each).softmax(dim=1)[:, TARGET] for each in (images, trigger(images)))
    assert (triggered > clean).float().mean() > 0.9


@pytest.mark.parametrize(("sharpness", "eps", "reached"), [(1.0, 9, 9), (1e-3, 9.7, 9)])
def test_noise_on_a_linear_network_has_the_size_and_sign_computed_by_hand(
    sharpness: float, eps: float, reached: int
) -> None:
    """The noise is eps · sign w, truncated to whole gray levels, even for small gradients."""
    net = Straight(sharpness)
    trigger = Narcissus(eps=eps, steps=20, batch_size=8, lr=100, warmup_epochs=0)
    # Far from 0 and 255, where clipping would stop the gradient.
    trigger.state = trigger.prepare(attack_context(net, noise(30, 50, 200)))
    assert torch.equal(trigger.state["noise"], reached * net.w.detach().sign())
    assert trigger.state["noise"].dtype == torch.float32


@pytest.mark.parametrize("strength_test", [1, 3, 2.5])
def test_test_images_get_the_amplified_noise(strength_test: float) -> None:
    """Poison is x + d, a test image x + strength_test · d, each rounded and clipped."""
    net, images = Curved(), noise(8)
    trigger = prepared(net, strength_test=strength_test)
    added = trigger.state["noise"]
    labels = torch.full((8,), TARGET)
    poison = (images.float() + added).clamp(0, 255)
    assert torch.equal(trigger.poisoned(images, labels, attack_context(net)).float(), poison)
    loud = (images.float() + strength_test * added).round().clamp(0, 255)
    assert torch.equal(trigger(images).float(), loud)


def test_noise_depends_only_on_images_of_the_target_class() -> None:
    net, images = Curved(), noise(30)
    expected = Narcissus(steps=30, lr=10).prepare(attack_context(net, images))["noise"]
    for of_target in (False, True):
        changed = images.clone()
        changed[LABELS.eq(TARGET) == of_target] = 255 - images[LABELS.eq(TARGET) == of_target]
        found = Narcissus(steps=30, lr=10).prepare(attack_context(net, changed))["noise"]
        assert torch.equal(found, expected) != of_target


def test_preparation_depends_only_on_the_seed() -> None:
    """Two runs give equal noise, even when the caller has disabled gradients; the surrogate keeps
    no gradients; another seed draws other batches."""
    net = Curved()
    first = Narcissus(steps=30, batch_size=2, lr=10).prepare(attack_context(net))["noise"]
    with torch.no_grad():
        assert torch.equal(
            Narcissus(steps=30, batch_size=2, lr=10).prepare(attack_context(net))["noise"], first
        )
    other = Narcissus(steps=30, batch_size=2, lr=10).prepare(attack_context(net, seed=1))["noise"]
    assert not torch.equal(other, first)
    assert all(weights.grad is None for weights in net.parameters())


def test_batch_normalization_of_the_surrogate_is_unchanged_by_preparation() -> None:
    """The noise is made on a copy of the surrogate, with batch statistics. A last batch of one
    image has none and is dropped."""
    net = nn.Sequential(nn.Flatten(), Scaled(), nn.Linear(240, 4), nn.ReLU(), nn.BatchNorm1d(4),
                        nn.Linear(4, 3)).eval()  # fmt: skip
    before = {name: value.clone() for name, value in net.state_dict().items()}
    warm = [
        Narcissus(steps=20, batch_size=3, lr=100, warmup_epochs=epochs).prepare(attack_context(net))
        for epochs in (0, 0, 2)
    ]
    assert torch.equal(warm[0]["noise"], warm[1]["noise"])
    assert not torch.equal(warm[0]["noise"], warm[2]["noise"])
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bad_options_are_refused() -> None:
    """Cases: fewer than two images of the target class, eps in the wrong unit, all-zero noise, too
    small batches, and another image size."""
    net = Curved()
    with pytest.raises(ConfigError, match="the target class 7 has 0 training images"):
        Narcissus().prepare(AttackContext(attack_context(net).train, 7, None, 0, lambda: net))
    with pytest.raises(ConfigError, match="if you meant 16/255, give 16"):
        Narcissus(eps=16 / 255)
    with pytest.raises(ConfigError, match=r"raise `trigger\.steps` or `trigger\.lr`"):
        Narcissus(steps=1, lr=0.1).prepare(attack_context(net))
    one = replace(
        attack_context(net).train, labels=torch.zeros(30).long().index_fill(0, torch.tensor(4), 1)
    )
    with pytest.raises(ConfigError, match="the target class 1 has 1 training image; the noise"):
        Narcissus().prepare(AttackContext(one, 1, None, 0, lambda: net))
    with pytest.raises(ConfigError, match="batch_size"):
        Narcissus(batch_size=1)
    with pytest.raises(ConfigError, match="10x8 pixels with 3.*8x10 pixels with 3"):
        prepared(net, steps=30)(noise(1).mT)
