"""python -m backdoor_lab.reports [ROOT ...]: rebuilds and prints the tables of sweeps."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from backdoor_lab.errors import EXIT_BAD_CONFIG, EXIT_DONE, EXIT_SOME_FAILED, LabError
from backdoor_lab.reports.render import plain
from backdoor_lab.reports.sweeps import TABLES, Sweep, find_sweeps, read_sweep
from backdoor_lab.reports.tables import Table
from backdoor_lab.reports.terminal import printing
from backdoor_lab.reports.write import contents, print_tables, write_files

ROOT_VARIABLE = "BACKDOOR_LAB_REPORTS"
DEFAULT = "multirun_reports"
MAKES_ONE = "python -m backdoor_lab -m experiment=demo"


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0 also when there is no sweep yet; 1 if tables could not be written; 2 if a
    folder that was named does not exist."""
    roots = _parser().parse_args(arguments).roots
    return printing(lambda: _report_all(roots))


def _report_all(given: list[Path]) -> int:
    """Writes everything before it prints: a reader that leaves early must not cost a file."""
    absent = [root for root in given if not root.is_dir()]
    if absent:
        return _error(f"no such folder: {', '.join(map(str, absent))}", EXIT_BAD_CONFIG)
    roots = given or [Path(os.environ.get(ROOT_VARIABLE) or DEFAULT)]
    found = dict.fromkeys(sweep for root in roots for sweep in find_sweeps(root))
    if not found:
        looked = ", ".join(map(str, roots))
        print(plain(f"No sweep found in {looked}. Make one with: {MAKES_ONE}"))
    written = [(sweep, *_rebuild(sweep)) for sweep in map(read_sweep, found)]
    return max([_show(*each) for each in written], default=EXIT_DONE)


def _rebuild(sweep: Sweep) -> tuple[list[Table], Exception | None]:
    tables, files = contents(sweep)
    try:
        write_files(sweep.folder, files)
    except (OSError, LabError) as error:
        return tables, error
    return tables, None


def _show(sweep: Sweep, tables: list[Table], problem: Exception | None) -> int:
    heads = [f"## {sweep.name} in {sweep.folder}", *(f"warning: {w}" for w in sweep.warnings)]
    for head in heads if tables else [*heads, "no cells"]:
        print(plain(head), end="\n\n")
    print_tables(tables)
    if problem is not None:
        return _error(f"cannot write the tables of {sweep.folder}: {problem}", EXIT_SOME_FAILED)
    print(plain(f"Written to {sweep.folder / TABLES}"), end="\n\n")
    return EXIT_DONE


def _error(text: str, code: int) -> int:
    print(plain(f"error: {text}"), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m backdoor_lab.reports", description=__doc__)
    parser.add_argument(
        "roots", metavar="ROOT", nargs="*", type=Path,
        help=f"a sweep, or a folder of sweeps (default: ${ROOT_VARIABLE} or {DEFAULT})",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
