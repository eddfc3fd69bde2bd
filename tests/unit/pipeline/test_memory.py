"""The memory that a cell requires does not grow with its data set: images are decoded into files,
poison is laid over the clean images, and everything else is computed in parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.image_files import zipped
from tests.helpers.project import PACKAGE

SIDE = 256
COUNTS = {"tiny": (32, 32), "large": (400, 48)}
"""The numbers of training and test images."""

RETURNED = {
    "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "1",
}  # fmt: skip
"""Settings with which the C library returns memory to the kernel as soon as it is free; otherwise
the peak of a stage would include what earlier stages have freed."""

# Runs a cell on the tiny data set, twice since libraries take memory when they are first used, and
# on the large one. Prints the peaks of RssAnon, in bytes, for each stage and for the rest, such as
# checks before the first stage. RssAnon does not count pages of files, which the kernel drops when
# memory is needed.
WATCHED = """
import json, sys, threading
from pathlib import Path
from backdoor_lab.core.store import Store
from backdoor_lab.training import evaluate
from tests.helpers.cells import run_here

evaluate.CHUNK = 64  # Networks process four images at a time, which is little for either data set.

peaks, now, done = {}, ["start"], threading.Event()

def note():
    with open("/proc/self/status") as status:
        found = next(line for line in status if line.startswith("RssAnon"))
    peaks[now[0]] = max(peaks.get(now[0], 0), 1024 * int(found.split()[1]))

def watch():
    while not done.wait(0.004):
        note()

def watched(self, name, inputs, make, get=Store.get):
    def within(folder):
        before, now[0] = now[0], f"{size}/{name}"
        try:
            return make(folder)
        finally:
            note()
            now[0] = before
    return get(self, name, inputs, within)

Store.get = watched
threading.Thread(target=watch, daemon=True).start()
here, kind, ending = Path(sys.argv[1]), *sys.argv[2:]
for size in ("first", "tiny", "large"):
    file = "large" if size == "large" else "tiny"
    now[0] = f"{size}/rest"
    record = run_here(
        here / size, here / size / "cell", "target=0", "ratio=0.45", "model.width=1",
        "model.stem=imagenet", "recipe.batch_size=8",
        data=(f"dataset={kind}", f"dataset.root={here / file}.{ending}"),
    )
    assert record["status"] == "done", record
done.set()
print(json.dumps(peaks))
"""


def images(count: int) -> np.ndarray:
    """Images of large squares: uint8 (count, SIDE, SIDE, 3)."""
    squares = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return squares.repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)


def archive(path: Path, train: int, test: int) -> None:
    """An archive of uncompressed image files."""
    head = f"P6 {SIDE} {SIDE} 255\n".encode()
    zipped(path, {
        f"{split}/{'ab'[number % 2]}/{number}.ppm": head + image.tobytes()
        for split, count in (("train", train), ("test", test))
        for number, image in enumerate(images(count))
    })  # fmt: skip


def arrays(path: Path, train: int, test: int) -> None:
    """An .npz file, in which channels are last."""
    np.savez(
        path, train_images=images(train), train_labels=np.arange(train) % 2,
        test_images=images(test), test_labels=np.arange(test) % 2,
    )  # fmt: skip


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["image_folder", "arrays"])
def test_a_cell_never_needs_memory_for_a_quarter_of_the_data_set(tmp_path: Path, kind: str) -> None:
    make, ending = {"image_folder": (archive, "zip"), "arrays": (arrays, "npz")}[kind]
    for size, counts in COUNTS.items():
        make(tmp_path / f"{size}.{ending}", *counts)
    found = subprocess.run(
        [sys.executable, "-c", WATCHED, str(tmp_path), kind, ending], text=True, check=False,
        capture_output=True, cwd=PACKAGE.parent,
        env={**os.environ, **RETURNED, "PYTHONPATH": str(PACKAGE.parent), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    peaks: dict[str, int] = json.loads(found.stdout.splitlines()[-1])
    stages = {name.partition("/")[2] for name in peaks if name != "start"}
    assert {"rest", "data", "poison", "train", "extract", "filter", "retrain", "measure"} <= stages
    tiny, large = (3 * SIDE**2 * sum(counts) for counts in COUNTS.values())
    grown = {stage: peaks[f"large/{stage}"] - peaks[f"tiny/{stage}"] for stage in stages}
    assert max(grown.values()) < (large - tiny) / 4, grown
