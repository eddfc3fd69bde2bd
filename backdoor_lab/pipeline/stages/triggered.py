"""The triggered test images: test images with the trigger, or those of a poisoned data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from backdoor_lab.attacks.plan import asr_test_set, elsewhere_test_set
from backdoor_lab.core.types import Dataset, ImportedAttack, LabeledImages
from backdoor_lab.pipeline.cell import Cell


@dataclass(frozen=True)
class TriggeredTest:
    """Test images, and how they are triggered.

    `trigger` is applied to `images`. `wanted`, int64 (n,), is the class that the attacker wants for
    each image, and `original`, int64 (n,), the index of its clean original among the test images,
    -1 if unknown. `attacked` and `elsewhere`, int64, are the indices of the images that count for
    the attack success rate, and of those of classes that a source-specific attack does not attack.
    """

    images: LabeledImages
    trigger: Callable[[Tensor], Tensor]
    wanted: Tensor
    original: Tensor
    attacked: Tensor
    elsewhere: Tensor


def triggered_test(cell: Cell, data: Dataset) -> TriggeredTest:
    """Returns the triggered test images of a cell. `data` is its data set without the test images
    that are held out."""
    if data.attack is not None:
        return _imported(data.attack, data)
    plan, test = cell.plan, data.test
    return TriggeredTest(
        test, cell.trigger, plan.wanted(test.labels, len(data.classes)),
        torch.arange(len(test)), asr_test_set(test.labels, plan),
        elsewhere_test_set(test.labels, plan),
    )  # fmt: skip


def _imported(attack: ImportedAttack, data: Dataset) -> TriggeredTest:
    if attack.triggered is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        return TriggeredTest(data.test, _unchanged, *[nothing] * 4)
    wanted, original, elsewhere = (
        torch.from_numpy(getattr(attack, name)) for name in ("wanted", "test_index", "elsewhere")
    )
    images = LabeledImages(torch.from_numpy(attack.triggered), wanted, data.classes)
    chosen = (~elsewhere).nonzero().flatten(), elsewhere.nonzero().flatten()
    return TriggeredTest(images, _unchanged, wanted, original, *chosen)


def _unchanged(images: Tensor) -> Tensor:
    return images
