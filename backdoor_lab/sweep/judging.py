"""What a defense gets to see, and what it says: features, held-out features, the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from backdoor_lab.attacks.poison import clean
from backdoor_lab.defenses.base import Defense, Knowledge
from backdoor_lab.seeds import derive
from backdoor_lab.store import Entry, Store
from backdoor_lab.sweep.cell import Cell, nameless
from backdoor_lab.sweep.stages import held_out, held_out_facts
from backdoor_lab.tensors import read_tensors, write_tensors
from backdoor_lab.training.machine import Machine
from backdoor_lab.training.measure import extract
from backdoor_lab.training.module import Classifier
from backdoor_lab.types import Features, Images, Poisoned, Verdict

VERSIONS = {"extract": 1, "filter": 1}


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


def clean_stage(
    cell: Cell, test: Images, module: Classifier, weights: str, store: Store, machine: Machine
) -> tuple[Features, Entry]:
    """The features of the clean test images that are held out for the defenses."""
    where, layer = held_out(cell, test), cell.protocol["layer"]
    aside = clean(replace(test, images=test.images[where], labels=test.labels[where]))

    def make(folder: Path) -> dict[str, Any]:
        features = extract(module, aside, layer, machine)
        write_tensors(folder / "features.safetensors", {"values": features.values})
        return {"n": len(features.values), "d": features.values.shape[1]}

    inputs = {
        "version": VERSIONS["extract"],
        "weights": weights,
        "normalisation": [module.mean.flatten().tolist(), module.std.flatten().tolist()],
        "test": test.digest,
        "layer": layer,
        **held_out_facts(cell),
    }
    entry = store.get("clean", inputs, make)
    values = read_tensors(entry.path / "features.safetensors")["values"]
    return Features(values, aside.labels), entry


def filter_stage(
    cell: Cell, poisoned: Poisoned, features: Features, extracted: Entry, store: Store,
    aside: tuple[Features, Entry] | None = None,
) -> tuple[Verdict, Entry]:  # fmt: skip
    """The defense's verdict; the truth goes to the controls alone that declare it. `aside`: the
    features of held-out clean images, for a defense that asks for them."""
    defense, known = cell.defense, knowledge(cell, len(poisoned.source_index))
    if aside is not None:
        known = replace(known, clean=aside[0])

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
        **({} if aside is None else {"clean": aside[1].id}),
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
