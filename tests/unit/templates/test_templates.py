"""HTML templates: missing values are errors, and values are escaped."""

from __future__ import annotations

import json

import pytest

from backdoor_lab.tables.markup import TextTable, html_page
from backdoor_lab.templates import TEMPLATES, json_data, render


def test_rendering_a_template_without_a_value_that_it_uses_is_an_error() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="grids"):
        render("tables.html", title="t")


@pytest.mark.parametrize("name", [path.name for path in TEMPLATES.glob("*.html")])
def test_every_template_escapes_its_values(name: str) -> None:
    from jinja2 import StrictUndefined

    from backdoor_lab.templates import _environment

    found = _environment().get_template(name).environment
    assert found.autoescape is True
    assert found.undefined is StrictUndefined


def test_values_are_escaped_everywhere_in_a_table() -> None:
    bad = "<b>\"'&\n\x00\u202e"
    grid = TextTable(bad, [bad, bad], [[bad, bad]], [bad], 1, frozenset({(0, 1)}), [bad, ""])
    text = html_page(bad, [grid])
    assert "<b>" not in text
    assert text.count("&lt;b&gt;&#34;&#39;&amp; ??") == 8
    assert not any(c in text for c in "\x00\u202e")
    assert '<td class="best">' in text
    assert '<th colspan="1">' in text


def test_json_data_contains_no_markup_and_can_be_read_back() -> None:
    value = {"</script>": ["<!--", "\u2028\u2029&'\""]}
    text = json_data(value)
    assert not any(c in text for c in "<>&'\u2028\u2029")
    assert json.loads(text) == value
    with pytest.raises(ValueError):
        json_data(float("nan"))
