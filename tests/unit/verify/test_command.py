"""`python -m backdoor_lab.verify` on files and folders."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from backdoor_lab.results.seal import write_sealed
from backdoor_lab.verify.__main__ import main
from tests.helpers.foreign_layouts import Bomb, toolbox_set
from tests.helpers.released import released, written

Out = pytest.CaptureFixture[str]


def run(root: Path, *given: object) -> int:
    """The exit code of the command. The clean images of a record are those that `released` wrote
    next to it."""
    base = next(each for each in (root, *root.parents) if each.name.startswith("test_"))
    clean = base / "data" / "clean.npz"
    return main([str(each) for each in (root, *given, "--clean", clean)])


Released = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A released record, which tests must not change, and the card of its network."""
    return released(tmp_path_factory.mktemp("test_record"))


def refused(capsys: Out, root: Path, *given: object) -> str:
    """The line of the error of a command that exits with 2."""
    assert run(root, *given) == 2
    said = capsys.readouterr()
    assert not said.out
    assert len(said.err.splitlines()) == 1
    return said.err


def test_a_true_card_of_a_released_record_exits_with_0(
    once: Released, tmp_path: Path, capsys: Out
) -> None:
    root, card = once
    claims = written(tmp_path / "card.json", card)
    assert run(root, "--claims", claims) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "every checked claim holds"
    assert len(said.splitlines()) > 5
    assert "rule: same test set (by hash)" in said
    assert "intervals: 95 % (Wilson)" in said
    assert run(root / "attack_result.pt", "--claims", claims) == 0
    assert run(root / "attack_result.pt", "--claims", claims, "--data", root) == 0


def test_an_altered_claim_exits_with_1_and_says_by_how_much(tmp_path: Path, capsys: Out) -> None:
    root, card = released(tmp_path)
    nat = card["claims"]["nat"]
    nat.update(value=1.0 - nat["value"] if nat["value"] != 0.5 else 1.0, n=100_000)
    asr = card["claims"]["asr"]
    asr.update(value=1.0 - asr["value"], n=100_000)
    assert run(root, "--claims", written(tmp_path / "card.json", card)) == 1
    said = capsys.readouterr().out
    assert "DOES NOT HOLD" in said
    assert "misses 0 by" in said
    assert said.splitlines()[-1].endswith("claims.asr")


def test_an_edited_card_with_a_seal_is_found(once: Released, tmp_path: Path, capsys: Out) -> None:
    root, card = once
    path = tmp_path / "attack_result.card.json"
    write_sealed(path, card)
    assert run(root, "--claims", path) == 0
    assert "true: seal" in capsys.readouterr().out
    text = path.read_text()
    # Nothing else could tell that this fact is false.
    path.write_text(text.replace('"format": 1', '"format": 1,\n "ratio": 0.5'))
    assert run(root, "--claims", path) == 1
    assert "FALSE seal: the card was edited" in capsys.readouterr().out


def test_a_card_cannot_forge_a_line_of_the_report(tmp_path: Path, capsys: Out) -> None:
    root, card = released(tmp_path)
    card["target"] = "cat\nevery checked claim holds"
    assert run(root, "--claims", written(tmp_path / "card.json", card)) == 1
    assert "every checked claim holds" not in capsys.readouterr().out.splitlines()


def test_the_report_is_also_json(once: Released, tmp_path: Path, capsys: Out) -> None:
    root, card = once
    claims = written(tmp_path / "card.json", card)
    assert run(root, "--claims", claims, "--json", "--out", tmp_path / "report.json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "report.json").read_text())
    assert said["holds"] is True
    nat = said["claims"]["nat"]
    assert nat["measured"] == nat["claimed"] == nat["correct"] / nat["n"]
    assert nat["wilson_95"][0] <= nat["measured"] <= nat["wilson_95"][1]
    assert {"unit", "newcombe_95", "difference", "beyond"} <= nat.keys()
    assert "report.json" in refused(
        capsys, root, "--claims", claims, "--out", tmp_path / "no" / "report.json"
    )


def test_the_clean_images_that_a_record_lacks_are_asked_for(tmp_path: Path, capsys: Out) -> None:
    root, card = released(tmp_path)
    assert main([str(root), "--claims", str(written(tmp_path / "card.json", card))]) == 2
    assert "set --clean to the data set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("value", "card.json is not valid JSON (NaN: numbers must be finite)"),
        ("negative", "got -0.1"),
        ("percent", "got 91.2"),
        ("text", "for 91.2 %, write 0.912"),
        ("flag", "got True"),
        ("infinity", "card.json is not valid JSON (Infinity: numbers must be finite)"),
        ("n", "`claims.nat.n` must be a whole number"),
        ("none", "`claims.nat.n` must satisfy 1 <= claims.nat.n"),
        ("key", "is not known"),
        ("bare", "must be an object with `value` and `n`, got 0.9"),
    ],
)
def test_a_value_that_is_no_claim_is_refused(
    once: Released, tmp_path: Path, capsys: Out, name: str, said: str
) -> None:
    root, card = once[0], copy.deepcopy(once[1])
    card["claims"]["nat"] = {
        "value": {"value": math.nan}, "negative": {"value": -0.1}, "percent": {"value": 91.2},
        "text": {"value": "91.2 %"}, "flag": {"value": True}, "infinity": {"value": math.inf},
        "n": {"value": 0.5, "n": 2.5}, "none": {"value": 0.5, "n": 0},
        "key": {"value": 0.5, "images": 3}, "bare": 0.9,
    }[name]  # fmt: skip
    claims = written(tmp_path / "card.json", card)
    assert said in refused(capsys, root, "--claims", claims)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "model"}, "`kind` 'model' is not known"),
        ({"format": 2}, "`format` 2 is not known"),
        ({"format": True}, "`format` True is not known"),
        ({"format": 1.0}, "`format` 1.0 is not known"),
        ({"trigger": {"position": [-math.inf]}}, "not valid JSON (-Infinity: numbers must be"),
        ({"claims": {}}, "must have nat, asr or both"),
        ({"claims": [1]}, "`claims` must be an object"),
        ({"claims": {"accuracy": {"value": 1}}}, "'accuracy' is not known"),
        ({"classes": "cat"}, "`classes` must be a list"),
        ({"classes": ["cat", "cat", "owl"]}, "different names"),
        ({"image": [3, 8]}, "`image` must be [channels, height, width]"),
        ({"image": [3, 8, "8"]}, "`image` must"),
        ({"normalization": [0.5, 0.5]}, "must have mean_255 and std_255"),
        ({"normalization": {"mean_255": [1, 1, 1], "std_255": [0, 1, 1]}}, "std_255` must satisfy"),
        ({"normalization": {"mean_255": [1, 1, 1], "std_255": [1, 1]}}, "a number for each"),
        ({"model": "resnet18"}, "`model` must be an object"),
        ({"model": {"name": "resnet18", "depth": 3}}, "is not known"),
        ({"weights": 7}, "`weights` must be a non-empty string"),
        ({"precision": "fp8"}, "`precision` 'fp8' is not known"),
        ({"hashes": {"test": 3}}, "`hashes.test` must be a non-empty string"),
    ],
)
def test_a_card_of_another_form_is_refused(
    once: Released, tmp_path: Path, capsys: Out, change: dict[str, Any], said: str
) -> None:
    root, card = once
    claims = written(tmp_path / "card.json", card | change)
    assert said in refused(capsys, root, "--claims", claims)


def test_what_cannot_be_read_is_named(tmp_path: Path, capsys: Out) -> None:
    root, card = released(tmp_path)
    claims = written(tmp_path / "card.json", card)
    assert "gone.json: no such file" in refused(capsys, root, "--claims", tmp_path / "gone.json")
    assert "gone: no such file" in refused(capsys, tmp_path / "gone", "--claims", claims)
    broken = written(tmp_path / "broken.json", "{")
    assert "not valid JSON" in refused(capsys, root, "--claims", broken)
    lines = written(tmp_path / "list.json", "[1, 2]")
    assert "a card is a JSON object" in refused(capsys, root, "--claims", lines)
    assert "is a directory" in refused(capsys, root, "--claims", tmp_path)
    (tmp_path / "w.pt").write_bytes(b"no weights")
    said = refused(capsys, tmp_path / "w.pt", "--claims", claims, "--data", root)
    assert "w.pt" in said
    alone = tmp_path / "alone"
    alone.mkdir()
    (root / "attack_result.pt").rename(alone / "other.pt")
    said = refused(capsys, alone / "other.pt", "--claims", claims)
    assert "give the data set with --data" in said
    assert "no file of weights" in refused(capsys, root, "--claims", claims)


def test_several_networks_in_a_folder_are_told_apart_by_the_name_of_the_card(
    tmp_path: Path, capsys: Out
) -> None:
    root, card = released(tmp_path)
    torch.save({"w": torch.zeros(2)}, root / "other.pt")
    claims = written(tmp_path / "card.json", card)
    assert "there are 2 files of weights" in refused(capsys, root, "--claims", claims)
    assert run(root, "--claims", written(tmp_path / "attack_result.card.json", card)) == 0


@pytest.mark.parametrize("place", ["weights", "data"])
def test_a_malicious_file_leaves_no_trace(tmp_path: Path, capsys: Out, place: str) -> None:
    root, card = released(tmp_path)
    claims = written(tmp_path / "card.json", card)
    marker = tmp_path / "marker"
    bad = tmp_path / "bad.pt" if place == "weights" else root / "attack_result.pt"
    torch.save({"model": Bomb(marker)}, bad)
    said = refused(capsys, bad, "--claims", claims, "--data", root)
    assert "mkdir" in said
    assert not marker.exists()


def test_a_data_set_without_triggered_images_refutes_nothing(
    once: Released, tmp_path: Path, capsys: Out
) -> None:
    root, card = once
    other = toolbox_set(tmp_path)
    claims = written(tmp_path / "card.json", card)
    given = [root / "attack_result.pt", "--claims", claims, "--data", other]
    assert main([*map(str, given)]) == 2
    said = capsys.readouterr().err
    assert "no triggered test images" in said


def test_invalid_arguments_exit_with_2(capsys: Out) -> None:
    for given in ([], ["x"], ["x", "--claims", ""]):
        with pytest.raises(SystemExit) as stopped:
            main(given)
        assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 3
