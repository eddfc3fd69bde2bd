"""Notebooks: their code runs and prints the outputs that they store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.documents import notebook
from tests.documents.project import ROOT


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("path", notebook.NOTEBOOKS, ids=_name)
def test_a_notebook_runs_and_prints_its_stored_outputs(path: Path) -> None:
    stored = [c["outputs"] for c in notebook.read(path)["cells"] if c["cell_type"] == "code"]
    fresh = notebook.outputs_of(path)
    assert [notebook.printed(each) for each in fresh] == [notebook.printed(e) for e in stored]
    kinds = [[each["output_type"] for each in outputs] for outputs in fresh]
    assert kinds == [[each["output_type"] for each in outputs] for outputs in stored]
    assert sum(kind == "display_data" for each in kinds for kind in each) == 1


@pytest.mark.parametrize("path", notebook.NOTEBOOKS, ids=_name)
def test_a_notebook_is_small_and_contains_no_path_outside_the_project(path: Path) -> None:
    found = notebook.read(path)
    assert path.stat().st_size < 60_000
    assert (found["nbformat"], found["metadata"]["language_info"]["name"]) == (4, "python")
    assert str(ROOT) not in path.read_text()
    counts = [c["execution_count"] for c in found["cells"] if c["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_a_notebook_with_outdated_outputs_is_detected(tmp_path: Path) -> None:
    path = tmp_path / "one.ipynb"
    lines = ["print(1)\n", "import matplotlib.pyplot as plt\n", "plt.plot([0, 1])"]
    cell = {"cell_type": "code", "execution_count": 1, "metadata": {}, "outputs": []}
    cell["source"] = lines
    path.write_text(json.dumps({"cells": [cell]}))
    path.write_text(notebook.executed(path))
    (after,) = notebook.read(path)["cells"]
    assert [each["output_type"] for each in after["outputs"]] == ["stream", "display_data"]
    assert notebook.printed(after["outputs"]) == "1\n"
    assert notebook.executed(path) == path.read_text()
    path.write_text(path.read_text().replace("print(1)", "print(2)"))
    assert notebook.executed(path) != path.read_text()
