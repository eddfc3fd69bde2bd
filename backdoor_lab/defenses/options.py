"""Options shared by all filters: which classes are scored, how many examples are removed, and how
scores are computed."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.core import validation
from backdoor_lab.defenses.budget import RemovalBudget

SCOPES = ("target", "all", "suspicious")
UNKNOWN_TARGET = (
    "`defense.filter_scope=target` needs the target class, which this protocol does not reveal: set"
    " defense.filter_scope=all"
)


@dataclass(frozen=True)
class FilterOptions:
    """A protocol's options for filters; each field is a key of `defense` and of `protocol`.

    `filter_scope`: filter the `target` class, `all` classes, or only classes that the filter itself
    finds `suspicious`. `removal_budget`, `max_removed`: see `budget.RemovalBudget`. `center`:
    whether scores are computed relative to the class mean, for filters that support both settings.
    Raises ConfigError for invalid values.
    """

    filter_scope: str = "target"
    removal_budget: str = "1.5eps"
    max_removed: str | None = None
    center: bool = True

    def __post_init__(self) -> None:
        validation.choice("defense.filter_scope", self.filter_scope, SCOPES)
        validation.flag("defense.center", self.center)
        RemovalBudget(self.removal_budget, self.max_removed)

    @property
    def rule(self) -> RemovalBudget:
        """Combines `removal_budget` and `max_removed` into a `RemovalBudget`."""
        return RemovalBudget(self.removal_budget, self.max_removed)


OPTION_KEYS = tuple(FilterOptions.__dataclass_fields__)
DEFAULTS = FilterOptions()
