"""Names in any script, written in ASCII: for folders, and for pictures without a fitting font."""

from __future__ import annotations

import re
import unicodedata

_LETTER = re.compile(r"(?:LETTER|SYLLABLE|SYLLABLES|VOWEL SIGN) (?:SMALL )?(?P<sound>[A-Z]+)")


def transcribed(text: str) -> str:
    """`text` in ASCII; what is ASCII already stays as it is.

    Accents are dropped. A letter or syllable of another script is written by its sound, as
    Unicode names it, and a Chinese character by its number: ``u732b``. Hyphens part them.
    """
    if text.isascii():
        return text
    found = ""
    for char in unicodedata.normalize("NFC", text):
        plain = _latin(char)
        if plain is None:
            found += f"\0{_sound(char)}\0"
        else:
            found += plain
    # One hyphen between two of them or beside a letter, none at the ends.
    found = re.sub(r"\0\0", "-", found)
    return re.sub(r"(?<=\w)\0(?=\w)", "-", found).replace("\0", "")


def _latin(char: str) -> str | None:
    """An ASCII form of a Latin letter or of punctuation; None for another script."""
    if char.isascii():
        return char
    bare = "".join(c for c in unicodedata.normalize("NFKD", char) if not unicodedata.combining(c))
    if bare.isascii():
        return bare
    name = unicodedata.name(char, "")
    if not name.startswith("LATIN "):
        return None
    sound = name.partition(" WITH ")[0].rpartition(" ")[2]
    return sound if " CAPITAL " in name else sound.lower()


def _sound(char: str) -> str:
    found = _LETTER.search(unicodedata.name(char, ""))
    return found["sound"].lower() if found else f"u{ord(char):04x}"
