"""The stages prepare, poison, train and measure. Each is stored under a hash of its inputs.

The inputs of a stage include its version from identity.json and, if the code was edited since, a
hash of the code, so that results of different code are never confused.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import Tensor

import backdoor_lab
from backdoor_lab import identity, returned
from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.poison import check_changes, content_digest, of_rows, poison
from backdoor_lab.core import streams
from backdoor_lab.core.artifacts import POISON, PREPARED, WEIGHTS
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.rng import derive
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.core.types import Dataset, PoisonResult, TrainingSet
from backdoor_lab.data.workspace import Workspace
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.per_class import measured_per_class
from backdoor_lab.pipeline.stages.holdout import class_sizes, held_out_facts, without_held_out
from backdoor_lab.pipeline.stages.triggered import triggered_test
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import (
    accuracy,
    attack_success,
    normalization_of,
    predictions,
    training_accuracy,
)
from backdoor_lab.training.memory_format import LARGEST_BLOCK
from backdoor_lab.training.train import TrainingJob, blank_classifier

LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "safetensors")
TRAININGS = {
    "train": streams.TRAIN, "retrain": streams.RETRAIN, "surrogate": streams.SURROGATE,
}  # fmt: skip
Fit = Callable[[TrainingJob, Path], Classifier]


def prepare_stage(
    cell: Cell, data: Dataset, store: Store, context: AttackContext, machine: ComputeDevice
) -> Artifact:
    """Prepare the trigger: compute or train in advance what it needs, or read the stored result.
    Sets the trigger's state, and returns the artifact of the stage."""

    def make(folder: Path) -> dict[str, Any]:
        trigger = cell.trigger
        PREPARED.write(folder, returned.tensors(trigger, "prepare", trigger.prepare(context)))
        return computed_on(machine)

    inputs = {
        "version": identity.stage("prepare"),
        "data": data.train.digest,
        "trigger": cell.trigger_identity,
        "seed": cell.seed,
        **_surrogate(cell, machine),
    }
    if cell.trigger.prepared_per_class:
        inputs["classes"] = [cell.plan.target, cell.plan.source]
    entry = store.get("prepare", inputs, make)
    cell.trigger.state = PREPARED.read(entry.path)
    return entry


def poison_stage(
    cell: Cell, data: Dataset, store: Store, context: AttackContext, machine: ComputeDevice,
    prepared: Artifact | None = None,
) -> tuple[PoisonResult, Artifact]:  # fmt: skip
    """Poison the training set, or read the stored result. Returns the poisoned set and the stored
    stage."""

    def make(folder: Path) -> dict[str, Any]:
        space, train = Workspace(folder), data.train
        made = poison(train, cell.trigger, cell.plan, cell.seed, context, space)
        training = made.training
        # Rows for a trigger that is applied later do not show it; preflight has checked it.
        if cell.plan.apply_trigger == "before_augmentation":
            check_changes(made, cell.choices["trigger"])
        tensors = {"rows": training.rows, "source_index": made.source_index}
        tensors |= {"index": training.index, "labels": training.labels}
        tensors |= {"cover_index": made.cover_index}
        POISON.write(folder, tensors)
        digest = content_digest(training, data.train.digest, _stamp(cell))
        space.close()
        return {"digest": digest, "n_poisoned": len(made.source_index)}

    inputs = {"version": identity.stage("poison"), "data": data.train.digest, **cell.attack}
    inputs |= _surrogate(cell, machine)
    inputs |= {} if prepared is None else {"prepared": prepared.id}
    entry = store.get("poison", inputs, make)
    late = cell.plan.apply_trigger == "after_augmentation"
    return poisoned_set(data, entry, cell.trigger if late else None), entry


def poisoned_set(
    data: Dataset, entry: Artifact, late_trigger: Trigger | None = None, *, known: bool = True
) -> PoisonResult:
    """Returns the poisoned training set that the stage `entry` stored; `known` tells whether the
    ground truth is known."""
    found = POISON.read(entry.path)
    training = TrainingSet(
        data.train.images, found["rows"], found["index"], found["labels"], data.classes,
        entry.meta["digest"], late_trigger if len(found["rows"]) else None,
        None if data.attack is None else data.attack.normalization,
    )  # fmt: skip
    made = of_rows(training, found["source_index"], found["cover_index"])
    return replace(made, known=known)


def filtered(training: TrainingSet, keep: Tensor, cell: Cell, data: Dataset) -> TrainingSet:
    """Select the training images that a filter keeps.

    Filters that keep the same images yield the same digest, so that they share one retrained
    network. Raises ConfigError if a class loses all its images.
    """
    rest = training.keep(keep, "")
    before, after = (class_sizes(each.labels, len(data.classes)) for each in (training, rest))
    gone = [name for name, n, m in zip(data.classes, before, after, strict=True) if n and not m]
    if gone:
        raise ConfigError(
            f"`defense={cell.choices['defense']}` removes every training image of class"
            f" {gone[0]}: a network retrained without these images cannot predict the class."
            " Lower the ratio or the budget"
        )
    digest = content_digest(rest, data.training_digest, _stamp(cell))
    return training.keep(keep, digest)


def train_stage(
    stage: str, cell: Cell, training: TrainingSet, store: Store, machine: ComputeDevice, fit: Fit
) -> tuple[Classifier, Artifact]:
    """Train a network on `training`, or read its stored weights. Returns the network in evaluation
    mode, and the artifact of the stage.

    `stage` is ``train``, ``retrain`` or ``surrogate``; each has its own seed for initial weights
    and the order of images. With ``retrain_seed=same``, ``retrain`` uses the seed of ``train``.
    """
    mean, std = normalization_of(training, cell.model)
    drawn_as = "train" if stage == "retrain" and cell.same_seed else stage
    seed = derive(cell.seed, TRAININGS[drawn_as])
    job = TrainingJob(cell.model, cell.recipe, training, seed, mean, std)
    inputs = {
        "version": identity.stage("train"),
        "training": training.digest,
        "model": [cell.model_facts, cell.code["models"]],
        "recipe": cell.recipe.decides(),
        "bf16": machine.bf16,
        "seed": seed,
        **_recomputed(cell),
    }

    def make(folder: Path) -> dict[str, Any]:
        module = fit(job, store.scratch(stage, inputs))
        weights = module.net.state_dict()
        WEIGHTS.write(folder, weights)
        facts = {"loss": module.history, "n_train": len(training), "training": training.digest}
        facts |= {} if module.initial is None else {"initial_weights": module.initial}
        where = computed_on(machine, module.memory_format)
        where["resumed_after"] = module.resumed_after
        where["seconds_before"] = round(module.seconds_before, 3)
        return {"weights": tensors_digest(weights), **where, **facts}

    entry = store.get(stage, inputs, make)
    module = blank_classifier(job, machine)
    module.net.load_state_dict(WEIGHTS.read(entry.path))
    return module.eval(), entry


def measure_stage(
    cell: Cell, data: Dataset, module: Classifier, weights: str, store: Store,
    machine: ComputeDevice, prepared: Artifact | None = None,
) -> Artifact:  # fmt: skip
    """Measure a network's clean accuracy and attack success rate on the test images.

    `nat` is the accuracy on clean images. `asr` is the share of triggered images that are
    classified as the attacker wants; `clean_rate`, for comparison, is the same share without the
    trigger. `asr_elsewhere` is the attack success rate on classes that are not attacked; None
    without a source class. `top_class` is the class predicted most often for clean images, and
    `top_share` is the share of clean images for which it is predicted. For `per_class` see
    `measured_per_class`.
    """
    data = without_held_out(cell, data)
    labels, asked = data.test.labels, triggered_test(cell, data)

    def make(folder: Path) -> dict[str, Any]:
        predicted = predictions(module, data.test.images, machine)

        def success(among: Tensor) -> float | None:
            return attack_success(module, asked.images, among, asked.trigger, asked.wanted, machine)

        where = asked.attacked
        originals = asked.original[where]
        compared = len(where) > 0 and bool((originals >= 0).all())
        sizes = class_sizes(predicted, len(data.classes))
        return {
            "nat": accuracy(predicted, labels),
            "asr": success(where),
            "clean_rate": accuracy(predicted[originals], asked.wanted[where]) if compared else None,
            "top_class": data.classes[sizes.index(max(sizes))],
            "top_share": max(sizes) / len(predicted),
            "asr_elsewhere": success(asked.elsewhere),
            "n_test": len(data.test),
            "n_asr": len(where),
            "per_class": measured_per_class(predicted, labels, len(data.classes)),
        }

    # `revision` 1 added `per_class`; measurements stored without it are computed again.
    inputs = measured_on(cell, data, weights, machine, prepared) | {"revision": 1}
    return store.get("measure", {"version": identity.stage("measure"), **inputs}, make)


def measured_on(
    cell: Cell, data: Dataset, weights: str, machine: ComputeDevice, prepared: Artifact | None
) -> dict[str, Any]:
    """The stage inputs that determine a network's metrics: weights, test images and trigger."""
    plan = cell.plan
    return {
        "weights": weights,
        # The normalization is computed from these images and determines what the network sees.
        "normalisation": data.training_digest,
        "test": data.test.digest,
        "trigger": [*cell.trigger_identity, *([] if prepared is None else [prepared.id])],
        "bf16": machine.bf16,
        "target": plan.target,
        "source": plan.source,
        "label_mode": plan.label_mode,
        "asr_on": plan.asr_on,
        **held_out_facts(cell),
    }


def train_accuracy_stage(
    data: Dataset, module: Classifier, weights: str, training: TrainingSet, store: Store,
    machine: ComputeDevice,
) -> Artifact:  # fmt: skip
    """Measure the accuracy of a network on its own training set, including the poisoned images."""

    def make(folder: Path) -> dict[str, Any]:
        return {"accuracy": training_accuracy(module, training, machine)}

    inputs = {
        "version": identity.stage("train_accuracy"),
        "weights": weights,
        "normalisation": data.training_digest,
        "training": training.digest,
        "bf16": machine.bf16,
    }
    return store.get("train_accuracy", inputs, make)


def computed_on(machine: ComputeDevice, memory_format: str | None = None) -> dict[str, Any]:
    """The machine and the library versions, stored with a stage's output and copied into records;
    `memory_format` is that of the trained network."""
    compute = machine.facts()
    compute |= {} if memory_format is None else {"memory_format": memory_format}
    return {"machine": machine.describe(), "compute": compute, "versions": versions()}


@functools.cache
def versions() -> dict[str, str]:
    """The versions of this package, Python and the libraries that affect results."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"backdoor_lab": backdoor_lab.__version__, "python": platform.python_version()} | found


def _surrogate(cell: Cell, machine: ComputeDevice) -> dict[str, Any]:
    # The precision is an input because it changes the surrogate network's weights.
    if not cell.surrogate:
        return {}
    return cell.surrogate | {"bf16": machine.bf16} | _recomputed(cell)


def _recomputed(cell: Cell) -> dict[str, Any]:
    # Networks narrower than LARGEST_BLOCK may have been stored before wrong gradients on some CPUs
    # were fixed. `revision` ensures that these networks, and poison made with them, are computed
    # again.
    width = cell.model["width"]
    return {"revision": 1} if width is not None and width < LARGEST_BLOCK else {}


def _stamp(cell: Cell) -> str:
    return (
        canonical(cell.trigger_identity) if cell.plan.apply_trigger == "after_augmentation" else ""
    )
