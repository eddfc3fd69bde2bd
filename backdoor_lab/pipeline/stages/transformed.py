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
from backdoor_lab.core import streams
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.store import Artifact, Store
from backdoor_lab.core.types import Dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.stages.holdout import without_held_out
from backdoor_lab.pipeline.stages.training import measured_on
from backdoor_lab.pipeline.stages.triggered import triggered_test
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
    rest = without_held_out(cell, data)
    test, asked = rest.test, triggered_test(cell, rest)

    def changed(name: str) -> Callable[[Tensor], Tensor]:
        return transformation(name, torch_generator(cell.seed, streams.TRANSFORMED_TEST))

    def make(folder: Path) -> dict[str, Any]:
        everything = torch.arange(len(test))
        return {
            "under": {
                name: {
                    "nat": attack_success(
                        module, test, everything, changed(name), test.labels, machine
                    ),
                    "asr": attack_success(
                        module, asked.images, asked.attacked,
                        _after(asked.trigger, changed(name)), asked.wanted, machine,
                    ),
                }
                for name in cell.asr_under
            }
        }  # fmt: skip

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
