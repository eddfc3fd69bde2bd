"""Compare our methods with their papers and their authors' code, and check these comparisons.

python -m backdoor_lab.fidelity                  # all methods, one per line
python -m backdoor_lab.fidelity beatrix          # one method, with all its rows
python -m backdoor_lab.fidelity --sources DIR    # check quotations against checkouts in DIR
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from backdoor_lab.core.errors import EXIT_DONE, EXIT_SOME_FAILED, ConfigError, many, unknown
from backdoor_lab.core.options import Parser, parser_of, path_of
from backdoor_lab.core.terminal import run_command
from backdoor_lab.fidelity.ours import drift, undescribed
from backdoor_lab.fidelity.quotations import check_sources
from backdoor_lab.fidelity.rules import contradictions
from backdoor_lab.fidelity.table import Method, methods
from backdoor_lab.fidelity.text import details, overview

NO_ENTRY = "has no entry in the fidelity table; a method of your own needs none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done; 1 if a YAML file contradicts itself or the code, or if a
    quotation from the authors' code is wrong; 2 for an unknown method, or for a folder without any
    checkout."""
    return run_command(_parser(), _fidelity, arguments)


def _fidelity(asked: Namespace) -> int:
    every = methods()
    own = undescribed(every.values())
    for name in asked.method:
        if name in {each.partition("=")[2] for each in own}:
            raise ConfigError(f"{name} {NO_ENTRY}")
        if name not in every:
            raise unknown("method", name, every)
    chosen = [every[name] for name in asked.method] or list(every.values())
    if asked.sources is not None:
        return _sources(chosen, asked)
    print("\n\n".join(map(details, chosen)) if asked.method else overview(chosen))
    for each in own:
        print(f"{each} {NO_ENTRY}", file=sys.stderr)
    return _reported(contradictions(every.values()) + drift(every.values()))


def _sources(chosen: list[Method], asked: Namespace) -> int:
    if not asked.sources.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(asked.sources))
    quoted = [row.source.repo for each in chosen for row in each.rows if row.source is not None]
    wrong, absent = check_sources(chosen, asked.sources)
    for repo in absent:
        print(f"no checkout of {repo} in {asked.sources}: quotations from it were not checked")
    unread = sum(repo in absent for repo in quoted)
    print(
        f"{many(len(quoted), 'quotation')}, {unread} not checked, {len(wrong)} wrong,"
        f" {many(len(absent), 'repo')} missing"
    )
    if quoted and unread == len(quoted):
        raise ConfigError(
            f"`--sources`: {asked.sources} has no checkout of any quoted repository: clone them"
            " there, each into a folder owner+name"
        )
    return _reported(wrong)


def _reported(wrong: list[str]) -> int:
    for line in wrong:
        print(line, file=sys.stderr)
    return EXIT_SOME_FAILED if wrong else EXIT_DONE


def _parser() -> Parser:
    parser = parser_of("fidelity", __doc__)
    parser.add_argument("method", nargs="*", help="methods to print with all their rows")
    parser.add_argument(
        "--sources", type=path_of, metavar="DIR",
        help="folder with the authors' repositories, also bare ones, named owner+name or name",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
