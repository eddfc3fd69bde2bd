"""What a folder of the Hugging Face Hub holds, before its images are decoded."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.members import Content

LISTED = 10


@dataclass(frozen=True)
class Asked:
    """The options of a data set that select its columns and splits; None for `image` and `label`
    finds the column, None for `test_split` reads no test images."""

    image: str | None
    label: str | None
    train_split: str
    test_split: str | None

    @property
    def splits(self) -> dict[str, str]:
        """The name in the data set of "train" and, if it is read, of "test"."""
        test = {} if self.test_split is None else {"test": self.test_split}
        return {"train": self.train_split, **test}

    def check(self, there: Sequence[str], where: object) -> None:
        """Raises DataError unless the training split is in `there`, the splits of the data set."""
        if self.train_split not in there:
            raise DataError(
                f"{where}: there is no split {self.train_split}; found {_listed(there)}: choose one"
                " with `dataset.train_split`"
            )

    def without_test(self, there: Sequence[str]) -> str:
        """Returns a remark for the message that there are no test images in the splits `there`."""
        if self.test_split is None:
            return ""
        others = [name for name in there if name != self.train_split]
        more = f" (dataset.test_split={others[0]} selects that one)" if others else ""
        return f": there is no split {self.test_split}; found {_listed(there)}{more}"


@dataclass(frozen=True)
class Rows:
    """The images of one split: a key for each, which names it in messages, and its label, int64
    (n,)."""

    keys: list[str]
    labels: NDArray[np.int64]

    def at(self, where: NDArray[np.intp]) -> Rows:
        """Returns the images with indices `where`."""
        return Rows([self.keys[at] for at in where.tolist()], self.labels[where])


@dataclass(frozen=True)
class Found:
    """A labeled data set. `splits` holds "train" and, unless the data set has no test images,
    "test". `contents` yields key and bytes of the images whose keys are in its argument. `files`
    are the files that determine all of this, `there` the names of all splits, including those that
    are not read. `not_used` are files that are not images or labels."""

    classes: tuple[str, ...]
    splits: dict[str, Rows]
    contents: Callable[[Container[str]], Iterator[tuple[str, Content]]]
    files: list[str]
    there: Sequence[str] = ()
    not_used: Sequence[str] = ()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{', '.join(names[:LISTED]) or 'none'}{more}"
