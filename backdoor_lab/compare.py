"""python -m backdoor_lab.compare A B: the cells of two sweeps in pairs, and what differs.

A and B are sweep folders; B may be the word reference, for the figures of the reproduced report.
Within one sweep: python -m backdoor_lab.compare A by=defense base=random. Cells are paired by their
other choices and the seed; values=nat2,asr2,pois_left chooses the measures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backdoor_lab.errors import EXIT_DONE, ConfigError, LabError
from backdoor_lab.files import write_atomic
from backdoor_lab.reports.compare_text import FORMATS, Comparison, markdown
from backdoor_lab.reports.comparison import comparison_of
from backdoor_lab.reports.options import options
from backdoor_lab.reports.render import plain
from backdoor_lab.reports.sweeps import Sweep, find_sweeps, read_sweep
from backdoor_lab.reports.terminal import printing

REFERENCE = "reference"
OPTIONS = ("by", "base", "values")


def main(arguments: list[str] | None = None) -> int:
    """Exit codes: 0; 2 for what cannot be compared."""
    asked = _parser().parse_args(arguments)
    return printing(lambda: _compare(asked.given, asked.out))


def _compare(given: list[str], out: Path | None) -> int:
    try:
        texts, said = options(given, OPTIONS)
        sweeps = [sweep_at(text) for text in texts if text != REFERENCE]
        found = comparison_of(sweeps, report=REFERENCE in texts, **said)
        if out is not None:
            _write(found, out)
    except LabError as error:
        print(plain(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    for sweep in sweeps:
        for warning in sweep.warnings:
            print(plain(f"warning: {warning}"), file=sys.stderr)
    print(markdown(found))
    return EXIT_DONE


def sweep_at(text: str) -> Sweep:
    """The one sweep in a folder. Raises ConfigError where there is none, or more than one."""
    if not Path(text).is_dir():
        raise ConfigError(f"no such folder: {text} (the report's figures are called {REFERENCE})")
    found = find_sweeps(Path(text))
    if len(found) != 1:
        more = f"; name one of {', '.join(map(str, found[:5]))}" if found else ""
        raise ConfigError(f"{text} holds {len(found)} sweeps where one is needed{more}")
    return read_sweep(found[0])


def _write(found: Comparison, path: Path) -> None:
    suffix = path.suffix.removeprefix(".")
    if suffix not in FORMATS or not path.parent.is_dir():
        known = ", ".join(f".{name}" for name in FORMATS)
        raise ConfigError(f"`--out` must end in one of {known}, in a folder that exists: {path}")
    write_atomic(path, FORMATS[suffix](found).encode("utf-8", errors="backslashreplace"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m backdoor_lab.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "given", metavar="A | B | reference | by=NAME | base=VALUE | values=X,Y", nargs="+"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also .md, .tex, .html")
    return parser


if __name__ == "__main__":
    sys.exit(main())
