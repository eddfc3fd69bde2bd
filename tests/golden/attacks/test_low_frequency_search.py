"""The search for the smooth trigger on a network with two layers by NumPy, from the authors' code.

As there, images have values in 0..1.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.low_frequency import OptimizedLowFrequency
from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages
from tests.helpers.contexts import Small
from tests.helpers.mutations import Mutation

FILE = "attacks/low_frequency.py"
MUTATIONS = [
    Mutation(FILE, ".double().softmax(dim=0)", ".double()", "logits for probabilities"),
    Mutation(FILE, "- probabilities[label]", "- probabilities.max()", "the label is not fixed"),
    Mutation(FILE, "slope / slope.square().sum()", "slope / slope.norm()", "the length of a step"),
    Mutation(FILE, "(1 + self.overshoot) * step", "step", "no overshoot"),
    Mutation(FILE, "range(self.max_iter - 1)", "range(self.max_iter)", "one more step"),
    Mutation(FILE, "pattern + _smooth(change[0], self.sigma)", "pattern + change[0]",
             "the change is not smoothed"),
    Mutation(FILE, "return self.strength * _rescaled(smooth)", "return self.strength * smooth",
             "the range of the pattern"),
    Mutation(FILE, "if model.classes(image) == clean[k]:", "if True:",
             "images that have another class already"),
    Mutation(FILE, "target = common", "pass", "the target stays the same"),
    Mutation(FILE, "images[k : k + 1] + pattern", "images[k : k + 1]", "without the pattern"),
]  # fmt: skip
SHAPE, COUNT, CLASSES, WIDTH, OVERSHOOT = (2, 4, 5), 24, 4, 7, 0.3
Numbers = NDArray[np.float64]


class Double(Small):
    """Computes in float64."""

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.body(images.flatten(1).double() / 255)
        return said


def surrogate(seed: int) -> Double:
    """A linear layer, ReLU and another linear layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = (nn.Linear(40, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
        network = Double(nn.Sequential(*layers).double()).eval()
        for weight in network.parameters():
            nn.init.normal_(weight, std=0.5)
    return network


def context(network: Double, target: int) -> AttackContext:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (COUNT, *SHAPE), generator=generator, dtype=torch.uint8)
    train = LabeledImages(images, torch.arange(COUNT) % CLASSES, ("a", "b", "c", "d"))
    return AttackContext(train, target, None, 0, lambda: network)


class Layers:
    """The probabilities of the network of `surrogate` for images in 0..1, and their gradients."""

    def __init__(self, network: Double) -> None:
        first, _, last = network.body
        parts = (first.weight, first.bias, last.weight, last.bias)
        self.weights = [each.detach().double().numpy() for each in parts]

    def f(self, image: Numbers) -> Numbers:
        w1, b1, w2, b2 = self.weights
        z = w2 @ np.maximum(w1 @ image.ravel() + b1, 0) + b2
        e = np.exp(z - z.max())
        found: Numbers = e / e.sum()
        return found

    def grads(self, image: Numbers) -> Numbers:
        """One gradient for each class."""
        w1, b1, w2, _ = self.weights
        p = self.f(image)
        by_logits = np.diag(p) - np.outer(p, p)
        inner = (w1 @ image.ravel() + b1 > 0).astype(float)
        return ((by_logits @ w2 * inner) @ w1).reshape(CLASSES, *SHAPE)


def tar_deepfool(net: Layers, image: Numbers, target: int, max_iter: int) -> tuple[Numbers, int]:
    """The change of an image, and the number of steps."""
    label, moved, total, loop = int(net.f(image).argmax()), image, np.zeros(SHAPE), 0
    while net.f(moved).argmax() != target and loop < max_iter:
        f, slopes = net.f(moved), net.grads(moved)
        w = slopes[target] - slopes[label]
        with np.errstate(all="ignore"):
            step = abs(f[target] - f[label]) / np.linalg.norm(w) * w / np.linalg.norm(w)
        total = total + (step if np.isfinite(step).all() else 0)
        moved = image + (1 + OVERSHOOT) * total
        loop += 1
    return (1 + OVERSHOOT) * total, loop


def gauss_smooth(image: Numbers) -> Numbers:
    """The filter with sigma 1: 5 taps, two zeros at each edge."""
    kernel = np.exp(-0.5 * np.arange(-2, 3.0) ** 2)
    kernel /= kernel.sum()
    for axis in (1, 2):
        padded = np.pad(image, [(2, 2) if axis == each else (0, 0) for each in range(3)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=axis)
        image = windows @ kernel
    return image


class Search:
    """The pattern `v`, the target of each pass, the number of steps for each image, and how many
    images were left out because their class differed already."""

    def __init__(self, given: AttackContext, net: Layers, images: int, max_iter: int) -> None:
        generator = given.generator(streams.LOW_FREQUENCY)
        where = torch.randperm(COUNT, generator=generator)[:images]
        x = given.train.images[where].double().numpy() / 255
        before = np.array([net.f(each).argmax() for each in x])
        self.v, self.targets, self.loops, self.left_out = np.zeros(SHAPE), [given.target], [0], 0
        rate = 0.0
        while rate < 0.2:
            for k in torch.randperm(images, generator=generator).tolist():
                if before[k] != net.f(x[k] + self.v).argmax():
                    self.left_out += 1
                    continue
                r, loop = tar_deepfool(net, x[k] + self.v, self.targets[-1], max_iter)
                self.loops.append(loop)
                v = gauss_smooth(self.v + gauss_smooth(r))
                # As long as v is 0, an image of the target class would make it NaN.
                if loop < max_iter - 1 and v.any():
                    self.v = (v - v.min()) / (v.max() - v.min()) * 0.2
            after = np.array([net.f(each + self.v).argmax() for each in x])
            changed = after[after != before]
            rate = len(changed) / images
            common = len(changed) > 0.05 * images
            self.targets.append(np.bincount(changed).argmax() if common else self.targets[-1])


@pytest.mark.parametrize(("seed", "target", "max_iter"), [(5, 2, 6), (17, 0, 8), (24, 2, 6)])
def test_the_pattern_follows_the_authors_code(seed: int, target: int, max_iter: int) -> None:
    """The target changes between passes, and some images need as many steps as are allowed, or
    more."""
    network = surrogate(seed)
    given = context(network, target)
    expected = Search(given, Layers(network), 20, max_iter)
    assert len(set(expected.targets[:-1])) > 1
    assert {max_iter - 2, max_iter - 1, max_iter} <= set(expected.loops)
    assert expected.left_out
    trigger = OptimizedLowFrequency(
        sigma=8, images=20, max_iter=max_iter, overshoot=OVERSHOOT,
        max_passes=len(expected.targets) - 1,
    )  # fmt: skip
    try:
        found = trigger.prepare(given)["pattern"].double().numpy()
    except ConfigError as error:
        raise AssertionError(str(error)) from error
    assert found == pytest.approx(255 * expected.v, abs=1e-3)


def test_the_options_are_those_of_the_authors() -> None:
    trigger = OptimizedLowFrequency()
    assert (trigger.strength / 255, trigger.sigma, trigger.images) == (0.2, 6, 100)
    assert (trigger.fooling_rate, trigger.overshoot, trigger.max_iter) == (0.2, 0.02, 200)
