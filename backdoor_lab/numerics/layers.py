"""Finds layers of a model by name and records their inputs or outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.lazy import Tensor, nn, torch

PENULTIMATE = "penultimate"
POOLED, CLS, MEAN, INPUT = SUFFIXES = ":pool", ":cls", ":mean", ":input"
"""Suffixes of a layer name: the mean of the module's output over all positions, the first token of
its output, the mean of its tokens for parts of the image (without class tokens), or its input."""
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
    `last_stage`) or the name of a module, whose output is flattened (``layer4``), averaged over
    all positions (``layer4:pool``) or, for tokens (n, tokens, d), reduced to the first token
    (``blocks.10:cls``) or averaged over the tokens of the image (``blocks.10:mean``; see
    `prefix_tokens`). With ``layer4:input``, the features are the flattened input of the module.
    Outputs are feature maps (n, channels, ...) or tokens. Of a tuple or mapping, the first tensor
    is used.

    `tap.values` are the features of the last call of the module, float (n, d), `tap.channels` the
    number of channels before flattening and `tap.calls` the number of calls. `key` is the option
    that names the layer, for errors.
    """

    def __init__(self, net: nn.Module, layer: str, key: str = "protocol.layer") -> None:
        self.values: Tensor = torch.empty(0)
        self.channels = self.calls = 0
        self._handle: Any = None
        self._module, self._before = layer_of(net, layer, key)
        self._layer, self._key = layer, key
        self._prefix = prefix_tokens(net)
        if layer.endswith(CLS) and self._prefix == 0:
            raise ConfigError(
                f"`{key}={layer}`: {type(net).__name__} has no class token; use"
                f" {layer.removesuffix(CLS)}{MEAN}"
            )

    def __enter__(self) -> FeatureHook:
        if self._before:
            catch = self._catch_input
            self._handle = self._module.register_forward_pre_hook(catch, with_kwargs=True)
        else:
            self._handle = self._module.register_forward_hook(self._catch_output)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _catch_input(self, _: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._record(self._tensor((*inputs, named)))

    def _catch_output(self, _: nn.Module, __: object, output: object) -> None:
        found = self._tensor(output)
        if self._layer.endswith((CLS, MEAN)):
            if found.ndim != 3:
                shape = ", ".join(["n", *map(str, found.shape[1:])])
                raise ConfigError(
                    f"`{self._key}={self._layer}` needs tokens (n, tokens, d), got shape ({shape})"
                )
            cls = self._layer.endswith(CLS)
            found = found[:, 0] if cls else found[:, self._prefix or 0 :].mean(dim=1)
        self._record(found)

    def _record(self, found: Tensor) -> None:
        self.calls, self.channels = self.calls + 1, found.shape[1]
        if self._layer.endswith(POOLED) and found.ndim > 2:
            tokens = found.ndim == 3
            found = found.mean(dim=1) if tokens else found.flatten(2).mean(dim=2)
        # A module may overwrite its input, and a later one its output, as an in-place ReLU does.
        self.values = found.flatten(1).clone()

    def _tensor(self, given: object) -> Tensor:
        found = _first_tensor(given)
        what = "input" if self._before else "output"
        if found is None or found.ndim < 2:
            got = f"type {type(given).__name__}" if found is None else f"shape {(*found.shape,)}"
            raise ConfigError(
                f"`{self._key}={self._layer}`: the module's {what} must be a tensor (n, ...), or a"
                f" tuple or mapping with one, got {got}"
            )
        return found


def _first_tensor(given: object) -> Tensor | None:
    if isinstance(given, torch.Tensor):
        return given
    parts: Iterable[object] = given if isinstance(given, (tuple, list)) else ()
    if isinstance(given, Mapping):
        parts = given.values()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


def layer_of(net: nn.Module, layer: str, key: str = "protocol.layer") -> tuple[nn.Module, bool]:
    """Returns the module named `layer`, and whether its input is recorded instead of its output.
    Raises ConfigError, listing the layers, for an unknown name; `key` is the option's name."""
    if layer == PENULTIMATE:
        return head(net), True
    if layer == LAST_STAGE_INPUT:
        return last_stage(net) or head(net), True
    known = dict(net.named_modules(remove_duplicate=False))
    suffix = next((each for each in SUFFIXES if layer.endswith(each)), "")
    name = layer.removesuffix(suffix)
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
        also = [f"{name}{suffix}" for name in known if name]
        raise ConfigError(f"{unknown(f'`{key}`', layer, whole, also=also)}{parts}")
    return known[name], suffix == INPUT


def prefix_tokens(net: nn.Module) -> int | None:
    """How many tokens precede those of the image, such as a class token: as timm's networks state
    it, 1 for torchvision's vision transformer, None for other networks, whose tokens are all
    averaged by ``:mean``."""
    for module in net.modules():
        if isinstance(found := getattr(module, "num_prefix_tokens", None), int):
            return found
        if isinstance(getattr(module, "class_token", None), nn.Parameter):
            return 1
    return None


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
