"""python -m backdoor_lab.distortion FOLDER: how visible is each attack's trigger?

For every attack of a sweep, compares poisoned training images and triggered test images with the
originals, and prints PSNR, SSIM and the largest change of a value. The store must contain the
images, the poison and what the trigger prepared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.analysis.distortion import (
    HEADS,
    LIMIT,
    NOTES,
    TriggerDistortion,
    distortion,
    text,
)
from backdoor_lab.analysis.evidence import sampled
from backdoor_lab.page.analysis_command import (
    AnalysisSpec,
    Answers,
    Record,
    answer,
    answer_rows,
    collect,
)
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.records import CellRecord

Array = NDArray[Any]
LABELS = ("trigger", "target", "source", "ratio", "seed")
QUESTION = AnalysisSpec(
    "distortion", __doc__, TriggerDistortion, HEADS, NOTES,
    wants="poison, images and the trigger", text=text,
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 done, 2 if FOLDER is not a sweep or the store lacks what is
    needed."""
    return answer(QUESTION, lines_of, arguments)


def lines_of(
    cells: Sequence[CellRecord], records: dict[str, Record], reader: ArtifactReader
) -> Answers:
    """Returns the names of the columns that identify a row, and one row for each attack whose
    poison is stored. Cells without poison are omitted."""
    found = collect(cells, records, "poison", lambda record: _distortion(reader, record))
    return list(LABELS), answer_rows(LABELS, found)


def _distortion(reader: ArtifactReader, record: Record) -> TriggerDistortion | None:
    training, test = reader.training(record), reader.test_set(record)
    if training is None or test is None or not training.has_originals:
        return None
    pair = _tested(reader, record, test, training.classes)
    if pair is None:
        return None
    poison = sampled(np.arange(training.poisoned), LIMIT)
    return TriggerDistortion.of(
        training.poisoned,
        distortion(training.base[training.original[poison]], training.rows[poison]),
        distortion(*pair),
    )


def _tested(
    reader: ArtifactReader, record: Record, test: tuple[Array, Array], classes: Sequence[str]
) -> tuple[Array, Array] | None:
    """Returns test images and their triggered versions, both uint8 (n, C, H, W); None if they are
    not stored."""
    images, labels = test
    attack = reader.imported_attack(record)
    if attack is not None:
        if attack.triggered is None or attack.test_index is None or attack.elsewhere is None:
            return None
        known = np.flatnonzero(~attack.elsewhere & (attack.test_index >= 0))
        where = sampled(known, LIMIT)
        return (images[attack.test_index[where]], attack.triggered[where]) if len(where) else None
    prepared = reader.prepared(record)
    if prepared is None:
        return None
    clean = images[sampled(_attacked(record, labels, classes), LIMIT)]
    return clean, _triggered(record, clean, prepared)


def _attacked(record: Record, labels: Array, classes: Sequence[str]) -> Array:
    """Returns the indices of the test images on which ASR is measured: int (n,)."""
    choices, asr_on = record["choices"], record["protocol"]["asr_on"]
    if asr_on == "all":
        return np.arange(len(labels))
    if asr_on == "source":
        return np.flatnonzero(labels == classes.index(choices["source"]))
    return np.flatnonzero(labels != classes.index(choices["target"]))


def _triggered(record: Record, images: Array, prepared: dict[str, Array]) -> Array:
    """Returns `images`, uint8 (n, C, H, W), with the trigger applied as at test time."""
    import torch

    from backdoor_lab.pipeline.test_sets import trigger_of

    return trigger_of(record, prepared)(torch.from_numpy(np.array(images))).numpy()


if __name__ == "__main__":
    sys.exit(main())
