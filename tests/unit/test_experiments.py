"""The experiments: what they sweep over is what there is."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from backdoor_lab.defenses.base import Defense
from backdoor_lab.defenses.none import Keep
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
def test_an_experiment_composes(experiment: str, tmp_path: Path) -> None:
    config = configuration(tmp_path, f"experiment={experiment}")
    check_keys(config)
    assert config["name"] == experiment
    assert config["dataset"]["name"] == "synthetic"


def test_the_physical_world_is_every_trigger_under_every_kind_of_the_figure(
    tmp_path: Path,
) -> None:
    config = configuration(tmp_path, "experiment=physical")
    check_keys(config)
    assert swept("physical") == {"trigger": "glob(*)"}
    asked = config["measure"]["asr_under"]
    assert list(canonical_names(asked)) == sorted(asked, key=canonical_names(asked).index)
    kinds = {parse(name)[0] for name in asked}
    assert kinds == {"jpeg", "brightness", "blur", "shift", "rescale", "noise"}
    assert not config["retrain"]


@pytest.mark.parametrize("experiment", ["matrix", "photographs"])
def test_a_comparison_holds_every_filter_and_nothing_else(experiment: str, tmp_path: Path) -> None:
    """A defense that is added later is in it; a repair has to be named as left out."""
    text = swept(experiment)["defense"]
    left_out = set(text.removeprefix("glob(*,exclude=[").removesuffix("])").split(","))
    names = {path.stem for path in (CONF / "defense").glob("*.yaml")}
    filters = {name for name in names if is_filter(tmp_path, name)}
    assert names - left_out == filters
    assert left_out <= names


@pytest.mark.parametrize("experiment", ["report", "report_small", "report_airbench"])
def test_the_report_is_all_its_cells_beside_the_controls(experiment: str, tmp_path: Path) -> None:
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
    # One seed with the report's filter is done before anything else.
    assert list(asked)[:2] == ["seed", "defense"]


def test_variants_are_chosen_on_other_triggers_than_they_are_reported_on(tmp_path: Path) -> None:
    config = configuration(tmp_path, "experiment=spectral_variants")
    assert not config["retrain"]
    assert swept("spectral_variants")["trigger"] == "glob(*,exclude=[pixel,pattern])"
    reported = swept("report")["trigger"].split(",")
    assert reported == ["pixel", "pattern"]


def test_the_readings_are_the_reports_cells_under_other_protocols(tmp_path: Path) -> None:
    config = configuration(tmp_path, "experiment=readings")
    check_keys(config)
    asked = swept("readings")
    assert asked["protocol"].split(",") == ["group13", "group13_literal", "backdoorbench"]
    assert all(
        lookup(each, asked["target"], asked["ratio"]) for each in asked["trigger"].split(",")
    )


def test_layers_are_looked_at_on_the_reports_own_networks(tmp_path: Path) -> None:
    small, layers = (
        configuration(tmp_path, f"experiment={name}") for name in ("report_small", "report_layers")
    )
    check_keys(layers)
    assert not layers["retrain"]
    assert all(small[part] == layers[part] for part in ("recipe", "model", "dataset", "protocol"))
    asked, others = swept("report_small"), swept("report_layers")
    assert all(asked[part] == others[part] for part in ("trigger", "target", "ratio"))
    assert others["protocol.layer"].split(",")[0] == small["protocol"]["layer"]


def test_the_ratios_are_legal_and_go_up_to_one(tmp_path: Path) -> None:
    config = configuration(tmp_path, "experiment=ratios")
    check_keys(config)
    ratios = [float(each) for each in str(swept("ratios")["ratio"]).split(",")]
    assert (min(ratios), max(ratios)) == (0.002, 1)
    assert ratios == sorted(ratios)


def is_filter(root: Path, name: str) -> bool:
    made = defense_of(configuration(root, f"defense={name}"))
    return isinstance(made, Defense) and not isinstance(made, Keep)


def test_recipes_of_the_augmentation_differ_in_augmentation_alone(tmp_path: Path) -> None:
    names = swept("augmentation")["recipe"].split(",")
    decides = [
        Recipe.of(configuration(tmp_path, f"recipe={name}")["recipe"]).decides() for name in names
    ]
    augmentation = {"crop", "flip", "cutout", "mixup", "cutmix"}
    plain = [{k: v for k, v in each.items() if k not in augmentation} for each in decides]
    assert all(each == plain[0] for each in plain)
    assert len({str(each) for each in decides}) == len(names) == 6
