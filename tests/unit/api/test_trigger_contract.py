"""The contract of every trigger of the public interface."""

from __future__ import annotations

import copy
import pickle
import random
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

import backdoor_lab as bl
from tests.helpers.picture_sets import SIDE, pictures
from tests.helpers.triggers import NAMES, brief, fitted, surrogate

JOINT = ["adaptive_blend", "adaptive_patch"]
"""Triggers that draw random numbers for all poisoned images together."""
FITTED = [name for name in NAMES if brief(name).requires]
"""Triggers that cannot be applied before `fit`."""
TOGETHER = [name for name in NAMES if brief(name).requires_train and name not in FITTED]
"""Triggers whose poisoned images are optimized together, on a surrogate."""


@pytest.fixture(scope="module", params=NAMES)
def trigger(request: pytest.FixtureRequest) -> Any:
    return fitted(request.param)


def of(method: str, trigger: Any, images: Any) -> Any:
    """The result of one of a trigger's methods; the true labels are those of the target class."""
    if method == "__call__":
        return trigger(images)
    return getattr(trigger, method)(images, torch.ones(len(images), dtype=torch.int64))


METHODS = pytest.mark.parametrize("method", ["__call__", "apply_train", "apply_cover"])


def test_the_lists_of_special_triggers_are_not_empty() -> None:
    assert {"narcissus", "steganographic"} <= set(FITTED)
    assert {"label_consistent", "sleeper_agent"} <= set(TOGETHER)


def test_a_batch_and_its_single_images_agree(trigger: Any) -> None:
    images = pictures(5)
    whole = trigger(images)
    assert whole.shape == images.shape
    assert not torch.equal(whole, images)
    for image, expected in zip(images, whole, strict=True):
        assert torch.equal(trigger(image), expected)
        assert torch.equal(trigger(image[None])[0], expected)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*JOINT, *TOGETHER)])
def test_a_training_batch_and_its_single_images_agree_where_nothing_is_drawn(name: str) -> None:
    made, images = fitted(name), pictures(5)
    whole = of("apply_train", made, images)
    singles = [of("apply_train", made, image[None]) for image in images]
    assert torch.equal(torch.cat(singles), whole)


@METHODS
def test_arrays_and_tensors_give_the_same_bits(trigger: Any, method: str) -> None:
    images = pictures(4)
    found = of(method, trigger, images.numpy())
    expected = of(method, trigger, images)
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.uint8
    assert type(expected) is Tensor
    np.testing.assert_array_equal(found, expected.numpy())


@METHODS
def test_the_input_is_not_modified_and_not_shared(trigger: Any, method: str) -> None:
    images = pictures(4)
    before = images.clone()
    found = of(method, trigger, images)
    assert torch.equal(images, before)
    found.fill_(7)
    assert torch.equal(images, before)


def test_read_only_and_strided_arrays_are_accepted(trigger: Any) -> None:
    images = pictures(6)
    expected = trigger(images).numpy()
    frozen = images.numpy().copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(trigger(frozen), expected)
    np.testing.assert_array_equal(trigger(frozen[::-2]), expected[::-2])
    last = np.ascontiguousarray(frozen.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(trigger(last), expected)
    memory = images.contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(trigger(memory).numpy(), expected)


@pytest.mark.parametrize("name", NAMES)
def test_gray_images_are_triggered(name: str) -> None:
    images = pictures(4, channels=1)
    found = fitted(name, channels=1)(images)
    assert found.shape == images.shape
    assert not torch.equal(found, images)


@METHODS
def test_one_seed_gives_one_result_and_the_global_random_state_is_unchanged(
    trigger: Any, method: str
) -> None:
    images = pictures(4)
    results = []
    for state in (1, 2):
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        results.append(of(method, trigger, images))
        assert random.getstate() == before[0]
        np.testing.assert_equal(np.random.get_state(), before[1])
        assert torch.equal(torch.get_rng_state(), before[2])
    assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_fitting_twice_gives_one_result_and_leaves_the_model_and_the_random_state_alone(
    name: str,
) -> None:
    model = surrogate()
    weights = copy.deepcopy(model.state_dict())
    source = 2 if "source" in brief(name).requires_train else None
    made = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        each = brief(name).fit(
            pictures(40), torch.arange(40) % 4, target=1, source=source, model=model, seed=5
        )
        made.append(of("apply_train", each, pictures(4)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*made)
    assert model.training
    assert all(each.requires_grad and each.grad is None for each in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize("name", JOINT)
def test_the_seed_decides_about_random_pieces(name: str) -> None:
    made, images = bl.get_trigger(name), pictures(8)
    first = made.apply_train(images, seed=0)
    assert torch.equal(made.apply_train(images, seed=0), first)
    assert not torch.equal(made.apply_train(images, seed=1), first)
    assert not torch.equal(made.apply_cover(images, seed=0), first)


def test_triggers_can_be_pickled(trigger: Any) -> None:
    images = pictures(4)
    again = pickle.loads(pickle.dumps(trigger))
    assert torch.equal(again(images), trigger(images))
    assert repr(again) == repr(trigger)
    if trigger.name in TOGETHER:
        with pytest.raises(NotFittedError):
            of("apply_train", again, images)
    else:
        expected = of("apply_train", trigger, images)
        assert torch.equal(of("apply_train", again, images), expected)


@pytest.mark.parametrize("name", FITTED + TOGETHER)
def test_a_trigger_that_must_be_fitted_says_so(name: str) -> None:
    made = brief(name)
    calls = [made.apply_train, made.apply_cover, *([made] if name in FITTED else [])]
    for call in calls:
        with pytest.raises(NotFittedError, match=f"{name} must be fitted first: call fit with"):
            call(pictures(2))
    if name in TOGETHER:
        assert made.requires == frozenset()
        assert made(pictures(2)).shape == (2, 3, SIDE, SIDE)


@pytest.mark.parametrize("name", TOGETHER)
def test_triggers_that_optimize_images_require_their_labels(name: str) -> None:
    with pytest.raises(ValueError, match="`labels` are missing"):
        fitted(name).apply_train(pictures(2))


def test_a_trigger_works_inside_compose(trigger: Any) -> None:
    image, label = pictures(1)[0], torch.tensor(3)
    pipeline = v2.Compose([trigger, v2.ToDtype(torch.float32, scale=True)])
    found, same = pipeline(image, label)
    assert torch.equal(found, v2.functional.to_dtype(trigger(image), scale=True))
    assert same is label
    pipeline.eval()
    assert torch.equal(pipeline(image), found)


def test_only_the_images_of_a_sample_are_triggered() -> None:
    trigger, image = bl.get_trigger("pattern"), tv_tensors.Image(pictures(1)[0])
    mask = tv_tensors.Mask(torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))
    found = trigger({"image": image, "mask": mask, "other": torch.zeros(3, 8, 8), "name": "a"})
    assert isinstance(found["image"], tv_tensors.Image)
    assert torch.equal(found["image"], trigger(pictures(1)[0]))
    assert not found["mask"].any()
    assert not found["other"].any()
    assert found["name"] == "a"


@pytest.mark.parametrize("sample", [lambda image: image, lambda image: (image, 3)])
def test_pil_images_are_refused_with_the_transform_to_use(sample: Any) -> None:
    image = PIL.Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8))
    with pytest.raises(TypeError, match="PILToTensor"):
        bl.get_trigger("pattern")(sample(image))
    found = v2.Compose([v2.PILToTensor(), bl.get_trigger("pattern")])(image)
    assert int(found.max()) == 255


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8), ValueError, "`images` must have dtype uint8 .*got float32"),
        (np.zeros((2, 3, 8, 8), np.int64), ValueError, "`images` must have dtype uint8 .*int64"),
        (np.zeros((2, 3, 8, 8), ">u2"), ValueError, "`images` has the unsupported dtype >u2"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"\(2, 8, 8, 3\).*move the last axis"),
        (np.zeros((8, 8), np.uint8), ValueError, r"must have shape .* got \(8, 8\)"),
        (np.zeros((2, 4, 8, 8), np.uint8), ValueError, r"must have shape .* got \(2, 4, 8, 8\)"),
        (np.zeros((2, 3, 0, 8), np.uint8), ValueError, "at least one row and one column"),
        ([[1, 2]], TypeError, "`images` must be a NumPy array or a torch tensor, got (int|list)"),
        ("cat.png", TypeError, "`images` must be a NumPy array or a torch tensor, got str"),
        (None, TypeError, "`images` must be a NumPy array or a torch tensor, got NoneType"),
    ],
)
def test_wrong_images_are_refused(images: Any, error: type[Exception], message: str) -> None:
    trigger = bl.get_trigger("pattern")
    for call in (trigger, trigger.apply_train, trigger.apply_cover):
        with pytest.raises(error, match=message):
            call(images)


def test_images_that_are_too_small_for_a_trigger_are_refused() -> None:
    with pytest.raises(ValueError, match="outside images of 2x2 pixels"):
        bl.get_trigger("pattern")(np.zeros((1, 3, 2, 2), np.uint8))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": 4}, ValueError, "`target` must satisfy 0 <= target < 4, got 4"),
        ({"target": -1}, ValueError, "`target` must satisfy 0 <= target < 4, got -1"),
        ({"target": 1.0}, TypeError, "`target` must be a class number, got 1.0"),
        ({"target": True}, TypeError, "`target` must be a class number, got True"),
        ({"source": 4}, ValueError, "`source` must satisfy 0 <= source < 4, got 4"),
        ({"source": 1}, ValueError, "`source` and `target` must differ, but both are class 1"),
        ({"source": None}, ValueError, "`source` is missing"),
        ({"model": None}, ValueError, "`model` is missing"),
        ({"model": "resnet"}, TypeError, "`model` must be a torch.nn.Module, got str"),
        ({"normalize": 3}, TypeError, "`normalize` must be"),
        ({"normalize": ([0.5], [0.0])}, ValueError, "one positive std per channel"),
        ({"augment": "flip"}, TypeError, "`augment` must be a mapping or None, got str"),
        ({"augment": {"mixup": 1}}, ValueError, "key in `augment`: 'mixup' is not known"),
        ({"augment": {"crop_padding": -1}}, ValueError, "crop_padding. must satisfy 0 <="),
        ({"seed": -1}, ValueError, "`seed` must satisfy 0 <= seed"),
        ({"seed": 0.5}, TypeError, "`seed` must be an integer, got float"),
        ({"labels": torch.arange(39) % 4}, ValueError, r"one value per row of `images` \(40\)"),
        ({"labels": torch.rand(40)}, ValueError, "`labels` must be integers, got float32"),
        ({"labels": torch.zeros(40, 1).long()}, ValueError, r"`labels` must have shape \(n,\)"),
        ({"labels": -torch.arange(40)}, ValueError, "`labels` must not be negative, got -1 in row"),
        ({"labels": "abc"}, TypeError, "`labels` must be a NumPy array or a torch tensor, got str"),
    ],
)
def test_wrong_arguments_of_fit_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = {"labels": torch.arange(40) % 4, "target": 1, "source": 2, "model": surrogate()}
    trigger = brief("sleeper_agent")
    with pytest.raises(error, match=message):
        trigger.fit(pictures(40), **given | changes)
    with pytest.raises(NotFittedError):
        trigger.apply_train(pictures(2), torch.ones(2).long())


def test_no_images_are_refused_by_fit() -> None:
    with pytest.raises(ValueError, match="`labels` must have at least one value, got 0"):
        brief("steganographic").fit(pictures(0), [], target=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pixle", {}, "trigger name 'pixle' is not known. Did you mean 'pixel'"),
        (3, {}, "trigger name 3 is not known"),
        ("pixel", {"colour": 3}, "'colour' is not known. Did you mean 'color'"),
        ("pixel", {"color": 256}, "`color` must satisfy 0 <= color < 256, got 256"),
        ("narcissus", {"steps": 0}, "`steps` must satisfy 1 <= steps"),
    ],
)
def test_unknown_names_and_wrong_options_are_refused(
    name: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bl.get_trigger(name, **options)
