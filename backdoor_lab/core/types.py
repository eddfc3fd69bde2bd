"""The main data types: images, poisoned training set, features, filter result, and what is known
of the attack on a data set that was poisoned before it was read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.lazy import Tensor, torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    record; they list unused files, for example. `attack` describes the poison of a data set that
    was poisoned before it was read; None for other data sets."""

    name: str
    train: LabeledImages
    test: LabeledImages
    notes: dict[str, object] = field(default_factory=dict)
    attack: ImportedAttack | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes

    @property
    def training_digest(self) -> str:
        """The hash of what the training set and its normalization depend on: the digest of `train`
        and, if there is one, that of `attack`."""
        if self.attack is None:
            return self.train.digest
        return digest([self.train.digest, self.attack.digest])


@dataclass(frozen=True)
class TrainingSet:
    """A training set: clean images and poisoned rows, selected by index without copying.

    `index` int64 (n,) selects the training images: values below ``len(base)`` select clean images
    in `base` uint8 (N, C, H, W), larger values select poisoned images in `rows` uint8 (P, C, H, W).
    `labels` int64 (n,) are the training labels. With `late_trigger`, `rows` holds images without
    the trigger, which is applied to each batch after augmentation. `normalization` is the mean and
    the standard deviation of each channel on the 0..255 scale, by which networks normalize these
    images; None: those of `base`.
    """

    base: Tensor
    rows: Tensor
    index: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    digest: str
    late_trigger: Callable[[Tensor], Tensor] | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

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
        return replace(self, index=self.index[mask], labels=self.labels[mask], digest=digest)


@dataclass(frozen=True)
class PoisonResult:
    """A training set with its ground truth. Records and controls may use the ground truth; defenses
    must not.

    `is_poison` bool (n,) marks the poisoned training images; `source_index` int64 (P,) are the
    indices of the clean images from which they were made. `is_cover` bool (n,) and `cover_index`
    int64 (Q,) are the corresponding mask and indices for cover images: triggered images with their
    true label, which do not count as poison. If the ground truth is not `known`, nothing is marked.
    """

    training: TrainingSet
    is_poison: Tensor
    source_index: Tensor
    is_cover: Tensor
    cover_index: Tensor
    known: bool = True


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


TRUTH = {"is_poison": "bool", "is_cover": "bool", "source_index": "int64"}
"""The arrays of the ground truth, one element for each training image."""
TRIGGERED = {
    "triggered": "uint8", "wanted": "int64", "test_index": "int64", "elsewhere": "bool",
}  # fmt: skip
"""The arrays of the triggered test images, one element for each."""
ARRAYS = {**TRUTH, **TRIGGERED}


@dataclass(frozen=True)
class ImportedFacts:
    """The facts about an attack that can be read without images; None or empty if unknown.

    `trigger` is the trigger's name and `options` are its options. `target` and `source` are class
    names. `protocol` is the protocol's name with version, such as ``group13@1``, and `choices` are
    the keys of the protocol that describe the attack (``ratio_of``, ``placement``, ``poison_from``,
    ``asr_on``, ``label_mode``, ``cover_rate``). `n_poisoned` and `n_covers` are None without ground
    truth. `triggered` tells whether there are triggered test images.
    """

    trigger: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    target: str | None = None
    source: str | None = None
    ratio: float | None = None
    seed: int | None = None
    protocol: str | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    n_poisoned: int | None = None
    n_covers: int | None = None
    triggered: bool = False


@dataclass(frozen=True)
class ImportedAttack:
    """The ground truth and the triggered test images of a poisoned data set with n training images
    and t test images.

    `is_poison` and `is_cover`, bool (n,), mark poisoned images and cover images; `source_index`,
    int64 (n,), is the index of the clean image that an image was made from in the clean training
    set of the attack, -1 for clean images. All three are None if the ground truth is unknown.

    `triggered`, uint8 (k, C, H, W), are test images with the trigger; None if there are none.
    `wanted`, int64 (k,), are the labels that the attacker wants for them, and `test_index`,
    int64 (k,), the indices of the test images that they were made from, -1 if unknown. `elsewhere`,
    bool (k,), marks images of classes that are not attacked, on which a source-specific attack
    should fail; they do not count for the attack success rate.

    `normalization`: the mean and the standard deviation of each channel, on the 0..255 scale, by
    which the attacked networks were normalized; None if unknown. `digest` is a hash of all of this;
    it is set when the data set is opened.
    """

    is_poison: NDArray[np.bool_] | None = None
    is_cover: NDArray[np.bool_] | None = None
    source_index: NDArray[np.int64] | None = None
    triggered: NDArray[np.uint8] | None = None
    wanted: NDArray[np.int64] | None = None
    test_index: NDArray[np.int64] | None = None
    elsewhere: NDArray[np.bool_] | None = None
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    digest: str = ""

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays that are known, by name."""
        found = {name: getattr(self, name) for name in ARRAYS}
        return {name: array for name, array in found.items() if array is not None}

    @property
    def n_poisoned(self) -> int | None:
        """The number of poisoned images; None if the ground truth is unknown."""
        return None if self.is_poison is None else int(self.is_poison.sum())

    def originals(self, n: int) -> NDArray[np.int64]:
        """For each of the `n` training images, the row of the clean image that it was made from,
        int64 (n,); its own row if it is clean, or if the set does not contain the clean image.

        Appended rows follow the clean training set in its own order. In other sets, the original is
        not in the set: the image has replaced it, or the order is unknown.
        """
        import numpy as np

        found = np.arange(n)
        if self.is_poison is None or self.is_cover is None or self.source_index is None:
            return found
        made = self.is_poison | self.is_cover
        n_clean = n - int(made.sum())
        if not made[:n_clean].any():
            there = made & (self.source_index >= 0) & (self.source_index < n_clean)
            found[there] = self.source_index[there]
        return found

    def without(self, rest: NDArray[np.bool_]) -> ImportedAttack:
        """Returns a copy without the triggered images that were made from test images for which
        `rest`, bool (t,), is false. `test_index` becomes the index among the others."""
        if self.triggered is None or self.test_index is None:
            return self
        known = self.test_index >= 0
        kept = ~known | rest[self.test_index]
        number = rest.cumsum()[self.test_index] - 1
        number[~known] = -1
        left = {name: array[kept] for name, array in self.arrays.items() if name in TRIGGERED}
        return self.having({**left, "test_index": number[kept]})

    def having(self, arrays: Mapping[str, NDArray[Any]]) -> ImportedAttack:
        """Returns a copy with other arrays, given by name."""
        changes: dict[str, Any] = dict(arrays)
        return replace(self, **changes)
