"""Derives tables and comparisons from a sweep's records; the files and the page share them."""

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
    """A sweep, and the results derived from its records. Each property is computed once."""

    sweep: Sweep

    @classmethod
    def of(cls, folder: Path) -> SweepReport:
        """Create the SweepReport for the sweep in a folder."""
        return cls(read_sweep(folder))

    @cached_property
    def facts(self) -> CellFields:
        """The choices and other fields of the sweep's cells."""
        cells = self.sweep.cells
        return CellFields(cells, sweeps=[self.sweep.name] * len(cells))

    @cached_property
    def tables(self) -> list[PivotTable]:
        """The tables of the sweep in the layout of the published report."""
        return pivot(self.facts, REPORT)

    @cached_property
    def shown(self) -> list[PivotTable]:
        """The tables of the sweep in its default layout."""
        return overview.shown(self.facts, self.tables)

    @cached_property
    def compared(self) -> Comparison | None:
        """The comparison of every defense with the control `random`; None if there is nothing to
        compare."""
        return against_random(self.sweep, self.facts)
