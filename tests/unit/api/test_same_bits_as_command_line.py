"""Filters and repairs of the public interface give the same bits as the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backdoor_lab as bl
from tests.helpers.defended_cells import DefendedCell, defended

COMMON = ("protocol.clean_holdout=20", "seed=3", "recipe.flip=true", "recipe.crop_padding=1")
ON_FEATURES = [
    name for name in bl.list_methods("filters") if "images" not in bl.get_filter(name).requires
]
ON_IMAGES = [name for name in bl.list_methods("filters") if name not in ON_FEATURES]
# Enough training steps to compare bits.
BRIEF: dict[str, dict[str, Any]] = {
    "abl": {"epochs": 1},
    "abl_authors": {"epochs": 1},
    "abl_unlearning": {"epochs": 1, "training_epochs": 1, "unlearning_epochs": 1},
    "anp": {"steps": 3, "batch_size": 16, "threshold": 0.9},
    "confusion": {"steps": 4, "pretrain_epochs": [0, 1, 1, 1, 1, 1]},
    "confusion_authors": {"steps": 4, "pretrain_epochs": 1},
    "d_br": {"first_epochs": 1, "tuning_epochs": 1, "epochs": 1},
    "fine_pruning": {"epochs": 1},
    "fine_tuning": {"epochs": 2},
    "neural_cleanse": {"steps": 3, "batches_per_step": 2, "threshold": 0},
    "strip": {"n_overlays": 5},
}
REPAIRS = ["abl_unlearning", "anp", "d_br", "fine_pruning", "fine_tuning", "neural_cleanse"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that all cells of this module share, so that one network is trained."""
    return tmp_path_factory.mktemp("store")


def cell(root: Path, name: str, *overrides: str) -> DefendedCell:
    brief = [f"defense.{key}={value}" for key, value in BRIEF.get(name, {}).items()]
    return defended(root, f"defense={name}", *COMMON, *brief, *overrides)


def fitted(found: DefendedCell, name: str, features: Any, **options: Any) -> Any:
    made = bl.get_filter(name, seed=3, **BRIEF.get(name, {}), **options)
    return made.fit(
        features, found.labels, target=found.cell.plan.target, n_poisoned=found.n_poisoned,
        **found.arguments(),
    )  # fmt: skip


def assert_same(made: Any, found: DefendedCell) -> None:
    expected = found.verdict
    assert torch.equal(made.keep_, expected.keep)
    assert torch.equal(made.scores_.isnan(), expected.scores.isnan())
    assert torch.equal(made.scores_.nan_to_num(), expected.scores.nan_to_num())
    assert 0 < int((~made.keep_).sum()) < len(found.labels)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_a_filter_on_features_gives_the_scores_of_the_command_line(root: Path, name: str) -> None:
    found = cell(root, name, "retrain=false")
    made = fitted(found, name, found.features)
    assert_same(made, found)
    assert [found.cell.classes[y] for y in made.flagged_classes_] == found.verdict.notes["classes"]


def test_a_filter_with_options_gives_the_scores_of_the_command_line(root: Path) -> None:
    options: dict[str, Any] = {"filter_scope": "all", "removal_budget": "25%", "max_removed": "4"}
    overrides = [f"defense.{key}={value}" for key, value in options.items()]
    found = cell(root, "spectral_plus", "retrain=false", *overrides)
    made = fitted(found, "spectral_plus", found.features, **options)
    assert_same(made, found)
    assert made.flagged_classes_ == list(range(10))


def test_numpy_arrays_give_the_scores_of_the_command_line(root: Path) -> None:
    found = cell(root, "isolation_forest", "retrain=false")
    assert found.features is not None
    made = bl.get_filter("isolation_forest", seed=3).fit(
        found.features.numpy(), found.labels.numpy(), target=found.cell.plan.target,
        n_poisoned=found.n_poisoned,
    )  # fmt: skip
    assert isinstance(made.scores_, np.ndarray)
    np.testing.assert_array_equal(made.scores_, found.verdict.scores.numpy())
    np.testing.assert_array_equal(made.keep_, found.verdict.keep.numpy())


def test_another_seed_gives_other_scores_than_the_command_line(root: Path) -> None:
    found = cell(root, "isolation_forest", "retrain=false")
    other = bl.get_filter("isolation_forest", seed=4).fit(
        found.features, found.labels, target=found.cell.plan.target, n_poisoned=found.n_poisoned
    )
    assert not torch.equal(other.scores_.nan_to_num(), found.verdict.scores.nan_to_num())


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_filter_on_images_gives_the_scores_of_the_command_line(root: Path, name: str) -> None:
    found = cell(root, name, "retrain=false")
    assert_same(fitted(found, name, None), found)


@pytest.mark.parametrize("name", REPAIRS)
def test_a_repair_gives_the_weights_of_the_command_line(root: Path, name: str) -> None:
    found = cell(root, name)
    given = found.arguments()
    made = bl.get_repair(name, seed=3, **BRIEF[name]).fit(labels=found.labels, **given)
    weights: dict[str, Any] = made.model_.network.net.state_dict()  # type: ignore[union-attr]
    expected = found.result.net.state_dict()
    attacked = given["model"].network.net.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert not all(torch.equal(weights[key], attacked[key]) for key in expected)
