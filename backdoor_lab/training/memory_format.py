"""Chooses the memory format of networks and activations.

For a strided 1x1 convolution in channels-last format, oneDNN's code for the weight gradient writes
past its workspace if the number of input channels is smaller than the number of floats in a vector
register (uxlfoundation/oneDNN#6035): the process crashes, hangs, or silently computes wrong
gradients. With AVX2 this affects fewer than 8 channels at any image size, with AVX-512 fewer than
16 channels on images larger than 32 pixels (seen at 48 pixels and more, with torch 2.14.1). The
contiguous format is safe.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from backdoor_lab.training.device import ComputeDevice

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"
LARGEST_BLOCK = 16
"""The number of float32 values in the widest vector register (AVX-512)."""
_FORMATS = {CHANNELS_LAST: torch.channels_last, CONTIGUOUS: torch.contiguous_format}
Net = TypeVar("Net", bound=nn.Module)


def memory_format_of(net: nn.Module, machine: ComputeDevice) -> str:
    """The memory format for training `net` on `machine`: CHANNELS_LAST or CONTIGUOUS.

    CHANNELS_LAST requires that `trainer.channels_last` is set. On a CPU, it also requires that the
    oneDNN error (see this module's docstring) can affect no convolution of `net`, whatever the
    instruction set and the precision: results must not depend on the machine's vector width, and
    defenses run in float32 even on a network trained in bfloat16. On a GPU, oneDNN is not used.
    """
    if not machine.channels_last:
        return CONTIGUOUS
    unsafe = _uses_onednn(machine.device) and any(map(_is_unsafe, net.modules()))
    return CONTIGUOUS if unsafe else CHANNELS_LAST


def _uses_onednn(device: torch.device) -> bool:
    return device.type != "cuda"


def _is_unsafe(module: nn.Module) -> bool:
    """Whether the oneDNN error (see this module's docstring) can affect `module`."""
    if not isinstance(module, _ConvNd):
        return False
    # The backward pass of a transposed convolution is that of a convolution from its outputs to its
    # inputs.
    channels = module.out_channels if module.transposed else module.in_channels
    pointwise, strided = max(module.kernel_size) == 1, max(module.stride) > 1
    return pointwise and strided and channels // module.groups < LARGEST_BLOCK


def arrange(net: Net, memory_format: str) -> Net:
    """Convert the weights of `net` to `memory_format`, in place. Returns `net`."""
    placed: Net = net.to(memory_format=_FORMATS[memory_format])  # type: ignore[call-overload]
    return placed


def arranged(images: Tensor, memory_format: str) -> Tensor:
    """Convert `images` (n, C, H, W) to `memory_format`; copies only if necessary."""
    placed = images.contiguous(memory_format=_FORMATS[memory_format])
    if memory_format == CHANNELS_LAST:
        return placed
    # With one channel or one pixel, the strides may match both formats. A convolution chooses its
    # format by the strides and passes it on to later layers, so make them those of the contiguous
    # format.
    return placed.flatten(1).unflatten(1, images.shape[1:])


def has_channels_last(images: Tensor) -> bool:
    """Whether the channels (at least two) of each pixel of `images` (n, C, H, W) are adjacent in
    memory."""
    return images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last)
