"""Reads the settings of each method from its YAML file: our values, the paper's, and those in the
authors' code."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import DataError
from backdoor_lab.identity.sources import ROOT

TABLE = ROOT / "fidelity"
GROUPS = {"attacks": "trigger", "defenses": "defense"}
"""Maps the folders of this package to config groups."""
STATUSES = ("exact", "reduced", "different", "no code", "ours")
KINDS = ("option", "constant", "step")
SAME = "same"
"""Stands for a value of the authors that equals ours but is stated in other units or words."""
_SOURCE = re.compile(
    r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<commit>[0-9a-f]{7,40}):(?P<path>.+):(?P<line>\d+)"
)


@dataclass(frozen=True)
class Source:
    """A line of the authors' code, and the text quoted from it (`token`)."""

    repo: str
    commit: str
    path: str
    line: int
    token: str

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}:{self.path}:{self.line}"


@dataclass(frozen=True)
class Row:
    """One value or step that affects the result of a method.

    `ours`, `paper` and `code` are the values of this package, the paper and the authors' code; the
    last two may be None. `cost` is the time or memory with the authors' value, relative to ours.
    """

    kind: str
    key: str
    ours: Any
    paper: Any = None
    section: str = ""
    code: Any = None
    source: Source | None = None
    cost: float = 1.0
    note: str = ""
    token: str = ""
    equal_to: str = ""

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources that state a value: ``paper``, ``code``, both or neither."""
        return ("paper",) * bool(self.section) + ("code",) * (self.source is not None)

    def equals(self, source: str) -> bool:
        """Whether our value equals the value of `source`, which is ``paper`` or ``code``."""
        return same(self.ours, getattr(self, source))


@dataclass(frozen=True)
class Method:
    """A method: a choice of ``trigger=`` or ``defense=``, published or our own."""

    name: str
    group: str
    title: str
    status: str
    component: str
    paper: str = ""
    equal_to: str = ""
    golden: str = ""
    reason: str = ""
    rows: tuple[Row, ...] = ()

    def differing(self) -> list[Row]:
        """The rows in which our value differs from the authors' value, according to `agrees`."""
        return [row for row in self.rows if not self.agrees(row)]

    def agrees(self, row: Row) -> bool:
        """Whether our value in `row` equals the authors' value.

        If `equal_to` names a source that states a value, only that value counts. Otherwise, it is
        enough that one source states an equal value. True if no source states a value.
        """
        chosen = row.equal_to or self.equal_to
        if chosen in row.sources:
            return row.equals(chosen)
        return not row.sources or any(row.equals(source) for source in row.sources)


def same(ours: object, theirs: object) -> bool:
    """Returns whether two values are equal. If `theirs` is the word ``same``, every value of `ours`
    counts as equal."""
    if theirs == SAME:
        return True
    if isinstance(ours, bool) or isinstance(theirs, bool):
        return ours is theirs
    first, second = _plain(ours), _plain(theirs)
    if isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=1e-9)
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, Sequence) and not isinstance(first, str) and isinstance(second, Sequence):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def _plain(value: object) -> object:
    """Normalize a value for comparison: numbers become floats, even ``5e-4``, which YAML reads as
    text; each run of spaces in text becomes one space."""
    if isinstance(value, int | float | str):
        try:
            return float(value)
        except ValueError:
            return " ".join(str(value).split())
    return value


@functools.cache
def methods(folder: Path = TABLE) -> dict[str, Method]:
    """Read all methods and return them by name, triggers first. Raises DataError for an invalid
    file."""
    found: dict[str, Method] = {}
    for group in GROUPS:
        for path in sorted((folder / group).glob("*.yaml")):
            for name, entry in _read(path).items():
                if name in found:
                    raise DataError(f"{path}: {name} is described twice")
                found[name] = _method(name, path, entry, found)
    return dict(
        sorted(
            found.items(), key=lambda item: (list(GROUPS.values()).index(item[1].group), item[0])
        )
    )


def _read(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(each, dict) for each in found.values()):
        raise DataError(f"{path} must map names of methods to their entries")
    return found


def _method(name: str, path: Path, entry: dict[str, Any], known: Mapping[str, Method]) -> Method:
    where = f"{path}: {name}"
    said = dict(entry)
    rows = [_row(each, where) for each in said.pop("rows", None) or ()]
    fields = {each.name for each in dataclasses.fields(Method)} - {"name", "group", "rows"}
    base = said.pop("base", None)
    _check_keys(said, fields, where)
    if base is not None:
        if base not in known:
            raise DataError(f"{where}: its base {base!r} must be an earlier entry")
        shared = {
            key: getattr(known[base], key) for key in ("title", "paper", "component", "golden")
        }
        said = {**shared, **said}
        rows = _overridden(known[base].rows, rows)
    missing = {"title", "status", "component"} - said.keys()
    if missing:
        raise DataError(f"{where} lacks {', '.join(sorted(missing))}")
    if len({row.key for row in rows}) < len(rows):
        raise DataError(f"{where} has two rows with the same key")
    return Method(name, GROUPS[path.parent.name], rows=tuple(rows), **said)


def _overridden(base: Sequence[Row], own: Sequence[Row]) -> list[Row]:
    """Returns the rows of `base`, then those of `own`. If both have a row with the same key, the
    row of `own` takes the place of the row of `base`."""
    new = {row.key: row for row in own}
    return [new.pop(row.key, row) for row in base] + list(new.values())


def _row(said: dict[str, Any], where: str) -> Row:
    kinds = [kind for kind in KINDS if kind in said]
    if len(kinds) != 1 or "ours" not in said:
        raise DataError(f"{where}: a row needs `ours` and one of {', '.join(KINDS)}, got {said}")
    key = str(said[kinds[0]])
    where = f"{where}, {key}"
    extra = {"ours", "paper", "code", "cost", "note", "token", "equal_to", kinds[0]}
    _check_keys(said, extra, where)
    paper = _claim(said.get("paper"), {"value", "section"}, where)
    code = _claim(said.get("code"), {"value", "source", "token"}, where)
    return Row(
        kinds[0], key, said["ours"], paper.get("value"), str(paper.get("section", "")),
        code.get("value"), _source(code, where) if code else None, float(said.get("cost", 1)),
        str(said.get("note", "")), str(said.get("token", "")), said.get("equal_to", ""),
    )  # fmt: skip


def _claim(said: Any, keys: set[str], where: str) -> dict[str, Any]:
    if said is None:
        return {}
    if not isinstance(said, dict) or said.keys() != keys:
        raise DataError(
            f"{where}: a quotation needs the keys {', '.join(sorted(keys))}, got {said}"
        )
    return said


def _source(code: dict[str, Any], where: str) -> Source:
    match = _SOURCE.fullmatch(str(code["source"]))
    if match is None:
        raise DataError(
            f"{where}: `source` must have the form owner/name@commit:path:line,"
            f" got {code['source']!r}"
        )
    return Source(
        match["repo"], match["commit"], match["path"], int(match["line"]), str(code["token"])
    )


def _check_keys(said: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = said.keys() - known
    if unknown:
        raise DataError(f"{where}: unknown key {', '.join(sorted(unknown))}")
