"""Assigns the image files of a folder or an archive to splits and classes."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from backdoor_lab.core.errors import DataError
from backdoor_lab.data.kinds import has_image_ending, is_image
from backdoor_lab.data.members import Listing, Members
from backdoor_lab.data.splits import ADVICE, HeldOut

LAYOUTS = (
    "train/<class>/<image> and test/<class>/<image>, or <class>/<image> with dataset.test_share=0.2"
)
LISTED = 10

Classes = dict[str, list[str]]
"""Maps each class to the paths of its images; both are sorted by name."""
Layout = dict[str, Classes]
"""Maps each split to its classes."""


@dataclass(frozen=True)
class SplitNames:
    """The names of the folders of a split; the first that contains an image is used. `hint` says
    how to choose others, for the message if there is no folder of test images."""

    train: tuple[str, ...] = ("train",)
    test: tuple[str, ...] = ("test", "val", "valid")
    hint: str = ""


@dataclass(frozen=True)
class Survey:
    """The content of a folder or archive: its images, and other files inside the splits."""

    layout: Layout
    not_used: list[str]
    listing: Listing


def survey(inside: Members, held_out: HeldOut, names: SplitNames | None = None) -> Survey:
    """Assigns files to splits and classes. Raises DataError if the layout is not supported, if
    there are fewer than two classes, or if a class has no images in a split."""
    names = names or SplitNames()
    listing, where = inside.listing(), str(inside.root)
    visible = {path for path in listing.files if not hidden(path)}
    images = {path for path in visible if has_image_ending(path)}
    if others := visible - images:
        images |= {path for path, head in inside.heads(others) if is_image(head)}
    folders = {path for path in listing.folders if not hidden(path)}
    prefixes = _prefixes(images, held_out, where, names)
    layout = {
        split: _by_class(images, folders, prefix, where)
        for split, prefix in prefixes.items()
        if prefix is not None
    }
    _check_classes(layout, prefixes, where)
    if "test" not in layout:
        layout = _divided(layout["train"], held_out)
    used = tuple(prefix for prefix in prefixes.values() if prefix is not None)
    not_used = sorted(path for path in visible - images if path.startswith(used))
    return Survey(layout, not_used, listing)


def _prefixes(
    images: set[str], held_out: HeldOut, where: str, names: SplitNames
) -> dict[str, str | None]:
    """Returns the folder of each split, with a trailing '/'; None for a missing split."""
    wrap = _wrapper(images, names)
    inner = [path.removeprefix(wrap) for path in images if path.startswith(wrap)]
    tops = {path.split("/")[0] for path in inner}
    train, test = (
        next((f"{wrap}{name}/" for name in each if name in tops), None)
        for each in (names.train, names.test)
    )
    got = ", ".join(sorted(tops)[:10]) or "no image file"
    if train is not None:
        wanted = " or ".join(f"{name}/" for name in names.test)
        said = f": expected {wanted}<class>/<image>, found {got}{names.hint}"
        said = "" if test or not wanted else said
        held_out.check(test is not None, f"{where}{said}")
        return {"train": train, "test": test}
    bare = bool(inner) and test is None and all(path.count("/") == 1 for path in inner)
    if bare and held_out.share is not None:
        return {"train": wrap, "test": None}
    hint = f": {ADVICE}" if bare else ""
    if wrap and inner and not any("/" in path for path in inner):
        hint = f" in its only folder, {wrap} (at least two classes are needed)"
    wanted = f"{names.train[0]}/<class>/<image>" if hint else LAYOUTS
    hint = hint or names.hint
    raise DataError(f"{where}: expected {wanted}; found {got}{hint}")


def _check_classes(layout: Layout, prefixes: dict[str, str | None], where: str) -> None:
    """Raises DataError unless there are at least two classes, each with images in every split."""
    known = sorted({name for split in layout.values() for name in split})
    shown = {split: prefixes[split] or "it" for split in layout}
    everywhere = " and ".join(shown.values())
    if len(known) < 2:
        raise DataError(
            f"{where}: at least two classes are needed, as folders in {everywhere}; found"
            f" {', '.join(known) or 'none'}"
        )
    said = []
    for split, by_class in layout.items():
        if empty := [name for name in known if not by_class.get(name)]:
            more = f" and {len(empty) - LISTED} more" if len(empty) > LISTED else ""
            said.append(
                f"{len(empty)} of {len(known)} have none in {shown[split]}:"
                f" {', '.join(empty[:LISTED])}{more}"
            )
    if said:
        raise DataError(
            f"{where}: every class needs images in {everywhere}; {'; '.join(said)}. Add images or"
            " remove these classes"
        )


def _divided(classes: Classes, held_out: HeldOut) -> Layout:
    layout: Layout = {"train": {}, "test": {}}
    for name, paths in classes.items():
        chosen = held_out.held_out(len(paths), name).tolist()
        marked = list(zip(paths, chosen, strict=True))
        layout["train"][name] = [path for path, held in marked if not held]
        layout["test"][name] = [path for path, held in marked if held]
    return layout


def _by_class(images: set[str], folders: set[str], prefix: str, where: str) -> Classes:
    below = (path.removeprefix(prefix) for path in folders if path.startswith(prefix))
    classes: Classes = {composed(name): [] for name in below if name and "/" not in name}
    for path in sorted(path for path in images if path.startswith(prefix)):
        parts = path.removeprefix(prefix).split("/")
        if len(parts) != 2:
            raise DataError(
                f"{where}: the image {path} is not directly in a folder {prefix}<class>/"
            )
        classes.setdefault(composed(parts[0]), []).append(path)
    return dict(sorted(classes.items()))


def composed(name: str) -> str:
    """Returns a class name in Unicode's composed form. Some systems decompose folder names, so
    train/ and test/ from two machines might otherwise have different classes."""
    return unicodedata.normalize("NFC", name)


def _wrapper(images: set[str], names: SplitNames) -> str:
    """Returns the single folder that contains all splits or all classes, with a trailing '/'; an
    empty string if there is none."""
    tops = {path.split("/")[0] for path in images if "/" in path}
    return f"{tops.pop()}/" if len(tops) == 1 and not tops & {*names.train, *names.test} else ""


def hidden(path: str) -> bool:
    """Whether a file or folder is ignored because of its name."""
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))
