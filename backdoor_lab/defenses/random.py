"""Control by random removal: removes as many examples as a given filter, but at random."""

from __future__ import annotations

from collections.abc import Sequence

from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import nn, torch
from backdoor_lab.core.rng import torch_generator
from backdoor_lab.core.types import Features, FilterResult
from backdoor_lab.defenses.base import DefenderKnowledge, Defense, SampleFilter


class Random(Defense):
    """Removes random examples: from each class, as many as another filter removes. `like`: the
    other filter. Only the examples that the other filter scores get a (random) score. The
    protocol's filter options apply to the other filter."""

    def __init__(self, *, like: SampleFilter) -> None:
        if not isinstance(like, SampleFilter):
            raise ConfigError(
                f"`defense.like` must be the configuration of a filter, got {like!r}: on the"
                " command line, choose a filter by name with +defense@defense.like=NAME"
            )
        self.like = like
        self.feature_layer = like.feature_layer

    def __call__(self, features: Features, known: DefenderKnowledge) -> FilterResult:
        filter_result = self.like(features, known)
        removed = ~filter_result.keep
        generator = torch_generator(known.seed, streams.RANDOM_REMOVAL)
        scores = torch.rand(len(removed), dtype=torch.float64, generator=generator)
        scores[filter_result.scores.isnan()] = torch.nan
        keep = torch.ones_like(removed)
        for label in features.labels[removed].unique().tolist():
            members = (features.labels == label).nonzero().flatten()
            order = scores[members].argsort(descending=True)
            keep[members[order[: int(removed[members].sum())]]] = False
        return FilterResult(scores, keep, {"like": type(self.like).__module__.rpartition(".")[2]})

    def check(self, known: DefenderKnowledge, per_class: Sequence[int]) -> None:
        self.like.check(known, per_class)

    def check_network(self, network: nn.Module, features: int) -> None:
        self.like.check_network(network, features)

    def applied(self) -> dict[str, object]:
        return self.like.applied()

    def requires(self) -> list[str]:
        return self.like.requires()
