"""What the canaries of a scan show: how often each kind and rate was found, and how many images an
alarm stands for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from backdoor_lab.analysis.intervals import exact
from backdoor_lab.defenses.budget import otsu_count
from backdoor_lab.scan.canaries import Canary

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

RELIABLE, BLIND = 0.7, 0.5
"""A kind and rate is reliable if the lower limit of the share found is at least `RELIABLE`, and
blind if the upper limit is at most `BLIND`."""
RELIABLE_COPIES = 11
"""The fewest copies, if all are found, for a lower limit of at least `RELIABLE`."""
LEARNED = 0.5
"""A network has learned a canary if its attack success rate is at least this."""
FEWEST = 5
"""The fewest canaries that give a range of the number of poisoned images."""


@dataclass(frozen=True)
class Outcome:
    """The scan of one copy. `found`: whether the class of the canary raised an alarm. `asr`: the
    mean attack success rate of the networks, None if no image could be triggered. `counted`: see
    `counted`. `p` and `statistic` are those of the class, `others` is the number of other classes
    with an alarm, and `other_statistic` the largest of all other classes."""

    canary: Canary
    found: bool
    p: float
    asr: float | None
    counted: int
    others: int
    statistic: float
    other_statistic: float


@dataclass(frozen=True)
class Power:
    """How many of `copies` canaries of a kind and rate were found, with the exact 95 % interval
    (Clopper and Pearson 1934) of this share. `images` is the median number of images, `asr` the
    mean attack success rate and `learned` the number of copies whose networks learned the
    trigger."""

    kind: str
    rate: float
    images: int
    copies: int
    found: int
    low: float
    high: float
    asr: float | None
    learned: int

    @property
    def verdict(self) -> str:
        """``reliable``, ``blind`` or ``undecided``."""
        if self.low >= RELIABLE:
            return "reliable"
        return "blind" if self.high <= BLIND else "undecided"

    def __str__(self) -> str:
        asr = "-" if self.asr is None else f"{100 * self.asr:.0f} %"
        return (
            f"{self.kind:14} {100 * self.rate:4g} % of a class ({self.images} images): found in"
            f" {self.found} of {self.copies} ({100 * self.low:.0f} to {100 * self.high:.0f} %), ASR"
            f" {asr}: {self.verdict}"
        )


def powers(outcomes: Sequence[Outcome]) -> list[Power]:
    """Returns one `Power` for each kind and rate, ordered by kind and rate."""
    groups: dict[tuple[str, float], list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault((each.canary.kind, each.canary.rate), []).append(each)
    return [_power(kind, rate, group) for (kind, rate), group in sorted(groups.items())]


def smallest_found(powers: Sequence[Power]) -> dict[str, Power | None]:
    """Returns the smallest reliable rate of each kind, None if there is none. A rate counts only if
    all larger rates are reliable, too."""
    smallest: dict[str, Power | None] = {}
    for kind in dict.fromkeys(each.kind for each in powers):
        smallest[kind] = None
        for each in sorted((p for p in powers if p.kind == kind), key=lambda p: -p.rate):
            if each.verdict != "reliable":
                break
            smallest[kind] = each
    return smallest


def counted(scores: Tensor) -> int:
    """Returns the size of the upper of two groups of scores, float64 (n,), by Otsu's threshold. It
    is an estimate of the number of poisoned images only after `poison_range`."""
    return otsu_count(scores)


def poison_range(number: int, outcomes: Sequence[Outcome], scale: float) -> tuple[int, int] | None:
    """Returns the range of the number of poisoned images of a class with an alarm.

    `number` is that of `counted`. It is multiplied by the smallest and the largest quotient of the
    true and the counted number of the canaries that were found, and by `scale`, the number of
    images per examined image. None if fewer than `FEWEST` canaries were found.
    """
    quotients = [each.canary.images / each.counted for each in outcomes if each.found
                 and each.counted]  # fmt: skip
    if len(quotients) < FEWEST or not number:
        return None
    low, high = min(quotients) * number * scale, max(quotients) * number * scale
    return max(1, int(low)), max(1, -int(-high // 1))


def frame(powers: Sequence[Power]) -> DataFrame:
    """Returns one row per kind and rate: kind, rate, images, copies, found, share, low, high, asr,
    learned, verdict."""
    import pandas as pd

    names = ["kind", "rate", "images", "copies", "found", "share", "low", "high", "asr", "learned",
             "verdict"]  # fmt: skip
    rows = [
        (p.kind, p.rate, p.images, p.copies, p.found, p.found / p.copies, p.low, p.high,
         float("nan") if p.asr is None else p.asr, p.learned, p.verdict)
        for p in powers
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def _power(kind: str, rate: float, group: Sequence[Outcome]) -> Power:
    found = sum(each.found for each in group)
    low, high = exact(found, len(group))
    rates = [each.asr for each in group if each.asr is not None]
    return Power(
        kind, rate, round(median(each.canary.images for each in group)), len(group), found, low,
        high, sum(rates) / len(rates) if rates else None, sum(r >= LEARNED for r in rates),
    )  # fmt: skip
