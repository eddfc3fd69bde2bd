"""The stage store: outputs of stages, each published once under a hash of its inputs.

<root>/<stage>/<id>/manifest.json + files      a published output (one atomic rename)
<root>/<stage>/<id>.claim                      a process is computing this output
<root>/<stage>/.work-<id>/                     checkpoints of an unfinished stage
<root>/<stage>/.bad-<id>-...                   a damaged output that was set aside
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.core import failpoints, validation
from backdoor_lab.core.atomic_io import (
    canonical,
    digest,
    room,
    sha256_of,
    sync_folder,
    write_atomic,
    write_through,
)
from backdoor_lab.core.errors import DivergedError, StoreError
from backdoor_lab.core.lease import Lease
from backdoor_lab.core.small_files import (
    DamagedFileError,
    clear_folder,
    make_folder,
    read_json,
    read_small,
    set_aside,
)

MANIFEST = "manifest.json"
INSTEAD = " or set `store.root` to another disk"
SHAPE: dict[str, Any] = {
    "stage": str, "inputs": dict, "meta": dict, "files": dict, "seconds": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class Artifact:
    """A published output of a stage. `made`: whether the call that returned this artifact computed
    the output; `seconds`: how long the original computation took; `meta`: the small JSON value that
    the stage returned."""

    path: Path
    id: str
    meta: dict[str, Any]
    made: bool
    seconds: float


class Store:
    """Published stage outputs under one root folder, shared by processes and machines.

    `diverged` is a folder in which the store notes the stages that raised DivergedError, so that a
    stage shared by several cells fails only once. The store never deletes these notes. If
    `read_only` is set, damaged outputs count as missing and are not set aside.
    """

    def __init__(
        self, root: Path | str, diverged: Path | None = None, *, read_only: bool = False
    ) -> None:
        self.root, self.diverged, self.read_only = Path(root), diverged, read_only
        self._verified: set[str] = set()

    def identity(self, stage: str, inputs: dict[str, Any]) -> str:
        """Returns the id of a stage's output: a hash of the stage's name and inputs."""
        return digest({"stage": stage, "inputs": inputs}, 32)

    def find(self, stage: str, inputs: dict[str, Any]) -> Artifact | None:
        """Returns the published output for `inputs`, or None. Computes nothing."""
        return self._read(stage, self._folder(stage, self.identity(stage, inputs)), inputs)

    def scratch(self, stage: str, inputs: dict[str, Any]) -> Path:
        """Returns the folder for checkpoints of a stage. The folder remains if the process is
        killed; it is removed when the output is published."""
        return self._folder(stage, f".work-{self.identity(stage, inputs)}")

    def get(
        self, stage: str, inputs: dict[str, Any], make: Callable[[Path], dict[str, Any]]
    ) -> Artifact:
        """Returns the published output for `inputs`. If there is none, `make(folder)` creates it.

        `make` writes plain files into `folder` and returns a small JSON value. Only one process
        creates an output; others wait and read it. Raises StoreFullError if the disk is full,
        StoreError if the stored inputs differ from `inputs` although the id is the same.
        """
        validation.safe_name("stage", stage)
        entry_id = self.identity(stage, inputs)
        folder = self._folder(stage, entry_id)
        entry = self._read(stage, folder, inputs)
        if entry is not None:
            # The checkpoints remain if a process was killed between publishing and cleanup.
            shutil.rmtree(self.scratch(stage, inputs), ignore_errors=True)
            return entry
        claim = Lease(folder.with_name(f"{entry_id}.claim"))
        with room(folder, instead=INSTEAD):
            make_folder(folder.parent)
            claimed = claim.acquire((folder / MANIFEST).is_file)
        try:
            # Another process may have published between the first check and the claim.
            entry = self._read(stage, folder, inputs)
            for token in filter(validation.NAME.match, claim.evicted):
                shutil.rmtree(_part(folder, token), ignore_errors=True)
            return entry or self._make(stage, folder, inputs, make, _part(folder, claim.token))
        finally:
            if claimed:
                claim.release()

    def _folder(self, stage: str, entry_id: str) -> Path:
        return self.root / stage / entry_id

    def _make(
        self,
        stage: str,
        folder: Path,
        inputs: dict[str, Any],
        make: Callable[[Path], dict[str, Any]],
        part: Path,
    ) -> Artifact:
        scratch = self.scratch(stage, inputs)
        try:
            with room(folder, instead=INSTEAD):
                part.mkdir()
                clear_folder(scratch)
                failpoints.point(f"{stage}.before")
                began = time.perf_counter()
                with self._remembered(stage, folder.name):
                    meta = make(part)
                seconds = time.perf_counter() - began
                failpoints.point(f"{stage}.made")
                _seal(part, stage, inputs, meta, seconds)
                _publish(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        failpoints.point(f"{stage}.published")
        shutil.rmtree(scratch, ignore_errors=True)
        entry = self._read(stage, folder, inputs)
        if entry is None:
            raise StoreError(f"{folder}: damaged while it was written; is the disk faulty?")
        return Artifact(entry.path, entry.id, entry.meta, True, seconds)

    @contextmanager
    def _remembered(self, stage: str, entry_id: str) -> Iterator[None]:
        note = None if self.diverged is None else self.diverged / f"{stage}-{entry_id}"
        if note is not None and note.is_file():
            raise DivergedError(read_small(note).decode(errors="replace"))
        try:
            yield
        except DivergedError as error:
            if note is not None:
                # If this file cannot be written, the next cell merely computes the stage again.
                with suppress(OSError, StoreError):
                    write_atomic(note, str(error).encode())
            raise

    def _read(self, stage: str, folder: Path, inputs: dict[str, Any]) -> Artifact | None:
        if not os.path.lexists(folder):
            return None
        try:
            which = os.lstat(folder).st_ino
            manifest = read_manifest(folder)
            damage = None if folder.name in self._verified else _lost(folder, manifest)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DamagedFileError as error:
            damage = str(error)
        if damage:
            if not self.read_only:
                set_aside(folder, damage, which)
            return None
        if canonical(manifest["inputs"]) != canonical(inputs):
            raise StoreError(
                f"{folder} has the id of this computation, but its manifest lists other inputs; was"
                " it edited? Remove the folder, then repeat the command."
            )
        self._verified.add(folder.name)
        return Artifact(folder, folder.name, manifest["meta"], False, manifest["seconds"])


def _part(folder: Path, token: str) -> Path:
    return folder.with_name(f".part-{token}")


def _seal(
    part: Path, stage: str, inputs: dict[str, Any], meta: dict[str, Any], seconds: float
) -> None:
    files = {}
    for path in sorted(part.iterdir()):
        validation.safe_name(f"file in stage {stage}", path.name)
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
        files[path.name] = {"sha256": sha256_of(path), "size": path.stat().st_size}
    manifest = {
        "stage": stage,
        "inputs": inputs,
        "meta": meta,
        "files": files,
        "seconds": round(seconds, 3),
    }
    # Convert to what a reader of the file gets: JSON has neither tuples nor numeric keys.
    manifest = json.loads(json.dumps(manifest, allow_nan=False))
    text = json.dumps(manifest | {"seal": digest(manifest)}, indent=1, sort_keys=True)
    write_through(part / MANIFEST, text.encode())
    sync_folder(part)


def _publish(part: Path, folder: Path) -> None:
    try:
        os.rename(part, folder)
    except OSError:
        if not os.path.lexists(folder):
            raise
        # If another process published first, its output is identical: the inputs are the same.
        if not (folder / MANIFEST).is_file():
            set_aside(folder, f"{MANIFEST} is missing", os.lstat(folder).st_ino)
            os.rename(part, folder)
    sync_folder(folder.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of the published output in `folder`. Raises FileNotFoundError if the
    folder or its manifest does not exist, and DamagedFileError if `folder` is not a folder or if
    the manifest is damaged or was changed."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise DamagedFileError("not a folder")
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        said = {key: value for key, value in manifest.items() if key != "seal"}
        # The manifest holds the stage's metrics, so it also contains a hash of its other content.
        sealed = manifest["seal"] == digest(said)
        sound = all(isinstance(said[key], kind) for key, kind in SHAPE.items())
        sound = sound and all(_has_facts(facts) for facts in said["files"].values())
    except DamagedFileError as error:
        raise DamagedFileError(f"{MANIFEST} is damaged ({_told(error, path)})") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamagedFileError(f"{MANIFEST} is damaged (missing or invalid entries)") from error
    if not sealed:
        raise DamagedFileError(f"{MANIFEST} does not match its own hash")
    if not sound:
        raise DamagedFileError(f"{MANIFEST} is damaged (missing or invalid entries)")
    return manifest


def damage_in(folder: Path) -> str | None:
    """Returns a description of the damage to a published output; None if it is intact. Raises
    FileNotFoundError if it does not exist."""
    try:
        return _lost(folder, read_manifest(folder))
    except DamagedFileError as error:
        return str(error)


def _has_facts(facts: Any) -> bool:
    return isinstance(facts["sha256"], str) and isinstance(facts["size"], int)


def _told(error: DamagedFileError, path: Path) -> str:
    return str(error).removeprefix(f"{path} is ")


def _lost(folder: Path, manifest: dict[str, Any]) -> str | None:
    for name, facts in manifest["files"].items():
        if not validation.NAME.match(name):
            return f"unsafe file name {name!r}"
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["size"]:
            return f"{name} is missing or truncated"
        if sha256_of(path) != facts["sha256"]:
            return f"{name} does not match the hash it was published with"
    return None
