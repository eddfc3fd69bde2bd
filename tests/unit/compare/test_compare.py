"""Comparison of sweeps: which cells are paired, which are left out, and the notes."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from backdoor_lab.compare.__main__ import main
from backdoor_lab.compare.compare_text import Comparison, document, grid
from backdoor_lab.compare.comparison import against_random, comparison_of
from backdoor_lab.compare.pairs import ComparisonRow
from backdoor_lab.compare.report import SweepReport
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.results.sweeps import read_sweep
from backdoor_lab.tables.writers import latex, markdown, page, sheet, terminal
from tests.helpers.records import GRID, PROTOCOL, failed, per_class, record, write_sweep
from tests.helpers.tables import latex_with_booktabs

SEEDS = range(4)


def sweep(folder: Path, made: list[dict[str, Any]], asked: Any = None) -> Any:
    return read_sweep(write_sweep(folder, made, asked))


def line(found: Comparison, measure: str, *labels: str, side: str = "") -> ComparisonRow:
    (one,) = [each for each in found.lines
              if (each.measure, each.labels, each.side) == (measure, labels, side)]  # fmt: skip
    return one


def test_rates_on_transformed_test_images_are_compared(tmp_path: Path) -> None:
    made = [
        record(defense=d, seed=s, under={"jpeg75": {"asr2": v + s / 100}})
        for d, v in (("spectral", 0.25), ("random", 0.75)) for s in SEEDS
    ]  # fmt: skip
    asked = {"by": "defense", "base": "random", "values": "asr2_under.jpeg75"}
    found = comparison_of([sweep(tmp_path / "s", made)], **asked)
    assert line(found, "asr2_under.jpeg75", side="spectral").result.mean == pytest.approx(-50)


def test_the_accuracy_of_one_class_is_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        record(defense=d, seed=s, per_class=per_class(nat2=[v + s / 100, 0.5, 0.5]))
        for d, v in (("spectral", 0.25), ("random", 0.75)) for s in SEEDS
    ]  # fmt: skip
    folder = write_sweep(tmp_path / "s", made)
    asked = [str(folder), "by=defense", "base=random"]
    assert main([*asked, "values=nat2_class.cat"]) == 0
    said = capsys.readouterr().out
    assert "Nat2 cat" in said
    assert "accuracy on clean test images of class cat after the defense" in said
    found = comparison_of(
        [read_sweep(folder)], by="defense", base="random", values="nat2_class.cat"
    )
    assert line(found, "nat2_class.cat", side="spectral").result.mean == pytest.approx(-50)
    assert main([*asked, "values=nat2_class.cow"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_cells_of_two_sweeps_are_paired_by_their_choices_and_seed(tmp_path: Path) -> None:
    made = {name: [record(*cell, seed=s, choices={"recipe": name}) for cell in GRID for s in SEEDS]
            for name in ("fast", "slow")}  # fmt: skip
    for n, cell in enumerate(made["slow"]):
        cell["nat2"] = round(cell["nat2"] - 0.001 * (n % 7), 4)
    # The order on disk does not matter.
    other = sweep(tmp_path / "slow", made["slow"][::-1])
    found = comparison_of([sweep(tmp_path / "fast", made["fast"]), other], values="nat2,pois_left")
    assert found.labels == ("trigger", "target", "ratio")
    assert len([one for one in found.lines if not one.lines]) == 2 * len(GRID)
    for trigger, target, ratio in GRID:
        mine = {
            name: [100 * m["nat2"] for m in cells
                   if [m["choices"][k] for k in ("trigger", "target", "ratio")]
                   == [trigger, target, ratio]]
            for name, cells in made.items()
        }  # fmt: skip
        one = line(found, "nat2", trigger, target, f"{100 * ratio:g}%")
        assert one.result.n == len(SEEDS)
        theirs = stats.ttest_rel(mine["fast"], mine["slow"])
        assert one.result.t == pytest.approx(theirs.pvalue)
        assert one.ours - one.base == pytest.approx(one.result.mean)
        low, high = theirs.confidence_interval(0.95)
        assert one.result.half == pytest.approx((high - low) / 2)
    # The made-up figures of a cell do not depend on its recipe.
    same = [each.result for each in found.lines if each.measure == "pois_left" and not each.lines]
    assert all(result.constant and result.mean == 0 for result in same)
    assert any("recipe: fast → slow" in note for note in found.notes)


def test_a_p_value_is_never_shown_as_zero(tmp_path: Path) -> None:
    made = [record(defense=d, seed=s, asr2=v + 1e-6 * s * s)
            for d, v in (("spectral", 0.2), ("none", 0.9)) for s in range(5)]  # fmt: skip
    for one in made[5:]:
        one["asr2"] = 0.9
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none", values="asr2")
    shown = grid(found)
    (row,) = shown.rows
    assert row[shown.head.index("p (t)")] == "under 1e-12"


def test_the_summary_line_of_a_comparison_gives_each_line_equal_weight(tmp_path: Path) -> None:
    made = [record(target=t, defense=d, seed=s, asr2=v) for t, d, s, v in (
        ("bird", "spectral", 0, 0.10), ("bird", "none", 0, 0.20),
        ("bird", "spectral", 1, 0.10), ("bird", "none", 1, 0.24),
        ("dog", "spectral", 0, 0.30), ("dog", "none", 0, 0.80),
    )]  # fmt: skip
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none", values="asr2")
    (every,) = [one for one in found.lines if one.lines]
    assert (every.lines, every.result.n) == (2, 2)
    assert every.result.mean == pytest.approx((-12 - 50) / 2)
    assert (every.ours, every.base) == pytest.approx((20.0, 51.0))


def test_within_a_sweep_every_value_is_compared_with_the_base(tmp_path: Path) -> None:
    made = [record(defense=d, seed=s) for d in ("spectral", "none", "random") for s in SEEDS]
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="random")
    assert {one.side for one in found.lines} == {"spectral", "none"}
    assert found.labels == ()
    one = line(found, "asr2", side="spectral")
    asr2 = {d: [100 * m["asr2"] for m in made if m["choices"]["defense"] == d]
            for d in ("spectral", "random")}  # fmt: skip
    theirs = stats.ttest_rel(asr2["spectral"], asr2["random"])
    assert one.result.t == pytest.approx(theirs.pvalue)
    tested = sorted(one.result.t for one in found.lines if one.result.t is not None)
    assert min(one.holm for one in found.lines if one.holm is not None) == pytest.approx(
        min(1, len(tested) * tested[0])
    )


def test_options_implied_by_the_compared_choice_may_differ_within_a_pair(tmp_path: Path) -> None:
    other = {**PROTOCOL, "removal_budget": "15%"}
    made = [record(seed=s) for s in (0, 1)]
    made += [record(defense="abl", seed=s, protocol=other) for s in (0, 1)]
    made += [record(trigger="tact", seed=s, choices={"source": "cat"}) for s in (0, 1)]
    folder = sweep(tmp_path / "s", made)
    by_defense = comparison_of([folder], by="defense", base="spectral", values="asr2")
    assert line(by_defense, "asr2", side="abl").result.n == 2
    assert any("protocol.removal_budget: 15% → 1.5eps" in note for note in by_defense.notes)
    by_trigger = comparison_of([folder], by="trigger", base="pixel", values="asr2")
    assert line(by_trigger, "asr2", side="tact").result.n == 2


def test_cells_with_different_targets_are_never_paired(tmp_path: Path) -> None:
    made = [record(target="bird"), record(target="dog", defense="none")]
    with pytest.raises(ConfigError, match="differs only in defense"):
        comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none")


@pytest.mark.parametrize(("rate", "noted"), [(0.5, True), (0.02, False)])
def test_a_note_says_that_asr2_means_nothing_where_there_is_no_attack(
    tmp_path: Path, rate: float, noted: bool
) -> None:
    made = [
        record(asr1=0.5, clean_rate1=rate),
        record(defense="random", asr1=0.5, clean_rate1=rate),
    ]
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="random")
    said = [note for note in found.notes if "ASR2 says nothing about a defense" in note]
    assert len(said) == noted
    without = comparison_of(
        [sweep(tmp_path / "t", made)], by="defense", base="random", values="nat2"
    )
    assert not any("ASR2 says nothing" in note for note in without.notes)


@pytest.mark.parametrize(("values", "when"), [("nat2", ["before", "after"]), ("nat1", ["before"])])
def test_a_note_names_the_compared_cells_whose_networks_are_too_poor_to_judge_by(
    tmp_path: Path, values: str, when: list[str]
) -> None:
    made = [record(seed=seed, defense=name, nat1=0.12, nat2=0.11)
            for seed in (0, 1) for name in ("spectral", "random")]  # fmt: skip
    given = {"by": "defense", "base": "random", "values": values}
    found = comparison_of([sweep(tmp_path / "s", made)], **given)
    poor = [note for note in found.notes if note.startswith("The network")]
    assert [note.split()[2] for note in poor] == when
    good = [record(seed=seed, defense=name) for seed in (0, 1) for name in ("spectral", "random")]
    without = comparison_of([sweep(tmp_path / "t", good)], **given)
    assert not any(note.startswith("The network") for note in without.notes)


def test_an_error_without_pairs_names_the_number_of_unfinished_cells(tmp_path: Path) -> None:
    """`random` is completed for another target only."""
    made = [record(), record(target="dog", defense="random"), failed(record(defense="random"))]
    of_one = sweep(tmp_path / "s", made)
    of_other = sweep(tmp_path / "other", [record(target="horse")])
    rest = "1 of {} cells not done: run the sweep to its end first"
    with pytest.raises(ConfigError, match=rest.format(3)):
        comparison_of([of_one], by="defense", base="random")
    with pytest.raises(ConfigError, match=rest.format(4)):
        comparison_of([of_one, of_other])


def test_different_config_values_get_separate_lines_if_another_field_is_compared(
    tmp_path: Path,
) -> None:
    made = [record(seed=s, config={"recipe": {"lr": lr}}, id=f"{d}{s}{lr}", defense=d)
            for s in (0, 1) for lr in (0.1, 0.01) for d in ("spectral", "none")]  # fmt: skip
    folder = sweep(tmp_path / "s", made)
    by_defense = comparison_of([folder], by="defense", base="none", values="asr2")
    assert by_defense.labels == ("config.recipe.lr",)
    assert [one.result.n for one in by_defense.lines] == [2, 2, 2]
    by_rate = comparison_of([folder], by="config.recipe.lr", base="0.01", values="asr2")
    assert line(by_rate, "asr2", "spectral", side="0.1").result.n == 2


def test_a_base_ratio_may_be_written_as_it_is_configured_or_shown(tmp_path: Path) -> None:
    made = [record(ratio=ratio, seed=s) for s in (0, 1) for ratio in (0.05, 0.1)]
    folder = sweep(tmp_path / "s", made)
    for base in ("0.05", "5%"):
        found = comparison_of([folder], by="ratio", base=base, values="asr2")
        assert line(found, "asr2", side="10%").result.n == 2
    with pytest.raises(ConfigError, match=r"`base`: ratio '0\.2' is not known\. Known: 5%, 10%"):
        comparison_of([folder], by="ratio", base="0.2")


def test_a_comparison_names_a_filter_option_once(tmp_path: Path) -> None:
    """By whichever of the two names of the option it is compared; the difference is not listed
    again as another one."""
    made = [
        [record(seed=s, id=f"{budget}{s}", protocol={**PROTOCOL, "removal_budget": budget},
                config={"defense": {"removal_budget": budget}}) for s in (0, 1)]
        for budget in ("1.5eps", "15%")
    ]  # fmt: skip
    folder = sweep(tmp_path / "s", made[0] + made[1])
    for name in ("protocol.removal_budget", "config.defense.removal_budget"):
        found = comparison_of([folder], by=name, base="15%", values="asr2")
        assert line(found, "asr2", side="1.5eps").result.n == 2
        assert not any("also differ" in note for note in found.notes)
    apart = [sweep(tmp_path / str(n), each) for n, each in enumerate(made)]
    (note,) = [each for each in comparison_of(apart).notes if "also differ" in each]
    assert note.endswith("differ in: protocol.removal_budget: 1.5eps → 15%.")


def test_cells_with_different_code_hashes_are_paired_and_the_difference_is_noted(
    tmp_path: Path,
) -> None:
    made = [[record(t, seed=s, config={"code": {"trigger": f"{t}{version}"}}) for t in ("a", "b")
             for s in (0, 1)] for version in (1, 2)]  # fmt: skip
    found = comparison_of([sweep(tmp_path / str(n), each) for n, each in enumerate(made)])
    assert [one.result.n for one in found.lines if not one.lines] == [2] * 6
    assert any("config.code.trigger: a1 → a2, b1 → b2" in note for note in found.notes)


def test_the_compare_command_and_the_page_correct_p_values_for_the_same_number_of_tests(
    tmp_path: Path,
) -> None:
    """With `random` as the base, both compare the same measures and have the same p values."""
    made = [
        record(defense=d, seed=s, asr2=0.1 * s + (d == "none"), nat2=0.9 + 0.01 * s * (d == "none"),
               auroc=0.9 - 0.1 * s if d != "random" else 0.5)
        for d in ("spectral", "none", "random") for s in SEEDS
    ]  # fmt: skip
    folder = sweep(tmp_path / "s", made)
    (by_command, on_page) = (
        comparison_of([folder], by="defense", base="random"), against_random(folder)
    )  # fmt: skip
    assert on_page is not None
    assert by_command == on_page
    assert {line.measure for line in on_page.lines} >= {"asr2", "nat2", "auroc"}
    tests = sum(line.result.t is not None for line in on_page.lines)
    assert f"corrected by Holm's method for the {tests} t tests" in " ".join(on_page.notes)


def test_a_note_explains_that_with_few_pairs_only_a_large_difference_is_significant(
    tmp_path: Path,
) -> None:
    made = [record(defense=d, seed=s, asr2=[0.1, 0.9, 0.4][s] if d == "none" else 0.5)
            for d in ("spectral", "none") for s in (0, 1, 2)]  # fmt: skip
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none", values="asr2")
    (note,) = [note for note in found.notes if note.startswith('"no" in the column')]
    assert "With 3 pairs in a line" in note
    clear = [record(defense=d, seed=s, asr2=0.001 * s * s if d == "none" else 0.9)
             for d in ("spectral", "none") for s in (0, 1, 2)]  # fmt: skip
    found = comparison_of([sweep(tmp_path / "t", clear)], by="defense", base="none", values="asr2")
    assert not any(note.startswith('"no" in the column') for note in found.notes)


def test_the_comparison_with_the_report_uses_the_published_values(tmp_path: Path) -> None:
    made = [record(seed=s, nat2=v) for s, v in enumerate((0.91, 0.93, 0.92))]
    made += [
        record(target="cat"),
        record(defense="none"),
        record(choices={"source": "cat"}, id="x"),
    ]
    found = comparison_of([sweep(tmp_path / "s", made)], report=True, values="nat2")
    (one,) = found.lines
    theirs = stats.ttest_1samp([91.0, 93.0, 92.0], 92.54)
    assert (one.base, one.result.n) == (92.54, 3)
    assert one.result.t == pytest.approx(theirs.pvalue)
    assert any("variation of our seeds" in note for note in found.notes)
    assert any("is not a reproduction" in note for note in found.notes)


def test_a_comparison_of_one_seed_has_neither_an_interval_nor_a_significance_test(
    tmp_path: Path,
) -> None:
    made = [record(target=t, defense=d) for t in ("bird", "dog") for d in ("spectral", "none")]
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none", values="asr2")
    rows = grid(found).rows
    assert all("±" not in row[5] for row in rows[:2])
    assert [row[6:] for row in rows[:2]] == [["1", *["–"] * 4, "one pair"]] * 2
    assert rows[2][6] == "2 lines"
    assert any("has no interval and no test" in note for note in found.notes)


def test_a_difference_that_is_equal_in_every_pair_is_marked_as_constant(tmp_path: Path) -> None:
    made = [record(defense=d, seed=s, asr2=v) for s in SEEDS
            for d, v in (("spectral", 0.0), ("none", 1.0))]  # fmt: skip
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none", values="asr2")
    (row,) = grid(found).rows
    assert (row[4], row[6], row[-1]) == ("-100.00 ± 0.00", "–", "constant")
    assert any(note.startswith("constant") for note in found.notes)


def test_cells_that_belong_to_no_pair_are_listed_in_a_note(tmp_path: Path) -> None:
    made = [record(defense=d, seed=s) for d in ("spectral", "none") for s in SEEDS]
    asked = [*made, record(seed=9)]
    made[0] = failed(made[0])
    made[6] = {**made[6], "status": "failed: after its figures"}
    folder = sweep(tmp_path / "s", made, asked)
    found = comparison_of([folder], by="defense", base="none", values="asr2")
    (told,) = [note for note in found.notes if note.startswith("Not compared, because")]
    for cell in (made[0], made[2], asked[4], made[6], asked[-1]):
        assert cell["id"] in told
    assert "failed: oom" in told
    assert "missing" in told
    assert line(found, "asr2", side="spectral").result.n == 2


def test_a_pair_with_a_missing_value_is_omitted(tmp_path: Path) -> None:
    made = [record(defense=d, seed=s) for d in ("spectral", "none") for s in SEEDS]
    made[0]["asr2"] = None
    for one in made:
        one["nat2"] = None
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none")
    assert line(found, "asr2", side="spectral").result.n == 3
    assert "nat2" not in {one.measure for one in found.lines}
    assert "No pair has values of Nat2 in both of its cells." in found.notes


def test_measures_that_need_no_retraining_are_compared_even_for_cells_without_retraining(
    tmp_path: Path,
) -> None:
    made = [record(defense=d, seed=s, nat2=None, asr2=None) for d in ("spectral", "random")
            for s in SEEDS]  # fmt: skip
    found = against_random(sweep(tmp_path / "s", made))
    assert found is not None
    assert {one.measure for one in found.lines} == {"pois_left", "auroc"}
    assert "No pair has values of Nat2, ASR2 in both of its cells." in found.notes


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "give two sweep folders"),
        (["A"], "give two sweep folders"),
        (["A", "by=defense"], "give two sweep folders"),
        (["A", "B", "by=defense", "base=none"], "give two sweep folders"),
        (["out", "defense", "random"], "give two sweep folders"),
        (["reference", "reference"], "must be the second argument"),
        (["reference", "A"], "must be the second argument"),
        (["A", ""], "no such folder: ''"),
        (["nowhere", "A", "--out", "x.txt"], "must end in one of .csv"),
        (["A", "by=defens", "base=none"], "Did you mean 'defense'"),
        (["A", "by=seed", "base=0"], "'seed' is not known"),
        (["A", "by=defense", "base=abl"], "Known: spectral, none"),
        (["A", "reference", "values=auroc"], "nat1, asr1, pois_left, nat2, asr2"),
        (["A", "B", "values=x"], "Known: n_train"),
        (["A", "nowhere"], "no such folder: nowhere"),
        (["A", "."], "contains 2 sweeps, but one is needed"),
        (["B", "A"], "the sweeps have no value of target in common"),
        (["B", "reference"], "have no values for the completed cells"),
        (["A", "bases=1"], "Did you mean 'base='"),
        (["A", "reference", "--out", "x.txt"], "must end in one of .csv"),
    ],
)
def test_meaningless_comparisons_are_refused_with_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    given: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    write_sweep(Path("A"), [record(defense=d) for d in ("spectral", "none")])
    write_sweep(Path("B"), [record(target=t, defense="none") for t in ("cat", "frog")])
    assert main(given) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert said in told.err


def test_the_usage_of_the_compare_command_shows_which_arguments_belong_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith(
        "usage: python -m backdoor_lab.compare [-h] [--out FILE.csv]\n"
        "       A [B | reference] [by=NAME base=VALUE] [values=X,Y]\n"
    )


def test_the_compare_command_prints_and_writes_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [record(defense=d, seed=s) for d in ("spectral", "none") for s in SEEDS]
    folder = str(write_sweep(tmp_path / "s", made))
    given = [folder, "by=defense", "base=none"]
    for suffix, render in (("md", markdown), ("csv", sheet), ("html", page), ("tex", latex)):
        out = tmp_path / f"x.{suffix}"
        assert main([*given, "--out", str(out)]) == 0
        found = comparison_of([read_sweep(Path(folder))], by="defense", base="none")
        assert out.read_text() == render(document(found))
        assert capsys.readouterr().out == terminal(document(found)) + "\n"
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [float(row["difference"]) for row in rows] == [one.result.mean for one in found.lines]
    assert all(row["n"] == "4" for row in rows)


def test_the_compare_command_imports_neither_torch_nor_pandas_nor_scipy_stats(
    tmp_path: Path,
) -> None:
    folder = write_sweep(tmp_path / "s", [record(seed=s) for s in SEEDS])
    code = (
        "import sys; from backdoor_lab.compare.__main__ import main\n"
        f"assert main([{str(folder)!r}, 'reference']) == 0\n"
        "heavy = ('torch', 'pandas', 'scipy.stats')\n"
        "print(*[n for n in heavy if n in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


@pytest.mark.skipif(not latex_with_booktabs(), reason="no pdflatex with booktabs here")
def test_the_latex_table_of_a_comparison_compiles(tmp_path: Path) -> None:
    made = [record(defense=d, seed=s, target="a_b%&") for d in ("x|y", "none") for s in (0, 1)]
    found = comparison_of([sweep(tmp_path / "s", made)], by="defense", base="none")
    head = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "x.tex").write_text(f"{head}{latex(document(found))}\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_cells_with_different_settings_are_compared_separately_with_the_report(
    tmp_path: Path,
) -> None:
    """Four cells with one seed and different layers give four lines of one pair each."""
    layers = ("penultimate", "layer4", "layer3", "layer2")
    made = [record(protocol={**PROTOCOL, "layer": layer}) for layer in layers]
    for n, each in enumerate(made):
        each["id"] = f"{each['id']}{n}"
    found = comparison_of([sweep(tmp_path / "s", made)], report=True, values="nat2")
    assert found.labels == ("protocol.layer",)
    assert [one.result.n for one in found.lines if not one.lines] == [1] * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("label_mode", "all_to_all"),
        ("placement", "replace"),
        ("poison_from", "all"),
        ("ratio_of", "source"),
        ("removal_budget", "15%"),
        ("max_removed", "50%"),
        ("center", False),
        ("filter_scope", "all"),
        ("cover_rate", 1.0),
        ("apply_trigger", "after_augmentation"),
        ("clean_holdout", 20),
    ],
)
def test_a_cell_with_a_different_protocol_is_not_compared_with_the_report(
    tmp_path: Path, key: str, value: Any
) -> None:
    made = [record(), record(target="dog", protocol={**PROTOCOL, key: value})]
    folder = sweep(tmp_path / "s", made)
    found = comparison_of([folder], report=True, values="nat2")
    assert [one.result.n for one in found.lines] == [1]
    found = [cell for table in SweepReport(folder).tables for cell in table.cells.items()]
    assert {row[0]: cell.reference is not None for (row, _), cell in found} == {
        "bird": True, "dog": False
    }  # fmt: skip


def coded(made: dict[str, Any], code: str) -> dict[str, Any]:
    """A record of the same cell, made by other code: only its id and code hash differ."""
    return {
        **made,
        "id": made["id"][:-4] + code,
        "config": {**made["config"], "code": {"defense": code}},
    }


def test_a_requested_record_takes_precedence_over_a_record_of_older_code(tmp_path: Path) -> None:
    asked = [coded(record(defense=d, seed=s), code) for s in SEEDS
             for d, code in (("spectral", "aaaa"), ("random", "bbbb"))]  # fmt: skip
    old = coded(record(seed=1), "cccc")
    found = sweep(tmp_path / "s", [*asked, old], asked)
    assert old["id"] not in {cell.id for cell in found.cells}
    assert any(old["id"] in warning for warning in found.warnings)
    compared = against_random(found)
    assert compared is not None
    assert line(compared, "asr2", side="spectral").result.n == len(SEEDS)
    assert not any("config.code" in note for note in compared.notes)


def test_a_seed_recorded_only_with_older_code_is_still_compared(tmp_path: Path) -> None:
    made = [coded(record(defense=d, seed=s), code) for s in SEEDS
            for d, code in (("spectral", "aaaa" if s else "cccc"), ("random", "bbbb"))]  # fmt: skip
    found = sweep(tmp_path / "s", made)
    assert len(found.cells) == len(made)
    compared = comparison_of([found], by="defense", base="random", values="asr2")
    assert line(compared, "asr2", side="spectral").result.n == len(SEEDS)


def test_a_missing_cell_counts_as_a_missing_seed_of_its_defense(tmp_path: Path) -> None:
    """Two defenses have different budgets under one protocol name. A missing cell of one of them
    does not get a separate row."""
    made = [record(defense=d, seed=s, protocol={**PROTOCOL, "removal_budget": budget})
            for s in SEEDS
            for d, budget in (("spectral", "1.5eps"), ("knn", "15%"))]  # fmt: skip
    found = sweep(tmp_path / "s", made[:-1], made)
    places = [place for table in SweepReport(found).tables for place in table.cells.items()]
    assert sorted((row[-1], cell.done, cell.asked) for (row, _), cell in places) == [
        ("knn", len(SEEDS) - 1, len(SEEDS)), ("spectral", len(SEEDS), len(SEEDS)),
    ]  # fmt: skip


def test_the_compared_field_is_not_listed_among_the_other_differences_of_a_pair(
    tmp_path: Path,
) -> None:
    made = [record(ratio=r, config={"ratio": r, "recipe": {"lr": r}}) for r in (0.05, 0.1)]
    found = comparison_of([sweep(tmp_path / "s", made)], by="ratio", base="10%")
    (said,) = [
        note for note in found.notes if note.startswith("The two cells of a pair also differ in")
    ]
    assert "config.ratio" not in said
    assert "recipe.lr: 0.05 → 0.1" in said


def test_the_note_on_exact_tests_counts_the_pairs_of_one_table_line_instead_of_all_pairs(
    tmp_path: Path,
) -> None:
    made = [record(*cell, nat2=0.9 + n / 1000) for n, cell in enumerate(GRID[:6])]
    notes = comparison_of([sweep(tmp_path / "s", made)], report=True, values="nat2").notes
    assert "The published report gives one run per cell." in notes
    assert not any("exact tests are at least" in note for note in notes)
    made = [record(defense=d, seed=s, target=t, asr2=(s + 1) * v) for s in SEEDS[:3]
            for t in ("bird", "dog", "horse", "cat") for d, v in (("spectral", 0.1), ("none", 0.2))
            ]  # fmt: skip
    found = comparison_of([sweep(tmp_path / "t", made)], by="defense", base="none", values="asr2")
    (said,) = [note for note in found.notes if "exact tests are at least" in note]
    assert "With 3 pairs per line" in said
    assert "at least 0.25, so" in said
