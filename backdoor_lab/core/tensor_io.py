"""Tensors in safetensors files, which cannot execute code."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.atomic_io import write_through
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.small_files import check_regular


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to one safetensors file."""
    from safetensors.torch import save

    write_through(path, save({name: value.contiguous() for name, value in tensors.items()}))


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array to a .npy file and flush it to the disk.

    Writes through Python's file object: NumPy's own writer does not report why a write failed, so a
    full disk would not be recognized.
    """
    with path.open("wb") as stream:
        pieces = SimpleNamespace(write=stream.write)
        np.lib.format.write_array(pieces, array, allow_pickle=False)
        stream.flush()
        os.fsync(stream.fileno())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    check_regular(path)
    found: dict[str, Tensor] = load_file(path)
    return found


def tensors_digest(tensors: dict[str, Tensor]) -> str:
    """Returns the SHA-256, in hex, of the tensors' names, shapes, dtypes and bytes."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous()
        total.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        total.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
