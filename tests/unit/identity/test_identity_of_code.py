"""Edits that can affect results change the cell id, and rewording or reformatting does not. A
record is used only for the cell with its id."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_lab import identity
from backdoor_lab.attacks.pattern import Pattern
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.synthetic_source import Synthetic
from backdoor_lab.defenses.random import Random
from backdoor_lab.defenses.spectral import SpectralSignatures
from backdoor_lab.identity import sources
from backdoor_lab.identity import table as identity_table
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.pipeline.stages import training as stages
from backdoor_lab.results.seal import write_sealed
from backdoor_lab.sweep.manifest import finished
from backdoor_lab.sweep.preflight import Preflight
from tests.helpers.cells import cell_of, configuration, run_here
from tests.helpers.records import record

DECIDING = sorted(
    path.relative_to(sources.ROOT).as_posix()
    for path in sources.ROOT.rglob("*.py")
    if not sources.is_neutral(path)
)
TRANSFORMATIONS = "training/transformations.py"
"""Belongs only to cells with `measure.asr_under`."""
TRAINING = [
    name
    for name in DECIDING
    if name.startswith("training/") and not name.endswith(("__init__.py", TRANSFORMATIONS))
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    identity.forget()
    yield
    identity.forget()


def edited(monkeypatch: pytest.MonkeyPatch, name: str, old: str = "", new: str = "X = 1\n") -> None:
    """Pretends that `old` was replaced by `new` in a file. Without `old`, `new` is appended."""
    usual, path = sources._text, sources.ROOT / name

    def text(asked: Path) -> bytes:
        found = usual(asked).decode()
        if asked == path:
            assert old in found
            found = found.replace(old, new, 1) if old else found + new
        return found.encode()

    monkeypatch.setattr(sources, "_text", text)
    identity.forget()


def rewritten(code: str) -> str:
    """The same code in another layout, without comments, with other docstrings and error texts."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = "Something else."
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            node.exc.args = [ast.Constant("Something else.")]
    return ast.unparse(tree)


def test_committed_code_agrees_with_identity_json() -> None:
    """If this fails, `python -m backdoor_lab.identity` lists the modified components. Record them
    with `--accept` if no result changes (tests/golden checks it), otherwise with `--raise`."""
    assert identity_table.differing() == {}


def test_every_file_belongs_to_a_component_or_is_listed_as_neutral() -> None:
    """Neutral files affect no result and are in no hash."""
    assert {name for files in _files().values() for name in files} == set(DECIDING)
    for name in sources.NEUTRAL:
        assert (sources.ROOT / name).exists(), name


def test_component_names_are_unique() -> None:
    """The command `--accept NAME` relies on unique names."""
    names = [name for section in identity.committed().values() for name in section]
    assert len(names) == len(set(names))


def test_rewording_text_or_reformatting_code_changes_no_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Comments, docstrings, error messages and layout are changed in every file at once."""
    usual = sources._text
    monkeypatch.setattr(sources, "_text", lambda path: rewritten(usual(path).decode()).encode())
    identity.forget()
    assert identity_table.differing() == {}
    assert {key: again(cell).id for key, cell in cells().items()} == {
        key: cell.id for key, cell in cells().items()
    }


@pytest.mark.parametrize("name", DECIDING)
def test_editing_code_in_any_file_changes_a_hash(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In some files, only functions in use are hashed. The test therefore edits every function."""
    tree = ast.parse(sources._text(sources.ROOT / name))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body.append(ast.parse("print(1)").body[0])
    tree.body.append(ast.parse("print(1)").body[0])
    whose = next(key for key, files in _files().items() if name in files)
    edited(monkeypatch, name, sources._text(sources.ROOT / name).decode(), ast.unparse(tree))
    entry = identity.committed()[whose[0]][whose[1]]
    assert sources.code_hash(identity.roots_of(*whose)) != entry["hash"]


@functools.cache
def _files() -> dict[tuple[str, str], list[str]]:
    keys = [(s, n) for s, names in identity.committed().items() for n in names if s != "protocols"]
    return {key: sources.files_of(identity.roots_of(*key)) for key in keys}


@functools.cache
def cells() -> dict[str, Cell]:
    """Cells of several defenses on one attack, and of one defense on another attack."""
    asked = {
        "spectral": [], "random": ["defense=random"], "strip": ["defense=strip"],
        "none": ["defense=none"], "pattern": ["trigger=pattern"],
        "under": ["measure.asr_under=[blur1]"],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as root:
        return {k: cell_of(Path(root), "protocol.clean_holdout=20", *v) for k, v in asked.items()}


def again(cell: Cell) -> Cell:
    """The same cell, built anew from its configuration."""
    return Cell.of(cell.config, cell.classes, source_of(cell.config).fingerprint())


def changed(monkeypatch: pytest.MonkeyPatch, name: str, *edit: str) -> set[str]:
    """The cells whose ids an edit of a file changes. Asserts that undoing it restores the ids."""
    before = {key: cell.id for key, cell in cells().items()}
    with monkeypatch.context() as patch:
        edited(patch, name, *edit)
        after = {key: again(cell).id for key, cell in cells().items()}
    identity.forget()
    assert {key: again(cell).id for key, cell in cells().items()} == before
    return {key for key in before if after[key] != before[key]}


def test_editing_a_defense_changes_only_cells_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `random` control that copies the defense uses it, too. Editing a function that the defense
    calls has the same effect."""
    spectral = {"spectral", "random", "pattern", "under"}
    assert changed(monkeypatch, "defenses/spectral.py") == spectral
    assert changed(monkeypatch, "numerics/singular.py") == spectral
    assert changed(monkeypatch, "defenses/random.py") == {"random"}
    assert changed(monkeypatch, "defenses/strip.py") == {"strip"}
    formula = ("sorted(range(len(rows))", "sorted(range(0, len(rows))")
    assert changed(monkeypatch, "defenses/base.py", *formula) == set(cells())


def test_editing_a_trigger_changes_only_cells_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert changed(monkeypatch, "attacks/pattern.py") == {"pattern"}
    assert changed(monkeypatch, "attacks/base.py") == set(cells())


def test_editing_transformations_changes_only_cells_that_use_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert changed(monkeypatch, TRANSFORMATIONS) == {"under"}


@pytest.mark.parametrize("name", TRAINING)
def test_editing_training_code_changes_every_cell_id(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert changed(monkeypatch, name) == set(cells())


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (
            "pipeline/stages/triggered.py",
            "plan.wanted(test.labels,",
            "plan.wanted(0 + test.labels,",
        ),
        ("pipeline/stages/defense.py", ".features, known)", ".features, known=known)"),
        ("pipeline/stages/holdout.py", "seed=derive(cell.seed, ", "seed=1 + derive(cell.seed, "),
        ("pipeline/record.py", "/ n_clean if n_clean", "/ n_clean if not n_clean"),
        ("pipeline/cell_pipeline.py", "is not None:", "is not False:"),
        ("pipeline/after_training.py", "if not self.cell.retrain", "if self.cell.retrain"),
        ("pipeline/cell.py", "10g}", "9g}"),
        ("core/validation.py", "return int(value)", "return int(value) + 1"),
        ("core/rng.py", ">> 1", ">> 2"),
        ("core/types.py", "", "X = 1\n"),
        ("core/tensor_io.py", "", "X = 1\n"),
    ],
)
def test_editing_shared_code_changes_every_cell_id(
    name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages, records and random numbers are shared code."""
    assert changed(monkeypatch, name, old, new) == set(cells())


def test_adding_an_unused_function_to_a_shared_file_changes_no_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only the functions that are used are hashed."""
    for name in ("core/validation.py", "core/streams.py", "pipeline/stages/training.py"):
        with monkeypatch.context() as patch:
            edited(patch, name, new="\ndef new() -> int:\n    return 1\n")
            assert identity_table.differing() == {}


def test_editing_a_data_source_changes_only_its_own_data_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros(1))
    made = Synthetic(name="s"), ArrayFile(root=str(tmp_path / "a.npz"))
    before = [source.fingerprint() for source in made]
    with monkeypatch.context() as patch:
        edited(patch, "data/synthetic.py")
        assert made[0].fingerprint() != before[0]
        assert made[1].fingerprint() == before[1]
    with monkeypatch.context() as patch:
        edited(patch, "data/base.py")
        assert made[0].fingerprint() != before[0]
        assert made[1].fingerprint() != before[1]
    identity.forget()
    assert [source.fingerprint() for source in made] == before


def test_a_changed_data_file_changes_the_cell_id(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(60) % 3,
        "x_test": rng.integers(0, 255, (30, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(30) % 3,
    }
    found = []
    for change in (0, 1):
        arrays["x_train"][0, 0, 0, 0] = change
        np.savez(tmp_path / "set.npz", **arrays)
        config = configuration(tmp_path) | {"target": 1}
        config["dataset"] = {
            "_target_": "backdoor_lab.data.arrays.ArrayFile", "name": "set",
            "root": str(tmp_path / "set.npz"),
        }  # fmt: skip
        found.append(Preflight().cell(config).id)
    assert found[0] != found[1]


def test_library_versions_are_not_part_of_the_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cell_of(tmp_path).id
    monkeypatch.setattr(stages, "versions", lambda: {"torch": "99"})
    assert cell_of(tmp_path).id == before


def test_a_new_component_version_changes_the_cell_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The component may be a trigger, a defense, a stage, a network or a data set."""
    table = json.loads(identity.TABLE.read_bytes())
    for section, name in (
        ("triggers", "pixel"), ("defenses", "spectral"), ("stages", "record"),
        ("stages", "measure"), ("models", "models"), ("datasets", "synthetic_source"),
    ):  # fmt: skip
        raised = json.loads(json.dumps(table))
        raised[section][name]["version"] += 1
        (tmp_path / "identity.json").write_text(json.dumps(raised))
        monkeypatch.setattr(identity, "TABLE", tmp_path / "identity.json")
        identity.forget()
        assert again(cells()["spectral"]).id != cells()["spectral"].id


def test_the_id_of_committed_code_contains_only_versions(tmp_path: Path) -> None:
    found = cell_of(tmp_path, "defense=random").code
    assert found["triggers"] == {"pixel": 1}
    assert found["defenses"] == {"random": 1, "spectral": 1}
    assert found["stages"]["train"] == 3
    assert not any(
        identity.is_modified(mark) for names in found.values() for mark in names.values()
    )
    assert identity.modified(found) == []


def test_classes_in_one_file_are_one_component(monkeypatch: pytest.MonkeyPatch) -> None:
    assert identity.of("triggers", Pixel()) == {"triggers": {"pixel": 1}}
    assert identity.of("triggers", Pattern()) == {"triggers": {"pattern": 1}}
    edited(monkeypatch, "defenses/spectral.py")
    found = identity.of("defenses", Random(like=SpectralSignatures()))["defenses"]
    assert found["random"] == 1
    assert str(found["spectral"]).startswith("1+")


def stripe(folder: Path, name: str, brightness: int) -> Any:
    """A plug-in trigger, loaded from a file."""
    path = folder / "stripe.py"
    path.write_text(
        "from backdoor_lab.attacks.base import Trigger\n"
        "class Stripe(Trigger):\n    def apply_test(self, images):\n"
        f"        return images + {brightness}\n"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module.Stripe()


@pytest.mark.parametrize("name", ["backdoor_lab.attacks.stripe", "elsewhere.stripe"])
def test_an_unlisted_component_always_has_its_hash_in_the_id(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds inside and outside the package. The base class is hashed, too."""
    found = []
    for brightness in (1, 2):
        made = stripe(tmp_path, name, brightness)
        identity.forget()
        found.append(identity.of("triggers", made)["triggers"]["stripe"])
    edited(monkeypatch, "attacks/base.py")
    found.append(identity.of("triggers", made)["triggers"]["stripe"])
    del sys.modules[name]
    assert len(set(found)) == 3
    assert all(str(mark).startswith("0+") for mark in found)
    assert (
        identity.details({"triggers": {"stripe": found[0]}})["triggers"]["stripe"]["version"] == 0
    )


def test_a_plugin_file_with_the_name_of_a_listed_component_is_not_mistaken_for_it(
    tmp_path: Path,
) -> None:
    made = stripe(tmp_path, "elsewhere.stripe", 1)
    (tmp_path / "stripe.py").rename(tmp_path / "pixel.py")
    sys.modules["elsewhere.stripe"].__file__ = str(tmp_path / "pixel.py")
    assert str(identity.of("triggers", made)["triggers"]["pixel"]).startswith("0+")
    del sys.modules["elsewhere.stripe"]


def test_a_class_without_a_source_file_is_refused() -> None:
    kind = type("Nowhere", (Pixel,), {"__module__": "nowhere"})
    with pytest.raises(ConfigError, match=r"nowhere\.Nowhere has no source file"):
        identity.of("triggers", kind())


def test_a_damaged_identity_json_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(identity.TABLE.read_bytes())
    monkeypatch.setattr(identity, "TABLE", tmp_path / "identity.json")
    odd = []
    for version in (None, "x", True, 0, 1.5):
        whole["stages"]["train"]["version"] = version
        odd.append(json.dumps(whole))
    for text in (None, "{", "[]", "{}", *odd):
        if text is not None:
            identity.TABLE.write_text(text)
        identity.forget()
        with pytest.raises(DataError, match=r"identity\.json cannot be read"):
            identity.stage("train")


def test_results_of_an_edited_trigger_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The poison and the measurements are computed again. Networks and features with unchanged
    inputs are reused. The record names the modified component."""
    first = run_here(tmp_path / "store", tmp_path / "a")
    assert first["run"]["modified"] == []
    edited(monkeypatch, "attacks/pixel.py")
    second = run_here(tmp_path / "store", tmp_path / "b")
    assert second["id"] != first["id"]
    made = {name: stage["made"] for name, stage in second["run"]["stages"].items()}
    assert made["poison"]
    assert made["measure1"]
    assert not made["train"]
    assert second["run"]["modified"] == ["pixel"]
    entry = second["run"]["code"]["triggers"]["pixel"]
    assert entry["version"] == 1
    assert second["config"]["code"]["triggers"]["pixel"] == f"1+{entry['hash']}"
    assert first["run"]["code"]["triggers"]["pixel"]["hash"] != entry["hash"]


def test_an_edited_data_source_is_named_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(monkeypatch, "data/synthetic_source.py")
    record = run_here(tmp_path / "store", tmp_path / "a")
    assert record["run"]["modified"] == ["synthetic_source"]


@pytest.mark.parametrize(
    "code",
    ["import backdoor_lab.core.validation\n\n\ndef use():\n"
     "    backdoor_lab.core.validation.safe_name('a', 'b')\n",
     "from backdoor_lab.core import validation\n\n\ndef use():\n    validation.whole('a', 1)\n"
     "    getattr(validation, 'safe_name')('a', 'b')\n"],
    ids=["module attribute", "getattr"],
)  # fmt: skip
def test_code_reached_by_module_attribute_or_getattr_is_hashed(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(code)
    root = (tmp_path / "own.py", None)
    before = sources.code_hash([root])
    edited(monkeypatch, "core/validation.py", "return value", "return value + value")
    sources.forget()
    assert sources.code_hash([root]) != before


def test_an_edited_stage_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages that do not depend on the edited one are reused."""
    run_here(tmp_path / "store", tmp_path / "a")
    edited(monkeypatch, "training/train.py")
    second = run_here(tmp_path / "store", tmp_path / "b")
    made = {name for name, stage in second["run"]["stages"].items() if stage["made"]}
    assert made >= {"train", "retrain"}
    assert "poison" not in made
    assert "train" in second["run"]["modified"]


def test_poison_made_with_a_surrogate_depends_on_the_training_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("trigger=label_consistent", "trigger.steps=2", "retrain=false")
    run_here(tmp_path / "store", tmp_path / "a", *asked)
    edited(monkeypatch, "training/train.py")
    second = run_here(tmp_path / "store", tmp_path / "b", *asked)
    assert second["run"]["stages"]["poison"]["made"]


def test_one_warning_names_the_modified_components(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edited(monkeypatch, "attacks/pixel.py")
    cells = [cell_of(tmp_path, f"seed={seed}").code for seed in (0, 1)]
    with caplog.at_level(logging.WARNING):
        identity.warn(cells)
        identity.warn(cells)
    said = [each.getMessage() for each in caplog.records if "modified" in each.getMessage()]
    assert said == [
        "code modified since version 1: pixel; results of this code are stored separately"
    ]


def test_source_files_are_read_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    usual = sources._text
    monkeypatch.setattr(sources, "_text", lambda path: read.append(path) or usual(path))
    cell_of(tmp_path)
    assert len(read) == len(set(read)) > 10
    read.clear()
    cell_of(tmp_path, "seed=1")
    assert read == []


@pytest.mark.parametrize("seed", ["1", "2"])
def test_hashes_need_no_torch_and_do_not_depend_on_the_process(seed: str) -> None:
    program = (
        "import sys; from backdoor_lab.identity import table;"
        "print(table.differing(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONHASHSEED": seed},
    )  # fmt: skip
    assert done.stdout.split() == ["{}", "False"]


def test_unused_filter_options_do_not_change_the_id_of_a_control(tmp_path: Path) -> None:
    """In a sweep over removal budgets, `none` is a single cell, and so is `oracle`."""
    for defense in ("none", "oracle"):
        cells = [
            cell_of(tmp_path, f"defense={defense}", f"defense.removal_budget={b}") for b in (1, 2)
        ]
        assert cells[0].id == cells[1].id
    spectral = {cell_of(tmp_path, f"defense.removal_budget={b}").id for b in (1, 2)}
    assert len(spectral) == 2
    assert (
        cell_of(tmp_path, "protocol.removal_budget=7").id
        == cell_of(tmp_path, "defense.removal_budget=7").id
    )


def test_each_precision_gives_a_different_cell_id(tmp_path: Path) -> None:
    """Each precision gives different weights."""
    ids = {cell_of(tmp_path, f"trainer.precision={p}").id for p in ("auto", "32", "bf16")}
    assert len(ids) == 3


def test_a_folder_with_the_record_of_another_cell_is_refused(tmp_path: Path) -> None:
    write_sealed(tmp_path / "record.json", record(id="other"))
    with pytest.raises(ConfigError, match=r"contains the record of other"):
        finished(tmp_path, "mine")
    assert finished(tmp_path, "other")
    # The cell of a damaged record is unknown.
    text = (tmp_path / "record.json").read_text()
    (tmp_path / "record.json").write_text(text.replace('"done"', '"dome"'))
    assert not finished(tmp_path, "mine")


def test_poison_made_with_a_surrogate_depends_on_the_precision(tmp_path: Path) -> None:
    """A surrogate gives different poison in bfloat16, so the poison is computed again."""
    asked = ("trigger=label_consistent", "trigger.steps=2", "retrain=false")
    alone = run_here(tmp_path / "fresh", tmp_path / "a", *asked, "trainer.precision=bf16")
    run_here(tmp_path / "store", tmp_path / "b", *asked, "trainer.precision=32")
    after = run_here(tmp_path / "store", tmp_path / "c", *asked, "trainer.precision=bf16")
    assert after["run"]["stages"]["poison"]["made"]
    assert after["hashes"] == alone["hashes"]
