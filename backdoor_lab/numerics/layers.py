"""Finds layers of a model by name and records what passes through them."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.lazy import Tensor, nn, torch

PENULTIMATE, POOLED = "penultimate", ":pool"
AUTOENCODER = "autoencoder"
"""The layer name that selects the features of an autoencoder instead of a layer of the model; see
training/autoencoder.py."""


def head(net: nn.Module) -> nn.Linear:
    """Returns the last linear layer, whose inputs are the penultimate features. Raises ConfigError
    if the model has no linear layer."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ConfigError(
            f"{type(net).__name__} has no linear layer and so no penultimate features"
        )
    return layers[-1]


class FeatureHook:
    """Records a layer's features during a forward pass: ``with FeatureHook(net, layer) as tap``.

    `layer` is ``penultimate`` (the input of the last linear layer) or a module's name (``layer4``),
    whose output is flattened or, with the suffix ``:pool`` (``layer4:pool``), averaged over all
    positions. `tap.values` are the features of the last pass, float (n, d).
    """

    def __init__(self, net: nn.Module, layer: str) -> None:
        self.values: Tensor = torch.empty(0)
        self._handle: Any = None
        self._module, self._before = layer_of(net, layer)
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
        self.values = inputs[0].flatten(1)

    def _catch_output(self, _: nn.Module, __: object, output: Tensor) -> None:
        pooled = output.flatten(2).mean(dim=2) if self._pool and output.ndim > 2 else output
        self.values = pooled.flatten(1)


def layer_of(net: nn.Module, layer: str) -> tuple[nn.Module, bool]:
    """Returns the module named `layer`, and whether its input is recorded instead of its output.
    Raises ConfigError, listing the layers, for an unknown name."""
    if layer == PENULTIMATE:
        return head(net), True
    known, name = dict(net.named_modules()), layer.removesuffix(POOLED)
    if name not in known or not name:
        names = [name for name, _ in net.named_children()]
        pooled = [f"{name}{POOLED}" for name in names]
        whole = [PENULTIMATE, *names, *pooled, AUTOENCODER]
        inner = [n for n in known if n.count(".") == 1]
        parts = (
            f" Their submodules are accepted too, such as {inner[0]} or {inner[0]}{POOLED}."
            if inner
            else ""
        )
        raise ConfigError(f"{unknown('`protocol.layer`', layer, whole)}{parts}")
    return known[name], False
