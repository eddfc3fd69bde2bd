"""The pre-activation ResNet of He et al. 2016, "Identity Mappings in Deep Residual Networks" (arXiv
1603.05027), with 18 layers for small images.

The weights have the names of BackdoorBench's ``preactresnet18``, and for equal weights the outputs
are equal: networks published with BackdoorBench can be loaded. As there, and unlike in the paper,
no BatchNorm or ReLU follows the last block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = (2, 2, 2, 2)
"""The number of blocks in each stage."""


class PreActResNet18(nn.Module):
    """The network. Input float (n, channels, H, W), output float (n, classes).

    The outputs of ``layer1`` to ``layer4`` have `width`, 2 `width`, 4 `width` and 8 `width`
    channels, and each of them except the first halves H and W, rounding up. The standard network
    has `width` 64.
    """

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.layer1 = _stage(width, width, BLOCKS[0], stride=1)
        self.layer2 = _stage(width, 2 * width, BLOCKS[1], stride=2)
        self.layer3 = _stage(2 * width, 4 * width, BLOCKS[2], stride=2)
        self.layer4 = _stage(4 * width, 8 * width, BLOCKS[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        logits: Tensor = self.linear(torch.flatten(self.avgpool(x), 1))
        return logits


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, and a shortcut around them.

    Input float (n, inputs, H, W), output float (n, outputs, H / stride, W / stride), rounded up. If
    the shapes differ, the shortcut is a 1x1 convolution of the activated input; otherwise, it is
    the input before BatchNorm.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection)

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        around = x if self.shortcut is None else self.shortcut(activated)
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return inner + around


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = PreActBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(PreActBlock(outputs, outputs, 1) for _ in range(blocks - 1)))
