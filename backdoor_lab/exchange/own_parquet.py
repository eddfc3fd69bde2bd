"""Reads poisoned data sets of this package in Parquet files, one for each split, as the Hugging
Face Hub reads them. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.types import ImportedAttack
from backdoor_lab.data.base import Arrays, Split
from backdoor_lab.data.hub.columns import features_of, image_content, names_in
from backdoor_lab.data.hub.parquet import opened
from backdoor_lab.data.limits import check_memory
from backdoor_lab.data.members import Content
from backdoor_lab.exchange.layouts import (
    ELSEWHERE,
    IMAGE,
    IS_COVER,
    IS_POISON,
    LABEL,
    PARQUET,
    SOURCE_INDEX,
    SPLITS,
    TRAIN_COLUMNS,
    TRIGGERED_COLUMNS,
)
from backdoor_lab.exchange.own_arrays import absent, check_marks, no_images
from backdoor_lab.exchange.own_files import png_images

_TYPES = {LABEL: np.int64, SOURCE_INDEX: np.int64, IS_POISON: np.bool_, IS_COVER: np.bool_,
          ELSEWHERE: np.bool_}  # fmt: skip


def is_parquet(root: Path) -> bool:
    """Whether `root` holds the files of this layout."""
    return (root / PARQUET.format(split=SPLITS[0])).is_file()


def read_parquet(root: Path, classes: tuple[str, ...]) -> tuple[Arrays, list[str]]:
    """Returns the poisoned set in `root`, as its files state it, and the paths of these files. The
    names of the classes are those in the metadata of the training split, not `classes`.

    Raises DataError for missing columns, columns of another type, missing values, and images that
    are not as `png_images` requires, and ConfigError without pyarrow; `own_arrays` checks the rest.
    """
    files, found = [], {}
    names: tuple[str, ...] = ()
    for split in SPLITS:
        name = PARQUET.format(split=split)
        if split == SPLITS[0] or (root / name).exists():
            columns = TRIGGERED_COLUMNS if split == SPLITS[2] else TRAIN_COLUMNS
            found[split], known = _split(root / name, columns)
            if split != SPLITS[0]:
                check_marks(found[split], root / name)
            if names and known != names:
                raise DataError(f"{root / name}: the names of the classes are not those of train")
            names = known
            files.append(name)
    train, test, triggered = (found.get(split) for split in SPLITS)
    assert train is not None
    images = train[IMAGE]
    marks = (train[IS_POISON], train[IS_COVER], train[SOURCE_INDEX])
    attack = ImportedAttack(*marks)
    if triggered is not None:
        index, elsewhere = triggered[SOURCE_INDEX], triggered[ELSEWHERE]
        attack = ImportedAttack(*marks, triggered[IMAGE], triggered[LABEL], index, elsewhere)
    tests = no_images(images) if test is None else Split(test[IMAGE], test[LABEL])
    return Arrays(Split(images, train[LABEL]), tests, names, attack), files


def _split(path: Path, columns: tuple[str, ...]) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """The columns of one file as arrays, with the images decoded, and the names of the classes."""
    with opened(path) as file:
        about = file.metadata
        size = sum(about.row_group(at).total_byte_size for at in range(about.num_row_groups))
        check_memory(size, path, "make a smaller file")
        schema = file.schema_arrow
        for name in (IMAGE, *columns):
            if schema.names.count(name) != 1:
                raise absent(path, f"single column `{name}`", schema.names)
        _check_types(schema, columns, path)
        table = file.read(columns=[IMAGE, *columns])
    found = {}
    for name in (IMAGE, *columns):
        if table.column(name).null_count:
            raise DataError(f"{path}: column `{name}` has missing values")
    for name in columns:
        found[name] = table.column(name).to_numpy().astype(_TYPES[name], casting="no")
    rows = [f"row {row}" for row in range(table.num_rows)]
    found[IMAGE] = png_images(_contents(table.column(IMAGE), path), rows, path)
    return found, _classes(schema, path)


def _check_types(schema: Any, columns: tuple[str, ...], path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]

    for name in columns:
        wanted = pa.from_numpy_dtype(_TYPES[name])
        if schema.field(name).type != wanted:
            raise DataError(
                f"{path}: column `{name}` must be {wanted}, got {schema.field(name).type}"
            )
    kind = schema.field(IMAGE).type
    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0 or not (
        pa.types.is_binary(kind.field("bytes").type)
        or pa.types.is_large_binary(kind.field("bytes").type)
    ):  # fmt: skip
        raise DataError(
            f"{path}: column `{IMAGE}` must be a struct with the PNG file in `bytes`, got {kind}"
        )


def _contents(column: Any, path: Path) -> Iterator[tuple[str, Content]]:
    for row, value in enumerate(column):
        yield f"row {row}", image_content(value.as_py(), f"{path}: row {row}")


def _classes(schema: Any, path: Path) -> tuple[str, ...]:
    """The names of the classes, from the features that the Hugging Face Hub reads."""
    names = names_in(features_of(schema).get(LABEL))
    if names is not None:
        return names
    raise DataError(f"{path}: the metadata `huggingface` do not state the names of the classes")
