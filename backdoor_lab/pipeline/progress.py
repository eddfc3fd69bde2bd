"""Reports the progress of a cell on the terminal and in running.json."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from backdoor_lab.core import failpoints, shutdown
from backdoor_lab.core.progress import Steps, observe
from backdoor_lab.core.terminal import duration, plain

log = logging.getLogger(__name__)
TICK = 1.0
BEAT = 5.0
"""Seconds between two heartbeats (updates of running.json), even within a long stage."""
SILENCE = 10.0
"""Seconds without output after which a progress line is logged. The interval doubles each time."""
LONGEST_SILENCE = 300.0


class Progress:
    """Reports a cell's progress: its stage, its epoch and the time left.

    `title` names the cell. `kind`: ``bar`` draws a progress bar on the terminal; ``lines`` logs one
    line per stage and epoch, and further lines during a long stage; ``none`` prints nothing;
    ``auto`` is ``bar`` on a terminal, otherwise ``lines``. Use as a context manager: inside, a
    thread updates running.json in `folder`, and loops in attacks and defenses report their steps.
    """

    def __init__(self, folder: Path, title: str, kind: str) -> None:
        self.path, self.title = folder / "running.json", plain(title)
        self.kind = ("bar" if sys.stdout.isatty() else "lines") if kind == "auto" else kind
        self.steps = Steps()
        self._bar: Any = None
        self._task: Any = None
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick_on, daemon=True)
        self._beaten = time.monotonic()
        self._begin("", 0, 0)

    def __enter__(self) -> Progress:
        self._observing = observe(self.steps)
        self._observing.__enter__()
        if self.kind == "bar":
            self._bar = _bar()
            self._bar.start()
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._ticker.join()
        if self._bar is not None:
            self._bar.stop()
        self._observing.__exit__(None, None, None)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def stage(
        self, stage: str, *, epochs: int = 0, batches: int = 1, first: int = 0, detail: str = ""
    ) -> None:
        """Start a stage. A training stage has `epochs` epochs of `batches` steps; an earlier
        process has trained the first `first` epochs."""
        shutdown.check()
        self._begin(stage, epochs, epochs * batches)
        self._epoch, self._done = first, first * batches
        self._resumed = self._done
        self._beat()
        failpoints.point(f"{stage}.begun")
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            # Steps of an earlier process must not count for the speed, hence no `advance`.
            self._task = self._bar.add_task(
                f"{self.title} {stage}", total=self._total or None, completed=self._done
            )
        elif self.kind == "lines" and first:
            log.info("%s %s: resumes after epoch %d of %d", self.title, stage, first, epochs)
        elif self.kind == "lines" and not epochs:
            log.info("%s", " ".join(filter(None, [self.title, stage, detail])))

    def stored(self, stage: str) -> None:
        """Report that the output of a stage was already in the store."""
        if self.kind == "lines":
            log.info("%s %s: already in the store", self.title, stage)

    def reused(self, stages: Sequence[str]) -> None:
        """Report the stages whose output was already in the store."""
        if stages and self.kind == "lines":
            log.info("%s reused from the store: %s", self.title, ", ".join(stages))

    @property
    def current(self) -> str:
        """The name of the current stage."""
        return self._stage

    def _begin(self, stage: str, epochs: int, total: int) -> None:
        self._stage, self._epoch, self._epochs = stage, 0, epochs
        self._done, self._resumed, self._total = 0, 0, total
        # A loop that ended with an error is still registered: remove it.
        self.steps.running.clear()
        self._began = self._said = time.monotonic()
        self._patience = SILENCE

    def step(self, steps: int = 1) -> None:
        """Report that `steps` more training steps are done."""
        self._done += steps
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def epoch(self, stage: str, epoch: int, epochs: int, loss: float, left: float) -> None:
        """Report the end of epoch `epoch` of `epochs`. `left` is the estimated time left in
        seconds."""
        self._stage, self._epoch, self._epochs = stage, epoch, epochs
        self._beat()
        if self._bar is not None:
            text = f"{self.title} {stage} epoch {epoch}/{epochs} loss {loss:.3f}"
            self._bar.update(self._task, description=text)
        elif self.kind == "lines":
            self._said = time.monotonic()
            log.info(
                "%s %s epoch %d/%d loss %.3f, %s left",
                self.title, stage, epoch, epochs, loss, duration(left),
            )  # fmt: skip

    def tick(self, now: float) -> None:
        """Update the progress bar and, if due, the heartbeat. If progress is shown as lines, log a
        line when the stage has not logged one for a while. `now` is the time of the monotonic clock
        in seconds."""
        if now - self._beaten >= BEAT:
            self._beat()
        said, fraction = str(self.steps), self.steps.fraction
        if self._bar is not None and said:
            self._bar.update(
                self._task, description=f"{self.title} {self._stage}: {said}",
                total=None if fraction is None else 1.0, completed=fraction or 0.0,
            )  # fmt: skip
        elif self.kind == "lines" and now - self._said >= self._patience:
            self._said, self._patience = now, min(2 * self._patience, LONGEST_SILENCE)
            log.info("%s %s: %s", self.title, self._stage, self._far(now))

    def _far(self, now: float) -> str:
        """The progress of the current stage, and how long the stage has run, for a log line."""
        spent = now - self._began
        words = [str(self.steps)] if self.steps.running else []
        if self._total:
            words = [f"epoch {min(self._epoch + 1, self._epochs)} of {self._epochs}"]
        fraction, before = self._fraction(), self._before()
        if fraction:
            words.append(f"{fraction:.0%}")
        if fraction and fraction > before:
            words.append(f"{duration(spent / (fraction - before) * (1 - fraction))} left")
        return ", ".join([*words, f"{duration(spent)} so far"])

    def _fraction(self) -> float | None:
        return self._done / self._total if self._total else self.steps.fraction

    def _before(self) -> float:
        """The fraction of the current stage that an earlier process did."""
        return self._resumed / self._total if self._total else 0.0

    def _tick_on(self) -> None:
        while not self._ended.wait(TICK):
            self.tick(time.monotonic())

    def _beat(self) -> None:
        self._beaten = time.monotonic()
        says: dict[str, Any] = {"stage": self._stage, "epoch": self._epoch, "epochs": self._epochs}
        says |= {"steps": str(self.steps), "fraction": self._fraction(), "resumed": self._before()}
        says |= {"pid": os.getpid(), "host": socket.gethostname(), "beat": time.time()}
        part = self.path.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        # If the heartbeat cannot be written, the cell continues: no result depends on it.
        try:
            part.write_text(json.dumps(says))
            os.replace(part, self.path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)


class ProgressCallback(pl.Callback):
    """A Lightning callback that reports the progress of a training run and ends the run when a stop
    is requested."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self.progress, self.name = progress, stage

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.current_epoch
        batches = int(trainer.num_training_batches)
        epochs = trainer.max_epochs or 0
        self.progress.stage(self.name, epochs=epochs, batches=batches, first=self.first)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        failpoints.point(f"{self.name}.step")
        shutdown.check()
        self.progress.step()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epochs, done = trainer.max_epochs or 0, trainer.current_epoch + 1
        pace = (time.monotonic() - self.began) / (done - self.first)
        self.progress.epoch(self.name, done, epochs, module.epoch_loss(), pace * (epochs - done))


def _bar() -> Any:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        # markup=False: a name may contain brackets.
        TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), transient=True,
    )  # fmt: skip
