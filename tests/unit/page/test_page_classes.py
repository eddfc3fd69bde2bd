"""The accuracy per class and the confusion matrices on a page: what its data contain, and what a
browser shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backdoor_lab.page.document import write_page
from backdoor_lab.page.page_classes import OMITTED, class_tables
from tests.helpers.browser import VARIABLE, chromium
from tests.helpers.hostile import HOSTILE
from tests.helpers.records import failed, per_class, record, write_sweep

Shown = dict[str, Any]


def resolved(shown: Shown, number: int) -> Shown:
    """The values of one cell, in place of their indices."""
    values = shown["values"]

    def value(at: Any) -> Any:
        return [*map(value, at)] if isinstance(at, list) else None if at is None else values[at]

    found = shown["cells"][number]
    return {name: each if name == "note" else value(each) for name, each in found.items()}


def test_the_values_of_a_cell_are_those_of_its_record() -> None:
    shown = class_tables({3: {"per_class": per_class(nat2=[0.75, None, 1 / 3])}, 5: {}}, 10_000)
    assert [*shown["cells"]] == [3]
    assert resolved(shown, 3) == {
        "classes": ["cat", "bird", "dog"], "n_test": (4, 2, 2), "note": "",
        "nat": [["50.00", "100.00", "50.00"], ["75.00", "–", "33.33"]],
        "confusion": [((2, 2, 0), (0, 2, 0), (1, 0, 1)), ((3, 0, 1), (1, 1, 0), (0, 0, 2))],
    }  # fmt: skip


def test_without_a_second_network_only_the_values_before_the_defense_are_shown() -> None:
    shown = class_tables({0: {"per_class": per_class(nat2=None, confusion2=None)}}, 10_000)
    found = resolved(shown, 0)
    assert found["nat"] == [["50.00", "100.00", "50.00"], None]
    assert found["confusion"][1] is None
    assert found["note"] == ""


def test_values_that_cells_share_are_stored_once() -> None:
    one = class_tables({0: {"per_class": per_class()}}, 10_000)
    many = class_tables({n: {"per_class": per_class()} for n in range(50)}, 10_000)
    assert many["values"] == one["values"]
    assert len(many["cells"]) == 50


def test_matrices_stay_within_their_size_limit() -> None:
    made = {
        n: {"per_class": per_class(confusion1=[[n, 0, 0]] * 3, confusion2=[[n, 1, 0]] * 3)}
        for n in range(10, 60)
    }
    plain = class_tables(made, 0)
    assert all(resolved(plain, n)["confusion"] == [None, None] for n in made)
    shown = class_tables(made, 1000)
    sizes = [len(json.dumps(each["values"], separators=(",", ":"))) for each in (plain, shown)]
    assert 800 < sizes[1] - sizes[0] < 1100
    notes = [each["note"] for each in shown["cells"].values()]
    assert set(notes) == {"", OMITTED}
    assert notes == sorted(notes)
    assert all(resolved(shown, n)["nat"][1] == ["75.00", "50.00", "100.00"] for n in made)


def test_an_invalid_entry_of_a_record_is_left_out() -> None:
    shown = class_tables({0: {"per_class": {"classes": 3}}, 1: {"per_class": per_class()}}, 10_000)
    assert [*shown["cells"]] == [1]


def test_a_browser_shows_both_tables_of_a_cell(tmp_path: Path) -> None:
    made = [
        record(per_class=per_class(classes=["cat", HOSTILE, "dog"])),
        record(seed=1, per_class=per_class(nat2=None, confusion2=None)),
        record(seed=2), failed(record(seed=3)),
    ]  # fmt: skip
    path = write_page(write_sweep(tmp_path / "s", made))
    with chromium() as browser:
        if browser is None:
            pytest.skip(f"no Chromium: install one, or name it in {VARIABLE}")
        messages: list[str] = []
        page = browser.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        page.locator("#cells .open").first.click()
        tables = page.locator("#details .classes table")
        assert [each.locator("caption").text_content() for each in tables.all()] == [
            "Accuracy on the clean test images of each class, in %",
            "Clean test images by true class (rows) and predicted class (columns), before the"
            " defense",
            "Clean test images by true class (rows) and predicted class (columns), after the"
            " defense",
        ]
        accuracy, before, _ = tables.all()
        heads = accuracy.locator("th[scope=col]").all_text_contents()
        assert heads == ["Class", "Images", "Nat1", "Nat2"]
        row = accuracy.locator("tbody tr").first
        assert row.locator("th[scope=row]").text_content() == "cat"
        assert row.locator("td").all_text_contents() == ["4", "50.00", "75.00"]
        assert before.locator("td").all_text_contents() == [*"220020101"]
        assert before.locator("td.best").all_text_contents() == ["2", "2", "1"]
        assert "<img src=x" in (before.locator("tbody th").nth(1).text_content() or "")
        assert page.locator("#details img, #details script").count() == 0
        regions = page.get_by_role("region", name="Confusion matrix")
        assert [each.get_attribute("tabindex") for each in regions.all()] == ["0", "0"]
        title = page.locator("#details-title").text_content()
        regions.first.focus()
        page.keyboard.press("ArrowRight")
        assert page.locator("#details-title").text_content() == title
        page.get_by_role("button", name="next cell").focus()
        page.keyboard.press("ArrowRight")
        assert tables.count() == 2
        assert tables.first.locator("th[scope=col]").count() == 3
        for _ in range(2):
            page.keyboard.press("ArrowRight")
            assert page.locator("#details .classes").count() == 0
        assert messages == []
