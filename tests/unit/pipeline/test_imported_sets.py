"""Cells on data sets that are already poisoned (``dataset=poisoned``)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import backdoor_lab as bl
from backdoor_lab.analysis.cell_artifacts import cell_artifacts
from backdoor_lab.core.artifacts import VERDICT
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.store import Store
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.distortion import _distortion
from backdoor_lab.export import main as export
from backdoor_lab.export_dataset import export_dataset
from backdoor_lab.export_weights import export_weights
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.stages.holdout import held_out, without_held_out
from backdoor_lab.pipeline.stages.triggered import triggered_test
from backdoor_lab.reports.__main__ import main as reports
from backdoor_lab.results.artifact_reader import ArtifactReader
from backdoor_lab.results.seal import write_sealed
from backdoor_lab.sweep.estimate import estimate
from backdoor_lab.sweep.manifest import finished, status_of
from backdoor_lab.sweep.preflight import Preflight
from tests.helpers.cells import CPU, cell_of, configuration, run_here
from tests.helpers.foreign_layouts import TRAIN, clean_images, record_folder, toolbox_set

FORMS = ("folder", "npz", "parquet", "toolbox")
ATTACKS = {
    "pixel": ("trigger=pixel",),
    "covers": ("trigger=tact", "measure.asr_under=[shift2]"),
    "clean labels": ("trigger=sinusoid", "trigger.frequency=2", "protocol.clean_holdout=20"),
    "replaced": ("trigger=patch", "protocol.placement=replace", "protocol.filter_scope=suspicious"),
    "every class": ("trigger=patch", "label_mode=all_to_all", "protocol.filter_scope=all"),
}
SAME = (
    "nat1", "asr1", "nat2", "asr2", "asr_elsewhere1", "asr_elsewhere2", "clean_rate1",
    "clean_rate2", "train_accuracy1", "train_accuracy2", "per_class", "detection", "notes",
    "poison_indices",
)  # fmt: skip
COUNTS = (
    "n_train", "n_clean", "n_poisoned", "n_covers", "n_removed", "pois_left", "covers_left",
    "n_test", "n_asr",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


def made(lab: Path, attack: str) -> Path:
    """The folder of a completed cell."""
    folder = lab / "sweep" / attack
    if not folder.exists():
        run_here(lab / ".store", folder, *ATTACKS[attack])
    return folder


def exported(lab: Path, attack: str, form: str) -> Path:
    folder = lab / f"{attack}-{form}"
    if not folder.exists():
        export_dataset(made(lab, attack), folder, layout=form)
    return folder


def without_truth(lab: Path, folder: Path) -> tuple[str, ...]:
    """The options that read the set of `pixel` as backdoor-toolbox leaves it if it stores no
    indices: without ground truth, card and triggered images."""
    shutil.copytree(exported(lab, "pixel", "toolbox"), folder)
    for name in ("card.json", "README.md", "poison_indices", "cover_indices"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "triggered")
    return imported(folder, f"dataset.test_root={folder / 'test_split'}", "target=2")


def again(attack: str) -> list[str]:
    """The options of a cell that do not belong to the attack."""
    kept = ("protocol.filter_scope", "protocol.clean_holdout", "measure", "defense", "recipe")
    return [option for option in ATTACKS[attack] if option.startswith(kept)]


def imported(root: Path, *options: str) -> tuple[str, ...]:
    return ("dataset=poisoned", f"dataset.root='{root}'", "ratio=null", *options)


def run_imported(lab: Path, *given: str) -> dict[str, Any]:
    folder = lab / "imported" / str(len(list(lab.glob("imported/*"))))
    record = run_here(lab / ".store", folder, *given, data=())
    assert record["status"] == "done", record["error"]
    return record


def record_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "record.json").read_bytes())
    return found


def judged(store: Path, record: dict[str, Any]) -> dict[str, torch.Tensor]:
    return VERDICT.read(store / "filter" / record["run"]["stages"]["filter"]["id"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_exported_and_imported_set_gives_the_results_of_its_cell(
    lab: Path, attack: str, form: str
) -> None:
    ours = record_of(made(lab, attack))
    theirs = run_imported(lab, *imported(exported(lab, attack, form), *again(attack)))
    assert {key: theirs[key] for key in SAME} == {key: ours[key] for key in SAME}
    assert {key: theirs["counts"][key] for key in COUNTS} == {
        key: ours["counts"][key] for key in COUNTS
    }
    assert theirs.get("under") == ours.get("under")
    for name in ("weights1", "weights2"):
        assert theirs["hashes"][name] == ours["hashes"][name]
    verdicts = judged(lab / ".store", ours), judged(lab / ".store", theirs)
    for name in ("scores", "keep"):
        values = [each[name].nan_to_num(-1) for each in verdicts]
        assert torch.equal(*values)
    assert ours["counts"]["pois_left"] is not None
    assert theirs["choices"]["trigger"] == ours["choices"]["trigger"]
    assert theirs["choices"]["target"] == ours["choices"]["target"]
    assert theirs["id"] != ours["id"]


def test_the_four_forms_share_their_networks(lab: Path) -> None:
    stages = []
    for form in FORMS:
        record = run_imported(lab, *imported(exported(lab, "pixel", form)))
        stages.append({name: each["id"] for name, each in record["run"]["stages"].items()})
    assert stages[1:] == stages[:1] * 3


def test_another_filter_reuses_the_network_of_an_imported_set(lab: Path) -> None:
    given = imported(exported(lab, "pixel", "npz"))
    run_imported(lab, *given)
    record = run_imported(lab, *given, "defense=random")
    assert not record["run"]["stages"]["train"]["made"]
    assert record["counts"]["n_poisoned"] == record_of(made(lab, "pixel"))["counts"]["n_poisoned"]


def test_without_ground_truth_the_poison_counts_are_empty(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_imported(lab, *without_truth(lab, tmp_path / "unknown"), "ratio=0.03")
    empty = ("n_poisoned", "pois_left", "n_covers", "covers_left", "n_clean", "n_eligible")
    assert [record["counts"][name] for name in empty] == [None] * 6
    assert record["detection"] is None
    assert record["poison_indices"] is record["hashes"]["poison"] is None
    assert record["asr1"] is None
    # 1.5 times the assumed share of the 206 images.
    assert record["counts"]["n_removed"] == 9
    ours = record_of(made(lab, "pixel"))
    assert record["counts"]["n_train"] == ours["counts"]["n_train"] == 206
    write_sealed(tmp_path / "sweep" / record["id"] / "record.json", record)
    assert reports([str(tmp_path / "sweep")]) == 0
    text = capsys.readouterr().out
    assert "near chance" not in text  # Without triggered images, chance is not known.
    [*_, row] = [line for line in text.splitlines() if line.startswith("| 2 ")]
    target, ratio, poisoned, _, asr1, left, *_ = (word.strip() for word in row.split("|")[1:])
    assert (target, ratio, poisoned, asr1, left) == ("2", "3%", "–", "–", "–")


def test_without_ground_truth_ratio_is_required_and_controls_are_refused(
    lab: Path, tmp_path: Path
) -> None:
    given = without_truth(lab, tmp_path / "unknown")
    with pytest.raises(ConfigError, match="`ratio` is needed"):
        checked(lab, *given)
    with pytest.raises(ConfigError, match="`target` is needed"):
        checked(lab, *given, "ratio=0.03", "target=null")
    with pytest.raises(ConfigError, match="needs the ground truth"):
        checked(lab, *given, "ratio=0.03", "defense=oracle")


def checked(lab: Path, *given: str) -> Cell:
    return Preflight().cell(configuration(lab / ".store", *given, data=()))


def cell_at(lab: Path, root: Path, *options: str) -> Cell:
    return checked(lab, *imported(root, *options))


@pytest.mark.parametrize(("option", "message"), [
    ("ratio=0.2", "`ratio`=0.2, but the poisoned data set states ratio=0.3: remove the option"),
    ("target=dog", "`target`=dog, but the poisoned data set states target=bird"),
    ("source=cat", "`source`=cat, but the poisoned data set states source=null"),
    ("label_mode=clean", "`label_mode`=clean, but the poisoned data set states"),
    ("trigger=patch", "is already poisoned, so that no trigger can be applied"),
    ("target=3", "`target`=cat, but the poisoned data set states target=bird"),
    ("protocol.apply_trigger=after_augmentation", "triggered before augmentation"),
    ("defense=clean_data", "images before the attack"),
    ("+dataset.size=16", "size"),
])  # fmt: skip
def test_options_that_contradict_an_imported_set_are_refused(
    lab: Path, option: str, message: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=message.replace("(", r"\(")):
        cell_at(
            lab, exported(lab, "pixel", "npz"), *(f"+{option}" if "size" in option else option,)
        )


def test_options_that_agree_with_an_imported_set_are_accepted(lab: Path) -> None:
    root = exported(lab, "pixel", "npz")
    cells = [cell_at(lab, root), cell_at(lab, root, "ratio=0.3", "target=bird"),
             cell_at(lab, root, "target=2")]  # fmt: skip
    assert len({cell.id for cell in cells}) == 1


def test_a_trigger_without_a_poisoned_set_is_refused(tmp_path: Path) -> None:
    target = "backdoor_lab.attacks.imported.ImportedTrigger"
    with pytest.raises(ConfigError, match="of `dataset=poisoned` only"):
        cell_of(tmp_path, "~trigger", f"+trigger._target_={target}", "+trigger.name=imported")


def test_the_estimate_counts_the_images_of_an_imported_set(lab: Path) -> None:
    cell = cell_at(lab, exported(lab, "covers", "npz"), "seed=7")
    counts = record_of(made(lab, "covers"))["counts"]
    work = estimate([cell], set(), CPU)
    [(_, amount)] = work.amounts
    assert work.trainings == 2
    assert amount.trained == 2 * counts["n_train"] * cell.recipe.epochs


def test_the_weights_of_an_imported_cell_carry_the_normalization_of_the_set(
    lab: Path, tmp_path: Path
) -> None:
    record = run_imported(lab, *imported(exported(lab, "replaced", "folder"), *again("replaced")))
    folder = next(p.parent for p in lab.glob("imported/*/record.json")
                  if json.loads(p.read_bytes())["id"] == record["id"])  # fmt: skip
    said, first = (
        export_weights(each, tmp_path / f"{number}.safetensors", which=1, store=lab / ".store")
        for number, each in enumerate((folder, made(lab, "replaced")))
    )
    assert said["mean_255"] == first["mean_255"]
    cards = [json.loads((tmp_path / f"{n}.card.json").read_bytes()) for n in (0, 1)]
    assert cards[0]["hashes"] == cards[1]["hashes"]
    assert cards[0]["claims"] == cards[1]["claims"]


def test_stored_originals_are_known_for_appended_poison_only(lab: Path) -> None:
    for attack, known in (("pixel", True), ("replaced", False)):
        record = run_imported(lab, *imported(exported(lab, attack, "npz"), *again(attack)))
        training = ArtifactReader(lab / ".store").training(record)
        assert training is not None
        assert training.has_originals is known
        count = record["counts"]["n_poisoned"]
        assert int(training.is_poison.sum()) == count


def test_held_out_test_images_are_not_triggered(lab: Path) -> None:
    root = exported(lab, "pixel", "npz")
    cell = cell_at(lab, root, "protocol.clean_holdout=20")
    data = open_dataset(cell.parts.data, Store(cell.store_root))
    rest = without_held_out(cell, data)
    left = triggered_test(cell, rest)
    assert data.attack is not None
    aside = set(held_out(cell, data.test).tolist())
    indices = np.asarray(data.attack.test_index).tolist()
    kept = [number for number, index in enumerate(indices) if index not in aside]
    assert 0 < len(kept) < len(indices)
    assert torch.equal(left.images.images, torch.from_numpy(data.attack.triggered)[kept])
    originals = rest.test.images[left.original]
    assert torch.equal(originals, data.test.images[data.attack.test_index][kept])


def test_a_record_of_backdoorbench_is_filtered_and_retrained(lab: Path, tmp_path: Path) -> None:
    root = record_folder(tmp_path)
    given = imported(root, f"dataset.clean_root={tmp_path / 'data' / 'clean.npz'}")
    record = run_imported(lab, *given, "recipe.batch_size=8")
    facts = checked(lab, *given).parts.data.imported()
    assert facts is not None
    assert record["counts"]["n_poisoned"] == facts.n_poisoned == len(record["poison_indices"])
    assert record["counts"]["n_train"] == TRAIN
    assert record["counts"]["n_asr"] > 0
    assert record["asr2"] is not None
    assert record["choices"]["ratio"] == pytest.approx(facts.n_poisoned / TRAIN)


def test_a_set_of_backdoor_toolbox_with_its_indices_has_counts_but_no_asr(
    lab: Path, tmp_path: Path
) -> None:
    record = run_imported(lab, *imported(toolbox_set(tmp_path)), "recipe.batch_size=8")
    counts = record["counts"]
    assert (counts["n_poisoned"], counts["n_covers"], counts["n_asr"]) == (3, 1, 0)
    assert record["asr1"] is record["asr2"] is None
    assert record["choices"]["trigger"] == "badnet"


def test_a_saved_poison_result_is_filtered_and_retrained(lab: Path, tmp_path: Path) -> None:
    images, labels = clean_images(60, 3)
    result = bl.poison(images, labels, "patch", target=1, ratio=0.5)
    result.save(tmp_path / "saved")
    given = imported(tmp_path / "saved", "dataset.test_share=0.2")
    record = run_imported(lab, *given)
    assert record["counts"]["n_poisoned"] == int(result.is_poison.sum()) == 10
    assert record["counts"]["n_train"] + record["counts"]["n_test"] == len(labels) + 10
    assert record["choices"]["target"] == "1"


def test_a_finished_cell_without_ground_truth_is_not_run_again(lab: Path, tmp_path: Path) -> None:
    record = run_imported(lab, *without_truth(lab, tmp_path / "unknown"), "ratio=0.04")
    folder = next(path.parent for path in lab.glob("imported/*/record.json")
                  if json.loads(path.read_bytes())["id"] == record["id"])  # fmt: skip
    assert status_of(folder) == "done"
    assert finished(folder, record["id"])
    damaged = tmp_path / "damaged"
    counts = {key: value for key, value in record["counts"].items() if key != "pois_left"}
    write_sealed(damaged / "record.json", record | {"counts": counts})
    assert status_of(damaged) == "failed: damaged record"


def test_images_of_a_set_without_ground_truth_are_neither_poisoned_nor_clean(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_imported(lab, *without_truth(lab, tmp_path / "unknown"), "ratio=0.05")
    folder = next(path.parent for path in lab.glob("imported/*/record.json")
                  if json.loads(path.read_bytes())["id"] == record["id"])  # fmt: skip
    out = tmp_path / "images.csv"
    assert export([str(folder), "--images", "--out", str(out), "--store", str(lab / ".store")]) == 0
    assert "206 images, poison unknown, " in capsys.readouterr().out
    frame = pd.read_csv(out)
    assert frame["is_poison"].isna().all()
    assert frame["is_cover"].isna().all()
    assert frame["removed"].sum() == record["counts"]["n_removed"]
    assert cell_artifacts(ArtifactReader(lab / ".store"), record) is None
    card = json.loads(export_card(folder, lab, tmp_path))
    assert card["ratio"] is None
    assert card["protocol"] == {}


def export_card(folder: Path, lab: Path, scratch: Path) -> bytes:
    export_weights(folder, scratch / "w.safetensors", which=1, store=lab / ".store")
    return (scratch / "w.card.json").read_bytes()


def test_the_distortion_of_an_imported_set_is_that_of_its_cell(lab: Path) -> None:
    reader = ArtifactReader(lab / ".store")
    ours = _distortion(reader, record_of(made(lab, "pixel")))
    theirs = _distortion(reader, run_imported(lab, *imported(exported(lab, "pixel", "npz"))))
    assert repr(theirs) == repr(ours)  # SSIM is NaN for images this small.
    assert ours is not None
    replaced = run_imported(lab, *imported(exported(lab, "replaced", "npz"), *again("replaced")))
    assert _distortion(reader, replaced) is None
