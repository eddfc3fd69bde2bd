"""Writes minimal image files, archives of image files, and .npz files."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def pictures() -> dict[str, bytes]:
    rng, files = np.random.default_rng(0), {}
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cat", "dog"):
            for number in range(count):
                stream = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).save(stream, "PNG")
                files[f"{split}/{name}/{number}.png"] = stream.getvalue()
    return files


def tar(path: Path, files: dict[str, bytes], *extra: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member in extra:
            archive.addfile(member, io.BytesIO(bytes(member.size)))
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def zipped(path: Path, files: dict[str, bytes], *extra: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in extra:
            archive.writestr(member, b"x")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def parts(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    good = {
        "train_images": rng.integers(0, 256, (6, 5, 4, 3), np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": rng.integers(0, 256, (3, 5, 4, 3), np.uint8),
        "test_labels": np.array([[0], [1], [2]]),
    }
    return good | changes


def saved(folder: Path, name: str = "set.npz", **changes: Any) -> str:
    np.savez_compressed(folder / name, **parts(**changes))
    return str(folder / name)


def picture(value: int, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, value if mode == "L" else (value, 0, 255 - value))


def filled(root: Path, split_names: tuple[str, str] = ("train", "test")) -> Path:
    """Write image files of two classes, each with two training images and one test image. The
    images differ in their red value."""
    value = 0
    for split, count in zip(split_names, (2, 1), strict=True):
        for name in ("dog", "cat"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                value += 10
                picture(value).save(root / split / name / f"{number}.png")
    return root


def reds(images: Any) -> list[int]:
    return [int(image[0, 0, 0]) for image in images]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()
