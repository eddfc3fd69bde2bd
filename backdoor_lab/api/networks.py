"""A user's model with the interface of this package's networks: images in 0..255 in, logits out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

Normalize = (
    Callable[[Tensor], Tensor] | tuple[Sequence[float], Sequence[float]] | Literal["bytes"] | None
)
"""What precedes a model: None for images scaled to 0..1; ``(mean, std)``, one value per channel,
to standardize these; a function of float images (b, C, H, W) in 0..1; ``"bytes"`` for a model that
takes values in 0..255 and normalizes them itself."""


class SelfNormalizing(nn.Module):
    """Wraps a model so that it takes uint8 or float images (b, C, H, W) in 0..255."""

    def __init__(self, model: nn.Module, normalize: Normalize) -> None:
        super().__init__()
        self.model, self.normalize = model, normalizer(normalize)

    @classmethod
    def copy_of(cls, model: nn.Module, normalize: Normalize) -> SelfNormalizing:
        """Returns a wrapped copy of `model` in eval mode, whose parameters require gradients."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
        return cls(copy.deepcopy(model).requires_grad_(), normalize).eval()

    def forward(self, images: Tensor) -> Any:
        return self.model(self.normalize(images).to(dtype_of(self.model)))

    @property
    def net(self) -> nn.Module:
        """The model itself, as in `Classifier`: methods look up layers by name in it."""
        return self.model

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter; the CPU if it has none."""
        return device_of(self.model)


def outputs_of(network: SelfNormalizing, image: Tensor) -> int:
    """Returns the number of classes of a model: the number of its outputs for one image."""
    with torch.no_grad():
        outputs = network(image.to(network.device))
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != 1:
        found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"`model` must return logits of shape (b, k), got {found} for one image")
    return outputs.shape[1]


def dtype_of(model: object) -> torch.dtype:
    """Returns the dtype of a model's first floating-point parameter; float32 if it has none."""
    found = model.parameters() if isinstance(model, nn.Module) else ()
    return next((each.dtype for each in found if each.is_floating_point()), torch.float32)


def device_of(model: object) -> torch.device:
    """Returns the device of a model's first parameter or buffer; the CPU if it has none."""
    if isinstance(model, nn.Module):
        for found in (*model.parameters(), *model.buffers()):
            return found.device
    return torch.device("cpu")


def normalizer(normalize: Normalize) -> Callable[[Tensor], Tensor]:
    """Returns a function from images in 0..255, uint8 or float, to the input of a model. Raises
    ValueError or TypeError if `normalize` is not valid."""
    if normalize is None:
        return lambda images: images.float() / 255
    if normalize == "bytes":
        return lambda images: images.float()
    if callable(normalize):
        return lambda images: normalize(images.float() / 255)
    if not isinstance(normalize, (tuple, list)) or len(normalize) != 2:
        raise TypeError(
            "`normalize` must be None, (mean, std), a function or 'bytes', got"
            f" {type(normalize).__name__}"
        )
    try:
        mean, std = (torch.as_tensor(each, dtype=torch.float32).flatten() for each in normalize)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError("`normalize` must be (mean, std), two lists of numbers") from error
    if len(mean) != len(std) or len(mean) not in (1, 3) or not bool((std > 0).all()):
        raise ValueError(
            "`normalize` must have one mean and one positive std per channel, got"
            f" {mean.tolist()} and {std.tolist()}"
        )

    def standardized(images: Tensor) -> Tensor:
        shape = (-1, 1, 1)
        center, scale = (each.to(images.device).view(shape) for each in (mean, std))
        return (images.float() / 255 - center) / scale

    return standardized
