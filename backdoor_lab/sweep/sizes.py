"""How many training images a cell has, before its poison exists."""

from __future__ import annotations

from backdoor_lab.attacks.plan import count, cover_count
from backdoor_lab.core.types import Dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.stages.holdout import class_sizes
from backdoor_lab.pipeline.stages.imported import marked


def sizes_of(cell: Cell, data: Dataset) -> tuple[int, int, int]:
    """The numbers of poisoned images, of poisoned and cover images, and of training images."""
    if (attack := data.attack) is not None:
        poison, covers = marked(attack, len(data.train))
        return len(poison), len(poison) + len(covers), len(data.train)
    sizes = class_sizes(data.train.labels, len(data.classes))
    poisoned = count(cell.plan, sizes)
    added = poisoned + cover_count(cell.plan, sizes)
    appended = added if cell.plan.placement == "append" else 0
    return poisoned, added, len(data.train) + appended
