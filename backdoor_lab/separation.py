"""python -m backdoor_lab.separation FOLDER: why a spectral filter finds a cell's poison, or not.

For every attacked network of a sweep and every layer that its filters looked at: how far the
poison lies from its class beside what the class varies by itself, and whether the top singular
direction points there. Needs the features, the poison and the images in the store.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from backdoor_lab.analysis.separation import HEADS, NOTES, Separation, separation_of, text
from backdoor_lab.page.inquiry import Answers, Line, Question, Record, answer, collect, named
from backdoor_lab.results.facts import varied_config
from backdoor_lab.results.records import Cell
from backdoor_lab.results.stored import Shelf

LABELS = ("trigger", "target", "ratio", "seed", "protocol.layer")
QUESTION = Question(
    "separation", __doc__, Separation, HEADS, NOTES, wants="features, poison and images", text=text
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0; 2 for a folder that is no sweep, or has nothing in a store."""
    return answer(QUESTION, lines_of, arguments)


def lines_of(cells: Sequence[Cell], records: dict[str, Record], shelf: Shelf) -> Answers:
    """The labels, and a line for every stage of features that the store has beside its poison;
    defenses that looked at the same features share one."""
    found = collect(cells, records, "extract", lambda record: separation_of(shelf, record))
    labels = _labels([cell for cell, _ in found])
    lines = [Line(tuple(named(cell)[n] for n in labels), figures) for cell, figures in found]
    return [label.removeprefix("config.") for label in labels], lines


def _labels(cells: Sequence[Cell]) -> list[str]:
    """What tells the lines: the attack, whatever else was asked for and varies, and the layer."""
    asked = [n for cell in cells for n in cell.choices if n not in ("defense", *LABELS)]
    config = [n for n in varied_config(cells) if not n.startswith(("defense.", "protocol."))]
    varied = [
        name for name in dict.fromkeys([*asked, *config])
        if len({named(cell)[name] for cell in cells}) > 1
    ]  # fmt: skip
    return [*LABELS[:-1], *varied, LABELS[-1]]


if __name__ == "__main__":
    sys.exit(main())
