"""Poisoned sets of this package are verified against their own card, or another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.data.base import Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.verify.__main__ import main
from tests.helpers.foreign_layouts import CLASSES, clean_file
from tests.helpers.own_sets import (
    MEAN,
    STD,
    WRITERS,
    edited,
    own_set,
    poisoned_arrays,
    without_test,
)
from tests.helpers.released import MODEL, network, written

Out = pytest.CaptureFixture[str]


def checked(capsys: Out, *given: object) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The exit code, the verdict on each field, and the whole report."""
    code = main([*map(str, given), "--json"])
    report = json.loads(capsys.readouterr().out)
    return code, {each["field"]: each["verdict"] for each in report["fields"]}, report


@pytest.mark.parametrize("layout", WRITERS)
def test_a_true_card_holds(layout: str, tmp_path: Path, capsys: Out) -> None:
    root = own_set(tmp_path / "set", layout)
    code, fields, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (0, [])
    true = {name for name, verdict in fields.items() if verdict == "true"}
    assert true >= {
        "seal", "layout", "dataset.classes", "dataset.image", "counts.train", "counts.test",
        "counts.poisoned", "counts.covers", "counts.triggered", "counts.triggered_elsewhere",
        "hashes.train", "hashes.test", "hashes.triggered", "hashes.files", "target",
    }  # fmt: skip


ALTERED: dict[str, Any] = {
    "counts.train": 15, "counts.test": 5, "counts.poisoned": 3, "counts.covers": 0,
    "counts.triggered": 5, "counts.triggered_elsewhere": 0, "hashes.train": "0" * 64,
    "hashes.test": "0" * 64, "hashes.triggered": "0" * 64, "target": "dog", "layout": "parquet",
    "dataset.classes": ["dog", "cat", "owl"], "dataset.image": [3, 8, 9],
}  # fmt: skip


@pytest.mark.parametrize("field", ALTERED)
@pytest.mark.parametrize("layout", ["folder", "npz", "toolbox"])
def test_an_altered_card_is_false_even_with_a_new_seal(
    field: str, layout: str, tmp_path: Path, capsys: Out
) -> None:
    root = own_set(tmp_path / "set", layout)
    edited(root, field, ALTERED[field], seal=True)
    code, fields, report = checked(capsys, root, "--claims", root / "card.json")
    assert code == 1
    # Folders and backdoor-toolbox's files do not say in which order the classes are.
    found = "hashes.train" if field == "dataset.classes" and layout != "npz" else field
    assert fields[found] == "false"
    assert found in report["failed"]
    assert fields["seal"] == "true"


def test_a_fact_that_no_image_tells_breaks_the_seal(tmp_path: Path, capsys: Out) -> None:
    root = own_set(tmp_path / "set")
    edited(root, "ratio", 0.75)
    code, _, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (1, ["seal"])


def test_an_altered_file_is_false(tmp_path: Path, capsys: Out) -> None:
    root = own_set(tmp_path / "set", "folder")
    path = root / "train/cat/0.png"
    path.write_bytes((root / "train/dog/1.png").read_bytes())
    code, _, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (1, ["hashes.train", "hashes.files"])
    said = {each["field"]: each["why"] for each in report["fields"]}
    assert said["hashes.files"] == "train/cat/0.png has another hash"


def test_the_source_is_that_of_the_triggered_images(tmp_path: Path, capsys: Out) -> None:
    root = own_set(tmp_path / "set")
    edited(root, "protocol.asr_on", "source", seal=True)
    edited(root, "source", "dog", seal=True)
    code, fields, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (1, ["source"])
    said = {each["field"]: each["why"] for each in report["fields"]}
    assert said["source"] == "the triggered test images are of dog, owl"
    assert fields["target"] == "true"


def test_a_set_without_test_images_is_checked_with_those_of_another_data_set(
    tmp_path: Path, capsys: Out
) -> None:
    root = own_set(tmp_path / "set", "npz", without_test(poisoned_arrays()))
    claims = ("--claims", root / "card.json")
    assert main([*map(str, (root, *claims))]) == 2
    assert "set --clean" in capsys.readouterr().err
    clean = clean_file(tmp_path / "clean.npz")
    code, fields, _ = checked(capsys, root, *claims, "--clean", clean)
    assert code == 0
    assert fields["hashes.train"] == "true"
    assert fields["counts.test"] == "not checked"


def test_a_network_is_measured_on_an_own_set(tmp_path: Path, capsys: Out) -> None:
    arrays = poisoned_arrays()
    root = own_set(tmp_path / "set", "folder", arrays)
    net = network()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    assert arrays.attack is not None
    attack = arrays.attack
    assert attack.triggered is not None
    assert attack.wanted is not None
    counted = ~attack.elsewhere  # type: ignore[operator]
    triggered = Split(attack.triggered[counted], attack.wanted[counted])
    rates = {}
    for name, split in (("nat", arrays.test), ("asr", triggered)):
        values = torch.from_numpy(split.images).float() - torch.tensor(MEAN)[:, None, None]
        with torch.inference_mode():
            found = net(values / torch.tensor(STD)[:, None, None]).argmax(dim=1).numpy()
        rates[name] = {"value": float(np.mean(found == split.labels)), "n": len(split.labels)}
    card = {
        "format": 1, "kind": "network", "model": MODEL, "classes": list(CLASSES),
        "image": [3, 8, 8], "normalization": {"mean_255": MEAN, "std_255": STD},
        "claims": rates, "target": "cat", "cell": "cell-1",
        "hashes": {"test": content_digest(arrays.test, CLASSES),
                   "triggered": content_digest(triggered, CLASSES)},
    }  # fmt: skip
    claims = written(tmp_path / "w.card.json", card)
    given = (tmp_path / "w.pt", "--claims", claims, "--data", root)
    code, fields, report = checked(capsys, *given)
    assert (code, report["failed"]) == (0, [])
    for field in ("hashes.test", "hashes.triggered", "normalization", "target", "classes"):
        assert fields[field] == "true"
    assert report["claims"]["nat"]["same_test_set"]
    assert report["claims"]["nat"]["difference"] == 0
    # The set comes from the same cell, and its card states another normalization.
    card["normalization"] = {"mean_255": [1.0, 2.0, 3.0], "std_255": STD}
    card["claims"] = {"nat": {"value": 0.0, "n": 6}, "asr": {"value": 0.0, "n": 4}}
    code, _, report = checked(capsys, *given[:2], written(claims, card), *given[3:])
    assert code == 1
    assert "normalization" in report["failed"]
