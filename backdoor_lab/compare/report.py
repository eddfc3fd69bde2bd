"""Everything derived from a sweep's records, computed once for its files and its page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from backdoor_lab.compare.compare_text import Comparison
from backdoor_lab.compare.comparison import against_random
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.sweeps import Sweep, read_sweep
from backdoor_lab.tables import overview
from backdoor_lab.tables.layout import REPORT
from backdoor_lab.tables.pivot import PivotTable, pivot


@dataclass(frozen=True)
class SweepReport:
    """A sweep and what is derived from its records."""

    sweep: Sweep

    @classmethod
    def of(cls, folder: Path) -> SweepReport:
        """The report of the sweep in a folder."""
        return cls(read_sweep(folder))

    @cached_property
    def facts(self) -> CellFields:
        """The choices of the sweep's cells, and their tidy frame."""
        cells = self.sweep.cells
        return CellFields(cells, sweeps=[self.sweep.name] * len(cells))

    @cached_property
    def tables(self) -> list[PivotTable]:
        """The tables in the layout of the reproduced report."""
        return pivot(self.facts, REPORT)

    @cached_property
    def shown(self) -> list[PivotTable]:
        """The tables in the sweep's default layout."""
        return overview.shown(self.facts, self.tables)

    @cached_property
    def compared(self) -> Comparison | None:
        """Every defense compared with the control `random`, if the sweep has it."""
        return against_random(self.sweep, self.facts)
