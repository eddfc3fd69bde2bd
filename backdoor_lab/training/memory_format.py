"""How a network and its activations lie in memory: decided here, and named nowhere else.

oneDNN's weight gradient of a strided 1x1 convolution in channels-last layout writes past its
workspace where the input has fewer channels than a vector register holds floats
(uxlfoundation/oneDNN#6035): the process crashes, hangs, or computes wrong gradients in silence.
With AVX2 that is below 8 channels on images of any size, with AVX-512 below 16 on images larger
than 32 pixels (seen from 48 on with torch 2.14.1). Contiguous layout is safe.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from backdoor_lab.training.machine import Machine

CHANNELS_LAST, CONTIGUOUS = "channels_last", "contiguous"
LARGEST_BLOCK = 16
"""float32 values in the widest vector register, that of AVX-512."""
_FORMATS = {CHANNELS_LAST: torch.channels_last, CONTIGUOUS: torch.contiguous_format}
Net = TypeVar("Net", bound=nn.Module)


def memory_format_of(net: nn.Module, machine: Machine) -> str:
    """The memory format in which `net` is to be trained on `machine`: CHANNELS_LAST where the
    trainer wants it and every convolution is safe in it, otherwise CONTIGUOUS.

    On a CPU it is the same for every instruction set and precision: a cell's digits do not change
    with the vector width of the machine, and a network trained in bfloat16 is trained further in
    float32 by defenses. A GPU does not use oneDNN.
    """
    if not machine.channels_last:
        return CONTIGUOUS
    unsafe = _uses_onednn(machine.device) and any(map(_is_unsafe, net.modules()))
    return CONTIGUOUS if unsafe else CHANNELS_LAST


def _uses_onednn(device: torch.device) -> bool:
    return device.type != "cuda"


def _is_unsafe(module: nn.Module) -> bool:
    """Whether this is a convolution whose weight gradient oneDNN computes in that workspace."""
    if not isinstance(module, _ConvNd):
        return False
    # The gradient of a transposed convolution is that of a plain one from outputs to inputs.
    channels = module.out_channels if module.transposed else module.in_channels
    pointwise, strided = max(module.kernel_size) == 1, max(module.stride) > 1
    return pointwise and strided and channels // module.groups < LARGEST_BLOCK


def arrange(net: Net, memory_format: str) -> Net:
    """`net` itself, its weights laid out in `memory_format`."""
    placed: Net = net.to(memory_format=_FORMATS[memory_format])  # type: ignore[call-overload]
    return placed


def arranged(images: Tensor, memory_format: str) -> Tensor:
    """`images` (n, C, H, W) laid out in `memory_format`; a copy only where they are not."""
    placed = images.contiguous(memory_format=_FORMATS[memory_format])
    if memory_format == CHANNELS_LAST:
        return placed
    # With a single channel or pixel the strides of both formats fit; a convolution goes by the
    # strides, and hands its format on to every layer that follows. These are contiguous ones.
    return placed.flatten(1).unflatten(1, images.shape[1:])


def has_channels_last(images: Tensor) -> bool:
    """Whether the channels of each pixel of `images` (n, C, H, W), at least two, lie together."""
    return images.shape[1] > 1 and images.is_contiguous(memory_format=torch.channels_last)
