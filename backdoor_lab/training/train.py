"""Trains a network, starting from random weights or from the last checkpoint."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import Tensor

from backdoor_lab.core import streams
from backdoor_lab.core.errors import DivergedError
from backdoor_lab.core.rng import derive, torch_generator
from backdoor_lab.core.small_files import check_regular, set_aside
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.exchange.network_file import WEIGHTS
from backdoor_lab.training.airbench import WHITENING_IMAGES, Airbench, whiten
from backdoor_lab.training.autoencoder import CHUNK
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.data_loader import BatchLoader
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.initial import load_initial
from backdoor_lab.training.memory_format import memory_format_of
from backdoor_lab.training.models import build_model
from backdoor_lab.training.recipe import Recipe
from backdoor_lab.training.unused_columns import guard_unused_columns

CHECKPOINT = {"epoch", "global_step", "history", "loops", "lr_schedulers", "optimizer_states",
              "state_dict"}  # fmt: skip
"""The keys that a checkpoint must have so that training can resume from it."""


@dataclass(frozen=True)
class TrainingJob:
    """What determines the trained weights: network, recipe, images and seed. `mean` and `std` are
    float (C,) on the 0..255 scale."""

    model: dict[str, Any]
    recipe: Recipe
    training: TrainingSet
    seed: int
    mean: Tensor
    std: Tensor


def new_classifier(job: TrainingJob, machine: ComputeDevice, total_steps: int = 1) -> Classifier:
    """Create a classifier with initial weights: random, or those of the file in the `model` group.
    For airbench, the first convolution is computed from the training set instead."""
    module = _random_classifier(job, machine, total_steps)
    if isinstance(module.net, Airbench):
        generator = torch_generator(job.seed, streams.WHITENING)
        chosen = torch.randperm(len(job.training), generator=generator)[:WHITENING_IMAGES]
        parts = chosen.split(CHUNK)
        whiten(module.net, (module.normalised(job.training.shown(part)) for part in parts))
    if WEIGHTS in job.model:
        module.initial = load_initial(module.net, job.model)
    return module


def _random_classifier(
    job: TrainingJob, machine: ComputeDevice, total_steps: int = 1
) -> Classifier:
    channels = job.training.base.shape[1]
    net = build_model(
        job.model, channels=channels, classes=len(job.training.classes), seed=job.seed
    )
    if machine.bf16 and machine.device.type == "cpu":
        guard_unused_columns(net)
    return Classifier(
        net,
        job.recipe,
        mean=job.mean,
        std=job.std,
        total_steps=total_steps,
        memory_format=memory_format_of(net, machine),
    )


def blank_classifier(job: TrainingJob, machine: ComputeDevice) -> Classifier:
    """Create a classifier with uninitialized weights, into which stored weights are to be loaded.

    Random initialization would take a tenth of a second, as long as training a tiny network.
    """
    if job.model["stem"] is None:
        # Networks without `stem` may have state other than weights, which must be initialized.
        return _random_classifier(job, machine)
    with torch.device("meta"):
        module = _random_classifier(job, machine)
    module.net.to_empty(device="cpu")
    return module


def fit(
    job: TrainingJob,
    machine: ComputeDevice,
    *,
    scratch: Path | None = None,
    callbacks: Sequence[pl.Callback] = (),
    logger: Any = False,
) -> Classifier:
    """Train a classifier. Returns it on the CPU, in evaluation mode.

    With `scratch`, a checkpoint is saved in this folder after every epoch, and the training resumes
    from the last one. On a CPU, resumed training ends with exactly the same weights as
    uninterrupted training. Raises DivergedError if a loss or weight is not finite, StoppedError if
    a stop is requested.
    """
    torch.set_num_threads(machine.threads)
    batches = BatchLoader(job.training, job.recipe, seed=job.seed, device=machine.device)
    steps = len(batches) * job.recipe.epochs
    module = new_classifier(job, machine, steps)
    checkpoint = None if scratch is None else last_checkpoint(scratch, module)
    extra = [] if scratch is None else [_checkpointer(scratch)]
    trainer = trainer_for(
        machine, epochs=job.recipe.epochs, callbacks=[*callbacks, _Reseed(job.seed), *extra],
        logger=logger, clip_norm=job.recipe.clip_norm,
    )  # fmt: skip
    trainer.fit(module, batches, ckpt_path=checkpoint, weights_only=True)
    return _finished(module)


def trainer_for(
    machine: ComputeDevice, *, epochs: int, callbacks: Sequence[pl.Callback], logger: Any = False,
    clip_norm: float = 0.0,
) -> pl.Trainer:  # fmt: skip
    """Create a Lightning Trainer that uses one device and prints nothing. Gradients are clipped to
    the norm `clip_norm`; 0: not at all."""
    _quiet()
    trainer = pl.Trainer(
        accelerator="gpu" if machine.device.type == "cuda" else "cpu",
        devices=[machine.device.index or 0] if machine.device.type == "cuda" else 1,
        precision="bf16-mixed" if machine.bf16 else "32-true",
        # All batches have the same shape, so searching for the fastest convolution algorithms pays
        # off.
        benchmark=machine.device.type == "cuda",
        max_epochs=epochs,
        gradient_clip_val=clip_norm or None,
        logger=logger,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        # The launcher requeues cluster tasks, not Lightning.
        plugins=[LightningEnvironment()],
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    # Signals are handled in shutdown.py. Lightning would install its own handlers, and a requeued
    # cluster task would end as if it were done.
    signals: Any = trainer._signal_connector
    signals.register_signal_handlers = lambda: None
    return trainer


def last_checkpoint(scratch: Path, module: Classifier | None = None) -> Path | None:
    """Returns the newest usable checkpoint in `scratch`, or None. A checkpoint is usable if it can
    be read and, if `module` is given, belongs to this network. Newer checkpoints that are not
    usable are set aside with a warning."""
    for path in sorted(scratch.glob("*.ckpt"), key=lambda each: -each.lstat().st_mtime_ns):
        try:
            check_regular(path)
            _check_checkpoint(torch.load(path, map_location="cpu", weights_only=True), module)
        except MemoryError:
            raise
        except Exception as error:  # Any error means that the file cannot be used.
            said = (str(error).splitlines() or [type(error).__name__])[0]
            set_aside(path, f"the checkpoint cannot be used ({said[:200]})")
        else:
            return path
    return None


def _check_checkpoint(found: Any, module: Classifier | None) -> None:
    """Raises an exception (of any type) if `found` is not a checkpoint to resume `module` from."""
    lacking = sorted(CHECKPOINT - found.keys())
    if lacking:
        raise KeyError(f"missing keys: {', '.join(lacking)}")
    shapes = {name: value.shape for name, value in found["state_dict"].items()}
    if module is not None and shapes != {k: v.shape for k, v in module.state_dict().items()}:
        raise ValueError("the weights do not fit this network")


class _Reseed(pl.Callback):
    """Seeds torch's global generator, which dropout uses, at the start of every epoch."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        torch.manual_seed(derive(self.seed, streams.DROPOUT, trainer.current_epoch))


def _checkpointer(scratch: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=scratch,
        filename="{epoch}",
        every_n_epochs=1,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )


def _finished(module: Classifier) -> Classifier:
    module.cpu()
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise DivergedError(f"weight {name} is not finite after training")
    return module.eval()


def _quiet() -> None:
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*srun.*", ".*LeafSpec.*", ".*tensorboard.*",
                 ".*GPU available but not used.*", ".*Checkpoint directory.*exists.*"):  # fmt: skip
        warnings.filterwarnings("ignore", text)
