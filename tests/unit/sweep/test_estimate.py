"""The estimate of a sweep: what it counts, and that it computes nothing."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from backdoor_lab.core.terminal import duration
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.sweep import calibrate as calibrate_module
from backdoor_lab.sweep import forecast
from backdoor_lab.sweep.calibrate import Calibration, Rate, Speed
from backdoor_lab.sweep.estimate import Amount, Work, estimate, missing_from
from backdoor_lab.sweep.forecast import describe
from backdoor_lab.sweep.manifest import distinguishing_options
from backdoor_lab.sweep.roots import requested
from tests.helpers.cells import CPU, cell_of, run_here, started

# Per image: two seconds to train, half a second to evaluate, one second to extract features.
SPEED = Speed(Rate(2.0, 2.0), Rate(0.5, 0.5), Rate(1.0, 1.0))
IDLE = Calibration({"kind": SPEED}, 0.0, 1, 1, 0.0)


def total(work: Work) -> Amount:
    """The number of image passes of a sweep, by kind."""
    found = Amount()
    for _, each in work.amounts:
        found.trained += each.trained
        found.measured += each.measured
        found.extracted += each.extracted
    return found


def work_of(*amounts: Amount, cell: Cell, **said: Any) -> Work:
    """The work of a sweep whose cells need these amounts."""
    states = [(cell, "from train on")] * max(1, len(amounts))
    return Work(states, {"kind": cell}, [("kind", each) for each in amounts], **said)


def test_the_estimate_counts_shared_networks_once(tmp_path: Path) -> None:
    """Three defenses share one attacked network and its features. The training set has 200 clean
    and 6 poisoned images, the test set 50 clean and 45 triggered ones. This takes four trainings,
    four passes over test and training images, and one pass for features."""
    cells = [cell_of(tmp_path, f"defense={name}") for name in ("spectral", "none", "oracle")]
    work = estimate(cells, set(), CPU)
    assert work.trainings == 4
    assert total(work) == Amount(4 * 206, 4 * (95 + 206), 206)
    assert len(work.kinds) == 1
    assert [state for _, state in work.cells] == ["from poison on"] * 3


def test_the_estimate_counts_one_evaluation_per_transformation(tmp_path: Path) -> None:
    """Each network is evaluated on 50 clean and 45 triggered test images under three
    transformations. The two defenses share the attacked network, so there are three networks.
    Evaluations that are in the store are not counted."""
    three = "measure.asr_under=[jpeg75,blur1,noise8]"
    cells = [cell_of(tmp_path, three, f"defense={name}") for name in ("spectral", "none")]
    assert total(estimate(cells, set(), CPU)).measured == 3 * 95 + 3 * 3 * 95 + 3 * 206
    run_here(tmp_path, tmp_path / "cell")
    assert missing_from(cells[0], tmp_path, CPU) == ["transformed", "transformed"]
    assert total(estimate(cells[:1], set(), CPU)) == Amount(0, 2 * 3 * 95, 0)


def test_the_estimate_does_not_count_finished_stages(tmp_path: Path) -> None:
    """After one cell has run, a cell with another defense needs one training and no features. If
    all stages of a cell are finished, only its record is missing."""
    run_here(tmp_path, tmp_path / "cell")
    done, other = cell_of(tmp_path), cell_of(tmp_path, "defense=none")
    assert missing_from(done, tmp_path, CPU) == []
    assert missing_from(other, tmp_path, CPU) == ["filter"]
    work = estimate([done, other], set(), CPU)
    assert [state for _, state in work.cells] == ["record only", "from filter on"]
    assert work.trainings == 1
    assert total(work) == Amount(206, 95 + 206, 0)
    nothing = estimate([done, other], {done.id, other.id}, CPU)
    assert (nothing.amounts, nothing.kinds) == ([], {})


@pytest.mark.parametrize("layer", ["penultimate", "layer3", "layer3:pool", "autoencoder"])
def test_the_estimated_bytes_equal_those_in_the_store_afterwards(
    tmp_path: Path, layer: str
) -> None:
    """Two defenses share the attacked network and its features, which are counted once."""
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


def test_the_estimate_warns_of_a_disk_that_is_too_small(tmp_path: Path) -> None:
    root = tmp_path / "not" / "yet"
    work = work_of(Amount(1), cell=cell_of(root), trainings=1, bytes=10**15)
    line = describe(work, IDLE, at_once=1).splitlines()[-1]
    assert line.startswith(f"warning: networks and features take 1000000.0 GB in {root}, where")
    assert "store.root=PATH" in line
    room = describe(replace(work, bytes=5_000_000), IDLE, at_once=1).splitlines()[-1]
    assert room.startswith(f"networks and features take 5 MB in {root}, where ")
    assert room.endswith(" GB are free")


def test_the_estimate_counts_a_surrogate_as_a_training(tmp_path: Path) -> None:
    """Two attacks share one surrogate."""
    steps = "trigger.steps=1"
    cells = [cell_of(tmp_path, "trigger=label_consistent", steps, f"target={target}")
             for target in ("bird", "dog")]  # fmt: skip
    assert estimate(cells, set(), CPU).trainings == 5


def test_a_dry_run_computes_nothing(tmp_path: Path) -> None:
    """For sweeps and single cells the exit code is 0, and no cell, sweep or table is written."""
    from tests.helpers.cells import TINY

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


def test_the_estimate_lists_every_cell(tmp_path: Path) -> None:
    cell = cell_of(tmp_path)
    said = describe(Work([(cell, "done")]), Calibration({}, 0.0, 1, 1, None), at_once=1)
    assert said.splitlines() == [
        f"{cell.id}  done", "1 cell, 1 done; 0 trainings to do: about 0 s (nothing to compute)",
    ]  # fmt: skip


def test_the_estimate_shows_the_swept_option_of_cells_that_differ_in_nothing_else(
    tmp_path: Path,
) -> None:
    """The ids of the two patches differ only in their hashes."""
    swept = [("trigger=patch", "trigger.size=1"), ("trigger=patch", "trigger.size=3"), ()]
    cells = [cell_of(tmp_path, *each) for each in swept]
    asked = [requested(cell, each, None) for cell, each in zip(cells, swept, strict=True)]
    one, three, pixel = (cell.id for cell in cells)
    assert distinguishing_options(asked) == {one: "trigger.size=1", three: "trigger.size=3"}
    work = Work([(cell, "done") for cell in cells])
    nothing = Calibration({}, 0.0, 1, 1, None)
    said = describe(work, nothing, at_once=1, options=distinguishing_options(asked)).splitlines()
    assert said[:3] == [f"{one}  trigger.size=1  done", f"{three}  trigger.size=3  done",
                        f"{pixel}                  done"]  # fmt: skip


def test_the_estimate_is_summarized_in_one_line(tmp_path: Path) -> None:
    """Three cells of one hour, two at a time, take two hours."""
    cell = cell_of(tmp_path)
    hour = Amount(trained=1000, measured=2000, extracted=600)
    alone = describe(work_of(hour, cell=cell, trainings=2), IDLE, at_once=1).splitlines()
    assert alone[-1] == (
        "1 cell, 0 done; 2 trainings to do: about 60 min (calibrated on this machine with one"
        " process of 1 thread)"
    )
    tried = replace(IDLE, processes=2)
    said = describe(work_of(hour, hour, hour, cell=cell, trainings=6), tried, at_once=2)
    assert said.splitlines()[-1] == (
        "3 cells, 0 done; 6 trainings to do: about 2.0 h with 2 cells at a time (calibrated on"
        " this machine with 2 parallel processes of 1 thread)"
    )


def test_the_estimate_includes_the_start_time_of_each_process(tmp_path: Path) -> None:
    """This process starts in ten seconds. Then all workers start concurrently, in twenty
    seconds."""
    work = work_of(*[Amount(trained=5)] * 2, cell=cell_of(tmp_path))
    said = describe(work, replace(IDLE, start=20.0), at_once=2, before=10.0)
    assert "about 40 s with 2 cells" in said


def test_the_estimate_shows_the_load_of_other_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line is about this command, with this load and without. A second line recommends one
    thread if that is faster with this load."""
    monkeypatch.setattr(calibrate_module, "cores", lambda: 2)
    monkeypatch.setattr(forecast, "cores", lambda: 2)
    slow = Speed(Rate(8.0, 2.0), Rate(2.0, 0.5), Rate(4.0, 1.0))
    tried = Calibration({"kind": slow}, 0.0, 1, 1, 1.5)
    work = work_of(Amount(trained=30), cell=cell_of(tmp_path))
    assert describe(work, tried, at_once=1).splitlines()[-2:] == [
        "1 cell, 0 done; 0 trainings to do (calibrated on this machine with one process of 1"
        " thread; other processes use 1.5 of 2 cores):",
        "  this command: about 4 min with this load, about 60 s on an idle machine",
    ]
    pair = replace(work, amounts=work.amounts * 2)
    assert describe(pair, tried, at_once=2).splitlines()[-1] == (
        "  this command, 2 cells at a time: about 4 min with this load, about 60 s on an idle"
        " machine"
    )
    # A small load is not mentioned, and the measured wall-clock time is used.
    quiet = describe(work, replace(tried, others=0.2), at_once=1).splitlines()
    assert "to do: about 4 min (" in quiet[-1]


@pytest.mark.parametrize(("single_now", "lines"), [
    # With one thread, an idle machine takes 60 s; with two, between the half of it and all of it.
    (11.0, ["  this command: about 4 min with this load, 30 s to 60 s on an idle machine"]),
    (7.9, ["  this command: about 4 min with this load, 30 s to 60 s on an idle machine"]),
    (6.0, ["  this command: about 4 min with this load, 30 s to 60 s on an idle machine",
           "  faster with this load: trainer.threads=1, about 3 min"]),
])  # fmt: skip
def test_one_thread_is_recommended_only_if_it_is_faster_under_the_same_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single_now: float, lines: list[str]
) -> None:
    """The time of two threads on an idle machine cannot be computed from their CPU time."""
    monkeypatch.setattr(calibrate_module, "cores", lambda: 2)
    monkeypatch.setattr(forecast, "cores", lambda: 2)
    slow = Speed(Rate(8.0, 5.0), Rate(2.0, 0.5), Rate(4.0, 1.0))
    one = Speed(Rate(single_now, 2.0), Rate(2.0, 0.5), Rate(4.0, 1.0))
    single = Calibration({"kind": one}, 0.0, 1, 1, 1.3)
    tried = Calibration({"kind": slow}, 0.0, 1, 2, 1.3, single)
    work = work_of(Amount(trained=30), cell=cell_of(tmp_path), trainings=1)
    shown = describe(work, tried, at_once=1).splitlines()
    assert shown[1:] == [
        "1 cell, 0 done; 1 training to do (calibrated on this machine with one process of 2"
        " threads; other processes use 1.3 of 2 cores):", *lines,
    ]  # fmt: skip


def test_two_threads_on_one_core_each_are_as_fast_as_one_on_an_idle_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes of two threads have two cores."""
    monkeypatch.setattr(calibrate_module, "cores", lambda: 2)
    monkeypatch.setattr(forecast, "cores", lambda: 2)
    slow = Speed(Rate(8.0, 2.0), Rate(2.0, 0.5), Rate(4.0, 1.0))
    single = Calibration({"kind": slow}, 0.0, 2, 1, 1.3)
    work = work_of(*[Amount(trained=30)] * 2, cell=cell_of(tmp_path))
    said = describe(work, replace(single, threads=2, single=single), at_once=2)
    assert said.endswith(": about 4 min with this load, about 60 s on an idle machine")


def test_the_wait_for_the_calibration_is_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message goes to stderr before the calibration begins. If there is nothing to measure,
    there is no message."""
    cell, said = cell_of(tmp_path), []

    def measured(*_: object) -> Calibration:
        said.append(capsys.readouterr().err)
        return IDLE

    monkeypatch.setattr(forecast, "calibrate", measured)
    for work in (work_of(Amount(1), cell=cell), Work([(cell, "done")])):
        work.kinds.update({kind: cell for kind, _ in work.amounts})
        monkeypatch.setattr(forecast, "estimate", lambda *_, found=work: found)
        forecast.estimate_text([cell], set(), CPU, at_once=1, processes=0)
    assert said == [
        "measuring the speed of this machine: 1 kind of training, up to a minute each, longer if"
        " other programs use its cores ...\n",
        "",
    ]


def test_the_estimate_lists_the_work_that_it_does_not_count(tmp_path: Path) -> None:
    cell = cell_of(tmp_path, "defense=abl", "trigger=narcissus")
    said = describe(work_of(Amount(1), cell=cell), IDLE, at_once=1)
    assert said.splitlines()[-1] == "not included: the computations of narcissus and abl"
    assert "not included" not in describe(
        work_of(Amount(1), cell=cell_of(tmp_path)), IDLE, at_once=1
    )


def test_durations_are_shown_in_seconds_minutes_hours_or_days() -> None:
    times = {0.4: "0 s", 89: "89 s", 600: "10 min", 7200: "2.0 h", 171_000: "47.5 h"}
    assert {each: duration(each) for each in times} == times
    assert duration(216_000) == "2.5 days"


def test_oracle_controls_with_the_same_seed_share_a_clean_network(tmp_path: Path) -> None:
    """Without the appended poison, the training sets of two attacks are the same clean set."""
    cells = [cell_of(tmp_path, f"defense={name}", f"target={target}", *more)
             for more in ([], ["seed=1"]) for target in ("bird", "dog")
             for name in ("none", "oracle")]  # fmt: skip
    assert estimate(cells, set(), CPU).trainings == 2 * (2 + 2 + 1)
    replaced = [cell_of(tmp_path, "defense=oracle", "protocol.placement=replace",
                        f"target={target}")
                for target in ("bird", "dog")]  # fmt: skip
    assert estimate(replaced, set(), CPU).trainings == 4


@pytest.mark.parametrize(("grid", "trainings"), [
    # Without poison all attacks have the same training set: one training and one retraining.
    (["trigger=pixel,pattern target=bird,dog ratio=0 defense=spectral,none,oracle"], 2),
    # Two data sets share nothing.
    (["dataset.seed=11,12 defense=spectral"], 4),
    (["dataset.seed=11,12 defense=oracle"], 4),
    # The oracle keeps covers, clean_data does not.
    (["trigger=pixel,pattern cover_rate=1 defense=oracle"], 4),
    (["trigger=pixel,pattern cover_rate=1 defense=clean_data"], 3),
    (["trigger=pixel,pattern defense=oracle"], 3),
])  # fmt: skip
def test_the_estimated_number_of_networks_to_train_equals_the_number_trained(
    tmp_path: Path, grid: list[str], trainings: int
) -> None:
    """After the cells have run, the store has this number of networks and the estimate is zero."""
    cells = [cell_of(tmp_path, *each) for each in _product(grid[0])]
    assert estimate(cells, set(), CPU).trainings == trainings
    for number, each in enumerate(_product(grid[0])):
        run_here(tmp_path, tmp_path / f"cell{number}", *each)
    made = [*tmp_path.glob("train/*/weights*"), *tmp_path.glob("retrain/*/weights*")]
    assert len(made) == trainings
    after = estimate(cells, set(), CPU)
    assert after.trainings == 0
    assert {state for _, state in after.cells} == {"record only"}


def test_a_stored_clean_network_is_reused_for_another_attack(tmp_path: Path) -> None:
    run_here(tmp_path, tmp_path / "cell", "defense=oracle")
    other = cell_of(tmp_path, "defense=oracle", "trigger=pattern")
    assert estimate([other], set(), CPU).trainings == 1


@pytest.mark.parametrize("change", ["protocol.asr_on=all", "protocol.clean_holdout=10"])
def test_changing_evaluation_options_requires_no_training(tmp_path: Path, change: str) -> None:
    """Each network needs one pass over the clean test images and one over the triggered ones."""
    run_here(tmp_path, tmp_path / "cell")
    work = estimate([cell_of(tmp_path, change)], set(), CPU)
    assert [state for _, state in work.cells] == ["from measure on"]
    assert work.trainings == 0
    assert 0 < total(work).measured <= 2 * 100
    assert total(work).trained == 0


def _product(grid: str) -> list[list[str]]:
    named = [word.split("=") for word in grid.split()]
    values = itertools.product(*(choices.split(",") for _, choices in named))
    keys = [key for key, _ in named]
    return [[f"{k}={v}" for k, v in zip(keys, each, strict=True)] for each in values]
