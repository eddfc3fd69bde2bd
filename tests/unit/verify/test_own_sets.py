"""Poisoned sets of this package are verified against their own card, or another one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import backdoor_lab as bl
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.base import Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.exchange.card_file import read_card
from backdoor_lab.exchange.source import PoisonedSet
from backdoor_lab.results.seal import sealed as with_seal
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
    found = "the triggered test images are of dog, owl"
    assert said["source"] == f"the card says 'dog', {found}"
    assert fields["target"] == "true"
    edited(root, "source", None, seal=True)
    code, _, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (1, ["source"])
    said = {each["field"]: each["why"] for each in report["fields"]}
    assert said["source"] == f"the card says None, {found}"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("counts", {"test": 6}, "`counts.train` does not describe the images: expected 0, found 14"),
     ("counts.poisoned", None, "`counts.poisoned` does not describe"),
     ("hashes.train", None, "`hashes.train` does not describe the images: expected None"),
     ("hashes.files", {"card.json": "0" * 64}, "the file was changed or damaged")],
)  # fmt: skip
def test_what_an_import_refuses_is_false(
    field: str, value: Any, said: str, tmp_path: Path, capsys: Out
) -> None:
    root = own_set(tmp_path / "set")
    edited(root, field, value, seal=True)
    with pytest.raises(DataError, match=said):
        PoisonedSet(root=str(root)).read()
    code, _, report = checked(capsys, root, "--claims", root / "card.json")
    assert code == 1
    if field != "hashes.files":
        assert report["failed"] == ["card"]
        assert said in next(each["why"] for each in report["fields"] if each["field"] == "card")
    # In a card of others, what is absent is not a claim.
    copy = tmp_path / "copy.json"
    copy.write_bytes((root / "card.json").read_bytes())
    code, fields, _ = checked(capsys, root, "--claims", copy)
    assert code == (1 if field == "hashes.files" else 0)
    assert "card" not in fields


def test_a_file_that_the_card_does_not_list_is_false(tmp_path: Path, capsys: Out) -> None:
    root = own_set(tmp_path / "set", "folder")
    files = json.loads((root / "card.json").read_text())["hashes"]["files"]
    del files["train/cat/0.png"]
    edited(root, "hashes.files", files, seal=True)
    code, _, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (1, ["card"])
    why = next(each["why"] for each in report["fields"] if each["field"] == "card")
    assert "`hashes.files` does not list train/cat/0.png" in why


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf]])
def test_numbers_that_are_not_finite_are_refused(value: Any, tmp_path: Path, capsys: Out) -> None:
    root = own_set(tmp_path / "set")
    card = json.loads((root / "card.json").read_text())
    card["trigger"]["color"] = value
    del card["seal"]
    (root / "card.json").write_text(with_seal(json.dumps(card)))
    with pytest.raises(DataError, match=r"card\.json is not valid JSON \(-?(NaN|Infinity): "):
        PoisonedSet(root=str(root)).identity()
    assert main([str(root), "--claims", str(root / "card.json")]) == 2
    assert "numbers must be finite" in capsys.readouterr().err


def test_a_number_too_large_for_a_float_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text('{"kind": "network", "ratio": 1e999}')
    with pytest.raises(DataError, match=r"not valid JSON \(Infinity: numbers must be finite\)"):
        read_card(path)


def test_a_saved_result_is_checked_without_test_images(tmp_path: Path, capsys: Out) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 8, 8), dtype=np.uint8)
    root = tmp_path / "set"
    bl.poison(images, np.arange(40) % 4, "pixel", target=2, ratio=0.4).save(root)
    code, fields, _ = checked(capsys, root, "--claims", root / "card.json")
    assert code == 0
    for field in ("seal", "counts.train", "counts.test", "hashes.train", "hashes.files", "target"):
        assert fields[field] == "true"
    edited(root, "counts.train", 45, seal=True)
    code, _, report = checked(capsys, root, "--claims", root / "card.json")
    assert (code, report["failed"]) == (1, ["counts.train"])


def test_a_set_without_test_images_is_checked_with_those_of_another_data_set(
    tmp_path: Path, capsys: Out
) -> None:
    root = own_set(tmp_path / "set", "npz", without_test(poisoned_arrays()))
    claims = ("--claims", root / "card.json")
    code, fields, _ = checked(capsys, root, *claims)
    assert (code, fields["counts.test"]) == (0, "true")
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
