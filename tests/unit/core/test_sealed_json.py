"""Sealed text is decoded by orjson where it is installed, with the same results and errors as
json."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from backdoor_lab.core import small_files
from backdoor_lab.core.small_files import DamagedFileError


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [0.1, -0.0, 1e-300, 9223372036854775807, true, null], "\u00e9": "\u65e5"}',
        '{"a": NaN}', "1e999", '"\\ud800"', '{"a": 1, "a": 2}', "[1,]", '"\x01"', "[" * 2000,
    ],
)  # fmt: skip
def test_sealed_text_is_decoded_identically_with_and_without_orjson(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("orjson")
    monkeypatch.setattr(small_files, "_fast_json", small_files._fast_json.__wrapped__)

    def outcome() -> str:
        try:
            return repr(small_files.decode(text.encode(), sealed=True))
        except DamagedFileError as error:
            return str(error)

    fast = outcome()
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert outcome() == fast


def test_text_that_orjson_refuses_is_decoded_by_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: bytes) -> None:
        raise ValueError("refused")

    monkeypatch.setattr(small_files, "_fast_json", small_files._fast_json.__wrapped__)
    monkeypatch.setitem(sys.modules, "orjson", SimpleNamespace(loads=refuse))
    assert small_files.decode(b'{"a": 1e999}', sealed=True) == {"a": float("inf")}
    with pytest.raises(DamagedFileError, match="Expecting value"):
        small_files.decode(b'{"a": ', sealed=True)
