"""Spectral scores: our step beside a full float64 SVD, as widely used tools compute it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from backdoor_lab.defenses.spectral import Spectral


def run() -> list[dict[str, Any]]:
    """One class of n examples with 512 features: seconds of both, their ratio and difference."""
    torch.set_num_threads(1)
    return [_measure(n) for n in (1000, 5000, 20000)]


def _measure(n: int) -> dict[str, Any]:
    values = np.random.default_rng(n).standard_normal((n, 512)).astype(np.float32)
    values[: n // 20] += 0.4
    ours, theirs = Spectral().scores(torch.from_numpy(values)).numpy(), _by_svd(values)
    seconds = _best(lambda: Spectral().scores(torch.from_numpy(values)))
    reference = _best(lambda: _by_svd(values))
    k = n // 10
    return {
        "n": n,
        "d": 512,
        "ours ms": round(seconds * 1e3, 1),
        "SVD ms": round(reference * 1e3, 1),
        "times faster": round(reference / seconds, 1),
        "largest relative error": f"{np.abs(ours - theirs).max() / theirs.max():.1e}",
        "same removed set": set(np.argsort(ours)[-k:]) == set(np.argsort(theirs)[-k:]),
    }


def _by_svd(values: np.ndarray) -> np.ndarray:
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    return (centred @ np.linalg.svd(centred, full_matrices=False)[2][0]) ** 2


def _best(call: Callable[[], Any], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
