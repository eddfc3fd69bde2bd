"""The contract of every model repair: each test runs on the YAML of every repair."""

from __future__ import annotations

import inspect
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from backdoor_lab.core import progress
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.progress import Step, Steps, observe
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.options import OPTION_KEYS, FilterOptions
from backdoor_lab.pipeline.parts import defense_of
from tests.helpers.contexts import context, hidden

ROOT = Path(__file__).resolve().parents[2]
BRIEF = {"steps": 4, "epochs": 1, "training_epochs": 1, "unlearning_epochs": 1}


def made(name: str, **changes: Any) -> Any:
    whole = OmegaConf.create(
        {
            "protocol": OmegaConf.load(ROOT / "conf/protocol/group13.yaml"),
            "defense": OmegaConf.merge(
                OmegaConf.load(ROOT / "conf/config.yaml").defense,
                OmegaConf.load(ROOT / f"conf/defense/{name}.yaml"),
            ),
            "source": None,
        }
    )
    brief = {key: value for key, value in BRIEF.items() if key in whole.defense}
    for key, value in (brief | changes).items():
        OmegaConf.update(whole, f"defense.{key}", value)
    config: Any = OmegaConf.to_container(whole.defense, resolve=True)
    return defense_of({"defense": config, "protocol": asdict(FilterOptions())})


def everything() -> list[str]:
    found = sorted(path.stem for path in (ROOT / "conf/defense").glob("*.yaml"))
    return [name for name in found if isinstance(made(name), ModelRepair)]


def images(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return found, torch.arange(n) % 3


ATTACKED = hidden(12, 3, seed=5)
REQUIRE_CLEAN = ("anp", "fine_pruning", "fine_tuning", "neural_cleanse", "neural_cleanse_authors")


def given(seed: int = 3, **changes: Any) -> DefenseContext:
    made_of: dict[str, Any] = {"network": ATTACKED, "clean": images(24, 2), "seed": seed}
    return context(*images(60, 1), **made_of | changes)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(params=everything())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_parametrized_list_contains_the_known_repairs() -> None:
    assert set(everything()) >= {"fine_pruning", "neural_cleanse", "anp", "abl_unlearning"}


def test_a_repair_returns_the_same_architecture_in_eval_mode(name: str) -> None:
    """Its notes can be written to a record, and the attacked network is not modified."""
    before = weights(ATTACKED)
    network, notes = made(name).repair(given())
    assert same(weights(ATTACKED), before)
    found = weights(network)
    assert {key: value.shape for key, value in found.items()} == {
        key: value.shape for key, value in before.items()
    }
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    assert not network.training
    canonical(notes)


def test_random_choices_of_a_repair_depend_only_on_the_seed(name: str) -> None:
    """The state of torch's global generator does not matter."""
    torch.manual_seed(1)
    first = weights(made(name).repair(given())[0])
    torch.manual_seed(2)
    again = weights(made(name).repair(given())[0])
    assert same(first, again)


def test_reporting_progress_does_not_change_the_result_of_a_repair(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The progress of every loop over epochs, batches, classes or steps reaches its total."""
    alone = weights(made(name).repair(given())[0])
    noted: list[Step] = []
    usual = progress.Step

    def noting(label: str, total: int | None) -> Step:
        noted.append(usual(label, total))
        return noted[-1]

    monkeypatch.setattr(progress, "Step", noting)
    steps = Steps()
    with observe(steps):
        watched = weights(made(name).repair(given())[0])
    assert same(alone, watched)
    assert str(steps) == ""
    assert {"batch", "step"} & {step.label for step in noted}
    assert all(step.done == step.total for step in noted)


@pytest.mark.parametrize("name", REQUIRE_CLEAN)
def test_a_repair_that_requires_clean_images_is_refused_without_them(name: str) -> None:
    assert "clean images" in made(name).requires()
    with pytest.raises(ConfigError, match=r"set protocol\.clean_holdout"):
        made(name).repair(replace(given(), clean=None))


@pytest.mark.parametrize("name", [each for each in everything() if each not in REQUIRE_CLEAN])
def test_repairs_that_do_not_require_clean_images_do_not_use_them(name: str) -> None:
    assert "clean images" not in made(name).requires()
    repaired = made(name).repair(given())[0]
    assert same(weights(repaired), weights(made(name).repair(replace(given(), clean=None))[0]))


def test_a_repair_accepts_filter_options_and_ignores_them(name: str) -> None:
    """One sweep can therefore set them for filters and repairs alike."""
    options: dict[str, Any] = {"filter_scope": "all", "removal_budget": "10%", "center": False}
    changed = made(name, max_removed="50%", **options)
    assert not set(inspect.signature(type(changed)).parameters) & {"options", *OPTION_KEYS}
    assert same(weights(changed.repair(given())[0]), weights(made(name).repair(given())[0]))


def test_repairs_never_see_the_ground_truth(name: str) -> None:
    assert not isinstance(made(name), (Defense, OracleControl))
    assert not hasattr(made(name), "judge")


def test_a_repair_works_with_a_class_of_one_example(name: str) -> None:
    shown, labels = images(21, 1)
    labels[:] = labels % 2
    labels[0] = 2
    network, _ = made(name).repair(given_of(shown, labels))
    assert all(bool(torch.isfinite(value).all()) for value in weights(network).values())


def given_of(shown: Tensor, labels: Tensor) -> DefenseContext:
    return context(shown, labels, network=ATTACKED, clean=images(6, 2))


def test_nan_weights_are_never_passed_on_as_a_repaired_network(name: str) -> None:
    """A repair raises DivergedError or returns non-finite weights, which the pipeline refuses. Only
    abl_unlearning returns finite weights, because it trains a new network."""
    broken = hidden(12, 3, seed=5)
    with torch.no_grad():
        for value in broken.parameters():
            value.fill_(torch.nan)
    try:
        network, _ = made(name).repair(given(network=broken))
        finite = all(bool(torch.isfinite(value).all()) for value in weights(network).values())
    except DivergedError:
        finite = False
    assert finite == name.startswith("abl_unlearning")
