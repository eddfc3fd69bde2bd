"""Objects from configuration: `_target_` names one of our own classes, and nothing else.

The name is checked before anything is imported, and the class after: it must be a kind of what
is asked for. Hydra's own `instantiate` would import and call whatever the name says.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from backdoor_lab.core import checks
from backdoor_lab.core.errors import ConfigError

T = TypeVar("T")
OWN = re.compile(r"backdoor_lab\.(attacks|defenses|data)\.[a-z][a-z0-9_]*\.[A-Z][A-Za-z0-9]*\Z")
NOT_ARGUMENTS = ("_target_", "name")


def build(
    where: str, config: dict[str, Any], kind: type[T], shared: Mapping[str, Any] | None = None
) -> T:
    """The object that `config` describes: its class from `_target_`, its keys as arguments.

    `where` is the key under which the config stands, for messages; `kind` a class, or a tuple
    of classes as for isinstance. `shared` are values that stand outside of the config and hold
    where the config says nothing else: for arguments of these names, also of objects inside, and
    for the method `obey` where there is one. Raises ConfigError for a name outside the allowlist,
    an unknown key, or a value that the class refuses.
    """
    cls = _find(where, config.get("_target_"), kind)
    given = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    parameters, takes_any = _parameters(cls)
    obeyed = with_shared(given, shared or {})
    known = dict.fromkeys([*parameters, *(obeyed if hasattr(cls, "obey") else ())])
    checks.keys(f"{where}={config['name']}" if config.get("name") else where, given, known)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in config and name not in obeyed
    ]
    if missing:
        raise ConfigError(f"`{where}` needs a value for {', '.join(missing)}")
    if "name" in parameters:
        given["name"] = config.get("name")
    arguments = {key: value for key, value in given.items() if key in parameters or takes_any}
    arguments |= {key: value for key, value in obeyed.items() if key in parameters or takes_any}
    made = cls(
        **{k: _nested(f"{where}.{k}", value, kind, obeyed) for k, value in arguments.items()}
    )
    if shared and hasattr(made, "obey"):
        made.obey(**obeyed)
    return made


def with_shared(given: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The `shared` values, or what the config says in place of them."""
    return {key: given.get(key, value) for key, value in shared.items()}


def takes(cls: type, name: str) -> bool:
    """Whether a class made by `build` works by a shared value of this name."""
    parameters, takes_any = _parameters(cls)
    return takes_any or name in parameters or hasattr(cls, "obey")


def _parameters(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """The arguments that a class takes by name, and whether it takes any other as well."""
    found = inspect.signature(cls).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: each for name, each in found.items() if each.kind not in kinds}
    return named, any(each.kind is kinds[0] for each in found.values())


def _nested(where: str, value: Any, kind: type[T], shared: Mapping[str, Any]) -> Any:
    inside = isinstance(value, dict) and "_target_" in value
    return build(where, value, kind, shared) if inside else value


def _find(where: str, target: object, kind: type[T]) -> type[T]:
    if not isinstance(target, str) or not OWN.match(target):
        raise ConfigError(
            f"`{where}._target_` must name a class in backdoor_lab.attacks, .defenses or .data"
            f" (backdoor_lab.attacks.pixel.Pixel), got {target!r}"
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"`{where}._target_`: no module {error.name}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"`{where}._target_`: {target} is no class to choose here")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(
            f"`{where}._target_`: {target} is no class to choose here: it lacks the method"
            f"{'s' * (', ' in lacking)} {lacking}"
        )
    return found
