"""python -m backdoor_lab.reports [ROOT ...]: rebuild and print the tables of sweeps.

A sweep of a few triggers and defenses is printed in the layout of the published report. A larger
sweep, or one without retraining, is printed in wide tables, with an axis for every setting that
differs between cells.

rows=, columns= or values= select another layout, for example: rows=target,ratio columns=defense
values=asr2,pois_left. Rows and columns can be settings (target, defense, ...), protocol.* or
config.*. These tables are printed instead of the default ones, and written to the sweep's folder.
Later runs rebuild them too, until tables/layouts.json is deleted.
"""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from backdoor_lab.compare.report import SweepReport
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, LabError
from backdoor_lab.core.options import Parser, options, parser_of
from backdoor_lab.core.terminal import plain, print_error, run_command
from backdoor_lab.page.write import contents, write_files
from backdoor_lab.results.store_location import DEFAULT_SAID, roots_of
from backdoor_lab.results.sweeps import TABLES, Sweep, find_sweeps, read_sweep
from backdoor_lab.tables.layout import OPTIONS, PivotSpec, layout_of
from backdoor_lab.tables.overview import printed

MAKES_ONE = "python -m backdoor_lab -m experiment=demo"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, or no sweep found; 1 if tables could not be written; 2
    if a folder does not exist or a layout names something unknown."""
    return run_command(_parser(), _report_all, arguments)


def _report_all(given: Namespace) -> int:
    """Writes all files before printing tables, so that the files exist even if stdout is closed
    early."""
    folders, asked = options(given.given, OPTIONS)
    found = [read_sweep(folder) for folder in _sweeps(folders)]
    layouts = [_layout(asked, sweep) for sweep in found]
    written = [(sweep, *_rebuild(sweep, each)) for sweep, each in zip(found, layouts, strict=True)]
    return max([_show(*each) for each in written], default=EXIT_DONE)


def _sweeps(given: list[str]) -> list[Path]:
    """All sweeps found in the given folders, or in the default folder; each sweep once."""
    if "" in given:
        raise ConfigError("no such folder: ''")
    roots = roots_of(given)
    found = list(dict.fromkeys(sweep for root in roots for sweep in find_sweeps(root)))
    if not found:
        looked = ", ".join(map(str, roots))
        if given:
            raise ConfigError(f"no sweep in {looked}. Make one with: {MAKES_ONE}")
        print(plain(f"No sweep found in {looked}. Make one with: {MAKES_ONE}"))
    return found


def _layout(asked: dict[str, str], sweep: Sweep) -> PivotSpec | None:
    return layout_of(asked, sweep.cells) if asked else None


def _rebuild(sweep: Sweep, layout: PivotSpec | None) -> tuple[list[str], Exception | None]:
    """Rebuild the tables of a sweep. Returns the tables to print, as text, and the error if files
    could not be written."""
    report = SweepReport(sweep)
    tables, files = contents(report, layout)
    texts = [*map(printed, tables)]
    try:
        write_files(report, files)
    except (OSError, LabError) as error:
        return texts, error
    return texts, None


def _show(sweep: Sweep, texts: list[str], problem: Exception | None) -> int:
    heads = [f"## {sweep.name} in {sweep.folder}", *(f"warning: {w}" for w in sweep.warnings)]
    for head in heads if texts else [*heads, "no cells"]:
        print(plain(head), end="\n\n")
    for text in texts:
        print(text)
    if problem is not None:
        return print_error(LabError(f"cannot write the tables of {sweep.folder}: {problem}"))
    print(plain(f"Written to {sweep.folder / TABLES}"), end="\n\n")
    return EXIT_DONE


def _parser() -> Parser:
    parser = parser_of("reports", __doc__)
    parser.usage = "%(prog)s [-h] [ROOT ...] [rows=A,B] [columns=C] [values=D,E]"
    parser.add_argument(
        "given", metavar="ROOT", nargs="*",
        help=f"a sweep, or a folder of sweeps (default: {DEFAULT_SAID})",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    # Garbage collection would take a quarter of the time for ten thousand records, and this short
    # process keeps all that it reads.
    gc.disable()
    sys.exit(main())
