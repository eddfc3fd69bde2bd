"""Model repairs on hand-made networks whose backdoor is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.defenses.abl_unlearning import ABLUnlearning
from backdoor_lab.defenses.anp import ANP, drawn
from backdoor_lab.defenses.d_br import DBR, SETTINGS, sensitivity
from backdoor_lab.defenses.fine_pruning import FinePruning, dormant
from backdoor_lab.defenses.neural_cleanse import NeuralCleanse, Reversed, anomaly
from backdoor_lab.defenses.passes import Passes
from backdoor_lab.numerics.layers import head
from tests.helpers.contexts import HYPERPARAMETERS, Small, context, hidden, linear, trained


def four_channels() -> Small:
    """A network with one channel per pixel. The first two channels separate the classes, the third
    forces class 1, and the fourth is not connected."""
    first, last = nn.Linear(4, 4), nn.Linear(4, 2)
    with torch.no_grad():
        first.weight.copy_(torch.eye(4))
        first.bias.zero_()
        last.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 50.0, 0]]))
        last.bias.copy_(torch.tensor([0.0, 0.1]))
    return Small(nn.Sequential(first, nn.ReLU(), last)).eval()


def two_bright(n: int = 40) -> tuple[Tensor, Tensor]:
    """Images of four pixels. Pixel y is bright for class y, and pixel 0 is darker than pixel 1. The
    last two pixels are dark."""
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 4, dtype=torch.uint8)
    images[labels == 0, 0] = 150
    images[labels == 1, 1] = 250
    return images.view(n, 1, 2, 2), labels


def test_fine_pruning_removes_exactly_the_dormant_channels() -> None:
    images, labels = two_bright()
    given = context(images, labels, network=four_channels(), clean=(images, labels))
    network, notes = FinePruning(max_accuracy_drop=0.0, epochs=0).repair(given)
    assert notes == {"pruned": 2, "of": 4}
    assert head(network).weight.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    triggered = images.clone()
    triggered.view(-1, 4)[:, 2] = 255
    assert bool((given.network()(triggered).argmax(dim=1) == 1).all())
    assert torch.equal(network(triggered).argmax(dim=1), labels)


def test_pruned_channels_stay_pruned_in_fine_tuning() -> None:
    images, labels = two_bright()
    given = context(images, labels, network=four_channels(), clean=(images, labels))
    network, _ = FinePruning(max_accuracy_drop=0.0, epochs=3, lr=0.1).repair(given)
    assert head(network).weight[:, 2:].abs().max() == 0
    assert not torch.equal(head(network).weight, head(four_channels()).weight)


def test_pruning_stops_before_accuracy_drops_too_far() -> None:
    """Half of the images need channel 0, which is the least active of the useful channels. One
    channel always remains."""
    network = four_channels()
    images, labels = two_bright()
    values = images.view(-1, 4).double()
    last = head(network)
    assert dormant(values, last, labels, 0.0).sort().values.tolist() == [2, 3]
    assert dormant(values, last, labels, 0.49).sort().values.tolist() == [2, 3]
    # With this limit, channel 0 is pruned too. The remaining channel cannot separate the classes.
    assert dormant(values, last, labels, 0.6).sort().values.tolist() == [0, 2, 3]


def trojan(classes: int = 6, pixels: int = 25) -> Small:
    """A network in which each class responds to three pixels that no other class uses. Class 2 also
    responds, much more strongly, to the last pixel."""
    network = linear(pixels, classes)
    with torch.no_grad():
        network.body.weight.zero_()
        network.body.bias.zero_()
        for y in range(classes):
            # Real classes also have weights of different sizes.
            network.body.weight[y, 3 * y : 3 * y + 3] = 6.0 + 0.4 * y
        network.body.weight[2, -1] = 80.0
    return network


def six_classes(n: int = 60) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 6
    images = torch.zeros(n, 25, dtype=torch.uint8)
    for k in range(3):
        images[torch.arange(n), 3 * labels + k] = 200
    return images.view(n, 1, 5, 5), labels


def test_neural_cleanse_finds_and_unlearns_the_target_and_its_trigger() -> None:
    images, labels = six_classes()
    given = context(images, labels, network=trojan(), clean=(images, labels))
    cleanse = NeuralCleanse(steps=60, batches_per_step=5, epochs=40, lr=0.5, patched_ratio=0.5)
    network, notes = cleanse.repair(given)
    assert notes["target"] == "c"
    sizes, index = notes["sizes"], notes["indices"]
    assert isinstance(sizes, dict)
    assert isinstance(index, dict)
    assert sizes["c"] == min(sizes.values()) < 0.5
    assert index["c"] > 2
    triggered = images.clone()
    triggered.view(-1, 25)[:, -1] = 60
    assert bool((given.network()(triggered).argmax(dim=1) == 2).all())
    assert float((network(triggered).argmax(dim=1) == labels).double().mean()) > 0.9


def test_neural_cleanse_does_not_change_a_network_that_has_no_anomalous_class() -> None:
    images, labels = six_classes()
    given = context(images, labels, network=trojan(), clean=(images, labels))
    network, notes = NeuralCleanse(steps=4, threshold=1e9).repair(given)
    assert notes["target"] is None
    assert torch.equal(head(network).weight, head(trojan()).weight)


def test_anomaly_index_follows_the_paper() -> None:
    """The index is |size - median| / (1.4826 MAD), with a sign that is positive for small masks."""
    sizes = np.array([9.0, 10.0, 12.0, 3.0, 11.0])
    mad = np.median(np.abs(sizes - np.median(sizes)))
    expected = (np.median(sizes) - sizes) / (1.4826 * mad)
    assert anomaly(sizes.tolist()) == pytest.approx(expected.tolist())
    assert np.isfinite(anomaly([7.0, 7.0, 7.0, 1.0])).all()


def test_the_reverse_engineered_trigger_blends_images_and_pattern_by_the_mask() -> None:
    """A triggered image is (1 - mask) · x + mask · pattern."""
    trigger = Reversed(torch.tensor([[[0.25, 1.0]]]), torch.tensor([[[200.0, 7.0]]]))
    images = torch.tensor([[[[100, 100]]]], dtype=torch.uint8)
    assert trigger(images).tolist() == [[[[125.0, 7.0]]]]
    assert trigger.size == 1.25


def normed() -> Small:
    network = hidden(12, 3, seed=7)
    with torch.no_grad():
        norm = network.body[1]
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.5, 0.5)
    return network


def noise(n: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 3, 4), generator=generator, dtype=torch.uint8)
    return images, torch.arange(n) % 3


@pytest.mark.parametrize("lr", [0.1, 50.0])
def test_anp_masks_stay_between_0_and_1_and_channels_below_the_threshold_are_pruned(
    lr: float,
) -> None:
    """Everything but the pruned channels is unchanged, including the running statistics."""
    network, (images, labels) = normed(), noise()
    given = context(images, labels, network=network, clean=(images, labels))
    anp = ANP(lr=lr, steps=4, threshold=0.99)
    (mask,) = anp.masks(given)
    assert 0 <= float(mask.min()) <= float(mask.max()) <= 1
    pruned, notes = anp.repair(given)
    gone = mask < 0.99
    weight = pruned.body[1].weight
    assert bool((weight[gone] == 0).all())
    assert torch.equal(weight[~gone], network.body[1].weight[~gone])
    assert notes == {"pruned": int(gone.sum()), "of": 12}
    before, after = network.state_dict(), pruned.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before if key != "body.1.weight")


def test_anp_ignores_the_perturbation_if_the_perturbed_loss_has_weight_zero() -> None:
    images, labels = noise()
    given = context(images, labels, network=normed(), clean=(images, labels))
    first, second = (ANP(alpha=1.0, eps=eps, steps=2).masks(given)[0] for eps in (0.0, 0.9))
    assert torch.equal(first, second)
    (third,) = ANP(alpha=0.0, eps=0.9, steps=2).masks(given)
    assert not torch.equal(first, third)


def test_anp_draws_from_at_most_the_given_number_of_clean_images() -> None:
    images, labels = noise(60)
    given = context(images, labels, network=normed(), clean=(images, labels))
    batches = list(drawn(given, 9, 128, 5))
    assert {len(batch) for batch, _ in batches} == {128}
    assert len(torch.cat([batch for batch, _ in batches]).unique(dim=0)) == 5


def gated() -> Small:
    """Channels 0 and 1 detect two classes by their pixel. Channel 2 detects the last pixel: clean
    images hardly exceed its threshold, and a white pixel forces class 1."""
    first, norm, last = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight.copy_(torch.eye(3))
        first.bias.zero_()
        norm.bias.copy_(torch.tensor([1.0, 1.0, -1.0]))
        last.weight.copy_(torch.tensor([[3.0, 0, 0], [0, 3.0, 6.0]]))
        last.bias.zero_()
        images, _ = faint()
        values = images.flatten(1).float() / 255
        norm.running_mean.copy_(values.mean(dim=0))
        norm.running_var.copy_(values.var(dim=0))
    return Small(nn.Sequential(first, norm, nn.ReLU(), last)).eval()


def faint(n: int = 80) -> tuple[Tensor, Tensor]:
    """Images in which pixel y is bright for class y and the last pixel is uniform in 0..19."""
    labels = torch.arange(n) % 2
    images = torch.zeros(n, 3, dtype=torch.uint8)
    images[torch.arange(n), labels] = 200
    images[:, 2] = (torch.arange(n) // 2) % 20
    return images.view(n, 1, 1, 3), labels


def test_anp_prunes_exactly_the_trigger_channel() -> None:
    """Clean images hardly activate this channel, but perturbed weights do."""
    images, labels = faint()
    given = context(images, labels, network=gated(), clean=(images, labels))
    triggered = images.clone()
    triggered[..., -1] = 255
    assert torch.equal(given.network()(images).argmax(dim=1), labels)
    assert bool((given.network()(triggered).argmax(dim=1) == 1).all())
    network, notes = ANP(steps=300).repair(given)
    assert notes == {"pruned": 1, "of": 3}
    assert network.body[1].weight.tolist() == [1, 1, 0]
    assert torch.equal(network(triggered).argmax(dim=1), labels)


def test_anp_requires_batch_normalization() -> None:
    images, labels = noise()
    given = context(images, labels, network=linear(12, 3), clean=(images, labels))
    with pytest.raises(ConfigError, match="batch normalization"):
        ANP().repair(given)


def stained() -> tuple[Tensor, Tensor]:
    """Two classes that are hard to separate, and twelve images with a white last pixel that are
    labeled 0."""
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 120, (132, 1, 3, 4), generator=generator, dtype=torch.uint8)
    labels = torch.arange(132) % 2
    images.view(132, -1)[torch.arange(132), labels] += 50
    images[120:].view(12, -1)[:, -1] = 255
    labels[120:] = 0
    return images, labels


def test_unlearning_the_isolated_images_removes_the_backdoor() -> None:
    """Without the unlearning phase of anti-backdoor learning, the planted pixel decides the
    prediction."""
    images, labels = stained()
    given = context(images, labels)
    options = {"epochs": 10, "isolation_ratio": 0.08, "training_epochs": 20}
    forgetful = ABLUnlearning(**options, unlearning_epochs=15, unlearning_lr=0.05)  # type: ignore[arg-type]
    learned, _ = ABLUnlearning(**options, unlearning_epochs=0).repair(given)  # type: ignore[arg-type]
    unlearned, notes = forgetful.repair(given)
    assert notes["isolated"] == 10
    triggered = images[:120][labels[:120] == 1].clone()
    triggered.view(len(triggered), -1)[:, -1] = 255
    success = [
        float((net(triggered).argmax(1) == 0).double().mean()) for net in (learned, unlearned)
    ]
    assert success[1] < 0.2 < success[0]


def test_isolation_and_training_epochs_come_from_the_recipe() -> None:
    """A fifth of the recipe's epochs is used for isolation, the rest for training."""
    images, labels = stained()
    _, notes = ABLUnlearning(unlearning_epochs=0).repair(context(images, labels))
    assert notes["epochs"] == [1, HYPERPARAMETERS.epochs - 1]


def test_d_br_ratios_that_sum_to_more_than_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="must sum to at most 1"):
        DBR(clean_ratio=0.7, poison_ratio=0.4)


def test_alternating_unlearning_matches_sgd_computed_by_hand() -> None:
    """A step that increases the loss of the poisoned batch is followed by one that decreases the
    loss of the clean batch. Both share the momentum."""
    images, labels = noise(32)
    network = linear(12, 3)
    given = context(images, labels, network=network)
    bad, good = torch.arange(16), torch.arange(16, 32)
    DBR(epochs=1, lr=0.1).unlearn_in_turn(Passes(network, given, SETTINGS), bad, good)
    expected = linear(12, 3)
    sgd = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for sign, where in ((-1, bad), (1, good)):
        sgd.zero_grad()
        (sign * F.cross_entropy(expected(images[where]), labels[where])).backward()
        sgd.step()
    for one, other in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def cornered(n: int = 160, poison: int = 16) -> tuple[Tensor, Tensor]:
    """Dark noise images of two classes that differ in brightness, followed by images of the
    brighter class with a white last pixel that are labeled as the darker class."""
    generator = torch.Generator().manual_seed(6)
    labels = torch.arange(n + poison) % 2
    labels[n:] = 1
    images = torch.randint(0, 20, (n + poison, 1, 6, 6), generator=generator)
    images = (images + 30 * labels.view(-1, 1, 1, 1)).to(torch.uint8)
    images[n:, :, -1, -1] = 255
    labels[n:] = 0
    return images, labels


def test_d_br_finds_triggered_images_by_their_sensitivity_and_unlearns_them() -> None:
    """Rotations and shifts move the white corner but keep the brightness, by which the classes
    differ."""
    images, labels = cornered()
    bare = context(images, labels)
    attacked = trained(hidden(36, 2), bare, 40)
    assert sensitivity(attacked, bare)[160:].min() > sensitivity(attacked, bare)[:160].max()
    given = context(images, labels, network=attacked)
    network, notes = DBR(clean_ratio=0.8, poison_ratio=0.09, epochs=20, lr=0.02).repair(given)
    assert notes == {"clean": 141, "poison": 15, "of": 176}
    triggered = images[1:160:2].clone()
    triggered[..., -1, -1] = 255
    success = [
        float((net(triggered).argmax(1) == 0).double().mean()) for net in (attacked, network)
    ]
    assert success[0] > 0.9
    assert success[1] < 0.1
    assert float((network(images[:160]).argmax(1) == labels[:160]).double().mean()) > 0.95
