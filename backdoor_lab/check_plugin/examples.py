"""Small features and networks on which the defenses of the contract tests run: three classes, with
outliers in one of them."""

from __future__ import annotations

from dataclasses import replace

from backdoor_lab.core.lazy import Tensor, nn, torch
from backdoor_lab.core.types import Features, FilterResult, LabeledImages
from backdoor_lab.defenses.base import DefenderKnowledge, Defense, OracleControl
from backdoor_lab.defenses.context import DefenseContext, TrainingHyperparameters

CLASSES = ("a", "b", "c")
EPSILON = 6


def clean(d: int = 5, n: int = 60) -> Features:
    """Returns held-out examples of the same classes as `planted`, without outliers."""
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(9))
    return Features(values, torch.arange(n) % 3)


def known() -> DefenderKnowledge:
    """Returns what a defender knows of the `planted` features."""
    return DefenderKnowledge(CLASSES, target=1, epsilon=EPSILON, seed=5, clean=clean())


def planted(n: int = 20, d: int = 5) -> Features:
    """Returns features of `n` examples per class. The last `EPSILON` examples, all of class 1, are
    shifted."""
    values = torch.randn(3 * n, d, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(3 * n) % 3
    labels[-EPSILON:] = 1
    values[-EPSILON:] += 8.0
    return Features(values, labels)


def truth(n: int) -> Tensor:
    """Returns which of `n` planted examples are outliers: bool (n,)."""
    return torch.arange(n) >= n - EPSILON


def judged(
    defense: Defense | OracleControl, features: Features, knowledge: DefenderKnowledge | None = None
) -> FilterResult:
    """Returns the result of a defense, computed as in the filter stage. `knowledge` defaults to
    `known`."""
    if isinstance(defense, OracleControl):
        return defense.judge(truth(len(features.labels)))
    knowledge = knowledge or known()
    context = context_of(features, knowledge) if "context" in defense.requires() else None
    if context is not None and "clean images" not in defense.requires():
        context = replace(context, clean=None)
    if "clean" not in defense.requires():
        knowledge = replace(knowledge, clean=None)
    return defense(features, replace(knowledge, context=context))


class RowwiseLinear(nn.Linear):
    """A linear layer that gives equal rows equal results at any position in a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None, :] * self.weight).sum(dim=2) + self.bias


class FeatureReader(nn.Module):
    """A network that reads one row of features from an image."""

    def __init__(self, d: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first, self.last = RowwiseLinear(d, 8), RowwiseLinear(8, len(CLASSES))
        self.norm = nn.BatchNorm1d(8)
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(images.flatten(1).double() / 16 - 8)
        said: Tensor = self.last(self.norm(x).relu())
        return said


def pictures(values: Tensor) -> Tensor:
    """Returns rows of features as gray images uint8 (n, 1, 1, d)."""
    bright = (values.double().nan_to_num(0) * 16 + 128).clamp(0, 255)
    return bright.to(torch.uint8)[:, None, None, :]


def context_of(features: Features, knowledge: DefenderKnowledge) -> DefenseContext:
    """Returns the context of a defense that needs networks. Its images contain the features as
    pixels."""
    assert knowledge.clean is not None
    images, d = pictures(features.values), features.values.shape[1]
    held_out = pictures(knowledge.clean.values)
    return DefenseContext(
        classes=knowledge.classes,
        labels=features.labels,
        images=lambda where, generator: images[where],
        augment=lambda found, generator: found,
        network=lambda: FeatureReader(d, 1),
        fresh=lambda seed: FeatureReader(d, 2 + seed),
        hyperparameters=TrainingHyperparameters(
            epochs=2, batch_size=16, lr=0.05, momentum=0.9, weight_decay=0.0
        ),
        seed=knowledge.seed,
        clean=LabeledImages(held_out, knowledge.clean.labels, knowledge.classes),
    )
