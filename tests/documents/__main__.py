"""Writes the generated tables of all documents and committed sweeps, and the outputs of the
notebook.

    python -m tests.documents [--check]

They are made from committed records and from the code. `--check` writes nothing, and exits with 1
if a document would change.
"""

from __future__ import annotations

import argparse
import sys

from backdoor_lab.core.atomic_io import write_atomic
from tests.documents import notebook
from tests.documents.project import ROOT, changed, changed_tables, frozen_sweeps


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns 0, or 1 if `--check` finds a document that would change."""
    parser = argparse.ArgumentParser(prog="python -m tests.documents", description=__doc__)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    found = changed() | changed_tables(frozen_sweeps())
    run = {path: notebook.executed(path) for path in notebook.NOTEBOOKS}
    found |= {path: text for path, text in run.items() if text != path.read_text(encoding="utf-8")}
    for path, text in found.items():
        print(
            f"{path.relative_to(ROOT)}: {'differs from its records' if given.check else 'written'}"
        )
        if not given.check:
            write_atomic(path, text.encode())
    print(f"{len(found)} of the documents {'differ' if given.check else 'changed'}")
    return int(given.check and bool(found))


if __name__ == "__main__":
    sys.exit(main())
