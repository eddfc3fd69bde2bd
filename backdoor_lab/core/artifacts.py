"""The files that stages leave in the store, each with its writer and its readers side by side.

Stages write and read them with torch; tables, pages and figures read them with numpy, without
torch. A file of tensors is a safetensors file: nothing in it can run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.small_files import check_regular

if TYPE_CHECKING:
    from torch import Tensor

Array = NDArray[Any]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors in a stage's folder; `tensors` are their names, any if empty.

    A reader gets what is there: a store may hold files from before a tensor was added.
    """

    name: str
    tensors: tuple[str, ...] = ()

    def path(self, folder: Path) -> Path:
        """Where the file lies in a stage's folder."""
        return folder / self.name

    def write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Raises ValueError for other names than this file holds."""
        from backdoor_lab.core.tensors import write_tensors

        if self.tensors and tensors.keys() != set(self.tensors):
            raise ValueError(f"{self.name} holds {self.tensors}, got {tuple(tensors)}")
        write_tensors(self.path(folder), tensors)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """The tensors on the CPU."""
        from backdoor_lab.core.tensors import read_tensors

        return read_tensors(self.path(folder))

    def read_arrays(self, folder: Path) -> dict[str, Array]:
        """The tensors as numpy arrays; imports no torch."""
        from safetensors.numpy import load_file

        check_regular(self.path(folder))
        found: dict[str, Array] = load_file(self.path(folder))
        return found


PREPARED = TensorFile("prepared.safetensors")
"""The tensors that a trigger optimizes or trains; each trigger chooses their names."""
POISON = TensorFile(
    "poison.safetensors", ("rows", "source_index", "index", "labels", "cover_index")
)
"""uint8 `rows` (P + Q, C, H, W): P poisoned images and Q covers after them. int64 `source_index`
(P,) and `cover_index` (Q,): the clean image each was made from. int64 `index` (n,) into the clean
images with `rows` after them, and the labels (n,) trained on."""
FEATURES = TensorFile("features.safetensors", ("values",))
"""float `values` (n, d)."""
VERDICT = TensorFile("verdict.safetensors", ("scores", "keep"))
"""float64 `scores` (n,), NaN where the defense did not look, and bool `keep` (n,)."""
WEIGHTS = TensorFile("weights.safetensors")
"""A network's parameters and buffers, under their names."""


def split_files(folder: Path, split: Split) -> tuple[Path, Path]:
    """Where the images uint8 (N, C, H, W) and the labels int64 (N,) of a data set's split lie."""
    return folder / f"{split}_images.npy", folder / f"{split}_labels.npy"


def write_split(folder: Path, split: Split, images: Array, labels: Array) -> None:
    """Both files of a split."""
    from backdoor_lab.core.tensors import write_array

    for path, values in zip(split_files(folder, split), (images, labels), strict=True):
        write_array(path, values)


def map_split(folder: Path, split: Split, mode: Literal["r", "c"] = "r") -> tuple[Array, Array]:
    """Images and labels of a split, mapped from the disk: ``r`` read-only, ``c`` with changes that
    stay in memory."""
    paths = split_files(folder, split)
    for path in paths:
        check_regular(path)
    images, labels = (np.load(path, mmap_mode=mode, allow_pickle=False) for path in paths)
    return images, labels
