"""Finds layers of a model by name and records their inputs or outputs."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.lazy import Tensor, nn, torch

PENULTIMATE, POOLED = "penultimate", ":pool"
INPUT = ":input"
"""Suffix of a layer name that selects the module's input instead of its output."""
LAST_STAGE_INPUT = "last_stage_input"
"""The layer name that selects the input of the last part of a network that contains convolutions;
see `last_stage`."""
AUTOENCODER = "autoencoder"
"""The layer name that selects the features of an autoencoder instead of a layer of the model; see
training/autoencoder.py."""


def head(net: nn.Module) -> nn.Linear:
    """Returns the last linear layer, whose inputs are the penultimate features. Raises ConfigError
    if the model has no linear layer."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(
            f"{type(net).__name__} has no linear layer and so no penultimate features:"
            " choose another model"
        )
    return layers[-1]


class FeatureHook:
    """Records a layer's features during a forward pass: ``with FeatureHook(net, layer) as tap``.

    `layer` is ``penultimate`` (the input of the last linear layer), ``last_stage_input`` (see
    `last_stage`) or the name of a module, whose output is flattened (``layer4``) or averaged over
    all positions (``layer4:pool``). With ``layer4:input``, the features are the flattened input of
    the module. `tap.values` are the features of the last pass, float (n, d), and `tap.channels` the
    number of channels before flattening. `key` is the option that names the layer, for errors.
    """

    def __init__(self, net: nn.Module, layer: str, key: str = "protocol.layer") -> None:
        self.values: Tensor = torch.empty(0)
        self.channels = 0
        self._handle: Any = None
        self._module, self._before = layer_of(net, layer, key)
        self._pool = layer.endswith(POOLED)

    def __enter__(self) -> FeatureHook:
        if self._before:
            self._handle = self._module.register_forward_pre_hook(self._catch_input)
        else:
            self._handle = self._module.register_forward_hook(self._catch_output)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _catch_input(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # The module may overwrite its input, as an in-place ReLU does.
        self.values, self.channels = inputs[0].flatten(1).clone(), inputs[0].shape[1]

    def _catch_output(self, _: nn.Module, __: object, output: Tensor) -> None:
        pooled = output.flatten(2).mean(dim=2) if self._pool and output.ndim > 2 else output
        self.values, self.channels = pooled.flatten(1), output.shape[1]


def layer_of(net: nn.Module, layer: str, key: str = "protocol.layer") -> tuple[nn.Module, bool]:
    """Returns the module named `layer`, and whether its input is recorded instead of its output.
    Raises ConfigError, listing the layers, for an unknown name; `key` is the option's name."""
    if layer == PENULTIMATE:
        return head(net), True
    if layer == LAST_STAGE_INPUT:
        return last_stage(net) or head(net), True
    known = dict(net.named_modules())
    name = layer.removesuffix(POOLED).removesuffix(INPUT)
    if name not in known or not name:
        names = [name for name, _ in net.named_children()]
        pooled = [f"{name}{POOLED}" for name in names]
        whole = [PENULTIMATE, LAST_STAGE_INPUT, *names, *pooled, AUTOENCODER]
        inner = [n for n in known if n.count(".") == 1]
        parts = (
            f" Their submodules are accepted too, such as {inner[0]} or {inner[0]}{POOLED}."
            if inner
            else ""
        )
        raise ConfigError(f"{unknown(f'`{key}`', layer, whole)}{parts}")
    return known[name], layer.endswith(INPUT)


def before_pooling(network: nn.Module, images: Tensor) -> Tensor:
    """Returns the last of the layer outputs that have spatial dimensions, flattened to (n, d).
    Ignores pooling layers. If there is no such output, returns the inputs of the last linear
    layer."""
    found: list[Tensor] = []

    def catch(module: nn.Module, _: object, output: object) -> None:
        pools = "Pool" in type(module).__name__
        if isinstance(output, torch.Tensor) and output.ndim > 2 and not pools:
            found[:] = [output]

    hooks = [module.register_forward_hook(catch) for module in network.modules()]
    with torch.no_grad(), FeatureHook(network, PENULTIMATE) as tap:
        network(images)
    for hook in hooks:
        hook.remove()
    return found[0].flatten(1) if found else tap.values


def last_stage(net: nn.Module) -> nn.Module | None:
    """Returns the last child of `net` that contains convolutions: ``layer4`` of a ResNet, the last
    block of a DenseNet, the last convolution of a VGG.

    If only one child contains convolutions, its own children are searched instead, and so on. None
    if no module has two such children.
    """
    parts = [part for part in net.children() if any(map(_convolves, part.modules()))]
    if len(parts) > 1:
        return parts[-1]
    return last_stage(parts[0]) if parts else None


def _convolves(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
