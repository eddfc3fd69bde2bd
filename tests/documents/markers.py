"""Registers tables by name, and inserts them between the markers of a document."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

Builder: TypeAlias = Callable[[], str]
Row: TypeAlias = Sequence[object]

TABLES: dict[str, Builder] = {}
PLACE = re.compile(r"(?ms)^<!-- begin: (?P<name>\S+) -->$\n(?P<body>.*?)^<!-- end -->$")
MARKER = re.compile(r"(?m)^<!-- (begin|end)\b.*-->$")


def table(name: str) -> Callable[[Builder], Builder]:
    """A decorator that registers a function as the source of the table `name`. The function takes
    no arguments and returns Markdown."""

    def register(builder: Builder) -> Builder:
        assert name not in TABLES, name
        TABLES[name] = builder
        return builder

    return register


def filled(text: str, tables: Mapping[str, Builder]) -> str:
    """Replace the content of all marked tables in `text`.

    Raises ValueError for an unknown name, and for a marker without its counterpart.
    """
    for place in PLACE.finditer(text):
        if place["name"] not in tables:
            raise ValueError(f"no table {place['name']}; known: {', '.join(sorted(tables))}")
    if len(MARKER.findall(text)) != 2 * len(PLACE.findall(text)) or "<!-- begin" in "".join(
        place["body"] for place in PLACE.finditer(text)
    ):
        raise ValueError("a `<!-- begin: NAME -->` without `<!-- end -->`, or the reverse")
    return PLACE.sub(
        lambda place: f"<!-- begin: {place['name']} -->\n{tables[place['name']]()}<!-- end -->",
        text,
    )


def outside(text: str) -> str:
    """Remove the generated tables from `text`."""
    return PLACE.sub("", text)


def names(text: str) -> list[str]:
    """The names of the tables that are marked in a document."""
    return [place["name"] for place in PLACE.finditer(text)]


def markdown(head: Sequence[str], rows: Iterable[Row], *, right: str = "") -> str:
    """Format a Markdown table. `right` has one letter per column; `r` aligns the column to the
    right. By default, a column is aligned to the right if all its entries start with a number."""
    lines = [[str(value) for value in row] for row in rows]
    assert lines, head
    assert {len(line) for line in lines} == {len(head)}, head
    columns = list(zip(*lines, strict=True))
    sides = right or "".join("r" if _numeric(column) else "l" for column in columns)
    rule = ["---:" if side == "r" else "---" for side in sides]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, rule, *lines])


def _numeric(column: Sequence[str]) -> bool:
    found = [text for text in column if text not in ("", "–")]
    return bool(found) and all(re.match(r"-?\d[\d.,]*( |$)(?!in |of |to )", text) for text in found)
