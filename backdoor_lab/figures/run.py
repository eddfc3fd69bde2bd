"""Figures of the stages of cells: their results, the training losses, and their cost in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from backdoor_lab.figures.style import BLACK, EDGE, fill, mark, new, styled

Array = NDArray[Any]
_WIDE, _HIGH, _GAP = 1.0, 0.6, 0.24


@styled
def pipeline(steps: Sequence[tuple[str, Sequence[str]]]) -> Figure:
    """Draw the stages of a cell from left to right. Each of `steps` consists of the name of
    a stage and lines of text about its result."""
    figure = new(1.45 * len(steps), 1.25)
    draw_pipeline(figure.add_subplot(), steps)
    return figure


def draw_pipeline(axes: Axes, steps: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Draw the stages of a cell on `axes`. `steps` is as in `pipeline`."""
    for number, (name, lines) in enumerate(steps):
        left = number * (_WIDE + _GAP)
        box = FancyBboxPatch(
            (left, 0), _WIDE, _HIGH, boxstyle="round,pad=0.02", facecolor="white", edgecolor=EDGE
        )
        axes.add_patch(box)
        middle = left + _WIDE / 2
        axes.text(middle, _HIGH - 0.04, name, ha="center", va="top", weight="bold")
        axes.text(middle, _HIGH - 0.19, "\n".join(lines), ha="center", va="top", fontsize=7.5)
        if number:
            ends = (left - _GAP + 0.02, _HIGH / 2), (left - 0.02, _HIGH / 2)
            axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=10, color=BLACK))
    axes.set_xlim(-0.1, len(steps) * (_WIDE + _GAP) - _GAP + 0.1)
    axes.set_ylim(-0.08, _HIGH + 0.08)
    axes.set_axis_off()


@styled
def training(losses: Mapping[str, Array]) -> Figure:
    """Draw the mean training loss against the epoch. `losses` maps the name of each training to
    its losses, float64 (epochs,)."""
    figure = new(4.2, 3.0)
    draw_training(figure.add_subplot(), losses)
    return figure


def draw_training(axes: Axes, losses: Mapping[str, Array]) -> None:
    """Draw the mean training loss against the epoch on `axes`, with one line per training."""
    for number, (name, values) in enumerate(losses.items()):
        color, marker, line = mark(number)
        shown = marker if len(values) <= 30 else "none"
        epochs = np.arange(1, len(values) + 1)
        axes.plot(epochs, values, color=color, marker=shown, linestyle=line, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel="mean loss", title="Training loss")
    axes.set_ylim(bottom=0)
    if losses and max(map(len, losses.values())) == 1:
        # With only one epoch, matplotlib would choose an arbitrary range.
        axes.set_xlim(0.5, 1.5)
        axes.set_xticks([1])
        axes.set_ylim(top=1.2 * max(values.max() for values in losses.values() if len(values)))
    axes.legend()


@styled
def cost(names: Sequence[str], stages: Sequence[str], seconds: Array) -> Figure:
    """Draw `seconds`, float64 (cells, stages), as one stacked bar for each of `names`.

    If several cells share a stage, each bar shows the time that the stage took when it was
    computed.
    """
    figure = new(7.0, 1.3 + 0.22 * len(names))
    axes = figure.add_subplot()
    places, left = np.arange(len(names)), np.zeros(len(names))
    for number, stage in enumerate(stages):
        color, hatch = fill(number)
        axes.barh(
            places, seconds[:, number], left=left, height=0.7, color=color, hatch=hatch,
            edgecolor=EDGE, linewidth=0.5, label=stage,
        )  # fmt: skip
        left = left + seconds[:, number]
    axes.set_yticks(places, names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(xlabel="seconds", title="Cost per stage")
    figure.legend(loc="outside right upper")
    return figure
