"""SIG by NumPy: the paper's formula, BackdoorBench's code and backdoor-toolbox's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from backdoor_lab.attacks.sinusoid import SIG
from tests.helpers.mutations import Mutation
from tests.helpers.project import CONF

FILE = "attacks/sinusoid.py"
MUTATIONS = [
    Mutation(FILE, "+ self.first_column", "+ 0", "the paper's columns are counted from 0"),
    Mutation(FILE, "torch.sin(2", "torch.cos(2", "a cosine"),
    Mutation(FILE, "2 * math.pi * column", "math.pi * column", "half of the frequency"),
    Mutation(FILE, "(self.strength_train / self.strength_test)", "1.0",
             "training images get the strength of test images"),
    Mutation(FILE, "(images.device)).floor()", "(images.device))",
             "BackdoorBench's images are rounded to the nearest level"),
]  # fmt: skip


def preset(name: str) -> SIG:
    said: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"trigger/{name}.yaml"))
    return SIG(**{key: value for key, value in said.items() if key not in ("_target_", "name")})


@pytest.mark.parametrize(
    ("name", "train", "test", "first"),
    [("sinusoid", 20, 40, 1), ("sinusoid_backdoorbench", 40, 40, 0),
     ("sinusoid_backdoor_toolbox", 30, 30, 0)],
)  # fmt: skip
def test_each_preset_adds_the_sinusoid_of_its_source(
    name: str, train: int, test: int, first: int
) -> None:
    """v(i, j) = D sin(2 π j f / m) with f = 6, counted from j = 1 in the paper. BackdoorBench
    rounds down."""
    generator = torch.Generator().manual_seed(6)
    images = torch.randint(0, 256, (4, 3, 20, 28), generator=generator).byte()
    trigger, rounded = preset(name), np.floor if name == "sinusoid_backdoorbench" else np.round
    context: Any = None
    for strength, found in (
        (train, trigger.poisoned(images, torch.zeros(4).long(), context)), (test, trigger(images)),
    ):  # fmt: skip
        wave = strength * np.sin(2 * np.pi * (np.arange(28) + first) * 6 / 28)
        wave = wave.astype(np.float32).astype(np.float64)
        expected = rounded((images.numpy() + wave).clip(0, 255))
        assert (found.numpy() == expected).mean() > 0.999
