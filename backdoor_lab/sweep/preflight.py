"""Checks a configuration before any work starts."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_lab.attacks.plan import check_pair, count
from backdoor_lab.attacks.poison import changes_nothing, check_can_be_late, classes_after, no_change
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import ConfigError, DataError, is_out_of_memory, reason_of
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.paths import check_writable
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.data.cache import classes_and_fingerprint, open_dataset
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.identity.own_code import explained
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.keys import check_keys
from backdoor_lab.pipeline.stages.holdout import class_sizes, held_out, knowledge
from backdoor_lab.sweep.trial import check_layer, try_network
from backdoor_lab.training.device import check_trainer, machine_of
from backdoor_lab.training.logs import check_logger
from backdoor_lab.training.models import QUICKLY_KNOWN, build_model, check_model
from backdoor_lab.training.transformations import check_fits


class Preflight:
    """Checks the configurations of cells. Parts that several cells share are checked only once."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[tuple[str, ...], str]] = {}
        self._data: dict[str, tuple[Cell, Dataset]] = {}
        self._seen: set[str] = set()

    def cell(self, config: dict[str, Any]) -> Cell:
        """Check a resolved configuration completely, and return its cell.

        Raises ConfigError or DataError, which state the violated rule.
        """
        cell = self.identify(config)
        self.check(cell)
        return cell

    def identify(self, config: dict[str, Any]) -> Cell:
        """Check a resolved configuration as far as possible without images and torch, and return
        its cell. That is enough to find the cell's record. Raises ConfigError or DataError."""
        with explained(config), _enough_memory():
            return self._identify(config)

    def check(self, cell: Cell) -> None:
        """Run the checks that `identify` omits. Raises ConfigError or DataError."""
        with explained(cell.config), _enough_memory():
            self._check(cell)

    def _identify(self, config: dict[str, Any]) -> Cell:
        parts = check_keys(config)
        self._check_elsewhere(config)
        if config["model"]["name"] in QUICKLY_KNOWN:
            check_model(config["model"])
        key = _data_key(config)
        if key not in self._names:
            # Read-only: a command that is rejected, or that only estimates, must leave no files.
            store = Store(config["store"]["root"], read_only=True)
            self._names[key] = classes_and_fingerprint(parts.data, store)
        cell = Cell(config, *self._names[key], parts)
        check_pair(*cell.pair, cell.classes)
        _check_repair(cell)
        _check_labels(cell)
        cell.plan  # noqa: B018  (rejects unknown protocol values)
        return cell

    def _check(self, cell: Cell) -> None:
        if cell.parts.data.is_absent():
            self.data(cell)  # Raises an error in the data before torch is imported.
        self._check_names(cell)
        data = self.data(cell)
        self._check_attack(cell, data)
        self._check_network(cell, data)
        check_fits(cell.asr_under, *data.train.shape[1:])

    def publish(self, cells: Iterable[Cell] = ()) -> None:
        """Write the data sets of `cells` (default: of all checked cells) to the store."""
        wanted = {_data_key(cell.config) for cell in cells}
        for key, (cell, _) in self._data.items():
            if key in wanted or not wanted:
                self._data[key] = cell, open_dataset(cell.parts.data, Store(cell.store_root))

    def _check_names(self, cell: Cell) -> None:
        """Check the device, the network and the layer, as far as possible without the data set."""
        layer = cell.protocol["layer"]
        key = canonical(["names", cell.trainer, cell.model, layer])
        if key not in self._seen:
            machine_of(cell.trainer)
            check_model(cell.model)
            with torch.device("meta"):
                check_layer(build_model(cell.model, channels=3, classes=2, seed=0), layer)
            self._seen.add(key)

    def _check_elsewhere(self, config: dict[str, Any]) -> None:
        key = canonical(["elsewhere", config["trainer"], config["logger"], config["store"]])
        if key not in self._seen:
            check_trainer(config["trainer"])
            check_logger(config["logger"])
            check_writable(Path(config["store"]["root"]))
            self._seen.add(key)

    def data(self, cell: Cell) -> Dataset:
        """Returns the cell's data set. A data set that several cells use is read only once."""
        key = _data_key(cell.config)
        if key not in self._data:
            store = Store(cell.store_root, read_only=True)
            self._data[key] = cell, open_dataset(cell.parts.data, store)
        data = self._data[key][1]
        if data.classes != cell.classes:
            raise DataError(
                f"the files of data set {data.name} changed while the sweep was being checked:"
                f" the data set had the classes {', '.join(cell.classes)} and now has"
                f" {', '.join(data.classes)}."
                " Repeat the command"
            )
        return data

    def _check_attack(self, cell: Cell, data: Dataset) -> None:
        key = canonical(["attack", cell.fingerprint, cell.protocol, cell.attack,
                         cell.options])  # fmt: skip
        if key in self._seen:
            return
        sizes = class_sizes(data.train.labels, len(data.classes))
        poisoned = count(cell.plan, sizes)
        # Check this even if there is no poison: the attack success rate is measured on triggered
        # test images.
        cell.trigger.check_image_size(*data.train.shape)
        if cell.plan.apply_trigger == "after_augmentation":
            check_can_be_late(cell.trigger)
        _check_held_out(cell, data)
        _check_clean_source(cell, data)
        labels, classes = data.train.labels, len(data.classes)
        after = classes_after(labels, cell.plan, classes=classes, seed=cell.seed)
        _check_emptied(cell, sizes, after)
        if changes_nothing(data.train, cell.trigger, cell.plan, seed=cell.seed):
            raise no_change(cell.choices["trigger"])
        if isinstance(cell.defense, Defense):
            _check_scope(cell, cell.defense)
            cell.defense.check(knowledge(cell, poisoned), after)
        self._seen.add(key)

    def _check_network(self, cell: Cell, data: Dataset) -> None:
        model, layer = cell.model, cell.protocol["layer"]
        shape = data.train.shape
        key = canonical(["network", model, layer, list(shape), len(data.classes),
                         cell.options])  # fmt: skip
        if key not in self._seen:
            net, features = try_network(model, layer, shape, len(data.classes))
            if not isinstance(cell.defense, OracleControl):
                cell.defense.check_network(net, features)
            self._seen.add(key)
        given = cell.parts.attacked
        if given is not None:
            given.check(model, shape[0], data.classes)


@functools.cache
def preflight() -> Preflight:
    """Returns the `Preflight` of this process. All cells share it, so that no check is repeated."""
    return Preflight()


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"there is not enough memory to check this cell ({reason_of(error)}): reduce"
            " dataset.size, dataset.limit_train or model.width, or raise the limit (ulimit -v)"
        ) from error


def _data_key(config: dict[str, Any]) -> str:
    return canonical([config["dataset"], config["store"]])


def _check_emptied(cell: Cell, before: list[int], after: list[int]) -> None:
    gone = [cell.classes[y] for y, n in enumerate(after) if before[y] and not n]
    if gone:
        raise ConfigError(
            f"`ratio`={cell.ratio:g} relabels every training image of class {gone[0]}: none"
            " would be left. Use a smaller ratio, or protocol.placement=append"
        )


def _check_scope(cell: Cell, defense: Defense) -> None:
    if cell.plan.label_mode == "all_to_all" and "target" in defense.requires():
        raise ConfigError(
            "`label_mode=all_to_all` attacks every class, but this defense filters only one class:"
            " set protocol.filter_scope=all or protocol.filter_scope=suspicious"
        )


def _check_labels(cell: Cell) -> None:
    if cell.trigger.source_specific and cell.protocol["label_mode"] == "all_to_all":
        raise ConfigError(
            f"`trigger={cell.choices['trigger']}` attacks one source class, but"
            " `label_mode=all_to_all` attacks every class: remove one of the two"
        )


def _check_repair(cell: Cell) -> None:
    if isinstance(cell.defense, ModelRepair) and not cell.retrain:
        raise ConfigError(
            f"`defense={cell.choices['defense']}` cannot be used with `retrain=false`:"
            " its only result is the network after the defense"
        )


def _check_clean_source(cell: Cell, data: Dataset) -> None:
    source = cell.parts.clean_source
    if source is None:
        return
    if source.imported() is not None:
        raise ConfigError("`defense.data` must be a clean data set, but this one is poisoned")
    found = open_dataset(source, Store(cell.store_root, read_only=True))
    if found.train.shape != data.train.shape:
        shapes = ("x".join(map(str, each.shape)) for each in (found.train, data.train))
        raise ConfigError(
            "`defense.data` has images of {}, but the network takes images of {}: choose a data set"
            " with the same size (defense.data.size) and number of channels".format(*shapes)
        )
    if sorted(found.classes) != sorted(cell.classes):
        raise ConfigError(
            f"`defense.data` has the classes {_named(found.classes)}, but the network knows"
            f" {_named(cell.classes)}: both must have the same names, in any order. With"
            " other classes the network needs a new last layer, and then neither Nat2 nor ASR2 is"
            " defined, because they count answers in the old classes"
        )


def _named(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - 4} more" if len(classes) > 4 else ""
    return ", ".join(classes[:4]) + more


def _check_held_out(cell: Cell, data: Dataset) -> None:
    wanted, there = cell.protocol["clean_holdout"], len(data.test)
    if 2 * wanted > there:
        raise ConfigError(
            f"`protocol.clean_holdout`={wanted} would leave less than half of the"
            f" {there} test images for evaluation: use at most {there // 2}"
        )
    sizes = class_sizes(data.test.labels, len(data.classes))
    taken = class_sizes(data.test.labels[held_out(cell, data.test)], len(data.classes))
    for name, size, lost in zip(data.classes, sizes, taken, strict=True):
        if size and size - lost < max(1, size // 2):
            raise ConfigError(
                f"`protocol.clean_holdout`={wanted} would leave {size - lost} of"
                f" the {size} test images of class {name} for evaluation: use a smaller value"
            )
    needs = {"clean", "clean images"} & set(cell.requires) and cell.parts.clean_source is None
    if needs and min(taken) < 2:
        few = min(range(len(taken)), key=lambda label: taken[label])
        raise ConfigError(
            f"`defense={cell.choices['defense']}` needs a few clean images of every class,"
            f" but protocol.clean_holdout={wanted} holds out only {taken[few]} of class"
            f" {data.classes[few]}: set protocol.clean_holdout to {2 * len(data.classes)} or more"
            " (held-out images are not used for evaluation)"
        )
