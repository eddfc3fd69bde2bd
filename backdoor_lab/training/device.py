"""The device, precision and threads with which a cell is computed.

Only the precision is part of a stage's id: the device and the number of threads change results only
by rounding.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, many
from backdoor_lab.core.lazy import torch
from backdoor_lab.core.resources import cores
from backdoor_lab.training.gpu_lock import cuda_names, own_device

ACCELERATORS = ("auto", "cpu", "gpu")
MOST = 1024
"""The maximum number of threads per cell, and of cells per GPU. No machine has more cores, and some
libraries end the process if they cannot create the requested threads."""
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""The environment variables that limit the instruction sets used by oneDNN (two names) and
PyTorch."""
BEFORE_BF16 = ("AVX", "AVX512_CORE", "AVX512_CORE_VNNI")


@dataclass(frozen=True)
class ComputeDevice:
    """A device and how to compute on it.

    With `bf16`, forward and backward passes use bfloat16; weights are stored in float32.
    """

    device: torch.device
    bf16: bool
    channels_last: bool
    threads: int

    def describe(self) -> str:
        """Describe the device and the precision in one line, for records."""
        number = "bf16" if self.bf16 else "fp32"
        if self.device.type == "cuda":
            return f"gpu: {torch.cuda.get_device_name(self.device)}, {number}"
        return f"cpu: {_processor()}, {many(self.threads, 'thread')}, {number}"

    def autocast(self) -> torch.autocast:
        """An autocast context for forward passes: bfloat16 if `bf16` is set, otherwise disabled."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def facts(self) -> dict[str, Any]:
        """The properties of the machine that can affect results or speed, for records."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else "cpu",
            "processor": _processor(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
            **{name.lower(): os.environ.get(name) for name in ISA_LIMITS},
            "threads": self.threads,
            "precision": "bf16" if self.bf16 else "fp32",
        }


def machine_of(config: dict[str, Any], *, parallel_cells: int = 1) -> ComputeDevice:
    """Create the ComputeDevice that a `trainer` group selects.

    Without `trainer.threads`, the cores are divided among the `parallel_cells`. Raises ConfigError
    if a GPU is selected and there is none.
    """
    check_trainer(config)
    wanted = config["accelerator"]
    found = torch.cuda.is_available()
    if wanted == "gpu" and not found:
        raise ConfigError(
            "`trainer=gpu` needs a GPU, but torch finds none: set trainer=cpu, or trainer=auto,"
            " which uses a GPU if there is one"
        )
    device = torch.device("cuda" if found and wanted != "cpu" else "cpu")
    threads = int(config["threads"] or 0) or max(1, cores() // max(1, parallel_cells))
    return ComputeDevice(
        device, _bf16(config["precision"], device), config["channels_last"], threads
    )


@contextmanager
def held(machine: ComputeDevice, cells_per_gpu: int) -> Iterator[ComputeDevice]:
    """A context manager that reserves a GPU for a cell if `machine` is a GPU. Yields the machine
    with the index of the reserved GPU. A CPU needs no reservation."""
    if machine.device.type != "cuda":
        yield machine
        return
    with own_device(cuda_names(), share=cells_per_gpu) as number:
        yield replace(machine, device=torch.device("cuda", number))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Context manager in which convolutions on a GPU do not use TF32."""
    # By default, convolutions on a GPU round their inputs to a mantissa of 10 bits.
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def check_trainer(config: dict[str, Any]) -> None:
    """Raises ConfigError if a `trainer` group has an unknown key or an invalid value."""
    keys = ("accelerator", "precision", "channels_last", "threads", "progress", "checkpoint",
            "cells_per_gpu")  # fmt: skip
    validation.keys("trainer", config, keys)
    validation.choice("trainer.accelerator", config["accelerator"], ACCELERATORS)
    validation.choice("trainer.precision", str(config["precision"]), ("auto", "32", "bf16"))
    validation.choice("trainer.progress", config["progress"], ("auto", "bar", "lines", "none"))
    validation.flag("trainer.channels_last", config["channels_last"])
    validation.flag("trainer.checkpoint", config["checkpoint"])
    validation.whole("trainer.cells_per_gpu", config["cells_per_gpu"], low=1, below=MOST + 1)
    if config["threads"] is not None:
        validation.whole("trainer.threads", config["threads"], low=1, below=MOST + 1)


def _bf16(precision: object, device: torch.device) -> bool:
    if str(precision) != "auto":
        return str(precision) == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Without these instructions, bfloat16 is emulated, which is slower than float32.
    return bool({"avx512_bf16", "amx_bf16"} & _cpu_flags()) and not _limited_below_bf16()


def _limited_below_bf16() -> bool:
    """Whether an environment variable keeps oneDNN from using bfloat16 instructions."""
    limits = [os.environ.get(name, "").upper() for name in ISA_LIMITS[:2]]
    return any(limit.startswith(("SSE", "AVX2")) or limit in BEFORE_BF16 for limit in limits)


def _cpuinfo(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == key), "")


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _processor() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()
