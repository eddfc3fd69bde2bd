"""Compares the hashes of the code with those in identity.json, or updates identity.json.

python -m backdoor_lab.identity                    # list differences; exit code 1 if any
python -m backdoor_lab.identity --accept blended   # same results, as tests/golden proves
python -m backdoor_lab.identity --raise blended    # different results: a new version
python -m backdoor_lab.identity --files blended    # list the files that are hashed
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from backdoor_lab.core.errors import EXIT_DONE, EXIT_SOME_FAILED
from backdoor_lab.core.options import Parser, parser_of
from backdoor_lab.core.terminal import run_command
from backdoor_lab.identity.table import differing, files, record

NOTHING = "the code matches identity.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0; 1 if the code differs from identity.json; 2 for an unknown
    name."""
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
        help="record the present code of NAME and keep its version; `all` for all that differ",
    )  # fmt: skip
    either.add_argument(
        "--raise", nargs="+", metavar="NAME", default=[], dest="new_version",
        help="record the present code of NAME as a new version; `all` for all that differ",
    )  # fmt: skip
    either.add_argument(
        "--files", nargs="+", metavar="NAME", default=[], help="list the files that are hashed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
