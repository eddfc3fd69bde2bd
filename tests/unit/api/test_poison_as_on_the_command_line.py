"""`backdoor_lab.poison` returns the bits that the command line stores, for every trigger and every
protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import backdoor_lab as bl
from backdoor_lab.api.methods import list_methods
from tests.helpers.triggers import NAMES, attacked, brief, brief_options

AUGMENT = {"crop_padding": 1, "flip": True, "cutout": 2}


def assert_equal(root: Path, *overrides: str, trigger: str, **options: Any) -> None:
    """Compares every row, in order, and the triggered test images."""
    brief_words = [f"trigger.{key}={value}" for key, value in brief_options(trigger).items()]
    augment = [f"recipe.{key}={value}" for key, value in AUGMENT.items()]
    cell, expected, model = attacked(
        root, "defense=none", f"trigger={trigger}", *brief_words, *augment, "target=2", *overrides
    )
    train, truth = expected.data.train, expected.poisoned
    given = brief(trigger)
    found = bl.poison(
        train.images, train.labels, given, target=2, model=model, normalize="bytes",
        augment=AUGMENT, **options,
    )  # fmt: skip
    training = truth.training
    assert torch.equal(found.images, training.gather(torch.arange(len(training))))
    assert torch.equal(found.labels, training.labels)
    assert torch.equal(found.is_poison, truth.is_poison)
    assert torch.equal(found.is_cover, truth.is_cover)
    assert found.is_poison.any()
    assert torch.equal(found.source_index[found.is_poison].sort().values, truth.source_index)
    assert torch.equal(found.source_index[found.is_cover].sort().values, truth.cover_index)
    assert torch.equal(given(expected.data.test.images), cell.trigger(expected.data.test.images))
    assert found.source == cell.plan.source
    protocol = cell.config["protocol"]
    assert found.protocol == f"{protocol['name']}@{protocol['version']}"


@pytest.mark.parametrize("trigger", NAMES)
def test_every_trigger_gives_the_bits_of_the_command_line(tmp_path: Path, trigger: str) -> None:
    """The recipe augments images, which some triggers imitate."""
    assert_equal(tmp_path, "ratio=0.3", "seed=3", trigger=trigger, ratio=0.3, seed=3)


@pytest.mark.parametrize("protocol", list_methods("protocols"))
@pytest.mark.parametrize("trigger", ["adaptive_patch", "sinusoid"])
def test_every_protocol_gives_the_bits_of_the_command_line(
    tmp_path: Path, protocol: str, trigger: str
) -> None:
    overrides, options = [f"protocol={protocol}", "ratio=0.1"], {"protocol": protocol, "ratio": 0.1}
    if protocol == "madry2018":
        overrides, options = [*overrides, "source=1"], {**options, "source": 1}
    assert_equal(tmp_path, *overrides, trigger=trigger, **options)


@pytest.mark.parametrize("trigger", ["tact", "patch", "sleeper_agent"])
def test_a_source_class_gives_the_bits_of_the_command_line(tmp_path: Path, trigger: str) -> None:
    assert_equal(tmp_path, "ratio=0.3", "source=5", trigger=trigger, ratio=0.3, source=5)
