"""README and the guides in the folders name everything that exists, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from backdoor_lab.data.digits import Digits
from backdoor_lab.preview import PRESETS as ENDINGS
from backdoor_lab.results.frozen import frozen_lines
from backdoor_lab.tables import poor
from tests.helpers.project import CONF, ROOT

README = (ROOT / "README.md").read_text()
CONFIGURATION = (CONF / "README.md").read_text()
AUTHORS = {path.stem for path in CONF.glob("*/*.yaml") if path.stem.endswith(ENDINGS)}
PRESETS = {"spectral_uncentered", "spectral_every_class"} | AUTHORS
CONTROLS = {"none", "random", "oracle", "clean_data"}


def options(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def section(text: str, heading: str) -> str:
    """The text below a heading, up to the next one."""
    return f"\n{text}".split(f"\n{heading}\n")[1].split("\n## ")[0]


def item(label: str) -> set[str]:
    """The names in a line of "What is inside", with presets."""
    (found,) = re.findall(
        rf"(?ms)^- (?:\[{label}\]\S+|{label}:)(.*?)(?=^- |\Z)", section(README, "## What is inside")
    )
    return set(re.findall(r"\w+", found)) - {"presets"}


def rows(text: str, heading: str) -> list[list[str]]:
    """The lines of the first table of a section, without its head."""
    lines = [line for line in section(text, heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def named(text: str, heading: str) -> set[str]:
    """The names in the first column of a table."""
    return {name for row in rows(text, heading) for name in re.findall(r"`(\w+)`", row[0])}


def records(sweep: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in frozen_lines(ROOT / "multirun_reports" / sweep)]


def test_readme_has_at_most_10_kb() -> None:
    assert len(README.encode()) <= 10_000


@pytest.mark.parametrize(
    "folder",
    [".", "conf", "conf/protocol", "conf/hydra/launcher", "backdoor_lab", "backdoor_lab/attacks",
     "backdoor_lab/defenses", "backdoor_lab/tables", "tests", "multirun_reports"],
)  # fmt: skip
def test_the_main_folders_have_a_readme(folder: str) -> None:
    assert (ROOT / folder / "README.md").is_file()


def test_readme_lists_every_method_data_set_and_protocol() -> None:
    filters, repairs = item("Filters"), item("Repairs")
    assert item("Triggers") == options("trigger") - AUTHORS
    assert filters | repairs == options("defense") - AUTHORS - CONTROLS
    assert not filters & repairs
    assert item("Data sets") == options("dataset")
    assert item("Protocols") == options("protocol")


def test_the_readme_comparison_has_eight_rows_and_correct_counts_of_methods_and_data_sets() -> None:
    compared = rows(README, "## Why")
    assert len(compared) == 8
    assert {len(row) for row in compared} == {5}
    assert all(all(row[1:]) for row in compared)
    assert int(compared[0][1]) == len(options("trigger") - AUTHORS)
    assert int(compared[1][1]) == len(options("defense") - PRESETS - CONTROLS)
    public = re.search(r"(\d+) public", compared[2][1])
    assert public
    assert int(public[1]) == len(
        options("dataset")
        - {"image_folder", "arrays", "huggingface", "poisoned", "synthetic", "synthetic_small"}
    )


def test_the_guide_states_how_many_digits_its_examples_poison() -> None:
    threes = int((Digits().read().train.labels == 3).sum())
    said = f"the digit 3, with {threes} training images, `ratio=0.5` poisons {threes // 2} images"
    assert said in " ".join(CONFIGURATION.split())
    assert f"`ratio=0.1` only {round(0.1 * threes)}." in " ".join(CONFIGURATION.split())
    assert CONFIGURATION.count("target=3 ratio=0.5") == CONFIGURATION.count("target=3 ratio=")


def test_the_findings_in_readme_match_the_records() -> None:
    said = " ".join(section(README, "## Results").split())
    cells = [r for r in records("paper/report_airbench") if r["choices"]["defense"] == "spectral"]
    pattern = [r for r in cells if r["choices"]["trigger"] == "pattern"]
    assert f"ASR2 ≤ {max(100 * r['asr2'] for r in pattern):.1f} %" in said
    literal = {
        r["choices"]["trigger"]: r["detection"]["auroc"]
        for r in records("paper/readings_group13_literal")
        if (r["choices"]["defense"], r["choices"]["ratio"]) == ("spectral", 0.1)
    }
    assert (
        f"AUROC {literal['pattern']:.2f} for pattern, {literal['pixel']:.2f} for pixel; bird,"
        " 3 epochs" in said
    )
    left = {
        (r["choices"]["target"], r["config"]["protocol"]["layer"]): r["counts"]["pois_left"]
        for folder in ("layers", "layers_horse")
        for r in records(f"paper/{folder}")
        if (r["choices"]["trigger"], r["choices"]["ratio"], r["choices"]["defense"])
        == ("pattern", 0.1, "spectral")
    }
    near, last = (
        f"{left['bird', layer]} and {left['horse', layer]}" for layer in ("layer4.0", "penultimate")
    )
    assert f"{near} images left instead of {last} (pattern; bird, horse)" in said
    mixed = {
        (recipe, trigger): sum(counts) / len(counts)
        for recipe in ("demo", "demo_mixup")
        for trigger in ("pixel", "pattern")
        if (counts := [
            r["counts"]["pois_left"] for r in records("defenses/augmentation")
            if (r["choices"]["recipe"], r["choices"]["trigger"], r["choices"]["defense"])
            == (recipe, trigger, "spectral")
        ])
    }  # fmt: skip
    assert (
        f"{mixed['demo_mixup', 'pixel']:.0f} and {mixed['demo_mixup', 'pattern']:.0f} of 100 images"
        f" left instead of {mixed['demo', 'pixel']:.0f} and {mixed['demo', 'pattern']:.0f}"
        " (pixel, pattern; synthetic images)" in said
    )
    assert "With a ResNet18 of width 16, at 10 %:" in said
    assert {
        (r["choices"]["model"], r["choices"]["ratio"])
        for sweep in (
            "paper/readings_group13_literal",
            "paper/layers_horse",
            "defenses/augmentation",
        )
        for r in records(sweep)
    } == {("resnet18-w16", 0.1)}
    assert {r["config"]["recipe"]["epochs"] for r in records("paper/readings_group13_literal")} == {
        3
    }
    poisoned = {r["choices"]["ratio"]: r["counts"]["n_poisoned"] for r in cells}
    assert f"#Pois {poisoned[0.05]} at 5 %, {poisoned[0.1]} at 10 %" in said
    learned = [r for r in cells if r["choices"]["trigger"] == "pixel" and r["asr1"] > 0.5]
    assert (len(learned), len(cells) - len(pattern)) == (2, 6)
    assert "The pixel is learned in two of six cells" in said
    pixel = [r for r in cells if r["choices"]["trigger"] == "pixel" and r not in learned]
    assert f"in the others (ASR1 at most {max(100 * r['asr1'] for r in pixel):.1f} %)" in said


@pytest.mark.parametrize(
    ("group", "heading"),
    [("dataset", "## Data sets"), ("model", "## Models"), ("recipe", "## Recipes"),
     ("experiment", "## Experiments")],
)  # fmt: skip
def test_the_configuration_guide_lists_every_option(group: str, heading: str) -> None:
    assert named(CONFIGURATION, heading) == options(group)


def test_the_configuration_guide_lists_every_group() -> None:
    told = set(re.findall(r"(?m)^\| ((?:`[\w/]+`(?:, )?)+) \|", section(CONFIGURATION, TITLE)))
    groups = {name for cell in told for name in re.findall(r"`([\w/]+)`", cell)}
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert folders | {"hydra/launcher"} <= groups
    loggers = re.search(r"(?m)^\| `logger` \|(.*)$", CONFIGURATION)
    assert loggers
    assert options("logger") <= set(re.findall(r"`(\w+)`", loggers[1]))


TITLE = "# The configuration"


def test_the_launcher_guide_lists_every_launcher() -> None:
    guide = (CONF / "hydra/launcher/README.md").read_text()
    assert named(guide, "# Running many cells") == options("hydra/launcher") | {"basic"}


def test_the_protocol_guide_shows_the_values_in_the_yaml_files() -> None:
    guide = (CONF / "protocol/README.md").read_text()
    lines = [line for line in guide.splitlines() if line.startswith("|")]
    keys = re.findall(r"`(\w+)`", lines[0])
    shown = {}
    for line in lines[2:]:
        preset, *values = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(values) != len(keys):
            break
        shown[preset.split("`")[1]] = dict(zip(keys, values, strict=True))
    assert shown.keys() == options("protocol")
    for name, values in shown.items():
        said = yaml.safe_load((CONF / f"protocol/{name}.yaml").read_text())
        for key, value in values.items():
            plain = re.sub(r"\$\{by_source:(\w+)\}", r"\1", str(said[key]))
            assert value == {"None": "", "True": "true", "False": "false"}.get(plain, plain), key


def test_the_protocol_guide_explains_every_key() -> None:
    guide = (CONF / "protocol/README.md").read_text()
    table = guide.split("| Key | Values |")[1].split("\n\n")[0]
    keys = set(yaml.safe_load((CONF / "protocol/group13.yaml").read_text())) - {"name", "version"}
    assert set(re.findall(r"(?m)^\| `(\w+)` \|", table)) == keys


def test_every_test_file_listed_in_the_fault_table_exists() -> None:
    guide = (ROOT / "tests/README.md").read_text()
    table = rows(guide, "## The fault table")
    assert len(table) > 30
    for row in table:
        tests = re.findall(r"`([\w/]+\.py)`", row[2])
        assert tests, row
        for name in tests:
            assert (ROOT / "tests" / name).is_file(), name


def test_the_glossary_has_at_most_twenty_entries() -> None:
    guide = (ROOT / "backdoor_lab/README.md").read_text()
    assert 10 < len(rows(guide, "## Glossary")) <= 20


def test_the_package_guide_lists_every_command() -> None:
    commands = section((ROOT / "backdoor_lab/README.md").read_text(), "## Commands")
    makefile = (ROOT / "Makefile").read_text()
    jobs = set(re.findall(r"(?m)^([a-z-]+):.*##", makefile)) - {"help", "clean", "test-avx2"}
    assert {f"make {job}" for job in jobs} <= set(re.findall(r"make [a-z-]+", commands))


def test_the_tables_guide_states_the_thresholds_for_poor_networks() -> None:
    guide = section((ROOT / "backdoor_lab/tables/README.md").read_text(), "## Poor networks")
    for said, limit in (
        ("less than {} % of the way from chance", poor.NEAR),
        ("more than {} percentage points below the accuracy on the training", poor.OVERFITTED),
        ("Nat2 is more than {} points below Nat1", poor.DAMAGED),
        ("differs by more than {} points between seeds", poor.SCATTERED),
    ):
        assert said.format(f"{100 * limit:.0f}") in guide
