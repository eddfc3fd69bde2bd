"""Colors, markers and file formats shared by all figures.

The colors are the palette of Okabe and Ito, "Color Universal Design" (2008), which stays readable
with color vision deficiency. Adjacent series, and adjacent segments of a stacked bar, also differ
in luminance, marker, line style or hatch, so figures stay readable in grayscale.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.figures.fonts import USUAL, fit_letters, transcribe_letters

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
PAPER, EDGE = "#FFFFFF", BLACK
CLEAN, POISON, REMOVED, CHANCE = BLUE, ORANGE, BLACK, VERMILLION
FORMATS = ("png", "pdf")
DPI = 150

_RC: dict[Any, Any] = {
    "font.family": USUAL, "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "legend.frameon": False, "hatch.linewidth": 0.7, "lines.markersize": 5,
    "image.interpolation": "nearest", "pdf.fonttype": 42, "svg.fonttype": "none",
    # Names in records may contain a dollar sign, which must not start a formula.
    "text.parse_math": False, "backend": "agg",
}  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")


class Mark(NamedTuple):
    """The color, marker and line style of one series."""

    color: str
    marker: str
    line: str | tuple[int, tuple[int, ...]]


class Fill(NamedTuple):
    """The color and hatch of one part of a stacked bar."""

    color: str
    hatch: str


_COLORS = (BLUE, VERMILLION, BLACK, GREEN, PURPLE, ORANGE, SKY)
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
_HATCHES = ("", "///", "...", "\\\\\\", "xxx", "---", "ooo", "|||", "+++")
_FILLS = (BLUE, ORANGE, SKY, YELLOW, GREEN, PURPLE, VERMILLION)


def mark(number: int) -> Mark:
    """The color, marker and line style of series `number`. The first 35 differ in color or line
    style."""
    return Mark(
        _COLORS[number % len(_COLORS)],
        _MARKERS[number % len(_MARKERS)],
        _LINES[number % len(_LINES)],
    )


def fill(number: int) -> Fill:
    """The color and hatch of part `number` of a stacked bar. Neighbors differ in both."""
    return Fill(_FILLS[number % len(_FILLS)], _HATCHES[number % len(_HATCHES)])


def luminance(color: str) -> float:
    """The relative luminance, 0..1, of a color ``#RRGGBB`` (as WCAG 2.1 defines it)."""
    values = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """The contrast ratio, 1..21, of two colors ``#RRGGBB`` (as WCAG 2.1 defines it)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """A decorator that runs `draw` with this module's settings and ignores the user's
    matplotlibrc."""

    @functools.wraps(draw)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        settings: dict[Any, Any] = dict(mpl.rcParamsDefault)
        with mpl.rc_context(settings | _RC):
            return draw(*args, **kwargs)

    return wrapped


def new(width: float, height: float) -> Figure:
    """Create an empty figure without pyplot, which would keep global state. The size is in
    inches."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


@styled
def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path`.png and `path`.pdf atomically, and return both paths.

    Machines with the same fonts write the same bytes. Characters that no font has are
    transliterated.
    """
    fitted = fit_letters(figure)
    try:
        made = {suffix: _drawn(figure, suffix) for suffix in FORMATS}
    except Exception:  # Some system fonts cannot be embedded.
        if not fitted:
            raise
        transcribe_letters(figure)
        made = {suffix: _drawn(figure, suffix) for suffix in FORMATS}
    written = []
    for suffix, data in made.items():
        target = path.with_name(f"{path.name}.{suffix}")
        write_atomic(target, data)
        written.append(target)
    return written


def _drawn(figure: Figure, suffix: str) -> bytes:
    data = io.BytesIO()
    stamp = {"Software": None} if suffix == "png" else {"CreationDate": None, "Producer": None}
    figure.savefig(data, format=suffix, metadata=stamp)
    return data.getvalue()
