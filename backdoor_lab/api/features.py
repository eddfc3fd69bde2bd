"""Features of a user's model at one of its layers."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from backdoor_lab.api.arrays import as_batch_size, as_images
from backdoor_lab.api.boundary import boundary
from backdoor_lab.api.inference import inference
from backdoor_lab.api.networks import Normalize, dtype_of, normalizer
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.numerics.layers import LAST_STAGE_INPUT, PENULTIMATE, SUFFIXES, FeatureHook
from backdoor_lab.training.device import without_tf32

LISTED = 200


@overload
def extract_features(
    model: nn.Module, images: npt.NDArray[np.uint8], *, layer: str = ..., batch_size: int = ...,
    device: str | torch.device | None = ..., normalize: Normalize = ...,
) -> npt.NDArray[np.float32]: ...  # fmt: skip
@overload
def extract_features(
    model: nn.Module, images: Tensor, *, layer: str = ..., batch_size: int = ...,
    device: str | torch.device | None = ..., normalize: Normalize = ...,
) -> Tensor: ...  # fmt: skip
def extract_features(
    model: nn.Module, images: Any, *, layer: str = PENULTIMATE, batch_size: int = 256,
    device: str | torch.device | None = None, normalize: Normalize = None,
) -> Any:  # fmt: skip
    """Returns the features of images at one layer of a model.

    The model runs in eval mode, without gradients and without autocast or TF32. Afterwards its
    modes, hooks and device are as before.

    Args:
        model: Any module that takes a float batch (b, C, H, W). Wrap a model whose input is
            something else, such as a dictionary, in a module that takes such a batch.
        images: uint8 (n, C, H, W) with C 1 or 3, a NumPy array or a tensor on any device.
        layer: ``"penultimate"`` (the input of the last `torch.nn.Linear` in ``model.modules()``),
            ``"last_stage_input"`` (the input of the last part of the model that contains
            convolutions), or the name of a module as in ``model.named_modules()``, whose output is
            flattened. With a suffix: ``"name:pool"`` is the mean of the output over all
            positions, ``"name:cls"`` the first token of an output (b, tokens, d), ``"name:mean"``
            the mean of the tokens that are not class tokens, and ``"name:input"`` the flattened
            input of the module. If an input or output is a tuple or a dictionary, its first tensor
            is used; of a module that is called several times, such as a shared ReLU, the last call.
        batch_size: Number of images per forward pass. Features may depend on it by rounding.
        device: Where to run; the model is moved there and back. None: where the model is.
        normalize: What precedes the model. None: images are scaled to 0..1. ``(mean, std)``, each
            with one value per channel: scaled images are standardized with these. A function: it
            is applied to scaled images, float32 (b, C, H, W). ``"bytes"``: the model takes float
            values in 0..255.

    Returns:
        float32 (n, d), of the same kind and on the same device as `images`.

    Raises:
        ValueError: `layer` is unknown (the message lists the modules), is not called in a forward
            pass, or does not give one row per image; a feature is not finite; or an argument has a
            wrong dtype, shape or value.
        TypeError: `model` is not a module or is a scripted one, or `images` is not an array.

    Example:
        >>> import backdoor_lab as bl, torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8),
        ...                             torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> images = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
        >>> bl.extract_features(model, images).shape
        torch.Size([5, 8])
    """
    with boundary():
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("`model` must not be scripted or traced, since it has no forward hooks")
        if not isinstance(layer, str):
            raise TypeError(f"`layer` must be a string, got {type(layer).__name__}")
        values, back = as_images("images", images)
        if not len(values):
            raise ValueError("`images` must have at least one row")
        size, prepare = as_batch_size(batch_size), normalizer(normalize)
        tap = _hook(model, layer)
        parts: list[Tensor] = []
        with inference(model, device, images) as where, _eager(model), _full_precision(where), tap:
            for start in range(0, len(values), size):
                chunk = values[start : start + size].to(where)
                tap.calls = 0
                model(prepare(chunk).to(dtype_of(model)))
                _check(tap, layer, parts[0] if parts else None, len(chunk))
                parts.append(tap.values.float().cpu())
        features = torch.cat(parts)
        bad = ~features.isfinite().all(dim=1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ValueError(f"the features of row {row} of `images` are not finite")
    return back(features)


def _eager(model: nn.Module) -> AbstractContextManager[object]:
    """Returns a context manager in which a compiled model runs uncompiled: compiled code calls no
    hooks that were registered later."""
    for module in model.modules():
        in_place = getattr(module, "_compiled_call_impl", None) is not None
        if in_place or hasattr(module, "_orig_mod"):
            return torch.compiler.set_stance("force_eager")
    return nullcontext()


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False):
        if device.type == "cuda":
            with without_tf32():
                yield
        else:
            yield


def _hook(model: nn.Module, layer: str) -> FeatureHook:
    try:
        return FeatureHook(model, layer, "layer")
    except ConfigError as error:
        names = [name for name, _ in model.named_modules() if name]
        name, colon, suffix = layer.partition(":")
        if name in names and f":{suffix}" in SUFFIXES:
            raise ValueError(str(error)) from None
        near = [f"{each}{colon}{suffix}" for each in difflib.get_close_matches(name, names, n=1)]
        rule = f"`layer` {layer!r} is not known."
        if layer in (PENULTIMATE, LAST_STAGE_INPUT):
            rule = f"`layer='{layer}'` needs a torch.nn.Linear in the model."
        hint = f" Did you mean {near[0]!r}?" if near else ""
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        listed = ", ".join(names[:LISTED]) or "none"
        raise ValueError(f"{rule}{hint} Modules of the model: {listed}{more}.") from None


def _check(tap: FeatureHook, layer: str, first: Tensor | None, n: int) -> None:
    """Checks the features of a batch of `n` images; `first` are those of the first batch."""
    if not tap.calls:
        raise ValueError(
            f"`layer={layer}` is not called in a forward pass of the model; choose another module"
        )
    wanted = (n, tap.values.shape[1] if first is None else first.shape[1])
    if tap.values.shape != wanted:
        raise ValueError(
            f"`layer={layer}` must give one row per image, but gives shape"
            f" {tuple(tap.values.shape)} for {n} images; choose another module"
        )
