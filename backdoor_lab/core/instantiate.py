"""Create objects from a configuration; `_target_` may name only a class of this package or of a
plug-in that the user trusts.

The name is checked before anything is imported, and the class must be a subclass of the expected
kind. Hydra's own `instantiate` would import and call any name.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.validation import RENAMED_METHODS, new_class
from backdoor_lab.plugins.trust import import_trusted, trusted

T = TypeVar("T")
FOLDERS = {"trigger": "attacks", "defense": "defenses", "dataset": "data"}
"""Maps each section of the configuration that names classes to the folder of their modules."""
ALSO = "exchange.source"
"""The module of data sets that are poisoned already, which is in another folder."""
_MODULE, _CLASS = "[a-z][a-z0-9_]*", "[A-Z][A-Za-z0-9]*"
OWN = re.compile(
    rf"backdoor_lab\.(({'|'.join(FOLDERS.values())})\.{_MODULE}|{re.escape(ALSO)})\.{_CLASS}\Z"
)
_DOTTED = re.compile(r"[A-Za-z_]\w{0,63}(\.[A-Za-z_]\w{0,63}){0,7}\Z", re.ASCII)
NOT_ARGUMENTS = ("_target_", "name")
OPTIONS = "options"


@dataclass(frozen=True)
class Shared:
    """Options that every config of a group accepts. `make(**values)` combines them into
    one object, which is passed to the parameter `options` of the class and to its method `obey`, if
    the class has them.

    `values` maps each key to its default.
    """

    values: Mapping[str, Any]
    make: Callable[..., object]

    def under(self, given: Mapping[str, Any]) -> Shared:
        """Returns a copy whose default values are replaced by those in `given`."""
        return replace(self, values=with_shared(given, self.values))


_NONE_SHARED = Shared({}, lambda: None)


def build(where: str, config: dict[str, Any], kind: type[T], shared: Shared = _NONE_SHARED) -> T:
    """Create the object that `config` describes: `_target_` is its class, other keys are arguments.

    `where` is the key of `config`, for messages. `kind` is the required base class, or a tuple of
    alternatives. The options in `shared` are also passed to objects nested in `config`, and are
    validated even if no class receives them. Nested objects are of the same kind, except those in
    the class's mapping `option_kinds`, from a parameter to its base class. Raises ConfigError for a
    class that is not allowed, an unknown or missing key, or a value that the class rejects.
    """
    cls = _find(where, config.get("_target_"), kind)
    given = {key: value for key, value in config.items() if key not in NOT_ARGUMENTS}
    parameters, _ = _parameters(cls)
    shared = shared.under(given)
    options = shared.make(**shared.values)
    if twice := [name for name in parameters if name in shared.values]:
        raise ConfigError(
            f"`{where}._target_`: the class {cls.__name__} must not have parameters called"
            f" {', '.join(twice)}: it receives these options through its parameter `{OPTIONS}`"
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
    kinds = getattr(cls, "option_kinds", {})
    arguments = {
        key: _of_other_kind(f"{where}.{key}", value, kinds[key])
        if key in kinds
        else _nested(f"{where}.{key}", value, kind, shared)
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


def takes(where: str, target: object, key: str) -> bool:
    """Whether the class `target` has a parameter `key`. True for an unknown class: `build` reports
    the error."""
    try:
        return key in _parameters(_find(where, target, object))[0]
    except ConfigError:
        return True


def takes_options(cls: type) -> bool:
    """Whether `build` passes the shared options (see `Shared`) to this class."""
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


def _of_other_kind(where: str, value: Any, kind: type) -> Any:
    try:
        return _nested(where, value, kind, _NONE_SHARED)
    except ConfigError as error:
        # A class names its options after the group in which it is usually configured.
        said = str(error)
        raise ConfigError(said if where in said else f"`{where}`: {said}") from error


def _find(where: str, target: object, kind: type[T]) -> type[T]:
    own = isinstance(target, str) and OWN.match(target)
    if not isinstance(target, str) or not (own or trusted().plugin_of(target)):
        raise ConfigError(
            f"`{where}._target_` must name a class in backdoor_lab.attacks, .defenses or .data,"
            f" such as backdoor_lab.attacks.pixel.Pixel, got {target!r}{why_refused(where, target)}"
        )
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name) if own else import_trusted(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"`{where}._target_`: {_no_module(module_name, error)}") from error
    found = getattr(module, class_name, None)
    if found is None:
        raise _no_class(where, target, module, kind)
    if not (isinstance(found, type) and issubclass(found, kind)):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        rule = f"it must be a subclass of {' or '.join(each.__name__ for each in kinds)}"
        raise ConfigError(
            f"`{where}._target_`: {target} is not a class that can be used here: {rule}"
        )
    if inspect.isabstract(found):
        lacking = sorted(getattr(found, "__abstractmethods__", ()))
        raise ConfigError(
            f"`{where}._target_`: {target} is not a class that can be used here: it lacks the"
            f" method{'s' * (len(lacking) > 1)} {', '.join(lacking)}{_old_methods(found, lacking)}"
        )
    return found


def why_refused(where: str, name: object) -> str:
    """Returns the end of an error message: which rule the class name `name` breaks at the key
    `where`, and how to fix it. Empty if there is nothing to add.

    >>> why_refused("defense._target_", "mine.distance")[-35:]
    'plugins=[PATH/mine.py] for one file'
    """
    folder = FOLDERS.get(re.split(r"[.\[]", where)[0])
    if folder is None or not isinstance(name, str) or not _DOTTED.match(name):
        return ""
    package, _, rest = name.partition(".")
    parts = rest.split(".")
    if package != "backdoor_lab" or len(parts) != 3 or parts[0] not in FOLDERS.values():
        module, cls = ([*name.split("."), ""] if "." not in name else name.split("."))[-2:]
        wanted = f"backdoor_lab.{folder}.{_module(module)}.{_class(cls or module)}"
        plugin = f". {to_trust(name)}" if rest and package != "backdoor_lab" else ""
        return (
            f": a class must be in a module of the folder backdoor_lab/{folder}, so put its file"
            f" there and name it {wanted}{plugin}"
        )
    if not re.fullmatch(_MODULE, parts[1]):
        return (
            ": a module name has only lower-case letters, digits and underscores, so rename"
            f" {parts[1]}.py to {_module(parts[1])}.py"
        )
    if not re.fullmatch(_CLASS, parts[2]):
        return (
            ": a class name starts with a capital letter and has only letters and digits, so rename"
            f" {parts[2]} to {_class(parts[2])}"
        )
    return ""


def to_trust(name: str) -> str:
    """Returns what to type if the user trusts the plug-in that holds a class or function of this
    dotted name."""
    top = name.partition(".")[0]
    return (
        f"If {top} is a plug-in whose code you trust, add allow_plugins=[{top}] to the command line"
        f" for an installed package, or plugins=[PATH/{top}.py] for one file"
    )


def _no_module(name: str, error: ModuleNotFoundError) -> str:
    if error.name != name:
        return f"no module {error.name}"
    if not name.startswith("backdoor_lab."):
        return f"no module {name}: is the plug-in installed here?"
    package = importlib.import_module(name.rpartition(".")[0])
    known = [each.name for each in pkgutil.iter_modules(package.__path__)]
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=1)
    hint = f". Did you mean {package.__name__}.{near[0]}?" if near else ""
    return f"no module {name}{hint}"


def _no_class(where: str, target: str, module: ModuleType, kind: type) -> ConfigError:
    """Returns the error for an import path `target` whose module has no such class. If the class
    was renamed, the message gives the new name, otherwise the most similar name."""
    if current := new_class(target):
        return ConfigError(f"`{where}._target_`: {target} was renamed to {current}")
    usable = [
        name for name, each in vars(module).items()
        if inspect.isclass(each) and each.__module__ == module.__name__ and issubclass(each, kind)
    ]  # fmt: skip
    class_name = target.rpartition(".")[2]
    return unknown(f"`{where}._target_`: in {module.__name__}, the class", class_name, usable)


def _old_methods(cls: type, lacking: list[str]) -> str:
    """Returns a hint for the error message if `cls` defines a method in `lacking` under the name
    that the method had in version 0.1; otherwise an empty string."""
    old = [name for name, new in RENAMED_METHODS.items() if new in lacking and hasattr(cls, name)]
    return "".join(f" (`{name}` was renamed to `{RENAMED_METHODS[name]}`)" for name in old)


def _module(name: str) -> str:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().lstrip("_0123456789")
    return words or "my_module"


def _class(name: str) -> str:
    words = [word[:1].upper() + word[1:] for word in re.split("_+", name)]
    return "".join(words).lstrip("0123456789") or "MyClass"
