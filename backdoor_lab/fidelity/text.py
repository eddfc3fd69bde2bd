"""Formats methods as text: one line per method, or one method with all its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from backdoor_lab.fidelity.table import Method, Row

HEADERS = ("method", "status", "equal to", "rows", "differ", "cost", "paper")


def overview(methods: Iterable[Method]) -> str:
    """A table of methods as text, one line each. For the column ``cost``, see the function
    `cost`."""
    return columns([HEADERS, *(_line(method) for method in methods)])


def details(method: Method) -> str:
    """A method as text, with all its rows. Each row shows our value, then the paper's and the
    code's."""
    said = f"{method.name}: {method.title}" + (f" ({method.paper})" if method.paper else "")
    lines = [said, f"  {status(method)}; {method.component}"]
    lines += [f"  reason: {method.reason}"] if method.reason else []
    lines += [f"  golden test: {method.golden}"] if method.golden else []
    return "\n".join(lines + [line for row in method.rows for line in _row(row, method)])


def status(method: Method) -> str:
    """The status as text, such as ``exact (code)`` for a method that equals the authors' code, or
    ``reduced (÷ 10)`` for one that costs a tenth of the authors' version."""
    if method.status == "exact":
        return f"exact ({method.equal_to})"
    if method.status == "reduced":
        return f"reduced (÷ {cost(method):,.3g})"
    return method.status


def cost(method: Method) -> float:
    """The time or memory with the authors' values, relative to ours: the product of `cost` over the
    rows that differ."""
    product = 1.0
    for row in method.differing():
        product *= row.cost
    return product


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Format rows of text in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _line(method: Method) -> tuple[str, ...]:
    differing = method.differing()
    factor = cost(method)
    return (
        method.name, method.status, method.equal_to, str(len(method.rows)), str(len(differing)),
        f"{factor:,.3g}" if factor != 1 else "", method.paper,
    )  # fmt: skip


def _row(row: Row, method: Method) -> list[str]:
    mark = " " if method.agrees(row) else "≠"
    lines = [f"{mark} {row.key}", f"    ours   {shown(row.ours)}"]
    if "paper" in row.sources:
        lines.append(f"    paper  {shown(row.paper)}  ({row.section})")
    if row.source is not None:
        lines.append(f"    code   {shown(row.code)}  ({row.source}  `{row.source.token}`)")
    lines += [f"    cost   × {row.cost:,g}"] if row.cost != 1 else []
    return lines + ([f"    note   {row.note}"] if row.note else [])


def shown(value: object) -> str:
    """Format a value as YAML text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
