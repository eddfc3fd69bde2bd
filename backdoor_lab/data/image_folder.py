"""Image files organized as split/class/image, in a folder or an archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backdoor_lab.core import validation
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.archives import members
from backdoor_lab.data.base import (
    Arrays,
    Source,
    Split,
    channel_count,
    name_from,
    path_given,
    sides,
)
from backdoor_lab.data.decode import BrokenImageError, decode_all
from backdoor_lab.data.kinds import LISTED, summary
from backdoor_lab.data.layout import LAYOUTS, Layout, Survey, survey
from backdoor_lab.data.members import Members
from backdoor_lab.data.splits import HeldOut


class ImageFolder(Source):
    """Reads `root`: a folder, .tar, .tar.gz, .tgz, .tar.xz or .zip with train/ and test/.

    - The test images are in test/, else in val/, else in valid/. Other folders next to these and to
      train/ are ignored.
    - If there is no folder of test images, the fraction `test_share` of each class, chosen by
      `split_seed`, is held out of the training images. In this case, the class folders may be
      directly in `root` instead of in train/.
    - All of this may also be inside a single folder in `root`.
    - Classes are the folders in a split, sorted by name, in Unicode's composed form (NFC); images
      are sorted by name.
    - A file is an image if its extension or its first bytes are those of an image format (see
      kinds.py). Other files in a split are counted and listed in the record. Names that start with
      a dot or with __MACOSX are ignored. An image in a split that is not directly in a class folder
      is an error.
    - A damaged image is an error; with `skip_broken` it is skipped, counted and listed.
    - `size`: None if all images have the same size, or a number to resize to size x size, without
      keeping the aspect ratio.
    - `resize`: a number to resize the shorter side to it, rounding the longer side down, and to cut
      out a square in the center, as torchvision's ``Resize`` and ``CenterCrop`` do with Pillow
      images (bilinear, antialiased). Either `size` or `resize`.
    - `channels`: 3 or 1; see decode.py for the conversion of other modes.
    - `limit_train`, `limit_test`: maximum number of images per class; the first by name are kept.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        name: str | None = None,
        size: int | None = None,
        resize: int | None = None,
        channels: int = 3,
        skip_broken: bool = False,
        test_share: float | None = None,
        split_seed: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        self.root = Path(path_given(root, "a folder or archive of images")).expanduser()
        name = name_from(str(self.root)) if name is None else name
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.size, self.resize = sides(size, resize)
        self.channels = channel_count(channels)
        self.skip_broken = validation.flag("dataset.skip_broken", skip_broken)
        self.held_out = HeldOut(test_share, split_seed)

    def identity(self) -> dict[str, Any]:
        """Returns the hash of an archive. For a folder, returns the class names, and the path, size
        and modification time of each image. Also returns `size`, `channels` and, only if set,
        `resize`, `skip_broken` and `test_share`."""
        how = {"size": self.size, "channels": self.channels, **self.held_out.identity()}
        how |= {"skip_broken": True} if self.skip_broken else {}
        how |= {} if self.resize is None else {"resize": self.resize}
        inside = self._members()
        if not self.root.is_dir():
            return {"files": inside.identity(()), **how}
        found = self._survey(inside)
        layout = self._limited(found.layout)
        files = inside.identity(_paths(layout), found.listing)
        classes = {split: list(by_class) for split, by_class in layout.items()}
        return {"files": files, "classes": classes, **how}

    def known_classes(self) -> tuple[str, ...]:
        """Returns the names of the folders in a split, sorted."""
        return _classes(self._limited(self._survey(self._members()).layout))

    def read(self) -> Arrays:
        """Decodes both splits in one pass over the files."""
        inside = self._members()
        layout = self._limited(self._survey(inside).layout)
        paths = _paths(layout)
        wanted = set(paths)
        try:
            found = decode_all(
                inside.contents(wanted), paths, str(self.root), self.channels,
                self.resize or self.size, crop=self.resize is not None,
                skip_broken=self.skip_broken, workspace=self.workspace,
            )  # fmt: skip
        except BrokenImageError as error:
            raise DataError(f"{error}; dataset.skip_broken=true leaves such files out") from error
        broken = list(found.broken)
        self.notes["skipped"] = {"count": len(broken), "files": broken[:LISTED]}
        classes = _classes(layout)
        train, test = (
            _split(found.images, found.rows, layout[split], classes) for split in ("train", "test")
        )
        return Arrays(train, test, classes)

    def _members(self) -> Members:
        try:
            return members(self.root)
        except DataError as error:
            raise DataError(f"{error}: `dataset.root` must contain {LAYOUTS}") from error

    def _survey(self, inside: Members) -> Survey:
        found = survey(inside, self.held_out)
        self.notes["not_used"] = summary(found.not_used)
        return found

    def _limited(self, layout: Layout) -> Layout:
        limits = {"train": self.limit_train, "test": self.limit_test}
        return {
            split: {name: paths[: limits[split]] for name, paths in by_class.items()}
            for split, by_class in layout.items()
        }


def _classes(layout: Layout) -> tuple[str, ...]:
    return tuple(sorted({name for split in layout.values() for name in split}))


def _split(
    images: Any, rows: dict[str, int], by_class: dict[str, list[str]], classes: Sequence[str]
) -> Split:
    """Returns one split. Its images are a view of consecutive rows of `images`, not a copy."""
    numbers = {name: number for number, name in enumerate(classes)}
    found = [
        (rows[path], numbers[name])
        for name, paths in by_class.items()
        for path in paths
        if path in rows
    ]
    where = [row for row, _ in found]
    labels = np.array([label for _, label in found], np.int64)
    first = where[0] if where else 0
    return Split(images[first : first + len(where)], labels)


def _paths(layout: Layout) -> list[str]:
    return [path for split in layout.values() for paths in split.values() for path in paths]
