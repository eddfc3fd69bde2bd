"""`backdoor_lab.PoisonedDataset` has the rows of `backdoor_lab.poison`."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

import backdoor_lab as bl
from tests.helpers.picture_sets import LABELS, SIDE, Pictures, Transformed, as_pil, pictures
from tests.helpers.triggers import NAMES, brief, fitted

REFUSED = [name for name in NAMES if brief(name).requires_train and not brief(name).requires]
LAZY = [name for name in NAMES if name not in REFUSED]


def lazy(trigger: Any = "pattern", dataset: Any = None, **changes: Any) -> bl.PoisonedDataset:
    dataset = Pictures() if dataset is None else dataset
    return bl.PoisonedDataset(dataset, trigger, **{"target": 1, "ratio": 0.3} | changes)


def assert_rows(found: bl.PoisonedDataset, expected: Any) -> None:
    """Compares all items and the ground truth with the result of `backdoor_lab.poison`."""
    assert len(found) == len(expected.labels)
    for index, (image, label) in enumerate(found):
        assert image.dtype == torch.uint8
        assert torch.equal(image, expected.images[index]), index
        assert label == int(expected.labels[index])
    for name in ("is_poison", "is_cover", "source_index"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert torch.equal(found.targets, expected.labels)
    assert found.protocol == expected.protocol


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LAZY)
def test_the_items_are_the_rows_that_poison_returns(name: str, channels: int) -> None:
    trigger = fitted(name, channels)
    changes = {"ratio": 0.4, "seed": 3, "source": 2 if name == "tact" else None}
    expected = bl.poison(pictures(40, channels), LABELS, trigger, target=1, **changes)
    assert expected.is_poison.any()
    assert_rows(lazy(trigger, Pictures(channels=channels), **changes), expected)


@pytest.mark.parametrize("protocol", bl.list_methods("protocols"))
def test_every_protocol_gives_the_rows_that_poison_returns(protocol: str) -> None:
    source = 2 if protocol == "madry2018" else None
    for name in ("adaptive_blend", "sinusoid"):
        changes = {"protocol": protocol, "ratio": 0.1, "source": source}
        expected = bl.poison(pictures(40), LABELS, name, target=1, **changes)
        assert_rows(lazy(name, **changes), expected)


@pytest.mark.parametrize("name", REFUSED)
def test_triggers_that_optimize_all_images_together_are_refused(name: str) -> None:
    assert {"label_consistent", "sleeper_agent"} <= set(REFUSED)
    for trigger in (brief(name), fitted(name)):
        with pytest.raises(ValueError, match=f"{name} optimizes .* use backdoor_lab.poison"):
            lazy(trigger, source=2)


@pytest.mark.parametrize("name", [name for name in LAZY if brief(name).requires])
def test_triggers_that_must_be_optimized_must_be_fitted_first(name: str) -> None:
    with pytest.raises(NotFittedError, match=f"{name} must be fitted first"):
        lazy(brief(name))
    assert lazy(fitted(name)).is_poison.any()


def test_a_trigger_that_was_fitted_for_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match="`target` is 2, but `trigger` was fitted for 1"):
        lazy(fitted("narcissus"), target=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("convert", [as_pil, Tensor.numpy, Tensor.clone])
def test_images_of_every_kind_give_the_same_rows(convert: Any, channels: int) -> None:
    expected = bl.poison(pictures(40, channels), LABELS, "adaptive_patch", target=1, ratio=0.3)
    assert_rows(lazy("adaptive_patch", Pictures(convert, channels)), expected)


def test_images_are_read_only_when_items_are_requested() -> None:
    """Construction reads one image, for its size, if the labels are known."""
    clean = Pictures()
    found = lazy(dataset=clean, labels=LABELS)
    assert clean.reads == [0]
    clean.reads.clear()
    for item in (3, 41, -1):
        assert found[item][0].shape == (3, SIDE, SIDE)
    assert clean.reads == [3, *found.source_index[[41, -1]].tolist()]


def test_labels_are_found_in_the_data_set() -> None:
    """They come from `labels`, from the attributes `targets` and `labels`, or from the items."""
    expected = bl.poison(pictures(40), LABELS, "pattern", target=1, ratio=0.3)
    other = (LABELS + 1) % 4
    for attribute in ("targets", "labels"):
        clean = Pictures()
        setattr(clean, attribute, LABELS.tolist())
        assert_rows(lazy(dataset=clean), expected)
        assert torch.equal(lazy(dataset=clean, labels=other.numpy()).targets[:40], other)
    assert_rows(lazy(dataset=Pictures()), expected)
    assert_rows(lazy(dataset=TensorDataset(pictures(40), LABELS)), expected)
    assert_rows(lazy(dataset=Subset(Pictures(), range(40))), expected)


def test_the_transform_gets_the_triggered_image() -> None:
    scaled = v2.ToDtype(torch.float32, scale=True)
    plain, found = lazy(), lazy(transform=scaled)
    for item in (0, 42):
        assert torch.equal(found[item][0], scaled(plain[item][0]))


def test_indices_are_those_of_a_sequence() -> None:
    found = lazy()
    assert torch.equal(found[-1][0], found[len(found) - 1][0])
    assert found[np.int64(2)][1] == 2
    assert found[torch.tensor(2)][1] == 2
    for item in (len(found), -len(found) - 1):
        with pytest.raises(IndexError, match="out of range: the data set has length 43"):
            found[item]


def test_items_and_the_data_set_are_not_modified() -> None:
    clean = Pictures(lambda image: image)
    found = lazy("adaptive_patch", clean)
    for image, _ in found:
        assert image.shape == (3, SIDE, SIDE)
    assert torch.equal(clean.images, pictures(40))


@pytest.mark.parametrize("name", LAZY)
def test_the_data_set_can_be_pickled(name: str) -> None:
    found = lazy(fitted(name))
    again = pickle.loads(pickle.dumps(found))
    for item in (0, 39, len(found) - 1):
        assert torch.equal(again[item][0], found[item][0])


def test_two_spawned_workers_give_the_same_batches() -> None:
    """The triggers are fitted, draw pieces for each image, or make special cover images; one is
    part of the transformation of a clean data set."""
    parts: list[Any] = [lazy(fitted(name)) for name in ("narcissus", "adaptive_blend", "warp")]
    pipeline = v2.Compose([v2.PILToTensor(), fitted("steganographic"), bl.get_trigger("patch")])
    parts.append(Transformed(Pictures(as_pil), pipeline))
    whole: Dataset[Any] = ConcatDataset(parts)
    loader = DataLoader(whole, batch_size=32, num_workers=2, multiprocessing_context="spawn")
    images, labels = zip(*loader, strict=True)
    expected = [row for part in parts for row in part]
    assert torch.equal(torch.cat(images), torch.stack([image for image, _ in expected]))
    assert torch.cat(labels).tolist() == [label for _, label in expected]
    triggered = bl.get_trigger("patch")(fitted("steganographic")(pictures(40)))
    assert torch.equal(torch.cat(images)[-40:], triggered)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": 3}, TypeError, "`dataset` must have a length and items, got int"),
        ({"dataset": iter([])}, TypeError, "`dataset` must have a length and items"),
        ({"dataset": []}, ValueError, "`labels` must have at least one value, got 0"),
        ({"transform": 3}, TypeError, "`transform` must be callable, got int"),
        ({"trigger": None}, TypeError, "`trigger` must be a name, a trigger from get_trigger"),
        ({"labels": LABELS[:9]}, ValueError, r"one value per row of `dataset` \(40\), got 9"),
        ({"labels": LABELS.float()}, ValueError, "`labels` must be integers, got float32"),
        ({"labels": 3}, TypeError, "`labels` must be a NumPy array or a torch tensor, got int"),
        ({"target": 4}, ValueError, "`target` must satisfy 0 <= target < 4, got 4"),
        ({"ratio": 2}, ValueError, "`ratio` must satisfy 0 <= ratio <= 1, got 2"),
        ({"protocol": "group13@7"}, ValueError, "`protocol` must be group13@1"),
        ({"seed": -1}, ValueError, "`seed` must satisfy 0 <= seed"),
    ],
)
def test_wrong_arguments_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        lazy(**changes)


@pytest.mark.parametrize(
    ("convert", "error", "message"),
    [
        (Tensor.float, ValueError, r"`dataset\[0\]\[0\]` must have dtype uint8"),
        (lambda image: image[0], ValueError, r"must have shape \(C, H, W\), got \(16, 16\)"),
        (lambda image: image.permute(1, 2, 0), ValueError, "move the last axis"),
        (lambda image: as_pil(image).convert("RGBA"), ValueError, "mode L or RGB, got RGBA"),
        (lambda image: "a.png", TypeError, "must be a NumPy array or a torch tensor, got str"),
    ],
)
def test_wrong_images_are_refused(convert: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        lazy(dataset=Pictures(convert))


def test_images_of_several_sizes_are_refused_where_noise_was_drawn_for_one() -> None:
    """Other triggers accept them."""
    clean = Pictures()
    found = lazy("warp", clean, labels=LABELS)
    clean.images = clean.images[:, :, :12]
    with pytest.raises(ValueError, match=r"has shape \(3, 12, 16\), but this trigger needs"):
        found[len(found) - 1]
    assert found[40][0].shape == (3, 12, 16)
