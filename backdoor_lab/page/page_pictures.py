"""Encodes the pictures of a page's cells as compact JSON: charts as numbers, and the images of a
cell as one PNG in base64."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.analysis.cell_artifacts import CellArtifacts, cell_artifacts, in_target
from backdoor_lab.analysis.evidence import (
    Curve,
    Histogram,
    histogram,
    operating_point,
    picks,
    projections,
    recorded_curve,
    removal_curve,
    sampled,
    thinned,
)
from backdoor_lab.core.terminal import plain
from backdoor_lab.results.artifact_reader import ArtifactReader

Array = NDArray[Any]
Shown = dict[str, Any]
LATE = "the trigger is applied after augmentation, so the stored images do not show it"
FULL = "omitted: the page has reached its size limit"
LARGEST_TILE = 64
GRID = 999
_POINTS, _FEWEST_POINTS, _BYTES_A_POINT = 320, 48, 10
_STEPS = 60
_EPOCHS = 120
_IMAGES = (8, 6, 4, 3, 2, 1)
_KINDS = 3


def all_pictures(reader: ArtifactReader, records: Iterable[Shown], budget: int) -> list[Shown]:
    """Make the pictures of each record, in at most `budget` bytes of JSON in total.

    Charts take precedence over images, and earlier records over later ones. The limit on the number
    of images is the same for all cells. The list ``notes`` of a cell states what is omitted.
    """
    records = list(records)
    points = _points(budget, len(records))
    made = [_charts(reader, record, points) for record in records]
    left = budget
    for number, each in enumerate(made):
        left -= (size := _size(each))
        if left < 0:
            left, made[number] = left + size, {"notes": [f"pictures {FULL}"]}
    _add_images(reader, records, made, left)
    return made


def _points(budget: int, cells: int) -> int:
    share = 0.3 * budget / max(cells, 1) / _BYTES_A_POINT
    return int(np.clip(share, _FEWEST_POINTS, _POINTS))


def _size(value: Shown) -> int:
    return len(json.dumps(value, separators=(",", ":")))


def _charts(reader: ArtifactReader, record: Shown, points: int) -> Shown:
    shown: Shown = {"notes": [], "loss": _losses(reader, record)}
    found = cell_artifacts(reader, record)
    if found is None:
        recorded = recorded_curve(record)
        return shown if recorded is None else shown | {"curve": _curve(*recorded)}
    where = in_target(found)
    poison, keep = found.training.is_poison, found.filter_result.keep
    bars = histogram(found.filter_result.scores[where], poison[where], keep[where])
    shown["scores"] = None if bars is None else _bars(bars)
    own = ~found.training.is_cover
    curve = removal_curve(found.filter_result.scores[own], poison[own])
    shown["curve"] = (
        None if curve is None else _curve(curve, operating_point(keep[own], poison[own]))
    )
    values = reader.features(record, where, len(poison))
    if values is not None and len(values) > 1 and np.isfinite(values).all():
        shown["scatter"] = _scatter(projections(values), poison[where], keep[where], points)
    return shown


def _losses(reader: ArtifactReader, record: Shown) -> Shown:
    """The loss per epoch of both training runs, as [epoch, loss] pairs. If there are many epochs,
    only some of them are included."""
    found = {}
    for stage in ("train", "retrain"):
        losses = reader.losses(record, stage)
        if losses is not None and len(losses):
            epochs = sampled(np.arange(len(losses)), _EPOCHS)
            found[stage] = [[int(e) + 1, short(losses[e])] for e in epochs]
    return found


def _bars(bars: Histogram) -> Shown:
    return {
        "low": short(bars.edges[0]), "high": short(bars.edges[-1]), "log": bars.log,
        "cut": None if bars.cut is None else short(bars.cut),
        "clean": bars.clean.tolist(), "poison": bars.poison.tolist(),
    }  # fmt: skip


def _curve(curve: Curve, at: tuple[int, int]) -> Shown:
    thin = thinned(curve, _STEPS, at[0])
    return {
        "removed": thin.removed.tolist(), "left": [short(value) for value in thin.left],
        "total": curve.total, "scored": curve.scored,
        "at": list(at),
    }  # fmt: skip


def _scatter(along: Array, poison: Array, keep: Array, points: int) -> Shown:
    """A scatter chart as numbers: ``points`` is the flat list x, y, kind, x, y, kind, ...

    x and y are integers from 0 to GRID; ``span`` has the range of values that each axis covers.
    Kinds: 0 clean, 1 clean and removed, 2 poison, 3 poison and removed. ``totals`` counts the
    points of each kind, of which only a sample may be listed.
    """
    low, high = along.min(axis=0), along.max(axis=0)
    scale = np.where(high > low, high - low, 1)
    grid = np.rint((along - low) / scale * GRID).astype(int)
    kind = 2 * poison.astype(int) + ~keep
    flat: list[int] = []
    for each in range(4):
        members = sampled(np.flatnonzero(kind == each), points // (2 if each == 0 else 4))
        flat += np.column_stack([grid[members], kind[members]]).ravel().tolist()
    totals = np.bincount(kind, minlength=4).tolist()
    span = [[short(low[a]), short(high[a])] for a in (0, 1)]
    return {"points": flat, "totals": totals, "span": span}


def _add_images(
    reader: ArtifactReader, records: list[Shown], made: list[Shown], budget: int
) -> None:
    """Add the key ``images`` to each entry of `made` that has the key ``scores``, within `budget`
    bytes in total. The limit on the number of images is the same for all cells."""
    wanted = [n for n, each in enumerate(made) if "scores" in each]
    limit = None
    for number in wanted:
        found = cell_artifacts(reader, records[number])
        if found is None:
            continue
        if is_triggered_late(records[number]):
            made[number]["notes"].append(LATE)
            continue
        limit = limit or _limit(found.training.base.shape[1:], budget, len(wanted))
        strip = _strip(found, limit)
        size = _size(strip)
        if size > budget:
            made[number]["notes"].append(f"images {FULL}")
            continue
        budget -= size
        made[number]["images"] = strip


def is_triggered_late(record: Shown) -> bool:
    """Whether the trigger is applied after augmentation, so that stored images do not show it."""
    protocol = record.get("protocol")
    return isinstance(protocol, dict) and protocol.get("apply_trigger") == "after_augmentation"


def _limit(shape: tuple[int, ...], budget: int, cells: int) -> int:
    """The number of images of each kind to show per cell, assuming that images of this `shape`
    cannot be compressed."""
    channels, height, width = shape
    pixels = min(height, LARGEST_TILE) * min(width, LARGEST_TILE)
    cost = (1 if channels == 1 else 3) * pixels * 4 / 3 + 40
    fit = [n for n in _IMAGES if cells * _KINDS * n * cost <= budget]
    return fit[0] if fit else _IMAGES[-1]


def _strip(found: CellArtifacts, limit: int) -> Shown:
    """Selected images in one PNG, with the score, the label and the original label of each."""
    training, filter_result = found.training, found.filter_result
    chosen = picks(
        filter_result.scores, filter_result.keep, training.is_poison, training.is_cover, limit
    )
    rows = {name: getattr(chosen, name) for name in ("removed", "mistaken", "missed")}
    where = np.concatenate(list(rows.values()))
    if not len(where):
        return {"rows": {name: [] for name in rows}}
    sheet, size = png_strip(training.images(where))
    given, before = training.labels, training.before(where)
    was = dict(zip(where.tolist(), before.tolist(), strict=True))
    listed = {
        name: [[short(filter_result.scores[i]), int(given[i]), was[int(i)]] for i in members]
        for name, members in rows.items()
    }
    return {
        "sheet": sheet,
        "tile": size,
        "rows": listed,
        "classes": [*map(plain, training.classes)],
    }


def png_strip(images: Array) -> tuple[str, list[int]]:
    """Put `images` uint8 (n, C, H, W) in a row. Returns a PNG data URI and the size [width,
    height] of each image in it.

    An image whose longer side exceeds LARGEST_TILE pixels is shrunk. An image with more than three
    channels is reduced to the first three, an image with two channels to the first.
    """
    from PIL import Image

    n, channels, height, width = images.shape
    shown = images[:, :3] if channels >= 3 else images[:, :1]
    flat = shown.transpose(2, 0, 3, 1).reshape(height, n * width, shown.shape[1])
    picture = Image.fromarray(np.ascontiguousarray(flat if flat.shape[2] == 3 else flat[..., 0]))
    factor = max(height, width) / LARGEST_TILE
    tile = [width, height]
    if factor > 1:
        tile = [max(1, round(side / factor)) for side in tile]
        picture = picture.resize((n * tile[0], tile[1]), Image.Resampling.BOX)
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=9)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode(), tile


def short(value: Any) -> float | None:
    """Round to four digits, which is enough for charts; None if `value` is not finite."""
    if not np.isfinite(value):
        return None
    number = float(f"{value:.4g}")
    return int(number) if number.is_integer() and abs(number) < 1e6 else number
