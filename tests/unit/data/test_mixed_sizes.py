"""Images of several sizes, modes and numbers of frames: their exact pixel values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.data.decode import decode
from backdoor_lab.data.huggingface import HuggingFace
from backdoor_lab.data.image_folder import ImageFolder
from tests.helpers.image_files import encoded, filled, picture

KINDS = [ImageFolder, HuggingFace]


def columns(width: int, height: int) -> Image.Image:
    """A gray image in which every column has its number as its value."""
    return Image.fromarray(np.tile(np.arange(width, dtype=np.uint8), (height, 1)))


def test_resize_cuts_out_the_center_of_a_wide_image() -> None:
    found = decode(encoded(columns(10, 4)), "x", 1, 4, crop=True)
    assert found.tolist() == [[[3, 4, 5, 6]] * 4]


def test_resize_cuts_out_the_center_of_a_tall_image() -> None:
    tall = columns(10, 4).transpose(Image.Transpose.TRANSPOSE)
    found = decode(encoded(tall), "x", 1, 4, crop=True)
    assert found.tolist() == [[[row] * 4 for row in (3, 4, 5, 6)]]


def test_resize_averages_pixels_of_larger_images() -> None:
    stripes = np.zeros((8, 16), np.uint8)
    stripes[:, ::2] = 200
    found = decode(encoded(Image.fromarray(stripes)), "x", 1, 2, crop=True)
    # A triangle over eight columns has weights 1 3 5 7 7 5 3 1; every second column is 200.
    assert found.tolist() == [[[100, 100]] * 2]


@pytest.mark.parametrize("shape", [(37, 23), (23, 37), (50, 50), (9, 31), (16, 16)])
def test_resize_equals_resize_and_center_crop_of_torchvision(shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8))
    wanted = v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])(image)
    found = decode(encoded(image), "x", 3, 16, crop=True)
    assert np.array_equal(found, wanted.numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_with_images_of_several_sizes_is_read_with_resize(
    tmp_path: Path, kind: type[ImageFolder | HuggingFace]
) -> None:
    root = filled(tmp_path)
    picture(7, (6, 5)).save(root / "train/dog/9.png")
    read = kind(root=str(root), resize=3).read()
    assert read.train.images.shape == (5, 3, 3, 3)
    assert read.train.images[-1, :, 1, 1].tolist() == [7, 0, 248]


@pytest.mark.parametrize("kind", KINDS)
def test_resize_is_part_of_the_identity_only_if_it_is_set(
    tmp_path: Path, kind: type[ImageFolder | HuggingFace]
) -> None:
    root = str(filled(tmp_path))
    plain, sized, cropped = (
        kind(root=root, **options).identity() for options in ({}, {"size": 3}, {"resize": 3})
    )
    assert "resize" not in plain
    assert "resize" not in sized
    assert cropped["resize"] == 3
    assert cropped["size"] is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 3, "resize": 3}, "remove one"),
        ({"resize": 0}, "`dataset.resize`"),
        ({"resize": 5000}, "`dataset.resize`"),
    ],
)
def test_invalid_resize_is_refused(
    options: dict[str, int], said: str, kind: type[ImageFolder | HuggingFace]
) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(root="x", **options)


def test_cmyk_images_are_converted_to_rgb() -> None:
    image = Image.new("CMYK", (2, 2), (255, 0, 51, 0))
    assert decode(encoded(image, "TIFF"), "x", 3, None)[:, 0, 0].tolist() == [0, 255, 204]
    black = Image.new("CMYK", (2, 2), (0, 0, 0, 255))
    assert not decode(encoded(black, "TIFF"), "x", 3, None).any()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    first, second = (Image.new("RGB", (2, 2), color) for color in ((255, 0, 0), (0, 0, 255)))
    data = encoded(first, kind, save_all=True, append_images=[second])
    assert decode(data, "x", 3, None)[:, 1, 1].tolist() == [255, 0, 0]
