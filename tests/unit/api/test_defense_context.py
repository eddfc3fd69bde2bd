"""Recipes and freshly initialized copies for methods that train models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.api.context import Inputs, context_of, fresh_copy, recipe_of, reinitialize
from backdoor_lab.core import streams
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.rng import derive
from tests.helpers.user_models import user_images, user_model


def parameters(model: nn.Module) -> list[Tensor]:
    return [each.detach().clone() for each in model.parameters()]


def test_fresh_copies_depend_on_the_seed_alone() -> None:
    model = user_model()
    with torch.no_grad():
        for each in model.parameters():
            each.fill_(7)
        model.stem[1].running_mean.fill_(7)
    torch.manual_seed(1)
    first = parameters(fresh_copy(model, None, 5))
    torch.manual_seed(2)
    again = fresh_copy(model, None, 5)
    assert all(map(torch.equal, first, parameters(again)))
    assert not any(torch.equal(each, torch.full_like(each, 7)) for each in first)
    assert not all(map(torch.equal, first, parameters(fresh_copy(model, None, 6))))
    assert not bool(again.model.stem[1].running_mean.any())  # type: ignore[union-attr,index,operator]
    assert not any(each.training for each in again.modules())
    assert all(bool((each == 7).all()) for each in model.parameters())


def test_a_module_is_reset_after_the_modules_that_it_contains() -> None:
    class Zero(nn.Sequential):
        def reset_parameters(self) -> None:
            for each in self.parameters():
                nn.init.zeros_(each)

    model = nn.Sequential(nn.Linear(2, 2), Zero(nn.Linear(2, 2)))
    reinitialize(model)
    assert bool(model[0].weight.any())
    assert not bool(model[1][0].weight.any())  # type: ignore[index]


def test_attention_is_reset() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    with torch.no_grad():
        for each in layer.parameters():
            each.fill_(7)
    reinitialize(layer)
    assert not any(bool((each == 7).all()) for each in layer.parameters())


def test_a_module_without_reset_parameters_is_named() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(3))

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(Token()))
    with pytest.raises(ValueError, match=r"its module 1\.0 \(Token\) has parameters, but no"):
        reinitialize(model)


def test_a_recipe_is_a_name_or_changes_of_the_report_s() -> None:
    report = recipe_of(None)
    assert (report.epochs, report.batch_size, report.lr, report.weight_decay) == (
        100, 128, 0.1, 2e-4,
    )  # fmt: skip
    assert recipe_of("report") == report
    assert recipe_of({"epochs": 3, "flip": False}).epochs == 3
    assert recipe_of({"epochs": 3}).lr == 0.1
    derived = recipe_of("demo_crop_flip")
    assert (derived.crop_padding, derived.flip) == (2, True)
    assert derived.weight_decay == recipe_of("demo").weight_decay


@pytest.mark.parametrize("choice", ["demos", {"epochs": -1}, {"epocs": 1}])
def test_an_invalid_recipe_is_refused(choice: Any) -> None:
    with pytest.raises(ConfigError):
        recipe_of(choice)


def test_the_context_augments_only_with_a_generator() -> None:
    images, labels = user_images(12)
    recipe = {"crop_padding": 2, "flip": True}
    given = context_of(Inputs(user_model(), None, recipe, images, labels), seed=4)
    where = torch.tensor([3, 1])
    assert torch.equal(given.images(where, None), images[where])
    drawn = [given.images(where, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], images[where])
    again = given.augment(images[where], torch.Generator().manual_seed(0))
    assert torch.equal(again, drawn[0])
    assert given.seed == derive(4, streams.FILTER)
    assert given.hyperparameters.batch_size == 128
    assert given.classes == ("0", "1", "2")


def test_the_context_hands_out_trainable_copies() -> None:
    model = user_model().requires_grad_(False)
    given = context_of(Inputs(model, None, None, *user_images(12)), seed=4)
    first, second = given.network(), given.network()
    assert first is not second
    assert all(each.requires_grad for each in first.parameters())
    assert not any(each.requires_grad for each in model.parameters())
    images = user_images(5)[0]
    expected = model.eval()(images.float() / 255)
    assert torch.equal(first(images), expected)
    assert torch.equal(first(images.float()), expected)
