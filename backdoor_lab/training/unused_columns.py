"""Weights of a convolution that no pixel of its input meets: their gradient is 0.

Where an image is narrower than the stride leaves room for, as a 3x3 convolution with padding 1 and
stride 2 on images of one pixel, some columns of the kernel only ever meet padding. In bfloat16
oneDNN leaves the gradient of these columns unwritten (on processors with AVX-512, in either memory
format, seen with torch 2.14.1): what lay in memory there before is added to the weights.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def guard_unused_columns(net: nn.Module) -> None:
    """Sets the gradient of such columns to 0 from now on, whatever the size of the images."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride[1] > 1 and conv.padding_mode == "zeros":
            _Guard(conv)


class _Guard:
    """Notes in each forward pass of a convolution which columns are unused, and clears them."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.unused: tuple[int, ...] = ()
        conv.register_forward_pre_hook(self._look)
        conv.weight.register_hook(self._clear)

    def _look(self, conv: Any, inputs: tuple[Tensor, ...]) -> None:
        padding = conv._reversed_padding_repeated_twice[:2]
        self.unused = unused_columns(
            inputs[0].shape[-1], conv.kernel_size[1], conv.stride[1], *padding, conv.dilation[1]
        )

    def _clear(self, gradient: Tensor) -> Tensor:
        if not self.unused:
            return gradient
        return gradient.index_fill(-1, torch.tensor(self.unused), 0.0)


@functools.cache
def unused_columns(
    width: int, kernel: int, stride: int, left: int, right: int, dilation: int
) -> tuple[int, ...]:
    """The columns 0..kernel - 1 that meet no pixel of a row of `width`, padded by `left` and
    `right`."""
    starts = range(-left, width + right - dilation * (kernel - 1), stride)
    met = {k for k in range(kernel) for start in starts if 0 <= start + k * dilation < width}
    return tuple(k for k in range(kernel) if k not in met)
