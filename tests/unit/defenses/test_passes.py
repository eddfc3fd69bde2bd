"""Passes over training images with the settings that a method's authors fixed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from backdoor_lab.defenses import abl, abl_unlearning, d_br
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.passes import Passes, PassSettings, batches_of, in_random_order
from tests.helpers.contexts import context, hidden, linear

PLAIN = PassSettings(batch_size=4, momentum=0.9, weight_decay=0.0)


def shown(n: int) -> tuple[DefenseContext, list[tuple[list[int], bool]]]:
    """A context that records which images were requested, and whether they were augmented."""
    images = torch.arange(n * 4, dtype=torch.uint8).view(n, 1, 2, 2)
    asked: list[tuple[list[int], bool]] = []
    given = context(images, torch.arange(n) % 2)

    def see(where: Tensor, augment: torch.Generator | None) -> Tensor:
        asked.append((where.tolist(), augment is not None))
        return images[where]

    object.__setattr__(given, "images", see)
    return given, asked


def test_batches_keep_the_order_and_have_at_least_two_images() -> None:
    def sizes(n: int) -> list[int]:
        parts = batches_of(torch.arange(n), 4)
        assert (
            torch.cat([torch.empty(0, dtype=torch.int64), *parts]).tolist()
            == list(range(n))[: n if n > 1 else 0]
        )
        return [len(part) for part in parts]

    assert [sizes(n) for n in (0, 1, 2, 4, 5, 6, 9)] == [[], [], [2], [4], [5], [4, 2], [4, 5]]


def test_a_pass_visits_the_images_in_the_given_order() -> None:
    given, asked = shown(10)
    passes = Passes(linear(4, 2), given, PLAIN)
    passes.over(torch.tensor([9, 1, 5, 3, 7, 0]), 0.1, F.cross_entropy)
    passes.over(torch.arange(3), 0.1, F.cross_entropy, torch.Generator())
    assert asked == [([9, 1, 5, 3], False), ([7, 0], False), ([0, 1, 2], True)]


def test_momentum_carries_over_to_a_pass_with_another_learning_rate() -> None:
    given, _ = shown(4)
    network, expected = linear(4, 2), linear(4, 2)
    passes = Passes(network, given, PLAIN)
    sgd = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9)
    for lr in (0.1, 0.01):
        passes.over(torch.arange(4), lr, F.cross_entropy)
        sgd.param_groups[0]["lr"] = lr
        sgd.zero_grad()
        F.cross_entropy(expected(given.images(torch.arange(4), None)), given.labels).backward()
        sgd.step()
    assert torch.allclose(network.body.weight, expected.body.weight)


def test_a_pass_uses_batch_statistics_and_ends_in_eval_mode() -> None:
    given, _ = shown(8)
    network = hidden(4, 2)
    Passes(network, given, PLAIN).over(torch.arange(8), 0.0, F.cross_entropy)
    assert bool((network.body[1].running_mean != 0).any())
    assert not network.training


def test_a_shuffled_pass_visits_every_image_once() -> None:
    where = torch.arange(5, 40)
    order = in_random_order(where, torch.Generator().manual_seed(0))
    assert order.sort().values.tolist() == where.tolist()
    assert order.tolist() != where.tolist()


def test_abl_isolation_and_the_first_model_of_d_br_use_no_augmented_images() -> None:
    """Isolation has the same batches in every epoch. The other phases of the repairs use augmented
    images, except for the unlearning of ABL."""
    given, asked = shown(140)
    abl.ABL(epochs=2).ascended(given)
    d_br.DBR(tuning_epochs=1).distinguishing(given)
    assert not any(augmented for _, augmented in asked)
    first, second, losses = asked[:2], asked[2:4], asked[4]
    assert first == second
    assert losses[0] == list(range(140))
    asked.clear()
    repair = abl_unlearning.ABLUnlearning(epochs=1, training_epochs=1, unlearning_epochs=1)
    _, notes = repair.repair(given)
    assert [(len(where), augmented) for where, augmented in asked] == [
        (128, False), (12, False), (140, False), (128, True), (10, True), (2, False)
    ]  # fmt: skip
    assert notes["isolated"] == 2
