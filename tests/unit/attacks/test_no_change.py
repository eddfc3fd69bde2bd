"""A trigger that changes no pixel is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import changes_nothing
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages
from tests.helpers.cells import cell_of, run_here

REFUSED = r"changes no pixel of any image to be poisoned"


def transparent(folder: Path, opacity: int = 0) -> str:
    path = folder / "trigger.png"
    Image.new("RGBA", (4, 4), (255, 0, 0, opacity)).save(path)
    return str(path)


def white(count: int = 200) -> LabeledImages:
    images = torch.full((count, 3, 4, 4), 255, dtype=torch.uint8)
    return LabeledImages(images, torch.arange(count) % 2, ("a", "b"), "")


@pytest.mark.parametrize("trigger", ["patch", "blended"])
@pytest.mark.parametrize("more", [(), ("protocol.apply_trigger=after_augmentation",), ("ratio=0",)])
def test_a_fully_transparent_image_is_refused_before_any_work(
    tmp_path: Path, trigger: str, more: tuple[str, ...]
) -> None:
    image = f"trigger.image={transparent(tmp_path)}"
    with pytest.raises(ConfigError, match=rf"`trigger={trigger}` {REFUSED}"):
        cell_of(tmp_path / "store", f"trigger={trigger}", image, *more)


def test_a_barely_visible_trigger_image_is_accepted(tmp_path: Path) -> None:
    assert cell_of(
        tmp_path / "store", "trigger=patch", f"trigger.image={transparent(tmp_path, 30)}"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ("trigger=blended", "trigger.strength_train=1e-9", "trigger.strength_test=0.2"),
        ("trigger=patch", "trigger.strength=1e-9"),
    ],
)
def test_a_strength_too_small_to_change_a_pixel_is_refused(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match=REFUSED):
        cell_of(tmp_path / "store", *overrides)


@pytest.mark.parametrize("ratio", [0.5, 0.0])
def test_painting_a_color_that_all_images_already_have_counts_as_no_change(ratio: float) -> None:
    trigger, plan = Pixel(color=255), PoisonSpec(0, None, ratio)
    assert changes_nothing(white(), trigger, plan, seed=0)
    assert not changes_nothing(white(), Pixel(color=254), plan, seed=0)


@pytest.mark.parametrize("class_", [0, 1])
def test_changes_to_images_that_cannot_be_poisoned_are_ignored(class_: int) -> None:
    """Images of the target class are never poisoned, so a change there does not count."""
    train = white()
    train.images[train.labels == class_] = 7
    found = changes_nothing(train, Pixel(color=255), PoisonSpec(0, None, 0.99), seed=0)
    assert found == (class_ == 0)


def test_a_prepared_trigger_that_changes_nothing_fails_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether such a trigger changes a pixel is known only after its preparation."""
    monkeypatch.setattr(Pixel, "needs_preparing", True)
    monkeypatch.setattr(Pixel, "prepare", lambda self, context: {"nothing": torch.zeros(1)})
    monkeypatch.setattr(Pixel, "apply_test", lambda self, images: images)
    record = run_here(tmp_path / "store", tmp_path / "cell")
    assert record["status"].startswith("failed")
    assert "changes no pixel" in record["error"]
    assert not list((tmp_path / "store").glob("train/*"))
