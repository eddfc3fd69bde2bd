"""Beatrix: planted correlations, its two rules, its layer, and bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses import beatrix
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.beatrix import Beatrix
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.numerics import gram_ranges
from backdoor_lab.numerics.gram_ranges import Ranges, fold_threshold, gram_entries, rows_at_once
from tests.helpers.contexts import context

CHANNELS, SIDE = 5, 4


class Passing(nn.Module):
    """Two convolutions that leave an image of five channels unchanged. The first value of an image
    is 70 + its class and decides the prediction."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False) for _ in range(2))
        for conv in (self.first, self.last):
            conv.weight.data = torch.eye(CHANNELS)[:, :, None, None]
        self.head, self.classes = nn.Linear(1, 1), classes

    def forward(self, images: Tensor) -> Tensor:
        self.last(self.first(images.float() / 64))
        return -(images[:, 0, 0, :1].float() - 70 - torch.arange(self.classes)).abs()


def pictures(n: int, seed: int) -> Tensor:
    """Images uint8 (n, 5, 4, 4) whose channels are independent."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(60, 100, (n, CHANNELS, SIDE, SIDE), generator=generator).byte()


def planted(images: Tensor, rows: slice) -> Tensor:
    """A copy of the images. In those at `rows`, three channels are bright at the same positions."""
    changed = images.clone()
    changed[rows, :3, :2] = 250
    changed[rows, :3, 2:] = 4
    return changed


def judged(
    defense: Beatrix, images: Tensor, labels: Tensor, *, per_class: int = 40, target: int | None = 0
) -> Any:
    """The result of the filter with the network `Passing` and ε = 5."""
    classes = int(labels.max()) + 1
    aside = pictures(per_class * classes, 99), torch.arange(per_class * classes) % classes
    aside[0][:, 0, 0, 0] = (70 + aside[1]).byte()
    given = context(images, labels, network=Passing(classes), clean=aside, classes=classes)
    known = DefenderKnowledge(given.classes, target, 5, seed=0, context=given)
    return defense(Features(torch.zeros(len(labels), 1), labels), known)


def test_gram_entries_match_values_computed_by_hand() -> None:
    """The channels are (1, 2) and (3, -1) at two positions. The entries of order 1 are 5, 1, 10.
    For order 2, the squares are (1, 4) and (9, 1), and the entries are the square roots of 17, 13,
    82. For order 3, the cubes are (1, 8) and (27, -1), and the entries are the cube roots of 65,
    19, 730."""
    maps = torch.tensor([[[1.0, 2], [3, -1]]]).double()
    assert gram_entries(maps, 1)[0].tolist() == pytest.approx([5, 1, 10])
    assert gram_entries(maps, 2)[0].tolist() == pytest.approx([17**0.5, 13**0.5, 82**0.5])
    assert gram_entries(maps, 3)[0].tolist() == pytest.approx([65 ** (1 / 3), 19 ** (1 / 3),
                                                               730 ** (1 / 3)])  # fmt: skip


def test_poison_with_different_channel_correlations_is_removed() -> None:
    """Three channels vary together in poison, but not in clean images."""
    images = planted(pictures(100, 1), slice(0, 5))
    found = judged(Beatrix(FilterOptions(removal_budget="5")), images, torch.zeros(100).long())
    assert (~found.keep).nonzero().flatten().tolist() == list(range(5))
    assert float(found.scores[:5].min()) > 100 * float(found.scores[5:].max())


def test_automatic_budget_removes_the_images_that_exceed_the_threshold() -> None:
    """All poison and few clean images are removed. The notes contain the threshold."""
    images = planted(pictures(200, 1), slice(0, 10))
    found = judged(Beatrix(FilterOptions(removal_budget="auto")), images, torch.zeros(200).long())
    noted = found.notes["per_class"]["a"]
    assert not found.keep[:10].any()
    assert int((~found.keep[10:]).sum()) <= 30
    assert torch.equal(~found.keep, found.scores > noted["threshold"])
    assert noted["beyond"] == int((~found.keep).sum())


def test_a_higher_percentile_gives_a_higher_threshold() -> None:
    maps = pictures(30, 3).double().flatten(2)
    low, high = (fold_threshold(maps, 8, 2.0, share) for share in (0.5, 0.99))
    assert 0 <= low < high


def test_the_class_with_poison_is_selected_with_filter_scope_set_to_suspicious() -> None:
    """In the class with poison, images above the threshold differ most from the other images. The
    difference is measured in units of the MAD over classes."""
    labels = torch.arange(400) % 8
    images = pictures(400, 1)
    where = (labels == 5).nonzero().flatten()[:10]
    images[where] = planted(images[where], slice(None))
    defense = Beatrix(FilterOptions(filter_scope="suspicious", removal_budget="auto"))
    found = judged(defense, images, labels, target=None)
    assert found.notes["classes"] == ["f"]
    assert not found.keep[where].any()
    assert found.keep[labels != 5].all()
    assert found.notes["suspicion"]["f"] > found.notes["suspicion"]["a"]


def test_the_layer_is_the_input_of_the_last_convolution_or_a_named_layer() -> None:
    """In this network, each named layer has the same values as the default layer. A layer that does
    not exist is refused before any work."""
    images = planted(pictures(60, 1), slice(0, 5))
    labels = torch.zeros(60).long()
    whole = judged(Beatrix(), images, labels).scores
    for name in ("first", "last", "last:input"):
        assert torch.equal(judged(Beatrix(layer=name), images, labels).scores, whole)
    Beatrix(layer="last").check_network(Passing(2), CHANNELS)
    with pytest.raises(ConfigError, match=r"`defense\.layer`.*layer4"):
        Beatrix(layer="layer4").check_network(Passing(2), CHANNELS)


def test_at_most_the_given_number_of_clean_images_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    real = Ranges.of.__func__  # type: ignore[attr-defined]

    def counted(clean: Tensor, orders: int, width: float) -> Ranges:
        seen.append(len(clean))
        found: Ranges = real(Ranges, clean, orders, width)
        return found

    monkeypatch.setattr(Ranges, "of", counted)
    judged(Beatrix(), pictures(20, 1), torch.zeros(20).long(), per_class=70)
    assert seen == [24] * 5 + [30]
    seen.clear()
    judged(Beatrix(clean_per_class=7), pictures(20, 1), torch.zeros(20).long(), per_class=70)
    assert seen == [6] * 5 + [7]


def test_two_clean_images_are_enough_and_one_is_refused() -> None:
    images, labels = pictures(20, 1), torch.zeros(20).long()
    assert torch.isfinite(judged(Beatrix(), images, labels, per_class=2).scores).all()
    with pytest.raises(ConfigError, match=r"at least 2 held-out clean images of class a, got 1"):
        judged(Beatrix(), images, labels, per_class=1)
    assert Beatrix().requires() == ["target", "epsilon", "context", "clean images"]


def test_scores_do_not_depend_on_the_chunk_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = planted(pictures(50, 1), slice(0, 5)), torch.zeros(50).long()
    whole = judged(Beatrix(width=1), images, labels).scores
    monkeypatch.setattr(beatrix, "CHUNK", 7)
    monkeypatch.setattr(gram_ranges, "CHUNK_BYTES", 3 * 8 * gram_ranges.TEMPORARIES * CHANNELS**2)
    assert rows_at_once(CHANNELS) == 3
    assert torch.allclose(judged(Beatrix(width=1), images, labels).scores, whole, rtol=1e-12)


def largest_of(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> int:
    """The most rows of Gram entries that exist at once while `work` runs."""
    seen: list[int] = []
    real = gram_ranges.gram_entries

    def counted(maps: Tensor, p: int) -> Tensor:
        seen.append(len(maps))
        return real(maps, p)

    monkeypatch.setattr(gram_ranges, "gram_entries", counted)
    work()
    return max(seen)


def test_memory_for_50_000_images_of_width_64_stays_below_1_gb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The maps have 256 channels at 64 positions. A group needs the maps of 64 images (8 MiB) and
    six arrays of C^2 numbers for at most `rows_at_once` images (256 MiB). The clean images need
    eight such arrays for 30 images (120 MiB) and sixteen arrays of bounds (4 MiB)."""
    channels, positions = 256, 64
    rows, cells = rows_at_once(channels), channels**2
    comparing = 8 * (gram_ranges.TEMPORARIES * rows * cells + beatrix.CHUNK * channels * positions)
    reference = 8 * (8 * 30 * cells + 16 * cells + 30 * channels * positions)
    pooled = 8 * 50_000 * channels
    pairs = 8 * beatrix.COMPARED**2 // 2
    assert comparing + reference + pooled + pairs < 1e9
    clean = torch.rand(2, channels, positions, dtype=torch.float64)
    many = clean[:1].expand(rows + 5, -1, -1)
    ranges = Ranges.of(clean, 1, 10.0)
    assert largest_of(monkeypatch, lambda: ranges.deviations(many)) <= rows


@pytest.mark.parametrize(
    ("name", "value"),
    [("orders", 0), ("layer", ""), ("width", -1), ("clean_per_class", 1), ("percentile", 100),
     ("class_threshold", -1)],
)  # fmt: skip
def test_an_invalid_option_is_refused_and_named_in_the_error(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"defense\.{name}"):
        Beatrix(**{name: value})


def test_clean_images_are_grouped_by_predicted_class() -> None:
    """Labels matter only if the network assigns fewer than two images to a class."""
    labels = torch.arange(40) % 2
    images, aside = pictures(40, 1), pictures(40, 2)
    aside[:, 0, 0, 0] = (70 + labels).byte()

    def scores(given_labels: Tensor, images_of: Tensor) -> Tensor:
        given = context(
            images, labels, network=Passing(2), clean=(images_of, given_labels), classes=2
        )
        known = DefenderKnowledge(given.classes, 0, 5, seed=0, context=given)
        found: Tensor = Beatrix(width=1)(Features(torch.zeros(40, 1), labels), known).scores
        return found

    assert torch.equal(
        scores(labels, aside).nan_to_num(), scores(labels.flip(0), aside).nan_to_num()
    )
    all_second = aside.clone()
    all_second[:, 0, 0, 0] = 71
    assert torch.isfinite(scores(labels, all_second)[labels == 0]).all()
