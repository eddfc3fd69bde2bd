"""The targeted contamination attack: the square, and which images get it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from backdoor_lab.attacks.plan import PoisonSpec
from backdoor_lab.attacks.poison import check_can_be_late, classes_after, poison
from backdoor_lab.attacks.tact import TaCT
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages
from tests.helpers.cells import cell_of


def dark(n: int, channels: int = 3, height: int = 12, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 200, (n, channels, height, width), generator=generator).byte()


@pytest.mark.parametrize(
    ("shape", "side", "away"),
    [((32, 32), 8, 3), ((28, 28), 7, 3), ((16, 16), 4, 2), ((8, 8), 2, 1), ((40, 64), 10, 4)],
    ids=str,
)
def test_size_and_margin_of_the_tact_trigger_are_scaled_to_the_image(
    shape: tuple[int, int], side: int, away: int
) -> None:
    """The default square has 8x8 pixels, 3 pixels from the edges, on images of 32x32 pixels."""
    images = dark(3, 3, *shape)
    expected = images.clone()
    rows, columns = (slice(each - away - side, each - away) for each in shape)
    expected[:, :, rows, columns] = torch.tensor([255, 0, 7]).byte()[:, None, None]
    assert torch.equal(TaCT(color=[255, 0, 7])(images), expected)


@pytest.mark.parametrize("side", [6, 10, 14])
def test_a_square_is_refused_if_rounding_changes_its_area_by_more_than_a_quarter(side: int) -> None:
    with pytest.raises(ConfigError, match=rf"`trigger.size` .*{side}x{side} .*at most 25%"):
        TaCT()(dark(1, 3, side, side))


@pytest.mark.parametrize("side", [9, 11, 13, 15])
def test_a_square_is_accepted_if_rounding_changes_its_area_by_at_most_a_quarter(side: int) -> None:
    images = dark(1, 1, side, side)
    changed = (TaCT()(images) != images).sum()
    assert 0.75 <= changed / (side / 4) ** 2 <= 1.25


def test_the_tact_trigger_poisons_the_source_class_and_takes_covers_from_the_next_two() -> None:
    """Poisoned images come from the source class and get the target label. There are as many covers
    as poisoned images; covers carry the trigger and keep their labels."""
    labels = torch.arange(200) % 5
    train = LabeledImages(dark(200, 3, 8, 8), labels, tuple("abcde"))
    trigger, target, source = TaCT(), 1, 3
    plan = PoisonSpec(target, source, 0.5, poison_from="source", cover_rate=trigger.cover_rate,
                      cover_from=trigger.cover_from(target, source, 5))  # fmt: skip
    made = poison(train, trigger, plan, seed=0)
    assert len(made.source_index) == len(made.cover_index) == 20
    assert set(labels[made.source_index].tolist()) == {source}
    assert set(labels[made.cover_index].tolist()) == {4, 0}
    assert set(made.training.labels[made.is_poison].tolist()) == {target}
    assert torch.equal(made.training.labels[made.is_cover], labels[made.cover_index])
    seen = made.training.gather(torch.arange(len(made.training)))
    marked = (seen[:, :, 5:7, 5:7] == 255).flatten(1).all(dim=1)
    assert torch.equal(marked, made.is_poison | made.is_cover)
    after = torch.bincount(made.training.labels).tolist()
    assert classes_after(labels, plan, classes=5, seed=0) == after


@pytest.mark.parametrize(
    ("wanted", "target", "source", "expected"),
    [(2, 0, 1, (2, 3)), (2, 1, 0, (2, 3)), (1, 4, 3, (0,)), (3, 2, 1, (3, 4, 0)), (None, 0, 1, ())],
)
def test_cover_images_come_from_the_classes_after_the_source_class_except_the_target(
    wanted: int | None, target: int, source: int, expected: tuple[int, ...]
) -> None:
    """An empty tuple stands for all classes but source and target."""
    assert TaCT(cover_classes=wanted).cover_from(target, source, 5) == expected


def test_the_tact_trigger_takes_covers_from_the_only_remaining_class_of_three() -> None:
    assert TaCT().cover_from(0, 1, 3) == (2,)


@pytest.mark.parametrize(("wanted", "classes", "most"), [(50, 10, 8), (9, 10, 8), (3, 3, 1)])
def test_more_cover_classes_than_the_data_set_has_are_refused(
    wanted: int, classes: int, most: int
) -> None:
    with pytest.raises(ConfigError, match=rf"`trigger.cover_classes` must be at most {most},"):
        TaCT(cover_classes=wanted).cover_from(0, 1, classes)
    assert len(TaCT(cover_classes=most).cover_from(0, 1, classes)) == most


def test_a_cell_with_the_tact_trigger_takes_covers_from_the_next_two_classes(
    tmp_path: Path,
) -> None:
    """`trigger.cover_classes=null` draws covers from all classes but source and target."""
    two = cell_of(tmp_path, "trigger=tact", "target=9", "source=7")
    assert two.plan.cover_from == (8, 0)
    every = cell_of(tmp_path, "trigger=tact", "target=9", "source=7", "trigger.cover_classes=null")
    assert every.plan.cover_from == ()
    assert every.attack["plan"] == two.attack["plan"]
    assert every.attack["trigger"] != two.attack["trigger"]


def test_poison_cover_and_test_images_get_the_same_square() -> None:
    """The trigger can therefore be applied to batches, after augmentation."""
    assert TaCT().same_everywhere
    check_can_be_late(TaCT())


@pytest.mark.parametrize("size", [0, -1, 2.5, "4", 33])
def test_a_square_whose_side_is_not_an_integer_from_1_to_32_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match=r"trigger\.size"):
        TaCT(size=size)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"), [("margin", -1), ("margin", 25), ("cover_classes", 0), ("color", 256)]
)
def test_out_of_range_options_of_the_tact_trigger_are_refused(key: str, value: int) -> None:
    """The default size, 8, and a margin of 25 together exceed 32 pixels."""
    with pytest.raises(ConfigError, match=rf"trigger\.{key}"):
        TaCT(**{key: value})  # type: ignore[arg-type]
