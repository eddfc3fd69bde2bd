"""What a cell is doing, said where people and programs look: the terminal and running.json."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from backdoor_lab import faults, stopping
from backdoor_lab.reports.terminal import duration

log = logging.getLogger(__name__)


class Progress:
    """Tells which cell of how many, stage, epoch and time left.

    `kind`: ``bar`` draws one on the terminal, ``lines`` writes a line per stage and epoch,
    ``none`` writes nothing, ``auto`` is a bar on a terminal and lines elsewhere.
    """

    def __init__(self, folder: Path, title: str, kind: str) -> None:
        self.path, self.title = folder / "running.json", title
        self.kind = ("bar" if sys.stdout.isatty() else "lines") if kind == "auto" else kind
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self.kind == "bar":
            self._bar = _bar()
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        self.path.unlink(missing_ok=True)

    def stage(self, stage: str, *, epochs: int = 0, batches: int = 1, detail: str = "") -> None:
        """A stage begins; `epochs` of `batches` steps each when it trains."""
        stopping.check()
        self._beat(stage, 0, epochs)
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            total = epochs * batches if epochs else None
            self._task = self._bar.add_task(f"{self.title} {stage}", total=total)
        elif self.kind == "lines" and not epochs:
            log.info("%s %s %s", self.title, stage, detail)

    def step(self, steps: int = 1) -> None:
        """So many training steps are done."""
        if self._bar is not None:
            self._bar.advance(self._task, steps)

    def epoch(self, stage: str, epoch: int, epochs: int, loss: float, left: float) -> None:
        """Epoch `epoch` of `epochs` is done, `left` seconds to go."""
        self._beat(stage, epoch, epochs)
        if self._bar is not None:
            text = f"{self.title} {stage} epoch {epoch}/{epochs} loss {loss:.3f}"
            self._bar.update(self._task, description=text)
        elif self.kind == "lines":
            log.info(
                "%s %s epoch %d/%d loss %.3f, %s left",
                self.title, stage, epoch, epochs, loss, duration(left),
            )  # fmt: skip

    def _beat(self, stage: str, epoch: int, epochs: int) -> None:
        says = {"stage": stage, "epoch": epoch, "epochs": epochs, "pid": os.getpid()}
        says |= {"host": socket.gethostname(), "beat": time.time()}
        part = self.path.with_suffix(f".{os.getpid()}.part")
        # A sign of life is no result: where it cannot be written, the work goes on.
        with contextlib.suppress(OSError):
            part.write_text(json.dumps(says))
            os.replace(part, self.path)


class Report(pl.Callback):
    """Hands a training's progress on, and stops it when the process is asked to stop."""

    def __init__(self, progress: Progress, stage: str) -> None:
        self.progress, self.name = progress, stage

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.began, self.first = time.monotonic(), trainer.current_epoch
        batches = int(trainer.num_training_batches)
        self.progress.stage(self.name, epochs=trainer.max_epochs or 0, batches=batches)
        self.progress.step(self.first * batches)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        faults.point(f"{self.name}.step")
        stopping.check()
        self.progress.step()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epochs, done = trainer.max_epochs or 0, trainer.current_epoch + 1
        pace = (time.monotonic() - self.began) / (done - self.first)
        self.progress.epoch(self.name, done, epochs, module.epoch_loss(), pace * (epochs - done))


def _bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True
    )
