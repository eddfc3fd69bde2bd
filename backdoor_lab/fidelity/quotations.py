"""Checks that each quoted text is in the quoted line of the authors' repository."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from backdoor_lab.core.errors import many
from backdoor_lab.fidelity.table import Method, Source


def check_sources(methods: Iterable[Method], folder: Path) -> tuple[list[str], list[str]]:
    """Compare every quotation with the checkouts in `folder` (see `checkout`).

    A file is read at the quoted commit if the checkout has this commit, otherwise from the work
    tree, or from HEAD of a bare repository. Returns one line per wrong quotation, and the
    repositories without a checkout.
    """
    wrong, absent = [], set()
    for method in methods:
        for row in method.rows:
            if row.source is None:
                continue
            place = checkout(folder, row.source.repo)
            if place is None:
                absent.add(row.source.repo)
            elif problem := _problem(place, row.source):
                wrong.append(f"{method.name}, {row.key}: {row.source}: {problem}")
    return wrong, sorted(absent)


def checkout(folder: Path, repo: str) -> Path | None:
    """The checkout of ``owner/name`` in `folder`, if there is one: a work tree or a bare repository
    named ``owner+name`` or ``name``, also with the ending ``.git``, or directly inside a folder of
    this name."""
    names = (repo.replace("/", "+"), repo.partition("/")[2])
    for place in (folder / f"{name}{ending}" for name in names for ending in ("", ".git")):
        if place.is_dir() and any(place.iterdir()):
            return next(filter(_is_repository, (place, *sorted(place.iterdir()))), place)
    return None


def _is_repository(place: Path) -> bool:
    return place.name != ".git" and ((place / ".git").exists() or _is_bare(place))


def _is_bare(place: Path) -> bool:
    return (place / "HEAD").is_file() and (place / "objects").is_dir()


def _problem(place: Path, source: Source) -> str:
    text = _text(place, source)
    if text is None:
        return "the repository has no such file"
    lines = text.splitlines()
    if source.line > len(lines):
        return f"there is no line {source.line}: the file has {many(len(lines), 'line')}"
    line = " ".join(lines[source.line - 1].split())
    if " ".join(source.token.split()) in line:
        return ""
    return f"the quoted text {source.token!r} is not in this line, which is {line[:120]!r}"


def _text(place: Path, source: Source) -> str | None:
    data = _at(place, source.commit, source.path)
    path = place / source.path
    if data is None and _is_bare(place):
        data = _at(place, "HEAD", source.path)
    elif data is None and path.is_file() and path.resolve().is_relative_to(place.resolve()):
        data = path.read_bytes()
    return None if data is None else data.decode(errors="replace")


def _at(place: Path, commit: str, path: str) -> bytes | None:
    """The content of a file at a commit, if the repository has both."""
    said = subprocess.run(
        ["git", "-C", str(place), "show", f"{commit}:{path}"], capture_output=True, check=False
    )
    return said.stdout if said.returncode == 0 else None
