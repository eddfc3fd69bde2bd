"""Formats a comparison as a table."""

from __future__ import annotations

from dataclasses import dataclass

from backdoor_lab.compare.pairs import ComparisonRow
from backdoor_lab.core.terminal import plain
from backdoor_lab.results.facts import head
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.tables.markup import NOTHING, TextTable, short
from backdoor_lab.tables.writers import Document

LEVEL = 0.05
FLOOR = 1e-12
"""P values below this are shown as "under 1e-12": their digits are rounding errors."""
ALL = "all"


@dataclass(frozen=True)
class Comparison:
    """A comparison of cells. All differences are `ours` minus `base`.

    `side` is the choice whose values are compared, or empty if the comparison is not within one
    sweep. `labels` are the choices that identify a line.
    """

    title: str
    ours: str
    base: str
    side: str
    labels: tuple[str, ...]
    lines: list[ComparisonRow]
    notes: list[str]


def significant(line: ComparisonRow) -> str:
    """``yes`` or ``no`` according to the adjusted p value and the 5 % level, or the reason why
    there is no test."""
    if line.result.n == 1:
        return "one pair"
    if line.result.constant:
        return "constant"
    return "yes" if line.holm is not None and line.holm < LEVEL else "no"


def grid(found: Comparison) -> TextTable:
    """Format the comparison as a text table."""
    sides = [head(found.side)] * bool(found.side)
    names = [*sides, *map(head, found.labels), "Measure"]
    tests = ["p (t)", "p (Holm)", "p (sign)", "p (Wilcoxon)", "Significant"]
    heads = [*names, short(found.ours), short(found.base), "Difference", "Pairs", *tests]
    rows = [_row(found, line) for line in found.lines]
    notes = [plain(note) for note in found.notes]
    return TextTable(plain(found.title), heads, rows, notes, len(names))


def _row(found: Comparison, line: ComparisonRow) -> list[str]:
    result, measure = line.result, MEASURE[line.measure]
    labels = [ALL] * len(found.labels) if line.lines else [short(label) for label in line.labels]
    digits = measure.digits(result.n)
    text = f"{round(result.mean, digits) + 0.0:+.{digits}f}"
    if result.half is not None:
        text += f" ± {result.half:.{digits}f}"
    pairs = f"{line.lines} lines" if line.lines else str(result.n)
    return [
        *[short(line.side)] * bool(found.side), *labels, measure.head,
        f"{line.ours:.{digits}f}", f"{line.base:.{digits}f}", text, pairs,
        *map(_p, (result.t, line.holm, result.sign, result.wilcoxon)), significant(line),
    ]  # fmt: skip


def _p(value: float | None) -> str:
    if value is None:
        return NOTHING
    if value < FLOOR:
        return f"under {FLOOR:.0e}"
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def document(found: Comparison) -> Document:
    """Format the comparison as a document. Its spreadsheet has one row per line; in the column
    `lines`, a summary line has the number of lines that it summarizes, and any other line has 0."""
    head = [
        "side", *found.labels, "measure", "ours", "base", "difference", "ci95", "std", "n", "lines",
        "p_t", "p_holm", "p_sign", "p_wilcoxon", "significant",
    ]  # fmt: skip
    rows: list[list[object]] = []
    for line in found.lines:
        result = line.result
        labels = line.labels or (ALL,) * len(found.labels)
        rows.append([
            line.side, *labels, line.measure, line.ours, line.base, result.mean, result.half,
            result.std, result.n, line.lines, result.t, line.holm, result.sign, result.wilcoxon,
            significant(line),
        ])  # fmt: skip
    return Document(found.title, [grid(found)], head, rows)
