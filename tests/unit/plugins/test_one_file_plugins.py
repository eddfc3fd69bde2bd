"""A plug-in in one file: trust, names, and its code in the id of a cell."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

import backdoor_lab.run  # noqa: F401  (registers the loader)
from backdoor_lab import distortion, export_dataset, identity
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import build
from backdoor_lab.defenses.base import Defense
from backdoor_lab.identity.plugin_code import plugin_facts, plugin_hash
from backdoor_lab.plugins.trust import Trust, trust, trusted
from tests.helpers.cells import cell_of, run_here

PLUGIN = '''
"""A trigger and a defense."""
from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core import validation
from backdoor_lab.defenses.base import ClassScores, SampleFilter


class MyStripe(Trigger):
    def __init__(self, *, column: int = 0, size: tuple = (1, 2), needed: int) -> None:
        self.column = validation.whole("trigger.column", column, low=0)

    def apply_test(self, images):
        images[:, :, :, self.column] = 255
        return images


class FeatureNorm(SampleFilter):
    """Scores by the norm."""

    def score_class(self, values, label, known):
        return ClassScores(values.norm(dim=1))
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the file of a plug-in, as the current folder. Afterwards nothing is trusted."""
    monkeypatch.chdir(tmp_path)
    Path("stripes.py").write_text(PLUGIN)
    yield tmp_path
    trust(Trust())


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return dict(compose("config", list(overrides)))


USE = ("plugins=[stripes.py]", "trigger=my_stripe", "trigger.needed=3")


def test_the_classes_of_a_file_are_choices_with_the_defaults_of_their_parameters() -> None:
    found = composed("plugins=[stripes.py]", "trigger=my_stripe", "defense=feature_norm")
    assert found["trigger"] == {
        "_target_": "stripes.MyStripe", "name": "my_stripe", "column": 0, "size": [1, 2],
        "needed": "???",
    }  # fmt: skip
    assert found["defense"]["_target_"] == "stripes.FeatureNorm"
    assert found["plugins"] == ["stripes.py"]


def test_a_file_is_not_imported_and_its_names_are_unknown_unless_the_command_line_names_it() -> (
    None
):
    composed(*USE)
    assert "stripes" in sys.modules
    with pytest.raises(ConfigError, match="choice of `trigger`: 'my_stripe' is not known"):
        composed("trigger=my_stripe")
    assert "stripes" not in sys.modules
    with pytest.raises(ConfigError, match=r"add .*plugins=\[PATH/stripes.py\] for one file"):
        composed("trigger._target_=stripes.MyStripe")
    assert "stripes" not in sys.modules
    assert trusted() == Trust()


def test_a_cell_with_a_plugin_runs_and_its_record_names_the_plugin(tmp_path: Path) -> None:
    record = run_here(tmp_path / "store", tmp_path / "cell", *USE, "defense=feature_norm")
    assert record["status"] == "done"
    (plugin,) = record["run"]["plugins"]
    assert plugin == {"name": "stripes", "file": "stripes.py", "hash": plugin_hash("stripes")}
    assert re.fullmatch("[0-9a-f]{16}", plugin["hash"])
    mark = f"0+{plugin['hash']}"
    assert record["config"]["code"]["triggers"] == {"stripes": mark}
    assert record["config"]["code"]["defenses"] == {"stripes": mark}
    assert record["run"]["modified"] == []
    assert record["run"]["code"]["triggers"]["stripes"] == {"version": 0, "hash": plugin["hash"]}


def test_the_triggered_images_of_a_plugin_are_made_again_if_the_command_trusts_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(tmp_path / "store", tmp_path / "sweep/cell", *USE, "trigger.column=2")
    words = ["--store", str(tmp_path / "store")]
    export = ["sweep/cell", "--as", "npz", "--out", "set", *words]
    capsys.readouterr()
    assert export_dataset.main(export) == 2
    assert "in the plug-in stripes, which is not trusted here" in (said := capsys.readouterr().err)
    assert said.endswith("add plugins=[PATH/stripes.py]\n")
    assert export_dataset.main([*export, "stripes.py"]) == 2
    assert "a plug-in is named as allow_plugins=[package]" in capsys.readouterr().err
    assert export_dataset.main([*export, "plugins=[stripes.py]"]) == 0
    triggered = np.load("set/data.npz")["triggered_images"]
    assert (triggered[:, :, :, 2] == 255).all()
    assert not (triggered[:, :, :, 3] == 255).all()
    capsys.readouterr()
    assert distortion.main(["sweep", *words, "plugins=[stripes.py]"]) == 0
    assert "my_stripe" in capsys.readouterr().out

    Path("stripes.py").write_text(PLUGIN.replace("= 255", "= 254"))
    assert export_dataset.main([*export[:4], "other", *words, "plugins=[stripes.py]"]) == 2
    assert "the plug-in stripes is not the code that the cell ran with" in capsys.readouterr().err
    assert not Path("other").exists()


def test_a_parameter_of_a_plugin_may_have_a_name_that_this_package_has_renamed() -> None:
    Path("stripes.py").write_text(PLUGIN.replace("column: int = 0", "alpha: int = 0"))
    with pytest.raises(ConfigError, match=r"no key 'alpa'\. Did you mean 'trigger\.alpha'\?"):
        composed("plugins=[stripes.py]", "trigger=my_stripe", "trigger.alpa=3")


def test_an_edit_makes_new_cells_and_a_comment_does_not(tmp_path: Path) -> None:
    def ids(text: str) -> tuple[str, str]:
        Path("stripes.py").write_text(text)
        cell = cell_of(tmp_path / "store", *USE)
        attack = cell.attack["trigger"]
        return cell.id, str(attack)

    first, attack = ids(PLUGIN)
    assert ids(PLUGIN.replace("A trigger", "One trigger") + "# a comment\n") == (first, attack)
    edited, edited_attack = ids(PLUGIN.replace("= 255", "= 254"))
    assert edited != first
    assert edited_attack != attack
    # The other method of the file counts, too: it may be used by the first.
    assert ids(PLUGIN.replace("dim=1)", "dim=1, p=1)"))[0] not in (first, edited)


def test_the_edited_file_is_what_runs_in_the_same_process() -> None:
    composed(*USE)
    assert not hasattr(sys.modules["stripes"], "ADDED")
    Path("stripes.py").write_text(PLUGIN + "ADDED = 1\n")
    composed(*USE)
    assert sys.modules["stripes"].ADDED == 1


def test_a_plugin_inside_another_defense_is_part_of_the_code() -> None:
    composed(*USE)
    config = {
        "_target_": "backdoor_lab.defenses.random.Random",
        "like": {"_target_": "stripes.FeatureNorm", "name": "feature_norm"},
    }
    made: Any = build("defense", config, Defense)  # type: ignore[type-abstract]
    marks = identity.of("defenses", made)["defenses"]
    assert marks["stripes"] == f"0+{plugin_hash('stripes')}"
    assert identity.plugins_of({"defenses": marks}) == ["stripes"]


REFUSED = {
    "a method of ours": (
        "stripes.py", PLUGIN.replace("MyStripe", "Pixel"),
        r"the plug-in stripes.py has a trigger called pixel, and so has this package: give it",
    ),
    "a module of ours": ("pixel.py", PLUGIN, "pixel has the name of a trigger of this package"),
    "this package": ("backdoor_lab.py", PLUGIN, "has the name of another Python module"),
    "the standard library": ("json.py", PLUGIN, "has the name of another Python module"),
    "an installed package": ("torch.py", PLUGIN, "has the name of another Python module"),
    "no module name": ("my-stripes.py", PLUGIN, "only lower-case letters, digits and underscores"),
    "no Python file": ("stripes.txt", PLUGIN, "is not a Python file"),
    "an error": ("stripes.py", PLUGIN + "\n1 / 0\n", r"stripes.py:\d+ raised ZeroDivisionError"),
    "no Python": ("stripes.py", "def f(:\n", "stripes.py:1 is not valid Python: invalid"),
    "a neighbor": (
        "stripes.py", "import helper\n" + PLUGIN,
        "stripes.py:1 imports helper, which is next to it. A plug-in of several files must be a",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_file_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, text, said = REFUSED[case]
    Path("helper.py").write_text("")
    Path(name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        cell_of(tmp_path / "store", f"plugins=[{name}]", *USE[1:])
    assert not [*tmp_path.rglob("record.json")]


def test_files_with_the_same_name_and_missing_files_are_refused() -> None:
    Path("sub").mkdir()
    Path("sub/stripes.py").write_text(PLUGIN)
    with pytest.raises(ConfigError, match="two plug-ins are called stripes"):
        composed("plugins=[sub/stripes.py,stripes.py]")
    with pytest.raises(ConfigError, match="hide: rename the file|does not exist"):
        composed("plugins=[sub/missing.py]")
    with pytest.raises(ConfigError, match="must be a list of Python files"):
        composed("plugins=stripes.py")


def test_a_trigger_of_a_file_can_be_pickled_and_no_cache_is_written(here: Path) -> None:
    composed(*USE)
    module = sys.modules["stripes"]
    made = module.MyStripe(column=3, needed=1)
    assert pickle.loads(pickle.dumps(made)).column == 3
    assert not [*here.rglob("*.pyc")]


def test_the_facts_of_an_installed_package_have_the_version_of_its_distribution() -> None:
    trust(Trust(packages=("hatchling",)))
    facts = plugin_facts("hatchling")
    assert facts["distribution"] == "hatchling"
    assert re.fullmatch(r"\d+\.\d+.*", facts["version"])
