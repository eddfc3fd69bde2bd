"""Training: it learns, is deterministic, and resumes after a kill."""

from __future__ import annotations

import logging
import os
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from backdoor_lab.core.errors import DivergedError
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.training.evaluate import predictions
from backdoor_lab.training.train import (
    TrainingJob,
    blank_classifier,
    fit,
    last_checkpoint,
    new_classifier,
)
from tests.helpers.cells import CPU, job, toy_set


def weights(job: TrainingJob, **said: Any) -> str:
    return tensors_digest(fit(job, CPU, **said).net.state_dict())


class Epochs(pl.Callback):
    """Records which epochs run, and can interrupt one at its start or in the middle."""

    def __init__(self, until: int | None = None, step: int = 0) -> None:
        self.seen: list[int] = []
        self.until, self.step = until, step

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seen.append(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, index: int
    ) -> None:
        if trainer.current_epoch == self.until and index == self.step:
            raise KeyError("killed")


def test_training_reaches_a_high_accuracy_on_easy_images() -> None:
    asked = job(epochs=6)
    module = fit(asked, CPU)
    assert len(module.history) == 6
    assert module.history[-1] < 0.5 * module.history[0]
    assert not module.training
    predicted = predictions(module, asked.training.base, CPU)
    assert float((predicted == asked.training.labels).double().mean()) > 0.9


def test_training_twice_with_the_same_settings_gives_the_same_weights() -> None:
    augmentation = {"crop_padding": 1, "flip": True, "cutout": 2}
    torch.manual_seed(1)
    first = weights(job(**augmentation))
    torch.manual_seed(2)
    assert weights(job(**augmentation)) == first
    assert weights(job(seed=2, **augmentation)) != first


def test_the_seed_determines_both_order_and_initial_weights() -> None:
    untrained = [tensors_digest(new_classifier(job(seed=s), CPU).net.state_dict()) for s in (1, 2)]
    assert untrained[0] != untrained[1]
    assert weights(job(lr=0, seed=1)) != weights(job(lr=0, seed=2))


def test_a_new_classifier_that_loads_weights_equals_the_classifier_that_saved_them() -> None:
    """The batch normalization buffers are equal, too, and no random number is drawn."""
    asked = job(epochs=1)
    trained, before = fit(asked, CPU), torch.get_rng_state()
    blank = blank_classifier(asked, CPU)
    blank.net.load_state_dict(trained.net.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert {each.device.type for each in [*blank.parameters(), *blank.buffers()]} == {"cpu"}
    images = asked.training.base
    assert torch.equal(blank.eval()(images), trained(images))


def test_training_with_dropout_is_deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_dropout(*_: Any, **__: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 2))

    monkeypatch.setattr("backdoor_lab.training.train.build_model", with_dropout)
    torch.manual_seed(1)
    first = weights(job())
    torch.manual_seed(2)
    assert weights(job()) == first
    assert weights(job(seed=2)) != first


@pytest.mark.parametrize(("until", "step"), [(0, 2), (1, 0), (2, 1), (2, 5)])
def test_training_resumed_after_a_kill_gives_identical_weights(
    tmp_path: Path, until: int, step: int
) -> None:
    changes: dict[str, Any] = {
        "epochs": 3,
        "crop_padding": 1,
        "schedule": "onecycle",
        "warmup": 0.2,
    }
    unbroken = fit(job(**changes), CPU)
    with pytest.raises(KeyError, match="killed"):
        fit(job(**changes), CPU, scratch=tmp_path, callbacks=[Epochs(until, step)])
    assert (last_checkpoint(tmp_path) is not None) == (until > 0)
    second = Epochs()
    resumed = fit(job(**changes), CPU, scratch=tmp_path, callbacks=[second])
    assert second.seen == list(range(until, 3))
    expected = unbroken.net.state_dict()
    assert all(torch.equal(value, expected[n]) for n, value in resumed.net.state_dict().items())
    assert resumed.history == unbroken.history


ADAMW = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05, "schedule": "warmup_cosine",
         "warmup": 0.2, "layer_decay": 0.7, "clip_norm": 1.0, "epochs": 3}  # fmt: skip


@pytest.mark.parametrize(("until", "step"), [(1, 0), (2, 5)])
def test_adamw_resumed_after_a_kill_gives_identical_weights(
    tmp_path: Path, until: int, step: int
) -> None:
    """Both moments, the number of steps, and the rate of every group continue where they were."""
    unbroken = fit(job(**ADAMW), CPU)
    with pytest.raises(KeyError, match="killed"):
        fit(job(**ADAMW), CPU, scratch=tmp_path, callbacks=[Epochs(until, step)])
    second = Epochs()
    resumed = fit(job(**ADAMW), CPU, scratch=tmp_path, callbacks=[second])
    assert second.seen == list(range(until, 3))
    expected = unbroken.net.state_dict()
    assert all(torch.equal(value, expected[n]) for n, value in resumed.net.state_dict().items())
    assert resumed.history == unbroken.history
    assert resumed.history[-1] < resumed.history[0]


def test_gradients_are_clipped_to_the_norm_of_the_recipe() -> None:
    """With SGD without momentum, the weights of one step differ by at most lr * clip_norm."""
    changes = {"epochs": 1, "batch_size": 48, "momentum": 0, "lr": 1.0}
    start = new_classifier(job(), CPU).net
    moved = []
    for norm in (0, 1e-3):
        made = fit(job(clip_norm=norm, **changes), CPU).net
        pairs = zip(start.parameters(), made.parameters(), strict=True)
        moved.append(float(torch.cat([(a - b).flatten() for a, b in pairs]).norm()))
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(1e-3, rel=1e-2)


def test_the_logged_rate_is_that_of_the_last_layer() -> None:
    rates = []

    class Rates(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
            rates.append(module._rate())

    fit(job(**ADAMW | {"schedule": "constant"}), CPU, callbacks=[Rates()])
    assert rates == [3e-3] * 3


def test_resuming_from_the_checkpoint_of_the_last_epoch_repeats_no_epoch(tmp_path: Path) -> None:
    first = weights(job(), scratch=tmp_path)
    again = Epochs()
    assert weights(job(), scratch=tmp_path, callbacks=[again]) == first
    assert again.seen == []


def test_resumed_training_knows_how_long_the_earlier_epochs_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr("backdoor_lab.training.classifier.perf_counter", lambda: float(next(ticks)))
    assert fit(job(epochs=4), CPU).seconds_before == 0
    for until in (1, 3):  # The clock is read at the start and at each checkpoint.
        with pytest.raises(KeyError, match="killed"):
            fit(job(epochs=4), CPU, scratch=tmp_path, callbacks=[Epochs(until, 2)])
    assert fit(job(epochs=4), CPU, scratch=tmp_path).seconds_before == 3


def test_only_the_last_checkpoint_is_kept(tmp_path: Path) -> None:
    fit(job(epochs=3), CPU, scratch=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch=2.ckpt"]


def test_training_resumes_from_the_previous_checkpoint_if_the_last_one_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = weights(job(epochs=3))
    with pytest.raises(KeyError):
        fit(job(epochs=3), CPU, scratch=tmp_path, callbacks=[Epochs(1)])
    good = (tmp_path / "epoch=0.ckpt").read_bytes()
    newer = tmp_path / "epoch=1.ckpt"
    newer.write_bytes(good[: len(good) // 2])
    later = (tmp_path / "epoch=0.ckpt").stat().st_mtime_ns + 10**9
    os.utime(newer, ns=(later, later))
    seen = Epochs()
    with caplog.at_level(logging.WARNING):
        assert weights(job(epochs=3), scratch=tmp_path, callbacks=[seen]) == unbroken
    assert seen.seen == [1, 2]
    assert "checkpoint cannot be used" in caplog.text


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", b"PK\x03\x04" + b"\0" * 50])
def test_training_restarts_if_every_checkpoint_is_damaged(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "epoch=0.ckpt").write_bytes(damage)
    seen = Epochs()
    assert weights(job(), scratch=tmp_path, callbacks=[seen]) == weights(job())
    assert seen.seen == [0, 1]


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"state_dict": Evil()}, tmp_path / "epoch=0.ckpt")
    assert last_checkpoint(tmp_path) is None
    assert not (tmp_path / "owned").exists()


def test_the_error_for_diverged_training_names_epoch_and_step() -> None:
    with pytest.raises(
        DivergedError, match=r"loss is (nan|inf) at epoch 1, step [2-6] .*lr=1e\+30"
    ):
        fit(job(lr=1e30), CPU)


def test_non_finite_weights_raise_diverged_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(pl.Callback):
        def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            module.get_parameter("net.fc.bias").data[0] = float("nan")

    with pytest.raises(DivergedError, match="weight net.fc.bias is not finite"):
        fit(job(), CPU, callbacks=[Broken()])


def test_a_training_set_smaller_than_a_batch_is_one_batch() -> None:
    assert len(fit(job(toy_set(6), epochs=1), CPU).history) == 1


def test_the_learning_rate_follows_the_recipe_during_training() -> None:
    class Rates(pl.Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(job(epochs=4, schedule="steps", milestones=[0.5, 0.75]), CPU, callbacks=[Rates()])
    # 48 images in batches of 8: six steps per epoch.
    assert Rates.seen == pytest.approx([0.05] * 12 + [0.005] * 6 + [0.0005] * 6)
