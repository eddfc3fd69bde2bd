"""Cells that attack a given network (``attacked=``) instead of training one."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from backdoor_lab.core.artifacts import VERDICT
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.export_weights import export_weights
from backdoor_lab.pipeline.cell_pipeline import CellPipeline
from backdoor_lab.pipeline.progress import Progress
from backdoor_lab.results.records import parse
from backdoor_lab.sweep.estimate import estimate
from backdoor_lab.tables.learned import CleanNetworks
from backdoor_lab.tables.notes import where
from backdoor_lab.training.models import build_model
from tests.helpers.cells import CPU, cell_of, lasting, run_here

HOLDOUT = "protocol.clean_holdout=20"
GIVEN = "attacked_normalization=[[0.2,0.2,0.2],[0.1,0.1,0.1]]"
PREACT = ("model=preactresnet18", "model.width=4")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a completed cell, its store, and its attacked network as a file."""
    folder = tmp_path_factory.mktemp("lab")
    run_here(folder / ".store", folder / "sweep" / "cell")
    export_weights(folder / "sweep" / "cell", folder / "w.safetensors", which=1)
    return folder


@pytest.fixture
def weights(lab: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(lab / "w.safetensors")
    return found


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def removed(store: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """The scores and the keep mask of a cell's filter."""
    entry = record["run"]["stages"]["filter"]["id"]
    return VERDICT.read(store / "filter" / entry)


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_bytes())
    return found


def refused(root: Path, *words: str) -> str:
    """The message with which a cell is refused before any work; the exit code is 2."""
    with pytest.raises((ConfigError, DataError)) as caught:
        cell_of(root, *words)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list(root.rglob("attacked"))
    return str(caught.value)


def test_the_exported_network_of_a_cell_gives_the_results_of_this_cell(
    lab: Path, tmp_path: Path
) -> None:
    ours = record_of(lab / "sweep" / "cell")
    word = f"attacked={lab / 'w.safetensors'}"
    given = run_here(tmp_path / "store", tmp_path / "cell", word)
    first, second = lasting(ours), lasting(given)
    differing = {key for key in first if first[key] != second[key]}
    assert differing == {"id", "choices", "config"}
    assert {*first["config"]} ^ {*second["config"]} == {"attacked"}
    for name, values in removed(lab / ".store", ours).items():
        others = removed(tmp_path / "store", given)[name]
        torch.testing.assert_close(values, others, rtol=0, atol=0, equal_nan=True)
    assert "train" not in given["run"]["stages"]
    assert "retrain" in given["run"]["stages"]
    assert given["run"]["attacked"] == {
        "file": str(lab / "w.safetensors"), "weights": ours["hashes"]["weights1"],
        "normalization": "its metadata", "cell": ours["id"],
    }  # fmt: skip
    # The network is copied to the store: exporting it needs no file.
    export_weights(tmp_path / "cell", tmp_path / "w.safetensors", which=1, store=tmp_path / "store")
    before, after = (metadata(folder / "w.safetensors") for folder in (lab, tmp_path))
    same = ("model", "mean_255", "std_255", "weights", "classes", "nat", "asr")
    assert [before[key] for key in same] == [after[key] for key in same]
    assert "given, not trained" in after["network"]


@pytest.mark.parametrize("words", [("anp", "defense.steps=4"), ("fine_pruning",), ("strip",)])
def test_repairs_and_filters_on_networks_start_from_the_given_one(
    lab: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    words = (f"defense={words[0]}", *words[1:], HOLDOUT)
    own = run_here(tmp_path / "own", tmp_path / "own_cell", *words)
    word = f"attacked={lab / 'w.safetensors'}"
    given = run_here(tmp_path / "store", tmp_path / "cell", word, *words)
    assert {k for k, v in lasting(own).items() if v != given[k]} == {"id", "choices", "config"}


def test_without_a_given_network_nothing_in_a_cell_or_its_id_mentions_one(tmp_path: Path) -> None:
    cell = cell_of(tmp_path)
    assert "attacked" not in json.dumps([cell.decides(), cell.choices])
    assert cell.id == cell_of(tmp_path, "attacked=null", "attacked_normalization=null").id


def test_the_id_depends_on_tensors_and_normalization_but_not_on_the_file(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    moved = shutil.copy(lab / "w.safetensors", tmp_path / "other name.safetensors")
    cells = [cell_of(tmp_path, f"attacked='{path}'") for path in (lab / "w.safetensors", moved)]
    assert cells[0].id == cells[1].id != cell_of(tmp_path).id
    torch.save(weights, tmp_path / "plain.pt")
    plain = cell_of(tmp_path, f"attacked={tmp_path / 'plain.pt'}", GIVEN)
    assert plain.id != cells[0].id
    assert plain.decides()["attacked"]["weights"] == cells[0].decides()["attacked"]["weights"]
    assert plain.decides()["attacked"]["mean_255"] == pytest.approx([51.0] * 3)
    assert plain.choices["model"] == cells[0].choices["model"] != cell_of(tmp_path).choices["model"]


def test_networks_that_differ_only_in_the_normalization_share_no_results(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    """Not even after a repair that leaves the weights as they are."""
    torch.save(weights, tmp_path / "plain.pt")
    idle = ("defense=anp", "defense.steps=1", "defense.threshold=0", "defense.lr=1e-9", HOLDOUT)
    for number, stats in enumerate(("[[0.2,0.2,0.2],[0.1,0.1,0.1]]", "[[1,0,1],[1,1,1]]")):
        words = (f"attacked={tmp_path / 'plain.pt'}", f"attacked_normalization={stats}", *idle)
        shared = run_here(tmp_path / "store", tmp_path / f"cell{number}", *words)
        alone = run_here(tmp_path / f"store{number}", tmp_path / f"alone{number}", *words)
        assert lasting(shared) == lasting(alone)
    records = [record_of(tmp_path / f"cell{number}") for number in (0, 1)]
    assert records[0]["hashes"]["weights1"] == records[1]["hashes"]["weights1"]
    assert records[0]["per_class"] != records[1]["per_class"]


def test_a_second_run_reads_the_network_from_the_store(lab: Path, tmp_path: Path) -> None:
    path = shutil.copy(lab / "w.safetensors", tmp_path / "w.safetensors")
    cell = cell_of(tmp_path / "store", f"attacked={path}")
    run_here(tmp_path / "store", tmp_path / "cell", f"attacked={path}")
    Path(path).unlink()
    chain = CellPipeline(cell, Store(tmp_path / "store"), CPU, Progress(tmp_path, "", "none"))
    body = chain.run()
    assert not any(entry.made for entry in chain.stages.values())
    assert body["nat1"] == record_of(tmp_path / "cell")["nat1"]


def test_a_file_that_changes_after_the_check_is_refused(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = shutil.copy(lab / "w.safetensors", tmp_path / "w.safetensors")
    cell = cell_of(tmp_path / "store", f"attacked={path}")
    save_file({name: value + 1 for name, value in weights.items()}, path)
    chain = CellPipeline(cell, Store(tmp_path / "store"), CPU, Progress(tmp_path, "", "none"))
    with pytest.raises(DataError, match="has changed since the start of this command"):
        chain.run()


def test_an_estimate_counts_no_training_of_the_given_network(lab: Path, tmp_path: Path) -> None:
    word = f"attacked={lab / 'w.safetensors'}"
    for words, trainings in (((), 2), ((word,), 1), ((word, "retrain=false"), 0)):
        cell = cell_of(tmp_path, *words)
        work = estimate([cell], set(), CPU)
        assert work.trainings == trainings, words
    assert [state for _, state in work.cells] == ["from poison on"]
    assert sum(amount.measured for _, amount in work.amounts) > 0
    run_here(tmp_path, tmp_path / "cell", word, "retrain=false")
    assert estimate([cell], set(), CPU).cells[0][1] == "record only"


def test_tables_name_the_given_network_and_never_take_it_for_a_clean_one(
    lab: Path, tmp_path: Path
) -> None:
    words = (f"attacked={lab / 'w.safetensors'}", "ratio=0", "retrain=false", "defense=none")
    record = run_here(tmp_path / "store", tmp_path / "cell", *words)
    assert record["counts"]["n_poisoned"] == 0
    assert record["asr1"] == record_of(lab / "sweep" / "cell")["asr1"]
    read = parse((tmp_path / "cell" / "record.json").read_bytes())
    assert CleanNetworks.among([read]) == CleanNetworks({}, {})
    digest = record["hashes"]["weights1"][:8]
    assert record["choices"]["model"] == f"resnet18-w4 (attacked {digest})"
    assert any(f"{digest} (w.safetensors)" in line for line in where([read]))
    own = parse((lab / "sweep" / "cell" / "record.json").read_bytes())
    assert not any("not trained here" in line for line in where([own]))


@pytest.mark.parametrize("container", ["plain", "model", "state_dict", "module.", "model.net."])
def test_every_container_and_prefix_holds_the_same_network(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor], container: str
) -> None:
    content: dict[str, Any] = weights
    if container.endswith("."):
        content = {"state_dict": {f"{container}{name}": value for name, value in weights.items()}}
    elif container != "plain":
        content = {container: weights, "model_name": "resnet18", "epoch": 3}
    torch.save(content, tmp_path / "w.pt")
    cell = cell_of(tmp_path, f"attacked={tmp_path / 'w.pt'}", GIVEN)
    expected = record_of(lab / "sweep" / "cell")["hashes"]["weights1"]
    assert cell.decides()["attacked"]["weights"] == expected


def test_other_precisions_are_converted_to_float32(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    floats = {name for name, value in weights.items() if value.is_floating_point()}
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        given = {n: v.to(dtype) if n in floats else v for n, v in weights.items()}
        torch.save(given, tmp_path / "given.pt")
        torch.save(
            {n: v.float() if n in floats else v for n, v in given.items()}, tmp_path / "f.pt"
        )
        cells = [
            cell_of(tmp_path, f"attacked={tmp_path / name}", GIVEN) for name in ("given.pt", "f.pt")
        ]
        assert cells[0].id == cells[1].id


def test_counters_of_batches_may_be_missing(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    old = {name: value for name, value in weights.items() if "num_batches" not in name}
    torch.save(old, tmp_path / "old.pt")
    words = (f"attacked={tmp_path / 'old.pt'}", GIVEN, "retrain=false")
    assert run_here(tmp_path / "s", tmp_path / "c", *words)["status"] == "done"


def test_a_backdoorbench_result_is_attacked_with_its_own_architecture(tmp_path: Path) -> None:
    model = {"name": "preactresnet18", "width": 4, "stem": None}
    net = build_model(model, channels=3, classes=10, seed=3)
    path = tmp_path / "attack_result.pt"
    torch.save({"model_name": "preactresnet18", "num_classes": 10, "model": net.state_dict()}, path)
    said = refused(tmp_path, f"attacked={path}", GIVEN)
    assert "`model=preactresnet18 model.width=4`" in said
    record = run_here(tmp_path / "s", tmp_path / "c", f"attacked={path}", GIVEN, *PREACT)
    assert record["status"] == "done"
    assert record["nat2"] is not None


class Marker:
    """Its pickle creates a file when it is loaded by code that runs what it refers to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_leaves_no_trace(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "w.pt"
    torch.save({"model": weights, "extra": Marker(marker)}, path)
    said = refused(tmp_path / "store", f"attacked={path}", GIVEN)
    assert str(path) in said
    assert "refused" in said
    path.write_bytes(pickle.dumps(Marker(marker), protocol=2))
    refused(tmp_path / "store", f"attacked={path}", GIVEN)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # The marker does work.
    assert marker.exists()


def changed(weights: dict[str, Tensor], what: str) -> dict[str, Any]:
    first = weights["conv1.weight"]
    changes: dict[str, dict[str, Any]] = {
        "nan": {"conv1.weight": first * torch.nan},
        "overflow": {"conv1.weight": torch.full_like(first, 1e300, dtype=torch.float64)},
        "complex": {"conv1.weight": first.to(torch.complex64)},
        "shape": {"fc.weight": weights["fc.weight"][:4], "fc.bias": weights["fc.bias"][:4]},
        "unexpected": {"head.weight": torch.zeros(2, 2)},
        "missing": {},
        "number": {"extra": 3},
    }
    content: dict[str, Any] = weights | changes[what]
    if what == "missing":
        del content["layer4.1.bn2.weight"]
    return content


@pytest.mark.parametrize(
    ("what", "expected"),
    [("nan", "conv1.weight has values that are not finite"),
     ("overflow", "conv1.weight has values that are not finite in float32"),
     ("complex", "conv1.weight has complex numbers"),
     ("shape", "fc.weight has the shape (4, 32) instead of (10, 32)"),
     ("shape", "The network in the file has another number of classes (4)"),
     ("unexpected", "unexpected head.weight"),
     ("missing", "missing layer4.1.bn2.weight"),
     ("number", "holds no state_dict")],
)  # fmt: skip
def test_unusable_weights_are_refused_before_any_work(
    tmp_path: Path, weights: dict[str, Tensor], what: str, expected: str
) -> None:
    torch.save(changed(weights, what), tmp_path / "w.pt")
    said = refused(tmp_path / "store", f"attacked={tmp_path / 'w.pt'}", GIVEN)
    assert expected in said
    assert str(tmp_path / "w.pt") in said


def test_a_missing_truncated_or_foreign_file_is_refused(lab: Path, tmp_path: Path) -> None:
    whole = (lab / "w.safetensors").read_bytes()
    for name, data, expected in (
        ("none.pt", None, "No such file"),
        ("half.safetensors", whole[: len(whole) // 2], "not a valid safetensors file"),
        ("empty.pt", b"", "not a valid file of torch.save"),
        ("text.pt", b"weights", "not a valid file of torch.save"),
    ):
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        said = refused(tmp_path / "store", f"attacked={path}", GIVEN)
        assert expected in said
        assert str(path) in said
    folder = refused(tmp_path / "store", f"attacked={tmp_path}", GIVEN)
    assert "not a regular file" in folder
    assert str(tmp_path) in folder


def test_the_wrong_architecture_is_refused_with_the_words_that_choose_the_right_one(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    own = f"attacked={lab / 'w.safetensors'}"
    said = refused(tmp_path, own, "model.width=8")
    assert "conv1.weight has the shape (4, 3, 3, 3) instead of (8, 3, 3, 3)" in said
    assert "`model=resnet18 model.width=4`" in said
    said = refused(tmp_path, own, *PREACT)
    assert "missing layer2.0.shortcut.0.weight, " in said
    assert "unexpected bn1." in said
    torch.save(weights, tmp_path / "w.pt")
    plain = f"attacked={tmp_path / 'w.pt'}"
    assert "are those of `model=resnet18 model.width=4`" in refused(tmp_path, plain, GIVEN, *PREACT)
    torch.save(
        {n: v[:, :1] if n == "conv1.weight" else v for n, v in weights.items()}, tmp_path / "g.pt"
    )
    gray = f"attacked={tmp_path / 'g.pt'}"
    assert "The network in the file has another number of image channels (1)" in refused(
        tmp_path, gray, GIVEN
    )


def test_an_unknown_or_contradictory_normalization_is_refused(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save(weights, tmp_path / "w.pt")
    plain, own = f"attacked={tmp_path / 'w.pt'}", f"attacked={lab / 'w.safetensors'}"
    said = refused(tmp_path, plain)
    assert "normalization of its images is not known" in said
    assert "`attacked_normalization=[[mean, ...],[std, ...]]`" in said
    assert "contradicts its metadata" in refused(tmp_path, own, GIVEN)
    for words, expected in (
        ("[[125,122,114],[63,62,67]]", "0..1 scale"),
        ("[[0.5,0.5,0.5],[0,0.5,0.5]]", "every std must"),
        ("[[0.5,0.5,0.5],[0.5]]", "3 means and 1 standard deviation"),
        ("[0.5,0.5]", "one list of means and one of standard deviations"),
        ("[[0.5],[0.5]]", "the images have 3 channels"),
    ):
        assert expected in refused(tmp_path, plain, f"attacked_normalization={words}"), words
    assert "set `attacked` too" in refused(tmp_path, GIVEN)
    mean, std = (json.loads(metadata(lab / "w.safetensors")[key]) for key in ("mean", "std"))
    rounded = json.dumps([[round(v, 4) for v in mean], [round(v, 4) for v in std]])
    cell_of(tmp_path, own, f"attacked_normalization={rounded}")


def write_card(folder: Path, **changes: Any) -> None:
    card = {"kind": "network", "normalization": {"mean_255": [40] * 3, "std_255": [20] * 3}}
    (folder / "card.json").write_text(json.dumps(card | changes))


def test_a_card_next_to_the_file_states_the_normalization_and_the_model(
    tmp_path: Path, weights: dict[str, Tensor], lab: Path
) -> None:
    torch.save(weights, tmp_path / "w.pt")
    word, digest = f"attacked={tmp_path / 'w.pt'}", metadata(lab / "w.safetensors")["weights"]
    write_card(tmp_path, weights=digest, model={"name": "resnet18", "width": 4, "stem": "cifar"})
    cell = cell_of(tmp_path / "s", word)
    assert cell.decides()["attacked"]["mean_255"] == [40.0] * 3
    assert cell.parts.attacked is not None
    assert cell.parts.attacked.source == "card.json"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"weights": "0" * 64}, "do not match the hash in card.json"),
     ({"normalization": {"mean_255": [1, 2, 3]}}, "must have mean_255 and std_255"),
     ({"normalization": {"mean_255": [1] * 3, "std_255": [0] * 3}}, "std_255` must satisfy 0.0001"),
     ({"kind": "dataset"}, "is not known"),
     ({"model": {"name": "resnet34", "width": 4, "stem": "cifar"}}, "model.name=resnet34"),
     ({"classes": ["b", "a"]}, None)],
)  # fmt: skip
def test_a_card_that_is_wrong_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], changes: dict[str, Any], expected: str | None
) -> None:
    torch.save(weights, tmp_path / "w.pt")
    word = f"attacked={tmp_path / 'w.pt'}"
    write_card(tmp_path, **changes)
    if expected is None:
        # A network may be attacked on a data set whose classes have other names.
        cell_of(tmp_path / "s", word)
        write_card(tmp_path, classes=sorted(cell_of(tmp_path / "s").classes, reverse=True))
        expected = "classes in another order"
    assert expected in refused(tmp_path / "s", word)


def test_metadata_that_do_not_match_the_weights_are_refused(
    lab: Path, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    said = metadata(lab / "w.safetensors")
    for name, changes, expected in (
        ("a", {"weights": "0" * 64}, "do not match the hash in its own metadata"),
        ("b", {"mean_255": "[1, 2"}, "`mean_255` in its metadata is not valid JSON"),
        ("c", {"std_255": "[1, NaN, 1]"}, "`normalization.std_255` must satisfy"),
        ("d", {"model": said["model"].replace("4", "5")}, "`model=resnet18 model.width=5`"),
    ):
        path = tmp_path / f"{name}.safetensors"
        save_file(weights, path, metadata=said | changes)
        assert expected in refused(tmp_path / "s", f"attacked={path}"), name
