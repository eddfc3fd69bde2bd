"""Hashes of source code in this package, including all code that it imports from this package.

A hash depends on what the code does, not on how it is written (see syntax.py). Hashing imports
neither the hashed files nor torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backdoor_lab.identity.syntax import canonical, walk, without_effect

PACKAGE, INIT = "backdoor_lab", "__init__.py"
ROOT = Path(__file__).resolve().parents[1]
CHECKOUT = ROOT.parent

NEUTRAL = frozenset((
    "__init__.py", "__main__.py", "config_loader.py", "distortion.py", "export.py",
    "export_dataset.py", "export_weights.py", "hydra_options.py", "plugin_configs.py",
    "preview.py", "run.py",
    "separation.py", "status.py", "visibility.py",
    "analysis", "api", "check_plugin", "compare", "fidelity", "figures", "identity", "page",
    "plugins", "reports", "results",
    "sweep", "tables", "templates", "verify",
    "core/lease.py", "core/errors.py", "core/failpoints.py", "core/atomic_io.py", "core/letters.py",
    "core/options.py", "core/output.py", "core/paths.py", "core/progress.py", "core/resources.py",
    "core/small_files.py", "core/shutdown.py", "core/store.py",
    "core/targets.py", "core/terminal.py", "data/squares.py",
    "exchange/card.py", "exchange/network_card.py", "exchange/splits.py", "exchange/write.py",
    "exchange/write_folder.py", "exchange/write_npz.py", "exchange/write_parquet.py",
    "exchange/write_toolbox.py",
    "pipeline/imported.py", "pipeline/keys.py", "pipeline/participants.py", "pipeline/progress.py",
    "pipeline/test_sets.py", "training/logs.py",
    "scan/__init__.py", "scan/__main__.py", "scan/changes.py", "scan/configuration.py",
    "scan/history.py", "scan/trials.py", "scan/page.py", "scan/reading.py",
    "scan/reference.py",
    "scan/reference_file.py", "scan/report.py", "scan/run.py", "scan/terms.py",
    "scan/trusted.py",
))  # fmt: skip
"""Files and folders that do not affect the numbers in a record, such as commands, messages,
progress display and the store. They are not hashed, and their imports are not followed."""
ALONE = frozenset((
    "core/instantiate.py", "pipeline/after_training.py", "pipeline/cell.py",
    "pipeline/cell_pipeline.py", "pipeline/parts.py", "pipeline/record.py",
))  # fmt: skip
"""Files that are hashed whole but whose imports are not followed: they combine all components,
which have their own hashes."""
BY_NAME = ("core/validation.py", "core/streams.py", "pipeline/")
"""Files of which only the definitions in use, directly or indirectly, are hashed: many files import
a few functions from these. The same applies to every ``__init__.py``."""

Unit = tuple[Path, str | None]
"""A file and the name of one of its definitions; with None, the whole file."""


@dataclass(frozen=True)
class _Module:
    """A parsed file.

    `bound` maps each name to the statements that bind the name. `loose` lists the statements that
    bind no name. `imports` maps each imported name to the files or definitions that it refers to.
    """

    tree: ast.Module
    bound: dict[str, list[ast.stmt]]
    loose: list[ast.stmt]
    imports: dict[str, list[Unit]]


def conf_dir() -> Path:
    """Returns the folder `conf`: next to the package in a checkout, inside the package if it is
    installed."""
    places = (ROOT / "conf", CHECKOUT / "conf")
    return next(place for place in places if (place / "config.yaml").is_file())


def unit(root: str) -> Unit:
    """Parses the name of a file (``data/cache.py``), or of a definition in a file
    (``pipeline/stages/training.py:train_stage``), relative to the package."""
    path, _, name = root.partition(":")
    return ROOT / path, name or None


def code_hash(roots: Iterable[Unit], length: int = 16) -> str:
    """Returns a hash of the code of `roots` and of everything that they import from this
    package."""
    units = closure(tuple(roots))
    said = [(_relative(path), name or "", _digest(path, name)) for path, name in units]
    return hashlib.sha256(repr(sorted(said)).encode()).hexdigest()[:length]


def own_code_of(paths: Iterable[Path]) -> list[Unit]:
    """Returns the files and definitions of this package that the files at `paths`, which are
    outside of this package, import directly."""
    return sorted({each for path in paths for each in _used(path, None)}, key=repr)


def files_of(roots: Iterable[Unit]) -> list[str]:
    """Returns the files that `code_hash` covers, relative to the package."""
    return sorted({_relative(path) for path, _ in closure(tuple(roots))})


@functools.cache
def closure(roots: tuple[Unit, ...]) -> frozenset[Unit]:
    """Returns `roots` and everything that they import from this package, directly or indirectly."""
    found, waiting = set[Unit](), list(roots)
    while waiting:
        each = waiting.pop()
        if each not in found and not is_neutral(each[0]):
            found.add(each)
            waiting += _used(*each)
    whole = {path for path, name in found if name is None}
    return frozenset(each for each in found if each[1] is None or each[0] not in whole)


def is_neutral(path: Path) -> bool:
    """Whether a file is listed in `NEUTRAL` and therefore not hashed."""
    name = _relative(path)
    return any(name == each or name.startswith(f"{each}/") for each in NEUTRAL)


def forget() -> None:
    """Clear all caches, so that source files are read again."""
    for cached in (closure, _parsed, _used, _digest, _resolved):
        cached.cache_clear()


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name


def _text(path: Path) -> bytes:
    return path.read_bytes()


@functools.cache
def _parsed(path: Path) -> _Module:
    tree = ast.parse(_text(path), str(path))
    bound: dict[str, list[ast.stmt]] = {}
    loose: list[ast.stmt] = []
    imports: dict[str, list[Unit]] = {}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, target in _brought(node, path):
                imports.setdefault(name, []).append(target)
            continue
        names = _names_bound(node)
        for name in names:
            bound.setdefault(name, []).append(node)
        if not names and not without_effect(node):
            loose.append(node)
    return _Module(tree, bound, loose, imports)


def _names_bound(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        targets = [node.target]
    flat = [
        part
        for each in targets
        for part in (each.elts if isinstance(each, ast.Tuple | ast.List) else [each])
    ]
    names = [each.id for each in flat if isinstance(each, ast.Name)]
    return names if len(names) == len(flat) else []


@functools.cache
def _digest(path: Path, name: str | None) -> str:
    return hashlib.sha256(canonical(_nodes(path, name)).encode(errors="surrogatepass")).hexdigest()


def _nodes(path: Path, name: str | None) -> list[ast.stmt]:
    module = _parsed(path)
    return module.tree.body if name is None else [*module.loose, *module.bound.get(name, [])]


@functools.cache
def _used(path: Path, name: str | None) -> tuple[Unit, ...]:
    """Returns the files and definitions of this package that a file, or the definition `name` in
    it, uses directly."""
    if _relative(path) in ALONE:
        return ()
    module = _parsed(path)
    imports = {key: list(targets) for key, targets in module.imports.items()}
    # A name that a file only re-exports is bound by an import.
    names, parts, often = {name or ""}, set[tuple[str, str]](), Counter[str]()
    for node in walk(_nodes(path, name)):
        if isinstance(node, ast.Name):
            names.add(node.id)
            often[node.id] += 1
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            parts.add((node.value.id, node.attr))
            often[node.value.id] -= 1
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for bound, target in _brought(node, path):
                imports.setdefault(bound, []).append(target)
                names.add(bound)
    taken = imports.keys() if name is None else names & imports.keys()
    found = [
        unit
        for key in taken
        for target in imports[key]
        # If a module is used other than as ``module.name``, all of it may be used.
        for unit in _narrowed(target, {a for base, a in parts if base == key and not often[key]})
    ]
    own = [] if name is None else [(path, each) for each in names & module.bound.keys()]
    return (*own, *found, *_packages(path))


def _narrowed(target: Unit, parts: set[str]) -> list[Unit]:
    """Returns what is hashed of the imported `target`: the whole file or, for an ``__init__.py`` or
    a file in `BY_NAME`, only the definitions in use. If `target` is a module, `parts` holds the
    names of its attributes in use."""
    path, name = target
    where = _relative(path)
    if where in ALONE or name == "*" or not (where.startswith(BY_NAME) or path.name == INIT):
        return [(path, None)]
    if name is not None:
        return [(path, name)]
    # ``import package.module`` binds the package; its attributes may be modules.
    whole = not parts or not parts <= _parsed(path).bound.keys() | _parsed(path).imports.keys()
    return [(path, None)] if whole else [(path, each) for each in parts]


def _packages(path: Path) -> list[Unit]:
    """Returns the ``__init__.py`` files that Python runs before the module at `path`. In these
    files, only statements that bind no name are hashed."""
    above = [folder for folder in path.parents if folder != ROOT and folder.is_relative_to(ROOT)]
    return [(folder / INIT, "") for folder in above if path.name != INIT]


def _brought(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[tuple[str, Unit]]:
    """Yields each name that an import binds to something in this package, with the file or
    definition that the name refers to."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            bound, found = alias.name.split(".")[0], _resolved(alias.name, None)
        else:
            bound, found = alias.name, _resolved(_module_of(node, path), alias.name)
        if found is not None:
            yield alias.asname or bound, found


def _module_of(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    folder = path.parents[node.level - 1]
    if not folder.is_relative_to(ROOT):
        return ""
    return ".".join([PACKAGE, *folder.relative_to(ROOT).parts, *filter(None, [node.module])])


@functools.cache
def _resolved(module: str, name: str | None) -> Unit | None:
    if module.split(".", 1)[0] != PACKAGE:
        return None
    base = ROOT.joinpath(*module.split(".")[1:])
    if name is not None and (inner := _file(base / name)):
        return inner, None
    found = _file(base)
    return None if found is None else (found, name)


def _file(base: Path) -> Path | None:
    places = (base.with_name(f"{base.name}.py"), base / INIT)
    return next((place for place in places if place.is_file()), None)
