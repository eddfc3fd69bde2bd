"""The plug-ins that the user trusts in this process, and the import of their code.

A plug-in is one file (``plugins=[path/to/file.py]``) or an installed package
(``allow_plugins=[package]``). Only the command line can name plug-ins. Nothing of a plug-in is
imported before `trust` was called with it, and a process that runs cells gets the `Trust` of the
process that started it.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType

from backdoor_lab.core.errors import ConfigError

PACKAGE = "backdoor_lab"
_STEM = re.compile(r"[a-z][a-z0-9_]{0,63}\Z")


@dataclass(frozen=True)
class Trust:
    """What the command line names: `packages` (``allow_plugins``), whose names may be dotted, and
    the absolute paths of `files` (``plugins``)."""

    packages: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def plugin_of(self, name: str) -> str | None:
        """Returns the plug-in that holds a module, class or function of this dotted `name`: the
        name of a top-level package or of a file without ``.py``. None if it is not trusted."""
        top = name.partition(".")[0]
        named = any(f"{name}.".startswith(f"{each}.") for each in self.packages)
        return top if named or self.file_of(top) else None

    def file_of(self, plugin: str) -> Path | None:
        """Returns the file of a plug-in that is one file, otherwise None."""
        return next((path for path in self.files if path.stem == plugin), None)

    def top_level(self) -> list[str]:
        """Returns the trusted packages whose whole top-level package is trusted."""
        return [each for each in self.packages if "." not in each]


@dataclass
class _Process:
    trust: Trust
    generation: int


_here = _Process(Trust(), 0)


def trusted() -> Trust:
    """Returns the plug-ins that are trusted in this process; at first none."""
    return _here.trust


def generation() -> int:
    """Returns how often `trust` was called with other plug-ins than before, for caches."""
    return _here.generation


def trust(given: Trust) -> None:
    """Trust these plug-ins in this process, and no others. Imports nothing.

    Raises ConfigError for a file or package that cannot be a plug-in.
    """
    for path in _here.trust.files:
        if getattr(sys.modules.get(path.stem), "__file__", None) == str(path):
            del sys.modules[path.stem]  # The file may have been edited.
    _here.trust = Trust()
    for package in given.packages:
        if package.partition(".")[0] == PACKAGE:
            raise ConfigError(
                f"`allow_plugins`: {package} is this package itself, which needs no permission:"
                " leave it out"
            )
    for path in given.files:
        _check_file(path)
    stems = [*given.top_level(), *(path.stem for path in given.files)]
    if twice := sorted({each for each in stems if stems.count(each) > 1}):
        raise ConfigError(
            f"two plug-ins are called {twice[0]}: rename the file of one, or leave one out"
        )
    _here.trust, _here.generation = given, _here.generation + 1


def adopt(given: Trust) -> None:
    """Trust the plug-ins of the process that started this one, as `trust` does, unless this process
    trusts them already."""
    if trusted() != given:
        trust(given)


def paths_given(value: object) -> tuple[Path, ...]:
    """Returns the files of ``plugins`` as absolute paths. Raises ConfigError unless `value` is a
    list of paths of Python files."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) and v for v in value):
        raise ConfigError(
            f"`plugins` must be a list of Python files (plugins=[path/to/file.py]), got {value!r}"
        )
    return tuple(dict.fromkeys(Path(each).expanduser().absolute() for each in value))


def import_trusted(name: str) -> ModuleType:
    """Import the module `name` of a trusted plug-in. Raises what its code raises."""
    found = trusted()
    assert found.plugin_of(name) is not None, f"{name} is not trusted"
    path = found.file_of(name)
    if path is None:
        return importlib.import_module(name)
    if getattr(sys.modules.get(name), "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_loader(name, _Loader(name, str(path)), origin=str(path))
    assert spec is not None
    spec.has_location = True
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        assert spec.loader is not None
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a file each time and writes no cache: a cached file may be that of an older
    version, and the folder of a user's file is not ours."""

    def get_code(self, fullname: str) -> CodeType:
        code = self.source_to_code(self.get_data(self.path), self.path)
        assert isinstance(code, CodeType)
        return code


def folder_of(package: str) -> Path | None:
    """Returns the folder of an installed top-level package, or None if there is none. Imports
    nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.origin or not spec.submodule_search_locations:
        return None
    return Path(spec.origin).parent


def _check_file(path: Path) -> None:
    stem = path.stem
    if path.suffix != ".py" or not path.is_file():
        what = "is not a Python file (NAME.py)" if path.exists() else "does not exist"
        raise ConfigError(
            f"`plugins`: {path} {what}; an installed package is named in allow_plugins=[package]"
        )
    if not _STEM.match(stem):
        raise ConfigError(
            f"`plugins`: {path.name} must be renamed: the name of the file has only lower-case"
            " letters, digits and underscores, and starts with a letter"
        )
    if stem == PACKAGE or stem in sys.stdlib_module_names or _elsewhere(stem, path):
        raise ConfigError(
            f"`plugins`: {path.name} has the name of another Python module ({stem}), which it would"
            " hide: rename the file"
        )


def _elsewhere(stem: str, path: Path) -> bool:
    """Whether ``import stem`` would find another module than the file `path`."""
    try:
        spec = importlib.util.find_spec(stem)
    except (ImportError, ValueError):
        return False
    origin = None if spec is None else spec.origin
    return spec is not None and (origin is None or Path(origin).resolve() != path.resolve())
