"""From a sweep's overrides to its cells' configurations, quickly.

Hydra composes a configuration in about 50 ms. Cells that choose the same groups differ only in
plain values, so one composition serves them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, open_dict

Plain = dict[str, Any]


class Expander:
    """Composes cells, and remembers the compositions."""

    def __init__(self, loader: ConfigLoaderImpl, master: DictConfig) -> None:
        self.loader, self.master = loader, master
        self.parser = OverridesParser.create(config_loader=loader)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def configs(self, jobs: Sequence[Sequence[str]]) -> Iterator[Plain]:
        """The resolved plain configuration of each job's overrides, without Hydra's own part."""
        for job in jobs:
            yield self.config(job)

    def config(self, job: Sequence[str]) -> Plain:
        """The resolved plain configuration of one job."""
        overrides = self.parser.parse_overrides(list(job))
        values = [each for each in overrides if self._is_plain_value(each)]
        # The keys of the values belong to the shape: they are set anew for every job.
        shape = tuple(
            each.key_or_group if each in values else str(each.input_line) for each in overrides
        )
        if shape not in self._composed:
            self._composed[shape] = self.loader.load_sweep_config(self.master, list(job))
        composed = self._composed[shape]
        for each in values:
            OmegaConf.update(composed, each.key_or_group, each.value(), merge=True)
        return plain(composed)

    def _is_plain_value(self, override: Override) -> bool:
        return (
            override.type is not None
            and override.type.name == "CHANGE"
            and override.package is None
            and not override.key_or_group.startswith("hydra")
            and not self.loader.repository.group_exists(override.key_or_group)
        )


def plain(config: DictConfig) -> Plain:
    """A composed configuration as plain values, resolved, without Hydra's own part."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    own._set_parent(None)
    with open_dict(own):
        found: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    return {str(key): value for key, value in found.items()}
