"""TaCT's poison and covers, compared with NumPy code written from backdoor-toolbox and with the
names of the authors' models."""

from __future__ import annotations

import numpy as np
import torch

from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import poison
from backdoor_lab.attacks.tact import TaCT
from backdoor_lab.core.types import LabeledImages
from tests.helpers.mutations import Mutation

FILE = "attacks/tact.py"
MUTATIONS = [
    Mutation(FILE, "range(-side - away, -away)", "range(-side, 0)", "the square has no margin"),
    Mutation(FILE, "range(-side - away, -away)", "range(away, away + side)",
             "the square is in the upper left corner"),
    Mutation(FILE, "if each != target]", "if each != classes]", "the target class has covers"),
    Mutation(FILE, "range(1, classes)", "range(classes - 1, 0, -1)",
             "the last classes have covers"),
    Mutation(FILE, "factor = scale(height, width)", "factor = 1.0", "the size is not scaled"),
    Mutation(FILE, "round(self.margin * factor)", "self.margin", "the margin is not scaled"),
    Mutation(
        "attacks/plan.py", "[k for k in others if k in plan.cover_from] if plan.cover_from else",
        "", "covers come from all classes",
    ),
]  # fmt: skip


def made(source: int, target: int, side: int) -> tuple[np.ndarray, np.ndarray, set[int]]:
    """The clean images of poison and covers, both triggered, and the classes of the covers."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 255, (300, 3, side, side), generator=generator).byte()
    labels = torch.arange(300) % 10
    train = LabeledImages(images, labels, tuple("abcdefghij"))
    trigger = TaCT()
    plan = PoisonSpec(
        target, source, 0.5, poison_from="source", asr_on="source", cover_rate=trigger.cover_rate,
        cover_from=trigger.cover_from(target, source, 10),
    )  # fmt: skip
    found = poison(train, trigger, plan, seed=1)
    origins = torch.cat([found.source_index, found.cover_index])
    assert len(found.source_index) == len(found.cover_index) == 15
    assert set(labels[found.source_index].tolist()) == {source}
    covered = set(labels[found.cover_index].tolist())
    return images[origins].numpy(), found.training.rows.numpy(), covered


def test_the_trigger_square_and_the_cover_classes_are_those_of_the_authors() -> None:
    """The square covers rows and columns 21 to 28 of 32 pixels, or 10 to 13 of 16. The names of the
    authors' models state source, target and cover classes: s1_t0_c23 and s0_t1_c23."""
    for source, target in ((1, 0), (0, 1)):
        for side, first, last in ((32, 21, 28), (16, 10, 13)):
            clean, rows, covered = made(source, target, side)
            mask = np.zeros((side, side))
            mask[first : last + 1, first : last + 1] = 1
            assert (rows == clean + mask * (255.0 - clean)).all()
            assert covered == {2, 3}
