"""Tensors in files: safetensors only, nothing in them can run."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.files import write_through
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.small_files import check_regular


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Named tensors as one safetensors file."""
    from safetensors.torch import save

    write_through(path, save({name: value.contiguous() for name, value in tensors.items()}))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """An array as a .npy file that has reached the disk.

    Piece by piece through Python's own writing: that of numpy into a file does not say why it
    failed, and so not that the disk is full.
    """
    with path.open("wb") as stream:
        pieces = SimpleNamespace(write=stream.write)
        np.lib.format.write_array(pieces, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    check_regular(path)
    found: dict[str, Tensor] = load_file(path)
    return found


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """A hash of names, shapes, types and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous()
        total.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
