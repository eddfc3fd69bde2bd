"""Figures of ASR, Nat and AUROC against the poison ratio, before and after each defense."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backdoor_lab.analysis.intervals import half_width
from backdoor_lab.figures.style import mark, new, styled
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.values import is_count
from backdoor_lab.tables.layout import TableGroup
from backdoor_lab.tables.markup import short

Array = NDArray[Any]
BEFORE = "before"
PREDICTED = "predicted from the features"
MEASURES = {"asr": "ASR in %", "nat": "Nat in %", "auroc": "AUROC in %"}
_APART = 0.012
_WIDE = 20
"""The ratio axis is logarithmic if the largest ratio is more than this many times the smallest
one."""


@dataclass(frozen=True)
class Series:
    """One line of a chart. `ratios` float64 (k,) are percentages or numbers of images; `means` are
    percentages; `halves` are the half-widths of their 95 % confidence intervals, NaN if there is
    only one seed."""

    name: str
    ratios: Array
    means: Array
    halves: Array


@dataclass(frozen=True)
class Panel:
    """The lines of one target class for each measure (a key of MEASURES). `axis` is the label of
    the x axis."""

    title: str
    lines: dict[str, list[Series]]
    axis: str = "poison ratio in %"


@styled
def against_ratio(title: str, panels: Sequence[Panel]) -> Figure:
    """Draw one column per target class: ASR, Nat and, if known, AUROC against the ratio.

    Bars are 95 % intervals over seeds. Lines are shifted sideways by about 1 % of the axis so that
    they do not hide each other.
    """
    shown = [name for name in MEASURES if any(panel.lines[name] for panel in panels)]
    figure = new(1.2 + 2.5 * len(panels), 1 + 1.8 * len(shown))
    grid = figure.subplots(len(shown), len(panels), squeeze=False, sharex=True, sharey="row")
    for column, panel in enumerate(panels):
        for place, measure in enumerate(shown):
            # AUROC has no line "before any defense". Start at color 1, so that each defense keeps
            # its color.
            draw_lines(grid[place][column], panel.lines[measure], first=int(measure == "auroc"))
        grid[0][column].set_title(panel.title)
        grid[0][column].set_ylim(-4, 104)
        grid[-1][column].set_xlabel(panel.axis)
    for place, name in enumerate(shown):
        grid[place][0].set_ylabel(MEASURES[name])
    figure.suptitle(short(title))
    named: dict[str, Any] = {}
    for axes in grid.flat:
        drawn, names = axes.get_legend_handles_labels()
        named |= dict(zip(names, drawn, strict=True))
    # A figure with a single panel has no room for two long labels in a row.
    columns = min(4, 2 * len(panels) - 1)
    figure.legend([*named.values()], [*named.keys()], loc="outside lower center", ncols=columns)
    return figure


def draw_lines(axes: Axes, lines: Sequence[Series], *, first: int = 0) -> None:
    """Draw `lines` with their intervals. Line i has the color and the marker numbered `first` +
    i."""
    known = np.concatenate([each.ratios for each in lines] or [np.zeros(1)])
    wide = known.max() > _WIDE * known[known > 0].min(initial=np.inf)
    width = float(np.ptp(known)) or max(float(known.max()), 1.0)
    for number, each in enumerate(lines):
        color, marker, line = mark(first + number)
        aside = (number - (len(lines) - 1) / 2) * _APART
        where = each.ratios * 10 ** (2 * aside) if wide else each.ratios + aside * width
        axes.errorbar(
            where, each.means, each.halves, color=color, marker=marker,
            linestyle=line, capsize=2.5, label=each.name,
        )  # fmt: skip
    if wide:
        least = float(known[known > 0].min())
        axes.set_xscale("symlog", linthresh=least)
        axes.set_xlim(known.min() / 1.3 if known.min() else -least / 4, known.max() * 1.3)
        axes.set_xticks(np.unique(known), [f"{value:g}" for value in np.unique(known)], rotation=45)
        axes.minorticks_off()
    else:
        axes.set_xticks(np.unique(known))
        axes.set_xlim(known.min() - 0.15 * width, known.max() + 0.15 * width)


def panels(group: TableGroup, predicted: Mapping[str, float] | None = None) -> list[Panel]:
    """The panels of the completed cells of a table, one per target class.

    The x axis is the ratio in percent or, if the protocol counts images, the number of images.
    `predicted` maps the id of a cell to the AUROC predicted from its features.
    """
    ratio_of = group.traits.get("protocol.ratio_of")
    counted = any(is_count(each.choices["ratio"], ratio_of) for each in group.cells if each.choices)
    axis, scale = ("poisoned images", 1) if counted else (Panel.axis, 100)
    by_target: dict[str, list[int]] = defaultdict(list)
    for number in group.numbers:
        cell = group.facts.cells[number]
        if cell.done and cell.choices:
            by_target[str(cell.choices["target"])].append(number)
    return [
        Panel(
            short(f"{group.trigger} → {target}"),
            {
                "asr": _series(group.facts, numbers, "asr", scale),
                "nat": _series(group.facts, numbers, "nat", scale),
                "auroc": _detection(group.facts, numbers, predicted or {}, scale),
            },
            axis,
        )
        for target, numbers in by_target.items()
    ]


def _series(facts: CellFields, numbers: Sequence[int], measure: str, scale: int) -> list[Series]:
    """One line before any defense, and one after each defense, in the order of the sweep.

    For the line before any defense, cells that differ only in the defense are averaged. x is
    `scale` times the ratio.
    """
    before: dict[tuple[float, int], list[float]] = defaultdict(list)
    after: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in numbers:
        cell = facts.cells[number]
        chosen, defense = cell.choices, facts.word(number, "defense")
        if f"{measure}1" in cell.numbers:
            key = scale * float(chosen["ratio"]), chosen["seed"]
            before[key].append(cell.numbers[f"{measure}1"])
        if f"{measure}2" in cell.numbers:
            values = after[defense][scale * float(chosen["ratio"])]
            values.append(cell.numbers[f"{measure}2"])
    first: dict[float, list[float]] = defaultdict(list)
    for (ratio, _), values in before.items():
        first[ratio].append(statistics.fmean(values))
    named = [(BEFORE, first), *((short(f"after {name}"), found) for name, found in after.items())]
    return [_estimate(name, found) for name, found in named if found]


def _detection(
    facts: CellFields, numbers: Sequence[int], predicted: Mapping[str, float], scale: int
) -> list[Series]:
    """One line per defense with the AUROC of its scores, and one line with the AUROC predicted from
    the features. Lines without data are omitted."""
    measured: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    promised: dict[tuple[float, int], float] = {}
    for number in numbers:
        cell = facts.cells[number]
        ratio = scale * float(cell.choices["ratio"])
        if "auroc" in cell.numbers:
            measured[facts.word(number, "defense")][ratio].append(cell.numbers["auroc"])
        if cell.id in predicted:
            promised[ratio, cell.choices["seed"]] = predicted[cell.id]
    along: dict[float, list[float]] = defaultdict(list)
    for (ratio, _), value in promised.items():
        along[ratio].append(value)
    named = [*((short(f"after {name}"), found) for name, found in measured.items()),
             (PREDICTED, along)]  # fmt: skip
    return [_estimate(name, found) for name, found in named if found]


def _estimate(name: str, found: dict[float, list[float]]) -> Series:
    ratios = sorted(found)
    samples = [[100 * value for value in found[ratio]] for ratio in ratios]
    halves = [
        half_width(statistics.stdev(values), len(values)) if len(values) > 1 else None
        for values in samples
    ]
    return Series(
        name,
        np.array(ratios),
        np.array([statistics.fmean(values) for values in samples]),
        np.array([np.nan if half is None else half for half in halves]),
    )
