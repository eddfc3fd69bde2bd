"""python -m backdoor_lab.figures FOLDER ...: draw figures of sweeps, as PNG and PDF.

Writes <sweep>/figures/NAME.png and .pdf for the sweep, and <sweep>/figures/<cell>/ for its
completed cells. Figures whose data is no longer in the store are skipped with a note.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backdoor_lab.core import validation
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, DataError, LabError, many
from backdoor_lab.core.options import Parser, parser_of, path_of
from backdoor_lab.core.terminal import plain, print_error, run_command
from backdoor_lab.figures.inputs import SweepData
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.store_location import STORE_HELP, find_store
from backdoor_lab.results.sweeps import find_sweeps, read_sweep
from backdoor_lab.tables.layout import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = "figures"
MOST = 36


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 1 if a figure could not be written, 2 if a folder does
    not exist or a number is negative."""
    return run_command(_parser(), _figures, arguments)


def write_figures(folder: Path, store: Path | None = None, most: int = MOST) -> list[Path]:
    """Draw figures of the sweep in `folder` and of its first `most` completed cells. Returns the
    files written.

    `store` is the folder of stage outputs; if None, `find_store` looks for it. Prints a note for
    every figure that has to be skipped. Raises ConfigError if a file would lie outside the sweep,
    OSError if a file cannot be written.
    """
    from backdoor_lab.figures.catalogue import of_cell, of_sweep

    root = validation.inside(folder, folder / FIGURES)
    sweep = read_sweep(folder)
    for warning in sweep.warnings:
        print(plain(f"warning: {warning}"), file=sys.stderr)
    whole = SweepData(sweep.cells, raw_records(folder), ArtifactReader(find_store(folder, store)))
    written = _save(root, of_sweep(whole))
    done = list(whole.done())
    taken: set[str] = set()
    for cell, record in done[:most]:
        name = slug(cell.id, cell.id, taken)
        taken.add(name)
        written += _save(validation.inside(folder, root / name), of_cell(whole, record))
    for note in whole.reader.notes:
        print(plain(f"note: {note}"))
    if len(done) > most:
        left = f"{len(done) - most} of {many(len(done), 'cell')}"
        print(f"note: {left} have no figures; --most N draws more")
    return written


def _save(folder: Path, named: Iterable[tuple[str, Figure]]) -> list[Path]:
    from backdoor_lab.figures.style import save

    return [path for name, figure in named for path in save(figure, folder / name)]


def _figures(given: Namespace) -> int:
    validation.whole("--most", given.most)
    absent = [path for path in given.folders if not path.is_dir()]
    absent += [path for path in [given.store] if path is not None and not path.is_dir()]
    if absent:
        raise ConfigError(f"no such folder: {', '.join(map(str, absent))}")
    code = EXIT_DONE
    found = dict.fromkeys(sweep for root in given.folders for sweep in find_sweeps(root))
    if not found:
        print(plain(f"no sweep found in {', '.join(map(str, given.folders))}"))
    for folder in found:
        try:
            written = write_figures(folder, given.store, given.most)
        except DataError as error:
            code = print_error(error)
            continue
        except (OSError, LabError) as error:
            code = print_error(LabError(f"cannot write the figures of {folder}: {error}"))
            continue
        print(plain(f"{many(len(written), 'file')} in {folder / FIGURES}"))
    return code


def _parser() -> Parser:
    parser = parser_of("figures", __doc__)
    parser.add_argument(
        "folders", metavar="FOLDER", nargs="+", type=path_of, help="a sweep, or a folder of sweeps"
    )
    parser.add_argument(
        "--store",
        metavar="PATH",
        type=path_of,
        help=STORE_HELP,
    )
    parser.add_argument(
        "--most", metavar="N", type=int, default=MOST,
        help="number of cells to draw figures of (default: %(default)s)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
