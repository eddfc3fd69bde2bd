"""Narcissus' noise on a network with batch normalization by NumPy, from the authors' code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.narcissus import Narcissus
from backdoor_lab.core import streams
from backdoor_lab.core.types import LabeledImages
from tests.helpers.contexts import Small
from tests.helpers.mutations import Mutation

FILE = "attacks/narcissus.py"
MUTATIONS = [
    Mutation(FILE, "torch.optim.RAdam([free]", "torch.optim.Adam([free]", "Adam for RAdam"),
    Mutation(FILE, "lr=self.lr / HALF", "lr=self.lr", "the unit of the step size"),
    Mutation(FILE, "noise = (HALF * free).clamp(-self.eps, self.eps)", "noise = HALF * free",
             "the noise is not clipped while it is optimized"),
    Mutation(FILE, "requires_grad_().train()", "requires_grad_().eval()", "running statistics"),
    Mutation(FILE, "network((images + noise)", "network((images - noise)", "the sign of the noise"),
    Mutation(FILE, "images = context.augment(", "images, _ = (", "no augmentation"),
    Mutation(FILE, "RAdam(network.parameters(), lr=WARMUP_LR)", "RAdam(network.parameters())",
             "the learning rate of the warm-up"),
    Mutation(FILE, "range(self.warmup_epochs)", "range(1)", "a shorter warm-up"),
    Mutation(FILE, "len(part) > 1]", "len(part) > 4]", "small batches are left out"),
    Mutation(FILE, "times * noise", "noise", "the noise is not amplified at test time"),
]  # fmt: skip
SHAPE, TARGET, WIDTH, STEPS, EPS = (1, 3, 4), 1, 6, 14, 6.2
LABELS = torch.arange(42) % 3
Numbers = NDArray[np.float64]


def context(train: Tensor, network: Small) -> AttackContext:
    """The augmentation mirrors every image."""
    images = LabeledImages(train, LABELS, ("a", "b", "c"))
    made = AttackContext(images, TARGET, None, 0, lambda: network)
    return replace(made, augment=lambda images, generator: images.flip(3))


class Double(Small):
    """Computes in float64, since batch normalization of a few images amplifies rounding errors."""

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.body(images.flatten(1).double() / 255)
        return said


def surrogate() -> Small:
    """A linear layer, ReLU, batch normalization and another linear layer. Normalization right after
    the first layer would cancel noise that is the same on all images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        layers = (nn.Linear(12, WIDTH), nn.ReLU(), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 3))
        network = Double(nn.Sequential(*layers).double()).eval()
        nn.init.uniform_(network.body[2].weight, 0.5, 1.5)
        nn.init.uniform_(network.body[2].running_mean, -1, 1)
    return network


def pictures() -> Tensor:
    """Without 0 and 255, where the sign of the smallest noise decides whether it is clipped."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(1, 255, (42, *SHAPE), generator=generator, dtype=torch.uint8)


class RAdam:
    """Liu et al. 2020, Algorithm 2, with the defaults of PyTorch."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t = lr, 0
        self.m: dict[int, Numbers] = {}
        self.v: dict[int, Numbers] = {}

    def step(self, values: list[Numbers], slopes: list[Numbers]) -> list[Numbers]:
        self.t += 1
        longest = 2 / (1 - 0.999) - 1
        length = longest - 2 * self.t * 0.999**self.t / (1 - 0.999**self.t)
        made = []
        for k, (value, slope) in enumerate(zip(values, slopes, strict=True)):
            self.m[k] = 0.9 * self.m.get(k, np.zeros_like(value)) + 0.1 * slope
            self.v[k] = 0.999 * self.v.get(k, np.zeros_like(value)) + 0.001 * slope**2
            move = self.m[k] / (1 - 0.9**self.t)
            if length > 5:
                top = (length - 4) * (length - 2) * longest
                rectified = np.sqrt(top / ((longest - 4) * (longest - 2) * length))
                spread = np.sqrt(self.v[k]) + 1e-8
                move = move * rectified * np.sqrt(1 - 0.999**self.t) / spread
            made.append(value - self.lr * move)
        return made


class Layers:
    """The mean cross-entropy of the target class for the network of `surrogate` with the statistics
    of the batch: gradients with respect to the weights and to the images, which are (n, pixels) in
    0..255."""

    def __init__(self, network: Small) -> None:
        first, _, norm, last = network.body
        parts = (first.weight, first.bias, norm.weight, norm.bias, last.weight, last.bias)
        self.weights = [each.detach().double().numpy() for each in parts]
        self.eps = norm.eps

    def slopes(self, images: Numbers) -> tuple[list[Numbers], Numbers]:
        w1, b1, gamma, beta, w2, b2 = self.weights
        x = images / 255
        inner = np.maximum(x @ w1.T + b1, 0)
        scale = np.sqrt(inner.var(axis=0) + self.eps)
        standard = (inner - inner.mean(axis=0)) / scale
        shown = gamma * standard + beta
        z = shown @ w2.T + b2
        e = np.exp(z - z.max(axis=1, keepdims=True))
        wrong = (e / e.sum(axis=1, keepdims=True) - np.eye(3)[TARGET]) / len(x)
        back = wrong @ w2
        centered = back * gamma - (back * gamma).mean(axis=0)
        centered = centered - standard * (back * gamma * standard).mean(axis=0)
        by_inner = centered / scale * (inner > 0)
        weights = [by_inner.T @ x, by_inner.sum(axis=0), (back * standard).sum(axis=0),
                   back.sum(axis=0), wrong.T @ shown, wrong.sum(axis=0)]  # fmt: skip
        return weights, by_inner @ w1 / 255


def made(train: Tensor, network: Small, size: int, warmup: int, lr: float) -> Numbers:
    """The noise before it is truncated."""
    given, layers = context(train, network), Layers(network)
    generator = given.generator(streams.NARCISSUS)
    where = (LABELS == TARGET).nonzero().flatten()

    def one_pass() -> list[Numbers]:
        order = where[torch.randperm(len(where), generator=generator)]
        seen = [train[part].flip(3).flatten(1).double().numpy() for part in order.split(size)]
        return [part for part in seen if len(part) > 1]

    optimizer = RAdam(0.1)
    for _ in range(warmup):
        for images in one_pass():
            layers.weights = optimizer.step(layers.weights, layers.slopes(images)[0])
    free, optimizer, batches = np.zeros(12), RAdam(lr / 127.5), list[Numbers]()
    for _ in range(STEPS):
        batches = batches or one_pass()
        images, noise = batches.pop(0), (127.5 * free).clip(-EPS, EPS)
        sums = images + noise
        _, slope = layers.slopes(sums.clip(0, 255))
        total = (slope * ((sums >= 0) & (sums <= 255))).sum(axis=0)
        (free,) = optimizer.step([free], [127.5 * total * (np.abs(127.5 * free) <= EPS)])
    return (127.5 * free).clip(-EPS, EPS)


@pytest.mark.parametrize(("size", "warmup", "lr"), [(6, 0, 30.0), (5, 2, 30.0), (5, 0, 1000.0)])
def test_the_noise_follows_the_authors_code(size: int, warmup: int, lr: float) -> None:
    """An epoch over the 14 images of the class ends with a batch of 2 or 4 images. With the large
    step size, noise that is not clipped before use would take many images out of 0..255."""
    train, network = pictures(), surrogate()
    trigger = Narcissus(eps=EPS, lr=lr, steps=STEPS, batch_size=size, warmup_epochs=warmup)
    found = trigger.prepare(context(train, network))["noise"].flatten().double().numpy()
    exact = made(train, network, size, warmup, lr)
    assert (np.abs(exact) == EPS).any()
    assert len(set(np.abs(found))) > 1 or lr > 30
    assert found == pytest.approx(np.trunc(exact + np.sign(exact) * 1e-5))


def test_the_noise_is_added_once_to_poison_and_three_times_to_test_images() -> None:
    train, trigger = pictures(), Narcissus()
    noise = torch.arange(-6, 6).view(SHAPE).float()
    trigger.state = {"noise": noise}
    given = context(train, surrogate())
    for times, found in ((1, trigger.poisoned(train, LABELS, given)), (3, trigger(train))):
        assert torch.equal(found.int(), (train.int() + times * noise.int()).clamp(0, 255))


def test_defaults_except_the_number_of_steps_and_images_are_those_of_the_authors() -> None:
    trigger = Narcissus()
    assert (trigger.eps, trigger.strength_test, trigger.lr) == (16, 3, 1.275)
    assert (trigger.warmup_epochs, trigger.steps, trigger.batch_size) == (5, 300, 64)
