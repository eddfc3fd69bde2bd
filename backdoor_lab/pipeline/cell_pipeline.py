"""Runs the stages of one cell: load, poison, train, extract, filter, retrain, record."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from backdoor_lab import identity
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.poison import clean
from backdoor_lab.core import failpoints
from backdoor_lab.core.errors import (
    OUT_OF_MEMORY,
    DivergedError,
    LabError,
    OutOfMemoryError,
    StoppedError,
    failed_status,
    is_out_of_memory,
    reason_of,
)
from backdoor_lab.core.output import IN_FILE_ONLY
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import Dataset, FilterResult, TrainingSet
from backdoor_lab.data.cache import open_dataset, overlap
from backdoor_lab.exchange.network_file import LIBRARY, WEIGHTS
from backdoor_lab.identity.own_code import own_code_error
from backdoor_lab.identity.plugin_code import plugin_facts
from backdoor_lab.pipeline.after_training import Attacked, DefendCell, Trained
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.progress import Progress, ProgressCallback
from backdoor_lab.pipeline.record import FITTED, record_body, record_head, run_facts
from backdoor_lab.pipeline.stages.attacked import attacked_stage
from backdoor_lab.pipeline.stages.imported import imported_stage
from backdoor_lab.pipeline.stages.training import (
    measure_stage,
    poison_stage,
    prepare_stage,
    train_accuracy_stage,
    train_stage,
)
from backdoor_lab.pipeline.stages.transformed import transformed_stage
from backdoor_lab.results.seal import write_sealed
from backdoor_lab.training.callback import DefendAndRetrain, after_training
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.data_loader import seeded_augmentation
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.train import TrainingJob, fit

log = logging.getLogger(__name__)
RECORD = "record.json"
TRAIN_ACCURACY = dict(zip(("train", "retrain"), FITTED, strict=True))
"""Maps each training stage to the stage that measures the training accuracy of the resulting
network."""


class CellPipeline:
    """Runs one cell through its stages.

    `stages` collects the finished stages for the record, which is written even if the cell fails.
    """

    def __init__(
        self,
        cell: Cell,
        store: Store,
        machine: ComputeDevice,
        progress: Progress,
        *,
        logger: Callable[[str], Any] = lambda stage: False,
        checkpoint: bool = True,
    ) -> None:
        self.cell, self.store, self.machine, self.progress = cell, store, machine, progress
        self.logger, self.checkpoint = logger, checkpoint
        self.stages: dict[str, Artifact] = {}

    def run(self) -> dict[str, Any]:
        """Run all stages; returns the metrics for the cell's record."""
        attacked = self.attack()
        filter_result = self.defended(attacked)
        data, shared = attacked.data, self._overlap(attacked.data)
        self.progress.reused([name for name, entry in self.stages.items() if not entry.made])
        return record_body(self.cell, data, attacked.poisoned, filter_result, self.stages, shared)

    def attack(self) -> Attacked:
        """Load the data set, prepare the trigger if necessary, and poison the training set."""
        self.progress.stage("load", detail=f"on {self.machine.describe()}")
        cell, plan, prepared = self.cell, self.cell.plan, None
        data = open_dataset(cell.parts.data, self.store)
        if data.attack is not None:
            self.progress.stage("poison")
            poisoned, self.stages["poison"] = imported_stage(data, data.attack, self.store)
            return Attacked(data, poisoned, None)
        work = AttackContext(
            data.train, plan.target, plan.source, cell.seed,
            functools.cache(lambda: self._surrogate(data)), self.machine.device,
            partial(seeded_augmentation, recipe=cell.recipe),
        )  # fmt: skip
        if cell.trigger.needs_preparing:
            self.progress.stage("prepare")
            prepared = prepare_stage(cell, data, self.store, work, self.machine)
            self.stages["prepare"] = prepared
        self.progress.stage("poison")
        poisoned, self.stages["poison"] = poison_stage(
            cell, data, self.store, work, self.machine, prepared
        )
        return Attacked(data, poisoned, prepared)

    def defended(self, attacked: Attacked) -> FilterResult:
        """Train, extract features, filter and retrain; evaluate both networks. Returns the filter
        result."""
        trained = self._first(attacked.data, attacked.poisoned.training)
        self._measure(1, trained, attacked)
        steps = DefendCell(
            self.cell, attacked, trained.weights, self.store, self.machine, self.progress,
            self.stages, self._train,
        )  # fmt: skip
        callback = DefendAndRetrain(steps)
        after_training(trained.module, callback, self.machine)
        if callback.retrained is not None:
            self._measure(2, callback.retrained, attacked)
        return callback.result.filter_result

    def _train(self, stage: str, data: Dataset, training: TrainingSet) -> Trained:
        """Trains a network on `training`. Also measures the network's training accuracy, except for
        the surrogate."""
        self.progress.stage(stage)

        def fit_it(job: TrainingJob, scratch: Path) -> Classifier:
            return fit(
                job,
                self.machine,
                scratch=scratch if self.checkpoint else None,
                callbacks=[ProgressCallback(self.progress, stage)],
                logger=self.logger(stage),
            )

        module, entry = train_stage(stage, self.cell, training, self.store, self.machine, fit_it)
        self.stages[stage] = entry
        if not entry.made:
            self.progress.stored(stage)
        trained = Trained(module, self.cell.parts.network_id(entry.meta["weights"]))
        return self._fitted(stage, trained, data, training)

    def _first(self, data: Dataset, training: TrainingSet) -> Trained:
        """Trains the network to be attacked, or reads it if it is given."""
        given = self.cell.parts.attacked
        if given is None:
            return self._train("train", data, training)
        self.progress.stage("attacked")
        module, entry = attacked_stage(self.cell, given, training, self.store, self.machine)
        self.stages["attacked"] = entry
        weights = self.cell.parts.network_id(entry.meta["weights"])
        trained = Trained(module, given.identify(weights))
        return self._fitted("train", trained, data, training)

    def _fitted(
        self, stage: str, trained: Trained, data: Dataset, training: TrainingSet
    ) -> Trained:
        """Measures the network's training accuracy, except for the surrogate. Returns `trained`."""
        if stage in TRAIN_ACCURACY:
            measured = TRAIN_ACCURACY[stage]
            self.progress.stage(measured)
            self.stages[measured] = train_accuracy_stage(
                data, trained.module, trained.weights, training, self.store, self.machine
            )
        return trained

    def _surrogate(self, data: Dataset) -> Classifier:
        """Train the attacker's surrogate network on the clean training set with the victim's
        recipe."""
        if not self.cell.trigger.uses_surrogate:
            raise TypeError(
                f"{type(self.cell.trigger).__name__} uses a surrogate model, so the class must"
                " set `uses_surrogate = True`"
            )
        interrupted = self.progress.current
        surrogate = self._train("surrogate", data, clean(data.train)).module
        self.progress.stage(interrupted)
        return surrogate.to(self.machine.device)

    def _measure(self, number: int, trained: Trained, attacked: Attacked) -> None:
        named = {"measure": measure_stage}
        named |= {"transformed": transformed_stage} if self.cell.asr_under else {}
        for name, stage in named.items():
            self.progress.stage(f"{name}{number}")
            self.stages[f"{name}{number}"] = stage(
                self.cell, attacked.data, trained.module, trained.weights, self.store,
                self.machine, attacked.prepared,
            )  # fmt: skip

    def _overlap(self, data: Dataset) -> int:
        inputs = {"version": identity.stage("data")}
        inputs |= {"train": data.train.digest, "test": data.test.digest}
        self.progress.stage("overlap")

        def count(folder: Path) -> dict[str, Any]:
            return {"overlap": overlap(data)}

        return int(self.store.get("overlap", inputs, count).meta["overlap"])


def run_cell(cell: Cell, folder: Path, chain: CellPipeline, *, command: str) -> dict[str, Any]:
    """Run a cell and write its record, even if the cell fails. Returns the record.

    Raises StoppedError if a stop is requested; any other error of the cell is recorded.
    """
    head = record_head(cell)
    began, clock = datetime.now(UTC), time.perf_counter()
    # A process that dies before the record exists leaves a heartbeat that names its stage.
    with chain.progress:
        try:
            body = chain.run()
        except StoppedError:
            raise
        except Exception as error:
            own = own_code_error(error, cell.config)
            body = failure(own or error, cell)
            memory = body["status"] == OUT_OF_MEMORY
            said = f"{OUT_OF_MEMORY}: {body['error']}" if memory else body["status"]
            known = memory or isinstance(error, LabError)
            if own is not None:
                said += " (traceback in the cell's log file)"
            in_file = {IN_FILE_ONLY: own is not None}
            log.error("%s: %s", cell.id, said, exc_info=not known, extra=in_file)
        run = run_facts(chain.stages, chain.machine, command)
        run |= {"started": began.isoformat(timespec="seconds")}
        run |= {"wall_seconds": round(time.perf_counter() - clock, 3)}
        run |= {"allow_plugins": sorted(cell.config.get("allow_plugins") or [])}
        plugins = [plugin_facts(each) for each in identity.plugins_of(cell.code)]
        run |= {"plugins": plugins} if plugins else {}
        attacked = cell.parts.attacked
        run |= {} if attacked is None else {"attacked": attacked.origin()}
        run |= _network_facts(cell, chain.stages)
        run |= {"modified": identity.modified(cell.code), "code": identity.details(cell.code)}
        record = {**head, **body, "run": run}
        failpoints.point("record.before")
        record = write_sealed(folder / RECORD, record)
        failpoints.point("record.published")
    return record


def failure(error: Exception, cell: Cell) -> dict[str, Any]:
    """The `status` and `error` entries for the record of a cell that failed."""
    if is_out_of_memory(error):
        first = reason_of(error).splitlines()[0]
        message = (
            f"{first} (recipe.batch_size={cell.recipe.batch_size}, which is not lowered"
            " automatically)"
        )
        return {"status": OUT_OF_MEMORY, "error": str(OutOfMemoryError(message))}
    if isinstance(error, DivergedError):
        return {"status": f"diverged: {error}", "error": str(error)}
    reason = reason_of(error)
    return {"status": failed_status(reason), "error": reason}


def _network_facts(cell: Cell, stages: dict[str, Artifact]) -> dict[str, Any]:
    """The entries of a record about the file of initial weights and the layers they were used for,
    and about timm's version; empty if the initial weights are random and timm is not used."""
    library = cell.model.get(LIBRARY)
    found = {} if library is None else {library: metadata.version(library)}
    if WEIGHTS not in cell.model:
        return found
    trained = (stages[name].meta for name in ("train", "retrain") if name in stages)
    used = next((meta["initial_weights"] for meta in trained if "initial_weights" in meta), None)
    return found | {"initial_weights": {**cell.model[WEIGHTS], "used_for": used}}
