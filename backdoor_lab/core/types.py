"""The main data types: images, poisoned training set, features, filter result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backdoor_lab.core.lazy import Tensor, torch


@dataclass(frozen=True)
class LabeledImages:
    """A labeled image set: `images` uint8 (N, C, H, W), and `labels` int64 (N,) with values from 0
    to ``len(classes) - 1``. `digest` is a hash of the content, independent of the file format."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of one image, (C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the same classes and image shape. `notes` are written to the
    record; they list unused files, for example."""

    name: str
    train: LabeledImages
    test: LabeledImages
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


@dataclass(frozen=True)
class TrainingSet:
    """A training set: clean images and poisoned rows, selected by index without copying.

    `index` int64 (n,) selects the training images: values below ``len(base)`` select clean images
    in `base` uint8 (N, C, H, W), larger values select poisoned images in `rows` uint8 (P, C, H, W).
    `labels` int64 (n,) are the training labels. With `late_trigger`, `rows` holds images without
    the trigger, which is applied to each batch after augmentation.
    """

    base: Tensor
    rows: Tensor
    index: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str
    late_trigger: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, where: Tensor) -> Tensor:
        """Returns the images at positions `where` int64 (b,) of this set: uint8 (b, C, H, W)."""
        index = self.index[where]
        images = self.base.index_select(0, index.clamp(max=len(self.base) - 1))
        if len(self.rows):
            # No check of how many rows are used: that would synchronize the GPU.
            over = (index - len(self.base)).clamp(min=0)
            laid_over = (index >= len(self.base)).view(-1, 1, 1, 1)
            images = torch.where(laid_over, self.rows.index_select(0, over), images)
        return images

    def is_triggered_late(self, where: Tensor) -> Tensor:
        """Returns a mask, bool (b,): whether the image at each position in `where`, int64 (b,),
        gets the trigger after augmentation."""
        laid_over: Tensor = self.index[where] >= len(self.base)
        return laid_over if self.late_trigger is not None else torch.zeros_like(laid_over)

    def shown(self, where: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Returns the images at positions `where` int64 (b,) as the network sees them: uint8
        (b, C, H, W).

        `augment`, which may also move the images to another device, is applied before
        `late_trigger`.
        """
        images = self.gather(where)
        if augment is not None:
            images = augment(images)
        if self.late_trigger is None:
            return images
        chosen = self.is_triggered_late(where).to(images.device).view(-1, 1, 1, 1)
        # Apply the trigger to all images, although few need it: selecting these would synchronize
        # the GPU.
        return torch.where(chosen, self.late_trigger(images), images)

    def keep(self, mask: Tensor, digest: str) -> TrainingSet:
        """Returns a copy of this set with only the images for which `mask` bool (n,) is true."""
        return TrainingSet(
            self.base,
            self.rows,
            self.index[mask],
            self.labels[mask],
            self.classes,
            digest,
            self.late_trigger,
        )


@dataclass(frozen=True)
class PoisonResult:
    """A training set with its ground truth. Records and controls may use the ground truth; defenses
    must not.

    `is_poison` bool (n,) marks the poisoned training images; `source_index` int64 (P,) are the
    indices of the clean images from which they were made. `is_cover` bool (n,) and `cover_index`
    int64 (Q,) are the corresponding mask and indices for cover images: triggered images with their
    true label, which do not count as poison.
    """

    training: TrainingSet
    is_poison: Tensor
    source_index: Tensor
    is_cover: Tensor
    cover_index: Tensor


@dataclass(frozen=True)
class Features:
    """Features of the training images: `values` float32 (n, d) and training labels `labels` int64
    (n,)."""

    values: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FilterResult:
    """The result of a defense: `scores` float64 (n,), where higher is more suspicious and NaN means
    not scored; `keep` bool (n,), false for removed images; `notes`, which are written to the
    record."""

    scores: Tensor
    keep: Tensor
    notes: dict[str, object] = field(default_factory=dict)
