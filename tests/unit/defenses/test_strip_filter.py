"""STRIP: entropies computed by hand, and triggered images whose predictions stay confident."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.defenses.strip import STRIP, drawn, entropy, normal_quantile
from tests.helpers.contexts import Small, context, linear


def bits(logit: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def one_pixel(slope: float) -> nn.Module:
    """A network with the logits (slope · x, 0) for one pixel x in 0..1."""
    network = linear(1, 2)
    with torch.no_grad():
        network.body.weight.copy_(torch.tensor([[slope], [0.0]]))
        network.body.bias.zero_()
    return network


def pixels(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)


@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_entropy_matches_values_computed_by_hand(weight: float) -> None:
    """The entropy in bits is averaged over each image's own overlays, and sums are not clipped at
    255."""
    over = torch.tensor([[0, 1], [1, 1], [1, 0]])
    found = entropy(one_pixel(2.0), pixels(0, 51, 204), pixels(0, 102), over, weight)
    expected = [
        sum(bits(2.0 * (x + weight * c) / 255) for c in added) / 2
        for x, added in ((0, (0, 102)), (51, (102, 102)), (204, (102, 0)))
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_constant_network_has_maximal_entropy() -> None:
    """Equal logits over k classes give an entropy of log2 k bits."""
    network = linear(4, 8)
    with torch.no_grad():
        network.body.weight.zero_()
        network.body.bias.zero_()
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    over = torch.zeros(2, 3, dtype=torch.int64)
    assert entropy(network, images, images, over, 1.0).tolist() == pytest.approx([3.0, 3.0])


def test_overlays_are_drawn_separately_for_each_image() -> None:
    """Overlays are drawn with replacement from the whole pool. Equal images get equal overlays,
    whatever the state of other generators."""
    images = torch.randint(0, 256, (3, 1, 2, 3), dtype=torch.uint8)
    given = context(images, torch.arange(3))
    first, second = (drawn(given, image, 5, 400) for image in images[:2])
    assert not torch.equal(first, second)
    assert set(first.tolist()) == set(range(5))
    assert torch.equal(first, drawn(given, images[:1].clone()[0], 5, 400))


@pytest.mark.parametrize("n", [1, 2, 7])
def test_threshold_images_are_not_used_as_overlays(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the held-out images are overlays, and the rest set the threshold. A single held-out
    image is used for both."""
    seen: list[tuple[Tensor, Tensor]] = []

    def noting(network: nn.Module, images: Tensor, pool: Tensor, *_: Any) -> Tensor:
        seen.append((images, pool))
        return torch.arange(len(images)).double()

    monkeypatch.setattr("backdoor_lab.defenses.strip.entropy", noting)
    clean = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 2, 3)
    images = torch.full((4, 1, 2, 3), 200, dtype=torch.uint8)
    given = context(images, torch.arange(4) % 2, clean=(clean, torch.zeros(n, dtype=torch.int64)))
    STRIP(n_overlays=3).score_images(given, torch.arange(4))
    rest, pool = (set(each[:, 0, 0, 0].tolist()) for each in seen[-1])
    assert len(pool) == max(1, n // 2)
    assert rest | pool == set(range(n))
    assert n == 1 or not rest & pool


def test_normal_quantile_matches_known_values() -> None:
    assert normal_quantile(0.01) == pytest.approx(-2.3263478740408408)
    assert normal_quantile(0.5) == pytest.approx(0.0, abs=1e-12)


class Trojan(nn.Module):
    """A network that predicts class 1 with certainty if the first pixel is white. Otherwise its
    prediction is uncertain and depends on the mean brightness."""

    def forward(self, x: Tensor) -> Tensor:
        weak = x[:, 1:].mean(dim=1)
        sure = 50.0 * (x[:, 0] > 0.99)
        return torch.stack([weak, 1 - weak + sure], dim=1)


@pytest.mark.parametrize("seed", [0, 1])
def test_exactly_the_images_with_the_planted_trigger_are_flagged_and_score_highest(
    seed: int,
) -> None:
    """Triggered images are found because no overlay hides their white pixel."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 120, (60, 1, 2, 3), generator=generator, dtype=torch.uint8)
    images[50:, 0, 0, 0] = 255
    clean = torch.randint(0, 120, (40, 1, 2, 3), generator=generator, dtype=torch.uint8)
    labels = torch.ones(60, dtype=torch.int64)
    given = context(images, labels, network=Small(Trojan()), clean=(clean, labels[:40]), seed=seed)
    rating = STRIP(false_positive_rate=1e-6).score_images(given, torch.arange(60))
    assert rating.flagged is not None
    assert rating.flagged.nonzero().flatten().tolist() == list(range(50, 60))
    assert float(rating.scores[50:].min()) > float(rating.scores[:50].max())
    assert -1e-6 <= float(-rating.scores[50:].max()) < 1e-3


def test_scores_do_not_depend_on_the_other_images() -> None:
    images = torch.randint(0, 256, (70, 1, 2, 3), dtype=torch.uint8)
    labels = torch.arange(70) % 3
    given = context(images, labels, clean=(images[:20], labels[:20]))
    whole = STRIP(n_overlays=7).score_images(given, torch.arange(70)).scores
    part = STRIP(n_overlays=7).score_images(given, torch.tensor([69, 3])).scores
    assert torch.allclose(part, whole[[69, 3]], atol=1e-6)
