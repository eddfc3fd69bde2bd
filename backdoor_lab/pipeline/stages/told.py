"""What follows from a cell before anything is computed: the test images that it holds out, and what
its defense is told. Imports no training code, so that checks and finished sweeps start fast."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from backdoor_lab.core import streams
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.seeds import derive, torch_generator
from backdoor_lab.core.types import Dataset, Images
from backdoor_lab.defenses.base import Knowledge
from backdoor_lab.pipeline.cell import Cell


def held_out(cell: Cell, test: Images) -> Tensor:
    """Positions int64 of the test images that are kept for the defenses: `protocol.holdout` of
    them, as equal a number of each class as can be, drawn by the cell's seed, sorted."""
    wanted = cell.protocol["holdout"]
    generator = torch_generator(cell.seed, streams.HOLDOUT)
    order = torch.randperm(len(test), generator=generator)
    rank = torch.zeros(len(test), dtype=torch.int64)
    for label in range(len(test.classes)):
        members = order[test.labels[order] == label]
        rank[members] = torch.arange(len(members))
    # The first of every class, then the second of every class, and so on.
    return order[rank[order].argsort(stable=True)[:wanted]].sort().values


def held_out_facts(cell: Cell) -> dict[str, Any]:
    """What decides the held-out images, for a stage's inputs; empty when there are none."""
    wanted = cell.protocol["holdout"]
    return {"holdout": [wanted, cell.seed]} if wanted else {}


def without_held_out(cell: Cell, data: Dataset) -> Dataset:
    """The data set with the test images that are measured on."""
    if not cell.protocol["holdout"]:
        return data
    rest = torch.ones(len(data.test), dtype=torch.bool)
    rest[held_out(cell, data.test)] = False
    test = replace(data.test, images=data.test.images[rest], labels=data.test.labels[rest])
    return replace(data, test=test)


def class_sizes(labels: Tensor, classes: int) -> list[int]:
    """How many examples each label has."""
    sizes: list[int] = torch.bincount(labels, minlength=classes).tolist()
    return sizes


def knowledge(cell: Cell, n_poisoned: int) -> Knowledge:
    """What this cell's defense is told: only what it declares to need."""
    told = cell.told
    return Knowledge(
        classes=cell.classes,
        target=cell.plan.target if "target" in told else None,
        epsilon=_epsilon(cell, n_poisoned) if "epsilon" in told else None,
        seed=derive(cell.seed, streams.FILTER),
    )


def _epsilon(cell: Cell, n_poisoned: int) -> int:
    """The number of poisoned images in an attacked class: all of them, or a class' share."""
    return n_poisoned if cell.plan.labels != "all_to_all" else n_poisoned // len(cell.classes)
