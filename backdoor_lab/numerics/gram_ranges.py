"""Gram matrices of feature maps, and how far they lie outside the range seen in clean images.

Ma et al., "The 'Beatrix' Resurrections", NDSS 2023; formulas as in the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core.lazy import Tensor, torch

FOLDS = 5
ADDED = 1e-6
CHUNK_BYTES = 2**28
TEMPORARIES = 6
"""Maximum number of arrays of C^2 numbers per image that a comparison holds at once."""


def gram_entries(maps: Tensor, p: int) -> Tensor:
    """Returns the upper triangles, (n, C (C + 1) / 2), of the Gram matrices of order `p` of `maps`
    (n, C, HW). Entry (i, j) is the signed p-th root of the sum of v_i^p v_j^p over all positions,
    where v_i are the values of channel i."""
    upper = torch.triu_indices(maps.shape[1], maps.shape[1])
    power = maps**p
    gram = (power @ power.transpose(1, 2))[:, upper[0], upper[1]]
    return gram.sign() * gram.abs() ** (1 / p)


def rows_at_once(channels: int) -> int:
    """Returns how many images to compare at once so that the arrays take about `CHUNK_BYTES`."""
    return max(1, CHUNK_BYTES // (8 * TEMPORARIES * channels**2))


@dataclass(frozen=True)
class Ranges:
    """The range of each Gram entry: its median over clean images, plus or minus `width` median
    absolute deviations.

    `low` and `high` are the bounds for orders 1, 2, ..., each float64 (C (C + 1) / 2,). The median
    of an even number of values is the lower of the middle two, as in torch.
    """

    low: list[Tensor]
    high: list[Tensor]

    @classmethod
    def of(cls, clean: Tensor, orders: int, width: float) -> Ranges:
        """Returns the ranges for `clean`, the feature maps of clean images, float64 (n, C, HW)."""
        low, high = [], []
        for p in range(1, orders + 1):
            entries = gram_entries(clean, p)
            median = entries.median(dim=0).values
            reach = width * (entries - median).abs().median(dim=0).values
            low.append(median - reach)
            high.append(median + reach)
        return cls(low, high)

    def deviations(self, maps: Tensor) -> Tensor:
        """Returns the deviation of each row of `maps` float64 (n, C, HW) from the ranges: float64
        (n,).

        An entry outside its range deviates by its distance to the nearer bound, divided by |bound +
        1e-6|. An entry inside does not deviate. The sum over entries and orders is divided by the
        number of orders and by C^2 / 2.
        """
        parts = maps.split(rows_at_once(maps.shape[1]))
        return torch.cat([self._deviations(rows) for rows in parts])

    def _deviations(self, maps: Tensor) -> Tensor:
        total = torch.zeros(len(maps), dtype=torch.float64)
        for p, (low, high) in enumerate(zip(self.low, self.high, strict=True), start=1):
            entries = gram_entries(maps, p)
            total += ((low - entries).clamp(min=0) / (low + ADDED).abs()).sum(dim=1)
            total += ((entries - high).clamp(min=0) / (high + ADDED).abs()).sum(dim=1)
        return total / (maps.shape[1] ** 2 / 2) / len(self.low)


def fold_threshold(clean: Tensor, orders: int, width: float, share: float) -> float:
    """Returns the deviation that a fraction `share` of clean images does not exceed, estimated from
    `clean` maps (n, C, HW).

    In each of five folds, n // 5 images are compared with the ranges of all other images. The
    threshold is the deviation at index ⌊m `share`⌋ of the m deviations in ascending order. With
    fewer than five images, each image is a fold.
    """
    size = max(1, len(clean) // FOLDS)
    found = []
    for start in range(0, min(FOLDS, len(clean)) * size, size):
        inside = torch.zeros(len(clean), dtype=torch.bool)
        inside[start : start + size] = True
        found.append(Ranges.of(clean[~inside], orders, width).deviations(clean[inside]))
    ordered = torch.cat(found).sort().values
    return float(ordered[int(len(ordered) * share)])
