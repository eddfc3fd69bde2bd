"""Runs one cell of a sweep in the process that a launcher chose for it. Imports nothing heavy."""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from backdoor_lab.core import failpoints, shutdown
from backdoor_lab.core.errors import (
    OUT_OF_MEMORY,
    LabError,
    StoppedError,
    is_out_of_memory,
    reason_of,
)
from backdoor_lab.sweep.launching.remote import supervised
from backdoor_lab.sweep.launching.workers import is_worker
from backdoor_lab.sweep.manifest import halt, halted, note_failure

log = logging.getLogger(__name__)


def run_in_sweep(config: dict[str, Any], folder: Path, parallel_cells: int, journal: Path) -> Any:
    """Run a cell of a sweep in a watched process. Returns its status, or a LostProcess.

    A worker, which the driver watches, runs the cell itself. Any other process runs the cell in a
    child process. If the cell's process crashes, its Python stack is appended to the log
    file `journal`.
    """
    if halted(folder.parent):
        return "not started"

    def run() -> str:
        with _crashes_told(journal):
            return _run(config, folder, parallel_cells)

    return run() if is_worker() else supervised(run)


def _run(config: dict[str, Any], folder: Path, parallel_cells: int) -> str:
    from backdoor_lab.sweep.job import run_job

    failpoints.cell = folder.name
    try:
        status = run_job(config, folder, parallel_cells, in_sweep=True)
    except StoppedError as error:
        log.error("%s: %s", folder.name, error)
        status = str(error)
    except Exception as error:
        # Hydra does not report errors of a task, so log it here.
        reason, memory = reason_of(error), is_out_of_memory(error)
        known = memory or isinstance(error, LabError)
        log.error("%s: %s", folder.name, reason, exc_info=not known)
        status = note_failure(folder, reason, OUT_OF_MEMORY if memory else None)
    if status != "done" and config.get("fail_fast") and not shutdown.requested():
        halt(folder.parent)
    return status


@contextmanager
def _crashes_told(journal: Path) -> Iterator[None]:
    # The file is opened in advance, since a crashing process cannot open one.
    try:
        journal.parent.mkdir(parents=True, exist_ok=True)
        stream = journal.open("a")
    except OSError as error:
        log.warning("%s will not contain the stack trace of a crash: %s", journal, error.strerror)
        yield
        return
    with stream:
        faulthandler.enable(stream)
        try:
            yield
        finally:
            faulthandler.disable()
