"""The page as text: complete, self-contained, escaped, faithful to records and artifacts."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hatchling.builders.wheel import WheelBuilder
from PIL import Image

from backdoor_lab.analysis.evidence import projections
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.figures import catalogue, inputs
from backdoor_lab.figures.inputs import SweepData
from backdoor_lab.page import document as page
from backdoor_lab.page import page_pictures
from backdoor_lab.page.document import SCRIPTS, STYLE, write_page
from backdoor_lab.page.page_facts import facts
from backdoor_lab.page.page_pictures import GRID as CELLS
from backdoor_lab.page.page_pictures import all_pictures, png_strip
from backdoor_lab.page.write import write_tables
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.templates import TEMPLATES
from tests.helpers.hostile import HOSTILE
from tests.helpers.records import GRID, PROTOCOL, failed, record, write_sweep
from tests.helpers.stages import CLASSES, PER_CLASS, POISONED, REMOVED, TARGET, Made, cell, sweep


class Reader(html.parser.HTMLParser):
    """Collects tags with their attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.raw: list[str] = []
        self.seen = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.seen += data
        if self.tags and self.tags[-1][0] in ("script", "style") and data.strip():
            self.raw.append(data)


def written(folder: Path, store: Path | None = None) -> str:
    return write_page(folder, store).read_text()


def data_of(text: str) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    return json.loads(found)


def test_the_page_loads_no_external_resource_and_allows_only_its_own_script(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    reader = Reader(written(folder))
    places = [v for _, a in reader.tags for k, v in a.items() if k in ("src", "href", "action")]
    assert places
    assert all(str(place).startswith("#") for place in places)
    assert not [a for _, a in reader.tags if any(k.startswith("on") or k == "style" for k in a)]
    (policy,) = [a["content"] for t, a in reader.tags if "http-equiv" in a]
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    style, _, script = reader.raw
    for name, text in (("script-src", script), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    plain, _ = sweep(tmp_path / "plain")
    made = cell(tmp_path / "hostile" / ".store", Made(0), "one", target="bird")
    made["choices"] |= {"trigger": HOSTILE, "defense": HOSTILE, "model": HOSTILE}
    made["run"] |= {"command": HOSTILE, "device": HOSTILE, HOSTILE: HOSTILE}
    made["config"] |= {HOSTILE: {HOSTILE: HOSTILE}}
    bad = failed(record(seed=7), "failed: " + HOSTILE)
    folder = write_sweep(tmp_path / "hostile" / "sweep", [made, bad])
    listed = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(listed | {"name": HOSTILE, "command": HOSTILE}))
    text = written(folder)
    kinds = {tag for tag, _ in Reader(text).tags}
    assert kinds - {"option"} == {tag for tag, _ in Reader(written(plain)).tags} - {"option"}
    assert "<script>alert" not in text
    assert "<img" not in text
    assert not re.search("[\x1b\u202e\u2028]", text)
    shown = data_of(text)
    assert (
        "</script><script>alert(1)"
        in dict(zip(shown["names"], shown["own"][0], strict=True))["run.command"]
    )


def test_the_details_of_a_cell_show_the_same_text_as_the_table(tmp_path: Path) -> None:
    """This holds even for 0.125%, which is halfway between 0.12% and 0.13%."""
    made = [record(nat1=0.99125, asr1=0.00125, nat2=None, asr2=0.0), failed(record(seed=1))]
    folder = write_sweep(tmp_path / "s", made)
    text = written(folder)
    poisoned, left = made[0]["counts"]["n_poisoned"], made[0]["counts"]["pois_left"]
    told = data_of(text)["figures"]
    assert told == [
        ["99.12", "0.12", str(poisoned), "–", "0.00", str(left)], ["–"] * 6
    ]  # fmt: skip
    row = re.findall(r'<tr data-cell="0".*?</tr>', text)[0]
    assert all(f">{each}<" in row for each in told[0] if each != "–")
    assert "0.12" in (write_tables(folder) and (folder / "tables/table_pixel.md").read_text())


def test_the_page_shows_poison_counts_and_the_asr_of_classes_that_are_not_attacked(
    tmp_path: Path,
) -> None:
    counted = {**PROTOCOL, "ratio_of": "count"}
    made = [record(ratio=r, protocol=counted, asr_elsewhere1=0.0525) for r in (0, 250)]
    text = written(write_sweep(tmp_path / "s", made))
    assert ">250<" in text
    assert ">0<" in text
    assert ">0%<" not in text
    assert "ASR1 elsewhere" in text
    assert text.count(">5.25<") == 2
    assert "ASR1 elsewhere" not in written(write_sweep(tmp_path / "t", [record()]))


def test_the_table_of_the_page_has_every_cell_with_its_values(tmp_path: Path) -> None:
    made = [record(*each) for each in GRID]
    made[3] = failed(made[3])
    folder = write_sweep(tmp_path / "s", made, [*made, record(seed=5)])
    text = written(folder)
    rows = re.findall(r'<tr data-cell="(\d+)" data-state="(\w+)">(.*?)</tr>', text)
    assert [int(number) for number, *_ in rows] == list(range(13))
    assert [state for _, state, _ in rows].count("failed") == 1
    assert rows[-1][1] == "missing"
    heads = re.findall(r'title="[^"]*">([^<]+)</button></th>', text)
    for (_, state, row), one in zip(rows, made, strict=False):
        cells = [re.sub("<[^>]*>", "", each) for each in re.findall(r"<td.*?</td>", row)]
        told = dict(zip(heads, cells, strict=True))
        assert told["Trigger"] == one["choices"]["trigger"]
        assert told["Ratio"] == f"{100 * one['choices']['ratio']:g}%"
        if state == "done":
            assert told["ASR1"] == f"{100 * one['asr1']:.2f}"
            assert told["#Pois Left"] == str(one["counts"]["pois_left"])
            assert told["Seconds"] == "58.0"
        else:
            assert told["ASR1"] == "–"
            assert told["Status"] == "failed: oom"
    assert "<b>13</b> cells" in text
    assert "<b>11</b> done" in text


def test_values_common_to_all_cells_are_shown_once_and_no_value_of_a_record_is_lost(
    tmp_path: Path,
) -> None:
    made = [record(*each) for each in GRID[:3]]
    shown = data_of(written(write_sweep(tmp_path / "s", made)))
    for number, one in enumerate(made):
        own = dict(zip(shown["names"], shown["own"][number], strict=True))
        told = shown["common"] | own
        assert not set(own) & set(shown["common"])
        assert told["nat1"] == f"{one['nat1']:.10g}"
        assert told["choices.target"] == one["choices"]["target"]
        assert told["run.versions.torch"] == "2.10.0"
        assert told["choices.source"] == "none"
        assert not [name for name in told if "poison_indices" in name]
    assert shown["common"]["protocol.ratio_of"] == "target"


def test_a_missing_cell_is_ignored_when_common_values_are_found() -> None:
    found = facts([{"a": 1, "b": 2}, {}, {"a": 1, "b": 3}])
    assert (found.common, found.names) == ({"a": "1"}, ["b"])
    assert found.own == [["2"], [None], ["3"]]
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"x": deep}
    assert len(facts([deep]).names) == 1


def test_charts_show_the_stored_artifacts(tmp_path: Path) -> None:
    folder, made = sweep(tmp_path)
    shown = data_of(written(folder))
    assert shown["notes"] == []
    for number, one in enumerate(made):
        pictures = shown["pictures"][str(number)]
        bars, points = pictures["scores"], pictures["scatter"]
        assert (sum(bars["clean"]), sum(bars["poison"])) == (PER_CLASS, POISONED)
        left = int((one.poison & one.keep).sum())
        assert pictures["curve"]["at"] == [REMOVED, left]
        assert (
            dict(zip(pictures["curve"]["removed"], pictures["curve"]["left"], strict=True))[REMOVED]
            == left
        )
        kinds = points["points"][2::3]
        assert [kinds.count(kind) for kind in range(4)] == points["totals"]
        assert points["totals"][3] == POISONED - left
        assert pictures["loss"]["train"] == [[1, 2], [2, 1], [3, 0.5]]
        mine = np.flatnonzero(one.labels == TARGET)
        along = projections(one.features[mine].astype(np.float64))
        low, high = np.array(points["span"]).T
        drawn = low + np.array(points["points"]).reshape(-1, 3)[:, :2] / CELLS * (high - low)
        expected = along[np.lexsort(along.T)]
        np.testing.assert_allclose(drawn[np.lexsort(drawn.T)][:, 1], expected[:, 1], atol=0.02)


def test_thumbnails_show_the_stored_pixels_with_their_scores(tmp_path: Path) -> None:
    folder, (one, _) = sweep(tmp_path)
    strip = data_of(written(folder))["pictures"]["0"]["images"]
    data = base64.b64decode(strip["sheet"].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    width = strip["tile"][0]
    place = 0
    for kind, mask in (
        ("removed", ~one.keep & one.poison),
        ("mistaken", ~one.keep & ~one.poison),
        ("missed", one.keep & one.poison),
    ):
        members = sorted(np.flatnonzero(mask), key=lambda n: -one.scores[n])[:8]
        assert len(strip["rows"][kind]) == len(members)
        for (score, given, was), n in zip(strip["rows"][kind], members, strict=True):
            assert score == pytest.approx(one.scores[n], rel=1e-3)
            assert CLASSES[given] == "bird"
            row = one.index[n] - len(one.base)
            image = one.base[one.index[n]] if row < 0 else one.rows[row]
            assert was == (TARGET if row < 0 else one.clean_labels[one.source[row]])
            tile = pixels[:, :, place * width : (place + 1) * width]
            np.testing.assert_array_equal(tile, image)
            place += 1


def test_large_images_are_reduced_and_gray_ones_stay_gray() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 200, 100), dtype=np.uint8)
    sheet, tile = png_strip(images)
    picture = Image.open(io.BytesIO(base64.b64decode(sheet.partition(",")[2])))
    assert (tile, picture.size, picture.mode) == ([32, 64], (96, 64), "L")


def test_without_a_store_the_page_has_a_note(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "s", [record()])
    shown = data_of(written(folder))
    assert shown["pictures"]["0"] == {"notes": [], "loss": {}}
    assert any("no store was found" in note for note in shown["notes"])


def test_without_a_store_the_recorded_curve_is_drawn(tmp_path: Path) -> None:
    made = record()
    made["detection"]["curve"] = {"removed": [0, 4, 75, 1050], "left": [50, 46, 3, 0]}
    made["counts"]["pois_left"] = 3
    folder = write_sweep(tmp_path / "s", [made])
    assert data_of(written(folder))["pictures"]["0"]["curve"] == {
        "removed": [0, 4, 75, 1050], "left": [50, 46, 3, 0], "total": 50, "scored": 50,
        "at": [75, 3],
    }  # fmt: skip
    whole = SweepData(read_sweep(folder).cells, raw_records(folder), ArtifactReader(None))
    figure = dict(catalogue.of_cell(whole, raw_records(folder)[made["id"]]))["removal"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [50, 46, 3, 0]


def test_a_trigger_applied_after_augmentation_has_no_thumbnails(tmp_path: Path) -> None:
    made = cell(tmp_path / ".store", Made(0), "one")
    made["protocol"]["apply_trigger"] = "after_augmentation"
    shown = data_of(written(write_sweep(tmp_path / "s", [made])))["pictures"]["0"]
    assert "images" not in shown
    assert shown["notes"] == [page_pictures.LATE]
    assert shown["scores"]


@pytest.mark.parametrize(
    ("budget", "shown"), [(0, 0), (1500, 0), (6000, 1), (20_000, 4), (60_000, 4), (400_000, 4)]
)
def test_charts_stay_within_their_size_limit(tmp_path: Path, budget: int, shown: int) -> None:
    records = [cell(tmp_path, Made(n), f"cell{n}", seed=n) for n in range(4)]
    made = all_pictures(ArtifactReader(tmp_path), records, budget)
    kept = [each for each in made if not any("omitted" in note for note in each["notes"])]
    assert sum(len(json.dumps(each, separators=(",", ":"))) for each in kept) <= budget
    assert len(made) == 4
    assert len(kept) == shown


def test_charts_under_a_size_limit_still_show_images_that_were_mistaken_for_poison(
    tmp_path: Path,
) -> None:
    records = [cell(tmp_path, Made(n), f"cell{n}", seed=n) for n in range(4)]
    made = all_pictures(ArtifactReader(tmp_path), records, 400_000)
    assert len(made) == 4
    assert all(len(each["images"]["rows"]["mistaken"]) >= 4 for each in made)


def test_writing_the_page_again_gives_the_same_bytes(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    path = write_page(folder)
    first, when = path.read_bytes(), path.stat().st_mtime_ns
    assert write_page(folder).stat().st_mtime_ns == when
    assert path.read_bytes() == first
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_writing_the_page_does_not_follow_a_symbolic_link(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    (tmp_path / "outside.html").write_text("kept")
    (folder / "index.html").symlink_to(tmp_path / "outside.html")
    with pytest.raises(ConfigError):
        write_page(folder)
    assert (tmp_path / "outside.html").read_text() == "kept"


def mutilated(value: Any, draw: random.Random) -> Any:
    """`value` with a randomly chosen part replaced by a value of another type."""
    odd = [None, True, -1, 1e300, 10**15, "", "<b>", [], {}, [[1]], {"a": {"b": None}}, "\ud800"]
    if isinstance(value, dict) and value and draw.random() < 0.95:
        name = draw.choice(sorted(value))
        return {**value, name: mutilated(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.5:
        return [*value[:-1], mutilated(value[-1], draw)]
    return draw.choice(odd)


@pytest.mark.parametrize("seed", range(20))
def test_a_malformed_record_does_not_break_the_page(tmp_path: Path, seed: int) -> None:
    """The page is still written, and the intact cell keeps its charts."""
    draw = random.Random(seed)
    made = [cell(tmp_path / ".store", Made(n), f"cell{n}", seed=n) for n in range(2)]
    for _ in range(1 + seed % 3):
        name = draw.choice([*made[0]] * 2 + ["run", "config", "counts", "choices"] * 4)
        made[0][name] = mutilated(made[0][name], draw)
    made[0]["id"] = "odd"
    folder = write_sweep(tmp_path / "sweep", made[:1], [])
    write_sweep(folder, made[1:])
    shown = data_of(written(folder))
    assert "scores" in shown["pictures"][str(shown["ids"].index(made[1]["id"]))]
    whole = SweepData(
        read_sweep(folder).cells, raw_records(folder), ArtifactReader(tmp_path / ".store")
    )
    for _, found in whole.done():
        assert inputs.steps(found)
        for name, _ in catalogue.of_cell(whole, found):
            assert name
    assert [name for name, _ in catalogue.of_sweep(whole)]


def test_the_page_is_written_together_with_the_tables(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    write_tables(folder)
    first = (folder / "index.html").read_bytes()
    write_page(folder)
    assert (folder / "index.html").read_bytes() == first


def test_a_folder_without_cells_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    text = written(tmp_path)
    assert "<b>0</b> cells" in text
    assert str(tmp_path) not in text


def test_the_page_of_a_sweep_with_too_many_cells_says_so_and_lists_no_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_sweep(tmp_path / "s", [record(seed=seed) for seed in range(3)])
    ids = [each.id for each in read_sweep(folder).cells]
    whole = written(folder)
    assert all(name in whole for name in ids)
    monkeypatch.setattr(page, "MOST_CELLS", 2)
    short = written(folder)
    assert "This sweep has 3 cells; the page lists at most 2" in short
    assert not any(name in short for name in ids)
    tables = re.compile(r'<section id="tables">.*?</section>', re.DOTALL)
    assert tables.findall(short) == tables.findall(whole) != []
    assert [text for text in Reader(short).raw if text != "{}"] == Reader(whole).raw[:1]


def test_the_templates_are_in_the_wheel() -> None:
    root = Path(__file__).parents[3]
    listed = {f.distribution_path for f in WheelBuilder(str(root)).recurse_included_files()}
    found = {path.name for path in TEMPLATES.iterdir()}
    assert found >= {*SCRIPTS, STYLE, "sweep.html", "tables.html", "grid.html"}
    assert {f"backdoor_lab/templates/{name}" for name in found} <= listed


def test_the_scripts_of_the_page_insert_text_and_never_markup() -> None:
    for name in SCRIPTS:
        text = (TEMPLATES / name).read_text()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
        assert not re.search(r"fetch\(|XMLHttp|WebSocket|import |https?://(?!www\.w3\.org)", text)
        assert len(text.splitlines()) <= 300
