"""A cell run in this process, as a program that calls the package does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backdoor_lab.sweep.job import run_job
from tests.helpers.cells import configuration


def test_a_cell_runs_after_the_data_file_of_an_earlier_cell_was_deleted(tmp_path: Path) -> None:
    def run(name: str, seed: int) -> str:
        images = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
        labels = np.arange(40) % 4
        np.savez(
            tmp_path / f"{name}.npz", train_images=images, train_labels=labels,
            test_images=images, test_labels=labels,
        )  # fmt: skip
        data = ("dataset=arrays", f"dataset.root={tmp_path / name}.npz", "target=1")
        config = configuration(tmp_path / "store", data=data)
        return run_job(config, tmp_path / name, 1)

    assert run("first", 1) == "done"
    (tmp_path / "first.npz").unlink()
    assert run("second", 2) == "done"
