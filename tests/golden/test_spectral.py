"""Spectral signatures, compared with a second implementation, manual calculations, and theory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.attacks.plan import PoisonSpec, count
from backdoor_lab.attacks.poison import classes_after, poison
from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.types import Features, FilterResult, LabeledImages
from backdoor_lab.defenses.base import (
    ClassScores,
    DefenderKnowledge,
    critical_z,
    modified_z,
    outliers,
    suspects_by_size,
    top_scoring,
)
from backdoor_lab.defenses.budget import RemovalBudget, otsu_count
from backdoor_lab.defenses.curves import auroc
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.spectral import SpectralSignatures, tail
from backdoor_lab.pipeline.record import detection
from tests.helpers.mutations import Mutation

SPECTRAL = "defenses/spectral.py"
MUTATIONS = [
    Mutation(
        SPECTRAL,
        "return along.square() @ weights",
        "return -along.square() @ weights",
        "the lowest scores are removed",
    ),
    Mutation(
        SPECTRAL,
        "if self.options.center:",
        "if not self.options.center:",
        "centering is reversed",
    ),
    Mutation(
        SPECTRAL, "centered = values.double() - mean", "centered = values.double()",
        "directions are computed without centering",
    ),
    Mutation(
        "defenses/options.py", 'removal_budget: str = "1.5eps"', 'removal_budget: str = "1eps"',
        "1 ε is removed instead of 1.5 ε",
    ),
    Mutation(
        "defenses/budget.py", 'round(float(found["eps"]) * epsilon)', "round(epsilon)",
        "the factor of ε is ignored",
    ),
    Mutation(
        "numerics/singular.py", "_right(rows, vectors[:, -1])", "_right(rows, vectors[:, 0])",
        "the direction has the least variance",
    ),
]  # fmt: skip
CIFAR = [5000] * 10
NAN = float("nan")
UNTOLD = DefenderKnowledge(("",), None, None, 0)


def by_numpy(values: np.ndarray, *, center: bool = True) -> np.ndarray:
    """The scores of Algorithm 1 by a full float64 SVD."""
    values = values.astype(np.float64)
    middle = values - values.mean(axis=0)
    direction = np.linalg.svd(middle, full_matrices=False)[2][0]
    return (middle @ direction) ** 2 if center else np.abs(values @ direction)


def spectral(*, center: bool = True) -> SpectralSignatures:
    return SpectralSignatures(FilterOptions(center=center))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(
    ("n", "d"), [(200, 16), (16, 200), (50, 50), (51, 50), (40, 1), (2, 3), (3, 1)]
)
def test_spectral_scores_agree_with_svd(n: int, d: int, center: bool) -> None:
    """For tall, wide and thin matrices, every score is within 1e-6 of NumPy's, relative to the
    largest."""
    rng = np.random.default_rng(n * 1000 + d)
    values = (rng.normal(size=(n, d)) * rng.uniform(0.5, 3, d) + 2).astype(np.float32)
    ours = spectral(center=center).score_class(torch.from_numpy(values), 0, UNTOLD).scores.numpy()
    theirs = by_numpy(values, center=center)
    assert np.abs(ours - theirs).max() <= 1e-6 * theirs.max()


def test_a_class_of_one_example_scores_zero() -> None:
    """Such a class has no direction. The score is 0, not NaN."""
    assert spectral().score_class(torch.ones(1, 4), 0, UNTOLD).scores.tolist() == [0.0]


def nearly_tied(n: int, d: int) -> Tensor:
    """A class whose two top singular values are 0.3 % apart: float64 (n, d)."""
    rng = np.random.default_rng(7)
    middle = rng.normal(size=(n, d))
    u, _, vt = np.linalg.svd(middle - middle.mean(axis=0), full_matrices=False)
    s = np.linspace(9, 1, len(u.T))
    s[0], s[1] = 10.03, 10.0
    # If n <= d, the last left singular vector is constant. With 0 the rows stay centered.
    s[-1] = 0 if n <= d else s[-1]
    return torch.from_numpy(u * s @ vt)


@pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 300), (1500, 128)])
def test_removed_examples_agree_with_svd_if_singular_values_are_nearly_equal(
    n: int, d: int
) -> None:
    """The two top singular values differ by 0.3 %."""
    values = nearly_tied(n, d).float()
    expected = by_numpy(values.numpy())
    scores = SpectralSignatures().score_class(values, 0, UNTOLD).scores
    assert np.abs(scores.numpy() - expected).max() <= 1e-6 * expected.max()
    for share in (0.05, 0.1, 0.3):
        k = round(share * n)
        assert sorted(top_scoring(scores, k, seed=0).tolist()) == sorted(
            np.argsort(expected)[-k:].tolist()
        )


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("n", "d"), [(60, 8), (8, 60), (5, 3)])
@pytest.mark.parametrize("rank", [1, 2, 4, 100])
def test_a_score_of_rank_k_sums_squared_projections_on_the_top_k_directions(
    n: int, d: int, rank: int, center: bool
) -> None:
    """The directions are the right singular vectors of the centered rows, from NumPy. With
    center=False, the rows are projected without centering, and the score is the square root of the
    sum. If k exceeds the rank of the class, all directions are used."""
    values = np.random.default_rng(n + rank).normal(size=(n, d)) * np.linspace(3, 1, d) + 1
    middle = values - values.mean(axis=0)
    _, s, vt = np.linalg.svd(middle, full_matrices=False)
    directions = vt[: min(rank, int((s > 1e-9).sum()))]
    squared = (((middle if center else values) @ directions.T) ** 2).sum(axis=1)
    scores = (
        SpectralSignatures(FilterOptions(center=center), rank=rank)
        .score_class(torch.from_numpy(values), 0, UNTOLD)
        .scores
    )
    assert scores.numpy() == pytest.approx(squared if center else np.sqrt(squared), rel=1e-8)


def one_class(values: Tensor, budget: int, *, center: bool = True, **options: Any) -> FilterResult:
    known = DefenderKnowledge(("only",), 0, epsilon=None, seed=0)
    made = SpectralSignatures(FilterOptions(removal_budget=str(budget), center=center), **options)
    return made(Features(values, torch.zeros(len(values)).long()), known)


def test_scores_and_removal_match_values_computed_by_hand() -> None:
    """The points are (1,1) (3,1) (5,1) (3,0) (3,2), and their mean is (3,1).

    Centered, they are (-2,0) (0,0) (2,0) (0,-1) (0,1). Their Gram matrix is diag(8, 2), so v is
    (1, 0) and tau is 4, 0, 4, 0, 0. Without centering, |x . v| is 1, 3, 5, 3, 3.
    """
    values = torch.tensor([[1.0, 1], [3, 1], [5, 1], [3, 0], [3, 2]])
    assert spectral().score_class(values, 0, UNTOLD).scores.tolist() == pytest.approx(
        [4, 0, 4, 0, 0]
    )
    assert spectral(center=False).score_class(values, 0, UNTOLD).scores.tolist() == pytest.approx(
        [1, 3, 5, 3, 3]
    )
    # The variance is 8 / 5. The distances from the median are 0 0 0 2 2; their 0.6827 quantile is
    # 1.4616.
    assert spectral().score_class(values, 0, UNTOLD).suspicion == pytest.approx(8 / 5 / 1.4616**2)
    known = DefenderKnowledge(("only",), 0, epsilon=1, seed=0)
    verdict = SpectralSignatures(FilterOptions(removal_budget="2eps"))(
        Features(values, torch.zeros(5).long()), known
    )
    assert verdict.keep.tolist() == [False, True, False, True, True]


def separation(share: float, sign: int, *, center: bool = True) -> float:
    """The AUROC of the filter's scores on planted poison."""
    values, is_poison = planted(share, sign)
    found = auroc(spectral(center=center).score_class(values, 0, UNTOLD).scores, is_poison)
    assert found is not None
    return found


def planted(share: float, sign: int, *, n: int = 2000, d: int = 32) -> tuple[Tensor, Tensor]:
    """A class around its mean, and poison shifted along (+1) or against (-1) that mean."""
    generator = torch.Generator().manual_seed(11)
    mean = torch.zeros(d)
    mean[0] = 10.0
    values = mean + torch.randn(n, d, generator=generator)
    is_poison = torch.arange(n) >= round(n * (1 - share))
    values[is_poison] += sign * 0.8 * mean
    return values, is_poison


@pytest.mark.parametrize("sign", [1, -1])
def test_centered_scores_find_poison_on_either_side_of_the_mean(sign: int) -> None:
    """Poison is shifted in the direction of the class mean or in the opposite direction."""
    assert separation(0.1, sign) >= 0.95


def test_poison_on_the_opposite_side_of_the_mean_is_ranked_last_without_centering() -> None:
    """Four published implementations of the method do not center scores."""
    assert separation(0.1, -1, center=False) < 0.1
    assert separation(0.1, 1, center=False) >= 0.95


@pytest.mark.parametrize("sign", [1, -1])
def test_scores_are_at_chance_level_if_half_of_the_class_is_poison(sign: int) -> None:
    """Poison appended at 10 % of the whole set is half of the target class. The halves are
    symmetric about the class mean, so that no centered squared score separates them."""
    after = after_poison(PoisonSpec(0, None, 0.1, ratio_of="all"))
    assert after[0] == 10_000
    assert 0.4 < separation(5000 / after[0], sign) < 0.6


def expected_auroc(share: float, shift: float) -> float:
    """The AUROC in closed form for normal images with variance 1 along the poison's shift, if the
    filter's direction is that shift. After centering, clean images lie around -share * shift and
    poison around (1 - share) * shift. The sum and the difference of a clean and a poisoned value
    are independent, and their signs determine which value is farther from 0."""

    def above(x: float) -> float:
        return math.erfc(-x / 2) / 2  # P(z > 0) for a normal z with mean x and variance 2

    apart, together = above(shift), above((1 - 2 * share) * shift)
    return apart * together + (1 - apart) * (1 - together)


def gaussians(share: float, shift: float, own: float) -> tuple[Tensor, Tensor]:
    """A class whose first axis has variance `own` and whose other axes have variance 1. Poison is
    shifted along the second axis."""
    generator = torch.Generator().manual_seed(5)
    n = 20_000
    values = torch.randn(n, 8, generator=generator)
    values[:, 0] *= own**0.5
    is_poison = torch.arange(n) < round(n * share)
    values[is_poison, 1] += shift
    return values, is_poison


@pytest.mark.parametrize("shift", [2.5, 5.0])
@pytest.mark.parametrize("share", [1 / 21, 1 / 11, 1 / 5, 1 / 3, 1 / 2, 2 / 3])
def test_auroc_of_spectral_scores_matches_its_closed_form(share: float, shift: float) -> None:
    """Poison appended to CIFAR-10 at 5, 10 and 25 % of a class is 1/21, 1/11 and 1/5 of the target
    class. At 5, 10 and 20 % of the whole set, it is 1/3, 1/2 and 2/3. AUROC decreases with this
    share: it is at chance level for 1/2 and below chance for 2/3."""
    values, is_poison = gaussians(share, shift, own=1.0)
    found = auroc(spectral().score_class(values, 0, UNTOLD).scores, is_poison)
    assert found == pytest.approx(expected_auroc(share, shift), abs=0.025)


def test_the_closed_form_of_the_auroc_has_the_right_limits() -> None:
    """The AUROC is 0.5 if half of the class is poison or if there is no shift, and 1 if the poison
    is rare and its shift is large."""
    assert expected_auroc(0.5, 8.0) == pytest.approx(0.5)
    assert expected_auroc(0.1, 0.0) == pytest.approx(0.5)
    assert expected_auroc(0.01, 20.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("own", "seen"), [(2.0, True), (3.0, True), (4.5, False), (9.0, False)])
def test_poison_is_found_only_if_its_variance_exceeds_that_of_the_class(
    own: float, seen: bool
) -> None:
    """The top direction is that of the shift if share * (1 - share) * shift² plus the variance
    along it (here 3.27 in total) exceeds the variance along any other axis."""
    share, shift = 0.1, 5.02
    values, is_poison = gaussians(share, shift, own)
    assert (share * (1 - share) * shift**2 + 1 > own) == seen
    found = auroc(spectral().score_class(values, 0, UNTOLD).scores, is_poison)
    assert found == pytest.approx(expected_auroc(share, shift) if seen else 0.5, abs=0.03)


@pytest.mark.parametrize(
    ("ratio", "poisoned", "in_class", "removed", "at_least_left"),
    [(0.1, 5000, 9500, 1425, 3575), (0.05, 2500, 7250, 1088, 1412), (0.01, 500, 5450, 818, 0)],
)
def test_removing_15_percent_of_a_class_leaves_poison_if_the_ratio_refers_to_the_whole_set(
    ratio: float, poisoned: int, in_class: int, removed: int, at_least_left: int
) -> None:
    """Poison replaces random images of all classes, so that a tenth of it comes from the target
    class itself. At ratios of 0.1 and 0.05, there is more poison than the filter removes. At 0.01,
    there is less."""
    plan = PoisonSpec(2, None, ratio, ratio_of="all", placement="replace", poison_from="all")
    labels = torch.arange(50_000) % 10
    train = LabeledImages(
        torch.zeros(50_000, 1, 1, 1, dtype=torch.uint8), labels, tuple("abcdefghij")
    )
    made = poison(train, Pixel(), plan, seed=0)
    assert count(plan, CIFAR) == int(made.is_poison.sum()) == poisoned
    # The draw is random, so that a tenth is expected within 4 standard deviations.
    assert int((made.training.labels == 2).sum()) == pytest.approx(in_class, abs=90)
    size = RemovalBudget("15%").size(in_class, None)
    assert size == removed
    assert max(int(made.is_poison.sum()) - size, 0) == at_least_left


def after_poison(plan: PoisonSpec) -> list[int]:
    """The class sizes of a data set like CIFAR-10 after an attack."""
    return classes_after(torch.arange(50_000) % 10, plan, classes=10, seed=0)


def test_a_budget_of_one_and_a_half_epsilon_that_would_empty_clean_classes_is_refused() -> None:
    """Removing 1.5 times 5,000 images from every class would leave no clean class. This is an error
    before training."""
    plan = PoisonSpec(2, None, 0.1, ratio_of="all")
    known = DefenderKnowledge(tuple("abcdefghij"), None, count(plan, CIFAR), 0)
    with pytest.raises(ConfigError, match="would remove 7500 of the 5000 examples of class a"):
        SpectralSignatures(FilterOptions(filter_scope="all")).check(known, after_poison(plan))
    SpectralSignatures(FilterOptions(filter_scope="all", max_removed="50%")).check(
        known, after_poison(plan)
    )
    SpectralSignatures(FilterOptions(filter_scope="target")).check(
        DefenderKnowledge(known.classes, 2, 5000, 0), after_poison(plan)
    )


def test_the_number_of_removed_examples_equals_the_budget_if_all_scores_are_equal() -> None:
    """The removed examples are drawn at random with the seed."""
    removed = top_scoring(torch.ones(1000, dtype=torch.float64), 100, seed=1)
    assert len(set(removed.tolist())) == 100
    assert 300 < removed.double().mean() < 700
    assert torch.equal(removed, top_scoring(torch.ones(1000, dtype=torch.float64), 100, seed=1))
    assert not torch.equal(removed, top_scoring(torch.ones(1000, dtype=torch.float64), 100, seed=2))


@pytest.mark.parametrize("bad", [NAN, float("inf")])
def test_non_finite_scores_raise_diverged_error(bad: float) -> None:
    """The error names the position of the first such score."""
    with pytest.raises(
        DivergedError, match="1 of 3 scores are not finite, the first at position 1"
    ):
        top_scoring(torch.tensor([1.0, bad, 0.0]).double(), 1, seed=0)


def test_removed_positions_refer_to_the_whole_set() -> None:
    """This also holds for a class whose examples come after those of another class."""
    labels = torch.tensor([0] * 30 + [1] * 30)
    values = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    values[[41, 57]] += 30.0
    known = DefenderKnowledge(("a", "b"), 1, epsilon=1, seed=0)
    verdict = SpectralSignatures(FilterOptions(removal_budget="2eps"))(
        Features(values, labels), known
    )
    assert (~verdict.keep).nonzero().flatten().tolist() == [41, 57]


@pytest.mark.parametrize("high", [1, 5, 40, 50])
def test_automatic_budget_is_the_size_of_the_smaller_group(high: int) -> None:
    """The scores have two clearly separated groups."""
    generator = torch.Generator().manual_seed(high)
    low = torch.rand(100 - high, dtype=torch.float64, generator=generator)
    top = 20 + torch.rand(high, dtype=torch.float64, generator=generator)
    assert otsu_count(torch.cat([low, top])) == high


def test_automatic_budget_is_zero_for_equal_scores_and_at_most_half_of_the_class() -> None:
    assert [otsu_count(torch.full((n,), 3.0).double()) for n in (0, 1, 2, 9)] == [0, 0, 0, 0]
    assert otsu_count(torch.tensor([0.0, 9, 9, 9, 9]).double()) <= 2


@pytest.mark.parametrize("text", ["1.5", "eps", "-5", "15 %", "p101", "101%", "", "nan", "1e3"])
def test_a_removal_budget_of_an_unknown_form_is_refused(text: str) -> None:
    """The five known forms are 1.5eps, 15%, p85, 100 and auto. max_removed is checked in the same
    way."""
    with pytest.raises(ConfigError, match=r"`defense\.removal_budget`"):
        SpectralSignatures(FilterOptions(removal_budget=text))
    with pytest.raises(ConfigError, match=r"`defense\.max_removed`"):
        SpectralSignatures(FilterOptions(max_removed=text))
    with pytest.raises(ConfigError, match="max_removed"):
        SpectralSignatures(FilterOptions(max_removed="auto"))


def test_budgets_are_rounded_half_up_and_max_removed_is_rounded_down() -> None:
    """A budget that is a multiple of ε needs a known ε."""
    sizes = [
        RemovalBudget(text, cap).size(70, 50)
        for text, cap in [("1.5eps", None), ("15%", None), ("p85", None), ("9", None),
                          ("1.5eps", "50%"), ("5%", "50%"), ("auto", None)]
    ]  # fmt: skip
    assert sizes == [75, 11, 11, 9, 35, 4, None]
    assert RemovalBudget("1.5eps", "50%").size(1101, 1000) == 550
    assert RemovalBudget("50%").size(1101, None) == 551
    with pytest.raises(ConfigError, match="a multiple of ε"):
        RemovalBudget("1.5eps").size(70, None)


@pytest.mark.parametrize("percentile", ["0", "50", "75", "85", "87.5", "100"])
def test_percentile_budgets_agree_with_numpy(percentile: str) -> None:
    """p85 removes as many examples as ``scores > np.percentile(scores, 85)`` selects in the
    published code."""
    draw = np.random.default_rng(5)
    for n in [*range(1, 130), 5003]:
        scores = draw.normal(size=n)
        theirs = int((scores > np.percentile(scores, float(percentile))).sum())
        assert RemovalBudget(f"p{percentile}").size(n, None) == theirs, n


def test_modified_z_scores_above_three_and_a_half_are_outliers() -> None:
    """Only values above the median can be outliers. With median 10 and MAD 1, the value 20 has z =
    6.745."""
    values = {0: 9.0, 1: 10.0, 2: 11.0, 3: 20.0, 4: 10.0, 5: 9.0, 6: 11.0, 7: 0.0}
    assert outliers(values) == [3]
    assert outliers(dict.fromkeys(range(5), 2.0)) == []
    assert outliers({0: 1.0, 1: 100.0}) == []


@pytest.mark.parametrize("k", [3, 6, 10, 100])
def test_the_critical_z_score_is_exceeded_with_the_stated_probability(k: int) -> None:
    """The largest of k normal values exceeds this threshold in about 1 % of draws, and the usual
    threshold of 3.5 in 5 to 15 %."""
    draws = np.random.default_rng(k).normal(size=(20_000, k))
    largest = modified_z(torch.from_numpy(draws)).amax(dim=1)
    assert float((largest > critical_z(k, 0.01)).double().mean()) == pytest.approx(0.01, rel=0.3)
    assert float((largest > 3.5).double().mean()) > 0.04
    assert critical_z(2, 0.01) == float("inf")


def clean_and_poisoned(seed: int, *, heavy: bool, poisoned: int = 0) -> list[int]:
    """The suspicious classes among ten whose variances differ in size and between axes. `poisoned`
    examples of class 3 are shifted by six standard deviations along one axis."""
    generator = torch.Generator().manual_seed(seed)
    looks = {}
    for label in range(10):
        axes = torch.linspace(1, 0.3, 8) * (0.4 * torch.randn(8, generator=generator)).exp()
        size = (0.4 * torch.randn(1, generator=generator)).exp()
        values = torch.randn(200, 8, generator=generator) * axes * size
        if heavy:
            values *= (0.3 * torch.randn(200, 1, generator=generator)).exp()
        if label == 3:
            values[:poisoned, 2] += 6 * axes.max() * size
        looks[label] = spectral().score_class(values.double(), label, KNOWN)
    return spectral().suspicious_classes(looks)


KNOWN = DefenderKnowledge(tuple("abcdefghij"), None, None, seed=0)


@pytest.mark.parametrize("heavy", [False, True])
def test_a_clean_class_is_rarely_flagged_if_only_suspicious_classes_are_filtered(
    heavy: bool,
) -> None:
    """At most 4 % of 150 clean sets of ten classes have a flagged class. The rule aims at 1 %; over
    1,000 sets, 0.8 % were measured for normal features and 1.8 % for heavy tails. If a tenth of a
    class is distant poison, the class is found in most sets."""
    accused = [clean_and_poisoned(seed, heavy=heavy) for seed in range(150)]
    assert sum(map(bool, accused)) / 150 <= 0.04
    found = [clean_and_poisoned(seed, heavy=heavy, poisoned=20) for seed in range(40)]
    assert sum(3 in each for each in found) / 40 >= 0.6
    assert sum(bool({*each} - {3}) for each in found) <= 3


def test_a_threshold_on_the_plain_variance_would_flag_many_clean_sets() -> None:
    """A rule that flags variances with a modified z-score above 3.5 flags a class in over 40 % of
    clean sets, because the variances of clean classes differ. The actual rule does so in at most 3
    %."""
    rng = np.random.default_rng(0)
    sets = [dict(enumerate(np.exp(rng.normal(size=10)))) for _ in range(300)]
    assert sum(bool(outliers(values)) for values in sets) / 300 > 0.4
    by_rule = [{y: ClassScores(torch.zeros(1), v) for y, v in values.items()} for values in sets]
    assert sum(bool(suspects_by_size(looks)) for looks in by_rule) / 300 <= 0.03


def test_tail_weight_is_1_for_normal_samples_and_large_for_outliers() -> None:
    """The tail weight does not depend on the scale, and is 1 for equal values."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=100_000))
    assert tail(x) == pytest.approx(1, abs=0.02)
    assert tail(5 * x) == pytest.approx(tail(x))
    mixed = torch.cat([x, x[:10_000] + 8])
    assert tail(mixed) > 4
    assert tail(torch.zeros(9, dtype=torch.float64)) == 1
    assert tail(torch.tensor([0.0] * 99 + [1]).double()) == pytest.approx(1e12)


@pytest.mark.parametrize("kinds", [2, 7, 1000])
def test_auroc_agrees_with_sklearn(kinds: int) -> None:
    """The scores have many ties, some, or none. Examples whose score is NaN do not count."""
    rng = np.random.default_rng(kinds)
    scores, positive = rng.integers(0, kinds, 400).astype(float), rng.random(400) < 0.2
    expected = roc_auc_score(positive, scores)
    both = torch.from_numpy(scores), torch.from_numpy(positive)
    assert auroc(*both) == pytest.approx(expected, abs=1e-12)
    unseen = torch.full((50,), NAN, dtype=torch.float64), torch.arange(50) % 2 == 0
    more = [torch.cat(pair) for pair in zip(both, unseen, strict=True)]
    keep = torch.ones(450, dtype=torch.bool)
    found = detection(FilterResult(more[0], keep), more[1])
    assert found is not None
    assert found["auroc"] == pytest.approx(expected, abs=1e-12)


def test_detection_metrics_match_values_computed_by_hand() -> None:
    """TPR and FPR are over the whole set, AUROC is over the scored examples, and undefined values
    are null."""
    is_poison = torch.tensor([False, False, True, True, False, False])
    scores = torch.tensor([0.1, 0.4, 0.4, 0.9, NAN, NAN]).double()
    keep = torch.tensor([True, False, True, False, True, True])
    found = detection(FilterResult(scores, keep), is_poison)
    assert found == {
        "auroc": 3.5 / 4, "tpr": 1 / 2, "fpr": 1 / 4,
        "average_precision": pytest.approx((1 + 2 / 3) / 2), "tpr_at_1": 1 / 2, "tpr_at_5": 1 / 2,
        "curve": {"removed": [0, 1, 2, 3, 4], "left": [2, 1, 0.5, 0, 0]},
    }  # fmt: skip
    assert detection(FilterResult(scores, keep), torch.zeros(6, dtype=torch.bool)) is None
    unscored = detection(FilterResult(torch.full((6,), NAN).double(), keep), is_poison)
    assert unscored is not None
    assert [unscored[k] for k in ("auroc", "average_precision", "tpr_at_1")] == [None] * 3
    assert [unscored[k] for k in ("tpr", "fpr")] == [1 / 2, 1 / 4]
    assert unscored["curve"] == {"removed": [0], "left": [2]}
    everywhere = detection(FilterResult(scores, keep), torch.ones(6, dtype=torch.bool))
    assert everywhere is not None
    assert [everywhere[k] for k in ("auroc", "tpr", "fpr")] == [None, 2 / 6, None]
