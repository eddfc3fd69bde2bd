"""What is said on a terminal: a command and its errors, which survive one without `±` and a reader
like `head` that leaves early; text as one printable line; seconds and bytes in words."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backdoor_lab.core.errors import LabError
from backdoor_lab.core.files import explained
from backdoor_lab.core.output import plain, survive_lost_output

__all__ = ["duration", "one_line", "plain", "print_error", "run_command", "size_words"]


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """A command from its arguments (those of the process if None) to its exit code.

    Parses, calls `work` with what was parsed and returns the exit code that it returns. After a
    LabError, or an error of the system, prints one line and returns its exit code. That nobody
    reads what is printed changes nothing. Raises SystemExit as the parser does: for arguments
    that it refuses, and after ``--help``.
    """
    survive_lost_output()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = work(parser.parse_args(arguments))
        sys.stdout.flush()
        return code
    except (LabError, OSError) as error:
        return print_error(error)


def print_error(error: LabError | OSError) -> int:
    """Prints an error in one line on standard error; returns the exit code that it stands for."""
    if isinstance(error, OSError):
        error = explained(error, Path(error.filename or "."))
    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return error.exit_code


def one_line(text: str) -> str:
    """The lines of a text in one, which is printable."""
    return plain(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_words(number: int) -> str:
    """Bytes in words: `3 MB`, `1.7 GB`, in powers of ten as disks are sold."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
