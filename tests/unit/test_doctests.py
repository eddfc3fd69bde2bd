"""Examples in docstrings print the output they show."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import backdoor_lab

ROOT = Path(backdoor_lab.__file__).parent
WITH_EXAMPLES = [
    path.relative_to(ROOT.parent).with_suffix("").as_posix().replace("/", ".")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text()
]


def test_attacks_and_defenses_have_examples() -> None:
    packages = {name.split(".")[1] for name in WITH_EXAMPLES}
    assert {"attacks", "defenses"} <= packages


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_docstring_examples_print_the_output_they_show(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0
