"""The control that knows: removes exactly the poisoned examples."""

from __future__ import annotations

from backdoor_lab.core.lazy import Tensor
from backdoor_lab.core.types import Verdict
from backdoor_lab.defenses.base import TruthControl


class Oracle(TruthControl):
    """Removes every poisoned example and no other: the best that any filter could do."""

    def judge(self, is_poison: Tensor) -> Verdict:
        return Verdict(is_poison.double(), ~is_poison)
