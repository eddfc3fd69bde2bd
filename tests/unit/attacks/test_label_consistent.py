"""The label-consistent attack: the bound, the loss, closed forms on a linear network, the mark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backdoor_lab.attacks import label_consistent
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.label_consistent import LabelConsistent
from backdoor_lab.attacks.pattern import CHECKER
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages
from tests.helpers.cells import cell_of

SHAPE = (3, 12, 10)
MARK = torch.tensor([[255, 0, 0], [0, 255, 0], [255, 0, 255]])


class Curved(nn.Module):
    """A fixed small convolutional network of three classes that takes images in 0..255."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.filters = nn.Parameter(torch.randn(6, 3, 3, 3, generator=generator) / 3)
        self.weights = nn.Parameter(torch.randn(3, 6, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.conv2d((images.float() - 128) / 64, self.filters).relu().mean(dim=(2, 3))
        return hidden @ self.weights.T


class Straight(nn.Module):
    """Two classes, logits (0, w · x): the loss of class 0 always rises along w."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(SHAPE, generator=generator) / 1000)

    def forward(self, images: Tensor) -> Tensor:
        along = (images * self.w).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(along), along], dim=1)


def noise(n: int, low: int = 0, high: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(low, high, (n, *SHAPE), generator=generator).byte()


def attack_context(surrogate: nn.Module) -> AttackContext:
    train = LabeledImages(noise(2), torch.tensor([0, 1]), ("a", "b", "c"))
    return AttackContext(train, 0, None, 0, lambda: surrogate)


def inside(images: Tensor) -> Tensor:
    """Bool (H, W): outside all four corners."""
    found = torch.ones(images.shape[2:], dtype=torch.bool)
    for rows in (slice(0, 3), slice(-3, None)):
        for columns in (slice(0, 3), slice(-3, None)):
            found[rows, columns] = False
    return found


@pytest.mark.parametrize(
    ("norm", "eps", "step_size"),
    [("linf", 8, 1.5), ("linf", 7.5, 1.5), ("l2", 60, 2.0), ("l2", 33.3, 40)],
)
def test_perturbed_images_stay_within_the_bound_and_raise_the_loss(
    norm: str, eps: float, step_size: float
) -> None:
    """Every stored image stays in its eps-ball, and the surrogate's loss on its true label
    rises."""
    net, images, labels = Curved(), noise(12), torch.arange(12) % 3
    trigger = LabelConsistent(norm=norm, eps=eps, step_size=step_size, steps=40)
    harder = trigger.perturbed(images, labels, attack_context(net))
    change = (harder.double() - images.double()).flatten(1)
    size = change.abs().amax(dim=1) if norm == "linf" else change.norm(dim=1)
    assert (size <= eps).all()
    assert (size > 0.8 * int(eps)).all()
    losses = [F.cross_entropy(net(x), labels, reduction="none") for x in (images, harder)]
    assert (losses[1] > losses[0]).all()


def test_eps_zero_leaves_the_images_unchanged() -> None:
    images, labels = noise(9), torch.arange(9) % 3
    same = LabelConsistent(eps=0, steps=30).perturbed(images, labels, attack_context(Curved()))
    assert torch.equal(same, images)


def test_the_loss_of_the_surrogate_rises_with_eps() -> None:
    net, images, labels = Curved(), noise(9), torch.arange(9) % 3
    losses = []
    for eps in (0, 4, 16):
        harder = LabelConsistent(eps=eps, steps=30).perturbed(images, labels, attack_context(net))
        losses.append(float(F.cross_entropy(net(harder).detach(), labels)))
    assert losses == sorted(losses)
    assert losses[2] > losses[0] + 0.1


@pytest.mark.parametrize(("steps", "step_size", "moved"), [(3, 2.0, 6), (50, 2.0, 8), (1, 1.9, 1)])
def test_linf_perturbation_on_a_linear_network_has_the_size_and_sign_computed_by_hand(
    steps: int, step_size: float, moved: int
) -> None:
    """With d = min(steps · step_size, eps) · sign w, images of class 0 become x + d and images of
    class 1 become x - d; both are clipped, and fractions are dropped."""
    net, images, labels = Straight(), noise(6), torch.tensor([0, 1, 0, 1, 0, 1])
    trigger = LabelConsistent(steps=steps, step_size=step_size)
    harder = trigger.perturbed(images, labels, attack_context(net))
    direction = torch.where(labels.eq(0), 1, -1)[:, None, None, None] * net.w.detach().sign()
    assert torch.equal(harder, (images.float() + moved * direction).clamp(0, 255).byte())


@pytest.mark.parametrize(("steps", "moved"), [(10, 200), (2, 100)])
def test_l2_perturbation_on_a_linear_network_has_the_size_and_direction_computed_by_hand(
    steps: int, moved: int
) -> None:
    """Where nothing is clipped, images become x + min(steps · step_size, eps) · w / |w|₂,
    rounded towards x."""
    net, images, labels = Straight(), noise(3, 100, 150), torch.zeros(3).long()
    trigger = LabelConsistent(norm="l2", eps=200, step_size=50, steps=steps)
    change = trigger.perturbed(images, labels, attack_context(net)).float() - images.float()
    exact = moved * net.w.detach() / net.w.detach().norm()
    assert ((change - exact).abs() < 1.001).all()
    assert (change.abs() <= exact.abs() + 1e-3).all()


def test_perturbed_images_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images, labels = Curved(), noise(7), torch.arange(7) % 3
    trigger = LabelConsistent(steps=5)
    whole = trigger.poisoned(images, labels, attack_context(net))
    monkeypatch.setattr(label_consistent, "CHUNK", 3)
    assert torch.equal(trigger.poisoned(images, labels, attack_context(net)), whole)
    alone = trigger.poisoned(images[4:5], labels[4:5], attack_context(net))
    assert torch.equal(alone, whole[4:5])


def test_the_attack_leaves_no_gradients_in_the_surrogate() -> None:
    """The attack also works when the caller has disabled gradients."""
    net, images, labels = Curved(), noise(4), torch.zeros(4).long()
    trigger = LabelConsistent(steps=3)
    expected = trigger.poisoned(images, labels, attack_context(net))
    with torch.no_grad():
        assert torch.equal(trigger.poisoned(images, labels, attack_context(net)), expected)
    assert all(weights.grad is None for weights in net.parameters())


def test_test_images_are_marked_in_all_four_corners() -> None:
    """The 3×3 mark is at the left and mirrored at the right, which gives BadNets' pattern at the
    lower right. Nothing else changes."""
    images = noise(4)
    found = LabelConsistent(strength_train=32)(images).long()
    for rows in (slice(0, 3), slice(-3, None)):
        assert (found[:, :, rows, :3] == MARK).all()
        assert (found[:, :, rows, -3:] == MARK.flip(1)).all()
    white = {(r, c) for r in (-3, -2, -1) for c in (-3, -2, -1) if found[0, 0, r, c] == 255}
    assert white == set(CHECKER)
    outside = inside(images)
    assert torch.equal(found[:, :, outside], images[:, :, outside].long())


def test_the_mark_can_be_limited_to_the_lower_right_corner() -> None:
    images = noise(3)
    found = LabelConsistent(corners="lower_right")(images)
    assert torch.equal(found[..., -3:, -3:], LabelConsistent()(images)[..., -3:, -3:])
    found[..., -3:, -3:] = images[..., -3:, -3:]
    assert torch.equal(found, images)


def test_the_corners_option_does_not_change_existing_cell_ids(tmp_path: Path) -> None:
    """The default of `corners` is not part of the identity."""
    facts = cell_of(tmp_path, "trigger=label_consistent").trigger_facts
    assert "corners" not in facts
    other = cell_of(tmp_path, "trigger=label_consistent", "trigger.corners=lower_right")
    assert other.trigger_facts == facts | {"corners": "lower_right"}


def test_training_images_are_perturbed_then_marked_at_the_training_strength() -> None:
    """A training image is the perturbed image with ± 32 added in the corners, clipped."""
    net, images, labels = Curved(), noise(5), torch.zeros(5).long()
    trigger = LabelConsistent(steps=4, strength_train=32)
    harder = trigger.perturbed(images, labels, attack_context(net)).long()
    found = trigger.poisoned(images, labels, attack_context(net)).long()
    sign = torch.where(MARK.eq(255), 32, -32)
    upper_left = (harder[:, :, :3, :3] + sign).clamp(0, 255)
    assert torch.equal(found[:, :, :3, :3], upper_left)
    lower_right = (harder[:, :, -3:, -3:] + sign.flip(1)).clamp(0, 255)
    assert torch.equal(found[:, :, -3:, -3:], lower_right)
    outside = inside(images)
    assert torch.equal(found[:, :, outside], harder[:, :, outside])
    assert not torch.equal(found[:, :, outside], images[:, :, outside].long())


def test_test_images_are_marked_at_the_test_strength() -> None:
    """A test image is the clean image with ± 64 added in the corners, whatever the training
    amplitude is."""
    images = noise(5)
    found = LabelConsistent(strength_test=64)(images).long()
    sign = torch.where(MARK.eq(255), 64, -64)
    assert torch.equal(found[:, :, :3, :3], (images[:, :, :3, :3].long() + sign).clamp(0, 255))


def test_bad_options_are_refused() -> None:
    """Cases: an unknown norm or corner, eps in the wrong unit, a wrong amplitude, and tiny
    images."""
    with pytest.raises(ConfigError, match=r"trigger\.norm"):
        LabelConsistent(norm="l1")
    with pytest.raises(ConfigError, match=r"trigger\.corners"):
        LabelConsistent(corners="upper_left")
    with pytest.raises(ConfigError, match=r"gray levels.*if you meant 8/255, give 8"):
        LabelConsistent(eps=8 / 255)
    with pytest.raises(ConfigError, match=r"trigger\.strength_test"):
        LabelConsistent(strength_test=256)
    with pytest.raises(ConfigError, match="images of 2x12 pixels are too small"):
        LabelConsistent()(torch.zeros(1, 1, 2, 12, dtype=torch.uint8))
