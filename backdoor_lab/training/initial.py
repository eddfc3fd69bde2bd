"""Initial weights of a network from a local file (``model.weights=FILE``), for fine-tuning."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.lazy import Tensor, nn
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.exchange.network_file import WEIGHTS, network_file, read_weights
from backdoor_lab.numerics.layers import head

log = logging.getLogger(__name__)
Shapes = Mapping[str, tuple[int, ...]]
COUNTER = "num_batches_tracked"
"""A buffer of BatchNorm that old files lack. Nothing here depends on its value."""
_KEY = f"model.{WEIGHTS}"
_LISTED = 3


def with_weights(model: dict[str, Any]) -> dict[str, Any]:
    """Returns a `model` group in which the path of the initial weights is replaced by an object
    with ``file``, the path, and ``digest``, the hash of the tensors. Raises ConfigError or
    DataError, which names the file, if it cannot be read."""
    if WEIGHTS not in model:
        return model
    path = validation.text(_KEY, model[WEIGHTS])
    try:
        found = network_file(path, alone=True)
    except DataError as error:
        raise DataError(f"`{_KEY}`: {error}") from error
    return model | {WEIGHTS: {"file": str(found.path), "digest": found.digest}}


def check_initial(model: Mapping[str, Any], expected: Shapes, head: str) -> None:
    """Raises ConfigError if the tensors in the file with the initial weights, apart from those of
    the layer `head`, do not have the names and shapes of a network with the tensors `expected`."""
    if WEIGHTS in model:
        shapes = network_file(model[WEIGHTS]["file"], alone=True).shapes
        _chosen(model, shapes, expected, head)


def initial_tensors(model: Mapping[str, Any], expected: Shapes, head: str) -> dict[str, Tensor]:
    """The tensors of the file with the initial weights that fit a network with the tensors
    `expected`: all, or all but those of its last layer `head` if these have other shapes or are
    missing, for example because the file is for other classes.

    Raises ConfigError if other tensors differ, and DataError if the file has changed since the
    configuration was checked.
    """
    path = model[WEIGHTS]["file"]
    tensors = read_weights(path)
    if tensors_digest(tensors) != model[WEIGHTS]["digest"]:
        raise DataError(f"`{_KEY}`={path} has changed since the start of this command")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    chosen = _chosen(model, shapes, expected, head)
    return {name: tensors[name] for name in chosen}


def _chosen(model: Mapping[str, Any], shapes: Shapes, expected: Shapes, head: str) -> list[str]:
    last = {name for name in expected if name.startswith(f"{head}.")}
    if any(shapes.get(name) != expected[name] for name in last):
        shapes = {name: shape for name, shape in shapes.items() if name not in last}
        expected = {name: shape for name, shape in expected.items() if name not in last}
    said = differences(shapes, expected)
    if said:
        raise ConfigError(
            f"`{_KEY}`={model[WEIGHTS]['file']} does not hold the weights of"
            f" `model.name={model['name']}`; only its last layer, `{head}`, may have another shape:"
            f" {said}"
        )
    return list(shapes)


def differences(given: Shapes, expected: Shapes) -> str:
    """The first tensors that are missing, unexpected or of another shape; empty if none is."""
    missing = [n for n in expected if n not in given and not n.endswith(COUNTER)]
    unexpected = [name for name in given if name not in expected]
    reshaped = [
        f"{name} has the shape {given[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    found = ((missing, "missing "), (unexpected, "unexpected "), (reshaped, ""))
    return "; ".join(f"{what}{_few(names)}" for names, what in found if names)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def load_initial(net: nn.Module, model: Mapping[str, Any]) -> str:
    """Load the initial weights of a `model` group into its network `net`. The last linear layer
    stays as it is if the file has none of its shape; what was done is logged and returned.

    Raises ConfigError if other tensors differ, and DataError if the file has changed.
    """
    last = head_name(net)
    tensors = initial_tensors(model, shapes_of_net(net), last)
    net.load_state_dict(tensors, strict=False)
    kept = any(name.startswith(f"{last}.") for name in tensors)
    said = "all layers" if kept else f"all layers but `{last}`, which has new random weights"
    log.info("initial weights from %s: %s", model["weights"]["file"], said)
    return said


def check_fits_file(net: nn.Module, model: Mapping[str, Any]) -> None:
    """Raises ConfigError if the file of initial weights in a `model` group is not for `net`."""
    check_initial(model, shapes_of_net(net), head_name(net))


def head_name(net: nn.Module) -> str:
    """The name of the last linear layer. Raises ConfigError if there is none."""
    last = head(net)
    return next(name for name, module in net.named_modules() if module is last)


def shapes_of_net(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a network's tensors."""
    return {name: tuple(value.shape) for name, value in net.state_dict().items()}
