"""Finds tensors among the stored weights of a network."""

from __future__ import annotations

from collections.abc import Iterable


def first_convolution(shapes: Iterable[tuple[str, tuple[int, ...]]], channels: int) -> str:
    """Returns the name of the first convolution's weights: a tensor with four axes, `channels`
    inputs and a square kernel larger than 1. If several
    tensors match, returns ``conv1.weight`` if possible, otherwise the first name in alphabetical
    order. Raises KeyError if none matches."""
    fit = sorted(
        name for name, shape in shapes
        if len(shape) == 4 and shape[1] == channels and shape[2] == shape[3] > 1
    )  # fmt: skip
    if not fit:
        raise KeyError(f"the network has no convolution with {channels} input channels")
    return "conv1.weight" if "conv1.weight" in fit else fit[0]
