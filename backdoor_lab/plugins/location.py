"""Finds the line of a user's code that raised an error."""

from __future__ import annotations

import traceback
from pathlib import Path

from backdoor_lab.plugins.trust import Trust, folder_of


def location(error: BaseException, path: Path, base: Path) -> str | None:
    """Returns the innermost line of the file `path`, or of a file in the folder `path`, in the
    traceback of `error`: its file relative to `base`, and its number, as in ``attacks/mine.py:7``.
    None if there is no such line."""
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        places.append((error.filename, error.lineno))
    for name, line in reversed(places):
        file = Path(name)
        if file.is_absolute() and (file == path or path in file.parents):
            return f"{file.relative_to(base).as_posix()}:{line}"
    return None


def source_of(trust: Trust, plugin: str) -> Path | None:
    """Returns the file of a plug-in that is one file, or the folder of a package. None if there is
    no such package."""
    return trust.file_of(plugin) or folder_of(plugin)


def described(error: BaseException, trust: Trust, plugin: str) -> str:
    """Returns where the code of a plug-in raised `error`: ``stripes.py:7``, or the name of the
    plug-in if its code is not in the traceback."""
    path = source_of(trust, plugin)
    found = None if path is None else location(error, path, path.parent)
    return found or plugin
