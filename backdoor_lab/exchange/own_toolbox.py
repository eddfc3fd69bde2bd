"""Reads poisoned data sets of this package in the files of backdoor-toolbox, with the clean and the
triggered test images that backdoor-toolbox does not store."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.small_files import check_regular
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.exchange.clean import stored_array
from backdoor_lab.exchange.layouts import (
    COVER_INDICES,
    ELSEWHERE,
    IMGS,
    LABELS,
    PNGS,
    POISON_INDICES,
    SOURCE_INDEX,
    TEST_FOLDER,
    TEST_INDEX,
    TRIGGERED_FOLDER,
)
from backdoor_lab.exchange.own_arrays import no_images
from backdoor_lab.exchange.own_files import contents, files_in, png_images
from backdoor_lab.exchange.toolbox import stored_images, stored_truth


def is_own_toolbox(root: Path) -> bool:
    """Whether `root` holds the files of this layout."""
    return (root / IMGS).is_file()


def read_own_toolbox(root: Path, classes: tuple[str, ...]) -> tuple[Arrays, list[str]]:
    """Returns the poisoned set in `root`, as its files state it, and the paths of these files.
    `classes` names the labels; labels without a name get their number as name.

    Raises DataError for missing and damaged files, and for files that could run code; `own_arrays`
    checks the rest.
    """
    files = [IMGS, LABELS, POISON_INDICES, SOURCE_INDEX]
    files += [COVER_INDICES] if (root / COVER_INDICES).exists() else []
    for name in files:
        check_regular(root / name)
    labels = stored_array(root / LABELS)
    is_poison, is_cover = stored_truth(root, len(labels))
    if is_poison is None:
        raise DataError(f"{root / POISON_INDICES}: no such file")
    images = stored_images(root, len(labels))
    attack = ImportedAttack(is_poison, is_cover, stored_array(root / SOURCE_INDEX))
    test = no_images(images)
    if (root / TEST_FOLDER).exists():
        test, names = _split(root, TEST_FOLDER)
        files += names
    if (root / TRIGGERED_FOLDER).exists():
        triggered, names = _split(root, TRIGGERED_FOLDER)
        extra = [f"{TRIGGERED_FOLDER}/{name}" for name in (TEST_INDEX, ELSEWHERE)]
        files += [*names, *extra]
        index, elsewhere = (stored_array(root / name) for name in extra)
        attack = ImportedAttack(
            is_poison, is_cover, attack.source_index, triggered.images, triggered.labels, index,
            elsewhere,
        )  # fmt: skip
    known = [*labels.ravel(), *test.labels.ravel()]
    largest = max((int(each) for each in known if each < len(labels)), default=0)
    classes = (*classes, *map(str, range(len(classes), largest + 1)))
    return Arrays(Split(images, labels), test, classes, attack), files


def _split(root: Path, folder: str) -> tuple[Split, list[str]]:
    """The images and labels in a folder, and the paths of its files."""
    labels = stored_array(root / folder / LABELS)
    paths = [f"{folder}/{PNGS}/{row}.png" for row in range(len(labels))]
    files_in(root, paths)
    more = f"{folder}/{PNGS}/{len(labels)}.png"
    if (root / more).exists():
        raise DataError(f"{root / folder}: {many(len(labels), 'label')}, but there is {more}")
    images = png_images(contents(root, paths), paths, root)
    return Split(images, np.asarray(labels)), [f"{folder}/{LABELS}", *paths]
