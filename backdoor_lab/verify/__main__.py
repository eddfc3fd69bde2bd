"""python -m backdoor_lab.verify WEIGHTS|DIR --claims card.json: is it true what the card says?

The card of a network: measures Nat and ASR of the network on the test images and the triggered test
images of a poisoned data set (--data), and compares them with the claims. On the test set of the
card, which is recognized by its hash, the number of correct images may differ by two. On another
test set, 0 must lie in the 95 % interval of the difference of the two proportions (Newcombe 1998,
method 10). The card of a data set: compares counts, hashes, classes, and the labels of poisoned and
triggered images.

Exit codes: 0 every checked claim holds, 1 one does not, 2 something cannot be read.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backdoor_lab.core.atomic_io import readable
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.options import Parser, parser_of, path_of
from backdoor_lab.core.small_files import write_json
from backdoor_lab.core.terminal import run_command
from backdoor_lab.exchange.card_file import CardFile, read_card
from backdoor_lab.verify.finding import Finding, Report

if TYPE_CHECKING:
    from backdoor_lab.exchange.own_set import OwnSet


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 every checked claim holds, 1 one does not, 2 something cannot
    be read."""
    return run_command(_parser(), _verify, arguments)


def _verify(asked: Namespace) -> int:
    out: Path | None = asked.out
    if out is not None and not out.parent.is_dir():
        raise ConfigError(f"`--out` must be a file in an existing folder, got {out}")
    report = verify(asked.subject, asked.claims, data=asked.data, clean=asked.clean)
    if out is not None:
        write_json(out, report.json())
    print(readable(report.json()) if asked.json else report.text())
    return report.exit_code


def verify(
    subject: Path, claims: Path, *, data: Path | None = None, clean: Path | None = None
) -> Report:
    """Check the card `claims` of a file of weights or a folder. `data` is the poisoned data set to
    measure on, by default the folder itself or the folder of the file. `clean` is the clean data
    set, for layouts that lack it.

    Raises ConfigError and DataError for what is missing, cannot be read, or is not a claim.
    """
    if not subject.exists():
        raise DataError(f"{subject}: no such file or folder")
    card = read_card(claims)
    if card.kind() == "network":
        return _network(subject, card, data, clean)
    root = data or subject
    if not root.is_dir():
        raise ConfigError(
            f"{claims} is the card of a data set: give its folder instead of {subject}"
        )
    return _data_set(root, card, clean)


def _network(
    subject: Path, claims: CardFile, data: Path | None, clean: Path | None
) -> Report:  # fmt: skip
    from backdoor_lab.exchange.network_card import parsed
    from backdoor_lab.verify.data import network_in, read_set
    from backdoor_lab.verify.network import Material, check_network

    stated = parsed(claims)
    path = network_in(subject, claims.path) if subject.is_dir() else subject
    root = data or (subject if subject.is_dir() else subject.parent)
    try:
        read = read_set(root, clean)
    except DataError as error:
        hint = "" if data or subject.is_dir() else ": give the data set with --data"
        raise DataError(f"{error}{hint}") from error
    found = check_network(path, stated, Material.of(read.arrays, read.cell))
    findings = [_seal(claims), read.note, *found.findings]
    where = str(claims.path)
    return Report(str(path), where, str(root), found.judgments, findings, found.precision)


def _data_set(root: Path, claims: CardFile, clean: Path | None) -> Report:
    from backdoor_lab.verify.data import read_set
    from backdoor_lab.verify.poisoned_set import check_set

    read = read_set(root, clean)
    try:
        found = check_set(claims.content, read.arrays, root)
    except ConfigError as error:
        raise ConfigError(f"{claims.path}: {error}") from error
    findings = [_seal(claims), read.note, *found]
    if read.own is not None and claims.path.samefile(read.own.file.path):
        findings += _accepted(read.own, findings)
    return Report(str(root), str(claims.path), str(root), findings=findings)


def _accepted(own: OwnSet, findings: Sequence[Finding]) -> list[Finding]:
    """Finds what else `dataset=poisoned` refuses in the set's own card, such as a missing field."""
    if any(each.verdict == "false" for each in findings):
        return []
    refusal = own.refusal()
    return [] if refusal is None else [Finding("card", "false", refusal)]


def _seal(claims: CardFile) -> Finding:
    if claims.sealed is None:
        return Finding("seal", "not checked", "absent")
    if claims.sealed:
        return Finding("seal", "true")
    return Finding("seal", "false", "the card was edited")


def _parser() -> Parser:
    parser = parser_of("verify", __doc__)
    parser.add_argument("subject", metavar="WEIGHTS|DIR", type=path_of)
    parser.add_argument("--claims", type=path_of, required=True, metavar="card.json")
    parser.add_argument(
        "--data", type=path_of, metavar="DIR",
        help="the poisoned data set to measure on; default: DIR, or the folder of WEIGHTS",
    )  # fmt: skip
    parser.add_argument(
        "--clean", type=path_of, metavar="PATH",
        help="the clean data set, for layouts of other projects that lack it",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--out", type=path_of, metavar="report.json", help="also write it there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
