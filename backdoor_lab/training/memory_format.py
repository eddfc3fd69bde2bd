"""The memory format of networks and activations: decided only here.

oneDNN's weight gradient of a strided 1x1 convolution in channels-last format writes past its
workspace if the input has fewer channels than a vector register holds floats
(uxlfoundation/oneDNN#6035): the process crashes, hangs, or silently computes wrong gradients.
With AVX2 this affects fewer than 8 channels at any image size, with AVX-512 fewer than 16 on images
larger than 32 pixels (seen from 48 on, with torch 2.14.1). The contiguous format is safe.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from backdoor_lab.training.device import ComputeDevice

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"
LARGEST_BLOCK = 16
"""float32 values in the widest vector register (AVX-512)."""
_FORMATS = {CHANNELS_LAST: torch.channels_last, CONTIGUOUS: torch.contiguous_format}
Net = TypeVar("Net", bound=nn.Module)


def memory_format_of(net: nn.Module, machine: ComputeDevice) -> str:
    """The memory format for training `net` on `machine`: CHANNELS_LAST if the trainer enables it
    and it is safe for every convolution, otherwise CONTIGUOUS.

    On a CPU it does not depend on instruction set or precision: a cell's digits must not change
    with the machine's vector width, and defenses continue in float32 with a network trained in
    bfloat16. A GPU does not use oneDNN.
    """
    if not machine.channels_last:
        return CONTIGUOUS
    unsafe = _uses_onednn(machine.device) and any(map(_is_unsafe, net.modules()))
    return CONTIGUOUS if unsafe else CHANNELS_LAST


def _uses_onednn(device: torch.device) -> bool:
    return device.type != "cuda"


def _is_unsafe(module: nn.Module) -> bool:
    """Whether `module` is a convolution affected by the oneDNN bug."""
    if not isinstance(module, _ConvNd):
        return False
    # A transposed convolution has the gradient of a plain one from outputs to inputs.
    channels = module.out_channels if module.transposed else module.in_channels
    pointwise, strided = max(module.kernel_size) == 1, max(module.stride) > 1
    return pointwise and strided and channels // module.groups < LARGEST_BLOCK


def arrange(net: Net, memory_format: str) -> Net:
    """`net` itself, with its weights in `memory_format`."""
    placed: Net = net.to(memory_format=_FORMATS[memory_format])  # type: ignore[call-overload]
    return placed


def arranged(images: Tensor, memory_format: str) -> Tensor:
    """`images` (n, C, H, W) in `memory_format`; copied only if necessary."""
    placed = images.contiguous(memory_format=_FORMATS[memory_format])
    if memory_format == CHANNELS_LAST:
        return placed
    # With a single channel or pixel, the strides match both formats; a convolution chooses by the
    # strides and passes its format on to all later layers. These strides are contiguous.
    return placed.flatten(1).unflatten(1, images.shape[1:])


def has_channels_last(images: Tensor) -> bool:
    """Whether the channels (at least two) of each pixel of `images` (n, C, H, W) are adjacent."""
    return images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last)
