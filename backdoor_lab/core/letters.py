"""Transcribes names from any script to ASCII, for folder names and for figures whose font lacks a
character."""

from __future__ import annotations

import re
import unicodedata

_LETTER = re.compile(r"(?:LETTER|SYLLABLE|SYLLABLES|VOWEL SIGN) (?:SMALL )?(?P<sound>[A-Z]+)")


def transcribed(text: str) -> str:
    """Returns `text` in ASCII; ASCII characters are unchanged.

    Accents are dropped. A letter or syllable of another script is replaced by its Unicode name
    (``zhe``), a Chinese character by its code point (``u732b``). Hyphens separate the replacements.
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
    # One hyphen between two replacements or next to a letter, none at the ends.
    found = re.sub(r"\0\0", "-", found)
    return re.sub(r"(?<=\w)\0(?=\w)", "-", found).replace("\0", "")


def _latin(char: str) -> str | None:
    """Returns the ASCII form of a Latin letter or punctuation mark; None for other scripts."""
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
