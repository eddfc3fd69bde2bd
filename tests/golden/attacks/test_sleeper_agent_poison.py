"""Sleeper Agent on a linear network, compared with NumPy code written from the paper and the
authors' code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backdoor_lab.attacks import sleeper_agent
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.sleeper_agent import SleeperAgent
from backdoor_lab.core import streams
from backdoor_lab.core.types import LabeledImages
from tests.helpers.contexts import linear
from tests.helpers.mutations import Mutation

FILE = "attacks/sleeper_agent.py"
MUTATIONS = [
    Mutation(FILE, "order[-wanted:]", "order[:wanted]", "the smallest gradient norms are chosen"),
    Mutation(FILE, "-torch.cat(parts)", "torch.cat(parts)", "the step has the opposite sign"),
    Mutation(FILE, "gradient.sign()", "gradient", "the sign of the gradient is not taken"),
    Mutation(FILE, "gamma=0.1", "gamma=1.0", "the step size does not decay"),
    Mutation(FILE, "(2.667, 1.6, 1.142)", "(1.6, 1.142)", "the step size decays twice"),
    Mutation(FILE, "torch.randn(clean", "torch.rand(clean", "the start is uniform"),
    Mutation(FILE, "noise.clamp(-self.eps, self.eps)", "noise", "the start is not clipped"),
    Mutation(FILE, "self.lr * spread}", "self.lr * spreads[0]}", "all channels have equal steps"),
    Mutation(FILE, "context.augment(clean + change, generator)", "clean + change",
             "images are not augmented"),
    Mutation(FILE, "total = graph[1].detach()", "total = 0 * graph[1].detach()",
             "one chunk is lost"),
    Mutation(FILE, "total = total + self.gradient(*part)", "pass", "chunks are matched separately"),
    Mutation(FILE, "clamp(0, 255) - clean", "clamp(-99, 399) - clean", "values leave 0..255"),
    Mutation(FILE, "(len(part),), context.target", "(len(part),), context.source",
             "poison has its true label"),
    Mutation(FILE, "return places // columns, places % columns", "return 0 * places, 0 * places",
             "the patch has a fixed place"),
]  # fmt: skip
SHAPE, TARGET, SOURCE, EPS, LR, STEPS = (3, 6, 5), 1, 2, 16.0, 0.1, 9
LABELS = torch.arange(60) % 4
NET = linear(90, 4, seed=3)


def pictures() -> Tensor:
    """Random images whose channels have different spreads. Some values are 0 and 255."""
    generator = torch.Generator().manual_seed(1)
    spread = torch.tensor([30.0, 60.0, 90.0])[:, None, None]
    return (128 + spread * torch.randn((60, *SHAPE), generator=generator)).clamp(0, 255).byte()


def context(train: Tensor) -> AttackContext:
    """A context whose augmentation mirrors every image."""
    images = LabeledImages(train, LABELS, ("a", "b", "c", "d"))
    made = AttackContext(images, TARGET, SOURCE, 0, lambda: NET)
    return replace(made, augment=lambda images, generator: images.flip(3))


class Linear:
    """Gradients of the cross-entropy of a linear softmax network with respect to its weights and
    biases, in float64. Images are (n, pixels) in 0..255."""

    def __init__(self) -> None:
        layer = NET.body
        self.w, self.b = (
            layer.weight.detach().double().numpy(),
            layer.bias.detach().double().numpy(),
        )

    def errors(self, images: NDArray[np.float64], label: int) -> tuple[NDArray[np.float64], ...]:
        """The predicted probabilities, and their differences from the label."""
        z = images / 255 @ self.w.T + self.b
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p, p - np.eye(4)[label]

    def gradient(self, images: NDArray[np.float64], label: int) -> NDArray[np.float64]:
        """The gradient of the summed loss: that of the weights, with that of the biases as the last
        column."""
        _, e = self.errors(images, label)
        return np.hstack([e.T @ images / 255, e.sum(axis=0)[:, None]])

    def slope(
        self, images: NDArray[np.float64], wanted: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The derivative of the cosine of gradient and `wanted` with respect to the images."""
        g = self.gradient(images, TARGET)
        size, size_w = np.linalg.norm(g), np.linalg.norm(wanted)
        v = wanted / (size * size_w) - (g * wanted).sum() * g / (size**3 * size_w)
        p, e = self.errors(images, TARGET)
        along = images / 255 @ v[:, :-1].T + v[:, -1]
        curved = (p * along - p * (p * along).sum(axis=1, keepdims=True)) @ self.w / 255
        return e @ v[:, :-1] / 255 + curved


def crafted(train: Tensor, chosen: Tensor, matched: int) -> NDArray[np.float64]:
    """The poison (n, C, H, W) that signed Adam finds, with `matched` images per batch."""
    given, model = context(train), Linear()
    generator = given.generator(streams.SLEEPER_AGENT)
    torch.randperm(15, generator=generator)  # the order of the source images
    triggered = SleeperAgent(patch_size=0.5)(train[LABELS == SOURCE])
    wanted = model.gradient(triggered.flatten(1).double().numpy(), TARGET)
    clean = chosen.double().numpy()
    change = EPS * torch.randn(chosen.shape, generator=generator).double().numpy()
    change = change.clip(-EPS, EPS)
    rate = LR * train.double().numpy().std(axis=(0, 2, 3))[:, None, None]
    first, second = np.zeros_like(clean), np.zeros_like(clean)
    for step in range(STEPS):
        seen = (clean + change)[..., ::-1].reshape(len(clean), -1)
        parts = [model.slope(seen[i : i + matched], wanted) for i in range(0, len(seen), matched)]
        sign = np.sign(-np.concatenate(parts).reshape(clean.shape)[..., ::-1])
        first, second = 0.9 * first + 0.1 * sign, 0.999 * second + 0.001 * sign**2
        passed = sum(step >= STEPS // share for share in (2.667, 1.6, 1.142))
        mean, spread = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        change = change - rate * 0.1**passed * mean / (np.sqrt(spread) + 1e-8)
        change = (clean + change.clip(-EPS, EPS)).clip(0, 255) - clean
    return clean + np.trunc(change)


@pytest.mark.parametrize("matched", [512, 6])
def test_poison_follows_the_paper(matched: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient of all poison, or of each batch, is matched as a whole, although only five
    images are processed at a time."""
    monkeypatch.setattr(sleeper_agent, "CHUNK", 5)
    train = pictures()
    chosen = train[LABELS == TARGET][:12]
    trigger = SleeperAgent(eps=EPS, lr=LR, steps=STEPS, batch_size=matched, patch_size=0.5)
    labels = torch.full((12,), TARGET)
    found = trigger.poisoned(chosen, labels, context(train)).double().numpy()
    assert np.mean(found != crafted(train, chosen, matched)) < 0.005
    assert np.abs(found - chosen.double().numpy()).max() == EPS


def test_the_images_with_the_largest_gradients_are_poisoned() -> None:
    train, model = pictures(), Linear()
    where = (LABELS == TARGET).nonzero().flatten()
    values = train.flatten(1).double().numpy()
    norms = [np.linalg.norm(model.gradient(values[[k]], TARGET)) for k in where.tolist()]
    largest = sorted(where[np.argsort(norms)[-6:].copy()].tolist())
    assert SleeperAgent().choose(where, 6, context(train)).tolist() == largest


def test_the_patch_is_placed_uniformly_over_the_image() -> None:
    """Each place gets about the same number of images."""
    images = torch.randint(0, 256, (1200, *SHAPE), generator=torch.Generator().manual_seed(4))
    changed = SleeperAgent(patch_size=0.5)(images.byte()).ne(images).any(dim=1)
    side = round(0.5 * min(SHAPE[1:]))
    tops, lefts = changed.any(dim=2).byte().argmax(dim=1), changed.any(dim=1).byte().argmax(dim=1)
    counts = np.zeros((SHAPE[1] - side + 1, SHAPE[2] - side + 1))
    np.add.at(counts, (tops.numpy(), lefts.numpy()), 1)
    share = counts.size / 1200
    assert ((counts * share > 0.7) & (counts * share < 1.3)).all()


def test_defaults_except_the_number_of_steps_are_those_of_the_authors() -> None:
    trigger = SleeperAgent()
    assert (trigger.eps, trigger.restarts, trigger.batch_size, trigger.lr) == (16, 1, 512, 0.1)
    assert (trigger.max_sources, trigger.patch_size, trigger.steps) == (5000, 0.25, 40)
