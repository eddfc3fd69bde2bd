"""Launches the cells of a sweep. If the process of a cell dies, only that cell is lost.

A cell whose process died, or that ran out of memory, is launched again up to `retries` times. A
cell that never ran because the launcher failed is launched again without counting as a retry.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import OUT_OF_MEMORY, many
from backdoor_lab.sweep.launching.local import is_local, run_local
from backdoor_lab.sweep.launching.loss import Ended, Job, LostProcess, interrupted
from backdoor_lab.sweep.launching.remote import run_remote
from backdoor_lab.sweep.manifest import (
    RequestedCell,
    finished,
    forget_failures,
    halt,
    halted,
    status_of,
)

log = logging.getLogger(__name__)


class Launch:
    """Launches and relaunches the cells of one command.

    `record` writes the record of a cell whose process died, and returns the status. `failed` maps
    ids of failed cells to their status; these cells may have no record.
    """

    def __init__(
        self,
        launcher: Any,
        folder: Path,
        *,
        at_once: int,
        batch: int | None,
        record: Callable[[RequestedCell, LostProcess], str],
    ) -> None:
        self.launcher, self.folder = launcher, folder
        self.at_once, self.batch, self.record = at_once, batch, record
        self.tries: Counter[str] = Counter()
        self.failed: dict[str, str] = {}

    def run(self, asked: Sequence[RequestedCell]) -> None:
        """Launch each cell until it has a record or has used up its retries."""
        forget_failures(self.folder)
        left = list(asked)
        for each in left:
            where = interrupted(self.folder / each.id)
            if where:
                log.warning("%s was %s: it will be resumed", each.id, where)
        while left and not self._over():
            ended = {each.asked.id: each for each in self._round(left)}
            if not ended:
                log.error(
                    "the launcher ran none of the remaining cells; giving up on %s",
                    many(len(left), "cell"),
                )
                return
            left = [each for each in left if self._again(each, ended.get(each.id))]

    def _round(self, left: Sequence[RequestedCell]) -> Iterator[Ended]:
        jobs = [Job(each, number, _pinned(each, self.folder)) for number, each in enumerate(left)]
        size = self.batch or len(jobs)
        for start in range(0, len(jobs), size):
            if self._over():
                return
            for ended in self._launch(jobs[start : start + size]):
                self.failed.pop(ended.asked.id, None)
                if ended.failed is not None:
                    self.failed[ended.asked.id] = ended.failed
                if ended.loss is not None and not shutdown.requested():
                    self.failed[ended.asked.id] = self.record(ended.asked, ended.loss)
                    if ended.asked.fail_fast:
                        halt(self.folder)
                yield ended

    def _launch(self, jobs: Sequence[Job]) -> Iterator[Ended]:
        if is_local(self.launcher):
            return run_local(self.launcher, jobs, self.at_once, self._over)
        return run_remote(self.launcher, jobs)

    def _over(self) -> bool:
        return shutdown.requested() or halted(self.folder)

    def _again(self, each: RequestedCell, ended: Ended | None) -> bool:
        """Whether to launch a cell again. `ended` says how the cell ended in the last round; None
        if it never ran."""
        if self._over():
            return False
        if ended is None:
            return not finished(self.folder / each.id, each.id)
        if ended.loss is None and status_of(self.folder / each.id) != OUT_OF_MEMORY:
            return False
        self.tries[each.id] += 1
        if self.tries[each.id] > each.retries:
            log.error("giving up on %s: all retries are used (retries=%d)", each.id, each.retries)
            return False
        log.warning("retrying %s (%d of %d)", each.id, self.tries[each.id], each.retries)
        return True


def _pinned(each: RequestedCell, folder: Path) -> list[str]:
    # Use the driver's absolute path: the worker may have another working directory.
    path = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    return [*each.overrides, f"hydra.sweep.dir='{path}'", f"hydra.sweep.subdir={each.id}"]
