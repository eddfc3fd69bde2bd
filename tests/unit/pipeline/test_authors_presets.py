"""Presets with the costly settings of the authors of a method, tested at reduced cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from backdoor_lab.preview import PRESETS
from backdoor_lab.sweep.estimate import estimate
from tests.helpers.cells import CPU, cell_of, run_here
from tests.helpers.project import CONF

ABSENT = "absent"
"""Stands for the value of a key that a preset does not have."""
COSTLY: dict[str, dict[str, Any]] = {
    "defense/abl_authors": {"epochs": 10},
    "defense/abl_unlearning_authors": {"epochs": 10, "training_epochs": 60},
    "defense/confusion_authors": {
        "steps": [6000, 6000, 6000, 6000, 2000, 2000],
        "pretrain_epochs": [100, 100, 40, 40, 40, 40],
    },
    "defense/neural_cleanse_authors": {"steps": 1000, "batches_per_step": 31},
    "trigger/frequency_authors": {"strength": 20},
    "trigger/label_consistent_authors": {
        "norm": "l2",
        "eps": 300,
        "step_size": 7.5,
        "corners": "lower_right",
    },
    "trigger/low_frequency_authors": {
        "_target_": "backdoor_lab.attacks.low_frequency.OptimizedLowFrequency",
        "pattern_seed": ABSENT,
        "images": 100,
        "fooling_rate": 0.2,
        "overshoot": 0.02,
        "max_iter": 200,
        "max_passes": 20,
    },
    "trigger/narcissus_authors": {"steps": 15000, "batch_size": 350},
    "trigger/sinusoid_backdoor_toolbox": {
        "strength_train": 30,
        "strength_test": 30,
        "first_column": 0,
    },
    "trigger/sinusoid_backdoorbench": {
        "strength_train": 40,
        "strength_test": 40,
        "first_column": 0,
        "round_down": True,
    },
    "trigger/sleeper_agent_authors": {"steps": 250},
    "trigger/steganographic_authors": {"bits": 100, "steps": 1500, "grid": 16},
    "defense/spectre_authors": {"layer": "layer3.1.relu:input"},
}
"""The keys in which a preset differs from the method it is named for, with the authors' values."""
SHORT = {
    "defense/abl_authors": ("defense.epochs=1",),
    "defense/abl_unlearning_authors": ("defense.epochs=1", "defense.training_epochs=1"),
    "defense/confusion_authors": ("defense.steps=2", "defense.pretrain_epochs=1"),
    "defense/neural_cleanse_authors": ("defense.steps=2",),
    "trigger/frequency_authors": (),
    "trigger/label_consistent_authors": ("trigger.steps=2",),
    "trigger/low_frequency_authors": (
        "trigger.images=8",
        "trigger.fooling_rate=0",
        "trigger.max_iter=100",
    ),
    "trigger/narcissus_authors": ("trigger.steps=60", "trigger.batch_size=8"),
    "trigger/sinusoid_backdoor_toolbox": (),
    "trigger/sinusoid_backdoorbench": (),
    "trigger/sleeper_agent_authors": ("trigger.steps=2",),
    "trigger/steganographic_authors": ("trigger.steps=2",),
    "defense/spectre_authors": ("model.width=4",),
}


def options(name: str) -> dict[str, Any]:
    """The content of the YAML file conf/`name`.yaml."""
    return dict(OmegaConf.load(CONF / f"{name}.yaml"))  # type: ignore[arg-type]


def choice(name: str) -> str:
    """A preset as on the command line."""
    return name.replace("/", "=")


def test_every_preset_with_the_settings_of_the_authors_is_tested() -> None:
    found = [
        path for group in ("trigger", "defense") for path in (CONF / group).glob("*.yaml")
        if path.stem.endswith(PRESETS)
    ]  # fmt: skip
    assert {f"{path.parent.name}/{path.stem}" for path in found} == set(COSTLY)


@pytest.mark.parametrize("name", COSTLY)
def test_a_preset_with_the_authors_settings_changes_only_options_that_cost_time_or_memory(
    name: str,
) -> None:
    base = options(next(name[: -len(end)] for end in PRESETS if name.endswith(end)))
    expected = base | COSTLY[name] | {"name": name.partition("/")[2]}
    assert options(name) == {key: value for key, value in expected.items() if value != ABSENT}


@pytest.mark.parametrize("name", COSTLY)
def test_a_dry_run_can_estimate_each_preset_that_has_the_settings_of_the_authors(
    name: str, tmp_path: Path
) -> None:
    cell = cell_of(tmp_path, choice(name), "protocol.clean_holdout=20")
    assert [each.id for each, _ in estimate([cell], set(), CPU).cells] == [cell.id]


@pytest.mark.parametrize("name", COSTLY)
def test_a_preset_with_the_settings_of_the_authors_runs_if_costly_values_are_reduced(
    name: str, tmp_path: Path
) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", choice(name),
                      "protocol.clean_holdout=20", *SHORT[name])  # fmt: skip
    assert record["status"] == "done"
    group, _, preset = name.partition("/")
    assert record["config"][group]["name"] == preset
