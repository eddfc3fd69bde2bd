"""The columns of the tidy frame of cells, and what each holds: the one schema of results."""

from __future__ import annotations

from backdoor_lab.results.measures import MEASURE, PERCENT, UNDER
from backdoor_lab.results.records import CHOICES, COUNTS, DETECTION, FIGURES, TOP_CLASSES, WORTH

_CHOSEN = {
    "dataset": "data set", "model": "network", "recipe": "training recipe",
    "trigger": "trigger of the attack", "target": "class that the attacker wants",
    "source": "class that is attacked, empty for every class",
    "ratio": "poison as asked for: a share of what protocol.ratio_of says, or where it says count,"
    " a number of images",
    "protocol": "name of the protocol", "defense": "defense, or control", "seed": "seed of all",
}  # fmt: skip
_COUNTED = {
    "n_test": "clean test images", "n_asr": "triggered test images that ASR is measured on",
    "train_test_overlap": "test images that are in the training set too",
}  # fmt: skip
HASHES = {
    "data": "training images and labels", "test": "test images and labels",
    "poison": "indices of the poisoned images", "training1": "poisoned training set",
    "training2": "what the defense left of it", "weights1": "network before the defense",
    "weights2": "network after it",
}  # fmt: skip


def _meaning(name: str) -> str:
    measure = MEASURE[name]
    return measure.says.replace("in %", "0..1") if measure.unit == PERCENT else measure.says


def _under_meaning(family: str) -> str:
    return f"{family.partition('_')[0]} on test images after a transformation, by its name; 0..1"


COLUMNS: dict[str, str] = {
    "sweep": "name of the sweep",
    "id": "the cell's id, which is its folder's name",
    "status": "done, missing, failed: reason or diverged: reason",
    "error": "what a failed cell said",
    **{name: _CHOSEN[name] for name in CHOICES},
    "protocol.*": "the resolved protocol, a column for each key, as text",
    "applied.*": "what of the protocol's words for filters the defense works by, as text",
    "config.*": "config values in which cells of the same choices differ, as text",
    **{
        name: _COUNTED.get(name) or _meaning(name)
        for name in (*COUNTS, *FIGURES, *WORTH, *DETECTION)
    },
    **{f"{name}*": _under_meaning(name) for name in UNDER},
    **dict.fromkeys(TOP_CLASSES, "class that this network predicts most often"),
    "notes": "what the defense noted, as JSON",
    "seconds.*": "what computing a stage took, whichever cell computed it",
    "images_per_s.*": "training images per second of a training stage",
    "peak_memory_mib": "the most memory of the process, MiB",
    "wall_seconds": "seconds from the cell's start to its record",
    "started": "when the cell was started, UTC",
    "device": "what it ran on",
    "compute.*": "processor, instruction set, threads and number format that it ran with",
    "git_commit": "commit of the code",
    "command": "the command that made it",
    "versions.*": "versions of this package, of Python and of libraries",
    **{f"hashes.{name}": f"sha256 of: {what}" for name, what in HASHES.items()},
}
"""Every column, in order, and what it holds; ``*`` stands for a family of columns. Counts are whole
numbers, figures and detection rates fractions 0..1; empty where a record does not say."""

_FLOATS = frozenset(("ratio", *FIGURES, *WORTH, *DETECTION, "peak_memory_mib", "wall_seconds"))
_COUNTS = frozenset(("seed", *COUNTS))
_FLOAT_FAMILIES = ("seconds.", "images_per_s.", *UNDER)


def is_float(name: str) -> bool:
    """Whether a column holds float64, NaN where there is nothing."""
    return name in _FLOATS or name.startswith(_FLOAT_FAMILIES)


def is_count(name: str) -> bool:
    """Whether a column holds whole numbers (Int64, NA where there is nothing). All that is
    neither these nor floats is text."""
    return name in _COUNTS
