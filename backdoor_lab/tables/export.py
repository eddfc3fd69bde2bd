"""The records of sweeps as one tidy frame for other tools, every column documented."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.checks import is_number
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.files import write_atomic
from backdoor_lab.core.sheets import csv_of_frame
from backdoor_lab.results.facts import Facts
from backdoor_lab.results.measures import MEASURE, PERCENT, UNDER
from backdoor_lab.results.records import (
    CHOICES,
    COUNTS,
    DETECTION,
    FIGURES,
    TOP_CLASSES,
    WORTH,
    Cell,
)
from backdoor_lab.results.sweeps import Sweep
from backdoor_lab.results.values import words
from backdoor_lab.tables.build import set_kinds

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

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

_RUN = ("started", "device", "git_commit", "command")
_NUMBERS = ("ratio", *FIGURES, *WORTH, *DETECTION, "peak_memory_mib", "wall_seconds")
_WHOLE = ("seed", *COUNTS)
_NUMBER_FAMILIES = ("seconds.", "images_per_s.", *UNDER)


def frame_of(sweeps: Sequence[Sweep]) -> pd.DataFrame:
    """One line per cell of these sweeps, whatever its status, with the columns of `COLUMNS`."""
    import pandas as pd

    facts = Facts([cell for sweep in sweeps for cell in sweep.cells])
    named = [sweep.name for sweep in sweeps for _ in sweep.cells]
    lines = [
        {"sweep": name} | _line(cell, told)
        for name, cell, told in zip(named, facts.cells, facts.of, strict=True)
    ]
    columns = _columns(lines)
    frame = pd.DataFrame(lines, columns=columns, dtype=object)
    whole = [name for name in columns if name in _WHOLE]
    numbers = [name for name in columns if name in _NUMBERS or name.startswith(_NUMBER_FAMILIES)]
    set_kinds(frame, whole, numbers)
    text = [name for name in columns if name not in (*whole, *numbers)]
    return frame.assign(**{n: frame[n].map(_text, na_action="ignore").astype("string")
                           for n in text})  # fmt: skip


def write_frame(frame: pd.DataFrame, path: Path) -> None:
    """Writes .csv or .parquet by one rename. Raises ConfigError for another ending, a folder that
    is not there, and for Parquet without pyarrow."""
    makers: dict[str, Callable[[pd.DataFrame], bytes]] = {".csv": _csv, ".parquet": _parquet}
    if path.suffix not in makers or not path.parent.is_dir():
        known = " or ".join(makers)
        raise ConfigError(f"`--out` must end in {known}, in a folder that exists, got {path}")
    write_atomic(path, makers[path.suffix](frame))


def _csv(frame: pd.DataFrame) -> bytes:
    return csv_of_frame(frame).encode("utf-8", errors="backslashreplace")


def _parquet(frame: pd.DataFrame) -> bytes:
    try:
        import pyarrow  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'backdoor-lab[parquet]', or write a .csv"
        ) from error
    return bytes(frame.to_parquet(None, index=False))


def _text(value: Any) -> str:
    """Text that is UTF-8: half of a surrogate pair, which JSON may hold, is written out."""
    return str(value).encode("utf-8", errors="backslashreplace").decode()


def _columns(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The columns of `COLUMNS`, families filled with what there is."""
    found = sorted({name for line in lines for name in line})
    columns = []
    for name in COLUMNS:
        family = name.removesuffix("*")
        columns += [name] if family == name else [n for n in found if n.startswith(family)]
    return columns


def _line(cell: Cell, told: dict[str, Any]) -> dict[str, Any]:
    run = cell.run
    resolved = {n: None if v is None else words(v) for n, v in told.items() if "." in n}
    memory = run.get("process_peak_memory_mib", run.get("peak_memory_mib"))
    return {
        **resolved, **cell.choices, **cell.numbers, **cell.top_class,
        "id": cell.id, "status": cell.status, "error": cell.error,
        **{name: run.get(name) for name in _RUN},
        "notes": json.dumps(cell.notes, sort_keys=True) if cell.notes else None,
        "peak_memory_mib": memory if is_number(memory) else None,
        "wall_seconds": run["wall_seconds"] if is_number(run.get("wall_seconds")) else None,
        **_numbers("seconds", run.get("seconds")),
        **_numbers("images_per_s", run.get("images_per_s")),
        **_family("compute", run.get("compute")),
        **_family("applied", cell.applied),
        **_family("versions", run.get("versions")),
        **{f"hashes.{name}": cell.hashes.get(name) for name in HASHES},
    }  # fmt: skip


def _family(name: str, values: Any) -> dict[str, Any]:
    values = values if isinstance(values, dict) else {}
    return {f"{name}.{key}": value for key, value in values.items()}


def _numbers(name: str, values: Any) -> dict[str, Any]:
    return {key: value for key, value in _family(name, values).items() if is_number(value)}
