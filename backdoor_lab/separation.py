"""python -m backdoor_lab.separation FOLDER: why a spectral filter finds or misses the poison of a
cell.

For every attacked network of a sweep and every layer that a filter used, prints how far the poison
is from its class, relative to the spread of the class, and how well the top singular direction is
aligned with the poison. The store must contain the features, the poison and the images.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from backdoor_lab.analysis.separation import HEADS, NOTES, Separation, separation_of, text
from backdoor_lab.page.analysis_command import (
    AnalysisSpec,
    Answers,
    Record,
    answer,
    answer_rows,
    collect,
    named,
)
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.facts import varied_config
from backdoor_lab.results.records import CellRecord

LABELS = ("trigger", "target", "ratio", "seed", "protocol.layer")
QUESTION = AnalysisSpec(
    "separation", __doc__, Separation, HEADS, NOTES, wants="features, poison and images", text=text
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 if FOLDER is not a sweep or the store lacks what is
    needed."""
    return answer(QUESTION, lines_of, arguments)


def lines_of(
    cells: Sequence[CellRecord], records: dict[str, Record], reader: ArtifactReader
) -> Answers:
    """Returns the names of the columns that identify a row, and one row for each stored output of
    the stage `extract`, provided that the poison of the same cell is also stored.

    Defenses that used the same features share a row.
    """
    found = collect(cells, records, "extract", lambda record: separation_of(reader, record))
    labels = _labels([cell for cell, _ in found])
    return [label.removeprefix("config.") for label in labels], answer_rows(labels, found)


def _labels(cells: Sequence[CellRecord]) -> list[str]:
    """The names of the columns that identify a row: the attack, other choices that vary, and the
    layer."""
    asked = [n for cell in cells for n in cell.choices if n not in ("defense", *LABELS)]
    config = [n for n in varied_config(cells) if not n.startswith(("defense.", "protocol."))]
    varied = [
        name for name in dict.fromkeys([*asked, *config])
        if len({named(cell)[name] for cell in cells}) > 1
    ]  # fmt: skip
    return [*LABELS[:-1], *varied, LABELS[-1]]


if __name__ == "__main__":
    sys.exit(main())
