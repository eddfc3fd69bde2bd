"""python -m backdoor_lab.preview trigger=all: a picture of what triggers do to images.

Each row shows an image in five forms: clean; triggered as at test time; the difference
between these two; as poisoned in the training set; and the difference between the poisoned and the
clean image. A difference is multiplied by the number on it and drawn around gray: gray is
unchanged, white brighter, black darker. Takes the same configuration as a sweep
(experiment=…, dataset=…, target=…), or any images with --folder. If a trigger needs training or
optimization, its result is read from the store, or computed and stored there for the sweep.
"""

from __future__ import annotations

import io
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backdoor_lab.core import validation
from backdoor_lab.core.atomic_io import write_atomic
from backdoor_lab.core.errors import EXIT_DONE, ConfigError, many
from backdoor_lab.core.letters import transcribed
from backdoor_lab.core.options import parser_of, path_of
from backdoor_lab.core.terminal import plain, run_command

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from backdoor_lab.pipeline.after_training import Attacked
    from backdoor_lab.pipeline.cell import Cell

COLUMNS = ("clean", "test", "test - clean", "training", "training - clean")
LEGEND = "Differences: gray is unchanged, white brighter, black darker; x N: multiplied by N."
PRESETS = ("_authors", "_backdoorbench", "_backdoor_toolbox")
"""Endings of the names of presets, which `trigger=all` leaves out."""
TILE, GAP, LABEL = 96, 6, 120
FACTORS, GRAY, BACKGROUND = (10, 5, 2, 1), 128, (225, 225, 225)
LONGEST = 16
"""The maximum length of a class name in the label of a row."""
COPIES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command: write the picture and print its path. Exit codes: 0 done, 2 for an invalid
    configuration."""
    parser = parser_of("preview", __doc__)
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="a key of the configuration; trigger=a,b or trigger=all shows several triggers",
    )
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        help="number of images per trigger (default: 1, or 4 if there is one trigger)",
    )
    parser.add_argument(
        "--folder", type=path_of, metavar="FOLDER",
        help=(
            "folder or archive of your own images, used instead of dataset=; the first images by"
            " name are shown"
        ),
    )  # fmt: skip
    parser.add_argument(
        "--size", type=int, default=32, metavar="PIXELS",
        help="size of the images from --folder, after a crop to the middle square (default: 32)",
    )  # fmt: skip
    parser.add_argument("--out", type=path_of, default=Path("preview.png"), metavar="FILE.png")
    return run_command(parser, _preview, arguments)


def _preview(given: Namespace) -> int:
    out: Path = given.out
    if out.suffix != ".png" or not out.parent.is_dir():
        raise ConfigError(f"`--out` must be a .png file in an existing folder, got {out}")
    names, rest = _triggers(given.overrides)
    if "dataset=poisoned" in rest:
        raise ConfigError(
            "`dataset=poisoned` has no trigger to preview: `dataset.root` has its images"
        )
    shown = 4 if len(names) == 1 else 1
    if given.images is not None:
        shown = validation.whole("--images", given.images, low=1)
    with tempfile.TemporaryDirectory() as scratch:
        if given.folder is not None:
            if any(each.startswith(("dataset=", "dataset.")) for each in rest):
                raise ConfigError(
                    "`--folder` and `dataset` cannot be combined: give one of the two"
                )
            rest = own_images(given.folder, shown, given.size, Path(scratch)) + rest
        rows = [row for name in names for row in rows_of(name, rest, shown)]
        if given.folder is not None:
            # Remove the classes from the labels: images from --folder have no real ones.
            rows = [(label.partition("\n")[0], images) for label, images in rows]
    data = io.BytesIO()
    grid(rows).save(data, format="PNG")
    write_atomic(out, data.getvalue())
    print(plain(f"{out}: {many(len(rows), 'row')}"), LEGEND, sep="\n")
    return EXIT_DONE


def difference(clean: Tensor, other: Tensor) -> tuple[Tensor, int]:
    """The difference `other` - `clean` of two images uint8 (C, H, W), multiplied by the largest
    factor that clips at most 2 % of its values. Zero is shown as gray. Returns the image and the
    factor."""
    import torch

    change = other.int() - clean.int()
    for factor in FACTORS:
        clipped = (factor * change).abs() >= GRAY
        if clipped.float().mean() <= 0.02:
            break
    return (GRAY + factor * change).clamp(0, 255).to(torch.uint8), factor


def grid(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> Image:
    """Draw one picture of labeled rows. Each row has three images uint8 (C, H, W): clean, triggered
    and training."""
    from PIL import Image, ImageDraw, ImageFont

    width = LABEL + len(COLUMNS) * (TILE + GAP)
    picture = Image.new("RGB", (width, 24 + len(rows) * (TILE + GAP)), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for column, title in enumerate(COLUMNS):
        draw.text((LABEL + column * (TILE + GAP), 6), title, "black", font)
    for row, (label, images) in enumerate(rows):
        top = 24 + row * (TILE + GAP)
        lines = len(label.splitlines())
        draw.multiline_text((4, top + TILE // 2 - 8 * lines), label, "black", font)
        clean, tested, trained = images
        seen, taught = difference(clean, tested), difference(clean, trained)
        for column, image in enumerate((clean, tested, seen[0], trained, taught[0])):
            picture.paste(_tile(image), (LABEL + column * (TILE + GAP), top))
        for column, factor in ((2, seen[1]), (4, taught[1])):
            # At the middle of the upper edge, since triggers are in the corners.
            place = (LABEL + column * (TILE + GAP) + TILE // 2, top + 2)
            draw.text(place, f"x {factor}", "black", font, "ma",
                      stroke_width=2, stroke_fill="white")  # fmt: skip
    return picture


def _tile(image: Tensor) -> Image:
    from PIL import Image

    channels = image.expand(3, -1, -1) if len(image) == 1 else image
    tile = Image.fromarray(channels.permute(1, 2, 0).contiguous().numpy())
    return tile.resize((TILE, TILE), Image.Resampling.NEAREST)


def _triggers(overrides: list[str]) -> tuple[list[str], list[str]]:
    """Split the overrides into the names of the requested triggers (default: all) and the other
    overrides."""
    from backdoor_lab.config_loader import conf_dir

    rest = [each for each in overrides if not each.startswith("trigger=")]
    named = [each.partition("=")[2] for each in overrides if each.startswith("trigger=")]
    names = [name for text in named for name in text.split(",")]
    if not names or names == ["all"]:
        found = sorted(path.stem for path in Path(conf_dir()).glob("trigger/*.yaml"))
        names = [name for name in found if not name.endswith(PRESETS)]
    return names, rest


def rows_of(name: str, overrides: list[str], shown: int) -> list[tuple[str, list[Tensor]]]:
    """Returns one row per image, for the first `shown` images that an attack with the trigger
    `name` poisons. `shown` is a number. A row consists of a label and of three images uint8
    (C, H, W): clean, triggered as at test time, and as poisoned in training.

    The label states the trigger, the class of the image and the class that the attack assigns.
    Raises ConfigError for an invalid configuration.
    """
    cell, attacked = _attacked([*overrides, f"trigger={name}"])
    trigger, made = cell.trigger, attacked.poisoned
    if not len(made.source_index):
        raise ConfigError("`ratio=0` poisons nothing: there are no poisoned images to show")
    chosen = made.source_index[:shown]
    clean, labels = attacked.data.train.images[chosen], attacked.data.train.labels[chosen]
    given = cell.plan.given(labels, len(cell.classes))
    relabeled = [
        f"{name}\n{_short(cell.classes[before])}\n-> {_short(cell.classes[after])}"
        for before, after in zip(labels.tolist(), given.tolist(), strict=True)
    ]
    tested = trigger(clean)
    trained = made.training.rows[: len(clean)]  # cover images come last
    if made.training.late_trigger is not None:
        trained = tested
    return [
        (label, [*images]) for label, *images in zip(relabeled, clean, tested, trained, strict=True)
    ]


def _short(name: str) -> str:
    """Shorten a class name to fit the left margin of the picture, and transliterate characters that
    the picture's font lacks."""
    text = plain(transcribed(name))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def own_images(folder: Path, count: int, size: int, scratch: Path) -> list[str]:
    """Write the first `count` images in `folder` to `scratch` as a data set. Returns the overrides
    for a cell that uses this data set.

    Every image appears in each of five classes, so that every trigger can poison it and has cover
    images to choose from. Raises ConfigError or DataError if the folder has no readable images.
    """
    import numpy as np

    from backdoor_lab.data.squares import middle_squares

    pixels = validation.whole("--size", size, low=1, below=4097)
    images = np.tile(middle_squares(folder, count, pixels), (COPIES, 1, 1, 1))
    labels = np.repeat(np.arange(COPIES), len(images) // COPIES)
    np.savez(
        scratch / "images.npz", train_images=images, train_labels=labels,
        test_images=images, test_labels=labels,
    )  # fmt: skip
    return [
        "dataset=arrays", f"dataset.root={scratch / 'images.npz'}", "target=1",
        "protocol.ratio_of=count", f"ratio={len(images) // COPIES}", "defense=none",
        "model.width=8", "recipe=small", f"store.root={scratch / 'store'}",
    ]  # fmt: skip


def _attacked(overrides: list[str]) -> tuple[Cell, Attacked]:
    """Compose the configuration of a cell and run its attack. Returns its trigger and the attack's
    output."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from backdoor_lab.config_loader import conf_dir
    from backdoor_lab.core.store import Store
    from backdoor_lab.identity.own_code import explained
    from backdoor_lab.run import register
    from backdoor_lab.sweep.compose import plain
    from backdoor_lab.sweep.preflight import Preflight

    register()
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        try:
            config = plain(compose("config", overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(" ".join(str(error).split())) from error
    cell = Preflight().cell(config)
    # These import torch and Lightning, so first make sure that the configuration is valid.
    from backdoor_lab.pipeline.cell_pipeline import CellPipeline
    from backdoor_lab.pipeline.progress import Progress
    from backdoor_lab.training.device import machine_of

    store = Store(config["store"]["root"])
    with tempfile.TemporaryDirectory() as folder:
        progress = Progress(Path(folder), "preview", "none")
        chain = CellPipeline(cell, store, machine_of(config["trainer"]), progress)
        with explained(config):
            return chain.cell, chain.attack()


if __name__ == "__main__":
    sys.exit(main())
