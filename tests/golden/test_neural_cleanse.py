"""Neural Cleanse, compared with NumPy code written from the paper and the authors' code: the loss,
Adam's updates, the weight of the mask size, early stopping, the outlier index and the patched
images."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.core import streams
from backdoor_lab.defenses import neural_cleanse
from backdoor_lab.defenses.neural_cleanse import (
    MaskWeight,
    NeuralCleanse,
    Reversed,
    Search,
    anomaly,
    reverse,
    start,
)
from tests.helpers.contexts import Small, context
from tests.helpers.mutations import Mutation
from tests.helpers.two_layers import TwoLayers, softmax

FILE = "defenses/neural_cleanse.py"
MUTATIONS = [
    Mutation(FILE, "value: float = 0.0", "value: float = 1e-3", "λ is not 0 at the start"),
    Mutation(FILE, "UP = 2.0", "UP = 1.5", "λ rises too slowly"),
    Mutation(FILE, "DOWN = 2.0**1.5", "DOWN = 2.0", "λ falls too slowly"),
    Mutation(FILE, "self._waited >= PATIENCE", "self._waited >= 1", "λ changes after one step"),
    Mutation(
        FILE, "STOP_PATIENCE = 5 * PATIENCE", "STOP_PATIENCE = 2 * PATIENCE",
        "the search stops too early"
    ),
    Mutation(FILE, "self.value / DOWN", "self.value * DOWN", "failures raise λ"),
    Mutation(FILE, "return entropy + len", "return entropy - len",
             "the mask term has the opposite sign"),
    Mutation(FILE, "len(outputs) * weight *", "weight *", "λ is divided by the batch size"),
    Mutation(FILE, "BETAS = (0.5, 0.9)", "BETAS = (0.9, 0.999)", "Adam has its usual decay rates"),
    Mutation(FILE, "(1 - self.mask) * images", "images", "the pattern is added to the image"),
    Mutation(FILE, "size < self.size", "size > self.size", "the largest mask is kept"),
    Mutation(FILE, "((drawn - 0.5) *", "((0 * drawn) *",
             "mask and pattern start at half of their range"),
    Mutation(FILE, "x.quantile(0.5) - x", "x - x.quantile(0.5)", "large masks stand out"),
    Mutation(FILE, "order < round", "order >= round", "the other images are patched"),
]  # fmt: skip
SUCCESS, FAILURE = 1.0, 0.5
LABEL, CLASSES, PIXELS = 1, 3, 12


def attacked(bias: float) -> Small:
    """A two-layer network. With a large `bias`, it always predicts LABEL."""
    generator = torch.Generator().manual_seed(2)
    first, last = nn.Linear(PIXELS, 10), nn.Linear(10, CLASSES)
    with torch.no_grad():
        for value in (*first.parameters(), *last.parameters()):
            value.copy_(torch.randn(value.shape, generator=generator))
        last.weight.mul_(0.1)
        last.bias[LABEL] += bias
    return Small(nn.Sequential(first, nn.ReLU(), last)).eval()


def noise(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 2, 2, 3), generator=generator, dtype=torch.uint8)
    return images, torch.arange(n) % CLASSES


def weights_by_hand(successes: Iterable[float]) -> list[float]:
    """λ after each step. It is 0 until five steps in succession reach a success rate of 99 %, and
    then 0.001. It is doubled after five steps in succession that reach 99 %, and divided by 2^1.5
    after five that do not."""
    weights, weight, waited, ups, downs = [], 0.0, 0, 0, 0
    for success in successes:
        sure = success >= 0.99
        if weight == 0 and sure:
            waited += 1
            if waited >= 5:
                weight, ups, downs = 1e-3, 0, 0
        else:
            waited = 0
        if sure:
            ups, downs = ups + 1, 0
        else:
            ups, downs = 0, downs + 1
        if ups >= 5:
            ups, weight = 0, weight * 2
        elif downs >= 5:
            downs, weight = 0, weight / 2**1.5
        weights.append(weight)
    return weights


def test_the_weight_of_the_mask_size_follows_the_schedule_of_the_authors() -> None:
    """Computed by hand, λ is 0.001 after five consecutive successes, 0.002 after four more, and
    0.001 · 2^-0.5 after five failures. Random successes are compared with a second
    implementation."""
    weight = MaskWeight()
    known = [SUCCESS] * 4 + [FAILURE] + [SUCCESS] * 9 + [FAILURE] * 5
    found = []
    for success in known:
        weight.update(success)
        found.append(weight.value)
    assert found[:14] == [0.0] * 9 + [1e-3] * 4 + [2e-3]
    assert found[14:] == [2e-3] * 4 + [pytest.approx(1e-3 / math.sqrt(2))]
    rng = np.random.default_rng(0)
    for chance in (0.3, 0.7, 0.9):
        successes = np.where(rng.random(400) < chance, 0.99, 0.98)
        weight, found = MaskWeight(), []
        for success in successes:
            weight.update(float(success))
            found.append(weight.value)
        assert found == pytest.approx(weights_by_hand(successes))


def search_by_numpy(
    layers: TwoLayers, images: np.ndarray, values: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The mask and pattern found in `steps` steps, and the success rates. Each step uses one batch
    of all images and Adam as in the authors' library."""
    x, n = images.reshape(len(images), 2, -1), len(images)
    first, second = np.zeros_like(values), np.zeros_like(values)
    successes: list[float] = []
    best, smallest = None, math.inf

    def squashed() -> np.ndarray:
        return np.asarray(np.tanh(values) / (2 - 1e-7) + 0.5)

    for step in range(1, steps + 1):
        weight = ([0.0, *weights_by_hand(successes)])[-1]
        mask, pattern = squashed()[:1], 255 * squashed()[1:]
        shown = ((1 - mask) * x + mask * pattern).reshape(n, -1) / 255
        z = layers.logits(shown)
        successes.append(float(np.mean(z.argmax(axis=1) == LABEL)))
        _, to_x = layers.back(shown, softmax(z) - np.eye(CLASSES)[LABEL])
        to_x = to_x.reshape(x.shape) / 255
        to_mask = (to_x * (pattern - x)).sum(axis=(0, 1)) + n * weight
        to_pattern = 255 * (to_x * mask).sum(axis=0)
        gradient = np.concatenate([to_mask[None], to_pattern])
        gradient = gradient * (1 - np.tanh(values) ** 2) / (2 - 1e-7)
        first = 0.5 * first + 0.5 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        rate = 0.1 * math.sqrt(1 - 0.9**step) / (1 - 0.5**step)
        values = values - rate * first / (np.sqrt(second) + 1e-7)
        if successes[-1] >= 0.99 and mask.sum() < smallest:
            best, smallest = squashed(), mask.sum()
    found = squashed() if best is None else best
    return found[:1], 255 * found[1:], successes


@pytest.mark.parametrize(("bias", "steps"), [(-3.0, 2), (4.0, 5), (4.0, 14), (4.0, 20)])
def test_updates_of_mask_and_pattern_follow_the_code_of_the_authors(
    bias: float, steps: int
) -> None:
    """In the first case, the success rate is below 99 % in both steps. In the others, the network
    always predicts the target label: λ is 0 for five steps, then positive, and has doubled twice
    after step 14. PyTorch adds Adam's ε to a different quantity than the authors' library, which
    changes the fourth digit of early updates with small gradients."""
    network, (images, labels) = attacked(bias), noise(20)
    given = context(images, labels, network=network, clean=(images, labels))
    values = start((2, 2, 3), given.generator(streams.REVERSED, LABEL)).double().numpy()
    mask, pattern, successes = search_by_numpy(
        TwoLayers.of(network), images.double().numpy(), values.reshape(3, -1), steps
    )
    assert {success >= 0.99 for success in successes} == {bias > 0}
    found = reverse(given.network(), given, LABEL, Search(steps, 1, 20))
    assert found.mask.flatten().numpy() == pytest.approx(mask.flatten(), abs=2e-4)
    assert found.pattern.flatten().numpy() == pytest.approx(pattern.flatten(), abs=0.1)


def test_initial_mask_and_pattern_are_uniform() -> None:
    """The mask is uniform in 0..1, the pattern in 0..255."""
    values = start((3, 40, 50), torch.Generator().manual_seed(0))
    drawn = torch.rand(
        4, 40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).numpy()
    assert values.numpy() == pytest.approx(np.arctanh((drawn - 0.5) * (2 - 1e-7)), rel=1e-5)
    trigger = neural_cleanse.trigger_of(values)
    assert trigger.mask.numpy() == pytest.approx(drawn[:1], abs=1e-6)
    assert trigger.pattern.numpy() == pytest.approx(255 * drawn[1:], abs=1e-3)


class Scripted(nn.Module):
    """A network that predicts LABEL in the forward passes for which `script` is true, and never
    after the end of `script`. Its gradient is zero."""

    def __init__(self, script: list[bool]) -> None:
        super().__init__()
        self.script, self.passes = script, 0

    def forward(self, images: Tensor) -> Tensor:
        said = self.passes < len(self.script) and self.script[self.passes]
        self.passes += 1
        z = torch.zeros(len(images), CLASSES)
        z[:, LABEL if said else 0] = 9.0
        return z + 0 * images.flatten(1).sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("script", "passes"),
    [
        ([True] * 9, 9 + 25),  # λ is raised at step 9 and lowered at step 14.
        ([True] * 8, 100),  # λ is never raised.
        ([False] * 30 + [True] * 9, 39 + 25),
        ([True] * 9 + [False] * 24 + [True], 34 + 25),  # The mask is smaller in step 34.
        ([], 100),
    ],
)
def test_the_search_stops_after_25_steps_without_a_smaller_mask(
    script: list[bool], passes: int
) -> None:
    """It does not stop before λ has been raised and lowered."""
    images, labels = noise(4)
    given = context(images, labels, clean=(images, labels), classes=CLASSES)
    network = Scripted(script)
    reverse(network, given, LABEL, Search(100, 1, 4))
    assert network.passes == passes


def test_the_anomaly_index_follows_the_paper() -> None:
    """Section IV.B: |size - median| / (1.4826 MAD). Only classes with small masks are flagged."""
    rng = np.random.default_rng(3)
    for n in (5, 10, 43):
        sizes = rng.gamma(4, 10, n)
        mad = 1.4826 * np.median(np.abs(sizes - np.median(sizes)))
        flagged = [y for y in range(n) if sizes[y] <= np.median(sizes)
                   and np.abs(sizes[y] - np.median(sizes)) / mad > 1]  # fmt: skip
        index = anomaly(sizes.tolist())
        assert [y for y in range(n) if index[y] > 1] == flagged
        assert np.abs(index) == pytest.approx(np.abs(sizes - np.median(sizes)) / mad)


def test_20_percent_of_the_images_are_patched_and_keep_their_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Section VI.B: one epoch over clean images, 20 % of them with the trigger."""
    images, labels = noise(60)
    images.clamp_(max=200)
    seen: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(neural_cleanse, "train", lambda _, batches, __: seen.extend(batches))
    given = context(images, labels, clean=(images, labels))
    trigger = Reversed(torch.ones(1, 2, 3), torch.full((2, 2, 3), 250.0))
    NeuralCleanse(batch_size=30)._unlearn(nn.Identity(), given, trigger)
    assert [len(shown) for shown, _ in seen] == [30, 30]
    known = {
        tuple(image.flatten().tolist()): int(y) for image, y in zip(images, labels, strict=True)
    }
    for shown, told in seen:
        patched = (shown.flatten(1) == 250).all(dim=1)
        assert int(patched.sum()) == 6
        others = shown[~patched].flatten(1).int().tolist()
        assert [known[tuple(row)] for row in others] == told[~patched].tolist()


def test_defaults_except_the_length_of_the_search_are_those_of_the_authors() -> None:
    cleanse = NeuralCleanse()
    assert cleanse.search.batch_size == 32
    assert (cleanse.threshold, cleanse.patched_ratio, cleanse.epochs) == (2.0, 0.2, 1)
