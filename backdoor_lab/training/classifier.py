"""The LightningModule: a network, its loss and its optimizer."""

from __future__ import annotations

from time import perf_counter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from backdoor_lab.core.errors import DivergedError
from backdoor_lab.training.memory_format import CONTIGUOUS, arrange, arranged, has_channels_last
from backdoor_lab.training.recipe import Recipe, optimizer_of


class Classifier(pl.LightningModule):
    """A LightningModule that takes raw uint8 images and normalizes them itself.

    Training, feature extraction and evaluation therefore use the same normalization: `mean` and
    `std`, float (C,) on the 0..255 scale, are buffers of the module. Batches, uint8 (b, C, H, W)
    with labels int64 (b,), must already be on the module's device. Weights and activations have the
    given `memory_format`, whatever the format of the images. `initial` describes the initial
    weights, if they were read from a file.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        *,
        mean: Tensor,
        std: Tensor,
        total_steps: int,
        memory_format: str = CONTIGUOUS,
    ) -> None:
        super().__init__()
        self.net = arrange(net, memory_format)
        self.recipe, self.total_steps, self.memory_format = recipe, total_steps, memory_format
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self.initial: str | None = None
        self.history: list[float] = []
        self.resumed_after = 0
        self.seconds_before = 0.0

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of `images`, uint8 (b, C, H, W). Returns float (b, classes)."""
        logits: Tensor = self.net(self.normalised(images))
        return logits

    def normalised(self, images: Tensor) -> Tensor:
        """Normalize `images`, uint8 (b, C, H, W). Returns float of the same shape, in the network's
        memory format."""
        _, channels, _, width = images.shape
        if not has_channels_last(images):
            return arranged((images.float() - self.mean) / self.std, self.memory_format)
        # Compute the same values row by row: broadcasting over three adjacent channels takes ten
        # times as long.
        mean, std = (each.view(-1).repeat(width) for each in (self.mean, self.std))
        rows = images.permute(0, 2, 3, 1).flatten(2)
        scaled = ((rows.float() - mean) / std).unflatten(2, (width, channels))
        return arranged(scaled.permute(0, 3, 1, 2), self.memory_format)

    def on_fit_start(self) -> None:
        self._began = perf_counter()

    def on_train_epoch_start(self) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        images, labels = batch
        loss: Tensor = self.loss(self(images), labels)
        self._sum += loss.detach()
        if self.device.type == "cpu":
            # Only on a CPU: on a GPU, checking each step would wait for the GPU. There, the epoch's
            # sum is checked.
            self._check(loss.detach(), step)
        return loss

    def on_train_epoch_end(self) -> None:
        mean_loss = self.epoch_loss()
        self._check(torch.tensor(mean_loss), int(self.trainer.num_training_batches) - 1)
        self.history.append(round(mean_loss, 6))
        self.log_dict({"loss": mean_loss, "lr": self._rate()})

    def epoch_loss(self) -> float:
        """The mean loss over the batches of the last epoch."""
        return float(self._sum) / self.trainer.num_training_batches

    def configure_optimizers(self) -> Any:
        optimizer, schedule = optimizer_of(self.recipe, self.net, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = list(self.history)
        checkpoint["seconds"] = self.seconds_before + perf_counter() - self._began

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = list(checkpoint["history"])
        self.resumed_after = len(self.history)
        self.seconds_before = float(checkpoint.get("seconds", 0.0))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        # The batches are already on the device.
        return batch

    def _rate(self) -> float:
        optimizer: Any = self.optimizers()
        return float(optimizer.param_groups[0]["lr"])

    def _check(self, loss: Tensor, step: int) -> None:
        if not bool(torch.isfinite(loss)):
            raise DivergedError(
                f"loss is {float(loss)} at epoch {self.current_epoch + 1}, step {step + 1}"
                f" (recipe.lr={self.recipe.lr:g}); lower recipe.lr"
            )
