"""python -m backdoor_lab.export FOLDER --out records.csv: one row per cell, for other tools.

FOLDER is a sweep or a folder of sweeps; several may be given. The output may also be a .parquet
file. With --images, FOLDER is the folder of one cell, and the output has one row per training image
of this cell, with its score. --columns prints a description of the columns of both.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, many
from backdoor_lab.core.options import Parser, parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.results.columns import COLUMNS
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.image_table import IMAGE_COLUMNS, image_table
from backdoor_lab.results.store_location import STORE_HELP
from backdoor_lab.results.sweeps import Sweep, find_sweeps, read_sweep
from backdoor_lab.tables.sheets import csv_of_frame

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

IMAGES_HEAD = "With --images, one row per training image:"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 if there is no sweep, if the images of a cell are not
    known, or if the output file is invalid."""
    return run_command(_parser(), _export, arguments)


def _show_columns() -> int:
    width = max(map(len, (*COLUMNS, *IMAGE_COLUMNS)))
    for head, columns in (("One row per cell:", COLUMNS), (IMAGES_HEAD, IMAGE_COLUMNS)):
        print(head)
        for name, meaning in columns.items():
            print(f"  {name.ljust(width)}  {meaning}")
    return EXIT_DONE


def _export(asked: Namespace) -> int:
    if asked.columns:
        return _show_columns()
    folders, out = asked.folders, asked.out
    if asked.images:
        return _export_images(folders, out, asked.store)
    if asked.store is not None:
        raise ConfigError("`--store` is only for `--images`: records are read from the folder")
    if not folders or out is None:
        raise ConfigError("give a folder of sweeps and a file: FOLDER --out records.csv")
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"no such folder: {folder}")
    found = dict.fromkeys(sweep for folder in folders for sweep in find_sweeps(folder))
    if not found:
        raise ConfigError(f"no sweep found in {', '.join(map(str, folders))}")
    sweeps = [read_sweep(folder) for folder in found]
    frame = frame_of(sweeps)
    write_frame(frame, out)
    for sweep in sweeps:
        for warning in sweep.warnings:
            print(plain(f"warning: {warning}"), file=sys.stderr)
    parts = [many(len(frame), "cell") + f" of {many(len(sweeps), 'sweep')}"]
    parts.append(many(len(frame.columns), "column"))
    print(plain(f"{out}: {', '.join(parts)}"))
    return EXIT_DONE


def _export_images(cells: Sequence[Path], out: Path | None, store: Path | None) -> int:
    if len(cells) != 1 or out is None:
        raise ConfigError("give the folder of one cell and a file: CELL --images --out images.csv")
    _check_out(out)
    frame = image_table(cells[0], store)
    write_frame(frame, out)
    counts = [many(len(frame), "image")]
    if frame["is_poison"].isna().all():
        counts.append("poison unknown")
    else:
        counts.append(f"{frame['is_poison'].sum()} poisoned")
        counts.append(many(int(frame["is_cover"].sum()), "cover"))
    counts.append(f"{frame['removed'].sum()} removed")
    print(plain(f"{out}: {', '.join(counts)}"))
    return EXIT_DONE


def frame_of(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """The tidy frame of all cells of these sweeps: one row per cell."""
    cells = [cell for sweep in sweeps for cell in sweep.cells]
    return CellFields(cells, sweeps=[sweep.name for sweep in sweeps for _ in sweep.cells]).frame


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Write a .csv or .parquet file atomically. Raises ConfigError for any other suffix, for a
    missing folder, and for .parquet if pyarrow is not installed."""
    _check_out(path)
    write_atomic(path, _MAKERS[path.suffix](frame))


def _check_out(path: Path) -> None:
    if path.suffix not in _MAKERS or not path.parent.is_dir():
        known = " or ".join(_MAKERS)
        raise ConfigError(f"`--out` must end in {known} and be in an existing folder, got {path}")


def _csv(frame: pd.DataFrame) -> bytes:
    return csv_of_frame(frame).encode("utf-8", errors="backslashreplace")


def _parquet(frame: pd.DataFrame) -> bytes:
    try:
        import pyarrow  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'backdoor-lab[parquet]', or write a .csv"
        ) from error
    return bytes(frame.to_parquet(None, index=False))


_MAKERS: dict[str, Callable[[pd.DataFrame], bytes]] = {".csv": _csv, ".parquet": _parquet}


def _parser() -> Parser:
    parser = parser_of("export", __doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=path_of)
    parser.add_argument("--out", type=path_of, metavar="FILE", help="a .csv or .parquet file")
    parser.add_argument(
        "--images", action="store_true", help="one row per training image of the cell FOLDER"
    )
    parser.add_argument("--store", type=path_of, metavar="FOLDER", help=STORE_HELP)
    parser.add_argument("--columns", action="store_true", help="describe the columns and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
