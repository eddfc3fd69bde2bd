"""Composes the configurations of a sweep's cells from overrides, faster than Hydra alone.

Hydra takes about 50 ms per configuration. Cells with the same choice in every config group
differ only in plain values, so one composition is reused for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from backdoor_lab.core.paths import settle
from backdoor_lab.core.targets import check_targets

Plain = dict[str, Any]


class ConfigComposer:
    """Composes the configurations of cells. Cells that override the same keys share one Hydra
    composition, in which only the values are replaced."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._parsed: dict[str, Override] = {}

    def config(self, job: Sequence[str]) -> Plain:
        """The resolved, plain configuration of a job with these overrides."""
        overrides = [self._parse(text) for text in job]
        values = [each for each in overrides if self._is_plain_value(each)]
        # The cache key contains the names of all overridden keys, because every job with this key
        # sets each of them again.
        shape = tuple(
            each.key_or_group if each in values else str(each.input_line) for each in overrides
        )
        if shape not in self._composed:
            self._composed[shape] = self.loader.load_sweep_config(self.master, list(job))
        composed = self._composed[shape]
        for each in values:
            OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
        return plain(composed)

    def _parse(self, text: str) -> Override:
        # Parse each override once: a thousand cells contain only a few dozen different ones.
        if text not in self._parsed:
            self._parsed[text] = self.parser.parse_override(text)
        return self._parsed[text]

    def _is_plain_value(self, override: Override) -> bool:
        return (
            override.type is not None
            and override.type.name == "CHANGE"
            and override.package is None
            and not override.key_or_group.startswith("hydra")
            # A dictionary would be merged into the cached composition, and so reach later jobs.
            and not isinstance(override.value(), dict)
            and not self.loader.repository.group_exists(override.key_or_group)
        )


def plain(config: DictConfig, base: Path | None = None) -> Plain:
    """Convert a composed configuration to resolved plain values.

    The `hydra` section is omitted. Relative paths are resolved against `base` (default: the current
    folder). Values are resolved one key at a time, since copying the whole configuration first is
    slow.

    Raises ConfigError for unusable paths, and for classes and functions that are not allowed. The
    configuration loader checks a composition only once, without the values of the other cells that
    share the composition, so this function checks each cell.
    """
    found: Plain = {}
    for key in map(str, config):
        if key == "hydra":
            continue
        value = config[key]
        if OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        found[key] = value
    check_targets(found)
    settle(found, base)
    return found
