"""All errors that a user can see; each class states the program's exit code."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Sequence

LISTED = 40
# Matches Python's default repr of an object: <_io.BytesIO object at 0x7f…>.
_ADDRESS = re.compile(r"\s*<[^<>]* at 0x[0-9a-fA-F]+>")
EXIT_DONE, EXIT_SOME_FAILED, EXIT_BAD_CONFIG, EXIT_STOPPED = 0, 1, 2, 75
OUT_OF_MEMORY = "failed: oom"
"""The status of a cell that ran out of memory."""


class LabError(Exception):
    """An error whose message says what is wrong, where, which rule it breaks and what to do."""

    exit_code = EXIT_SOME_FAILED

    def __init__(self, text: str = "") -> None:
        super().__init__(without_addresses(text))


class ConfigError(LabError):
    """The configuration breaks a rule. Raised before any work starts.

    `unknown_keys` are the full names of unknown keys; empty if the error has another cause.
    """

    exit_code = EXIT_BAD_CONFIG
    unknown_keys: Sequence[str] = ()


class DataError(LabError):
    """The data set is missing or damaged, or its files do not have the expected format."""

    exit_code = EXIT_BAD_CONFIG


class StoreError(LabError):
    """A path or a stored result cannot be used."""


class StoreFullError(StoreError):
    """The disk has no room for the output of a stage."""


class DivergedError(LabError):
    """Training or scoring produced a non-finite number."""


class OutOfMemoryError(LabError):
    """A stage needs more memory than is available."""


class StoppedError(LabError):
    """The program was asked to stop; the same command resumes the work."""

    exit_code = EXIT_STOPPED


def without_addresses(text: str) -> str:
    """Returns a library's message without memory addresses such as ``<object at 0x7f…>``."""
    return _ADDRESS.sub("", str(text))


_NO_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory",
    "bad_alloc", "unable to allocate", "can't start new thread", "failed to map segment",
    "could not create a primitive",
)  # fmt: skip


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error or one of its causes means that memory ran out. NumPy, torch and the
    operating system each raise a different error for this. The causes of a LabError are not
    examined."""
    while error is not None and not isinstance(error, LabError):
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        said = str(error).lower()
        if isinstance(error, (RuntimeError, ImportError)) and any(t in said for t in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def many(number: object, noun: str) -> str:
    """Returns a number with its noun in the singular or plural: ``1 cell``, ``2 cells``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def reason_of(error: BaseException) -> str:
    """Returns the message of an error, preceded by the error's type unless it is a LabError."""
    text = without_addresses(str(error))
    if isinstance(error, LabError) and text.strip():
        return text
    return f"{type(error).__name__}: {text}" if text.strip() else type(error).__name__


def failed_status(reason: str) -> str:
    """Returns the status of a failed cell: ``failed:`` and the first line of `reason`."""
    return f"failed: {(reason.splitlines() or ['unknown'])[0][:300]}"


def unknown(
    what: str, given: object, known: Iterable[object], more: str = "", *, also: Iterable[str] = ()
) -> ConfigError:
    """Returns a ConfigError for a name that is not in `known`; suggests the most similar name in
    `known` or, if it is more similar, in `also`, which is not listed. `more` follows the list of
    the known names."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(given), [*names, *also], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    listed = ", ".join(names) if len(names) <= LISTED else f"{len(names)} names"
    return ConfigError(f"{what} {given!r} is not known.{hint} Known: {listed}{more}.")
