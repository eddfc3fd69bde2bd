"""ISSBA: a network hides a bit string in each image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from backdoor_lab.attacks.base import AttackContext, Trigger, gray_levels, to_bytes
from backdoor_lab.attacks.threat_model import ThreatModel
from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import F, Tensor, torch
from backdoor_lab.core.progress import track
from backdoor_lab.numerics.descent import descend

CHUNK = 256
REGIONS = 4
FLAT = 64.0
Weights = dict[str, Tensor]


class ISSBA(Trigger):
    """Adds a faint residual that is specific to each image and encodes a secret bit string.

    ISSBA of Li, Li, Wu, Li, He, Lyu, "Invisible Backdoor Attack with Sample-Specific Triggers",
    ICCV 2021, section 4; encoder and decoder are after Tancik, Mildenhall, Ng, "StegaStamp:
    Invisible Hyperlinks in Physical Photographs", CVPR 2020. An encoder E and a decoder D are
    trained jointly on the clean training images x with random bits s:

        r = eps · tanh E(x, s)
        loss = CE(D(clip(x + r, 0, 255)), s) + w · mean((r / eps)²)

    Then every image gets the same secret s*: x' = clip(round(x + r(x, s*)), 0, 255). No value
    changes by more than `eps` gray levels, so that the PSNR is at least 20 log10(255 / eps), which
    is 24 dB if `eps` is 16. w is 0 for the first quarter of the `steps`, rises linearly to
    `image_weight` at three quarters and stays there, so that the decoder first learns to read the
    bits.

    Both networks are fully convolutional up to the decoder's last layer; they accept images of
    any size with the number of channels they were trained on, and standardize each channel of
    each image. The encoder appends the bits as a plane of `grid` × `grid` values, resized to the
    image, and has three convolutions of `width` channels; the decoder has three convolutions,
    average pooling to 4×4, and a linear layer.

    Not implemented: the U-Net, the perceptual distance (LPIPS), the critic, the spatial
    transformer, StegaStamp's image corruptions and the error-correcting code. The paper hides 100
    bits (`trigger=steganographic_authors`) that encode a string about the target; here the bits are
    random, drawn from the seed.
    """

    needs_preparing = True
    threat_model = ThreatModel(knows=("data",))
    prepared_per_class = False
    later: ClassVar[Mapping[str, object]] = {"grid": 8}

    def __init__(
        self,
        *,
        bits: int = 16,
        eps: float = 16,
        image_weight: float = 0.3,
        width: int = 16,
        steps: int = 300,
        batch_size: int = 64,
        lr: float = 0.002,
        grid: int = 8,
    ) -> None:
        self.bits = validation.whole("trigger.bits", bits, low=1, below=1025)
        self.eps = gray_levels("trigger.eps", eps, below=256)
        self.image_weight = validation.number("trigger.image_weight", image_weight, low=0)
        self.width = validation.whole("trigger.width", width, low=1, below=1025)
        self.steps = validation.whole("trigger.steps", steps, low=1)
        self.batch_size = validation.whole("trigger.batch_size", batch_size, low=1)
        self.lr = validation.number("trigger.lr", lr, low=0)
        self.grid = validation.whole("trigger.grid", grid, low=1, below=257)

    def prepare(self, context: AttackContext) -> Weights:
        """Returns the trained weights, ``encoder.*`` and ``decoder.*``, and ``secret``, float32
        (bits,) with values -1 and 1."""
        generator = context.generator(streams.STEGANOGRAPHIC)
        fresh = _fresh(context.train.shape[0], self.width, self.bits, self.grid, generator)
        weights = {name: value.to(context.device).requires_grad_() for name, value in fresh.items()}
        optimizer = torch.optim.Adam(weights.values(), lr=self.lr)
        for step in track(range(self.steps), "step"):
            where = torch.randint(len(context.train), (self.batch_size,), generator=generator)
            images = context.train.images[where].to(context.device).float()
            codes = _codes(self.batch_size, self.bits, generator).to(context.device)
            with torch.enable_grad():
                loss = self._loss(weights, images, codes, (step + 1) / self.steps)
            descend(optimizer, loss, "the loss of the trigger's networks")
        trained = {name: value.detach().cpu() for name, value in weights.items()}
        return trained | {"secret": _codes(1, self.bits, generator)[0]}

    def apply_test(self, images: Tensor) -> Tensor:
        channels = self.state["encoder.last.bias"].shape[0]
        if channels != images.shape[1]:
            height, width = images.shape[2:]
            raise ConfigError(
                f"`trigger`: the encoder was trained on images with {many(channels, 'channel')} and"
                f" cannot be applied to images of {height}x{width} pixels with"
                f" {many(images.shape[1], 'channel')}"
            )
        weights = self._exact(images)
        parts = track(images.split(CHUNK), "batch")
        return torch.cat([self._hidden_in(part, weights) for part in parts])

    def read(self, images: Tensor) -> Tensor:
        """Decodes the bits in `images`, uint8 (n, C, H, W), and compares them with the secret: bool
        (n, bits), true where they are equal. About half of the bits are equal on clean images,
        nearly all on triggered ones."""
        weights = self._exact(images)
        parts = [_decode(weights, part.double()) for part in images.split(CHUNK)]
        return (torch.cat(parts) > 0) == (weights["secret"] > 0)

    def _loss(self, weights: Weights, images: Tensor, codes: Tensor, done: float) -> Tensor:
        shape = torch.tanh(_encode(weights, images, codes))
        read = _decode(weights, (images + self.eps * shape).clamp(0, 255))
        wrong = F.binary_cross_entropy_with_logits(read, (codes > 0).float())
        ramp = min(1.0, max(0.0, 2 * done - 0.5))
        return wrong + self.image_weight * ramp * shape.square().mean()

    def _hidden_in(self, images: Tensor, weights: Weights) -> Tensor:
        values = images.double()
        codes = weights["secret"].expand(len(images), -1)
        return to_bytes(values + self.eps * torch.tanh(_encode(weights, values, codes)))

    def _exact(self, images: Tensor) -> Weights:
        # In float32, rounding would depend on the batch size or the device.
        return {name: value.to(images.device).double() for name, value in self.state.items()}


def _codes(n: int, bits: int, generator: torch.Generator) -> Tensor:
    """Returns random bits encoded as -1 and 1: float32 (n, bits)."""
    return torch.randint(0, 2, (n, bits), generator=generator).float() * 2 - 1


def _encode(weights: Weights, images: Tensor, codes: Tensor) -> Tensor:
    """Returns the encoder's output before tanh, (n, C, H, W), for images (n, C, H, W) and codes (n,
    bits)."""
    values = codes @ weights["encoder.spread"]
    grid = math.isqrt(values.shape[1])
    plane = values.view(-1, 1, grid, grid)
    plane = F.interpolate(plane, size=images.shape[2:], mode="nearest")
    hidden = torch.cat([_standard(images), plane], dim=1)
    hidden = F.relu(_convolved(weights, "encoder.first", hidden))
    hidden = F.relu(_convolved(weights, "encoder.second", hidden))
    return _convolved(weights, "encoder.last", hidden)


def _decode(weights: Weights, images: Tensor) -> Tensor:
    """Returns the decoder's output for `images` (n, C, H, W): one logit per bit, (n, bits)."""
    hidden = F.relu(_convolved(weights, "decoder.first", _standard(images)))
    hidden = F.relu(_convolved(weights, "decoder.second", hidden, stride=2))
    hidden = F.relu(_convolved(weights, "decoder.third", hidden))
    regions = F.adaptive_avg_pool2d(hidden, REGIONS).flatten(1)
    return regions @ weights["decoder.read"] + weights["decoder.read.bias"]


def _standard(images: Tensor) -> Tensor:
    """Standardizes each channel of each image. `FLAT` limits the amplification of nearly constant
    channels."""
    centered = images - images.mean(dim=(2, 3), keepdim=True)
    variance = centered.square().mean(dim=(2, 3), keepdim=True)
    return centered * (variance + FLAT).rsqrt()


def _convolved(weights: Weights, name: str, hidden: Tensor, stride: int = 1) -> Tensor:
    kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.conv2d(hidden, kernel, bias, stride=stride, padding=1)


def _fresh(channels: int, width: int, bits: int, grid: int, generator: torch.Generator) -> Weights:
    """Returns initial weights drawn from He's normal distribution; the encoder's last layer is
    scaled down so that tanh does not saturate."""
    layers = {
        "encoder.first": (width, channels + 1, 2.0),
        "encoder.second": (width, width, 2.0),
        "encoder.last": (channels, width, 0.3),
        "decoder.first": (width, channels, 2.0),
        "decoder.second": (2 * width, width, 2.0),
        "decoder.third": (2 * width, 2 * width, 2.0),
    }
    weights: Weights = {}
    for name, (outputs, inputs, gain) in layers.items():
        kernel = torch.randn(outputs, inputs, 3, 3, generator=generator)
        weights[f"{name}.weight"] = kernel * (gain / (9 * inputs)) ** 0.5
        weights[f"{name}.bias"] = torch.zeros(outputs)
    regions = 2 * width * REGIONS**2
    weights["encoder.spread"] = torch.randn(bits, grid**2, generator=generator) / bits**0.5
    weights["decoder.read"] = torch.randn(regions, bits, generator=generator) / regions**0.5
    weights["decoder.read.bias"] = torch.zeros(bits)
    return weights
