"""The nouns of the lab: images, a poisoned training set, features, a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from backdoor_lab.core.lazy import Tensor, torch


@dataclass(frozen=True)
class Images:
    """A labelled image set. `images` uint8 (N, C, H, W), `labels` int64 (N,), values in
    0..len(classes)-1; `digest` is a hash of the content, whatever file it came from."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Dataset:
    """A training and a test split with the same classes and image shape. `notes` are for the
    record: files that were not used, and the like."""

    name: str
    train: Images
    test: Images
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


@dataclass(frozen=True)
class TrainingSet:
    """What a network is trained on: rows picked by index, never a copy of the clean set.

    `index` int64 (n,) counts into the base images and, from ``len(base)`` on, into `rows`
    uint8 (P, C, H, W), the poisoned images laid over. `labels` int64 (n,) are the labels that
    training sees. With `stamp` the rows hold clean originals and the trigger is applied to
    them batch by batch, after augmentation.
    """

    base: Tensor
    rows: Tensor
    index: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str
    stamp: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.index)

    def gather(self, where: Tensor) -> Tensor:
        """The images at positions `where` int64 (b,) of this set: uint8 (b, C, H, W)."""
        index = self.index[where]
        images = self.base.index_select(0, index.clamp(max=len(self.base) - 1))
        if len(self.rows):
            # Without a look at how many there are: that would make a GPU wait.
            over = (index - len(self.base)).clamp(min=0)
            laid_over = (index >= len(self.base)).view(-1, 1, 1, 1)
            images = torch.where(laid_over, self.rows.index_select(0, over), images)
        return images

    def stamped(self, where: Tensor) -> Tensor:
        """Which of the positions `where` get the trigger after augmentation: bool (b,)."""
        laid_over: Tensor = self.index[where] >= len(self.base)
        return laid_over if self.stamp is not None else torch.zeros_like(laid_over)

    def shown(self, where: Tensor, augment: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The images at positions `where` as a network sees them: uint8 (b, C, H, W).

        `augment` changes the images before the trigger is applied to those that get it after
        augmentation; it may also move them to another device.
        """
        images = self.gather(where)
        if augment is not None:
            images = augment(images)
        if self.stamp is None:
            return images
        chosen = self.stamped(where).to(images.device).view(-1, 1, 1, 1)
        # All are stamped and few are taken: to pick those first would make a GPU wait.
        return torch.where(chosen, self.stamp(images), images)

    def keep(self, mask: Tensor, digest: str) -> TrainingSet:
        """The same set without the positions where `mask` bool (n,) is false."""
        return TrainingSet(
            self.base,
            self.rows,
            self.index[mask],
            self.labels[mask],
            self.classes,
            digest,
            self.stamp,
        )


@dataclass(frozen=True)
class Poisoned:
    """A training set and the truth about it. Only `record` and the controls see the truth.

    `is_poison` bool (n,) per training position; `source_index` int64 (P,) which clean training
    image each poisoned one was made from. `is_cover` bool (n,) and `cover_index` int64 (Q,) say
    the same of covers: triggered images that keep their label, and are no poison.
    """

    training: TrainingSet
    is_poison: Tensor
    source_index: Tensor
    is_cover: Tensor
    cover_index: Tensor


@dataclass(frozen=True)
class Features:
    """`values` float32 (n, d), one row per training position; `labels` int64 (n,)."""

    values: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Verdict:
    """A defense's answer: `scores` float64 (n,), higher is more suspicious, NaN where the
    defense did not look; `keep` bool (n,); `notes` for the record."""

    scores: Tensor
    keep: Tensor
    notes: dict[str, object] = field(default_factory=dict)
