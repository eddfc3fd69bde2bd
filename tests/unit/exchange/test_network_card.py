"""The card that an exported network gets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.tensor_io import tensors_digest
from backdoor_lab.data.base import Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.exchange.card_file import CardFile, read_card
from backdoor_lab.exchange.network_card import parsed
from backdoor_lab.exchange.network_file import card_of, network_file, read_weights
from backdoor_lab.export_weights import export_weights
from tests.helpers.cells import run_here

BIRD = CLASSES.index("bird")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A completed cell next to its store, and its record."""
    folder = tmp_path_factory.mktemp("lab")
    return folder, run_here(folder / ".store", folder / "sweep" / "cell")


@pytest.mark.parametrize("which", [1, 2])
def test_the_card_states_what_the_record_states(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, which: int
) -> None:
    folder, record = lab
    out = tmp_path / "w.safetensors"
    export_weights(folder / "sweep" / "cell", out, which=which)
    path = tmp_path / "w.card.json"
    assert path == card_of(out)
    card = read_card(path).content
    assert read_card(path).sealed
    assert card["kind"] == "network"
    assert card["weights"] == record["hashes"][f"weights{which}"]
    assert card["weights"] == tensors_digest(read_weights(out))
    assert card["claims"] == {
        "nat": {"value": record[f"nat{which}"], "n": 50},
        "asr": {"value": record[f"asr{which}"], "n": 45},
    }
    assert card["trigger"] == {"name": "pixel", "color": 255, "position": [-1, -1]}
    assert (card["target"], card["source"], card["ratio"]) == ("bird", None, 0.3)
    assert (card["cell"], card["precision"]) == (record["id"], "fp32")
    assert parsed(CardFile(path, card, None)).classes == CLASSES


def test_the_hashes_are_those_of_the_test_images_and_of_the_triggered_ones(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "w.safetensors"
    export_weights(lab[0] / "sweep" / "cell", out)
    images, labels = draw(5, size=8, split="test", noise=12)
    triggered = images[labels != BIRD].copy()
    triggered[:, :, -1, -1] = 255
    wanted = np.full(len(triggered), BIRD)
    hashes = read_card(card_of(out)).content["hashes"]
    assert hashes["test"] == content_digest(Split(images, labels), CLASSES)
    assert hashes["triggered"] == content_digest(Split(triggered, wanted), CLASSES)


def test_held_out_images_are_not_part_of_the_hashed_test_set(tmp_path: Path) -> None:
    record = run_here(
        tmp_path / ".store", tmp_path / "sweep" / "cell", "protocol.clean_holdout=10"
    )  # fmt: skip
    export_weights(tmp_path / "sweep" / "cell", tmp_path / "w.safetensors")
    card = read_card(tmp_path / "w.card.json").content
    assert card["claims"]["nat"]["n"] == 40
    assert card["hashes"]["test"] not in (None, record["hashes"]["test"])


def test_a_card_without_readable_test_images_has_no_hashes(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(lab[0], tmp_path / "lab")
    (images,) = (tmp_path / "lab").glob(".store/data/*/test_images.npy")
    images.write_bytes(b"damaged")
    export_weights(tmp_path / "lab" / "sweep" / "cell", tmp_path / "w.safetensors")
    card = read_card(tmp_path / "w.card.json").content
    assert card["hashes"] == {"test": None, "triggered": None}
    assert "no hash of the triggered test images" in caplog.text


def test_the_card_named_after_the_weights_precedes_the_one_of_the_folder(
    lab: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "w.safetensors"
    export_weights(lab[0] / "sweep" / "cell", out)
    card = read_card(card_of(out)).content
    torch.save(read_weights(out), tmp_path / "w.pt")
    assert network_file(tmp_path / "w.pt").source == "w.card.json"
    assert network_file(tmp_path / "w.pt", alone=True).model is None
    (tmp_path / "card.json").write_text(json.dumps(card | {"weights": "0" * 64}))
    assert network_file(tmp_path / "w.pt").source == "w.card.json"
    card_of(out).unlink()
    with pytest.raises(DataError, match=r"do not match the hash in card\.json"):
        network_file(tmp_path / "w.pt")
