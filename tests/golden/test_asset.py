"""ASSET, compared with NumPy code written from the authors' notebook: both losses, Adam's updates,
the network that distinguishes clean images, adjusted outlyingness and the threshold for the losses.

`outlyingness` and `threshold` also agreed with the authors' functions (`adjusted_outlyingness`,
`get_t` of new_poi_util.py at c050590), which were run by hand on random arrays.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.defenses.asset import (
    ASSET,
    Part,
    distinguished,
    medcouple,
    new_mlp,
    offset,
    outlyingness,
    threshold,
)
from backdoor_lab.numerics.layers import before_pooling
from backdoor_lab.training.models import build_model
from tests.helpers.contexts import context
from tests.helpers.mutations import Mutation
from tests.helpers.two_layers import Precise, TwoLayers, precise, softmax

FILE = "defenses/asset.py"
MUTATIONS = [
    Mutation(
        FILE, "network(clean).var(dim=1).mean()", "-network(clean).var(dim=1).mean()",
        "the variance of clean logits increases",
    ),
    Mutation(
        FILE, "network(clean).var(dim=1).mean()", "network(clean).var(dim=0).mean()",
        "the variance is over images, not classes",
    ),
    Mutation(FILE, "loss = -F.cross_entropy", "loss = F.cross_entropy",
             "the loss of outliers decreases"),
    Mutation(FILE, "descend(unlearning, loss", "descend(flattening, loss",
             "both losses share the state of Adam"),
    Mutation(FILE, "OUTLYING = 2.0", "OUTLYING = 1.0", "more images count as outliers"),
    Mutation(FILE, "> OUTLYING", "<= OUTLYING", "images that are not outliers are unlearned"),
    Mutation(FILE, "(-4, 3) if skewness", "(-3, 4) if skewness",
             "the exponents of the whiskers are swapped"),
    Mutation(FILE, "reach = 1.5 *", "reach = 3 *", "whiskers are too long"),
    Mutation(
        FILE, "((inspected, 1.0), (clean, 0.0))", "((inspected, 0.0), (clean, 1.0))",
        "the targets 0 and 1 are swapped",
    ),
    Mutation(
        FILE, "((inspected, 1.0), (clean, 0.0))", "((clean, 0.0), (inspected, 1.0))",
        "the order of the two steps is swapped",
    ),
    Mutation(FILE, "ITERATIONS = 100", "ITERATIONS = 50",
             "half as many iterations"),
    Mutation(FILE, "attacked.train()", "attacked.eval()", "running statistics are used"),
    Mutation(FILE, "module.relu = nn.Identity()", "pass", "the first ReLU of a ResNet is kept"),
    Mutation(FILE, "attacked = without_first_relu(attacked)", "pass",
             "features come from the network as it is"),
    Mutation(FILE, "DENSITY = 1e-6", "DENSITY = 1e-3",
             "eps is the default of the notebook's function"),
    Mutation(FILE, "lower = lower[lower <=", "lower = lower[lower >=", "the upper half is fitted"),
    Mutation("numerics/layers.py", "and not pools", "", "features are taken after pooling"),
    Mutation(FILE, "network = context.fresh(0)", "network = context.network()",
             "the new network starts with the attacked weights"),
]  # fmt: skip
CLASSES, PIXELS, LR = 3, 12, 1e-2


class Adam:
    """Adam (Kingma and Ba 2015, Algorithm 1) for a list of arrays."""

    def __init__(self, lr: float) -> None:
        self.lr, self.t = lr, 0
        self.m: list[np.ndarray] = []
        self.v: list[np.ndarray] = []

    def step(self, values: list[np.ndarray], gradients: list[np.ndarray]) -> None:
        """Changes `values` in place."""
        self.t += 1
        if not self.m:
            self.m = [np.zeros_like(value) for value in values]
            self.v = [np.zeros_like(value) for value in values]
        for i, gradient in enumerate(gradients):
            self.m[i] = 0.9 * self.m[i] + 0.1 * gradient
            self.v[i] = 0.999 * self.v[i] + 0.001 * gradient**2
            m, v = self.m[i] / (1 - 0.9**self.t), self.v[i] / (1 - 0.999**self.t)
            values[i] -= self.lr * m / (np.sqrt(v) + 1e-8)


def mlp_by_numpy(mlp: nn.Module, inspected: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """The outputs for `inspected` of a network with two hidden layers, ReLU and a sigmoid. It is
    trained on the squared error for 100 rounds of two steps: one towards 1 for `inspected`, one
    towards 0 for `clean`, each with its own Adam."""
    values = [each.detach().double().numpy().copy() for each in mlp.parameters()]

    def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = np.maximum(x @ values[0].T + values[1], 0)
        second = np.maximum(first @ values[2].T + values[3], 0)
        return first, second, 1 / (1 + np.exp(-(second @ values[4].T + values[5])))

    adams = Adam(1e-4), Adam(1e-4)
    for _ in range(100):
        for adam, x, wanted in zip(adams, (inspected, clean), (1, 0), strict=True):
            first, second, y = forward(x)
            to_z = 2 * (y - wanted) / len(x) * y * (1 - y)
            to_second = to_z @ values[4] * (second > 0)
            to_first = to_second @ values[2] * (first > 0)
            adam.step(values, [
                to_first.T @ x, to_first.sum(axis=0), to_second.T @ first, to_second.sum(axis=0),
                to_z.T @ second, to_z.sum(axis=0),
            ])  # fmt: skip
    return np.asarray(forward(inspected)[2][:, 0])


def medcouple_by_numpy(x: np.ndarray) -> float:
    """The median of h(a, b) = ((b - m) - (m - a)) / (b - a) over all a <= m <= b. If a and b both
    equal m, h is the sign of i + j - (k - 1), where a and b are the i-th and j-th of the k values
    equal to m."""
    m = np.median(x)
    k = int((x == m).sum())
    pairs = [(a, b) for a in x[x <= m] for b in x[x >= m] if a != b]
    kernel = [((b - m) - (m - a)) / (b - a) for a, b in pairs]
    kernel += [float(np.sign(i + j - (k - 1))) for i in range(k) for j in range(k)]
    return float(np.median(kernel))


def outlyingness_by_numpy(x: np.ndarray) -> np.ndarray:
    """The distance of each value from the median, divided by the distance from the median to the
    adjusted whisker on the same side. The median is the smaller of two middle values. For a
    positive medcouple MC, the whiskers are 1.5 IQR e^(-4 MC) below the quartiles and 1.5 IQR e^(3
    MC) above them, otherwise 1.5 IQR e^(-3 MC) and 1.5 IQR e^(4 MC)."""
    middle = np.sort(x)[(len(x) - 1) // 2]
    q1, q3 = np.percentile(x, [25, 75])
    mc = medcouple_by_numpy(x)
    w1 = q1 - 1.5 * np.exp((-4 if mc > 0 else -3) * mc) * (q3 - q1)
    w2 = q3 + 1.5 * np.exp((3 if mc > 0 else 4) * mc) * (q3 - q1)
    return np.array([(s - middle) / (w2 - middle) if s > middle else (middle - s) / (middle - w1)
                     for s in x])  # fmt: skip


def noise(n: int, seed: int, white: int = 0) -> Tensor:
    """Gray images. In the last `white` images, two thirds of the pixels are white."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(80, 120, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    images[n - white :, :, :2] = 255
    return images


def two_parts() -> list[Part]:
    """Two batches, in each of which the two white images are outliers."""
    labels = torch.arange(30) % CLASSES
    return [(noise(30, seed, 2), labels, noise(22, 100 + seed), seed) for seed in (3, 11)]


def attacked_features(attacked: Precise, images: Tensor) -> np.ndarray:
    """The features after the ReLU. Batch normalization uses the statistics of the batch."""
    first, norm = attacked.body[0], attacked.body[1]  # type: ignore[index]
    w, b, gamma, beta = (
        each.detach().numpy() for each in (first.weight, first.bias, norm.weight, norm.bias)
    )
    inner = images.flatten(1).double().numpy() / 255 @ w.T + b
    standard = (inner - inner.mean(axis=0)) / np.sqrt(inner.var(axis=0) + norm.eps)
    return np.asarray(np.maximum(standard * gamma + beta, 0))


def test_updates_on_two_batches_follow_the_authors_notebook() -> None:
    """There are two updates per batch, each with its own Adam. The first decreases the variance of
    the logits of each clean image (the sum of squares is divided by classes - 1). The second
    increases the cross-entropy of the outliers in both tails."""
    network, attacked = precise(PIXELS, CLASSES, 3), precise(PIXELS, CLASSES, 5, norm=True)
    attacked.body[1].running_mean.fill_(2.0)  # type: ignore[index]
    layers = TwoLayers.of(network)
    adams = Adam(LR), Adam(LR)
    for images, labels, clean, seed in two_parts():
        known = clean.flatten(1).double().numpy() / 255
        z = layers.logits(known)
        slope = 2 * (z - z.mean(axis=1, keepdims=True)) / (CLASSES - 1) / len(z)
        adams[0].step(layers.values(), layers.back(known, slope)[0])
        inspected = attacked_features(attacked, images)
        mlp = new_mlp(torch.from_numpy(inspected), seed)
        told = mlp_by_numpy(mlp, inspected, attacked_features(attacked, clean))
        marked = outlyingness_by_numpy(told) > 2
        assert marked.sum() == 2
        x, wanted = images.flatten(1).double().numpy()[marked] / 255, labels.numpy()[marked]
        slope = (softmax(layers.logits(x)) - np.eye(CLASSES)[wanted]) / len(x)
        adams[1].step(layers.values(), [-each for each in layers.back(x, slope)[0]])
    offset(network, attacked, two_parts(), LR)
    for found, expected in zip(network.body.parameters(), layers.values(), strict=True):
        assert found.detach().numpy() == pytest.approx(expected, abs=1e-6)
    assert not network.training


def test_the_network_that_separates_clean_from_inspected_images_follows_the_authors_notebook() -> (
    None
):
    rng = np.random.default_rng(0)
    inspected, clean = rng.normal(size=(20, 7)), rng.normal(0.5, 1, size=(15, 7))
    mlp = new_mlp(torch.from_numpy(inspected), 5)
    assert [tuple(each.shape) for each in mlp.parameters()] == [
        (128, 7), (128,), (128, 128), (128,), (1, 128), (1,),
    ]  # fmt: skip
    expected = mlp_by_numpy(mlp, inspected, clean)
    found = distinguished(mlp, torch.from_numpy(inspected), torch.from_numpy(clean))
    assert found.numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("n", [40, 41, 64])
@pytest.mark.parametrize("power", [1.0, 6.0, 0.1, -0.2])
def test_adjusted_outlyingness_follows_its_definition(n: int, power: float) -> None:
    """The samples have positive or negative skewness, and some have ties at the median."""
    x = np.random.default_rng(n).uniform(0.1, 1, n) ** power
    tied = np.concatenate([x[:15], np.repeat(np.median(x), 7)])
    for values in (x, tied, np.sort(-x)):
        assert medcouple(torch.from_numpy(values)) == pytest.approx(medcouple_by_numpy(values))
        found = outlyingness(torch.from_numpy(values)).numpy()
        assert found == pytest.approx(outlyingness_by_numpy(values))


def test_the_medcouple_matches_values_computed_by_hand() -> None:
    """The median of 0, 1, 2, 7 is m = 1.5. The medcouple of symmetric values is 0."""
    assert medcouple(torch.tensor([3.0, 1, 2, 4, 5]).double()) == 0
    # Pairs (0, 2), (0, 7), (1, 2), (1, 7): -1/2, 4/7, 0, 5/6.
    assert medcouple(torch.tensor([0.0, 1, 2, 7]).double()) == pytest.approx(2 / 7)


@pytest.mark.parametrize("n", [50, 51])
def test_the_threshold_follows_the_authors_notebook(n: int) -> None:
    """A normal distribution is fitted to the lower half of the losses. As in scikit-learn, 1e-6 is
    added to the variance. The notebook's parameter eps is also 1e-6."""
    losses = np.random.default_rng(n).gamma(2, 1, n)
    half = np.sort(losses)[(n - 1) // 2]
    lower = losses[losses <= half]
    sigma = np.sqrt(lower.var() + 1e-6)
    expected = sigma * np.sqrt(-2 * np.log(1e-6) * sigma * np.sqrt(2 * np.pi)) + lower.mean()
    assert threshold(torch.from_numpy(losses)) == pytest.approx(expected)


class Pooled(nn.Module):
    """A convolution, average pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool = nn.Conv2d(1, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1)
        self.last = nn.Linear(2, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        said: Tensor = self.last(self.pool(self.first(images.float())).flatten(1))
        return said


def test_features_are_outputs_of_the_last_layer_before_pooling() -> None:
    network, images = Pooled(), noise(5, 1)
    expected = network.first(images.float()).flatten(1)
    assert torch.equal(before_pooling(network, images), expected)
    assert not network.first._forward_hooks


def test_resnet_features_are_computed_without_the_first_relu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The notebook's modules are the first convolution, its batch normalization and four stages.
    The attacked network itself keeps its ReLU and its running statistics."""
    config = {"name": "resnet18", "width": 2, "stem": "cifar"}
    attacked = build_model(config, channels=1, classes=CLASSES, seed=5)
    before = copy.deepcopy(attacked.state_dict())
    images, known = (noise(n, seed).float() / 255 for n, seed in ((12, 1), (9, 2)))
    seen: list[Tensor] = []

    def outputs(_: nn.Module, inspected: Tensor, clean: Tensor) -> Tensor:
        seen.extend((inspected, clean))
        return torch.zeros(len(inspected)).index_fill(0, torch.tensor([0, 1]), 1)

    monkeypatch.setattr("backdoor_lab.defenses.asset.distinguished", outputs)
    victim = build_model(config, channels=1, classes=CLASSES, seed=6)
    offset(victim, attacked, [(images, torch.arange(12) % CLASSES, known, 0)], LR)
    assert all(torch.equal(attacked.state_dict()[name], each) for name, each in before.items())
    parts = dict(attacked.named_children())
    names = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    listed = nn.Sequential(*(parts[name] for name in names), nn.Flatten()).train()
    for found, shown in zip(seen, (images, known), strict=True):
        assert torch.allclose(found, listed(shown), atol=1e-5)


def test_scores_are_losses_of_a_new_network_trained_for_one_epoch() -> None:
    """One batch contains all images. Images whose loss reaches the threshold are flagged."""
    images, labels = noise(30, 3, 2), torch.arange(30) % CLASSES
    new, attacked = precise(PIXELS, CLASSES, 3), precise(PIXELS, CLASSES, 5, norm=True)
    given = context(images, labels, network=attacked, fresh=lambda _: new,
                    clean=(noise(22, 103), labels[:22]))  # fmt: skip
    layers = TwoLayers.of(new)
    where = torch.arange(4, 30)
    rating = ASSET(lr=LR).score_images(given, where)
    assert not np.allclose(TwoLayers.of(new).w1, layers.w1)
    x = images.flatten(1).double().numpy() / 255
    p = softmax(TwoLayers.of(new).logits(x))
    losses = -np.log(p[np.arange(30), labels.numpy()])
    assert rating.scores.numpy() == pytest.approx(losses[4:])
    assert rating.flagged is not None
    bound = threshold(torch.from_numpy(losses))
    assert rating.flagged.tolist() == (losses >= bound)[4:].tolist()


def test_an_epoch_contains_each_image_once_and_no_batch_repeats_a_clean_image() -> None:
    images, labels = noise(30, 3, 2), torch.arange(30) % CLASSES
    images[:, 0, 2, 3] = torch.arange(30)
    clean = images[:22]
    given = context(images, labels, clean=(clean, labels[:22]))
    parts = list(ASSET(epochs=2, batch_size=8).batches(given))
    assert [len(part[0]) for part in parts] == [8, 8, 8, 6] * 2
    for epoch in (parts[:4], parts[4:]):
        shown = torch.cat([part[0] for part in epoch])[:, 0, 2, 3]
        assert sorted(shown.tolist()) == list(range(30))
    assert all(len(part[2][:, 0, 2, 3].unique()) == 8 for part in parts)
    assert len({part[3] for part in parts}) == 8


def test_defaults_are_those_of_the_authors() -> None:
    asset = ASSET()
    assert (asset.epochs, asset.batch_size, asset.lr) == (1, 512, 1e-4)
