"""python -m backdoor_lab.export FOLDER --out records.csv: one line per cell, for other tools.

FOLDER is a sweep, or a folder of sweeps; several may be named. --out may be a .parquet file too;
--columns says what each column holds.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from backdoor_lab.core.errors import EXIT_DONE, ConfigError, many
from backdoor_lab.core.options import Parser, parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.results.sweeps import find_sweeps, read_sweep
from backdoor_lab.tables.export import COLUMNS, frame_of, write_frame


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 2 where there is no sweep, or the file cannot be of that kind."""
    return run_command(_parser(), _export, arguments)


def _show_columns() -> int:
    width = max(map(len, COLUMNS))
    for name, meaning in COLUMNS.items():
        print(f"{name.ljust(width)}  {meaning}")
    return EXIT_DONE


def _export(asked: Namespace) -> int:
    if asked.columns:
        return _show_columns()
    folders, out = asked.folders, asked.out
    if not folders or out is None:
        raise ConfigError("name a folder of sweeps and a file: FOLDER --out records.csv")
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
    told = [many(len(frame), "cell") + f" of {many(len(sweeps), 'sweep')}"]
    told.append(many(len(frame.columns), "column"))
    print(plain(f"{out}: {', '.join(told)}"))
    return EXIT_DONE


def _parser() -> Parser:
    parser = parser_of("export", __doc__)
    parser.add_argument("folders", metavar="FOLDER", nargs="*", type=path_of)
    parser.add_argument("--out", type=path_of, metavar="FILE", help="a .csv or .parquet file")
    parser.add_argument("--columns", action="store_true", help="say what each column holds")
    return parser


if __name__ == "__main__":
    sys.exit(main())
