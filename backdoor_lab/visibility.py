"""python -m backdoor_lab.visibility FOLDER: do defenses miss the poison that is less visible?

For every filter result of a sweep, compares how much the attack changed the poisoned images that
were kept and those that were removed. The store must contain the poison, the images and the scores.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from backdoor_lab.analysis.cell_artifacts import cell_artifacts
from backdoor_lab.analysis.visibility import HEADS, NOTES, Visibility, text, visibility
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
from backdoor_lab.results.records import CellRecord

LABELS = ("trigger", "target", "ratio", "seed", "defense")
QUESTION = AnalysisSpec(
    "visibility",
    __doc__,
    Visibility,
    HEADS,
    NOTES,
    wants="poison, images and a filter result",
    text=text,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 if FOLDER is not a sweep or the store lacks what is
    needed."""
    return answer(QUESTION, lines_of, arguments)


def lines_of(
    cells: Sequence[CellRecord], records: dict[str, Record], reader: ArtifactReader
) -> Answers:
    """Returns the names of the columns that identify a row, and the rows: one for each result of a
    filter whose poisoned images are in the store."""
    found = collect(cells, records, "filter", lambda record: _visibility(reader, record))
    labels = _labels([cell for cell, _ in found])
    return labels, answer_rows(labels, found)


def _visibility(reader: ArtifactReader, record: Record) -> Visibility | None:
    found = cell_artifacts(reader, record)
    if found is None or not found.training.has_originals:
        return None
    training = found.training
    poison = np.flatnonzero(training.is_poison)
    source = training.original[training.index[poison] - len(training.base)]
    return visibility(
        training.base[source], training.images(poison), found.filter_result.keep[poison]
    )


def _labels(cells: Sequence[CellRecord]) -> list[str]:
    """The names of the columns that identify a row: attack, defense, and each option that varies
    within a defense."""
    alike: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for values in map(named, cells):
        alike.setdefault(tuple(values[label] for label in LABELS), []).append(values)
    varied = [
        name for group in alike.values() for name in group[0]
        if name not in LABELS and len({values[name] for values in group}) > 1
    ]  # fmt: skip
    return [*LABELS, *dict.fromkeys(varied)]


if __name__ == "__main__":
    sys.exit(main())
