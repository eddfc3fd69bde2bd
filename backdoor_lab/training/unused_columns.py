"""Finds the columns of a convolution kernel that see only padding: their gradient must be 0.

Such columns exist if an image is narrow relative to the stride, as in a 3x3 convolution with
padding 1 and stride 2 on images of one pixel. On processors with AVX-512, oneDNN does not write
their gradient in bfloat16, in either memory format (seen with torch 2.14.1). Arbitrary values from
memory are then added to the weights.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def guard_unused_columns(net: nn.Module) -> None:
    """Guard the strided convolutions of `net`: the gradient of kernel columns that see only padding
    is set to 0."""
    for conv in net.modules():
        if isinstance(conv, nn.Conv2d) and conv.stride[1] > 1 and conv.padding_mode == "zeros":
            _Guard(conv)


class _Guard:
    """Finds, in each forward pass of a convolution, the kernel columns that see only padding, and
    sets their gradient to 0."""

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
    """The indices, 0 to kernel - 1, of the kernel columns that see only padding in a row of `width`
    pixels. The row is padded by `left` and `right` pixels."""
    starts = range(-left, width + right - dilation * (kernel - 1), stride)
    met = {k for k in range(kernel) for start in starts if 0 <= start + k * dilation < width}
    return tuple(k for k in range(kernel) if k not in met)
