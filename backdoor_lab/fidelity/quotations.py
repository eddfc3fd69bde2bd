"""Checks that each quoted text is in the quoted line of the authors' repository."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from backdoor_lab.core.errors import many
from backdoor_lab.fidelity.table import Method, Source


def check_sources(methods: Iterable[Method], folder: Path) -> tuple[list[str], list[str]]:
    """Compare every quotation with the checkouts in `folder`, named ``owner+name`` or ``name``.

    A file is read at the quoted commit if the checkout (a work tree or a bare repository) has this
    commit, otherwise from the work tree. Returns one line per wrong quotation, and the repositories
    without a checkout.
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
    """The checkout of ``owner/name`` in `folder`, if there is one."""
    places = (folder / repo.replace("/", "+"), folder / repo.partition("/")[2])
    return next((place for place in places if place.is_dir()), None)


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
    said = subprocess.run(
        ["git", "-C", str(place), "show", f"{source.commit}:{source.path}"],
        capture_output=True,
        check=False,
    )
    path = place / source.path
    if said.returncode == 0:
        data = said.stdout
    elif path.is_file() and path.resolve().is_relative_to(place.resolve()):
        data = path.read_bytes()
    else:
        return None
    return data.decode(errors="replace")
