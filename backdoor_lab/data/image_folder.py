"""Image files laid out as split/class/image, in a folder or an archive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from backdoor_lab import checks
from backdoor_lab.data.base import (
    EMBEDDED,
    Arrays,
    Source,
    Split,
    channel_count,
    name_from,
    path_given,
)
from backdoor_lab.data.decode import decode_all
from backdoor_lab.data.members import Listing, members
from backdoor_lab.errors import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".gif", ".webp", ".tif", ".tiff")
TRAIN = ("train",)
TEST = ("test", "val", "valid")
"""The first of these that holds an image is the test split."""

Layout = dict[str, dict[str, list[str]]]
"""Split -> class -> paths, everything sorted by name."""


class ImageFolder(Source):
    """Reads `root`: a folder, .tar, .tar.gz, .tgz, .tar.xz or .zip with train/ and test/.

    - Without test/, val/ or valid/ takes its place. Other top-level folders are not read. One
      folder wrapped around everything is tolerated.
    - Classes are the folders below a split, sorted by name; images are sorted by name.
    - Not counted: files whose ending is not one of `IMAGES`, and names that begin with a dot or
      with __MACOSX. An image file elsewhere in a split than in split/class/ is an error.
    - `size` null: all images must have one size. A number: all are resized to size x size.
    - `channels` 3 or 1; see `decode` for what becomes of other kinds of picture.
    - `limit_train`, `limit_test`: that many images of every class, the first by name.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        name: str | None = None,
        size: int | None = None,
        channels: int = 3,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        self.root = Path(path_given(root, "a folder or archive of images")).expanduser()
        name = name_from(str(self.root)) if name is None else name
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.size = None if size is None else checks.whole("dataset.size", size, low=1, below=4097)
        self.channels = channel_count(channels)

    def identity(self) -> dict[str, Any]:
        """An archive's hash, or names, sizes and times of change of the images in a folder."""
        paths: list[str] = []
        listing = None
        inside = self._members()
        if self.root.is_dir():
            listing = inside.listing()
            paths = [path for split in self._layout(listing).values() for path in _paths(split)]
        files = inside.identity(paths, listing)
        return {"files": files, "size": self.size, "channels": self.channels}

    def read(self) -> Arrays:
        """Decodes both splits in one pass over the files."""
        inside = self._members()
        layout = self._layout(inside.listing())
        classes = sorted({name for split in layout.values() for name in split})
        paths = [path for split in layout.values() for path in _paths(split)]
        rows = {path: row for row, path in enumerate(paths)}
        images = decode_all(inside.contents(rows), rows, str(self.root), self.channels, self.size)
        labels = np.array(
            [
                classes.index(name)
                for split in layout.values()
                for name, found in split.items()
                for _ in found
            ],
            np.int64,
        )
        cut = len(_paths(layout["train"]))
        train, test = Split(images[:cut], labels[:cut]), Split(images[cut:], labels[cut:])
        return Arrays(train, test, tuple(classes))

    def _members(self) -> Any:
        try:
            return members(self.root)
        except DataError as error:
            raise DataError(f"{error}; expected train/<class>/<image> in it. {EMBEDDED}") from error

    def _layout(self, listing: Listing) -> Layout:
        found = arrange(listing, str(self.root))
        limits = {"train": self.limit_train, "test": self.limit_test}
        return {
            split: {name: paths[: limits[split]] for name, paths in by_class.items()}
            for split, by_class in found.items()
        }


def arrange(listing: Listing, where: str) -> Layout:
    """Sorts the image files into splits and classes; DataError where the layout is another."""
    folders = {path for path in listing.folders if not _hidden(path)}
    images = {path for path in listing.files if _is_image(path)}
    wrap = _wrapper(images)
    tops = {path.removeprefix(wrap).split("/")[0] for path in images if path.startswith(wrap)}
    layout: Layout = {}
    for split, names in (("train", TRAIN), ("test", TEST)):
        folder = next((name for name in names if name in tops), None)
        if folder is None:
            wanted = " or ".join(f"{name}/" for name in names)
            got = ", ".join(sorted(tops)[:10]) or "no image file"
            raise DataError(f"{where}: expected {wanted}<class>/<image>, found {got}")
        layout[split] = _by_class(images, folders, f"{wrap}{folder}/", where)
    return layout


def _by_class(images: set[str], folders: set[str], prefix: str, where: str) -> dict[str, list[str]]:
    below = (path.removeprefix(prefix) for path in folders if path.startswith(prefix))
    classes: dict[str, list[str]] = {name: [] for name in below if "/" not in name}
    for path in sorted(path for path in images if path.startswith(prefix)):
        parts = path.removeprefix(prefix).split("/")
        if len(parts) != 2:
            raise DataError(f"{where}: {path} does not lie in {prefix}<class>/")
        classes.setdefault(parts[0], []).append(path)
    return dict(sorted(classes.items()))


def _wrapper(images: set[str]) -> str:
    """The one folder around everything, with '/', or nothing."""
    tops = {path.split("/")[0] for path in images if "/" in path}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & {*TRAIN, *TEST} else ""


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGES) and not _hidden(path)


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def _paths(by_class: dict[str, list[str]]) -> list[str]:
    return [path for paths in by_class.values() for path in paths]
