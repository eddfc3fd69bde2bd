"""Compares the code with identity.json, and records it there.

python -m backdoor_lab.identity                    # what differs; exit code 1 if anything does
python -m backdoor_lab.identity --accept blended   # proven neutral by tests/golden
python -m backdoor_lab.identity --raise blended    # its results change: a new version
python -m backdoor_lab.identity --files blended    # which files are its code
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from backdoor_lab.core.errors import EXIT_DONE, EXIT_SOME_FAILED
from backdoor_lab.core.options import Parser, parser_of
from backdoor_lab.core.terminal import run_command
from backdoor_lab.identity.table import differing, files, record

NOTHING = "the code is as identity.json says"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 1 where the code is not as recorded; 2 for a name that is not known."""
    return run_command(_parser(), _identity, arguments)


def _identity(asked: Namespace) -> int:
    names = asked.accept or asked.new_version
    if names:
        print("\n".join(record(names, new_version=bool(asked.new_version))) or NOTHING)
        return EXIT_DONE
    if asked.files:
        print("\n".join(files(asked.files)))
        return EXIT_DONE
    differs = differing()
    for (section, name), what in differs.items():
        print(f"{name} ({section}) {what}")
    if not differs:
        print(NOTHING)
    return EXIT_SOME_FAILED if differs else EXIT_DONE


def _parser() -> Parser:
    parser = parser_of("identity", __doc__)
    either = parser.add_mutually_exclusive_group()
    either.add_argument(
        "--accept", nargs="+", metavar="NAME", default=[],
        help="record the code as it is under its version; all: everything that differs",
    )  # fmt: skip
    either.add_argument(
        "--raise", nargs="+", metavar="NAME", default=[], dest="new_version",
        help="record the code as it is under a new version; all: everything that differs",
    )  # fmt: skip
    either.add_argument(
        "--files", nargs="+", metavar="NAME", default=[], help="the files whose code counts"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
