"""Lists the components whose code a cell uses: trigger, defense, data set, network and stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoor_lab import identity
from backdoor_lab.data.base import Source
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.numerics.layers import AUTOENCODER

if TYPE_CHECKING:
    from backdoor_lab.pipeline.cell import Cell

ALWAYS = ("data", "poison", "train", "measure", "extract", "record")


def marks(cell: Cell, source: Source) -> identity.Marks:
    """The version of each component, and the hash of its code if the code differs from
    identity.json."""
    return {
        **identity.of("triggers", cell.trigger),
        **identity.of("defenses", cell.defense),
        **identity.of("datasets", source),
        "models": _models(cell.model),
        "stages": {name: identity.stage(name) for name in stages_of(cell)},
    }


def _models(model: dict[str, Any]) -> dict[str, identity.Mark]:
    found = identity.model()["models"]
    if (factory := model.get("factory")) is not None:
        plugin = str(factory).partition(":")[0].partition(".")[0]
        found = {**found, plugin: identity.plugin_mark(plugin)}
    return found


def stages_of(cell: Cell) -> list[str]:
    """The names of the stages that a cell runs. Retraining is not listed: its code is that of
    ``train``."""
    repairs = isinstance(cell.defense, ModelRepair)
    asked = {
        "prepare": cell.trigger.needs_preparing,
        "attacked": cell.parts.attacked is not None,
        "transformed": bool(cell.asr_under),
        "clean": "clean" in cell.requires,
        AUTOENCODER: cell.protocol["layer"] == AUTOENCODER,
        "context": "context" in cell.requires,
        "repair" if repairs else "filter": True,
    }
    return [*ALWAYS, *(name for name, takes_part in asked.items() if takes_part)]
