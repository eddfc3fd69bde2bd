"""Writes a poisoned data set as Parquet files with PNG images, as the library `datasets` of Hugging
Face reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from backdoor_lab.data.base import Arrays
from backdoor_lab.data.hub.parquet import pyarrow
from backdoor_lab.exchange.layouts import IMAGE, LABEL, PARQUET
from backdoor_lab.exchange.splits import Table, png, png_name, tables


def write_parquet(folder: Path, arrays: Arrays) -> None:
    """Writes the splits to `layouts.PARQUET` in the existing folder `folder`. Raises ConfigError if
    pyarrow is not installed."""
    pa = pyarrow()
    for each in tables(arrays):
        path = folder / PARQUET.format(split=each.name)
        path.parent.mkdir(exist_ok=True)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(_table(pa, each, arrays.classes), sink)
        path.write_bytes(sink.getvalue())


def _table(pa: Any, table: Table, classes: tuple[str, ...]) -> Any:
    images = [{"bytes": png(each), "path": png_name(row)} for row, each in enumerate(table.images)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    found = {IMAGE: pa.array(images, struct)}
    found |= {name: pa.array(values) for name, values in table.columns.items()}
    features: dict[str, Any] = {
        name: {"_type": "Value", "dtype": str(values.dtype)}
        for name, values in table.columns.items()
    }
    features |= {IMAGE: {"_type": "Image"}, LABEL: {"_type": "ClassLabel", "names": list(classes)}}
    said = json.dumps({"info": {"features": {name: features[name] for name in found}}})
    return pa.table(found).replace_schema_metadata({"huggingface": said})
