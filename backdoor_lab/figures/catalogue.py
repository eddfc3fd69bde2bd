"""Lists the figures of a sweep, and those of a cell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.figure import Figure

from backdoor_lab.analysis.cell_artifacts import cell_artifacts, in_target
from backdoor_lab.analysis.evidence import (
    histogram,
    operating_point,
    recorded_curve,
    removal_curve,
)
from backdoor_lab.analysis.separation import separation_of
from backdoor_lab.figures import detection, heat, images, ratios, run, transformed
from backdoor_lab.figures.inputs import (
    Record,
    SweepData,
    attacked,
    costs,
    layers,
    losses_of,
    projected,
    steps,
    trigger_rows,
)
from backdoor_lab.figures.overview_figure import sheet
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.records import CellRecord
from backdoor_lab.tables.layout import split

Named = tuple[str, Figure]
SEVERAL = 4
"""The AUROC predicted from features is drawn only for sweeps with at least this many ratios."""


def of_sweep(whole: SweepData) -> Iterator[Named]:
    """Yield each figure of a sweep with its name. Skips figures whose data is missing."""
    found = list(attacked(whole))
    if found:
        yield "triggers", images.triggers(*trigger_rows(found))
        rows = [row for each in found if len(row := layers(whole, *each))]
        if rows:
            yield "filters", images.filters(rows)
    for _, record in whole.done():
        yield "pipeline", run.pipeline(steps(record))
        break
    done = [cell for cell, _ in whole.done()]
    for group in split(CellFields(done)):
        shown = ratios.panels(group, promised(whole, group.cells))
        if shown:
            yield f"ratio_{group.slug}", ratios.against_ratio(group.title, shown)
    yield from transformed.against_strength(done)
    for pairs in heat.sheets(whole.cells):
        yield f"pairs_{pairs.slug}", heat.heat_maps(pairs)
    names, stages, seconds = costs(done)
    if len(names):
        yield "cost", run.cost(names, stages, seconds)
    overview = sheet(whole)
    if overview is not None:
        yield "sheet", overview


def promised(whole: SweepData, cells: Sequence[CellRecord]) -> dict[str, float]:
    """Map the id of each cell to the AUROC predicted from the cell's features (see
    `separation.predicted_auroc`).

    Cells without a prediction are omitted. The result is empty if `cells` have fewer than `SEVERAL`
    different poison ratios.
    """
    if len({cell.choices["ratio"] for cell in cells if cell.choices}) < SEVERAL:
        return {}
    known = {cell.id: separation_of(whole.reader, whole.records[cell.id]) for cell in cells
             if cell.id in whole.records}  # fmt: skip
    return {each: found.predicted for each, found in known.items()
            if found is not None and np.isfinite(found.predicted)}  # fmt: skip


def of_cell(whole: SweepData, record: Record) -> Iterator[Named]:
    """Yields each figure of a completed cell with its name; skips figures whose data is missing."""
    yield "pipeline", run.pipeline(steps(record))
    losses = losses_of(whole.reader, record)
    if losses:
        yield "training", run.training(losses)
    found = cell_artifacts(whole.reader, record)
    if found is None:
        recorded = recorded_curve(record)
        if recorded is not None:
            yield "removal", detection.removal(*recorded)
        return
    where = in_target(found)
    poison, keep = found.training.is_poison, found.filter_result.keep
    bars = histogram(found.filter_result.scores[where], poison[where], keep[where])
    if bars is not None:
        yield "scores", detection.scores(bars)
    plain = ~found.training.is_cover
    curve = removal_curve(found.filter_result.scores[plain], poison[plain])
    if curve is not None:
        at = operating_point(keep[plain], poison[plain])
        yield "removal", detection.removal(curve, at)
    along = projected(whole.reader, record, found)
    if along is not None:
        yield "projections", detection.projections(along, poison[where], keep[where])
