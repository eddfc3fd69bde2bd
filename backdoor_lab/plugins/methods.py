"""The methods of plug-ins, by name: entry points, the classes of single files, and their
configurations.

Reading entry points imports nothing. The methods of trusted plug-ins are imported only where their
parameters are needed, to make a configuration for a method that has no YAML file.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from backdoor_lab.core.errors import ConfigError, LabError, reason_of
from backdoor_lab.plugins.location import described
from backdoor_lab.plugins.trust import PACKAGE, Trust, folder_of, import_trusted, trusted

GROUPS = {
    "trigger": f"{PACKAGE}.triggers", "defense": f"{PACKAGE}.defenses",
    "dataset": f"{PACKAGE}.datasets", "model": f"{PACKAGE}.models",
}  # fmt: skip
"""Maps each configuration group to its group of entry points."""
BASES = {
    f"{PACKAGE}.attacks.base.Trigger": "trigger",
    f"{PACKAGE}.defenses.base.Defense": "defense",
    f"{PACKAGE}.defenses.base.OracleControl": "defense",
    f"{PACKAGE}.defenses.networks.ModelRepair": "defense",
    f"{PACKAGE}.data.base.Source": "dataset",
}
"""Maps the base classes of methods to the configuration group of their subclasses."""
MODEL = {"name": "module", "width": None, "stem": None}
"""The keys that every configuration of a network has."""
NOT_OPTIONS = ("self", "name", "options", "num_classes", "in_channels")
"""Parameters that this package sets itself."""
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")
_VALUE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*\Z", re.ASCII)
Names = Mapping[str, set[str]]
"""The names of the choices in each configuration group."""


@dataclass(frozen=True)
class Method:
    """A class or factory of a plug-in: ``trigger=name``, if `group` is ``trigger``. `module` and
    `attribute` are where it is; `said` names its plug-in in messages."""

    group: str
    name: str
    module: str
    attribute: str
    said: str

    @property
    def plugin(self) -> str:
        """The top-level package, or the file without ``.py``."""
        return self.module.partition(".")[0]

    def get(self) -> Any:
        """Import the method. Raises ConfigError if its code raises an error."""
        module = imported(self.module, f"`{self.group}={self.name}`")
        found = getattr(module, self.attribute, None)
        if found is None:
            raise ConfigError(
                f"`{self.group}={self.name}`: {self.said} has no {self.attribute} in {self.module}"
            )
        return found


def entry_points() -> Iterator[Method]:
    """Yields the methods that installed packages register, trusted or not. Imports nothing.
    Entry points that are not written as ``name = "package.module:attribute"`` are omitted."""
    for group, where in GROUPS.items():
        for each in sorted(importlib.metadata.entry_points(group=where)):
            if _VALUE.match(value := each.value.replace(" ", "")):
                module, _, attribute = value.partition(":")
                yield Method(group, each.name, module, attribute, module.partition(".")[0])


def unknown_groups() -> Iterator[tuple[str, str]]:
    """Yields the group and the value of each entry point in a group that looks like one of ours,
    such as ``backdoor_lab.trigger``, but is none. Imports nothing."""
    for group in sorted(importlib.metadata.entry_points().groups):
        if group.startswith(f"{PACKAGE}.") and group not in GROUPS.values():
            for each in importlib.metadata.entry_points(group=group):
                yield group, each.value


def distribution_of(package: str) -> tuple[str, str] | None:
    """Returns the name and version of the distribution that a top-level package is installed from:
    the one that registers a method in the package, otherwise one that lists its files. Files of
    editable installations are not listed. Imports nothing."""
    for where in GROUPS.values():
        for each in sorted(importlib.metadata.entry_points(group=where)):
            if re.split(r"[.:\s]", each.value)[0] == package and each.dist is not None:
                return each.dist.name, each.dist.version
    for name in sorted(importlib.metadata.packages_distributions().get(package, ())):
        return name, importlib.metadata.version(name)
    return None


def of_files(trust: Trust) -> Iterator[Method]:
    """Yields the methods in the files of trusted plug-ins, which are imported. The method of the
    class ``CornerDot`` is called ``corner_dot``."""
    for path in trust.files:
        module = imported(path.stem, f"`plugins`: {path}")
        for name, cls in vars(module).items():
            group = group_of(cls) if inspect.isclass(cls) else None
            if group and cls.__module__ == path.stem and not name.startswith("_"):
                yield Method(group, snake(name), path.stem, name, path.name)


def methods(trust: Trust, ours: Names) -> dict[tuple[str, str], Method]:
    """Returns the methods of trusted plug-ins by configuration group and name. `ours` are the
    names of this package.

    Raises ConfigError for a name that is not usable, or that two methods have.
    """
    found: dict[tuple[str, str], Method] = {}
    if trust.packages:
        listed = [each for each in entry_points() if trust.plugin_of(each.module)]
    else:
        listed = []
    for each in (*listed, *of_files(trust)):
        key = each.group, each.name
        if not _NAME.match(each.name):
            raise ConfigError(
                f"the plug-in {each.said} calls a {each.group} {each.name!r}: a name has only"
                " lower-case letters, digits and underscores, and starts with a letter"
            )
        if each.name in ours.get(each.group, ()):
            raise _taken(each.said, key, "this package")
        if key in found and found[key] != each:
            raise _taken(each.said, key, f"the plug-in {found[key].said}")
        found[key] = each
    return found


def conf_folders(trust: Trust, ours: Path) -> dict[str, Path]:
    """Returns the folder of configuration files of each trusted package that has one. `ours` is
    the folder of this package's files.

    Raises ConfigError for a file with the name of one of ours, or of another plug-in.
    """
    owners = {path.relative_to(ours): "this package" for path in ours.rglob("*.yaml")}
    found = {}
    for package in trust.top_level():
        folder = folder_of(package)
        if folder is None or not (folder / "conf").is_dir():
            continue
        found[package] = folder / "conf"
        for path in sorted(found[package].rglob("*.yaml")):
            name = path.relative_to(found[package])
            if name in owners:
                key = (name.parent.as_posix(), name.stem)
                raise _taken(package, key, owners[name], f" (conf/{name.as_posix()})")
            owners[name] = f"the plug-in {package}"
    return found


def default_config(method: Method) -> dict[str, Any]:
    """Returns the configuration of a method that has no YAML file: its parameters with their
    defaults. ``???`` marks a parameter that has none, and so must be given a value. Parameters
    whose default is not a plain value are omitted."""
    made = method.get()
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"`{method.group}={method.name}`: {method.said}: {method.attribute} is not a class or"
            f" function ({error})"
        ) from error
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    options = {
        each.name: "???" if each.default is each.empty else _plain(each.default)
        for each in parameters
        if each.kind in named
        and each.name not in NOT_OPTIONS
        and (each.default is each.empty or is_plain(each.default))
    }
    if method.group == "model":
        target = f"{method.module}:{method.attribute}"
        return {**MODEL, "name": method.name, "factory": target, "options": options}
    return {"_target_": f"{method.module}.{method.attribute}", "name": method.name, **options}


def imported(name: str, what: str) -> ModuleType:
    """Import the module `name` of a trusted plug-in. Raises ConfigError, which begins with `what`,
    if its code raises an error."""
    try:
        return import_trusted(name)
    except LabError:
        raise
    except Exception as error:
        where = described(error, trusted(), name.partition(".")[0])
        raise ConfigError(f"{what}: {where} raised {reason_of(error)}") from error


def group_of(cls: type) -> str | None:
    """Returns the configuration group of a class: ``trigger``, ``defense`` or ``dataset``. None for
    other classes."""
    names = (f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__[1:])
    return next((BASES[name] for name in names if name in BASES), None)


def untrusted(group: str, name: str, trust: Trust) -> str | None:
    """Returns what to type for ``group=name`` if a package that is installed, but not trusted,
    offers this choice. Otherwise None. Imports nothing."""
    for each in entry_points():
        if (each.group, each.name) == (group, name) and not trust.plugin_of(each.module):
            packages = ",".join(sorted({*trust.packages, each.plugin}))
            return (
                f"`{group}={name}` is in the package {each.plugin}, which is installed but not"
                " trusted, so nothing of it was imported. If you trust its code, add"
                f" allow_plugins=[{packages}] to the command line"
            )
    return None


def snake(name: str) -> str:
    """Returns the name of a class in lower case with underscores.

    >>> snake("CornerDot"), snake("MyABL2")
    ('corner_dot', 'my_abl2')
    """
    split = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    return split.lower()


def _taken(said: str, key: tuple[str, str], owner: str, where: str = "") -> ConfigError:
    return ConfigError(
        f"the plug-in {said} has a {key[0]} called {key[1]}{where}, and so has {owner}: give it"
        " another name"
    )


def is_plain(value: object) -> bool:
    """Whether YAML can store a value as it is: None, a number, text, or a list of these."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _plain(value: Any) -> Any:
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value
