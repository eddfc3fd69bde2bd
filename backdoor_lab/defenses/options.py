"""Options shared by all filters: which classes, how many examples, and how they are scored."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core import validation
from backdoor_lab.defenses.budget import RemovalBudget

SCOPES = ("target", "all", "suspicious")


@dataclass(frozen=True)
class FilterOptions:
    """A protocol's options for filters; each field is a key of `defense` and of `protocol`.

    `classes`: filter the `target` class, `all` classes, or those the filter itself finds
    `suspicious`. `budget`, `budget_cap`: see `budget.RemovalBudget`. `centred`: whether scores are
    computed relative to the class mean, for filters that support both. Raises ConfigError for
    invalid values.
    """

    classes: str = "target"
    budget: str = "1.5eps"
    budget_cap: str | None = None
    centred: bool = True

    def __post_init__(self) -> None:
        validation.choice("defense.classes", self.classes, SCOPES)
        validation.flag("defense.centred", self.centred)
        RemovalBudget(self.budget, self.budget_cap)

    @property
    def rule(self) -> RemovalBudget:
        """`budget` and `budget_cap` combined into a `RemovalBudget`."""
        return RemovalBudget(self.budget, self.budget_cap)


OPTION_KEYS = tuple(FilterOptions.__dataclass_fields__)
DEFAULTS = FilterOptions()
