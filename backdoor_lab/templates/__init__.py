"""HTML pages, each a template in this folder with the scripts and styles that it takes in.

Names and messages come from records: every value is escaped, and is made one printable line.
jinja2 is imported when a page is written, not before.
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
    """The page of the template `name`. Raises UndefinedError for a value that it lacks."""
    return _environment().get_template(name).render(values)


def asset(*names: str) -> Markup:
    """Our own scripts or styles, one after the other. Escaped they would be neither; no text of
    a record is in them."""
    from markupsafe import Markup

    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def json_data(value: Any) -> Markup:
    """JSON that ends no script element."""
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
