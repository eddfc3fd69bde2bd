"""The options that every filter takes, as one object: which classes, how many, how scored."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core import checks
from backdoor_lab.defenses.budget import Budget

SCOPES = ("target", "all", "suspicious")


@dataclass(frozen=True)
class FilterOptions:
    """What a protocol asks of filters; each field is a key of `defense` and of `protocol`.

    `classes`: look at the `target` class, at `all`, or at those that are `suspicious` by the
    filter's own account. `budget`, `budget_cap`: see `budget.Budget`. `centred`: whether scores
    are taken about the class mean, for filters that can do without. Raises ConfigError for a
    value that is not allowed.
    """

    classes: str = "target"
    budget: str = "1.5eps"
    budget_cap: str | None = None
    centred: bool = True

    def __post_init__(self) -> None:
        checks.choice("defense.classes", self.classes, SCOPES)
        checks.flag("defense.centred", self.centred)
        Budget(self.budget, self.budget_cap)

    @property
    def rule(self) -> Budget:
        """`budget` and `budget_cap` as a rule that counts."""
        return Budget(self.budget, self.budget_cap)


OPTION_KEYS = tuple(FilterOptions.__dataclass_fields__)
DEFAULTS = FilterOptions()
