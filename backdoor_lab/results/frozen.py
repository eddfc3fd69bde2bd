"""The frozen form of a finished sweep: three files instead of a folder per cell.

- ``sweep.json``: the commands, machines (processor, instruction set, threads, floating-point
  precision), versions, requested cells, and the hash of ``records.jsonl``;
- ``records.jsonl``: one line per record with its seal (a SHA-256 of the line), in the order of the
  sweep. The removal curve and poison indices are replaced by their hashes, and a stage's library
  versions are omitted if equal to the run's;
- ``tables.md``: the tables, for reading.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import canonical, digest
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import read_json, read_small
from backdoor_lab.results.seal import check_seal, sealed, unix_lines

SWEEP, RECORDS, TABLES = "sweep.json", "records.jsonl", "tables.md"
SCHEMA = 1
MAX_BYTES = 2**30
# Matches a path outside the working directory, which is reduced to its last component.
_OUTSIDE = re.compile(
    r"(?<![\w.~/-])(?:~[\w.-]*/|/(?!/)|\.\./)(?:[^\s'\",=]*/)?([^/\s'\",=]+)"
    r"|(?<!\w)[A-Za-z]:\\(?:[^\s'\",=]*\\)?([^\\\s'\",=]+)"
)


def frozen_record(record: Mapping[str, Any], *, keep_curve: bool = False) -> dict[str, Any]:
    """Returns the frozen form of a record: hashes instead of long lists, and no machine-specific
    paths."""
    kept: dict[str, Any] = {k: v for k, v in record.items() if k not in ("poison_indices", "seal")}
    indices, hashes = record.get("poison_indices"), dict(record.get("hashes") or {})
    if isinstance(indices, list) and hashes.setdefault("poison", digest(indices)) != digest(
        indices
    ):
        raise DataError(f"{record.get('id')}: `hashes.poison` does not match `poison_indices`")
    detection = record.get("detection")
    if isinstance(detection, dict) and detection.get("curve") is not None:
        hashes["curve"] = digest(detection["curve"])
        if not keep_curve:
            kept["detection"] = {k: v for k, v in detection.items() if k != "curve"}
    found: dict[str, Any] = without_outside_paths(kept | {"hashes": hashes, "run": _run(record)})
    return found


def _run(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section `run` of a record. A stage's library versions are omitted if they equal
    those of the run."""
    run = dict(record.get("run") or {})
    stages = {name: dict(stage) for name, stage in (run.get("stages") or {}).items()}
    for stage in stages.values():
        if stage.get("versions") == run.get("versions"):
            stage.pop("versions", None)
    return run | {"stages": stages} if stages else run


def without_outside_paths(value: Any) -> Any:
    """Reduces paths outside the working directory to their last component, in all strings of a JSON
    value.

    >>> without_outside_paths("python -m x out=../runs/a")
    'python -m x out=a'
    """
    if isinstance(value, str):
        return _OUTSIDE.sub(lambda found: found[1] or found[2], value)
    if isinstance(value, Mapping):
        return {without_outside_paths(k): without_outside_paths(v) for k, v in value.items()}
    return [*map(without_outside_paths, value)] if isinstance(value, list) else value


def lines_of(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns the content of records.jsonl: one line per record."""
    return "".join(sealed(canonical(record)) for record in records)


def description(
    name: str, command: str, asked: list[Any], records: list[dict[str, Any]], lines: str
) -> dict[str, Any]:
    """Returns the content of sweep.json. `asked`: the requested cells. `records`: their records.
    `lines`: the content of records.jsonl."""
    runs = sorted((r["run"] for r in records if r.get("run")), key=lambda r: str(r.get("started")))
    started = [str(run["started"]) for run in runs if run.get("started")]
    return {
        "schema": SCHEMA,
        "name": name,
        "command": without_outside_paths(command),
        "commands": _distinct([run.get("command") for run in runs] + [command]),
        # Old records have no `compute`, only the device's name.
        "machines": _distinct(run.get("compute") or run.get("device") for run in runs),
        "versions": _distinct(run.get("versions") for run in runs),
        "commits": _distinct(run.get("git_commit") for run in runs),
        "first_started": min(started, default=None),
        "last_started": max(started, default=None),
        "hours": round(_seconds(runs) / 3600, 2),
        "cells": len(records),
        "records_sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "asked": asked,
    }


def _seconds(runs: Iterable[Mapping[str, Any]]) -> float:
    """Returns the total seconds of the stages; a stage shared by several cells counts once."""
    took: dict[Any, float] = {}
    for number, run in enumerate(runs):
        for stage, seconds in (run.get("seconds") or {}).items():
            made = (run.get("stages") or {}).get(stage) or {}
            took[made.get("id") or (number, stage)] = float(seconds)
    return sum(took.values())


def readable(content: Mapping[str, Any]) -> str:
    """Returns the text of sweep.json: one line per key and per list entry."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            entries = ",\n  ".join(canonical(each) for each in value)
            parts.append(f'"{key}": [\n  {entries}\n ]')
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def frozen_lines(folder: Path) -> Iterator[bytes]:
    """Yields the lines of a frozen sweep's records.jsonl after checking their seals; nothing if the
    file does not exist.

    Raises DataError with the file and line if a seal does not match, and if lines were added,
    removed or moved since sweep.json was written.
    """
    path = folder / RECORDS
    try:
        data = read_small(path, max_bytes=MAX_BYTES)
    except FileNotFoundError:
        if _said_hash(folder):
            raise DataError(
                f"{path} is missing, but {SWEEP} in the same folder contains its hash: restore"
                " the missing file from version control"
            ) from None
        return
    for number, line in enumerate(io.BytesIO(data), 1):
        try:
            check_seal(line)
        except DataError as error:
            raise DataError(
                f"{path}, line {number} ({_id_in(line)}): {error}. Restore the file from version"
                " control"
            ) from error
        yield line
    _check_whole(folder, path, data)


def _said_hash(folder: Path) -> str | None:
    try:
        # Performance: the list of a sweep that is not frozen can be long; it need not be decoded.
        if b"records_sha256" not in read_small(folder / SWEEP):
            return None
        return str(read_json(folder / SWEEP)["records_sha256"])
    except (OSError, DataError, KeyError, TypeError):
        return None


def _check_whole(folder: Path, path: Path, data: bytes) -> None:
    said = _said_hash(folder)
    if said is None:
        raise DataError(
            f"{path}: {SWEEP} in the same folder does not contain the hash of this file: restore"
            " both files from version control"
        )
    if hashlib.sha256(unix_lines(data)).hexdigest() != said:
        raise DataError(
            f"{path}: lines have been added, removed or moved since {SWEEP} was written; restore"
            " both files from version control"
        )


def _id_in(line: bytes) -> str:
    found = re.search(rb'"id":\s*"([\w.-]{1,80})"', line)
    return found[1].decode() if found else "no id can be read"


def _distinct(values: Iterable[Any]) -> list[Any]:
    found = {canonical(value): value for value in values if value}
    listed: list[Any] = without_outside_paths([*found.values()])
    return listed
