"""The contract of every defense: each test runs on every YAML in conf/defense."""

from __future__ import annotations

import functools
import inspect
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from backdoor_lab.check_plugin import defenses as checks
from backdoor_lab.check_plugin.examples import EPSILON, clean, judged, known, planted
from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.progress import Step, Steps, observe
from backdoor_lab.core.types import Features, FilterResult
from backdoor_lab.defenses.base import DefenderKnowledge, Defense, OracleControl, SampleFilter
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import ModelBasedFilter, ModelRepair
from backdoor_lab.defenses.options import OPTION_KEYS, FilterOptions
from backdoor_lab.defenses.random import Random
from backdoor_lab.defenses.strip import STRIP
from backdoor_lab.pipeline.parts import defense_of

ROOT = Path(__file__).resolve().parents[2]
ALL = sorted(path.stem for path in (ROOT / "conf/defense").glob("*.yaml"))
# Enough training steps and epochs to check the contract.
BRIEF = {"steps": 4, "epochs": 1, "pretrain_epochs": 1}


KNOWN = known()


def config(name: str, **changes: Any) -> dict[str, Any]:
    """Compose the options of a YAML with protocol=group13. `changes` act like overrides."""
    whole = OmegaConf.create(
        {
            "source": None,
            "protocol": OmegaConf.load(ROOT / "conf/protocol/group13.yaml"),
            "defense": OmegaConf.merge(
                OmegaConf.load(ROOT / "conf/config.yaml").defense,
                OmegaConf.load(ROOT / f"conf/defense/{name}.yaml"),
            ),
        }
    )
    brief = {key: value for key, value in BRIEF.items() if key in whole.defense}
    for key, value in (brief | changes).items():
        OmegaConf.update(whole, f"defense.{key}", value)
    found: Any = OmegaConf.to_container(whole.defense, resolve=True)
    return found


def made(name: str, **changes: Any) -> Any:
    return defense_of({"defense": config(name, **changes), "protocol": asdict(FilterOptions())})


# Model repairs are tested in tests/contract/test_repairs.py.
NAMES = [name for name in ALL if not isinstance(made(name), ModelRepair)]


# The number of images that a control removes, independent of features and budget.
CONTROLS = {"none": 0, "oracle": EPSILON, "clean_data": EPSILON}
LOOKING = [name for name in NAMES if name not in CONTROLS]
FILTERS = [name for name in LOOKING if name != "random"]
ORACLES = [name for name in NAMES if isinstance(made(name), OracleControl)]
BLIND = [name for name in NAMES if name not in ORACLES]


def trains(name: str) -> bool:
    """Whether a filter trains a network. The batches of such a filter depend on the positions of
    examples."""
    return isinstance(made(name), ModelBasedFilter) and not isinstance(made(name), STRIP)


def planted_with(bad: float) -> Features:
    """The planted features with a non-finite value in two examples."""
    features = planted()
    features.values[30:32, 1] = bad
    return features


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_parametrized_lists_contain_every_kind_of_control_and_filter() -> None:
    assert {"none", "oracle", "random", "spectral"} <= set(NAMES)
    assert len(FILTERS) >= 12
    assert all(isinstance(made(name), SampleFilter) for name in FILTERS)
    assert not any(isinstance(made(name), SampleFilter) for name in [*CONTROLS, "random"])


@pytest.mark.parametrize("classes", ["target", "all"])
def test_a_filter_result_has_a_score_and_a_decision_for_every_example(
    name: str, classes: str
) -> None:
    """The result has float64 scores and a boolean keep mask, both of shape (n,), and notes that can
    be written to a record."""
    checks.has_scores_and_decisions(functools.partial(made, name), classes)


def test_a_defense_is_deterministic_and_does_not_modify_the_features(name: str) -> None:
    checks.is_deterministic(functools.partial(made, name))


def test_a_defense_does_not_depend_on_the_names_of_the_classes(name: str) -> None:
    checks.ignores_class_names(functools.partial(made, name))


class Noted(list[Step]):
    """A list of the running steps. `all` keeps every step that was ever started."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Step] = []

    def append(self, step: Step) -> None:
        super().append(step)
        self.all.append(step)


def observed(name: str) -> tuple[FilterResult, Noted]:
    """The result on all classes, and the progress steps that were reported meanwhile."""
    steps, noted = Steps(), Noted()
    steps.running = noted
    with observe(steps):
        return judged(made(name, filter_scope="all"), planted()), noted


def test_reporting_progress_does_not_change_the_result(name: str) -> None:
    unobserved = judged(made(name, filter_scope="all"), planted())
    verdict, noted = observed(name)
    assert torch.equal(verdict.keep, unobserved.keep)
    assert torch.equal(verdict.scores.nan_to_num(-1), unobserved.scores.nan_to_num(-1))
    assert not noted
    assert all(step.total is not None and step.done <= step.total for step in noted.all)


@pytest.mark.parametrize("name", LOOKING)
def test_reported_progress_reaches_the_total_of_every_loop(name: str) -> None:
    _, noted = observed(name)
    labels = {step.label for step in noted.all if step.done == step.total}
    trains = isinstance(made(name), ModelBasedFilter)
    assert labels & ({"batch", "epoch", "group of images"} if trains else {"class"})


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_that_ignores_the_features_reports_no_progress(name: str) -> None:
    _, noted = observed(name)
    assert noted.all == []


@pytest.mark.parametrize("name", [each for each in FILTERS if not trains(each)])
def test_shuffling_the_examples_shuffles_the_scores_in_the_same_way(name: str) -> None:
    """If no scores are tied, the same examples are removed, too."""
    defense, features = made(name), planted()
    order = torch.randperm(len(features.labels), generator=torch.Generator().manual_seed(3))
    shuffled = judged(defense, Features(features.values[order], features.labels[order]))
    plain = judged(defense, features)
    assert torch.allclose(shuffled.scores, plain.scores[order], rtol=1e-9, equal_nan=True)
    for label in range(3):
        of_class = features.labels[order] == label
        scores = plain.scores[order][of_class].nan_to_num(-1)
        kept, before = shuffled.keep[of_class], plain.keep[order][of_class]
        # Ties are broken at random by position, so only the scores of kept examples must agree.
        assert torch.equal(scores[kept].sort().values, scores[before].sort().values)
        if len(scores.unique()) == len(scores):
            assert torch.equal(kept, before)


def test_only_examined_classes_are_scored_and_lose_examples(name: str) -> None:
    """With filter_scope=target nothing outside the target class is removed."""
    checks.scores_only_the_examined_classes(functools.partial(made, name))


@pytest.mark.parametrize(
    ("budget", "removed"), [("1.5eps", 9), ("15%", 4), ("p85", 4), ("7", 7), ("0", 0)]
)
def test_filters_remove_exactly_the_budget(name: str, budget: str, removed: int) -> None:
    """The class has 24 examples. A filter and its random control remove exactly the budget, and the
    other controls ignore it."""
    defense, features = made(name, removal_budget=budget, filter_scope="target"), planted()
    assert torch.bincount(features.labels).tolist() == [18, 24, 18]
    gone = int((~judged(defense, features).keep).sum())
    assert gone == CONTROLS.get(name, removed)


@pytest.mark.parametrize(("budget", "removed"), [("1.5eps", 9), ("auto", 0)])
def test_no_more_than_the_budget_is_removed_if_all_features_are_equal(
    name: str, budget: str, removed: int
) -> None:
    """Scores are not NaN, and some examples of the class remain."""
    features = Features(torch.full((60, 4), 2.5), torch.arange(60) % 3)
    defense = made(name, removal_budget=budget, filter_scope="target")
    verdict = judged(defense, features, replace(KNOWN, clean=clean(d=4)))
    assert int((~verdict.keep).sum()) == CONTROLS.get(name, removed)


def verdict_on_duplicates(name: str) -> FilterResult:
    half = planted()
    twice = Features(half.values.repeat(2, 1), half.labels.repeat(2))
    return judged(made(name, filter_scope="target", removal_budget="1.5eps"), twice)


@pytest.mark.parametrize("name", FILTERS)
def test_duplicate_rows_get_equal_scores(name: str) -> None:
    first, second = verdict_on_duplicates(name).scores.chunk(2)
    assert torch.isfinite(first).sum() == 24
    assert torch.allclose(first, second, rtol=1e-9, equal_nan=True)


def test_duplicate_rows_do_not_change_the_number_of_removed_examples(name: str) -> None:
    assert int((~verdict_on_duplicates(name).keep).sum()) == CONTROLS.get(name, 9)


def test_float32_and_float64_give_the_same_result(name: str) -> None:
    features = planted()
    single = judged(made(name), features)
    double = judged(made(name), Features(features.values.double(), features.labels))
    assert torch.equal(single.keep, double.keep)
    assert torch.allclose(single.scores, double.scores, equal_nan=True)


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("size", [0, 1, 2])
@pytest.mark.parametrize("classes", ["target", "all"])
def test_a_relative_budget_removes_nothing_from_classes_of_at_most_two_examples(
    name: str, size: int, classes: str
) -> None:
    labels = torch.cat([torch.zeros(20), torch.ones(size), torch.full((20,), 2)]).long()
    values = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(1))
    defense = made(name, filter_scope=classes, removal_budget="10%")
    verdict = judged(defense, Features(values, labels), replace(KNOWN, clean=clean(d=3)))
    assert verdict.keep[labels == 1].all()
    assert int((~verdict.keep).sum()) == (4 if classes == "all" and name in LOOKING else 0)


@pytest.mark.parametrize("name", LOOKING)
@pytest.mark.parametrize("classes", ["target", "all"])
def test_a_budget_that_removes_a_whole_class_is_refused(name: str, classes: str) -> None:
    """The error shows the arithmetic, both when filtering and in the check before training."""
    defense, features = made(name, filter_scope=classes, removal_budget="24"), planted()
    with pytest.raises(ConfigError, match=r"would remove 24 of the (18|24) examples of class"):
        judged(defense, features)
    with pytest.raises(ConfigError, match="nothing would be left"):
        defense.check(KNOWN, [18, 24, 18])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("budget", ["1.5eps", "auto"])
@pytest.mark.parametrize("name", LOOKING)
def test_non_finite_features_raise_diverged_error(name: str, bad: float, budget: str) -> None:
    with pytest.raises(DivergedError, match="not finite"):
        judged(made(name, removal_budget=budget), planted_with(bad))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", CONTROLS)
def test_controls_ignore_non_finite_features(name: str, bad: float) -> None:
    assert int((~judged(made(name), planted_with(bad)).keep).sum()) == CONTROLS[name]


@pytest.mark.parametrize("name", BLIND)
def test_defenses_other_than_the_oracles_cannot_see_the_ground_truth(name: str) -> None:
    defense = made(name)
    assert isinstance(defense, Defense)
    assert list(inspect.signature(defense.__call__).parameters) == ["features", "known"]
    assert not hasattr(defense, "judge")


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle_sees_only_the_ground_truth(name: str) -> None:
    oracle = made(name)
    assert list(inspect.signature(oracle.judge).parameters) == ["is_poison"]
    assert not callable(oracle)
    assert not isinstance(oracle, Defense)


def test_only_the_two_oracle_controls_see_the_ground_truth() -> None:
    assert ORACLES == ["clean_data", "oracle"]


def test_no_input_of_a_defense_has_a_field_for_the_poison_mask() -> None:
    seen = [*Features.__dataclass_fields__, *DefenderKnowledge.__dataclass_fields__]
    known = ["classes", "clean", "context", "epsilon", "labels", "seed", "target", "values"]
    assert sorted(seen) == known
    assert sorted(DefenseContext.__dataclass_fields__) == [
        "augment", "classes", "clean", "device", "fresh", "hyperparameters", "images", "labels",
        "network", "seed",
    ]  # fmt: skip


def test_every_defense_accepts_the_filter_options(name: str) -> None:
    """One sweep can therefore set them for a filter and its controls."""
    asked: dict[str, Any] = {
        "filter_scope": "all", "removal_budget": "10%", "max_removed": "50%", "center": False,
    }  # fmt: skip
    changed = made(name, **asked)
    filtering = changed.like if isinstance(changed, Random) else changed
    assert getattr(filtering, "options", None) == (
        None if name in CONTROLS else FilterOptions(**asked)
    )


def test_only_filters_have_the_options_parameter(name: str) -> None:
    """Filters take all options as one object, and no constructor has an argument for a single
    option."""
    known = set(inspect.signature(type(made(name))).parameters)
    assert not known & set(OPTION_KEYS)
    assert ("options" in known) == isinstance(made(name), SampleFilter), (
        "the constructor of a filter, and only of a filter, has a parameter `options`: write"
        " `def __init__(self, options: FilterOptions = DEFAULTS, *, power: float = 1.0)`, and in it"
        " `super().__init__(options)` (both names are in backdoor_lab.defenses.options)"
    )


@pytest.mark.parametrize(
    "wrong",
    [{"filter_scope": "some"}, {"removal_budget": "lots"}, {"max_removed": "auto"}, {"center": 1}],
    ids=str,
)
def test_a_bad_filter_option_is_refused_by_every_defense(name: str, wrong: dict[str, Any]) -> None:
    (key,) = wrong
    with pytest.raises(ConfigError, match=rf"`defense\.{key}`"):
        made(name, **wrong)


def test_the_random_control_removes_as_many_images_per_class_as_the_filter() -> None:
    """The control and the filter remove different examples. Those of the control depend on the
    seed."""
    features = planted()
    options = {"filter_scope": "all", "removal_budget": "20%"}
    by_filter = judged(made("spectral", **options), features)
    first = judged(made("random", **options), features)
    other = judged(made("random", **options), features, replace(KNOWN, seed=6))
    for label in range(3):
        of_class = features.labels == label
        gone = [int((~each.keep[of_class]).sum()) for each in (by_filter, first, other)]
        assert gone[0] == gone[1] == gone[2] > 0
    assert not torch.equal(first.keep, by_filter.keep)
    assert not torch.equal(first.keep, other.keep)


def test_the_poisoned_class_is_found_with_filter_scope_set_to_suspicious() -> None:
    """The filter knows neither the target nor ε. It still obeys max_removed."""
    labels = torch.arange(300) % 6
    values = torch.randn(300, 4, generator=torch.Generator().manual_seed(2))
    poison = (labels == 4).nonzero().flatten()[:10]
    values[poison, 0] += 9.0
    known = DefenderKnowledge(tuple("abcdef"), target=None, epsilon=None, seed=0)
    blind = made("spectral", filter_scope="suspicious", removal_budget="auto")
    assert isinstance(blind, Defense)
    assert blind.requires() == []
    verdict = judged(blind, Features(values, labels), known)
    assert verdict.notes["classes"] == ["e"]
    assert (~verdict.keep).nonzero().flatten().tolist() == sorted(poison.tolist())
    capped = made("spectral", filter_scope="suspicious", removal_budget="auto", max_removed="4")
    assert int((~judged(capped, Features(values, labels), known).keep).sum()) == 4
