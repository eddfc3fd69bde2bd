"""Bounds on memory and time for reading a data set, independent of what its files claim.

In addition to the data set itself, reading takes at most

- `WAITING` + `MAX_BYTES` for image files waiting to be decoded, and `MAX_BYTES` for one being read;
- 64 MiB per processor for images of up to `LARGE` pixels, and 1 GiB for one larger image, since
  larger images are decoded one at a time;
- `MAX_HEADER` for one header of an archive or an array.

Large data sets are read into files (see workspace.py). What must be in memory is refused before it
is read if it does not fit.
"""

from __future__ import annotations

import os
import resource
from contextlib import suppress
from pathlib import Path

from backdoor_lab.core.errors import DataError

MAX_BYTES = 1 << 26
"""Maximum size of an image file in bytes; larger files are refused before they are read."""

WAITING = 1 << 23
"""Files are read until they have more bytes than this; then they are decoded."""

MAX_PIXELS = 1 << 26
"""Maximum number of pixels of an image (8192²); larger ones are refused before they are decoded."""

LARGE = 1 << 22
"""Images with more pixels are decoded one at a time."""

MAX_HEADER = 1 << 20
"""Maximum size in bytes of one header: of an archive's member (long name, PAX header) or of an
array."""

MAX_FILES = 20_000_000
"""Maximum number of entries in a folder or an archive; circular links could make it infinite."""

MAX_VISITS = 1000
"""Maximum number of times that links may lead to folders that have been listed already."""


def check_file_size(size: int, where: object) -> None:
    """Raises DataError if a file is too large to be read as an image."""
    if size > MAX_BYTES:
        raise DataError(
            f"{where}: {size:,} bytes exceed the limit for an image file ({MAX_BYTES:,})"
        )


def check_pixels(width: int, height: int, where: str) -> None:
    """Raises DataError if an image is too large to be decoded."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{where}: {width} x {height} pixels exceed the limit of {MAX_PIXELS:,}:"
            " make the image smaller"
        )


def memory_here() -> int:
    """Returns the number of bytes available to this process: the smallest of RAM, the limit of
    the Linux control group, and `ulimit -v`."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    found += [allowed] if allowed != resource.RLIM_INFINITY else []
    for path in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path("/sys/fs/cgroup", path).read_text()))
    return min(found)


def check_memory(size: int, where: object, remedy: str) -> None:
    """Raises DataError if this machine's memory cannot hold arrays of `size` bytes."""
    there = memory_here()
    if size > there:
        raise DataError(
            f"{where}: {size:,} bytes do not fit into this machine's memory ({there:,}): {remedy}"
        )
