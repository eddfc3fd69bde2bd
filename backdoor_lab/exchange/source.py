"""Data sets that were poisoned before they are read: those of this package and those of others."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.core.types import ImportedFacts
from backdoor_lab.data.base import Arrays, Source, missing_hint, name_from, path_given
from backdoor_lab.data.splits import HeldOut
from backdoor_lab.exchange.backdoorbench import BackdoorBench, is_backdoorbench
from backdoor_lab.exchange.card_file import CARD, read_card
from backdoor_lab.exchange.own_card import own_card
from backdoor_lab.exchange.own_set import OwnSet
from backdoor_lab.exchange.toolbox import Toolbox, is_toolbox

KNOWN = (
    "a set of this package (card.json of kind dataset), a record folder of BackdoorBench"
    " (attack_result.pt), a poisoned training set of backdoor-toolbox (labels, and imgs or data/)"
)


class PoisonedFiles(Protocol):
    """A poisoned data set in files. All methods raise DataError for missing and damaged files."""

    def identity(self) -> dict[str, Any]:
        """Returns JSON data that identifies the content of the files."""

    def classes(self) -> tuple[str, ...] | None:
        """Returns the names of the classes; None if they are not known without the images."""

    def facts(self) -> ImportedFacts:
        """Returns what the files tell about the attack."""

    def read(self) -> Arrays:
        """Returns the images with the ground truth, as far as it is known."""


def poisoned_files(
    root: Path, *, test_root: Path | None = None, clean_root: Path | None = None,
    held_out: HeldOut | None = None, trusting: bool = False,
) -> PoisonedFiles:  # fmt: skip
    """Returns the poisoned data set in the folder `root`, whatever its layout.

    `test_root` and `held_out` are for layouts without clean test images, and `clean_root` is for
    layouts without clean images at all; each layout takes what it needs. If `trusting`, sets of
    this package are not compared with their own card. Raises DataError for an unknown layout.
    """
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise DataError(f"{root}{missing_hint(root)}: {what}; known are {KNOWN}")
    card = own_card(root)
    if card is not None:
        return OwnSet(root, card, test_root=test_root, held_out=held_out, trusting=trusting)
    if is_backdoorbench(root):
        return BackdoorBench(root, clean_root=clean_root)
    if is_toolbox(root):
        return Toolbox(root, test_root=test_root, held_out=held_out)
    if (root / CARD).exists():
        kind = read_card(root / CARD).content.get("kind")
        said = "is missing" if kind is None else f"is {kind!r}"
        raise DataError(
            f"{root / CARD}: `kind` {said}, but the card of a poisoned data set has the kind"
            " 'dataset'"
        )
    raise DataError(f"{root}: not a poisoned data set in a known layout; known are {KNOWN}")


class PoisonedSet(Source):
    """Reads `root`, the folder of a poisoned data set in any layout of `KNOWN`.

    The training images keep the order in which the attack trained on them. If the layout has no
    clean test images, `test_root` is a clean data set that has them, or `test_share` holds out a
    fraction of the clean training images of every class, drawn with `split_seed`. Record folders of
    BackdoorBench need the clean images of `clean_root`. There are no limits per class, and images
    are not resized: both would break the ground truth.
    """

    def __init__(
        self,
        *,
        root: str | None = None,
        name: str | None = None,
        test_root: str | None = None,
        clean_root: str | None = None,
        test_share: float | None = None,
        split_seed: int = 0,
    ) -> None:
        self.root = Path(path_given(root, "the folder of a poisoned data set")).expanduser()
        super().__init__(name=name_from(str(self.root)) if name is None else name)
        self.test_root = _path("test_root", test_root)
        self.clean_root = _path("clean_root", clean_root)
        self.held_out = HeldOut(test_share, split_seed)
        if self.test_root is not None and test_share is not None:
            raise ConfigError(
                "`dataset.test_root` and `dataset.test_share` both say where the test images come"
                " from: remove one of them"
            )

    def identity(self) -> dict[str, Any]:
        """Returns hashes of the files; of foreign folders of images, the path, size and
        modification time of each image."""
        return {"layout": type(self._files).__name__, **self._files.identity()}

    def known_classes(self) -> tuple[str, ...] | None:
        """Returns the names of the classes, if they are known without reading the images."""
        return self._files.classes()

    def imported(self) -> ImportedFacts:
        """Returns what the files tell about the attack."""
        return self._files.facts()

    def read(self) -> Arrays:
        """Returns the images, the ground truth and the triggered test images."""
        return self._files.read()

    @cached_property
    def _files(self) -> PoisonedFiles:
        found = poisoned_files(
            self.root, test_root=self.test_root, clean_root=self.clean_root,
            held_out=self.held_out,
        )  # fmt: skip
        self._check_options(found)
        return found

    def _check_options(self, found: PoisonedFiles) -> None:
        record = isinstance(found, BackdoorBench)
        unused = {
            "test_root": self.test_root if record else None,
            "test_share": self.held_out.share if record else None,
            "clean_root": None if record else self.clean_root,
        }
        for key, value in unused.items():
            if value is not None:
                what = "has its own test images" if record else "is no record of BackdoorBench"
                raise DataError(f"{self.root} {what}: remove dataset.{key}")


def _path(key: str, value: Any) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"`dataset.{key}` must be the path of a clean data set, got {value!r}")
    return Path(value).expanduser()
