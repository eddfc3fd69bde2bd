"""Figures show the numbers they are given, read back from lines, bars, points and pixels."""

from __future__ import annotations

import io
import itertools
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.patches import Rectangle
from PIL import Image
from scipy import stats

from backdoor_lab.analysis.evidence import histogram, projections, removal_curve
from backdoor_lab.figures import catalogue, detection, images, inputs, ratios, run, style
from backdoor_lab.figures.__main__ import main, write_figures
from backdoor_lab.figures.filters import response_changes
from backdoor_lab.figures.inputs import SweepData
from backdoor_lab.figures.overview_figure import sheet
from backdoor_lab.results.artifact_reader import ArtifactReader, raw_records
from backdoor_lab.results.facts import CellFields
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.layout import split
from tests.helpers.records import GRID, PROTOCOL, record, write_sweep
from tests.helpers.stages import POISONED, TARGET, Made, cell, sweep


def whole_of(folder: Path) -> SweepData:
    return SweepData(
        read_sweep(folder).cells, raw_records(folder), ArtifactReader(folder.parent / ".store")
    )


def of_cell(folder: Path) -> dict[str, Any]:
    whole = whole_of(folder)
    return dict(catalogue.of_cell(whole, next(whole.done())[1]))


def test_histogram_bars_show_the_percentage_of_scores_in_each_bin(tmp_path: Path) -> None:
    folder, (made, _) = sweep(tmp_path)
    (axes,) = of_cell(folder)["scores"].axes
    mine = made.labels == TARGET
    for patch, kind in zip(axes.patches, (False, True), strict=True):
        values, edges, _ = patch.get_data()
        scores = made.scores[mine & (made.poison == kind)]
        expected = np.histogram(scores, edges)[0]
        np.testing.assert_allclose(values, 100 * expected / len(scores))
        assert values.sum() == pytest.approx(100)
    (cut,) = axes.lines
    removed, kept = made.scores[~made.keep], made.scores[mine & made.keep]
    assert kept.max() < cut.get_xdata()[0] < removed.min()


def test_scatter_points_equal_the_projections_of_the_features(tmp_path: Path) -> None:
    folder, (made, _) = sweep(tmp_path)
    (axes,) = of_cell(folder)["projections"].axes
    mine = made.labels == TARGET
    along = projections(made.features[mine].astype(np.float64))
    poison, keep = made.poison[mine], made.keep[mine]
    clean, poisoned, removed = (np.asarray(each.get_offsets()) for each in axes.collections)
    np.testing.assert_array_equal(clean, along[~poison])
    np.testing.assert_array_equal(poisoned, along[poison])
    np.testing.assert_array_equal(removed, along[~keep])


def test_the_drawn_removal_curve_agrees_with_the_record(tmp_path: Path) -> None:
    folder, (made, _) = sweep(tmp_path)
    (axes,) = of_cell(folder)["removal"].axes
    by_score, chance, point = axes.lines
    order = np.argsort(-made.scores[made.labels == TARGET])
    hits = made.poison[made.labels == TARGET][order]
    expected = POISONED - np.concatenate([[0], np.cumsum(hits)])
    np.testing.assert_array_equal(by_score.get_ydata(), expected)
    assert list(chance.get_ydata()) == [POISONED, 0]
    counts = next(whole_of(folder).done())[1]["counts"]
    assert point.get_xydata().tolist() == [[counts["n_removed"], counts["pois_left"]]]


def test_loss_curves_equal_the_recorded_losses(tmp_path: Path) -> None:
    folder, (made, _) = sweep(tmp_path)
    (axes,) = of_cell(folder)["training"].axes
    for line, losses in zip(axes.lines, made.losses.values(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), losses)
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])


def test_the_pipeline_figure_shows_the_counts_of_the_record(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    record = next(whole_of(folder).done())[1]
    (axes,) = of_cell(folder)["pipeline"].axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[::2] == ["load", "poison", "train", "extract", "filter", "retrain"]
    assert f"{record['counts']['n_poisoned']} poisoned" in texts[3]
    assert f"ASR {100 * record['asr1']:.2f} %" in texts[5]
    assert f"{record['counts']['n_removed']} removed" in texts[9]
    assert f"Nat {100 * record['nat2']:.2f} %" in texts[11]


def test_each_bar_of_the_cost_figure_is_a_stack_of_the_seconds_per_stage(tmp_path: Path) -> None:
    made = [record(*each) for each in GRID[:4]]
    for n, one in enumerate(made):
        one["run"]["seconds"] = {"train": 10.0 + n, "filter": 0.5 * n, "retrain": 7.0, "odd": "x"}
    folder = write_sweep(tmp_path / "s", made)
    figure = dict(catalogue.of_sweep(whole_of(folder)))["cost"]
    (axes,) = figure.axes
    found = {bars.get_label(): bars for bars in axes.containers}
    assert list(found) == ["train", "filter", "retrain"]
    for n, one in enumerate(made):
        left = 0.0
        for stage in found:
            bar = found[stage][n]
            assert bar.get_width() == one["run"]["seconds"][stage]
            assert bar.get_x() == pytest.approx(left)
            left += bar.get_width()


def test_the_cost_figure_of_many_cells_shows_the_most_expensive_ones(tmp_path: Path) -> None:
    made = [record(seed=seed) for seed in range(50)]
    for n, one in enumerate(made):
        one["run"]["seconds"] = {"train": float((37 * n) % 50)}
    whole = whole_of(write_sweep(tmp_path / "s", made))
    names, stages, seconds = inputs.costs([found for found, _ in whole.done()])
    assert stages == ["train"]
    assert len(names) == inputs.MOST_BARS
    assert sorted(seconds[:, 0]) == [float(n) for n in range(10, 50)]


def test_curves_over_the_poison_ratio_are_means_with_t_intervals(tmp_path: Path) -> None:
    made = [
        record("pixel", "bird", ratio, defense, seed)
        for ratio in (0.05, 0.1) for defense in ("spectral", "none") for seed in range(3)
    ]  # fmt: skip
    for one in made:  # The defenses of a seed share the attacked network and its ASR1.
        one["asr1"] = 0.7 + one["choices"]["ratio"] + one["choices"]["seed"] / 20
    whole = whole_of(write_sweep(tmp_path / "s", made))
    (group,) = split(CellFields([found for found, _ in whole.done()]))
    (panel,) = ratios.panels(group)
    figure = ratios.against_ratio("pixel", [panel])
    top, middle, bottom = figure.axes
    assert [bars.get_label() for bars in bottom.containers] == ["after spectral", "after none"]
    for axes, name in ((top, "asr"), (middle, "nat")):
        labels = [bars.get_label() for bars in axes.containers]
        assert labels == ["before", "after spectral", "after none"]
        for bars, defense in zip(axes.containers, (None, "spectral", "none"), strict=True):
            line, _, (segments,) = bars.lines
            for n, ratio in enumerate((0.05, 0.1)):
                values = [
                    100 * one[f"{name}{1 if defense is None else 2}"] for one in made
                    if one["choices"]["ratio"] == ratio
                    and one["choices"]["defense"] == (defense or "spectral")
                ]  # fmt: skip
                if defense is None and name == "nat":
                    continue  # Nat1 differs between the made-up defenses of a seed.
                half = stats.t.ppf(0.975, 2) * statistics.stdev(values) / np.sqrt(3)
                (_, low), (_, high) = segments.get_segments()[n]
                assert line.get_ydata()[n] == pytest.approx(statistics.fmean(values))
                assert high - low == pytest.approx(2 * half)
                assert line.get_xdata()[n] == pytest.approx(100 * ratio, abs=0.13)


def test_asr_under_a_transformation_is_drawn_against_the_strength_of_the_transformation(
    tmp_path: Path,
) -> None:
    """Each transformation has a panel and each trigger a line, starting at the untransformed
    images."""
    under = {"jpeg75": 0.5, "jpeg90": 0.75, "brightness0.5": 0.25, "fog3": 1.0}
    made = [
        record(trigger=trigger, seed=seed, asr1=0.875 + seed / 100,
               under={name: {"asr1": v - seed / 100, "nat1": v / 2} for name, v in under.items()},
               nat1=0.9375)
        for trigger in ("pixel", "blended") for seed in (0, 1)
    ]  # fmt: skip
    whole = whole_of(write_sweep(tmp_path / "s", made))
    drawn = dict(catalogue.of_sweep(whole))
    assert [name for name in drawn if "under" in name] == ["asr1_under"]
    jpeg, brightness = drawn["asr1_under"].axes
    assert [axes.get_title() for axes in (jpeg, brightness)] == ["jpeg", "brightness"]
    for axes, expected in ((jpeg, [49.5, 74.5, 88]), (brightness, [24.5, 88])):
        assert len(axes.containers) == 2
        for container, trigger in zip(axes.containers, ("pixel", "blended"), strict=True):
            assert container.get_label() == trigger
            np.testing.assert_allclose(container.lines[0].get_ydata(), expected)
    assert [each.get_text() for each in jpeg.get_xticklabels()] == ["75", "90", "none"]
    assert jpeg.xaxis_inverted()
    assert [each.get_text() for each in brightness.get_xticklabels()] == ["0.5", "none"]
    np.testing.assert_allclose(brightness.containers[0].lines[0].get_xdata(), [0.5, 1])
    for axes, expected in ((jpeg, [25, 37.5, 93.75]), (brightness, [12.5, 93.75])):
        (band,) = [each for each in axes.collections if each.get_label() == "Nat1, mean"]
        tops = dict(sorted(map(tuple, band.get_paths()[0].vertices.tolist())))
        np.testing.assert_allclose(list(tops.values()), expected)


def test_asr1_and_asr2_have_separate_figures_for_each_target(tmp_path: Path) -> None:
    said = {"blur1": {"asr1": 0.5, "asr2": 0.25}}
    made = [record(target=target, under=said) for target in ("bird", "dog")]
    drawn = dict(catalogue.of_sweep(whole_of(write_sweep(tmp_path / "s", made))))
    found = sorted(name for name in drawn if "under" in name)
    assert found == [f"{asr}_under-{target}" for asr in ("asr1", "asr2")
                     for target in ("bird", "dog")]  # fmt: skip


def test_a_sweep_without_transformations_has_no_transformation_figures(tmp_path: Path) -> None:
    drawn = dict(catalogue.of_sweep(whole_of(write_sweep(tmp_path / "s", [record()]))))
    assert not any("under" in name for name in drawn)


def test_a_ratio_counted_in_images_is_not_shown_as_a_percentage(tmp_path: Path) -> None:
    counted = {**PROTOCOL, "ratio_of": "count"}
    made = [record(ratio=n, protocol=counted) for n in (50, 250)]
    done = whole_of(write_sweep(tmp_path / "s", made)).done()
    (group,) = split(CellFields([found for found, _ in done]))
    (panel,) = ratios.panels(group)
    assert panel.axis == "poisoned images"
    assert panel.lines["asr"][0].ratios == pytest.approx([50, 250])
    figure = ratios.against_ratio("pixel", [panel])
    assert figure.axes[-1].get_xlabel() == "poisoned images"
    assert list(figure.axes[-1].get_xticks()) == [50, 250]


def test_figures_of_many_ratios_have_a_logarithmic_axis_and_the_predicted_auroc(
    tmp_path: Path,
) -> None:
    made = [record(ratio=ratio, seed=s) for ratio in (0.002, 0.02, 0.2, 1) for s in range(2)]
    done = whole_of(write_sweep(tmp_path / "s", made)).done()
    (group,) = split(CellFields([found for found, _ in done]))
    said = {one["id"]: 0.5 + one["choices"]["ratio"] / 2 for one in made}
    (panel,) = ratios.panels(group, said)
    measured, predicted = panel.lines["auroc"]
    assert (measured.name, predicted.name) == ("after spectral", ratios.PREDICTED)
    assert measured.means == pytest.approx([99.0] * 4)
    assert predicted.means == pytest.approx([50.1, 51, 60, 100])
    figure = ratios.against_ratio("pixel", [panel])
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    assert figure.axes[-1].get_xscale() == "symlog"
    assert list(figure.axes[-1].get_xticks()) == pytest.approx([0.2, 2, 20, 100])


@pytest.mark.parametrize(
    ("stages", "over", "last", "shown", "hidden"),
    [
        (
            ["filter", "retrain"],
            {},
            ["filter", "retrain"],
            ["anp", "removed", "Nat 91.23 %"],
            ["–"],
        ),
        (
            ["filter"],
            {"nat2": None, "asr2": None},
            ["extract", "filter"],
            ["anp", "removed"],
            ["–", "91.23"],
        ),
        (["repair"], {}, ["extract", "repair"], ["anp", "Nat 91.23 %"], ["–", "removed"]),
    ],
)
def test_the_pipeline_figure_shows_the_stages_that_ran(
    stages: list[str], over: dict[str, Any], last: list[str], shown: list[str], hidden: list[str]
) -> None:
    made = record(defense="anp", **{"nat2": 0.9123, **over})
    made["run"]["stages"] = {name: {"id": "x", "made": True} for name in stages}
    told = inputs.steps(made)
    assert [name for name, _ in told][-2:] == last
    text = " ".join(line for _, lines in told for line in lines)
    assert [words for words in [*shown, *hidden] if words in text] == shown


def test_the_pipeline_figure_of_an_all_to_all_attack_shows_the_next_class_as_target() -> None:
    made = record(protocol={**PROTOCOL, "label_mode": "all_to_all"})
    assert dict(inputs.steps(made))["poison"][0] == "pixel → the next class"


@pytest.mark.parametrize("stage", ["repair", "clean", "autoencoder", "surrogate"])
def test_the_cost_figure_includes_every_stage(tmp_path: Path, stage: str) -> None:
    made = record()
    made["run"]["seconds"] = {"train": 3.0, stage: 4.0}
    whole = whole_of(write_sweep(tmp_path / "s", [made]))
    _, stages, seconds = inputs.costs([found for found, _ in whole.done()])
    assert set(stages) == {"train", stage}
    assert seconds.sum() == 7.0


def test_an_oracle_cell_without_retraining_provides_no_clean_network(tmp_path: Path) -> None:
    made = [record(defense="oracle", nat2=None, asr2=None)]
    made[0]["counts"]["pois_left"] = 0
    assert inputs.trained_clean(whole_of(write_sweep(tmp_path / "s", made)), made[0]) is None


def test_the_mean_before_the_defense_uses_each_seed_once_even_with_several_defenses(
    tmp_path: Path,
) -> None:
    made = [record(defense=d, seed=s) for s in range(2) for d in ("spectral", "none", "random")]
    for one in made:
        one["asr1"] = (0.5, 0.9)[one["choices"]["seed"]]
    whole = whole_of(write_sweep(tmp_path / "s", made))
    (group,) = split(CellFields([found for found, _ in whole.done()]))
    before = ratios.panels(group)[0].lines["asr"][0]
    assert before.means == pytest.approx([70.0])
    assert before.halves == pytest.approx([stats.t.ppf(0.975, 1) * 20.0])
    single = ratios.panels(split(CellFields([found for found, _ in whole.done()][:1]))[0])[0]
    assert np.isnan(single.lines["asr"][0].halves).all()


def test_the_trigger_figure_shows_the_stored_pixels(tmp_path: Path) -> None:
    folder, (made, _) = sweep(tmp_path)
    figure = dict(catalogue.of_sweep(whole_of(folder)))["triggers"]
    clean, triggered, difference = (
        np.moveaxis(np.asarray(axes.images[0].get_array()), -1, 0) for axes in figure.axes
    )
    np.testing.assert_array_equal(clean, made.base[made.source[0]])
    np.testing.assert_array_equal(triggered, made.rows[0])
    changed = np.argwhere((difference != 128).any(axis=0))
    assert changed.tolist() == [[7, 7]]


def test_the_trigger_figure_shows_a_cell_whose_poison_is_still_in_the_store(tmp_path: Path) -> None:
    """The poison of the first cell was deleted, so the next cell is shown."""
    folder, (_, second) = sweep(tmp_path)
    shutil.rmtree(tmp_path / ".store" / "poison" / "cell0")
    figure = dict(catalogue.of_sweep(whole_of(folder)))["triggers"]
    shown = np.moveaxis(np.asarray(figure.axes[1].images[0].get_array()), -1, 0)
    np.testing.assert_array_equal(shown, second.rows[0])


def test_two_triggers_are_shown_on_the_same_image() -> None:
    first, second = Made(0), Made(0)
    second.rows = second.rows.copy()
    second.rows[:, :, 0, 0] = 255
    found: list[Any] = []
    for name, made in (("a", first), ("b", second)):
        training = type("T", (), {"original": made.source, "poisoned": POISONED,
                                  "base": made.base, "rows": made.rows})()  # fmt: skip
        found.append((name, {}, training))
    names, originals, changed = inputs.trigger_rows(found)
    assert names == ["a", "b"]
    np.testing.assert_array_equal(originals[0], originals[1])
    assert (changed[0] != changed[1]).any()


def test_a_kernel_shaped_like_the_trigger_responds_to_it_more_than_random_kernels_do() -> None:
    draw = np.random.default_rng(0)
    clean = draw.integers(90, 110, (20, 1, 9, 9), dtype=np.uint8)
    triggered = clean.copy()
    stamp = np.array([[255, 0, 255], [0, 255, 0], [255, 0, 255]])
    triggered[:, 0, 3:6, 3:6] = stamp
    weights = draw.normal(size=(6, 1, 3, 3))
    weights[4, 0] = np.sign(stamp - 127.0)
    weights /= np.linalg.norm(weights.reshape(6, -1), axis=1)[:, None, None, None]
    found = response_changes(weights, clean, triggered, clean)
    assert found.argmax() == 4
    scaled = response_changes(3 * weights, clean, triggered, clean)
    np.testing.assert_allclose(scaled, found)
    assert not response_changes(weights, clean, clean, clean).any()


def test_filter_responses_equal_a_convolution_in_torch() -> None:
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(1)
    clean, other = draw.integers(0, 256, (2, 5, 3, 8, 6), dtype=np.uint8)
    weights = draw.normal(size=(4, 3, 3, 3))
    mean = clean.mean(axis=(0, 2, 3), keepdims=True)
    std = clean.std(axis=(0, 2, 3), keepdims=True)
    one, two = (
        torch.nn.functional.conv2d(torch.tensor((x - mean) / std), torch.tensor(weights), padding=1)
        for x in (clean, other)
    )
    largest = (two - one).abs().flatten(2).amax(dim=2).mean(dim=0)
    expected = largest / one.transpose(0, 1).flatten(1).std(dim=1, correction=0)
    np.testing.assert_allclose(response_changes(weights, clean, other, clean), expected)


def test_convolution_filters_are_drawn_exactly_and_the_most_responsive_is_framed() -> None:
    weights = np.random.default_rng(0).normal(size=(5, 3, 3, 3))
    changes = np.array([1.0, 2.0, 9.0, 0.5, 3.0])
    figure = images.filters([[images.Layer("net", weights, changes)]])
    (axes,) = figure.axes
    picture = np.asarray(axes.images[0].get_array())
    frames = [each for each in axes.patches if isinstance(each, Rectangle)]
    left, top = (round(value + 0.5) for value in frames[0].get_xy())
    tile = picture[top : top + 3, left : left + 3]
    expected = 127.5 + 127.5 * weights[2] / np.abs(weights[2]).max()
    np.testing.assert_array_equal(tile, np.rint(expected).transpose(1, 2, 0).astype(np.uint8))
    assert "filter 2: 9.0" in axes.get_title()


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([("spectral", 3), ("oracle", 0), ("none", 8)], ("oracle's retraining", "retrain")),
        ([("spectral", 0), ("none", 8)], ("spectral's retraining", "retrain")),
        ([("spectral", 3)], None),
    ],
)
def test_the_clean_network_in_the_figure_of_the_filters_is_one_trained_without_poison(
    tmp_path: Path, kinds: list[tuple[str, int]], expected: tuple[str, str] | None
) -> None:
    made = [record(defense=defense) for defense, _ in kinds]
    for one, (_, left) in zip(made, kinds, strict=True):
        one["counts"]["pois_left"] = left
    found = inputs.trained_clean(whole_of(write_sweep(tmp_path / "s", made)), made[0])
    assert (found and (found[0], found[2])) == expected
    if expected:
        apart = {**made[0], "choices": {**made[0]["choices"], "model": "other"}}
        assert inputs.trained_clean(whole_of(tmp_path / "s"), apart) is None


def test_a_network_trained_at_ratio_zero_is_preferred_as_the_clean_network(tmp_path: Path) -> None:
    made = [record(defense="oracle"), record(ratio=0.0, defense="none")]
    for one in made:
        one["counts"]["pois_left"] = 0
    found = inputs.trained_clean(whole_of(write_sweep(tmp_path / "s", made)), made[0])
    assert found is not None
    assert (found[0], found[2]) == ("ratio 0", "train")


# --- colors ------------------------------------------------------------------------------------


def test_luminance_and_contrast_of_colors_follow_the_wcag_standard() -> None:
    assert style.contrast("#000000", "#FFFFFF") == pytest.approx(21)
    assert style.luminance("#FF0000") == pytest.approx(0.2126)
    assert style.contrast("#777777", "#FFFFFF") == pytest.approx(4.48, abs=0.01)


def test_clean_and_poisoned_and_removed_images_have_colors_that_differ_in_grayscale() -> None:
    for one, other in itertools.combinations((style.CLEAN, style.POISON, style.REMOVED), 2):
        assert style.contrast(one, other) >= 2
    # Colors with a contrast below 3:1 to white have a dark edge.
    for color in (style.CLEAN, style.REMOVED, style.CHANCE, style.EDGE):
        assert style.contrast(color, style.PAPER) >= 3
    assert style.contrast(style.POISON, style.EDGE) >= 3


def test_similar_colors_are_also_told_apart_by_marker_line_style_or_hatch() -> None:
    marks = [style.mark(n) for n in range(35)]
    assert len({(each.color, each.line) for each in marks}) == 35
    for one, other in itertools.combinations(marks[:7], 2):
        if style.contrast(one.color, other.color) < 1.5:
            assert one.marker != other.marker
            assert one.line != other.line
    for one, other in itertools.pairwise(style.fill(n) for n in range(18)):
        assert one.hatch != other.hatch
        assert one.color != other.color


def test_figures_use_only_the_colors_of_the_palette(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    found = of_cell(folder)
    clean, poisoned, removed = found["projections"].axes[0].collections
    for drawn, color in ((clean, style.CLEAN), (poisoned, style.POISON), (removed, style.REMOVED)):
        assert colors.to_hex(drawn.get_facecolor()[0]).upper() == color
    assert colors.to_hex(poisoned.get_edgecolor()[0]) == style.EDGE
    assert len({each.get_paths()[0].vertices.tobytes() for each in (clean, poisoned, removed)}) == 3
    bars = found["scores"].axes[0].patches
    assert [bar.get_hatch() or "" for bar in bars] == ["", "////"]
    assert {colors.to_hex(bar.get_edgecolor()) for bar in bars} == {style.EDGE}


# --- files --------------------------------------------------------------------------------------


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes empty files instead of rendering, for tests that check only file names."""

    def save(_: Any, path: Path) -> list[Path]:
        files = [path.with_name(f"{path.name}.{suffix}") for suffix in style.FORMATS]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return files

    monkeypatch.setattr(style, "save", save)


@pytest.mark.usefixtures("unsaved")
def test_figures_are_written_per_sweep_and_per_cell(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path)
    written = write_figures(folder, most=1)
    names = {str(path.relative_to(folder / "figures")) for path in written}
    of_sweep = {"triggers", "filters", "pipeline", "ratio_pixel", "cost", "sheet"}
    one = next(whole_of(folder).done())[0].id
    of_one = {f"{one}/{n}" for n in ("pipeline", "training", "scores", "removal", "projections")}
    assert names == {f"{name}.{s}" for name in of_sweep | of_one for s in ("png", "pdf")}


def test_drawing_a_figure_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    steps = [("load", ["$a$ _b_ {c}$"]), ("poison", ["\\frac"])]
    first, second = (
        [path.read_bytes() for path in style.save(run.pipeline(steps), tmp_path / name)]
        for name in "ab"
    )
    assert first == second
    png, pdf = first
    assert Image.open(io.BytesIO(png)).size[0] == round(2 * 1.45 * style.DPI)
    assert pdf.startswith(b"%PDF-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]


@pytest.mark.usefixtures("unsaved")
def test_without_a_store_the_figures_that_need_only_records_are_still_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_sweep(tmp_path / "s", [record(), record(ratio=0.1)])
    assert main([str(folder), "--most", "-1"]) == 2
    assert "`--most`" in capsys.readouterr().err
    assert main([str(folder), "--most", "0"]) == 0
    names = {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {"pipeline", "ratio_pixel", "cost"}
    told = capsys.readouterr().out
    assert "no store was found" in told
    assert "2 of 2 cells have no figures" in told


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize("name", ["../../x", "$a$ _b_ {c}", "<i>\n\x1b[31m", "\u4e2d", "x" * 200])
def test_figures_stay_inside_the_figures_folder_for_any_names_in_records(
    tmp_path: Path, name: str
) -> None:
    made = cell(tmp_path / "deep" / ".store", Made(0), "one")
    made["id"] = "a"
    made["choices"] |= {"trigger": name, "defense": name}
    folder = write_sweep(tmp_path / "deep" / "sweep", [made])
    found = {path.resolve() for path in write_figures(folder)}
    assert found
    assert all(path.is_relative_to((folder / "figures").resolve()) for path in found)


def test_a_sweep_folder_that_does_not_exist_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "no")]) == 2
    assert main([str(tmp_path), "--store", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.count("no such folder") == 2


def test_an_overview_sheet_needs_a_filter_and_its_artifacts(tmp_path: Path) -> None:
    folder, _ = sweep(tmp_path / "a")
    assert sheet(whole_of(folder)) is not None
    controls, _ = sweep(tmp_path / "b", defense="oracle")
    assert sheet(whole_of(controls)) is None
    assert sheet(SweepData([], {}, ArtifactReader(None))) is None


def test_every_figure_function_takes_plain_arrays() -> None:
    """Figure functions need neither a record nor a store."""
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    poison, keep = np.array([0, 0, 0, 1], bool), np.array([1, 1, 1, 0], bool)
    bars, curve = histogram(scores, poison, keep), removal_curve(scores, poison)
    assert bars is not None
    assert curve is not None
    for figure in (
        detection.scores(bars),
        detection.removal(curve, (1, 0)),
        detection.projections(np.eye(4)[:, :2], poison, keep),
        run.training({"a": np.array([1.0])}),
        run.cost(["x"], ["train"], np.array([[1.0]])),
        run.pipeline([("load", ["1"])]),
        images.triggers(["t"], np.zeros((1, 1, 4, 4), np.uint8), np.ones((1, 1, 4, 4), np.uint8)),
    ):
        figure.canvas.draw()
        assert figure.axes
