"""Figures of the triggers of a sweep, and of the convolution filters in the first layer of its
networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from backdoor_lab.figures.style import VERMILLION, new, styled

Array = NDArray[Any]


@styled
def triggers(names: Sequence[str], originals: Array, triggered: Array) -> Figure:
    """Draws one row per trigger: an image, the same image with the trigger, and their difference.
    The difference is scaled to the full range of pixel values, with zero shown as gray. `originals`
    and `triggered` are uint8 (triggers, C, H, W)."""
    figure = new(4.6, 1.5 * len(names) + 0.3)
    draw_triggers(figure, names, originals, triggered)
    return figure


def draw_triggers(
    figure: FigureBase, names: Sequence[str], originals: Array, triggered: Array
) -> None:
    """Draw one row per trigger into `figure`, as `triggers` does."""
    grid = figure.subplots(len(names), 3, squeeze=False)
    for axes, name, clean, changed in zip(grid, names, originals, triggered, strict=True):
        for place, picture in zip(axes, (clean, changed, stretched(clean, changed)), strict=True):
            show(place, picture)
        axes[0].set_ylabel(name)
    for place, title in zip(grid[0], ("clean", "triggered", "difference"), strict=True):
        place.set_title(title)


def stretched(clean: Array, changed: Array) -> Array:
    """Returns the difference `changed` - `clean` of two images uint8 (C, H, W), stretched to the
    full range of uint8. Zero becomes 128."""
    difference = changed.astype(np.float64) - clean
    largest = np.abs(difference).max() or 1.0
    return np.rint(127.5 + 127.5 * difference / largest).astype(np.uint8)


def show(axes: Axes, image: Array) -> None:
    """Show `image` uint8 (C, H, W): in color if C >= 3, otherwise its first channel in gray."""
    in_color = image.shape[0] >= 3
    picture = np.moveaxis(image[:3], 0, -1) if in_color else image[0]
    axes.imshow(picture, cmap=None if in_color else "gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


@dataclass(frozen=True)
class Layer:
    """The first layer of a network: `weights` float (f, C, k, k), and `changes` float64 (f,), which
    say how much the trigger changes the response of each filter (see `response_changes`)."""

    title: str
    weights: Array
    changes: Array


@styled
def filters(layers: Sequence[Sequence[Layer]]) -> Figure:
    """Draw the filters of each network's first layer. Each row shows the networks for one trigger,
    side by side.

    Zero is gray, and each filter is scaled separately. A frame marks the filter whose response the
    trigger changes most.
    """
    columns = max(len(row) for row in layers)
    figure = new(2.9 * columns, 3.1 * len(layers))
    grid = figure.subplots(len(layers), columns, squeeze=False)
    for places, row in zip(grid, layers, strict=True):
        for axes in places[len(row) :]:
            axes.set_axis_off()
        for axes, layer in zip(places, row, strict=False):
            _draw_layer(axes, layer)
    return figure


def _draw_layer(axes: Axes, layer: Layer) -> None:
    count, side = len(layer.weights), layer.weights.shape[-1]
    across = int(np.ceil(np.sqrt(count)))
    axes.imshow(mosaic(layer.weights), cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    most = int(layer.changes.argmax())
    row, column = divmod(most, across)
    corner = column * (side + 1) + 0.5, row * (side + 1) + 0.5
    for color, line in (("white", "-"), (VERMILLION, "--")):
        axes.add_patch(
            Rectangle(corner, side, side, fill=False, linewidth=2.2, edgecolor=color, ls=line)
        )
    axes.set_title(f"{layer.title}\nfilter {most}: {layer.changes[most]:.1f} times its spread")


def mosaic(weights: Array) -> Array:
    """Arranges the filters of a convolution, float (f, C, k, k), as tiles of one uint8 image:
    (h, w, 3) for three channels; otherwise (h, w), the mean over the channels. Each filter is
    divided by its largest absolute value; zero is gray."""
    count, channels, side, _ = weights.shape
    peak = np.abs(weights).reshape(count, -1).max(axis=1)
    scaled = 127.5 + 127.5 * weights / np.where(peak > 0, peak, 1)[:, None, None, None]
    tiles = np.rint(scaled if channels == 3 else scaled.mean(axis=1, keepdims=True))
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    step = side + 1
    picture = np.full((down * step + 1, across * step + 1, tiles.shape[1]), 255, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        top, left = row * step + 1, column * step + 1
        picture[top : top + side, left : left + side] = np.moveaxis(tile, 0, -1)
    return picture if channels == 3 else picture[..., 0]
