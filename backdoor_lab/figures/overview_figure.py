"""The overview figure of a sweep: its triggers, and the result of one cell in detail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backdoor_lab.analysis.cell_artifacts import CellArtifacts, cell_artifacts, in_target
from backdoor_lab.analysis.evidence import histogram, operating_point, removal_curve
from backdoor_lab.figures.detection import (
    draw_projections,
    draw_removal,
    draw_scores,
)
from backdoor_lab.figures.images import draw_triggers
from backdoor_lab.figures.inputs import SweepData, attacked, losses_of, projected, trigger_rows
from backdoor_lab.figures.ratios import MEASURES, draw_lines, panels
from backdoor_lab.figures.run import draw_training
from backdoor_lab.figures.style import new, styled
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.sweeps import CONTROLS
from backdoor_lab.tables.layout import split
from backdoor_lab.tables.markup import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def sheet(whole: SweepData) -> Figure | None:
    """Draw the overview figure.

    On the left: triggers, and ASR against the ratio. On the right: scores, projections, removal
    curve and losses of the first completed cell that is not a control and has both poison and
    stored scores. Returns None if there is no such cell, or if data for any part except the losses
    is missing.
    """
    for cell, record in whole.done():
        if cell.choices["defense"] in CONTROLS:
            continue
        found = cell_artifacts(whole.reader, record)
        if found is not None and found.training.is_poison.any():
            return _drawn(whole, cell.id, record, found)
    return None


def _drawn(
    whole: SweepData, name: str, record: dict[str, Any], found: CellArtifacts
) -> Figure | None:
    where = in_target(found)
    poison, keep = found.training.is_poison, found.filter_result.keep
    bars = histogram(found.filter_result.scores[where], poison[where], keep[where])
    plain = ~found.training.is_cover
    curve = removal_curve(found.filter_result.scores[plain], poison[plain])
    along = projected(whole.reader, record, found)
    triggers = list(attacked(whole))
    if bars is None or curve is None or along is None or not triggers:
        return None
    figure = new(11.0, 5.6)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 2))[0]
    above, below = left.subfigures(2, 1, squeeze=False, height_ratios=(1.15, 1))[:, 0]
    draw_triggers(above, *trigger_rows(triggers[:3]))
    panel = panels(split(CellFields([cell for cell, _ in whole.done()]))[0])[0]
    axes = below.subplots()
    draw_lines(axes, panel.lines["asr"])
    axes.set(title=panel.title, xlabel=panel.axis, ylabel=MEASURES["asr"], ylim=(-4, 104))
    axes.legend()
    grid = right.subplots(2, 2)
    draw_scores(grid[0][0], bars)
    draw_projections(grid[0][1], along, poison[where], keep[where])
    draw_removal(grid[1][0], curve, operating_point(keep[plain], poison[plain]))
    draw_training(grid[1][1], losses_of(whole.reader, record))
    right.suptitle(short(name))
    return figure
