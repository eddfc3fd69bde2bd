"""CSV output whose cells a spreadsheet never evaluates as formulas.

A spreadsheet evaluates text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break.
Names and messages from untrusted records may contain such text, so an apostrophe is put in front of
it; numbers are unchanged. Control and text-direction characters, which could hide text, become `?`.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r\n]")
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]"
)
# Matches text that needs neither an apostrophe nor quotes.
_PLAIN = re.compile(r"[A-Za-z0-9][\w .:;()/+-]*", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\Z", re.ASCII)


def guarded(value: Any) -> Any:
    """Returns `value`, with an apostrophe in front if it is text that a spreadsheet would
    evaluate."""
    if not isinstance(value, str):
        return value
    # Python's csv leaves a lone carriage return unquoted, but spreadsheets read it as a line break.
    text = value if value.isprintable() else value.replace("\r\n", "\n").replace("\r", "\n")
    text = _UNSEEN.sub("?", text)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.match(text) else text


def csv_text(head: Sequence[object], lines: Iterable[Sequence[object]]) -> str:
    """Returns CSV text with a header and rows; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(guarded, head))
    for line in lines:
        writer.writerow(map(guarded, line))
    return text.getvalue()


def csv_of_frame(frame: pd.DataFrame) -> str:
    """Returns a frame as CSV text, without its index."""
    lines = zip(*(_cells(frame[name]) for name in frame), strict=True)
    return "\n".join([csv_text([*frame], ()).removesuffix("\n"), *map(",".join, lines), ""])


def _cells(column: pd.Series[Any]) -> list[str]:
    """Returns the values of a column as CSV text. Most values repeat, so each distinct value is
    escaped once."""
    if column.dtype.kind == "f":
        numbers = column.tolist()
        # 0.0 and -0.0 are one key but two texts.
        known = {v: "" if math.isnan(v) else repr(v) for v in {*numbers}}
        return [known[v] if v else repr(v) for v in numbers]
    values = column.astype(object).tolist()
    if column.hasnans:
        values = [None if empty else v for v, empty in zip(values, column.isna(), strict=True)]
    if column.dtype == object:
        # Different values may be equal, such as 1 and True.
        return [*map(_cell, values)]
    cells = {value: _cell(value) for value in set(values)}
    return [cells[value] for value in values]


def _cell(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return csv_text((value, None), ()).removesuffix(",\n")
