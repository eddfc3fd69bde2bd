"""Letters that the usual font lacks: from another installed font, else transcribed.

Class names may be in any script. Matplotlib's own font has Latin, Greek, Cyrillic, Arabic, Hebrew
and a few others; for Chinese, Japanese, Korean and the rest a font of the system must help.
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
"""Matplotlib's own font of boxes, which has every letter and shows none."""


def fit_letters(figure: Figure) -> bool:
    """Gives every text of `figure` the fonts that its letters need; letters that no font has are
    transcribed. Whether a text has got another font than the usual one."""
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
    """Transcribes every letter of `figure` that the usual font lacks."""
    for text in _texts(figure):
        text.set_fontfamily([USUAL])
        _transcribe(text, _beyond(text.get_text()))


@functools.lru_cache(1024)
def fonts_for(letters: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The fewest further fonts that are needed for `letters`, greedily; and what none has."""
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
        # Neighbours that lack a font are transcribed as one, so that hyphens part them.
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
    """One upright font of each family, sans serif first."""
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
