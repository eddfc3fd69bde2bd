"""The table of one cell's training images, made from the outputs of its stages: one row per
image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.cell_folder import completed_record
from backdoor_lab.results.store_location import CONFIGURATION, STORE, find_store
from backdoor_lab.results.stored_results import StoredFilterResult, Training

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

Array = NDArray[Any]
NO_DEFENSE = "none"
IMAGE_COLUMNS = {
    "index": "position in the poisoned training set, from 0",
    "label": "name of the training label; of a poisoned image, the one that the attacker gave it",
    "is_poison": "whether the image is poisoned; empty if the ground truth is unknown",
    "is_cover": "whether the image has the trigger but its true label; empty if unknown",
    "source_index": "position in the clean training set of the image that a poisoned image or a"
    " cover was made from; empty for other images",
    "score": "score of the filter, higher is more suspicious; empty if the filter did not score the"
    " image",
    "rank": "1 + number of images with a higher score, so that equal scores have equal ranks; empty"
    " if the filter did not score the image",
    "removed": "whether the filter removed the image",
}
"""The columns of the table in order, with their meaning."""


def image_table(cell: Path, store: Path | None = None) -> pd.DataFrame:
    """Returns the table of the cell in the folder `cell`; its columns are those of `IMAGE_COLUMNS`.

    The outputs of the cell's stages are read from `store` or, if `store` is None, from the store
    that `find_store` finds. Raises ConfigError if the cell has no record or no filter, or if the
    store does not have its outputs or has others; DataError if the record is damaged or the cell is
    not completed.
    """
    record = completed_record(cell, "scores")
    defense = record["choices"].get("defense")
    if "filter" not in record["run"]["stages"] or defense == NO_DEFENSE:
        raise ConfigError(f"{cell}: the defense `{defense}` is not a filter: it scores no images")
    sweep = cell.resolve().parent
    root = find_store(sweep, store)
    if root is None:
        looked = store or f"{sweep.parent / STORE}, nor at the path in {sweep / CONFIGURATION}"
        raise ConfigError(f"there is no store at {looked}: give its path with --store")
    reader = ArtifactReader(root, checked=True)
    training = reader.training(record)
    if training is None:
        raise _unusable("training set", reader, record)
    result = reader.filter_result(record, len(training.index))
    if result is None:
        raise _unusable("filter result", reader, record)
    _check(record, training, result)
    return _frame(training, result)


def rank_of(scores: Array) -> Array:
    """Returns the rank of each score, int64 (n,), for `scores`, float64 (n,) without NaN: 1 plus
    the number of higher scores. Equal scores have equal ranks.

    >>> rank_of(np.array([0.5, 2.0, 0.5, 1.0])).tolist()
    [3, 1, 3, 2]
    """
    return np.asarray(1 + len(scores) - np.searchsorted(np.sort(scores), scores, side="right"))


def _frame(training: Training, result: StoredFilterResult) -> pd.DataFrame:
    import pandas as pd

    n, scored = len(training.index), ~np.isnan(result.scores)
    ranks, sources = np.zeros(n, np.int64), np.zeros(n, np.int64)
    ranks[scored] = rank_of(result.scores[scored])
    made = training.is_poison | training.is_cover
    sources[made] = training.original[training.index[made] - len(training.base)]
    labels = np.array(training.classes, dtype=object)[training.labels]
    unknown = pd.array([pd.NA] * n, dtype="boolean")
    columns = {
        "index": np.arange(n),
        "label": pd.array(labels, dtype="string"),
        "is_poison": training.is_poison if training.known else unknown,
        "is_cover": training.is_cover if training.known else unknown,
        "source_index": pd.arrays.IntegerArray(sources, ~made),
        "score": result.scores,
        "rank": pd.arrays.IntegerArray(ranks, ~scored),
        "removed": ~result.keep,
    }
    return pd.DataFrame({name: columns[name] for name in IMAGE_COLUMNS})


def _unusable(what: str, reader: ArtifactReader, record: dict[str, Any]) -> ConfigError:
    state = "damaged" if any("damaged" in note for note in reader.notes) else "not"
    return ConfigError(
        f"the {what} of this cell is {state} in the store {reader.root}: remove the cell's"
        f" record.json, then repeat its command to compute it ({record['run'].get('command')})"
    )


def _check(record: dict[str, Any], training: Training, result: StoredFilterResult) -> None:
    """Raises ConfigError if the stored outputs contradict the record."""
    poison = training.original[: training.poisoned].tolist()
    counts: Any = record.get("counts")
    counts = counts if isinstance(counts, dict) else {}
    found = {"n_train": len(training.index), "n_removed": int((~result.keep).sum())}
    same = record["hashes"].get("poison") in (None, digest(poison))
    if not same or any(counts.get(name, n) != n for name, n in found.items()):
        raise ConfigError(
            "the training set or the filter result in the store is not the one that the record"
            " describes: remove the cell's record.json, then repeat its command"
        )
