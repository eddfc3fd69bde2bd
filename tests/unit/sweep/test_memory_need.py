"""The memory that a cell needs at least: its estimate, and the refusal of cells that cannot fit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_lab.core import resources
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.sweep import memory
from backdoor_lab.sweep.launching.parallel import Parallelism
from backdoor_lab.sweep.memory import (
    PROCESS_BYTES,
    MemoryNeed,
    check_fits,
    describe_memory,
    fitted,
    memory_need,
    network_sizes,
)
from backdoor_lab.sweep.preflight import Preflight
from tests.helpers.cells import CPU, TINY, configuration, environment

GPU = replace(CPU, device=torch.device("cuda"))
GIGABYTE = 10**9


def need_of(root: Path, *overrides: str, machine: Any = CPU) -> MemoryNeed:
    preflight = Preflight()
    cell: Cell = preflight.cell(configuration(root, *overrides))
    data = preflight.data(cell)
    layer = cell.protocol["layer"]
    sizes = network_sizes(cell.model, layer, data.train.shape, len(data.classes))
    return memory_need(cell, data, machine, sizes)


def need(size: int, step: str = "training") -> MemoryNeed:
    return MemoryNeed({step: size}, {}, 0)


def available(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(resources, "free_memory", lambda: size)


def test_the_sizes_of_a_network_are_those_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per image, in float32: a training step keeps the input of the convolution (3·8·8), and the
    output of the ReLU (4·8·8), which is also the input of the linear layer. The largest input and
    output of a module are those of the ReLU, which is not done in place."""

    def net(*_: object, **__: object) -> nn.Module:
        conv = nn.Conv2d(3, 4, 3, padding=1)
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(256, 2))

    monkeypatch.setattr(memory, "build_model", net)
    found = network_sizes({}, "penultimate", (3, 8, 8), 2)
    parameters = 4 * 27 + 4 + 512 + 2
    assert (found.weights, found.trained) == (4 * parameters, 4 * parameters)
    assert found.kept == 4 * (3 * 64 + 4 * 64)
    assert found.passing == 4 * 2 * 256
    assert found.features == 256


def test_a_network_that_the_meta_device_cannot_compute_is_measured_on_the_cpu() -> None:
    """`inception`-like networks use operations without shape functions, such as `nonzero`."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.flatten().nonzero()
            return self.fc(x.flatten(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "build_model", lambda *_, **__: Odd())
        found = network_sizes({}, "penultimate", (3, 8, 8), 2)
    assert found.weights == 4 * (2 * 192 + 2)
    assert found.features == 192


def test_training_needs_weights_gradients_moments_and_activations(tmp_path: Path) -> None:
    model = {"name": "resnet18", "width": 4, "stem": "cifar"}
    sizes = network_sizes(model, "penultimate", (3, 8, 8), 10)
    found = need_of(tmp_path, "recipe.batch_size=16").host["training"]
    assert found == sizes.weights + 2 * sizes.trained + 16 * sizes.kept
    without = need_of(tmp_path, "recipe.batch_size=16", "recipe.momentum=0").host["training"]
    assert without == found - sizes.trained
    adamw = need_of(tmp_path, "recipe=adamw", "recipe.batch_size=16").host["training"]
    assert adamw == found + sizes.trained
    bf16 = need_of(tmp_path, "recipe.batch_size=16", machine=replace(CPU, bf16=True))
    assert bf16.host["training"] == found - 8 * sizes.kept


def test_the_need_grows_with_batch_size_images_width_and_features(tmp_path: Path) -> None:
    small = need_of(tmp_path)
    assert need_of(tmp_path, "recipe.batch_size=64").host["training"] > small.host["training"]
    # A batch has at most all 206 images.
    whole = need_of(tmp_path, "recipe.batch_size=206").host["training"]
    assert need_of(tmp_path, "recipe.batch_size=4096").host["training"] == whole
    wide = need_of(tmp_path, "model.width=8")
    assert all(wide.host[step] > small.host[step] for step in ("training", "evaluation"))
    more = need_of(tmp_path, "dataset.per_class_train=40")
    steps = ("evaluation", "features", "filtering", "poisoning")
    assert all(more.host[step] > small.host[step] for step in steps)
    assert more.mapped == small.mapped + 200 * 192
    flat = need_of(tmp_path, "protocol.layer=layer1")
    # 256 features instead of 32, and the same Gram matrix of 20 images.
    assert flat.host["filtering"] == small.host["filtering"] + 4 * 20 * (256 - 32)


def test_filters_add_the_matrices_that_they_need(tmp_path: Path) -> None:
    rows, d = 20, 4 * 64
    found = {
        name: need_of(tmp_path, f"defense={name}", "protocol.layer=layer1",
                      "protocol.clean_holdout=20").host["filtering"]
        for name in ("knn", "spectral", "scan", "none", "oracle", "strip")
    }  # fmt: skip
    assert found == {
        "knn": 4 * rows * d, "spectral": 4 * rows * d + 4 * rows**2, "scan": 3 * 8 * d**2,
        "none": 0, "oracle": 0, "strip": 0,
    }  # fmt: skip


def test_on_a_gpu_images_and_activations_count_for_the_gpu(tmp_path: Path) -> None:
    on_cpu, found = need_of(tmp_path), need_of(tmp_path, machine=GPU)
    assert found.host.keys() == {"poisoning", "features", "filtering"}
    images, poisoned = 200, 6
    held = (images + poisoned) * 192 + 2 * 8 * 206
    assert found.device["training"] == on_cpu.host["training"] + held
    assert found.device_peak()[0] == "training"
    assert on_cpu.device_peak() == ("", 0)


def test_a_cell_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, GIGABYTE)
    check_fits(need(GIGABYTE))
    with pytest.raises(ConfigError) as caught:
        check_fits(need(2 * GIGABYTE))
    assert str(caught.value) == (
        "training needs at least 2.0 GB of memory, but 1.0 GB are available:"
        " lower recipe.batch_size, model.width or dataset.size"
    )
    with pytest.raises(ConfigError, match=r"features needs .*another protocol.layer"):
        check_fits(need(2 * GIGABYTE, "features"))
    available(monkeypatch, None)
    check_fits(need(2**60))


def test_cells_that_share_a_gpu_divide_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, GIGABYTE)
    monkeypatch.setattr(memory, "_gpu_memory", lambda: 4 * GIGABYTE)
    on_gpu = MemoryNeed({"features": 1}, {"training": 3 * GIGABYTE}, 0)
    check_fits(on_gpu)
    with pytest.raises(
        ConfigError, match=r"training needs at least 3.0 GB of GPU memory, but the GPU has 4.0 GB,"
        r" shared by 2 cells \(trainer.cells_per_gpu\): lower recipe.batch_size",
    ):  # fmt: skip
        check_fits(on_gpu, share=2)


def test_cells_side_by_side_need_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cells of 1 GB and 0.25 GB for each process; 3 GB hold two of them."""
    available(monkeypatch, 3 * GIGABYTE)
    needs = [need(GIGABYTE)] * 4
    assert PROCESS_BYTES == GIGABYTE // 4
    chosen, automatic = Parallelism(4), Parallelism(4, 1, "4 cores")
    with pytest.raises(ConfigError) as caught:
        fitted(needs, chosen, 1)
    assert str(caught.value) == (
        "4 cells at a time need at least 5.0 GB of memory, but 3.0 GB are available:"
        " set hydra.launcher.n_jobs=2, or lower recipe.batch_size, model.width or dataset.size"
    )
    assert fitted(needs, automatic, 1).cells == 2
    assert fitted(needs[:2], chosen, 1) == chosen
    assert fitted(needs, Parallelism(1), 1).cells == 1
    assert fitted(needs, replace(chosen, here=False), 1).cells == 4
    with pytest.raises(ConfigError, match=r"training needs at least 4.0 GB"):
        fitted([need(4 * GIGABYTE)], automatic, 1)


def test_a_dry_run_states_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    available(monkeypatch, 8 * GIGABYTE)
    needs = [need(GIGABYTE), replace(need(2 * GIGABYTE, "features"), mapped=5_000_000)]
    assert describe_memory([], 2) == []
    assert describe_memory(needs, 1) == [
        "memory: at least 2.0 GB for features; 8.0 GB available;"
        " 5 MB of images are read from the disk as needed"
    ]
    assert "for features; 3.5 GB for 2 cells at a time; 8.0 GB" in describe_memory(needs, 2)[0]


LIMITED = """
import sys
from backdoor_lab.core import resources
resources.free_memory = lambda root=None: 1_000_000
from backdoor_lab.run import main
main()
"""


@pytest.mark.parametrize("mode", [(), ("dry_run=true",), ("-m",)])
def test_the_command_refuses_before_any_work(tmp_path: Path, mode: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *mode, *TINY, "model.width=16"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "needs at least" in done.stderr
    assert "but 1 MB are available" in done.stderr
    assert not list(tmp_path.iterdir())


MEASURED = """
import json, sys, threading
from pathlib import Path
from tests.helpers.cells import run_here

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

root, *overrides = sys.argv[1:]
import torch, pytorch_lightning, backdoor_lab.sweep.memory
torch.nn.Conv2d(3, 3, 3)(torch.zeros(2, 3, 8, 8)).sum().backward()
before, peak, done = anonymous(), [0], threading.Event()

def sample():
    while not done.wait(0.005):
        peak.append(anonymous())

thread = threading.Thread(target=sample)
thread.start()
record = run_here(Path(root), Path(root) / "cell", *overrides)
done.set()
thread.join()
print(json.dumps([record["status"], max(peak) - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is in /proc")
def test_the_estimate_is_a_lower_bound_of_what_a_cell_takes(tmp_path: Path) -> None:
    """A batch of 128 images of 32x32 pixels; the rest of a cell takes less than 400 MB."""
    words = ("dataset.size=32", "model.width=16", "recipe.batch_size=128", "defense=spectral")
    step, estimated = need_of(tmp_path / "store", *words).peak()
    assert step == "training"
    assert estimated > 150e6
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), *words],
        cwd=Path.cwd(), env=environment(), capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    status, measured = json.loads(done.stdout.splitlines()[-1])
    assert status == "done"
    assert estimated <= measured <= 2 * estimated + 400e6
