"""A figure over seeds, and its text."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from backdoor_lab.results.measures import MEASURE
from backdoor_lab.tables.markup import NOTHING
from backdoor_lab.tables.worth import SIGN


@dataclass(frozen=True)
class Estimate:
    """A mean over the `n` seeds with a finite value, and half its 95 % t interval (None below two
    seeds). In the unit of the measure's table: percent, images or a share."""

    mean: float
    half: float | None
    n: int


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


def signed(text: str, name: str, not_converged: Container[str]) -> str:
    """A figure's text, with the sign of a network that did not converge where it needs one."""
    return f"{text} {SIGN}" if name in not_converged else text


def value_of(value: Estimate | None) -> list[object]:
    """Mean, half the interval, number of seeds, for a CSV file."""
    return [None, None, 0] if value is None else [number(value.mean), number(value.half), value.n]


def number(value: float | None) -> float | None:
    """Ten digits after the point: hides the 16th digit of binary arithmetic, nothing else."""
    return None if value is None else round(value, 10)
