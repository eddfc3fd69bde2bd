"""Read the outputs of a cell's stages from the store, with NumPy only.

Outputs may be missing (the store is not committed) or damaged; a method then returns None and adds
a note. By default, files are not checked against their hashes. Tables, which serve as evidence, are
made from checked files.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import small_files
from backdoor_lab.core.artifacts import (
    FEATURES,
    POISON,
    PREPARED,
    VERDICT,
    WEIGHTS,
    TensorFile,
    map_split,
    stored_attack,
)
from backdoor_lab.core.errors import DataError, LabError, many
from backdoor_lab.core.small_files import UnreadableFileError
from backdoor_lab.core.store import read_manifest
from backdoor_lab.core.validation import safe_name
from backdoor_lab.results.frozen import frozen_lines
from backdoor_lab.results.records import decode as decode_without_indices
from backdoor_lab.results.records import mapping
from backdoor_lab.results.seal import read_sealed
from backdoor_lab.results.stored_results import StoredFilterResult, Training, check_training
from backdoor_lab.results.sweeps import cell_folders
from backdoor_lab.results.weights import first_convolution

if TYPE_CHECKING:
    from backdoor_lab.core.types import ImportedAttack

MANIFEST = "manifest.json"
NO_STORE = "no store was found for this sweep, so the outputs of its stages cannot be shown"
_RECORD = "record.json"
_CACHED = 4

Array = NDArray[Any]
T = TypeVar("T")


def raw_records(folder: Path, *, whole: bool = False) -> dict[str, dict[str, Any]]:
    """Returns the records of a sweep by cell id. Only their seals are checked. Poison indices are
    included only if `whole`.

    Skips cell folders with a damaged record. Raises DataError if a frozen sweep is damaged. If a
    cell has several folders, the one named after the cell's id is used, as in `read_sweep`.
    """
    decode = small_files.decode if whole else decode_without_indices
    lines = (mapping("the record", decode(line)) for line in frozen_lines(folder))
    frozen = {str(record.get("id")): record for record in lines}
    found: dict[str, dict[str, Any]] = {}
    for child in cell_folders(folder):
        with suppress(OSError, DataError):
            record = mapping("the record", decode(read_sealed(child / _RECORD)))
            name = str(record.get("id"))
            if name not in found or child.name == name:
                found[name] = record
    return frozen | found


class ArtifactReader:
    """Reads the stage outputs of records from one store; methods return None for missing outputs.

    `notes` collects the reasons for missing outputs, each once. If `checked`, a file that was
    changed after it was stored counts as damaged.
    """

    def __init__(self, root: Path | None, *, checked: bool = False) -> None:
        self.root = root
        self._check = lru_cache(None)(_check_hashes) if checked else lambda folder: None
        self.notes: list[str] = [] if root is not None else [NO_STORE]
        self._arrays = lru_cache(_CACHED)(TensorFile.read_arrays)
        self._datasets = lru_cache(_CACHED)(self._dataset)

    def training(self, record: dict[str, Any]) -> Training | None:
        """Returns the poisoned training set of a cell; None if its data is not stored."""
        return self._try("poisoned images", lambda: self._training(record))

    def filter_result(self, record: dict[str, Any], n: int) -> StoredFilterResult | None:
        """Returns the filter's scores and removed images for `n` examples."""
        if _never_ran(record, "filter"):
            return None
        return self._try("scores", lambda: self._filter_result(record, n))

    def features(self, record: dict[str, Any], where: Array, n: int) -> Array | None:
        """Returns the features, float64 (b, d), of the examples with the indices in `where`, int
        (b,). `n` is the total number of examples."""
        return self._try("features", lambda: self._features(record, where, n))

    def losses(self, record: dict[str, Any], stage: str) -> Array | None:
        """Returns the mean training loss of each epoch, float64 (epochs,); `stage` is ``train`` or
        ``retrain``."""
        if _never_ran(record, stage):
            return None
        return self._try("losses", lambda: self._losses(record, stage))

    def first_layer(self, record: dict[str, Any], stage: str, channels: int) -> Array | None:
        """Returns the weights, float32 (f, channels, k, k), of the network's first convolution with
        `channels` input channels."""
        return self._try("weights", lambda: self._first_layer(record, stage, channels))

    def test_set(self, record: dict[str, Any]) -> tuple[Array, Array] | None:
        """Returns the clean test images, uint8 (n, C, H, W), and their labels, int (n,)."""
        hashes, read = record.get("hashes") or {}, self._datasets
        return self._try(
            "test images", lambda: map_split(read(hashes["data"], hashes.get("test"))[0], "test")
        )

    def imported_attack(self, record: dict[str, Any]) -> ImportedAttack | None:
        """Returns the attack of a data set that was poisoned before it was read; None for other
        data sets."""
        return self._try("triggered images", lambda: self._imported_attack(record))

    def prepared(self, record: dict[str, Any]) -> dict[str, Array] | None:
        """Returns the tensors that the trigger optimized or trained; empty if it prepares
        nothing."""
        if "prepare" not in record["run"]["stages"]:
            return {}
        return self._try("triggers", lambda: self._arrays(PREPARED, self._entry(record, "prepare")))

    def _try(self, what: str, read: Callable[[], T]) -> T | None:
        from safetensors import SafetensorError

        if self.root is None:
            return None
        broken = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError)
        try:
            return read()
        except (*broken, LabError, SafetensorError, RecursionError, MemoryError) as error:
            damaged = isinstance(error, UnreadableFileError)
            gone = isinstance(error, (FileNotFoundError, KeyError, DataError)) and not damaged
            why = "not in the store" if gone else "damaged in the store"
            if (note := f"the {what} of some cells are {why}") not in self.notes:
                self.notes.append(note)
            return None

    def _entry(self, record: dict[str, Any], stage: str) -> Path:
        # The id comes from an untrusted file.
        name = safe_name("stage id", record["run"]["stages"][stage]["id"])
        folder = Path(self.root or "") / safe_name("stage", stage) / name
        self._check(folder)
        return folder

    def _training(self, record: dict[str, Any]) -> Training:
        found = self._arrays(POISON, self._entry(record, "poison"))
        folder, classes = self._datasets(record["hashes"]["data"])
        base, labels = map_split(folder, "train", mode="c")
        covers = found.get("cover_index", found["source_index"][:0])
        original = np.concatenate([found["source_index"], covers])
        made = Training(
            base, found["rows"], found["index"], found["labels"], original,
            len(found["source_index"]), labels, classes,
            record["counts"].get("n_poisoned", 0) is not None,
        )  # fmt: skip
        check_training(made)
        return made

    def _dataset(self, digest: str, test: str | None = None) -> tuple[Path, tuple[str, ...]]:
        """Returns the folder and class names of the data set with these digests of its splits."""
        for manifest in sorted((Path(self.root or "") / "data").glob(f"*/{MANIFEST}")):
            with suppress(OSError, DataError, KeyError, TypeError):
                meta = read_manifest(manifest.parent)["meta"]
                if meta["digests"]["train"] == digest and test in (None, meta["digests"]["test"]):
                    found = manifest.parent, tuple(map(str, meta["classes"]))
                    break
        else:
            raise DataError(f"the store contains no data set with the hash {digest}")
        self._check(found[0])
        return found

    def _imported_attack(self, record: dict[str, Any]) -> ImportedAttack | None:
        folder = self._datasets(record["hashes"]["data"])[0]
        return stored_attack(folder, read_manifest(folder)["meta"])

    def _filter_result(self, record: dict[str, Any], n: int) -> StoredFilterResult:
        found = self._arrays(VERDICT, self._entry(record, "filter"))
        scores, keep = found["scores"].astype(np.float64), found["keep"].astype(bool)
        if scores.shape != (n,) or keep.shape != (n,):
            raise ValueError(
                f"the filter stored {many(len(scores), 'score')} for {many(n, 'image')}"
            )
        return StoredFilterResult(scores, keep)

    def _features(self, record: dict[str, Any], where: Array, n: int) -> Array:
        values = self._arrays(FEATURES, self._entry(record, "extract"))["values"]
        if values.ndim != 2 or len(values) != n:
            raise ValueError(
                f"the store has {many(len(values), 'feature row')} for {many(n, 'image')}"
            )
        return values[where].astype(np.float64)

    def _losses(self, record: dict[str, Any], stage: str) -> Array:
        meta = read_manifest(self._entry(record, stage))["meta"]
        losses = np.array(meta["loss"], np.float64)
        if losses.ndim != 1 or not np.isfinite(losses).all():
            raise ValueError("a stored training loss is not finite")
        return losses

    def _first_layer(self, record: dict[str, Any], stage: str, channels: int) -> Array:
        found = self._arrays(WEIGHTS, self._entry(record, stage))
        return found[first_convolution(((k, v.shape) for k, v in found.items()), channels)]


def _check_hashes(folder: Path) -> None:
    """Raises ValueError if the files of an output were changed after they were stored."""
    from backdoor_lab.core.store import damage_in

    damage = damage_in(folder)
    if damage:
        raise ValueError(damage)


def _never_ran(record: dict[str, Any], stage: str) -> bool:
    """Whether the cell of a record has no output of `stage` by design: a repair filters nothing,
    and without retraining there is no second network. Such outputs are not reported as missing."""
    run = record.get("run")
    stages = run.get("stages") if isinstance(run, dict) else None
    return isinstance(stages, dict) and bool(stages) and stage not in stages
