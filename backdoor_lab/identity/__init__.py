"""Versions of triggers, defenses, data sets, networks and stages; detects unrecorded code edits.

identity.json holds the version and the code hash of each of these components. The id of a cell
contains the versions of its components. If the code of a component differs from its hash in
identity.json, the id also contains the new hash, so that results of different code are never mixed
up. A component that is not in identity.json has version 0, and its hash is always in the id. A
component is named after its file (``spectral`` for every class in defenses/spectral.py), but the
name of a stage is not that of its file.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.identity import plugin_code, sources
from backdoor_lab.identity.sources import PACKAGE, ROOT, Unit, closure, code_hash, unit
from backdoor_lab.plugins.trust import trusted

log = logging.getLogger(__name__)
TABLE = ROOT / "identity.json"
FOLDERS = {"triggers": "attacks", "defenses": "defenses", "datasets": "data"}
ELSEWHERE = {("datasets", "source"): "exchange/source.py"}
"""The files of components that are not in the folder of their section."""
MODELS = {"models": ("training/models.py",)}
_BUILT = (
    "core/instantiate.py", "pipeline/cell.py", "pipeline/parts.py",
    "pipeline/classes.py:class_number",
)  # fmt: skip
_STAGES = "pipeline/stages"
STAGES = {
    "data": ("data/cache.py",),
    "prepare": (f"{_STAGES}/training.py:prepare_stage",),
    "poison": (
        f"{_STAGES}/training.py:poison_stage", f"{_STAGES}/imported.py:imported_stage",
    ),
    # Also covers retraining, and training by the attacker.
    "train": (
        f"{_STAGES}/training.py:train_stage", f"{_STAGES}/training.py:filtered",
        "training/callback.py",
    ),
    "attacked": (f"{_STAGES}/attacked.py:attacked_stage",),
    "measure": (f"{_STAGES}/training.py:measure_stage",),
    "train_accuracy": (f"{_STAGES}/training.py:train_accuracy_stage",),
    "transformed": (f"{_STAGES}/transformed.py:transformed_stage",),
    "extract": (f"{_STAGES}/defense.py:extract_stage",),
    "clean": (f"{_STAGES}/defense.py:clean_stage",),
    "autoencoder": (f"{_STAGES}/defense.py:autoencoder_stage",),
    "filter": (f"{_STAGES}/defense.py:filter_stage",),
    "context": (
        f"{_STAGES}/context.py:context_of", f"{_STAGES}/context.py:context_facts",
        f"{_STAGES}/context.py:clean_images",
    ),
    "repair": (f"{_STAGES}/context.py:repair_stage", f"{_STAGES}/defense.py:nothing_removed"),
    "scan_network": ("scan/networks.py:network_stage",),
    "scan_statistics": ("scan/statistics.py:mean_statistics", "scan/calibration.py:studentized"),
    "scan_canary": ("scan/canaries.py:plant", "scan/copies.py:scan_copies"),
    "record": (
        "pipeline/after_training.py", "pipeline/cell_pipeline.py", "pipeline/record.py",
        "defenses/curves.py",
    ),
}  # fmt: skip
"""For each stage, the definitions from which its code hash is computed (see `code_hash`), in
addition to the configuration code, which belongs to every stage."""

Mark = int | str
"""The version of a component, such as 1; if the code differs from identity.json, followed by the
code hash: ``1+0123456789``."""
HASH_SHOWN = 8
"""The number of digits of a code hash that tables show."""
Table = dict[str, dict[str, dict[str, Any]]]
"""Maps each section, then each component, to its ``version`` and ``hash``."""
Marks = dict[str, dict[str, Mark]]
"""Maps each section, then each component, to its version (see `Mark`)."""
_warned: set[str] = set()


def stage(name: str) -> Mark:
    """Returns the version of a stage (see `Mark`)."""
    return _mark("stages", name, roots_of("stages", name))


def model() -> Marks:
    """Returns the version (see `Mark`) of the code that builds networks."""
    return {"models": {name: _mark("models", name, roots_of("models", name)) for name in MODELS}}


def of(section: str, made: object) -> Marks:
    """Returns the versions (see `Mark`) of a trigger, a defense or a data set, and of the
    components it was built with."""
    if (plugin := plugin_code.plugin_of(made)) is not None:
        name, roots = plugin, plugin_code.own_code(plugin)
        names = {name: plugin_mark(name)}
    else:
        name, roots = _place(made)
        names = {name: _mark(section, name, roots)}
    here = f"{PACKAGE}.{FOLDERS[section]}."
    for part in vars(made).values():
        if type(part).__module__.startswith(here):
            name, inner = _place(part)
            # The hash already covers components that the configuration does not choose.
            if name in committed()[section] or inner[0] not in closure(roots):
                names[name] = _mark(section, name, inner)
    names |= {each: plugin_mark(each) for each in plugin_code.plugins_in(made)}
    return {section: names}


def plugin_mark(plugin: str) -> Mark:
    """Returns the version (see `Mark`) of a plug-in: always 0, and the hash of its code."""
    return f"0+{plugin_code.plugin_hash(plugin)}"


def plugins_of(marks: Marks) -> list[str]:
    """Returns the names of the plug-ins in `marks`."""
    names = {name for section in marks.values() for name in section}
    return sorted(name for name in names if trusted().plugin_of(name) is not None)


def modified(marks: Marks) -> list[str]:
    """Returns the names of the components, except plug-ins, whose code differs from
    identity.json."""
    found = {n for names in marks.values() for n, mark in names.items() if is_modified(mark)}
    return sorted(found - {*plugins_of(marks)})


def is_modified(mark: object) -> bool:
    """Whether `mark` contains a code hash. A mark contains a code hash if the code does not match
    the hash in identity.json."""
    return isinstance(mark, str) and "+" in mark


def warn(marks: Iterable[Marks]) -> None:
    """Log one warning per process that names the modified components."""
    names: dict[str, Mark] = {}
    for each in marks:
        plugins = plugins_of(each)  # They are not in identity.json, and the user knows.
        for section in each.values():
            found = {n: m for n, m in section.items() if is_modified(m) and n not in plugins}
            names |= {n: m for n, m in found.items() if n not in _warned}
    if not names:
        return
    _warned.update(names)
    by_version: dict[str, list[str]] = {}
    for name in sorted(names):
        by_version.setdefault(str(names[name]).split("+")[0], []).append(name)
    said = [
        f"code modified since version {version}: {', '.join(each)}"
        if version != "0"
        else f"code not in identity.json: {', '.join(each)}"
        for version, each in sorted(by_version.items(), reverse=True)
    ]
    log.warning("%s; results of this code are stored separately", "; ".join(said))


def details(marks: Marks) -> dict[str, dict[str, Any]]:
    """Returns the version and code hash of every component in `marks`, for a record."""
    return {
        section: {name: _detail(section, name, mark) for name, mark in names.items()}
        for section, names in marks.items()
    }


def _detail(section: str, name: str, mark: Mark) -> dict[str, Any]:
    version, _, found = str(mark).partition("+")
    return {"version": int(version), "hash": found or committed()[section][name]["hash"]}


def roots_of(section: str, name: str) -> tuple[Unit, ...]:
    """Returns the definitions from which the code hash of a component or a stage is computed (see
    `code_hash`)."""
    if section == "stages":
        return tuple(map(unit, STAGES[name] + _BUILT))
    return tuple(map(unit, MODELS.get(name, ()) or (file_of(section, name),)))


def file_of(section: str, name: str) -> str:
    """Returns the file of a trigger, a defense or a data set, relative to the package."""
    return ELSEWHERE.get((section, name), f"{FOLDERS[section]}/{name}.py")


def forget() -> None:
    """Clear all caches, so that source files and identity.json are read again."""
    _warned.clear()
    for cached in (committed, _mark):
        cached.cache_clear()
    sources.forget()


@functools.cache
def committed() -> Table:
    """Returns the content of identity.json. Raises DataError if the file cannot be read."""
    try:
        found = json.loads(TABLE.read_bytes())
        sections = (*FOLDERS, "models", "stages", "protocols")
        table = {section: dict(found[section]) for section in sections}
        for name, entry in (pair for each in table.values() for pair in each.items()):
            version = entry["version"]
            if type(version) is not int or version < 1 or not isinstance(entry["hash"], str):
                raise ValueError(f"{name} must have a hash and a version of at least 1")
        return table
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{TABLE} cannot be read ({type(error).__name__}: {error}). The file is part of the"
            " package: reinstall the package, or restore the file from version control"
        ) from error


@functools.cache
def _mark(section: str, name: str, roots: tuple[Unit, ...]) -> Mark:
    found = code_hash(roots)
    # A file of the same name in another place is a different component.
    listed = name in committed()[section] and roots == roots_of(section, name)
    entry = committed()[section][name] if listed else {}
    version = int(entry.get("version", 0))
    return version if found == entry.get("hash") else f"{version}+{found}"


def _place(made: object) -> tuple[str, tuple[Unit, ...]]:
    """Returns the name of an object's component, and the definitions from which its code hash is
    computed (see `code_hash`)."""
    kind = type(made)
    found = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if found is None:
        raise ConfigError(
            f"{kind.__module__}.{kind.__name__} has no source file, so edits to it cannot be"
            " detected: define it in a file"
        )
    path = Path(found).resolve()
    return path.stem, ((path, None),)
