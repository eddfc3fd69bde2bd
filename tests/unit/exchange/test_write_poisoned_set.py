"""Writing a poisoned set: the four layouts, the card, README.md, and errors in between."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torchvision import transforms

from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.data.base import Split
from backdoor_lab.data.cache import content_digest
from backdoor_lab.exchange import write_folder as folder_layout
from backdoor_lab.exchange.write import write_set
from backdoor_lab.results.seal import check_seal
from backdoor_lab.verify.poisoned_set import check_set
from tests.helpers.exported import DESCRIBED, READERS, all_poison, clean, same, small_set

LAYOUTS = tuple(READERS)
STRANGE = ("../a", "b", 'c,"é')
TRAIN = {
    "label": [0, 1, 2, 2, 0, 2, 1, 1],
    "is_poison": [False] * 6 + [True] * 2,
    "is_cover": [False] * 5 + [True] + [False] * 2,
    "source_index": [-1, -1, -1, -1, -1, 2, 0, 3],
}
SHOWN = {"label": [1, 1, 1], "source_index": [0, 3, 2], "elsewhere": [False, False, True]}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_labels_and_truth_are_written_in_their_order(
    layout: str, channels: int, tmp_path: Path
) -> None:
    arrays = replace(small_set(channels=channels), classes=STRANGE)
    write_set(tmp_path / "x", arrays, layout, replace(DESCRIBED, target="b"))
    assert arrays.attack is not None
    assert arrays.attack.triggered is not None
    same(READERS[layout](tmp_path / "x", STRANGE), {
        "train": (arrays.train.images, TRAIN),
        "test": (arrays.test.images, clean([0, 1, 2, 0])),
        "triggered": (arrays.attack.triggered, all_poison(SHOWN)),
    })  # fmt: skip
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_that_do_not_exist_are_left_out(layout: str, tmp_path: Path) -> None:
    card = write_set(tmp_path / "x", small_set(test=False), layout, DESCRIBED)
    assert READERS[layout](tmp_path / "x", tuple("abc")).keys() == {"train"}
    assert card["counts"] == {
        "train": 8, "poisoned": 2, "covers": 1, "test": 0, "triggered": 0,
        "triggered_elsewhere": 0,
    }  # fmt: skip
    assert (card["hashes"]["test"], card["hashes"]["triggered"]) == (None, None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_card_is_true_and_lists_every_file(layout: str, tmp_path: Path) -> None:
    arrays, root = small_set(), tmp_path / "x"
    card = write_set(root, arrays, layout, DESCRIBED)
    check_seal((root / "card.json").read_bytes())
    assert json.loads((root / "card.json").read_text()) == card
    files = {path.relative_to(root).as_posix(): sha256_of(path)
             for path in root.rglob("*") if path.is_file()}  # fmt: skip
    assert card["hashes"]["files"] == {
        name: digest for name, digest in files.items() if name not in ("card.json", "README.md")
    }
    attack = arrays.attack
    assert attack is not None
    assert attack.triggered is not None
    counted = Split(attack.triggered[:2], np.array([1, 1]))
    for name, split in (("train", arrays.train), ("test", arrays.test), ("triggered", counted)):
        assert card["hashes"][name] == content_digest(split, arrays.classes)
    findings = check_set(card, arrays, root)
    assert {each.verdict for each in findings} == {"true", "not checked", "note"}
    assert (card["counts"]["triggered"], card["counts"]["triggered_elsewhere"]) == (2, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_readme_has_metadata_for_the_hub_and_tells_the_attack(
    layout: str, tmp_path: Path
) -> None:
    write_set(tmp_path / "x", small_set(), layout, replace(DESCRIBED, command="python -m it"))
    _, head, text = (tmp_path / "x/README.md").read_text().split("---\n", 2)
    said = yaml.safe_load(head)
    assert said["pretty_name"] == "tiny, poisoned with pixel"
    assert (said["license"], said["tags"]) == ("unknown", ["backdoor", "data-poisoning"])
    configs = said.get("configs", [])
    assert ("viewer" in said) == (not configs)
    paths = [file["path"] for config in configs for file in config["data_files"]]
    for pattern, split in zip(paths, ("train", "test", "triggered"), strict=bool(paths)):
        assert list((tmp_path / "x").glob(pattern))
        assert split in pattern
    assert "python -m it" in text
    assert "| of these, poisoned | 2 |" in text
    assert "JPEG changes pixels" in text
    block = re.findall(r"```\n(trigger:.*?)```", text, re.DOTALL)[0]
    assert yaml.safe_load(block)["trigger"] == {"name": "pixel", "color": 255}
    assert max(map(len, text.splitlines())) < 250


def test_the_parquet_files_have_the_features_of_the_hub(tmp_path: Path) -> None:
    import pyarrow.parquet  # type: ignore[import-untyped]

    write_set(tmp_path / "x", small_set(), "parquet", DESCRIBED)
    path = tmp_path / "x/data/triggered-00000-of-00001.parquet"
    schema = pyarrow.parquet.read_schema(path)
    assert schema.names == [
        "image", "label", "is_poison", "is_cover", "source_index", "elsewhere",
    ]  # fmt: skip
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"_type": "ClassLabel", "names": ["a", "b", "c"]}
    assert features["source_index"] == {"_type": "Value", "dtype": "int64"}


def test_the_rounded_floats_of_the_toolbox_are_those_of_totensor(tmp_path: Path) -> None:
    """backdoor-toolbox writes what torchvision's ToTensor returns."""
    arrays = small_set()
    every = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(8, 0)
    arrays = replace(small_set(channels=1, test=False), train=Split(every, arrays.train.labels))
    write_set(tmp_path / "x", arrays, "toolbox", DESCRIBED)
    stored = torch.load(tmp_path / "x/imgs", weights_only=True)
    assert torch.equal(stored[0], transforms.ToTensor()(every[0, 0]))
    assert isinstance(torch.load(tmp_path / "x/poison_indices", weights_only=True), list)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_stays_behind_after_an_interruption(
    layout: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any) -> None:
        raise error

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("backdoor_lab.exchange.write.readme", stopped)
    for out in ("empty", "new/x"):
        with pytest.raises(error):
            write_set(tmp_path / out, small_set(), layout, DESCRIBED)
    assert os.listdir(tmp_path) == ["empty"]
    assert os.listdir(tmp_path / "empty") == []


def test_a_folder_with_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/mine").write_text("mine")
    with pytest.raises(FileExistsError, match="must be empty or new"):
        write_set(tmp_path / "x", small_set(), "npz", DESCRIBED)
    assert os.listdir(tmp_path / "x") == ["mine"]
    assert os.listdir(tmp_path) == ["x"]


def test_parquet_without_pyarrow_and_too_many_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'backdoor-lab\[parquet\]'"):
        write_set(tmp_path / "x", small_set(), "parquet", DESCRIBED)
    monkeypatch.setattr(folder_layout, "LARGEST", 14)
    with pytest.raises(ConfigError, match="at most 14 images, got 15: choose --as parquet"):
        write_set(tmp_path / "x", small_set(), "folder", DESCRIBED)
    assert os.listdir(tmp_path) == []
