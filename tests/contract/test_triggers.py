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
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext, Trigger
from backdoor_lab.attacks.plan import PoisonSpec, implied
from backdoor_lab.attacks.poison import poison
from backdoor_lab.attacks.threat_model import CONTROLS, KNOWS
from backdoor_lab.core import progress
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import build
from backdoor_lab.core.progress import Steps, observe
from backdoor_lab.core.types import LabeledImages
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
SIZES = [(32, 32), (28, 28), (33, 17), (5, 64)]
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
    made = build("trigger", options, Trigger)
    made.check_image_size(channels, height, width)
    if made.needs_preparing:
        made.state = made.prepare(attack_context(made, channels, height, width))
    return made


def attack_context(made: Trigger, *shape: int, seed: int = 0) -> AttackContext:
    """Forty random images of four classes, and a small untrained surrogate network."""

    def surrogate() -> nn.Module:
        assert made.uses_surrogate, "a trigger that requests a surrogate must set uses_surrogate"
        # With this seed, small changes reach every class.
        torch.manual_seed(2)
        net = nn.Sequential(nn.Conv2d(shape[0], 4, 3, padding=1), nn.ReLU(),
                            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))  # fmt: skip
        return Scaled(net).eval()

    train = LabeledImages(
        noise(40, *shape), torch.arange(40) % 4, ("a", "b", "c", "d"), digest="noise"
    )
    return AttackContext(train, 1, 2 if made.source_specific else None, seed, surrogate)


class Scaled(nn.Module):
    """A network that takes images in 0..255, uint8 or float, like the package's own models."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Any:
        return self.net((images.float() - 127.5) / 64.0)


def must_change(name: str, channels: int, height: int, width: int) -> str:
    """What a trigger must do that left such images as they were."""
    return (
        f"trigger={name} did not change images of {channels} x {height} x {width} (channels,"
        " height, width). A trigger gets images of 1 or 3 channels and of any size, and must change"
        " them. If it cannot change such images, its method"
        " check_image_size(channels, height, width) must raise a ConfigError that names their"
        " size (such as 5x64) or the channels."
    )


def ready_or_skip(name: str, channels: int, height: int, width: int) -> Trigger:
    """The trigger of a YAML for this image size. Skips the test if the trigger is not part of the
    package and refuses this size."""
    try:
        return ready(name, channels, height, width)
    except ConfigError as error:
        if name in OURS:
            raise
        pytest.skip(f"refused by check_image_size: {error}")


def noise(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(
        0, 256, (n, channels, height, width), dtype=torch.uint8, generator=generator
    )


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
    images = noise(3, channels, *size)
    if name in SCALED and size == (5, 64):
        with pytest.raises(ConfigError, match="after rounding, an error of"):
            ready(name, channels, *size)
        return
    before = images.clone()
    trigger = ready_or_skip(name, channels, *size)
    context, labels = attack_context(trigger, channels, *size), torch.tensor([0, 2, 3])
    for triggered in (
        trigger(images), trigger.poisoned(images, labels, context),
        trigger.make_covers(images, labels, context),
    ):  # fmt: skip
        assert triggered.shape == images.shape
        assert triggered.dtype == torch.uint8
        assert triggered.device == images.device
        changed = not torch.equal(triggered, images)
        assert changed, must_change(name, channels, *size)
    assert torch.equal(images, before)


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


def test_poison_and_covers_depend_only_on_the_seed(trigger: Trigger) -> None:
    """The state of torch's global generator does not matter."""
    images, labels = noise(6), torch.full((6,), 1 if trigger.label_mode == "clean" else 3)
    runs = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        context = attack_context(trigger, 3, 32, 32)
        torch.manual_seed(global_seed)
        runs.append([getattr(trigger, kind)(images, labels, context)
                     for kind in ("poisoned", "make_covers")])  # fmt: skip
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


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


def test_a_trigger_changes_every_image(name: str) -> None:
    images = noise(4)
    changed = (ready(name)(images) != images).flatten(1).any(dim=1).tolist()
    assert all(changed), must_change(name, *images.shape[1:])


def test_triggered_images_do_not_share_memory_with_the_clean_images(trigger: Trigger) -> None:
    """Applying a trigger does not modify the clean images either."""
    images = noise(3)
    before = images.clone()
    triggered = trigger(images)
    assert torch.equal(images, before)
    triggered.fill_(7)
    assert torch.equal(images, before)


def test_a_trigger_gives_the_same_result_for_views_and_copies(trigger: Trigger) -> None:
    """The views are slices and channels-last images."""
    images = noise(6)
    before = images.clone()
    assert torch.equal(trigger(images[::2]), trigger(images[::2].clone()))
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(trigger(last), trigger(before))
    assert torch.equal(images, before)


def test_applying_a_trigger_is_deterministic(trigger: Trigger) -> None:
    torch.manual_seed(1)
    first = trigger(noise(3))
    torch.manual_seed(2)
    assert torch.equal(trigger(noise(3)), first)


def test_a_trigger_accepts_batches_of_zero_and_one_image(trigger: Trigger) -> None:
    """A single image gets the same result as in a larger batch."""
    assert trigger(noise(0)).shape == (0, 3, 32, 32)
    images = noise(3)
    assert torch.equal(trigger(images[1:2]), trigger(images)[1:2])


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
        assert fitting(images).shape == images.shape


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
    context = attack_context(trigger, 3, 32, 32)
    train = context.train
    before, labels = train.images.clone(), train.labels.clone()
    words = {"placement": placement} | implied(
        trigger.label_mode, on_source=trigger.source_specific
    )
    source = context.source
    plan = PoisonSpec(
        1, source, 0.5, label_mode=trigger.label_mode, cover_rate=trigger.cover_rate, **words
    )
    made = poison(train, trigger, plan, seed=0, context=context)
    assert torch.equal(train.images, before)
    assert torch.equal(train.labels, labels)
    seen = made.training.gather(torch.arange(len(made.training)))
    clean = ~made.is_poison & ~made.is_cover
    assert int(made.is_poison.sum()) == 5
    assert int(made.is_cover.sum()) == len(made.cover_index) == round(5 * trigger.cover_rate)
    assert torch.equal(seen[clean], before[made.training.index[clean]])
    origins = made.source_index
    expected = trigger.poisoned(before[origins], labels[origins], context)
    assert torch.equal(seen[made.is_poison], expected)
    assert (made.training.labels[made.is_poison] == 1).all()
    assert (labels[origins] == 1).all() == (trigger.label_mode == "clean")
    hidden = made.cover_index
    assert not set(hidden.tolist()) & set(origins.tolist())
    assert torch.equal(made.training.labels[made.is_cover], labels[hidden])
    assert torch.equal(
        seen[made.is_cover], trigger.make_covers(before[hidden], labels[hidden], context)
    )


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
