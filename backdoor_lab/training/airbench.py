"""The network of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498).

It consists of a frozen 2x2 convolution that whitens patches, three groups of two 3x3 convolutions
with max-pooling, and a linear layer without bias (sections 3.1 to 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 2
"""The side length, in pixels, of the whitened patches."""
WHITENING_IMAGES = 5000
"""The number of training images from which the whitening is computed. The authors use their first
5000."""
_WHITENING_EPS, _SCALE = 5e-4, 1 / 9
_NORM_EPS, _NORM_MOMENTUM = 1e-12, 0.4
"""PyTorch's momentum is the weight of the new batch statistics; the paper's 0.6 is the weight of
the old ones."""


class Airbench(nn.Module):
    """The airbench network. Input float (n, channels, H, W) with H, W >= 2, output float (n,
    classes).

    The outputs of ``group1``, ``group2`` and ``group3`` have `width`, 4 `width` and 4 `width`
    channels; the published network has 64, 256, 256. Call `whiten` before training: a new network
    does not whiten its input.
    """

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        patch = channels * PATCH**2
        self.whiten = nn.Conv2d(channels, 2 * patch, PATCH)
        self.whiten.weight.requires_grad_(False)
        self.whiten.bias = nn.Parameter(torch.zeros(2 * patch))
        self.group1 = Group(2 * patch, width)
        self.group2 = Group(width, 4 * width)
        self.group3 = Group(4 * width, 4 * width)
        self.head = ScaledLinear(4 * width, classes, _SCALE)

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.whiten(images))
        x = self.group3(self.group2(self.group1(x)))
        # For 32x32 images, the last group leaves 3x3 positions, and max-pooling of size 3 would
        # take the maximum of all of them.
        logits: Tensor = self.head(x.amax(dim=(2, 3)))
        return logits


class Group(nn.Module):
    """Two convolutions; max-pooling after the first one halves H and W, rounding down.

    Input float (n, inputs, H, W), output float (n, outputs, H // 2, W // 2). A side of one pixel,
    which occurs for 8x8 images, stays one pixel.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs), _norm(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = F.max_pool2d(x, [min(2, side) for side in x.shape[2:]])
        x = F.gelu(self.norm1(x))
        return F.gelu(self.norm2(self.conv2(x)))


class ScaledLinear(nn.Linear):
    """A linear layer without bias whose output is multiplied by a constant."""

    def __init__(self, inputs: int, outputs: int, scale: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features) * self.scale


@torch.no_grad()
def whiten(net: Airbench, batches: Iterable[Tensor]) -> None:
    """Set the weights of the first convolution so that it whitens the 2x2 patches of `batches`.

    `batches`: float (n, channels, H, W), normalized like the network's input. The filters are the
    eigenvectors of the patches' second moment matrix, divided by sqrt(eigenvalue + 5e-4), in order
    of decreasing eigenvalue, followed by their negatives (section 3.2). The bias is not changed.
    """
    weight = net.whiten.weight
    moment = torch.zeros(2 * (weight[0].numel(),), dtype=torch.float64)
    count = 0
    for images in batches:
        patches = F.unfold(images.double(), PATCH).transpose(0, 1).flatten(1)
        moment += patches @ patches.T
        count += patches.shape[1]
    values, vectors = torch.linalg.eigh(moment / count)
    values, vectors = values.flip(0).clamp(min=0), vectors.T.flip(0)
    # The sign of an eigenvector is arbitrary. Make its first large component positive, so that all
    # linear algebra libraries yield the same order of filters.
    lead = (vectors.abs() >= vectors.abs().amax(dim=1, keepdim=True) / 2).byte().argmax(dim=1)
    vectors = vectors * vectors.gather(1, lead[:, None]).sign()
    filters = vectors / (values[:, None] + _WHITENING_EPS).sqrt()
    weight.copy_(torch.cat([filters, -filters]).view_as(weight))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A 3x3 convolution whose first filters pass the input through unchanged (section 3.3)."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization with a trainable shift and without a scale (section 3.1)."""
    norm = nn.BatchNorm2d(channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm
