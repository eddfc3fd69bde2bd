"""load -> poison -> train -> extract -> filter -> retrain -> record, for one cell."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backdoor_lab import identity
from backdoor_lab.attacks.base import Workshop
from backdoor_lab.attacks.poison import clean
from backdoor_lab.core import faults
from backdoor_lab.core.errors import (
    OUT_OF_MEMORY,
    Diverged,
    LabError,
    OutOfMemory,
    Stopped,
    failed_status,
    is_out_of_memory,
    reason_of,
)
from backdoor_lab.core.layers import AUTOENCODER
from backdoor_lab.core.store import Entry, Store
from backdoor_lab.core.types import Dataset, Features, TrainingSet, Verdict
from backdoor_lab.data.cache import open_dataset, overlap
from backdoor_lab.defenses.base import TruthControl
from backdoor_lab.defenses.material import Material
from backdoor_lab.defenses.networks import Repair
from backdoor_lab.pipeline.cell import Cell, source_of
from backdoor_lab.pipeline.progress import Progress, Report
from backdoor_lab.pipeline.record import FITTED, record_body, record_head, run_facts
from backdoor_lab.pipeline.stages.judging import (
    Seer,
    autoencoder_stage,
    clean_stage,
    extract_stage,
    filter_stage,
    nothing_removed,
)
from backdoor_lab.pipeline.stages.providing import material_facts, material_of, repair_stage
from backdoor_lab.pipeline.stages.training import (
    computed_on,
    filtered,
    measure_stage,
    poison_stage,
    prepare_stage,
    train_accuracy_stage,
    train_stage,
)
from backdoor_lab.pipeline.stages.transformed import transformed_stage
from backdoor_lab.results.seal import write_sealed
from backdoor_lab.training.callback import DefendAndRetrain, after_training
from backdoor_lab.training.fit import Job, fit
from backdoor_lab.training.machine import Machine
from backdoor_lab.training.module import Classifier

log = logging.getLogger(__name__)
RECORD = "record.json"
TRAIN_ACCURACY = dict(zip(("train", "retrain"), FITTED, strict=True))
"""The stages that measure how much of their own training set networks have learned."""


class Chain:
    """One cell on its way through the stages."""

    def __init__(
        self,
        cell: Cell,
        store: Store,
        machine: Machine,
        progress: Progress,
        *,
        logger: Callable[[str], Any] = lambda stage: False,
        checkpoint: bool = True,
    ) -> None:
        self.cell, self.store, self.machine, self.progress = cell, store, machine, progress
        self.logger, self.checkpoint = logger, checkpoint
        self.stages: dict[str, Entry] = {}
        self._aside: tuple[Features, Entry] | None = None
        self._material: tuple[Material, dict[str, Any]] | None = None
        self._trained_in: str | None = None

    def run(self) -> dict[str, Any]:
        """The figures of the cell's record."""
        verdict = self.walk()
        return record_body(
            self.cell, self.data, self.poisoned, verdict, self.stages, self._overlap()
        )

    def walk(self) -> Verdict:
        """Every stage but the count of images that train and test set share; the verdict."""
        self.attack()
        module = self._train("train", self.poisoned.training)
        self._measure(1, module, "train")
        retrain = self._retrain if self.cell.retrain else None
        callback = DefendAndRetrain(self._extract, self._judge, retrain)
        after_training(module, callback, self.machine)
        if callback.retrained is not None:
            again = "repair" if "repair" in self.stages else "retrain"
            self._measure(2, callback.retrained, again)
        return callback.verdict

    def attack(self) -> None:
        """The attacker's part: the data set opened and poisoned, the trigger prepared."""
        self.progress.stage("load", detail=f"on {self.machine.describe()}")
        self.data: Dataset = open_dataset(source_of(self.cell.config), self.store)
        cell, plan = self.cell, self.cell.plan
        device = self.machine.device
        work = Workshop(
            self.data.train, plan.target, plan.source, cell.seed, self._surrogate, device
        )
        if cell.trigger.needs_preparing:
            self.progress.stage("prepare")
            self.stages["prepare"] = prepare_stage(cell, self.data, self.store, work, self.machine)
        self.progress.stage("poison")
        self.poisoned, self.stages["poison"] = poison_stage(
            cell, self.data, self.store, work, self.machine, self.stages.get("prepare")
        )

    def _surrogate(self) -> Classifier:
        """The attacker's own network, trained on the clean set as the victim's is."""
        if not self.cell.trigger.uses_surrogate:
            raise TypeError(f"{type(self.cell.trigger).__name__} must set uses_surrogate")
        interrupted = self.progress.current
        surrogate = self._train("surrogate", clean(self.data.train)).to(self.machine.device)
        self.progress.stage(interrupted)
        return surrogate

    def _train(self, stage: str, training: TrainingSet) -> Classifier:
        self.progress.stage(stage)

        def fit_it(job: Job, scratch: Path) -> Classifier:
            return fit(
                job,
                self.machine,
                scratch=scratch if self.checkpoint else None,
                callbacks=[Report(self.progress, stage)],
                logger=self.logger(stage),
            )

        module, self.stages[stage] = train_stage(
            stage, self.cell, training, self.store, self.machine, fit_it
        )
        if stage != "surrogate":
            self._measure_training(stage, module, training)
        return module

    def _measure_training(self, trained: str, module: Classifier, training: TrainingSet) -> None:
        stage = TRAIN_ACCURACY[trained]
        self.progress.stage(stage)
        weights = self.stages[trained].meta["weights"]
        self.stages[stage] = train_accuracy_stage(
            self.data, module, weights, training, self.store, self.machine
        )

    def _measure(self, number: int, module: Classifier, trained: str) -> None:
        weights = self.stages[trained].meta["weights"]
        named = {"measure": measure_stage}
        named |= {"transformed": transformed_stage} if self.cell.asr_under else {}
        for name, stage in named.items():
            self.progress.stage(f"{name}{number}")
            self.stages[f"{name}{number}"] = stage(
                self.cell, self.data, module, weights, self.store, self.machine,
                self.stages.get("prepare"),
            )  # fmt: skip

    def _extract(self, module: Classifier) -> Features:
        weights = self.stages["train"].meta["weights"]
        if "material" in self.cell.told:
            self._provide(module, weights)
        seer, weights = self._seer(module, weights)
        self.progress.stage("extract")
        if "clean" in self.cell.told:
            self._aside = clean_stage(
                self.cell, self.data.test, seer, weights, self.store, self.machine
            )
            self.stages["clean"] = self._aside[1]
        features, self.stages["extract"] = extract_stage(
            self.cell, self.poisoned, seer, weights, self.store, self.machine
        )
        return features

    def _seer(self, module: Classifier, weights: str) -> tuple[Seer, str]:
        """The network that features are taken from, and the hash of its weights."""
        if self.cell.protocol["layer"] != AUTOENCODER:
            return module, weights
        self.progress.stage(AUTOENCODER)
        net, self.stages[AUTOENCODER] = autoencoder_stage(
            self.cell, self.poisoned.training, self.store, self.machine
        )
        return net, self.stages[AUTOENCODER].meta["weights"]

    def _provide(self, module: Classifier, weights: str) -> None:
        training = self.poisoned.training
        material = material_of(self.cell, training, self.data, module, self.machine)
        self._material = material, material_facts(self.cell, self.data, module, weights)
        self._trained_in = module.memory_format

    def _judge(self, features: Features) -> Verdict:
        if isinstance(self.cell.defense, Repair):
            return nothing_removed(len(features.labels))
        self.progress.stage("filter")
        verdict, self.stages["filter"] = filter_stage(
            self.cell, self.poisoned, features, self.stages["extract"], self.store, self._aside,
            self._material, computed_on(self.machine, self._trained_in),
        )  # fmt: skip
        return verdict

    def _retrain(self, verdict: Verdict) -> Classifier:
        defense, training = self.cell.defense, self.poisoned.training
        if isinstance(defense, Repair):
            return self._repair(defense)
        if isinstance(defense, TruthControl) and defense.restores:
            return self._train("retrain", clean(self.data.train))
        return self._train("retrain", filtered(training, verdict.keep, self.cell, self.data))

    def _repair(self, repair: Repair) -> Classifier:
        assert self._material is not None
        self.progress.stage("repair")
        repaired, self.stages["repair"] = repair_stage(
            self.cell, repair, self.poisoned.training, *self._material, self.store, self.machine
        )
        return repaired

    def _overlap(self) -> int:
        inputs = {"version": identity.stage("data")}
        inputs |= {"train": self.data.train.digest, "test": self.data.test.digest}
        self.progress.stage("overlap")
        return int(self.store.get("overlap", inputs, self._count_overlap).meta["overlap"])

    def _count_overlap(self, folder: Path) -> dict[str, Any]:
        return {"overlap": overlap(self.data)}


def run_cell(cell: Cell, folder: Path, chain: Chain, *, command: str) -> dict[str, Any]:
    """Runs a cell and writes its record, also when it fails; raises Stopped, and nothing else.

    A cell that ran before and is done is not run again.
    """
    head = record_head(cell)
    began, clock = datetime.now(UTC), time.perf_counter()
    # Until the record is there, the heartbeat says where a process that dies was.
    with chain.progress:
        try:
            body = chain.run()
        except Stopped:
            raise
        except Exception as error:
            body = failure(error, cell)
            memory = body["status"] == OUT_OF_MEMORY
            said = f"{OUT_OF_MEMORY}: {body['error']}" if memory else body["status"]
            known = memory or isinstance(error, LabError)
            log.error("%s: %s", cell.id, said, exc_info=not known)
        run = run_facts(chain.stages, chain.machine, command)
        run |= {"started": began.isoformat(timespec="seconds")}
        run |= {"wall_seconds": round(time.perf_counter() - clock, 3)}
        run |= {"allow_plugins": sorted(cell.config.get("allow_plugins") or [])}
        run |= {"modified": identity.modified(cell.code), "code": identity.details(cell.code)}
        record = {**head, **body, "run": run}
        faults.point("record.before")
        record = write_sealed(folder / RECORD, record)
        faults.point("record.published")
    return record


def failure(error: Exception, cell: Cell) -> dict[str, Any]:
    """Status and message of a cell that could not be finished."""
    if is_out_of_memory(error):
        first = reason_of(error).splitlines()[0]
        message = f"{first} (recipe.batch={cell.recipe.batch}, not lowered by itself)"
        return {"status": OUT_OF_MEMORY, "error": str(OutOfMemory(message))}
    if isinstance(error, Diverged):
        return {"status": f"diverged: {error}", "error": str(error)}
    reason = reason_of(error)
    return {"status": failed_status(reason), "error": reason}
