"""Confusion training, compared with NumPy code written from the authors' code: the loss, its
updates, the shift of labels, the kept images, pretraining and the final rule.

The final rule also agreed with the authors' function (`identify_poison_samples_simplified` of
confusion_training.py at f2f02c2), which was run by hand on random features, with an exact principal
component analysis in place of its randomized one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.defenses import confusion
from backdoor_lab.defenses.confusion import (
    ConfusionTraining,
    Round,
    class_weights,
    confuse,
    distilled,
    parts,
)
from backdoor_lab.defenses.likelihood_ratio import log_likelihood_ratio, suspects
from tests.helpers.contexts import context
from tests.helpers.mutations import Mutation
from tests.helpers.two_layers import Precise, TwoLayers, precise, softmax

FILE = "defenses/confusion.py"
RULE = "defenses/likelihood_ratio.py"
MUTATIONS = [
    Mutation(FILE, "MOMENTUM = 0.7", "MOMENTUM = 0.9", "the momentum is 0.9"),
    Mutation(FILE, "DECAY = 1e-4", "DECAY = 0.0", "no weight decay"),
    Mutation(FILE, "step % BATCH_FACTOR == 0", "step % BATCH_FACTOR == 1",
             "the two kinds of steps are swapped"),
    Mutation(FILE, "BATCH_FACTOR = 2", "BATCH_FACTOR = 1", "every step uses training images"),
    Mutation(FILE, "(predicted + 1 + step % (classes - 1))", "(predicted + 1)",
             "labels are always shifted by 1"),
    Mutation(FILE, "(predicted + 1 + step % (classes - 1))", "(predicted + 1 + step % classes)",
             "a shift can restore the predicted label"),
    Mutation(FILE, "(round_.weight - 1) *", "(1 - round_.weight) *",
             "the confusion term has the opposite sign"),
    Mutation(FILE, ".rsqrt()", ".sqrt()", "rare classes count less"),
    Mutation(FILE, "None if each.share is None else class_weights", "class_weights",
             "classes are weighted in the last round"),
    Mutation(FILE, "copy.deepcopy(base)", "base", "later rounds pretrain the confused model"),
    Mutation(FILE, "(clean.labels[theirs] + 1)", "(clean.labels[theirs] + 0)",
             "pretraining uses the true labels"),
    Mutation(FILE, "losses.sort(stable=True)", "losses.sort(descending=True, stable=True)",
             "the highest losses are kept"),
    Mutation(FILE, "if number == len(self.rounds) - 2", "if number == len(self.rounds) - 1",
             "the last floor is used in the wrong round"),
    Mutation(FILE, "PRETRAINING = (0.01, 0.9, DECAY)", "PRETRAINING = (0.1, 0.9, DECAY)",
             "the pretraining rate is 0.1"),
    Mutation(RULE, "LARGEST_RATIO if r == largest else RATIO",
             "RATIO if r == largest else LARGEST_RATIO", "the two bounds are swapped"),
    Mutation(RULE, "LARGEST_RATIO = 1.5", "LARGEST_RATIO = 2.0", "all classes have the same bound"),
    Mutation(RULE, "ADDED = 1e-3", "ADDED = 1.0", "covariances are too large"),
    Mutation(RULE, "ours.logpdf(points[own]) - others.logpdf(points[own])",
             "others.logpdf(points[own]) - ours.logpdf(points[own])",
             "the ratio has the opposite sign"),
    Mutation(RULE, "values - values.mean(dim=0)", "values",
             "directions are computed without centering"),
    Mutation(RULE, "float(gain.sum()) / len(own)", "float(gain.mean())",
             "the ratio is averaged over fitted images"),
]  # fmt: skip
CLASSES, PIXELS = 4, 12


class SGD:
    """SGD with momentum and weight decay: v = momentum v + g + decay w, w = w - lr v."""

    def __init__(self, lr: float, momentum: float) -> None:
        self.lr, self.momentum = lr, momentum
        self.v: list[np.ndarray] = []

    def step(self, values: list[np.ndarray], gradients: list[np.ndarray]) -> None:
        """Changes `values` in place."""
        self.v = self.v or [np.zeros_like(value) for value in values]
        for i, gradient in enumerate(gradients):
            self.v[i] = self.momentum * self.v[i] + gradient + 1e-4 * values[i]
            values[i] -= self.lr * self.v[i]


def shifts(count: int, classes: int) -> list[int]:
    """The amount by which labels are shifted in each step, with the authors' two counters."""
    found, rounder = [], 0
    for step in range(count):
        if (rounder + step) % classes == 0:
            rounder += 1
        found.append((rounder + step) % classes)
    return found


def slope_of(layers: TwoLayers, x: np.ndarray, labels: np.ndarray, by: np.ndarray) -> np.ndarray:
    """The gradient, with respect to the logits, of the mean cross-entropy with the weights `by`
    (n,)."""
    slope = softmax(layers.logits(x)) - np.eye(CLASSES)[labels]
    return np.asarray(slope * (by / by.sum())[:, None])


def confuse_by_numpy(
    layers: TwoLayers, round_: Round, clean: tuple[np.ndarray, np.ndarray],
    inspected: tuple[np.ndarray, np.ndarray], frequencies: np.ndarray,
) -> None:  # fmt: skip
    """Confusion training in which every step uses the same batch of clean images with predicted
    labels and the same batch of training images."""
    sgd = SGD(round_.lr, 0.7)
    for step, shift in enumerate(shifts(round_.steps, CLASSES)):
        x, wrong = clean[0], (clean[1] + shift) % CLASSES
        first = slope_of(layers, x, wrong, np.ones(len(x)))
        gradients = layers.back(x, first)[0]
        if step % 2 == 0:
            rest = slope_of(layers, *inspected, 1 / frequencies[inspected[1]])
            more = layers.back(inspected[0], rest)[0]
            lam = round_.weight
            gradients = [(a * (lam - 1) + b) / lam for a, b in zip(gradients, more, strict=True)]
        sgd.step(layers.values(), gradients)


def frequencies_of(labels: np.ndarray) -> np.ndarray:
    """The square root of 0.001 plus each class's frequency."""
    counts = np.array([(labels == y).sum() for y in range(CLASSES)])
    return np.asarray(np.sqrt(counts / len(labels) + 0.001))


def rows(images: Tensor) -> np.ndarray:
    return np.asarray(images.flatten(1).double().numpy() / 255)


def noise(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)


def close(network: Precise, layers: TwoLayers) -> None:
    for found, expected in zip(network.body.parameters(), layers.values(), strict=True):
        assert found.detach().numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_updates_follow_the_authors_code(steps: int) -> None:
    """Updates with both kinds of images alternate with updates on clean images alone. Labels are
    shifted by 1, 2, 3, 1, 2."""
    network = precise(PIXELS, CLASSES, 1)
    layers, round_ = TwoLayers.of(network), Round(0.5, steps, 5.0, 0.05, 0)
    labels = torch.tensor([0] * 9 + [1] * 4 + [2] * 2 + [3])
    predicted = torch.arange(10) % CLASSES
    given = context(noise(16, 2), labels)
    clean: Iterator[tuple[Tensor, Tensor]] = cycle([(noise(10, 3), predicted)])
    inspected: Iterator[tuple[Tensor, Tensor]] = cycle([(noise(16, 2), labels)])
    weights = class_weights(given, torch.arange(16))
    confuse(network, round_, clean, inspected, CLASSES, weights)
    confuse_by_numpy(
        layers, round_, (rows(noise(10, 3)), predicted.numpy()),
        (rows(noise(16, 2)), labels.numpy()), frequencies_of(labels.numpy()),
    )  # fmt: skip
    close(network, layers)
    assert not network.training


def test_labels_are_never_shifted_to_the_predicted_class() -> None:
    assert shifts(7, 4) == [1, 2, 3, 1, 2, 3, 1]
    assert shifts(3, 2) == [1, 1, 1]


def pretrain_by_numpy(layers: TwoLayers, x: np.ndarray, labels: np.ndarray) -> None:
    """Pretraining for one epoch that consists of one batch."""
    slope = slope_of(layers, x, labels, np.ones(len(x)))
    SGD(0.01, 0.9).step(layers.values(), layers.back(x, slope)[0])


def ratio_by_numpy(values: np.ndarray, fitted: np.ndarray) -> float:
    """The mean log-likelihood ratio of two models: separate normal distributions for fitted and
    other images, against the distribution of the other images for all. Computed on two principal
    components whose signs make their means positive."""
    n = len(values)
    if not 2 <= fitted.sum() <= n - 2:
        return 0.0
    right = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)[2][:2]
    x = values @ right.T
    x = x * np.sign(x.mean(axis=0))
    logs = []
    for group in (x[~fitted], x[fitted]):
        covariance = np.cov(group.T) + 0.001
        d = x - group.mean(axis=0)
        distance = np.einsum("ni,ij,nj->n", d, np.linalg.inv(covariance), d)
        logs.append(-np.log(2 * np.pi) - 0.5 * np.log(np.linalg.det(covariance)) - 0.5 * distance)
    return float(np.where(fitted, logs[1], logs[0]).sum() - logs[0].sum()) / n


def suspects_by_numpy(ratios: dict[int, float]) -> list[int]:
    """Classes whose log-likelihood ratio exceeds log 2, and the class with the largest one if it
    exceeds log 1.5."""
    largest = max(ratios.values())
    return [y for y, ratio in ratios.items()
            if ratio > np.log(2) or (ratio == largest and ratio > np.log(1.5))]  # fmt: skip


def test_two_rounds_follow_the_authors_code() -> None:
    """The first round trains a copy of the attacked model for one step and keeps the half of the
    set with the lowest loss. The second pretrains another copy on that half and on clean images
    labeled as the next class, and trains it for three steps. The final rule then flags images."""
    n, known = 60, 20
    images, labels = noise(n, 4), torch.arange(n) % CLASSES
    labels[:14] = 0
    attacked = precise(PIXELS, CLASSES, 5)
    clean_images, clean_labels = noise(known, 6), torch.arange(known) % CLASSES
    given = context(images, labels, network=attacked, clean=(clean_images, clean_labels))
    defense = ConfusionTraining(
        shares=[0.5], steps=[1, 3], weight=[20, 15], lr=[0.02, 0.05], pretrain_epochs=[0, 1],
        batch_size=80,
    )  # fmt: skip
    where = torch.arange(5, n)
    rating = defense.score_images(given, where)

    x, y, of_clean = rows(images), labels.numpy(), rows(clean_images)
    base = TwoLayers.of(attacked)
    predicted = base.logits(of_clean).argmax(axis=1)
    first = TwoLayers.of(attacked)
    confuse_by_numpy(first, defense.rounds[0], (of_clean, predicted), (x, y), frequencies_of(y))
    p = softmax(first.logits(x))[np.arange(n), y]
    kept = np.sort(np.argsort(-np.log(p), kind="stable")[: n // 2])
    pretrain_by_numpy(
        base, np.concatenate([x[kept], of_clean]),
        np.concatenate([y[kept], (clean_labels.numpy() + 1) % CLASSES]),
    )  # fmt: skip
    confuse_by_numpy(
        base, defense.rounds[1], (of_clean, predicted), (x[kept], y[kept]), np.ones(CLASSES)
    )
    z = base.logits(x)
    others = np.where(np.eye(CLASSES)[y] == 1, -np.inf, z).max(axis=1)
    assert rating.scores.numpy() == pytest.approx((z[np.arange(n), y] - others)[5:], abs=1e-8)
    fitted = z.argmax(axis=1) == y
    ratios = {c: ratio_by_numpy(base.features(x)[y == c], fitted[y == c]) for c in range(CLASSES)}
    assert rating.flagged is not None
    expected = fitted & np.isin(y, suspects_by_numpy(ratios))
    assert rating.flagged.tolist() == expected[5:].tolist()
    close(given.network(), TwoLayers.of(attacked))  # type: ignore[arg-type]


def test_a_new_model_is_pretrained_if_the_first_round_has_pretraining_epochs() -> None:
    images, labels = noise(20, 4), torch.arange(20) % CLASSES
    new, attacked = precise(PIXELS, CLASSES, 8), precise(PIXELS, CLASSES, 5)
    given = context(images, labels, network=attacked, fresh=lambda _: new,
                    clean=(noise(8, 6), labels[:8]))  # fmt: skip
    layers = TwoLayers.of(new)
    # The round of `shares` has one epoch of pretraining, and the last round has none.
    defense = ConfusionTraining(
        shares=[1.0], steps=1, weight=20, lr=0, pretrain_epochs=[1, 0], batch_size=40
    )
    defense.score_images(given, torch.arange(20))
    pretrain_by_numpy(layers, rows(images), labels.numpy())
    close(new, layers)


@pytest.mark.parametrize("floor", [50, 100])
def test_kept_images_have_the_lowest_losses_of_the_set_or_of_their_class(floor: int) -> None:
    """The images with the lowest losses of the set are kept. Further images of each class are added
    until a given share of the class is kept, as in the authors' code."""
    rng = np.random.default_rng(floor)
    labels = rng.integers(0, CLASSES, 900)
    losses = rng.gamma(2, 1, 900) + (labels == 2) * 20
    order = np.argsort(losses)
    head = list(order[: int(0.04 * 900)])
    for y in range(CLASSES):
        of_class = [i for i in order if labels[i] == y]
        had = sum(labels[i] == y for i in head)
        head += of_class[had : max(had, len(of_class) // floor)]
    found = distilled(torch.from_numpy(losses), torch.from_numpy(labels), 0.04, floor)
    assert found.tolist() == sorted(head)
    assert {2} & set(labels[found.numpy()])
    assert len(distilled(torch.rand(9), torch.zeros(9).long(), 0.01, floor)) == 1


def test_the_minimum_share_of_each_class_is_halved_in_the_round_before_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    floors: list[int] = []

    def noted(losses: Tensor, labels: Tensor, share: float, floor: int) -> Tensor:
        floors.append(floor)
        return distilled(losses, labels, share, floor)

    monkeypatch.setattr(confusion, "distilled", noted)
    images, labels = noise(20, 4), torch.arange(20) % CLASSES
    given = context(images, labels, network=precise(PIXELS, CLASSES, 5),
                    clean=(noise(8, 6), labels[:8]))  # fmt: skip
    ConfusionTraining(
        shares=[0.9, 0.8, 0.7], steps=1, weight=20, lr=0.01, pretrain_epochs=0
    ).score_images(given, torch.arange(20))
    assert floors == [50, 50, 100]


@pytest.mark.parametrize(
    ("apart", "expected"),
    [((0, 0), []), ((1.2, 0), [0]), ((1.2, 1.2), [1]), ((0.7, 3), [1]), ((4, 3), [0, 1])],
)
def test_the_final_rule_follows_the_authors_code(
    apart: tuple[float, float], expected: list[int]
) -> None:
    """About a quarter of each class is fitted. In up to two classes, the features of the fitted
    images are shifted."""
    rng = np.random.default_rng(3)
    labels = np.arange(800) % CLASSES
    fitted = rng.random(800) < 0.25
    values = rng.normal(size=(800, 6)) * [3, 2, 1, 1, 1, 1] + [9, 5, 0, 0, 0, 0]
    for y, shift in enumerate(apart):
        values[fitted & (labels == y), :2] += 3 * shift
    ratios = {}
    for y in range(CLASSES):
        own = labels == y
        ratios[y] = ratio_by_numpy(values[own], fitted[own])
        found = log_likelihood_ratio(torch.from_numpy(values[own]), torch.from_numpy(fitted[own]))
        assert found == pytest.approx(ratios[y], abs=1e-9)
    assert suspects_by_numpy(ratios) == expected
    said = suspects(torch.from_numpy(values), torch.from_numpy(fitted), torch.from_numpy(labels))
    assert said.tolist() == expected


@pytest.mark.parametrize("count", [0, 1, 9, 10])
def test_the_log_likelihood_ratio_is_zero_if_either_group_has_fewer_than_two_images(
    count: int,
) -> None:
    values = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)).double()
    assert log_likelihood_ratio(values, torch.arange(10) < count) == 0


def test_every_image_is_in_a_batch_and_no_batch_has_a_single_image() -> None:
    found = list(parts(9, 4, torch.Generator().manual_seed(0)))
    assert [len(part) for part in found] == [4, 4, 2]
    assert sorted(torch.cat(found).unique().tolist()) == list(range(9))


def test_defaults_except_steps_and_pretraining_are_those_of_the_authors() -> None:
    found = ConfusionTraining()
    assert [each.share for each in found.rounds] == [1 / 2, 1 / 5, 1 / 25, 1 / 50, 1 / 100, None]
    assert [each.weight for each in found.rounds] == [20, 20, 20, 30, 30, 15]
    assert [each.lr for each in found.rounds] == [0.001] * 3 + [0.01] * 3
    assert found.batch_size == 32
