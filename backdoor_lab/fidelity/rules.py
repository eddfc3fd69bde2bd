"""Checks that the status of each method agrees with its rows."""

from __future__ import annotations

from collections.abc import Iterable

from backdoor_lab.fidelity.table import STATUSES, Method


def contradictions(methods: Iterable[Method]) -> list[str]:
    """Check the status of each method against its rows. Returns one line per contradiction."""
    return [f"{each.name}: {what}" for each in methods for what in _wrong(each)]


def _wrong(method: Method) -> list[str]:
    if method.status not in STATUSES:
        return [f"status {method.status!r} is none of {', '.join(STATUSES)}"]
    wrong = {
        "exact": _exact, "reduced": _reduced, "different": _different, "no code": _no_code,
        "ours": _ours,
    }[method.status](method)  # fmt: skip
    if method.status != "ours" and not method.paper:
        wrong.append("names no paper")
    if method.equal_to and method.equal_to not in ("paper", "code"):
        wrong.append(f"equal_to {method.equal_to!r} is neither paper nor code")
    if method.reason and method.status != "different":
        wrong.append("only a different method has a reason")
    return wrong + [f"cost of {row.key} is not positive" for row in method.rows if row.cost <= 0]


def _exact(method: Method) -> list[str]:
    wrong = [f"exact, but {row.key} differs" for row in method.differing()]
    if not method.equal_to:
        wrong.append("exact must say equal_to: paper or code")
    elif not any(method.equal_to in row.sources for row in method.rows):
        wrong.append(f"exact, but no row quotes the {method.equal_to}")
    if not method.golden:
        wrong.append("exact needs a golden test")
    return wrong


def _reduced(method: Method) -> list[str]:
    differing = method.differing()
    wrong = [
        f"reduced, but {row.key} differs at no cost (cost: {row.cost:g})"
        for row in differing
        if row.cost <= 1
    ]
    return wrong if differing else ["reduced, but nothing differs"]


def _different(method: Method) -> list[str]:
    wrong = [] if method.reason else ["different needs a reason"]
    if not method.differing():
        wrong.append("different, but no row differs")
    return wrong


def _no_code(method: Method) -> list[str]:
    wrong = [f"no code, but {row.key} quotes code" for row in method.rows if "code" in row.sources]
    if not any("paper" in row.sources for row in method.rows):
        wrong.append("no code, but no row quotes the paper")
    return wrong + [
        f"no code, but {row.key} differs from the paper at no cost"
        for row in method.differing()
        if row.cost <= 1
    ]


def _ours(method: Method) -> list[str]:
    return [f"ours, but {row.key} quotes {row.sources[0]}" for row in method.rows if row.sources]
