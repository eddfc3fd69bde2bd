"""What is said on a terminal: printing that survives one without `±` and a reader like `head` that
leaves early, and seconds and bytes in words."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

from backdoor_lab.core.errors import LabError
from backdoor_lab.core.files import explained
from backdoor_lab.core.output import survive_lost_output


def printing(work: Callable[[], int]) -> int:
    """What `work` returns; after a LabError, or an error of the system, which is printed in one
    line, its exit code. That nobody reads what is printed changes nothing."""
    survive_lost_output()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    try:
        code = work()
        sys.stdout.flush()
        return code
    except LabError as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        found = explained(error, Path(error.filename or "."))
        print(f"error: {found}", file=sys.stderr)
        return found.exit_code


def duration(seconds: float) -> str:
    """Seconds in words: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_words(number: int) -> str:
    """Bytes in words: `3 MB`, `1.7 GB`, in powers of ten as disks are sold."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
