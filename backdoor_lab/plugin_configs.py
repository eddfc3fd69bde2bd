"""Makes the methods of trusted plug-ins choices of Hydra's configuration groups.

The folder ``conf`` of a trusted package joins the search path. A method without a YAML file gets a
configuration with the defaults of its parameters. Only the command line can trust a plug-in.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_search_path import ConfigSearchPath, SearchPathElement
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from backdoor_lab import identity
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.targets import package_names
from backdoor_lab.identity.plugin_code import plugin_hash
from backdoor_lab.plugins.methods import GROUPS, conf_folders, default_config, methods
from backdoor_lab.plugins.trust import Trust, adopt, paths_given, trust

PROVIDER = "backdoor_lab plug-ins"
SECTIONS = {"trigger": "triggers", "defense": "defenses", "dataset": "datasets"}


@dataclass(frozen=True)
class PluginConfigs:
    """The trusted plug-ins of a command. `folders` maps each package to its folder of YAML files,
    `generated` each (group, name) without a YAML file to its configuration.

    Pickled with the loader, so that the process of a cell needs no import to compose.
    """

    trust: Trust = field(default_factory=Trust)
    folders: Mapping[str, Path] = field(default_factory=dict)
    generated: Mapping[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Trust, conf: Path) -> PluginConfigs:
        """Trust `given`, and only that, in this process, and find the configurations of its
        methods. `conf` is the folder of this package's configurations.

        Imports the plug-ins' methods that have no YAML file. Raises ConfigError for a plug-in that
        cannot be imported, or that has a name twice.
        """
        trust(given)
        if given == Trust():
            return cls(given)
        try:
            ours = {group: {p.stem for p in conf.glob(f"{group}/*.yaml")} for group in GROUPS}
            _check_plugins(given, ours)
            folders = conf_folders(given, conf)
            generated = {
                (group, name): default_config(method)
                for (group, name), method in methods(given, ours).items()
                if not any((each / group / f"{name}.yaml").is_file() for each in folders.values())
            }
        except BaseException:
            trust(Trust())
            raise
        return cls(given, folders, generated)

    def activate(self) -> None:
        """Make the plug-ins trusted in this process, and their generated configurations choices of
        Hydra. Imports nothing."""
        adopt(self.trust)
        store = ConfigStore.instance()
        for group in GROUPS:
            choices = store.repo.get(group, {})
            for name in [n for n, each in choices.items() if each.provider == PROVIDER]:
                del choices[name]
        for (group, name), config in self.generated.items():
            store.store(name, dict(config), group=group, provider=PROVIDER)

    def search_path(self, base: ConfigSearchPath) -> ConfigSearchPath:
        """Returns a copy of Hydra's search path to which the packages' folders are added."""
        found = copy.deepcopy(base)
        assert isinstance(found, ConfigSearchPathImpl)
        schema = found.config_search_path.pop()
        for package, folder in self.folders.items():
            found.append(f"plug-in {package}", f"file://{folder}")
        found.config_search_path.append(SearchPathElement(schema.provider, schema.path))
        return found


def trust_of(overrides: Sequence[str], always: Sequence[str] = ()) -> Trust:
    """Returns what a command line trusts: its last ``allow_plugins=[…]`` and ``plugins=[…]``, and
    the packages in `always`. Raises ConfigError if either varies within a sweep."""
    packages, files = _last(overrides, "allow_plugins"), _last(overrides, "plugins")
    named = () if packages is None else package_names(packages)
    paths = () if files is None else paths_given(files)
    return Trust(tuple(sorted({*always, *named})), paths)


def trust_words(words: Sequence[str]) -> None:
    """Trust the plug-ins that the words ``allow_plugins=[…]`` and ``plugins=[…]`` name, and no
    others. Raises ConfigError for other words."""
    for word in words:
        if not word.startswith(("allow_plugins=", "plugins=")):
            raise ConfigError(
                f"unknown argument {word[:80]!r}: a plug-in is named as allow_plugins=[package] or"
                " plugins=[file.py]"
            )
    trust(trust_of(words))


def _last(overrides: Sequence[str], key: str) -> Any:
    """Returns the value of the last override of `key`, or None."""
    asking = [each for each in overrides if each.lstrip("+").startswith(f"{key}=")]
    value = None
    for each in OverridesParser.create().parse_overrides(asking):
        if each.is_sweep_override():
            raise ConfigError(f"`{key}` cannot vary within a sweep: give one list ({key}=[a,b])")
        value = each.value()
        value = value if value is not None else "null"
    return value


def _check_plugins(given: Trust, ours: Mapping[str, set[str]]) -> None:
    """Raises ConfigError for a plug-in that has the name of one of our methods, because records
    name code after its plug-in or method, and for a file that cannot be hashed."""
    table = identity.committed()
    for group, section in SECTIONS.items():
        known = {*table[section], *ours[group]}
        for plugin in [*given.top_level(), *(path.stem for path in given.files)]:
            if plugin in known:
                raise ConfigError(
                    f"the plug-in {plugin} has the name of a {group} of this package: rename the"
                    " file or package"
                )
    for path in given.files:
        plugin_hash(path.stem)
