"""The reference of clean sets that p values are relative to: one small sealed file.

A reference has bins. Each bin has the maxima of the studentized statistics of clean sets that were
trained and scored by the same code, and states the options, the versions and the numbers and sizes
of classes that it holds for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab import identity
from backdoor_lab.core.atomic_io import canonical
from backdoor_lab.core.errors import DataError
from backdoor_lab.results.seal import read_sealed, write_sealed
from backdoor_lab.scan.calibration import FEWEST_CLASSES
from backdoor_lab.scan.images import ScanImages, judged
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.statistics import FILTERS, components

FORMAT = 1
COMMITTED = Path(__file__).parent / "reference.json"
"""The reference that comes with the package."""


@dataclass(frozen=True)
class Bin:
    """Clean sets of `classes` classes of `smallest` to `largest` images each, described by
    `population`. `maxima` has one row per set and one column per statistic, named by `statistics`:
    the maximum over classes. `decides` and `versions` are what the sets were computed with."""

    classes: int
    smallest: int
    largest: int
    population: str
    decides: dict[str, Any]
    versions: dict[str, Any]
    statistics: list[str]
    maxima: list[list[float]]

    @property
    def null(self) -> NDArray[np.float64]:
        """The largest statistic of each set, float64 (N,)."""
        largest: NDArray[np.float64] = np.array(self.maxima, np.float64).max(axis=1)
        return largest


def versions() -> dict[str, Any]:
    """Returns the versions of the code that decides the statistics of a set. If one of them
    changes, a reference no longer applies."""
    stages = {name: identity.stage(name) for name in ("scan_network", "scan_statistics")}
    return {"stages": stages, **identity.model(), "defenses": components()}


def read_reference(path: Path | None = None) -> list[Bin]:
    """Returns the bins of a reference file, by default that of this package; an empty list if the
    package has none. Raises DataError for a file that is missing, damaged or edited."""
    if path is None:
        return read_reference(COMMITTED) if COMMITTED.is_file() else []
    try:
        content = json.loads(read_sealed(path))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']} is not supported")
        bins = [Bin(**each) for each in content["bins"]]
        for each in bins:
            shape = np.array(each.maxima, np.float64).shape
            if len(shape) != 2 or 0 in shape or shape[1] != len(each.statistics):
                raise ValueError("`maxima` must have one column per statistic")
            if not np.isfinite(each.null).all():
                raise ValueError("`maxima` must be finite")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such reference file") from error
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a valid reference file: {error}") from error
    return bins


def write_reference(path: Path, bins: Sequence[Bin]) -> None:
    """Writes a reference file atomically, with its seal."""
    write_sealed(path, {"format": FORMAT, "bins": [asdict(each) for each in bins]})


def bin_for(bins: Sequence[Bin], found: ScanImages, options: ScanOptions) -> tuple[Bin | None, str]:
    """Returns the bin that applies to the examined images, or None, and the reason as text."""
    sizes = found.sizes
    large = judged(found)
    count = len(large)
    if count < FEWEST_CLASSES:
        return None, f"fewer than {FEWEST_CLASSES} classes can be compared with each other"
    if not bins:
        return None, "there is no reference of trained clean sets in this version"
    fitting = [
        each for each in bins
        if each.classes == count == len(sizes)
        and all(each.smallest <= size <= each.largest for size in sizes)
    ]  # fmt: skip
    if not fitting:
        known = "; ".join(
            f"{each.classes} classes of {each.smallest} to {each.largest} images" for each in bins
        )
        sizes_said = f"{min(sizes)} to {max(sizes)} images"
        return None, (
            f"the set has {len(sizes)} classes of {sizes_said}, outside of the reference ({known})"
        )
    same = [each for each in fitting if canonical(each.decides) == canonical(options.decides())]
    if not same:
        return None, "the reference was computed with other options (networks, size, width, epochs)"
    current = [
        each for each in same
        if canonical(each.versions) == canonical(versions())
        and each.statistics == list(FILTERS)
    ]  # fmt: skip
    if not current:
        return None, "the reference was computed with another version of this package's code"
    return current[0], f"p values are relative to {current[0].population}"
