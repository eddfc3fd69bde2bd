"""The heartbeat file of a running cell: its current stage and progress."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import read_json
from backdoor_lab.core.validation import non_negative

HEARTBEAT, MAX_BYTES = "running.json", 65_536
STALE_AFTER = 60.0
"""Seconds without a heartbeat after which a cell no longer counts as running."""


@dataclass(frozen=True)
class Heartbeat:
    """The content of a cell's running.json. `age`: seconds since the file was written."""

    age: float
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def stale(self) -> bool:
        return self.age > STALE_AFTER

    @property
    def stage(self) -> str:
        return str(self.content.get("stage", "unknown stage"))

    @property
    def doing(self) -> str:
        """What the cell is doing: `train, epoch 2 of 3` or
        `repair, class 4 of 10, step 120 of 300`."""
        epoch, epochs = self.content.get("epoch"), self.content.get("epochs", "?")
        said = f"epoch {epoch} of {epochs}" if epoch else ""
        return ", ".join(filter(None, [self.stage, said, str(self.content.get("steps") or "")]))

    @property
    def fraction(self) -> float | None:
        """The completed fraction of the current stage; None if unknown."""
        return non_negative(self.content.get("fraction"), high=1)

    @property
    def resumed(self) -> float:
        """The fraction of the current stage that an earlier process completed."""
        return non_negative(self.content.get("resumed"), high=1) or 0.0

    @property
    def where(self) -> str:
        return f"pid {self.content.get('pid', '?')} on {self.content.get('host', '?')}"


def read_heartbeat(path: Path, now: float) -> Heartbeat | None:
    """Read a heartbeat file; None if it does not exist. `now` is in seconds since 1970.

    Raises DataError if it cannot be read.
    """
    try:
        age = max(0.0, now - path.stat().st_mtime)
        content = read_json(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, DataError) as error:
        raise DataError("the heartbeat file cannot be read") from error
    return Heartbeat(age, content if isinstance(content, dict) else {})
