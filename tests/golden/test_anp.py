"""ANP's first two updates of the masks, compared with NumPy code written from the paper and the
authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.core import streams
from backdoor_lab.defenses.anp import ANP, START, drawn
from tests.helpers.contexts import Small, context, hidden
from tests.helpers.mutations import Mutation

FILE = "defenses/anp.py"
MUTATIONS = [
    Mutation(FILE, "each.detach() + self.eps", "each.detach() - self.eps",
             "the perturbation decreases the loss"),
    Mutation(FILE, "(bound * drawn)", "(0 * drawn)", "the perturbation starts at zero"),
    Mutation(
        FILE, "each.detach() + self.eps * slope.sign()",
        "(each.detach() + self.eps * slope.sign()).clamp(-self.eps, self.eps)",
        "the perturbation is projected",
    ),
    Mutation(
        FILE, "self.alpha * loss(batch, unperturbed) + (1 - self.alpha) * loss(batch, worst)",
        "(1 - self.alpha) * loss(batch, unperturbed) + self.alpha * loss(batch, worst)",
        "the weights of the two losses are swapped",
    ),
    Mutation(FILE, "mask.clamp_(0, 1)", "mask.clamp_(0)", "masks are not clipped at 1"),
    Mutation(FILE, "momentum=0.9", "momentum=0.0", "no momentum"),
    Mutation(FILE, "(1 + perturbation[len", "(1 - perturbation[len", "ξ has the opposite sign"),
    Mutation(FILE, "module.train()", "module.eval()", "running statistics are used"),
    Mutation(FILE, "module.weight[mask <= self", "module.weight[mask > self",
             "channels with high masks are pruned"),
    Mutation(FILE, "module.weight[mask <= self", "module.weight[mask < self",
             "masks equal to the threshold are kept"),
]  # fmt: skip
WIDTH, EPS, ALPHA, LR = 12, 0.4, 0.2, 0.8


def attacked() -> Small:
    network = hidden(12, 3, seed=7, width=WIDTH)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        norm = network.body[1]
        norm.weight.copy_(0.5 + torch.rand(WIDTH, generator=generator))
        norm.bias.copy_(torch.rand(WIDTH, generator=generator) - 0.3)
        norm.running_mean.uniform_(-1, 1, generator=generator)
    return network


def noise(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return images, torch.arange(n) % 3


class Layers:
    """The cross-entropy on one batch, and its gradients, for a linear layer, batch normalization
    with batch statistics, ReLU and another linear layer. The scales are (m + δ) γ and the shifts (1
    + ξ) β."""

    def __init__(self, network: Small, images: Tensor, labels: Tensor) -> None:
        first, norm, _, last = network.body
        w1, b1, self.gamma, self.beta, self.w2, self.b2 = (
            each.detach().double().numpy()
            for each in (first.weight, first.bias, norm.weight, norm.bias, last.weight, last.bias)
        )
        inner = images.flatten(1).double().numpy() / 255 @ w1.T + b1
        spread = np.sqrt(inner.var(axis=0) + norm.eps)
        self.standard = (inner - inner.mean(axis=0)) / spread
        self.wanted = np.eye(3)[labels.numpy()]

    def gradients(
        self, m: np.ndarray, delta: np.ndarray, xi: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The gradients with respect to m and to ξ. The gradient with respect to δ equals that with
        respect to m."""
        inner = self.standard * (m + delta) * self.gamma + (1 + xi) * self.beta
        z = np.maximum(inner, 0) @ self.w2.T + self.b2
        e = np.exp(z - z.max(axis=1, keepdims=True))
        slope = (e / e.sum(axis=1, keepdims=True) - self.wanted) / len(z)
        back = slope @ self.w2 * (inner > 0)
        return (back * self.standard * self.gamma).sum(axis=0), (back * self.beta).sum(axis=0)


def test_two_updates_follow_the_paper() -> None:
    """Algorithm 1: the perturbation is drawn from U(±ε) and takes one signed step of size ε that
    increases the loss, without projection. Then SGD with momentum minimizes α L(m) + (1 - α) L(m +
    δ, 1 + ξ), and the masks are clipped to 0..1."""
    network, (images, labels) = attacked(), noise()
    given = context(images, labels, network=network, clean=(images, labels))
    uniform = given.generator(streams.PRUNING, START)
    m, velocity, clipped = np.ones(WIDTH), np.zeros(WIDTH), 0
    for batch in drawn(given, 2, 24, 500):
        layers = Layers(network, *batch)
        delta, xi = (
            -EPS + 2 * EPS * torch.rand(WIDTH, generator=uniform).double().numpy() for _ in "δξ"
        )
        up, up_xi = layers.gradients(m, delta, xi)
        delta, xi = delta + EPS * np.sign(up), xi + EPS * np.sign(up_xi)
        assert np.abs(delta).max() > EPS
        still, _ = layers.gradients(m, np.zeros(WIDTH), np.zeros(WIDTH))
        robust, _ = layers.gradients(m, delta, xi)
        velocity = 0.9 * velocity + ALPHA * still + (1 - ALPHA) * robust
        m = m - LR * velocity
        clipped += int(((m < 0) | (m > 1)).sum())
        m = m.clip(0, 1)
    assert 0 < clipped < 2 * WIDTH
    (found,) = ANP(eps=EPS, alpha=ALPHA, lr=LR, steps=2, batch_size=24).masks(given)
    assert found.numpy() == pytest.approx(m, abs=1e-5)
    threshold = float(found[(found > 0) & (found < 1)].median())
    options = {"eps": EPS, "alpha": ALPHA, "lr": LR, "steps": 2, "batch_size": 24}
    pruned, _ = ANP(threshold=threshold, **options).repair(given)  # type: ignore[arg-type]
    assert ((pruned.body[1].weight == 0) == (found <= threshold)).all()


def test_defaults_are_those_of_the_authors() -> None:
    anp = ANP()
    assert (anp.eps, anp.alpha, anp.threshold, anp.steps, anp.lr) == (0.4, 0.2, 0.2, 2000, 0.2)
    assert (anp.batch_size, anp.clean_images) == (128, 500)
