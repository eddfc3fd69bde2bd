"""Terminal output of commands: errors on one line, readable durations and sizes. Works with
encodings that lack `±` and with readers that exit early, such as `head`."""

from __future__ import annotations

import argparse
import gc
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from backdoor_lab.core.atomic_io import explained
from backdoor_lab.core.errors import LabError, StoppedError
from backdoor_lab.core.output import plain, survive_lost_output

__all__ = ["duration", "one_line", "plain", "print_error", "run_command", "size_words"]


def run_command(
    parser: argparse.ArgumentParser,
    work: Callable[[argparse.Namespace], int],
    arguments: Sequence[str] | None = None,
) -> int:
    """Run a command and return its exit code.

    Parses `arguments` (default: those of the process) and calls `work`, which returns the exit
    code. A LabError, an OSError or an interruption (Ctrl-C) is printed on one line and determines
    the exit code. Output is discarded once its reader has exited. Raises SystemExit for invalid
    arguments and after ``--help``.
    """
    survive_lost_output()
    # Nearly all objects stay alive, so frequent garbage collection would waste a fifth of the time.
    gc.set_threshold(200_000, 20, 20)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = work(parser.parse_args(arguments))
        sys.stdout.flush()
        return code
    except (LabError, OSError) as error:
        return print_error(error)
    except KeyboardInterrupt:
        return print_stopped()


def print_stopped() -> int:
    """Print that the command was stopped by SIGINT or SIGTERM, and return the exit code."""
    return print_error(StoppedError("stopped; the same command resumes from here"))


def print_error(error: LabError | OSError) -> int:
    """Print an error to standard error, on one line, and return its exit code."""
    if isinstance(error, OSError):
        error = explained(error, Path(error.filename or "."))
    print(f"error: {one_line(str(error))}", file=sys.stderr)
    return error.exit_code


def one_line(text: str) -> str:
    """Returns `text` with its lines joined and unprintable characters removed or escaped."""
    return plain(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def duration(seconds: float) -> str:
    """Returns a number of seconds as text: `40 s`, `12 min`, `3.5 h`, `2.5 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"


def size_words(number: int) -> str:
    """Returns a number of bytes as text, in powers of ten: `3 MB`, `1.7 GB`."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
