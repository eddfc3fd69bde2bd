"""Records in, tables out: every table is derived from `record.json` files, never appended to.

`python -m backdoor_lab.reports [ROOT ...]` rebuilds the tables of every sweep it finds. Nothing
here imports torch; pandas is imported inside the functions that need it.
"""

from __future__ import annotations

from backdoor_lab.reports.records import Cell
from backdoor_lab.reports.sweeps import find_sweeps, read_sweep
from backdoor_lab.reports.tables import Table, build
from backdoor_lab.reports.write import print_tables, write_tables

__all__ = ["Cell", "Table", "build", "find_sweeps", "print_tables", "read_sweep", "write_tables"]
