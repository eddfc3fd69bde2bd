"""Benchmarks the page of a sweep of 1,000 cells: its bytes, and the seconds to write and to open
it."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from backdoor_lab.core.store import _seal
from backdoor_lab.page.document import write_page
from tests.bench.measuring import ROOT, Figure, timed
from tests.helpers.browser import chromium
from tests.helpers.records import record, write_sweep

CELLS, NETWORKS = 1000, 50
IMAGES, CLASSES, POISONED, FEATURES, SIDE, EPOCHS = 5000, 10, 50, 64, 32, 100
LARGEST, SLOWEST = 10.0, 1.0
# Resolves in a separate task after the first frame, when the page has been painted.
PAINTED = """() => new Promise((done) =>
  requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"""
DEFENSES = ("spectral", "random", "oracle", "none", "spectre")


def run() -> list[Figure]:
    """Measure with random images of CIFAR-10's shape. Random pixels cannot be compressed."""
    with tempfile.TemporaryDirectory() as name:
        folder = sweep(Path(name))
        began = time.perf_counter()
        path = write_page(folder)
        seconds = time.perf_counter() - began
        assert '"notes":[]}</script>' in path.read_text(), "stages that the page could not read"
        size = path.stat().st_size / 1e6
        assert size < LARGEST, f"{size:.1f} MB"
        opened = {
            "opening it": opening(path.as_uri()),
            "opening it at its table": opening(f"{path.as_uri()}#all"),
        }
    figures = [
        Figure(f"page of {CELLS} cells", size, "MB", f"<= {LARGEST}"),
        Figure("writing it", seconds, "s", note="features of 50 networks read and decomposed"),
    ]
    pandas, _ = timed([sys.executable, "-c", "import pandas"], ROOT)
    figures.append(Figure("import pandas, alone", pandas, "s"))
    for what, value in opened.items():
        if value is None:
            figures.append(Figure(what, float("nan"), "s", note="no Chromium here"))
        else:
            figures.append(Figure(what, value, "s", f"<= {SLOWEST}", "best of 5, Chromium"))
    return figures


def opening(address: str) -> float | None:
    """The seconds from navigation until all scripts have run and the page is painted, in the best
    of five attempts. None without a browser."""
    with chromium() as browser:
        if browser is None:
            return None
        found = []
        for _ in range(5):
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.goto(address)
            found.append(float(page.evaluate(PAINTED)) / 1000)
            page.close()
        return min(found)


def sweep(root: Path) -> Path:
    """Write a sweep of made-up records, next to a store with their stage outputs."""
    store, draw = root / ".store", np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), IMAGES // CLASSES)
    base = draw.integers(0, 256, (IMAGES, 3, SIDE, SIDE), dtype=np.uint8)
    data = _folder(store, "data", "images")
    np.save(data / "train_images.npy", base, allow_pickle=False)
    np.save(data / "train_labels.npy", labels, allow_pickle=False)
    meta = {"classes": [*map(str, range(9)), "bird"], "digests": {"train": "images", "test": ""}}
    _seal(data, "data", {}, meta, 0.0)
    for number in range(NETWORKS):
        _network(store, f"n{number}", base, labels, draw)
    given = np.concatenate([labels, np.full(POISONED, CLASSES - 1)])
    return write_sweep(root / "sweep", [_cell(store, n, given, draw) for n in range(CELLS)])


def _network(store: Path, name: str, base: Any, labels: Any, draw: np.random.Generator) -> None:
    source = np.sort(draw.choice(IMAGES - IMAGES // CLASSES, POISONED, replace=False))
    rows = base[source].copy()
    rows[:, :, -1, -1] = 255
    poison = {
        "rows": rows, "index": np.arange(IMAGES + POISONED), "source_index": source,
        "labels": np.concatenate([labels, np.full(POISONED, CLASSES - 1)]),
        "cover_index": source[:0],
    }  # fmt: skip
    save_file(poison, _folder(store, "poison", name) / "poison.safetensors")
    values = draw.normal(size=(IMAGES + POISONED, FEATURES)).astype(np.float32)
    values[IMAGES:] += 1
    save_file({"values": values}, _folder(store, "extract", name) / "features.safetensors")
    losses = {"loss": np.geomspace(2, 0.01, EPOCHS).tolist()}
    for stage in ("train", "retrain"):
        _seal(_folder(store, stage, name), stage, {}, losses, 0.0)


def _cell(store: Path, number: int, labels: Any, draw: np.random.Generator) -> dict[str, Any]:
    """Make a record with its own hashes, seconds and stage ids, like those of a real sweep."""
    scores = np.where(labels == CLASSES - 1, draw.exponential(size=len(labels)), np.nan)
    scores[IMAGES:] *= 3
    keep = np.ones(len(labels), bool)
    keep[np.argsort(-np.nan_to_num(scores, nan=-1))[:75]] = False
    verdict = {"scores": scores, "keep": keep}
    save_file(verdict, _folder(store, "filter", f"v{number}") / "verdict.safetensors")
    made = record(
        "pixel" if number % 2 else "pattern", "bird", (0.01, 0.02, 0.05, 0.1, 0.2)[number % 5],
        DEFENSES[number // 5 % 5], seed=number // 50,
    )  # fmt: skip
    network = f"n{number % NETWORKS}"
    stages = dict.fromkeys(("poison", "extract", "train", "retrain"), network)
    stages |= {"filter": f"v{number}", "measure1": _hash(number, 1), "measure2": _hash(number, 2)}
    made["id"] += f"-{number}"
    made["hashes"] = {f"part{n}": _hash(number, n) for n in range(7)} | {"data": "images"}
    made["run"]["stages"] = {name: {"id": each, "made": True} for name, each in stages.items()}
    made["run"]["seconds"] = {name: round(float(draw.random()) * 30, 3) for name in stages}
    return made


def _folder(store: Path, stage: str, name: str) -> Path:
    folder = store / stage / name
    folder.mkdir(parents=True)
    return folder


def _hash(*parts: int) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
