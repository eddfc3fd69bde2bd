"""The files that stages write to the store, with the writer and the readers of each format.

Stages read and write these files with torch; tables, pages and figures read them with NumPy alone.
Tensors are stored as safetensors, so loading a file cannot execute code.
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

    from backdoor_lab.core.types import ImportedAttack

Array = NDArray[Any]
Split = Literal["train", "test"]


@dataclass(frozen=True)
class TensorFile:
    """A file of named tensors in a stage's folder. `tensors` lists their names; if it is empty, any
    names are allowed.

    Reading does not check the names: a file in an older store may lack tensors that were added
    later.
    """

    name: str
    tensors: tuple[str, ...] = ()

    def path(self, folder: Path) -> Path:
        """The file's path in a stage's folder."""
        return folder / self.name

    def write(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        """Write `tensors`. Raises ValueError if their names differ from `self.tensors`."""
        from backdoor_lab.core.tensor_io import write_tensors

        if self.tensors and tensors.keys() != set(self.tensors):
            raise ValueError(
                f"{self.name} must hold the tensors {self.tensors}, got {tuple(tensors)}"
            )
        write_tensors(self.path(folder), tensors)

    def read(self, folder: Path) -> dict[str, Tensor]:
        """Read the tensors, on the CPU."""
        from backdoor_lab.core.tensor_io import read_tensors

        return read_tensors(self.path(folder))

    def read_arrays(self, folder: Path) -> dict[str, Array]:
        """Read the tensors as NumPy arrays, without importing torch."""
        from safetensors.numpy import load_file

        check_regular(self.path(folder))
        found: dict[str, Array] = load_file(self.path(folder))
        return found


PREPARED = TensorFile("prepared.safetensors")
"""The tensors that a trigger optimizes or trains; each trigger chooses their names."""
POISON = TensorFile(
    "poison.safetensors", ("rows", "source_index", "index", "labels", "cover_index")
)
"""The poisoned training set. uint8 `rows` (P + Q, C, H, W): P poisoned images, then Q cover images.
int64 `source_index` (P,) and `cover_index` (Q,): indices of the clean images from which the
poisoned images and the cover images were made. int64 `index` (n,): the training images, as
positions in the concatenation of the clean images and `rows`. int64 `labels` (n,): the training
labels."""
FEATURES = TensorFile("features.safetensors", ("values",))
"""float `values` (n, d): a vector of d features for each of n training images."""
VERDICT = TensorFile("verdict.safetensors", ("scores", "keep"))
"""The result of a defense: float64 `scores` (n,), NaN for images that the defense did not score,
and bool `keep` (n,), false for removed images."""
WEIGHTS = TensorFile("weights.safetensors")
"""The parameters and buffers of a network, by name."""


def split_files(folder: Path, split: Split) -> tuple[Path, Path]:
    """Returns the paths of a split's images, uint8 (N, C, H, W), and labels, int64 (N,)."""
    return folder / f"{split}_images.npy", folder / f"{split}_labels.npy"


def map_split(folder: Path, split: Split, mode: Literal["r", "c"] = "r") -> tuple[Array, Array]:
    """Returns the images and labels of a split as memory-mapped arrays. With mode ``r`` they are
    read-only; with mode ``c``, changes are not written to the files."""
    paths = split_files(folder, split)
    for path in paths:
        check_regular(path)
    images, labels = (np.load(path, mmap_mode=mode, allow_pickle=False) for path in paths)
    return images, labels


def write_attack(folder: Path, attack: ImportedAttack) -> dict[str, Any]:
    """Write the arrays of the attack on a data set. Returns what else is known, as JSON data."""
    from backdoor_lab.core.tensor_io import write_array

    for name, array in attack.arrays.items():
        write_array(folder / f"{name}.npy", array)
    return {
        "arrays": [*attack.arrays],
        "normalization": attack.normalization,
        "digest": attack.digest,
    }


def stored_attack(folder: Path, meta: dict[str, Any]) -> ImportedAttack | None:
    """Returns the attack on the data set in `folder`, whose manifest has `meta`; None if the data
    set was not poisoned before it was read. The arrays are memory-mapped."""
    if (said := meta.get("attack")) is None:
        return None
    from backdoor_lab.core.types import ImportedAttack

    arrays = {}
    for name in said["arrays"]:
        check_regular(folder / f"{name}.npy")
        arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False)
    given = said["normalization"]
    normalization = None if given is None else (tuple(given[0]), tuple(given[1]))
    return ImportedAttack(**arrays, normalization=normalization, digest=said["digest"])
