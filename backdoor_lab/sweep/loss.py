"""A cell whose process died: what is known of its end, and the record that says so."""

from __future__ import annotations

import logging
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.errors import DataError
from backdoor_lab.reports.heartbeat import HEARTBEAT, MAX_BYTES
from backdoor_lab.small_files import read_json, write_json
from backdoor_lab.sweep.listing import Asked, command_line

if TYPE_CHECKING:
    from backdoor_lab.sweep.cell import Cell

log = logging.getLogger(__name__)
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True)
class Loss:
    """The end of a cell's process. `code`: its exit code, ``-n`` for signal ``n``, None where
    nobody knows it; `pid`: the process, None where unknown; `said`: the launcher's words."""

    code: int | None
    pid: int | None = None
    said: str = ""

    def reason(self, beat: dict[str, Any]) -> str:
        """``killed by signal 9 during train, epoch 3 of 8``; `beat` is the cell's heartbeat."""
        if self.code is None:
            how = "its process was lost"
        elif self.code < 0:
            how = f"killed by signal {-self.code}"
        else:
            how = f"exit code {self.code}"
        return f"{how}{self._where(beat)}"

    def _where(self, beat: dict[str, Any]) -> str:
        if self.pid is not None and beat.get("pid") != self.pid:
            # Another, earlier process' heartbeat or none.
            return " before its first stage"
        if "stage" not in beat:
            return ""
        epoch, epochs = beat.get("epoch", 0), beat.get("epochs", 0)
        if not isinstance(epoch, int) or not isinstance(epochs, int):
            epoch = epochs = 0
        # The heartbeat counts the epochs that are done.
        inside = f", epoch {min(epoch + 1, epochs)} of {epochs}" if epochs else ""
        return f" during {beat['stage']}{inside}"

    def hint(self, batch: int, journal: Path) -> str:
        """What to do about it."""
        if self.code is None:
            return f"the launcher says: {self.said}"
        if self.code == -signal.SIGKILL:
            return (
                "mostly the system's out-of-memory killer: run fewer cells at once"
                f" (hydra.launcher.n_jobs, or more memory per task) or lower recipe.batch={batch}"
            )
        if -self.code in CRASHES:
            return f"a native library crashed; the last Python stack is in {journal}"
        return f"see {journal}"


@dataclass(frozen=True)
class Job:
    """A cell to be launched: Hydra's number for it, and its overrides with its folder pinned."""

    asked: Asked
    number: int
    overrides: list[str]


@dataclass(frozen=True)
class Ended:
    """A launched cell that ended: with a record, or with `loss`. `failed`: the status of one that
    could not record why it failed."""

    asked: Asked
    loss: Loss | None
    failed: str | None = None


def failed_in(status: object) -> str | None:
    """The status that a cell's task returned, if it is that of a failure."""
    return status if isinstance(status, str) and status.startswith("failed: ") else None


def heartbeat(folder: Path) -> dict[str, Any]:
    """What a cell's process last said of itself; empty where it said nothing."""
    try:
        found = read_json(folder / HEARTBEAT, max_bytes=MAX_BYTES)
    except (OSError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def record_loss(cell: Cell, folder: Path, loss: Loss, journal: Path) -> None:
    """Writes the record of a cell whose process could not write it, and removes its heartbeat."""
    from backdoor_lab.sweep.record import git_commit, record_head
    from backdoor_lab.sweep.stages import versions

    beat = heartbeat(folder)
    reason = loss.reason(beat)
    error = f"{reason}; {loss.hint(cell.recipe.batch, journal)}"
    log.error("%s: failed: %s", cell.id, error)
    run: dict[str, Any] = {
        "command": command_line(),
        "git_commit": git_commit(),
        "versions": versions(),
    }
    run |= {"seconds": {}, "images_per_s": {}, "stages": {}, "device": None}
    run |= {"exit_code": loss.code, "host": beat.get("host"), "pid": loss.pid or beat.get("pid")}
    body = {"status": f"failed: {reason}", "error": error, "run": run}
    write_json(folder / "record.json", record_head(cell) | body)
    with suppress(OSError):
        (folder / HEARTBEAT).unlink(missing_ok=True)
