"""The stages of a defense: features, features of held-out images, and the filter result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from backdoor_lab import identity, returned
from backdoor_lab.attacks.poison import clean
from backdoor_lab.core import streams
from backdoor_lab.core.artifacts import FEATURES, VERDICT, WEIGHTS
from backdoor_lab.core.rng import derive
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.core.types import Features, FilterResult, LabeledImages, PoisonResult, TrainingSet
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.numerics.layers import AUTOENCODER
from backdoor_lab.pipeline.cell import Cell, nameless
from backdoor_lab.pipeline.stages.holdout import (
    held_out,
    held_out_facts,
    knowledge,
    poisoned_count,
)
from backdoor_lab.pipeline.stages.training import computed_on
from backdoor_lab.training.autoencoder import (
    Autoencoder,
    encode,
    new_autoencoder,
    train_autoencoder,
)
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.memory_format import CONTIGUOUS

FeatureModel = Classifier | Autoencoder


@dataclass(frozen=True)
class Provided:
    """The inputs of a defense that requires images and networks.

    `context`: contains the images and networks. `facts`: the stage inputs that determine the
    content of `context`. `memory_format`: the memory format of the attacked network.
    """

    context: DefenseContext
    facts: dict[str, Any]
    memory_format: str


@dataclass(frozen=True)
class Evidence:
    """The inputs of a defense: the features of the training set, and the artifact that stores them.

    `held_out` is the same pair for held-out clean images, and `provided` has images and networks.
    Each is None unless the defense requires it.
    """

    features: Features
    extracted: Artifact
    held_out: tuple[Features, Artifact] | None = None
    provided: Provided | None = None


def extract_stage(
    cell: Cell,
    training: TrainingSet,
    module: FeatureModel,
    weights: str,
    store: Store,
    machine: ComputeDevice,
) -> tuple[Features, Artifact]:
    """Compute the features of all training examples, without augmentation."""
    inputs = {
        "version": identity.stage("extract"),
        "weights": weights,
        "training": training.digest,
        "layer": cell.protocol["layer"],
    }
    return _features("extract", inputs, cell, training, module, store, machine)


def clean_stage(
    cell: Cell,
    test: LabeledImages,
    module: FeatureModel,
    weights: str,
    store: Store,
    machine: ComputeDevice,
) -> tuple[Features, Artifact]:
    """Compute the features of the clean test images that are held out for defenses."""
    where = held_out(cell, test)
    aside = clean(replace(test, images=test.images[where], labels=test.labels[where]))
    inputs = {
        "version": identity.stage("clean"),
        "weights": weights,
        **normalization(module),
        "test": test.digest,
        "layer": cell.protocol["layer"],
        **held_out_facts(cell),
    }
    return _features("clean", inputs, cell, aside, module, store, machine)


def autoencoder_stage(
    cell: Cell, training: TrainingSet, store: Store, machine: ComputeDevice
) -> tuple[Autoencoder, Artifact]:
    """Train the autoencoder for ``protocol.layer=autoencoder`` on the training set."""
    seed = derive(cell.seed, streams.AUTOENCODER)

    def make(folder: Path) -> dict[str, Any]:
        torch.set_num_threads(machine.threads)
        weights = train_autoencoder(training, seed, machine.device).state_dict()
        WEIGHTS.write(folder, weights)
        return {"weights": tensors_digest(weights), **computed_on(machine, CONTIGUOUS)}

    version = identity.stage(AUTOENCODER)
    inputs = {"version": version, "training": training.digest, "seed": seed}
    entry = store.get(AUTOENCODER, inputs, make)
    net = new_autoencoder(training, seed)
    net.load_state_dict(WEIGHTS.read(entry.path))
    return net.eval(), entry


def _features(
    stage: str, inputs: dict[str, Any], cell: Cell, images: TrainingSet,
    module: FeatureModel, store: Store, machine: ComputeDevice,
) -> tuple[Features, Artifact]:  # fmt: skip
    def make(folder: Path) -> dict[str, Any]:
        if isinstance(module, Autoencoder):
            values = encode(module, images, machine.device)
        else:
            values = extract(module, images, cell.protocol["layer"], machine).values
        FEATURES.write(folder, {"values": values})
        return {"n": len(values), "d": values.shape[1]}

    entry = store.get(stage, inputs, make)
    values = FEATURES.read(entry.path)["values"]
    return Features(values, images.labels), entry


def filter_stage(
    cell: Cell, poisoned: PoisonResult, evidence: Evidence, store: Store, machine: ComputeDevice
) -> tuple[FilterResult, Artifact]:
    """Run the defense, or read its stored result. Only an OracleControl is given the ground
    truth."""
    marked = len(poisoned.source_index) if poisoned.known else None
    wanted = poisoned_count(cell, poisoned.training.labels, marked)
    defense, known = cell.defense, knowledge(cell, wanted)
    assert isinstance(defense, Defense | OracleControl)
    held_out, provided = evidence.held_out, evidence.provided
    if held_out is not None:
        known = replace(known, clean=held_out[0])
    if provided is not None:
        known = replace(known, context=provided.context)
    where = computed_on(machine, None if provided is None else provided.memory_format)

    def make(folder: Path) -> dict[str, Any]:
        if isinstance(defense, Defense):
            method, said = "__call__", defense(evidence.features, known)
        else:
            method, said = "judge", defense.judge(poisoned.is_poison)
        n = len(evidence.features.labels)
        filter_result = returned.filter_result(defense, method, said, n)
        VERDICT.write(folder, {"scores": filter_result.scores, "keep": filter_result.keep})
        return {
            "n_removed": int((~filter_result.keep).sum()),
            "notes": filter_result.notes,
            **where,
        }

    inputs = {
        "version": identity.stage("filter"),
        "features": evidence.extracted.id,
        "defense": [nameless(cell.options), cell.code["defenses"]],
        "known": [known.target, known.epsilon],
        "seed": known.seed,
        **({} if held_out is None else {"clean": held_out[1].id}),
        **({} if provided is None else {"context": provided.facts}),
    }
    entry = store.get("filter", inputs, make)
    found = VERDICT.read(entry.path)
    return FilterResult(found["scores"], found["keep"].bool(), entry.meta["notes"]), entry


def normalization(module: FeatureModel) -> dict[str, Any]:
    """A network's normalization, as stage inputs; empty for an autoencoder, which does not
    normalize."""
    if isinstance(module, Autoencoder):
        return {}
    return {"normalisation": [module.mean.flatten().tolist(), module.std.flatten().tolist()]}


def nothing_removed(n: int) -> FilterResult:
    """A filter result that removes nothing, for a repair: all n scores are NaN, and all n examples
    are kept."""
    scores = torch.full((n,), torch.nan, dtype=torch.float64)
    return FilterResult(scores, torch.ones(n, dtype=torch.bool))
