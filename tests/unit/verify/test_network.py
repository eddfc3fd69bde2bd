"""The claims of a network's card are compared with what its network does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.data.base import Split
from backdoor_lab.exchange.card_file import CardFile, read_card
from backdoor_lab.exchange.network_card import NetworkCard, parsed
from backdoor_lab.exchange.network_file import card_of
from backdoor_lab.export_weights import export_weights
from backdoor_lab.pipeline.test_sets import test_sets_of as sets_of
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.verify.network import Checked, Material, check_network
from tests.helpers.cells import run_here

BIRD = 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], Material]:
    """An exported network next to its card, the record of its cell, and its test sets."""
    folder = tmp_path_factory.mktemp("lab")
    record = run_here(folder / ".store", folder / "sweep" / "cell", "recipe.epochs=2")
    out = folder / "w.safetensors"
    classes = tuple(
        json.loads(export_weights(folder / "sweep" / "cell", out, which=1)["classes"])
    )  # fmt: skip
    reader = ArtifactReader(folder / ".store")
    test, prepared = reader.test_set(record), reader.prepared(record)
    assert test is not None
    assert prepared is not None
    sets = sets_of(record, Split(*test), classes, prepared, None)
    return out, record, Material(classes, sets.clean, sets.triggered, sets.rows.numpy())


def stated(path: Path, card: dict[str, Any]) -> NetworkCard:
    """The fields of a card with the content `card`."""
    return parsed(CardFile(path, card, None))


def checked(
    lab: tuple[Path, dict[str, Any], Material], change: Callable[[dict[str, Any]], Any],
    material: Material | None = None,
) -> Checked:  # fmt: skip
    """The result for the exported card after `change`."""
    path, _, own = lab
    card = read_card(card_of(path)).content
    change(card)
    return check_network(path, stated(card_of(path), card), material or own)


def false(found: Checked) -> list[str]:
    """The fields and claims that are false."""
    return sorted(
        [each.field for each in found.findings if each.verdict == "false"]
        + [each.name for each in found.judgments if not each.holds]
    )


def unchecked(found: Checked) -> list[str]:
    return [each.field for each in found.findings if each.verdict == "not checked"]


def test_a_true_card_holds_and_the_counts_are_those_of_the_record(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    found = checked(lab, lambda card: None)
    assert false(found) == []
    record = lab[1]
    measured = {each.name: each.measured for each in found.judgments}
    assert measured["nat"].share == record["nat1"]
    assert measured["asr"].share == record["asr1"]
    assert (measured["nat"].n, measured["asr"].n) == (50, 45)
    assert all(each.same and each.difference == 0 for each in found.judgments)
    assert not {"weights", "model", "classes", "target", "normalization"} & {*unchecked(found)}


def raised(name: str, images: int, n: int) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        card["claims"][name]["value"] += images / n

    return change


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        for key in keys[:-1]:
            card = card[key]
        card[keys[-1]] = value

    return change


NAMES = ["cat", "dog", *(f"class {number}" for number in range(8))]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (raised("nat", 2, 50), []),
        (raised("nat", 3, 50), ["nat"]),
        (raised("nat", -3, 50), ["nat"]),
        (raised("asr", 3, 45), ["asr"]),
        (put("claims", "nat", "n", value=10_000), ["claims.nat.n"]),
        (put("claims", "asr", "n", value=44), ["claims.asr.n"]),
        (put("weights", value="0" * 64), ["weights"]),
        (put("classes", value=NAMES), ["classes"]),
        (put("target", value="cat"), ["target"]),
        (put("target", value="no class"), ["target"]),
        (put("source", value="cat"), ["source"]),
        (put("normalization", "mean_255", value=[40.0, 42.0, 42.0]), ["normalization"]),
        (put("normalization", "std_255", value=[16.0, 17.0, 17.0]), ["normalization"]),
    ],
)  # fmt: skip
def test_an_altered_field_is_found(
    lab: tuple[Path, dict[str, Any], Material], change: Callable[[dict[str, Any]], None],
    expected: list[str],
) -> None:  # fmt: skip
    found = set(false(checked(lab, change)))
    # Another normalization may also change the counts.
    assert found - {"nat", "asr"} == set(expected) - {"nat", "asr"}
    assert set(expected) <= found


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (put("model", "width", value=8), DataError, "does not hold the weights"),
        (put("model", "name", value="resnet34"), DataError, "does not hold the weights"),
        (put("model", "name", value="nothing"), ConfigError, "is not known"),
        (put("classes", value=["cat", "dog"]), DataError, "does not hold the weights"),
        (put("image", value=[3, 32, 32]), ConfigError, r"`image` of the card is \[3, 32, 32\]"),
        (put("normalization", value={"mean_255": [1.0], "std_255": [1.0]}), ConfigError,
         "has 1 channel, but the images have 3"),
    ],
)  # fmt: skip
def test_a_field_that_prevents_the_measurement_is_an_error(
    lab: tuple[Path, dict[str, Any], Material], change: Callable[[dict[str, Any]], None],
    error: type[Exception], said: str,
) -> None:  # fmt: skip
    with pytest.raises(error, match=said):
        checked(lab, change)


def test_facts_that_nothing_can_check_are_listed(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    found = checked(lab, put("ratio", value=0.9))
    assert false(found) == []
    assert {"ratio", "trigger", "seed", "protocol", "cell"} <= {*unchecked(found)}


def fewer(material: Material, keep: int) -> Material:
    """The first `keep` images of each test set."""
    assert material.triggered is not None
    splits = [
        Split(each.images[:keep], each.labels[:keep])
        for each in (material.test, material.triggered)
    ]
    return replace(material, test=splits[0], triggered=splits[1], rows=None)


def test_another_test_set_is_recognized_by_its_hash_and_judged_by_newcombe(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    found = checked(lab, lambda card: None, fewer(lab[2], 40))
    assert [each.same for each in found.judgments] == [False, False]
    assert {"hashes.test", "hashes.triggered", "claims.nat.n"} <= {*unchecked(found)}
    # Three images more hold here, but many more do not.
    assert "nat" not in false(checked(lab, raised("nat", 3, 50), fewer(lab[2], 40)))
    assert "nat" in false(checked(lab, put("claims", "nat", "value", value=1), fewer(lab[2], 40)))


def test_a_card_without_hashes_is_judged_by_newcombe(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    found = checked(lab, put("hashes", value=None))
    assert [each.same for each in found.judgments] == [False, False]
    with pytest.raises(ConfigError, match=r"`claims.nat.n`"):
        checked(lab, lambda card: card.update(hashes={}, claims={"nat": {"value": 0.2}}))


def test_a_changed_hash_is_false_on_the_data_set_of_the_same_cell(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    material = replace(lab[2], cell=lab[1]["id"])
    assert false(checked(lab, lambda card: None, material)) == []
    found = checked(lab, put("hashes", "test", value="0" * 64), material)
    assert false(found) == ["hashes.test"]


def test_triggered_images_for_another_target_contradict_the_card(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    split = lab[2].triggered
    assert split is not None
    labels = split.labels.copy()
    labels[:4] = 7
    found = checked(lab, lambda card: None, replace(lab[2], triggered=Split(split.images, labels)))
    assert "target" in false(found)
    every = put("protocol", "label_mode", value="all_to_all")
    assert "target" in unchecked(checked(lab, every))


def test_numbers_instead_of_class_names_are_not_compared(
    lab: tuple[Path, dict[str, Any], Material], tmp_path: Path
) -> None:
    material = replace(lab[2], classes=tuple(map(str, range(10))))
    found = checked(lab, lambda card: None, material)
    assert false(found) == []
    # The file itself has class names; a file of torch.save has none.
    assert "classes" not in unchecked(found)
    card = read_card(card_of(lab[0])).content
    path = plain_copy(lab[0], tmp_path)
    again = check_network(path, stated(path, card), material)
    assert "classes" in unchecked(again)


def plain_copy(weights: Path, folder: Path) -> Path:
    """The same tensors in a file of torch.save, without metadata."""
    from safetensors.torch import load_file

    path = folder / "w.pt"
    torch.save({"state_dict": load_file(weights)}, path)
    return path


def test_a_file_of_torch_save_gives_the_same_counts(
    lab: tuple[Path, dict[str, Any], Material], tmp_path: Path
) -> None:
    path = plain_copy(lab[0], tmp_path)
    card = read_card(card_of(lab[0])).content
    found = check_network(path, stated(path, card), lab[2])
    assert [each.difference for each in found.judgments] == [0, 0]
    assert false(found) == []
    assert "normalization" in unchecked(found)
    # The hash of the file counts, too.
    from backdoor_lab.core.atomic_io import sha256_of

    assert card["weights"] != sha256_of(path)
    found = check_network(path, stated(path, card | {"weights": sha256_of(path)}), lab[2])
    assert false(found) == []


@pytest.mark.parametrize(
    ("without", "said"),
    [("normalization", "the normalization is not known"), ("claims", "must have nat, asr or both")],
)
def test_missing_facts_are_named(
    lab: tuple[Path, dict[str, Any], Material], tmp_path: Path, without: str, said: str
) -> None:
    path = plain_copy(lab[0], tmp_path)
    card = read_card(card_of(lab[0])).content
    del card[without]
    with pytest.raises(ConfigError, match=said):
        check_network(path, stated(path, card), lab[2])


def test_the_architecture_is_recognized_without_the_card(
    lab: tuple[Path, dict[str, Any], Material], tmp_path: Path
) -> None:
    path = plain_copy(lab[0], tmp_path)
    card = read_card(card_of(lab[0])).content
    del card["model"]
    assert [e.difference for e in check_network(path, stated(path, card), lab[2]).judgments] == [
        0, 0,
    ]  # fmt: skip


def test_an_asr_cannot_be_checked_without_triggered_images(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    bare = replace(lab[2], triggered=None, rows=None)
    with pytest.raises(ConfigError, match="claims asr, but the data set has no triggered"):
        checked(lab, lambda card: None, bare)
    found = checked(lab, lambda card: card["claims"].pop("asr"), bare)
    assert [each.name for each in found.judgments] == ["nat"]


def test_the_weights_of_another_network_are_measured_and_called_wrong(
    lab: tuple[Path, dict[str, Any], Material], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    weights = load_file(lab[0])
    weights["fc.bias"] = torch.full_like(weights["fc.bias"], -9.0)
    weights["fc.bias"][BIRD] = 9.0
    torch.save(weights, tmp_path / "w.pt")
    card = read_card(card_of(lab[0])).content
    assert card["weights"] != tensors_digest(weights)
    found = check_network(tmp_path / "w.pt", stated(lab[0], card), lab[2])
    assert {"weights", "asr"} <= {*false(found)}
    asr = found.judgments[1].measured
    assert asr.hits == asr.n == 45


def test_the_precision_of_the_card_is_that_of_the_measurement(
    lab: tuple[Path, dict[str, Any], Material],
) -> None:
    assert checked(lab, lambda card: None).precision.startswith("fp32")
    found = checked(lab, put("precision", value="bf16"))
    assert found.precision.startswith("bf16")
    assert all(abs(each.difference) <= 2 for each in found.judgments)


def test_elsewhere_images_do_not_count(lab: tuple[Path, dict[str, Any], Material]) -> None:
    from backdoor_lab.core.types import ImportedAttack
    from backdoor_lab.data.base import Arrays

    own = lab[2]
    assert own.triggered is not None
    elsewhere = np.zeros(45, bool)
    elsewhere[-5:] = True
    attack = ImportedAttack(
        triggered=own.triggered.images, wanted=own.triggered.labels, elsewhere=elsewhere
    )
    material = Material.of(Arrays(own.test, own.test, own.classes, attack))
    assert material.triggered is not None
    assert len(material.triggered.labels) == 40
