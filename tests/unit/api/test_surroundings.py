"""The state of the process around a call does not change the results of public functions."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import backdoor_lab as bl

IMAGES = torch.from_numpy(
    np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8)
)
LABELS = torch.arange(60) % 3


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(784, 3))
    return nn.Sequential(*parts).to(dtype)


NET = network()


@contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def poisoned(name: str) -> Any:
    return bl.poison(IMAGES, LABELS, name, target=2, ratio=0.4).images


def narcissus() -> Any:
    trigger = bl.get_trigger("narcissus", steps=2, lr=1e6, warmup_epochs=1)
    return trigger.fit(IMAGES, LABELS, target=2, model=NET, seed=1)(IMAGES)


def pruned() -> Any:
    repair = bl.get_repair("fine_pruning", epochs=1)
    made = repair.fit(NET, clean=(IMAGES, LABELS)).model_
    return torch.cat([value.flatten() for value in made.state_dict().values()])


CALLS = {
    "adaptive_blend": lambda: poisoned("adaptive_blend"),
    "warp": lambda: poisoned("warp"),
    "narcissus": narcissus,
    "fine_pruning": pruned,
    "features": lambda: bl.extract_features(NET, IMAGES),
}
AROUND = {
    "float64 by default": double_precision,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
}


@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_torch_settings_around_a_call_change_no_result(call: Any, around: Any) -> None:
    expected = call()
    with around():
        found = call()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["narcissus", "fine_pruning"])
def test_dropout_in_a_model_depends_on_the_seed_of_the_method_alone(name: str) -> None:
    """Training such a model draws from torch's global generator, whose state stays as it was."""
    torch.manual_seed(5)
    expected = CALLS[name]()
    torch.manual_seed(6)
    before = torch.get_rng_state()
    assert torch.equal(CALLS[name](), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_thread_keeps_its_random_numbers_while_a_filter_runs() -> None:
    features = np.random.default_rng(0).normal(size=(30, 4))
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            bl.get_filter("spectral").fit(features, np.zeros(30, int), target=0, n_poisoned=3)

    np.random.seed(0)
    expected = np.random.random(2000)
    np.random.seed(0)
    thread = threading.Thread(target=work)
    thread.start()
    try:
        found = np.concatenate([np.random.random(10) for _ in range(200)])
    finally:
        ended.set()
        thread.join()
    assert np.array_equal(found, expected)


class Noisy(Dataset[tuple[Tensor, int]]):
    """Images drawn from torch's global generator."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8), index % 4


def test_a_poisoned_data_set_keeps_the_randomness_of_the_given_one() -> None:
    data = bl.PoisonedDataset(Noisy(), "pixel", target=2, ratio=0.4, labels=np.arange(20) % 4)
    assert not torch.equal(data[21][0], data[21][0])


def test_fitting_a_trigger_again_does_not_change_a_poisoned_data_set() -> None:
    trigger = bl.get_trigger("steganographic", steps=2)
    trigger.fit(IMAGES, LABELS, target=2)
    clean = torch.utils.data.TensorDataset(IMAGES, LABELS)
    data = bl.PoisonedDataset(clean, trigger, target=2, ratio=0.4)
    before = data[len(data) - 1][0]
    trigger.fit(IMAGES, LABELS, target=2, seed=9)
    assert torch.equal(data[len(data) - 1][0], before)


@pytest.mark.parametrize("label", [0.7, "3"])
def test_labels_of_items_must_be_integers(label: object) -> None:
    items = [(IMAGES[0], label)] * 8
    with pytest.raises((TypeError, ValueError), match="labels"):
        bl.PoisonedDataset(items, "pixel", target=0, ratio=0.5)


def test_a_copy_of_a_fitted_trigger_keeps_its_seed() -> None:
    trigger = bl.get_trigger("adaptive_patch").fit(IMAGES, LABELS, target=2, seed=7)
    expected = trigger.apply_train(IMAGES)
    assert torch.equal(copy.deepcopy(trigger).apply_train(IMAGES), expected)
    assert not torch.equal(bl.get_trigger("adaptive_patch").apply_train(IMAGES), expected)


@pytest.mark.parametrize("label", [torch.tensor(1), np.int64(1), np.array([1, 2]), 1])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_labels_pass_through_a_composition_in_any_position(kind: Any, label: Any) -> None:
    trigger = bl.get_trigger("pixel")
    image = kind(IMAGES[0].numpy())
    expected = np.asarray(trigger(image))
    for sample in ((image, label), (label, image)):
        found = v2.Compose([trigger])(*sample)
        assert np.array_equal(np.asarray(found[sample[0] is label]), expected)
        assert found[sample[0] is not label] is label


def test_frames_of_a_video_are_triggered() -> None:
    trigger, video = bl.get_trigger("pixel"), tv_tensors.Video(IMAGES[:4])
    found, _ = v2.Compose([trigger])(video, 1)
    assert isinstance(found, tv_tensors.Video)
    assert torch.equal(found.as_subclass(Tensor), trigger(IMAGES[:4]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_of_other_precisions_get_images_of_their_precision(dtype: torch.dtype) -> None:
    features = bl.extract_features(network(dtype), IMAGES)
    assert features.dtype == torch.float32
    expected = bl.extract_features(network(), IMAGES)
    assert torch.allclose(features, expected, atol=0.05)
    assert (
        bl.evaluate(network(dtype), IMAGES, LABELS, bl.get_trigger("pixel"), target=1).nat.n == 60
    )


def test_numpy_numbers_are_accepted_as_options() -> None:
    assert bl.get_filter("spectral", rank=np.int64(2)).get_params()["rank"] == 2
    assert bl.get_trigger("pixel", color=np.int64(7)).options["color"] == 7
    assert (
        bl.get_filter("one_class_svm", nu=np.float64(0.2)).set_params(nu=np.float64(0.3)).nu == 0.3
    )


def test_an_evaluation_for_another_target_than_the_fitted_one_is_refused() -> None:
    trigger = bl.get_trigger("narcissus", steps=2, lr=1e6, warmup_epochs=1)
    trigger.fit(IMAGES, LABELS, target=2, model=network())
    with pytest.raises(ValueError, match="`target` is 1, but `trigger` was fitted for 2"):
        bl.evaluate(network(), IMAGES, LABELS, trigger, target=1)


def test_very_large_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="`labels` must be below 100000, got 1000000000 in row 1"):
        bl.poison(IMAGES[:2], [0, 10**9], "pixel", target=0, ratio=0.5)


@pytest.mark.parametrize("option", ["kind", "fit"])
def test_an_option_cannot_replace_an_attribute_of_a_filter(option: str) -> None:
    with pytest.raises(ValueError, match=f"option `{option}` is not known"):
        bl.get_filter("spectral", **{option: 1})


def clean_of(side: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(6, 3, side, side, dtype=torch.uint8), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bl.get_trigger("pixel")(np.zeros((3, 8, 8), np.longdouble)), ValueError,
         "`images` has the unsupported dtype"),
        (lambda: bl.get_trigger("pixel")(torch.zeros(2, 3, 8, 8).to_sparse()), ValueError,
         "`images` must be a dense tensor"),
        (lambda: bl.get_trigger("pixel")(), TypeError, "`images` must be .* got nothing"),
        (lambda: bl.get_trigger("pixel", name="x"), ValueError, "option `name` is not known"),
        (lambda: bl.poison(IMAGES[:2], [[1], [1, 2]], "pixel", target=0, ratio=0.5), ValueError,
         r"`labels` must have shape \(n,\), got a nested list"),
        (lambda: bl.poison(IMAGES[:2], np.array([0, 2**63], np.uint64), "pixel", target=0,
                           ratio=0.5), ValueError, "`labels` must be below 100000"),
        (lambda: bl.poison(IMAGES, LABELS, "pixel", target=0, ratio=0.5, protocol="group13@01"),
         ValueError, "group13@01"),
        (lambda: bl.extract_features(NET, IMAGES, normalize=("a", "b")), TypeError,
         r"`normalize` must be \(mean, std\)"),
        (lambda: bl.evaluate(lambda x: torch.ones(len(x), 2) * 1j, IMAGES, LABELS, "pixel",
                             target=1), ValueError, "`model` must return real numbers"),
        (lambda: bl.evaluate(NET, IMAGES, LABELS, "pixel", target=None), TypeError, "`target`"),
        (lambda: bl.get_filter("strip").fit(None, LABELS, target=0, n_poisoned=2, model=NET,
                                            images=IMAGES, clean=clean_of(8)), ValueError,
         r"`clean` must have images of the same shape as `images`, \(3, 16, 16\), got \(3, 8, 8\)"),
        (lambda: bl.get_trigger("narcissus").fit(IMAGES, torch.arange(60) % 4, target=0, model=NET),
         ValueError, "`model` must have an output for each of the 4 classes, but has 3"),
        (lambda: bl.get_filter("spectral", seed=1.0), TypeError, "`seed`"),
        (lambda: bl.get_filter("spectral").fit(np.ones((9, 2)), np.zeros(9, int), target=0,
                                               n_poisoned=2.0), TypeError, "`n_poisoned`"),
        (lambda: bl.PoisonedDataset([(IMAGES[0], k % 2) for k in range(8)], "pixel",
                                     target=0, ratio=0.5)["a"],
         (TypeError, ValueError), "integer"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_named_in_the_error(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_labels_outside_those_of_fit_are_refused() -> None:
    trigger = bl.get_trigger("label_consistent", steps=1)
    trigger.fit(IMAGES, LABELS, target=1, model=NET)
    with pytest.raises(
        ValueError, match="`labels` must be below 3, the number of classes in `fit`"
    ):
        trigger.apply_train(IMAGES, LABELS + 50)


def test_output_settings_of_scikit_learn_change_no_filter() -> None:
    import sklearn

    features = np.random.default_rng(0).normal(size=(60, 20))
    args: dict[str, Any] = {"target": 1, "n_poisoned": 3}
    one = bl.get_filter("activation_clustering").fit(features, LABELS, **args)
    with sklearn.config_context(transform_output="pandas"):
        other = bl.get_filter("activation_clustering").fit(features, LABELS, **args)
    assert np.array_equal(one.scores_, other.scores_, equal_nan=True)


def test_another_default_device_changes_no_result() -> None:
    expected = poisoned("adaptive_blend")
    with torch.device("meta"):
        found = poisoned("adaptive_blend")
    assert torch.equal(found, expected)
