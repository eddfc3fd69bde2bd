"""`get_repair`: new models of the user's own type, and the inputs of a repair."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from torch import nn

import backdoor_lab as bl
from tests.helpers.user_models import UserModel, snapshot, user_images, user_model

REPAIRS = bl.list_methods("repairs")
BRIEF = {
    "steps": 2, "batches_per_step": 2, "epochs": 1, "training_epochs": 1, "unlearning_epochs": 1,
    "first_epochs": 1, "tuning_epochs": 1,
}  # fmt: skip
# So that channels are pruned and classes are suspicious after two steps.
TUNED: dict[str, dict[str, float]] = {
    "anp": {"lr": 20, "threshold": 0.5, "batch_size": 6},
    "neural_cleanse": {"threshold": 0},
    "neural_cleanse_authors": {"threshold": 0},
}
RECIPE = {"epochs": 2, "batch_size": 16, "crop_padding": 1}


def brief(name: str, **options: Any) -> Any:
    known = bl.get_repair(name).get_params()
    given: dict[str, Any] = {key: value for key, value in BRIEF.items() if key in known}
    return bl.get_repair(name, **given | TUNED.get(name, {}) | options)


def repaired(name: str, model: nn.Module, **options: Any) -> Any:
    return brief(name, **options).fit(
        model, *user_images(), clean=user_images(24, 2), recipe=RECIPE
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


@pytest.fixture(params=REPAIRS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_repair_returns_a_new_model_of_the_user_s_type(name: str) -> None:
    """The model that was passed is not changed, nor is the global random state."""
    model = user_model()
    model.stem.eval()
    model.stem[0].bias.requires_grad_(False)
    seen: list[object] = []
    model.fc.register_forward_hook(lambda *_: seen.append(None))
    before = snapshot(model)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    made = repaired(name, model)
    assert torch.equal(state, torch.get_rng_state())
    assert snapshot(model) == before
    assert type(made.model_) is UserModel
    assert made.model_ is not model
    assert not any(each.training for each in made.model_.modules())
    flags = [each.requires_grad for each in made.model_.parameters()]
    assert flags == [each.requires_grad for each in model.parameters()]
    assert all(each.grad is None for each in made.model_.parameters())
    assert all(bool(each.isfinite().all()) for each in made.model_.state_dict().values())
    assert not same(made.model_, model)
    shown = user_images()[0].float() / 255
    assert made.model_(shown).shape == (60, 3)
    assert isinstance(made.notes_, dict)


def test_a_repair_depends_only_on_its_arguments(name: str) -> None:
    torch.manual_seed(1)
    first = repaired(name, user_model()).model_
    torch.manual_seed(2)
    assert same(first, repaired(name, user_model()).model_)
    assert not same(first, repaired(name, user_model(), seed=1).model_)


def test_only_the_required_inputs_decide_the_result(name: str) -> None:
    images, labels = user_images()
    given: dict[str, Any] = {"images": images, "labels": labels, "clean": user_images(24, 2)}
    made = brief(name)
    assert made.requires in ({"clean"}, {"images", "labels"})
    needed = {key: given[key] for key in made.requires}
    alone = made.fit(user_model(), **needed, recipe=RECIPE).model_
    assert same(alone, repaired(name, user_model()).model_)
    for key in needed:
        rest = {each: value for each, value in given.items() if each != key}
        with pytest.raises(ValueError, match=f"`{key}` is missing"):
            made.fit(user_model(), **rest)


def test_numpy_arrays_and_tensors_give_the_same_model(name: str) -> None:
    images, labels = (each.numpy() for each in user_images())
    clean = tuple(each.numpy() for each in user_images(24, 2))
    copies = [each.copy() for each in (images, labels, *clean)]
    for each in (images, labels, *clean):
        each.setflags(write=False)
    made = brief(name).fit(user_model(), images, labels, clean=clean, recipe=RECIPE)
    assert same(made.model_, repaired(name, user_model()).model_)
    for each, copied in zip((images, labels, *clean), copies, strict=True):
        np.testing.assert_array_equal(each, copied)


def test_parameters_can_be_read_changed_and_cloned(name: str) -> None:
    made = bl.get_repair(name, seed=4)
    params = made.get_params()
    assert (params["name"], params["seed"]) == (name, 4)
    assert not params.keys() & {"filter_scope", "removal_budget", "max_removed", "center"}
    copied = clone(made)
    assert copied is not made
    assert copied.get_params() == params
    assert copied.set_params(seed=5).seed == 5
    assert made.get_params() == params
    with pytest.raises(ValueError, match="'seeed' is not known. Did you mean 'seed'"):
        made.set_params(seeed=3)


def test_the_classes_are_the_outputs_of_the_model() -> None:
    """Neural Cleanse searches a trigger for each, although the clean images have two classes."""
    images, _ = user_images(20)
    made = brief("neural_cleanse").fit(user_model(), clean=(images, torch.arange(20) % 2))
    assert made.notes_["sizes"].keys() == {"0", "1", "2"}


def test_a_model_that_a_method_cannot_repair_is_a_value_error() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(ValueError, match="`anp` needs a network with batch normalization"):
        repaired("anp", plain)
    with pytest.raises(ValueError, match="has no linear layer"):
        repaired("fine_pruning", nn.Sequential(nn.Conv2d(3, 3, 8), nn.Flatten()))
    broken = user_model()
    with torch.no_grad():
        broken.fc.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="loss of the defense is nan"):
        repaired("fine_pruning", broken)


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="repair name 'spectral' is not known"):
        bl.get_repair("spectral")
    with pytest.raises(ValueError, match="'epoch' is not known. Did you mean 'epochs'"):
        bl.get_repair("fine_pruning", epoch=2)
    with pytest.raises(ValueError, match="`lr` must satisfy 0 <= lr, got -1"):
        bl.get_repair("fine_pruning", lr=-1)


@pytest.mark.parametrize("name", ["fine_pruning", "neural_cleanse"])
def test_repairs_that_reuse_momentum_and_weight_decay_refuse_adamw(name: str) -> None:
    given = {"clean": user_images(24, 2), "recipe": "finetune"}
    with pytest.raises(ValueError, match="trains by SGD .*`optimizer=adamw`: choose a recipe"):
        brief(name).fit(user_model(), **given)
    changed = brief("fine_tuning").fit(user_model(), **given)
    assert not same(changed.model_, user_model())
