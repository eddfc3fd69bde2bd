"""Names of classes in README.md, the card of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from backdoor_lab.core.errors import DataError
from backdoor_lab.core.small_files import read_small

README = "README.md"
MAX_BYTES = 1 << 22
_MARK = "---"


def card_names(root: Path, label: str, folder: str) -> tuple[str, ...] | None:
    """Returns the names of the classes that README.md in `root` states for the column `label`; None
    if it states none.

    If it describes several configurations that differ, the one with the name `folder` counts, which
    is the folder of the files. Raises DataError if there is none, and if the file cannot be read.
    """
    found: dict[str, tuple[str, ...]] = {}
    for info in _infos(root):
        names = _names(info, label)
        if names is not None:
            found[str(info.get("config_name", "default"))] = names
    if len(set(found.values())) <= 1:
        return next(iter(found.values()), None)
    if folder in found:
        return found[folder]
    raise DataError(
        f"{root / README}: the names of the classes differ between the configurations"
        f" {', '.join(found)}: set `dataset.root` to the folder of one configuration"
    )


def _infos(root: Path) -> list[dict[str, Any]]:
    path = root / README
    try:
        text = read_small(path, max_bytes=MAX_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return []
    lines = text.splitlines()
    if not lines or lines[0].strip() != _MARK:
        return []
    end = next((at for at, line in enumerate(lines[1:], 1) if line.strip() == _MARK), len(lines))
    try:
        about = yaml.safe_load("\n".join(lines[1:end]))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: the lines between the first two {_MARK} are not valid YAML: {error}"
        ) from error
    found = about.get("dataset_info") if isinstance(about, dict) else None
    return [each for each in (found if isinstance(found, list) else [found])
            if isinstance(each, dict)]  # fmt: skip


def _names(info: dict[str, Any], label: str) -> tuple[str, ...] | None:
    features = info.get("features")
    for each in features if isinstance(features, list) else []:
        if not isinstance(each, dict) or each.get("name") != label:
            continue
        kind = each.get("dtype")
        about = kind.get("class_label") if isinstance(kind, dict) else None
        names = about.get("names") if isinstance(about, dict) else None
        if isinstance(names, dict):
            # The keys are the labels, as text: '0', '1', ...
            numbers = {str(key): name for key, name in names.items()}
            names = [numbers.get(str(at)) for at in range(len(numbers))]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return tuple(names)
    return None
