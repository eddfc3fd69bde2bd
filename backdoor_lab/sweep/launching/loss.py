"""The loss of a cell's process: what is known about it, and the record for the cell."""

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
    """How a cell's process ended. `code`: its exit code, ``-n`` for signal ``n``, None if unknown;
    `pid`: its process id, None if unknown; `said`: the launcher's message."""

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
        if self.pid is not None and beat.get("pid") != self.pid:
            # No heartbeat, or that of an earlier process.
            return f"{how} before its first stage"
        return f"{how}{_during(beat)}"

    def hint(self, batch: int, journal: Path) -> str:
        """Advice on what to do."""
        if self.code is None:
            return f"the launcher reports: {self.said}"
        if self.code == -signal.SIGKILL:
            return (
                "probably the system's out-of-memory killer: run fewer cells at once"
                f" (hydra.launcher.n_jobs, or more memory per task) or lower"
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
    # The heartbeat counts completed epochs.
    inside = f", epoch {min(epoch + 1, epochs)} of {epochs}" if epochs else ""
    return f" during {beat['stage']}{inside}"


@dataclass(frozen=True)
class Job:
    """A cell to launch: its job number in Hydra, and its overrides with its folder fixed."""

    asked: RequestedCell
    number: int
    overrides: list[str]


@dataclass(frozen=True)
class Ended:
    """A launched cell that ended: with a record, or with `loss`. `failed`: the status of a cell
    that could not record its failure."""

    asked: RequestedCell
    loss: LostProcess | None
    failed: str | None = None


def failed_in(status: object) -> str | None:
    """The status that a cell's task returned, if it is a failure; else None."""
    return status if isinstance(status, str) and status.startswith("failed: ") else None


def heartbeat(folder: Path) -> dict[str, Any]:
    """The last heartbeat of a cell; empty if there is none."""
    try:
        found = read_json(folder / HEARTBEAT, max_bytes=MAX_BYTES)
    except (OSError, DataError):
        return {}
    return found if isinstance(found, dict) else {}


def interrupted(folder: Path) -> str | None:
    """Where a cell was when its process, of an earlier command on this machine, died without a
    record; None if that did not happen."""
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
    """Write the record of a cell whose process died, and remove its heartbeat. Returns the status,
    even if it cannot be written."""
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
