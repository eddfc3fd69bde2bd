"""README and the documents beside the records: every link leads somewhere, and the figures of
their tables are those of the committed records."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from scipy import stats

from backdoor_lab.attacks.poison import poison
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.store import Store
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.results.frozen import RECORDS, frozen_lines
from backdoor_lab.tables import reference

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "multirun_reports"
REPORT = SWEEPS / "paper" / "README.md"
DEMO = SWEEPS / "demo" / "README.md"
DOCUMENTS = [ROOT / "README.md", *sorted(SWEEPS.rglob("README.md"))]
Table = tuple[list[str], list[str], list[list[str]]]
KEYS = ("Protocol", "Trigger", "Target", "Ratio", "Seed", "Layer", "Defense")
LOOKS = re.compile(r"(\w+) (\d+%) → (\w+) \((\d+), ASR1 (\d+)\)")
RECKONED = {"`random` leaves"}
DIGITS = {"#Pois": 0, "Removed": 0, "Nat1": 2, "ASR1": 2, "AUROC": 3, "#Pois Left": 0, "Nat2": 2,
          "ASR2": 2}  # fmt: skip
REFERENCE = {"Nat1": "nat1", "ASR1": "asr1", "#Pois Left": "pois_left",
             "Nat2": "nat2", "ASR2": "asr2"}  # fmt: skip


def _section(document: Path, heading: str) -> list[Table]:
    """The tables of a section: sweeps linked in the text above, columns, rows."""
    text = f"\n{document.read_text()}".split(f"\n{heading}\n")[1]
    level = heading.partition(" ")[0]
    blocks = re.split(r"(?m)^((?:\|.*\n)+)", re.split(rf"\n#{{1,{len(level)}}} ", text)[0])
    found = []
    for above, table in zip(blocks[::2], blocks[1::2], strict=False):
        links = re.findall(r"\]\(([\w./]+)\)", above)
        folders = [(document.parent / link).resolve() for link in links]
        kept = [each for each in folders if (each / RECORDS).is_file()]
        sweeps = [str(each.relative_to(SWEEPS)) for each in kept]
        head, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
        found.append((sweeps, head, rows))
    return found


def _records(sweeps: Sequence[str]) -> list[dict[str, Any]]:
    return [record for name in sweeps for record in _of(name)]


@functools.cache
def _of(sweep: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in frozen_lines(SWEEPS / sweep)]


def _key(record: dict[str, Any], column: str) -> str:
    if column == "Layer":
        return str(record["config"]["protocol"]["layer"])
    value = record["choices"][column.lower()]
    return f"{100 * value:g}%" if column == "Ratio" else str(value)


def _value(record: dict[str, Any], column: str) -> float:
    counts, detection = record["counts"], record["detection"] or {}
    said = {"#Pois": counts["n_poisoned"], "#Pois Left": counts["pois_left"],
            "Removed": counts["n_removed"],
            "AUROC": detection.get("auroc")}  # fmt: skip
    return said[column] if column in said else 100 * record[column.lower()]


def _text(values: list[float], column: str) -> str:
    if len(values) == 1 or column == "#Pois":
        return f"{values[0]:.{DIGITS[column]}f}"
    digits = max(DIGITS[column], 1)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


LOOK = _section(REPORT, "## Where the filter looks")
LAYERS = [table for table in LOOK if table[1][0] == "`defense`"]
TABLES = [
    *_section(ROOT / "README.md", "## Results")[:1],
    *_section(DEMO, "## The cells"),
    *_section(DEMO, "## Beside the controls"),
    *_section(DEMO, "## On three seeds"),
    *_section(REPORT, "## With a faster network"),
    *_section(REPORT, "## ResNet18, a quarter as wide")[:1],
    *_section(REPORT, "## Which reading of the report gives its tables"),
    *(table for table in LOOK if "ASR2" in table[1]),
]  # fmt: skip


@pytest.mark.parametrize("table", TABLES, ids=[" ".join(t[0]) for t in TABLES])
def test_every_figure_of_the_results_is_that_of_its_records(
    table: Table,
) -> None:
    sweeps, columns, rows = table
    plain = "Defense" not in columns
    records = [r for r in _records(sweeps) if not plain or r["choices"]["defense"] == "spectral"]
    assert len(rows) > 3
    assert set(columns) <= {*KEYS, *DIGITS, *RECKONED}
    keys = [c for c in columns if c in KEYS]
    for row in rows:
        line = dict(zip(columns, row, strict=True))
        told = {c: line[c].strip("`") for c in keys if line[c] != "any"}
        cells = [r for r in records if all(_key(r, c) == text for c, text in told.items())]
        if len(told) < len(keys):
            cells = [r for r in cells if _key(r, "Layer") == _key(cells[0], "Layer")]
        seeds = [r["choices"]["seed"] for r in cells]
        assert cells, row
        assert len(seeds) == len(set(seeds)), row
        for column in set(columns) - set(keys) - RECKONED:
            figure = re.sub(r" \(.*\)", "", line[column])
            assert figure == _text([_value(r, column) for r in cells], column), (row, column)


@pytest.mark.parametrize("sweep", ["demo/report", "demo/seeds", "demo/seeds_bf16"])
def test_every_cell_of_the_demo_shows_attack_and_defense(sweep: str) -> None:
    cells = _of(sweep)
    seeds = {0} if sweep == "demo/report" else {6, 7, 8}
    assert len({r["id"] for r in cells}) == len(cells) == 12 * len(seeds)
    assert {r["choices"]["seed"] for r in cells} == seeds
    assert {r["choices"]["defense"] for r in cells} == {"spectral"}
    for cell in cells:
        assert cell["asr1"] >= 0.95, cell["id"]
        assert cell["asr2"] <= 0.05, cell["id"]
        assert cell["nat2"] >= cell["nat1"] - 0.01, cell["id"]


def test_the_records_of_the_demo_are_made_with_its_settings() -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        demo = compose("config", ["experiment=demo"])
    for sweep in ("demo/report", "demo/controls", "demo/seeds", "demo/seeds_bf16"):
        for cell in _of(sweep):
            assert cell["config"]["recipe"].items() <= dict(demo.recipe).items(), cell["id"]
            assert cell["config"]["model"] == demo.model, cell["id"]
            assert cell["dataset"] == demo.dataset, cell["id"]


@pytest.mark.parametrize(
    "table",
    [TABLES[0], *_section(REPORT, "## ResNet18, a quarter as wide")[:1]],
    ids=["airbench", "resnet18"],
)
def test_the_report_stands_in_brackets_and_no_cell_is_missing(table: Table) -> None:
    _, columns, rows = table
    assert len(rows) == len({tuple(row[:3]) for row in rows}) == 12
    for row in rows:
        line = dict(zip(columns, row, strict=True))
        known = reference.lookup(line["Trigger"], line["Target"], float(line["Ratio"][:-1]) / 100)
        assert known is not None
        for column, name in REFERENCE.items():
            digits = DIGITS[column]
            assert line[column].endswith(f" ({known[name]:.{digits}f})"), (row, column)


@pytest.mark.parametrize("table", LAYERS, ids=[" ".join(t[0]) for t in LAYERS])
def test_every_layer_leaves_what_its_records_say(table: Table) -> None:
    sweeps, (_, _, *heads), rows = table
    records = {
        (*(_key(r, c) for c in ("Defense", "Layer", "Trigger", "Ratio", "Target")),): r
        for r in _records(sweeps)
    }
    assert len(heads) > 2
    assert len(rows) > 3
    for defense, layer, *places in rows:
        for head, place in zip(heads, places, strict=True):
            found = LOOKS.fullmatch(head)
            assert found, head
            trigger, ratio, target, poisoned, asr = found.groups()
            record = records[defense.strip("`"), layer.strip("`"), trigger, ratio, target]
            assert record["counts"]["n_poisoned"] == int(poisoned)
            assert f"{100 * record['asr1']:.0f}" == asr
            left, auroc = record["counts"]["pois_left"], record["detection"]["auroc"]
            assert place == f"{left} ({auroc:.2f})", (defense, layer, head)


@pytest.mark.parametrize(
    "row",
    _section(REPORT, "## Where the cells miss the report")[0][2],
    ids=lambda row: str(row[:3]),
)
def test_what_misses_the_report_is_said_of_every_cell(row: list[str]) -> None:
    trigger, target, ratio, *told = row
    (cell,) = [
        r for r in _records(["paper/reproduction"])
        if [_key(r, c) for c in ("Trigger", "Target", "Ratio")] == [trigger, target, ratio]
    ]  # fmt: skip
    asr1, left, asr2 = (_value(cell, name) for name in ("ASR1", "#Pois Left", "ASR2"))
    change = 100 * (cell["nat2"] - cell["nat1"])
    assert told == [
        f"{asr1:.2f}" if asr1 < 79 else "–", f"{left}" if left > 38 else "–",
        f"{asr2:.2f}" if asr2 > 3 else "–", f"{change:.2f}" if change < 0 else "–",
    ]  # fmt: skip


NEARER = REPORT.read_text().split("\n## Nearer the report's training\n")[1]
NETWORKS = re.findall(r"(?m)^\| \[[^]]+\]\((\w+)\) \|(.*)\|$", NEARER)


@pytest.mark.parametrize(("sweep", "row"), NETWORKS, ids=[sweep for sweep, _ in NETWORKS])
def test_what_is_nearer_the_report_is_as_recorded(sweep: str, row: str) -> None:
    trigger, target, nat1, asr1, *left = map(str.strip, row.split("|"))
    cells = _cells(f"paper/{sweep}", trigger=trigger, target=target, ratio=0.1)
    assert {(f"{_value(c, 'Nat1'):.2f}", f"{_value(c, 'ASR1'):.2f}") for c in cells} == {
        (nat1, asr1)
    }
    found = {(c["choices"]["defense"], _key(c, "Layer")): c["counts"]["pois_left"] for c in cells}
    places = [(d, layer) for d in ("spectral", "spectral_plus")
              for layer in ("penultimate", "layer4", "layer4.0")]  # fmt: skip
    assert left == [str(found.get(place, "")) for place in places]


def _anchor(heading: str) -> str:
    """As GitHub names a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _headings(document: Path) -> set[str]:
    prose = re.sub(r"(?ms)^```.*?^```", "", document.read_text())
    return {_anchor(heading) for heading in re.findall(r"(?m)^#+ (.*)$", prose)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.parent.name)
def test_every_link_inside_the_project_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", document.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), link
        assert not anchor or anchor in _headings(found), link


def _cells(sweep: str, **choices: Any) -> list[dict[str, Any]]:
    records = _records([sweep])
    return [r for r in records if all(r["choices"][k] == v for k, v in choices.items())]


def _the(sweep: str, **choices: Any) -> dict[str, Any]:
    (cell,) = _cells(sweep, **choices)
    return cell


def _table(document: str, heading: str, at: int = 0) -> tuple[list[str], list[list[str]]]:
    tables = _section(SWEEPS / document / "README.md", heading)
    _, head, rows = tables[at]
    return head, [[text.strip("`* ") for text in row] for row in rows]


def _rows(document: str, heading: str, at: int = 0) -> list[dict[str, str]]:
    head, rows = _table(document, heading, at)
    return [dict(zip(head, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
    "row", _rows("attacks", "## On embedded images"), ids=lambda r: r["Trigger"]
)
def test_every_attack_on_embedded_images(row: dict[str, str]) -> None:
    at = {
        f"{100 * c['choices']['ratio']:g} %": c
        for c in _cells("attacks/embedded", trigger=row["Trigger"])
    }
    assert len(at) == 3
    assert row.pop("ASR at 0 %") == f"{100 * at['0 %']['asr1']:.2f}"
    assert len(row) == 7
    for column in set(row) - {"Trigger"}:
        name, _, ratio = column.partition(" ")
        assert row[column] == f"{_value(at[ratio], name):.{DIGITS[name]}f}", column


@pytest.mark.parametrize(
    "row", _rows("attacks", "## On real photographs"), ids=lambda r: r["Trigger"]
)
def test_every_attack_on_photographs(row: dict[str, str]) -> None:
    cell = _the("attacks/photographs", trigger=row["Trigger"], ratio=0.5)
    clean = _the("attacks/photographs", trigger=row["Trigger"], ratio=0.0)
    labels = "source to target" if cell["choices"]["source"] else cell["protocol"]["labels"]
    assert row["Labels"] == labels.replace("_", " ")
    assert row["ASR at 0 %"] == f"{100 * clean['asr1']:.2f}"
    for column in ("Nat1", "ASR1", "#Pois Left"):
        assert row[column] == f"{_value(cell, column):.{DIGITS[column]}f}", column
    assert row["AUROC (spectral)"] == f"{_value(cell, 'AUROC'):.3f}"


MATRIX = _rows("defenses", "## What they find in every attack")


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row["`defense=`"])
def test_every_filter_on_every_attack(row: dict[str, str]) -> None:
    defense = row["`defense=`"]
    triggers = {head.strip("`"): text for head, text in row.items() if "=" not in head}
    mean = triggers.pop("mean of the first nine")
    assert len(triggers) == 12
    if defense == "ASR1, %":
        found = [
            100 * _the("defenses/matrix", trigger=t, defense="spectral")["asr1"] for t in triggers
        ]
    else:
        cells = [_the("defenses/matrix", trigger=t, defense=defense) for t in triggers]
        found = [_value(cell, "#Pois Left") for cell in cells]
        assert mean == f"{np.mean(found[:9]):.1f}"
    assert list(triggers.values()) == [f"{value:.0f}" for value in found]


@pytest.mark.parametrize(
    "row", _rows("defenses", "## On photographs"), ids=lambda row: row["`defense=`"]
)
def test_every_filter_on_photographs(row: dict[str, str]) -> None:
    what = row.pop("`defense=`")
    assert len(row) == 12
    for head, text in row.items():
        trigger, ratio = head.rstrip("%").split()
        defense = "spectral" if what in DIGITS else what
        cell = _the(
            "defenses/photographs", trigger=trigger, ratio=float(ratio) / 100, defense=defense
        )
        left = 100 * _value(cell, "#Pois Left") / _value(cell, "#Pois")
        told = f"{left:.0f} ({_value(cell, 'AUROC'):.2f})"
        assert text == (
            told if what not in DIGITS else f"{_value(cell, what):.{int(what != '#Pois')}f}"
        )


@pytest.mark.parametrize("row", _rows("defenses", "## Several directions"), ids=str)
def test_how_many_directions_rounds_and_which_weights(row: dict[str, str]) -> None:
    for head, text in row.items():
        if head[0] == "`" and "rank" not in head:
            continue
        wanted = {"rank": int(head.split()[-1]), "rounds": int(row["`rounds`"])}
        wanted |= {"tail_power": int(row["`tail_power`"])}
        cells = [
            r for r in _records(["defenses/spectral_variants"])
            if all(r["config"]["defense"][key] == value for key, value in wanted.items())
        ]  # fmt: skip
        assert len({r["choices"]["trigger"] for r in cells}) == len(cells) == 14
        assert text == f"{np.mean([_value(r, '#Pois Left') for r in cells]):.1f}"


@pytest.mark.parametrize("row", _rows("defenses", "## Several directions", 1), ids=str)
def test_the_same_at_other_layers(row: dict[str, str]) -> None:
    layer, *means = row.values()
    for defense, mean in zip(("spectral", "spectral_plus"), means, strict=True):
        cells = [
            c
            for c in _cells("defenses/spectral_layers", defense=defense)
            if _key(c, "Layer") == layer
        ]
        assert len(cells) == 14
        assert mean == f"{np.mean([_value(cell, '#Pois Left') for cell in cells]):.1f}"


@pytest.mark.parametrize(
    "row", _table("defenses", "## What they do on embedded images")[1], ids=lambda row: row[0]
)
def test_every_defense_on_embedded_images(row: list[str]) -> None:
    defense, *places, nat2 = row
    for trigger, texts in (("pixel", places[:3]), ("pattern", places[3:])):
        cells = _cells("defenses/embedded", trigger=trigger, defense=defense)
        assert len(cells) == 3
        for text, column in zip(texts, ("AUROC", "#Pois Left", "ASR2"), strict=True):
            values = [_value(cell, column) for cell in cells]
            assert text == _spread(values, {"AUROC": 3, "#Pois Left": 0, "ASR2": 1}[column]), column
    values = [100 * cell["nat2"] for cell in _cells("defenses/embedded", defense=defense)]
    assert nat2 == f"{np.mean(values):.2f}"


PHYSICAL = "## Does a trigger survive a camera?"


@pytest.mark.parametrize("row", _rows("paper", PHYSICAL), ids=lambda row: row["Trigger"])
def test_every_trigger_after_every_transformation(row: dict[str, str]) -> None:
    trigger = row.pop("Trigger")
    nat = "Nat1" in trigger
    cells = _cells("paper/physical") if nat else [_the("paper/physical", trigger=trigger)]
    assert len(row) == 9
    figure = "nat1" if nat else "asr1"
    for column, text in ((head.strip("`"), text) for head, text in row.items()):
        values = [c[figure] if column == "untouched" else c["under"][column][figure] for c in cells]
        assert text == f"{100 * np.mean(values):.1f}", column


def _spread(values: list[Any], digits: int) -> str:
    if values[0] is None:
        return ""
    mean, low, high = (f"{f(values):.{digits}f}" for f in (np.mean, np.min, np.max))
    return mean if low == high or digits == 3 else f"{mean} ({low}–{high})"


AUGMENTED = "## Does augmentation alone suffice?"


@pytest.mark.parametrize("row", _table("defenses", AUGMENTED)[1], ids=lambda row: row[0])
def test_every_augmentation(row: list[str]) -> None:
    recipe, _, *places, nat1 = row
    for trigger, texts in (("pixel", places[:3]), ("pattern", places[3:])):
        cells = _cells("defenses/augmentation", trigger=trigger, recipe=recipe)
        assert len(cells) == 3
        for text, column in zip(texts, ("ASR1", "#Pois Left", "ASR2"), strict=True):
            digits = int(column != "#Pois Left")
            assert text == _spread([_value(cell, column) for cell in cells], digits), column
    values = [100 * cell["nat1"] for cell in _cells("defenses/augmentation", recipe=recipe)]
    assert nat1 == f"{np.mean(values):.2f}"


@pytest.mark.parametrize(
    "row", _table("defenses", "## Without being told where to look")[1], ids=lambda row: row[0]
)
def test_every_accusation(row: list[str]) -> None:
    defense, *told = row
    cells = _cells("defenses/suspicious", defense=defense)
    clean, poisoned = ([r for r in cells if (r["choices"]["ratio"] > 0) == p] for p in (0, 1))
    networks = {(r["choices"]["seed"], r["hashes"]["weights1"]): r for r in clean}.values()
    assert (len(networks), len(poisoned)) == (3, 6)
    accused = sum(r["counts"]["n_accused"] for r in networks)
    named = sum(r["counts"]["n_named"] for r in poisoned)
    others = sum(r["counts"]["n_accused"] - r["counts"]["n_named"] for r in poisoned)
    left = np.mean([r["counts"]["pois_left"] for r in poisoned])
    assert told == [f"{accused} in 3", f"{named} of 6", f"{others} in 6", f"{left:.1f}"]


PAIRED = ("ASR1", "AUROC", "#Pois Left", "ASR2")
SIDES = {"as source": "source", "as target": "target"}


def _mean(cells: list[dict[str, Any]], column: str) -> str:
    digits = 3 if column == "AUROC" else 1
    return f"{np.mean([_value(cell, column) for cell in cells]):.{digits}f}"


@pytest.mark.parametrize(
    "row", _rows("paper", "## Every pair of classes"), ids=lambda r: r["Class"]
)
def test_every_class_as_source_and_as_target(row: dict[str, str]) -> None:
    name = row.pop("Class")
    assert row.keys() == {f"{side}: {column}" for side in SIDES for column in PAIRED}
    for head, text in row.items():
        side, _, column = head.partition(": ")
        cells = _cells("paper/pairs", **({} if name == "all" else {SIDES[side]: name}))
        assert len(cells) == (90 if name == "all" else 9)
        assert text == _mean(cells, column), head


def test_what_is_said_of_all_pairs_is_as_recorded() -> None:
    cells = _of("paper/pairs")
    text = " ".join(REPORT.read_text().split("\n## Every pair of classes\n")[1].split())
    assert {r["counts"]["n_poisoned"] for r in cells} == {30}
    assert {(r["counts"]["n_asr"], r["counts"]["n_removed"]) for r in cells} == {(100, 45)}
    asr1, nat1 = ([100 * r[name] for r in cells] for name in ("asr1", "nat1"))
    auroc = [r["detection"]["auroc"] for r in cells]
    left = [r["counts"]["pois_left"] for r in cells]
    at_random = 30 * (1 - 45 / 330)
    dog = [r["counts"]["pois_left"] for r in _cells("paper/pairs", target="dog")]
    side = {
        end: sorted(
            (
                np.mean([r["counts"]["pois_left"] for r in _cells("paper/pairs", **{end: name})]),
                name,
            )
            for name in {r["choices"][end] for r in cells}
        )
        for end in SIDES.values()
    }
    assert (side["target"][1][1], side["source"][-1][1]) == ("frog", "frog")
    hours = sum(sum(r["run"]["seconds"].values()) for r in cells) / 3600
    for said in (
        f"ASR1 is {min(asr1):.0f} % or more in all 90, at a Nat1 of {min(nat1):.1f} to"
        f" {max(nat1):.1f} %",
        f"AUROC goes from {min(auroc):.2f} to {max(auroc):.2f} and is below 0.5, chance, in"
        f" {sum(value < 0.5 for value in auroc)} pairs; in {sum(n >= at_random for n in left)} it"
        f" leaves {min(n for n in left if n >= at_random)} images or more, where as many removals"
        f" at random leave {at_random:.1f} on average",
        f"with dog as the target at least {min(dog)} are left",
        f"best of the targets ({side['target'][1][0]:.1f} left on average), is the worst of the"
        f" sources ({side['source'][-1][0]:.1f})",
        f"at most 5 % in {sum(r['asr2'] <= 0.05 for r in cells)} pairs and 90 % or more in"
        f" {sum(r['asr2'] >= 0.9 for r in cells)}",
        f"stages sum to {hours:.1f} hours",
    ):
        assert said in text


def test_every_pair_of_two_classes_was_run_once() -> None:
    pairs = [(r["choices"]["source"], r["choices"]["target"]) for r in _of("paper/pairs")]
    assert len(pairs) == len(set(pairs)) == 90
    assert all(source != target for source, target in pairs)


@pytest.mark.parametrize(
    "row", _rows("paper", "## Every pair of classes", 1), ids=lambda r: r["#Pois Left"]
)
def test_what_the_filter_left_decides_what_becomes_of_a_pair(row: dict[str, str]) -> None:
    low, _, high = row["#Pois Left"].partition(" to ")
    cells = [
        r for r in _of("paper/pairs") if int(low) <= r["counts"]["pois_left"] <= int(high or low)
    ]
    assert row["Pairs"] == str(len(cells))
    assert row["ASR2, mean"] == _mean(cells, "ASR2")
    assert row["ASR2 at most 5 %"] == str(sum(r["asr2"] <= 0.05 for r in cells))


def test_the_pairs_with_the_lowest_and_highest_scores() -> None:
    ranked = sorted(
        _of("paper/pairs"),
        key=lambda r: (r["detection"]["auroc"], r["choices"]["source"], r["choices"]["target"]),
    )
    rows = _rows("paper", "## Every pair of classes", 2)
    assert len(rows) == 8
    for row, cell in zip(rows, [*ranked[:4], *ranked[-4:]], strict=True):
        assert [row["Source"], row["Target"]] == [
            cell["choices"][side] for side in SIDES.values()
        ]  # fmt: skip
        for column in PAIRED:
            assert row[column] == f"{_value(cell, column):.{DIGITS[column]}f}", column


@pytest.mark.parametrize(
    ("sweep", "trigger"),
    [("demo/report", "pattern"), ("attacks/rate", "warp"), ("defenses/matrix", "adaptive_blend")],
)
def test_the_poisoned_images_follow_from_the_records_configuration(
    sweep: str, trigger: str, tmp_path: Path
) -> None:
    """A kept record holds the hash of its indices alone: the configuration gives them again."""
    record = next(r for r in _of(sweep) if r["choices"]["trigger"] == trigger)
    assert "poison_indices" not in record
    said = record["protocol"]
    config = record["config"] | {"dataset": record["dataset"], "protocol": said}
    config |= {"labels": said["labels"], "covers": said["covers"]}
    data = open_dataset(source_of(config), Store(tmp_path))
    cell = Cell.of(config, data.classes, "")
    found = poison(data.train, cell.trigger, cell.plan, seed=cell.seed)
    assert len(found.source_index) == record["counts"]["n_poisoned"] > 0
    assert digest(found.source_index.tolist()) == record["hashes"]["poison"]
    assert data.train.digest == record["hashes"]["data"]


def test_what_is_tracked_of_results_stays_small_and_names_no_path_outside() -> None:
    command = ["git", "ls-files", "multirun_reports"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    # Three files for each of some fifty sweeps, with documents, benchmarks and pictures.
    assert 0 < len(paths) <= 200
    assert sum(path.stat().st_size for path in paths) <= 12_000_000
    outside = re.compile(rb"(?<![\w.<])/(work|tmp|home|root|mnt|Users|data|scratch)/")
    texts = [path for path in paths if path.suffix != ".png"]
    assert [path for path in texts if outside.search(path.read_bytes())] == []


def test_every_figure_over_the_ratio_is_the_mean_of_its_records() -> None:
    tables = _section(REPORT, "## The ratio")
    assert tables
    for sweeps, _, rows in tables:
        records = [r for r in _records(sweeps) if r["asr2"] is not None]
        for trigger, ratio, seeds, asr1, auroc, asr2 in rows:
            cells = [r for r in records
                     if [_key(r, "Trigger"), _key(r, "Ratio")] == [trigger, ratio]]  # fmt: skip
            assert len(cells) == int(seeds)
            assert [asr1, auroc, asr2] == [_mean(cells, c) for c in ("ASR1", "AUROC", "ASR2")]


def test_asr1_alone_is_100_percent_at_every_ratio() -> None:
    cells = _of("paper/ratios_alone")
    assert {r["choices"]["ratio"] for r in cells} == {0.2, 0.4, 0.6, 0.9}
    assert {r["asr1"] for r in cells} == {1.0}
