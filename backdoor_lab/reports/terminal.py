"""What is said on a terminal: printing that survives one without `±` and a reader like `head` that
leaves early, and seconds and bytes in words."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

from backdoor_lab.errors import EXIT_DONE, LabError


def printing(work: Callable[[], int]) -> int:
    """What `work` returns, 0 once nobody reads what it prints, or after a LabError, which is
    printed in one line, its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = work()
        sys.stdout.flush()
        return code
    except LabError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # keep the interpreter from flushing to the closed pipe at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_words(number: int) -> str:
    """Bytes in words: `3 MB`, `1.7 GB`, in powers of ten as disks are sold."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
