"""Refool: images behind glass, mixed with scenes in linear light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from torch import Tensor

from backdoor_lab.attacks.reflection import Refool
from backdoor_lab.core.errors import ConfigError
from backdoor_lab.numerics import glass
from tests.helpers.cells import cell_of

GHOST, SOFT = {"ghost_rate": 1.0}, {"ghost_rate": 0.0}


def saved(path: Path, pixels: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(pixels, np.uint8)).save(path)
    return str(path)


def noise(n: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)


def gray(trigger: Refool, *shape: int) -> Tensor:
    """The scenes in gray levels."""
    return 255 * trigger.linear_scenes(*shape) ** (1 / 2.2)


@pytest.mark.parametrize("weight", [0.1, 0.4])
def test_a_uniform_scene_is_mixed_in_linear_light_with_weights_that_sum_to_one(
    weight: float, tmp_path: Path
) -> None:
    image = saved(tmp_path / "a.png", np.full((9, 9), 100))
    trigger = Refool(**GHOST, strength=[weight, weight], image=image)
    light = (1 - weight) * (noise(3, 3, 16, 24).double() / 255) ** 2.2
    expected = 255 * (light + weight * (100 / 255) ** 2.2) ** (1 / 2.2)
    assert (trigger(noise(3, 3, 16, 24)) - expected.floor()).abs().max() <= 1
    assert trigger.label_mode == "clean"


def test_a_black_scene_darkens_the_image(tmp_path: Path) -> None:
    image = saved(tmp_path / "black.png", [[0]])
    trigger = Refool(strength=[0.3, 0.3], image=image)
    images = noise(4, 1, 8, 8)
    assert (trigger(images) - (images * 0.7 ** (1 / 2.2)).floor()).abs().max() <= 1


def test_the_two_copies_of_a_ghost_are_less_than_a_pixel_apart_on_small_images() -> None:
    """A distance of 8 pixels on images of 560 pixels becomes 0.46 pixels at 32 and 16 pixels at
    1120."""
    for side, pixels in ((32, 0.457), (1120, 16)):
        ramp = torch.linspace(0, 1, side).double().expand(1, 1, 4, side)
        eight, none = torch.tensor([8.0]).double(), torch.zeros(1).double()
        first, second = (
            glass.ghost(ramp, none, eight, torch.tensor([share]).double()) for share in (1.0, 0.0)
        )
        apart = (first - second)[0, 0, 0, side // 2] * (side - 1)
        assert apart == pytest.approx(pixels, abs=1e-2)


@pytest.mark.parametrize("sigma", [20.0, 40.0])
def test_a_scene_out_of_focus_is_blurred_as_by_the_gaussian_filter_of_scipy(sigma: float) -> None:
    """The results are equal away from the border."""
    scene = noise(2, 3, 48, 40).double() / 255
    pixels = sigma * 48 / 560
    theirs = gaussian_filter(scene.numpy(), sigma=(0, 0, pixels, pixels), truncate=9)
    found = glass.blurred(scene, torch.tensor([sigma, sigma]).double()).numpy()
    assert np.abs(found - theirs)[:, :, 15:-15, 15:-15].max() < 1e-5


def test_an_out_of_focus_reflection_is_darkened_only_if_image_plus_reflection_exceeds_white() -> (
    None
):
    bright, dark = torch.full((1, 1, 4, 4), 0.8), torch.full((1, 1, 4, 4), 0.1)
    factor = torch.tensor([1.1]).double()
    assert torch.equal(glass.darkened(bright.double(), dark.double(), factor), bright.double())
    found = glass.darkened(bright.double(), bright.double(), factor)
    assert found.mean() == pytest.approx(0.8 - 0.6 * 1.1, abs=1e-6)


def test_a_scene_out_of_focus_fades_towards_the_edges() -> None:
    """The reflection has full strength at the center of a square image and almost none in its
    corners."""
    half = torch.tensor([0.3]).double()
    weights = glass.fading(torch.zeros(1, 1, 33, 33), half, half)[0, 0]
    assert weights[16, 16] == 1
    assert weights.max() == 1
    assert weights[0, 0] < 0.02
    assert torch.allclose(weights, weights.flip(0).T)


def test_each_image_gets_its_own_reflection() -> None:
    """The random numbers are uniform and uncorrelated. They depend only on the image's pixels and
    the seed."""
    images = noise(40, 1, 16, 16)
    trigger = Refool()
    made = trigger(images)
    assert torch.equal(trigger(images[7:9]), made[7:9])
    assert not torch.equal(Refool(pattern_seed=1)(images), made)
    numbers = trigger._drawn(noise(2000, 1, 8, 8))
    assert (numbers.mean(dim=0) - 0.5).abs().max() < 0.03
    assert (numbers.std(dim=0) - 12**-0.5).abs().max() < 0.02
    assert (torch.corrcoef(numbers.T) - torch.eye(11)).abs().max() < 0.1


def test_poison_and_test_images_get_the_same_reflection() -> None:
    """The trigger can therefore be applied to batches, after augmentation."""
    assert Refool().same_everywhere


def slope(scene: Tensor) -> float:
    """The exponent of amplitude over frequency, of the DCT on a log-log scale."""
    n = scene.shape[-1]
    power = (dctn(scene.numpy(), axes=(1, 2), norm="ortho") ** 2).mean(axis=0)
    radius = np.hypot(*np.mgrid[:n, :n]).round().astype(int)
    rings = np.arange(1, n)
    mean = np.array([power[radius == ring].mean() for ring in rings])
    return float(np.polyfit(np.log(rings), np.log(mean) / 2, 1)[0])


def test_synthetic_scene_has_natural_image_statistics() -> None:
    """Its amplitude falls as one over frequency (exponent -1; white noise has 0), it spans 0..255,
    and its channels correlate; scenes differ from each other and between seeds."""
    scene = gray(Refool(scenes=3), 3, 64, 64)[1]
    assert slope(scene) == pytest.approx(-1, abs=0.1)
    assert abs(slope(torch.randn(3, 64, 64).double())) < 0.1
    assert scene.min() == 0
    assert scene.max() == pytest.approx(255)
    assert np.corrcoef(scene.flatten(1).numpy())[0, 1] > 0.7
    assert not torch.equal(scene, gray(Refool(scenes=3), 3, 64, 64)[2])
    assert not torch.equal(scene, gray(Refool(scenes=3, pattern_seed=1), 3, 64, 64)[1])


def test_transparent_pixels_do_not_reflect(tmp_path: Path) -> None:
    pixels = np.full((8, 8, 4), 200)
    pixels[:, :4, 3], pixels[:, 4:, 3] = 255, 0
    image = saved(tmp_path / "half.png", pixels)
    found = gray(Refool(image=image), 3, 8, 8)
    assert found[0, :, :, :4] == pytest.approx(200)
    assert (found[0, :, :, 4:] == 0).all()


def test_a_folder_provides_its_first_files_as_scenes(tmp_path: Path) -> None:
    """Hidden files are skipped. The identity depends on the content of the files, not on the
    folder."""
    for number, level in enumerate((10, 20, 30)):
        saved(tmp_path / f"a/{number}.png", [[level]])
        saved(tmp_path / f"b/{number}.png", [[level]])
    (tmp_path / "a/.hidden").write_text("no image")
    two = Refool(image=str(tmp_path / "a"), scenes=2)
    assert gray(two, 1, 4, 4)[:, 0, 0, 0].tolist() == pytest.approx([10, 20])
    every = Refool(image=str(tmp_path / "a"))
    assert every.linear_scenes(1, 4, 4).shape == (3, 1, 4, 4)
    assert every.file_hash() == Refool(image=str(tmp_path / "b")).file_hash() != two.file_hash()


def test_a_folder_of_scenes_is_identified_by_its_content(tmp_path: Path) -> None:
    cells = []
    for folder in ("a", "b"):
        saved(tmp_path / folder / "x.png", [[9]])
        cells.append(cell_of(tmp_path, "trigger=reflection", f"trigger.image={tmp_path / folder}"))
    assert cells[0].id == cells[1].id


def test_images_of_one_row_or_column_are_refused() -> None:
    with pytest.raises(ConfigError, match="1x8 pixels are too small for a reflection"):
        Refool()(noise(1, 1, 1, 8))


@pytest.mark.parametrize(
    "wrong",
    [{"strength": 0.4}, {"strength": [0.4, 0.1]}, {"strength": [0, 1]}, {"sigma": [0, 1]},
     {"shift": 3}, {"shift": [1, 2, 3]}, {"shift": [0.5, 1]}, {"ghost_rate": 2}, {"scenes": 0},
     {"pattern_seed": -1}, {"image": "no/such/file.png"}, {"image": ""}],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused_and_named_in_the_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`trigger.{next(iter(wrong))}`"):
        Refool(**wrong)


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"`trigger.image`: the folder .* has no image files; put"
    ):
        Refool(image=str(tmp_path))
