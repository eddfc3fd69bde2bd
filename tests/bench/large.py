"""Benchmarks a cell on a data set of 20 GB: how much memory does it need? It takes an hour and
25 GB of disk space in `TMPDIR`, so it runs only on request."""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bench.measuring import Figure, command, surroundings

SIDE, CLASSES = 256, 10
TRAIN, TEST = 100_000, 4_000
FEW_TRAIN, FEW_TEST = 1_000, 100
CELL = (
    "trigger=blended", "target=class0", "ratio=0.05", "model=resnet18", "model.width=2",
    "model.input_size=32", "recipe=demo", "recipe.epochs=1", "recipe.batch_size=64",
    "defense=spectral", "retrain=false", "trainer=cpu", "trainer.threads=1",
    "trainer.progress=none", "logger=none",
)  # fmt: skip


def run(train: int = TRAIN, test: int = TEST) -> list[Figure]:
    """Measure the peak of RssAnon, the memory that is not backed by a file, of a cell on `train`
    training and `test` test images of 256x256 pixels. A cell on few images shows what the libraries
    and the network need."""
    with tempfile.TemporaryDirectory() as folder:
        small = _peak(Path(folder) / "small", FEW_TRAIN, FEW_TEST)[0]
        large, seconds, record = _peak(Path(folder) / "large", train, test)
    size = 3 * SIDE**2 * (train + test)
    return [
        Figure("images, decoded", size / 1e9, "GB"),
        Figure("poisoned images", record["counts"]["n_poisoned"]),
        Figure("peak of RssAnon, all images", large / 1e9, "GB"),
        Figure("peak of RssAnon, 1,100 images", small / 1e9, "GB"),
        Figure("peak of RssAnon relative to the images", large / size, "", "<= 0.25"),
        Figure("seconds of the cell", seconds, "s"),
    ]


def _peak(folder: Path, train: int, test: int) -> tuple[int, float, dict[str, dict[str, int]]]:
    """Run a cell. Returns its peak of RssAnon in bytes, its seconds and its record."""
    folder.mkdir()
    archive(folder / "images.zip", train, test)
    words = [*command("backdoor_lab"), "dataset=image_folder", "dataset.root=images.zip", *CELL]
    with (folder / "log").open("wb") as log:
        began, peak = time.perf_counter(), 0
        process = subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, env=surroundings())
        while process.poll() is None:
            peak = max(peak, _anonymous(process.pid))
            time.sleep(0.02)
    assert process.returncode == 0, (folder / "log").read_text()
    [record] = folder.rglob("record.json")
    return peak, time.perf_counter() - began, json.loads(record.read_text())


def _anonymous(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return 1024 * int(found[0].split()[1]) if found else 0


def archive(path: Path, train: int, test: int) -> None:
    """Write JPEG files of 256x256 pixels: coarse noise around a color of each class."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as files:
        for split, count in (("train", train), ("test", test)):
            for number in range(count):
                label = number % CLASSES
                color = np.array([23 * label, 255 - 23 * label, 40 + 50 * (label % 4)])
                coarse = (color + rng.normal(0, 40, (8, 8, 3))).clip(0, 255).astype(np.uint8)
                stream = io.BytesIO()
                Image.fromarray(coarse).resize((SIDE, SIDE)).save(stream, "JPEG")
                files.writestr(f"{split}/class{label}/{number:06}.jpg", stream.getvalue())
