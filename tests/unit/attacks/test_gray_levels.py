"""Perturbation bounds are in gray levels: a fraction such as 8/255 is refused with a hint."""

from __future__ import annotations

import math

import pytest

from backdoor_lab.attacks.base import gray_levels
from backdoor_lab.attacks.label_consistent import LabelConsistent
from backdoor_lab.attacks.narcissus import Narcissus
from backdoor_lab.attacks.sleeper_agent import SleeperAgent
from backdoor_lab.core.errors import ConfigError


@pytest.mark.parametrize("trigger", [LabelConsistent, Narcissus, SleeperAgent])
@pytest.mark.parametrize("levels", [1, 8, 16])
def test_a_bound_given_as_a_fraction_of_255_is_refused_and_the_gray_level_is_suggested(
    trigger: type, levels: int
) -> None:
    message = rf"`trigger\.eps` is in gray levels.*if you meant {levels}/255, give {levels}$"
    with pytest.raises(ConfigError, match=message):
        trigger(eps=levels / 255)
    assert trigger(eps=levels).eps == levels


@pytest.mark.parametrize("trigger", [LabelConsistent, Narcissus, SleeperAgent])
@pytest.mark.parametrize("eps", [-1, math.nan, True, "16"])
def test_a_bound_that_is_negative_or_not_a_number_is_refused(trigger: type, eps: object) -> None:
    with pytest.raises(ConfigError, match=r"`trigger\.eps` must satisfy 0 <= trigger\.eps"):
        trigger(eps=eps)


def test_eps_zero_is_allowed_only_for_attacks_that_also_add_a_mark() -> None:
    assert LabelConsistent(eps=0).eps == 0
    for trigger in (Narcissus, SleeperAgent):
        with pytest.raises(ConfigError, match="changes no image"):
            trigger(eps=0)


def test_only_an_l2_bound_may_exceed_255_gray_levels() -> None:
    assert LabelConsistent(norm="l2", eps=300).eps == 300
    assert gray_levels("x", 300) == 300
    with pytest.raises(ConfigError, match=r"below|< 256"):
        Narcissus(eps=300)
