"""Runs the contract tests of this package on a plug-in: its triggers, defenses, data sets and
networks.

python -m backdoor_lab.check_plugin stripes.py                # every method in a file
python -m backdoor_lab.check_plugin my_package                # every entry point of a package
python -m backdoor_lab.check_plugin my_trigger allow_plugins=[my_package]     # one entry point
python -m backdoor_lab.check_plugin my_set.py dataset.root=photos             # with an option

Naming a file or a package runs its code. Prints what failed and why.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from backdoor_lab.core.errors import EXIT_DONE, EXIT_SOME_FAILED, many
from backdoor_lab.core.options import Parser, parser_of
from backdoor_lab.core.terminal import plain, run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0; 1 if a check failed; 2 for an unknown or unusable plug-in."""
    return run_command(_parser(), _check, arguments)


def _check(asked: Namespace) -> int:
    from backdoor_lab.check_plugin.run import checked

    count = failed = 0
    for method, outcomes in checked(asked.name, asked.overrides):
        print(f"{method.group}={method.name} ({method.said}, {method.attribute})")
        for each in outcomes:
            count, failed = count + 1, failed + (each.why is not None)
            why = "" if each.why is None else f": {plain(each.why)}"
            print(f"  {'ok    ' if each.why is None else 'FAILED'}  {each.check}{why}", flush=True)
    print(f"{many(count, 'check')}, {failed or 'none'} failed")
    return EXIT_SOME_FAILED if failed else EXIT_DONE


def _parser() -> Parser:
    parser = parser_of("check_plugin", __doc__)
    parser.add_argument("name", metavar="NAME", help="a file.py, a package or an entry point")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="options of the method (trigger.size=3), allow_plugins=[package], plugins=[file.py]",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
