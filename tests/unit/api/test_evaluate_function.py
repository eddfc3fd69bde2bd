"""`backdoor_lab.evaluate` on models that do not come from this package, and on a cell's network."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torchvision.transforms import v2

import backdoor_lab as bl
from backdoor_lab.attacks.plan import asr_test_set
from backdoor_lab.attacks.poison import clean
from backdoor_lab.core.store import Store
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.pipeline.stages.training import measure_stage
from backdoor_lab.training.train import fit
from tests.helpers.cells import CPU, cell_of, job
from tests.helpers.foreign import Wrapped, sequential, some_images, transformer

CLASSES = 3


def labels_of(n: int) -> Tensor:
    return torch.arange(n) % CLASSES


def white_corner(images: Any) -> Any:
    """A trigger for arrays of both kinds, which overwrites its input."""
    images[:, :, -2:, -2:] = 255
    return images


def by_corner(images: Tensor) -> Tensor:
    """Scores that predict class 2 for a white corner, and otherwise 0 or 1 by the first pixel."""
    white = images[:, :, -1, -1].mean(dim=1) > 0.999
    bright = images[:, 0, 0, 0] > 0.5
    chosen = torch.where(white, 2, bright.long())
    return nn.functional.one_hot(chosen, CLASSES).float()


def grey(*first: int) -> Tensor:
    """Grey images whose first pixel has the given values."""
    images = torch.full((len(first), 3, 8, 8), 100, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.tensor(first, dtype=torch.uint8)[:, None]
    return images


def test_all_numbers_of_a_small_example() -> None:
    images, labels = grey(0, 0, 255, 255, 0), [0, 1, 1, 1, 2]
    images[4, :, -1, -1] = 255
    found = bl.evaluate(by_corner, images, labels, white_corner, target=2)
    assert found.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 1]]
    assert found.confusion.dtype == np.int64
    assert found.per_class.tolist() == [1, 2 / 3, 1]
    assert found.per_class.dtype == np.float64
    assert (float(found.nat), found.nat.n) == (0.8, 5)
    assert (float(found.asr), found.asr.n) == (1.0, 4)
    assert (float(found.clean_rate), found.clean_rate.n) == (0.0, 4)
    assert str(found).splitlines() == [
        "clean accuracy       0.8000 [0.3755, 0.9638], n=5",
        "attack success rate  1.0000 [0.5101, 1.0000], n=4",
        "without the trigger  0.0000 [0.0000, 0.4899], n=4",
        "intervals: 95 % (Wilson)",
        "lowest accuracy: 0.6667 (class 1)",
    ]
    assert f"{found.nat:.1%} {found.nat}" == "80.0% 0.8000 [0.3755, 0.9638], n=5"


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [({}, [0, 2, 3, 5]), ({"asr_on": "not_target"}, [0, 2, 3, 5]),
     ({"asr_on": "all"}, [0, 1, 2, 3, 4, 5]), ({"source": 0}, [0, 3]),
     ({"source": 0, "asr_on": "source"}, [0, 3]), ({"source": 0, "asr_on": "all"}, [*range(6)]),
     ({"source": 2, "asr_on": "not_target"}, [0, 2, 3, 5])],
)  # fmt: skip
def test_the_attack_success_rate_is_measured_on_the_chosen_images(
    arguments: dict[str, Any], rows: list[int]
) -> None:
    seen: list[Tensor] = []

    def trigger(images: Tensor) -> Tensor:
        seen.append(images.clone())
        return images

    images = some_images(6)
    found = bl.evaluate(
        sequential(), images, labels_of(6), trigger, target=1, batch_size=2, **arguments
    )
    assert torch.equal(torch.cat(seen), images[rows])
    assert [len(each) for each in seen] == [2] * (len(rows) // 2)
    assert found.asr.n == found.clean_rate.n == len(rows)
    assert found.nat.n == 6


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_intervals_agree_with_scipy(confidence: float) -> None:
    images, labels = some_images(40), labels_of(40)
    found = bl.evaluate(sequential(), images, labels, white_corner, target=1, confidence=confidence)
    assert found.confidence == confidence
    for rate in (found.nat, found.asr, found.clean_rate):
        theirs = stats.binomtest(round(rate.value * rate.n), rate.n).proportion_ci(
            confidence_level=confidence, method="wilson"
        )
        assert (rate.low, rate.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert found.asr.n == 27


@pytest.mark.parametrize(
    "net", [transformer(), sequential(), Wrapped()], ids=lambda x: type(x).__name__
)
def test_a_module_is_evaluated_in_eval_mode_and_left_as_it_was(net: nn.Module) -> None:
    images, labels = some_images(), labels_of(12)
    net.train()
    before = copy.deepcopy(net.state_dict())
    found = bl.evaluate(net, images, labels, bl.get_trigger("pixel"), target=0)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(values, before[name]) for name, values in net.state_dict().items())
    with torch.no_grad():
        predicted = net.eval()(images / 255).argmax(dim=1)
        shown = net(bl.get_trigger("pixel")(images) / 255).argmax(dim=1)
    assert float(found.nat) == float((predicted == labels).double().mean())
    assert float(found.asr) == float((shown[labels != 0] == 0).double().mean())
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    assert found.confusion.tolist() == [
        [pairs.count((row, column)) for column in range(CLASSES)] for row in range(CLASSES)
    ]


def test_the_kind_of_array_and_the_batch_size_do_not_matter() -> None:
    images, labels = some_images(), labels_of(12)
    kept = images.clone()
    found = [
        str(bl.evaluate(sequential(), *given, white_corner, target=2, batch_size=size))
        for given in ((images, labels), (images.numpy(), labels.numpy()))
        for size in (1, np.int64(5), 256)
    ]
    assert len(set(found)) == 1
    assert torch.equal(images, kept)


def test_a_model_may_be_a_function_that_returns_numpy_arrays() -> None:
    seen: list[Tensor] = []

    def model(images: Tensor) -> np.ndarray[Any, Any]:
        seen.append(images)
        return by_corner(images).numpy()

    images = grey(0, 255)
    found = bl.evaluate(model, images.numpy(), [0, 1], white_corner, target=2)
    assert (float(found.nat), float(found.asr)) == (1, 1)
    assert torch.equal(seen[0], images / 255)
    bl.evaluate(model, images, [0, 1], white_corner, target=2, normalize="bytes")
    assert torch.equal(seen[2], images.float())


def test_a_trigger_gets_the_kind_of_array_that_it_can_handle() -> None:
    kinds: list[type] = []

    def trigger(images: Any) -> Any:
        kinds.append(type(images))
        return white_corner(images)

    images, labels = grey(0, 255), [0, 1]
    for given in (images, images.numpy()):
        bl.evaluate(by_corner, given, labels, trigger, target=2)
    assert kinds == [Tensor, np.ndarray]
    # Transforms of torchvision return NumPy arrays unchanged, so that they get tensors.
    white = v2.Lambda(lambda images: torch.full_like(images, 255))
    found = bl.evaluate(by_corner, images.numpy(), labels, white, target=2)
    assert float(found.asr) == 1


def test_a_class_without_images_has_no_accuracy() -> None:
    found = bl.evaluate(by_corner, grey(0, 255), [0, 0], white_corner, target=0)
    assert np.isnan(found.per_class).tolist() == [False, True, True]
    assert found.asr.n == 0
    assert math.isnan(float(found.asr))
    assert "attack success rate  no images" in str(found)


def test_two_evaluations_compare_by_identity() -> None:
    one, other = (bl.evaluate(by_corner, grey(0), [0], white_corner, target=2) for _ in "ab")
    assert one == one  # noqa: PLR0124
    assert one != other
    assert one.nat == other.nat
    with pytest.raises(AttributeError, match="cannot assign"):
        one.confidence = 0.5  # type: ignore[misc]


def nan_for(*rows: int) -> Any:
    """A model that returns NaN for grey images of these rows, whose first pixel is their row."""

    def model(images: Tensor) -> Tensor:
        scores = by_corner(images / 255)
        scores[torch.isin(images[:, 0, 0, 0].long(), torch.tensor(rows)), 1] = torch.nan
        return scores

    return model


def test_nan_is_an_error_that_names_the_first_row() -> None:
    images = grey(*range(9))
    arguments: dict[str, Any] = {"target": 2, "batch_size": 4, "normalize": "bytes"}
    with pytest.raises(ValueError, match="`model` returns NaN for row 6 of `images`$"):
        bl.evaluate(nan_for(6, 8), images, [0] * 9, white_corner, **arguments)

    def trigger(images: Tensor) -> Tensor:
        images[:, :, 0, 0] += 100
        return images

    labels = [0, 2, 2, 2, 2, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="NaN for row 7 of `images` with the trigger$"):
        bl.evaluate(nan_for(107, 101), images, labels, trigger, **arguments)


def replaced(**changes: Any) -> dict[str, Any]:
    return {
        "model": by_corner, "images": grey(0, 255, 0), "labels": [0, 1, 2],
        "trigger": white_corner, "target": 2, **changes,
    }  # fmt: skip


class Growing:
    """Returns one column more with each batch."""

    columns = 2

    def __call__(self, images: Tensor) -> Tensor:
        self.columns += 1
        return torch.zeros(len(images), self.columns)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [({"model": lambda x: x[:, 0, 0, 0]}, ValueError, r"return shape \(3, k\) for 3.* got \(3,\)"),
     ({"model": lambda x: x[:2, 0, 0]}, ValueError, r"return shape \(3, k\) for 3.* got \(2, 8\)"),
     ({"model": lambda x: x[:, 0, 0, :1]}, ValueError, r"at least two, got \(3, 1\)"),
     ({"model": Growing(), "batch_size": 2}, ValueError, r"return shape \(1, 3\).* got \(1, 4\)"),
     ({"model": lambda x: {"logits": x}}, TypeError, r"`model\(images\)` must be .* got dict"),
     ({"model": "resnet"}, TypeError, "`model` must be a module or a function, got str"),
     ({"trigger": 3}, TypeError, "`trigger` must be a trigger or a function, got int"),
     ({"trigger": "pixle"}, ValueError, "trigger name 'pixle' is not known. Did you mean 'pixel'"),
     ({"trigger": lambda x: x / 255}, ValueError, r"`trigger\(images\)` must have dtype uint8"),
     ({"trigger": lambda x: x[:1]}, ValueError, r"must have the shape of `images`, \(2, 3, 8, 8\)"),
     ({"images": grey(0)[:0], "labels": []}, ValueError, "`images` must have at least one row"),
     ({"labels": [0, 1]}, ValueError, "`labels` must have one value per row"),
     ({"labels": [0, 4, 3]}, ValueError, "`labels` must be smaller than 3.* got 4 in row 1"),
     ({"target": 3}, ValueError, "`target` must satisfy 0 <= target < 3, got 3"),
     ({"target": -1}, ValueError, "`target` must satisfy 0 <= target < 3, got -1"),
     ({"target": "2"}, TypeError, "`target` must be a class number, got '2'"),
     ({"source": 5}, ValueError, "`source` must satisfy 0 <= source < 3, got 5"),
     ({"source": 2}, ValueError, "`source` and `target` must differ"),
     ({"asr_on": "source"}, ValueError, "`asr_on=source` needs a class in `source`"),
     ({"asr_on": "some"}, ValueError, "`asr_on` 'some' is not known"),
     ({"confidence": 1}, ValueError, "`confidence` must satisfy 0 < confidence < 1, got 1.0"),
     ({"confidence": 0.0}, ValueError, "`confidence` must satisfy 0 < confidence < 1, got 0.0"),
     ({"confidence": np.nan}, ValueError, "`confidence` must satisfy 0 < confidence < 1, got nan"),
     ({"confidence": "95%"}, TypeError, "`confidence` must be a number, got str"),
     ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
     ({"batch_size": 2.0}, TypeError, "`batch_size` must be an integer, got float")],
)  # fmt: skip
def test_a_wrong_argument_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    given = replaced(**changes)
    positional = [given.pop(name) for name in ("model", "images", "labels", "trigger")]
    with pytest.raises(error, match=message):
        bl.evaluate(*positional, **given)


@pytest.mark.parametrize(
    "overrides",
    [(), ("protocol.asr_on=all",), ("source=3", "protocol.poison_from=source",
                                    "protocol.asr_on=source", "protocol.ratio_of=source")],
    ids=["not_target", "all", "source"],
)  # fmt: skip
def test_the_numbers_of_a_network_are_those_of_the_command_line(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    cell = cell_of(tmp_path / "store", "trigger=pixel", "target=1", *overrides)
    data, plan = open_dataset(cell.parts.data, Store(tmp_path / "store")), cell.plan
    module = fit(job(clean(data.train), epochs=2), CPU)
    measured = measure_stage(cell, data, module, "w", Store(tmp_path / "store"), CPU).meta
    images, labels = data.test.images, data.test.labels
    found = bl.evaluate(
        module, images.numpy(), labels.numpy(), bl.get_trigger("pixel"), target=plan.target,
        source=plan.source, asr_on=plan.asr_on, normalize="bytes",
    )  # fmt: skip
    assert 0 < float(found.nat) < 1
    assert float(found.nat) == measured["nat"]
    assert float(found.asr) == measured["asr"]
    assert float(found.clean_rate) == measured["clean_rate"]
    assert (found.nat.n, found.asr.n) == (measured["n_test"], measured["n_asr"])
    assert found.asr.n == len(asr_test_set(labels, plan))
    assert found.per_class.tolist() == measured["per_class"]["accuracy"]
    assert found.confusion.tolist() == measured["per_class"]["confusion"]
