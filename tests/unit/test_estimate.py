"""A sweep foretold: what is counted, what is left, and that nothing is done."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cells import CPU, cell_of, run_here, started
from safetensors.numpy import load_file

from backdoor_lab.reports.terminal import duration
from backdoor_lab.sweep import estimate as module
from backdoor_lab.sweep.estimate import calibrate, describe, estimate, missing_from
from backdoor_lab.sweep.preflight import Preflight

# Two seconds per trained image, and half a second per image without gradient.
SPEED = (2.0, 0.5)


@pytest.fixture
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "calibrate", lambda cell, data, machine: SPEED)


@pytest.mark.usefixtures("fixed_speed")
def test_shared_networks_are_counted_once(tmp_path: Path) -> None:
    """200 images and 6 poisoned ones; 50 clean and 45 triggered test images. Three defenses share
    one attacked network and its features: four trainings, four passes over the tests, one over
    the training images."""
    cells = [cell_of(tmp_path, f"defense={name}") for name in ("spectral", "none", "oracle")]
    work = estimate(cells, set(), CPU)
    assert work.trainings == 4
    extracted, tested = 206, 4 * 95
    assert work.seconds == pytest.approx(4 * 206 * 2.0 + (extracted + tested) * 0.5)
    assert [state for _, state in work.cells] == ["from poison on"] * 3


@pytest.mark.usefixtures("fixed_speed")
def test_what_is_there_is_not_counted(tmp_path: Path) -> None:
    """After one cell, the next defense trains one network and extracts nothing; its own record
    alone is missing to a cell whose stages are all there."""
    run_here(tmp_path, tmp_path / "cell")
    done, other = cell_of(tmp_path), cell_of(tmp_path, "defense=none")
    assert missing_from(done, tmp_path, CPU) == []
    assert missing_from(other, tmp_path, CPU) == ["filter"]
    work = estimate([done, other], set(), CPU)
    assert [state for _, state in work.cells] == ["record only", "from filter on"]
    assert work.trainings == 1
    assert work.seconds == pytest.approx(206 * 2.0 + 95 * 0.5)
    assert estimate([done], {done.id}, CPU).seconds == 0


@pytest.mark.usefixtures("fixed_speed")
@pytest.mark.parametrize("layer", ["penultimate", "layer3", "layer3:pool", "autoencoder"])
def test_as_many_bytes_as_the_store_then_holds(tmp_path: Path, layer: str) -> None:
    """Weights and features of two defenses that share both attacked network and features."""
    asked = [[f"defense={name}", f"protocol.layer={layer}"] for name in ("spectral", "none")]
    told = estimate([cell_of(tmp_path, *each) for each in asked], set(), CPU).bytes
    for number, each in enumerate(asked):
        run_here(tmp_path, tmp_path / f"cell{number}", *each)
    files = [
        path for stage in ("train", "retrain", "extract")
        for path in tmp_path.glob(f"{stage}/*/*.safetensors")
    ]  # fmt: skip
    assert len(files) == 4
    held = sum(each.nbytes for path in files for each in load_file(path).values())
    assert told == held


def test_a_disk_that_is_too_small_is_warned_of(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    work = module.Work([(cell_of(root), "from train on")], 1, 1.0, 10**15)
    line = describe(work, 1).splitlines()[-1]
    assert line.startswith(f"warning: networks and features take 1000000.0 GB in {root}, where")
    assert "store.root=PATH" in line
    room = describe(replace(work, bytes=5_000_000), 1).splitlines()[-1]
    assert room.startswith(f"networks and features take 5 MB in {root}, where ")
    assert room.endswith(" GB are free")


@pytest.mark.usefixtures("fixed_speed")
def test_an_attackers_own_network_is_a_training_too(tmp_path: Path) -> None:
    """One surrogate for two attacks that need one."""
    steps = "trigger.steps=1"
    cells = [cell_of(tmp_path, "trigger=label_consistent", steps, f"target={target}")
             for target in ("bird", "dog")]  # fmt: skip
    assert estimate(cells, set(), CPU).trainings == 5


def test_calibration_measures_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both speeds are positive, also where an epoch has fewer steps than the warm-up."""
    monkeypatch.setattr(module, "CALIBRATION_S", 0.05)
    for batch in (32, 150):
        cell = cell_of(tmp_path, f"recipe.batch={batch}")
        data = Preflight()._open(cell.config)[0]
        training, passing = calibrate(cell, data, CPU)
        assert training > 0
        assert passing > 0


def test_command_does_nothing(tmp_path: Path) -> None:
    """A sweep and a single cell: told, exit 0, and neither cell nor sweep nor table is there."""
    from cells import TINY

    for mode in (["-m"], []):
        done = started(tmp_path, *mode, *TINY, "dry_run=true")
        assert done.returncode == 0, done.stderr
        assert "1 cell, 0 done; 2 trainings to do" in done.stdout
    assert not [*tmp_path.rglob("record.json"), *tmp_path.rglob("sweep.json")]
    assert not [*tmp_path.glob("multirun_reports/.store/train/*")]
    again = started(tmp_path, *TINY)
    assert again.returncode == 0, again.stderr
    (record,) = tmp_path.rglob("record.json")
    assert json.loads(record.read_text())["status"] == "done"
    said = started(tmp_path, *TINY, "dry_run=true").stdout
    assert "1 cell, 1 done; 0 trainings to do" in said


def test_description_lists_every_cell(tmp_path: Path) -> None:
    cell = cell_of(tmp_path)
    work = module.Work([(cell, "done")], 0, 0.0)
    assert describe(work, 1).splitlines()[0] == f"{cell.id}  done"


def test_the_whole_in_one_line(tmp_path: Path) -> None:
    """With several cells at a time both times are said, with one the one."""
    work = module.Work([(cell_of(tmp_path), "from train on")], 1, 7200.0)
    alone, paired = (describe(work, n).splitlines()[-1] for n in (1, 2))
    head = "1 cell, 0 done; 1 training to do: about"
    assert alone == f"{head} 2.0 h (from a calibration on this machine)"
    assert paired.startswith(
        f"{head} 60 min with 2 cells side by side (2.0 h of one cell after the other; from a"
    )


def test_words() -> None:
    assert [duration(s) for s in (0.4, 89, 600, 7200)] == ["0 s", "89 s", "10 min", "2.0 h"]


@pytest.mark.usefixtures("fixed_speed")
def test_oracles_of_a_seed_share_the_clean_set(tmp_path: Path) -> None:
    """Two attacks, two defenses: without its appended poison every attack is the clean set."""
    cells = [cell_of(tmp_path, f"defense={name}", f"target={target}", *more)
             for more in ([], ["seed=1"]) for target in ("bird", "dog")
             for name in ("none", "oracle")]  # fmt: skip
    assert estimate(cells, set(), CPU).trainings == 2 * (2 + 2 + 1)
    replaced = [cell_of(tmp_path, "defense=oracle", "protocol.inject=replace", f"target={target}")
                for target in ("bird", "dog")]  # fmt: skip
    assert estimate(replaced, set(), CPU).trainings == 4


@pytest.mark.usefixtures("fixed_speed")
@pytest.mark.parametrize(("grid", "trainings"), [
    # Without poison all attacks are one set: trained once, and once again for what stays.
    (["trigger=pixel,pattern target=bird,dog ratio=0 defense=spectral,none,oracle"], 2),
    # Two sets of images share nothing.
    (["dataset.seed=11,12 defense=spectral"], 4),
    (["dataset.seed=11,12 defense=oracle"], 4),
    # Covers stay when the poison goes.
    (["trigger=pixel,pattern covers=1 defense=oracle"], 4),
    (["trigger=pixel,pattern covers=1 defense=clean_data"], 3),
    (["trigger=pixel,pattern defense=oracle"], 3),
])  # fmt: skip
def test_as_many_trainings_as_the_sweep_then_makes(
    tmp_path: Path, grid: list[str], trainings: int
) -> None:
    """What is said before, what the store holds after the same cells ran, and what is said then."""
    cells = [cell_of(tmp_path, *each) for each in _product(grid[0])]
    assert estimate(cells, set(), CPU).trainings == trainings
    for number, each in enumerate(_product(grid[0])):
        run_here(tmp_path, tmp_path / f"cell{number}", *each)
    made = [*tmp_path.glob("train/*/weights*"), *tmp_path.glob("retrain/*/weights*")]
    assert len(made) == trainings
    after = estimate(cells, set(), CPU)
    assert after.trainings == 0
    assert {state for _, state in after.cells} == {"record only"}


@pytest.mark.usefixtures("fixed_speed")
def test_a_clean_network_that_is_there_serves_another_attack(tmp_path: Path) -> None:
    run_here(tmp_path, tmp_path / "cell", "defense=oracle")
    other = cell_of(tmp_path, "defense=oracle", "trigger=pattern")
    assert estimate([other], set(), CPU).trainings == 1


@pytest.mark.usefixtures("fixed_speed")
@pytest.mark.parametrize("change", ["protocol.asr_on=all", "protocol.holdout=10"])
def test_other_measurements_train_nothing(tmp_path: Path, change: str) -> None:
    """Two passes over 50 clean test images, or the 40 not held out, and the triggered ones."""
    run_here(tmp_path, tmp_path / "cell")
    work = estimate([cell_of(tmp_path, change)], set(), CPU)
    assert [state for _, state in work.cells] == ["from measure on"]
    assert work.trainings == 0
    assert 0 < work.seconds <= 2 * 100 * 0.5


def _product(grid: str) -> list[list[str]]:
    named = [word.split("=") for word in grid.split()]
    values = itertools.product(*(choices.split(",") for _, choices in named))
    keys = [key for key, _ in named]
    return [[f"{k}={v}" for k, v in zip(keys, each, strict=True)] for each in values]
