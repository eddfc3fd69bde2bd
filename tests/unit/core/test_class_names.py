"""Class names that ``_target_`` must not have: the message says which rule they break and what to
do."""

from __future__ import annotations

import re
from typing import Any

import pytest

from backdoor_lab.attacks.base import Trigger
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.instantiate import build, why_refused
from backdoor_lab.core.targets import check_targets
from backdoor_lab.defenses.base import Defense, OracleControl

ELSEWHERE = "a class must be in a module of the folder backdoor_lab/{}, so put its file there and"
CAPITAL = "a class name starts with a capital letter and has only letters and digits, so rename"
LOWER = "a module name has only lower-case letters, digits and underscores, so rename"


@pytest.mark.parametrize(
    ("section", "name", "said"),
    [
        ("defense", "my_module.distance",
         f"{ELSEWHERE.format('defenses')} name it backdoor_lab.defenses.my_module.Distance"),
        ("defense", "my_module.Distance",
         f"{ELSEWHERE.format('defenses')} name it backdoor_lab.defenses.my_module.Distance"),
        ("defense", "backdoor_lab.defenses.mine.distance", f"{CAPITAL} distance to Distance"),
        ("defense", "backdoor_lab.defenses.mine.My_Filter", f"{CAPITAL} My_Filter to MyFilter"),
        ("defense", "backdoor_lab.defenses.mine._Filter", f"{CAPITAL} _Filter to Filter"),
        ("defense", "backdoor_lab.defenses.Mine.Filter", f"{LOWER} Mine.py to mine.py"),
        ("defense", "backdoor_lab.defenses.sub.mine.Filter",
         f"{ELSEWHERE.format('defenses')} name it backdoor_lab.defenses.mine.Filter"),
        ("defense.like", "sklearn.svm.OneClassSVM",
         f"{ELSEWHERE.format('defenses')} name it backdoor_lab.defenses.svm.OneClassSVM"),
        ("trigger", "Stripe",
         f"{ELSEWHERE.format('attacks')} name it backdoor_lab.attacks.stripe.Stripe"),
        ("trigger", "attacks.stripe.Stripe",
         f"{ELSEWHERE.format('attacks')} name it backdoor_lab.attacks.stripe.Stripe"),
        ("trigger", "backdoor_lab.attacks.aStripe.Stripe", f"{LOWER} aStripe.py to a_stripe.py"),
        ("trigger", "backdoor_lab.stripe.Stripe",
         f"{ELSEWHERE.format('attacks')} name it backdoor_lab.attacks.stripe.Stripe"),
        ("dataset", "torchvision.datasets.folder.ImageFolder",
         f"{ELSEWHERE.format('data')} name it backdoor_lab.data.folder.ImageFolder"),
    ],
)  # fmt: skip
def test_the_error_for_a_refused_class_name_states_the_rule_and_what_to_do(
    section: str, name: str, said: str
) -> None:
    top, dot, _ = name.partition(".")
    if dot and top != "backdoor_lab":
        said += f". If {top} is a plug-in whose code you trust, add allow_plugins=[{top}] to the"
        said += f" command line for an installed package, or plugins=[PATH/{top}.py] for one file"
    with pytest.raises(ConfigError, match=re.escape(f"{name!r}") + f".*: {re.escape(said)}$"):
        check_targets({"_target_": name}, where=section)
    with pytest.raises(ConfigError, match=re.escape(f"got {name!r}: {said}") + "$"):
        build(section, {"_target_": name}, object)


@pytest.mark.parametrize("name", ["os;x", "a" * 2000, "", "a..b", "b\nc", None, 3, "а.b"])
def test_no_advice_is_given_for_hostile_names(name: Any) -> None:
    assert why_refused("trigger._target_", name) == ""


def test_no_advice_is_given_for_valid_class_names_or_for_the_section_logger() -> None:
    assert why_refused("logger._target_", "my_module.logger") == ""
    assert why_refused("trigger._target_", "backdoor_lab.attacks.pixel.Pixel") == ""


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Trigger, "Trigger"), ((Defense, OracleControl), "Defense or OracleControl")],
)
def test_the_error_for_a_class_of_the_wrong_kind_names_the_required_base_class(
    kind: Any, said: str
) -> None:
    name = "backdoor_lab.data.digits.Digits"
    with pytest.raises(ConfigError, match=f"here: it must be a subclass of {said}$"):
        build("trigger", {"_target_": name}, kind)
