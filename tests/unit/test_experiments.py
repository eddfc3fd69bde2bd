"""Experiment files: their sweeps agree with the available triggers, defenses and recipes."""

from __future__ import annotations

import itertools
from fnmatch import fnmatch
from pathlib import Path

import pytest

from backdoor_lab.defenses.base import Defense
from backdoor_lab.defenses.none import NoDefense
from backdoor_lab.pipeline.keys import check_keys
from backdoor_lab.pipeline.parts import defense_of
from backdoor_lab.tables.reference import lookup
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.transformations import canonical_names, parse
from tests.helpers.cells import configuration
from tests.helpers.project import CONF, swept


@pytest.mark.parametrize(
    "experiment", ["defenses", "matrix", "augmentation", "spectral_variants", "suspicious"]
)
def test_hydra_composes_every_experiment_without_an_error(experiment: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, f"experiment={experiment}")
    check_keys(config)
    assert config["name"] == experiment
    assert config["dataset"]["name"] == "synthetic"


def test_the_physical_experiment_covers_every_trigger_and_transformation(
    tmp_path: Path,
) -> None:
    config = configuration(tmp_path, "experiment=physical")
    check_keys(config)
    assert swept("physical") == {"trigger": "glob(*,exclude=[*_authors,*_backdoor*])"}
    asked = config["measure"]["asr_under"]
    assert list(canonical_names(asked)) == sorted(asked, key=canonical_names(asked).index)
    kinds = {parse(name)[0] for name in asked}
    assert kinds == {"jpeg", "brightness", "blur", "shift", "rescale", "noise"}
    assert not config["retrain"]


@pytest.mark.parametrize("experiment", ["matrix", "photographs"])
def test_comparison_experiments_cover_exactly_the_filters(experiment: str, tmp_path: Path) -> None:
    """A new filter is included automatically. A new repair must be excluded by name. Presets with
    the settings of the authors take long to run and are excluded by the pattern `*_authors`."""
    text = swept(experiment)["defense"]
    left_out = set(text.removeprefix("glob(*,exclude=[").removesuffix("])").split(","))
    names = {path.stem for path in (CONF / "defense").glob("*.yaml")}
    filters = {name for name in names if is_filter(tmp_path, name)}
    costly = {name for name in names if name.endswith("_authors")}
    assert {name for name in names if not any(fnmatch(name, each) for each in left_out)} == (
        filters - costly
    )
    assert left_out - names == {"*_authors"}


def test_the_defenses_experiment_excludes_presets_whose_names_end_in_authors() -> None:
    assert swept("defenses")["defense"] == "glob(*,exclude=*_authors)"


@pytest.mark.parametrize("experiment", ["report", "report_small", "report_airbench"])
def test_report_experiments_cover_all_twelve_cells_and_the_controls(
    experiment: str, tmp_path: Path
) -> None:
    config = configuration(tmp_path, f"experiment={experiment}")
    check_keys(config)
    assert config["name"] == experiment
    assert config["protocol"]["name"] == "group13"
    asked = {key: str(value).split(",") for key, value in swept(experiment).items()}
    cells = set(itertools.product(asked["trigger"], asked["target"], asked["ratio"]))
    assert len(cells) == 12
    assert all(lookup(*cell) for cell in cells)
    assert asked["defense"] == ["spectral", "none", "random", "oracle"]
    assert asked["seed"] == ["0", "1", "2"]
    # Seeds and defenses vary slowest: the first cells have one seed and the report's filter.
    assert list(asked)[:2] == ["seed", "defense"]


def test_spectral_variants_are_selected_on_triggers_that_are_not_in_the_report(
    tmp_path: Path,
) -> None:
    config = configuration(tmp_path, "experiment=spectral_variants")
    assert not config["retrain"]
    assert (
        swept("spectral_variants")["trigger"]
        == "glob(*,exclude=[pixel,pattern,*_authors,*_backdoor*])"
    )
    reported = swept("report")["trigger"].split(",")
    assert reported == ["pixel", "pattern"]


def test_the_experiment_named_readings_reruns_cells_of_the_report_with_other_protocols(
    tmp_path: Path,
) -> None:
    config = configuration(tmp_path, "experiment=readings")
    check_keys(config)
    asked = swept("readings")
    assert asked["protocol"].split(",") == ["group13", "group13_literal", "backdoorbench"]
    assert all(
        lookup(each, asked["target"], asked["ratio"]) for each in asked["trigger"].split(",")
    )


def test_the_report_layers_experiment_uses_the_same_networks_as_report_small(
    tmp_path: Path,
) -> None:
    small, layers = (
        configuration(tmp_path, f"experiment={name}") for name in ("report_small", "report_layers")
    )
    check_keys(layers)
    assert not layers["retrain"]
    assert all(small[part] == layers[part] for part in ("recipe", "model", "dataset", "protocol"))
    asked, others = swept("report_small"), swept("report_layers")
    assert all(asked[part] == others[part] for part in ("trigger", "target", "ratio"))
    assert others["protocol.layer"].split(",")[0] == small["protocol"]["layer"]


def test_the_experiment_named_ratios_has_sorted_valid_ratios_up_to_one(tmp_path: Path) -> None:
    config = configuration(tmp_path, "experiment=ratios")
    check_keys(config)
    ratios = [float(each) for each in str(swept("ratios")["ratio"]).split(",")]
    assert (min(ratios), max(ratios)) == (0.002, 1)
    assert ratios == sorted(ratios)


def is_filter(root: Path, name: str) -> bool:
    made = defense_of(configuration(root, f"defense={name}"))
    return isinstance(made, Defense) and not isinstance(made, NoDefense)


def test_augmentation_recipes_differ_only_in_their_augmentation(tmp_path: Path) -> None:
    names = swept("augmentation")["recipe"].split(",")
    decides = [
        Recipe.of(configuration(tmp_path, f"recipe={name}")["recipe"]).decides() for name in names
    ]
    augmentation = {"crop_padding", "flip", "cutout", "mixup", "cutmix"}
    plain = [{k: v for k, v in each.items() if k not in augmentation} for each in decides]
    assert all(each == plain[0] for each in plain)
    assert len({str(each) for each in decides}) == len(names) == 6
