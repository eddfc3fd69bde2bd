"""Everything that can be found wrong with a configuration before any work starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backdoor_lab.attacks.plan import count
from backdoor_lab.attacks.poison import changes_nothing, classes_after, late, no_change
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.defenses.base import Defense
from backdoor_lab.defenses.networks import Repair
from backdoor_lab.errors import ConfigError
from backdoor_lab.files import canonical
from backdoor_lab.paths import check_writable
from backdoor_lab.store import Store
from backdoor_lab.sweep.cell import Cell, source_of
from backdoor_lab.sweep.keys import check_keys
from backdoor_lab.sweep.told import class_sizes, held_out, knowledge
from backdoor_lab.training.autoencoder import AUTOENCODER
from backdoor_lab.training.logs import check_logger
from backdoor_lab.training.machine import check_trainer, machine_of
from backdoor_lab.training.models import build_model, check_model, layer_of
from backdoor_lab.types import Dataset


class Preflight:
    """Checks configurations; what many cells of a sweep share is looked at once."""

    def __init__(self) -> None:
        self._data: dict[str, tuple[Dataset, str]] = {}
        self._seen: set[str] = set()

    def cell(self, config: dict[str, Any]) -> Cell:
        """The cell of a resolved configuration, after every check.

        Raises ConfigError or DataError, naming the rule that is broken.
        """
        check_keys(config)
        self._once(["elsewhere", config["trainer"], config["logger"], config["store"]], config)
        data, fingerprint = self._open(config)
        cell = Cell(config, data.classes, fingerprint)
        _check_repair(cell)
        _check_labels(cell)
        self._check_attack(cell, data)
        self._check_network(cell, data)
        return cell

    def _once(self, key: Any, config: dict[str, Any]) -> None:
        if canonical(key) in self._seen:
            return
        check_trainer(config["trainer"])
        machine_of(config["trainer"])
        check_logger(config["logger"])
        check_writable(Path(config["store"]["root"]))
        self._seen.add(canonical(key))

    def _open(self, config: dict[str, Any]) -> tuple[Dataset, str]:
        key = canonical([config["dataset"], config["store"]])
        if key not in self._data:
            source = source_of(config)
            data = open_dataset(source, Store(config["store"]["root"]))
            self._data[key] = data, source.fingerprint()
        return self._data[key]

    def _check_attack(self, cell: Cell, data: Dataset) -> None:
        key = canonical(["attack", cell.fingerprint, cell.protocol, cell.attack,
                         cell.options])  # fmt: skip
        if key in self._seen:
            return
        sizes = class_sizes(data.train.labels, len(data.classes))
        poisoned = count(cell.plan, sizes)
        # Also without poison: the success rate of a clean network is measured too.
        cell.trigger.fits(*data.train.shape)
        if cell.plan.stamp == "after":
            late(cell.trigger)
        _check_held_out(cell, data)
        labels, classes = data.train.labels, len(data.classes)
        after = classes_after(labels, cell.plan, classes=classes, seed=cell.seed)
        _check_emptied(cell, sizes, after)
        if changes_nothing(data.train, cell.trigger, cell.plan, seed=cell.seed):
            raise no_change(cell.config["trigger"]["name"])
        if isinstance(cell.defense, Defense):
            _check_scope(cell, cell.defense)
            cell.defense.check(knowledge(cell, poisoned), after)
        self._seen.add(key)

    def _check_network(self, cell: Cell, data: Dataset) -> None:
        model, layer = cell.config["model"], cell.protocol["layer"]
        shape = data.train.shape
        key = canonical(["network", model, layer, list(shape), len(data.classes)])
        if key in self._seen:
            return
        check_model(model, classes=len(data.classes))
        try_network(model, layer, shape, len(data.classes))
        self._seen.add(key)


def _check_emptied(cell: Cell, before: list[int], after: list[int]) -> None:
    gone = [cell.classes[y] for y, n in enumerate(after) if before[y] and not n]
    if gone:
        raise ConfigError(
            f"`ratio`={cell.ratio:g} relabels every training image of class {gone[0]}: nothing of"
            " it would be left. Give a smaller ratio, or protocol.inject=append"
        )


def _check_scope(cell: Cell, defense: Defense) -> None:
    if cell.plan.labels == "all_to_all" and "target" in defense.told():
        raise ConfigError(
            "`labels=all_to_all` attacks every class, and this defense looks at one target class:"
            " set protocol.classes=all or protocol.classes=suspicious"
        )


def _check_labels(cell: Cell) -> None:
    if cell.trigger.source_specific and cell.protocol["labels"] == "all_to_all":
        raise ConfigError(
            f"`trigger={cell.config['trigger']['name']}` attacks one source class, and"
            " `labels=all_to_all` every class: leave one of the two out"
        )


def _check_repair(cell: Cell) -> None:
    if isinstance(cell.defense, Repair) and not cell.retrain:
        raise ConfigError(
            f"`retrain=false` leaves nothing to do for `defense={cell.config['defense']['name']}`,"
            " which repairs the network and removes no image: leave one of the two out"
        )


def _check_held_out(cell: Cell, data: Dataset) -> None:
    wanted, there = cell.protocol["holdout"], len(data.test)
    if 2 * wanted > there:
        raise ConfigError(
            f"`protocol.holdout`={wanted} would leave less than half of the {there} test images to"
            f" be measured on: give at most {there // 2}"
        )
    sizes = class_sizes(data.test.labels, len(data.classes))
    taken = class_sizes(data.test.labels[held_out(cell, data.test)], len(data.classes))
    for name, size, lost in zip(data.classes, sizes, taken, strict=True):
        if size and size - lost < max(1, size // 2):
            raise ConfigError(
                f"`protocol.holdout`={wanted} would leave {size - lost} of the {size} test images"
                f" of class {name} to be measured on: give less (every class loses alike)"
            )
    if {"clean", "clean images"} & set(cell.told) and wanted < 2 * len(data.classes):
        raise ConfigError(
            f"`defense={cell.config['defense']['name']}` needs a few clean images of every class:"
            f" set protocol.holdout to {2 * len(data.classes)} or more (test images that are then"
            " measured on no longer)"
        )


def try_network(
    model: dict[str, Any], layer: str, shape: tuple[int, int, int], classes: int
) -> None:
    """Raises ConfigError when the network cannot take such images or has no such layer."""
    import torch

    net = build_model(model, channels=shape[0], classes=classes, seed=0)
    if layer != AUTOENCODER:
        layer_of(net, layer)
    images = torch.zeros(2, *shape)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            # Some networks give more than logits while they train, or want larger images.
            found = {"training": net.train()(images), "measured": net.eval()(images)}
    except (RuntimeError, AssertionError, ValueError) as error:
        channels, height, width = shape
        raise ConfigError(
            f"`model.name={model['name']}` cannot take images of {channels}x{height}x{width}"
            f" ({str(error).splitlines()[0]}); choose another model, or resize (dataset.size)"
        ) from error
    for doing, logits in found.items():
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if what != (2, classes):
            raise ConfigError(
                f"`model.name={model['name']}` gives {what} while {doing}, where logits of shape"
                f" {(2, classes)} are needed: choose another model"
            )
