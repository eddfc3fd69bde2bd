"""Measures how much a trigger changes images: PSNR, SSIM and the largest change of a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
HEADS = {
    "poisoned": "#Pois", "psnr_train": "PSNR train", "ssim_train": "SSIM train",
    "largest_train": "Largest train", "psnr_test": "PSNR test", "ssim_test": "SSIM test",
    "largest_test": "Largest test",
}  # fmt: skip
NOTES = (
    "PSNR in dB, SSIM, and the largest change of a value in gray levels of 0 to 255: computed for"
    " each image with and without the trigger, then averaged over images. PSNR is averaged over the"
    " images that the trigger changes. SSIM as in Wang et al., IEEE TIP 2004: Gaussian window of 11"
    " pixels with a standard deviation of 1.5, averaged over channels; undefined for images smaller"
    " than 11 pixels.",
    "Train: poisoned training images, without cover images. Test: the test images on which ASR is"
    " measured. If there are more than 1,000 of either, 1,000 evenly spaced ones are used.",
)
LIMIT = 1000
"""The maximum number of images that are compared."""
WINDOW = 11
CHUNK = 250


@dataclass(frozen=True)
class Distortion:
    """The mean change of images by a trigger: `psnr` in dB over the images that change, `ssim` and
    `largest`, in gray levels, over all images. NaN if undefined."""

    psnr: float
    ssim: float
    largest: float


@dataclass(frozen=True)
class TriggerDistortion:
    """The changes that an attack makes to training images and to test images; see `Distortion`.
    `poisoned` is the number of poisoned training images."""

    poisoned: int
    psnr_train: float
    ssim_train: float
    largest_train: float
    psnr_test: float
    ssim_test: float
    largest_test: float

    @classmethod
    def of(cls, poisoned: int, train: Distortion, test: Distortion) -> TriggerDistortion:
        """Combines the changes of training images and of test images."""
        first, second = ((each.psnr, each.ssim, each.largest) for each in (train, test))
        return cls(poisoned, *first, *second)


def distortion(before: Array, after: Array) -> Distortion:
    """Compares images with and without a trigger, both uint8 (n, C, H, W).

    PSNR and SSIM are those of torchmetrics, for each image and a data range of 255.

    >>> gray = np.full((1, 3, 16, 16), 100, np.uint8)
    >>> distortion(gray, gray + np.uint8(5)).largest
    5.0
    """
    found = [
        _per_image(before[at : at + CHUNK], after[at : at + CHUNK])
        for at in range(0, len(before), CHUNK)
    ]
    if not found:
        return Distortion(np.nan, np.nan, np.nan)
    psnr, ssim, largest = np.concatenate(found, axis=1)
    changed = psnr[largest > 0]
    return Distortion(
        float(changed.mean()) if len(changed) else float("nan"),
        float(ssim.mean()),
        float(largest.mean()),
    )


def _per_image(before: Array, after: Array) -> Array:
    """Returns PSNR, SSIM and largest change of each image: float64 (3, b)."""
    import torch
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    # A copy, because arrays that are mapped from a file are read-only.
    clean, found = (torch.from_numpy(np.array(each)).double() for each in (before, after))
    psnr = peak_signal_noise_ratio(found, clean, 255.0, reduction="none", dim=(1, 2, 3))
    ssim = torch.full_like(psnr, torch.nan)
    if min(before.shape[2:]) >= WINDOW:
        # In single precision: errors are below 0.001, and double precision takes 20 times as long.
        alike = structural_similarity_index_measure(
            found.float(), clean.float(), data_range=255.0, reduction="none"
        )
        assert isinstance(alike, torch.Tensor)
        ssim = alike.double()
    return torch.stack([psnr, ssim, (found - clean).abs().amax((1, 2, 3))]).numpy()


def text(name: str, value: float) -> str:
    """Returns the value of statistic `name` as text for tables."""
    if not np.isfinite(value):
        return "–"
    digits = {"poisoned": 0, "ssim_train": 3, "ssim_test": 3}
    return f"{value:.{digits.get(name, 1)}f}"
