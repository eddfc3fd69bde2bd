"""One-line edits of the package that a golden test must detect."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.project import PACKAGE, ROOT, tree

GOLDEN = ROOT / "tests" / "golden"


@dataclass(frozen=True)
class Mutation:
    """Replaces `old`, part of one line that occurs exactly once in `file` (relative to the
    package), by `new`. `why` says what the edit makes wrong, such as a sign, a schedule or an
    order."""

    file: str
    old: str
    new: str
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"

    def problem(self, package: Path = PACKAGE) -> str:
        """Why this mutation cannot be applied to a copy of the package; empty if it can."""
        path = package / self.file
        if not path.is_file():
            return f"{self}: there is no such file"
        if "\n" in self.old or self.old == self.new:
            return f"{self}: must change one line"
        found = path.read_text().count(self.old)
        return "" if found == 1 else f"{self}: {self.old!r} occurs {found} times"

    def apply(self, package: Path) -> None:
        """Edit a copy of the package."""
        assert not self.problem(package), self.problem(package)
        path = package / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


def mutations_of(path: Path) -> list[Mutation]:
    """The list ``MUTATIONS`` of a golden test module, read without importing it: each entry is
    ``Mutation(...)`` of literals or of names of literals in the same module."""
    texts: dict[str, str] = {}
    found: list[Mutation] = []
    for node in tree(path).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts[ast.unparse(target)] = node.value.value
        if ast.unparse(target) == "MUTATIONS":
            assert isinstance(node.value, ast.List | ast.Tuple), path
            found = [_made(each, texts) for each in node.value.elts]
    return found


def _made(node: ast.expr, texts: dict[str, str]) -> Mutation:
    assert isinstance(node, ast.Call), ast.unparse(node)
    given = [_text(each, texts) for each in node.args]
    return Mutation(*given, **{str(each.arg): _text(each.value, texts) for each in node.keywords})


def _text(node: ast.expr, texts: dict[str, str]) -> str:
    return texts[node.id] if isinstance(node, ast.Name) else str(ast.literal_eval(node))


def golden_modules() -> list[Path]:
    """The golden test modules that list mutations."""
    return [path for path in sorted(GOLDEN.rglob("test_*.py")) if mutations_of(path)]
