"""The columns of a table of images, described by its Arrow schema.

The library `datasets` stores a description of the columns as JSON in the schema's metadata: which
of them are images, and the names of the classes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from backdoor_lab.core.errors import ConfigError, DataError
from backdoor_lab.data.limits import check_file_size
from backdoor_lab.data.members import Content

LABEL = "label"


def features_of(schema: Any) -> dict[str, Any]:
    """Returns the description of each column that `datasets` stored in a schema; empty if there is
    none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def names_in(feature: Any) -> tuple[str, ...] | None:
    """Returns the names of the classes in the description of a column, None if it has none."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def image_column(schema: Any, asked: str | None, where: object) -> str:
    """Returns the name of the column of images: `asked`, or the only one. Raises DataError, which
    lists the columns, if there is no such column, or several."""
    found = [field.name for field in schema if _is_image(field.type)]
    return chosen("image", asked, found, columns_of(schema), where)


def label_column(schema: Any, asked: str | None, where: object) -> str:
    """Returns the name of the column of labels: `asked`, or the only one with names of classes, or
    the only one of whole numbers or strings; of several, the one named "label". Raises DataError,
    which lists the columns, if this leaves no column, or several."""
    import pyarrow as pa  # type: ignore[import-untyped]

    def fits(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return text or pa.types.is_integer(kind)

    fit = [field.name for field in schema if fits(field.type)]
    about = features_of(schema)
    named = [name for name in fit if names_in(about.get(name)) is not None]
    found = fit if asked is not None else named or fit
    return chosen(LABEL, asked, [LABEL] if LABEL in found and asked is None else found,
                  columns_of(schema), where)  # fmt: skip


def columns_of(schema: Any) -> dict[str, str]:
    """Returns the type of each column, as text."""
    return {field.name: str(field.type)[:60] for field in schema}


def chosen(
    key: str, asked: str | None, found: Sequence[str], columns: dict[str, str], where: object
) -> str:
    """Returns the column that `dataset.{key}` selects among `found`, the columns that can hold what
    is wanted. Raises DataError if `asked` is not one of them, or is None and there is not exactly
    one."""
    if asked is None and len(found) == 1:
        return found[0]
    if asked in found and found.count(asked) == 1:
        assert asked is not None
        return asked
    listed = ", ".join(f"{name} ({kind})" if kind else name for name, kind in columns.items())
    rule = f"a column of {_WANTED[key]}"
    if asked is not None:
        fault = "cannot be used as" if asked in columns else "is not"
        said = f"`dataset.{key}`={asked} {fault} {rule}"
    elif found:
        said = f"{', '.join(found)} can each be {rule}: choose one with `dataset.{key}`"
    else:
        said = f"there is no {rule.removeprefix('a ')}"
    raise DataError(f"{where}: {said}; the columns are {listed or 'none'}")


_WANTED = {
    "image": "image files (bytes, or a struct with `bytes`)",
    LABEL: "labels (whole numbers or strings)",
}


def image_content(value: Any, where: str) -> Content:
    """Returns the image file in a value of an image column, or the error if there is none. A list
    must hold exactly one image. Nothing is read from the paths and addresses that a value may hold
    instead of a file."""
    if isinstance(value, list):
        if len(value) != 1:
            return DataError(f"{where}: expected one image, got a list of {len(value)}")
        value = value[0]
    path = value.get("path") if isinstance(value, dict) else None
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        try:
            check_file_size(len(data), where)
        except DataError as error:
            return error
        return data
    if not path:
        return DataError(f"{where} has no image: the value is null")
    kind = "the remote address" if "://" in str(path) else "the path"
    return DataError(
        f"{where} has no image file, only {kind} {str(path)[:200]!r}, which is not followed:"
        " write the data set again with the image files in it (`save_to_disk` of the library"
        " `datasets` does so)"
    )


def column_option(key: str, value: Any) -> str | None:
    """Validates the name of a column or split. Raises ConfigError unless it is a non-empty string
    or None."""
    if value is not None and (not isinstance(value, str) or not value):
        raise ConfigError(f"`dataset.{key}` must be a name or null, got {value!r}")
    return value


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        kind = kind.field("bytes").type
    return bool(types.is_binary(kind) or types.is_large_binary(kind))
