"""Transformations of test images, compared with other implementations, and Nat and ASR under
them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from backdoor_lab.core.errors import ConfigError
from backdoor_lab.core.store import Store
from backdoor_lab.data.cache import open_dataset
from backdoor_lab.pipeline.cell import Cell
from backdoor_lab.pipeline.keys import check_keys
from backdoor_lab.pipeline.parts import source_of
from backdoor_lab.pipeline.stages.transformed import transformed_stage
from backdoor_lab.training.classifier import Classifier
from backdoor_lab.training.transformations import KINDS, canonical_names, transformation
from tests.helpers.cells import CPU, cell_of, configuration, job, lasting, run_here

Array = NDArray[Any]
UNDER = "measure.asr_under=[jpeg75,noise8,shift1,brightness0.5]"
NAMES = ["jpeg75", "brightness0.5", "shift1", "noise8"]


def photos(n: int = 8, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Smooth images: sums of two waves."""
    draw = np.random.default_rng(4)
    y, x = np.mgrid[:height, :width] / 16
    waves = [
        np.sin(2 * np.pi * (a * y + b * x) + c) for a, b, c in draw.random((n * channels, 3)) * 2
    ]
    images = np.stack(waves).reshape(n, channels, height, width)
    return torch.from_numpy((127 + 100 * images).astype(np.uint8))


def after(name: str, images: Tensor, seed: int = 0) -> Array:
    changed = transformation(name, torch.Generator().manual_seed(seed))(images)
    assert changed.dtype == torch.uint8
    assert changed.shape == images.shape
    return changed.numpy()


def off(one: Array, other: Array) -> float:
    return float(np.abs(one.astype(float) - other).max())


def per_image(images: Tensor, draw: Any) -> Array:
    """The images that Pillow returns, channels first."""
    found = [np.asarray(draw(Image.fromarray(each))) for each in images.permute(0, 2, 3, 1).numpy()]
    return np.stack(found).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("quality", [25, 75, 90])
def test_jpeg_agrees_with_pillow(quality: int) -> None:
    def compressed(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=quality)
        return Image.open(data)

    images = photos()
    mine = after(f"jpeg{quality}", images).astype(float)
    assert np.abs(mine - per_image(images, compressed)).mean() < 1
    assert np.abs(mine - images.numpy()).mean() > 0.5


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_brightness_multiplies_every_gray_level(factor: float) -> None:
    images = photos()
    expected = np.clip(images.numpy() * factor, 0, 255).astype(np.uint8)
    np.testing.assert_array_equal(after(f"brightness{factor}", images), expected)


def test_contrast_moves_gray_levels_toward_the_mean() -> None:
    images = photos(channels=1)
    mean = images.numpy().mean(axis=(1, 2, 3), keepdims=True)
    assert off(after("contrast0.5", images), 0.5 * images.numpy() + 0.5 * mean) <= 1


@pytest.mark.parametrize("sigma", [0.5, 1, 2])
def test_blur_agrees_with_scipy(sigma: float) -> None:
    images = photos()
    radius = int(np.ceil(3 * sigma))
    expected = ndimage.gaussian_filter(
        images.numpy().astype(float),
        (0, 0, sigma, sigma),
        mode="mirror",
        radius=(0, 0, radius, radius),
    )
    assert off(after(f"blur{sigma}", images), expected) <= 1


def test_shift_moves_each_image_in_one_of_eight_directions() -> None:
    images = photos(200, 1, 9, 7)
    found = after("shift2", images)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="edge")
    taken = set()
    for n, each in enumerate(found):
        fits = {
            (y, x)
            for y in (0, 2, 4)
            for x in (0, 2, 4)
            if np.array_equal(each, padded[n, :, y : y + 9, x : x + 7])
        }
        assert len(fits) == 1
        taken |= fits
    assert taken == {(y, x) for y in (0, 2, 4) for x in (0, 2, 4)} - {(2, 2)}


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_rescale_agrees_with_pillow(share: float) -> None:
    small = round(16 * share)

    def resized(image: Image.Image) -> Image.Image:
        bilinear = Image.Resampling.BILINEAR
        return image.resize((small, small), bilinear).resize((16, 16), bilinear)

    images = photos()
    assert off(after(f"rescale{share}", images), per_image(images, resized)) <= 2
    assert off(after(f"rescale{share}", images), images.numpy()) > 2


def test_rotate_turns_each_image_left_or_right_at_random() -> None:
    images = photos(40)
    quarter, half = after("rotate90", images), after("rotate180", images)
    turned = [np.rot90(images.numpy(), k, axes=(2, 3)) for k in (1, 2, 3)]
    left, right = (
        np.array([np.array_equal(a, b) for a, b in zip(quarter, turned[k], strict=True)])
        for k in (0, 2)
    )
    assert (left ^ right).all()
    assert 5 < left.sum() < 35
    np.testing.assert_array_equal(half, turned[1])
    assert after("rotate10", torch.full((2, 3, 9, 5), 200, dtype=torch.uint8)).min() == 200


def test_noise8_has_a_standard_deviation_of_8_and_differs_between_images() -> None:
    gray = torch.full((40, 3, 16, 16), 128, dtype=torch.uint8)
    found = after("noise8", gray).astype(float) - 128
    assert found.std() == pytest.approx(8, rel=0.02)
    assert abs(found.mean()) < 0.2
    assert len({each.tobytes() for each in found}) == 40
    assert after("noise16", gray).max() <= 255


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 7, 5), (3, 1, 9), (1, 33, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_transformation_accepts_any_image_size_and_does_not_modify_the_images(
    kind: str, shape: tuple[int, int, int]
) -> None:
    images = torch.arange(4 * shape[0] * shape[1] * shape[2]).reshape(4, *shape).to(torch.uint8)
    before = images.clone()
    for number in (KINDS[kind].low, KINDS[kind].default):
        name = canonical_names([f"{kind}{number:g}"])[0]
        found = after(name, images)
        torch.manual_seed(8)  # has no effect
        np.testing.assert_array_equal(found, after(name, images))
    assert torch.equal(images, before)
    assert after(kind, images[:0]).shape == (0, *shape)


@pytest.mark.parametrize("kind", ["noise", "shift", "rotate"])
def test_different_seeds_give_different_random_transformations(kind: str) -> None:
    assert off(after(kind, photos(), 1), after(kind, photos(), 2)) > 0


def test_transformation_names_are_made_canonical_and_sorted() -> None:
    asked = ["noise", "shift4", "jpeg90", "brightness01.50", "jpeg25", "shift2.0"]
    told = ("jpeg25", "jpeg90", "brightness1.5", "shift2", "shift4", "noise8")
    assert canonical_names(asked) == told == canonical_names(list(told))
    assert canonical_names([]) == ()


WRONG = {
    "[fog]": "'fog' is not known",
    "[jpg75]": "Did you mean 'jpeg75'?",
    "[jpeg0]": "(JPEG quality) must be an integer from 1 to 100",
    "[jpeg75.5]": "(JPEG quality) must be an integer from 1 to 100",
    "[brightness0]": "(brightness factor) must be a number from 0.05 to 10",
    "[contrast99]": "(contrast factor) must be a number from 0.05 to 10",
    "[blur100]": "must be a number from 0.1 to 32",
    "[shift0]": "must be an integer from 1 to 1024",
    "[rescale1]": "must be a number from 0.05 to 0.95",
    "[rotate-10]": "'rotate-10' is not known",
    "[noise1e3]": "'noise1e3' is not known",
    "[noise999]": "must be a number from 0.5 to 128",
    "[75]": "75 is not known",
    "[null]": "None is not known",
    "[[jpeg75]]": "is not known",
    "['']": "'' is not known",
    "[jpeg,jpeg75]": "names jpeg75 twice",
    "jpeg75": "must be a list",
    "null": "must be a list",
}


@pytest.mark.parametrize("words", WRONG)
def test_bad_transformations_are_refused_before_any_work(words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        check_keys(configuration(tmp_path, f"measure.asr_under={words}"))
    assert WRONG[words] in str(refused.value)
    assert "`measure.asr_under`" in str(refused.value)
    if "not known" in WRONG[words] or "list" in WRONG[words]:
        assert all(f"{kind} (" in str(refused.value) for kind in KINDS)


def test_unknown_keys_and_a_shift_by_the_whole_image_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shift8 would move images of 8x8 out of view.*most 7"):
        cell_of(tmp_path, "measure.asr_under=[shift8]")
    assert cell_of(tmp_path, "measure.asr_under=[shift7]").asr_under == ("shift7",)
    with pytest.raises(ConfigError, match="key in `measure`: 'nat_under' is not known"):
        check_keys(configuration(tmp_path, "+measure.nat_under=[jpeg75]"))
    with pytest.raises(ConfigError, match="`measure` is required but missing"):
        check_keys(configuration(tmp_path, "~measure"))


def test_an_empty_list_of_transformations_keeps_the_cell_id_and_any_other_list_changes_it(
    tmp_path: Path,
) -> None:
    plain, asked = cell_of(tmp_path), cell_of(tmp_path, UNDER)
    assert "measure" not in plain.decides()
    assert "transformed" not in plain.code["stages"]
    older = {key: value for key, value in plain.config.items() if key != "measure"}
    assert Cell.of(older, plain.classes, plain.fingerprint).id == plain.id
    assert asked.decides()["measure"] == {"asr_under": NAMES}
    turned = cell_of(tmp_path, "measure.asr_under=[noise,shift1,brightness0.50,jpeg]")
    assert plain.id != asked.id == turned.id
    assert asked.id != cell_of(tmp_path, "measure.asr_under=[jpeg75]").id


class Says(nn.Module):
    """A network that predicts what a given function of the raw images returns, and counts
    images."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer, self.seen = answer, 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return nn.functional.one_hot(self.answer(images).long(), 10).float()


def measured(tmp_path: Path, answer: Any, *words: str) -> tuple[dict[str, Any], int]:
    """The result of the stage for a network that predicts `answer`, and the number of its
    images."""
    cell = cell_of(tmp_path, *words)
    store = Store(tmp_path / "store")
    data = open_dataset(source_of(cell.config), store)
    net = Says(answer)
    module = Classifier(net, job().recipe, mean=torch.zeros(3), std=torch.ones(3), total_steps=1)
    entry = transformed_stage(cell, data, module, "weights", store, CPU)
    return entry.meta["under"], net.seen


def test_the_trigger_is_applied_before_the_transformation(tmp_path: Path) -> None:
    """At half brightness, a white trigger pixel has the gray level 127."""

    def halved(images: Tensor) -> Tensor:
        return 2 * (images[:, :, -1, -1] == 127).all(dim=1)

    words = "measure.asr_under=[brightness0.5,brightness1]", "target=bird", "trigger.color=255"
    found, _ = measured(tmp_path, halved, *words)
    assert found["brightness0.5"]["asr"] == 1
    assert found["brightness1"]["asr"] == 0
    assert found["brightness1"]["nat"] == 0.1  # one image in ten has the predicted class


@pytest.mark.parametrize(
    ("words", "triggered", "clean"),
    [([], 45, 50), (["protocol.asr_on=all"], 50, 50), (["protocol.clean_holdout=20"], 27, 30),
     (["source=cat", "protocol.poison_from=source", "protocol.asr_on=source"], 5, 50)],
)  # fmt: skip
def test_nat_and_asr_use_the_same_test_images_with_and_without_transformations(
    words: list[str], triggered: int, clean: int, tmp_path: Path
) -> None:
    """Held-out images are excluded, and the protocol selects the classes for ASR."""
    answer = lambda images: torch.full((len(images),), 2)  # noqa: E731
    found, seen = measured(tmp_path, answer, "measure.asr_under=[blur]", "target=bird", *words)
    assert seen == triggered + clean
    assert found["blur1"]["asr"] == 1


def test_an_all_to_all_attack_succeeds_on_transformed_images_predicted_as_the_next_class(
    tmp_path: Path,
) -> None:
    words = [
        "label_mode=all_to_all",
        "protocol.filter_scope=all",
        "measure.asr_under=[brightness1]",
    ]
    always = lambda images: torch.full((len(images),), 4)  # noqa: E731
    found, _ = measured(tmp_path, always, *words)
    assert found["brightness1"] == {"nat": 0.1, "asr": 0.1}


def test_cells_that_differ_only_in_transformations_share_their_networks(tmp_path: Path) -> None:
    """All other fields of their records are equal, too."""
    plain = run_here(tmp_path / "store", tmp_path / "plain")
    asked = run_here(tmp_path / "store", tmp_path / "asked", UNDER)
    made = {name for name, stage in asked["run"]["stages"].items() if stage["made"]}
    assert made == {"transformed1", "transformed2"}
    assert "under" not in plain
    assert asked["under"].keys() == set(NAMES)
    for said in asked["under"].values():
        assert said.keys() == {"nat1", "asr1", "nat2", "asr2"}
        assert all(0 <= share <= 1 for share in said.values())
    new = ("id", "config", "under")
    assert {k: v for k, v in lasting(asked).items() if k not in new} == {
        k: v for k, v in lasting(plain).items() if k not in new
    }
    again = run_here(tmp_path / "elsewhere", tmp_path / "again", UNDER)
    assert again["under"] == asked["under"]
    alone = run_here(
        tmp_path / "store", tmp_path / "alone", "measure.asr_under=[brightness1]", "retrain=false"
    )
    assert alone["under"]["brightness1"] == {
        "nat1": plain["nat1"], "asr1": plain["asr1"], "nat2": None, "asr2": None
    }  # fmt: skip


def test_a_repaired_network_is_evaluated_under_transformations(tmp_path: Path) -> None:
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "defense=fine_pruning", "protocol.clean_holdout=20",
        "defense.epochs=1", "measure.asr_under=[brightness1]",
    )  # fmt: skip
    assert record["status"] == "done", record["error"]
    assert record["under"]["brightness1"]["nat2"] == record["nat2"]
    assert record["under"]["brightness1"]["asr2"] == record["asr2"]


def test_every_transformation_works_on_gray_images(tmp_path: Path) -> None:
    record = run_here(
        tmp_path / "store", tmp_path / "cell", "target=1", "retrain=false",
        f"measure.asr_under=[{','.join(KINDS)}]", data=("dataset=digits",),
    )  # fmt: skip
    assert record["status"] == "done", record["error"]
    assert len(record["under"]) == len(KINDS)
    assert all(0 <= said["asr1"] <= 1 for said in record["under"].values())
