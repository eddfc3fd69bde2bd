"""Networks of plug-ins: ``model.factory=package.module:make`` names a function that makes one."""

from __future__ import annotations

import inspect
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import to_trust
from backdoor_lab.core.lazy import nn
from backdoor_lab.exchange.network_file import LIBRARY, NEEDED, OPTIONAL
from backdoor_lab.plugins.trust import import_trusted, trusted
from backdoor_lab.training.model_group import FACTORY, check_optional


def is_own(config: dict[str, Any]) -> bool:
    """Whether a `model` group describes a network of a plug-in."""
    return FACTORY in config


def check_own(config: dict[str, Any]) -> None:
    """Raises ConfigError if a `model` group with a factory has unknown keys or options, or names no
    function of a trusted plug-in."""
    validation.keys("model", config, (*NEEDED, *OPTIONAL, FACTORY))
    check_optional(config)
    if config.get(LIBRARY) is not None:
        raise ConfigError(f"`model.{FACTORY}` needs `model.{LIBRARY}` to be null")
    if config.get("width") is not None or config.get("stem") is not None:
        raise ConfigError(
            "`model.factory`: a network of a plug-in has no `model.width` or `model.stem`; set both"
            " to null (model.width=null on the command line, as some experiments set it), and its"
            " own options in `model.options`"
        )
    _arguments(config, _factory(config), channels=3, classes=2)


def make_own(config: dict[str, Any], channels: int, classes: int) -> nn.Module:
    """Call the factory of a `model` group. Raises ConfigError if it does not return a module."""
    make = _factory(config)
    net = make(**_arguments(config, make, channels, classes))
    if not isinstance(net, nn.Module):
        raise ConfigError(
            f"`model.factory`: {config['factory']} must return a torch.nn.Module, got"
            f" {type(net).__name__}"
        )
    return net


def _factory(config: dict[str, Any]) -> Any:
    said = config["factory"]
    if said is None:
        raise ConfigError(
            "`model=module` needs model.factory=package.module:make, a function of a plug-in"
        )
    module, _, name = str(said).partition(":")
    if trusted().plugin_of(module) is None:
        raise ConfigError(
            f"`model.factory`: {said} is not in a trusted plug-in: {to_trust(module)}"
        )
    try:
        found = getattr(import_trusted(module), name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"`model.factory`: {said}: {error}") from error
    if not callable(found):
        raise ConfigError(f"`model.factory`: {module} has no function {name}")
    return found


def _arguments(config: dict[str, Any], make: Any, channels: int, classes: int) -> dict[str, Any]:
    """Returns the arguments of a factory: ``num_classes``, ``in_channels`` if it has this
    parameter, and `model.options`."""
    parameters = inspect.signature(make).parameters
    options = config.get("options") or {}
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if "num_classes" not in parameters and not takes_any:
        raise ConfigError(f"`model.factory`: {config['factory']} must have a parameter num_classes")
    given = {"num_classes": classes, **options}
    if "in_channels" in parameters or takes_any:
        given = {"in_channels": channels, **given}
    if not takes_any:
        validation.keys("model.options", options, tuple(parameters))
    needed = [
        name
        for name, each in parameters.items()
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and name not in given
    ]
    if needed:
        raise ConfigError(
            f"`model.options` needs a value for {', '.join(needed)}: +model.options.{needed[0]}=…"
        )
    return given
