"""Every number that the modules of methods define has a row in the fidelity table."""

from __future__ import annotations

import ast
from pathlib import Path
from pydoc import locate
from typing import cast

import pytest
from omegaconf import OmegaConf

from backdoor_lab.defenses.base import SampleFilter
from backdoor_lab.fidelity.ours import constant
from backdoor_lab.fidelity.table import methods
from tests.helpers.project import CONF, PACKAGE, tree

DESCRIBED = {
    row.key if ":" in row.key else f"{each.component}:{row.key}"
    for each in methods().values() for row in each.rows if row.kind == "constant"
}  # fmt: skip
PLACES = {key.partition(":")[0] for key in DESCRIBED}
MEMORY = {"CHUNK", "CHUNK_BYTES", "TEMPORARIES", "BLOCK"}
NO_SETTINGS = {"defenses/anp.py:START", "defenses/neural_cleanse.py:Smallest.unimproved",
               "defenses/curves.py:POINTS", "attacks/base.py:Trigger.cover_rate",
               "attacks/plan.py:PoisonSpec.cover_rate",
               "attacks/tact.py:COVER_CLASSES"}  # fmt: skip
"""Exceptions: the number of a random stream, a counter, the length of a curve in a figure, the rate
0 of triggers without covers, and the default of an option that has a row."""


def numbers_of(path: Path) -> set[str]:
    """The public constants of a module and its classes that are numbers."""
    names = [*assigned(tree(path)), *(f"{node.name}.{name}" for node in tree(path).body
             if isinstance(node, ast.ClassDef) for name in assigned(node))]  # fmt: skip
    return {name for name in names if "._" not in name and numeric(constant(path, name))}


@pytest.mark.parametrize(
    "place",
    [f"{folder}/{path.name}" for folder in ("attacks", "defenses", "numerics")
     for path in sorted((PACKAGE / folder).glob("*.py"))
     if folder != "numerics" or f"numerics/{path.name}" in PLACES],
)  # fmt: skip
def test_every_numeric_constant_of_an_attack_or_defense_has_a_row_in_the_fidelity_table(
    place: str,
) -> None:
    """Limits on memory are excluded, since they change no result. Modules of numerics/ are checked
    only if a row names them."""
    numbers = {f"{place}:{name}" for name in numbers_of(PACKAGE / place) - MEMORY}
    assert numbers - DESCRIBED <= NO_SETTINGS


def test_numeric_constants_of_modules_and_classes_are_found() -> None:
    assert numbers_of(PACKAGE / "defenses/scan.py") == {"STEPS"}
    assert numbers_of(PACKAGE / "defenses/elliptic_envelope.py") == {
        "EllipticEnvelope.rows_per_component"
    }


def test_every_published_filter_has_rows_for_the_options_set_by_the_protocol() -> None:
    shared = {f"defenses/options.py:FilterOptions.{key}"
              for key in ("removal_budget", "filter_scope")}  # fmt: skip
    published = [each for each in methods().values()
                 if each.group == "defense" and each.status != "ours"]  # fmt: skip
    filters = [each for each in published if issubclass(kind_of(each.name), SampleFilter)]
    assert len(filters) > 8
    lacking = [each.name for each in filters if not shared <= {row.key for row in each.rows}]
    assert lacking == []


def kind_of(defense: str) -> type:
    return cast(type, locate(OmegaConf.load(CONF / f"defense/{defense}.yaml")["_target_"]))


def assigned(scope: ast.Module | ast.ClassDef) -> list[str]:
    values = [each for each in scope.body if isinstance(each, ast.Assign | ast.AnnAssign)
              and each.value is not None]  # fmt: skip
    targets = [each.targets[0] if isinstance(each, ast.Assign) else each.target for each in values]
    return [each.id for each in targets if isinstance(each, ast.Name)]


def numeric(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(numeric, value))
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_constants_are_read_without_importing(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import nowhere\nA = 1.5\nB: float = 2 ** 3 / 4\nC = f(3)\n"
        "class K:\n    D = (1, 2)\n    def __init__(self, a, e=7, *, g='h'): ...\n"
        "def function(i=-1): ...\n"
    )
    names = ("A", "B", "C", "K.D", "K.__init__.e", "K.__init__.g", "function.i")
    assert [constant(path, name) for name in names] == [1.5, 2.0, "f(3)", (1, 2), 7, "h", -1]
