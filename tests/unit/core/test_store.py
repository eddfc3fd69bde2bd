"""The store: artifacts are published once, verified when read, set aside when damaged, and never
partial."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core import store as store_module
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.errors import ConfigError, DivergedError, StoreError
from backdoor_lab.core.small_files import DamagedFileError
from backdoor_lab.core.store import MANIFEST, Artifact, Store, read_manifest

INPUTS: dict[str, Any] = {"version": 1, "ratio": 0.05, "upstream": "0a1b"}
WHOLE = bytes(range(256)) * 8


class Make:
    """A stage that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, folder: Path) -> dict[str, Any]:
        self.calls += 1
        (folder / "weights.bin").write_bytes(WHOLE)
        (folder / "empty.bin").write_bytes(b"")
        return {"nat": 0.9531, "n": 7, "loss": [1.5, 0.25], "notes": None}


def get(root: Path, make: Callable[[Path], dict[str, Any]], inputs: Any = None) -> Artifact:
    """Get an artifact as a new process does, without memory of earlier reads."""
    return Store(root).get("train", inputs or INPUTS, make)


def aside(root: Path) -> list[Path]:
    return list(root.glob("train/.bad-*"))


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "train").iterdir())


def test_an_artifact_is_computed_once_and_read_afterwards(tmp_path: Path) -> None:
    make = Make()
    first = get(tmp_path, make)
    again = get(tmp_path, make)
    assert make.calls == 1
    assert (first.made, again.made) == (True, False)
    assert first.meta == again.meta == {"nat": 0.9531, "n": 7, "loss": [1.5, 0.25], "notes": None}
    assert first.path == again.path
    assert (again.path / "weights.bin").read_bytes() == WHOLE
    assert folders(tmp_path) == [first.id]


def test_the_manifest_holds_inputs_sizes_and_hashes(tmp_path: Path) -> None:
    manifest = json.loads((get(tmp_path, Make()).path / MANIFEST).read_text())
    assert manifest["stage"] == "train"
    assert manifest["inputs"] == INPUTS
    assert manifest["files"]["weights.bin"]["size"] == len(WHOLE)
    assert set(manifest["files"]) == {"weights.bin", "empty.bin"}


def test_metadata_is_the_same_whether_just_computed_or_read_from_the_store(tmp_path: Path) -> None:
    """In both cases, tuples become lists and numeric keys become strings."""
    first = get(tmp_path, lambda _: {"sizes": (1, 2), "by_class": {2: 1, 10: 3}})
    again = get(tmp_path, Make())
    assert first.meta == again.meta == {"sizes": [1, 2], "by_class": {"2": 1, "10": 3}}
    assert not aside(tmp_path)


@pytest.mark.parametrize(
    "other", [{"ratio": 0.1}, {"version": 2}, {"upstream": None}, {"ratio": "0.05"}, {"more": 1}]
)
def test_different_inputs_give_a_different_artifact_id(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    """The order of keys does not matter."""
    first = get(tmp_path, Make())
    assert get(tmp_path, Make(), INPUTS | other).id != first.id
    assert get(tmp_path, Make(), dict(reversed(INPUTS.items()))).id == first.id
    assert Store(tmp_path).identity("retrain", INPUTS) != first.id


@pytest.mark.parametrize("name", ["weights.bin", MANIFEST])
@pytest.mark.parametrize("eighth", range(8))
def test_a_truncated_file_is_set_aside_and_computed_again(
    tmp_path: Path, name: str, eighth: int
) -> None:
    make = Make()
    path = get(tmp_path, make).path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * eighth // 8])
    assert get(tmp_path, make).made
    assert make.calls == 2
    assert len(aside(tmp_path)) == 1
    assert not get(tmp_path, make).made


@pytest.mark.parametrize("name", ["weights.bin", MANIFEST])
def test_a_single_flipped_bit_is_detected_and_repaired(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The bit is in a file of the artifact or in the manifest, which includes the metadata."""
    make = Make()
    chance = random.Random(5)
    good = get(tmp_path, make)
    for flips in range(1, 25):
        path = good.path / name
        data = bytearray(path.read_bytes())
        # The first flip turns a published accuracy of 0.9531 into 0.8531, which is valid JSON.
        figure = data.find(b"9531") if name == MANIFEST and flips == 1 else -1
        where = figure if figure >= 0 else chance.randrange(len(data))
        data[where] ^= 1 if figure >= 0 else 1 << chance.randrange(8)
        path.write_bytes(data)
        again = get(tmp_path, make)
        assert again.meta == good.meta
        assert make.calls == 1 + flips, (where, bytes(data))
        assert len(aside(tmp_path)) == flips
    assert "set aside" in caplog.text


def test_an_artifact_with_a_missing_file_is_set_aside_and_computed_again(tmp_path: Path) -> None:
    make = Make()
    for name in ("weights.bin", MANIFEST):
        (get(tmp_path, make).path / name).unlink()
        assert get(tmp_path, make).made
    assert make.calls == 3
    assert len(aside(tmp_path)) == 2
    assert not get(tmp_path, make).made


def test_unpublished_folders_of_killed_processes_are_ignored(tmp_path: Path) -> None:
    """One folder has a manifest, and the other is empty."""
    parts = tmp_path / "train/.part-0123"
    parts.mkdir(parents=True)
    (parts / MANIFEST).write_text("{}")
    (tmp_path / "train" / Store(tmp_path).identity("train", INPUTS)).mkdir()
    assert Store(tmp_path).find("train", INPUTS) is None
    assert get(tmp_path, Make()).made
    assert Store(tmp_path).find("train", INPUTS)
    assert (parts / MANIFEST).read_text() == "{}"


def test_a_failed_computation_publishes_nothing(tmp_path: Path) -> None:
    """The error is raised, the lease is released, and the next call computes."""

    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half.bin").write_bytes(WHOLE)
        raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted"):
        get(tmp_path, fail)
    assert folders(tmp_path) == []
    assert get(tmp_path, Make()).made


def test_an_artifact_with_nan_in_its_metadata_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?i)not JSON compliant"):
        get(tmp_path, lambda _: {"loss": float("nan")})
    assert folders(tmp_path) == []


@pytest.mark.parametrize("name", ["A.bin", "a b", "$(id)", "x" * 65])
def test_unsafe_file_names_are_refused(tmp_path: Path, name: str) -> None:
    """They have capital letters, spaces or shell syntax, or are too long."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / name).write_bytes(b"")
        return {}

    with pytest.raises(ConfigError, match="must match"):
        get(tmp_path, make)
    assert folders(tmp_path) == []


@pytest.mark.parametrize("stage", ["", "..", "../x", "a/b", "Train", "/etc", "a b"])
def test_unsafe_stage_names_are_refused(tmp_path: Path, stage: str) -> None:
    """The name of a stage becomes a folder name."""
    with pytest.raises(ConfigError, match="`stage` must match"):
        Store(tmp_path).get(stage, INPUTS, Make())
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_whose_inputs_do_not_match_its_id_is_an_error(tmp_path: Path) -> None:
    """The seal of the manifest is valid."""
    path = get(tmp_path, Make()).path / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["inputs"]["ratio"] = 0.1
    del manifest["seal"]
    path.write_text(json.dumps(manifest | {"seal": digest(manifest)}))
    with pytest.raises(StoreError, match="lists other inputs"):
        get(tmp_path, Make())


@pytest.mark.parametrize("seal", [None, "0" * 64, ""])
def test_a_manifest_with_a_missing_or_wrong_seal_is_damaged(
    tmp_path: Path, seal: str | None
) -> None:
    path = get(tmp_path, Make()).path / MANIFEST
    manifest = {k: v for k, v in json.loads(path.read_text()).items() if k != "seal"}
    path.write_text(json.dumps(manifest if seal is None else manifest | {"seal": seal}))
    with pytest.raises(DamagedFileError, match=r"manifest\.json"):
        read_manifest(path.parent)
    again = Make()
    get(tmp_path, again)
    assert again.calls == 1


def test_the_scratch_folder_survives_a_failure_and_is_removed_on_success(tmp_path: Path) -> None:
    """Checkpoints of an unfinished stage are kept for the next attempt."""
    scratch = Store(tmp_path).scratch("train", INPUTS)
    scratch.mkdir(parents=True)
    (scratch / "epoch1.ckpt").write_bytes(WHOLE)
    with pytest.raises(ZeroDivisionError):
        get(tmp_path, lambda _: {"x": 1 // 0})
    assert (scratch / "epoch1.ckpt").exists()
    get(tmp_path, Make())
    assert not scratch.exists()


def test_an_artifact_is_hashed_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing gigabytes for each of many cells would cost more than reading them."""
    store = Store(tmp_path)
    hashed: list[Path] = []
    store.get("train", INPUTS, Make())
    monkeypatch.setattr(store_module, "sha256_of", hashed.append)
    assert not store.get("train", INPUTS, Make()).made
    assert hashed == []


class Diverging(Make):
    """A stage that always raises DivergedError."""

    def __call__(self, folder: Path) -> dict[str, Any]:
        super().__call__(folder)
        raise DivergedError(f"loss is nan at call {self.calls}")


def test_a_stage_whose_divergence_is_in_the_failure_folder_is_not_computed_again(
    tmp_path: Path,
) -> None:
    """Every store with the same failure folder raises the same error until the folder is emptied.
    Other inputs, and stores without the folder, are unaffected."""
    make, failures = Diverging(), tmp_path / "failures"
    for _ in range(3):
        with pytest.raises(DivergedError, match="loss is nan at call 1"):
            Store(tmp_path / "store", failures).get("train", INPUTS, make)
    assert make.calls == 1
    assert Store(tmp_path / "store", failures).get("train", INPUTS | {"version": 2}, Make()).made
    with pytest.raises(DivergedError, match="call 2"):
        Store(tmp_path / "store").get("train", INPUTS, make)
    for note in failures.iterdir():
        note.unlink()
    with pytest.raises(DivergedError, match="call 3"):
        Store(tmp_path / "store", failures).get("train", INPUTS, make)


def test_only_diverged_errors_are_kept_in_the_failure_folder(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        raise MemoryError

    with pytest.raises(MemoryError):
        Store(tmp_path, tmp_path / "failures").get("train", INPUTS, fail)
    assert Store(tmp_path, tmp_path / "failures").get("train", INPUTS, Make()).made
