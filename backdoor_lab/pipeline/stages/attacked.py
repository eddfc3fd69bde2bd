"""The stage that takes the place of the first training if the attacked network is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor_lab import identity
from backdoor_lab.core.artifacts import WEIGHTS
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.exchange.network_file import read_weights
from backdoor_lab.pipeline.attacked import AttackedNetwork, complete
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.train import TrainingJob, blank_classifier


def attacked_stage(
    cell: Cell, given: AttackedNetwork, training: TrainingSet, store: Store, machine: ComputeDevice
) -> tuple[Classifier, Artifact]:
    """Copy the weights of the given network to the store, or read the copy. Returns the network in
    evaluation mode, with its own normalization, and the artifact of the stage.

    Raises DataError if the file has changed since the configuration was checked.
    """
    expected = given.file.digest

    def make(folder: Path) -> dict[str, Any]:
        weights = read_weights(given.file.path)
        if tensors_digest(weights) != expected:
            raise DataError(f"{given.file.path} has changed since the start of this command")
        WEIGHTS.write(folder, weights)
        return {"weights": expected}

    inputs = {"version": identity.stage("attacked"), "weights": expected}
    entry = store.get("attacked", inputs, make)
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in given.normalization)
    job = TrainingJob(cell.model, cell.recipe, training, cell.seed, mean, std)
    return loaded_classifier(job, WEIGHTS.read(entry.path), machine), entry


def loaded_classifier(
    job: TrainingJob, weights: dict[str, Tensor], machine: ComputeDevice
) -> Classifier:
    """Returns the network of `job`, in evaluation mode, with the normalization of `job` and the
    given weights. Missing counters of batches become zero. Raises RuntimeError if the weights are
    those of another network."""
    module = blank_classifier(job, machine)
    module.net.load_state_dict(complete(weights, module.net.state_dict()))
    return module.eval()
