"""Tensors in safetensors files, which cannot execute code."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.atomic_io import write_through
from backdoor_lab.core.lazy import Tensor, torch
from backdoor_lab.core.small_files import check_regular

LARGE = 1 << 22
"""Larger tensors, in bytes, are not copied to memory when they are written."""


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write named tensors to one safetensors file.

    `save` copies all tensors to memory, so the one that is larger than `LARGE`, if there is one, is
    written on its own: it is last in the file, where `save` places bytes.
    """
    from safetensors.torch import save

    found = {name: value.contiguous() for name, value in tensors.items()}
    large = [name for name, each in found.items() if each.nbytes > LARGE]
    if len(large) != 1 or found[large[0]].dtype != torch.uint8:
        write_through(path, save(found))
        return
    last = found.pop(large[0])
    with path.open("wb") as stream:
        stream.write(_with_last(save(found), large[0], last))
        for part in last.reshape(-1).split(LARGE):
            stream.write(part.numpy().data)
        stream.flush()
        os.fsync(stream.fileno())


def _with_last(others: bytes, name: str, last: Tensor) -> bytes:
    """Returns the content of a safetensors file up to the bytes of its last tensor; `others` is the
    content of a file with the other tensors."""
    length = int.from_bytes(others[:8], "little")
    head, body = json.loads(others[8 : 8 + length]), others[8 + length :]
    offsets = [len(body), len(body) + last.nbytes]
    head[name] = {"dtype": "U8", "shape": list(last.shape), "data_offsets": offsets}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def write_array(path: Path, array: NDArray[Any]) -> None:
    """Write an array to a .npy file and flush it to the disk.

    Writes through Python's file object: NumPy's own writer does not report why a write failed, so a
    full disk would not be recognized. NumPy would also copy 16 MiB at a time to memory, twice.
    """
    whole = array.dtype.hasobject or not array.flags.c_contiguous
    with path.open("wb") as stream:
        pieces = SimpleNamespace(write=stream.write)
        if whole:
            np.lib.format.write_array(pieces, array, allow_pickle=False)
        else:
            head = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(pieces, head)
            flat = array.reshape(-1).view(np.uint8)
            for start in range(0, len(flat), LARGE):
                stream.write(flat[start : start + LARGE].data)
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
