"""The mean of a measure over seeds, its confidence interval, and both as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from backdoor_lab.analysis.intervals import half_width, wilson
from backdoor_lab.results.metrics import MEASURE
from backdoor_lab.tables.markup import NOTHING

WILSON = (
    "The widest 95 % Wilson interval of each measure, for single runs: {}. The intervals cover the"
    " sampling of test images but not of seeds. The CSV file has all of them."
)


@dataclass(frozen=True)
class Estimate:
    """An estimate of a measure, in the unit that tables use. `mean` and `std` are computed over the
    `n` seeds with a finite value. `half` is half the width of the 95 % t interval, None for one
    seed. `wilson` is the Wilson interval of a single run whose value is a proportion of a known
    number of images."""

    mean: float
    half: float | None
    n: int
    std: float | None = None
    wilson: tuple[float, float] | None = None


def figure(name: str, value: Estimate | None, seeds: int) -> str:
    """Returns an estimate as text: ``99.88 ± 0.19``. If the number of runs ``value.n`` differs from
    `seeds`, the text ends with this number, for example ``(n=2)``."""
    if value is None:
        return NOTHING
    fixed = name == "n_poisoned" and value.half == 0
    digits = MEASURE[name].digits(1 if fixed else value.n)
    text = f"{value.mean:.{digits}f}"
    if value.half is not None and not fixed:
        text += f" ± {value.half:.{digits}f}"
    return text if value.n == seeds else f"{text} (n={value.n})"


def estimate(name: str, mean: float, std: float, n: int, images: float) -> Estimate:
    """Returns the estimate of measure `name`. `std`: the sample standard deviation, NaN for one
    seed. `images`: the number of images that the measure is a fraction of, NaN if unknown."""
    half, scale = half_width(std, n), MEASURE[name].scale
    found = None
    if n == 1 and images > 0:
        low, high = wilson(mean / scale, round(images))
        found = (scale * low, scale * high)
    return Estimate(mean, half, n, None if half is None else std, found)


def value_heads(name: str) -> list[str]:
    """Returns the headings of the columns that `value_of` fills."""
    rate = ["_wilson_low", "_wilson_high"] if MEASURE[name].of else []
    return [name + suffix for suffix in ("", "_ci95", "_std", "_n", *rate)]


def value_of(name: str, value: Estimate | None) -> list[object]:
    """Returns the values for a CSV file: mean, ``_ci95`` (half the width of the interval),
    ``_std``, ``_n`` (seeds) and, for proportions, ``_wilson_low`` and ``_wilson_high`` (for single
    runs only)."""
    rate = 2 if MEASURE[name].of else 0
    if value is None:
        return [None, None, None, 0, *[None] * rate]
    bounds = [*map(number, value.wilson or (None, None))][:rate]
    return [number(value.mean), number(value.half), number(value.std), value.n, *bounds]


def number(value: float | None) -> float | None:
    """Rounds to ten decimal places, which removes only binary rounding errors."""
    return None if value is None else round(value, 10)


def wilson_note(names: Iterable[str], places: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """Returns a note with the widest Wilson interval of each measure, if there are any such
    intervals."""
    ranges = []
    for name in names:
        known = [x for each in places if name in each and (x := each[name].wilson) is not None]
        if known:
            low, high = max(known, key=lambda each: each[1] - each[0])
            ranges.append(f"{MEASURE[name].head} {low:.2f} to {high:.2f}")
    return [WILSON.format(", ".join(ranges))] if ranges else []
