"""The poisoned set of a cell is exported without loss in every layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.attacks.plan import asr_test_set, elsewhere_test_set
from backdoor_lab.attacks.poison import poison
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.data.synthetic import CLASSES, draw
from backdoor_lab.export_dataset import export_dataset, main
from backdoor_lab.pipeline.imported import TRIGGER
from backdoor_lab.pipeline.stages.holdout import held_out_rows
from backdoor_lab.results.seal import sealed
from tests.helpers.cells import cell_of, run_here
from tests.helpers.exported import READERS, Read, all_poison, clean, same

CELLS = {
    "pixel": ("trigger=pixel", "target=bird"),
    "replaced": ("trigger=pixel", "target=dog", "protocol.placement=replace", "seed=2"),
    "tact": ("trigger=tact", "target=bird", "protocol.clean_holdout=10"),
    "sinusoid": ("trigger=sinusoid", "target=cat"),
}
"""All to one, appended and in place; covers and a source class, with held-out images; clean
labels."""
FAST = ("defense=none",)
LAYOUTS = tuple(READERS)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cells of `CELLS` in one sweep, next to its store."""
    folder = tmp_path_factory.mktemp("lab")
    for name, overrides in CELLS.items():
        run_here(folder / ".store", folder / "sweep" / name, *overrides, *FAST)
    return folder


def drawn(split: str, n: int) -> LabeledImages:
    images, labels = (torch.from_numpy(x) for x in draw(n, size=8, split=split, noise=12))
    return LabeledImages(images, labels, CLASSES)


def expected(lab: Path, name: str) -> Read:
    """The splits of a cell, computed again from its data and its trigger."""
    cell = cell_of(lab / ".store", *CELLS[name], *FAST)
    made = poison(drawn("train", 20), cell.trigger, cell.plan, seed=cell.seed)
    training, originals = made.training, torch.cat([made.source_index, made.cover_index])
    source = torch.full((len(training),), -1)
    over = training.index >= len(training.base)
    source[over] = originals[training.index[over] - len(training.base)]
    masks = {"is_poison": made.is_poison.tolist(), "is_cover": made.is_cover.tolist()}
    columns = {"label": training.labels.tolist(), **masks, "source_index": source.tolist()}
    test = drawn("test", 5)
    rest = torch.ones(len(test), dtype=torch.bool)
    rest[held_out_rows(test.labels, 10, cell.protocol["clean_holdout"], cell.seed)] = False
    kept = rest.nonzero().flatten()
    labels = test.labels[kept]
    where, others = asr_test_set(labels, cell.plan), elsewhere_test_set(labels, cell.plan)
    index = kept[torch.cat([where, others])]
    return {
        "train": (training.gather(torch.arange(len(training))).numpy(), columns),
        "test": (test.images.numpy(), clean(test.labels.tolist())),
        "triggered": (cell.trigger(test.images[index]).numpy(), all_poison({
            "label": [cell.plan.target] * len(index), "source_index": index.tolist(),
            "elsewhere": [False] * len(where) + [True] * len(others),
        })),
    }  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CELLS)
def test_every_layout_holds_the_data_of_the_cell_bit_for_bit(
    lab: Path, name: str, layout: str, tmp_path: Path
) -> None:
    export_dataset(lab / "sweep" / name, tmp_path / "out", layout=layout)
    same(READERS[layout](tmp_path / "out", CLASSES), expected(lab, name))


def test_the_expected_cells_have_covers_clean_labels_and_images_elsewhere(lab: Path) -> None:
    found = {name: expected(lab, name) for name in CELLS}
    assert sum(found["tact"]["train"][1]["is_cover"]) == 6
    assert sum(found["tact"]["triggered"][1]["elsewhere"]) == 32
    assert len(found["tact"]["test"][0]) == 50
    assert len(found["pixel"]["train"][0]) == 206
    assert len(found["replaced"]["train"][0]) == len(found["sinusoid"]["train"][0]) == 200
    columns = found["sinusoid"]["train"][1]
    marked = {label for label, bad in zip(columns["label"], columns["is_poison"], strict=True)
              if bad}  # fmt: skip
    assert marked == {CLASSES.index("cat")}
    clean_images = draw(20, size=8, split="train", noise=12)[0]
    assert sum(columns["is_poison"]) == (
        (found["sinusoid"]["train"][0] != clean_images).any(axis=(1, 2, 3)).sum()
    )


def test_the_card_states_the_attack_counts_and_normalization(lab: Path, tmp_path: Path) -> None:
    said = export_dataset(lab / "sweep/tact", tmp_path / "x", layout="npz")
    record = json.loads((lab / "sweep/tact/record.json").read_text())
    assert json.loads((tmp_path / "x/card.json").read_text()) == said
    assert said["cell"] == record["id"]
    assert said["dataset"] == {
        "name": "synthetic", "classes": list(CLASSES), "image": [3, 8, 8],
    }  # fmt: skip
    assert (said["target"], said["source"], said["ratio"], said["seed"]) == ("bird", "cat", 0.3, 0)
    assert said["trigger"] == {
        "name": "tact", "version": 2, "size": 8, "margin": 3, "color": 255, "cover_classes": 2,
    }  # fmt: skip
    assert said["protocol"] == {
        "name": "group13", "version": 1, "label_mode": "all_to_one", "cover_rate": 1.0,
        "ratio_of": "target", "placement": "append", "poison_from": "source", "asr_on": "source",
    }  # fmt: skip
    assert said["counts"] == {
        "train": 212, "test": 50, "poisoned": 6, "covers": 6, "triggered": 4,
        "triggered_elsewhere": 32,
    }  # fmt: skip
    assert said["hashes"]["test"] == record["hashes"]["test"]
    clean_images = draw(20, size=8, split="train", noise=12)[0].astype(np.float64)
    assert said["normalization"]["mean_255"] == pytest.approx(clean_images.mean(axis=(0, 2, 3)))
    assert said["normalization"]["std_255"] == pytest.approx(clean_images.std(axis=(0, 2, 3)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_exports_have_the_same_bytes(lab: Path, layout: str, tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        export_dataset(lab / "sweep/pixel", tmp_path / name, layout=layout)
        root = tmp_path / name
        files.append({path.relative_to(root): path.read_bytes() for path in root.rglob("*")
                      if path.is_file()})  # fmt: skip
    assert files[0] == files[1]


def test_the_command_prints_counts(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    given = [str(lab / "sweep/tact"), "--as", "npz", "--out", str(tmp_path / "out")]
    assert main(given) == 0
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 212 training images, 6 poisoned, 6 covers, 50 test images,"
        " 36 triggered\n"
    )
    assert main(given) == 2
    assert "`--out` must be a new or empty folder" in capsys.readouterr().err


def refused(cell: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, code: int) -> str:
    """The error of an export, which must leave nothing behind."""
    assert main([str(cell), "--as", "npz", "--out", str(tmp_path / "out/set")]) == code
    assert list((tmp_path / "out").iterdir()) == []
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture
def copied(lab: Path, tmp_path: Path) -> Path:
    """A copy of the sweep and its store."""
    (tmp_path / "out").mkdir()
    shutil.copytree(lab, tmp_path / "lab")
    return tmp_path / "lab"


def edit(cell: Path, section: str, **changes: Any) -> None:
    record = json.loads((cell / "record.json").read_text())
    record[section] |= changes
    record.pop("seal")
    (cell / "record.json").write_text(sealed(json.dumps(record)))


def test_a_cell_that_cannot_be_exported_is_refused(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = copied / "sweep/pixel"
    assert "is not a cell's folder" in refused(copied / "sweep", capsys, tmp_path, 2)
    edit(cell, "protocol", apply_trigger="after_augmentation")
    error = refused(cell, capsys, tmp_path, 2)
    assert "no set of poisoned images to export" in error
    assert "protocol.apply_trigger=before_augmentation" in error
    edit(cell, "protocol", apply_trigger="before_augmentation")
    edit(cell, "config", trigger={"_target_": TRIGGER})
    assert "was poisoned before" in refused(cell, capsys, tmp_path, 2)


@pytest.mark.parametrize("stage", ["data", "poison"])
def test_missing_and_changed_data_are_refused(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    cell = copied / "sweep/pixel"
    for path in sorted((copied / ".store" / stage).glob("*/*")):
        if path.suffix in (".npy", ".safetensors"):
            data = bytearray(path.read_bytes())
            data[-1] ^= 1
            path.write_bytes(data)
    assert "damaged in the store" in refused(cell, capsys, tmp_path, 1)
    shutil.rmtree(copied / ".store" / stage)
    assert "not in the store" in refused(cell, capsys, tmp_path, 1)
    shutil.rmtree(copied / ".store")
    assert "give its path with --store" in refused(cell, capsys, tmp_path, 1)


@pytest.mark.parametrize("name", ["training1", "test"])
def test_data_of_another_record_is_refused(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    edit(copied / "sweep/pixel", "hashes", **{name: "0" * 64})
    error = refused(copied / "sweep/pixel", capsys, tmp_path, 1)
    assert "not that of the record" in error or "not in the store" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("'dataset.root=/home/an na/my set' target=cat", "python -m backdoor_lab target=cat"),
        ("\"dataset.root='/an na/my set'\" a=1", "python -m backdoor_lab a=1"),
        ("dataset.root=/an\\ na/my\\ set a=1", "python -m backdoor_lab a=1"),
        ("dataset.root=C:\\an\\na a=1", "python -m backdoor_lab a=1"),
        ("'name=an na' 'a=[1, 2]'", "python -m backdoor_lab 'name=an na' 'a=[1, 2]'"),
        ("'dataset.root=/an na", None),
    ],
)
def test_the_command_has_no_part_of_a_path(
    copied: Path, tmp_path: Path, words: str, said: str | None
) -> None:
    cell = copied / "sweep/pixel"
    edit(cell, "run", command=f"python -m backdoor_lab {words}")
    export_dataset(cell, tmp_path / "out/set", layout="npz")
    text = (tmp_path / "out/set/README.md").read_text()
    assert ("The command of the cell" in text) == (said is not None)
    if said is not None:
        assert f"```\n{said}\n```" in text
    assert "my" not in text.split("To train on")[0].split("The command of the cell")[-1]
