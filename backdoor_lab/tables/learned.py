"""Marks networks that did not learn their training set, and attacks without effect."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from backdoor_lab.analysis.intervals import newcombe, wilson
from backdoor_lab.results.records import CellRecord
from backdoor_lab.results.versions import SECTIONS, version_of

BEHIND = 0.02
"""A network is marked as not converged if its training accuracy is this much below the expected
one."""
NOT_CONVERGED, NO_ATTACK = "†", "‡"
KIND = ("dataset", "model", "recipe")
"""Choices that two networks must share for their accuracies to be comparable."""
ATTACK = (*KIND, "trigger", "target", "source", "protocol")
"""Choices that two networks must share for their ASR to be measured on the same test images."""
_FIGURES = {"nat1": "train_accuracy1", "nat2": "train_accuracy2"}
Choices = tuple[object, ...]
Rate = tuple[float, int]
"""A share of test images, and their number (0 if unknown)."""


@dataclass(frozen=True)
class CleanNetworks:
    """Mean results of networks trained without poison.

    `accuracy` maps a measure and the choices in `KIND` to the training accuracy. `asr` maps the
    choices in `ATTACK` to the ASR and the number of test images on which the ASR was measured.
    """

    accuracy: Mapping[tuple[str, Choices], float]
    asr: Mapping[Choices, Rate]

    @classmethod
    def among(cls, cells: Iterable[CellRecord]) -> CleanNetworks:
        """Returns the mean results of the networks in `cells` that were trained without poison."""
        accuracy: dict[tuple[str, Choices], list[float]] = defaultdict(list)
        asr: dict[Choices, list[Rate]] = defaultdict(list)
        for cell in cells:
            if not _is_known(cell) or _is_poisoned(cell):
                continue
            for figure in _FIGURES.values():
                if figure in cell.numbers:
                    accuracy[figure, _choices(cell, KIND)].append(cell.numbers[figure])
            if "asr1" in cell.numbers:
                asr[_choices(cell, ATTACK)].append((cell.numbers["asr1"], _images(cell)))
        # Networks of several seeds share their test images, so they do not add to their number.
        rates = {key: (_mean(r for r, _ in found), min(n for _, n in found))
                 for key, found in asr.items()}  # fmt: skip
        return cls({key: _mean(found) for key, found in accuracy.items()}, rates)

    def has_asr(self, cell: CellRecord) -> bool:
        """Whether `asr` has a value for the attack of this cell."""
        return _choices(cell, ATTACK) in self.asr

    def expected(self, cell: CellRecord) -> Rate | None:
        """Returns the ASR1 expected without an attack, and the number of test images on which it
        was measured. The expected ASR1 is the ASR of clean networks on the same test images. If
        there are no clean networks, it is the share of the test images that the cell's own network
        classifies as the target without the trigger."""
        rate = cell.numbers.get("clean_rate1")
        other = None if rate is None else (rate, _images(cell))
        return self.asr.get(_choices(cell, ATTACK), other) if self.asr else other


def not_converged(cells: Iterable[CellRecord], clean: CleanNetworks) -> dict[str, list[str]]:
    """Maps cell ids to ``nat1``, ``nat2`` or both: the measures of networks whose training accuracy
    is clearly too low.

    The training accuracy is compared with that of clean networks with the same recipe, model and
    data set. Without such networks, it is compared with the highest training accuracy among `cells`
    with the same recipe, model, data set and ratio.
    """
    known = [cell for cell in cells if _is_known(cell)]
    found: dict[str, list[str]] = {}
    for name, figure in _FIGURES.items():
        # It is not known whether a given network was trained on the set that it is measured on.
        mine = [c for c in known if figure in c.numbers and not (c.given and name == "nat1")]
        best: dict[Choices, float] = {}
        for cell in mine:
            alike = _choices(cell, (*KIND, "ratio"))
            best[alike] = max(cell.numbers[figure], best.get(alike, 0.0))
        for cell in mine:
            wanted = clean.accuracy.get(
                (figure, _choices(cell, KIND)), best[_choices(cell, (*KIND, "ratio"))]
            )
            if wanted - cell.numbers[figure] > BEHIND:
                found.setdefault(cell.id, []).append(name)
    return found


def without_attack(cells: Iterable[CellRecord], clean: CleanNetworks) -> list[CellRecord]:
    """Returns the poisoned cells whose attack has no measurable effect: ASR1 is not significantly
    higher than the rate expected without an attack, `clean.expected`.

    That is, the lower end of the Newcombe interval of the difference of the two rates is not above
    0. The interval treats the rates as independent, although they are measured on the same test
    images, because records lack the counts of a paired test. A rate whose number of images is
    unknown is treated as exact.
    """
    poisoned = (cell for cell in cells if _is_known(cell) and _is_poisoned(cell))
    return [cell for cell in poisoned if _is_above(cell, clean) is False]


def _is_above(cell: CellRecord, clean: CleanNetworks) -> bool | None:
    """Whether ASR1 is significantly higher than without an attack; None if the record lacks the
    values."""
    asr, expected, images = cell.numbers.get("asr1"), clean.expected(cell), _images(cell)
    if asr is None or expected is None:
        return None
    rate, others = expected
    if images and others:
        return newcombe(asr, images, rate, others)[0] > 0
    return (wilson(asr, images)[0] if images else asr) > rate


def shows_attack(cells: Iterable[CellRecord], clean: CleanNetworks) -> bool:
    """Whether ASR1 of any of `cells`, which have the same attack, is significantly higher than
    without an attack. False if no cell is poisoned. True if no record has the values to decide
    this."""
    known = [cell for cell in cells if _is_known(cell)]
    if known and not any(map(_is_poisoned, known)):
        return False
    above = {_is_above(cell, clean) for cell in known} - {None}
    return not above or True in above


def signs_of(
    cells: Sequence[CellRecord], marked: Mapping[str, Sequence[str]], attacked: bool
) -> dict[str, str]:
    """Returns the footnote marks of one value position of a table, by measure.

    `cells` are the cells at this position; `marked` maps cell ids to measures that have not
    converged. Returns † (not converged) for each measure that `marked` contains for at least one of
    the cells, and ‡ (no attack) for ASR1 and ASR2 if the cells are poisoned but `attacked` is
    False.
    """
    signs = {name: NOT_CONVERGED for cell in cells for name in marked.get(cell.id, ())}
    if not attacked and any(cell.done and _is_poisoned(cell) for cell in cells):
        signs |= dict.fromkeys(("asr1", "asr2"), NO_ATTACK)
    return signs


def _is_known(cell: CellRecord) -> bool:
    return cell.done and bool(cell.choices)


def _is_poisoned(cell: CellRecord) -> bool:
    """Whether the attacked network may have a backdoor; a given network may, whatever the set."""
    return cell.given or cell.numbers.get("n_poisoned") != 0


def _choices(cell: CellRecord, names: Sequence[str]) -> Choices:
    values = [cell.choices.get(name) for name in names]
    return (*values, *(version_of(cell, name) for name in names if name in SECTIONS))


def _images(cell: CellRecord) -> int:
    """Returns the number of test images from which ASR1 is computed, or 0 if unknown."""
    return int(cell.numbers.get("n_asr", 0))


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return math.fsum(known) / len(known)
