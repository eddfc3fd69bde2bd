"""The schema of the tidy frame of cells: its columns and what they mean."""

from __future__ import annotations

from backdoor_lab.results.metrics import BY_CLASS, MEASURE, PERCENT, UNDER, figure_of
from backdoor_lab.results.records import CHOICES, COUNTS, DETECTION, FIGURES, TOP_CLASSES, WORTH
from backdoor_lab.results.versions import SECTIONS

_CHOSEN = {
    "dataset": "data set", "model": "network", "recipe": "training recipe",
    "trigger": "trigger of the attack", "target": "class that the attacker targets",
    "source": "class whose images are attacked; empty if all classes are",
    "ratio": "requested amount of poison: a fraction of the images that protocol.ratio_of names,"
    " or, if `count` is set, a number of images",
    "protocol": "name of the protocol", "defense": "defense, or control", "seed": "random seed",
}  # fmt: skip
_COUNTED = {
    "n_test": "clean test images", "n_asr": "triggered test images that ASR is measured on",
    "train_test_overlap": "test images that are also in the training set",
}  # fmt: skip
HASHES = {
    "data": "training images and labels", "test": "test images and labels",
    "poison": "indices of the poisoned images", "training1": "poisoned training set",
    "training2": "training set after the defense", "weights1": "network before the defense",
    "weights2": "network after the defense",
}  # fmt: skip


def _meaning(name: str) -> str:
    measure = MEASURE[name]
    return measure.says.replace("in %", "0..1") if measure.unit == PERCENT else measure.says


def _under_meaning(family: str) -> str:
    figure = family.partition("_")[0]
    return f"{figure} on transformed test images, one column per transformation; 0..1"


def _class_meaning(family: str) -> str:
    return f"{_meaning(figure_of(family))}, one column per class"


COLUMNS: dict[str, str] = {
    "sweep": "name of the sweep",
    "id": "the cell's id, which is the name of its folder",
    "status": "done, missing, failed: reason or diverged: reason",
    "error": "error message of a failed cell",
    **{name: _CHOSEN[name] for name in CHOICES},
    **{f"{name}_version": f"version of the {name} that was used" for name in SECTIONS},
    "protocol.*": "the resolved protocol, one column per key, as text",
    "applied.*": "filter options of the protocol that the defense uses, as text",
    "config.*": "config values that differ between cells with the same choices, as text",
    **{
        name: _COUNTED.get(name) or _meaning(name)
        for name in (*COUNTS, *FIGURES, *WORTH, *DETECTION)
    },
    **{f"{name}*": _under_meaning(name) for name in UNDER},
    **{f"{name}*": _class_meaning(name) for name in BY_CLASS},
    **dict.fromkeys(TOP_CLASSES, "class that the network predicts most often"),
    "notes": "remarks that the defense made on its run, as JSON",
    "seconds.*": "seconds to compute a stage, even if another cell computed it",
    "images_per_s.*": "training images per second in a training stage",
    "peak_memory_mib": "peak memory of the process, MiB",
    "wall_seconds": "seconds from the start of the cell to its record",
    "started": "start time of the cell, UTC",
    "device": "device that the cell ran on",
    "compute.*": "processor, instruction set, number of threads and number format",
    "git_commit": "commit of the code",
    "command": "command that ran the cell",
    "versions.*": "versions of this package, of Python and of libraries",
    **{f"hashes.{name}": f"sha256 of: {what}" for name, what in HASHES.items()},
}
"""All columns in order, with their meaning. A name that ends in ``*`` stands for all columns whose
names begin with the part before the ``*``. Counts are integers, other measures are fractions 0..1;
a value is empty if the record does not state it."""

_FLOATS = frozenset(("ratio", *FIGURES, *WORTH, *DETECTION, "peak_memory_mib", "wall_seconds"))
_COUNTS = frozenset(("seed", *COUNTS))
_FLOAT_FAMILIES = ("seconds.", "images_per_s.", *UNDER, *BY_CLASS)


def is_float(name: str) -> bool:
    """Whether a column is float64, with NaN for missing values."""
    return name in _FLOATS or name.startswith(_FLOAT_FAMILIES)


def is_count(name: str) -> bool:
    """Whether a column contains integers (dtype Int64, with NA for missing values). Columns that
    contain neither floats nor integers contain text."""
    return name in _COUNTS
