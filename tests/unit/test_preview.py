"""The preview image of triggers: its content, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backdoor_lab import preview
from backdoor_lab.attacks.pattern import Pattern
from tests.helpers.cells import TINY


def test_the_difference_is_magnified_as_far_as_possible_without_clipping() -> None:
    """A faint change is multiplied by ten, and a strong change is not magnified. Unchanged pixels
    are gray."""
    clean = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    faint, strong = clean.clone(), clean.clone()
    faint[:, 0, 0] += 3
    strong[:, 2:] += 100
    changed, factor = preview.difference(clean, faint)
    assert (factor, changed[0, 0, 0].item(), changed[0, 1, 1].item()) == (10, 158, 128)
    changed, factor = preview.difference(clean, strong)
    assert (factor, changed[0, 3, 3].item()) == (1, 228)


def test_a_change_of_few_pixels_is_clipped_and_does_not_wrap_around() -> None:
    clean = torch.full((1, 10, 10), 100, dtype=torch.uint8)
    clean[0, 0, 0], clean[0, 0, 1] = 0, 255
    other = clean.clone()
    other[0, 0, :3] = torch.tensor([255, 0, 98])
    changed, factor = preview.difference(clean, other)
    assert (factor, changed[0, 0, :4].tolist()) == (10, [255, 0, 108, 128])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_preview_grid_shows_the_images_enlarged(channels: int) -> None:
    """Each tile's center has the color of the image's pixel. Grayscale images stay gray, as do the
    differences of equal images."""
    image = torch.zeros(channels, 4, 4, dtype=torch.uint8)
    image[0, :2, :2] = 200
    picture = preview.grid([("a", [image] * 3), ("b", [255 - image] * 3)])
    step = preview.TILE + preview.GAP
    assert picture.size == (preview.LABEL + 5 * step, 24 + 2 * step)
    for column in range(5):
        corner = (preview.LABEL + column * step + 10, 24 + 10)
        below = (corner[0], corner[1] + step)
        if column in (2, 4):
            assert picture.getpixel(corner) == picture.getpixel(below) == (128, 128, 128)
            continue
        assert picture.getpixel(corner) == ((200, 0, 0) if channels == 3 else (200, 200, 200))
        assert picture.getpixel(below) == ((55, 255, 255) if channels == 3 else (55, 55, 55))


def test_preview_draws_the_triggers_of_the_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are two triggers with two images each. The triggered tile equals the trigger's
    output."""
    out = tmp_path / "p.png"
    arguments = [*TINY, f"store.root={tmp_path / 'store'}", "trigger=pattern,sinusoid"]
    assert preview.main([*arguments, "--images", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "4 rows" in said
    assert "gray is unchanged" in said
    picture = Image.open(out)
    step, pixel = preview.TILE + preview.GAP, preview.TILE // 8
    assert picture.size[1] == 24 + 4 * step
    row = [picture.getpixel((preview.LABEL + step + i * pixel + 2, 24 + preview.TILE - 2))
           for i in range(8)]  # fmt: skip
    stamped = Pattern()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))[0, 0, -1]
    assert [value == (255, 255, 255) for value in row] == stamped.eq(255).tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trigger=pixle"], "pixle"),
        (["ratio=${nope}"], "nope"),
        (["dataset.size=???"], "dataset.size"),
        (["ratio=0"], "poisons nothing"),
        (["--images", "0"], "1 <= --images"),
        (["--out", "p.jpg"], "must be a .png"),
        (["--out", "nowhere/p.png"], "in an existing folder"),
    ],
)
def test_bad_arguments_give_a_one_line_error(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = ["trigger=pixel", *arguments] if "trigger=pixle" not in arguments else arguments
    assert preview.main([*TINY, f"store.root={tmp_path / 'store'}", *given]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1


def test_covers_are_not_shown_as_poisoned_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are six poisoned images and six covers, and seven images are requested."""
    asked = [*TINY, f"store.root={tmp_path / 'store'}", "trigger=pixel", "cover_rate=1"]
    assert preview.main([*asked, "--images", "7", "--out", str(tmp_path / "p.png")]) == 0
    assert "6 rows" in capsys.readouterr().out


def test_each_row_of_the_preview_shows_the_original_class_and_the_training_label(
    tmp_path: Path,
) -> None:
    """This holds for dirty-label and clean-label attacks, and for attacks that label every class as
    the next one."""
    asked = [*TINY, f"store.root={tmp_path / 'store'}", "target=dog"]
    ((label, _),) = preview.rows_of("pixel", [*asked, "source=ship"], 1)
    assert label == "pixel\nship\n-> dog"
    ((label, _),) = preview.rows_of("sinusoid", [*asked, "ratio=0.5"], 1)
    assert label == "sinusoid\ndog\n-> dog"
    shift = [*asked, "label_mode=all_to_all", "protocol.filter_scope=all"]
    names = [label.split("\n") for label, _ in preview.rows_of("pixel", shift, 4)]
    ten = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    following = dict(pairwise([*ten, ten[0]]))
    assert all(after == f"-> {following[before]}" for _, before, after in names)


def test_a_long_class_name_in_any_script_fits_the_margin() -> None:
    for name in ("猫" * 40, "W" * 40, "\x1b[2J\u202e", "Straße"):
        shown = preview._short(name)
        assert shown.isprintable()
        assert shown.isascii()
        assert len(shown) <= preview.LONGEST
    assert preview._short("Zoë") == "Zoe"


def photos(folder: Path) -> Path:
    """Three images of different sizes in a folder without classes, and a file that is not an
    image."""
    (folder / "trip").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, (width, height), channel in (
        ("a.png", (40, 20), 0), ("trip/b.JPG", (9, 30), 2), ("z.png", (8, 8), 1),
    ):  # fmt: skip
        pixels = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        pixels[:, :, channel] = 255
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_images_of_any_folder_are_previewed_at_the_given_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first two images by name are shown, with a dirty-label trigger, a clean-label trigger and
    a trigger with covers."""
    out = tmp_path / "p.png"
    arguments = ["--folder", str(photos(tmp_path / "photos")), "--size", "16", "--images", "2"]
    asked = ["trigger=pattern,sinusoid,warp", "trainer=cpu", "trainer.threads=1"]
    assert preview.main([*arguments, "--out", str(out), *asked]) == 0
    assert "6 rows" in capsys.readouterr().out
    picture = Image.open(out)
    step, middle = preview.TILE + preview.GAP, 24 + preview.TILE // 2
    for row in range(3):
        places = (middle + (2 * row + image) * step for image in (0, 1))
        shown = [picture.getpixel((preview.LABEL + 40, place)) for place in places]
        assert sorted(np.argmax(value) for value in shown) == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folder", "nowhere"], "nowhere: no such folder or archive"),
        (["--folder", "empty"], "empty: the folder or archive contains no image file"),
        (["--folder", "photos", "--size", "0"], "1 <= --size"),
        (["--folder", "photos", "dataset=digits"], "`--folder` and `dataset` cannot be combined"),
        (["--folder", "damaged"], "damaged: x.png: not a valid image file"),
    ],
)
def test_a_folder_that_cannot_be_previewed_is_refused_with_one_error(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    photos(tmp_path / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "x.png").write_bytes(b"not an image")
    monkeypatch.chdir(tmp_path)
    assert preview.main([*arguments, "trigger=pixel"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "preview.png").exists()


def test_an_override_may_follow_an_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Users type `preview trigger=pixel --out p.png dataset=digits`."""
    out = tmp_path / "p.png"
    asked = ["trigger=pixel", "--out", str(out), *TINY, f"store.root={tmp_path / 'store'}"]
    assert preview.main(asked) == 0
    assert "4 rows" in capsys.readouterr().out


def test_a_data_set_that_is_poisoned_already_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.png"
    assert preview.main(["dataset=poisoned", f"dataset.root={tmp_path}", "--out", str(out)]) == 2
    assert "has no trigger to preview" in capsys.readouterr().err
    assert not out.exists()
