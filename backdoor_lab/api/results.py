"""The results of sweeps as a data frame."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.paths import usable
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.sweeps import find_sweeps, read_sweep

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

_Path = str | os.PathLike[str]


def read_results(path: _Path | Iterable[_Path]) -> pd.DataFrame:
    """Returns the results of sweeps, one row per cell, whatever its status.

    This is the table that ``python -m backdoor_lab.export`` writes; ``--columns`` prints the
    meaning of each column. Damaged records are reported as warnings and by the column `status`.

    Args:
        path: A sweep folder, a folder of sweeps, or several of these.

    Returns:
        A data frame with a default index. Rates such as `nat1` and `asr2` are float64 shares in
        0..1, NaN where there is no value; counts and `seed` are Int64 and all other columns
        ``string``, with `pandas.NA` where there is no value. `sweep`, `id`, `status` and the
        choices of the cell, such as `trigger` and `defense`, come first.

    Raises:
        FileNotFoundError: A folder does not exist.
        NotADirectoryError: A path is not a folder.
        TypeError: `path` is neither a path nor several paths.
        ValueError: There is no cell in a folder, or a frozen record was changed.

    Example:
        >>> import backdoor_lab as bl
        >>> cells = bl.read_results("multirun_reports/demo")  # doctest: +SKIP
        >>> cells.groupby("defense")["asr2"].mean()  # doctest: +SKIP
    """
    given = _listed(path)
    if not given:
        raise ValueError("`path` must name at least one folder")
    try:
        folders = [_folder(each) for each in given]
        found = dict.fromkeys(sweep for folder in folders for sweep in _sweeps(folder))
        sweeps = [read_sweep(folder) for folder in found]
    except (ConfigError, DataError) as error:
        raise ValueError(str(error)) from error
    for sweep in sweeps:
        for warning in sweep.warnings:
            warnings.warn(warning, UserWarning, stacklevel=2)
    cells = [cell for sweep in sweeps for cell in sweep.cells]
    if not cells:
        raise ValueError(f"no cells in {', '.join(map(str, given))}")
    return CellFields(cells, sweeps=[sweep.name for sweep in sweeps for _ in sweep.cells]).frame


def _listed(path: object) -> list[_Path]:
    parts = path if isinstance(path, Iterable) and not isinstance(path, (str, bytes)) else [path]
    found = list(parts)
    for each in found:
        if not isinstance(each, (str, os.PathLike)):
            raise TypeError(f"`path` must be a path or several paths, got {type(each).__name__}")
    return found


def _folder(path: _Path) -> Path:
    folder = usable("path", os.fspath(path))
    if not folder.exists():
        raise FileNotFoundError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"not a folder: {folder}")
    return folder


def _sweeps(folder: Path) -> list[Path]:
    found = find_sweeps(folder)
    if not found:
        raise ValueError(f"no cells in {folder}: neither the folder nor its subfolders are a sweep")
    return found
