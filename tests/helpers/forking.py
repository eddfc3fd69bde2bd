"""A replacement for `python` that imports torch only once: every command runs in a fork of one
process.

That process is this file, run with the path of a socket. `write_python` writes the replacement for
`python`: a script that sends the process its command line, folder, environment and open files, and
waits. To save time, workers of a sweep are forks too, and a calibration takes one step. The
variable `TRIAL` (JSON: patterns and overrides) adds overrides to runs of `python -m backdoor_lab`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

LARGEST = 1 << 20
STAND_IN = """\
#!{python} -SE
import json, os, socket, sys
told = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps(told).encode() + b"\\n"], [0, 1, 2])
    sys.exit(int(server.makefile().readline() or 1))
"""


def write_python(path: Path, address: Path) -> None:
    """Write the replacement for `python` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)


@contextlib.contextmanager
def forking(address: Path, cwd: Path, env: dict[str, str]) -> Iterator[None]:
    """Run the process that serves the replacement for `python`, inside this context."""
    command = [sys.executable, str(Path(__file__).resolve()), str(address)]
    with subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.PIPE) as process:
        try:
            limit = time.monotonic() + 120
            while not address.exists():
                assert process.poll() is None, "the process that imports torch has ended"
                assert time.monotonic() < limit
                time.sleep(0.05)
            yield
        finally:
            process.kill()


def serve(address: str) -> None:
    """Fork for each command that arrives, until this process is killed."""
    import pytorch_lightning  # noqa: F401
    import sklearn.ensemble  # noqa: F401
    import torchvision  # noqa: F401

    import backdoor_lab.pipeline.cell_pipeline
    import backdoor_lab.run
    import backdoor_lab.sweep.calibrate  # noqa: F401

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address + ".new")
        server.listen()
        os.rename(address + ".new", address)
        while True:
            client, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(client)
            client.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _answer(client: socket.socket) -> NoReturn:
    """Run a command in a child of this process, and send its exit code."""
    data, files, _, _ = socket.recv_fds(client, LARGEST, 3)
    while not data.endswith(b"\n"):
        data += client.recv(LARGEST)
    child = os.fork()
    if child == 0:
        client.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        _run(**json.loads(data))
    _, status = os.waitpid(child, 0)
    client.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _run(argv: list[str], cwd: str, env: dict[str, str]) -> NoReturn:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    code: Any = 0
    try:
        _at_trial_size()
        _start(argv, json.loads(env.get("TRIAL", "[]")))
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(int(code or 0))


def _at_trial_size() -> None:
    from backdoor_lab.sweep import calibrate
    from backdoor_lab.sweep.launching.workers import Worker

    Worker.__init__.__defaults__ = ("fork",)
    settings: Any = calibrate
    settings.SHORTEST = settings.PROCESSOR_TIME = 0.0
    settings.WARM_UP = settings.TEST_IMAGES = 1


def _start(argv: list[str], trial: list[tuple[str, list[str]]]) -> None:
    if argv[:1] == ["-m"]:
        module, *words = argv[1:]
        if module == "backdoor_lab":
            said = " ".join(words)
            words += [each for pattern, more in trial if re.search(pattern, said) for each in more]
        sys.argv = [module, *words]
        sys.path[0] = os.getcwd()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif argv[:1] == ["-c"]:
        sys.argv = ["-c", *argv[2:]]
        exec(compile(argv[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])
