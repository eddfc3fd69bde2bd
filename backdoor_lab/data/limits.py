"""How much memory and time reading a data set may take, whatever its files claim.

Beside the data set itself, as it is returned, reading takes at most

- two `MAX_BYTES` of image files that wait to be decoded, and one `MAX_BYTES` that is being read;
- 64 MiB per processor for images of up to `LARGE` pixels, and 1 GiB for one larger image, as
  larger ones are decoded one at a time;
- `MAX_HEADER` for one header of an archive or of an array.

A data set that would not fit into this machine's memory is refused before it is read.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from backdoor_lab.core.errors import DataError

MAX_BYTES = 1 << 26
"""No image file is larger; what claims to be is refused before it is read."""

MAX_PIXELS = 1 << 26
"""No image has more pixels (8192 x 8192); what claims to is refused before it is decoded."""

LARGE = 1 << 22
"""Images with more pixels are decoded one at a time."""

MAX_HEADER = 1 << 20
"""No header of an archive's member (a long name, a PAX header) or of an array is larger."""

MAX_FILES = 20_000_000
"""Files and folders in a folder or an archive; links can make them endless."""

MAX_VISITS = 1000
"""How often links may lead to folders that were listed before."""


def check_file_size(size: int, where: object) -> None:
    """Raises DataError for a file that is too large for an image."""
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: {size:,} bytes are too many for an image (at most {MAX_BYTES:,})"
        )


def check_pixels(width: int, height: int, where: str) -> None:
    """Raises DataError for an image that is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{where}: {width} x {height} pixels are too many (at most {MAX_PIXELS:,}):"
            " make the image smaller"
        )


def memory_here() -> int:
    """Bytes that this process may have: of the machine, of its control group, by `ulimit -v`."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    found += [allowed] if allowed != resource.RLIM_INFINITY else []
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path("/sys/fs/cgroup", path).read_text()))
    return min(found)


def check_memory(size: int, where: object, remedy: str) -> None:
    """Raises DataError for arrays of `size` bytes that this machine's memory cannot hold."""
    there = memory_here()
    if size > there:
        raise DataError(
            f"{where}: {size:,} bytes do not fit into this machine's memory ({there:,}): {remedy}"
        )
