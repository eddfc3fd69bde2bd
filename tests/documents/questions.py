"""The tables of multirun_reports/paper/questions.md."""

from __future__ import annotations

import re

from tests.documents.cells import SWEEPS, Cell, cells, figure, mean, the
from tests.documents.markers import markdown, table
from tests.documents.paper import the_twelve

#: Lines of a table: what the line shows, and the sweep and the choices that select its cells.
FAILURES: list[tuple[str, str, dict[str, object]]] = [
    ("half of the class is poison", "paper/readings_group13_literal",
     {"trigger": "pattern", "ratio": "10%"}),
    ("the class varies more than the poison shifts it", "paper/readings_group13",
     {"trigger": "pattern"}),
    ("the same, longer training", "paper/reproduction",
     {"trigger": "pattern", "target": "horse", "ratio": "10%"}),
    ("true labels, `sinusoid`", "attacks/photographs", {"trigger": "sinusoid", "ratio": "50%"}),
    ("true labels, `reflection`", "attacks/photographs",
     {"trigger": "reflection", "ratio": "50%"}),
    ("an attack made against it, `adaptive_blend`", "attacks/photographs",
     {"trigger": "adaptive_blend", "ratio": "50%"}),
    ("for comparison, `blended`", "attacks/photographs", {"trigger": "blended", "ratio": "50%"}),
    ("training mixes images (mixup), pixel", "defenses/augmentation",
     {"trigger": "pixel", "recipe": "demo_mixup"}),
    ("training mixes images (mixup), pattern", "defenses/augmentation",
     {"trigger": "pattern", "recipe": "demo_mixup"}),
    ("for comparison, no augmentation, pattern", "defenses/augmentation",
     {"trigger": "pattern", "recipe": "demo"}),
    ("the backdoor is not learned", "paper/report_airbench",
     {"trigger": "pixel", "target": "dog", "ratio": "5%"}),
]  # fmt: skip
WITHOUT_POISON = (
    ("pattern", "attacks/photographs", "50%"), ("blended", "attacks/photographs", "50%"),
    ("sinusoid", "attacks/photographs", "50%"), ("pattern", "attacks/embedded", "30%"),
    ("narcissus", "attacks/embedded", "30%"),
)  # fmt: skip
LOSSES = ("defenses/embedded", "defenses/photographs")
#: Overrides that determine where and how fast a command runs, but not what it computes.
ASIDE = re.compile(r" (hydra\.(sweep\.dir|launcher\.\S+?)|hydra/launcher|trainer\.\w+|store\.root"
                   r"|estimate_first)=\S+")  # fmt: skip


@table("questions_without_poison")
def _without_poison() -> str:
    """ASR of the same trigger on networks trained with and without poison."""
    rows = []
    for trigger, sweep, ratio in WITHOUT_POISON:
        clean, poisoned = (the(sweep, trigger=trigger, ratio=each) for each in ("0%", ratio))
        data = clean["record"]["choices"]["dataset"]
        rows.append([f"`{trigger}`", _link(sweep), data, poisoned["#Pois"],
                     figure(clean["ASR1"], "ASR1"), figure(poisoned["ASR1"], "ASR1")])  # fmt: skip
    head = ["Trigger", "Sweep", "Data", "#Pois", "ASR without poison", "ASR with poison"]
    return markdown(head, rows, right="lllrrr")


@table("questions_loss")
def _loss() -> str:
    """How well a low loss identifies poison: the AUROC of `abl`, and whether the trigger is
    learned."""
    rows = []
    for sweep in LOSSES:
        for trigger in ("pixel", "pattern"):
            found = cells(sweep, trigger=trigger, defense="abl", ratio="10%")
            recipe = found[0]["record"]["config"]["recipe"]
            rows.append([trigger, _link(sweep), recipe["epochs"], len(found), mean(found, "ASR1"),
                         mean(found, "AUROC")])  # fmt: skip
    head = ["Trigger", "Sweep", "Epochs of the victim", "Seeds", "ASR1", "AUROC of a low loss"]
    return markdown(head, rows)


@table("questions_fit")
def _fit() -> str:
    """The share of poison in the training set, and the share of images that the network does not
    fit."""
    rows = []
    for cell in the_twelve("paper/report_airbench", defense="spectral"):
        share = 100 * cell["#Pois"] / cell["record"]["counts"]["n_train"]
        wrong = 100 * (1 - cell["record"]["train_accuracy1"])
        rows.append([cell["Trigger"], cell["Target"], cell["Ratio"], figure(cell["ASR1"], "ASR1"),
                     f"{share:.2f}", f"{wrong:.2f}"])  # fmt: skip
    head = ["Trigger", "Target", "Ratio", "ASR1", "Poison, % of the training set",
            "Training images not fitted, %"]  # fmt: skip
    return markdown(head, rows)


@table("questions_direction")
def _direction() -> str:
    """A table of networks and layers, sorted by the ratio of variances that `separation`
    printed."""
    text = (SWEEPS / "paper/features.md").read_text(encoding="utf-8")
    rows = [
        [section.partition("\n")[0], *_facts(line)]
        for section in text.split("\n## ")[1:]
        for line in _printed(section)
        if line["protocol.layer"] in ("penultimate", "layer4.0")
    ]
    head = ["Sweep", "Attack", "Ratio", "Layer", "along δ / own largest", "cosine", "AUROC"]
    return markdown(head, [[f"[{r[0]}]({r[0]})", *r[1:]] for r in sorted(rows, key=_ratio)])


def _printed(section: str) -> list[dict[str, str]]:
    """The lines of the table that `separation` printed, from a section of features.md."""
    for block in section.split("\n\n"):
        lines = [re.split(r"(?<!\\)\|", line) for line in block.splitlines()]
        head, *rest = ([text.strip() for text in line] for line in lines)
        if "Own largest" in head:
            return [dict(zip(head, line, strict=True)) for line in rest[1:]]
    return []


def _ratio(row: list[str]) -> float:
    return float(row[4])


def _facts(line: dict[str, str]) -> list[str]:
    return [f"{line['trigger']} → {line['target']}", line["ratio"], f"`{line['protocol.layer']}`",
            line["Ratio"], line["\\|cos\\|"], line["AUROC top"]]  # fmt: skip


@table("questions_failures")
def _failures() -> str:
    """Cells in which the spectral filter fails. Figures are means over seeds."""
    rows = []
    for case, sweep, wanted in FAILURES:
        found = cells(sweep, defense="spectral", **wanted)
        rows.append([case, _link(sweep), found[0]["record"]["choices"]["dataset"],
                     found[0]["record"]["choices"]["model"], len(found), mean(found, "#Pois"),
                     mean(found, "ASR1", 1), mean(found, "AUROC", 2), mean(found, "#Pois Left"),
                     _by_chance(found), _asr2(found)])  # fmt: skip
    head = ["Case", "Sweep", "Data", "Network", "Seeds", "#Pois", "ASR1", "AUROC", "#Pois Left",
            "By chance", "ASR2"]  # fmt: skip
    return markdown(head, rows, right="llllrrrrrrr")


def _asr2(found: list[Cell]) -> str:
    return "" if found[0]["ASR2"] is None else mean(found, "ASR2", 1)


def _by_chance(found: list[Cell]) -> str:
    """The number of poisoned images left on average if as many images of the target class are
    removed at random."""
    cell = found[0]
    counts = cell["record"]["counts"]
    inside = counts["n_train"] == counts["n_clean"]  # true labels
    size = counts["n_clean"] / 10 + (0 if inside else cell["#Pois"])
    return f"{cell['#Pois'] * (1 - cell['Removed'] / size):.0f}"


@table("questions_commands")
def _commands() -> str:
    """The commands of the cells shown in the document, without settings that concern the
    machine."""
    shown = [(sweep, cells(sweep, defense="spectral", **w)) for _, sweep, w in FAILURES]
    shown += [(sweep, cells(sweep, trigger=t, ratio=r)) for t, sweep, r in WITHOUT_POISON]
    shown += [(sweep, cells(sweep, defense="abl", ratio="10%")) for sweep in LOSSES]
    said: dict[str, dict[str, None]] = {}
    for sweep, found in shown:
        commands = (ASIDE.sub("", cell["record"]["run"]["command"]) for cell in found)
        said.setdefault(sweep, {}).update(dict.fromkeys(commands))
    lines = [f"- {_link(sweep)}: {', '.join(f'`{c}`' for c in sorted(said[sweep]))}\n"
             for sweep in sorted(said)]  # fmt: skip
    return "".join(lines)


def _link(sweep: str) -> str:
    name = sweep.removeprefix("paper/")
    return f"[{name}]({name if name != sweep else f'../{sweep}'})"
