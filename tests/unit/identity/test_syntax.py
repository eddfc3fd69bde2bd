"""The canonical text of code, which is hashed: equal for equivalent code under every Python
version."""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from backdoor_lab.identity import syntax
from backdoor_lab.identity.syntax import canonical

ROOT = Path(__file__).parents[3]
EVERYTHING = r'''
"""Docstring."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import torch
def f(a, /, b: int = 1, *c, d=None, **e) -> str:
    'doc'
    x, width = 3.25, 10
    one = f"a{x}b" f'{x!r:>{width}}' "c" 'd'
    two = f"{x=}" f"{x = !s:^10}" f"{x:}" f"{{}}" f"" "tail"
    three = f'{x:%Y-%m-%d}{"inner"}{x:{width}.{2}f}' rf"\d{x}\n"
    four = f"""{
        x
    } multi
    line {x!a}"""
    five = f"{'a' if x else 'b'}{ {1: 2}[1] }{(lambda z: z)(1)}"
    five += f"\N{GREEK SMALL LETTER EPSILON}{x:\t}"
    return u"kind" + one + two + three + four + five + "\ud800é\U0001fae8\x00"
class K(dict, metaclass=type):
    """doc"""
    n: int
    """attribute docstring"""
    def m(self): ...
async def g():
    async with a as (b, c): pass
    async for i in x: await y
    return [i async for i in x if i], {**a, 'b': 1}, {*a}, (yield)
def h(n):
    match n:
        case {"a": [1, *rest], **kw} if rest: raise ValueError(f"text {n}") from None
        case K(n=1) | None | -1 | 1+2j: assert n, "message"
        case _: nonlocal_ = not n
    try: pass
    except* (OSError, ValueError) as e: raise
    finally: del n
    with (open(1) as a, open(2) as b): global zz; zz = 1
    w = 1e400, -0.0, 1j, 10**3, 0x_ff, b"\x00a", ..., True, None
    return w, a[1:2, ::3], (w := 1), *n, lambda *, k=1: k
'''
"""Every construct of Python 3.11, especially f-strings, which later versions parse differently."""
HASH = "f9bf9bc1ebeb843128b74d9951d37924df45e2c4fbb91b5e6b3f017953e0d649"


def text(code: str) -> str:
    return canonical(ast.parse(code).body)


def hashed(code: str) -> str:
    return hashlib.sha256(text(code).encode(errors="surrogatepass")).hexdigest()


def test_the_running_python_gives_the_expected_hash() -> None:
    """The expected hash is the same under Python 3.11, 3.12, 3.13 and 3.14."""
    assert hashed(EVERYTHING) == HASH


@pytest.mark.parametrize("python", ["python3.11", "python3.12", "python3.13", "python3.14"])
def test_other_pythons_on_this_machine_give_the_same_hashes(python: str, tmp_path: Path) -> None:
    """They hash the code of the package. Python versions that are not installed are skipped."""
    program = "from backdoor_lab import identity; print(identity.stage('train'))"
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    places = [*map(str, versions.glob(f"{python[6:]}.*/bin/{python}")), shutil.which(python)]
    if places[0] is None:
        pytest.skip(f"no {python} here")
    command = [places[0], "-B", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip().isdigit(), done.stdout + done.stderr


def test_empty_syntax_tree_fields_do_not_change_the_hashed_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python 3.12 added `type_params`; a later version may add more."""
    code = "def f(a: int = 1) -> int:\n    return a\nclass K: pass"
    before = text(code)
    tree = ast.parse(code)
    for kind in (ast.FunctionDef, ast.ClassDef):
        monkeypatch.setattr(kind, "_fields", (*kind._fields, "a_later_list", "a_later_node"))
    for node in tree.body:
        node.a_later_list, node.a_later_node = [], None  # type: ignore[attr-defined]
    syntax._fields.cache_clear()
    assert canonical(tree.body) == before
    tree.body[0].a_later_list = [ast.Name("T")]  # type: ignore[attr-defined]
    assert canonical(tree.body) != before
    syntax._fields.cache_clear()


def test_f_string_pieces_are_merged() -> None:
    """Python versions split an f-string into different pieces, which may be nested or empty."""
    (whole,) = ast.parse("f'ab{c}'").body
    pieces = [ast.Constant("a"), ast.Constant(""), ast.JoinedStr([ast.Constant("b")])]
    cut = ast.JoinedStr([*pieces, ast.FormattedValue(ast.Name("c"), -1, ast.JoinedStr([]))])
    assert canonical([ast.Expr(cut)]) == canonical([whole])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = f'a' f'{b}' 'c'", "x = f'a{b}c'"),
        ("x = f'{b:}'", "x = f'{b}'"),
        ("x = u'a'", "x = 'a'"),
        ("def f():\n    'doc'\n    return 1", "def f():\n    return 1  # comment"),
        ("raise E('a', b) from c", "raise E(d)"),
        ("assert a, 'b'", "assert a"),
        ("x: int = 1\n'what x is'", "x: int = 1"),
        ("if TYPE_CHECKING:\n    import a", ""),
        ("if typing.TYPE_CHECKING:\n    import a", ""),
    ],
)
def test_equivalent_code_has_the_same_hashed_text(one: str, other: str) -> None:
    assert text(one) == text(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"), ("x = 1", "x = True"), ("x = 'a'", "x = b'a'"),
        ("x = 0.0", "x = -0.0"),
        ("x = a + b", "x = a - b"), ("x = [1]", "x = [[1]]"), ("x = 'a', 'b'", "x = 'a b'"),
        ("x = f'{a}'", "x = f'{a!r}'"), ("x = f'{a:.2f}'", "x = f'{a:.3f}'"),
        ("x = f'a{b}'", "x = f'{b}a'"), ("raise E(a)", "raise F(a)"), ("raise E(a)", "raise"),
        ("assert a", "assert b"), ("def f(a=1): pass", "def f(a=2): pass"),
        ("def f(*, a=1, b): pass", "def f(*, a, b=1): pass"),
        ("if not TYPE_CHECKING:\n    x = 1", "if not TYPE_CHECKING:\n    x = 2"),
        ("if TYPE_CHECKING:\n    x = 1\nelse:\n    x = 2", ""),
        ("if self.TYPE_CHECKING:\n    x = 1", "if self.TYPE_CHECKING:\n    x = 2"),
        ("x = {**a, b: c}", "x = {b: c, **a}"), ("@d\ndef f(): pass", "def f(): pass"),
        ("x[1:]", "x[:1]"), ("from a import b", "from c import b"),
    ],
)  # fmt: skip
def test_different_code_gives_different_text_to_hash(one: str, other: str) -> None:
    assert text(one) != text(other)
