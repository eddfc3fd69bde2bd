"""Converts Python code to text that depends on what the code does, not on how it is written.

The text is the syntax tree without comments, docstrings, error messages and blocks for type
checkers. Empty fields are omitted, so that Python 3.11 and later produce the same text although
their trees have different fields.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from typing import Any

_UNSAID = frozenset(("ctx", "kind", "type_comment", "type_ignores"))


def canonical(nodes: Iterable[ast.AST]) -> str:
    """Returns `nodes` as canonical text. Code hashes are hashes of this text."""
    out: list[str] = []
    for node in nodes:
        _write(node, out)
    return "".join(out)


def walk(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yields `nodes` and all nodes below them that have an effect when the code runs."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if not without_effect(node):
            yield node
            waiting += _refused(node) or ast.iter_child_nodes(node)


def without_effect(node: ast.AST) -> bool:
    """Whether a statement is a docstring or a block for type checkers only."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if not isinstance(node, ast.If) or node.orelse:
        return False
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


@functools.cache
def _fields(every: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(every) - _UNSAID))


def _write(node: Any, out: list[str]) -> None:
    if isinstance(node, ast.Constant):
        out.append(_constant(node.value))
    elif isinstance(node, ast.JoinedStr):
        _write_text(node, out)
    elif refused := _refused(node):
        out.append(f"({type(node).__name__}")
        _write(refused, out)
        out.append(")")
    elif isinstance(node, ast.AST):
        if not without_effect(node):
            _write_fields(node, out)
    elif isinstance(node, list):
        out.append("[")
        for each in node:
            _write(each, out)
        out.append("]")
    else:
        out.append(_constant(node))


def _write_fields(node: ast.AST, out: list[str]) -> None:
    out.append(f"({type(node).__name__}")
    for name in _fields(node._fields):
        value = getattr(node, name, None)
        if value is not None and value != [] and not _is_empty_text(value):
            out.append(f" {name}=")
            _write(value, out)
    out.append(")")


def _refused(node: ast.AST) -> list[ast.AST]:
    """Returns the part of a raise or assert statement that affects code hashes: the type of the
    error or the condition, not the message."""
    if isinstance(node, ast.Assert):
        return [node.test]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        return [node.exc.func]
    return []


def _write_text(node: ast.JoinedStr, out: list[str]) -> None:
    """Append the text of an f-string to `out`. Adjacent pieces of text are joined, since Python
    versions split them differently."""
    out.append("(text ")
    plain = ""
    for part in _parts(node):
        if isinstance(part, ast.Constant):
            plain += str(part.value)
            continue
        out.append(_constant(plain) if plain else "")
        plain = ""
        _write_fields(part, out)
    out.append((_constant(plain) if plain else "") + ")")


def _is_empty_text(value: object) -> bool:
    return isinstance(value, ast.JoinedStr) and not value.values


def _parts(node: ast.JoinedStr) -> Iterator[ast.expr]:
    for part in node.values:
        if isinstance(part, ast.JoinedStr):
            yield from _parts(part)
        else:
            yield part


def _constant(value: object) -> str:
    # repr is not used for strings: which characters it escapes depends on Python's Unicode tables.
    said = value if isinstance(value, str) else repr(value)
    return f"<{type(value).__name__} {len(said)} {said}>"
