"""The stages of a cell, each published in the store under a hash of what decides it.

A stage's inputs hold its version: count it up when the stage's output for the same inputs
changes, and every old result is left aside.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import backdoor_lab
from backdoor_lab.attacks.base import Workshop
from backdoor_lab.attacks.plan import asr_test_set, elsewhere_test_set
from backdoor_lab.attacks.poison import content_digest, of_rows, poison
from backdoor_lab.defenses.base import Defense, Knowledge
from backdoor_lab.files import canonical
from backdoor_lab.seeds import derive
from backdoor_lab.store import Entry, Store
from backdoor_lab.sweep.cell import Cell, nameless
from backdoor_lab.tensors import read_tensors, tensors_digest, write_tensors
from backdoor_lab.training.fit import Job, new_classifier
from backdoor_lab.training.machine import Machine
from backdoor_lab.training.measure import (
    accuracy,
    attack_success,
    channel_stats,
    extract,
    predictions,
)
from backdoor_lab.training.module import Classifier
from backdoor_lab.types import Dataset, Features, Poisoned, TrainingSet, Verdict

LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "safetensors")
VERSIONS = {"prepare": 1, "poison": 2, "train": 3, "extract": 1, "filter": 1, "measure": 3}
Fit = Callable[[Job, Path], Classifier]


def prepare_stage(cell: Cell, data: Dataset, store: Store, work: Workshop) -> Entry:
    """What the trigger optimises or trains before any image is triggered, given to it."""

    def make(folder: Path) -> dict[str, Any]:
        write_tensors(folder / "prepared.safetensors", cell.trigger.prepare(work))
        return {}

    inputs = {
        "version": VERSIONS["prepare"],
        "data": data.train.digest,
        "trigger": cell.trigger_identity,
        "seed": cell.seed,
        **cell.surrogate,
    }
    if cell.trigger.prepared_per_class:
        inputs["classes"] = [cell.plan.target, cell.plan.source]
    entry = store.get("prepare", inputs, make)
    cell.trigger.state = read_tensors(entry.path / "prepared.safetensors")
    return entry


def poison_stage(
    cell: Cell, data: Dataset, store: Store, work: Workshop, prepared: Entry | None = None
) -> tuple[Poisoned, Entry]:
    """The poisoned training set."""

    def make(folder: Path) -> dict[str, Any]:
        made = poison(data.train, cell.trigger, cell.plan, seed=cell.seed, work=work)
        training = made.training
        tensors = {"rows": training.rows, "source_index": made.source_index}
        tensors |= {"index": training.index, "labels": training.labels}
        tensors |= {"cover_index": made.cover_index}
        write_tensors(folder / "poison.safetensors", tensors)
        digest = content_digest(training, data.train.digest, _stamp(cell))
        return {"digest": digest, "n_poisoned": len(made.source_index)}

    inputs = {"version": VERSIONS["poison"], "data": data.train.digest, **cell.attack}
    inputs |= {} if prepared is None else {"prepared": prepared.id}
    entry = store.get("poison", inputs, make)
    found = read_tensors(entry.path / "poison.safetensors")
    late = cell.plan.stamp == "after" and len(found["rows"]) > 0
    training = TrainingSet(
        data.train.images, found["rows"], found["index"], found["labels"], data.classes,
        entry.meta["digest"], cell.trigger if late else None,
    )  # fmt: skip
    return of_rows(training, found["source_index"], found["cover_index"]), entry


def filtered(training: TrainingSet, keep: Tensor, cell: Cell, data: Dataset) -> TrainingSet:
    """What a verdict leaves. Two verdicts that leave the same images leave the same digest, so
    that their retrained networks are one and the same stage."""
    rest = training.keep(keep, "")
    digest = content_digest(rest, data.train.digest, _stamp(cell))
    return training.keep(keep, digest)


def train_stage(
    stage: str, cell: Cell, training: TrainingSet, store: Store, machine: Machine, fit: Fit
) -> tuple[Classifier, Entry]:
    """The network trained on `training`: `stage` is ``train``, or ``retrain`` or ``surrogate``
    with other random weights and order."""
    mean, std = channel_stats(training.base)
    seed = derive(cell.seed, stage)
    job = Job(cell.config["model"], cell.recipe, training, seed, mean, std)
    inputs = {
        "version": VERSIONS["train"],
        "training": training.digest,
        "model": cell.config["model"],
        "recipe": cell.recipe.decides(),
        "bf16": machine.bf16,
        "seed": seed,
    }

    def make(folder: Path) -> dict[str, Any]:
        module = fit(job, store.scratch(stage, inputs))
        weights = module.net.state_dict()
        write_tensors(folder / "weights.safetensors", weights)
        facts = {"loss": module.history, "n_train": len(training), "training": training.digest}
        where: dict[str, Any] = {"machine": machine.describe(), "versions": versions()}
        where["resumed_after"] = module.resumed_after
        return {"weights": tensors_digest(weights), **where, **facts}

    entry = store.get(stage, inputs, make)
    module = new_classifier(job, machine)
    module.net.load_state_dict(read_tensors(entry.path / "weights.safetensors"))
    return module.eval(), entry


def measure_stage(
    cell: Cell, data: Dataset, module: Classifier, weights: str, store: Store, machine: Machine,
    prepared: Entry | None = None,
) -> Entry:  # fmt: skip
    """Nat and ASR of a network: accuracy on clean test images, and the share of triggered test
    images taken for what the attacker wants. With a source class, `asr_elsewhere` is that share
    for images of the classes that the attack leaves out."""
    labels, plan = data.test.labels, cell.plan
    where, elsewhere = asr_test_set(labels, plan), elsewhere_test_set(labels, plan)
    wanted = plan.wanted(labels, len(data.classes))

    def make(folder: Path) -> dict[str, Any]:
        predicted = predictions(module, data.test.images, machine)

        def success(among: Tensor) -> float | None:
            return attack_success(module, data.test, among, cell.trigger, wanted, machine)

        return {
            "nat": accuracy(predicted, labels),
            "asr": success(where),
            "asr_elsewhere": success(elsewhere),
            "n_test": len(data.test),
            "n_asr": len(where),
        }

    inputs = {
        "version": VERSIONS["measure"],
        "weights": weights,
        # The same weights see other numbers when they are normalised otherwise.
        "normalisation": data.train.digest,
        "test": data.test.digest,
        "trigger": [*cell.trigger_identity, *([] if prepared is None else [prepared.id])],
        "bf16": machine.bf16,
        "target": plan.target,
        "source": plan.source,
        "labels": plan.labels,
        "asr_on": plan.asr_on,
    }
    return store.get("measure", inputs, make)


def extract_stage(
    cell: Cell, poisoned: Poisoned, module: Classifier, weights: str, store: Store, machine: Machine
) -> tuple[Features, Entry]:
    """The features of every training example, without augmentation."""
    layer = cell.protocol["layer"]

    def make(folder: Path) -> dict[str, Any]:
        features = extract(module, poisoned.training, layer, machine)
        write_tensors(folder / "features.safetensors", {"values": features.values})
        return {"n": len(features.values), "d": features.values.shape[1]}

    inputs = {
        "version": VERSIONS["extract"],
        "weights": weights,
        "training": poisoned.training.digest,
        "layer": layer,
    }
    entry = store.get("extract", inputs, make)
    values = read_tensors(entry.path / "features.safetensors")["values"]
    return Features(values, poisoned.training.labels), entry


def filter_stage(
    cell: Cell, poisoned: Poisoned, features: Features, extracted: Entry, store: Store
) -> tuple[Verdict, Entry]:
    """The defense's verdict; the truth goes to the controls alone that declare it."""
    defense, known = cell.defense, knowledge(cell, len(poisoned.source_index))

    def make(folder: Path) -> dict[str, Any]:
        if isinstance(defense, Defense):
            verdict = defense(features, known)
        else:
            verdict = defense.judge(poisoned.is_poison)
        tensors = {"scores": verdict.scores, "keep": verdict.keep}
        write_tensors(folder / "verdict.safetensors", tensors)
        return {"n_removed": int((~verdict.keep).sum()), "notes": verdict.notes}

    inputs = {
        "version": VERSIONS["filter"],
        "features": extracted.id,
        "defense": [nameless(cell.config["defense"]), cell.code["defense"]],
        "told": [known.target, known.epsilon],
        "seed": known.seed,
    }
    entry = store.get("filter", inputs, make)
    found = read_tensors(entry.path / "verdict.safetensors")
    return Verdict(found["scores"], found["keep"].bool(), entry.meta["notes"]), entry


def knowledge(cell: Cell, n_poisoned: int) -> Knowledge:
    """What this cell's defense is told: only what it declares to need."""
    told = cell.defense.told() if isinstance(cell.defense, Defense) else []
    return Knowledge(
        classes=cell.classes,
        target=cell.plan.target if "target" in told else None,
        epsilon=_epsilon(cell, n_poisoned) if "epsilon" in told else None,
        seed=derive(cell.seed, "filter"),
    )


def _epsilon(cell: Cell, n_poisoned: int) -> int:
    """The number of poisoned images in an attacked class: all of them, or a class' share."""
    return n_poisoned if cell.plan.labels != "all_to_all" else n_poisoned // len(cell.classes)


def class_sizes(labels: Tensor, classes: int) -> list[int]:
    """How many examples each label has."""
    sizes: list[int] = torch.bincount(labels, minlength=classes).tolist()
    return sizes


@functools.cache
def versions() -> dict[str, str]:
    """The versions of this package, Python and the libraries that decide numbers."""
    found = {name: metadata.version(name) for name in LIBRARIES}
    return {"backdoor_lab": backdoor_lab.__version__, "python": platform.python_version()} | found


def _stamp(cell: Cell) -> str:
    return canonical(cell.trigger_identity) if cell.plan.stamp == "after" else ""
