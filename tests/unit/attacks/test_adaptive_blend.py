"""The adaptive blend against its formula, piece by piece."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from backdoor_lab.attacks.adaptive_blend import AdaptiveBlend
from backdoor_lab.attacks.base import AttackContext
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.types import LabeledImages


def noise(n: int, channels: int = 3, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator).byte()


def attack_context(seed: int = 0) -> AttackContext:
    train = LabeledImages(noise(2), torch.tensor([0, 1]), ("a", "b"))
    return AttackContext(train, 0, None, seed, nn.Module)


def plain_picture(folder: Path, value: int) -> str:
    path = folder / f"plain{value}.png"
    Image.new("RGB", (40, 20), (value, value, value)).save(path)
    return str(path)


def pieces_of(images: Tensor) -> Tensor:
    """Which of 16 pieces of black images were blended with a uniform bright pattern. Bool (n, 16).
    A partly blended piece fails."""
    height, width = images.shape[2:]
    rows = [[r for r in range(height) if r * 4 // height == piece] for piece in range(4)]
    columns = [[c for c in range(width) if c * 4 // width == piece] for piece in range(4)]
    found = []
    for image in images:
        for some_rows in rows:
            for some_columns in columns:
                values = image[:, some_rows][:, :, some_columns].unique().tolist()
                assert values in ([0], [30])
                found.append(values == [30])
    return torch.tensor(found).view(len(images), 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_test_images_are_blended_with_all_pieces_of_the_pattern(channels: int) -> None:
    """Every pixel becomes x + 0.2 (t − x), rounded."""
    trigger, images = AdaptiveBlend(), noise(5, channels, 33, 17)
    t = trigger.pattern(channels, 33, 17).numpy().astype(np.float64)
    x = images.numpy().astype(np.float64)
    off = np.abs(trigger(images).numpy() - (x + 0.2 * (t - x)))
    assert off.max() <= 0.501


@pytest.mark.parametrize("size", [(32, 32), (33, 17)], ids=str)
def test_training_images_are_blended_with_half_of_the_pieces_of_the_pattern(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """In each poisoned image and each cover, 8 of 16 pieces are blended at 0.15 and the others
    untouched; every piece is drawn about as often as any other."""
    trigger = AdaptiveBlend(image=plain_picture(tmp_path, 200))
    images, labels = torch.zeros(200, 3, *size, dtype=torch.uint8), torch.zeros(200).long()
    for made in (trigger.poisoned, trigger.make_covers):
        shown = pieces_of(made(images, labels, attack_context()))
        assert (shown.sum(dim=1) == 8).all()
        assert (shown.float().mean(dim=0) - 0.5).abs().max() < 0.15
        assert len(shown.unique(dim=0)) > 150


def test_the_drawn_pieces_differ_between_poison_and_covers_and_between_seeds() -> None:
    """Covers do not reuse the poison's masks, and another seed gives other masks."""
    trigger, images, labels = AdaptiveBlend(), noise(6), torch.zeros(6).long()
    poisoned = trigger.poisoned(images, labels, attack_context())
    assert not torch.equal(trigger.make_covers(images, labels, attack_context()), poisoned)
    assert not torch.equal(trigger.poisoned(images, labels, attack_context(1)), poisoned)


def test_poison_equals_test_images_if_nothing_is_masked_and_opacities_are_equal() -> None:
    trigger = AdaptiveBlend(strength_train=0.2, mask_rate=0.0)
    images, labels = noise(4), torch.zeros(4).long()
    assert torch.equal(trigger.poisoned(images, labels, attack_context()), trigger(images))


def test_the_default_pattern_is_smooth_seeded_noise() -> None:
    """The pattern is smooth (no step above 255/4), has a high contrast, and depends only on the
    seed."""
    torch.manual_seed(3)
    pattern = AdaptiveBlend().pattern(3, 32, 32)
    for dim in (1, 2):
        assert pattern.diff(dim=dim).abs().max() <= 255 / 4 + 1e-3
    assert pattern.std() > 60
    assert torch.equal(AdaptiveBlend().pattern(3, 32, 32), pattern)
    assert not torch.equal(AdaptiveBlend(pattern_seed=1).pattern(3, 32, 32), pattern)
    grey = AdaptiveBlend().pattern(1, 32, 32)
    assert torch.allclose(grey[0], pattern.mean(dim=0))


def test_an_image_file_is_identified_by_its_content(tmp_path: Path) -> None:
    """The same bytes under another name are the same trigger; other bytes are not."""
    first, second = plain_picture(tmp_path, 10), plain_picture(tmp_path, 20)
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(first).read_bytes())
    contents = [AdaptiveBlend(image=str(path)).file_hash() for path in (first, copy, second)]
    assert contents[0] == contents[1] != contents[2]
    assert AdaptiveBlend().file_hash() == ""
    stretched = AdaptiveBlend(image=first).pattern(3, 5, 64)
    assert torch.allclose(stretched, torch.full((3, 5, 64), 10.0))


def test_bad_options_are_refused(tmp_path: Path) -> None:
    """Cases: a missing file, a path that is a number, a file that is not an image, a mask that
    hides all pieces, and tiny images."""
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.png: No such file"):
        AdaptiveBlend(image=str(tmp_path / "nowhere.png"))
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory\. Give the path of an"):
        AdaptiveBlend(image=str(tmp_path))
    with pytest.raises(ConfigError, match="must be the path of an image file or null, got 7"):
        AdaptiveBlend(image=7)  # type: ignore[arg-type]
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"`trigger\.image`: .* Give null or a file in"):
        AdaptiveBlend(image=str(tmp_path / "text.png"))
    with pytest.raises(ConfigError, match="hides all 4 pieces"):
        AdaptiveBlend(grid=2, mask_rate=0.9)
    with pytest.raises(ConfigError, match="32x3 pixels cannot be cut into 4x4"):
        AdaptiveBlend()(noise(1, 3, 32, 3))
