"""The stage that evaluates a network on transformed test images. It is separate from
`measure_stage`, so that the evaluation on untransformed images is not repeated when a
transformation is added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backdoor_lab import identity
from backdoor_lab.attacks.plan import asr_test_set
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.stages.holdout import without_held_out
from backdoor_lab.pipeline.stages.training import measured_on
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.evaluate import attack_success
from backdoor_lab.training.transformations import transformation


def transformed_stage(
    cell: Cell, data: Dataset, module: Classifier, weights: str, store: Store,
    machine: ComputeDevice, prepared: Artifact | None = None,
) -> Artifact:  # fmt: skip
    """Measure a network's clean accuracy (`nat`) and attack success rate (`asr`) under each of the
    cell's transformations, on the test images of `measure_stage`.

    The trigger is applied first, then the transformation. `nat` is measured on transformed images
    without the trigger: a low `asr` with a high `nat` means that the transformation destroys only
    the trigger.

    Noise and the directions of shifts are drawn with the cell's seed. They are the same for all
    networks and strengths.
    """
    rest, plan = without_held_out(cell, data), cell.plan
    labels = rest.test.labels
    wanted = plan.wanted(labels, len(data.classes))
    chosen, everything = asr_test_set(labels, plan), torch.arange(len(labels))

    def share(name: str, where: Tensor, right: Tensor, triggered: bool) -> float | None:
        generator = torch_generator(cell.seed, streams.TRANSFORMED_TEST)
        changed = transformation(name, generator)
        seen = _after(cell.trigger, changed) if triggered else changed
        return attack_success(module, rest.test, where, seen, right, machine)

    def make(folder: Path) -> dict[str, Any]:
        return {
            "under": {
                name: {
                    "nat": share(name, everything, labels, triggered=False),
                    "asr": share(name, chosen, wanted, triggered=True),
                }
                for name in cell.asr_under
            }
        }

    inputs = {
        "version": identity.stage("transformed"),
        **measured_on(cell, data, weights, machine, prepared),
        "under": list(cell.asr_under),
        "seed": cell.seed,
    }
    return store.get("transformed", inputs, make)


def _after(
    trigger: Callable[[Tensor], Tensor], changed: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    return lambda images: changed(trigger(images))
