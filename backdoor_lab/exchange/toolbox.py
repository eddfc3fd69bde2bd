"""Poisoned training sets in the layout of backdoor-toolbox (Qi et al.).

A folder holds files written by ``torch.save``: `imgs`, a float tensor (n, C, H, W) in 0..1;
`labels`, an integer tensor (n,); `poison_indices` and, for some attacks, `cover_indices`, lists of
rows. Before March 2023, the images were the files data/<row>.png. Triggered test images are not
stored. The clean test images are in another folder, clean_set/<dataset>/test_split, as
data/<index>.png and `labels`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.torch_files import load_torch_file
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.imported import ImportedAttack, ImportedFacts
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.exchange.clean import (
    check_shapes,
    class_names,
    clean_source,
    identity_of,
    is_test_split,
    numbered_pngs,
    stored_array,
    stored_labels,
    test_split,
)

IMAGES = ("imgs", "data")
"""The names of the file or folder of images; the first one that exists is read."""

# badnet_0.010_poison_seed=0, blend_0.010_alpha=0.200_trigger=hellokitty_32.png_poison_seed=0
_NAME = re.compile(r"([A-Za-z]\w*?)_(\d\.\d{3})(?=_|$)")
_OPTION = re.compile(r"_([a-z]+(?:_[a-z]+)*)=(.*?)(?=_[a-z_]+=|$)")
_NUMBER = re.compile(r"\d{1,9}(\.\d{1,9})?")


def is_toolbox(root: Path) -> bool:
    """Whether `root` looks like a poisoned training set of backdoor-toolbox."""
    return (root / "labels").is_file() and any((root / name).exists() for name in IMAGES)


def toolbox_identity(
    root: Path, *, test_root: Path | None = None, held_out: HeldOut | None = None
) -> dict[str, Any]:
    """Returns JSON data that identifies the files that `read_toolbox` reads with the same
    arguments; see `identity_of`. Raises DataError if files are missing."""
    names = (_images_name(root), "labels", "poison_indices", "cover_indices")
    found = {"train": identity_of(root, names)}
    if held_out is not None and held_out.share is not None:
        return {**found, **held_out.identity()}
    place = _test_root(root, test_root)
    if is_test_split(place):
        return {**found, "test": identity_of(place, ("data", "labels"))}
    source = clean_source(place)
    return {**found, "test": [type(source).__name__, source.identity()]}


def toolbox_facts(root: Path, test_root: Path | None = None) -> ImportedFacts:
    """Returns what the folder tells about its attack: the name of the folder gives trigger, options
    and seed; the indices give the ratio; the labels of the poisoned images give the target, if they
    are equal. Raises DataError for damaged files."""
    labels = stored_labels(root / "labels")
    is_poison, is_cover = _truth(root, len(labels))
    trigger, ratio, options = _from_name(root.resolve().name)
    seed = options.pop("poison_seed", None)
    choices = {}
    wanted: NDArray[np.int64] = np.empty(0, np.int64)
    if is_poison is not None and is_cover is not None:
        ratio, wanted = float(is_poison.mean()), np.unique(labels[is_poison])
        choices = {"cover_rate": float(is_cover.mean())} if is_cover.any() else {}
        options.pop("cover", None)
    classes = _known_classes(root, test_root) if len(wanted) == 1 else ()
    target = None
    if len(wanted) == 1:
        target = classes[wanted[0]] if wanted[0] < len(classes) else str(wanted[0])
    return ImportedFacts(
        trigger=trigger,
        options=options,
        target=target,
        ratio=ratio,
        seed=seed if isinstance(seed, int) else None,
        choices=choices,
        n_poisoned=None if is_poison is None else int(is_poison.sum()),
        n_covers=None if is_cover is None else int(is_cover.sum()),
    )


def read_toolbox(
    root: Path, *, test_root: Path | None = None, held_out: HeldOut | None = None
) -> Arrays:
    """Returns the data set, with its training images in the stored order.

    The clean test images are those of `test_root`: a folder test_split or a clean data set. If it
    is None, they are those of clean_set/<dataset>/test_split next to poisoned_train_set, where
    backdoor-toolbox writes it; with `held_out`, clean images are held out of the training images.

    The attack trained on the stored floats; they are rounded to 8 bits here. Raises DataError for
    damaged files and if files disagree.
    """
    labels = stored_labels(root / "labels")
    is_poison, is_cover = _truth(root, len(labels))
    train = Split(_images(root, len(labels)), labels)
    rows = np.arange(len(labels))
    if held_out is not None and held_out.share is not None:
        held = _held_out(root, train, is_poison, is_cover, held_out)
        rows, test = rows[~held], Split(train.images[held], train.labels[held])
        names: tuple[str, ...] | None = None
    else:
        test, names = _test(root, test_root)
    check_shapes(train.images, test.images, root)
    largest = int(max(labels.max(initial=0), test.labels.max(initial=0)))
    if largest >= len(labels):
        raise DataError(
            f"{root}: label {largest} of {many(len(labels), 'image')}: every class needs images"
        )
    classes = (*(names or ()), *map(str, range(len(names or ()), largest + 1)))
    attack = ImportedAttack()
    if is_poison is not None and is_cover is not None:
        source = np.where(is_poison | is_cover, np.arange(len(labels)), -1)
        attack = ImportedAttack(is_poison[rows], is_cover[rows], source[rows])
    return Arrays(Split(train.images[rows], labels[rows]), test, classes, attack)


def _images_name(root: Path) -> str:
    found = next((name for name in IMAGES if (root / name).exists()), None)
    if found is None:
        raise DataError(f"{root}: there are no images: neither `imgs` nor a folder data/")
    return found


def _images(root: Path, count: int) -> NDArray[np.uint8]:
    name = _images_name(root)
    path = root / name
    if path.is_dir():
        return numbered_pngs(root, name, count)
    found = load_torch_file(path)
    shape: tuple[int, ...] = tuple(getattr(found, "shape", ()))
    if len(shape) != 4 or shape[1] not in (1, 3) or 0 in shape:
        raise DataError(
            f"{path}: expected a tensor of images (n, C, H, W) with C = 1 or 3, got"
            f" {shape or type(found).__name__}"
        )
    if shape[0] != count:
        raise DataError(f"{path}: {many(shape[0], 'image')}, but {many(count, 'label')}")
    return bytes_of(np.asarray(found), path)


def bytes_of(images: NDArray[Any], where: object) -> NDArray[np.uint8]:
    """Returns images in 0..1 as uint8, rounded; uint8 images are returned unchanged. Raises
    DataError for other types and for values outside 0..1."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise DataError(f"{where}: images must be floats in 0..1 or uint8, got {images.dtype}")
    done = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), 1024):
        with np.errstate(over="ignore", invalid="ignore"):
            part = np.rint(images[start : start + 1024] * np.float32(255))
        if not (inside := _inside(part)).all():
            row = start + int(np.argmin(inside))
            raise DataError(
                f"{where}: images must be floats in 0..1, got other values in row {row}"
            )
        done[start : start + 1024] = part
    return done


def _inside(part: NDArray[Any]) -> NDArray[np.bool_]:
    inside = (part >= 0) & (part <= 255)
    return np.asarray(inside.reshape(len(part), -1).all(axis=1))


def _truth(root: Path, count: int) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_] | None]:
    """Returns the masks of poisoned images and cover images; None without poison_indices."""
    if not (root / "poison_indices").exists():
        return None, None
    is_poison = _mask(root / "poison_indices", count)
    covers = root / "cover_indices"
    is_cover = _mask(covers, count) if covers.exists() else np.zeros(count, bool)
    both = np.flatnonzero(is_poison & is_cover)
    if len(both):
        raise DataError(
            f"{root}: row {both[0]} is in poison_indices and in cover_indices;"
            f" {many(len(both), 'row')} in all"
        )
    return is_poison, is_cover


def _mask(path: Path, count: int) -> NDArray[np.bool_]:
    rows = stored_array(path)
    if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
        raise DataError(f"{path}: expected a list of rows, got {rows.dtype} {rows.shape}")
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise DataError(f"{path}: row {rows[outside][0]} is not among the {many(count, 'row')}")
    numbers, times = np.unique(rows.astype(np.int64), return_counts=True)
    if (times > 1).any():
        raise DataError(f"{path}: row {numbers[times > 1][0]} is listed twice")
    mask = np.zeros(count, bool)
    mask[numbers] = True
    return mask


def _test_root(root: Path, given: Path | None) -> Path:
    if given is not None:
        return given
    # poisoned_train_set/<dataset>/<name> and clean_set/<dataset>/test_split
    data = root.resolve().parent
    usual = data.parent.parent / "clean_set" / data.name / "test_split"
    if is_test_split(usual):
        return usual
    raise DataError(
        f"{root}: there are no clean test images: set dataset.test_root to the folder"
        " clean_set/<dataset>/test_split or to a clean data set, or set dataset.test_share=0.2 to"
        " hold out a fifth of the clean training images of every class"
    )


def _test(root: Path, given: Path | None) -> tuple[Split, tuple[str, ...] | None]:
    place = _test_root(root, given)
    if is_test_split(place):
        return test_split(place), None
    arrays = clean_source(place).read()
    return arrays.test, arrays.classes


def _known_classes(root: Path, given: Path | None) -> tuple[str, ...]:
    """Returns the names of the classes if the clean test images have some."""
    try:
        place = _test_root(root, given)
    except DataError:
        return ()
    return () if is_test_split(place) else class_names(place)


def _held_out(
    root: Path,
    train: Split,
    is_poison: NDArray[np.bool_] | None,
    is_cover: NDArray[np.bool_] | None,
    held_out: HeldOut,
) -> NDArray[np.bool_]:
    if is_poison is None or is_cover is None:
        raise DataError(
            f"{root}: dataset.test_share needs the file poison_indices: test images must be clean;"
            " set dataset.test_root instead"
        )
    held = np.zeros(len(train.labels), bool)
    for label in np.unique(train.labels):
        clean = np.flatnonzero((train.labels == label) & ~is_poison & ~is_cover)
        held[clean] = held_out.held_out(len(clean), str(label))
    return held


def _from_name(name: str) -> tuple[str | None, float | None, dict[str, Any]]:
    """Returns trigger, ratio and options from the name that backdoor-toolbox gives a folder."""
    found = _NAME.match(name)
    if found is None:
        return None, None, {}
    options = {key: _value(text) for key, text in _OPTION.findall(name[found.end() :])}
    return found[1], float(found[2]), options


def _value(text: str) -> int | float | str:
    if not (found := _NUMBER.fullmatch(text)):
        return text
    return float(text) if found[1] else int(text)
