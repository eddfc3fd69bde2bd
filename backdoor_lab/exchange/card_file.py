"""What all cards have in common: how they are read, their seal, and the normalization in them.

A card is a JSON object that describes a network or a poisoned data set. Its last key, the seal, is
the hash of the text before it (see results/seal.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, DataError, unknown
from backdoor_lab.core.small_files import DamagedFileError, decode, read_small
from backdoor_lab.results.seal import check_seal

CARD = "card.json"
FORMAT = 1
KINDS = ("network", "dataset")
SMALLEST, LARGEST = 1e-4, 1e6
"""The bounds of a standard deviation, and of the size of a mean."""
MEAN, STD = "mean_255", "std_255"

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""The mean and the standard deviation of each channel, on the 0..255 scale."""


@dataclass(frozen=True)
class CardFile:
    """The content of the card at `path`. `sealed` says whether its seal matches its text, so that
    nobody has edited it since it was written; None if it has no seal."""

    path: Path
    content: dict[str, Any]
    sealed: bool | None

    def kind(self) -> str:
        """Returns the kind of the card, ``network`` or ``dataset``. Raises ConfigError for another
        kind and for another format."""
        said = self.content.get("format")
        try:
            # True equals 1.
            if type(said) is not int or said != FORMAT:
                raise unknown("`format`", said, [FORMAT])
            return str(validation.choice("kind", self.content.get("kind"), KINDS))
        except ConfigError as error:
            raise ConfigError(f"{self.path}: {error}") from error


def read_card(path: Path) -> CardFile:
    """Reads a card and checks its seal. Raises DataError if there is no JSON object at `path`, and
    for numbers in it that are not finite, which JSON does not have."""
    try:
        data = read_small(path)
        content = decode(data)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except DamagedFileError as error:
        said = str(error)
        raise DataError(said if said.startswith(str(path)) else f"{path} is {said}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: a card is a JSON object, got {type(content).__name__}")
    odd = next((each for each in _floats(content) if not math.isfinite(each)), None)
    if odd is not None:
        raise DataError(f"{path} is not valid JSON ({json.dumps(odd)}: numbers must be finite)")
    return CardFile(path, content, _sealed(data, content))


def _floats(value: Any) -> Iterator[float]:
    """Yields the floating-point numbers in JSON data."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _floats(each)


def _sealed(data: bytes, content: dict[str, Any]) -> bool | None:
    if "seal" not in content:
        return None
    try:
        check_seal(data)
    except DataError:
        return False
    return True


def normalization_of(said: Any) -> Normalization:
    """Returns the normalization that the field ``normalization`` of a card or of the metadata of a
    file states: an object with `mean_255` and `std_255`, each with a number for each channel.

    Raises ConfigError, which names the field, for anything else, for values that are not finite or
    too large, and for standard deviations below `SMALLEST`.

    >>> normalization_of({"mean_255": [127.5], "std_255": [64]})
    ((127.5,), (64.0,))
    """
    pair: list[Any] = [said.get(key) if isinstance(said, dict) else None for key in (MEAN, STD)]
    if not all(isinstance(each, list) and each for each in pair) or len(pair[0]) != len(pair[1]):
        raise ConfigError(
            f"`normalization` must have {MEAN} and {STD}, a number for each channel, got {said!r}"
        )
    mean, std = (
        tuple(validation.number(f"normalization.{key}", x, low=low, below=LARGEST) for x in values)
        for key, low, values in zip((MEAN, STD), (-LARGEST, SMALLEST), pair, strict=True)
    )
    return mean, std


def part(card: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the object in the field `key` of a card; an empty one if the card has none. Raises
    ConfigError if the field is not an object."""
    found = card.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"`{key}` must be an object, got {found!r}")
    return found


def class_list(name: str, said: Any) -> tuple[str, ...]:
    """Returns the names of the classes that the field `name` of a card states. Raises ConfigError
    unless they are at least two different names."""
    if not isinstance(said, list) or len(said) < 2 or len({*map(str, said)}) != len(said):
        raise ConfigError(f"`{name}` must be a list of at least two different names, got {said!r}")
    return tuple(validation.text(name, each) for each in said)


def image_shape(name: str, said: Any) -> tuple[int, ...]:
    """Returns the shape of an image, (channels, height, width), that the field `name` of a card
    states. Raises ConfigError for anything else."""
    if not isinstance(said, list) or len(said) != 3:
        raise ConfigError(f"`{name}` must be [channels, height, width], got {said!r}")
    return tuple(validation.whole(name, each, low=1) for each in said)
