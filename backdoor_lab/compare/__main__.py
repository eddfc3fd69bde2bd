"""python -m backdoor_lab.compare A B: compare two sweeps cell by cell.

A and B are sweep folders. B may also be `reference`, which stands for the published report.
python -m backdoor_lab.compare A by=defense base=random compares cells within one sweep. The cells
of a pair have the same seed and the same choices except the one compared.
values=nat2,asr2,pois_left selects the measures; nat2_class.cat is the accuracy on the class cat.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from backdoor_lab.compare.compare_text import document
from backdoor_lab.compare.comparison import FORMS, comparison_of
from backdoor_lab.core.errors import EXIT_DONE, ConfigError
from backdoor_lab.core.options import Parser, options, parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command
from backdoor_lab.page.write import check_name, write_as_named
from backdoor_lab.results.sweeps import one_sweep
from backdoor_lab.tables.writers import FORMATS, OUT_HELP, terminal

REFERENCE = "reference"
HINT = f" (for the values of the published report, write {REFERENCE})"
OPTIONS = ("by", "base", "values")
USAGE = """%(prog)s [-h] [--out FILE.csv]
       A [B | reference] [by=NAME base=VALUE] [values=X,Y]"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 if the sweeps cannot be compared."""
    return run_command(_parser(), _compare, arguments)


def _compare(asked: Namespace) -> int:
    texts, said = options(asked.given, OPTIONS)
    if asked.out is not None:
        check_name(asked.out, FORMATS)
    if not 1 <= len(texts) <= 2:
        raise ConfigError(FORMS)
    if REFERENCE in texts[:-1]:
        raise ConfigError(
            f"`{REFERENCE}` must be the second argument: the values of the published report"
            " are subtracted from those of the sweep"
        )
    sweeps = [one_sweep(text, HINT) for text in texts if text != REFERENCE]
    found = document(comparison_of(sweeps, report=REFERENCE in texts, **said))
    if asked.out is not None:
        write_as_named(asked.out, {name: text(found) for name, text in FORMATS.items()})
    for sweep in sweeps:
        for warning in sweep.warnings:
            print(plain(f"warning: {warning}"), file=sys.stderr)
    print(terminal(found))
    return EXIT_DONE


def _parser() -> Parser:
    parser = parser_of("compare", __doc__)
    parser.usage = USAGE
    parser.add_argument("given", metavar="A", nargs="*", help="sweep folders and KEY=VALUE options")
    parser.add_argument("--out", type=path_of, metavar="FILE.csv", help=OUT_HELP)
    return parser


if __name__ == "__main__":
    sys.exit(main())
