"""Shows a running sweep on the terminal: a row for each finished cell and, below, status lines with
the running cells and the remaining time.

Only the driver writes to the terminal; cells write to their log files (`quiet_cells`), so that the
table stays intact. If the output is not a terminal, rows are printed as lines between log lines.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from backdoor_lab.core import shutdown
from backdoor_lab.core.terminal import duration, plain
from backdoor_lab.results.heartbeat import Heartbeat
from backdoor_lab.sweep.manifest import RequestedCell
from backdoor_lab.sweep.rows import Rows
from backdoor_lab.sweep.watch import Watch

POLL = 0.5
"""Seconds between two checks of the cells."""
SHARE = 20
"""Checks take at most about 1/SHARE of the time: after a check of t seconds, as on a slow network
file system, the next one waits SHARE * t seconds."""
SHOWN = 8
"""The maximum number of running cells that are shown by name."""
STOPPING = "stopping: running cells save their progress"
CONSOLE, FILE = "console", "file"


def on_terminal(progress: str) -> bool:
    """Whether a sweep with this value of `trainer.progress` shows a live table."""
    return progress in ("auto", "bar") and sys.stdout.isatty()


def quiet_cells(config: DictConfig) -> list[str]:
    """The overrides that keep cells from writing to a terminal that shows a live table."""
    handlers = OmegaConf.select(config, "hydra.job_logging.root.handlers")
    owned = on_terminal(str(config.trainer.progress))
    if not owned or handlers is None or list(handlers) != [CONSOLE, FILE]:
        return []
    return [f"hydra.job_logging.root.handlers=[{FILE}]"]


@contextmanager
def live(
    folder: Path, asked: Sequence[RequestedCell], left: Sequence[RequestedCell], progress: str
) -> Iterator[None]:
    """Context manager that shows each of the remaining cells (`left`) when the cell finishes, from
    a background thread."""
    if progress == "none":
        yield
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        # If the terminal's encoding lacks a character, print a question mark.
        sys.stdout.reconfigure(errors="replace")
    board = (_Terminal if on_terminal(progress) else _Lines)(folder, asked, left)
    thread = threading.Thread(target=board.follow, daemon=True)
    with board.shown():
        thread.start()
        try:
            yield
        finally:
            board.ended.set()
            thread.join()


class _Lines:
    """Prints each finished cell as one line, which ends with the progress of the sweep."""

    def __init__(
        self, folder: Path, asked: Sequence[RequestedCell], left: Sequence[RequestedCell]
    ) -> None:
        self.rows, self.watch = Rows(asked), Watch(folder, [each.id for each in left])
        self.before, self.total = len(asked) - len(left), len(asked)
        self.running: dict[str, Heartbeat] = {}
        self.ended = threading.Event()
        self._begun = self._stopping = False

    @contextmanager
    def shown(self) -> Iterator[None]:
        yield

    def follow(self) -> None:
        """Check the cells repeatedly until the sweep has ended, then once more."""
        pause = POLL
        while not self.ended.wait(pause):
            began = time.monotonic()
            self.look(began)
            pause = max(POLL, SHARE * (time.monotonic() - began))
        self.look(time.monotonic())

    def look(self, now: float) -> None:
        """Print a row for each cell that finished since the last check, and once that the sweep is
        stopping."""
        if shutdown.requested() and not self._stopping:
            self._stopping = True
            self.stopping()
        finished, self.running = self.watch.finished(now), self.watch.running(now)
        for cell in finished:
            if not self._begun:
                self._begun = True
                self.say(self.rows.header())
            self.say(self.line(self.rows.row(cell), now))

    def stopping(self) -> None:
        self.say(STOPPING)

    def line(self, row: str, now: float) -> str:
        return f"{row}  [{self.far(now)}]"

    def far(self, now: float) -> str:
        """The progress of the sweep: `3 of 12 cells done, about 6 min left`."""
        done = self.before + self.watch.done
        said = f"{done} of {self.total} cells done"
        left = self.watch.seconds_left(now)
        if done == self.total or left is None or shutdown.requested():
            return said
        return f"{said}, about {duration(left)} left"

    def say(self, text: str) -> None:
        print(text, flush=True)


class _Terminal(_Lines):
    """Prints rows above status lines that show the progress of the sweep and its running cells."""

    below = "starting"

    @contextmanager
    def shown(self) -> Iterator[None]:
        from rich.live import Live

        self._live = Live(get_renderable=self._below, refresh_per_second=2, transient=True)
        with self._live:
            yield

    def stopping(self) -> None:
        """Prints nothing: the status lines say it."""

    def line(self, row: str, now: float) -> str:
        return row

    def say(self, text: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(text, no_wrap=True, overflow="ellipsis"))

    def look(self, now: float) -> None:
        super().look(now)
        state = f"{len(self.running)} running" if self.running else "starting"
        if shutdown.requested():
            state = STOPPING
        lines = [f"{self.far(now)}, {state}"]
        named = list(self.running.items())[:SHOWN]
        lines += [f"  {self.rows.name(name)}: {beat.doing}" for name, beat in named]
        if len(self.running) > SHOWN:
            lines.append(f"  and {len(self.running) - SHOWN} more")
        # Assign the text in one step, because another thread draws it.
        self.below = "\n".join(map(plain, lines))

    def _below(self) -> Any:
        from rich.text import Text

        # The next check of the cells may be seconds away.
        if shutdown.requested() and STOPPING not in self.below:
            self.below = STOPPING
        return Text(self.below, no_wrap=True, overflow="ellipsis")
