"""Beatrix: Gram matrices outside the range of those of clean images."""

from __future__ import annotations

from collections.abc import Iterator

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge, SampleFilter, finite
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions

FEWEST = 2
CHUNK = 1000


class Beatrix(SampleFilter):
    """Removes examples whose channel correlations deviate from those of clean examples.

    Ma, Wang, Sun, Xue, Wen, Xiang, "The 'Beatrix' Resurrections: Robust Backdoor Detection via
    Gram Matrices", NDSS 2023. For features v of C channels at HW positions, the Gram matrix of
    order p is (v^p (v^p)^T)^(1/p). Each entry has the range median ± `width` · MAD over clean
    examples of the class. The score is the distance of an entry to its range, relative to the
    bound, averaged over entries and orders 1..`orders`; it is 0 for an example inside all ranges.

    `positions` is HW: 1 for pooled features, 16 for a flattened 4 × 4 layer. `reference` selects
    the held-out ``clean`` examples, as in the paper, or the ``class`` itself, assumed to be
    mostly clean. Differences: with one position all orders are equal, so only the first is
    used; only the `channels` with the largest variance in the class are used, since the number
    of entries grows as C^2; bounds closer to zero than the average bound are replaced by it,
    since pooled activations are often zero. ``filter_scope=suspicious`` is not supported.
    """

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        orders: int = 8,
        positions: int = 1,
        channels: int = 64,
        width: float = 10.0,
        reference: str = "clean",
    ) -> None:
        super().__init__(options)
        self.orders = validation.whole("defense.orders", orders, low=1, below=33)
        self.positions = validation.whole("defense.positions", positions, low=1)
        self.channels = validation.whole("defense.channels", channels, low=1)
        self.width = validation.number("defense.width", width, low=0)
        self.reference = validation.choice("defense.reference", reference, ("clean", "class"))

    def requires(self) -> list[str]:
        return super().requires() + ["clean"] * (self.reference == "clean")

    def score_class(self, values: Tensor, label: int, known: DefenderKnowledge) -> ClassScores:
        maps = self._maps(values)
        spread = (maps - maps.mean(dim=0)).square().mean(dim=(0, 2))
        chosen = spread.sort(descending=True, stable=True).indices[: self.channels].sort().values
        maps = maps[:, chosen]
        clean = maps if self.reference == "class" else self._clean(label, known)[:, chosen]
        orders = range(1, 1 + (self.orders if self.positions > 1 else 1))
        found = (self._outside(maps, clean, p) for p in track(orders, "order"))
        outside = sum(found, torch.zeros(len(maps)))
        return ClassScores(outside.double() / len(orders))

    def _clean(self, label: int, known: DefenderKnowledge) -> Tensor:
        clean = known.clean
        rows = None if clean is None else clean.values[clean.labels == label]
        if rows is None or len(rows) < FEWEST:
            raise ConfigError(
                f"`defense=beatrix` needs features of held-out clean images of class"
                f" {known.classes[label]}, at least {FEWEST} (DefenderKnowledge.clean), got"
                f" {0 if rows is None else len(rows)}: choose a protocol that holds some out, or"
                " set defense.reference=class"
            )
        finite(rows, "rows of clean features")
        return self._maps(rows)

    def check_network(self, network: nn.Module, features: int) -> None:
        if features % self.positions:
            raise ConfigError(
                f"`defense.positions` must divide the number of features, {features}, got"
                f" {self.positions}: use 1 for pooled features"
            )

    def _maps(self, values: Tensor) -> Tensor:
        """`values` (n, C · HW) as float64 (n, C, HW)."""
        self.check_network(nn.Identity(), values.shape[1])
        return values.double().cpu().reshape(len(values), -1, self.positions)

    def _outside(self, maps: Tensor, clean: Tensor, p: int) -> Tensor:
        """Mean relative distance of each row's Gram entries to the clean range: (n,)."""
        entries = torch.cat(list(gram_entries(clean, p)))
        median = entries.quantile(0.5, dim=0)
        reach = self.width * (entries - median).abs().quantile(0.5, dim=0)
        low, high = median - reach, median + reach
        least = torch.cat([low, high]).abs().mean().clamp(min=torch.finfo(low.dtype).tiny)
        found = [
            (
                (low - rows).clamp(min=0) / low.abs().clamp(min=least)
                + (rows - high).clamp(min=0) / high.abs().clamp(min=least)
            ).mean(dim=1)
            for rows in gram_entries(maps, p)
        ]
        return torch.cat(found)


def gram_entries(maps: Tensor, p: int) -> Iterator[Tensor]:
    """Yields the upper triangles (rows, C (C + 1) / 2) of the Gram matrices of order p of `maps`
    (n, C, HW), in chunks of rows. The root keeps the sign."""
    upper = torch.triu_indices(maps.shape[1], maps.shape[1])
    for rows in maps.split(CHUNK):
        power = rows**p
        gram = (power @ power.transpose(1, 2))[:, upper[0], upper[1]]
        yield gram.sign() * gram.abs() ** (1 / p)
