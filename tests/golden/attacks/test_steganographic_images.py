"""ISSBA's encoder, decoder and loss by NumPy and SciPy, from the formulas of the docstring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.signal import correlate2d
from torch import Tensor

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.steganographic import ISSBA
from backdoor_lab.core.types import LabeledImages
from tests.helpers.mutations import Mutation

FILE = "attacks/steganographic.py"
MUTATIONS = [
    Mutation(FILE, "to_bytes(values + self.eps * torch.tanh(", "to_bytes(values + self.eps * (",
             "the residual is not bounded"),
    Mutation(FILE, "centered * (variance + FLAT).rsqrt()", "centered * variance.rsqrt()",
             "flat channels are amplified"),
    Mutation(FILE, "centered = images - images.mean(dim=(2, 3), keepdim=True)", "centered = images",
             "the mean stays"),
    Mutation(FILE, "(torch.cat(parts) > 0) ==", "(torch.cat(parts) < 0) ==", "the sign of bits"),
    Mutation(FILE, "2 * done - 0.5", "2 * done", "the weight of the image rises at once"),
    Mutation(FILE, "(codes > 0).float()", "(codes < 0).float()", "the decoder learns the opposite"),
    Mutation(FILE, "ramp * shape.square().mean()", "ramp * shape.square().sum()", "sum for mean"),
    Mutation(FILE, "(images + self.eps * shape).clamp(0, 255)", "(images + self.eps * shape)",
             "the decoder sees values outside 0..255"),
    Mutation(FILE, "torch.optim.Adam(weights.values(), lr=self.lr)",
             "torch.optim.SGD(weights.values(), lr=self.lr)", "SGD for Adam"),
]  # fmt: skip
Numbers = NDArray[np.float64]
BITS, WIDTH, EPS, SIDE = 5, 3, 20.0, 8


def pictures() -> Tensor:
    """Random images and a nearly constant one, with values at both ends."""
    generator = torch.Generator().manual_seed(8)
    images = torch.randint(0, 256, (4, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    images[3] = 250 + images[3] % 3
    return images


def prepared(lr: float, steps: int = 1) -> ISSBA:
    train = LabeledImages(pictures(), torch.zeros(4, dtype=torch.int64), ("a",))
    trigger = ISSBA(bits=BITS, width=WIDTH, eps=EPS, steps=steps, batch_size=3, lr=lr)
    trigger.state = trigger.prepare(AttackContext(train, 0, None, 0, torch.nn.Identity))
    return trigger


class Nets:
    """Encoder and decoder with the weights of a trigger, for one image (3, H, W)."""

    def __init__(self, trigger: ISSBA) -> None:
        self.w = {name: value.double().numpy() for name, value in trigger.state.items()}

    def convolved(self, name: str, planes: Numbers, stride: int = 1) -> Numbers:
        kernel, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        found = [
            sum(correlate2d(plane, k, "same") for plane, k in zip(planes, kernels, strict=True)) + b
            for kernels, b in zip(kernel, bias, strict=True)
        ]
        return np.array(found)[:, ::stride, ::stride]

    def residual(self, image: Numbers, code: Numbers) -> Numbers:
        """In -1..1."""
        # Each of the 8 × 8 values covers the same number of pixels; here one.
        plane = (code @ self.w["encoder.spread"]).reshape(1, 8, 8)
        hidden = np.concatenate([standard(image), plane])
        for name in ("encoder.first", "encoder.second"):
            hidden = np.maximum(self.convolved(name, hidden), 0)
        return np.tanh(self.convolved("encoder.last", hidden))

    def logits(self, image: Numbers) -> Numbers:
        hidden = standard(image)
        for name, stride in (("decoder.first", 1), ("decoder.second", 2), ("decoder.third", 1)):
            hidden = np.maximum(self.convolved(name, hidden, stride), 0)
        # 4 × 4 values are left, which average pooling to 4 × 4 keeps.
        return hidden.ravel() @ self.w["decoder.read"] + self.w["decoder.read.bias"]


def standard(image: Numbers) -> Numbers:
    centered = image - image.mean(axis=(1, 2), keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=(1, 2), keepdims=True) + 64)


def test_triggered_images_and_decoded_bits_follow_the_formulas() -> None:
    trigger = prepared(lr=0.3)
    nets, images = Nets(trigger), pictures()
    secret = nets.w["secret"]
    residuals = [nets.residual(each, secret) for each in images.double().numpy()]
    assert max(np.abs(each).max() for each in residuals) > 0.9
    expected = np.stack([
        np.rint((each + EPS * r).clip(0, 255))
        for each, r in zip(images.double().numpy(), residuals, strict=True)
    ])  # fmt: skip
    found = trigger(images)
    assert np.array_equal(found.numpy(), expected)
    bits = np.stack([nets.logits(each) > 0 for each in found.double().numpy()])
    assert np.array_equal(trigger.read(found).numpy(), bits == (secret > 0))


@pytest.mark.parametrize("done", [0.1, 0.5, 1.0])
def test_the_loss_follows_the_formula(done: float) -> None:
    """Binary cross-entropy of the bits plus w times the mean square of the residual, where w rises
    from 0 at a quarter of the steps to 0.3 at three quarters."""
    trigger, images = prepared(lr=0.3), pictures()
    nets = Nets(trigger)
    codes = torch.tensor([[1.0, -1, 1, 1, -1], [-1.0, -1, 1, -1, 1], [1.0] * 5, [-1.0] * 5])
    wrong, size = [], []
    for image, code in zip(images.double().numpy(), codes.double().numpy(), strict=True):
        r = nets.residual(image, code)
        z = nets.logits((image + EPS * r).clip(0, 255))
        wrong.append(np.log1p(np.exp(-z * code)).mean())
        size.append((r**2).mean())
    weight = 0.3 * np.clip(2 * done - 0.5, 0, 1)
    weights = {name: value.double() for name, value in trigger.state.items()}
    found = float(trigger._loss(weights, images.double(), codes.double(), done))
    assert found == pytest.approx(np.mean(wrong) + weight * np.mean(size), rel=1e-6)


def test_the_first_step_of_adam_moves_each_weight_by_the_learning_rate() -> None:
    still, moved = prepared(lr=1e-9).state, prepared(lr=0.01).state
    for name in still.keys() - {"secret"}:
        step = (moved[name] - still[name]).abs()
        assert step.max() == pytest.approx(0.01, rel=1e-3)
