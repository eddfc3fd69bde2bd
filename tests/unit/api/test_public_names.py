"""The public names: they load on first use, and the stub file agrees with the module."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import backdoor_lab as bl
from tests.helpers.cells import environment

PACKAGE = Path(bl.__file__).parent
NAMES = [
    "PoisonedDataset", "evaluate", "extract_features", "get_filter", "get_repair", "get_trigger",
    "list_methods", "poison", "read_results", "scan_dataset",
]  # fmt: skip
#: Classes of results, which can be imported but are not in `__all__`.
CLASSES = ["Evaluation", "Filter", "PoisonResult", "Rate", "Repair", "Trigger"]


def test_the_public_names_are_exactly_the_documented_ones() -> None:
    assert bl.__all__ == NAMES
    for name in NAMES:
        found = getattr(bl, name)
        assert found.__name__ == name
        assert found.__module__.startswith("backdoor_lab.api.")
        assert found.__doc__
        assert "Example" in found.__doc__
    namespace: dict[str, object] = {}
    exec("from backdoor_lab import *", namespace)
    assert sorted(set(namespace) - {"__builtins__"}) == NAMES


def test_dir_lists_the_public_names_before_they_are_loaded() -> None:
    assert {*NAMES, *CLASSES} <= set(dir(bl))
    assert "__version__" in dir(bl)


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'backdoor_lab' has no attribute 'get_filtr'"):
        bl.get_filtr  # noqa: B018
    assert not hasattr(bl, "scan_datasets")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from backdoor_lab import nothing  # noqa: F401


def test_the_stub_file_imports_each_public_name_from_its_module() -> None:
    stub = ast.parse((PACKAGE / "__init__.pyi").read_text())
    imported = {
        alias.asname: (node.module, alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    names = [*NAMES, *CLASSES]
    assert imported == {name: (getattr(bl, name).__module__, name) for name in names}
    (assigned,) = (
        ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign)
    )
    assert assigned == NAMES
    (annotated,) = (node for node in stub.body if isinstance(node, ast.AnnAssign))
    assert ast.unparse(annotated) == "__version__: str"
    assert isinstance(bl.__version__, str)


HEAVY = ["torch", "torchvision", "pandas", "sklearn", "numpy", "scipy", "omegaconf",
         "pytorch_lightning", "matplotlib"]  # fmt: skip


def modules_after(code: str) -> set[str]:
    """The modules that are loaded in a new process after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print(*sys.modules)"], env=environment(),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


def test_the_import_of_the_package_loads_no_other_library() -> None:
    before = modules_after("import importlib, typing")
    found = modules_after("import backdoor_lab; dir(backdoor_lab)")
    assert found - before == {"backdoor_lab"}
    assert not found & set(HEAVY)
    assert {"torch", "numpy"} <= modules_after("import backdoor_lab; backdoor_lab.evaluate")


def test_each_module_of_the_interface_says_that_it_is_internal_or_is_documented() -> None:
    assert "internal" in str(importlib.import_module("backdoor_lab.api").__doc__)
    assert "internal" in str(bl.__doc__)
