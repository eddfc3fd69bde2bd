"""Hashes of the code of plug-ins. The id of a cell contains the hash of each plug-in that it uses.

The hash of a package covers every file in its folder except documentation and ``conf``, whose
content is part of the configuration; the hash of a single file covers that file. Both cover what
these files import from this package. Comments and docstrings do not affect the hash.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.identity.sources import Unit, code_hash, forget, own_code_of
from backdoor_lab.identity.syntax import canonical
from backdoor_lab.plugins.methods import distribution_of
from backdoor_lab.plugins.trust import folder_of, generation, trusted

NO_CODE = (".md", ".rst", ".pyc", ".pyi", ".typed")
"""The ends of file names that do not affect what a package computes."""
DEPTH = 5
Builtin = (str, int, float, bool, type(None))


def plugin_of(made: object) -> str | None:
    """Returns the plug-in that holds the class of an object, or None."""
    return trusted().plugin_of(type(made).__module__)


def plugins_in(made: object, depth: int = DEPTH) -> set[str]:
    """Returns the plug-ins of an object and of the objects that it was built with."""
    if depth == 0 or isinstance(made, Builtin):
        return set()
    found = {plugin} if (plugin := plugin_of(made)) else set()
    if found or type(made).__module__.startswith("backdoor_lab."):
        inside: Sequence[object] = [*getattr(made, "__dict__", {}).values()]
    elif isinstance(made, dict):
        inside = [*made.values()]
    else:
        inside = [*made] if isinstance(made, (list, tuple)) else []
    return found.union(*(plugins_in(each, depth - 1) for each in inside))


def plugin_hash(plugin: str) -> str:
    """Returns the hash of a trusted plug-in's code, of 16 characters. Raises ConfigError if it has
    no source files, or if a file cannot be parsed."""
    return _hash(plugin, generation())


def own_code(plugin: str) -> tuple[Unit, ...]:
    """Returns the files and definitions of this package that a plug-in imports directly."""
    return _own_code(plugin, generation())


def plugin_facts(plugin: str) -> dict[str, Any]:
    """Returns what a record says of a plug-in: its `name`, its `hash`, and its `file` or, for a
    package, the name and version of its `distribution` (null if it is not installed)."""
    found: dict[str, Any] = {"name": plugin, "hash": plugin_hash(plugin)}
    if (path := trusted().file_of(plugin)) is not None:
        return found | {"file": path.name}
    name, version = distribution_of(plugin) or (None, None)
    return found | {"distribution": name, "version": version}


@functools.cache
def _hash(plugin: str, number: int) -> str:
    # In a process that runs several commands, such as a notebook, files may have been edited.
    if number > 1:
        forget()
    said = []
    for name, path in _files(plugin):
        content = path.read_bytes()
        if path.suffix == ".py":
            content = canonical(_tree(path, content).body).encode(errors="surrogatepass")
        said.append((name, hashlib.sha256(content).hexdigest()))
    ours = code_hash(_own_code(plugin, number))
    return hashlib.sha256(repr([sorted(said), ours]).encode()).hexdigest()[:16]


@functools.cache
def _own_code(plugin: str, number: int) -> tuple[Unit, ...]:
    return tuple(own_code_of(path for _, path in _files(plugin) if path.suffix == ".py"))


def _files(plugin: str) -> Iterator[tuple[str, Path]]:
    """Yields the files that decide what a plug-in computes, each with its name in the hash."""
    file = trusted().file_of(plugin)
    if file is not None:
        _check_neighbors(file)
        yield file.name, file
        return
    folder = folder_of(plugin)
    if folder is None:
        raise ConfigError(
            f"the plug-in {plugin} has no folder with source files and an __init__.py, so edits to"
            " it cannot be detected: install it as such a package"
        )
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in name.parts)
        if path.is_file() and not hidden and name.parts[0] != "conf" and path.suffix not in NO_CODE:
            yield name.as_posix(), path


def _check_neighbors(file: Path) -> None:
    """Raises ConfigError if a single file imports a module next to it, whose edits the hash would
    not show."""
    for node in ast.walk(_tree(file, file.read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] if node.level == 0 else [""]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            beside = [file.with_name(f"{top}.py"), file.parent / top / "__init__.py"]
            if not top or (top != "backdoor_lab" and any(each.is_file() for each in beside)):
                raise ConfigError(
                    f"`plugins`: {file.name}:{node.lineno} imports {top or 'a relative module'},"
                    " which is next to it. A plug-in of several files must be a package: see"
                    " backdoor_lab/plugins/README.md"
                )


def _tree(path: Path, content: bytes) -> ast.Module:
    try:
        return ast.parse(content, str(path))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 0
        raise ConfigError(
            f"the plug-in file {path.name}:{line} is not valid Python:"
            f" {getattr(error, 'msg', error)}"
        ) from error
