"""Runs a user's model on batches and leaves the model as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from backdoor_lab.api.networks import device_of


@contextmanager
def inference(model: object, device: object, images: object) -> Iterator[torch.device]:
    """Context manager in which `model` is in eval mode and gradients are off. Yields the device for
    its inputs.

    A module is on `device` inside the context, and afterwards on its previous device again; the
    mode of every submodule is restored. With ``device=None``, the device is that of the model, or
    that of `images` if the model is a function or has no parameters.
    """
    with torch.no_grad():
        if not isinstance(model, nn.Module):
            yield _device(device) or _device_of_images(images)
            return
        places = {each.device for each in (*model.parameters(), *model.buffers())}
        if device is not None and len(places) > 1:
            raise ValueError(
                "`device` must be None, since the model is on several devices: "
                + ", ".join(sorted(map(str, places)))
            )
        before = device_of(model) if places else _device_of_images(images)
        wanted = _device(device) or before
        modes = [(module, module.training) for module in model.modules()]
        try:
            if wanted != before and places:
                model.to(wanted)
            model.eval()
            yield wanted
        finally:
            for module, mode in modes:
                module.training = mode
            if wanted != before and places:
                model.to(before)


def _device(device: object) -> torch.device | None:
    if device is None:
        return None
    if not isinstance(device, (str, int, torch.device)):
        raise TypeError(f"`device` must be a device or its name, got {type(device).__name__}")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        if found.type == "meta":
            raise ValueError("`device` must have memory, got 'meta'")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"`device` {device!r} is not available: {reason}") from error
    return found


def _device_of_images(images: object) -> torch.device:
    return images.device if isinstance(images, torch.Tensor) else torch.device("cpu")
