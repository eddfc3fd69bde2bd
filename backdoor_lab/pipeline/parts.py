"""The objects that a cell's configuration describes: built once, before any data are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.build import Shared, build
from backdoor_lab.data.base import Source
from backdoor_lab.defenses.base import Defense, TruthControl
from backdoor_lab.defenses.networks import Repair
from backdoor_lab.defenses.options import OPTION_KEYS, FilterOptions
from backdoor_lab.training.recipe import Recipe

Choice = Defense | TruthControl | Repair


@dataclass(frozen=True)
class Parts:
    """The data set (not opened yet), trigger, defense and recipe of one cell."""

    data: Source
    trigger: Trigger
    defense: Choice
    recipe: Recipe

    @classmethod
    def of(cls, config: dict[str, Any]) -> Parts:
        """The parts of a whole configuration. Raises ConfigError for an option that a class does
        not have, or a value that it refuses."""
        recipe = Recipe.of(config["recipe"])
        trigger = build("trigger", config["trigger"], Trigger)
        defense = defense_of(config)
        return cls(source_of(config), trigger, defense, recipe)


def source_of(config: dict[str, Any]) -> Source:
    """The data set that a configuration asks for, not opened yet."""
    return build("dataset", config["dataset"], Source)


def defense_of(config: dict[str, Any]) -> Choice:
    """The defense, the control that is told the truth, or the repair of a whole configuration.
    What its own part does not say of `FilterOptions`, its protocol says."""
    kinds: Any = (Defense, TruthControl, Repair)
    found: Choice = build(
        "defense", config["defense"], kinds, Shared(shared(config), FilterOptions)
    )
    return found


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """The options that a protocol gives to every filter."""
    return {key: config["protocol"][key] for key in OPTION_KEYS}
