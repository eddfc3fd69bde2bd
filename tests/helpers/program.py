"""Runs many command lines in one process, which imports the program only once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers.cells import environment

# Runs the program for each command of a JSON list, in one process, since imports take most of the
# time.
MANY = """
import contextlib, io, json, sys, time
from hydra.core.global_hydra import GlobalHydra
from backdoor_lab.run import main
found = []
for words in json.loads(sys.stdin.read()):
    sys.argv = ["backdoor-lab", *words]
    GlobalHydra.instance().clear()
    out, err, began, code = io.StringIO(), io.StringIO(), time.monotonic(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    found.append([code, out.getvalue(), err.getvalue(), time.monotonic() - began])
print(json.dumps([found, "torch" in sys.modules]))
"""


def many(cwd: Path, commands: list[list[str]]) -> tuple[list[Any], bool]:
    run = subprocess.run(
        [sys.executable, "-c", MANY], input=json.dumps(commands), cwd=cwd, env=environment(),
        capture_output=True, text=True, timeout=200, check=True,
    )  # fmt: skip
    found, torch_loaded = json.loads(run.stdout.splitlines()[-1])
    return found, torch_loaded
