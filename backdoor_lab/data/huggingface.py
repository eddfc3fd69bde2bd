"""Data sets in the formats of the Hugging Face Hub, from disk."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import validation
from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.base import (
    Arrays,
    Source,
    Split,
    channel_count,
    missing_hint,
    name_from,
    path_given,
    sides,
)
from backdoor_lab.data.decode import decode_all
from backdoor_lab.data.hub.columns import column_option
from backdoor_lab.data.hub.folders import folder_data_set, metadata_data_set, metadata_files
from backdoor_lab.data.hub.found import Asked, Found, Rows
from backdoor_lab.data.hub.saved import is_saved, saved_tables
from backdoor_lab.data.hub.shards import ENDING, parquet_tables
from backdoor_lab.data.hub.tables import table_data_set
from backdoor_lab.data.kinds import LISTED, has_image_ending, summary
from backdoor_lab.data.layout import hidden
from backdoor_lab.data.members import Folder, Listing
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.data.validate import check_classes, check_presence

FORMATS = (
    "a data set of `save_to_disk`, Parquet files (data/train-00000-of-00001.parquet), or image"
    " files (train/<class>/<image>, or train/<image> and train/metadata.csv)"
)


class HuggingFace(Source):
    """Reads the folder `root`: a data set of `save_to_disk`, Parquet files, or image files.

    - Only `save_to_disk` needs the library `datasets`; Parquet files need pyarrow. Nothing is
      downloaded, and scripts in the folder are never run.
    - `image` and `label` are the names of columns; None finds them (see `hub.columns`).
    - `train_split` and `test_split` are the names of the splits. If there is no test split, or
      `test_split` is None, the fraction `test_share` of each class, chosen by `split_seed`, is held
      out of the training images.
    - The classes are those that the data set names (`ClassLabel`), in its order; otherwise, they
      are the labels or folders, sorted. Images are in the order of the rows; image files without
      metadata as `ImageFolder` orders them.
    - `size`, `resize`, `channels`, `skip_broken`, `limit_train`, `limit_test`: as for
      `ImageFolder`; the limits keep the first images in this order.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        name: str | None = None,
        image: str | None = None,
        label: str | None = None,
        train_split: str = "train",
        test_split: str | None = "test",
        size: int | None = None,
        resize: int | None = None,
        channels: int = 3,
        skip_broken: bool = False,
        test_share: float | None = None,
        split_seed: int = 0,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        self.root = Path(path_given(root, "a folder of the Hugging Face Hub")).expanduser()
        name = name_from(str(self.root)) if name is None else name
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.asked = _asked(image, label, train_split, test_split)
        self.size, self.resize = sides(size, resize)
        self.channels = channel_count(channels)
        self.skip_broken = validation.flag("dataset.skip_broken", skip_broken)
        self.held_out = HeldOut(test_share, split_seed)
        self.training_keys: list[str] = []
        """The path, or file and row, of each training image; available after `read`."""
        self._listing = Listing()
        self._last: tuple[Any, Found] | None = None

    def identity(self) -> dict[str, Any]:
        """Returns the class names, and the path, size and modification time of each file that
        determines the images and labels; also the options that select and convert them."""
        asked, found = self.asked, self._found()
        how: dict[str, Any] = {"size": self.size, "channels": self.channels}
        how |= {"columns": [asked.image, asked.label]}
        how |= {"splits": [asked.train_split, asked.test_split], **self.held_out.identity()}
        how |= {"skip_broken": True} if self.skip_broken else {}
        how |= {} if self.resize is None else {"resize": self.resize}
        files = Folder(self.root).identity(found.files, self._listing)
        return {"files": files, "classes": list(found.classes), **how}

    def known_classes(self) -> tuple[str, ...]:
        """Returns the names of the classes. Reads all labels, and raises DataError if a class has
        no images in a split."""
        found = self._found()
        where = f"data set {self.name}"
        check_classes(found.classes, where)
        for split, rows in self._splits(found).items():
            check_presence(rows.labels, found.classes, f"{where}, {split}")
        return found.classes

    def read(self) -> Arrays:
        """Decodes the images of both splits in one pass over the files, a group at a time."""
        found = self._found()
        splits = self._splits(found)
        keys = [key for rows in splits.values() for key in rows.keys]
        images = decode_all(
            found.contents(set(keys)), keys, str(self.root), self.channels,
            self.resize or self.size, crop=self.resize is not None,
            skip_broken=self.skip_broken, workspace=self.workspace,
        )  # fmt: skip
        broken = list(images.broken)
        self.notes["skipped"] = {"count": len(broken), "files": broken[:LISTED]}
        made, start = [], 0
        for rows in splits.values():
            kept = np.array([key in images.rows for key in rows.keys], bool)
            end = start + int(kept.sum())
            made.append(Split(images.images[start:end], rows.labels[kept]))
            start = end
        self.training_keys = [key for key in splits["train"].keys if key in images.rows]
        return Arrays(made[0], made[1], found.classes)

    def _splits(self, found: Found) -> dict[str, Rows]:
        """Returns "train" and "test" after holding out test images, within the limits."""
        splits = found.splits
        if found.there:
            remark = self.asked.without_test(found.there)
            self.held_out.check("test" in splits, f"{self.root}{remark}")
        if "test" not in splits:
            splits = self._divided(splits["train"], found.classes)
        limits = {"train": self.limit_train, "test": self.limit_test}
        return {split: _first(rows, limits[split]) for split, rows in splits.items()}

    def _divided(self, rows: Rows, classes: tuple[str, ...]) -> dict[str, Rows]:
        chosen = np.zeros(len(rows.labels), bool)
        for label in np.unique(rows.labels):
            there = np.flatnonzero(rows.labels == label)
            chosen[there] = self.held_out.held_out(len(there), classes[label])
        return {
            "train": rows.at(np.flatnonzero(~chosen)),
            "test": rows.at(np.flatnonzero(chosen)),
        }

    def _found(self) -> Found:
        """Returns what is in the folder. Reads it again only if a file in it has changed."""
        if not self.root.is_dir():
            there = "not a folder" if self.root.exists() else "no such folder"
            raise DataError(
                f"{self.root}: {there}{missing_hint(self.root)}: `dataset.root` must be the folder"
                f" of {FORMATS}"
            )
        listing = Folder(self.root).listing()
        options = (self.asked, self.held_out)
        if self._last is None or self._last[0] != options or self._listing != listing:
            self._last, self._listing = (options, self._open(listing)), listing
        self.notes["not_used"] = summary(self._last[1].not_used)
        return self._last[1]

    def _open(self, listing: Listing) -> Found:
        inside, root = Folder(self.root), self.root
        visible = [path for path in listing.files if not hidden(path)]
        scripts = [path for path in visible if path.endswith(".py")]
        if is_saved(root):
            saved, there = saved_tables(root, self.asked)
            return table_data_set(root, saved, self.asked, there, scripts)
        if shards := [path for path in visible if path.endswith(ENDING)]:
            tables, there = parquet_tables(root, shards, self.asked)
            return table_data_set(root, tables, self.asked, there, scripts)
        if metadata_files(listing):
            return metadata_data_set(inside, listing, self.asked)
        if any(map(has_image_ending, visible)):
            return folder_data_set(inside, self.held_out, self.asked)
        said = f"; the script {scripts[0]} is never run" if scripts else ""
        kinds = sorted({PurePosixPath(path).suffix or "no ending" for path in visible})
        raise DataError(
            f"{root}: expected {FORMATS}; found files with {', '.join(kinds[:10]) or 'no name'}"
            f"{said}. Load the data set with the library `datasets` and write it with"
            " `save_to_disk`"
        )


def _asked(image: Any, label: Any, train_split: Any, test_split: Any) -> Asked:
    asked = Asked(
        column_option("image", image), column_option("label", label),
        column_option("train_split", train_split) or "",
        column_option("test_split", test_split),
    )  # fmt: skip
    if not asked.train_split:
        raise ConfigError("`dataset.train_split` must be the name of a split, got null")
    if asked.test_split == asked.train_split:
        raise ConfigError(
            f"`dataset.train_split` and `dataset.test_split` are both {asked.train_split}: set"
            " dataset.test_split=null and dataset.test_share=0.2 to hold out test images"
        )
    return asked


def _first(rows: Rows, limit: int | None) -> Rows:
    """Returns the first `limit` images of every class, in their order."""
    if limit is None:
        return rows
    kept: list[NDArray[np.intp]] = [
        np.flatnonzero(rows.labels == label)[:limit] for label in np.unique(rows.labels)
    ]
    return rows.at(np.sort(np.concatenate(kept))) if kept else rows
