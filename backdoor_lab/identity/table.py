"""Compares the code with identity.json, and updates identity.json."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import digest, write_atomic
from backdoor_lab.core.errors import ConfigError, unknown
from backdoor_lab.identity import (
    FOLDERS,
    HASH_SHOWN,
    MODELS,
    STAGES,
    TABLE,
    Table,
    committed,
    file_of,
    roots_of,
)
from backdoor_lab.identity.sources import PACKAGE, code_hash, conf_dir, files_of

GROUPS = {"triggers": "trigger", "defenses": "defense", "datasets": "dataset"}
Key = tuple[str, str]


def current() -> Table:
    """Returns what identity.json would contain for the current code, with the versions
    unchanged."""
    names: dict[str, Iterable[str]] = {section: _chosen(section) for section in FOLDERS}
    names |= {"models": MODELS, "stages": STAGES}
    found: Table = {
        section: {name: _entry(section, name) for name in each} for section, each in names.items()
    }
    return found | {"protocols": {name: _protocol(path) for name, path in protocols().items()}}


def differing() -> dict[Key, str]:
    """Maps each component that differs from identity.json, as (section, name), to a description of
    the difference."""
    now, then = current(), committed()
    found = {}
    for section, entries in now.items():
        for name in sorted(entries.keys() | then[section].keys()):
            new, old = entries.get(name), then[section].get(name)
            if new != old:
                found[section, name] = _difference(section, new, old) + _label(section, new, old)
    return found


def files(names: Sequence[str]) -> list[str]:
    """For each named component, returns one line that lists the files whose code is hashed.
    Protocols are omitted."""
    lines = []
    for section, name in _keys(names, current()):
        if section != "protocols":
            lines.append(f"{name} ({section}): {', '.join(files_of(roots_of(section, name)))}")
    return lines


def record(names: Sequence[str], *, new_version: bool) -> list[str]:
    """Write the current code hashes of `names` to identity.json. The name ``all`` means every
    component that differs. With `new_version`, the version of each of these components that is
    already in the file increases by 1. Returns one line per entry written.

    Raises ConfigError for an unknown name. Without `new_version`, also raises ConfigError for a
    protocol whose meaning changed although its version did not.
    """
    now = current()
    wanted = differing() if "all" in names else _keys(names, now)
    table: Table = {section: dict(entries) for section, entries in committed().items()}
    lines = [_write(key, now, table, new_version) for key in sorted(wanted)]
    write_atomic(TABLE, _text(table).encode())
    committed.cache_clear()
    return lines


def protocols() -> dict[str, Path]:
    """Returns the file of each protocol, by name."""
    return {path.stem: path for path in sorted(conf_dir().glob("protocol/*.yaml"))}


def _keys(names: Sequence[str], now: Table) -> list[Key]:
    keys = sorted({(section, n) for table in (now, committed()) for section in table
                   for n in table[section]})  # fmt: skip
    known = {name for _, name in keys}
    for name in names:
        if name not in known:
            raise unknown("component", name, sorted(known), ", the keys of identity.json")
    return [key for key in keys if key[1] in names]


def _text(table: Table) -> str:
    """Returns JSON with one component per line, so that separate edits rarely conflict."""
    sections = {
        section: ",\n".join(
            f"  {json.dumps(name)}: {json.dumps(entries[name], sort_keys=True)}"
            for name in sorted(entries)
        )
        for section, entries in sorted(table.items())
    }
    said = [f' "{section}": {{\n{lines}\n }}' for section, lines in sections.items()]
    return "{\n" + ",\n".join(said) + "\n}\n"


def _write(key: Key, now: Table, table: Table, new_version: bool) -> str:
    section, name = key
    entry = now[section].get(name)
    if entry is None:
        del table[section][name]
        return f"{name} ({section}): removed"
    same = table[section].get(name, {}).get("version") == entry["version"]
    if section == "protocols" and same and not new_version and entry != table[section][name]:
        raise ConfigError(
            f"the meaning of protocol {name} changed, but tables would still print it as version"
            f" {entry['version']}: record a new version (--raise {name})"
        )
    if new_version and name in table[section]:
        entry["version"] = table[section][name]["version"] + 1
        if section == "protocols":
            _set_version(protocols()[name], entry["version"])
    table[section][name] = entry
    return f"{name} ({section}): version {entry['version']}"


def _chosen(section: str) -> set[str]:
    """Returns the names of the components in the configuration files; a component is named after
    the module of its class."""
    pattern = re.compile(rf"_target_: {PACKAGE}\.(\w+)\.(\w+)\.")
    files = conf_dir().glob("*/*.yaml")  # conf/dataset/poisoned.yaml names a trigger, too.
    found = {pair for path in files for pair in pattern.findall(path.read_text())}
    return {name for folder, name in found if file_of(section, name) == f"{folder}/{name}.py"}


def _entry(section: str, name: str) -> dict[str, Any]:
    version = committed()[section].get(name, {"version": 1})["version"]
    return {"version": version, "hash": code_hash(roots_of(section, name))}


def _protocol(path: Path) -> dict[str, Any]:
    """Returns the version in a protocol file, and a hash of all its other content."""
    import yaml

    said = yaml.safe_load(path.read_text())
    meaning = {key: value for key, value in said.items() if key not in ("name", "version")}
    return {"version": said.get("version"), "hash": digest(meaning, 16)}


def _set_version(path: Path, version: int) -> None:
    text, found = re.subn(r"(?m)^version: \d+", f"version: {version}", path.read_text())
    if found != 1:
        raise ConfigError(f"{path} must contain exactly one line such as `version: 1`")
    path.write_text(text)


def _label(section: str, new: dict[str, Any] | None, old: dict[str, Any] | None) -> str:
    """Returns the version by which tables label the present code of a component, in brackets."""
    if new is None or section == "protocols":
        return ""
    return f" ({0 if old is None else old['version']}+{new['hash'][:HASH_SHOWN]} in tables)"


def _difference(section: str, new: dict[str, Any] | None, old: dict[str, Any] | None) -> str:
    if new is None:
        return "was removed"
    if old is None:
        return "is new"
    if section != "protocols":
        return f"was modified since version {old['version']}"
    if new["version"] == old["version"]:
        return f"changed its meaning since version {old['version']}: record a new version (--raise)"
    return f"has version {new['version']}, but version {old['version']} is recorded"
