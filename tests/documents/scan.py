"""The tables of the document on scans: how often poison is found, and false alarms."""

from __future__ import annotations

import pandas as pd

from backdoor_lab.analysis.intervals import exact
from backdoor_lab.scan.changes import CHANGES
from tests.documents.cells import SWEEPS
from tests.documents.markers import markdown, table

FOLDER = SWEEPS / "scan"
DEVELOPMENT = ("pixel", "pattern", "blended", "sinusoid", "adaptive_blend", "tact")
"""The triggers on which the statistics were chosen."""
LEARNED = 0.5
"""The smallest attack success rate of a trigger that a network has learned."""


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


@table("scan_triggers")
def _triggers() -> str:
    rows = trials()
    planted = rows[~rows["change"].isin(["none", *CHANGES])]
    keys = [~planted["change"].isin(DEVELOPMENT), "file", "rate", "change"]
    groups = planted.groupby(keys, sort=True)
    lines = [
        [f"[{file}]({file}.csv)", f"`{change}`", "yes" if not fresh else "no", f"{100 * rate:g} %",
         share(some["named"]), share(some["other alarms"]), _span(some["statistic"]),
         f"{100 * some['asr'].mean():.0f} %", f"{int((some['asr'] >= LEARNED).sum())}",
         ]
        for (fresh, file, rate, change), some in groups
    ]  # fmt: skip
    head = ["Sets", "Trigger", "Used in development", "Share of the class", "Class named",
            "Another class named", "Value of the class, median (range)", "Mean ASR",
            "Learned"]  # fmt: skip
    return markdown(head, lines, right="lllrrrrrr")


@table("scan_changes")
def _changes() -> str:
    rows = trials()
    lines = [
        [f"`{change}`", len(some), _alarms(some, "named") if some["class"].any() else "–",
         _alarms(some, "other alarms"), codes(some)]
        for change, some in rows[rows["change"].isin(list(CHANGES))].groupby("change", sort=False)
    ]  # fmt: skip
    head = ["Change", "Sets", "Alarm in the changed class", "Alarm in another class", "Exit codes"]
    return markdown(head, lines, right="lrrrl")


def codes(some: pd.DataFrame) -> str:
    """The exit codes of scans with their numbers, such as ``0 (4), 3 (1)``."""
    counts = some["exit code"].value_counts().sort_index()
    return ", ".join(f"{code} ({number})" for code, number in counts.items())


def share(counts: pd.Series) -> str:
    """The share of sets with a positive count, and its exact 95 % interval in %."""
    hits, number = int((counts > 0).sum()), len(counts)
    low, high = (100 * limit for limit in exact(hits, number))
    return f"{hits} of {number} ({low:.0f} to {high:.0f} %)"


def _span(values: pd.Series) -> str:
    return f"{values.median():.1f} ({values.min():.1f} to {values.max():.1f})"


def _made(some: pd.DataFrame) -> str:
    return f"{', '.join(sorted(set(some['date'])))}, {', '.join(sorted(set(some['machine'])))}"
