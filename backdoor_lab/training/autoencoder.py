"""A small convolutional autoencoder. Its bottleneck provides features that do not depend on
labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.core import streams
from backdoor_lab.core.progress import track
from backdoor_lab.core.rng import derive, torch_generator
from backdoor_lab.core.types import TrainingSet
from backdoor_lab.numerics.descent import descend
from backdoor_lab.training.memory_format import CONTIGUOUS, arranged

WIDTH, DIMS, EPOCHS, BATCH, RATE = 16, 64, 10, 64, 1e-3
CHUNK = 512


class Autoencoder(nn.Module):
    """Maps images to a bottleneck of `DIMS` values with two strided convolutions, and back to
    images.

    Input uint8 (n, C, H, W), output float (n, C, H, W), approximately in [0, 1]. The initial
    weights depend only on `shape` and `seed`.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int) -> None:
        super().__init__()
        channels, *self.size = shape
        self.small = [(side + 3) // 4 for side in self.size]
        inner = 2 * WIDTH * self.small[0] * self.small[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, streams.WEIGHTS))
            self.down = nn.Sequential(
                nn.Conv2d(channels, WIDTH, 3, stride=2, padding=1), nn.ReLU(),
                nn.Conv2d(WIDTH, 2 * WIDTH, 3, stride=2, padding=1), nn.ReLU(),
                nn.Flatten(), nn.Linear(inner, DIMS),
            )  # fmt: skip
            self.widen = nn.Linear(DIMS, inner)
            self.first = nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1)
            self.last = nn.Conv2d(WIDTH, channels, 3, padding=1)

    def encode(self, images: Tensor) -> Tensor:
        """Compute the bottleneck activations, float (n, DIMS), of `images`, uint8 (n, C, H, W)."""
        codes: Tensor = self.down(arranged(images.float() / 255, CONTIGUOUS))
        return codes

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct `images`, uint8 (n, C, H, W). Returns float of the same shape, approximately
        in [0, 1]."""
        x = F.relu(self.widen(self.encode(images))).unflatten(1, (-1, *self.small))
        half = [(side + 1) // 2 for side in self.size]
        x = F.relu(self.first(F.interpolate(x, size=half)))
        rebuilt: Tensor = self.last(F.interpolate(x, size=self.size))
        return rebuilt


def new_autoencoder(training: TrainingSet, seed: int) -> Autoencoder:
    """Create an untrained autoencoder for images of the training set's shape."""
    channels, height, width = training.base.shape[1:]
    return Autoencoder((channels, height, width), seed)


def train_autoencoder(training: TrainingSet, seed: int, device: torch.device) -> Autoencoder:
    """Train an autoencoder on the training images without augmentation: mean squared error, Adam,
    `EPOCHS` epochs. Returns it on the CPU. Raises DivergedError if the loss is not finite."""
    net = new_autoencoder(training, seed).to(device)
    adam = torch.optim.Adam(net.parameters(), lr=RATE)
    for epoch in track(range(EPOCHS), "epoch"):
        order = torch.randperm(len(training), generator=torch_generator(seed, streams.ORDER, epoch))
        for where in track(order.split(BATCH), "batch"):
            images = training.shown(where).to(device)
            with torch.enable_grad():
                loss = F.mse_loss(net(images), images.float() / 255)
            descend(adam, loss, f"the autoencoder's loss at epoch {epoch + 1}")
    return net.cpu().eval()


@torch.inference_mode()
def encode(net: Autoencoder, training: TrainingSet, device: torch.device) -> Tensor:
    """Compute the bottleneck of every training image: float32 (n, DIMS), on the CPU."""
    net = net.to(device)
    parts = []
    for where in track(torch.arange(len(training)).split(CHUNK), "batch"):
        parts.append(net.encode(training.shown(where).to(device)).cpu())
    net.cpu()
    return torch.cat(parts)
