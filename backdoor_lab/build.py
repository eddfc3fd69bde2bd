"""Objects from configuration: `_target_` names one of our own classes, and nothing else.

The name is checked before anything is imported, and the class after: it must be a kind of what
is asked for. Hydra's own `instantiate` would import and call whatever the name says.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from typing import Any, TypeVar

from backdoor_lab import checks
from backdoor_lab.errors import ConfigError
from backdoor_lab.files import digest

T = TypeVar("T")
OWN = re.compile(r"backdoor_lab\.(attacks|defenses|data)\.[a-z][a-z0-9_]*\.[A-Z][A-Za-z0-9]*\Z")
NOT_ARGUMENTS = ("_target_", "name")


def build(where: str, config: dict[str, Any], kind: type[T]) -> T:
    """The object that `config` describes: its class from `_target_`, its keys as arguments.

    `where` is the key under which the config stands, for messages; `kind` a class, or a tuple
    of classes as for isinstance. Raises ConfigError for a name outside the allowlist, an
    unknown key, or a value that the class refuses.
    """
    cls = _find(where, config.get("_target_"), kind)
    given = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    parameters = inspect.signature(cls).parameters
    checks.keys(where, given, parameters)
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in config
    ]
    if missing:
        raise ConfigError(f"`{where}` needs a value for {', '.join(missing)}")
    if "name" in parameters:
        given["name"] = config.get("name")
    made = cls(**{key: _nested(f"{where}.{key}", value, kind) for key, value in given.items()})
    return made


def source_digest(made: object) -> str:
    """A hash of the source of an object's class and of every module of ours that it builds on.

    Part of what decides a result: when the code of a trigger or a defense is edited, nothing
    that the old code made is taken for its work.
    """
    parts = _sources(type(made))  # type: ignore[arg-type]
    inner = [source_digest(value) for value in vars(made).values() if hasattr(value, "__dict__")]
    return digest([*parts, *inner], 16)


@functools.cache
def _sources(cls: type) -> tuple[str, ...]:
    names = {base.__module__ for base in cls.__mro__ if base.__module__.startswith("backdoor_lab.")}
    waiting = list(names)
    while waiting:
        found = _used_by(waiting.pop()) - names
        names |= found
        waiting += found
    return tuple(inspect.getsource(importlib.import_module(name)) for name in sorted(names))


def _used_by(name: str) -> set[str]:
    """The modules of attacks and defenses whose classes and functions a module has taken in."""
    values = vars(importlib.import_module(name)).values()
    modules = {str(getattr(value, "__module__", "")) for value in values}
    rooms = ("backdoor_lab.attacks.", "backdoor_lab.defenses.")
    return {module for module in modules if module.startswith(rooms)}


def _nested(where: str, value: Any, kind: type[T]) -> Any:
    return build(where, value, kind) if isinstance(value, dict) and "_target_" in value else value


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
    if not (isinstance(found, type) and issubclass(found, kind)) or inspect.isabstract(found):
        raise ConfigError(f"`{where}._target_`: {target} is no class to choose here")
    return found
