"""The targeted contamination attack: the mark, and which images get it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import check_can_be_late, poison
from backdoor_lab.attacks.tact import TaCT
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages


def dark(n: int, channels: int = 3, height: int = 12, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 200, (n, channels, height, width), generator=generator).byte()


@pytest.mark.parametrize("size", [1, 4, 9])
def test_the_trigger_of_tact_is_a_square_in_the_lower_right_corner(size: int) -> None:
    """Only the last `size` rows and columns take the color."""
    images = dark(3)
    expected = images.clone()
    expected[:, :, 12 - size :, 9 - size :] = torch.tensor([255, 0, 7]).byte()[:, None, None]
    assert torch.equal(TaCT(size=size, color=[255, 0, 7])(images), expected)


def test_tact_poisons_the_source_class_and_takes_covers_from_other_classes() -> None:
    """Poisoned images are source-class images labeled as the target. As many images of all other
    classes but the target are covers: they carry the trigger and keep their labels."""
    labels = torch.arange(200) % 5
    train = LabeledImages(dark(200), labels, tuple("abcde"))
    trigger, target, source = TaCT(), 1, 3
    plan = PoisonSpec(target, source, 0.5, poison_from="source", cover_rate=trigger.cover_rate)
    made = poison(train, trigger, plan, seed=0)
    assert len(made.source_index) == len(made.cover_index) == 20
    assert set(labels[made.source_index].tolist()) == {source}
    assert set(labels[made.cover_index].tolist()) == {0, 2, 4}
    assert set(made.training.labels[made.is_poison].tolist()) == {target}
    assert torch.equal(made.training.labels[made.is_cover], labels[made.cover_index])
    seen = made.training.gather(torch.arange(len(made.training)))
    marked = (seen[:, :, -4:, -4:] == 255).flatten(1).all(dim=1)
    assert torch.equal(marked, made.is_poison | made.is_cover)


def test_poison_covers_and_test_images_get_the_same_square() -> None:
    """The trigger can therefore be applied to batches, after augmentation."""
    assert TaCT().same_everywhere
    check_can_be_late(TaCT())


@pytest.mark.parametrize("size", [0, -1, 2.5, "4"])
def test_a_square_whose_side_is_not_a_positive_integer_is_refused(size: object) -> None:
    """The side is a whole number of pixels, at least 1."""
    with pytest.raises(ConfigError, match=r"trigger\.size"):
        TaCT(size=size)  # type: ignore[arg-type]


def test_a_square_larger_than_the_image_is_refused() -> None:
    """The error gives the image's size."""
    with pytest.raises(ConfigError, match="3x9 pixels"):
        TaCT(size=4)(dark(1, 3, 3, 9))
