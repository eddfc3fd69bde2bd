"""The index of frozen results: a table with one line per folder, generated from the sweeps'
files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import read_json
from backdoor_lab.results.frozen import SWEEP

NEEDED = ("cells", "hours", "first_started", "last_started")
HEAD = "| Question | Document | Sweeps | Cells | Hours | Dates |\n|---|---|---:|---:|---:|---|\n"
_TABLE = re.compile(re.escape(HEAD.partition("\n")[0]) + r"\n(?:\|.*\n)*")


def index(root: Path) -> str:
    """Returns a Markdown table of the folders in `root` that contain a document and frozen sweeps.

    Hours are the total time of all stages; a stage shared by several cells of a sweep counts once.
    Raises DataError if a sweep.json cannot be read.
    """
    lines = [_line(path.parent) for path in sorted(root.glob("*/README.md"))]
    return HEAD + "".join(line for line in lines if line)


def rewrite(root: Path) -> None:
    """Replaces the index in ``root/README.md``. Raises DataError if the file contains no index."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8")
    if not _TABLE.search(text):
        raise DataError(f"{path} contains no table that begins with {HEAD.splitlines()[0]}")
    write_atomic(path, _TABLE.sub(lambda _: index(root), text).encode())


def _line(folder: Path) -> str:
    found = [_read(path.parent) for path in sorted(folder.glob(f"*/{SWEEP}"))]
    if not found:
        return ""
    cells, hours = (sum(each[key] for each in found) for key in ("cells", "hours"))
    days = sorted(str(s[k])[:10] for s in found for k in ("first_started", "last_started") if s[k])
    dates = " to ".join(dict.fromkeys([days[0], days[-1]])) if days else "–"
    link = f"[{folder.name}]({folder.name}/README.md)"
    return f"| {_question(folder)} | {link} | {len(found)} | {cells} | {hours:.1f} | {dates} |\n"


def _question(folder: Path) -> str:
    text = (folder / "README.md").read_text(encoding="utf-8")
    heading = re.search(r"(?m)^# (.+)$", text)
    return heading[1] if heading else folder.name


def _read(folder: Path) -> dict[str, Any]:
    path = folder / SWEEP
    try:
        found = read_json(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [key for key in NEEDED if not isinstance(found, dict) or key not in found]
    if missing:
        raise DataError(f"{path} does not describe frozen records: it lacks {', '.join(missing)}")
    return dict(found)
