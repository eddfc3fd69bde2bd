"""The tables of all triggers and all defenses, generated from the code for the guides in their
folders."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.defenses.base import OracleControl, SampleFilter
from backdoor_lab.defenses.networks import ModelRepair
from backdoor_lab.defenses.none import NoDefense
from backdoor_lab.defenses.random import Random
from backdoor_lab.fidelity.table import methods as fidelity
from backdoor_lab.fidelity.text import status
from tests.documents.cells import cells
from tests.documents.markers import markdown, table

CONF = Path(__file__).resolve().parents[2] / "conf"
CITED = re.compile(r'(?P<authors>[^".:;]+), "(?P<title>[^"]+)", (?P<where>[^.;(]*?\d{4})')
MODES = {"all_to_one": "all to one", "all_to_all": "all to all", "clean": "clean"}


def methods(group: str) -> Iterator[tuple[str, type, dict[str, Any]]]:
    """Yield the name, the class and the configuration of every method in the folder
    conf/`group`."""
    for path in sorted((CONF / group).glob("*.yaml")):
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
        module, _, name = said["_target_"].rpartition(".")
        yield path.stem, getattr(importlib.import_module(module), name), said


def paper(kind: type) -> str:
    """The first paper cited in the docstring of a class: first author, venue and year."""
    found = CITED.search(" ".join((inspect.getdoc(kind) or "").split()))
    if found is None:
        return "–"
    authors = re.sub(r"^.* of ", "", found["authors"]).replace(" and ", ", ").split(", ")
    after = "after " if found["authors"].startswith("After ") else ""
    more = f" and {authors[1]}" if len(authors) == 2 else " et al."
    return f"{after}{authors[0].strip()}{more if len(authors) > 1 else ''}, {found['where']}"


def says(kind: type) -> str:
    """The first sentence of the docstring of a class."""
    text = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
    return text.partition(". ")[0].rstrip(".")


@table("triggers")
def _triggers() -> str:
    rows = []
    for name, kind, said in methods("trigger"):
        assert issubclass(kind, Trigger)
        labels = MODES[kind.label_mode] + ", one source class" * kind.source_specific
        what = _what("trigger", kind, said)
        rows.append([f"[`{name}`]({_file(kind)})", what, paper(kind), labels,
                     f"{kind.cover_rate:g}" if kind.cover_rate else "",
                     str(kind.threat_model), _trains(kind),
                     _seconds(name), _fidelity("trigger", name)])  # fmt: skip
    head = ["`trigger=`", "What it does", "Paper", "Labels", "Covers", "Attacker",
            "Attacker trains", "Seconds", "Fidelity"]  # fmt: skip
    return markdown(head, rows, right="llllrllrl")


def _file(kind: type) -> str:
    return f"{kind.__module__.rpartition('.')[2]}.py"


def _trains(kind: type[Trigger]) -> str:
    needs = ["a surrogate"] * kind.uses_surrogate
    needs += ["the trigger"] * (kind.needs_preparing and kind.prepare is not Trigger.prepare)
    return " and ".join(needs)


def _seconds(name: str) -> str:
    """The total seconds of a trigger's stages before the victim is trained, in the slowest
    record."""
    stages = ("surrogate", "prepare", "poison")
    runs = [cell["record"]["run"]["seconds"] for cell in cells("attacks/embedded", trigger=name)]
    found = [sum(run.get(stage) or 0 for stage in stages) for run in runs]
    return _brief(max(found)) if found else ""


@table("defenses")
def _defenses() -> str:
    rows = []
    for name, kind, said in methods("defense"):
        about = (_kind(kind), _what("defense", kind, said), paper(kind))
        needs = (_sees(kind), _clean(kind, said), _finds(kind), _cost(name))
        rows.append([f"[`{name}`]({_file(kind)})", *about, *needs, _fidelity("defense", name)])
    head = ["`defense=`", "Kind", "What it does", "Paper", "Sees", "Clean images",
            "Finds classes", "Seconds", "Fidelity"]  # fmt: skip
    return markdown(head, rows, right="lllllllrl")


def _kind(kind: type) -> str:
    if issubclass(kind, (OracleControl, NoDefense, Random)):
        return "control"
    return "repair" if issubclass(kind, ModelRepair) else "filter"


def _what(group: str, kind: type, said: dict[str, Any]) -> str:
    """The first sentence of a class's docstring. If several presets use the class, the settings in
    which they differ are added."""
    presets = [each for _, other, each in methods(group) if other is kind]
    told = ", ".join(
        f"{k} {v}" for k, v in said.items()
        if k not in ("_target_", "name", "like") and v is not None
        and any(each.get(k) != v for each in presets)
    )  # fmt: skip
    return says(kind) + (f" ({told})" if told else "")


def _sees(kind: type) -> str:
    if issubclass(kind, OracleControl):
        return "the poison"
    if _kind(kind) == "control":
        return "class sizes" if issubclass(kind, Random) else "nothing"
    return "images, network" if hasattr(kind, "needs_clean") else "features"


def _clean(kind: type, said: dict[str, Any]) -> str:
    """Whether the method requires held-out clean images."""
    if _kind(kind) == "control":
        return ""
    arguments = {k: v for k, v in said.items() if k not in ("_target_", "name", "like")}
    needed = [k for k in kind(**_own(kind, arguments)).requires() if k.startswith("clean")]
    return "yes" if needed else ""


def _own(kind: type, arguments: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(kind).parameters
    return {k: v for k, v in arguments.items() if k in known}


def _finds(kind: type) -> str:
    """Whether a filter has a rule to select suspicious classes."""
    own = issubclass(kind, SampleFilter) and (
        kind.suspicious_classes is not SampleFilter.suspicious_classes
    )
    return "yes" if own and _kind(kind) == "filter" else ""


def _cost(name: str) -> str:
    """The median seconds of the stage of a filter or a repair."""
    runs = [cell["record"]["run"]["seconds"] for cell in cells("defenses/embedded", defense=name)]
    if not runs:
        return ""
    found = sorted(run.get("repair", run.get("filter")) for run in runs)
    return _brief(found[len(found) // 2])


def _fidelity(group: str, name: str) -> str:
    """How closely a method follows its paper or its authors' code, from the fidelity table."""
    (found,) = (each for each in fidelity().values() if (each.group, each.name) == (group, name))
    return status(found)


def _brief(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:.0f}"
