"""Several data sets in one sweep: glob patterns for their paths, and short names in tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.sweep.roots import apart, quoted, with_patterns
from tests.helpers.cells import TINY, started
from tests.helpers.image_files import parts


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/x/d1/set.npz", "/x/d2/set.npz"], ["d1", "d2"]),
        (["/x/d1/v1/set.npz", "/x/d2/v1/set.npz"], ["d1", "d2"]),
        (["/x/a/p/s.npz", "/x/a/q/s.npz", "/x/b/p/s.npz"], ["a/p", "a/q", "b/p"]),
        (["/x/Set.npz", "/x/set.npz"], ["Set.npz", "set.npz"]),
        (["/x/s.npz", "/x/old/s.npz"], ["x/s.npz", "old/s.npz"]),
        (["/s", "/a/s"], ["/s", "a/s"]),
        (["/x/猫/s", "/x/犬/s"], ["猫", "犬"]),
    ],
)
def test_data_paths_are_shortened_to_the_part_in_which_they_differ(
    paths: list[str], expected: list[str]
) -> None:
    found = apart([Path(path).parts for path in paths])
    assert [each.replace("//", "/") for each in found] == expected
    assert len(set(found)) == len(found)


def replaced(*arguments: str) -> list[str]:
    return with_patterns(OverridesParser.create().parse_overrides(list(arguments)))


def test_file_name_patterns_are_replaced_by_the_matching_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "set.npz").touch()
    every = "dataset.root='a/set.npz','b/set.npz','c/set.npz'"
    assert replaced("seed=1,2", "dataset.root=*/set.npz") == ["seed=1,2", every]
    assert replaced("dataset.root='*/set.npz'") == [every]
    assert replaced("dataset.root=glob(*/set.npz)") == [every]
    assert replaced("dataset.root=glob(*/set.npz,exclude=b/*)") == [
        "dataset.root='a/set.npz','c/set.npz'"
    ]
    assert replaced("dataset.root=c/*.npz,a/set.npz") == ["dataset.root='c/set.npz','a/set.npz'"]
    assert replaced("dataset.root=?/set.npz") == [every]
    same = ["dataset.root=a/set.npz,b/set.npz", "dataset.root=null", "~dataset.root", "a=b*"]
    assert replaced(*same) == same
    with pytest.raises(ConfigError, match=r"nothing matches the pattern x/\*\.npz"):
        replaced("dataset.root=x/*.npz")


def test_the_name_of_an_existing_file_is_not_taken_for_a_pattern(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a[1].npz").touch()
    (tmp_path / "a1.npz").touch()
    assert replaced("dataset.root='a[1].npz'") == ["dataset.root='a[1].npz'"]


@pytest.mark.parametrize("name", ["it's", 'a"b', "a,b", "a b", "a\\b", "a\\'b", "${x}", "é=1"])
def test_a_file_name_that_replaces_a_glob_is_quoted_for_hydra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (text,) = replaced("dataset.root=*")
    (override,) = OverridesParser.create().parse_overrides([text])
    assert override.value() == name
    assert quoted(name).startswith("'")


def test_a_file_name_pattern_is_refused_in_a_command_that_is_not_a_sweep(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"patterns like this work only in sweeps, with -m"):
        ArrayFile(root=str(tmp_path / "*.npz")).fingerprint()
    with pytest.raises(DataError, match=r"patterns like this work only in sweeps, with -m"):
        ImageFolder(root=str(tmp_path / "*.zip")).fingerprint()


def test_data_sets_with_equal_file_names_are_named_by_their_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("d1", "d2"):
        (tmp_path / name).mkdir()
        images = rng.integers(0, 256, (40, 8, 8, 3), np.uint8)
        labels = np.arange(40) % 2
        changed = {"train_images": images, "train_labels": labels}
        changed |= {"test_images": images, "test_labels": labels}
        np.savez(tmp_path / name / "set.npz", **parts(**changed))
    words = [word for word in TINY if not word.startswith("dataset")]
    run = started(
        tmp_path, "-m", *words, "dataset=arrays", "dataset.root=d*/set.npz", "target=0",
        "hydra.sweep.dir=out", "retrain=false",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("out/*/record.json")]
    assert sorted(record["choices"]["dataset"] for record in records) == ["d1", "d2"]
    assert [record["config"]["dataset"] for record in records] == [None, None]
    asked = json.loads((tmp_path / "out/sweep.json").read_text())["asked"]
    assert sorted(each["choices"]["dataset"] for each in asked) == ["d1", "d2"]
    assert "d1" in run.stdout
    assert "config data" not in run.stdout
    # In a separate sweep the cell has the same id, since the displayed name is not part of it.
    again = started(
        tmp_path, "-m", *words, "dataset=arrays", "dataset.root=d1/set.npz", "target=0",
        "hydra.sweep.dir=out", "retrain=false",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert "1 of 1 cell already done" in again.stdout
