"""Value checks with one form of message, and names and paths that must not leave their root."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from backdoor_lab.config_loader import check_composed
from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.options import names
from backdoor_lab.core.rng import derive
from backdoor_lab.core.validation import RENAMED
from backdoor_lab.plugins.trust import Trust

ROOT = Path(__file__).resolve().parents[3]
NAN = float("nan")


@pytest.mark.parametrize(
    "value", [NAN, math.inf, -math.inf, True, "10%", "0.5", None, -0.1, 1, [0]]
)
def test_an_invalid_number_is_refused_with_the_valid_range(value: Any) -> None:
    """NaN, infinity, values out of range, and anything but a number are refused. A bool is not a
    number."""
    with pytest.raises(ConfigError) as caught:
        validation.number("ratio", value, low=0, below=1)
    hint = ": for 10 %, write 0.1" if value == "10%" else ""
    assert str(caught.value) == f"`ratio` must satisfy 0 <= ratio < 1, got {value!r}{hint}"


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf, 10**400, False])
def test_a_number_without_bounds_must_be_finite(value: Any) -> None:
    """It must also fit into a float."""
    with pytest.raises(ConfigError, match="`x` must be a finite number, got"):
        validation.number("x", value)
    with pytest.raises(ConfigError, match="`x` must satisfy 0 <= x, got"):
        validation.number("x", value, low=0)
    with pytest.raises(ConfigError, match="`x` must satisfy x < 5, got"):
        validation.number("x", value, below=5)


@given(st.floats(allow_nan=True))
def test_exactly_the_numbers_within_the_bounds_are_accepted(value: float) -> None:
    """With bounds 0 and 1, a float is accepted if and only if 0 <= value < 1."""
    try:
        assert validation.number("x", value, low=0, below=1) == value
        assert 0 <= value < 1
    except ConfigError:
        assert not 0 <= value < 1


def test_a_whole_number_may_be_given_as_a_float_without_a_fraction() -> None:
    """Large seeds stay exact."""
    assert validation.whole("n", 3.0) == 3
    assert isinstance(validation.whole("n", 3.0), int)
    assert validation.whole("seed", 2**63 - 1, below=2**63) == 2**63 - 1
    with pytest.raises(ConfigError, match=r"`n` must be a whole number, got 3\.5"):
        validation.whole("n", 3.5)
    for bad in (NAN, math.inf, True, "3", -1):
        with pytest.raises(ConfigError, match="`n` must satisfy 0 <= n, got"):
            validation.whole("n", bad)


def test_unknown_words_are_refused_and_the_nearest_one_is_suggested() -> None:
    assert validation.choice("protocol.placement", "append", ["append", "replace"]) == "append"
    with pytest.raises(
        ConfigError, match=r"`protocol.placement` 'apend' is not known\. Did you mean"
    ):
        validation.choice("protocol.placement", "apend", ["append", "replace"])
    assert validation.flag("center", False) is False
    for bad in (0, 1, "true", None):
        with pytest.raises(ConfigError, match="`center` must be true or false, got"):
            validation.flag("center", bad)
    validation.keys("trigger", ["color"], ["color", "position"])
    with pytest.raises(ConfigError, match=r"key.*`trigger.*'colour' is not known.*'color'"):
        validation.keys("trigger", ["colour"], ["color", "position"])


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "...", "../x", "a/b", "/etc", "a\\b", "a b", "A", "é", "a\n", "\n", "a\0",
     "a" * 65, "$(id)", "a;b", "`id`", "~", "a|b", "%2e%2e", "ａ", "а", "\u202e", None, 3, b"a",
     ["a"], Path("a")],
    ids=ascii,
)  # fmt: skip
def test_unsafe_names_are_refused(name: Any) -> None:
    """Unsafe names have path separators, shell syntax or look-alike letters, consist of dots, or
    are longer than 64 characters."""
    with pytest.raises(ConfigError, match=r"`stage` must match"):
        validation.safe_name("stage", name)


@pytest.mark.parametrize("name", ["a", "0", "resnet18-w16", "a.b_c-d", ".hidden", "a" * 64])
def test_safe_names_are_accepted(name: str) -> None:
    """Safe names have lower-case letters, digits, dot, dash and underscore, up to 64 characters."""
    assert validation.safe_name("stage", name) == name


def test_a_path_that_leaves_its_root_is_refused(tmp_path: Path) -> None:
    """A path may leave the root by dots, as an absolute path, or through a link."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "rooted").mkdir()
    assert validation.inside(root, root / "a/../b") == root.resolve() / "b"
    assert validation.inside(root, root) == root.resolve()
    for path in ("../x", "a/../../x", "/etc/passwd", "link/x", "../rooted"):
        with pytest.raises(ConfigError, match="is outside the folder"):
            validation.inside(root, root / path)


def test_derived_seeds_do_not_depend_on_the_process() -> None:
    """A seed is the same under any PYTHONHASHSEED and differs between purposes."""
    code = "from backdoor_lab.core.rng import derive; print(derive(3, 'order', 7))"
    told = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
        ).stdout.strip()
        for seed in ("1", "2")
    ]  # fmt: skip
    assert told == [str(derive(3, "order", 7))] * 2
    others = {derive(3, "order", 7), derive(3, "order", 8), derive(4, "order", 7), derive(3)}
    assert len(others) == 4
    assert all(0 <= seed < 2**63 for seed in others)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 2**60])
def test_finite_numbers_of_at_least_0_are_accepted_and_returned_as_floats(value: float) -> None:
    assert validation.non_negative(value) == value
    assert isinstance(validation.non_negative(value), float)


@pytest.mark.parametrize(
    "value", [-1, -0.5, float("nan"), float("inf"), 10**400, True, False, "1", None, [1], {}]
)
def test_non_negative_returns_none_unless_the_value_is_a_finite_number_of_at_least_0(
    value: object,
) -> None:
    assert validation.non_negative(value) is None


def test_an_untrusted_number_above_the_upper_bound_is_replaced_by_none() -> None:
    assert validation.non_negative(1.0, high=1) == 1.0
    assert validation.non_negative(1.5, high=1) is None


@pytest.mark.parametrize(
    ("section", "old"), [(section, old) for section in RENAMED for old in RENAMED[section]]
)
def test_every_renamed_key_is_in_the_configuration_and_in_the_changelog(
    section: str, old: str
) -> None:
    new = validation.new_name(section, old)
    group = section.partition(".")[0]
    files = [ROOT / "conf/config.yaml", *(ROOT / "conf" / group).glob("*.yaml")]
    assert any(re.search(rf"\b{new}:", path.read_text()) for path in files)
    name = f"`{section}`" if section else "top level"
    assert f"| {name} | `{old}` | `{new}` |" in (ROOT / "CHANGELOG.md").read_text()


def test_a_renamed_key_is_refused_with_a_hint_to_the_new_key() -> None:
    for where, old, prefix in (("protocol", "inject", "protocol."), ("", "labels", ""),
                               ("trigger=blended", "alpha", "trigger.")):  # fmt: skip
        new = validation.new_name(where.partition("=")[0], old)
        with pytest.raises(ConfigError, match=f"^`{prefix}{old}` was renamed to `{prefix}{new}`$"):
            validation.keys(where, [old], [str(new), "other"])
        with pytest.raises(ConfigError, match="is not known"):
            validation.keys(where, [old], ["other"])


def test_a_renamed_key_of_a_composed_section_is_refused_even_if_the_new_key_is_missing() -> None:
    with pytest.raises(
        ConfigError, match="^`protocol.inject` was renamed to `protocol.placement`$"
    ):
        validation.refuse_renamed("protocol", ["name", "inject"])
    validation.refuse_renamed("protocol", ["name", "placement"])
    # A user's own protocol after composition. The defense refers to a key that it lacks.
    config = {"protocol": {"stamp": "after"}, "defense": {"center": "${protocol.center}"}}
    with pytest.raises(
        ConfigError, match="^`protocol.stamp` was renamed to `protocol.apply_trigger`$"
    ):
        check_composed(OmegaConf.create(config), Trust())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("protocol.inject", "protocol.placement"),
        ("protocol.labels", "protocol.label_mode"),
        ("covers", "protocol.cover_rate"),
        ("config.protocol.stamp", "config.protocol.apply_trigger"),
        ("config.defense.like.classes", "config.defense.like.filter_scope"),
        ("config.trigger.patches[1].at", "config.trigger.patches[1].position"),
    ],
)
def test_a_column_with_the_old_name_of_a_key_is_refused_and_the_error_gives_the_new_name(
    old: str, new: str
) -> None:
    assert validation.new_column(new) is None
    with pytest.raises(
        ConfigError, match=rf"^`rows`: `{re.escape(old)}` was renamed to `{re.escape(new)}`$"
    ):
        names("rows", f"target,{old}", ["target"], [new])
    with pytest.raises(
        ConfigError, match=rf"was renamed to `{re.escape(new)}`\. `rows`: .* is not known"
    ):
        names("rows", old, ["target"])
