"""The tables of multirun_reports/paper that show the cells of the published report."""

from __future__ import annotations

import re

from backdoor_lab.tables import reference
from tests.documents.cells import DIGITS, SHARES, Cell, cells, figure, listed, mean, sorted_by
from tests.documents.markers import markdown, table

CLASSES = 10
ATTACK = ("Trigger", "Target", "Ratio")
CELLS = {"trigger": ("pixel", "pattern"), "target": ("bird", "dog", "horse"),
         "ratio": ("5%", "10%")}  # fmt: skip
REFERENCE = {"Nat1": "nat1", "ASR1": "asr1", "#Pois Left": "pois_left",
             "Nat2": "nat2", "ASR2": "asr2"}  # fmt: skip
READ = ("Protocol", "Trigger", "Defense", "#Pois", "Nat1", "ASR1", "AUROC", "#Pois Left", "Nat2",
        "ASR2")  # fmt: skip


def the_twelve(sweep: str, **wanted: object) -> list[Cell]:
    """The twelve cells of the published report, in the order of its tables."""
    found = sorted_by(cells(sweep, **wanted), **CELLS)
    assert len({tuple(cell[name] for name in ATTACK) for cell in found}) == len(found) == 12
    return found


def beside_report(found: list[Cell], *more: str, digits: int | None = None) -> str:
    """A table with a line for each cell, and the report's figures in parentheses. The report has no
    figures for the columns `more`. Shares have `digits` decimals if given."""
    short = dict.fromkeys(SHARES, digits)
    columns = sorted((*REFERENCE, *more), key=list(DIGITS).index)
    rows = []
    for cell in found:
        known = reference.lookup(cell["Trigger"], cell["Target"], float(cell["Ratio"][:-1]) / 100)
        assert known is not None
        said = {c: f" ({figure(known[name], c, short.get(c))})" for c, name in REFERENCE.items()}
        figures = [figure(cell[c], c, short.get(c)) + said.get(c, "") for c in columns]
        rows.append([*(cell[name] for name in ATTACK), *figures])
    return markdown([*ATTACK, *columns], rows)


@table("report_airbench")
def _airbench() -> str:
    return beside_report(the_twelve("paper/report_airbench", defense="spectral"), "#Pois", "AUROC")


@table("in_short")
def _airbench_in_short() -> str:
    """The cells of `report_airbench` with one column for the attack and one decimal, in few
    bytes."""
    text = beside_report(the_twelve("paper/report_airbench", defense="spectral"), digits=1)
    text = re.sub(r"(?m)^\| (\w+) \| (\w+) \| (\S+)", r"| \1 \2 \3", text)
    text = text.replace("| Trigger Target Ratio |", "| Attack |")
    text = text.replace("| --- | --- | ---", "| -").replace("---:", "-:")
    return re.sub(r" ?\| ?", "|", text)


@table("report_resnet18")
def _resnet18() -> str:
    return beside_report(the_twelve("paper/reproduction", defense="spectral"), "#Pois", "AUROC")


@table("airbench_every_label")
def _every_label() -> str:
    found = the_twelve("paper/report_airbench_all")
    return listed(found, *ATTACK, "Removed", "#Pois Left", "Nat2", "ASR2")


@table("airbench_without_epsilon")
def _without_epsilon() -> str:
    found = the_twelve("paper/report_airbench", defense="spectral_every_class")
    return listed(found, *ATTACK, "Defense", "Removed", "AUROC", "#Pois Left", "Nat2", "ASR2")


@table("airbench_group3")
def _group3() -> str:
    return listed(the_twelve("paper/report_airbench_group3"), *ATTACK, "Layer", "AUROC",
                  "#Pois Left")  # fmt: skip


def _ratios(sweep: str) -> str:
    found = [c for c in cells(sweep, defense="spectral") if c["ASR2"] is not None]
    rows = []
    for trigger, ratio in dict.fromkeys((c["Trigger"], c["Ratio"]) for c in found):
        group = [c for c in found if (c["Trigger"], c["Ratio"]) == (trigger, ratio)]
        figures = (mean(group, "ASR1", 1), mean(group, "AUROC", 3), mean(group, "ASR2", 1))
        rows.append([trigger, ratio, len(group), *figures])
    return markdown(["Trigger", "Ratio", "Seeds", "ASR1", "AUROC", "ASR2"], rows)


@table("ratio_of_set")
def _ratio_of_set() -> str:
    return _ratios("paper/ratios_literal")


@table("ratio_of_class")
def _ratio_of_class() -> str:
    return _ratios("paper/ratios")


@table("readings")
def _readings() -> str:
    """Results under four interpretations of "10 %", and how many poisoned images are left on
    average if images are removed at random."""
    names = ("group13", "group13_literal", "madry2018", "backdoorbench")
    head = ["Protocol", "Trigger", "Target", "#Pois", "Removed", "ASR1", "AUROC", "#Pois Left",
            "`random` leaves", "ASR2"]  # fmt: skip
    rows = []
    for name in names:
        found = cells(f"paper/readings_{name}", protocol=name, defense="spectral", ratio="10%")
        order = {"trigger": ("pattern", "pixel"), "target": ("bird", "dog")}
        for cell in sorted_by(found, **order):
            told = {h: figure(cell[h], h) for h in head[3:] if h != head[8]}
            told[head[8]] = f"{_random_leaves(cell):.0f}"
            told |= {h: str(cell[h]) for h in ("Trigger", "Target")} | {"Protocol": f"`{name}`"}
            rows.append([told[h] for h in head])
    return markdown(head, rows)


def _random_leaves(cell: Cell) -> float:
    """The number of poisoned images left on average if as many images are removed at random."""
    said = cell["record"]["protocol"]
    if said["removal_budget"].endswith("%"):
        share = float(said["removal_budget"][:-1]) / 100
    else:
        removed = cell["Removed"] / (1 if said["filter_scope"] == "target" else CLASSES)
        share = removed / (cell["record"]["counts"]["n_clean"] / CLASSES + cell["#Pois"])
    return float(cell["#Pois"] * (1 - share))


@table("readings_controls")
def _readings_controls() -> str:
    found = [c for name in ("group13", "group13_literal")
             for c in _by_control(cells(f"paper/readings_{name}", ratio="10%"))]  # fmt: skip
    return listed(found, *READ, code=["Protocol"])


@table("readings_controls_5")
def _readings_controls_5() -> str:
    return listed(_by_control(cells("paper/readings_group13_literal_5")), *READ, code=["Protocol"])


def _by_control(found: list[Cell]) -> list[Cell]:
    return sorted_by(found, trigger=("pattern", "pixel"), defense=("spectral", "random", "oracle"))


@table("report_misses")
def _misses() -> str:
    """The cells that do not reproduce the report. Only figures that differ from it are shown."""
    rows = []
    for c in the_twelve("paper/reproduction", defense="spectral"):
        change = c["Nat2"] - c["Nat1"]
        missed = (
            (c["ASR1"], 2, c["ASR1"] < 79), (c["#Pois Left"], 0, c["#Pois Left"] > 38),
            (c["ASR2"], 2, c["ASR2"] > 3), (change, 2, change < 0),
        )  # fmt: skip
        places = [f"{value:.{digits}f}" if said else "–" for value, digits, said in missed]
        rows.append([*(c[name] for name in ATTACK), *places])
    head = ["ASR1 under 79", "More than 38 left", "ASR2 over 3", "Nat2 - Nat1 under 0"]
    return markdown([*ATTACK, *head], rows)


@table("nearer")
def _nearer() -> str:
    """How many of 500 poisoned images two filters leave at three layers. One line per network."""
    networks = (
        ("readings_group13", "width 16, recipe `small`: 6 epochs", "pattern", "bird"),
        ("width", "width 64, the same recipe", "pattern", "bird"),
        ("layers_horse", "width 16, 22 epochs", "pattern", "horse"),
        ("crop", "the same, 60 epochs with crop and flip", "pattern", "horse"),
    )
    layers = ("penultimate", "layer4", "layer4.0")
    rows = []
    for sweep, name, trigger, target in networks:
        found = cells(f"paper/{sweep}", trigger=trigger, target=target, ratio="10%")
        left = {(c["Defense"], c["Layer"]): c["#Pois Left"] for c in found}
        (figures,) = {(figure(c["Nat1"], "Nat1"), figure(c["ASR1"], "ASR1")) for c in found}
        places = [
            left.get((d, layer), "") for d in ("spectral", "spectral_plus") for layer in layers
        ]
        rows.append([f"[{name}]({sweep})", trigger, target, *figures, *places])
    head = ["`spectral` `penultimate`", "`layer4`", "`layer4.0`",
            "`spectral_plus` `penultimate`", "`layer4`", "`layer4.0`"]  # fmt: skip
    return markdown(["Network", "Trigger", "Target", "Nat1", "ASR1", *head], rows)


@table("physical")
def _physical() -> str:
    """ASR1 on transformed images, and Nat1 averaged over the networks."""
    columns = ("jpeg25", "brightness0.5", "brightness1.5", "blur1", "shift1", "shift2",
               "rescale0.5", "noise16")  # fmt: skip
    found = sorted(cells("paper/physical"), key=lambda cell: str(cell["Trigger"]))
    rows = [[f"`{cell['Trigger']}`", *_under([cell], "asr1", columns)] for cell in found]
    rows.append(["Nat1, mean", *_under(found, "nat1", columns)])
    return markdown(["Trigger", "untouched", *(f"`{name}`" for name in columns)], rows)


def _under(found: list[Cell], name: str, columns: tuple[str, ...]) -> list[str]:
    records = [cell["record"] for cell in found]
    values = [
        [r[name] for r in records],
        *([r["under"][c][name] for r in records] for c in columns),
    ]
    return [f"{100 * sum(each) / len(each):.1f}" for each in values]
