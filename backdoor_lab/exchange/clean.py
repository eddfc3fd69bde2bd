"""Clean images that the folders of other projects do not contain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.small_files import check_regular
from backdoor_lab.core.torch_files import load_torch_file
from backdoor_lab.data.arrays import ArrayFile
from backdoor_lab.data.base import Arrays, Source, Split
from backdoor_lab.data.decode import decode_all
from backdoor_lab.data.image_folder import ImageFolder
from backdoor_lab.data.members import Folder, hash_of
from backdoor_lab.data.npz import load, names_in
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.data.torchvision_sets import Cifar10, Cifar100
from backdoor_lab.data.validate import whole_labels


def clean_source(root: Path, size: int | None = None) -> Source:
    """Returns the data set at `root`: torchvision's folder of CIFAR-10 or CIFAR-100, an .npz file,
    or a folder or archive with train/<class>/<image>, whose images are resized to `size`.

    The order of the rows is that of torchvision: of the files for CIFAR, of the array for .npz, and
    by class and name for images.
    """
    for kind in (Cifar10, Cifar100):
        if root.name == kind.unpacked[0] or (root / kind.unpacked[0]).is_dir():
            return kind(root=str(root), download=False)
    if root.suffix == ".npz":
        return ArrayFile(root=str(root), size=size)
    return ImageFolder(root=str(root), size=size)


def class_names(root: Path) -> tuple[str, ...]:
    """Returns the class names of the data set at `root` without reading its images; empty if it has
    none."""
    if root.suffix == ".npz":
        if "classes" not in names_in(root):
            return ()
        names = load(root, ["classes"])["classes"]
        return tuple(map(str, names.tolist())) if names.ndim == 1 else ()
    return clean_source(root).known_classes() or ()


def identity_of(root: Path, names: Sequence[str]) -> list[list[Any]]:
    """Returns JSON data that identifies files and folders in `root`: of a file, its hash; of a
    folder, the path, size and modification time of each file in it. Missing ones are left out."""
    found: list[list[Any]] = []
    for name in names:
        place = root / name
        if place.is_dir():
            folder = Folder(place)
            listing = folder.listing()
            found.append([name, folder.identity(listing.files, listing)])
        elif place.exists():
            check_regular(place)
            found.append([name, hash_of(place)])
    return found


def is_test_split(root: Path) -> bool:
    """Whether `root` is a folder of clean test images as backdoor-toolbox writes it."""
    return (root / "labels").is_file() and (root / "data").is_dir()


def test_split(root: Path) -> Split:
    """Returns the images data/<index>.png and their labels from a folder of clean test images as
    backdoor-toolbox writes it."""
    labels = stored_labels(root / "labels")
    return Split(numbered_pngs(root, "data", len(labels)), labels)


def clean_test(place: Path) -> tuple[Split, tuple[str, ...] | None]:
    """Returns the clean test images at `place`, a folder of backdoor-toolbox or a clean data set,
    and the names of the classes; None if it has none."""
    if is_test_split(place):
        return test_split(place), None
    arrays = clean_source(place).read()
    return arrays.test, arrays.classes


def clean_test_identity(place: Path) -> Any:
    """Returns JSON data that identifies what `clean_test` reads."""
    if is_test_split(place):
        return identity_of(place, ("data", "labels"))
    source = clean_source(place)
    return [type(source).__name__, source.identity()]


def held_out(arrays: Arrays, chosen: HeldOut, root: Path) -> Arrays:
    """Returns a poisoned data set of which the clean training images that `chosen` holds out are
    the test images. `source_index` of a made image becomes the row of its original in the training
    images that are left; its own row if they do not contain the original. Raises DataError if the
    ground truth is unknown."""
    attack, train = arrays.attack, arrays.train
    if attack is None or attack.is_poison is None or attack.is_cover is None:
        raise DataError(
            f"{root}: dataset.test_share needs to know the poisoned images (backdoor-toolbox:"
            " poison_indices), because test images must be clean; set dataset.test_root instead"
        )
    held = np.zeros(len(train.labels), bool)
    for label in np.unique(train.labels):
        clean = np.flatnonzero((train.labels == label) & ~attack.is_poison & ~attack.is_cover)
        held[clean] = chosen.held_out(len(clean), arrays.classes[label])
    left = ~held
    marks = {
        name: values[left]
        for name in ("is_poison", "is_cover")
        if (values := getattr(attack, name)) is not None
    }
    if attack.source_index is not None:
        rows, original = np.cumsum(left) - 1, attack.originals(len(left))
        source = np.where(left[original], rows[original], rows)
        made = attack.is_poison | attack.is_cover
        marks["source_index"] = np.where(made, source, -1)[left]
    return replace(
        arrays,
        train=Split(train.images[left], train.labels[left]),
        test=Split(train.images[held], train.labels[held]),
        attack=replace(attack, **marks),
    )


def stored_labels(path: Path) -> NDArray[np.int64]:
    """Returns class indices stored by ``torch.save`` as a tensor, an array or a list. Raises
    DataError for anything else."""
    return whole_labels(stored_array(path), str(path))


def stored_array(path: Path) -> NDArray[Any]:
    """Returns a tensor, an array or a list of numbers stored by ``torch.save`` as an array. Raises
    DataError for anything else."""
    found = load_torch_file(path)
    if not isinstance(found, list | tuple) and not hasattr(found, "dtype"):
        raise DataError(
            f"{path}: expected a tensor, an array or a list of numbers, got {type(found).__name__}"
        )
    try:
        array = np.asarray(found)
    except Exception as error:  # of lists of different lengths, and of types unknown to NumPy
        raise DataError(f"{path}: expected numbers: {error}") from error
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected numbers, got {array.dtype}")
    return array


def numbered_pngs(root: Path, folder: str, count: int) -> NDArray[np.uint8]:
    """Returns the images 0.png, 1.png, ... in `folder`, which must be as many as there are
    labels."""
    there = set(Folder(root / folder).listing().files)
    paths = [f"{number}.png" for number in range(count)]
    missing = [path for path in paths if path not in there]
    if missing:
        raise DataError(
            f"{root / folder}: {many(count, 'label')}, but {many(len(missing), 'image')} missing,"
            f" first {missing[0]}"
        )
    if f"{count}.png" in there:
        raise DataError(
            f"{root / folder}: {many(count, 'label')}, but there is an image {count}.png"
        )
    return pngs(root / folder, paths)


def pngs(root: Path, paths: Sequence[str], channels: int = 3) -> NDArray[np.uint8]:
    """Returns the images at `paths`, in this order: uint8 (n, channels, H, W).

    Raises DataError if one is missing or damaged, or has another size than the first.
    """
    try:
        return decode_all(
            Folder(root).contents(set(paths)), paths, str(root), channels, None
        ).images
    except DataError as error:
        # The option that this message recommends would change the poisoned images.
        raise DataError(str(error).partition(". Set `dataset.size`")[0]) from error


def check_shapes(train: NDArray[np.uint8], test: NDArray[np.uint8], where: object) -> None:
    """Raises DataError if training images and test images have different shapes."""
    if train.shape[1:] != test.shape[1:]:
        raise DataError(
            f"{where}: the poisoned images have shape {train.shape[1:]}, the clean ones"
            f" {test.shape[1:]} (C, H, W)"
        )
