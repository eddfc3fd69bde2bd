"""Recipes: every learning rate schedule against its closed form."""

from __future__ import annotations

import math
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.run import conf_dir
from backdoor_lab.sweep.compose import plain
from backdoor_lab.training.recipe import Recipe, optimizer_of
from tests.helpers.cells import recipe

BASE = {"name": "r", "epochs": 4, "batch_size": 8, "lr": 0.1}


def rates(total: int, **changes: Any) -> list[float]:
    """The learning rates of `total` steps."""
    sgd, schedule = optimizer_of(Recipe.of(BASE | changes), nn.Linear(2, 2), total)
    found = []
    for _ in range(total):
        found.append(float(sgd.param_groups[0]["lr"]))
        sgd.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("meta", None)])
def test_sgd_is_fused_on_a_cpu(device: str, fused: bool | None) -> None:
    """On other devices `fused` is None, and torch chooses the implementation."""
    sgd, _ = optimizer_of(Recipe.of(BASE), nn.Linear(2, 2, device=device), 4)
    assert sgd.defaults["fused"] is fused


@pytest.mark.parametrize("total", [4, 40, 400])
def test_step_milestones_scale_with_the_number_of_steps(total: int) -> None:
    found = rates(total, schedule="steps", milestones=[0.5, 0.75], gamma=0.1)
    assert found[: total // 2] == [0.1] * (total // 2)
    assert found[total // 2 : 3 * total // 4] == pytest.approx([0.01] * (total // 4))
    assert found[3 * total // 4 :] == pytest.approx([0.001] * (total // 4))


@pytest.mark.parametrize("total", [2, 10, 100])
def test_the_cosine_schedule_has_the_length_of_the_training(total: int) -> None:
    expected = [0.05 * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert rates(total, schedule="cosine") == pytest.approx(expected)


@pytest.mark.parametrize("total", [10, 50, 200])
def test_the_one_cycle_schedule_rises_and_falls_within_the_training(total: int) -> None:
    found = rates(total, schedule="onecycle", warmup=0.2)
    top = 0.2 * (total + 1) - 1

    def curve(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * share))

    expected = [
        curve(0.004, 0.1, step / top) if step <= top
        else curve(0.1, 4e-7, (step - top) / (total - top))
        for step in range(total)
    ]  # fmt: skip
    assert found == pytest.approx(expected)
    assert found[0] == pytest.approx(0.1 / 25)
    assert max(found) == pytest.approx(0.1, rel=0.05)
    # The curve ends neither early nor late: at any length the last rate is small but not 0.
    assert 0 < found[-1] < 0.1 * 20 / total


@pytest.mark.parametrize("total", [1, 3, 10, 490])
def test_the_triangle_schedule_consists_of_two_straight_lines(total: int) -> None:
    found = rates(total, schedule="triangle", warmup=0.23, lr_start=0.2, lr_end=0.07)
    peak = int(0.23 * total)
    expected = [
        0.1 * (0.2 + 0.8 * step / peak) if step < peak
        else 0.1 * (1 - 0.93 * (step - peak) / (total - peak))
        for step in range(total)
    ]  # fmt: skip
    assert found == pytest.approx(expected)
    assert max(found) == found[peak] == pytest.approx(0.1)


@pytest.mark.parametrize("total", [1, 3, 10, 490])
def test_the_warmup_cosine_schedule_is_a_straight_line_and_half_a_cosine(total: int) -> None:
    found = rates(total, schedule="warmup_cosine", warmup=0.1, lr_start=0.01, lr_end=0.02)
    peak = int(0.1 * total)
    expected = [
        0.1 * (0.01 + 0.99 * step / peak) if step < peak
        else 0.1 * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - peak) / (total - peak))))
        for step in range(total)
    ]  # fmt: skip
    assert found == pytest.approx(expected)
    assert max(found) == found[peak] == pytest.approx(0.1)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize(
    "schedule", ["steps", "onecycle", "cosine", "triangle", "warmup_cosine", "constant"]
)
def test_batch_norm_biases_have_a_separate_learning_rate_under_every_schedule(
    schedule: str,
) -> None:
    asked = recipe(schedule=schedule, warmup=0.3, bias_lr=64, weight_decay=1e-3)
    net = with_norm()
    sgd, steps = optimizer_of(asked, net, 10)
    for _ in range(10):
        others, shifts = sgd.param_groups
        assert shifts["lr"] == pytest.approx(64 * others["lr"])
        # Weights and biases decay by the same fraction per step.
        taken = [group["lr"] * group["weight_decay"] for group in (others, shifts)]
        assert taken[0] == pytest.approx(taken[1])
        sgd.step()
        steps.step()
    assert [each.shape for each in shifts["params"]] == [(2,)]
    assert shifts["params"][0] is net.get_parameter("1.bias")
    assert len(others["params"]) == 5


def test_frozen_weights_are_not_trained() -> None:
    net = with_norm()
    net.get_parameter("0.weight").requires_grad_(False)
    net.get_parameter("1.bias").requires_grad_(False)
    for factor in (1, 64):
        sgd, _ = optimizer_of(recipe(bias_lr=factor), net, 10)
        assert [len(group["params"]) for group in sgd.param_groups] == [4]


def test_the_airbench_recipe_has_the_hyperparameters_of_its_authors() -> None:
    """In the authors' legacy/airbench94.py the learning rate is 11.5 and the weight decay 0.0153,
    both per 1024 images and decoupled from the momentum."""
    found = Recipe.of(plain(OmegaConf.load(f"{conf_dir()}/recipe/airbench.yaml")))
    gradients = 1 + 1 / (1 - found.momentum)
    # The authors sum the loss over the batch; here it is averaged.
    assert found.lr / found.batch_size * 1024 * gradients == pytest.approx(11.5)
    decay = found.lr * found.weight_decay
    assert decay == pytest.approx(0.0153 * found.batch_size / 1024 / gradients, rel=1e-3)
    assert (found.momentum, found.nesterov, found.label_smoothing) == (0.85, True, 0.2)
    assert (found.epochs, found.crop_padding) == (10, 2)
    assert (found.flip, found.bias_lr) == ("alternating", 64)


def test_a_constant_schedule_keeps_the_learning_rate() -> None:
    assert rates(7, schedule="constant") == [0.1] * 7


def test_the_optimizer_has_the_hyperparameters_of_the_recipe() -> None:
    asked = recipe(momentum=0.8, nesterov=True, weight_decay=3e-4, lr=0.2)
    group = optimizer_of(asked, nn.Linear(2, 2), 10)[0].param_groups[0]
    found = [group[key] for key in ("lr", "momentum", "nesterov", "weight_decay")]
    assert found == [0.2, 0.8, True, 3e-4]


def test_every_recipe_key_but_the_name_changes_the_identity() -> None:
    assert recipe(name="a").decides() == recipe(name="b").decides()
    changes: list[dict[str, Any]] = [
        {"epochs": 3}, {"batch_size": 9}, {"lr": 0.06}, {"momentum": 0.5}, {"nesterov": True},
        {"weight_decay": 1e-3}, {"schedule": "cosine"}, {"milestones": [0.4]}, {"gamma": 0.2},
        {"warmup": 0.3}, {"label_smoothing": 0.1}, {"crop_padding": 1}, {"flip": True},
        {"cutout": 2}, {"mixup": 0.2}, {"cutmix": 1.0}, {"flip": "alternating"}, {"lr_start": 0.1},
        {"lr_end": 0.1}, {"bias_lr": 64}, {"clip_norm": 1}, {"momentum": 0},
        {"optimizer": "adamw"}, {"optimizer": "adamw", "layer_decay": 0.5},
    ]  # fmt: skip
    seen = [recipe().decides(), *(recipe(**change).decides() for change in changes)]
    assert all(a != b for i, a in enumerate(seen) for b in seen[:i])
    assert {key for change in changes for key in change} == {key for each in seen for key in each}


def test_a_recipe_without_mixup_and_cutmix_keeps_its_identity() -> None:
    """Networks trained before mixup and cutmix existed are therefore not trained again."""
    assert {"mixup", "cutmix"}.isdisjoint(recipe(mixup=0, cutmix=0.0).decides())
    assert recipe(mixup=0.2).decides() == recipe().decides() | {"mixup": 0.2}


def test_newer_keys_at_their_default_do_not_change_the_identity() -> None:
    """Networks trained before these keys existed are therefore not trained again."""
    newer = {"mixup": 0.0, "cutmix": 0, "lr_start": 0.2, "lr_end": 0.0, "bias_lr": 1,
             "optimizer": "sgd", "layer_decay": 1, "clip_norm": 0}  # fmt: skip
    assert recipe(**newer).decides() == recipe().decides()
    assert newer.keys().isdisjoint(recipe().decides())
    assert recipe(bias_lr=2).decides() == recipe().decides() | {"bias_lr": 2.0}


def test_integers_and_floats_of_equal_value_give_the_same_identity() -> None:
    # The command line may give 1 or 1.0, 2 or 2.0.
    first, second = recipe(lr=1, epochs=2, batch_size=8), recipe(lr=1.0, epochs=2.0, batch_size=8.0)
    assert str(first.decides()) == str(second.decides())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epoch": 3}, "key .*`recipe.*'epoch' is not known. Did you mean 'epochs'"),
        ({"epochs": 0}, "`recipe.epochs` must satisfy 1 <= recipe.epochs, got 0"),
        ({"epochs": 1.5}, "`recipe.epochs` must be a whole number, got 1.5"),
        ({"epochs": "many"}, "`recipe.epochs` must satisfy .* got 'many'"),
        ({"epochs": True}, "`recipe.epochs` must satisfy .* got True"),
        ({"batch_size": 1}, "`recipe.batch_size` must satisfy 2 <= recipe.batch_size, got 1"),
        ({"lr": -0.1}, "`recipe.lr` must satisfy 0 <= recipe.lr, got -0.1"),
        ({"lr": math.nan}, "`recipe.lr` must satisfy 0 <= recipe.lr, got nan"),
        ({"lr": None}, "`recipe.lr` must satisfy 0 <= recipe.lr, got None"),
        ({"momentum": 1}, "`recipe.momentum` must satisfy 0 <= recipe.momentum < 1, got 1"),
        ({"schedule": "cosin"}, "`recipe.schedule` 'cosin' .*Did you mean 'cosine'.*onecycle"),
        ({"milestones": [0.5, 1.5]}, "`recipe.milestones` must satisfy .* got 1.5"),
        ({"milestones": 0.5}, "`recipe.milestones` must be a list"),
        ({"label_smoothing": 1}, "`recipe.label_smoothing` must satisfy .* got 1"),
        (
            {"crop_padding": -1},
            "`recipe.crop_padding` must satisfy 0 <= recipe.crop_padding < 257, got -1",
        ),
        ({"flip": "yes"}, "`recipe.flip` must be true, false or alternating, got 'yes'"),
        ({"flip": 1}, "`recipe.flip` must be true, false or alternating, got 1"),
        ({"lr_start": -1}, "`recipe.lr_start` must satisfy 0 <= recipe.lr_start, got -1"),
        ({"lr_end": math.nan}, "`recipe.lr_end` must satisfy 0 <= recipe.lr_end, got nan"),
        ({"bias_lr": 0}, "`recipe.bias_lr` must satisfy .* got 0"),
        ({"nesterov": True, "momentum": 0}, "`recipe.nesterov=true` needs a `recipe.momentum`"),
        ({"optimizer": "adam"}, "`recipe.optimizer` 'adam' .*Did you mean 'adamw'.*sgd"),
        ({"clip_norm": -1}, "`recipe.clip_norm` must satisfy 0 <= recipe.clip_norm, got -1"),
        ({"layer_decay": 0}, "`recipe.layer_decay` must satisfy 0 < recipe.layer_decay <= 1"),
        ({"layer_decay": 1.5}, "`recipe.layer_decay` must satisfy .* <= 1, got 1.5"),
        ({"layer_decay": math.nan}, "`recipe.layer_decay` must be a finite number, got nan"),
        ({"layer_decay": 0.5}, "`recipe.layer_decay`=0.5 needs recipe.optimizer=adamw"),
        (
            {"optimizer": "adamw", "momentum": 0.9},
            "`recipe.optimizer=adamw` has no momentum: set recipe.momentum=0",
        ),
        ({"optimizer": "adamw", "nesterov": True}, "`recipe.optimizer=adamw` has no momentum"),
        ({"optimizer": "adamw", "bias_lr": 64}, "`recipe.bias_lr`=64 needs recipe.optimizer=sgd"),
        ({"schedule": "onecycle"}, "`recipe.schedule=onecycle` needs a `recipe.warmup`"),
    ],
)
def test_the_error_for_a_bad_recipe_states_the_violated_rule(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.of(BASE | change)


def test_the_error_for_an_incomplete_recipe_names_the_missing_key() -> None:
    with pytest.raises(ConfigError, match=r"`recipe` needs .*lr"):
        Recipe.of({"name": "r", "epochs": 1, "batch_size": 8})
