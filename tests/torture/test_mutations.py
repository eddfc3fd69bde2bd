"""Every golden test fails, by an assertion, for each of the wrong formulas that it names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.helpers.cells import environment
from tests.helpers.mutations import Mutation, golden_modules, mutations_of
from tests.helpers.project import ROOT

COPIED = (
    "backdoor_lab",
    "conf",
    "tests/__init__.py",
    "tests/golden",
    "tests/helpers",
    "pyproject.toml",
)
# How the message of a failed assertion begins, including those of numpy.testing and pytest.raises.
ASSERTIONS = ("assert ", "AssertionError", "Failed: DID NOT")
EACH = [(path, mutation) for path in golden_modules() for mutation in mutations_of(path)]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its golden tests."""
    for name in COPIED:
        made = tmp_path / name
        made.parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, made, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, made)
    return tmp_path


def outcome(copy: Path, module: Path, *more: str) -> tuple[int, list[str]]:
    """The exit code of pytest in the copy, and the message of each failure."""
    told = copy / "told.xml"
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={told}", *more)
    done = subprocess.run(
        [sys.executable, *words, str(module.relative_to(ROOT))],
        cwd=copy, env=environment(PYTHONPATH=str(copy), OMP_NUM_THREADS="1"), capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert told.is_file(), done.stdout + done.stderr
    failed = [each.get("message", "") for each in ET.parse(told).iter("failure")]
    assert not [*ET.parse(told).iter("error")], done.stdout
    return done.returncode, failed


@pytest.mark.timeout(900)
@pytest.mark.parametrize("module", golden_modules(), ids=lambda path: path.stem)
def test_golden_tests_pass_in_a_copy_of_the_package_without_mutation(
    copy: Path, module: Path
) -> None:
    assert outcome(copy, module) == (0, [])


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("module", "mutation"), EACH, ids=[f"{path.stem}: {mutation}" for path, mutation in EACH]
)
def test_a_golden_test_fails_for_a_wrong_formula(
    copy: Path, module: Path, mutation: Mutation
) -> None:
    """The test fails with an assertion error, not because the mutated code cannot run."""
    mutation.apply(copy / "backdoor_lab")
    code, failed = outcome(copy, module)
    assert code == 1, f"no test fails for {mutation}"
    assert any(message.startswith(ASSERTIONS) for message in failed), failed


MADE = """
from backdoor_lab.numerics.made import double


def test_double():
    assert double(2) == 4
"""


@pytest.mark.parametrize(
    ("text", "code", "asserted"),
    [
        ("def double(x):\n    return 2 * x\n", 0, False),
        ("def double(x):\n    return x + 2\n", 0, False),  # The test cannot detect this one.
        ("def double(x):\n    return 3 * x\n", 1, True),
        ("def double(x):\n    return y * x\n", 1, False),
    ],
    ids=["correct", "wrong but not detected", "wrong", "name error"],
)
def test_only_a_failed_assertion_counts_as_a_detected_mutation(
    copy: Path, text: str, code: int, asserted: bool
) -> None:
    (copy / "backdoor_lab/numerics/made.py").write_text(text)
    (copy / "tests/golden/test_made.py").write_text(MADE)
    found, failed = outcome(copy, ROOT / "tests/golden/test_made.py")
    assert found == code
    assert any(message.startswith(ASSERTIONS) for message in failed) == asserted


def test_code_that_cannot_be_imported_does_not_count_as_a_detected_mutation(copy: Path) -> None:
    (copy / "backdoor_lab/numerics/made.py").write_text("def double(x:\n")
    (copy / "tests/golden/test_made.py").write_text(MADE)
    with pytest.raises(AssertionError):
        outcome(copy, ROOT / "tests/golden/test_made.py")
