"""Handles characters that the default font lacks: finds an installed font, or transliterates them.

Class names may use any script. Matplotlib's font covers Latin, Greek, Cyrillic, Arabic, Hebrew and
a few others; Chinese, Japanese, Korean and other scripts need a system font.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, findfont, fontManager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from backdoor_lab.core.letters import transcribed

USUAL = "DejaVu Sans"
_LAST_RESORT = "Last Resort"
"""The name of a placeholder font of Matplotlib, which draws every character as a box."""


def fit_letters(figure: Figure) -> bool:
    """Set the fonts that each text of `figure` needs, and transliterate characters that no font
    has. Returns whether any text uses a font other than the default."""
    changed = False
    for text in _texts(figure):
        families, lacking = fonts_for("".join(sorted(set(text.get_text()))))
        if families:
            text.set_fontfamily([USUAL, *families])
            changed = True
        if lacking:
            _transcribe(text, lacking)
    return changed


def transcribe_letters(figure: Figure) -> None:
    """Transliterate all characters of `figure` that the default font lacks."""
    for text in _texts(figure):
        text.set_fontfamily([USUAL])
        _transcribe(text, _beyond(text.get_text()))


@functools.lru_cache(1024)
def fonts_for(letters: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Greedily choose a small set of additional fonts for `letters`. Returns the fonts, and the
    characters that no font has."""
    lacking = _beyond(letters)
    families: list[str] = []
    while lacking:
        best = max(_installed(), key=lambda each: len(lacking & _has(each)), default=None)
        if best is None or not lacking & _has(best):
            break
        families.append(best.name)
        lacking -= _has(best)
    return tuple(families), frozenset(lacking)


def _texts(figure: Figure) -> list[Text]:
    found = figure.findobj(Text)
    return [each for each in found if isinstance(each, Text) and not each.get_text().isascii()]


def _transcribe(text: Text, lacking: frozenset[str] | set[str]) -> None:
    runs: list[str] = []
    for char in text.get_text():
        # Transliterate neighboring characters together, so that hyphens separate them.
        if runs and (char in lacking) == (runs[-1][-1] in lacking):
            runs[-1] += char
        else:
            runs.append(char)
    text.set_text("".join(transcribed(run) if run[0] in lacking else run for run in runs))


def _beyond(letters: str) -> set[str]:
    usual = _codes(findfont(USUAL))
    return {char for char in letters if ord(char) not in usual and char.isprintable()}


def _has(entry: FontEntry) -> frozenset[str]:
    return frozenset(map(chr, _codes(entry.fname)))


@functools.cache
def _installed() -> tuple[FontEntry, ...]:
    """The installed fonts: one upright font of each family, sans serif first."""
    found = {
        entry.name: entry
        for entry in sorted(fontManager.ttflist, key=lambda each: (each.name, each.fname))
        if entry.style == "normal" and not entry.name.startswith((USUAL, _LAST_RESORT))
        and str(entry.weight) in ("400", "normal", "regular", "medium")
    }  # fmt: skip
    return tuple(sorted(found.values(), key=lambda each: ("Sans" not in each.name, each.name)))


@functools.lru_cache(512)
def _codes(path: str) -> frozenset[int]:
    try:
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError) as error:
        logging.getLogger(__name__).debug("font %s is not used: %s", Path(path).name, error)
        return frozenset()
