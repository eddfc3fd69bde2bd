"""A figure over seeds, and its text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from backdoor_lab.analysis.intervals import half_width, wilson
from backdoor_lab.results.measures import MEASURE
from backdoor_lab.tables.markup import NOTHING

WILSON = (
    "95 % Wilson intervals of single runs (sampling of the test images alone, not of seeds), the"
    " widest of each measure: {}. The CSV file has all of them."
)


@dataclass(frozen=True)
class Estimate:
    """A mean over the `n` seeds with a finite value, the standard deviation and half the 95 % t
    interval (None below two seeds). Of a single run that is a share of a known number of images:
    its Wilson interval. In the unit of the measure's table: percent, images or a share."""

    mean: float
    half: float | None
    n: int
    std: float | None = None
    wilson: tuple[float, float] | None = None


def figure(name: str, value: Estimate | None, seeds: int) -> str:
    """``99.88 ± 0.19``; with ``(n=2)`` where it rests on other than this number of seeds."""
    if value is None:
        return NOTHING
    fixed = name == "n_poisoned" and value.half == 0
    digits = MEASURE[name].digits(1 if fixed else value.n)
    text = f"{value.mean:.{digits}f}"
    if value.half is not None and not fixed:
        text += f" ± {value.half:.{digits}f}"
    return text if value.n == seeds else f"{text} (n={value.n})"


def estimate(name: str, mean: float, std: float, n: int, images: float) -> Estimate:
    """A figure of the measure `name`: `std` is the sample's, nan for one seed; `images` how many
    the figure of a single run is a share of, nan where that is not known."""
    half, scale = half_width(std, n), MEASURE[name].scale
    found = None
    if n == 1 and images > 0:
        low, high = wilson(mean / scale, round(images))
        found = (scale * low, scale * high)
    return Estimate(mean, half, n, None if half is None else std, found)


def value_heads(name: str) -> list[str]:
    """What `value_of` gives, as heads of columns."""
    rate = ["_wilson_low", "_wilson_high"] if MEASURE[name].of else []
    return [name + suffix for suffix in ("", "_ci95", "_std", "_n", *rate)]


def value_of(name: str, value: Estimate | None) -> list[object]:
    """For a CSV file: the mean, ``_ci95`` (half the interval's width), ``_std``, ``_n`` (seeds),
    and of a rate ``_wilson_low`` and ``_wilson_high``, where it is of a single run."""
    rate = 2 if MEASURE[name].of else 0
    if value is None:
        return [None, None, None, 0, *[None] * rate]
    bounds = [*map(number, value.wilson or (None, None))][:rate]
    return [number(value.mean), number(value.half), number(value.std), value.n, *bounds]


def number(value: float | None) -> float | None:
    """Ten digits after the point: hides the 16th digit of binary arithmetic, nothing else."""
    return None if value is None else round(value, 10)


def wilson_note(names: Iterable[str], places: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """One line: for each rate the widest interval of its single runs, where there are any."""
    told = []
    for name in names:
        known = [x for each in places if name in each and (x := each[name].wilson) is not None]
        if known:
            low, high = max(known, key=lambda each: each[1] - each[0])
            told.append(f"{MEASURE[name].head} {low:.2f} to {high:.2f}")
    return [WILSON.format(", ".join(told))] if told else []
