"""CSV output in which a spreadsheet never runs a cell as a formula.

A spreadsheet evaluates text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break,
and names and messages come from untrusted records. Such text gets an apostrophe in front; numbers
are unchanged. Control and text-direction characters, which could hide text, become `?`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\Z", re.ASCII)


def guarded(value: Any) -> Any:
    """`value`, prefixed with an apostrophe if it is text that a spreadsheet would evaluate."""
    if not isinstance(value, str):
        return value
    # Python's csv leaves a lone carriage return unquoted, but a spreadsheet starts a new line.
    text = value if value.isprintable() else value.replace("\r\n", "\n").replace("\r", "\n")
    text = _UNSEEN.sub("?", text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def csv_text(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """CSV text from a header and rows; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(guarded, head))
    for line in lines:
        writer.writerow(map(guarded, line))
    return text.getvalue()


def csv_of_frame(frame: pd.DataFrame) -> str:
    """CSV text of a frame, without its index."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(guarded, frame))
    writer.writerows(zip(*map(_cells, (frame[name] for name in frame)), strict=True))
    return text.getvalue()


def _cells(column: pd.Series[Any]) -> list[Any]:
    """The values of a column. Each distinct text is escaped once: most texts repeat."""
    values = column.astype(object).tolist()
    if column.hasnans:
        values = [None if empty else v for v, empty in zip(values, column.isna(), strict=True)]
    safe = {value: guarded(value) for value in {each for each in values if isinstance(each, str)}}
    return [safe.get(value, value) for value in values] if safe else values
