"""Image files given to triggers: how they are read, refused and identified."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_lab import identity
from backdoor_lab.attacks.blended import Blended
from backdoor_lab.attacks.images import Picture, picture, share
from backdoor_lab.attacks.patch import Patch
from backdoor_lab.attacks.reflection import Refool
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.identity import sources

KINDS: list[Any] = [Patch, Blended, Refool]


def saved(path: Path, pixels: Any) -> str:
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return str(path)


def test_pixel_values_and_opacity_are_exact_without_resizing(tmp_path: Path) -> None:
    """RGBA values are exact without resizing, and gray is the luma 0.299 R + 0.587 G + 0.114 B."""
    path = saved(tmp_path / "a.png", [[[200, 100, 50, 255], [10, 20, 30, 51]]])
    color, opacity = Picture("trigger.image", path).sized(3, 1, 2)
    assert color.tolist() == [[[200, 10]], [[100, 20]], [[50, 30]]]
    assert torch.allclose(opacity, torch.tensor([[1.0, 0.2]]))
    grey, _ = Picture("trigger.image", path).sized(1, 1, 2)
    assert grey.shape == (1, 1, 2)
    assert grey[0, 0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def test_the_color_of_transparent_pixels_does_not_bleed_into_others_when_an_image_is_resized(
    tmp_path: Path,
) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, :4] = [255, 0, 0, 255]
    pixels[:, 4:] = [0, 255, 0, 0]
    color, opacity = Picture("k", saved(tmp_path / "a.png", pixels)).sized(3, 3, 3)
    assert color[1, opacity > 0].max() == 0
    assert color[0, opacity > 0].min() > 250


def test_gray_files_become_three_equal_opaque_channels(tmp_path: Path) -> None:
    """A file without an alpha channel is fully opaque."""
    path = saved(tmp_path / "a.png", np.arange(12).reshape(3, 4))
    color, opacity = Picture("k", path).sized(3, 3, 4)
    assert torch.equal(color, torch.arange(12.0).view(1, 3, 4).expand(3, 3, 4))
    assert torch.equal(opacity, torch.ones(3, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_hash_of_an_image_file_depends_on_its_content_and_not_on_its_path(
    kind: Any, tmp_path: Path
) -> None:
    """Without a file the hash is empty. The path is not part of a result's identity."""
    one = saved(tmp_path / "one.png", [[[1, 2, 3]]])
    same = str(tmp_path / "same.png")
    Path(same).write_bytes(Path(one).read_bytes())
    other = saved(tmp_path / "other.png", [[[1, 2, 4]]])
    assert kind(image=one).file_hash() == hashlib.sha256(Path(one).read_bytes()).hexdigest()
    assert (
        kind(image=one).file_hash() == kind(image=same).file_hash() != kind(image=other).file_hash()
    )
    assert kind().file_hash() == ""
    assert kind.path_options == ("image",)


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_file_is_not_read_a_second_time(kind: Any, tmp_path: Path) -> None:
    """The trigger that was hashed is the one applied, even if the file is deleted in between."""
    path = saved(tmp_path / "a.png", np.full((4, 4, 3), 200))
    made = kind(image=path)
    Path(path).unlink()
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert not torch.equal(made(images), images)


@pytest.mark.parametrize("kind", KINDS)
def test_image_decoding_is_part_of_the_identity_of_a_trigger(kind: Any) -> None:
    """The code that reads a file affects the result too."""
    roots = identity.roots_of("triggers", kind.__module__.rpartition(".")[2])
    assert {"attacks/images.py", "data/decode.py"} <= set(sources.files_of(roots))


def test_the_error_for_an_unreadable_image_states_the_key_the_path_and_the_reason(
    tmp_path: Path,
) -> None:
    """Cases: a missing file, a folder, text, a truncated image, and 16 bits per channel."""
    (tmp_path / "text.png").write_text("not an image")
    whole = Path(saved(tmp_path / "whole.png", np.arange(3000).reshape(10, 100, 3) % 256))
    data = whole.read_bytes()
    (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / "deep.png")
    wrong = {
        "none.png": "No such file", ".": "Is a directory", "text.png": "not a valid image",
        "half.png": "not a valid image", "deep.png": "not supported",
    }  # fmt: skip
    for name, reason in wrong.items():
        with pytest.raises(ConfigError, match=rf"`trigger\.image`: .*{name}.*{reason}"):
            Picture("trigger.image", str(tmp_path / name))
    for nothing in ("", 3, ["a.png"], "a\0.png"):
        with pytest.raises(ConfigError, match=r"`trigger\.image`"):
            Picture("trigger.image", nothing)
    assert picture("trigger.image", None) is None


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan"), True, "0.5", None])
def test_an_option_that_is_a_fraction_must_be_above_0_and_at_most_1(value: Any) -> None:
    assert share("a", 1) == 1.0
    with pytest.raises(ConfigError, match="`a`"):
        share("a", value)
