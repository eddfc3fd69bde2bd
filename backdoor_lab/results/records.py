"""Reads a record.json, checks it and reduces it to the values that tables need."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from marshal import dumps
from typing import Any, TypeVar, cast

from backdoor_lab.core import small_files
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.validation import non_negative
from backdoor_lab.results.metrics import TRANSFORMED, under_name
from backdoor_lab.results.per_class import per_class_of
from backdoor_lab.results.seal import check_seal
from backdoor_lab.results.values import sorted_text

SCHEMA = 1
DONE, MISSING, DAMAGED = "done", "missing", "failed: damaged record"
CHOICES = (
    "dataset", "model", "recipe", "trigger", "target",
    "source", "ratio", "protocol", "defense", "seed",
)  # fmt: skip
NEEDED = ("trigger", "target", "ratio", "protocol", "defense", "seed")
COUNTS = (
    "n_train", "n_clean", "n_poisoned", "n_covers", "n_eligible", "n_removed",
    "pois_left", "covers_left", "n_test", "n_asr", "train_test_overlap",
    "n_accused", "n_named",
)  # fmt: skip
FIGURES = ("nat1", "asr1", "nat2", "asr2", "asr_elsewhere1", "asr_elsewhere2")
WORTH = (
    "clean_rate1", "top_share1", "clean_rate2", "top_share2", "train_accuracy1", "train_accuracy2",
)  # fmt: skip
"""Measures that help to judge whether the other measures are meaningful. Old records lack them."""
TOP_CLASSES = ("top_class1", "top_class2")
DETECTION = ("auroc", "average_precision", "tpr", "fpr", "tpr_at_1", "tpr_at_5")

_INDICES = b'"poison_indices":'
_LARGEST = 2**53
_TRANSFORMATION = re.compile(r"[a-z]{1,32}[0-9.]{0,32}")
SEEDS = 2**63
_PLAIN = frozenset((str, bool, int, type(None)))
_NUMERIC = frozenset((float, int))
T = TypeVar("T")
_KNOWN: dict[tuple[Any, bytes], Any] = {}
_DISTINCT = 4096
"""Number of distinct protocols, configs and similar values to remember: a sweep has few of them."""


@dataclass(frozen=True)
class CellRecord:
    """The values of a record that tables need.

    `numbers`: the counts, and the other measures, also those of each class, as fractions 0..1; all
    are finite. `choices`: empty if unknown. `protocol` and `config` (JSON text without the seed):
    None if not recorded. `error`: the message of a failed cell. `hashes`: the hashes of the data,
    the poison and the weights. `notes`: the notes of the defense. `top_class`: the most frequently
    predicted classes, under the names in TOP_CLASSES. `applied`: the filter options that the
    defense uses; None if not recorded. `run`: without the code hashes and the hardware of each
    stage.

    Records share objects with equal values: do not modify the values of a record.
    """

    id: str
    status: str
    choices: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] | None = None
    config: str | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    run: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    hashes: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    top_class: dict[str, str] = field(default_factory=dict)
    applied: dict[str, Any] | None = None

    @property
    def done(self) -> bool:
        return self.status == DONE

    @property
    def given(self) -> bool:
        """Whether the attacked network was read from a file instead of trained."""
        return isinstance(self.run.get("attacked"), dict)


def parse(data: bytes) -> CellRecord:
    """Parses the bytes of a record.json. Raises DataError with the reason if they are invalid."""
    check_seal(data)
    return parse_sealed(data)


def parse_sealed(data: bytes) -> CellRecord:
    """Parses like `parse`, but without checking the seal, which the caller has checked."""
    record = mapping("the record", decode(data, sealed=True))
    if record.get("schema") != SCHEMA:
        raise DataError(f"`schema` must be {SCHEMA}, got {record.get('schema')!r}")
    if not isinstance(record.get("id"), str):
        raise DataError(f"`id` must be text, got {record.get('id')!r}")
    given = check_choices(record.get("choices"))
    choices: dict[str, Any] = {k: sys.intern(v) if type(v) is str else v for k, v in given.items()}
    run, hashes, notes = (record.get(name) for name in ("run", "hashes", "notes"))
    return CellRecord(
        record["id"],
        _status(record.get("status")),
        choices,
        _once(_protocol, record.get("protocol")),
        _canonical(record.get("config"), choices["seed"]),
        _numbers(record),
        _run(run) if isinstance(run, dict) else {},
        None if record.get("error") is None else str(record["error"]),
        hashes if isinstance(hashes, dict) else {},
        notes if isinstance(notes, dict) else {},
        {name: str(record[name]) for name in TOP_CLASSES if record.get(name) is not None},
        _once(_itself, applied) if isinstance(applied := record.get("applied"), dict) else None,
    )


def decode(data: bytes, *, sealed: bool = False) -> Any:
    """Decodes the JSON of a record without its list of poison indices, which is large and not
    needed here. With `sealed`, which is for text written by this package, duplicate keys are not
    detected."""
    return small_files.decode(_without_indices(data), sealed=sealed)


def check_choices(given: Any) -> dict[str, Any]:
    """Returns `given` if it has every choice that tables need. Raises DataError otherwise."""
    choices = _scalars("choices", given)
    for name in NEEDED:
        if name not in choices:
            raise DataError(f"`choices.{name}` is missing")
    if _number("choices.ratio", choices["ratio"], math.inf) is None:
        raise DataError(f"`choices.ratio` must be a number, got {choices['ratio']!r}")
    seed = choices["seed"]
    if not isinstance(seed, int) or not 0 <= seed < SEEDS:
        raise DataError(f"`choices.seed` must be a whole number below 2**63, got {seed!r}")
    return choices


def mapping(where: str, value: Any) -> dict[str, Any]:
    """Returns `value` if it is a JSON object. Raises DataError otherwise."""
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a JSON object, got {type(value).__name__}")
    return value


def _without_indices(data: bytes) -> bytes:
    start = data.find(_INDICES)
    first, last = data.find(b"[", start), data.find(b"]", start)
    if start < 0 or not 0 <= first < last:
        return data
    if data[start + len(_INDICES) : last].translate(None, b" \t\r\n,0123456789") != b"[":
        return data  # not a plain list of numbers: leave it to the JSON parser
    return data[: first + 1] + data[last:]


def _status(value: Any) -> str:
    if value == DONE:
        return DONE
    if isinstance(value, str) and value.split(":")[0] in ("failed", "diverged"):
        return value
    raise DataError(f"`status` must be 'done', 'failed: …' or 'diverged: …', got {value!r}")


def _once(function: Callable[[Any], T], value: Any) -> T:
    """Returns `function(value)`, computed only once for equal JSON values. Records then share the
    result, which saves memory, and `each_once` recognizes it as the same object."""
    # Only equal values have equal bytes; as keys of a dict, 1, 1.0 and True would be equal.
    key = function, dumps(value, 2)
    found = _KNOWN.get(key)
    if found is None:
        if len(_KNOWN) > _DISTINCT:
            _KNOWN.clear()
        found = _KNOWN.setdefault(key, function(value))
    return cast(T, found)


def _itself(value: Any) -> Any:
    return value


def _run(run: dict[str, Any]) -> dict[str, Any]:
    """Removes from `run` what tables do not need, to save memory and time when there are ten
    thousand records."""
    run.pop("code", None)
    stages = run.get("stages")
    for stage in stages.values() if isinstance(stages, dict) else ():
        if isinstance(stage, dict):
            stage.pop("compute", None)
    for name in ("compute", "versions"):
        if name in run:
            run[name] = _once(_itself, run[name])
    return run


def _protocol(given: Any) -> dict[str, Any] | None:
    """Returns the resolved protocol, with version 1 if the record states none."""
    values = _scalars("protocol", given)
    return {"version": 1} | values if values else None


def _scalars(where: str, value: Any) -> dict[str, Any]:
    values = mapping(f"`{where}`", value if value is not None else {})
    for key, item in values.items():
        if type(item) in _PLAIN:
            continue
        if isinstance(item, (dict, list)) or (isinstance(item, float) and not math.isfinite(item)):
            raise DataError(f"`{where}.{key}` must be text, a finite number or null, got {item!r}")
    return values


def _canonical(config: Any, seed: int) -> str | None:
    """Returns the config as JSON text without the seed, so that runs that differ only in the seed
    have equal text."""
    if not isinstance(config, dict) or not config:
        return None
    # Performance: without the seed, a sweep has few distinct configs.
    own = type(config.get("seed")) is int and config["seed"] == seed
    text = _once(sorted_text, {k: v for k, v in config.items() if not own or k != "seed"})
    entry = f'"seed": {seed}'
    if entry not in text:
        return text
    # Quotes inside strings are escaped, so a string cannot be mistaken for the key.
    for found, left in ((f", {entry},", ","), (f", {entry}}}", "}"), (f"{{{entry}, ", "{"),
                        (f"{{{entry}}}", "{}")):  # fmt: skip
        text = text.replace(found, left)
    return text


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the finite numbers of a record. Omits null, NaN and infinities, and raises DataError
    for other values."""
    parts: tuple[tuple[str, Any, Iterable[str], float], ...] = (
        ("counts.", record.get("counts"), COUNTS, _LARGEST),
        ("", record, (*FIGURES, *WORTH), 1),
        ("detection.", record.get("detection"), DETECTION, 1),
    )
    numbers = {}
    for where, part, names, high in parts:
        values = mapping(f"`{where[:-1]}`", part if part is not None else {})
        for name in names:
            given: Any = values.get(name)
            if type(given) in _NUMERIC and 0 <= given <= high:
                numbers[name] = float(given)
            elif given is not None:
                value = _number(where + name, given, high)
                if value is not None:
                    numbers[name] = value
    by_class = per_class_of(record)
    return numbers | _under(record) | ({} if by_class is None else by_class.measures)


def _under(record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the measures under each transformation, by their names in tables."""
    numbers = {}
    for name, part in mapping("`under`", record.get("under", {})).items():
        if not _TRANSFORMATION.fullmatch(name):
            raise DataError(f"each key of `under` must name a transformation, got {name!r}")
        for figure, given in mapping(f"`under.{name}`", part).items():
            if figure not in TRANSFORMED:
                raise DataError(f"`under.{name}.{figure}` is not a known measure")
            value = None if given is None else _number(f"under.{name}.{figure}", given, 1)
            if value is not None:
                numbers[under_name(figure, name)] = value
    return numbers


def _number(where: str, value: Any, high: float) -> float | None:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    found = non_negative(value, high=high)
    if found is None:
        raise DataError(f"`{where}` must satisfy 0 <= {where} <= {high:g}, got {value!r}")
    return found
