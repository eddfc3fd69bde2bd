"""Benchmarks spectral scores against ART's, and against a full float64 SVD."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from backdoor_lab.numerics.singular import top_direction
from tests.bench.measuring import (
    KEPT,
    ROOT,
    Figure,
    by_turns,
    exponent,
    memory,
    ratio,
    surroundings,
    threads,
)

CLASSES, N, D = 10, 5000, 512
ART = ("adversarial-robustness-toolbox==1.20.1", "packaging")
Features = NDArray[np.float32]


def run() -> list[Figure]:
    """Measure ten classes of 5,000 x 512 features, nearly tied singular values, growth, and
    memory."""
    torch.set_num_threads(threads())
    return [*_beside_art(), *_near_ties(), *_growth()]


def spiked(n: int, seed: int) -> Features:
    """Draw n x 512 normal features, and shift a twentieth of the rows."""
    values = np.random.default_rng(seed).standard_normal((n, D), np.float32)
    values[: n // 20] += 0.4
    return values


def tied(n: int, apart: float) -> Features:
    """Draw features like `spiked`, whose two largest singular values differ by the factor
    `apart`."""
    noise = np.random.default_rng(n).standard_normal((n, D))
    left, singular, right = np.linalg.svd(noise - noise.mean(axis=0), full_matrices=False)
    singular[0] = singular[1] * apart
    return np.asarray(left * singular @ right, np.float32)


def by_svd(values: Features) -> NDArray[np.float64]:
    """Compute the scores of Algorithm 1 (Tran et al. 2018) with a full float64 SVD."""
    centered = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    return (centered @ np.linalg.svd(centered, full_matrices=False)[2][0]) ** 2


def ours(values: Features) -> NDArray[np.float64]:
    """Compute the scores of Algorithm 1 with the function that the filter uses."""
    return np.asarray(top_direction(torch.from_numpy(values)).along.square())


def _beside_art() -> list[Figure]:
    features = np.stack([spiked(N, seed) for seed in range(CLASSES)])
    with tempfile.TemporaryDirectory() as folder, _art(features, Path(folder)) as (their, told):
        found = by_turns({"ours": lambda: _each(ours, features), "theirs": their}, 5)
    scores, exact = ours(features[0]), by_svd(features[0])
    return [
        Figure("10 classes of 5,000 x 512: ours", 1e3 * min(found["ours"]), "ms",
               note=f"{threads()} threads, float32 features"),
        Figure("the same by ART", 1e3 * min(found["theirs"]), "ms", note=told),
        Figure("over ART", ratio(found, "theirs", "ours"), "x", ">= 10"),
        Figure("error beside a float64 SVD, relative to the largest score",
               float(np.abs(scores - exact).max() / exact.max()), "", "<= 1e-6"),
    ]  # fmt: skip


def _near_ties() -> list[Figure]:
    values = tied(N, 1.003)
    sides = {"ours": lambda: _each(ours, [values]), "svd": lambda: _each(by_svd, [values])}
    found = by_turns(sides, 3)
    scores, exact = ours(values), by_svd(values)
    k = N // 10
    differ = len(set(np.argsort(scores)[-k:]) ^ set(np.argsort(exact)[-k:]))
    return [
        Figure("top singular values 0.3 % apart: over SVD", ratio(found, "svd", "ours"), "x"),
        Figure("the same: examples removed otherwise than by SVD", differ, f"of {k}", "<= 0"),
        Figure("the same: error", float(np.abs(scores - exact).max() / exact.max()), "", "<= 1e-6"),
    ]  # fmt: skip


def _growth() -> list[Figure]:
    sizes = (5_000, 20_000, 80_000, 500_000)
    seconds = []
    for n in sizes:
        values = np.tile(spiked(5000, 1), (n // 5000, 1))
        seconds.append(min(_seconds(lambda: _each(ours, [values])) for _ in range(2)))  # noqa: B023
    before = memory(restart=True)
    ours(values)
    size = values.nbytes / 1e6
    return [
        Figure("n from 5,000 to 500,000: exponent of the time", exponent(sizes, seconds), "",
               "<= 1.05"),
        Figure("500,000 x 512", seconds[-1], "s"),
        Figure("its further memory over the features'", 100 * (memory(peak=True) - before) / size,
               "%", "<= 100", f"beside {size:.0f} MB of features"),
    ]  # fmt: skip


def _each(score: Callable[[Features], NDArray[np.float64]], classes: Iterable[Features]) -> None:
    for values in classes:
        score(values)


def _seconds(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


@contextmanager
def _art(features: Features, folder: Path) -> Iterator[tuple[Callable[[], float | None], str]]:
    """Start ART in its own process. Yields a function that scores every class and returns the
    seconds, and a description of ART."""
    python = _art_python()
    if python is None:
        yield (lambda: _each(_arts_calls, features)), "ART could not be installed: its calls here"
        return
    path = folder / "features.npy"
    np.save(path, features)
    # ART does not set the number of threads. NumPy takes it from OMP_NUM_THREADS.
    worker = subprocess.Popen(
        [str(python), str(Path(__file__).with_name("art_worker.py")), str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env=surroundings(OMP_NUM_THREADS=str(threads()), PYTHONPATH=""),
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    stdin, stdout = worker.stdin, worker.stdout

    def call() -> float:
        stdin.write("go\n")
        stdin.flush()
        return float(stdout.readline())

    try:
        assert stdout.readline().strip() == "READY", "ART's process did not start"
        yield call, f"{ART[0]}, its spectral_signature_scores"
    finally:
        stdin.close()
        worker.wait(60)


def _arts_calls(values: Features) -> NDArray[np.float64]:
    """The NumPy calls of `spectral_signature_scores` in ART 1.20.1."""
    centered = values - np.mean(values, axis=0)
    direction = np.linalg.svd(centered, full_matrices=False)[2][:1]
    return np.asarray(np.linalg.norm(direction @ values.T, axis=0))


def _art_python() -> Path | None:
    """The Python of an environment that has ART. The environment is created on first use. None if
    that fails."""
    home = KEPT / "art"
    python = home / "bin" / "python"
    if (home / ".ready").is_file():
        return python
    try:
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *ART]
        subprocess.run(pip, cwd=ROOT, check=True, stdout=sys.stderr)
    except (OSError, subprocess.SubprocessError):
        return None
    (home / ".ready").touch()
    return python
