"""Computes features, clean accuracy and attack success rate over many images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from backdoor_lab.core.errors import DivergedError, many
from backdoor_lab.core.progress import track
from backdoor_lab.core.types import Features, LabeledImages, TrainingSet
from backdoor_lab.numerics.layers import FeatureHook
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.device import ComputeDevice, without_tf32
from backdoor_lab.training.models import stated_normalization

CHUNK = 512
"""The number of images that a network processes at a time, if they have at most 64x64 pixels."""


def chunk_size(shape: Sequence[int]) -> int:
    """The number of images of `shape`, (..., H, W), to process at a time: `CHUNK`, or fewer if they
    are larger than 64x64 pixels, so that the memory for a chunk is bounded."""
    return max(1, min(CHUNK, CHUNK * 64**2 // (shape[-2] * shape[-1])))


def channel_stats(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of each channel of `images`, uint8 (n, C, H, W).

    Both are float32 (C,) on the 0..255 scale; the standard deviation is at least 1. The sums
    are exact integers, so the result is the same on every machine and for any number of threads.
    """
    channels = images.shape[1]
    counted = torch.zeros(channels, 256, dtype=torch.int64)
    for part in images.split(chunk_size(images.shape)):
        for c in range(channels):
            counted[c] += torch.bincount(part[:, c].flatten(), minlength=256)
    counts = counted.double()
    values = torch.arange(256, dtype=torch.float64)
    total = counts.sum(dim=1)
    mean = (counts * values).sum(dim=1) / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(dim=1) / total
    return mean.float(), variance.sqrt().clamp(min=1.0).float()


def normalization_of(training: TrainingSet, model: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of each channel by which a network normalizes the images of
    `training`: those that the `model` group states, those that came with the data set, or those of
    the images, as `channel_stats` returns them."""
    stated = stated_normalization(model, training.base.shape[1]) or training.normalization
    if stated is None:
        return channel_stats(training.base)
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in stated)
    return mean, std


@torch.inference_mode()
def predictions(module: Classifier, images: Tensor, machine: ComputeDevice) -> Tensor:
    """Predict the classes of `images`, uint8 (n, C, H, W). Returns int64 (n,)."""
    step = chunk_size(images.shape)
    return _over(
        module, len(images), step, machine, lambda a, b: images[a:b], lambda x: x.argmax(dim=1)
    )


def extract(
    module: Classifier, training: TrainingSet, layer: str, machine: ComputeDevice
) -> Features:
    """Compute the float32 features of every training example at `layer`, without augmentation.

    TF32 and bfloat16 are off even if training uses them, since scores are small differences from a
    mean. Raises DivergedError if a feature is not finite.
    """
    return Features(extract_layers(module, training, [layer], machine)[layer], training.labels)


def extract_layers(
    module: Classifier, training: TrainingSet, layers: Sequence[str], machine: ComputeDevice
) -> dict[str, Tensor]:
    """Compute the features at several `layers` in one pass, as `extract` does at one of them.
    Returns float32 (n, d) for each layer."""
    machine = replace(machine, bf16=False)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(without_tf32())
        taps = [stack.enter_context(FeatureHook(module.net, layer)) for layer in layers]
        values = _over(
            module, len(training), chunk_size(training.base.shape), machine, _shown(training),
            lambda _: torch.cat([tap.values.float() for tap in taps], dim=1),
        )  # fmt: skip
    bad = (~torch.isfinite(values)).any(dim=1).nonzero().flatten()
    if len(bad):
        raise DivergedError(
            f"the features of {many(len(bad), 'example')} are not finite, the first at index"
            f" {int(bad[0])}"
        )
    widths = [tap.values.shape[1] for tap in taps]
    return dict(zip(layers, values.split(widths, dim=1), strict=True))


@torch.inference_mode()
def training_accuracy(module: Classifier, training: TrainingSet, machine: ComputeDevice) -> float:
    """The share of the training images, poison included, for which the network predicts the
    training label. Images are not augmented."""
    step = chunk_size(training.base.shape)
    predicted = _over(
        module, len(training), step, machine, _shown(training), lambda x: x.argmax(dim=1)
    )
    return accuracy(predicted, training.labels)


def _shown(training: TrainingSet) -> Callable[[int, int], Tensor]:
    """Returns a function that maps (start, stop) to the training images `start` to `stop` - 1."""
    return lambda start, stop: training.shown(torch.arange(start, stop))


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of the elements of `predicted` that equal `labels`; both are int64 (n,)."""
    return float((predicted == labels).double().mean())


def attack_success(
    module: Classifier,
    test: LabeledImages,
    where: Tensor,
    trigger: Callable[[Tensor], Tensor],
    wanted: Tensor,
    machine: ComputeDevice,
) -> float | None:
    """The attack success rate on the test images with indices `where`, int64 (m,).

    The trigger is applied to these images. The rate is the share that the network then assigns to
    the class that the attacker wants: `wanted` int64 (n,), one class per test image. None if m is
    0.
    """
    if not len(where):
        return None
    with torch.inference_mode():
        predicted = _over(
            module,
            len(where),
            chunk_size(test.images.shape),
            machine,
            lambda a, b: trigger(test.images[where[a:b]]),
            lambda x: x.argmax(dim=1),
        )
    return float((predicted == wanted[where]).double().mean())


def _over(
    module: Classifier,
    n: int,
    step: int,
    machine: ComputeDevice,
    images: Callable[[int, int], Tensor],
    take: Callable[[Tensor], Tensor],
) -> Tensor:
    torch.set_num_threads(machine.threads)
    with torch.inference_mode(False):
        # Weights moved to the device in inference mode could not be trained afterwards.
        module.to(machine.device).eval()
    parts = []
    for start in track(range(0, n, step), "batch"):
        chunk = images(start, min(n, start + step)).to(machine.device)
        with machine.autocast():
            parts.append(take(module(chunk)).clone())
    return torch.cat(parts).cpu()
