"""The attack of a data set that was poisoned before it was read: its poisoned training set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor_lab import identity
from backdoor_lab.attacks.poison import content_digest
from backdoor_lab.core.artifacts import POISON
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import Dataset, ImportedAttack, PoisonResult, TrainingSet
from backdoor_lab.pipeline.stages.training import poisoned_set


def imported_stage(
    data: Dataset, attack: ImportedAttack, store: Store
) -> tuple[PoisonResult, Artifact]:
    """Returns the training set of a poisoned data set with its ground truth, in the order of its
    rows, and the stored stage. If the ground truth is unknown, no image is marked."""

    def make(folder: Path) -> dict[str, Any]:
        n = len(data.train)
        poison, covers = marked(attack, n)
        at = torch.cat([poison, covers])
        index = torch.arange(n)
        index[at] = n + torch.arange(len(at))
        original = torch.from_numpy(attack.originals(n))[at]
        rows, labels = data.train.images[at], data.train.labels.clone()
        POISON.write(folder, {
            "rows": rows, "index": index, "labels": labels,
            "source_index": original[: len(poison)], "cover_index": original[len(poison) :],
        })  # fmt: skip
        training = TrainingSet(data.train.images, rows, index, labels, data.classes, "")
        digest = content_digest(training, data.training_digest)
        return {"digest": digest, "n_poisoned": len(poison)}

    inputs = {"version": identity.stage("poison"), "data": data.training_digest}
    entry = store.get("poison", inputs, make)
    return poisoned_set(data, entry, known=attack.is_poison is not None), entry


def marked(attack: ImportedAttack, n: int) -> tuple[Tensor, Tensor]:
    """Returns the indices, int64, of the poisoned images and of the cover images in a training set
    of `n` images; both are empty if the ground truth is unknown."""
    nothing = torch.zeros(0, dtype=torch.int64)
    if attack.is_poison is None or attack.is_cover is None:
        return nothing, nothing
    poison, covers = (torch.from_numpy(mask) for mask in (attack.is_poison, attack.is_cover))
    return poison.nonzero().flatten(), covers.nonzero().flatten()
