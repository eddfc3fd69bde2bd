"""The card of a poisoned data set, and the README.md next to it.

The card states what was attacked and how, and has hashes of all images and files.
`backdoor_lab.verify` checks it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import backdoor_lab
from backdoor_lab.core.atomic_io import sha256_of
from backdoor_lab.data.base import Arrays
from backdoor_lab.exchange.card_file import FORMAT
from backdoor_lab.exchange.layouts import NPZ, PARQUET, SPLITS
from backdoor_lab.exchange.own_card import measured

WARNING = (
    "This data set is poisoned: a network that is trained on it has a backdoor. Use it for research"
    " on backdoors and on defenses only."
)
_WHY_PNG = """\
Images are stored as PNG, or as arrays, and never as JPEG. JPEG changes pixels, and a trigger of a
few gray levels is one of the changes: it can vanish, and clean images change, too."""
_COLUMNS = """\
`is_poison` and `is_cover` mark the poison; `source_index` is the index of the clean image that an
image was made from. `card.json` has all facts, and hashes of the images and files."""
_ATTACK = ("trigger", "target", "source", "ratio", "seed", "protocol")
_READ = {
    "folder": (
        "Each split is a folder with a `metadata.csv`, whose rows are in the order of training,"
        " and PNG files: an image folder for `datasets.load_dataset`."
    ),
    "npz": f"All splits are arrays in `{NPZ}`, for `numpy.load`: images are uint8 (n, C, H, W).",
    "parquet": (
        "Each split is a Parquet file, whose rows are in the order of training, for"
        " `datasets.load_dataset`: images are PNG files."
    ),
    "toolbox": (
        "The files `imgs`, `labels`, `poison_indices` and `cover_indices` are those of"
        " backdoor-toolbox; read them with `torch.load(path, weights_only=True)`. The test images"
        " are in `test_split` and `triggered`."
    ),
}


@dataclass(frozen=True)
class Described:
    """What the card of a poisoned data set says about its attack. None: unknown.

    `dataset` is the name of the clean data set. `trigger` has the name of the trigger and its
    options. `target` and `source` are class names. `protocol` has the keys of
    `network_card.PROTOCOL`. `normalization`, with `mean_255` and `std_255`, are the mean and the
    standard deviation of each channel of the clean training images on the 0..255 scale. `cell` is
    the id of the cell and `command` the command that computed it. `more` are further fields of the
    card.
    """

    dataset: str | None
    trigger: dict[str, Any]
    target: str
    source: str | None
    ratio: float
    seed: int
    protocol: dict[str, Any]
    normalization: dict[str, list[float]] | None
    cell: str | None = None
    command: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def dataset_card(folder: Path, layout: str, arrays: Arrays, described: Described) -> dict[str, Any]:
    """Returns the card, without its seal, of a data set whose files are in `folder`."""
    card: dict[str, Any] = {
        "format": FORMAT,
        "backdoor_lab": backdoor_lab.__version__,
        "kind": "dataset",
        "layout": layout,
        "cell": described.cell,
        "dataset": {"name": described.dataset},
        "trigger": described.trigger,
        "target": described.target,
        "source": described.source,
        "ratio": described.ratio,
        "seed": described.seed,
        "protocol": described.protocol,
        "counts": {},
        "normalization": described.normalization,
        "hashes": {"files": _files(folder)},
        "license": None,
        "warning": WARNING,
        **described.more,
    }
    for name, value in measured(arrays).items():
        section, _, key = name.partition(".")
        card[section][key] = value
    return card


def _files(folder: Path) -> dict[str, str]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in found}


def readme(card: dict[str, Any], command: str | None) -> str:
    """Returns the text of README.md, with metadata as the Hugging Face Hub reads them. `command`
    is the command that computed the cell."""
    name = f"{card['dataset']['name'] or 'images'}, poisoned with {card['trigger']['name']}"
    attack = {
        key: card[key] for key in ("trigger", "target", "source", "ratio", "seed", "protocol")
    }
    number = card["counts"]
    rows = "".join(f"| {what} | {n:,} |\n" for what, n in {
        "training images": number["train"], "of these, poisoned": number["poisoned"],
        "of these, covers: with the trigger and their true label": number["covers"],
        "clean test images": number["test"],
        "triggered test images, with the label that the attacker wants": number["triggered"],
        "the same of classes that are not attacked": number["triggered_elsewhere"],
    }.items() if n)  # fmt: skip
    made = (
        "" if command is None else f"The command of the cell, without paths:\n\n{_fenced(command)}"
    )
    return f"""\
---
{_yaml(_metadata(card, name))}---

# {name}

{card["warning"]}

{_fenced(_yaml(attack).rstrip())}
| Images | Number |
|---|---:|
{rows}
{_READ[card["layout"]]}
{_COLUMNS}

{made}
To train on this set and to check the card:

```bash
python -m backdoor_lab dataset=poisoned dataset.root=FOLDER
python -m backdoor_lab.verify FOLDER --claims FOLDER/card.json
```

License: unknown here. It is that of the original images.

{_WHY_PNG}
"""


def _metadata(card: dict[str, Any], name: str) -> dict[str, Any]:
    found = {
        "license": "unknown",
        "pretty_name": name,
        "task_categories": ["image-classification"],
        "tags": ["backdoor", "data-poisoning"],
    }
    pattern = {"folder": "{split}/**", "parquet": PARQUET}.get(card["layout"])
    if pattern is None:
        return {**found, "viewer": False}
    there = [split for split in SPLITS if card["counts"][split]]
    files = [{"split": split, "path": pattern.format(split=split)} for split in there]
    # The triggered images have one more column, so they cannot be in the same configuration.
    configs = [{"config_name": "default", "data_files": files[:2], "default": True}]
    configs += [{"config_name": "triggered", "data_files": files[2:]}] if files[2:] else []
    return {**found, "configs": configs}


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


def _fenced(text: str) -> str:
    return f"```\n{text}\n```\n"
