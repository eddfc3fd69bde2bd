"""The measures that the option ``values`` may name: those of all sweeps, and those that only some
have, such as ``asr2_under.jpeg75`` and ``nat2_class.cat``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.core.options import names
from backdoor_lab.results.metrics import BY_CLASS, MEASURE, UNDER, class_name
from backdoor_lab.results.records import CellRecord


def under_names(cells: Iterable[CellRecord]) -> list[str]:
    """Returns the names of all measures on transformed test images that occur in `cells`."""
    return _occurring(cells, UNDER)


def measures_of(value: str, cells: Sequence[CellRecord]) -> tuple[str, ...]:
    """Returns the measures that the text of the option ``values`` names, separated by commas.

    Raises ConfigError for a name that is repeated, or that no cell of `cells` has.
    """
    of_classes = _occurring(cells, BY_CLASS)
    for name in map(str.strip, value.split(",")):
        if name.startswith(BY_CLASS) and name not in of_classes:
            raise _unknown_class(name, of_classes)
    return names("values", value, MEASURE, [*under_names(cells), *of_classes])


def _occurring(cells: Iterable[CellRecord], prefixes: tuple[str, ...]) -> list[str]:
    found = dict.fromkeys(name for cell in cells for name in cell.numbers)
    return [name for name in found if name.startswith(prefixes)]


def _unknown_class(given: str, known: Sequence[str]) -> ConfigError:
    """The error for a measure of a class that no cell has."""
    classes = dict.fromkeys(map(class_name, known))
    if class_name(given) in classes or not classes:
        return ConfigError(
            f"`values`: no cell has a value of {given}. Older records, data sets with many classes"
            " and networks that were not retrained have none"
        )
    return unknown("`values`: class", class_name(given), classes)
