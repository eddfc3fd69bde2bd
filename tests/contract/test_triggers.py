"""The contract of every trigger: each test runs on every YAML in conf/trigger."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.threat_model import CONTROLS, KNOWS
from backdoor_lab.check_plugin import triggers as checks
from backdoor_lab.check_plugin.triggers import attack_context, noise
from backdoor_lab.core import progress
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.progress import Steps, observe
from backdoor_lab.fidelity.table import methods
from tests.helpers.cells import BRIEF_STEPS

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "conf/trigger").glob("*.yaml"))
STEPPING = [
    path.stem
    for path in sorted((ROOT / "conf/trigger").glob("*.yaml"))
    if "steps" in OmegaConf.load(path)
]
#: The package's own triggers.
OURS = {method.name for method in methods().values() if method.group == "trigger"}
SIZES = [*checks.SIZES]
SCALED = {"adaptive_patch", "tact"}
"""Triggers whose patches cannot be scaled to images with a side of 5 pixels."""


def config(name: str) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/trigger/{name}.yaml"))
    return found


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trigger(name: str) -> Trigger:
    return ready(name)


@functools.cache
def ready(name: str, channels: int = 3, height: int = 32, width: int = 32) -> Trigger:
    """The trigger of a YAML, prepared for an image size where necessary, with two optimization
    steps."""
    options = config(name)
    if "steps" in options:
        options["steps"] = 2
    options |= BRIEF_STEPS.get(name, {})
    return checks.prepared(build("trigger", options, Trigger), channels, height, width)


@pytest.fixture
def makes(name: str) -> checks.Ready:
    """Makes the trigger of a YAML for a number of channels, a height and a width."""
    return functools.partial(ready, name)


def ready_or_skip(name: str, channels: int, height: int, width: int) -> Trigger:
    """The trigger of a YAML for this image size. Skips the test if the trigger is not part of the
    package and refuses this size."""
    try:
        return ready(name, channels, height, width)
    except ConfigError as error:
        if name in OURS:
            raise
        pytest.skip(f"refused by check_image_size: {error}")


def test_the_parametrized_list_contains_the_known_triggers() -> None:
    """Without this test, an empty list of triggers would go unnoticed: pytest skips a parametrized
    test that has no cases."""
    assert {"pixel", "pattern"} <= set(NAMES) & OURS
    assert {"narcissus", "sleeper_agent"} <= set(STEPPING)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_triggered_images_keep_their_shape_and_dtype(
    name: str, channels: int, size: tuple[int, int]
) -> None:
    """This holds for test images, poison and covers, any number of channels, and odd image
    sizes."""
    if name in SCALED and size == (5, 64):
        with pytest.raises(ConfigError, match="after rounding, an error of"):
            ready(name, channels, *size)
        return
    checks.keeps_form(ready_or_skip(name, channels, *size), name, channels, *size)


def test_the_threat_model_agrees_with_what_the_trigger_uses(trigger: Trigger) -> None:
    """Labels stay correct if and only if the attacker does not control them. A surrogate requires
    knowledge of the model and the data. Preparation requires knowledge of the data."""
    threat = trigger.threat_model
    assert "images" in threat.controls
    assert set(threat.controls) <= set(CONTROLS)
    assert set(threat.knows) <= set(KNOWS)
    assert ("labels" not in threat.controls) == (trigger.label_mode == "clean")
    assert ("model" in threat.knows) == trigger.uses_surrogate
    assert ("data" in threat.knows) == (trigger.uses_surrogate or trigger.needs_preparing)


def test_poison_and_covers_depend_only_on_the_seed(makes: checks.Ready) -> None:
    """The state of torch's global generator does not matter."""
    checks.depends_only_on_the_seed(makes)


@pytest.mark.parametrize("name", STEPPING)
def test_a_trigger_reports_its_optimization_steps_as_progress(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are reported during preparation or poisoning. The poison is the same as without an
    observer."""
    images, labels = noise(6), torch.full((6,), 1)

    def poisoned() -> Tensor:
        ready.cache_clear()
        made = ready(name)
        return made.poisoned(images, labels, attack_context(made, 3, 32, 32))

    alone, usual = poisoned(), progress.Step
    noted: list[progress.Step] = []

    def noting(label: str, total: int | None) -> progress.Step:
        noted.append(usual(label, total))
        return noted[-1]

    monkeypatch.setattr(progress, "Step", noting)
    with observe(Steps()):
        assert torch.equal(poisoned(), alone)
    steps = [(step.done, step.total) for step in noted if step.label == "step"]
    assert steps
    assert set(steps) == {(2, 2)}


def test_a_trigger_changes_every_image(makes: checks.Ready) -> None:
    checks.changes_every_image(makes)


def test_triggered_images_do_not_share_memory_with_the_clean_images(makes: checks.Ready) -> None:
    """Applying a trigger does not modify the clean images either."""
    checks.shares_no_memory(makes)


def test_a_trigger_gives_the_same_result_for_views_and_copies(makes: checks.Ready) -> None:
    """The views are slices and channels-last images."""
    checks.treats_views_as_copies(makes)


def test_applying_a_trigger_is_deterministic(makes: checks.Ready) -> None:
    checks.is_deterministic(makes)


def test_a_trigger_accepts_batches_of_zero_and_one_image(makes: checks.Ready) -> None:
    """A single image gets the same result as in a larger batch."""
    checks.accepts_any_batch(makes)


def test_a_trigger_can_be_sent_to_another_process(makes: checks.Ready) -> None:
    checks.can_be_pickled(makes)


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 3), (1, 32), (32, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_smaller_than_the_trigger_are_accepted_or_the_error_names_their_shape(
    name: str, channels: int, size: tuple[int, int]
) -> None:
    images = noise(2, channels, *size)
    try:
        fitting = ready(name, channels, *size)
    except ConfigError:
        with pytest.raises(ConfigError, match=f"{size[0]}x{size[1]}|channel"):
            ready(name)(images)
    else:
        try:
            made = fitting(images)
        except IndexError as error:
            pytest.fail(
                f"the trigger {name} does not fit into images of {size[0]}x{size[1]} pixels"
                f" ({error}): apply_test must raise ConfigError with this size, such as"
                ' ConfigError(f"... {height}x{width} pixels"), or change what it can'
            )
        assert made.shape == images.shape


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(2, 3, 32, 32),
        torch.zeros(2, 3, 32, 32, dtype=torch.int64),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 4, 32, 32, dtype=torch.uint8),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
    ],
    ids=["float", "int64", "no batch", "rgba", "channels last"],
)
def test_a_trigger_refuses_images_of_a_wrong_dtype_or_layout(
    trigger: Trigger, images: Tensor
) -> None:
    with pytest.raises(TypeError, match="a trigger takes uint8 images"):
        trigger(images)


def test_triggered_images_stay_on_the_device_of_the_clean_images(trigger: Trigger) -> None:
    """The device `meta` stands in for a GPU."""
    on_device = trigger(noise(2).to("meta"))
    assert on_device.device.type == "meta"
    if torch.cuda.is_available():
        assert torch.equal(trigger(noise(2).cuda()).cpu(), trigger(noise(2)))


@pytest.mark.parametrize("placement", ["append", "replace"])
def test_only_the_selected_images_and_covers_change(trigger: Trigger, placement: str) -> None:
    """poison() never writes to the clean set. Labels follow the trigger's label mode."""
    checks.poisons_only_chosen_images(trigger, placement)


STRIPE = '''
"""A bright stripe down the left side."""

from torch import Tensor

from backdoor_lab.attacks.base import Trigger


class Stripe(Trigger):
    """One column set to one value."""

    def __init__(self, *, column: int = 0, value: int = 255) -> None:
        self.column, self.value = column, value

    def apply_test(self, images: Tensor) -> Tensor:
        images[:, :, :, self.column] = self.value
        return images
'''
BROKEN = {
    "striping": (
        "def __call__(self, images):\n        return self.apply_test(images)",
        "do_not_share_memory",
    ),
    "stripefloat": ("def apply_test(self, images):\n        return images / 2", "shape_and_dtype"),
    "striperandom": (
        "def apply_test(self, images):\n        import torch\n"
        "        return torch.randint_like(images, 256)",
        "deterministic",
    ),
    "stripecolor": (
        "def apply_test(self, images):\n        if images.shape[1] == 3:\n"
        "            images[:, :, 0] = 255 - images[:, :, 0]\n        return images",
        "shape_and_dtype",
    ),
}
REFUSING = (
    "def check_image_size(self, channels, height, width):\n"
    "        from backdoor_lab.core.errors import ConfigError\n        if channels != 3:\n"
    "            raise ConfigError('this trigger needs images of 3 channels')"
)


def test_a_new_trigger_needs_only_a_python_file_and_a_yaml_file(tmp_path: Path) -> None:
    """In a copy of the project, a correct trigger passes all tests above, and so does one that
    refuses gray images. Triggers that modify their input, return floats, are random or leave gray
    images as they are fail the corresponding tests."""
    copy = _copy_of_the_project(tmp_path)
    _add(copy, "stripe", STRIPE)
    _add(copy, "striperefuses", f"{STRIPE}\n    {REFUSING}\n")
    for name, (method, _) in BROKEN.items():
        _add(copy, name, f"{STRIPE}\n    {method}\n")
    outcome = _run_there(copy)
    for name in ("stripe", "striperefuses"):
        good = {test: passed for test, passed in outcome.items() if _is_about(test, name)}
        assert len(good) >= 20
        assert all(good.values()), good
    report = (copy / "report.xml").read_text()
    assert "trigger=stripecolor did not change images of 1 x 32 x 32" in report
    assert "check_image_size(channels, height, width) must raise a ConfigError" in report
    for name, (_, failing) in BROKEN.items():
        about = {test: passed for test, passed in outcome.items() if _is_about(test, name)}
        assert [test for test, passed in about.items() if failing in test and not passed], name


def _copy_of_the_project(folder: Path) -> Path:
    for name in ("backdoor_lab", "conf"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "tests/contract").mkdir(parents=True)
    shutil.copy(__file__, folder / "tests/contract")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def _add(copy: Path, name: str, source: str) -> None:
    (copy / f"backdoor_lab/attacks/{name}.py").write_text(source)
    text = f"_target_: backdoor_lab.attacks.{name}.Stripe\nname: {name}\n"
    (copy / f"conf/trigger/{name}.yaml").write_text(text)


def _run_there(copy: Path) -> dict[str, bool]:
    """Run pytest in a process that sees only the copy. Returns whether each test of a stripe
    trigger passed."""
    report = copy / "report.xml"
    # -k excludes the test that calls this function.
    options = ["-k", "strip", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", "tests/contract/test_triggers.py", *options]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert report.exists(), done.stdout + done.stderr
    cases = ET.parse(report).getroot().iter("testcase")
    return {
        case.attrib["name"]: case.find("failure") is None and case.find("error") is None
        for case in cases
    }


def _is_about(test: str, name: str) -> bool:
    return name in test.partition("[")[2].rstrip("]").split("-")
