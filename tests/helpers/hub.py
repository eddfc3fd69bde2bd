"""Writes small data sets in the formats of the Hugging Face Hub, without the library `datasets`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.helpers.image_files import encoded, picture

CLASSES = ("cat", "dog", "fox")


def png(red: int) -> bytes:
    return encoded(picture(red))


def value(image: Any) -> dict[str, Any]:
    """A PNG file of an image uint8 (C, H, W), or of `picture(image)`, as a value of a column."""
    if isinstance(image, int):
        return {"bytes": png(image), "path": None}
    pixels = np.moveaxis(image, 0, -1)
    made = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return {"bytes": encoded(made), "path": None}


def features() -> dict[str, Any]:
    return {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(CLASSES)}}


def table(
    *,
    images: Sequence[bytes | None] | None = None,
    labels: Sequence[Any] = (0, 1, 2, 0, 1, 2),
    paths: Sequence[str] | None = None,
) -> Any:
    """Six images of three classes; image n has the red value n."""
    images = [png(number) for number in range(len(labels))] if images is None else images
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = paths or [None] * len(images)
    values = [
        None if data is None and name is None else {"bytes": data, "path": name}
        for data, name in zip(images, names, strict=True)
    ]
    return pa.table({"image": pa.array(values, struct), "label": pa.array(list(labels))})


def parquet(
    path: Path, *, made: Any = None, described: dict[str, Any] | None = None, **changes: Any
) -> Path:
    """Writes `made` or `table(**changes)`, with the names of the classes if labels are numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = table(**changes) if made is None else made
    if described is None:
        numbers = pa.types.is_integer(made.schema.field("label").type)
        described = features() if numbers else {}
    said = json.dumps({"info": {"features": described}})
    made = made.replace_schema_metadata({"huggingface": said} if described else {})
    pq.write_table(made, path)
    return path


def repository(
    root: Path, *, splits: Sequence[str] = ("train", "test"), described: bool = True
) -> Path:
    for split in splits:
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        parquet(path, described=None if described else {})
    return root


def metadata_folder(root: Path, *, ending: str = "csv") -> Path:
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        rows = [(f"{number}.png", CLASSES[number % 3]) for number in range(6)]
        for number, (name, _) in enumerate(rows):
            (root / split / name).write_bytes(png(number))
        lines = ["file_name,label", *map(",".join, rows)]
        if ending == "jsonl":
            lines = [json.dumps({"file_name": name, "label": label}) for name, label in rows]
        (root / split / f"metadata.{ending}").write_text("\n".join(lines) + "\n")
    return root
