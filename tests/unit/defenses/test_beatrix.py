"""Beatrix: Gram entries by hand, deviations by a second implementation, planted correlations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import DefenderKnowledge
from backdoor_lab.defenses.beatrix import Beatrix, gram_entries
from backdoor_lab.defenses.options import FilterOptions


def activations(n: int, d: int, seed: int) -> Tensor:
    """Positive features, as after a rectifier."""
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed)) + 0.5


def told(clean: Tensor) -> DefenderKnowledge:
    held_out = Features(clean, torch.zeros(len(clean)).long())
    return DefenderKnowledge(("only",), 0, 5, seed=0, clean=held_out)


def test_gram_entries_match_values_computed_by_hand() -> None:
    """Channels (1, 2) and (3, -1) at two positions. Order 1: 5, 1, 10. Order 2, of the squares
    (1, 4) and (9, 1): sqrt of 17, 13, 82. Order 3, (1, 8) and (27, -1): 65, 19, 730 rooted."""
    maps = torch.tensor([[[1.0, 2], [3, -1]]]).double()
    assert next(gram_entries(maps, 1))[0].tolist() == pytest.approx([5, 1, 10])
    assert next(gram_entries(maps, 2))[0].tolist() == pytest.approx(np.sqrt([17, 13, 82]))
    assert next(gram_entries(maps, 3))[0].tolist() == pytest.approx(np.cbrt([65, 19, 730]))


def test_with_one_position_every_order_equals_the_first() -> None:
    """(v_i^p v_j^p)^(1/p) = v_i v_j, so higher orders add nothing for pooled features."""
    maps = activations(5, 4, 0).double()[:, :, None]
    first = next(gram_entries(maps, 1))
    for p in (2, 3, 8):
        assert torch.allclose(next(gram_entries(maps, p)), first)


def by_numpy(values: np.ndarray, clean: np.ndarray, width: float, orders: int) -> np.ndarray:
    """The score computed from the paper's description, for features (n, C, HW)."""

    def entries(maps: np.ndarray, p: int) -> np.ndarray:
        gram = np.einsum("nip,njp->nij", maps**p, maps**p)
        rows, columns = np.triu_indices(maps.shape[1])
        gram = gram[:, rows, columns]
        return np.sign(gram) * np.abs(gram) ** (1 / p)

    total = np.zeros(len(values))
    for p in range(1, orders + 1):
        seen, reference = entries(values, p), entries(clean, p)
        median = np.median(reference, axis=0)
        mad = np.median(np.abs(reference - median), axis=0)
        low, high = median - width * mad, median + width * mad
        least = np.mean(np.abs(np.concatenate([low, high])))
        below = np.maximum(low - seen, 0) / np.maximum(np.abs(low), least)
        above = np.maximum(seen - high, 0) / np.maximum(np.abs(high), least)
        total += (below + above).mean(axis=1)
    return total / orders


@pytest.mark.parametrize(("positions", "orders"), [(1, 1), (4, 1), (4, 3)])
def test_scores_agree_with_numpy(positions: int, orders: int) -> None:
    """The features have both signs."""
    values = (3 * activations(30, 20, 1) - 3).double()
    clean = (3 * activations(25, 20, 2) - 3).double()
    maps = [each.numpy().reshape(len(each), -1, positions) for each in (values, clean)]
    made = Beatrix(positions=positions, orders=orders, width=1.5)
    scores = made.score_class(values, 0, told(clean)).scores
    assert float(scores.max()) > 0
    assert scores.numpy() == pytest.approx(by_numpy(*maps, 1.5, orders), rel=1e-9)


@pytest.mark.parametrize("reference", ["clean", "class"])
def test_channels_that_fire_together_are_scored(reference: str) -> None:
    """Poison has three channels at six times their level and scores above 0; every clean example
    lies inside the range and scores 0."""
    values = activations(200, 30, 3)
    values[:5, [4, 9, 20]] *= 6
    scores = (
        Beatrix(reference=reference).score_class(values, 0, told(activations(30, 30, 4))).scores
    )
    assert float(scores[:5].min()) > 0
    assert not scores[5:].any()


def test_a_lost_correlation_between_positions_is_scored() -> None:
    """Two channels are active at the same positions, and in poison at opposite ones. Each channel
    alone has the same values; only the Gram matrix differs."""
    generator = torch.Generator().manual_seed(0)
    lit = torch.stack([torch.randperm(16, generator=generator) for _ in range(100)]) < 8
    one = lit[:, None] + 0.1
    maps = torch.cat([one, one], dim=1)
    maps[:4, 1] = 1.2 - maps[:4, 0]
    assert torch.allclose(maps.sum(dim=2), maps.sum(dim=2)[:1])
    made = Beatrix(positions=16, reference="class")
    scores = made.score_class(maps.flatten(1), 0, told(maps.flatten(1))).scores
    assert float(scores[:4].min()) > 0.1
    assert float(scores[4:].max()) < 1e-6


def test_only_the_channels_with_the_largest_variance_are_used() -> None:
    """`channels=2` of 5 uses the two channels that vary most in the class."""
    values, clean = activations(40, 5, 1), activations(40, 5, 2)
    values[:3, [1, 3]] *= 8
    few = Beatrix(channels=2).score_class(values, 0, told(clean)).scores
    alone = Beatrix().score_class(values[:, [1, 3]], 0, told(clean[:, [1, 3]])).scores
    assert torch.equal(few, alone)
    assert float(few[:3].min()) > 0


def test_a_constant_channel_does_not_give_infinite_scores() -> None:
    """A channel that is 0 in every clean example has an empty range: a deviation there is measured
    relative to the average bound instead of zero."""
    values, clean = activations(40, 6, 1), activations(40, 6, 2)
    values[:, 0] = clean[:, 0] = 0
    values[0, 0] = 2
    scores = Beatrix().score_class(values, 0, told(clean)).scores
    assert 0 < float(scores[0]) < 10
    assert not scores[1:].any()
    dead = Beatrix().score_class(torch.zeros(9, 3), 0, told(torch.zeros(9, 3))).scores
    assert not dead.any()


def test_scores_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values, known = activations(50, 6, 1), told(activations(20, 6, 2))
    whole = Beatrix(width=1).score_class(values, 0, known).scores
    monkeypatch.setattr("backdoor_lab.defenses.beatrix.CHUNK", 7)
    assert torch.allclose(Beatrix(width=1).score_class(values, 0, known).scores, whole, rtol=1e-12)


def test_missing_or_bad_clean_examples_are_refused() -> None:
    """At least two finite clean examples per class; none are needed with reference=class."""
    assert Beatrix().requires() == ["target", "epsilon", "clean"]
    assert Beatrix(reference="class").requires() == ["target", "epsilon"]
    values = activations(20, 3, 1)
    known = told(activations(1, 3, 2))
    for short in (known, replace(known, clean=None)):
        with pytest.raises(ConfigError, match=r"clean images of class only.*reference=class"):
            Beatrix().score_class(values, 0, short)
        assert not Beatrix(reference="class").score_class(values, 0, short).scores.isnan().any()
    broken = activations(9, 3, 2)
    broken[4, 0] = torch.inf
    with pytest.raises(DivergedError, match="1 of 9 rows of clean features"):
        Beatrix().score_class(values, 0, told(broken))


def test_positions_must_divide_the_number_of_features() -> None:
    with pytest.raises(ConfigError, match=r"defense\.positions. must divide.*7, got 2"):
        Beatrix(positions=2, reference="class").score_class(
            activations(5, 7, 0), 0, told(torch.ones(2, 7))
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [("orders", 0), ("positions", 0), ("channels", 0), ("width", -1), ("reference", "test"),
     ("options", FilterOptions(filter_scope="suspicious"))],
)  # fmt: skip
def test_bad_options_are_refused_by_name(name: str, value: Any) -> None:
    key = {"options": "filter_scope"}.get(name, name)
    with pytest.raises(ConfigError, match=rf"defense\.{key}"):
        Beatrix(**{name: value})
