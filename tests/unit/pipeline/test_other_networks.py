"""Every defense runs on a vision transformer, a wide ResNet and a MobileNetV3, or refuses it before
any work; layers of tokens; files of such networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from safetensors.torch import load_file

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.export_weights import export_weights
from backdoor_lab.run import conf_dir
from tests.helpers.cells import cell_of, lasting, run_here
from tests.helpers.small_networks import MOBILENET_WORDS, VIT_WORDS, WIDE_WORDS

pytest.importorskip("timm")
NETWORKS = {
    "vit": (*VIT_WORDS, "protocol.layer=blocks.1:cls"), "wide": WIDE_WORDS,
    "mobile": MOBILENET_WORDS,
}  # fmt: skip
DEFENSES = sorted(path.stem for path in Path(conf_dir(), "defense").glob("*.yaml"))
BRIEF = {
    "steps": 3, "epochs": 1, "pretrain_epochs": 1, "training_epochs": 1, "unlearning_epochs": 1,
    "first_epochs": 1, "tuning_epochs": 1, "passes": 1, "rounds": 1,
}  # fmt: skip
RESNET_LAYER = "'layer3.1.relu:input' is not known"
REFUSED = {
    ("vit", "anp"): "`defense=anp` needs a network with batch normalization",
    # This preset names a layer of a ResNet18; with defense.layer=penultimate, it runs.
    ("vit", "spectre_authors"): RESNET_LAYER,
    ("wide", "spectre_authors"): RESNET_LAYER,
    ("mobile", "spectre_authors"): RESNET_LAYER,
}


def repairs(defense: str) -> bool:
    """Whether a defense is a repair, which has no result without its network."""
    known = OmegaConf.load(Path(conf_dir(), "defense", f"{defense}.yaml"))
    return issubclass(get_class(known["_target_"]), ModelRepair)


def brief(defense: str) -> list[str]:
    """Overrides that make a defense's own training as short as possible."""
    known = OmegaConf.load(Path(conf_dir(), "defense", f"{defense}.yaml"))
    return [f"defense.{key}={value}" for key, value in BRIEF.items() if key in known]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that all cells share, so that each network is trained once."""
    return tmp_path_factory.mktemp("networks")


def test_the_preset_for_a_resnet_runs_on_another_layer(root: Path, tmp_path: Path) -> None:
    words = (*WIDE_WORDS, "defense=spectre_authors", "defense.layer=penultimate", "retrain=false")
    record = run_here(root, tmp_path / "cell", *words, "protocol.clean_holdout=20")
    assert record["status"] == "done", record["error"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("defense", DEFENSES)
def test_every_defense_runs_or_refuses_the_network_before_any_work(
    network: str, defense: str, root: Path, tmp_path: Path
) -> None:
    words = [*NETWORKS[network], f"defense={defense}", *brief(defense)]
    words += ["protocol.clean_holdout=20", f"retrain={'true' if repairs(defense) else 'false'}"]
    message = REFUSED.get((network, defense))
    if message is not None:
        with pytest.raises(ConfigError, match=message):
            cell_of(root, *words)
        return
    record = run_here(root, tmp_path / "cell", *words)
    assert record["status"] == "done", record["error"]
    stages = record["run"]["stages"]
    assert ("filter" in stages) != ("repair" in stages)
    assert 0 <= record["nat1"] <= 1
    assert ("nat2" in record and record["nat2"] is not None) == ("repair" in stages)


def test_an_exported_vit_is_attacked_again_with_the_same_results(tmp_path: Path) -> None:
    ours = run_here(tmp_path / "store", tmp_path / "cell", *VIT_WORDS)
    path = tmp_path / "w.safetensors"
    export_weights(tmp_path / "cell", path, which=1, store=tmp_path / "store")
    given = run_here(tmp_path / "other", tmp_path / "cell2", *VIT_WORDS, f"attacked={path}")
    first, second = lasting(ours), lasting(given)
    assert {key for key in first if first[key] != second[key]} == {"id", "choices", "config"}
    options = r"\"model.options={depth: 2, embed_dim: 24, num_heads: 3, patch_size: 4}\""
    said = f"`model=timm model.name=vit_tiny_patch16_224 {options} model.input_size=16`: set these"
    with pytest.raises(ConfigError, match=f"The file says that it is {said}"):
        cell_of(tmp_path / "store", f"attacked={path}")


def test_the_input_size_decides_what_an_attacked_network_sees(tmp_path: Path) -> None:
    ours = run_here(tmp_path / "store", tmp_path / "cell", *WIDE_WORDS)
    path = tmp_path / "w.safetensors"
    export_weights(tmp_path / "cell", path, which=1, store=tmp_path / "store")
    words = (*WIDE_WORDS, f"attacked={path}")
    with pytest.raises(ConfigError, match="set these"):
        cell_of(tmp_path / "store", *words, "model.input_size=12")
    assert cell_of(tmp_path / "store", *words).id != ours["id"]


def exported(root: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of the first network of the cell `name`."""
    path = root / f"{name}.safetensors"
    export_weights(root / name, path, which=1, store=root / "store")
    return load_file(path)


def test_pretrained_weights_of_a_vit_are_fine_tuned(tmp_path: Path) -> None:
    run_here(tmp_path / "store", tmp_path / "cell", *VIT_WORDS)
    given = exported(tmp_path, "cell")
    tuned = (
        *VIT_WORDS, "recipe=finetune", "recipe.epochs=1", "recipe.batch_size=32",
        f"model.weights={tmp_path / 'cell.safetensors'}", "retrain=false",
    )  # fmt: skip
    run_here(tmp_path / "store", tmp_path / "moved", *tuned)
    # With a learning rate close to zero, the network stays what the file says.
    run_here(tmp_path / "store", tmp_path / "same", *tuned, "recipe.lr=1e-30")
    moved, same = exported(tmp_path, "moved"), exported(tmp_path, "same")
    assert [key for key in given if not torch.equal(given[key], same[key])] == []
    assert [key for key in given if torch.equal(given[key], moved[key])] == []
