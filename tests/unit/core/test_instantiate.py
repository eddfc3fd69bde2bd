"""Instantiation from configuration: foreign classes are refused before anything is imported."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import Shared, build
from backdoor_lab.core.validation import RENAMED_CLASSES, new_class
from backdoor_lab.defenses.base import Defense, OracleControl
from backdoor_lab.defenses.options import FilterOptions
from backdoor_lab.defenses.random import Random
from backdoor_lab.defenses.spectral import SpectralSignatures
from tests.helpers.project import ROOT

PIXEL = "backdoor_lab.attacks.pixel.Pixel"
SHARED = Shared({**asdict(FilterOptions()), "filter_scope": "all"}, FilterOptions)
HOSTILE = [
    "os.system",
    "builtins.eval",
    "builtins.exec",
    "subprocess.Popen",
    "urllib.request.urlretrieve",
    "antigravity.fly",
    "this",
    "hydra.utils.instantiate",
    "torch.load",
    "backdoor_lab.core.atomic_io.shutil.rmtree",
    "backdoor_lab.data.download.shutil",
    "backdoor_lab.attacks.poison.poison",
    "backdoor_lab.attacks.pixel",
    "backdoor_lab.attacks.Pixel",
    "backdoor_lab.attacks.pixel.Pixel.apply_test",
    "backdoor_lab.attacks.base.torch.load",
    "backdoor_lab.attacks..pixel.Pixel",
    ".backdoor_lab.attacks.pixel.Pixel",
    "backdoor_lab.attacks.__init__.Pixel",
    "backdoor_lab.attacks.../../os.System",
    "backdoor_lab.core.store.Store",
    "backdoor_lab.run.DictConfig",
    "xbackdoor_lab.attacks.pixel.Pixel",
    "backdoor_lab_attacks.pixel.Pixel",
    f"{PIXEL}\n",
    f" {PIXEL}",
    f"{PIXEL};os.system",
    f"{PIXEL}()",
    PIXEL.upper(),
    "backdoor_lab.аttacks.pixel.Pixel",
    "backdoor_lab.attacks.pixel.Ｐixel",
    "backdoor_lab․attacks․pixel․Pixel",
    "",
    None,
    3,
    True,
    ["backdoor_lab.attacks.pixel.Pixel"],
    {"_target_": PIXEL},
    b"backdoor_lab.attacks.pixel.Pixel",
]


@pytest.mark.parametrize("target", HOSTILE, ids=ascii)
def test_an_unsafe_target_class_in_a_configuration_is_refused_before_any_import(
    target: Any,
) -> None:
    """Nothing is imported or called, and the message says what is allowed."""
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=r"`trigger\._target_` must name a class in"):
        build("trigger", {"_target_": target}, Trigger)
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("backdoor_lab.attacks.base.Trigger", "is not a class that can be used here"),
        ("backdoor_lab.attacks.base.PixelTriggr", "Did you mean 'PixelTrigger'"),
        ("backdoor_lab.attacks.base.Tensor", "is not a class that can be used here"),
        ("backdoor_lab.attacks.poison.PoisonSpec", "is not a class that can be used here"),
        ("backdoor_lab.attacks.poison.PoisonResult", "is not a class that can be used here"),
        (
            "backdoor_lab.defenses.spectral.SpectralSignatures",
            "is not a class that can be used here",
        ),
        ("backdoor_lab.attacks.pixle.Pixel", r"no module .*\.pixle\. Did you mean .*\.pixel\?"),
    ],
)
def test_a_class_that_is_not_a_usable_trigger_is_refused(target: str, message: str) -> None:
    """Abstract classes, other classes of the package, and misspelled names are refused."""
    with pytest.raises(ConfigError, match=message):
        build("trigger", {"_target_": target}, Trigger)


def test_a_configuration_without_a_class_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="got None"):
        build("trigger", {"name": "pixel"}, Trigger)


def test_configuration_keys_become_constructor_arguments() -> None:
    """The key `name` only names the choice and is not passed to the class."""
    made = build("trigger", {"_target_": PIXEL, "name": "mine", "color": [1, 2, 3]}, Trigger)
    assert isinstance(made, Pixel)
    assert made.color == [1, 2, 3]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"colour": 3}, r"key.*`trigger.*'colour' is not known.*'color'"),
        ({"self": 3}, r"key.*`trigger.*'self' is not known"),
        ({"__class__": 3}, r"key.*`trigger.*'__class__' is not known"),
        ({"color": 256}, r"`trigger\.color` must satisfy 0 <= trigger\.color < 256, got 256"),
        ({"color": "red"}, "got 'red'"),
        ({"color": [1, 2]}, "one value or three"),
        ({"color": float("nan")}, "got nan"),
        ({"position": 3}, r"a position must be \[row, column\], got 3"),
        ({"position": [1, 2, 3]}, r"a position must be \[row, column\]"),
        ({"position": [0.5, 1]}, "whole number"),
        ({"position": [True, 1]}, "got True"),
    ],
)
def test_unknown_keys_and_bad_values_are_refused_and_named_in_the_error(
    keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build("trigger", {"_target_": PIXEL, **keys}, Trigger)


@pytest.mark.parametrize("positions", [[], 5, "ab", [[1]], {"a": 1}])
def test_positions_that_are_not_row_column_pairs_are_refused(positions: Any) -> None:
    target = "backdoor_lab.attacks.pattern.Pattern"
    with pytest.raises(ConfigError, match=r"\[row, column\]"):
        build("trigger", {"_target_": target, "positions": positions}, Trigger)


def test_a_nested_object_is_checked_like_the_outer_object() -> None:
    """The outer object is `random`, which wraps a filter."""
    kinds: Any = (Defense, OracleControl)
    target = "backdoor_lab.defenses.random.Random"
    inner = {"_target_": "backdoor_lab.defenses.spectral.SpectralSignatures", "removal_budget": "7"}
    made: Any = build("defense", {"_target_": target, "like": inner}, kinds, SHARED)
    assert isinstance(made, Random)
    assert isinstance(made.like, SpectralSignatures)
    assert made.like.options == FilterOptions(filter_scope="all", removal_budget="7")
    outside = {"_target_": target, "like": inner, "removal_budget": "8", "center": False}
    made = build("defense", outside, kinds, SHARED)
    assert made.like.options == FilterOptions(filter_scope="all", removal_budget="7", center=False)
    with pytest.raises(ConfigError, match=r"`defense\.like\._target_` must name a class"):
        build("defense", {"_target_": target, "like": {"_target_": "os.system"}}, kinds)
    with pytest.raises(
        ConfigError, match=r"key.*`defense\.like.*'removal_budgte'.*'removal_budget'"
    ):
        build(
            "defense", {"_target_": target, "like": inner | {"removal_budgte": "7"}}, kinds, SHARED
        )
    with pytest.raises(ConfigError, match="`defense` needs a value for like"):
        build("defense", {"_target_": target}, kinds)


@pytest.mark.parametrize("like", ["spectral", None, 3, {"_target_": None}])
def test_the_random_control_without_a_filter_is_refused(like: Any) -> None:
    """It copies the number of removed images from a filter."""
    kinds: Any = (Defense, OracleControl)
    with pytest.raises(ConfigError, match=r"defense\.like"):
        build("defense", {"_target_": "backdoor_lab.defenses.random.Random", "like": like}, kinds)


def test_a_plugin_filter_with_a_separate_parameter_for_a_filter_option_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says to take all options as one argument `options`."""
    import backdoor_lab.defenses as package

    (tmp_path / "single.py").write_text(
        "from backdoor_lab.defenses.none import NoDefense\n"
        "class Single(NoDefense):\n"
        "    def __init__(self, *, removal_budget='7'): ...\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    wanted = "Single must not have parameters called removal_budget: it receives .*`options`"
    with pytest.raises(ConfigError, match=wanted):
        build("defense", {"_target_": "backdoor_lab.defenses.single.Single"}, Defense, SHARED)


def test_the_error_of_a_trigger_that_needs_a_missing_library_names_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import backdoor_lab.attacks as package

    (tmp_path / "needy.py").write_text("import no_such_library\nclass Needy: ...\n")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    with pytest.raises(ConfigError, match="no module no_such_library"):
        build("trigger", {"_target_": "backdoor_lab.attacks.needy.Needy"}, Trigger)


@pytest.mark.parametrize("old", RENAMED_CLASSES)
def test_an_old_class_name_is_refused_with_a_hint_to_the_new_name(old: str) -> None:
    target = f"backdoor_lab.{old}"
    new = str(new_class(target))
    with pytest.raises(ConfigError, match=re.escape(f"{target} was renamed to {new}")):
        build("defense", {"_target_": target}, object)
    assert isinstance(attribute(new), type)
    assert f"`{new.rpartition('.')[2]}`" in (ROOT / "CHANGELOG.md").read_text()


def attribute(target: str) -> object:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)
