"""No kernel on this machine computes a wrong gradient for a network that the package trains."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.core.resources import WAITING
from backdoor_lab.training.device import machine_of
from tests.helpers.cells import environment

# glibc fills allocated memory with the complement of this byte. Values that a kernel fails to write
# are then very large, instead of left over from an earlier computation.
ENVIRONMENT = {**WAITING, "MALLOC_PERTURB_": "1"}
pytestmark = pytest.mark.timeout(1800)
PROGRAM = Path(__file__).parents[2] / "helpers/gradients.py"
TRAINER = {"accelerator": "cpu", "precision": "auto", "channels_last": True, "threads": 1,
           "progress": "none", "checkpoint": False, "cells_per_gpu": 1}  # fmt: skip
# With AVX-512 the wrong gradients occur only for images larger than 32 pixels.
FACTORS: dict[str, tuple[Any, ...]] = {
    "width": tuple(range(1, 18)),
    "side": (8, 15, 16, 32, 64),
    "batch": (1, 15, 16, 32),
    "stem": ("cifar", "imagenet"),
    "threads": (1, 2),
    "bf16": (False, True),
    "channels": (1, 3),
}
# Wrong kernels are off by 0.3 or more.
LIMITS = {"network": 0.05, "convolution": {False: 1e-3, True: 0.03}}
Case = dict[str, Any]
# Known to fail in channels-last format, with AVX-512 or with AVX2.
KNOWN: list[Case] = [
    {"width": width, "side": side, "batch": 16, "stem": "cifar", "threads": threads, "bf16": False,
     "channels": 3}
    for width, side in ((4, 64), (8, 64), (5, 16)) for threads in (1, 2)
]  # fmt: skip


def pairs(case: Case) -> set[tuple[Any, ...]]:
    return set(itertools.combinations(case.items(), 2))


def cost(case: Case) -> int:
    """Roughly the number of multiplications."""
    shrunk = 4 if case["stem"] == "imagenet" else 1
    return int(case["batch"] * (case["side"] // shrunk) ** 2 * case["width"] ** 2)


def covering(factors: dict[str, tuple[Any, ...]]) -> list[Case]:
    """A small set of cheap cases in which every pair of values of two factors occurs."""
    every = [dict(zip(factors, each, strict=True)) for each in itertools.product(*factors.values())]
    every.sort(key=cost)
    found = [(case, pairs(case)) for case in every]
    left, chosen = set().union(*(each for _, each in found)), []
    while left:
        case, covered = max(found, key=lambda each: len(each[1] & left))
        chosen.append(case)
        left -= covered
    return chosen


def run(cases: list[Case], *, enough: int = 10**9, **changes: str) -> list[Case]:
    """Runs cases until `enough` are wrong. Returns them with their errors or exit reasons."""
    program = subprocess.Popen(
        [sys.executable, str(PROGRAM)], env=environment(**ENVIRONMENT, **changes), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdin is not None
    assert program.stdout is not None
    answers: list[Case] = []
    with program:
        for case in cases:
            program.stdin.write(json.dumps({"name": "resnet18", "guarded": True, **case}) + "\n")
            program.stdin.flush()
            answers.append(json.loads(program.stdout.readline()))
            if sum(map(wrong, answers)) >= enough:
                break
        program.stdin.close()
    return answers


def wrong(answer: Case) -> bool:
    limits = {**LIMITS, "convolution": LIMITS["convolution"][answer["bf16"]]}
    return "ended" in answer or any(
        not answer[key] <= limit for key, limit in limits.items() if key in answer
    )


@pytest.fixture(scope="module")
def factors() -> dict[str, tuple[Any, ...]]:
    """The factors to combine. They include bfloat16 only if the package would use it here."""
    bf16 = machine_of(TRAINER).bf16
    return FACTORS if bf16 else {**FACTORS, "bf16": (False,)}


def test_gradients_of_narrow_networks_equal_those_in_float64(
    factors: dict[str, tuple[Any, ...]],
) -> None:
    """Widths 1 to 17, image sizes, batch sizes, stems, channels, thread counts and precisions are
    combined pairwise. Each case runs in a child process; a crash or hang counts as wrong."""
    answers = run([*KNOWN, *covering(factors)], enough=3)
    assert [each for each in answers if wrong(each)] == []


def test_the_gradient_test_cases_cover_every_pair_of_option_values(
    factors: dict[str, tuple[Any, ...]],
) -> None:
    met = set().union(*map(pairs, covering(factors)))
    for (one, ones), (other, others) in itertools.combinations(factors.items(), 2):
        assert {((one, a), (other, b)) for a in ones for b in others} <= met


@pytest.mark.parametrize("changed", [{"ended": "SIGSEGV"}, {"network": 0.3}, {"convolution": 0.3},
                                     {"network": float("nan")}])  # fmt: skip
def test_crashes_and_large_errors_count_as_wrong_gradients(changed: Case) -> None:
    right = {"bf16": False, "network": 1e-4, "convolution": 1e-6}
    assert not wrong(right)
    assert wrong(right | changed)
    assert not wrong({"bf16": True, "convolution": 0.01})


def test_a_crashed_case_does_not_stop_the_gradient_check() -> None:
    case = {"width": 1, "side": 8, "batch": 1, "stem": "cifar", "threads": 1, "bf16": False,
            "channels": 1}  # fmt: skip
    broken, whole = run([{**case, "name": "none"}, case])
    assert broken["ended"] == "exception"
    assert not wrong(whole)
