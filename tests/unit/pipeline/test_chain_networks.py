"""Cells whose defense uses networks: their inputs, what is trained, and what is stored."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.tensor_io import read_tensors
from backdoor_lab.defenses import abl
from backdoor_lab.defenses.context import DefenseContext
from backdoor_lab.defenses.fine_pruning import FinePruning
from backdoor_lab.defenses.strip import STRIP
from backdoor_lab.export_weights import export_weights
from backdoor_lab.pipeline import cell_pipeline
from backdoor_lab.pipeline.stages.context import context_facts
from backdoor_lab.pipeline.stages.holdout import held_out
from backdoor_lab.sweep.estimate import estimate, missing_from
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.device import machine_of
from tests.helpers.cells import cell_of, lasting, run_here

HELD = "protocol.clean_holdout=20"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store in which the default cell has run, with held-out images."""
    folder = tmp_path_factory.mktemp("lab")
    run_here(folder / "store", folder / "cell", HELD)
    return folder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the networks that are trained: by the pipeline, and by the filter itself."""
    seen: Counter[str] = Counter()
    fit, ascended = cell_pipeline.fit, abl.ABL.ascended

    def counting_fit(*arguments: Any, **said: Any) -> Any:
        seen["chain"] += 1
        return fit(*arguments, **said)

    def counting_ascended(self: abl.ABL, context: DefenseContext) -> tuple[nn.Module, torch.Tensor]:
        seen["filter"] += 1
        return ascended(self, context)

    monkeypatch.setattr(cell_pipeline, "fit", counting_fit)
    monkeypatch.setattr(abl.ABL, "ascended", counting_ascended)
    return seen


def made(record: dict[str, Any]) -> list[str]:
    return sorted(name for name, said in record["run"]["stages"].items() if said["made"])


def run(lab: Path, name: str, *overrides: str) -> dict[str, Any]:
    return run_here(lab / "store", lab / name, HELD, *overrides)


def test_a_filter_that_trains_a_network_does_not_train_the_attacked_network_again(
    lab: Path, counted: Counter[str]
) -> None:
    """Only the filter's own network and the retrained one are trained. Running the cell again
    trains none."""
    first = run(lab, "abl", "defense=abl")
    assert first["status"] == "done"
    assert made(first) == ["filter", "measure2", "retrain", "train_accuracy2"]
    assert counted == {"filter": 1, "chain": 1}
    again = run(lab, "again", "defense=abl")
    assert made(again) == []
    assert counted == {"filter": 1, "chain": 1}
    assert lasting(again) == lasting(first)
    # With another budget the filter trains its network again, since this training is not a stage.
    run(lab, "less", "defense=abl", "defense.removal_budget=3")
    assert counted == {"filter": 2, "chain": 2}


def test_a_repair_replaces_filter_and_retraining(lab: Path, counted: Counter[str]) -> None:
    record = run(lab, "repair", "defense=fine_pruning")
    assert record["status"] == "done"
    assert made(record) == ["measure2", "repair"]
    assert not counted
    assert set(record["run"]["stages"]).isdisjoint({"filter", "retrain"})
    assert record["counts"]["pois_left"] == record["counts"]["n_poisoned"] > 0
    assert record["counts"]["n_removed"] == 0
    assert record["detection"] is None
    assert record["notes"].keys() == {"pruned", "of"}
    assert None not in [record["nat2"], record["asr2"]]
    entry = lab / "store/repair" / record["run"]["stages"]["repair"]["id"]
    before = lab / "store/train" / record["run"]["stages"]["train"]["id"]
    weights, old = (read_tensors(each / "weights.safetensors") for each in (entry, before))
    assert weights.keys() == old.keys()
    assert int((weights["fc.weight"] == 0).all(dim=0).sum()) == record["notes"]["pruned"]
    assert record["hashes"]["weights2"] != record["hashes"]["weights1"]
    assert made(run(lab, "repair again", "defense=fine_pruning")) == []
    export_weights(lab / "repair", lab / "out.safetensors", store=lab / "store")
    found = read_tensors(lab / "out.safetensors")
    assert torch.equal(found["fc.weight"], weights["fc.weight"])


def test_recomputing_a_lost_repair_gives_the_same_weights(lab: Path, tmp_path: Path) -> None:
    first = run(lab, "first", "defense=fine_pruning")
    shutil.copytree(lab / "store", tmp_path / "store")
    shutil.rmtree(tmp_path / "store/repair")
    again = run_here(tmp_path / "store", tmp_path / "cell", HELD, "defense=fine_pruning")
    assert made(again) == ["repair"]
    assert lasting(again) == lasting(first)


def test_filter_options_do_not_change_a_repair(lab: Path) -> None:
    """In a sweep over removal budgets the network is repaired once."""
    run(lab, "repair", "defense=fine_pruning")
    other = run(lab, "budget", "defense=fine_pruning", "defense.removal_budget=3")
    assert made(other) == []


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("defense.max_accuracy_drop=0.5", "repair"),
        # The repair and the evaluation both depend on the choice of held-out images.
        ("protocol.clean_holdout=22", "measure repair"),
        ("seed=1", "poison"),
        ("recipe.lr=0.02", "train"),
    ],
)
def test_a_repair_is_computed_again_if_its_inputs_change(
    lab: Path, change: str, first: str
) -> None:
    """The estimate names the first stage to compute."""
    run(lab, "repair", "defense=fine_pruning")
    cell = cell_of(lab / "store", HELD, "defense=fine_pruning", change)
    assert missing_from(cell, lab / "store", machine_of(cell.config["trainer"])) == first.split()


def test_the_recorded_inputs_of_a_defense_are_complete(lab: Path) -> None:
    """They are the network, normalization, architecture, recipe and, if used, held-out images."""
    module: Any = SimpleNamespace(mean=torch.zeros(1, 3, 1, 1), std=torch.ones(1, 3, 1, 1))
    for defense, more in (("abl", set()), ("strip", {"test", "holdout"})):
        cell = cell_of(lab / "store", HELD, f"defense={defense}")
        data = Preflight().data(cell)
        facts = context_facts(cell, data, data.test, module, "w")
        assert facts.keys() == {"version", "weights", "normalisation", "model", "recipe"} | more


def test_a_defense_gets_a_copy_of_the_network_and_the_poisoned_and_held_out_images(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-out images are not used for evaluation. A defense cannot change the attacked network."""
    caught: list[DefenseContext] = []

    def repair(self: FinePruning, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        caught.append(context)
        spoiled = context.network()
        with torch.no_grad():
            for value in spoiled.parameters():
                value.zero_()
        return context.network(), {}

    monkeypatch.setattr(FinePruning, "repair", repair)
    record = run(lab, "caught", "defense=fine_pruning", "defense.epochs=2")
    assert record["hashes"]["weights2"] == record["hashes"]["weights1"]
    assert [record["nat2"], record["asr2"]] == [record["nat1"], record["asr1"]]
    (given,) = caught
    test = Preflight().data(cell_of(lab / "store", HELD)).test
    cell = cell_of(lab / "store", HELD, "defense=fine_pruning")
    assert given.clean is not None
    assert torch.equal(given.clean.images, test.images[held_out(cell, test)])
    assert record["counts"]["n_test"] == 30
    last = torch.arange(len(given.labels))[-record["counts"]["n_poisoned"] :]
    poison = given.images(last, None)
    assert bool((poison[:, :, -1, -1] == 255).all())
    assert given.labels[last].unique().tolist() == [cell.plan.target]
    one, other = given.fresh(0), given.fresh(1)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert not all(same)
    shown = poison[:3]
    assert torch.allclose(given.network()(shown), given.network()(shown.float()), atol=1e-5)


def test_a_defense_gets_only_the_inputs_it_declares(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[Any] = []
    whole = abl.ABL.score_images

    def rate(self: abl.ABL, context: DefenseContext, where: torch.Tensor) -> Any:
        caught.append(context.clean)
        return whole(self, context, where)

    monkeypatch.setattr(abl.ABL, "score_images", rate)
    run(lab, "bare", "defense=abl", "defense.gamma=0.4")
    assert caught == [None]


def test_a_cell_whose_repair_returns_nan_weights_has_the_status_diverged(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def repair(self: FinePruning, context: DefenseContext) -> tuple[nn.Module, dict[str, object]]:
        network = context.network()
        with torch.no_grad():
            next(network.parameters()).fill_(torch.nan)
        return network, {}

    monkeypatch.setattr(FinePruning, "repair", repair)
    record = run(lab, "broken", "defense=fine_pruning", "defense.epochs=3")
    assert record["status"].startswith("diverged: ")
    assert "FinePruning.repair`: weight net.conv1.weight is not finite" in record["status"]


def test_a_defense_whose_requirements_are_not_met_is_refused_before_any_work(
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=r"`defense=strip` needs .* protocol.clean_holdout to 20"):
        cell_of(tmp_path, "defense=strip")
    with pytest.raises(ConfigError, match=r"`defense=anp` needs .* protocol.clean_holdout to 20"):
        cell_of(tmp_path, "defense=anp")
    with pytest.raises(ConfigError, match="cannot be used with `retrain=false`"):
        cell_of(tmp_path, HELD, "defense=anp", "retrain=false")


def test_the_strip_defense_uses_the_held_out_images(lab: Path) -> None:
    record = run(lab, "strip", "defense=strip")
    assert record["status"] == "done"
    assert "threshold_bits" in json.dumps(record["notes"])
    assert "clean" not in record["run"]["stages"]
    assert STRIP().requires() == ["target", "epsilon", "context", "clean images"]


def test_the_clean_data_control_equals_the_oracle_if_poison_is_appended(lab: Path) -> None:
    oracle = run(lab, "oracle", "defense=oracle")
    clean = run(lab, "clean", "defense=clean_data")
    assert made(clean) == ["filter"]
    assert clean["hashes"]["weights2"] == oracle["hashes"]["weights2"]


def test_the_clean_data_control_restores_originals_that_poison_replaced(lab: Path) -> None:
    """The oracle trains without these originals, clean_data with them."""
    replaced = ("protocol.placement=replace", "trigger=pattern")
    oracle = run(lab, "oracle2", "defense=oracle", *replaced)
    clean = run(lab, "clean2", "defense=clean_data", *replaced)
    appended = run(lab, "clean3", "defense=clean_data", "trigger=pattern")
    n = {name: stage_meta(lab, each)["n_train"] for name, each in
         (("oracle", oracle), ("clean", clean))}  # fmt: skip
    assert n == {"oracle": 200 - clean["counts"]["n_poisoned"], "clean": 200}
    assert clean["hashes"]["weights2"] == appended["hashes"]["weights2"]
    assert clean["hashes"]["weights2"] != oracle["hashes"]["weights2"]
    assert clean["counts"]["pois_left"] == 0


def stage_meta(lab: Path, record: dict[str, Any]) -> dict[str, Any]:
    folder = lab / "store/retrain" / record["run"]["stages"]["retrain"]["id"]
    meta: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["meta"]
    return meta


def test_autoencoder_features_are_shared_between_recipes(lab: Path) -> None:
    """They depend on neither labels nor the network."""
    layer = "protocol.layer=autoencoder"
    first = run(lab, "auto", layer)
    assert first["status"] == "done"
    assert {"autoencoder", "extract"} <= set(made(first))
    other = run(lab, "other", layer, "recipe.lr=0.04")
    assert "train" in made(other)
    assert {"autoencoder", "extract", "filter"}.isdisjoint(made(other))
    assert other["detection"] == first["detection"]
    assert first["protocol"]["layer"] == "autoencoder"
    both = run(lab, "both", layer, "defense=scan")
    assert made(both)[:2] == ["clean", "filter"]


def test_the_estimate_names_the_first_missing_stage(lab: Path) -> None:
    """The first missing stage may be held-out features, a repair or an autoencoder."""
    for overrides, first, trainings in (
        (("defense=scan",), "clean", 1),
        (("defense=fine_pruning", "defense.lr=0.5"), "repair", 0),
        (("protocol.layer=autoencoder", "dataset.noise=11"), "poison", 2),
    ):
        cell = cell_of(lab / "store", HELD, *overrides)
        work = estimate([cell], set(), machine_of(cell.config["trainer"]))
        assert work.cells[0][1] == f"from {first} on"
        assert work.trainings == trainings
