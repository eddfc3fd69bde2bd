"""Passes two images of zeros through a network, to find incompatibilities before any work
starts."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.terminal import size_words
from backdoor_lab.data.limits import memory_here
from backdoor_lab.numerics.layers import AUTOENCODER, FeatureHook, layer_of
from backdoor_lab.training.models import build_model


def try_network(
    model: dict[str, Any], layer: str, shape: tuple[int, int, int], classes: int
) -> tuple[torch.nn.Module, int]:
    """Try a network on images of this `shape`. Returns the network, on the meta device, and the
    number of features per image at `layer`.

    Raises ConfigError if the network cannot take such images, has no such layer or needs more
    memory than this machine has.
    """
    with torch.device("meta"):
        net = build_model(model, channels=shape[0], classes=classes, seed=0)
    check_layer(net, layer)
    _check_size(model, net)
    try:
        found, features = _passed(net, layer, shape, "meta")
    except NotImplementedError:
        # Some operations are not implemented on the meta device, which computes shapes only.
        whole = build_model(model, channels=shape[0], classes=classes, seed=0)
        found, features = _passed(whole, layer, shape, "cpu")
    except (RuntimeError, AssertionError, ValueError) as error:
        channels, height, width = shape
        raise ConfigError(
            f"`model.name={model['name']}` cannot take images of {channels}x{height}x{width}"
            f" ({str(error).splitlines()[0]}); choose another model, or resize (dataset.size)"
        ) from error
    for doing, logits in found.items():
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if what != (2, classes):
            raise ConfigError(
                f"`model.name={model['name']}` returns {what} while {doing}, but logits of shape"
                f" {(2, classes)} are needed: choose another model"
            )
    return net, features


def _passed(
    net: torch.nn.Module, layer: str, shape: tuple[int, int, int], device: str
) -> tuple[dict[str, Any], int]:
    images = torch.zeros(2, *shape, device=device)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # Some networks return more than logits in training mode, or need larger images.
        found = {"training": net.train()(images)}
        if layer == AUTOENCODER:
            from backdoor_lab.training.autoencoder import DIMS

            return found | {"measured": net.eval()(images)}, DIMS
        with FeatureHook(net, layer) as tap:
            return found | {"measured": net.eval()(images)}, tap.values.shape[1]


def check_layer(net: torch.nn.Module, layer: str) -> None:
    """Raises ConfigError if the network has no layer of this name."""
    if layer != AUTOENCODER:
        layer_of(net, layer)


def _check_size(model: dict[str, Any], net: torch.nn.Module) -> None:
    size = sum(value.nbytes for value in net.state_dict().values())
    if size > memory_here():
        raise ConfigError(
            f"`model.name={model['name']}` with `model.width`={model['width']} has"
            f" {size_words(size)} of weights, but this machine has {size_words(memory_here())}"
            " of memory: choose a narrower network"
        )
