"""Commands: from arguments to an exit code, errors of one line, and output whose reader has
gone."""

from __future__ import annotations

import ast
import errno
import re
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from backdoor_lab.core.errors import ConfigError, DataError, LabError, StoppedError
from backdoor_lab.core.options import parser_of
from backdoor_lab.core.terminal import print_error, run_command
from tests.helpers.cells import environment
from tests.helpers.project import PACKAGE, ROOT, SOURCES, calls, name_of, tree


def main_of(path: Path) -> ast.FunctionDef | None:
    found = [n for n in tree(path).body if isinstance(n, ast.FunctionDef) and n.name == "main"]
    return found[0] if found else None


def mains() -> list[Path]:
    """The modules that are commands, except run.py, whose arguments Hydra parses."""
    return [path for path in SOURCES if main_of(path) and name_of(path) != "run.py"]


def command_of(path: Path) -> str:
    return name_of(path).removesuffix("/__main__.py").removesuffix(".py")


def test_the_package_has_nineteen_commands_besides_the_main_program() -> None:
    assert len(mains()) == 19


def test_the_help_of_the_main_program_lists_all_commands() -> None:
    text = (ROOT / "conf" / "config.yaml").read_text()
    listed = text.partition("Other commands")[2].partition("template:")[0]
    names = {command_of(path) for path in mains()} - {"scan/reference", "scan/trials"}
    assert names <= set(re.findall(r"\w+", listed))


@pytest.mark.parametrize("path", mains(), ids=command_of)
def test_every_main_function_returns_the_result_of_run_command_and_catches_no_exception(
    path: Path,
) -> None:
    """Errors, exit codes and closed output are handled only in `run_command`."""
    main = main_of(path)
    assert main is not None
    last = main.body[-1]
    assert isinstance(last, ast.Return)
    assert isinstance(last.value, ast.Call)
    assert ast.unparse(last.value.func) in ("run_command", "answer")
    assert not any(isinstance(node, ast.Try) for node in ast.walk(main))


def test_only_one_function_of_the_package_prints_errors() -> None:
    told = {
        name_of(path)
        for path in SOURCES
        for name, call in calls(path)
        if name == "print" and "error: " in ast.unparse(call)
    }
    # run.py prints the errors that Hydra raises.
    assert told == {"core/terminal.py", "run.py"}
    answer = (PACKAGE / "page" / "analysis_command.py").read_text()
    assert "return run_command(" in answer


def run(work: object) -> int:
    def command(given: Namespace) -> int:
        if isinstance(work, BaseException):
            raise work
        return int(given.number)

    parser = parser_of("none", "text\n  as it stands")
    parser.add_argument("number", type=int)
    return run_command(parser, command, ["7"])


def test_a_command_returns_the_exit_code_of_the_function_that_does_its_work() -> None:
    assert run(None) == 7


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (LabError("failed"), 1, "failed"),
        (ConfigError("two\n  lines\n"), 2, "two lines"),
        (DataError("a  b\x1b[31m\u202ec"), 2, "a  b?[31m?c"),
        (StoppedError("stopped"), 75, "stopped"),
        (PermissionError(errno.EACCES, "Permission denied", "/x\ny"), 1,
         "cannot use /x y: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "not enough disk space: "),
    ],
)  # fmt: skip
def test_an_error_gives_one_printable_line_and_its_exit_code(
    error: LabError | OSError, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(error) == print_error(error) == code
    out, lines = capsys.readouterr()
    assert out == ""
    first, second = lines.splitlines()
    assert first == second
    assert first.startswith("error: ")
    assert said in first
    assert first.isprintable()


def test_unexpected_exceptions_are_not_caught() -> None:
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError("defect"))


def test_help_keeps_the_lines_of_the_docstring() -> None:
    assert "text\n  as it stands" in parser_of("none", "text\n  as it stands").format_help()


@pytest.mark.parametrize("path", mains(), ids=command_of)
def test_bad_arguments_are_refused_in_one_line_and_help_succeeds_with_a_closed_stdout(
    path: Path,
) -> None:
    command = [sys.executable, "-m", f"backdoor_lab.{command_of(path)}".replace("/", ".")]
    wrong = subprocess.run(
        [*command, "--bogus"], env=environment(), capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("error: ")
    assert len(wrong.stderr.splitlines()) == 1
    left = subprocess.run(
        ["bash", "-c", '"$0" "$@" --help >&-', *command], env=environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (left.returncode, left.stderr) == (0, "")
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    assert reader.stdin is not None
    nobody = subprocess.run(
        [*command, "--help"], env=environment(), stdout=reader.stdin, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    reader.stdin.close()
    assert (nobody.returncode, nobody.stderr) == (0, "")
