"""Figures of the ASR on transformed test images, against the strength of the transformation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.figures.style import BLACK, mark, new, styled
from backdoor_lab.results.measure_names import under_names
from backdoor_lab.results.metrics import MEASURE, figure_of, under_name
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.versions import unversioned
from backdoor_lab.tables.layout import PivotSpec, slug, telling
from backdoor_lab.tables.markup import short
from backdoor_lab.tables.pivot import PivotTable, pivot_cells
from backdoor_lab.training.transformations import KINDS, parse

Array = NDArray[Any]
FIGURES = {"asr1": "ASR1 in %", "asr2": "ASR2 in %"}
ACCURACY = {"asr1": "nat1", "asr2": "nat2"}
"""Maps each attack success rate to the accuracy of the same network, which shows whether a
transformation destroys the whole image or only the trigger."""
_COLUMNS = 3
# The place of untransformed images on an axis that has no natural value for them.
_LOSSLESS = 110


@dataclass(frozen=True)
class Curve:
    """One trigger under one kind of transformation.

    `strengths` float64 (k,) includes the strength that leaves images unchanged. `means` are in
    percent; `halves` are the half-widths of their 95 % confidence intervals, NaN if there is only
    one seed.
    """

    trigger: str
    strengths: Array
    means: Array
    halves: Array


@dataclass(frozen=True)
class Panel:
    """The curves of one kind of transformation (a key of KINDS). `accuracy` is the accuracy on
    images with the same transformation but without the trigger, averaged over triggers; None if
    this mean is undefined (see `_mean`)."""

    kind: str
    curves: list[Curve]
    accuracy: Curve | None = None


def against_strength(cells: Sequence[CellRecord]) -> Iterator[tuple[str, Figure]]:
    """Yields a name and a figure for each entry of `FIGURES` and each set of cells that differ only
    in trigger and seed. Ignores cells that were not measured under transformations."""
    measured = [cell for cell in cells if cell.done and under_names([cell])]
    for figure, says in FIGURES.items():
        pair = (figure, ACCURACY[figure])
        names = [name for name in under_names(measured) if figure_of(name) in pair]
        shows = any(figure_of(name) == figure for name in names)
        tables = (
            pivot_cells(measured, PivotSpec(("trigger",), (), (*pair, *names))) if shows else []
        )
        apart = telling([table.traits for table in tables])
        taken: set[str] = set()
        for table in tables:
            shown = panels(table, figure)
            if shown:
                words = [table.traits.get(name, "") for name in apart]
                name = slug("-".join([f"{figure}_under", *words]), table.slug, taken)
                taken.add(name)
                differences = [f"{each} {table.traits.get(each, '')}" for each in apart]
                title = ", ".join([f"{says} on transformed test images", *differences])
                yield name, drawn(title, says, shown)


def panels(table: PivotTable, figure: str) -> list[Panel]:
    """One panel for each kind of transformation in the table, in the order of KINDS. A panel has
    one curve of the measure `figure` for each trigger (row of the table)."""
    names = [name for name in table.spec.values if name.startswith(under_name(figure, ""))]
    found: dict[str, list[tuple[float, str]]] = {kind: [] for kind in KINDS}
    for name in names:
        try:
            kind, strength = parse(name.removeprefix(under_name(figure, "")))
        except ConfigError:
            continue  # Written by another version of this package.
        found[kind].append((strength, name))
    chosen = {kind: [(_untouched(kind), figure), *each] for kind, each in found.items() if each}
    return [
        Panel(
            kind,
            [curve for row in table.rows if (curve := _curve(table, row, points))],
            _mean(table, [(s, name.replace(figure, ACCURACY[figure], 1)) for s, name in points]),
        )
        for kind, points in chosen.items()
    ]


def _untouched(kind: str) -> float:
    return _LOSSLESS if kind == "jpeg" else KINDS[kind].none


def _curve(
    table: PivotTable, row: tuple[str, ...], points: Sequence[tuple[float, str]]
) -> Curve | None:
    known = table.cells[row, ()].estimates
    found = sorted((strength, known[name]) for strength, name in points if name in known)
    if not found:
        return None
    halves = [np.nan if value.half is None else value.half for _, value in found]
    strengths, means = np.array([s for s, _ in found]), np.array([v.mean for _, v in found])
    return Curve(short(row[0]), strengths, means, np.array(halves))


def _mean(table: PivotTable, points: Sequence[tuple[float, str]]) -> Curve | None:
    """The mean over the triggers. None if the table has several versions of a trigger or fewer than
    two points."""
    if len({unversioned(row[0]) for row in table.rows}) < len(table.rows):
        return None
    found = []
    for strength, name in sorted(points):
        known = [place.estimates[name].mean for place in table.cells.values()
                 if name in place.estimates]  # fmt: skip
        found += [(strength, float(np.mean(known)))] if known else []
    if len(found) < 2:
        return None
    strengths, means = (np.array(each) for each in zip(*found, strict=True))
    head = MEASURE[points[0][1]].head
    return Curve(f"{head}, mean", strengths, means, np.full(len(means), np.nan))


@styled
def drawn(title: str, says: str, shown: Sequence[Panel]) -> Figure:
    """Draw the panels in rows of three. Untransformed images are at the tick ``none``.

    Bars are 95 % intervals over seeds. The gray band rises to the accuracy on images without
    the trigger (`Panel.accuracy`).
    """
    rows = -(-len(shown) // _COLUMNS)
    columns = min(len(shown), _COLUMNS)
    figure = new(1.2 + 3.0 * columns, 1.6 + 2.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten()
    order = list(dict.fromkeys(curve.trigger for panel in shown for curve in panel.curves))
    for axes, panel in zip(grid, shown, strict=False):
        _draw(axes, panel, order)
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    for axes in grid[::columns]:
        axes.set_ylabel(says)
    figure.suptitle(short(title))
    named = {label: handle for axes in grid[: len(shown)]
             for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}  # fmt: skip
    order += [name for name in named if name not in order]
    figure.legend(
        [named[name] for name in order], order, loc="outside lower center", ncols=min(6, len(order))
    )
    return figure


def _draw(axes: Axes, panel: Panel, order: Sequence[str]) -> None:
    for curve in panel.curves:
        color, marker, line = mark(order.index(curve.trigger))
        axes.errorbar(
            curve.strengths, curve.means, curve.halves, color=color, marker=marker, linestyle=line,
            capsize=2.5, label=curve.trigger,
        )  # fmt: skip
    kind = KINDS[panel.kind]
    if panel.accuracy is not None:
        axes.fill_between(
            panel.accuracy.strengths, panel.accuracy.means, color=BLACK, alpha=0.08, linewidth=0,
            label=panel.accuracy.trigger,
        )  # fmt: skip
    none = _untouched(panel.kind)
    ticks = np.unique(np.concatenate([curve.strengths for curve in panel.curves]))
    axes.set_xticks(ticks, ["none" if tick == none else f"{tick:g}" for tick in ticks])
    axes.set(title=panel.kind, xlabel=kind.unit, ylim=(-4, 104))
    if none >= kind.high:
        axes.invert_xaxis()
