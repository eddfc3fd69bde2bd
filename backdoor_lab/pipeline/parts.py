"""The objects that a cell's configuration describes. They are created before any data is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.instantiate import Shared, build
from backdoor_lab.data.base import Source
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.options import OPTION_KEYS, FilterOptions
from backdoor_lab.exchange.network_file import NEEDED, architecture, completed, without_defaults
from backdoor_lab.pipeline.attacked import AttackedNetwork, attacked_of
from backdoor_lab.training import model_group
from backdoor_lab.training.initial import with_weights
from backdoor_lab.training.recipe import Recipe

Choice = Defense | OracleControl | ModelRepair


@dataclass(frozen=True)
class Parts:
    """The data set (not loaded), the trigger, the defense and the recipe of one cell, and the
    attacked network if it is given (None if the cell trains it).

    `model` is the `model` group without keys that are not set; instead of the path of a file with
    initial weights, it has the path and the hash.
    """

    data: Source
    trigger: Trigger
    defense: Choice
    recipe: Recipe
    model: dict[str, Any]
    attacked: AttackedNetwork | None = None

    @classmethod
    def of(cls, config: dict[str, Any]) -> Parts:
        """Create the objects of a full configuration. Raises ConfigError for unknown options and
        for values that a class rejects."""
        recipe = Recipe.of(config["recipe"])
        trigger = build("trigger", config["trigger"], Trigger)
        defense = defense_of(config)
        model = with_weights(without_defaults(completed(config["model"])))
        return cls(source_of(config), trigger, defense, recipe, model, attacked_of(config))

    def network_id(self, weights: str) -> str:
        """The stage input that stands for a network with weights of this hash: with the same
        weights, networks with other options or another input size compute something else."""
        options = architecture(self.model)
        return weights if options.keys() == {*NEEDED} else digest([weights, options], 64)

    @property
    def clean_source(self) -> Source | None:
        """The data set that provides the defense's clean images; None if the defense uses held-out
        test images, or none."""
        found = getattr(self.defense, "data", None)
        return found if isinstance(found, Source) else None


def source_of(config: dict[str, Any]) -> Source:
    """Create the data set of a full configuration, without loading it."""
    found = build("dataset", config["dataset"], Source)  # type: ignore[type-abstract]
    found.check_initialized()
    return found


def defense_of(config: dict[str, Any]) -> Choice:
    """Create the filter, control or repair of a full configuration. Filter options that the
    defense's group does not set come from the protocol."""
    kinds: Any = (Defense, OracleControl, ModelRepair)
    found: Choice = build(
        "defense", config["defense"], kinds, Shared(shared(config), FilterOptions)
    )
    return found


def shared(config: dict[str, Any]) -> dict[str, Any]:
    """The filter options that a configuration's protocol sets for every defense."""
    return {key: config["protocol"][key] for key in OPTION_KEYS}


def model_label(model: dict[str, Any], attacked: AttackedNetwork | None = None) -> str:
    """The network's label in tables (see `model_group.label`): ``resnet18-w16``;
    ``resnet18 (attacked 0a1b2c3d)``, with the hash of its weights, for a given network."""
    label = model_group.label(model)
    return label if attacked is None else f"{label} (attacked {attacked.label})"
