"""Beatrix: detects images whose Gram matrices are outside the range seen in clean images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from backdoor_lab.core import streams, validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.progress import track
from backdoor_lab.core.types import Features
from backdoor_lab.defenses.base import ClassScores, DefenderKnowledge
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.networks import (
    ModelBasedFilter,
    SampleScores,
    auto_count,
    clean_of,
    logits,
)
from backdoor_lab.defenses.options import DEFAULTS, FilterOptions
from backdoor_lab.numerics.gram_ranges import ADDED, Ranges, fold_threshold
from backdoor_lab.numerics.layers import LAST_STAGE_INPUT, FeatureHook, layer_of
from backdoor_lab.numerics.two_samples import anomaly_index, kernel_distance

FEWEST = 2
CHUNK = 64
COMPARED = 10_000
"""Maximum number of images of a class whose features are compared to decide whether the class is
suspicious. The comparison needs 4 bytes for each pair of images."""


class Beatrix(ModelBasedFilter):
    """Removes examples whose channel correlations deviate from those of clean examples.

    Ma, Wang, Sun, Xue, Wen, Xiang, "The 'Beatrix' Resurrections: Robust Backdoor Detection via Gram
    Matrices", NDSS 2023, as in the authors' code. For feature maps v (C, HW), with C channels and
    HW positions, the Gram matrix of order p is (v^p (v^p)^T)^(1/p). For each class, the range of an
    entry is median ± `width` · MAD, computed from `clean_per_class` held-out images of that class.
    The score of an image measures how far its entries, for orders 1 to `orders`, lie outside their
    ranges (see `Ranges.deviations`).

    `layer` is ``last_stage_input``, the input of a ResNet's layer4, or another layer, named as in
    `protocol.layer`. ``removal_budget=auto`` removes the images whose score exceeds a threshold,
    but at most half of a class. The threshold is the `percentile`-th percentile of the scores of
    the clean images. To score these, each fifth of them is compared with the ranges of the other
    four fifths. A class is suspicious if its anomaly index exceeds `class_threshold`. The index is
    computed from a kernel two-sample statistic of two groups of the class's images: those with
    scores above the removal threshold, and the others. The statistic uses features averaged over
    positions.

    Features are computed and compared in groups of images, so that memory does not grow with the
    number of images: see `gram_ranges.rows_at_once`. As in the authors' code, the clean images of a
    class are those that the network assigns to it; if it assigns fewer than two, the images with
    the label of the class are used.
    """

    needs_clean = True

    def __init__(
        self,
        options: FilterOptions = DEFAULTS,
        *,
        layer: str = LAST_STAGE_INPUT,
        orders: int = 8,
        width: float = 10.0,
        clean_per_class: int = 30,
        percentile: float = 95.0,
        class_threshold: float = math.e**2,
    ) -> None:
        super().__init__(options)
        self.layer = validation.text("defense.layer", layer)
        self.orders = validation.whole("defense.orders", orders, low=1, below=33)
        self.width = validation.number("defense.width", width, low=0)
        self.clean_per_class = validation.whole(
            "defense.clean_per_class", clean_per_class, low=FEWEST
        )
        self.percentile = validation.number("defense.percentile", percentile, low=0, below=100)
        self.class_threshold = validation.number("defense.class_threshold", class_threshold, low=0)

    def check_network(self, network: nn.Module, features: int) -> None:
        layer_of(network, self.layer, "defense.layer")

    def score_images(self, context: DefenseContext, where: Tensor) -> SampleScores:
        raise TypeError("Beatrix scores the images of each class separately: call `score_classes`")

    def score_classes(
        self,
        features: Features,
        members: dict[int, Tensor],
        wanted: Iterable[int],
        known: DefenderKnowledge,
    ) -> dict[int, ClassScores]:
        if known.context is None:
            raise TypeError("Beatrix needs DefenderKnowledge.context")
        maps = _Maps(known.context, self.layer)
        scores_of = {y: self._scored(maps, y, members[y]) for y in track(wanted, "class")}
        if self.scope != "suspicious":
            return scores_of
        distances = [scored.suspicion or 0.0 for scored in scores_of.values()]
        index = anomaly_index(torch.tensor(distances, dtype=torch.float64), ADDED).tolist()
        return {
            y: replace(scored, suspicion=star, notes=scored.notes | {"J": scored.suspicion})
            for (y, scored), star in zip(scores_of.items(), index, strict=True)
        }

    def suspicious_classes(self, scores_of: dict[int, ClassScores]) -> list[int]:
        return [y for y, each in scores_of.items() if (each.suspicion or 0) > self.class_threshold]

    def _scored(self, maps: _Maps, label: int, where: Tensor) -> ClassScores:
        clean = maps.of_clean(label, self.clean_per_class)
        threshold = fold_threshold(clean, self.orders, self.width, self.percentile / 100)
        ranges = Ranges.of(clean, self.orders, self.width)
        # The mean features take the most memory, and only decide which classes are suspicious.
        compares = self.scope == "suspicious"
        parts = [
            (ranges.deviations(rows), rows.mean(dim=2) if compares else rows[:, 0, :0])
            for rows in maps.of_training(where)
        ]
        scores, pooled = (torch.cat(each) for each in zip(*parts, strict=True))
        beyond = scores > threshold
        notes: dict[str, object] = {"threshold": threshold, "beyond": int(beyond.sum())}
        auto = auto_count(scores, int(beyond.sum()))
        if not compares:
            return ClassScores(scores, auto=auto, notes=notes)
        drawn = torch.randperm(len(scores), generator=maps.generator(label))[:COMPARED]
        pooled, beyond = pooled[drawn], beyond[drawn]
        return ClassScores(scores, kernel_distance(pooled[~beyond], pooled[beyond]), auto, notes)


@dataclass(frozen=True)
class _Maps:
    """The feature maps of the attacked network at one layer, float64 (n, C, HW) on the CPU."""

    context: DefenseContext
    layer: str

    def generator(self, label: int) -> torch.Generator:
        return self.context.generator(streams.REFERENCE_IMAGES, label)

    def of_clean(self, label: int, most: int) -> Tensor:
        """Returns the feature maps of clean images of a class: of all of them, or of a random
        sample if there are more than `most`."""
        clean = clean_of(self.context)
        found = [(said == label).nonzero().flatten() for said in (self.predicted, clean.labels)]
        members = found[0] if len(found[0]) >= FEWEST else found[1]
        if len(members) < FEWEST:
            raise ConfigError(
                f"`defense=beatrix` needs at least {FEWEST} held-out clean images of class"
                f" {self.context.classes[label]}, got {len(members)}: raise protocol.clean_holdout"
            )
        drawn = torch.randperm(len(members), generator=self.generator(label))[:most]
        images = clean.images[members[drawn]].to(self.context.device)
        return torch.cat(list(self._over(lambda a, b: images[a:b], len(images))))

    def of_training(self, where: Tensor) -> Iterator[Tensor]:
        """Yields the feature maps of the training images at indices `where`, in chunks."""
        return self._over(lambda a, b: self.context.images(where[a:b], None), len(where))

    @cached_property
    def network(self) -> nn.Module:
        return self.context.network().eval()

    @cached_property
    def predicted(self) -> Tensor:
        """The classes that the network assigns to the held-out clean images."""
        images = clean_of(self.context).images
        return logits(
            self.network, lambda a, b: images[a:b].to(self.context.device), len(images)
        ).argmax(dim=1)

    def _over(self, images: Callable[[int, int], Tensor], n: int) -> Iterator[Tensor]:
        part = getattr(self.network, "net", self.network)
        for start in track(range(0, n, CHUNK), "group of images"):
            with torch.no_grad(), FeatureHook(part, self.layer, "defense.layer") as tap:
                self.network(images(start, min(n, start + CHUNK)))
            values = tap.values.double().cpu()
            yield values.view(len(values), tap.channels, -1)
