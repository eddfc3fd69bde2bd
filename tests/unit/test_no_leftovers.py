"""Refused commands and estimates leave no files behind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from backdoor_lab.core.atomic_io import readable
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.download import Official, obtain
from backdoor_lab.results.seal import sealed
from tests.helpers.cells import TINY, command, environment
from tests.helpers.program import many

REFUSED = {
    "an unknown key": (["nonsense=1"], "nonsense"),
    "a value out of its range": (["seed=-1"], "seed"),
    "a class that is not there": (["target=brid"], "brid"),
    "a network's width": (["model.width=0"], "model.width"),
    "a layer that is not there": (["protocol.layer=layer9"], "layer9"),
    "a budget's form": (["defense.removal_budget=lots"], "defense.removal_budget"),
    "a budget that leaves nothing": (["defense.removal_budget=500"], "nothing would be left"),
    "a rule of one filter": (
        ["defense=beatrix", "defense.reference=class", "defense.positions=7"],
        "defense.positions",
    ),
    "too few clean images": (
        ["defense=scan", "protocol.clean_holdout=3"],
        "protocol.clean_holdout",
    ),
    "a data set that is not there": (["dataset=cifar10", "dataset.root=data"], "cifar-10"),
    "a folder that is not there": (["dataset=image_folder", "dataset.root=no/where"], "no/where"),
    "a logger that is not installed": (["logger=wandb"], "wandb"),
    "a ratio of nothing": (["ratio=0.0001"], "ratio"),
}


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["single", "sweep"])
def test_a_refused_command_leaves_no_files(mode: list[str], tmp_path: Path) -> None:
    """This holds for every reason to refuse a command, even if the command names a folder for the
    cell."""
    (tmp_path / "multirun_reports").mkdir()
    where = "hydra.sweep.dir=a/b" if mode else "hydra.run.dir=a/b"
    tiny = [word for word in TINY if not word.startswith(("dataset", "logger"))]
    data = [word for word in TINY if word.startswith("dataset")]
    runs = []
    for number, (words, _) in enumerate(REFUSED.values()):
        own = [] if any(word.startswith("dataset=") for word in words) else data
        runs.append([*mode, *own, *tiny, *words, *[where] * (number % 2)])
    for (name, (_, part)), (code, _, said, _) in zip(
        REFUSED.items(), many(tmp_path, runs)[0], strict=True
    ):
        assert code == 2, (name, said)
        assert part in said, (name, said)
        assert len(said.strip().splitlines()) == 1, said
        assert said.startswith("error: ")
    assert tree(tmp_path) == ["multirun_reports"]


def test_an_estimate_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "multirun_reports").mkdir()
    words = [*TINY, "dry_run=true"]
    runs = [words, ["-m", *words, "seed=0,1"], [*words, "hydra.run.dir=a/b"],
            ["-m", *words, "hydra.sweep.dir=a"]]  # fmt: skip
    for code, said, errors, _ in many(tmp_path, runs)[0]:
        assert code == 0, errors
        assert " 0 done; " in said
    assert tree(tmp_path) == ["multirun_reports"]


def test_a_folder_with_the_record_of_another_cell_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    """No file is added or removed, and `sweep.json` does not change."""
    sweep = ["-m", *TINY, "retrain=false", "hydra.sweep.dir=here"]
    env = environment()
    first = subprocess.run(
        command(*sweep), cwd=tmp_path, env=env, text=True, capture_output=True, check=True
    )
    assert "1 of 1 cell done" in first.stdout
    (record,) = tmp_path.rglob("record.json")
    other = json.loads(record.read_text()) | {"id": "another-cell"}
    record.write_text(sealed(readable({k: v for k, v in other.items() if k != "seal"})))
    before = tree(tmp_path)
    listed = (tmp_path / "here/sweep.json").read_bytes()
    again = subprocess.run(
        command(*sweep, "seed=0,1"), cwd=tmp_path, env=env, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert "contains the record of another-cell" in again.stderr
    assert tree(tmp_path) == before
    assert (tmp_path / "here/sweep.json").read_bytes() == listed


@pytest.mark.parametrize("download", [True, False])
def test_a_failed_download_leaves_neither_folder_nor_lock(
    download: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(utils, "download_url", refuse)
    file = Official("x.bin", "0" * 32, ("https://nowhere.invalid/x.bin",))
    with pytest.raises(DataError, match="is not in"):
        obtain("x", tmp_path / "a/b", (file,), download=download, ready=lambda: False)
    assert os.listdir(tmp_path) == []
