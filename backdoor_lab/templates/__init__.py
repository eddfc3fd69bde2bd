"""The HTML templates of pages, with their scripts and styles.

Names and messages come from records, so every value is escaped and reduced to one printable line.
jinja2 is imported only when a page is written.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backdoor_lab.core.terminal import plain

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent


def render(name: str, **values: Any) -> str:
    """Render the template `name` with these values. Raises UndefinedError if the template uses a
    value that is not given."""
    return _environment().get_template(name).render(values)


def asset(*names: str) -> Markup:
    """Concatenate scripts or styles of this package. They contain nothing from records and are not
    escaped."""
    from markupsafe import Markup

    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def json_data(value: Any) -> Markup:
    """Convert `value` to JSON that is safe inside a script element."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, json.dumps, separators=(",", ":"), allow_nan=False)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        finalize=_line, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _line(value: Any) -> Any:
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
