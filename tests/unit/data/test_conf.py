"""Every file in conf/dataset names a class and exactly its parameters."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from backdoor_lab.data import Source

FOLDER = Path(__file__).parents[3] / "conf" / "dataset"
PRESETS = {"synthetic_small": "synthetic"}
"""Files that override values of another file."""
FILES = sorted(path for path in FOLDER.glob("*.yaml") if path.stem not in PRESETS)
NEEDS_ROOT = {
    "image_folder": "x/y.zip", "arrays": "x/y.npz", "poisoned": "x/y", "huggingface": "x/y",
}  # fmt: skip


def composed(path: Path) -> tuple[type[Source], dict[str, Any]]:
    given: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    given = given.get("dataset", given)  # poisoned.yaml also sets other groups.
    module, _, name = given.pop("_target_").rpartition(".")
    return getattr(import_module(module), name), given


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_keys_equal_constructor_parameters(path: Path) -> None:
    kind, given = composed(path)
    parameters = inspect.signature(kind).parameters
    assert set(given) == set(parameters)
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
    if path.stem in NEEDS_ROOT:
        given["root"] = NEEDS_ROOT[path.stem]
    source = kind(**given)
    assert source.name == (path.stem if path.stem not in NEEDS_ROOT else "y")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_yaml_values_equal_constructor_defaults(path: Path) -> None:
    kind, given = composed(path)
    for key, parameter in inspect.signature(kind).parameters.items():
        if key != "name":
            assert given[key] == parameter.default, key


@pytest.mark.parametrize(("preset", "base"), PRESETS.items())
def test_a_preset_changes_values_of_its_base_but_adds_no_keys(preset: str, base: str) -> None:
    found: Any = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{preset}.yaml"))
    assert found.pop("defaults") == [base, "_self_"]
    kind, given = composed(FOLDER / f"{base}.yaml")
    assert found.keys() < given.keys()
    assert kind(**given | found).name == base
    assert kind(**given | found).fingerprint() != kind(**given).fingerprint()
