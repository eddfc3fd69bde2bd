"""Trials: changed sets, parts of a data set, and what a row of the results says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from backdoor_lab.core import shutdown
from backdoor_lab.core.errors import DataError
from backdoor_lab.scan import copies, run, statistics, trials
from backdoor_lab.scan.changes import CHANGES
from backdoor_lab.scan.images import ScanImages, scan_images
from backdoor_lab.scan.options import ScanOptions
from backdoor_lab.scan.reference import TRAINER
from backdoor_lab.scan.reference_file import write_reference
from backdoor_lab.scan.trials import main, part_of
from backdoor_lab.training.device import machine_of
from tests.helpers.scanning import arrays, found_of, pixels, reference


def clean_set(each: int = 100) -> ScanImages:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4 * each, 3, 8, 8), dtype=np.uint8)
    names = [str(row) for row in range(len(images))]
    return scan_images(images, np.arange(4 * each) % 4, list("abcd"), names, "set")


def test_symmetric_noise_changes_the_same_number_of_labels_in_each_class() -> None:
    found = clean_set()
    noisy, expected = CHANGES["symmetric_noise"](found, 0.05, 0)
    wrong = noisy.labeled.labels != found.labeled.labels
    assert torch.bincount(found.labeled.labels[wrong]).tolist() == [5, 5, 5, 5]
    assert torch.equal(noisy.labeled.images, found.labeled.images)
    assert expected == []


def test_asymmetric_noise_moves_a_share_of_one_class_to_another() -> None:
    found = clean_set()
    noisy, [target] = CHANGES["asymmetric_noise"](found, 0.2, 0)
    wrong = noisy.labeled.labels != found.labeled.labels
    assert int(wrong.sum()) == 20
    assert noisy.labeled.labels[wrong].unique().tolist() == [target]
    assert len(found.labeled.labels[wrong].unique()) == 1


def test_near_duplicates_differ_from_one_image_by_brightness_only() -> None:
    found = clean_set()
    copied, [label] = CHANGES["near_duplicates"](found, 0.1, 0)
    new = (copied.labeled.images != found.labeled.images).flatten(1).any(dim=1)
    assert 9 <= int(new.sum()) <= 10  # A brightness may be drawn that changes nothing.
    assert found.labeled.labels[new].unique().tolist() == [label]
    rows = copied.labeled.images[new].int()
    own = found.labeled.images.int()
    distances = (rows[:, None] - own[None]).abs().amax(dim=(2, 3, 4))
    nearest = distances.argmin(dim=1)
    assert len(nearest.unique()) == 1
    assert int(distances.amin(dim=1).max()) <= 8


def test_a_long_tail_and_two_classes_have_fewer_images() -> None:
    found = clean_set()
    tail, _ = CHANGES["long_tail"](found, 0.05, 0)
    assert tail.sizes == [100, 46, 22, 10]
    two, _ = CHANGES["two_classes"](found, 0.05, 0)
    assert two.sizes == [100, 100, 0, 0]


def test_parts_of_a_data_set_are_disjoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "PER_CLASS", 40)
    whole = clean_set()
    first, second = part_of(whole, 0), part_of(whole, 1)
    assert first.sizes == second.sizes == [40] * 4
    assert not set(first.names) & set(second.names)
    with pytest.raises(DataError, match="the class a has 100 images, too few for 3 parts of 40"):
        part_of(whole, 2)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Trials of small sets whose features are pixels. Returns a reference file for them."""
    monkeypatch.setattr(shutdown, "install", lambda: None)
    for module in (statistics, run, copies):
        monkeypatch.setattr(module, "network_stage", pixels)
    draw = lambda seed, *_: found_of(*arrays(seed % 1000, poisoned=0))  # noqa: E731
    monkeypatch.setattr(trials, "clean_set", draw)
    decides = ScanOptions(canaries="none").decides()
    bin_of = dataclasses.replace(reference(2.0), decides=decides)
    write_reference(tmp_path / "reference.json", [bin_of])
    return tmp_path / "reference.json"


@pytest.mark.parametrize(("change", "expected"), [("none", 0), ("pattern", 1)])
def test_a_row_says_whether_the_poisoned_class_was_named(
    change: str, expected: int, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small.parent
    words = ["--change", f"{change}:0.1", "--sets", "3", "--reference", str(small)]
    words += ["--store", str(folder / "store"), "--threads", "1", "--out", str(folder / "t.csv")]
    assert main(words) == 0
    rows = pd.read_csv(folder / "t.csv")
    assert rows["set"].tolist() == [0, 1, 2]
    assert rows["named"].tolist() == [expected] * 3
    assert rows["other alarms"].tolist() == [0] * 3
    assert rows["exit code"].tolist() == [3 * expected] * 3
    said = capsys.readouterr().out
    assert f"{change}, rate 0.1: other alarms in 0 of 3 sets (0.0 to 70.8 %)" in said
    assert (f"{change}, rate 0.1: named in 3 of 3 sets (29.2 to 100.0 %)" in said) == expected
    assert set(rows["machine"]) == {machine_of(TRAINER | {"threads": 1}).describe()}
    assert set(rows["rate"]) == {0.1}
    if change == "pattern":
        assert rows["images"].tolist() == [8] * 3
        assert len(set(rows["class"])) > 1
        assert (rows["statistic"] > 5).all()
        assert (rows["other statistic"] < 5).all()
    else:
        assert rows["statistic"].isna().all()
        assert (rows["other statistic"] < 5).all()
    # The same sets again, of which one share was asked for.
    assert main([*words, "--share", "1/2"]) == 0
    assert pd.read_csv(folder / "t.csv").equals(rows.iloc[1:2].reset_index(drop=True))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--change", "patern"], "Did you mean 'pattern'"),
        (["--change", "none,patern"], "Did you mean 'pattern'"),
        (["--change", "none,"], "trigger '' is not known"),
        (["--change", "pattern:0.9"], "0 < RATE <= 0.5"),
        (["--change", "pattern:x"], "`--change pattern:x`: RATE must be a number"),
        (
            ["--change", "longtail"],
            "`--change`: trigger 'longtail' is not known. Did you mean 'long_tail'",
        ),
        (["--sets", "0"], "`--sets` must satisfy"),
        (["--out", "missing/t.csv"], "existing folder"),
    ],
)
def test_wrong_arguments_are_refused(
    words: list[str], said: str, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small.parent
    given = ["--reference", str(small), "--store", str(folder / "store"),
             "--out", str(folder / "t.csv"), *words]  # fmt: skip
    assert main(given) == 2
    assert said in capsys.readouterr().err
    assert not (folder / "t.csv").exists()


def test_several_changes_give_one_row_per_change_and_set(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small.parent
    words = ["--change", "pattern:0.1,near_duplicates,pattern:0.2", "--sets", "2"]
    words += ["--reference", str(small), "--store", str(folder / "store"), "--threads", "1"]
    assert main([*words, "--out", str(folder / "t.csv")]) == 0
    rows = pd.read_csv(folder / "t.csv")
    assert rows["change"].tolist() == ["pattern"] * 2 + ["near_duplicates"] * 2 + ["pattern"] * 2
    assert rows["rate"].tolist() == [0.1] * 2 + [0.05] * 2 + [0.2] * 2
    assert rows["images"].tolist()[-2:] == [16, 16]
    assert len(capsys.readouterr().out.splitlines()) >= 6


def test_sets_that_are_not_calibrated_are_counted_apart(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--change", "two_classes", "--sets", "2", "--reference", str(small), "--threads", "1"]
    words += ["--store", str(small.parent / "store"), "--out", str(small.parent / "t.csv")]
    assert main(words) == 0
    lines = [each for each in capsys.readouterr().out.splitlines() if each.startswith("two_cl")]
    assert lines == ["two_classes, rate 0.05: not calibrated: 2 sets"]
    assert pd.read_csv(small.parent / "t.csv")["exit code"].tolist() == [4, 4]
