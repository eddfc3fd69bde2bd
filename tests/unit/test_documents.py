"""Documents: links have targets, and tables and figures in the text equal the committed records and
the code."""

from __future__ import annotations

import functools
import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from backdoor_lab.attacks.poison import poison
from backdoor_lab.config_loader import conf_dir
from backdoor_lab.core.atomic_io import digest
from backdoor_lab.core.store import Store
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.results.frozen import frozen_lines
from tests.documents import __main__ as command
from tests.documents import cells as cells_of_documents
from tests.documents.attack_papers import REPORTED
from tests.documents.markers import TABLES, filled, names, outside
from tests.documents.project import changed, documents, load

ROOT = Path(__file__).resolve().parents[2]
SWEEPS = ROOT / "multirun_reports"
REPORT = SWEEPS / "paper" / "README.md"
DOCUMENTS = documents()
RESULT = re.compile(r"\b(Nat[12]?|ASR[12]?|AUROC|#Pois)\b")
load()


@functools.cache
def _of(sweep: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in frozen_lines(SWEEPS / sweep)]


def _name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_tables_in_documents_agree_with_the_records_and_the_code(document: Path) -> None:
    """`make documents` writes the tables."""
    text = document.read_text()
    assert text == filled(text, TABLES)


def test_a_manually_edited_number_is_found_and_corrected() -> None:
    text = (SWEEPS / "demo" / "README.md").read_text()
    edited = text.replace(
        "| pixel | bird | 5% | 50 | 100.00 |", "| pixel | bird | 5% | 50 | 99.00 |"
    )
    assert edited != text == filled(edited, TABLES)


def test_a_document_that_does_not_agree_with_a_changed_record_is_detected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [{**cell, "Nat1": 12.34} for cell in cells_of_documents.cells("demo/report")]
    kept = cells_of_documents.kept
    monkeypatch.setattr(
        cells_of_documents, "kept", lambda sweep: found if sweep == "demo/report" else kept(sweep)
    )
    assert list(changed()) == [SWEEPS / "demo" / "README.md"]
    assert command.main(["--check"]) == 1
    assert "multirun_reports/demo/README.md: differs from its records" in capsys.readouterr().out


def test_every_table_is_used_in_a_document() -> None:
    placed = [name for document in DOCUMENTS for name in names(document.read_text())]
    assert set(placed) == set(TABLES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_result_table_in_a_document_is_generated(document: Path) -> None:
    """Every table with a metric column stands between the markers of generated tables."""
    lines = outside(document.read_text()).splitlines()
    heads = [line for line, rule in itertools.pairwise(lines) if re.fullmatch(r"\|[-:| ]+", rule)]
    figures = [line for line in heads if RESULT.search(line)]
    assert [line for line in figures if "share of triggered" not in line] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- begin: nothing_such -->\n<!-- end -->\n", "no table nothing_such; known: "),
        ("<!-- begin: demo_cells -->\n", "without `<!-- end -->`"),
        ("text\n<!-- end -->\n", "without `<!-- end -->`"),
        ("<!-- begin: demo_cells -->\n<!-- begin: demo_seeds -->\n<!-- end -->\n", "without"),
    ],
)
def test_mismatched_markers_are_an_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        filled(text, TABLES)


@pytest.mark.parametrize("sweep", ["demo/report", "demo/seeds", "demo/seeds_bf16"])
def test_attack_and_defense_succeed_in_every_demo_cell(sweep: str) -> None:
    cells = _of(sweep)
    seeds = {0} if sweep == "demo/report" else {6, 7, 8}
    assert len({r["id"] for r in cells}) == len(cells) == 12 * len(seeds)
    assert {r["choices"]["seed"] for r in cells} == seeds
    assert {r["choices"]["defense"] for r in cells} == {"spectral"}
    for cell in cells:
        assert cell["asr1"] >= 0.95, cell["id"]
        assert cell["asr2"] <= 0.05, cell["id"]
        assert cell["nat2"] >= cell["nat1"] - 0.01, cell["id"]


def test_the_committed_demo_records_match_the_current_demo_settings() -> None:
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        demo = compose("config", ["experiment=demo"])
    for sweep in ("demo/report", "demo/controls", "demo/seeds", "demo/seeds_bf16"):
        for cell in _of(sweep):
            assert cell["config"]["recipe"].items() <= dict(demo.recipe).items(), cell["id"]
            model = cell["config"]["model"]
            # Keys that are newer than the records have no effect if they are null.
            now = {k: v for k, v in demo.model.items() if k in model or v is not None}
            assert model == now, cell["id"]
            assert cell["dataset"] == demo.dataset, cell["id"]


def _anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _headings(document: Path) -> set[str]:
    """The anchors of a document, or of the README that GitHub shows below a folder."""
    document = document / "README.md" if document.is_dir() else document
    prose = re.sub(r"(?ms)^```.*?^```", "", document.read_text())
    return {_anchor(heading) for heading in re.findall(r"(?m)^#+ (.*)$", prose)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_every_internal_link_has_an_existing_target(document: Path) -> None:
    links = re.findall(r"\]\((?!http)([^)]+)\)", document.read_text())
    for link in links:
        path, _, anchor = link.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), link
        assert not anchor or anchor in _headings(found), link


@pytest.mark.parametrize("document", DOCUMENTS, ids=_name)
def test_the_caption_of_each_picture_asks_a_question_and_answers_it(document: Path) -> None:
    """The paragraph below one or more pictures starts with a question in italics."""
    paragraphs = [each.strip() for each in document.read_text().split("\n\n")]
    for shown, caption in itertools.pairwise([*paragraphs, ""]):
        if shown.startswith("!["):
            assert re.match(r"\*[A-Z][^*]+\?\* \S", caption), shown


def _cells(sweep: str, **choices: Any) -> list[dict[str, Any]]:
    return [r for r in _of(sweep) if all(r["choices"][k] == v for k, v in choices.items())]


SIDES = {"as source": "source", "as target": "target"}


def test_the_report_section_about_all_class_pairs_matches_the_records() -> None:
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


def test_the_pairs_sweep_contains_every_pair_of_classes_once() -> None:
    pairs = [(r["choices"]["source"], r["choices"]["target"]) for r in _of("paper/pairs")]
    assert len(pairs) == len(set(pairs)) == 90
    assert all(source != target for source, target in pairs)


@pytest.mark.parametrize(
    ("sweep", "trigger"),
    [("demo/report", "pattern"), ("attacks/rate", "warp"), ("defenses/matrix", "adaptive_blend")],
)
def test_poison_indices_can_be_recomputed_from_the_configuration_in_the_record(
    sweep: str, trigger: str, tmp_path: Path
) -> None:
    """A frozen record has only the hash of its indices. Its configuration reproduces them."""
    record = next(r for r in _of(sweep) if r["choices"]["trigger"] == trigger)
    assert "poison_indices" not in record
    said = record["protocol"]
    config = record["config"] | {"dataset": record["dataset"], "protocol": said}
    config |= {"label_mode": said["label_mode"], "cover_rate": said["cover_rate"]}
    data = open_dataset(source_of(config), Store(tmp_path))
    cell = Cell.of(config, data.classes, "")
    found = poison(data.train, cell.trigger, cell.plan, seed=cell.seed)
    assert len(found.source_index) == record["counts"]["n_poisoned"] > 0
    assert digest(found.source_index.tolist()) == record["hashes"]["poison"]
    assert data.train.digest == record["hashes"]["data"]


def test_committed_results_are_small_and_contain_no_path_outside_the_project() -> None:
    command = ["git", "ls-files", "multirun_reports"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("no git checkout")
    paths = [ROOT / name for name in listed.stdout.splitlines()]
    # About fifty sweeps with three files each, and documents, benchmarks, trials and pictures.
    assert 0 < len(paths) <= 220
    assert sum(path.stat().st_size for path in paths) <= 13_000_000
    outside = re.compile(rb"(?<![\w.<])/(work|tmp|home|root|mnt|Users|data|scratch)/")
    texts = [path for path in paths if path.suffix != ".png"]
    assert [path for path in texts if outside.search(path.read_bytes())] == []


def test_published_results_are_listed_exactly_once_for_every_trigger_class() -> None:
    """The results are listed by preset; for some triggers, the preset follows other authors."""
    folder = ROOT / "conf" / "trigger"
    classes = {path.stem: _class(path) for path in folder.glob("*.yaml")}
    assert sorted(classes[name] for name in REPORTED) == sorted(set(classes.values()))


def _class(path: Path) -> str:
    (line,) = re.findall(r"(?m)^_target_: (\S+)$", path.read_text())
    return line


def test_every_published_result_has_a_source() -> None:
    for name, each in REPORTED.items():
        assert bool(each.accuracy or each.asr) == bool(each.source), name
        assert each.differs, name


def test_every_cell_of_the_sweep_named_ratios_alone_has_an_asr1_of_100_percent() -> None:
    cells = _of("paper/ratios_alone")
    assert {r["choices"]["ratio"] for r in cells} == {0.2, 0.4, 0.6, 0.9}
    assert {r["asr1"] for r in cells} == {1.0}


def test_the_numbers_in_questions_md_match_the_records() -> None:
    text = " ".join((SWEEPS / "paper" / "questions.md").read_text().split())
    cells = cells_of_documents.cells
    shown = [("attacks/photographs", t) for t in ("pattern", "blended", "sinusoid")]
    shown += [("attacks/embedded", "pattern")]
    clean = [c["ASR1"] for sweep, t in shown for c in cells(sweep, trigger=t, ratio="0%")]
    earlier = cells_of_documents.the(
        "paper/layers_horse", trigger="pattern", layer="layer4.0", defense="spectral"
    )
    auroc = [cell["AUROC"] for cell in cells("paper/pairs")]
    told = [c for c in cells("defenses/suspicious", defense="spectral") if c["Ratio"] != "0%"]
    named = sum(cell["record"]["counts"]["n_named"] for cell in told)
    unlearned = [c for c in cells("paper/report_airbench", defense="spectral") if c["ASR1"] < 4]
    assert (named, len(told), len(unlearned)) == (4, 6, 4)
    for said in (
        f"without poison takes {min(clean):.0f} to {max(clean):.1f} % of the images",
        f"the same filter leaves {earlier['#Pois Left']} of the {earlier['#Pois']}",
        f"its AUROC goes from {min(auroc):.2f} to {max(auroc):.2f}",
        "names the target in four of six cells",
        "in the four cells in which the trigger is not learned (ASR1 below 4 %)",
    ):
        assert said in text, said
