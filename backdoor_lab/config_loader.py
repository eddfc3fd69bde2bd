"""A Hydra configuration loader that checks every class or function that a configuration names (see
`targets`).

The loader checks every configuration: that of each command, sweep and cell, in any process, and
the one that --cfg, --info or --help prints. A hostile experiment file or override is therefore
rejected before Hydra instantiates a callback, configures logging or starts a launcher.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra._internal.hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, Node, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.targets import (
    LOG_SECTIONS,
    OUTPUT_DIR,
    check_search_path,
    check_targets,
    is_named,
    package_names,
)
from backdoor_lab.core.validation import refuse_renamed
from backdoor_lab.hydra_options import (
    check_hydra,
    check_overrides,
    check_renamed,
    missing_part,
    no_such_key,
    not_there,
    refused_by_hydra,
)
from backdoor_lab.identity import sources
from backdoor_lab.plugin_configs import PluginConfigs, trust_of
from backdoor_lab.plugins.trust import Trust, paths_given

_FILLED: dict[str, dict[str, Any]] = {
    "runtime": {"output_dir": OUTPUT_DIR},
    "job": {"num": 0, "id": "${hydra.job.name}"},
}
"""Placeholders for the values that Hydra sets only after composing."""
NAMED = ("trigger", "defense", "dataset", "model", "recipe", "protocol")
"""The sections whose name labels a row or a column of a table."""


class CheckedLoader(ConfigLoaderImpl):
    """Composes a configuration as Hydra does, then checks the classes and functions that it names.
    If any is not allowed, raises ConfigError before importing any of them.

    `allowed` are the packages that the user trusts: those in `allow_plugins` on the command line
    and in this package's config.yaml. `plugins` are these and the files in `plugins` on the command
    line. No other configuration file can add to them.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        for entry in config_search_path.get_path():
            check_search_path(str(entry.path))
        super().__init__(config_search_path)
        self._base = config_search_path
        self.plugins = PluginConfigs()
        self._of_sweep = False

    @property
    def allowed(self) -> tuple[str, ...]:
        return self.plugins.trust.packages

    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        """Compose a configuration as Hydra does. Raises ConfigError if it names a class or function
        that is not allowed."""
        if not self._of_sweep:
            check_overrides(overrides)
            given = trust_of(overrides, _trusted_by_file())
            self.plugins = PluginConfigs.of(given, Path(conf_dir()))
            self.config_search_path = self.plugins.search_path(self._base)
            self.repository = ConfigRepository(self.config_search_path)
        self.plugins.activate()
        found = self._composed(
            config_name, overrides, run_mode, from_shell, validate_sweep_overrides
        )
        check_composed(found, self.plugins.trust)
        if not self._of_sweep:
            check_hydra(found, Path(conf_dir()))
        return found

    def _composed(
        self, config_name: str | None, overrides: list[str], run_mode: RunMode, *flags: bool
    ) -> DictConfig:
        """Compose a configuration as Hydra does, with a better message for a key that does not
        exist."""
        compose = super().load_configuration
        try:
            return compose(config_name, overrides, run_mode, *flags)
        except ConfigCompositionException as error:
            if (refused := refused_by_hydra(error, self.plugins.trust)) is not None:
                raise refused from error
            key = not_there(error)
            left = [o for o in overrides if key is None or o.lstrip("+~").split("=")[0] != key]
            if key is None or left == overrides:
                raise
            rest = self._composed(config_name, left, run_mode, *flags)
            part = missing_part(key, rest, error)
            if part is None:
                raise
            raise no_such_key(part, rest, Path(conf_dir())) from error
        except (AttributeError, AssertionError) as error:
            # The errors of OmegaConf if an override sets a key of a section that is null.
            found = re.search(r"full_key: (\S+)", str(error))
            if found is None and "Unexpected type for root" not in str(error):
                raise
            where = f"`{found[1]}`" if found else "the section of a given key"
            raise ConfigError(f"{where} is null, so its keys cannot be set") from error

    def load_sweep_config(
        self, master_config: DictConfig, sweep_overrides: list[str]
    ) -> DictConfig:
        """Compose the configuration of one cell of a sweep. Trusts the same packages as the
        sweep."""
        # `hydra.sweeper.params` may add overrides to those of the command line.
        self._of_sweep = True
        try:
            return super().load_sweep_config(master_config, sweep_overrides)
        finally:
            self._of_sweep = False

    def _process_config_searchpath(
        self,
        config_name: str | None,
        parsed_overrides: list[Override],
        repo: CachingConfigRepository,
    ) -> None:
        loaded = None if config_name is None else repo.load_config(config_name)
        paths = OmegaConf.select(loaded.config, "hydra.searchpath") if loaded else None
        for each in parsed_overrides:
            if each.get_key_element() == "hydra.searchpath":
                paths = each.value()
        for path in paths if isinstance(paths, (list, ListConfig)) else ():
            check_search_path(str(path), self.allowed)
        super()._process_config_searchpath(config_name, parsed_overrides, repo)


def install() -> None:
    """Make Hydra use `CheckedLoader` in this process."""
    hydra._internal.hydra.ConfigLoaderImpl = CheckedLoader


def check_composed(config: DictConfig, trust: Trust) -> None:
    """Raises ConfigError if a composed configuration contains a renamed key, or the name of a class
    or function that is not allowed. `trust` are the plug-ins that the user trusts.

    In the `hydra` section, an interpolation is resolved first if it may yield a dictionary or the
    name of a class or function. In other sections, an interpolation is resolved only where such a
    name is expected; other values are checked when used.
    """
    asked = package_names(_plain(config.get("allow_plugins"), "allow_plugins") or [])
    if not set(asked) <= set(trust.packages):
        raise ConfigError(
            f"a configuration file must not set `allow_plugins`={list(asked)}: if you trust these"
            " packages, give allow_plugins=[...] on the command line instead"
        )
    files = paths_given(_plain(config.get("plugins"), "plugins") or [])
    if not {each.name for each in files} <= {each.name for each in trust.files}:
        raise ConfigError(
            f"a configuration file must not set `plugins`={[str(each) for each in files]}: if you"
            " trust these files, give plugins=[...] on the command line instead"
        )
    # In other sections, a class may have an option with the old name of a key.
    for section in ("", "protocol", "recipe"):
        node = config._get_node(section) if section else config
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            refuse_renamed(section, map(str, node))
    for section in NAMED:
        node = config._get_node(section) if section in config else None
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            _check_name(section, list(map(str, node)))
    with _filled(config):
        for key in map(str, config):
            check_targets(_plain(config._get_node(key), key), trust.packages, key)
    # Imports a class, but only where a key was renamed, and only after the check above.
    check_renamed(config, Path(conf_dir()))


def _check_name(section: str, keys: list[str]) -> None:
    if keys and "name" not in keys:
        raise ConfigError(
            f"`{section}.name` is missing: tables show this name, so add a line such as"
            f" `name: my_{section}` to the file in conf/{section}"
        )


def conf_dir() -> str:
    """The folder `conf`: in the installed package or, in a checkout, next to the package."""
    return str(sources.conf_dir())


@functools.cache
def _trusted_by_file() -> tuple[str, ...]:
    own = OmegaConf.load(Path(conf_dir()) / "config.yaml")
    return package_names(_plain(OmegaConf.select(own, "allow_plugins"), "allow_plugins") or [])


@contextmanager
def _filled(config: DictConfig) -> Iterator[None]:
    """Context manager that sets placeholders for the values that Hydra sets later, so that
    ``${hydra:…}`` can be resolved."""
    settings = HydraConfig.instance()
    before, settings.cfg = settings.cfg, config
    added = []
    with flag_override(config, ["readonly", "struct"], [False, False]):
        for section, values in _FILLED.items():
            node = OmegaConf.select(config, f"hydra.{section}")
            for key, value in values.items() if isinstance(node, DictConfig) else ():
                if OmegaConf.is_missing(node, key):
                    node[key] = value
                    added.append((node, key))
        try:
            yield
        finally:
            for node, key in added:
                node[key] = "???"
            settings.cfg = before


def _plain(node: Any, path: str, key: str = "") -> Any:
    """Convert a node to plain values. See `check_composed()` for which values are resolved."""
    if not isinstance(node, Node):
        return node
    if node._is_none() or node._is_missing():
        return None
    if node._is_interpolation():
        return _interpolated(node, path, key)
    if isinstance(node, DictConfig):
        names: list[Any] = list(node.keys())
        return {k: _plain(node._get_node(k), f"{path}.{k}", str(k)) for k in names}
    if isinstance(node, ListConfig):
        count = range(len(node))
        return [_plain(node._get_node(i), f"{path}[{i}]", key) for i in count]
    return node._value()


def _interpolated(node: Node, path: str, key: str) -> Any:
    text: str = node._value()
    named = is_named(path, key)
    if not (named or (path.startswith("hydra.") and _may_matter(node, path, text))):
        return None
    try:
        found = node._dereference_node()
    except (OmegaConfBaseException, ValueError) as error:
        if not path.startswith("hydra."):
            return None  # Where the value is used, it is resolved again, with the same error.
        reason = str(error).splitlines()[0]
        raise ConfigError(f"`{path}`: {text} cannot be resolved: {reason}") from error
    return _plain(found, path, key)


def _may_matter(node: Node, path: str, text: str) -> bool:
    """Whether an interpolation may yield a dictionary or, in the logging configuration, the name of
    an object to import."""
    if path.startswith(LOG_SECTIONS):
        return True
    plain_type = node._metadata.ref_type in (str, int, float, bool)
    return not plain_type and text.startswith("${") and text.endswith("}")
