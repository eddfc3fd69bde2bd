"""The steps of a cell after its first training: extract features, filter, retrain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backdoor_lab.attacks.poison import clean
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import Dataset, Features, FilterResult, PoisonResult, TrainingSet
from backdoor_lab.defenses.base import OracleControl
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.numerics.layers import AUTOENCODER
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.pipeline.stages.context import (
    clean_images,
    context_facts,
    context_of,
    repair_stage,
)
from backdoor_lab.pipeline.stages.defense import (
    Evidence,
    FeatureModel,
    Provided,
    autoencoder_stage,
    clean_stage,
    extract_stage,
    filter_stage,
    nothing_removed,
)
from backdoor_lab.pipeline.stages.training import filtered
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice


@dataclass(frozen=True)
class Attacked:
    """The output of the attack: the clean data set, the poisoned training set, and what the trigger
    prepared (None if it prepares nothing)."""

    data: Dataset
    poisoned: PoisonResult
    prepared: Artifact | None


@dataclass(frozen=True)
class Trained:
    """A network in evaluation mode, and the hash of its weights."""

    module: Classifier
    weights: str


@dataclass(frozen=True)
class Defended:
    """The output of a defense: its filter result and, for a repair, the images and networks that
    the repair works on."""

    filter_result: FilterResult
    provided: Provided | None = None


@dataclass(frozen=True)
class DefendCell:
    """The three steps that `DefendAndRetrain` calls, for one cell.

    `weights` is the hash of the attacked network's weights; `train` trains another network. Each
    step adds its finished stages to `stages`, for the record.
    """

    cell: Cell
    attacked: Attacked
    weights: str
    store: Store
    machine: ComputeDevice
    progress: Progress
    stages: dict[str, Artifact]
    train: Callable[[str, Dataset, TrainingSet], Trained]

    def extract(self, model: Classifier) -> Evidence:
        """Compute the features of the training set and anything else that the defense requires:
        features of held-out clean images, or a context with images and networks."""
        cell, training = self.cell, self.attacked.poisoned.training
        provided = self._provided(model) if "context" in cell.requires else None
        feature_model, weights = self._feature_model(model)
        self.progress.stage("extract")
        held_out = self._held_out(feature_model, weights) if "clean" in cell.requires else None
        features, entry = extract_stage(
            cell, training, feature_model, weights, self.store, self.machine
        )
        self.stages["extract"] = entry
        return Evidence(features, entry, held_out, provided)

    def defend(self, evidence: Evidence) -> Defended:
        """Run the filter and return its result; for a repair, a result that removes nothing."""
        if isinstance(self.cell.defense, ModelRepair):
            return Defended(nothing_removed(len(evidence.features.labels)), evidence.provided)
        self.progress.stage("filter")
        filter_result, self.stages["filter"] = filter_stage(
            self.cell, self.attacked.poisoned, evidence, self.store, self.machine
        )
        return Defended(filter_result)

    def retrain(self, result: Defended) -> Trained | None:
        """Train a network from scratch on the images that the filter keeps, or repair the attacked
        network. Returns None if ``retrain=false``."""
        defense, data = self.cell.defense, self.attacked.data
        if not self.cell.retrain:
            return None
        if isinstance(defense, ModelRepair):
            return self._repair(defense, result.provided)
        if isinstance(defense, OracleControl) and defense.restores:
            return self.train("retrain", data, clean(data.train))
        training = self.attacked.poisoned.training
        return self.train(
            "retrain", data, filtered(training, result.filter_result.keep, self.cell, data)
        )

    def _provided(self, model: Classifier) -> Provided:
        cell, data, training = self.cell, self.attacked.data, self.attacked.poisoned.training
        clean = clean_images(cell, data, self.store)
        return Provided(
            context_of(cell, training, clean, model, self.machine),
            context_facts(cell, data, clean, model, self.weights),
            model.memory_format,
        )

    def _held_out(self, feature_model: FeatureModel, weights: str) -> tuple[Features, Artifact]:
        test = self.attacked.data.test
        found = clean_stage(self.cell, test, feature_model, weights, self.store, self.machine)
        self.stages["clean"] = found[1]
        return found

    def _feature_model(self, model: Classifier) -> tuple[FeatureModel, str]:
        """Return the network that computes features, and the hash of its weights."""
        if self.cell.protocol["layer"] != AUTOENCODER:
            return model, self.weights
        self.progress.stage(AUTOENCODER)
        training = self.attacked.poisoned.training
        net, entry = autoencoder_stage(self.cell, training, self.store, self.machine)
        self.stages[AUTOENCODER] = entry
        return net, entry.meta["weights"]

    def _repair(self, repair: ModelRepair, provided: Provided | None) -> Trained:
        assert provided is not None
        self.progress.stage("repair")
        training = self.attacked.poisoned.training
        repaired, entry = repair_stage(
            self.cell, repair, training, provided, self.store, self.machine
        )
        self.stages["repair"] = entry
        weights = self.cell.parts.network_id(entry.meta["weights"])
        given = self.cell.parts.attacked
        return Trained(repaired, weights if given is None else given.identify(weights))
