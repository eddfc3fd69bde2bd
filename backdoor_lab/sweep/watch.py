"""Follows a running sweep through its files: which cells have finished, which are running, and how
much time is left.

Reads only files that the cells write, so this works with every launcher.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.validation import LONGEST, non_negative
from backdoor_lab.results.heartbeat import HEARTBEAT, Heartbeat, read_heartbeat
from backdoor_lab.results.records import DAMAGED, CellRecord
from backdoor_lab.results.stages import AFTER_TRAININGS, BETWEEN_TRAININGS
from backdoor_lab.sweep.manifest import RECORD, read_record

ENOUGH = 0.05
"""The progress of a running cell is used to estimate the time left once this share of the cell is
done."""


@dataclass
class _Started:
    """When a cell started, its last heartbeat, and the share of the cell that an earlier process
    completed."""

    at: float
    heartbeat: Heartbeat
    before: float = 0.0


class Watch:
    """Checks the folder of a sweep repeatedly. `now` is in seconds of the monotonic clock."""

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        """Watch the cells with these `ids`, which have not run yet."""
        self.folder = folder
        self._stamps = {each: _stamp(folder / each / RECORD) for each in ids}
        self._started: dict[str, _Started] = {}
        self._costs: dict[str, float] = {}
        self._done: set[str] = set()
        self._most = 1

    def finished(self, now: float) -> list[CellRecord]:
        """The cells whose records were written since the last call, oldest first."""
        fresh = []
        for each in self._stamps.keys() - self._done:
            stamp = _stamp(self.folder / each / RECORD)
            if stamp not in (None, self._stamps[each]):
                self._stamps[each] = stamp
                fresh.append((stamp, each))
        return [self._finished(each, now) for _, each in sorted(fresh)]

    def _finished(self, name: str, now: float) -> CellRecord:
        try:
            cell = read_record(self.folder / name) or CellRecord(name, DAMAGED)
        except DataError:
            cell = CellRecord(name, DAMAGED)
        # Use the folder's name as the id: a record that was copied in by hand may name another
        # cell.
        cell = replace(cell, id=name)
        started = self._started.pop(name, None)
        if cell.done:
            self._done.add(name)
            spent = non_negative(cell.run.get("wall_seconds"), high=LONGEST)
            here = now - started.at if started else 0.0
            self._costs[name] = here if spent is None else spent
        return cell

    def running(self, now: float) -> dict[str, Heartbeat]:
        """The heartbeats of the running cells by cell id, in the order in which the cells
        started."""
        found = {}
        for each in self._stamps:
            if each in self._done:
                continue
            try:
                beat = read_heartbeat(self.folder / each / HEARTBEAT, time.time())
            except DataError:
                beat = None
            if beat is None or beat.stale:
                self._started.pop(each, None)
                continue
            last = self._started.get(each, _Started(now, beat))
            before = _share(beat.stage, beat.resumed) if beat.resumed else 0.0
            self._started[each] = _Started(last.at, beat, max(last.before, before))
            found[each] = beat
        self._most = max(self._most, len(found))
        return dict(sorted(found.items(), key=lambda item: self._started[item[0]].at))

    @property
    def done(self) -> int:
        """The number of cells completed since this object was created; failed ones do not count."""
        return len(self._done)

    def seconds_left(self, now: float) -> float | None:
        """The estimated seconds until all cells are completed. Every remaining cell is assumed to
        take the mean time of the completed cells or, before any is completed, the time extrapolated
        from the running cells. None if neither is known."""
        open_cells = len(self._stamps) - len(self._done)
        costs = list(self._costs.values()) or list(self._paces(now))
        if not costs:
            return None
        mean = sum(costs) / len(costs)
        spent = sum(min(now - e.at + e.before * mean, mean) for e in self._started.values())
        # Count a worker that is between two cells, although it has no heartbeat.
        at_once = max(1, min(self._most, open_cells))
        return max(0.0, mean * open_cells - spent) / at_once

    def _paces(self, now: float) -> list[float]:
        running = self._started.values()
        shares = [(now - e.at, share_done(e.heartbeat) - e.before) for e in running]
        return [spent / share for spent, share in shares if share > ENOUGH]


def share_done(beat: Heartbeat) -> float:
    """Returns approximately how much of a running cell is done, as a fraction. The first training
    and the retraining count as one half each."""
    return _share(beat.stage, beat.fraction or 0.0)


def _share(stage: str, part: float) -> float:
    if stage in AFTER_TRAININGS:
        return 1.0
    if stage in BETWEEN_TRAININGS:
        return 0.5
    return {"train": 0.5 * part, "retrain": 0.5 + 0.5 * part, "repair": 0.5 + 0.5 * part}.get(
        stage, 0.0
    )


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
