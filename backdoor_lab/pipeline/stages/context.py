"""The images and networks given to a defense that requires them, and the stage of a model
repair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor_lab import identity, returned
from backdoor_lab.core import streams
from backdoor_lab.core.artifacts import WEIGHTS
from backdoor_lab.core.rng import derive
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.core.types import Dataset, LabeledImages, TrainingSet
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.defenses.context import DefenseContext, TrainingHyperparameters
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.pipeline.cell import Cell, nameless
from backdoor_lab.pipeline.stages.defense import Provided, normalization
from backdoor_lab.pipeline.stages.holdout import held_out, held_out_facts
from backdoor_lab.pipeline.stages.training import computed_on
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.data_loader import augmented
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.train import TrainingJob, new_classifier


def context_of(
    cell: Cell, training: TrainingSet, clean: LabeledImages | None, module: Classifier,
    machine: ComputeDevice,
) -> DefenseContext:  # fmt: skip
    """Create the context of a cell's defense; `clean` is the result of `clean_images`. The networks
    that the context provides are new, or copies of the attacked network `module`, which is not
    changed."""
    torch.set_num_threads(machine.threads)
    new = _networks(cell, training, module, machine)

    def attacked() -> Classifier:
        network = new(0)
        network.load_state_dict(module.state_dict())
        return network

    recipe = cell.recipe
    return DefenseContext(
        classes=cell.classes,
        labels=training.labels,
        images=_sight(cell, training, machine.device),
        augment=lambda images, generator: augmented(images, recipe, generator),
        network=attacked,
        fresh=new,
        hyperparameters=TrainingHyperparameters(
            recipe.epochs, recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay
        ),
        seed=derive(cell.seed, streams.FILTER),
        clean=clean,
        device=machine.device,
    )


def clean_images(cell: Cell, data: Dataset, store: Store) -> LabeledImages | None:
    """Returns the clean images of a cell's defense, with labels that are indices into the cell's
    classes; None if the defense requires none."""
    if "clean images" not in cell.requires:
        return None
    source = cell.parts.clean_source
    if source is None:
        where = held_out(cell, data.test)
        test = data.test
        return replace(test, images=test.images[where], labels=test.labels[where], digest="")
    return renumbered(open_dataset(source, store).train, cell.classes)


def renumbered(images: LabeledImages, classes: tuple[str, ...]) -> LabeledImages:
    """Returns `images` with the labels that their classes have in `classes`, the same names in any
    order. The digest stays that of the original images."""
    numbers = torch.tensor([classes.index(name) for name in images.classes])
    return replace(images, labels=numbers[images.labels], classes=classes)


def context_facts(
    cell: Cell, data: Dataset, clean: LabeledImages | None, module: Classifier, weights: str
) -> dict[str, Any]:
    """The stage inputs that determine a defense's context, except for the training set.

    Networks in a context compute in float32, so the trainer's precision is not an input.
    """
    aside = {"test": data.test.digest, **held_out_facts(cell)}
    if clean is not None and cell.parts.clean_source is not None:
        aside = {"clean": clean.digest}
    return {
        "version": identity.stage("context"),
        "weights": weights,
        **normalization(module),
        "model": [cell.model_facts, cell.code["models"]],
        "recipe": cell.recipe.decides(),
        **(aside if "clean images" in cell.requires else {}),
    }


def repair_stage(
    cell: Cell, repair: ModelRepair, training: TrainingSet, provided: Provided, store: Store,
    machine: ComputeDevice,
) -> tuple[Classifier, Artifact]:  # fmt: skip
    """Run a repair, or read its stored result. Returns the repaired network in evaluation mode, on
    the CPU, and the artifact of the stage."""
    context = provided.context

    def make(folder: Path) -> dict[str, Any]:
        made = repair.repair(context)
        network, notes = returned.repaired(repair, "repair", made, context.fresh(0))
        assert isinstance(network, Classifier)
        weights = network.cpu().net.state_dict()
        WEIGHTS.write(folder, weights)
        where = computed_on(machine, network.memory_format)
        return {"weights": tensors_digest(weights), "notes": notes, **where}

    inputs = {
        "version": identity.stage("repair"),
        "training": training.digest,
        "context": provided.facts,
        "defense": [nameless(cell.used_options), cell.code["defenses"]],
        "seed": context.seed,
    }
    entry = store.get("repair", inputs, make)
    repaired = context.fresh(0)
    assert isinstance(repaired, Classifier)
    repaired.net.load_state_dict(WEIGHTS.read(entry.path))
    return repaired.cpu().eval(), entry


def _networks(
    cell: Cell, training: TrainingSet, module: Classifier, machine: ComputeDevice
) -> Callable[[int], Classifier]:
    def new(seed: int) -> Classifier:
        mean, std = module.mean.flatten().cpu(), module.std.flatten().cpu()
        seed = derive(cell.seed, streams.DEFENSE, seed)
        job = TrainingJob(cell.model, cell.recipe, training, seed, mean, std)
        return new_classifier(job, machine).to(machine.device).eval()

    return new


def _sight(
    cell: Cell, training: TrainingSet, device: torch.device
) -> Callable[[Tensor, torch.Generator | None], Tensor]:
    def images(where: Tensor, generator: torch.Generator | None) -> Tensor:
        def augment(found: Tensor) -> Tensor:
            found = found.to(device)
            return found if generator is None else augmented(found, cell.recipe, generator)

        return training.shown(where, augment)

    return images
