"""The tables of the document on scans: how often poison is found, and false alarms."""

from __future__ import annotations

import pandas as pd

from backdoor_lab.analysis.intervals import exact
from backdoor_lab.scan.changes import CHANGES
from backdoor_lab.scan.power import LEARNED
from tests.documents.cells import SWEEPS
from tests.documents.markers import markdown, table

FOLDER = SWEEPS / "scan"
DEVELOPMENT = ("pixel", "pattern", "blended", "sinusoid", "adaptive_blend", "tact")
"""The triggers on which the statistics were chosen."""


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
    developed = planted["change"].isin(DEVELOPMENT).rename("developed")
    lines = [
        [f"[{file}]({file}.csv)", f"`{change}`", "yes" if known else "no", f"{100 * rate:g} %",
         _span(some["images"], "g"), share(some["named"]), share(some["other alarms"]),
         _span(some["statistic"]), f"{100 * some['asr'].mean():.0f} %",
         int((some["asr"] >= LEARNED).sum())]
        for (file, known, change, rate), some in planted.groupby(["file", developed, "change",
                                                                  "rate"])
    ]  # fmt: skip
    head = ["Sets", "Trigger", "Used in development", "Share of the class", "Images",
            "Class named", "Another class named", "Value of the class, median (range)", "Mean ASR",
            "Sets with a mean ASR of 50 % or more"]  # fmt: skip
    return markdown(head, lines, right="lllrrrrrrr")


@table("scan_changes")
def _changes() -> str:
    rows = trials()
    lines = []
    for change, some in rows[rows["change"].isin(list(CHANGES))].groupby("change", sort=False):
        known, own = some[some["p"].notna()], some["class"].notna().any()
        lines.append([
            f"`{change}`", len(some), share(known["named"]) if len(known) and own else "–",
            share(known["other alarms"]) if len(known) else "–",
            _span(some["statistic"]) if own else "–", _span(some["other statistic"]), codes(some),
        ])  # fmt: skip
    head = ["Change", "Sets", "Changed class named", "Another class named",
            "Value of the changed class, median (range)",
            "Largest value of the other (or all) classes, median (range)",
            "Exit codes"]  # fmt: skip
    return markdown(head, lines, right="lrrrrrl")


def codes(some: pd.DataFrame) -> str:
    """The exit codes of scans with their numbers, such as ``0 (4), 3 (1)``."""
    counts = some["exit code"].value_counts().sort_index()
    return ", ".join(f"{code} ({number})" for code, number in counts.items())


def share(counts: pd.Series) -> str:
    """The share of sets with a positive count, and its exact 95 % interval in %."""
    hits, number = int((counts > 0).sum()), len(counts)
    low, high = (100 * limit for limit in exact(hits, number))
    return f"{hits} of {number} ({low:.0f} to {high:.0f} %)"


def _span(values: pd.Series, form: str = ".1f") -> str:
    low, high = values.min(), values.max()
    if low == high:
        return f"{low:{form}}"
    return f"{values.median():{form}} ({low:{form}} to {high:{form}})"


def _made(some: pd.DataFrame) -> str:
    return f"{', '.join(sorted(set(some['date'])))}, {', '.join(sorted(set(some['machine'])))}"
