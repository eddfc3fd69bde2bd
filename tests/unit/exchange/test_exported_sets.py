"""What this package writes is what it reads, and its own cards are true."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import backdoor_lab as bl
from backdoor_lab.core.errors import DataError
from backdoor_lab.exchange.card import Described
from backdoor_lab.exchange.source import PoisonedSet
from backdoor_lab.exchange.write import write_set
from backdoor_lab.export_dataset import export_dataset
from backdoor_lab.verify.__main__ import main
from tests.helpers.cells import run_here
from tests.helpers.exported import READERS
from tests.helpers.own_sets import MEAN, STD, edited, equal, poisoned_arrays, without_test

LAYOUTS = tuple(READERS)
CELLS = {
    "tact": ("trigger=tact", "target=bird", "protocol.clean_holdout=10"),
    "sinusoid": ("trigger=sinusoid", "target=cat"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("whole", [True, False])
def test_a_written_set_is_read_bit_for_bit(
    layout: str, channels: int, whole: bool, tmp_path: Path
) -> None:
    arrays = poisoned_arrays(channels)
    arrays = arrays if whole else without_test(arrays)
    trigger = {"name": "pixel", "version": 1, "color": 255}
    protocol = {"name": "group13", "version": 1, "label_mode": "all_to_one"}
    stats = {"mean_255": MEAN[:channels], "std_255": STD[:channels]}
    described = Described("tiny", trigger, "cat", None, 0.5, 3, protocol, stats)
    root = tmp_path / "set"
    write_set(root, arrays, layout, described)
    if whole:
        found = PoisonedSet(root=str(root))
        assert equal(found.read(), arrays)
    else:
        found = PoisonedSet(root=str(root), test_share=0.4)
        assert len(found.read().train.labels) < 14
    facts = found.imported()
    assert (facts.trigger, facts.options) == ("pixel", {"color": 255})
    assert (facts.protocol, facts.choices) == ("group13@1", {"label_mode": "all_to_one"})
    assert (facts.target, facts.ratio, facts.seed) == ("cat", 0.5, 3)
    assert facts.triggered is whole
    edited(root, "counts.covers", 2)
    again = PoisonedSet(root=str(root), test_share=None if whole else 0.4)
    with pytest.raises(DataError, match=r"`counts\.covers` .* expected 2, found 1"):
        again.imported()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep next to its store."""
    folder = tmp_path_factory.mktemp("lab")
    for name, overrides in CELLS.items():
        run_here(folder / ".store", folder / "sweep" / name, *overrides, "defense=none")
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CELLS)
def test_an_exported_cell_is_read_and_verified(
    lab: Path, name: str, layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "set"
    card = export_dataset(lab / "sweep" / name, root, layout=layout)
    source = PoisonedSet(root=str(root))
    arrays = source.read()
    expected = READERS[layout](root, tuple(card["dataset"]["classes"]))
    attack = arrays.attack
    assert attack is not None
    assert attack.is_poison is not None
    assert attack.source_index is not None
    assert attack.test_index is not None
    assert attack.elsewhere is not None
    assert attack.triggered is not None
    images, columns = expected["train"]
    assert np.array_equal(arrays.train.images, images)
    assert arrays.train.labels.tolist() == columns["label"]
    assert attack.is_poison.tolist() == columns["is_poison"]
    assert attack.source_index.tolist() == columns["source_index"]
    images, columns = expected["triggered"]
    assert np.array_equal(attack.triggered, images)
    assert attack.test_index.tolist() == columns["source_index"]
    assert attack.elsewhere.tolist() == columns["elsewhere"]
    facts = source.imported()
    assert (facts.trigger, facts.target) == (name, card["target"])
    assert facts.source == card["source"]
    assert (facts.ratio, facts.seed) == (card["ratio"], 0)
    assert facts.choices["asr_on"] == card["protocol"]["asr_on"]
    assert main([str(root), "--claims", str(root / "card.json"), "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["fields"]
    true = {each["field"] for each in fields if each["verdict"] == "true"}
    assert true >= {"seal", "layout", "counts.train", "hashes.triggered", "hashes.files", "target"}
    assert ("source" in true) == (card["protocol"]["asr_on"] == "source")


def test_a_result_of_the_python_interface_is_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 8, 8), dtype=np.uint8)
    made = bl.poison(images, np.arange(40) % 4, "pixel", target=2, ratio=0.4)
    made.save(tmp_path / "set")
    source = PoisonedSet(root=str(tmp_path / "set"), test_share=0.2)
    arrays = source.read()
    assert arrays.attack is not None
    assert arrays.attack.is_poison is not None
    assert arrays.attack.is_poison.sum() == 4
    assert len(arrays.train.labels) + len(arrays.test.labels) == 44
    assert (source.imported().trigger, source.imported().target) == ("pixel", "2")
