"""Features from elsewhere than the penultimate layer: pooled layers and the bottleneck of an
autoencoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from backdoor_lab.attacks.pixel import Pixel
from backdoor_lab.core.errors import ConfigError, DivergedError
from backdoor_lab.numerics.layers import layer_of
from backdoor_lab.training.autoencoder import (
    DIMS,
    Autoencoder,
    encode,
    new_autoencoder,
    train_autoencoder,
)
from backdoor_lab.training.evaluate import extract
from backdoor_lab.training.train import new_classifier
from tests.helpers.cells import CPU, job, toy_set, training_set


def values(layer: str) -> Tensor:
    found: Tensor = extract(new_classifier(job(), CPU).eval(), toy_set(), layer, CPU).values
    return found


@pytest.mark.parametrize(("layer", "positions"), [("layer1", 64), ("layer2", 16), ("layer4", 1)])
def test_a_pooled_layer_gives_the_mean_over_positions(layer: str, positions: int) -> None:
    flat, pooled = values(layer), values(f"{layer}:pool")
    channels = pooled.shape[1]
    assert flat.shape[1] == channels * positions
    assert torch.allclose(flat.unflatten(1, (channels, -1)).mean(dim=2), pooled, atol=1e-6)


def test_the_pooled_last_stage_equals_the_penultimate_features() -> None:
    """The head of a ResNet pools its last stage in the same way."""
    assert torch.allclose(values("layer4:pool"), values("penultimate"), atol=1e-6)


def test_pooling_a_layer_without_spatial_positions_changes_nothing() -> None:
    assert torch.equal(values("fc:pool"), values("fc"))


@pytest.mark.parametrize("layer", ["layer9:pool", ":pool", "layer4:max", ""])
def test_the_error_for_an_unknown_layer_lists_examples(layer: str) -> None:
    with pytest.raises(ConfigError, match=r"`protocol.layer`.*layer4:pool, .*autoencoder"):
        layer_of(new_classifier(job(), CPU).net, layer)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 9), (3, 5, 13)])
def test_an_autoencoder_accepts_any_image_size(shape: tuple[int, int, int]) -> None:
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    net = Autoencoder(shape, 0)
    assert net.encode(images).shape == (2, DIMS)
    assert net(images).shape == (2, *shape)


def test_autoencoder_training_reduces_the_error_and_depends_only_on_the_seed() -> None:
    training = toy_set()
    images = training.base.float() / 255

    def error(net: Autoencoder) -> float:
        return float((net(training.base) - images).square().mean())

    torch.manual_seed(1)
    first = train_autoencoder(training, 5, CPU.device)
    torch.manual_seed(2)
    again = train_autoencoder(training, 5, CPU.device)
    assert error(first) < 0.5 * error(new_autoencoder(training, 5))
    codes = encode(first, training, CPU.device)
    assert torch.equal(codes, encode(again, training, CPU.device))
    other = encode(train_autoencoder(training, 6, CPU.device), training, CPU.device)
    assert not torch.equal(codes, other)
    assert codes.shape == (len(training), DIMS)
    assert codes.dtype == torch.float32


def test_the_autoencoder_does_not_depend_on_labels() -> None:
    training = toy_set()
    turned = training_set(training.base, 1 - training.labels)
    one, other = (
        encode(train_autoencoder(each, 5, CPU.device), each, CPU.device)
        for each in (training, turned)
    )
    assert torch.equal(one, other)


def test_the_autoencoder_encodes_images_with_triggers_applied_after_augmentation() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    training = training_set(
        images, torch.zeros(4).long(), rows=images[:1], index=torch.tensor([0, 1, 4]),
        late_trigger=Pixel(),
    )  # fmt: skip
    found = training.shown(torch.tensor([0, 2]))
    assert not found[0].any()
    assert torch.equal(found[1], Pixel()(images[:1])[0])


def test_a_non_finite_autoencoder_loss_raises_diverged_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("backdoor_lab.training.autoencoder.RATE", 1e30)
    with pytest.raises(DivergedError, match=r"autoencoder's loss at epoch \d+ is (nan|inf)"):
        train_autoencoder(toy_set(), 0, CPU.device)
