"""Columns from the mappings of records."""

from __future__ import annotations

from typing import Any

import pytest

from backdoor_lab.results.values import by_key


@pytest.mark.parametrize(
    ("mappings", "columns"),
    [
        ([], {}),
        ([{}, {}], {}),
        ([{"a": 1, "b": 2}, {"a": 3, "b": 4}], {"a": [1, 3], "b": [2, 4]}),
        ([{"a": 1, "b": 2}, {"b": 3, "a": 4}], {"a": [1, 4], "b": [2, 3]}),
        ([{"a": 1}, {"b": 2}, {}], {"a": [1, None, None], "b": [None, 2, None]}),
    ],
    ids=["no mappings", "no keys", "the same keys", "another order", "different keys"],
)
def test_a_key_missing_from_a_mapping_gets_the_value_none(
    mappings: list[dict[str, Any]], columns: dict[str, list[Any]]
) -> None:
    assert by_key(mappings) == columns
