"""Create objects from a configuration; `_target_` may name only a class of this package.

The name is checked before anything is imported, and the class must be a subclass of the expected
kind. Hydra's own `instantiate` would import and call any name.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError

T = TypeVar("T")
OWN = re.compile(r"backdoor_lab\.(attacks|defenses|data)\.[a-z][a-z0-9_]*\.[A-Z][A-Za-z0-9]*\Z")
NOT_ARGUMENTS = ("_target_", "name")
OPTIONS = "options"


@dataclass(frozen=True)
class Shared:
    """Options that every config of a group accepts; a class receives them as one object.

    `values` maps each key to its default. The object is the result of `make(**values)`; a class
    receives it if it has an argument `options`.
    """

    values: Mapping[str, Any]
    make: Callable[..., object]

    def under(self, given: Mapping[str, Any]) -> Shared:
        """Returns the same keys, with defaults replaced by the values in `given`."""
        return replace(self, values=with_shared(given, self.values))


_NONE_SHARED = Shared({}, lambda: None)


def build(where: str, config: dict[str, Any], kind: type[T], shared: Shared = _NONE_SHARED) -> T:
    """Create the object that `config` describes: `_target_` is its class, other keys are arguments.

    `where` is the key of `config`, for messages. `kind` is the required base class, or a tuple of
    classes. `shared` also applies to objects nested in `config`: its options object is always
    created, which validates its values, and is passed to each class that accepts it, as the
    argument `options` or to the method `obey`. Raises ConfigError for a name outside the allowlist,
    an unknown key, or a value that the class rejects.
    """
    cls = _find(where, config.get("_target_"), kind)
    given = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    parameters, _ = _parameters(cls)
    shared = shared.under(given)
    options = shared.make(**shared.values)
    if twice := [name for name in parameters if name in shared.values]:
        raise ConfigError(
            f"`{where}._target_`: {cls.__name__} has a parameter {', '.join(twice)}: these"
            f" keys are passed together, as its argument `{OPTIONS}`"
        )
    own = [name for name in parameters if not (shared.values and name == OPTIONS)]
    known = dict.fromkeys([*own, *shared.values])
    validation.keys(f"{where}={config['name']}" if config.get("name") else where, given, known)
    missing = [
        name
        for name, parameter in parameters.items()
        if name in own and parameter.default is parameter.empty and name not in config
    ]
    if missing:
        raise ConfigError(f"`{where}` needs a value for {', '.join(missing)}")
    if "name" in parameters:
        given["name"] = config.get("name")
    arguments = {
        key: _nested(f"{where}.{key}", value, kind, shared)
        for key, value in given.items()
        if key not in shared.values
    }
    if shared.values and _in_constructor(cls):
        arguments[OPTIONS] = options
    made = cls(**arguments)
    if shared.values and hasattr(made, "obey"):
        made.obey(options)
    return made


def with_shared(given: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `shared` values, overridden by the values in `given`."""
    return {key: given.get(key, value) for key, value in shared.items()}


def takes_options(cls: type) -> bool:
    """Whether `build` passes the options object of `Shared` to this class."""
    return _in_constructor(cls) or hasattr(cls, "obey")


def _in_constructor(cls: type) -> bool:
    parameters, takes_any = _parameters(cls)
    return takes_any or OPTIONS in parameters


def _parameters(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Returns the named parameters of a class, and whether it also accepts any other keyword."""
    found = inspect.signature(cls).parameters
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name: each for name, each in found.items() if each.kind not in kinds}
    return named, any(each.kind is kinds[0] for each in found.values())


def _nested(where: str, value: Any, kind: type[T], shared: Shared) -> Any:
    inside = isinstance(value, dict) and "_target_" in value
    return build(where, value, kind, shared) if inside else value


def _find(where: str, target: object, kind: type[T]) -> type[T]:
    if not isinstance(target, str) or not OWN.match(target):
        raise ConfigError(
            f"`{where}._target_` must name a class in backdoor_lab.attacks, .defenses or .data,"
            f" such as backdoor_lab.attacks.pixel.Pixel, got {target!r}"
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ModuleNotFoundError as error:
        raise ConfigError(f"`{where}._target_`: no module {error.name}") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ConfigError(f"`{where}._target_`: {target} is not a class that can be used here")
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        raise ConfigError(
            f"`{where}._target_`: {target} is not a class that can be used here: it lacks the"
            f" method{'s' * (', ' in lacking)} {lacking}"
        )
    return found
