"""Training starts from the weights of a local file (``model.weights=FILE``)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.training.device import ComputeDevice
from backdoor_lab.training.initial import with_weights
from backdoor_lab.training.models import build_model
from backdoor_lab.training.train import TrainingJob, new_classifier
from tests.helpers.cells import CPU, cell_of, job, run_here

MODEL: dict[str, Any] = {"name": "wideresnet10_1", "width": None, "stem": None}
WORDS = ("model=wideresnet", "model.name=wideresnet10_1", "model.width=null")


def pretrained(classes: int = 7, seed: int = 5) -> dict[str, Tensor]:
    net = build_model(MODEL, channels=3, classes=classes, seed=seed)
    return dict(net.state_dict())


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def started(path: Path, machine: ComputeDevice = CPU) -> Any:
    model = with_weights(MODEL | {"weights": str(path)})
    of = job()
    return new_classifier(TrainingJob(model, of.recipe, of.training, 1, of.mean, of.std), machine)


def test_all_layers_but_a_head_for_other_classes_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = pretrained()
    path = saved(tmp_path / "w.safetensors", tensors)
    caplog.set_level(logging.INFO)
    module = started(path)
    found = module.net.state_dict()
    fresh = {"fc.weight", "fc.bias"}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors.keys() - fresh)
    assert found["fc.weight"].shape == (2, 64)
    random = build_model(MODEL, channels=3, classes=2, seed=1).state_dict()
    assert torch.equal(found["fc.weight"], random["fc.weight"])
    assert module.initial == "all layers but `fc`, which has new random weights"
    assert f"initial weights from {path}: all layers but `fc`" in caplog.text


def test_a_head_of_the_same_shape_is_loaded_and_a_missing_one_is_new(tmp_path: Path) -> None:
    tensors = pretrained(classes=2)
    whole = started(saved(tmp_path / "a.safetensors", tensors))
    assert torch.equal(whole.net.fc.weight, tensors["fc.weight"])
    assert whole.initial == "all layers"
    without = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    rest = started(saved(tmp_path / "b.safetensors", without))
    assert not torch.equal(rest.net.fc.weight, tensors["fc.weight"])
    assert torch.equal(rest.net.conv1.weight, tensors["conv1.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv1.weight": torch.zeros(16, 1, 3, 3)}, r"conv1.weight has the shape \(16, 1, 3, 3\)"),
        ({"block4.weight": torch.zeros(2)}, "unexpected block4.weight"),
        ({"conv1.weight": None}, "missing conv1.weight"),
    ],
)
def test_any_other_difference_is_refused_before_any_work(
    changes: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {k: v for k, v in (pretrained() | changes).items() if v is not None}
    path = saved(tmp_path / "w.safetensors", tensors)
    with pytest.raises(ConfigError, match=f"only its last layer, `fc`, may.*: {message}"):
        cell_of(tmp_path / "store", *WORDS, f"model.weights={path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.pt", "`model.weights`: .*none.pt: No such file"), ("bad.pt", "bad.pt: not a valid")],
)
def test_a_file_that_cannot_be_read_is_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"junk")
    with pytest.raises(DataError, match=message):
        cell_of(tmp_path, *WORDS, f"model.weights={tmp_path / name}")


def test_a_file_that_refers_to_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": pretrained(), "extra": Path}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=r"w.pt: refers to pathlib.*Path, which is refused"):
        cell_of(tmp_path, *WORDS, f"model.weights={tmp_path / 'w.pt'}")


def test_the_tensors_decide_the_cell_and_not_the_file(tmp_path: Path) -> None:
    one = saved(tmp_path / "one.safetensors", pretrained())
    other = saved(tmp_path / "other.safetensors", pretrained(seed=6))
    torch.save({"state_dict": pretrained()}, tmp_path / "same.pt")
    ids = [cell_of(tmp_path, *WORDS, f"model.weights={path}").id
           for path in (one, tmp_path / "same.pt", other)]  # fmt: skip
    assert ids[0] == ids[1]
    assert len({cell_of(tmp_path, *WORDS).id, *ids}) == 3


def test_a_file_that_has_changed_since_the_check_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", pretrained())
    model = with_weights(MODEL | {"weights": str(path)})
    saved(path, pretrained(seed=6))
    of = job()
    with pytest.raises(DataError, match="has changed since the start of this command"):
        new_classifier(TrainingJob(model, of.recipe, of.training, 1, of.mean, of.std), CPU)


def test_a_cell_starts_from_the_file_and_records_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", pretrained(classes=10))
    record = run_here(
        tmp_path / "store", tmp_path / "cell", *WORDS, f"model.weights={path}", "recipe.lr=0",
        "defense=fine_pruning", "protocol.clean_holdout=20", "defense.epochs=0",
    )  # fmt: skip
    said = record["run"]["initial_weights"]
    digest = record["config"]["model"]["weights"]
    assert said == {"file": str(path), "digest": digest, "used_for": "all layers"}
    assert record["choices"]["model"] == f"wideresnet10_1 pretrained={digest[:8]}"
    assert str(tmp_path) not in str(record["config"])
