"""A user's program that uses each public name passes `mypy --strict`, and wrong types are
reported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import backdoor_lab as bl
from tests.helpers.cells import environment

PACKAGE = Path(bl.__file__).parent
RIGHT = """
from typing import assert_type

import backdoor_lab as bl
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

images: npt.NDArray[np.uint8] = np.zeros((20, 3, 8, 8), np.uint8)
tensors = torch.from_numpy(images)
labels = np.arange(20) % 2
net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))

names: list[str] = bl.list_methods("filters")
version: str = bl.__version__

trigger = bl.get_trigger("pixel", color=200)
trigger.apply_train(images, seed=1)
trigger.fit(images, labels, target=1, source=0, model=net, normalize="bytes").apply_cover(tensors)
needed: frozenset[str] = trigger.requires

poisoned = bl.poison(images, labels, trigger, target=1, ratio=0.2, protocol="group13@1", seed=1)
assert_type(poisoned.target, int)
assert_type(poisoned.source, int | None)
assert_type(poisoned.protocol, str)
poisoned.save("poisoned")
again = type(poisoned).load("poisoned")
report = bl.scan_dataset(images, labels, trusted=(images, labels), alpha=0.1, networks=1)
assert_type(report.exit_code, int)
clean = again.images[again.source_index < 0], again.labels[~again.is_poison & ~again.is_cover]

rows = TensorDataset(tensors, torch.from_numpy(labels))
lazy = bl.PoisonedDataset(rows, trigger, target=1, ratio=0.2, transform=lambda x: x / 255)
label: int = lazy[0][1]
assert_type(lazy.is_poison, Tensor)
for batch in DataLoader(lazy, batch_size=4):
    print(len(batch), len(lazy))

features = bl.extract_features(net, images, layer="1", normalize=((0.5,), (0.25,)))
assert_type(features, npt.NDArray[np.float32])
assert_type(bl.extract_features(net, tensors, batch_size=4, device="cpu"), Tensor)
assert_type(bl.extract_features(net, tensors, normalize=lambda x: 1 - x), Tensor)

found = bl.get_filter("spectral", filter_scope="all", removal_budget="15%", seed=2)
found = found.fit(features, labels, target=1, n_poisoned=3)
kept = images[found.keep_]
classes: list[int] = found.flagged_classes_
notes: dict[str, object] = {**found.notes_}
found.set_params(**found.get_params())

repair = bl.get_repair("fine_pruning", seed=1).fit(net, images, labels, clean=(images, labels))
repaired: nn.Module = repair.model_

measured = bl.evaluate(repaired, images, labels, trigger, target=1, source=0, asr_on="all")
assert_type(measured.nat.value, float)
assert_type(measured.asr.low, float)
assert_type(float(measured.clean_rate) + measured.asr.high, float)
assert_type(measured.per_class, npt.NDArray[np.float64])
assert_type(measured.confusion, npt.NDArray[np.int64])
print(f"{measured.asr:.1%}", measured.asr.n, measured)


def scores(batch: Tensor) -> npt.NDArray[np.float32]:
    return np.zeros((len(batch), 2), np.float32)


def white(batch: Tensor) -> Tensor:
    return torch.full_like(batch, 255)


bl.evaluate(scores, tensors, [0] * 20, white, target=1, confidence=0.9)

cells = bl.read_results(["runs/a", "runs/b"])
print(cells["asr2"].mean(), len(bl.read_results("runs")))
"""
WRONG = """
import backdoor_lab as bl
import numpy as np
import torch
from torch import nn

images = np.zeros((20, 3, 8, 8), np.uint8)
labels = np.arange(20) % 2
net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
trigger = bl.get_trigger("pixel")

bl.list_methods("nonsense")  # arg-type
names: list[int] = bl.list_methods("filters")  # assignment
bl.get_trigger(name="pixel")  # call-arg
bl.get_trigger(3)  # arg-type
trigger.fit(images, labels)  # call-arg
bl.poison(images, labels, trigger, target=1)  # call-arg
bl.poison(images, labels, 3, target=1, ratio=0.1)  # arg-type
bl.poison(images, labels, trigger, target=1, ratio="all").labels  # arg-type
bl.PoisonedDataset([], trigger, target=1, ratio=0.1)["first"]  # index
bl.PoisonedDataset([], trigger, target=None, ratio=0.1)  # arg-type
bl.extract_features(net, images, 5)  # call-overload
bl.extract_features(net, [1, 2])  # call-overload
bl.extract_features("net", images)  # call-overload
bl.extract_features(net, np.zeros((2, 3, 8, 8)))  # arg-type
tensor: torch.Tensor = bl.extract_features(net, images)  # assignment
bl.get_filter("spectral", seed="one")  # arg-type
bl.get_filter("spectral").fit(images)  # call-arg
bl.get_repair("anp").fit(images)  # arg-type
bl.evaluate(net, images, labels, trigger)  # call-arg
bl.evaluate(net, images, labels, trigger, target="cat")  # arg-type
bl.evaluate(net, images, labels, trigger, target=1, asr_on="some")  # arg-type
bl.evaluate(net, images, labels, trigger, target=1).accuracy  # attr-defined
bl.evaluate(net, images, labels, trigger, target=1).nat.value = 1  # misc
bl.read_results(3)  # arg-type
bl.scan_everything()  # attr-defined
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, str]]]:
    """The line and code of each error that mypy reports, by file."""
    folder = tmp_path_factory.mktemp("program")
    (folder / "right.py").write_text(RIGHT)
    (folder / "wrong.py").write_text(WRONG)
    # On PYTHONPATH, and not on MYPYPATH, the package counts as installed: mypy needs its `py.typed`
    # and reports no errors in it.
    options = ("--strict", "--config-file=", "--no-incremental", "--cache-dir", "cache")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "right.py", "wrong.py"],
        cwd=folder, env=environment(MYPYPATH="", PYTHONPATH=str(PACKAGE.parent)),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    lines = re.findall(r"(?m)^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout)
    assert len(lines) == done.stdout.count("error:"), done.stdout
    found: dict[str, list[tuple[int, str]]] = {"right": [], "wrong": []}
    for name, line, code in lines:
        found[name].append((int(line), code))
    return found


def test_a_program_that_uses_each_public_name_passes_mypy(
    errors: dict[str, list[tuple[int, str]]],
) -> None:
    used = set(re.findall(r"\bbl\.(\w+)", RIGHT)) - {"__version__"}
    assert used == set(bl.__all__)
    assert errors["right"] == []


def test_each_wrong_argument_is_reported_by_mypy(
    errors: dict[str, list[tuple[int, str]]],
) -> None:
    lines = WRONG.splitlines()
    marked = [(number, line.rpartition("  # ")) for number, line in enumerate(lines, 1)]
    assert errors["wrong"] == [(number, code) for number, (_, mark, code) in marked if mark]
