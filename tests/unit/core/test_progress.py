"""Progress: loops report their position, and long stages keep reporting."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from backdoor_lab.core import progress as tracking
from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import StoppedError
from backdoor_lab.core.progress import Steps, observe, track
from backdoor_lab.pipeline import progress as module
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.results.heartbeat import read_heartbeat
from backdoor_lab.training.train import fit
from tests.helpers.cells import CPU, job, run_here


def test_tracking_without_an_observer_changes_nothing() -> None:
    assert list(track([3, 1, 2], "step")) == [3, 1, 2]
    assert list(track(iter("ab"), "letter", 2)) == ["a", "b"]


def test_nested_loops_report_their_names_and_the_fraction_done() -> None:
    steps, seen = Steps(), []
    with observe(steps):
        for _ in track(range(2), "class"):
            for _ in track(range(4), "step"):
                seen.append((str(steps), steps.fraction))
    assert seen[0] == ("class 1 of 2, step 1 of 4", 0.0)
    assert seen[5] == ("class 2 of 2, step 2 of 4", 0.5 + 0.125)
    assert (str(steps), steps.fraction) == ("", None)


def test_a_loop_of_unknown_length_reports_only_a_count() -> None:
    steps = Steps()
    with observe(steps):
        loop = track(iter([0, 0, 0]), "step")
        next(loop), next(loop)
        assert (str(steps), steps.fraction) == ("step 2", None)


@pytest.mark.parametrize("leave", ["break", "error"])
def test_a_loop_left_early_is_no_longer_reported(leave: str) -> None:
    steps = Steps()
    with observe(steps):
        try:
            for _ in track(range(3), "step"):
                if leave == "break":
                    break
                raise ValueError
        except ValueError:
            pass
        assert str(steps) == ""


def test_ending_one_of_two_interleaved_loops_does_not_end_the_other() -> None:
    steps = Steps()
    with observe(steps):
        one, other = track(range(2), "one"), track(range(3), "other")
        next(one), next(other)
        assert list(one) == [1]
        assert str(steps) == "other 1 of 3"


def test_a_tracked_loop_stops_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = track(range(3), "step")
    next(loop)
    monkeypatch.setattr(shutdown, "_asked", ["SIGTERM"])
    with pytest.raises(StoppedError):
        next(loop)


def test_tracking_does_not_use_the_random_generator() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    with observe(Steps()):
        list(track(range(3), "step"))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture
def shown(tmp_path: Path) -> Iterator[Progress]:
    """Progress that is printed as lines, with its background thread stopped."""
    found = Progress(tmp_path, "[1/12 cell]", "lines")
    found._ended.set()
    with found:
        yield found


def test_a_long_stage_logs_after_10_30_and_70_seconds(
    shown: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    """The intervals between the log lines grow."""
    caplog.set_level(logging.INFO)
    shown.stage("repair")
    began = shown._began
    loop = track(range(10), "class")
    for _ in range(6):
        next(loop)
    caplog.clear()
    spoken = []
    for second in range(1, 100):
        shown.tick(began + second)
        spoken += [second] * bool(caplog.messages)
        if caplog.messages:
            last = caplog.messages[-1]
        caplog.clear()
    assert spoken == [10, 30, 70]
    assert last == "[1/12 cell] repair: class 6 of 10, 50%, 70 s left, 70 s so far"


def test_training_progress_is_logged_within_an_epoch(
    shown: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    shown.stage("train", epochs=4, batches=10)
    shown.step(5)
    shown.tick(shown._began + 12)
    assert caplog.messages[-1] == ("[1/12 cell] train: epoch 1 of 4, 12%, 84 s left, 12 s so far")


def test_resumed_training_reports_its_epoch_and_the_time_left_at_its_own_speed(
    shown: Progress, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """An earlier process trained 8 of 25 epochs. This one does one epoch, 10 steps, in 20
    seconds, so the other 16 epochs take 320 seconds."""
    caplog.set_level(logging.INFO)
    shown.stage("train", epochs=25, batches=10, first=8)
    beat = read_heartbeat(tmp_path / "running.json", time.time())
    assert beat is not None
    assert (beat.doing, beat.content["fraction"]) == ("train, epoch 8 of 25", 0.32)
    shown.tick(shown._began + 10)
    shown.step(10)
    shown.tick(shown._began + 30)
    assert caplog.messages == [
        "[1/12 cell] train: resumes after epoch 8 of 25",
        "[1/12 cell] train: epoch 9 of 25, 32%, 10 s so far",
        "[1/12 cell] train: epoch 9 of 25, 36%, 8 min left, 30 s so far",
    ]


def test_training_resumed_from_a_checkpoint_says_after_which_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first process is stopped in the second of three epochs."""

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                raise StoppedError("stopped")

    caplog.set_level(logging.INFO)
    for callbacks in ([Stop()], []):
        caplog.clear()
        with Progress(tmp_path / "cell", "[pixel]", "lines") as found, suppress(StoppedError):
            report = module.ProgressCallback(found, "train")
            fit(job(epochs=3), CPU, scratch=tmp_path / "work", callbacks=[*callbacks, report])
    said = [message.partition(" loss")[0] for message in caplog.messages]
    assert said == [
        "[pixel] train: resumes after epoch 1 of 3",
        "[pixel] train epoch 2/3",
        "[pixel] train epoch 3/3",
    ]


def test_the_progress_bar_of_resumed_training_ignores_earlier_steps_in_its_speed(
    tmp_path: Path,
) -> None:
    found = Progress(tmp_path, "cell", "bar")
    found._ended.set()
    with found:
        found.stage("train", epochs=4, batches=10, first=3)
        (task,) = found._bar.tasks
        assert (task.completed, task.total, task.speed) == (30, 40, None)


def test_the_heartbeat_is_renewed_within_a_long_stage(shown: Progress, tmp_path: Path) -> None:
    """The heartbeat names the current step, which the status command shows."""
    shown.stage("filter")
    (tmp_path / "running.json").unlink()
    loop = track(range(4), "batch")
    next(loop), next(loop)
    shown.tick(shown._beaten + module.BEAT - 1)
    assert not (tmp_path / "running.json").exists()
    shown.tick(shown._beaten + module.BEAT)
    beat = read_heartbeat(tmp_path / "running.json", time.time())
    assert beat is not None
    assert beat.doing == "filter, batch 2 of 4"
    assert beat.content["fraction"] == 0.25


def test_a_new_stage_discards_the_steps_of_the_previous_one(shown: Progress) -> None:
    shown.stage("filter")
    loop = track(range(4), "batch")
    next(loop)
    shown.stage("retrain")
    assert str(shown.steps) == ""
    loop.close()


def test_the_progress_bar_shows_steps(tmp_path: Path) -> None:
    found = Progress(tmp_path, "cell", "bar")
    found._ended.set()
    with found:
        found.stage("filter")
        loop = track(range(4), "batch")
        next(loop), next(loop)
        found.tick(time.monotonic())
        task = found._bar.tasks[0]
        assert task.description == "cell filter: batch 2 of 4"
        assert (task.completed, task.total) == (0.25, 1.0)


def test_a_running_cell_writes_its_heartbeat_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TICK", 0.01)
    monkeypatch.setattr(module, "BEAT", 0.01)
    with Progress(tmp_path, "", "none") as found:
        found.stage("filter")
        (tmp_path / "running.json").unlink()
        limit = time.monotonic() + 60
        while not (tmp_path / "running.json").exists():
            assert time.monotonic() < limit
            time.sleep(0.01)
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize(("overrides", "wanted"), [
    (["defense=neural_cleanse", "defense.steps=12", "protocol.clean_holdout=20"],
     [("repair", "class"), ("repair", "step")]),
    (["defense=abl"], [("filter", "epoch"), ("filter", "batch")]),
    (["defense=spectral"], [("filter", "class"), ("extract", "batch")]),
    # Steps after the training of the surrogate belong to the stage `prepare`.
    (["trigger=narcissus", "trigger.steps=8", "trigger.lr=1e6", "retrain=false"],
     [("prepare", "step")]),
    (["trigger=sleeper_agent", "source=cat", "trigger.steps=2", "retrain=false"],
     [("poison", "start"), ("poison", "step")]),
    (["protocol.layer=autoencoder", "retrain=false"], [("autoencoder", "epoch")]),
])  # fmt: skip
def test_loops_of_attack_and_defense_are_reported_under_their_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    overrides: list[str], wanted: list[tuple[str, str]],
) -> None:  # fmt: skip
    seen: set[tuple[str, str]] = set()
    current: list[Progress] = []
    enter = Progress.__enter__

    def entering(self: Progress) -> Progress:
        current.append(self)
        return enter(self)

    class Noted(tracking.Step):
        def __init__(self, *said: Any) -> None:
            super().__init__(*said)
            seen.add((current[-1].current, self.label) if current else ("", self.label))

    monkeypatch.setattr(Progress, "__enter__", entering)
    monkeypatch.setattr(tracking, "Step", Noted)
    record = run_here(tmp_path, tmp_path / "cell", *overrides)
    assert record["status"] == "done", json.dumps(record.get("error"))
    assert set(wanted) <= seen


def test_markup_in_a_title_is_shown_as_plain_text(tmp_path: Path) -> None:
    title = "[bold]x[/bold] [link=http://x]y[/link]"
    bar, console = module._bar(), Console(file=io.StringIO(), width=120)
    bar.add_task(Progress(tmp_path, f"{title}\x1b[31m\u202e", "none").title)
    console.print(bar)
    assert console.file.getvalue().startswith(f"{title}?[31m?")  # type: ignore[attr-defined]


def test_a_stage_whose_output_was_in_the_store_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        Progress(tmp_path, "[1/2 pixel]", "lines").stored("train")
        Progress(tmp_path, "[2/2 pixel]", "none").stored("train")
    assert caplog.messages == ["[1/2 pixel] train: already in the store"]
