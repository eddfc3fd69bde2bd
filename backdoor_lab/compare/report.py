"""What is told of a sweep, worked out once for its files and its page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from backdoor_lab.compare.compare_text import Comparison
from backdoor_lab.compare.comparison import against_random
from backdoor_lab.results.facts import Facts
from backdoor_lab.results.sweeps import Sweep, read_sweep
from backdoor_lab.tables import overview
from backdoor_lab.tables.layout import REPORT
from backdoor_lab.tables.pivot import PivotTable, pivot


@dataclass(frozen=True)
class Report:
    """A sweep, and what follows from its records."""

    sweep: Sweep

    @classmethod
    def of(cls, folder: Path) -> Report:
        """The report of the sweep in a folder."""
        return cls(read_sweep(folder))

    @cached_property
    def facts(self) -> Facts:
        """What its cells are told apart by, and their tidy frame."""
        cells = self.sweep.cells
        return Facts(cells, sweeps=[self.sweep.name] * len(cells))

    @cached_property
    def tables(self) -> list[PivotTable]:
        """In the layout of the reproduced report."""
        return pivot(self.facts, REPORT)

    @cached_property
    def shown(self) -> list[PivotTable]:
        """The tables that the sweep is shown in."""
        return overview.shown(self.facts, self.tables)

    @cached_property
    def compared(self) -> Comparison | None:
        """Every defense against the control `random`, where the sweep has it."""
        return against_random(self.sweep, self.facts)
