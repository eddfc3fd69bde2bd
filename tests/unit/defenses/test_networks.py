"""Filters that train networks: detection of a planted trigger, and the steps they share."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.abl import ABL, ascent, lowest
from backdoor_lab.defenses.asset import ASSET
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.confusion import ConfusionTraining
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.curves import auroc
from backdoor_lab.defenses.d_br import sensitivity, transformed
from backdoor_lab.defenses.networks import (
    ModelBasedFilter,
    apart,
    auto_count,
    losses_at,
    shuffled,
    train,
    unlikelihood,
)
from backdoor_lab.defenses.options import FilterOptions
from tests.helpers.contexts import context, hidden, linear, trained

POISON = 12
CLASSES = 3


def drawn(n: int, seed: int, signal: int = 60) -> tuple[Tensor, Tensor]:
    """Noise images of 12 pixels, with pixel y brighter by `signal` in images of class y."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    labels = torch.arange(n) % CLASSES
    images.view(n, -1)[torch.arange(n), labels] += signal
    return images, labels


def planted(seed: int = 3, signal: int = 60) -> DefenseContext:
    """A data set and a network trained on it. The last POISON images, of classes 1 and 2, have a
    white last pixel and label 0."""
    images, labels = drawn(120, 1, signal)
    marked, true = drawn(3 * POISON, 2)
    marked = marked[true != 0][:POISON]
    marked.view(POISON, -1)[:, -1] = 255
    images, labels = torch.cat([images, marked]), torch.cat([labels, torch.zeros(POISON).long()])
    bare = context(images, labels, clean=drawn(60, 4), seed=seed)
    attacked = trained(hidden(12, CLASSES), bare, 15)
    return context(images, labels, network=attacked, clean=drawn(60, 4, signal), seed=seed)


def found(defense: ModelBasedFilter, given: DefenseContext) -> float:
    """The AUROC of the scores for poison among the images labeled 0."""
    where = given.labels.eq(0).nonzero().flatten()
    scores = defense.score_images(given, where).scores
    return auroc(scores, where >= len(given.labels) - POISON)


# Anti-backdoor learning needs poison that is learned faster than the rest.
@pytest.mark.parametrize(
    ("defense", "signal"),
    [
        (ABL(epochs=4), 0),
        (
            ConfusionTraining(
                steps=60, shares=[0.5, 0.2], lr=0.05, weight=20, pretrain_epochs=[0, 1, 1]
            ),
            60,
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_planted_poison_scores_higher_than_the_rest_of_its_class(
    defense: ModelBasedFilter, signal: int
) -> None:
    given = planted(signal=signal)
    assert found(defense, given) > 0.95
    # The attacked network is not modified, and scores depend only on the seed.
    assert found(defense, given) == found(defense, given)


@pytest.mark.parametrize("defense", [ABL(epochs=1), ConfusionTraining(steps=3), ASSET()])
def test_different_seeds_give_different_scores(defense: ModelBasedFilter) -> None:
    where = torch.arange(20)
    first, other = (defense.score_images(planted(seed), where).scores for seed in (3, 4))
    assert not torch.equal(first, other)


def test_asset_gives_higher_scores_to_images_that_are_outliers_in_the_attacked_model() -> None:
    images, labels = drawn(100, 1, 100)
    images.view(100, -1)[94:, 3:], labels[94:] = 255, 0
    attacked = trained(hidden(12, CLASSES), context(images, labels), 15)
    given = context(images, labels, network=attacked, clean=drawn(60, 4, 100))
    where = labels.eq(0).nonzero().flatten()
    scores = ASSET(epochs=8, lr=0.03).score_images(given, where).scores
    assert auroc(scores, where >= 94) > 0.9


def test_the_asset_defense_works_if_there_is_a_single_outlier() -> None:
    """The step for outliers must also work for one image, although batch normalization refuses a
    single image whose features have no spatial positions."""
    images, labels = drawn(24, 3, 100)
    images.view(24, -1)[23:, 3:] = 255
    given = context(images, labels, clean=drawn(30, 4, 100))
    assert torch.isfinite(ASSET().score_images(given, torch.arange(24)).scores).all()


@pytest.mark.parametrize("key", ["steps", "weight", "lr", "pretrain_epochs"])
def test_an_option_of_confusion_training_has_one_value_or_one_per_round(key: str) -> None:
    assert [getattr(each, key.removeprefix("pretrain_")) for each in
            ConfusionTraining(**{key: 7}).rounds] == [7] * 6  # fmt: skip
    message = rf"`defense\.{key}` must be one value or a list of 6 values, one per round"
    with pytest.raises(ConfigError, match=message):
        ConfusionTraining(**{key: [7, 7]})


def test_abl_isolates_the_lowest_losses_of_the_whole_set() -> None:
    """The isolation ratio refers to the whole set. ``auto`` removes the isolated images of each
    class."""
    given = planted(signal=0)
    defense = ABL(
        FilterOptions(removal_budget="auto", filter_scope="suspicious"),
        epochs=4,
        isolation_ratio=POISON / 132,
    )
    features = Features(torch.zeros(132, 1), given.labels)
    verdict = defense(features, DefenderKnowledge(given.classes, None, None, 0, context=given))
    gone = (~verdict.keep).nonzero().flatten()
    assert 0 < len(gone) <= POISON
    assert verdict.notes["classes"][0] == "a"
    assert int((gone >= 120).sum()) >= 0.8 * len(gone)
    assert lowest(torch.tensor([3.0, 1, 2, 0]), 0.5).tolist() == [3, 1]
    assert lowest(torch.arange(9.0), 0.3).tolist() == [0, 1]
    assert len(lowest(torch.arange(9.0), 0.0)) == 2


def test_local_gradient_ascent_changes_sign_at_gamma() -> None:
    """The loss sign(L - γ) · L (equation 3) decreases L above γ and increases it below."""
    labels = torch.tensor([0, 1])
    for scale, sign in ((0.1, 1.0), (5.0, -1.0)):
        said = torch.tensor([[scale, 0.0], [0.0, scale]], requires_grad=True)
        plain = F.cross_entropy(said, labels)
        (expected,) = torch.autograd.grad(plain, said)
        (got,) = torch.autograd.grad(ascent(0.5)(said, labels), said)
        assert torch.allclose(got, sign * expected)


def test_unlikelihood_is_minus_log_of_one_minus_the_probability() -> None:
    said = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = -(math.log(1 / 4) + math.log(1 / 2)) / 2
    assert float(unlikelihood(said, torch.tensor([0, 1]))) == pytest.approx(expected)
    # For a confident wrong label cross-entropy is unbounded; the unlikelihood gradient vanishes.
    far = torch.tensor([[-90.0, 90.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(unlikelihood(far, torch.tensor([0])), far)
    assert float(gradient.abs().max()) < 1e-6


def test_the_loss_is_unlikelihood_on_the_first_images_plus_cross_entropy_on_the_rest() -> None:
    said, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    rest = F.cross_entropy(said[2:], labels[2:])
    assert torch.allclose(apart(2)(said, labels), unlikelihood(said[:2], labels[:2]) + rest)


def test_each_image_occurs_at_most_once_per_epoch() -> None:
    parts = list(shuffled(10, 4, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [4, 4]
    assert len(torch.cat(parts).unique()) == 8
    assert [len(part) for part in shuffled(3, 4, torch.Generator())] == [3]


def test_a_training_step_matches_sgd_computed_by_hand() -> None:
    """Momentum and weight decay are applied as in torch.optim.SGD, both with and without frozen
    batch statistics."""
    given = planted()
    network = linear(12, CLASSES)
    before = network.body.weight.detach().clone()
    images, labels = given.images(torch.arange(8), None), given.labels[:8]
    loss = F.cross_entropy(network(images), labels)
    (gradient,) = torch.autograd.grad(loss, [network.body.weight])
    train(network, [(images, labels)], (0.1, 0.9, 0.01))
    assert torch.allclose(network.body.weight, before - 0.1 * (gradient + 0.01 * before))
    normed = hidden(12, CLASSES)
    train(normed, [(images, labels)], (0.1, 0.9, 0.0))
    assert bool((normed.body[1].running_mean != 0).any())
    assert not normed.training


def test_a_non_finite_loss_raises_diverged_error() -> None:
    given = planted()
    images, labels = given.images(torch.arange(8), None), given.labels[:8]
    with pytest.raises(DivergedError, match="training loss of the defense is"):
        train(linear(12, CLASSES), [(images, labels)] * 9, (1e30, 0.0, 0.0), loss=cubed)


def cubed(said: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(said, labels) ** 3


@pytest.mark.parametrize("make", [lambda: ABL(epochs=1), lambda: ConfusionTraining(steps=1)])
def test_nan_from_a_network_raises_diverged_error(make: Callable[..., ModelBasedFilter]) -> None:
    broken = linear(12, CLASSES)
    with torch.no_grad():
        broken.body.weight.fill_(torch.nan)
    images, labels = drawn(30, 1)
    given = context(images, labels, network=broken, fresh=lambda _: broken, clean=drawn(9, 2))
    known = DefenderKnowledge(given.classes, 0, 2, 0, context=given)
    with pytest.raises(DivergedError):
        make()(Features(torch.zeros(30, 1), labels), known)


def test_the_error_for_missing_clean_images_names_the_key_to_set() -> None:
    images, labels = drawn(30, 1)
    with pytest.raises(ConfigError, match=r"set protocol\.clean_holdout"):
        ConfusionTraining(steps=1).score_images(context(images, labels), torch.arange(30))


def test_automatic_count_never_exceeds_half_a_class_and_is_zero_for_equal_scores() -> None:
    assert auto_count(torch.arange(9.0), 3) == 3
    assert auto_count(torch.arange(9.0), 9) == 4
    assert auto_count(torch.ones(9), 9) == 0
    assert auto_count(torch.ones(1), 1) == 0


def test_losses_equal_cross_entropy() -> None:
    given = planted()
    network, where = given.network(), torch.tensor([5, 2, 90])
    said = network(given.images(where, None)).detach().double()
    expected = -said.log_softmax(dim=1)[torch.arange(3), given.labels[where]]
    assert torch.allclose(losses_at(network, given, where), expected, atol=1e-6)


class Column(nn.Module):
    """A network whose features are the pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.last(images.flatten(1).float())
        return said


def test_sensitivity_matches_a_computation_by_hand() -> None:
    """Sensitivity is the mean of (f(x) - f(t(x)))², where f returns the pixels. A black image does
    not change."""
    images = torch.tensor([[0, 0, 0, 0], [5, 0, 0, 0]], dtype=torch.uint8).view(2, 1, 2, 2)
    given = context(images, torch.tensor([0, 1]))
    draw = given.generator("transformation")
    turns, shifts = torch.rand(2, generator=draw), torch.rand(2, 2, generator=draw)
    moved = transformed(images, 360 * turns - 180, 0.4 * shifts - 0.2)
    expected = (images - moved).square().mean(dim=(1, 2, 3))
    assert sensitivity(Column(), given).tolist() == expected.tolist()
    assert expected[0] == 0


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 2, 4, 6)])
def test_rotations_by_180_degrees_and_shifts_by_one_pixel_are_exact(shape: tuple[int, ...]) -> None:
    images = torch.arange(math.prod(shape), dtype=torch.uint8).view(shape)
    none, half = torch.zeros(1), torch.full((1,), 180.0)
    still, right = torch.zeros(1, 2), torch.tensor([[1 / shape[3], 0]])
    assert torch.equal(transformed(images, none, still), images.float())
    assert torch.equal(transformed(images, half, still), images.flip((2, 3)).float())
    moved = transformed(images, none, right)
    assert torch.equal(moved[..., 1:], images[..., :-1].float())
    assert not moved[..., 0].any()


def test_a_rotation_by_90_degrees_equals_rot90() -> None:
    images = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5)
    found = transformed(images, torch.full((1,), 90.0), torch.zeros(1, 2))
    assert torch.equal(found, images.rot90(-1, (2, 3)).float())
