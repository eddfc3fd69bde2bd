"""Figures of what a defense does in one cell: its scores, the projections, and the poison left."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import NDArray

from backdoor_lab.analysis.evidence import Curve, Histogram
from backdoor_lab.figures.style import CHANCE, CLEAN, EDGE, POISON, REMOVED, new, styled

Array = NDArray[Any]


@styled
def scores(bars: Histogram) -> Figure:
    """Histograms of the scores of the clean and of the poisoned images in the target class, as
    percentages of each group. A line marks the threshold at and above which images are removed."""
    figure = new(4.2, 3.0)
    draw_scores(figure.add_subplot(), bars)
    return figure


def draw_scores(axes: Axes, bars: Histogram) -> None:
    """Draw the histograms of `scores` on `axes`: one filled step curve per group, in percent."""
    for counts, color, hatch, name in (
        (bars.clean, CLEAN, "", "clean"),
        (bars.poison, POISON, "////", "poisoned"),
    ):
        values = 100 * counts / max(counts.sum(), 1)
        axes.stairs(
            values, bars.edges, fill=True, facecolor=color, edgecolor=EDGE, hatch=hatch,
            alpha=1.0 if name == "clean" else 0.75, linewidth=0.8, label=f"{name} ({counts.sum()})",
        )  # fmt: skip
    if bars.cut is not None:
        axes.axvline(bars.cut, color=REMOVED, linestyle="--", linewidth=1.4, label="threshold")
    if bars.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="score", ylabel="share of each group in %", title="Scores in the target class")
    axes.legend()


@styled
def projections(along: Array, is_poison: Array, keep: Array) -> Figure:
    """A scatter plot of the target class, projected onto its top two singular directions.

    `along` float64 (n, 2) are the projections; `is_poison` and `keep` are bool (n,).
    """
    figure = new(4.2, 3.4)
    draw_projections(figure.add_subplot(), along, is_poison, keep)
    return figure


def draw_projections(axes: Axes, along: Array, is_poison: Array, keep: Array) -> None:
    """Draw the points of `projections` on `axes`, as three collections: clean, poisoned,
    removed."""
    for mask, marker, color, edge, size, name in (
        (~is_poison, "o", CLEAN, "none", 8, "clean"),
        (is_poison, "^", POISON, EDGE, 22, "poisoned"),
    ):
        axes.scatter(
            along[mask, 0], along[mask, 1], s=size, marker=marker, color=color,
            edgecolors=edge, linewidths=0.5, label=f"{name} ({mask.sum()})",
        )  # fmt: skip
    axes.scatter(
        along[~keep, 0], along[~keep, 1], s=22, marker="x", color=REMOVED, linewidths=0.7,
        label=f"removed ({(~keep).sum()})",
    )  # fmt: skip
    axes.set(
        xlabel="first singular direction",
        ylabel="second singular direction",
        title="Features of the target class",
    )
    axes.legend()


@styled
def removal(curve: Curve, at: tuple[int, int]) -> Figure:
    """The number of poisoned images left against the number of images removed, for removal by score
    and at random. `at` is the pair (removed, left) that the defense reached."""
    figure = new(4.2, 3.0)
    draw_removal(figure.add_subplot(), curve, at)
    return figure


def draw_removal(axes: Axes, curve: Curve, at: tuple[int, int]) -> None:
    """Draw `removal` on `axes`: one curve for removal by score, one for removal at random, and a
    marker for the defense's result."""
    axes.plot(curve.removed, curve.left, color=CLEAN, label="by score")
    axes.plot(*curve.by_chance, color=CHANCE, linestyle="--", label="at random")
    axes.plot(
        [at[0]], [at[1]], marker="o", color=REMOVED, markerfacecolor="white", linestyle="none",
        markersize=7, markeredgewidth=1.6, label=f"the defense ({at[0]} removed, {at[1]} left)",
    )  # fmt: skip
    axes.set(xlabel="images removed", ylabel="poisoned images left", title="Poison left")
    axes.set_ylim(bottom=-0.03 * max(curve.total, 1))
    axes.legend()
