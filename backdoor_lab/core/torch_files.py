"""Reads files written by ``torch.save`` that come from others, without running code from them.

torch's restricted loader builds only tensors, numbers, strings and plain containers. To this, a
fixed list adds the names that NumPy's arrays and numbers need. They are replaced by the classes and
functions of this module: NumPy's own ``dtype.__setstate__`` accepts flags that make it treat the
bytes of an array as pointers.
"""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many, without_addresses
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.resources import free_memory
from backdoor_lab.core.small_files import check_regular

MAX_DEPTH = 64
"""Maximum depth of nested containers."""

ZIP = b"PK\x03\x04"
"""The first bytes of the files that torch has written since version 1.6."""

_DTYPES = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"b1", "f2", "f4", "f8"}
_REFUSED = (
    re.compile(r"GLOBAL (\S+) was not an allowed"),
    re.compile(r"unsupported GLOBAL (\S+) whose module"),
    re.compile(r"unrecognized function (.+?)(?: which|\n|$)"),
    re.compile(r"allowlisted via `add_safe_globals`,? but got (.+?)(?:\n|$)"),
)
_DETAIL = "WeightsUnpickler error:"
"""What torch's advice to its users ends with, before the cause."""
_OPERAND = re.compile(r"Unsupported operand (\d+)")
_REMEDY = "only tensors, arrays, numbers, strings, dictionaries, lists, tuples and sets are loaded"


_one_at_a_time = threading.Lock()


class _StoredType:
    """Stands for numpy.dtype: a type of numbers, nothing else."""

    dtype: np.dtype[Any] | None = None

    def __init__(self, code: str, align: bool = False, copy: bool = True) -> None:
        if code not in _DTYPES:
            raise ValueError(f"arrays of type {code!r} are not loaded, only numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if self.dtype is None or state[1] not in ("<", ">", "=", "|"):
            raise ValueError("an array's type is damaged")
        self.dtype = self.dtype.newbyteorder(state[1])


class _StoredArray:
    """Stands for numpy.ndarray."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        flat = _numbers(kind, raw, math.prod(shape))
        array = flat.reshape(shape, order="F" if fortran else "C")
        self.array = np.ascontiguousarray(array, flat.dtype.newbyteorder("="))


def _reconstruct(kind: Any, shape: Any, code: Any) -> _StoredArray:
    return _StoredArray()


def _scalar(kind: Any, raw: Any) -> Any:
    return _numbers(kind, raw, 1)[0].item()


def _numbers(kind: Any, raw: Any, count: int) -> NDArray[Any]:
    if not isinstance(kind, _StoredType) or kind.dtype is None or not isinstance(raw, bytes):
        raise ValueError("an array is damaged, or its elements are objects")
    if len(raw) != count * kind.dtype.itemsize:
        raise ValueError(f"an array of {kind.dtype}[{count:,}] has {many(len(raw), 'byte')}")
    return np.frombuffer(raw, kind.dtype)


ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_StoredType, "numpy.dtype"),
    (_StoredArray, "numpy.ndarray"),
    *(
        pair
        for version in ("numpy.core", "numpy._core")
        for pair in (
            (_reconstruct, f"{version}.multiarray._reconstruct"),
            (_scalar, f"{version}.multiarray.scalar"),
        )
    ),
]
"""The names that are loaded in addition to those that torch allows, with what is called instead of
them. NumPy 1 and 2 write different names."""


def load_torch_file(path: Path | str, *, limit: int | None = None) -> Any:
    """Returns the content of a file written by ``torch.save``, on the CPU: tensors without
    gradients, NumPy arrays, numbers, strings, None and plain containers of these. Numbers of NumPy
    become Python's; every mapping becomes a plain dict.

    `limit` is the maximum size in bytes of the file and of all tensors and arrays in it; None for
    the memory that is free on this machine.

    Raises DataError, which names the file, if it is missing, not a regular file, too large, or
    damaged, or if it refers to anything but data, such as a function or a class; the message states
    which. Nothing that the file refers to is imported or called.
    """
    path = Path(path)
    allowed = free_memory() if limit is None else limit
    try:
        check_regular(path)
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            _check_size(size, allowed, "the file has")
            _check_archive(stream, size)
            with _allowed_only(), warnings.catch_warnings():
                # torch asks for reports about pickles of other programs; they are refused here.
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                found = torch.load(stream, map_location="cpu", weights_only=True)
            return _Plain(allowed).value(found)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except DataError as error:
        raise DataError(f"{path}: {str(error).removeprefix(f'{path} ')}") from error
    except Exception as error:  # torch raises almost any exception on damaged files
        raise DataError(f"{path}: {_reason(error)}") from error


@contextmanager
def _allowed_only() -> Iterator[None]:
    """Within this context, torch allows its own names and `ALLOWED`, but not the names that other
    packages have added, such as functools.partial."""
    known = torch.serialization
    with _one_at_a_time:
        others = known.get_safe_globals()
        known.clear_safe_globals()
        known.add_safe_globals(ALLOWED)
        try:
            yield
        finally:
            known.clear_safe_globals()
            known.add_safe_globals(others)


def _check_size(size: int, limit: int | None, what: str) -> None:
    if limit is not None and size > limit:
        raise DataError(f"{what} {size:,} bytes, but at most {limit:,} can be loaded")


def _check_archive(stream: IO[bytes], size: int) -> None:
    """Raises DataError for a zip archive with records that are compressed or overlap, or with
    TorchScript code. Leaves the stream at its start."""
    if stream.read(len(ZIP)) == ZIP:
        with zipfile.ZipFile(stream) as archive:
            records = archive.infolist()
        if any(each.filename.split("/")[-1] == "constants.pkl" for each in records):
            raise DataError("is a TorchScript archive, which contains code; it is not loaded")
        claimed = sum(each.file_size for each in records)
        if claimed > size:
            raise DataError(
                f"its records claim {claimed:,} bytes, but the file has {size:,}; torch stores"
                " records uncompressed"
            )
    stream.seek(0)


class _Plain:
    """Converts what torch has loaded to plain containers, tensors and arrays, within `limit`
    bytes."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.total = 0
        # The same object may be reached in several ways; the originals are kept alive, since a new
        # object could otherwise have the same id.
        self.done: dict[int, tuple[Any, Any]] = {}

    def value(self, found: Any, depth: int = 0) -> Any:
        """Returns the converted value. Raises DataError for a value of any other kind."""
        if found is None or type(found) in (bool, int, float, complex, str, bytes):
            return found
        if id(found) not in self.done:
            if depth > MAX_DEPTH:
                raise DataError(f"its containers are nested deeper than {MAX_DEPTH}, or in a cycle")
            self.done[id(found)] = (found, self._converted(found, depth + 1))
        return self.done[id(found)][1]

    def _converted(self, found: Any, depth: int) -> Any:
        if isinstance(found, dict):
            # A stored mapping can hide its own methods behind attributes.
            items = (
                OrderedDict.items(found) if isinstance(found, OrderedDict) else dict.items(found)
            )
            return {self.value(key, depth): self.value(each, depth) for key, each in items}
        if type(found) in (list, tuple, set, torch.Size):
            sequence = tuple if isinstance(found, tuple) else type(found)
            return sequence([self.value(each, depth) for each in found])
        if isinstance(found, _StoredArray) and found.array is not None:
            self._count(found.array.nbytes)
            return found.array
        if isinstance(found, (torch.dtype, torch.device)):
            return str(found)
        if isinstance(found, bytearray):
            return bytes(found)
        return self._tensor(found)

    def _tensor(self, found: Any) -> Any:
        if type(found) not in (torch.Tensor, torch.nn.Parameter):
            kind = found.__name__ if isinstance(found, type) else type(found).__name__
            raise DataError(f"contains {kind}, which is refused: {_REMEDY}")
        if found.layout != torch.strided or found.is_quantized or found.device.type != "cpu":
            raise DataError(
                f"contains a tensor that is not plain ({found.layout}, {found.dtype}, on"
                f" {found.device}), which is refused"
            )
        self._count(found.numel() * found.element_size())
        return found.detach()

    def _count(self, size: int) -> None:
        self.total += size
        _check_size(self.total, self.limit, "its tensors and arrays have")


def _reason(error: Exception) -> str:
    text = without_addresses(str(error))
    for pattern in _REFUSED:
        if found := pattern.search(text):
            return f"refers to {found[1]}, which is refused: {_REMEDY}"
    if "legacy .tar format" in text:
        return "is in torch's old tar format, which can run code; it is not loaded"
    if found := _OPERAND.search(text):
        return (
            f"not a valid file of torch.save (read as a pickle, it has the instruction {found[1]},"
            f" which is refused): {_REMEDY}"
        )
    lines = [line.strip() for line in text.rpartition(_DETAIL)[2].splitlines() if line.strip()]
    said = ": ".join([type(error).__name__, *lines[:1]])
    return f"not a valid file of torch.save ({said[:200]})"
