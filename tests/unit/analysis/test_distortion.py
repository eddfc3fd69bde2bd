"""Visibility of triggers: figures compared with values computed by hand, and the command on a
made-up store and on a cell that trains its trigger."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_lab.analysis.distortion import LIMIT, distortion
from backdoor_lab.analysis.evidence import sampled
from backdoor_lab.distortion import main
from tests.helpers.cells import run_here
from tests.helpers.records import write_sweep
from tests.helpers.stages import CLASSES, PER_CLASS, POISONED, SIDE, TARGET, Made, cell

PIXEL = {
    "_target_": "backdoor_lab.attacks.pixel.Pixel", "name": "pixel", "position": [-1, -1],
    "color": 255, "margin": 0,
}  # fmt: skip
DRAW = np.random.default_rng(0)


def images(n: int, side: int = 16, channels: int = 3) -> Any:
    return DRAW.integers(0, 256, (n, channels, side, side)).astype(np.uint8)


def made(store: Path, arrays: Made, **protocol: Any) -> dict[str, Any]:
    found = cell(store, arrays, "one")
    found["config"]["trigger"] = PIXEL
    found["protocol"] |= protocol
    return found


def lines(folder: Path) -> list[dict[str, str]]:
    out = folder.parent / "distortion.csv"
    assert main([str(folder), "--out", str(out)]) == 0
    return list(csv.DictReader(out.read_text().splitlines()))


def test_psnr_follows_from_the_mean_squared_change() -> None:
    """A change of 5 in all values: 10 log10(255² / 25). A change of 51 in one value of 768:
    10 log10(255² · 768 / 51²)."""
    before = np.full((2, 3, 16, 16), 100, np.uint8)
    after = before.copy()
    after[0] += 5
    after[1, 2, 7, 3] -= 51
    for which, (square, largest) in enumerate([(25, 5), (51**2 / 768, 51)]):
        found = distortion(before[[which]], after[[which]])
        assert found.psnr == pytest.approx(10 * math.log10(255**2 / square))
        assert found.largest == largest


def test_ssim_of_two_uniform_images_depends_only_on_their_means() -> None:
    """Without variance, SSIM is (2ab + c) / (a² + b² + c) with c = (0.01 · 255)²."""
    before, after = np.full((1, 1, 16, 16), 100, np.uint8), np.full((1, 1, 16, 16), 140, np.uint8)
    c = 2.55**2
    expected = (2 * 100 * 140 + c) / (100**2 + 140**2 + c)
    assert distortion(before, after).ssim == pytest.approx(expected, abs=1e-3)


def test_equal_images_have_an_ssim_of_1_and_no_psnr() -> None:
    same = images(4)
    found = distortion(same, same)
    assert found.ssim == pytest.approx(1)
    assert found.largest == 0
    assert np.isnan(found.psnr)


def test_psnr_is_averaged_over_the_images_that_change() -> None:
    before = images(300)
    before[:, 0, 0, 0] = 100
    after = before.copy()
    after[::3, 0, 0, 0] = 110
    found = distortion(before, after)
    assert found.psnr == pytest.approx(distortion(before[:1], after[:1]).psnr)
    assert found.largest == pytest.approx(10 / 3)


def test_distortions_are_means_over_images_and_not_over_chunks() -> None:
    before, after = images(301, side=12), images(301, side=12)
    each = [distortion(before[[n]], after[[n]]) for n in range(301)]
    found = distortion(before, after)
    for name in ("psnr", "ssim", "largest"):
        assert getattr(found, name) == pytest.approx(np.mean([getattr(one, name) for one in each]))


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    found = distortion(images(3, side=10), images(3, side=10))
    assert np.isnan(found.ssim)
    assert np.isfinite([found.psnr, found.largest]).all()


def test_the_distortion_of_an_empty_set_of_images_is_nan() -> None:
    found = distortion(images(0), images(0))
    assert np.isnan([found.psnr, found.ssim, found.largest]).all()


@pytest.mark.parametrize("asr_on", ["not_target", "all"])
def test_the_distortion_command_measures_training_and_test_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asr_on: str
) -> None:
    """The made-up poison and the trigger `pixel` paint the last pixel white. Cover images do not
    count."""
    arrays = Made(0, covers=3)
    folder = write_sweep(tmp_path / "sweep", [made(tmp_path / ".store", arrays, asr_on=asr_on)])
    (line,) = lines(folder)
    assert int(line["poisoned"]) == POISONED
    test, labels = arrays.base[::-1], arrays.clean_labels[::-1]
    test = test if asr_on == "all" else test[labels != TARGET]
    for name, clean in (("train", arrays.base[arrays.source]), ("test", test)):
        change = 255.0 - clean[:, :, -1, -1]
        square = np.square(change).sum(axis=1) / (3 * SIDE**2)
        assert float(line[f"psnr_{name}"]) == pytest.approx((10 * np.log10(255**2 / square)).mean())
        assert float(line[f"largest_{name}"]) == pytest.approx(change.max(axis=1).mean())
        assert line[f"ssim_{name}"] == ""
    assert "| pixel" in capsys.readouterr().out


def test_a_source_specific_attack_is_measured_on_test_images_of_its_source(tmp_path: Path) -> None:
    arrays = Made(0)
    record = made(tmp_path / ".store", arrays, asr_on="source")
    record["choices"]["source"] = "dog"
    (line,) = lines(write_sweep(tmp_path / "sweep", [record]))
    clean = arrays.base[::-1][arrays.clean_labels[::-1] == CLASSES.index("dog")]
    largest = (255.0 - clean[:, :, -1, -1]).max(axis=1).mean()
    assert len(clean) == PER_CLASS
    assert float(line["largest_test"]) == pytest.approx(largest)
    assert line["source"] == "dog"


def test_cells_with_the_same_poison_share_one_line_and_clean_cells_have_no_line(
    tmp_path: Path,
) -> None:
    trigger = ("trigger=pixel", "target=bird", "retrain=false")
    for n, more in enumerate([(), ("defense=random",), ("ratio=0",)]):
        run_here(tmp_path / ".store", tmp_path / "sweep" / str(n), *trigger, *more)
    (line,) = lines(tmp_path / "sweep")
    assert line["ratio"] == "30%"


def test_a_trained_trigger_is_read_from_the_store(tmp_path: Path) -> None:
    """A separate stage trains the encoder of `steganographic`; its changes are at most `eps`."""
    run_here(
        tmp_path / ".store", tmp_path / "sweep" / "one", "trigger=steganographic",
        "trigger.steps=2", "trigger.width=4", "trigger.bits=4", "trigger.eps=9", "dataset.size=16",
        "retrain=false",
    )  # fmt: skip
    (line,) = lines(tmp_path / "sweep")
    for name in ("train", "test"):
        assert 0 < float(line[f"largest_{name}"]) <= 9
        assert float(line[f"psnr_{name}"]) > 20 * math.log10(255 / 9) - 0.01
        assert 0 < float(line[f"ssim_{name}"]) < 1


def test_at_most_1000_images_are_compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert LIMIT == 1000
    monkeypatch.setattr("backdoor_lab.distortion.LIMIT", 3)
    arrays = Made(0)
    folder = write_sweep(tmp_path / "sweep", [made(tmp_path / ".store", arrays)])
    (line,) = lines(folder)
    chosen = sampled(arrays.source, 3)
    largest = (255.0 - arrays.base[chosen][:, :, -1, -1]).max(axis=1)
    assert float(line["largest_train"]) == pytest.approx(largest.mean())


@pytest.mark.parametrize("lost", ["data/data-one/test_images.npy", "poison/one/poison.safetensors"])
def test_a_sweep_whose_images_are_not_stored_gives_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    folder = write_sweep(tmp_path / "sweep", [made(tmp_path / ".store", Made(0))])
    (tmp_path / ".store" / lost).unlink()
    assert main([str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has poison, images and the trigger in the store" in line


def test_a_record_with_an_unknown_trigger_class_gives_a_one_line_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = made(tmp_path / ".store", Made(0))
    record["config"]["trigger"] = {"_target_": "os.system", "name": "pixel"}
    assert main([str(write_sweep(tmp_path / "sweep", [record]))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "`trigger._target_` must name a class" in line
