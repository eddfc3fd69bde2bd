"""Reads the public data sets supported by torchvision, from the same files as torchvision.

The official hashes are constants here. Therefore a data set in the store can be opened without its
original files and without importing torchvision. A test compares the hashes with torchvision's.
"""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core import validation
from backdoor_lab.core.errors import DataError
from backdoor_lab.data.archives import Zip
from backdoor_lab.data.base import Arrays, Source, Split, path_given
from backdoor_lab.data.decode import decode_all
from backdoor_lab.data.download import Official, missing, obtain
from backdoor_lab.data.official import (
    CIFAR10,
    CIFAR10_CLASSES,
    CIFAR100,
    DIGITS,
    FASHION_CLASSES,
    FASHION_MNIST,
    GTSRB,
    GTSRB_CLASSES,
    MNIST,
    SVHN,
)


class Published(Source):
    """Base class of data sets with official files, whose hashes are always verified. `root` is
    one of these: the folder with the downloaded files, the unpacked folder, or one of the files."""

    files: ClassVar[tuple[Official, ...]]
    default_name: ClassVar[str]
    classes: ClassVar[tuple[str, ...] | None] = None
    """The class names, unless they are read from the files."""

    def __init__(
        self,
        *,
        root: str = "data",
        name: str | None = None,
        download: bool = True,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        name = self.default_name if name is None else name
        super().__init__(name=name, limit_train=limit_train, limit_test=limit_test)
        self.root = Path(path_given(root, "a folder for downloaded data")).expanduser()
        if self.root.name in {Path(file.path).name for file in self.files}:
            self.root = self.root.parent  # `root` may be the archive instead of its folder.
        self.download = validation.flag("dataset.download", download)

    def identity(self) -> dict[str, Any]:
        """Returns the official hashes. Does not look for the files; `read` detects missing ones."""
        return {"files": [[file.path, file.md5] for file in self.files]}

    def known_classes(self) -> tuple[str, ...] | None:
        """Returns the class names as published."""
        return self.classes

    def read(self) -> Arrays:
        """Downloads the files if necessary and reads them. If anything fails, raises a DataError
        that lists the expected files."""
        obtain(
            self.name,
            self.root,
            self.files,
            download=self.download,
            ready=self.ready,
            unpack=self.unpack,
        )
        try:
            return self.load()
        except (DataError, MemoryError):
            raise
        except Exception as error:  # all failures get the same message
            raise missing(self.name, self.root, self.files, error, self.download) from error

    def is_absent(self) -> bool:
        """Whether all files are missing."""
        return not any(
            file.place(self.root, end).exists() for file in self.files for end in ("", ".gz")
        )

    def ready(self) -> bool:
        """Whether all files that `load` reads exist and have the official hashes."""
        return all(file.found_in(self.root) for file in self.files)

    def unpack(self) -> None:
        """Converts the official files to those that `load` reads; most data sets need no
        conversion."""

    @abstractmethod
    def load(self) -> Arrays:
        """Reads the files. `read` calls this method after verifying the hashes of the files."""


class Cifar10(Published):
    """CIFAR-10: 50,000 training and 10,000 test photographs in color, 32 x 32, 10 classes."""

    files = CIFAR10
    default_name = "cifar10"
    classes: ClassVar[tuple[str, ...] | None] = CIFAR10_CLASSES
    torchvision_class = "CIFAR10"
    unpacked = ("cifar-10-batches-py", "batches.meta")
    """The folder of the unpacked batches, and the name of one file in it."""

    def is_absent(self) -> bool:
        """Whether both the archive and its unpacked content are missing."""
        return super().is_absent() and not self._is_unpacked()

    def _is_unpacked(self) -> bool:
        name, meta = self.unpacked
        root = self.root
        return (root / name).is_dir() or (root / meta).exists() or root.name == name

    def ready(self) -> bool:
        """Whether the batches are unpacked and have the hashes that torchvision requires."""
        if not self._is_unpacked():
            return False  # decided without torchvision, which takes seconds to import
        from torchvision.datasets.utils import check_integrity

        folder = self.root / self._reader().base_folder
        wrong = [name for name, md5 in self._batches() if not check_integrity(folder / name, md5)]
        if wrong and folder == self.root:
            raise DataError(f"{self.root / wrong[0]} is missing or has an unexpected MD5 hash")
        return not wrong

    def unpack(self) -> None:
        """Unpacks the archive; members that point outside the folder are refused."""
        from torchvision.datasets.utils import extract_archive

        extract_archive(str(self.root / self.files[0].path), str(self.root))

    def load(self) -> Arrays:
        """Reads the batches with torchvision's class, which verifies the official hashes."""
        sets = [self._reader()(str(self.root), train=train) for train in (True, False)]
        train, test = (
            Split(np.asarray(part.data).transpose(0, 3, 1, 2), np.asarray(part.targets, np.int64))
            for part in sets
        )
        return Arrays(train, test, tuple(sets[0].classes))

    def _reader(self) -> Any:
        """Returns torchvision's class for this data set. If `root` is itself the folder of the
        unpacked batches, returns a subclass that looks for the batches directly in `root`."""
        from torchvision import datasets

        reader = getattr(datasets, self.torchvision_class)
        first = (reader.meta["filename"], reader.train_list[0][0])
        unpacked = all((self.root / name).is_file() for name in first)
        unpacked |= self.root.name == reader.base_folder
        return type(reader.__name__, (reader,), {"base_folder": ""}) if unpacked else reader

    def _batches(self) -> list[tuple[str, str]]:
        reader = self._reader()
        meta = (reader.meta["filename"], reader.meta["md5"])
        return [*map(tuple, (*reader.train_list, *reader.test_list)), meta]


class Cifar100(Cifar10):
    """CIFAR-100: like CIFAR-10, with 100 fine-grained classes."""

    files = CIFAR100
    default_name = "cifar100"
    classes = None
    torchvision_class = "CIFAR100"
    unpacked = ("cifar-100-python", "meta")


class Mnist(Published):
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, gray, 28 x 28. The files
    may be compressed (.gz) or not."""

    files = MNIST
    default_name = "mnist"
    classes: ClassVar[tuple[str, ...]] = DIGITS

    def load(self) -> Arrays:
        """Reads the IDX files: train images, train labels, test images, test labels."""
        images, labels, test_images, test_labels = (
            idx(file.bytes_in(self.root) or b"", file.path) for file in self.files
        )
        return Arrays(
            Split(images[:, None], labels.astype(np.int64)),
            Split(test_images[:, None], test_labels.astype(np.int64)),
            self.classes,
        )


class FashionMnist(Mnist):
    """Fashion-MNIST: 60,000 training and 10,000 test images of clothing, gray, 28 x 28."""

    files = FASHION_MNIST
    default_name = "fashion_mnist"
    classes = FASHION_CLASSES


class Svhn(Published):
    """SVHN, cropped digits: 73,257 training and 26,032 test images of house numbers in color, 32 x
    32."""

    files = SVHN
    default_name = "svhn"
    classes = DIGITS

    def load(self) -> Arrays:
        """Reads the MATLAB files, in which label 10 is the digit 0."""
        train, test = (self._split(file.place(self.root)) for file in self.files)
        return Arrays(train, test, DIGITS)

    def _split(self, path: Path) -> Split:
        from scipy.io import loadmat

        found = loadmat(str(path), variable_names=["X", "y"])
        return Split(found["X"].transpose(3, 2, 0, 1), found["y"].ravel().astype(np.int64) % 10)


class Gtsrb(Published):
    """GTSRB: 26,640 training and 12,630 test images of German traffic signs in color, 43 classes,
    resized to `size`."""

    files = GTSRB
    default_name = "gtsrb"
    classes = GTSRB_CLASSES

    def __init__(
        self,
        *,
        root: str = "data",
        name: str | None = None,
        size: int = 32,
        download: bool = True,
        limit_train: int | None = None,
        limit_test: int | None = None,
    ) -> None:
        super().__init__(
            root=root,
            name=name,
            download=download,
            limit_train=limit_train,
            limit_test=limit_test,
        )
        self.size = validation.whole("dataset.size", size, low=1, below=4097)

    def identity(self) -> dict[str, Any]:
        """Returns the official hashes and `size`."""
        return {**super().identity(), "size": self.size}

    def load(self) -> Arrays:
        """Reads the three archives: training images, test images, test labels."""
        training, testing, truth = (Zip(file.place(self.root)) for file in self.files)
        paths = [path for path in sorted(training.listing().files) if path.endswith(".ppm")]
        train = self._split(training, {path: int(path.split("/")[-2]) for path in paths})
        test = self._split(testing, _test_labels(testing, truth))
        return Arrays(train, test, GTSRB_CLASSES)

    def _split(self, archive: Zip, labels: dict[str, int]) -> Split:
        found = decode_all(archive.contents(labels), labels, str(archive.root), 3, self.size)
        return Split(found.images, np.array(list(labels.values()), np.int64))


def idx(data: bytes, where: str) -> NDArray[np.uint8]:
    """Parses an array of bytes in IDX format (a header of big-endian sizes, then the values).

    >>> idx(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9]), "file")
    array([7, 9], dtype=uint8)
    """
    axes = data[3] if data[:3] == b"\0\0\x08" and len(data) >= 4 + 4 * data[3] else 0
    shape = np.frombuffer(data[4 : 4 + 4 * axes], ">u4").tolist()
    values = np.frombuffer(data[4 + 4 * axes :], np.uint8)
    if not axes or len(values) != int(np.prod(shape)):
        raise DataError(
            f"{where}: not a valid IDX file: the header and the number of bytes do not agree"
        )
    return values.reshape(shape)


def _test_labels(images: Zip, truth: Zip) -> dict[str, int]:
    table = next(path for path in truth.listing().files if path.endswith(".csv"))
    content = dict(truth.contents([table]))[table]
    if isinstance(content, DataError):
        raise content
    text = content.decode("utf-8-sig")
    label = {
        row["Filename"]: int(row["ClassId"])
        for row in csv.DictReader(io.StringIO(text), delimiter=";", skipinitialspace=True)
    }
    paths = [path for path in sorted(images.listing().files) if path.endswith(".ppm")]
    return {path: label[path.split("/")[-1]] for path in paths}
