"""Describes how the process of a cell died, and writes a record for that cell."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.errors import DataError, LabError
from backdoor_lab.core.small_files import read_json
from backdoor_lab.results.heartbeat import HEARTBEAT, MAX_BYTES
from backdoor_lab.results.seal import write_sealed
from backdoor_lab.sweep.manifest import RequestedCell, command_line

if TYPE_CHECKING:
    from backdoor_lab.pipeline.cell import Cell

log = logging.getLogger(__name__)
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True)
class LostProcess:
    """How the process of a cell ended. `code`: its exit code, ``-n`` for signal ``n``, None if
    unknown. `pid`: its process id, None if unknown. `said`: the launcher's message."""

    code: int | None
    pid: int | None = None
    said: str = ""

    def reason(self, beat: dict[str, Any]) -> str:
        """Describe how the process ended: ``killed by signal 9 during train, epoch 3 of 8``. `beat`
        is the last heartbeat of the cell."""
        if self.code is None:
            how = "its process was lost"
        elif self.code < 0:
            how = f"killed by signal {-self.code}"
        else:
            how = f"exit code {self.code}"
        if self.pid is not None and beat.get("pid") != self.pid:
            # There is no heartbeat, or an earlier process wrote it.
            return f"{how} before its first stage"
        return f"{how}{_during(beat)}"

    def hint(self, batch: int, journal: Path) -> str:
        """Return advice for the user. `batch` is the batch size, and `journal` the path of the
        cell's log."""
        if self.code is None:
            return f"the launcher reports: {self.said}"
        if self.code == -signal.SIGKILL:
            return (
                "probably the system's out-of-memory killer: run fewer cells at once"
                " (hydra.launcher.n_jobs), give each task more memory, or lower"
                f" recipe.batch_size={batch}"
            )
        if -self.code in CRASHES:
            return f"a native library crashed; the last Python stack is in {journal}"
        return f"see {journal}"


def _during(beat: dict[str, Any]) -> str:
    if "stage" not in beat:
        return ""
    epoch, epochs = beat.get("epoch", 0), beat.get("epochs", 0)
    if not isinstance(epoch, int) or not isinstance(epochs, int):
        epoch = epochs = 0
    # The heartbeat contains the number of completed epochs.
    inside = f", epoch {min(epoch + 1, epochs)} of {epochs}" if epochs else ""
    return f" during {beat['stage']}{inside}"


@dataclass(frozen=True)
class Job:
    """A cell to launch: its job number in Hydra, and its overrides, including its folder."""

    asked: RequestedCell
    number: int
    overrides: list[str]


@dataclass(frozen=True)
class Ended:
    """A launched cell that has ended. `loss` describes how the process of the cell died, and is
    None if the process did not die. `failed` is the status of a cell that failed but could not
    write its record."""

    asked: RequestedCell
    loss: LostProcess | None
    failed: str | None = None


def failed_in(status: object) -> str | None:
    """The status that the task of a cell returned, if it means a failure; otherwise None."""
    return status if isinstance(status, str) and status.startswith("failed: ") else None


def heartbeat(folder: Path) -> dict[str, Any]:
    """Read the last heartbeat of a cell; empty if there is none."""
    try:
        found = read_json(folder / HEARTBEAT, max_bytes=MAX_BYTES)
    except (OSError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def interrupted(folder: Path) -> str | None:
    """Describe where a cell was interrupted: ``interrupted during train, epoch 3 of 8``.

    Returns None if the cell has no heartbeat from this machine, or if the process that wrote the
    heartbeat still exists.
    """
    beat = heartbeat(folder)
    pid = beat.get("pid")
    if not isinstance(pid, int) or pid < 1 or beat.get("host") != socket.gethostname():
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return f"interrupted{_during(beat)}"
    except PermissionError:
        pass
    return None


def record_loss(cell: Cell, folder: Path, loss: LostProcess, journal: Path) -> str:
    """Write the record of a cell whose process died, and remove its heartbeat.

    Returns the cell's status, even if the record cannot be written.
    """
    from backdoor_lab.pipeline.record import git_commit, record_head
    from backdoor_lab.pipeline.stages.training import versions

    beat = heartbeat(folder)
    reason = loss.reason(beat)
    error = f"{reason}; {loss.hint(cell.recipe.batch_size, journal)}"
    log.error("%s: failed: %s", cell.id, error)
    run: dict[str, Any] = {
        "command": command_line(),
        "git_commit": git_commit(),
        "versions": versions(),
    }
    run |= {"seconds": {}, "images_per_s": {}, "stages": {}, "device": None}
    run |= {"exit_code": loss.code, "host": beat.get("host"), "pid": loss.pid or beat.get("pid")}
    status = f"failed: {reason}"
    body = {"status": status, "error": error, "run": run}
    try:
        write_sealed(folder / "record.json", record_head(cell) | body)
    except (LabError, OSError) as problem:
        log.error("%s: %s", cell.id, problem)
    with suppress(OSError):
        (folder / HEARTBEAT).unlink(missing_ok=True)
    return status
