"""The page in a browser: sorting, filtering, details, keyboard use, printing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backdoor_lab.core.terminal import plain
from backdoor_lab.page.document import write_page
from tests.helpers import stages
from tests.helpers.browser import VARIABLE, chromium
from tests.helpers.hostile import HOSTILE, NAMES
from tests.helpers.records import GRID, failed, record, write_sweep
from tests.helpers.stages import Made, cell

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        if found is None:
            pytest.skip(f"no Chromium: install one, or name it in {VARIABLE}")
        yield found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a cell that has all charts, eleven cells without charts, a failed cell and a
    missing cell."""
    root = tmp_path_factory.mktemp("page")
    made = [cell(root / ".store", Made(0), "one", seed=1)]
    made += [record(*each) for each in GRID]
    made[5] = failed(made[5])
    return write_page(write_sweep(root / "sweep", made, [*made, record(defense="spectre")]))


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:
    """Opens pages, and asserts at the end that nothing else was requested and no error was
    logged."""
    told: list[str] = []
    asked: list[str] = []
    contexts = []

    def open_it(path: Path, fragment: str = "", **settings: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **settings})
        contexts.append(context)
        context.set_default_timeout(5000)
        page = context.new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("dialog", lambda dialog: (told.append("a dialog opened"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri() + fragment)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert told == []
    assert [url for url in asked if not url.startswith(("file:", "data:image/png"))] == []


def column(page: Page, head: str) -> list[str]:
    """The visible texts of a column, top to bottom."""
    found: list[str] = page.evaluate(
        """(head) => {
          const heads = [...document.querySelectorAll("#cells th")];
          const n = heads.findIndex((each) => each.textContent === head);
          return [...document.querySelectorAll("#cells tbody tr")]
            .filter((tr) => tr.offsetParent).map((tr) => tr.cells[n].textContent);
        }""",
        head,
    )
    return found


def focused(page: Page) -> str:
    found: str = page.evaluate("document.activeElement.getAttribute('aria-label') || ''")
    return found


def sorts(page: Page) -> list[str | None]:
    return [each.get_attribute("aria-sort") for each in page.locator("#cells th").all()]


def test_a_second_click_on_a_heading_sorts_descending_and_a_third_restores_the_order(
    opened: Open, path: Path
) -> None:
    page = opened(path)
    before = column(page, "ASR1")
    head = page.get_by_role("button", name="ASR1", exact=True)
    head.click()
    numbers = [float(text) for text in column(page, "ASR1") if text != "–"]
    assert numbers == sorted(float(text) for text in before if text != "–")
    assert column(page, "ASR1")[-2:] == ["–", "–"]
    assert sorts(page).count("ascending") == 1
    head.click()
    numbers = [float(text) for text in column(page, "ASR1") if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert column(page, "ASR1")[-2:] == ["–", "–"]
    assert sorts(page).count("descending") == 1
    head.click()
    assert column(page, "ASR1") == before
    assert set(sorts(page)) == {"none"}


def test_ratios_are_sorted_by_value_and_names_alphabetically(opened: Open, path: Path) -> None:
    page = opened(path)
    page.get_by_role("button", name="Ratio", exact=True).click()
    ratios = [float(text.rstrip("%")) for text in column(page, "Ratio")]
    assert ratios == sorted(ratios)
    page.get_by_role("button", name="Target", exact=True).click()
    assert column(page, "Target") == sorted(column(page, "Target"))
    assert sorts(page).count("none") == len(sorts(page)) - 1


def test_a_row_must_match_the_search_text_and_all_drop_downs_to_be_shown(
    opened: Open, path: Path
) -> None:
    page = opened(path)
    assert page.locator("#count").text_content() == "14 cells"
    page.get_by_label("Search").fill("horse PIXEL")
    assert set(column(page, "Target")) == {"horse"}
    assert set(column(page, "Trigger")) == {"pixel"}
    page.get_by_label("Ratio", exact=True).select_option("10%")
    assert page.locator("#count").text_content() == "1 of 14 cells"
    page.get_by_label("Search").fill("nothing like it")
    assert column(page, "Target") == []
    assert page.locator("#count").text_content() == "0 of 14 cells"
    page.get_by_role("button", name="Reset").click()
    page.wait_for_function("document.getElementById('count').textContent === '14 cells'")
    page.get_by_label("Status", exact=True).select_option("failed: oom")
    assert column(page, "Status") == ["failed: oom"]


def test_clicking_a_row_opens_its_cell(opened: Open, path: Path) -> None:
    page = opened(path)
    page.locator("#cells tbody tr").first.locator("td").nth(3).click()
    panel = page.locator("#details")
    data = json.loads(page.locator("#data").text_content() or "")
    assert panel.locator("h2").text_content() == data["ids"][0]
    assert panel.locator("svg.chart").count() == 4
    assert panel.locator(".tile").count() == sum(
        len(each) for each in data["pictures"]["0"]["images"]["rows"].values()
    )
    facts = {
        row.locator("dt").text_content(): row.locator("dd").text_content()
        for row in panel.locator("dl.facts > div").all()
    }
    assert facts["ratio_of"] == "target"
    assert facts["versions.torch"] == "2.10.0"
    bars = panel.locator(".bars.poison rect")
    filled = sum(value > 0 for value in data["pictures"]["0"]["scores"]["poison"])
    assert bars.count() == filled
    assert page.url.endswith(f"#cell={data['ids'][0]}")


def test_charts_have_text_alternatives(opened: Open, path: Path) -> None:
    page = opened(path)
    page.locator("#cells .open").first.click()
    titles = page.locator("#details svg.chart > title").all_text_contents()
    assert [title.split(".")[0] for title in titles] == [
        "Scores in the target class", "Projections on the two top singular directions",
        "Poison left", "Training loss",
    ]  # fmt: skip
    assert "12 removed" in titles[1]
    assert "of 8 left after removing 12" in titles[2]
    assert "retrain ends at 0.375" in titles[3]


@pytest.mark.parametrize("width", [360, 1200])
def test_wide_tables_and_the_collapsed_comparison_fit_the_page(
    opened: Open, tmp_path: Path, width: int
) -> None:
    triggers = [f"a_trigger_of_a_long_name_{n}" for n in range(13)]
    made = [record(t, defense=d, seed=s) for t in triggers for d in ("spectral", "random")
            for s in (0, 1)]  # fmt: skip
    page = opened(write_page(write_sweep(tmp_path / "s", made)), viewport={
        "width": width, "height": 700,
    })  # fmt: skip
    inside = "document.documentElement.scrollWidth <= window.innerWidth"
    table = page.locator("#compared table")
    assert not table.is_visible()
    assert page.evaluate(inside)
    page.locator("#compared summary").focus()
    page.keyboard.press("Enter")
    assert table.is_visible()
    assert page.evaluate(inside)
    assert "Significant" in table.locator("th").all_text_contents()


def test_the_details_of_a_cell_show_the_same_values_as_the_table(
    opened: Open, tmp_path: Path
) -> None:
    """JavaScript and Python round values such as 0.125 % differently."""
    made = [record(nat1=0.99125, asr1=0.00125, asr2=None), failed(record(seed=1))]
    page = opened(write_page(write_sweep(tmp_path / "s", made)))
    shown = [column(page, head)[0] for head in ("Nat1", "ASR1", "#Pois")]
    page.locator("#cells .open").first.click()
    rows = page.locator("#details .figures tr")
    assert rows.nth(1).locator("td").all_text_contents() == ["before", *shown]
    assert shown[:2] == ["99.12", "0.12"]
    assert rows.nth(2).locator("td").all_text_contents()[2] == "–"
    page.keyboard.press("ArrowRight")
    assert page.locator("#details .status").text_content() == "Status: failed: oom"
    assert page.locator("#details .figures").count() == 0


def test_the_page_can_be_used_by_keyboard(opened: Open, path: Path) -> None:
    page = opened(path)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.className + '|' + "
                                     "document.activeElement.tagName"))  # fmt: skip
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        if reached[-1].startswith("open|"):
            break
    assert reached[-1] == "open|BUTTON"
    assert reached.count("|SELECT") >= 4
    first = focused(page)
    page.keyboard.press("ArrowDown")
    second = focused(page)
    assert first != second
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    last = focused(page)
    page.keyboard.press("Home")
    assert focused(page) == first
    assert page.locator("#cells .open[tabindex='0']").count() == 1
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    title = page.locator("#details h2")
    assert (title.text_content() or "") in second
    page.keyboard.press("ArrowRight")
    assert (title.text_content() or "") not in second
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    assert focused(page) == second
    assert last != second


def test_pressing_enter_on_a_heading_sorts_the_table(opened: Open, path: Path) -> None:
    page = opened(path)
    page.get_by_role("button", name="Nat2", exact=True).focus()
    page.keyboard.press("Enter")
    numbers = [float(text) for text in column(page, "Nat2") if text != "–"]
    assert numbers == sorted(numbers)
    assert page.evaluate("document.activeElement.textContent") == "Nat2"


def test_following_a_link_to_a_cell_opens_the_cell(opened: Open, path: Path) -> None:
    page = opened(path)
    name = json.loads(page.locator("#data").text_content() or "")["ids"][2]
    again = opened(path, f"#cell={name}")
    assert again.locator("#details h2").text_content() == name
    opened(path, "#cell=%E0%A4%A")


@pytest.mark.parametrize("width", [320, 1200])
def test_nothing_on_the_page_overflows_horizontally(opened: Open, path: Path, width: int) -> None:
    page = opened(path, viewport={"width": width, "height": 700})
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= width
    page.locator("#cells .open").first.click()
    assert page.evaluate(wide) <= width
    panel = page.locator("#details")
    assert panel.evaluate("(each) => each.scrollWidth - each.clientWidth") <= 1
    assert panel.evaluate("(each) => each.getBoundingClientRect().width") <= width


def luminance(color: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` (WCAG 2.1)."""
    values = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_chart_marks_have_enough_contrast_in_light_and_dark_mode(
    opened: Open, path: Path, scheme: str
) -> None:
    page = opened(path, color_scheme=scheme)
    page.locator("#cells .open").first.click()
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) is (scheme == "light")

    def contrast(selector: str, name: str) -> float:
        script = "([s, n]) => getComputedStyle(document.querySelector(s))[n]"
        ours = luminance(page.evaluate(script, [selector, name]))
        return (max(ours, paper) + 0.05) / (min(ours, paper) + 0.05)

    for selector in ("h1", "#count", "#cells td", ".open", ".facts dt", "#details pre"):
        assert contrast(selector, "color") >= 4.5, selector
    for selector, name in (
        (".mark.clean", "fill"), (".mark.poison", "stroke"), (".mark.removed", "stroke"),
        (".curve.mine", "stroke"), (".curve.chance", "stroke"), (".cut", "stroke"),
        (".chart text", "fill"),
    ):  # fmt: skip
        assert contrast(selector, name) >= 3, selector


def test_hostile_text_is_shown_as_text(opened: Open, tmp_path: Path) -> None:
    made = cell(tmp_path / ".store", Made(0), "one")
    made["choices"] |= {"trigger": HOSTILE, "defense": HOSTILE}
    made["run"] |= {"command": HOSTILE, "device": HOSTILE}
    made["config"] |= {HOSTILE: {"__proto__": HOSTILE, "constructor": HOSTILE}}
    bad = failed(record(seed=7), "failed: " + HOSTILE)
    page = opened(write_page(write_sweep(tmp_path / "sweep", [made, bad])))
    page.get_by_label("Search").fill("<script>")
    page.get_by_label("Trigger", exact=True).select_option(index=1)
    assert page.locator("#count").text_content() == "1 of 2 cells"
    page.locator("#cells .open:visible").click()
    assert "<img src=x" in (page.locator("#details").text_content() or "")
    assert page.locator("#details img, #details script, main img").count() == 0
    page.keyboard.press("Escape")


def test_hostile_names_of_triggers_defenses_and_targets_are_shown_as_text(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names appear in the table, the drop-downs and the details; some are class names."""
    monkeypatch.setattr(stages, "CLASSES", ("</script>\x00", NAMES[12], "<img src=x>\u202e"))
    made = [cell(tmp_path / ".store", Made(0), "one", target=NAMES[12])]
    made += [record(name, NAMES[n % 40], defense=name, id=f"c{n}") for n, name in enumerate(NAMES)]
    page = opened(write_page(write_sweep(tmp_path / "sweep", made)))
    # Records contain unpaired surrogates only in escaped form.
    said = [plain(name.encode(errors="backslashreplace").decode()) for name in NAMES]
    for head in ("Trigger", "Defense"):
        assert column(page, head)[1:] == said
    options = page.get_by_label("Target", exact=True).locator("option").all_text_contents()
    assert set(options[1:]) == set(column(page, "Target")) == set(said[:40])
    page.locator("#cells .open").first.click()
    tiles = page.locator("#details .tiles li span:last-child").all_text_contents()
    assert {"</script>? → " + said[12], said[12]} <= set(tiles)
    for text in said:
        page.keyboard.press("ArrowRight")
        assert text in page.locator("#details .own dd").all_text_contents()
    assert page.locator("#details img, #details script, main img, main svg").count() == 0


def test_the_printed_page_shows_the_whole_table_and_hides_the_filter_form(
    opened: Open, path: Path
) -> None:
    page = opened(path, color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("#filters").is_hidden()
    assert (
        page.locator(".scroll").evaluate("(each) => getComputedStyle(each).overflow") == "visible"
    )
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert luminance(paper) == 1.0
    assert len(column(page, "Trigger")) == 14
    page.set_viewport_size({"width": 794, "height": 1123})  # A4 at 96 dots per inch
    assert page.evaluate("document.documentElement.scrollWidth") <= 794


def test_printing_an_opened_cell_shows_only_that_cell(opened: Open, path: Path) -> None:
    page = opened(path, viewport={"width": 794, "height": 1123})
    page.locator("#cells .open").first.click()
    page.emulate_media(media="print")
    assert page.locator("main").is_hidden()
    assert page.locator("#details .buttons").is_hidden()
    box = page.locator("#details").evaluate(
        "(each) => [each.getBoundingClientRect().width, each.clientHeight - each.scrollHeight]"
    )
    assert box == [794, 0]


def test_the_tables_are_shown_even_if_scripts_are_disabled(opened: Open, path: Path) -> None:
    page = opened(path, java_script_enabled=False)
    assert page.locator("#cells tbody tr").count() == 14
    assert page.locator("#tables table").count() >= 2
    assert page.locator("#filters").is_hidden()
    assert "Without scripts" in (page.locator("noscript").text_content() or "")
