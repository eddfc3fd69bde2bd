"""Device detection, and the facts about the machine in the record."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch

from backdoor_lab.training import device as machine_module
from backdoor_lab.training.device import machine_of
from tests.helpers.cells import CPU

ROOT = Path(__file__).resolve().parents[3]
TRAINER = {"accelerator": "cpu", "precision": "auto", "channels_last": True, "threads": 1,
           "progress": "none", "checkpoint": False, "cells_per_gpu": 1}  # fmt: skip


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("limit", "bf16"),
    [(None, True), ("", True), ("ALL", True), ("DEFAULT", True), ("AVX512_CORE_BF16", True),
     ("avx512_core_amx", True), ("AVX512_CORE_FP16", True), ("AVX10_1_512", True),
     ("AVX512_CORE", False), ("avx512_core_vnni", False), ("AVX2", False), ("avx2_vnni", False),
     ("AVX2_VNNI_2", False), ("AVX", False), ("SSE41", False)],
)  # fmt: skip
def test_bfloat16_is_chosen_only_if_onednn_may_use_it(
    variable: str, limit: str | None, bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "_cpu_flags", lambda: {"avx512_bf16"})
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv(variable, limit)
    assert machine_of(TRAINER).bf16 == bf16
    assert machine_of({**TRAINER, "precision": "bf16"}).bf16
    assert not machine_of({**TRAINER, "precision": 32}).bf16


def test_a_processor_without_bfloat16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_cpu_flags", lambda: {"avx2", "avx512f"})
    assert not machine_of(TRAINER).bf16


def test_the_facts_about_a_device_include_limits_on_the_instruction_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    facts = CPU.facts()
    assert facts.pop("processor")
    assert facts == {
        "device": "cpu", "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "onednn_max_cpu_isa": "AVX2", "dnnl_max_cpu_isa": None, "aten_cpu_capability": "avx2",
        "threads": 1, "precision": "fp32",
    }  # fmt: skip


def test_ci_repeats_the_training_tests_with_avx2() -> None:
    # If make runs the tests, it sets variables that would change the output of this make.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    said = subprocess.run(
        ["make", "-n", "test-avx2"], cwd=ROOT, capture_output=True, text=True, check=True, env=plain
    ).stdout.splitlines()[-1]
    assert "ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2" in said
    paths = [each for each in said.split() if each.startswith("tests/")]
    assert [each for each in paths if not (ROOT / each).exists()] == []
    training = {f"tests/unit/training/test_{name}.py" for name in ("train", "gradients")}
    assert {"tests/contract", "tests/unit/defenses", *training} < set(paths)
    assert "make test-avx2" in (ROOT / ".ci" / "run").read_text().splitlines()
