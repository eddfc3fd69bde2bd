"""Control with the ground truth: removes exactly the poisoned examples."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor
from backdoor_lab.core.types import Verdict
from backdoor_lab.defenses.base import TruthControl


class Oracle(TruthControl):
    """Removes all poisoned examples and no others; an upper bound for filters."""

    def judge(self, is_poison: Tensor) -> Verdict:
        return Verdict(is_poison.double(), ~is_poison)
