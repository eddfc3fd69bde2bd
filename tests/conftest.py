"""Readable ids of parametrized tests."""

from __future__ import annotations

from pathlib import PurePath

LONGEST = 60
LONGEST_OBJECT = 40
"""The maximum length of an object's text in an id. With a longer text, pytest's own id is used."""


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Format a parameter as name and value, such as ``rank=3`` or ``size=(4, 7)``. Strings are
    shown without a name."""
    text = _text(val)
    if text is None or (isinstance(val, str) and len(text) <= LONGEST):
        return None
    if isinstance(val, dict) and val:
        text = text[1:-1]
    elif not isinstance(val, str | PurePath | BaseException):
        text = f"{argname}={text}"
    return text[:LONGEST]


def _text(value: object) -> str | None:
    """Text that is equal in every process, or None for values whose id pytest should choose."""
    if isinstance(value, str):
        return ascii(value)[1:-1]
    if isinstance(value, bytes | bool | int | float | None):
        return ascii(value)
    if isinstance(value, PurePath):
        return ascii(value.name)[1:-1]
    if isinstance(value, BaseException):
        return f"{type(value).__name__} {str(value)!a}"
    if isinstance(value, dict):
        parts = [f"{_text(key)}={_text(item)}" for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [str(_text(item)) for item in value]
    elif isinstance(value, set | frozenset):
        parts = sorted(str(_text(item)) for item in value)
    else:
        return _short(value)
    return f"({', '.join(parts)})"


def _short(value: object) -> str | None:
    text = repr(value)
    named = hasattr(value, "__name__") or " at 0x" in text or "\n" in text
    return None if named or len(text) > LONGEST_OBJECT else ascii(text)[1:-1]
