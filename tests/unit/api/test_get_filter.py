"""`get_filter`: options, errors, and filters on images of a user's own model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import backdoor_lab as bl
from tests.helpers.user_models import CLASSES, snapshot, user_images, user_model

ON_IMAGES = [
    name for name in bl.list_methods("filters") if "images" in bl.get_filter(name).requires
]
BRIEF: dict[str, dict[str, Any]] = {
    "abl": {"epochs": 1},
    "abl_authors": {"epochs": 1},
    "confusion": {"steps": 2, "pretrain_epochs": [0, 1, 1, 1, 1, 1]},
    "confusion_authors": {"steps": 2, "pretrain_epochs": 1},
    "strip": {"n_overlays": 3},
}
RNG = np.random.default_rng(0)
FEATURES, LABELS = RNG.normal(size=(60, 4)), np.arange(60) % 3
CLEAN = RNG.normal(size=(30, 4)), np.arange(30) % 3


def on_images(name: str, model: nn.Module, **changes: Any) -> Any:
    images, labels = user_images()
    given = {"target": 1, "n_poisoned": 4, "clean": user_images(24, 2), "images": images} | changes
    features = given.pop("features", None)
    made = bl.get_filter(name, **BRIEF.get(name, {}))
    return made.fit(features, given.pop("labels", labels), model=model, **given)


def test_the_filters_on_images_are_known() -> None:
    assert {"abl", "asset", "beatrix", "confusion", "strip"} <= set(ON_IMAGES)
    assert not bl.get_filter("abl").requires & {"clean"}
    assert bl.get_filter("strip").requires >= {"clean", "images", "model"}


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_filter_on_images_uses_a_copy_of_the_model(name: str) -> None:
    """The filter also needs no features, and the global random state does not matter."""
    model = user_model()
    model.stem.eval()
    for each in model.stem.parameters():
        each.requires_grad_(False)
    images, labels = user_images()
    before, copied = snapshot(model), images.clone()
    torch.manual_seed(1)
    made = on_images(name, model, images=images)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    again = on_images(name, model, images=images.numpy(), labels=labels.numpy())
    assert snapshot(model) == before
    assert torch.equal(images, copied)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(made.scores_.isfinite(), labels == 1)
    assert int((~made.keep_).sum()) == 6
    assert isinstance(again.scores_, np.ndarray)
    np.testing.assert_array_equal(made.scores_.numpy(), again.scores_)


@pytest.mark.parametrize("name", ON_IMAGES)
def test_a_filter_on_images_ignores_the_values_of_features(name: str) -> None:
    images = user_images()[0]
    made = on_images(name, user_model(), features=images.flatten(1).numpy() / 255)
    assert isinstance(made.scores_, np.ndarray)
    np.testing.assert_array_equal(made.scores_, on_images(name, user_model()).scores_.numpy())


@pytest.mark.parametrize(
    ("normalize", "same"),
    [("bytes", False), (([0.0] * 3, [1.0] * 3), True), (lambda images: images, True)],
)
def test_images_are_scaled_to_0_1_and_then_normalized(normalize: Any, same: bool) -> None:
    plain = on_images("strip", user_model()).scores_
    scores = on_images("strip", user_model(), normalize=normalize).scores_
    assert torch.allclose(plain.nan_to_num(), scores.nan_to_num()) == same


def test_layers_are_named_as_in_the_user_s_model() -> None:
    images, labels = user_images()

    def scores(layer: str) -> Tensor:
        made = bl.get_filter("beatrix", layer=layer, filter_scope="all", removal_budget="10%").fit(
            None, labels, images=images, model=user_model(), clean=user_images(24, 2)
        )
        found: Tensor = made.scores_
        return found

    assert torch.equal(scores("stem"), scores("last_stage_input"))
    assert not torch.equal(scores("stem"), scores("body"))
    with pytest.raises(ValueError, match=r"`layer` 'bodi' is not known. Did you mean 'body'\?"):
        scores("bodi")


def test_the_recipe_decides_how_a_filter_trains() -> None:
    images, labels = user_images()

    def scores(recipe: Any) -> Tensor:
        made = bl.get_filter("abl", filter_scope="all", removal_budget="auto").fit(
            None, labels, images=images, model=user_model(), recipe=recipe
        )
        found: Tensor = made.scores_
        return found

    # ABL trains for a fifth of the recipe's epochs.
    assert torch.equal(scores({"epochs": 5}), scores({"epochs": 6}))
    assert not torch.equal(scores({"epochs": 5}), scores({"epochs": 10}))
    assert torch.equal(scores("small"), scores({"epochs": 6}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": user_images()[0].float()}, "`images` must have dtype uint8"),
        ({"images": user_images(59)[0]}, r"`labels` must have one value per row of `images`"),
        ({"labels": torch.arange(60) % 4}, "`labels` must have labels below 3, the number of out"),
        ({"clean": (user_images(9)[0], torch.arange(9))}, "`clean` must have labels below 3"),
        ({"clean": (user_images(9)[0], torch.arange(8))}, r"one value per row of `images` \(9\)"),
        ({"clean": (user_images(9)[0][:0], torch.arange(0))}, "`clean` must have at least one row"),
        ({"target": 3}, "`target` must satisfy 0 <= target < 3"),
        ({"n_poisoned": -1}, "`n_poisoned` must satisfy 0 <= n_poisoned <= 60, got -1"),
        ({"n_poisoned": 61}, "`n_poisoned` must satisfy"),
        ({"recipe": "raport"}, "`recipe` 'raport' is not known. Did you mean 'report'"),
        ({"recipe": {"epoch": 3}}, "key in `recipe`: 'epoch' is not known. Did you mean 'epochs'"),
        ({"recipe": {"epochs": 0}}, "`epochs` must satisfy 1 <= epochs"),
    ],
)
def test_an_invalid_input_is_a_value_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_images("strip", user_model(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"clean": torch.zeros(3)},
        {"recipe": 3},
        {"images": [1]},
        {"target": "1"},
        {"model": "net"},
        {"n_poisoned": 2.5},
    ],
    ids=str,
)
def test_an_input_of_the_wrong_type_is_a_type_error(changes: dict[str, Any]) -> None:
    given: dict[str, Any] = {"model": user_model()} | changes
    with pytest.raises(TypeError, match=f"`{next(iter(changes))}`"):
        on_images("strip", **given)


def test_a_model_that_does_not_return_logits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`model` must return logits .*\(1, 3, 8, 8\)"):
        on_images("strip", nn.Identity())


def test_a_filter_that_trains_a_model_needs_reset_parameters() -> None:
    class Scaled(type(user_model())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    message = r"trained from scratch: its top module \(Scaled\) has parameters, but no method"
    with pytest.raises(ValueError, match=message):
        on_images("abl", Scaled())
    assert on_images("strip", Scaled()).flagged_classes_ == [1]


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(
        ValueError, match="'spectral_pls' is not known. Did you mean 'spectral_plus'"
    ):
        bl.get_filter("spectral_pls")
    with pytest.raises(ValueError, match="'rnk' is not known. Did you mean 'rank'"):
        bl.get_filter("spectral", rnk=2)
    with pytest.raises(ValueError, match="`rank` must satisfy 1 <= rank, got 0"):
        bl.get_filter("spectral", rank=0)
    with pytest.raises(ValueError, match="`removal_budget` must be a budget"):
        bl.get_filter("spectral", removal_budget="many")
    with pytest.raises(ValueError, match="`seed` must satisfy"):
        bl.get_filter("spectral", seed=-1)
    with pytest.raises(ValueError, match="`center` must be true or false"):
        bl.get_filter("spectral", center=1)


def test_options_that_are_not_given_come_from_the_configuration() -> None:
    params = bl.get_filter("spectral_every_class").get_params()
    assert (params["filter_scope"], params["removal_budget"]) == ("all", "15%")
    assert (params["rank"], params["tail_power"], params["center"]) == (1, 0, True)
    changed = bl.get_filter("spectral_every_class", removal_budget="5%", rank=2)
    assert changed.get_params() == params | {"removal_budget": "5%", "rank": 2}
    assert bl.get_filter("spectral_uncentered").get_params()["center"] is False
    assert bl.get_filter("spectral").get_params()["removal_budget"] == "1.5eps"


def test_an_invalid_parameter_leaves_all_parameters_as_they_were() -> None:
    made = bl.get_filter("spectral")
    before = made.get_params()
    with pytest.raises(ValueError, match="`rank`"):
        made.set_params(seed=4, rank=-1)
    with pytest.raises(ValueError, match="'ranks' is not known. Did you mean 'rank'"):
        made.set_params(seed=4, ranks=1)
    assert made.get_params() == before


def test_a_changed_parameter_changes_the_result() -> None:
    made = bl.get_filter("spectral", filter_scope="all", removal_budget="10%")
    first = made.fit(FEATURES, LABELS).scores_
    second = made.set_params(rank=3).fit(FEATURES, LABELS).scores_
    expected = bl.get_filter("spectral", filter_scope="all", removal_budget="10%", rank=3)
    assert (second >= first - 1e-9).all()
    assert (second > first + 1e-9).any()
    np.testing.assert_array_equal(second, expected.fit(FEATURES, LABELS).scores_)


def test_numbers_below_1e_100_count_as_zero() -> None:
    """Their squares would underflow."""
    made = bl.get_filter("elliptic_envelope", filter_scope="all", removal_budget="10%")
    assert made.fit(FEATURES * 1e-160, LABELS).scores_.tolist() == [0.0] * 60
    assert made.fit(FEATURES * 1e-90, LABELS).scores_.all()


def test_integers_of_numpy_are_accepted() -> None:
    made = bl.get_filter("knn", seed=np.int64(3))  # type: ignore[arg-type]
    fitted = made.fit(FEATURES, LABELS, target=np.int64(1), n_poisoned=np.int32(4))  # type: ignore[arg-type]
    assert int((~fitted.keep_).sum()) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 3}, "`target` must satisfy 0 <= target < 3, got 3"),
        ({"labels": np.where(LABELS == 1, 2, LABELS)}, "`target` must occur in `labels`, got 1"),
        ({"labels": LABELS[:-1]}, r"`labels` must have one value per row of `features` \(60\)"),
        ({"labels": LABELS.astype(float)}, "`labels` must be integers"),
        ({"labels": LABELS + 10**9}, "`labels` must be below 100000"),
        ({"features": FEATURES[0]}, r"`features` must have shape \(n, d\)"),
        (
            {"features": FEATURES * 1e200},
            "`features` must be between -3.4e38 and 3.4e38, but row 0",
        ),
        ({"features": FEATURES.astype(int)}, "`features` must be floating-point"),
        ({"features": FEATURES[:0], "labels": LABELS[:0]}, "`features` must have shape"),
        ({"clean": (CLEAN[0][:, :3], CLEAN[1])}, r"as many columns as `features` \(4\), got 3"),
        ({"clean": (CLEAN[0], CLEAN[1][:5])}, "`clean` must have one value per row"),
        ({"clean": (CLEAN[0], CLEAN[1] * 0)}, "scan` needs .* at least two classes: pass more im"),
        ({"clean": (CLEAN[0] * np.nan, CLEAN[1])}, "`clean` must be finite, but row 0 is not"),
        ({"clean": (CLEAN[0] * 0, CLEAN[1])}, "clean images that differ"),
        ({"n_poisoned": 20}, "would remove 30 of the 20 examples of class 1"),
    ],
)
def test_an_invalid_input_of_a_filter_on_features(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "features": FEATURES, "labels": LABELS, "target": 1, "n_poisoned": 4, "clean": CLEAN,
    } | changes  # fmt: skip
    with pytest.raises(ValueError, match=message):
        bl.get_filter("scan").fit(given.pop("features"), given.pop("labels"), **given)


def test_inputs_that_are_not_required_do_not_change_the_result() -> None:
    """As on the command line, a filter knows only what it requires."""
    made = bl.get_filter("spectre", filter_scope="all", removal_budget="10%")
    plain = made.fit(FEATURES, LABELS).scores_
    more = made.fit(FEATURES, LABELS, target=1, n_poisoned=9, clean=CLEAN).scores_
    np.testing.assert_array_equal(plain, more)


def test_there_are_as_many_classes_as_the_model_has_outputs() -> None:
    """Labels need not contain all of them."""
    labels = torch.arange(60) % 2
    made = on_images("confusion", user_model(), labels=labels)
    assert made.flagged_classes_ == [1]
    assert CLASSES == 3
