"""Heat maps over pairs of source and target class: ASR before and after the defense, and the number
of poisoned images left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from backdoor_lab.figures.style import BLACK, PAPER, contrast, new, styled
from backdoor_lab.results.records import CellRecord
from backdoor_lab.tables.layout import PivotSpec
from backdoor_lab.tables.markup import short
from backdoor_lab.tables.pivot import PivotTable, pivot_cells

Array = NDArray[Any]
MEASURES = {"asr1": "ASR1 in %", "asr2": "ASR2 in %", "pois_left": "#Pois Left, images"}
COLORS = "cividis"
_CELL = 0.42


@dataclass(frozen=True)
class Map:
    """One heat map: `values` float64 (sources, targets), NaN for a pair without a cell. The color
    scale runs from 0 to `top`."""

    label: str
    sources: list[str]
    targets: list[str]
    values: Array
    top: float


@dataclass(frozen=True)
class Sheet:
    """The heat maps of a set of cells that differ only in source, target and seed."""

    title: str
    slug: str
    maps: list[Map]


def sheets(cells: Sequence[CellRecord]) -> Iterator[Sheet]:
    """Yield a sheet of heat maps, averaged over seeds, for each set of cells that differ only in
    source, target and seed.

    Ignores cells without a source class, and sets without results or with too few pairs of classes
    (see `_is_grid`).
    """
    paired = [cell for cell in cells if cell.choices.get("source") is not None]
    spec = PivotSpec(("source",), ("target",), tuple(MEASURES))
    before = "_".join(map(".".join, (spec.rows, spec.columns, spec.values))) + "_"
    for table in pivot_cells(paired, spec):
        maps = [found for name in MEASURES if (found := _map(table, name)) is not None]
        if maps and _is_grid(table):
            yield Sheet(_title(table), table.slug.removeprefix(before), maps)


def _is_grid(table: PivotTable) -> bool:
    """Whether the table has more than two pairs of classes, and some of these share a source or
    target."""
    pairs, sides = len(table.cells), (len(table.rows), len(table.columns))
    return pairs > 2 and (pairs > max(sides) or min(sides) == 1)


@styled
def heat_maps(sheet: Sheet) -> Figure:
    """Draw the heat maps of a sheet in one row. Sources are rows, targets are columns, and each
    value is printed in its square."""
    rows, columns = sheet.maps[0].values.shape
    figure = new((columns * _CELL + 1.9) * len(sheet.maps), rows * _CELL + 1.7)
    for axes, each in zip(figure.subplots(1, len(sheet.maps), squeeze=False)[0], sheet.maps,
                          strict=True):  # fmt: skip
        _draw(axes, each)
    figure.suptitle(short(sheet.title))
    return figure


def _draw(axes: Axes, found: Map) -> None:
    colors = mpl.colormaps[COLORS].with_extremes(bad=PAPER)
    image = axes.imshow(np.ma.masked_invalid(found.values), cmap=colors, vmin=0, vmax=found.top)
    axes.set_xticks(range(len(found.targets)), [short(name) for name in found.targets], rotation=90)
    axes.set_yticks(range(len(found.sources)), [short(name) for name in found.sources])
    axes.set(xlabel="target", ylabel="source")
    for (row, column), value in np.ndenumerate(found.values):
        if np.isfinite(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            ink = max(
                (BLACK, PAPER),
                key=lambda each: contrast(each, mpl.colors.to_hex((red, green, blue))),
            )
            axes.text(column, row, f"{value:.0f}", color=ink, ha="center", va="center", size=7)
    axes.figure.colorbar(image, ax=axes, label=found.label, shrink=0.8)


def _map(table: PivotTable, name: str) -> Map | None:
    """The heat map of one measure; None if no cell has this measure."""
    values = np.full((len(table.rows), len(table.columns)), np.nan)
    for row, column in np.ndindex(values.shape):
        place = table.cells.get((table.rows[row], table.columns[column]))
        if place is not None and name in place.estimates:
            values[row, column] = place.estimates[name].mean
    if not np.isfinite(values).any():
        return None
    top = 100.0 if name.startswith("asr") else max(float(np.nanmax(values)), 1.0)
    return Map(MEASURES[name], _names(table.rows), _names(table.columns), values, top)


def _title(table: PivotTable) -> str:
    """The part of the title that distinguishes the table from others, such as ``pixel, seed 0``."""
    return table.title.partition(": ")[2]


def _names(keys: Sequence[tuple[str, ...]]) -> list[str]:
    return [" ".join(key) for key in keys]
