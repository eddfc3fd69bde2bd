"""The table of the document on scans: how often clean sets raise an alarm."""

from __future__ import annotations

import pandas as pd

from backdoor_lab.analysis.intervals import exact
from tests.documents.cells import SWEEPS
from tests.documents.markers import markdown, table

FOLDER = SWEEPS / "scan"


def trials() -> pd.DataFrame:
    """All rows of the committed trials, with the name of their file as the column `file`."""
    found = [pd.read_csv(path).assign(file=path.stem) for path in sorted(FOLDER.glob("*.csv"))]
    return pd.concat(found, ignore_index=True)


@table("scan_clean")
def _clean() -> str:
    rows = trials()
    lines = [
        [f"[{file}]({file}.csv)", len(some), share(some["other alarms"]),
         _span(some["other statistic"]), _made(some)]
        for file, some in rows[rows["change"] == "none"].groupby("file")
    ]  # fmt: skip
    head = ["Sets", "Number", "With an alarm", "Largest value, median (range)", "Made"]
    return markdown(head, lines, right="lrrrl")


def share(counts: pd.Series) -> str:
    """The share of sets with a positive count, and its exact 95 % interval in %."""
    hits, number = int((counts > 0).sum()), len(counts)
    low, high = (100 * limit for limit in exact(hits, number))
    return f"{hits} of {number} ({low:.0f} to {high:.0f} %)"


def _span(values: pd.Series) -> str:
    return f"{values.median():.1f} ({values.min():.1f} to {values.max():.1f})"


def _made(some: pd.DataFrame) -> str:
    return f"{', '.join(sorted(set(some['date'])))}, {', '.join(sorted(set(some['machine'])))}"
