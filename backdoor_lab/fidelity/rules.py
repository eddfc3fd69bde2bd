"""Checks that the status of each method agrees with its rows."""

from __future__ import annotations

from collections.abc import Iterable

from backdoor_lab.fidelity.table import STATUSES, Method


def contradictions(methods: Iterable[Method]) -> list[str]:
    """Check the status of each method against its rows. Returns one line per contradiction."""
    return [f"{each.name}: {what}" for each in methods for what in _wrong(each)]


def _wrong(method: Method) -> list[str]:
    if method.status not in STATUSES:
        return [f"the status must be one of {', '.join(STATUSES)}, got {method.status!r}"]
    wrong = {
        "exact": _exact, "reduced": _reduced, "different": _different, "no code": _no_code,
        "ours": _ours,
    }[method.status](method)  # fmt: skip
    if method.status != "ours" and not method.paper:
        wrong.append("the entry must name a paper, unless its status is ours")
    if method.equal_to and method.equal_to not in ("paper", "code"):
        wrong.append(f"equal_to must be paper or code, got {method.equal_to!r}")
    if method.reason and method.status != "different":
        wrong.append("the entry gives a reason, which only the status different may have")
    return wrong + [
        f"the cost of {row.key} must be positive, got {row.cost:g}"
        for row in method.rows
        if row.cost <= 0
    ]


def _exact(method: Method) -> list[str]:
    wrong = [f"the status is exact, but the row {row.key} differs" for row in method.differing()]
    if not method.equal_to:
        wrong.append("the status exact needs the key equal_to: paper or code")
    elif not any(method.equal_to in row.sources for row in method.rows):
        wrong.append(f"the status is exact, but no row quotes the {method.equal_to}")
    if not method.golden:
        wrong.append("the status exact needs a golden test (key golden)")
    return wrong


def _reduced(method: Method) -> list[str]:
    differing = method.differing()
    wrong = [
        f"the status is reduced, but the row {row.key} differs without saving cost"
        for row in differing
        if row.cost <= 1
    ]
    return wrong if differing else ["the status is reduced, but no row differs"]


def _different(method: Method) -> list[str]:
    wrong = [] if method.reason else ["the status different needs a reason (key reason)"]
    if not method.differing():
        wrong.append("the status is different, but no row differs")
    return wrong


def _no_code(method: Method) -> list[str]:
    wrong = [
        f"the status is no code, but the row {row.key} quotes code"
        for row in method.rows
        if "code" in row.sources
    ]
    if not any("paper" in row.sources for row in method.rows):
        wrong.append("the status is no code, but no row quotes the paper")
    return wrong + [
        f"the status is no code, but the row {row.key} differs from the paper without saving cost"
        for row in method.differing()
        if row.cost <= 1
    ]


def _ours(method: Method) -> list[str]:
    return [
        f"the status is ours, but the row {row.key} quotes the {row.sources[0]}"
        for row in method.rows
        if row.sources
    ]
