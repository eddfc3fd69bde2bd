"""Rules for how many examples of a class a filter removes: `1.5eps`, `15%`, `p85`, `100` or
`auto`."""

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
RULE = (
    "a budget such as 1.5eps (1.5 times the number of poisoned images), 15% (of the class), p85"
    " (scores above the 85th percentile), 100 (examples) or auto"
)


@dataclass(frozen=True)
class RemovalBudget:
    """A rule for the number of examples to remove from one class.

    `text` is one of these forms:

    - ``1.5eps``: 1.5 times the number of poisoned images (Tran, Li, Madry 2018, Algorithm 1).
    - ``15%``: this share of the class, rounded.
    - ``p85``: the examples above the 85th percentile of the class's scores, as computed by
      `numpy.percentile`. These are n - 1 - ⌊0.85 (n - 1)⌋ of n examples, as in the code of Tran,
      Li and Madry.
    - ``100``: this number of examples.
    - ``auto``: decided from the scores (see `otsu_count`).

    `cap` is an upper bound in one of these forms other than ``auto``. In a cap, a share of the
    class is rounded down.

    >>> RemovalBudget("1.5eps", cap="50%").size(40, epsilon=20)
    20
    """

    text: str
    cap: str | None = None

    def __post_init__(self) -> None:
        for key, text in self._given():
            if text != "auto" and not _FORM.fullmatch(str(text)):
                raise ConfigError(f"`defense.{key}` must be {RULE}, got {text!r}")
        if self.cap == "auto":
            raise ConfigError(
                "`defense.max_removed` cannot be auto: give a number, or a share such as 50%"
            )
        self._check_percent()

    @property
    def needs_epsilon(self) -> bool:
        """Whether the rule requires the number of poisoned images."""
        return "eps" in f"{self.text}{self.cap}"

    def size(self, class_size: int, epsilon: int | None) -> int | None:
        """Returns how many examples to remove from a class of `class_size` examples; None for
        ``auto``, which depends on the scores."""
        if str(self.text) == "auto":
            return None
        return self.capped(_size(str(self.text), class_size, epsilon), class_size, epsilon)

    def capped(self, asked: int, class_size: int, epsilon: int | None) -> int:
        """Returns the smaller of `asked` and the cap for a class of `class_size` examples."""
        if self.cap is None:
            return asked
        return min(asked, _size(str(self.cap), class_size, epsilon, rounding=Fraction(0)))

    def _given(self) -> list[tuple[str, str]]:
        """Returns the rules that are set, each with its key in the configuration."""
        cap = [] if self.cap is None else [("max_removed", self.cap)]
        return [("removal_budget", self.text), *cap]

    def _check_percent(self) -> None:
        for key, text in self._given():
            found = _FORM.fullmatch(str(text))
            share = found and (found["percent"] or found["percentile"])
            if share and not 0 <= float(share) <= 100:
                raise ConfigError(
                    f"a percentage in `defense.{key}` must be between 0 and 100, got {text!r}"
                )


def otsu_count(scores: Tensor) -> int:
    """Returns how many examples the `auto` budget removes: the size of the upper of two groups of
    scores.

    Otsu's threshold (1979, equation 12) divides the sorted scores, float64 (n,), so that the
    variance within the two groups is minimal. The result is at most half of the class.

    >>> import torch
    >>> otsu_count(torch.tensor([0.1, 0.2, 9.0, 0.3, 0.2]))
    1
    """
    n = len(scores)
    if n < 2 or float(scores.max() - scores.min()) == 0.0:
        return 0
    between = variance_between(scores.sort(descending=True).values)
    return int(between[: n // 2].argmax()) + 1


def _size(
    text: str, class_size: int, epsilon: int | None, rounding: Fraction = Fraction(1, 2)
) -> int:
    """Returns the number of examples that the rule `text` gives for a class of `class_size`
    examples. If the rule is a share of the class, the fraction `rounding` is added to the number
    before the number is rounded down."""
    found = _FORM.fullmatch(text)
    assert found is not None
    if found["eps"]:
        if epsilon is None:
            raise ConfigError(
                f"`defense.removal_budget={text}` is a multiple of ε, the number of poisoned"
                " images, which this protocol does not reveal: give a number of images, or a share"
                " such as 15%"
            )
        return round(float(found["eps"]) * epsilon)
    if found["percent"]:
        return math.floor(class_size * Fraction(found["percent"]) / 100 + rounding)
    if found["percentile"]:
        last = class_size - 1
        return last - math.floor(last * Fraction(found["percentile"]) / 100)
    return int(found["count"])
