"""What is told of a sweep, worked out once for its files and its page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from backdoor_lab.compare.compare_text import Comparison
from backdoor_lab.compare.comparison import against_random
from backdoor_lab.results.sweeps import Sweep, read_sweep
from backdoor_lab.tables import overview
from backdoor_lab.tables.build import Table, build
from backdoor_lab.tables.overview import Shown

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Report:
    """A sweep, and what follows from its records."""

    sweep: Sweep

    @classmethod
    def of(cls, folder: Path) -> Report:
        """The report of the sweep in a folder."""
        return cls(read_sweep(folder))

    @cached_property
    def _built(self) -> tuple[list[Table], pd.DataFrame]:
        return build(self.sweep)

    @property
    def tables(self) -> list[Table]:
        """In the layout of the reproduced report."""
        return self._built[0]

    @property
    def frame(self) -> pd.DataFrame:
        """One line per cell."""
        return self._built[1]

    @cached_property
    def shown(self) -> list[Shown]:
        """The tables that the sweep is shown in."""
        return overview.shown(self.sweep.cells, self.tables)

    @cached_property
    def compared(self) -> Comparison | None:
        """Every defense against the control `random`, where the sweep has it."""
        return against_random(self.sweep)
