"""The wide residual networks of Zagoruyko and Komodakis 2016 (arXiv 1605.07146) for small images,
with any depth and widening factor.

The structure is that of the authors' code (szagoruyko/wide-residual-networks, pytorch/resnet.py).
The weights have the names of backdoor-toolbox's ``wresnet.py``, and for equal weights the outputs
are equal. The initial weights are distributed as there and in the authors' Lua code. No dropout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM = 16
"""The number of channels of the first convolution."""


class WideResNet(nn.Module):
    """The network. Input float (n, channels, H, W), output float (n, classes).

    The outputs of ``block1`` to ``block3`` have 16, 32 and 64 times `factor` channels; ``block2``
    and ``block3`` halve H and W, rounding up. `depth` is 6 k + 4 for k residual units in each of
    these blocks.
    """

    def __init__(self, depth: int, factor: int, channels: int, classes: int) -> None:
        super().__init__()
        widths = [STEM << stage for stage in range(3)]
        first, second, third = (factor * width for width in widths)
        units = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, STEM, 3, padding=1, bias=False)
        self.block1 = NetworkBlock(STEM, first, units, stride=1)
        self.block2 = NetworkBlock(first, second, units, stride=2)
        self.block3 = NetworkBlock(second, third, units, stride=2)
        self.bn1 = nn.BatchNorm2d(third)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(third, classes)
        self.apply(_initialize)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(images))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(F.relu(self.bn1(x))), 1))
        return logits


class NetworkBlock(nn.Module):
    """A group of residual units, the first of which has the given stride.

    Input float (n, inputs, H, W), output float (n, outputs, H / stride, W / stride), rounded up.
    """

    def __init__(self, inputs: int, outputs: int, units: int, *, stride: int) -> None:
        super().__init__()
        first = ResidualUnit(inputs, outputs, stride)
        rest = (ResidualUnit(outputs, outputs, 1) for _ in range(units - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut around them.

    Input float (n, inputs, H, W), output float (n, outputs, H / stride, W / stride), rounded up. If
    `inputs` and `outputs` differ, the shortcut is a 1x1 convolution of the activated input;
    otherwise, it is the input before BatchNorm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        around = x if self.convShortcut is None else self.convShortcut(activated)
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return inner + around


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
