"""Selects the held-out test images, and the knowledge given to the defense.

Both depend only on the configuration and the labels. This module imports no training code, so that
checks and finished sweeps start quickly.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backdoor_lab.attacks.plan import count
from backdoor_lab.core import streams
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.rng import derive, torch_generator
from backdoor_lab.core.types import Dataset, LabeledImages
from backdoor_lab.data.workspace import Workspace
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.pipeline.cell import Cell


def held_out(cell: Cell, test: LabeledImages) -> Tensor:
    """Returns the indices (int64, ascending) of the test images held out for defenses.

    Draws `protocol.clean_holdout` images at random with the cell's seed, divided as evenly as
    possible among the classes.
    """
    wanted = cell.protocol["clean_holdout"]
    return held_out_rows(test.labels, len(test.classes), wanted, cell.seed)


def held_out_rows(labels: Tensor, classes: int, wanted: int, seed: int) -> Tensor:
    """Returns the indices of `wanted` test images, as `held_out` does; `labels` int64 (n,) are
    those of all test images."""
    generator = torch_generator(seed, streams.HOLDOUT)
    order = torch.randperm(len(labels), generator=generator)
    rank = torch.zeros(len(labels), dtype=torch.int64)
    for label in range(classes):
        members = order[labels[order] == label]
        rank[members] = torch.arange(len(members))
    # Take one image of every class, then a second one of every class, and so on.
    return order[rank[order].argsort(stable=True)[:wanted]].sort().values


def held_out_facts(cell: Cell) -> dict[str, Any]:
    """The stage inputs that determine the held-out images; empty if none are held out."""
    wanted = cell.protocol["clean_holdout"]
    return {"holdout": [wanted, cell.seed]} if wanted else {}


def without_held_out(cell: Cell, data: Dataset) -> Dataset:
    """A copy of the data set whose test images exclude the held-out ones."""
    if not cell.protocol["clean_holdout"]:
        return data
    rest = torch.ones(len(data.test), dtype=torch.bool)
    rest[held_out(cell, data.test)] = False
    images = torch.from_numpy(Workspace().rows(data.test.images.numpy(), rest.numpy()))
    test = replace(data.test, images=images, labels=data.test.labels[rest])
    attack = data.attack and data.attack.without(rest.numpy())
    return replace(data, test=test, attack=attack)


def poisoned_count(cell: Cell, labels: Tensor, known: int | None) -> int:
    """The number of poisoned training images: `known` or, if that is None, the number that the
    cell's ratio gives for a training set with `labels`, int64 (n,)."""
    return count(cell.plan, class_sizes(labels, len(cell.classes))) if known is None else known


def class_sizes(labels: Tensor, classes: int) -> list[int]:
    """The number of examples of each class, as a list indexed by class."""
    sizes: list[int] = torch.bincount(labels, minlength=classes).tolist()
    return sizes


def knowledge(cell: Cell, n_poisoned: int) -> DefenderKnowledge:
    """The knowledge given to this cell's defense. `target` and `epsilon` are None unless the
    defense requires them."""
    needs = cell.requires
    return DefenderKnowledge(
        classes=cell.classes,
        target=cell.plan.target if "target" in needs else None,
        epsilon=_epsilon(cell, n_poisoned) if "epsilon" in needs else None,
        seed=derive(cell.seed, streams.FILTER),
    )


def _epsilon(cell: Cell, n_poisoned: int) -> int:
    """The number of poisoned images per target class: with ``all_to_all``, all poisoned images
    divided by the number of classes, rounded down; otherwise all poisoned images."""
    return n_poisoned if cell.plan.label_mode != "all_to_all" else n_poisoned // len(cell.classes)
