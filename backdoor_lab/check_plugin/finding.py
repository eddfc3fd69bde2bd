"""What the checks of a method share: the error of a failed check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class CheckError(AssertionError):
    """A method does not do what its interface demands; the message says what and why."""


def require(condition: object, why: str) -> None:
    """Raises CheckError with the message `why` unless `condition` is true."""
    if not condition:
        raise CheckError(why)


Checks = Mapping[str, Callable[[Any], None]]
"""Maps what a method must do to the function that checks it."""
