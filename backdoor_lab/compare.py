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
from backdoor_lab.reports.axes import CONFIG, SEED, Facts, config_names, known_names
from backdoor_lab.reports.compare_notes import notes_of
from backdoor_lab.reports.compare_text import FORMATS, Comparison, markdown
from backdoor_lab.reports.measures import MEASURE
from backdoor_lab.reports.options import names, options
from backdoor_lab.reports.pairs import Side, lines_of, one_sweep, two_sweeps, with_report
from backdoor_lab.reports.records import CHOICES
from backdoor_lab.reports.reference import COLUMNS
from backdoor_lab.reports.render import plain
from backdoor_lab.reports.sweeps import Sweep, find_sweeps, read_sweep
from backdoor_lab.reports.terminal import printing

REFERENCE = "reference"
OPTIONS = ("by", "base", "values")
DEFAULT = "nat2,asr2,pois_left"


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


def comparison_of(
    sweeps: list[Sweep], *, report: bool = False, by: str = "", base: str = "",
    values: str = DEFAULT,
) -> Comparison:  # fmt: skip
    """Two sweeps, or one with the report, or one with itself by one of its choices. Raises
    ConfigError for anything else, for unknown names, and where no two cells make a pair."""
    if len(sweeps) + report + bool(by) != 2 or not sweeps or bool(by) != bool(base):
        raise ConfigError(
            "a comparison is of two sweep folders, or of one and the word reference, or of one"
            " with by=NAME base=VALUE"
        )
    measures = names("values", values, COLUMNS if report else MEASURE)
    if by:
        return _within(sweeps[0], by, base, measures)
    facts = Facts([cell for sweep in sweeps for cell in sweep.cells])
    if report:
        side, ours, other = with_report(facts), sweeps[0].name, "report"
        paired_by = list(CHOICES)
    else:
        side, paired_by = two_sweeps(facts, len(sweeps[0].cells))
        ours, other = _apart(*sweeps)
    return _told(facts, [side], f"{ours} minus {other}", (ours, other), "", paired_by, measures)


def sweep_at(text: str) -> Sweep:
    """The one sweep in a folder. Raises ConfigError where there is none, or more than one."""
    found = find_sweeps(Path(text))
    if len(found) != 1:
        more = f"; name one of {', '.join(map(str, found[:5]))}" if found else ""
        raise ConfigError(f"{text} holds {len(found)} sweeps where one is needed{more}")
    return read_sweep(found[0])


def _within(sweep: Sweep, by: str, base: str, measures: tuple[str, ...]) -> Comparison:
    (name,) = names("by", by, _without_seed(known_names(sweep.cells)), config_names(sweep.cells))
    facts = Facts(sweep.cells, [name])
    sides, paired_by = one_sweep(facts, name, base)
    title = f"{sweep.name}: every {name.removeprefix(CONFIG)} minus {base}"
    return _told(facts, sides, title, ("value", base), name, paired_by, measures)


def _without_seed(known: list[str]) -> list[str]:
    return [name for name in known if name != SEED]


def _apart(first: Sweep, second: Sweep) -> tuple[str, str]:
    """Names that tell two sweeps apart."""
    if first.name != second.name:
        return first.name, second.name
    return str(first.folder), str(second.folder)


def _told(
    facts: Facts, sides: list[Side], title: str, heads: tuple[str, str], by: str,
    paired_by: list[str], measures: tuple[str, ...],
) -> Comparison:  # fmt: skip
    numbers = [pair.ours for side in sides for pair in side.pairs]
    keys = {name: {facts.word(number, name) for number in numbers} for name in paired_by}
    labels = tuple(name for name in paired_by if name != SEED and len(keys[name]) > 1)
    lines = lines_of(facts, sides, labels, measures)
    notes = notes_of(facts, sides, lines, [*labels, by], measures)
    return Comparison(title, *heads, by, labels, lines, notes)


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
