"""Parameter groups of AdamW: which parameters decay, and the layer-wise learning rates of
fine-tuning."""

from __future__ import annotations

from typing import Any

from backdoor_lab.core.lazy import nn

CONTAINERS = ("blocks", "features", "layer", "layers", "stages", "trunk_output")
"""The names that timm and torchvision give to the sequence of a network's blocks."""
EMBEDDINGS = ("class_token", "cls_token", "dist_token", "pos_embed", "pos_embedding",
              "position_embeddings", "relative_position_bias_table")  # fmt: skip
"""The names of parameters that do not decay, whatever their shape."""
HEAD = ">"
"""The layer after the numbered blocks; not the name of a module."""


def parameter_groups(
    net: nn.Module, *, lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters of `net` in groups with the keys ``params``, ``lr`` and
    ``weight_decay``, beginning with the layers of the highest learning rate.

    As in MAE (He et al. 2022, ``param_groups_lrd``) and timm (``param_groups_layer_decay``), both
    after BEiT (Bao et al. 2022): parameters of layer i of 0..L have the learning rate
    ``lr * layer_decay ** (L - i)``, where `layers_of` decides a parameter's layer. Weight decay
    does not apply to parameters of at most one dimension (biases and normalization), to
    `EMBEDDINGS`, and to the names that a method ``no_weight_decay()`` of a module returns, as
    timm's networks have it.
    """
    layers = dict.fromkeys(dict(net.named_parameters()), 0) if layer_decay == 1 else layers_of(net)
    last = max(layers.values(), default=0)
    spared = _without_decay(net)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, value in net.named_parameters():
        if not value.requires_grad:
            continue
        decays = value.ndim > 1 and name not in spared
        group = groups.setdefault((last - layers[name], not decays), {
            "params": [],
            "lr": lr * layer_decay ** (last - layers[name]),
            "weight_decay": weight_decay if decays else 0.0,
        })  # fmt: skip
        group["params"].append(value)
    return [groups[key] for key in sorted(groups)]


def layers_of(net: nn.Module) -> dict[str, int]:
    """The layer of each parameter of `net`, counted from the input: ``{name: layer}``.

    If the network has numbered blocks, a sequence with one of the names in `CONTAINERS` such as
    ``blocks`` or ``encoder.layers``, its elements are layers 1..L-1. Parameters that are declared
    before it (patch embedding, class token, position embedding, stem) are layer 0, and those after
    it (last normalization, head) layer L: MAE's rule. timm counts the last normalization to the
    last block, and within stages every block as a layer. If there is none, or several that are not
    nested, the layers are the network's top-level modules in the order of their declaration, such
    as stem, ``layer1`` to ``layer4`` and ``fc`` of a ResNet; parameters of the network itself
    belong to layer 0. A network that only wraps one module has the layers of this module.

    A module without parameters is no layer, and a module with only one-dimensional parameters, such
    as the normalization after a convolution, belongs to the layer before it.
    """
    blocks = _blocks(net)
    start = f"{blocks}." if blocks else _wrapper(net)
    units = {name: _unit(name, start) for name, _ in net.named_parameters()}
    if blocks:
        first = next(i for i, unit in enumerate(units.values()) if unit)
        for name in [*units][first:]:
            units[name] = units[name] or HEAD
    wide = {units[name] for name, value in net.named_parameters() if value.ndim > 1}
    numbers: dict[str, int] = {}
    for unit in dict.fromkeys(units.values()):
        joins = numbers and unit not in wide and unit != HEAD
        numbers[unit] = max(numbers.values(), default=-1) + (0 if joins else 1)
    return {name: numbers[unit] for name, unit in units.items()}


def _unit(name: str, start: str) -> str:
    """The module below `start` to which a parameter belongs; empty for other parameters."""
    module, dot, _ = name.removeprefix(start).partition(".")
    return f"{start}{module}" if dot and name.startswith(start) else ""


def _blocks(net: nn.Module) -> str:
    """The path of the network's numbered blocks; empty if there are none, or several."""
    found: list[str] = []
    for path, module in net.named_modules():
        if path.rpartition(".")[2] not in CONTAINERS or any(
            path.startswith(f"{outer}.") for outer in found
        ):
            continue
        parts = module.children() if isinstance(module, (nn.Sequential, nn.ModuleList)) else ()
        if sum(any(True for _ in part.parameters()) for part in parts) > 1:
            found.append(path)
    return found[0] if len(found) == 1 else ""


def _wrapper(net: nn.Module) -> str:
    """The prefix that all parameter names share because modules only wrap one module."""
    prefix = ""
    names = [name for name, _ in net.named_parameters()]
    while len({name.removeprefix(prefix).partition(".")[0] for name in names}) == 1:
        inner = names[0].removeprefix(prefix).partition(".")
        if not inner[1]:
            break
        prefix += f"{inner[0]}."
    return prefix


def _without_decay(net: nn.Module) -> set[str]:
    """The names of parameters that never decay, apart from those of one dimension."""
    names = {name for name, _ in net.named_parameters() if name.rpartition(".")[2] in EMBEDDINGS}
    for path, module in net.named_modules():
        method = getattr(module, "no_weight_decay", None)
        if callable(method):
            names |= {f"{path}.{name}" if path else name for name in method()}
    return names
