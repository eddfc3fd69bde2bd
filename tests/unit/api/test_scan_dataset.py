"""The function `scan_dataset`: the same result as the command, and clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import backdoor_lab as bl
from backdoor_lab.core import shutdown
from backdoor_lab.scan.__main__ import main

TINY = {"size": 8, "width": 2, "epochs": 1, "networks": 1}


@pytest.fixture(autouse=True)
def _no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command must not change how this process reacts to signals."""
    monkeypatch.setattr(shutdown, "install", lambda: None)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(250) % 5
    images = np.random.default_rng(0).integers(0, 100, (250, 3, 8, 8), dtype=np.uint8)
    images[np.arange(250), :, labels] += 100
    return images, labels


def test_the_function_and_the_command_give_the_same_statistics(tmp_path: Path) -> None:
    images, labels = arrays()
    store = tmp_path / "store"
    report = bl.scan_dataset(images, labels, **TINY, store=store)
    assert report.exit_code == 4
    np.savez(tmp_path / "images.npz", x_train=images, y_train=labels)
    words = [f"scan.{key}={value}" for key, value in TINY.items()]
    code = main([str(tmp_path / "images.npz"), *words, "trainer=cpu", f"store.root={store}",
                 "--out", str(tmp_path / "out")])  # fmt: skip
    assert code == 4
    written = (tmp_path / "out/classes.csv").read_text()
    for value in report.classes["statistic"]:
        assert repr(value) in written
    # The command read the network that the function stored.
    assert len(list((store / "scan_network").glob("*/manifest.json"))) == 1


def test_tensors_and_arrays_give_the_same_report_and_the_page_is_written(tmp_path: Path) -> None:
    images, labels = arrays()
    tensors = torch.from_numpy(images), torch.from_numpy(labels)
    first = bl.scan_dataset(images, labels, **TINY)
    assert bl.scan_dataset(*tensors, **TINY).json() == first.json()
    assert first.to_html(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert list(first.classes.columns[:4]) == ["class", "p", "alarm", "calibrated"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": 0.0}, "`alpha` must satisfy 0 < alpha < 1"),
        ({"networks": 0}, "`networks` must satisfy"),
        ({"labels": np.zeros(250, int)}, "at least two"),
        ({"labels": np.arange(250) % 25}, "too few images"),
        ({"images": np.zeros((250, 8, 8, 3), np.uint8)}, "move the last axis"),
        ({"trusted": (np.zeros((20, 1, 8, 8), np.uint8), np.arange(20) % 2)}, "images of"),
        ({"reference": "none.json"}, "no such reference file"),
    ],
)
def test_invalid_arguments_raise_value_error(change: dict[str, object], said: str) -> None:
    images, labels = arrays()
    given = {"images": images, "labels": labels, **TINY, **change}
    with pytest.raises(ValueError, match=said):
        bl.scan_dataset(given.pop("images"), given.pop("labels"), **given)
