"""The source tree: its folders, and the text and syntax trees of the package's modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]

PACKAGE = ROOT / "backdoor_lab"
CONF = ROOT / "conf"

SOURCES = sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in a file, with the name of the called function as written."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def swept(experiment: str) -> dict[str, Any]:
    found = OmegaConf.load(CONF / f"experiment/{experiment}.yaml")
    params: Any = OmegaConf.to_container(found.hydra.sweeper.params)
    return dict(params)
