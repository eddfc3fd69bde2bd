"""Checks a configuration before any work starts."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.attacks.plan import check_pair
from backdoor_lab.attacks.poison import changes_nothing, check_can_be_late, classes_after, no_change
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import ConfigError, DataError, is_out_of_memory, reason_of
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.paths import check_writable
from backdoor_lab.core.store import Store
from backdoor_lab.core.types import Dataset, ImportedFacts
from backdoor_lab.data.base import Source
from backdoor_lab.data.cache import classes_and_fingerprint, open_dataset
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.exchange.network_file import WEIGHTS
from backdoor_lab.identity.own_code import explained
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.imported import check_numbers, with_attack
from backdoor_lab.pipeline.keys import check_keys
from backdoor_lab.pipeline.stages.holdout import (
    class_sizes,
    knowledge,
    poisoned_count,
)
from backdoor_lab.sweep.requirements import (
    check_clean_source,
    check_control,
    check_emptied,
    check_held_out,
    check_labels,
    check_repair,
    check_scope,
)
from backdoor_lab.sweep.trial import check_layer, try_network
from backdoor_lab.training.device import check_trainer, machine_of
from backdoor_lab.training.initial import check_fits_file
from backdoor_lab.training.logs import check_logger
from backdoor_lab.training.models import (
    build_model,
    check_model,
    is_quickly_known,
    stated_normalization,
)
from backdoor_lab.training.transformations import check_fits

if TYPE_CHECKING:
    from backdoor_lab.sweep.memory import MemoryNeed, NetworkSizes


class Preflight:
    """Checks the configurations of cells. Parts that several cells share are checked only once."""

    def __init__(self) -> None:
        self._names: dict[str, tuple[tuple[str, ...], str]] = {}
        self._facts: dict[str, ImportedFacts | None] = {}
        self._data: dict[str, tuple[Cell, Dataset]] = {}
        self._networks: dict[str, NetworkSizes] = {}
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
        given = config
        config = with_attack(config, self._imported(config.get("dataset")))
        parts = check_keys(config)
        self._check_elsewhere(config)
        if is_quickly_known(config["model"]):
            check_model(config["model"])
        key = _data_key(config)
        if key not in self._names:
            # Read-only: a command that is rejected, or that only estimates, must leave no files.
            store = Store(config["store"]["root"], read_only=True)
            self._names[key] = classes_and_fingerprint(parts.data, store)
        check_numbers(given, config, self._names[key][0])
        cell = Cell(config, *self._names[key], parts)
        check_pair(*cell.pair, cell.classes)
        check_repair(cell)
        check_labels(cell)
        cell.plan  # noqa: B018  (rejects unknown protocol values)
        return cell

    def _imported(self, dataset: Any) -> ImportedFacts | None:
        """What is known about the attack on a poisoned data set; None for other data sets."""
        if not isinstance(dataset, dict):
            return None  # `check_keys` explains the error.
        key = canonical(dataset)
        if key not in self._facts:
            self._facts[key] = build("dataset", dataset, Source).imported()
        return self._facts[key]

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

    def memory(self, cell: Cell) -> MemoryNeed:
        """Returns a lower bound of the memory of a cell that has passed `check`."""
        from backdoor_lab.sweep.memory import memory_need, network_sizes

        data, layer = self.data(cell), cell.protocol["layer"]
        asked = cell.model, layer, data.train.shape, len(data.classes)
        key = canonical(["memory", *asked])
        if key not in self._networks:
            self._networks[key] = network_sizes(*asked)
        return memory_need(cell, data, machine_of(cell.trainer), self._networks[key])

    def _check_attack(self, cell: Cell, data: Dataset) -> None:
        key = canonical(["attack", cell.fingerprint, cell.protocol, cell.attack,
                         cell.options])  # fmt: skip
        if key in self._seen:
            return
        sizes = class_sizes(data.train.labels, len(data.classes))
        check_held_out(cell, data)
        check_clean_source(cell, data)
        if data.attack is None:
            after = self._check_trigger(cell, data, sizes)
        else:
            after = sizes
            check_control(cell, data.attack)
        if isinstance(cell.defense, Defense):
            check_scope(cell, cell.defense)
            known = None if data.attack is None else data.attack.n_poisoned
            poisoned = poisoned_count(cell, data.train.labels, known)
            cell.defense.check(knowledge(cell, poisoned), after)
        self._seen.add(key)

    @staticmethod
    def _check_trigger(cell: Cell, data: Dataset, sizes: list[int]) -> list[int]:
        """Check that the attack can be made on the clean training set. Returns the number of
        training images of each class after the attack."""
        # Check this even if there is no poison: the attack success rate is measured on triggered
        # test images.
        cell.trigger.check_image_size(*data.train.shape)
        if cell.plan.apply_trigger == "after_augmentation":
            check_can_be_late(cell.trigger)
        labels, classes = data.train.labels, len(data.classes)
        after = classes_after(labels, cell.plan, classes=classes, seed=cell.seed)
        check_emptied(cell, sizes, after)
        if changes_nothing(data.train, cell.trigger, cell.plan, seed=cell.seed):
            raise no_change(cell.choices["trigger"])
        return after

    def _check_network(self, cell: Cell, data: Dataset) -> None:
        model, layer = cell.model, cell.protocol["layer"]
        shape = data.train.shape
        key = canonical(["network", model, layer, list(shape), len(data.classes),
                         cell.options])  # fmt: skip
        if key not in self._seen:
            stated_normalization(model, shape[0])
            net, features = try_network(model, layer, shape, len(data.classes))
            if WEIGHTS in model:
                check_fits_file(net, model)
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
