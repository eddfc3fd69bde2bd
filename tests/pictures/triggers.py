"""A picture of every trigger on two photographs, at 32 and at 224 pixels.

Each row shows the image, the image with the trigger as at test time, and the difference, magnified.
At 224 pixels, optimized triggers take fewer steps than by default: the picture shows what they look
like, not how well they work.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from backdoor_lab import preview
from tests.pictures import photographs
from tests.pictures.small import small

SIZES = (32, 224)
TILE, GAP, LABEL, TOP = 112, 4, 148, 46
BACKGROUND, INK = "white", "black"
#: Settings with which optimized triggers are affordable on a CPU at 224 pixels.
FEWER = {
    "label_consistent": ["trigger.steps=20"],
    "narcissus": ["trigger.steps=80", "trigger.batch_size=8"],
    "sleeper_agent": ["trigger.steps=10", "trigger.batch_size=8"],
    "steganographic": ["trigger.steps=40", "trigger.batch_size=8"],
}


def drawn() -> bytes:
    """Draw the picture as a PNG."""
    names = sorted(path.stem for path in Path("conf/trigger").glob("*.yaml")
                   if not path.stem.endswith(preview.PRESETS))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        tiles = {size: _tiles(names, size, Path(folder)) for size in SIZES}
    data = io.BytesIO()
    grid(names, tiles).save(data, "PNG")
    return small(data.getvalue())


def _tiles(names: list[str], size: int, folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The image and its triggered version, each uint8 (3, size, size), for every trigger."""
    root = photographs.write(folder / str(size), size)
    found = {}
    for name in names:
        rows = preview.rows_of(name, _overrides(name, size, root), 1)
        (_, (clean, triggered, *_)) = rows[0]
        found[name] = (clean, triggered)
    return found


def _overrides(name: str, size: int, root: Path) -> list[str]:
    fewer = FEWER.get(name, []) if size > 32 else []
    return [
        "dataset=image_folder", f"dataset.root={root}", "target=flower", "source=china",
        "protocol.ratio_of=count", "ratio=4", "model.width=8", "recipe=small",
        f"recipe.epochs={6 if size == 32 else 2}", "trainer=cpu", "trainer.threads=1",
        f"store.root={root.parent / 'store'}", *fewer,
    ]  # fmt: skip


def grid(names: list[str], tiles: dict[int, dict[str, tuple[Tensor, Tensor]]]) -> Image.Image:
    """Draw one labeled row for each trigger, with three tiles for each size."""
    step = TILE + GAP
    width = LABEL + len(tiles) * (3 * step + 3 * GAP)
    picture = Image.new("RGB", (width, TOP + len(names) * step), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    large, usual = ImageFont.load_default(15), ImageFont.load_default(13)
    for block, size in enumerate(tiles):
        left = LABEL + block * (3 * step + 3 * GAP)
        draw.text((left, 4), f"{size} x {size} pixels", INK, large)
        for column, title in enumerate(("image", "with trigger", "difference")):
            draw.text((left + column * step, 26), title, INK, usual)
        for row, name in enumerate(names):
            clean, triggered = tiles[size][name]
            changed, factor = preview.difference(clean, triggered)
            top = TOP + row * step
            for column, image in enumerate((clean, triggered, changed)):
                picture.paste(_tile(image, column == 2), (left + column * step, top))
            # The factor is at the middle of the upper edge, since triggers are in the corners.
            place = (left + 2 * step + TILE // 2, top + 3)
            draw.text(place, f"x {factor}", INK, usual, anchor="ma", stroke_width=2,
                      stroke_fill=BACKGROUND)  # fmt: skip
    for row, name in enumerate(names):
        draw.text((4, TOP + row * step + TILE // 2 - 9), name, INK, large)
    return picture


def _tile(image: Tensor, is_difference: bool) -> Image.Image:
    """Scale an image to the size of a tile: enlarged pixel by pixel, or reduced by averaging. A
    reduced difference keeps the largest change of each square, so that a single changed pixel stays
    visible."""
    side = image.shape[-1]
    if side > TILE and is_difference:
        assert side % TILE == 0
        image = _largest(image, side // TILE)
    found = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    how = Image.Resampling.NEAREST if image.shape[-1] <= TILE else Image.Resampling.LANCZOS
    return found.resize((TILE, TILE), how)


def _largest(image: Tensor, factor: int) -> Tensor:
    """Reduce squares of `factor` x `factor` pixels to the one value in each that is farthest from
    gray."""
    blocks = (
        image.int().unfold(1, factor, factor).unfold(2, factor, factor).flatten(3) - preview.GRAY
    )
    at = blocks.abs().argmax(dim=3, keepdim=True)
    return (blocks.gather(3, at)[..., 0] + preview.GRAY).to(torch.uint8)
