"""Control without a defense: shows what retraining alone changes."""

from __future__ import annotations

from backdoor_lab.core.lazy import torch
from backdoor_lab.core.types import Features, FilterResult
from backdoor_lab.defenses.base import DefenderKnowledge, Defense


class NoDefense(Defense):
    """Keeps every example and computes no scores."""

    def __call__(self, features: Features, known: DefenderKnowledge) -> FilterResult:
        n = len(features.labels)
        scores = torch.full((n,), torch.nan, dtype=torch.float64)
        return FilterResult(scores, torch.ones(n, dtype=torch.bool))
