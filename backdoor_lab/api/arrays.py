"""Checks and converts the arrays that users pass: NumPy arrays or torch tensors on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)
MOST_CLASSES = 100_000
Back = Callable[[Tensor], Any]
"""Converts a result on the CPU to the kind and the device of the user's array."""


def as_tensor(name: str, values: object) -> tuple[Tensor, Back]:
    """Returns `values` as a tensor on the CPU, which may share memory with `values`, and a function
    that converts results back. Raises TypeError if `values` is neither a NumPy array nor a tensor.
    """
    if isinstance(values, np.ndarray):
        unusual = values.dtype.byteorder == ">" or values.dtype.itemsize > 8
        if values.dtype.kind not in "biuf" or unusual:
            raise ValueError(f"`{name}` has the unsupported dtype {values.dtype}")
        # torch supports neither negative strides nor read-only memory.
        plain = values if values.flags.writeable and values.flags.c_contiguous else values.copy()
        return torch.from_numpy(plain), lambda found: found.numpy()
    if isinstance(values, Tensor):
        if values.layout != torch.strided or values.is_quantized or values.is_meta:
            raise ValueError(f"`{name}` must be a dense tensor with values")
        device = values.device
        return values.detach().cpu(), lambda found: found.to(device)
    raise TypeError(
        f"`{name}` must be a NumPy array or a torch tensor, got {type(values).__name__}"
    )


def as_images(name: str, images: object) -> tuple[Tensor, Back]:
    """Returns `images` as a tensor uint8 (n, C, H, W) on the CPU, and a function that converts
    results back. Raises ValueError for other dtypes and shapes."""
    values, back = as_tensor(name, images)
    if values.dtype != torch.uint8:
        raise ValueError(f"`{name}` must have dtype uint8 (0..255), got {_dtype(values)}")
    shape = tuple(values.shape)
    if values.ndim != 4 or shape[1] not in (1, 3):
        hint = ""
        if values.ndim == 4 and shape[3] in (1, 3):
            hint = "; these look like (n, H, W, C): move the last axis to position 1"
        elif values.ndim in (2, 3):
            hint = "; add the missing axes"
        raise ValueError(f"`{name}` must have shape (n, 1 or 3, H, W), got {shape}{hint}")
    if 0 in shape[2:]:
        raise ValueError(f"`{name}` must have at least one row and one column, got shape {shape}")
    return values, back


def as_labels(name: str, labels: object, n: int | None = None, of: str = "images") -> Tensor:
    """Returns `labels` as an int64 tensor (n,) on the CPU. Raises ValueError unless they are `n`
    non-negative integers, as many as there are `of`."""
    if isinstance(labels, list):
        try:
            labels = np.asarray(labels, None if labels else np.int64)
        except ValueError as error:
            raise ValueError(f"`{name}` must have shape (n,), got a nested list") from error
    values, _ = as_tensor(name, labels)
    if values.dtype == torch.bool or values.is_floating_point():
        raise ValueError(f"`{name}` must be integers, got {_dtype(values)}")
    if values.ndim != 1:
        raise ValueError(f"`{name}` must have shape (n,), got {tuple(values.shape)}")
    if n is not None and len(values) != n:
        raise ValueError(f"`{name}` must have one value per row of `{of}` ({n}), got {len(values)}")
    if values.dtype == torch.uint64 and bool((values.view(torch.int64) < 0).any()):
        raise ValueError(f"`{name}` must be below {MOST_CLASSES}")
    values = values.to(torch.int64)
    if len(values) and int(values.max()) >= MOST_CLASSES:
        where = int(values.ge(MOST_CLASSES).nonzero()[0])
        raise ValueError(
            f"`{name}` must be below {MOST_CLASSES}, got {int(values[where])} in row {where}"
        )
    if len(values) and int(values.min()) < 0:
        where = int(values.lt(0).nonzero()[0])
        raise ValueError(f"`{name}` must not be negative, got {int(values[where])} in row {where}")
    return values


def as_features(name: str, features: object) -> Tensor:
    """Returns `features` as a float tensor (n, d) on the CPU. Raises ValueError for other dtypes
    and shapes, and for values that are not finite, naming the first such row."""
    values, _ = as_tensor(name, features)
    if values.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"`{name}` must be floating-point numbers, got {_dtype(values)}")
    if values.ndim != 2 or 0 in values.shape:
        shape = tuple(values.shape)
        raise ValueError(f"`{name}` must have shape (n, d) with n > 0 and d > 0, got {shape}")
    bad = ~values.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(f"`{name}` must be finite, but row {int(bad.nonzero()[0])} is not")
    return values


def class_index(name: str, value: object, classes: int) -> int:
    """Returns a class number. Raises TypeError unless it is an integer, ValueError unless it is
    between 0 and ``classes - 1``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be a class number, got {value!r}")
    if not 0 <= value < classes:
        raise ValueError(f"`{name}` must satisfy 0 <= {name} < {classes}, got {value}")
    return int(value)


def as_seed(seed: object) -> int:
    """Returns a seed. Raises TypeError unless it is an integer, ValueError unless ``0 <= seed <
    2**63``."""
    found = _as_int("seed", seed)
    if not 0 <= found < 2**63:
        raise ValueError(f"`seed` must satisfy 0 <= seed < 2**63, got {found}")
    return found


def as_count(name: str, value: object, n: int) -> int:
    """Returns a number of rows. Raises TypeError unless it is an integer, ValueError unless
    ``0 <= value <= n``."""
    found = _as_int(name, value)
    if not 0 <= found <= n:
        raise ValueError(f"`{name}` must satisfy 0 <= {name} <= {n}, got {found}")
    return found


def as_batch_size(batch_size: object) -> int:
    """Returns a batch size. Raises TypeError unless it is an integer, ValueError unless it is
    positive."""
    found = _as_int("batch_size", batch_size)
    if found < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {found}")
    return found


def _as_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"`{name}` must be an integer, got {type(value).__name__}")
    return int(value)


def _dtype(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
