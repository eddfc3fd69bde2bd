"""Reserves a GPU for a cell. Parallel cells share a GPU only if the configuration allows it."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from backdoor_lab.core import shutdown
from backdoor_lab.core.atomic_io import room

POLL = 0.5


@contextmanager
def own_device(
    devices: Sequence[str], *, share: int = 1, folder: Path | None = None
) -> Iterator[int]:
    """A context manager that reserves one of `devices`, given by unique names, and yields its
    index.

    At most `share` processes hold a device at a time; others wait. A reservation is a file lock in
    `folder` (default: one folder for all processes of the user). The operating system releases the
    lock when the process ends. Raises StoppedError if a stop is requested while waiting.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"backdoor_lab-gpus-{os.getuid()}"
    with room(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock, number = _first_free(devices, share, folder)
    try:
        yield number
    finally:
        lock.release()


def _first_free(devices: Sequence[str], share: int, folder: Path) -> tuple[FileLock, int]:
    while True:
        for place in range(share):
            for number, name in enumerate(devices):
                safe = re.sub(r"[^a-zA-Z0-9-]+", "_", name)
                lock = FileLock(folder / f"{safe}.{place}.lock")
                try:
                    lock.acquire(timeout=0)
                except Timeout:
                    continue
                return lock, number
        shutdown.check()
        time.sleep(POLL)


def cuda_names() -> list[str]:
    """Unique names of the GPUs visible to this process, the same in every process."""
    import torch

    count = torch.cuda.device_count()
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(count)]
