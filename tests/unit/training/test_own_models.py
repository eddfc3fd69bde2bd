"""Networks of plug-ins: model=module model.factory=file:make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backdoor_lab.check_plugin import models as checks
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.plugins.trust import Trust, trust
from backdoor_lab.sweep.preflight import Preflight
from backdoor_lab.training.models import build_model, check_model
from tests.helpers.cells import cell_of, run_here

NETWORKS = """
from torch import nn

def make(num_classes, in_channels=3, width=4):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(4 * width, num_classes),
    )

def color(num_classes):
    return make(num_classes)

def nothing(num_classes):
    return num_classes

def none():
    return None
"""
USE = ("plugins=[networks.py]", "model=module", "model.factory=networks:make", "model.width=null")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Path("networks.py").write_text(NETWORKS)
    trust(Trust(files=(tmp_path / "networks.py",)))
    yield
    trust(Trust())


def group(factory: str | None, **options: int) -> dict[str, object]:
    return {
        "name": "module", "width": None, "stem": None, "factory": factory, "options": options,
    }  # fmt: skip


def test_a_cell_trains_a_network_of_a_plugin(tmp_path: Path) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", *USE, "+model.options.width=3")
    assert record["status"] == "done"
    assert record["choices"]["model"] == "networks:make width=3"
    assert [plugin["file"] for plugin in record["run"]["plugins"]] == ["networks.py"]
    first = cell_of(tmp_path / "store", *USE)
    assert set(first.code["models"]) == {"models", "networks"}
    Path("networks.py").write_text(NETWORKS.replace("nn.ReLU()", "nn.GELU()"))
    assert cell_of(tmp_path / "store", *USE).id != first.id


def test_the_options_and_the_seed_determine_the_network() -> None:
    def weights(seed: int, **options: int) -> torch.Tensor:
        net = build_model(group("networks:make", **options), channels=1, classes=5, seed=seed)
        return net.state_dict()["4.weight"]

    assert weights(0).shape == (5, 16)
    assert weights(0, width=2).shape == (5, 8)
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


@pytest.mark.parametrize(
    ("factory", "options", "said"),
    [
        (None, {}, "`model=module` needs model.factory=package.module:make"),
        ("networks:missing", {}, "networks has no function missing"),
        ("elsewhere:make", {}, "not in a trusted plug-in: If elsewhere is a plug-in whose code"),
        ("networks:make", {"depth": 3}, "`model.options.*depth"),
        ("networks:none", {}, "networks:none must have a parameter num_classes"),
    ],
)
def test_a_bad_factory_is_refused(factory: str | None, options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_model(group(factory, **options))


def test_width_and_stem_are_null_if_a_configuration_does_not_have_them(tmp_path: Path) -> None:
    whole = cell_of(tmp_path / "store", *USE, "+model.options.width=3")
    brief = {"name": "module", "factory": "networks:make", "options": {"width": 3}}
    found = Preflight().cell({**whole.config, "model": brief})
    assert (found.model["width"], found.model["stem"]) == (None, None)
    assert found.id == whole.id
    check_model(brief)
    assert build_model(brief, channels=3, classes=2, seed=0).state_dict()["0.weight"].shape[0] == 3


def test_a_network_that_is_named_as_a_class_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`factory: package.module:function`; see") as caught:
        cell_of(tmp_path / "store", "plugins=[networks.py]", "+model._target_=networks.make")
    assert "backdoor_lab.attacks" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"needs `model=timm`, or `model.factory=package.module"):
        check_model({"name": "mine", "options": {"depth": 3}})


def test_a_factory_that_returns_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="must return a torch.nn.Module, got int"):
        build_model(group("networks:nothing"), channels=3, classes=2, seed=0)


@pytest.mark.parametrize("check", checks.CHECKS)
def test_the_checks_of_networks_accept_a_small_network(check: str) -> None:
    checks.CHECKS[check](group("networks:color"))
