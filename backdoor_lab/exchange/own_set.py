"""Poisoned data sets that this package wrote, in any of its layouts, with their card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.types import ImportedAttack, ImportedFacts
from backdoor_lab.data.base import Arrays
from backdoor_lab.data.splits import ADVICE, HeldOut
from backdoor_lab.exchange.card_file import (
    CardFile,
    Normalization,
    class_list,
    normalization_of,
    part,
)
from backdoor_lab.exchange.clean import check_shapes, clean_test, clean_test_identity, held_out
from backdoor_lab.exchange.own_arrays import checked_arrays
from backdoor_lab.exchange.own_card import SetCard, contradictions, set_card
from backdoor_lab.exchange.own_files import check_hashes
from backdoor_lab.exchange.own_folder import is_folder, read_folder
from backdoor_lab.exchange.own_npz import is_npz, read_npz
from backdoor_lab.exchange.own_parquet import is_parquet, read_parquet
from backdoor_lab.exchange.own_toolbox import is_own_toolbox, read_own_toolbox

Reader = Callable[[Path, tuple[str, ...]], tuple[Arrays, Sequence[str]]]
READERS: dict[str, tuple[Callable[[Path], bool], Reader]] = {
    "folder": (is_folder, read_folder),
    "npz": (is_npz, read_npz),
    "parquet": (is_parquet, read_parquet),
    "toolbox": (is_own_toolbox, read_own_toolbox),
}
"""For each layout: whether a folder has it, and its reader, which gets the folder and the names of
the classes, and returns the set and the files that it has read."""


def layouts_in(root: Path) -> list[str]:
    """Returns the names of the layouts whose files the folder `root` has."""
    return [name for name, (recognize, _) in READERS.items() if recognize(root)]


class OwnSet:
    """A poisoned data set in the folder `root` with its `card`.

    Methods raise DataError, which names the file and the field, if the card is edited or does not
    describe the files, or if the files are missing, damaged or inconsistent. If `trusting`, the
    card is not compared with the files, and its seal is not checked: `verify` reports what differs.

    Unless `trusting`, sets without clean test images need either those of the data set `test_root`,
    or `held_out`, which holds out clean training images.
    """

    def __init__(
        self, root: Path, card: CardFile, *, test_root: Path | None = None,
        held_out: HeldOut | None = None, trusting: bool = False,
    ) -> None:  # fmt: skip
        self.root, self.file, self.trusting = root, card, trusting
        self.test_root = test_root
        self.held_out = None if held_out is None or held_out.share is None else held_out

    def identity(self) -> dict[str, Any]:
        """Returns JSON data that identifies the content of the set and of the clean test images
        that do not belong to it."""
        if self.trusting:
            return {"files": part(part(self.file.content, "hashes"), "files")}
        found: dict[str, Any] = {"card": self._sound.identity}
        if self.held_out is not None:
            found |= self.held_out.identity()
        if self.test_root is not None:
            found["test"] = clean_test_identity(self.test_root)
        return found

    def facts(self) -> ImportedFacts:
        """Returns what the card states about the attack."""
        return (self._card if self.trusting else self._sound).facts

    def classes(self) -> tuple[str, ...]:
        """Returns the names of the classes."""
        return self._sound.classes

    def read(self) -> Arrays:
        """Returns the images in the order of training, with the ground truth."""
        if self.trusting:
            return self._with_test(self._trusted[0])
        return self._with_test(self._compared(self._sound))

    def refusal(self) -> str | None:
        """Returns why a set that is not `trusting` would be refused, apart from missing test
        images; None if it would not."""
        try:
            self._describes(self._sound, *self._trusted)
        except DataError as error:
            return str(error)
        return None

    @cached_property
    def _card(self) -> SetCard:
        return set_card(self.file)

    @cached_property
    def _sound(self) -> SetCard:
        """The card, if it states the hashes of the files and nobody has edited it."""
        card = self._card
        check_hashes(self.root, card.files, self.file.path)
        if not READERS[card.layout][0](self.root):
            found = " or ".join(layouts_in(self.root))
            raise DataError(
                f"{self.file.path}: `layout` is {card.layout}, but the files are"
                f" {f'those of {found}' if found else 'those of no known layout'}"
            )
        self._check_options(card.has_test)
        if not card.sealed:
            # The images tell which field it was, unless they have nothing to do with it.
            self._compared(card)
            raise DataError(
                f"{self.file.path}: `seal` does not match: the card was edited or damaged after it"
                " was written, in a field that cannot be compared with the images"
            )
        return card

    def _compared(self, card: SetCard) -> Arrays:
        """The set, if the card describes it."""
        return self._describes(card, *READERS[card.layout][1](self.root, card.classes))

    def _describes(self, card: SetCard, arrays: Arrays, files: Sequence[str]) -> Arrays:
        """The same for a set that has been read."""
        for name in files:
            if name not in card.files:
                raise DataError(
                    f"{self.file.path}: `hashes.files` does not list {name}, which belongs to the"
                    " set"
                )
        for field, stated, found in contradictions(card, checked_arrays(arrays, self.root)):
            raise DataError(
                f"{self.file.path}: `{field}` does not describe the images: expected {stated!r},"
                f" found {found!r}"
            )
        return _with_normalization(arrays, card.normalization)

    @cached_property
    def _trusted(self) -> tuple[Arrays, Sequence[str]]:
        """The set, whatever its card states, and the files that were read."""
        found = layouts_in(self.root)
        if not found:
            raise DataError(f"{self.root}: the files are those of no known layout")
        card = self.file.content
        try:
            classes = class_list("classes", part(card, "dataset").get("classes"))
        except ConfigError:
            classes = ()
        layout = card["layout"] if card.get("layout") in found else found[0]
        arrays, files = READERS[layout][1](self.root, classes)
        try:
            normalization = normalization_of(card.get("normalization"))
        except ConfigError:
            normalization = None
        return _with_normalization(checked_arrays(arrays, self.root), normalization), files

    def _check_options(self, has_test: bool) -> None:
        given = {"test_root": self.test_root, "test_share": self.held_out}
        unused = [key for key, value in given.items() if value is not None]
        if has_test and unused:
            raise DataError(
                f"{self.root}: this set has its own test images: remove dataset.{unused[0]}"
            )
        if not has_test and not unused and not self.trusting:
            raise DataError(
                f"{self.root}: this set has no test images: set dataset.test_root to a clean data"
                f" set that has them; or {ADVICE}"
            )

    def _with_test(self, arrays: Arrays) -> Arrays:
        """The set with its own test images, those of `test_root`, or those held out."""
        has_test = len(arrays.test.labels) > 0
        self._check_options(has_test)
        if has_test or (self.trusting and self.test_root is None):
            return arrays
        if self.held_out is not None:
            return held_out(arrays, self.held_out, self.root)
        assert self.test_root is not None
        test, names = clean_test(self.test_root)
        check_shapes(arrays.train.images, test.images, self.root)
        if names and names != arrays.classes and not all(map(str.isdigit, names)):
            raise DataError(
                f"{self.test_root}: the classes are {', '.join(names)}, but those of {self.root}"
                f" are {', '.join(arrays.classes)}"
            )
        return replace(arrays, test=test)


def _with_normalization(arrays: Arrays, normalization: Normalization | None) -> Arrays:
    attack = replace(arrays.attack or ImportedAttack(), normalization=normalization)
    return replace(arrays, attack=attack)
