"""Record folders of BackdoorBench (Wu et al.), version 2.

`attack_result.pt` holds the attacked network and, for training set and test set, which rows are
poisoned and with which label. The poisoned images are PNG files: bd_train_dataset/<class>/<row>.png
and bd_test_dataset/<class>/<row>.png, in folders named by the original class. Clean images are not
stored: they come from the data set that was attacked, in the order of its rows. `info.pickle` holds
the options of the command.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError, many
from backdoor_lab.core.torch_files import load_torch_file
from backdoor_lab.core.types import ImportedAttack, ImportedFacts
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.members import Folder
from backdoor_lab.exchange.backdoorbench_record import (
    RESULT,
    SAFE,
    Changed,
    changed_rows,
    read_result,
    whole,
)
from backdoor_lab.exchange.clean import check_shapes, class_names, clean_source, identity_of, pngs


def is_backdoorbench(root: Path) -> bool:
    """Whether `root` looks like a record folder of BackdoorBench."""
    return (root / RESULT).exists()


class BackdoorBench:
    """A record folder of BackdoorBench, `root`.

    The clean images are those of `clean_root`; see `clean.clean_source` for what it may be. If it
    is None, they are those of data/<data set> next to the folder record, where BackdoorBench reads
    them. Methods raise DataError for damaged files; the record is parsed once.
    """

    def __init__(self, root: Path, *, clean_root: Path | None = None) -> None:
        self.root, self.clean_root = root, clean_root

    def identity(self) -> dict[str, Any]:
        """Returns JSON data that identifies the record and the clean images; see
        `identity_of`."""
        train, test = self._parts
        folders = {path.split("/")[0] for part in (train, test) for path in part.paths}
        clean = clean_source(self._place, self._result["img_size"][0])
        record = identity_of(self.root, [RESULT, "info.pickle", *sorted(folders)])
        return {"record": record, "clean": [type(clean).__name__, clean.identity()]}

    def classes(self) -> tuple[str, ...] | None:
        """Returns the names of the classes of the clean images, if they are known without reading
        the images."""
        return class_names(self._place) or None

    def facts(self) -> ImportedFacts:
        """Returns what the record tells about its attack without reading images."""
        train, test = self._parts
        names = class_names(self._place)
        is_poison = _is_poison(train)
        info = _info(self.root)
        total = len(train.order)
        covers = int((~is_poison).sum())
        attack = info.get("attack")
        return ImportedFacts(
            trigger=attack if isinstance(attack, str) else None,
            target=_only(train.labels[is_poison], names),
            source=_source_class(train, is_poison, names),
            ratio=float(is_poison.sum() / total),
            seed=whole(info.get("random_seed")),
            choices={"cover_rate": covers / total} if covers else {},
            n_poisoned=int(is_poison.sum()),
            n_covers=covers,
            triggered=len(test.rows) > 0,
        )

    def read(self) -> Arrays:
        """Returns the data set, with its training images in the order in which the attack trained
        on them.

        Raises DataError if the labels of the clean images are not those that the record states for
        its poisoned images.
        """
        root, (train, test), result = self.root, self._parts, self._result
        _check_files(root, [*train.paths, *test.paths])
        clean = clean_source(self._place, result["img_size"][0]).read()
        channels = clean.train.images.shape[1]
        if len(clean.classes) != result["num_classes"]:
            raise DataError(
                f"{self._place}: the number of classes of the clean images is"
                f" {len(clean.classes)}, but {root / RESULT} states {result['num_classes']}"
            )
        for found, split, name in ((train, clean.train, "training"), (test, clean.test, "test")):
            _check_clean(root, found, split, name)
        images, labels = clean.train.images.copy(), clean.train.labels.copy()
        is_poison, is_cover = np.zeros(len(labels), bool), np.zeros(len(labels), bool)
        if train.paths:
            changed = pngs(root, train.paths, channels)
            check_shapes(changed, images, root)
            images[train.rows], labels[train.rows] = changed, train.labels
            is_poison[train.rows], is_cover[train.rows] = _is_poison(train), ~_is_poison(train)
        source_index = np.where(is_poison | is_cover, np.arange(len(labels)), -1)
        at = train.order
        triggered = pngs(root, test.paths, channels) if test.paths else None
        if triggered is not None:
            check_shapes(triggered, images, root)
        attack = ImportedAttack(
            is_poison[at],
            is_cover[at],
            source_index[at],
            triggered,
            test.labels if test.paths else None,
            test.rows if test.paths else None,
            np.zeros(len(test.rows), bool) if test.paths else None,
        )
        return Arrays(Split(images[at], labels[at]), clean.test, clean.classes, attack)

    @cached_property
    def _result(self) -> dict[str, Any]:
        return read_result(self.root)

    @cached_property
    def _parts(self) -> tuple[Changed, Changed]:
        """The changed images of the training set and of the test set."""
        train, test = (
            changed_rows(self.root, self._result, part) for part in ("bd_train", "bd_test")
        )
        return train, test

    @cached_property
    def _place(self) -> Path:
        return _clean_root(self.root, self._result, self.clean_root)


def _is_poison(train: Changed) -> NDArray[np.bool_]:
    """Returns which changed training images are poisoned; the others are cover images.

    BackdoorBench marks both alike (WaNet and the input-aware attack store images with another
    trigger under their own label). If the attack changes labels, images that keep theirs are cover
    images, unless it is the only target: BadNets also draws images of the target class.
    """
    kept = train.labels == train.originals
    targets = np.unique(train.labels[~kept])
    if not len(targets):
        return np.ones(len(kept), bool)
    same = train.labels == targets[0] if len(targets) == 1 else np.zeros(len(kept), bool)
    return ~kept | same


def _only(labels: NDArray[np.int64], names: tuple[str, ...]) -> str | None:
    found = np.unique(labels)
    if len(found) != 1:
        return None
    return names[found[0]] if found[0] < len(names) else str(found[0])


def _source_class(
    train: Changed, is_poison: NDArray[np.bool_], names: tuple[str, ...]
) -> str | None:
    """Returns the class of all poisoned images before the attack, if it is one class that is not
    the target."""
    relabeled = is_poison & (train.labels != train.originals)
    return _only(train.originals[relabeled], names) if relabeled.sum() == is_poison.sum() else None


def _info(root: Path) -> dict[str, Any]:
    path = root / "info.pickle"
    found = load_torch_file(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _clean_root(root: Path, result: dict[str, Any], given: Path | None) -> Path:
    if given is not None:
        return given
    name = result["clean_data"]
    if isinstance(name, str) and SAFE.fullmatch(name):
        # record/<name> and data/<data set>
        usual = root.resolve().parent.parent / "data" / name
        if usual.is_dir():
            return usual
    raise DataError(
        f"{root}: BackdoorBench stores no clean images: set dataset.clean_root to the data set that"
        f" was attacked ({name!r}), with its rows in the order of torchvision"
    )


def _check_files(root: Path, paths: list[str]) -> None:
    there = Folder(root).listing().files
    missing = sorted(path for path in paths if path not in there)
    if missing:
        raise DataError(
            f"{root}: {many(len(missing), 'image')} missing that {RESULT} lists; the first is"
            f" {missing[0]}"
        )


def _check_clean(root: Path, found: Changed, clean: Split, name: str) -> None:
    """Raises DataError unless the clean images can be those that the attack changed."""
    if len(clean.labels) != found.total:
        raise DataError(
            f"{root}: the attack was made on {found.total} {name} images, but there are"
            f" {len(clean.labels)} clean ones"
        )
    wrong = clean.labels[found.rows] != found.originals
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{root}: the clean {name} images are not those of the attack, or in another order: row"
            f" {found.rows[at]} has label {clean.labels[found.rows[at]]}, but the record states"
            f" {found.originals[at]}; {int(wrong.sum())} of {many(len(wrong), 'row')} differ"
        )
