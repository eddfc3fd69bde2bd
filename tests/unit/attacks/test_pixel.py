"""Single-pixel triggers and their margin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.attacks.pattern import Pattern
from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError
from tests.helpers.cells import cell_of


def lit(trigger: Trigger, size: int = 8) -> list[list[int]]:
    """Rows and columns that the trigger sets on a black image."""
    return trigger(torch.zeros(1, 3, size, size, dtype=torch.uint8))[0, 0].nonzero().tolist()


def test_a_margin_moves_the_trigger_inward_from_the_edges_of_the_image() -> None:
    assert lit(Pixel(margin=1)) == [[6, 6]]
    assert lit(Pixel(position=(0, -1), margin=2)) == [[2, 5]]
    assert lit(Pattern(margin=1)) == [[4, 6], [5, 5], [6, 4], [6, 6]]


@pytest.mark.parametrize("margin", [-1, 0.5, True, "1", 8])
def test_a_margin_that_is_negative_fractional_or_too_large_is_refused(margin: object) -> None:
    with pytest.raises(ConfigError, match="trigger"):
        lit(Pixel(margin=margin))  # type: ignore[arg-type]


def test_without_a_margin_the_cell_id_is_the_same_as_before_margins_existed(tmp_path: Path) -> None:
    assert "margin" not in cell_of(tmp_path).decides()["trigger"]
    moved = cell_of(tmp_path, "trigger.margin=1")
    assert moved.decides()["trigger"]["margin"] == 1
    assert moved.id != cell_of(tmp_path).id
