"""How many examples of a class a filter removes: `1.5eps`, `15%`, `p85`, `100` or `auto`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.lazy import Tensor
from backdoor_lab.numerics.otsu import variance_between

_FORM = re.compile(
    r"(?P<eps>\d+(\.\d+)?)eps|(?P<percent>\d+(\.\d+)?)%|p(?P<percentile>\d+(\.\d+)?)|(?P<count>\d+)"
)
RULE = "one of 1.5eps (times the number of poisoned images), 15% (of the class), p85 (above that"


@dataclass(frozen=True)
class Budget:
    """A rule for the number of examples to remove from one class.

    `text` one of: ``1.5eps``, 1.5 times the number of poisoned images that the filter is told
    (Tran, Li, Madry 2018, Algorithm 1); ``15%`` of the class, rounded; ``p85``, what lies above
    that percentile of the class' scores, interpolated as `numpy.percentile` does (their code): of
    n examples n - 1 - ⌊0.85 (n - 1)⌋; ``100`` examples; ``auto``, from the scores themselves
    (see `split`). `cap`, in the same forms, bounds it from above; a share of the class is
    rounded down there.
    """

    text: str
    cap: str | None = None

    def __post_init__(self) -> None:
        for text in [self.text] if self.cap is None else [self.text, self.cap]:
            if text != "auto" and not _FORM.fullmatch(str(text)):
                raise ConfigError(
                    f"`defense.budget` must be {RULE} percentile), 100 (examples) or auto,"
                    f" got {text!r}"
                )
        if self.cap == "auto":
            raise ConfigError("`defense.budget_cap` must be a number of examples, got 'auto'")
        self._check_percent()

    @property
    def needs_epsilon(self) -> bool:
        """Whether the number of poisoned images must be told."""
        return "eps" in f"{self.text}{self.cap}"

    def size(self, class_size: int, epsilon: int | None) -> int | None:
        """How many of `class_size` examples to remove; None when the scores decide."""
        if str(self.text) == "auto":
            return None
        return self.capped(_size(str(self.text), class_size, epsilon), class_size, epsilon)

    def capped(self, asked: int, class_size: int, epsilon: int | None) -> int:
        """`asked` examples of `class_size`, or the cap when that is less."""
        if self.cap is None:
            return asked
        return min(asked, _size(str(self.cap), class_size, epsilon, rounding=Fraction(0)))

    def _check_percent(self) -> None:
        for text in (self.text, self.cap):
            found = _FORM.fullmatch(str(text))
            share = found and (found["percent"] or found["percentile"])
            if share and not 0 <= float(share) <= 100:
                raise ConfigError(f"`defense.budget` must lie in 0..100 percent, got {text!r}")


def split(scores: Tensor) -> int:
    """How many of the highest scores form the smaller of two groups: the `auto` budget.

    The cut that leaves the least variance inside the two groups (Otsu 1979, equation 12, on the
    sorted scores float64 (n,)), kept to at most half of the class.
    """
    n = len(scores)
    if n < 2 or float(scores.max() - scores.min()) == 0.0:
        return 0
    between = variance_between(scores.sort(descending=True).values)
    return int(between[: n // 2].argmax()) + 1


def _size(
    text: str, class_size: int, epsilon: int | None, rounding: Fraction = Fraction(1, 2)
) -> int:
    """`rounding` is added to a share of the class before its fraction is dropped."""
    found = _FORM.fullmatch(text)
    assert found is not None
    if found["eps"]:
        if epsilon is None:
            raise ConfigError(
                f"`defense.budget={text}` counts in ε, but this protocol does not tell it"
            )
        return round(float(found["eps"]) * epsilon)
    if found["percent"]:
        return math.floor(class_size * Fraction(found["percent"]) / 100 + rounding)
    if found["percentile"]:
        last = class_size - 1
        return last - math.floor(last * Fraction(found["percentile"]) / 100)
    return int(found["count"])
