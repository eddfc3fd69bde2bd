"""Evaluation, compared with slow loops and with networks whose predictions are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.attacks.plan import PoisonSpec, asr_test_set
from backdoor_lab.core.errors import DivergedError
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.training import evaluate
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.evaluate import (
    accuracy,
    attack_success,
    channel_stats,
    extract,
    predictions,
)
from backdoor_lab.training.train import fit, new_classifier
from tests.helpers.cells import CPU, job, toy_set

TRIGGER = Pixel(position=(0, 0), color=255)


def noise(n: int = 30, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 200, (n, channels, 6, 5), generator=generator, dtype=torch.uint8)


class Says(nn.Module):
    """A network that predicts the classes that a given function of the raw images returns."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot(self.answer(images), 4).float()


def classifier(answer: Any) -> Classifier:
    mean, std = torch.zeros(3), torch.ones(3)
    return Classifier(Says(answer), job().recipe, mean=mean, std=std, total_steps=1)


def labelled(n: int = 30) -> LabeledImages:
    """Test images whose label is stored in their last pixel."""
    images, labels = noise(n), torch.arange(n) % 4
    images[:, :, -1, -1] = labels[:, None].to(torch.uint8)
    return LabeledImages(images, labels, tuple("abcd"))


def perfect(images: Tensor) -> Tensor:
    return images[:, 0, -1, -1].long()


@pytest.mark.parametrize("channels", [1, 3])
def test_channel_statistics_equal_those_of_numpy(channels: int) -> None:
    images = noise(40, channels)
    mean, std = channel_stats(images)
    values = images.numpy().astype(np.float64)
    np.testing.assert_allclose(mean, values.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(std, values.std(axis=(0, 2, 3)), rtol=1e-6)
    # A channel without any variance is not divided by zero.
    assert (
        channel_stats(torch.zeros(2, channels, 3, 3, dtype=torch.uint8))[1].tolist()
        == [1.0] * channels
    )


def test_the_network_gets_normalized_images_in_training_and_evaluation() -> None:
    seen: list[Tensor] = []

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(192, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            logits: Tensor = self.fc(x.flatten(1))
            return logits

    asked = job(toy_set(16), epochs=1, batch_size=16)
    module = Classifier(
        Probe(), asked.recipe, mean=asked.mean, std=asked.std, total_steps=1
    )  # fmt: skip
    module(asked.training.base)
    predictions(module, asked.training.base, CPU)
    attack_success(module, LabeledImages(asked.training.base, asked.training.labels, ("a", "b")),
                   torch.arange(16), lambda x: x, torch.zeros(16), CPU)  # fmt: skip
    extract(module, asked.training, "fc", CPU)
    expected = asked.training.base.numpy().astype(np.float64)
    expected = (expected - expected.mean(axis=(0, 2, 3), keepdims=True)) / expected.std(
        axis=(0, 2, 3), keepdims=True
    )
    assert len(seen) == 4
    for x in seen:
        np.testing.assert_allclose(x.numpy(), expected, atol=1e-4)


def test_accuracy_is_the_fraction_of_correct_predictions() -> None:
    predicted, labels = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 2, 2, 2])
    assert accuracy(predicted, labels) == 0.75


def test_predictions_and_attack_success_equal_those_of_naive_loops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = fit(job(epochs=1), CPU)
    training = toy_set()
    test = LabeledImages(training.base, training.labels, training.classes)
    where = asr_test_set(test.labels, PoisonSpec(1, None, 0.1))
    with torch.inference_mode():
        one_by_one = [int(module(image[None]).argmax()) for image in test.images]
        hits = [int(module(TRIGGER(test.images[i][None])).argmax()) == 1 for i in where]
    for chunk in (7, 512):
        monkeypatch.setattr(evaluate, "CHUNK", chunk)
        assert predictions(module, test.images, CPU).tolist() == one_by_one
        assert attack_success(
            module, test, where, TRIGGER, torch.ones_like(test.labels), CPU
        ) == sum(hits) / len(hits)


def test_attack_success_is_one_for_constant_target_predictions_and_zero_for_correct_ones() -> None:
    test = labelled()
    for target in range(4):
        where = asr_test_set(test.labels, PoisonSpec(target, None, 0.1))
        assert bool((test.labels[where] != target).all())
        assert len(where) == int((test.labels != target).sum())
        always = classifier(lambda x, t=target: torch.full((len(x),), t))
        assert (
            attack_success(always, test, where, TRIGGER, torch.full_like(test.labels, target), CPU)
            == 1
        )
        clean = classifier(perfect)
        assert accuracy(predictions(clean, test.images, CPU), test.labels) == 1
        assert (
            attack_success(clean, test, where, TRIGGER, torch.full_like(test.labels, target), CPU)
            == 0
        )
        backdoored = classifier(
            lambda x, t=target: torch.where(x[:, 0, 0, 0] == 255, t, perfect(x))
        )
        assert (
            attack_success(
                backdoored, test, where, TRIGGER, torch.full_like(test.labels, target), CPU
            )
            == 1
        )
        assert accuracy(predictions(backdoored, test.images, CPU), test.labels) == 1


def test_attack_success_is_measured_on_the_images_that_the_asr_on_option_selects() -> None:
    test, clean = labelled(40), classifier(perfect)
    everything = PoisonSpec(2, None, 0.1, asr_on="all")
    where = asr_test_set(test.labels, everything)
    # With target-class images included, a clean network reaches the share of one class.
    assert attack_success(clean, test, where, TRIGGER, torch.full_like(test.labels, 2), CPU) == 0.25
    one = PoisonSpec(2, 3, 0.1, poison_from="source", asr_on="source")
    assert test.labels[asr_test_set(test.labels, one)].tolist() == [3] * 10
    assert (
        attack_success(clean, test, torch.arange(0), TRIGGER, torch.full_like(test.labels, 2), CPU)
        is None
    )


def test_all_to_all_success_requires_the_next_class() -> None:
    """A network that predicts the class after the true one for every triggered image has ASR 1. A
    network that always predicts the same class succeeds only on the class before it."""
    test = labelled()
    words = {"label_mode": "all_to_all", "poison_from": "all", "asr_on": "all"}
    plan = PoisonSpec(0, None, 0.1, **words)
    where, wanted = asr_test_set(test.labels, plan), plan.wanted(test.labels, 4)
    shifting = classifier(
        lambda x: torch.where(x[:, 0, 0, 0] == 255, (perfect(x) + 1) % 4, perfect(x))
    )
    assert attack_success(shifting, test, where, TRIGGER, wanted, CPU) == 1
    always = classifier(lambda x: torch.full((len(x),), 2))
    share = float((wanted == 2).double().mean())
    assert attack_success(always, test, where, TRIGGER, wanted, CPU) == share


def test_evaluation_does_not_modify_the_images() -> None:
    test = labelled()
    before = test.images.clone()
    attack_success(
        classifier(perfect), test, torch.arange(30), TRIGGER, torch.ones_like(test.labels), CPU
    )
    assert torch.equal(test.images, before)


def test_evaluation_uses_eval_mode_and_no_augmentation() -> None:
    asked = job(epochs=1, crop_padding=3, flip=True, cutout=4)
    module = fit(asked, CPU).train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    first = extract(module, asked.training, "penultimate", CPU)
    assert torch.equal(first.values, extract(module, asked.training, "penultimate", CPU).values)
    # Alone or in a batch: batch statistics are neither used nor updated.
    module.eval()
    with torch.inference_mode():
        alone = module.net((asked.training.base[:1] - module.mean) / module.std)
        together = module(asked.training.base)[:1]
    torch.testing.assert_close(alone, together)
    assert all(torch.equal(value, state[n]) for n, value in module.state_dict().items())
    assert first.values.shape == (48, 32)
    assert first.values.dtype == torch.float32
    assert torch.equal(first.labels, asked.training.labels)


def test_features_are_in_the_order_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = job()
    module = new_classifier(asked, CPU).eval()
    whole = extract(module, asked.training, "layer4", CPU).values
    monkeypatch.setattr(evaluate, "CHUNK", 7)
    torch.testing.assert_close(extract(module, asked.training, "layer4", CPU).values, whole)
    part = asked.training.keep(torch.arange(48) % 5 == 0, "")
    torch.testing.assert_close(extract(module, part, "layer4", CPU).values, whole[::5])


def test_non_finite_features_raise_diverged_error() -> None:
    asked = job()
    module = new_classifier(asked, CPU)
    with torch.no_grad():
        module.get_parameter("net.layer4.1.bn2.bias")[2] = float("nan")
    with pytest.raises(
        DivergedError, match="features of 48 examples are not finite, the first at index 0"
    ):
        extract(module, asked.training, "penultimate", CPU)
