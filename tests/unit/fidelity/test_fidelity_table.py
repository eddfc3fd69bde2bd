"""The table that compares methods with their authors' code: its format, its statuses, and the
golden tests that it names."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from backdoor_lab.core.errors import DataError
from backdoor_lab.fidelity import ours
from backdoor_lab.fidelity.__main__ import main
from backdoor_lab.fidelity.ours import drift, undescribed
from backdoor_lab.fidelity.rules import contradictions
from backdoor_lab.fidelity.table import GROUPS, Method, Row, Source, methods, same
from tests.helpers.mutations import GOLDEN, golden_modules, mutations_of
from tests.helpers.project import CONF, PACKAGE, ROOT

EVERY = methods()
SOURCE = Source("owner/name", "0123456", "a.py", 1, "x = 1")
EQUAL = Row("option", "x", 1, code=1, source=SOURCE)
FREE = dataclasses.replace(EQUAL, code=2)
COSTLY = dataclasses.replace(FREE, cost=10.0)
BY_PAPER = Row("option", "y", 1, paper=1, section="3")
OWN = Row("option", "z", 1)


def method(status: str, *rows: Row, **more: Any) -> Method:
    said = {"paper": "A, 2020", **more}
    return Method("made", "defense", "Made", status, "defenses/made.py", rows=rows, **said)


def exact(*rows: Row, **more: Any) -> Method:
    return method("exact", *rows, **{"equal_to": "code", "golden": "test.py", **more})


def test_every_trigger_and_defense_is_in_the_table() -> None:
    chosen = {(group, path.stem) for group in ("trigger", "defense")
              for path in (CONF / group).glob("*.yaml")}  # fmt: skip
    assert {(each.group, each.name) for each in EVERY.values()} == chosen
    assert len(EVERY) >= 40


def test_every_status_in_the_fidelity_table_agrees_with_its_rows() -> None:
    assert contradictions(EVERY.values()) == []


def test_defaults_and_constants_equal_those_in_the_fidelity_table() -> None:
    assert drift(EVERY.values()) == []


def test_components_and_golden_tests_named_in_the_fidelity_table_exist() -> None:
    for each in EVERY.values():
        assert (PACKAGE / each.component).is_file(), each.name
        assert not each.golden or (ROOT / each.golden).is_file(), each.name


def test_every_golden_test_named_in_the_fidelity_table_has_two_mutations() -> None:
    named = {each.golden for each in EVERY.values() if each.golden}
    assert named
    few = [name for name in sorted(named) if len(mutations_of(ROOT / name)) < 2]
    assert few == []


@pytest.mark.parametrize("path", golden_modules(), ids=lambda path: path.stem)
def test_the_text_that_a_mutation_replaces_occurs_exactly_once_in_the_source_file(
    path: Path,
) -> None:
    """This test fails if a change to the code removes such a text."""
    assert [p for each in mutations_of(path) if (p := each.problem())] == []


def test_golden_test_modules_that_list_mutations_are_found() -> None:
    assert GOLDEN / "test_spectral.py" in golden_modules()
    said = [path for path in GOLDEN.rglob("test_*.py") if "\nMUTATIONS" in path.read_text()]
    assert sorted(said) == golden_modules()


@pytest.mark.parametrize(
    "right",
    [
        exact(EQUAL, OWN),
        exact(EQUAL, BY_PAPER),
        exact(BY_PAPER, equal_to="paper"),
        exact(EQUAL, dataclasses.replace(FREE, key="w", paper=1, section="2", equal_to="paper")),
        method("reduced", EQUAL, COSTLY),
        method("different", FREE, reason="data"),
        method("no code", BY_PAPER, OWN),
        method("ours", OWN, paper=""),
    ],
)
def test_a_status_that_agrees_with_the_rows_is_accepted(right: Method) -> None:
    assert contradictions([right]) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (exact(EQUAL, dataclasses.replace(FREE, key="w")), "exact, but the row w differs"),
        (exact(COSTLY), "exact, but the row x differs"),
        (exact(EQUAL, golden=""), "needs a golden test"),
        (exact(EQUAL, equal_to=""), "needs the key equal_to"),
        (exact(BY_PAPER), "no row quotes the code"),
        (exact(EQUAL, equal_to="both"), "must be paper or code, got 'both'"),
        (exact(EQUAL, reason="data"), "which only the status different may have"),
        (exact(EQUAL, paper=""), "must name a paper"),
        (exact(dataclasses.replace(EQUAL, cost=0.0)), "must be positive, got 0"),
        (method("reduced", EQUAL), "reduced, but no row differs"),
        (
            method("reduced", COSTLY, dataclasses.replace(FREE, key="w")),
            "w differs without saving cost",
        ),
        (method("different", FREE), "needs a reason"),
        (method("different", EQUAL, reason="data"), "different, but no row differs"),
        (method("no code", BY_PAPER, EQUAL), "x quotes code"),
        (method("no code", OWN), "no row quotes the paper"),
        (method("no code", dataclasses.replace(BY_PAPER, paper=2)), "y differs from the paper"),
        (method("ours", BY_PAPER), "ours, but the row y quotes the paper"),
        (method("same"), "must be one of"),
    ],
)
def test_a_contradictory_status_is_reported(wrong: Method, said: str) -> None:
    lines = contradictions([wrong])
    assert any(said in line for line in lines)
    assert all(line.startswith("made: ") for line in lines)


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [(1, 1.0, True), (0.0005, "5e-4", True), ([1, 2], [1.0, 2.0], True), ([1, 2], [1, 2, 3], False),
     ("a  b", "a b", True), (True, 1, False), (None, None, True), (None, 0, False),
     ({"a": 1}, {"a": 1}, True), ({"a": 1}, {"b": 1}, False), (1, "same", True),
     ([0, 1], (0, 1), True), ("ab", ["a", "b"], False)],
)  # fmt: skip
def test_values_are_compared_regardless_of_notation(
    left: object, right: object, equal: bool
) -> None:
    assert same(left, right) is equal


def copies(tmp_path: Path) -> tuple[Path, Path]:
    """Copies of the package's code and of the configuration."""
    shutil.copytree(PACKAGE, tmp_path / "backdoor_lab", ignore=shutil.ignore_patterns("*.pyc"))
    shutil.copytree(CONF, tmp_path / "conf")
    return tmp_path / "backdoor_lab", tmp_path / "conf"


def test_a_changed_default_is_reported(tmp_path: Path) -> None:
    root, conf = copies(tmp_path)
    path = conf / "defense/spectral.yaml"
    path.write_text(path.read_text().replace("rank: 1", "rank: 2"))
    assert drift(EVERY.values(), root, conf) == [
        "spectral: rank is 2, but the fidelity table says 1"
    ]


def test_a_changed_constant_is_reported(tmp_path: Path) -> None:
    root, conf = copies(tmp_path)
    path = root / "attacks/sleeper_agent.py"
    path.write_text(path.read_text().replace("(2.667, 1.6, 1.142)", "(2, 1.6, 1.142)"))
    lines = drift(EVERY.values(), root, conf)
    names = ["sleeper_agent", "sleeper_agent_authors"]
    assert [line.partition(": MILESTONES is ")[0] for line in lines] == names


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("defenses/anp.py", "eps: float = 0.4", "eps: float = 0.5",
         "anp: the default of eps in ANP is 0.5, but the fidelity table says 0.4"),
        ("attacks/reflection.py", "sigma: Sequence[float] = (1, 5)",
         "sigma: Sequence[float] = (1, 6)",
         "reflection: the default of sigma in Refool is (1, 6), but the fidelity table says"
         " [1, 5]"),
        ("defenses/activation_clustering.py", 'reduce: str = "ica"', 'reduce: str = "pca"',
         "activation_clustering: the default of reduce in ActivationClustering is 'pca', but the"
         " fidelity table says 'ica'"),
    ],
    ids=["number", "sequence", "text"],
)  # fmt: skip
def test_a_changed_default_of_a_class_is_reported(
    file: str, old: str, new: str, said: str, tmp_path: Path
) -> None:
    root, conf = copies(tmp_path)
    text = (root / file).read_text()
    assert text.count(old) == 1
    (root / file).write_text(text.replace(old, new))
    assert drift(EVERY.values(), root, conf) == [said]


def test_a_new_option_is_reported_as_missing_in_the_table_and_a_new_method_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users need not describe methods of their own, so these do not change the exit code."""
    root, conf = copies(tmp_path)
    path = conf / "defense/knn.yaml"
    path.write_text(path.read_text() + "metric: cosine\n")
    shutil.copy(path, conf / "defense/knn_cosine.yaml")
    assert drift(EVERY.values(), root, conf) == [
        "knn: the fidelity table has no row for the option metric"
    ]
    assert undescribed(EVERY.values(), conf) == ["defense=knn_cosine"]
    (conf / "defense/knn.yaml").write_text((CONF / "defense/knn.yaml").read_text())
    monkeypatch.setattr(ours, "conf_dir", lambda: conf)
    said = "knn_cosine has no entry in the fidelity table; a method of your own needs none\n"
    assert main(["spectre"]) == 0
    assert capsys.readouterr().err == f"defense={said}"
    assert main(["knn_cosine"]) == 2
    assert said.strip() in capsys.readouterr().err


def test_a_missing_option_or_method_or_quoted_text_is_reported(tmp_path: Path) -> None:
    root, conf = copies(tmp_path)
    path = conf / "trigger/pixel.yaml"
    path.write_text(path.read_text().replace("margin: 0", "# margin: 0"))
    (conf / "trigger/patch.yaml").unlink()
    assert drift(EVERY.values(), root, conf) == [
        "patch: the fidelity table has an entry, but the configuration has no trigger=patch",
        "pixel: trigger=pixel has no option margin",
    ]
    quoted = dataclasses.replace(EVERY["knn"], rows=(Row("step", "s", "", token="no such text"),))
    assert any(
        "the quoted text 'no such text' is not in" in line for line in drift([quoted], root, conf)
    )


def test_a_change_to_quoted_code_outside_the_file_of_the_method_is_detected(tmp_path: Path) -> None:
    root, conf = copies(tmp_path)
    path = root / "numerics/gram_ranges.py"
    path.write_text(path.read_text().replace("gram.sign() * gram.abs()", "gram.abs()"))
    (line,) = drift(EVERY.values(), root, conf)
    assert line.startswith("beatrix: the quoted text 'gram.sign() * gram.abs() ** (1 / p)' is not")
    assert line.endswith(" in numerics/gram_ranges.py")


def test_each_row_for_a_published_step_of_a_defense_quotes_the_code_of_that_step() -> None:
    """Rows for steps that our method omits, and for the choice of features, need no quotation."""
    lacking = {
        f"{each.name}: {row.key}" for each in EVERY.values() if each.group == "defense"
        for row in each.rows if row.kind == "step" and row.sources and not row.token
        and not str(row.ours).startswith(("none", "protocol.layer"))
    }  # fmt: skip
    assert lacking == set()


def test_the_command_exits_with_1_if_a_default_drifts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 0
    _, conf = copies(tmp_path)
    path = conf / "defense/anp.yaml"
    path.write_text(path.read_text().replace("lr: 0.2", "lr: 0.3"))
    monkeypatch.setattr(ours, "conf_dir", lambda: conf)
    capsys.readouterr()
    assert main([]) == 1
    assert capsys.readouterr().err == "anp: lr is 0.3, but the fidelity table says 0.2\n"


def test_the_command_prints_all_methods_or_the_rows_of_one_method(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(EVERY)
    assert main(["beatrix"]) == 0
    text = capsys.readouterr().out
    for row in EVERY["beatrix"].rows:
        assert row.key in text
        assert row.source is None or str(row.source) in text


def test_an_unknown_method_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["beatrics"]) == 2
    assert "Did you mean 'beatrix'?" in capsys.readouterr().err


ENTRY: dict[str, Any] = {
    "title": "Made", "status": "ours", "component": "defenses/made.py",
    "rows": [{"option": "x", "ours": 1}],
}  # fmt: skip


def read(tmp_path: Path, text: str) -> dict[str, Method]:
    for group in GROUPS:
        (tmp_path / group).mkdir(exist_ok=True)
    (tmp_path / "defenses/made.yaml").write_text(text)
    methods.cache_clear()
    return methods(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"staus": "x"}, "unknown key staus"),
        ({"title": None, "rows": [{"ours": 1}]}, "one of option, constant, step"),
        ({"rows": [{"option": "x"}]}, "needs `ours`"),
        ({"rows": [{"option": "x", "step": "y", "ours": 1}]}, "one of option"),
        ({"rows": [{"option": "x", "ours": 1, "cots": 2}]}, "unknown key cots"),
        ({"rows": [{"option": "x", "ours": 1, "paper": {"value": 1}}]},
         "needs the keys section, value"),
        ({"rows": [{"option": "x", "ours": 1, "code": {"value": 1, "source": "a", "token": "b"}}]},
         "must have the form owner/name@commit:path:line"),
        ({"rows": [{"option": "x", "ours": 1}, {"step": "x", "ours": 1}]},
         "two rows with the same key"),
        ({"base": "none"}, "must be an earlier entry"),
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        read(tmp_path, yaml.safe_dump({"made": {**ENTRY, **changes}}))


def test_a_missing_field_or_a_file_that_is_not_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lacks status"):
        read(tmp_path, yaml.safe_dump({"made": {k: v for k, v in ENTRY.items() if k != "status"}}))
    for text in ("- a\n", "made: 1\n", "made: {\n"):
        with pytest.raises(DataError):
            read(tmp_path, text)


def test_rows_of_a_preset_replace_those_of_its_base(tmp_path: Path) -> None:
    rows = [{"option": "x", "ours": 1}, {"option": "y", "ours": 2}]
    own = {"base": "made", "status": "ours", "rows": [{"option": "x", "ours": 9}]}
    found = read(tmp_path, yaml.safe_dump({"made": {**ENTRY, "rows": rows}, "made_more": own}))
    assert [(row.key, row.ours) for row in found["made_more"].rows] == [("x", 9), ("y", 2)]
    assert found["made_more"].component == "defenses/made.py"
