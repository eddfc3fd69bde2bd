"""Control that knows the ground truth: removes exactly the poisoned examples."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor
from backdoor_lab.core.types import FilterResult
from backdoor_lab.defenses.base import OracleControl


class Oracle(OracleControl):
    """Removes all poisoned examples and no others, which is the best that a filter can do."""

    def judge(self, is_poison: Tensor) -> FilterResult:
        return FilterResult(is_poison.double(), ~is_poison)
