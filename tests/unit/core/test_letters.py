"""Class names in any script: distinct folder names, and figures without missing glyphs."""

from __future__ import annotations

import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from backdoor_lab.core.letters import transcribed
from backdoor_lab.figures import fonts, style
from backdoor_lab.tables.layout import slug
from tests.helpers.cells import cell_of

NAMES = {
    "猫": "u732b",
    "犬": "u72ac",
    "猫犬": "u732b-u72ac",
    "ねこ": "ne-ko",
    "ネコ": "ne-ko",
    "고양이": "go-yang-i",
    "قطة": "qaf-tah-teh",
    "Kätzchen": "Katzchen",
    "smørrebrød": "smorrebrod",
    "cat猫": "cat-u732b",
    "犬 ü": "u72ac u",
    "😀": "u1f600",
}


@pytest.mark.parametrize(("name", "expected"), NAMES.items())
def test_non_latin_names_are_transcribed_to_ascii(name: str, expected: str) -> None:
    assert transcribed(name) == expected
    assert transcribed(unicodedata.normalize("NFD", name)) == expected


@pytest.mark.parametrize("name", ["bird", "no-passing", "-x-", "a  b", "", "T-Shirt/top", "a\0b"])
def test_ascii_names_are_unchanged(name: str) -> None:
    assert transcribed(name) == name


def test_cell_folders_of_non_latin_classes_are_distinct(tmp_path: Path) -> None:
    cell = cell_of(tmp_path / "store", "target=0")
    ids = {}
    for name in ("猫", "犬", "고양이", "قطة"):
        named = replace(cell, classes=(name, *cell.classes[1:]))
        ids[name] = named.id.rpartition("-")[0]
        assert named.id.isascii()
    assert ids["猫"] == "pixel-u732b-r0.3-spectral-s0"
    assert ids["고양이"] == "pixel-go-yang-i-r0.3-spectral-s0"
    assert len(set(ids.values())) == 4
    assert cell.id.startswith("pixel-airplane-r0.3-spectral-s0-")


def test_table_file_names_of_non_latin_classes_are_distinct() -> None:
    assert slug("猫", "猫").startswith("u732b-")
    assert slug("bird", "bird") == "bird"


def drawn(title: str) -> tuple[Figure, Text]:
    figure = style.new(4, 2)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=title)
    axes.legend()
    return figure, axes.set_title(title)


# In a figure, only letters that are missing in the font are transcribed.
IN_FIGURES = (
    NAMES
    | {"cat猫": "catu732b", "犬 ü": "u72ac ü"}
    | {name: name for name in ("قطة", "Kätzchen", "smørrebrød", "😀")}
)
# A letter missing in the default font, and a font shipped with Matplotlib that has it.
LETTER, FAMILY = "\u1d81", "STIXGeneral"


@pytest.mark.parametrize(("name", "expected"), IN_FIGURES.items())
def test_names_are_transliterated_in_figures_if_no_font_has_the_letters(
    name: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_installed", tuple)
    fonts.fonts_for.cache_clear()
    figure, title = drawn(f"target {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Matplotlib warns if it shows a letter as a box.
        style.save(figure, tmp_path / "x")
    fonts.fonts_for.cache_clear()
    usual = FT2Font(findfont(fonts.USUAL)).get_charmap()
    assert all(ord(char) in usual for char in title.get_text())
    assert title.get_text() == f"target {expected}"


def test_an_installed_font_that_has_the_missing_letter_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ord(LETTER) not in FT2Font(findfont(fonts.USUAL)).get_charmap()
    entry = next(each for each in fonts._installed() if each.name == FAMILY)
    monkeypatch.setattr(fonts, "_installed", lambda: (entry,))
    fonts.fonts_for.cache_clear()
    figure, title = drawn(f"target {LETTER}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save(figure, tmp_path / "x")
    fonts.fonts_for.cache_clear()
    assert title.get_fontfamily() == [fonts.USUAL, FAMILY]
    assert title.get_text() == f"target {LETTER}"


def test_names_are_written_in_ascii_if_the_font_cannot_be_embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "fonts_for", lambda letters: ((FAMILY,), frozenset()))
    real = style._drawn

    def fails(figure: Figure, suffix: str) -> bytes:
        if FAMILY in title.get_fontfamily() and suffix == "pdf":
            raise RuntimeError("this kind of font cannot be embedded")
        return real(figure, suffix)

    monkeypatch.setattr(style, "_drawn", fails)
    figure, title = drawn(f"target {LETTER}")
    assert len(style.save(figure, tmp_path / "x")) == 2
    assert title.get_text() == f"target {transcribed(LETTER)}"
    assert title.get_fontfamily() == [fonts.USUAL]


def test_a_figure_with_only_ascii_text_keeps_its_font() -> None:
    figure, title = drawn("bird")
    before = title.get_fontfamily()
    assert not fonts.fit_letters(figure)
    assert title.get_fontfamily() == before


def test_last_resort_fonts_are_not_used() -> None:
    assert all("Last Resort" not in each.name for each in fonts._installed())
