"""Defenses with their authors' costly numbers compose, are estimated, and run when cut short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from backdoor_lab.sweep.estimate import estimate
from tests.helpers.cells import CPU, cell_of, run_here
from tests.helpers.project import CONF

COSTLY = {
    "abl_authors": {"epochs": 10},
    "abl_unlearning_authors": {"epochs": 10, "training_epochs": 60},
    "confusion_authors": {
        "steps": [6000, 6000, 6000, 6000, 2000, 2000],
        "pretrain_epochs": [100, 100, 40, 40, 40, 40],
    },
    "neural_cleanse_authors": {"steps": 1000, "batches_per_step": 31},
    "spectre_authors": {"layer": "layer3.1.relu:input"},
}
"""The keys in which a preset differs from the defense it is named for, with the authors' values."""
SHORT = {
    "abl_authors": ("defense.epochs=1",),
    "abl_unlearning_authors": ("defense.epochs=1", "defense.training_epochs=1"),
    "confusion_authors": ("defense.steps=2", "defense.pretrain_epochs=1"),
    "neural_cleanse_authors": ("defense.steps=2",),
    "spectre_authors": ("model.width=4",),
}


def options(name: str) -> dict[str, Any]:
    """The content of a defense's YAML file."""
    return dict(OmegaConf.load(CONF / f"defense/{name}.yaml"))  # type: ignore[arg-type]


def test_every_preset_with_the_numbers_of_the_authors_is_tested() -> None:
    assert {path.stem for path in (CONF / "defense").glob("*_authors.yaml")} == set(COSTLY)


@pytest.mark.parametrize("name", COSTLY)
def test_a_preset_with_the_numbers_of_the_authors_differs_from_its_defense_only_in_costly_keys(
    name: str,
) -> None:
    base = options(name.removesuffix("_authors"))
    assert options(name) == base | COSTLY[name] | {"name": name}


@pytest.mark.parametrize("name", COSTLY)
def test_a_dry_run_estimates_a_preset_with_the_numbers_of_the_authors(
    name: str, tmp_path: Path
) -> None:
    cell = cell_of(tmp_path, f"defense={name}", "protocol.clean_holdout=20")
    assert [each.id for each, _ in estimate([cell], set(), CPU).cells] == [cell.id]


@pytest.mark.parametrize("name", COSTLY)
def test_a_preset_with_the_numbers_of_the_authors_runs_with_smaller_numbers(
    name: str, tmp_path: Path
) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", f"defense={name}",
                      "protocol.clean_holdout=20", *SHORT[name])  # fmt: skip
    assert record["status"] == "done"
    assert record["config"]["defense"]["name"] == name
