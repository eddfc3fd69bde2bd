"""Exported networks: plain torchvision weights whose predictions equal those of the package."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from backdoor_lab.core.tensor_io import tensors_digest, write_tensors
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.export import frame_of
from backdoor_lab.export_weights import export_weights, main
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.training.models import build_model
from tests.helpers.cells import run_here
from tests.helpers.records import documented, write_sweep
from tests.helpers.records import record as made_up

ROOT = Path(__file__).resolve().parents[2]
# Both examples are in the guide to the tables. The second one needs only torchvision.
LOAD_OURS = """\
import json, torch
from safetensors import safe_open
from backdoor_lab.training.models import build_model

with safe_open("network.safetensors", "pt") as file:
    metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
model, classes, *stats = (json.loads(metadata[key]) for key in ("model", "classes", "mean", "std"))
net = build_model(model, channels=len(stats[0]), classes=len(classes), seed=0).eval()
net.load_state_dict(weights)
mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in stats)


def predict(images):  # uint8 (n, C, H, W)
    return net((images / 255 - mean) / std).argmax(dim=1)
"""
LOAD_TORCHVISION = """\
import torch, torchvision
from safetensors.torch import load_file

net = torchvision.models.resnet18(num_classes=10)
net.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)  # stem "cifar": 3 x 3, stride 1,
net.maxpool = torch.nn.Identity()  # and no pooling
net.load_state_dict(load_file("network.safetensors"))
"""
IMAGES, LABELS = (torch.from_numpy(each) for each in draw(5, size=8, split="test", noise=12))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A completed cell in its sweep, next to its store."""
    folder = tmp_path_factory.mktemp("lab")
    made = run_here(folder / ".store", folder / "sweep" / "cell")
    return folder, made


def resealed(record: dict[str, Any]) -> str:
    """The text of a record with a new seal."""
    return sealed(json.dumps({key: value for key, value in record.items() if key != "seal"}))


def loaded(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("which", [1, 2])
def test_the_readme_example_reproduces_the_values_in_the_record(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    folder, record = lab
    out = tmp_path / "network.safetensors"
    assert main([str(folder / "sweep" / "cell"), "--out", str(out), "--which", str(which)]) == 0
    monkeypatch.chdir(tmp_path)
    bird = CLASSES.index("bird")
    triggered = IMAGES[bird != LABELS].clone()
    triggered[:, :, -1, -1] = 255
    with torch.inference_mode():
        names: dict[str, Any] = {}
        exec(compile(LOAD_OURS, "README.md", "exec"), names)
        nat = (names["predict"](IMAGES) == LABELS).double().mean().item()
        asr = (names["predict"](triggered) == bird).double().mean().item()
    assert (nat, asr) == pytest.approx((record[f"nat{which}"], record[f"asr{which}"]))


def test_the_exported_file_describes_its_network(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, record = lab
    said = export_weights(folder / "sweep" / "cell", tmp_path / "x.safetensors", which=1)
    metadata, weights = loaded(tmp_path / "x.safetensors")
    assert metadata == said
    assert json.loads(said["classes"]) == list(CLASSES)
    assert (said["stem"], said["width"], json.loads(said["image"])) == ("cifar", "4", [3, 8, 8])
    assert said["weights"] == record["hashes"]["weights1"] == tensors_digest(weights)
    clean = draw(20, size=8, split="train", noise=12)[0].astype(np.float64)
    for name, scale in (("", 255), ("_255", 1)):
        mean, std = clean.mean(axis=(0, 2, 3)), clean.std(axis=(0, 2, 3))
        assert json.loads(said[f"mean{name}"]) == pytest.approx(mean / scale, rel=1e-6)
        assert json.loads(said[f"std{name}"]) == pytest.approx(std / scale, rel=1e-6)
    assert "poisoned with pixel for bird" in said["network"]


def test_weight_names_equal_those_of_torchvision(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    models = pytest.importorskip("torchvision.models")
    export_weights(lab[0] / "sweep" / "cell", tmp_path / "x.safetensors")
    _, weights = loaded(tmp_path / "x.safetensors")
    assert set(weights) == set(models.resnet18(num_classes=10).state_dict())
    assert all(value.is_contiguous() for value in weights.values())


def test_weights_of_the_standard_network_load_into_resnet18_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network has width 64 and the stem `cifar`. Only the two layers in the example must be
    changed."""
    ours = build_model({"name": "resnet18", "width": 64, "stem": "cifar"}, channels=3, classes=10,
                       seed=3).eval()  # fmt: skip
    write_tensors(tmp_path / "network.safetensors", ours.state_dict())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(LOAD_TORCHVISION, "README.md", "exec"), names)
    batch = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(names["net"].eval()(batch), ours(batch), rtol=0, atol=0)


def test_the_guide_contains_the_examples_that_are_tested_here() -> None:
    guide = (ROOT / "backdoor_lab/tables/README.md").read_text()
    assert LOAD_OURS in guide
    assert LOAD_TORCHVISION in guide


def copy(lab: tuple[Path, dict[str, Any]], where: Path) -> tuple[Path, Path, dict[str, Any]]:
    shutil.copytree(lab[0], where)
    cell = where / "sweep" / "cell"
    return cell, where / ".store", json.loads((cell / "record.json").read_text())


def refused(cell: Path, capsys: pytest.CaptureFixture[str], *given: str) -> str:
    out = cell.parent / "x.safetensors"
    assert main([str(cell), "--out", str(out), *given]) in (1, 2)
    assert not out.exists()
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    return told


def test_weights_that_do_not_match_the_record_are_refused(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, store, record = copy(lab, tmp_path / "lab")
    path = store / "retrain" / record["run"]["stages"]["retrain"]["id"] / "weights.safetensors"
    other = store / "train" / record["run"]["stages"]["train"]["id"] / "weights.safetensors"
    shutil.copy(other, path)
    assert "do not match the hash" in refused(cell, capsys)
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be read" in refused(cell, capsys)
    path.unlink()
    assert "remove the cell's record.json" in refused(cell, capsys)
    shutil.rmtree(store / "data")
    assert "normalization is unknown" in refused(cell, capsys, "--which", "1")
    shutil.rmtree(store)
    assert "--store" in refused(cell, capsys)


def test_a_moved_store_is_found_through_the_configuration_of_the_last_run(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    cell, store, _ = copy(lab, tmp_path / "lab")
    store.rename(tmp_path / "disk")
    (cell.parent / "multirun.yaml").write_text(f"store:\n  root: {tmp_path / 'disk'}\n")
    export_weights(cell, tmp_path / "x.safetensors")
    assert loaded(tmp_path / "x.safetensors")[1]


def test_a_ratio_counted_in_images_is_not_described_as_a_percentage(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    cell, _, record = copy(lab, tmp_path / "lab")
    said = export_weights(cell, tmp_path / "x.safetensors")
    assert "(ratio 30%)" in said["network"]
    record["choices"]["ratio"], record["protocol"]["ratio_of"] = 6, "count"
    (cell / "record.json").write_text(resealed(record))
    assert "(ratio 6)" in export_weights(cell, tmp_path / "x.safetensors")["network"]


def test_export_is_refused_if_the_training_images_were_modified(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell, store, _ = copy(lab, tmp_path / "lab")
    (path,) = store.glob("data/*/train_images.npy")
    images = np.load(path, allow_pickle=False)
    images[0, 0, 0, 0] ^= 255
    np.save(path, images, allow_pickle=False)
    assert "normalization is unknown" in refused(cell, capsys)


def test_an_edited_record_is_refused(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = tmp_path / "cell"
    shutil.copytree(lab[0] / "sweep" / "cell", cell)
    text = (cell / "record.json").read_text()
    (cell / "record.json").write_text(re.sub(r'"nat1": [0-9.]+', '"nat1": 0.9125', text))
    out = tmp_path / "x.safetensors"
    assert main([str(cell), "--out", str(out), "--store", str(lab[0] / ".store")]) == 2
    assert "the seal does not match" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "failed: oom"}, "is not done"), ({"hashes": 3}, "is damaged"),
        ({"run": {}}, "is damaged"), ({"config": {"model": 3}}, "is damaged"),
        ({"run": {"stages": {"retrain": {"id": "../../secret"}}}}, "must match"),
        ({"run": {"stages": {}}}, "has no output"),
    ],
)  # fmt: skip
def test_an_unusable_record_is_refused(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    change: dict[str, Any], said: str,
) -> None:  # fmt: skip
    cell, _, record = copy(lab, tmp_path / "lab")
    (cell / "record.json").write_text(resealed(record | change))
    assert said in refused(cell, capsys)
    (cell / "record.json").write_text("{")
    assert "is damaged" in refused(cell, capsys)
    (cell / "record.json").unlink()
    assert "not a cell's folder" in refused(cell, capsys)


def test_a_bad_output_file_name_is_refused(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x.pt", "no/x.safetensors"):
        assert main([str(lab[0] / "sweep" / "cell"), "--out", str(tmp_path / name)]) == 2
        assert "`--out` must be" in capsys.readouterr().err


def leaves(value: Any, before: str = "") -> dict[str, Any]:
    """The scalar values of a record, by their dotted names."""
    if isinstance(value, dict):
        return {
            k: v for key, each in value.items() for k, v in leaves(each, f"{before}{key}.").items()
        }
    return {} if isinstance(value, list) else {before.removesuffix("."): value}


def test_every_value_of_a_new_record_is_exported(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Every field is a documented column or one of the exceptions listed in this test."""
    found = frame_of([read_sweep(lab[0] / "sweep")])
    line = found.iloc[0]
    elsewhere = ("config.", "dataset.", "run.stages.", "detection.curve", "schema", "protocol.name",
                 "notes.", "run.code.", "seal")  # fmt: skip
    for name, value in leaves(lab[1]).items():
        if name.startswith(elsewhere):
            continue
        column = name.removeprefix("choices.").removeprefix("counts.").removeprefix("detection.")
        column = column.removeprefix("run.").replace("process_peak", "peak")
        assert documented(column), name
        assert column in line, name
        if isinstance(value, (int, float)) and not name.startswith(
            ("protocol.", "applied.", "run.compute.")
        ):
            assert line[column] == pytest.approx(value)
    write_sweep(tmp_path / "other", [made_up()])
    assert len(frame_of([read_sweep(lab[0] / "sweep"), read_sweep(tmp_path / "other")])) == 2
