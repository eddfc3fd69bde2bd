"""Reading the stored artifacts of a cell. Missing or damaged artifacts give a note."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backdoor_lab.analysis.evidence import operating_point, recorded_curve, removal_curve
from backdoor_lab.core.store import Store
from backdoor_lab.pipeline.cell_pipeline import CellPipeline
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.results.artifact_reader import NO_STORE, ArtifactReader, raw_records
from backdoor_lab.results.seal import sealed
from backdoor_lab.results.store_location import find_store
from backdoor_lab.results.weights import first_convolution
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.device import machine_of
from tests.helpers.cells import configuration, run_here
from tests.helpers.stages import Made, cell


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("covers", [0, 5])
def test_a_stored_training_set_is_read_back(tmp_path: Path, replace: bool, covers: int) -> None:
    made = Made(0, covers=covers, replace=replace)
    record = cell(tmp_path, made, "one")
    found = ArtifactReader(tmp_path).training(record)
    assert found is not None
    np.testing.assert_array_equal(found.is_poison, made.poison)
    assert found.is_cover.sum() == covers
    assert not (found.is_cover & found.is_poison).any()
    everywhere = np.arange(len(made.index))
    images, before = found.images(everywhere), found.before(everywhere)
    for n, index in enumerate(made.index):
        row = index - len(made.base)
        original = index if row < 0 else np.concatenate([made.source, made.cover])[row]
        np.testing.assert_array_equal(images[n], made.base[index] if row < 0 else made.rows[row])
        assert before[n] == made.clean_labels[original]


def test_the_reader_agrees_with_the_pipeline_that_wrote_the_artifacts(tmp_path: Path) -> None:
    """The reader uses NumPy, and the pipeline wrote the images, mask and counts with torch."""
    record = run_here(tmp_path / "store", tmp_path / "sweep" / "cell")
    assert record["status"] == "done"
    config = configuration(tmp_path / "store")
    chain = CellPipeline(
        Preflight().cell(config), Store(tmp_path / "store"), machine_of(config["trainer"]),
        Progress(tmp_path, "", "none"),
    )  # fmt: skip
    attacked = chain.attack()
    reader = ArtifactReader(tmp_path / "store")
    (record,) = raw_records(tmp_path / "sweep").values()
    found = reader.training(record)
    assert found is not None
    n = len(found.index)
    where = torch.arange(n)
    expected = attacked.poisoned.training.gather(where).numpy()
    np.testing.assert_array_equal(found.images(where.numpy()), expected)
    np.testing.assert_array_equal(found.is_poison, attacked.poisoned.is_poison.numpy())
    filter_result, features = (
        reader.filter_result(record, n),
        reader.features(record, where.numpy(), n),
    )
    assert filter_result is not None
    assert features is not None
    counts = record["counts"]
    assert int((~filter_result.keep).sum()) == counts["n_removed"]
    assert int((filter_result.keep & found.is_poison).sum()) == counts["pois_left"]
    curve, told = removal_curve(filter_result.scores, found.is_poison), recorded_curve(record)
    assert curve is not None
    assert told is not None
    np.testing.assert_allclose(curve.left[told[0].removed], told[0].left, atol=1e-6)
    assert told[1] == operating_point(filter_result.keep, found.is_poison)
    assert (told[0].total, told[0].scored) == (curve.total, curve.scored)
    losses = reader.losses(record, "train")
    assert losses is not None
    assert len(losses) == record["config"]["recipe"]["epochs"]
    first = reader.first_layer(record, "retrain", 3)
    assert first is not None
    assert first.shape == (record["config"]["model"]["width"], 3, 3, 3)
    assert reader.notes == []


READERS = ("training", "filter_result", "features", "losses", "first_layer")


def read(reader: ArtifactReader, record: dict[str, Any]) -> dict[str, Any]:
    some = np.arange(3)
    return {
        "training": reader.training(record), "filter_result": reader.filter_result(record, 128),
        "features": reader.features(record, some, 128), "losses": reader.losses(record, "train"),
        "first_layer": reader.first_layer(record, "train", 3),
    }  # fmt: skip


def test_without_a_store_every_method_of_the_reader_returns_none_and_there_is_one_note(
    tmp_path: Path,
) -> None:
    assert find_store(tmp_path / "sweep") is None
    assert find_store(tmp_path / "sweep", tmp_path / "elsewhere") is None
    reader = ArtifactReader(None)
    assert set(read(reader, cell(tmp_path, Made(0), "one")).values()) == {None}
    assert reader.notes == [NO_STORE]


def test_the_store_next_to_the_sweep_is_found(tmp_path: Path) -> None:
    (tmp_path / ".store").mkdir()
    (tmp_path / "sweep").mkdir()
    assert find_store(tmp_path / "sweep") == tmp_path / ".store"
    assert find_store(tmp_path / "sweep", tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("store: {root: HERE/elsewhere}", "elsewhere"), ("store: {root: HERE/gone}", ".store"),
        ("store: {root: '${oc.nothing}'}", ".store"), ("store: {root: [1]}", ".store"),
        ("{", ".store"), ("- 1", ".store"), ("\0", ".store"), ("store: 3", ".store"),
        ('store: {root: "a\\0b"}', ".store"), ("", ".store"),
    ],
)  # fmt: skip
def test_the_store_of_the_last_run_is_found(tmp_path: Path, text: str, found: str) -> None:
    for name in ("sweep", "elsewhere", ".store"):
        (tmp_path / name).mkdir()
    (tmp_path / "sweep" / "multirun.yaml").write_text(text.replace("HERE", str(tmp_path)))
    assert find_store(tmp_path / "sweep") == tmp_path / found


RUN_IN = "hydra: {sweep: {dir: 'runs/${sweep_name:}'}}\n"


@pytest.mark.parametrize("where", [".", "other"])
def test_a_relative_store_path_is_resolved_from_the_location_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A project in the current directory may have a store of the same name."""
    for name in ("runs/.store", "runs/s", "big/store", "other/runs/.store", "other/big/store"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / where)
    for root, found in (("runs/.store", "runs/.store"), ("big/store", "big/store"),
                        ("gone", "runs/.store")):  # fmt: skip
        text = f"{RUN_IN}store: {{root: {root}}}"
        (tmp_path / "runs" / "s" / "multirun.yaml").write_text(text)
        assert find_store(tmp_path / "runs" / "s") == tmp_path / found


@pytest.mark.parametrize("folder", ["copies/runs/s", "copies/other/s", "runs/other/s", "s"])
def test_a_copied_sweep_uses_only_a_store_next_to_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "runs" / ".store").mkdir(parents=True)
    copy = tmp_path / folder
    copy.mkdir(parents=True)
    (copy / "multirun.yaml").write_text(f"{RUN_IN}store: {{root: runs/.store}}")
    monkeypatch.chdir(tmp_path)
    assert find_store(copy) is None
    (copy.parent / ".store").mkdir()
    assert find_store(copy) == copy.parent / ".store"


@pytest.mark.parametrize(
    "said", ["hydra: 3", "hydra: {sweep: {dir: 7}}", "hydra: {sweep: {dir: ''}}", "",
             "hydra: {sweep: {dir: '../x'}}", "hydra: {sweep: {dir: /a/b/c/d/e/f/g/h/i/j}}"],
)  # fmt: skip
def test_without_a_usable_sweep_path_the_store_next_to_the_sweep_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    for name in ("s", ".store", "big"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s" / "multirun.yaml").write_text(f"{said}\nstore: {{root: big}}")
    assert find_store(tmp_path / "s") == tmp_path / ".store"


def test_a_stage_that_never_ran_is_not_reported_as_missing(tmp_path: Path) -> None:
    """Without retraining there is no second network, and a repair filters nothing."""
    record = cell(tmp_path, Made(0), "one")
    for stage in ("retrain", "filter"):
        del record["run"]["stages"][stage]
        shutil.rmtree(tmp_path / stage)
    reader = ArtifactReader(tmp_path)
    assert reader.losses(record, "train") is not None
    assert reader.losses(record, "retrain") is None
    assert reader.filter_result(record, 128) is None
    assert reader.notes == []
    shutil.rmtree(tmp_path / "train")
    assert reader.losses(record, "train") is None
    assert reader.notes == ["the losses of some cells are not in the store"]


@pytest.mark.parametrize(
    "name", ["../one", "a/../one", "/one", "", "one\x00", None, 7, ["one"], "x" * 300]
)
def test_artifact_ids_that_are_invalid_or_lead_outside_the_folder_of_the_stage_are_ignored(
    tmp_path: Path, name: Any
) -> None:
    record = cell(tmp_path / "store", Made(0), "one")
    for stage, facts in record["run"]["stages"].items():
        (tmp_path / "store" / stage / "a").mkdir()
        shutil.copytree(
            tmp_path / "store" / stage / "one", tmp_path / "store" / "one", dirs_exist_ok=True
        )
        facts["id"] = name
    reader = ArtifactReader(tmp_path / "store")
    assert set(read(reader, record).values()) == {None}
    assert reader.notes


@pytest.mark.parametrize("part", ["run", "hashes"])
@pytest.mark.parametrize("value", [None, 3, [], {"stages": 1}, {"stages": {"poison": {}}}])
def test_a_malformed_record_gives_a_note(tmp_path: Path, part: str, value: Any) -> None:
    record = cell(tmp_path, Made(0), "one") | {part: value}
    reader = ArtifactReader(tmp_path)
    assert reader.training(record) is None
    (note,) = reader.notes
    assert note.startswith("the poisoned images of some cells are ")


@pytest.mark.parametrize(
    ("file", "artifact"),
    [
        ("poison/one/poison.safetensors", "training"),
        ("data/data-one/train_images.npy", "training"),
        ("filter/one/verdict.safetensors", "filter_result"),
        ("extract/one/features.safetensors", "features"),
        ("train/one/manifest.json", "losses"),
        ("train/one/weights.safetensors", "first_layer"),
    ],
)
@pytest.mark.parametrize("damage", ["gone", "cut", "noise"])
def test_a_damaged_file_only_affects_its_own_artifact(
    tmp_path: Path, file: str, artifact: str, damage: str
) -> None:
    record = cell(tmp_path, Made(0), "one")
    path = tmp_path / file
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"\xff" * len(data))
    reader = ArtifactReader(tmp_path)
    found = read(reader, record)
    assert [name for name, value in found.items() if value is None] == [artifact]
    assert len(reader.notes) == 1
    assert ("not in" if damage == "gone" else "damaged in") in reader.notes[0]


def test_arrays_of_another_training_set_are_refused(tmp_path: Path) -> None:
    record = cell(tmp_path, Made(0), "one")
    reader = ArtifactReader(tmp_path)
    assert reader.filter_result(record, 127) is None
    assert reader.features(record, np.arange(3), 127) is None
    made = Made(1)
    made.index[3] = 9999
    assert ArtifactReader(tmp_path).training(cell(tmp_path, made, "two")) is None


def test_the_first_layer_is_the_convolution_that_is_applied_to_images() -> None:
    shapes = {
        "z.weight": (8, 16, 3, 3), "layer1.conv1.weight": (8, 3, 3, 3), "pos": (8, 3, 1, 1),
        "conv1.weight": (8, 3, 7, 7), "fc.weight": (10, 3),
    }  # fmt: skip
    assert first_convolution(shapes.items(), 3) == "conv1.weight"
    del shapes["conv1.weight"]
    assert first_convolution(shapes.items(), 3) == "layer1.conv1.weight"
    with pytest.raises(KeyError):
        first_convolution(shapes.items(), 1)


def test_the_record_in_the_folder_named_after_its_id_takes_precedence(tmp_path: Path) -> None:
    for folder, mark in (("a", 1), ("own", 2), (".hidden", 3), ("broken", 4)):
        (tmp_path / folder).mkdir()
        text = "{" if folder == "broken" else sealed(json.dumps({"id": "own", "mark": mark}))
        (tmp_path / folder / "record.json").write_text(text)
    assert raw_records(tmp_path)["own"]["mark"] == 2


def test_pages_do_not_import_torch_and_tables_do_not_import_matplotlib() -> None:
    code = (
        "import sys; import backdoor_lab.reports.__main__, backdoor_lab.page.document;"
        "print('matplotlib' in sys.modules); import backdoor_lab.figures.__main__ as f;"
        "import backdoor_lab.figures.overview_figure; print('torch' in sys.modules,"
        "'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", "False", "False"]
