"""Compares the values `ours` of the fidelity table with the configuration and the source code.

The source code is parsed and not imported.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from backdoor_lab.fidelity.table import GROUPS, Method, Row, same
from backdoor_lab.identity.sources import ROOT, conf_dir

NOT_OPTIONS = ("_target_", "name")
_ELSEWHERE = re.compile(r"(?P<place>[\w/]+\.py): (?P<text>.+)")
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip


class _MissingError(Exception):
    """Raised if a row names an option, a constant or a file that does not exist."""


def drift(methods: Iterable[Method], root: Path = ROOT, conf: Path | None = None) -> list[str]:
    """Compares the YAML files with the configuration and the code. Returns one line per difference.

    Compares options, constants, quoted texts and the default values of classes. Also reports
    options that a YAML file does not describe, and YAML files without a configuration.
    """
    conf = conf or conf_dir()
    return [line for method in methods for line in _drift_of(method, root, conf)]


def undescribed(methods: Iterable[Method], conf: Path | None = None) -> list[str]:
    """Returns the triggers and defenses in `conf` without a YAML file, such as ``trigger=mine``."""
    known = {(each.group, each.name) for each in methods}
    return [
        f"{group}={path.stem}"
        for group in sorted(GROUPS.values())
        for path in sorted(((conf or conf_dir()) / group).glob("*.yaml"))
        if (group, path.stem) not in known
    ]


def _drift_of(method: Method, root: Path, conf: Path) -> list[str]:
    path = conf / method.group / f"{method.name}.yaml"
    if not path.is_file():
        return [
            f"{method.name}: the fidelity table has an entry, but the configuration has no"
            f" {method.group}={method.name}"
        ]
    options = _options(path)
    found = [line for row in method.rows for line in _check(row, method, options, root)]
    found += _defaults(method, options, root)
    described = {row.key.partition(".")[0] for row in method.rows if row.kind == "option"}
    lacking = [key for key in options if key not in (*NOT_OPTIONS, *described)]
    return found + [
        f"{method.name}: the fidelity table has no row for the option {key}" for key in lacking
    ]


def _check(row: Row, method: Method, options: dict[str, Any], root: Path) -> list[str]:
    found = []
    try:
        if row.kind != "step":
            current = _current(row, method, options, root)
            if not same(row.ours, current):
                found.append(
                    f"{method.name}: {row.key} is {current!r}, but the fidelity table says"
                    f" {row.ours!r}"
                )
        place, text = _quoted(row.token, method.component)
        if text not in (root / place).read_text():
            found.append(f"{method.name}: the quoted text {text!r} is not in {place}")
    except (_MissingError, OSError) as error:
        found.append(f"{method.name}: {error}")
    return found


def _quoted(token: str, component: str) -> tuple[str, str]:
    """Splits `token` into the name of a file and the text quoted from this file. If `token` does
    not begin with a file name, the text is quoted from the file named `component`."""
    match = _ELSEWHERE.fullmatch(token)
    return (match["place"], match["text"]) if match else (component, token)


class _Expression(str):
    """The text of an expression that is not a literal."""


def _defaults(method: Method, options: dict[str, Any], root: Path) -> list[str]:
    """Compare the defaults in the constructor of a method's class with the method's rows.

    Defaults are skipped if they are None or an expression, such as the name of a constant. Presets
    such as ``abl_authors`` are skipped as well, since their values differ from the defaults on
    purpose.
    """
    path = root / method.component
    kind = str(options.get("_target_")).rpartition(".")[2]
    found = []
    for row in method.rows if path.stem == method.name else ():
        if row.kind != "option":
            continue
        try:
            default = constant(path, f"{kind}.__init__.{row.key}")
        except (_MissingError, OSError):
            continue
        if isinstance(default, _Expression | None):
            continue
        if not same(row.ours, default):
            found.append(
                f"{method.name}: the default of {row.key} in {kind} is {default!r}, but the"
                f" fidelity table says {row.ours!r}"
            )
    return found


def _current(row: Row, method: Method, options: dict[str, Any], root: Path) -> object:
    if row.kind == "constant":
        place, _, name = row.key.rpartition(":")
        return constant(root / (place or method.component), name)
    value: Any = options
    for part in row.key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise _MissingError(f"{method.group}={method.name} has no option {row.key}")
        value = value[part]
    return value


def _options(path: Path) -> dict[str, Any]:
    import yaml

    return dict(yaml.safe_load(path.read_text()))


def constant(path: Path, name: str) -> object:
    """The value of a constant (``NAME``, ``Class.NAME``) in a Python file, or the default of a
    parameter (``function.parameter``, ``Class.method.parameter``). Literals and arithmetic on
    literals are evaluated; any other expression is returned as source text."""
    scope: ast.AST = ast.parse(path.read_text())
    *outer, last = name.split(".")
    for part in outer:
        scope = _definition(scope, part, path)
    if isinstance(scope, ast.FunctionDef):
        return _default(scope, last, path)
    for node in getattr(scope, "body", []):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if value is not None and any(isinstance(t, ast.Name) and t.id == last for t in targets):
            return _value(value)
    raise _MissingError(f"{path.name} has no constant {name}")


def _definition(scope: ast.AST, name: str, path: Path) -> ast.AST:
    for node in getattr(scope, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    raise _MissingError(f"{path.name} has no class or function {name}")


def _default(function: ast.FunctionDef, name: str, path: Path) -> object:
    arguments = function.args
    placed = [*arguments.posonlyargs, *arguments.args]
    defaults = dict(
        zip(reversed([a.arg for a in placed]), reversed(arguments.defaults), strict=False)
    )
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    defaults |= {a.arg: default for a, default in named if default is not None}
    if name not in defaults:
        raise _MissingError(
            f"{path.name}: {function.name} has no default value for the parameter {name}"
        )
    return _value(defaults[name])


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(left, int | float) and isinstance(right, int | float):
            return _OPERATORS[type(node.op)](left, right)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _Expression(ast.unparse(node))
