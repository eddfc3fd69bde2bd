"""Checks of a defense on small features. Each takes a function that makes the defense with the
given filter options, such as ``filter_scope="all"``."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

from backdoor_lab.check_plugin.examples import (
    CLASSES,
    EPSILON,
    clean,
    context_of,
    judged,
    known,
    planted,
)
from backdoor_lab.check_plugin.finding import Checks, require
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import DivergedError
from backdoor_lab.core.lazy import nn, torch
from backdoor_lab.core.types import Features, FilterResult
from backdoor_lab.defenses.base import Defense, OracleControl, SampleFilter
from backdoor_lab.defenses.networks import ModelBasedFilter, ModelRepair

Make = Callable[..., Any]


def same(one: FilterResult, other: FilterResult) -> bool:
    """Whether two results have the same scores and remove the same examples."""
    scores = one.scores.nan_to_num(-1), other.scores.nan_to_num(-1)
    return torch.equal(one.keep, other.keep) and torch.equal(*scores)


def has_scores_and_decisions(make: Make, scope: str = "all") -> None:
    """Checks that the result has float64 scores and a boolean keep mask, both of shape (n,), no
    infinite score, and notes that can be written to a record."""
    features = planted()
    result, n = judged(make(filter_scope=scope), features), len(features.labels)
    shapes = tuple(result.scores.shape), tuple(result.keep.shape)
    require(shapes == ((n,), (n,)), f"scores and keep have the shapes {shapes}, not ({n},)")
    require(result.scores.dtype == torch.float64, f"scores are {result.scores.dtype}")
    require(result.keep.dtype == torch.bool, f"keep is {result.keep.dtype}")
    require(not torch.isinf(result.scores).any(), "a score is infinite")
    left = {*features.labels[result.keep].tolist()}
    require(left == {0, 1, 2}, f"only the classes {left} are left")
    canonical(result.notes)


def scores_only_the_examined_classes(make: Make) -> None:
    """Checks that scores are finite for the target class and NaN elsewhere, and that nothing else
    is removed."""
    features = planted()
    result = judged(make(filter_scope="target"), features)
    outside = features.labels != known().target
    require(result.keep[outside].all(), "it removes images of classes that are not examined")
    if isinstance(make(), SampleFilter):
        require(torch.isfinite(result.scores[~outside]).all(), "a score is not finite")
        require(torch.isnan(result.scores[outside]).all(), "it scores other classes")


def is_deterministic(make: Make) -> None:
    """Checks that the result does not depend on torch's global generator, and that the features are
    not modified."""
    features = planted()
    before = features.values.clone()
    torch.manual_seed(1)
    first = judged(make(), features)
    torch.manual_seed(2)
    require(same(first, judged(make(), features)), "two runs on the same features differ")
    require(torch.equal(features.values, before), "it modified the features")


def ignores_class_names(make: Make) -> None:
    """Checks that other names of the classes give the same result."""
    renamed = replace(known(), classes=tuple(f"class {name}" for name in reversed(CLASSES)))
    first, other = judged(make(), planted()), judged(make(), planted(), renamed)
    require(same(first, other), "the result depends on the names of the classes")


def sees_no_ground_truth(make: Make) -> None:
    """Checks that the defense is given no poison mask. Only this package's oracles are."""
    made = make()
    require(not isinstance(made, OracleControl), "an oracle sees which images are poisoned")


def removes_the_budget(make: Make) -> None:
    """Checks that ``removal_budget`` is followed. The target class has 24 examples."""
    for budget, removed in (("1.5eps", 9), ("15%", 4), ("p85", 4), ("7", 7), ("0", 0)):
        made = make(removal_budget=budget, filter_scope="target")
        gone = int((~judged(made, planted()).keep).sum())
        require(gone == removed, f"removal_budget={budget} removes {gone} images, not {removed}")


def handles_small_classes(make: Make) -> None:
    """Checks classes of zero, one and two images, of which a budget of 10 % removes none."""
    for size in (0, 1, 2):
        labels = torch.cat([torch.zeros(20), torch.ones(size), torch.full((20,), 2)]).long()
        values = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(1))
        made = make(filter_scope="all", removal_budget="10%")
        result = judged(made, Features(values, labels), replace(known(), clean=clean(d=3)))
        kept = bool(result.keep[labels == 1].all())
        require(kept, f"removal_budget=10% removes images of a class of {size}")


def handles_equal_features(make: Make) -> None:
    """Checks that equal features give no NaN scores, and that some images remain."""
    features = Features(torch.full((60, 4), 2.5), torch.arange(60) % 3)
    knowledge = replace(known(), clean=clean(d=4))
    made = make(removal_budget="1.5eps", filter_scope="target")
    gone = int((~judged(made, features, knowledge).keep).sum())
    require(gone <= 1.5 * EPSILON, f"it removes {gone} images although all features are equal")


def refuses_features_that_are_not_finite(make: Make) -> None:
    """Checks that NaN and infinite features raise a DivergedError."""
    for bad in (torch.nan, torch.inf):
        features = planted()
        features.values[30:32, 1] = bad
        try:
            judged(make(), features)
        except DivergedError:
            continue
        require(False, f"features of {bad} raise no DivergedError")


def ignores_the_order(make: Make) -> None:
    """Checks that shuffling the examples shuffles the scores, unless a network is trained."""
    made, features = make(), planted()
    if isinstance(made, ModelBasedFilter):
        return
    order = torch.randperm(len(features.labels), generator=torch.Generator().manual_seed(3))
    shuffled = judged(made, Features(features.values[order], features.labels[order]))
    scores = judged(made, features).scores[order]
    alike = torch.allclose(shuffled.scores, scores, rtol=1e-9, equal_nan=True)
    require(alike, "the scores depend on the order of the images")


def repairs_a_network(make: Make) -> None:
    """Checks that a repair returns a network of the same architecture in eval mode and does not
    modify the attacked one, and that the result does not depend on torch's global generator."""
    found = []
    for seed in (1, 2):
        context = context_of(planted(), known())
        attacked = context.network()
        before = deepcopy(attacked.state_dict())
        torch.manual_seed(seed)
        network, notes = make().repair(replace(context, network=partial(_itself, attacked)))
        after = attacked.state_dict()
        unchanged = all(torch.equal(after[key], value) for key, value in before.items())
        require(unchanged, "it modified the attacked network: repair a copy")
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        expected = {key: value.shape for key, value in before.items()}
        require(shapes == expected, "the repaired network has another architecture")
        require(not network.training, "the repaired network is not in eval mode")
        canonical(notes)
        found.append(network.state_dict())
    equal = all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    require(equal, "two repairs of the same network differ")


def _itself(network: nn.Module) -> nn.Module:
    return network


def checks_of(made: Defense | OracleControl | ModelRepair) -> Checks:
    """Returns the checks of a defense: a repair, a filter, or a defense without options."""
    if isinstance(made, ModelRepair):
        return {"repairs a network": repairs_a_network}
    return FILTER if isinstance(made, SampleFilter) else ANY


ANY: Checks = {
    "has a score and a decision for every image": has_scores_and_decisions,
    "removes only images of examined classes": scores_only_the_examined_classes,
    "is deterministic": is_deterministic,
    "does not depend on class names": ignores_class_names,
    "sees no ground truth": sees_no_ground_truth,
}
FILTER: Checks = {
    **ANY,
    "removes as many images as the budget says": removes_the_budget,
    "works with classes of few images": handles_small_classes,
    "works if all features are equal": handles_equal_features,
    "refuses features that are not finite": refuses_features_that_are_not_finite,
    "does not depend on the order of the images": ignores_the_order,
}
