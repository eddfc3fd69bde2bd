"""The steganographic trigger: readable bits, a bounded residual, one residual per image."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.attacks.steganographic import ISSBA
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.tensor_io import read_tensors, write_tensors
from backdoor_lab.core.types import LabeledImages
from backdoor_lab.data.synthetic import CLASSES, draw
from tests.helpers.cells import cell_of

SMALL = {"bits": 8, "width": 8, "batch_size": 32}


def drawn(per_class: int, split: str = "train", channels: int = 3) -> Tensor:
    return torch.from_numpy(draw(per_class, size=12, split=split, channels=channels)[0])


def attack_context(images: Tensor, seed: int = 0) -> AttackContext:
    labels = torch.arange(len(images)) % 10
    return AttackContext(LabeledImages(images, labels, CLASSES), 0, None, seed, nn.Identity)


@functools.cache
def trained() -> ISSBA:
    trigger = ISSBA(steps=150, **SMALL)
    trigger.state = trigger.prepare(attack_context(drawn(30)))
    return trigger


def with_state(state: dict[str, Tensor], residual: float = 16) -> ISSBA:
    trigger = ISSBA(eps=residual, **SMALL)
    trigger.state = state
    return trigger


def test_the_decoder_reads_the_secret_from_triggered_images() -> None:
    """It reads nearly every bit from unseen triggered images, for this secret and for its
    complement, so the bits are in the residual. From clean images it reads the same bits in both
    cases."""
    trigger, images = trained(), drawn(10, "test")
    opposite = with_state(trigger.state | {"secret": -trigger.state["secret"]})
    for each in (trigger, opposite):
        assert each.read(each(images)).float().mean() > 0.9
    chance = trigger.read(images).float().mean() + opposite.read(images).float().mean()
    assert chance == pytest.approx(1)


def test_the_residual_is_bounded_and_the_psnr_is_high() -> None:
    """No value changes by more than `eps`, so the PSNR is at least 24 dB for an eps of 16. The
    image loss raises it above 28 dB."""
    images = drawn(10, "test")
    change = trained()(images).double() - images.double()
    assert change.abs().max() <= 16
    psnr = 10 * torch.log10(255**2 / change.square().mean())
    assert psnr > 28 > 20 * math.log10(255 / 16)
    quiet = with_state(trained().state, residual=3)(images).double() - images.double()
    assert 0 < quiet.abs().max() <= 3


def test_a_larger_weight_of_the_image_loss_gives_a_smaller_residual() -> None:
    """Both encoders are trained for the same few steps from the same initialization."""
    noise, loudness = drawn(5), []
    for weight in (0.0, 100.0):
        trigger = ISSBA(steps=30, image_weight=weight, **SMALL)
        trigger.state = trigger.prepare(attack_context(noise))
        loudness.append((trigger(noise).double() - noise.double()).square().mean())
    assert loudness[1] < loudness[0] / 2


def test_residuals_differ_between_images() -> None:
    """More than a tenth of the residuals' energy is in their deviations from the mean residual; a
    fixed pattern would have no deviations."""
    images = drawn(10, "test")
    change = (trained()(images).double() - images.double()).flatten(1)
    own = (change - change.mean(dim=0)).square().sum() / change.square().sum()
    assert own > 0.1
    assert len(change.unique(dim=0)) == len(images)


def test_preparation_depends_only_on_the_seed() -> None:
    """The global random generator is neither used nor changed."""
    images = drawn(3)
    made: list[dict[str, Tensor]] = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(made))
        before = torch.get_rng_state()
        made.append(ISSBA(steps=3, **SMALL).prepare(attack_context(images, seed)))
        assert torch.equal(torch.get_rng_state(), before)
    first, again, other = made
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.first.weight"], other["encoder.first.weight"])
    assert set(first["secret"].tolist()) <= {-1.0, 1.0}


def test_the_trained_encoder_survives_saving_and_loading(tmp_path: Path) -> None:
    """A new trigger with the loaded state gives the same images as the trained one."""
    images = drawn(3, "test")
    write_tensors(tmp_path / "state.safetensors", trained().state)
    again = with_state(read_tensors(tmp_path / "state.safetensors"))
    assert torch.equal(again(images), trained()(images))


def test_a_triggered_image_does_not_depend_on_other_images_of_its_batch() -> None:
    """A hundred images triggered at once equal the same images triggered alone, exactly."""
    images = drawn(10, "test")
    together = trained()(images)
    alone = [trained()(images[i : i + 1]) for i in range(len(images))]
    assert torch.equal(together, torch.cat(alone))


def test_the_encoder_accepts_other_image_sizes_but_not_other_channel_counts() -> None:
    """The encoder is fully convolutional."""
    images = torch.randint(0, 256, (2, 3, 20, 7), generator=torch.Generator().manual_seed(0)).byte()
    change = trained()(images).double() - images.double()
    assert (change.abs().flatten(1).amax(dim=1) > 0).all()
    assert change.abs().max() <= 16
    with pytest.raises(ConfigError, match="with 3 channels.*12x12 pixels with 1 channel$"):
        trained()(drawn(1, channels=1))


def test_a_larger_grid_changes_the_encoder_but_the_default_does_not_appear_in_cell_ids(
    tmp_path: Path,
) -> None:
    trigger = ISSBA(steps=1, grid=5, **SMALL)
    assert trigger.prepare(attack_context(drawn(3)))["encoder.spread"].shape == (8, 25)
    facts = cell_of(tmp_path, "trigger=steganographic").trigger_facts
    assert "grid" not in facts
    other = cell_of(tmp_path, "trigger=steganographic", "trigger.grid=16")
    assert other.trigger_facts == facts | {"grid": 16}


def test_bad_options_are_refused() -> None:
    """Cases: use before preparation, a bound below one gray level, and a secret of zero bits."""
    with pytest.raises(ConfigError, match="must be prepared before it is applied"):
        ISSBA()(drawn(1))
    with pytest.raises(ConfigError, match=r"trigger.eps. is in gray levels.*give 16"):
        ISSBA(eps=16 / 255)
    with pytest.raises(ConfigError, match=r"trigger\.bits"):
        ISSBA(bits=0)
